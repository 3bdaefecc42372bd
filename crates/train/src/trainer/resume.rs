//! A run is resumed with the recipe and the encoders that it was begun with.

use super::dataset::{self, DATA};
use super::places::{respelled, same_place};
use super::{CHECKPOINTS, ENCODERS, RECIPE, TrainError, end_of};
use crate::averages::AVERAGES;
use crate::checkpoint::{Checkpoint, saved_in, training_folder, warn_of_skipped};
use crate::config::{DistributedSettings, TrainConfig, TrainingRecipe, is_usual};
use crate::mlperf::LOG;
use crate::stages::{MODEL, RESULT, Recipe, StageContext};
use crate::trackers::{CSV_LINES, JSON_LINES};
use calotype_core::durable;
use calotype_data::Source;
use calotype_data::precache::encoder_of;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Whether a folder holds a run of this recipe.
#[derive(Debug, PartialEq)]
pub(crate) enum Claim {
    /// There is no run yet.
    New,
    /// A run with an equal recipe.
    Same,
    /// A run with a recipe that is equal but for the spelling of its paths, or but for paths that have moved with the folder.
    Respelled,
    /// A run with a recipe that is the same but for a larger `run.samples`; the former one.
    Longer(u64),
    /// A run with another recipe: the first key that differs, with both values.
    Other(String),
}

/// Compares the recipe of a folder's run with another one. Parsed values are compared, not texts: a key that is new since
/// the run was begun has its default in both. Paths are compared as what they name.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Recipe`] if the run's recipe cannot be read.
pub(crate) fn claim<R: TrainingRecipe>(folder: &Path, recipe: &R) -> Result<Claim, TrainError> {
    let path = folder.join(RECIPE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // Below a regular file there is nothing either; whoever writes there says what is wrong.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Claim::New),
        Err(source) => return Err(TrainError::Io { path, source }),
    };
    let unreadable = |problem: String| TrainError::Recipe { path: path.clone(), problem: problem.trim().to_owned() };
    let table: Table = toml::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    let begun: Option<R> = toml::from_str(&text).ok();
    if begun.as_ref() == Some(recipe) {
        return Ok(Claim::Same);
    }
    let now = table_of(recipe);
    let begun = begun.map(|begun| respelled(&in_layout_of(table_of(&begun), recipe.distributed()), &now, folder));
    if begun.as_ref() == Some(&now) {
        return Ok(Claim::Respelled);
    }
    if let Some(samples) = begun.as_ref().and_then(|begun| shorter(begun, &now)) {
        return Ok(Claim::Longer(samples));
    }
    let difference = match &begun {
        // More samples are allowed: what else differs is what matters.
        Some(begun) => {
            let but_samples = with_samples_of(begun, &now).and_then(|begun| difference_below("", &begun, &now));
            but_samples.or_else(|| difference_below("", begun, &now))
        }
        // A recipe of another task, or of a version that had other keys: what it says is compared, and not what it leaves out.
        None => difference_below("", &respelled(&table, &now, folder), &said_by(&table, &now)),
    };
    difference.map(Claim::Other).ok_or_else(|| unreadable("it is no whole training recipe".to_owned()))
}

/// What a run of another recipe has left in a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing but what a start writes before its first step: another run may begin there.
    Nothing,
    /// No checkpoint, but something that would be lost, in words.
    Other(String),
    /// Checkpoints, whole or damaged.
    Checkpoints,
}

/// What the run of a folder has left there. A folder without one of checkpoints, which a start makes, is not looked at closer: its
/// recipe may be somebody's own.
///
/// # Errors
/// [`TrainError::Io`] if it cannot be read.
pub(crate) fn left_by(folder: &Path) -> Result<Left, TrainError> {
    let checkpoints = folder.join(CHECKPOINTS);
    if !checkpoints.is_dir() {
        return Ok(Left::Checkpoints);
    }
    // What was never completed is removed at each start.
    let is_something = |name: &str| !name.starts_with(".partial-");
    if names_in(&checkpoints)?.iter().any(|name| is_something(name)) {
        return Ok(Left::Checkpoints);
    }
    for name in [MODEL, AVERAGES] {
        let place = folder.join(name);
        if place.is_dir() && names_in(&place)?.iter().any(|name| is_something(name)) {
            return Ok(Left::Other(format!("the folder {name}")));
        }
    }
    if folder.join(RESULT).exists() {
        return Ok(Left::Other(RESULT.to_owned()));
    }
    for name in [JSON_LINES, CSV_LINES] {
        if has_entries(&folder.join(name))? {
            return Ok(Left::Other(format!("entries in {name}")));
        }
    }
    Ok(Left::Nothing)
}

