//! The errors of this crate.

use calotype_checkpoints::LayoutError;
use calotype_checkpoints::loading::LoadError;
use calotype_core::UnknownName;
use calotype_metrics::MetricsError;
use calotype_models::InputError;
use calotype_pipeline::encoders::EncoderError;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, EvaluateError>;

/// Why pictures cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A picture or a list of pictures cannot be read, or the work was stopped.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// A network cannot be used.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A formula cannot take the numbers.
    #[error("{metric}: {source}")]
    Metric {
        /// Name and variant of the metric.
        metric: String,
        /// The reason.
        source: MetricsError,
    },
    /// A name that is none of a table's.
    #[error(transparent)]
    Unknown(#[from] UnknownName),
    /// A request that cannot be followed, and what would help.
    #[error("{0}")]
    Usage(String),
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file whose content cannot be used, and what would help.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The fault and the remedy.
        detail: String,
    },
    /// Partial states that do not belong together.
    #[error("{key}: {detail}")]
    State {
        /// Their features.
        key: String,
        /// In what they differ.
        detail: String,
    },
}

impl EvaluateError {
    /// An error of the file system at `path`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// An error of a formula, with the metric that it belongs to.
    pub fn metric(metric: impl Into<String>) -> impl FnOnce(MetricsError) -> Self {
        move |source| Self::Metric { metric: metric.into(), source }
    }

    /// True if the request is at fault, not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Unknown(_) | Self::Usage(_) => true,
            Self::Encoder(error) => error.is_usage(),
            _ => false,
        }
    }

    /// True if the work was stopped on request.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Data(calotype_data::Error::Interrupted { .. }))
    }
}

impl From<LayoutError> for EvaluateError {
    fn from(error: LayoutError) -> Self {
        Self::Encoder(error.into())
    }
}

impl From<LoadError> for EvaluateError {
    fn from(error: LoadError) -> Self {
        Self::Encoder(error.into())
    }
}

/// An input that a network does not take, with the file of the network.
pub(crate) fn misfit(
    path: &Path,
    component: calotype_checkpoints::Component,
) -> impl FnOnce(InputError) -> EvaluateError {
    move |source| EncoderError::Input { path: path.to_owned(), component, source }.into()
}
