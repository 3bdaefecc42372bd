//! Writing a checkpoint in another layout.

use super::checkpoint::{Checkpoint, pipeline_class};
use super::error::LayoutError;
use super::files::TextFiles;
use super::kinds::{Component, Family, Prediction};
use super::manifest::Manifest;
use super::map::KeyMap;
use super::rules;
use super::source::{ComponentSource, StoredSource};
use super::tables;
use crate::durable;
use crate::source::{TensorInfo, TensorSource};
use crate::stream::{write_source, written_dtype};
use crate::tensor_file::Dtype;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layout to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A diffusers pipeline folder; of a checkpoint without UNet, one model's folder as transformers or diffusers has it.
    Diffusers,
    /// One safetensors file with the LDM code's keys. What the keys cannot say is in its metadata.
    SingleFile,
    /// Calotype's own: a folder for each component with `config.json` and `model.safetensors`, all under canonical keys,
    /// and a manifest with hashes.
    Calotype,
}

impl Target {
    /// Every target with its name in options and messages.
    pub const NAMED: [(&'static str, Self); 3] =
        [("diffusers", Self::Diffusers), ("single-file", Self::SingleFile), ("calotype", Self::Calotype)];

    fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, target)| *target == self).map_or("", |(name, _)| name)
    }
}

/// How to convert.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// Type to write floating-point tensors in; as they are if `None`.
    pub dtype: Option<Dtype>,
    /// Go on without tensors that the checkpoint lacks.
    pub allow_missing: bool,
    /// Leave out tensors that belong to no known component.
    pub allow_unused: bool,
    /// Files to add where the checkpoint has none of that path: a tokenizer's, for instance.
    pub files: TextFiles,
}

/// What a conversion did.
#[derive(Clone, Debug, Serialize)]
pub struct Conversion {
    /// Components with their numbers of tensors and parameters.
    pub components: Vec<(Component, usize, usize)>,
    /// Bytes of weights written.
    pub bytes: u64,
    /// Canonical keys that were missing and allowed to be.
    pub missing: Vec<String>,
    /// Stored keys that were left out because that was allowed.
    pub unused: Vec<String>,
    /// What was assumed, left out or is still lacking, in full sentences.
    pub notes: Vec<String>,
}

/// Converts a checkpoint. Tensors are read, converted and written one at a time; the output appears completely or not at
/// all.
///
/// # Errors
/// [`LayoutError::Exists`]; [`LayoutError::PredictionUnknown`] (give it to [`Checkpoint::open_with`]);
/// [`LayoutError::Missing`] and [`LayoutError::Unused`] unless allowed; [`LayoutError::Target`] if the layout cannot hold
/// the checkpoint; errors of reading and writing.
pub fn convert(
    checkpoint: &Checkpoint,
    out: &Path,
    target: Target,
    options: &ConvertOptions,
) -> Result<Conversion, LayoutError> {
    if fs::symlink_metadata(out).is_ok() {
        return Err(LayoutError::Exists { path: out.to_owned() });
    }
    checkpoint.verify()?;
    let job = Job::new(checkpoint, target, options)?;
    match target {
        Target::SingleFile => job.single_file(out)?,
        Target::Diffusers | Target::Calotype => job.folder(out)?,
    }
    Ok(job.report())
}

/// Everything that a conversion writes.
struct Job<'a> {
    checkpoint: &'a Checkpoint,
    target: Target,
    options: &'a ConvertOptions,
    sources: Vec<ComponentSource>,
    files: TextFiles,
    notes: Vec<String>,
}

