//! Images to moments of latents, or to features.

use super::{EncoderError, open_network};
use crate::batches::stack;
use crate::network::{Network, Placement};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::{Checkpoint, Component, ImageProcessor};
use calotype_data::image::floats::fit_floats;
use calotype_data::image::{Filter, RgbImage};
use calotype_models::{AutoencoderConfig, ImageEncoderConfig, VitConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Kinds of networks that look at images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageEncoderKind {
    /// A KL autoencoder's encoder.
    Autoencoder,
    /// A CLIP image tower.
    Clip,
    /// A ViT classifier.
    Classifier,
}

/// The output that is taken of a network that looks at images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageOutput {
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

/// Size and normalisation of a network's input.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ImageInput {
    /// Side of the square, in pixels: the shorter side is resized to it, and the middle cut out.
    pub side: usize,
    /// Value of level 0 in each channel.
    pub low: [f32; 3],
    /// Value of level 255 in each channel.
    pub high: [f32; 3],
}

impl ImageInput {
    /// Values between `low` and `high` in all channels.
    pub fn in_range(side: usize, low: f32, high: f32) -> Self {
        Self { side, low: [low; 3], high: [high; 3] }
    }

    /// Values normalised by mean and deviation of the channels, both of levels as 0 to 1.
    pub fn normalised(side: usize, mean: [f32; 3], deviation: [f32; 3]) -> Self {
        let at = |level: f32| std::array::from_fn(|c| (level - mean[c]) / deviation[c]);
        Self { side, low: at(0.0), high: at(1.0) }
    }

    /// With the checkpoint's own normalisation, or where it says none, the usual one of its kind.
    fn of(checkpoint: &Checkpoint, usual: ImageProcessor, side: usize) -> Result<Self, EncoderError> {
        let processor = checkpoint.image_processor()?.unwrap_or(usual);
        Ok(Self::normalised(side, processor.mean, processor.std))
    }

    /// An image as `[side, side, 3]`, resized with one of Pillow's filters, or without one as torchvision resizes tensors.
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
    Autoencoder(Box<Network<AutoencoderConfig>>),
    Clip(Network<ImageEncoderConfig>),
    Classifier(Network<VitConfig>),
}

/// A network that looks at images. Its weights are read at its first use.
pub struct ImageEncoder {
    model: Model,
    output: ImageOutput,
    input: ImageInput,
    dtype: DType,
    device: Device,
    weights: String,
}

impl std::fmt::Debug for ImageEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ImageEncoder").field("facts", &self.facts()).finish()
    }
}

