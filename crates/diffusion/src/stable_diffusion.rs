//! Pictures from a checkpoint: text to image, image to image, inpainting, for every family of Stable Diffusion.
//!
//! Numbers are drawn in the order of diffusers' pipelines, so that with [`NoiseKind::TorchCpu`] the pictures are theirs.

use crate::guidance::{Conditions, GuidedUNet};
use crate::loading::{LoadError, Loader};
use crate::noise::{NoiseKind, PictureNoise};
use crate::objective::Prediction;
use crate::prompts::{Conditioning, Overlong, PromptError, PromptOptions, encode_prompts};
use crate::samplers::{Inpainting, Progress, Run, Sampler, SamplerConfig, SamplerError};
use burn::tensor::{DType, Device, Tensor};
use calotype_models::state::WeightPrecision;
use calotype_models::{Autoencoder, AutoencoderConfig, LatentDistribution, NonFinite, UNet, UNetConfig};
use calotype_weights::layout::{self, Checkpoint, Family};
use calotype_weights::lora::LoraSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What can end a generation.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A network could not be loaded.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// A prompt could not be encoded.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The sampler cannot do it.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The decoded picture is not finite.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// Settings that exclude each other or the checkpoint.
    #[error("{0}")]
    Setting(String),
}

impl From<LoadError> for GenerateError {
    fn from(error: LoadError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl GenerateError {
    /// Whether the settings are at fault, not the work.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Setting(_) | Self::Sampler(_))
    }
}

/// One picture to draw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its number among all pictures of the seed.
    pub number: u64,
    /// What it should show.
    pub prompt: String,
    /// What it should not show; SDXL takes none and an empty one for different things.
    pub negative: Option<String>,
}

/// How pictures are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Width of the picture in pixels; none: what the checkpoint was trained for.
    pub width: Option<usize>,
    /// Height of the picture in pixels.
    pub height: Option<usize>,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 is none. None: 7.5, or 5 for SDXL.
    pub guidance: Option<f32>,
    /// Share of the guidance rescale (Lin et al. 2024), 0 to 1.
    pub guidance_rescale: f64,
    /// The sampler; none: the checkpoint's own.
    pub sampler: Option<SamplerConfig>,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Which generator makes them.
    pub noise: NoiseKind,
    /// Layers of the text encoders to leave out.
    pub clip_skip: usize,
    /// Encode prompts over 75 tokens in several rows.
    pub long_prompts: bool,
    /// Image to image: how much of the picture is drawn anew, 0 to 1.
    pub strength: f64,
    /// Pictures in one batch; they do not depend on it.
    pub batch: usize,
    /// Decode in tiles: less memory for large pictures, other pixels near the seams.
    pub tiled: bool,
    /// SDXL: size that the picture is to look as if it had had, height and width; none: its own.
    pub original_size: Option<[usize; 2]>,
    /// SDXL: top and left of the crop that it is to look like.
    pub crop: [usize; 2],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            width: None,
            height: None,
            steps: 50,
            guidance: None,
            guidance_rescale: 0.0,
            sampler: None,
            seed: 0,
            noise: NoiseKind::default(),
            clip_skip: 0,
            long_prompts: false,
            strength: 0.8,
            batch: 1,
            tiled: false,
            original_size: None,
            crop: [0, 0],
        }
    }
}

/// A picture to begin with, and what of it is drawn anew.
#[derive(Clone, Debug)]
pub struct Start {
    /// `[1, height, width, 3]` in `-1..1`.
    pub picture: Tensor<4>,
    /// `[1, height, width, 1]`, 1 where it is drawn anew; none: everywhere.
    pub mask: Option<Tensor<4>>,
}

/// What a generation needs besides its settings.
pub struct Painter<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Where to compute.
    pub device: &'a Device,
    /// `F32` or `BF16`: type of activations and of the networks' weights.
    pub dtype: DType,
    /// Adapters that are added to the weights.
    pub adapters: Option<&'a LoraSet>,
    /// Standard normal noise to begin with, by number of the picture: `[pictures, height, width, channels]`.
    pub latents: Option<Tensor<4>>,
}

