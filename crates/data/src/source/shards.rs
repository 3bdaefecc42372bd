//! Tar shards by name: lists and patterns of files, here and on other machines.
//!
//! The number of samples of each shard must be known before an order can be made. It is taken from the first of these
//! files that lies beside the shards: `index.json` (this project's; with lengths and checksums), `wdinfo.json` (NeMo's, as
//! JSON), `sizes.json` (OpenCLIP's: number by file name). Without any, shards are read for it, which fetches each of them
//! once. Samples of `quarantine.json` are left out, as in local datasets.
//!
//! Shards that are compressed by gzip are unpacked when they are opened, and a few of them stay so.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use calotype_core::decode_text;
use memmap2::Mmap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::remote::{Count, Expected, RemoteFile, ShardCache, Stores, is_remote};
use super::{Source, SourceOptions, braces, quarantined};
use crate::quarantine::{QUARANTINE_FILE, Quarantine};
use crate::sample::HeldSample;
use crate::webdataset::{
    DatasetIndex, INDEX_FILE, LeaveOut, MappedShard, ShardRecord, digest, is_gzip, is_gzip_file, is_plain_name,
    is_shard_name, kept_counts, map_file, named, starts,
};
use crate::{Error, Result, told};

/// Name of NeMo's index, as JSON.
pub const WDINFO_FILE: &str = "wdinfo.json";

/// Name of OpenCLIP's index.
pub const SIZES_FILE: &str = "sizes.json";

/// Most bytes of an index or list on another machine.
const MOST_INDEX_BYTES: u64 = 512 << 20;

/// Shards that stay unpacked at once.
const KEPT_UNPACKED: usize = 8;

/// Threads that read shards of unknown size.
const COUNTING_THREADS: usize = 4;

/// Shards by name, local and remote.
///
/// Those on other machines are fetched into a cache when they are needed. Bytes of samples stay valid while a shard is
/// given up, since samples hold it.
pub struct ShardSet {
    name: String,
    shards: Vec<Shard>,
    folders: Vec<Folder>,
    /// Number of the first sample of each shard, those in quarantine left out.
    starts: Vec<usize>,
    len: usize,
    index: DatasetIndex,
    quarantine: Quarantine,
    cache: Option<ShardCache>,
    read_ahead: usize,
    /// True if shards of this machine are compressed.
    packed: bool,
    /// Held while a shard is unpacked: those who want the same one wait for it.
    unpacking: Mutex<()>,
    open: Mutex<OpenShards>,
}

/// One shard: its record is that of the same number in the index.
struct Shard {
    place: Place,
    folder: usize,
}

/// Place of a file.
#[derive(Clone)]
enum Place {
    Here(PathBuf),
    Remote(RemoteFile),
}

/// A folder that holds some of the shards, and the content of its indices.
struct Folder {
    /// Path or address, for messages.
    shown: String,
    records: HashMap<String, ShardRecord>,
    counts: BTreeMap<String, usize>,
    meta: Map<String, Value>,
    quarantine: Quarantine,
}

/// Shards that are mapped, and when each was last used. The cache's limit bounds the remote ones of them.
#[derive(Default)]
struct OpenShards(HashMap<usize, (Arc<MappedShard>, SystemTime)>);

impl ShardSet {
    /// Opens shards by a specification: paths, addresses, patterns with braces, joined by `::`; an address that ends with
    /// a slash or not in `.tar`, `.tar.gz` or `.tgz` is a folder.
    ///
    /// # Errors
    /// [`Error::BadPattern`]; [`Error::BadSource`] for an address that cannot be used, or a folder of unknown content;
    /// [`Error::BadIndex`]; [`Error::EmptyDataset`]; [`Error::MissingShard`]; where shards must be read for their
    /// numbers of samples, those of [`crate::Dataset::get`] and of fetching: [`Error::Fetch`],
    /// [`Error::ChecksumMismatch`], [`Error::SizeMismatch`]; [`Error::Compressed`] for one that cannot be unpacked.
    pub fn open(spec: &str, options: &SourceOptions) -> Result<Self> {
        ShardSet::open_all(spec, braces::expand_all(spec)?, options)
    }

