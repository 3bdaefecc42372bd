//! Encoders of captions and images, from any checkpoint: [`TextEncoder`] and [`ImageEncoder`], for pipelines and for
//! training on what frozen encoders give.
//!
//! An encoder is opened first: its configuration is known then, and no memory is taken. Its weights are read at its first
//! use.

pub mod image;
pub mod text;
mod weighted;

use crate::network::{Network, Placement};
use crate::prompt_syntax::SyntaxError;
use calotype_checkpoints::loading::LoadError;
use calotype_checkpoints::{Checkpoint, Component, LayoutError, NetworkConfig};
use calotype_models::InputError;
use calotype_models::tokenizer::TokenizerError;
use calotype_weights::TensorFileError;
use std::path::{Path, PathBuf};

pub use image::{ImageEncoder, ImageEncoderKind, ImageInput, ImageOutput};
pub use text::{HiddenStates, TextEncoder, TextEncoding, TextSettings, TokenizerChoice};

/// Why an encoder cannot be used; names the model.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// The path is no checkpoint, or one without this network.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The network cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A tensor cannot be read.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
    /// The checkpoint's tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The network cannot take an input.
    #[error("{}: {component}: {source}", path.display())]
    Input {
        /// The model.
        path: PathBuf,
        /// The network.
        component: Component,
        /// The misfit.
        source: InputError,
    },
    /// A prompt that its syntax does not allow.
    #[error("prompt `{prompt}`: {source}; --prompt-syntax plain takes it as it is")]
    Prompt {
        /// The prompt.
        prompt: String,
        /// What is wrong with it.
        source: SyntaxError,
    },
    /// The network does not have an output that was asked for.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The model.
        path: PathBuf,
        /// The output that was asked for, and those that there are.
        problem: String,
    },
}

impl EncoderError {
    /// True if the request is at fault, not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Layout(error) | Self::Load(LoadError::Layout(error)) => error.is_usage(),
            Self::Tensor(error) => error.is_usage(),
            Self::Output { .. } | Self::Prompt { .. } => true,
            _ => false,
        }
    }
}

/// A network of the model at `path`, and the checkpoint that it is from.
fn open_network<C: NetworkConfig>(
    path: &Path,
    component: Component,
    placement: &Placement,
) -> Result<(Network<C>, Checkpoint), EncoderError> {
    let checkpoint = Checkpoint::open(path)?;
    let network = Network::open(&checkpoint, component, placement)?;
    Ok((network, checkpoint))
}