/// What is heard of a generation while it goes on.
pub enum Event<'a> {
    /// A prompt was cut.
    Overlong(&'a Overlong),
    /// A call of the UNet is done.
    Step {
        /// Requests of the batch.
        requests: &'a [Request],
        /// The sampler's report.
        progress: &'a Progress<'a>,
    },
    /// A picture is done: `[height, width, 3]` in `0..1`.
    Picture {
        /// What was asked for.
        request: &'a Request,
        /// Its pixels.
        pixels: &'a Tensor<3>,
    },
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Seconds to read text encoders and encode the prompts.
    pub text: f64,
    /// Seconds to read UNet and autoencoder.
    pub load: f64,
    /// Seconds to encode the picture to begin with.
    pub encode: f64,
    /// Seconds of the sampler.
    pub sample: f64,
    /// Seconds to decode.
    pub decode: f64,
}

/// Adds the time since it was made to a sum when it is dropped.
struct Watch<'a>(Instant, &'a mut f64);

impl<'a> Watch<'a> {
    fn start(sum: &'a mut f64) -> Self {
        Self(Instant::now(), sum)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        *self.1 += Duration::as_secs_f64(&self.0.elapsed());
    }
}

/// The sampler that a checkpoint asks for; without a scheduler configuration, its family's usual one.
///
/// `name` chooses another sampler on the same schedule.
///
/// # Errors
/// [`SamplerError`] for a configuration that is not supported.
pub fn sampler_of(checkpoint: &Checkpoint, name: Option<&str>) -> Result<SamplerConfig, GenerateError> {
    let config = match checkpoint.files().get("scheduler/scheduler_config.json") {
        Some(text) => SamplerConfig::parse_diffusers(text)?,
        None => usual_scheduler(checkpoint.family()),
    };
    let mut sampler = match name {
        Some(name) => SamplerConfig::from_diffusers_as(&config, name)?,
        None => SamplerConfig::from_diffusers(&config)?,
    };
    sampler.prediction = match checkpoint.prediction() {
        Some(layout::Prediction::Epsilon) => Prediction::Epsilon,
        Some(layout::Prediction::V) => Prediction::V,
        Some(layout::Prediction::Sample) => Prediction::Sample,
        None => {
            return Err(GenerateError::Setting(format!(
                "{}: what the UNet predicts is not known ({}); say it with --prediction epsilon or v_prediction",
                checkpoint.path().display(),
                checkpoint.prediction_source()
            )));
        }
    };
    Ok(sampler)
}

/// The scheduler that diffusers' folders of a family hold.
fn usual_scheduler(family: Option<Family>) -> serde_json::Value {
    let class = match family {
        Some(family) if family.is_sdxl() => "EulerDiscreteScheduler",
        Some(family) if family.is_sd2() => "DDIMScheduler",
        _ => "PNDMScheduler",
    };
    let mut config = serde_json::json!({
        "_class_name": class, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "steps_offset": 1, "timestep_spacing": "leading",
    });
    let more = match class {
        "PNDMScheduler" => serde_json::json!({"skip_prk_steps": true, "set_alpha_to_one": false}),
        "DDIMScheduler" => serde_json::json!({"clip_sample": false, "set_alpha_to_one": false}),
        _ => serde_json::json!({}),
    };
    if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
        config.extend(more.clone());
    }
    config
}

/// Networks and settings of one generation.
struct Studio<'a> {
    painter: &'a Painter<'a>,
    settings: &'a Settings,
    sampler: Sampler,
    unet: (UNetConfig, UNet),
    vae: (AutoencoderConfig, Autoencoder),
    guidance: f32,
    /// Height and width of the picture.
    size: [usize; 2],
    texts: Texts,
}

/// All prompts, encoded.
struct Texts {
    encoded: BTreeMap<String, Conditioning>,
    /// Whether SDXL's checkpoint takes zeros where no negative prompt is given.
    zeros_for_none: bool,
}