    /// Opens shards by their paths and addresses; `spec` is what they are called in messages. Errors as
    /// [`ShardSet::open`].
    pub(super) fn open_all(spec: &str, addresses: Vec<String>, options: &SourceOptions) -> Result<Self> {
        let stores = Stores::new(options.remote.clone());
        let mut folders =
            Folders { stores: &stores, quarantine: options.quarantine, folders: Vec::new(), numbers: HashMap::new() };
        let mut shards = Vec::new();
        for address in addresses {
            if address.starts_with("pipe:") {
                let detail = "commands are not run; give the address itself (https, s3, gs, az)".to_owned();
                return Err(Error::BadSource { spec: address, detail });
            }
            match is_remote(&address) && !is_tar(&address) {
                true => folders.shards_of(&address, &mut shards)?,
                false => shards.push(folders.shard(&address)?),
            }
        }
        let folders = folders.folders;
        let remote = shards.iter().any(|shard| matches!(shard.place, Place::Remote(_)));
        let cache = match remote {
            true => Some(ShardCache::open(options.remote.cache_folder(), options.remote.cache_bytes)?),
            false => None,
        };
        ShardSet::build(spec, shards, folders, cache, options.remote.read_ahead)
    }

    fn build(
        spec: &str,
        shards: Vec<Shard>,
        folders: Vec<Folder>,
        cache: Option<ShardCache>,
        read_ahead: usize,
    ) -> Result<Self> {
        let name = spec.chars().take(200).collect();
        let records = records(&shards, &folders, cache.as_ref())?;
        let mut kept = vec![0; shards.len()];
        let mut quarantine = Quarantine::new();
        for (number, folder) in folders.iter().enumerate() {
            let own: Vec<usize> = (0..shards.len()).filter(|shard| shards[*shard].folder == number).collect();
            let files: Vec<&str> = own.iter().map(|shard| records[*shard].file.as_str()).collect();
            // A list may name shards of the folder that are not asked for.
            let asked: Quarantine =
                folder.quarantine.records().filter(|record| files.contains(&record.shard.as_str())).collect();
            let numbers = own.iter().map(|shard| (records[*shard].file.as_str(), records[*shard].samples));
            let counts = kept_counts(&named(&folder.shown, QUARANTINE_FILE), &asked, numbers)?;
            own.iter().zip(counts).for_each(|(shard, count)| kept[*shard] = count);
            asked.records().for_each(|record| {
                quarantine.insert(named(&folder.shown, &record.shard).to_string_lossy(), record.key, record.reason)
            });
        }
        let meta = common_meta(&folders);
        let len = kept.iter().sum();
        if len == 0 {
            return Err(Error::EmptyDataset { path: spec.into() });
        }
        let index = DatasetIndex::new(records, meta);
        let is_packed = |shard: &Shard| matches!(&shard.place, Place::Here(path) if is_gzip_file(path));
        let packed = shards.iter().any(is_packed);
        if packed && told::first_time(Path::new(&name), "gzip") {
            tracing::warn!(
                source = name,
                "shards are compressed by gzip, and unpacked whenever they are opened; `calotype data convert` does it once"
            );
        }
        let starts = starts(kept);
        let (unpacking, open) = Default::default();
        Ok(ShardSet {
            name,
            shards,
            folders,
            starts,
            len,
            index,
            quarantine,
            cache,
            read_ahead,
            packed,
            unpacking,
            open,
        })
    }

    /// The shards' names, numbers of samples, lengths and checksums, as far as they are known.
    pub fn index(&self) -> &DatasetIndex {
        &self.index
    }

