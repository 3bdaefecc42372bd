//! Named tensors in safetensors files (<https://github.com/huggingface/safetensors>).
//!
//! The layout is an 8-byte little-endian header length, a JSON header (name → dtype, shape, byte range; plus a
//! string map `__metadata__`) and the raw little-endian data. Files are written atomically and deterministically:
//! the same tensors and metadata give the same bytes. They are read through a memory map after the header was checked
//! to be consistent, and its byte ranges to cover the file exactly: no overlap, no hole, no byte after the last.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use serde_json::value::RawValue;

pub use crate::error::{HeaderFault, TensorFileError};
use crate::json::Pairs;
use crate::map::MappedFile;
use calotype_core::durable;

#[cfg(not(target_endian = "little"))]
compile_error!("safetensors data is little-endian and this crate views it in place: a big-endian target needs swaps");

/// The longest header that readers accept, in bytes (the limit of the `safetensors` crate).
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Type of one tensor element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// 8-bit float with 4 exponent and 3 mantissa bits, without infinities (OCP's E4M3, torch's `float8_e4m3fn`).
    F8E4M3,
    /// 8-bit float with 5 exponent and 2 mantissa bits: the upper half of a binary16 (OCP's E5M2).
    F8E5M2,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

/// Each dtype with its name in a safetensors header and its size in bytes.
const DTYPES: [(Dtype, &str, usize); 15] = [
    (Dtype::F64, "F64", 8),
    (Dtype::F32, "F32", 4),
    (Dtype::F16, "F16", 2),
    (Dtype::BF16, "BF16", 2),
    (Dtype::F8E4M3, "F8_E4M3", 1),
    (Dtype::F8E5M2, "F8_E5M2", 1),
    (Dtype::I64, "I64", 8),
    (Dtype::I32, "I32", 4),
    (Dtype::I16, "I16", 2),
    (Dtype::I8, "I8", 1),
    (Dtype::U64, "U64", 8),
    (Dtype::U32, "U32", 4),
    (Dtype::U16, "U16", 2),
    (Dtype::U8, "U8", 1),
    (Dtype::Bool, "BOOL", 1),
];

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, usize) {
        // The table lists the variants in the order of their declaration; a test holds it to that.
        &DTYPES[self as usize]
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// The name in a safetensors header, such as `BF16`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// True for the types of weights, whose elements all are numbers that [`NamedTensor::to_f32_vec`] gives.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2)
    }

    /// The type of that name in a safetensors header.
    pub fn from_name(name: &str) -> Option<Dtype> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Bytes of a tensor of that shape; `None` when they overflow.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        shape.iter().try_fold(self.size(), |bytes, &extent| bytes.checked_mul(extent))
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A tensor to be written: row-major elements as little-endian bytes, borrowed or owned.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor<'a> {
    /// Its key in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extent of every axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, `shape.product() * dtype.size()` bytes.
    pub data: Cow<'a, [u8]>,
}

