//! The settings of an image, as they stand inside its PNG file.

use crate::adapters::AdapterFile;
use crate::error::PipelineError;
use crate::images::{StartImage, read_noise};
use crate::noise::NoiseKind;
use crate::request::{Request, Settings};
use burn::tensor::{Device, Tensor};
use calotype_checkpoints::OpenOptions;
use calotype_data::image::text::{PARAMETERS_KEYWORD, Parameters, PngText, SETTINGS_KEYWORD, read_png_text};
use calotype_diffusion::samplers::SamplerConfig;
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
    pub seed: u64,
    pub noise: NoiseKind,
    pub clip_skip: usize,
    pub long_prompts: bool,
    pub strength: f64,
    pub batch: usize,
    /// Decoded in tiles.
    pub tiled: bool,
    pub original_size: Option<[usize; 2]>,
    pub crop: [usize; 2],
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
            seed: request.seed,
            noise: s.noise,
            clip_skip: s.clip_skip,
            long_prompts: s.long_prompts,
            strength: request.strength,
            batch: s.batch,
            tiled: false,
            original_size: s.original_size,
            crop: s.crop,
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
}

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
            loras: Vec::new(),
            lora_allow_unused: false,
            image: None,
            mask: None,
            latents: None,
        }
    }

    /// The record inside a PNG file.
    ///
    /// # Errors
    /// [`PipelineError::Io`] and [`PipelineError::Image`] for a file that is no PNG; [`PipelineError::Record`] if it holds no
    /// settings, or damaged ones.
    pub fn read(path: &Path) -> Result<Self, PipelineError> {
        let bytes = std::fs::read(path).map_err(PipelineError::io("read", path))?;
        let texts = read_png_text(&path.display().to_string(), &bytes)?;
        let wrong = |problem: String| PipelineError::Record { path: path.to_owned(), problem };
        let text = texts.iter().find(|text| text.keyword == SETTINGS_KEYWORD);
        let text = text.ok_or_else(|| wrong("it holds no settings of `calotype generate`".to_owned()))?;
        serde_json::from_str(&text.text).map_err(|error| wrong(format!("its settings are damaged: {error}")))
    }

    /// The texts that go into the image: this record as JSON, and what people and web interfaces read.
    pub fn texts(&self, pixels: &Tensor<3>) -> Vec<PngText> {
        let [height, width, _] = pixels.dims();
        let (s, negative) = (&self.settings, self.request.negative.as_deref().unwrap_or_default());
        let sampler = s.sampler.as_ref().map_or("", |sampler| sampler.kind.name());
        let guidance = f64::from(s.guidance.unwrap_or_default());
        let seed = s.seed.wrapping_add(self.request.number);
        let prompts = (self.request.prompt.as_str(), negative);
        let parameters = Parameters::new(prompts, s.steps, sampler, guidance, seed, (width, height));
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
        let start = |path: &PathBuf| StartImage::read(path, self.mask.as_deref(), size, device).map(Arc::new);
        Ok(RecordedInputs {
            start: self.image.as_ref().map(start).transpose()?,
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
            noise: s.noise,
            clip_skip: s.clip_skip,
            long_prompts: s.long_prompts,
            batch: s.batch,
            original_size: s.original_size,
            crop: s.crop,
        }
    }
}
