//! The quantity that a network predicts, and its relation to image and noise.

use crate::schedule::NoiseSchedule;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_core::names;
use serde::{Deserialize, Serialize};

/// The image and the noise that a network sees in a noisy latent; both `[batch, height, width, channels]`.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// The clean latent.
    pub clean: Tensor<4>,
    /// The noise that was added to it.
    pub noise: Tensor<4>,
}

names! {
    /// The quantity that the network's output stands for, by diffusers' names.
    Prediction, "prediction type" {
        /// The noise (Ho et al. 2020, eq. 14).
        Epsilon = "epsilon",
        /// The velocity `sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0` (Salimans & Ho 2022, eq. 10 ff.).
        V = "v_prediction" | "v",
        /// The clean latent.
        Sample = "sample",
    }
}

/// What the squared errors of each timestep count for in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeight {
    /// All the same (Ho et al. 2020, eq. 14).
    #[default]
    Uniform,
    /// As the error of the clean latent, times the smaller of signal-to-noise ratio and this number: `min(snr, gamma)` over
    /// `snr` for predicted noise, over `snr + 1` for velocity (Hang et al. 2023, section 3.4; `--snr_gamma` of diffusers'
    /// training scripts).
    MinSnr(f64),
}

impl LossWeight {
    /// Checks the number.
    ///
    /// # Errors
    /// A message if `gamma` is not positive and finite.
    pub fn validate(self) -> Result<(), String> {
        match self {
            Self::MinSnr(gamma) if !(gamma > 0.0 && gamma.is_finite()) => {
                Err(format!("min_snr = {gamma} is no positive number; 5 is usual"))
            }
            _ => Ok(()),
        }
    }

    /// The weight of each timestep; none where all count the same.
    ///
    /// # Panics
    /// If a timestep is not below [`NoiseSchedule::timesteps`].
    pub fn of(self, prediction: Prediction, schedule: &NoiseSchedule, timesteps: &[usize]) -> Option<Vec<f32>> {
        let Self::MinSnr(gamma) = self else { return None };
        let weight = |&t: &usize| {
            let [signal, sigma] = schedule.signal_and_noise(t);
            let snr = (signal / sigma).powi(2);
            let least = snr.min(gamma);
            match prediction {
                Prediction::Sample => least,
                // Without signal, the quotient's limit.
                Prediction::Epsilon if snr == 0.0 => 1.0,
                Prediction::Epsilon => least / snr,
                Prediction::V => least / (snr + 1.0),
            }
        };
        Some(timesteps.iter().map(|t| weight(t) as f32).collect())
    }
}

/// `[batch, 1, 1, 1]` tensors of the signal and noise weights of each timestep.
fn weights(schedule: &NoiseSchedule, timesteps: &[usize], device: &Device) -> [Tensor<4>; 2] {
    [0, 1].map(|which| {
        let data: Vec<f32> = timesteps.iter().map(|&t| schedule.signal_and_noise(t)[which] as f32).collect();
        Tensor::from_data(TensorData::new(data, [timesteps.len(), 1, 1, 1]), device)
    })
}

/// `x_t` of DDPM eq. 4: the clean latent with noise of its timestep.
///
/// # Shapes
/// `clean` and `noise`: `[batch, height, width, channels]`; one timestep for each row; returns likewise
///
/// # Panics
/// If a timestep is not below [`NoiseSchedule::timesteps`].
pub fn add_noise(schedule: &NoiseSchedule, clean: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
    let [signal, sigma] = weights(schedule, timesteps, &clean.device());
    clean * signal + noise * sigma
}

impl Prediction {
    /// The output that the network is trained towards; shapes as in [`add_noise`].
    pub fn target(
        self,
        schedule: &NoiseSchedule,
        clean: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
    ) -> Tensor<4> {
        match self {
            Prediction::Epsilon => noise,
            Prediction::Sample => clean,
            Prediction::V => {
                let [signal, sigma] = weights(schedule, timesteps, &clean.device());
                noise * signal - clean * sigma
            }
        }
    }

    /// Image and noise that an output at timestep `t` implies, given the noisy latent.
    pub fn estimate(self, schedule: &NoiseSchedule, noisy: Tensor<4>, output: Tensor<4>, t: usize) -> Estimate {
        self.estimate_at(schedule.signal_and_noise(t), noisy, output)
    }

    /// The same, given the weights of image and noise in the noisy latent.
    pub fn estimate_at(self, [signal, sigma]: [f64; 2], noisy: Tensor<4>, output: Tensor<4>) -> Estimate {
        match self {
            Prediction::Epsilon => {
                let clean = (noisy - output.clone().mul_scalar(sigma)).div_scalar(signal.max(1e-8));
                Estimate { clean, noise: output }
            }
            Prediction::Sample => {
                let noise = (noisy - output.clone().mul_scalar(signal)).div_scalar(sigma.max(1e-8));
                Estimate { clean: output, noise }
            }
            // x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v, and the rotation's other row.
            Prediction::V => Estimate {
                clean: noisy.clone().mul_scalar(signal) - output.clone().mul_scalar(sigma),
                noise: output.mul_scalar(signal) + noisy.mul_scalar(sigma),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;

    /// Values of `compute_snr` and the weights of `train_text_to_image.py` of diffusers 0.42.1, gamma 5, for Stable Diffusion's
    /// schedule.
    #[test]
    fn weights_follow_the_signal_to_noise_ratio() {
        let schedule = NoiseSchedule::new(&ScheduleConfig::default()).unwrap();
        for (prediction, expected) in [
            (Prediction::Sample, [5.0, 1.442_007_3, 0.004_681_912_3]),
            (Prediction::Epsilon, [0.004_253_724, 1.0, 1.0]),
            (Prediction::V, [0.004_250_108_7, 0.590_500_83, 0.004_660_094]),
        ] {
            let weights = LossWeight::MinSnr(5.0).of(prediction, &schedule, &[0, 300, 999]).unwrap();
            let near = weights
                .iter()
                .zip(expected)
                .all(|(weight, expected): (&f32, f32)| (weight / expected - 1.0).abs() < 1e-4);
            assert!(near, "{prediction}: {weights:?}");
        }
        assert_eq!(LossWeight::Uniform.of(Prediction::V, &schedule, &[0]), None);
        assert!(LossWeight::MinSnr(0.0).validate().is_err() && LossWeight::MinSnr(f64::NAN).validate().is_err());
    }

    /// A perfect network's target leads back to image and noise, whatever it predicts.
    #[test]
    fn target_and_estimate_are_inverse() {
        let device = Device::default();
        let schedule = NoiseSchedule::new(&ScheduleConfig::default()).unwrap();
        let values = |f: fn(f32) -> f32| -> Tensor<4> {
            let data: Vec<f32> = (0..8).map(|i| f(i as f32)).collect();
            Tensor::from_data(TensorData::new(data, [1, 2, 2, 2]), &device)
        };
        let (clean, noise) = (values(|i| i / 4.0 - 1.0), values(|i| (i * 1.7).sin()));
        for prediction in [Prediction::Epsilon, Prediction::V, Prediction::Sample] {
            for t in [0, 500, 999] {
                let noisy = add_noise(&schedule, clean.clone(), noise.clone(), &[t]);
                let target = prediction.target(&schedule, clean.clone(), noise.clone(), &[t]);
                let got = prediction.estimate(&schedule, noisy, target, t);
                for (a, b) in [(got.clean, clean.clone()), (got.noise, noise.clone())] {
                    let error: f32 = (a - b).abs().max().into_scalar();
                    assert!(error < 1e-4, "{prediction:?} at {t}: {error}");
                }
            }
        }
    }
}
