//! `.nemo` files: a tar archive, plain or gzip-compressed, of `model_config.yaml`, `model_weights.ckpt` and artifacts
//! (NeMo, `nemo/core/connectors/save_restore_connector.py`; tar as POSIX `pax` and GNU describe it).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::archive::{ArchiveFault, unpacking_limit};
use crate::error::TensorFileError;
use crate::map::MappedFile;
use crate::pickle::ReadOptions;
use crate::source::{TensorInfo, TensorSource};
use crate::tensor_file::NamedTensor;
use crate::torch_file::TorchFile;

pub(crate) const CONFIG: &str = "model_config.yaml";
pub(crate) const WEIGHTS: &str = "model_weights.ckpt";
/// Texts that [`write_nemo`](crate::nemo_writer::write_nemo) keeps beside them: a JSON object.
pub(crate) const TEXTS: &str = "calotype.json";

/// An open `.nemo` file. The weights are used in place; those of a compressed archive lie unpacked in a temporary file (in the
/// system's folder for such, `TMPDIR`), which vanishes with this value.
#[derive(Debug)]
pub struct NemoFile {
    config: String,
    texts: BTreeMap<String, String>,
    weights: TorchFile,
}

/// Ranges of an archive's parts in its bytes.
#[derive(Default)]
struct Parts {
    config: Option<Range<usize>>,
    weights: Option<Range<usize>>,
    texts: Option<Range<usize>>,
    /// Weights cut in pieces for several processes, or in the distributed format.
    distributed: bool,
    /// Parts of torch's own tar archives, which it wrote in 2016.
    ancient: bool,
}

impl NemoFile {
    /// The name of the configuration's file.
    pub const CONFIG: &'static str = CONFIG;

    /// Maps the archive, unpacking it first if it is compressed, and opens the weights in it.
    ///
    /// # Errors
    /// `Archive` of [`TensorFileError`] for damaged or incomplete archives, and everything that [`TorchFile::open`] reports.
    pub fn open(path: impl AsRef<Path>, options: ReadOptions) -> Result<Self, TensorFileError> {
        let map = MappedFile::open(path.as_ref())?;
        Self::from_map(map, options)
    }

    pub(crate) fn from_map(map: MappedFile, options: ReadOptions) -> Result<Self, TensorFileError> {
        let map = if is_gzip(map.bytes()) { unpacked(&map)? } else { map };
        let path = map.path().to_owned();
        let fail = |reason| TensorFileError::Archive { file: path.clone(), reason };
        let parts = find_parts(map.bytes()).map_err(fail)?;
        let texts = parts.texts.clone().map(|range| texts_of(&map.bytes()[range])).transpose().map_err(fail)?;
        let (config, weights) = parts.complete().map_err(fail)?;
        let config = std::str::from_utf8(&map.bytes()[config]).map_err(|_| fail(ArchiveFault::Text(CONFIG.into())))?;
        let config = config.to_owned();
        let weights = TorchFile::from_map(Arc::new(map), weights, options)?;
        Ok(Self { config, texts: texts.unwrap_or_default(), weights })
    }

    /// The text of the model's configuration, in YAML.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The checkpoint inside.
    pub fn weights(&self) -> &TorchFile {
        &self.weights
    }

    /// The checkpoint inside, to choose another of its dictionaries.
    pub fn weights_mut(&mut self) -> &mut TorchFile {
        &mut self.weights
    }
}

impl TensorSource for NemoFile {
    fn origin(&self) -> &Path {
        self.weights.origin()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        self.weights.entries()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        self.weights.tensor(name)
    }

    /// The configuration under [`NemoFile::CONFIG`], and the texts that Calotype's own conversion keeps.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.texts.clone();
        metadata.insert(Self::CONFIG.to_owned(), self.config.clone());
        metadata
    }

    fn release(&self, name: &str) {
        self.weights.release(name);
    }
}

impl Parts {
    /// Both parts, or what is wrong with the archive.
    fn complete(self) -> Result<(Range<usize>, Range<usize>), ArchiveFault> {
        let missing = |part, remedy| Err(ArchiveFault::MissingPart { part, remedy });
        let unsupported = |found, remedy| Err(ArchiveFault::Unsupported { found, remedy });
        match self {
            Self { config: Some(config), weights: Some(weights), .. } => Ok((config, weights)),
            Self { distributed: true, .. } => unsupported(
                "the weights in this .nemo archive are cut into the pieces of several processes",
                "convert the checkpoint to tensor and pipeline parallelism 1 first",
            ),
            Self { ancient: true, .. } => unsupported(
                "this is a checkpoint in the tar format of torch before 0.2",
                "load and save it again with a newer torch",
            ),
            Self { config: None, .. } => missing(CONFIG, "it is not a .nemo archive, or it is incomplete"),
            Self { weights: None, .. } => missing(WEIGHTS, "it is not a .nemo archive, or it is incomplete"),
        }
    }

