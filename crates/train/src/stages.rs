//! Whole stages: from a recipe to a trained model on disk.
//!
//! A stage's folder holds `recipe.toml`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, and at the end `model/` and
//! `result.json`. A stage whose `result.json` is there is done and is not run again.

use crate::artifacts::{ArtifactError, save_model};
use crate::autoencoder::AutoencoderObjective;
use crate::clip::ClipObjective;
use crate::diffusion::{DiffusionConfig, DiffusionObjective};
use crate::encoders::EncoderError;
use crate::inputs::{Conditioning, DiffusionInputs};
use crate::precache::{Encoders, PrecacheRecipe, measure_scale_factor};
use crate::progress::Progress;
use crate::settings::{AutoencoderRecipe, ClipRecipe, DiffusionRecipe, SettingError};
use crate::sources::open_source;
use crate::stop::StopFlag;
use crate::trainer::{BoxError, Objective, Outcome, RECIPE, RunContext, TrainError, TrainingSummary, train};
use burn::module::Module;
use burn::tensor::Device;
use calotype_data::precache::{self as data_precache, Share, encoder_of};
use calotype_data::{Control, Dataset};
use calotype_diffusion::{NoiseSchedule, ScheduleError};
use calotype_models::{ConfigError, Init};
use calotype_weights::{TensorFileError, durable};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Figures of a finished stage.
pub const RESULT: &str = "result.json";
/// Folder of a stage's model.
pub const MODEL: &str = "model";
/// What a precached dataset holds beside its shards: the empty prompt's states and the latents' scale.
pub const CONDITIONING: &str = "conditioning.safetensors";

/// A recipe with its full text.
#[derive(Clone, Copy, Debug)]
pub struct Recipe<'a, T> {
    /// The typed recipe.
    pub value: &'a T,
    /// The resolved text, saved beside the run.
    pub text: &'a str,
}

/// Where a stage runs.
#[derive(Debug)]
pub struct Site<'a> {
    /// The stage's folder.
    pub folder: &'a Path,
    /// The device, without autodiff.
    pub device: &'a Device,
    /// Asked for between two steps.
    pub stop: &'a StopFlag,
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
    #[error("recipe key `model.{}`: {}", .0.field, .0.problem)]
    Config(#[from] ConfigError),
    /// A noise schedule is impossible.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A model could not be saved or loaded.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Reading or writing a dataset failed.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// A tensor file is missing or damaged.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
    /// A frozen encoder cannot be used.
    #[error(transparent)]
    Encoder(Box<EncoderError>),
    /// A dataset's samples are not what the stage needs.
    #[error("{}: {source}", path.display())]
    Dataset {
        /// The dataset's folder.
        path: PathBuf,
        /// What is wrong.
        source: BoxError,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl From<EncoderError> for StageError {
    fn from(error: EncoderError) -> Self {
        Self::Encoder(Box::new(error))
    }
}

impl StageError {
    /// Whether the recipe, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Setting(_) | Self::Config(_) | Self::Schedule(_) => true,
            Self::Train(error) => matches!(error, TrainError::OtherRecipe { .. } | TrainError::OtherEncoder { .. }),
            Self::Encoder(error) => error.is_usage(),
            _ => false,
        }
    }

    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Writes a small JSON file atomically.
///
/// # Errors
/// [`StageError::Io`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StageError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| StageError::io(path)(error.into()))?;
    durable::replace_file(path, |file| file.write_all(&text)).map_err(StageError::io(path))
}

/// Reads a small JSON file; `None` if it is not there.
///
/// # Errors
/// [`StageError::Io`] also where the contents are not what was expected.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StageError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| StageError::io(path)(error.into())),
        // Below a regular file there is nothing either; whoever writes there says what is wrong.
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(StageError::io(path)(error)),
    }
}

/// The result of a stage that was finished earlier with the same recipe.
fn done_earlier(site: &Site<'_>, recipe: &str) -> Result<Option<TrainingSummary>, StageError> {
    let result = read_json(&site.folder.join(RESULT))?;
    let saved = std::fs::read_to_string(site.folder.join(RECIPE)).unwrap_or_default();
    // With another recipe, the trainer refuses the folder and says what differs.
    Ok(result.filter(|_| saved == recipe))
}

