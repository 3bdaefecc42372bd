//! The training loop that all tasks share.
//!
//! Progress is counted in samples. Everything random in a step is keyed by the positions of its samples, schedules are
//! functions of the samples seen, and a checkpoint holds weights, average, moments and the running sums of the logs; so
//! a run that was killed and resumed ends in the same bits as one that was not.
//!
//! Of several processes ([`calotype_collective`]) each computes its part of every batch, gradients are summed while the
//! backward pass goes on, all take the same steps with the mean, and the first one writes. Where neighbours compute the layers of
//! the network together (`grid.rs`), each group of them does what a process does otherwise.

mod averages;
mod dataset;
mod error;
mod gathering;
mod gradients;
mod grid;
mod places;
mod ranks;
mod recorded;
mod report;
mod resume;
mod sharding;
#[cfg(test)]
mod tests;
mod watch;

pub use error::TrainError;
pub use resume::first_difference;
pub(crate) use resume::{Claim, Left, check_from, check_inputs, claim, left_by, refuse_other};
pub use watch::{OnNonFinite, WatchSettings};

use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, LazyTensor, module_tensors};
use crate::config::{EmaSettings, TrainConfig, TrainingRecipe, check};
use crate::hooks::{self, Found, Hook, HookContext, HookRun, LazyModel};
use crate::optim::{NotFinite, Optimizer, Position, StepGradients, Stepping};
use crate::record::{Recording, StepFigures, StepRecord};
use crate::sources::open_source;
use crate::stages::{Recipe, StageContext};
use crate::task::{BoxError, Loss, PartLoss, StepContext, Task};
use crate::trackers::{Event, MllogPlan, RunOutcome};
use crate::trainable::{Trainable, WholeModel};
use burn::module::Module;
use calotype_collective::{Collective, Counters, Local};
use calotype_core::progress::{Progress, format_number};
use calotype_core::system::{counted, format_count};
use calotype_data::{Batch, Loader, LoaderConfig, Source};
use calotype_models::state;
use calotype_ops::in_backward::{Uses, count_uses};
use gathering::Gathering;
use gradients::{Exchange, Losses};
use grid::Grid;
use report::Reporter;
use serde::{Deserialize, Serialize};
use sharding::Shards;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use watch::{Leap, Measure, Pace, Watched};

/// Figures of a finished training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSummary {
    /// Samples trained on.
    pub samples_seen: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Mean loss of the first entry in the logs; of the first step, if the logs have one entry.
    pub loss_first: f64,
    /// Mean loss of the last entry in the logs; of the last step, if the logs have one entry.
    pub loss_last: f64,
    /// Wall-clock seconds over all restarts.
    pub seconds: f64,
    /// Corrupt samples that were replaced by others.
    pub samples_skipped: u64,
    /// Updates that were not finite and were left out (`[watch]`).
    #[serde(default, skip_serializing_if = "crate::config::is_usual")]
    pub updates_skipped: u64,
    /// The target that ended the run before all samples were seen (`[hooks.target]`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// How a training ended.
#[derive(Debug)]
pub enum Outcome<M> {
    /// All samples seen, or the target reached; the model has the averaged weights, where the recipe averages. It is whole at the
    /// first process; at those that compute layers together with others, it is their part.
    Finished(M, TrainingSummary),
    /// Stopped on request, with everything saved.
    Interrupted {
        /// Samples seen.
        samples: u64,
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
}

/// Everything of a checkpoint that is not a tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunState {
    steps: u64,
    /// Sum and number of the losses since the last entry in the logs.
    loss_sum: f64,
    loss_count: u64,
    loss_first: Option<f64>,
    loss_last: f64,
    /// Losses of the run's first step and of its last one; absent in runs of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    steps_first: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    steps_last: Option<f64>,
    seconds: f64,
    skipped: u64,
    /// The target that was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// What the last entry of the logs, which comes early at a run's end, has taken: a run that is extended goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unlogged: Option<Unlogged>,
    /// What `[watch]` has seen.
    #[serde(default, skip_serializing_if = "crate::config::is_usual")]
    watched: Watched,
    /// The hook in which the run was stopped: it and those behind it are still to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stopped_in: Option<StoppedHook>,
}

/// A hook that was left before its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoppedHook {
    hook: String,
    /// The newest numbers of the logs, at which hooks look.
    metrics: BTreeMap<String, f64>,
}

/// Losses since the last regular entry in the logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unlogged {
    loss_sum: f64,
    loss_count: u64,
    loss_first: Option<f64>,
}

pub(crate) const MODEL: &str = "model.";
const CHECKPOINT_PREFIX: &str = "checkpoint";
/// Folder of a run's checkpoints, inside the run's own.
pub const CHECKPOINTS: &str = "checkpoints";
/// File name of the record of the encoders that a run depends on.
pub const ENCODERS: &str = "encoders.json";
/// File name of the recipe beside a run.
pub const RECIPE: &str = calotype_core::folders::RECIPE;

/// Trains a task's whole model, resuming where an earlier process was stopped or killed.
///
/// `model` must be on a device with autodiff and have its initial weights.
///
/// # Errors
/// [`TrainError`]; the last complete checkpoint stays.
pub fn train<T: Task>(
    task: &T,
    model: T::Model,
    recipe: Recipe<'_, T::Recipe>,
    context: &StageContext<'_>,
) -> Result<Outcome<T::Model>, TrainError> {
    let mut grid = Grid::of(recipe.value, context)?;
    let model = grid.part_of(task, model);
    train_in(&grid, task, &WholeModel, model, recipe, context)
}

/// [`train`] with another choice of what is trained ([`Trainable`]): `parameters` are its initial ones.
///
/// # Errors
/// As [`train`]; of processes that compute layers together (`distributed.tensor_parallel`).
pub fn train_with<T: Task, A: Trainable<T::Model>>(
    task: &T,
    trainable: &A,
    parameters: A::Parameters,
    recipe: Recipe<'_, T::Recipe>,
    context: &StageContext<'_>,
) -> Result<Outcome<T::Model>, TrainError> {
    let grid = Grid::of(recipe.value, context)?;
    grid.refuse_adapters()?;
    train_in(&grid, task, trainable, parameters, recipe, context)
}

