//! A frozen autoencoder that runs in training: images of a batch to moments of their latents.

use crate::config::{SettingError, check};
use crate::inputs::InputSettings;
use crate::stages::StageError;
use crate::task::BoxError;
use crate::tasks::diffusion::DiffusionRecipe;
use burn::tensor::Device;
use calotype_checkpoints::{Checkpoint, Component, SCALE_UNKNOWN};
use calotype_models::AutoencoderConfig;
use calotype_pipeline::encoders::{EncoderError, ImageEncoder, ImageEncoderKind, ImageOutput};
use std::path::Path;

/// Pixels that are encoded at once; more images of them than one go together. The encoder's first activations take 1 GB
/// for as many in `f32`, and its results do not depend on it.
const PIXELS_AT_ONCE: usize = 512 * 512;

/// An autoencoder's encoder, without gradients, in the precision of the run. Its weights are read at the first use.
#[derive(Debug)]
pub struct FrozenAutoencoder {
    encoder: ImageEncoder,
    config: AutoencoderConfig,
    /// What latents are multiplied by, where its checkpoint says it.
    scale_factor: Option<f64>,
}

impl FrozenAutoencoder {
    /// The one that a recipe's key `autoencoder` names, for images of `inputs.resolution`; none for a recipe without that.
    ///
    /// # Errors
    /// [`StageError::Setting`] for a recipe that names none, or says where moments are besides; [`StageError::Encoder`] for a
    /// path that is no autoencoder, or a resolution that it cannot shrink.
    pub fn of(recipe: &DiffusionRecipe, device: &Device) -> Result<Option<Self>, StageError> {
        let inputs = &recipe.inputs;
        let Some(side) = inputs.resolution else {
            check(inputs.input_range == Default::default(), "inputs.input_range", || {
                "is of images that are encoded during training, and moments are precached: set it in the precache recipe, or set \
                 inputs.resolution"
                    .to_owned()
            })?;
            return Ok(None);
        };
        check(inputs.moments == InputSettings::default().moments, "inputs.moments", || {
            "names precached moments, and inputs.resolution asks for images to be encoded: remove one of both"
                .to_owned()
        })?;
        let path = recipe.autoencoder.as_ref().ok_or_else(|| SettingError {
            key: "autoencoder",
            problem:
                "is not set, and inputs.resolution asks for images to be encoded during training: set the path of its \
                      checkpoint"
                    .to_owned(),
        })?;
        let (path, dtype) = (Path::new(path), recipe.run.precision.dtype(device));
        let (kind, input) = (ImageEncoderKind::Autoencoder, inputs.input_range.of(side));
        let encoder = ImageEncoder::open(path, kind, ImageOutput::Moments, input, dtype, device)?;
        let config = encoder.autoencoder().cloned().ok_or_else(|| SettingError {
            key: "autoencoder",
            problem: format!("{} is no autoencoder", path.display()),
        })?;
        let scale_factor = scale_factor(path, &encoder)?;
        Ok(Some(Self { encoder, config, scale_factor }))
    }

    /// `[height, width, channels]` of its latents.
    pub fn latent(&self) -> [usize; 3] {
        let side = self.side() / self.config.downscale();
        [side, side, self.config.latent_channels]
    }

    /// Side of the images in pixels.
    pub fn side(&self) -> usize {
        self.encoder.input().side
    }

    /// What latents are multiplied by, where its checkpoint says it.
    pub fn scale_factor(&self) -> Option<f64> {
        self.scale_factor
    }

    /// BLAKE3 of its tensors, in hexadecimal.
    pub fn weights(&self) -> &str {
        self.encoder.weights()
    }

    /// Moments of images, `[side, side, 3]` each: means, then log-variances, `[2 · channels, height, width]`. The bits of an image's
    /// moments depend on it alone, and are those that precaching in the same precision writes as `f32`.
    ///
    /// # Errors
    /// [`EncoderError`] if the weights cannot be read; a message if a number is not finite.
    pub fn moments(&self, images: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, BoxError> {
        let at_once = (PIXELS_AT_ONCE / self.side().pow(2).max(1)).max(1);
        let mut moments = Vec::with_capacity(images.len());
        for some in images.chunks(at_once) {
            let (shape, values) = self.encoder.encode(some)?;
            moments.extend(values.chunks_exact(shape.iter().product::<usize>().max(1)).map(<[f32]>::to_vec));
        }
        match moments.iter().flatten().all(|value| value.is_finite()) {
            true => Ok(moments),
            false => Err(
                "the autoencoder gave moments that are not finite: check its weights, or take run.precision = \"f32\""
                    .into(),
            ),
        }
    }
}

/// The factor that a checkpoint's configuration says, unless it is marked as unknown.
fn scale_factor(path: &Path, encoder: &ImageEncoder) -> Result<Option<f64>, EncoderError> {
    let Some(scale) = encoder.scaling_factor() else { return Ok(None) };
    let config = Checkpoint::open(path)?.component(Component::Vae)?.config;
    Ok(config.get(SCALE_UNKNOWN).is_none().then_some(f64::from(scale)))
}
