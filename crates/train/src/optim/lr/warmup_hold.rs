use super::{Schedule, check_share};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// `WarmupHoldPolicy` of NeMo: step n, counted from 0, of a warm-up of w steps has the share `(n + 1) / (w + 1)`, so that the first step
/// moves; then the peak is held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupHold {
    /// Rise to the peak; NeMo's `warmup_steps`.
    pub warmup: Span,
    /// How long the peak is held at least, after the warm-up; NeMo's `hold_steps`. By default for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
    /// Where `final` begins, if the peak need not be held any more; NeMo's `max_steps`. By default behind the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<Span>,
    /// The last rate, as a share of the peak; NeMo's `min_lr` over `lr`.
    #[serde(rename = "final")]
    pub final_share: f64,
}

impl Schedule for WarmupHold {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let samples = |span: Span| span.samples(at.batch_size);
        let (warmup, before) = (samples(self.warmup), at.samples.saturating_sub(at.batch_size));
        if warmup > 0 && before <= warmup {
            return peak * (at.samples as f64 / (warmup + at.batch_size) as f64).min(1.0);
        }
        let held = self.hold.is_none_or(|hold| before < warmup.saturating_add(samples(hold)));
        let length = self.length.map_or(at.total, samples);
        if held || before <= length { peak } else { peak * self.final_share }
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_share("optimizer.schedule.final", self.final_share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    /// The rates that the policy gives for `last_epoch` = step - 1, by `tests/golden/make_schedules.py`.
    #[test]
    fn equals_nemo() {
        let schedule = WarmupHold { warmup: Span::Steps(4), ..WarmupHold::default() };
        near(&rates(&schedule, &[1, 2, 4, 5, 6, 100, 200]), &[0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]);
        let ending =
            WarmupHold { hold: Some(Span::Steps(10)), length: Some(Span::Steps(20)), final_share: 0.1, ..schedule };
        near(&rates(&ending, &[5, 14, 15, 21, 22, 50]), &[1.0, 1.0, 1.0, 1.0, 0.1, 0.1]);
        let none = WarmupHold::default();
        near(&rates(&none, &[1, 2]), &[1.0, 1.0]);
    }
}