    fn lock(&self) -> MutexGuard<'_, OpenShards> {
        // Nothing that can panic happens under the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shard `number`, mapped and fetched as needed; and whether it had to be fetched.
    fn shard(&self, number: usize) -> Result<(Arc<MappedShard>, bool)> {
        if let Some(shard) = self.lock().take(number) {
            return Ok((shard, false));
        }
        let record = &self.index.shards[number];
        let Shard { place, folder } = &self.shards[number];
        self.mark_used();
        let (map, fetched) = place.map(record, self.cache.as_ref())?;
        let unpacking = is_gzip(&map).then(|| self.unpacking.lock().unwrap_or_else(PoisonError::into_inner));
        if unpacking.is_some()
            && let Some(shard) = self.lock().take(number)
        {
            return Ok((shard, fetched));
        }
        let folder = &self.folders[*folder];
        let leave_out = LeaveOut { list: &folder.quarantine, shard: &record.file, dir: Path::new(&folder.shown) };
        let shard = MappedShard::new(&place.shown(), map, Some(record.samples), Some(leave_out))?;
        let shard = Arc::new(shard);
        self.lock().insert(number, &shard);
        drop(unpacking);
        if fetched {
            self.close_others(number);
        }
        Ok((shard, fetched))
    }

    /// Tells the cache when its shards were last used, before it may have to choose which of them leave.
    fn mark_used(&self) {
        let Some(cache) = &self.cache else { return };
        let used: Vec<(usize, SystemTime)> = self.lock().0.iter().map(|(number, (_, used))| (*number, *used)).collect();
        for (number, used) in used {
            if let Place::Remote(file) = &self.shards[number].place {
                cache.mark(file, used);
            }
        }
    }

    /// Gives up remote shards that the cache gave up: while they are mapped, their room on disk is not free.
    fn close_others(&self, keep: usize) {
        let Some(cache) = &self.cache else { return };
        let gone = |number: &usize| match &self.shards[*number].place {
            Place::Here(_) => false,
            Place::Remote(file) => *number != keep && !cache.path(file).exists(),
        };
        let open: Vec<usize> = self.lock().0.keys().copied().collect();
        let gone: Vec<usize> = open.into_iter().filter(gone).collect();
        let mut open = self.lock();
        gone.iter().for_each(|number| drop(open.0.remove(number)));
    }

    fn place_of(&self, i: usize) -> Result<(usize, usize)> {
        if i >= self.len {
            return Err(Error::OutOfRange { index: i, len: self.len });
        }
        let number = self.starts.partition_point(|start| *start <= i) - 1;
        Ok((number, i - self.starts[number]))
    }
}

impl Source for ShardSet {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        let (number, sample) = self.place_of(i)?;
        Ok(HeldSample::shared(self.shard(number)?.0, sample))
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.index.meta
    }

    fn digest(&self) -> String {
        digest(&self.index, &self.quarantine)
    }

    fn blocks(&self) -> Vec<usize> {
        let ends = self.starts.iter().skip(1).copied().chain([self.len]);
        self.starts.iter().zip(ends).map(|(start, end)| end - start).collect()
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        quarantined(self.quarantine.len())
    }

    fn prepare(&self, i: usize) -> Result<bool> {
        let (number, _) = self.place_of(i)?;
        Ok(self.shard(number)?.1)
    }

    fn read_ahead(&self) -> usize {
        if self.cache.is_some() || self.packed { self.read_ahead } else { 0 }
    }
}

impl OpenShards {
    /// Keeps a shard; of those that are unpacked only the latest, for each takes room on disk.
    fn insert(&mut self, number: usize, shard: &Arc<MappedShard>) {
        self.0.insert(number, (Arc::clone(shard), SystemTime::now()));
        let unpacked = self.0.iter().filter(|(_, (shard, _))| shard.is_unpacked());
        let mut unpacked: Vec<(SystemTime, usize)> = unpacked.map(|(number, (_, used))| (*used, *number)).collect();
        unpacked.sort();
        let surplus = unpacked.len().saturating_sub(KEPT_UNPACKED);
        unpacked[..surplus].iter().for_each(|(_, number)| drop(self.0.remove(number)));
    }

    fn take(&mut self, number: usize) -> Option<Arc<MappedShard>> {
        let (shard, used) = self.0.get_mut(&number)?;
        *used = SystemTime::now();
        Some(Arc::clone(shard))
    }
}

impl Place {
    fn shown(&self) -> PathBuf {
        match self {
            Place::Here(path) => path.clone(),
            Place::Remote(file) => file.shown().into(),
        }
    }

