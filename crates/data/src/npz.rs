//! NumPy's `.npz`: a zip archive of `.npy` arrays, and the statistics of features that FID tools keep in one.
//!
//! Written as `numpy.savez` does, uncompressed; read compressed as well (`numpy.savez_compressed`). The statistics are
//! those of pytorch-fid and of the MLPerf references: `mu`, shape `[d]`, and `sigma`, `[d, d]`, the unbiased covariance
//! (`numpy.cov(features, rowvar=False)`), both `f64`. `calotype_metrics` accumulates them
//! (`GaussianAccumulator`) and compares two (`frechet_distance`).

use std::path::{Path, PathBuf};

use calotype_weights::archive::{ArchiveFault, unzip};

use crate::files::write_bytes;
use crate::npy::{NpyArray, NpyData, NpyError};
use crate::{Error, Result};

/// The reason for which bytes are no `.npz` archive that this reader takes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpzError {
    /// A zip archive that cannot be read.
    #[error("not a readable .npz: {0}")]
    Archive(#[from] ArchiveFault),
    /// An entry that is no array.
    #[error("entry `{name}` of the .npz is no array: its name does not end in .npy")]
    NotAnArray {
        /// Its name.
        name: String,
    },
    /// A malformed array.
    #[error("array `{name}` of the .npz: {source}")]
    Array {
        /// Its name.
        name: String,
        /// The fault.
        source: NpyError,
    },
    /// A required array that is missing.
    #[error("the .npz has no array `{name}`; it has: {present}")]
    Missing {
        /// Its name.
        name: &'static str,
        /// Names of those that are there.
        present: String,
    },
    /// Arrays of shapes that do not fit together.
    #[error("`mu` has shape {mu:?} and `sigma` {sigma:?}; [d] and [d, d] were expected")]
    Shapes {
        /// Shape of the mean.
        mu: Vec<usize>,
        /// Shape of the covariance.
        sigma: Vec<usize>,
    },
    /// A name or size that a zip archive without 64-bit fields cannot hold.
    #[error("array `{name}` cannot be written to an .npz: {detail}")]
    TooLarge {
        /// Its name.
        name: String,
        /// The reason.
        detail: &'static str,
    },
    /// A file that cannot be read.
    #[error("{source}")]
    Io {
        /// The system's error.
        source: std::io::Error,
    },
}

/// Mean and covariance of a set of features.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureStatistics {
    /// Mean, shape `[d]`.
    pub mean: Vec<f64>,
    /// Unbiased covariance, shape `[d, d]`, row by row.
    pub covariance: Vec<f64>,
}

/// The arrays of an archive, sorted by name (without `.npy`).
///
/// # Errors
/// [`NpzError::Archive`] for a damaged archive, [`NpzError::NotAnArray`] for an entry of another kind,
/// [`NpzError::Array`] for a malformed array.
pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Vec<(String, NpyArray)>, NpzError> {
    let read = |(name, content): (String, std::borrow::Cow<'_, [u8]>)| {
        let Some(short) = name.strip_suffix(".npy") else { return Err(NpzError::NotAnArray { name }) };
        let short = short.to_owned();
        match NpyArray::from_bytes(&content) {
            Ok(array) => Ok((short, array)),
            Err(source) => Err(NpzError::Array { name: short, source }),
        }
    };
    unzip(bytes)?.into_iter().map(read).collect()
}

/// An archive of `arrays`, in their order, uncompressed. The same arrays give the same bytes.
///
/// # Errors
/// [`NpzError::TooLarge`] beyond 4 GiB, 65,535 arrays or names of 65,531 bytes.
pub fn to_bytes(arrays: &[(&str, &NpyArray)]) -> std::result::Result<Vec<u8>, NpzError> {
    let entries = arrays.iter().map(|(name, array)| (format!("{name}.npy"), array.to_bytes()));
    zip(&entries.collect::<Vec<_>>())
}

