//! The tensors that a network of a given configuration has, as its own module lays them out.
//!
//! Canonical keys and configurations are diffusers' for UNet and autoencoder, transformers' published ones for CLIP and
//! ViT, pytorch-fid's for Inception: those that the modules of `calotype-models` have.

use crate::error::LayoutError;
use crate::kinds::Component;
use burn::module::Module;
use burn::tensor::Device;
use calotype_models::state::layout;
use calotype_models::{
    AutoencoderConfig, ClipConfig, ConfigError, ImageEncoderConfig, InceptionConfig, Init, TextEncoderConfig,
    UNetConfig, VitConfig,
};
use serde_json::Value;

/// Key and shape of one tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorSpec {
    /// The canonical key.
    pub name: String,
    /// Size of each axis, in the canonical order.
    pub shape: Vec<usize>,
}

/// All tensors of a component of the given configuration. The network is built of placeholders, which take no memory.
///
/// # Errors
/// [`LayoutError::Config`] naming a field that is malformed, out of bounds, or asks for what is not built.
pub fn component_keys(component: Component, config: &Value) -> Result<Vec<TensorSpec>, LayoutError> {
    check_bounds(config).map_err(|reason| LayoutError::Config { component, reason })?;
    let mut tensors = network_layout(component, config)
        .map_err(|error| LayoutError::Config { component, reason: reason(&*error) })?;
    for (name, shape) in &mut tensors {
        canonical_shape(name, shape);
    }
    Ok(tensors.into_iter().map(|(name, shape)| TensorSpec { name, shape }).collect())
}

/// An error's text without the class that it names: the component is named already.
pub(crate) fn reason(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let text = error.to_string();
    text.split_once(" configuration: ").map_or(text.as_str(), |(_, reason)| reason).to_owned()
}

/// Turns a parameter's shape into the published one: tensors have an axis at least, published scalars have none.
pub(crate) fn canonical_shape(name: &str, shape: &mut Vec<usize>) {
    if name == LOGIT_SCALE {
        shape.clear();
    }
}

/// The one scalar among the canonical tensors.
const LOGIT_SCALE: &str = "logit_scale";

type Layout = Vec<(String, Vec<usize>)>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn network_layout(component: Component, config: &Value) -> Result<Layout, Failure> {
    fn of<M: Module>(build: impl FnOnce(&mut Init<'_>) -> Result<M, ConfigError>) -> Result<Layout, Failure> {
        let device = Device::flex();
        Ok(layout(&build(&mut Init::placeholders(&device))?))
    }
    match component {
        Component::Unet => {
            let config = UNetConfig::from_diffusers(config)?;
            of(|init| config.init(init))
        }
        Component::Vae => {
            let config = AutoencoderConfig::from_diffusers(config)?;
            of(|init| config.init(init))
        }
        Component::TextEncoder | Component::TextEncoder2 => {
            let config = TextEncoderConfig::from_transformers(config)?;
            of(|init| config.init(init))
        }
        Component::ImageEncoder => {
            let config = ImageEncoderConfig::from_transformers(config)?;
            of(|init| config.init(init))
        }
        Component::Clip => {
            let config = ClipConfig::from_transformers(config)?;
            of(|init| config.init(init))
        }
        Component::Classifier => {
            let config = VitConfig::from_transformers(config)?;
            of(|init| config.init(init))
        }
        Component::Inception => of(|init| Ok(InceptionConfig::default().init(init))),
    }
}

/// Checks that diffusers or transformers can say what a configuration is.
///
/// # Errors
/// The field that has no place there.
pub(crate) fn check_published(component: Component, config: &Value) -> Result<(), Failure> {
    match component {
        Component::Unet => {
            let unet = UNetConfig::from_diffusers(config)?;
            drop(unet.to_diffusers()?);
        }
        Component::Classifier => drop(VitConfig::from_transformers(config)?.to_transformers()?),
        _ => {}
    }
    Ok(())
}

/// Most that a size in a configuration may be. It keeps products of a few of them far from overflow.
const MOST_SIZE: u64 = 1 << 20;
/// Numbers of modules, which take memory even as placeholders, and the most that they may be.
const COUNTS: [(&str, u64); 3] =
    [("layers_per_block", 16), ("num_hidden_layers", 256), ("transformer_layers_per_block", 64)];
/// Lists with an entry for each level of a network, and the most levels.
const LEVELS: (&str, usize) = ("block_out_channels", 8);
/// Fields whose numbers are sizes.
const SIZES: [&str; 16] = [
    "attention_head_dim",
    "block_out_channels",
    "class_tokens",
    "cross_attention_dim",
    "hidden_size",
    "image_size",
    "in_channels",
    "intermediate_size",
    "latent_channels",
    "max_position_embeddings",
    "num_labels",
    "out_channels",
    "patch_size",
    "projection_class_embeddings_input_dim",
    "projection_dim",
    "vocab_size",
];

/// Refuses numbers that no model comes near before anything is made of them.
fn check_bounds(config: &Value) -> Result<(), String> {
    let fields = config.as_object().ok_or("is not a JSON object")?;
    for (name, value) in fields {
        let most = match COUNTS.iter().find(|(count, _)| count == name) {
            Some((_, most)) => *most,
            None if SIZES.contains(&name.as_str()) => MOST_SIZE,
            None if value.is_object() && name.ends_with("_config") => {
                check_bounds(value).map_err(|reason| format!("{reason} (in `{name}`)"))?;
                continue;
            }
            None => continue,
        };
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        if items.iter().any(|item| item.as_u64().is_some_and(|number| number == 0 || number > most)) {
            return Err(format!("field `{name}` = {value}: numbers from 1 to {most} are supported"));
        }
        if name == LEVELS.0 && items.len() > LEVELS.1 {
            return Err(format!("field `{name}` has {} entries, more than {}", items.len(), LEVELS.1));
        }
    }
    Ok(())
}
