//! Trained models in the published layouts: diffusers' for UNet, autoencoder and whole pipelines, transformers' for CLIP and
//! ViT. Whatever opens published checkpoints opens them.

use crate::config::{Augment, InitFrom};
use crate::encoders::{DatasetEncoders, EncoderEntry};
use crate::inputs::DroppedCaption;
use crate::precache::{EncoderKind, ResizeFilter};
use crate::stages::StageError;
use crate::tasks::diffusion::DiffusionRecipe;
use burn::tensor::{DType, Device};
use calotype_checkpoints::{
    Checkpoint, Component, ComponentSource, Export, Filter, ImageProcessor, LayoutError, Part, Placement,
    SCALE_UNKNOWN, TextFiles,
};
use calotype_core::durable;
use calotype_diffusion::{NoiseSchedule, Prediction, ScheduleConfig, ScheduleKind};
use calotype_models::tokenizer::{TokenizerOptions, clip_files};
use calotype_models::{
    Autoencoder, AutoencoderConfig, Clip, ClipConfig, ClipTokenizer, UNet, UNetConfig, Vit, VitConfig,
};
use calotype_pipeline::belonging::recorded;
use calotype_pipeline::encoders::image::ImageInput;
use calotype_pipeline::encoders::text::{HiddenStates, TokenizerChoice};
use calotype_pipeline::encoders::{ImageEncoder, ImageEncoderKind, ImageOutput, TextEncoder, TextSettings};
use calotype_weights::{NamedTensor, TensorFileError, TensorInfo, TensorSource};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The tokenizer that CLIP training uses: one that transformers has too.
pub(crate) fn clip_tokenizer(length: usize) -> ClipTokenizer {
    ClipTokenizer::with_options(length, TokenizerOptions::TRANSFORMERS_EXCLAMATION)
}

/// How images are prepared for a model that was trained with the recipe's filter and normalisation.
fn image_processor(size: usize, augment: &Augment) -> ImageProcessor {
    let filter = match augment.filter {
        ResizeFilter::Nearest => Filter::Nearest,
        ResizeFilter::Box => Filter::Box,
        ResizeFilter::Bilinear => Filter::Bilinear,
        ResizeFilter::Lanczos => Filter::Lanczos,
        // Processors of images resize levels.
        ResizeFilter::Bicubic | ResizeFilter::TorchBicubic => Filter::Bicubic,
    };
    let (mean, std) = augment.normalise.mean_and_deviation();
    ImageProcessor { mean, std, filter, ..ImageProcessor::clip(size) }
}

/// A CLIP model as transformers' `CLIPModel`, with image processor and tokenizer.
///
/// # Errors
/// [`StageError`] if transformers cannot say the configuration.
pub fn clip(model: &Clip, config: &ClipConfig, augment: &Augment) -> Result<Export<'static>, StageError> {
    let length = config.text.context_length;
    Export::model(Part::module(Component::Clip, config.to_transformers()?, model))
        .image_processor(&image_processor(config.vision.image_size, augment))
        .tokenizer(Component::Clip, TokenizerOptions::TRANSFORMERS_EXCLAMATION, length)
        .map_err(|error| unsaid(Component::Clip, &error))
}

/// An autoencoder as diffusers' `AutoencoderKL` of images of `resolution` pixels. What latents are multiplied by is what its
/// configuration says, or else what was `measured`; if neither is known, it is marked as such.
pub fn autoencoder(
    model: &Autoencoder,
    config: &AutoencoderConfig,
    resolution: usize,
    measured: Option<f64>,
) -> Export<'static> {
    let mut published = config.to_diffusers();
    published["sample_size"] = resolution.into();
    match (config.scaling_factor, measured) {
        (Some(_), _) => {}
        (None, Some(scale)) => published["scaling_factor"] = scale.into(),
        (None, None) => published[SCALE_UNKNOWN] = true.into(),
    }
    Export::model(Part::module(Component::Vae, published, model))
}

