//! Training of the KL autoencoder.

use crate::batches::{Pictures, stack};
use crate::settings::{AutoencoderRecipe, Reconstruction};
use crate::trainer::{BoxError, Decoder, Loss, Objective};
use burn::tensor::{DType, Device, Tensor};
use calotype_data::Batch;
use calotype_kernels::{Purpose, Stream};
use calotype_models::Autoencoder;
use calotype_ops::mean_squared_error;

/// One picture and the noise that its latent is drawn with.
#[derive(Debug)]
pub struct Picture {
    pixels: Vec<f32>,
    noise: Vec<f32>,
}

/// Reconstruction plus weighted divergence (Rombach et al. 2022, appendix G, without the adversary).
#[derive(Debug)]
pub struct AutoencoderObjective {
    recipe: AutoencoderRecipe,
    pictures: Pictures,
    device: Device,
}

impl AutoencoderObjective {
    /// For tensors on `device`, without autodiff.
    ///
    /// # Errors
    /// Those of [`Pictures::new`].
    pub fn new(recipe: &AutoencoderRecipe, device: &Device) -> Result<Self, calotype_data::Error> {
        let pictures = Pictures::new(&recipe.data, recipe.objective.resolution, recipe.run.seed)?;
        Ok(Self { recipe: recipe.clone(), pictures, device: device.clone() })
    }

    fn side(&self) -> usize {
        self.recipe.objective.resolution
    }

    /// `[height, width, channels]` of the latent.
    fn latent(&self) -> [usize; 3] {
        let side = self.side() / self.recipe.model.downscale();
        [side, side, self.recipe.model.latent_channels]
    }
}

impl Objective for AutoencoderObjective {
    type Model = Autoencoder;
    type Item = Picture;

    fn decoder(&self) -> Decoder<Picture> {
        let seed = self.recipe.run.seed;
        let latent = self.latent().iter().product();
        let pictures = self.pictures.clone();
        Box::new(move |position, sample| -> Result<Picture, BoxError> {
            let mut noise = vec![0f32; latent];
            Stream::new(seed, Purpose::LatentPosterior, position).fill_normal(&mut noise);
            Ok(Picture { pixels: pictures.read(position, sample)?, noise })
        })
    }

    fn loss(&self, model: &Autoencoder, batch: Batch<Picture>) -> Result<Loss, BoxError> {
        let dtype = self.recipe.run.precision.dtype(&self.device);
        let pixels = batch.items.iter().map(|item| item.pixels.as_slice());
        let pictures: Tensor<4> = stack(pixels, &[self.side(), self.side(), 3], dtype, &self.device);
        let noise = batch.items.iter().map(|item| item.noise.as_slice());
        let noise = stack(noise, &self.latent(), dtype, &self.device);
        let distribution = model.encode(pictures.clone());
        let decoded = model.decode(distribution.sample(noise));
        let reconstruction = match self.recipe.objective.reconstruction {
            Reconstruction::L2 => mean_squared_error(decoded, pictures),
            Reconstruction::L1 => (decoded.cast(DType::F32) - pictures.cast(DType::F32)).abs().mean(),
        };
        let kl = distribution.kl();
        let part = |t: &Tensor<1>| f64::from(t.clone().inner().into_scalar::<f32>());
        let parts = vec![("reconstruction", part(&reconstruction)), ("kl", part(&kl))];
        Ok(Loss { value: reconstruction + kl.mul_scalar(self.recipe.objective.kl_weight), parts })
    }
}
