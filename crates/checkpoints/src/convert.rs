//! Writing a checkpoint in another layout.

use crate::checkpoint::Checkpoint;
use crate::error::LayoutError;
use crate::families::Facts;
use crate::files::TextFiles;
use crate::kinds::{Component, Prediction};
use crate::map::{KeyMap, StoredTensor};
use crate::nemo;
use crate::networks::{check_published, reason};
use crate::rules::{self, NemoClip};
use crate::source::{ComponentSource, StoredSource};
use crate::tables;
use crate::write::{Export, Part, Placement, SCHEDULER, Written};
use calotype_core::FieldsError;
use calotype_diffusion::SamplerConfig;
use calotype_models::tokenizer::{ClipTokenizer, clip_files};
use calotype_models::{ClipConfig, VitConfig};
use calotype_weights::nemo_writer::write_nemo;
use calotype_weights::source::{TensorInfo, TensorSource};
use calotype_weights::stream::{write_source, written_dtype};
use calotype_weights::tensor_file::Dtype;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

calotype_core::names! {
    /// The layout to write.
    Target, "layout to write" {
        /// A diffusers pipeline folder; of a checkpoint without UNet, one model's folder as transformers or diffusers has
        /// it.
        Diffusers = "diffusers",
        /// One safetensors file with the LDM code's keys. What the keys cannot say is in its metadata.
        SingleFile = "single-file",
        /// Calotype's own: a folder for each component with `config.json` and `model.safetensors`, all under canonical
        /// keys, and a manifest with hashes.
        Calotype = "calotype",
        /// A `.nemo` file of a ViT or a whole CLIP model, as NeMo restores it; what its configuration has no place for is kept beside
        /// it, and read again.
        Nemo = "nemo",
    }
}

/// Prefix of all keys in NeMo's checkpoints.
const NEMO: &str = "model.";

/// Options of a conversion.
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

/// The result of a conversion; it displays as lines for people.
#[derive(Clone, Debug, Serialize)]
pub struct Conversion {
    /// The file or folder that was written.
    pub path: PathBuf,
    /// Components with their numbers of tensors and parameters.
    pub components: Vec<(Component, usize, usize)>,
    /// Bytes of weights written.
    pub bytes: u64,
    /// Canonical keys that were missing and allowed to be.
    pub missing: Vec<String>,
    /// Stored keys that were left out because that was allowed.
    pub unused: Vec<String>,
    /// Stored tensors that are known not to be needed.
    pub set_aside: usize,
    /// Assumptions, omissions and parts still lacking, in full sentences.
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
    check_name(out, target)?;
    let job = Job::new(checkpoint, target, options)?;
    let written = match target {
        Target::SingleFile => job.single_file(out)?,
        Target::Diffusers | Target::Calotype => job.folder(out, None)?,
        Target::Nemo => job.nemo(out)?,
    };
    job.report(out, written)
}

/// A component in place of the checkpoint's own.
pub struct Replacement<'a> {
    /// The component.
    pub component: Component,
    /// Its configuration, as diffusers has it.
    pub config: Value,
    /// Its tensors under canonical keys.
    pub tensors: &'a dyn TensorSource,
}

/// [`convert`] to a diffusers folder, with a component in place of the checkpoint's own.
///
/// # Errors
/// As of [`convert`].
pub fn convert_replaced(
    checkpoint: &Checkpoint,
    out: &Path,
    replacement: &Replacement<'_>,
    options: &ConvertOptions,
) -> Result<Conversion, LayoutError> {
    if fs::symlink_metadata(out).is_ok() {
        return Err(LayoutError::Exists { path: out.to_owned() });
    }
    check_name(out, Target::Diffusers)?;
    let job = Job::new(checkpoint, Target::Diffusers, options)?;
    let written = job.folder(out, Some(replacement))?;
    job.report(out, written)
}

/// Refuses a name that says another format than what is written: programs tell formats by it.
fn check_name(out: &Path, target: Target) -> Result<(), LayoutError> {
    let extension = out.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    let pickled = matches!(extension.as_deref(), Some("ckpt" | "pt" | "pth" | "bin" | "nemo"));
    let problem = match target {
        Target::SingleFile if pickled => {
            let named = out.with_extension("safetensors");
            format!(
                "a single file is written as safetensors, and other programs go by the name: call it {}",
                named.display()
            )
        }
        Target::Diffusers | Target::Calotype if pickled || extension.as_deref() == Some("safetensors") => {
            format!("--to {} writes a folder, and this is the name of a file: leave out its ending", target.name())
        }
        Target::Nemo if extension.as_deref() != Some("nemo") => {
            let named = out.with_extension("nemo");
            format!("--to nemo writes an archive that NeMo knows by its name: call it {}", named.display())
        }
        _ => return Ok(()),
    };
    Err(LayoutError::Wish { path: out.to_owned(), problem })
}

