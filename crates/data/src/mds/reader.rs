//! Reading MDS datasets.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::hash::hash;
use super::index::{MdsColumn, MdsFileInfo, MdsIndex, MdsShardInfo, read_text};
use super::{INDEX_FILE, MdsFault, shard};
use crate::files::write_bytes;
use crate::quarantine::{QUARANTINE_FILE, Quarantine};
use crate::sample::HeldSample;
use crate::source::{Removed, Source, quarantined};
use crate::{Error, Result, Sample};

/// Settings of an [`MdsDataset`] for reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdsReadOptions {
    /// True if a shard's hashes are compared when one of its samples is first asked for.
    pub verify: bool,
    /// Memory for decompressed shards, in bytes; the last one used is kept in any case.
    pub memory: u64,
    /// Folder where decompressed shards are kept as files (and looked for), instead of in memory.
    pub unpacked: Option<PathBuf>,
}

impl Default for MdsReadOptions {
    /// Verified; 1 GiB of memory (16 shards of Streaming's default size); no folder.
    fn default() -> Self {
        MdsReadOptions { verify: true, memory: 1 << 30, unpacked: None }
    }
}

/// An MDS dataset folder, open for random access.
///
/// Shards are memory-mapped, or decompressed, when one of their samples is first asked for; their lengths, hashes and tables
/// of samples are checked then. Decompressed shards are kept in memory within a limit: read compressed datasets that
/// are larger in the order of their shards, or give [`MdsReadOptions::unpacked`]. The files must not be changed while the
/// dataset is open.
pub struct MdsDataset {
    dir: PathBuf,
    index: MdsIndex,
    digest: String,
    columns: Vec<MdsColumn>,
    options: MdsReadOptions,
    /// Number of the first sample of each shard, those in quarantine counted.
    starts: Vec<usize>,
    /// Number of samples, those in quarantine counted.
    whole: usize,
    removed: Removed,
    meta: Map<String, Value>,
    slots: Vec<Mutex<Slot>>,
    recent: Mutex<Recent>,
}

/// The part of a shard that is in memory.
enum Slot {
    Absent,
    Mapped(Arc<Shard>),
    /// Alive as long as it is among the recent ones, or in use.
    Decompressed(Weak<Shard>),
}

/// A shard whose table of samples was checked.
enum Shard {
    Mapped(Mmap),
    Decompressed(Vec<u8>),
}

impl Deref for Shard {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Shard::Mapped(map) => map,
            Shard::Decompressed(bytes) => bytes,
        }
    }
}

/// Decompressed shards, the last used at the back.
#[derive(Default)]
struct Recent {
    shards: VecDeque<Arc<Shard>>,
    bytes: u64,
    dropped: u64,
}

impl std::fmt::Debug for MdsDataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MdsDataset").field("dir", &self.dir).field("samples", &self.len()).finish_non_exhaustive()
    }
}

