//! Initial weights from checkpoints: the key `init_from`.

use crate::averages;
use crate::checkpoint::{self, CheckpointError};
use crate::config::{InitFrom, InitSettings, SettingError};
use crate::optim::AVERAGE;
use crate::trainer::MODEL;
use burn::module::Module;
use calotype_checkpoints::{Checkpoint, Component, ComponentSource, LayoutError};
use calotype_models::{positions, state};
use calotype_weights::{Dtype, NamedTensor, TensorFile, TensorFileError, TensorInfo, TensorSource};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Why initial weights cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings name no checkpoint.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A path is no checkpoint, or one without this network.
    #[error("init_from: {0}")]
    Layout(#[from] LayoutError),
    /// A tensor cannot be read.
    #[error("init_from: {0}")]
    Tensor(#[from] TensorFileError),
    /// A tensor has another shape than the recipe's network.
    #[error(
        "init_from: {}: `{name}` has shape {found:?}, the network of the recipe has {needed:?}; correct [model], or take \
         other weights", path.display()
    )]
    Shape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's canonical key.
        name: String,
        /// Its shape there.
        found: Vec<usize>,
        /// The shape of the network's parameter.
        needed: Vec<usize>,
    },
    /// A tensor of numbers that are no weights.
    #[error("init_from: {}: `{name}` has elements of type {dtype}; weights are floating-point numbers", path.display())]
    Dtype {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's canonical key.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// A training checkpoint cannot be used.
    #[error("init_from: {problem}")]
    Training {
        /// What is wrong, with its path.
        problem: String,
    },
    /// Parameters that no checkpoint holds.
    #[error(
        "init_from: {count} parameters are in none of the checkpoints, the first is `{first}`; correct [model], or set \
         init_from.allow_missing = true to keep their random weights"
    )]
    Missing {
        /// How many.
        count: usize,
        /// The first in the order of the network.
        first: String,
    },
    /// Tensors that the network has no place for.
    #[error(
        "init_from: {count} tensors have no place in the network of the recipe, the first is `{first}`; correct [model], \
         or set init_from.allow_unused = true to leave them out"
    )]
    Unused {
        /// How many.
        count: usize,
        /// The first by name.
        first: String,
    },
    /// A part that no parameter belongs to.
    #[error("init_from.parts: no parameter's key begins with `{part}`; there are {known}")]
    Part {
        /// The part.
        part: String,
        /// First parts of the network's keys.
        known: String,
    },
}

impl StartError {
    /// Whether the recipe, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Layout(error) => error.is_usage(),
            Self::Tensor(error) => error.is_usage(),
            _ => true,
        }
    }
}

/// What may differ between a checkpoint and the network that begins with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refit {
    /// Nothing.
    #[default]
    Nothing,
    /// Of ViTs, the grid of patches and the classes. Position embeddings are interpolated by timm's rule
    /// ([`positions::resample`]). A head of other classes, or one that stood behind a layer which the network does not have,
    /// becomes zeros (Dosovitskiy et al. 2021, section 3.2), and that layer is left out. All of it is logged.
    Vit,
}

/// How a tensor becomes a parameter's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    AsIs,
    /// Positions of patches, behind so many tokens, from so many patches a side to so many.
    Positions {
        prefix: usize,
        from: usize,
        to: usize,
    },
    Zeros(usize),
}

const POSITIONS: &str = "vit.embeddings.position_embeddings";
const CLASS_TOKENS: &str = "vit.embeddings.cls_token";
const HEAD: &str = "classifier.";
/// The layer in front of the head.
const POOLER: &str = "vit.pooler.";

