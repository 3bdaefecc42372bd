//! Pictures to moments of latents, or to features.

use super::{EncoderError, Frozen};
use crate::batches::stack;
use burn::tensor::{DType, Device, Tensor};
use calotype_data::image::floats::fit_floats;
use calotype_data::image::{Filter, RgbImage};
use calotype_models::{
    Autoencoder, AutoencoderConfig, ClipConfig, ClipImageEncoder, ImageEncoderConfig, Vit, VitConfig,
};
use calotype_weights::layout::Component;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Mean of the channels, in `0..1`, that CLIP's picture towers were trained with (Radford et al. 2021).
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Their deviation.
const CLIP_DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What kind of network looks at pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PictureKind {
    /// A KL autoencoder's encoder.
    Autoencoder,
    /// A CLIP picture tower.
    Clip,
    /// A ViT classifier.
    Classifier,
}

/// What is taken of a network that looks at pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureOutput {
    /// Moments of an autoencoder, the projected embedding of a CLIP tower (the pooled one where there is no projection),
    /// the class token of a classifier.
    #[default]
    Auto,
    /// Means, then log-variances of the latent, `[2 · latent, height, width]`.
    Moments,
    /// The embedding in the space common with texts, not normalised, `[projection]`.
    Projected,
    /// The normalised state of the class token, `[channels]`.
    Pooled,
    /// The states behind the last layer, class token first, `[1 + patches, channels]`.
    States,
}

/// How a picture becomes the numbers that a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PictureInput {
    /// Side of the square, in pixels: the shorter side is resized to it, and the middle cut out.
    pub side: usize,
    /// Value of level 0 in each channel.
    pub low: [f32; 3],
    /// Value of level 255 in each channel.
    pub high: [f32; 3],
}

impl PictureInput {
    /// Values between `low` and `high` in all channels.
    pub fn in_range(side: usize, low: f32, high: f32) -> Self {
        Self { side, low: [low; 3], high: [high; 3] }
    }

    fn clip(side: usize) -> Self {
        let at = |level: f32| std::array::from_fn(|c| (level - CLIP_MEAN[c]) / CLIP_DEVIATION[c]);
        Self { side, low: at(0.0), high: at(1.0) }
    }

    /// A picture as `[side, side, 3]`, resized with one of Pillow's filters, or without one as torchvision resizes tensors.
    ///
    /// # Errors
    /// Those of resizing.
    pub fn prepare(&self, image: &RgbImage, filter: Option<Filter>) -> Result<Vec<f32>, calotype_data::Error> {
        let Some(filter) = filter else {
            let values = fit_floats(image, self.side)?;
            let span: [f32; 3] = std::array::from_fn(|c| self.high[c] - self.low[c]);
            return Ok(values.iter().enumerate().map(|(i, value)| value * span[i % 3] + self.low[i % 3]).collect());
        };
        let fitted;
        let image = match (image.width(), image.height()) == (self.side, self.side) {
            true => image,
            false => {
                fitted = image.resize_shorter(self.side, filter)?.center_crop(self.side, self.side)?;
                &fitted
            }
        };
        let scale: [f32; 3] = std::array::from_fn(|c| (self.high[c] - self.low[c]) / 255.0);
        let values = image.data().iter().enumerate();
        Ok(values.map(|(i, level)| f32::from(*level) * scale[i % 3] + self.low[i % 3]).collect())
    }
}

enum Model {
    Autoencoder(Box<Frozen<AutoencoderConfig, Autoencoder>>),
    Clip(Frozen<ImageEncoderConfig, ClipImageEncoder>),
    Classifier(Frozen<VitConfig, Vit>),
}

/// A network that looks at pictures. Its weights are read at its first use.
pub struct PictureEncoder {
    model: Model,
    output: PictureOutput,
    input: PictureInput,
    dtype: DType,
    device: Device,
}

impl std::fmt::Debug for PictureEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PictureEncoder").field("facts", &self.facts()).finish()
    }
}

