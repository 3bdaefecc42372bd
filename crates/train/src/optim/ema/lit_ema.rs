use super::{AverageForm, AverageProgress, check_decay};
use crate::config::SettingError;
use serde::{Deserialize, Serialize};

/// `LitEma` of CompVis's latent-diffusion (`ldm/modules/ema.py`): `min(decay, (1 + n) / (10 + n))` in update n.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LitEma {
    /// The largest decay.
    pub decay: f64,
}

impl Default for LitEma {
    fn default() -> Self {
        Self { decay: 0.9999 }
    }
}

impl AverageForm for LitEma {
    fn decay(&self, at: &AverageProgress) -> f64 {
        let n = at.updates as f64;
        self.decay.min((1.0 + n) / (10.0 + n))
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_decay("ema.decay", self.decay)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{decays, near};
    use super::*;

    #[test]
    fn warms_up() {
        near(&decays(&LitEma { decay: 0.99 }, &[1, 2, 8, 10_000]), &[2.0 / 11.0, 0.25, 0.5, 0.99]);
    }
}
