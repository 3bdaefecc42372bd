use super::config::{Family, SamplerConfig};
use super::plan::{Ground, Plan};
use super::sigmas::WholeTimesteps;
use super::solver::{History, Level, Moment, Solver};
use super::{FinalSigma, SamplerError, SigmaRange};
use crate::schedule::{NoiseSchedule, ScheduleKind};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Multistep DPM-Solver and DPM-Solver++ (Lu et al. 2022); diffusers' `DPMSolverMultistepScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpmMultistep {
    /// Order of the method, 1 to 3.
    pub order: usize,
    /// What is integrated.
    pub algorithm: DpmAlgorithm,
    /// The rule of the second order.
    pub rule: DpmRule,
    /// Whether fewer than 15 steps end with lower orders.
    pub lower_order_final: bool,
    /// Whether the last step is of first order. To no noise, it always is.
    pub euler_at_final: bool,
    /// The noise levels.
    pub sigmas: SigmaRange,
    /// Timesteps with less than this logarithm of picture to noise are left out (-5.1 for cosine schedules).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min: Option<f64>,
}

impl Default for DpmMultistep {
    fn default() -> Self {
        Self {
            order: 2,
            algorithm: DpmAlgorithm::PlusPlus,
            rule: DpmRule::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            sigmas: SigmaRange::default(),
            lambda_min: None,
        }
    }
}

/// What an exponential integrator integrates: the noise (DPM-Solver, Lu et al. 2022a) or the clean estimate
/// (DPM-Solver++, Lu et al. 2022b), as ordinary or stochastic differential equation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DpmAlgorithm {
    /// The noise.
    #[serde(rename = "dpmsolver")]
    Noise,
    /// The clean estimate.
    #[default]
    #[serde(rename = "dpmsolver++", alias = "deis")]
    PlusPlus,
    /// The noise, with fresh noise in each step.
    #[serde(rename = "sde-dpmsolver")]
    SdeNoise,
    /// The clean estimate, with fresh noise in each step.
    #[serde(rename = "sde-dpmsolver++")]
    SdePlusPlus,
}

/// How the second order weighs its difference quotient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpmRule {
    /// By half of the first order's weight.
    #[default]
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// By the integral of the linear term.
    Heun,
}

impl DpmAlgorithm {
    /// Whether it integrates the clean estimate.
    pub(super) fn is_of_clean(self) -> bool {
        matches!(self, Self::PlusPlus | Self::SdePlusPlus)
    }

    /// Whether it draws fresh noise.
    pub(super) fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeNoise | Self::SdePlusPlus)
    }

    /// The weights of a step from `from` to `to`.
    pub(super) fn weights(self, from: Level, to: Level) -> Weights {
        let h = to.lambda - from.lambda;
        if h == 0.0 {
            return Weights { latent: 1.0, ..Default::default() };
        }
        match self {
            Self::PlusPlus => Weights {
                latent: to.sigma / from.sigma,
                value: -to.alpha * (-h).exp_m1(),
                slope: to.alpha * ((-h).exp_m1() / h + 1.0),
                curvature: -to.alpha * (((-h).exp_m1() + h) / (h * h) - 0.5),
                noise: 0.0,
            },
            Self::SdePlusPlus => Weights {
                latent: to.sigma / from.sigma * (-h).exp(),
                value: -to.alpha * (-2.0 * h).exp_m1(),
                slope: to.alpha * ((-2.0 * h).exp_m1() / (2.0 * h) + 1.0),
                curvature: -to.alpha * (((-2.0 * h).exp_m1() + 2.0 * h) / (4.0 * h * h) + 0.5),
                noise: to.sigma * (-(-2.0 * h).exp_m1()).sqrt(),
            },
            Self::Noise => Weights {
                latent: to.alpha / from.alpha,
                value: -to.sigma * h.exp_m1(),
                slope: -to.sigma * (h.exp_m1() / h - 1.0),
                curvature: -to.sigma * ((h.exp_m1() - h) / (h * h) - 0.5),
                noise: 0.0,
            },
            // No third order: its curvature is not part of the method.
            Self::SdeNoise => Weights {
                latent: to.alpha / from.alpha,
                value: -2.0 * to.sigma * h.exp_m1(),
                slope: -2.0 * to.sigma * (h.exp_m1() / h - 1.0),
                curvature: 0.0,
                noise: to.sigma * (2.0 * h).exp_m1().sqrt(),
            },
        }
    }

    /// What is wrong with an algorithm's settings.
    pub(super) fn problem(self, order: usize, sigmas: &SigmaRange) -> Option<&'static str> {
        if !(1..=3).contains(&order) {
            return Some("order has to be 1, 2 or 3");
        }
        if self == Self::SdeNoise && order == 3 {
            return Some("sde-dpmsolver has no third order: take order = 2");
        }
        if !self.is_of_clean() && sigmas.last == FinalSigma::Zero {
            return Some("an algorithm without ++ cannot end at no noise: take sigmas.last = \"sigma_min\"");
        }
        sigmas.problem()
    }
}

