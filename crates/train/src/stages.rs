//! Whole stages: from a recipe to a trained model on disk.
//!
//! A stage's folder holds `recipe.toml`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, and at the end `model/` (the
//! published layout of its kind) and `result.json`. A stage whose `result.json` is there is done and is not run again.

use crate::averages::{AverageError, Rebuilt, Wanted};
use crate::beginning;
use crate::checkpoint::{self, prepare_folder};
use crate::config::{CorruptSample, SettingError, TrainingRecipe, check};
use crate::hooks;
use crate::inputs::Conditioning;
use crate::precache::{Encoders, PrecacheRecipe, measure_scale_factor};
use crate::record::RecordOptions;
use crate::saved::{self, SavedError, WantedModel};
use crate::sources::open_source;
use crate::start::{self, StartError};
use crate::task::{BoxError, Task};
use crate::trackers::Tracker;
use crate::trainer::{self, CHECKPOINTS, Claim, Outcome, TrainError, TrainingSummary};
use burn::module::Module;
use burn::tensor::Device;
use calotype_checkpoints::LayoutError;
use calotype_collective::{Collective, Local};
use calotype_core::durable;
use calotype_core::lock::FolderLock;
use calotype_core::progress::Progress;
use calotype_core::stop::StopFlag;
use calotype_core::system::{counted, format_bytes, format_count, memory};
use calotype_data::precache as data_precache;
use calotype_data::{Control, Dataset, Slice, Source};
use calotype_diffusion::ScheduleError;
use calotype_models::{ConfigError, Init};
use calotype_ops::uses_kernels;
use calotype_pipeline::encoders::EncoderError;
use calotype_weights::TensorFileError;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Figures of a finished stage.
pub const RESULT: &str = "result.json";
/// Folder of a stage's model.
pub const MODEL: &str = "model";
/// What a precached dataset holds beside its shards: the empty prompt's states and the latents' scale.
pub const CONDITIONING: &str = "conditioning.safetensors";

/// A recipe with its full text.
#[derive(Debug)]
pub struct Recipe<'a, T> {
    /// The typed recipe.
    pub value: &'a T,
    /// The resolved text, saved beside the run.
    pub text: &'a str,
}

impl<T> Clone for Recipe<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Recipe<'_, T> {}

/// Where a stage runs and what it listens to.
#[derive(Clone, Copy, Debug)]
pub struct StageContext<'a> {
    /// The stage's folder, of logs, checkpoints and the model.
    pub folder: &'a Path,
    /// The device, without autodiff.
    pub device: &'a Device,
    /// Asked for between two steps.
    pub stop: &'a StopFlag,
    /// The processes of the run.
    pub collective: &'a dyn Collective,
    /// A tracker of the program that trains, beside those in the run's folder.
    pub tracker: Option<&'a RefCell<dyn Tracker>>,
    /// Where the first steps are recorded, if they are.
    pub record: Option<&'a RecordOptions>,
    /// Whether a run whose recipe asks for more samples than before is extended; otherwise it is refused.
    pub extend: bool,
    /// The training checkpoint, or the run's folder with checkpoints, whose whole state a new run begins with.
    pub from: Option<&'a Path>,
}

impl<'a> StageContext<'a> {
    /// For a run of a single process that is not recorded.
    pub fn new(folder: &'a Path, device: &'a Device, stop: &'a StopFlag) -> Self {
        Self { folder, device, stop, collective: &Local, tracker: None, record: None, extend: false, from: None }
    }
}

