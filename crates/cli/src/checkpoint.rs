//! `inspect` and `convert`: what a checkpoint holds, and the same in another layout.

use crate::commands::print;
use anyhow::{Result, anyhow};
use calotype_data::source::{self, Source, SourceOptions};
use calotype_weights::Dtype;
use calotype_weights::layout::{Checkpoint, ConvertOptions, Family, OpenOptions, Prediction, Target, convert, inspect};
use clap::Args;
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
    #[arg(long, value_name = "LAYOUT", value_parser = target)]
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

/// What the user knows or wants beyond what the checkpoint says.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Take the averaged weights of a single file.
    #[arg(long)]
    ema: bool,
    /// What the UNet predicts, epsilon or v_prediction, where the checkpoint does not say it.
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
    /// What the flags say.
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

fn target(name: &str) -> Result<Target> {
    let found = Target::NAMED.iter().find(|(known, _)| *known == name);
    let known = || Target::NAMED.map(|(name, _)| name).join(", ");
    found.map(|(_, target)| *target).ok_or_else(|| anyhow!("`{name}` is no layout; known: {}", known()))
}

fn dtype(name: &str) -> Result<Dtype> {
    match name {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::BF16),
        _ => Err(anyhow!("`{name}` is no type to write weights in; known: f32, f16, bf16")),
    }
}

/// Opens a checkpoint for use, and tells which of its tensors are in no network.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    const SHOWN: usize = 5;
    let checkpoint = Checkpoint::open_with(path, options)?;
    if let [first, ..] = checkpoint.unused() {
        let (count, path) = (checkpoint.unused().len(), path.display());
        eprintln!(
            "warning: {path}: {count} tensors are in no network that is known, and are not used: `{first}` and so on"
        );
        checkpoint.unused().iter().skip(1).take(SHOWN - 1).for_each(|key| eprintln!("         `{key}`"));
    }
    Ok(checkpoint)
}

/// Tells what a checkpoint holds, or what has none and can be read as a dataset. Problems are told too and are no failure.
pub(crate) fn inspect_command(args: &InspectArgs) -> Result<()> {
    match inspect(&args.path, &args.open.options(), args.tensors) {
        Ok(report) if args.json => print(&serde_json::to_string_pretty(&report)?),
        Ok(report) => print(report.to_string().trim_end()),
        Err(error) => match args.path.to_str().map(|spec| source::open(spec, &SourceOptions::default())) {
            Some(Ok(dataset)) => inspect_dataset(&*dataset, args.json),
            // Neither: the folder may still be meant as a checkpoint.
            _ => Err(error.into()),
        },
    }
}

fn inspect_dataset(dataset: &dyn Source, json: bool) -> Result<()> {
    let first = dataset.get(0)?;
    let first = first.sample();
    let parts: Vec<_> = first.parts().map(|(name, bytes)| (name, bytes.len())).collect();
    if json {
        let parts: serde_json::Map<_, _> =
            parts.iter().map(|(name, bytes)| ((*name).to_owned(), (*bytes).into())).collect();
        return print(&serde_json::to_string_pretty(&serde_json::json!({
            "dataset": dataset.name(), "samples": dataset.len(), "blocks": dataset.blocks().len(),
            "left_out": dataset.left_out(), "first": { "key": first.key(), "part_bytes": parts }, "meta": dataset.meta(),
        }))?);
    }
    print(&format!("dataset    {}", dataset.name()))?;
    print(&format!("samples    {} in {} shards, files or row groups", dataset.len(), dataset.blocks().len()))?;
    dataset.left_out().iter().try_for_each(|(reason, count)| print(&format!("left out   {count}, {reason}")))?;
    let parts: Vec<_> = parts.iter().map(|(name, bytes)| format!("{name} ({bytes} bytes)")).collect();
    print(&format!("first      `{}`: {}", first.key(), parts.join(", ")))?;
    dataset.meta().iter().try_for_each(|(name, value)| print(&format!("{name:<10} {value}")))
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
    for (component, tensors, parameters) in &done.components {
        print(&format!("{component}: {tensors} tensors, {parameters} parameters"))?;
    }
    let tell = |what: &str, keys: &[String]| keys.iter().try_for_each(|key| print(&format!("{what}: {key}")));
    tell("missing", &done.missing)?;
    tell("left out", &done.unused)?;
    tell("note", &done.notes)?;
    let aside: usize = checkpoint.set_aside().values().map(Vec::len).sum();
    print(&format!(
        "{} bytes of weights written to {}; {} tensors missing, {} left out, {aside} set aside as not needed",
        done.bytes,
        args.output.display(),
        done.missing.len(),
        done.unused.len()
    ))
}