impl PictureEncoder {
    /// Opens the model at `path` without reading its weights into memory. `input` is what an autoencoder takes; the
    /// others take the size and the range that they were trained with.
    ///
    /// # Errors
    /// [`EncoderError`], also if the kind of network does not have the output.
    pub fn open(
        path: &Path,
        kind: PictureKind,
        output: PictureOutput,
        input: PictureInput,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, EncoderError> {
        let model = match kind {
            PictureKind::Autoencoder => Model::Autoencoder(Box::new(Frozen::open(
                path,
                Component::Vae,
                |config: AutoencoderConfig| config,
                AutoencoderConfig::from_diffusers,
                |config, init| config.init(init),
            )?)),
            PictureKind::Clip => Model::Clip(Frozen::open(
                path,
                Component::ImageEncoder,
                |config: ClipConfig| ImageEncoderConfig { vision: config.vision, projection: Some(config.projection) },
                ImageEncoderConfig::from_transformers,
                |config, init| config.init(init),
            )?),
            PictureKind::Classifier => Model::Classifier(Frozen::open(
                path,
                Component::Classifier,
                |config: VitConfig| config,
                VitConfig::from_transformers,
                |config, init| config.init(init),
            )?),
        };
        let encoder =
            Self { output: model.output(output)?, input: model.input(input), model, dtype, device: device.clone() };
        encoder.check_side()?;
        Ok(encoder)
    }

    /// How pictures are prepared for it.
    pub fn input(&self) -> &PictureInput {
        &self.input
    }

    /// What latents are multiplied by for diffusion, if it is an autoencoder that says so.
    pub fn scaling_factor(&self) -> Option<f32> {
        match &self.model {
            Model::Autoencoder(frozen) => frozen.config.scaling_factor,
            _ => None,
        }
    }

    /// BLAKE3 of the weights, see [`Frozen::weights`].
    pub fn weights(&self) -> &str {
        match &self.model {
            Model::Autoencoder(frozen) => &frozen.weights,
            Model::Clip(frozen) => &frozen.weights,
            Model::Classifier(frozen) => &frozen.weights,
        }
    }

    /// What shapes its output, to be recorded.
    pub fn facts(&self) -> Value {
        let config = match &self.model {
            Model::Autoencoder(frozen) => json!(frozen.config),
            Model::Clip(frozen) => json!(frozen.config),
            Model::Classifier(frozen) => json!(frozen.config),
        };
        json!({
            "weights": self.weights(),
            "config": config,
            "output": self.output,
            "input": self.input,
            "precision": self.dtype.name(),
        })
    }

    /// Encodes pictures that were prepared for it: the shape of one output, and the values of all.
    ///
    /// # Errors
    /// [`EncoderError`]: the weights cannot be read, or the pictures do not fit.
    pub fn encode(&mut self, pictures: &[Vec<f32>]) -> Result<(Vec<usize>, Vec<f32>), EncoderError> {
        let side = self.input.side;
        let (device, dtype, output) = (&self.device, self.dtype, self.output);
        let batch: Tensor<4> = stack(pictures.iter().map(Vec::as_slice), &[side, side, 3], dtype, device);
        let misfit = |path: PathBuf| move |source| EncoderError::Input { path, source };
        match &mut self.model {
            Model::Autoencoder(frozen) => {
                Ok(rows_of(frozen.network(device, dtype)?.encode(batch).moments.permute([0, 3, 1, 2])))
            }
            Model::Clip(frozen) => {
                let misfit = misfit(frozen.path.clone());
                let found = frozen.network(device, dtype)?.forward(batch).map_err(misfit)?;
                match (output, found.image_embeds) {
                    (PictureOutput::States, _) => Ok(rows_of(found.last_hidden_state)),
                    (PictureOutput::Projected, Some(projected)) => Ok(rows_of(projected)),
                    _ => Ok(rows_of(found.pooler_output)),
                }
            }
            Model::Classifier(frozen) => {
                let misfit = misfit(frozen.path.clone());
                let states = frozen.network(device, dtype)?.last_hidden_state(batch).map_err(misfit)?;
                match output {
                    PictureOutput::States => Ok(rows_of(states)),
                    _ => {
                        let [pictures, _, channels] = states.dims();
                        Ok(rows_of(states.narrow(1, 0, 1).reshape([pictures, channels])))
                    }
                }
            }
        }
    }

    /// An autoencoder halves pictures several times.
    fn check_side(&self) -> Result<(), EncoderError> {
        let Model::Autoencoder(frozen) = &self.model else { return Ok(()) };
        let side = self.input.side;
        let multiple = frozen.config.downscale();
        if side > 0 && side.is_multiple_of(multiple) {
            return Ok(());
        }
        let problem =
            format!("a resolution of {side} pixels is no multiple of {multiple}, by which it shrinks pictures");
        Err(EncoderError::Output { path: frozen.path.clone(), problem })
    }
}

impl Model {
    fn input(&self, autoencoder: PictureInput) -> PictureInput {
        match self {
            Self::Autoencoder(_) => autoencoder,
            // Training writes towers that take what autoencoders take.
            Self::Clip(frozen) if frozen.checkpoint.is_none() => {
                PictureInput::in_range(frozen.config.vision.image_size, -1.0, 1.0)
            }
            Self::Clip(frozen) => PictureInput::clip(frozen.config.vision.image_size),
            Self::Classifier(frozen) => PictureInput::in_range(frozen.config.image_size, -1.0, 1.0),
        }
    }

    fn output(&self, choice: PictureOutput) -> Result<PictureOutput, EncoderError> {
        let (path, auto, known) = match self {
            Self::Autoencoder(frozen) => (&frozen.path, PictureOutput::Moments, &[PictureOutput::Moments][..]),
            Self::Clip(frozen) if frozen.config.projection.is_some() => (
                &frozen.path,
                PictureOutput::Projected,
                &[PictureOutput::Projected, PictureOutput::Pooled, PictureOutput::States][..],
            ),
            Self::Clip(frozen) => {
                (&frozen.path, PictureOutput::Pooled, &[PictureOutput::Pooled, PictureOutput::States][..])
            }
            Self::Classifier(frozen) => {
                (&frozen.path, PictureOutput::Pooled, &[PictureOutput::Pooled, PictureOutput::States][..])
            }
        };
        match choice {
            PictureOutput::Auto => Ok(auto),
            choice if known.contains(&choice) => Ok(choice),
            choice => {
                let problem = format!("there is no output {choice:?}; there are {known:?}").to_lowercase();
                Err(EncoderError::Output { path: path.clone(), problem })
            }
        }
    }
}

/// The shape of a row, and the values of all rows, as `f32`.
fn rows_of<const D: usize>(tensor: Tensor<D>) -> (Vec<usize>, Vec<f32>) {
    let shape = tensor.dims()[1..].to_vec();
    (shape, calotype_models::state::values_of(tensor.cast(DType::F32)))
}
