//! Opening a checkpoint of any layout.

use crate::error::LayoutError;
use crate::families::{Facts, Family, Form};
use crate::files::{self, TextFiles, Weights};
use crate::image_processor::ImageProcessor;
use crate::infer;
use crate::kinds::{Component, Layout, Prediction};
use crate::manifest::Manifest;
use crate::map::{Form as Stored, KeyMap, StoredTensor};
use crate::marks::Marks;
use crate::nemo;
use crate::networks::{TensorSpec, component_keys, passed_fields};
use crate::recognise::{self, Found, Recognised};
use crate::rules;
use crate::scheduler::SchedulerFacts;
use crate::source::{ComponentSource, Entry};
use crate::timm;
use crate::write::pretty;
use calotype_core::folders::{self, Content, RECIPE, content};
use calotype_models::ClipTokenizer;
use calotype_models::tokenizer::{TokenizerError, TokenizerTexts};
use calotype_weights::NemoFile;
use calotype_weights::embedding::{Embedding, EmbeddingError, EmbeddingSlot, EmbeddingVectors, read_embeddings};
use calotype_weights::lora;
use calotype_weights::pickle::ReadOptions;
use calotype_weights::source::TensorSource;
use calotype_weights::tensor_file::{Dtype, NamedTensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Knowledge and wishes of the caller, beyond what the checkpoint says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenOptions {
    /// Take the averaged (EMA) weights of a single file instead of the others.
    pub ema: bool,
    /// The family, where the contents do not show it (`mlperf-sd2`) or show it wrongly.
    pub family: Option<Family>,
    /// The UNet's prediction type, where the checkpoint does not say it or says it wrongly.
    pub prediction: Option<Prediction>,
    /// The variant of the weights in a diffusers folder, such as `fp16`.
    pub variant: Option<String>,
    /// Whether the betas end without signal (zero terminal SNR), where the checkpoint does not say it or says it wrongly.
    pub zero_snr: Option<bool>,
    /// Pass over fields of configurations that are not known, which may mean a model that is not built here.
    pub pass_over_fields: bool,
    /// Go past objects of unknown classes in pickles, which are never made; Lightning's checkpoints hold such.
    pub skip_unknown_objects: bool,
    /// The file or folder to take the autoencoder of, in place of the checkpoint's own if it has one.
    pub vae: Option<PathBuf>,
    /// Files of learned words (textual inversion) for the text encoders.
    pub embeddings: Vec<EmbeddingFile>,
}

/// A file of learned words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingFile {
    /// The file.
    pub path: PathBuf,
    /// The word that stands for it in prompts; none: the file's own, or its name.
    pub word: Option<String>,
}

impl std::str::FromStr for EmbeddingFile {
    type Err = std::convert::Infallible;

    /// `FILE` or `FILE=WORD`. A path that exists is a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.rsplit_once('=').filter(|(_, word)| !word.is_empty() && !Path::new(text).exists());
        Ok(match parts {
            Some((path, word)) => Self { path: path.into(), word: Some(word.into()) },
            None => Self { path: text.into(), word: None },
        })
    }
}

/// An open checkpoint: what it is, and its components under canonical keys.
///
/// ```
/// use burn::tensor::Device;
/// use calotype_checkpoints::{Checkpoint, Component, Export, ImageProcessor, Part, Placement};
/// use calotype_models::{Init, VitConfig};
/// use calotype_weights::TensorSource;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("vit");
/// # let config = VitConfig {
/// #     image_size: 32, channels: 16, mlp_channels: 32, layers: 2, heads: 2, labels: 10, ..VitConfig::default()
/// # };
/// # let model = config.init(&mut Init::new(0, &Device::flex()))?;
/// # let part = Part::module(Component::Classifier, config.to_transformers()?, &model);
/// # Export::model(part).image_processor(&ImageProcessor::vit(32)).write(&path, Placement::New)?;
/// let checkpoint = Checkpoint::open(&path)?;
/// assert_eq!(checkpoint.components(), [Component::Classifier]);
/// let classifier = checkpoint.component(Component::Classifier)?;
/// assert_eq!(classifier.config["num_hidden_layers"], 2);
/// assert!(classifier.missing.is_empty());
/// assert_eq!(classifier.tensor("vit.layernorm.weight")?.shape, [16]);
/// assert_eq!(checkpoint.image_processor()?, Some(ImageProcessor::vit(32)));
/// # Ok(())
/// # }
/// ```
pub struct Checkpoint {
    path: PathBuf,
    layout: Layout,
    family: Option<Family>,
    prediction: Option<Prediction>,
    prediction_source: String,
    /// A sentence on what the checkpoint says of the prediction type, if the caller says otherwise.
    overruled: Option<String>,
    pub(crate) weights: Vec<Weights>,
    parts: Vec<Part>,
    files: TextFiles,
    set_aside: BTreeMap<&'static str, Vec<String>>,
    unused: Vec<String>,
    notes: Vec<String>,
    scheduler: SchedulerFacts,
    averaged: bool,
    /// True if a part has the variant of the weights that was asked for.
    variant_met: bool,
    /// Indices into the weights of files that were opened for one component of theirs.
    borrowed: Vec<usize>,
    /// Stored keys of an autoencoder that another file's replaces, by the index of their weights.
    replaced: HashSet<(usize, String)>,
    learned: Vec<LearnedWord>,
    /// Stored keys whose values change nothing.
    needless: HashSet<String>,
}

/// A word whose vectors are learned, as the text encoders get them.
struct LearnedWord {
    word: String,
    /// The rows that are appended to each encoder's table.
    rows: BTreeMap<Component, EmbeddingVectors>,
}

/// One component: where it is and what it should hold.
#[derive(Clone)]
struct Part {
    component: Component,
    config: Value,
    /// True if the configuration is what shapes say.
    inferred: bool,
    /// Index into the checkpoint's weights.
    weights: usize,
    map: KeyMap,
    specs: Vec<TensorSpec>,
    stored: Vec<StoredTensor>,
    missing: Vec<String>,
    shape_problems: Vec<String>,
}

impl OpenOptions {
    fn reading(&self) -> ReadOptions {
        ReadOptions { skip_unknown_objects: self.skip_unknown_objects }
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("layout", &self.layout)
            .field("family", &self.family)
            .field("components", &self.components())
            .finish()
    }
}

impl Checkpoint {
    /// Opens a checkpoint: a diffusers pipeline or some of its component folders, a model folder, a folder of Calotype's,
    /// the folder of a finished training run (its `model`), or a file. Only headers and configurations are read.
    ///
    /// # Errors
    /// [`LayoutError`]: the path is no checkpoint, a file is damaged, or a configuration is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LayoutError> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// As [`open`](Self::open), with what the caller knows or wants.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`LayoutError::NoEma`] if averaged weights are asked for and there are none.
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, LayoutError> {
        let path = path.as_ref();
        let mut checkpoint =
            if path.is_dir() { Self::open_folder(path, options) } else { Self::open_file(path, options) }?;
        if let Some(vae) = &options.vae {
            checkpoint.take_vae(vae, options)?;
        }
        checkpoint.check_prediction(options)?;
        checkpoint.account();
        checkpoint.name_family(options)?;
        checkpoint.read_scheduler(options)?;
        checkpoint.settle_prediction(options);
        checkpoint.check_variant(options)?;
        checkpoint.learn(&options.embeddings)?;
        if options.ema && !checkpoint.averaged {
            return Err(LayoutError::NoEma { path: path.to_owned() });
        }
        Ok(checkpoint)
    }

