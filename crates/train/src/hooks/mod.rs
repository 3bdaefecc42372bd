//! What is done between steps: measuring, showing, ending. One file each, and one row of the table below.
//!
//! A hook is due by the samples seen, so that restarts and batch sizes do not change when it runs. It runs behind the
//! step's entry in the logs and in front of the step's checkpoint; what it finds is logged under the step's samples.

mod benchmark;
mod evaluate;
mod preview;
mod target;

pub use benchmark::BenchmarkSettings;
pub(crate) use benchmark::EVALUATION;
pub use evaluate::EvaluateSettings;
pub use preview::PreviewSettings;
pub use target::TargetSettings;

use crate::config::{SettingError, check};
use crate::stages::StageContext;
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use calotype_data::image::RgbImage;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::BTreeMap;

/// Something that is done between two steps.
pub trait Hook<T: Task> {
    /// Whether it is to run behind the step that went from `before` to `samples` samples seen.
    fn due(&self, before: u64, samples: u64) -> bool;

    /// Runs it.
    ///
    /// # Errors
    /// Whatever goes wrong ends the run.
    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError>;
}

/// What a hook may look at, and where it leaves what it found.
pub struct HookContext<'a, T: Task> {
    /// The task.
    pub task: &'a T,
    /// Its recipe.
    pub recipe: &'a T::Recipe,
    /// Device, folder and processes of the run.
    pub stage: &'a StageContext<'a>,
    /// Samples seen.
    pub samples: u64,
    model: &'a LazyModel<'a, T::Model>,
    metrics: &'a BTreeMap<String, f64>,
    found: Found,
}

/// A model that is made when a hook first asks for it.
pub(crate) struct LazyModel<'a, M> {
    made: OnceCell<M>,
    make: &'a dyn Fn() -> M,
}

impl<'a, M> LazyModel<'a, M> {
    pub(crate) fn new(make: &'a dyn Fn() -> M) -> Self {
        Self { made: OnceCell::new(), make }
    }
}

/// What a hook found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) evaluations: Vec<(&'static str, Vec<(String, f64)>)>,
    pub(crate) images: Vec<(String, RgbImage)>,
    pub(crate) target: Option<String>,
}

impl<'a, T: Task> HookContext<'a, T> {
    pub(crate) fn new(
        task: &'a T,
        recipe: &'a T::Recipe,
        stage: &'a StageContext<'a>,
        model: &'a LazyModel<'a, T::Model>,
        samples: u64,
        metrics: &'a BTreeMap<String, f64>,
    ) -> Self {
        Self { task, recipe, stage, model, samples, metrics, found: Found::default() }
    }

    /// The model with its averaged weights, where the recipe averages; without autodiff.
    pub fn model(&self) -> &'a T::Model {
        self.model.made.get_or_init(|| (self.model.make)())
    }

    /// The newest number of a name: of the logs (`loss`), or of a hook (`validation/loss`).
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied()
    }

    /// Refuses the name of a number of the logs that they do not have, once they have an entry; those of hooks come when they come.
    ///
    /// # Errors
    /// With the names that there are.
    pub(crate) fn expect_metric(&self, name: &str) -> Result<(), BoxError> {
        let logged = self.metrics.contains_key("learning_rate");
        if !logged || name.contains('/') || self.metrics.contains_key(name) {
            return Ok(());
        }
        let names: Vec<&str> = self.metrics.keys().map(String::as_str).collect();
        Err(format!("the logs have no number `{name}`; correct hooks.target.metric, they have {}", names.join(", "))
            .into())
    }

    /// Logs named results of an evaluation, whose number [`HookContext::metric`] calls `name/result`.
    pub fn log(&mut self, name: &'static str, results: Vec<(impl Into<String>, f64)>) {
        let results = results.into_iter().map(|(result, value)| (result.into(), value)).collect();
        self.found.evaluations.push((name, results));
    }

    /// Logs an image.
    pub fn show(&mut self, name: &str, image: RgbImage) {
        self.found.images.push((name.to_owned(), image));
    }

    /// Ends the run behind this step, as if all its samples had been seen; `reason` says what was reached.
    pub fn end(&mut self, reason: String) {
        self.found.target = Some(reason);
    }

    pub(crate) fn finish(self) -> Found {
        self.found
    }
}

/// A hook with its key in `[hooks]`.
pub(crate) struct HookRun<T: Task> {
    pub(crate) name: &'static str,
    pub(crate) hook: Box<dyn Hook<T>>,
}

/// Whether the step from `before` to `samples` samples seen passed a multiple of `every`.
pub(crate) fn crossed(before: u64, samples: u64, every: u64) -> bool {
    samples / every != before / every
}

/// Makes the table `[hooks]` of all recipes out of rows `key: settings, constructor`.
macro_rules! hooks {
    ($($(#[$meta:meta])* $key:ident: $settings:ty, $open:path;)*) => {
        /// The table `[hooks]`.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct HookSettings {
            $($(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$settings>,)*
        }

        impl HookSettings {
            pub(crate) fn validate(&self) -> Result<(), SettingError> {
                $(self.$key.as_ref().map_or(Ok(()), <$settings>::validate)?;)*
                let target = self.target.as_ref().filter(|_| self.evaluate.is_none());
                check(!target.is_some_and(|target| target.metric.starts_with("validation/")), "hooks.target.metric", || {
                    "is a number of [hooks.evaluate], which the recipe does not have: it would never be reached".to_owned()
                })?;
                let unknown = |metric: &str| {
                    let name = metric.strip_prefix("validation/");
                    name.is_some_and(|name| name != "loss" && !name.starts_with("loss_"))
                };
                check(!self.target.as_ref().is_some_and(|target| unknown(&target.metric)), "hooks.target.metric", || {
                    "is no number of [hooks.evaluate]: it logs validation/loss, and with ranges validation/loss_0_250 and so on"
                        .to_owned()
                })
            }
        }

        /// The hooks that a recipe asks for, in the order of the table.
        pub(crate) fn open_all<T: Task>(recipe: &T::Recipe) -> Result<Vec<HookRun<T>>, TrainError> {
            use crate::config::TrainingRecipe;
            let mut all = Vec::new();
            $(if let Some(settings) = &recipe.hooks().$key {
                let hook = Box::new($open(settings, recipe.data())?) as Box<dyn Hook<T>>;
                all.push(HookRun { name: stringify!($key), hook });
            })*
            Ok(all)
        }
    };
}

hooks! {
    /// Computes the loss on other samples now and then.
    evaluate: EvaluateSettings, evaluate::Evaluate::open;
    /// Shows in TensorBoard what the model can do.
    preview: PreviewSettings, preview::Preview::open;
    /// Evaluates as an MLPerf benchmark has it, and ends the run at its targets.
    benchmark: BenchmarkSettings, benchmark::BenchmarkRun::open;
    /// Ends the run when a number of the logs is good enough.
    target: TargetSettings, target::Target::open;
}
