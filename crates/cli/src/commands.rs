mod absent;
pub(crate) mod bench;
pub(crate) mod classify;
pub(crate) mod doctor;
mod drawing;
pub(crate) mod ema;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod fid_stats;
pub(crate) mod generate;
mod judging;
pub(crate) mod mlperf;
mod mlperf_accuracy;
mod mlperf_inference;
mod mlperf_plot;
mod mlperf_submission;
pub(crate) mod probe;
pub(crate) mod quantize;
pub(crate) mod recipes;
pub(crate) mod shell;
pub(crate) mod similarity;
pub(crate) mod sweep;
mod vision;

use crate::{QuickstartArgs, TrainArgs, help, ranks};
use anyhow::{Context, Result};
use calotype_bench::BenchError;
use calotype_checkpoints::LayoutError;
use calotype_core::folders::{Content, check_folder};
use calotype_core::output::check_file;
use calotype_core::words::plain;
use calotype_evaluate::EvaluateError;
use calotype_evaluate::sweep::SweepError;
use calotype_inference::InferenceError;
use calotype_mlperf::FiguresError;
use calotype_pipeline::PipelineError;
use calotype_pipeline::encoders::EncoderError;
use calotype_quickstart::{Options, QuickstartError, run};
use calotype_train::device::DeviceError;
use calotype_train::prepare::{Preparation, PrepareError};
use calotype_train::record::RecordOptions;
use calotype_train::stages::{MODEL, StageContext, StageEnd, StageError};
use calotype_train::tasks::{self, TaskError, TrainingRun};
use calotype_train::trainer::TrainingSummary;
use calotype_train::{RecipeError, RecipeLoader, StopFlag};
use calotype_weights::TensorFileError;
use std::io::Write;
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// Stopped on request with everything saved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// In the work itself.
    #[error("stopped after {0} samples, everything is saved; run the same command again to go on")]
    After(u64),
    /// Between whole shards of encoded samples; those of all slices that are done.
    #[error(
        "stopped with {0} samples saved, in whole shards; a shard that was begun is encoded again: run the same command again to \
         go on"
    )]
    Encoded(u64),
    /// Before a run's training, while something was being made for it.
    #[error(
        "stopped before the training began, while something that it needs was being made ({0}); what is there is kept: run the \
         same command again to go on"
    )]
    Preparing(String),
}

/// An error that the user has read already, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("the run of several processes has ended")]
pub(crate) struct Told(pub(crate) u8);

/// A command line that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Exit code of a stop on request with everything saved.
pub(crate) const STOPPED: u8 = 130;

/// An error and its causes in one line, in plain words, without those that a message before them has told already.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let told =
        error.chain().map(|cause| plain(&cause.to_string())).fold(String::new(), |told, cause| match told.as_str() {
            "" => cause,
            _ if told.contains(&cause) => told,
            _ => format!("{told}: {cause}"),
        });
    harmless(&told)
}

/// A text in which names and keys out of files cannot command the terminal: control characters are shown as escapes.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && c != '\n' && c != '\t' {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// 2 for bad usage or configuration, also where something is not there that was named, 130 for a stop on request, 1 for failed work.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(Told(code)) = error.downcast_ref() {
        return *code;
    }
    let interrupted = error.is::<Stopped>()
        || error.downcast_ref().is_some_and(PipelineError::is_stopped)
        || matches!(error.downcast_ref(), Some(QuickstartError::Interrupted { .. }))
        || matches!(error.downcast_ref(), Some(calotype_data::Error::Interrupted { .. }))
        || error.downcast_ref::<EvaluateError>().is_some_and(EvaluateError::is_interrupted)
        || error.downcast_ref::<SweepError>().is_some_and(SweepError::is_interrupted)
        || error.downcast_ref::<InferenceError>().is_some_and(InferenceError::is_stopped)
        || error.downcast_ref::<calotype_prepare::Error>().is_some_and(calotype_prepare::Error::is_interrupted);
    let usage = error.downcast_ref::<RecipeError>().is_some_and(RecipeError::is_usage)
        || error.downcast_ref::<QuickstartError>().is_some_and(QuickstartError::is_usage)
        || error.downcast_ref::<StageError>().is_some_and(StageError::is_usage)
        || error.downcast_ref::<PrepareError>().is_some_and(PrepareError::is_usage)
        || error.downcast_ref::<BenchError>().is_some_and(BenchError::is_usage)
        || error.downcast_ref::<EvaluateError>().is_some_and(EvaluateError::is_usage)
        || error.downcast_ref::<SweepError>().is_some_and(SweepError::is_usage)
        || error.downcast_ref::<InferenceError>().is_some_and(InferenceError::is_usage)
        || error.downcast_ref::<calotype_prepare::Error>().is_some_and(calotype_prepare::Error::is_usage)
        || error.downcast_ref::<calotype_data::Error>().is_some_and(calotype_data::Error::is_usage)
        || error.downcast_ref::<EncoderError>().is_some_and(EncoderError::is_usage)
        || error.downcast_ref::<TensorFileError>().is_some_and(TensorFileError::is_usage)
        || error.is::<DeviceError>()
        || error.is::<FiguresError>()
        || error.is::<Usage>()
        || error.downcast_ref::<PipelineError>().is_some_and(PipelineError::is_usage)
        || error.downcast_ref::<TaskError>().is_some_and(TaskError::is_usage)
        || error.downcast_ref::<LayoutError>().is_some_and(LayoutError::is_usage);
    match (interrupted, usage || names_absent(error)) {
        (true, _) => STOPPED,
        (_, true) => 2,
        _ => 1,
    }
}