/// A classifier as transformers' `ViTForImageClassification`, or as Calotype's own where the library has none such, with image
/// processor; `names` are its classes', if they are known.
///
/// # Errors
/// [`StageError`] if the configuration makes no sense.
pub fn vit(
    model: &Vit,
    config: &VitConfig,
    names: &[String],
    augment: &Augment,
) -> Result<Export<'static>, StageError> {
    let mut published = config.to_calotype()?;
    if !names.is_empty() {
        let numbered = || names.iter().enumerate();
        published["id2label"] = numbered().map(|(id, name)| (id.to_string(), json!(name))).collect();
        published["label2id"] = numbered().map(|(id, name)| (name.clone(), json!(id))).collect();
    }
    let export = Export::model(Part::module(Component::Classifier, published, model));
    Ok(export.image_processor(&image_processor(config.image_size, augment)))
}

/// A configuration that the libraries cannot say.
fn unsaid(component: Component, error: &dyn std::error::Error) -> StageError {
    LayoutError::Config { component, reason: error.to_string() }.into()
}

/// The frozen networks that a diffusion run belongs with.
#[derive(Debug)]
pub struct DiffusionParts {
    pub(crate) text: Option<TextPart>,
    autoencoder: Option<AutoencoderPart>,
    pub(crate) notes: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct TextPart {
    pub(crate) settings: TextSettings,
    /// Hash of its weights, where it was recorded.
    weights: Option<String>,
}

#[derive(Debug)]
struct AutoencoderPart {
    path: PathBuf,
    weights: Option<String>,
    resolution: usize,
}

impl DiffusionParts {
    /// What a recipe names, or else the `encoders.json` of its dataset.
    ///
    /// # Errors
    /// [`StageError::Io`] if that file cannot be read.
    pub fn of(recipe: &DiffusionRecipe) -> Result<Self, StageError> {
        let specs = recipe.data.specs();
        let folder = specs.iter().map(|(spec, _)| Path::new(*spec)).find(|path| path.is_dir());
        let known = folder.map_or_else(|| Ok(DatasetEncoders::default()), DatasetEncoders::read)?;
        let mut notes = Vec::new();
        let text = match &recipe.text {
            Some(settings) => Some(TextPart { settings: settings.clone(), weights: None }),
            None => recorded_text(recipe, &known, &mut notes),
        };
        let moments =
            known.0.values().find(|e| e.kind == EncoderKind::Autoencoder && e.output == recipe.inputs.moments);
        let autoencoder = match (&recipe.autoencoder, moments) {
            // Another one than the dataset's would make a pipeline that draws nonsense.
            (Some(path), entry) => Some(AutoencoderPart {
                path: path.into(),
                weights: entry.map(|entry| entry.weights.clone()),
                resolution: entry.and_then(|entry| entry.resolution).unwrap_or(0),
            }),
            (None, Some(entry)) => Some(AutoencoderPart {
                path: entry.path.clone(),
                weights: Some(entry.weights.clone()),
                resolution: entry.resolution.unwrap_or(0),
            }),
            (None, None) => None,
        };
        Ok(Self { text, autoencoder, notes })
    }

    /// Refuses encoders that are there and hold other weights than those that made the dataset: a pipeline of them and the
    /// UNet to be trained would draw nonsense. `side`: of an image in pixels. Says what else the pipeline will lack.
    ///
    /// # Errors
    /// [`StageError::Together`] naming the encoder.
    pub fn check(&self, device: &Device, side: usize) -> Result<Vec<String>, StageError> {
        let mut notes = Vec::new();
        drop((self.open_text(device, &mut notes), self.open_autoencoder(device, side, &mut notes)));
        match notes.iter().find(|note| note.contains(CHANGED)) {
            None => Ok(notes),
            // It is refused, and nothing is left out.
            Some(note) => Err(StageError::Together(format!(
                "{}; put the former encoder back, or encode the dataset again (calotype data precache)",
                note.replacen(LEFT_OUT, " ", 1)
            ))),
        }
    }