/// Names of what is in a folder.
fn names_in(folder: &Path) -> Result<Vec<String>, TrainError> {
    let failed = |source| TrainError::Io { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Whether logs hold anything of a step: an entry of more than 0 samples, or what cannot be read.
fn has_entries(path: &Path) -> Result<bool, TrainError> {
    let text = match std::fs::read(path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(TrainError::Io { path: path.to_owned(), source }),
    };
    let is_first = |line: &str| {
        let of_json = || serde_json::from_str::<serde_json::Value>(line).ok()?.get("samples")?.as_u64();
        // The first row of a table names the columns.
        let of_row =
            || line.split(',').next().and_then(|cell| if cell == "samples" { Some(0) } else { cell.parse().ok() });
        of_json().or_else(of_row) == Some(0)
    };
    Ok(!text.lines().all(is_first))
}

/// Removes what a start has written that saved nothing, so that another recipe begins in its folder. The logs are begun anew by
/// themselves.
fn clear(folder: &Path) -> Result<(), TrainError> {
    for name in [FROM, ENCODERS, DATA, JSON_LINES, CSV_LINES, LOG] {
        let path = folder.join(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(TrainError::Io { path, source }),
            _ => {}
        }
    }
    Ok(())
}

/// The refusal of a folder's run of another recipe; nothing if it has left nothing that could be lost.
///
/// # Errors
/// [`TrainError::OtherRecipe`], [`TrainError::OtherBegun`]; [`TrainError::Io`] if the folder cannot be read.
pub(crate) fn refuse_other(folder: &Path, difference: String) -> Result<(), TrainError> {
    let folder = folder.to_owned();
    match left_by(&folder)? {
        Left::Nothing => Ok(()),
        Left::Other(left) => Err(TrainError::OtherBegun { folder, difference, left }),
        Left::Checkpoints => Err(TrainError::OtherRecipe { folder, difference }),
    }
}

/// A recipe for as many processes that compute layers together as another one's settings have: runs go on with any number.
fn in_layout_of(mut recipe: Table, other: &DistributedSettings) -> Table {
    const KEY: &str = "distributed";
    let own = recipe.get(KEY).and_then(|own| own.clone().try_into::<DistributedSettings>().ok()).unwrap_or_default();
    let laid_out = DistributedSettings { tensor_parallel: other.tensor_parallel, ..own };
    match Value::try_from(laid_out) {
        Ok(table) if !is_usual(&laid_out) => recipe.insert(KEY.to_owned(), table),
        _ => recipe.remove(KEY),
    };
    recipe
}

/// The samples of a run's recipe, if another one differs in nothing but more of them.
fn shorter(begun: &Table, now: &Table) -> Option<u64> {
    let (before, after) = (samples_of(begun)?, samples_of(now)?);
    (after > before && with_samples_of(begun, now)? == *now).then(|| u64::try_from(before).ok())?
}

fn samples_of(recipe: &Table) -> Option<i64> {
    recipe.get("run")?.get("samples")?.as_integer()
}

/// A recipe with another one's number of samples.
fn with_samples_of(recipe: &Table, other: &Table) -> Option<Table> {
    let mut same = recipe.clone();
    same.get_mut("run")?.as_table_mut()?.insert("samples".to_owned(), samples_of(other)?.into());
    Some(same)
}

/// The first key whose values differ in two recipes, with both values; texts that are no TOML hold nothing. Paths that name the same
/// place are the same, also those that have moved with `folder`, in which the first recipe was used.
pub fn first_difference(begun: &str, now: &str, folder: &Path) -> Option<String> {
    let [begun, now] = [begun, now].map(|text| toml::from_str::<Table>(text).unwrap_or_default());
    difference_below("", &respelled(&begun, &now, folder), &now)
}

/// Writes the recipe beside a new run, or checks that the folder's run has the same one, or one that has saved nothing and gives way.
/// A run of fewer samples is extended if that is asked for; its former number of samples is the result.
pub(super) fn claim_folder<R: TrainingRecipe>(
    folder: &Path,
    recipe: Recipe<'_, R>,
    extend: bool,
) -> Result<Option<u64>, TrainError> {
    let path = folder.join(RECIPE);
    let write = || {
        durable::write_bytes(&path, recipe.text.as_bytes())
            .map_err(|source| TrainError::Io { path: path.clone(), source })
    };
    match claim(folder, recipe.value)? {
        Claim::Same => Ok(None),
        // The former paths may lead to something else one day.
        Claim::New | Claim::Respelled => write().map(|()| None),
        Claim::Longer(samples) if extend => {
            let result = folder.join(RESULT);
            match std::fs::remove_file(&result) {
                Err(source) if source.kind() != ErrorKind::NotFound => Err(TrainError::Io { path: result, source }),
                _ => write().map(|()| Some(samples)),
            }
        }
        Claim::Longer(samples) => {
            let wanted = recipe.value.config().run.samples;
            Err(TrainError::Extend { folder: folder.to_owned(), samples, wanted })
        }
        Claim::Other(difference) => {
            refuse_other(folder, difference.clone())?;
            tracing::warn!(
                "{}: the run that was begun here with another recipe ({difference}) has saved nothing: this one begins in its place",
                folder.display()
            );
            clear(folder)?;
            write().map(|()| None)
        }
    }
}

fn table_of(recipe: &impl Serialize) -> Table {
    Table::try_from(recipe).unwrap_or_default()
}

/// The part of a recipe that another one has keys for.
fn said_by(other: &Table, recipe: &Table) -> Table {
    let said = recipe.iter().filter_map(|(key, value)| {
        let value = match (other.get(key)?, value) {
            (Value::Table(other), Value::Table(own)) => Value::Table(said_by(other, own)),
            _ => value.clone(),
        };
        Some((key.clone(), value))
    });
    said.collect()
}

/// The first key, in the order of keys with `kind` in front, whose values differ.
fn difference_below(prefix: &str, begun: &Table, now: &Table) -> Option<String> {
    let mut keys: Vec<&String> = begun.keys().chain(now.keys()).collect();
    keys.sort_unstable_by_key(|key| (key.as_str() != "kind", key.as_str()));
    keys.dedup();
    keys.into_iter().find_map(|key| {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (begun.get(key), now.get(key)) {
            (Some(Value::Table(begun)), Some(Value::Table(now))) => difference_below(&path, begun, now),
            (begun, now) if begun == now => None,
            (begun, now) => Some(format!("`{path}` is {} there and {} now", shown(begun), shown(now))),
        }
    })
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not set".to_owned(), ToString::to_string)
}

/// Name of the file that says which training checkpoint a run was begun with.
const FROM: &str = "from.json";

/// The checkpoint that a run was begun with.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Begun {
    checkpoint: PathBuf,
    samples: u64,
}

/// Refuses a checkpoint that a folder's run cannot begin with. Its tensors are not looked at.
///
/// # Errors
/// [`TrainError::From`]; [`TrainError::Io`] if the folder cannot be read.
pub(crate) fn check_from(folder: &Path, from: &Path, config: &TrainConfig<'_>) -> Result<(), TrainError> {
    let wrong = |problem: String| Err(TrainError::From { checkpoint: from.to_owned(), problem });
    let own = folder.join(CHECKPOINTS);
    let begun = begun(folder)?;
    let place = match checkpoint_of(from) {
        Ok(place) => place,
        // A run that has checkpoints of its own needs the other one no more.
        Err(_) if begun.is_some() && own.is_dir() && !saved_in(&own)?.is_empty() => return Ok(()),
        Err(problem) => return wrong(problem),
    };
    match begun {
        Some(begun) if !same_place(&begun.checkpoint.to_string_lossy(), &place.to_string_lossy(), folder) => {
            return wrong(format!("{} was begun with another checkpoint; use another folder", folder.display()));
        }
        None if own.is_dir() && !saved_in(&own)?.is_empty() => {
            return wrong(format!(
                "{} holds a run already, which began without it; use another folder",
                folder.display()
            ));
        }
        _ => {}
    }
    let siblings = saved_in(place.parent().unwrap_or(&place))?;
    match siblings.iter().find(|(_, path)| *path == place) {
        Some((samples, _)) if *samples >= end_of(config) => {
            wrong(format!("it has seen {samples} samples; set run.samples to more than that"))
        }
        _ => Ok(()),
    }
}

/// What a folder's run was begun with, if that was a checkpoint.
fn begun(folder: &Path) -> Result<Option<Begun>, TrainError> {
    let path = folder.join(FROM);
    durable::read_json(&path).map_err(|source| TrainError::Io { path, source })
}

/// Samples that the checkpoint had seen with which a folder's run was begun, 0 of one that began by itself.
pub(super) fn begun_at(folder: &Path) -> Result<u64, TrainError> {
    Ok(begun(folder)?.map_or(0, |begun| begun.samples))
}

/// The checkpoint that a run goes on with: its own newest one, or the one that it is or was begun with.
pub(super) fn beginning(
    folder: &Path,
    from: Option<&Path>,
    newest: Option<Checkpoint>,
) -> Result<Option<Checkpoint>, TrainError> {
    if newest.is_some() {
        return Ok(newest);
    }
    let place = match (begun(folder)?, from) {
        // The same one as when the run was begun, which was found out before, though it may have moved.
        (_, Some(from)) => {
            let place =
                checkpoint_of(from).map_err(|problem| TrainError::From { checkpoint: from.to_owned(), problem })?;
            warn_of_skipped(from)?;
            place
        }
        (Some(begun), None) => begun.checkpoint,
        (None, None) => return Ok(None),
    };
    let checkpoint = Checkpoint::load(&place)
        .map_err(|error| TrainError::From { checkpoint: place.clone(), problem: error.to_string() })?;
    let known = begun(folder)?;
    let begun = Begun { checkpoint: place, samples: checkpoint.samples };
    // Of several processes the first one has written it.
    if known.as_ref() != Some(&begun) {
        let path = folder.join(FROM);
        durable::write_json(&path, &begun).map_err(|source| TrainError::Io { path, source })?;
    }
    Ok(Some(checkpoint))
}

/// The whole path of the checkpoint that a path means.
fn checkpoint_of(path: &Path) -> Result<PathBuf, String> {
    let found = training_folder(path, true).map_err(|error| error.to_string())?;
    let is_run = || path.join(RECIPE).is_file() && path.join(CHECKPOINTS).is_dir();
    let found = found.ok_or_else(|| match is_run() {
        true => "is a run that has saved nothing yet: start without it, or let that run go on to its first checkpoint".to_owned(),
        false => "is neither a training checkpoint (a folder with tensors.safetensors, state.json and manifest.json) nor a run with one"
            .to_owned(),
    })?;
    found.canonicalize().map_err(|error| error.to_string())
}

/// The frozen encoders that a run depends on.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct EncoderRecord {
    /// Identity of those that made the dataset.
    dataset: Option<String>,
    /// Those that run in training.
    training: Option<String>,
}