/// How a stage ended.
#[derive(Clone, Debug, PartialEq)]
pub enum StageEnd<T = TrainingSummary> {
    /// Done, now or earlier.
    Done(T),
    /// Stopped on request; running it again continues.
    Interrupted {
        /// Samples done.
        samples: u64,
    },
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A recipe says something impossible.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A model's configuration is impossible.
    ///
    /// Not its source, which says the same once more.
    #[error("recipe key `model.{}`: {}", .0.field, .0.problem)]
    Config(ConfigError),
    /// The published layout cannot say what the recipe's model is.
    #[error("this model could not be written once it is trained: {0}; change the recipe's table [model]")]
    Unwritable(Box<StageError>),
    /// Networks that do not belong together.
    #[error("{0}")]
    Together(String),
    /// A noise schedule is impossible.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Layout(Box<LayoutError>),
    /// Training failed.
    #[error(transparent)]
    Train(Box<TrainError>),
    /// The initial weights cannot be had.
    #[error(transparent)]
    Start(Box<StartError>),
    /// Reading or writing a dataset failed.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// A tensor file is missing or damaged.
    #[error(transparent)]
    Tensor(Box<TensorFileError>),
    /// A frozen encoder cannot be used.
    #[error(transparent)]
    Encoder(Box<EncoderError>),
    /// An average cannot be rebuilt.
    #[error(transparent)]
    Average(Box<AverageError>),
    /// A run has no such model.
    #[error(transparent)]
    Saved(Box<SavedError>),
    /// A dataset's samples are not what the stage needs.
    #[error("{}: {source}", path.display())]
    Dataset {
        /// The dataset's folder.
        path: PathBuf,
        /// What is wrong.
        source: BoxError,
    },
    /// A file could not be read or written.
    #[error("{}: {source}{}", path.display(), durable::advice(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl From<ConfigError> for StageError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<TrainError> for StageError {
    fn from(error: TrainError) -> Self {
        Self::Train(Box::new(error))
    }
}

impl From<StartError> for StageError {
    fn from(error: StartError) -> Self {
        Self::Start(Box::new(error))
    }
}

impl From<TensorFileError> for StageError {
    fn from(error: TensorFileError) -> Self {
        Self::Tensor(Box::new(error))
    }
}

impl From<EncoderError> for StageError {
    fn from(error: EncoderError) -> Self {
        Self::Encoder(Box::new(error))
    }
}

impl From<SavedError> for StageError {
    fn from(error: SavedError) -> Self {
        Self::Saved(Box::new(error))
    }
}

impl From<AverageError> for StageError {
    fn from(error: AverageError) -> Self {
        Self::Average(Box::new(error))
    }
}

