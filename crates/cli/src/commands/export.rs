//! `calotype export`: the model of a checkpoint that a run has kept.

use super::ema::{refuse_taken, run_in};
use super::print;
use crate::args::{DeviceArgs, named};
use anyhow::Result;
use calotype_core::numbers::count;
use calotype_train::StopFlag;
use calotype_train::saved::{WantedModel, Weights};
use calotype_train::stages::StageContext;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The run's folder, finished or not.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Samples seen by the checkpoint [default: the newest one].
    #[arg(long, value_name = "SAMPLES", value_parser = count::<u64>)]
    at: Option<u64>,
    /// The weights' moving average, or the trained weights themselves [default: the average, where the recipe averages].
    #[arg(long, value_name = "KIND", value_parser = named::<Weights>())]
    weights: Option<Weights>,
    /// New folder for the model, in the layout of the run's own.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn export_command(args: &ExportArgs) -> Result<()> {
    let ExportArgs { run, at, weights, out, device } = args;
    refuse_taken(out)?;
    let training = run_in(run)?;
    let (device, stop) = (device.open()?, StopFlag::new_unhooked());
    let context = StageContext::new(run, &device, &stop);
    let exported = training.export(&WantedModel { weights: *weights, at: *at }, out, &context)?;
    let words = match exported.weights {
        Weights::Average => "the average of the weights",
        Weights::Trained => "the trained weights",
    };
    print(&format!("{words} after {} samples\nmodel {}", exported.samples, out.display()))
}
