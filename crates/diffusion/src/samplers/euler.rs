use super::config::{Family, SamplerConfig};
use super::plan::{Ground, Plan};
use super::sigmas::fractional;
use super::solver::{Moment, Solver};
use super::{SamplerError, SigmaRange};
use crate::objective::Prediction;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Euler's method in the noise level (Karras et al. 2022, algorithm 2 without churn); diffusers'
/// `EulerDiscreteScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Euler {
    /// The noise levels.
    pub sigmas: SigmaRange,
}

/// Euler's method to less noise than the step leads to, with fresh noise for the rest; diffusers'
/// `EulerAncestralDiscreteScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EulerAncestral {}

impl Family for Euler {
    const NAME: &'static str = "euler";

    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        Box::new(EulerSolver { prediction: config.prediction, plan, ancestral: false })
    }

    fn plan(&self, ground: &Ground<'_>) -> Result<Plan, SamplerError> {
        let (timesteps, sigmas) = fractional(ground, &self.sigmas);
        Ok(Plan::of_deviations(ground, timesteps, &sigmas))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        curve_problem(&self.sigmas)
    }
}

/// What is wrong with noise levels at fractional timesteps.
pub(super) fn curve_problem(sigmas: &SigmaRange) -> Option<&'static str> {
    if sigmas.curve == super::Curve::LogSnr {
        return Some("the curve `log_snr` belongs to `dpm_multistep`; take `exponential`, which is much the same");
    }
    sigmas.problem()
}

impl Family for EulerAncestral {
    const NAME: &'static str = "euler_ancestral";

    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        Box::new(EulerSolver { prediction: config.prediction, plan, ancestral: true })
    }

    fn plan(&self, ground: &Ground<'_>) -> Result<Plan, SamplerError> {
        let (timesteps, sigmas) = fractional(ground, &SigmaRange::default());
        Ok(Plan::of_deviations(ground, timesteps, &sigmas))
    }

    fn is_stochastic(&self) -> bool {
        true
    }
}

struct EulerSolver<'a> {
    prediction: Prediction,
    plan: &'a Plan,
    ancestral: bool,
}

impl Solver for EulerSolver<'_> {
    fn step(&mut self, moment: Moment<'_>) -> (Tensor<4>, Tensor<4>) {
        let [from, to] = [0, 1].map(|i| self.plan.levels[moment.call + i][1]);
        let clean = clean_estimate(self.prediction, &moment.x, moment.output, from);
        let up = if self.ancestral { (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt() } else { 0.0 };
        let down = (to * to - up * up).max(0.0).sqrt();
        let slope = slope(moment.x.clone(), clean.clone(), from);
        let next = moment.x + slope.mul_scalar(down - from);
        ((moment.fresh)(next, up), clean)
    }
}

/// The clean latent in `x = clean + sigma · noise`.
pub(super) fn clean_estimate(prediction: Prediction, x: &Tensor<4>, output: Tensor<4>, sigma: f64) -> Tensor<4> {
    let variance = sigma * sigma + 1.0;
    match prediction {
        Prediction::Epsilon => x.clone() - output.mul_scalar(sigma),
        Prediction::V => output.mul_scalar(-sigma / variance.sqrt()) + x.clone().div_scalar(variance),
        Prediction::Sample => output,
    }
}

/// `dx / dsigma` (Karras et al. 2022, eq. 4).
pub(super) fn slope(x: Tensor<4>, clean: Tensor<4>, sigma: f64) -> Tensor<4> {
    (x - clean).div_scalar(sigma)
}