    /// Reads a small file; `None` if it is absent.
    fn read(&self) -> Result<Option<Bytes>> {
        match self {
            Place::Here(path) => match std::fs::read(path) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::io("read", path)(e)),
            },
            Place::Remote(file) => file.read(MOST_INDEX_BYTES),
        }
    }

    fn map(&self, record: &ShardRecord, cache: Option<&ShardCache>) -> Result<(Mmap, bool)> {
        // A length of 0 is not known: no tar is that short.
        let bytes = (record.bytes > 0).then_some(record.bytes);
        match (self, cache) {
            (Place::Remote(file), Some(cache)) => cache.get(file, Expected { bytes, blake3: record.blake3.as_deref() }),
            (Place::Remote(file), None) => Err(Error::MissingShard { path: file.shown().into() }),
            (Place::Here(path), _) => {
                let map = map_file(path)?;
                match bytes.filter(|bytes| *bytes != map.len() as u64) {
                    Some(expected) => Err(Error::SizeMismatch { path: path.clone(), expected, size: map.len() as u64 }),
                    None => Ok((map, false)),
                }
            }
        }
    }
}

/// The folders of shards, each looked into once.
struct Folders<'a> {
    stores: &'a Stores,
    quarantine: bool,
    folders: Vec<Folder>,
    numbers: HashMap<String, usize>,
}

impl Folders<'_> {
    fn place(&self, address: &str) -> Result<Place> {
        if is_remote(address) {
            return Ok(Place::Remote(self.stores.file(address)?));
        }
        let path = match address.strip_prefix("file://") {
            Some(path) => Path::new(path),
            None => Path::new(address),
        };
        Ok(Place::Here(path.to_path_buf()))
    }

    fn shard(&mut self, address: &str) -> Result<Shard> {
        let place = self.place(address)?;
        let folder = self.folder(address)?;
        Ok(Shard { place, folder })
    }

    /// Number of the folder of a file.
    fn folder(&mut self, address: &str) -> Result<usize> {
        let (folder, _, query) = split_address(address);
        let key = format!("{folder}?{query}");
        if let Some(number) = self.numbers.get(&key) {
            return Ok(*number);
        }
        let read = |name: &str| self.place(&join(folder, name, query))?.read();
        let shown = self.place(address)?.shown();
        let shown = shown.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
        let mut found = Folder {
            records: HashMap::new(),
            counts: BTreeMap::new(),
            meta: Map::new(),
            quarantine: Quarantine::new(),
            shown,
        };
        if let Some(bytes) = read(INDEX_FILE)? {
            let index = DatasetIndex::parse(&named(&found.shown, INDEX_FILE), &bytes)?;
            found.records = index.shards.into_iter().map(|record| (record.file.clone(), record)).collect();
            found.meta = index.meta;
        }
        for name in [WDINFO_FILE, SIZES_FILE] {
            // Another index is only looked for where the one before is absent.
            if found.records.is_empty()
                && found.counts.is_empty()
                && let Some(bytes) = read(name)?
            {
                found.counts = parse_counts(&named(&found.shown, name), &bytes)?;
            }
        }
        if self.quarantine
            && let Some(bytes) = read(QUARANTINE_FILE)?
        {
            found.quarantine = Quarantine::parse(&named(&found.shown, QUARANTINE_FILE), &bytes)?;
        }
        self.folders.push(found);
        self.numbers.insert(key, self.folders.len() - 1);
        Ok(self.folders.len() - 1)
    }

    /// Adds all shards of a remote folder: those of its index, else those that its store lists.
    fn shards_of(&mut self, address: &str, shards: &mut Vec<Shard>) -> Result<()> {
        let (folder, name, query) = split_address(address);
        let folder = match name {
            "" => folder.to_owned(),
            _ => format!("{folder}{name}/"),
        };
        let number = self.folder(&join(&folder, INDEX_FILE, query))?;
        let found = &self.folders[number];
        let mut names: Vec<String> = match found.records.is_empty() {
            true => found.counts.keys().cloned().collect(),
            false => found.records.keys().cloned().collect(),
        };
        if names.is_empty() && !address.starts_with("http") {
            let Place::Remote(file) = self.place(&folder)? else { return Ok(()) };
            names = file.list()?;
            names.retain(|name| is_tar(name));
        }
        if names.is_empty() {
            let detail = "has no index.json, wdinfo.json or sizes.json that lists its shards; name them by a pattern \
                          such as 00000..00831 in braces, or index them"
                .to_owned();
            return Err(Error::BadSource { spec: self.folders[number].shown.clone(), detail });
        }
        // In the order of names, which is that of our index too.
        names.sort();
        for name in names {
            let place = self.place(&join(&folder, &name, query))?;
            shards.push(Shard { place, folder: number });
        }
        Ok(())
    }
}

