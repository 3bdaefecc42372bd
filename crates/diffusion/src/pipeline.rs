//! From prompts to pictures.

use crate::guidance::{Conditions, GuidedUNet};
use crate::noise::{NoiseKind, PictureNoise};
use crate::objective::Prediction;
use crate::samplers::{Ddim, Progress, Run, Sampler, SamplerConfig, SamplerError, SamplerKind};
use crate::schedule::{NoiseSchedule, ScheduleConfig, Spacing};
use burn::tensor::{DType, Tensor};
use calotype_models::{Autoencoder, UNet};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// How pictures are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateOptions {
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: f32,
    /// DDIM's share of fresh noise, 0 to 1.
    pub eta: f64,
    /// Which timesteps are visited.
    pub spacing: Spacing,
    /// Offset of the leading spacing.
    pub steps_offset: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { steps: 50, guidance: 7.5, eta: 0.0, spacing: Spacing::Leading, steps_offset: 1 }
    }
}

/// A text-to-image pipeline on encoded prompts.
pub struct TextToImage<'a> {
    /// The network, without autodiff.
    pub unet: &'a UNet,
    /// Decodes latents; without autodiff.
    pub autoencoder: &'a Autoencoder,
    /// The schedule of training.
    pub schedule: &'a NoiseSchedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Latents were multiplied by this in training.
    pub scale_factor: f32,
    /// `[height, width, channels]` of one latent.
    pub latent_size: [usize; 3],
    /// Precision of the UNet's and the decoder's activations.
    pub dtype: DType,
}

impl TextToImage<'_> {
    /// Draws one picture for each prompt, in `-1..1`.
    ///
    /// `first` is the number of the first picture of this call among all pictures of `seed`.
    ///
    /// # Shapes
    /// `context` and `uncond`: `[pictures, tokens, channels]`; returns
    /// `[pictures, height, width, 3]`
    ///
    /// # Errors
    /// [`SamplerError`] for an impossible number of steps, or when the callback ends the run.
    pub fn generate(
        &self,
        context: Tensor<3>,
        uncond: Tensor<3>,
        options: &GenerateOptions,
        seed: u64,
        first: u64,
        callback: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, SamplerError> {
        let config = SamplerConfig {
            kind: SamplerKind::Ddim(Ddim { eta: options.eta, ..Default::default() }),
            schedule: ScheduleConfig::default(),
            prediction: self.prediction,
            spacing: options.spacing,
            steps_offset: options.steps_offset,
        };
        let sampler = Sampler::with_schedule(&config, self.schedule, options.steps)?;
        let (pictures, device) = (context.dims()[0], context.device());
        let numbers: Vec<u64> = (first..).take(pictures).collect();
        let noise = PictureNoise::new(NoiseKind::Philox, seed, &numbers, &device);
        let x = noise.draw(self.latent_size);
        let denoiser = GuidedUNet {
            unet: self.unet,
            cond: Conditions { context, added: None },
            uncond: Conditions { context: uncond, added: None },
            scale: options.guidance,
            rescale: 0.0,
            extra: None,
            dtype: self.dtype,
        };
        let fresh = |_: usize| noise.draw(self.latent_size);
        let latent = sampler.sample(&denoiser, x, Run { noise: Some(&fresh), ..Run::new(callback) })?;
        let latent = latent.div_scalar(self.scale_factor).cast(self.dtype);
        Ok(self.autoencoder.decode(latent).cast(DType::F32))
    }
}
