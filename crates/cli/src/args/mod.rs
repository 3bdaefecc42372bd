//! Arguments that several commands share, each said once.

use anyhow::Result;
use burn::tensor::Device;
use calotype_core::Named;
use calotype_ops::Precision;
use calotype_train::device;
use calotype_weights::Dtype;
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::str::FromStr;

/// Headings of the help texts, in the order in which they are shown.
pub(crate) mod heading {
    pub(crate) const MODEL: &str = "Model";
    pub(crate) const PROMPTS: &str = "Prompts";
    pub(crate) const IMAGE: &str = "Images";
    pub(crate) const SAMPLING: &str = "Sampling";
    pub(crate) const START: &str = "Beginning with an image";
    pub(crate) const SDXL: &str = "Stable Diffusion XL";
    pub(crate) const OUTPUT: &str = "Output";
    pub(crate) const RECORD: &str = "Recording";
    pub(crate) const RULES: &str = "Rules";
    pub(crate) const SYSTEM: &str = "System";
    pub(crate) const MACHINE: &str = "Machine";
}

/// The device to compute on.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Device to compute on; cargo's features of the same names add those other than cpu.
    #[arg(
        long = "device",
        default_value = "cpu",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(device::KNOWN),
        help_heading = heading::MACHINE
    )]
    pub(crate) name: String,
}

impl DeviceArgs {
    /// The device.
    pub(crate) fn open(&self) -> Result<Device> {
        self.numbered(None)
    }

    /// Of several, the device of a number.
    pub(crate) fn numbered(&self, number: Option<usize>) -> Result<Device> {
        Ok(device::numbered(&self.name, number)?)
    }
}

/// Precision of a network that is not trained.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct PrecisionArgs {
    /// Precision of activations and weights; auto is bf16 where the processor multiplies it [default: auto].
    #[arg(long, value_name = "TYPE", value_parser = named::<Precision>(), help_heading = heading::MACHINE)]
    pub(crate) precision: Option<Precision>,
}

/// How a result is told.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct JsonArgs {
    /// Print JSON: one object, or one a line.
    #[arg(long, help_heading = heading::OUTPUT)]
    pub(crate) json: bool,
}

/// The seed of random numbers.
///
/// # Errors
/// What is taken, in words.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let random = if text.trim() == "-1" { "; none is drawn at random: another number makes another image" } else { "" };
    text.trim()
        .parse()
        .map_err(|_| format!("it takes a whole number from 0 to 18446744073709551615, such as 7{random}"))
}

/// A parser of an enumeration's names, which help texts, errors and completions list.
pub(crate) fn named<T>() -> impl TypedValueParser<Value = T>
where
    T: Named + FromStr<Err: std::error::Error + Send + Sync>,
{
    let value = |value: &T| PossibleValue::new(value.own_name()).aliases(value.other_names().iter().copied());
    PossibleValuesParser::new(T::values().iter().map(value)).try_map(|name| name.parse::<T>())
}

/// A parser of the types that weights are written in.
pub(crate) fn dtype() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|name| match name.as_str() {
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        _ => Dtype::BF16,
    })
}
