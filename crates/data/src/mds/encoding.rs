//! Columns' encodings: between the bytes in a shard and the bytes of a sample's part.
//!
//! Content of a part, by encoding:
//!
//! | encoding | part |
//! |---|---|
//! | `bytes`, `jpeg`, `png` | the same bytes |
//! | `str`, `json` | the same text (UTF-8; JSON is checked) |
//! | `int`, `int8` … `uint64`, `float16` … `float64` | the number in decimal digits |
//! | `str_int`, `str_float`, `str_decimal` | the digits as they are stored |
//! | `ndarray`, `ndarray:DTYPE`, `ndarray:DTYPE:N,N` | a `.npy` file |
//! | `pil` | PNG when read; any image file when written |
//! | `jpeg_array`, `list[jpeg]`, `list[png]`, `list[pil]` | one part each, `column.0000`, `column.0001`, … |
//! | `pkl` | JSON when read (refused for what is no plain data); never written |

use std::fmt;
use std::str::FromStr;

use half::f16;

use super::array::{self, ArrayType};
use super::{image, pickle};
use crate::Sample;

/// The encodings, for messages and help.
pub const ENCODINGS: &str = "bytes, str, int, uint8, uint16, uint32, uint64, int8, int16, int32, int64, float16, float32, \
                             float64, str_int, str_float, str_decimal, ndarray, ndarray:DTYPE, ndarray:DTYPE:N,N, pil, \
                             jpeg, png, jpeg_array, list[pil], list[jpeg], list[png], json, pkl";

/// Form in which a column's values are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Bytes as they are, of this kind.
    Raw(RawKind),
    /// A number of fixed width, little-endian.
    Scalar(Scalar),
    /// A number as decimal text.
    Digits(Digits),
    /// A NumPy array; type and shape may be fixed.
    Array {
        /// Type of the values, if it is the same in all samples.
        kind: Option<ArrayType>,
        /// Lengths of the axes, if they are the same in all samples.
        shape: Option<Vec<usize>>,
    },
    /// An image as Pillow has it in memory.
    Pil,
    /// Several JPEG files.
    JpegArray,
    /// Several images.
    List(ListKind),
    /// A Python pickle.
    Pickle,
}

/// Values that are stored as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawKind {
    /// Any bytes.
    Bytes,
    /// UTF-8.
    Text,
    /// A JSON text.
    Json,
    /// A JPEG file.
    Jpeg,
    /// A PNG file.
    Png,
}

/// Numbers of fixed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all")]
pub enum Scalar {
    Int,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Int8,
    Int16,
    Int32,
    Int64,
    Float16,
    Float32,
    Float64,
}

/// Numbers of any length as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digits {
    /// A whole number.
    Int,
    /// A floating-point number.
    Float,
    /// A decimal number.
    Decimal,
}

/// Elements of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Images as Pillow has them in memory.
    Pil,
    /// JPEG files.
    Jpeg,
    /// PNG files.
    Png,
}

/// The names of the encodings without arguments.
static NAMES: [(&str, Encoding); 28] = [
    ("bytes", Encoding::Raw(RawKind::Bytes)),
    ("str", Encoding::Raw(RawKind::Text)),
    ("json", Encoding::Raw(RawKind::Json)),
    ("jpeg", Encoding::Raw(RawKind::Jpeg)),
    ("png", Encoding::Raw(RawKind::Png)),
    ("int", Encoding::Scalar(Scalar::Int)),
    ("uint8", Encoding::Scalar(Scalar::UInt8)),
    ("uint16", Encoding::Scalar(Scalar::UInt16)),
    ("uint32", Encoding::Scalar(Scalar::UInt32)),
    ("uint64", Encoding::Scalar(Scalar::UInt64)),
    ("int8", Encoding::Scalar(Scalar::Int8)),
    ("int16", Encoding::Scalar(Scalar::Int16)),
    ("int32", Encoding::Scalar(Scalar::Int32)),
    ("int64", Encoding::Scalar(Scalar::Int64)),
    ("float16", Encoding::Scalar(Scalar::Float16)),
    ("float32", Encoding::Scalar(Scalar::Float32)),
    ("float64", Encoding::Scalar(Scalar::Float64)),
    ("str_int", Encoding::Digits(Digits::Int)),
    ("str_float", Encoding::Digits(Digits::Float)),
    ("str_decimal", Encoding::Digits(Digits::Decimal)),
    ("ndarray", Encoding::Array { kind: None, shape: None }),
    ("pil", Encoding::Pil),
    ("jpeg_array", Encoding::JpegArray),
    ("jpegarray", Encoding::JpegArray),
    ("list[pil]", Encoding::List(ListKind::Pil)),
    ("list[jpeg]", Encoding::List(ListKind::Jpeg)),
    ("list[png]", Encoding::List(ListKind::Png)),
    ("pkl", Encoding::Pickle),
];

