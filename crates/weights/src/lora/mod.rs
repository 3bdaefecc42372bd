//! Adapters: low-rank ones (LoRA: Hu et al., arXiv 2106.09685; LoCon for convolutions), LoHa, LoKr and whole differences
//! (LyCORIS), each with DoRA's lengths or without, in the dialects of kohya's trainers, LyCORIS, PEFT, diffusers and ComfyUI,
//! several at once.
//!
//! A [`LoraSet`] is made for the parameters of a model, takes adapter files with a weight each, and changes the parameters'
//! values one after the other in the order of the files: each adds `weight * alpha / rank` times its difference. A DoRA then
//! gives rows their lengths, as PEFT does at any weight. Nothing is left out silently: keys that change no parameter of the
//! model are errors, unless they are allowed and then listed; other kinds of adapters, and files that are no adapters, are
//! refused by their names.

mod change;
mod config;
mod keys;

use crate::open::open_tensors;
use crate::{TensorFileError, TensorInfo, TensorSource};
use change::{Builder, Change, Misfit, Stored};
pub use config::LoraConfig;
pub(crate) use keys::other_file;
use keys::{Address, Modules, Part};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A part of a pipeline that adapters change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The UNet.
    Unet,
    /// The (first) text encoder.
    TextEncoder,
    /// SDXL's second text encoder.
    TextEncoder2,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unet, Self::TextEncoder, Self::TextEncoder2];

    /// Its folder in a diffusers checkpoint: `unet`, `text_encoder`, `text_encoder_2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// The adapter's configuration cannot be read or means nothing here.
    #[error("{}: {problem}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The fault, and the remedy.
        problem: String,
    },
    /// The file holds another kind of adapter.
    #[error(
        "{}: `{key}` belongs to a {kind} adapter, which is not supported; LoRA, LoCon, LoHa, LoKr and DoRA are",
        file.display()
    )]
    OtherKind {
        /// The file.
        file: PathBuf,
        /// The first such key.
        key: String,
        /// The kind's name.
        kind: &'static str,
    },
    /// The file holds no adapter at all.
    #[error("{}: this is {found}, not an adapter; {remedy}", file.display())]
    NotAdapter {
        /// The file.
        file: PathBuf,
        /// What it is.
        found: String,
        /// What to do with it.
        remedy: &'static str,
    },
    /// A folder without an adapter, or with several of which none has a usual name.
    #[error("{}: {problem}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is there, and what should be.
        problem: String,
    },
    /// Keys that change no parameter of the model.
    #[error(
        "{}: {} keys fit no parameter of the model: {}; the adapter was made for another one, or allow unused keys",
        file.display(), keys.len(), list_of(keys)
    )]
    Unused {
        /// The file.
        file: PathBuf,
        /// The keys.
        keys: Vec<String>,
    },
    /// A key can mean several parameters.
    #[error("{}: `{key}` can mean {}; say which component the file is for", file.display(), list_of(candidates))]
    Ambiguous {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Names that it can mean.
        candidates: Vec<String>,
    },
    /// An adapter of a module lacks one of its factors, or has one twice.
    #[error("{}: {module}: the {part} factor is {problem}; the file is damaged", file.display())]
    Factors {
        /// The file.
        file: PathBuf,
        /// The module.
        module: String,
        /// The factor.
        part: &'static str,
        /// The fault.
        problem: &'static str,
    },
    /// Factors whose product does not have the parameter's shape.
    #[error(
        "{}: {module}: factors of shapes {shapes:?} do not make a parameter of shape {expected:?}; the adapter was made \
         for another model",
        file.display()
    )]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The module.
        module: String,
        /// Shapes of down, up, and mid if there is one.
        shapes: Vec<Vec<usize>>,
        /// The parameter's.
        expected: Vec<usize>,
    },
    /// A tensor of integers, or a number where there should be none.
    #[error("{}: `{key}` is not {expected}", file.display())]
    NotNumbers {
        /// The file.
        file: PathBuf,
        /// The tensor.
        key: String,
        /// Shape that it should have.
        expected: &'static str,
    },
}

/// The first few of many.
fn list_of(items: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = items.iter().take(SHOWN).map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN { format!("{shown} and {} more", items.len() - SHOWN) } else { shown }
}

/// Settings for reading a file of adapters.
#[derive(Clone, Debug, Default)]
pub struct LoraOptions {
    /// The file's own settings, which tell alpha; files of kohya hold it among their tensors.
    pub config: LoraConfig,
    /// The component, for files whose keys do not name it (PEFT's).
    pub component: Option<Component>,
    /// True if keys that fit no parameter of the model are left out, and only listed.
    pub allow_unused: bool,
}