    /// Refuses initial weights of a UNet that was trained with another autoencoder than the one that made the dataset, where both
    /// are recorded.
    ///
    /// # Errors
    /// [`StageError::Together`]; those of opening the checkpoint.
    pub fn check_init(&self, from: Option<&InitFrom>) -> Result<(), StageError> {
        let weights = self.autoencoder.as_ref().and_then(|part| part.weights.as_ref());
        let path = from.filter(|from| !from.0.other_encoders).and_then(|from| from.0.path.as_ref());
        let (Some(weights), Some(path)) = (weights, path) else { return Ok(()) };
        let Ok(checkpoint) = Checkpoint::open(path) else { return Ok(()) };
        let recorded = recorded(&checkpoint).map_err(|error| StageError::Together(error.to_string()))?;
        match recorded.as_ref().and_then(|recorded| recorded.get(Component::Vae.name())) {
            Some(other) if other != weights => Err(StageError::Together(format!(
                "init_from: the UNet of {path} was trained with another autoencoder than the one that made the dataset; encode the \
                 dataset with its own, or set init_from.other_encoders = true to train it anew"
            ))),
            _ => Ok(()),
        }
    }

    /// The text encoder's checkpoint, if it is there and is still the one that made the dataset.
    pub(crate) fn open_text(&self, device: &Device, notes: &mut Vec<String>) -> Option<Checkpoint> {
        let part = self.text.as_ref()?;
        let tower = match TextEncoder::open(&part.settings, device) {
            Ok(tower) => tower,
            Err(error) => return left_out(notes, "text encoder", &error.to_string()),
        };
        if part.weights.as_ref().is_some_and(|weights| weights != tower.weights()) {
            return left_out(notes, "text encoder", &changed(Path::new(&part.settings.model)));
        }
        match Checkpoint::open(&part.settings.model) {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) => left_out(notes, "text encoder", &error.to_string()),
        }
    }

    /// The autoencoder's checkpoint, if it is there and is still the one that made the dataset.
    pub(crate) fn open_autoencoder(&self, device: &Device, side: usize, notes: &mut Vec<String>) -> Option<Checkpoint> {
        let part = self.autoencoder.as_ref()?;
        let (kind, output) = (ImageEncoderKind::Autoencoder, ImageOutput::Auto);
        let input = ImageInput::in_range(part.resolution.max(side), -1.0, 1.0);
        let weights = match &part.weights {
            None => None,
            Some(weights) => match ImageEncoder::open(&part.path, kind, output, input, DType::F32, device) {
                Ok(encoder) => Some((weights, encoder.weights().to_owned())),
                Err(error) => return left_out(notes, "autoencoder", &error.to_string()),
            },
        };
        if weights.is_some_and(|(recorded, found)| *recorded != found) {
            return left_out(notes, "autoencoder", &changed(&part.path));
        }
        match Checkpoint::open(&part.path) {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) => left_out(notes, "autoencoder", &error.to_string()),
        }
    }
}

/// What is said of hidden states that pipelines of Stable Diffusion do not take.
const WITHOUT_NORM: &str =
    "its hidden states are those in front of the last layer without the final norm, as of Stable Diffusion XL";

/// What is said of an encoder that is another one now.
const CHANGED: &str = "holds other weights than those that made the dataset";

const LEFT_OUT: &str = " is left out of the pipeline: ";

fn changed(path: &Path) -> String {
    format!("{} {CHANGED}", short(path).display())
}

/// A path without steps back, as `data/../model`, below the current folder if it lies there; others as they are.
fn short(path: &Path) -> PathBuf {
    if !path.components().any(|part| part == std::path::Component::ParentDir) {
        return path.to_owned();
    }
    let Ok(whole) = path.canonicalize() else { return path.to_owned() };
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    here.ok().and_then(|here| whole.strip_prefix(here).map(Path::to_owned).ok()).unwrap_or(whole)
}

fn left_out<T>(notes: &mut Vec<String>, what: &str, why: &str) -> Option<T> {
    notes.push(format!("the {what}{LEFT_OUT}{why}"));
    None
}

/// The dataset's only text encoder, if a pipeline of Stable Diffusion takes the hidden states that it gave.
fn recorded_text(recipe: &DiffusionRecipe, known: &DatasetEncoders, notes: &mut Vec<String>) -> Option<TextPart> {
    let wanted = recipe.inputs.state_addresses();
    let entries = known.0.values().filter(|entry| entry.kind == EncoderKind::Text && wanted.contains(&entry.output));
    let entries: Vec<&EncoderEntry> = entries.collect();
    let [entry] = entries[..] else {
        if entries.len() > 1 {
            notes.push(format!(
                "the hidden states are those of {} text encoders: no pipeline is written",
                entries.len()
            ));
        }
        return None;
    };
    let states = entry.states.unwrap_or_default();
    if states == HiddenStates::Penultimate {
        return left_out(notes, "text encoder", WITHOUT_NORM);
    }
    let settings = TextSettings {
        model: entry.path.display().to_string(),
        component: entry.component,
        states,
        tokenizer: entry.tokenizer.unwrap_or_default(),
        precision: Default::default(),
    };
    Some(TextPart { settings, weights: Some(entry.weights.clone()) })
}

