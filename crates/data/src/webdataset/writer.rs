//! Writing datasets.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tar::{EntryType, Header};

use super::index::{DatasetIndex, INDEX_FILE, PROGRESS_FILE, ShardRecord, VERSION, is_plain_name};
use super::reader::keys_of_checked_shard;
use super::scan::split_name;
use crate::files::{partial_name, publish, read_json, write_json};
use crate::{Error, Result, Sample};

/// Length of tar blocks, in bytes.
const BLOCK: usize = 512;

/// When a shard is full. A shard holds at least one sample.
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
pub struct ShardWriter {
    dir: PathBuf,
    progress: Progress,
    keys: HashSet<[u8; 16]>,
    open: Option<OpenShard>,
}

/// The content of `progress.json`.
#[derive(Serialize, Deserialize)]
struct Progress {
    version: u32,
    prefix: String,
    limits: ShardLimits,
    meta: Map<String, Value>,
    shards: Vec<ShardRecord>,
}

struct OpenShard {
    file: String,
    out: BufWriter<HashingFile>,
    samples: usize,
    bytes: u64,
}

/// A file that knows the checksum of what was written to it.
struct HashingFile {
    file: File,
    hasher: blake3::Hasher,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
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
            Progress { version: VERSION, prefix: prefix.to_owned(), limits, meta: Map::new(), shards: Vec::new() };
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
        let Some(progress) = read_json::<Progress>(&path)? else {
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
    /// [`Error::Io`].
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
        self.samples_done() + self.open.as_ref().map_or(0, |shard| shard.samples)
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a key or extension that would not be read back as it is, [`Error::MissingPart`] for
    /// a sample without parts, [`Error::DuplicateKey`], [`Error::Io`]. The dataset is unchanged by the first three.
    pub fn write(&mut self, sample: &Sample) -> Result<()> {
        let headers = headers(sample)?;
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
        if self.open.is_none() {
            self.open = Some(open_shard(&self.dir, name)?);
        }
        if let Some(shard) = &mut self.open {
            let path = self.dir.join(&shard.file);
            append(&mut shard.out, sample, &headers).map_err(Error::io("write", &path))?;
            shard.samples += 1;
            shard.bytes += size;
        }
        Ok(())
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

    fn is_full(&self, shard: &OpenShard, next: u64) -> bool {
        let limits = self.progress.limits;
        shard.samples >= limits.samples || shard.bytes + next + 2 * BLOCK as u64 > limits.bytes
    }

    fn shard_name(&self) -> String {
        format!("{}-{:06}.tar", self.progress.prefix, self.progress.shards.len())
    }

    fn close_shard(&mut self) -> Result<()> {
        let Some(shard) = self.open.take() else { return Ok(()) };
        self.progress.shards.push(close_shard(&self.dir, shard)?);
        self.save_progress()
    }

    fn save_progress(&self) -> Result<()> {
        write_json(&self.dir.join(PROGRESS_FILE), &self.progress)
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // A shard that was not finished is of no use to anyone; failing to remove it harms nobody.
        if let Some(shard) = self.open.take() {
            let _ = fs::remove_file(partial_name(&self.dir.join(&shard.file)));
        }
    }
}

/// Writes one shard on its own, atomically, for stages that write many at once; the caller writes the index and sees to it
/// that keys are unique. Without samples there is no file.
///
/// # Errors
/// Those of `samples`, [`Error::InvalidName`] and [`Error::MissingPart`] as [`ShardWriter::write`], [`Error::Io`].
pub fn write_shard(
    dir: &Path,
    file: &str,
    samples: impl IntoIterator<Item = Result<Sample>>,
) -> Result<Option<ShardRecord>> {
    let mut open: Option<OpenShard> = None;
    let mut write = |sample: Sample| {
        let headers = headers(&sample)?;
        let shard = match &mut open {
            Some(shard) => shard,
            None => open.insert(open_shard(dir, file.to_owned())?),
        };
        append(&mut shard.out, &sample, &headers).map_err(Error::io("write", &dir.join(file)))?;
        shard.samples += 1;
        shard.bytes += tar_size(&sample);
        Ok(())
    };
    if let Err(error) = samples.into_iter().try_for_each(|sample| write(sample?)) {
        // As in `Drop`: of no use to anyone.
        let _ = fs::remove_file(partial_name(&dir.join(file)));
        return Err(error);
    }
    open.map(|shard| close_shard(dir, shard)).transpose()
}

/// Bytes that a sample takes in a shard; [`END_BYTES`] come once per shard.
///
/// # Errors
/// [`Error::InvalidName`], [`Error::MissingPart`].
pub fn size_in_shard(sample: &Sample) -> Result<u64> {
    headers(sample)?;
    Ok(tar_size(sample))
}

/// Bytes at the end of every shard.
pub const END_BYTES: u64 = 2 * BLOCK as u64;

fn open_shard(dir: &Path, name: String) -> Result<OpenShard> {
    let partial = partial_name(&dir.join(&name));
    let file = File::create(&partial).map_err(Error::io("create", &partial))?;
    let file = HashingFile { file, hasher: blake3::Hasher::new() };
    Ok(OpenShard { file: name, out: BufWriter::with_capacity(1 << 20, file), samples: 0, bytes: 0 })
}

fn close_shard(dir: &Path, mut shard: OpenShard) -> Result<ShardRecord> {
    let path = dir.join(&shard.file);
    // Two zero blocks end a tar (POSIX.1-1988).
    shard.out.write_all(&[0; 2 * BLOCK]).map_err(Error::io("write", &path))?;
    let HashingFile { file, hasher } = shard.out.into_inner().map_err(|e| Error::io("write", &path)(e.into_error()))?;
    publish(file, &path)?;
    Ok(ShardRecord {
        file: shard.file,
        samples: shard.samples,
        bytes: shard.bytes + END_BYTES,
        blake3: Some(hasher.finalize().to_hex().to_string()),
    })
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
    let Some(progress) = read_json::<Progress>(&path)? else { return Ok(()) };
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

fn check_progress(path: &Path, progress: &Progress) -> Result<()> {
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

fn compare<T: PartialEq + std::fmt::Debug>(dir: &Path, what: &'static str, expected: &T, found: &T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
    Err(Error::ProgressMismatch { path: dir.to_path_buf(), what, expected, found })
}

/// 128 bits: a billion keys collide with probability below 2⁻⁶⁸.
fn short_hash(key: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..16]);
    short
}

/// Bytes that a sample takes in a tar.
fn tar_size(sample: &Sample) -> u64 {
    sample.parts.values().map(|bytes| (BLOCK + bytes.len().next_multiple_of(BLOCK)) as u64).sum()
}

fn append(out: &mut impl Write, sample: &Sample, headers: &[Header]) -> io::Result<()> {
    for (header, bytes) in headers.iter().zip(sample.parts.values()) {
        out.write_all(header.as_bytes())?;
        out.write_all(bytes)?;
        out.write_all(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])?;
    }
    Ok(())
}

/// The headers of a sample's members, all checked before anything is written.
fn headers(sample: &Sample) -> Result<Vec<Header>> {
    if sample.parts.is_empty() {
        let key = sample.key.clone();
        return Err(Error::MissingPart { key, part: "(any)".to_owned(), present: "no parts".to_owned() });
    }
    sample.parts.iter().map(|(extension, bytes)| header(&sample.key, extension, bytes.len() as u64)).collect()
}

/// A USTAR header (POSIX.1-1988) that says nothing of when, where and by whom it was written.
fn header(key: &str, extension: &str, size: u64) -> Result<Header> {
    let name = format!("{key}.{extension}");
    let invalid = |detail: String| Error::InvalidName { name: name.clone(), detail };
    if name.contains('\0') || split_name(&name).is_none_or(|(k, e)| k != key || e != extension || e.is_empty()) {
        let detail = "a key has no dot in its file name, an extension is lower case and not empty";
        return Err(invalid(detail.to_owned()));
    }
    let mut header = Header::new_ustar();
    header.set_path(&name).map_err(|e| invalid(format!("{e}; a tar name has at most 255 bytes")))?;
    if header.path_bytes() != name.as_bytes() {
        return Err(invalid("tar would change it (a leading or doubled `/` or `./`)".to_owned()));
    }
    if size >= 1 << 33 {
        return Err(invalid(format!("{size} bytes; a USTAR member has less than 8 GiB")));
    }
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}