/// Outcome of applying a file: the parameters that it changes, and the keys that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoraReport {
    /// The parameters that it changes.
    pub changed: Vec<(Component, String)>,
    /// Keys that fit no parameter of the model; empty unless they were allowed.
    pub unused: Vec<String>,
    /// Names of embeddings that the file holds beside the adapter; they can be given as embeddings.
    pub embeddings: Vec<String>,
}

/// Adapters for one model.
pub struct LoraSet {
    /// The parameters that can be changed, by module: key and shape.
    parameters: BTreeMap<(Component, String), (String, Vec<usize>)>,
    modules: BTreeMap<Component, Modules>,
    /// By component and key of the parameter, in the order of the files.
    changes: BTreeMap<(Component, String), Vec<Change>>,
}

impl LoraSet {
    /// For a model of these components, each with its tensors under diffusers' and transformers' keys. Tensors of two
    /// axes or more called `….weight` are those that adapters can change.
    pub fn new(model: &[(Component, Vec<TensorInfo>)]) -> Self {
        let mut parameters = BTreeMap::new();
        for (component, tensors) in model {
            for tensor in tensors.iter().filter(|tensor| tensor.shape.len() >= 2) {
                if let Some(module) = tensor.name.strip_suffix(".weight") {
                    parameters.insert((*component, module.to_owned()), (tensor.name.clone(), tensor.shape.clone()));
                }
            }
        }
        let names = |component| {
            parameters.keys().filter(move |(owner, _)| *owner == component).map(|(_, module)| module.as_str())
        };
        let modules =
            model.iter().map(|&(component, _)| (component, Modules::new(component, names(component)))).collect();
        Self { parameters, modules, changes: BTreeMap::new() }
    }

    /// True if no adapter changes anything.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Opens a file, told apart by content as checkpoints are (safetensors, or a pickle of torch's, whatever its name); or
    /// a folder: PEFT's (`adapter_model.*` and `adapter_config.json`), diffusers' (`pytorch_lora_weights.*`), one with a
    /// single file of weights, or one with such folders called after the components (`unet`, `text_encoder`,
    /// `text_encoder_2`). Adds what it holds. The configuration comes from the folder or the file's metadata, and takes the
    /// place of that in `options`.
    ///
    /// # Errors
    /// The file cannot be read or used; then the set is as it was.
    pub fn add_path(&mut self, path: &Path, weight: f32, options: &LoraOptions) -> Result<LoraReport, LoraError> {
        let mut all = LoraReport::default();
        let mut changes = Vec::new();
        for (file, component) in files_of(path)? {
            let tensors = open_tensors(&file)?;
            let beside = file.with_file_name("adapter_config.json");
            let named = file.file_stem().is_some_and(|stem| stem == "adapter_model");
            let config = if named && beside.exists() {
                LoraConfig::from_adapter_config(&beside)?
            } else {
                LoraConfig::from_metadata(&file, &tensors.metadata())?
            };
            let component = component.or(options.component);
            let (report, some) = self.read(&*tensors, weight, &LoraOptions { config, component, ..options.clone() })?;
            all.changed.extend(report.changed);
            all.unused.extend(report.unused);
            all.embeddings.extend(report.embeddings);
            changes.extend(some);
        }
        self.keep(changes);
        Ok(all)
    }

    /// Adds an adapter file with a weight (1 is as it was trained; any finite number is allowed).
    ///
    /// # Errors
    /// The file is of another kind, damaged, or does not fit the model; then the set is as it was.
    pub fn add(
        &mut self,
        source: &dyn TensorSource,
        weight: f32,
        options: &LoraOptions,
    ) -> Result<LoraReport, LoraError> {
        let (report, changes) = self.read(source, weight, options)?;
        self.keep(changes);
        Ok(report)
    }

    fn keep(&mut self, changes: Vec<((Component, String), Change)>) {
        changes.into_iter().for_each(|(name, change)| self.changes.entry(name).or_default().push(change));
    }

    /// The changes that a file makes.
    fn read(&self, source: &dyn TensorSource, weight: f32, options: &LoraOptions) -> Result<Found, LoraError> {
        let Resolved { parts, unused, embeddings } = self.resolve(source, options)?;
        if !(unused.is_empty() || options.allow_unused) {
            return Err(LoraError::Unused { file: source.origin().into(), keys: unused });
        }
        let mut changes = Vec::with_capacity(parts.len());
        for ((component, module), keys) in &parts {
            let reader = Reader { source, module, keys };
            let (key, shape) = &self.parameters[&(*component, module.clone())];
            let mut change = reader.change(shape)?;
            if options.config.is_dora(*component) && change.magnitude.is_none() {
                return Err(reader.missing(Part::PeftMagnitude));
            }
            let alpha = match keys.get(&Part::Alpha) {
                Some(_) => Some(reader.alpha()?),
                None => options.config.alpha(*component, module),
            };
            change.scale = weight * options.config.scale(*component, alpha, &change.difference);
            changes.push(((*component, key.clone()), change));
        }
        let changed = changes.iter().map(|(name, _)| name.clone()).collect();
        Ok((LoraReport { changed, unused, embeddings }, changes))
    }

