//! The training loop that all models share.
//!
//! Progress is counted in samples. Everything random in a step is keyed by the positions of its samples, schedules are
//! functions of the samples seen, and a checkpoint holds weights, average, moments and the running sums of the logs; so
//! a run that was killed and resumed ends in the same bits as one that was not.

use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore};
use crate::optimizer::{NotFinite, Optimizer};
use crate::progress::Progress;
use crate::settings::{Course, DataSettings};
use crate::sources::open_source;
use crate::stop::StopFlag;
use crate::tracker::{Tracker, TrackerError};
use burn::module::Module;
use burn::tensor::Tensor;
use calotype_data::precache::encoder_of;
use calotype_data::{Batch, Loader, LoaderConfig, SampleRef, Source};
use calotype_models::state;
use calotype_ops::in_backward::{Uses, count_uses};
use calotype_weights::{NamedTensor, TensorFileError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Any error of a decoder or an encoder.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes an item of a sample and its position in the endless stream; a pure function of both.
pub type Decoder<T> = Box<dyn Fn(u64, &SampleRef<'_>) -> Result<T, BoxError> + Send + Sync>;

/// A batch's loss.
#[derive(Debug)]
pub struct Loss {
    /// What is minimised, shape `[1]`.
    pub value: Tensor<1>,
    /// Named parts of it, for the logs.
    pub parts: Vec<(&'static str, f64)>,
}

impl Loss {
    /// A loss without parts.
    pub fn of(value: Tensor<1>) -> Self {
        Self { value, parts: Vec::new() }
    }
}

/// What a model is trained for.
pub trait Objective {
    /// The network.
    type Model: Module;
    /// One decoded sample.
    type Item: Send + 'static;

    /// The function that background threads decode samples with.
    fn decoder(&self) -> Decoder<Self::Item>;

    /// The loss of a batch.
    ///
    /// # Errors
    /// A frozen encoder that runs in training cannot take the batch.
    fn loss(&self, model: &Self::Model, batch: Batch<Self::Item>) -> Result<Loss, BoxError>;

    /// The frozen encoders that run in training: kind and hash of their weights, to be recorded beside the run.
    fn encoders(&self) -> Option<String> {
        None
    }

    /// What the user should hear at the end: counts of things that were cut or left out.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Where a run lives and what it listens to.
#[derive(Debug)]
pub struct RunContext<'a> {
    /// Folder of logs and checkpoints.
    pub folder: &'a Path,
    /// Name of the stage, for progress and messages.
    pub stage: &'a str,
    /// The resolved recipe; a run is only resumed with the recipe it was started with.
    pub recipe: &'a str,
    /// Asked for between two steps.
    pub stop: &'a StopFlag,
}

/// Figures of a finished training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSummary {
    /// Samples trained on.
    pub samples_seen: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Mean loss of the first entry in the logs.
    pub loss_first: f64,
    /// Mean loss of the last entry in the logs.
    pub loss_last: f64,
    /// Wall-clock seconds over all restarts.
    pub seconds: f64,
    /// Corrupt samples that were replaced by others.
    pub samples_skipped: u64,
}

/// How a training ended.
#[derive(Debug)]
pub enum Outcome<M> {
    /// All samples seen; the model has the averaged weights, where the recipe averages.
    Finished(M, TrainingSummary),
    /// Stopped on request, with everything saved.
    Interrupted {
        /// Samples seen.
        samples: u64,
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
}

/// Why a training ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Reading samples.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// Saving or restoring.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Writing logs.
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    /// A checkpoint's tensors do not fit the model.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
    /// A checkpoint's state is not this program's.
    #[error("checkpoint {}: {problem}; start again in another folder, or restore the checkpoint", checkpoint.display())]
    State {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The folder belongs to a run of another recipe.
    #[error(
        "{folder} holds a run of another recipe (first difference: {difference}); \
         use another folder, or the recipe it was started with, {folder}/recipe.toml",
        folder = folder.display()
    )]
    OtherRecipe {
        /// The run's folder.
        folder: PathBuf,
        /// The first line that differs.
        difference: String,
    },
    /// A file of the run could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The run was begun with other encoders.
    #[error(
        "{} was begun with {what} `{expected}`, and now it is `{found}`; \
         take the former again, or start in another folder", folder.display()
    )]
    OtherEncoder {
        /// The run's folder.
        folder: PathBuf,
        /// Which encoders.
        what: &'static str,
        /// Those that it was begun with.
        expected: String,
        /// Those of now.
        found: String,
    },
    /// A batch's loss could not be computed.
    #[error("after {samples} samples: {source}")]
    Loss {
        /// Samples seen before the step.
        samples: u64,
        /// The cause.
        source: BoxError,
    },
    /// The loss or a gradient is not a number any more.
    #[error("{stage}: {what} is not finite after {samples} samples; {advice}")]
    NotFinite {
        /// The stage.
        stage: String,
        /// The tensor.
        what: String,
        /// Samples seen before the step.
        samples: u64,
        /// Where the last good state is, and what to change.
        advice: String,
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
    seconds: f64,
    skipped: u64,
}

