use super::{Schedule, check, check_share, warming};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// The rate times `gamma` after every `every`, as `StepLR` of PyTorch; counted from the start of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// Rise from zero.
    pub warmup: Span,
    /// Distance of the changes.
    pub every: Span,
    /// The factor.
    pub gamma: f64,
}

impl Default for Step {
    fn default() -> Self {
        Self { warmup: Span::ZERO, every: Span::Steps(10_000), gamma: 0.1 }
    }
}

impl Schedule for Step {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let changes = at.samples / self.every.samples(at.batch_size).max(1);
        warming(self.warmup, peak, at).unwrap_or(peak * self.gamma.powf(changes as f64))
    }

    fn validate(&self) -> Result<(), SettingError> {
        check(!self.every.is_zero(), "optimizer.schedule.every", || "must not be empty".to_owned())?;
        check_share("optimizer.schedule.gamma", self.gamma)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    #[test]
    fn falls_in_equal_steps() {
        let schedule = Step { warmup: Span::Steps(10), every: Span::Samples(300), gamma: 0.5 };
        near(&rates(&schedule, &[5, 29, 30, 59, 60, 95]), &[0.5, 1.0, 0.5, 0.5, 0.25, 0.125]);
        assert!(Step { every: Span::ZERO, ..schedule }.validate().unwrap_err().key.ends_with(".every"));
    }
}
