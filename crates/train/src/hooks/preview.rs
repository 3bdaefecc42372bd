//! Images that show what the model can do so far.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, check};
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use serde::{Deserialize, Serialize};

/// `[hooks.preview]`: the images of [`Task::preview`], in the trackers that show images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewSettings {
    /// Samples seen between two previews.
    pub every: u64,
    /// What is drawn, by tasks that draw.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Steps of the sampler; 25 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Classifier-free guidance; 7.5 if absent, 1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f32>,
    /// Seed of the noise, the same at every preview; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl PreviewSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.every > 0, "hooks.preview.every", || "must be at least 1".to_owned())?;
        check(self.steps != Some(0), "hooks.preview.steps", || "must be at least 1".to_owned())?;
        check(self.guidance.is_none_or(f32::is_finite), "hooks.preview.guidance", || {
            "must be a number such as 7.5, where 1 is no guidance".to_owned()
        })?;
        let twice = (1..self.prompts.len()).find(|&at| self.prompts[..at].contains(&self.prompts[at]));
        check(twice.is_none(), "hooks.preview.prompts", || {
            format!("has `{}` twice, and images are named by their prompts", twice.map_or("", |at| &self.prompts[at]))
        })
    }

    /// Refuses what only tasks that draw have a use for.
    pub(crate) fn without_drawing(&self) -> Result<(), SettingError> {
        let drawing = Self { every: self.every, ..Self::default() };
        check(*self == drawing, "hooks.preview", || {
            "takes prompts, steps, guidance and seed in runs that draw; of this kind, it takes `every` alone".to_owned()
        })
    }
}

pub(super) struct Preview(PreviewSettings);

impl Preview {
    pub(super) fn open(settings: &PreviewSettings, _: &DataSettings) -> Result<Self, TrainError> {
        Ok(Self(settings.clone()))
    }
}

impl<T: Task> Hook<T> for Preview {
    fn due(&self, before: u64, samples: u64) -> bool {
        crossed(before, samples, self.0.every)
    }

    fn wants_whole_model(&self) -> bool {
        true
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        // One process shows them.
        if !context.stage.collective.is_first() {
            return Ok(());
        }
        for (name, image) in context.task.preview(context.model(), &self.0)? {
            context.show(&name, image);
        }
        Ok(())
    }
}
