//! What pictures depend on: the checkpoint and how it is drawn with.

use crate::error::InferenceError;
use crate::latents::hex;
use crate::layout::Layout;
use crate::recipe::Recipe;
use burn::tensor::Device;
use calotype_checkpoints::Checkpoint;
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_pipeline::{PipelineError, belonging};
use calotype_weights::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The model's path; a checkpoint of random weights is made where the recipe asks for one.
///
/// # Errors
/// [`InferenceError::Setting`] where the recipe names neither.
pub(crate) fn model_of(recipe: &Recipe, layout: &Layout, tell: &dyn Fn(&str)) -> Result<PathBuf, InferenceError> {
    match (&recipe.model, recipe.random) {
        (Some(path), _) => Ok(PathBuf::from(path)),
        (None, Some(family)) => {
            let folder = layout.model();
            if !is_made(&folder) {
                tell(&format!("making a checkpoint of random weights of {family} in {}", folder.display()));
                random(family).write(&folder)?;
            }
            Ok(folder)
        }
        (None, None) => Err(InferenceError::setting(
            "there is no model: give a checkpoint with --model, or for trials random weights with random=tiny-sdxl",
        )),
    }
}

/// Whether a checkpoint of random weights was made in a folder.
pub(crate) fn is_made(folder: &Path) -> bool {
    folder.join("model_index.json").is_file()
}

/// Full sizes are stored in bf16, as they are published in 16 bits.
fn random(family: RandomFamily) -> RandomCheckpoint {
    let dtype = match family {
        RandomFamily::Sd1 | RandomFamily::Sd2 | RandomFamily::Sdxl => Dtype::BF16,
        _ => Dtype::F32,
    };
    RandomCheckpoint { dtype, ..RandomCheckpoint::new(family) }
}

/// What pictures depend on, but for captions: the same for all processes and all runs of a folder.
pub(crate) fn drawing(recipe: &Recipe, model: &Path, device: &Device) -> Result<Value, InferenceError> {
    let checkpoint = Checkpoint::open_with(model, &recipe.open).map_err(PipelineError::from)?;
    let latents = match &recipe.latents.path {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(InferenceError::io("read", path))?;
            hex(&Sha256::digest(bytes))
        }
        None => format!("seed {}", recipe.latents.seed),
    };
    Ok(json!({
        "networks": belonging::hashes(&checkpoint)?,
        "precision": recipe.precision.resolve(device).name(),
        "width": recipe.width,
        "height": recipe.height,
        "steps": recipe.steps,
        "guidance": recipe.guidance,
        "negative": recipe.negative,
        "tiled": recipe.tiled,
        "sampler": recipe.sampler,
        "latents": latents,
    }))
}

/// A digest of it.
pub(crate) fn digest(drawing: &Value) -> String {
    hex(&Sha256::digest(drawing.to_string()))
}
