//! Writing MDS datasets.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hash::hash;
use super::index::{MdsColumn, MdsFileInfo, MdsIndex, MdsShardInfo, VERSION, python_json};
use super::{Compression, INDEX_FILE, MdsFault, MdsResult, shard};
use crate::files::{read_json, write_bytes, write_json};
use crate::webdataset::PROGRESS_FILE;
use crate::{Error, Result, Sample};

/// Streaming's default limit of a shard, in bytes.
pub const SIZE_LIMIT: u64 = 1 << 26;

/// Settings of the shards to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdsOptions {
    /// Compression of the shard files, if any.
    pub compression: Option<Compression>,
    /// Names of hash algorithms; the index gets a hash of each file by each of them.
    pub hashes: Vec<String>,
    /// Bytes at which another shard begins, counted uncompressed as Streaming does; without it, the format's limit of
    /// 4 GiB holds.
    pub size_limit: Option<u64>,
    /// Samples at which another shard begins.
    pub samples: Option<usize>,
}

impl Default for MdsOptions {
    /// Streaming's defaults: not compressed, no hashes, 64 MiB.
    fn default() -> Self {
        MdsOptions { compression: None, hashes: Vec::new(), size_limit: Some(SIZE_LIMIT), samples: None }
    }
}

/// Columns and options, checked, and the part of them that every shard repeats.
#[derive(Clone, Debug)]
pub struct MdsSchema {
    columns: Vec<MdsColumn>,
    options: MdsOptions,
    names: Names,
    /// The columns as they stand in each shard.
    head: Vec<u8>,
}

/// The columns as index and shards spell them.
#[derive(Clone, Debug)]
struct Names {
    encodings: Vec<String>,
    names: Vec<String>,
    sizes: Vec<Option<u64>>,
}

/// Content of a shard's head; fields in the order of their names.
#[derive(Serialize)]
struct Head<'a> {
    column_encodings: &'a [String],
    column_names: &'a [String],
    column_sizes: &'a [Option<u64>],
    compression: Option<String>,
    format: &'a str,
    hashes: &'a [String],
    size_limit: Option<u64>,
    version: u64,
}

impl MdsSchema {
    /// `columns` in any order: in shards they are sorted by name. Hashes are sorted, too.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without columns, with two of one name, or with a limit of 0 or beyond 32 bits;
    /// [`Error::Mds`] with [`MdsFault::Algorithm`].
    pub fn new(mut columns: Vec<MdsColumn>, mut options: MdsOptions) -> Result<Self> {
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        let bad = |what, detail: String| Err(Error::InvalidArgument { what, detail });
        if columns.is_empty() {
            return bad("columns", "an MDS dataset has at least one column".to_owned());
        }
        if let Some(pair) = columns.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return bad("columns", format!("`{}` is there twice", pair[0].name));
        }
        if options.samples == Some(0) || options.size_limit.is_some_and(|limit| limit == 0 || limit > MOST_BYTES) {
            return bad("shard limit", "1 to 4294967295 bytes, at least 1 sample".to_owned());
        }
        options.hashes.sort();
        options.hashes.dedup();
        for algorithm in &options.hashes {
            hash(algorithm, &[]).map_err(|fault| fault.of(Path::new(INDEX_FILE)))?;
        }
        let names = Names {
            encodings: columns.iter().map(|column| column.encoding.to_string()).collect(),
            names: columns.iter().map(|column| column.name.clone()).collect(),
            sizes: columns.iter().map(|column| column.encoding.fixed_size().map(|size| size as u64)).collect(),
        };
        let head = python_json(&Head {
            column_encodings: &names.encodings,
            column_names: &names.names,
            column_sizes: &names.sizes,
            compression: options.compression.map(|compression| compression.to_string()),
            format: "mds",
            hashes: &options.hashes,
            size_limit: options.size_limit,
            version: VERSION,
        });
        Ok(MdsSchema { columns, options, names, head })
    }

    /// The columns, sorted by name.
    pub fn columns(&self) -> &[MdsColumn] {
        &self.columns
    }

    /// The options.
    pub fn options(&self) -> &MdsOptions {
        &self.options
    }

    /// The stored form of a sample.
    ///
    /// # Errors
    /// [`MdsFault::Value`] for a part that is missing or does not fit its column, [`MdsFault::TooLarge`].
    pub fn encode(&self, sample: &Sample) -> MdsResult<Vec<u8>> {
        shard::encode(&self.columns, sample)
    }

    /// Bytes of a shard without samples, as Streaming counts them against the limit.
    pub fn empty_shard(&self) -> u64 {
        4 + 4 + self.head.len() as u64
    }

    /// True if a shard of `samples` samples and `bytes` bytes has room for another sample of `next` bytes, its place in
    /// the table included.
    pub fn has_room(&self, samples: usize, bytes: u64, next: u64) -> bool {
        let limit = self.options.size_limit.unwrap_or(MOST_BYTES);
        samples == 0 || (bytes + next <= limit && self.options.samples.is_none_or(|most| samples < most))
    }
}

