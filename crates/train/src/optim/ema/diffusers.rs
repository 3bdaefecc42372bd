use super::{AverageForm, AverageProgress, check_decay};
use crate::config::{SettingError, check};
use serde::{Deserialize, Serialize};

/// `EMAModel` of diffusers: in update n + 1 `(1 + n) / (10 + n)` or, with `warmup`, `1 - (1 + n / inv_gamma)^-power`, both
/// between `min_decay` and `decay`. The first update takes the weights. Its `update_after_step` is `ema.start`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Diffusers {
    /// The largest decay.
    pub decay: f64,
    /// The smallest decay, from the second update on.
    pub min_decay: f64,
    /// Whether the decay rises by `inv_gamma` and `power`; diffusers' `use_ema_warmup`.
    pub warmup: bool,
    /// Updates after which it has risen by about a half.
    pub inv_gamma: f64,
    /// How steeply it rises; 2/3 for runs of a million steps, 3/4 for shorter ones.
    pub power: f64,
}

impl Default for Diffusers {
    fn default() -> Self {
        Self { decay: 0.9999, min_decay: 0.0, warmup: false, inv_gamma: 1.0, power: 2.0 / 3.0 }
    }
}

impl AverageForm for Diffusers {
    fn decay(&self, at: &AverageProgress) -> f64 {
        let n = at.updates.saturating_sub(1) as f64;
        if n == 0.0 {
            return 0.0;
        }
        let risen = match self.warmup {
            true => 1.0 - (1.0 + n / self.inv_gamma).powf(-self.power),
            false => (1.0 + n) / (10.0 + n),
        };
        risen.min(self.decay).max(self.min_decay)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_decay("ema.decay", self.decay)?;
        check_decay("ema.min_decay", self.min_decay)?;
        check(self.inv_gamma > 0.0, "ema.inv_gamma", || format!("{} is not above 0", self.inv_gamma))?;
        check(self.power >= 0.0, "ema.power", || format!("{} is negative", self.power))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{decays, near};
    use super::*;

    /// `[EMAModel(parameters, **settings).get_decay(n) for n in [1, 2, 3, 10, 1000, 100000]]` of diffusers 0.42.
    #[test]
    fn equals_diffusers() {
        let updates = [1, 2, 3, 10, 1000, 100_000];
        near(
            &decays(&Diffusers::default(), &updates),
            &[0.0, 0.181_818_181_818_181_82, 0.25, 0.526_315_789_473_684_2, 0.991_080_277_502_477_7, 0.9999],
        );
        let warm = Diffusers { warmup: true, decay: 0.999, min_decay: 0.4, inv_gamma: 1.5, power: 0.75 };
        let risen = [0.470_315_321_276_094_1, 0.767_631_919_757_459_1, 0.992_380_865_774_479];
        near(&decays(&warm, &updates), &[0.0, 0.4, risen[0], risen[1], risen[2], 0.999]);
    }
}
