//! What a folder of training holds: a run, one of its checkpoints, or a quickstart's runs. Nothing is written, and no tensor is
//! read.

use crate::averages;
use crate::checkpoint::{self, CheckpointError};
use crate::prepare::{PreparedStep, prepared_steps};
use crate::stages::{MODEL, RESULT, read_result};
use crate::trainer::{CHECKPOINTS, RECIPE, TrainingSummary};
use calotype_core::durable::{advice, read_json};
use calotype_core::folders::{Content, EVALUATIONS, content};
use calotype_core::lock::{Holder, LOCK_FILE};
use calotype_core::system::{format_bytes, format_count, format_duration};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

/// Stages of a quickstart that are runs, by the folder's name.
const STAGES: [&str; 3] = ["clip", "autoencoder", "diffusion"];
/// Figures of a finished quickstart.
const SUMMARY: &str = "summary.json";

/// Why a folder cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// Its checkpoints cannot be listed, or one is damaged.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file cannot be read.
    #[error("{}: {source}{}", path.display(), advice(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// A saved state of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// Samples seen.
    pub samples: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Length of its files, in bytes.
    pub bytes: u64,
}

/// A saved state of a run that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedState {
    /// Samples seen, by its folder's name.
    pub samples: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Which file is damaged, and how.
    pub problem: String,
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Its folder.
    pub path: PathBuf,
    /// The task.
    pub kind: String,
    /// Samples that its recipe asks for.
    pub samples: Option<u64>,
    /// Its figures, if it is finished.
    pub result: Option<TrainingSummary>,
    /// The process that has the folder, or had it when it was killed.
    pub holder: Option<Holder>,
    /// Where its samples come from.
    pub data: Vec<String>,
    /// Its checkpoints that are whole, oldest first.
    pub checkpoints: Vec<Saved>,
    /// Those that are damaged, by their manifests and the lengths of their files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<DamagedState>,
    /// The trained model, if it is there; that of an earlier end if the run was extended and is not finished.
    pub model: Option<PathBuf>,
}

/// A training checkpoint by itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointReport {
    /// The state that was saved.
    #[serde(flatten)]
    pub saved: Saved,
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Parameters of the network.
    pub parameters: usize,
    /// Whether it holds averaged weights.
    pub averaged: bool,
    /// What is kept of the optimizer for each parameter, by name.
    pub optimizer: Vec<String>,
}

/// What a folder holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Held {
    /// A training run.
    Run(RunReport),
    /// A run that has not begun, because what it needs is not all made yet.
    Preparation {
        /// Its folder.
        path: PathBuf,
        /// What is made first, and whether it is there.
        steps: Vec<PreparedStep>,
    },
    /// An evaluation, of pictures or of a vision model.
    Evaluation {
        /// Its folder.
        path: PathBuf,
        /// The value of `kind` in its recipe.
        kind: String,
        /// What it judges, as the recipe says it: a model, a run or pictures.
        judges: Option<String>,
        /// Its report or its figures, if they are there.
        report: Option<PathBuf>,
    },
    /// A checkpoint of a run.
    TrainingCheckpoint(CheckpointReport),
    /// A snapshot of averages, which is no checkpoint.
    Snapshot(Saved),
    /// A quickstart, whose pipeline is described apart.
    Quickstart {
        /// Its runs, as far as they have begun.
        runs: Vec<RunReport>,
        /// Its figures, if it is finished.
        summary: Option<serde_json::Value>,
    },
}