const MODEL: &str = "model.";
const CHECKPOINT_PREFIX: &str = "checkpoint";
/// Folder of a run's checkpoints, inside the run's own.
pub const CHECKPOINTS: &str = "checkpoints";
/// File name of the record of the encoders that a run depends on.
pub const ENCODERS: &str = "encoders.json";
/// File name of the recipe beside a run.
pub const RECIPE: &str = "recipe.toml";

/// Trains a model to the end of its course, resuming where an earlier process was stopped or killed.
///
/// `model` must be on a device with autodiff and have its initial weights.
///
/// # Errors
/// [`TrainError`]; the last complete checkpoint stays.
pub fn train<O: Objective>(
    objective: &O,
    model: O::Model,
    course: &Course<'_>,
    data: &DataSettings,
    context: &RunContext<'_>,
) -> Result<Outcome<O::Model>, TrainError> {
    let dataset = open_source(data, Some(context.stop))?;
    let mut run = Run::open(model, course, context)?;
    claim_encoders(context.folder, dataset.as_ref(), objective.encoders())?;
    for (reason, samples) in dataset.left_out() {
        run.progress.message(&format!("{}: {samples} samples are left out: {reason}", context.stage));
    }
    let mut loader = run.loader(objective, dataset, data)?;
    let skipped_before = run.state.skipped;
    while let Some(batch) = loader.next() {
        if context.stop.is_set() {
            let checkpoint = run.save()?;
            return Ok(Outcome::Interrupted { samples: run.samples, checkpoint });
        }
        run = run.step(objective, batch?)?;
        run.state.skipped = skipped_before + loader.skipped();
        if run.crossed(course.run.checkpoint_every) {
            run.save()?;
        }
    }
    run.finish(objective)
}

struct Run<'a, M: Module> {
    model: M,
    optimizer: Optimizer,
    course: &'a Course<'a>,
    context: &'a RunContext<'a>,
    store: CheckpointStore,
    tracker: Tracker,
    progress: Progress,
    state: RunState,
    samples: u64,
    started: Instant,
    /// Seconds of earlier processes.
    seconds_before: f64,
    /// Where the current entry of the logs began, for its images per second.
    entry: (Instant, u64),
}

