//! The settings of an image, as they stand inside its PNG file.

use crate::adapters::AdapterFile;
use crate::contents::Contents;
use crate::error::PipelineError;
use crate::foreign::{self, ForeignRecord};
use crate::images::{StartImage, read_noise};
use crate::noise::NoiseKind;
use crate::prompt_syntax::PromptSyntax;
use crate::request::{Request, Settings};
use burn::tensor::{Device, Tensor};
use calotype_checkpoints::OpenOptions;
use calotype_data::image::DecodeOptions;
use calotype_data::image::text::{PARAMETERS_KEYWORD, Parameters, PngText, SETTINGS_KEYWORD, read_png_text};
use calotype_diffusion::Caching;
use calotype_diffusion::samplers::{ForeignSampler, SamplerConfig};
use calotype_ops::Precision;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything that makes one image what it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// The program's version.
    pub version: String,
    /// The checkpoint.
    pub model: PathBuf,
    /// The options that the checkpoint was opened with.
    #[serde(default)]
    pub opened: OpenOptions,
    /// The image's own part.
    pub request: RecordedRequest,
    /// The settings of all images of its command.
    pub settings: RecordedSettings,
    /// Precision of activations and weights, `f32` or `bf16`.
    pub precision: Precision,
    /// The network that takes over at the end.
    #[serde(default)]
    pub refiner: Option<RecordedRefiner>,
    /// Adapters.
    #[serde(default)]
    pub loras: Vec<AdapterFile>,
    /// True if keys of adapters that fit no parameter are left out.
    #[serde(default)]
    pub lora_allow_unused: bool,
    /// File of the image to begin with.
    #[serde(default)]
    pub image: Option<PathBuf>,
    /// File of its mask.
    #[serde(default)]
    pub mask: Option<PathBuf>,
    /// File of the noise to begin with.
    #[serde(default)]
    pub latents: Option<PathBuf>,
    /// How the image to begin with is decoded; the mask lies upright or as stored with it.
    #[serde(default)]
    pub decode: DecodeOptions,
    /// Hashes of what it is drawn from; empty in images of versions that recorded none.
    #[serde(default, skip_serializing_if = "Contents::is_empty")]
    pub contents: Contents,
}

/// A network that takes over where little noise is left; see [`Refiner`](crate::Refiner).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedRefiner {
    /// The checkpoint.
    pub model: PathBuf,
    /// As of [`Refiner::start`](crate::Refiner::start).
    pub start: f64,
    /// As of [`Refiner::sampler`](crate::Refiner::sampler).
    #[serde(default)]
    pub sampler: Option<SamplerConfig>,
}

/// An image's own part of its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedRequest {
    /// As of [`Request::number`].
    pub number: u64,
    /// As of [`Request::prompt`].
    pub prompt: String,
    /// As of [`Request::negative`].
    pub negative: Option<String>,
}

/// The settings of all images of a command; fields are those of [`Settings`] and [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields of the same names say it")]
pub struct RecordedSettings {
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub steps: usize,
    pub guidance: Option<f32>,
    pub guidance_rescale: f64,
    pub sampler: Option<SamplerConfig>,
    /// As of [`Settings::caching`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caching: Option<Caching>,
    pub seed: u64,
    pub noise: NoiseKind,
    pub clip_skip: usize,
    pub long_prompts: bool,
    /// As of [`Settings::syntax`].
    pub syntax: PromptSyntax,
    pub strength: f64,
    pub batch: usize,
    /// Decoded in tiles.
    pub tiled: bool,
    pub original_size: Option<[usize; 2]>,
    pub crop: [usize; 2],
    pub aesthetic_scores: [f32; 2],
}

