//! The tables that all training recipes share. A task's own tables stand in its file (`tasks/`).

mod data;
mod distributed;
mod init;
mod run;
pub(crate) mod sizes;

pub use crate::optim::{EmaSettings, OptimizerSettings, TrainConfig};
pub use data::{Augment, CorruptSample, DataSettings, Normalise, WeightedSource};
pub(crate) use data::{caption_part, image_parts, yes};
pub use distributed::{DistributedSettings, Reproducible};
pub use init::{InitFrom, InitSettings};
pub use run::{LARGEST_BATCH, MemorySettings, RunSettings, StackMemory};

use crate::hooks::HookSettings;
use crate::mlperf::{self, MlperfSettings};
use crate::prepare::PrepareSettings;
use crate::trackers::TrackerSettings;
use crate::trainer::WatchSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// A setting that cannot be, naming its key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("recipe key `{key}`: {problem}")]
pub struct SettingError {
    /// Dotted key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Fails with a [`SettingError`] unless `ok`.
///
/// # Errors
/// [`SettingError`] with the key and what `problem` says.
pub fn check(ok: bool, key: &'static str, problem: impl FnOnce() -> String) -> Result<(), SettingError> {
    if ok { Ok(()) } else { Err(SettingError { key, problem: problem() }) }
}

pub(crate) fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn is_no(value: &bool) -> bool {
    !*value
}

/// What the trainer needs of every training recipe. The macro `training_recipe!` implements it.
pub trait TrainingRecipe: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The key `kind`: which task the recipe is for.
    fn kind(&self) -> &str;

    /// The table `[data]`.
    fn data(&self) -> &DataSettings;

    /// The tables `[run]`, `[optimizer]` and `[ema]`.
    fn config(&self) -> TrainConfig<'_>;

    /// The key `init_from`.
    fn init_from(&self) -> Option<&InitFrom>;

    /// The table `[hooks]`.
    fn hooks(&self) -> &HookSettings;

    /// The table `[distributed]`.
    fn distributed(&self) -> &DistributedSettings;

    /// The table `[prepare]`.
    fn prepare(&self) -> Option<&PrepareSettings>;

    /// The table `[trackers]`.
    fn trackers(&self) -> &TrackerSettings;

    /// The table `[watch]`.
    fn watch(&self) -> Option<&WatchSettings>;

    /// The table `[mlperf]`.
    fn mlperf(&self) -> Option<&MlperfSettings>;

    /// Checks the shared tables.
    ///
    /// # Errors
    /// [`SettingError`] naming the first key at fault.
    fn check_shared(&self) -> Result<(), SettingError> {
        self.data().validate()?;
        self.config().validate()?;
        self.hooks().validate()?;
        self.trackers().validate()?;
        check(self.hooks().preview.is_none() || self.trackers().show_images(), "hooks.preview", || {
            "has nowhere to show its images: set trackers.tensorboard = true, or trackers.wandb".to_owned()
        })?;
        self.watch().map_or(Ok(()), |watch| watch.validate(self.config().optimizer))?;
        mlperf::check_tables(self.mlperf(), &self.config(), self.hooks())
    }
}

/// Declares a task's recipe: the tables that all training recipes have, and the task's own, which are named here.
///
/// The shared keys are `kind`, `init_from`, `prepare`, `data`, `optimizer`, `ema`, `hooks`, `distributed`, `trackers`, `watch`, `mlperf` and `run`.
macro_rules! training_recipe {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// Which task the recipe is for.
            pub kind: String,
            /// Initial weights; random ones of the run's seed if absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub init_from: Option<crate::config::InitFrom>,
            /// What is made under the run's folder first.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub prepare: Option<crate::prepare::PrepareSettings>,
            /// The samples.
            pub data: crate::config::DataSettings,
            $($(#[$field_meta])* pub $field: $type,)*
            /// The optimizer and its learning rate.
            pub optimizer: crate::config::OptimizerSettings,
            /// Moving average of the weights; where there is one, it is what the run ends with.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub ema: Option<crate::config::EmaSettings>,
            /// What is done between steps.
            #[serde(default, skip_serializing_if = "crate::config::is_usual")]
            pub hooks: crate::hooks::HookSettings,
            /// How several processes share the run.
            #[serde(default, skip_serializing_if = "crate::config::is_usual")]
            pub distributed: crate::config::DistributedSettings,
            /// Where the run reports.
            #[serde(default, skip_serializing_if = "crate::config::is_usual")]
            pub trackers: crate::trackers::TrackerSettings,
            /// What is looked at while it trains.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub watch: Option<crate::trainer::WatchSettings>,
            /// The run as one of an MLPerf benchmark, whose log it writes.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub mlperf: Option<crate::mlperf::MlperfSettings>,
            /// Length and book-keeping.
            pub run: crate::config::RunSettings,
        }

        impl crate::config::TrainingRecipe for $name {
            fn kind(&self) -> &str {
                &self.kind
            }
            fn data(&self) -> &crate::config::DataSettings {
                &self.data
            }
            fn config(&self) -> crate::config::TrainConfig<'_> {
                crate::config::TrainConfig::new(&self.run, &self.optimizer, self.ema.as_ref())
            }
            fn init_from(&self) -> Option<&crate::config::InitFrom> {
                self.init_from.as_ref()
            }
            fn hooks(&self) -> &crate::hooks::HookSettings {
                &self.hooks
            }
            fn distributed(&self) -> &crate::config::DistributedSettings {
                &self.distributed
            }
            fn prepare(&self) -> Option<&crate::prepare::PrepareSettings> {
                self.prepare.as_ref()
            }
            fn trackers(&self) -> &crate::trackers::TrackerSettings {
                &self.trackers
            }
            fn watch(&self) -> Option<&crate::trainer::WatchSettings> {
                self.watch.as_ref()
            }
            fn mlperf(&self) -> Option<&crate::mlperf::MlperfSettings> {
                self.mlperf.as_ref()
            }
        }
    };
}

pub(crate) use training_recipe;
