//! `probe`: one network of a checkpoint on given tensors, and its gradients, for comparison with the original.

use crate::args::{DeviceArgs, heading, named};
use crate::checkpoint::{OpenArgs, open};
use crate::commands::{Usage, check_output, print};
use anyhow::Result;
use calotype_core::absence;
use calotype_ops::Precision;
use calotype_pipeline::probe::{Probed, probe};
use calotype_weights::{NamedTensor, TensorFile, write_safetensors};
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(after_help = INPUTS)]
pub(crate) struct ProbeArgs {
    /// The network.
    #[arg(value_name = "NETWORK", value_parser = named::<Probed>())]
    network: Probed,
    /// The checkpoint, in any layout.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Safetensors file of the inputs.
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Back-propagate the input `grad_output` and write the gradients of all inputs and parameters.
    #[arg(long)]
    grad: bool,
    /// Precision of activations, and of weights without --grad.
    #[arg(long, default_value = "f32", value_name = "TYPE", value_parser = named::<Precision>(), help_heading = heading::MACHINE)]
    precision: Precision,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    open: OpenArgs,
}

const INPUTS: &str = "\
Images and latents are [batch, channels, height, width], as the originals take them.
  network          inputs                                                     outputs, that of grad_output first
  unet             sample, timestep, encoder_hidden_states,                   sample
                   SDXL: text_embeds, time_ids
  vae-encoder      sample (or x, pixel_values)                                moments (means, log-variances), mean, logvar
  vae-decoder      sample (or z)                                              sample
  text-encoder,    input_ids                                                  last_hidden_state, pooler_output, text_embeds,
  text-encoder-2                                                              hidden_states.N and hidden_states.-2
  image-encoder    pixel_values                                               image_embeds, last_hidden_state, pooler_output
  classifier       pixel_values                                               logits
  inception        pixel_values (or x) in 0..1                                features, logits
Gradients are `grad.KEY`: of inputs by their names (not of timestep, time_ids and input_ids), of parameters by the
checkpoint's own keys. `grad_output.NAME` instead of `grad_output` back-propagates another output.";

/// What the metadata of the written file says, so that it is known to be no model.
const MADE_BY: (&str, &str) = ("made_by", "calotype probe");

/// Whether a file was written by this command.
fn is_probe(path: &Path) -> bool {
    TensorFile::open(path).is_ok_and(|file| file.metadata().get(MADE_BY.0).map(String::as_str) == Some(MADE_BY.1))
}

/// Runs one network and writes what it gives.
pub(crate) fn probe_command(args: &ProbeArgs) -> Result<()> {
    args.open.check(&args.model)?;
    let out = args.out.canonicalize().ok();
    if let Some(read) =
        [&args.input, &args.model].into_iter().find(|read| out.is_some() && read.canonicalize().ok() == out)
    {
        let problem = format!("--out {}: would be written over what is read; choose another file", read.display());
        return Err(Usage(problem).into());
    }
    if !args.input.exists() {
        let (file, near) = (args.input.display(), absence(&args.input));
        return Err(Usage(format!("--in {file}: there is no such file{near}; correct the path")).into());
    }
    check_output("--out", &args.out, "a file of this command", is_probe)?;
    let checkpoint = open(&args.model, &args.open.options())?;
    let device = args.device.open()?;
    let values = probe(&checkpoint, args.network, &args.input, args.grad, args.precision, &device)?;
    let tensors: Vec<NamedTensor<'_>> =
        values.iter().map(|v| NamedTensor::from_f32(v.name.clone(), v.shape.clone(), &v.values)).collect();
    let made_by = BTreeMap::from([(MADE_BY.0.to_owned(), MADE_BY.1.to_owned())]);
    write_safetensors(&args.out, &tensors, &made_by)?;
    print(&format!("{} tensors written to {}", tensors.len(), args.out.display()))
}
