//! The evaluations of an MLPerf benchmark, and the end of the run at its targets.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, TrainingRecipe, check, is_usual};
use crate::mlperf::MlperfSettings;
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use calotype_mlperf::{Benchmark, Figures, FiguresError, Metric, PerMetric};
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
        let sources =
            [("figures", !self.figures.is_empty()), ("path", self.path.is_some()), ("metrics", self.metrics.is_some())];
        let given: Vec<&str> = sources.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        check(given.len() <= 1, "hooks.benchmark", || {
            format!("takes its results from one place, and `{}` are both there: leave one out", given.join("` and `"))
        })?;
        check(given.len() == 1, "hooks.benchmark", || {
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

    /// The names of `metrics`.
    pub(super) fn named_metrics(&self) -> impl Iterator<Item = &str> {
        let names = self.metrics.iter().flat_map(|names| Metric::ALL.iter().filter_map(|metric| names.of(*metric)));
        names.map(String::as_str)
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

    /// Samples between two evaluations, for steps of `batch`.
    fn distance(&self, mlperf: &MlperfSettings, batch: u64) -> u64 {
        self.0.every.unwrap_or_else(|| mlperf.interval(batch))
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
    /// That there is no result for the first evaluation, or not all of it, must not be found out at real size after hours.
    fn check(&self, recipe: &T::Recipe) -> Result<Vec<String>, TrainError> {
        let (Some(mlperf), None) = (recipe.mlperf(), &self.0.metrics) else { return Ok(Vec::new()) };
        let batch = recipe.config().run.batch_size as u64;
        let first = self.distance(mlperf, batch).next_multiple_of(batch.max(1));
        let behind = || {
            format!("the first evaluation is at {first} samples, and all figures lie behind; add one at or before it")
        };
        let figures = &self.0.figures;
        let checked = figures.check(mlperf.submission.benchmark);
        let checked = checked.and_then(|()| figures.at(first).map(|_| ()).ok_or_else(behind));
        match (checked, &self.0.path) {
            (Ok(()), _) => Ok(Vec::new()),
            (Err(problem), Some(path)) => Err(FiguresError::Content { file: path.into(), problem }.into()),
            (Err(problem), None) => Err(SettingError { key: "hooks.benchmark.figures", problem }.into()),
        }
    }

    /// The distance of evaluations follows from the recipe, which only a call of [`Hook::run`] has.
    fn due(&self, _: u64, _: u64) -> bool {
        true
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        let Some(mlperf) = context.recipe.mlperf() else { return Ok(()) };
        let (benchmark, batch) = (mlperf.submission.benchmark, context.recipe.config().run.batch_size as u64);
        for name in self.0.named_metrics() {
            context.expect_metric("hooks.benchmark.metrics", name)?;
        }
        let every = self.distance(mlperf, batch);
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

#[cfg(test)]
mod tests {
    use crate::hooks::HookSettings;

    #[test]
    fn results_come_from_one_place_that_has_them() {
        let error = |text: &str| {
            let hooks: HookSettings = toml::from_str(text).unwrap();
            hooks.validate().unwrap_err().to_string()
        };
        let two = error("benchmark = { path = 'x', figures = [{ samples = 8, fid = 1, clip = 0.1 }] }");
        assert!(two.contains("`figures` and `path` are both there"), "{two}");
        assert!(error("benchmark = {}").contains("needs one of `figures`, `path` and `metrics`"));
        let alone = error("benchmark = { metrics = { fid = 'validation/loss', clip = 'loss' } }");
        assert!(
            alone.contains("`hooks.benchmark.metrics`: `validation/loss` is a number of [hooks.evaluate]"),
            "{alone}"
        );
        let evaluate = "evaluate = { path = 'x', every = 8, samples = 8 }\n";
        let other = error(&format!("{evaluate}target = {{ metric = 'validation/los', at_most = 1 }}"));
        assert!(other.contains("`hooks.target.metric`: `validation/los` is no number"), "{other}");
        let hooks: HookSettings = toml::from_str(&format!(
            "{evaluate}benchmark = {{ metrics = {{ fid = 'validation/loss', clip = 'loss' }} }}"
        ))
        .unwrap();
        assert!(hooks.validate().is_ok());
    }
}