    fn empty(path: &Path, layout: Layout) -> Self {
        Self {
            path: path.to_owned(),
            layout,
            family: None,
            prediction: None,
            prediction_source: String::new(),
            overruled: None,
            weights: Vec::new(),
            parts: Vec::new(),
            files: TextFiles::new(),
            set_aside: BTreeMap::new(),
            unused: Vec::new(),
            notes: Vec::new(),
            scheduler: SchedulerFacts::default(),
            averaged: false,
            variant_met: false,
            borrowed: Vec::new(),
            replaced: HashSet::new(),
            learned: Vec::new(),
            needless: HashSet::new(),
        }
    }

    // Folders ----------------------------------------------------------------------------------------------------

    fn open_folder(path: &Path, options: &OpenOptions) -> Result<Self, LayoutError> {
        let names = files::file_names(path)?;
        let has = |name: &str| names.iter().any(|known| known == name);
        if has(Manifest::FILE) {
            return Self::open_calotype(path, options);
        }
        if has("model_index.json") {
            return Self::open_pipeline(path, options);
        }
        // The model of a run that was extended is that of its former end until it is finished again.
        if has(RECIPE) && has(RUN_RESULT) && path.join(RUN_MODEL).is_dir() {
            return Self::open_folder(&path.join(RUN_MODEL), options);
        }
        if has("open_clip_config.json") {
            return Self::open_clip_folder(path, &names, options);
        }
        if has("config.json") {
            let variant = options.variant.as_deref();
            match (files::find_weights(path, variant)?, variant) {
                (Some(weights), _) => return Self::open_model(path, &weights, options),
                (None, Some(variant)) if files::find_plain_weights(path)?.is_some() => {
                    let problem = format!("there are no weights of the variant {variant} in it; leave the variant out");
                    return Err(LayoutError::Wish { path: path.to_owned(), problem });
                }
                (None, _) => {}
            }
        }
        let components = pipeline_folders(path)?;
        if !components.is_empty() {
            return Self::open_components(path, &components, options);
        }
        if let Some(what) = unfinished(path, has) {
            return Err(LayoutError::Training { path: path.to_owned(), what });
        }
        let weights = |name: &&String| {
            let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("safetensors" | "ckpt" | "pt" | "pth" | "bin" | "nemo"))
        };
        let candidates: Vec<&String> = names.iter().filter(weights).collect();
        if let Some(found) = samples_in(path, candidates.is_empty() || has("index.json")) {
            let problem = format!(
                "it holds {found}, which is a dataset and no model: `calotype inspect` tells what is in it; name the folder of a model, \
                 or of the run that trained one"
            );
            return Err(LayoutError::Wish { path: path.to_owned(), problem });
        }
        match candidates[..] {
            [only] => Self::open_file(&path.join(only), options),
            _ => Err(LayoutError::Unrecognised {
                path: path.to_owned(),
                reason: format!(
                    "the folder has no model_index.json, no {}, no config.json with weights beside it, no unet or other \
                     component folder, and {} files that could be weights; name the file",
                    Manifest::FILE,
                    candidates.len()
                ),
            }),
        }
    }

    /// A diffusers pipeline: the networks named in `model_index.json`, everything else in it as text.
    fn open_pipeline(path: &Path, options: &OpenOptions) -> Result<Self, LayoutError> {
        let mut checkpoint = Self::empty(path, Layout::DiffusersPipeline);
        let index_path = path.join("model_index.json");
        let text = files::read_text(&index_path)?;
        let index = files::parse_object(&index_path, &text)?;
        checkpoint.files.insert("model_index.json".into(), text);
        let folders = files::folder_names(path)?;
        let mut left_out = Vec::new();
        for (name, entry) in index.as_object().into_iter().flatten() {
            // A component is a pair of library and class; nulls stand for optional ones that are absent.
            let Some([_, Value::String(class)]) = entry.as_array().map(Vec::as_slice) else { continue };
            if !folders.contains(name) {
                checkpoint.notes.push(format!("model_index.json names `{name}` ({class}), whose folder is not there"));
                continue;
            }
            let folder = path.join(name);
            let component = name.parse::<Component>().ok().filter(|kind| kind.class() == class);
            match component.or_else(|| {
                (class == "CLIPTextModelWithProjection" && name == "text_encoder").then_some(Component::TextEncoder)
            }) {
                Some(component) => checkpoint.add_model_folder(component, &folder, options)?,
                None if files::find_weights(&folder, None).is_ok_and(|found| found.is_none()) => {
                    files::carry_folder(&folder, name, &mut checkpoint.files, &mut left_out)?;
                }
                None => checkpoint
                    .notes
                    .push(format!("`{name}` ({class}) is no network that Calotype knows: it is left out")),
            }
        }
        if !left_out.is_empty() {
            checkpoint.notes.push(format!("not carried along, for they are no short texts: {}", left_out.join(", ")));
        }
        Ok(checkpoint)
    }

    /// Some components of a diffusers pipeline, each in its folder, without the index of a whole one.
    fn open_components(path: &Path, components: &[Component], options: &OpenOptions) -> Result<Self, LayoutError> {
        let mut checkpoint = Self::empty(path, Layout::DiffusersPipeline);
        for &component in components {
            checkpoint.add_model_folder(component, &path.join(component.name()), options)?;
        }
        let mut left_out = Vec::new();
        for name in files::folder_names(path)?.iter().filter(|name| TEXT_FOLDERS.contains(&name.as_str())) {
            files::carry_folder(&path.join(name), name, &mut checkpoint.files, &mut left_out)?;
        }
        checkpoint.notes.push("there is no model_index.json: these are components, not a whole pipeline".into());
        Ok(checkpoint)
    }

    fn add_model_folder(
        &mut self,
        component: Component,
        folder: &Path,
        options: &OpenOptions,
    ) -> Result<(), LayoutError> {
        let mut config = files::read_object(&folder.join("config.json"))?;
        let weights = self.component_weights(component, folder, options.variant.as_deref())?;
        complete_text_config(component, &mut config, folder);
        let weights = Weights::open(&weights, options.reading())?;
        let found = recognise::model(&weights.shapes, component, config);
        let at = self.add_weights(weights);
        self.add_part(found, at, options)
    }

    /// The weights in a component's folder: those of the variant, or the plain ones where only other parts have it.
    fn component_weights(
        &mut self,
        component: Component,
        folder: &Path,
        variant: Option<&str>,
    ) -> Result<PathBuf, LayoutError> {
        let none = |reason: String| LayoutError::Unrecognised { path: folder.to_owned(), reason };
        if let Some(path) = files::find_weights(folder, variant)? {
            self.variant_met |= variant.is_some();
            return Ok(path);
        }
        let Some(variant) = variant else { return Err(none("there are no weights in it".into())) };
        let plain = files::find_plain_weights(folder)?;
        let plain = plain
            .ok_or_else(|| none(format!("there are no weights of the variant {variant} in it, and no plain ones")))?;
        self.notes.push(format!("{component} has no weights of the variant {variant}: its plain ones are taken"));
        Ok(plain)
    }

    /// Refuses a variant that no part has.
    fn check_variant(&self, options: &OpenOptions) -> Result<(), LayoutError> {
        match &options.variant {
            Some(variant) if self.layout == Layout::DiffusersPipeline && !self.variant_met => {
                let problem = format!("no part of it has weights of the variant {variant}; leave the variant out");
                Err(LayoutError::Wish { path: self.path.clone(), problem })
            }
            _ => Ok(()),
        }
    }

    /// Takes the autoencoder of another checkpoint. What its file does not say of the scale of the latents is what the UNet
    /// takes.
    fn take_vae(&mut self, path: &Path, options: &OpenOptions) -> Result<(), LayoutError> {
        let options = OpenOptions { skip_unknown_objects: options.skip_unknown_objects, ..OpenOptions::default() };
        let mut other = Self::open_with(path, &options)?;
        let mut part = other.part(Component::Vae)?.into_owned();
        let shown = path.display();
        if let Some(at) = self.parts.iter().position(|part| part.component == Component::Vae) {
            let old = self.parts.remove(at);
            self.replaced.extend(old.stored.into_iter().map(|tensor| (old.weights, tensor.key)));
            self.notes.push(format!("the autoencoder is that of {shown}, in place of the checkpoint's own"));
        } else {
            self.notes.push(format!("the autoencoder is that of {shown}"));
        }
        let unet = self.parts.iter().find(|part| part.component == Component::Unet);
        if let (true, Some(unet)) = (part.inferred, unet) {
            let scale = latent_scale(&unet.config);
            part.config["scaling_factor"] = scale.into();
            self.notes.push(format!("{shown} does not say the scale of its latents: {scale}, the UNet's, is taken"));
        }
        part.weights = self.add_weights(other.weights.swap_remove(part.weights));
        self.borrowed.push(part.weights);
        self.parts.push(part);
        Ok(())
    }

    /// Gives the text encoders learned words.
    fn learn(&mut self, files: &[EmbeddingFile]) -> Result<(), LayoutError> {
        for EmbeddingFile { path, word } in files {
            for embedding in read_embeddings(path, word.as_deref())? {
                let problem = |problem| EmbeddingError::Unusable { file: path.clone(), problem };
                if self.learned.iter().any(|known| known.word == embedding.word) {
                    let word = &embedding.word;
                    return Err(problem(format!("`{word}` stands for another file already; name it FILE=WORD")).into());
                }
                let rows = self.placed(&embedding).map_err(problem)?;
                self.learned.push(LearnedWord { word: embedding.word, rows });
            }
        }
        Ok(())
    }

    /// The vectors of each text encoder; every encoder must get as many.
    fn placed(&self, embedding: &Embedding) -> Result<BTreeMap<Component, EmbeddingVectors>, String> {
        let mut rows = BTreeMap::new();
        let encoders = self.parts.iter().filter_map(|part| {
            let slot = match part.component {
                Component::TextEncoder => EmbeddingSlot::First,
                Component::TextEncoder2 => EmbeddingSlot::Second,
                _ => return None,
            };
            Some((part.component, slot, part.config["hidden_size"].as_u64().unwrap_or(512)))
        });
        for (component, slot, width) in encoders {
            let fits = |vectors: &&EmbeddingVectors| vectors.width as u64 == width;
            let any = embedding.vectors.get(&EmbeddingSlot::Any).filter(fits);
            let Some(vectors) = embedding.vectors.get(&slot).filter(fits).or(any) else {
                let there: Vec<String> = embedding.vectors.values().map(|vectors| vectors.width.to_string()).collect();
                return Err(format!(
                    "`{}` has vectors of width {}, and {component} takes {width}: it was made for another family",
                    embedding.word,
                    there.join(" and "),
                ));
            };
            rows.insert(component, vectors.clone());
        }
        if embedding.vectors.contains_key(&EmbeddingSlot::Second) && !rows.contains_key(&Component::TextEncoder2) {
            return Err(format!(
                "`{}` was made for Stable Diffusion XL, whose second text encoder is not here",
                embedding.word
            ));
        }
        let mut counts = rows.values().map(EmbeddingVectors::count);
        let Some(count) = counts.next() else { return Err("the checkpoint holds no text encoder for it".into()) };
        if counts.any(|other| other != count) {
            return Err(format!("`{}` has not as many vectors for both text encoders", embedding.word));
        }
        Ok(rows)
    }

    /// The learned words, with the number of vectors of each.
    pub fn learned_words(&self) -> impl Iterator<Item = (&str, usize)> {
        self.learned.iter().map(|learned| {
            let count = learned.rows.values().next().map_or(0, EmbeddingVectors::count);
            (learned.word.as_str(), count)
        })
    }

    /// A folder with one model's `config.json` and weights.
    fn open_model(path: &Path, weights: &Path, options: &OpenOptions) -> Result<Self, LayoutError> {
        let config = files::read_object(&path.join("config.json"))?;
        let weights = Weights::open(weights, options.reading())?;
        if let Some(component) = recognise::component_of(&config) {
            let mut checkpoint = Self::empty(path, Layout::ModelFolder);
            let found = recognise::model(&weights.shapes, component, config);
            let at = checkpoint.add_weights(weights);
            checkpoint.add_part(found, at, options)?;
            checkpoint.carry_model_files()?;
            return Ok(checkpoint);
        }
        // timm's configuration says less than its weights.
        let recognised =
            recognise::file(&weights.shapes, &|_| None, false).filter(|found| found.layout == Layout::Timm);
        let Some(mut recognised) = recognised else {
            let kind = ["_class_name", "model_type", "architecture"].iter().find_map(|field| config[*field].as_str());
            return Err(LayoutError::Unrecognised {
                path: path.join("config.json"),
                reason: format!(
                    "its model is {}, which is none of those that Calotype knows",
                    kind.unwrap_or("not named")
                ),
            });
        };
        recognised.found.iter_mut().for_each(|found| timm::take_labels(&mut found.config, &config));
        let side = recognised.found.first().and_then(|found| found.config["image_size"].as_u64()).unwrap_or(224);
        let mut checkpoint = Self::from_recognised(path, weights, recognised, options)?;
        checkpoint.carry_model_files()?;
        if let Some(processor) = timm::processor(&config, side as usize) {
            let text = pretty(&processor.to_transformers());
            checkpoint.files.entry(ImageProcessor::FILE.into()).or_insert(text);
        } else {
            let note = "its preparation of pictures is none that is followed (pretrained_cfg in config.json): name one where pictures are \
                        looked at";
            checkpoint.notes.push(note.to_owned());
        }
        Ok(checkpoint)
    }

    /// A folder as open_clip saves it: `open_clip_config.json` says what the weights do not.
    fn open_clip_folder(path: &Path, names: &[String], options: &OpenOptions) -> Result<Self, LayoutError> {
        let config = files::read_object(&path.join("open_clip_config.json"))?;
        let preferred =
            ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"];
        let name = preferred.iter().find(|name| names.iter().any(|known| known == *name));
        let name = name.ok_or_else(|| LayoutError::Unrecognised {
            path: path.to_owned(),
            reason: format!("beside open_clip_config.json there is none of {}", preferred.join(", ")),
        })?;
        let weights = Weights::open(&path.join(name), options.reading())?;
        let mut recognised = recognise::file(&weights.shapes, &|_| None, false)
            .filter(|found| found.layout == Layout::OpenClip)
            .ok_or_else(|| unknown_keys(&weights))?;
        recognised.notes.clear();
        for found in &mut recognised.found {
            apply_open_clip_config(&mut found.config, &config["model_cfg"]);
        }
        let mut checkpoint = Self::from_recognised(path, weights, recognised, options)?;
        checkpoint.carry_model_files()?;
        if let Some(processor) = open_clip_processor(&config) {
            let text = pretty(&processor.to_transformers());
            checkpoint.files.entry(ImageProcessor::FILE.into()).or_insert(text);
        }
        Ok(checkpoint)
    }

    /// Takes what a model's own folder says about its inputs: normalisation of images, the tokenizer.
    fn carry_model_files(&mut self) -> Result<(), LayoutError> {
        let names = std::iter::once(ImageProcessor::FILE).chain(TokenizerTexts::NAMES);
        for name in names.filter(|name| self.path.join(name).is_file()) {
            match files::carry_file(&self.path.join(name))? {
                Some(text) => drop(self.files.insert(name.into(), text)),
                None => self.notes.push(format!("not carried along, for it is no short text: {name}")),
            }
        }
        Ok(())
    }

    /// A folder that Calotype wrote, whose files have the hashes of its manifest.
    fn open_calotype(path: &Path, options: &OpenOptions) -> Result<Self, LayoutError> {
        let manifest = Manifest::read(path)?;
        manifest.verify(path)?;
        let mut checkpoint = Self::empty(path, Layout::Calotype);
        for component in &manifest.components {
            // Its weights have no variants.
            let options = OpenOptions { variant: None, ..options.clone() };
            checkpoint.add_model_folder(*component, &path.join(component.name()), &options)?;
        }
        for name in manifest.carried() {
            checkpoint.files.insert(name.to_owned(), files::read_text(&path.join(name))?);
        }
        checkpoint.family = manifest.family;
        checkpoint.prediction = manifest.prediction_type;
        checkpoint.prediction_source = format!("recorded in {}", Manifest::FILE);
        Ok(checkpoint)
    }

    // Files ------------------------------------------------------------------------------------------------------

    fn open_file(path: &Path, options: &OpenOptions) -> Result<Self, LayoutError> {
        let weights = Weights::open(path, options.reading())?;
        check_readable(&weights)?;
        let recorded = Recorded::of(&weights)?;
        let beside = config_beside(path)?;
        let known = |component: Component| {
            let beside = beside.as_ref().filter(|config| recognise::component_of(config) == Some(component));
            recorded.configs.get(&component).or(beside).cloned()
        };
        let averaged = options.ema && weights.shapes.keys().any(|key| key.starts_with("model_ema."));
        let recognised = recognise::file(&weights.shapes, &known, averaged);
        for component in [Component::Unet, Component::Vae] {
            let mut found = recognised.iter().flat_map(|recognised| &recognised.found);
            let lacking = recognise::lacking(&weights.shapes, component);
            if let Some(key) = lacking.filter(|_| !found.any(|found| found.component == component)) {
                let reason = format!("it has tensors of {component}, but not `{key}`");
                return Err(LayoutError::Damaged { path: path.to_owned(), reason });
            }
        }
        let mut recognised = recognised.ok_or_else(|| unknown_keys(&weights))?;
        complete_nemo(&mut recognised, &weights)?;
        let marks = Marks::of(&weights)?;
        let autoencoder = recognised.found.iter_mut().find(|found| found.component == Component::Vae);
        if let Some(found) = autoencoder.filter(|_| known(Component::Vae).is_none()) {
            marks.complete_autoencoder(&mut found.config);
        }
        let needless = needless_keys(&recognised, &weights)?;
        let mut checkpoint = Self::from_recognised(path, weights, recognised, options)?;
        checkpoint.needless = needless;
        checkpoint.scheduler.marks = marks;
        checkpoint.averaged = averaged;
        checkpoint.files = recorded.files;
        checkpoint.notes.extend(recorded.notes);
        checkpoint.family = recorded.family;
        if let Some((prediction, source)) = recorded.prediction {
            checkpoint.prediction = Some(prediction);
            checkpoint.prediction_source = source;
        }
        Ok(checkpoint)
    }

    fn from_recognised(
        path: &Path,
        weights: Weights,
        recognised: Recognised,
        options: &OpenOptions,
    ) -> Result<Self, LayoutError> {
        let mut checkpoint = Self::empty(path, recognised.layout);
        checkpoint.notes = recognised.notes;
        let at = checkpoint.add_weights(weights);
        for found in recognised.found {
            checkpoint.add_part(found, at, options)?;
        }
        Ok(checkpoint)
    }

    // Accounting -------------------------------------------------------------------------------------------------

    fn add_weights(&mut self, weights: Weights) -> usize {
        self.weights.push(weights);
        self.weights.len() - 1
    }

    fn add_part(&mut self, found: Found, weights: usize, options: &OpenOptions) -> Result<(), LayoutError> {
        let Found { component, mut config, inferred, map } = found;
        for (name, passed) in passed_fields(component, &mut config, options.pass_over_fields) {
            let how = if passed { "is not known, and is passed over" } else { "has no effect" };
            self.notes.push(format!("{component}: the configuration's field `{name}` {how}"));
        }
        let specs = component_keys(component, &config)?;
        let (stored, mut missing) = map.stored(&specs);
        let shapes = &self.weights[weights].shapes;
        let mut shape_problems = Vec::new();
        for tensor in &stored {
            match shapes.get(&tensor.key) {
                None => missing.extend(tensor.parts.iter().map(|&part| specs[part].name.clone())),
                Some(shape) if !same_but_ones(shape, &tensor.shape) => {
                    shape_problems.push(format!("{} has shape {shape:?}, expected {:?}", tensor.key, tensor.shape));
                }
                Some(_) => {}
            }
        }
        missing.sort_unstable();
        self.parts.push(Part { component, config, inferred, weights, map, specs, stored, missing, shape_problems });
        Ok(())
    }

    /// Sorts the stored tensors that no component takes into those known not to be needed and those unknown.
    fn account(&mut self) {
        for (at, weights) in self.weights.iter().enumerate().filter(|(at, _)| !self.borrowed.contains(at)) {
            let parts: Vec<&Part> = self.parts.iter().filter(|part| part.weights == at).collect();
            let taken: HashSet<&str> =
                parts.iter().flat_map(|part| part.stored.iter().map(|tensor| tensor.key.as_str())).collect();
            for tensor in weights.tensors.iter().filter(|tensor| !taken.contains(tensor.name.as_str())) {
                let replaced = self.replaced.contains(&(at, tensor.name.clone()));
                let reason = match replaced {
                    true => Some("the autoencoder that another file's replaces"),
                    false if self.needless.contains(&tensor.name) => Some("zeros that would be added"),
                    false => scale_of(&taken, &tensor.name).or_else(|| self.reason_to_leave(&parts, &tensor.name)),
                };
                match reason {
                    Some(reason) => self.set_aside.entry(reason).or_default().push(tensor.name.clone()),
                    None => self.unused.push(tensor.name.clone()),
                }
            }
        }
        self.unused.sort_unstable();
        self.set_aside.values_mut().for_each(|keys| keys.sort_unstable());
    }

    /// The reason why a stored tensor is not needed; `None` if there is none.
    fn reason_to_leave(&self, parts: &[&Part], key: &str) -> Option<&'static str> {
        if let Some(what) = rules::not_a_weight(key) {
            return Some(what);
        }
        if self.averaged && key.starts_with(rules::LDM_UNET) {
            return Some("weights that are not averaged (the averaged ones were chosen)");
        }
        if !self.averaged && key.starts_with("model_ema.") {
            return Some("averaged copies of the UNet (choose EMA to take them)");
        }
        let encoder = |part: &&&Part| matches!(part.component, Component::TextEncoder | Component::TextEncoder2);
        parts.iter().filter(encoder).find_map(|part| {
            let rest = key.strip_prefix(part.map.prefix()).filter(|_| !part.map.prefix().is_empty())?;
            let layers = part.config["num_hidden_layers"].as_u64().unwrap_or(12);
            let block =
                rest.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split('.').next()?.parse().ok());
            match rest {
                "text_projection" => Some("projection of the text, which the UNet is not conditioned on"),
                "head.weight" => Some("projection of the text, which the UNet is not conditioned on"),
                "logit_scale" => Some("CLIP's temperature, which the text encoder does not need"),
                _ if block.is_some_and(|block: u64| block >= layers) => Some("blocks behind the last one that is used"),
                _ => None,
            }
        })
    }

    // What it is -------------------------------------------------------------------------------------------------

    fn name_family(&mut self, options: &OpenOptions) -> Result<(), LayoutError> {
        let unet = self.parts.iter().find(|part| part.component == Component::Unet).map(|part| &part.config);
        let components = self.components();
        let form = Form { unet, components: &components };
        let seen = Family::of(&form);
        if let Some(given) = options.family
            && let Some(problem) = given.contradiction(&form)
        {
            let shown = seen.map_or_else(String::new, |seen| format!("; the weights are those of {seen}"));
            let problem = format!("the family {given} was given (--family), but {problem}{shown}: leave it out");
            return Err(LayoutError::Wish { path: self.path.clone(), problem });
        }
        self.family = options.family.or(self.family).or(seen);
        let Some(facts) = self.family.map(Family::facts) else { return Ok(()) };
        if let (Some(adjust), Some(_)) = (facts.adjust_unet, options.family)
            && let Some(unet) = self.parts.iter_mut().find(|part| part.component == Component::Unet)
        {
            adjust(&mut unet.config);
        }
        let single = self.layout.is_single_file() && self.files.is_empty();
        self.notes.extend(facts.doubt.filter(|_| single).map(str::to_owned));
        Ok(())
    }

    /// Finds out what the UNet predicts, and says how.
    fn settle_prediction(&mut self, options: &OpenOptions) {
        if !self.parts.iter().any(|part| part.component == Component::Unet) {
            self.prediction = None;
            self.prediction_source = "there is no UNet".into();
            return;
        }
        let recorded = self.prediction.map(|prediction| (prediction, self.prediction_source.clone()));
        let marked = self.scheduler.marks.prediction();
        let marked = marked.map(|(prediction, mark)| (prediction, format!("the file holds the mark `{mark}`")));
        let said = recorded.map(Ok).or_else(|| self.scheduler.prediction()).or(marked.map(Ok));
        self.overruled = options.prediction.and_then(|given| overruled(given, said.as_ref()));
        self.notes.extend(self.overruled.clone());
        let given = options.prediction.map(|prediction| Ok((prediction, "given".to_owned())));
        let found = match given.or(said) {
            None => self.family_prediction().ok_or_else(|| "not said by the checkpoint; it must be given".to_owned()),
            Some(found) => {
                found.map_err(|name| format!("the scheduler's {name} is none that is known; it must be given"))
            }
        };
        (self.prediction, self.prediction_source) = match found {
            Ok((prediction, source)) => (Some(prediction), source),
            Err(problem) => (None, problem),
        };
        if let (Some(family), Some(prediction)) = (self.family, self.prediction) {
            self.family = Some(family.refined(prediction));
        }
    }

    /// Refuses what a file of weights says about the prediction type and cannot be understood: it would be drawn as something
    /// else.
    fn check_prediction(&self, options: &OpenOptions) -> Result<(), LayoutError> {
        let mut said = Vec::new();
        for weights in &self.weights {
            let keys = ["calotype.prediction_type", "modelspec.prediction_type"];
            let recorded = keys.into_iter().filter_map(|key| weights.metadata.get(key)).filter(|name| *name != "v");
            said.extend(recorded.map(|name| (weights.path.clone(), name.clone())));
        }
        let unknown = said.into_iter().find(|(_, name)| name.parse::<Prediction>().is_err());
        match unknown.filter(|_| options.prediction.is_none()) {
            Some((path, name)) => Err(LayoutError::Unrecognised {
                path,
                reason: format!(
                    "it says that the UNet predicts `{name}`, which is not supported; if that is wrong, give the prediction type \
                     (epsilon, v_prediction)"
                ),
            }),
            None => Ok(()),
        }
    }

    fn read_scheduler(&mut self, options: &OpenOptions) -> Result<(), LayoutError> {
        let (files, notes) = (&self.files, &mut self.notes);
        self.scheduler.stored = SchedulerFacts::stored(&self.path, files, options.pass_over_fields, notes)?;
        self.scheduler.zero_snr = options.zero_snr;
        if self.scheduler.marks.zero_snr && !self.scheduler.marks.velocity {
            self.notes
                .push("the mark `ztsnr` is of velocity prediction, whose mark is not there: it is left out".into());
        }
        Ok(())
    }

    /// Families of which all published checkpoints predict the same.
    fn family_prediction(&self) -> Option<(Prediction, String)> {
        let family = self.family?;
        let prediction = family.facts().prediction?;
        Some((prediction, format!("what the original of {family} predicts; the checkpoint does not say it")))
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The published model that it has the form of; `None` if none.
    pub fn family(&self) -> Option<Family> {
        self.family
    }

    /// The UNet's prediction type; `None` if there is no UNet or it is not known.
    pub fn prediction(&self) -> Option<Prediction> {
        self.prediction
    }

    /// The source of the prediction type, or a sentence that it is not known.
    pub fn prediction_source(&self) -> &str {
        &self.prediction_source
    }

    /// A sentence for people if the prediction type that was given is not the one that the checkpoint says; it is among the
    /// [`notes`](Self::notes) too.
    pub fn overruled_prediction(&self) -> Option<&str> {
        self.overruled.as_deref()
    }

    /// The components, in the order in which they were found.
    pub fn components(&self) -> Vec<Component> {
        self.parts.iter().map(|part| part.component).collect()
    }

    /// Scheduler, tokenizer and index files, by relative path.
    pub fn files(&self) -> &TextFiles {
        &self.files
    }

    /// The preprocessing of images for a network of this checkpoint (`preprocessor_config.json`), if it says so.
    ///
    /// # Errors
    /// [`LayoutError::Json`] or [`LayoutError::Unrecognised`] if the file is no such configuration, or asks for what is
    /// not done here.
    pub fn image_processor(&self) -> Result<Option<ImageProcessor>, LayoutError> {
        let name = ["", "feature_extractor/", "image_processor/"]
            .map(|folder| format!("{folder}{}", ImageProcessor::FILE))
            .into_iter()
            .find(|name| self.files.contains_key(name));
        let Some((name, text)) = name.and_then(|name| Some((self.path.join(&name), self.files.get(&name)?))) else {
            return Ok(None);
        };
        let config: Value =
            serde_json::from_str(text).map_err(|source| LayoutError::Json { path: name.clone(), source })?;
        let processor = ImageProcessor::from_transformers(&config);
        processor.map(Some).map_err(|error| LayoutError::Unrecognised { path: name, reason: error.to_string() })
    }

    /// The files of a text encoder's tokenizer (of a whole CLIP model's, for [`Component::Clip`] and its towers), if the
    /// checkpoint carries them.
    pub fn tokenizer_files(&self, component: Component) -> Option<TokenizerTexts<'_>> {
        let folder = match component {
            _ if TokenizerTexts::NAMES.iter().any(|name| self.files.contains_key(*name)) => String::new(),
            Component::TextEncoder | Component::TextEncoder2 => {
                format!("{}/", Facts::of(self.family).text(component).tokenizer)
            }
            _ => return None,
        };
        let text = |name: &str| self.files.get(&format!("{folder}{name}")).map(String::as_str);
        let texts = TokenizerTexts::NAMES.map(text);
        if texts.iter().all(Option::is_none) {
            return None;
        }
        let [vocab, merges, tokenizer, config, special_tokens, added_tokens] = texts;
        let folder = self.path.join(folder);
        Some(TokenizerTexts { folder, vocab, merges, tokenizer, config, special_tokens, added_tokens })
    }

    /// The tokenizer of a text encoder or of a whole CLIP model: the checkpoint's own, or else CLIP's with what the
    /// original of the family does to prompts, in rows as long as the encoder takes; with the learned words.
    ///
    /// # Errors
    /// [`TokenizerError`] if its own is there and cannot be used, or has a learned word already.
    pub fn tokenizer(&self, component: Component) -> Result<ClipTokenizer, TokenizerError> {
        let config = self.part(component).ok().map(|part| match part.component {
            Component::Clip => part.config["text_config"].clone(),
            _ => part.config.clone(),
        });
        let number = |field: &str| config.as_ref().and_then(|config| config[field].as_u64());
        let length = number("max_position_embeddings").unwrap_or(77).clamp(3, 1 << 20) as usize;
        let options = Facts::of(self.family).text(component).options;
        let mut tokenizer = match self.tokenizer_files(component) {
            Some(texts) => ClipTokenizer::from_texts_or(&texts, options, length)?,
            None => ClipTokenizer::with_options(length, options),
        };
        let size = number("vocab_size").unwrap_or(ClipTokenizer::VOCABULARY as u64);
        let mut next = i32::try_from(size).unwrap_or(i32::MAX);
        for LearnedWord { word, rows } in &self.learned {
            let Some(vectors) = rows.get(&component) else { continue };
            let end = next.saturating_add(vectors.count() as i32);
            tokenizer.add_word(word, (next..end).collect())?;
            next = end;
        }
        Ok(tokenizer)
    }

    /// The scheduler's configuration that the checkpoint carries, if it does; see [`scheduler`](Self::scheduler).
    pub fn scheduler_config(&self) -> Option<Value> {
        self.scheduler.stored.clone()
    }

    pub(crate) fn scheduler_facts(&self) -> &SchedulerFacts {
        &self.scheduler
    }

    /// Stored tensors that are known not to be needed, by the reason.
    pub fn set_aside(&self) -> &BTreeMap<&'static str, Vec<String>> {
        &self.set_aside
    }

    /// Stored tensors that belong to no component that Calotype knows.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// A sentence about stored tensors that nothing takes, for people who use the rest; none if all are taken.
    pub fn unused_warning(&self) -> Option<String> {
        const SHOWN: usize = 5;
        let shown = self.unused.iter().take(SHOWN).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        let more = if self.unused.len() > SHOWN { " and so on" } else { "" };
        let (path, count) = (self.path.display(), self.unused.len());
        let warning =
            format!("{path}: {count} tensors are in no network that is known, and are not used: {shown}{more}");
        (count > 0).then_some(warning)
    }

    /// Assumptions and omissions, in full sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// True if the averaged weights were chosen.
    pub fn averaged(&self) -> bool {
        self.averaged
    }

    /// Canonical keys that a component lacks, and sentences about shapes that are not the configuration's.
    pub(crate) fn problems(&self, component: Component) -> (&[String], &[String]) {
        match self.parts.iter().find(|part| part.component == component) {
            Some(part) => (&part.missing, &part.shape_problems),
            None => (&[], &[]),
        }
    }

    /// Stored keys of a component in a single file, below the prefix of its own, for which its structure has no place. The
    /// structure is what the keys show, so that they mean a network that is not seen whole.
    pub(crate) fn unplaced(&self, component: Component) -> Vec<String> {
        let part = self.parts.iter().find(|part| part.component == component);
        let prefix = part.map_or("", |part| part.map.prefix());
        let own = |key: &&String| !prefix.is_empty() && key.starts_with(prefix);
        self.unused.iter().filter(own).cloned().collect()
    }

    /// True if a component is that of another file or folder ([`OpenOptions::vae`]).
    pub fn is_taken_elsewhere(&self, component: Component) -> bool {
        let part = self.parts.iter().find(|part| part.component == component);
        part.is_some_and(|part| self.borrowed.contains(&part.weights))
    }

    /// One component under its canonical keys. Of a whole CLIP model, a tower with its projection can be had as
    /// [`Component::TextEncoder`] or [`Component::ImageEncoder`].
    ///
    /// # Errors
    /// [`LayoutError::NoComponent`]; [`LayoutError::Shapes`] if tensors do not have the configuration's shapes. Missing
    /// tensors are listed in the result, not an error.
    pub fn component(&self, component: Component) -> Result<ComponentSource, LayoutError> {
        self.component_source(&*self.part(component)?, &self.learned_rows(component))
    }

    /// [`component`](Self::component) as the checkpoint itself has it: a text encoder's table without the rows of learned
    /// words.
    ///
    /// # Errors
    /// As of [`component`](Self::component).
    pub fn component_without_words(&self, component: Component) -> Result<ComponentSource, LayoutError> {
        self.component_source(&*self.part(component)?, &[])
    }

    /// The part of a component; a tower of a whole CLIP model is made on the way.
    fn part(&self, component: Component) -> Result<Cow<'_, Part>, LayoutError> {
        if let Some(part) = self.parts.iter().find(|part| part.component == component) {
            return Ok(Cow::Borrowed(part));
        }
        let clip = self.parts.iter().find(|part| part.component == Component::Clip);
        match (clip, component) {
            (Some(clip), Component::TextEncoder | Component::ImageEncoder) => Ok(Cow::Owned(clip.tower(component)?)),
            _ => Err(LayoutError::NoComponent {
                path: self.path.clone(),
                component,
                held: self.parts.iter().map(|part| part.component.name()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Tensors of a component under canonical keys (all of them, or gradients of them) as this checkpoint stores them. Those
    /// that share a stored tensor with others are left out if not all of these are there.
    ///
    /// # Errors
    /// As of [`component`](Self::component).
    pub fn as_stored(
        &self,
        component: Component,
        canonical: &[NamedTensor<'_>],
    ) -> Result<Vec<NamedTensor<'static>>, LayoutError> {
        let part = self.part(component)?;
        let mut stored = Vec::with_capacity(canonical.len());
        let specs: Vec<TensorSpec> =
            canonical.iter().map(|t| TensorSpec { name: t.name.clone(), shape: t.shape.clone() }).collect();
        for whole in part.map.stored(&specs).0 {
            let parts: Vec<NamedTensor<'_>> = whole.parts.iter().map(|&at| canonical[at].clone()).collect();
            stored.extend(part.map.store(&parts).unwrap_or_default());
        }
        Ok(stored)
    }

    /// A part's tensors; `learned` are values that are appended to a text encoder's table.
    fn component_source(&self, part: &Part, learned: &[f32]) -> Result<ComponentSource, LayoutError> {
        if !part.shape_problems.is_empty() {
            return Err(LayoutError::Shapes {
                path: self.path.clone(),
                component: part.component,
                problems: part.shape_problems.clone(),
            });
        }
        let weights = &self.weights[part.weights];
        let types: HashMap<&str, _> =
            weights.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype)).collect();
        let mut entries = Vec::with_capacity(part.specs.len());
        let mut config = part.config.clone();
        for spec in &part.specs {
            let Some(place) = part.map.place(&spec.name) else { continue };
            let Some(&dtype) = types.get(place.key.as_str()) else { continue };
            let scale =
                rules::scale_keys(&place.key).and_then(|keys| keys.into_iter().find(|key| types.contains_key(&**key)));
            let whole =
                scale.is_some() && dtype == Dtype::I8 && matches!(place.form, Stored::Same | Stored::Convolution);
            let smooth = rules::smooth_key(&place.key).filter(|key| types.contains_key(&**key));
            let mut entry = Entry {
                spec: spec.clone(),
                dtype: if scale.is_some() { Dtype::F32 } else { dtype },
                key: place.key,
                form: place.form,
                scale,
                int8: whole.then_some(smooth),
                appended: Arc::default(),
            };
            if spec.name == TOKEN_TABLE && !learned.is_empty() {
                entry.spec.shape[0] += learned.len() / spec.shape[1].max(1);
                config["vocab_size"] = entry.spec.shape[0].into();
                (entry.dtype, entry.appended) = (Dtype::F32, learned.into());
            }
            entries.push(entry);
        }
        let alone = self.parts.iter().filter(|other| other.weights == part.weights).count() == 1;
        let prefix = part.map.prefix();
        let own = |key: &&String| weights.shapes.contains_key(*key) && (alone || key.starts_with(prefix));
        let unused = self.unused.iter().filter(own).cloned().collect();
        let source: Arc<dyn TensorSource> = weights.source.clone();
        Ok(ComponentSource::new(part.component, config, source, entries, part.missing.clone(), unused))
    }
}

impl Checkpoint {
    /// The vectors of all learned words for a text encoder, one after the other.
    fn learned_rows(&self, component: Component) -> Vec<f32> {
        let rows = self.learned.iter().filter_map(|learned| learned.rows.get(&component));
        rows.flat_map(|vectors| vectors.values.iter().copied()).collect()
    }
}

impl Part {
    /// One tower of a whole CLIP model, with its projection.
    fn tower(&self, component: Component) -> Result<Part, LayoutError> {
        let (field, class, kind) = match component {
            Component::ImageEncoder => ("vision_config", "CLIPVisionModelWithProjection", "clip_vision_model"),
            _ => ("text_config", "CLIPTextModelWithProjection", "clip_text_model"),
        };
        let mut config = tower_config(&self.config, field);
        config["architectures"] = serde_json::json!([class]);
        config["model_type"] = kind.into();
        let specs = component_keys(component, &config)?;
        let (stored, _) = self.map.stored(&specs);
        let missing = self.missing.iter().filter(|key| specs.iter().any(|spec| spec.name == **key)).cloned().collect();
        let (weights, map, shape_problems) = (self.weights, self.map.clone(), self.shape_problems.clone());
        let inferred = self.inferred;
        Ok(Part { component, config, inferred, weights, map, specs, stored, missing, shape_problems })
    }
}

/// A sentence for people if what a checkpoint says of its prediction type is not what is given.
fn overruled(given: Prediction, said: Option<&Result<(Prediction, String), String>>) -> Option<String> {
    let (own, source) = said?.as_ref().ok().filter(|(own, _)| *own != given)?;
    Some(format!(
        "the prediction type {given} was given (--prediction), and the checkpoint says {own} ({source}): the images are ruined if \
         the checkpoint is right"
    ))
}

/// The table of a text encoder's tokens.
const TOKEN_TABLE: &str = "text_model.embeddings.token_embedding.weight";

/// What a UNet's latents are multiplied by, where the autoencoder does not say it.
fn latent_scale(unet: &Value) -> f64 {
    if unet["addition_embed_type"] == "text_time" { infer::SDXL_SCALE } else { infer::SD_SCALE }
}

/// The reason to leave the scale of an 8-bit weight that is taken.
fn scale_of(taken: &HashSet<&str>, key: &str) -> Option<&'static str> {
    let ends = [".scale_weight", ".weight_scale", ".smooth"];
    let module = ends.into_iter().find_map(|end| key.strip_suffix(end))?;
    taken
        .contains(format!("{module}.weight").as_str())
        .then_some("scales of 8-bit weights, which are multiplied by them")
}

