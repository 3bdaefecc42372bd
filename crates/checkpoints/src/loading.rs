//! Networks with the weights of a checkpoint, whatever its layout.

use crate::{Checkpoint, Component, ComponentSource, LayoutError, NetworkConfig};
use burn::module::Module;
use burn::tensor::{DType, Device};
use calotype_models::state::{QuantisedTensor, StateError, Stored, StoredTensor, WeightPrecision, load_stored};
use calotype_models::{
    Autoencoder, AutoencoderConfig, Clip, ClipConfig, ClipImageEncoder, ClipTextEncoder, Dinov2, Dinov2Config,
    EfficientNetLite, EfficientNetLiteConfig, ImageEncoderConfig, Inception, InceptionConfig, Init,
    KerasInceptionConfig, TextEncoderConfig, UNet, UNetConfig, Vit, VitConfig,
};
use calotype_weights::lora::{self, LoraSet};
use calotype_weights::{Dtype, Int8Tensor, NamedTensor, TensorFileError, TensorSource};
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
    /// There are tensors of the network that its structure has no place for.
    #[error(
        "{}: {component} has no place for {} of its tensors: {}; it is another network than it seems, and would draw something \
         else: take a whole file (`calotype convert --allow-unused` makes one without them)",
        path.display(), keys.len(), first(keys)
    )]
    Unplaced {
        /// The checkpoint.
        path: PathBuf,
        /// The network.
        component: Component,
        /// Their keys, as stored.
        keys: Vec<String>,
    },
    /// Adapters do not fit numbers in 8 bits.
    #[error(
        "{}: tensor `{tensor}` is in 8 bits, which no adapter can be added to: draw with the checkpoint that this one was quantized from, \
         or quantize one that the adapter was merged into", path.display()
    )]
    Int8Adapter {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of numbers that are no weights.
    #[error("{}: tensor `{tensor}` has element type {dtype}; weights are F64, F32, F16, BF16, F8_E4M3 or F8_E5M2", path.display())]
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

    /// Keras' Inception v3, with its norms folded into its convolutions.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn keras_inception(&self) -> Result<Inception, LoadError> {
        let (_, network) = self.network::<KerasInceptionConfig>(Component::KerasInception)?;
        Ok(network.folded())
    }

    /// DINOv2 and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn dinov2(&self) -> Result<(Dinov2Config, Dinov2), LoadError> {
        self.network(Component::Dinov2)
    }

    /// EfficientNet-Lite and its configuration.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn efficientnet_lite(&self) -> Result<(EfficientNetLiteConfig, EfficientNetLite), LoadError> {
        self.network(Component::EfficientNetLite)
    }

    fn network<C: NetworkConfig>(&self, component: Component) -> Result<(C, C::Network), LoadError> {
        let source = whole(self.checkpoint, component)?;
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
        fill_from(network, source, self.precision, self.adapters.zip(adapted(source.component)))
    }
}

/// A component of which every tensor that its configuration asks for is there, and, in a UNet, none besides.
///
/// # Errors
/// [`LoadError::Layout`], [`LoadError::Missing`], [`LoadError::Unplaced`].
pub fn whole(checkpoint: &Checkpoint, component: Component) -> Result<ComponentSource, LoadError> {
    let source = checkpoint.component(component)?;
    let path = || checkpoint.path().to_owned();
    if !source.missing.is_empty() {
        return Err(LoadError::Missing { path: path(), component, keys: source.missing });
    }
    let keys = checkpoint.unplaced(component);
    // Other networks are built from what is there, too, but have strangers among their keys in files that draw well.
    match component == Component::Unet && !keys.is_empty() {
        true => Err(LoadError::Unplaced { path: path(), component, keys }),
        false => Ok(source),
    }
}

/// The component under which adapters change a network; none for those that they leave alone.
pub fn adapted(component: Component) -> Option<lora::Component> {
    match component {
        Component::Unet => Some(lora::Component::Unet),
        Component::TextEncoder => Some(lora::Component::TextEncoder),
        Component::TextEncoder2 => Some(lora::Component::TextEncoder2),
        Component::Vae
        | Component::ImageEncoder
        | Component::Clip
        | Component::Classifier
        | Component::Inception
        | Component::KerasInception
        | Component::Dinov2
        | Component::EfficientNetLite => None,
    }
}

/// Gives a network the tensors of a source that has them under the network's own keys, changed by adapters of a component.
///
/// # Errors
/// [`LoadError`] for the first tensor that is missing or does not fit.
pub fn fill_from<M: Module>(
    network: M,
    source: &dyn TensorSource,
    precision: WeightPrecision,
    adapters: Option<(&LoraSet, lora::Component)>,
) -> Result<M, LoadError> {
    let name = source.origin().display().to_string();
    let mut before: Option<String> = None;
    load_stored(network, precision, |key, needed| {
        // What the tensor before took of the memory map is not needed any more.
        if let Some(before) = before.replace(key.to_owned()) {
            source.release(&before);
        }
        let change = adapters.filter(|(set, component)| set.changes(*component, key));
        if let Some(Int8Tensor { numbers, scales, smooth }) = source.int8(key)? {
            if change.is_some() {
                return Err(LoadError::Int8Adapter { path: source.origin().to_owned(), tensor: key.to_owned() });
            }
            let NamedTensor { shape, data, .. } = numbers;
            let numbers = StoredTensor { source_name: &name, dtype: DType::I8, shape, bytes: data };
            return Ok(Stored::Quantised(QuantisedTensor { numbers, scales, smooth }));
        }
        let mut tensor = source.tensor(key)?;
        // A published scalar has no axis, a parameter has one.
        if tensor.shape.is_empty() {
            tensor.shape = needed.to_vec();
        }
        let wrong =
            || LoadError::Dtype { path: source.origin().to_owned(), tensor: key.to_owned(), dtype: tensor.dtype };
        let stored = match (change, element_type(tensor.dtype)) {
            (None, Some(dtype)) => StoredTensor { source_name: &name, dtype, shape: tensor.shape, bytes: tensor.data },
            // Every 8-bit float is one of bfloat16, too.
            (None, None) => {
                let values = tensor.to_f32_vec().ok_or_else(wrong)?;
                let bytes = values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
                StoredTensor { source_name: &name, dtype: DType::BF16, shape: tensor.shape, bytes: Cow::Owned(bytes) }
            }
            (Some((set, component)), _) => {
                let mut values = tensor.to_f32_vec().ok_or_else(wrong)?;
                set.apply(component, key, &mut values);
                let bytes = Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect());
                StoredTensor { source_name: &name, dtype: DType::F32, shape: tensor.shape, bytes }
            }
        };
        Ok::<_, LoadError>(Stored::Tensor(stored))
    })
}

/// The type of a stored weight's elements, as they are taken without a conversion; none for others.
fn element_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