/// A diffusion model with what its configuration does not say.
#[derive(Debug)]
pub struct DiffusionExport<'a> {
    /// The network.
    pub model: &'a UNet,
    /// Its configuration.
    pub config: &'a UNetConfig,
    /// The noise schedule of training.
    pub schedule: &'a ScheduleConfig,
    /// What the network predicts.
    pub prediction: Prediction,
    /// `[height, width, channels]` of a latent.
    pub latent: [usize; 3],
    /// What latents were multiplied by.
    pub scale_factor: f64,
    /// What stood in the place of dropped captions; none if all were kept.
    pub dropped: Option<DroppedCaption>,
    /// The networks that it belongs with.
    pub parts: &'a DiffusionParts,
}

/// What is said of a network that knows a missing caption as zeros.
const ZEROS: &str = "captions were dropped as zeros: guidance has to put zeros, not the empty prompt, in a missing prompt's place; \
                     `generate` is told so by model_index.json (force_zeros_for_empty_prompt), and pipelines of diffusers but \
                     those of SDXL need negative_prompt_embeds";

impl DiffusionExport<'_> {
    /// UNet and scheduler, without the networks that they belong with: in Calotype's own layout if diffusers' configuration
    /// cannot describe the UNet.
    ///
    /// # Errors
    /// [`StageError`] naming the field if that one cannot either.
    pub fn own(&self) -> Result<Export<'static>, StageError> {
        let published = self.config.to_diffusers();
        let mut config = match &published {
            Ok(config) => config.clone(),
            Err(_) => self.config.to_calotype().map_err(|error| unsaid(Component::Unet, &error))?,
        };
        config["sample_size"] = self.latent[0].into();
        let export = Export::pipeline(None)
            .part(Part::module(Component::Unet, config, self.model))
            .scheduler(&scheduler(self.schedule, self.prediction));
        Ok(if published.is_ok() { export } else { export.with_manifest(Some(self.prediction)) })
    }

    /// A sentence about the layout, if it is not diffusers'.
    fn layout_note(&self) -> Option<String> {
        let error = self.config.to_diffusers().err()?;
        Some(format!("written in Calotype's own layout, which diffusers does not read: {error}"))
    }

    /// Writes a diffusers pipeline if autoencoder and text encoder are known, and UNet and scheduler in folders of their own
    /// otherwise; sentences about what was left out are the result.
    ///
    /// # Errors
    /// [`StageError`] if diffusers cannot say the configuration, or the folder cannot be written.
    pub fn write(&self, device: &Device, folder: &Path) -> Result<Vec<String>, StageError> {
        let mut notes = self.parts.notes.clone();
        notes.extend(self.layout_note());
        let side = self.latent[0] * 8;
        let text = self.parts.open_text(device, &mut notes);
        let autoencoder = self.parts.open_autoencoder(device, side, &mut notes);
        let vae = autoencoder.as_ref().map(|checkpoint| checkpoint.component(Component::Vae)).transpose()?;
        let encoder = match (&text, &self.parts.text) {
            (Some(checkpoint), Some(part)) => {
                TextSource::of(checkpoint.component(part.settings.component)?, part.settings.states)
            }
            _ => None,
        };
        if text.is_some() && encoder.is_none() {
            left_out::<()>(&mut notes, "text encoder", WITHOUT_NORM);
        }
        let mut export: Export<'_> = self.own()?;
        if let Some(vae) = &vae {
            export = export.part(Part::tensors(Component::Vae, self.vae_config(&vae.config), vae));
        }
        if let (Some(encoder), Some(checkpoint), Some(part)) = (&encoder, &text, &self.parts.text) {
            export = export.part(Part::tensors(Component::TextEncoder, encoder.config(), encoder));
            export = with_tokenizer(export, checkpoint, &part.settings, &mut notes)?;
        }
        let written = export.write(folder, Placement::New)?;
        if self.dropped == Some(DroppedCaption::Zeros) {
            mark_zeros(folder)?;
            notes.push(ZEROS.to_owned());
        }
        calotype_pipeline::belonging::record(folder).map_err(|error| StageError::Together(error.to_string()))?;
        notes.extend(written.notes);
        Ok(notes)
    }

    /// The autoencoder's configuration with the scaling factor of training.
    fn vae_config(&self, config: &Value) -> Value {
        let mut config = config.clone();
        if let Some(fields) = config.as_object_mut() {
            fields.remove(SCALE_UNKNOWN);
        }
        config["scaling_factor"] = self.scale_factor.into();
        config
    }
}

