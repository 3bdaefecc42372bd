//! A network of a checkpoint whose weights are read when they are needed, once.

use burn::tensor::{DType, Device};
use calotype_checkpoints::loading::{LoadError, adapted, fill_from, whole};
use calotype_checkpoints::{Checkpoint, Component, NetworkConfig};
use calotype_models::state::{self, WeightPrecision};
use calotype_models::{ConfigError, Init};
use calotype_weights::lora::LoraSet;
use calotype_weights::{Int8Tensor, TensorFileError, TensorSource};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Makes a network of its configuration.
pub type Build<C> = fn(&C, &mut Init<'_>) -> Result<<C as NetworkConfig>::Network, ConfigError>;

/// A network's device, precision and adapters.
#[derive(Clone)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// `F32` or `BF16`: type of the activations. For `BF16`, weights of rank two and more are kept in it too.
    pub dtype: DType,
    /// Adapters that are added to the weights.
    pub adapters: Option<Arc<LoraSet>>,
}

impl Placement {
    fn weights(&self) -> WeightPrecision {
        if self.dtype == DType::BF16 { WeightPrecision::Bf16 } else { WeightPrecision::F32 }
    }
}

/// A network whose configuration is known, and whose weights are read at the first [`get`](Self::get). It has no autodiff.
pub struct Network<C: NetworkConfig> {
    config: C,
    path: PathBuf,
    weights: Weights<C>,
}

enum Weights<C: NetworkConfig> {
    /// In memory, and never read again.
    Held(Arc<C::Network>),
    /// Read when they are needed.
    OnDemand(Origin<C>, Mutex<Option<Arc<C::Network>>>),
}

struct Origin<C: NetworkConfig> {
    source: Arc<dyn TensorSource>,
    component: Component,
    build: Build<C>,
    placement: Placement,
}