/// A checkpoint's tensors for the parameters whose keys begin with `prefix`.
struct Part {
    prefix: String,
    path: PathBuf,
    sources: Vec<PartSource>,
    /// The canonical keys of all sources: index of the source that holds the tensor, with its dtype and shape.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// Tensors under canonical keys.
struct PartSource {
    tensors: Box<dyn TensorSource>,
    /// Stored keys of the component that nothing takes.
    unused: Vec<String>,
}

impl From<ComponentSource> for PartSource {
    fn from(source: ComponentSource) -> Self {
        Self { unused: source.unused.clone(), tensors: Box::new(source) }
    }
}

/// The weights in a training checkpoint, whose other tensors are the optimizer's.
struct TrainedTensors {
    file: TensorFile,
    /// What names begin with: the weights' or the average's.
    prefix: &'static str,
}

impl TrainedTensors {
    /// Of a training checkpoint's folder, or the newest one of a run's folder that has no model of its end yet; none for other paths.
    fn open(path: &str, settings: &InitSettings) -> Result<Option<Self>, StartError> {
        let unreadable = |error: CheckpointError| StartError::Training { problem: error.to_string() };
        let Some(folder) = checkpoint::training_folder(Path::new(path), false).map_err(unreadable)? else {
            return Ok(None);
        };
        if folder != Path::new(path) {
            checkpoint::warn_of_skipped(Path::new(path)).map_err(unreadable)?;
        }
        let file = checkpoint::Checkpoint::load(&folder).map_err(unreadable)?.tensors;
        if averages::is_snapshot(&file) {
            let (place, run) = (folder.display(), averages::run_of(&folder).display());
            let problem = format!(
                "{place} is a snapshot of averages and no checkpoint; make a model of the run's snapshots, calotype ema {run} \
                 --sigma-rel WIDTH --out FOLDER, and begin with that"
            );
            return Err(StartError::Training { problem });
        }
        let prefix = if settings.ema { AVERAGE } else { MODEL };
        if !file.names().any(|name| name.starts_with(prefix)) {
            let problem = match settings.ema {
                true => format!("{} holds no averaged weights; leave out init_from.ema", folder.display()),
                false => format!("{} holds no weights; take another checkpoint", folder.display()),
            };
            return Err(StartError::Training { problem });
        }
        Ok(Some(Self { file, prefix }))
    }

    fn stored(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl TensorSource for TrainedTensors {
    fn origin(&self) -> &Path {
        self.file.path()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let own = |info: TensorInfo| Some(TensorInfo { name: info.name.strip_prefix(self.prefix)?.to_owned(), ..info });
        self.file.entries().into_iter().filter_map(own).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        self.file.tensor(&self.stored(name))
    }

    fn release(&self, name: &str) {
        TensorSource::release(&self.file, &self.stored(name));
    }
}

impl Part {
    fn open(prefix: &str, path: &str, settings: &InitSettings, component: Component) -> Result<Self, StartError> {
        let sources = match TrainedTensors::open(path, settings)? {
            Some(trained) => vec![PartSource { tensors: Box::new(trained), unused: Vec::new() }],
            None => {
                let checkpoint = Checkpoint::open_with(path, &settings.options())?;
                sources_of(&checkpoint, component)?.into_iter().map(PartSource::from).collect()
            }
        };
        let mut tensors = BTreeMap::new();
        for (place, source) in sources.iter().enumerate() {
            for info in source.tensors.entries() {
                tensors.entry(info.name.clone()).or_insert((place, info));
            }
        }
        Ok(Self { prefix: prefix.to_owned(), path: PathBuf::from(path), sources, tensors })
    }

    fn holds(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| self.prefix.is_empty() || rest.is_empty() || rest.starts_with('.'))
    }

    /// How the checkpoint's tensor becomes the parameter of this key and checkpoint shape, if there is one.
    fn fit(&self, key: &str, shape: &[usize], change: Change) -> Result<Option<Fit>, StartError> {
        let Some((_, info)) = self.tensors.get(key) else { return Ok(None) };
        if !info.dtype.is_float() {
            return Err(StartError::Dtype { path: self.path.clone(), name: key.to_owned(), dtype: info.dtype });
        }
        // A published scalar is a vector of one number here.
        let scalar = info.shape.is_empty() && shape == [1];
        let same = info.shape == shape || scalar;
        match change.fit(key, &info.shape, shape) {
            Some(fit) => Ok(Some(fit)),
            None if same => Ok(Some(Fit::AsIs)),
            None => {
                let (path, name) = (self.path.clone(), key.to_owned());
                Err(StartError::Shape { path, name, found: info.shape.clone(), needed: shape.to_vec() })
            }
        }
    }

    /// The values of a tensor that is there, in checkpoint layout. The memory of the file's pages is given back.
    fn read(&self, key: &str, info: &(usize, TensorInfo)) -> Result<Vec<f32>, StartError> {
        let source = &self.sources[info.0];
        let values = source.tensors.tensor(key)?.to_f32_vec().ok_or_else(|| StartError::Dtype {
            path: self.path.clone(),
            name: key.to_owned(),
            dtype: info.1.dtype,
        });
        source.tensors.release(key);
        values
    }

    /// The values for a parameter.
    fn values(&self, key: &str, info: &(usize, TensorInfo), fit: Fit) -> Result<Vec<f32>, StartError> {
        match fit {
            Fit::AsIs => self.read(key, info),
            Fit::Zeros(count) => Ok(vec![0.0; count]),
            Fit::Positions { prefix, from, to } => {
                let stored = self.read(key, info)?;
                Ok(positions::resample(&stored, prefix, from, to).unwrap_or(stored))
            }
        }
    }

    /// What of it is to be changed for a network of this layout.
    fn change(&self, refit: Refit, layout: &[(String, Vec<usize>)]) -> Change {
        let behind_layer = self.tensors.keys().any(|key| key.starts_with(POOLER))
            && !layout.iter().any(|(key, _)| key.starts_with(POOLER));
        let class_tokens = self.tensors.get(CLASS_TOKENS).and_then(|(_, info)| info.shape.get(1).copied());
        Change { refit, behind_layer, class_tokens: class_tokens.unwrap_or(0) }
    }

    /// Tensors below the prefix that no parameter takes.
    fn unused(&self, taken: &BTreeSet<&str>) -> Vec<String> {
        let listed = self.tensors.keys();
        let all = listed.chain(self.sources.iter().flat_map(|source| &source.unused));
        all.filter(|key| self.holds(key) && !taken.contains(key.as_str())).cloned().collect()
    }
}

/// What of a checkpoint is to be changed.
#[derive(Clone, Copy, Debug)]
struct Change {
    refit: Refit,
    /// Whether its head stands behind a layer that the network does not have.
    behind_layer: bool,
    class_tokens: usize,
}

impl Change {
    /// How a tensor is changed, if it is.
    fn fit(&self, key: &str, found: &[usize], needed: &[usize]) -> Option<Fit> {
        if self.refit == Refit::Nothing {
            return None;
        }
        if key.starts_with(HEAD) && found.len() == needed.len() {
            let other = found[0] != needed[0] && found[1..] == needed[1..];
            return (other || self.behind_layer).then(|| Fit::Zeros(needed.iter().product()));
        }
        match (found, needed) {
            ([1, from, width], [1, to, wanted]) if key == POSITIONS && width == wanted && from != to => {
                let prefix = self.class_tokens;
                let [from, to] = [side_of(*from, prefix)?, side_of(*to, prefix)?];
                Some(Fit::Positions { prefix, from, to })
            }
            _ => None,
        }
    }

