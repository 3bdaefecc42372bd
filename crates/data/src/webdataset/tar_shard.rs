//! One shard by itself, read as far as it is whole.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::scan::{ScannedSample, walk};
use crate::{Error, Result, SampleRef};

/// A tar file, open for the stages that look for damage or leave it out. Other than [`super::Dataset`], which refuses
/// a shard at its first fault, this has the samples in front of it, and the fault.
///
/// The file is memory-mapped: it must not be changed meanwhile.
pub struct TarShard {
    path: PathBuf,
    map: Mmap,
    samples: Vec<ScannedSample>,
    passed_by: usize,
    cut_off: bool,
    damage: Option<Error>,
}

impl std::fmt::Debug for TarShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarShard").field("path", &self.path).field("samples", &self.len()).finish_non_exhaustive()
    }
}

impl TarShard {
    /// Opens a shard and reads its headers.
    ///
    /// # Errors
    /// [`Error::MissingShard`], [`Error::Io`]. Damage is no error: see [`TarShard::damage`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::MissingShard { path: path.to_path_buf() },
            _ => Error::io("open", path)(e),
        })?;
        // SAFETY: the map is only read, and its bytes are only handed out as `&[u8]`; the documentation of the type
        // demands that the file stays as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("memory-map", path))?;
        let mut shard =
            TarShard { path: path.to_path_buf(), map, samples: Vec::new(), passed_by: 0, cut_off: false, damage: None };
        if let Err(damage) = shard.scan() {
            // The sample that lies across the fault, or next to it, may lack parts.
            shard.cut_off = shard.samples.pop().is_some();
            shard.damage = Some(damage);
        }
        Ok(shard)
    }

    fn scan(&mut self) -> Result<()> {
        walk(&self.path, &self.map, |name, range| {
            match name {
                Some((key, extension)) => add_part(&mut self.samples, key, extension, range),
                None => self.passed_by += 1,
            }
            Ok(())
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// BLAKE3 of the file, in hexadecimal.
    pub fn blake3(&self) -> String {
        blake3::hash(&self.map).to_hex().to_string()
    }

    /// Number of whole samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// True if there are no whole samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Sample `i` of [`TarShard::len`]; `None` past the end.
    pub fn get(&self, i: usize) -> Option<SampleRef<'_>> {
        self.samples.get(i).map(|sample| SampleRef::new(&sample.key, &sample.parts, &self.map))
    }

    /// The samples, in order. Neighbouring members of one key are a sample; a key may come again, and a part that its
    /// sample has already begins a sample of the same key.
    pub fn samples(&self) -> impl Iterator<Item = SampleRef<'_>> {
        self.samples.iter().map(|sample| SampleRef::new(&sample.key, &sample.parts, &self.map))
    }

    /// Number of members that are no part of a sample.
    pub fn passed_by(&self) -> usize {
        self.passed_by
    }

    /// The fault of the file behind its whole samples, if any: [`Error::TruncatedTar`], [`Error::BadHeader`].
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// True if the damage cut a sample that had begun, which is not among the whole ones.
    pub fn cut_off(&self) -> bool {
        self.cut_off
    }
}

fn add_part(samples: &mut Vec<ScannedSample>, key: String, extension: String, range: Range<usize>) {
    match samples.last_mut() {
        Some(last) if last.key == key && last.parts.iter().all(|(known, _)| *known != extension) => {
            last.parts.push((extension, range));
        }
        _ => samples.push(ScannedSample { key, parts: vec![(extension, range)] }),
    }
}
