//! The index file of a dataset folder.

use std::path::Path;

use calotype_core::decode_text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{read_json, write_json};
use crate::{Error, Result};

/// Name of the index file.
pub const INDEX_FILE: &str = "index.json";

/// Name of the file that an unfinished dataset has instead.
pub const PROGRESS_FILE: &str = "progress.json";

/// Value of the index's `format`.
pub const FORMAT: &str = "calotype-webdataset";

/// Version of the index's layout.
pub const VERSION: u32 = 1;

/// Content of a dataset folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetIndex {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Number of samples in all shards.
    pub samples: usize,
    /// The shards, in the order of their samples.
    pub shards: Vec<ShardRecord>,
    /// Free-form facts: encoder identity, source, licence, settings.
    #[serde(default)]
    pub meta: Map<String, Value>,
}

/// One shard of a [`DatasetIndex`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// File name, without folder.
    pub file: String,
    /// Number of samples.
    pub samples: usize,
    /// Length of the file, in bytes.
    pub bytes: u64,
    /// BLAKE3 of the file, in hexadecimal; absent where a folder was scanned without reading all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

impl DatasetIndex {
    /// An index of `shards`.
    pub fn new(shards: Vec<ShardRecord>, meta: Map<String, Value>) -> Self {
        let samples = shards.iter().map(|shard| shard.samples).sum();
        DatasetIndex { format: FORMAT.to_owned(), version: VERSION, samples, shards, meta }
    }

    /// A checksum over all shard records: equal for equal datasets, whatever their `meta`.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for shard in &self.shards {
            let sum = shard.blake3.as_deref().unwrap_or("-");
            hasher.update(format!("{}\t{}\t{}\t{sum}\n", shard.file, shard.samples, shard.bytes).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Reads `index.json` of `dir`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::BadIndex`] if the file is malformed or of another version, [`Error::Io`] if it cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(INDEX_FILE);
        read_json::<DatasetIndex>(&path)?.map(|index| index.checked(&path)).transpose()
    }

    /// Reads an index from the bytes of its file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::BadIndex`] if they are malformed or of another version.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |detail: String| Error::BadIndex { path: path.to_path_buf(), detail };
        let text = decode_text(bytes).map_err(|fault| bad(fault.to_string()))?;
        let index: DatasetIndex = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        index.checked(path)
    }

    /// Writes `index.json` into `dir`, atomically.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(INDEX_FILE), self)
    }

    fn checked(self, path: &Path) -> Result<Self> {
        match self.check() {
            Ok(()) => Ok(self),
            Err(detail) => Err(Error::BadIndex { path: path.to_path_buf(), detail }),
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format is `{}`, expected `{FORMAT}`", self.format));
        }
        if self.version != VERSION {
            return Err(format!("version is {}, this program reads {VERSION}", self.version));
        }
        // An index is data from elsewhere: it must not lead out of its folder.
        if let Some(shard) = self.shards.iter().find(|shard| !is_plain_name(&shard.file)) {
            return Err(format!("shard name `{}` is not a plain file name", shard.file));
        }
        let samples = self.shards.iter().try_fold(0usize, |n, shard| n.checked_add(shard.samples));
        if samples != Some(self.samples) {
            return Err(format!("samples is {}, the shards add up to {samples:?}", self.samples));
        }
        Ok(())
    }
}

/// True if `name` is a file name and nothing more.
pub(crate) fn is_plain_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name) && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_cannot_lead_out_of_its_folder() {
        for name in ["../a.tar", "/etc/passwd", "a/b.tar", "..", "", "a\\b.tar"] {
            assert!(!is_plain_name(name), "{name}");
        }
        assert!(is_plain_name("a-000000.tar"));
    }
}
