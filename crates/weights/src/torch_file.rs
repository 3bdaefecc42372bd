//! Checkpoints that `torch.save` wrote.
//!
//! Three layouts, as `torch/serialization.py` writes and reads them:
//! - since torch 1.6 a zip archive (`caffe2/serialize/inline_container.cc`): `<folder>/data.pkl` is the pickle and
//!   `<folder>/data/<key>` are the storages, stored without compression;
//! - before, a magic number, a version and a description of the machine, the pickle, the list of storage keys (five
//!   pickles one after the other), then each storage behind its number of elements;
//! - a bare pickle whose arrays are numpy's, as some frameworks exchange weights.
//!
//! The pickles go through [`crate::pickle`]: nothing in them is executed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::archive::{ArchiveFault, ZipArchive, ZipEntry};
use crate::error::TensorFileError;
use crate::map::MappedFile;
use crate::pickle::{self, Elements, Kind, Pickle, PickleError, ReadOptions, TensorRecord, Value};
use crate::source::{TensorInfo, TensorSource};
use crate::tensor_file::{Dtype, NamedTensor};

/// A fault of the parts of a torch checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TorchFault {
    /// The old format's version is unknown.
    #[error("the file says that it is of version {0:?} of torch's old format, which is 1001")]
    Version(Option<i64>),
    /// One of the pickles of the old format is not what it must be.
    #[error("the {0} of torch's old format is not what it should be; copy or download the file again")]
    Preamble(&'static str),
    /// The byte order is neither of the two.
    #[error("its byte order is neither `little` nor `big`")]
    ByteOrder,
    /// The old format's storages do not end where the file ends.
    #[error("the storages end at byte {needed}, and the file at {actual}; copy or download it again")]
    Length {
        /// Bytes that the storages need.
        needed: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// A storage is listed that the pickle does not describe, or twice.
    #[error("storage `{0}` is listed twice, or is not described by the pickle")]
    UnknownStorage(String),
    /// A storage has another length than the pickle says.
    #[error("storage `{key}` holds {actual} elements, and its description says {described}")]
    StorageLength {
        /// The storage.
        key: String,
        /// Elements by the storage.
        actual: i64,
        /// Elements by the pickle.
        described: usize,
    },
    /// There is no dictionary of tensors.
    #[error("no tensor was found in it; its content is {0}")]
    NoTensors(String),
    /// Several dictionaries hold tensors and none of them is the usual one.
    #[error("tensors are under {0}; say which of them to read")]
    Ambiguous(String),
    /// More dictionaries of tensors than any checkpoint has.
    #[error("tensors are spread over more than {0} dictionaries, which is no checkpoint of a model")]
    Scattered(usize),
    /// The dictionary asked for is not there.
    #[error("there are no tensors under `{asked}`; they are under {there}")]
    NoSuchRoot {
        /// The path asked for.
        asked: String,
        /// Those there are.
        there: String,
    },
}

/// A fault of one tensor of a checkpoint. The words continue "tensor `name` …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFault {
    /// Its storage is not in the file.
    #[error("lies in storage `{0}`, which the file does not have; copy or download it again")]
    MissingStorage(String),
    /// Its storage has another length than described.
    #[error("lies in storage `{key}` of {actual} bytes, which should have {needed}; copy or download the file again")]
    StorageSize {
        /// The storage.
        key: String,
        /// Bytes in the file.
        actual: usize,
        /// Bytes that the description needs.
        needed: usize,
    },
    /// Elements outside the storage.
    #[error(
        "with shape {shape:?}, strides {strides:?} and offset {offset} reaches outside its storage of {bytes} bytes"
    )]
    OutOfRange {
        /// Sizes.
        shape: Vec<usize>,
        /// Strides in elements.
        strides: Vec<usize>,
        /// First element.
        offset: usize,
        /// Length of the storage.
        bytes: usize,
    },
    /// A shape whose number of bytes no machine can count.
    #[error("has shape {0:?}, which overflows")]
    Overflow(Vec<usize>),
    /// One stored element repeated until it takes far more memory than the file.
    #[error("repeats its elements up to {bytes} bytes, and a file of this length may ask for {limit}; refused")]
    Repeated {
        /// Bytes of the tensor.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A name that is there twice.
    #[error("is there twice")]
    Duplicate,
}