/// True if something is not there that the command line names.
fn names_absent(error: &anyhow::Error) -> bool {
    let arguments: Vec<String> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    absent::is_named(error, &help::command(), &arguments)
}

/// Built-in recipes, and those of a `recipes` folder in the current directory.
pub(crate) fn recipe_loader() -> RecipeLoader {
    RecipeLoader::new().embedded(RECIPES).folder("recipes")
}

/// Refuses a place for a single file where something is that the command does not write ([`check_file`]); `argument` names it.
pub(crate) fn check_output(argument: &str, path: &Path, what: &str, is_own: impl FnOnce(&Path) -> bool) -> Result<()> {
    check_file(path, what, is_own).map_err(|problem| Usage(format!("{argument} {problem}")).into())
}

/// Refuses a folder of something else than a command writes ([`check_folder`]); `argument` names it.
pub(crate) fn check_out(argument: &str, folder: &Path, own: &[Content]) -> Result<()> {
    check_folder(folder, own).map_err(|problem| Usage(format!("{problem} with {argument}")).into())
}

/// Says which files of a quickstart a built-in recipe takes, where the command line names no others: what comes out is of these.
pub(crate) fn tell_quickstart(recipe: &str, text: &str, overrides: &[String]) {
    let named = Path::new(recipe).is_file() || overrides.iter().any(|text| text.contains(QUICKSTART));
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let mut taken = Vec::new();
    quickstart_paths("", &toml::Value::Table(table), &mut taken);
    let Some((key, path)) = taken.first().filter(|_| !named) else { return };
    let others: Vec<&str> = taken[1..].iter().map(|(key, _)| key.as_str()).collect();
    let others = if others.is_empty() { String::new() } else { format!(", and {} lie there, too", others.join(", ")) };
    eprintln!("note: the recipe takes files of the quickstart: {key} is {path}{others}; {key}=PATH takes others");
}

/// The folder that the built-in recipes mean by the quickstart's.
const QUICKSTART: &str = "runs/quickstart";

/// Keys of a recipe with paths in that folder.
fn quickstart_paths(key: &str, value: &toml::Value, taken: &mut Vec<(String, String)>) {
    match value {
        toml::Value::String(path) if Path::new(path).starts_with(QUICKSTART) => {
            taken.push((key.to_owned(), path.clone()))
        }
        toml::Value::Table(table) => table.iter().for_each(|(name, value)| {
            let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            quickstart_paths(&below, value, taken);
        }),
        _ => {}
    }
}

/// Prints to standard output; a closed pipe (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

pub(crate) fn quickstart(args: &QuickstartArgs) -> Result<()> {
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let options = Options {
        out: &args.out,
        preset: &format!("quickstart/{}", args.preset),
        seed: args.seed,
        device: &args.device.name,
        overrides: &args.overrides,
    };
    let summary = run(&recipe_loader(), &options, &stop)?;
    if let Some(warning) = summary.warning() {
        print(warning)?;
    }
    let j = &summary.judgement;
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let out = args.out.display();
    print(&format!(
        "background right  {} (untrained {}, real {})\n\
         caption retrieval {} (untrained {}, real {})\n\
         Fréchet distance  {:.4} (untrained {:.4}, real {:.4}; own CLIP features of unit length, not FID)\n\
         CLIP score        {:.4} (untrained {:.4}, real {:.4})\n\
         took              {:.0} s, {:.2} GiB\n\
         report            {out}/report.html\n\
         images            {out}/pictures/held_out.png, {out}/pictures/prompts.png",
        percent(j.trained.background_accuracy),
        percent(j.untrained.background_accuracy),
        percent(j.real.background_accuracy),
        percent(j.trained.retrieval_top1),
        percent(j.untrained.retrieval_top1),
        percent(j.real.retrieval_top1),
        j.trained.frechet_distance,
        j.untrained.frechet_distance,
        j.real.frechet_distance,
        j.trained.clip_score,
        j.untrained.clip_score,
        j.real.clip_score,
        summary.seconds.values().sum::<f64>(),
        summary.peak_rss_gib,
    ))
}

