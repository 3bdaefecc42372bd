//! `calotype data`: the stages of `calotype-prepare`, and those that need models.

use crate::args::{DeviceArgs, heading};
use crate::commands::fid_stats::{FidStatsArgs, fid_stats};
use crate::commands::{Stopped, Usage, harmless, print, recipe_loader, tell_quickstart};
use anyhow::{Context, Result};
use calotype_core::folders::EVALUATIONS;
use calotype_data::Control;
use calotype_prepare::slices::SliceArgs;
use calotype_prepare::{Account, DataStage};
use calotype_train::precache::PrecacheRecipe;
use calotype_train::stages::{self, StageEnd};
use calotype_train::{Progress, StopFlag};
use clap::{Args, Subcommand};
use std::time::Instant;

/// The two usual ways to a training run.
const WAYS: &str = "\
From a folder of images (with caption files, metadata.jsonl or metadata.csv, or in folders by class):
  calotype data convert IMAGES shards
  calotype data check shards --quarantine
  calotype data precache data/precache/quickstart source=shards out=encoded ...

From a list of addresses (parquet):
  calotype data filter LIST kept --licensed --min-width 512
  calotype data download kept downloaded --url-col URL --caption-col TEXT --resize-mode no
  calotype data reorganize downloaded shards --samples-per-shard 1000
  calotype data check shards --quarantine

Then: calotype train <recipe> data.path=shards";

#[derive(Debug, Args)]
#[command(after_help = WAYS)]
pub(crate) struct DataArgs {
    /// Print the account of what was done as one JSON object.
    #[arg(long, global = true, help_heading = heading::OUTPUT)]
    json: bool,
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    #[command(flatten)]
    Stage(Box<DataStage>),
    /// Run frozen encoders over a dataset once, by a precache recipe: images to latents, captions to embeddings.
    ///
    /// May be killed at any instant and started again, and shared out over an array of jobs: the result is the same.
    Precache(PrecacheArgs),
    /// Compute the statistics that the Fréchet inception distance compares generated images with.
    FidStats(FidStatsArgs),
}

#[derive(Debug, Args)]
struct PrecacheArgs {
    /// A recipe file, or the name of a built-in recipe.
    recipe: String,
    /// Overrides, e.g. source=images.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    slices: SliceArgs,
}

pub(crate) fn data(args: &DataArgs) -> Result<()> {
    let stop = StopFlag::install().context("cannot listen for signals")?;
    match &args.command {
        DataCommand::Stage(stage) => {
            let account = with_progress(&stop, |control| stage.run(control))?;
            tell(&account, args.json)
        }
        DataCommand::Precache(precache) => tell(&run_precache(precache, &stop)?, args.json),
        DataCommand::FidStats(stats) => tell(&with_progress(&stop, |control| fid_stats(stats, control))?, args.json),
    }
}

/// Refuses a recipe of something else, whose keys would be told to be unknown.
fn refuse_others(recipe: &str, overrides: &[String]) -> Result<()> {
    let table = recipe_loader().load::<toml::Table>(recipe, overrides)?.value;
    let what = match table.get("kind").and_then(toml::Value::as_str) {
        Some(kind) if EVALUATIONS.contains(&kind) => {
            format!("a recipe of an evaluation, which is `calotype evaluate {recipe}`")
        }
        Some(kind) => format!("a training recipe (kind `{kind}`), which is `calotype train {recipe}`"),
        None if table.contains_key("encoders") => return Ok(()),
        None => "no recipe of encoders: it has no table [encoders]".to_owned(),
    };
    Err(Usage(format!(
        "{recipe} is {what}; the recipes of `data precache` are those below data/precache/ (`calotype recipes`)"
    ))
    .into())
}

/// The slices of a precache stage that this process has to do, one after the other.
fn run_precache(args: &PrecacheArgs, stop: &StopFlag) -> Result<Account> {
    recipe_loader().check_overrides(&args.recipe, &args.overrides)?;
    refuse_others(&args.recipe, &args.overrides)?;
    let loaded = recipe_loader().load::<PrecacheRecipe>(&args.recipe, &args.overrides)?;
    tell_quickstart(&args.recipe, &loaded.text, &args.overrides);
    let recipe = loaded.value;
    let device = args.device.open()?;
    let mut account = Account::new("precache");
    let mut last = None;
    let started = Instant::now();
    for slice in args.slices.slices()? {
        let of = if slice.count > 1 { format!("slice {}: ", slice.id) } else { String::new() };
        let done = match stages::precache(&recipe, slice, &device, stop)? {
            StageEnd::Interrupted { samples } => return Err(Stopped::Encoded(account.written + samples).into()),
            StageEnd::Done(done) => done,
        };
        account.taken += done.samples as u64;
        account.written += done.samples as u64;
        account.bytes += done.bytes;
        if done.encoded < done.samples {
            account.notes.push(format!(
                "{of}{} of {} samples were there already",
                done.samples - done.encoded,
                done.samples
            ));
        }
        account.notes.extend(done.images.iter().map(|note| format!("{of}{note}")));
        if done.truncated > 0 {
            let cut = "cut, because longer than a text encoder's context";
            account.notes.push(format!("{of}captions {cut}: {}", done.truncated));
        }
        last = Some(done);
    }
    account.seconds = started.elapsed().as_secs_f64();
    let (finished, left_out) = last.map_or_else(Default::default, |done| (done.finished, done.left_out));
    account
        .notes
        .extend(left_out.iter().map(|(reason, samples)| format!("not taken from the source: {samples} {reason}")));
    account.notes.push(match finished {
        Some(samples) => format!("the dataset is complete: {samples} samples in {}", recipe.out),
        None => format!("other slices are not done yet; the last one completes {}", recipe.out),
    });
    Ok(account)
}

/// Does `work` with a display of its progress: one for each name under which it reports.
pub(crate) fn with_progress<T, E>(
    stop: &StopFlag,
    work: impl FnOnce(&mut Control<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let mut display: Option<(&'static str, Progress)> = None;
    let mut control = Control::default()
        .with_progress(|stage, done, total| {
            if display.as_ref().is_none_or(|(shown, _)| *shown != stage) {
                if let Some((_, mut before)) = display.take() {
                    before.finish();
                }
                display = Some((stage, Progress::new(stage, total as u64).starting_at(done as u64)));
            }
            if let Some((_, progress)) = &mut display {
                progress.set_total(total as u64);
                progress.set(done as u64, &[]);
            }
        })
        .with_stop(|| stop.is_set());
    let result = work(&mut control);
    drop(control);
    if let Some((_, progress)) = &mut display {
        progress.finish();
    }
    result
}

fn tell(account: &Account, json: bool) -> Result<()> {
    match json {
        true => print(&serde_json::to_string(account)?),
        false => print(&harmless(&account.to_string())),
    }
}