/// Torch's layouts of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorchFormat {
    /// The zip archive of torch 1.6 and later.
    Zip,
    /// The sequence of pickles and storages before that.
    Legacy,
    /// A pickle alone, with numpy arrays.
    Pickle,
}

/// A dictionary of a checkpoint that holds tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRoot {
    /// Keys that lead to it, joined by dots; empty for the file's outermost dictionary.
    pub path: String,
    /// Number of tensors directly in it.
    pub tensors: usize,
    /// The dictionary's identity in the pickle.
    identity: usize,
}

/// Keys under which published checkpoints keep the model, in the order of preference: PyTorch Lightning and LDM, plain training
/// loops, DeepSpeed, Composer, averaged weights; learned embeddings of tokens last (beside them may lie the tokens' ids).
const USUAL_ROOTS: [&str; 10] = [
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "state.model",
    "params",
    "state_dict_ema",
    "params_ema",
    "string_to_param",
    "string_to_param._parameters",
];

/// An open torch checkpoint. Tensors are those of one dictionary ([`root`](Self::root)): the usual one, or the one that
/// [`select_root`](Self::select_root) chose. States of optimizers are not tensors of the model and are passed over; all
/// else is in [`value`](Self::value).
///
/// The file must not be shortened in place while it is open (see [`crate::TensorFile`]).
pub struct TorchFile {
    map: Arc<MappedFile>,
    /// The checkpoint's bytes in the map.
    range: Range<usize>,
    format: TorchFormat,
    pickle: Pickle,
    text: PickleText,
    storages: Storages,
    big_endian: bool,
    roots: Vec<TensorRoot>,
    root: String,
    /// In the order of the file.
    tensors: Vec<Named>,
    /// Numbers of `tensors`, sorted by name.
    by_name: Vec<u32>,
}

/// A tensor of the chosen dictionary.
#[derive(Clone, Copy)]
struct Named {
    /// Identity of its key, a text.
    key: usize,
    /// Number of the tensor in the pickle.
    tensor: u32,
}

/// Place of the bytes of the main pickle.
enum PickleText {
    InFile(Range<usize>),
    Unpacked(Vec<u8>),
}

/// Place of the storages.
enum Storages {
    Zip { archive: ZipArchive, folder: String },
    Legacy(HashMap<String, Range<usize>>),
    Inline,
}

/// The parts that opening a layout yields.
struct Parts {
    format: TorchFormat,
    pickle: Pickle,
    text: PickleText,
    storages: Storages,
    big_endian: bool,
}

/// The bytes that a tensor's storage has, and where in them it starts.
struct Placement<'a> {
    bytes: Place<'a>,
    /// First byte of the tensor.
    start: usize,
    big_endian: bool,
}

enum Place<'a> {
    InFile(Range<usize>),
    Packed(&'a ZipEntry),
    Decoded(&'a [u8]),
}

impl Place<'_> {
    fn length(&self) -> usize {
        match self {
            Place::InFile(range) => range.len(),
            Place::Packed(entry) => entry.length,
            Place::Decoded(bytes) => bytes.len(),
        }
    }
}

impl std::fmt::Debug for TorchFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (format, root, tensors) = (self.format, &self.root, self.tensors.len());
        let mut shown = formatter.debug_struct("TorchFile");
        shown.field("path", &self.map.path()).field("format", &format).field("root", root).field("tensors", &tensors);
        shown.finish()
    }
}

impl TorchFile {
    /// Maps the file, reads its pickle and checks that every tensor of the usual dictionary lies within the file.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `NotTensors`, `Archive`, `Pickle`, `Torch`, `Tensor` or `UnsupportedDtype` of [`TensorFileError`].
    pub fn open(path: impl AsRef<Path>, options: ReadOptions) -> Result<Self, TensorFileError> {
        let map = Arc::new(MappedFile::open(path.as_ref())?);
        let whole = 0..map.bytes().len();
        Self::from_map(map, whole, options)
    }

