//! Reading datasets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::index::{DatasetIndex, PROGRESS_FILE, ShardRecord};
use super::mapped::{LeaveOut, map_file, scan_healthy, starts};
use super::packed::{is_gzip, is_shard_name, refuse_others};
use super::scan::{ScannedShard, scan_shard};
use crate::quarantine::{QUARANTINE_FILE, Quarantine};
use crate::sample::HeldSample;
use crate::source::{Source, quarantined};
use crate::{Control, Error, Result, SampleRef, told};

/// A dataset folder, open for random access.
///
/// Shards are memory-mapped, and their headers read when one of their samples is first asked for: opening costs the
/// same for a thousand samples and for a billion. The files must not be changed while the dataset is open (the operating
/// system answers reads past the end of a shortened file with a signal, not with an error).
///
/// ```
/// use calotype_data::{Dataset, Sample, ShardLimits, ShardWriter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let mut writer = ShardWriter::create(folder.path(), "train", ShardLimits::default())?;
/// writer.write(&Sample::new("000000001").with("txt", "a red apple").with("cls", "3"))?;
/// writer.finish()?;
///
/// let dataset = Dataset::open(folder.path())?;
/// assert_eq!(dataset.len(), 1);
/// let sample = dataset.get(0)?;
/// assert_eq!((sample.key(), sample.text("txt")?), ("000000001", "a red apple"));
/// # Ok(())
/// # }
/// ```
pub struct Dataset {
    dir: PathBuf,
    index: DatasetIndex,
    shards: Vec<Shard>,
    quarantine: Quarantine,
    /// Number of the first sample of each shard, those in quarantine left out.
    starts: Vec<usize>,
    /// Number of samples, those in quarantine left out.
    len: usize,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    scanned: OnceLock<ScannedShard>,
}

/// Outcome of [`Dataset::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// Number of shards.
    pub shards: usize,
    /// Number of samples.
    pub samples: usize,
    /// Length of all shards, in bytes.
    pub bytes: u64,
    /// Shards without a recorded checksum: readable, but not known to be what was written.
    pub without_checksum: usize,
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset").field("dir", &self.dir).field("samples", &self.len()).finish_non_exhaustive()
    }
}

