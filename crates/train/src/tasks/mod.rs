//! The training tasks, one file each, and the table of them.

pub mod autoencoder;
pub mod clip;
pub mod denoise;
pub mod diffusion;
pub mod vit;

use crate::averages::{Rebuilt, Wanted};
use crate::beginning;
use crate::config::TrainingRecipe;
use crate::prepare::PrepareSettings;
use crate::recipe::{RecipeError, RecipeLoader, Resolved};
use crate::saved::{self, Exported, WantedModel};
use crate::stages::{self, Readiness, StageContext, StageEnd, StageError};
use crate::task::Task;
use calotype_core::folders::EVALUATIONS;
use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A row of [`TASKS`].
#[derive(Clone, Copy)]
pub struct TaskEntry {
    /// The value of `kind` in its recipes.
    pub kind: &'static str,
    /// What is trained: a phrase without a full stop.
    pub about: &'static str,
    load: fn(&RecipeLoader, &str, &[String]) -> Result<TrainingRun, RecipeError>,
}

impl fmt::Debug for TaskEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TaskEntry").field("kind", &self.kind).finish()
    }
}

/// One row for each task: everything that lists tasks reads it (`train`, help texts, errors, tests).
macro_rules! tasks {
    ($($task:ty,)*) => {
        /// All tasks.
        pub const TASKS: &[TaskEntry] = &[$(TaskEntry {
            kind: <$task as Task>::KIND,
            about: <$task as Task>::ABOUT,
            load: load_run::<$task>,
        },)*];
    };
}

tasks! {
    clip::ClipTask,
    autoencoder::AutoencoderTask,
    diffusion::DiffusionTask,
    vit::VitTask,
}

