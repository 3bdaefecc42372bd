//! Samples that are made up, for benchmarks of training without files.
//!
//! An address says how many there are and which parts each has, one a segment, as `NAME=KIND`, in the words of
//! `calotype data synth --part`, which writes files:
//!
//! ```text
//! synthetic://100000/npy=array:float32:8,64,64/states.npy=array:float32:77,1024
//! synthetic://100000/bmp=bmp:512x512/txt=words:12
//! synthetic://1000/bmp=bmp:224x224/cls=class:1000/seed=7
//! ```
//!
//! | kind | part |
//! |---|---|
//! | `array:float32:SHAPE` | `.npy` array of standard normal numbers |
//! | `bmp:HEIGHTxWIDTH` | uncompressed image of random levels, which costs a loader next to nothing |
//! | `words:NUMBER` | random words of one to eight letters |
//! | `class:NUMBER` | number of one of so many classes, as text |
//!
//! A segment `seed=N` gives other samples. Sample `i` is a function of the address and `i` alone, so that a stream of them
//! is one of the position in the run, as with files. As of the synthetic data of MosaicML's diffusion-benchmark, images
//! and captions have nothing to do with each other: a network learns nothing of them.

use std::collections::BTreeSet;

use calotype_core::{Purpose, Stream};
use serde_json::{Map, Value};

use super::{Source, SourceOptions};
use crate::npy::NpyArray;
use crate::sample::{HeldSample, Sample};
use crate::{Error, Result};

/// What addresses of made-up samples begin with.
pub const SCHEME: &str = "synthetic://";
/// An address of a thousand images with captions of three words.
pub(crate) const EXAMPLE: &str = "synthetic://1000/bmp=bmp:64x64/txt=words:3";

/// Most samples: positions of an epoch are permuted in 32 bits.
const MOST_SAMPLES: usize = 1 << 31;
/// Most numbers, pixels or words of a part.
const MOST_ELEMENTS: usize = 1 << 28;
/// Most axes of an array.
const MOST_AXES: usize = 8;
/// Longest side of an image.
const LONGEST_SIDE: usize = 1 << 15;
/// Version of what the same address stands for.
const VERSION: u32 = 1;

/// True if `spec` is an address of made-up samples.
pub fn is_synthetic(spec: &str) -> bool {
    spec.starts_with(SCHEME)
}

/// What a part is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Array(Vec<usize>),
    Image { width: usize, height: usize },
    Words(usize),
    Class(usize),
}

/// One part of every sample.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PartSpec {
    extension: String,
    kind: Kind,
}

/// Made-up samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntheticSource {
    spec: String,
    samples: usize,
    seed: u64,
    parts: Vec<PartSpec>,
    meta: Map<String, Value>,
}

impl SyntheticSource {
    /// Reads an address.
    ///
    /// # Errors
    /// [`Error::BadSource`] naming the segment that cannot be, or options that say another kind.
    pub fn open(spec: &str, options: &SourceOptions) -> Result<Self> {
        let bad = |detail: String| Error::BadSource { spec: spec.to_owned(), detail };
        if let Some(kind) = options.kind {
            return Err(bad(format!(
                "is told by its beginning, and the kind is given as {kind:?}; leave the kind out"
            )));
        }
        Self::parse(spec).map_err(bad)
    }

    /// The fault in words, if it is none.
    fn parse(spec: &str) -> std::result::Result<Self, String> {
        let rest = spec.strip_prefix(SCHEME).ok_or_else(|| format!("does not begin with {SCHEME}"))?;
        let mut segments = rest.trim_end_matches('/').split('/');
        let samples = number("number of samples", segments.next().unwrap_or_default(), MOST_SAMPLES)?;
        let (mut seed, mut parts, mut known) = (None, Vec::new(), BTreeSet::new());
        for segment in segments {
            let (name, value) = segment.split_once('=').ok_or_else(|| {
                format!("segment `{segment}` has no `=`; write NAME=KIND, such as npy=array:float32:8,64,64")
            })?;
            if !known.insert(name) {
                return Err(format!("`{name}` stands there twice; remove one"));
            }
            match name {
                "seed" => seed = Some(value.parse::<u64>().map_err(|_| format!("seed `{value}` is no whole number"))?),
                _ => parts.push(PartSpec::parse(name, value)?),
            }
        }
        if parts.is_empty() {
            return Err("names no parts; add one, such as /bmp=bmp:512x512 or /npy=array:float32:8,64,64".to_owned());
        }
        Ok(Self { spec: spec.to_owned(), samples, seed: seed.unwrap_or(0), parts, meta: Map::new() })
    }
}

/// A whole number from 1 to `most`.
fn number(what: &str, text: &str, most: usize) -> std::result::Result<usize, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = plain.then(|| text.parse::<usize>().ok()).flatten().filter(|value| (1..=most).contains(value));
    value.ok_or_else(|| format!("{what} `{text}` is no whole number from 1 to {most}"))
}

