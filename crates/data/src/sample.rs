//! One sample: a key and named parts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use calotype_core::{TextFault, decode_text};

use crate::npy::NpyArray;
use crate::webdataset::MappedShard;
use crate::{Error, Result};

/// A sample that owns its bytes, as writers and encoders use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Name, unique in its dataset; may hold `/`, but no `.` after the last one.
    pub key: String,
    /// Parts by extension ("png", "txt", "seg.png", ...), in the extension's order.
    pub parts: BTreeMap<String, Vec<u8>>,
}

/// A sample whose bytes lie elsewhere, in a memory-mapped shard or a [`Sample`], as decoders use it.
#[derive(Clone, Copy, Debug)]
pub struct SampleRef<'a> {
    key: &'a str,
    parts: Parts<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Parts<'a> {
    /// Extensions with their ranges in the bytes.
    Ranges(&'a [(String, Range<usize>)], &'a [u8]),
    /// Parts of a sample that owns them.
    Owned(&'a BTreeMap<String, Vec<u8>>),
}

/// A sample as a source returns it, with the owner of its bytes.
#[derive(Debug)]
pub struct HeldSample<'a>(Held<'a>);

#[derive(Debug)]
enum Held<'a> {
    /// Bytes live as long as the source.
    Borrowed(SampleRef<'a>),
    /// Bytes live as long as the shard, which the source may give up meanwhile.
    Shared(Arc<MappedShard>, usize),
    /// Bytes were read or made for this sample.
    Owned(Sample),
}

impl HeldSample<'_> {
    /// Sample `number` of a shard that may go away.
    ///
    /// # Panics
    /// In [`HeldSample::sample`], if the shard has no such sample.
    pub(crate) fn shared(shard: Arc<MappedShard>, number: usize) -> Self {
        HeldSample(Held::Shared(shard, number))
    }

    /// The sample.
    pub fn sample(&self) -> SampleRef<'_> {
        match &self.0 {
            Held::Borrowed(sample) => *sample,
            Held::Shared(shard, number) => shard.sample(*number),
            Held::Owned(sample) => SampleRef::from(sample),
        }
    }

    /// The sample with bytes of its own; copies them unless they are already.
    pub fn into_sample(self) -> Sample {
        match self.0 {
            Held::Owned(sample) => sample,
            other => HeldSample(other).sample().to_sample(),
        }
    }
}

impl<'a> From<SampleRef<'a>> for HeldSample<'a> {
    fn from(sample: SampleRef<'a>) -> Self {
        HeldSample(Held::Borrowed(sample))
    }
}

impl From<Sample> for HeldSample<'_> {
    fn from(sample: Sample) -> Self {
        HeldSample(Held::Owned(sample))
    }
}

impl<'a> From<&'a Sample> for SampleRef<'a> {
    fn from(sample: &'a Sample) -> Self {
        SampleRef { key: &sample.key, parts: Parts::Owned(&sample.parts) }
    }
}

impl Sample {
    /// A sample without parts.
    pub fn new(key: impl Into<String>) -> Self {
        Sample { key: key.into(), parts: BTreeMap::new() }
    }

    /// The same sample with one more part (which replaces one of the same extension).
    pub fn with(mut self, extension: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.parts.insert(extension.into(), bytes.into());
        self
    }

    /// Bytes of a part.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none.
    pub fn part(&self, extension: &str) -> Result<&[u8]> {
        match self.parts.get(extension) {
            Some(bytes) => Ok(bytes),
            None => Err(missing(&self.key, extension, self.parts.keys())),
        }
    }

    /// A part as text.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none, [`Error::NotText`] if it is not UTF-8. A byte-order mark is left out.
    pub fn text(&self, extension: &str) -> Result<&str> {
        as_text(&self.key, extension, self.part(extension)?)
    }

    /// A part as NumPy array.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none, [`Error::Npy`] if it is no array that is read.
    pub fn array(&self, extension: &str) -> Result<NpyArray> {
        as_array(&self.key, extension, self.part(extension)?)
    }

    /// Sum of the parts' lengths, in bytes.
    pub fn byte_len(&self) -> u64 {
        self.parts.values().map(|bytes| bytes.len() as u64).sum()
    }
}

impl<'a> SampleRef<'a> {
    /// `parts` are extensions with their ranges in `bytes`, checked by the shard's scan.
    pub(crate) fn new(key: &'a str, parts: &'a [(String, Range<usize>)], bytes: &'a [u8]) -> Self {
        SampleRef { key, parts: Parts::Ranges(parts, bytes) }
    }

    /// Name, unique in its dataset.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// Extensions and bytes, in the source's order.
    pub fn parts(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let (ranges, bytes, owned) = match self.parts {
            Parts::Ranges(ranges, bytes) => (ranges, bytes, None),
            Parts::Owned(parts) => (&[][..], &[][..], Some(parts)),
        };
        let ranges = ranges.iter().map(move |(extension, range)| (extension.as_str(), &bytes[range.clone()]));
        ranges.chain(owned.into_iter().flatten().map(|(extension, bytes)| (extension.as_str(), bytes.as_slice())))
    }

    /// Bytes of a part.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none.
    pub fn part(&self, extension: &str) -> Result<&'a [u8]> {
        match self.parts().find(|(name, _)| *name == extension) {
            Some((_, bytes)) => Ok(bytes),
            None => Err(missing(self.key, extension, self.parts().map(|(name, _)| name))),
        }
    }

    /// A part as text.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none, [`Error::NotText`] if it is not UTF-8. A byte-order mark is left out.
    pub fn text(&self, extension: &str) -> Result<&'a str> {
        as_text(self.key, extension, self.part(extension)?)
    }

    /// A part as NumPy array.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if there is none, [`Error::Npy`] if it is no array that is read.
    pub fn array(&self, extension: &str) -> Result<NpyArray> {
        as_array(self.key, extension, self.part(extension)?)
    }

    /// A copy that owns its bytes.
    pub fn to_sample(&self) -> Sample {
        let parts = self.parts().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        Sample { key: self.key.to_owned(), parts }
    }
}

fn missing(key: &str, part: &str, present: impl Iterator<Item = impl AsRef<str>>) -> Error {
    let present: Vec<String> = present.map(|name| name.as_ref().to_owned()).collect();
    let present = if present.is_empty() { "no parts".to_owned() } else { present.join(", ") };
    Error::MissingPart { key: key.to_owned(), part: part.to_owned(), present }
}

fn as_text<'b>(key: &str, part: &str, bytes: &'b [u8]) -> Result<&'b str> {
    let bad = |fault| Error::NotText { key: key.to_owned(), part: part.to_owned(), fault };
    match decode_text(bytes).map_err(bad)? {
        Cow::Borrowed(text) => Ok(text),
        // A part is handed out as it lies; folders, whose captions people write, read UTF-16.
        Cow::Owned(_) => Err(bad(TextFault::Utf16)),
    }
}

fn as_array(key: &str, part: &str, bytes: &[u8]) -> Result<NpyArray> {
    NpyArray::from_bytes(bytes).map_err(|source| Error::Npy { key: key.to_owned(), part: part.to_owned(), source })
}
