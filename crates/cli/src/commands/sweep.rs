//! `evaluate RECIPE`: pictures of a checkpoint, of a training run's checkpoints or from elsewhere, drawn and judged by a recipe.

use super::judging::same_place;
use super::mlperf::{FinishArgs, finish};
use super::vision::is_of_vision;
use super::{Usage, default_folder, harmless, print, recipe_loader, tell_quickstart};
use crate::args::{DeviceArgs, heading, named};
use crate::ranks;
use anyhow::{Context, Result};
use burn::tensor::Device;
use calotype_core::folders::{Content, content};
use calotype_data::{BoxError, Slice};
use calotype_evaluate::sweep::{self, Judged, KeptCheckpoints, SubStage, Sweep, SweepEnd, SweepRecipe};
use calotype_prepare::slices::SliceArgs;
use calotype_train::checkpoint::saved_in;
use calotype_train::recipe::Resolved;
use calotype_train::saved::{WantedModel, Weights};
use calotype_train::stages::{RESULT, StageContext};
use calotype_train::tasks::{self, TrainingRun};
use calotype_train::trainer::{CHECKPOINTS, RECIPE};
use calotype_train::{RecipeLoader, StopFlag};
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the recipes of evaluations are, so that their names may be given without it.
const EVALUATION: &str = "evaluation/";

/// Time for which a process waits for others that draw, or for a run's next checkpoint. One that dies is noticed within seconds.
const PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// A recipe file, or the name of a built-in recipe, such as stable_diffusion/mlperf_v2.
    #[arg(required = true)]
    pub(super) recipe: Option<String>,
    /// Overrides. One of model=CHECKPOINT, run=RUN (its kept checkpoints) and pictures=FOLDER says what is judged.
    #[arg(value_name = "KEY=VALUE")]
    pub(super) overrides: Vec<String>,
    /// Folder of pictures, features, figures and report; a second start continues in it [default: runs/ and the recipe's name].
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Do this sub-stage alone; may be given several times [default: all].
    #[arg(long, value_name = "NAME", value_parser = named::<SubStage>())]
    stage: Vec<SubStage>,
    /// Wait for further checkpoints of the run until it ends.
    #[arg(long)]
    follow: bool,
    /// End the run's MLPerf log with the figures of its checkpoints, as `calotype mlperf finish` does.
    #[arg(long)]
    finish: bool,
    /// Print the resolved recipe, and stop.
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
    #[command(flatten, next_help_heading = heading::MACHINE)]
    slices: SliceArgs,
}

impl SweepArgs {
    /// A flag that only recipes that draw pictures have a use for, if one is given.
    pub(super) fn drawing_flag(&self) -> Option<&'static str> {
        let SliceArgs { task_id, task_count, tasks } = &self.slices;
        let flags = [
            (!self.stage.is_empty(), "--stage"),
            (self.follow, "--follow"),
            (self.finish, "--finish"),
            (task_id.is_some(), "--task-id"),
            (task_count.is_some(), "--task-count"),
            (tasks.is_some(), "--tasks"),
        ];
        flags.into_iter().find_map(|(given, flag)| given.then_some(flag))
    }
}

/// Judges by a recipe, with the other processes that a launcher started.
pub(crate) fn sweep(args: &SweepArgs, threads: Option<usize>) -> Result<()> {
    let place = ranks::connect(threads, Some(PATIENCE))?;
    let outcome = sweep_together(args, &place);
    ranks::end(&*place.collective, outcome)
}

fn sweep_together(args: &SweepArgs, place: &ranks::Place) -> Result<()> {
    let collective = &*place.collective;
    let recipe = load(args)?;
    if collective.is_first() {
        tell_quickstart(args.recipe.as_deref().unwrap_or_default(), &recipe.text, &args.overrides);
        if let Some(model) = recipe.value.idle_model() {
            eprintln!("note: the recipe's model = {model} is not judged: it stands beside run or pictures, which is");
        }
        tell_same(&recipe.value);
    }
    if args.dry_run {
        return if collective.is_first() { print(recipe.text.trim_end()) } else { Ok(()) };
    }
    let device = args.device.numbered(place.device)?;
    let stop = if collective.is_first() { StopFlag::install() } else { StopFlag::install_mute() };
    let stop = stop.context("cannot listen for signals")?;
    let run = match recipe.value.judged()? {
        Judged::Run(folder) => Some(KeptOfRun::open(Path::new(folder), &device, &stop)?),
        Judged::Model(path) => {
            refuse_saved(Path::new(path))?;
            None
        }
        Judged::Pictures(_) => None,
    };
    check_flags(args, run.is_some())?;
    let out = args.out.clone().unwrap_or_else(|| default_folder(args.recipe.as_deref().unwrap_or_default()));
    let stages: BTreeSet<SubStage> = args.stage.iter().copied().collect();
    let stages = if stages.is_empty() { SubStage::ALL.iter().copied().collect() } else { stages };
    let slices = args.slices.slices()?;
    let sweep = Sweep {
        recipe: &recipe.value,
        text: &recipe.text,
        out: &out,
        device: &device,
        stop: &stop,
        collective,
        slices: &slices,
        stages: stages.clone(),
        run: run.as_ref().map(|run| run as &dyn KeptCheckpoints),
        follow: args.follow,
    };
    let end = sweep.run()?;
    if !collective.is_first() {
        return Ok(());
    }
    if slices == [Slice::ALL] {
        check_made(&end, &stages)?;
    }
    tell(&end)?;
    match run.filter(|_| args.finish) {
        Some(run) => finish_log(&run.folder, &end),
        None => Ok(()),
    }
}