/// [`train_with`] by the processes of a grid.
fn train_in<T: Task, A: Trainable<T::Model>>(
    grid: &Grid<'_>,
    task: &T,
    trainable: &A,
    parameters: A::Parameters,
    recipe: Recipe<'_, T::Recipe>,
    context: &StageContext<'_>,
) -> Result<Outcome<T::Model>, TrainError> {
    // Shards were compared with their checksums when the stage began.
    let dataset = open_source(recipe.value.data(), None)?;
    let reporter = Reporter::new(context, MllogPlan::of(recipe.value, dataset.len(), context));
    let outcome = run_to_an_end((grid, task, trainable), parameters, recipe, dataset, &reporter, context);
    if outcome.is_err() {
        reporter.fail();
    }
    outcome
}

/// [`train_in`], without the event of a failure.
fn run_to_an_end<T: Task, A: Trainable<T::Model>>(
    (grid, task, trainable): (&Grid<'_>, &T, &A),
    parameters: A::Parameters,
    recipe: Recipe<'_, T::Recipe>,
    dataset: Arc<dyn Source>,
    reporter: &Reporter<'_>,
    context: &StageContext<'_>,
) -> Result<Outcome<T::Model>, TrainError> {
    let collective = context.collective;
    ranks::check_same_recipe(collective, context.folder, recipe.text)?;
    let mut run = ranks::first_then_others(collective, || {
        check_inputs(context, recipe.value, dataset.as_ref(), task.encoders())?;
        let run = Run::open((grid, task, trainable), parameters, recipe, reporter, context)?;
        resume::record_encoders(context.folder, dataset.as_ref(), task.encoders())?;
        if collective.is_first() {
            dataset::record(context.folder, dataset.as_ref())?;
        }
        Ok(run)
    })?;
    ranks::check_alike(collective, context.folder, dataset.len(), run.samples)?;
    for (reason, samples) in dataset.left_out() {
        run.progress.message(&format!("{}: left out: {}: {reason}", T::KIND, counted(samples as u64, "sample")));
    }
    let idle = recipe.value.distributed().idle(collective.world());
    for remark in remarks(&run.config, dataset.len(), collective.world()).into_iter().chain(idle) {
        run.progress.message(&format!("{}: {remark}", T::KIND));
    }
    let mut hooks = hooks::open_all::<T>(recipe.value)?;
    for remark in hooks::check_all(&hooks, recipe.value)? {
        run.progress.message(&format!("{}: {remark}", T::KIND));
    }
    for HookRun { name, hook } in &hooks {
        let begun = hook.begin(context);
        begun.map_err(|source| TrainError::Hook { hook: name, samples: run.samples, source })?;
    }
    if let Some(StoppedHook { hook, metrics }) = run.state.stopped_in.take() {
        run.metrics = metrics;
        run.replaces = true;
        if !run.follow_step(&mut hooks, Some(&hook))? {
            return run.interrupt();
        }
    }
    let mut loader = run.loader(dataset)?;
    while run.state.target.is_none() {
        let asked = Instant::now();
        let parts = run.next_parts(&mut loader)?;
        run.pace.wait(asked.elapsed());
        if parts.is_empty() {
            break;
        }
        if hooks::stop_asked(context)? {
            return run.interrupt();
        }
        run = run.step(parts)?;
        reporter.seen(run.samples);
        run.skipped_here = loader.skipped();
        if !run.follow_step(&mut hooks, None)? {
            return run.interrupt();
        }
    }
    run.finish()
}

struct Run<'a, T: Task, A: Trainable<T::Model>> {
    grid: &'a Grid<'a>,
    task: &'a T,
    trainable: &'a A,
    parameters: A::Parameters,
    /// Numbers in all of them.
    parameter_count: usize,
    optimizer: Optimizer,
    /// Sums gradients over processes, or over parts as processes would.
    exchange: Option<Exchange<'a>>,
    /// Who keeps which part of the optimizer's state, if it is shared out.
    shards: Option<Shards<'a>>,
    recipe: Recipe<'a, T::Recipe>,
    config: TrainConfig<'a>,
    context: &'a StageContext<'a>,
    store: CheckpointStore,
    /// Whether the checkpoint of the present samples, if there is one, is of a state that has gone on: the run was stopped in a hook.
    replaces: bool,
    reporter: &'a Reporter<'a>,
    progress: Progress,
    recording: Option<Recording<'a>>,
    state: RunState,
    /// Corrupt samples that earlier processes replaced, and this one.
    skipped_before: u64,
    skipped_here: u64,
    samples: u64,
    /// Positions whose samples are counted for the task's notices.
    counted: Range<u64>,
    /// Whether the run has seen others: before it was stopped, and too many to see all of them again.
    counts_part: bool,
    /// Whether it was said that the loss has risen.
    rise_said: bool,
    started: Instant,
    /// Seconds of earlier processes.
    seconds_before: f64,
    /// Where the time of the current entry of the logs goes.
    pace: Pace,
    measure: Measure,
    /// What communication had cost when the current entry of the logs began.
    communicated: Counters,
    /// The newest number of each name, for hooks.
    metrics: BTreeMap<String, f64>,
}

/// What the forward and backward passes of a step gave.
struct Passes {
    gradients: StepGradients,
    loss: MeanLoss,
    records: Vec<StepRecord>,
}

