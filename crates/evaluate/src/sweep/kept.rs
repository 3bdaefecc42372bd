//! The kept checkpoints of a training run, as whoever trains tells of them.

use calotype_data::BoxError;
use std::path::{Path, PathBuf};

/// A training run that is judged while it goes on, or afterwards.
pub trait KeptCheckpoints {
    /// Its complete checkpoints by samples seen, the oldest first.
    ///
    /// # Errors
    /// They cannot be listed.
    fn saved(&self) -> Result<Vec<(u64, PathBuf)>, BoxError>;

    /// Whether the run has ended, so that no checkpoint will come.
    fn is_finished(&self) -> bool;

    /// Writes the model of the checkpoint behind so many samples, in a layout that draws, to the folder `out`, where nothing is.
    ///
    /// # Errors
    /// The checkpoint is damaged, or its run cannot make a model of it.
    fn write_model(&self, samples: u64, averaged: bool, out: &Path) -> Result<(), BoxError>;
}
