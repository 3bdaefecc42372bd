use super::rule::{Rule, check_decay, check_weight_decay};
use calotype_ops::Update;
use serde::{Deserialize, Serialize};

/// AdamW (Loshchilov & Hutter 2019, "Decoupled weight decay regularization", algorithm 2), as PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        let calotype_ops::AdamW { beta1, beta2, eps, weight_decay, .. } = Default::default();
        Self { beta1, beta2, eps, weight_decay }
    }
}

impl Rule for AdamW {
    fn moments(&self) -> &'static [&'static str] {
        &["adamw.first_moment.", "adamw.second_moment."]
    }

    fn weight_decay(&self) -> f32 {
        self.weight_decay
    }

    fn update(&self, lr: f32, weight_decay: f32) -> Update {
        let Self { beta1, beta2, eps, .. } = *self;
        Update::AdamW(calotype_ops::AdamW { lr, beta1, beta2, eps, weight_decay })
    }

    fn validate(&self) -> Result<(), (&'static str, String)> {
        check_decay("optimizer.beta1", self.beta1)?;
        check_decay("optimizer.beta2", self.beta2)?;
        check_weight_decay(self.weight_decay)
    }
}
