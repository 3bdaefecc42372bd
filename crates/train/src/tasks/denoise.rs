//! What denoising tasks share: latents from moments, the noised batch, and the loss of a prediction.

use crate::config::{SettingError, check};
use crate::task::{Loss, StepContext};
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_diffusion::objective::add_noise;
use calotype_diffusion::{LossWeight, NoiseSchedule, Prediction};
use calotype_models::UNet;
use calotype_models::unet::Keep;
use calotype_ops::mean_squared_error;
use calotype_pipeline::batches::stack;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The denoising loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiseObjective {
    /// What the UNet predicts.
    pub prediction: Prediction,
    /// Share of samples whose caption is replaced by the empty one, for guidance.
    pub caption_dropout: f64,
    /// What latents are multiplied by; by default what the dataset's encoder says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_factor: Option<f64>,
    /// What the errors of each timestep count for.
    #[serde(default, skip_serializing_if = "crate::config::is_usual")]
    pub loss_weight: LossWeight,
    /// How timesteps are drawn.
    #[serde(default, skip_serializing_if = "crate::config::is_usual")]
    pub timesteps: TimestepDraw,
}

calotype_core::names! {
    /// How the timesteps of a run are drawn; each is a function of the seed and the sample's position.
    TimestepDraw, "way to draw timesteps" {
        /// Each by itself, uniformly (Ho et al. 2020, algorithm 1).
        Independent = "independent",
        /// Those of neighbouring positions evenly apart, which makes gradients less noisy (Kingma et al. 2021, appendix
        /// I.1); here as a golden-ratio sequence, so that it holds for any batch size.
        LowDiscrepancy = "low_discrepancy",
    }
}

#[allow(clippy::derivable_impls, reason = "the table of names declares the type")]
impl Default for TimestepDraw {
    fn default() -> Self {
        Self::Independent
    }
}

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl TimestepDraw {
    /// The timestep of a position, below `count`.
    fn draw(self, seed: u64, position: u64, count: usize) -> usize {
        let stream = |index| Stream::new(seed, Purpose::Timestep, index);
        match self {
            Self::Independent => stream(position).below(count as u64) as usize,
            Self::LowDiscrepancy => evenly(stream(0).next_u64(), position, count),
        }
    }
}

/// The place of a position among `count`, those of neighbours evenly apart; `first` is that of position 0, as a share of 2^64.
fn evenly(first: u64, position: u64, count: usize) -> usize {
    let share = first.wrapping_add(position.wrapping_mul(GOLDEN));
    ((u128::from(share) * count as u128) >> 64) as usize
}

/// The timestep of a range at which evaluations look at a position: a function of both alone. Those of neighbouring positions
/// are evenly apart, and the first one's is in the middle.
pub fn fixed_timestep(position: u64, range: Range<usize>) -> usize {
    range.start + evenly(1 << 63, position, range.len())
}

impl DenoiseObjective {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        let p = self.caption_dropout;
        check((0.0..=1.0).contains(&p), "objective.caption_dropout", || format!("{p} is not a share in 0..1"))?;
        let scale = self.scale_factor;
        check(scale.is_none_or(|scale| scale > 0.0 && scale.is_finite()), "objective.scale_factor", || {
            "must be a positive number".to_owned()
        })?;
        self.loss_weight.validate().map_err(|problem| SettingError { key: "objective.loss_weight", problem })
    }
}

/// A clean latent with the randomness of its training step.
#[derive(Clone, Debug)]
pub struct NoisyLatent {
    clean: Vec<f32>,
    noise: Vec<f32>,
    timestep: usize,
}

impl NoisyLatent {
    /// The same latent with the same noise at another timestep.
    pub fn at(&self, timestep: usize) -> Self {
        Self { timestep, ..self.clone() }
    }
}

/// Draws latents, noise and timesteps: pure functions of a run's seed and a sample's position.
#[derive(Clone, Copy, Debug)]
pub struct LatentDrawer {
    /// The run's seed.
    pub seed: u64,
    /// `[height, width, channels]` of a latent.
    pub shape: [usize; 3],
    /// What latents are multiplied by.
    pub scale: f32,
    /// Number of training timesteps.
    pub timesteps: usize,
    /// How they are drawn.
    pub draw: TimestepDraw,
}

impl LatentDrawer {
    /// The noised latent of the sample at `position` whose moments these are, `[2 · channels, height, width]`.
    pub fn draw(&self, position: u64, moments: &[f32]) -> NoisyLatent {
        let size = self.shape.iter().product();
        let stream = |purpose| Stream::new(self.seed, purpose, position);
        let normal = |purpose| {
            let mut values = vec![0f32; size];
            stream(purpose).fill_normal(&mut values);
            values
        };
        NoisyLatent {
            clean: draw_latent(moments, self.shape, self.scale, &normal(Purpose::LatentPosterior)),
            noise: normal(Purpose::Noise),
            timestep: self.draw.draw(self.seed, position, self.timesteps),
        }
    }
}