impl MdsDataset {
    /// Opens the dataset in `dir`.
    ///
    /// # Errors
    /// [`Error::MissingFolder`], those of [`MdsIndex::read`], [`MdsFault::MissingShard`] and [`MdsFault::Length`] for
    /// files that are not as the index says, [`Error::EmptyDataset`], [`Error::Io`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        MdsDataset::open_with(dir, MdsReadOptions::default())
    }

    /// As [`MdsDataset::open`], with options.
    ///
    /// # Errors
    /// As [`MdsDataset::open`].
    pub fn open_with(dir: impl AsRef<Path>, options: MdsReadOptions) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(Error::MissingFolder { path: dir.to_path_buf() });
        }
        let (text, path) = (read_text(dir)?, dir.join(INDEX_FILE));
        let index = MdsIndex::parse(&text).map_err(|fault| fault.of(&path))?;
        let Some(first) = index.shards.first().filter(|_| index.samples() > 0) else {
            return Err(Error::EmptyDataset { path: dir.to_path_buf() });
        };
        let columns = first.columns().map_err(|fault| fault.of(&path))?;
        let mut starts = Vec::with_capacity(index.shards.len());
        let mut whole = 0;
        for shard in &index.shards {
            check_length(dir, &options, shard)?;
            starts.push(whole);
            whole += shard.samples;
        }
        let slots = index.shards.iter().map(|_| Mutex::new(Slot::Absent)).collect();
        let digest = blake3::hash(&text).to_hex().to_string();
        let (dir, recent, meta) = (dir.to_path_buf(), Mutex::default(), Map::new());
        let removed = Removed::default();
        Ok(MdsDataset { dir, index, digest, columns, options, starts, whole, removed, meta, slots, recent })
    }

    /// The same dataset without the samples that its `quarantine.json` names, by the shard's uncompressed or compressed file
    /// and by key or number; unchanged if there is no such file. Sample numbers close up, [`MdsDataset::len`] shrinks, the
    /// digest is another one; keys that are numbers stay.
    ///
    /// # Errors
    /// [`Error::BadIndex`] if the list cannot be read, or names samples that the dataset has not; [`Error::EmptyDataset`]
    /// if nothing is left; those of [`MdsDataset::get`] for the shards that are named.
    pub fn without_quarantined(mut self) -> Result<Self> {
        let quarantine = Quarantine::read(&self.dir)?;
        let mut numbers = Vec::new();
        for (shard, info) in self.index.shards.iter().enumerate() {
            let files = [Some(&info.raw_data), info.zip_data.as_ref()].into_iter().flatten();
            let names: Vec<&str> = files.map(|file| file.basename.as_str()).collect();
            if names.iter().all(|name| quarantine.len_of(name) == 0) {
                continue;
            }
            let bytes = self.shard(shard)?;
            for place in 0..info.samples {
                let number = self.starts[shard] + place;
                let bytes = shard::sample_bytes(&bytes, place).map_err(|fault| fault.of(&self.raw_path(shard)))?;
                let keys = [shard::key(&self.columns, bytes), Some(number_key(number))];
                let mut keys = keys.iter().flatten();
                if keys.any(|key| names.iter().any(|name| quarantine.contains(name, key))) {
                    numbers.push(number);
                }
            }
        }
        if numbers.len() != quarantine.len() {
            let (path, found) = (self.dir.join(QUARANTINE_FILE), numbers.len());
            let detail = format!("{} samples are listed, the dataset has {found} of them", quarantine.len());
            return Err(Error::BadIndex { path, detail });
        }
        if numbers.is_empty() {
            return Ok(self);
        }
        self.removed = Removed::new(numbers);
        self.digest =
            blake3::hash(format!("{} without {}", self.digest, quarantine.digest()).as_bytes()).to_hex().to_string();
        if self.is_empty() {
            return Err(Error::EmptyDataset { path: self.dir });
        }
        Ok(self)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The index.
    pub fn index(&self) -> &MdsIndex {
        &self.index
    }

    /// BLAKE3 of the index file, and of the quarantine list if there is one: equal for equal datasets.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The columns, in the order of their names.
    pub fn columns(&self) -> &[MdsColumn] {
        &self.columns
    }

    /// Number of samples, those in quarantine left out.
    pub fn len(&self) -> usize {
        self.whole - self.removed.len()
    }

    /// True if there are no samples (never so for a dataset that [`MdsDataset::open`] returned).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample `i`, in the order of the shards.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Mds`] for a damaged sample and, at the first access to a shard, for a damaged
    /// shard; [`Error::Io`].
    pub fn get(&self, i: usize) -> Result<Sample> {
        if i >= self.len() {
            return Err(Error::OutOfRange { index: i, len: self.len() });
        }
        let whole = self.removed.whole(i);
        let number = self.starts.partition_point(|start| *start <= whole) - 1;
        let (shard, place) = (self.shard(number)?, whole - self.starts[number]);
        let sample = shard::sample_bytes(&shard, place)
            .and_then(|bytes| shard::decode(&self.columns, bytes, place, number_key(whole)));
        sample.map_err(|fault| fault.of(&self.raw_path(number)))
    }

    /// Path of shard `number`, uncompressed.
    fn raw_path(&self, number: usize) -> PathBuf {
        self.dir.join(&self.index.shards[number].raw_data.basename)
    }

    /// All samples, in order; errors as [`MdsDataset::get`].
    pub fn iter(&self) -> impl Iterator<Item = Result<Sample>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Shard `number`, brought into memory if it is not there. Threads that want the same one wait for the first of them.
    fn shard(&self, number: usize) -> Result<Arc<Shard>> {
        let mut slot = lock(&self.slots[number]);
        let there = match &*slot {
            Slot::Mapped(shard) => return Ok(Arc::clone(shard)),
            Slot::Decompressed(shard) => shard.upgrade(),
            Slot::Absent => None,
        };
        if let Some(shard) = there {
            self.keep(&shard);
            return Ok(shard);
        }
        let shard = Arc::new(self.load(&self.index.shards[number])?);
        match &*shard {
            Shard::Mapped(_) => *slot = Slot::Mapped(Arc::clone(&shard)),
            Shard::Decompressed(_) => {
                *slot = Slot::Decompressed(Arc::downgrade(&shard));
                self.keep(&shard);
            }
        }
        Ok(shard)
    }

    /// Makes a decompressed shard the most recent one, and lets go of the oldest beyond the limit.
    fn keep(&self, shard: &Arc<Shard>) {
        let mut recent = lock(&self.recent);
        match recent.shards.iter().position(|kept| Arc::ptr_eq(kept, shard)) {
            Some(place) if place + 1 == recent.shards.len() => return,
            Some(place) => drop(recent.shards.remove(place)),
            None => recent.bytes += shard.len() as u64,
        }
        recent.shards.push_back(Arc::clone(shard));
        while recent.bytes > self.options.memory && recent.shards.len() > 1 {
            let oldest = recent.shards.pop_front();
            recent.bytes -= oldest.map_or(0, |oldest| oldest.len() as u64);
            recent.dropped += 1;
            if recent.dropped == 2 * self.slots.len() as u64 {
                tracing::warn!(folder = %self.dir.display(), limit = self.options.memory,
                    "compressed shards are decompressed again and again: allow more memory, or unpack them");
            }
        }
    }

    fn load(&self, info: &MdsShardInfo) -> Result<Shard> {
        let (raw, path) = self.raw(info)?;
        shard::check(&raw, info.samples).map_err(|fault| fault.of(&path))?;
        Ok(raw)
    }

    /// The uncompressed bytes of a shard, and the file that they are from.
    fn raw(&self, info: &MdsShardInfo) -> Result<(Shard, PathBuf)> {
        let raw_path = raw_path(&self.dir, &self.options, info);
        let (Some(zip), Some(path)) = (&info.zip_data, zip_path(&self.dir, &raw_path, info)) else {
            let shard = self.map(&raw_path, &info.raw_data)?;
            return Ok((shard, raw_path));
        };
        let packed = self.map(&path, zip)?;
        let fault = |fault: MdsFault| fault.of(&path);
        let Some(compression) = info.compression().map_err(fault)? else { return Ok((packed, path)) };
        let bytes = compression.decompress(&packed, info.raw_data.bytes).map_err(fault)?;
        self.verify(&bytes, &info.raw_data, &path)?;
        if self.options.unpacked.is_none() {
            return Ok((Shard::Decompressed(bytes), path));
        }
        unpack(&raw_path, &bytes)?;
        Ok((map_file(&raw_path)?, raw_path))
    }

    /// Maps a file of the index, and checks it.
    fn map(&self, path: &Path, info: &MdsFileInfo) -> Result<Shard> {
        let shard = map_file(path)?;
        if shard.len() as u64 != info.bytes {
            return Err(MdsFault::Length { expected: info.bytes, found: shard.len() as u64 }.of(path));
        }
        self.verify(&shard, info, path)?;
        Ok(shard)
    }

    fn verify(&self, bytes: &[u8], info: &MdsFileInfo, path: &Path) -> Result<()> {
        if !self.options.verify {
            return Ok(());
        }
        for (algorithm, expected) in &info.hashes {
            let found = hash(algorithm, bytes).map_err(|fault| fault.of(path))?;
            if !found.eq_ignore_ascii_case(expected) {
                let (algorithm, expected) = (algorithm.clone(), expected.clone());
                return Err(MdsFault::Hash { algorithm, expected, found }.of(path));
            }
        }
        Ok(())
    }
}