impl<'a> NamedTensor<'a> {
    /// A tensor over raw little-endian bytes. Its length is checked when it is written.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), data: data.into() }
    }

    /// An F32 tensor over a slice, without a copy.
    pub fn from_f32(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &'a [f32]) -> Self {
        Self::new(name, Dtype::F32, shape, bytemuck::cast_slice(values))
    }

    /// A BF16 tensor over a slice, without a copy.
    pub fn from_bf16(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &'a [half::bf16]) -> Self {
        Self::new(name, Dtype::BF16, shape, bytemuck::cast_slice(values))
    }

    /// An F16 tensor over a slice, without a copy.
    pub fn from_f16(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &'a [half::f16]) -> Self {
        Self::new(name, Dtype::F16, shape, bytemuck::cast_slice(values))
    }

    /// An I64 tensor over a slice, without a copy.
    pub fn from_i64(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &'a [i64]) -> Self {
        Self::new(name, Dtype::I64, shape, bytemuck::cast_slice(values))
    }

    /// The same tensor with its own copy of the data.
    pub fn into_owned(self) -> NamedTensor<'static> {
        let Self { name, dtype, shape, data } = self;
        NamedTensor { name, dtype, shape, data: Cow::Owned(data.into_owned()) }
    }

    /// The elements as f32, of any floating-point type; `None` for other types.
    pub fn to_f32_vec(&self) -> Option<Vec<f32>> {
        elements_as_f32(self.dtype, &self.data)
    }

    /// Elements that are NaN or infinite; none in types without such.
    pub fn not_finite(&self) -> usize {
        let halves = |exponent: u16| {
            elements(&self.data).map(u16::from_le_bytes).filter(|bits| bits & exponent == exponent).count()
        };
        match self.dtype {
            Dtype::F16 => halves(0x7c00),
            Dtype::BF16 => halves(0x7f80),
            Dtype::F32 => elements(&self.data).filter(|bytes| !f32::from_le_bytes(*bytes).is_finite()).count(),
            Dtype::F64 => elements(&self.data).filter(|bytes| !f64::from_le_bytes(*bytes).is_finite()).count(),
            _ => 0,
        }
    }

    /// BLAKE3 hash of the data bytes.
    pub fn blake3(&self) -> blake3::Hash {
        hash_bytes(&self.data)
    }

    /// Number of data bytes that dtype and shape ask for; `None` when that overflows.
    fn expected_bytes(&self) -> Option<usize> {
        self.dtype.bytes_of(&self.shape)
    }
}

/// BLAKE3 hash of a byte slice, over all processor cores when it is long.
pub fn hash_bytes(bytes: &[u8]) -> blake3::Hash {
    const WORTH_THREADS: usize = 1 << 18;
    if bytes.len() < WORTH_THREADS {
        return blake3::hash(bytes);
    }
    blake3::Hasher::new().update_rayon(bytes).finalize()
}

/// Writes a safetensors file atomically (see [`durable::replace_file`]). Equal tensors and metadata, in whatever
/// order the tensors come, give equal bytes.
///
/// # Errors
/// [`TensorFileError::Unwritable`] for a repeated or reserved name or data that do not fit the shape;
/// [`TensorFileError::DiskFull`] and [`TensorFileError::Io`] from the system. An existing file is then untouched.
pub fn write_safetensors(
    path: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), TensorFileError> {
    let layout = Layout::new(path, tensors, metadata)?;
    durable::replace_file(path, |writer| layout.write(writer)).map_err(|source| TensorFileError::writing(path, source))
}

/// Writes the bytes of a safetensors file to `writer`, for callers that make them durable themselves; `path` only
/// names the file in errors.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_to(
    writer: &mut dyn Write,
    path: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), TensorFileError> {
    let layout = Layout::new(path, tensors, metadata)?;
    layout.write(writer).map_err(|source| TensorFileError::writing(path, source))
}

/// A file about to be written: its header, and the tensors in the order of their data.
struct Layout<'a> {
    header: Vec<u8>,
    tensors: Vec<&'a NamedTensor<'a>>,
}

impl<'a> Layout<'a> {
    fn new(
        file: &Path,
        tensors: &'a [NamedTensor<'a>],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, TensorFileError> {
        check_tensors(file, tensors)?;
        let mut order: Vec<&NamedTensor<'_>> = tensors.iter().collect();
        order.sort_by(|a, b| file_order((a.dtype, &a.name), (b.dtype, &b.name)));
        let header = header_bytes(
            order.iter().map(|tensor| (&*tensor.name, tensor.dtype, &*tensor.shape, tensor.data.len())),
            metadata,
        );
        if header.len() > MAX_HEADER_BYTES {
            let reason = format!("the header would take {} bytes, the limit is {MAX_HEADER_BYTES}", header.len());
            let tensor = order.first().map(|tensor| tensor.name.clone()).unwrap_or_default();
            return Err(TensorFileError::Unwritable { file: file.to_owned(), tensor, reason });
        }
        Ok(Self { header, tensors: order })
    }

    fn write(&self, writer: &mut dyn Write) -> io::Result<()> {
        writer.write_all(&(self.header.len() as u64).to_le_bytes())?;
        writer.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|tensor| writer.write_all(&tensor.data))
    }
}

