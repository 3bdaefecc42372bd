use crate::EvaluateError;
use calotype_collective::CollectiveError;
use calotype_core::lock::LockError;
use calotype_data::BoxError;
use calotype_pipeline::PipelineError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a sweep cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A recipe says something impossible.
    #[error("recipe key `{key}`: {problem}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A list of captions cannot be read, or has too few.
    #[error("{}: {problem}", path.display())]
    Captions {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, with the line.
        problem: String,
    },
    /// A folder that holds the work of another recipe.
    #[error("{}: {problem}", path.display())]
    Other {
        /// The file that says so.
        path: PathBuf,
        /// In what they differ.
        problem: String,
    },
    /// The folder to write holds something else than an evaluation.
    #[error("{0} with --out")]
    Taken(String),
    /// The run's folder cannot be used.
    #[error("{}: {source}", path.display())]
    Run {
        /// The folder.
        path: PathBuf,
        /// The reason.
        source: BoxError,
    },
    /// Pictures cannot be judged.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// Captions cannot be read out of a source of samples.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// Pictures cannot be drawn.
    #[error(transparent)]
    Pipeline(Box<PipelineError>),
    /// Another process does the same slice.
    #[error(transparent)]
    Busy(#[from] LockError),
    /// Another process of the sweep is gone.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Stopped on request, with everything saved.
    #[error("stopped, {pictures} pictures are done and saved; run the same command again to go on")]
    Interrupted {
        /// Pictures that this process has done now or earlier.
        pictures: u64,
    },
}

impl SweepError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the recipe or the command, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Setting { .. } | Self::Captions { .. } | Self::Other { .. } | Self::Taken(_) => true,
            Self::Evaluate(error) => error.is_usage(),
            Self::Data(error) => error.is_usage(),
            Self::Pipeline(error) => error.is_usage(),
            _ => false,
        }
    }

    /// Whether the work was stopped on request.
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Interrupted { .. } => true,
            Self::Evaluate(error) => error.is_interrupted(),
            Self::Data(error) => matches!(error, calotype_data::Error::Interrupted { .. }),
            Self::Pipeline(error) => error.is_stopped(),
            _ => false,
        }
    }
}

impl From<PipelineError> for SweepError {
    fn from(error: PipelineError) -> Self {
        Self::Pipeline(Box::new(error))
    }
}