impl Dataset {
    /// Opens the dataset in `dir`: by its `index.json`, or, without one, by scanning its `*.tar` files in name order.
    ///
    /// # Errors
    /// [`Error::MissingFolder`], [`Error::MissingShard`], [`Error::TruncatedTar`] or [`Error::SizeMismatch`] (a file
    /// has another length than its index says), [`Error::BadIndex`], [`Error::EmptyDataset`], [`Error::Unfinished`],
    /// [`Error::Compressed`], [`Error::Io`]; when scanning, those of [`Dataset::get`], and [`Error::DuplicateKey`] across shards
    /// for samples that `quarantine.json` does not list.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        check_folder(dir)?;
        let dataset = match DatasetIndex::read(dir)? {
            Some(index) => Dataset::from_index(dir, index)?,
            None => Dataset::from_scan(dir)?,
        };
        if dataset.is_empty() {
            return Err(Error::EmptyDataset { path: dir.to_path_buf() });
        }
        Ok(dataset)
    }

    fn from_index(dir: &Path, index: DatasetIndex) -> Result<Self> {
        let shards = index.shards.iter().map(|record| open_shard(dir, record)).collect::<Result<Vec<_>>>()?;
        Ok(Dataset::build(dir, index, shards))
    }

    fn from_scan(dir: &Path) -> Result<Self> {
        let names = tar_names(dir)?;
        if told::first_time(dir, "no index") {
            tracing::info!(folder = %dir.display(), shards = names.len(), "no index.json: reading the shards' headers");
        }
        let mut records = Vec::with_capacity(names.len());
        let mut shards = Vec::with_capacity(names.len());
        for file in names {
            let path = dir.join(&file);
            let map = map_plain(&path)?;
            let scanned = scan_shard(&path, &map)?;
            records.push(ShardRecord { file, samples: scanned.samples.len(), bytes: map.len() as u64, blake3: None });
            shards.push(Shard { path, map, scanned: OnceLock::from(scanned) });
        }
        let index = DatasetIndex::new(records, Map::new());
        let dataset = Dataset::build(dir, index, shards);
        // What is to be left out may be there twice: a check lists the second of two samples.
        dataset.check_keys(&Quarantine::read(dir)?, &mut Control::default())?;
        Ok(dataset)
    }

    fn build(dir: &Path, index: DatasetIndex, shards: Vec<Shard>) -> Self {
        let starts = starts(index.shards.iter().map(|shard| shard.samples));
        let len = index.samples;
        Dataset { dir: dir.to_path_buf(), index, shards, quarantine: Quarantine::new(), starts, len }
    }

    /// The same dataset without the samples that its `quarantine.json` names; unchanged if there is no such file.
    /// Sample numbers close up, [`Dataset::len`] shrinks, [`Dataset::digest`] is another one.
    ///
    /// That the listed samples exist is checked when their shard is first read.
    ///
    /// # Errors
    /// [`Error::BadIndex`] if the list cannot be read, or names a shard that the dataset has not, or more samples than
    /// a shard has; [`Error::EmptyDataset`] if nothing is left; [`Error::Io`].
    pub fn without_quarantined(mut self) -> Result<Self> {
        let quarantine = Quarantine::read(&self.dir)?;
        if quarantine.is_empty() {
            return Ok(self);
        }
        let records = self.index.shards.iter().map(|shard| (shard.file.as_str(), shard.samples));
        let kept = kept_counts(&self.dir.join(QUARANTINE_FILE), &quarantine, records)?;
        self.len = kept.iter().sum();
        self.starts = starts(kept);
        if self.is_empty() {
            return Err(Error::EmptyDataset { path: self.dir });
        }
        self.shards.iter_mut().for_each(|shard| shard.scanned = OnceLock::new());
        self.quarantine = quarantine;
        Ok(self)
    }

    /// The samples that are left out.
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// A checksum of the index and of the samples that are left out: runs with equal ones see equal samples.
    pub fn digest(&self) -> String {
        digest(&self.index, &self.quarantine)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The index, as read or as scanned.
    pub fn index(&self) -> &DatasetIndex {
        &self.index
    }

    /// Free-form facts of the index.
    pub fn meta(&self) -> &Map<String, Value> {
        &self.index.meta
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no samples (never so for a dataset that [`Dataset::open`] returned).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample `i`, in the order of the shards.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; at the first access to a shard [`Error::TruncatedTar`], [`Error::BadHeader`],
    /// [`Error::DuplicateKey`] (within the shard; [`Dataset::verify`] looks across shards), [`Error::Scattered`],
    /// [`Error::SampleCountMismatch`].
    pub fn get(&self, i: usize) -> Result<SampleRef<'_>> {
        if i >= self.len() {
            return Err(Error::OutOfRange { index: i, len: self.len() });
        }
        let number = self.starts.partition_point(|start| *start <= i) - 1;
        let scanned = self.scanned(number)?;
        let sample = &scanned.samples[i - self.starts[number]];
        Ok(SampleRef::new(&sample.key, &sample.parts, &self.shards[number].map))
    }

    /// All samples, in order; errors as [`Dataset::get`].
    pub fn iter(&self) -> impl Iterator<Item = Result<SampleRef<'_>>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Headers of shard `number`, read at the first call.
    fn scanned(&self, number: usize) -> Result<&ScannedShard> {
        let shard = &self.shards[number];
        if let Some(scanned) = shard.scanned.get() {
            return Ok(scanned);
        }
        // Two threads may both scan; they find the same, and one result is kept.
        let record = &self.index.shards[number];
        let leave_out = LeaveOut { list: &self.quarantine, shard: &record.file, dir: &self.dir };
        let scanned = scan_healthy(&shard.path, &shard.map, Some(record.samples), Some(leave_out))?;
        Ok(shard.scanned.get_or_init(|| scanned))
    }

    /// Reads everything: checksums, headers, sample counts, and keys across shards.
    ///
    /// # Errors
    /// [`Error::ChecksumMismatch`], those of [`Dataset::get`], [`Error::DuplicateKey`] across shards,
    /// [`Error::Interrupted`].
    pub fn verify(&self, control: &mut Control<'_>) -> Result<VerifyReport> {
        let mut report = VerifyReport { shards: self.shards.len(), samples: self.len(), bytes: 0, without_checksum: 0 };
        for (number, shard) in self.shards.iter().enumerate() {
            control.checkpoint("verify", self.starts[number], self.len())?;
            report.bytes += shard.map.len() as u64;
            let Some(expected) = &self.index.shards[number].blake3 else {
                report.without_checksum += 1;
                continue;
            };
            let found = blake3::hash(&shard.map).to_hex().to_string();
            if *expected != found {
                return Err(Error::ChecksumMismatch { path: shard.path.clone(), expected: expected.clone(), found });
            }
        }
        control.report("verify", self.len(), self.len());
        self.check_keys(&Quarantine::new(), control)?;
        Ok(report)
    }

    /// Looks for keys that two shards share, but for the samples of a list.
    fn check_keys(&self, passed_by: &Quarantine, control: &mut Control<'_>) -> Result<()> {
        let mut seen: HashMap<&str, usize> = HashMap::with_capacity(self.len());
        for (number, shard) in self.shards.iter().enumerate() {
            control.checkpoint("verify keys", self.starts[number], self.len())?;
            let file = &self.index.shards[number].file;
            let samples = self.scanned(number)?.samples.iter();
            for sample in samples.filter(|sample| !passed_by.contains(file, &sample.key)) {
                if let Some(first) = seen.insert(&sample.key, number) {
                    return Err(Error::DuplicateKey {
                        key: sample.key.clone(),
                        first: self.shards[first].path.clone(),
                        second: shard.path.clone(),
                    });
                }
            }
        }
        control.report("verify keys", self.len(), self.len());
        Ok(())
    }

    /// Identity of the encoders that made the dataset, if any did ([`crate::precache::encoder_of`]).
    pub fn encoder(&self) -> Option<&str> {
        crate::precache::encoder_of(self.meta())
    }

    /// Fails unless the dataset was made by these encoders ([`crate::precache::require_encoder`]).
    ///
    /// # Errors
    /// [`Error::EncoderMismatch`] if none begins with `wanted`, or `wanted` is empty.
    pub fn require_encoder(&self, wanted: &str) -> Result<()> {
        crate::precache::require_encoder(&self.dir.display().to_string(), self.meta(), wanted)
    }
}