impl Default for RecordedSettings {
    fn default() -> Self {
        let (s, request) = (Settings::default(), Request::new(""));
        Self {
            width: s.width,
            height: s.height,
            steps: s.steps,
            guidance: request.guidance,
            guidance_rescale: s.guidance_rescale,
            sampler: s.sampler,
            caching: s.caching,
            seed: request.seed,
            noise: s.noise,
            clip_skip: s.clip_skip,
            long_prompts: s.long_prompts,
            syntax: s.syntax,
            strength: request.strength,
            batch: s.batch,
            tiled: false,
            original_size: s.original_size,
            crop: s.crop,
            aesthetic_scores: s.aesthetic_scores,
        }
    }
}

/// The files that a record names, read.
#[derive(Clone, Debug, Default)]
pub struct RecordedInputs {
    /// The image to begin with.
    pub start: Option<Arc<StartImage>>,
    /// The noise to begin with, by number of the image.
    pub noise: Option<Vec<Tensor<4>>>,
    /// What was changed of the images, in sentences.
    pub notes: Vec<String>,
}

/// The settings inside a PNG file.
#[derive(Clone, Debug)]
pub enum Recorded {
    /// Of an image of `calotype generate`.
    Own(Box<GenerationRecord>),
    /// Of an image of another program, as far as they map.
    Foreign(Box<ForeignRecord>),
}

impl Recorded {
    /// Reads them.
    ///
    /// # Errors
    /// [`PipelineError::Io`] and [`PipelineError::Image`] for a file that is no PNG; [`PipelineError::Record`] if it holds no
    /// settings that are known, or damaged ones.
    pub fn read(path: &Path) -> Result<Self, PipelineError> {
        let bytes = calotype_core::read_input(path).map_err(PipelineError::io("read", path))?;
        let texts = read_png_text(&path.display().to_string(), &bytes)?;
        let wrong = |problem: String| PipelineError::Record { path: path.to_owned(), problem };
        let find = |keyword: &str| texts.iter().find(|text| text.keyword == keyword).map(|text| text.text.as_str());
        if let Some(text) = find(SETTINGS_KEYWORD) {
            let record = serde_json::from_str(text);
            return record.map(Self::Own).map_err(|error| wrong(format!("its settings are damaged: {error}")));
        }
        let filled = |text: &&str| !text.trim().is_empty();
        match (find(PARAMETERS_KEYWORD).filter(filled), find(COMFY_KEYWORD).filter(filled)) {
            (Some(text), _) => Ok(Self::Foreign(Box::new(foreign::a1111::read(text)))),
            (None, Some(text)) => Ok(Self::Foreign(Box::new(foreign::comfy::read(text).map_err(wrong)?))),
            (None, None) => Err(wrong(
                "it holds no settings of `calotype generate`, of AUTOMATIC1111's web interface or of ComfyUI"
                    .to_owned(),
            )),
        }
    }
}

/// Keyword of ComfyUI's settings.
const COMFY_KEYWORD: &str = "prompt";

