//! What is found out before a run makes anything: all that needs nothing but what the user has named.

use crate::config::{InitFrom, TrainingRecipe};
use crate::sources::open_source;
use crate::stages::{MODEL, RESULT, Recipe, StageContext, StageError, check_recipe, done_earlier};
use crate::task::Task;
use crate::trainer::{self, TrainError};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use std::path::{Path, PathBuf};

/// Finds out what a start would, before anything is opened that takes long: what the recipe says by itself, the run's folder, `--from`,
/// `--record`, and files of results. `made` is the folder of what is made first (`[prepare]`), if that is not there yet; then the
/// samples and weights that lie elsewhere are looked at, too.
///
/// # Errors
/// [`StageError`] as of [`crate::stages::train`].
pub(crate) fn check<T: Task>(
    recipe: Recipe<'_, T::Recipe>,
    made: Option<&Path>,
    context: &StageContext<'_>,
) -> Result<(), StageError> {
    check_recipe::<T>(recipe.value)?;
    check_folder(context.folder)?;
    check_record(recipe, context)?;
    if let Some(from) = context.from {
        trainer::check_from(context.folder, from, &recipe.value.config())?;
    }
    let (data, hooks) = (recipe.value.data(), recipe.value.hooks());
    let Some(made) = made else { return Ok(hooks.check_given(data, |_| false)?) };
    let is_given = |path: &str| !Path::new(path).starts_with(made);
    hooks.check_given(data, is_given)?;
    if data.specs().iter().all(|(path, _)| is_given(path)) {
        open_source(data, None)?;
    }
    check_weights(recipe.value.init_from(), is_given)
}

/// Refuses the folder of something else as that of a run, whose files would lie among its own: of samples, of a quickstart, of a
/// model, of runs. Who names it would get the one or the other.
fn check_folder(folder: &Path) -> Result<(), StageError> {
    const SHARDS: [&str; 3] = ["tar", "mds", "parquet"];
    let (false, Ok(entries)) = (folder.join(trainer::RECIPE).is_file(), std::fs::read_dir(folder)) else {
        return Ok(());
    };
    if let Some(what) = held_instead(folder) {
        return Err(StageError::Together(format!(
            "{} holds {what}, and the files of a run would lie among it; choose another folder with --out",
            folder.display()
        )));
    }
    let is_sample = |path: &Path| {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        extension.is_some_and(|extension| IMAGE_EXTENSIONS.into_iter().chain(SHARDS).any(|known| known == extension))
    };
    match entries.flatten().map(|entry| entry.path()).find(|path| is_sample(path)) {
        None => Ok(()),
        Some(path) => Err(StageError::Together(format!(
            "{} holds samples ({}), and the files of a run would lie among them; choose another folder with --out",
            folder.display(),
            path.file_name().unwrap_or_default().to_string_lossy()
        ))),
    }
}

/// What a folder without a run of its own holds, in words, if that is something of ours.
fn held_instead(folder: &Path) -> Option<String> {
    const QUICKSTART: &str = "quickstart.json";
    const MODELS: [&str; 4] = ["model_index.json", "calotype.json", "unet/config.json", "trained_together.json"];
    let has = |name: &str| folder.join(name).is_file();
    if has(QUICKSTART) {
        return Some(format!("a quickstart ({QUICKSTART})"));
    }
    if let Some(name) = MODELS.into_iter().find(|name| has(name)) {
        return Some(format!("a model ({name})"));
    }
    let weights = || entries_of(folder).into_iter().find(|path| path.extension().is_some_and(|it| it == "safetensors"));
    if let Some(path) = weights().filter(|_| has("config.json")) {
        return Some(format!("a model (config.json, {})", name_of(&path)));
    }
    // A run would replace it at its end.
    if folder.join(MODEL).is_dir() {
        return Some(format!("a folder `{MODEL}` that is no run's"));
    }
    let is_run = |path: &PathBuf| {
        let begun = path.join(trainer::CHECKPOINTS).is_dir() || path.join(RESULT).is_file();
        path.join(trainer::RECIPE).is_file() && begun || path.join(QUICKSTART).is_file()
    };
    let run = entries_of(folder).into_iter().find(is_run)?;
    Some(format!("a folder of runs ({}, …)", name_of(&run)))
}

/// What lies in a folder, in the order of names; nothing of one that cannot be read, which the lock says.
fn entries_of(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Refuses to record where something is that the recording would destroy, or what has passed already.
fn check_record<R: TrainingRecipe>(recipe: Recipe<'_, R>, context: &StageContext<'_>) -> Result<(), StageError> {
    let Some(record) = context.record else { return Ok(()) };
    let is_there = record.check(recipe.text)?;
    match done_earlier(context, recipe.value)?.filter(|_| !is_there) {
        None => Ok(()),
        Some(done) => {
            Err(TrainError::RecordBegun { folder: context.folder.to_owned(), samples: done.samples_seen }.into())
        }
    }
}

/// Refuses initial weights of which nothing is there.
fn check_weights(from: Option<&InitFrom>, is_given: impl Fn(&str) -> bool) -> Result<(), StageError> {
    let mut paths = from.into_iter().flat_map(|from| from.0.path.iter().chain(from.0.parts.values()));
    match paths.find(|path| is_given(path) && !Path::new(path).exists()) {
        None => Ok(()),
        Some(path) => Err(StageError::Together(format!(
            "init_from: {path}: there is no such file or folder; correct the path, or leave init_from out"
        ))),
    }
}
