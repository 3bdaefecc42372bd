//! The tensors that a network of a given configuration has, as its own module lays them out.
//!
//! Canonical keys and configurations are diffusers' for UNet and autoencoder, transformers' published ones for CLIP, ViT
//! and DINOv2, pytorch-fid's for Inception, the package efficientnet-lite-pytorch's for EfficientNet-Lite: those that the
//! modules of `calotype-models` have.

use crate::error::LayoutError;
use crate::kinds::Component;
use burn::module::Module;
use burn::tensor::Device;
use calotype_core::{Fields, FieldsError};
use calotype_models::state::layout;
use calotype_models::{
    Autoencoder, AutoencoderConfig, Clip, ClipConfig, ClipImageEncoder, ClipTextEncoder, ConfigError, Dinov2,
    Dinov2Config, EfficientNetLite, EfficientNetLiteConfig, ImageEncoderConfig, Inception, InceptionConfig, Init,
    KerasInceptionConfig, TextEncoderConfig, UNet, UNetConfig, Vit, VitConfig,
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
    let mut tensors = network_layout(component, config)
        .map_err(|error| LayoutError::Config { component, reason: reason(&*error) })?;
    for (name, shape) in &mut tensors {
        canonical_shape(name, shape);
    }
    Ok(tensors.into_iter().map(|(name, shape)| TensorSpec { name, shape }).collect())
}

/// Fields of a configuration that are not read, with true for those whose effect is not known: these are taken out, if
/// `pass_over` says so.
pub(crate) fn passed_fields(component: Component, config: &mut Value, pass_over: bool) -> Vec<(String, bool)> {
    type FieldsOf = fn(&Value) -> Vec<String>;
    let (passed, unknown): (FieldsOf, FieldsOf) = match component {
        Component::Unet => (UNetConfig::passed_fields, |config| unknown(UNetConfig::from_diffusers(config).err())),
        Component::Vae => {
            (AutoencoderConfig::passed_fields, |config| unknown(AutoencoderConfig::from_diffusers(config).err()))
        }
        // transformers' configurations hold fields of all its models, of which readers take their own.
        Component::TextEncoder
        | Component::TextEncoder2
        | Component::ImageEncoder
        | Component::Clip
        | Component::Classifier
        | Component::Inception
        | Component::KerasInception
        | Component::Dinov2
        | Component::EfficientNetLite => return Vec::new(),
    };
    let mut fields: Vec<(String, bool)> = passed(config).into_iter().map(|name| (name, false)).collect();
    if !pass_over {
        return fields;
    }
    loop {
        let names = unknown(config);
        let Some(object) = config.as_object_mut().filter(|_| !names.is_empty()) else { break };
        names.iter().for_each(|name| drop(object.remove(name)));
        fields.extend(names.into_iter().map(|name| (name, true)));
    }
    fields
}

fn unknown(error: Option<FieldsError>) -> Vec<String> {
    error.iter().flat_map(FieldsError::unknown).map(str::to_owned).collect()
}

/// An error's text without the class that it names: the component is named already.
pub(crate) fn reason(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let text = error.to_string();
    let reason = text.split_once(" configuration: ").map_or(text.as_str(), |(_, reason)| reason).to_owned();
    match error.downcast_ref::<FieldsError>() {
        Some(fields) if !fields.unknown().is_empty() => format!("{reason}; {PASS_OVER}"),
        _ => reason,
    }
}

/// The way past fields that are not known.
pub const PASS_OVER: &str = "--pass-over-fields goes on without unknown fields, if they change nothing that matters";

/// Turns a parameter's shape into the published one: tensors have an axis at least, published scalars have none.
pub(crate) fn canonical_shape(name: &str, shape: &mut Vec<usize>) {
    if LOGITS.contains(&name) {
        shape.clear();
    }
}

/// The scalars among the canonical tensors.
const LOGITS: [&str; 2] = ["logit_scale", "logit_bias"];