/// Trains to the end of a recipe, whatever its task.
type Train = Box<dyn Fn(&StageContext<'_>) -> Result<StageEnd, StageError>>;
/// Finds out what a start would.
type Check = Box<dyn Fn(&StageContext<'_>) -> Result<Readiness, StageError>>;
/// Writes the model with an average that is rebuilt.
type RebuildAverage = Box<dyn Fn(&Wanted, &Path, &StageContext<'_>) -> Result<Rebuilt, StageError>>;
/// Writes the model of a checkpoint.
type ExportModel = Box<dyn Fn(&WantedModel, &Path, &StageContext<'_>) -> Result<Exported, StageError>>;
/// Checks what a recipe says by itself.
type CheckRecipe = Box<dyn Fn() -> Result<(), StageError>>;
/// Finds out what needs nothing that is made first.
type CheckBeginning = Box<dyn Fn(Option<&Path>, &StageContext<'_>) -> Result<(), StageError>>;
/// Steps, samples and rates in words.
type Units = Box<dyn Fn() -> Vec<String>>;

/// A training recipe of any task, ready to run.
pub struct TrainingRun {
    kind: &'static str,
    text: String,
    recipe: Arc<dyn Any>,
    prepare: Option<PrepareSettings>,
    train: Train,
    check: Check,
    check_recipe: CheckRecipe,
    check_beginning: CheckBeginning,
    units: Units,
    rebuild_average: RebuildAverage,
    export: ExportModel,
}

/// A training recipe of a task that is known, ready to run.
#[derive(Debug)]
pub struct TypedRun<R> {
    /// The recipe.
    pub value: R,
    /// What runs it.
    pub run: TrainingRun,
}

impl fmt::Debug for TrainingRun {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TrainingRun").field("kind", &self.kind).finish()
    }
}

impl TrainingRun {
    /// The task.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The resolved recipe as TOML.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The recipe's table `[prepare]`.
    pub fn prepare(&self) -> Option<&PrepareSettings> {
        self.prepare.as_ref()
    }

    /// Checks everything that the recipe says by itself; see [`stages::check_recipe`].
    ///
    /// # Errors
    /// [`StageError::Setting`] or [`StageError::Config`] naming the first key at fault.
    pub fn check_recipe(&self) -> Result<(), StageError> {
        (self.check_recipe)()
    }

    /// Finds out what a start would before it makes or opens anything that takes long: the recipe, the run's folder, `--from`,
    /// `--record`, files of results. `made` is the folder of what is made first, if it is not there yet; then also the recipe's paths
    /// that lie elsewhere.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn check_beginning(&self, made: Option<&Path>, context: &StageContext<'_>) -> Result<(), StageError> {
        (self.check_beginning)(made, context)
    }

    /// The length of the run in steps and samples, and what published settings that count steps or samples of a batch are here, a
    /// sentence each. For recipes that [`TrainingRun::check_recipe`] has passed.
    pub fn units(&self) -> Vec<String> {
        (self.units)()
    }

    /// Trains to the end of the recipe, or resumes; see [`stages::train`].
    ///
    /// # Errors
    /// [`StageError`].
    pub fn train(&self, context: &StageContext<'_>) -> Result<StageEnd, StageError> {
        (self.train)(context)
    }

    /// Writes the model of a finished or unfinished run with an average that is rebuilt from its snapshots; see
    /// [`stages::rebuild_average`].
    ///
    /// # Errors
    /// [`StageError`].
    pub fn rebuild_average(
        &self,
        wanted: &Wanted,
        out: &Path,
        context: &StageContext<'_>,
    ) -> Result<Rebuilt, StageError> {
        (self.rebuild_average)(wanted, out, context)
    }

    /// Writes the model of one of the run's checkpoints; see [`saved::export`].
    ///
    /// # Errors
    /// [`StageError`].
    pub fn export(&self, wanted: &WantedModel, out: &Path, context: &StageContext<'_>) -> Result<Exported, StageError> {
        (self.export)(wanted, out, context)
    }

    /// Finds out everything that a start would, and writes nothing; see [`stages::check_start`].
    ///
    /// # Errors
    /// [`StageError`].
    pub fn check(&self, context: &StageContext<'_>) -> Result<Readiness, StageError> {
        (self.check)(context)
    }
}

/// Why a name does not lead to a training recipe.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The recipe cannot be loaded.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The recipe has no `kind`.
    #[error("{name} is not a training recipe: it has no key `kind` ({})", kinds())]
    NoKind {
        /// The recipe.
        name: String,
    },
    /// Its `kind` is none of the tasks.
    #[error("{name}: key `kind`: `{kind}` is no task; the tasks are {}{}", kinds(), meant(name, kind))]
    UnknownKind {
        /// The recipe.
        name: String,
        /// What it asks for.
        kind: String,
    },
    /// Its `kind` is not the one that is wanted.
    #[error("{name} is a recipe of kind `{kind}`, and here it has to be `{wanted}`")]
    OtherKind {
        /// The recipe.
        name: String,
        /// Its kind.
        kind: &'static str,
        /// The kind that is wanted.
        wanted: &'static str,
    },
}

impl TaskError {
    /// Whether the user's recipe or command line is at fault, and not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Recipe(error) => error.is_usage(),
            Self::NoKind { .. } | Self::UnknownKind { .. } | Self::OtherKind { .. } => true,
        }
    }
}

/// The kinds of all tasks, with commas.
pub fn kinds() -> String {
    TASKS.iter().map(|task| task.kind).collect::<Vec<_>>().join(", ")
}

/// What was probably meant by a kind that is no task.
fn meant(name: &str, kind: &str) -> String {
    if EVALUATIONS.contains(&kind) {
        return format!("; this is an evaluation: calotype evaluate {name}");
    }
    let best = calotype_core::names::nearest(kind, TASKS.iter().map(|task| task.kind));
    best.map(|kind| format!("; did you mean `{kind}`?")).unwrap_or_default()
}

/// Loads the training recipe of a name or path, whatever its task, with overrides `key=value`.
///
/// # Errors
/// [`TaskError`]: the recipe cannot be loaded, or its `kind` is none of [`TASKS`].
pub fn load(loader: &RecipeLoader, name: &str, overrides: &[String]) -> Result<TrainingRun, TaskError> {
    let table: Resolved<toml::Table> = loader.load(name, overrides)?;
    let kind = match table.value.get("kind") {
        None => return Err(TaskError::NoKind { name: name.to_owned() }),
        Some(toml::Value::String(kind)) => kind.clone(),
        Some(other) => other.to_string(),
    };
    match TASKS.iter().find(|task| task.kind == kind) {
        Some(task) => Ok((task.load)(loader, name, overrides)?),
        None => Err(TaskError::UnknownKind { name: name.to_owned(), kind }),
    }
}

