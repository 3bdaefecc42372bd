//! Vision models, told apart by what a checkpoint holds.

use super::classifier::Head;
use super::clip::Clip;
use super::head::{HeadNetwork, component_with_head, names_of};
use super::lists::class_names;
use super::preparation::ClassifierInput;
use crate::features::{FeatureKey, Features, Networks};
use crate::{EvaluateError, Result};
use burn::tensor::{DType, Device};
use calotype_checkpoints::{Checkpoint, Component};
use calotype_weights::TensorSource;
use std::path::Path;

/// Where networks run, and in which precision.
#[derive(Clone, Debug)]
pub struct Placing {
    /// The device.
    pub device: Device,
    /// Type of the activations.
    pub dtype: DType,
}

/// True if a checkpoint holds a network with a head of classes.
pub fn has_head(checkpoint: &Checkpoint) -> bool {
    component_with_head(checkpoint).is_some()
}

/// Refuses a checkpoint by which nothing is classified: one that is neither a classifier nor CLIP.
///
/// # Errors
/// [`EvaluateError::Usage`] saying what it holds.
pub fn check_classifies(checkpoint: &Checkpoint) -> Result<()> {
    match has_head(checkpoint) || checkpoint.components().contains(&Component::Clip) {
        true => Ok(()),
        false => Err(other(checkpoint, &format!("{CLASSIFIER}, and no {CLIP}"))),
    }
}

/// A checkpoint's network with a head of classes. `names` are those of its classes, as [`class_names`] takes them; none: its
/// own.
///
/// # Errors
/// [`EvaluateError`]: there is no such network in it, or the list does not fit its head.
pub fn open_head(
    checkpoint: &Checkpoint,
    names: &[String],
    preparation: ClassifierInput,
    placing: &Placing,
) -> Result<Head> {
    let Some(component) = component_with_head(checkpoint) else {
        return Err(other(checkpoint, CLASSIFIER));
    };
    let names = if names.is_empty() { names_of(checkpoint, component)? } else { class_names(names)? };
    let network = HeadNetwork::open(checkpoint, component, preparation, placing.dtype, &placing.device)?;
    Head::new(Box::new(network), names)
}

/// A checkpoint's CLIP model, with pictures prepared as its own `preprocessor_config.json` says, or else as open_clip does.
///
/// # Errors
/// [`EvaluateError`]: it does not hold both towers, or its tokenizer cannot be used.
pub fn open_clip(checkpoint: &Checkpoint, placing: &Placing) -> Result<Clip> {
    if !checkpoint.components().contains(&Component::Clip) {
        return Err(other(checkpoint, CLIP));
    }
    let preparation = if checkpoint.image_processor()?.is_some() { "transformers" } else { "open_clip" };
    let networks = networks(checkpoint.path(), placing);
    let features = networks.open(&FeatureKey::new("clip", preparation))?;
    let tokenizer =
        checkpoint.tokenizer(Component::TextEncoder).map_err(|error| EvaluateError::Encoder(error.into()))?;
    Ok(Clip::new(features, tokenizer, scale_of(checkpoint)?))
}

/// Any network that gives features of pictures, prepared as its own `preprocessor_config.json` says, or else as its figures
/// were published.
///
/// # Errors
/// [`EvaluateError`]: there is none, or its preparation cannot be followed.
pub fn open_features(path: &Path, placing: &Placing) -> Result<Box<dyn Features>> {
    let preparation = if Checkpoint::open(path)?.image_processor()?.is_some() { "processor" } else { "auto" };
    networks(path, placing).open(&FeatureKey::new("custom", preparation))
}

fn networks(path: &Path, placing: &Placing) -> Networks {
    let mut networks = Networks::new(placing.device.clone());
    networks.clip = Some(path.to_owned());
    networks.features = Some(path.to_owned());
    networks.precision = placing.dtype;
    networks
}

/// `exp(logit_scale)`.
fn scale_of(checkpoint: &Checkpoint) -> Result<f32> {
    let source = checkpoint.component(Component::Clip)?;
    let tensor = source.tensor("logit_scale").map_err(|error| EvaluateError::Encoder(error.into()))?;
    let scale = tensor.to_f32_vec().and_then(|values| values.first().copied()).map(f32::exp);
    match scale.filter(|scale| scale.is_finite()) {
        Some(scale) => Ok(scale),
        None => Err(EvaluateError::File {
            path: checkpoint.path().to_owned(),
            detail: "its logit_scale is no finite number".to_owned(),
        }),
    }
}

/// What classifies without names of classes.
const CLASSIFIER: &str = "classifier with a head of classes (ViT, EfficientNet-Lite)";
/// What compares pictures and texts.
const CLIP: &str = "CLIP model with both towers";

/// What to say of a checkpoint that is another one than wanted.
fn other(checkpoint: &Checkpoint, wanted: &str) -> EvaluateError {
    let found: Vec<&str> = checkpoint.components().iter().map(|component| component.name()).collect();
    let found = if found.is_empty() { "nothing that is known".to_owned() } else { found.join(", ") };
    EvaluateError::Usage(format!("{}: is no {wanted}; it holds {found}", checkpoint.path().display()))
}
