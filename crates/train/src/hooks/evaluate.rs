//! The loss on samples that are not trained on.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, TrainingRecipe, check};
use crate::task::{BoxError, StepContext, Task};
use crate::trainer::TrainError;
use calotype_collective::Local;
use calotype_core::system::format_count;
use calotype_data::{Batch, Loader, LoaderConfig, OrderConfig, Shuffle, Source, source};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// `[hooks.evaluate]`: the mean loss of the averaged weights, logged as `validation/loss`. What is random in a loss is
/// drawn as for the positions from 0 on, so that all evaluations of a run are comparable.
///
/// With `ranges`, each sample is looked at once in each of as many equal ranges of timesteps, with the same noise, at a
/// timestep that its position alone decides. The mean of each range is logged, too, as `validation/loss_0_250` for the
/// timesteps from 0 up to 250, and `validation/loss` is the mean of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSettings {
    /// The samples: a path, pattern or address as `data.path`.
    pub path: String,
    /// Samples seen between two evaluations.
    pub every: u64,
    /// Samples of one evaluation, from the first on; whole batches of `run.batch_size` are taken.
    pub samples: u64,
    /// Ranges of timesteps that are looked at one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<usize>,
}

impl EvaluateSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.every > 0, "hooks.evaluate.every", || "must be at least 1".to_owned())?;
        check(self.samples > 0, "hooks.evaluate.samples", || "must be at least 1".to_owned())?;
        check(self.ranges != Some(0), "hooks.evaluate.ranges", || "must be at least 1".to_owned())
    }

    /// Refuses ranges that a task, which has so many timesteps, does not have.
    pub(crate) fn check_ranges(&self, timesteps: Option<usize>) -> Result<(), SettingError> {
        let Some(ranges) = self.ranges else { return Ok(()) };
        check(timesteps.is_some_and(|timesteps| ranges <= timesteps), "hooks.evaluate.ranges", || match timesteps {
            Some(timesteps) => format!("is {ranges}, and there are {timesteps} timesteps"),
            None => "are ranges of timesteps, which runs of this kind do not have: leave this key out".to_owned(),
        })
    }
}

pub(super) struct Evaluate {
    settings: EvaluateSettings,
    dataset: Arc<dyn Source>,
}

impl Evaluate {
    /// Opens the samples: a path that is wrong must not be found out hours later.
    pub(super) fn open(settings: &EvaluateSettings, data: &DataSettings) -> Result<Self, TrainError> {
        Ok(Self { settings: settings.clone(), dataset: source::open(&settings.path, &data.source)? })
    }
}

impl<T: Task> Hook<T> for Evaluate {
    fn check(&self, recipe: &T::Recipe) -> Result<Vec<String>, TrainError> {
        let batch = recipe.config().run.batch_size as u64;
        let (taken, there) = (self.settings.samples.next_multiple_of(batch.max(1)), self.dataset.len() as u64);
        let [asked, taken_text, there_text] = [self.settings.samples, taken, there].map(format_count);
        let remark = format!(
            "hooks.evaluate.samples = {asked}: an evaluation looks at {taken_text} samples, whole batches, and repeats some, for {} has {there_text}",
            self.settings.path
        );
        Ok(if taken > there { vec![remark] } else { Vec::new() })
    }

    fn due(&self, before: u64, samples: u64) -> bool {
        crossed(before, samples, self.settings.every)
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        let (data, run) = (context.recipe.data(), context.recipe.config().run);
        let dataset = Arc::clone(&self.dataset);
        let order = OrderConfig { seed: run.seed, shuffle: Shuffle::Sequential, resampled: false };
        let order = Arc::new(dataset.order(&order)?);
        let collective = context.data_parallel;
        let batch = run.batch_size;
        let config = LoaderConfig {
            rank: collective.rank(),
            world: collective.world(),
            end: Some(self.settings.samples.next_multiple_of(batch as u64)),
            threads: data.threads,
            on_error: data.on_error.into(),
            ..LoaderConfig::new(batch)
        };
        if context.recipe.distributed().same_for_all_worlds() {
            let loader = Loader::new(dataset, order, config, context.task.evaluation_decoder())?;
            let Some(losses) = losses_of_parts(context, loader)? else { return Ok(()) };
            let mean = mean_in_order(&collective.all_gather(&losses)?, parts_of(context));
            context.log("validation", vec![("loss", mean)]);
            return Ok(());
        }
        let step = StepContext { collective, record: None };
        let ranges = self.settings.ranges.map_or_else(Vec::new, |count| ranges(context.task.timesteps(), count));
        // The sum of each range, or of all, and behind them the number of batches.
        let mut sums = vec![0f32; ranges.len().max(1) + 1];
        let (task, model) = (context.task, context.model());
        let part = (context.recipe.config().micro_batch() / collective.world()).max(1);
        let loss = |batch| loss_of(task, model, batch, part, &step);
        for batch in Loader::new(dataset, order, config, context.task.evaluation_decoder())? {
            if context.stop_asked()? {
                return Ok(());
            }
            let batch = batch?;
            for (sum, range) in sums.iter_mut().zip(&ranges) {
                let moved = task.at_timesteps(&batch, range.clone());
                *sum += loss(moved.ok_or("the loss has no timesteps")?)?;
            }
            if ranges.is_empty() {
                sums[0] += loss(batch)?;
            }
            *sums.last_mut().ok_or("there are no sums")? += 1.0;
        }
        collective.all_reduce_sum(&mut sums)?;
        context.log("validation", results(&sums, &ranges));
        Ok(())
    }
}