type Layout = Vec<(String, Vec<usize>)>;
/// Why a configuration is refused.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A network that a checkpoint can hold, by its configuration.
pub trait NetworkConfig: Sized {
    /// The network.
    type Network: Module;

    /// Reads the configuration as diffusers or transformers publishes it.
    ///
    /// # Errors
    /// The fields that are malformed, out of bounds, or ask for what is not built.
    fn from_published(published: &Value) -> Result<Self, Failure>;

    /// Builds the network.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field that does not fit the others.
    fn build(&self, init: &mut Init<'_>) -> Result<Self::Network, ConfigError>;
}

/// The table of networks: for each component its configuration and module, how the published configuration is read, and how
/// the module is built.
macro_rules! networks {
    ($($($component:ident)|+: $config:ident => $network:ident, $read:expr, $build:expr;)+) => {
        $(impl NetworkConfig for $config {
            type Network = $network;

            fn from_published(published: &Value) -> Result<Self, Failure> {
                $read(published).map_err(Into::into)
            }

            fn build(&self, init: &mut Init<'_>) -> Result<$network, ConfigError> {
                $build(self, init)
            }
        })+

        fn network_layout(component: Component, published: &Value) -> Result<Layout, Failure> {
            match component {
                $($(Component::$component)|+ => layout_of::<$config>(published),)+
            }
        }
    };
}

networks! {
    Unet: UNetConfig => UNet, UNetConfig::from_diffusers, UNetConfig::init;
    Vae: AutoencoderConfig => Autoencoder, AutoencoderConfig::from_diffusers, AutoencoderConfig::init;
    TextEncoder | TextEncoder2:
        TextEncoderConfig => ClipTextEncoder, TextEncoderConfig::from_transformers, TextEncoderConfig::init;
    ImageEncoder:
        ImageEncoderConfig => ClipImageEncoder, ImageEncoderConfig::from_transformers, ImageEncoderConfig::init;
    Clip: ClipConfig => Clip, ClipConfig::from_transformers, ClipConfig::init;
    Classifier: VitConfig => Vit, VitConfig::from_transformers, VitConfig::init;
    Inception: InceptionConfig => Inception, inception, |config: &InceptionConfig, init: &mut _| Ok(config.init(init));
    KerasInception: KerasInceptionConfig => Inception, keras_inception, KerasInceptionConfig::init;
    Dinov2: Dinov2Config => Dinov2, Dinov2Config::from_transformers, Dinov2Config::init;
    EfficientNetLite:
        EfficientNetLiteConfig => EfficientNetLite, EfficientNetLiteConfig::from_fields, EfficientNetLiteConfig::init;
}

/// pytorch-fid publishes no configuration: there is one network.
fn inception(published: &Value) -> Result<InceptionConfig, Failure> {
    published.as_object().map(|_| InceptionConfig::default()).ok_or_else(|| "is not a JSON object".into())
}

/// Neither does Keras publish one of its network; the only number is what the weights' shapes say.
fn keras_inception(published: &Value) -> Result<KerasInceptionConfig, FieldsError> {
    let mut fields = Fields::new("Keras' Inception v3", published);
    fields.kind("model_type", &["keras_inception_v3"]);
    let config = KerasInceptionConfig { outputs: fields.size("outputs", 1000) };
    fields.finish(config)
}

fn layout_of<C: NetworkConfig>(published: &Value) -> Result<Layout, Failure> {
    let device = Device::flex();
    Ok(layout(&C::from_published(published)?.build(&mut Init::placeholders(&device))?))
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
        // Those that the library does not have are written as models of another type.
        Component::Classifier if config["model_type"] == "calotype_vit" => {
            drop(VitConfig::from_transformers(config)?.to_calotype()?);
        }
        Component::Classifier => drop(VitConfig::from_transformers(config)?.to_transformers()?),
        _ => {}
    }
    Ok(())
}
