//! Reports on checkpoints, for people and for programs.

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::LayoutError;
use crate::families::Family;
use crate::kinds::{Component, Layout, Prediction};
use crate::source::ComponentSource;
use calotype_weights::Dtype;
use calotype_weights::source::{TensorInfo, TensorSource};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The result of [`inspect`].
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file or folder.
    pub path: PathBuf,
    /// The layout.
    pub layout: Layout,
    /// The published model that it has the form of.
    pub family: Option<Family>,
    /// The UNet's prediction type.
    pub prediction: Option<Prediction>,
    /// The source of that knowledge, or the reason why there is none.
    pub prediction_source: String,
    /// Its components.
    pub components: Vec<ComponentReport>,
    /// Stored tensors that are known not to be needed: reason and number.
    pub set_aside: BTreeMap<String, usize>,
    /// Files beside the weights that are carried along.
    pub files: Vec<String>,
    /// Assumptions, in full sentences.
    pub notes: Vec<String>,
    /// Faults, in full sentences; empty for a sound checkpoint.
    pub problems: Vec<String>,
}

/// One component of a [`Report`].
#[derive(Clone, Debug, Serialize)]
pub struct ComponentReport {
    /// The component.
    pub component: Component,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements in them.
    pub parameters: usize,
    /// Elements by type.
    pub dtypes: BTreeMap<String, usize>,
    /// Its size in words, such as `320/640/1280/1280 channels`.
    pub summary: String,
    /// Canonical keys that it lacks.
    pub missing: Vec<String>,
    /// All its tensors by canonical key.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<TensorReport>,
}

/// One tensor of a [`ComponentReport`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its canonical key.
    pub name: String,
    /// Type of its elements.
    pub dtype: String,
    /// Size of each axis.
    pub shape: Vec<usize>,
}

/// Opens a checkpoint and reports what it holds; with `tensors`, every tensor by name.
///
/// # Errors
/// As [`Checkpoint::open_with`].
pub fn inspect(path: impl AsRef<Path>, options: &OpenOptions, tensors: bool) -> Result<Report, LayoutError> {
    Ok(Report::of(&Checkpoint::open_with(path, options)?, tensors))
}

impl Report {
    /// The report on an open checkpoint.
    pub fn of(checkpoint: &Checkpoint, tensors: bool) -> Self {
        let mut problems = Vec::new();
        let mut components = Vec::new();
        for component in checkpoint.components() {
            let (missing, shapes) = checkpoint.problems(component);
            if !missing.is_empty() {
                problems.push(format!("{component} lacks {} tensors, such as `{}`", missing.len(), missing[0]));
            }
            problems.extend(shapes.iter().map(|problem| format!("{component}: {problem}")));
            // Without its shapes a component cannot be read; that is among the problems already.
            if let Ok(source) = checkpoint.component(component) {
                components.push(ComponentReport::of(&source, tensors));
            }
        }
        if let [first, ..] = checkpoint.unused() {
            let count = checkpoint.unused().len();
            problems.push(format!("{count} stored tensors belong to no known component, such as `{first}`"));
        }
        if checkpoint.components().contains(&Component::Unet) && checkpoint.prediction().is_none() {
            problems.push("the prediction type is not known: give it before the checkpoint is used".into());
        }
        let counts = |(reason, keys): (&&str, &Vec<String>)| ((*reason).to_owned(), keys.len());
        Self {
            path: checkpoint.path().to_owned(),
            layout: checkpoint.layout(),
            family: checkpoint.family(),
            prediction: checkpoint.prediction(),
            prediction_source: checkpoint.prediction_source().to_owned(),
            components,
            set_aside: checkpoint.set_aside().iter().map(counts).collect(),
            files: checkpoint.files().keys().cloned().collect(),
            notes: checkpoint.notes().to_vec(),
            problems,
        }
    }
}

impl ComponentReport {
    fn of(source: &ComponentSource, tensors: bool) -> Self {
        let mut entries = source.entries();
        entries.iter_mut().filter(|tensor| source.is_int8(&tensor.name)).for_each(|tensor| tensor.dtype = Dtype::I8);
        let mut dtypes = BTreeMap::new();
        for tensor in &entries {
            *dtypes.entry(tensor.dtype.name().to_owned()).or_insert(0) += tensor.elements();
        }
        let detail = |tensor: &TensorInfo| TensorReport {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().into(),
            shape: tensor.shape.clone(),
        };
        Self {
            component: source.component,
            tensors: entries.len(),
            parameters: source.parameters(),
            dtypes,
            summary: match source.int8_tensors() {
                0 => summary(source),
                count => format!("{}, {count} weights in 8 bits", summary(source)),
            },
            missing: source.missing.clone(),
            details: if tensors { entries.iter().map(detail).collect() } else { Vec::new() },
        }
    }
}

/// The sizes in a configuration that tell models of one kind apart.
fn summary(source: &ComponentSource) -> String {
    let config = &source.config;
    let list = |field: &str| {
        let items = config[field].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().map(ToString::to_string).collect::<Vec<_>>().join("/")
    };
    let tower = |config: &serde_json::Value| {
        let or = |field: &str, default: u64| config[field].as_u64().unwrap_or(default);
        format!("{} layers of width {}", or("num_hidden_layers", 12), or("hidden_size", 768))
    };
    match source.component {
        Component::Unet => format!(
            "{} channels in, {} channels, text width {}",
            config["in_channels"],
            list("block_out_channels"),
            config["cross_attention_dim"]
        ),
        Component::Vae => format!(
            "{} channels, {} latent channels, scale {}",
            list("block_out_channels"),
            config["latent_channels"],
            config["scaling_factor"]
        ),
        Component::Clip => {
            format!("text: {}; images: {}", tower(&config["text_config"]), tower(&config["vision_config"]))
        }
        Component::Inception => "1,008 classes, 2,048 features".into(),
        Component::KerasInception => format!("2,048 features, {} outputs", config["outputs"]),
        Component::EfficientNetLite => format!("Lite{}, {} classes", config["variant"], config["num_labels"]),
        _ => tower(config),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.path.display())?;
        writeln!(formatter, "  layout      {}", self.layout)?;
        let family = self.family.map_or("of no published family", Family::name);
        writeln!(formatter, "  family      {family}")?;
        let prediction = self.prediction.map_or("unknown", Prediction::name);
        writeln!(formatter, "  prediction  {prediction} ({})", self.prediction_source)?;
        for part in &self.components {
            let name = part.component.name();
            let types: Vec<&str> = part.dtypes.keys().map(String::as_str).collect();
            let (tensors, parameters) = (part.tensors, thousands(part.parameters));
            writeln!(formatter, "  {name:<16} {parameters:>14} parameters in {tensors} tensors, {}", types.join("+"))?;
            writeln!(formatter, "  {:<16} {}", "", part.summary)?;
            for tensor in &part.details {
                writeln!(formatter, "    {} {} {:?}", tensor.name, tensor.dtype, tensor.shape)?;
            }
        }
        for (reason, count) in &self.set_aside {
            writeln!(formatter, "  set aside   {count} tensors: {reason}")?;
        }
        if !self.files.is_empty() {
            writeln!(formatter, "  files       {}", self.files.join(", "))?;
        }
        for note in &self.notes {
            writeln!(formatter, "  note        {note}")?;
        }
        for problem in &self.problems {
            writeln!(formatter, "  problem     {problem}")?;
        }
        Ok(())
    }
}

/// A number with commas between the thousands.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
