//! The model of a run's checkpoint: what a run writes of its last state when it is done, of any state that it has kept.

use crate::checkpoint::{Checkpoint, CheckpointError, listed_of, newest_right, refuse_all_damaged};
use crate::optim::AVERAGE;
use crate::stages::{StageContext, StageError, export_new};
use crate::task::Task;
use crate::trainer::{CHECKPOINTS, MODEL};
use calotype_core::system::format_count;
use calotype_models::{Init, state};
use std::path::{Path, PathBuf};

calotype_core::names! {
    /// Which weights of a checkpoint a model gets.
    Weights, "kind of weights" {
        /// Their moving average.
        Average = "average",
        /// Those of the last step themselves.
        Trained = "trained",
    }
}

/// A model that is wanted of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WantedModel {
    /// Its weights; if nothing is said, as at the run's end: the average, where the recipe averages.
    pub weights: Option<Weights>,
    /// Samples seen by the checkpoint; the newest one if absent.
    pub at: Option<u64>,
}

/// Why a run has no such model.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// There are no checkpoints.
    #[error("{}: has no checkpoint in {}/; train it first", run.display(), CHECKPOINTS)]
    None {
        /// The run's folder.
        run: PathBuf,
    },
    /// There are others.
    #[error("--at {at}: {} has no checkpoint of so many samples; it has those of {}", run.display(), listed(there))]
    At {
        /// The run's folder.
        run: PathBuf,
        /// The samples that were asked for.
        at: u64,
        /// Those of its checkpoints.
        there: Vec<u64>,
    },
    /// The run does not average.
    #[error("--weights average: {} holds no averaged weights, for the recipe has no table [ema]; leave this out", checkpoint.display())]
    NoAverage {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
    },
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

fn listed(samples: &[u64]) -> String {
    samples.iter().map(|samples| format_count(*samples)).collect::<Vec<_>>().join(", ")
}

impl SavedError {
    /// Whether the command, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Checkpoint(_))
    }
}

/// What a model was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Samples that the checkpoint has seen.
    pub samples: u64,
    /// Its weights.
    pub weights: Weights,
}

/// Writes the model of a checkpoint of the run whose folder is the context's to `out`, where nothing is, in the layout of the run's own.
///
/// # Errors
/// [`StageError::Saved`]: there is no such checkpoint, or it has no such weights. Others as of [`crate::stages::train`].
pub fn export<T: Task>(
    recipe: &T::Recipe,
    wanted: &WantedModel,
    out: &Path,
    context: &StageContext<'_>,
) -> Result<Exported, StageError> {
    let checkpoint = checkpoint_of(context.folder, wanted.at)?;
    let weights = weights_of(&checkpoint, wanted.weights)?;
    let task = T::open(recipe, context)?;
    let placeholder = task.model(&mut Init::placeholders(context.device))?;
    let model = state::load(placeholder, |name, shape| {
        let average = format!("{AVERAGE}{name}");
        // What is frozen has no average.
        let averaged = weights == Weights::Average && checkpoint.tensors.contains(&average);
        checkpoint.values(&if averaged { average } else { format!("{MODEL}{name}") }, shape)
    })?;
    export_new(&task, &model, out)?;
    Ok(Exported { samples: checkpoint.samples, weights })
}

/// Samples of a run's newest checkpoint that is whole, if it has checkpoints.
///
/// # Errors
/// [`SavedError::Checkpoint`]: all are damaged, or the folder cannot be read.
pub(crate) fn newest(run: &Path) -> Result<Option<u64>, SavedError> {
    let found = listed_of(run)?;
    refuse_all_damaged(&run.join(CHECKPOINTS), &found)?;
    Ok(found.iter().rev().find(|listed| listed.damage.is_none()).map(|listed| listed.samples))
}