    /// The checkpoint that is a piece of a mapped file.
    pub(crate) fn from_map(
        map: Arc<MappedFile>,
        range: Range<usize>,
        options: ReadOptions,
    ) -> Result<Self, TensorFileError> {
        let parts = Opener { path: map.path(), bytes: &map.bytes()[range.clone()], options }.open()?;
        let Parts { format, pickle, text, storages, big_endian } = parts;
        let (roots, root, tensors, by_name) = (Vec::new(), String::new(), Vec::new(), Vec::new());
        let mut file = Self { map, range, format, pickle, text, storages, big_endian, roots, root, tensors, by_name };
        file.roots = RootSearch::new(&file.pickle).run(file.value()).map_err(|reason| file.fault(reason))?;
        let usual = usual_root(&file.roots, file.value()).map_err(|reason| file.fault(reason))?;
        file.select_root(&usual)?;
        Ok(file)
    }

    /// The file's layout among those of torch.
    pub fn format(&self) -> TorchFormat {
        self.format
    }

    /// All dictionaries that hold tensors, the states of optimizers left out.
    pub fn roots(&self) -> &[TensorRoot] {
        &self.roots
    }

    /// The path of the dictionary whose tensors these are.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Takes the tensors of another dictionary from now on.
    ///
    /// # Errors
    /// [`TorchFault::NoSuchRoot`], or what is wrong with one of its tensors; the choice is then as it was.
    pub fn select_root(&mut self, path: &str) -> Result<(), TensorFileError> {
        let Some(root) = self.roots.iter().find(|root| root.path == path) else {
            let (asked, there) = (path.to_owned(), list_roots(&self.roots));
            return Err(self.fault(TorchFault::NoSuchRoot { asked, there }));
        };
        let dict = self.pickle.value(root.identity, self.pickle_text());
        let mut tensors = Vec::with_capacity(root.tensors);
        for (key, name, tensor) in dict.into_iter().flat_map(tensors_of) {
            let record = self.record(tensor, name)?;
            self.place(name, record)?;
            tensors.push(Named { key, tensor });
        }
        let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
        by_name.sort_unstable_by_key(|&number| self.name_of(tensors[number as usize]));
        let name = |number: u32| self.name_of(tensors[number as usize]);
        if let Some(pair) = by_name.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
            return Err(self.tensor_fault(name(pair[0]), TensorFault::Duplicate));
        }
        (self.tensors, self.by_name, self.root) = (tensors, by_name, path.to_owned());
        Ok(())
    }

    /// The name of a tensor.
    fn name_of(&self, named: Named) -> &str {
        self.pickle.value(named.key, self.pickle_text()).and_then(Value::as_str).unwrap_or_default()
    }

    fn record(&self, tensor: u32, name: &str) -> Result<&TensorRecord, TensorFileError> {
        // Numbers come from the same pickle: the error is never met.
        self.pickle.tensor(tensor).ok_or_else(|| TensorFileError::missing(self.map.path(), name, [].into_iter()))
    }

    /// The tensor of that name, with the name as the file owns it.
    fn find(&self, name: &str) -> Result<(&str, &TensorRecord), TensorFileError> {
        let order = |&number: &u32| self.name_of(self.tensors[number as usize]).cmp(name);
        let Ok(index) = self.by_name.binary_search_by(order) else {
            let names = self.tensors.iter().map(|&named| self.name_of(named));
            return Err(TensorFileError::missing(self.map.path(), name, names));
        };
        let named = self.tensors[self.by_name[index] as usize];
        Ok((self.name_of(named), self.record(named.tensor, name)?))
    }

    /// Everything in the file's pickle as plain values: epoch, hyper-parameters and the like.
    pub fn value(&self) -> Value<'_> {
        self.pickle.root(self.pickle_text())
    }

    /// Names of the unknown classes that were skipped, with the number of their objects (see
    /// [`ReadOptions::skip_unknown_objects`]).
    pub fn skipped(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        self.pickle.skipped()
    }

    /// Compares the whole content with the checksums of the archive. Older layouts have none and pass. Files that were written
    /// with torch's checksums switched off fail.
    ///
    /// # Errors
    /// [`ArchiveFault::Checksum`], with the entry.
    pub fn verify_checksums(&self) -> Result<(), TensorFileError> {
        let Storages::Zip { archive, .. } = &self.storages else { return Ok(()) };
        let archive_fault = |reason| TensorFileError::Archive { file: self.map.path().to_owned(), reason };
        archive.entries().iter().try_for_each(|entry| entry.verify(self.bytes())).map_err(archive_fault)
    }

    fn bytes(&self) -> &[u8] {
        &self.map.bytes()[self.range.clone()]
    }

    fn pickle_text(&self) -> &[u8] {
        match &self.text {
            PickleText::InFile(range) => &self.bytes()[range.clone()],
            PickleText::Unpacked(bytes) => bytes,
        }
    }

    fn fault(&self, reason: TorchFault) -> TensorFileError {
        TensorFileError::Torch { file: self.map.path().to_owned(), reason }
    }

    fn tensor_fault(&self, tensor: &str, reason: TensorFault) -> TensorFileError {
        TensorFileError::Tensor {
            file: self.map.path().to_owned(),
            tensor: tensor.to_owned(),
            reason: Box::new(reason),
        }
    }

    /// The element type, or the error that names it.
    fn dtype(&self, name: &str, record: &TensorRecord) -> Result<Dtype, TensorFileError> {
        record.dtype.map_err(|dtype| TensorFileError::UnsupportedDtype {
            file: self.map.path().to_owned(),
            tensor: name.to_owned(),
            dtype: dtype.to_owned(),
        })
    }

    /// Place of a tensor's elements, checked against the storage.
    fn place(&self, name: &str, record: &TensorRecord) -> Result<Placement<'_>, TensorFileError> {
        let dtype = self.dtype(name, record)?;
        let fault = |reason| self.tensor_fault(name, reason);
        let (bytes, view, offset, big_endian) = match record.elements {
            Elements::Inline { bytes, big_endian } => (self.inline(bytes), 0, 0, big_endian),
            Elements::Storage { index, offset } => {
                let (place, view) = self.storage(index).map_err(fault)?;
                (place, view, offset, self.big_endian)
            }
        };
        let length = bytes.length();
        let out_of_range = || {
            let (shape, strides) = (record.shape.clone(), record.strides.clone());
            fault(TensorFault::OutOfRange { shape, strides, offset, bytes: length })
        };
        let size = dtype.size();
        let total = dtype.bytes_of(&record.shape).ok_or_else(|| fault(TensorFault::Overflow(record.shape.clone())))?;
        let start = offset.checked_mul(size).and_then(|start| start.checked_add(view)).ok_or_else(out_of_range)?;
        let end = extent(record).and_then(|elements| elements.checked_mul(size)?.checked_add(start));
        if end.is_none_or(|end| end > length) {
            return Err(out_of_range());
        }
        let limit = repeating_limit(self.range.len());
        if total > length && total > limit {
            return Err(fault(TensorFault::Repeated { bytes: total, limit }));
        }
        Ok(Placement { bytes, start, big_endian })
    }

    /// Bytes of an array that lies in the pickle itself.
    fn inline(&self, span: crate::pickle::Span) -> Place<'_> {
        match (&self.text, span.source_range()) {
            (PickleText::InFile(text), Some(range)) => Place::InFile(text.start + range.start..text.start + range.end),
            _ => Place::Decoded(self.pickle.bytes(span, self.pickle_text())),
        }
    }

    /// A storage, and the first byte in it that its description means.
    fn storage(&self, index: u32) -> Result<(Place<'_>, usize), TensorFault> {
        let missing = |key: &str| TensorFault::MissingStorage(key.to_owned());
        let record = self.pickle.storage(index).ok_or_else(|| missing("?"))?;
        let key = String::from_utf8_lossy(self.pickle.bytes(record.key, self.pickle_text()));
        let place = match &self.storages {
            Storages::Zip { archive, folder } => {
                let entry = archive.entry(self.bytes(), &format!("{folder}data/{key}")).ok_or_else(|| missing(&key))?;
                if entry.stored { Place::InFile(entry.data.clone()) } else { Place::Packed(entry) }
            }
            Storages::Legacy(ranges) => Place::InFile(ranges.get(key.as_ref()).ok_or_else(|| missing(&key))?.clone()),
            Storages::Inline => return Err(missing(&key)),
        };
        // Types that are not read were refused before; their storages are never looked at.
        let size = record.dtype.map_or(1, Dtype::size);
        let needed = record.elements.saturating_mul(size);
        if place.length() != needed {
            return Err(TensorFault::StorageSize { key: key.into_owned(), actual: place.length(), needed });
        }
        Ok((place, record.view.0.saturating_mul(size)))
    }

    fn read(&self, name: &str, record: &TensorRecord) -> Result<Cow<'_, [u8]>, TensorFileError> {
        let placement = self.place(name, record)?;
        let dtype = self.dtype(name, record)?;
        let archive_fault = |reason| TensorFileError::Archive { file: self.map.path().to_owned(), reason };
        let storage = match placement.bytes {
            Place::InFile(range) => Cow::Borrowed(&self.bytes()[range]),
            Place::Packed(entry) => entry.content(self.bytes()).map_err(archive_fault)?,
            Place::Decoded(bytes) => Cow::Borrowed(bytes),
        };
        let mut data = if is_dense(record) {
            let total = dtype.bytes_of(&record.shape).unwrap_or(0);
            let piece = placement.start..placement.start + total;
            match storage {
                Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[piece]),
                Cow::Owned(bytes) if piece == (0..bytes.len()) => Cow::Owned(bytes),
                Cow::Owned(bytes) => Cow::Owned(bytes[piece].to_vec()),
            }
        } else {
            Cow::Owned(gather(&storage[placement.start..], dtype.size(), &record.shape, &record.strides))
        };
        if placement.big_endian && dtype.size() > 1 {
            data.to_mut().chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
        }
        Ok(data)
    }
}

