//! What is found out before a run makes anything: all that needs nothing but what the user has named.

use crate::config::{InitFrom, TrainingRecipe};
use crate::sources::open_source;
use crate::stages::{Recipe, StageContext, StageError, check_recipe, done_earlier};
use crate::task::Task;
use crate::trainer::{self, TrainError};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use std::path::Path;

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

/// Refuses a folder of samples as that of a run, whose files would lie among them.
fn check_folder(folder: &Path) -> Result<(), StageError> {
    const SHARDS: [&str; 3] = ["tar", "mds", "parquet"];
    let (false, Ok(entries)) = (folder.join(trainer::RECIPE).is_file(), std::fs::read_dir(folder)) else {
        return Ok(());
    };
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