/// Refuses files of adapters and embeddings, and weights that are stored in a way that is not read, by name.
fn check_readable(weights: &Weights) -> Result<(), LayoutError> {
    let refuse = |reason: String| Err(LayoutError::Unrecognised { path: weights.path.clone(), reason });
    let keys = || weights.tensors.iter().map(|tensor| tensor.name.as_str());
    if let Some(what) = keys().find_map(rules::packed_weights) {
        return refuse(format!("it holds {what}, which are not read: take the file in f16, bf16 or fp8"));
    }
    if let Some(reason) = keys().find_map(rules::unread) {
        return refuse(reason.into());
    }
    if let Some(first) = keys().next().filter(|_| keys().all(lora::is_adapter_key)) {
        return refuse(format!("it is an adapter (`{first}`, …): give it with --lora, and a checkpoint as the model"));
    }
    Ok(())
}

/// Folder of the finished model in a training run's folder, which holds its recipe.
const RUN_MODEL: &str = "model";

/// The figures of a finished training run.
const RUN_RESULT: &str = "result.json";

/// Folder of the saved states in a training run's folder.
const RUN_CHECKPOINTS: &str = "checkpoints";

/// What a folder of training's without a model is, and the way to one; `has` says which files are in it.
fn unfinished(path: &Path, has: impl Fn(&str) -> bool) -> Option<String> {
    let again = "the same command goes on with it, and `calotype inspect` tells how far it is";
    if has("state.json") && has("tensors.safetensors") {
        return Some(format!(
            "a training checkpoint, which holds more than a model; `calotype export RUN --at SAMPLES` writes its model, runs begin \
             with it (init_from={}), and a run that is finished has its model in the folder {RUN_MODEL}",
            path.display()
        ));
    }
    if has("quickstart.json") {
        return Some(format!("a quickstart that is not finished; {again}"));
    }
    if !has(RECIPE) {
        return None;
    }
    if let Some(Content::Evaluation | Content::VisionEvaluation) = content(path).map(|found| found.content) {
        return Some(
            "an evaluation, which holds pictures and figures of a model; give the model that it judged, by its own path".to_owned(),
        );
    }
    let saved = newest_saved(&path.join(RUN_CHECKPOINTS));
    if !has(RUN_RESULT) && path.join(RUN_MODEL).is_dir() {
        return Some(format!("{}; {again}", outgrown(path, saved)));
    }
    Some(match (has(RUN_RESULT), saved) {
        (true, Some(_)) => format!(
            "a finished training run whose folder {RUN_MODEL} is gone; the command that trained it (`calotype train`) writes it again \
             from the last checkpoint"
        ),
        (true, None) => format!(
            "a finished training run whose folders {RUN_MODEL} and {RUN_CHECKPOINTS} are gone; copy one of both back, or train again"
        ),
        (false, None) => format!("a training run that is not finished, with 0 samples saved; {again}"),
        (false, Some(saved)) => format!(
            "a training run that is not finished, with {saved} samples saved; {again}; `calotype export {} --out FOLDER` writes the \
             model of what is saved",
            path.display()
        ),
    })
}

