//! Networks of random weights that judge the images of small runs, where published ones judge those of real runs.

use crate::config::Augment;
use crate::export;
use crate::stages::StageError;
use burn::tensor::Device;
use calotype_checkpoints::Placement;
use calotype_models::clip::ClipConfig;
use calotype_models::inception::InceptionConfig;
use calotype_models::state::{self, NamedValues};
use calotype_models::{Init, TextConfig, VisionConfig};
use calotype_weights::{NamedTensor, write_safetensors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// File of the Inception network.
const INCEPTION: &str = "inception.safetensors";
/// Folder of the CLIP model.
const CLIP: &str = "clip";

/// An Inception network in the published form, and a small CLIP model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomJudges {
    /// Seed of the weights.
    pub seed: u64,
}

impl RandomJudges {
    /// Writes `inception.safetensors` (pytorch-fid's keys) and `clip` (transformers' folder) into `folder`; what is there is
    /// overwritten with the same.
    ///
    /// # Errors
    /// [`StageError`]: the folder cannot be written.
    pub fn write(&self, folder: &Path, device: &Device) -> Result<(), StageError> {
        std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
        let network = InceptionConfig::default().init(&mut Init::new(self.seed, device));
        let named = |t: &NamedValues| NamedTensor::from_f32(t.name.clone(), t.shape.clone(), &t.values).into_owned();
        let tensors: Vec<_> = state::collect(&network).iter().map(named).collect();
        write_safetensors(&folder.join(INCEPTION), &tensors, &BTreeMap::new())?;
        let config = small_clip();
        let clip = config.init(&mut Init::new(self.seed, device))?;
        let folder = folder.join(CLIP);
        if folder.is_dir() {
            std::fs::remove_dir_all(&folder).map_err(StageError::io(&folder))?;
        }
        export::clip(&clip, &config, &Augment::default())?.write(&folder, Placement::New)?;
        Ok(())
    }
}

/// Towers of one layer.
fn small_clip() -> ClipConfig {
    ClipConfig {
        projection: 32,
        text: TextConfig { channels: 32, layers: 1, heads: 2, ..TextConfig::default() },
        vision: VisionConfig {
            image_size: 32,
            patch_size: 8,
            channels: 32,
            layers: 1,
            heads: 2,
            ..VisionConfig::default()
        },
        ..ClipConfig::default()
    }
}