/// An archive of files by name, uncompressed.
fn zip(entries: &[(String, Vec<u8>)]) -> std::result::Result<Vec<u8>, NpzError> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let short = name.strip_suffix(".npy").unwrap_or(name);
        let too_large = |detail| NpzError::TooLarge { name: short.to_owned(), detail };
        let size = u32::try_from(content.len()).map_err(|_| too_large("it has 4 GiB or more"))?;
        let at = u32::try_from(out.len()).map_err(|_| too_large("the archive has 4 GiB or more"))?;
        let length = u16::try_from(name.len()).map_err(|_| too_large("its name is too long"))?;
        let fields = entry_fields(crc32fast::hash(content), size, length);
        out.extend_from_slice(b"PK\x03\x04");
        out.extend_from_slice(&fields);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(content);
        directory.extend_from_slice(b"PK\x01\x02");
        directory.extend_from_slice(&VERSION.to_le_bytes());
        directory.extend_from_slice(&fields);
        // No comment, first volume, no attributes inside; a plain file that its owner may write, outside.
        directory.extend_from_slice(&[0; 6]);
        directory.extend_from_slice(&(0o100_644u32 << 16).to_le_bytes());
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let too_large = |detail| NpzError::TooLarge { name: "(directory)".to_owned(), detail };
    let count = u16::try_from(entries.len()).map_err(|_| too_large("there are more than 65,535 arrays"))?;
    let at = u32::try_from(out.len()).map_err(|_| too_large("the archive has 4 GiB or more"))?;
    let size = u32::try_from(directory.len()).map_err(|_| too_large("the directory has 4 GiB or more"))?;
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    Ok(out)
}

/// Version 2.0 of the zip format, made on Unix (the upper byte), which says how to read the attributes.
const VERSION: u16 = 3 << 8 | 20;

/// The fields that an entry's header and its line of the directory share: version, flags, method (stored), time and date
/// (1980-01-01, the format's first), checksum, sizes, lengths of name and extra field.
fn entry_fields(checksum: u32, size: u32, name: u16) -> Vec<u8> {
    const FLAG_UTF8: u16 = 1 << 11;
    let mut fields = Vec::with_capacity(26);
    fields.extend_from_slice(&20u16.to_le_bytes());
    fields.extend_from_slice(&FLAG_UTF8.to_le_bytes());
    fields.extend_from_slice(&[0; 4]);
    fields.extend_from_slice(&(1u16 << 5 | 1).to_le_bytes());
    fields.extend_from_slice(&checksum.to_le_bytes());
    fields.extend_from_slice(&size.to_le_bytes());
    fields.extend_from_slice(&size.to_le_bytes());
    fields.extend_from_slice(&name.to_le_bytes());
    fields.extend_from_slice(&[0; 2]);
    fields
}

impl FeatureStatistics {
    /// The statistics in an archive; whatever else is in it is passed by.
    ///
    /// # Errors
    /// An [`NpzError`] for a damaged archive, and if `mu` or `sigma` is missing, malformed, or of another type or shape.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, NpzError> {
        let entries = unzip(bytes)?;
        let short = |name: &str| name.strip_suffix(".npy").unwrap_or(name).to_owned();
        let find = |name: &'static str| match entries.iter().find(|(found, _)| *found == format!("{name}.npy")) {
            Some((_, content)) => {
                NpyArray::from_bytes(content).map_err(|source| NpzError::Array { name: name.to_owned(), source })
            }
            None => {
                let present: Vec<String> = entries.iter().map(|(name, _)| short(name)).collect();
                Err(NpzError::Missing { name, present: present.join(", ") })
            }
        };
        let (mu, sigma) = (find("mu")?, find("sigma")?);
        if !matches!(mu.shape(), [d] if sigma.shape() == [*d, *d]) {
            return Err(NpzError::Shapes { mu: mu.shape().to_vec(), sigma: sigma.shape().to_vec() });
        }
        let values = |name: &str, array: &NpyArray| {
            array.to_f64().map_err(|source| NpzError::Array { name: name.to_owned(), source })
        };
        Ok(FeatureStatistics { mean: values("mu", &mu)?, covariance: values("sigma", &sigma)? })
    }

    /// Reads the statistics in the file at `path`.
    ///
    /// # Errors
    /// [`Error::Npz`] if the file cannot be read, or with the error of [`FeatureStatistics::from_bytes`].
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = calotype_core::read_input(path).map_err(|source| npz(path)(NpzError::Io { source }))?;
        FeatureStatistics::from_bytes(&bytes).map_err(npz(path))
    }

    /// Writes the statistics to `path`, completely or not at all.
    ///
    /// # Errors
    /// [`Error::Npz`] if the lengths of mean and covariance do not fit together, or are beyond a zip archive's;
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_with(path, None)
    }

    /// The same with a text under a name of its own beside the arrays: NumPy gives it as bytes (`numpy.load(path)[name]`), and who
    /// asks for `mu` and `sigma` alone does not see it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_with(&self, path: &Path, text: Option<(&str, String)>) -> Result<()> {
        let d = self.mean.len();
        let array = |shape: Vec<usize>, values: &[f64]| NpyArray::new(shape, NpyData::F64(values.to_vec()));
        let named = |name: &str, found: std::result::Result<NpyArray, NpyError>| {
            found.map_err(|source| npz(path)(NpzError::Array { name: name.to_owned(), source }))
        };
        let mu = named("mu", array(vec![d], &self.mean))?;
        let sigma = named("sigma", array(vec![d, d], &self.covariance))?;
        let mut entries = vec![("mu.npy".to_owned(), mu.to_bytes()), ("sigma.npy".to_owned(), sigma.to_bytes())];
        entries.extend(text.map(|(name, text)| (name.to_owned(), text.into_bytes())));
        write_bytes(path, &zip(&entries).map_err(npz(path))?)
    }
}

