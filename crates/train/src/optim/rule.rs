//! Update rules: how gradients change parameters.

use super::adamw::AdamW;
use super::sgd::Sgd;
use super::table::table;
use calotype_ops::Update;

/// How gradients change parameters.
pub trait Rule {
    /// Names in checkpoints of what is kept for each parameter, to be put in front of the parameter's name.
    fn moments(&self) -> &'static [&'static str];

    /// Weight decay of parameters whose group sets none.
    fn weight_decay(&self) -> f32;

    /// The update of a step.
    fn update(&self, learning_rate: f32, weight_decay: f32) -> Update;

    /// Checks the settings.
    ///
    /// # Errors
    /// The key inside `optimizer` that is out of range, and what it may be.
    fn validate(&self) -> Result<(), (&'static str, String)>;
}

table! {
    /// The optimizer; `optimizer.name` of a recipe, `adamw` by default.
    UpdateRule: dyn Rule {
        /// AdamW.
        AdamW(AdamW) = "adamw",
        /// Stochastic gradient descent, with or without momentum.
        Sgd(Sgd) = "sgd",
    }
}

impl Default for UpdateRule {
    fn default() -> Self {
        Self::AdamW(AdamW::default())
    }
}

/// Checks a factor that decays something.
pub(super) fn check_decay(key: &'static str, decay: f32) -> Result<(), (&'static str, String)> {
    if (0.0..1.0).contains(&decay) { Ok(()) } else { Err((key, format!("{decay} is not in 0..1"))) }
}

/// Checks a weight decay.
pub(super) fn check_weight_decay(decay: f32) -> Result<(), (&'static str, String)> {
    let problem = match decay {
        // What a recipe says has become this number of 32 bits.
        decay if decay == f32::INFINITY => "is too large; use a number such as 0.01".to_owned(),
        decay if decay >= 0.0 => return Ok(()),
        decay => format!("{decay} is no decay; use 0 or more"),
    };
    Err(("optimizer.weight_decay", problem))
}
