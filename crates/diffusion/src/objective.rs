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

/// How the threshold of a pseudo-Huber loss goes through the timesteps (Khrapov et al. 2024, section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HuberSchedule {
    /// `c` at all of them.
    Constant,
    /// `c^(t / T)`: from 1 without noise down to `c` in pure noise.
    Exponential,
    /// `(1 - c) / (1 + sigma)² + c`, where `sigma` is that of the noise against the signal; the default of diffusers' script.
    #[default]
    Snr,
}

/// A threshold between small errors, which count by their square, and large ones, which count by their size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Huber {
    /// The threshold at the timestep of most noise.
    pub c: f64,
    /// What it is at the others.
    #[serde(default)]
    pub schedule: HuberSchedule,
}

/// What the difference `d` of each element of a prediction from its target costs; the loss is the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossShape {
    /// `d²` (Ho et al. 2020, eq. 14).
    #[default]
    L2,
    /// `2 c (sqrt(d² + c²) - c)`, near `d²` for small `d` (Khrapov et al. 2024, eq. 6; `--loss_type huber` of
    /// `train_text_to_image.py` in diffusers' `scheduled_huber_loss_training`, which draws one timestep for a whole batch,
    /// where here each sample has the threshold of its own).
    Huber(Huber),
    /// `2 (sqrt(d² + c²) - c)`, near `2 |d|` for large `d` (`--loss_type smooth_l1` there). Half of it is the pseudo-Huber metric
    /// of Song & Dhariwal 2023, section 3.3, as diffusers' scripts of latent consistency distillation take it.
    SmoothL1(Huber),
}

/// A pseudo-Huber loss at the timesteps of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct PseudoHuber {
    /// The threshold of each sample.
    pub thresholds: Vec<f32>,
    /// What `sqrt(d² + c²) - c` of each is multiplied by.
    pub factors: Vec<f32>,
}

impl LossShape {
    /// Checks the number.
    ///
    /// # Errors
    /// A message if `c` is not above 0 and at most 1.
    pub fn validate(self) -> Result<(), String> {
        match self {
            Self::Huber(Huber { c, .. }) | Self::SmoothL1(Huber { c, .. }) if !(c > 0.0 && c <= 1.0) => {
                Err(format!("c = {c} is no threshold; use a number above 0 and at most 1, such as 0.1"))
            }
            _ => Ok(()),
        }
    }

    /// The loss at some timesteps; none where it is that of squares.
    ///
    /// # Panics
    /// If a timestep is not below [`NoiseSchedule::timesteps`].
    pub fn pseudo_huber(self, schedule: &NoiseSchedule, timesteps: &[usize]) -> Option<PseudoHuber> {
        let (huber, squares) = match self {
            Self::L2 => return None,
            Self::Huber(huber) => (huber, true),
            Self::SmoothL1(huber) => (huber, false),
        };
        let thresholds: Vec<f32> = timesteps.iter().map(|&t| huber.threshold(schedule, t) as f32).collect();
        let factors = thresholds.iter().map(|c| if squares { 2.0 * c } else { 2.0 }).collect();
        Some(PseudoHuber { thresholds, factors })
    }
}

impl Huber {
    /// The threshold at a timestep.
    fn threshold(&self, schedule: &NoiseSchedule, t: usize) -> f64 {
        let c = self.c;
        match self.schedule {
            HuberSchedule::Constant => c,
            HuberSchedule::Exponential => c.powf(t as f64 / schedule.timesteps() as f64),
            HuberSchedule::Snr => {
                // Without signal, the quotient is infinite, and its share zero.
                let [signal, noise] = schedule.signal_and_noise(t);
                (1.0 - c) / (1.0 + noise / signal).powi(2) + c
            }
        }
    }
}

