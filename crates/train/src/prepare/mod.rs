//! What a run needs that is not there, made under its own folder first: images, a checkpoint, encodings, the stage before.
//!
//! The table `[prepare]` of a training recipe names what each step is made by, and each step has one folder:
//!
//! | key | made by | folder |
//! |---|---|---|
//! | `dataset` | a recipe of the embedded images ([`EmojiRecipe`]) | `{out}/prepared/dataset` |
//! | `checkpoint` | random weights of a family's form | `{out}/prepared/checkpoint` |
//! | `judges` | random weights of an Inception network and of a small CLIP model ([`RandomJudges`]) | `{out}/prepared/judges` |
//! | `precache` | a precache recipe | `{out}/prepared/precache` |
//! | `before` | a training recipe | `{out}/prepared/before` |
//!
//! `{out}` at the beginning of a text in a recipe stands for the run's folder ([`RecipeLoader::out`]). A step is made if a path of
//! the recipe lies in its folder, or a path of a step that is made: with `data.path=shards` on the command line nothing is encoded.
//! `prepared/prepared.json` keeps what each step was made by; what is done is not looked at again.

mod images;
mod judges;

pub use images::EmojiRecipe;
pub use judges::RandomJudges;

use crate::config::SettingError;
use crate::precache::PrecacheRecipe;
use crate::recipe::{RecipeError, RecipeLoader, Resolved};
use crate::stages::{self, StageContext, StageEnd, StageError};
use crate::tasks::{self, TaskError, TrainingRun};
use crate::trainer::{Left, RECIPE, first_difference, left_by};
use calotype_collective::CollectiveError;
use calotype_core::durable;
use calotype_data::Slice;
use calotype_data::emoji::Split;
use calotype_pipeline::PipelineError;
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Folder of what a run's recipe has made first.
pub const PREPARED: &str = "prepared";
/// Names what each step was made by.
const MADE: &str = "prepared.json";

const DATASET: &str = "dataset";
const CHECKPOINT: &str = "checkpoint";
const JUDGES: &str = "judges";
const PRECACHE: &str = "precache";
const BEFORE: &str = "before";
/// The steps in the order in which they are made.
const STEPS: [&str; 5] = [DATASET, CHECKPOINT, JUDGES, PRECACHE, BEFORE];

/// The table `[prepare]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrepareSettings {
    /// Recipe of the embedded images, such as `data/emoji/mini`; its training split is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// A checkpoint of random weights, whose autoencoder and text encoder stand for published ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<RandomWeights>,
    /// Networks of random weights that judge images, in the place of the published ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judges: Option<RandomJudges>,
    /// A precache recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precache: Option<String>,
    /// A training recipe whose model this run begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// A checkpoint of random weights, as a diffusers folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomWeights {
    /// Its form.
    pub family: RandomFamily,
    /// Seed of the weights.
    pub seed: u64,
}

/// Why what a run needs cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A recipe that `[prepare]` names cannot be loaded.
    #[error("prepare.{step}: {source}")]
    Recipe {
        /// The step.
        step: &'static str,
        /// Why.
        source: Box<TaskError>,
    },
    /// The recipe takes what no step of it makes.
    #[error(
        "the recipe takes {}, and `prepare.{step}` does not say what that is made by: set it, or give the path of something \
         that is there", folder.display()
    )]
    NotSaid {
        /// The step.
        step: &'static str,
        /// Its folder.
        folder: PathBuf,
    },
    /// Training recipes that come before each other.
    #[error("prepare.before leads in a circle: {}; remove one", chain.join(" -> "))]
    Circle {
        /// The recipes from the first to its repetition.
        chain: Vec<String>,
    },
    /// The folder holds what another recipe has made.
    #[error(
        "{} was made by another recipe: {difference}; use another --out, or remove {} to make it anew",
        folder.display(), root.display()
    )]
    Other {
        /// The step's folder.
        folder: PathBuf,
        /// The folder of all steps.
        root: PathBuf,
        /// The first difference.
        difference: String,
    },
    /// A step's work failed.
    #[error("prepare.{step}: {source}")]
    Stage {
        /// The step.
        step: &'static str,
        /// Why.
        source: Box<StageError>,
    },
    /// The checkpoint of random weights cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] PipelineError),
    /// The record of what was made cannot be read or written.
    #[error("{}: {source}; check the folder and the free space", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The record of what was made is damaged.
    #[error("{}: {source}; copy it back, or remove {} to make everything anew", path.display(), root.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The folder of all steps.
        root: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The other processes of the run are gone.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