/// `(mean + exp(logvar / 2) · noise) · scale` of moments `[2c, h, w]`, as `[h, w, c]`.
fn draw_latent(moments: &[f32], [height, width, channels]: [usize; 3], scale: f32, noise: &[f32]) -> Vec<f32> {
    let pixels = height * width;
    let mut latent = vec![0f32; pixels * channels];
    for c in 0..channels {
        for p in 0..pixels {
            let mean = moments[c * pixels + p];
            let log_variance = moments[(channels + c) * pixels + p].clamp(-30.0, 20.0);
            let i = p * channels + c;
            latent[i] = (mean + (0.5 * log_variance).exp() * noise[i]) * scale;
        }
    }
    latent
}

/// A batch at its timesteps, and what the network should say of it.
#[derive(Debug)]
pub struct NoisyBatch {
    /// The noised latents, `[batch, height, width, channels]`, `f32`.
    pub sample: Tensor<4>,
    /// One timestep for each.
    pub timesteps: Vec<usize>,
    /// What the prediction is compared with, of the same shape.
    pub target: Tensor<4>,
    /// What the errors of each count for; none where all count the same.
    weights: Option<Vec<f32>>,
}

impl NoisyBatch {
    /// Adds the noise of each latent's timestep (Ho et al. 2020, eq. 4), and records the result.
    pub fn of<'a>(
        latents: impl ExactSizeIterator<Item = &'a NoisyLatent> + Clone,
        shape: [usize; 3],
        schedule: &NoiseSchedule,
        objective: &DenoiseObjective,
        device: &Device,
        step: &StepContext<'_>,
    ) -> Self {
        let clean: Tensor<4> = stack(latents.clone().map(|l| l.clean.as_slice()), &shape, DType::F32, device);
        let noise: Tensor<4> = stack(latents.clone().map(|l| l.noise.as_slice()), &shape, DType::F32, device);
        let timesteps: Vec<usize> = latents.map(|l| l.timestep).collect();
        let sample = add_noise(schedule, clean.clone(), noise.clone(), &timesteps);
        let target = objective.prediction.target(schedule, clean, noise, &timesteps);
        step.record_images("sample", &sample);
        step.record_integers("timestep", &[timesteps.len()], timesteps.iter().map(|&t| t as i64));
        step.record_images("target", &target);
        let weights = objective.loss_weight.of(objective.prediction, schedule, &timesteps);
        if let Some(weights) = &weights {
            let tensor = Tensor::from_data(TensorData::new(weights.clone(), [weights.len()]), device);
            step.record::<1>("loss_weight", &tensor);
        }
        Self { sample, timesteps, target, weights }
    }

    /// Mean squared error of a UNet's prediction (Ho et al. 2020, eq. 14), with activations of type `dtype`. `states`
    /// are the text encoder's hidden states, `[batch, tokens, channels]`.
    pub fn loss(self, unet: &UNet, states: Tensor<3>, dtype: DType, keep: Keep) -> Loss {
        let t: Vec<f32> = self.timesteps.iter().map(|&t| t as f32).collect();
        let output = unet.forward_keeping(keep, self.sample.cast(dtype), &t, states, None);
        let (output, target) = (output.cast(DType::F32), self.target);
        let Some(weights) = self.weights else { return Loss::of(mean_squared_error(output, target)) };
        // The square of weighted roots is the weighted square.
        let count = weights.len();
        let roots: Vec<f32> = weights.into_iter().map(f32::sqrt).collect();
        let roots: Tensor<4> = Tensor::from_data(TensorData::new(roots, [count, 1, 1, 1]), &output.device());
        Loss::of(mean_squared_error(output * roots.clone(), target * roots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timesteps_of_neighbours_are_evenly_apart() {
        for first in [0u64, 1, 77, 1 << 40] {
            let mut counts = [0; 8];
            (first..first + 64).for_each(|at| counts[TimestepDraw::LowDiscrepancy.draw(3, at, 1000) / 125] += 1);
            assert!(counts.iter().all(|&count| (7..=9).contains(&count)), "{counts:?}");
        }
    }

    #[test]
    fn fixed_timesteps_cover_their_range() {
        assert_eq!((fixed_timestep(0, 0..1000), fixed_timestep(0, 250..500)), (500, 375));
        let mut counts = [0; 5];
        (0..50).for_each(|position| counts[(fixed_timestep(position, 250..500) - 250) / 50] += 1);
        assert!(counts.iter().all(|&count| (8..=12).contains(&count)), "{counts:?}");
        assert_eq!(fixed_timestep(7, 3..4), 3);
    }

    #[test]
    fn latents_are_channels_last_and_scaled() {
        // Two channels of a 1x2 latent: means 1, 2 | 3, 4; log-variances 0 except the last, clamped low.
        let moments = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, -100.0];
        let latent = draw_latent(&moments, [1, 2, 2], 2.0, &[1.0, 0.0, 0.0, 1.0]);
        assert_eq!(latent[..3], [4.0, 6.0, 4.0]);
        assert!((latent[3] - 8.0).abs() < 1e-5);
    }
}
