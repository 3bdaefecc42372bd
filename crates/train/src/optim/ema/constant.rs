use super::{AverageForm, AverageProgress, check_decay};
use crate::config::SettingError;
use serde::{Deserialize, Serialize};

/// The same decay in every update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constant {
    /// The decay: the new average is the old one times this, plus the weights times the rest.
    pub decay: f64,
}

impl Default for Constant {
    fn default() -> Self {
        Self { decay: 0.9999 }
    }
}

impl AverageForm for Constant {
    fn decay(&self, _: &AverageProgress) -> f64 {
        self.decay
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
    fn stays_and_is_a_share() {
        near(&decays(&Constant::default(), &[1, 9]), &[0.9999, 0.9999]);
        assert!(Constant { decay: 1.1 }.validate().unwrap_err().to_string().contains("`ema.decay`: 1.1"));
    }
}
