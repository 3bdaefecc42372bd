//! Training of the KL autoencoder (Rombach et al. 2022, appendix G, without the adversary).

use crate::config::sizes::{MOST_RESNETS, MOST_SIDE, check_blocks, check_extents, check_levels};
use crate::config::{Augment, DataSettings, SettingError, check, training_recipe};
use crate::export;
use crate::hooks::PreviewSettings;
use crate::images::{Images, images_of};
use crate::precache::{Deviation, evenly_spread};
use crate::sources::open_source;
use crate::stages::{StageContext, StageError};
use crate::task::{BoxError, Decoder, Loss, StepContext, Task};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::{Component, Export, Placement};
use calotype_core::{Purpose, Stream};
use calotype_data::Batch;
use calotype_data::image::RgbImage;
use calotype_models::state::values_of;
use calotype_models::{Autoencoder, AutoencoderConfig, ConfigError, Init};
use calotype_ops::mean_squared_error;
use calotype_pipeline::batches::stack;
use serde::{Deserialize, Serialize};
use std::ops::Range;
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
/// Images that the scaling factor is measured on.
const MEASURED: usize = 1024;

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

impl AutoencoderTask {
    /// One over the standard deviation of the latents' means, so that scaled latents have deviation one (Rombach et al. 2022,
    /// appendix G), over [`MEASURED`] images evenly spread over the dataset, or all if there are fewer. They are cut out in
    /// the middle and not mirrored, as precaching does it, so that the number depends on weights and dataset alone. None
    /// if it is no number that latents can be multiplied by.
    fn measured_scale(&self, model: &Autoencoder, notes: &mut Vec<String>) -> Result<Option<f64>, StageError> {
        let dataset = open_source(&self.recipe.data, None)?;
        let augment = Augment { filter: self.recipe.data.augment.filter, ..Augment::default() };
        let images = Images::new(&DataSettings { augment, ..self.recipe.data.clone() }, self.side(), 0)?;
        let numbers = evenly_spread(dataset.len(), MEASURED);
        let (mut deviation, mut unreadable) = (Deviation::default(), 0);
        for numbers in numbers.chunks(self.recipe.run.batch_size) {
            let mut rows = Vec::with_capacity(numbers.len());
            for &number in numbers {
                match dataset.get(number) {
                    // What cannot be decoded must not undo a training that went round it.
                    Ok(held) => rows.extend(images.read(0, &held.sample()).map_err(|_| unreadable += 1)),
                    Err(error) if error.concerns_one_sample() => unreadable += 1,
                    Err(error) => return Err(error.into()),
                }
            }
            if !rows.is_empty() {
                let dtype = self.recipe.run.precision.dtype(&self.device);
                let shape = [self.side(), self.side(), 3];
                let means = model.encode(stack(rows.iter().map(Vec::as_slice), &shape, dtype, &self.device)).mean();
                deviation.add(&values_of(means));
            }
        }
        if unreadable > 0 {
            let all = numbers.len();
            notes.push(format!(
                "the scaling factor is measured without {unreadable} of {all} images that cannot be read"
            ));
        }
        let scale = deviation.scale();
        if scale.is_none() {
            notes.push("the latents do not differ, so that no scaling factor could be measured".to_owned());
        }
        Ok(scale)
    }
}

impl Task for AutoencoderTask {
    const KIND: &'static str = "autoencoder";
    const ABOUT: &'static str = "a KL autoencoder on images";

    type Recipe = AutoencoderRecipe;
    type Model = Autoencoder;
    type Item = NoisedImage;

    fn check(recipe: &AutoencoderRecipe) -> Result<(), SettingError> {
        recipe.data.augment.check_range()?;
        let (side, multiple) = (recipe.objective.resolution, recipe.model.downscale());
        check(side <= MOST_SIDE, "objective.resolution", || format!("is {side}; it takes at most {MOST_SIDE} pixels"))?;
        check(side > 0 && side.is_multiple_of(multiple), "objective.resolution", || {
            format!("{side} is not a multiple of {multiple}, by which this model shrinks images")
        })?;
        check(recipe.model.in_channels == 3, "model.in_channels", || {
            format!("is {}, and images have 3 channels", recipe.model.in_channels)
        })?;
        check(recipe.objective.kl_weight >= 0.0, "objective.kl_weight", || "is negative".to_owned())?;
        recipe.hooks.preview.as_ref().map_or(Ok(()), PreviewSettings::without_drawing)
    }

    fn check_model(recipe: &AutoencoderRecipe) -> Result<(), ConfigError> {
        let model = &recipe.model;
        check_levels("block_out_channels", &model.block_out_channels)?;
        check_extents([
            ("in_channels", model.in_channels),
            ("latent_channels", model.latent_channels),
            ("norm_groups", model.norm_groups),
            ("sample_size", model.sample_size),
        ])?;
        check_blocks("layers_per_block", model.layers_per_block, MOST_RESNETS)?;
        model.validate()
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

    fn decoder(&self, counted: Range<u64>) -> Decoder<NoisedImage> {
        let seed = self.recipe.run.seed;
        let latent = self.latent().iter().product();
        let images = self.images.clone();
        Box::new(move |position, sample| -> Result<NoisedImage, BoxError> {
            let mut noise = vec![0f32; latent];
            Stream::new(seed, Purpose::LatentPosterior, position).fill_normal(&mut noise);
            Ok(NoisedImage { pixels: images.read_counting(counted.contains(&position), position, sample)?, noise })
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

    fn notices(&self) -> Vec<String> {
        self.images.notices()
    }

    fn published(&self, model: &Autoencoder) -> Result<Export<'static>, StageError> {
        Ok(export::autoencoder(model, &self.recipe.model, self.side(), None))
    }

    /// With the scaling factor of the recipe, or else the one that is measured on the training images.
    fn export(&self, model: &Autoencoder, folder: &Path) -> Result<Vec<String>, StageError> {
        let mut notes = Vec::new();
        let measured = match self.recipe.model.scaling_factor {
            Some(_) => None,
            None => self.measured_scale(model, &mut notes)?,
        };
        let export = export::autoencoder(model, &self.recipe.model, self.side(), measured);
        notes.extend(export.write(folder, Placement::New)?.notes);
        Ok(notes)
    }

    const PREVIEWS: bool = true;

    /// The first images of the dataset, each above its reconstruction.
    fn preview(&self, model: &Autoencoder, _: &PreviewSettings) -> Result<Vec<(String, RgbImage)>, BoxError> {
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
