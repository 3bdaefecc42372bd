//! A second network that takes over where little noise is left (Podell et al. 2023, section 2.5).

use crate::batch::{Beginning, Drawn};
use crate::error::PipelineError;
use crate::observer::Observer;
use crate::pipeline::{Batch, Pipeline};
use crate::prompts::EncodedPrompts;
use crate::request::{Request, Settings, Timings};
use burn::tensor::Tensor;
use calotype_diffusion::samplers::{Sampler, SamplerConfig};

/// The second of two networks: SDXL's refiner behind its base model, as diffusers' pipelines share an image by
/// `denoising_end` and `denoising_start`. It takes the latents as they are, with the noise that is left in them, has its own
/// prompts' hidden states and sampler, and its autoencoder decodes.
#[derive(Clone, Debug)]
pub struct Refiner {
    /// The network with its encoders.
    pub pipeline: Pipeline,
    /// Share of the noise's way after which it takes over, between 0 and 1.
    pub start: f64,
    /// Its sampler; none: its checkpoint's own.
    pub sampler: Option<SamplerConfig>,
}

impl Refiner {
    /// The refiner's settings: those of the first network with its own sampler.
    pub(crate) fn settings(&self, settings: &Settings) -> Settings {
        Settings { sampler: self.sampler.clone(), ..settings.clone() }
    }

    /// Whether it goes on in the latents of the first pipeline. Latents of other autoencoders have the same form and mean
    /// something else.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] with what does not fit.
    pub(crate) fn fits(&self, first: &Pipeline) -> Result<(), PipelineError> {
        let [ours, theirs] = [&self.pipeline, first].map(|pipeline| pipeline.autoencoder.config());
        let [second, first] = [&self.pipeline, first].map(|pipeline| pipeline.name().display());
        let refuse = |problem: String| {
            Err(PipelineError::setting(format!(
                "--refiner {second}: {problem}; give SDXL's refiner, or another model of SDXL, behind a model of SDXL"
            )))
        };
        if self.pipeline.unet.config().added.is_none() {
            return refuse("it is no model of Stable Diffusion XL".to_owned());
        }
        if ours.latent_channels != theirs.latent_channels {
            let [ours, theirs] = [ours, theirs].map(|config| config.latent_channels);
            return refuse(format!("it draws latents of {ours} channels, and {first} of {theirs}"));
        }
        let [our_scale, their_scale] = [ours, theirs].map(|config| config.scaling_factor.unwrap_or(1.0));
        if our_scale != their_scale {
            return refuse(format!("its latents are scaled by {our_scale}, and those of {first} by {their_scale}"));
        }
        if (&ours.latents_mean, &ours.latents_std) != (&theirs.latents_mean, &theirs.latents_std) {
            return refuse(format!("its latents have other means and deviations than those of {first}"));
        }
        Ok(())
    }

    /// Whether it can draw what the first network begins.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] and [`PipelineError::Sampler`] with what does not fit.
    pub(crate) fn check(
        &self,
        first: &Sampler,
        begun: usize,
        request: &Request,
        settings: &Settings,
    ) -> Result<(), PipelineError> {
        first.handed_over_at(self.start, begun)?;
        self.pipeline.sampler(&self.settings(settings))?.taken_over_at(self.start)?;
        self.pipeline.check_caching(settings)?;
        if request.start.as_ref().is_some_and(|start| start.mask.is_some()) {
            return Err(PipelineError::setting(
                "--refiner draws over what a mask keeps: leave out --refiner or --mask, or refine the image afterwards",
            ));
        }
        self.pipeline.check(&Request { start: None, ..request.clone() })
    }

    /// The latents of a batch that the first network has left; none if the observer ended the work.
    pub(crate) fn refine(
        &self,
        batch: &Batch<'_>,
        prompts: &EncodedPrompts,
        settings: &Settings,
        begun: Drawn,
        (timings, observer): (&mut Timings, &mut dyn Observer),
    ) -> Result<Option<Tensor<4>>, PipelineError> {
        let settings = self.settings(settings);
        let sampler = self.pipeline.sampler(&settings)?;
        let first = sampler.taken_over_at(self.start)?;
        let [_, height, width, channels] = begun.latents.dims();
        let drawing = self.pipeline.drawing(batch.requests, &sampler, [height, width, channels], begun.noise);
        let beginning = Beginning { x: begun.latents, first, end: None, extra: None, inpainting: None };
        self.pipeline.draw(&drawing, beginning, batch, prompts, (&settings, timings, observer))
    }
}