/// Offsets in a shard have 32 bits.
const MOST_BYTES: u64 = u32::MAX as u64;

/// A shard in the making, in memory.
#[derive(Debug)]
pub struct MdsShard<'a> {
    schema: &'a MdsSchema,
    data: Vec<u8>,
    /// End of each sample in `data`.
    ends: Vec<usize>,
}

impl<'a> MdsShard<'a> {
    /// A shard without samples.
    pub fn new(schema: &'a MdsSchema) -> Self {
        MdsShard { schema, data: Vec::new(), ends: Vec::new() }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if there are no samples yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// True if another sample of `bytes` bytes, as [`MdsSchema::encode`] made it, still belongs into this shard.
    pub fn has_room(&self, bytes: usize) -> bool {
        let used = self.schema.empty_shard() + 4 * self.ends.len() as u64 + self.data.len() as u64;
        self.schema.has_room(self.ends.len(), used, 4 + bytes as u64)
    }

    /// Appends a sample, as [`MdsSchema::encode`] made it.
    pub fn push(&mut self, encoded: &[u8]) {
        self.data.extend_from_slice(encoded);
        self.ends.push(self.data.len());
    }

    /// The shard's bytes, uncompressed.
    ///
    /// # Errors
    /// [`MdsFault::TooLarge`] if an offset needs more than 32 bits.
    fn to_bytes(&self) -> MdsResult<Vec<u8>> {
        let start = 4 + 4 * (self.ends.len() + 1) + self.schema.head.len();
        shard::short(start + self.data.len(), || "the shard".to_owned())?;
        let mut out = Vec::with_capacity(start + self.data.len());
        out.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        for end in std::iter::once(&0).chain(&self.ends) {
            out.extend_from_slice(&((start + end) as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.schema.head);
        out.extend_from_slice(&self.data);
        Ok(out)
    }

    /// Writes the shard into `dir` as `basename` (plus the compression's extension), atomically; the answer is its entry in
    /// the index.
    ///
    /// # Errors
    /// [`Error::Mds`] with [`MdsFault::TooLarge`], [`Error::Io`].
    pub fn write(self, dir: &Path, basename: &str) -> Result<MdsShardInfo> {
        let path = dir.join(basename);
        let raw = self.to_bytes().map_err(|fault| fault.of(&path))?;
        let options = &self.schema.options;
        let file = |basename: String, bytes: &[u8]| -> Result<MdsFileInfo> {
            let sum = |name: &String| Ok((name.clone(), hash(name, bytes).map_err(|fault| fault.of(&path))?));
            let hashes = options.hashes.iter().map(sum).collect::<Result<BTreeMap<_, _>>>()?;
            Ok(MdsFileInfo { basename, bytes: bytes.len() as u64, hashes })
        };
        let raw_data = file(basename.to_owned(), &raw)?;
        let zip_data = match options.compression {
            None => {
                write_bytes(&path, &raw)?;
                None
            }
            Some(compression) => {
                let packed = compression.compress(&raw).map_err(Error::io("compress", &path))?;
                let name = format!("{basename}.{}", compression.extension());
                write_bytes(&dir.join(&name), &packed)?;
                Some(file(name, &packed)?)
            }
        };
        let Names { encodings, names, sizes } = self.schema.names.clone();
        Ok(MdsShardInfo {
            column_encodings: encodings,
            column_names: names,
            column_sizes: sizes,
            compression: options.compression.map(|compression| compression.to_string()),
            format: "mds".to_owned(),
            hashes: options.hashes.clone(),
            raw_data,
            samples: self.ends.len(),
            size_limit: options.size_limit.map_or(Value::Null, Value::from),
            version: VERSION,
            zip_data,
        })
    }
}

/// Writes samples into shards `shard.00000.mds`, …
///
/// Without compression, files are those of Streaming's `MDSWriter` byte for byte (but that a first sample larger than the
/// limit does not leave an empty shard in front). Until [`MdsWriter::finish`] the folder holds `progress.json`, which lists
/// the finished shards; a writer that is dropped or killed leaves them, and [`MdsWriter::resume`] goes on after them.
#[derive(Debug)]
pub struct MdsWriter {
    dir: PathBuf,
    schema: MdsSchema,
    progress: ProgressFile,
    /// Encoded samples of the open shard.
    open: Vec<Vec<u8>>,
    open_bytes: u64,
}

/// The content of `progress.json`.
#[derive(Debug, Serialize, Deserialize)]
struct ProgressFile {
    /// The head of the shards: columns, compression, hashes and limit.
    head: String,
    samples: Option<usize>,
    shards: Vec<Done>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Done {
    blake3: String,
    info: MdsShardInfo,
}

impl MdsWriter {
    /// Begins a dataset in `dir`, which is made if absent. Shards that an interrupted writer left there are removed.
    ///
    /// # Errors
    /// [`Error::FolderInUse`] if `dir` holds an index, or shards that no progress file lists; those of
    /// [`MdsSchema::new`]; [`Error::Io`].
    pub fn create(dir: impl AsRef<Path>, columns: Vec<MdsColumn>, options: MdsOptions) -> Result<Self> {
        let (dir, schema) = (dir.as_ref(), MdsSchema::new(columns, options)?);
        fs::create_dir_all(dir).map_err(Error::io("create folder", dir))?;
        refuse_finished(dir)?;
        let path = dir.join(PROGRESS_FILE);
        if let Some(progress) = read_json::<ProgressFile>(&path)? {
            // One shard more than recorded may be there, if the end came between its rename and its record.
            for number in 0..=progress.shards.len() {
                remove_shard(dir, number)?;
            }
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        refuse_foreign_shards(dir)?;
        let head = String::from_utf8_lossy(&schema.head).into_owned();
        let progress = ProgressFile { head, samples: schema.options.samples, shards: Vec::new() };
        let writer = MdsWriter { dir: dir.to_path_buf(), schema, progress, open: Vec::new(), open_bytes: 0 };
        writer.save_progress()?;
        Ok(writer)
    }

    /// Goes on with the dataset that an interrupted writer of the same columns and options left in `dir`, or begins it.
    /// The caller writes on from sample [`MdsWriter::samples_done`].
    ///
    /// # Errors
    /// As [`MdsWriter::create`]; [`Error::ProgressMismatch`] if columns or options differ, [`Error::ChecksumMismatch`],
    /// [`MdsFault::MissingShard`] if a finished shard is not as it was left.
    pub fn resume(dir: impl AsRef<Path>, columns: Vec<MdsColumn>, options: MdsOptions) -> Result<Self> {
        let dir = dir.as_ref();
        let Some(progress) = read_json::<ProgressFile>(&dir.join(PROGRESS_FILE))? else {
            return MdsWriter::create(dir, columns, options);
        };
        let schema = MdsSchema::new(columns, options)?;
        refuse_finished(dir)?;
        let (now, there) = (String::from_utf8_lossy(&schema.head), &progress.head);
        if now != *there || schema.options.samples != progress.samples {
            let show = |head: &str, samples: Option<usize>| format!("{head}, samples {samples:?}");
            return Err(Error::ProgressMismatch {
                path: dir.to_path_buf(),
                what: "columns or options",
                expected: show(&now, schema.options.samples),
                found: show(there, progress.samples),
            });
        }
        progress.shards.iter().try_for_each(|done| check_shard(dir, done))?;
        Ok(MdsWriter { dir: dir.to_path_buf(), schema, progress, open: Vec::new(), open_bytes: 0 })
    }

    /// Samples in finished shards: those that [`MdsWriter::resume`] would keep.
    pub fn samples_done(&self) -> usize {
        self.progress.shards.iter().map(|done| done.info.samples).sum()
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// [`Error::Mds`] with the faults of [`MdsSchema::encode`], which change nothing; [`Error::Io`].
    pub fn write(&mut self, sample: &Sample) -> Result<()> {
        let encoded = self.schema.encode(sample).map_err(|fault| fault.of(&self.dir))?;
        let next = 4 + encoded.len() as u64;
        if !self.schema.has_room(self.open.len(), self.schema.empty_shard() + self.open_bytes, next) {
            self.close_shard()?;
        }
        self.open_bytes += next;
        self.open.push(encoded);
        Ok(())
    }

    /// Finishes the last shard and writes `index.json`; the dataset exists from then on.
    ///
    /// # Errors
    /// [`Error::EmptyDataset`] if nothing was written, [`Error::Io`].
    pub fn finish(mut self) -> Result<MdsIndex> {
        self.close_shard()?;
        if self.progress.shards.is_empty() {
            return Err(Error::EmptyDataset { path: self.dir.clone() });
        }
        let shards = std::mem::take(&mut self.progress.shards);
        let index = MdsIndex { shards: shards.into_iter().map(|done| done.info).collect(), version: VERSION };
        index.write(&self.dir)?;
        let path = self.dir.join(PROGRESS_FILE);
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        Ok(index)
    }

    fn close_shard(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let mut shard = MdsShard::new(&self.schema);
        self.open.drain(..).for_each(|sample| shard.push(&sample));
        self.open_bytes = 0;
        let info = shard.write(&self.dir, &shard_name(self.progress.shards.len()))?;
        let blake3 = file_hash(&self.dir.join(stored_name(&info)))?;
        self.progress.shards.push(Done { blake3, info });
        self.save_progress()
    }

    fn save_progress(&self) -> Result<()> {
        write_json(&self.dir.join(PROGRESS_FILE), &self.progress)
    }
}

/// Streaming's name of shard `number`.
pub fn shard_name(number: usize) -> String {
    format!("shard.{number:05}.mds")
}

/// Name of the file that is really there.
fn stored_name(info: &MdsShardInfo) -> &str {
    &info.zip_data.as_ref().unwrap_or(&info.raw_data).basename
}

fn file_hash(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => MdsFault::MissingShard.of(path),
        _ => Error::io("read", path)(e),
    })?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn check_shard(dir: &Path, done: &Done) -> Result<()> {
    let path = dir.join(stored_name(&done.info));
    let found = file_hash(&path)?;
    if found == done.blake3 {
        return Ok(());
    }
    Err(Error::ChecksumMismatch { path, expected: done.blake3.clone(), found })
}

fn refuse_finished(dir: &Path) -> Result<()> {
    if dir.join(INDEX_FILE).exists() {
        return Err(Error::FolderInUse { path: dir.to_path_buf(), found: INDEX_FILE.to_owned() });
    }
    Ok(())
}

/// Names of the shard files in `dir`.
fn shard_files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy().into_owned();
        if name.starts_with("shard.") && name.contains(".mds") {
            names.push(name);
        }
    }
    Ok(names)
}

fn remove_shard(dir: &Path, number: usize) -> Result<()> {
    let prefix = shard_name(number);
    for name in shard_files(dir)?.iter().filter(|name| name.starts_with(&prefix)) {
        let path = dir.join(name);
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

fn refuse_foreign_shards(dir: &Path) -> Result<()> {
    match shard_files(dir)?.into_iter().next() {
        Some(found) => Err(Error::FolderInUse { path: dir.to_path_buf(), found }),
        None => Ok(()),
    }
}
