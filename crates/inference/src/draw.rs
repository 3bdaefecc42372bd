//! The networks and what they draw: a batch of captions, all from one latent, with one negative prompt.

use crate::error::InferenceError;
use crate::latents::latent;
use crate::recipe::Recipe;
use burn::tensor::{Device, Tensor};
use calotype_checkpoints::loading::whole;
use calotype_checkpoints::{Checkpoint, Component, Family};
use calotype_core::system::{format_bytes, memory};
use calotype_diffusion::samplers::SamplerConfig;
use calotype_models::{AutoencoderConfig, UNetConfig};
use calotype_pipeline::images::to_rgb;
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_pipeline::{
    EncodedPrompts, LoadOptions, Observer, Pipeline, PipelineError, Request, SamplerChoice, Settings,
};
use std::path::Path;

/// Memory that text encoders take besides what the pipeline's estimate counts, as a share of the UNet's and the autoencoder's.
const TEXT_SHARE: f64 = 0.35;

/// Draws captions. Clones share the networks.
#[derive(Clone)]
pub struct Artist {
    pipeline: Pipeline,
    settings: Settings,
    negative: String,
    /// The negative prompt, encoded once.
    kept: EncodedPrompts,
    latent: Tensor<4>,
    guidance: f32,
    decode_batch: usize,
    /// Whether layers of the UNet are in 8 bits.
    is_int8: bool,
    /// Sentences on what is not the benchmark's.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Artist {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Artist").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// Asks after each step whether to go on.
struct GoOn<'a>(&'a dyn Fn() -> bool);

impl Observer for GoOn<'_> {
    fn go_on(&mut self) -> bool {
        (self.0)()
    }
}

impl Artist {
    /// Loads the recipe's checkpoint, if there is enough memory for it.
    ///
    /// # Errors
    /// [`InferenceError::Pipeline`] for what is no checkpoint or cannot draw; [`InferenceError::Memory`];
    /// [`InferenceError::File`] for latents that do not fit, and for another model than Stable Diffusion XL.
    pub fn load(path: &Path, recipe: &Recipe, device: &Device) -> Result<Self, InferenceError> {
        let Unread { checkpoint, options, settings, pipeline: unread } = Unread::open(path, recipe, device)?;
        let is_int8 = whole(&checkpoint, Component::Unet).map_err(PipelineError::from)?.int8_tensors() > 0;
        let mut notes = Vec::new();
        if *unread.unet().config() != published(unread.unet().config()) {
            notes.push("the UNet is not of SDXL base's form".to_owned());
        }
        enough_memory(&unread, recipe, &settings)?;
        let (latent, of_latent) = beginning(unread.autoencoder().config(), recipe, device)?;
        notes.extend(of_latent);
        let pipeline = Pipeline::load(&checkpoint, &options)?;
        let kept = pipeline.encode_prompts(&[recipe.negative.as_str()], &settings.prompts())?;
        Ok(Self {
            pipeline,
            settings,
            negative: recipe.negative.clone(),
            kept,
            latent,
            guidance: recipe.guidance,
            decode_batch: recipe.serve.decode_batch,
            is_int8,
            notes,
        })
    }

    /// Finds out, without reading weights, whether a checkpoint can draw as the recipe has it.
    ///
    /// # Errors
    /// As of [`Artist::load`] but for memory and for what stands in the weights.
    pub fn check(path: &Path, recipe: &Recipe, device: &Device) -> Result<(), InferenceError> {
        let unread = Unread::open(path, recipe, device)?;
        beginning(unread.pipeline.autoencoder().config(), recipe, device).map(drop)
    }

