//! The models of latent diffusion: UNet, KL autoencoder, CLIP towers and the CLIP tokenizer; and those that judge
//! images: ViT classifiers, the Inception network of the Fréchet distance, and others whose features distances are computed of
//! (DINOv2, EfficientNet-Lite, Keras' Inception).
//!
//! Every model is a configuration (plain `serde` data, as a recipe holds it) with an `init` that
//! makes the module. Module paths equal the published checkpoint keys: diffusers' for the UNet and
//! the autoencoder, transformers' for CLIP and ViT, pytorch-fid's for Inception. Activations are channels-last throughout; the
//! dtype of the input decides the precision; weights are `f32`, and for inference may be `bf16`, and packed ([`LayerWeight`]).

pub mod attention;
pub mod autoencoder;
pub mod clip;
pub mod contrast;
mod deep_features;
mod diffusers;
pub mod dinov2;
pub mod efficientnet;
pub mod embeddings;
mod flops;
pub mod inception;
pub mod init;
pub mod layers;
pub mod observe;
pub mod parallel;
pub mod positions;
pub mod recompute;
pub mod resnet;
pub mod state;
pub mod text;
mod to_transformers;
pub mod tokenizer;
mod transformer;
mod transformers;
pub mod unet;
pub mod vision;
pub mod vit;
pub mod weight;

pub use autoencoder::{Autoencoder, AutoencoderConfig, LatentDistribution, NonFinite, Tiling};
pub use calotype_core::FieldsError;
pub use clip::{Clip, ClipConfig};
pub use contrast::{Contrast, Contrasted, Logits};
pub use deep_features::DeepFeatures;
pub use diffusers::QUANTIZATION;
pub use dinov2::{Dinov2, Dinov2Config};
pub use efficientnet::{EfficientNetLite, EfficientNetLiteConfig, EfficientNetLiteOutput};
pub use inception::{Inception, InceptionConfig, InceptionOutput, KerasInceptionConfig};
pub use init::Init;
pub use parallel::TensorParallel;
pub use positions::PositionInterpolation;
pub use recompute::Recompute;
pub use text::{ClipTextEncoder, TextConfig, TextEncoderConfig, TextModel, TextOutput, TextStates};
pub use tokenizer::ClipTokenizer;
pub use transformer::HiddenActivation;
pub use unet::{AddedConditions, AddedConfig, Pass, PerLevel, UNet, UNetConfig};
pub use vision::{ClipImageEncoder, ImageEncoderConfig, VisionConfig, VisionModel, VisionOutput};
pub use vit::{Reads, Vit, VitConfig};
pub use weight::LayerWeight;

/// A model configuration that cannot be built, naming the field and the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The configuration key at fault.
    pub field: &'static str,
    /// The fault, and what would be right.
    pub problem: String,
}

impl ConfigError {
    fn check(ok: bool, field: &'static str, problem: impl FnOnce() -> String) -> Result<(), Self> {
        if ok { Ok(()) } else { Err(Self { field, problem: problem() }) }
    }
}

/// An input that a model cannot take.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InputError {
    /// Rows of token ids are empty or longer than the positions the tower knows.
    #[error("prompts of {tokens} tokens: the text tower takes 1 to {context}; cut them, or encode them in pieces")]
    Tokens {
        /// Tokens of a row.
        tokens: usize,
        /// The tower's context length.
        context: usize,
    },
    /// A token id has no row in the table.
    #[error(
        "token {token} of prompt {row} is {id}, but the text tower knows {vocabulary} tokens: another tokenizer's?"
    )]
    TokenId {
        /// Number of the prompt.
        row: usize,
        /// Position in the prompt.
        token: usize,
        /// The id.
        id: i64,
        /// Entries of the token table.
        vocabulary: usize,
    },
    /// More layers are to be skipped than there are.
    #[error("cannot skip {skip} layers of a text tower that has {layers}")]
    Skip {
        /// Layers to skip.
        skip: usize,
        /// Layers of the tower.
        layers: usize,
    },
    /// Images of another size than the model's.
    #[error(
        "images of [height, width, channels] {found:?}: the model takes {side} x {side} pixels of 3 channels; resize them"
    )]
    Image {
        /// Height, width and channels of the images.
        found: [usize; 3],
        /// Side of the model's images.
        side: usize,
    },
    /// Images that leave no pixels, or have other than three channels.
    #[error("images of [height, width, channels] {found:?}: the model takes 3 channels and sides of at least {least}")]
    Small {
        /// Height, width and channels of the images.
        found: [usize; 3],
        /// Least height and width.
        least: usize,
    },
    /// Images and their positions in the run do not pair.
    #[error("{images} images with {positions} positions in the run: each needs its own")]
    Positions {
        /// Images of the batch.
        images: usize,
        /// Positions that were given.
        positions: usize,
    },
}