impl<'a> Job<'a> {
    fn new(checkpoint: &'a Checkpoint, target: Target, options: &'a ConvertOptions) -> Result<Self, LayoutError> {
        let path = || checkpoint.path().to_owned();
        let components = checkpoint.components();
        if components.contains(&Component::Unet) && checkpoint.prediction().is_none() {
            return Err(LayoutError::PredictionUnknown { path: path() });
        }
        if !checkpoint.unused().is_empty() && !options.allow_unused {
            return Err(LayoutError::Unused { path: path(), keys: checkpoint.unused().to_vec() });
        }
        let sources: Result<Vec<_>, _> = components.iter().map(|&component| checkpoint.component(component)).collect();
        let sources = sources?;
        if let Some(source) = sources.iter().find(|source| !source.missing.is_empty() && !options.allow_missing) {
            return Err(LayoutError::Missing {
                path: path(),
                component: source.component,
                keys: source.missing.clone(),
            });
        }
        let mut job = Self {
            checkpoint,
            target,
            options,
            sources,
            files: checkpoint.files().clone(),
            notes: checkpoint.notes().to_vec(),
        };
        if target == Target::Diffusers && checkpoint.family() == Some(Family::MlperfSd2) {
            return Err(job.refuse(
                "diffusers has one number of norm groups for residual blocks and transformers, MLPerf's variant has two \
                 (16 and 32)",
            ));
        }
        job.complete_files();
        Ok(job)
    }

    fn has(&self, component: Component) -> bool {
        self.sources.iter().any(|source| source.component == component)
    }

    /// Adds the caller's files, and index and scheduler of a pipeline that lacks them; puts the prediction type into
    /// the scheduler's configuration.
    fn complete_files(&mut self) {
        for (name, text) in &self.options.files {
            self.files.entry(name.clone()).or_insert_with(|| text.clone());
        }
        let (Some(prediction), Some(family)) = (self.checkpoint.prediction(), self.checkpoint.family()) else { return };
        const SCHEDULER: &str = "scheduler/scheduler_config.json";
        let config = self.checkpoint.scheduler_config();
        let mut config = config.filter(Value::is_object).unwrap_or_else(|| scheduler(family));
        let says = config["prediction_type"].as_str().unwrap_or("epsilon");
        if says != prediction.name() || !self.files.contains_key(SCHEDULER) {
            config["prediction_type"] = prediction.name().into();
            self.files.insert(SCHEDULER.into(), pretty(&config));
        }
        let index = self.model_index(family);
        self.files.entry("model_index.json".into()).or_insert_with(|| pretty(&index));
        let encoders = [(Component::TextEncoder, "tokenizer"), (Component::TextEncoder2, "tokenizer_2")];
        for (component, folder) in encoders {
            let there = self.files.keys().any(|name| name.starts_with(&format!("{folder}/")));
            if self.has(component) && !there {
                self.notes.push(format!("the checkpoint carries no {folder}: diffusers will ask for one"));
            }
        }
    }

    fn model_index(&self, family: Family) -> Value {
        let xl = family.is_sdxl();
        let class = match family {
            Family::SdxlBase => "StableDiffusionXLPipeline",
            Family::SdxlRefiner => "StableDiffusionXLImg2ImgPipeline",
            Family::Sd1Inpainting | Family::Sd2Inpainting => "StableDiffusionInpaintPipeline",
            Family::InstructPix2Pix => "StableDiffusionInstructPix2PixPipeline",
            _ => "StableDiffusionPipeline",
        };
        let mut index = json!({ "_class_name": class, "scheduler": ["diffusers", scheduler_class(family)] });
        let absent = json!([null, null]);
        let kinds: &[(Component, &str, &str)] = &[
            (Component::Unet, "diffusers", ""),
            (Component::Vae, "diffusers", ""),
            (Component::TextEncoder, "transformers", "tokenizer"),
            (Component::TextEncoder2, "transformers", "tokenizer_2"),
        ];
        for &(component, library, tokenizer) in kinds {
            if !xl && component == Component::TextEncoder2 {
                continue;
            }
            let there = self.has(component);
            index[component.name()] = if there { json!([library, pipeline_class(component)]) } else { absent.clone() };
            if !tokenizer.is_empty() {
                index[tokenizer] = if there { json!(["transformers", "CLIPTokenizer"]) } else { absent.clone() };
            }
        }
        if xl {
            index["force_zeros_for_empty_prompt"] = (family == Family::SdxlBase).into();
        } else {
            index["safety_checker"] = absent.clone();
            index["feature_extractor"] = absent;
            index["requires_safety_checker"] = false.into();
        }
        index
    }