/// Refuses encoders and samples other than those that a folder's run was begun with, before anything of it is touched. A run of
/// another recipe, or of another length that nobody asked for, is refused for that when the folder is claimed.
///
/// # Errors
/// [`TrainError::OtherEncoder`], [`TrainError::OtherData`]; [`TrainError::Io`] if a record cannot be read.
pub(crate) fn check_inputs<R: TrainingRecipe>(
    context: &StageContext<'_>,
    recipe: &R,
    dataset: &dyn Source,
    training: Option<String>,
) -> Result<(), TrainError> {
    match claim(context.folder, recipe)? {
        Claim::Other(_) => return Ok(()),
        Claim::Longer(_) if !context.extend => return Ok(()),
        _ => {}
    }
    check_encoders(context.folder, dataset, training, context.from)?;
    // Of several processes the first one speaks for all: their datasets are compared with its own.
    if context.collective.is_first() { dataset::check(context.folder, dataset) } else { Ok(()) }
}

fn encoders_of(dataset: &dyn Source, training: Option<String>) -> EncoderRecord {
    EncoderRecord { dataset: encoder_of(dataset.meta()).map(str::to_owned), training }
}

/// The encoders that a folder's run depends on, if they are recorded.
fn own_record(folder: &Path) -> Result<Option<EncoderRecord>, TrainError> {
    let path = folder.join(ENCODERS);
    durable::read_json(&path).map_err(|source| TrainError::Io { path, source })
}

