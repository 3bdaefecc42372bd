//! Writing models in the published layouts: diffusers' pipelines and component folders, transformers' model folders.
//!
//! Networks come from live modules or from other checkpoints; their tensors are written one at a time.

mod folder;
mod index;
mod module;

pub use folder::Placement;
pub use module::ModuleSource;

use crate::error::LayoutError;
use crate::families::{Facts, Family};
use crate::files::TextFiles;
use crate::image_processor::ImageProcessor;
use crate::kinds::{Component, Prediction};
use crate::manifest::Manifest;
use crate::networks::{TensorSpec, check_published, component_keys, reason};
use crate::source::ComponentSource;
use burn::module::Module;
use calotype_diffusion::SamplerConfig;
use calotype_models::ClipTokenizer;
use calotype_models::tokenizer::{TokenizerExportError, TokenizerOptions, clip_files};
use calotype_weights::stream::{write_source, written_dtype};
use calotype_weights::{Dtype, NamedTensor, TensorFileError, TensorInfo, TensorSource};
use folder::{INDEX, write_folder, write_text};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The scheduler's configuration in a pipeline's folder.
pub(crate) const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// A field of an autoencoder's configuration: true if the scale of its latents was not measured yet. Readers other than
/// Calotype take Stable Diffusion's scale then.
pub const SCALE_UNKNOWN: &str = "_scaling_factor_not_measured";

/// A network to be written: its configuration, as diffusers or transformers has it, and its tensors under canonical keys.
pub struct Part<'a> {
    component: Component,
    config: Value,
    tensors: Tensors<'a>,
    /// True if the configuration was made here, not read from another checkpoint.
    own: bool,
}

enum Tensors<'a> {
    Module(ModuleSource),
    Source(&'a dyn TensorSource),
    Trimmed(Trimmed<'a>),
}

impl Tensors<'_> {
    fn source(&self) -> &dyn TensorSource {
        match self {
            Self::Module(module) => module,
            Self::Source(source) => *source,
            Self::Trimmed(trimmed) => trimmed,
        }
    }
}

/// A text encoder's tensors without those of its last layers.
struct Trimmed<'a> {
    whole: Box<Tensors<'a>>,
    /// Layers that are left.
    layers: u64,
}

impl TensorSource for Trimmed<'_> {
    fn origin(&self) -> &Path {
        self.whole.source().origin()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let layer =
            |name: &str| name.strip_prefix("text_model.encoder.layers.")?.split('.').next()?.parse::<u64>().ok();
        let stays = |tensor: &TensorInfo| layer(&tensor.name).is_none_or(|layer| layer < self.layers);
        self.whole.source().entries().into_iter().filter(stays).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        self.whole.source().tensor(name)
    }

    fn release(&self, name: &str) {
        self.whole.source().release(name);
    }
}

impl std::fmt::Debug for Part<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Part").field("component", &self.component).finish_non_exhaustive()
    }
}

impl<'a> Part<'a> {
    /// A live module. `config` is what its configuration's `to_diffusers` or `to_transformers` gives.
    pub fn module<M: Module>(component: Component, config: Value, module: &M) -> Self {
        Self { component, config, tensors: Tensors::Module(ModuleSource::new(module)), own: true }
    }

    /// A component of an open checkpoint, with its configuration.
    pub fn source(source: &'a ComponentSource) -> Self {
        Self {
            component: source.component,
            config: source.config.clone(),
            tensors: Tensors::Source(source),
            own: false,
        }
    }

    /// Tensors from anywhere, under canonical keys: averages of weights, for instance.
    pub fn tensors(component: Component, config: Value, tensors: &'a dyn TensorSource) -> Self {
        Self { component, config, tensors: Tensors::Source(tensors), own: true }
    }

    fn tensor_source(&self) -> &dyn TensorSource {
        self.tensors.source()
    }

    /// A text encoder without its last layers: diffusers' pipelines of Stable Diffusion 1 and 2 have no field that says
    /// to take hidden states before them, so that the encoder itself ends there.
    ///
    /// # Errors
    /// [`LayoutError::Config`] if this is no text encoder or has no more layers than that.
    pub fn without_last_layers(mut self, count: usize) -> Result<Self, LayoutError> {
        let component = self.component;
        let is_text = matches!(component, Component::TextEncoder | Component::TextEncoder2);
        let layers = self.config["num_hidden_layers"].as_u64().filter(|_| is_text);
        let left = layers.and_then(|layers| layers.checked_sub(count as u64)).filter(|left| *left > 0);
        let Some(left) = left else {
            let reason = format!("field `num_hidden_layers` leaves nothing of a text encoder without {count} layers");
            return Err(LayoutError::Config { component, reason });
        };
        self.config["num_hidden_layers"] = left.into();
        self.tensors = Tensors::Trimmed(Trimmed { whole: Box::new(self.tensors), layers: left });
        Ok(self)
    }

