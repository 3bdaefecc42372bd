use super::{Schedule, check, check_share, share_done, warming};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// From the peak to `final` as a power of the share of the run that is left, as `polynomial` of diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Polynomial {
    /// Rise from zero.
    pub warmup: Span,
    /// The last rate, as a share of the peak.
    #[serde(rename = "final")]
    pub final_share: f64,
    /// The power; 1 is a straight line.
    pub power: f64,
    /// Where it ends, the warm-up included; by default with the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<Span>,
}

impl Default for Polynomial {
    fn default() -> Self {
        Self { warmup: Span::ZERO, final_share: 0.0, power: 2.0, length: None }
    }
}

impl Schedule for Polynomial {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let falling = || {
            let left = 1.0 - share_done(self.warmup, self.length, at);
            peak * (self.final_share + (1.0 - self.final_share) * left.powf(self.power))
        };
        warming(self.warmup, peak, at).unwrap_or_else(falling)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check(self.power > 0.0 && self.power.is_finite(), "optimizer.schedule.power", || {
            format!("{} is not above 0", self.power)
        })?;
        check_share("optimizer.schedule.final", self.final_share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    /// diffusers.optimization.get_polynomial_decay_schedule_with_warmup(optimizer, 20, 100, lr_end=0.1, power=2) with rate 1.
    #[test]
    fn equals_diffusers() {
        let schedule = Polynomial { warmup: Span::Steps(20), final_share: 0.1, power: 2.0, length: None };
        near(&rates(&schedule, &[10, 20, 40, 60, 100, 101]), &[0.5, 1.0, 0.60625, 0.325, 0.1, 0.1]);
        assert!(Polynomial { power: 0.0, ..Polynomial::default() }.validate().is_err());
    }
}