/// Writes beside a new run which encoders it depends on.
pub(super) fn record_encoders(folder: &Path, dataset: &dyn Source, training: Option<String>) -> Result<(), TrainError> {
    if own_record(folder)?.is_some() {
        return Ok(());
    }
    let path = folder.join(ENCODERS);
    durable::write_json(&path, &encoders_of(dataset, training)).map_err(|source| TrainError::Io { path, source })
}

/// Compares the encoders with those that the run was begun with: a dataset that was encoded anew by another model has the same
/// shapes, and nothing else would tell.
///
/// A run that begins with another one's checkpoint (`from`) depends on that one's.
fn check_encoders(
    folder: &Path,
    dataset: &dyn Source,
    training: Option<String>,
    from: Option<&Path>,
) -> Result<(), TrainError> {
    let now = encoders_of(dataset, training);
    let (place, begun) = match (own_record(folder)?, from) {
        (None, Some(from)) => (from, record_of(from)?),
        (own, _) => (folder, own),
    };
    let Some(begun) = begun else { return Ok(()) };
    let pairs = [("data of the encoders", begun.dataset, &now.dataset), ("the encoder", begun.training, &now.training)];
    match pairs.into_iter().find(|(_, begun, now)| begun != *now) {
        None => Ok(()),
        Some((what, expected, found)) => {
            let [expected, found] = [expected, found.clone()]
                .map(|encoder| encoder.map_or_else(|| "none".to_owned(), |encoder| format!("`{encoder}`")));
            Err(TrainError::OtherEncoder { folder: place.to_owned(), what, expected, found })
        }
    }
}