/// The loss of a batch. One that compares all samples has features of so many of them made at once, as training has.
fn loss_of<T: Task>(
    task: &T,
    model: &T::Model,
    batch: Batch<T::Item>,
    part: usize,
    step: &StepContext<'_>,
) -> Result<f32, BoxError> {
    let parts = if T::COMPARES_SAMPLES { batch.split(part) } else { vec![batch] };
    if let Some(compared) = task.compare(model, &parts, step)? {
        return Ok(compared.first().ok_or("the batch is empty")?.value);
    }
    let (mut sum, count) = (0.0, parts.len() as f32);
    for part in parts {
        sum += task.loss(model, part, step)?.value.into_scalar::<f32>();
    }
    Ok(sum / count)
}

/// Timesteps in so many ranges of as equal lengths as can be.
fn ranges(timesteps: Option<usize>, count: usize) -> Vec<Range<usize>> {
    let timesteps = timesteps.unwrap_or(0);
    (0..count).map(|part| part * timesteps / count..(part + 1) * timesteps / count).collect()
}

/// The means of sums over the batches, whose number is the last value.
fn results(sums: &[f32], ranges: &[Range<usize>]) -> Vec<(String, f64)> {
    let (count, sums) = sums.split_last().map_or((1.0, sums), |(count, sums)| (count.max(1.0), sums));
    let means = || sums.iter().map(|sum| f64::from(*sum) / f64::from(count));
    let mean = means().sum::<f64>() / sums.len().max(1) as f64;
    let named = ranges.iter().zip(means()).map(|(range, mean)| (format!("loss_{}_{}", range.start, range.end), mean));
    std::iter::once(("loss".to_owned(), mean)).chain(named).collect()
}

/// Parts of a batch that this process computes.
fn parts_of<T: Task>(context: &HookContext<'_, T>) -> usize {
    context.recipe.distributed().parts(&context.recipe.config()) / context.data_parallel.world()
}

/// The losses of this process's parts of all batches, each computed as one process alone would; none if a stop was asked for.
fn losses_of_parts<T: Task>(
    context: &mut HookContext<'_, T>,
    loader: Loader<T::Item>,
) -> Result<Option<Vec<f32>>, BoxError> {
    let step = StepContext { collective: &Local, record: None };
    let all = StepContext { collective: context.data_parallel, record: None };
    let config = context.recipe.config();
    let size = config.run.batch_size / context.recipe.distributed().parts(&config).max(1);
    let mut losses = Vec::new();
    for batch in loader {
        if context.stop_asked()? {
            return Ok(None);
        }
        let parts = batch?.split(size);
        if let Some(compared) = context.task.compare(context.model(), &parts, &all)? {
            losses.extend(compared.iter().map(|part| part.value));
            continue;
        }
        for part in parts {
            losses.push(context.task.loss(context.model(), part, &step)?.value.into_scalar::<f32>());
        }
    }
    Ok(Some(losses))
}

/// The mean of the losses of all processes, added up in the order of the samples: batch by batch, each rank's `parts` of it.
fn mean_in_order(all: &[Vec<f32>], parts: usize) -> f64 {
    let batches = all.first().map_or(0, |losses| losses.len() / parts.max(1));
    let of_batch = |batch: usize| all.iter().flat_map(move |losses| losses.iter().skip(batch * parts).take(parts));
    let (mut sum, mut count) = (0.0, 0.0f64);
    for loss in (0..batches).flat_map(of_batch) {
        sum += f64::from(*loss);
        count += 1.0;
    }
    sum / count.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_timesteps_and_are_named_by_their_ends() {
        assert_eq!(ranges(Some(1000), 4), [0..250, 250..500, 500..750, 750..1000]);
        assert_eq!(ranges(Some(10), 3), [0..3, 3..6, 6..10]);
        let found = results(&[2.0, 6.0, 2.0], &ranges(Some(10), 2));
        let named = |name: &str, value| (name.to_owned(), value);
        assert_eq!(found, [named("loss", 2.0), named("loss_0_5", 1.0), named("loss_5_10", 3.0)]);
        assert_eq!(results(&[3.0, 2.0], &[]), [named("loss", 1.5)]);
    }

    #[test]
    fn ranges_of_what_has_none_are_refused() {
        let settings: EvaluateSettings = toml::from_str("path = \"x\"\nevery = 1\nsamples = 1\nranges = 4").unwrap();
        assert!(settings.check_ranges(Some(1000)).is_ok());
        for (timesteps, problem) in [(Some(3), "there are 3 timesteps"), (None, "do not have")] {
            let error = settings.check_ranges(timesteps).unwrap_err();
            assert!(error.key == "hooks.evaluate.ranges" && error.problem.contains(problem), "{error}");
        }
    }

    #[test]
    fn losses_are_added_in_the_order_of_samples_whoever_has_them() {
        let all: Vec<f32> = (0..8).map(|i| 10f32.powi(i - 4)).collect();
        let one = mean_in_order(std::slice::from_ref(&all), 4);
        let two = mean_in_order(&[[&all[..2], &all[4..6]].concat(), [&all[2..4], &all[6..]].concat()], 2);
        assert_eq!(one.to_bits(), two.to_bits());
        assert_eq!(mean_in_order(&[vec![], vec![]], 1), 0.0);
    }
}
