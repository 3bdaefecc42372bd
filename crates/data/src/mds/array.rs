//! NumPy arrays in MDS columns, from and to `.npy`.
//!
//! Four layouts, by the facts that the encoding itself gives (`streaming/base/format/mds/encodings.py`, class NDArray): the type of
//! the values (1 byte), then the rank and the width of the lengths (`rank << 2 | width`, 1 byte) with the lengths, then
//! the values; type, or type and shape, are left out where the encoding names them.

use crate::npy::{RawNpy, header_bytes};

/// Type of an array's values: its code in MDS, its name in NumPy, its name in `.npy`, its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayType {
    code: u8,
    name: &'static str,
    descr: &'static str,
    size: usize,
}

/// The types that MDS arrays can have.
const TYPES: [ArrayType; 11] = [
    ArrayType { code: 8, name: "uint8", descr: "|u1", size: 1 },
    ArrayType { code: 9, name: "int8", descr: "|i1", size: 1 },
    ArrayType { code: 16, name: "uint16", descr: "<u2", size: 2 },
    ArrayType { code: 17, name: "int16", descr: "<i2", size: 2 },
    ArrayType { code: 18, name: "float16", descr: "<f2", size: 2 },
    ArrayType { code: 32, name: "uint32", descr: "<u4", size: 4 },
    ArrayType { code: 33, name: "int32", descr: "<i4", size: 4 },
    ArrayType { code: 34, name: "float32", descr: "<f4", size: 4 },
    ArrayType { code: 64, name: "uint64", descr: "<u8", size: 8 },
    ArrayType { code: 65, name: "int64", descr: "<i8", size: 8 },
    ArrayType { code: 66, name: "float64", descr: "<f8", size: 8 },
];

/// Most axes that a byte with a width in its low bits can count.
const MOST_AXES: usize = 63;

impl ArrayType {
    /// The type of this name: `uint8`, `float32`.
    pub fn named(name: &str) -> Option<Self> {
        TYPES.into_iter().find(|kind| kind.name == name)
    }

    /// NumPy's name: `float32`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// NumPy's name in `.npy` files: `<f4`.
    pub fn descr(self) -> &'static str {
        self.descr
    }

    /// Bytes of a value.
    pub fn size(self) -> usize {
        self.size
    }
}

/// Bytes of an array; `None` if they are more than there can be.
pub(super) fn byte_count(kind: ArrayType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(kind.size, |n, axis| n.checked_mul(*axis))
}

/// An MDS value as a `.npy` file.
pub(super) fn decode(kind: Option<ArrayType>, shape: Option<&[usize]>, value: &[u8]) -> Result<Vec<u8>, String> {
    let (kind, value) = match kind {
        Some(kind) => (kind, value),
        None => {
            let (code, rest) = value.split_first().ok_or("empty, where the array's type is expected")?;
            let kind = TYPES.iter().find(|kind| kind.code == *code);
            (*kind.ok_or_else(|| format!("{code} is no type of array"))?, rest)
        }
    };
    let (shape, value) = match shape {
        Some(shape) => (shape.to_vec(), value),
        None => split_shape(value)?,
    };
    let needed = byte_count(kind, &shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
    if needed != value.len() {
        return Err(format!("{} {shape:?} takes {needed} bytes, {} are there", kind.name, value.len()));
    }
    Ok([header_bytes(kind.descr, &shape).as_slice(), value].concat())
}

fn split_shape(value: &[u8]) -> Result<(Vec<usize>, &[u8]), String> {
    let (byte, rest) = value.split_first().ok_or("empty, where the array's rank is expected")?;
    let (rank, width) = (usize::from(byte >> 2), 1usize << (byte & 3));
    if rank == 0 {
        return Err("an array without axes".to_owned());
    }
    let (lengths, rest) =
        rest.split_at_checked(rank * width).ok_or_else(|| format!("cut inside the lengths of {rank} axes"))?;
    let length = |bytes: &[u8]| {
        let wide = bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        usize::try_from(wide).map_err(|_| format!("an axis of {wide}"))
    };
    Ok((lengths.chunks_exact(width).map(length).collect::<Result<_, _>>()?, rest))
}

/// A `.npy` file as an MDS value.
pub(super) fn encode(kind: Option<ArrayType>, shape: Option<&[usize]>, npy: &[u8]) -> Result<Vec<u8>, String> {
    let array = RawNpy::parse(npy).map_err(|e| e.to_string())?;
    let found = TYPES.iter().find(|kind| kind.descr == array.descr);
    let found = *found.ok_or_else(|| format!("MDS has no arrays of `{}`", array.descr))?;
    if byte_count(found, &array.shape) != Some(array.data.len()) {
        return Err(format!("{} {:?} from {} bytes", found.name, array.shape, array.data.len()));
    }
    if array.shape.is_empty() || array.data.is_empty() || array.shape.len() > MOST_AXES {
        return Err(format!(
            "an array of shape {:?}; MDS holds those with 1 to 63 axes, none of length 0",
            array.shape
        ));
    }
    let mut out = Vec::with_capacity(array.data.len() + 16);
    match kind {
        Some(kind) if kind != found => {
            return Err(format!("an array of {}, the column takes {}", found.name, kind.name));
        }
        Some(_) => {}
        None => out.push(found.code),
    }
    match shape {
        Some(shape) if shape != array.shape => {
            return Err(format!("an array of shape {:?}, the column takes {shape:?}", array.shape));
        }
        Some(_) => {}
        None => push_shape(&mut out, &array.shape),
    }
    out.extend_from_slice(array.data);
    Ok(out)
}

/// The rank, and the lengths in as few bytes as the longest of them needs.
fn push_shape(out: &mut Vec<u8>, shape: &[usize]) {
    let longest = shape.iter().copied().max().unwrap_or(0) as u64;
    let width = match longest {
        0..=0xff => 0,
        0x100..=0xffff => 1,
        0x1_0000..=0xffff_ffff => 2,
        _ => 3,
    };
    out.push((shape.len() as u8) << 2 | width);
    for axis in shape {
        out.extend_from_slice(&(*axis as u64).to_le_bytes()[..1 << width]);
    }
}
