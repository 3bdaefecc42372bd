//! What a checkpoint can be and can hold: families, components, prediction types.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Declares an enumeration whose values have one name in files, options and messages.
macro_rules! named {
    ($(#[$about:meta])* $kind:ident, $what:literal { $($(#[$doc:meta])* $value:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $kind {
            $($(#[$doc])* #[serde(rename = $name)] $value,)+
        }

        impl $kind {
            /// Every value, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$value),+];

            /// The name in files, options and messages.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$value => $name),+ }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.name())
            }
        }

        impl FromStr for $kind {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|value| value.name() == name).ok_or_else(|| UnknownName {
                    what: $what,
                    name: name.to_owned(),
                    known: Self::ALL.iter().map(|value| value.name()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

/// A name that is none of an enumeration's.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` is no {what}; known: {known}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: String,
}

named! {
    /// One network of a checkpoint; the name is its folder's in a diffusers pipeline.
    Component, "component" {
        /// The denoising UNet.
        Unet = "unet",
        /// The KL autoencoder.
        Vae = "vae",
        /// The first (or only) text encoder.
        TextEncoder = "text_encoder",
        /// The second text encoder of SDXL.
        TextEncoder2 = "text_encoder_2",
        /// A CLIP image tower with its projection.
        ImageEncoder = "image_encoder",
        /// Both CLIP towers, projections and logit scale.
        Clip = "clip",
        /// A vision transformer with a classification head.
        Classifier = "classifier",
        /// The Inception network of the Fréchet distance.
        Inception = "inception",
    }
}

named! {
    /// The published model that a checkpoint's networks have the form of.
    Family, "family" {
        /// Stable Diffusion 1.x.
        Sd1 = "sd1",
        /// Stable Diffusion 1.5 inpainting: 9 input channels.
        Sd1Inpainting = "sd1-inpainting",
        /// InstructPix2Pix: 8 input channels.
        InstructPix2Pix = "instruct-pix2pix",
        /// Stable Diffusion 2.x whose prediction type is not known.
        Sd2 = "sd2",
        /// Stable Diffusion 2.x base: predicts the noise.
        Sd2Base = "sd2-base",
        /// Stable Diffusion 2.x 768-v: predicts the velocity.
        Sd2V = "sd2-v",
        /// Stable Diffusion 2 inpainting: 9 input channels.
        Sd2Inpainting = "sd2-inpainting",
        /// The SD v2 variant of MLPerf Training: 16 groups in the residual blocks' norms.
        MlperfSd2 = "mlperf-sd2",
        /// SDXL base.
        SdxlBase = "sdxl-base",
        /// SDXL refiner.
        SdxlRefiner = "sdxl-refiner",
        /// A CLIP model, or one of its towers.
        Clip = "clip",
        /// A ViT classifier.
        Vit = "vit",
        /// The FID variant of Inception v3.
        Inception = "inception",
        /// A KL autoencoder alone.
        Vae = "vae",
    }
}

impl Family {
    /// Whether the family is one of Stable Diffusion 2's.
    pub const fn is_sd2(self) -> bool {
        matches!(self, Self::Sd2 | Self::Sd2Base | Self::Sd2V | Self::Sd2Inpainting | Self::MlperfSd2)
    }

    /// Whether the family is one of SDXL's.
    pub const fn is_sdxl(self) -> bool {
        matches!(self, Self::SdxlBase | Self::SdxlRefiner)
    }
}

named! {
    /// What a UNet predicts, by diffusers' names.
    Prediction, "prediction type" {
        /// The noise.
        Epsilon = "epsilon",
        /// The velocity (Salimans & Ho 2022).
        V = "v_prediction",
        /// The clean latent.
        Sample = "sample",
    }
}

named! {
    /// How a checkpoint is stored.
    Layout, "layout" {
        /// A diffusers pipeline: `model_index.json` and a folder for each component.
        DiffusersPipeline = "diffusers pipeline",
        /// One diffusers or transformers model: `config.json` and weights.
        ModelFolder = "model folder",
        /// Weights with the keys of diffusers or transformers, without a configuration.
        ModelFile = "model file",
        /// One file with the keys of the LDM code.
        SingleFile = "single file (LDM)",
        /// NeMo's Stable Diffusion: LDM keys, other indices in the residual blocks.
        NemoSingleFile = "NeMo Stable Diffusion",
        /// A folder that Calotype wrote: canonical keys, a folder for each component, a manifest.
        Calotype = "calotype",
        /// open_clip's and OpenAI CLIP's keys.
        OpenClip = "open_clip",
        /// NeMo's CLIP (Megatron names).
        NemoClip = "NeMo CLIP",
        /// timm's vision transformer.
        Timm = "timm",
        /// NeMo's vision transformer.
        NemoVit = "NeMo ViT",
        /// pytorch-fid's Inception.
        PytorchFid = "pytorch-fid",
    }
}

impl Layout {
    /// Whether the keys are those of the LDM code, up to NeMo's differences.
    pub const fn is_single_file(self) -> bool {
        matches!(self, Self::SingleFile | Self::NemoSingleFile)
    }
}
