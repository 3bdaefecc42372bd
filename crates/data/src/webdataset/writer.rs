//! Writing datasets.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::header::BLOCK;
use super::index::{DatasetIndex, INDEX_FILE, PROGRESS_FILE, ShardRecord, VERSION, is_plain_name};
use super::reader::keys_of_checked_shard;
use super::shard_file::{ShardFile, headers, tar_size};
use crate::difference::difference;
use crate::files::{read_json, write_json};
use crate::{Error, Result, Sample};

/// Limits at which a shard is full. A shard holds at least one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLimits {
    /// Most samples in a shard.
    pub samples: usize,
    /// Most bytes in a shard, tar headers included.
    pub bytes: u64,
}

impl Default for ShardLimits {
    /// 10,000 samples or 256 MiB: large sequential reads, and enough shards to share out.
    fn default() -> Self {
        ShardLimits { samples: 10_000, bytes: 256 << 20 }
    }
}

/// Writes samples into shards `{prefix}-000000.tar`, ...
///
/// The bytes are a function of the samples and limits alone: headers carry no time, user or machine. Until
/// [`ShardWriter::finish`] the folder holds `progress.json`, which lists the finished shards. A writer that is dropped
/// leaves them; [`ShardWriter::resume`] goes on after them, [`ShardWriter::create`] replaces them.
///
/// ```
/// use calotype_data::{Sample, ShardLimits, ShardWriter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let limits = ShardLimits { samples: 2, ..ShardLimits::default() };
/// let mut writer = ShardWriter::create(folder.path(), "words", limits)?;
/// for (key, text) in [("a", "apple"), ("b", "bread"), ("c", "cheese")] {
///     writer.write(&Sample::new(key).with("txt", text))?;
/// }
/// let index = writer.finish()?;
/// assert_eq!(index.shards.iter().map(|shard| shard.samples).collect::<Vec<_>>(), [2, 1]);
/// assert!(folder.path().join("words-000001.tar").is_file());
/// # Ok(())
/// # }
/// ```
pub struct ShardWriter {
    dir: PathBuf,
    progress: ProgressFile,
    keys: HashSet<[u8; 16]>,
    open: Option<ShardFile>,
}

/// The content of `progress.json`.
#[derive(Serialize, Deserialize)]
struct ProgressFile {
    version: u32,
    prefix: String,
    limits: ShardLimits,
    meta: Map<String, Value>,
    shards: Vec<ShardRecord>,
}

impl ShardWriter {
    /// Begins a dataset in `dir`, which is made if absent.
    ///
    /// Shards that an interrupted writer left (its `progress.json` lists them) are removed; nothing else is.
    ///
    /// # Errors
    /// [`Error::FolderInUse`] if `dir` holds an index or shards of this prefix that no progress file lists,
    /// [`Error::InvalidArgument`] for bad limits or prefix, [`Error::Io`].
    pub fn create(dir: impl AsRef<Path>, prefix: &str, limits: ShardLimits) -> Result<Self> {
        let dir = dir.as_ref();
        check_arguments(prefix, limits)?;
        fs::create_dir_all(dir).map_err(Error::io("create folder", dir))?;
        refuse_finished(dir)?;
        remove_unfinished(dir)?;
        refuse_foreign_shards(dir, prefix)?;
        let progress =
            ProgressFile { version: VERSION, prefix: prefix.to_owned(), limits, meta: Map::new(), shards: Vec::new() };
        let writer = ShardWriter { dir: dir.to_path_buf(), progress, keys: HashSet::new(), open: None };
        writer.save_progress()?;
        Ok(writer)
    }

    /// Goes on with the dataset that an interrupted writer of the same prefix, limits and `meta` left in `dir`, or
    /// begins it if there is none. The caller writes on from sample [`ShardWriter::samples_done`].
    ///
    /// # Errors
    /// As [`ShardWriter::create`]; [`Error::ProgressMismatch`] if the settings differ, [`Error::MissingShard`],
    /// [`Error::TruncatedTar`] or [`Error::ChecksumMismatch`] if a finished shard is not as it was left.
    pub fn resume(dir: impl AsRef<Path>, prefix: &str, limits: ShardLimits, meta: Map<String, Value>) -> Result<Self> {
        let dir = dir.as_ref();
        check_arguments(prefix, limits)?;
        let path = dir.join(PROGRESS_FILE);
        let Some(progress) = read_json::<ProgressFile>(&path)? else {
            let mut writer = ShardWriter::create(dir, prefix, limits)?;
            writer.set_meta(meta)?;
            return Ok(writer);
        };
        refuse_finished(dir)?;
        check_progress(&path, &progress)?;
        compare(dir, "prefix", &prefix, &progress.prefix.as_str())?;
        compare(dir, "shard limit", &limits, &progress.limits)?;
        compare(dir, "meta", &meta, &progress.meta)?;
        let mut keys = HashSet::new();
        for record in &progress.shards {
            keys.extend(keys_of_checked_shard(dir, record)?.iter().map(|key| short_hash(key)));
        }
        tracing::info!(folder = %dir.display(), shards = progress.shards.len(), samples = keys.len(), "finished shards recognised");
        Ok(ShardWriter { dir: dir.to_path_buf(), progress, keys, open: None })
    }

    /// Sets the index's free-form `meta`.
    ///
    /// # Errors
    /// [`Error::Io`] if the progress file cannot be written.
    pub fn set_meta(&mut self, meta: Map<String, Value>) -> Result<()> {
        self.progress.meta = meta;
        self.save_progress()
    }

    /// Samples in finished shards: those that [`ShardWriter::resume`] would keep.
    pub fn samples_done(&self) -> usize {
        self.progress.shards.iter().map(|shard| shard.samples).sum()
    }

