use super::config::{Family, SamplerConfig};
use super::ddim::clip;
use super::euler::{clean_estimate, curve_problem, slope};
use super::plan::{Ground, Plan};
use super::sigmas::fractional;
use super::solver::{Moment, Solver};
use super::{FinalSigma, SamplerError, SigmaRange};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Heun's method in the noise level (Karras et al. 2022, algorithm 1); diffusers' `HeunDiscreteScheduler`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heun {
    /// The noise levels; the last one is 0.
    pub sigmas: SigmaRange,
    /// Clamp of the clean estimate's absolute value; none for latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Family for Heun {
    const NAME: &'static str = "heun";

    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        Box::new(HeunSolver { settings: self, config, plan, half: None })
    }

    fn plan(&self, ground: &Ground<'_>) -> Result<Plan, SamplerError> {
        let (timesteps, sigmas) = fractional(ground, &self.sigmas);
        // Each level but the first is called twice: at the end of a step, and at the start of the next one. The
        // last step, to no noise, is Euler's.
        let twice = |values: &[f64]| -> Vec<f64> {
            let rest = values[1..].iter().flat_map(|&value| [value, value]);
            values[..1].iter().copied().chain(rest).collect()
        };
        let mut levels = twice(&sigmas[..ground.steps]);
        levels.push(sigmas[ground.steps]);
        Ok(Plan::of_deviations(ground, twice(&timesteps), &levels))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        if self.sigmas.last != FinalSigma::Zero {
            return Some("the last noise level is always `zero`");
        }
        curve_problem(&self.sigmas)
    }
}

/// What the first call of a step leaves to the second.
struct Half {
    x: Tensor<4>,
    slope: Tensor<4>,
    width: f64,
}

struct HeunSolver<'a> {
    settings: &'a Heun,
    config: &'a SamplerConfig,
    plan: &'a Plan,
    half: Option<Half>,
}

impl Solver for HeunSolver<'_> {
    fn step(&mut self, moment: Moment<'_>) -> (Tensor<4>, Tensor<4>) {
        let [sigma, next] = [0, 1].map(|i| self.plan.levels[moment.call + i][1]);
        let clean = clean_estimate(self.config.prediction, &moment.x, moment.output, sigma);
        let clean = clip(clean, self.settings.clip);
        let slope = slope(moment.x.clone(), clean.clone(), sigma);
        if let Some(half) = self.half.take() {
            return (half.x + (half.slope + slope).mul_scalar(0.5).mul_scalar(half.width), clean);
        }
        let width = next - sigma;
        self.half = Some(Half { x: moment.x.clone(), slope: slope.clone(), width });
        (moment.x + slope.mul_scalar(width), clean)
    }
}
