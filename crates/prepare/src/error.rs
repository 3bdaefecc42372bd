//! What the stages have in common when they fail.

use std::path::{Path, PathBuf};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a stage ended early. Errors of one stage alone are a type of that stage's module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings that contradict each other or make no sense.
    #[error("{0}")]
    Usage(String),

    /// A dataset could not be read or written, or the stage was asked to stop.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),

    /// Shards could not be reorganized.
    #[error(transparent)]
    Reorganize(#[from] crate::reorganize::ReorganizeError),

    /// Shards could not be indexed.
    #[error(transparent)]
    Index(#[from] crate::index::IndexError),

    /// A check found samples that cannot be used.
    #[error(transparent)]
    Check(#[from] crate::check::CheckError),

    /// The evaluation set could not be made.
    #[error(transparent)]
    Coco(Box<crate::coco::CocoError>),

    /// The download stage could not do its work.
    #[error(transparent)]
    Download(#[from] Box<crate::download::DownloadError>),

    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried ("open", "write", ...).
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
}

impl From<crate::coco::CocoError> for Error {
    fn from(error: crate::coco::CocoError) -> Self {
        Error::Coco(Box::new(error))
    }
}

impl Error {
    /// Whether the command line is to blame (exit code 2).
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Usage(_) => true,
            Error::Reorganize(error) => error.is_usage(),
            Error::Index(error) => error.is_usage(),
            Error::Coco(error) => matches!(**error, crate::coco::CocoError::OtherSettings { .. }),
            Error::Download(error) => error.is_usage(),
            _ => false,
        }
    }

    /// Whether the stage stopped on request, with everything kept that was done.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Data(calotype_data::Error::Interrupted { .. }))
    }

    /// A closure for `map_err` on input and output.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}

impl From<crate::download::DownloadError> for Error {
    fn from(error: crate::download::DownloadError) -> Self {
        Error::Download(Box::new(error))
    }
}
