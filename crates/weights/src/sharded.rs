//! Checkpoints in several files under one index.
//!
//! An index (`*.safetensors.index.json`, `pytorch_model.bin.index.json`; `huggingface_hub`'s serialization module writes
//! them) is a JSON object: `weight_map` says in which file beside the index each tensor lies, `metadata.total_size`
//! how many bytes all tensors take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calotype_core::decode_text;
use serde_json::value::RawValue;

use crate::error::TensorFileError;
use crate::json::Pairs;
use crate::map::MappedFile;
use crate::open::{Content, open_content, recognise};
use crate::pickle::ReadOptions;
use crate::source::{TensorInfo, TensorSource};
use crate::tensor_file::NamedTensor;

/// A fault of the index of a sharded checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexFault {
    /// Not JSON of the right form.
    #[error("not an index of a sharded checkpoint: {0}")]
    Json(String),
    /// A JSON file without a map of weights.
    #[error(
        "this JSON file has no `weight_map`: it is not the index of a sharded checkpoint; name the checkpoint's file"
    )]
    NoMap,
    /// A tensor that the index lists twice.
    #[error("tensor `{0}` is in the index twice")]
    DuplicateTensor(String),
    /// A shard whose name leads out of the index's folder.
    #[error("`{0}` is not a plain file name: shards lie beside their index; refused")]
    ShardName(String),
    /// A shard that is not there.
    #[error("shard `{0}` is missing beside the index; copy or download it")]
    MissingShard(String),
    /// A shard that is something else than a file of tensors.
    #[error("shard `{0}` is neither a safetensors file nor a torch checkpoint")]
    ShardKind(String),
    /// A tensor that is not in the shard that the index names.
    #[error("the index says that tensor `{tensor}` is in `{shard}`, and it is not there")]
    Misplaced {
        /// The tensor.
        tensor: String,
        /// The shard by the index.
        shard: String,
    },
    /// A tensor in a shard that the index gives to another shard.
    #[error("tensor `{tensor}` is in `{found}` as well, where the index says `{listed}`; remove one of the two")]
    TwoShards {
        /// The tensor.
        tensor: String,
        /// The shard by the index.
        listed: String,
        /// The other shard that has it.
        found: String,
    },
    /// A tensor of a shard that the index does not list.
    #[error("tensor `{tensor}` of shard `{shard}` is not in the index; the two are of different checkpoints")]
    Unlisted {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// The announced number of bytes is another than that of the tensors.
    #[error(
        "the index announces {announced} bytes of tensors and the shards hold {actual}; if a shard was cut short, copy or \
         download it again, else correct `total_size` in the index"
    )]
    TotalSize {
        /// By the index.
        announced: u64,
        /// By the shards.
        actual: u64,
    },
}

/// An open sharded checkpoint: all shards are there and agree with the index.
pub struct ShardedTensors {
    path: PathBuf,
    shards: Vec<Box<dyn TensorSource>>,
    /// Number of the shard of each tensor.
    places: BTreeMap<String, usize>,
    entries: Vec<TensorInfo>,
}

impl std::fmt::Debug for ShardedTensors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (shards, tensors) = (self.shards.len(), self.entries.len());
        let mut shown = formatter.debug_struct("ShardedTensors");
        shown.field("path", &self.path).field("shards", &shards).field("tensors", &tensors).finish()
    }
}

/// Content of an index.
struct Index {
    /// Tensor to shard.
    map: BTreeMap<String, String>,
    total_size: Option<u64>,
}

impl ShardedTensors {
    /// Reads the index at `path`, opens every shard beside it, and compares the two.
    ///
    /// # Errors
    /// `Index` of [`TensorFileError`], and what opening a shard reports.
    pub fn open(path: impl AsRef<Path>, options: ReadOptions) -> Result<Self, TensorFileError> {
        let map = MappedFile::open(path.as_ref())?;
        Self::from_map(&map, options)
    }

    pub(crate) fn from_map(map: &MappedFile, options: ReadOptions) -> Result<Self, TensorFileError> {
        let path = map.path();
        let fail = |reason| TensorFileError::Index { file: path.to_owned(), reason };
        let index = parse_index(map.bytes()).map_err(fail)?;
        let mut names: Vec<&str> = index.map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut shards = Vec::with_capacity(names.len());
        for name in &names {
            shards.push(open_shard(path, name, options)?);
        }
        let sharded = Self::join(path, &index, &names, shards).map_err(fail)?;
        Ok(sharded)
    }

