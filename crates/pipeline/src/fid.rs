//! The Fréchet inception distance: features of images, and the statistics that generated images are compared with.

use crate::batches::stack;
use crate::encoders::EncoderError;
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::loading::Loader;
use calotype_checkpoints::{Checkpoint, Component};
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::npz::FeatureStatistics;
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::{Control, Source};
use calotype_metrics::{GaussianAccumulator, MetricsError};
use calotype_models::Inception;
use calotype_models::inception::FEATURES;
use calotype_models::state::{WeightPrecision, values_of};
use std::path::{Path, PathBuf};

/// The network of the distance, ready to run.
pub struct FidEncoder {
    network: Inception,
    path: PathBuf,
    device: Device,
}

impl FidEncoder {
    /// Length of an image's features.
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

    /// Features of images of any sizes, `[images, 2048]`. As pytorch-fid, the network resizes them, bilinearly and
    /// without smoothing; neighbours of one size run together.
    ///
    /// # Errors
    /// [`EncoderError`].
    pub fn features(&self, images: &[RgbImage]) -> Result<Vec<f32>, EncoderError> {
        let size = |image: &RgbImage| (image.height(), image.width());
        let mut features = Vec::with_capacity(images.len() * Self::WIDTH);
        for alike in images.chunk_by(|a, b| size(a) == size(b)) {
            let (height, width) = size(&alike[0]);
            let pixels: Vec<Vec<f32>> = alike.iter().map(|image| image.to_f32_hwc(0.0, 1.0)).collect();
            let rows = pixels.iter().map(Vec::as_slice);
            let batch: Tensor<4> = stack(rows, &[height, width, 3], DType::F32, &self.device);
            let output = self.network.forward(batch);
            let output = output.map_err(|source| EncoderError::Input {
                path: self.path.clone(),
                component: Component::Inception,
                source,
            })?;
            features.extend(values_of(output.features));
        }
        Ok(features)
    }
}

/// Why the statistics of a dataset could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum FidError {
    /// The network cannot be used.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// An image cannot be read, or the work was stopped.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// There are too few images.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// Mean and covariance of the features of all images of a source, `batch` of them at once; what decoding changes besides is
/// counted in `notes`.
///
/// # Errors
/// [`FidError`]: an image cannot be read, there are fewer than two, or `control` stops the work.
pub fn statistics(
    source: &dyn Source,
    encoder: &FidEncoder,
    batch: usize,
    (options, notes): (&DecodeOptions, &DecodeNotes),
    control: &mut Control<'_>,
) -> Result<FeatureStatistics, FidError> {
    let image = |number: usize| {
        let held = source.get(number)?;
        let sample = held.sample();
        // Without any, the error of the usual one names the parts that there are.
        let bytes =
            IMAGE_EXTENSIONS.iter().find_map(|part| sample.part(part).ok()).map_or_else(|| sample.part("png"), Ok)?;
        let (image, found) = RgbImage::decode_noting(sample.key(), bytes, options)?;
        notes.add(&found);
        Ok(image)
    };
    let mut features = GaussianAccumulator::new(FidEncoder::WIDTH)?;
    let batch = batch.max(1);
    for first in (0..source.len()).step_by(batch) {
        control.checkpoint("fid-stats", first, source.len())?;
        let numbers = first..(first + batch).min(source.len());
        let images = numbers.map(image).collect::<calotype_data::Result<Vec<_>>>()?;
        features.push(&encoder.features(&images)?)?;
    }
    let found = features.finish()?;
    Ok(FeatureStatistics { mean: found.mean, covariance: found.covariance })
}
