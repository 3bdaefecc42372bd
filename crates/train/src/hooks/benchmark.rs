//! The evaluations of an MLPerf benchmark, and the end of the run at its targets.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, TrainingRecipe, check, is_usual};
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use calotype_mlperf::{Benchmark, Figures, Metric, PerMetric};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the evaluations in the logs.
pub(crate) const EVALUATION: &str = "benchmark";

/// `[hooks.benchmark]`: evaluations of the benchmark of `[mlperf]`, logged as `benchmark/fid` and so on; the run ends at the first
/// one that reaches the targets. What they measured is handed in, by one of `figures`, `path` and `metrics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchmarkSettings {
    /// Samples seen between two evaluations; by default as the rules have it, in whole batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// A file of results, a JSON object on each line as in [`Figures`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Names of numbers in the logs, such as `validation/loss`, whose newest values are the results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<PerMetric<String>>,
    /// Results by samples seen: an evaluation takes the last at or before its own.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub figures: Figures,
}

impl BenchmarkSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.every != Some(0), "hooks.benchmark.every", || "must be at least 1".to_owned())?;
        let sources = [!self.figures.is_empty(), self.path.is_some(), self.metrics.is_some()];
        check(sources.into_iter().filter(|given| *given).count() == 1, "hooks.benchmark", || {
            "needs one of `figures`, `path` and `metrics`, where the results come from; without results, leave the table out, and \
             end the log with `calotype mlperf finish` once the kept checkpoints are evaluated"
                .to_owned()
        })
    }

    /// Checks that results are there for all that a benchmark measures. A file is checked when it is read.
    pub(crate) fn check_results(&self, benchmark: Benchmark) -> Result<(), SettingError> {
        let wrong = |key, problem| Err(SettingError { key, problem });
        if let Some(metric) = self.metrics.as_ref().and_then(|names| names.lacks(benchmark)) {
            let problem = format!("has no `{}`, which {benchmark} measures", metric.key());
            return wrong("hooks.benchmark.metrics", problem);
        }
        match self.figures.is_empty() {
            true => Ok(()),
            false => self.figures.check(benchmark).or_else(|problem| wrong("hooks.benchmark.figures", problem)),
        }
    }

    /// Where the results come from, as the log says it.
    pub(crate) fn origin(&self) -> &'static str {
        match (&self.path, &self.metrics) {
            (Some(_), _) => "handed in by the file of hooks.benchmark.path",
            (_, Some(_)) => "taken from the numbers of hooks.benchmark.metrics",
            _ => "handed in by hooks.benchmark.figures",
        }
    }
}

pub(super) struct BenchmarkRun(BenchmarkSettings);

impl BenchmarkRun {
    /// Reads the file of results: a path that is wrong must not be found out hours later.
    pub(super) fn open(settings: &BenchmarkSettings, _: &DataSettings) -> Result<Self, TrainError> {
        let mut settings = settings.clone();
        if let Some(path) = &settings.path {
            settings.figures = Figures::read(Path::new(path))?;
        }
        Ok(Self(settings))
    }

    /// The results of an evaluation at some samples.
    fn results<T: Task>(
        &self,
        context: &HookContext<'_, T>,
        benchmark: Benchmark,
    ) -> Result<Vec<(Metric, f64)>, BoxError> {
        let Some(names) = &self.0.metrics else {
            let figure = self.0.figures.at(context.samples);
            return Ok(figure.map(|figure| figure.results(benchmark)).unwrap_or_default());
        };
        let named = benchmark.metrics().iter().filter_map(|metric| Some((*metric, names.of(*metric)?)));
        let value = |(metric, name): (Metric, &String)| match context.metric(name) {
            Some(value) => Ok((metric, value)),
            None => Err(format!(
                "the logs have no number `{name}` yet; let [hooks] measure it at or before each evaluation"
            )
            .into()),
        };
        named.map(value).collect()
    }
}

impl<T: Task> Hook<T> for BenchmarkRun {
    /// The distance of evaluations follows from the recipe, which only a call of [`Hook::run`] has.
    fn due(&self, _: u64, _: u64) -> bool {
        true
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        let Some(mlperf) = context.recipe.mlperf() else { return Ok(()) };
        let (benchmark, batch) = (mlperf.submission.benchmark, context.recipe.config().run.batch_size as u64);
        let every = self.0.every.unwrap_or_else(|| mlperf.interval(batch));
        self.check_begin(every.next_multiple_of(batch.max(1)), benchmark)?;
        if !crossed(context.samples.saturating_sub(batch), context.samples, every) {
            return Ok(());
        }
        let results = self.results(context, benchmark)?;
        context.log(EVALUATION, results.iter().map(|(metric, value)| (metric.key(), *value)).collect());
        if mlperf.reached(&results) {
            let told: Vec<_> = results.iter().map(|(metric, value)| format!("{metric} = {value}")).collect();
            context.end(format!("{} reached the targets of {benchmark} ({})", told.join(" and "), self.0.origin()));
        }
        Ok(())
    }
}

impl BenchmarkRun {
    /// Finds out behind the first step, and not at the first evaluation, that there is no result for it, or not all of it.
    fn check_begin(&self, first: u64, benchmark: Benchmark) -> Result<(), BoxError> {
        if self.0.metrics.is_some() {
            return Ok(());
        }
        let behind = || {
            format!("the first evaluation is at {first} samples, and all figures lie behind; add one at or before it")
        };
        let figures = &self.0.figures;
        let checked = figures.check(benchmark).and_then(|()| figures.at(first).map(|_| ()).ok_or_else(behind));
        checked.map_err(|problem| match &self.0.path {
            Some(path) => format!("{path}: {problem}").into(),
            None => problem.into(),
        })
    }
}