/// A run's checkpoint behind some samples, or its newest one that is right, with a warning of damaged ones that are newer; every hash
/// is verified.
fn checkpoint_of(run: &Path, at: Option<u64>) -> Result<Checkpoint, SavedError> {
    let found = listed_of(run)?;
    let Some(at) = at else {
        let all: Vec<_> = found.into_iter().map(|listed| (listed.samples, listed.path)).collect();
        let newest = newest_right(&run.join(CHECKPOINTS), &all)?;
        return newest.ok_or_else(|| SavedError::None { run: run.to_owned() });
    };
    if found.is_empty() {
        return Err(SavedError::None { run: run.to_owned() });
    }
    let of_at = || found.iter().filter(|listed| listed.samples == at);
    match of_at().find(|listed| listed.damage.is_none()).or_else(|| of_at().next()) {
        Some(listed) => Ok(Checkpoint::load(&listed.path)?),
        None => {
            refuse_all_damaged(&run.join(CHECKPOINTS), &found)?;
            let whole = found.iter().filter(|listed| listed.damage.is_none());
            Err(SavedError::At { run: run.to_owned(), at, there: whole.map(|listed| listed.samples).collect() })
        }
    }
}

/// The weights that are taken of a checkpoint.
fn weights_of(checkpoint: &Checkpoint, wanted: Option<Weights>) -> Result<Weights, SavedError> {
    let averaged = checkpoint.tensors.names().any(|name| name.starts_with(AVERAGE));
    match wanted {
        Some(Weights::Average) if !averaged => Err(SavedError::NoAverage { checkpoint: checkpoint.path.clone() }),
        Some(weights) => Ok(weights),
        None if averaged => Ok(Weights::Average),
        None => Ok(Weights::Trained),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{CheckpointStore, LazyTensor};

    fn save(run: &Path, samples: u64, names: &[&str]) {
        let store = CheckpointStore::open(run.join(CHECKPOINTS), "checkpoint").unwrap();
        let tensors = names.iter().map(|name| LazyTensor::f32(*name, [1], || vec![1.0]));
        store.save(samples, tensors, &serde_json::json!({})).unwrap();
    }

    #[test]
    fn the_checkpoint_and_its_weights_are_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        let error = checkpoint_of(run, None).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("has no checkpoint in checkpoints/"), "{error}");
        save(run, 8, &["model.weight"]);
        save(run, 1600, &["model.weight", "ema.weight"]);
        let at = |samples| checkpoint_of(run, samples).unwrap();
        assert_eq!((at(None).samples, at(Some(8)).samples, at(Some(1600)).samples), (1600, 8, 1600));
        let error = checkpoint_of(run, Some(9)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("those of 8, 1,600"), "{error}");
        let of = |samples, wanted| weights_of(&at(Some(samples)), wanted);
        assert_eq!(of(1600, None).unwrap(), Weights::Average);
        assert_eq!(of(1600, Some(Weights::Trained)).unwrap(), Weights::Trained);
        assert_eq!(of(8, None).unwrap(), Weights::Trained);
        let error = of(8, Some(Weights::Average)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("holds no averaged weights"), "{error}");
    }
    #[test]
    fn a_damaged_checkpoint_is_skipped_or_told() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        for samples in [8, 16, 24] {
            save(run, samples, &["model.weight"]);
        }
        let damage = |samples: u64| {
            let place = run.join(CHECKPOINTS).join(format!("checkpoint-{samples:012}"));
            std::fs::write(place.join("tensors.safetensors"), "x").unwrap();
        };
        damage(24);
        assert_eq!(checkpoint_of(run, None).unwrap().samples, 16);
        assert_eq!(newest(run).unwrap(), Some(16));
        let error = checkpoint_of(run, Some(24)).unwrap_err();
        assert!(!error.is_usage() && error.to_string().contains("the checkpoint is damaged"), "{error}");
        let error = checkpoint_of(run, Some(9)).unwrap_err().to_string();
        assert!(error.ends_with("those of 8, 16"), "{error}");
        damage(8);
        damage(16);
        for error in [checkpoint_of(run, None), checkpoint_of(run, Some(9))].map(Result::unwrap_err) {
            assert!(error.to_string().contains("all 3 checkpoints are damaged"), "{error}");
        }
        assert!(newest(run).unwrap_err().to_string().contains("all 3 checkpoints are damaged"));
    }
}
