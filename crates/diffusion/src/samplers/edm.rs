//! Noise levels and preconditioning of EDM (Karras et al. 2022): the network sees latents of unit variance and a quarter of
//! the noise level's logarithm in place of a timestep.

use super::diffusers::SchedulerFields;
use super::solver::combine;
use super::timetable::{ScheduleContext, Timetable};
use super::{FinalSigma, SamplerConfig};
use crate::objective::{Estimate, Prediction};
use burn::tensor::Tensor;
use calotype_core::Fields;
use serde::{Deserialize, Serialize};

/// The curve of EDM's noise levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdmCurve {
    /// A root of the level is linear (Karras et al. 2022, eq. 5).
    #[default]
    Karras,
    /// The logarithm of the level is linear (CosXL).
    Exponential,
}

/// EDM's noise levels and the deviation of clean latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdmLevels {
    /// The smallest level.
    pub sigma_min: f64,
    /// The largest level.
    pub sigma_max: f64,
    /// Standard deviation of clean latents.
    pub sigma_data: f64,
    /// The curve between the ends.
    pub curve: EdmCurve,
    /// The root of the Karras curve.
    pub rho: f64,
    /// The level after the last step.
    pub last: FinalSigma,
}

impl Default for EdmLevels {
    /// Those of diffusers' `EDMEulerScheduler` (Karras et al. 2022, table 1).
    fn default() -> Self {
        let (sigma_min, sigma_max, sigma_data) = (0.002, 80.0, 0.5);
        Self { sigma_min, sigma_max, sigma_data, curve: EdmCurve::Karras, rho: 7.0, last: FinalSigma::Zero }
    }
}

impl EdmLevels {
    /// Reads the fields of diffusers' EDM schedulers.
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let usual = Self::default();
        Self {
            sigma_min: fields.number("sigma_min", usual.sigma_min),
            sigma_max: fields.number("sigma_max", usual.sigma_max),
            sigma_data: fields.number("sigma_data", usual.sigma_data),
            curve: fields.get("sigma_schedule", usual.curve),
            rho: fields.number("rho", usual.rho),
            last: super::diffusers::read_last(fields),
        }
    }

    pub(super) fn write(&self, fields: &mut SchedulerFields) {
        fields.put("sigma_min", self.sigma_min);
        fields.put("sigma_max", self.sigma_max);
        fields.put("sigma_data", self.sigma_data);
        fields.put("sigma_schedule", self.curve);
        fields.put("rho", self.rho);
        fields.put_last(self.last);
    }

    /// Says which settings are impossible.
    pub(super) fn problem(&self, config: &SamplerConfig) -> Option<&'static str> {
        let positive = [self.sigma_min, self.sigma_max, self.sigma_data, self.rho].into_iter().all(|x| x > 0.0);
        if !positive || self.sigma_min > self.sigma_max {
            return Some("sigma_min, sigma_max, sigma_data and rho have to be positive, sigma_min not above sigma_max");
        }
        let sample = config.prediction == Prediction::Sample;
        sample.then_some("EDM has no prediction `sample`: take epsilon or v_prediction")
    }

    /// `steps` noise levels and the last one.
    pub(super) fn timetable(&self, context: &ScheduleContext<'_>) -> Timetable {
        let single = |x: f64| f64::from(x as f32);
        let steps = context.steps;
        let level = |step: usize| {
            let at = step as f64 / (steps.max(2) - 1) as f64;
            let between = |from: f64, to: f64| from + at * (to - from);
            single(match self.curve {
                EdmCurve::Karras => {
                    let root = |sigma: f64| sigma.powf(1.0 / self.rho);
                    between(root(self.sigma_max), root(self.sigma_min)).powf(self.rho)
                }
                // One level alone is the smallest there (torch.linspace from the smallest one, turned round).
                EdmCurve::Exponential if steps == 1 => self.sigma_min,
                EdmCurve::Exponential => between(self.sigma_max.ln(), self.sigma_min.ln()).exp(),
            })
        };
        let mut sigmas: Vec<f64> = (0..steps).map(level).collect();
        let timesteps = sigmas.iter().map(|sigma| single(0.25 * sigma.ln())).collect();
        sigmas.push(match self.last {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => single(self.sigma_min),
        });
        let timetable = Timetable::of_deviations(context, timesteps, &sigmas);
        let init_noise_sigma = (self.sigma_max * self.sigma_max + 1.0).sqrt();
        Timetable { exploding: Some(self.sigma_data), init_noise_sigma, ..timetable }
    }

    /// The clean latent that an output means at a noise level (Karras et al. 2022, eq. 7), and the noise.
    pub(super) fn estimate(&self, prediction: Prediction, sigma: f64, x: Tensor<4>, output: Tensor<4>) -> Estimate {
        let variance = sigma * sigma + self.sigma_data * self.sigma_data;
        let out = sigma * self.sigma_data / variance.sqrt();
        let out = if prediction == Prediction::V { -out } else { out };
        let clean = combine(self.sigma_data * self.sigma_data / variance, x.clone(), out, output);
        let noise = super::solver::slope(x, clean.clone(), sigma);
        Estimate { clean, noise }
    }
}
