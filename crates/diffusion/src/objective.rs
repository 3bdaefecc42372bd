//! The quantity that a network predicts, and its relation to image and noise.

use crate::schedule::NoiseSchedule;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_core::names;

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