    /// The same of a checkpoint that is not there yet, but will be of the published form.
    ///
    /// # Errors
    /// [`InferenceError::Setting`] for another form than SDXL's, and for sides that it cannot make; as of [`Artist::load`] for latents.
    pub(crate) fn check_unmade(recipe: &Recipe, device: &Device) -> Result<(), InferenceError> {
        let is_other = |family: &RandomFamily| {
            !matches!(RandomCheckpoint::new(*family).published(), Family::SdxlBase | Family::SdxlRefiner)
        };
        if let Some(family) = recipe.random.filter(is_other) {
            let problem = format!("random={family} is not of Stable Diffusion XL's form; take tiny-sdxl or sdxl");
            return Err(InferenceError::setting(problem));
        }
        let config = AutoencoderConfig::stable_diffusion();
        let by = config.downscale();
        let sides = [("height", recipe.height), ("width", recipe.width)];
        if let Some((name, side)) = sides.into_iter().find(|(_, side)| !side.is_multiple_of(by)) {
            return Err(InferenceError::setting(format!("a {name} of {side} pixels: sides must be multiples of {by}")));
        }
        beginning(&config, recipe, device).map(drop)
    }

    /// Pictures that go through the UNet together.
    pub fn batch(&self) -> usize {
        self.settings.batch
    }

    /// Type of the activations, in words.
    pub fn precision(&self) -> &'static str {
        self.pipeline.dtype().name()
    }

    /// Type of the UNet's weights, in words.
    pub fn weights(&self) -> &'static str {
        if self.is_int8 { "int8" } else { self.precision() }
    }

    /// Draws a picture of each caption, `[height, width, 3]` of 8 bits (`round(255 x)`), and hands it over by its number among the
    /// captions as soon as it is decoded.
    ///
    /// # Errors
    /// [`PipelineError`]; [`PipelineError::Stopped`] when `go_on` says no.
    pub fn draw(
        &self,
        captions: &[&str],
        go_on: &dyn Fn() -> bool,
        done: &mut dyn FnMut(usize, Vec<u8>),
    ) -> Result<(), PipelineError> {
        self.draw_in(&self.settings, captions, go_on, done)
    }

    /// Draws pictures that nobody sees, of some steps: memory is there and weights are packed when samples come.
    ///
    /// # Errors
    /// As of [`draw`](Self::draw).
    pub fn warm_up(
        &self,
        pictures: usize,
        steps: Option<usize>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), PipelineError> {
        const TEXT: &str =
            "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore";
        let settings = Settings { steps: steps.unwrap_or(self.settings.steps), ..self.settings.clone() };
        let mut left = pictures;
        while left > 0 {
            let now = left.min(self.batch());
            self.draw_in(&settings, &vec![TEXT; now], go_on, &mut |_, _| {})?;
            left -= now;
        }
        Ok(())
    }

    fn draw_in(
        &self,
        settings: &Settings,
        captions: &[&str],
        go_on: &dyn Fn() -> bool,
        done: &mut dyn FnMut(usize, Vec<u8>),
    ) -> Result<(), PipelineError> {
        let request = |caption: &&str| Request {
            negative: Some(self.negative.clone()),
            guidance: Some(self.guidance),
            noise: Some(self.latent.clone()),
            ..Request::new(*caption)
        };
        let requests: Vec<Request> = captions.iter().map(request).collect();
        let prompts = self.pipeline.encode_beside(captions, &settings.prompts(), &self.kept)?;
        let latents = self.pipeline.sample(&requests, &prompts, settings, &mut GoOn(go_on))?;
        let mut first = 0;
        while first < requests.len() {
            let now = (requests.len() - first).min(self.decode_batch);
            let pixels = self.pipeline.decode_together(latents.clone().narrow(0, first, now))?;
            for row in 0..now {
                let picture = to_rgb(&pixels.clone().narrow(0, row, 1).squeeze_dim::<3>(0))?;
                done(first + row, picture.data().to_vec());
            }
            first += now;
        }
        Ok(())
    }
}

/// A checkpoint that can draw as a recipe has it, with none of its weights read.
struct Unread {
    checkpoint: Checkpoint,
    options: LoadOptions,
    settings: Settings,
    pipeline: Pipeline,
}