/// Scans the `*.tar` files of `dir`, reads them for their checksums, and writes `index.json` with `meta`.
///
/// # Errors
/// Those of [`Dataset::open`] when scanning, [`Error::FolderInUse`] if there is an index already,
/// [`Error::Interrupted`] (nothing is written then).
pub fn index_folder(
    dir: impl AsRef<Path>,
    meta: Map<String, Value>,
    control: &mut Control<'_>,
) -> Result<DatasetIndex> {
    let dir = dir.as_ref();
    check_folder(dir)?;
    if DatasetIndex::read(dir)?.is_some() {
        return Err(Error::FolderInUse { path: dir.to_path_buf(), found: super::INDEX_FILE.to_owned() });
    }
    let dataset = Dataset::from_scan(dir)?;
    if dataset.is_empty() {
        return Err(Error::EmptyDataset { path: dir.to_path_buf() });
    }
    let mut records = dataset.index.shards.clone();
    for (number, record) in records.iter_mut().enumerate() {
        control.checkpoint("index", dataset.starts[number], dataset.len())?;
        record.blake3 = Some(blake3::hash(&dataset.shards[number].map).to_hex().to_string());
    }
    let index = DatasetIndex::new(records, meta);
    index.write(dir)?;
    control.report("index", dataset.len(), dataset.len());
    Ok(index)
}

