//! The models of latent diffusion: UNet, KL autoencoder, CLIP towers and the CLIP tokenizer.
//!
//! Every model is a configuration (plain `serde` data, as a recipe holds it) with an `init` that
//! makes the module. Module paths equal the published checkpoint keys: diffusers' for the UNet and
//! the autoencoder, transformers' for CLIP. Activations are channels-last throughout; the dtype of
//! the input decides the precision; weights are `f32`, and may be `bf16` for inference.

pub mod attention;
pub mod autoencoder;
pub mod clip;
mod diffusers;
pub mod embeddings;
mod flops;
pub mod init;
pub mod layers;
pub mod resnet;
pub mod state;
pub mod tokenizer;
pub mod unet;

pub use autoencoder::{Autoencoder, AutoencoderConfig, LatentDistribution, NonFinite, Tiling};
pub use clip::{Clip, ClipConfig, TextConfig, VisionConfig};
pub use diffusers::DiffusersError;
pub use init::Init;
pub use tokenizer::ClipTokenizer;
pub use unet::{AddedConditions, AddedConfig, PerLevel, UNet, UNetConfig};

/// A model configuration that cannot be built, naming the field and the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The configuration key at fault.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl ConfigError {
    fn check(ok: bool, field: &'static str, problem: impl FnOnce() -> String) -> Result<(), Self> {
        if ok { Ok(()) } else { Err(Self { field, problem: problem() }) }
    }
}
