//! Training of the KL autoencoder (Rombach et al. 2022, appendix G, without the adversary).

use crate::config::{SettingError, check, training_recipe};
use crate::export;
use crate::images::{Images, images_of};
use crate::sources::open_source;
use crate::stages::{StageContext, StageError};
use crate::task::{BoxError, Decoder, Loss, StepContext, Task};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::Component;
use calotype_core::{Purpose, Stream};
use calotype_data::Batch;
use calotype_data::image::RgbImage;
use calotype_models::{Autoencoder, AutoencoderConfig, ConfigError, Init};
use calotype_ops::mean_squared_error;
use calotype_pipeline::batches::stack;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Distance of image and reconstruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconstruction {
    /// Mean absolute difference.
    L1,
    /// Mean squared difference.
    L2,
}

/// The autoencoder's loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderObjective {
    /// Side of the square images in pixels.
    pub resolution: usize,
    /// Distance of image and reconstruction.
    pub reconstruction: Reconstruction,
    /// Weight of the divergence (nats per latent element) from the standard normal.
    pub kl_weight: f64,
}

training_recipe! {
    /// Training of the KL autoencoder on images.
    AutoencoderRecipe {
        /// The autoencoder.
        model: AutoencoderConfig,
        /// Its loss.
        objective: AutoencoderObjective,
    }
}

/// An image and the noise that its latent is drawn with.
#[derive(Debug)]
pub struct NoisedImage {
    pixels: Vec<f32>,
    noise: Vec<f32>,
}

/// Images of a preview.
const PREVIEWED: usize = 4;

/// Reconstruction plus weighted divergence.
#[derive(Debug)]
pub struct AutoencoderTask {
    recipe: AutoencoderRecipe,
    images: Images,
    device: Device,
}

impl AutoencoderTask {
    fn side(&self) -> usize {
        self.recipe.objective.resolution
    }

    /// `[height, width, channels]` of the latent.
    fn latent(&self) -> [usize; 3] {
        let side = self.side() / self.recipe.model.downscale();
        [side, side, self.recipe.model.latent_channels]
    }
}

impl Task for AutoencoderTask {
    const KIND: &'static str = "autoencoder";
    const ABOUT: &'static str = "a KL autoencoder on images";

    type Recipe = AutoencoderRecipe;
    type Model = Autoencoder;
    type Item = NoisedImage;

    fn check(recipe: &AutoencoderRecipe) -> Result<(), SettingError> {
        let (side, multiple) = (recipe.objective.resolution, recipe.model.downscale());
        check(side > 0 && side.is_multiple_of(multiple), "objective.resolution", || {
            format!("{side} is not a multiple of {multiple}, by which this model shrinks images")
        })?;
        check(recipe.objective.kl_weight >= 0.0, "objective.kl_weight", || "is negative".to_owned())
    }

    fn open(recipe: &AutoencoderRecipe, context: &StageContext<'_>) -> Result<Self, StageError> {
        let images = Images::new(&recipe.data, recipe.objective.resolution, recipe.run.seed)?;
        Ok(Self { recipe: recipe.clone(), images, device: context.device.clone() })
    }

    fn model(&self, init: &mut Init<'_>) -> Result<Autoencoder, ConfigError> {
        self.recipe.model.init(init)
    }

    fn component(&self) -> Component {
        Component::Vae
    }

    fn decoder(&self) -> Decoder<NoisedImage> {
        let seed = self.recipe.run.seed;
        let latent = self.latent().iter().product();
        let images = self.images.clone();
        Box::new(move |position, sample| -> Result<NoisedImage, BoxError> {
            let mut noise = vec![0f32; latent];
            Stream::new(seed, Purpose::LatentPosterior, position).fill_normal(&mut noise);
            Ok(NoisedImage { pixels: images.read(position, sample)?, noise })
        })
    }

    fn loss(&self, model: &Autoencoder, batch: Batch<NoisedImage>, step: &StepContext<'_>) -> Result<Loss, BoxError> {
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let pixels = batch.items.iter().map(|item| item.pixels.as_slice());
        let images: Tensor<4> = stack(pixels, &[self.side(), self.side(), 3], dtype, &self.device);
        let noise = batch.items.iter().map(|item| item.noise.as_slice());
        let noise: Tensor<4> = stack(noise, &self.latent(), dtype, &self.device);
        step.record_images("sample", &images);
        step.record_images("noise", &noise);
        let distribution = model.encode(images.clone());
        let decoded = model.decode(distribution.sample(noise));
        let reconstruction = match self.recipe.objective.reconstruction {
            Reconstruction::L2 => mean_squared_error(decoded, images),
            Reconstruction::L1 => (decoded.cast(DType::F32) - images.cast(DType::F32)).abs().mean(),
        };
        let kl = distribution.kl();
        let part = |t: &Tensor<1>| f64::from(t.clone().inner().into_scalar::<f32>());
        let parts = vec![("reconstruction", part(&reconstruction)), ("kl", part(&kl))];
        Ok(Loss { value: reconstruction + kl.mul_scalar(self.recipe.objective.kl_weight), parts })
    }

    fn export(&self, model: &Autoencoder, folder: &Path) -> Result<Vec<String>, StageError> {
        export::autoencoder(model, &self.recipe.model, self.side(), folder)
    }

    /// The first images of the dataset, each above its reconstruction.
    fn preview(&self, model: &Autoencoder) -> Result<Vec<(String, RgbImage)>, BoxError> {
        let dataset = open_source(&self.recipe.data, None)?;
        let read = |number: usize| self.images.read(number as u64, &dataset.get(number)?.sample());
        let first = (0..dataset.len().min(PREVIEWED)).map(read).collect::<Result<Vec<_>, _>>()?;
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let rows = first.iter().map(Vec::as_slice);
        let images: Tensor<4> = stack(rows, &[self.side(), self.side(), 3], dtype, &self.device);
        let decoded = model.decode(model.encode(images.clone()).mean());
        let both = Tensor::cat(vec![images.cast(DType::F32), decoded.cast(DType::F32)], 1);
        let named = |(number, image)| (format!("reconstruction/{number}"), image);
        Ok(images_of(both)?.into_iter().enumerate().map(named).collect())
    }
}
