//! Common to the DPM-Solvers: the integrated quantity, the weights of a step, the fields of diffusers.

use super::diffusers::{SchedulerFields, refuse_flow, refuse_thresholding};
use super::solver::Level;
use super::{FinalSigma, SamplerError, SigmaRange};
use crate::schedule::NoiseSchedule;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The quantity that an exponential integrator integrates: the noise (DPM-Solver, Lu et al. 2022a) or the clean estimate
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

/// The weight of the second order's difference quotient.
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
    /// True if it integrates the clean estimate.
    pub(super) fn is_of_clean(self) -> bool {
        matches!(self, Self::PlusPlus | Self::SdePlusPlus)
    }

    /// True if it draws fresh noise.
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

    /// Says which settings of an algorithm exclude each other.
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

/// The timesteps of a schedule with at least `lambda_min` as logarithm of image to noise.
pub(super) fn timesteps_above(schedule: &NoiseSchedule, lambda_min: Option<f64>) -> usize {
    let Some(lambda_min) = lambda_min else { return schedule.timesteps() };
    let lambda = |t| Level::new(schedule.signal_and_noise(t)).lambda;
    (0..schedule.timesteps()).filter(|&t| lambda(t) >= lambda_min).count()
}

/// Checks that a timestep is left.
pub(super) fn check_timesteps_above(kind: &'static str, timesteps: usize) -> Result<(), SamplerError> {
    if timesteps > 0 {
        return Ok(());
    }
    Err(SamplerError::Setting { kind, problem: "lambda_min leaves no timestep of the schedule" })
}

/// Refuses thresholding, flows, and learned variances, which are a second output of the network. DDPM's other variances, of
/// a file that was written for it, have no effect.
pub(super) fn refuse_unsupported(fields: &mut Fields<'_>) {
    refuse_thresholding(fields);
    refuse_flow(fields);
    let plain = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"].map(|name| json!(name));
    fields.fixed("variance_type", &plain);
}

/// `lambda_min_clipped`; Python writes `-Infinity` for none.
pub(super) fn read_lambda_min(fields: &mut Fields<'_>) -> Option<f64> {
    const FIELD: &str = "lambda_min_clipped";
    match fields.raw(FIELD).and_then(Value::as_str) {
        Some("-Infinity" | "-inf") => None,
        _ => fields.get(FIELD, None),
    }
}

/// The same; none is the scheduler's default, which JSON cannot say.
pub(super) fn put_lambda_min(fields: &mut SchedulerFields, lambda_min: Option<f64>) {
    if let Some(lambda_min) = lambda_min {
        fields.put("lambda_min_clipped", lambda_min);
    }
}
