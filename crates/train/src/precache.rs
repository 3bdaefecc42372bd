//! The frozen encoders' outputs as a dataset: moments of pictures and states of captions.

use crate::artifacts::{ArtifactError, load_model, weights_hash};
use crate::batches::{fit, stack, token_ids};
use crate::settings::Precision;
use crate::trainer::BoxError;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use calotype_data::npy::NpyArray;
use calotype_data::precache::SampleEncoder;
use calotype_data::{Dataset, Sample};
use calotype_models::state::values_of;
use calotype_models::tokenizer::Tokens;
use calotype_models::{Autoencoder, AutoencoderConfig, Clip, ClipConfig, ClipTokenizer};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Extension of the autoencoder's moments: `f32`, `[1, 2 * latent, height, width]`, as in MLPerf.
pub const MOMENTS: &str = "npy";
/// Extension of the text tower's states: `f16`, `[tokens, channels]`.
pub const STATES: &str = "states.npy";

/// Encodes a dataset of pictures with captions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecacheRecipe {
    /// Folder of the pictures' dataset.
    pub source: String,
    /// Folder to write.
    pub out: String,
    /// Folder of the autoencoder.
    pub autoencoder: String,
    /// Folder of the CLIP model whose text tower is used.
    pub clip: String,
    /// Side of the pictures in pixels.
    pub resolution: usize,
    /// Samples encoded at a time.
    pub batch_size: usize,
    /// Samples of one shard.
    pub shard_samples: usize,
    /// Precision of the encoders' activations.
    #[serde(default)]
    pub precision: Precision,
}

/// Both encoders, ready to run.
#[derive(Debug)]
pub struct Encoders {
    autoencoder: Autoencoder,
    text: TextEncoder,
    resolution: usize,
    precision: Precision,
    identity: String,
    device: Device,
}

/// A text tower with its tokenizer.
#[derive(Debug)]
pub struct TextEncoder {
    clip: Clip,
    tokenizer: ClipTokenizer,
    device: Device,
}

impl TextEncoder {
    /// Around a loaded model, without autodiff.
    pub fn new(clip: Clip, config: &ClipConfig, device: &Device) -> Self {
        let tokenizer = ClipTokenizer::new(config.text.context_length);
        Self { clip, tokenizer, device: device.clone() }
    }

    /// From a folder of a saved model.
    ///
    /// # Errors
    /// [`ArtifactError`] naming the file.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, ArtifactError> {
        let (clip, config) = load_model(folder, device, ClipConfig::init)?;
        Ok(Self::new(clip.valid(), &config, device))
    }

    /// The model with both towers.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    fn tokens(&self, prompts: &[&str]) -> Vec<Tokens> {
        prompts.iter().map(|prompt| self.tokenizer.encode(prompt)).collect()
    }

    /// Prompts of which some words do not fit the context length.
    pub fn truncated<'a>(&self, prompts: &[&'a str]) -> Vec<&'a str> {
        prompts.iter().copied().filter(|p| self.tokenizer.encode(p).truncated > 0).collect()
    }

    /// The states that condition a UNet, `[prompts, tokens, channels]`.
    pub fn states(&self, prompts: &[&str]) -> Tensor<3> {
        let (ids, _) = token_ids(&self.tokens(prompts), &self.device);
        self.clip.text_model.states(ids, DType::F32)
    }

    /// Unit vectors in CLIP's space, `[prompts, projection]`.
    pub fn features(&self, prompts: &[&str]) -> Tensor<2> {
        let (ids, ends) = token_ids(&self.tokens(prompts), &self.device);
        self.clip.text_features(ids, &ends, DType::F32)
    }
}