impl Texts {
    fn empty(&self) -> &Conditioning {
        &self.encoded[""]
    }

    /// What the UNet is told, with and without the prompt, with as many tokens.
    fn of(&self, request: &Request) -> [Conditioning; 2] {
        let with = &self.encoded[&request.prompt];
        let without = match &request.negative {
            None if self.zeros_for_none => &self.empty().zeros(),
            None => self.empty(),
            Some(negative) => &self.encoded[negative],
        };
        let tokens = with.tokens().max(without.tokens());
        [with, without].map(|text| text.padded(self.empty(), tokens))
    }
}

/// Draws pictures.
///
/// # Errors
/// [`GenerateError`]; pictures that were heard of before are good.
pub fn generate(
    painter: &Painter,
    requests: &[Request],
    settings: &Settings,
    start: Option<&Start>,
    hear: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Timings, GenerateError> {
    let mut timings = Timings::default();
    let config = match &settings.sampler {
        Some(config) => config.clone(),
        None => sampler_of(painter.checkpoint, None)?,
    };
    let sampler = Sampler::new(&config, settings.steps)?;
    let loader = Loader {
        checkpoint: painter.checkpoint,
        device: painter.device,
        precision: if painter.dtype == DType::F32 { WeightPrecision::F32 } else { WeightPrecision::Bf16 },
        adapters: painter.adapters,
    };
    let texts = {
        let _watch = Watch::start(&mut timings.text);
        encode_all(&loader, requests, settings, painter.dtype, hear)?
    };
    let studio = {
        let _watch = Watch::start(&mut timings.load);
        Studio::new(painter, settings, sampler, &loader, texts, start)?
    };
    let mut rest = requests;
    while !rest.is_empty() {
        let count = studio.texts.alike(rest).min(settings.batch.max(1));
        let (batch, behind) = rest.split_at(count);
        studio.batch(batch, start, &mut timings, hear)?;
        rest = behind;
    }
    Ok(timings)
}

fn encode_all(
    loader: &Loader,
    requests: &[Request],
    settings: &Settings,
    dtype: DType,
    hear: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Texts, GenerateError> {
    let mut prompts = vec![""];
    for request in requests {
        prompts.push(&request.prompt);
        prompts.extend(request.negative.as_deref());
    }
    let options = PromptOptions { clip_skip: settings.clip_skip, chunked: settings.long_prompts, dtype };
    let (encoded, overlong) = encode_prompts(loader, &prompts, &options)?;
    for overlong in &overlong {
        let _ = hear(Event::Overlong(overlong));
    }
    let index = loader.checkpoint.files().get("model_index.json");
    let index = index.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let recorded = index.and_then(|index| index.get("force_zeros_for_empty_prompt")?.as_bool());
    let usual = loader.checkpoint.family() == Some(Family::SdxlBase);
    Ok(Texts { encoded, zeros_for_none: recorded.unwrap_or(usual) })
}

impl Texts {
    /// How many of the first requests have as many tokens as the very first one.
    fn alike(&self, requests: &[Request]) -> usize {
        let tokens = |request: &Request| self.of(request)[0].tokens();
        requests.iter().take_while(|request| tokens(request) == tokens(&requests[0])).count()
    }
}

impl<'a> Studio<'a> {
    fn new(
        painter: &'a Painter<'a>,
        settings: &'a Settings,
        sampler: Sampler,
        loader: &Loader,
        texts: Texts,
        start: Option<&Start>,
    ) -> Result<Self, GenerateError> {
        let unet = loader.unet()?;
        let vae = loader.autoencoder()?;
        let size = picture_size(settings, painter.checkpoint, &unet.0, &vae.0, start)?;
        let usual = if painter.checkpoint.family().is_some_and(Family::is_sdxl) { 5.0 } else { 7.5 };
        let guidance = settings.guidance.unwrap_or(usual);
        let studio = Self { painter, settings, sampler, unet, vae, guidance, size, texts };
        studio.check(start)?;
        Ok(studio)
    }

    /// Whether the UNet's input channels are what this kind of generation gives it.
    fn check(&self, start: Option<&Start>) -> Result<(), GenerateError> {
        let (channels, latent) = (self.unet.0.in_channels, self.vae.0.latent_channels);
        let masked = start.is_some_and(|start| start.mask.is_some());
        let fault = if channels == latent {
            None
        } else if channels == 2 * latent + 1 {
            (!masked).then_some("is made for inpainting: give a picture with --image and a mask with --mask")
        } else {
            Some("takes another input than noise and a mask, which this command does not make")
        };
        match fault {
            None => Ok(()),
            Some(fault) => Err(GenerateError::Setting(format!(
                "{}: the UNet has {channels} input channels; it {fault}",
                self.painter.checkpoint.path().display()
            ))),
        }
    }

    /// `[height, width, channels]` of a latent.
    fn latent_size(&self) -> [usize; 3] {
        let by = self.vae.0.downscale();
        [self.size[0] / by, self.size[1] / by, self.vae.0.latent_channels]
    }

    fn batch(
        &self,
        requests: &[Request],
        start: Option<&Start>,
        timings: &mut Timings,
        hear: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let numbers: Vec<u64> = requests.iter().map(|request| request.number).collect();
        let noise = PictureNoise::new(self.settings.noise, self.settings.seed, &numbers, self.painter.device);
        let begun = {
            let _watch = Watch::start(&mut timings.encode);
            self.begin(&numbers, start, &noise)?
        };
        let latents = {
            let _watch = Watch::start(&mut timings.sample);
            self.sample(requests, begun, &noise, hear)?
        };
        for (i, request) in requests.iter().enumerate() {
            let pixels = {
                let _watch = Watch::start(&mut timings.decode);
                self.decode(latents.clone().narrow(0, i, 1))?
            };
            if hear(Event::Picture { request, pixels: &pixels }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The first latents, and what stays of a picture.
    fn begin(&self, numbers: &[u64], start: Option<&Start>, noise: &PictureNoise) -> Result<Begun, GenerateError> {
        let (size, count) = (self.latent_size(), numbers.len());
        let Some(start) = start else {
            let x = self.first_noise(numbers, noise)?.mul_scalar(self.sampler.init_noise_sigma());
            return Ok(Begun { x, first: 0, extra: None, inpainting: None });
        };
        let first = self.sampler.first_call(self.settings.strength)?;
        let inpaints = self.unet.0.in_channels != size[2];
        let whole = self.settings.strength >= 1.0;
        let clean = (!(inpaints && whole)).then(|| self.encode(&start.picture, count, noise));
        let fresh = self.first_noise(numbers, noise)?;
        let x = match &clean {
            Some(clean) if !(whole && start.mask.is_some()) => {
                self.sampler.add_noise(clean.clone(), fresh.clone(), first)?
            }
            _ => fresh.clone().mul_scalar(self.sampler.init_noise_sigma()),
        };
        let Some(mask) = &start.mask else {
            return Ok(Begun { x, first, extra: None, inpainting: None });
        };
        let small = nearest(mask, [size[0], size[1]]);
        if !inpaints {
            let inpainting = clean.map(|clean| Inpainting { clean, noise: fresh, mask: small });
            return Ok(Begun { x, first, extra: None, inpainting });
        }
        let stays = mask.clone().mul_scalar(-1.0).add_scalar(1.0);
        let masked = self.encode(&(start.picture.clone() * stays), count, noise);
        let extra = Some(Tensor::cat(vec![repeated(&small, count), masked], 3));
        Ok(Begun { x, first, extra, inpainting: None })
    }

    /// The noise that the pictures are made of: drawn, or given.
    fn first_noise(&self, numbers: &[u64], noise: &PictureNoise) -> Result<Tensor<4>, GenerateError> {
        let size = self.latent_size();
        let Some(latents) = &self.painter.latents else { return Ok(noise.draw(size)) };
        let [count, height, width, channels] = latents.dims();
        let last = numbers.iter().max().map_or(0, |&number| number as usize);
        if [height, width, channels] != size || last >= count {
            let [h, w, c] = size;
            return Err(GenerateError::Setting(format!(
                "the given latents are {count} of {channels} channels, {height} rows and {width} columns; pictures up to number \
                 {last} of {c} channels, {h} rows and {w} columns are needed"
            )));
        }
        let rows = numbers.iter().map(|&number| latents.clone().narrow(0, number as usize, 1));
        Ok(Tensor::cat(rows.collect(), 0))
    }

    /// The scaled latent of a picture, sampled for each of `count` pictures.
    fn encode(&self, picture: &Tensor<4>, count: usize, noise: &PictureNoise) -> Tensor<4> {
        let (config, vae) = &self.vae;
        let picture = picture.clone().cast(self.painter.dtype);
        let moments =
            if self.settings.tiled { vae.encode_tiled(picture, &config.tiling()) } else { vae.encode(picture) };
        let moments = LatentDistribution { moments: repeated(&moments.moments.cast(DType::F32), count) };
        config.scaled(moments.sample(noise.draw(self.latent_size())))
    }

    fn sample(
        &self,
        requests: &[Request],
        begun: Begun,
        noise: &PictureNoise,
        hear: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, GenerateError> {
        let texts: Vec<[Conditioning; 2]> = requests.iter().map(|request| self.texts.of(request)).collect();
        let conditions = |which: usize| {
            let all: Vec<Conditioning> = texts.iter().map(|pair| pair[which].clone()).collect();
            let added = self.unet.0.added.is_some().then(|| Conditioning::added(&all, &self.size_numbers())).flatten();
            Conditions { context: Conditioning::batch(&all), added }
        };
        let (cond, uncond) = (conditions(0), conditions(1));
        self.check_conditions(&cond)?;
        let denoiser = GuidedUNet {
            unet: &self.unet.1,
            cond,
            uncond,
            scale: self.guidance,
            rescale: self.settings.guidance_rescale,
            extra: begun.extra,
            dtype: self.painter.dtype,
        };
        let size = self.latent_size();
        let fresh = |_: usize| noise.draw(size);
        let put_back = |call: usize, latent: Tensor<4>| match &begun.inpainting {
            // The call is one of the sampler's own, for which this cannot fail.
            Some(inpainting) => inpainting.edit(&self.sampler, call, latent.clone()).unwrap_or(latent),
            None => latent,
        };
        let mut progress = |progress: Progress<'_>| hear(Event::Step { requests, progress: &progress });
        let run = Run { first: begun.first, noise: Some(&fresh), edit: Some(&put_back), progress: &mut progress };
        Ok(self.sampler.sample(&denoiser, begun.x, run)?)
    }

    /// Whether the text encoders' states are those that the UNet was trained with.
    fn check_conditions(&self, conditions: &Conditions) -> Result<(), GenerateError> {
        let [batch, _, _] = conditions.context.dims();
        let [height, width, _] = self.latent_size();
        let x = Tensor::zeros([batch, height, width, self.unet.0.in_channels], self.painter.device);
        let times = vec![0.0; batch];
        self.unet.1.check(&x, &times, &conditions.context, conditions.added.as_ref()).map_err(|error| {
            GenerateError::Setting(format!(
                "{}: text encoders and UNet do not fit together: {error}",
                self.painter.checkpoint.path().display()
            ))
        })
    }

    /// SDXL's added numbers: original height and width, top and left of the crop, target height and width.
    fn size_numbers(&self) -> Vec<f32> {
        let original = self.settings.original_size.unwrap_or(self.size);
        [original, self.settings.crop, self.size].concat().into_iter().map(|n| n as f32).collect()
    }

    /// A latent's pixels, `[height, width, 3]` in `0..1`.
    fn decode(&self, latent: Tensor<4>) -> Result<Tensor<3>, GenerateError> {
        let (config, vae) = &self.vae;
        let latent = config.unscaled(latent).cast(self.painter.dtype);
        let tiling = config.tiling();
        let picture = vae.decode_finite(latent, self.settings.tiled.then_some(&tiling))?;
        let picture = picture.cast(DType::F32).div_scalar(2.0).add_scalar(0.5).clamp(0.0, 1.0);
        let [_, height, width, channels] = picture.dims();
        Ok(picture.reshape([height, width, channels]))
    }
}

/// Where sampling begins.
struct Begun {
    x: Tensor<4>,
    first: usize,
    /// Channels behind the latent's that the UNet takes besides it.
    extra: Option<Tensor<4>>,
    inpainting: Option<Inpainting>,
}

/// Height and width of the pictures.
fn picture_size(
    settings: &Settings,
    checkpoint: &Checkpoint,
    unet: &UNetConfig,
    vae: &AutoencoderConfig,
    start: Option<&Start>,
) -> Result<[usize; 2], GenerateError> {
    let own = match start {
        Some(start) => {
            let [_, height, width, _] = start.picture.dims();
            [height, width]
        }
        None => [usual_side(checkpoint, vae); 2],
    };
    let size = match start {
        Some(_) => own,
        None => [settings.height.unwrap_or(own[0]), settings.width.unwrap_or(own[1])],
    };
    let by = vae.downscale() * unet.size_multiple();
    // The UNet halves odd sides by rounding up; only the autoencoder needs whole latents.
    let least = vae.downscale();
    for (name, side) in ["height", "width"].into_iter().zip(size) {
        if side == 0 || side % least != 0 {
            return Err(GenerateError::Setting(format!(
                "a {name} of {side} pixels: sides must be multiples of {least}, and are best multiples of {by}"
            )));
        }
    }
    Ok(size)
}

/// The side of the pictures that the checkpoint was trained with.
fn usual_side(checkpoint: &Checkpoint, vae: &AutoencoderConfig) -> usize {
    let config = checkpoint.component(layout::Component::Unet).map(|unet| unet.config);
    let sample = config.ok().and_then(|config| config.get("sample_size")?.as_u64());
    let usual = match checkpoint.family() {
        Some(family) if family.is_sdxl() => 128,
        Some(Family::Sd2V) => 96,
        _ => 64,
    };
    sample.map_or(usual, |side| side as usize) * vae.downscale()
}

/// A mask in another size, the nearest pixel for each (`interpolate` of torch by default).
fn nearest(mask: &Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [_, rows, columns, _] = mask.dims();
    let index = |to: usize, from: usize| -> Vec<i32> { (0..to).map(|i| (i * from / to) as i32).collect() };
    let device = mask.device();
    let pick = |x: Tensor<4>, axis: usize, index: Vec<i32>| {
        x.select(axis, Tensor::<1, burn::tensor::Int>::from_data(index.as_slice(), &device))
    };
    pick(pick(mask.clone(), 1, index(height, rows)), 2, index(width, columns))
}

/// The same for each picture of a batch.
fn repeated(x: &Tensor<4>, count: usize) -> Tensor<4> {
    let [_, height, width, channels] = x.dims();
    x.clone().expand([count, height, width, channels])
}

/// What a latent looks like, roughly, without the decoder: `[height, width, 3]` in `0..1`, at the latent's size.
///
/// The first three or four channels times a matrix that was fitted to published autoencoders; for previews only.
///
/// # Shapes
/// `latent`: `[1, height, width, 4]`
pub fn preview(latent: Tensor<4>, family: Option<Family>) -> Tensor<3> {
    const STABLE_DIFFUSION: [[f32; 3]; 4] =
        [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]];
    const XL: [[f32; 3]; 4] =
        [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]];
    let matrix = if family.is_some_and(Family::is_sdxl) { XL } else { STABLE_DIFFUSION };
    let [_, height, width, _] = latent.dims();
    let matrix = Tensor::<2>::from_floats(matrix, &latent.device());
    let colours = latent.cast(DType::F32).reshape([height * width, 4]).matmul(matrix);
    colours.reshape([height, width, 3]).div_scalar(2.0).add_scalar(0.5).clamp(0.0, 1.0)
}