impl PseudoHuber {
    /// The mean over all elements, in which the errors of each sample count `weights` times.
    ///
    /// # Shapes
    /// `output` and `target`: `[batch, height, width, channels]`, `f32`; `weights` one number for each sample; `[1]`
    pub fn mean(&self, output: Tensor<4>, target: Tensor<4>, weights: Option<&[f32]>) -> Tensor<1> {
        let device = output.device();
        let column = |values: Vec<f32>| -> Tensor<4> {
            let count = values.len();
            Tensor::from_data(TensorData::new(values, [count, 1, 1, 1]), &device)
        };
        let factors = match weights {
            None => self.factors.clone(),
            Some(weights) => self.factors.iter().zip(weights).map(|(factor, weight)| factor * weight).collect(),
        };
        let threshold = column(self.thresholds.clone());
        let squares = (output - target).powi_scalar(2);
        let root = (squares.clone() + threshold.clone().powi_scalar(2)).sqrt();
        // The difference of root and threshold, without its cancellation where errors are small.
        (squares / (root + threshold) * column(factors)).mean()
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

    const HUBER_GOLDEN: [(HuberSchedule, [f64; 3], f64, f64); 3] = [
        (HuberSchedule::Constant, [0.1, 0.1, 0.1], 0.211_798_154_3, 2.117_981_543),
        (HuberSchedule::Exponential, [1.0, 0.501_187_233_6, 0.100_230_523_8], 1.020_422_201_5, 1.759_776_018_7),
        (HuberSchedule::Snr, [0.949_709_886_9, 0.367_938_284_1, 0.103_691_292_7], 0.866_916_916_1, 1.807_953_954_9),
    ];

    /// Values of the thresholds and of `conditional_loss` in `examples/research_projects/scheduled_huber_loss_training` of
    /// diffusers 0.42.1 (`train_text_to_image.py`), computed in f64, for Stable Diffusion's schedule.
    #[test]
    fn thresholds_and_losses_are_those_of_the_script() {
        let schedule = NoiseSchedule::new(&ScheduleConfig::default()).unwrap();
        let device = Device::default();
        let tensor = |values: [f32; 6]| -> Tensor<4> {
            Tensor::from_data(TensorData::new(values.to_vec(), [3, 1, 2, 1]), &device)
        };
        let output = tensor([0.5, -1.0, 2.0, 0.01, -0.3, 0.7]);
        let target = tensor([0.4, 1.0, -2.0, 0.0, 0.3, 0.7]);
        for (kind, thresholds, huber, smooth) in HUBER_GOLDEN {
            let shape = Huber { c: 0.1, schedule: kind };
            for (loss, expected) in [(LossShape::Huber(shape), huber), (LossShape::SmoothL1(shape), smooth)] {
                let loss = loss.pseudo_huber(&schedule, &[0, 300, 999]).unwrap();
                let near = loss
                    .thresholds
                    .iter()
                    .zip(thresholds)
                    .all(|(found, c): (&f32, f64)| (f64::from(*found) / c - 1.0).abs() < 1e-5);
                assert!(near, "{kind:?}: {:?}", loss.thresholds);
                let found = f64::from(loss.mean(output.clone(), target.clone(), None).into_scalar::<f32>());
                assert!((found / expected - 1.0).abs() < 1e-5, "{kind:?}: {found} instead of {expected}");
                let half: f32 = loss.mean(output.clone(), target.clone(), Some(&[0.5; 3])).into_scalar();
                assert!((f64::from(half) / expected - 0.5).abs() < 1e-5);
            }
        }
        assert_eq!(LossShape::L2.pseudo_huber(&schedule, &[0]), None);
        let zero = NoiseSchedule::new(&ScheduleConfig { zero_terminal_snr: true, ..Default::default() }).unwrap();
        let snr = Huber { c: 0.1, schedule: HuberSchedule::Snr };
        assert_eq!(LossShape::Huber(snr).pseudo_huber(&zero, &[999]).unwrap().thresholds, [0.1]);
        for c in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(LossShape::Huber(Huber { c, ..snr }).validate().is_err(), "{c}");
        }
        assert!(LossShape::SmoothL1(snr).validate().is_ok() && LossShape::L2.validate().is_ok());
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