/// The recipe that a name stands for: below `evaluation/`, unless there is one of just this name.
pub(super) fn full_name(loader: &RecipeLoader, given: &str) -> String {
    let is_there =
        Path::new(given).is_file() || given.ends_with(".toml") || loader.names().iter().any(|name| name == given);
    if is_there { given.to_owned() } else { format!("{EVALUATION}{given}") }
}

/// The recipe, by its name below `evaluation/` or any other, with the model's path in its paths.
fn load(args: &SweepArgs) -> Result<Resolved<SweepRecipe>> {
    let loader = recipe_loader();
    let given = args.recipe.as_deref().unwrap_or_default();
    let name = &full_name(&loader, given);
    let table: Resolved<toml::Table> = loader.load(name, &args.overrides)?;
    match table.value.get("kind").and_then(toml::Value::as_str) {
        Some(sweep::KIND) => {}
        other => return Err(Usage(unfollowed(&loader, given, other)).into()),
    }
    let recipe: Resolved<SweepRecipe> = loader.load(name, &args.overrides)?;
    let value = recipe.value.with_paths()?;
    let text = toml::to_string_pretty(&value).context("the resolved recipe cannot be written")?;
    value.validate()?;
    let says_model = args.overrides.iter().any(|text| text.split('=').next().map(str::trim) == Some("model"));
    match value.idle_model().filter(|_| says_model) {
        Some(model) => Err(Usage(format!(
            "model={model} stands beside run or pictures, and only one of them is judged: leave out the others (a model stands there \
             for paths below {{model}} alone, and this recipe has none)"
        ))
        .into()),
        None => Ok(Resolved { value, text, sources: recipe.sources }),
    }
}

/// Says that pictures are compared with themselves.
fn tell_same(recipe: &SweepRecipe) {
    let SweepRecipe { pictures, judge, .. } = recipe;
    if let (Some(pictures), Some(reference)) = (pictures, &judge.reference)
        && same_place(pictures, reference)
    {
        eprintln!("note: judge.reference is what is judged, {pictures}: distances are those of equal sets");
    }
}

/// What to say of a recipe that `evaluate` does not follow, with those that it does.
fn unfollowed(loader: &RecipeLoader, given: &str, kind: Option<&str>) -> String {
    let kind_of = |name: &String| -> Option<String> {
        let table = loader.load::<toml::Table>(name, &[]).ok()?.value;
        table.get("kind").and_then(toml::Value::as_str).map(str::to_owned)
    };
    let is_followed = |name: &String| kind_of(name).is_some_and(|kind| kind == sweep::KIND || is_of_vision(&kind));
    let followed = loader.names().into_iter().filter(|name| name.starts_with(EVALUATION)).filter(is_followed);
    let known: Vec<String> = followed.filter_map(|name| name.strip_prefix(EVALUATION).map(str::to_owned)).collect();
    let what = match kind {
        Some(kind) => format!("its `kind` is `{kind}`"),
        // Of the recipes for evaluations, only those of quickstarts say no kind.
        None if full_name(loader, given).starts_with(EVALUATION) => {
            "it is the evaluation of `calotype quickstart`".to_owned()
        }
        None => "it has no key `kind`".to_owned(),
    };
    format!("{given} is no recipe that `evaluate` follows: {what}; it follows {}", known.join(", "))
}

fn check_flags(args: &SweepArgs, is_run: bool) -> Result<()> {
    let flags = [(args.follow, "--follow"), (args.finish, "--finish")];
    match flags.iter().find(|(given, _)| *given && !is_run) {
        Some((_, flag)) => Err(Usage(format!("{flag} is of a training run: name it by run=RUN")).into()),
        None => Ok(()),
    }
}