impl GenerationRecord {
    /// For images of a checkpoint, with the usual settings.
    pub fn new(model: impl Into<PathBuf>, precision: Precision) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            model: model.into(),
            opened: OpenOptions::default(),
            request: RecordedRequest::default(),
            settings: RecordedSettings::default(),
            precision,
            refiner: None,
            loras: Vec::new(),
            lora_allow_unused: false,
            image: None,
            mask: None,
            latents: None,
            decode: DecodeOptions::default(),
            contents: Contents::new(),
        }
    }

    /// The texts that go into the image: this record as JSON, and what people and web interfaces read. The guidance and the
    /// sampler have to be those that were used.
    pub fn texts(&self, pixels: &Tensor<3>) -> Vec<PngText> {
        let [height, width, _] = pixels.dims();
        let (s, negative) = (&self.settings, self.request.negative.as_deref().unwrap_or_default());
        let written = s.sampler.as_ref().and_then(ForeignSampler::written);
        let own = s.sampler.as_ref().map_or("", |sampler| sampler.kind.name());
        let (sampler, schedule) = written.map_or((own, None), |(sampler, schedule)| (sampler, Some(schedule)));
        let seed = s.seed.wrapping_add(self.request.number);
        let prompts = (self.request.prompt.as_str(), negative);
        let guidance = s.guidance.unwrap_or(1.0);
        let mut parameters = Parameters::new(prompts, s.steps, sampler, guidance, seed, (width, height));
        let mut more = |name: &str, value: Option<String>| {
            parameters.settings.extend(value.map(|value| (name.to_owned(), value)));
        };
        more("Schedule type", schedule.map(str::to_owned));
        more("Model", self.model.file_stem().map(|name| name.to_string_lossy().into_owned()));
        more("Clip skip", (s.clip_skip > 0).then(|| (s.clip_skip + 1).to_string()));
        more("Denoising strength", self.image.as_ref().map(|_| s.strength.to_string()));
        more("DeepCache interval", s.caching.map(|caching| caching.interval.to_string()));
        more("DeepCache branch", s.caching.map(|caching| caching.branch.to_string()));
        more("CFG Rescale", (s.guidance_rescale > 0.0).then(|| s.guidance_rescale.to_string()));
        more("RNG", (s.noise == NoiseKind::TorchCpu).then(|| "CPU".to_owned()));
        more("Version", Some(format!("calotype {}", self.version)));
        let text = |keyword: &str, text| PngText { keyword: keyword.into(), text };
        // Records have text keys and finite numbers only, which JSON can hold.
        let json = serde_json::to_string(self).unwrap_or_default();
        vec![text(SETTINGS_KEYWORD, json), text(PARAMETERS_KEYWORD, parameters.to_string())]
    }

    /// Reads the image, mask and noise to begin with.
    ///
    /// # Errors
    /// As of [`StartImage::read`] and [`read_noise`]; [`PipelineError::Setting`] for a mask without an image.
    pub fn read_inputs(&self, device: &Device) -> Result<RecordedInputs, PipelineError> {
        if self.mask.is_some() && self.image.is_none() {
            return Err(PipelineError::setting(
                "--mask says where an image is drawn anew: give the image with --image",
            ));
        }
        let size = [self.settings.height, self.settings.width];
        let start = |path: &PathBuf| StartImage::read(path, self.mask.as_deref(), &self.decode, size, device);
        let start = self.image.as_ref().map(start).transpose()?;
        let (start, notes) = start.map_or((None, Vec::new()), |(start, notes)| (Some(Arc::new(start)), notes));
        Ok(RecordedInputs {
            start,
            notes,
            noise: self.latents.as_deref().map(|path| read_noise(path, device)).transpose()?,
        })
    }

    /// The image to draw.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] if the file of given noise holds none of the image's number.
    pub fn request(&self, inputs: &RecordedInputs) -> Result<Request, PipelineError> {
        let RecordedRequest { number, prompt, negative } = self.request.clone();
        let noise = match &inputs.noise {
            None => None,
            Some(all) => Some(all.get(number as usize).cloned().ok_or_else(|| {
                PipelineError::setting(format!(
                    "--latents: there are {} latents, and none of number {number}",
                    all.len()
                ))
            })?),
        };
        let RecordedSettings { seed, guidance, strength, .. } = self.settings;
        Ok(Request { prompt, negative, seed, number, guidance, start: inputs.start.clone(), strength, noise })
    }

    /// The settings that it is drawn with.
    pub fn settings(&self) -> Settings {
        let s = self.settings.clone();
        Settings {
            width: s.width,
            height: s.height,
            steps: s.steps,
            guidance_rescale: s.guidance_rescale,
            sampler: s.sampler,
            caching: s.caching,
            noise: s.noise,
            clip_skip: s.clip_skip,
            long_prompts: s.long_prompts,
            syntax: s.syntax,
            batch: s.batch,
            original_size: s.original_size,
            crop: s.crop,
            aesthetic_scores: s.aesthetic_scores,
        }
    }
}