    /// Whether a tensor that no parameter takes goes with what was changed.
    fn leaves_out(&self, key: &str) -> bool {
        self.refit == Refit::Vit && self.behind_layer && key.starts_with(POOLER)
    }
}

/// Patches a side of a square grid, behind `prefix` other tokens.
fn side_of(tokens: usize, prefix: usize) -> Option<usize> {
    let patches = tokens.checked_sub(prefix)?;
    Some(patches.isqrt()).filter(|side| *side > 0 && side * side == patches)
}

/// The component, or for a whole CLIP model the towers that the checkpoint has.
fn sources_of(checkpoint: &Checkpoint, component: Component) -> Result<Vec<ComponentSource>, LayoutError> {
    let held = checkpoint.components();
    if component != Component::Clip || held.contains(&component) {
        return Ok(vec![checkpoint.component(component)?]);
    }
    let towers = [Component::TextEncoder, Component::ImageEncoder];
    let towers: Vec<Component> = towers.into_iter().filter(|tower| held.contains(tower)).collect();
    match towers.is_empty() {
        true => Ok(vec![checkpoint.component(component)?]),
        false => towers.into_iter().map(|tower| checkpoint.component(tower)).collect(),
    }
}

/// Gives a network the weights that `init_from` names; parameters of no part keep their random ones. Keys that are
/// missing or left out with permission are logged.
///
/// The checkpoints' tensors are listed once and compared with the network before any is read; then they are read one by
/// one, so that memory holds the network and one tensor.
///
/// # Errors
/// [`StartError`]: a checkpoint cannot be opened, or its tensors and the network's parameters are not the same, but for what
/// `refit` allows.
pub fn fill<M: Module>(model: M, from: &InitFrom, component: Component, refit: Refit) -> Result<M, StartError> {
    let layout = state::layout(&model);
    let (parts, taken_from) = assign(&layout, from, component, refit)?;
    let mut sources = layout.iter().zip(taken_from);
    state::load_some(model, |_, _| match sources.next() {
        Some(((key, _), Some((at, fit)))) => {
            let part = &parts[at];
            part.tensors.get(key).map(|info| part.values(key, info, fit)).transpose()
        }
        _ => Ok(None),
    })
}

/// Finds out whether [`fill`] would succeed, by names and shapes; no tensor is read, and the model may be one of placeholders.
///
/// # Errors
/// As [`fill`].
pub fn check<M: Module>(model: &M, from: &InitFrom, component: Component, refit: Refit) -> Result<(), StartError> {
    assign(&state::layout(model), from, component, refit).map(drop)
}

/// The place of a checkpoint among all, and how its tensor becomes the parameter.
type Taken = Option<(usize, Fit)>;

/// The checkpoints, and what each parameter is taken from.
fn assign(
    layout: &[(String, Vec<usize>)],
    from: &InitFrom,
    component: Component,
    refit: Refit,
) -> Result<(Vec<Part>, Vec<Taken>), StartError> {
    let settings = &from.0;
    settings.validate()?;
    let parts = open_parts(settings, component, layout)?;
    // The part of each parameter, if one has a tensor for it.
    let mut taken_from = vec![None; layout.len()];
    let (mut missing, mut taken) = (Vec::new(), vec![BTreeSet::new(); parts.len()]);
    let changes: Vec<Change> = parts.iter().map(|part| part.change(refit, layout)).collect();
    for ((key, shape), from) in layout.iter().zip(&mut taken_from) {
        let Some(place) = parts.iter().position(|part| part.holds(key)) else { continue };
        match parts[place].fit(key, shape, changes[place])? {
            Some(fit) => {
                *from = Some((place, fit));
                taken[place].insert(key.as_str());
            }
            None => missing.push(key.clone()),
        }
    }
    let unused = parts
        .iter()
        .zip(&taken)
        .zip(&changes)
        .flat_map(|((part, taken), change)| part.unused(taken).into_iter().filter(|key| !change.leaves_out(key)));
    report(settings, &missing, unused.collect())?;
    tell_changes(layout, &parts, &taken_from);
    Ok((parts, taken_from))
}

/// Says what does not begin as the checkpoint has it.
fn tell_changes(layout: &[(String, Vec<usize>)], parts: &[Part], taken_from: &[Taken]) {
    for ((key, shape), taken) in layout.iter().zip(taken_from) {
        let Some((place, fit)) = taken else { continue };
        let path = parts[*place].path.display();
        match fit {
            Fit::Positions { from, to, .. } => {
                tracing::warn!(
                    "init_from: {path}: position embeddings of {from}x{from} patches are interpolated to {to}x{to}"
                );
            }
            Fit::Zeros(_) if shape.len() > 1 => tracing::warn!(
                "init_from: {path}: the head `{key}` is of other classes or behind another layer, and begins with zeros for {}",
                shape[0]
            ),
            Fit::AsIs | Fit::Zeros(_) => {}
        }
    }
}

/// The parts, longest beginnings first, the whole checkpoint last.
fn open_parts(
    settings: &InitSettings,
    component: Component,
    layout: &[(String, Vec<usize>)],
) -> Result<Vec<Part>, StartError> {
    let mut named: Vec<(&str, &str)> = settings.parts.iter().map(|(p, path)| (p.as_str(), path.as_str())).collect();
    named.extend(settings.path.as_deref().map(|path| ("", path)));
    named.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    let parts = named.into_iter().map(|(prefix, path)| Part::open(prefix, path, settings, component));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    match parts.iter().find(|part| !layout.iter().any(|(key, _)| part.holds(key))) {
        None => Ok(parts),
        Some(part) => {
            let known: BTreeSet<&str> = layout.iter().filter_map(|(key, _)| key.split('.').next()).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            Err(StartError::Part { part: part.prefix.clone(), known })
        }
    }
}

fn report(settings: &InitSettings, missing: &[String], unused: Vec<String>) -> Result<(), StartError> {
    if let Some(first) = missing.first() {
        if !settings.allow_missing {
            return Err(StartError::Missing { count: missing.len(), first: first.clone() });
        }
        tracing::warn!("init_from: {} parameters keep their random weights: {}", missing.len(), missing.join(", "));
    }
    if let Some(first) = unused.first() {
        if !settings.allow_unused {
            return Err(StartError::Unused { count: unused.len(), first: first.clone() });
        }
        tracing::warn!("init_from: {} tensors are left out: {}", unused.len(), unused.join(", "));
    }
    Ok(())
}
