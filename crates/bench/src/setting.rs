//! The settings of benchmarks, by name.

use calotype_core::names;
use calotype_models::UNetConfig;

names! {
    /// A published shape of the conditional UNet.
    Family, "family" {
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
    /// The work of one iteration.
    Mode, "mode" {
        /// The network once, without gradients.
        Forward = "forward",
        /// The network, the mean squared error, all gradients, an AdamW step.
        Train = "train",
    }
}