/// What a run is that goes on behind the end whose model it still has.
fn outgrown(run: &Path, saved: Option<u64>) -> String {
    let (samples, model, run) = (saved.unwrap_or(0), run.join(RUN_MODEL), run.display());
    format!(
        "a training run that is not finished, with {samples} samples saved, and its model is that of an earlier end: give {} for \
         that one, or write that of the newest checkpoint with `calotype export {run} --out FOLDER`",
        model.display()
    )
}

/// The samples or images that a folder is of; shards beside weights only if `is_dataset`.
fn samples_in(path: &Path, is_dataset: bool) -> Option<folders::Found> {
    let of_samples =
        |found: &folders::Found| matches!(found.content, Content::Shards | Content::Images | Content::Drawn);
    content(path).filter(|found| is_dataset && of_samples(found))
}

/// Samples of the newest checkpoint in a run's folder of them.
fn newest_saved(folder: &Path) -> Option<u64> {
    let names = files::folder_names(folder).ok()?;
    names.iter().filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).max()
}

/// Folders of a pipeline that hold texts.
const TEXT_FOLDERS: [&str; 5] = ["scheduler", "tokenizer", "tokenizer_2", "feature_extractor", "image_processor"];

/// Components whose folders, with configuration and weights, are in `path`.
fn pipeline_folders(path: &Path) -> Result<Vec<Component>, LayoutError> {
    let mut found = Vec::new();
    for component in [Component::Unet, Component::Vae, Component::TextEncoder, Component::TextEncoder2] {
        let folder = path.join(component.name());
        if folder.join("config.json").is_file()
            && files::find_weights(&folder, None).map_or(true, |found| found.is_some())
        {
            found.push(component);
        }
    }
    Ok(found)
}

