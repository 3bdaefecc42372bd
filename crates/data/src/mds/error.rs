//! The errors of MDS datasets.

use std::path::{Path, PathBuf};

use super::index::ColumnList;

/// Result of functions that know no file.
pub type MdsResult<T> = std::result::Result<T, MdsFault>;

/// A file of an MDS dataset and its fault.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct MdsError {
    /// The index, or the shard.
    pub path: PathBuf,
    /// The fault.
    pub fault: MdsFault,
}

/// A fault of a file of an MDS dataset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MdsFault {
    /// There is no index.
    #[error(
        "there is no such file; name the folder that holds an MDS dataset's index.json (of a split: its subfolder)"
    )]
    MissingIndex,
    /// The index is no JSON, or not of the right shape.
    #[error("not an index of MDS shards: {0}; copy it again, or write the dataset again")]
    Index(String),
    /// A version of the format that is not known.
    #[error("{what} has version {found}; version 2 is read (write it again with mosaicml-streaming 0.1.0 or later)")]
    Version {
        /// "the index" or the shard's name.
        what: String,
        /// Version found.
        found: u64,
    },
    /// Shards of Streaming's other formats.
    #[error("shard {shard} is of format `{found}`; only `mds` is read (write the dataset again with MDSWriter)")]
    Format {
        /// File name.
        shard: String,
        /// Format by the index.
        found: String,
    },
    /// A file name that leads out of the dataset's folder.
    #[error("`{0}` is no path inside of the dataset's folder; refused")]
    Name(String),
    /// Names, encodings and sizes of columns contradict each other.
    #[error("columns of shard {shard}: {detail}")]
    Columns {
        /// File name.
        shard: String,
        /// The contradiction, in words.
        detail: String,
    },
    /// Two shards of one dataset have other columns.
    #[error("shard {shard} has columns {found}, the first shard has {expected}; these are two datasets in one index")]
    OtherColumns {
        /// File name.
        shard: String,
        /// Columns of the first shard.
        expected: ColumnList,
        /// Columns of this one.
        found: ColumnList,
    },
    /// An encoding that is not known.
    #[error("column `{column}` has encoding `{encoding}`, which is not known; known are {known}")]
    Encoding {
        /// Name of the column.
        column: String,
        /// Encoding found.
        encoding: String,
        /// The known names.
        known: &'static str,
    },
    /// A compression that is not read or written.
    #[error("compression `{found}` is not known; known are {known}")]
    Compression {
        /// Compression found.
        found: String,
        /// The known names.
        known: &'static str,
    },
    /// A hash algorithm that is not known.
    #[error("hash algorithm `{found}` is not known; known are {known}")]
    Algorithm {
        /// Algorithm found.
        found: String,
        /// The known names.
        known: &'static str,
    },
    /// A shard that the index names is absent.
    #[error("the shard is named by the index but absent; copy it back, or write the dataset again")]
    MissingShard,
    /// A file has another length than the index says.
    #[error("{found} bytes long, the index says {expected}; copy it again from its source")]
    Length {
        /// Length by the index, in bytes.
        expected: u64,
        /// Length found.
        found: u64,
    },
    /// A file's bytes are not those that were written.
    #[error("{algorithm} is {found}, the index says {expected}; the file is damaged: copy it again from its source")]
    Hash {
        /// Name of the algorithm.
        algorithm: String,
        /// By the index.
        expected: String,
        /// As computed.
        found: String,
    },
    /// A compressed shard that cannot be decompressed.
    #[error("cannot be decompressed ({compression}): {detail}; copy it again from its source")]
    Decompress {
        /// Name of the compression.
        compression: String,
        /// The fault, in words.
        detail: String,
    },
    /// A compressed shard holds more or less than the index says.
    #[error("decompresses to {}{found} bytes, the index says {expected}; refused", if *more { "more than " } else { "" })]
    RawLength {
        /// Length by the index, in bytes.
        expected: u64,
        /// Bytes that came out before it was stopped.
        found: u64,
        /// True if there is more to come.
        more: bool,
    },
    /// The shard holds another number of samples than the index says.
    #[error("holds {found} samples, the index says {expected}")]
    SampleCount {
        /// By the index.
        expected: usize,
        /// By the shard.
        found: usize,
    },
    /// The table of samples points elsewhere than it should.
    #[error("the table of samples is damaged: {detail}")]
    Offsets {
        /// The pointer and its target, in words.
        detail: String,
    },
    /// One sample is damaged.
    #[error("sample {sample}, column `{column}`: {detail}")]
    Value {
        /// Number in the shard, or key of a sample that is to be written.
        sample: String,
        /// Name of the column.
        column: String,
        /// The fault, in words.
        detail: String,
    },
    /// A sample or shard whose sizes the format cannot hold.
    #[error("{what} takes {bytes} bytes; MDS counts them in 32 bits: at most 4294967295")]
    TooLarge {
        /// The value that is too large.
        what: String,
        /// Its size.
        bytes: u64,
    },
}

impl MdsFault {
    /// The error of a file.
    pub(crate) fn of(self, path: &Path) -> crate::Error {
        crate::Error::Mds(Box::new(MdsError { path: path.to_path_buf(), fault: self }))
    }
}