impl PrepareError {
    /// Whether the recipe or the command line is at fault, and not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Recipe { source, .. } => source.is_usage(),
            Self::NotSaid { .. } | Self::Circle { .. } | Self::Other { .. } => true,
            Self::Stage { source, .. } => source.is_usage(),
            Self::Checkpoint(_) | Self::Record { .. } | Self::Damaged { .. } | Self::Collective(_) => false,
        }
    }

    fn of_recipe(step: &'static str) -> impl FnOnce(RecipeError) -> Self {
        move |error| Self::Recipe { step, source: Box::new(error.into()) }
    }

    fn of_stage<E: Into<StageError>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Stage { step, source: Box::new(error.into()) }
    }
}

/// What a step does.
#[derive(Debug)]
enum Work {
    Images(EmojiRecipe),
    Checkpoint(RandomWeights),
    Judges(RandomJudges),
    Encodings(Box<PrecacheRecipe>),
    Training(Box<(TrainingRun, Preparation)>),
}

/// A step with the recipe that it is made by.
#[derive(Debug)]
struct Step {
    key: &'static str,
    /// What it is made by, in a few words.
    by: String,
    /// The same in full, as TOML.
    text: String,
    work: Work,
}

/// What was made, or is being made, by which recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Made {
    recipe: String,
    done: bool,
}

type Record = BTreeMap<String, Made>;

/// A step of a run that has not begun yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreparedStep {
    /// Its key in `[prepare]`.
    pub name: String,
    /// Whether it is done.
    pub done: bool,
}

/// The steps, as far as they have begun, of a run's folder in which training has not; none for other folders.
pub(crate) fn prepared_steps(folder: &Path) -> std::io::Result<Option<Vec<PreparedStep>>> {
    if folder.join(RECIPE).is_file() {
        return Ok(None);
    }
    let Some(record) = durable::read_json::<Record>(&folder.join(PREPARED).join(MADE))? else { return Ok(None) };
    let step = |key: &&str| record.get(*key).map(|made| PreparedStep { name: (*key).to_owned(), done: made.done });
    Ok(Some(STEPS.iter().filter_map(step).collect()))
}

/// The steps that a run needs, ready to be made.
#[derive(Debug)]
pub struct Preparation {
    root: PathBuf,
    /// The recipe of the run.
    recipe: String,
    steps: Vec<Step>,
}

impl Preparation {
    /// Loads the recipes of all steps that a run in `folder` needs; reads no data and writes nothing. The run's recipe was loaded
    /// with `{out}` as this folder ([`RecipeLoader::out`]).
    ///
    /// # Errors
    /// [`PrepareError::Recipe`], [`PrepareError::NotSaid`], [`PrepareError::Circle`], [`PrepareError::Stage`] for recipes that
    /// cannot be.
    pub fn of(recipes: &RecipeLoader, run: &TrainingRun, folder: &Path) -> Result<Self, PrepareError> {
        Self::planned(recipes, run, folder, &[])
    }

    fn planned(
        recipes: &RecipeLoader,
        run: &TrainingRun,
        folder: &Path,
        chain: &[String],
    ) -> Result<Self, PrepareError> {
        let root = folder.join(PREPARED);
        let plan = Plan { recipes: recipes.out(folder), root: &root, chain };
        let steps = run.prepare().map_or(Ok(Vec::new()), |settings| plan.steps(settings, run.text()))?;
        Ok(Self { root, recipe: run.text().to_owned(), steps })
    }

    /// The folder of all steps.
    pub fn folder(&self) -> &Path {
        &self.root
    }

    /// A line for each step that is not done yet: its folder, and what it is made by.
    ///
    /// # Errors
    /// [`PrepareError::Record`], [`PrepareError::Other`].
    pub fn pending(&self) -> Result<Vec<String>, PrepareError> {
        if self.steps.is_empty() || self.belongs_to_another() {
            return Ok(Vec::new());
        }
        let record = self.record()?;
        let mut lines = Vec::new();
        for step in &self.steps {
            if self.is_done(step, &record)? {
                continue;
            }
            if let Work::Training(training) = &step.work {
                lines.extend(training.1.pending()?);
            }
            lines.push(format!("{}: {}", self.root.join(step.key).display(), step.by));
        }
        Ok(lines)
    }

