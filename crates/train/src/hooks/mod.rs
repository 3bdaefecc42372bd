//! What is done between steps: measuring, showing, ending. One file each, and one row of the table below.
//!
//! A hook is due by the samples seen, so that restarts and batch sizes do not change when it runs. It runs behind the
//! step's entry in the logs and in front of the step's checkpoint; what it finds is logged under the step's samples.

mod benchmark;
mod evaluate;
mod judge;
mod preview;
mod target;
mod vision;

pub use benchmark::BenchmarkSettings;
pub(crate) use benchmark::EVALUATION;
pub use evaluate::EvaluateSettings;
pub use judge::JudgeSettings;
pub use preview::PreviewSettings;
pub use target::TargetSettings;
pub use vision::VisionSettings;

use crate::config::{DataSettings, SettingError, check};
use crate::stages::StageContext;
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use calotype_collective::{Collective, CollectiveError};
use calotype_data::image::RgbImage;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::BTreeMap;

/// Something that is done between two steps.
pub trait Hook<T: Task> {
    /// Looks, before the run begins, at what would end it only when the hook is due. The result is what is possible, but seldom
    /// meant, a sentence each.
    ///
    /// # Errors
    /// [`TrainError`] naming the key or file at fault.
    fn check(&self, recipe: &T::Recipe) -> Result<Vec<String>, TrainError> {
        let _ = recipe;
        Ok(Vec::new())
    }

    /// Puts in order what a killed process has left, when the run begins or goes on.
    ///
    /// # Errors
    /// A file that cannot be removed.
    fn begin(&self, stage: &StageContext<'_>) -> Result<(), BoxError> {
        let _ = stage;
        Ok(())
    }

    /// Whether it is to run behind the step that went from `before` to `samples` samples seen.
    fn due(&self, before: u64, samples: u64) -> bool;

    /// Whether it looks at the whole network at the first process alone. Where several compute the layers together, others run theirs
    /// at each, with the part that it has.
    fn wants_whole_model(&self) -> bool {
        false
    }

    /// Runs it. One that takes long looks now and then whether a stop is asked for ([`HookContext::stop_asked`]) and returns early; it is
    /// run again, from its beginning, when the run goes on.
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
    /// The processes that share out the batches: all of the run, or those with this one's part of the network.
    pub data_parallel: &'a dyn Collective,
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
    /// Whether the hook was left before its end.
    pub(crate) stopped: bool,
}

impl<'a, T: Task> HookContext<'a, T> {
    pub(crate) fn new(
        task: &'a T,
        recipe: &'a T::Recipe,
        stage: &'a StageContext<'a>,
        data_parallel: &'a dyn Collective,
        model: &'a LazyModel<'a, T::Model>,
        samples: u64,
        metrics: &'a BTreeMap<String, f64>,
    ) -> Self {
        Self { task, recipe, stage, data_parallel, model, samples, metrics, found: Found::default() }
    }

