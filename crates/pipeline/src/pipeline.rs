//! The networks of a checkpoint in memory, and what they do one after another.

use crate::batch::Drawn;
use crate::encoders::TextEncoder;
use crate::error::PipelineError;
use crate::family::Defaults;
use crate::network::{Network, Placement};
use crate::observer::{DrawnImage, Observer};
use crate::prompts::{CutPrompt, EncodedPrompt, EncodedPrompts, PromptOptions};
use crate::refiner::Refiner;
use crate::request::{Request, Settings, Timings, timed};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::loading::LoadError;
use calotype_checkpoints::{Checkpoint, Component, LayoutError};
use calotype_data::image::RgbImage;
use calotype_diffusion::samplers::{Sampler, SamplerConfig};
use calotype_models::{AutoencoderConfig, UNet, UNetConfig};
use calotype_ops::Precision;
use calotype_weights::lora::LoraSet;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Options of [`Pipeline::load`].
#[derive(Clone)]
pub struct LoadOptions {
    /// The device to compute on.
    pub device: Device,
    /// Precision of activations, and of the networks' weights.
    pub precision: Precision,
    /// Adapters that are added to the weights.
    pub adapters: Option<Arc<LoraSet>>,
    /// Load the autoencoder's encoder, which requests with a start image need. Without it, such requests are refused.
    pub start_images: bool,
    /// Read each network when it is first needed, and drop the text encoders when the prompts are encoded and the UNet when
    /// the last latents are drawn: least memory for a single call, but the next call reads them again.
    pub low_memory: bool,
    /// Encode and decode in tiles: less memory for large images, other pixels near the seams.
    pub tiled: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::flex(),
            precision: Precision::Auto,
            adapters: None,
            start_images: true,
            low_memory: false,
            tiled: false,
        }
    }
}

/// The parts of a pipeline whose networks were not all read from one checkpoint.
pub struct Parts {
    /// The name of the folder or model in errors.
    pub name: PathBuf,
    /// The usual sampler, size and guidance.
    pub defaults: Defaults,
    /// One or two text encoders.
    pub text_encoders: Vec<TextEncoder>,
    /// The UNet, without autodiff.
    pub unet: Network<UNetConfig>,
    /// The autoencoder, without autodiff.
    pub autoencoder: Network<AutoencoderConfig>,
    /// Device, precision, tiling, and whether the autoencoder has its encoder; the rest of the options is for loading.
    pub options: LoadOptions,
}

