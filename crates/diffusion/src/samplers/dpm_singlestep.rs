use super::config::{Family, SamplerConfig};
use super::dpm::{check_timesteps_above, timesteps_above};
use super::plan::{Ground, Plan};
use super::sigmas::WholeTimesteps;
use super::solver::{History, Moment, Solver};
use super::{Curve, DpmAlgorithm, DpmRule, FinalSigma, SamplerError, SigmaRange};
use crate::schedule::Spacing;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022): groups of up to `order` calls, each group set out from
/// one latent; diffusers' `DPMSolverSinglestepScheduler`. The timesteps are evenly spaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpmSinglestep {
    /// Order of the method, 1 to 3.
    pub order: usize,
    /// What is integrated.
    pub algorithm: DpmAlgorithm,
    /// The rule of the second and third order.
    pub rule: DpmRule,
    /// Whether the last steps are of lower order; they are in any case when the steps are no multiple of the order,
    /// or end at no noise.
    pub lower_order_final: bool,
    /// The noise levels.
    pub sigmas: SigmaRange,
    /// Timesteps with less than this logarithm of picture to noise are left out (-5.1 for cosine schedules).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min: Option<f64>,
}

impl Default for DpmSinglestep {
    fn default() -> Self {
        Self {
            order: 2,
            algorithm: DpmAlgorithm::PlusPlus,
            rule: DpmRule::Midpoint,
            lower_order_final: false,
            sigmas: SigmaRange::default(),
            lambda_min: None,
        }
    }
}

impl Family for DpmSinglestep {
    const NAME: &'static str = "dpm_singlestep";

    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        let (orders, history) = (self.orders(plan.steps), History::new(self.order));
        Box::new(SinglestepSolver { settings: self, config, plan, orders, history, start: None })
    }

    fn plan(&self, ground: &Ground<'_>) -> Result<Plan, SamplerError> {
        let timesteps = timesteps_above(ground.schedule, self.lambda_min);
        check_timesteps_above(Self::NAME, timesteps)?;
        let timesteps = ground.inner_timesteps(Spacing::Linspace, timesteps);
        let levels = WholeTimesteps { timesteps, nearest: true, last_of_curve: false };
        let (timesteps, sigmas) = levels.visit(ground, &self.sigmas);
        Ok(Plan::of_ratios(ground, timesteps, &sigmas))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        if self.algorithm == DpmAlgorithm::SdeNoise {
            return Some("sde-dpmsolver is a multistep method: take `dpm_multistep`");
        }
        if self.sigmas.curve == Curve::LogSnr {
            return Some("the curve `log_snr` belongs to `dpm_multistep`; take `exponential`, which is much the same");
        }
        self.algorithm.problem(self.order, &self.sigmas)
    }

    fn is_stochastic(&self) -> bool {
        self.algorithm.is_stochastic()
    }
}

impl DpmSinglestep {
    /// The order of each step: 1 up to the method's, over and over.
    fn orders(&self, steps: usize) -> Vec<usize> {
        let mut orders: Vec<usize> = (0..steps).map(|i| i % self.order + 1).collect();
        let to_zero = self.sigmas.last == FinalSigma::Zero;
        let whole = steps.is_multiple_of(self.order);
        // A whole number of groups has its last one cut short by one.
        if whole && self.order > 1 && (self.lower_order_final || to_zero) {
            orders[steps - 1] = 1;
        }
        if to_zero {
            orders[steps - 1] = 1;
        }
        orders
    }
}

struct SinglestepSolver<'a> {
    settings: &'a DpmSinglestep,
    config: &'a SamplerConfig,
    plan: &'a Plan,
    orders: Vec<usize>,
    history: History,
    /// The latent that the group of calls set out from.
    start: Option<Tensor<4>>,
}

impl Solver for SinglestepSolver<'_> {
    fn step(&mut self, moment: Moment<'_>) -> (Tensor<4>, Tensor<4>) {
        let Moment { call, output, x, fresh } = moment;
        let algorithm = self.settings.algorithm;
        let estimate = self.config.prediction.estimate_at(self.plan.levels[call], x.clone(), output);
        let integrated = if algorithm.is_of_clean() { estimate.clean.clone() } else { estimate.noise };
        self.history.push(integrated);
        // A run that begins in the middle of a group has fewer outputs.
        let order = self.orders[call].min(self.history.len());
        let start = match self.start.take() {
            Some(start) if order > 1 => start,
            _ => x,
        };
        self.start = Some(start.clone());
        let oldest = order - 1;
        let (from, to) = (self.plan.level(call - oldest), self.plan.level(call + 1));
        let weights = algorithm.weights(from, to);
        let h = to.lambda - from.lambda;
        let mut next = start.mul_scalar(weights.latent) + self.history.get(oldest).mul_scalar(weights.value);
        // The place of an older output on the way.
        let ratio = |age: usize| (self.plan.level(call - age).lambda - from.lambda) / h;
        if order == 2 {
            let slope = self.history.slope(0, 1, ratio(0));
            next = next + slope.mul_scalar(weights.second_order(self.settings.rule));
        } else if order == 3 {
            let (r0, r1) = (ratio(0), ratio(1));
            let (near, far) = (self.history.slope(1, 2, r1), self.history.slope(0, 2, r0));
            next = next
                + match self.settings.rule {
                    DpmRule::Midpoint => far.mul_scalar(weights.slope),
                    DpmRule::Heun => {
                        let slope =
                            (near.clone().mul_scalar(r0) - far.clone().mul_scalar(r1)).mul_scalar(1.0 / (r0 - r1));
                        let curvature = (far - near).mul_scalar(2.0 / (r0 - r1));
                        slope.mul_scalar(weights.slope) + curvature.mul_scalar(weights.curvature)
                    }
                };
        }
        (fresh(next, weights.noise), estimate.clean)
    }
}
