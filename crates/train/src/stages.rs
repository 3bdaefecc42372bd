//! Whole stages: from a recipe to a trained model on disk.
//!
//! A stage's folder holds `recipe.toml`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, and at the end `model/` and
//! `result.json`. A stage whose `result.json` is there is done and is not run again.

use crate::artifacts::{ArtifactError, save_model};
use crate::autoencoder::AutoencoderObjective;
use crate::clip::ClipObjective;
use crate::diffusion::{DiffusionConfig, DiffusionObjective, LatentShape};
use crate::precache::{Encoders, PrecacheRecipe, measure_scale_factor};
use crate::progress::Progress;
use crate::settings::{AutoencoderRecipe, ClipRecipe, DiffusionRecipe, SettingError};
use crate::stop::StopFlag;
use crate::trainer::{BoxError, Objective, Outcome, RECIPE, RunContext, TrainError, TrainingSummary, train};
use burn::module::Module;
use burn::tensor::Device;
use calotype_data::{Control, Dataset, ShardLimits, precache as data_precache};
use calotype_diffusion::{NoiseSchedule, ScheduleError};
use calotype_models::state::values_of;
use calotype_models::{ConfigError, Init};
use calotype_weights::{NamedTensor, TensorFile, TensorFileError, durable, write_safetensors};
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

impl StageError {
    /// Whether the recipe, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Setting(_) | Self::Config(_) | Self::Schedule(_) | Self::Train(TrainError::OtherRecipe { .. })
        )
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
    let objective = ClipObjective::new(value, site.device);
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
    let objective = AutoencoderObjective::new(value, site.device);
    let init = |init: &mut Init<'_>| value.model.init(init);
    run_training("autoencoder", &objective, init, (&value.course(), &value.data), recipe.text, &value.model, site)
}

/// What a precached dataset says of itself beside its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditioning {
    /// States of the empty prompt, `[tokens, channels]`.
    pub empty_states: Vec<f32>,
    /// What latents are multiplied by.
    pub scale_factor: f64,
}

impl Conditioning {
    /// Reads what [`precache`] wrote into the dataset's folder.
    ///
    /// # Errors
    /// [`TensorFileError`] naming the file.
    pub fn read(folder: &Path) -> Result<Self, TensorFileError> {
        let file = TensorFile::open(folder.join(CONDITIONING))?;
        let scale = file.get("scale_factor")?.to_f32_vec_finite()?;
        Ok(Self {
            empty_states: file.get("empty_states")?.to_f32_vec_finite()?,
            scale_factor: scale.first().map_or(1.0, |&s| f64::from(s)),
        })
    }
}

/// Encodes pictures and captions once; restartable. Gives the number of samples.
///
/// # Errors
/// [`StageError`].
pub fn precache(recipe: &PrecacheRecipe, device: &Device, stop: &StopFlag) -> Result<StageEnd<usize>, StageError> {
    let source = Dataset::open(&recipe.source)?;
    let mut encoders = Encoders::load(recipe, device)?;
    let out = Path::new(&recipe.out);
    let mut progress = Progress::new("precache", source.len() as u64);
    let limits = ShardLimits { samples: recipe.shard_samples, ..ShardLimits::default() };
    let mut control =
        Control::default().with_progress(|_, done, _| progress.set(done as u64, &[])).with_stop(|| stop.is_set());
    let encoded = data_precache::precache(&source, &mut encoders, out, recipe.batch_size, limits, &mut control);
    drop(control);
    match encoded {
        Ok(index) => {
            progress.finish();
            write_conditioning(&encoders, out)?;
            Ok(StageEnd::Done(index.samples))
        }
        Err(calotype_data::Error::Interrupted { done, .. }) => Ok(StageEnd::Interrupted { samples: done as u64 }),
        Err(error) => Err(error.into()),
    }
}

fn write_conditioning(encoders: &Encoders, out: &Path) -> Result<(), StageError> {
    let dataset = Dataset::open(out)?;
    let scale =
        measure_scale_factor(&dataset).map_err(|source| StageError::Dataset { path: out.to_owned(), source })? as f32;
    let states = encoders.text().states(&[""]);
    let [_, tokens, channels] = states.dims();
    let states = values_of(states);
    let tensors = [
        NamedTensor::from_f32("empty_states", [tokens, channels], &states),
        NamedTensor::from_f32("scale_factor", [1], std::slice::from_ref(&scale)),
    ];
    Ok(write_safetensors(&out.join(CONDITIONING), &tensors, &BTreeMap::new())?)
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
    let config = diffusion_config(value)?;
    let shape = latent_shape(Path::new(&value.data.path))?;
    let conditioning = Conditioning::read(Path::new(&value.data.path))?;
    let schedule = NoiseSchedule::new(&value.schedule)?;
    let objective = DiffusionObjective::new(
        value,
        schedule,
        shape,
        conditioning.scale_factor,
        conditioning.empty_states,
        site.device,
    );
    let init = |init: &mut Init<'_>| value.model.init(init);
    run_training("diffusion", &objective, init, (&value.course(), &value.data), recipe.text, &config, site)
}

fn latent_shape(folder: &Path) -> Result<LatentShape, StageError> {
    let dataset = Dataset::open(folder)?;
    LatentShape::of(&dataset).map_err(|source| StageError::Dataset { path: folder.to_owned(), source })
}

/// What the UNet of a recipe will be saved with; also checks that it fits its dataset.
///
/// # Errors
/// [`StageError`].
pub fn diffusion_config(recipe: &DiffusionRecipe) -> Result<DiffusionConfig, StageError> {
    let folder = Path::new(&recipe.data.path);
    let shape = latent_shape(folder)?;
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
        scale_factor: Conditioning::read(folder)?.scale_factor,
        latent_size: shape.latent,
    })
}