/// Loads the training recipe of a task that is known. What trains is compiled in this crate alone, and not again for the caller.
///
/// # Errors
/// As [`load`], and [`TaskError::OtherKind`] if it is a recipe of another task.
pub fn load_as<T: Task>(
    loader: &RecipeLoader,
    name: &str,
    overrides: &[String],
) -> Result<TypedRun<T::Recipe>, TaskError> {
    let run = load(loader, name, overrides)?;
    match run.recipe.downcast_ref::<Resolved<T::Recipe>>() {
        Some(resolved) => Ok(TypedRun { value: resolved.value.clone(), run }),
        None => Err(TaskError::OtherKind { name: name.to_owned(), kind: run.kind, wanted: T::KIND }),
    }
}

fn load_run<T: Task>(loader: &RecipeLoader, name: &str, overrides: &[String]) -> Result<TrainingRun, RecipeError> {
    let resolved: Arc<Resolved<T::Recipe>> = Arc::new(loader.load(name, overrides)?);
    let recipe = Arc::clone(&resolved);
    let check = move |context: &StageContext<'_>| stages::check_start::<T>(recipe.as_recipe(), context);
    let recipe = Arc::clone(&resolved);
    let check_recipe = move || stages::check_recipe::<T>(&recipe.value);
    let recipe = Arc::clone(&resolved);
    let check_beginning =
        move |made: Option<&Path>, context: &StageContext<'_>| beginning::check::<T>(recipe.as_recipe(), made, context);
    let recipe = Arc::clone(&resolved);
    let units = move || {
        let config = recipe.value.config();
        std::iter::once(config.run.in_steps()).chain(config.conversions()).collect::<Vec<String>>()
    };
    let recipe = Arc::clone(&resolved);
    let rebuild_average = move |wanted: &Wanted, out: &Path, context: &StageContext<'_>| {
        stages::rebuild_average::<T>(&recipe.value, wanted, out, context)
    };
    let recipe = Arc::clone(&resolved);
    let export = move |wanted: &WantedModel, out: &Path, context: &StageContext<'_>| {
        saved::export::<T>(&recipe.value, wanted, out, context)
    };
    let recipe = Arc::clone(&resolved);
    let train = move |context: &StageContext<'_>| stages::train::<T>(recipe.as_recipe(), context);
    Ok(TrainingRun {
        kind: T::KIND,
        text: resolved.text.clone(),
        prepare: resolved.value.prepare().cloned(),
        recipe: resolved,
        train: Box::new(train),
        check: Box::new(check),
        check_recipe: Box::new(check_recipe),
        check_beginning: Box::new(check_beginning),
        units: Box::new(units),
        rebuild_average: Box::new(rebuild_average),
        export: Box::new(export),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static RECIPES: &[(&str, &str)] = &[
        ("none", "seed = 1\n"),
        ("typo", "kind = \"autoencodr\"\n"),
        ("far", "kind = \"zzz\"\n"),
        ("short", "kind = \"clip\"\n"),
        ("curve", "kind = \"text_to_image\"\n"),
    ];

    fn error(name: &str) -> TaskError {
        load(&RecipeLoader::new().embedded(RECIPES), name, &[]).unwrap_err()
    }

    #[test]
    fn recipes_of_no_task_are_told_the_tasks() {
        let text = error("none").to_string();
        assert_eq!(text, format!("none is not a training recipe: it has no key `kind` ({})", kinds()));
        let text = error("typo").to_string();
        assert!(text.contains("`autoencodr` is no task") && text.ends_with("did you mean `autoencoder`?"), "{text}");
        assert!(error("far").to_string().ends_with(&kinds()));
        assert!(error("curve").to_string().ends_with("; this is an evaluation: calotype evaluate curve"));
        assert!(error("short").to_string().contains("is missing"));
        let other = load_as::<clip::ClipTask>(&RecipeLoader::new().embedded(RECIPES), "far", &[]).unwrap_err();
        assert!(matches!(other, TaskError::UnknownKind { .. }));
        assert!(["none", "typo", "far", "short", "absent"].iter().all(|name| error(name).is_usage()));
    }

    #[test]
    fn kinds_are_unique() {
        let mut kinds: Vec<_> = TASKS.iter().map(|task| task.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), TASKS.len());
    }
}