/// Says in a pipeline's index that zeros stand for a missing prompt.
fn mark_zeros(folder: &Path) -> Result<(), StageError> {
    let path = folder.join("model_index.json");
    let index: Option<Value> = durable::read_json(&path).map_err(StageError::io(&path))?;
    let Some(mut index) = index else { return Ok(()) };
    index["force_zeros_for_empty_prompt"] = true.into();
    durable::write_json(&path, &index).map_err(StageError::io(&path))
}

/// A text encoder without projection, which Stable Diffusion's pipelines have not, and without the layer that training did not use:
/// such pipelines take what comes out of the last layer and the final norm. Stability AI published Stable Diffusion 2 so, with 23 of
/// the 24 layers of OpenCLIP's tower.
struct TextSource {
    source: ComponentSource,
    /// The number of the layer that is left out: the last one.
    unused: Option<u64>,
}

const PROJECTION: &str = "text_projection.weight";
const LAYERS: &str = "num_hidden_layers";

impl TextSource {
    /// The encoder whose last layer gives the hidden states; none if none does.
    fn of(source: ComponentSource, states: HiddenStates) -> Option<Self> {
        let last = source.config.get(LAYERS).and_then(Value::as_u64).and_then(|layers| layers.checked_sub(1));
        match states {
            HiddenStates::Auto | HiddenStates::Last => Some(Self { source, unused: None }),
            HiddenStates::PenultimateNormed => Some(Self { source, unused: Some(last.filter(|&last| last > 0)?) }),
            HiddenStates::Penultimate => None,
        }
    }

    fn config(&self) -> Value {
        let mut config = self.source.config.clone();
        config["architectures"] = json!(["CLIPTextModel"]);
        if let Some(unused) = self.unused {
            // Numbered from 0, the last one is the number of those in front of it.
            config[LAYERS] = unused.into();
        }
        config
    }
}

impl TensorSource for TextSource {
    fn origin(&self) -> &Path {
        self.source.origin()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let unused = self.unused.map(|layer| format!("text_model.encoder.layers.{layer}."));
        let is_used =
            |name: &str| name != PROJECTION && !unused.as_ref().is_some_and(|unused| name.starts_with(unused));
        self.source.entries().into_iter().filter(|entry| is_used(&entry.name)).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        self.source.tensor(name)
    }

    fn release(&self, name: &str) {
        self.source.release(name);
    }
}

/// Adds the text encoder's own tokenizer, or the one that the settings name.
fn with_tokenizer<'a>(
    export: Export<'a>,
    checkpoint: &Checkpoint,
    settings: &TextSettings,
    notes: &mut Vec<String>,
) -> Result<Export<'a>, StageError> {
    let own = tokenizer_files(checkpoint, settings.component);
    if settings.tokenizer == TokenizerChoice::Auto && !own.is_empty() {
        return Ok(export.files(&own));
    }
    let tokenizer = match checkpoint.tokenizer(settings.component) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            notes.push(format!("the tokenizer is left out of the pipeline: {error}"));
            return Ok(export);
        }
    };
    let options = match settings.tokenizer {
        TokenizerChoice::Auto => tokenizer.options(),
        TokenizerChoice::OpenClip => TokenizerOptions::OPEN_CLIP,
        TokenizerChoice::Transformers => TokenizerOptions::TRANSFORMERS,
        TokenizerChoice::TransformersExclamation => TokenizerOptions::TRANSFORMERS_EXCLAMATION,
    };
    // transformers has no such tokenizer; this one gives the same ids for captions without `!` and odd characters.
    let options =
        if options == TokenizerOptions::OPEN_CLIP { TokenizerOptions::TRANSFORMERS_EXCLAMATION } else { options };
    let length = tokenizer.context_length();
    if let Err(error) = clip_files(options, length) {
        notes.push(format!("the tokenizer is left out of the pipeline: {error}"));
        return Ok(export);
    }
    export.tokenizer(Component::TextEncoder, options, length).map_err(|error| wrong(checkpoint.path(), error))
}

