//! Arguments that several commands share.

use anyhow::Result;
use burn::tensor::Device;
use calotype_ops::Precision;
use clap::Args;

/// Headings of the help texts, in the order in which they are shown.
pub(crate) mod heading {
    pub(crate) const MODEL: &str = "Model";
    pub(crate) const PROMPTS: &str = "Prompts";
    pub(crate) const IMAGE: &str = "Images";
    pub(crate) const SAMPLING: &str = "Sampling";
    pub(crate) const START: &str = "Beginning with an image";
    pub(crate) const SDXL: &str = "Stable Diffusion XL";
    pub(crate) const OUTPUT: &str = "Output";
}

/// The device to compute on.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeviceArgs {
    /// cpu, or a device that this build was made with.
    #[arg(long = "device", default_value = "cpu", value_name = "NAME")]
    pub(crate) name: String,
}

impl DeviceArgs {
    /// The device.
    pub(crate) fn open(&self) -> Result<Device> {
        Ok(calotype_train::device::device(&self.name)?)
    }
}

/// Precision of a network that is not trained.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct PrecisionArgs {
    /// f32, bf16, or auto: bf16 where the processor multiplies it [default: auto].
    #[arg(long, value_name = "TYPE")]
    pub(crate) precision: Option<Precision>,
}