    /// Samples written so far, those of the open shard included.
    pub fn samples_written(&self) -> usize {
        self.samples_done() + self.open.as_ref().map_or(0, ShardFile::samples)
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a key or extension that would not be read back as it is, [`Error::MissingPart`] for
    /// a sample without parts, [`Error::DuplicateKey`], [`Error::Io`]. The dataset is unchanged by the first three.
    pub fn write(&mut self, sample: &Sample) -> Result<()> {
        // Checked before anything changes.
        headers(sample)?;
        let size = tar_size(sample);
        if self.open.as_ref().is_some_and(|shard| self.is_full(shard, size)) {
            self.close_shard()?;
        }
        let name = self.shard_name();
        if !self.keys.insert(short_hash(&sample.key)) {
            // Which shard held it first is not kept: a set of short hashes is all that large datasets can afford.
            let first = self.dir.clone();
            return Err(Error::DuplicateKey { key: sample.key.clone(), first, second: self.dir.join(name) });
        }
        match &mut self.open {
            Some(shard) => shard.write(sample),
            None => self.open.insert(ShardFile::create(&self.dir.join(name))?).write(sample),
        }
    }

    /// Finishes the last shard and writes `index.json`; the dataset exists from then on.
    ///
    /// # Errors
    /// [`Error::EmptyDataset`] if nothing was written, [`Error::Io`].
    pub fn finish(mut self) -> Result<DatasetIndex> {
        self.close_shard()?;
        if self.progress.shards.is_empty() {
            return Err(Error::EmptyDataset { path: self.dir.clone() });
        }
        let shards = std::mem::take(&mut self.progress.shards);
        let index = DatasetIndex::new(shards, std::mem::take(&mut self.progress.meta));
        index.write(&self.dir)?;
        let path = self.dir.join(PROGRESS_FILE);
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        Ok(index)
    }

    fn is_full(&self, shard: &ShardFile, next: u64) -> bool {
        let limits = self.progress.limits;
        shard.samples() >= limits.samples || shard.bytes() + next + 2 * BLOCK as u64 > limits.bytes
    }

    fn shard_name(&self) -> String {
        format!("{}-{:06}.tar", self.progress.prefix, self.progress.shards.len())
    }

    fn close_shard(&mut self) -> Result<()> {
        let Some(shard) = self.open.take() else { return Ok(()) };
        self.progress.shards.push(shard.finish()?);
        self.save_progress()
    }

    fn save_progress(&self) -> Result<()> {
        write_json(&self.dir.join(PROGRESS_FILE), &self.progress)
    }
}

fn check_arguments(prefix: &str, limits: ShardLimits) -> Result<()> {
    if !is_plain_name(prefix) || prefix.starts_with('.') {
        let detail = format!("`{prefix}` cannot begin a file name");
        return Err(Error::InvalidArgument { what: "shard prefix", detail });
    }
    if limits.samples == 0 || limits.bytes == 0 {
        return Err(Error::InvalidArgument { what: "shard limits", detail: "must be at least 1".to_owned() });
    }
    Ok(())
}

fn refuse_finished(dir: &Path) -> Result<()> {
    if dir.join(INDEX_FILE).exists() {
        return Err(Error::FolderInUse { path: dir.to_path_buf(), found: INDEX_FILE.to_owned() });
    }
    Ok(())
}

/// Removes the shards that an unfinished writer recorded as its own.
fn remove_unfinished(dir: &Path) -> Result<()> {
    let path = dir.join(PROGRESS_FILE);
    let Some(progress) = read_json::<ProgressFile>(&path)? else { return Ok(()) };
    check_progress(&path, &progress)?;
    tracing::info!(folder = %dir.display(), shards = progress.shards.len(), "shards of an interrupted run removed");
    for record in &progress.shards {
        let shard = dir.join(&record.file);
        match fs::remove_file(&shard) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &shard)(e)),
            _ => {}
        }
    }
    // A crash between a shard's rename and its record leaves one shard more than recorded: it is ours too.
    let next = dir.join(format!("{}-{:06}.tar", progress.prefix, progress.shards.len()));
    match fs::remove_file(&next) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &next)(e)),
        _ => {}
    }
    fs::remove_file(&path).map_err(Error::io("remove", &path))
}

fn refuse_foreign_shards(dir: &Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{prefix}-")) && name.ends_with(".tar") {
            return Err(Error::FolderInUse { path: dir.to_path_buf(), found: name });
        }
    }
    Ok(())
}

fn check_progress(path: &Path, progress: &ProgressFile) -> Result<()> {
    let bad = |detail: String| Error::BadIndex { path: path.to_path_buf(), detail };
    if progress.version != VERSION {
        return Err(bad(format!("version is {}, this program reads {VERSION}", progress.version)));
    }
    if !is_plain_name(&progress.prefix) {
        return Err(bad(format!("prefix `{}` cannot begin a file name", progress.prefix)));
    }
    match progress.shards.iter().find(|shard| !is_plain_name(&shard.file)) {
        Some(shard) => Err(bad(format!("shard name `{}` is not a plain file name", shard.file))),
        None => Ok(()),
    }
}

fn compare<T: PartialEq + Serialize>(dir: &Path, what: &'static str, expected: &T, found: &T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let of_key = |value: &T| Map::from_iter([(what.to_owned(), serde_json::to_value(value).unwrap_or_default())]);
    let differs = difference(&of_key(found), &of_key(expected));
    let [found, expected] = differs.map(|differs| differs.both()).unwrap_or_default();
    Err(Error::ProgressMismatch { path: dir.to_path_buf(), what, expected, found })
}

/// 128 bits: a billion keys collide with probability below 2⁻⁶⁸.
fn short_hash(key: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..16]);
    short
}