    // Folders ----------------------------------------------------------------------------------------------------

    /// Writes into a hidden sibling folder that takes the name of the output when all is on disk.
    fn folder(&self, out: &Path) -> Result<(), LayoutError> {
        let pipeline = self.target == Target::Calotype || self.has(Component::Unet);
        if !pipeline && self.sources.len() != 1 {
            return Err(self.refuse("without a UNet it must hold exactly one model"));
        }
        let hidden = hidden_sibling(out)?;
        let io = |path: &Path, action| {
            let path = path.to_owned();
            move |source| LayoutError::Io { path, action, source }
        };
        fs::create_dir(&hidden).map_err(io(&hidden, "make it"))?;
        let written = self.fill(&hidden, pipeline).and_then(|()| {
            fs::rename(&hidden, out).map_err(io(out, "give the folder its name"))?;
            durable::sync_folder(durable::parent_folder(out)).map_err(io(out, "synchronise it"))
        });
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_dir_all(&hidden);
        }
        written
    }

    fn fill(&self, folder: &Path, pipeline: bool) -> Result<(), LayoutError> {
        let mut names = Vec::new();
        for source in &self.sources {
            let place = if pipeline { format!("{}/", source.component) } else { String::new() };
            let weights = match source.component {
                Component::Unet | Component::Vae if self.target == Target::Diffusers => "diffusion_pytorch_model",
                _ => "model",
            };
            let config = format!("{place}config.json");
            write_text(&folder.join(&config), &pretty(&source.config))?;
            let weights = format!("{place}{weights}.safetensors");
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            write_source(&folder.join(&weights), source, self.options.dtype, &metadata)?;
            names.extend([config, weights]);
        }
        for (name, text) in self.files.iter().filter(|_| pipeline) {
            write_text(&folder.join(name), text)?;
            names.push(name.clone());
        }
        if self.target == Target::Calotype {
            let components = self.sources.iter().map(|source| source.component).collect();
            let (family, prediction) = (self.checkpoint.family(), self.checkpoint.prediction());
            Manifest::of(folder, family, prediction, components, &names)
                .and_then(|manifest| manifest.write(folder))
                .map_err(|source| LayoutError::Io { path: folder.join(Manifest::FILE), action: "write it", source })?;
        }
        Ok(())
    }

    // Single files -----------------------------------------------------------------------------------------------

    fn single_file(&self, out: &Path) -> Result<(), LayoutError> {
        let mut parts = Vec::new();
        for source in &self.sources {
            let map = self.single_file_map(source)?;
            let (stored, homeless) = map.stored(&source.specs());
            if let Some(key) = homeless.first() {
                return Err(self.refuse(&format!("the layout has no place for {} `{key}`", source.component)));
            }
            parts.push((source, stored));
        }
        write_source(out, &StoredSource::new(parts), self.options.dtype, &self.metadata())?;
        Ok(())
    }

    fn single_file_map(&self, source: &ComponentSource) -> Result<KeyMap, LayoutError> {
        let family = self.checkpoint.family();
        let is = |wanted: fn(Family) -> bool| family.is_some_and(wanted);
        if let Some(map) = tables::single_file(source.component, &source.config)? {
            return Ok(map);
        }
        match source.component {
            Component::TextEncoder if is(Family::is_sdxl) => {
                Ok(rules::prefixed("conditioner.embedders.0.transformer."))
            }
            Component::TextEncoder if is(Family::is_sd2) => Ok(rules::open_clip_text("cond_stage_model.model.")),
            Component::TextEncoder if self.has(Component::Unet) => Ok(rules::prefixed("cond_stage_model.transformer.")),
            Component::TextEncoder2 => {
                let slot = usize::from(family != Some(Family::SdxlRefiner));
                Ok(rules::open_clip_text(&format!("conditioner.embedders.{slot}.model.")))
            }
            component => Err(self.refuse(&format!("the layout has no place for {component}"))),
        }
    }

    /// What the keys cannot say: configurations, prediction type, scheduler and tokenizer files; and the fields of the
    /// modelspec convention that other programs read.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        for source in &self.sources {
            metadata.insert(format!("calotype.config.{}", source.component), source.config.to_string());
        }
        if !self.files.is_empty() {
            metadata.insert("calotype.files".into(), json!(self.files).to_string());
        }
        if let Some(family) = self.checkpoint.family() {
            metadata.insert("calotype.family".into(), family.name().into());
            if let Some(architecture) = modelspec_architecture(family) {
                metadata.insert("modelspec.sai_model_spec".into(), "1.0.0".into());
                metadata.insert("modelspec.architecture".into(), architecture.into());
            }
        }
        if let Some(prediction) = self.checkpoint.prediction() {
            metadata.insert("calotype.prediction_type".into(), prediction.name().into());
            let short = if prediction == Prediction::V { "v" } else { prediction.name() };
            metadata.insert("modelspec.prediction_type".into(), short.into());
        }
        metadata
    }

    fn refuse(&self, reason: &str) -> LayoutError {
        LayoutError::Target {
            path: self.checkpoint.path().to_owned(),
            target: self.target.name(),
            reason: reason.to_owned(),
        }
    }

    fn report(self) -> Conversion {
        let size =
            |tensor: TensorInfo| (tensor.elements() * written_dtype(tensor.dtype, self.options.dtype).size()) as u64;
        let count = |source: &ComponentSource| (source.component, source.entries().len(), source.parameters());
        Conversion {
            components: self.sources.iter().map(count).collect(),
            bytes: self.sources.iter().flat_map(TensorSource::entries).map(size).sum(),
            missing: self.sources.iter().flat_map(|source| source.missing.clone()).collect(),
            unused: self.checkpoint.unused().to_vec(),
            notes: self.notes,
        }
    }
}