impl<'a, T: Task, A: Trainable<T::Model>> Run<'a, T, A> {
    fn open(
        (grid, task, trainable): (&'a Grid<'a>, &'a T, &'a A),
        parameters: A::Parameters,
        recipe: Recipe<'a, T::Recipe>,
        reporter: &'a Reporter<'a>,
        context: &'a StageContext<'a>,
    ) -> Result<Self, TrainError> {
        let config = TrainConfig { groups: task.groups(), ..recipe.value.config() };
        let store = CheckpointStore::open(context.folder.join(CHECKPOINTS), CHECKPOINT_PREFIX)?;
        let before = resume::claim_folder(context.folder, recipe, context.extend)?;
        let mut optimizer = Optimizer::new(&parameters, &config)?;
        let parameters = optimizer.freeze(parameters);
        let (collective, distributed) = (context.collective, recipe.value.distributed());
        let sizes = optimizer.trained_sizes();
        check(sizes.iter().any(Option::is_some), "optimizer.groups", || {
            "freezes every parameter: nothing is left to train; name the frozen ones more closely".to_owned()
        })?;
        let exchange = Exchange::new(grid.data(), distributed, distributed.parts(&config), sizes);
        let shards = (distributed.shard_optimizer && grid.data().world() > 1)
            .then(|| Shards::of(grid.data(), context.device, &mut optimizer));
        let newest = store.newest()?;
        if newest.is_none() {
            store.preflight(checkpoint_bytes(grid.parameters(parameters.num_params()), &config))?;
        }
        let total = end_of(&config);
        let checkpoint = resume::beginning(context.folder, context.from, newest)?;
        let (parameters, mut state, samples) = match &checkpoint {
            Some(checkpoint) => restore(grid, parameters, &mut optimizer, checkpoint)?,
            None => (parameters, RunState::default(), 0),
        };
        // Entries of the logs that are kept: all but one that came early.
        let kept = match state.unlogged.take().filter(|_| samples < total) {
            Some(Unlogged { loss_sum, loss_count, loss_first }) => {
                (state.loss_sum, state.loss_count, state.loss_first) = (loss_sum, loss_count, loss_first);
                samples.saturating_sub(1)
            }
            None => samples,
        };
        let recording = match context.record {
            Some(_) if samples > 0 => {
                return Err(TrainError::RecordBegun { folder: context.folder.to_owned(), samples });
            }
            Some(options) => {
                let initial = trainable.with_model(&parameters, state::collect);
                Some(Recording::begin(options, initial))
            }
            None => None,
        };
        let mut progress = progress_of(T::KIND, total, collective).starting_at(samples);
        if samples > 0 {
            progress.message(&format!("{}: resumed at {samples} of {total} samples", T::KIND));
        }
        if let Some(before) = before.filter(|_| samples > 0) {
            progress.message(&format!("{}: {}", T::KIND, extension(&config, before, samples)));
        }
        if recipe.value.hooks().preview.is_some() && recipe.value.trackers().tensorboard {
            let folder = context.folder.display();
            progress.message(&format!("{}: previews are shown by TensorBoard: tensorboard --logdir {folder}", T::KIND));
        }
        if collective.is_first() {
            for text in recorded::missing(context.folder, recipe.value, resume::begun_at(context.folder)?, samples) {
                progress.message(&format!("{}: {text}", T::KIND));
            }
        }
        let now = Instant::now();
        reporter.begin(recipe.value.trackers(), samples, kept, recipe.text)?;
        let measure = measure(task, recipe.value, context);
        Ok(Self {
            reporter,
            skipped_before: state.skipped,
            skipped_here: 0,
            counted: samples..total,
            counts_part: false,
            rise_said: false,
            seconds_before: state.seconds,
            started: now,
            pace: Pace::at(samples),
            measure,
            communicated: collective.counters(),
            metrics: BTreeMap::new(),
            grid,
            task,
            trainable,
            parameter_count: parameters.num_params(),
            parameters,
            optimizer,
            exchange,
            shards,
            recipe,
            config,
            context,
            store,
            replaces: false,
            progress,
            recording,
            state,
            samples,
        })
    }

    fn batch_size(&self) -> u64 {
        self.config.run.batch_size as u64
    }

    fn loader(&mut self, dataset: Arc<dyn Source>) -> Result<Loader<T::Item>, TrainError> {
        let data = self.recipe.value.data();
        let epoch = dataset.len() as u64;
        self.counted = counted_once(self.samples, end_of(&self.config), epoch);
        self.counts_part = self.samples > 0 && self.counted.end - self.counted.start < epoch;
        let order = Arc::new(dataset.order(&data.order(self.config.run.seed))?);
        let config = LoaderConfig {
            rank: self.grid.data().rank(),
            world: self.grid.data().world(),
            start: self.samples,
            end: Some(end_of(&self.config)),
            threads: data.threads,
            on_error: data.on_error.into(),
            ..LoaderConfig::new(if self.takes_whole_parts() {
                self.config.run.batch_size
            } else {
                self.config.micro_batch()
            })
        };
        Ok(Loader::new(dataset, order, config, self.task.decoder(self.counted.clone()))?)
    }

    /// Whether each process takes whole parts of a batch, and not its share of each.
    fn takes_whole_parts(&self) -> bool {
        self.recipe.value.distributed().same_for_all_worlds()
    }

    /// This process's parts of the next batch; none at the end of the run.
    fn next_parts(&self, loader: &mut Loader<T::Item>) -> Result<Vec<Batch<T::Item>>, TrainError> {
        if self.takes_whole_parts() {
            let batch = loader.next().transpose()?;
            let part = self.config.run.batch_size / self.recipe.value.distributed().parts(&self.config).max(1);
            return Ok(batch.map_or_else(Vec::new, |batch| batch.split(part)));
        }
        Ok(loader.by_ref().take(self.config.optimizer.accumulate).collect::<Result<_, _>>()?)
    }

    /// Whether the step just done passed a multiple of `every` samples.
    fn crossed(&self, every: u64) -> bool {
        hooks::crossed(self.samples - self.batch_size(), self.samples, every)
    }

    /// Whether the step just done is followed by a checkpoint.
    fn wants_checkpoint(&self) -> bool {
        let run = self.config.run;
        self.crossed(run.checkpoint_every) || run.keeps(self.samples)
    }

    /// Whether the step just done was the last one.
    fn is_complete(&self) -> bool {
        self.state.target.is_some() || self.samples >= end_of(&self.config)
    }

    /// A step on the parts of a batch.
    fn step(mut self, parts: Vec<Batch<T::Item>>) -> Result<Self, TrainError> {
        let begun = Instant::now();
        let stepped;
        (self, stepped) = match self.stepping() {
            Stepping::AfterBackward => self.step_after_backward(parts)?,
            stepping => self.step_in_backward(parts, stepping)?,
        };
        self.pace.step(begun.elapsed());
        let (norm, parts) = match stepped {
            Stepped::Done(loss, norm) => {
                self.count(loss.value(), norm)?;
                (norm, loss.parts())
            }
            Stepped::LeftOut(what) => {
                self.tell_left_out(&what)?;
                (None, Vec::new())
            }
        };
        if self.crossed(self.config.run.log_every) {
            self.log(norm, &parts)?;
        }
        Ok(self)
    }

    /// Takes up the figures of a step.
    fn count(&mut self, loss: f64, norm: Option<f64>) -> Result<(), TrainError> {
        self.state.loss_sum += loss;
        self.state.loss_count += 1;
        self.state.steps_last = Some(loss);
        if self.samples == self.batch_size() {
            self.state.steps_first = Some(loss);
        }
        self.progress.set(self.samples, &[("loss", loss)]);
        let recipe = self.recipe.value;
        let Some(settings) = recipe.watch() else { return Ok(()) };
        let leaps = self.state.watched.look(settings, loss, norm);
        leaps.iter().try_for_each(|leap| self.tell_leap(leap))
    }

