//! NumPy's `.npy` arrays as sample parts: `f64`, `f32`, `f16`, `bf16` and `i64`, little-endian, C order, any rank.
//!
//! NumPy itself has no `bf16`. The package `ml_dtypes`, which adds it, makes `numpy.save` name the type `<V2`; so does
//! this writer. `numpy.load` gives such an array as voids of two bytes: `array.view(ml_dtypes.bfloat16)` in Python.
//!
//! Source: NumPy Enhancement Proposal 1 ("A Simple File Format for NumPy Arrays") and `numpy/lib/format.py`.
//! Written as version 1.0 with the data 64-byte aligned; versions 1.0, 2.0 and 3.0 are read.

use half::{bf16, f16};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
const ALIGN: usize = 64;

/// An array: shape and values in C order (last axis fastest).
#[derive(Clone, Debug, PartialEq)]
pub struct NpyArray {
    shape: Vec<usize>,
    data: NpyData,
}

/// The values of an [`NpyArray`].
#[derive(Clone, Debug, PartialEq)]
pub enum NpyData {
    /// `<f8`
    F64(Vec<f64>),
    /// `<f4`
    F32(Vec<f32>),
    /// `<f2`
    F16(Vec<f16>),
    /// `<V2`
    Bf16(Vec<bf16>),
    /// `<i8`
    I64(Vec<i64>),
}

/// The reason for which bytes are no `.npy` array that this reader takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NpyError {
    /// The first bytes are not NumPy's.
    #[error("not a .npy array: it does not begin with \\x93NUMPY")]
    BadMagic,
    /// A format version from the future.
    #[error("version {major}.{minor} of the .npy format is unknown; 1.0, 2.0 and 3.0 are read")]
    UnsupportedVersion {
        /// Major version found.
        major: u8,
        /// Minor version found.
        minor: u8,
    },
    /// The bytes end inside the header.
    #[error(".npy header needs {needed} bytes, {found} are there")]
    TruncatedHeader {
        /// Bytes needed.
        needed: usize,
        /// Bytes found.
        found: usize,
    },
    /// A header that is not the expected dictionary.
    #[error(".npy header is malformed: {detail}")]
    BadHeader {
        /// The fault, in words.
        detail: String,
    },
    /// A type of value that is not read.
    #[error(
        ".npy dtype `{descr}` is not read; use <f8, <f4, <f2, <V2 (bfloat16) or <i8 (numpy: array.astype(\"<f4\"))"
    )]
    UnsupportedDtype {
        /// NumPy's name of the type.
        descr: String,
    },
    /// Column-major data.
    #[error(".npy array is in Fortran order; use numpy.ascontiguousarray")]
    FortranOrder,
    /// More values than memory can address.
    #[error(".npy shape {shape:?} overflows")]
    ShapeOverflow {
        /// The shape.
        shape: Vec<usize>,
    },
    /// The data do not fill the shape.
    #[error(".npy shape {shape:?} needs {needed} bytes of data, {found} are there")]
    WrongLength {
        /// The shape.
        shape: Vec<usize>,
        /// Bytes needed.
        needed: usize,
        /// Bytes found.
        found: usize,
    },
    /// Another type of value was asked for.
    #[error(".npy array holds {found}, {expected} was asked for")]
    WrongDtype {
        /// Type asked for.
        expected: &'static str,
        /// Type found.
        found: &'static str,
    },
}

impl NpyData {
    /// NumPy's name of the type: `<f8`, `<f4`, `<f2`, `<V2` (that of `bf16`) or `<i8`.
    pub fn descr(&self) -> &'static str {
        match self {
            NpyData::F64(_) => "<f8",
            NpyData::F32(_) => "<f4",
            NpyData::F16(_) => "<f2",
            NpyData::Bf16(_) => "<V2",
            NpyData::I64(_) => "<i8",
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            NpyData::F64(v) => v.len(),
            NpyData::F32(v) => v.len(),
            NpyData::F16(v) => v.len(),
            NpyData::Bf16(v) => v.len(),
            NpyData::I64(v) => v.len(),
        }
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn value_size(&self) -> usize {
        match self {
            NpyData::F32(_) => 4,
            NpyData::F16(_) | NpyData::Bf16(_) => 2,
            NpyData::I64(_) | NpyData::F64(_) => 8,
        }
    }