    /// Makes what is not done yet, restartably. Of several processes the first does the work, and the others wait.
    ///
    /// # Errors
    /// [`PrepareError`]; what was done stays and is used by the next start.
    pub fn make(&self, context: &StageContext<'_>) -> Result<StageEnd<()>, PrepareError> {
        if self.steps.is_empty() {
            return Ok(StageEnd::Done(()));
        }
        let collective = context.collective;
        let result = if collective.is_first() { self.make_all(context) } else { Ok(StageEnd::Done(())) };
        // A failure has to be told as well, or the others would wait for ever.
        let stopped = match &result {
            Ok(StageEnd::Done(())) => 0u64,
            Ok(StageEnd::Interrupted { samples }) => samples + 1,
            Err(_) => 1,
        };
        let mut told = stopped.to_le_bytes().to_vec();
        collective.broadcast(0, &mut told)?;
        match (collective.is_first(), told.try_into().map(u64::from_le_bytes)) {
            (true, _) | (false, Ok(0)) => result,
            (false, stopped) => Ok(StageEnd::Interrupted { samples: stopped.unwrap_or(1) - 1 }),
        }
    }

    fn make_all(&self, context: &StageContext<'_>) -> Result<StageEnd<()>, PrepareError> {
        if self.pending()?.is_empty() {
            return Ok(StageEnd::Done(()));
        }
        // The folder is this process's; the training takes it again.
        let _lock = stages::lock(context.folder).map_err(PrepareError::of_stage(STEPS[0]))?;
        let mut record = self.record()?;
        for step in &self.steps {
            if self.is_done(step, &record)? {
                continue;
            }
            tracing::info!("prepare {}: {}", step.key, step.by);
            record.insert(step.key.to_owned(), Made { recipe: step.text.clone(), done: false });
            self.save(&record)?;
            if let StageEnd::Interrupted { samples } = self.make_step(step, context)? {
                return Ok(StageEnd::Interrupted { samples });
            }
            record.insert(step.key.to_owned(), Made { recipe: step.text.clone(), done: true });
            self.save(&record)?;
        }
        Ok(StageEnd::Done(()))
    }

    fn make_step(&self, step: &Step, context: &StageContext<'_>) -> Result<StageEnd<()>, PrepareError> {
        let folder = self.root.join(step.key);
        let failed = PrepareError::of_stage::<StageError>(step.key);
        match &step.work {
            Work::Images(recipe) => recipe.write(&folder, Split::Train, "dataset", context.stop).map_err(failed),
            Work::Checkpoint(RandomWeights { family, seed }) => {
                RandomCheckpoint { seed: *seed, ..RandomCheckpoint::new(*family) }.write(&folder)?;
                Ok(StageEnd::Done(()))
            }
            Work::Judges(judges) => {
                judges.write(&folder, context.device).map_err(failed)?;
                Ok(StageEnd::Done(()))
            }
            Work::Encodings(recipe) => {
                Ok(match stages::precache(recipe, Slice::ALL, context.device, context.stop).map_err(failed)? {
                    StageEnd::Done(_) => StageEnd::Done(()),
                    StageEnd::Interrupted { samples } => StageEnd::Interrupted { samples },
                })
            }
            Work::Training(training) => {
                let (run, preparation) = training.as_ref();
                let context = StageContext::new(&folder, context.device, context.stop);
                if let StageEnd::Interrupted { samples } = preparation.make(&context)? {
                    return Ok(StageEnd::Interrupted { samples });
                }
                Ok(match run.train(&context).map_err(failed)? {
                    StageEnd::Done(_) => StageEnd::Done(()),
                    StageEnd::Interrupted { samples } => StageEnd::Interrupted { samples },
                })
            }
        }
    }

    /// Whether a step was made; with another recipe it is refused.
    fn is_done(&self, step: &Step, record: &Record) -> Result<bool, PrepareError> {
        let Some(made) = record.get(step.key) else { return Ok(false) };
        let folder = self.root.join(step.key);
        match first_difference(&made.recipe, &step.text, self.run_folder()) {
            Some(difference) => Err(PrepareError::Other { folder, root: self.root.clone(), difference }),
            // What somebody removed is made again.
            None => Ok(made.done && folder.is_dir()),
        }
    }

