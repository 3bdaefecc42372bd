use super::rule::{Rule, check_decay, check_weight_decay};
use calotype_ops::Update;
use serde::{Deserialize, Serialize};

/// Stochastic gradient descent with momentum (Sutskever et al. 2013), as PyTorch's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sgd {
    /// Momentum: what the velocity is multiplied by before the gradient is added; 0 is plain gradient descent.
    pub momentum: f32,
    /// Dampening: the gradient is added to the velocity times one minus this.
    pub dampening: f32,
    /// Whether each step looks ahead along the momentum (Nesterov).
    pub nesterov: bool,
    /// Weight decay: this times the parameter is added to its gradient.
    pub weight_decay: f32,
}

impl Rule for Sgd {
    fn moments(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["sgd.momentum."] }
    }

    fn weight_decay(&self) -> f32 {
        self.weight_decay
    }

    fn update(&self, lr: f32, weight_decay: f32) -> Update {
        let Self { momentum, dampening, nesterov, .. } = *self;
        Update::Sgd(calotype_ops::Sgd { lr, momentum, dampening, nesterov, weight_decay })
    }

    fn validate(&self) -> Result<(), (&'static str, String)> {
        check_decay("optimizer.momentum", self.momentum)?;
        check_decay("optimizer.dampening", self.dampening)?;
        check_weight_decay(self.weight_decay)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            let problem = "needs a momentum above 0 and no dampening".to_owned();
            return Err(("optimizer.nesterov", problem));
        }
        Ok(())
    }
}