impl<C: NetworkConfig> fmt::Debug for Network<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Network").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<C: NetworkConfig> Network<C> {
    /// A component of a checkpoint. No weights are read yet.
    ///
    /// # Errors
    /// [`LoadError`]: the checkpoint lacks the component or tensors of it, or its configuration is not supported.
    pub fn open(checkpoint: &Checkpoint, component: Component, placement: &Placement) -> Result<Self, LoadError> {
        Self::open_as(checkpoint, component, C::build, placement)
    }

    /// A component of a checkpoint that `build` makes, which may be a part of the whole network: only the tensors of that part
    /// are read.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn open_as(
        checkpoint: &Checkpoint,
        component: Component,
        build: Build<C>,
        placement: &Placement,
    ) -> Result<Self, LoadError> {
        let source = whole(checkpoint, component)?;
        let path = checkpoint.path();
        let wrong = |source| LoadError::Config { path: path.to_owned(), component, source };
        let config = C::from_published(&source.config).map_err(wrong)?;
        Self::from_source(path, component, config, Arc::new(source), build, placement)
    }

    /// A network whose tensors have its own keys in `source`; `path` is what errors name.
    ///
    /// # Errors
    /// [`LoadError::Config`] for a configuration that cannot be built.
    pub fn from_source(
        path: &Path,
        component: Component,
        config: C,
        source: Arc<dyn TensorSource>,
        build: Build<C>,
        placement: &Placement,
    ) -> Result<Self, LoadError> {
        let origin = Origin { source, component, build, placement: placement.clone() };
        origin.empty(&config, path)?;
        Ok(Self { config, path: path.to_owned(), weights: Weights::OnDemand(origin, Mutex::new(None)) })
    }

    /// A network that is in memory already, without autodiff; `path` is what errors name.
    pub fn loaded(path: impl Into<PathBuf>, config: C, network: C::Network) -> Self {
        Self { config, path: path.into(), weights: Weights::Held(Arc::new(network)) }
    }

    /// Its configuration.
    pub fn config(&self) -> &C {
        &self.config
    }

    /// The checkpoint that it is from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of its parameters; no weights are read.
    ///
    /// # Errors
    /// [`LoadError::Config`] for a configuration that cannot be built.
    pub fn parameters(&self) -> Result<usize, LoadError> {
        let layout = match &self.weights {
            Weights::Held(network) => state::layout(&**network),
            Weights::OnDemand(origin, _) => state::layout(&origin.empty(&self.config, &self.path)?),
        };
        Ok(layout.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum())
    }

    /// Bytes of its weights in memory, with `element` for each that is not stored in 8 bits. Of a network that is in memory already, all
    /// are counted with `element`.
    ///
    /// # Errors
    /// As of [`parameters`](Self::parameters), and if scales cannot be read.
    pub fn weight_bytes(&self, element: usize) -> Result<usize, LoadError> {
        let Weights::OnDemand(origin, _) = &self.weights else { return Ok(element * self.parameters()?) };
        let mut bytes = 0;
        for (name, shape) in state::layout(&origin.empty(&self.config, &self.path)?) {
            let each = if origin.source.int8(&name)?.is_some() { 1 } else { element };
            bytes += each * shape.iter().product::<usize>();
        }
        Ok(bytes)
    }

    /// The network with its weights, which are read if they are not in memory.
    ///
    /// # Errors
    /// [`LoadError`] for the first tensor that cannot be read or does not fit.
    pub fn get(&self) -> Result<Arc<C::Network>, LoadError> {
        let (origin, loaded) = match &self.weights {
            Weights::Held(network) => return Ok(Arc::clone(network)),
            Weights::OnDemand(origin, loaded) => (origin, loaded),
        };
        // A panic while reading leaves nothing behind.
        let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = &*loaded {
            return Ok(Arc::clone(network));
        }
        let network = Arc::new(origin.read(&self.config, &self.path)?);
        *loaded = Some(Arc::clone(&network));
        Ok(network)
    }

    /// Takes the weights out of memory, if they can be read again.
    pub fn release(&self) {
        if let Weights::OnDemand(_, loaded) = &self.weights {
            *loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Reads the weights now and lets go of the file: it is neither read again nor kept open.
    ///
    /// # Errors
    /// As of [`get`](Self::get).
    pub fn keep(self) -> Result<Self, LoadError> {
        let network = self.get()?;
        Ok(Self { weights: Weights::Held(network), ..self })
    }

    /// BLAKE3, in hexadecimal, of the tensors' names, types, shapes and elements: the same in every layout of checkpoints
    /// that stores the elements unchanged. Empty for a network that has no file any more.
    ///
    /// # Errors
    /// [`LoadError`] if a tensor cannot be read.
    pub fn hash(&self) -> Result<String, LoadError> {
        let Weights::OnDemand(origin, _) = &self.weights else { return Ok(String::new()) };
        let empty = origin.empty(&self.config, &self.path)?;
        let names = state::layout(&empty).into_iter().map(|(name, _)| name).collect();
        Ok(hash_tensors(&*origin.source, names)?)
    }
}

impl<C: NetworkConfig> Origin<C> {
    /// The network before its weights are read.
    fn empty(&self, config: &C, path: &Path) -> Result<C::Network, LoadError> {
        (self.build)(config, &mut Init::placeholders(&self.placement.device)).map_err(|error| LoadError::Config {
            path: path.to_owned(),
            component: self.component,
            source: error.into(),
        })
    }

    fn read(&self, config: &C, path: &Path) -> Result<C::Network, LoadError> {
        let adapters = self.placement.adapters.as_deref().zip(adapted(self.component));
        fill_from(self.empty(config, path)?, &*self.source, self.placement.weights(), adapters)
    }
}

/// BLAKE3, in hexadecimal, of tensors in the order of their names; of those in 8 bits, of numbers and scales.
pub(crate) fn hash_tensors(source: &dyn TensorSource, mut names: Vec<String>) -> Result<String, TensorFileError> {
    names.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for name in &names {
        let int8 = source.int8(name)?;
        let (tensor, more) = match int8 {
            Some(Int8Tensor { numbers, scales, smooth }) => (numbers, [scales, smooth.unwrap_or_default()].concat()),
            None => (source.tensor(name)?, Vec::new()),
        };
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        hasher.update(format!("{name}\t{}\t{}\n", tensor.dtype, shape.join("x")).as_bytes());
        hasher.update_rayon(&tensor.data);
        for value in more {
            hasher.update(&value.to_le_bytes());
        }
        source.release(name);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