/// A text that names no encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no encoding of MDS; there are {ENCODINGS}")]
pub struct UnknownEncoding;

impl FromStr for Encoding {
    type Err = UnknownEncoding;

    fn from_str(text: &str) -> Result<Self, UnknownEncoding> {
        if let Some((_, encoding)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(encoding.clone());
        }
        let arguments = text.strip_prefix("ndarray:").ok_or(UnknownEncoding)?;
        let (kind, shape) = arguments.split_once(':').map_or((arguments, None), |(kind, shape)| (kind, Some(shape)));
        let kind = Some(ArrayType::named(kind).ok_or(UnknownEncoding)?);
        let axis = |text: &str| text.trim().parse().ok().filter(|axis| *axis > 0).ok_or(UnknownEncoding);
        let shape: Option<Vec<usize>> = shape.map(|shape| shape.split(',').map(axis).collect()).transpose()?;
        let encoding = Encoding::Array { kind, shape };
        match &encoding {
            Encoding::Array { shape: Some(_), .. } if encoding.fixed_size().is_none() => Err(UnknownEncoding),
            _ => Ok(encoding),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Encoding::Array { kind: Some(kind), shape } = self {
            write!(f, "ndarray:{}", kind.name())?;
            let Some(shape) = shape else { return Ok(()) };
            return write!(f, ":{}", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(","));
        }
        let name = NAMES.iter().find(|(_, encoding)| encoding == self).map_or("ndarray", |(name, _)| name);
        f.write_str(name)
    }
}

impl Scalar {
    fn size(self) -> usize {
        match self {
            Scalar::UInt8 | Scalar::Int8 => 1,
            Scalar::UInt16 | Scalar::Int16 | Scalar::Float16 => 2,
            Scalar::UInt32 | Scalar::Int32 | Scalar::Float32 => 4,
            Scalar::Int | Scalar::UInt64 | Scalar::Int64 | Scalar::Float64 => 8,
        }
    }
}

/// Arms of a match over [`Scalar`]: `$body` with `$T` as the number's type.
macro_rules! with_scalar {
    ($scalar:expr, $T:ident => $body:expr) => {
        match $scalar {
            Scalar::Int | Scalar::Int64 => {
                type $T = i64;
                $body
            }
            Scalar::UInt8 => {
                type $T = u8;
                $body
            }
            Scalar::UInt16 => {
                type $T = u16;
                $body
            }
            Scalar::UInt32 => {
                type $T = u32;
                $body
            }
            Scalar::UInt64 => {
                type $T = u64;
                $body
            }
            Scalar::Int8 => {
                type $T = i8;
                $body
            }
            Scalar::Int16 => {
                type $T = i16;
                $body
            }
            Scalar::Int32 => {
                type $T = i32;
                $body
            }
            Scalar::Float16 => {
                type $T = f16;
                $body
            }
            Scalar::Float32 => {
                type $T = f32;
                $body
            }
            Scalar::Float64 => {
                type $T = f64;
                $body
            }
        }
    };
}

impl Encoding {
    /// Bytes of every value, if they are the same for all.
    pub fn fixed_size(&self) -> Option<usize> {
        match self {
            Encoding::Scalar(scalar) => Some(scalar.size()),
            Encoding::Array { kind: Some(kind), shape: Some(shape) } => array::byte_count(*kind, shape),
            _ => None,
        }
    }

    /// Adds the value of column `column` to a sample.
    ///
    /// # Errors
    /// The fault of the value, in words.
    pub(super) fn decode(&self, column: &str, value: &[u8], sample: &mut Sample) -> Result<(), String> {
        let part = match self {
            Encoding::Raw(kind) => {
                kind.check(value)?;
                value.to_vec()
            }
            Encoding::Scalar(scalar) => decode_scalar(*scalar, value)?.into_bytes(),
            Encoding::Digits(digits) => {
                digits.check(value)?;
                value.to_vec()
            }
            Encoding::Array { kind, shape } => array::decode(*kind, shape.as_deref(), value)?,
            Encoding::Pil => image::decode(value)?,
            Encoding::JpegArray => return decode_list(column, value, ListKind::Jpeg, sample),
            Encoding::List(kind) => {
                // The first four bytes are kept free for later versions of the format.
                let value = value.get(4..).ok_or("cut inside a list's head")?;
                return decode_list(column, value, *kind, sample);
            }
            Encoding::Pickle => pickle::decode(value)?,
        };
        sample.parts.insert(column.to_owned(), part);
        Ok(())
    }