/// The facts on which the indices of all folders agree.
fn common_meta(folders: &[Folder]) -> Map<String, Value> {
    let Some((first, others)) = folders.split_first() else { return Map::new() };
    let mut meta = first.meta.clone();
    let before = meta.len();
    meta.retain(|name, value| others.iter().all(|folder| folder.meta.get(name) == Some(value)));
    if meta.len() < before && told::first_time(Path::new(&first.shown), "facts differ") {
        tracing::warn!(folders = folders.len(), "facts on which the folders' indices differ are left out");
    }
    meta
}

/// Folder with its slash, name, and query of an address or path.
fn split_address(address: &str) -> (&str, &str, &str) {
    let (path, query) = match is_remote(address) {
        true => address.split_once('?').unwrap_or((address, "")),
        false => (address, ""),
    };
    let slash = path.rfind('/').map_or(0, |slash| slash + 1);
    (&path[..slash], &path[slash..], query)
}

fn join(folder: &str, name: &str, query: &str) -> String {
    match query {
        "" => format!("{folder}{name}"),
        _ => format!("{folder}{name}?{query}"),
    }
}

fn is_tar(address: &str) -> bool {
    is_shard_name(split_address(address).1)
}

/// `wdinfo.json`.
#[derive(Deserialize)]
struct WdInfo {
    tar_files: Vec<String>,
    chunk_size: usize,
    total_key_count: usize,
}

/// An index that gives numbers of samples alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Counts {
    WdInfo(WdInfo),
    Sizes(BTreeMap<String, usize>),
}