/// Text encoders, UNet and autoencoder of a checkpoint of Stable Diffusion 1, 2 or XL, ready to draw from any thread.
///
/// Loaded once, it draws any number of times without reading a file again (unless [`LoadOptions::low_memory`] says
/// otherwise). Numbers are drawn in the order of diffusers' pipelines, so that with
/// [`NoiseKind::TorchCpu`](crate::NoiseKind::TorchCpu) the images are theirs.
///
/// ```
/// use calotype_checkpoints::Checkpoint;
/// use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
/// use calotype_pipeline::{LoadOptions, Pipeline, Request, Settings};
///
/// // A tiny Stable Diffusion of random weights; any published checkpoint takes its place.
/// let folder = tempfile::tempdir()?;
/// RandomCheckpoint::new(RandomFamily::Tiny).write(folder.path())?;
/// let pipeline = Pipeline::load(&Checkpoint::open(folder.path())?, &LoadOptions::default())?;
/// let cat = Request { seed: 7, ..Request::new("a cat") };
/// let boat = Request { guidance: Some(3.0), ..Request::new("a boat") };
/// let images = pipeline.images(&[cat, boat], &Settings { steps: 2, batch: 2, ..Settings::default() })?;
/// assert_eq!((images.len(), images[0].width(), images[0].height()), (2, 64, 64));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Pipeline {
    pub(crate) name: PathBuf,
    pub(crate) defaults: Defaults,
    texts: Arc<Vec<TextEncoder>>,
    pub(crate) unet: Arc<Network<UNetConfig>>,
    pub(crate) autoencoder: Arc<Network<AutoencoderConfig>>,
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    pub(crate) start_images: bool,
    pub(crate) low_memory: bool,
    pub(crate) tiled: bool,
    pub(crate) refiner: Option<Arc<Refiner>>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Pipeline")
            .field("name", &self.name)
            .field("defaults", &self.defaults)
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Loads a checkpoint. All networks are read now and the files let go of; with [`LoadOptions::low_memory`] none is read
    /// yet.
    ///
    /// # Errors
    /// [`PipelineError::Load`] for a network that the checkpoint lacks or that cannot be read; [`PipelineError::Encoder`] for
    /// its tokenizer.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self, PipelineError> {
        let LoadOptions { device, precision, adapters, start_images, low_memory, tiled } = options.clone();
        let dtype = precision.dtype(&device);
        let placement = Placement { device: device.clone(), dtype, adapters };
        let held = checkpoint.components();
        let mut texts = Vec::new();
        for component in [Component::TextEncoder, Component::TextEncoder2] {
            // Without any, the first one is asked for, whose error says what there is.
            let clip = held.contains(&Component::Clip) && component == Component::TextEncoder;
            let none = !held.contains(&Component::TextEncoder2) && component == Component::TextEncoder;
            if held.contains(&component) || clip || none {
                texts.push(TextEncoder::from_checkpoint(checkpoint, component, &placement)?);
            }
        }
        let mut unet: Network<UNetConfig> = Network::open(checkpoint, Component::Unet, &placement)?;
        let part = if start_images { AutoencoderConfig::init } else { AutoencoderConfig::init_decoder };
        let mut autoencoder =
            Network::open_as(checkpoint, Component::Vae, part, &placement).map_err(with_other_autoencoder)?;
        if !low_memory {
            texts = texts.into_iter().map(TextEncoder::keep).collect::<Result<_, _>>()?;
            unet = unet.keep()?;
            autoencoder = autoencoder.keep()?;
        }
        Ok(Self {
            name: checkpoint.path().to_owned(),
            defaults: Defaults::of(checkpoint, autoencoder.config().downscale()),
            texts: Arc::new(texts),
            unet: Arc::new(unet),
            autoencoder: Arc::new(autoencoder),
            device,
            dtype,
            start_images,
            low_memory,
            tiled,
            refiner: None,
        })
    }

    /// A pipeline of networks that are at hand, such as those of a training run.
    pub fn from_parts(parts: Parts) -> Self {
        let LoadOptions { device, precision, start_images, low_memory, tiled, .. } = parts.options;
        Self {
            name: parts.name,
            defaults: parts.defaults,
            texts: Arc::new(parts.text_encoders),
            unet: Arc::new(parts.unet),
            autoencoder: Arc::new(parts.autoencoder),
            dtype: precision.dtype(&device),
            device,
            start_images,
            low_memory,
            tiled,
            refiner: None,
        }
    }

    /// The same with a second network, which takes over where little noise is left.
    pub fn with_refiner(self, refiner: Refiner) -> Self {
        Self { refiner: Some(Arc::new(refiner)), ..self }
    }

    /// The same encoders with another UNet, without autodiff. Nothing is copied.
    pub fn with_unet(&self, config: UNetConfig, unet: UNet) -> Self {
        Self { unet: Arc::new(Network::loaded(&self.name, config, unet)), ..self.clone() }
    }

    /// The checkpoint, as errors name it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The usual sampler, size and guidance.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Type of the activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The text encoders, one or two.
    pub fn text_encoders(&self) -> &[TextEncoder] {
        &self.texts
    }

    /// The UNet.
    pub fn unet(&self) -> &Network<UNetConfig> {
        &self.unet
    }

    /// The autoencoder.
    pub fn autoencoder(&self) -> &Network<AutoencoderConfig> {
        &self.autoencoder
    }

    /// The sampler of some settings, with its timesteps.
    ///
    /// # Errors
    /// [`PipelineError::Sampler`] for an impossible number of steps or impossible settings; [`PipelineError::Setting`] if the
    /// settings name no sampler and the checkpoint's is not known.
    pub fn sampler(&self, settings: &Settings) -> Result<Sampler, PipelineError> {
        let config: &SamplerConfig = match (&settings.sampler, &self.defaults.sampler) {
            (Some(config), _) | (None, Ok(config)) => config,
            (None, Err(problem)) => return Err(PipelineError::setting(problem)),
        };
        Ok(Sampler::new(config, settings.steps)?)
    }

    /// Encodes every prompt, and the empty one, once and in batches, with all text encoders.
    ///
    /// # Errors
    /// [`PipelineError::Load`] if weights that are read on demand cannot be; [`PipelineError::Encoder`] if the tokenizer does
    /// not belong to a text encoder, or there are not as many layers to skip.
    pub fn encode_prompts(&self, prompts: &[&str], options: &PromptOptions) -> Result<EncodedPrompts, PipelineError> {
        let mut unique = prompts.to_vec();
        unique.push("");
        let (mut by_text, cut) = self.encode_texts(unique, options)?;
        let none = || PipelineError::setting(format!("{}: there is no text encoder", self.name.display()));
        let empty = by_text.remove("").ok_or_else(none)?;
        Ok(EncodedPrompts { by_text, empty, cut, zeros_for_no_negative: self.defaults.zeros_for_no_negative })
    }

    /// Encodes each of some texts once, and says which were cut.
    pub(crate) fn encode_texts(
        &self,
        mut unique: Vec<&str>,
        options: &PromptOptions,
    ) -> Result<(BTreeMap<String, EncodedPrompt>, Vec<CutPrompt>), PipelineError> {
        unique.sort_unstable();
        unique.dedup();
        let mut by_text: BTreeMap<String, EncodedPrompt> = BTreeMap::new();
        let mut cut: Vec<CutPrompt> = Vec::new();
        for encoder in self.texts.iter() {
            for (prompt, (here, lost)) in unique.iter().zip(encoder.encode_prompts(&unique, options)?) {
                cut.extend(lost.filter(|lost| cut.iter().all(|other| other.prompt != lost.prompt)));
                let joined = match by_text.remove(*prompt) {
                    None => here,
                    Some(before) => before.beside(here),
                };
                by_text.insert((*prompt).to_owned(), joined);
            }
        }
        Ok((by_text, cut))
    }

    /// Pixels of latents, one after the other.
    ///
    /// # Shapes
    /// `[images, height, width, channels]` to `[images, height, width, 3]` of pixels in `0..1`
    ///
    /// # Errors
    /// [`PipelineError::NonFinite`] if the decoder's output is not finite; [`PipelineError::Load`] as above.
    pub fn decode(&self, latents: Tensor<4>) -> Result<Tensor<4>, PipelineError> {
        let (config, autoencoder) = (self.autoencoder.config(), self.autoencoder.get()?);
        let tiling = config.tiling();
        let mut images = Vec::new();
        for row in 0..latents.dims()[0] {
            let latent = config.unscaled(latents.clone().narrow(0, row, 1)).cast(self.dtype);
            let pixels = autoencoder.decode_finite(latent, self.tiled.then_some(&tiling))?;
            images.push(pixels.cast(DType::F32).div_scalar(2.0).add_scalar(0.5).clamp(0.0, 1.0));
        }
        Ok(if images.len() == 1 { images.remove(0) } else { Tensor::cat(images, 0) })
    }

    /// Draws images, in batches of consecutive requests that can share one, and hands each to the observer when it is done.
    ///
    /// # Errors
    /// [`PipelineError`], before any work for requests or settings that cannot be; [`PipelineError::Stopped`] when the observer
    /// asks for it. Images that the observer was given before are good.
    pub fn generate(
        &self,
        requests: &[Request],
        settings: &Settings,
        observer: &mut dyn Observer,
    ) -> Result<Timings, PipelineError> {
        let mut timings = Timings::default();
        let sampler = self.sampler(settings)?;
        self.check_caching(settings)?;
        self.refiner.as_ref().map_or(Ok(()), |refiner| refiner.fits(self))?;
        for request in requests {
            self.check(request)?;
            self.image_size(request, settings)?;
            let begun = request.start.as_ref().map_or(Ok(0), |_| sampler.first_call(request.strength))?;
            if let Some(refiner) = &self.refiner {
                refiner.check(&sampler, begun, request, settings)?;
            }
        }
        let prompts = self.prompts_of(requests, settings, &mut timings)?;
        prompts.cut.iter().for_each(|cut| observer.prompt_cut(cut));
        let batches = self.batches(requests, &prompts, settings)?;
        match &self.refiner {
            None => self.draw_batches(requests, &batches, &prompts, settings, (&mut timings, observer))?,
            Some(refiner) => {
                let begun =
                    self.begin_batches(requests, &batches, &prompts, settings, (&mut timings, &mut *observer))?;
                refiner.pipeline.end_batches(refiner, requests, begun, settings, (&mut timings, observer))?;
            }
        }
        Ok(timings)
    }

    fn draw_batches(
        &self,
        requests: &[Request],
        batches: &[Range<usize>],
        prompts: &EncodedPrompts,
        settings: &Settings,
        (timings, observer): (&mut Timings, &mut dyn Observer),
    ) -> Result<(), PipelineError> {
        let last = batches.len().saturating_sub(1);
        for (number, range) in batches.iter().enumerate() {
            timed(&mut timings.load, || self.unet.get().and_then(|_| self.autoencoder.get().map(drop)))?;
            go_on(observer, range.start, requests)?;
            let batch = Batch { first: range.start, requests: &requests[range.clone()] };
            let drawn = self.sample_batch(&batch, prompts, settings, None, (&mut *timings, &mut *observer))?;
            let drawn = drawn.ok_or(PipelineError::Stopped { done: range.start, all: requests.len() })?;
            if self.low_memory && number == last {
                self.unet.release();
            }
            self.show(requests, range, &drawn.latents, (&mut *timings, &mut *observer))?;
        }
        Ok(())
    }

    /// The first of two networks' part of all batches, so that both need not be in memory at once.
    fn begin_batches(
        &self,
        requests: &[Request],
        batches: &[Range<usize>],
        prompts: &EncodedPrompts,
        settings: &Settings,
        (timings, observer): (&mut Timings, &mut dyn Observer),
    ) -> Result<Vec<(Range<usize>, Drawn)>, PipelineError> {
        let handover = self.refiner.as_ref().map(|refiner| refiner.start);
        let mut begun = Vec::with_capacity(batches.len());
        for range in batches {
            timed(&mut timings.load, || self.unet.get().map(drop))?;
            go_on(observer, 0, requests)?;
            let batch = Batch { first: range.start, requests: &requests[range.clone()] };
            let drawn = self.sample_batch(&batch, prompts, settings, handover, (&mut *timings, &mut *observer))?;
            begun.push((range.clone(), drawn.ok_or(PipelineError::Stopped { done: 0, all: requests.len() })?));
        }
        if self.low_memory {
            self.unet.release();
        }
        Ok(begun)
    }

    /// The refiner's part of all batches.
    fn end_batches(
        &self,
        refiner: &Refiner,
        requests: &[Request],
        begun: Vec<(Range<usize>, Drawn)>,
        settings: &Settings,
        (timings, observer): (&mut Timings, &mut dyn Observer),
    ) -> Result<(), PipelineError> {
        let prompts = self.prompts_of(requests, settings, timings)?;
        timed(&mut timings.load, || self.unet.get().and_then(|_| self.autoencoder.get().map(drop)))?;
        for (range, drawn) in begun {
            go_on(observer, range.start, requests)?;
            let batch = Batch { first: range.start, requests: &requests[range.clone()] };
            let latents = refiner.refine(&batch, &prompts, settings, drawn, (&mut *timings, &mut *observer))?;
            let latents = latents.ok_or(PipelineError::Stopped { done: range.start, all: requests.len() })?;
            self.show(requests, &range, &latents, (&mut *timings, &mut *observer))?;
        }
        if self.low_memory {
            self.unet.release();
        }
        Ok(())
    }

    /// Decodes the latents of a batch and hands its images to the observer.
    fn show(
        &self,
        requests: &[Request],
        range: &Range<usize>,
        latents: &Tensor<4>,
        (timings, observer): (&mut Timings, &mut dyn Observer),
    ) -> Result<(), PipelineError> {
        for index in range.clone() {
            let latent = latents.clone().narrow(0, index - range.start, 1);
            let pixels = timed(&mut timings.decode, || self.decode(latent))?.squeeze_dim::<3>(0);
            observer.image(&DrawnImage { index, request: &requests[index], pixels: &pixels });
            if !observer.go_on() {
                return Err(PipelineError::Stopped { done: index + 1, all: requests.len() });
            }
        }
        Ok(())
    }

    /// Draws images and returns them, in the order of the requests.
    ///
    /// # Errors
    /// As of [`generate`](Self::generate).
    pub fn images(&self, requests: &[Request], settings: &Settings) -> Result<Vec<RgbImage>, PipelineError> {
        #[derive(Default)]
        struct Collect(Vec<Result<RgbImage, calotype_data::Error>>);
        impl Observer for Collect {
            fn image(&mut self, image: &DrawnImage<'_>) {
                self.0.push(image.to_rgb());
            }
        }
        let mut collected = Collect::default();
        self.generate(requests, settings, &mut collected)?;
        Ok(collected.0.into_iter().collect::<Result<_, _>>()?)
    }

    /// The prompts of requests, encoded; with little memory, the text encoders are gone then.
    fn prompts_of(
        &self,
        requests: &[Request],
        settings: &Settings,
        timings: &mut Timings,
    ) -> Result<EncodedPrompts, PipelineError> {
        timed(&mut timings.load, || self.texts.iter().try_for_each(TextEncoder::read))?;
        let mut prompts: Vec<&str> = Vec::with_capacity(2 * requests.len());
        for request in requests {
            prompts.push(&request.prompt);
            prompts.extend(request.negative.as_deref());
        }
        let encoded = timed(&mut timings.text, || self.encode_prompts(&prompts, &settings.prompts()))?;
        if self.low_memory {
            self.texts.iter().for_each(TextEncoder::release);
        }
        Ok(encoded)
    }
}

/// Asks the observer before a batch whether to go on, with `done` images behind it.
fn go_on(observer: &mut dyn Observer, done: usize, requests: &[Request]) -> Result<(), PipelineError> {
    if observer.go_on() { Ok(()) } else { Err(PipelineError::Stopped { done, all: requests.len() }) }
}

/// A checkpoint without an autoencoder can draw with that of another file.
fn with_other_autoencoder(error: LoadError) -> PipelineError {
    match error {
        LoadError::Layout(error @ LayoutError::NoComponent { .. }) => {
            PipelineError::setting(format!("{error}; or take that of another file or folder with --vae PATH"))
        }
        error => error.into(),
    }
}

/// Requests that are drawn at once.
pub(crate) struct Batch<'a> {
    /// Number of the first among all requests.
    pub first: usize,
    /// The requests.
    pub requests: &'a [Request],
}

impl Batch<'_> {
    /// Their numbers among all requests.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.requests.len()
    }
}