    /// Compares the shards with the index.
    fn join(
        path: &Path,
        index: &Index,
        names: &[&str],
        shards: Vec<Box<dyn TensorSource>>,
    ) -> Result<Self, IndexFault> {
        let mut places = BTreeMap::new();
        let mut entries = Vec::with_capacity(index.map.len());
        let mut actual = 0u64;
        for (number, (shard, name)) in shards.iter().zip(names).enumerate() {
            for entry in shard.entries() {
                check_place(index, &entry.name, name)?;
                let bytes = entry.dtype.bytes_of(&entry.shape).unwrap_or(usize::MAX);
                actual = actual.saturating_add(bytes as u64);
                places.insert(entry.name.clone(), number);
                entries.push(entry);
            }
        }
        if let Some((tensor, shard)) = index.map.iter().find(|(tensor, _)| !places.contains_key(*tensor)) {
            return Err(IndexFault::Misplaced { tensor: tensor.clone(), shard: shard.clone() });
        }
        match index.total_size {
            Some(announced) if announced != actual => Err(IndexFault::TotalSize { announced, actual }),
            _ => Ok(Self { path: path.to_owned(), shards, places, entries }),
        }
    }
}

impl TensorSource for ShardedTensors {
    fn origin(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> Vec<TensorInfo> {
        self.entries.clone()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        match self.places.get(name) {
            Some(&number) => self.shards[number].tensor(name),
            None => Err(TensorFileError::missing(&self.path, name, self.places.keys().map(String::as_str))),
        }
    }

    fn release(&self, name: &str) {
        if let Some(&number) = self.places.get(name) {
            self.shards[number].release(name);
        }
    }
}

fn check_place(index: &Index, tensor: &str, shard: &str) -> Result<(), IndexFault> {
    match index.map.get(tensor) {
        Some(listed) if listed == shard => Ok(()),
        Some(listed) => {
            let (tensor, listed, found) = (tensor.to_owned(), listed.clone(), shard.to_owned());
            Err(IndexFault::TwoShards { tensor, listed, found })
        }
        None => Err(IndexFault::Unlisted { tensor: tensor.to_owned(), shard: shard.to_owned() }),
    }
}

fn parse_index(bytes: &[u8]) -> Result<Index, IndexFault> {
    let json = |error: serde_json::Error| IndexFault::Json(error.to_string());
    let text = decode_text(bytes).map_err(|fault| IndexFault::Json(format!("it {fault}")))?;
    let top: Pairs<&RawValue> = serde_json::from_str(&text).map_err(json)?;
    let part = |name: &str| top.0.iter().filter(|(key, _)| key == name).map(|(_, raw)| raw.get()).next_back();
    let listed: Pairs<String> = serde_json::from_str(part("weight_map").ok_or(IndexFault::NoMap)?).map_err(json)?;
    let mut map = BTreeMap::new();
    for (tensor, shard) in listed.0 {
        check_shard_name(&shard)?;
        if map.contains_key(&tensor) {
            return Err(IndexFault::DuplicateTensor(tensor));
        }
        map.insert(tensor, shard);
    }
    let total_size = match part("metadata") {
        Some(metadata) => announced_size(metadata)?,
        None => None,
    };
    Ok(Index { map, total_size })
}

/// `total_size` of the metadata; some writers make it a float.
fn announced_size(metadata: &str) -> Result<Option<u64>, IndexFault> {
    let json = |error: serde_json::Error| IndexFault::Json(error.to_string());
    let metadata: Pairs<&RawValue> = serde_json::from_str(metadata).map_err(json)?;
    let Some((_, raw)) = metadata.0.into_iter().rfind(|(key, _)| key == "total_size") else { return Ok(None) };
    let size: f64 = serde_json::from_str(raw.get()).map_err(json)?;
    let whole: Result<u64, _> = serde_json::from_str(raw.get());
    match whole {
        Ok(size) => Ok(Some(size)),
        Err(_) if size >= 0.0 && size.fract() == 0.0 && size < 2f64.powi(53) => Ok(Some(size as u64)),
        Err(_) => Err(IndexFault::Json(format!("total_size {size} is not a number of bytes"))),
    }
}

fn check_shard_name(name: &str) -> Result<(), IndexFault> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':']);
    if plain { Ok(()) } else { Err(IndexFault::ShardName(name.to_owned())) }
}

fn open_shard(index: &Path, name: &str, options: ReadOptions) -> Result<Box<dyn TensorSource>, TensorFileError> {
    let fail = |reason| TensorFileError::Index { file: index.to_owned(), reason };
    let path = index.with_file_name(name);
    let map = match MappedFile::open(&path) {
        Err(TensorFileError::NotFound { .. }) => return Err(fail(IndexFault::MissingShard(name.to_owned()))),
        other => other?,
    };
    match recognise(&path, map.bytes())? {
        content @ (Content::Safetensors | Content::Torch) => open_content(content, map, options),
        _ => Err(fail(IndexFault::ShardKind(name.to_owned()))),
    }
}
