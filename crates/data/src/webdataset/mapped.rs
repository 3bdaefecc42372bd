//! Memory-mapped shards with their samples, less those in quarantine.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::packed::Content;
use super::scan::{ScannedShard, scan_shard};
use crate::quarantine::{QUARANTINE_FILE, Quarantine};
use crate::{Error, Result, SampleRef};

/// A shard whose headers are read.
#[derive(Debug)]
pub(crate) struct MappedShard {
    content: Content,
    scanned: ScannedShard,
}

/// The samples that a list leaves out of one shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaveOut<'a> {
    /// The dataset's list.
    pub list: &'a Quarantine,
    /// Name of the shard in it.
    pub shard: &'a str,
    /// Folder of the list, for messages.
    pub dir: &'a Path,
}

impl MappedShard {
    /// Reads the headers of a mapped file, which is unpacked if it is compressed; `path` is for messages, `expected` the
    /// number of samples by an index.
    pub fn new(path: &Path, map: Mmap, expected: Option<usize>, leave_out: Option<LeaveOut<'_>>) -> Result<Self> {
        let mut content = Content::new(path, map)?;
        if let Some(damage) = content.damage.take() {
            return Err(damage);
        }
        let scanned = scan_healthy(path, content.tar(), expected, leave_out)?;
        Ok(MappedShard { content, scanned })
    }

    /// True if it takes room on disk while it is open.
    pub fn is_unpacked(&self) -> bool {
        self.content.is_unpacked()
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.scanned.samples.len()
    }

    /// Length of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.content.file().len() as u64
    }

    /// Sample `number`.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn sample(&self, number: usize) -> SampleRef<'_> {
        let sample = &self.scanned.samples[number];
        SampleRef::new(&sample.key, &sample.parts, self.content.tar())
    }
}

/// Scans a shard, compares the number of samples with its index, and takes out those in quarantine.
pub(super) fn scan_healthy(
    path: &Path,
    bytes: &[u8],
    expected: Option<usize>,
    leave_out: Option<LeaveOut<'_>>,
) -> Result<ScannedShard> {
    let mut scanned = scan_shard(path, bytes)?;
    let found = scanned.samples.len();
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(Error::SampleCountMismatch { path: path.to_path_buf(), expected, found });
    }
    if let Some(LeaveOut { list, shard, dir }) = leave_out {
        scanned.samples.retain(|sample| !list.contains(shard, &sample.key));
        let (listed, left_out) = (list.len_of(shard), found - scanned.samples.len());
        if listed != left_out {
            let detail = format!("names {listed} samples of {shard}, which has only {left_out} of them");
            return Err(Error::BadIndex { path: dir.join(QUARANTINE_FILE), detail });
        }
    }
    Ok(scanned)
}

/// The first number of each block, given the blocks' lengths.
pub(crate) fn starts(lengths: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let firsts = lengths.into_iter().scan(0, |next, length| {
        let first = *next;
        *next += length;
        Some(first)
    });
    firsts.collect()
}

/// Maps a whole file into memory.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = calotype_core::open_input(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::MissingShard { path: path.to_path_buf() },
        _ => Error::io("open", path)(e),
    })?;
    map_open(path, &file)
}

/// Maps a whole open file into memory; `path` is for messages.
pub(crate) fn map_open(path: &Path, file: &File) -> Result<Mmap> {
    // SAFETY: the map is only read. Its bytes change only if another program changes the file; bytes are only ever
    // handed out as `&[u8]`, for which the documentation of `Dataset` demands that the files stay as they are.
    unsafe { Mmap::map(file) }.map_err(Error::io("memory-map", path))
}

/// A path that stands for `name` in `place`, which need not be on this machine: for messages.
pub(crate) fn named(place: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("{}/{name}", place.trim_end_matches('/')))
}