/// Numbers of samples by shard, from the bytes of `wdinfo.json` or `sizes.json`; `path` is for messages.
///
/// # Errors
/// [`Error::BadIndex`] if they are neither, or counts contradict each other.
pub fn parse_counts(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, usize>> {
    let bad = |detail: String| Error::BadIndex { path: path.to_path_buf(), detail };
    let text = decode_text(bytes).map_err(|fault| bad(fault.to_string()))?;
    let parsed: Counts = serde_json::from_str(&text).map_err(|e| {
        bad(format!("is neither {{tar_files, chunk_size, total_key_count}} nor numbers of samples by file ({e})"))
    })?;
    let counts = match parsed {
        Counts::Sizes(counts) => counts,
        Counts::WdInfo(WdInfo { tar_files, chunk_size, total_key_count }) => {
            if tar_files.len().checked_mul(chunk_size) != Some(total_key_count) {
                let detail = format!("{} shards of {chunk_size} samples are not {total_key_count}", tar_files.len());
                return Err(bad(detail));
            }
            tar_files.into_iter().map(|name| (name, chunk_size)).collect()
        }
    };
    if let Some(name) = counts.keys().find(|name| !is_plain_name(name)) {
        return Err(bad(format!("shard name `{name}` is not a plain file name")));
    }
    match counts.values().try_fold(0usize, |sum, count| sum.checked_add(*count)) {
        Some(_) => Ok(counts),
        None => Err(bad("the numbers of samples are too large".to_owned())),
    }
}

/// A record for each shard: by its folder's index, or by reading it.
fn records(shards: &[Shard], folders: &[Folder], cache: Option<&ShardCache>) -> Result<Vec<ShardRecord>> {
    let known: Vec<Option<ShardRecord>> = shards.iter().map(|shard| shard.known(&folders[shard.folder])).collect();
    let unknown: Vec<usize> = (0..shards.len()).filter(|number| known[*number].is_none()).collect();
    if let Some(first) = unknown.first()
        && told::first_time(&shards[*first].place.shown(), "no index")
    {
        tracing::info!(shards = unknown.len(), "no index tells how many samples these have: reading them");
    }
    let next = Mutex::new(unknown.iter());
    let found = Mutex::new(HashMap::new());
    std::thread::scope(|scope| {
        for _ in 0..COUNTING_THREADS.min(unknown.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(number) = number else { return };
                    let record = shards[*number].counted(cache);
                    let failed = record.is_err();
                    found.lock().unwrap_or_else(PoisonError::into_inner).insert(*number, record);
                    if failed {
                        return;
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The failure of the first shard in their order, whichever thread came upon one first.
    if let Some(number) = unknown.iter().find(|number| found.get(number).is_some_and(Result::is_err))
        && let Some(Err(error)) = found.remove(number)
    {
        return Err(error);
    }
    let records = known.into_iter().enumerate().map(|(number, record)| match record {
        Some(record) => Ok(record),
        None => found.remove(&number).unwrap_or(Err(Error::MissingShard { path: shards[number].place.shown() })),
    });
    records.collect()
}

impl Shard {
    fn name(&self) -> String {
        match &self.place {
            Place::Here(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Place::Remote(file) => file.name().to_owned(),
        }
    }

    /// By the folder's indices.
    fn known(&self, folder: &Folder) -> Option<ShardRecord> {
        let file = self.name();
        if let Some(record) = folder.records.get(&file) {
            return Some(record.clone());
        }
        let samples = *folder.counts.get(&file)?;
        Some(ShardRecord { file, samples, bytes: 0, blake3: None })
    }

    /// By reading the shard, or by the count that was kept when it was read before.
    fn counted(&self, cache: Option<&ShardCache>) -> Result<ShardRecord> {
        let mut record = ShardRecord { file: self.name(), samples: 0, bytes: 0, blake3: None };
        let kept = match (&self.place, cache) {
            (Place::Remote(file), Some(cache)) => Some((file, cache)),
            _ => None,
        };
        if let Some((file, cache)) = kept
            && let Some(Count { samples, bytes }) = cache.count(file)?
        {
            (record.samples, record.bytes) = (samples, bytes);
            return Ok(record);
        }
        let (map, _) = self.place.map(&record, cache)?;
        let shard = MappedShard::new(&self.place.shown(), map, None, None)?;
        (record.samples, record.bytes) = (shard.len(), shard.bytes());
        if let Some((file, cache)) = kept {
            cache.keep_count(file, Count { samples: record.samples, bytes: record.bytes })?;
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_apart_and_together() {
        assert_eq!(split_address("https://h/a/x.tar?sig=a/b"), ("https://h/a/", "x.tar", "sig=a/b"));
        assert_eq!(split_address("a?b/x.tar"), ("a?b/", "x.tar", ""));
        assert_eq!(split_address("x.tar"), ("", "x.tar", ""));
        assert_eq!(join("s3://b/a/", "index.json", ""), "s3://b/a/index.json");
        assert_eq!(join("https://h/", "index.json", "k=1"), "https://h/index.json?k=1");
    }

    #[test]
    fn numbers_of_samples_are_read_and_checked() {
        let path = Path::new("d/wdinfo.json");
        let parse = |text: &str| parse_counts(path, text.as_bytes());
        let two = parse(r#"{"tar_files": ["a.tar", "b.tar"], "chunk_size": 3, "total_key_count": 6}"#).unwrap();
        assert_eq!(two, parse(r#"{"b.tar": 3, "a.tar": 3}"#).unwrap());
        for (text, part) in [
            ("", "neither"),
            ("[]", "neither"),
            (r#"{"a.tar": -1}"#, "neither"),
            (r#"{"a.tar": "3"}"#, "neither"),
            (r#"{"tar_files": ["a.tar"], "chunk_size": 3, "total_key_count": 4}"#, "are not 4"),
            (r#"{"tar_files": ["../a.tar"], "chunk_size": 1, "total_key_count": 1}"#, "plain file name"),
            (r#"{"a.tar": 18446744073709551615, "b.tar": 1}"#, "too large"),
            (r#"{"/etc/x.tar": 1}"#, "plain file name"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("d/wdinfo.json") && error.contains(part), "{error}");
        }
    }
}