/// The file of an archive that is no array, such as a text of [`FeatureStatistics::write_with`]; none if there is none of this name.
///
/// # Errors
/// [`NpzError::Archive`] for a damaged archive.
pub fn file(bytes: &[u8], name: &str) -> std::result::Result<Option<Vec<u8>>, NpzError> {
    let found = unzip(bytes)?.into_iter().find(|(found, _)| found == name);
    Ok(found.map(|(_, content)| content.into_owned()))
}

fn npz(path: &Path) -> impl FnOnce(NpzError) -> Error {
    let path: PathBuf = path.to_path_buf();
    move |source| Error::Npz { path, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics() -> FeatureStatistics {
        FeatureStatistics { mean: vec![0.5, -1.0], covariance: vec![1.0, 0.25, 0.25, 2.0] }
    }

    #[test]
    fn statistics_survive_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.npz");
        statistics().write(&path).unwrap();
        assert_eq!(FeatureStatistics::read(&path).unwrap(), statistics());
        let uneven = FeatureStatistics { covariance: vec![1.0; 3], ..statistics() };
        assert!(matches!(uneven.write(&path), Err(Error::Npz { .. })));
        assert_eq!(FeatureStatistics::read(&path).unwrap(), statistics());
    }

    #[test]
    fn a_text_lies_beside_the_arrays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.npz");
        statistics().write_with(&path, Some(("about.json", "{}".to_owned()))).unwrap();
        assert_eq!(FeatureStatistics::read(&path).unwrap(), statistics());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(file(&bytes, "about.json").unwrap().unwrap(), b"{}");
        assert_eq!(file(&bytes, "other.json").unwrap(), None);
        assert!(matches!(from_bytes(&bytes), Err(NpzError::NotAnArray { name }) if name == "about.json"));
        assert!(file(b"no archive", "about.json").is_err());
        statistics().write(&path).unwrap();
        assert_eq!(file(&std::fs::read(&path).unwrap(), "about.json").unwrap(), None);
    }

    #[test]
    fn bad_archives_are_named() {
        let one = NpyArray::from_f32(&[2], vec![1.0, 2.0]).unwrap();
        let square = NpyArray::from_f32(&[2, 3], vec![0.0; 6]).unwrap();
        let whole = NpyArray::from_i64(&[2, 2], vec![0; 4]).unwrap();
        let good = to_bytes(&[("mu", &one), ("sigma", &square)]).unwrap();
        let mut flipped = good.clone();
        let data = flipped.windows(6).position(|w| w == b"\x93NUMPY").unwrap();
        flipped[data + 130] ^= 1;
        let mut header = good.clone();
        header[data] = 0;
        let cases: [(&str, Vec<u8>, &str); 9] = [
            ("empty", vec![], "no directory"),
            ("cut", good[..good.len() - 5].to_vec(), "no directory"),
            ("text", b"mu sigma".to_vec(), "no directory"),
            ("flipped", flipped, "checksum"),
            ("header", header, "checksum"),
            ("no sigma", to_bytes(&[("mu", &one)]).unwrap(), "no array `sigma`"),
            ("no mu", to_bytes(&[("m", &one), ("sigma", &square)]).unwrap(), "it has: m, sigma"),
            ("shapes", good.clone(), "[2, 3]"),
            ("integers", to_bytes(&[("mu", &one), ("sigma", &whole)]).unwrap(), "i64"),
        ];
        for (name, bytes, expected) in cases {
            let error = FeatureStatistics::from_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
