//! Frozen encoders of pictures and captions, from any checkpoint or from a folder that training wrote.
//!
//! A [`Frozen`] network is opened first: its configuration and the hash of its tensors are known then, and no memory is
//! taken. What is done with it is in [`text`] (captions to states) and [`picture`] (pictures to moments or features).

pub mod picture;
pub mod text;

use crate::artifacts::{ArtifactError, CONFIG, WEIGHTS};
use burn::module::Module;
use burn::tensor::{DType, Device};
use calotype_diffusion::loading::{LoadError, fill_from};
use calotype_models::state::{self, WeightPrecision};
use calotype_models::tokenizer::TokenizerError;
use calotype_models::{ConfigError, Init, InputError};
use calotype_weights::layout::{Checkpoint, Component, LayoutError};
use calotype_weights::{TensorFile, TensorFileError, TensorSource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub use picture::{PictureEncoder, PictureInput, PictureKind, PictureOutput};
pub use text::{TextEncoding, TextSettings, TextTower};

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
    /// The configuration of a folder that training wrote cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The configuration cannot be built.
    #[error("{}: {source}", path.display())]
    Config {
        /// The model.
        path: PathBuf,
        /// The field at fault.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The checkpoint's tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The network cannot take an input.
    #[error("{}: {source}", path.display())]
    Input {
        /// The model.
        path: PathBuf,
        /// What does not fit.
        source: InputError,
    },
    /// The network does not have an output that was asked for.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The model.
        path: PathBuf,
        /// Which, and what there is.
        problem: String,
    },
}

impl EncoderError {
    /// Whether what was asked for, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Layout(error) => error.is_usage(),
            Self::Output { .. } => true,
            _ => false,
        }
    }
}

/// Where a model's configuration and tensors are.
enum Origin {
    /// A folder that training wrote.
    Own { config: Value, tensors: TensorFile },
    /// A checkpoint of any layout.
    Published(Box<Checkpoint>),
}

impl Origin {
    fn open(path: &Path) -> Result<Self, EncoderError> {
        match own_config(path)? {
            Some(config) => Ok(Self::Own { config, tensors: TensorFile::open(path.join(WEIGHTS))? }),
            None => Ok(Self::Published(Box::new(Checkpoint::open(path)?))),
        }
    }
}

/// The configuration of a folder that training wrote; none for other folders and files. Configurations of diffusers and
/// transformers name their class.
fn own_config(path: &Path) -> Result<Option<Value>, EncoderError> {
    if !path.join(CONFIG).is_file() || !path.join(WEIGHTS).is_file() {
        return Ok(None);
    }
    let config: Value = crate::artifacts::read_config(path)?;
    let published = ["_class_name", "model_type", "architectures"].iter().any(|key| config.get(key).is_some());
    Ok((!published).then_some(config))
}

/// Makes a network of its configuration.
type Build<C, M> = fn(&C, &mut Init<'_>) -> Result<M, ConfigError>;

/// A network whose configuration and tensors are known, and whose weights are read at its first use.
pub struct Frozen<C, M> {
    /// Its configuration.
    pub config: C,
    /// BLAKE3, in hexadecimal, of its tensors' names, types, shapes and elements: the same in every layout of
    /// checkpoints that stores the elements unchanged.
    pub weights: String,
    path: PathBuf,
    source: Box<dyn TensorSource>,
    build: Build<C, M>,
    network: Option<M>,
    /// The whole checkpoint, for what lies beside the network; none for a folder that training wrote.
    checkpoint: Option<Box<Checkpoint>>,
}

impl<C, M> std::fmt::Debug for Frozen<C, M> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Frozen").field("path", &self.path).field("weights", &self.weights).finish()
    }
}

impl<C, M: Module> Frozen<C, M> {
    /// Opens a component of the model at `path`. `own` makes the configuration of the one that training writes,
    /// `published` of that of diffusers or transformers.
    ///
    /// # Errors
    /// [`EncoderError`].
    fn open<W: DeserializeOwned, E: std::error::Error + Send + Sync + 'static>(
        path: &Path,
        component: Component,
        own: impl FnOnce(W) -> C,
        published: impl FnOnce(&Value) -> Result<C, E>,
        build: Build<C, M>,
    ) -> Result<Self, EncoderError> {
        let (config, source, checkpoint): (C, Box<dyn TensorSource>, _) = match Origin::open(path)? {
            Origin::Own { config, tensors } => {
                let wrong = |source| ArtifactError::Config { path: path.join(CONFIG), source };
                (own(serde_json::from_value(config).map_err(wrong)?), Box::new(tensors), None)
            }
            Origin::Published(checkpoint) => {
                let source = checkpoint.component(component)?;
                if !source.missing.is_empty() {
                    let keys = source.missing.clone();
                    return Err(LoadError::Missing { path: path.to_owned(), component, keys }.into());
                }
                let config = published(&source.config).map_err(|error| config_error(path, error))?;
                (config, Box::new(source), Some(checkpoint))
            }
        };
        let empty = build(&config, &mut Init::placeholders(&Device::flex())).map_err(|e| config_error(path, e))?;
        let names = state::layout(&empty).into_iter().map(|(name, _)| name).collect();
        let weights = hash_tensors(source.as_ref(), names)?;
        Ok(Self { config, weights, path: path.to_owned(), source, build, network: None, checkpoint })
    }

    /// The network with its weights, without autodiff; for activations in `bf16`, weights of rank two and more are too.
    /// It stays on the device of the first call.
    fn network(&mut self, device: &Device, dtype: DType) -> Result<&M, EncoderError> {
        let network = match self.network.take() {
            Some(network) => network,
            None => {
                let empty = (self.build)(&self.config, &mut Init::placeholders(device));
                let empty = empty.map_err(|error| config_error(&self.path, error))?;
                let precision = if dtype == DType::BF16 { WeightPrecision::Bf16 } else { WeightPrecision::F32 };
                fill_from(empty, self.source.as_ref(), precision, &|_| None)?
            }
        };
        Ok(self.network.insert(network))
    }
}

fn config_error(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> EncoderError {
    EncoderError::Config { path: path.to_owned(), source: error.into() }
}

/// BLAKE3, in hexadecimal, of tensors in the order of their names.
fn hash_tensors(source: &dyn TensorSource, mut names: Vec<String>) -> Result<String, TensorFileError> {
    names.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for name in &names {
        let tensor = source.tensor(name)?;
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        hasher.update(format!("{name}\t{}\t{}\n", tensor.dtype, shape.join("x")).as_bytes());
        hasher.update_rayon(&tensor.data);
        source.release(name);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