/// The record of the run that a checkpoint, or a run's folder, belongs to.
fn record_of(from: &Path) -> Result<Option<EncoderRecord>, TrainError> {
    let run = from.ancestors().take(3).map(|folder| folder.join(ENCODERS)).find(|path| path.is_file());
    let Some(path) = run else { return Ok(None) };
    durable::read_json(&path).map_err(|source| TrainError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::autoencoder::AutoencoderRecipe;

    const TEXT: &str = "kind = \"autoencoder\"\n[data]\npath = \"x\"\n[model]\n[objective]\nresolution = 32\n\
                        reconstruction = \"l1\"\nkl_weight = 0.1\n[optimizer]\n[run]\nseed = 1\nsamples = 16\n\
                        batch_size = 4\nlog_every = 4\ncheckpoint_every = 8\n";

    fn claimed(begun: &str) -> Claim {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(RECIPE), begun).unwrap();
        let now: AutoencoderRecipe = toml::from_str(TEXT).unwrap();
        claim(folder.path(), &now).unwrap()
    }

    #[test]
    fn values_are_compared_and_not_texts() {
        assert_eq!(claimed(TEXT), Claim::Same);
        assert_eq!(claimed(&TEXT.replace("seed = 1\n", "seed = 1\nkeep_checkpoints = 2\n")), Claim::Same, "a default");
        let now: AutoencoderRecipe = toml::from_str(TEXT).unwrap();
        assert_eq!(claim(&tempfile::tempdir().unwrap().path().join("none"), &now).unwrap(), Claim::New);
    }

    #[test]
    fn a_recipe_that_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let now: AutoencoderRecipe = toml::from_str(TEXT).unwrap();
        for (text, part) in [("gar bage", "line 1"), ("", "no whole training recipe")] {
            std::fs::write(folder.path().join(RECIPE), text).unwrap();
            let error = claim(folder.path(), &now).unwrap_err();
            assert!(matches!(error, TrainError::Recipe { .. }) && !error.is_usage());
            let error = error.to_string();
            assert!(
                error.contains("recipe.toml: ") && error.contains("cannot be read") && error.contains(part),
                "{error}"
            );
        }
    }

    #[test]
    fn a_run_that_has_saved_nothing_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        std::fs::write(place(RECIPE), TEXT).unwrap();
        let left = || left_by(folder.path()).unwrap();
        assert_eq!(left(), Left::Checkpoints, "a recipe that may be somebody's own");
        std::fs::create_dir_all(place(CHECKPOINTS).join(".partial-checkpoint-000000000008-1")).unwrap();
        assert_eq!(left(), Left::Nothing);
        std::fs::write(place(JSON_LINES), "{\"samples\":0,\"loss\":1}\n").unwrap();
        std::fs::write(place(CSV_LINES), "samples,seconds,loss\n0,1,2\n").unwrap();
        assert_eq!(left(), Left::Nothing);
        let is = |name: &str, words: &str| {
            assert_eq!(left(), Left::Other(words.to_owned()));
            let error = refuse_other(folder.path(), "`run.seed`".to_owned()).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains("holds a run of another recipe"), "{error}");
            let path = place(name);
            if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        };
        std::fs::write(place(CSV_LINES), "samples,seconds,loss\n4,1,2\n").unwrap();
        is(CSV_LINES, "entries in metrics.csv");
        std::fs::write(place(JSON_LINES), "{\"samples\":4,\"loss\":1}\n").unwrap();
        is(JSON_LINES, "entries in metrics.jsonl");
        std::fs::write(place(RESULT), "{}").unwrap();
        is(RESULT, "result.json");
        for name in [MODEL, AVERAGES] {
            std::fs::create_dir_all(place(name).join("x")).unwrap();
            is(name, &format!("the folder {name}"));
        }
        assert!(refuse_other(folder.path(), String::new()).is_ok());
        std::fs::create_dir(place(CHECKPOINTS).join("checkpoint-000000000008")).unwrap();
        assert_eq!(left(), Left::Checkpoints, "a damaged one is one");
    }

    #[test]
    fn a_run_goes_on_in_another_layout() {
        let pairs = format!("{TEXT}[distributed]\ntensor_parallel = 2\n");
        assert_eq!(claimed(&pairs), Claim::Respelled);
        assert_eq!(claimed(&pairs.replace("samples = 16", "samples = 8")), Claim::Longer(8));
        let sharded = format!("{pairs}shard_optimizer = true\n");
        assert!(matches!(claimed(&sharded), Claim::Other(key) if key.contains("distributed")));
        assert_eq!(claimed(&format!("{TEXT}[distributed]\nshard_optimizer = false\n")), Claim::Same, "a default");
    }

    #[test]
    fn paths_are_compared_as_what_they_name() {
        assert_eq!(claimed(&TEXT.replace("\"x\"", "\"./x\"")), Claim::Respelled);
        let whole = std::env::current_dir().unwrap().join("x");
        assert_eq!(claimed(&TEXT.replace("\"x\"", &format!("{whole:?}"))), Claim::Respelled);
        let longer = TEXT.replace("\"x\"", "\"./x\"").replace("samples = 16", "samples = 8");
        assert_eq!(claimed(&longer), Claim::Longer(8));
        assert!(matches!(claimed(&TEXT.replace("\"x\"", "\"y\"")), Claim::Other(key) if key.contains("`data.path`")));
        let [one, two] = ["source = \"a\"\nbatch_size = 1", "source = \"./a\"\nbatch_size = 1"];
        assert_eq!(first_difference(one, two, Path::new("run")), None);
    }

    #[test]
    fn the_first_key_that_differs_is_named_with_both_values() {
        let other = |from: &str, to: &str| match claimed(&TEXT.replace(from, to)) {
            Claim::Other(difference) => difference,
            claim => panic!("{claim:?}"),
        };
        assert_eq!(other("samples = 16", "samples = 32"), "`run.samples` is 32 there and 16 now");
        assert_eq!(claimed(&TEXT.replace("samples = 16", "samples = 8")), Claim::Longer(8));
        let also = TEXT.replace("samples = 16", "samples = 8").replace("seed = 1", "seed = 2");
        assert!(matches!(claimed(&also), Claim::Other(difference) if difference.contains("`run.seed` is 2 there")));
        assert_eq!(other("[run]", "gradient_clip = 1.0\n[run]"), "`optimizer.gradient_clip` is 1.0 there and 0.0 now");
        assert_eq!(
            other("[optimizer]", "[ema]\nhalf_life = 3\n[optimizer]"),
            "`ema` is { half_life = 3, name = \"half_life\", rampup = 0.05 } there and not set now"
        );
        assert_eq!(other("\"autoencoder\"", "\"clip\""), "`kind` is \"clip\" there and \"autoencoder\" now");
        assert!(
            other("[objective]", "[objectiv]").contains("`objectiv"),
            "keys of another version are compared by name"
        );
    }
}
