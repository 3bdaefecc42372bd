//! `calotype ema`: an average of a run's weights that was not tracked.

use super::{Usage, print, recipe_loader};
use crate::args::DeviceArgs;
use anyhow::Result;
use calotype_core::absence;
use calotype_core::folders::{Content, content};
use calotype_core::numbers::count;
use calotype_train::averages::Wanted;
use calotype_train::stages::StageContext;
use calotype_train::tasks::TrainingRun;
use calotype_train::trainer::RECIPE;
use calotype_train::{StopFlag, tasks};
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct EmaArgs {
    /// The run's folder. Its recipe has [ema] name = "post_hoc", so that it keeps snapshots.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Relative width of the average: the standard deviation of the weights' times as a share of the run, such as 0.12.
    #[arg(long, value_name = "WIDTH")]
    sigma_rel: f64,
    /// Samples seen at the average's end [default: those of the last snapshot].
    #[arg(long, value_name = "SAMPLES", value_parser = count::<u64>)]
    at: Option<u64>,
    /// New folder for the model, in the layout of the run's own.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A sum of snapshots whose profile is farther away from the one that is wanted is told with a note.
const FAR: f64 = 0.05;

pub(crate) fn ema_command(args: &EmaArgs) -> Result<()> {
    let EmaArgs { run, sigma_rel, at, out, device } = args;
    refuse_taken(out)?;
    let training = run_in(run)?;
    let (device, stop) = (device.open()?, StopFlag::new_unhooked());
    let context = StageContext::new(run, &device, &stop);
    let wanted = Wanted { sigma_rel: *sigma_rel, at: *at };
    let rebuilt = training.rebuild_average(&wanted, out, &context)?;
    let (snapshots, error) = (rebuilt.snapshots(), 100.0 * rebuilt.error());
    print(&format!(
        "the average of relative width {sigma_rel} after {} samples, a sum of {snapshots} snapshots, {error:.2} % off\nmodel {}",
        rebuilt.samples,
        out.display()
    ))?;
    if rebuilt.error() > FAR {
        eprintln!(
            "note: the snapshots are too few for this width; a smaller ema.snapshot_every, or widths of ema.sigma_rel around it, come nearer"
        );
    }
    Ok(())
}

/// The run of a folder, by its recipe.
pub(super) fn run_in(folder: &Path) -> Result<TrainingRun> {
    if let Some(found) = content(folder).filter(|found| found.content != Content::Run) {
        let folder = folder.display();
        return Err(Usage(format!("{folder} holds {found}, and is no training run; give a run's folder")).into());
    }
    let recipe = folder.join(RECIPE);
    if !recipe.is_file() {
        let problem = match folder.exists() {
            true => format!("is no training run: it has no {RECIPE}"),
            false => format!("does not exist{}", absence(folder)),
        };
        return Err(Usage(format!("{} {problem}; give a run's folder", folder.display())).into());
    }
    Ok(tasks::load(&recipe_loader(), &recipe.to_string_lossy(), &[])?)
}

/// Nothing may be at the place of a model, and what is around it must be a folder.
pub(super) fn refuse_taken(out: &Path) -> Result<()> {
    let refuse =
        |problem: String| Err(Usage(format!("--out {}: {problem}; choose another folder", out.display())).into());
    if out.symlink_metadata().is_ok() {
        return refuse("something is there already".to_owned());
    }
    match out.ancestors().find(|path| path.symlink_metadata().is_ok()) {
        Some(around) if !around.is_dir() => refuse(format!("{} is no folder", around.display())),
        _ => Ok(()),
    }
}
