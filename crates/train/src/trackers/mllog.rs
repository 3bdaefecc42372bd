//! `mlperf_compliance.log`: the log of an MLPerf benchmark, which a recipe's table `[mlperf]` asks for.
//!
//! Each entry of the logs ends a block of training steps, as in the reference, and so does each evaluation. The results of
//! `[hooks.benchmark]` are the log's evaluations; with them the end of the run is its `run_stop`. Without that hook the kept
//! checkpoints are evaluated after training: a block ends at each of them, so that the log knows when it was reached, and
//! `run_stop` is for [`finish_offline`](calotype_mlperf::finish_offline) to write.

use super::{Event, RunOutcome, Tracker, TrackerError};
use crate::config::TrainingRecipe;
use crate::hooks::{EVALUATION, crossed};
use crate::mlperf::{LOG, MlperfSettings};
use crate::stages::StageContext;
use calotype_core::durable;
use calotype_mlperf::{Log, LogError, LogWriter, Metric, RunStatus, Settings, Value};
use std::path::Path;

/// Key of the lines that say where results come from; no rule knows it.
const ORIGIN: &str = "figures";

/// What the log of a run says, as far as it is known before the run begins.
#[derive(Clone, Debug)]
pub struct MllogPlan {
    mlperf: MlperfSettings,
    settings: Settings,
    /// Samples of an optimizer step, and between two checkpoints.
    batch: u64,
    checkpoint_every: u64,
    /// Where results come from; none where checkpoints are evaluated after training.
    origin: Option<&'static str>,
}

impl MllogPlan {
    /// For a run on `dataset` samples; `None` if its recipe asks for no log.
    pub fn of<R: TrainingRecipe>(recipe: &R, dataset: usize, context: &StageContext<'_>) -> Option<Self> {
        let mlperf = recipe.mlperf().filter(|mlperf| mlperf.enabled)?;
        let config = recipe.config();
        let precision = config.run.precision.resolve(context.device);
        Some(Self {
            mlperf: mlperf.clone(),
            settings: mlperf.settings(&config, dataset, context.collective.world(), precision)?,
            batch: config.run.batch_size as u64,
            checkpoint_every: config.run.checkpoint_every,
            origin: recipe.hooks().benchmark.as_ref().map(crate::hooks::BenchmarkSettings::origin),
        })
    }

    /// Whether a checkpoint is due after some samples.
    fn keeps(&self, samples: u64) -> bool {
        samples > 0 && crossed(samples.saturating_sub(self.batch), samples, self.checkpoint_every)
    }
}

/// Writes the log.
#[derive(Debug)]
pub struct Mllog {
    log: LogWriter,
    plan: MllogPlan,
    /// Samples that this process took up the run with.
    from: u64,
}

impl Mllog {
    /// Opens the log in the folder of a run that has seen `samples` samples, 0 for a new one. Lines of later ones are dropped.
    ///
    /// # Errors
    /// [`TrackerError::Mlperf`].
    pub fn open(folder: &Path, plan: &MllogPlan, samples: u64) -> Result<Self, TrackerError> {
        let mut log = LogWriter::open(&folder.join(LOG), &plan.mlperf.submission, samples)?;
        log.init_start(plan.mlperf.cache_cleared)?;
        Ok(Self { log, plan: plan.clone(), from: samples })
    }

    fn begin(&mut self, samples: u64) -> Result<(), LogError> {
        self.log.init_stop(&self.plan.settings)?;
        self.log.run_start()?;
        // The block goes on that the process before was in, also if it had no line yet.
        self.log.block_follows(self.log.last_samples())?;
        // That process may have been killed between the checkpoint and the line.
        match self.plan.keeps(samples) && self.log.block() != Some(samples) {
            true => self.end_block(samples),
            false => Ok(()),
        }
    }

    fn end_block(&mut self, samples: u64) -> Result<(), LogError> {
        self.log.block_stop(samples)?;
        self.log.block_follows(samples)
    }

    /// An entry of the logs. One that came early, at the end of a run that is ended again, is there already.
    fn training(&mut self, samples: u64, values: &[(&str, f64)]) -> Result<(), LogError> {
        let value = |name: &str| values.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        let (Some(loss), Some(rate)) = (value("loss"), value("learning_rate")) else { return Ok(()) };
        if samples == self.from {
            return Ok(());
        }
        self.log.training(samples, loss, rate)?;
        self.end_block(samples)
    }

    fn evaluation(&mut self, samples: u64, values: &[(&str, f64)]) -> Result<(), LogError> {
        // A run that was stopped in a hook makes the evaluation again if it is killed right behind it.
        if self.log.evaluated(samples) {
            return Ok(());
        }
        self.log.block_stop(samples)?;
        self.log.eval_start(samples)?;
        if let Some(origin) = self.plan.origin {
            self.log.other(ORIGIN, Value::from(origin), samples)?;
        }
        for (name, value) in values {
            if let Some(metric) = Metric::ALL.iter().find(|metric| metric.key() == *name) {
                self.log.eval_accuracy(*metric, *value)?;
            }
        }
        self.log.eval_stop()?;
        self.log.block_follows(samples)
    }

    /// The end of a run. What was stopped goes on one day.
    fn end(&mut self, samples: u64, outcome: RunOutcome) -> Result<(), TrackerError> {
        match (outcome, self.plan.origin) {
            (RunOutcome::Interrupted, _) | (RunOutcome::Failed, None) => {}
            (RunOutcome::Failed, Some(_)) => self.log.run_stop(RunStatus::Aborted, samples)?,
            (RunOutcome::Finished, Some(_)) => {
                let status = self.status()?;
                self.log.run_stop(status, samples)?;
            }
            (RunOutcome::Finished, None) => {
                self.log.block_stop(samples)?;
                let path = self.log.path();
                tracing::info!(
                    "{}: has no end yet; evaluate the kept checkpoints, then: calotype mlperf finish {} --scores FILE",
                    path.display(),
                    durable::parent_folder(path).display()
                );
            }
        }
        Ok(self.log.sync()?)
    }

    /// A success if an evaluation reached the targets. The log itself is asked, for an earlier process may have made it.
    fn status(&self) -> Result<RunStatus, TrackerError> {
        let path = self.log.path();
        let log = Log::read(path).map_err(|error| super::io_error(path, "read it", error.source))?;
        let reached = log.scores().iter().any(|scores| self.plan.mlperf.reached(&scores.results));
        Ok(if reached { RunStatus::Success } else { RunStatus::Aborted })
    }
}

impl Tracker for Mllog {
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
        match *event {
            Event::RunStart { samples, .. } => self.begin(samples)?,
            Event::Scalars { samples, values } => self.training(samples, values)?,
            Event::Evaluation { samples, name, values } if name == EVALUATION => self.evaluation(samples, values)?,
            Event::CheckpointSaved { samples, .. } if self.plan.keeps(samples) => self.end_block(samples)?,
            Event::RunEnd { samples, outcome } => self.end(samples, outcome)?,
            _ => {}
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), TrackerError> {
        Ok(self.log.sync()?)
    }
}
