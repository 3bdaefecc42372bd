//! What denoising tasks share: latents from moments, the noised batch, and the loss of a prediction.

use crate::config::{SettingError, check, is_usual};
use crate::inputs::DroppedCaption;
use crate::task::{Loss, StepContext};
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_diffusion::objective::add_noise;
use calotype_diffusion::{LossShape, LossWeight, NoiseSchedule, Prediction, PseudoHuber};
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
    /// Share of samples whose caption is dropped, for guidance.
    pub caption_dropout: f64,
    /// What stands in the place of dropped captions: the states of the `empty` caption, or `zeros`.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub dropped_caption: DroppedCaption,
    /// What latents are multiplied by; by default what the dataset's encoder says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_factor: Option<f64>,
    /// What an error costs: `l2`, or a pseudo-Huber loss such as `{ huber = { c = 0.1 } }`.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub loss: LossShape,
    /// What the errors of each timestep count for.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub loss_weight: LossWeight,
    /// Deviation of noise that is the same at all pixels of a channel, and is added to the others; 0.1 is usual, and teaches
    /// very dark and very bright images (Guttenberg 2023, "Diffusion with offset noise"; `--noise_offset` of diffusers'
    /// training scripts). The network predicts both.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub offset_noise: f64,
    /// How timesteps are drawn.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub timesteps: TimestepDraw,
    /// The smallest timestep that is drawn: 0, or 1 as in MosaicML's diffusion-benchmark.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub first_timestep: usize,
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

/// Far above what is in use (0.05 to 0.2), and far below what makes losses infinite.
const LARGEST_OFFSET: f64 = 100.0;

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
        let offset = self.offset_noise;
        check((0.0..=LARGEST_OFFSET).contains(&offset), "objective.offset_noise", || {
            format!("{offset} is no deviation; use a number from 0 to {LARGEST_OFFSET}, such as 0.1")
        })?;
        self.loss.validate().map_err(|problem| SettingError { key: "objective.loss", problem })?;
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

    /// A latent and its noise, `[height, width, channels]`, at a timestep.
    pub fn new(clean: Vec<f32>, noise: Vec<f32>, timestep: usize) -> Self {
        Self { clean, noise, timestep }
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
    /// The smallest one that is drawn.
    pub first: usize,
    /// Deviation of the noise that all pixels of a channel share.
    pub offset: f32,
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
            noise: self.offset(position, normal(Purpose::Noise)),
            timestep: self.first + self.draw.draw(self.seed, position, self.timesteps - self.first),
        }
    }

    /// Adds the part of the noise that all pixels of a channel share.
    fn offset(&self, position: u64, mut noise: Vec<f32>) -> Vec<f32> {
        if self.offset != 0.0 {
            let mut shared = vec![0f32; self.shape[2]];
            Stream::new(self.seed, Purpose::NoiseOffset, position).fill_normal(&mut shared);
            for pixel in noise.chunks_exact_mut(shared.len()) {
                pixel.iter_mut().zip(&shared).for_each(|(value, shared)| *value += self.offset * shared);
            }
        }
        noise
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
    /// What errors cost; none where it is their square.
    huber: Option<PseudoHuber>,
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
        let huber = objective.loss.pseudo_huber(schedule, &timesteps);
        if let Some(PseudoHuber { thresholds, factors }) = &huber {
            for (name, values) in [("huber_threshold", thresholds), ("huber_factor", factors)] {
                let tensor = Tensor::from_data(TensorData::new(values.clone(), [values.len()]), device);
                step.record::<1>(name, &tensor);
            }
        }
        Self { sample, timesteps, target, weights, huber }
    }

    /// Mean error of a UNet's prediction (Ho et al. 2020, eq. 14, where it is squared), with activations of type `dtype`.
    /// `states` are the text encoder's hidden states, `[batch, tokens, channels]`.
    pub fn loss(self, unet: &UNet, states: Tensor<3>, dtype: DType, keep: Keep) -> Loss {
        let t: Vec<f32> = self.timesteps.iter().map(|&t| t as f32).collect();
        let output = unet.forward_keeping(keep, self.sample.cast(dtype), &t, states, None);
        let (output, target) = (output.cast(DType::F32), self.target);
        if let Some(huber) = &self.huber {
            return Loss::of(huber.mean(output, target, self.weights.as_deref()));
        }
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
    fn offsets_are_the_same_at_all_pixels_of_a_channel() {
        let plain = LatentDrawer {
            seed: 1,
            shape: [2, 3, 4],
            scale: 1.0,
            timesteps: 1000,
            draw: TimestepDraw::Independent,
            first: 0,
            offset: 0.0,
        };
        let drawer = LatentDrawer { offset: 0.5, ..plain };
        let moments = [0.0; 48];
        let (without, with) = (plain.draw(5, &moments), drawer.draw(5, &moments));
        assert_eq!((&without.clean, without.timestep), (&with.clean, with.timestep));
        let offsets: Vec<f32> = with.noise.iter().zip(&without.noise).map(|(with, without)| with - without).collect();
        for pixel in offsets.chunks(4) {
            assert!(pixel.iter().zip(&offsets[..4]).all(|(a, b)| (a - b).abs() < 1e-6), "{offsets:?}");
        }
        assert!(offsets[..4].iter().all(|offset| offset.abs() > 1e-4), "{offsets:?}");
        let others = drawer.draw(6, &moments).noise[0] - plain.draw(6, &moments).noise[0];
        assert!((others - offsets[0]).abs() > 1e-6);
    }

    #[test]
    fn the_smallest_timestep_is_never_below_the_first() {
        for draw in [TimestepDraw::Independent, TimestepDraw::LowDiscrepancy] {
            let drawer =
                LatentDrawer { seed: 1, shape: [1, 1, 1], scale: 1.0, timesteps: 4, draw, first: 1, offset: 0.0 };
            let mut seen = [false; 4];
            (0..200).for_each(|position| seen[drawer.draw(position, &[0.0; 2]).timestep] = true);
            assert_eq!(seen, [false, true, true, true]);
        }
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        let read = |more: &str| {
            let objective: DenoiseObjective =
                toml::from_str(&format!("prediction = 'v'\ncaption_dropout = 0.1\n{more}")).unwrap();
            let text = toml::to_string(&objective).unwrap();
            assert_eq!(toml::from_str::<DenoiseObjective>(&text).unwrap(), objective, "{text}");
            objective.validate().map_err(|error| error.key)
        };
        for good in [
            "",
            "loss = 'l2'",
            "loss = { huber = { c = 0.1 } }",
            "loss = { smooth_l1 = { c = 1.0, schedule = 'constant' } }",
            "offset_noise = 0.1",
            "dropped_caption = 'zeros'",
            "loss_weight = { min_snr = 5.0 }",
        ] {
            assert_eq!(read(good), Ok(()), "{good}");
        }
        for (bad, key) in [
            ("loss = { huber = { c = 0.0 } }", "objective.loss"),
            ("loss = { smooth_l1 = { c = 2.0 } }", "objective.loss"),
            ("offset_noise = -0.1", "objective.offset_noise"),
            ("loss_weight = { min_snr = 0.0 }", "objective.loss_weight"),
            ("scale_factor = 0.0", "objective.scale_factor"),
        ] {
            assert_eq!(read(bad), Err(key), "{bad}");
        }
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
