use crate::encoders::EncoderError;
use calotype_checkpoints::LayoutError;
use calotype_checkpoints::loading::LoadError;
use calotype_diffusion::samplers::SamplerError;
use calotype_models::NonFinite;
use calotype_models::tokenizer::TokenizerError;
use calotype_weights::TensorFileError;
use calotype_weights::lora::LoraError;
use std::io;
use std::path::PathBuf;

/// Why a pipeline could not be loaded, or an image not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A network could not be loaded.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// A text encoder cannot be used, or cannot take a prompt.
    #[error(transparent)]
    Encoder(Box<EncoderError>),
    /// The sampler cannot do it.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The decoded image is not finite.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// An adapter cannot be added to the weights.
    #[error(transparent)]
    Adapter(Box<LoraError>),
    /// A file of given noise cannot be used.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
    /// An image cannot be read, resized or written.
    #[error(transparent)]
    Image(#[from] calotype_data::Error),
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// An image file without settings, or with damaged ones.
    #[error("{}: {problem}", path.display())]
    Record {
        /// The image file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// Settings that exclude each other or the checkpoint; the text names the flag or the file.
    #[error("{0}")]
    Setting(String),
    /// The observer ended the work; images that were done before are good.
    #[error("stopped after {done} of {all} images")]
    Stopped {
        /// Images that were done.
        done: usize,
        /// Images that were asked for.
        all: usize,
    },
}

impl PipelineError {
    /// True if the settings are at fault, not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Setting(_) | Self::Sampler(_) => true,
            Self::Load(error) => matches!(&**error, LoadError::Layout(error) if error.is_usage()),
            Self::Encoder(error) => error.is_usage(),
            Self::Adapter(error) => matches!(&**error, LoraError::File(error) if error.is_usage()),
            Self::Tensor(error) => error.is_usage(),
            Self::Image(error) => error.is_usage(),
            _ => false,
        }
    }

    /// True if the observer ended the work.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    pub(crate) fn setting(problem: impl Into<String>) -> Self {
        Self::Setting(problem.into())
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }
}

impl From<LoadError> for PipelineError {
    fn from(error: LoadError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<LayoutError> for PipelineError {
    fn from(error: LayoutError) -> Self {
        LoadError::from(error).into()
    }
}

impl From<EncoderError> for PipelineError {
    fn from(error: EncoderError) -> Self {
        match error {
            EncoderError::Load(error) => error.into(),
            error => Self::Encoder(Box::new(error)),
        }
    }
}

impl From<TokenizerError> for PipelineError {
    fn from(error: TokenizerError) -> Self {
        EncoderError::from(error).into()
    }
}

impl From<LoraError> for PipelineError {
    fn from(error: LoraError) -> Self {
        Self::Adapter(Box::new(error))
    }
}