    fn add(&mut self, name: &str, data: Range<usize>) -> Result<(), ArchiveFault> {
        let slot = match name {
            CONFIG => &mut self.config,
            WEIGHTS => &mut self.weights,
            TEXTS => &mut self.texts,
            "storages" | "tensors" | "pickle" => {
                self.ancient = true;
                return Ok(());
            }
            _ => {
                let in_folder = |folder: &str| name.strip_prefix(folder).is_some_and(|rest| rest.contains('/'));
                self.distributed |=
                    in_folder("mp_rank_") || in_folder("tp_rank_") || name.starts_with("model_weights/");
                return Ok(());
            }
        };
        match slot.replace(data) {
            None => Ok(()),
            Some(_) => Err(ArchiveFault::Duplicate(name.to_owned())),
        }
    }
}

/// Our own texts by name.
fn texts_of(bytes: &[u8]) -> Result<BTreeMap<String, String>, ArchiveFault> {
    serde_json::from_slice(bytes).map_err(|_| ArchiveFault::Texts(TEXTS))
}

/// True if the bytes start as a gzip stream does (RFC 1952).
pub(crate) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// True if the bytes start with a tar header: the sum of its bytes stands in it.
pub(crate) fn is_tar(bytes: &[u8]) -> bool {
    const FIELD: Range<usize> = 148..156;
    let Some(header) = bytes.first_chunk::<512>().filter(|header| header[0] != 0) else { return false };
    let digits: String = header[FIELD].iter().map(|&byte| char::from(byte)).collect();
    let announced = u32::from_str_radix(digits.trim_matches([' ', '\0']), 8).ok();
    let counted = header.iter().enumerate().map(|(at, &byte)| if FIELD.contains(&at) { b' ' } else { byte });
    announced == Some(counted.map(u32::from).sum())
}

fn find_parts(bytes: &[u8]) -> Result<Parts, ArchiveFault> {
    let damaged = |error: io::Error| ArchiveFault::Tar(error.to_string());
    let mut parts = Parts::default();
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").to_owned();
        let kind = entry.header().entry_type();
        let range = || {
            let start = usize::try_from(entry.raw_file_position()).ok()?;
            let end = start.checked_add(usize::try_from(entry.size()).ok()?)?;
            (end <= bytes.len()).then_some(start..end)
        };
        if kind.is_file() || kind.is_contiguous() {
            let range = range().ok_or_else(|| ArchiveFault::OutOfRange(name.clone()))?;
            parts.add(&name, range)?;
        } else if [WEIGHTS, CONFIG, TEXTS].contains(&name.as_str()) {
            let reason = "a part of it is a link or a sparse file".to_owned();
            return Err(ArchiveFault::Tar(reason));
        }
    }
    Ok(parts)
}

/// Unpacks a compressed archive into a temporary file.
fn unpacked(packed: &MappedFile) -> Result<MappedFile, TensorFileError> {
    let path = packed.path();
    let mut file = tempfile::tempfile().map_err(|source| TensorFileError::writing(path, source))?;
    unpack(packed, &mut file)?;
    MappedFile::map(path, &file)
}

/// Unpacks gzip into `file`, in pieces, up to the limit for a file of this length.
fn unpack(packed: &MappedFile, file: &mut File) -> Result<(), TensorFileError> {
    const PIECE: usize = 128 << 10;
    let path = packed.path();
    let archive_fault = |reason| TensorFileError::Archive { file: path.to_owned(), reason };
    let limit = unpacking_limit(packed.bytes().len() as u64);
    let mut decoder = flate2::read::MultiGzDecoder::new(packed.bytes());
    let mut piece = vec![0; PIECE];
    let mut unpacked = 0u64;
    loop {
        let length = decoder.read(&mut piece).map_err(|_| archive_fault(ArchiveFault::Unpacking("gzip".to_owned())))?;
        if length == 0 {
            return Ok(());
        }
        unpacked += length as u64;
        if unpacked > limit {
            return Err(archive_fault(ArchiveFault::Bomb { unpacked, limit }));
        }
        file.write_all(&piece[..length]).map_err(|source| TensorFileError::writing(path, source))?;
    }
}