impl Source for MdsDataset {
    fn name(&self) -> String {
        self.dir.display().to_string()
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        Ok(self.get(i)?.into())
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    fn digest(&self) -> String {
        self.digest.clone()
    }

    fn blocks(&self) -> Vec<usize> {
        let kept = |(start, info): (&usize, &MdsShardInfo)| {
            info.samples - (self.removed.before(start + info.samples) - self.removed.before(*start))
        };
        self.starts.iter().zip(&self.index.shards).map(kept).collect()
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        quarantined(self.removed.len())
    }
}

/// Key of a sample that has none: its number.
fn number_key(number: usize) -> String {
    format!("{number:09}")
}

/// Path that the uncompressed file has, or would have: beside the compressed one, as Streaming leaves it, or unpacked.
fn raw_path(dir: &Path, options: &MdsReadOptions, info: &MdsShardInfo) -> PathBuf {
    let folder = match &options.unpacked {
        Some(unpacked) if info.zip_data.is_some() => unpacked,
        _ => dir,
    };
    folder.join(&info.raw_data.basename)
}

/// The compressed file, unless the uncompressed one is there already.
fn zip_path(dir: &Path, raw_path: &Path, info: &MdsShardInfo) -> Option<PathBuf> {
    let zip = info.zip_data.as_ref()?;
    if raw_path.is_file() { None } else { Some(dir.join(&zip.basename)) }
}

/// Keeps a decompressed shard as a file. Several processes may do so at once: the bytes are the same.
fn unpack(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create folder", folder))?;
    }
    write_bytes(path, bytes)
}

/// Compares a shard's length without opening it.
fn check_length(dir: &Path, options: &MdsReadOptions, info: &MdsShardInfo) -> Result<()> {
    let raw = raw_path(dir, options, info);
    let (path, expected) = match (zip_path(dir, &raw, info), &info.zip_data) {
        (Some(path), Some(zip)) => (path, zip.bytes),
        _ => (raw, info.raw_data.bytes),
    };
    let found = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MdsFault::MissingShard.of(&path)),
        Err(e) => return Err(Error::io("look at", &path)(e)),
    };
    if found == expected { Ok(()) } else { Err(MdsFault::Length { expected, found }.of(&path)) }
}

fn map_file(path: &Path) -> Result<Shard> {
    let file = calotype_core::open_input(path).map_err(Error::io("open", path))?;
    // SAFETY: the map is only read. Its bytes change only if another program changes the file; bytes are only ever
    // used as `&[u8]`, for which the documentation of `MdsDataset` demands that the files stay as they are.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io("memory-map", path))?;
    Ok(Shard::Mapped(map))
}

/// The data behind the locks are whole at any instant, so one left by a panicking thread is still right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
