//! Initial weights from checkpoints: the key `init_from`.

use crate::config::{InitFrom, InitSettings, SettingError};
use burn::module::Module;
use calotype_checkpoints::{Checkpoint, Component, ComponentSource, LayoutError};
use calotype_models::state;
use calotype_weights::{Dtype, TensorFileError, TensorSource};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

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
    #[error("init_from: {}: `{name}` has elements of type {dtype}; weights are F64, F32, F16 or BF16", path.display())]
    Dtype {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's canonical key.
        name: String,
        /// Its type.
        dtype: Dtype,
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
        /// Beginnings of keys that there are.
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
    sources: Vec<ComponentSource>,
    taken: BTreeSet<String>,
}

impl Part {
    fn open(prefix: &str, path: &str, settings: &InitSettings, component: Component) -> Result<Self, StartError> {
        let checkpoint = Checkpoint::open_with(path, &settings.options())?;
        let sources = sources_of(&checkpoint, component)?;
        Ok(Self { prefix: prefix.to_owned(), path: PathBuf::from(path), sources, taken: BTreeSet::new() })
    }

    fn holds(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| self.prefix.is_empty() || rest.is_empty() || rest.starts_with('.'))
    }

    /// The values of a parameter in checkpoint layout; none if the checkpoint lacks it.
    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, StartError> {
        let holding = |source: &&ComponentSource| source.entries().iter().any(|entry| entry.name == key);
        let Some(source) = self.sources.iter().find(holding) else { return Ok(None) };
        let tensor = source.tensor(key)?;
        // A published scalar is a vector of one number here.
        let scalar = tensor.shape.is_empty() && shape == [1];
        if tensor.shape != shape && !scalar {
            let (path, name) = (self.path.clone(), key.to_owned());
            return Err(StartError::Shape { path, name, found: tensor.shape.clone(), needed: shape.to_vec() });
        }
        let values = tensor.to_f32_vec().ok_or_else(|| StartError::Dtype {
            path: self.path.clone(),
            name: key.to_owned(),
            dtype: tensor.dtype,
        })?;
        source.release(key);
        self.taken.insert(key.to_owned());
        Ok(Some(values))
    }

    /// Tensors that nothing took.
    fn unused(&self) -> Vec<String> {
        let of = |source: &ComponentSource| {
            let known = source.entries().into_iter().map(|entry| entry.name);
            known.chain(source.unused.iter().cloned()).collect::<Vec<_>>()
        };
        let all = self.sources.iter().flat_map(of);
        all.filter(|key| self.holds(key) && !self.taken.contains(key)).collect()
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

/// Gives a network the weights that `init_from` names; parameters of no part keep their random ones. What is missing or
/// left out with permission is told in the logs.
///
/// # Errors
/// [`StartError`]: a checkpoint cannot be opened, or its tensors and the network's parameters are not the same.
pub fn fill<M: Module>(model: M, from: &InitFrom, component: Component) -> Result<M, StartError> {
    let settings = &from.0;
    settings.validate()?;
    let layout = state::layout(&model);
    let mut parts = open_parts(settings, component, &layout)?;
    let mut found = BTreeMap::new();
    let mut missing = Vec::new();
    for (key, shape) in &layout {
        let Some(part) = parts.iter_mut().find(|part| part.holds(key)) else { continue };
        match part.take(key, shape)? {
            Some(values) => drop(found.insert(key.clone(), values)),
            None => missing.push(key.clone()),
        }
    }
    report(settings, &missing, parts.iter().flat_map(Part::unused).collect())?;
    let random = match found.len() == layout.len() {
        true => BTreeMap::new(),
        false => state::collect(&model).into_iter().map(|t| (t.name, t.values)).collect(),
    };
    state::load(model, |key, _| {
        let values = found.remove(key).or_else(|| random.get(key).cloned());
        values.ok_or_else(|| StartError::Missing { count: 1, first: key.to_owned() })
    })
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
