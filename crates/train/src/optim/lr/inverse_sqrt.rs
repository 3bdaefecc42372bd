use super::{Schedule, check, warming};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// One over the root of progress, as `get_inverse_sqrt_schedule` of transformers: `1 / sqrt((n - warmup) / timescale + 1)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InverseSqrt {
    /// Rise from zero.
    pub warmup: Span,
    /// After so much more the rate is the peak's `1 / sqrt(2)`; by default as long as the warm-up, or 10,000 steps without
    /// one. With a warm-up of this length, the rate is that of "Attention is all you need" (Vaswani et al. 2017).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timescale: Option<Span>,
}

impl Default for InverseSqrt {
    fn default() -> Self {
        Self { warmup: Span::ZERO, timescale: None }
    }
}

impl Schedule for InverseSqrt {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let usual = if self.warmup.is_zero() { Span::Steps(10_000) } else { self.warmup };
        let scale = self.timescale.unwrap_or(usual).samples(at.batch_size).max(1) as f64;
        let since = at.samples.saturating_sub(self.warmup.samples(at.batch_size)) as f64;
        warming(self.warmup, peak, at).unwrap_or(peak / (since / scale + 1.0).sqrt())
    }

    fn validate(&self) -> Result<(), SettingError> {
        let some = |timescale: &Span| !timescale.is_zero();
        check(self.timescale.as_ref().is_none_or(some), "optimizer.schedule.timescale", || {
            "must not be empty".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    /// transformers.get_inverse_sqrt_schedule(optimizer, 20), and with timescale=30.
    #[test]
    fn equals_transformers() {
        let schedule = InverseSqrt { warmup: Span::Steps(20), timescale: None };
        near(&rates(&schedule, &[10, 20, 80, 180]), &[0.5, 1.0, 0.5, 1.0 / 3.0]);
        let schedule = InverseSqrt { timescale: Some(Span::Steps(30)), ..schedule };
        near(&rates(&schedule, &[20, 110]), &[1.0, 0.5]);
        assert!(InverseSqrt { timescale: Some(Span::ZERO), ..schedule }.validate().is_err());
    }
}