fn modelspec_architecture(family: Family) -> Option<&'static str> {
    match family {
        Family::Sd1 => Some("stable-diffusion-v1"),
        Family::Sd1Inpainting => Some("stable-diffusion-v1-inpainting"),
        Family::Sd2 | Family::Sd2Base | Family::MlperfSd2 => Some("stable-diffusion-v2-512"),
        Family::Sd2V => Some("stable-diffusion-v2-768-v"),
        Family::Sd2Inpainting => Some("stable-diffusion-v2-inpainting"),
        Family::SdxlBase => Some("stable-diffusion-xl-v1-base"),
        Family::SdxlRefiner => Some("stable-diffusion-xl-v1-refiner"),
        _ => None,
    }
}

fn scheduler_class(family: Family) -> &'static str {
    match family {
        Family::SdxlBase | Family::SdxlRefiner => "EulerDiscreteScheduler",
        Family::Sd1 | Family::Sd2Base | Family::InstructPix2Pix => "PNDMScheduler",
        _ => "DDIMScheduler",
    }
}

/// The noise schedule of the family's original (all of them have the same betas), for checkpoints that carry none.
fn scheduler(family: Family) -> Value {
    let class = scheduler_class(family);
    let mut config = json!({
        "_class_name": class,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    });
    match class {
        "PNDMScheduler" => {
            config["set_alpha_to_one"] = false.into();
            config["skip_prk_steps"] = true.into();
        }
        "DDIMScheduler" => {
            config["set_alpha_to_one"] = false.into();
            config["clip_sample"] = false.into();
        }
        _ => config["interpolation_type"] = "linear".into(),
    }
    config
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write_text(path: &Path, text: &str) -> Result<(), LayoutError> {
    let write = || {
        fs::create_dir_all(durable::parent_folder(path))?;
        durable::replace_file(path, |writer| writer.write_all(text.as_bytes()))
    };
    write().map_err(|source| LayoutError::Io { path: path.to_owned(), action: "write it", source })
}

/// A hidden name beside the output.
fn hidden_sibling(out: &Path) -> Result<PathBuf, LayoutError> {
    let Some(name) = out.file_name() else {
        let source = std::io::Error::from(std::io::ErrorKind::InvalidInput);
        return Err(LayoutError::Io { path: out.to_owned(), action: "write to a path without a name", source });
    };
    Ok(out.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())))
}
