//! The loss on samples that are not trained on.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, TrainingRecipe, check};
use crate::task::{BoxError, StepContext, Task};
use crate::trainer::TrainError;
use calotype_data::{Loader, LoaderConfig, OrderConfig, Shuffle, Source, source};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `[hooks.evaluate]`: the mean loss of the averaged weights, logged as `validation/loss`. What is random in a loss is
/// drawn as for the positions from 0 on, so that all evaluations of a run are comparable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSettings {
    /// The samples: a path, pattern or address as `data.path`.
    pub path: String,
    /// Samples seen between two evaluations.
    pub every: u64,
    /// Samples of one evaluation, from the first on; whole batches of `run.batch_size` are taken.
    pub samples: u64,
}

impl EvaluateSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.every > 0, "hooks.evaluate.every", || "must be at least 1".to_owned())?;
        check(self.samples > 0, "hooks.evaluate.samples", || "must be at least 1".to_owned())
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
    fn due(&self, before: u64, samples: u64) -> bool {
        crossed(before, samples, self.settings.every)
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        let (data, run) = (context.recipe.data(), context.recipe.config().run);
        let dataset = Arc::clone(&self.dataset);
        let order = OrderConfig { seed: run.seed, shuffle: Shuffle::Sequential, resampled: false };
        let order = Arc::new(dataset.order(&order)?);
        let collective = context.stage.collective;
        let batch = run.batch_size;
        let config = LoaderConfig {
            rank: collective.rank(),
            world: collective.world(),
            end: Some(self.settings.samples.next_multiple_of(batch as u64)),
            threads: data.threads,
            on_error: data.on_error.into(),
            ..LoaderConfig::new(batch)
        };
        let step = StepContext { collective, record: None };
        let mut sums = [0f32; 2];
        for batch in Loader::new(dataset, order, config, context.task.decoder(0..0))? {
            let loss = context.task.loss(context.model(), batch?, &step)?;
            sums[0] += loss.value.into_scalar::<f32>();
            sums[1] += 1.0;
        }
        collective.all_reduce_sum(&mut sums)?;
        context.log("validation", vec![("loss", f64::from(sums[0]) / f64::from(sums[1].max(1.0)))]);
        Ok(())
    }
}