impl<'a, M: Module> Run<'a, M> {
    fn open(model: M, course: &'a Course<'a>, context: &'a RunContext<'a>) -> Result<Self, TrainError> {
        let store = CheckpointStore::open(context.folder.join(CHECKPOINTS), CHECKPOINT_PREFIX)?;
        claim_folder(context)?;
        let mut optimizer = Optimizer::new(&model, course.ema.is_some());
        let checkpoint = store.newest()?;
        let (model, state, samples) = match &checkpoint {
            Some(checkpoint) => restore(model, &mut optimizer, checkpoint)?,
            None => {
                store.preflight(checkpoint_bytes(model.num_params(), course))?;
                (model, RunState::default(), 0)
            }
        };
        let total = course.run.steps() * course.run.batch_size as u64;
        let mut progress = Progress::new(context.stage, total).starting_at(samples);
        if samples > 0 {
            progress.message(&format!("{}: resumed at {samples} of {total} samples", context.stage));
        }
        let now = Instant::now();
        Ok(Self {
            tracker: Tracker::open(context.folder, samples)?,
            seconds_before: state.seconds,
            started: now,
            entry: (now, samples),
            model,
            optimizer,
            course,
            context,
            store,
            progress,
            state,
            samples,
        })
    }

    fn total(&self) -> u64 {
        self.course.run.steps() * self.course.run.batch_size as u64
    }

    fn loader<O: Objective<Model = M>>(
        &self,
        objective: &O,
        dataset: Arc<dyn Source>,
        data: &DataSettings,
    ) -> Result<Loader<O::Item>, TrainError> {
        let order = Arc::new(dataset.order(&data.order(self.course.run.seed))?);
        let config = LoaderConfig {
            start: self.samples,
            end: Some(self.total()),
            threads: data.threads,
            on_error: data.on_error.into(),
            ..LoaderConfig::new(self.course.run.batch_size)
        };
        Ok(Loader::new(dataset, order, config, objective.decoder())?)
    }

    /// Whether the step just done passed a multiple of `every` samples.
    fn crossed(&self, every: u64) -> bool {
        let before = self.samples - self.course.run.batch_size as u64;
        self.samples / every != before / every
    }

    fn step<O: Objective<Model = M>>(mut self, objective: &O, batch: Batch<O::Item>) -> Result<Self, TrainError> {
        let count = batch.items.len() as u64;
        let forward = || objective.loss(&self.model, batch);
        let samples = self.samples;
        let (computed, uses) = match self.course.optimizer.in_backward {
            true => count_uses(forward),
            false => (forward(), Uses::default()),
        };
        let Loss { value: loss, parts } = computed.map_err(|source| TrainError::Loss { samples, source })?;
        let value = f64::from(loss.clone().inner().into_scalar::<f32>());
        let norm;
        (self, norm) = if self.course.optimizer.in_backward && calotype_ops::uses_kernels(&loss.device()) {
            self.step_in_backward((loss, uses), value, count)?
        } else {
            self.step_after_backward(loss, value, count)?
        };
        self.state.loss_sum += value;
        self.state.loss_count += 1;
        self.progress.set(self.samples, &[("loss", value)]);
        if self.crossed(self.course.run.log_every) {
            self.log(Some(norm), &parts)?;
        }
        Ok(self)
    }

    /// The backward pass of a batch's loss, then the optimizer step; gives the gradient's norm, too.
    fn step_after_backward(mut self, loss: Tensor<1>, value: f64, count: u64) -> Result<(Self, f64), TrainError> {
        let mut gradients = loss.backward();
        drop(loss);
        let norm = match self.optimizer.gradient_norm(&self.model, &gradients) {
            Ok(norm) if value.is_finite() => norm,
            norm => return Err(self.not_finite(value, norm.err())),
        };
        self.samples += count;
        self.model = self.optimizer.step(self.model, &mut gradients, self.course, self.samples, norm);
        Ok((self, norm))
    }

    /// The backward pass with the optimizer step in it. The norm is measured, and gradients are checked, where the logs
    /// want it; in between, a gradient that is not finite shows in the next loss.
    fn step_in_backward(mut self, loss: (Tensor<1>, Uses), value: f64, count: u64) -> Result<(Self, f64), TrainError> {
        if !value.is_finite() {
            return Err(self.not_finite(value, None));
        }
        self.samples += count;
        let measure = self.crossed(self.course.run.log_every);
        let norm;
        (self.model, norm) = self.optimizer.step_in_backward(self.model, loss, self.course, self.samples, measure);
        match norm {
            Ok(norm) => Ok((self, norm.unwrap_or(0.0))),
            Err(bad) => Err(self.diverged(bad.what)),
        }
    }