    fn run_folder(&self) -> &Path {
        self.root.parent().unwrap_or(Path::new("."))
    }

    /// Whether the folder holds another recipe's run, which training refuses and tells: nothing is written into it.
    fn belongs_to_another(&self) -> bool {
        let begun = std::fs::read_to_string(self.run_folder().join(RECIPE)).ok();
        let difference = begun.and_then(|begun| first_difference(&begun, &self.recipe, self.run_folder()));
        // A run may be made longer.
        let differs = difference.is_some_and(|difference| !difference.starts_with("`run.samples`"));
        // One that has saved nothing gives way.
        differs && !matches!(left_by(self.run_folder()), Ok(Left::Nothing))
    }

    fn record(&self) -> Result<Record, PrepareError> {
        let path = self.root.join(MADE);
        match durable::read_json(&path) {
            Err(source) if source.kind() == std::io::ErrorKind::InvalidData => {
                Err(PrepareError::Damaged { path, root: self.root.clone(), source })
            }
            read => Ok(read.map_err(|source| PrepareError::Record { path, source })?.unwrap_or_default()),
        }
    }

    fn save(&self, record: &Record) -> Result<(), PrepareError> {
        let path = self.root.join(MADE);
        let written = std::fs::create_dir_all(&self.root).and_then(|()| durable::write_json(&path, record));
        written.map_err(|source| PrepareError::Record { path, source })
    }
}

/// What steps are planned with.
struct Plan<'a> {
    /// With `{out}` as the run's folder.
    recipes: RecipeLoader,
    root: &'a Path,
    /// Training recipes that led here.
    chain: &'a [String],
}

