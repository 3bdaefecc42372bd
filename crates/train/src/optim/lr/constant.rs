use super::{Schedule, warming};
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};

/// The peak rate after a warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constant {
    /// Rise from zero.
    pub warmup: Span,
}

impl Schedule for Constant {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        warming(self.warmup, peak, at).unwrap_or(peak)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    #[test]
    fn rises_and_stays() {
        near(&rates(&Constant { warmup: Span::Steps(4) }, &[0, 1, 4, 90, 200]), &[0.0, 0.25, 1.0, 1.0, 1.0]);
        near(&rates(&Constant::default(), &[0, 1]), &[1.0, 1.0]);
    }
}
