//! Training of the UNet on precached latents, with precached text states or captions.

use crate::batches::stack;
use crate::encoders::TextTower;
use crate::inputs::{Condition, DiffusionInputs, SampleReader};
use crate::settings::DiffusionRecipe;
use crate::trainer::{BoxError, Decoder, Loss, Objective};
use burn::tensor::{DType, Device, Tensor};
use calotype_data::{Batch, SampleRef};
use calotype_diffusion::objective::add_noise;
use calotype_diffusion::{NoiseSchedule, Prediction, ScheduleConfig};
use calotype_kernels::{Purpose, Stream};
use calotype_models::unet::Keep;
use calotype_models::{UNet, UNetConfig};
use calotype_ops::mean_squared_error;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Identity of the encoders that made the training's dataset, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_encoder: Option<String>,
    /// The text encoder that ran in training, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<String>,
}

/// One sample with all the randomness of its training step.
#[derive(Debug)]
pub struct NoisySample {
    clean: Vec<f32>,
    noise: Vec<f32>,
    condition: Condition,
    timestep: usize,
}

/// Mean squared error of the prediction at uniformly drawn timesteps (Ho et al. 2020, eq. 14).
#[derive(Debug)]
pub struct DiffusionObjective {
    recipe: DiffusionRecipe,
    schedule: NoiseSchedule,
    reader: SampleReader,
    scale_factor: f32,
    /// Encodes captions, where they are not precached; in a cell, as its weights are read at the first use.
    text: Option<RefCell<TextTower>>,
    truncated: Arc<AtomicU64>,
    device: Device,
}

impl DiffusionObjective {
    /// For tensors on `device`, without autodiff.
    pub fn new(recipe: &DiffusionRecipe, schedule: NoiseSchedule, inputs: DiffusionInputs, device: &Device) -> Self {
        Self {
            recipe: recipe.clone(),
            schedule,
            reader: inputs.reader,
            scale_factor: inputs.scale_factor as f32,
            text: inputs.text.map(RefCell::new),
            truncated: Arc::default(),
            device: device.clone(),
        }
    }

    /// States of a batch's captions, `[batch, tokens, channels]`.
    fn states(&self, items: &[NoisySample]) -> Result<Tensor<3>, BoxError> {
        let (mut states, mut tokens) = (Vec::new(), Vec::new());
        for item in items {
            match &item.condition {
                Condition::States(values) => states.push(values.as_slice()),
                Condition::Tokens(row) => tokens.push(row.clone()),
            }
        }
        match &self.text {
            Some(text) => Ok(text.borrow_mut().encode(&tokens, false)?.states),
            None => Ok(stack(states.into_iter(), &self.reader.shape().states, DType::F32, &self.device)),
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
        let (scale, seed) = (self.scale_factor, self.recipe.run.seed);
        let dropout = self.recipe.objective.caption_dropout;
        let timesteps = self.schedule.timesteps() as u64;
        let (reader, truncated) = (self.reader.clone(), Arc::clone(&self.truncated));
        Box::new(move |position, sample: &SampleRef<'_>| -> Result<NoisySample, BoxError> {
            let latent = reader.shape().latent;
            let size = latent.iter().product();
            let stream = |purpose| Stream::new(seed, purpose, position);
            let mut posterior = vec![0f32; size];
            stream(Purpose::LatentPosterior).fill_normal(&mut posterior);
            let mut noise = vec![0f32; size];
            stream(Purpose::Noise).fill_normal(&mut noise);
            let drop = stream(Purpose::CaptionDropout).uniform_f64() < dropout;
            let (moments, condition) = reader.read(sample, drop)?;
            if let Condition::Tokens(tokens) = &condition {
                truncated.fetch_add(u64::from(tokens.truncated > 0), Ordering::Relaxed);
            }
            Ok(NoisySample {
                clean: draw_latent(&moments, latent, scale, &posterior),
                noise,
                condition,
                timestep: stream(Purpose::Timestep).below(timesteps) as usize,
            })
        })
    }

    fn loss(&self, model: &UNet, batch: Batch<NoisySample>) -> Result<Loss, BoxError> {
        let items = &batch.items;
        let device = &self.device;
        let stacked = |pick: fn(&NoisySample) -> &[f32]| -> Tensor<4> {
            stack(items.iter().map(pick), &self.reader.shape().latent, DType::F32, device)
        };
        let (clean, noise) = (stacked(|s| &s.clean), stacked(|s| &s.noise));
        let states = self.states(items)?;
        let timesteps: Vec<usize> = items.iter().map(|s| s.timestep).collect();
        let noisy = add_noise(&self.schedule, clean.clone(), noise.clone(), &timesteps);
        let target = self.recipe.objective.prediction.target(&self.schedule, clean, noise, &timesteps);
        let t: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let keep = if self.recipe.memory.recompute_blocks { Keep::Inputs } else { Keep::Activations };
        let output =
            model.forward_keeping(keep, noisy.cast(self.recipe.run.precision.dtype(&self.device)), &t, states, None);
        Ok(Loss::of(mean_squared_error(output.cast(DType::F32), target)))
    }

    fn encoders(&self) -> Option<String> {
        let (settings, tower) = (self.recipe.text.as_ref()?, self.text.as_ref()?);
        Some(format!("{} {}", settings.component, tower.borrow().weights()))
    }

    fn notices(&self) -> Vec<String> {
        match self.truncated.load(Ordering::Relaxed) {
            0 => Vec::new(),
            n => vec![format!("{n} captions were longer than {} tokens and were cut", self.reader.shape().states[0])],
        }
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
