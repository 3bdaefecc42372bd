//! The settings of benchmarks, by name.

use calotype_core::names;
use calotype_models::UNetConfig;
use calotype_ops::Precision;

names! {
    /// A published shape of the conditional UNet.
    Family, "family" {
        /// Stable Diffusion 1.x, 860 million parameters.
        Sd1 = "sd1",
        /// Stable Diffusion 2.x, 866 million parameters.
        Sd2 = "sd2",
        /// Stable Diffusion XL base, 2.57 billion parameters.
        Sdxl = "sdxl",
        /// The same shape with 3.3 million parameters, where the overhead of calls decides.
        Tiny = "tiny",
    }
}

impl Family {
    /// The network's configuration.
    pub fn config(self) -> UNetConfig {
        match self {
            Family::Sd1 => UNetConfig::stable_diffusion_1(),
            Family::Sd2 => UNetConfig::stable_diffusion_2(),
            Family::Sdxl => UNetConfig::stable_diffusion_xl(),
            Family::Tiny => UNetConfig::tiny(),
        }
    }
}

names! {
    /// The numbers that a network computes with.
    NetworkPrecision, "precision" {
        /// Everything in `f32`.
        F32 = "f32",
        /// Activations, and in inference weights, in `bf16`.
        Bf16 = "bf16",
        /// `bf16` on a CPU with instructions that multiply it, `f32` elsewhere.
        Auto = "auto",
        /// Layers in 8 bits, as `calotype quantize` makes them; activations between them as `auto` says.
        Int8 = "int8",
    }
}

impl NetworkPrecision {
    /// The precision of activations.
    pub fn activations(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::Auto | Self::Int8 => Precision::Auto,
        }
    }
}

impl From<Precision> for NetworkPrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Auto => Self::Auto,
        }
    }
}

names! {
    /// The work of one iteration.
    Mode, "mode" {
        /// The network once, without gradients.
        Forward = "forward",
        /// The network, the mean squared error, all gradients, an AdamW step.
        Train = "train",
    }
}
