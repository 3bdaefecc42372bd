use crate::queue::STOPPED;
use calotype_evaluate::sweep::SweepError;
use calotype_loadgen::LoadgenError;
use calotype_pipeline::PipelineError;
use std::io;
use std::path::PathBuf;

/// Why the benchmark did not run, or not to a good end.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// A key of the recipe, or a flag, that cannot be.
    #[error("{0}")]
    Setting(String),
    /// The captions cannot be read.
    #[error(transparent)]
    Captions(#[from] SweepError),
    /// The checkpoint cannot be loaded or cannot draw.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// LoadGen, or what failed while it ran.
    #[error(transparent)]
    Loadgen(#[from] LoadgenError),
    /// A file that cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file that cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read`, `write` or `rename`.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// There is less memory than the run needs.
    #[error("{0}")]
    Memory(String),
    /// Another process of the run cannot be reached or is another one.
    #[error("{0}")]
    Process(String),
    /// Asked to stop.
    #[error("{0}")]
    Stopped(String),
    /// The process that has LoadGen has told why the run ended.
    #[error("the run has ended")]
    Told,
}

impl InferenceError {
    /// True if the command line, the recipe or a configuration is at fault, not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Setting(_) | Self::Captions(_) | Self::File { .. } => true,
            Self::Pipeline(error) => error.is_usage(),
            Self::Loadgen(error) => error.is_usage(),
            _ => false,
        }
    }

    /// True for a stop on request.
    pub fn is_stopped(&self) -> bool {
        match self {
            Self::Stopped(_) => true,
            Self::Pipeline(error) => error.is_stopped(),
            Self::Loadgen(LoadgenError::Failed(failure) | LoadgenError::Abandoned { failure, .. }) => {
                failure == STOPPED
            }
            _ => false,
        }
    }

    /// True if LoadGen still runs, so that the process must end by [`calotype_loadgen::leave`].
    pub fn must_leave(&self) -> bool {
        matches!(self, Self::Loadgen(error) if error.must_leave())
    }

    pub(crate) fn setting(problem: impl Into<String>) -> Self {
        Self::Setting(problem.into())
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }
}
