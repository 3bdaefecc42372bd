//! Trained models on disk: a folder with `config.json` and `model.safetensors`.

use burn::module::Module;
use burn::tensor::Device;
use calotype_models::{ConfigError, Init, state};
use calotype_weights::{NamedTensor, TensorFile, TensorFileError, durable, write_safetensors};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// File name of a model's weights.
pub const WEIGHTS: &str = "model.safetensors";
/// File name of a model's configuration.
pub const CONFIG: &str = "config.json";

/// Why a model could not be saved or loaded; names the file.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The configuration is not what this model needs.
    #[error("{} is not a configuration of this kind of model: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The configuration cannot be built.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ConfigError,
    },
    /// The weights are missing or do not fit.
    #[error(transparent)]
    Weights(#[from] TensorFileError),
    /// The weights file holds tensors that the model has no place for.
    #[error("{} holds {count} tensors that the model has no place for, the first is `{first}`", path.display())]
    Unused {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first by name.
        first: String,
    },
}

/// Writes a module and its configuration to `folder`, both atomically.
///
/// # Errors
/// [`ArtifactError`] naming the file.
pub fn save_model<M: Module>(folder: &Path, module: &M, config: &impl Serialize) -> Result<(), ArtifactError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ArtifactError::Io { path, source }
    };
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let tensors: Vec<NamedTensor<'_>> = state::collect(module)
        .into_iter()
        .map(|t| NamedTensor::from_f32(t.name, t.shape, &t.values).into_owned())
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(WEIGHTS), &tensors, &metadata)?;
    let path = folder.join(CONFIG);
    let text =
        serde_json::to_vec_pretty(config).map_err(|source| ArtifactError::Config { path: path.clone(), source })?;
    durable::replace_file(&path, |file| file.write_all(&text)).map_err(io(&path))
}

/// Reads a configuration that [`save_model`] wrote.
///
/// # Errors
/// [`ArtifactError`] naming the file.
pub fn read_config<C: DeserializeOwned>(folder: &Path) -> Result<C, ArtifactError> {
    let path = folder.join(CONFIG);
    let text = std::fs::read(&path).map_err(|source| ArtifactError::Io { path: path.clone(), source })?;
    serde_json::from_slice(&text).map_err(|source| ArtifactError::Config { path, source })
}

/// Reads a module that [`save_model`] wrote: its structure from `init`, its weights from the file.
///
/// # Errors
/// [`ArtifactError`] naming file and tensor; every tensor of the file must have its place.
pub fn load_model<M: Module, C: DeserializeOwned>(
    folder: &Path,
    device: &Device,
    init: impl FnOnce(&C, &mut Init<'_>) -> Result<M, ConfigError>,
) -> Result<(M, C), ArtifactError> {
    let config: C = read_config(folder)?;
    let module = init(&config, &mut Init::new(0, device))
        .map_err(|source| ArtifactError::Model { path: folder.join(CONFIG), source })?;
    let path = folder.join(WEIGHTS);
    let file = TensorFile::open(&path)?;
    let mut unused: std::collections::BTreeSet<String> = file.names().map(str::to_owned).collect();
    let module = state::load(module, |name, shape| -> Result<Vec<f32>, TensorFileError> {
        unused.remove(name);
        file.get_shaped(name, shape)?.to_f32_vec_finite()
    })?;
    if let Some(first) = unused.first() {
        return Err(ArtifactError::Unused { path, count: unused.len(), first: first.clone() });
    }
    Ok((module, config))
}

/// A hash of a saved model's weights, in hexadecimal.
///
/// # Errors
/// [`ArtifactError`] if the weights cannot be read.
pub fn weights_hash(folder: &Path) -> Result<String, ArtifactError> {
    Ok(TensorFile::open(folder.join(WEIGHTS))?.file_blake3().to_hex().to_string())
}