/// The tokenizer's files of a checkpoint, as those of a pipeline's only text encoder.
fn tokenizer_files(checkpoint: &Checkpoint, component: Component) -> TextFiles {
    const NAMES: [&str; 6] = [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "added_tokens.json",
    ];
    let folder = if component == Component::TextEncoder2 { "tokenizer_2/" } else { "tokenizer/" };
    let of = |(name, text): (&String, &String)| {
        let bare = name.strip_prefix(folder).unwrap_or(name);
        NAMES.contains(&bare).then(|| (format!("tokenizer/{bare}"), text.clone()))
    };
    checkpoint.files().iter().filter_map(of).collect()
}

/// diffusers' DDIM scheduler for a noise schedule of training.
pub fn scheduler(schedule: &ScheduleConfig, prediction: Prediction) -> Value {
    let shape = match schedule.kind {
        ScheduleKind::Linear => "linear",
        ScheduleKind::ScaledLinear => "scaled_linear",
        ScheduleKind::Cosine => "squaredcos_cap_v2",
    };
    let prediction = match prediction {
        Prediction::Epsilon => "epsilon",
        Prediction::V => "v_prediction",
        Prediction::Sample => "sample",
    };
    // A schedule that ends without signal must be sampled from its last timestep on (Lin et al. 2024, section 3.3).
    let dark = ends_without_signal(schedule);
    json!({
        "_class_name": "DDIMScheduler",
        "beta_end": schedule.beta_end,
        "beta_schedule": shape,
        "beta_start": schedule.beta_start,
        "clip_sample": false,
        "num_train_timesteps": schedule.timesteps,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "set_alpha_to_one": dark,
        // Without effect on trailing timesteps; diffusers warns of another value.
        "steps_offset": 1,
        "timestep_spacing": if dark { "trailing" } else { "leading" },
        "trained_betas": schedule.trained_betas,
    })
}

/// Share of the signal below which a schedule's last timestep counts as dark; Stable Diffusion's ends with 0.0047.
const DARK: f64 = 1e-4;

fn ends_without_signal(schedule: &ScheduleConfig) -> bool {
    let last = schedule.timesteps.saturating_sub(1);
    NoiseSchedule::new(schedule).is_ok_and(|schedule| schedule.signal_and_noise(last)[0].powi(2) < DARK)
}

fn wrong(folder: &Path, error: impl std::error::Error + Send + Sync + 'static) -> StageError {
    StageError::Dataset { path: folder.to_owned(), source: error.into() }
}

impl From<LayoutError> for StageError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_without_steps_back() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("encoded")).unwrap();
        std::fs::create_dir_all(folder.path().join("run/model")).unwrap();
        let whole = folder.path().canonicalize().unwrap();
        assert_eq!(short(&folder.path().join("encoded/../run/model")), whole.join("run/model"));
        // As it was given, or where nothing is.
        for same in ["run/model", "../none/of/these"] {
            assert_eq!(short(Path::new(same)), Path::new(same));
        }
        let changed = changed(&folder.path().join("encoded/../run/model"));
        assert!(changed.ends_with(CHANGED) && !changed.contains(".."), "{changed}");
    }

    #[test]
    fn schedulers_say_what_training_did() {
        let cosine = ScheduleConfig { kind: ScheduleKind::Cosine, ..ScheduleConfig::default() };
        let config = scheduler(&cosine, Prediction::V);
        assert_eq!(config["beta_schedule"], "squaredcos_cap_v2");
        assert_eq!(
            (&config["prediction_type"], &config["timestep_spacing"]),
            (&json!("v_prediction"), &json!("trailing"))
        );
        let usual = scheduler(&ScheduleConfig::default(), Prediction::Epsilon);
        assert_eq!((&usual["steps_offset"], &usual["timestep_spacing"]), (&json!(1), &json!("leading")));
    }
}
