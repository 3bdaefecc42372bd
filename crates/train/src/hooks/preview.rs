//! Images that show what the model can do so far.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, check};
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use serde::{Deserialize, Serialize};

/// `[hooks.preview]`: the images of [`Task::preview`], in TensorBoard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewSettings {
    /// Samples seen between two previews.
    pub every: u64,
}

impl PreviewSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.every > 0, "hooks.preview.every", || "must be at least 1".to_owned())
    }
}

pub(super) struct Preview {
    every: u64,
}

impl Preview {
    pub(super) fn open(settings: &PreviewSettings, _: &DataSettings) -> Result<Self, TrainError> {
        Ok(Self { every: settings.every })
    }
}

impl<T: Task> Hook<T> for Preview {
    fn due(&self, before: u64, samples: u64) -> bool {
        crossed(before, samples, self.every)
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        // One process shows them.
        if !context.stage.collective.is_first() {
            return Ok(());
        }
        for (name, image) in context.task.preview(context.model())? {
            context.show(&name, image);
        }
        Ok(())
    }
}