    /// Checks that the tensors are those that the configuration asks for; missing ones are returned.
    fn check(&self, out: &Path) -> Result<Vec<String>, LayoutError> {
        let entries = self.tensor_source().entries();
        let found: BTreeMap<&str, &[usize]> =
            entries.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
        let wanted = component_keys(self.component, &self.config)?;
        let (mut missing, mut problems) = (Vec::new(), Vec::new());
        for TensorSpec { name, shape } in &wanted {
            match found.get(name.as_str()) {
                None => missing.push(name.clone()),
                Some(found) if *found != shape.as_slice() => {
                    problems.push(format!("{name} has shape {found:?}, its configuration asks for {shape:?}"));
                }
                Some(_) => {}
            }
        }
        if found.len() + missing.len() > wanted.len() {
            let wanted: std::collections::BTreeSet<&str> = wanted.iter().map(|spec| spec.name.as_str()).collect();
            let whole = |name: &str| entries.iter().any(|tensor| tensor.name == name && tensor.dtype == Dtype::I8);
            let odd =
                found.keys().filter(|name| !wanted.contains(*name) && !weight_of(name).is_some_and(|key| whole(&key)));
            problems.extend(odd.map(|name| format!("{name} has no place in its configuration")));
        }
        if problems.is_empty() {
            return Ok(missing);
        }
        Err(LayoutError::Shapes { path: out.to_owned(), component: self.component, problems })
    }
}

/// Everything that is to be written into one folder.
///
/// ```
/// use burn::tensor::Device;
/// use calotype_checkpoints::{Checkpoint, Component, Export, Part, Placement};
/// use calotype_models::{AutoencoderConfig, Init};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("vae");
/// let config = AutoencoderConfig { block_out_channels: vec![32, 32], ..AutoencoderConfig::stable_diffusion() };
/// let model = config.init(&mut Init::new(0, &Device::flex()))?;
/// let part = Part::module(Component::Vae, config.to_diffusers(), &model);
/// Export::model(part).write(&out, Placement::New)?;
/// assert_eq!(Checkpoint::open(&out)?.components(), [Component::Vae]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Export<'a> {
    parts: Vec<Part<'a>>,
    /// True if each network has a folder of its own.
    pipeline: bool,
    family: Option<Family>,
    files: TextFiles,
    dtype: Option<Dtype>,
    allow_missing: bool,
    /// Ids that fill rows, of tokenizers that were made here.
    padding: BTreeMap<Component, i32>,
    /// The prediction type in the manifest of Calotype's own layout, if it is that one.
    manifest: Option<Option<Prediction>>,
}

/// The result of [`Export::write`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct Written {
    /// Components with their numbers of tensors and parameters.
    pub components: Vec<(Component, usize, usize)>,
    /// Bytes of weights.
    pub bytes: u64,
    /// Canonical keys that were missing and allowed to be.
    pub missing: Vec<String>,
    /// True if the folder has a `model_index.json`, so that diffusers loads it as a whole.
    pub whole_pipeline: bool,
    /// Parts that are lacking for that, in full sentences.
    pub notes: Vec<String>,
}

impl<'a> Export<'a> {
    /// One network: `config.json` and weights in the folder itself.
    pub fn model(part: Part<'a>) -> Self {
        Self { parts: vec![part], ..Self::new(false, None) }
    }

    /// Networks of a diffusers pipeline, each in a folder of its own, with the index of the family's pipeline
    /// (`StableDiffusionPipeline` if it has none) as soon as UNet, autoencoder, a text encoder and the scheduler are there.
    pub fn pipeline(family: Option<Family>) -> Self {
        Self::new(true, family)
    }

    fn new(pipeline: bool, family: Option<Family>) -> Self {
        Self {
            parts: Vec::new(),
            pipeline,
            family,
            files: TextFiles::new(),
            dtype: None,
            allow_missing: false,
            padding: BTreeMap::new(),
            manifest: None,
        }
    }

    /// Adds a network of the pipeline.
    #[must_use]
    pub fn part(mut self, part: Part<'a>) -> Self {
        self.parts.push(part);
        self
    }

    /// The type that floating-point tensors are written in; as they are (`f32` from modules) unless this is called.
    #[must_use]
    pub fn dtype(mut self, dtype: Option<Dtype>) -> Self {
        self.dtype = dtype;
        self
    }

    /// The scheduler's configuration, with its `_class_name`.
    #[must_use]
    pub fn scheduler(mut self, config: &Value) -> Self {
        self.files.insert(SCHEDULER.into(), SamplerConfig::diffusers_text(config));
        self
    }

