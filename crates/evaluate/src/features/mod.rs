//! What is computed of a picture: a network with its published preparation of the input.

pub mod clip;
pub mod custom;
pub(crate) mod framing;
pub mod inception;

use crate::{EvaluateError, Result};
use burn::tensor::{DType, Device};
use calotype_core::UnknownName;
use calotype_data::image::RgbImage;
use serde::{Deserialize, Serialize};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The name of features: a network and the preparation of its input, such as `inception/pytorch-fid`. Metrics that want
/// features of the same key share one pass over the pictures.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeatureKey(String);

impl FeatureKey {
    /// The features of a network of [`FEATURES`] behind one of its preparations.
    pub fn new(network: &str, preparation: &str) -> Self {
        Self(format!("{network}/{preparation}"))
    }

    /// Name of the network.
    pub fn network(&self) -> &str {
        self.0.split_once('/').map_or(self.0.as_str(), |(network, _)| network)
    }

    /// Name of the preparation.
    pub fn preparation(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, preparation)| preparation)
    }

    /// The key as a part of a file's name.
    pub(crate) fn file_stem(&self) -> String {
        self.0.replace('/', ".")
    }
}

impl std::fmt::Display for FeatureKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Everything that features depend on besides the picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFingerprint {
    /// The network in words, such as `Inception v3 (FID)`.
    pub network: String,
    /// Hash of its weights: BLAKE3, in hexadecimal, of the tensors under canonical keys, whatever the file's layout.
    pub weights: String,
    /// True if these are known to be the published weights, after which figures may be called by their published names.
    pub official: bool,
    /// How a picture becomes the network's input: size, filter, normalisation.
    pub resize: String,
    /// Where the preparation rounds, and to what.
    pub rounding: String,
    /// Number type of the network's activations: `f32` or `bf16`.
    pub precision: String,
}

impl NetworkFingerprint {
    /// Its fields by name, in words.
    pub(crate) fn fields(&self) -> [(&'static str, &str); 5] {
        let Self { network, weights, official: _, resize, rounding, precision } = self;
        let values = [network, weights, resize, rounding, precision].map(String::as_str);
        let names = ["network", "weights", "resize", "rounding", "precision"];
        std::array::from_fn(|at| (names[at], values[at]))
    }

    /// In what another one differs, with both values; nothing if features of both compare.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let pairs = self.fields().into_iter().zip(other.fields());
        let mut unlike = pairs.filter(|(ours, theirs)| ours != theirs);
        unlike.next().map(|((name, ours), (_, theirs))| format!("{name} {ours} there, and {theirs} here"))
    }
}

/// What a network gives for pictures, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageRows {
    /// Features, `[pictures, width]`.
    pub features: Vec<f32>,
    /// Logits of classes, `[pictures, classes]`; empty if the network has none.
    pub logits: Vec<f32>,
}

/// A network that looks at pictures, with the published preparation of its input.
pub trait Features: Send {
    /// Its name.
    fn key(&self) -> &FeatureKey;

    /// What its features depend on.
    fn fingerprint(&self) -> &NetworkFingerprint;

    /// Values in a picture's features.
    fn width(&self) -> usize;

    /// Classes of its logits, 0 if it has none.
    fn classes(&self) -> usize {
        0
    }

    /// Rows of pictures of any sizes. A picture's rows are the same bits in any batch.
    ///
    /// # Errors
    /// A picture cannot be prepared, or the network cannot take it.
    fn images(&self, images: &[&RgbImage]) -> Result<ImageRows>;

    /// Features of captions in the same space, `[captions, width]`.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] if the network reads no text.
    fn captions(&self, captions: &[&str]) -> Result<Vec<f32>> {
        let _ = captions;
        Err(EvaluateError::Usage(format!("{} looks at pictures alone, it reads no captions", self.key())))
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A published way to prepare pictures for a network.
#[derive(Clone, Copy, Debug)]
pub struct Preparation {
    /// Its name in keys and options.
    pub name: &'static str,
    /// What it does, for help texts.
    pub about: &'static str,
}

/// A row of the table of networks.
pub struct FeatureEntry {
    /// Name in keys.
    pub network: &'static str,
    /// What it is, for help texts.
    pub about: &'static str,
    /// Its preparations.
    pub preparations: &'static [Preparation],
    /// Opens it with one of its preparations.
    pub open: fn(&Networks, &Preparation) -> Result<Box<dyn Features>>,
}

/// The networks that pictures can be judged with.
pub const FEATURES: &[FeatureEntry] = &[inception::ENTRY, clip::ENTRY, custom::ENTRY];

/// Files of networks, and where those run. A file is read once, whatever the number of keys that use it.
pub struct Networks {
    /// The Inception network of the FID: pytorch-fid's file, or its weights in another layout.
    pub inception: Option<PathBuf>,
    /// A CLIP model with both towers.
    pub clip: Option<PathBuf>,
    /// Any other network that gives features of pictures.
    pub features: Option<PathBuf>,
    /// Where they run.
    pub device: Device,
    /// Number type of CLIP's and other networks' activations; Inception always runs in `f32`.
    pub precision: DType,
    opened: Mutex<HashMap<(TypeId, PathBuf), Arc<dyn Any + Send + Sync>>>,
}

impl Networks {
    /// No files, `f32`.
    pub fn new(device: Device) -> Self {
        let (inception, clip, features) = Default::default();
        Self { inception, clip, features, device, precision: DType::F32, opened: Mutex::default() }
    }

    /// The features of a key.
    ///
    /// # Errors
    /// [`EvaluateError::Unknown`] for a name that is in no table; [`EvaluateError::Usage`] if the network's file was not
    /// given; [`EvaluateError::Encoder`] if it cannot be used.
    pub fn open(&self, key: &FeatureKey) -> Result<Box<dyn Features>> {
        let unknown =
            |what, name: &str, known: Vec<&str>| UnknownName { what, name: name.to_owned(), known: known.join(", ") };
        let entry = FEATURES.iter().find(|entry| entry.network == key.network());
        let entry = entry.ok_or_else(|| {
            unknown("network of features", key.network(), FEATURES.iter().map(|entry| entry.network).collect())
        })?;
        let preparation = entry.preparations.iter().find(|preparation| preparation.name == key.preparation());
        let preparation = preparation.ok_or_else(|| {
            let known = entry.preparations.iter().map(|preparation| preparation.name).collect();
            unknown("preparation of this network", key.preparation(), known)
        })?;
        (entry.open)(self, preparation)
    }

    /// What `open` makes of a file, made once and shared by all keys that use the file.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn shared<T: Any + Send + Sync>(&self, path: &Path, open: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let key = (TypeId::of::<T>(), path.to_owned());
        let opened = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let found = opened().get(&key).and_then(|found| Arc::clone(found).downcast().ok());
        if let Some(found) = found {
            return Ok(found);
        }
        // The lock is free meanwhile, for a network may be made of others.
        let made = Arc::new(open()?);
        opened().insert(key, Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
        Ok(made)
    }
}
