//! One shard by itself, read as far as it is whole.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::mapped::map_file;
use super::packed::Content;
use super::scan::{ScannedSample, walk};
use crate::{Error, Result, SampleRef};

/// A tar file, open for the stages that look for damage or leave it out. Other than [`super::Dataset`], which refuses
/// a shard at its first fault, this has the samples in front of it, and the fault; and it puts samples together whose
/// members lie apart, as in a tar that is sorted by kind.
///
/// The file is memory-mapped: it must not be changed meanwhile. One that is compressed by gzip is unpacked.
pub struct TarShard {
    path: PathBuf,
    content: Content,
    samples: Vec<ScannedSample>,
    /// Samples whose members do not lie beside each other.
    scattered: usize,
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
    /// [`Error::MissingShard`], [`Error::Compressed`] for a compression that is not read, [`Error::Io`]. Damage is no error:
    /// see [`TarShard::damage`].
    pub fn open(path: &Path) -> Result<Self> {
        let content = Content::new(path, map_file(path)?)?;
        let (samples, scattered, passed_by) = Default::default();
        let mut shard =
            TarShard { path: path.to_path_buf(), content, samples, scattered, passed_by, cut_off: false, damage: None };
        let tar_damage = shard.scan().err();
        // A stream that ends too early is why its tar does.
        if let Some(damage) = shard.content.damage.take().or(tar_damage) {
            // The sample that lies across the fault, or next to it, may lack parts.
            shard.cut_off = shard.samples.pop().is_some();
            shard.damage = Some(damage);
        }
        Ok(shard)
    }

    fn scan(&mut self) -> Result<()> {
        let mut found = Found::default();
        let result = walk(&self.path, self.content.tar(), |name, range| {
            match name {
                Some((key, extension)) => found.add(key, extension, range),
                None => self.passed_by += 1,
            }
            Ok(())
        });
        self.scattered = found.scattered();
        self.samples = found.samples;
        result
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.content.file().len() as u64
    }

    /// BLAKE3 of the file, in hexadecimal.
    pub fn blake3(&self) -> String {
        blake3::hash(self.content.file()).to_hex().to_string()
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
        self.samples.get(i).map(|sample| SampleRef::new(&sample.key, &sample.parts, self.content.tar()))
    }

    /// The samples, in the order of their first members. Members of one key are a sample, those that lie apart from it
    /// included; a part that its sample has already begins a sample of the same key.
    pub fn samples(&self) -> impl Iterator<Item = SampleRef<'_>> {
        self.samples.iter().map(|sample| SampleRef::new(&sample.key, &sample.parts, self.content.tar()))
    }

    /// Number of samples whose members do not lie beside each other: readers of streams, and training, take them for
    /// several samples that lack parts.
    pub fn scattered(&self) -> usize {
        self.scattered
    }

    /// Number of members that are no part of a sample.
    pub fn passed_by(&self) -> usize {
        self.passed_by
    }

    /// The fault of the file behind its whole samples, if any: [`Error::TruncatedTar`], [`Error::BadHeader`],
    /// [`Error::Compressed`].
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// True if the damage cut a sample that had begun, which is not among the whole ones.
    pub fn cut_off(&self) -> bool {
        self.cut_off
    }
}

/// The samples found so far.
#[derive(Default)]
struct Found {
    samples: Vec<ScannedSample>,
    /// The latest sample of each key.
    latest: HashMap<String, usize>,
    /// True for samples that got a part after one of another.
    torn: Vec<bool>,
    /// The sample of the last member.
    last: usize,
}

impl Found {
    fn add(&mut self, key: String, extension: String, range: Range<usize>) {
        let lacks = |place: &usize| self.samples[*place].parts.iter().all(|(known, _)| *known != extension);
        match self.latest.get(&key).copied().filter(lacks) {
            Some(place) => {
                self.torn[place] |= place != self.last;
                self.last = place;
                self.samples[place].parts.push((extension, range));
            }
            None => {
                self.last = self.samples.len();
                self.latest.insert(key.clone(), self.last);
                self.torn.push(false);
                self.samples.push(ScannedSample { key, parts: vec![(extension, range)] });
            }
        }
    }

    fn scattered(&self) -> usize {
        self.torn.iter().filter(|torn| **torn).count()
    }
}
