//! What the benchmarks can be asked for, by name.

use calotype_models::UNetConfig;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// An enum whose variants have names, for the command line and for JSON.
macro_rules! names {
    ($(#[$meta:meta])* $name:ident: $what:literal { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// As the command line and JSON write it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                match name {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(format!("there is no such {}; use one of {}", $what, [$($text),*].join(", "))),
                }
            }
        }
    };
}

names! {
    /// A published shape of the conditional UNet.
    Family: "family" {
        /// Stable Diffusion 1.x, 860 million parameters.
        Sd1 = "sd1",
        /// Stable Diffusion 2.x, 866 million parameters.
        Sd2 = "sd2",
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
            Family::Tiny => UNetConfig::tiny(),
        }
    }
}

names! {
    /// What one iteration does.
    Mode: "mode" {
        /// The network once, without gradients.
        Forward = "forward",
        /// The network, the mean squared error, all gradients, an AdamW step.
        Train = "train",
    }
}

names! {
    /// Precision of activations; weights, statistics and sums are `f32`.
    Precision: "precision" {
        /// Everything in `f32`.
        F32 = "f32",
        /// Activations and their gradients in `bf16`.
        Bf16 = "bf16",
    }
}