    fn tell_leap(&mut self, leap: &Leap) -> Result<(), TrainError> {
        let Leap { what, name, value, median, z, goes_on } = leap;
        if !goes_on {
            let [value, median] = [value, median].map(|number| format_number(*number));
            self.progress.message(&format!(
                "{}: after {} samples the {what} is {value}, {z:.1} standard deviations above its median of late, {median}",
                T::KIND,
                self.samples
            ));
        }
        self.note(&[(name, *z)])
    }

    fn tell_left_out(&mut self, what: &str) -> Result<(), TrainError> {
        let skipped = self.state.watched.skipped;
        self.progress.message(&format!(
            "{}: {what} is not finite: the update after {} samples is left out ({skipped} in all)",
            T::KIND,
            self.samples
        ));
        self.note(&[("watch/skipped_updates", skipped as f64)])
    }

    fn stepping(&self) -> Stepping {
        let alone = self.recording.is_none() && self.exchange.is_none() && self.grid.neighbours().is_none();
        // What may be left out must be known as a whole before it changes a weight.
        let whole = self.recipe.value.watch().is_some_and(|watch| watch.on_non_finite == OnNonFinite::Skip);
        match alone && !whole && calotype_ops::uses_kernels(self.context.device) {
            true => self.config.optimizer.stepping(self.parameter_count),
            false => Stepping::AfterBackward,
        }
    }

    /// What a loss that compares all samples of a batch says of each of this process's parts; nothing of other losses.
    fn compared(&self, parts: &[Batch<T::Item>]) -> Result<Vec<Option<PartLoss>>, TrainError> {
        let step = StepContext { collective: self.grid.data(), record: None };
        let found = match T::COMPARES_SAMPLES {
            true => self.trainable.with_model(&self.parameters, |model| self.task.compare(model, parts, &step)),
            false => Ok(None),
        };
        self.grid.check_passes()?;
        let found = found.map_err(|source| TrainError::Loss { samples: self.samples, source })?;
        Ok(found.map_or_else(|| parts.iter().map(|_| None).collect(), |found| found.into_iter().map(Some).collect()))
    }

    /// The loss of a part of a batch, of which a comparison may have said something.
    fn loss(
        &self,
        batch: Batch<T::Item>,
        compared: Option<&PartLoss>,
        record: Option<&StepRecord>,
    ) -> Result<Loss, TrainError> {
        // A whole part is computed as one process alone would.
        let collective = if self.takes_whole_parts() { &Local } else { self.grid.data() };
        let step = StepContext { collective, record };
        let computed = self.trainable.with_model(&self.parameters, |model| match compared {
            Some(part) => self.task.part_loss(model, batch, part, &step),
            None => self.task.loss(model, batch, &step),
        });
        self.grid.check_passes()?;
        computed.map_err(|source| TrainError::Loss { samples: self.samples, source })
    }

    /// Forward and backward passes of all parts of a batch; loss and gradient are means over the parts.
    fn passes(&self, batch: Vec<Batch<T::Item>>) -> Result<Passes, TrainError> {
        let mut sum: Option<StepGradients> = None;
        let (mut mean, mut records) = (MeanLoss::default(), Vec::new());
        for (compared, part) in self.compared(&batch)?.into_iter().zip(batch) {
            let record = self.recording.is_some().then(StepRecord::default);
            let weight = part.items.len() as f64;
            let Loss { value, parts } = self.loss(part, compared.as_ref(), record.as_ref())?;
            let number = f64::from(value.clone().inner().into_scalar::<f32>());
            let mut gradients = value.backward();
            drop(value);
            self.grid.check_passes()?;
            mean.add(number, parts, weight);
            let gradients = self.optimizer.gradients(&self.parameters, &mut gradients, weight);
            match &mut sum {
                None => sum = Some(gradients),
                Some(sum) => sum.add(gradients),
            }
            records.extend(record);
        }
        let empty = || TrainError::Loss { samples: self.samples, source: "the batch is empty".into() };
        Ok(Passes { gradients: sum.ok_or_else(empty)?, loss: mean, records })
    }

    /// The passes of this process's parts of a batch, whose gradients are summed over all processes meanwhile; loss and gradient
    /// are means over all of them.
    fn passes_together(
        mut self,
        mut exchange: Exchange<'a>,
        batch: Vec<Batch<T::Item>>,
    ) -> Result<(Self, Passes), TrainError> {
        let samples = batch.first().map_or(0, |part| part.items.len()) as f64;
        let compared = self.compared(&batch)?;
        let mut handing = exchange.start()?;
        let (mut losses, mut records) = (Losses::default(), Vec::new());
        for (compared, part) in compared.into_iter().zip(batch) {
            let record = self.recording.is_some().then(StepRecord::default);
            let (computed, uses) = count_uses(|| self.loss(part, compared.as_ref(), record.as_ref()));
            let Loss { value, parts } = computed?;
            losses.push(f64::from(value.clone().inner().into_scalar::<f32>()), parts);
            if calotype_ops::uses_kernels(self.context.device) {
                (self.parameters, handing) = self.optimizer.hand_in_backward(self.parameters, (value, uses), handing);
            } else {
                let mut gradients = value.backward();
                let gradients = self.optimizer.gradients(&self.parameters, &mut gradients, samples).into_values();
                for (parameter, gradient) in gradients.into_iter().enumerate().rev() {
                    gradient.into_iter().for_each(|gradient| handing.hand(parameter, gradient));
                }
            }
            self.grid.check_passes()?;
            handing.end_part()?;
            records.extend(record);
        }
        let device = self.context.device;
        let (gradients, loss) =
            exchange.finish(handing, &losses, samples, device).map_err(|source| self.of_processes(source))?;
        self.exchange = Some(exchange);
        Ok((self, Passes { gradients, loss, records }))
    }

    /// What went wrong between processes.
    fn of_processes(&self, source: BoxError) -> TrainError {
        match source.downcast() {
            Ok(error) => TrainError::Collective(*error),
            Err(source) => TrainError::Loss { samples: self.samples, source },
        }
    }

