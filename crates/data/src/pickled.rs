//! Pickled dictionaries of NumPy arrays, as NeMo keeps the outputs of frozen encoders: one part `pickle` a sample, such as
//! `{"autoencoderkl_image": float16 [8, 64, 64], "clip-vit-large-patch14_text": float32 [77, 768]}`.
//!
//! Read as data by the allow-list interpreter of `calotype_weights::pickle`, which executes nothing, in any protocol
//! (0 to 5) and as NumPy 1 and 2 write them. Written in protocol 4 (PEP 3154) with the names that both import, so that
//! `pickle.loads` of any Python since 3.4 gives back equal arrays.

use std::collections::BTreeMap;

use calotype_weights::pickle::{self, Array, ArrayFault, Kind, PickleError, ReadOptions, Value};
use calotype_weights::tensor_file::Dtype;

use crate::npy::{NpyArray, NpyData, NpyError};
use crate::{Error, Result};

/// The arrays of a sample, by name.
pub type PickledArrays = BTreeMap<String, NpyArray>;

/// Extension of the part that holds them, in NeMo's shards.
pub const PICKLE_PART: &str = "pickle";

/// Most memory of the arrays of a pickle, as a multiple of its length: one array may stand under several names.
const MOST_REPEATS: usize = 4;

/// The reason for which bytes are no pickled dictionary of arrays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickledFault {
    /// A pickle that cannot be read.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// Bytes after the end of the pickle.
    #[error("the pickle ends after {length} of {found} bytes; the part is damaged")]
    Trailing {
        /// Length of the pickle.
        length: usize,
        /// Length of the part.
        found: usize,
    },
    /// The pickle describes something else.
    #[error("it is {found}, where a dictionary of named arrays is expected")]
    NoDictionary {
        /// Kind of value that it is.
        found: &'static str,
    },
    /// A key that is no text.
    #[error("the dictionary has {found} for a key, where texts are expected")]
    KeyNoText {
        /// Kind of value that the key is.
        found: &'static str,
    },
    /// A key that is there twice.
    #[error("`{name}` is there twice")]
    Duplicate {
        /// The key.
        name: String,
    },
    /// An entry that is no array.
    #[error("`{name}` is {found}, where a NumPy array is expected")]
    NoArray {
        /// Name of the entry.
        name: String,
        /// Kind of value that it is.
        found: &'static str,
    },
    /// An array whose elements are not read.
    #[error("`{name}` {fault}")]
    Array {
        /// Name of the entry.
        name: String,
        /// The fault.
        fault: ArrayFault,
    },
    /// An array of a type that sample parts do not have.
    #[error("`{name}`: {source}")]
    Npy {
        /// Name of the entry.
        name: String,
        /// The fault.
        source: NpyError,
    },
    /// One array under so many names that they take far more memory than the file.
    #[error("its arrays take more than {MOST_REPEATS} times its {length} bytes; refused")]
    Repeated {
        /// Length of the pickle.
        length: usize,
    },
}

/// Reads a pickled dictionary of arrays; `key`, the sample's, is for messages. Arrays in Fortran order and big-endian
/// ones are converted.
///
/// # Errors
/// [`Error::Pickled`] if the bytes are no pickle that is read, or not a dictionary of arrays by name.
pub fn read_arrays(key: &str, bytes: &[u8]) -> Result<PickledArrays> {
    parse(bytes).map_err(|fault| Error::Pickled { key: key.to_owned(), fault: Box::new(fault) })
}

fn parse(bytes: &[u8]) -> std::result::Result<PickledArrays, PickledFault> {
    let read = read_whole(bytes)?;
    let root = read.root(bytes);
    if root.kind() != Kind::Dict {
        return Err(PickledFault::NoDictionary { found: describe(root) });
    }
    let mut arrays = PickledArrays::new();
    let mut left = bytes.len().saturating_mul(MOST_REPEATS);
    for (key, value) in root.pairs() {
        let Some(name) = key.as_str() else { return Err(PickledFault::KeyNoText { found: describe(key) }) };
        let array = elements(name, value)?;
        left = left.checked_sub(array.data.len()).ok_or(PickledFault::Repeated { length: bytes.len() })?;
        let npy_fault = |source| PickledFault::Npy { name: name.to_owned(), source };
        let array = NpyArray::from_le_bytes(descr(array.dtype), array.shape, &array.data).map_err(npy_fault)?;
        if arrays.insert(name.to_owned(), array).is_some() {
            return Err(PickledFault::Duplicate { name: name.to_owned() });
        }
    }
    Ok(arrays)
}

/// Reads a pickle that takes all of `bytes`.
pub(crate) fn read_whole(bytes: &[u8]) -> std::result::Result<pickle::Pickle, PickledFault> {
    let read = pickle::read(bytes, ReadOptions::default(), pickle::memory_limit(bytes.len()))?;
    if read.length() != bytes.len() {
        return Err(PickledFault::Trailing { length: read.length(), found: bytes.len() });
    }
    Ok(read)
}

fn elements<'a>(name: &str, value: Value<'a>) -> std::result::Result<Array<'a>, PickledFault> {
    match value.array() {
        Some(Ok(array)) => Ok(array),
        Some(Err(fault)) => Err(PickledFault::Array { name: name.to_owned(), fault }),
        None => Err(PickledFault::NoArray { name: name.to_owned(), found: describe(value) }),
    }
}