/// Trains, saves the model with its configuration, and writes the result last.
fn run_training<O: Objective>(
    stage: &str,
    objective: &O,
    init: impl FnOnce(&mut Init<'_>) -> Result<O::Model, ConfigError>,
    (course, data): (&crate::settings::Course<'_>, &crate::settings::DataSettings),
    recipe: &str,
    config: &impl Serialize,
    site: &Site<'_>,
) -> Result<StageEnd, StageError> {
    let device = site.device.clone().autodiff();
    let model = init(&mut Init::new(course.run.seed, &device))?;
    let context = RunContext { folder: site.folder, stage, recipe, stop: site.stop };
    match train(objective, model, course, data, &context)? {
        Outcome::Interrupted { samples, .. } => Ok(StageEnd::Interrupted { samples }),
        Outcome::Finished(model, summary) => {
            save_model(&site.folder.join(MODEL), &model.valid(), config)?;
            write_json(&site.folder.join(RESULT), &summary)?;
            Ok(StageEnd::Done(summary))
        }
    }
}

/// Trains CLIP.
///
/// # Errors
/// [`StageError`].
pub fn train_clip(recipe: Recipe<'_, ClipRecipe>, site: &Site<'_>) -> Result<StageEnd, StageError> {
    let value = recipe.value;
    value.validate()?;
    if let Some(summary) = done_earlier(site, recipe.text)? {
        return Ok(StageEnd::Done(summary));
    }
    let objective = ClipObjective::new(value, site.device)?;
    let init = |init: &mut Init<'_>| value.model.init(init);
    run_training("clip", &objective, init, (&value.course(), &value.data), recipe.text, &value.model, site)
}

/// Trains the autoencoder.
///
/// # Errors
/// [`StageError`].
pub fn train_autoencoder(recipe: Recipe<'_, AutoencoderRecipe>, site: &Site<'_>) -> Result<StageEnd, StageError> {
    let value = recipe.value;
    value.validate()?;
    if let Some(summary) = done_earlier(site, recipe.text)? {
        return Ok(StageEnd::Done(summary));
    }
    let objective = AutoencoderObjective::new(value, site.device)?;
    let init = |init: &mut Init<'_>| value.model.init(init);
    run_training("autoencoder", &objective, init, (&value.course(), &value.data), recipe.text, &value.model, site)
}

/// What a precache stage did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecacheSummary {
    /// Samples of the share of the work.
    pub samples: usize,
    /// Samples of it that were encoded now; the others were there.
    pub encoded: usize,
    /// Length of the share's shards, in bytes.
    pub bytes: u64,
    /// Captions that were cut, of those encoded now.
    pub truncated: u64,
    /// Samples of the whole source that are left out, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// Samples of the whole dataset, if all shares are done.
    pub finished: Option<usize>,
}

/// Encodes a share of a dataset once; restartable.
///
/// # Errors
/// [`StageError`].
pub fn precache(
    recipe: &PrecacheRecipe,
    share: Share,
    device: &Device,
    stop: &StopFlag,
) -> Result<StageEnd<PrecacheSummary>, StageError> {
    recipe.validate()?;
    let source = calotype_data::source::open(&recipe.source, &recipe.source_options)?;
    let mut encoders = Encoders::open(recipe, device)?;
    let out = Path::new(&recipe.out);
    let mut progress = Progress::new("precache", source.len() as u64);
    let report = |_: &'static str, done: usize, total: usize| {
        progress.set_total(total as u64);
        progress.set(done as u64, &[]);
    };
    let mut control = Control::default().with_progress(report).with_stop(|| stop.is_set());
    let encoded = data_precache::precache(source.as_ref(), &mut encoders, out, recipe.shards(), share, &mut control);
    drop(control);
    match encoded {
        Ok(done) => {
            progress.finish();
            if done.index.is_some() {
                write_conditioning(&mut encoders, out)?;
            }
            Ok(StageEnd::Done(PrecacheSummary {
                samples: done.samples,
                encoded: done.encoded,
                bytes: done.bytes,
                truncated: encoders.truncated(),
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
    let scale_factor = match (encoders.scaling_factor(), encoders.moments()) {
        (None, Some(moments)) => Some(measure_scale_factor(&dataset, &moments).map_err(wrong)?),
        (known, _) => known,
    };
    let empty = encoders.empty_captions()?;
    Ok(Conditioning { empty, scale_factor }.write(out)?)
}

/// Trains the UNet on a precached dataset.
///
/// # Errors
/// [`StageError`].
pub fn train_diffusion(recipe: Recipe<'_, DiffusionRecipe>, site: &Site<'_>) -> Result<StageEnd, StageError> {
    let value = recipe.value;
    value.validate()?;
    if let Some(summary) = done_earlier(site, recipe.text)? {
        return Ok(StageEnd::Done(summary));
    }
    let schedule = NoiseSchedule::new(&value.schedule)?;
    let dataset = open_source(&value.data, None)?;
    let inputs = DiffusionInputs::open(value, dataset.as_ref(), site.device)?;
    let mut config = diffusion_config(value, &inputs)?;
    config.dataset_encoder = encoder_of(dataset.meta()).map(str::to_owned);
    drop(dataset);
    let objective = DiffusionObjective::new(value, schedule, inputs, site.device);
    config.text_encoder = objective.encoders();
    let init = |init: &mut Init<'_>| value.model.init(init);
    run_training("diffusion", &objective, init, (&value.course(), &value.data), recipe.text, &config, site)
}

/// What the UNet of a recipe will be saved with; also checks that it fits its dataset.
///
/// # Errors
/// [`StageError`].
pub fn diffusion_config(recipe: &DiffusionRecipe, inputs: &DiffusionInputs) -> Result<DiffusionConfig, StageError> {
    let shape = inputs.reader.shape();
    let [height, width, channels] = shape.latent;
    let model = &recipe.model;
    let multiple = model.size_multiple();
    let problem = if (channels, channels) != (model.in_channels, model.out_channels) {
        Some(("in_channels", format!("the dataset's latents have {channels} channels")))
    } else if shape.states[1] != model.context_channels {
        Some(("context_channels", format!("the dataset's text states have {} channels", shape.states[1])))
    } else if height % multiple != 0 || width % multiple != 0 {
        Some((
            "block_out_channels",
            format!("latents of {height}x{width} do not divide by {multiple}, as this many levels need"),
        ))
    } else {
        None
    };
    if let Some((field, problem)) = problem {
        return Err(ConfigError { field, problem }.into());
    }
    Ok(DiffusionConfig {
        model: model.clone(),
        schedule: recipe.schedule.clone(),
        prediction: recipe.objective.prediction,
        scale_factor: inputs.scale_factor,
        latent_size: shape.latent,
        dataset_encoder: None,
        text_encoder: None,
    })
}
