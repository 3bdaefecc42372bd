//! The manifest of a folder that Calotype wrote: what it is, and length and BLAKE3 hash of every file.

use crate::error::LayoutError;
use crate::families::Family;
use crate::files;
use crate::kinds::{Component, Prediction};
use calotype_core::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

/// The version of the format that is written.
const FORMAT: u32 = 1;

/// `calotype.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: u32,
    /// The family, where it is known.
    pub(crate) family: Option<Family>,
    /// The UNet's prediction type, where there is a UNet.
    pub(crate) prediction_type: Option<Prediction>,
    /// The components; each is a folder of its name with `config.json` and `model.safetensors`.
    pub(crate) components: Vec<Component>,
    /// All other files, by relative path.
    files: BTreeMap<String, FileEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    bytes: u64,
    blake3: String,
}

impl FileEntry {
    fn of(path: &Path) -> io::Result<Self> {
        // Through a buffer: memory stays small whatever the file's length.
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        let bytes = std::fs::metadata(path)?.len();
        Ok(Self { bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}

impl Manifest {
    /// Name of the file in the folder.
    pub(crate) const FILE: &'static str = "calotype.json";

    /// The manifest of a folder whose other files are written.
    pub(crate) fn of(
        folder: &Path,
        family: Option<Family>,
        prediction_type: Option<Prediction>,
        components: Vec<Component>,
        names: &[String],
    ) -> io::Result<Self> {
        let files: io::Result<_> =
            names.iter().map(|name| Ok((name.clone(), FileEntry::of(&folder.join(name))?))).collect();
        Ok(Self { format: FORMAT, family, prediction_type, components, files: files? })
    }

    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        durable::replace_file(&folder.join(Self::FILE), |writer| writer.write_all(&text))
    }

    /// Reads the manifest and compares the files' lengths with it.
    pub(crate) fn read(folder: &Path) -> Result<Self, LayoutError> {
        let path = folder.join(Self::FILE);
        let text = files::read_text(&path)?;
        let manifest: Self =
            serde_json::from_str(&text).map_err(|source| LayoutError::Json { path: path.clone(), source })?;
        if manifest.format != FORMAT {
            let reason = format!("it has format {}, this version reads format {FORMAT}", manifest.format);
            return Err(LayoutError::Unrecognised { path, reason });
        }
        if let Some(name) = manifest.files.keys().find(|name| !files::stays_inside(name)) {
            return Err(LayoutError::Damaged {
                path,
                reason: format!("it names `{name}`, which is outside of the folder"),
            });
        }
        for (name, entry) in &manifest.files {
            let path = folder.join(name);
            let bytes = std::fs::metadata(&path).map_or(0, |status| status.len());
            if bytes != entry.bytes {
                return Err(LayoutError::Damaged { path, reason: format!("{bytes} bytes instead of {}", entry.bytes) });
            }
        }
        Ok(manifest)
    }

    /// The files that are no component's.
    pub(crate) fn carried(&self) -> impl Iterator<Item = &str> {
        let own = |name: &&str| self.components.iter().any(|component| name.starts_with(&format!("{component}/")));
        self.files.keys().map(String::as_str).filter(move |name| !own(name))
    }

    /// Compares every file with its hash.
    pub(crate) fn verify(&self, folder: &Path) -> Result<(), LayoutError> {
        for (name, entry) in &self.files {
            let path = folder.join(name);
            let found = FileEntry::of(&path).map_err(|source| LayoutError::Io {
                path: path.clone(),
                action: "read it",
                source,
            })?;
            if found != *entry {
                return Err(LayoutError::Damaged { path, reason: "its BLAKE3 hash is not the manifest's".into() });
            }
        }
        Ok(())
    }
}
