//! `encoders.json` beside a precached dataset: which checkpoints made it, so that a model trained on it can be put together
//! with them.

use crate::precache::EncoderKind;
use crate::stages::StageError;
use calotype_checkpoints::Component;
use calotype_core::durable;
use calotype_pipeline::encoders::text::{HiddenStates, TokenizerChoice};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// File name of the record in a precached dataset's folder.
pub const DATASET_ENCODERS: &str = "encoders.json";

/// One encoder of a precached dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncoderEntry {
    /// What kind of network.
    pub kind: EncoderKind,
    /// Which network of the checkpoint.
    pub component: Component,
    /// The checkpoint: relative to the dataset's folder where it lies beside it, absolute otherwise.
    pub path: PathBuf,
    /// BLAKE3, in hexadecimal, of its tensors under canonical keys.
    pub weights: String,
    /// Address of its output in a sample.
    pub output: String,
    /// Texts: which hidden states were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<HiddenStates>,
    /// Texts: which tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerChoice>,
    /// Images: side in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<usize>,
}

/// The encoders of a precached dataset, by their names in the recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DatasetEncoders(pub BTreeMap<String, EncoderEntry>);

impl DatasetEncoders {
    /// Reads the record of a dataset's folder, with all paths as they are from here; empty if there is none.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn read(folder: &Path) -> Result<Self, StageError> {
        let path = folder.join(DATASET_ENCODERS);
        let mut found: Self = durable::read_json(&path).map_err(StageError::io(&path))?.unwrap_or_default();
        for entry in found.0.values_mut() {
            // An absolute path replaces the folder.
            entry.path = folder.join(&entry.path);
        }
        Ok(found)
    }

    /// Writes the record into a dataset's folder, atomically.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), StageError> {
        let mut stored = self.clone();
        for entry in stored.0.values_mut() {
            entry.path = path_from(folder, &entry.path);
        }
        let path = folder.join(DATASET_ENCODERS);
        durable::write_json(&path, &stored).map_err(StageError::io(&path))
    }
}

/// `path` as it is written into a file of `folder`: relative if it lies below the folder's parent, so that both can be moved
/// together.
fn path_from(folder: &Path, path: &Path) -> PathBuf {
    let (Ok(folder), Ok(path)) = (folder.canonicalize(), path.canonicalize()) else { return path.to_owned() };
    match folder.parent().and_then(|parent| path.strip_prefix(parent).ok()) {
        Some(below) => Path::new("..").join(below),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_beside_the_dataset_are_relative() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        ["run/data", "run/clip/model", "other"].iter().for_each(|name| std::fs::create_dir_all(at(name)).unwrap());
        let entry = |path: PathBuf| EncoderEntry {
            kind: EncoderKind::Text,
            component: Component::TextEncoder,
            path,
            weights: "0123".to_owned(),
            output: "states.npy".to_owned(),
            states: None,
            tokenizer: None,
            resolution: None,
        };
        let encoders =
            [("near", entry(at("run/clip/model"))), ("far", entry(at("other")))].map(|(n, e)| (n.to_owned(), e));
        let encoders = DatasetEncoders(encoders.into());
        encoders.write(&at("run/data")).unwrap();
        let text = std::fs::read_to_string(at("run/data").join(DATASET_ENCODERS)).unwrap();
        assert!(text.contains("\"../clip/model\""), "{text}");
        std::fs::rename(at("run"), at("moved")).unwrap();
        let read = DatasetEncoders::read(&at("moved/data")).unwrap();
        assert!(read.0["near"].path.is_dir() && read.0["far"].path.is_dir());
        assert_eq!(DatasetEncoders::read(&at("other")).unwrap(), DatasetEncoders::default());
    }
}