/// Trains, with the other processes that a launcher started.
pub(crate) fn train(args: &TrainArgs, threads: Option<usize>) -> Result<()> {
    let place = ranks::connect(threads, None)?;
    let outcome = train_together(args, &place);
    ranks::end(&*place.collective, outcome)
}

fn train_together(args: &TrainArgs, place: &ranks::Place) -> Result<()> {
    let collective = &*place.collective;
    let print = |text: &str| if collective.is_first() { print(text) } else { Ok(()) };
    if args.record.is_some() && collective.world() > 1 {
        return Err(Usage("--record is of one process; start without a launcher".to_owned()).into());
    }
    let folder = args.out.clone().unwrap_or_else(|| default_folder(&args.recipe));
    let recipes = recipe_loader().out(&folder);
    refuse_quickstart(&args.recipe)?;
    recipes.check_overrides(&args.recipe, &args.overrides)?;
    let run = tasks::load(&recipes, &args.recipe, &args.overrides)?;
    let preparation = Preparation::of(&recipes, &run, &folder)?;
    if collective.is_first() {
        tell_quickstart(&args.recipe, run.text(), &args.overrides);
    }
    if args.dry_run {
        print(run.text().trim_end())?;
    }
    let device = args.device.numbered(place.device)?;
    let stop = if collective.is_first() { StopFlag::install() } else { StopFlag::install_mute() };
    let stop = stop.context("cannot listen for signals")?;
    let record = args.record.as_ref().map(|path| RecordOptions { path: path.clone(), steps: args.record_steps });
    // A longer run than before has to be meant: files change by accident, command lines do not.
    let extend = args.overrides.iter().any(|text| text.split('=').next().map(str::trim) == Some("run.samples"));
    let from = args.from.as_deref();
    let common = StageContext::new(&folder, &device, &stop);
    let context = StageContext { record: record.as_ref(), extend, from, collective, ..common };
    run.check_recipe()?;
    if args.dry_run {
        return dry_run(&run, &preparation, &context);
    }
    let pending = preparation.pending()?;
    run.check_beginning((!pending.is_empty()).then_some(preparation.folder()), &context)?;
    if let StageEnd::Interrupted { .. } = preparation.make(&context)? {
        return Err(Stopped::Preparing(preparation.pending()?.into_iter().next().unwrap_or_default()).into());
    }
    match run.train(&context)? {
        StageEnd::Interrupted { samples } => Err(Stopped::After(samples).into()),
        StageEnd::Done(TrainingSummary { samples_seen, loss_first, loss_last, seconds, .. }) => print(&format!(
            "{samples_seen} samples in {seconds:.0} s, mean loss {loss_first:.5} in the logs' first entry, {loss_last:.5} in the last\nmodel {}",
            folder.join(MODEL).display()
        )),
    }
}

/// Refuses the recipe of a whole quickstart, which trains by the recipes of its stages.
fn refuse_quickstart(recipe: &str) -> Result<()> {
    let preset = match recipe {
        "quickstart" => "",
        _ => recipe.strip_prefix("quickstart/").unwrap_or(recipe),
    };
    if preset == recipe || Path::new(recipe).exists() {
        return Ok(());
    }
    let flag = if preset.is_empty() { String::new() } else { format!(" --preset {preset}") };
    Err(Usage(format!(
        "{recipe} is no training recipe: the whole quickstart is `calotype quickstart{flag}`, and its stages are recipes such as \
         training/stable_diffusion/quickstart"
    ))
    .into())
}

/// Tells what a start would find, or what it would make first.
fn dry_run(run: &TrainingRun, preparation: &Preparation, context: &StageContext<'_>) -> Result<()> {
    let tell = |line: String| {
        if context.collective.is_first() {
            eprintln!("{line}");
        }
    };
    run.units().into_iter().for_each(|line| tell(format!("units        {line}")));
    let pending = preparation.pending()?;
    run.check_beginning((!pending.is_empty()).then_some(preparation.folder()), context)?;
    if pending.is_empty() {
        tell(run.check(context)?.to_string());
        return Ok(());
    }
    pending.iter().for_each(|line| tell(format!("prepare      {line}")));
    tell("note         the rest is found out once these are there: a start would make them first".to_owned());
    Ok(())
}

/// `runs/<recipe's name without folders and ending>`.
pub(crate) fn default_folder(recipe: &str) -> PathBuf {
    let stem = Path::new(recipe).file_stem().unwrap_or(recipe.as_ref());
    Path::new("runs").join(stem)
}