impl ImageEncoder {
    /// Opens the model at `path` without reading its weights into memory; they are hashed. `input` is what an autoencoder
    /// takes; the others take the size and the range that they were trained with, which for CLIP stands in
    /// `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`EncoderError`]: the path is no model of this kind, or the kind does not have the output.
    pub fn open(
        path: &Path,
        kind: ImageEncoderKind,
        output: ImageOutput,
        input: ImageInput,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, EncoderError> {
        let placement = Placement { device: device.clone(), dtype, adapters: None };
        let (model, weights, input) = match kind {
            ImageEncoderKind::Autoencoder => {
                let (network, _) = open_network::<AutoencoderConfig>(path, Component::Vae, &placement)?;
                let weights = network.hash()?;
                (Model::Autoencoder(Box::new(network)), weights, input)
            }
            ImageEncoderKind::Clip => {
                let (network, checkpoint) =
                    open_network::<ImageEncoderConfig>(path, Component::ImageEncoder, &placement)?;
                let side = network.config().vision.image_size;
                let input = ImageInput::of(&checkpoint, ImageProcessor::clip(side), side)?;
                let weights = network.hash()?;
                (Model::Clip(network), weights, input)
            }
            ImageEncoderKind::Classifier => {
                let (network, checkpoint) = open_network::<VitConfig>(path, Component::Classifier, &placement)?;
                let (weights, side) = (network.hash()?, network.config().image_size);
                let input = ImageInput::of(&checkpoint, ImageProcessor::vit(side), side)?;
                (Model::Classifier(network), weights, input)
            }
        };
        let encoder = Self { output: model.output(output)?, input, model, dtype, device: device.clone(), weights };
        encoder.check_side()?;
        Ok(encoder)
    }

    /// Size and normalisation of its input.
    pub fn input(&self) -> &ImageInput {
        &self.input
    }

    /// The factor of latents for diffusion, if it is an autoencoder that says one.
    pub fn scaling_factor(&self) -> Option<f32> {
        match &self.model {
            Model::Autoencoder(network) => network.config().scaling_factor,
            _ => None,
        }
    }

    /// The configuration of the autoencoder, if it is one.
    pub fn autoencoder(&self) -> Option<&AutoencoderConfig> {
        match &self.model {
            Model::Autoencoder(network) => Some(network.config()),
            _ => None,
        }
    }

    /// BLAKE3, in hexadecimal, of the tensors' names, types, shapes and elements: the same in every layout of checkpoints that
    /// stores the elements unchanged.
    pub fn weights(&self) -> &str {
        &self.weights
    }

    /// Everything that its output depends on, for records.
    pub fn facts(&self) -> Value {
        let config = match &self.model {
            Model::Autoencoder(network) => json!(network.config()),
            Model::Clip(network) => json!(network.config()),
            Model::Classifier(network) => json!(network.config()),
        };
        json!({
            "weights": self.weights(),
            "config": config,
            "output": self.output,
            "input": self.input,
            "precision": self.dtype.name(),
        })
    }

    /// Encodes images that were prepared for it: the shape of one output, and the values of all.
    ///
    /// # Errors
    /// [`EncoderError`]: the weights cannot be read, or the images do not fit.
    pub fn encode(&self, images: &[Vec<f32>]) -> Result<(Vec<usize>, Vec<f32>), EncoderError> {
        let side = self.input.side;
        let (device, dtype, output) = (&self.device, self.dtype, self.output);
        let batch: Tensor<4> = stack(images.iter().map(Vec::as_slice), &[side, side, 3], dtype, device);
        let misfit = |path: &Path, component| {
            let path = path.to_owned();
            move |source| EncoderError::Input { path, component, source }
        };
        match &self.model {
            Model::Autoencoder(network) => Ok(rows_of(network.get()?.encode(batch).moments.permute([0, 3, 1, 2]))),
            Model::Clip(network) => {
                let misfit = misfit(network.path(), Component::ImageEncoder);
                let found = network.get()?.forward(batch).map_err(misfit)?;
                match (output, found.image_embeds) {
                    (ImageOutput::States, _) => Ok(rows_of(found.last_hidden_state)),
                    (ImageOutput::Projected, Some(projected)) => Ok(rows_of(projected)),
                    _ => Ok(rows_of(found.pooler_output)),
                }
            }
            Model::Classifier(network) => {
                let misfit = misfit(network.path(), Component::Classifier);
                let network = network.get()?;
                let states = network.last_hidden_state(batch).map_err(misfit)?;
                match output {
                    ImageOutput::States => Ok(rows_of(states)),
                    _ => Ok(rows_of(network.read(states))),
                }
            }
        }
    }

    /// An autoencoder halves images several times.
    fn check_side(&self) -> Result<(), EncoderError> {
        let Model::Autoencoder(network) = &self.model else { return Ok(()) };
        let side = self.input.side;
        let multiple = network.config().downscale();
        if side > 0 && side.is_multiple_of(multiple) {
            return Ok(());
        }
        let problem = format!("a resolution of {side} pixels is no multiple of {multiple}, by which it shrinks images");
        Err(EncoderError::Output { path: network.path().to_owned(), problem })
    }
}

impl Model {
    fn output(&self, choice: ImageOutput) -> Result<ImageOutput, EncoderError> {
        let (path, auto, known) = match self {
            Self::Autoencoder(network) => (network.path(), ImageOutput::Moments, &[ImageOutput::Moments][..]),
            Self::Clip(network) if network.config().projection.is_some() => (
                network.path(),
                ImageOutput::Projected,
                &[ImageOutput::Projected, ImageOutput::Pooled, ImageOutput::States][..],
            ),
            Self::Clip(network) => {
                (network.path(), ImageOutput::Pooled, &[ImageOutput::Pooled, ImageOutput::States][..])
            }
            Self::Classifier(network) => {
                (network.path(), ImageOutput::Pooled, &[ImageOutput::Pooled, ImageOutput::States][..])
            }
        };
        match choice {
            ImageOutput::Auto => Ok(auto),
            choice if known.contains(&choice) => Ok(choice),
            choice => {
                let problem = format!("there is no output {choice:?}; there are {known:?}").to_lowercase();
                Err(EncoderError::Output { path: path.to_owned(), problem })
            }
        }
    }
}

/// The shape of a row, and the values of all rows, as `f32`.
fn rows_of<const D: usize>(tensor: Tensor<D>) -> (Vec<usize>, Vec<f32>) {
    let shape = tensor.dims()[1..].to_vec();
    (shape, calotype_models::state::values_of(tensor.cast(DType::F32)))
}
