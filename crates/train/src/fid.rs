//! Features of the Fréchet inception distance.

use crate::batches::stack;
use crate::encoders::EncoderError;
use burn::tensor::{DType, Device, Tensor};
use calotype_data::image::RgbImage;
use calotype_diffusion::loading::Loader;
use calotype_models::Inception;
use calotype_models::inception::FEATURES;
use calotype_models::state::{WeightPrecision, values_of};
use calotype_weights::layout::Checkpoint;
use std::path::{Path, PathBuf};

/// The network of the distance, ready to run.
pub struct FidEncoder {
    network: Inception,
    path: PathBuf,
    device: Device,
}

impl FidEncoder {
    /// Length of a picture's features.
    pub const WIDTH: usize = FEATURES;

    /// Loads the network, in `f32`: distances in less do not compare with published ones.
    ///
    /// # Errors
    /// [`EncoderError`].
    pub fn load(path: &Path, device: &Device) -> Result<Self, EncoderError> {
        let checkpoint = Checkpoint::open(path)?;
        let loader = Loader { checkpoint: &checkpoint, device, precision: WeightPrecision::F32, adapters: None };
        Ok(Self { network: loader.inception()?, path: path.to_owned(), device: device.clone() })
    }

    /// Features of pictures of any sizes, `[pictures, 2048]`. As pytorch-fid, the network resizes them, bilinearly and
    /// without smoothing; neighbours of one size run together.
    ///
    /// # Errors
    /// [`EncoderError`].
    pub fn features(&self, pictures: &[RgbImage]) -> Result<Vec<f32>, EncoderError> {
        let size = |picture: &RgbImage| (picture.height(), picture.width());
        let mut features = Vec::with_capacity(pictures.len() * Self::WIDTH);
        for alike in pictures.chunk_by(|a, b| size(a) == size(b)) {
            let (height, width) = size(&alike[0]);
            let pixels: Vec<Vec<f32>> = alike.iter().map(|picture| picture.to_f32_hwc(0.0, 1.0)).collect();
            let rows = pixels.iter().map(Vec::as_slice);
            let batch: Tensor<4> = stack(rows, &[height, width, 3], DType::F32, &self.device);
            let output = self.network.forward(batch);
            let output = output.map_err(|source| EncoderError::Input { path: self.path.clone(), source })?;
            features.extend(values_of(output.features));
        }
        Ok(features)
    }
}
