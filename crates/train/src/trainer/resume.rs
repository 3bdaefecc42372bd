//! A run is resumed with the recipe and the encoders that it was begun with.

use super::{ENCODERS, RECIPE, TrainError};
use crate::config::TrainingRecipe;
use calotype_core::durable;
use calotype_data::Source;
use calotype_data::precache::encoder_of;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;
use toml::{Table, Value};

/// Whether a folder holds a run of this recipe.
#[derive(Debug, PartialEq)]
pub(crate) enum Claim {
    /// There is no run yet.
    New,
    /// A run with an equal recipe.
    Same,
    /// A run with another recipe: the first key that differs, with both values.
    Other(String),
}

/// Compares the recipe of a folder's run with another one. Parsed values are compared, not texts: a key that is new since
/// the run was begun has its default in both.
///
/// # Errors
/// [`TrainError::Io`] if the run's recipe cannot be read.
pub(crate) fn claim<R: TrainingRecipe>(folder: &Path, recipe: &R) -> Result<Claim, TrainError> {
    let path = folder.join(RECIPE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // Below a regular file there is nothing either; whoever writes there says what is wrong.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Claim::New),
        Err(source) => return Err(TrainError::Io { path, source }),
    };
    let begun: Option<R> = toml::from_str(&text).ok();
    if begun.as_ref() == Some(recipe) {
        return Ok(Claim::Same);
    }
    let now = table_of(recipe);
    let difference = match &begun {
        Some(begun) => first_difference("", &table_of(begun), &now),
        // A recipe of another task, or of a version that had other keys: what it says is compared, and not what it leaves out.
        None => {
            let begun: Table = toml::from_str(&text).unwrap_or_default();
            first_difference("", &begun, &said_by(&begun, &now))
        }
    };
    Ok(Claim::Other(difference.unwrap_or_else(|| format!("{} is no training recipe", path.display()))))
}

/// Writes the recipe beside a new run, or checks that the folder's run has the same one.
pub(super) fn claim_folder<R: TrainingRecipe>(folder: &Path, recipe: &R, text: &str) -> Result<(), TrainError> {
    match claim(folder, recipe)? {
        Claim::Same => Ok(()),
        Claim::New => {
            let path = folder.join(RECIPE);
            durable::write_bytes(&path, text.as_bytes()).map_err(|source| TrainError::Io { path, source })
        }
        Claim::Other(difference) => Err(TrainError::OtherRecipe { folder: folder.to_owned(), difference }),
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
fn first_difference(prefix: &str, begun: &Table, now: &Table) -> Option<String> {
    let mut keys: Vec<&String> = begun.keys().chain(now.keys()).collect();
    keys.sort_unstable_by_key(|key| (key.as_str() != "kind", key.as_str()));
    keys.dedup();
    keys.into_iter().find_map(|key| {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (begun.get(key), now.get(key)) {
            (Some(Value::Table(begun)), Some(Value::Table(now))) => first_difference(&path, begun, now),
            (begun, now) if begun == now => None,
            (begun, now) => Some(format!("`{path}` is {} there and {} now", shown(begun), shown(now))),
        }
    })
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not set".to_owned(), ToString::to_string)
}

/// The frozen encoders that a run depends on.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct EncoderRecord {
    /// Identity of those that made the dataset.
    dataset: Option<String>,
    /// Those that run in training.
    training: Option<String>,
}

/// Writes beside a new run which encoders it depends on, or compares them with those that the run was begun with: a
/// dataset that was encoded anew by another model has the same shapes, and nothing else would tell.
pub(super) fn claim_encoders(folder: &Path, dataset: &dyn Source, training: Option<String>) -> Result<(), TrainError> {
    let path = folder.join(ENCODERS);
    let now = EncoderRecord { dataset: encoder_of(dataset.meta()).map(str::to_owned), training };
    let io = |source| TrainError::Io { path: path.clone(), source };
    let Some(begun) = durable::read_json::<EncoderRecord>(&path).map_err(io)? else {
        return durable::write_json(&path, &now).map_err(io);
    };
    let pairs = [("data of the encoders", begun.dataset, now.dataset), ("the encoder", begun.training, now.training)];
    match pairs.into_iter().find(|(_, begun, now)| begun != now) {
        None => Ok(()),
        Some((what, expected, found)) => {
            let [expected, found] = [expected, found].map(|encoder| encoder.unwrap_or_else(|| "none".to_owned()));
            Err(TrainError::OtherEncoder { folder: folder.to_owned(), what, expected, found })
        }
    }
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
    fn the_first_key_that_differs_is_named_with_both_values() {
        let other = |from: &str, to: &str| match claimed(&TEXT.replace(from, to)) {
            Claim::Other(difference) => difference,
            claim => panic!("{claim:?}"),
        };
        assert_eq!(other("samples = 16", "samples = 32"), "`run.samples` is 32 there and 16 now");
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