impl StageError {
    /// Whether the recipe, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Setting(_) | Self::Config(_) | Self::Schedule(_) | Self::Unwritable(_) | Self::Together(_) => true,
            Self::Data(error) => error.is_usage(),
            Self::Tensor(error) => error.is_usage(),
            Self::Train(error) => error.is_usage(),
            Self::Start(error) => error.is_usage(),
            Self::Layout(error) => error.is_usage(),
            Self::Encoder(error) => error.is_usage(),
            Self::Average(error) => error.is_usage(),
            Self::Saved(error) => error.is_usage(),
            _ => false,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Trains a task to the end of its recipe, resuming where an earlier process was stopped or killed, and writes the
/// model, then the result. A run that is done already is not touched.
///
/// # Errors
/// [`StageError`]: the recipe, its dataset or its initial weights cannot be, or the training fails.
pub fn train<T: Task>(recipe: Recipe<'_, T::Recipe>, context: &StageContext<'_>) -> Result<StageEnd, StageError> {
    beginning::check::<T>(recipe, None, context)?;
    if let Some(summary) = done_for_all(context, recipe.value)? {
        restore_model::<T>(recipe.value, context)?;
        return Ok(StageEnd::Done(summary));
    }
    recipe.value.distributed().check_world(&recipe.value.config(), context.collective.world())?;
    let Checked { task, .. } = open_checked::<T>(recipe.value, context)?;
    let device = context.device.clone().autodiff();
    let model = task.model(&mut Init::new(recipe.value.config().run.seed, &device))?;
    let model = match recipe.value.init_from() {
        Some(from) => start::fill(model, from, task.component(), task.refit())?,
        None => model,
    };
    // Until the model is written, the folder is this process's.
    let _lock = if context.collective.is_first() { Some(lock(context.folder)?) } else { None };
    match trainer::train(&task, model, recipe, context)? {
        Outcome::Interrupted { samples, .. } => Ok(StageEnd::Interrupted { samples }),
        Outcome::Finished(model, summary) => {
            if context.collective.is_first() {
                export(&task, &model.valid(), context)?;
                let path = context.folder.join(RESULT);
                durable::write_json(&path, &summary).map_err(StageError::io(&path))?;
            }
            Ok(StageEnd::Done(summary))
        }
    }
}

/// Writes the model of a finished run again from its last checkpoint, if it is gone.
fn restore_model<T: Task>(recipe: &T::Recipe, context: &StageContext<'_>) -> Result<(), StageError> {
    let model = context.folder.join(MODEL);
    if !context.collective.is_first() || model.exists() {
        return Ok(());
    }
    let _lock = lock(context.folder)?;
    let written =
        saved::export::<T>(recipe, &WantedModel::default(), &model, context).map_err(|error| match error {
            StageError::Saved(saved) if matches!(*saved, SavedError::None { .. }) => {
                StageError::Together(without_model(context.folder))
            }
            error => error,
        })?;
    tracing::warn!(
        "{} was gone, and is written again from the checkpoint of {} samples",
        model.display(),
        written.samples
    );
    Ok(())
}

/// What to do about a finished run of which no weights are left.
fn without_model(folder: &Path) -> String {
    format!(
        "{folder} holds a finished run, but neither its {MODEL}/ nor a checkpoint in {CHECKPOINTS}/ to write that from; copy one of \
         both back, or train again in another folder (or here, once {folder}/{RESULT} is removed)",
        folder = folder.display()
    )
}

/// Checks everything that a recipe says by itself.
///
/// # Errors
/// [`StageError::Setting`] or [`StageError::Config`] naming the first key at fault.
pub fn check_recipe<T: Task>(recipe: &T::Recipe) -> Result<(), StageError> {
    check(recipe.kind() == T::KIND, "kind", || format!("is `{}`, not `{}`", recipe.kind(), T::KIND))?;
    recipe.check_shared()?;
    check(T::PREVIEWS || recipe.hooks().preview.is_none(), "hooks.preview", || {
        format!(
            "a run of kind `{}` has nothing to show while it trains: leave this table out; [hooks.evaluate] logs the loss on \
                 other samples",
            T::KIND
        )
    })?;
    check(T::DRAWS || recipe.hooks().judge.is_none(), "hooks.judge", || {
        format!(
            "draws and judges images, and the model of a run of kind `{}` draws none: leave this table out",
            T::KIND
        )
    })?;
    T::check_model(recipe)?;
    let processes = recipe.distributed().tensor_parallel;
    if processes > 1 {
        T::check_parts(recipe, processes)?;
    }
    recipe.hooks().vision.as_ref().map_or(Ok(()), |vision| vision.check_task(T::KIND))?;
    Ok(T::check(recipe)?)
}

/// Takes a run's folder for this process, and says if a process that was killed had it.
///
/// # Errors
/// [`StageError::Train`]: another process has it, or it cannot be written to.
pub fn lock(folder: &Path) -> Result<FolderLock, StageError> {
    prepare_folder(folder, 0).map_err(TrainError::from)?;
    let lock = FolderLock::take(folder).map_err(TrainError::from)?;
    if let Some(holder) = lock.taken_over_from() {
        tracing::warn!("{}: taken over from {holder}, which ended without giving it back", folder.display());
    }
    Ok(lock)
}

/// Opens a task and finds out what else would fail: a first sample that cannot be read, a model that could not be written,
/// samples for evaluation that are not there, hooks that could not do their work.
fn open_checked<T: Task>(recipe: &T::Recipe, context: &StageContext<'_>) -> Result<Checked<T>, StageError> {
    let task = T::open(recipe, context)?;
    recipe.hooks().evaluate.as_ref().map_or(Ok(()), |evaluate| evaluate.check_ranges(task.timesteps()))?;
    let placeholder = task.model(&mut Init::placeholders(context.device))?;
    check_writable(&task, &placeholder, context)?;
    check_memory(placeholder.num_params(), recipe, context)?;
    let dataset = open_source(recipe.data(), Some(context.stop))?;
    check_samples(&task, recipe, dataset.as_ref())?;
    let remarks = hooks::check_all(&hooks::open_all::<T>(recipe)?, recipe)?;
    Ok(Checked { task, placeholder, dataset, remarks })
}

/// A task that can be trained.
struct Checked<T: Task> {
    task: T,
    /// Its network without values.
    placeholder: T::Model,
    dataset: Arc<dyn Source>,
    /// What hooks have to say before the run begins.
    remarks: Vec<String>,
}

/// Samples of which one must be readable where unreadable ones are skipped.
const TRIED: usize = 64;

/// Decodes the first sample; where unreadable ones are skipped, the first that can be.
fn check_samples<T: Task>(task: &T, recipe: &T::Recipe, dataset: &dyn Source) -> Result<(), StageError> {
    let decode = task.decoder(0..0);
    let tried = if recipe.data().on_error == CorruptSample::Skip { TRIED } else { 1 };
    let mut first = None;
    for number in 0..tried.min(dataset.len()) {
        let read = || -> Result<(), BoxError> {
            let held = dataset.get(number)?;
            decode(0, &held.sample()).map(drop)
        };
        match read() {
            Ok(()) => return Ok(()),
            Err(error) => {
                first.get_or_insert((number, error));
            }
        }
    }
    first.map_or(Ok(()), |(number, source)| {
        let source: BoxError = match data_precache::encoded_instead(dataset.meta(), &source) {
            Some(advice) => format!("{source}; {advice}").into(),
            None => source,
        };
        Err(StageError::Dataset { path: PathBuf::from(dataset.file_of(number)), source })
    })
}

/// What a start would find.
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    /// Samples of the dataset.
    pub dataset: usize,
    /// Samples that are left out, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// Parameters of the network.
    pub parameters: usize,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Samples of one of them.
    pub batch_size: usize,
    /// Times that the run sees the dataset.
    pub epochs: f64,
    /// Largest size of the checkpoints on disk, in bytes.
    pub checkpoint_bytes: u64,
    /// Settings that are possible, but seldom meant, a sentence each.
    pub remarks: Vec<String>,
    /// What the run's folder holds already.
    pub folder: String,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (samples, parameters) = (format_count(self.dataset as u64), format_count(self.parameters as u64));
        let (steps, bytes) = (format_count(self.steps), format_bytes(self.checkpoint_bytes));
        writeln!(f, "data         {samples} samples, seen {:.2} times", self.epochs)?;
        for (reason, count) in &self.left_out {
            writeln!(f, "left out     {}: {reason}", counted(*count as u64, "sample"))?;
        }
        writeln!(f, "network      {parameters} parameters, {steps} steps of {} samples", self.batch_size)?;
        writeln!(f, "checkpoints  {bytes} on disk at most")?;
        for remark in &self.remarks {
            writeln!(f, "note         {remark}")?;
        }
        write!(f, "folder       {}", self.folder)
    }
}

