//! The embedded captioned images as a dataset, by a recipe.

use crate::stages::{StageEnd, StageError};
use calotype_core::progress::Progress;
use calotype_core::stop::StopFlag;
use calotype_data::emoji::{self, Split};
use calotype_data::{Control, Dataset, ShardLimits};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The embedded images on coloured backgrounds, as a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmojiRecipe {
    /// Side of the images in pixels.
    pub resolution: usize,
    /// Samples of one shard.
    pub shard_samples: usize,
    /// Drawings to use, evenly chosen; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawings: Option<usize>,
}

impl EmojiRecipe {
    /// Writes a split into a folder, unless it is there already; `name` is what the progress is called.
    ///
    /// # Errors
    /// [`StageError::Data`]: more drawings than there are, or the folder cannot be written.
    pub fn write(&self, folder: &Path, split: Split, name: &str, stop: &StopFlag) -> Result<StageEnd<()>, StageError> {
        let total = emoji::combinations(split, self.drawings)?.len();
        if let Ok(dataset) = Dataset::open(folder)
            && dataset.meta().get("resolution").and_then(serde_json::Value::as_u64) == Some(self.resolution as u64)
            && dataset.len() == total
        {
            return Ok(StageEnd::Done(()));
        }
        let mut progress = Progress::new(name, total as u64);
        let limits = ShardLimits { samples: self.shard_samples, ..ShardLimits::default() };
        let mut control =
            Control::default().with_progress(|_, done, _| progress.set(done as u64, &[])).with_stop(|| stop.is_set());
        let written = emoji::write_dataset(folder, self.resolution, limits, split, self.drawings, &mut control);
        drop(control);
        match written {
            Ok(_) => {
                progress.finish();
                Ok(StageEnd::Done(()))
            }
            // A dataset is begun anew, so that nothing of it is saved.
            Err(calotype_data::Error::Interrupted { .. }) => Ok(StageEnd::Interrupted { samples: 0 }),
            Err(error) => Err(error.into()),
        }
    }
}
