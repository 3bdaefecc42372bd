//! Networks with the head of classes that they were trained with: ViT and EfficientNet-Lite.

use super::lists::class_names;
use super::preparation::{ClassifierInput, Prepared};
use crate::error::misfit;
use crate::features::{FeatureKey, Features, ImageRows, NetworkFingerprint};
use crate::{EvaluateError, Result};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::{Checkpoint, Component};
use calotype_data::image::RgbImage;
use calotype_models::state::values_of;
use calotype_models::{EfficientNetLiteConfig, InputError, VitConfig};
use calotype_pipeline::batches::stack;
use calotype_pipeline::network::{Network, Placement};
use rayon::prelude::*;
use serde_json::Value;
use std::path::Path;

/// Classes of ImageNet, whose names are known where a checkpoint does not say them.
const IMAGENET_CLASSES: usize = 1000;

/// The component of a checkpoint that has a head of classes, if one has.
pub(super) fn component_with_head(checkpoint: &Checkpoint) -> Option<Component> {
    let with_head = |component: &Component| matches!(component, Component::Classifier | Component::EfficientNetLite);
    checkpoint.components().into_iter().find(with_head)
}

enum Classifying {
    Vit(Network<VitConfig>),
    /// Runs in `f32`, as all convolutional networks that look at pictures here.
    EfficientNetLite(Network<EfficientNetLiteConfig>),
}

impl Classifying {
    fn open(checkpoint: &Checkpoint, component: Component, dtype: DType, device: &Device) -> Result<Self> {
        let placement = |dtype| Placement { device: device.clone(), dtype, adapters: None };
        Ok(match component {
            Component::EfficientNetLite => {
                Self::EfficientNetLite(Network::open(checkpoint, component, &placement(DType::F32))?)
            }
            component => Self::Vit(Network::open(checkpoint, component, &placement(dtype))?),
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Vit(network) => network.path(),
            Self::EfficientNetLite(network) => network.path(),
        }
    }

    fn side(&self) -> usize {
        match self {
            Self::Vit(network) => network.config().image_size,
            Self::EfficientNetLite(network) => network.config().side(),
        }
    }

    fn labels(&self) -> usize {
        match self {
            Self::Vit(network) => network.config().labels,
            Self::EfficientNetLite(network) => network.config().labels,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Vit(network) => format!("ViT, patches of {} pixels", network.config().patch_size),
            Self::EfficientNetLite(network) => format!("EfficientNet-Lite{}", network.config().variant),
        }
    }

    fn hash(&self) -> Result<String> {
        Ok(match self {
            Self::Vit(network) => network.hash()?,
            Self::EfficientNetLite(network) => network.hash()?,
        })
    }

    fn logits(&self, images: Tensor<4>) -> Result<std::result::Result<Tensor<2>, InputError>> {
        Ok(match self {
            Self::Vit(network) => network.get()?.forward(images),
            Self::EfficientNetLite(network) => network.get()?.forward(images).map(|output| output.logits),
        })
    }
}

/// A network whose logits are wanted. Its weights are read at its first use.
pub struct HeadNetwork {
    network: Classifying,
    component: Component,
    prepared: Prepared,
    dtype: DType,
    device: Device,
    key: FeatureKey,
    fingerprint: NetworkFingerprint,
}

impl HeadNetwork {
    /// Opens the component of a checkpoint that has a head; its weights are hashed. Convolutional networks run in `f32`.
    ///
    /// # Errors
    /// [`EvaluateError::Encoder`] if the checkpoint does not hold the whole network, [`EvaluateError::File`] for a
    /// preparation that cannot be followed.
    pub(super) fn open(
        checkpoint: &Checkpoint,
        component: Component,
        preparation: ClassifierInput,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let network = Classifying::open(checkpoint, component, dtype, device)?;
        let dtype = if component == Component::EfficientNetLite { DType::F32 } else { dtype };
        let prepared = preparation.of(checkpoint, component, network.side())?;
        let (resize, rounding) = prepared.describe();
        let fingerprint = NetworkFingerprint {
            network: network.name(),
            weights: network.hash()?,
            official: false,
            resize,
            rounding,
            precision: dtype.name().to_owned(),
        };
        let key = FeatureKey::new(component.name(), preparation.name());
        Ok(Self { network, component, prepared, dtype, device: device.clone(), key, fingerprint })
    }
}

impl Features for HeadNetwork {
    fn key(&self) -> &FeatureKey {
        &self.key
    }

    fn fingerprint(&self) -> &NetworkFingerprint {
        &self.fingerprint
    }

    /// Its logits alone are wanted.
    fn width(&self) -> usize {
        0
    }

    fn classes(&self) -> usize {
        self.network.labels()
    }

    fn images(&self, images: &[&RgbImage]) -> Result<ImageRows> {
        let side = self.network.side();
        let pixels = images.par_iter().map(|image| self.prepared.apply(image)).collect::<Result<Vec<_>>>()?;
        let rows = pixels.iter().map(Vec::as_slice);
        let batch: Tensor<4> = stack(rows, &[side, side, 3], self.dtype, &self.device);
        let logits = self.network.logits(batch)?.map_err(misfit(self.network.path(), self.component))?;
        Ok(ImageRows { features: Vec::new(), logits: values_of(logits.cast(DType::F32)) })
    }
}

/// The names of a head's classes, by number: what the checkpoint's configuration says (`id2label`); where it says nothing,
/// ImageNet's for an EfficientNet-Lite of its 1,000 classes, and the numbers for others.
///
/// # Errors
/// [`EvaluateError::Encoder`] if the checkpoint does not hold the component; [`EvaluateError::File`] for names without some
/// number.
pub(super) fn names_of(checkpoint: &Checkpoint, component: Component) -> Result<Vec<String>> {
    let config = checkpoint.component(component)?.config;
    let Some(named) = config["id2label"].as_object().filter(|named| !named.is_empty()) else {
        // What transformers assumes.
        let labels = config["num_labels"].as_u64().unwrap_or(2) as usize;
        if component == Component::EfficientNetLite && labels == IMAGENET_CLASSES {
            return class_names(&["imagenet".to_owned()]);
        }
        return Ok((0..labels).map(|class| class.to_string()).collect());
    };
    let name = |class: usize| named.get(&class.to_string()).and_then(Value::as_str).map(str::to_owned);
    let missing = |class: usize| EvaluateError::File {
        path: checkpoint.path().to_owned(),
        detail: format!("its configuration names {} classes, and not class {class} (`id2label`)", named.len()),
    };
    (0..named.len()).map(|class| name(class).ok_or_else(|| missing(class))).collect()
}
