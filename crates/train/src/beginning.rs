//! What is found out before a run makes anything: all that needs nothing but what the user has named.

use crate::config::{InitFrom, TrainingRecipe};
use crate::saved;
use crate::sources::open_source;
use crate::stages::{MODEL, Recipe, StageContext, StageError, check_recipe, done_earlier};
use crate::task::Task;
use crate::trainer::{self, Claim, TrainError};
use calotype_core::absence;
use calotype_core::folders::{self, Content};
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
        check_kind(from, T::KIND)?;
        trainer::check_from(context.folder, from, &recipe.value.config())?;
    }
    check_checkpoints(recipe.value, context)?;
    let (data, hooks) = (recipe.value.data(), recipe.value.hooks());
    let Some(made) = made else { return Ok(hooks.check_given(data, |_| false)?) };
    let is_given = |path: &str| !Path::new(path).starts_with(made);
    hooks.check_given(data, is_given)?;
    if data.specs().iter().all(|(path, _)| is_given(path)) {
        open_source(data, None)?;
    }
    check_weights(recipe.value.init_from(), is_given)
}

/// Refuses the checkpoint of a run of another kind, which has other networks.
fn check_kind(from: &Path, kind: &str) -> Result<(), TrainError> {
    let saved = from.ancestors().take(2).find(|folder| folder.ends_with(trainer::CHECKPOINTS));
    let run = saved.and_then(Path::parent).unwrap_or(from);
    match folders::kind_in(run).filter(|found| found != kind) {
        None => Ok(()),
        Some(found) => Err(TrainError::From {
            checkpoint: from.to_owned(),
            problem: format!(
                "{} is a run of kind `{found}`, and this recipe trains `{kind}`; name a checkpoint of that kind",
                run.display()
            ),
        }),
    }
}

/// Refuses the folder of something else as that of a run, whose files would lie among its own. Who names it would get the one or
/// the other.
fn check_folder(folder: &Path) -> Result<(), StageError> {
    folders::check_folder(folder, &[Content::Run])
        .map_err(|problem| StageError::Together(format!("{problem} with --out")))?;
    // A run would replace it at its end.
    match folder.join(MODEL).is_dir() && !folder.join(trainer::RECIPE).is_file() {
        true => Err(StageError::Together(format!(
            "{} holds a folder `{MODEL}` that is no run's, which one would replace; choose another folder with --out",
            folder.display()
        ))),
        false => Ok(()),
    }
}

/// Refuses to begin anew where a run has left its model, and no checkpoint to go on from: the model would be replaced.
fn check_checkpoints<R: TrainingRecipe>(recipe: &R, context: &StageContext<'_>) -> Result<(), StageError> {
    let folder = context.folder;
    let claim = trainer::claim(folder, recipe)?;
    if !folder.join(MODEL).is_dir() {
        return Ok(());
    }
    let begins = match claim {
        Claim::Same | Claim::Respelled => done_earlier(context, recipe)?.is_none(),
        Claim::Longer(_) => context.extend,
        Claim::New | Claim::Other(_) => false,
    };
    match begins && saved::newest(folder)?.is_none() {
        false => Ok(()),
        true => Err(StageError::Together(format!(
            "{folder} holds the {MODEL}/ of a run, but no checkpoint in {checkpoints}/ to go on from: it would begin anew, and replace \
             that model; copy the checkpoints back, or train in another folder with --out (init_from={folder}/{MODEL} begins with its \
             weights)",
            folder = folder.display(),
            checkpoints = trainer::CHECKPOINTS
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
            "init_from: {path}: there is no such file or folder{}; correct the path, or leave init_from out",
            absence(Path::new(path))
        ))),
    }
}