impl Encoders {
    /// Loads both encoders that a recipe names.
    ///
    /// # Errors
    /// [`ArtifactError`] naming the file.
    pub fn load(recipe: &PrecacheRecipe, device: &Device) -> Result<Self, ArtifactError> {
        let (autoencoder_folder, clip_folder) = (Path::new(&recipe.autoencoder), Path::new(&recipe.clip));
        let (autoencoder, _) = load_model(autoencoder_folder, device, AutoencoderConfig::init)?;
        let identity = format!(
            "autoencoder {} clip {} resolution {} precision {:?}",
            weights_hash(autoencoder_folder)?,
            weights_hash(clip_folder)?,
            recipe.resolution,
            recipe.precision,
        );
        Ok(Self {
            autoencoder: autoencoder.valid(),
            text: TextEncoder::load(clip_folder, device)?,
            resolution: recipe.resolution,
            precision: recipe.precision,
            identity,
            device: device.clone(),
        })
    }

    /// The encoder of captions.
    pub fn text(&self) -> &TextEncoder {
        &self.text
    }

    fn moments(&self, batch: &[Sample]) -> Result<Vec<NpyArray>, BoxError> {
        let pixels = batch
            .iter()
            .map(|sample| {
                let image = calotype_data::image::RgbImage::decode(&sample.key, sample.part("png")?)?;
                Ok(fit(image, self.resolution)?)
            })
            .collect::<Result<Vec<_>, BoxError>>()?;
        let side = self.resolution;
        let rows = pixels.iter().map(Vec::as_slice);
        let pictures: Tensor<4> = stack(rows, &[side, side, 3], self.precision.dtype(&self.device), &self.device);
        let moments = self.autoencoder.encode(pictures).moments.cast(DType::F32).permute([0, 3, 1, 2]);
        let [_, channels, height, width] = moments.dims();
        let values = values_of(moments);
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let key = &batch[i / (channels * height * width)].key;
            return Err(format!("the autoencoder's moments of sample `{key}` are not finite").into());
        }
        values
            .chunks_exact(channels * height * width)
            .map(|row| Ok(NpyArray::from_f32(&[1, channels, height, width], row.to_vec())?))
            .collect()
    }

    fn states(&self, batch: &[Sample]) -> Result<Vec<NpyArray>, BoxError> {
        let captions =
            batch.iter().map(|sample| Ok(sample.text("txt")?.trim())).collect::<Result<Vec<_>, BoxError>>()?;
        let states = self.text.states(&captions);
        let [_, tokens, channels] = states.dims();
        values_of(states)
            .chunks_exact(tokens * channels)
            .map(|row| Ok(NpyArray::f16_from_f32(&[tokens, channels], row)?))
            .collect()
    }
}

impl SampleEncoder for Encoders {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn encode(&mut self, batch: &[Sample]) -> Result<Vec<Sample>, BoxError> {
        let (moments, states) = (self.moments(batch)?, self.states(batch)?);
        batch
            .iter()
            .zip(moments.iter().zip(&states))
            .map(|(sample, (moments, states))| {
                Ok(Sample::new(sample.key.clone())
                    .with("txt", sample.part("txt")?)
                    .with(MOMENTS, moments.to_bytes())
                    .with(STATES, states.to_bytes()))
            })
            .collect()
    }
}

/// Samples whose means the latents' deviation is measured on.
const MEASURED: usize = 4096;

/// One over the standard deviation of a precached dataset's latent means, so that scaled latents have deviation one
/// (Rombach et al. 2022, appendix G); 0.18215 in Stable Diffusion.
///
/// # Errors
/// Those of reading samples.
pub fn measure_scale_factor(dataset: &Dataset) -> Result<f64, BoxError> {
    let step = dataset.len().div_ceil(MEASURED).max(1);
    let (mut sum, mut squares, mut count) = (0f64, 0f64, 0f64);
    for i in (0..dataset.len()).step_by(step) {
        let moments = dataset.get(i)?.array(MOMENTS)?.to_f32()?;
        for &value in &moments[..moments.len() / 2] {
            sum += f64::from(value);
            squares += f64::from(value).powi(2);
            count += 1.0;
        }
    }
    let mean = sum / count;
    Ok(1.0 / (squares / count - mean * mean).max(1e-12).sqrt())
}
