use super::SamplerError;
use super::config::{Family, SamplerConfig};
use super::plan::{Ground, Plan};
use super::solver::{Moment, Solver};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Denoising diffusion implicit models (Song et al. 2021, eq. 12); diffusers' `DDIMScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddim {
    /// Share of fresh noise: 0 is deterministic, 1 has DDPM's variance (Song et al. 2021, eq. 16).
    pub eta: f64,
    /// Whether the last step leads to `alpha_bar = 1`; otherwise, as in Stable Diffusion, to that of timestep 0.
    pub alpha_to_one: bool,
    /// Clamp of the clean estimate's absolute value; none for latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Family for Ddim {
    const NAME: &'static str = "ddim";

    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        Box::new(DdimSolver { settings: self, config, plan })
    }

    fn plan(&self, ground: &Ground<'_>) -> Result<Plan, SamplerError> {
        Plan::of_timesteps(ground, ground.whole_timesteps())
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        (!(0.0..=1.0).contains(&self.eta)).then_some("eta has to lie between 0 and 1")
    }

    fn is_stochastic(&self) -> bool {
        self.eta > 0.0
    }
}

struct DdimSolver<'a> {
    settings: &'a Ddim,
    config: &'a SamplerConfig,
    plan: &'a Plan,
}

impl Solver for DdimSolver<'_> {
    fn step(&mut self, moment: Moment<'_>) -> (Tensor<4>, Tensor<4>) {
        let plan = self.plan;
        let t = plan.index(moment.call);
        let estimate = self.config.prediction.estimate(&plan.schedule, moment.x, moment.output, t);
        // The noise stays that of the unclipped estimate.
        let clean = clip(estimate.clean, self.settings.clip);
        let last = if self.settings.alpha_to_one { 1.0 } else { plan.schedule.alpha_bar(0) };
        let (alpha, alpha_next) = (plan.schedule.alpha_bar(t), plan.alpha_bar(t as isize - plan.stride(), last));
        // Eq. 16: the share of the variance that is drawn anew.
        let eta = self.settings.eta;
        let sigma = eta * ((1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next)).max(0.0).sqrt();
        let direction = (1.0 - alpha_next - sigma * sigma).max(0.0).sqrt();
        let next = clean.clone().mul_scalar(alpha_next.sqrt()) + estimate.noise.mul_scalar(direction);
        ((moment.fresh)(next, sigma), clean)
    }
}

/// Clamps a clean estimate's absolute value.
pub(super) fn clip(clean: Tensor<4>, limit: Option<f64>) -> Tensor<4> {
    match limit {
        Some(limit) => clean.clamp(-limit, limit),
        None => clean,
    }
}