    fn not_finite(&self, loss: f64, gradient: Option<NotFinite>) -> TrainError {
        let parameter = state::collect(&self.model).into_iter().find(|t| t.values.iter().any(|v| !v.is_finite()));
        match (parameter, gradient) {
            (Some(parameter), _) => self.diverged(format!("parameter `{}`", parameter.name)),
            (None, Some(gradient)) => self.diverged(gradient.what),
            (None, None) => self.diverged(format!("the loss ({loss})")),
        }
    }

    fn diverged(&self, what: String) -> TrainError {
        let kept = match self.store.list().ok().and_then(|mut all| all.pop()) {
            Some((samples, path)) => format!("the checkpoint of {samples} samples is kept in {}", path.display()),
            None => "there was no checkpoint yet".to_owned(),
        };
        let advice = format!(
            "{kept}; a lower optimizer.learning_rate, longer optimizer.warmup_samples or \
             optimizer.gradient_clip = 1.0 usually helps"
        );
        TrainError::NotFinite { stage: self.context.stage.to_owned(), what, samples: self.samples, advice }
    }

    fn log(&mut self, gradient_norm: Option<f64>, parts: &[(&'static str, f64)]) -> Result<(), TrainError> {
        let state = &mut self.state;
        let loss = state.loss_sum / state.loss_count as f64;
        (state.loss_sum, state.loss_count) = (0.0, 0);
        state.loss_first.get_or_insert(loss);
        state.loss_last = loss;
        let (since, samples) = self.entry;
        let rate = (self.samples - samples) as f64 / since.elapsed().as_secs_f64().max(1e-9);
        self.entry = (Instant::now(), self.samples);
        let lr = self.course.optimizer.learning_rate_at(self.samples, self.course.run.samples);
        let mut values = vec![("loss", loss), ("learning_rate", lr)];
        values.extend(gradient_norm.map(|norm| ("gradient_norm", norm)));
        values.extend_from_slice(parts);
        values.push(("images_per_second", rate));
        Ok(self.tracker.scalars(self.samples, &values)?)
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn save(&mut self) -> Result<PathBuf, TrainError> {
        if let Some((_, path)) = self.store.list()?.into_iter().find(|(samples, _)| *samples == self.samples) {
            return Ok(path);
        }
        self.state.seconds = self.seconds();
        self.state.steps = self.optimizer.steps();
        let model = state::collect(&self.model).into_iter().map(|t| (format!("{MODEL}{}", t.name), t.shape, t.values));
        let tensors = model
            .chain(self.optimizer.state())
            .map(|(name, shape, values)| {
                // A run cannot go on from such a checkpoint, and saving it would push out one from which it can.
                if values.iter().any(|value| !value.is_finite()) {
                    return Err(self.diverged(format!("tensor `{name}`")));
                }
                Ok(NamedTensor::from_f32(name, shape, &values).into_owned())
            })
            .collect::<Result<Vec<_>, _>>()?;
        let state = serde_json::to_value(&self.state).map_err(|error| TrainError::State {
            checkpoint: self.store.folder().to_owned(),
            problem: error.to_string(),
        })?;
        self.tracker.sync()?;
        let path = self.store.save(self.samples, &tensors, &state)?;
        self.store.prune(self.course.run.keep_checkpoints)?;
        Ok(path)
    }

    fn finish<O: Objective<Model = M>>(mut self, objective: &O) -> Result<Outcome<M>, TrainError> {
        if self.state.loss_count > 0 {
            self.log(None, &[])?;
        }
        self.save()?;
        self.progress.finish();
        for notice in objective.notices() {
            self.progress.message(&format!("{}: {notice}", self.context.stage));
        }
        if self.state.skipped > 0 {
            let skipped = self.state.skipped;
            self.progress.message(&format!("{}: {skipped} corrupt samples were replaced", self.context.stage));
        }
        let summary = TrainingSummary {
            samples_seen: self.samples,
            steps: self.optimizer.steps(),
            loss_first: self.state.loss_first.unwrap_or(f64::NAN),
            loss_last: self.state.loss_last,
            seconds: self.seconds(),
            samples_skipped: self.state.skipped,
        };
        Ok(Outcome::Finished(self.optimizer.averaged(&self.model), summary))
    }
}

/// Largest size on disk of a run's checkpoints, one in the making included.
pub fn checkpoint_bytes(parameters: usize, course: &Course<'_>) -> u64 {
    // Weights and two moments, and the average where there is one, in f32.
    let copies = if course.ema.is_some() { 4 } else { 3 };
    (parameters * copies * 4 * (course.run.keep_checkpoints + 1)) as u64
}

/// Writes the recipe beside a new run, or checks that the folder's run has the same one.
fn claim_folder(context: &RunContext<'_>) -> Result<(), TrainError> {
    let path = context.folder.join(RECIPE);
    let io = |source| TrainError::Io { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) if text == context.recipe => Ok(()),
        Ok(text) => {
            let difference = text
                .lines()
                .zip(context.recipe.lines())
                .find(|(a, b)| a != b)
                .map_or_else(|| "its length".to_owned(), |(a, b)| format!("`{a}` there, `{b}` now"));
            Err(TrainError::OtherRecipe { folder: context.folder.to_owned(), difference })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            calotype_weights::durable::replace_file(&path, |file| file.write_all(context.recipe.as_bytes())).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// Which frozen encoders a run depends on.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct EncoderRecord {
    /// Identity of those that made the dataset.
    dataset: Option<String>,
    /// Those that run in training.
    training: Option<String>,
}

/// Writes beside a new run which encoders it depends on, or compares them with those that the run was begun with: a
/// dataset that was encoded anew by another model has the same shapes, and nothing else would tell.
fn claim_encoders(folder: &Path, dataset: &dyn Source, training: Option<String>) -> Result<(), TrainError> {
    let path = folder.join(ENCODERS);
    let io = |source| TrainError::Io { path: path.clone(), source };
    let now = EncoderRecord { dataset: encoder_of(dataset.meta()).map(str::to_owned), training };
    let begun: EncoderRecord = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| io(error.into()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = serde_json::to_vec_pretty(&now).map_err(|error| io(error.into()))?;
            std::fs::create_dir_all(folder).map_err(io)?;
            return calotype_weights::durable::replace_file(&path, |file| file.write_all(&text)).map_err(io);
        }
        Err(error) => return Err(io(error)),
    };
    let pairs = [("data of the encoders", begun.dataset, now.dataset), ("the encoder", begun.training, now.training)];
    match pairs.into_iter().find(|(_, begun, now)| begun != now) {
        None => Ok(()),
        Some((what, expected, found)) => {
            let [expected, found] = [expected, found].map(|encoder| encoder.unwrap_or_else(|| "none".to_owned()));
            Err(TrainError::OtherEncoder { folder: folder.to_owned(), what, expected, found })
        }
    }
}

fn restore<M: Module>(
    model: M,
    optimizer: &mut Optimizer,
    checkpoint: &Checkpoint,
) -> Result<(M, RunState, u64), TrainError> {
    let state: RunState = serde_json::from_value(checkpoint.state.clone())
        .map_err(|error| TrainError::State { checkpoint: checkpoint.path.clone(), problem: error.to_string() })?;
    let get = |name: &str, shape: &[usize]| checkpoint.tensors.get_shaped(name, shape)?.to_f32_vec();
    let model = state::load(model, |name, shape| get(&format!("{MODEL}{name}"), shape))?;
    optimizer.restore(state.steps, get)?;
    Ok((model, state, checkpoint.samples))
}
