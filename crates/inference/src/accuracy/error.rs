//! Why logs cannot be judged.

use calotype_evaluate::EvaluateError;
use calotype_mlperf::ReadError;
use calotype_mlperf::inference::accuracy_log::AccuracyLogError;
use std::io;
use std::path::Path;

/// Why the logs of a run cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum AccuracyError {
    /// The accuracy log cannot be read.
    #[error(transparent)]
    Log(#[from] AccuracyLogError),
    /// Another log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Pictures cannot be judged, files be read or written, a request be followed.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
}

impl AccuracyError {
    /// A file whose content cannot be used, and what would help.
    pub(crate) fn file(path: &Path, detail: impl Into<String>) -> Self {
        EvaluateError::File { path: path.to_owned(), detail: detail.into() }.into()
    }

    /// An error of the file system at `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| EvaluateError::io(action, path)(source).into()
    }
}

/// The result of this module's functions.
pub type Result<T> = std::result::Result<T, AccuracyError>;