/// NumPy's name of an element type, in little-endian.
fn descr(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "<f8",
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::I64 => "<i8",
        Dtype::I32 => "<i4",
        Dtype::I16 => "<i2",
        Dtype::I8 => "|i1",
        Dtype::U64 => "<u8",
        Dtype::U32 => "<u4",
        Dtype::U16 => "<u2",
        Dtype::U8 => "|u1",
        Dtype::Bool => "|b1",
        // NumPy has none of these itself.
        Dtype::BF16 => "bfloat16",
        Dtype::F8E4M3 => "float8_e4m3fn",
        Dtype::F8E5M2 => "float8_e5m2",
    }
}

/// Name of a value's kind in messages.
pub(crate) fn describe(value: Value<'_>) -> &'static str {
    match value.kind() {
        Kind::None => "None",
        Kind::Bool(_) => "a truth value",
        Kind::Int(_) | Kind::BigInt(_) => "an integer",
        Kind::Float(_) => "a float",
        Kind::Text(_) => "a text",
        Kind::Bytes(_) => "bytes",
        Kind::List => "a list",
        Kind::Tuple => "a tuple",
        Kind::Set => "a set",
        Kind::Dict => "a dictionary",
        Kind::Tensor => "an array",
        Kind::Storage => "a storage",
        Kind::Type(_) | Kind::Class(_) => "a type",
        Kind::Object(_) => "an object",
    }
}

/// The arrays as a pickled dictionary, for [`read_arrays`] and Python's `pickle.loads`. The bytes are a function of the
/// arrays alone.
pub fn write_arrays(arrays: &PickledArrays) -> Vec<u8> {
    let mut out = Writer::begin();
    out.dict(arrays, |out, array| out.array(array));
    out.end()
}

/// Writes the operations of pickle protocol 4 that this crate needs (opcodes as in CPython's `Lib/pickletools.py`).
/// Nothing is memoized, and there are no frames, which both are optional.
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn begin() -> Self {
        Writer { out: vec![0x80, 4] }
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.out
    }

    /// A dictionary with its entries in the order given.
    pub(crate) fn dict<K: AsRef<str>, V>(
        &mut self,
        entries: impl IntoIterator<Item = (K, V)>,
        mut value: impl FnMut(&mut Self, V),
    ) {
        self.out.extend_from_slice(b"}(");
        for (key, entry) in entries {
            self.text(key.as_ref());
            value(self, entry);
        }
        self.out.push(b'u');
    }

    pub(crate) fn list_of_texts<T: AsRef<str>>(&mut self, texts: &[T]) {
        self.out.extend_from_slice(b"](");
        texts.iter().for_each(|text| self.text(text.as_ref()));
        self.out.push(b'e');
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.counted(b'X', 0x8d, text.as_bytes());
    }

    pub(crate) fn integer(&mut self, value: usize) {
        if let Ok(byte) = u8::try_from(value) {
            self.out.extend_from_slice(&[b'K', byte]);
        } else if let Ok(short) = i32::try_from(value) {
            self.out.push(b'J');
            self.out.extend_from_slice(&short.to_le_bytes());
        } else {
            // Two's complement in as many bytes as it takes: a ninth one only keeps the sign of the largest numbers.
            let length = if i64::try_from(value).is_ok() { 8 } else { 9 };
            self.out.extend_from_slice(&[0x8a, length]);
            self.out.extend_from_slice(&(value as u128).to_le_bytes()[..usize::from(length)]);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.counted(b'B', 0x8e, bytes);
    }

    /// Bytes behind their length in four bytes, or, with the other operation, in eight.
    fn counted(&mut self, short: u8, long: u8, bytes: &[u8]) {
        match u32::try_from(bytes.len()) {
            Ok(length) => {
                self.out.push(short);
                self.out.extend_from_slice(&length.to_le_bytes());
            }
            Err(_) => {
                self.out.push(long);
                self.out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            }
        }
        self.out.extend_from_slice(bytes);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.out.extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
    }

    /// An array as `ndarray.__reduce__` describes it: an empty one, and the state that fills it. NumPy 2 keeps the old
    /// name of its module for such files. NumPy has no `bf16`: such values are widened to `f32`, which loses nothing.
    fn array(&mut self, array: &NpyArray) {
        let widened = match array.data() {
            NpyData::Bf16(values) => Some(NpyData::F32(values.iter().map(|value| value.to_f32()).collect())),
            _ => None,
        };
        let data = widened.as_ref().unwrap_or(array.data());
        self.global("numpy.core.multiarray", "_reconstruct");
        self.global("numpy", "ndarray");
        // ((0,), b"b"): shape and type of the empty array.
        self.out.extend_from_slice(b"K\x00\x85C\x01b\x87R(K\x01");
        self.out.push(b'(');
        array.shape().iter().for_each(|axis| self.integer(*axis));
        self.out.push(b't');
        self.dtype(data.descr());
        self.out.push(0x89);
        let mut bytes = Vec::new();
        data.append_to(&mut bytes);
        self.bytes(&bytes);
        self.out.extend_from_slice(b"tb");
    }

    /// `numpy.dtype(code, False, True)` with the state `(3, order, None, None, None, -1, -1, 0)`.
    fn dtype(&mut self, descr: &str) {
        let (order, code) = descr.split_at(1);
        self.global("numpy", "dtype");
        self.text(code);
        self.out.extend_from_slice(b"\x89\x88\x87R(K\x03");
        self.text(order);
        self.out.extend_from_slice(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb");
    }
}