/// A checkpoint of training is judged as one of its run's.
fn refuse_saved(path: &Path) -> Result<()> {
    let is_saved = ["state.json", "tensors.safetensors"].iter().all(|name| path.join(name).is_file());
    let run = path.parent().and_then(Path::parent).filter(|run| is_saved && run.join(RECIPE).is_file());
    let samples = path.file_name().and_then(|name| name.to_str()?.rsplit_once('-')?.1.parse::<u64>().ok());
    match (run, samples) {
        (Some(run), Some(samples)) => {
            let run = run.display();
            Err(Usage(format!(
                "{} is a checkpoint of a training run; give run={run} at=[{samples}] in place of model",
                path.display()
            ))
            .into())
        }
        _ => Ok(()),
    }
}

/// Refuses to end well where the sub-stages have made nothing, for what they begin with is not there. Slices leave that to each other.
fn check_made(end: &SweepEnd, stages: &BTreeSet<SubStage>) -> Result<()> {
    let does = |stage: SubStage| stages.contains(&stage);
    let begins = does(SubStage::Generate) || does(SubStage::Features) && end.pictures > 0;
    if begins || end.scored > 0 || end.waiting == 0 {
        return Ok(());
    }
    let before: Vec<String> =
        SubStage::ALL.iter().take_while(|stage| !does(**stage)).map(|stage| format!("--stage {stage}")).collect();
    Err(Usage(format!(
        "nothing was made of the pictures: what these sub-stages begin with is not there; run {} first, or start without --stage, which \
         does all",
        before.join(" and ")
    ))
    .into())
}

fn tell(end: &SweepEnd) -> Result<()> {
    for line in &end.lines {
        print(&harmless(line))?;
    }
    if end.waiting > 0 {
        let sets = if end.waiting == 1 {
            "1 set of pictures lacks"
        } else {
            &format!("{} sets of pictures lack", end.waiting)
        };
        eprintln!(
            "note: {sets} features or figures, which other slices or sub-stages make; the last one to end makes the report"
        );
    }
    match end.written.last() {
        Some(path) => print(&format!("report {}", path.display())),
        None => Ok(()),
    }
}

/// Ends the log of a run with the figures of its checkpoints.
fn finish_log(run: &Path, end: &SweepEnd) -> Result<()> {
    match &end.mlperf {
        Some(scores) if end.waiting == 0 => finish(&FinishArgs { run: run.to_owned(), scores: scores.clone() }),
        Some(_) => Err(Usage("--finish: some checkpoints have no figures yet; start again once all slices are done".to_owned()).into()),
        None => Err(Usage(
            "--finish needs FID and CLIP score of each checkpoint, at one guidance scale: judge.metrics = [\"fid\", \"clip_score\"]"
                .to_owned(),
        )
        .into()),
    }
}

/// The kept checkpoints of a run.
struct KeptOfRun<'a> {
    folder: PathBuf,
    training: TrainingRun,
    device: &'a Device,
    stop: &'a StopFlag,
}

impl<'a> KeptOfRun<'a> {
    fn open(folder: &Path, device: &'a Device, stop: &'a StopFlag) -> Result<Self> {
        let recipe = folder.join(RECIPE);
        if let Some(found) = content(folder).filter(|found| found.content != Content::Run) {
            let folder = folder.display();
            return Err(Usage(format!("run={folder}: {folder} holds {found}, and is no training run")).into());
        }
        if !recipe.is_file() {
            return Err(Usage(format!("run={0}: {0} is no training run: it has no {RECIPE}", folder.display())).into());
        }
        let training = tasks::load(&recipe_loader(), &recipe.to_string_lossy(), &[])?;
        Ok(Self { folder: folder.to_owned(), training, device, stop })
    }
}

impl KeptCheckpoints for KeptOfRun<'_> {
    fn saved(&self) -> Result<Vec<(u64, PathBuf)>, BoxError> {
        let folder = self.folder.join(CHECKPOINTS);
        // A run that has just begun has none yet.
        Ok(if folder.is_dir() { saved_in(&folder)? } else { Vec::new() })
    }

    fn is_finished(&self) -> bool {
        self.folder.join(RESULT).is_file()
    }

    fn write_model(&self, samples: u64, averaged: bool, out: &Path) -> Result<(), BoxError> {
        let context = StageContext::new(&self.folder, self.device, self.stop);
        let wanted = WantedModel { weights: (!averaged).then_some(Weights::Trained), at: Some(samples) };
        self.training.export(&wanted, out, &context)?;
        Ok(())
    }
}
