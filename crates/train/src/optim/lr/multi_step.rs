use super::{Schedule, check_share, warming};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// The rate times `gamma` at each of the milestones, as `MultiStepLR` of PyTorch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiStep {
    /// Rise from zero.
    pub warmup: Span,
    /// Where the rate changes, counted from the start of the run.
    pub milestones: Vec<Span>,
    /// The factor.
    pub gamma: f64,
}

impl Default for MultiStep {
    fn default() -> Self {
        Self { warmup: Span::ZERO, milestones: Vec::new(), gamma: 0.1 }
    }
}

impl Schedule for MultiStep {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let passed = |milestone: &&Span| milestone.samples(at.batch_size) <= at.samples;
        let changes = self.milestones.iter().filter(passed).count();
        warming(self.warmup, peak, at).unwrap_or(peak * self.gamma.powf(changes as f64))
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_share("optimizer.schedule.gamma", self.gamma)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    #[test]
    fn falls_at_its_milestones() {
        let milestones = vec![Span::Steps(30), Span::Samples(800)];
        let schedule = MultiStep { warmup: Span::Steps(2), milestones, gamma: 0.5 };
        near(&rates(&schedule, &[1, 2, 29, 30, 79, 80, 100]), &[0.5, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]);
    }
}