/// Finds out everything that a start of [`train`] would, and writes nothing.
///
/// # Errors
/// As [`train`].
pub fn check_start<T: Task>(
    recipe: Recipe<'_, T::Recipe>,
    context: &StageContext<'_>,
) -> Result<Readiness, StageError> {
    beginning::check::<T>(recipe, None, context)?;
    let recipe = recipe.value;
    let claim = trainer::claim(context.folder, recipe)?;
    let done = done_earlier(context, recipe)?;
    let folder = context.folder.display();
    let folder = match claim {
        Claim::Other(difference) => {
            trainer::refuse_other(context.folder, difference)?;
            format!(
                "{folder} holds a run of another recipe that has saved nothing: a start would begin a new run in its place"
            )
        }
        Claim::Longer(samples) if !context.extend => {
            let wanted = recipe.config().run.samples;
            return Err(TrainError::Extend { folder: context.folder.to_owned(), samples, wanted }.into());
        }
        Claim::Longer(samples) => format!("{folder} holds a run of {samples} samples, which would be extended"),
        Claim::Same | Claim::Respelled if done.is_some() => finished(context.folder)?,
        Claim::Same | Claim::Respelled => format!("{folder} holds this run: a start would go on with it"),
        Claim::New => format!("{folder} is free: a start would begin a new run"),
    };
    let world = context.collective.world();
    recipe.distributed().check_world(&recipe.config(), world)?;
    let Checked { task, placeholder, dataset, remarks } = open_checked::<T>(recipe, context)?;
    if done.is_none() {
        trainer::check_inputs(context, recipe, dataset.as_ref(), task.encoders())?;
    }
    if let Some(from) = recipe.init_from() {
        start::check(&placeholder, from, task.component(), task.refit())?;
    }
    let config = recipe.config();
    let parameters = placeholder.num_params();
    let checkpoint_bytes = trainer::checkpoint_bytes(parameters, &config);
    let place = existing(context.folder);
    // A finished run is only read.
    if done.is_none() {
        checkpoint::require_access(place, context.folder).map_err(TrainError::from)?;
        checkpoint::require_space(place, checkpoint_bytes).map_err(TrainError::from)?;
    }
    let samples = (config.run.steps() * config.run.batch_size as u64) as f64;
    Ok(Readiness {
        dataset: dataset.len(),
        left_out: dataset.left_out(),
        parameters,
        steps: config.run.steps(),
        batch_size: config.run.batch_size,
        epochs: samples / dataset.len().max(1) as f64,
        checkpoint_bytes,
        remarks: trainer::remarks(&config, dataset.len(), world)
            .into_iter()
            .chain(recipe.distributed().idle(world))
            .chain(remarks)
            .collect(),
        folder,
    })
}