impl TensorSource for TorchFile {
    fn origin(&self) -> &Path {
        self.map.path()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let info = |&named: &Named| {
            let record = self.pickle.tensor(named.tensor)?;
            let (name, shape) = (self.name_of(named).to_owned(), record.shape.clone());
            Some(TensorInfo { name, dtype: record.dtype.ok()?, shape })
        };
        self.tensors.iter().filter_map(info).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        let (name, record) = self.find(name)?;
        let data = self.read(name, record)?;
        Ok(NamedTensor::new(name, self.dtype(name, record)?, record.shape.clone(), data))
    }

    fn release(&self, name: &str) {
        let placement = self.find(name).and_then(|(name, record)| self.place(name, record));
        if let Ok(Placement { bytes: Place::InFile(range), .. }) = placement {
            self.map.release(self.range.start + range.start..self.range.start + range.end);
        }
    }
}

/// Opens the layouts.
struct Opener<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    options: ReadOptions,
}

impl Opener<'_> {
    fn open(&self) -> Result<Parts, TensorFileError> {
        if self.bytes.is_empty() {
            return Err(TensorFileError::Empty { file: self.path.to_owned() });
        }
        if self.bytes.starts_with(b"PK") {
            return self.open_zip();
        }
        const LONGEST_MAGIC: usize = 64;
        let memory = pickle::memory_limit(self.bytes.len());
        let first = self.pickle(self.bytes, "first of the file", memory)?;
        if first.length() <= LONGEST_MAGIC && is_magic(first.root(self.bytes)) {
            return self.open_legacy(first.length());
        }
        let text = PickleText::InFile(0..first.length());
        Ok(Parts { format: TorchFormat::Pickle, pickle: first, text, storages: Storages::Inline, big_endian: false })
    }

    fn fault(&self, reason: TorchFault) -> TensorFileError {
        TensorFileError::Torch { file: self.path.to_owned(), reason }
    }

    fn archive_fault(&self, reason: ArchiveFault) -> TensorFileError {
        TensorFileError::Archive { file: self.path.to_owned(), reason }
    }

    fn pickle_fault(&self, part: &str, source: PickleError) -> TensorFileError {
        TensorFileError::Pickle { file: self.path.to_owned(), part: part.to_owned(), source }
    }

    fn pickle(&self, text: &[u8], part: &str, memory: usize) -> Result<Pickle, TensorFileError> {
        pickle::read(text, self.options, memory).map_err(|source| self.pickle_fault(part, source))
    }

    fn open_zip(&self) -> Result<Parts, TensorFileError> {
        let archive = ZipArchive::read(self.bytes).map_err(|reason| self.archive_fault(reason))?;
        let folder = self.folder_of(&archive)?;
        let part = format!("{folder}data.pkl");
        let content = |name: &str| match archive.entry(self.bytes, name) {
            Some(entry) => entry.content(self.bytes).map(Some).map_err(|reason| self.archive_fault(reason)),
            None => Ok(None),
        };
        let big_endian = match content(&format!("{folder}byteorder"))?.as_deref() {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(_) => return Err(self.fault(TorchFault::ByteOrder)),
        };
        let entry = archive.entry(self.bytes, &part).filter(|entry| entry.stored);
        let text = match (entry, content(&part)?) {
            (Some(entry), _) => PickleText::InFile(entry.data.clone()),
            (None, unpacked) => PickleText::Unpacked(unpacked.unwrap_or_default().into_owned()),
        };
        let memory = pickle::memory_limit(self.bytes.len());
        let pickle = match &text {
            PickleText::InFile(range) => self.pickle(&self.bytes[range.clone()], &part, memory)?,
            PickleText::Unpacked(bytes) => self.pickle(bytes, &part, memory)?,
        };
        let storages = Storages::Zip { archive, folder };
        Ok(Parts { format: TorchFormat::Zip, pickle, text, storages, big_endian })
    }

    /// The folder inside the archive, with its slash. Its name is the file's when it was written.
    fn folder_of(&self, archive: &ZipArchive) -> Result<String, TensorFileError> {
        const PICKLE: &[u8] = b"data.pkl";
        let names = || archive.entries().iter().map(|entry| entry.raw_name(self.bytes));
        let is_top = |name: &&[u8]| name.iter().filter(|&&byte| byte == b'/').count() <= 1;
        let mut folders = names().filter(is_top).filter_map(|name| name.strip_suffix(PICKLE));
        let missing = |part, remedy| self.archive_fault(ArchiveFault::MissingPart { part, remedy });
        let Some(folder) = folders.find(|folder| folder.is_empty() || folder.ends_with(b"/")) else {
            if names().any(|name| name.ends_with(b".npy")) {
                let found = "this is a zip archive of numpy arrays (`.npz`)";
                let remedy = "convert it to safetensors first";
                return Err(self.archive_fault(ArchiveFault::Unsupported { found, remedy }));
            }
            return Err(missing("data.pkl", "it is not a checkpoint of torch's; convert it to safetensors"));
        };
        let folder = String::from_utf8_lossy(folder).into_owned();
        if archive.entry(self.bytes, &format!("{folder}constants.pkl")).is_some() {
            let found = "this is a TorchScript program, not a checkpoint";
            let remedy = "save the module's state_dict() instead";
            return Err(self.archive_fault(ArchiveFault::Unsupported { found, remedy }));
        }
        Ok(folder)
    }

    /// The layout before torch 1.6; `at` is the end of the magic number's pickle.
    fn open_legacy(&self, mut at: usize) -> Result<Parts, TensorFileError> {
        const SMALL: usize = 64 << 10;
        let mut next = |part, memory| {
            let start = at;
            let pickle = self.pickle(&self.bytes[start..], part, memory)?;
            at += pickle.length();
            Ok::<_, TensorFileError>((pickle, start))
        };
        let (version, start) = next("version", SMALL)?;
        let version = version.root(&self.bytes[start..]).as_i64();
        if version != Some(1001) {
            return Err(self.fault(TorchFault::Version(version)));
        }
        let (machine, start) = next("description of the machine", SMALL)?;
        let little = machine.root(&self.bytes[start..]).get("little_endian").and_then(Value::as_bool);
        let little = little.ok_or_else(|| self.fault(TorchFault::Preamble("description of the machine")))?;
        let (pickle, start) = next("content", pickle::memory_limit(self.bytes.len()))?;
        let (keys, keys_start) = next("list of storages", pickle.memory_left())?;
        let content = &self.bytes[start..start + pickle.length()];
        let storages = self.legacy_storages(&pickle, content, keys.root(&self.bytes[keys_start..]), at)?;
        let text = PickleText::InFile(start..start + pickle.length());
        let storages = Storages::Legacy(storages);
        Ok(Parts { format: TorchFormat::Legacy, pickle, text, storages, big_endian: !little })
    }

    /// The ranges of the storages, which start at `at`.
    fn legacy_storages(
        &self,
        pickle: &Pickle,
        content: &[u8],
        keys: Value<'_>,
        mut at: usize,
    ) -> Result<HashMap<String, Range<usize>>, TensorFileError> {
        if keys.kind() != Kind::List {
            return Err(self.fault(TorchFault::Preamble("list of storages")));
        }
        let mut described = HashMap::new();
        for record in pickle.storages() {
            let key = pickle.bytes(record.key, content);
            described.entry(key).or_insert((record.elements, record.dtype));
        }
        let mut ranges = HashMap::new();
        for key in keys.items() {
            let key = key.as_str().ok_or_else(|| self.fault(TorchFault::Preamble("list of storages")))?;
            let unknown = || self.fault(TorchFault::UnknownStorage(key.to_owned()));
            let (elements, dtype) = described.remove(key.as_bytes()).ok_or_else(unknown)?;
            let dtype = dtype.map_err(|dtype| TensorFileError::UnsupportedDtype {
                file: self.path.to_owned(),
                tensor: format!("storage {key}"),
                dtype: dtype.to_owned(),
            })?;
            let needed = elements.saturating_mul(dtype.size()).saturating_add(at).saturating_add(8);
            let length = |needed: usize| {
                self.fault(TorchFault::Length { needed: needed as u64, actual: self.bytes.len() as u64 })
            };
            let count = self.bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or_else(|| length(needed))?;
            let actual = i64::from_le_bytes(*count);
            if usize::try_from(actual).ok() != Some(elements) {
                let key = key.to_owned();
                return Err(self.fault(TorchFault::StorageLength { key, actual, described: elements }));
            }
            if needed > self.bytes.len() {
                return Err(length(needed));
            }
            ranges.insert(key.to_owned(), at + 8..needed);
            at = needed;
        }
        if at != self.bytes.len() {
            let (needed, actual) = (at as u64, self.bytes.len() as u64);
            return Err(self.fault(TorchFault::Length { needed, actual }));
        }
        Ok(ranges)
    }
}