    /// The model with its averaged weights, where the recipe averages; without autodiff. Of processes that compute layers together,
    /// each has its part, but the first the whole for hooks that want it.
    pub fn model(&self) -> &'a T::Model {
        self.model.made.get_or_init(|| (self.model.make)())
    }

    /// The newest number of a name: of the logs (`loss`), or of a hook (`validation/loss`).
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied()
    }

    /// Whether any of the processes was asked to stop, in which case the hook returns at once. All of them must ask together.
    ///
    /// # Errors
    /// Another process is gone.
    pub fn stop_asked(&mut self) -> Result<bool, BoxError> {
        self.found.stopped = stop_asked(self.stage)?;
        Ok(self.found.stopped)
    }

    /// Refuses the name that a key gives of a number of the logs, if they do not have it once they have an entry; those of hooks come
    /// when they come.
    ///
    /// # Errors
    /// With the names that there are.
    pub(crate) fn expect_metric(&self, key: &str, name: &str) -> Result<(), BoxError> {
        let logged = self.metrics.contains_key("learning_rate");
        if !logged || name.contains('/') || self.metrics.contains_key(name) {
            return Ok(());
        }
        let names: Vec<&str> = self.metrics.keys().map(String::as_str).collect();
        Err(format!("the logs have no number `{name}`; correct {key}, they have {}", names.join(", ")).into())
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

/// Whether any of the processes was asked to stop: all must stop at the same place.
pub(crate) fn stop_asked(stage: &StageContext<'_>) -> Result<bool, CollectiveError> {
    let mut asked = [f32::from(u8::from(stage.stop.is_set()))];
    stage.collective.all_reduce_sum(&mut asked)?;
    Ok(asked[0] > 0.0)
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
                self.named_metrics().into_iter().try_for_each(|(key, name)| self.check_metric(key, name))
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

impl HookSettings {
    /// The names of numbers in the logs that hooks are told, with their keys.
    fn named_metrics(&self) -> Vec<(&'static str, &str)> {
        let target = self.target.iter().map(|target| ("hooks.target.metric", target.metric.as_str()));
        let benchmark = self.benchmark.iter().flat_map(BenchmarkSettings::named_metrics);
        target.chain(benchmark.map(|name| ("hooks.benchmark.metrics", name))).collect()
    }

    /// Refuses a number that [`EvaluateSettings`] would have to log and does not.
    fn check_metric(&self, key: &'static str, name: &str) -> Result<(), SettingError> {
        if let Some(figure) = name.strip_prefix("judged/") {
            let Some(judge) = &self.judge else {
                return check(false, key, || {
                    format!(
                        "`{name}` is a number of [hooks.judge], which the recipe does not have: it would never come"
                    )
                });
            };
            return judge.check_figure(key, figure);
        }
        if let Some(figure) = name.strip_prefix("vision/") {
            check(self.vision.is_some(), key, || {
                format!("`{name}` is a number of [hooks.vision], which the recipe does not have: it would never come")
            })?;
            return self.vision.as_ref().map_or(Ok(()), |vision| vision.check_figure(key, figure));
        }
        let Some(result) = name.strip_prefix("validation/") else { return Ok(()) };
        check(self.evaluate.is_some(), key, || {
            format!("`{name}` is a number of [hooks.evaluate], which the recipe does not have: it would never come")
        })?;
        check(result == "loss" || result.starts_with("loss_"), key, || {
            format!(
                "`{name}` is no number of [hooks.evaluate]: it logs validation/loss, and with ranges validation/loss_0_250 and so on"
            )
        })
    }
}

/// [`Hook::check`] of all. Networks that decide over the names of figures are there by now.
pub(crate) fn check_all<T: Task>(hooks: &[HookRun<T>], recipe: &T::Recipe) -> Result<Vec<String>, TrainError> {
    use crate::config::TrainingRecipe;
    let names = recipe.hooks().named_metrics();
    names.into_iter().try_for_each(|(key, name)| recipe.hooks().check_metric(key, name))?;
    let remarks = hooks.iter().map(|run| run.hook.check(recipe)).collect::<Result<Vec<_>, _>>()?;
    Ok(remarks.into_iter().flatten().collect())
}

hooks! {
    /// Computes the loss on other samples now and then.
    evaluate: EvaluateSettings, evaluate::Evaluate::open;
    /// Shows in TensorBoard what the model can do.
    preview: PreviewSettings, preview::Preview::open;
    /// Draws and judges by an evaluation recipe.
    judge: JudgeSettings, judge::Judge::open;
    /// Judges a vision model by evaluation recipes.
    vision: VisionSettings, vision::Vision::open;
    /// Evaluates as an MLPerf benchmark has it, and ends the run at its targets.
    benchmark: BenchmarkSettings, benchmark::BenchmarkRun::open;
    /// Ends the run when a number of the logs is good enough.
    target: TargetSettings, target::Target::open;
}

impl HookSettings {
    /// Opens files of results, and the samples of evaluations whose path `is_given`.
    ///
    /// # Errors
    /// [`TrainError::Figures`], [`TrainError::Data`].
    pub(crate) fn check_given(&self, data: &DataSettings, is_given: impl Fn(&str) -> bool) -> Result<(), TrainError> {
        if let Some(benchmark) = &self.benchmark {
            benchmark::BenchmarkRun::open(benchmark, data)?;
        }
        self.vision.as_ref().map_or(Ok(()), |vision| vision.check_inputs(&is_given))?;
        let evaluate = self.evaluate.as_ref().filter(|evaluate| is_given(&evaluate.path));
        evaluate.map_or(Ok(()), |settings| evaluate::Evaluate::open(settings, data).map(drop))
    }
}
