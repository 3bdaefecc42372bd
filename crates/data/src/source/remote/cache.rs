//! Fetched shards on this machine's disk, within a limit.
//!
//! ```text
//! 6f1c0a93d2e45b78-train-000003.tar          a whole shard; its time of change is when it was last used
//! .6f1c…-train-000004.tar.partial            one that is being fetched, or was when a process ended
//! .6f1c…-train-000004.tar.partial.json       its length and version: room that is taken, and what a resume checks
//! counts/6f1c…-train-000003.tar.json         number of samples, where no index tells it; stays when the shard goes
//! locks/                                     a lock for each shard, and one for making room
//! ```
//!
//! A shard gets its name when it is whole, on disk and, where the index has a checksum, checked. Any number of threads
//! and processes may share the folder: a shard is fetched by one of them while the others wait for it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::file::RemoteFile;
use crate::files::{partial_name, publish, read_json, write_json};
use crate::webdataset::{map_file, map_open};
use crate::{Error, Result};

/// Pause between two looks for room, while other fetches take it.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest wait for room.
const LONGEST_WAIT: Duration = Duration::from_secs(1800);

/// Facts that an index tells about a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected<'a> {
    /// Length, in bytes.
    pub bytes: Option<u64>,
    /// BLAKE3 in hexadecimal.
    pub blake3: Option<&'a str>,
}

/// Facts about a file that is half fetched; kept beside it, so that another process can go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Length of the whole file, in bytes.
    pub size: u64,
    /// The store's mark of this version of the file.
    pub etag: Option<String>,
}

/// Path of the [`Facts`] of a half-fetched file.
pub(super) fn facts_path(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// The cache's folder.
#[derive(Clone, Debug)]
pub(crate) struct ShardCache {
    dir: PathBuf,
    limit: u64,
}

/// Number of samples of a shard without an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub samples: usize,
    pub bytes: u64,
}

/// A file of the cache that can be removed.
struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    /// Keeps others from going on with a half-fetched one while it is removed.
    _lock: Option<File>,
}

impl ShardCache {
    pub fn open(dir: PathBuf, limit: u64) -> Result<Self> {
        for folder in [&dir, &dir.join("locks"), &dir.join("counts")] {
            fs::create_dir_all(folder).map_err(Error::io("create folder", folder))?;
        }
        Ok(ShardCache { dir, limit })
    }

    /// Path that a shard has, or would have.
    pub fn path(&self, file: &RemoteFile) -> PathBuf {
        let hash = blake3::hash(file.address().as_bytes()).to_hex();
        self.dir.join(format!("{}-{}", &hash[..16], file.name()))
    }

    /// The shard, fetched now unless it is here; and whether it had to be.
    ///
    /// # Errors
    /// [`Error::Fetch`], [`Error::SizeMismatch`], [`Error::ChecksumMismatch`], [`Error::Io`];
    /// [`Error::InvalidArgument`] if the shard is larger than the cache may be.
    pub fn get(&self, file: &RemoteFile, expected: Expected<'_>) -> Result<(Mmap, bool)> {
        let path = self.path(file);
        if let Some(map) = self.here(&path, expected)? {
            return Ok((map, false));
        }
        let _lock = self.lock(&path)?;
        // Another one may have fetched it in the meantime.
        if let Some(map) = self.here(&path, expected)? {
            return Ok((map, false));
        }
        // Damage on the way is not there the next time; damage at the source is.
        let map = match self.fetch(file, &path, expected) {
            Err(Error::ChecksumMismatch { .. }) => self.fetch(file, &path, expected)?,
            other => other?,
        };
        Ok((map, true))
    }

    /// Marks a shard as last used at `time`, as far as the file system allows: only the order of leaving depends on it.
    pub fn mark(&self, file: &RemoteFile, time: SystemTime) {
        if let Ok(file) = File::open(self.path(file)) {
            let _ = file.set_modified(time);
        }
    }

    /// Number of samples that was counted in a shard without an index.
    pub fn count(&self, file: &RemoteFile) -> Result<Option<Count>> {
        read_json(&self.count_path(file))
    }

    /// Keeps the number of samples that was counted.
    pub fn keep_count(&self, file: &RemoteFile, count: Count) -> Result<()> {
        let _lock = self.lock(&self.path(file))?;
        write_json(&self.count_path(file), &count)
    }

    fn count_path(&self, file: &RemoteFile) -> PathBuf {
        let name = self.path(file).file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.dir.join("counts").join(format!("{name}.json"))
    }

