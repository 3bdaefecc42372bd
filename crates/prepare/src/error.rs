//! The errors that the stages share.

use std::path::{Path, PathBuf};

use crate::check::CheckError;
use crate::coco::CocoError;
use crate::download::DownloadError;
use crate::fetch::FetchError;
use crate::filter::FilterError;
use crate::index::IndexError;
use crate::reorganize::ReorganizeError;

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// The reason for which a stage ended early. Errors of one stage alone are a type of that stage's module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings that contradict each other or make no sense.
    #[error("{0}")]
    Usage(String),

    /// A dataset could not be read or written, or the stage was asked to stop.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),

    /// One sample of many cannot be read, and the stage was not told to go on without it.
    #[error("{source}; --skip-bad leaves such samples out and counts them")]
    OneSample {
        /// The fault.
        source: calotype_data::Error,
    },

    /// Something could not be fetched.
    #[error(transparent)]
    Fetch(Box<FetchError>),

    /// Tables could not be filtered.
    #[error(transparent)]
    Filter(Box<FilterError>),

    /// The download stage could not do its work.
    #[error(transparent)]
    Download(Box<DownloadError>),

    /// Shards could not be reorganized.
    #[error(transparent)]
    Reorganize(#[from] ReorganizeError),

    /// Shards could not be indexed.
    #[error(transparent)]
    Index(#[from] IndexError),

    /// A check found samples that cannot be used.
    #[error(transparent)]
    Check(#[from] CheckError),

    /// The evaluation set could not be made.
    #[error(transparent)]
    Coco(Box<CocoError>),

    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Action that was tried ("open", "write", ...).
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Error {
    /// True if the command line is to blame (exit code 2).
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Usage(_) => true,
            Error::Data(error) | Error::OneSample { source: error } => error.is_usage(),
            Error::Fetch(error) => error.is_usage(),
            Error::Filter(error) => error.is_usage(),
            Error::Download(error) => error.is_usage(),
            Error::Reorganize(error) => error.is_usage(),
            Error::Index(error) => error.is_usage(),
            Error::Coco(error) => matches!(**error, CocoError::OtherSettings { .. }),
            _ => false,
        }
    }

    /// True if the stage stopped on request, with everything kept that was done.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Data(calotype_data::Error::Interrupted { .. }))
    }

    /// A closure for `map_err` on input and output.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}

// Large errors are boxed, so that results stay small.

impl From<FetchError> for Error {
    fn from(error: FetchError) -> Self {
        Error::Fetch(Box::new(error))
    }
}

impl From<FilterError> for Error {
    fn from(error: FilterError) -> Self {
        Error::Filter(Box::new(error))
    }
}

impl From<DownloadError> for Error {
    fn from(error: DownloadError) -> Self {
        Error::Download(Box::new(error))
    }
}

impl From<CocoError> for Error {
    fn from(error: CocoError) -> Self {
        Error::Coco(Box::new(error))
    }
}