impl fmt::Display for Conversion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (component, tensors, parameters) in &self.components {
            writeln!(formatter, "{component}: {tensors} tensors, {parameters} parameters")?;
        }
        for (what, lines) in [("missing", &self.missing), ("left out", &self.unused), ("note", &self.notes)] {
            lines.iter().try_for_each(|line| writeln!(formatter, "{what}: {line}"))?;
        }
        write!(
            formatter,
            "{} bytes of weights written to {}; {} tensors missing, {} left out, {} set aside as not needed",
            self.bytes,
            self.path.display(),
            self.missing.len(),
            self.unused.len(),
            self.set_aside
        )
    }
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
        if let Some(source) = sources.iter().find(|source| source.int8_tensors() > 0) {
            let reason = format!(
                "its {} is in 8 bits, with scales that no other program reads: convert the checkpoint that it was quantized from",
                source.component
            );
            return Err(LayoutError::Target { path: path(), target: target.name(), reason });
        }
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
        if target == Target::Diffusers {
            for source in &job.sources {
                check_published(source.component, &source.config).map_err(|error| job.refuse(&reason(&*error)))?;
            }
        }
        job.complete_files()?;
        Ok(job)
    }

    fn has(&self, component: Component) -> bool {
        self.sources.iter().any(|source| source.component == component)
    }

    /// Adds the caller's files; to a pipeline, a scheduler with the prediction type and the tokenizers that it lacks.
    fn complete_files(&mut self) -> Result<(), LayoutError> {
        for (name, text) in &self.options.files {
            self.files.entry(name.clone()).or_insert_with(|| text.clone());
        }
        if self.checkpoint.prediction().is_none() {
            return Ok(());
        }
        let facts = Facts::of(self.checkpoint.family());
        let scheduler = self.checkpoint.scheduler()?;
        if self.checkpoint.scheduler_config().as_ref() != Some(&scheduler) {
            self.files.insert(SCHEDULER.into(), SamplerConfig::diffusers_text(&scheduler));
        }
        for text in facts.text_encoders {
            let there = self.files.keys().any(|name| name.starts_with(&format!("{}/", text.tokenizer)));
            let encoder = self.sources.iter().find(|source| source.component == text.component);
            let Some(encoder) = encoder.filter(|_| !there) else { continue };
            // Encoders of CLIP's own vocabulary have its tokenizer.
            let size = |field: &str| encoder.config[field].as_u64();
            let length = size("max_position_embeddings").unwrap_or(77) as usize;
            match clip_files(text.options, length) {
                Ok(files) if size("vocab_size") == Some(ClipTokenizer::VOCABULARY as u64) => {
                    let place = |(name, text_of_file)| (format!("{}/{name}", text.tokenizer), text_of_file);
                    self.files.extend(files.into_iter().map(place));
                }
                _ => {}
            }
        }
        Ok(())
    }

    // Folders ----------------------------------------------------------------------------------------------------

    fn folder(&self, out: &Path, replacement: Option<&Replacement<'_>>) -> Result<Written, LayoutError> {
        let family = self.checkpoint.family();
        let pipeline = self.target == Target::Calotype || self.has(Component::Unet);
        let mut parts = self.sources.iter().map(|source| {
            let other = replacement.filter(|other| other.component == source.component);
            other.map_or_else(
                || Part::source(source),
                |other| Part::tensors(other.component, other.config.clone(), other.tensors),
            )
        });
        let export = match (pipeline, parts.len()) {
            (true, _) => parts.fold(Export::pipeline(family), Export::part),
            (false, 1) => parts.next().map_or_else(|| Export::pipeline(family), Export::model),
            _ => return Err(self.refuse("without a UNet it must hold exactly one model")),
        };
        let export = export.files(&self.files).dtype(self.options.dtype).allow_missing(self.options.allow_missing);
        let export = match self.target {
            Target::Calotype => export.with_manifest(self.checkpoint.prediction()),
            _ => export,
        };
        export.write(out, Placement::New)
    }

    // NeMo's archives --------------------------------------------------------------------------------------------

    fn nemo(&self, out: &Path) -> Result<Written, LayoutError> {
        let [source] = &self.sources[..] else {
            return Err(self.refuse("it must hold exactly one model, a ViT or both towers of CLIP"));
        };
        let component = source.component;
        let unread = |error: FieldsError| LayoutError::Config { component, reason: reason(&error) };
        let (map, config, notes, marks) = match component {
            Component::Classifier => {
                let vit = VitConfig::from_transformers(&source.config).map_err(unread)?;
                let config = nemo::vit_config(&vit).map_err(|reason| self.refuse(&reason))?;
                (rules::nemo_vit(NEMO, vit.pooling, true), config, Vec::new(), Vec::new())
            }
            Component::Clip => {
                let clip = ClipConfig::from_transformers(&source.config).map_err(unread)?;
                let (config, notes) = nemo::clip_config(&clip).map_err(|reason| self.refuse(&reason))?;
                let bias = nemo::patch_bias(&format!("{NEMO}{}", nemo::PATCH_BIAS), clip.vision.channels);
                (rules::nemo_clip(NEMO, NemoClip::default()), config, notes, vec![bias])
            }
            _ => {
                return Err(
                    self.refuse(&format!("the layout is written of a ViT or a whole CLIP model, not of {component}"))
                );
            }
        };
        let stored = self.stored(source, &map)?;
        let bytes = self.bytes_of(source);
        write_nemo(
            out,
            &config,
            &StoredSource::new(vec![(source, stored)], marks),
            self.options.dtype,
            &self.metadata(),
        )?;
        let components = vec![(component, source.entries().len(), source.parameters())];
        Ok(Written { components, bytes, missing: source.missing.clone(), notes, ..Written::default() })
    }

    /// The tensors of a component as a map stores them.
    fn stored(&self, source: &ComponentSource, map: &KeyMap) -> Result<Vec<StoredTensor>, LayoutError> {
        let (stored, homeless) = map.stored(&source.specs());
        match homeless.first() {
            Some(key) => Err(self.refuse(&format!("the layout has no place for {} `{key}`", source.component))),
            None => Ok(stored),
        }
    }

    /// Bytes of a component's weights as they are written.
    fn bytes_of(&self, source: &ComponentSource) -> u64 {
        let bytes =
            |tensor: TensorInfo| (tensor.elements() * written_dtype(tensor.dtype, self.options.dtype).size()) as u64;
        source.entries().into_iter().map(bytes).sum()
    }

    // Single files -----------------------------------------------------------------------------------------------

    fn single_file(&self, out: &Path) -> Result<Written, LayoutError> {
        let mut parts = Vec::new();
        let mut written = Written::default();
        for source in &self.sources {
            let stored = self.stored(source, &self.single_file_map(source)?)?;
            written.components.push((source.component, source.entries().len(), source.parameters()));
            written.bytes += self.bytes_of(source);
            written.missing.extend(source.missing.iter().cloned());
            parts.push((source, stored));
        }
        let marks = self.checkpoint.marks_to_write()?;
        write_source(out, &StoredSource::new(parts, marks), self.options.dtype, &self.metadata())?;
        Ok(written)
    }

    fn single_file_map(&self, source: &ComponentSource) -> Result<KeyMap, LayoutError> {
        if let Some(map) = tables::single_file(source.component, &source.config)? {
            return Ok(map);
        }
        let component = source.component;
        // A text encoder alone has no place in the LDM code's files, except for those of which there are two.
        let alone = component == Component::TextEncoder && !self.has(Component::Unet);
        match component {
            Component::TextEncoder | Component::TextEncoder2 if !alone => {
                Ok(Facts::of(self.checkpoint.family()).text(component).single_file.map())
            }
            _ => Err(self.refuse(&format!("the layout has no place for {component}"))),
        }
    }

    /// Facts that the keys cannot say: configurations, prediction type, scheduler and tokenizer files; and the fields of the
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
            if let Some(architecture) = family.facts().modelspec {
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

    /// Tensors with values that are NaN or infinite, which are written as they are.
    fn not_finite(&self) -> Result<Vec<String>, LayoutError> {
        const NAMED: usize = 3;
        let (mut named, mut others) = (Vec::new(), 0);
        for source in &self.sources {
            for entry in source.entries() {
                let count = source.tensor(&entry.name)?.not_finite();
                source.release(&entry.name);
                match count {
                    0 => {}
                    _ if named.len() == NAMED => others += 1,
                    _ => named.push(format!(
                        "{} `{}`: values that are NaN or infinite: {count} of {}; they were written as they are",
                        source.component,
                        entry.name,
                        entry.elements()
                    )),
                }
            }
        }
        if others > 0 {
            named.push(format!("tensors with such values besides: {others}"));
        }
        Ok(named)
    }

    fn report(self, out: &Path, written: Written) -> Result<Conversion, LayoutError> {
        let not_finite = self.not_finite()?;
        let mut notes = self.notes;
        notes.extend(not_finite);
        // A folder of Calotype's is no diffusers pipeline, whether or not its files would make one.
        if matches!(self.target, Target::Diffusers | Target::Nemo) {
            notes.extend(written.notes);
        }
        Ok(Conversion {
            path: out.to_owned(),
            components: written.components,
            bytes: written.bytes,
            missing: written.missing,
            unused: self.checkpoint.unused().to_vec(),
            set_aside: self.checkpoint.set_aside().values().map(Vec::len).sum(),
            notes,
        })
    }
}
