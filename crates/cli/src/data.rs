//! `calotype data`: the stages of `calotype-prepare`, and those that need models.

use crate::commands::{Stopped, print, recipe_loader};
use anyhow::{Context, Result};
use calotype_data::{Control, Dataset};
use calotype_prepare::{DataStage, Report};
use calotype_train::device::device;
use calotype_train::precache::PrecacheRecipe;
use calotype_train::stages::{self, StageEnd};
use calotype_train::{Progress, StopFlag};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Print the account of what was done as one JSON object.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    #[command(flatten)]
    Stage(DataStage),
    /// Encode a dataset once by a precache recipe.
    Precache(PrecacheArgs),
    /// Read all shards of a dataset and compare their checksums.
    Check {
        /// Folder of webdataset shards.
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
struct PrecacheArgs {
    /// A recipe file, or the name of a built-in recipe.
    recipe: String,
    /// Overrides, e.g. source=pictures.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// cpu, or a device that this build was made with.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: String,
}

pub(crate) fn data(args: &DataArgs) -> Result<()> {
    let stop = StopFlag::install().context("cannot listen for signals")?;
    match &args.command {
        DataCommand::Stage(stage) => {
            let report = with_progress(&stop, |control| stage.run(control))?;
            tell(&report, args.json)
        }
        DataCommand::Precache(precache) => {
            let recipe: PrecacheRecipe = recipe_loader().load(&precache.recipe, &precache.overrides)?.value;
            match stages::precache(&recipe, &device(&precache.device)?, &stop)? {
                StageEnd::Interrupted { samples } => Err(Stopped { samples }.into()),
                StageEnd::Done(samples) => print(&format!("{samples} samples in {}", recipe.out)),
            }
        }
        DataCommand::Check { path } => {
            let dataset = Dataset::open(path)?;
            let report = with_progress(&stop, |control| dataset.verify(control))?;
            print(&format!(
                "{} samples in {} shards, {} bytes; {} shards had no checksum to compare",
                report.samples, report.shards, report.bytes, report.without_checksum
            ))
        }
    }
}

/// Does `work` with a display of its progress, under the name that it gives itself.
fn with_progress<T, E>(stop: &StopFlag, work: impl FnOnce(&mut Control<'_>) -> Result<T, E>) -> Result<T, E> {
    let mut display: Option<Progress> = None;
    let mut control = Control::default()
        .with_progress(|stage, done, total| {
            let progress = display.get_or_insert_with(|| Progress::new(stage, total as u64).starting_at(done as u64));
            progress.set_total(total as u64);
            progress.set(done as u64, &[]);
        })
        .with_stop(|| stop.is_set());
    let result = work(&mut control);
    drop(control);
    if let Some(progress) = &mut display {
        progress.finish();
    }
    result
}

fn tell(report: &Report, json: bool) -> Result<()> {
    match json {
        true => print(&serde_json::to_string(report)?),
        false => print(&report.to_string()),
    }
}