    /// Appends the values in C order, little-endian.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        // Value by value, so that the file is little-endian on every machine; compilers make it a copy.
        match self {
            NpyData::F64(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
            NpyData::F32(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
            NpyData::F16(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
            NpyData::Bf16(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
            NpyData::I64(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        }
    }
}

impl NpyArray {
    /// An array of `shape` (empty for a scalar) with `data` in C order.
    ///
    /// # Errors
    /// [`NpyError::WrongLength`] if shape and data disagree, [`NpyError::ShapeOverflow`].
    pub fn new(shape: Vec<usize>, data: NpyData) -> Result<Self, NpyError> {
        let needed = byte_count(&shape, data.value_size())?;
        let found = data.len() * data.value_size();
        if needed != found {
            return Err(NpyError::WrongLength { shape, needed, found });
        }
        Ok(NpyArray { shape, data })
    }

    /// An `f32` array; errors as [`NpyArray::new`].
    pub fn from_f32(shape: &[usize], values: Vec<f32>) -> Result<Self, NpyError> {
        NpyArray::new(shape.to_vec(), NpyData::F32(values))
    }

    /// An `f16` array, each value rounded to nearest even; errors as [`NpyArray::new`].
    pub fn f16_from_f32(shape: &[usize], values: &[f32]) -> Result<Self, NpyError> {
        NpyArray::new(shape.to_vec(), NpyData::F16(values.iter().map(|x| f16::from_f32(*x)).collect()))
    }

    /// A `bf16` array, each value rounded to nearest even; errors as [`NpyArray::new`].
    pub fn bf16_from_f32(shape: &[usize], values: &[f32]) -> Result<Self, NpyError> {
        NpyArray::new(shape.to_vec(), NpyData::Bf16(values.iter().map(|x| bf16::from_f32(*x)).collect()))
    }

    /// An `i64` array; errors as [`NpyArray::new`].
    pub fn from_i64(shape: &[usize], values: Vec<i64>) -> Result<Self, NpyError> {
        NpyArray::new(shape.to_vec(), NpyData::I64(values))
    }

    /// Lengths of the axes, first axis slowest.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values in C order.
    pub fn data(&self) -> &NpyData {
        &self.data
    }

    /// The values as `f32` (`f16` and `bf16` are widened, which loses nothing).
    ///
    /// # Errors
    /// [`NpyError::WrongDtype`] for integers.
    pub fn to_f32(&self) -> Result<Vec<f32>, NpyError> {
        match &self.data {
            NpyData::F32(v) => Ok(v.clone()),
            NpyData::F16(v) => Ok(v.iter().map(|x| x.to_f32()).collect()),
            NpyData::Bf16(v) => Ok(v.iter().map(|x| x.to_f32()).collect()),
            NpyData::I64(_) => Err(NpyError::WrongDtype { expected: "f32, f16 or bf16", found: "i64" }),
            NpyData::F64(_) => Err(NpyError::WrongDtype { expected: "f32, f16 or bf16", found: "f64" }),
        }
    }

    /// The values as `f64` (narrower floating-point numbers are widened, which loses nothing).
    ///
    /// # Errors
    /// [`NpyError::WrongDtype`] for integers.
    pub fn to_f64(&self) -> Result<Vec<f64>, NpyError> {
        match &self.data {
            NpyData::F64(v) => Ok(v.clone()),
            NpyData::F32(v) => Ok(v.iter().map(|x| f64::from(*x)).collect()),
            NpyData::F16(v) => Ok(v.iter().map(|x| x.to_f64()).collect()),
            NpyData::Bf16(v) => Ok(v.iter().map(|x| x.to_f64()).collect()),
            NpyData::I64(_) => Err(NpyError::WrongDtype { expected: "f64, f32, f16 or bf16", found: "i64" }),
        }
    }

    /// The values as `i64`.
    ///
    /// # Errors
    /// [`NpyError::WrongDtype`] for floating-point numbers.
    pub fn as_i64(&self) -> Result<&[i64], NpyError> {
        match &self.data {
            NpyData::I64(v) => Ok(v),
            NpyData::F64(_) => Err(NpyError::WrongDtype { expected: "i64", found: "f64" }),
            NpyData::F32(_) => Err(NpyError::WrongDtype { expected: "i64", found: "f32" }),
            NpyData::F16(_) => Err(NpyError::WrongDtype { expected: "i64", found: "f16" }),
            NpyData::Bf16(_) => Err(NpyError::WrongDtype { expected: "i64", found: "bf16" }),
        }
    }

    /// The array as a `.npy` file, byte for byte as `numpy.save` writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = header_bytes(self.data.descr(), &self.shape);
        out.reserve_exact(self.data.len() * self.data.value_size());
        self.data.append_to(&mut out);
        out
    }

    /// Reads a `.npy` file.
    ///
    /// # Errors
    /// Every [`NpyError`] except [`NpyError::WrongDtype`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NpyError> {
        let RawNpy { descr, shape, data } = RawNpy::parse(bytes)?;
        NpyArray::from_le_bytes(&descr, shape, data)
    }

    /// An array of the type that NumPy names `descr`, from its values in C order, little-endian.
    ///
    /// # Errors
    /// [`NpyError::UnsupportedDtype`] for another `descr`; [`NpyError::WrongLength`] if `data` does not have the
    /// length that the shape asks for; [`NpyError::ShapeOverflow`] if that length is beyond 64 bits.
    pub fn from_le_bytes(descr: &str, shape: Vec<usize>, data: &[u8]) -> Result<Self, NpyError> {
        type Read = fn(&[u8]) -> NpyData;
        let (size, read): (usize, Read) = match descr {
            "<f4" => (4, |data| NpyData::F32(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())),
            "<f2" => (2, |data| NpyData::F16(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect())),
            "<V2" | "|V2" => {
                (2, |data| NpyData::Bf16(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()))
            }
            "<f8" => (8, |data| NpyData::F64(data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())),
            "<i8" => (8, |data| NpyData::I64(data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())),
            _ => return Err(NpyError::UnsupportedDtype { descr: descr.to_owned() }),
        };
        let needed = byte_count(&shape, size)?;
        if data.len() != needed {
            return Err(NpyError::WrongLength { shape, needed, found: data.len() });
        }
        let data = read(data);
        Ok(NpyArray { shape, data })
    }
}

/// The bytes before the values in a `.npy` file of version 1.0, exactly as `numpy.save` writes them; `descr` is NumPy's
/// name of any type of value: `<f4`, `|u1`.
pub fn header_bytes(descr: &str, shape: &[usize]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {}, }}", python_tuple(shape));
    // NumPy leaves room for the first axis to grow to 20 digits (so that arrays can be appended to in place).
    if let Some(first) = shape.first() {
        header.push_str(&" ".repeat(21 - first.to_string().len()));
    }
    let fixed = MAGIC.len() + 2 + 2;
    // NumPy adds a whole block of padding, not none, where the header already ends on a border.
    let bare = fixed + header.len() + 1;
    let padded = bare + ALIGN - bare % ALIGN;
    header.push_str(&" ".repeat(padded - fixed - header.len() - 1));
    header.push('\n');
    let mut out = Vec::with_capacity(padded);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    // A rank would have to exceed 3,000 axes to overflow this.
    out.extend_from_slice(&(header.len() as u16).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    out
}

/// A `.npy` file of any type of value, not interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawNpy<'a> {
    /// NumPy's name of the type: `<f4`, `|u1`.
    pub descr: String,
    /// Lengths of the axes, first axis slowest.
    pub shape: Vec<usize>,
    /// The values in C order; their length is the caller's to check against type and shape.
    pub data: &'a [u8],
}

