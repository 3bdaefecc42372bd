use super::{AverageForm, AverageProgress};
use crate::config::{SettingError, check};
use serde::{Deserialize, Serialize};

/// A half-life in samples that ramps up with progress (Karras et al. 2024, "Analyzing and improving the training dynamics of
/// diffusion models", section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HalfLife {
    /// Samples after which a weight's share has halved.
    pub half_life: u64,
    /// The half-life is at most this share of the samples seen, so that the average forgets the random start.
    #[serde(default = "rampup")]
    pub rampup: f64,
}

fn rampup() -> f64 {
    0.05
}

impl Default for HalfLife {
    fn default() -> Self {
        Self { half_life: 500_000, rampup: rampup() }
    }
}

impl AverageForm for HalfLife {
    fn decay(&self, at: &AverageProgress) -> f64 {
        let half_life = (self.half_life as f64).min(at.samples as f64 * self.rampup).max(1e-9);
        0.5f64.powf(at.interval as f64 / half_life)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check(self.rampup >= 0.0, "ema.rampup", || format!("{} is negative", self.rampup))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_halves_at_its_half_life() {
        let form = HalfLife { half_life: 1000, rampup: 0.05 };
        let decay = |samples| form.decay(&AverageProgress { samples, interval: 100, updates: samples / 100 });
        assert!((decay(1_000_000).powi(10) - 0.5).abs() < 1e-6);
        assert!(decay(100) < 1e-5, "early on the average follows the weights");
    }
}
