//! Means and covariances of features in files: `.npz` archives of `mu` and `sigma`, as pytorch-fid, clean-fid and the MLPerf
//! references write and read them.

use crate::features::inception::{ENTRY, InceptionFeatures, InceptionNetwork};
use crate::features::{Features, hex};
use crate::state::{Reference, State};
use crate::{EvaluateError, FeatureKey, NetworkFingerprint, Result};
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::npz::{self, FeatureStatistics};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::{Control, Source};
use calotype_metrics::{GaussianAccumulator, GaussianStatistics, check_gaussian};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the text in archives that says of which features they are. Other programs write none.
const ORIGIN: &str = "fingerprint.json";

/// Mean and covariance out of a file.
pub struct Archive {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub statistics: GaussianStatistics,
    /// SHA-256 of the file, in hexadecimal.
    pub hash: String,
    /// Of which features it is, if it says so.
    pub origin: Option<Origin>,
}

/// Of which features an archive is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Kind of the features.
    pub features: FeatureKey,
    /// The network with its preparation.
    #[serde(flatten)]
    pub network: NetworkFingerprint,
    /// Number of pictures.
    pub count: usize,
}

impl Archive {
    pub(crate) fn check(&self, key: &FeatureKey, network: &NetworkFingerprint, width: usize) -> Result<()> {
        let wrong = |detail: String| {
            let detail = format!("{detail}; give statistics of the same features, or the pictures themselves");
            Err(EvaluateError::File { path: self.path.clone(), detail })
        };
        let own = self.statistics.width();
        if let Some(Origin { features, network: own, .. }) = &self.origin {
            if features != key {
                return wrong(format!("it is of the features {features}, and {key} are compared with it"));
            }
            if let Some(difference) = own.difference(network) {
                return wrong(format!("it is of another network or preparation: {difference}"));
            }
        }
        match own == width {
            true => Ok(()),
            false => wrong(format!("it is of {own} features, and {key} has {width}")),
        }
    }
}

impl Reference {
    /// Reads the mean and covariance that an archive holds.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::File`] if it has no `mu` and `sigma` that fit together, or not of finite
    /// numbers, or if `sigma` is no covariance ([`check_gaussian`]).
    pub fn read_statistics(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(EvaluateError::io("read", path))?;
        let wrong = |detail: String| EvaluateError::File { path: path.to_owned(), detail };
        let found = FeatureStatistics::from_bytes(&bytes).map_err(|fault| wrong(fault.to_string()))?;
        for (name, values) in [("mu", &found.mean), ("sigma", &found.covariance)] {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(wrong(format!("`{name}`: value {at} is {}, not a finite number", values[at])));
            }
        }
        let origin = npz::file(&bytes, ORIGIN).map_err(|fault| wrong(fault.to_string()))?;
        let origin: Option<Origin> = origin.map(|text| serde_json::from_slice(&text)).transpose().map_err(|fault| {
            wrong(format!("its {ORIGIN} cannot be read: {fault}; write the archive again, or leave {ORIGIN} out of it"))
        })?;
        // An archive of another program does not say of how many pictures it is.
        let count = origin.as_ref().map_or(0, |origin| origin.count);
        let statistics = GaussianStatistics { mean: found.mean, covariance: found.covariance, count };
        check_gaussian(&statistics).map_err(|fault| wrong(fault.to_string()))?;
        let (path, hash) = (path.to_owned(), hex(&Sha256::digest(&bytes)));
        Ok(Self::Statistics(Box::new(Archive { path, statistics, hash, origin })))
    }
}

/// Writes mean and covariance as an archive that says of which features they are, completely or not at all.
///
/// # Errors
/// [`EvaluateError::Data`].
pub fn write(statistics: GaussianStatistics, origin: &Origin, path: &Path) -> Result<()> {
    let GaussianStatistics { mean, covariance, .. } = statistics;
    let text = serde_json::to_string(origin).map_err(|error| EvaluateError::io("write", path)(error.into()))?;
    Ok(FeatureStatistics { mean, covariance }.write_with(path, Some((ORIGIN, text)))?)
}

/// [`write`] of the features of some pictures.
///
/// # Errors
/// As of [`write`] and [`State::gaussian`].
pub fn write_state(state: &State, path: &Path) -> Result<()> {
    let (features, network) = (state.key().clone(), state.network().clone());
    write(state.gaussian()?, &Origin { features, network, count: state.count() }, path)
}

/// Mean and covariance of the Inception features of all images of a source, prepared as pytorch-fid prepares them, `batch`
/// of them at once, with what an archive says of them; what decoding changes besides is counted in `notes`.
///
/// # Errors
/// [`EvaluateError`]: an image cannot be read, there are fewer than two, or `control` stops the work.
pub fn of_source(
    source: &dyn Source,
    network: InceptionNetwork,
    batch: usize,
    (options, notes): (&DecodeOptions, &DecodeNotes),
    control: &mut Control<'_>,
) -> Result<(GaussianStatistics, Origin)> {
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
    if source.len() < 2 {
        let name = source.name();
        return Err(EvaluateError::Usage(format!(
            "{name} holds 1 image, and a covariance needs at least 2; give more"
        )));
    }
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
    let statistics = sums.finish().map_err(EvaluateError::metric(STAGE))?;
    let (key, network) = (features.key().clone(), features.fingerprint().clone());
    let origin = Origin { features: key, network, count: statistics.count };
    Ok((statistics, origin))
}