impl Plan<'_> {
    /// The steps whose folders a recipe's paths lie in, and those that these need.
    fn steps(&self, settings: &PrepareSettings, recipe: &str) -> Result<Vec<Step>, PrepareError> {
        let mut table: Table = toml::from_str(recipe).unwrap_or_default();
        table.remove("prepare");
        let mut used = self.used(&Value::Table(table));
        let mut steps = Vec::new();
        // From the last one back, for a step may need those before it.
        for key in STEPS.into_iter().rev().filter(|key| *key != BEFORE).chain([BEFORE]) {
            if used.contains(&key) {
                let step = self.step(key, settings)?;
                if key == PRECACHE {
                    used.extend(self.used(&Value::Table(toml::from_str(&step.text).unwrap_or_default())));
                }
                steps.push(step);
            }
        }
        steps.sort_by_key(|step| STEPS.iter().position(|key| *key == step.key));
        Ok(steps)
    }

    /// The steps in whose folders some text of a recipe lies.
    fn used(&self, value: &Value) -> Vec<&'static str> {
        match value {
            Value::String(text) => {
                STEPS.into_iter().filter(|key| Path::new(text).starts_with(self.root.join(key))).collect()
            }
            Value::Array(values) => values.iter().flat_map(|value| self.used(value)).collect(),
            Value::Table(table) => table.values().flat_map(|value| self.used(value)).collect(),
            _ => Vec::new(),
        }
    }

    fn step(&self, key: &'static str, settings: &PrepareSettings) -> Result<Step, PrepareError> {
        let unsaid = || PrepareError::NotSaid { step: key, folder: self.root.join(key) };
        let told = |name: &str| format!("recipe {name}");
        match key {
            DATASET => {
                let name = settings.dataset.as_deref().ok_or_else(unsaid)?;
                let Resolved { value, text, .. } =
                    self.recipes.load(name, &[]).map_err(PrepareError::of_recipe(key))?;
                Ok(Step { key, by: told(name), text, work: Work::Images(value) })
            }
            CHECKPOINT => {
                let weights = settings.checkpoint.clone().ok_or_else(unsaid)?;
                let RandomWeights { family, seed } = &weights;
                let by = format!("random weights of {family}, seed {seed}");
                let text = format!("family = \"{family}\"\nseed = {seed}\n");
                Ok(Step { key, by, text, work: Work::Checkpoint(weights) })
            }
            JUDGES => {
                let judges = settings.judges.clone().ok_or_else(unsaid)?;
                let by = format!("random weights of Inception and CLIP, seed {}", judges.seed);
                let text = format!("seed = {}\n", judges.seed);
                Ok(Step { key, by, text, work: Work::Judges(judges) })
            }
            PRECACHE => {
                let name = settings.precache.as_deref().ok_or_else(unsaid)?;
                let Resolved { value, text, .. } =
                    self.recipes.load::<PrecacheRecipe>(name, &[]).map_err(PrepareError::of_recipe(key))?;
                value.validate().map_err(PrepareError::of_stage::<SettingError>(key))?;
                Ok(Step { key, by: told(name), text, work: Work::Encodings(Box::new(value)) })
            }
            _ => self.training(settings.before.as_deref().ok_or_else(unsaid)?),
        }
    }

    fn training(&self, name: &str) -> Result<Step, PrepareError> {
        let chain = [self.chain, &[name.to_owned()]].concat();
        if self.chain.iter().any(|earlier| earlier == name) {
            return Err(PrepareError::Circle { chain });
        }
        let folder = self.root.join(BEFORE);
        let failed = |source| PrepareError::Recipe { step: BEFORE, source: Box::new(source) };
        let run = tasks::load(&self.recipes.out(&folder), name, &[]).map_err(failed)?;
        run.check_recipe().map_err(PrepareError::of_stage::<StageError>(BEFORE))?;
        let preparation = Preparation::planned(&self.recipes, &run, &folder, &chain)?;
        let (by, text) = (format!("recipe {name}"), run.text().to_owned());
        Ok(Step { key: BEFORE, by, text, work: Work::Training(Box::new((run, preparation))) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINI: &str = "kind = \"diffusion\"\n[data]\npath = \"{out}/prepared/precache\"\n[text]\nmodel = \"{out}/prepared/checkpoint\"\n\
         [model]\nblock_out_channels = [32, 32]\nlayers_per_block = 1\nattention_levels = [true, false]\nhead_channels = [8, 8]\n\
         context_channels = 32\nnorm_groups = 8\ntransformer_norm_groups = 8\n[schedule]\n[objective]\nprediction = \"v\"\ncaption_dropout = 0.0\n[optimizer]\n[run]\nseed = 1\nsamples = 16\n\
         batch_size = 4\nlog_every = 4\ncheckpoint_every = 8\n[prepare]\ndataset = \"images\"\n\
         checkpoint = { family = \"tiny-sd2\", seed = 3 }\nprecache = \"encode\"\n";
    const IMAGES: &str = "resolution = 16\nshard_samples = 8\ndrawings = 2\n";
    const ENCODE: &str = "source = \"{out}/prepared/dataset\"\nout = \"{out}/prepared/precache\"\nresolution = 64\nbatch_size = 4\n\
         shard_samples = 8\n[encoders.m]\nkind = \"autoencoder\"\nmodel = \"{out}/prepared/checkpoint\"\npart = \"npy\"\n";

    static RECIPES: &[(&str, &str)] = &[
        ("mini", MINI),
        ("images", IMAGES),
        ("encode", ENCODE),
        ("later", "base = \"mini\"\ninit_from = \"{out}/prepared/before/model\"\n[prepare]\nbefore = \"mini\"\n"),
        ("loop", "base = \"mini\"\ninit_from = \"{out}/prepared/before/model\"\n[prepare]\nbefore = \"loop\"\n"),
        ("unsaid", "base = \"mini\"\ninit_from = \"{out}/prepared/before/model\"\n"),
        ("nobody", "base = \"mini\"\n[prepare]\nprecache = \"encde\"\n"),
    ];

    fn plan(folder: &Path, name: &str, overrides: &[&str]) -> Result<Preparation, PrepareError> {
        let recipes = RecipeLoader::new().embedded(RECIPES).out(folder);
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let run = tasks::load(&recipes, name, &overrides).unwrap();
        Preparation::of(&recipes, &run, folder)
    }

    fn keys(folder: &Path, name: &str, overrides: &[&str]) -> Vec<&'static str> {
        plan(folder, name, overrides).unwrap().steps.iter().map(|step| step.key).collect()
    }

    #[test]
    fn what_paths_lie_in_is_made_and_what_that_needs() {
        let out = Path::new("runs/x");
        assert_eq!(keys(out, "mini", &[]), [DATASET, CHECKPOINT, PRECACHE]);
        assert_eq!(keys(out, "mini", &["data.path=shards"]), [CHECKPOINT]);
        assert_eq!(keys(out, "mini", &["data.path=shards", "text.model=clip"]), [] as [&str; 0]);
        assert_eq!(keys(out, "mini", &["data.path=\"{out}/prepared/dataset\""]), [DATASET, CHECKPOINT]);
        assert_eq!(keys(out, "later", &[]), STEPS.into_iter().filter(|key| *key != JUDGES).collect::<Vec<_>>());
        assert_eq!(keys(out, "later", &["init_from=model"]), [DATASET, CHECKPOINT, PRECACHE]);
        let lines = plan(out, "later", &[]).unwrap().pending().unwrap();
        let wanted = [
            "runs/x/prepared/dataset: recipe images",
            "runs/x/prepared/checkpoint: random weights of tiny-sd2, seed 3",
            "runs/x/prepared/precache: recipe encode",
            "runs/x/prepared/before/prepared/dataset: recipe images",
            "runs/x/prepared/before/prepared/checkpoint: random weights of tiny-sd2, seed 3",
            "runs/x/prepared/before/prepared/precache: recipe encode",
            "runs/x/prepared/before: recipe mini",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let error = |name: &str| {
            let error = plan(Path::new("x"), name, &[]).unwrap_err();
            assert!(error.is_usage(), "{error}");
            error.to_string()
        };
        assert!(error("loop").contains("prepare.before leads in a circle: loop -> loop"), "{}", error("loop"));
        let unsaid = error("unsaid");
        assert!(unsaid.contains("x/prepared/before") && unsaid.contains("`prepare.before`"), "{unsaid}");
        let nobody = error("nobody");
        assert!(nobody.starts_with("prepare.precache: ") && nobody.contains("did you mean `encode`"), "{nobody}");
    }

    #[test]
    fn steps_are_made_once_and_by_one_recipe() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let (device, stop) = (burn::tensor::Device::flex(), crate::StopFlag::new_unhooked());
        let context = StageContext::new(&out, &device, &stop);
        let mini = plan(&out, "mini", &[]).unwrap();
        assert_eq!(mini.make(&context).unwrap(), StageEnd::Done(()));
        assert_eq!(mini.pending().unwrap(), [] as [String; 0]);
        let prepared = out.join(PREPARED);
        let dataset = calotype_data::Dataset::open(prepared.join(PRECACHE)).unwrap();
        assert_eq!(dataset.len(), calotype_data::Dataset::open(prepared.join(DATASET)).unwrap().len());
        let moments = dataset.get(0).unwrap().array("npy").unwrap();
        assert_eq!(moments.shape(), [8, 8, 8]);

        // What is done is left alone, what was removed is made again, and what another recipe has made is refused.
        let index = prepared.join(CHECKPOINT).join("model_index.json");
        std::fs::write(&index, "{}").unwrap();
        mini.make(&context).unwrap();
        assert_eq!(std::fs::read_to_string(&index).unwrap(), "{}");
        std::fs::remove_dir_all(prepared.join(CHECKPOINT)).unwrap();
        assert_eq!(mini.pending().unwrap().len(), 1);
        mini.make(&context).unwrap();
        assert!(std::fs::read_to_string(&index).unwrap().contains("StableDiffusionPipeline"));
        let other = plan(&out, "mini", &["prepare.checkpoint.seed=4"]).unwrap();
        let error = other.make(&context).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("`seed` is 3 there and 4 now"), "{error}");

        // The stage before is a run with what that needs, below the same folder.
        let later = plan(&out, "later", &[]).unwrap();
        assert_eq!(later.pending().unwrap().len(), 4);
        later.make(&context).unwrap();
        assert!(
            prepared.join("before/model/unet/config.json").is_file() && prepared.join("before/result.json").is_file()
        );
        assert_eq!(later.pending().unwrap(), [] as [String; 0]);

        // A folder that holds a run of its own stays as it is.
        let taken = folder.path().join("taken");
        std::fs::create_dir_all(&taken).unwrap();
        std::fs::write(taken.join(RECIPE), "kind = \"clip\"\n").unwrap();
        let context = StageContext::new(&taken, &device, &stop);
        assert_eq!(plan(&taken, "mini", &[]).unwrap().make(&context).unwrap(), StageEnd::Done(()));
        assert!(!taken.join(PREPARED).exists());
    }
}