    /// A whole shard, marked as used now. One of another length than it should have is of another version.
    fn here(&self, path: &Path, expected: Expected<'_>) -> Result<Option<Mmap>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", path)(e)),
        };
        let bytes = file.metadata().map_err(Error::io("read", path))?.len();
        if expected.bytes.is_some_and(|expected| expected != bytes) {
            return Ok(None);
        }
        // As in `mark`.
        let _ = file.set_modified(SystemTime::now());
        map_open(path, &file).map(Some)
    }

    /// Fetches a shard whose lock is held.
    fn fetch(&self, file: &RemoteFile, path: &Path, expected: Expected<'_>) -> Result<Mmap> {
        let partial = partial_name(path);
        file.fetch(&partial, expected.bytes, |facts| self.make_room(path, facts))?;
        if let Some(expected) = expected.blake3 {
            let found = blake3::hash(&map_file(&partial)?).to_hex().to_string();
            if found != expected {
                remove(&partial)?;
                remove(&facts_path(&partial))?;
                let (path, expected) = (file.shown().into(), expected.to_owned());
                return Err(Error::ChecksumMismatch { path, expected, found });
            }
        }
        let out = File::options().append(true).open(&partial).map_err(Error::io("open", &partial))?;
        publish(out, path)?;
        remove(&facts_path(&partial))?;
        tracing::info!(url = %file.shown(), "shard fetched");
        map_file(path)
    }

    fn lock(&self, path: &Path) -> Result<File> {
        let path = self.lock_path(path);
        let file = open_lock(&path)?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    fn lock_path(&self, path: &Path) -> PathBuf {
        self.dir.join("locks").join(path.file_name().unwrap_or_default())
    }

    /// Makes room for a shard and takes it, by writing its facts. Waits while other fetches leave too little.
    fn make_room(&self, path: &Path, facts: &Facts) -> Result<()> {
        if facts.size > self.limit {
            let detail = format!(
                "a shard of {} bytes does not fit into {} ({})",
                facts.size,
                self.limit,
                path.file_name().unwrap_or_default().to_string_lossy()
            );
            return Err(Error::InvalidArgument { what: "shard cache limit", detail });
        }
        let started = std::time::Instant::now();
        loop {
            let lock = self.lock(Path::new("room"))?;
            if self.evict(path, self.limit - facts.size)? {
                return write_json(&facts_path(&partial_name(path)), facts);
            }
            drop(lock);
            if started.elapsed() > LONGEST_WAIT {
                let detail = format!("{} bytes are all taken by shards that are being fetched", self.limit);
                return Err(Error::InvalidArgument { what: "shard cache limit", detail });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Removes shards, the longest unused first, until at most `room` bytes are left, `own` not counted; false if those
    /// in the making take more.
    fn evict(&self, own: &Path, room: u64) -> Result<bool> {
        let (mut entries, busy) = self.entries(own)?;
        entries.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.path.cmp(&b.path)));
        let mut total = busy + entries.iter().map(|entry| entry.bytes).sum::<u64>();
        for entry in entries {
            if total <= room {
                break;
            }
            tracing::debug!(shard = %entry.path.display(), "shard leaves the cache");
            remove(&entry.path)?;
            remove(&facts_path(&entry.path))?;
            total -= entry.bytes;
        }
        Ok(total <= room)
    }

    /// The files that can be removed, and the bytes of those that are being fetched.
    fn entries(&self, own: &Path) -> Result<(Vec<Entry>, u64)> {
        let (mut entries, mut busy) = (Vec::new(), 0);
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            // One that another process has just removed takes no room.
            let Ok(meta) = entry.metadata() else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if !meta.is_file() || path == own {
                continue;
            }
            let Some(name) = name.strip_prefix('.') else {
                entries.push(Entry { path, bytes: meta.len(), used, _lock: None });
                continue;
            };
            let Some(shard) = name.strip_suffix(".partial") else { continue };
            if own.file_name().is_some_and(|own| own == shard) {
                continue;
            }
            let facts: Option<Facts> = read_json(&facts_path(&path)).unwrap_or_default();
            let bytes = facts.map_or(0, |facts| facts.size).max(meta.len());
            // Whoever fetches it holds its lock; nobody does if its process ended.
            let lock = open_lock(&self.lock_path(Path::new(shard)))?;
            match lock.try_lock() {
                Ok(()) => entries.push(Entry { path, bytes, used, _lock: Some(lock) }),
                Err(TryLockError::WouldBlock) => busy += bytes,
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
            }
        }
        Ok((entries, busy))
    }
}

fn open_lock(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).map_err(Error::io("open", path))
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}