    /// The passes, then the optimizer step; gives loss and norm of the gradient.
    fn step_after_backward(mut self, batch: Vec<Batch<T::Item>>) -> Result<(Self, Stepped), TrainError> {
        let passes;
        (self, passes) = match self.exchange.take() {
            Some(exchange) => self.passes_together(exchange, batch)?,
            None => {
                let passes = self.passes(batch)?;
                (self, passes)
            }
        };
        let Passes { gradients, loss, records } = passes;
        let mut squares = self.optimizer.squares(&gradients);
        self.grid.add_up(&mut squares)?;
        let norm = match self.optimizer.norm_of(&squares, &gradients) {
            Ok(norm) if loss.value().is_finite() => norm,
            norm => {
                let what = self.leave_out(loss.value(), norm.err())?;
                return Ok((self, Stepped::LeftOut(what)));
            }
        };
        self.samples += self.batch_size();
        self.parameters = self.optimizer.step(self.parameters, gradients, &self.config, self.samples, norm);
        if let Some(shards) = &self.shards {
            self.parameters = shards.shared(self.parameters)?;
        }
        if let Some(recording) = &mut self.recording {
            let learning_rate = learning_rate(&self.config, self.samples);
            recording.step(records, StepFigures { loss: loss.value(), learning_rate, gradient_norm: norm });
        }
        if self.recording.as_ref().is_some_and(Recording::is_complete) {
            self.finish_recording()?;
        }
        Ok((self, Stepped::Done(loss, Some(norm))))
    }

    /// The backward pass with the optimizer step in it, for batches of one part. In the least memory, the norm is measured, and
    /// gradients are checked, where the logs want it; in between, a gradient that is not finite shows in the next loss.
    fn step_in_backward(
        mut self,
        batch: Vec<Batch<T::Item>>,
        stepping: Stepping,
    ) -> Result<(Self, Stepped), TrainError> {
        let mut mean = MeanLoss::default();
        let mut norm = None;
        for part in batch {
            let weight = part.items.len() as f64;
            let (computed, uses): (_, Uses) = stepping.pass(|| count_uses(|| self.loss(part, None, None)));
            let Loss { value, parts } = computed?;
            mean.add(f64::from(value.clone().inner().into_scalar::<f32>()), parts, weight);
            if !mean.value().is_finite() {
                return Err(self.not_finite(mean.value()));
            }
            self.samples += self.batch_size();
            let lean = stepping == (Stepping::InBackward { lean: true });
            let measure = !lean || self.crossed(self.config.run.log_every);
            let measured;
            (self.parameters, measured) = stepping.pass(|| {
                self.optimizer.step_in_backward(self.parameters, (value, uses), &self.config, self.samples, measure)
            });
            norm = measured.map_err(|bad| self.diverged(bad.what))?;
        }
        Ok((self, Stepped::Done(mean, norm)))
    }

    fn finish_recording(&mut self) -> Result<(), TrainError> {
        let Some(recording) = self.recording.take() else { return Ok(()) };
        let last = self.trainable.with_model(&self.parameters, state::collect);
        let metadata = [("kind", T::KIND), ("recipe", self.recipe.text)];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(recording.finish(last, metadata)?)
    }

    /// Counts a step without an update, where the recipe leaves out those that are not finite; gives the tensor's name.
    fn leave_out(&mut self, loss: f64, gradient: Option<NotFinite>) -> Result<String, TrainError> {
        if let Some(parameter) = self.broken_parameter() {
            // No later step makes it finite again.
            return Err(self.diverged(format!("parameter `{parameter}`")));
        }
        let what = gradient.map_or_else(|| format!("the loss ({loss})"), |gradient| gradient.what);
        if !self.state.watched.skip(self.recipe.value.watch()) {
            return Err(self.diverged(what));
        }
        self.samples += self.batch_size();
        Ok(what)
    }

    fn not_finite(&self, loss: f64) -> TrainError {
        self.diverged(match self.broken_parameter() {
            Some(parameter) => format!("parameter `{parameter}`"),
            None => format!("the loss ({loss})"),
        })
    }

    /// The first parameter that is not finite.
    fn broken_parameter(&self) -> Option<String> {
        let parameters = state::collect(&self.parameters);
        let broken = parameters.into_iter().find(|tensor| tensor.values.iter().any(|value| !value.is_finite()));
        broken.map(|parameter| parameter.name)
    }

    fn diverged(&self, what: String) -> TrainError {
        let kept = match self.store.list().ok().and_then(|mut all| all.pop()) {
            Some((samples, path)) => format!("the checkpoint of {samples} samples is kept in {}", path.display()),
            None => "there was no checkpoint yet".to_owned(),
        };
        let advice = format!("{kept}; {}", remedies(self.gradient_clip()));
        TrainError::NotFinite { stage: T::KIND.to_owned(), what, samples: self.samples, advice }
    }