/// The preprocessing of images in open_clip's configuration.
fn open_clip_processor(config: &Value) -> Option<ImageProcessor> {
    let size = config["model_cfg"]["vision_cfg"]["image_size"].as_u64().unwrap_or(224);
    let size = usize::try_from(size).ok().filter(|size| (1..1 << 16).contains(size))?;
    let preprocess = &config["preprocess_cfg"];
    let channels = |value: &Value, default: [f32; 3]| -> Option<[f32; 3]> {
        if value.is_null() { Some(default) } else { serde_json::from_value(value.clone()).ok() }
    };
    let clip = ImageProcessor::clip(size);
    let filter = match preprocess["interpolation"].as_str() {
        None => clip.filter,
        Some(name) => name.parse().ok()?,
    };
    // Only the default way of cutting is CLIP's.
    let shortest = preprocess["resize_mode"].as_str().is_none_or(|mode| mode == "shortest");
    shortest.then_some(())?;
    let (mean, std) = (channels(&preprocess["mean"], clip.mean)?, channels(&preprocess["std"], clip.std)?);
    Some(ImageProcessor { filter, mean, std, ..clip })
}

/// The configuration of one tower of a `CLIPConfig`, with the common projection width.
fn tower_config(config: &Value, field: &str) -> Value {
    let mut tower = config[field].clone();
    if !tower.is_object() {
        tower = serde_json::json!({});
    }
    let width = &config["projection_dim"];
    tower["projection_dim"] = if width.is_null() { 512.into() } else { width.clone() };
    tower
}