/// The number that the old format starts with, 0x1950a86a20f9469cfc6c, as a long integer or in digits.
fn is_magic(value: Value<'_>) -> bool {
    const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    match value.kind() {
        Kind::BigInt(bytes) => bytes == MAGIC,
        Kind::Text(digits) => digits == "119547037146038801333356L",
        _ => false,
    }
}

/// Tensors directly in a dictionary: identity of the key, name, number of the tensor.
fn tensors_of(dict: Value<'_>) -> impl Iterator<Item = (usize, &str, u32)> {
    dict.pairs().filter_map(|(key, value)| Some((key.identity()?, key.as_str()?, value.tensor()?)))
}

/// Looks for dictionaries with tensors that text keys lead to. Each is looked at once, however often it is referred to.
struct RootSearch {
    /// By identity.
    seen: Vec<bool>,
    roots: Vec<TensorRoot>,
}

impl RootSearch {
    fn new(pickle: &Pickle) -> Self {
        Self { seen: vec![false; pickle.identities()], roots: Vec::new() }
    }

    fn run(mut self, top: Value<'_>) -> Result<Vec<TensorRoot>, TorchFault> {
        self.visit(top, &mut Vec::new())?;
        Ok(self.roots)
    }

    fn visit<'a>(&mut self, dict: Value<'a>, path: &mut Vec<&'a str>) -> Result<(), TorchFault> {
        const DEEPEST: usize = 3;
        const LONGEST_KEY: usize = 256;
        const MOST: usize = 256;
        let Some(identity) = dict.identity().filter(|&identity| !self.seen[identity]) else { return Ok(()) };
        self.seen[identity] = true;
        let tensors = tensors_of(dict).count();
        if tensors > 0 {
            if self.roots.len() == MOST {
                return Err(TorchFault::Scattered(MOST));
            }
            self.roots.push(TensorRoot { path: path.join("."), tensors, identity });
        }
        if path.len() == DEEPEST {
            return Ok(());
        }
        for (key, value) in dict.pairs().filter(|(_, value)| value.kind() == Kind::Dict) {
            let key = key.as_str().filter(|key| key.len() <= LONGEST_KEY && !key.contains("optimizer"));
            let Some(key) = key else { continue };
            path.push(key);
            self.visit(value, path)?;
            path.pop();
        }
        Ok(())
    }
}