fn check_tensors(file: &Path, tensors: &[NamedTensor<'_>]) -> Result<(), TensorFileError> {
    let mut names = BTreeSet::new();
    for tensor in tensors {
        let reason = if tensor.name == "__metadata__" {
            "the format reserves this name; rename the tensor".to_owned()
        } else if !names.insert(tensor.name.as_str()) {
            "another tensor has the same name; rename one".to_owned()
        } else if tensor.expected_bytes() != Some(tensor.data.len()) {
            let (shape, dtype, bytes) = (&tensor.shape, tensor.dtype, tensor.data.len());
            format!("shape {shape:?} of {dtype} does not fit its {bytes} bytes; pass matching shape and data")
        } else {
            continue;
        };
        return Err(TensorFileError::Unwritable { file: file.to_owned(), tensor: tensor.name.clone(), reason });
    }
    Ok(())
}

/// The order of data in a file: wide elements first keeps every tensor aligned to its element (the order of the
/// safetensors crate too).
pub(crate) fn file_order(a: (Dtype, &str), b: (Dtype, &str)) -> std::cmp::Ordering {
    b.0.size().cmp(&a.0.size()).then_with(|| a.1.cmp(b.1))
}

/// The JSON header of tensors (name, dtype, shape, bytes) in the order of their data, padded with spaces so that the data
/// start at a multiple of 8 bytes.
pub(crate) fn header_bytes<'t>(
    tensors: impl Iterator<Item = (&'t str, Dtype, &'t [usize], usize)>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        // `json!` of a BTreeMap keeps its sorted order: that is what makes the bytes deterministic.
        entries.push(format!("\"__metadata__\":{}", serde_json::json!(metadata)));
    }
    let mut start = 0usize;
    for (name, dtype, shape, bytes) in tensors {
        let end = start + bytes;
        let name = serde_json::Value::from(name);
        let shape = serde_json::json!(shape);
        entries.push(format!("{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"));
        start = end;
    }
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// An open, validated safetensors file. Tensor data stay in the page cache until they are touched.
///
/// The file must not be shortened in place while it is open (the system then kills readers of a memory map with
/// SIGBUS). Calotype never does that: it replaces files by renaming.
///
/// ```
/// use calotype_weights::{NamedTensor, TensorFile, write_safetensors};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// let weight = NamedTensor::from_f32("weight", [2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// write_safetensors(&path, &[weight], &Default::default())?;
///
/// let file = TensorFile::open(&path)?;
/// assert_eq!(file.get_shaped("weight", &[2, 3])?.to_f32_vec()?[4], 5.0);
/// # Ok(())
/// # }
/// ```
pub struct TensorFile {
    map: MappedFile,
    /// Offset of the first data byte in the file.
    data_start: usize,
    /// Sorted by name.
    entries: Vec<HeaderEntry>,
    metadata: BTreeMap<String, String>,
}

/// A tensor's entry in the header; the byte range counts from the first data byte.
struct HeaderEntry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TensorFile").field("path", &self.path()).field("tensors", &self.len()).finish()
    }
}

impl TensorFile {
    /// Maps the file and checks its header: every tensor's byte range fits its shape and type, and the ranges cover
    /// the file without holes or overlaps.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Truncated`, `Header` or `UnsupportedDtype` of [`TensorFileError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TensorFileError> {
        Self::from_map(MappedFile::open(path.as_ref())?)
    }

    pub(crate) fn from_map(map: MappedFile) -> Result<Self, TensorFileError> {
        let path = map.path();
        let text = header_text(path, map.bytes())?;
        let (entries, metadata) = parse_header(path, text)?;
        let data_start = 8 + text.len();
        check_layout(path, &entries, map.bytes().len(), data_start)?;
        Ok(Self { map, data_start, entries, metadata })
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if the file holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True if there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The string map that its writer added.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`TensorFileError::MissingTensor`], with the most similar name.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, TensorFileError> {
        match self.entry(name) {
            Some(entry) => Ok(self.view(entry)),
            None => Err(TensorFileError::missing(self.path(), name, self.names())),
        }
    }

    fn entry(&self, name: &str) -> Option<&HeaderEntry> {
        let index = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        Some(&self.entries[index])
    }

    fn view<'a>(&'a self, entry: &'a HeaderEntry) -> TensorView<'a> {
        let data = &self.map.bytes()[self.data_start + entry.start..self.data_start + entry.end];
        TensorView { file: self.path(), name: &entry.name, dtype: entry.dtype, shape: &entry.shape, data }
    }

    /// Lets the system take back the memory that one tensor's pages hold (see [`crate::TensorSource::release`]).
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.entry(name) {
            self.map.release(self.data_start + entry.start..self.data_start + entry.end);
        }
    }

    /// One tensor that must have the given shape.
    ///
    /// # Errors
    /// [`TensorFileError::MissingTensor`] if there is none of that name, [`TensorFileError::WrongShape`] if it has
    /// another shape.
    pub fn get_shaped(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, TensorFileError> {
        self.get(name)?.expect_shape(shape)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.entries.iter().map(|entry| self.view(entry))
    }

    /// BLAKE3 hash of the whole file as mapped.
    pub fn file_blake3(&self) -> blake3::Hash {
        hash_bytes(self.map.bytes())
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.map.bytes().len() as u64
    }
}

