//! Means and covariances of features in files: `.npz` archives of `mu` and `sigma`, as pytorch-fid, clean-fid and the MLPerf
//! references write and read them.

use crate::features::inception::{ENTRY, InceptionFeatures, InceptionNetwork};
use crate::features::{Features, hex};
use crate::state::Reference;
use crate::{EvaluateError, Result};
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::npz::FeatureStatistics;
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::{Control, Source};
use calotype_metrics::{GaussianAccumulator, GaussianStatistics};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

impl Reference {
    /// Reads the mean and covariance that an archive holds.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::File`] if it has no `mu` and `sigma` that fit together, or not of finite
    /// numbers.
    pub fn read_statistics(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(EvaluateError::io("read", path))?;
        let wrong = |detail: String| EvaluateError::File { path: path.to_owned(), detail };
        let found = FeatureStatistics::from_bytes(&bytes).map_err(|fault| wrong(fault.to_string()))?;
        for (name, values) in [("mu", &found.mean), ("sigma", &found.covariance)] {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(wrong(format!("`{name}`: value {at} is {}, not a finite number", values[at])));
            }
        }
        // The archive does not say of how many pictures it is.
        let statistics = GaussianStatistics { mean: found.mean, covariance: found.covariance, count: 0 };
        Ok(Self::Statistics(statistics, hex(&Sha256::digest(&bytes))))
    }
}

/// Writes mean and covariance as an archive, completely or not at all.
///
/// # Errors
/// [`EvaluateError::Data`].
pub fn write(statistics: GaussianStatistics, path: &Path) -> Result<()> {
    let GaussianStatistics { mean, covariance, .. } = statistics;
    Ok(FeatureStatistics { mean, covariance }.write(path)?)
}

/// Mean and covariance of the Inception features of all images of a source, prepared as pytorch-fid prepares them, `batch`
/// of them at once; what decoding changes besides is counted in `notes`.
///
/// # Errors
/// [`EvaluateError`]: an image cannot be read, there are fewer than two, or `control` stops the work.
pub fn of_source(
    source: &dyn Source,
    network: InceptionNetwork,
    batch: usize,
    (options, notes): (&DecodeOptions, &DecodeNotes),
    control: &mut Control<'_>,
) -> Result<GaussianStatistics> {
    const STAGE: &str = "fid-stats";
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
    let features = InceptionFeatures::new(Arc::new(network), &ENTRY.preparations[0]);
    let mut sums = GaussianAccumulator::new(features.width()).map_err(EvaluateError::metric(STAGE))?;
    let batch = batch.max(1);
    for first in (0..source.len()).step_by(batch) {
        control.checkpoint(STAGE, first, source.len())?;
        let numbers = first..(first + batch).min(source.len());
        let images = numbers.map(image).collect::<calotype_data::Result<Vec<_>>>()?;
        let found = features.images(&images.iter().collect::<Vec<_>>())?;
        sums.push(&found.features).map_err(EvaluateError::metric(STAGE))?;
    }
    sums.finish().map_err(EvaluateError::metric(STAGE))
}
