use super::{Schedule, check, check_share};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// `LambdaLinearScheduler` of CompVis's latent-diffusion (`ldm/lr_scheduler.py`) with one cycle: a straight line from
/// `f_start` to `f_max`, then one on to `f_min` at the end of the cycle. With `f_min = f_max` it stays there, as in MLPerf's
/// Stable Diffusion.
///
/// As there, a step's rate depends on the steps before it: the first one has `f_start`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LambdaLinear {
    /// Length of the rise from `f_start` to `f_max`.
    pub warmup: Span,
    /// The first rate, as a share of the peak.
    pub f_start: f64,
    /// The rate at the end of the warm-up, as a share of the peak.
    pub f_max: f64,
    /// The rate at the end of the cycle, as a share of the peak.
    pub f_min: f64,
    /// Length of the cycle, the warm-up included; by default that of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycle: Option<Span>,
}

impl Default for LambdaLinear {
    /// Latent-diffusion's own for Stable Diffusion, without warm-up.
    fn default() -> Self {
        Self { warmup: Span::ZERO, f_start: 1e-6, f_max: 1.0, f_min: 1.0, cycle: None }
    }
}

impl Schedule for LambdaLinear {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let before = at.samples.saturating_sub(at.batch_size);
        let warmup = self.warmup.samples(at.batch_size);
        if before < warmup {
            return peak * ((self.f_max - self.f_start) / warmup as f64 * before as f64 + self.f_start);
        }
        let cycle = self.cycle.map_or(at.total, |cycle| cycle.samples(at.batch_size)).max(1);
        let left = cycle.saturating_sub(before) as f64 / cycle as f64;
        peak * (self.f_min + (self.f_max - self.f_min) * left)
    }

    fn validate(&self) -> Result<(), SettingError> {
        let cycle = |cycle: &Span| !cycle.is_zero();
        check(self.cycle.as_ref().is_none_or(cycle), "optimizer.schedule.cycle", || "must not be empty".to_owned())?;
        check_share("optimizer.schedule.f_start", self.f_start)?;
        check_share("optimizer.schedule.f_max", self.f_max)?;
        check_share("optimizer.schedule.f_min", self.f_min)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    /// LambdaLinearScheduler([10], f_min, [1.0], [1e-6], [60]).schedule(n) for n = step - 1.
    #[test]
    fn equals_latent_diffusion() {
        let mlperf = LambdaLinear { warmup: Span::Steps(10), ..LambdaLinear::default() };
        near(&rates(&mlperf, &[1, 2, 6, 11, 12, 100]), &[1e-6, 0.100_000_9, 0.500_000_5, 1.0, 1.0, 1.0]);
        let falling = LambdaLinear { f_min: 0.1, cycle: Some(Span::Steps(60)), ..mlperf };
        near(&rates(&falling, &[6, 11, 31, 61, 99]), &[0.500_000_5, 0.85, 0.55, 0.1, 0.1]);
        assert!(LambdaLinear { cycle: Some(Span::ZERO), ..LambdaLinear::default() }.validate().is_err());
    }
}
