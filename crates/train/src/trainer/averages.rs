//! Snapshots of a run's averages, out of which others are rebuilt.

use super::{Run, TrainError};
use crate::averages;
use crate::checkpoint::CheckpointError;
use crate::config::EmaSettings;
use crate::task::Task;
use crate::trainable::Trainable;

impl<T: Task, A: Trainable<T::Model>> Run<'_, T, A> {
    /// Keeps a snapshot of the averages behind the step just done, if it is due; one that is there already stays.
    pub(super) fn keep_averages(&self) -> Result<(), TrainError> {
        let Some(every) = self.config.ema.and_then(EmaSettings::snapshot_every) else { return Ok(()) };
        if !self.crossed(every) && !self.is_complete() {
            return Ok(());
        }
        if let (true, Some(ema)) = (self.context.collective.is_first(), self.config.ema) {
            let tensors = self.optimizer.snapshot(&self.parameters);
            averages::keep(self.context.folder, self.samples, tensors, ema, self.config.run.seed).map_err(|error| {
                match error {
                    CheckpointError::NotFinite { tensor } => self.diverged(format!("tensor `{tensor}`")),
                    other => other.into(),
                }
            })?;
        }
        Ok(self.context.collective.barrier()?)
    }
}