    /// Whether any adapter changes a parameter.
    pub fn changes(&self, component: Component, key: &str) -> bool {
        self.changes.contains_key(&(component, key.to_owned()))
    }

    /// Changes the values of a parameter, row-major in the shape that the set was made with, by all adapters in the order in
    /// which they were added.
    pub fn apply(&self, component: Component, key: &str, values: &mut [f32]) {
        let name = (component, key.to_owned());
        let module = (component, key.trim_end_matches(".weight").to_owned());
        let Some((changes, (_, shape))) = self.changes.get(&name).zip(self.parameters.get(&module)) else { return };
        changes.iter().for_each(|change| change.apply(values, shape));
    }

    /// The keys of a file by the module they change, and those that fit none.
    fn resolve(&self, source: &dyn TensorSource, options: &LoraOptions) -> Result<Resolved, LoraError> {
        let file = || source.origin().to_owned();
        let mut resolved = Resolved::default();
        let keys: Vec<String> = source.entries().into_iter().map(|tensor| tensor.name).collect();
        check_kind(source.origin(), &keys)?;
        for key in keys {
            if let Some(name) = keys::bundled_embedding(&key) {
                resolved.add_embedding(name);
                continue;
            }
            let Some(address) = keys::parse(&key) else {
                resolved.unused.push(key);
                continue;
            };
            let mut candidates = self.candidates(&address, options.component);
            match candidates.len() {
                0 => resolved.unused.push(key),
                1 => {
                    let module = candidates.swap_remove(0);
                    let part = address.part;
                    if resolved.parts.entry(module.clone()).or_default().insert(part, key).is_some() {
                        let problem = "there twice";
                        let module = format!("{}.{}", module.0, module.1);
                        return Err(LoraError::Factors { file: file(), module, part: part.name(), problem });
                    }
                }
                _ => {
                    let candidates = candidates.iter().map(|(owner, module)| format!("{owner}.{module}")).collect();
                    return Err(LoraError::Ambiguous { file: file(), key, candidates });
                }
            }
        }
        Ok(resolved)
    }

    /// The modules of the model that an address can mean.
    fn candidates(&self, address: &Address, told: Option<Component>) -> Vec<(Component, String)> {
        let component = address.component.or(told);
        let owners = self.modules.iter().filter(|(owner, _)| component.is_none_or(|component| component == **owner));
        owners
            .flat_map(|(owner, modules)| modules.find(&address.module).iter().map(|module| (*owner, module.clone())))
            .collect()
    }
}

/// What a file changes.
type Found = (LoraReport, Vec<((Component, String), Change)>);

/// The keys of a file, sorted.
#[derive(Default)]
struct Resolved {
    /// The keys of a module's parts, by module.
    parts: BTreeMap<(Component, String), BTreeMap<Part, String>>,
    /// Keys that fit no parameter.
    unused: Vec<String>,
    /// Names of bundled embeddings.
    embeddings: Vec<String>,
}

impl Resolved {
    fn add_embedding(&mut self, name: &str) {
        if self.embeddings.iter().all(|known| known != name) {
            self.embeddings.push(name.to_owned());
        }
    }
}

/// True for the key of an adapter's part, in whichever dialect.
pub fn is_adapter_key(key: &str) -> bool {
    keys::parse(key).is_some()
}

/// Refuses files of another kind of adapter, and files that are no adapters.
fn check_kind(file: &Path, keys: &[String]) -> Result<(), LoraError> {
    for key in keys {
        if let Some(kind) = keys::other_kind(key) {
            return Err(LoraError::OtherKind { file: file.into(), key: key.clone(), kind });
        }
    }
    if keys.iter().any(|key| keys::parse(key).is_some()) {
        return Ok(());
    }
    let (found, remedy) = match keys::other_file(keys.iter().map(String::as_str)) {
        Some((found, remedy)) => (found.to_owned(), remedy),
        None => {
            let count = keys.len();
            let first = keys.first().map_or_else(String::new, |key| format!(" (`{key}`, …)"));
            (format!("a file of {count} tensors without any adapter's key{first}"), "name the adapter's file")
        }
    };
    Err(LoraError::NotAdapter { file: file.into(), found, remedy })
}