/// Lengths of axes or sides.
fn lengths(name: &str, text: &str, between: char, most: usize) -> std::result::Result<Vec<usize>, String> {
    let lengths = text.split(between).map(|length| number(&format!("a length of `{name}`"), length, most));
    let lengths = lengths.collect::<std::result::Result<Vec<_>, _>>()?;
    let elements = lengths.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
    match elements.filter(|&elements| elements <= MOST_ELEMENTS) {
        Some(_) => Ok(lengths),
        None => Err(format!("`{name}` has more than {MOST_ELEMENTS} elements")),
    }
}

impl PartSpec {
    fn parse(extension: &str, text: &str) -> std::result::Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if extension.is_empty() || extension.starts_with('.') || !extension.bytes().all(allowed) {
            return Err(format!("`{extension}` is no extension of a part; use letters, digits, `.`, `_` and `-`"));
        }
        let (kind, size) = text.split_once(':').unwrap_or((text, ""));
        let kind = match kind {
            "array" => {
                let shape = size.strip_prefix("float32:").ok_or_else(|| {
                    format!("`{extension}={text}`: arrays are float32, such as array:float32:8,64,64")
                })?;
                let shape = lengths(extension, shape, ',', MOST_ELEMENTS)?;
                if shape.len() > MOST_AXES {
                    return Err(format!("`{extension}` has {} axes; at most {MOST_AXES}", shape.len()));
                }
                Kind::Array(shape)
            }
            "bmp" => match lengths(extension, size, 'x', LONGEST_SIDE)?[..] {
                [height, width] => Kind::Image { width, height },
                _ => return Err(format!("`{extension}={text}`: an image is HEIGHTxWIDTH, such as bmp:512x512")),
            },
            "words" => Kind::Words(number(&format!("the number of words of `{extension}`"), size, MOST_ELEMENTS)?),
            "class" => Kind::Class(number(&format!("the number of classes of `{extension}`"), size, MOST_ELEMENTS)?),
            other => {
                return Err(format!("`{other}` is no kind of part; there are array, bmp, words and class"));
            }
        };
        Ok(Self { extension: extension.to_owned(), kind })
    }

    fn make(&self, mut stream: Stream) -> Result<Vec<u8>> {
        Ok(match &self.kind {
            Kind::Array(shape) => {
                let mut values = vec![0f32; shape.iter().product()];
                stream.fill_normal(&mut values);
                let array = NpyArray::from_f32(shape, values);
                let failed = |source| Error::Npy { key: SCHEME.to_owned(), part: self.extension.clone(), source };
                array.map_err(failed)?.to_bytes()
            }
            Kind::Image { width, height } => bitmap(*width, *height, &mut stream),
            Kind::Words(count) => words(*count, &mut stream).into_bytes(),
            Kind::Class(count) => stream.below(*count as u64).to_string().into_bytes(),
        })
    }
}

/// Random words with spaces between them.
fn words(count: usize, stream: &mut Stream) -> String {
    let mut text = String::new();
    for _ in 0..count {
        if !text.is_empty() {
            text.push(' ');
        }
        for _ in 0..=stream.below(8) {
            text.push(char::from(b'a' + stream.below(26) as u8));
        }
    }
    text
}

/// An uncompressed image of 24 bits a pixel and random levels (Windows bitmap, version 3: a header of 14 bytes, one of
/// 40, then rows of whole four bytes from the bottom up).
fn bitmap(width: usize, height: usize, stream: &mut Stream) -> Vec<u8> {
    const HEADERS: usize = 54;
    let row = (3 * width).next_multiple_of(4);
    let size = HEADERS + row * height;
    let mut bytes = Vec::with_capacity(size + 4);
    bytes.extend_from_slice(b"BM");
    // Of at most 2^15 pixels a side, all fit into 32 bits.
    for value in [size, 0, HEADERS, 40, width, height] {
        bytes.extend_from_slice(&(value as u32).to_le_bytes());
    }
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&24u16.to_le_bytes());
    for value in [0, row * height, 0, 0, 0, 0] {
        bytes.extend_from_slice(&(value as u32).to_le_bytes());
    }
    while bytes.len() < size {
        bytes.extend_from_slice(&stream.next_u32().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

impl Source for SyntheticSource {
    fn name(&self) -> String {
        self.spec.clone()
    }

    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        if i >= self.samples {
            return Err(Error::OutOfRange { index: i, len: self.samples });
        }
        let count = self.parts.len() as u64;
        let mut sample = Sample::new(format!("{i:09}"));
        for (number, part) in (0u64..).zip(&self.parts) {
            let stream = Stream::new(self.seed, Purpose::Synthetic, i as u64 * count + number);
            sample = sample.with(part.extension.clone(), part.make(stream)?);
        }
        Ok(sample.into())
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    fn digest(&self) -> String {
        blake3::hash(format!("{VERSION}\t{}", self.spec).as_bytes()).to_hex().to_string()
    }

    fn blocks(&self) -> Vec<usize> {
        vec![self.samples]
    }
}
