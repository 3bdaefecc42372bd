//! Networks with the weights of a checkpoint, whatever its layout.

use crate::{Checkpoint, Component, ComponentSource, LayoutError, NetworkConfig};
use burn::module::Module;
use burn::tensor::{DType, Device};
use calotype_models::state::{StateError, StoredTensor, WeightPrecision, load_with};
use calotype_models::{
    Autoencoder, AutoencoderConfig, Clip, ClipConfig, ClipImageEncoder, ClipTextEncoder, ImageEncoderConfig, Inception,
    InceptionConfig, Init, TextEncoderConfig, UNet, UNetConfig, Vit, VitConfig,
};
use calotype_weights::lora::{self, LoraSet};
use calotype_weights::{Dtype, TensorFileError, TensorSource};
use std::borrow::Cow;
use std::path::PathBuf;

/// A network that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint does not hold it, or not in this form.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A tensor cannot be read.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
    /// A tensor does not fit.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration asks for what there is not.
    #[error("{}: {component}: {source}", path.display())]
    Config {
        /// The checkpoint.
        path: PathBuf,
        /// The network.
        component: Component,
        /// The fields at fault.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Tensors that the configuration asks for are not there.
    #[error("{}: {component} lacks {} tensors: {}", path.display(), keys.len(), first(keys))]
    Missing {
        /// The checkpoint.
        path: PathBuf,
        /// The network.
        component: Component,
        /// Their keys.
        keys: Vec<String>,
    },
    /// A tensor of numbers that are no weights.
    #[error("{}: tensor `{tensor}` has element type {dtype}; weights are F64, F32, F16 or BF16", path.display())]
    Dtype {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
}

/// The first few of many keys.
fn first(keys: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = if keys.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", keys[..keys.len().min(SHOWN)].join(", "))
}

/// Loads networks of one checkpoint.
pub struct Loader<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// The device on which the networks will live.
    pub device: &'a Device,
    /// In which precision the weights are kept.
    pub precision: WeightPrecision,
    /// Adapters that are added to the weights.
    pub adapters: Option<&'a LoraSet>,
}

impl Loader<'_> {
    /// The UNet and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn unet(&self) -> Result<(UNetConfig, UNet), LoadError> {
        self.network(Component::Unet)
    }

    /// The autoencoder and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn autoencoder(&self) -> Result<(AutoencoderConfig, Autoencoder), LoadError> {
        self.network(Component::Vae)
    }

    /// A text encoder ([`Component::TextEncoder`] or [`Component::TextEncoder2`]) and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn text_encoder(&self, component: Component) -> Result<(TextEncoderConfig, ClipTextEncoder), LoadError> {
        self.network(component)
    }

    /// The image tower of a CLIP model and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn image_encoder(&self) -> Result<(ImageEncoderConfig, ClipImageEncoder), LoadError> {
        self.network(Component::ImageEncoder)
    }

    /// A whole CLIP model and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn clip(&self) -> Result<(ClipConfig, Clip), LoadError> {
        self.network(Component::Clip)
    }

    /// A classifier and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn classifier(&self) -> Result<(VitConfig, Vit), LoadError> {
        self.network(Component::Classifier)
    }

    /// The network of the Fréchet distance, with its norms folded into its convolutions.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn inception(&self) -> Result<Inception, LoadError> {
        let (_, network) = self.network::<InceptionConfig>(Component::Inception)?;
        Ok(network.folded())
    }

    fn network<C: NetworkConfig>(&self, component: Component) -> Result<(C, C::Network), LoadError> {
        let source = self.checkpoint.component(component)?;
        let config_error = |source| LoadError::Config { path: self.checkpoint.path().to_owned(), component, source };
        let config = C::from_published(&source.config).map_err(config_error)?;
        let empty = config.build(&mut Init::placeholders(self.device)).map_err(|error| config_error(error.into()))?;
        let module = self.fill(empty, &source)?;
        Ok((config, module))
    }

    /// Gives a network the tensors of a component.
    ///
    /// # Errors
    /// [`LoadError`] for the first tensor that is missing or does not fit.
    pub fn fill<M: Module>(&self, network: M, source: &ComponentSource) -> Result<M, LoadError> {
        if !source.missing.is_empty() {
            let (path, component) = (self.checkpoint.path().to_owned(), source.component);
            return Err(LoadError::Missing { path, component, keys: source.missing.clone() });
        }
        fill_from(network, source, self.precision, &|key| self.delta(source.component, key))
    }

    fn delta(&self, component: Component, key: &str) -> Option<Vec<f32>> {
        let component = match component {
            Component::Unet => lora::Component::Unet,
            Component::TextEncoder => lora::Component::TextEncoder,
            Component::TextEncoder2 => lora::Component::TextEncoder2,
            _ => return None,
        };
        self.adapters?.delta(component, key)
    }
}

/// Gives a network the tensors of a source that has them under the network's own keys; `delta` is what is added to a
/// tensor, where there is anything.
///
/// # Errors
/// [`LoadError`] for the first tensor that is missing or does not fit.
pub fn fill_from<M: Module>(
    network: M,
    source: &dyn TensorSource,
    precision: WeightPrecision,
    delta: &dyn Fn(&str) -> Option<Vec<f32>>,
) -> Result<M, LoadError> {
    let name = source.origin().display().to_string();
    let mut before: Option<String> = None;
    load_with(network, precision, |key, needed| {
        // What the tensor before took of the memory map is not needed any more.
        if let Some(before) = before.replace(key.to_owned()) {
            source.release(&before);
        }
        let mut tensor = source.tensor(key)?;
        // A published scalar has no axis, a parameter has one.
        if tensor.shape.is_empty() {
            tensor.shape = needed.to_vec();
        }
        let dtype = element_type(tensor.dtype).ok_or_else(|| LoadError::Dtype {
            path: source.origin().to_owned(),
            tensor: key.to_owned(),
            dtype: tensor.dtype,
        })?;
        let stored = match delta(key) {
            None => StoredTensor { source_name: &name, dtype, shape: tensor.shape, bytes: tensor.data },
            Some(delta) => {
                let values = tensor.to_f32_vec().unwrap_or_default();
                let sum = values.iter().zip(&delta).flat_map(|(a, b)| (a + b).to_le_bytes());
                let bytes = Cow::Owned(sum.collect());
                StoredTensor { source_name: &name, dtype: DType::F32, shape: tensor.shape, bytes }
            }
        };
        Ok::<_, LoadError>(stored)
    })
}

/// The type of a stored weight's elements; none if it is no weight.
fn element_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