/// A tensor's entry as the header spells it.
#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The bytes of the JSON header.
fn header_text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], TensorFileError> {
    let file = || path.to_owned();
    let actual = bytes.len() as u64;
    let Some((prefix, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(TensorFileError::Truncated { file: file(), actual, needed: 8 });
    };
    let announced = u64::from_le_bytes(*prefix);
    if announced > MAX_HEADER_BYTES as u64 {
        let reason = HeaderFault::TooLong { announced, limit: MAX_HEADER_BYTES as u64 };
        return Err(TensorFileError::Header { file: file(), reason });
    }
    // Other formats can carry a small number in their first 8 bytes; a header always starts with a brace.
    if rest.first().is_some_and(|&first| first != b'{') || announced == 0 {
        let reason = HeaderFault::Json("it does not start with a brace".to_owned());
        return Err(TensorFileError::Header { file: file(), reason });
    }
    rest.get(..announced as usize).ok_or(TensorFileError::Truncated { file: file(), actual, needed: 8 + announced })
}

/// The tensors, sorted by name, and the metadata of a header.
fn parse_header(path: &Path, text: &[u8]) -> Result<(Vec<HeaderEntry>, BTreeMap<String, String>), TensorFileError> {
    let fail = |reason| TensorFileError::Header { file: path.to_owned(), reason };
    let pairs: Pairs<&RawValue> =
        serde_json::from_slice(text).map_err(|error| fail(HeaderFault::Json(error.to_string())))?;
    let mut entries = Vec::with_capacity(pairs.0.len());
    let mut metadata = None;
    for (name, raw) in pairs.0 {
        if name == "__metadata__" {
            if metadata.replace(parse_metadata(raw).map_err(fail)?).is_some() {
                return Err(fail(HeaderFault::Duplicate(name)));
            }
        } else {
            entries.push(parse_entry(path, name, raw)?);
        }
    }
    entries.sort_unstable_by(|a: &HeaderEntry, b| a.name.cmp(&b.name));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(fail(HeaderFault::Duplicate(pair[0].name.clone())));
    }
    Ok((entries, metadata.unwrap_or_default()))
}