/// What a start would do in the folder of a finished run.
fn finished(folder: &Path) -> Result<String, StageError> {
    let shown = folder.display();
    if folder.join(MODEL).exists() {
        return Ok(format!("{shown} holds this run, finished: a start would do nothing"));
    }
    match saved::newest(folder)? {
        None => Err(StageError::Together(without_model(folder))),
        Some(samples) => Ok(format!(
            "{shown} holds this run, finished; its {MODEL}/ is gone: a start would write it again from the checkpoint of {samples} \
             samples"
        )),
    }
}

/// What lies at a folder's place, or else the nearest around it.
fn existing(folder: &Path) -> &Path {
    let around = folder.ancestors().find(|path| path.exists());
    around.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a model that could not be written once it is trained.
fn check_writable<T: Task>(task: &T, placeholder: &T::Model, context: &StageContext<'_>) -> Result<(), StageError> {
    let checked = task.published(placeholder).and_then(|export| Ok(export.verify(&context.folder.join(MODEL))?));
    checked.map_err(|source| StageError::Unwritable(Box::new(source)))
}

/// Refuses a network of which not even weights and moments have room in the machine's memory, before it is made.
fn check_memory<R: TrainingRecipe>(
    parameters: usize,
    recipe: &R,
    context: &StageContext<'_>,
) -> Result<(), StageError> {
    let least = trainer::least_memory(parameters, &recipe.config(), context.collective.world());
    // Other devices have memory of their own, which nothing tells.
    let lacking = memory().filter(|memory| uses_kernels(context.device) && memory.total < least);
    lacking.map_or(Ok(()), |memory| {
        Err(StageError::Together(format!(
            "the network of the table [model] has {} parameters, which take at least {} of memory with the optimizer's moments and \
             the averages, and this machine has {}: make it smaller, or share it out to processes on more machines",
            format_count(parameters as u64),
            format_bytes(least),
            format_bytes(memory.total)
        )))
    })
}

/// Writes the model of a run.
fn export<T: Task>(task: &T, model: &T::Model, context: &StageContext<'_>) -> Result<(), StageError> {
    let folder = context.folder.join(MODEL);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(StageError::io(&folder))?;
    }
    export_to(task, model, &folder)
}

/// Writes a model beside its place, where nothing is, and puts it there when it is complete.
fn export_to<T: Task>(task: &T, model: &T::Model, folder: &Path) -> Result<(), StageError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let aside = folder.with_file_name(format!(".{name}.new"));
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(StageError::io(&aside))?;
    }
    let notes = task.export(model, &aside)?;
    std::fs::rename(&aside, folder).map_err(StageError::io(folder))?;
    notes.iter().for_each(|note| tracing::warn!("{}: {note}", T::KIND));
    Ok(())
}

/// [`done_earlier`], as the first of several processes sees it: a folder changes while others look.
fn done_for_all<R: TrainingRecipe>(
    context: &StageContext<'_>,
    recipe: &R,
) -> Result<Option<TrainingSummary>, StageError> {
    let collective = context.collective;
    let done = if collective.is_first() { done_earlier(context, recipe)? } else { None };
    let told = |source| StageError::Io { path: context.folder.join(RESULT), source };
    let mut bytes = serde_json::to_vec(&done).map_err(|error| told(error.into()))?;
    collective.broadcast(0, &mut bytes).map_err(TrainError::from)?;
    if collective.is_first() {
        return Ok(done);
    }
    serde_json::from_slice(&bytes).map_err(|error| told(error.into()))
}

/// Writes the model of a run, whose folder is the context's, with an average that is rebuilt from its snapshots, to `out`, where
/// nothing is.
///
/// # Errors
/// [`StageError::Average`]: it cannot be rebuilt. Others as of [`train`].
pub fn rebuild_average<T: Task>(
    recipe: &T::Recipe,
    wanted: &Wanted,
    out: &Path,
    context: &StageContext<'_>,
) -> Result<Rebuilt, StageError> {
    let rebuilt = Rebuilt::open(context.folder, recipe.config().run.seed, wanted)?;
    let task = T::open(recipe, context)?;
    let model = rebuilt.fill(task.model(&mut Init::placeholders(context.device))?)?;
    export_new(&task, &model, out)?;
    Ok(rebuilt)
}

/// Writes a model to a place where nothing is, not even the folder around it.
pub(crate) fn export_new<T: Task>(task: &T, model: &T::Model, out: &Path) -> Result<(), StageError> {
    let parent = durable::parent_folder(out);
    std::fs::create_dir_all(parent).map_err(StageError::io(parent))?;
    export_to(task, model, out)
}