fn usual_root(roots: &[TensorRoot], top: Value<'_>) -> Result<String, TorchFault> {
    let has = |path: &str| roots.iter().any(|root| root.path == path);
    match roots {
        [] => Err(TorchFault::NoTensors(describe(top))),
        [only] => Ok(only.path.clone()),
        _ => {
            let usual = USUAL_ROOTS.into_iter().chain([""]).find(|path| has(path));
            usual.map(str::to_owned).ok_or_else(|| TorchFault::Ambiguous(list_roots(roots)))
        }
    }
}

fn list_roots(roots: &[TensorRoot]) -> String {
    const MOST: usize = 10;
    let mut listed: Vec<String> =
        roots.iter().take(MOST).map(|root| format!("`{}` ({} tensors)", root.path, root.tensors)).collect();
    if roots.len() > MOST {
        listed.push(format!("{} more", roots.len() - MOST));
    }
    if listed.is_empty() { "no dictionary".to_owned() } else { listed.join(", ") }
}

/// A few words about a value that should have held tensors.
fn describe(value: Value<'_>) -> String {
    const MOST: usize = 8;
    const LONGEST: usize = 60;
    let keys: Vec<String> = value
        .pairs()
        .filter_map(|(key, _)| key.as_str())
        .take(MOST)
        .map(|key| format!("`{}`", key.chars().take(LONGEST).collect::<String>()))
        .collect();
    match value.kind() {
        Kind::Dict if keys.is_empty() => "a dictionary without names".to_owned(),
        Kind::Dict => format!("a dictionary of {}", keys.join(", ")),
        Kind::Tensor => "one tensor without a name".to_owned(),
        Kind::List | Kind::Tuple => "a list".to_owned(),
        Kind::Object(name) | Kind::Class(name) => format!("an object of `{name}`, which was skipped"),
        _ => "a single value".to_owned(),
    }
}

