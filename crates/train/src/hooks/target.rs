//! The end of a run that is good enough.

use super::{Hook, HookContext};
use crate::config::{DataSettings, SettingError, check};
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use serde::{Deserialize, Serialize};

/// `[hooks.target]`: the run ends at the first step whose number is good enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSettings {
    /// Name of a number in the logs, such as `loss` or `validation/loss`.
    pub metric: String,
    /// It is good enough at or below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// It is good enough at or above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
}

impl TargetSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.at_most.is_some() != self.at_least.is_some(), "hooks.target", || {
            "needs either `at_most` or `at_least`".to_owned()
        })
    }

    fn reached(&self, value: f64) -> bool {
        self.at_most.is_some_and(|bound| value <= bound) || self.at_least.is_some_and(|bound| value >= bound)
    }
}

pub(super) struct Target(TargetSettings);

impl Target {
    pub(super) fn open(settings: &TargetSettings, _: &DataSettings) -> Result<Self, TrainError> {
        Ok(Self(settings.clone()))
    }
}

impl<T: Task> Hook<T> for Target {
    fn due(&self, _: u64, _: u64) -> bool {
        true
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        let name = &self.0.metric;
        if let Some(value) = context.metric(name)
            && self.0.reached(value)
        {
            context.end(format!("{name} = {value} reached the target"));
        }
        context.expect_metric("hooks.target.metric", name)
    }
}