/// The contents of a single file's metadata, written by Calotype's own conversion, or by the modelspec convention.
#[derive(Default)]
struct Recorded {
    configs: BTreeMap<Component, Value>,
    files: TextFiles,
    family: Option<Family>,
    prediction: Option<(Prediction, String)>,
    /// What could not be used, in full sentences.
    notes: Vec<String>,
}

impl Recorded {
    fn of(weights: &Weights) -> Result<Self, LayoutError> {
        let json = |text: &str| {
            serde_json::from_str(text).map_err(|source| LayoutError::Json { path: weights.path.clone(), source })
        };
        let mut recorded = Self::default();
        for &component in Component::ALL {
            if let Some(text) = weights.metadata.get(&format!("calotype.config.{component}")) {
                recorded.configs.insert(component, json(text)?);
            }
        }
        if let Some(text) = weights.metadata.get("calotype.files") {
            let files: Value = json(text)?;
            for (name, content) in files.as_object().into_iter().flatten() {
                match content.as_str().filter(|_| files::stays_inside(name)) {
                    Some(content) => drop(recorded.files.insert(name.clone(), content.to_owned())),
                    None => {
                        recorded.notes.push(format!("the metadata's file `{name}` is none that can be carried along"))
                    }
                }
            }
        }
        if let Some(name) = weights.metadata.get("calotype.family") {
            recorded.family = name.parse().ok();
            let unknown = recorded.family.is_none().then(|| format!("the metadata's family `{name}` is not known"));
            recorded.notes.extend(unknown);
        }
        let own = ("calotype.prediction_type", "recorded by the conversion that wrote the file");
        let modelspec = ("modelspec.prediction_type", "the file's modelspec metadata");
        for (key, source) in [own, modelspec] {
            let Some(name) = weights.metadata.get(key).filter(|_| recorded.prediction.is_none()) else { continue };
            match name.parse() {
                Ok(prediction) => recorded.prediction = Some((prediction, source.to_owned())),
                Err(_) => recorded.notes.push(format!("the metadata's `{key}` is `{name}`, which is not known")),
            }
        }
        Ok(recorded)
    }
}

