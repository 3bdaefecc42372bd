use super::{Schedule, check_share, share_done, warming};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// A straight line from the peak to `final`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Linear {
    /// Rise from zero.
    pub warmup: Span,
    /// The last rate, as a share of the peak.
    #[serde(rename = "final")]
    pub final_share: f64,
    /// Where it ends, the warm-up included; by default with the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<Span>,
}

impl Schedule for Linear {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let falling = || {
            let left = 1.0 - share_done(self.warmup, self.length, at);
            peak * (self.final_share + (1.0 - self.final_share) * left)
        };
        warming(self.warmup, peak, at).unwrap_or_else(falling)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_share("optimizer.schedule.final", self.final_share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    #[test]
    fn falls_in_a_line() {
        let schedule = Linear { warmup: Span::Samples(100), ..Linear::default() };
        near(&rates(&schedule, &[5, 10, 55, 100, 200]), &[0.5, 1.0, 0.5, 0.0, 0.0]);
        let schedule = Linear { final_share: 0.2, length: Some(Span::Steps(50)), ..Linear::default() };
        near(&rates(&schedule, &[0, 25, 50, 100]), &[1.0, 0.6, 0.2, 0.2]);
    }
}