impl<'a> RawNpy<'a> {
    /// Reads the header of a `.npy` file.
    ///
    /// # Errors
    /// Those [`NpyError`]s that concern the header.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NpyError> {
        let (header, data) = split_header(bytes)?;
        let Header { descr, fortran, shape } = parse_header(header)?;
        if fortran && shape.len() > 1 {
            return Err(NpyError::FortranOrder);
        }
        Ok(RawNpy { descr, shape, data })
    }
}

fn byte_count(shape: &[usize], size: usize) -> Result<usize, NpyError> {
    shape
        .iter()
        .try_fold(size, |n, axis| n.checked_mul(*axis))
        .ok_or_else(|| NpyError::ShapeOverflow { shape: shape.to_vec() })
}

fn python_tuple(shape: &[usize]) -> String {
    match shape {
        [one] => format!("({one},)"),
        many => format!("({})", many.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Header text and data of a `.npy` file.
fn split_header(bytes: &[u8]) -> Result<(&str, &[u8]), NpyError> {
    if !bytes.starts_with(MAGIC) {
        return Err(NpyError::BadMagic);
    }
    let need = |needed: usize| {
        bytes.get(..needed).ok_or(NpyError::TruncatedHeader { needed, found: bytes.len() }).map(|_| needed)
    };
    need(8)?;
    let (start, length) = match (bytes[6], bytes[7]) {
        (1, 0) => (need(10)?, u64::from(u16::from_le_bytes([bytes[8], bytes[9]]))),
        (2 | 3, 0) => (need(12)?, u64::from(u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]))),
        (major, minor) => return Err(NpyError::UnsupportedVersion { major, minor }),
    };
    let end = need(start.saturating_add(length as usize))?;
    let header =
        std::str::from_utf8(&bytes[start..end]).map_err(|_| NpyError::BadHeader { detail: "not UTF-8".to_owned() })?;
    Ok((header, &bytes[end..]))
}

struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// Parses the header's Python dictionary: exactly the three keys that the format prescribes, in any order.
fn parse_header(text: &str) -> Result<Header, NpyError> {
    let mut parser = Parser { rest: text.trim() };
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    parser.expect("{")?;
    while !parser.take("}") {
        let key = parser.string()?;
        parser.expect(":")?;
        match key {
            "descr" => descr = Some(parser.string()?.to_owned()),
            "fortran_order" => fortran = Some(parser.boolean()?),
            "shape" => shape = Some(parser.tuple()?),
            other => return Err(NpyError::BadHeader { detail: format!("unknown key '{other}'") }),
        }
        if !parser.take(",") {
            parser.expect("}")?;
            break;
        }
    }
    if !parser.rest.is_empty() {
        return Err(NpyError::BadHeader { detail: "text after the dictionary".to_owned() });
    }
    let missing = |key: &str| NpyError::BadHeader { detail: format!("key '{key}' is missing") };
    Ok(Header {
        descr: descr.ok_or_else(|| missing("descr"))?,
        fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
        shape: shape.ok_or_else(|| missing("shape"))?,
    })
}

/// Reads the few Python literals of a `.npy` header from the front of `rest`.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn bad(&self, expected: &str) -> NpyError {
        let near: String = self.rest.chars().take(20).collect();
        NpyError::BadHeader { detail: format!("{expected} expected near `{near}`") }
    }

    fn expect(&mut self, token: &str) -> Result<(), NpyError> {
        if self.take(token) { Ok(()) } else { Err(self.bad(&format!("`{token}`"))) }
    }

    fn string(&mut self) -> Result<&'a str, NpyError> {
        let quote = match self.rest.chars().next() {
            Some(c @ ('\'' | '"')) => c,
            _ => return Err(self.bad("a string")),
        };
        let Some((text, rest)) = self.rest[1..].split_once(quote) else {
            return Err(self.bad("the end of a string"));
        };
        self.rest = rest.trim_start();
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, NpyError> {
        if self.take("True") {
            return Ok(true);
        }
        if self.take("False") { Ok(false) } else { Err(self.bad("True or False")) }
    }

    fn tuple(&mut self) -> Result<Vec<usize>, NpyError> {
        let mut axes = Vec::new();
        self.expect("(")?;
        while !self.take(")") {
            let digits = self.rest.len() - self.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let axis = self.rest[..digits].parse().map_err(|_| self.bad("an axis length"))?;
            self.rest = self.rest[digits..].trim_start();
            axes.push(axis);
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(axes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_every_type_and_rank_come_back() {
        let arrays = [
            NpyArray::from_f32(&[], vec![1.5]),
            NpyArray::from_f32(&[3], vec![1.0, -2.0, f32::MAX]),
            NpyArray::from_f32(&[2, 0, 3], vec![]),
            NpyArray::f16_from_f32(&[1, 2, 2, 1], &[0.1, 0.2, 65504.0, -1e-7]),
            NpyArray::new(vec![2], NpyData::F64(vec![f64::MIN_POSITIVE, -0.1])),
            NpyArray::bf16_from_f32(&[3, 1], &[0.1, -3e38, 0.0]),
            NpyArray::from_i64(&[2, 2], vec![i64::MIN, -1, 0, i64::MAX]),
        ];
        for array in arrays {
            let array = array.unwrap();
            let bytes = array.to_bytes();
            let data = bytes.len() - array.data().len() * array.data().value_size();
            assert_eq!(data % ALIGN, 0);
            assert_eq!(NpyArray::from_bytes(&bytes).unwrap(), array);
        }
    }

    #[test]
    fn malformed_arrays_are_named() {
        let good = NpyArray::from_f32(&[2, 2], vec![1.0; 4]).unwrap().to_bytes();
        let edit = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bytes = good.clone();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            NpyArray::from_bytes(&bytes).unwrap_err()
        };
        assert_eq!(NpyArray::from_bytes(b"PK\x03\x04").unwrap_err(), NpyError::BadMagic);
        assert_eq!(NpyArray::from_bytes(&[]).unwrap_err(), NpyError::BadMagic);
        assert!(matches!(NpyArray::from_bytes(&good[..7]).unwrap_err(), NpyError::TruncatedHeader { needed: 8, .. }));
        assert!(matches!(NpyArray::from_bytes(&good[..90]).unwrap_err(), NpyError::TruncatedHeader { .. }));
        assert!(matches!(NpyArray::from_bytes(&good[..140]).unwrap_err(), NpyError::WrongLength { found: 12, .. }));
        let long = [good.clone(), vec![0]].concat();
        assert!(matches!(NpyArray::from_bytes(&long).unwrap_err(), NpyError::WrongLength { found: 17, .. }));
        assert_eq!(edit("<f4", ">f4"), NpyError::UnsupportedDtype { descr: ">f4".into() });
        assert_eq!(edit("False", "True "), NpyError::FortranOrder);
        assert!(matches!(edit("descr", "descx"), NpyError::BadHeader { .. }));
        assert!(matches!(edit("(2, 2)", "(2, x)"), NpyError::BadHeader { .. }));
        assert!(matches!(
            edit("(2, 2), }           ", "(99999999999, 99999999999), }"),
            NpyError::ShapeOverflow { .. }
        ));
        let mut future = good.clone();
        future[6] = 9;
        assert_eq!(NpyArray::from_bytes(&future).unwrap_err(), NpyError::UnsupportedVersion { major: 9, minor: 0 });
        assert!(matches!(NpyArray::from_f32(&[3], vec![0.0]), Err(NpyError::WrongLength { .. })));
    }
}