/// Takes what a `.nemo` file's own configuration says of a CLIP model or a ViT.
fn complete_nemo(recognised: &mut Recognised, weights: &Weights) -> Result<(), LayoutError> {
    if !matches!(recognised.layout, Layout::NemoClip | Layout::NemoVit) {
        return Ok(());
    }
    let Some(text) = weights.metadata.get(NemoFile::CONFIG) else {
        recognised.notes.push(nemo::NO_CONFIG.to_owned());
        return Ok(());
    };
    // They are about what the configuration says.
    recognised.notes.clear();
    recognised.found.iter_mut().try_for_each(|found| nemo::complete(found, &weights.path, text))
}

/// The bias of NeMo's CLIP that is zero where the model was not trained there.
fn needless_keys(recognised: &Recognised, weights: &Weights) -> Result<HashSet<String>, LayoutError> {
    let is_bias = |name: &&String| recognised.layout == Layout::NemoClip && name.ends_with(nemo::PATCH_BIAS);
    let Some(name) = weights.shapes.keys().find(is_bias) else { return Ok(HashSet::new()) };
    let tensor = weights.source.tensor(name)?;
    Ok(HashSet::from_iter(nemo::is_zero(&tensor).then(|| name.clone())))
}

/// `config.json` beside a file that has the name of a model folder's weights.
fn config_beside(path: &Path) -> Result<Option<Value>, LayoutError> {
    let folder = calotype_core::durable::parent_folder(path);
    let named = files::find_weights(folder, None).ok().flatten().is_some_and(|weights| weights == path);
    let config = folder.join("config.json");
    if named && config.is_file() { files::read_object(&config).map(Some) } else { Ok(None) }
}

