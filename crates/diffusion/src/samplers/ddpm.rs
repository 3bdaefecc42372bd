use super::SamplerError;
use super::config::{Family, SamplerConfig};
use super::ddim::clip;
use super::plan::{Ground, Plan};
use super::solver::{Moment, Solver, combine};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Ancestral sampling (Ho et al. 2020, algorithm 2 and eq. 7); diffusers' `DDPMScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddpm {
    /// Variance of the fresh noise.
    pub variance: Variance,
    /// Clamp of the clean estimate's absolute value; none for latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

/// Which of the two bounds of Ho et al. 2020, section 3.2, the variance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior's, `beta~_t`.
    #[default]
    #[serde(alias = "fixed_small_log")]
    FixedSmall,
    /// The forward process's, `beta_t`.
    FixedLarge,
}

impl Family for Ddpm {
    const NAME: &'static str = "ddpm";

    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        Box::new(DdpmSolver { settings: self, config, plan })
    }

    fn plan(&self, ground: &Ground<'_>) -> Result<Plan, SamplerError> {
        Plan::of_timesteps(ground, ground.whole_timesteps())
    }

    fn is_stochastic(&self) -> bool {
        true
    }
}

struct DdpmSolver<'a> {
    settings: &'a Ddpm,
    config: &'a SamplerConfig,
    plan: &'a Plan,
}

impl Solver for DdpmSolver<'_> {
    fn step(&mut self, moment: Moment<'_>) -> (Tensor<4>, Tensor<4>) {
        let plan = self.plan;
        let t = plan.index(moment.call);
        let alpha_bar = plan.schedule.alpha_bar(t);
        let last = moment.call + 1 == plan.timesteps.len();
        let alpha_bar_next = if last { 1.0 } else { plan.schedule.alpha_bar(plan.index(moment.call + 1)) };
        let estimate = self.config.prediction.estimate(&plan.schedule, moment.x.clone(), moment.output, t);
        let clean = clip(estimate.clean, self.settings.clip);
        // Ho et al. 2020, eq. 7, over the stride between two visited timesteps.
        let alpha = alpha_bar / alpha_bar_next;
        let beta = 1.0 - alpha;
        let noise = 1.0 - alpha_bar;
        let mean = combine(
            alpha_bar_next.sqrt() * beta / noise,
            clean.clone(),
            alpha.sqrt() * (1.0 - alpha_bar_next) / noise,
            moment.x,
        );
        let variance = match self.settings.variance {
            _ if t == 0 => 0.0,
            Variance::FixedSmall => (1.0 - alpha_bar_next) / noise * beta,
            Variance::FixedLarge => beta,
        };
        ((moment.fresh)(mean, variance.max(0.0).sqrt()), clean)
    }
}