    /// The tokenizer of a text encoder, or of a whole CLIP model, with CLIP's own vocabulary and rows of `length` tokens.
    /// The encoder's configuration says then what it fills rows with.
    ///
    /// # Errors
    /// [`TokenizerExportError`] naming the option that transformers has not.
    pub fn tokenizer(
        mut self,
        component: Component,
        options: TokenizerOptions,
        length: usize,
    ) -> Result<Self, TokenizerExportError> {
        let place = if self.pipeline {
            format!("{}/", Facts::of(self.family).text(component).tokenizer)
        } else {
            String::new()
        };
        for (name, text) in clip_files(options, length)? {
            self.files.insert(format!("{place}{name}"), text);
        }
        self.padding.insert(component, ClipTokenizer::with_options(length, options).padding_id());
        Ok(self)
    }

    /// The preprocessing of images for a CLIP model or a ViT: `preprocessor_config.json`.
    #[must_use]
    pub fn image_processor(mut self, processor: &ImageProcessor) -> Self {
        self.files.insert(ImageProcessor::FILE.into(), pretty(&processor.to_transformers()));
        self
    }

    /// Text files by their paths in the folder: another checkpoint's tokenizer, for instance. Those that are there already
    /// stay.
    #[must_use]
    pub fn files(mut self, files: &TextFiles) -> Self {
        for (name, text) in files {
            self.files.entry(name.clone()).or_insert_with(|| text.clone());
        }
        self
    }

    /// Goes on without tensors that a configuration asks for.
    #[must_use]
    pub(crate) fn allow_missing(mut self, allow: bool) -> Self {
        self.allow_missing = allow;
        self
    }

    /// Writes Calotype's own layout, a folder for each component and a manifest: for networks that the libraries'
    /// configurations cannot describe.
    #[must_use]
    pub fn with_manifest(mut self, prediction: Option<Prediction>) -> Self {
        self.pipeline = true;
        self.manifest = Some(prediction);
        self
    }

    /// Writes the folder. It appears completely or not at all, synchronised to disk; tensors are read, converted and
    /// written one at a time.
    ///
    /// # Errors
    /// [`LayoutError::Exists`] if something stands at `out` and `placement` is [`Placement::New`];
    /// [`LayoutError::Missing`] and [`LayoutError::Shapes`] if tensors are not those of the configuration;
    /// [`LayoutError::Config`] naming the field, if a configuration cannot be read again or said in the library's own;
    /// errors of reading and writing.
    pub fn write(mut self, out: &Path, placement: Placement) -> Result<Written, LayoutError> {
        let mut written = Written::default();
        self.check(out, &mut written)?;
        if self.pipeline {
            self.complete_index(out, &mut written)?;
        }
        write_folder(out, placement, |folder| self.fill(folder))?;
        for part in &self.parts {
            let entries = part.tensor_source().entries();
            let bytes =
                |tensor: &TensorInfo| (tensor.elements() * written_dtype(tensor.dtype, self.dtype).size()) as u64;
            written.bytes += entries.iter().map(bytes).sum::<u64>();
            let elements = entries.iter().map(TensorInfo::elements).sum();
            written.components.push((part.component, entries.len(), elements));
        }
        Ok(written)
    }

    /// Checks the networks as [`Export::write`] does, and writes nothing. Modules need no weights for that: those of
    /// [`calotype_models::Init::placeholders`] will do, so that training can ask before its first step. `out` only stands in
    /// messages.
    ///
    /// # Errors
    /// Those of [`Export::write`] about configurations and tensors.
    pub fn verify(&self, out: &Path) -> Result<(), LayoutError> {
        self.check(out, &mut Written::default())
    }

    fn check(&self, out: &Path, written: &mut Written) -> Result<(), LayoutError> {
        for part in &self.parts {
            let component = part.component;
            if self.manifest.is_none() {
                check_published(component, &part.config)
                    .map_err(|error| LayoutError::Config { component, reason: reason(&*error) })?;
            }
            // Without it, diffusers takes Stable Diffusion's scale and says nothing.
            let marked = part.config[SCALE_UNKNOWN] == true;
            if part.own && component == Component::Vae && !part.config["scaling_factor"].is_number() && !marked {
                let reason = "field `scaling_factor` is missing: set the autoencoder's scale".to_owned();
                return Err(LayoutError::Config { component, reason });
            }
            let missing = part.check(out)?;
            if !missing.is_empty() && !self.allow_missing {
                return Err(LayoutError::Missing { path: out.to_owned(), component, keys: missing });
            }
            written.missing.extend(missing);
        }
        Ok(())
    }