/// The class of a text encoder decides whether it has a projection; configurations need not name it, places do.
fn complete_text_config(component: Component, config: &mut Value, folder: &Path) {
    let is_text = matches!(component, Component::TextEncoder | Component::TextEncoder2);
    if is_text && !config["architectures"].is_array() && folder.ends_with(component.name()) {
        config["architectures"] = serde_json::json!([component.class()]);
    }
}

/// Takes over what open_clip's configuration says and the weights do not show: activation and heads.
fn apply_open_clip_config(config: &mut Value, model: &Value) {
    let number = |value: &Value, default: u64| value.as_u64().unwrap_or(default);
    let activation = if model["quick_gelu"] == true { "quick_gelu" } else { "gelu" };
    config["text_config"]["hidden_act"] = activation.into();
    config["vision_config"]["hidden_act"] = activation.into();
    if let Some(heads) = model["text_cfg"]["heads"].as_u64() {
        config["text_config"]["num_attention_heads"] = heads.into();
    }
    let head = number(&model["vision_cfg"]["head_width"], 64).max(1);
    let width = number(&config["vision_config"]["hidden_size"], 64);
    config["vision_config"]["num_attention_heads"] = (width / head).max(1).into();
}

fn unknown_keys(weights: &Weights) -> LayoutError {
    let mut keys: Vec<&str> = weights.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    keys.sort_unstable();
    let examples = keys.iter().take(3).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    LayoutError::Unrecognised {
        path: weights.path.clone(),
        reason: format!("its {} keys ({examples}, …) are those of no known layout", keys.len()),
    }
}

/// True if two shapes are the same up to trailing axes of one, so that the elements are the same.
fn same_but_ones(a: &[usize], b: &[usize]) -> bool {
    let bare = |shape: &[usize]| shape.iter().rposition(|&extent| extent != 1).map_or(0, |last| last + 1);
    a[..bare(a)] == b[..bare(b)]
}