/// Keys of a finished shard, after its checksum was compared.
pub(super) fn keys_of_checked_shard(dir: &Path, record: &ShardRecord) -> Result<Vec<String>> {
    let shard = open_shard(dir, record)?;
    let found = blake3::hash(&shard.map).to_hex().to_string();
    match &record.blake3 {
        Some(expected) if *expected != found => {
            Err(Error::ChecksumMismatch { path: shard.path, expected: expected.clone(), found })
        }
        _ => Ok(scan_shard(&shard.path, &shard.map)?.samples.into_iter().map(|sample| sample.key).collect()),
    }
}

/// True if a finished shard is there and has the length and checksum of its record.
pub(crate) fn is_shard_as_recorded(dir: &Path, record: &ShardRecord) -> Result<bool> {
    match open_shard(dir, record) {
        Ok(shard) => {
            let found = blake3::hash(&shard.map).to_hex().to_string();
            Ok(record.blake3.as_ref().is_none_or(|expected| *expected == found))
        }
        Err(Error::MissingShard { .. } | Error::TruncatedTar { .. } | Error::SizeMismatch { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Numbers of samples of shards less those in quarantine; `path` is the list's, for messages.
pub(crate) fn kept_counts<'a>(
    path: &Path,
    quarantine: &Quarantine,
    shards: impl Iterator<Item = (&'a str, usize)>,
) -> Result<Vec<usize>> {
    let bad = |detail: String| Error::BadIndex { path: path.to_path_buf(), detail };
    let mut unseen: BTreeSet<&str> = quarantine.shards().collect();
    let kept = shards.map(|(file, samples)| {
        unseen.remove(file);
        let listed = quarantine.len_of(file);
        samples.checked_sub(listed).ok_or_else(|| bad(format!("names {listed} samples of {file}, which has {samples}")))
    });
    let kept = kept.collect::<Result<Vec<_>>>()?;
    match unseen.first() {
        Some(shard) => Err(bad(format!("names samples of {shard}, which is not part of the dataset"))),
        None => Ok(kept),
    }
}

/// A checksum of an index and of which of its samples are left out.
pub(crate) fn digest(index: &DatasetIndex, quarantine: &Quarantine) -> String {
    match quarantine.is_empty() {
        true => index.digest(),
        false => blake3::hash(format!("{}-{}", index.digest(), quarantine.digest()).as_bytes()).to_hex().to_string(),
    }
}

impl Source for Dataset {
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
        self.meta()
    }

    fn digest(&self) -> String {
        self.digest()
    }

    fn file_of(&self, i: usize) -> String {
        let number = self.starts.partition_point(|start| *start <= i).saturating_sub(1);
        self.shards.get(number).map_or_else(|| self.name(), |shard| shard.path.display().to_string())
    }

    fn blocks(&self) -> Vec<usize> {
        let ends = self.starts.iter().skip(1).copied().chain([self.len]);
        self.starts.iter().zip(ends).map(|(start, end)| end - start).collect()
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        quarantined(self.quarantine.len())
    }
}

fn check_folder(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Err(Error::MissingFolder { path: dir.to_path_buf() });
    }
    Ok(())
}

/// The shards of `dir`, sorted; an error if the dataset there is unfinished.
pub(crate) fn tar_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == PROGRESS_FILE {
            return Err(Error::Unfinished { path: dir.to_path_buf() });
        }
        if is_shard_name(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Maps a shard that is not compressed: bytes of a [`Dataset`] live as long as it does, and so would unpacked copies.
fn map_plain(path: &Path) -> Result<Mmap> {
    let map = map_file(path)?;
    refuse_others(path, &map)?;
    if is_gzip(&map) {
        let detail = "is compressed by gzip; `calotype data convert` unpacks and indexes shards, and so does gunzip";
        return Err(Error::Compressed { path: path.to_path_buf(), detail: detail.to_owned() });
    }
    Ok(map)
}

fn open_shard(dir: &Path, record: &ShardRecord) -> Result<Shard> {
    let path = dir.join(&record.file);
    let map = map_plain(&path)?;
    let (size, expected) = (map.len() as u64, record.bytes);
    if size < expected {
        return Err(Error::TruncatedTar { path, offset: size, needed: expected, size });
    }
    if size > expected {
        return Err(Error::SizeMismatch { path, expected, size });
    }
    Ok(Shard { path, map, scanned: OnceLock::new() })
}