/// Weights of an exponential integrator's step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weights {
    /// Of the latent.
    pub latent: f64,
    /// Of the integrated quantity.
    pub value: f64,
    /// Of its first difference quotient.
    pub slope: f64,
    /// Of its second one.
    pub curvature: f64,
    /// Of fresh noise.
    pub noise: f64,
}

impl Weights {
    /// The weight of the first difference quotient in the second order.
    pub fn second_order(&self, rule: DpmRule) -> f64 {
        match rule {
            DpmRule::Midpoint => 0.5 * self.value,
            DpmRule::Heun => self.slope,
        }
    }
}

/// The timesteps of a schedule with at least `lambda_min` as logarithm of picture to noise.
pub(super) fn timesteps_above(schedule: &NoiseSchedule, lambda_min: Option<f64>) -> usize {
    let Some(lambda_min) = lambda_min else { return schedule.timesteps() };
    let lambda = |t| Level::new(schedule.signal_and_noise(t)).lambda;
    (0..schedule.timesteps()).filter(|&t| lambda(t) >= lambda_min).count()
}

/// Whether any timestep is left.
pub(super) fn check_timesteps_above(kind: &'static str, timesteps: usize) -> Result<(), SamplerError> {
    if timesteps > 0 {
        return Ok(());
    }
    Err(SamplerError::Setting { kind, problem: "lambda_min leaves no timestep of the schedule" })
}

impl Family for DpmMultistep {
    const NAME: &'static str = "dpm_multistep";

    fn solver<'a>(&'a self, config: &'a SamplerConfig, plan: &'a Plan) -> Box<dyn Solver + 'a> {
        Box::new(MultistepSolver { settings: self, config, plan, history: History::new(self.order) })
    }

    fn plan(&self, ground: &Ground<'_>) -> Result<Plan, SamplerError> {
        let timesteps = timesteps_above(ground.schedule, self.lambda_min);
        check_timesteps_above(Self::NAME, timesteps)?;
        let timesteps = ground.inner_timesteps(ground.config.spacing, timesteps);
        let nearest = ground.config.schedule.kind != ScheduleKind::Cosine;
        let levels = WholeTimesteps { timesteps, nearest, last_of_curve: false };
        let (timesteps, sigmas) = levels.visit(ground, &self.sigmas);
        Ok(Plan::of_ratios(ground, timesteps, &sigmas))
    }

    fn problem(&self, _config: &SamplerConfig) -> Option<&'static str> {
        self.algorithm.problem(self.order, &self.sigmas)
    }

    fn is_stochastic(&self) -> bool {
        self.algorithm.is_stochastic()
    }
}

struct MultistepSolver<'a> {
    settings: &'a DpmMultistep,
    config: &'a SamplerConfig,
    plan: &'a Plan,
    history: History,
}

impl MultistepSolver<'_> {
    /// The order of a call's step, of as many outputs as there are.
    fn order(&self, call: usize) -> usize {
        let settings = self.settings;
        let calls = self.plan.timesteps.len();
        let lower = settings.lower_order_final && calls < 15;
        let most = match calls - call {
            1 if settings.euler_at_final || lower || settings.sigmas.last == FinalSigma::Zero => 1,
            2 if lower => 2,
            _ => 3,
        };
        self.history.len().min(settings.order).min(most)
    }
}

impl Solver for MultistepSolver<'_> {
    fn step(&mut self, moment: Moment<'_>) -> (Tensor<4>, Tensor<4>) {
        let Moment { call, output, x, fresh } = moment;
        let algorithm = self.settings.algorithm;
        let estimate = self.config.prediction.estimate_at(self.plan.levels[call], x.clone(), output);
        let integrated = if algorithm.is_of_clean() { estimate.clean.clone() } else { estimate.noise };
        self.history.push(integrated);
        let (from, to) = (self.plan.level(call), self.plan.level(call + 1));
        let weights = algorithm.weights(from, to);
        let h = to.lambda - from.lambda;
        // Steps between equal levels change nothing, whatever the quotients.
        let order = if h == 0.0 { 1 } else { self.order(call) };
        let mut next = x.mul_scalar(weights.latent) + self.history.get(0).mul_scalar(weights.value);
        let ratio = |age: usize| (self.plan.level(call + 1 - age).lambda - self.plan.level(call - age).lambda) / h;
        if order == 2 {
            let slope = self.history.slope(0, 1, ratio(1));
            next = next + slope.mul_scalar(weights.second_order(self.settings.rule));
        } else if order == 3 {
            let (r0, r1) = (ratio(1), ratio(2));
            let (newer, older) = (self.history.slope(0, 1, r0), self.history.slope(1, 2, r1));
            let difference = newer.clone() - older;
            let slope = newer + difference.clone().mul_scalar(r0 / (r0 + r1));
            let curvature = difference.mul_scalar(1.0 / (r0 + r1));
            next = next + slope.mul_scalar(weights.slope) + curvature.mul_scalar(weights.curvature);
        }
        (fresh(next, weights.noise), estimate.clean)
    }
}