    /// The stored form of column `column` of a sample.
    ///
    /// # Errors
    /// The fault of the part, in words, or that it is missing.
    pub(super) fn encode(&self, column: &str, sample: &Sample) -> Result<Vec<u8>, String> {
        let part = || part(column, sample);
        match self {
            Encoding::JpegArray => encode_list(column, ListKind::Jpeg, sample),
            Encoding::List(kind) => {
                let list = encode_list(column, *kind, sample)?;
                Ok([&[0; 4], list.as_slice()].concat())
            }
            Encoding::Raw(kind) => part().and_then(|part| kind.check(part).map(|()| part.to_vec())),
            Encoding::Scalar(scalar) => encode_scalar(*scalar, part()?),
            Encoding::Digits(digits) => part().and_then(|part| digits.check(part).map(|()| part.to_vec())),
            Encoding::Array { kind, shape } => array::encode(*kind, shape.as_deref(), part()?),
            Encoding::Pil => image::encode(part()?),
            Encoding::Pickle => Err("pickles are not written; use json, ndarray or bytes".to_owned()),
        }
    }
}

fn part<'s>(column: &str, sample: &'s Sample) -> Result<&'s [u8], String> {
    match sample.parts.get(column) {
        Some(part) => Ok(part),
        None if column == super::KEY_COLUMN => Ok(sample.key.as_bytes()),
        None => Err(format!("the sample has no such part; it has {:?}", sample.parts.keys().collect::<Vec<_>>())),
    }
}

impl RawKind {
    fn check(self, value: &[u8]) -> Result<(), String> {
        match self {
            RawKind::Text => text(value).map(|_| ()),
            RawKind::Json => crate::json::check(value).map_err(|e| format!("no JSON: {e}")),
            RawKind::Bytes | RawKind::Jpeg | RawKind::Png => Ok(()),
        }
    }
}

impl Digits {
    fn check(self, value: &[u8]) -> Result<(), String> {
        let digits = text(value)?.trim();
        let good = match self {
            Digits::Int => {
                let digits = digits.strip_prefix(['-', '+']).unwrap_or(digits);
                !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
            }
            Digits::Float | Digits::Decimal => digits.parse::<f64>().is_ok(),
        };
        if good { Ok(()) } else { Err(format!("`{}` is no number", excerpt(digits))) }
    }
}

fn text(value: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(value).map_err(|e| format!("not UTF-8: {e}"))
}

/// The beginning of a text for a message.
fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}

fn decode_scalar(scalar: Scalar, value: &[u8]) -> Result<String, String> {
    with_scalar!(scalar, T => {
        let bytes = value.try_into().map_err(|_| format!("a number of {} bytes", value.len()))?;
        // The debug form of floats is the shortest text that reads back as the same number.
        Ok(format!("{:?}", T::from_le_bytes(bytes)))
    })
}

fn encode_scalar(scalar: Scalar, part: &[u8]) -> Result<Vec<u8>, String> {
    let digits = text(part)?.trim();
    with_scalar!(scalar, T => {
        let number: T = digits.parse().map_err(|e| format!("`{}` is no value of this column: {e}", excerpt(digits)))?;
        Ok(number.to_le_bytes().to_vec())
    })
}

/// Number of elements, their sizes (`u32` each), the elements.
fn decode_list(column: &str, value: &[u8], kind: ListKind, sample: &mut Sample) -> Result<(), String> {
    let (count, rest) = value.split_first_chunk::<4>().ok_or("cut inside a list's head")?;
    let count = u32::from_le_bytes(*count) as usize;
    let table = count.checked_mul(4).and_then(|bytes| rest.split_at_checked(bytes));
    let (sizes, mut rest) = table.ok_or_else(|| format!("cut inside the sizes of {count} elements"))?;
    for (number, size) in sizes.as_chunks::<4>().0.iter().enumerate() {
        let size = u32::from_le_bytes(*size) as usize;
        let element = rest.split_at_checked(size);
        let (element, after) =
            element.ok_or_else(|| format!("element {number} of {size} bytes reaches past the end"))?;
        rest = after;
        let part = if kind == ListKind::Pil { image::decode(element)? } else { element.to_vec() };
        sample.parts.insert(element_name(column, number), part);
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes after the last element", rest.len()));
    }
    Ok(())
}

fn encode_list(column: &str, kind: ListKind, sample: &Sample) -> Result<Vec<u8>, String> {
    let mut elements = Vec::new();
    while let Some(part) = sample.parts.get(&element_name(column, elements.len())) {
        elements.push(if kind == ListKind::Pil { image::encode(part)? } else { part.clone() });
    }
    let size = |bytes: usize| u32::try_from(bytes).map_err(|_| format!("an element of {bytes} bytes"));
    let mut out = size(elements.len())?.to_le_bytes().to_vec();
    for element in &elements {
        out.extend_from_slice(&size(element.len())?.to_le_bytes());
    }
    out.extend(elements.into_iter().flatten());
    Ok(out)
}

/// Name of the part that holds one element of a list.
fn element_name(column: &str, number: usize) -> String {
    format!("{column}.{number:04}")
}
