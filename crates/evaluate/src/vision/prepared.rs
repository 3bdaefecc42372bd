//! What a mini recipe needs and nobody has given: embedded pictures, and a classifier of random weights.

use crate::{EvaluateError, Result};
use burn::tensor::Device;
use calotype_checkpoints::{Component, Export, ImageProcessor, Part, Placement};
use calotype_data::emoji::{Split, combinations, write_dataset};
use calotype_data::{Control, Dataset, ShardLimits};
use calotype_models::{Init, VitConfig};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The table `[prepare]` of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrepareSettings {
    /// The embedded pictures, as `{out}/prepared/train` and `{out}/prepared/held_out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<EmbeddedPictures>,
    /// A ViT of random weights, as `{out}/prepared/classifier`: its figures mean nothing, and everything else is as it would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier: Option<RandomClassifier>,
}

/// The embedded pictures on coloured backgrounds; their part `json` has the fields `name`, `colour` and `group`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddedPictures {
    /// Side of the pictures in pixels.
    pub resolution: usize,
    /// Drawings, evenly chosen among all.
    pub drawings: usize,
}

/// A ViT of random weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomClassifier {
    /// Its form.
    pub model: VitConfig,
    /// Seed of its weights.
    pub seed: u64,
}

impl PrepareSettings {
    /// Makes what is not there yet and one of `paths` asks for, below the folder of the evaluation.
    ///
    /// # Errors
    /// [`EvaluateError`]: it cannot be made or written, or `control` stops the work.
    pub fn make(&self, out: &Path, paths: &[&str], control: &mut Control<'_>) -> Result<()> {
        let wanted = |name: &str| {
            let folder = out.join("prepared").join(name);
            paths.iter().any(|path| Path::new(path).starts_with(&folder)).then_some(folder)
        };
        for (name, split) in [("train", Split::Train), ("held_out", Split::HeldOut)] {
            if let (Some(pictures), Some(folder)) = (&self.dataset, wanted(name)) {
                pictures.write(&folder, split, control)?;
            }
        }
        match (&self.classifier, wanted("classifier")) {
            (Some(classifier), Some(folder)) => classifier.write(&folder),
            _ => Ok(()),
        }
    }
}

impl EmbeddedPictures {
    fn write(&self, folder: &Path, split: Split, control: &mut Control<'_>) -> Result<()> {
        let total = combinations(split, Some(self.drawings))?.len();
        if let Ok(dataset) = Dataset::open(folder) {
            let resolution = dataset.meta().get("resolution").and_then(serde_json::Value::as_u64);
            if dataset.len() == total && resolution == Some(self.resolution as u64) {
                return Ok(());
            }
        }
        write_dataset(folder, self.resolution, ShardLimits::default(), split, Some(self.drawings), control)?;
        Ok(())
    }
}

impl RandomClassifier {
    fn write(&self, folder: &Path) -> Result<()> {
        // Folders are made in one piece: one that is there is whole.
        if folder.exists() {
            return Ok(());
        }
        let wrong = |problem: String| EvaluateError::Usage(format!("prepare.classifier: {problem}"));
        let network =
            self.model.init(&mut Init::new(self.seed, &Device::flex())).map_err(|error| wrong(error.to_string()))?;
        let config = self.model.to_transformers().map_err(|error| wrong(error.to_string()))?;
        let part = Part::module(Component::Classifier, config, &network);
        Export::model(part)
            .image_processor(&ImageProcessor::vit(self.model.image_size))
            .write(folder, Placement::New)?;
        Ok(())
    }
}