/// What a folder holds; none if it is nothing of training's.
///
/// # Errors
/// [`RunsError`]: it is, but cannot be read.
pub fn held(path: &Path) -> Result<Option<Held>, RunsError> {
    if let Some(Content::Evaluation | Content::VisionEvaluation) = content(path).map(|found| found.content) {
        return evaluation(path).map(Some);
    }
    if path.join(RECIPE).is_file() && (path.join(CHECKPOINTS).is_dir() || path.join(RESULT).is_file()) {
        return run(path).map(|run| Some(Held::Run(run)));
    }
    if let Some(steps) = prepared_steps(path).map_err(|source| RunsError::Io { path: path.to_owned(), source })? {
        return Ok(Some(Held::Preparation { path: path.to_owned(), steps }));
    }
    if checkpoint::training_folder(path, false)?.is_some_and(|folder| folder == path) {
        return training_checkpoint(path).map(Some);
    }
    let begun = |stage: &&str| path.join(stage).join(RECIPE).is_file();
    let stages: Vec<&str> = STAGES.into_iter().filter(|stage| begun(stage)).collect();
    if stages.is_empty() || !path.join("dataset").is_dir() {
        return Ok(None);
    }
    let runs = stages.into_iter().map(|stage| run(&path.join(stage))).collect::<Result<_, _>>()?;
    let summary = read(&path.join(SUMMARY))?;
    Ok(Some(Held::Quickstart { runs, summary }))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, RunsError> {
    read_json(path).map_err(|source| RunsError::Io { path: path.to_owned(), source })
}

/// The recipe in a folder; an empty one if it is no TOML.
fn recipe_in(path: &Path) -> Result<Table, RunsError> {
    let recipe = path.join(RECIPE);
    let text = std::fs::read_to_string(&recipe).map_err(|source| RunsError::Io { path: recipe, source })?;
    Ok(toml::from_str(&text).unwrap_or_default())
}

fn evaluation(path: &Path) -> Result<Held, RunsError> {
    // A kill may have left what it draws without its recipe.
    let recipe = if path.join(RECIPE).is_file() { recipe_in(path)? } else { Table::new() };
    let text_at = |key: &str| recipe.get(key).and_then(Value::as_str).map(str::to_owned);
    let judges = ["model", "run", "pictures"].into_iter().find_map(|key| Some(format!("{key} {}", text_at(key)?)));
    let kind = text_at("kind").unwrap_or_else(|| EVALUATIONS[0].to_owned());
    let report = ["report.html", "figures.json"].map(|name| path.join(name)).into_iter().find(|path| path.is_file());
    Ok(Held::Evaluation { path: path.to_owned(), kind, judges, report })
}

fn run(path: &Path) -> Result<RunReport, RunsError> {
    let recipe = recipe_in(path)?;
    let text_at = |key: &str| recipe.get(key).and_then(Value::as_str).unwrap_or("of unknown kind").to_owned();
    let samples = recipe.get("run").and_then(|run| run.get("samples")).and_then(Value::as_integer);
    let (mut checkpoints, mut damaged) = (Vec::new(), Vec::new());
    for checkpoint::Listed { samples, path, damage } in checkpoint::listed_of(path)? {
        match damage {
            None => checkpoints.push(saved(samples, path)),
            Some(problem) => damaged.push(DamagedState { samples, path, problem }),
        }
    }
    let model = path.join(MODEL);
    Ok(RunReport {
        path: path.to_owned(),
        kind: text_at("kind"),
        samples: samples.and_then(|samples| u64::try_from(samples).ok()),
        result: read_result(path).map_err(|source| RunsError::Io { path: path.join(RESULT), source })?,
        // An empty file, which names nobody, is no JSON.
        holder: read(&path.join(LOCK_FILE)).ok().flatten(),
        data: sources(&recipe),
        checkpoints,
        damaged,
        model: model.is_dir().then_some(model),
    })
}

fn sources(recipe: &Table) -> Vec<String> {
    let Some(data) = recipe.get("data") else { return Vec::new() };
    let path = |table: &Value| table.get("path").and_then(Value::as_str).map(str::to_owned);
    let listed = data.get("sources").and_then(Value::as_array);
    path(data).into_iter().chain(listed.into_iter().flatten().filter_map(path)).collect()
}

fn saved(samples: u64, path: PathBuf) -> Saved {
    let files = std::fs::read_dir(&path).into_iter().flatten().flatten();
    let bytes = files.filter_map(|file| file.metadata().ok()).map(|status| status.len()).sum();
    Saved { samples, path, bytes }
}

fn training_checkpoint(path: &Path) -> Result<Held, RunsError> {
    let checkpoint = checkpoint::Checkpoint::load(path)?;
    if averages::is_snapshot(&checkpoint.tensors) {
        return Ok(Held::Snapshot(saved(checkpoint.samples, path.to_owned())));
    }
    let tensors = || checkpoint.tensors.tensors();
    let of = |prefix: &str| tensors().filter(|tensor| tensor.name().starts_with(prefix)).count();
    let own = tensors().filter(|tensor| tensor.name().starts_with(crate::trainer::MODEL));
    let parameters = own.map(|tensor| tensor.shape().iter().product::<usize>()).sum();
    let mut optimizer: Vec<String> = Vec::new();
    for name in ["adamw.first_moment.", "adamw.second_moment.", "sgd.momentum."] {
        if of(name) > 0 {
            optimizer.push(name.trim_end_matches('.').to_owned());
        }
    }
    Ok(Held::TrainingCheckpoint(CheckpointReport {
        saved: saved(checkpoint.samples, path.to_owned()),
        steps: checkpoint.state.get("steps").and_then(serde_json::Value::as_u64),
        parameters,
        averaged: of(crate::optim::AVERAGE) > 0,
        optimizer,
    }))
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(run) => write!(f, "{run}"),
            Self::Preparation { path, steps } => {
                writeln!(f, "{}: a training run that has not begun: what it needs is made first", path.display())?;
                writeln!(f, "  the same command goes on with it")?;
                steps.iter().try_for_each(|step| {
                    let state = if step.done { "made" } else { "begun" };
                    writeln!(f, "  {:11} {state}", step.name)
                })
            }
            Self::Evaluation { path, kind, judges, report } => {
                writeln!(f, "{}: an evaluation ({kind})", path.display())?;
                if let Some(judges) = judges {
                    writeln!(f, "  of the {judges}")?;
                }
                match report {
                    Some(report) => writeln!(f, "  report      {}", report.display()),
                    None => writeln!(f, "  not finished: the same command goes on with it"),
                }
            }
            Self::Snapshot(Saved { samples, path, bytes }) => {
                let (samples, bytes, run) = (format_count(*samples), format_bytes(*bytes), averages::run_of(path));
                writeln!(f, "{}: a snapshot of a run's averages", path.display())?;
                writeln!(f, "  {samples} samples seen, {bytes}")?;
                writeln!(f, "  calotype ema {} --sigma-rel WIDTH --out FOLDER makes models of such", run.display())
            }
            Self::TrainingCheckpoint(checkpoint) => write!(f, "{checkpoint}"),
            Self::Quickstart { runs, summary } => {
                let state =
                    if summary.is_some() { "finished" } else { "not finished: the same command goes on with it" };
                writeln!(f, "a quickstart, {state}")?;
                runs.iter().try_for_each(|run| write!(f, "{run}"))?;
                let figure =
                    |name: &str| summary.as_ref().and_then(|s| s.get(name)).and_then(serde_json::Value::as_f64);
                for (name, words) in
                    [("background_accuracy", "background right"), ("retrieval_top1_of_16", "captions retrieved")]
                {
                    if let Some(share) = figure(name) {
                        writeln!(f, "  {words}  {:.1} %", 100.0 * share)?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl RunReport {
    /// How far it is.
    fn state(&self) -> String {
        let seen = self.checkpoints.last().map_or(0, |saved| saved.samples);
        let of = self.samples.map_or_else(String::new, |samples| format!(" of {}", format_count(samples)));
        let in_use = self.holder.as_ref().is_some_and(|holder| !holder.is_gone());
        if let Some(damaged) = self.all_damaged().filter(|_| self.result.is_none() && !in_use) {
            return format!(
                "not finished: {damaged}; restore one from a backup, or remove them to start from the beginning"
            );
        }
        match (&self.result, &self.holder) {
            (Some(result), _) => format!(
                "finished: {} samples in {}, mean loss {:.5} in the logs' first entry, {:.5} in the last",
                format_count(result.samples_seen),
                format_duration(Duration::try_from_secs_f64(result.seconds).unwrap_or_default()),
                result.loss_first,
                result.loss_last
            ),
            (None, Some(holder)) if holder.is_gone() => format!(
                "not finished: {}{of} samples saved; process {} on {}, which had it, ended without giving it back, as one that is \
                 killed; the same command goes on with it",
                format_count(seen),
                holder.pid,
                holder.host
            ),
            (None, Some(holder)) => {
                let unsure = if holder.is_elsewhere() { ", or that was killed" } else { "" };
                format!("in use by {holder}{unsure}; {}{of} samples saved", format_count(seen))
            }
            (None, None) => {
                format!("not finished: {}{of} samples saved; the same command goes on with it", format_count(seen))
            }
        }
    }

    /// That all its checkpoints are damaged, if they are.
    fn all_damaged(&self) -> Option<String> {
        let count = self.damaged.len();
        (count > 0 && self.checkpoints.is_empty()).then(|| format!("all {count} checkpoints are damaged"))
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: a training run ({})", self.path.display(), self.kind)?;
        writeln!(f, "  {}", self.state())?;
        if !self.data.is_empty() {
            writeln!(f, "  data        {}", self.data.join(", "))?;
        }
        for saved in &self.checkpoints {
            let (samples, bytes) = (format_count(saved.samples), format_bytes(saved.bytes));
            writeln!(f, "  checkpoint  {} ({samples} samples, {bytes})", saved.path.display())?;
        }
        for DamagedState { samples, path, problem } in &self.damaged {
            writeln!(f, "  damaged     {} ({} samples): {problem}", path.display(), format_count(*samples))?;
        }
        match (&self.model, &self.result, self.checkpoints.last()) {
            (Some(model), None, None) if self.all_damaged().is_some() => {
                writeln!(f, "  model       {}, of an earlier end", model.display())
            }
            (Some(model), None, _) => {
                let (model, run) = (model.display(), self.path.display());
                writeln!(
                    f,
                    "  model       {model}, of an earlier end; `calotype export {run} --out FOLDER` writes the newest"
                )
            }
            (Some(model), ..) => writeln!(f, "  model       {}", model.display()),
            (None, None, _) => Ok(()),
            (None, Some(_), Some(_)) => {
                writeln!(f, "  model       gone; the same command writes it again from the last checkpoint")
            }
            (None, Some(_), None) if self.all_damaged().is_some() => writeln!(
                f,
                "  model       gone, and {}: copy one of both back, or train again in another folder",
                self.all_damaged().unwrap_or_default()
            ),
            (None, Some(_), None) => {
                writeln!(f, "  model       gone, and so are the checkpoints: copy one of both back")
            }
        }
    }
}

impl fmt::Display for CheckpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: a training checkpoint", self.saved.path.display())?;
        let steps = self.steps.map_or_else(String::new, |steps| format!(", {} steps", format_count(steps)));
        writeln!(f, "  {} samples seen{steps}, {}", format_count(self.saved.samples), format_bytes(self.saved.bytes))?;
        let average = if self.averaged { ", their average" } else { "" };
        let optimizer =
            if self.optimizer.is_empty() { String::new() } else { format!(", {}", self.optimizer.join(", ")) };
        writeln!(f, "  weights of {} parameters{average}{optimizer}", format_count(self.parameters as u64))?;
        writeln!(
            f,
            "  new runs begin with it by init_from={0}, or with its whole state by --from {0}",
            self.saved.path.display()
        )
    }
}
