//! `inspect` and `convert`: what a checkpoint holds, and the same in another layout.

use crate::commands::print;
use anyhow::{Result, anyhow};
use calotype_checkpoints::{Checkpoint, ConvertOptions, Family, OpenOptions, Prediction, Target, convert, inspect};
use calotype_data::source::{self, SourceOptions, Summary};
use calotype_weights::Dtype;
use clap::Args;
use serde::Serialize;
use std::fmt::Display;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A diffusers folder, a model's folder, a folder of Calotype's, or a file of weights; or a dataset.
    path: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// List every tensor by its canonical key.
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The checkpoint to read.
    input: PathBuf,
    /// The file or folder to write; it must not exist.
    output: PathBuf,
    /// diffusers (a folder), single-file (LDM keys), or calotype (a folder with checksums).
    #[arg(long, value_name = "LAYOUT")]
    to: Target,
    /// f32, f16 or bf16 [default: as they are].
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Go on without tensors that the checkpoint lacks.
    #[arg(long)]
    allow_missing: bool,
    /// Leave out tensors that belong to no known component.
    #[arg(long)]
    allow_unused: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Knowledge and wishes of the user, beyond what the checkpoint says.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Take the averaged weights of a single file.
    #[arg(long)]
    ema: bool,
    /// The UNet's prediction type, epsilon or v_prediction, where the checkpoint does not say it.
    #[arg(long, value_name = "TYPE")]
    prediction: Option<Prediction>,
    /// The family, where the weights do not show it (mlperf-sd2).
    #[arg(long, value_name = "NAME")]
    family: Option<Family>,
    /// The variant of a diffusers folder's weights, such as fp16.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Go past objects of unknown classes in pickles (Lightning's callbacks and the like), which are never made.
    #[arg(long)]
    skip_objects: bool,
}

impl OpenArgs {
    /// The flags as options.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            ema: self.ema,
            family: self.family,
            prediction: self.prediction,
            variant: self.variant.clone(),
            skip_unknown_objects: self.skip_objects,
        }
    }
}

pub(crate) fn dtype(name: &str) -> Result<Dtype> {
    match name {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::BF16),
        _ => Err(anyhow!("`{name}` is no type to write weights in; known: f32, f16, bf16")),
    }
}

/// Opens a checkpoint for use, and tells which of its tensors are in no network.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open_with(path, options)?;
    if let Some(warning) = checkpoint.unused_warning() {
        eprintln!("warning: {warning}");
    }
    Ok(checkpoint)
}

/// Tells what a checkpoint holds, or what has none and can be read as a dataset. Problems are told too and are no failure.
pub(crate) fn inspect_command(args: &InspectArgs) -> Result<()> {
    match inspect(&args.path, &args.open.options(), args.tensors) {
        Ok(report) => tell(&report, args.json),
        Err(error) => match args.path.to_str().map(|spec| source::open(spec, &SourceOptions::default())) {
            Some(Ok(dataset)) => tell(&Summary::of(&*dataset)?, args.json),
            // Neither: the folder may still be meant as a checkpoint.
            _ => Err(error.into()),
        },
    }
}

/// Prints a report as text, or as JSON.
fn tell(report: &(impl Serialize + Display), json: bool) -> Result<()> {
    if json { print(&serde_json::to_string_pretty(report)?) } else { print(report.to_string().trim_end()) }
}

/// Writes a checkpoint in another layout.
pub(crate) fn convert_command(args: &ConvertArgs) -> Result<()> {
    let checkpoint = Checkpoint::open_with(&args.input, &args.open.options())?;
    let options = ConvertOptions {
        dtype: args.dtype,
        allow_missing: args.allow_missing,
        allow_unused: args.allow_unused,
        ..ConvertOptions::default()
    };
    let done = convert(&checkpoint, &args.output, args.to, &options)?;
    print(&done.to_string())
}
