//! Training of the UNet on precached latents.

use crate::batches::stack;
use crate::precache::{MOMENTS, STATES};
use crate::settings::DiffusionRecipe;
use crate::trainer::{BoxError, Decoder, Loss, Objective};
use burn::tensor::{DType, Device, Tensor};
use calotype_data::{Batch, Dataset, SampleRef};
use calotype_diffusion::objective::add_noise;
use calotype_diffusion::{NoiseSchedule, Prediction, ScheduleConfig};
use calotype_kernels::{Purpose, Stream};
use calotype_models::unet::Keep;
use calotype_models::{UNet, UNetConfig};
use calotype_ops::mean_squared_error;
use serde::{Deserialize, Serialize};

/// What a trained UNet is saved with: all that sampling needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// The network.
    pub model: UNetConfig,
    /// The noise schedule of training.
    pub schedule: ScheduleConfig,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Latents were multiplied by this.
    pub scale_factor: f64,
    /// `[height, width, channels]` of a latent.
    pub latent_size: [usize; 3],
}

/// One sample with all the randomness of its training step.
#[derive(Debug)]
pub struct NoisySample {
    clean: Vec<f32>,
    noise: Vec<f32>,
    states: Vec<f32>,
    timestep: usize,
}

/// Shapes of a precached dataset's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// `[height, width, channels]` of a latent.
    pub latent: [usize; 3],
    /// `[tokens, channels]` of a caption's states.
    pub states: [usize; 2],
}

impl LatentShape {
    /// Reads the shapes off a dataset's first sample.
    ///
    /// # Errors
    /// Names the sample whose parts are missing or of the wrong rank.
    pub fn of(dataset: &Dataset) -> Result<Self, BoxError> {
        let sample = dataset.get(0)?;
        let (moments, states) = (sample.array(MOMENTS)?, sample.array(STATES)?);
        match (moments.shape(), states.shape()) {
            (&[1, channels, height, width], &[tokens, width_of_states]) if channels % 2 == 0 => {
                Ok(Self { latent: [height, width, channels / 2], states: [tokens, width_of_states] })
            }
            (moments, states) => Err(format!(
                "sample `{}` has moments of shape {moments:?} and states of shape {states:?}; \
                 needed are [1, 2 * latent channels, height, width] and [tokens, channels]",
                sample.key()
            )
            .into()),
        }
    }
}

/// Mean squared error of the prediction at uniformly drawn timesteps (Ho et al. 2020, eq. 14).
#[derive(Debug)]
pub struct DiffusionObjective {
    recipe: DiffusionRecipe,
    schedule: NoiseSchedule,
    shape: LatentShape,
    scale_factor: f32,
    empty_states: Vec<f32>,
    device: Device,
}

impl DiffusionObjective {
    /// `empty_states` stand for a dropped caption: `[tokens, channels]` of the empty prompt.
    pub fn new(
        recipe: &DiffusionRecipe,
        schedule: NoiseSchedule,
        shape: LatentShape,
        scale_factor: f64,
        empty_states: Vec<f32>,
        device: &Device,
    ) -> Self {
        Self {
            recipe: recipe.clone(),
            schedule,
            shape,
            scale_factor: scale_factor as f32,
            empty_states,
            device: device.clone(),
        }
    }
}

/// `(mean + exp(logvar / 2) · noise) · scale` of moments `[1, 2c, h, w]`, as `[h, w, c]`.
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

impl Objective for DiffusionObjective {
    type Model = UNet;
    type Item = NoisySample;

    fn decoder(&self) -> Decoder<NoisySample> {
        let (shape, scale, seed) = (self.shape, self.scale_factor, self.recipe.run.seed);
        let dropout = self.recipe.objective.caption_dropout;
        let timesteps = self.schedule.timesteps() as u64;
        let empty = self.empty_states.clone();
        Box::new(move |position, sample: &SampleRef<'_>| -> Result<NoisySample, BoxError> {
            let size = shape.latent.iter().product();
            let stream = |purpose| Stream::new(seed, purpose, position);
            let mut posterior = vec![0f32; size];
            stream(Purpose::LatentPosterior).fill_normal(&mut posterior);
            let mut noise = vec![0f32; size];
            stream(Purpose::Noise).fill_normal(&mut noise);
            let moments = sample.array(MOMENTS)?.to_f32()?;
            if moments.len() != 2 * size {
                let key = sample.key();
                return Err(format!("sample `{key}` has {} moments instead of {}", moments.len(), 2 * size).into());
            }
            let drop = stream(Purpose::CaptionDropout).uniform_f64() < dropout;
            let states = if drop { empty.clone() } else { sample.array(STATES)?.to_f32()? };
            if states.len() != empty.len() {
                let (key, got) = (sample.key(), states.len());
                return Err(format!("sample `{key}` has {got} text state values instead of {}", empty.len()).into());
            }
            Ok(NoisySample {
                clean: draw_latent(&moments, shape.latent, scale, &posterior),
                noise,
                states,
                timestep: stream(Purpose::Timestep).below(timesteps) as usize,
            })
        })
    }

    fn loss(&self, model: &UNet, batch: Batch<NoisySample>) -> Loss {
        let items = &batch.items;
        let device = &self.device;
        let stacked = |pick: fn(&NoisySample) -> &[f32]| -> Tensor<4> {
            stack(items.iter().map(pick), &self.shape.latent, DType::F32, device)
        };
        let (clean, noise) = (stacked(|s| &s.clean), stacked(|s| &s.noise));
        let states: Tensor<3> =
            stack(items.iter().map(|s| s.states.as_slice()), &self.shape.states, DType::F32, device);
        let timesteps: Vec<usize> = items.iter().map(|s| s.timestep).collect();
        let noisy = add_noise(&self.schedule, clean.clone(), noise.clone(), &timesteps);
        let target = self.recipe.objective.prediction.target(&self.schedule, clean, noise, &timesteps);
        let t: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let keep = if self.recipe.memory.recompute_blocks { Keep::Inputs } else { Keep::Activations };
        let output =
            model.forward_keeping(keep, noisy.cast(self.recipe.run.precision.dtype(&self.device)), &t, states, None);
        Loss::of(mean_squared_error(output.cast(DType::F32), target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_are_channels_last_and_scaled() {
        // Two channels of a 1x2 latent: means 1, 2 | 3, 4; log-variances 0 except the last, clamped low.
        let moments = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, -100.0];
        let latent = draw_latent(&moments, [1, 2, 2], 2.0, &[1.0, 0.0, 0.0, 1.0]);
        assert_eq!(latent[..3], [4.0, 6.0, 4.0]);
        assert!((latent[3] - 8.0).abs() < 1e-5);
    }
}