/// Elements from the first to the last one of a strided tensor, both included; 0 when it is empty. `None` on overflow.
fn extent(record: &TensorRecord) -> Option<usize> {
    if record.shape.contains(&0) {
        return Some(0);
    }
    let mut axes = record.shape.iter().zip(&record.strides);
    axes.try_fold(1usize, |extent, (&size, &stride)| extent.checked_add((size - 1).checked_mul(stride)?))
}

/// True if the elements lie one after the other in row-major order.
pub(crate) fn is_dense(record: &TensorRecord) -> bool {
    if record.shape.contains(&0) {
        return true;
    }
    let mut step = 1usize;
    for (&size, &stride) in record.shape.iter().zip(&record.strides).rev() {
        if size != 1 && stride != step {
            return false;
        }
        step = step.saturating_mul(size);
    }
    true
}

/// Bytes that a tensor may take which repeats stored elements (a stride of 0).
fn repeating_limit(file_bytes: usize) -> usize {
    const SMALL_FILES: usize = 256 << 10;
    file_bytes.saturating_add(SMALL_FILES)
}

/// Copies a strided tensor into row-major order. The caller has checked that all elements lie within `storage`.
pub(crate) fn gather(storage: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let total = shape.iter().product::<usize>() * size;
    let mut dense = Vec::with_capacity(total);
    // Inner axes that lie densely are copied as one run.
    let (mut run, mut outer) = (1, shape.len());
    while outer > 0 && (strides[outer - 1] == run || shape[outer - 1] == 1) {
        run *= shape[outer - 1];
        outer -= 1;
    }
    let mut index = vec![0; outer];
    while dense.len() < total {
        let offset: usize = index.iter().zip(strides).map(|(&index, &stride)| index * stride).sum();
        dense.extend_from_slice(&storage[offset * size..(offset + run) * size]);
        for axis in (0..outer).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    dense
}
