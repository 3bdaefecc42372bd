//! Initial weights from checkpoints: the key `init_from`.

use crate::averages;
use crate::checkpoint::{self, CheckpointError};
use crate::config::{InitFrom, InitSettings, SettingError};
use crate::optim::AVERAGE;
use crate::trainer::MODEL;
use burn::module::Module;
use calotype_checkpoints::{Checkpoint, Component, ComponentSource, LayoutError};
use calotype_models::state;
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
            Self::Tensor(_) => false,
            _ => true,
        }
    }
}

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
    /// Of a training checkpoint's folder, or the newest one of a run's folder that has no model yet; none for other paths.
    fn open(path: &str, settings: &InitSettings) -> Result<Option<Self>, StartError> {
        let unreadable = |error: CheckpointError| StartError::Training { problem: error.to_string() };
        let Some(folder) = checkpoint::training_folder(Path::new(path), false).map_err(unreadable)? else {
            return Ok(None);
        };
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

    /// Whether the checkpoint has a tensor for the parameter of this key and checkpoint shape.
    fn has(&self, key: &str, shape: &[usize]) -> Result<bool, StartError> {
        let Some((_, info)) = self.tensors.get(key) else { return Ok(false) };
        // A published scalar is a vector of one number here.
        let scalar = info.shape.is_empty() && shape == [1];
        if info.shape != shape && !scalar {
            let (path, name) = (self.path.clone(), key.to_owned());
            return Err(StartError::Shape { path, name, found: info.shape.clone(), needed: shape.to_vec() });
        }
        match info.dtype {
            dtype if dtype.is_float() => Ok(true),
            dtype => Err(StartError::Dtype { path: self.path.clone(), name: key.to_owned(), dtype }),
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

    /// Tensors below the prefix that no parameter takes.
    fn unused(&self, taken: &BTreeSet<&str>) -> Vec<String> {
        let listed = self.tensors.keys();
        let all = listed.chain(self.sources.iter().flat_map(|source| &source.unused));
        all.filter(|key| self.holds(key) && !taken.contains(key.as_str())).cloned().collect()
    }
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
/// [`StartError`]: a checkpoint cannot be opened, or its tensors and the network's parameters are not the same.
pub fn fill<M: Module>(model: M, from: &InitFrom, component: Component) -> Result<M, StartError> {
    let layout = state::layout(&model);
    let (parts, taken_from) = assign(&layout, from, component)?;
    let mut sources = layout.iter().zip(taken_from).map(|((key, _), from)| (key.as_str(), from.map(|at| &parts[at])));
    state::load_some(model, |_, _| match sources.next() {
        Some((key, Some(part))) => part.tensors.get(key).map(|info| part.read(key, info)).transpose(),
        _ => Ok(None),
    })
}

/// Finds out whether [`fill`] would succeed, by names and shapes; no tensor is read, and the model may be one of placeholders.
///
/// # Errors
/// As [`fill`].
pub fn check<M: Module>(model: &M, from: &InitFrom, component: Component) -> Result<(), StartError> {
    assign(&state::layout(model), from, component).map(drop)
}

/// The checkpoints, and the place among them of the one that each parameter is taken from.
fn assign(
    layout: &[(String, Vec<usize>)],
    from: &InitFrom,
    component: Component,
) -> Result<(Vec<Part>, Vec<Option<usize>>), StartError> {
    let settings = &from.0;
    settings.validate()?;
    let parts = open_parts(settings, component, layout)?;
    // The part of each parameter, if one has a tensor for it.
    let mut taken_from = vec![None; layout.len()];
    let (mut missing, mut taken) = (Vec::new(), vec![BTreeSet::new(); parts.len()]);
    for ((key, shape), from) in layout.iter().zip(&mut taken_from) {
        let Some(place) = parts.iter().position(|part| part.holds(key)) else { continue };
        if parts[place].has(key, shape)? {
            *from = Some(place);
            taken[place].insert(key.as_str());
        } else {
            missing.push(key.clone());
        }
    }
    let unused = parts.iter().zip(&taken).flat_map(|(part, taken)| part.unused(taken)).collect();
    report(settings, &missing, unused)?;
    Ok((parts, taken_from))
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