/// The string map; `null` is none, as the `safetensors` crate has it.
fn parse_metadata(raw: &RawValue) -> Result<BTreeMap<String, String>, HeaderFault> {
    let malformed = |reason| HeaderFault::Entry { tensor: "__metadata__".to_owned(), reason };
    let pairs: Option<Pairs<String>> = serde_json::from_str(raw.get()).map_err(|error| malformed(error.to_string()))?;
    let Some(pairs) = pairs else { return Ok(BTreeMap::new()) };
    let mut metadata = BTreeMap::new();
    for (key, value) in pairs.0 {
        if metadata.contains_key(&key) {
            return Err(malformed(format!("key `{key}` is there twice")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// One entry, whose byte range was checked against its shape and type.
fn parse_entry(path: &Path, tensor: String, raw: &RawValue) -> Result<HeaderEntry, TensorFileError> {
    let file = || path.to_owned();
    let fail = |reason| TensorFileError::Header { file: path.to_owned(), reason };
    let entry: RawEntry = match serde_json::from_str(raw.get()) {
        Ok(entry) => entry,
        Err(error) => return Err(fail(HeaderFault::Entry { tensor, reason: error.to_string() })),
    };
    let RawEntry { dtype, shape, data_offsets: (start, end) } = entry;
    let Some(dtype) = Dtype::from_name(&dtype) else {
        return Err(TensorFileError::UnsupportedDtype { file: file(), tensor, dtype });
    };
    let Some(needed) = dtype.bytes_of(&shape) else {
        return Err(fail(HeaderFault::Overflow { tensor, shape }));
    };
    if end.checked_sub(start) != Some(needed) {
        return Err(fail(HeaderFault::Size { tensor, needed, start, end }));
    }
    Ok(HeaderEntry { name: tensor, dtype, shape, start, end })
}

/// Checks that the tensors' ranges cover exactly the bytes from `data_start` to the end of the file.
fn check_layout(
    path: &Path,
    entries: &[HeaderEntry],
    file_bytes: usize,
    data_start: usize,
) -> Result<(), TensorFileError> {
    let fail = |reason| Err(TensorFileError::Header { file: path.to_owned(), reason });
    let mut order: Vec<&HeaderEntry> = entries.iter().collect();
    order.sort_unstable_by_key(|entry| (entry.start, entry.end));
    let mut previous: Option<&HeaderEntry> = None;
    for &entry in &order {
        let covered = previous.map_or(0, |entry| entry.end);
        if entry.start > covered {
            let (tensor, start, end) = (entry.name.clone(), covered, entry.start);
            return fail(HeaderFault::Hole { tensor, start, end });
        }
        if let Some(first) = previous.filter(|_| entry.start < covered) {
            return fail(HeaderFault::Overlap { first: first.name.clone(), second: entry.name.clone() });
        }
        previous = Some(entry);
    }
    let needed = (data_start as u64).saturating_add(previous.map_or(0, |entry| entry.end) as u64);
    let actual = file_bytes as u64;
    match needed.cmp(&actual) {
        std::cmp::Ordering::Greater => Err(TensorFileError::Truncated { file: path.to_owned(), actual, needed }),
        std::cmp::Ordering::Less => fail(HeaderFault::Trailing { needed, actual }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// One tensor of an open file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    file: &'a Path,
    name: &'a str,
    dtype: Dtype,
    shape: &'a [usize],
    data: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Its key in the file.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Extent of every axis; empty for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// The row-major elements as little-endian bytes; not necessarily aligned to the element size.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// BLAKE3 hash of the data bytes.
    pub fn blake3(&self) -> blake3::Hash {
        hash_bytes(self.data)
    }

    /// The same tensor, borrowing the data, ready to be written elsewhere.
    pub fn to_named(&self) -> NamedTensor<'a> {
        NamedTensor::new(self.name, self.dtype, self.shape, self.data)
    }

    /// The elements in place, for an F32 tensor that lies aligned in the file; `None` otherwise.
    pub fn as_f32_slice(&self) -> Option<&'a [f32]> {
        if self.dtype != Dtype::F32 {
            return None;
        }
        bytemuck::try_cast_slice(self.data).ok()
    }

    /// The elements as f32. Shorter types convert exactly; F64 rounds to nearest.
    ///
    /// # Errors
    /// [`TensorFileError::WrongDtype`] for integers and booleans.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, TensorFileError> {
        elements_as_f32(self.dtype, self.data).ok_or_else(|| self.wrong_dtype("a floating-point type"))
    }

    /// As [`to_f32_vec`](Self::to_f32_vec), refusing NaN and infinity (also an F64 too large for f32).
    ///
    /// # Errors
    /// [`TensorFileError::WrongDtype`] as [`to_f32_vec`](Self::to_f32_vec), [`TensorFileError::NonFinite`] for NaN and
    /// infinity.
    pub fn to_f32_vec_finite(&self) -> Result<Vec<f32>, TensorFileError> {
        let values = self.to_f32_vec()?;
        let Some(index) = values.iter().position(|value| !value.is_finite()) else {
            return Ok(values);
        };
        Err(TensorFileError::NonFinite {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            count: values.iter().filter(|value| !value.is_finite()).count(),
            index,
            value: values[index],
        })
    }

    /// The elements of an I64 or I32 tensor as i64.
    ///
    /// # Errors
    /// [`TensorFileError::WrongDtype`] for every other type.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>, TensorFileError> {
        match self.dtype {
            Dtype::I64 => Ok(elements(self.data).map(i64::from_le_bytes).collect()),
            Dtype::I32 => Ok(elements(self.data).map(|bytes| i64::from(i32::from_le_bytes(bytes))).collect()),
            _ => Err(self.wrong_dtype("one of I64, I32")),
        }
    }

    /// The view itself if it has the shape.
    ///
    /// # Errors
    /// [`TensorFileError::WrongShape`] if it has another shape.
    pub fn expect_shape(self, shape: &[usize]) -> Result<Self, TensorFileError> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(TensorFileError::WrongShape {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected: shape.to_vec(),
            got: self.shape.to_vec(),
        })
    }

    /// The view itself if it has the element type.
    ///
    /// # Errors
    /// [`TensorFileError::WrongDtype`] if it has another type.
    pub fn expect_dtype(self, dtype: Dtype) -> Result<Self, TensorFileError> {
        if self.dtype == dtype { Ok(self) } else { Err(self.wrong_dtype(dtype.name())) }
    }

    fn wrong_dtype(&self, expected: &'static str) -> TensorFileError {
        TensorFileError::WrongDtype {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected,
            got: self.dtype,
        }
    }
}

/// Fixed-size pieces of a byte slice, without any demand on its alignment.
fn elements<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}

fn elements_as_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let values = match dtype {
        Dtype::F32 => elements(data).map(f32::from_le_bytes).collect(),
        Dtype::F16 => elements(data).map(|bytes| half::f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => elements(data).map(|bytes| half::bf16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::F64 => elements(data).map(|bytes| f64::from_le_bytes(bytes) as f32).collect(),
        Dtype::F8E4M3 => data.iter().map(|&byte| e4m3_as_f32(byte)).collect(),
        Dtype::F8E5M2 => data.iter().map(|&byte| half::f16::from_bits(u16::from(byte) << 8).to_f32()).collect(),
        Dtype::I64
        | Dtype::I32
        | Dtype::I16
        | Dtype::I8
        | Dtype::U64
        | Dtype::U32
        | Dtype::U16
        | Dtype::U8
        | Dtype::Bool => return None,
    };
    Some(values)
}

/// An E4M3 number: a bias of 7, subnormal steps of 2^-9, and no infinities (Micikevicius et al., arXiv 2209.05433, table 1).
fn e4m3_as_f32(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2.0f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2.0f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use std::path::PathBuf;

    fn meta(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    /// Values of torch 2.15: `torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()` and `float8_e5m2`.
    #[test]
    fn eight_bit_floats_are_torchs() {
        let value = |dtype, byte| NamedTensor::new("x", dtype, [1], vec![byte]).to_f32_vec().unwrap()[0];
        for (byte, expected) in [
            (0x00, 0.0),
            (0x01, 0.001953125),
            (0x07, 0.013671875),
            (0x08, 0.015625),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(value(Dtype::F8E4M3, byte), expected, "{byte:#x}");
        }
        for (byte, expected) in
            [(0x00, 0.0), (0x01, 1.525_878_9e-5), (0x3c, 1.0), (0x3f, 1.75), (0x7b, 57344.0), (0x7c, f32::INFINITY)]
        {
            assert_eq!(value(Dtype::F8E5M2, byte), expected, "{byte:#x}");
        }
        assert!(value(Dtype::F8E4M3, 0x7f).is_nan() && value(Dtype::F8E5M2, 0x7e).is_nan());
    }

    #[test]
    fn metadata_of_null_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"__metadata__":null,"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let path = raw_file(folder.path(), header, &[7]);
        assert_eq!(TensorFile::open(&path).unwrap().metadata(), &BTreeMap::new());
        assert!(SafeTensors::deserialize(&std::fs::read(&path).unwrap()).is_ok());
        let header = header.replace("null", r#"{"epoch":3}"#);
        let path = raw_file(folder.path(), &header, &[7]);
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("__metadata__") && !error.contains("download"), "{error}");
        assert!(SafeTensors::deserialize(&std::fs::read(&path).unwrap()).is_err());
    }

    fn raw_file(folder: &Path, header: &str, data: &[u8]) -> PathBuf {
        let path = folder.join("raw.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn the_dtype_table_is_in_declaration_order_and_agrees_with_the_crate() {
        for (index, (dtype, name, size)) in DTYPES.iter().enumerate() {
            assert_eq!(*dtype as usize, index);
            let theirs: safetensors::Dtype = serde_json::from_value(serde_json::json!(name)).unwrap();
            assert_eq!(theirs.bitsize(), size * 8);
        }
    }

    #[test]
    fn every_dtype_goes_through_a_file_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.safetensors");
        let tensors: Vec<_> = DTYPES
            .iter()
            .map(|row| NamedTensor::new(format!("t.{}", row.1), row.0, vec![2, 3], vec![1u8; 6 * row.2]))
            .collect();
        write_safetensors(&path, &tensors, &meta(&[("a", "b"), ("c", "\"quoted\"\n")])).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.len(), tensors.len());
        assert_eq!(file.metadata()["c"], "\"quoted\"\n");
        for tensor in &tensors {
            let view = file.get(&tensor.name).unwrap();
            assert_eq!(view.to_named(), *tensor);
            assert_eq!(view.data().as_ptr() as usize % view.dtype().size(), 0, "{} is not aligned", view.name());
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_of_the_tensors_and_another_reader_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let values = [1.0f32, -2.5, 3.0];
        let halves = [half::bf16::from_f32(1.5)];
        let x = NamedTensor::from_f32("x", [3], &values);
        let y = NamedTensor::from_bf16("y", [1], &halves);
        let metadata = meta(&[("k2", "v"), ("k1", "v"), ("k3", "v")]);
        write_safetensors(&a, &[x.clone(), y.clone()], &metadata).unwrap();
        write_safetensors(&b, &[y, x], &metadata).unwrap();
        let bytes = std::fs::read(&a).unwrap();
        assert_eq!(bytes, std::fs::read(&b).unwrap());
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.tensor("x").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&values));
    }

    #[test]
    fn an_empty_file_of_no_tensors_and_a_scalar_and_an_empty_axis_are_valid() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.safetensors");
        write_safetensors(&path, &[], &BTreeMap::new()).unwrap();
        assert!(TensorFile::open(&path).unwrap().is_empty());
        let tensors = [NamedTensor::from_f32("s", [], &[4.0]), NamedTensor::from_f32("none", [0, 7], &[])];
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.get("s").unwrap().to_f32_vec().unwrap(), [4.0]);
        assert_eq!(file.get("none").unwrap().elements(), 0);
    }

    #[test]
    fn conversions_to_f32() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        let f16: Vec<_> = [0.5f32, 65504.0].map(half::f16::from_f32).into();
        let doubles: Vec<u8> = [0.1f64, 1e300].iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensors = [
            NamedTensor::from_f16("f16", [2], &f16),
            NamedTensor::new("f64", Dtype::F64, [2], doubles),
            NamedTensor::from_i64("i64", [1], &[7]),
        ];
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.get("f16").unwrap().to_f32_vec_finite().unwrap(), [0.5, 65504.0]);
        assert_eq!(file.get("f64").unwrap().to_f32_vec().unwrap(), [0.1f32, f32::INFINITY]);
        assert_eq!(file.get("i64").unwrap().to_i64_vec().unwrap(), [7]);
        let error = file.get("f64").unwrap().to_f32_vec_finite().unwrap_err();
        assert!(matches!(error, TensorFileError::NonFinite { count: 1, index: 1, .. }), "{error}");
        let error = file.get("i64").unwrap().to_f32_vec().unwrap_err().to_string();
        assert!(error.contains("c.safetensors: tensor `i64` has element type I64"), "{error}");
    }

    #[test]
    fn lookups_that_fail_say_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        write_safetensors(&path, &[NamedTensor::from_f32("conv_in.weight", [2], &[0.0; 2])], &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let error = file.get("conv_in.wieght").unwrap_err().to_string();
        assert!(error.contains("did you mean `conv_in.weight`?"), "{error}");
        let error = file.get_shaped("conv_in.weight", &[2, 1]).unwrap_err().to_string();
        assert!(error.contains("has shape [2], expected [2, 1]"), "{error}");
        let error = file.get("conv_in.weight").unwrap().expect_dtype(Dtype::BF16).unwrap_err().to_string();
        assert!(error.contains("element type F32, expected BF16"), "{error}");
        let error = TensorFile::open(folder.path().join("none")).unwrap_err();
        assert!(matches!(error, TensorFileError::NotFound { .. }));
        assert!(matches!(TensorFile::open(folder.path()).unwrap_err(), TensorFileError::Io { .. }));
    }

    #[test]
    fn every_truncation_is_called_a_truncation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        write_safetensors(&path, &[NamedTensor::from_f32("w", [5], &[1.0; 5])], &meta(&[("k", "v")])).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = TensorFile::open(&path).unwrap_err();
            assert!(matches!(error, TensorFileError::Truncated { .. }), "at {length}: {error}");
        }
        std::fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("the file goes on to"), "{error}");
    }

    #[test]
    fn attacks_on_the_header_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let attacks = [
            (
                "overlap",
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
            ),
            ("hole", r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#, 6),
            ("shape overflow", r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}}"#, 4),
            ("shape and range disagree", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
            ("backward range", r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[4,0]}}"#, 4),
            (
                "twice the same name",
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
            ),
            ("metadata that is no string", r#"{"__metadata__":{"a":1}}"#, 0),
            ("metadata key twice", r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0),
            ("not an object", "[1,2,3]", 0),
            ("trailing junk", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}"#, 1),
        ];
        for (attack, header, length) in attacks {
            let path = raw_file(folder.path(), header, &vec![0; length]);
            let error = TensorFile::open(&path).unwrap_err();
            assert!(matches!(error, TensorFileError::Header { .. }), "{attack}: {error}");
        }
        let path = folder.path().join("pickle.safetensors");
        std::fs::write(&path, b"PK\x03\x04 a zip archive, as torch.save writes it").unwrap();
        assert!(matches!(TensorFile::open(&path).unwrap_err(), TensorFileError::Header { .. }));
    }

    #[test]
    fn a_type_we_do_not_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"z":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#;
        let error = TensorFile::open(raw_file(folder.path(), header, &[0; 8])).unwrap_err().to_string();
        assert!(error.contains("tensor `z` has element type C64"), "{error}");
    }

    #[test]
    fn unwritable_tensors_are_named_and_the_old_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, b"old").unwrap();
        let one = [1.0f32];
        let good = NamedTensor::from_f32("a", [1], &one);
        let cases = [
            (vec![good.clone(), good.clone()], "same name"),
            (vec![NamedTensor::from_f32("a", [2], &one)], "does not fit its 4 bytes"),
            (vec![NamedTensor::from_f32("a", [usize::MAX, 2], &one)], "does not fit"),
            (vec![NamedTensor::from_f32("__metadata__", [1], &one)], "reserves this name"),
        ];
        for (tensors, part) in cases {
            let error = write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let error = write_safetensors(&folder.path().join("no/such/x"), &[good], &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, TensorFileError::Io { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("fuzz");
            std::fs::write(&path, bytes).unwrap();
            let _ = TensorFile::open(&path);
        }

        #[test]
        fn any_values_and_names_come_back_bit_for_bit(
            name in "\\PC{1,20}", values in proptest::collection::vec(any::<u32>(), 0..50),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("p.safetensors");
            let floats: Vec<f32> = values.iter().map(|&bits| f32::from_bits(bits)).collect();
            let tensor = NamedTensor::from_f32(name.as_str(), [floats.len()], &floats);
            write_safetensors(&path, std::slice::from_ref(&tensor), &BTreeMap::new()).unwrap();
            let file = TensorFile::open(&path).unwrap();
            prop_assert_eq!(file.get(&name).unwrap().data(), &tensor.data[..]);
            prop_assert_eq!(file.get(&name).unwrap().blake3(), tensor.blake3());
        }
    }
}
