//! The list of shards that NeMo trains from: `wdinfo.pkl`, and the same as `wdinfo.json`.

use std::path::Path;

use calotype_weights::pickle::{Kind, Value};
use serde::{Deserialize, Serialize};

use crate::files::{read_json, write_bytes, write_json};
use crate::pickled::{Writer, describe, read_whole};
use crate::{Error, Result};

/// Name of the file in NeMo's form.
pub const WDINFO_PICKLE: &str = "wdinfo.pkl";

/// Name of the file as JSON.
pub const WDINFO_JSON: &str = "wdinfo.json";

/// Shards of equal numbers of samples. NeMo counts consumed samples in whole shards, so a shard of another size would
/// shift every sample after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WdInfo {
    /// Shards, relative to the folder of the list, sorted.
    pub tar_files: Vec<String>,
    /// Samples in each shard.
    pub chunk_size: usize,
    /// Samples in all shards: `chunk_size` times their number.
    pub total_key_count: usize,
}

impl WdInfo {
    /// A list of `tar_files`, each of `chunk_size` samples.
    pub fn new(mut tar_files: Vec<String>, chunk_size: usize) -> Self {
        tar_files.sort();
        let total_key_count = tar_files.len().saturating_mul(chunk_size);
        WdInfo { tar_files, chunk_size, total_key_count }
    }

    /// Reads a list: JSON if `path` ends in `.json`, else a pickle.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is not there or cannot be read, [`Error::BadIndex`] if it is no list that can be
    /// trained from.
    pub fn read(path: &Path) -> Result<Self> {
        if is_json(path) {
            let info: Option<WdInfo> = read_json(path)?;
            let info = info.ok_or_else(|| Error::io("read", path)(std::io::ErrorKind::NotFound.into()))?;
            return info.checked().map_err(|detail| Error::BadIndex { path: path.to_path_buf(), detail });
        }
        let bytes = calotype_core::read_input(path).map_err(Error::io("read", path))?;
        WdInfo::from_pickle(&bytes).map_err(|detail| Error::BadIndex { path: path.to_path_buf(), detail })
    }

    /// Writes the list, atomically: JSON if `path` ends in `.json`, else a pickle.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if is_json(path) { write_json(path, self) } else { write_bytes(path, &self.to_pickle()) }
    }

    /// The list as NeMo pickles it.
    pub fn to_pickle(&self) -> Vec<u8> {
        let mut out = Writer::begin();
        out.dict(["tar_files", "chunk_size", "total_key_count"].map(|key| (key, key)), |out, key| match key {
            "tar_files" => out.list_of_texts(&self.tar_files),
            "chunk_size" => out.integer(self.chunk_size),
            "total_key_count" => out.integer(self.total_key_count),
            other => unreachable!("`{other}` is none of the three keys above"),
        });
        out.end()
    }

    /// Reads a pickled list.
    ///
    /// # Errors
    /// The fault, in words.
    pub fn from_pickle(bytes: &[u8]) -> std::result::Result<Self, String> {
        let read = read_whole(bytes).map_err(|fault| fault.to_string())?;
        let root = read.root(bytes);
        if root.kind() != Kind::Dict {
            return Err(format!("it is {}, where a dictionary is expected", describe(root)));
        }
        let files = field(root, "tar_files")?;
        if !matches!(files.kind(), Kind::List | Kind::Tuple) {
            return Err(format!("`tar_files` is {}, where a list is expected", describe(files)));
        }
        let text = |file: Value<'_>| {
            file.as_str().map(str::to_owned).ok_or_else(|| format!("`tar_files` holds {}, no text", describe(file)))
        };
        // A name costs its own bytes in the file at least once; the same one again and again is refused before it is copied.
        let length = files.items().filter_map(|file| file.as_str()).try_fold(0usize, |sum, file| {
            sum.checked_add(file.len()).filter(|sum| *sum <= bytes.len().saturating_mul(4))
        });
        length.ok_or("`tar_files` repeats its names beyond any use")?;
        let info = WdInfo {
            tar_files: files.items().map(text).collect::<std::result::Result<_, _>>()?,
            chunk_size: count(root, "chunk_size")?,
            total_key_count: count(root, "total_key_count")?,
        };
        info.checked()
    }

    /// The list, if it is one that can be trained from and does not lead out of its folder.
    fn checked(self) -> std::result::Result<Self, String> {
        if self.chunk_size == 0 {
            return Err("`chunk_size` is 0".to_owned());
        }
        if let Some(name) = self.tar_files.iter().find(|name| !is_inner(name)) {
            return Err(format!("shard name `{name}` leads out of its folder"));
        }
        let mut sorted: Vec<&String> = self.tar_files.iter().collect();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("shard `{}` is there twice", pair[0]));
        }
        if self.tar_files.len().checked_mul(self.chunk_size) != Some(self.total_key_count) {
            let (shards, chunk, total) = (self.tar_files.len(), self.chunk_size, self.total_key_count);
            return Err(format!("`total_key_count` is {total}, but {shards} shards of {chunk} are listed"));
        }
        Ok(self)
    }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// True if `name` is a path downwards: NeMo lists plain names, and joins whatever it lists to its root folder.
fn is_inner(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\0', '\\'])
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn field<'a>(root: Value<'a>, name: &str) -> std::result::Result<Value<'a>, String> {
    root.get(name).ok_or_else(|| format!("key `{name}` is missing"))
}

fn count(root: Value<'_>, name: &str) -> std::result::Result<usize, String> {
    let value = field(root, name)?;
    let count = value.as_i64().and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| format!("`{name}` is {}, where a count is expected", describe(value)))
}