    fn has_folder(&self, name: &str) -> bool {
        let prefix = format!("{name}/");
        self.parts.iter().any(|part| part.component.name() == name)
            || self.files.keys().any(|file| file.starts_with(&prefix))
    }

    /// Adds the index of a whole pipeline, or says what is lacking.
    fn complete_index(&mut self, out: &Path, written: &mut Written) -> Result<(), LayoutError> {
        let components: Vec<Component> = self.parts.iter().map(|part| part.component).collect();
        let parse = |text: &String| {
            serde_json::from_str::<Value>(text).map_err(|source| LayoutError::Json { path: out.to_owned(), source })
        };
        let given = self.files.get(INDEX).map(parse).transpose()?;
        // Not by `parse`: Python writes bare infinities into it.
        let damaged = |reason: String| LayoutError::Damaged { path: out.join(SCHEDULER), reason };
        let scheduler = self.files.get(SCHEDULER).map(|text| SamplerConfig::parse_diffusers(text));
        let scheduler = scheduler.transpose().map_err(|error| damaged(error.to_string()))?;
        let texts = Facts::of(self.family).text_encoders;
        for text in texts.iter().filter(|text| components.contains(&text.component)) {
            if !self.has_folder(text.tokenizer) {
                written.notes.push(format!("there is no {}: diffusers will ask for one", text.tokenizer));
            }
        }
        let has_text = texts.iter().any(|text| components.contains(&text.component));
        let whole = [
            (Component::Unet.name(), components.contains(&Component::Unet)),
            (Component::Vae.name(), components.contains(&Component::Vae)),
            (Component::TextEncoder.name(), has_text),
            ("scheduler", scheduler.is_some()),
        ];
        let lacking: Vec<&str> = whole.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
        let index = match (given, scheduler) {
            (Some(given), _) => {
                let index = index::without_absent(&given, |name| self.has_folder(name));
                if index == given {
                    written.whole_pipeline = true;
                    return Ok(());
                }
                index
            }
            (None, Some(scheduler)) if lacking.is_empty() => index::model_index(self.family, &components, &scheduler),
            _ => {
                if components.contains(&Component::Unet) {
                    let lacking = lacking.join(", ");
                    written.notes.push(format!("the folder holds components, not a whole pipeline: no {lacking}"));
                }
                return Ok(());
            }
        };
        written.whole_pipeline = true;
        self.files.insert(INDEX.into(), pretty(&index));
        Ok(())
    }

    fn fill(&self, folder: &Path) -> Result<(), LayoutError> {
        let mut names = Vec::new();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        for part in &self.parts {
            let place = if self.pipeline { format!("{}/", part.component) } else { String::new() };
            let stem = if self.manifest.is_some() { "model" } else { part.component.library().1 };
            let (config, weights) = (format!("{place}config.json"), format!("{place}{stem}.safetensors"));
            write_text(&folder.join(&config), &pretty(&self.config_of(part)))?;
            write_source(&folder.join(&weights), part.tensor_source(), self.dtype, &metadata)?;
            names.extend([config, weights]);
        }
        for (name, text) in &self.files {
            write_text(&folder.join(name), text)?;
            names.push(name.clone());
        }
        if let Some(prediction) = self.manifest {
            let components = self.parts.iter().map(|part| part.component).collect();
            Manifest::of(folder, self.family, prediction, components, &names)
                .and_then(|manifest| manifest.write(folder))
                .map_err(|source| LayoutError::Io { path: folder.join(Manifest::FILE), action: "write it", source })?;
        }
        Ok(())
    }

    /// The configuration as it is written: with the type of the weights, where it names one, and with the padding of a
    /// tokenizer that was made for it.
    fn config_of(&self, part: &Part<'_>) -> Value {
        let mut config = part.config.clone();
        let name = match self.dtype {
            Some(Dtype::F32) => Some("float32"),
            Some(Dtype::F16) => Some("float16"),
            Some(Dtype::BF16) => Some("bfloat16"),
            _ => None,
        };
        for field in ["dtype", "torch_dtype"] {
            if let Some(name) = name.filter(|_| config[field].is_string()) {
                config[field] = name.into();
            }
        }
        if let Some(&padding) = self.padding.get(&part.component) {
            let text = if part.component == Component::Clip { &mut config["text_config"] } else { &mut config };
            text["pad_token_id"] = padding.into();
        }
        config
    }
}

/// The weight that a tensor belongs to, if it has the name of scales of numbers in 8 bits.
fn weight_of(name: &str) -> Option<String> {
    let ends = [".weight_scale", ".smooth"];
    ends.into_iter().find_map(|end| name.strip_suffix(end)).map(|module| format!("{module}.weight"))
}

/// JSON as people read it.
pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