/// The adapter files of a path, each with the component that its folder says.
fn files_of(path: &Path) -> Result<Vec<(PathBuf, Option<Component>)>, LoraError> {
    if !path.is_dir() {
        return Ok(vec![(path.to_owned(), None)]);
    }
    if let Some(file) = file_in(path)? {
        return Ok(vec![(file, None)]);
    }
    let mut files = Vec::new();
    for component in Component::ALL {
        let folder = path.join(component.name());
        if folder.is_dir()
            && let Some(file) = file_in(&folder)?
        {
            files.push((file, Some(component)));
        }
    }
    if !files.is_empty() {
        return Ok(files);
    }
    let problem = "the folder holds no adapter: neither adapter_model nor pytorch_lora_weights (.safetensors or .bin), no \
                   single file of weights, and no such folder called unet, text_encoder or text_encoder_2; name the file";
    Err(LoraError::Folder { folder: path.to_owned(), problem: problem.into() })
}

/// The adapter's file in a folder: by its usual names, or the only one that could be.
fn file_in(folder: &Path) -> Result<Option<PathBuf>, LoraError> {
    const USUAL: [&str; 4] = [
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        "adapter_model.bin",
        "pytorch_lora_weights.bin",
    ];
    if let Some(name) = USUAL.iter().find(|name| folder.join(name).is_file()) {
        return Ok(Some(folder.join(name)));
    }
    let list = std::fs::read_dir(folder).map_err(|source| TensorFileError::reading(folder, source))?;
    let is_weights = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && matches!(extension, Some("safetensors" | "bin" | "pt" | "pth" | "ckpt"))
    };
    let mut paths: Vec<PathBuf> = list.filter_map(|entry| Some(entry.ok()?.path())).filter(is_weights).collect();
    paths.sort_unstable();
    match paths.len() {
        0 | 1 => Ok(paths.pop()),
        _ => {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let problem = format!("the folder holds several files of weights: {}; name one", list_of(&names));
            Err(LoraError::Folder { folder: folder.to_owned(), problem })
        }
    }
}

/// Reads the parts of one module.
struct Reader<'a> {
    source: &'a dyn TensorSource,
    module: &'a str,
    keys: &'a BTreeMap<Part, String>,
}

/// A fault of the parts, or of reading them.
enum Fault {
    Misfit(Misfit),
    Reading(LoraError),
}

impl From<Misfit> for Fault {
    fn from(misfit: Misfit) -> Self {
        Self::Misfit(misfit)
    }
}

impl Reader<'_> {
    /// Shape and values of a part, if it is there.
    fn part(&self, part: Part) -> Result<Option<Stored>, LoraError> {
        let Some(key) = self.keys.get(&part) else { return Ok(None) };
        let tensor = self.source.tensor(key)?;
        let not = |expected| LoraError::NotNumbers { file: self.source.origin().into(), key: key.clone(), expected };
        let values = tensor.to_f32_vec().ok_or_else(|| not("a tensor of floating-point numbers"))?;
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(Some((tensor.shape, values))),
            false => Err(not("a tensor of finite numbers: its training diverged")),
        }
    }

    fn alpha(&self) -> Result<f32, LoraError> {
        match self.part(Part::Alpha)?.map(|(_, values)| values).as_deref() {
            Some(&[alpha]) if alpha.is_finite() => Ok(alpha),
            _ => Err(LoraError::NotNumbers {
                file: self.source.origin().into(),
                key: self.keys[&Part::Alpha].clone(),
                expected: "one finite number",
            }),
        }
    }

    /// What the parts change in a parameter of this shape; not yet scaled.
    fn change(&self, expected: &[usize]) -> Result<Change, LoraError> {
        let read = |part| self.part(part).map_err(Fault::Reading);
        let builder = Builder { read, shape: expected };
        let change = || {
            let difference = builder.difference(|part| self.keys.contains_key(&part))?;
            let magnitude = match builder.magnitude(Part::DoraScale)? {
                None => builder.magnitude(Part::PeftMagnitude)?,
                found => found,
            };
            Ok(Change { difference, scale: 1.0, magnitude })
        };
        change().map_err(|fault| match fault {
            Fault::Reading(error) => error,
            Fault::Misfit(Misfit::Missing(part)) => self.missing(part),
            Fault::Misfit(Misfit::Shapes(shapes)) => {
                let (file, module) = (self.source.origin().to_owned(), self.module.to_owned());
                LoraError::WrongShape { file, module, shapes, expected: expected.into() }
            }
        })
    }

    fn missing(&self, part: Part) -> LoraError {
        let (file, module) = (self.source.origin().to_owned(), self.module.to_owned());
        LoraError::Factors { file, module, part: part.name(), problem: "missing" }
    }
}
