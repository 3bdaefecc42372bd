use super::{Schedule, check, check_share, share_done, warming};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Half a cosine from the peak to `final` (Loshchilov & Hutter 2017, "SGDR", equation 5); with several `cycles` it starts
/// again at the peak after each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cosine {
    /// Rise from zero.
    pub warmup: Span,
    /// The last rate, as a share of the peak.
    #[serde(rename = "final")]
    pub final_share: f64,
    /// How many times it goes down, in equal lengths.
    pub cycles: u32,
    /// Where it ends, the warm-up included; by default with the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<Span>,
}

impl Default for Cosine {
    fn default() -> Self {
        Self { warmup: Span::ZERO, final_share: 0.0, cycles: 1, length: None }
    }
}

impl Schedule for Cosine {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        if let Some(rate) = warming(self.warmup, peak, at) {
            return rate;
        }
        let done = share_done(self.warmup, self.length, at);
        let within = if self.cycles > 1 && done < 1.0 { (f64::from(self.cycles) * done).fract() } else { done };
        peak * (self.final_share + (1.0 - self.final_share) * (0.5 * (1.0 + (PI * within).cos())))
    }

    fn validate(&self) -> Result<(), SettingError> {
        check(self.cycles > 0, "optimizer.schedule.cycles", || "must be at least 1".to_owned())?;
        check_share("optimizer.schedule.final", self.final_share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    /// transformers.get_cosine_schedule_with_warmup(optimizer, 10, 110) and get_cosine_with_hard_restarts_schedule_with_warmup(…, 2).
    #[test]
    fn equals_transformers() {
        let once = Cosine { warmup: Span::Steps(10), length: Some(Span::Steps(110)), ..Cosine::default() };
        let quarter = 0.853_553_390_593_273_7;
        near(&rates(&once, &[0, 5, 10, 35, 60, 110, 200]), &[0.0, 0.5, 1.0, quarter, 0.5, 0.0, 0.0]);
        let twice = Cosine { cycles: 2, ..once };
        near(&rates(&twice, &[10, 35, 60, 85, 110]), &[1.0, 0.5, 1.0, 0.5, 0.0]);
    }

    #[test]
    fn ends_at_the_final_share() {
        let schedule = Cosine { final_share: 0.1, ..Cosine::default() };
        near(&rates(&schedule, &[0, 50, 100]), &[1.0, 0.55, 0.1]);
        assert!(Cosine { cycles: 0, ..Cosine::default() }.validate().unwrap_err().key.ends_with(".cycles"));
        assert!(Cosine { final_share: -1.0, ..Cosine::default() }.validate().unwrap_err().key.ends_with(".final"));
    }
}
