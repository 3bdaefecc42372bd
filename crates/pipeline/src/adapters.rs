//! Adapter files that change the weights of a checkpoint.

use crate::error::PipelineError;
use calotype_checkpoints::{Checkpoint, Component};
use calotype_weights::TensorSource;
use calotype_weights::lora::{self, LoraOptions, LoraReport, LoraSet};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An adapter and the factor of its changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterFile {
    /// The file or folder, in any dialect that [`calotype_weights::lora`] reads.
    pub path: PathBuf,
    /// The factor; 1 is as it was trained.
    pub weight: f32,
}

impl std::str::FromStr for AdapterFile {
    type Err = PipelineError;

    /// `FILE` or `FILE=WEIGHT`.
    fn from_str(text: &str) -> Result<Self, PipelineError> {
        // A path that exists is a path, whatever it contains.
        let parts = text.rsplit_once('=').filter(|_| !std::path::Path::new(text).exists());
        let Some((path, weight)) = parts else {
            return plain(text);
        };
        match weight.parse::<f32>() {
            Ok(weight) if weight.is_finite() => Ok(Self { path: path.into(), weight }),
            _ => Err(PipelineError::setting(format!("--lora {text}: `{weight}` is no finite number"))),
        }
    }
}

/// A file at its full weight. `FILE:WEIGHT`, as A1111 writes it, is no file's name here.
fn plain(text: &str) -> Result<AdapterFile, PipelineError> {
    let weighted = text.rsplit_once(':').filter(|(_, weight)| weight.parse::<f32>().is_ok());
    match weighted.filter(|_| !std::path::Path::new(text).exists()) {
        Some((path, weight)) => Err(PipelineError::setting(format!(
            "--lora {text}: there is no such file; a weight stands behind `=`: --lora {path}={weight}"
        ))),
        None => Ok(AdapterFile { path: text.into(), weight: 1.0 }),
    }
}

/// Adds adapters up for the networks of a checkpoint; a report for each file says what it changes. With `allow_unused`, keys
/// that fit no parameter are left out and reported.
///
/// # Errors
/// [`PipelineError::Adapter`] naming file and key; [`PipelineError::Load`] for a checkpoint whose tensors have wrong shapes.
pub fn load_adapters(
    checkpoint: &Checkpoint,
    files: &[AdapterFile],
    allow_unused: bool,
) -> Result<(LoraSet, Vec<LoraReport>), PipelineError> {
    let parts = [
        (Component::Unet, lora::Component::Unet),
        (Component::TextEncoder, lora::Component::TextEncoder),
        (Component::TextEncoder2, lora::Component::TextEncoder2),
    ];
    let held = checkpoint.components();
    let mut model = Vec::new();
    for (component, name) in parts.into_iter().filter(|(component, _)| held.contains(component)) {
        model.push((name, checkpoint.component(component)?.entries()));
    }
    let mut set = LoraSet::new(&model);
    let options = LoraOptions { allow_unused, ..LoraOptions::default() };
    let report = |file: &AdapterFile| set.add_path(&file.path, file.weight, &options);
    let reports = files.iter().map(report).collect::<Result<_, _>>()?;
    Ok((set, reports))
}