impl Unread {
    fn open(path: &Path, recipe: &Recipe, device: &Device) -> Result<Self, InferenceError> {
        let checkpoint = Checkpoint::open_with(path, &recipe.open).map_err(PipelineError::from)?;
        let options = LoadOptions {
            device: device.clone(),
            precision: recipe.precision.resolve(device),
            start_images: false,
            tiled: recipe.tiled,
            ..LoadOptions::default()
        };
        // Nothing is read with little memory, so that what is needed can be said before it is taken.
        let pipeline = Pipeline::load(&checkpoint, &LoadOptions { low_memory: true, ..options.clone() })?;
        if pipeline.unet().config().added.is_none() {
            let problem = "is no checkpoint of Stable Diffusion XL, whose UNet is told the size of the pictures; name one with --model";
            return Err(InferenceError::File { path: path.to_owned(), problem: problem.to_owned() });
        }
        let settings = Settings {
            width: Some(recipe.width),
            height: Some(recipe.height),
            steps: recipe.steps,
            sampler: Some(sampler(&checkpoint, recipe)?),
            batch: recipe.serve.batch_size,
            ..Settings::default()
        };
        pipeline.image_size(&Request::new(""), &settings)?;
        pipeline.sampler(&settings)?;
        Ok(Self { checkpoint, options, settings, pipeline })
    }
}

/// The latent that all pictures begin with, for an autoencoder, with sentences on what is not the benchmark's.
fn beginning(
    autoencoder: &AutoencoderConfig,
    recipe: &Recipe,
    device: &Device,
) -> Result<(Tensor<4>, Vec<String>), InferenceError> {
    let by = autoencoder.downscale();
    latent(&recipe.latents, [recipe.height / by, recipe.width / by, autoencoder.latent_channels], device)
}

/// SDXL base's UNet, as far as it is not a matter of the file: the size that it is usually sampled at.
fn published(own: &UNetConfig) -> UNetConfig {
    UNetConfig { sample_size: own.sample_size, ..UNetConfig::stable_diffusion_xl() }
}

/// The recipe's sampler on the checkpoint's schedule.
fn sampler(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<SamplerConfig, InferenceError> {
    let choice = SamplerChoice { name: recipe.sampler.name.clone(), ..SamplerChoice::default() };
    let mut config = choice.resolve(checkpoint)?.config;
    config.spacing = recipe.sampler.spacing.unwrap_or(config.spacing);
    config.steps_offset = recipe.sampler.steps_offset.unwrap_or(config.steps_offset);
    config.check().map_err(PipelineError::from)?;
    Ok(config)
}

/// Refuses what does not fit into the machine's memory, before any of it is taken.
fn enough_memory(pipeline: &Pipeline, recipe: &Recipe, settings: &Settings) -> Result<(), InferenceError> {
    let requests = vec![Request { guidance: Some(recipe.guidance), ..Request::new("") }; recipe.serve.batch_size];
    let one = pipeline.memory(&requests, settings)? as f64;
    let element = if pipeline.dtype().name() == "bf16" { 2.0 } else { 4.0 };
    let parameters = pipeline.unet().parameters().map_err(PipelineError::from)?
        + pipeline.autoencoder().parameters().map_err(PipelineError::from)?;
    let weights = element * parameters as f64;
    // Threads share the weights; each has its own batch.
    let needed = weights * TEXT_SHARE + weights + (one - weights).max(0.0) * recipe.serve.workers.max(1) as f64;
    let Some(available) = memory().map(|memory| memory.available) else { return Ok(()) };
    if needed as u64 <= available {
        return Ok(());
    }
    Err(InferenceError::Memory(format!(
        "drawing {} at a time by {} threads at {}x{} takes about {}, and {} are free: lower serve.batch_size or serve.workers, or take \
         precision=bf16",
        recipe.serve.batch_size,
        recipe.serve.workers.max(1),
        recipe.width,
        recipe.height,
        format_bytes(needed as u64),
        format_bytes(available)
    )))
}