/// The result of a stage that was finished earlier with the same recipe.
pub(crate) fn done_earlier<R: TrainingRecipe>(
    context: &StageContext<'_>,
    recipe: &R,
) -> Result<Option<TrainingSummary>, StageError> {
    let path = context.folder.join(RESULT);
    let result = read_result(context.folder).map_err(StageError::io(&path))?;
    // With another recipe, the trainer refuses the folder and says what differs.
    Ok(result.filter(|_| matches!(trainer::claim(context.folder, recipe), Ok(Claim::Same | Claim::Respelled))))
}

/// The figures of a finished run's folder.
///
/// # Errors
/// Those of reading; a damaged file is told what to do about it.
pub(crate) fn read_result(folder: &Path) -> std::io::Result<Option<TrainingSummary>> {
    durable::read_json(&folder.join(RESULT)).map_err(|error| match error.kind() {
        // Checkpoints and model lie beside it.
        std::io::ErrorKind::InvalidData => std::io::Error::other(format!(
            "{error}; copy it back, or remove it: a start of the run then ends it anew with its last checkpoint"
        )),
        _ => error,
    })
}

/// What a precache stage did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecacheSummary {
    /// Samples of the slice of the work.
    pub samples: usize,
    /// Samples of it that were encoded now; the others were there.
    pub encoded: usize,
    /// Length of the slice's shards, in bytes.
    pub bytes: u64,
    /// Captions that were cut, of those encoded now.
    pub truncated: u64,
    /// What was changed of the images encoded now, in sentences.
    pub images: Vec<String>,
    /// Samples of the whole source that are left out, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// Samples of the whole dataset, if all slices are done.
    pub finished: Option<usize>,
}

/// Encodes a slice of a dataset once; restartable.
///
/// # Errors
/// [`StageError`].
pub fn precache(
    recipe: &PrecacheRecipe,
    slice: Slice,
    device: &Device,
    stop: &StopFlag,
) -> Result<StageEnd<PrecacheSummary>, StageError> {
    recipe.validate()?;
    let source = calotype_data::source::open(&recipe.source, &recipe.source_options)?;
    calotype_data::source::refuse_idle([recipe.source.as_str()], &recipe.source_options)?;
    let mut encoders = Encoders::open(recipe, source.meta(), device)?;
    let out = Path::new(&recipe.out);
    let mut progress = Progress::new("precache", source.len() as u64);
    let mut begun = false;
    let report = |_: &'static str, done: usize, total: usize| {
        progress.set_total(total as u64);
        if !std::mem::replace(&mut begun, true) {
            progress.start_at(done as u64);
        }
        progress.set(done as u64, &[]);
    };
    let mut control = Control::default().with_progress(report).with_stop(|| stop.is_set());
    let encoded = data_precache::precache(source.as_ref(), &mut encoders, out, recipe.shards(), slice, &mut control);
    drop(control);
    match encoded {
        Ok(done) => {
            progress.finish();
            if done.index.is_some() {
                encoders.record().write(out)?;
                write_conditioning(&mut encoders, out)?;
            }
            Ok(StageEnd::Done(PrecacheSummary {
                samples: done.samples,
                encoded: done.encoded,
                bytes: done.bytes,
                truncated: encoders.truncated(),
                images: encoders.image_notes(),
                left_out: source.left_out(),
                finished: done.index.map(|index| index.samples),
            }))
        }
        Err(calotype_data::Error::Interrupted { done, .. }) => Ok(StageEnd::Interrupted { samples: done as u64 }),
        Err(error) => Err(error.into()),
    }
}

/// Writes beside a finished dataset what its samples do not say, unless it is there.
fn write_conditioning(encoders: &mut Encoders, out: &Path) -> Result<(), StageError> {
    if out.join(CONDITIONING).is_file() {
        return Ok(());
    }
    let dataset = Dataset::open(out)?;
    let wrong = |source| StageError::Dataset { path: out.to_owned(), source };
    let scale_factor = match (encoders.scaling_factor()?, encoders.moments()) {
        (None, Some(moments)) => Some(measure_scale_factor(&dataset, &moments).map_err(wrong)?),
        (known, _) => known,
    };
    let empty = encoders.empty_captions()?;
    Ok(Conditioning { empty, scale_factor }.write(out)?)
}