    fn log(&mut self, gradient_norm: Option<f64>, parts: &[(&'static str, f64)]) -> Result<(), TrainError> {
        let mut values = Vec::new();
        // Without a loss, all updates since the last entry were left out.
        if self.state.loss_count > 0 {
            values.push(("loss", self.mean_loss()));
        }
        values.push(("learning_rate", learning_rate(&self.config, self.samples)));
        values.extend(gradient_norm.map(|norm| ("gradient_norm", norm)));
        values.extend_from_slice(parts);
        values.extend(self.pace.take(self.samples, self.measure));
        if self.context.collective.world() > 1 {
            let counters = self.context.collective.counters();
            let cost = counters.since(&std::mem::replace(&mut self.communicated, counters));
            values.push(("communication_seconds", cost.communicating.as_secs_f64()));
            values.push(("communication_waiting_seconds", cost.waiting.as_secs_f64()));
        }
        self.note(&values)
    }

    /// The mean loss since the last entry in the logs; the next one begins.
    fn mean_loss(&mut self) -> f64 {
        let state = &mut self.state;
        let loss = state.loss_sum / state.loss_count as f64;
        (state.loss_sum, state.loss_count) = (0.0, 0);
        let first = *state.loss_first.get_or_insert(loss);
        state.loss_last = loss;
        if has_risen(first, loss) && !std::mem::replace(&mut self.rise_said, true) {
            self.warn_of_rise(first, loss);
        }
        loss
    }

    /// The largest norm of a gradient by the recipe; 0 if there is no limit.
    fn gradient_clip(&self) -> f64 {
        self.recipe.value.config().optimizer.gradient_clip
    }

    /// Says that the run does not learn, which the logs show and nobody may look at.
    fn warn_of_rise(&mut self, first: f64, loss: f64) {
        let remedies = remedies(self.gradient_clip());
        self.progress.message(&format!(
            "{}: after {} samples the loss is {}, and it was {} at first: the run diverges; {remedies}",
            T::KIND,
            self.samples,
            format_number(loss),
            format_number(first)
        ));
    }

    /// Records numbers, and keeps them for hooks.
    fn note(&mut self, values: &[(&str, f64)]) -> Result<(), TrainError> {
        self.metrics.extend(values.iter().map(|(name, value)| ((*name).to_owned(), *value)));
        Ok(self.reporter.tell(&Event::Scalars { samples: self.samples, values })?)
    }

    /// What comes behind a step: hooks (from `first` on, where it is named), snapshots, the checkpoint. False if the run was stopped in
    /// a hook.
    fn follow_step(&mut self, hooks: &mut [HookRun<T>], first: Option<&str>) -> Result<bool, TrainError> {
        if !self.call_hooks(hooks, first)? {
            return Ok(false);
        }
        self.keep_averages()?;
        // The last checkpoint is saved behind the last entry of the logs.
        if (self.wants_checkpoint() || self.replaces) && !self.is_complete() {
            self.save()?;
        }
        Ok(true)
    }

    /// Saves, and leaves a run that goes on one day.
    fn interrupt(mut self) -> Result<Outcome<T::Model>, TrainError> {
        let checkpoint = self.save()?;
        self.reporter.end(self.samples, RunOutcome::Interrupted)?;
        Ok(Outcome::Interrupted { samples: self.samples, checkpoint })
    }

    /// Runs the hooks that are due, in the order of their table; what they found is logged before the next one runs. False if one
    /// was left because of a stop.
    fn call_hooks(&mut self, hooks: &mut [HookRun<T>], first: Option<&str>) -> Result<bool, TrainError> {
        let (before, samples) = (self.samples - self.batch_size(), self.samples);
        let begin = hooks.iter().position(|run| Some(run.name) == first).unwrap_or(0);
        for HookRun { name, hook } in hooks[begin..].iter_mut().filter(|run| run.hook.due(before, samples)) {
            let found = self.run_hook(hook.as_mut());
            let found = found.map_err(|source| TrainError::Hook { hook: name, samples, source })?;
            if found.stopped {
                // What is not finite has no place in JSON, and reaches no target.
                let finite = self.metrics.iter().filter(|(_, value)| value.is_finite());
                let metrics = finite.map(|(name, value)| (name.clone(), *value)).collect();
                self.state.stopped_in = Some(StoppedHook { hook: (*name).to_owned(), metrics });
                return Ok(false);
            }
            self.note_found(found)?;
        }
        Ok(true)
    }

    fn run_hook(&self, hook: &mut dyn Hook<T>) -> Result<Found, BoxError> {
        // Processes that have parts of the average make the whole together, whether this one's hook looks at it or not.
        let together = match &self.shards {
            Some(shards) => Some(shards.averaged(&self.parameters, &self.optimizer)?),
            None => None,
        };
        let of_process = || {
            let parameters = together.clone().unwrap_or_else(|| self.optimizer.averaged(&self.parameters));
            self.trainable.model_of(parameters)
        };
        // Likewise the whole of parts.
        let whole = match hook.wants_whole_model() && self.grid.neighbours().is_some() {
            true => Some(self.grid.whole(self.task, of_process(), self.context.device)?),
            false => None,
        };
        let averaged = || whole.clone().unwrap_or_else(of_process).valid();
        let model = LazyModel::new(&averaged);
        let (recipe, stage) = (self.recipe.value, self.context);
        let data = self.grid.data();
        let mut context = HookContext::new(self.task, recipe, stage, data, &model, self.samples, &self.metrics);
        let ran = hook.run(&mut context);
        self.grid.check_passes()?;
        ran?;
        Ok(context.finish())
    }

    fn note_found(&mut self, found: Found) -> Result<(), TrainError> {
        let samples = self.samples;
        for (name, values) in &found.evaluations {
            self.metrics.extend(values.iter().map(|(result, value)| (format!("{name}/{result}"), *value)));
            let values: Vec<_> = values.iter().map(|(result, value)| (result.as_str(), *value)).collect();
            self.reporter.tell(&Event::Evaluation { samples, name, values: &values })?;
        }
        for (tag, image) in &found.images {
            let (width, height) = (image.width() as u32, image.height() as u32);
            self.reporter.tell(&Event::Image { samples, tag, width, height, rgb: image.data() })?;
        }
        if let Some(target) = found.target {
            self.progress.message(&format!("{}: {target} after {samples} samples", T::KIND));
            self.state.target = Some(target);
        }
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn save(&mut self) -> Result<PathBuf, TrainError> {
        self.state.seconds = self.seconds();
        self.state.steps = self.optimizer.steps();
        self.state.skipped = self.skipped_before + self.skipped_everywhere()?;
        ranks::check_weights_of_grid(self.grid, &self.parameters)?;
        let have_parts = self.shards.is_some() || self.grid.neighbours().is_some();
        // Whether there is a checkpoint is for one process to say: the others may look before or after it is there.
        let path = match self.context.collective.is_first() {
            _ if have_parts => self.save_together()?,
            true => self.save_first(self.own_tensors())?,
            false => self.store.folder().to_owned(),
        };
        self.context.collective.barrier()?;
        self.replaces = false;
        Ok(path)
    }

    /// What this process has for a checkpoint; of what several have, one does.
    fn own_tensors(&self) -> Vec<LazyTensor<'_>> {
        let first = self.grid.data().rank() == 0;
        let model = first.then(|| module_tensors(MODEL, &self.parameters)).into_iter().flatten();
        let state = (first || self.shards.is_some()).then(|| self.optimizer.state()).into_iter().flatten();
        let all = model.map(LazyTensor::within).chain(state);
        all.filter(|tensor| self.grid.gives(tensor.name())).collect()
    }

    /// [`Run::save_first`] of what all processes have, which takes part at the others.
    fn save_together(&self) -> Result<PathBuf, TrainError> {
        let gathering = Gathering::new(self.grid);
        let tensors = gathering.all(self.own_tensors())?;
        if !self.context.collective.is_first() {
            return Ok(self.store.folder().to_owned());
        }
        let path = self.save_first(tensors);
        // What kept a tensor from coming is the cause of what could not be written.
        gathering.end()?;
        path
    }

    /// Writes a checkpoint of the present state, unless it is there.
    fn save_first(&self, tensors: Vec<LazyTensor<'_>>) -> Result<PathBuf, TrainError> {
        let is_there = |samples: u64| samples == self.samples && !self.replaces;
        let there = self.store.list()?.into_iter().find(|(samples, _)| is_there(*samples));
        let state = serde_json::to_value(&self.state).map_err(|error| TrainError::State {
            checkpoint: self.store.folder().to_owned(),
            problem: error.to_string(),
        })?;
        match there {
            Some((_, path)) => Ok(path),
            None => self.write_checkpoint(tensors, &state),
        }
    }

    /// Corrupt samples that all processes of this start have replaced.
    fn skipped_everywhere(&self) -> Result<u64, TrainError> {
        let mut skipped = [self.skipped_here as f32];
        self.grid.data().all_reduce_sum(&mut skipped)?;
        Ok(skipped[0] as u64)
    }

    /// Writes a checkpoint of the tensors of parameters and optimizer.
    fn write_checkpoint(&self, tensors: Vec<LazyTensor<'_>>, state: &serde_json::Value) -> Result<PathBuf, TrainError> {
        self.reporter.sync()?;
        let path = self.store.save(self.samples, tensors, state).map_err(|error| match error {
            // A run cannot go on from such a checkpoint, and keeping it would push out one from which it can.
            CheckpointError::NotFinite { tensor } => self.diverged(format!("tensor `{tensor}`")),
            other => other.into(),
        })?;
        let run = self.config.run;
        self.store.prune(run.keep_checkpoints, |samples| run.keeps(samples))?;
        self.reporter.tell(&Event::CheckpointSaved { samples: self.samples, path: &path })?;
        Ok(path)
    }

    fn finish(mut self) -> Result<Outcome<T::Model>, TrainError> {
        if self.state.loss_count > 0 {
            let RunState { loss_sum, loss_count, loss_first, .. } = self.state;
            self.state.unlogged = Some(Unlogged { loss_sum, loss_count, loss_first });
            self.log(None, &[])?;
        }
        self.finish_recording()?;
        self.save()?;
        self.reporter.end(self.samples, RunOutcome::Finished)?;
        self.progress.finish();
        let part = match self.counts_part {
            true => format!(" (of {} samples seen since the run went on)", self.counted.end - self.counted.start),
            false => String::new(),
        };
        // Neighbours see the same samples.
        let speaks = self.grid.neighbours().is_none_or(|neighbours| neighbours.rank() == 0);
        let own = if speaks { self.task.notices() } else { Vec::new() };
        for notice in ranks::notices(self.context.collective, own)? {
            self.progress.message(&format!("{}: {notice}{part}", T::KIND));
        }
        let (loss_first, loss_last) = self.state.losses();
        if has_risen(loss_first, loss_last) {
            self.warn_of_rise(loss_first, loss_last);
        }
        if self.state.skipped > 0 {
            let skipped = self.state.skipped;
            self.progress.message(&format!("{}: {skipped} corrupt samples were replaced", T::KIND));
        }
        if let Some(account) = ranks::account(&self.context.collective.counters()) {
            self.progress.message(&format!("{}: {account}", T::KIND));
        }
        if self.state.watched.skipped > 0 {
            let skipped = self.state.watched.skipped;
            self.progress.message(&format!("{}: {skipped} updates were not finite and were left out", T::KIND));
        }
        let summary = TrainingSummary {
            samples_seen: self.samples,
            steps: self.optimizer.steps(),
            loss_first,
            loss_last,
            seconds: self.seconds(),
            samples_skipped: self.state.skipped,
            updates_skipped: self.state.watched.skipped,
            target: self.state.target.clone(),
        };
        let parameters = match &self.shards {
            Some(shards) => shards.averaged(&self.parameters, &self.optimizer)?,
            None => self.optimizer.averaged(&self.parameters),
        };
        let model = self.grid.whole(self.task, self.trainable.model_of(parameters), self.context.device)?;
        Ok(Outcome::Finished(model, summary))
    }
}

impl RunState {
    /// The losses at the run's beginning and end: of its first and last entry in the logs, or, of a run so short that these are the
    /// same, of its first and last step.
    fn losses(&self) -> (f64, f64) {
        let (first, last) = (self.loss_first.unwrap_or(f64::NAN), self.loss_last);
        match (self.steps_first, self.steps_last) {
            (Some(step_first), Some(step_last)) if first == last => (step_first, step_last),
            _ => (first, last),
        }
    }
}

/// Progress that one of the processes shows.
fn progress_of(kind: &str, total: u64, collective: &dyn Collective) -> Progress {
    match collective.is_first() {
        true => Progress::new(kind, total),
        false => Progress::with_lines(kind, total, Duration::MAX, Box::new(std::io::sink())),
    }
}

/// What usually helps a run that diverges, whose recipe limits gradients to a norm of `clip`, or not if that is 0.
fn remedies(clip: f64) -> String {
    const USUAL: f64 = 1.0;
    let by_rate = "a lower optimizer.learning_rate";
    match clip > 0.0 && clip <= USUAL {
        true => format!("{by_rate} or a longer optimizer.schedule.warmup usually helps"),
        false => format!(
            "{by_rate}, a longer optimizer.schedule.warmup or optimizer.gradient_clip = {USUAL:.1} usually helps"
        ),
    }
}

/// Whether a loss is so far above the first one that no noise explains it.
fn has_risen(first: f64, loss: f64) -> bool {
    const FACTOR: f64 = 4.0;
    first > 0.0 && loss > FACTOR * first
}

/// Positions of what is left of a run that hold each sample at most once, and as many samples as can be: the first whole epoch, or
/// the larger part of one.
fn counted_once(start: u64, end: u64, epoch: u64) -> Range<u64> {
    let first = start.next_multiple_of(epoch.max(1)).min(end);
    let last = (first + epoch).min(end);
    if last - first >= first - start { first..last } else { start..first }
}

/// What a step came to.
enum Stepped {
    /// The loss, and the norm of the gradient where it was measured.
    Done(MeanLoss, Option<f64>),
    /// No update; the name of what was not finite.
    LeftOut(String),
}

/// What a run's pace is measured by. The processor's peak takes half a second to measure: only runs that ask for it do.
fn measure<T: Task>(task: &T, recipe: &T::Recipe, context: &StageContext<'_>) -> Measure {
    let flops = task.training_flops();
    let wanted = recipe.watch().is_some() && flops.is_some() && calotype_ops::uses_kernels(context.device);
    let precision = recipe.config().run.precision.resolve(context.device);
    let peak = wanted.then(|| watch::peak(precision));
    Measure { devices: context.collective.world(), flops, peak }
}

/// Samples of the whole run; the last batch is not shortened.
fn end_of(config: &TrainConfig<'_>) -> u64 {
    config.run.steps() * config.run.batch_size as u64
}

/// What is to be said, before it begins, of a run over `dataset` samples by `world` processes: settings that are possible, but seldom
/// meant.
pub(crate) fn remarks(config: &TrainConfig<'_>, dataset: usize, world: usize) -> Vec<String> {
    let (total, batch) = (end_of(config), config.run.batch_size);
    let mut remarks = Vec::new();
    if total != config.run.samples {
        let [asked, total, batch] = [config.run.samples, total, batch as u64].map(format_count);
        remarks.push(format!("run.samples = {asked} becomes {total}, whole batches of {batch}"));
    }
    if batch > dataset {
        let [batch, dataset] = [batch as u64, dataset as u64].map(format_count);
        remarks.push(format!("run.batch_size is {batch}: every batch repeats samples, for the dataset has {dataset}"));
    }
    if config.optimizer.peak(batch as u64) == 0.0 {
        remarks.push("optimizer.learning_rate is 0: the weights stay as they are".to_owned());
    }
    remarks.extend(config.out_of_reach(total));
    if world > 1 && config.optimizer.in_backward == Some(true) {
        remarks.push(format!(
            "optimizer.in_backward = true has no effect on {world} processes, which take their steps with the sum of their gradients"
        ));
    }
    remarks
}

/// What is to be said of a run that goes on behind the end that it was begun with.
fn extension(config: &TrainConfig<'_>, before: u64, seen: u64) -> String {
    const COMPARED: u64 = 1000;
    let rate = |samples: u64, total: u64| {
        let position = Position { total, ..config.position(samples) };
        config.optimizer.learning_rate_at(&position)
    };
    let (total, batch) = (config.run.samples, config.run.batch_size as u64);
    let places = (0..=COMPARED).map(|place| (seen * place / COMPARED).next_multiple_of(batch).min(seen));
    let same = places.into_iter().all(|samples| rate(samples, before) == rate(samples, total));
    let result = if same {
        format!("the result is that of a run that was started with {total}")
    } else {
        format!(
            "the learning rate of the first {seen} followed a schedule for {before}, so that the result is not that of a run \
             that was started with {total} (a constant schedule does not depend on the length)"
        )
    };
    format!("extended from {before} to {total} samples; {result}")
}

fn learning_rate(config: &TrainConfig<'_>, samples: u64) -> f64 {
    config.optimizer.learning_rate_at(&config.position(samples))
}

/// The mean of the losses of a batch's parts, by their samples.
#[derive(Default)]
struct MeanLoss {
    /// Loss and samples of each part.
    losses: Vec<(f64, f64)>,
    /// The named losses of all parts.
    named: Vec<(&'static str, f64, f64)>,
}

impl MeanLoss {
    fn add(&mut self, value: f64, parts: Vec<(&'static str, f64)>, weight: f64) {
        self.losses.push((value, weight));
        self.named.extend(parts.into_iter().map(|(name, value)| (name, value, weight)));
    }

    fn value(&self) -> f64 {
        weighted_mean(&self.losses)
    }

    fn parts(&self) -> Vec<(&'static str, f64)> {
        let mut names: Vec<&'static str> = Vec::new();
        for (name, ..) in &self.named {
            if !names.contains(name) {
                names.push(name);
            }
        }
        let of = |name: &str| -> Vec<_> {
            self.named.iter().filter(|named| named.0 == name).map(|named| (named.1, named.2)).collect()
        };
        names.into_iter().map(|name| (name, weighted_mean(&of(name)))).collect()
    }
}

fn weighted_mean(values: &[(f64, f64)]) -> f64 {
    match values {
        // As it is, bit for bit.
        [(value, _)] => *value,
        _ => {
            let weights: f64 = values.iter().map(|(_, weight)| weight).sum();
            values.iter().map(|(value, weight)| value * weight).sum::<f64>() / weights
        }
    }
}

/// Bytes of a parameter's weight with the averages that there are, in `f32`, and its moments: in memory, and in a checkpoint.
fn bytes_of_parameter(config: &TrainConfig<'_>) -> u64 {
    let moments = config.optimizer.rule.get().moments().len() * config.optimizer.state.bytes();
    ((1 + averages(config)) * 4 + moments) as u64
}

/// Averages of the weights that a run has.
fn averages(config: &TrainConfig<'_>) -> usize {
    config.ema.map_or(0, |ema| 1 + ema.form.get().beside().len())
}

/// What each of a run's processes holds at least, whatever the batch: its share of weights, averages and moments.
pub fn least_memory(parameters: usize, config: &TrainConfig<'_>, processes: usize) -> u64 {
    (parameters as u64).saturating_mul(bytes_of_parameter(config)) / processes.max(1) as u64
}

/// Largest size on disk of a run's checkpoints, one in the making included, and of its snapshots of averages.
pub fn checkpoint_bytes(parameters: usize, config: &TrainConfig<'_>) -> u64 {
    let checkpoints =
        config.run.keep_checkpoints as u64 + 1 + config.run.keep_every.map_or(0, |every| end_of(config) / every);
    let snapshots = config.ema.and_then(EmaSettings::snapshot_every).map_or(0, |every| end_of(config) / every + 1);
    let of_parameter = checkpoints * bytes_of_parameter(config) + snapshots * 4 * averages(config) as u64;
    (parameters as u64).saturating_mul(of_parameter)
}

fn restore<M: Module>(
    grid: &Grid<'_>,
    parameters: M,
    optimizer: &mut Optimizer,
    checkpoint: &Checkpoint,
) -> Result<(M, RunState, u64), TrainError> {
    let state: RunState = serde_json::from_value(checkpoint.state.clone())
        .map_err(|error| TrainError::State { checkpoint: checkpoint.path.clone(), problem: error.to_string() })?;
    let get = |name: &str, shape: &[usize]| grid.values(checkpoint, name, shape);
    let parameters = state::load(parameters, |name, shape| get(&format!("{MODEL}{name}"), shape))?;
    optimizer.restore(state.steps, get)?;
    Ok((parameters, state, checkpoint.samples))
}
