//! The errors of files of tensors.

use std::io;
use std::path::{Path, PathBuf};

use crate::archive::ArchiveFault;
use crate::pickle::PickleError;
use crate::sharded::IndexFault;
use crate::tensor_file::Dtype;
use crate::torch_file::{TensorFault, TorchFault};
use calotype_core::{absence, durable};

/// An error of a tensor file. Every message names the file, the tensor where there is one, and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// No file at the path.
    #[error("{}: there is no such file{}; check the path", file.display(), absence(file))]
    NotFound {
        /// The path asked for.
        file: PathBuf,
    },
    /// The file exists and the system refused to read or write it.
    #[error("{}: cannot {action}: {source}; check the permissions and the disk", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Action that failed.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk, or the user's quota, is full.
    #[error(
        "{}: no space left on the disk (or in the quota) while writing; free some or choose another folder",
        file.display()
    )]
    DiskFull {
        /// The file being written.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file ends before the data that its header announces.
    #[error(
        "{}: the file is truncated: it holds {actual} bytes and needs {needed}; copy or download it again",
        file.display()
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes in the file.
        actual: u64,
        /// Bytes that its header announces.
        needed: u64,
    },
    /// The header is not a safetensors header, or contradicts itself or the file's length.
    #[error("{}: not a valid safetensors file: {reason}; {}", file.display(), reason.remedy())]
    Header {
        /// The file.
        file: PathBuf,
        /// The fault of the header.
        reason: HeaderFault,
    },
    /// The file has no content at all.
    #[error("{}: the file is empty; copy or download it again", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The content is of a kind that holds no tensors, or none that Calotype reads.
    #[error("{}: this is {found}, not a file of tensors that can be read; {remedy}", file.display())]
    NotTensors {
        /// The file.
        file: PathBuf,
        /// Kind of file that the content looks like.
        found: &'static str,
        /// The remedy.
        remedy: &'static str,
    },
    /// A zip or tar archive is damaged, contradicts itself, or lacks a part.
    #[error("{}: {reason}", file.display())]
    Archive {
        /// The file.
        file: PathBuf,
        /// The fault.
        reason: ArchiveFault,
    },
    /// A pickle is damaged or names something that is not data.
    #[error("{}: pickle `{part}`: {source}", file.display())]
    Pickle {
        /// The file.
        file: PathBuf,
        /// Name of the pickle within the file.
        part: String,
        /// The fault.
        source: PickleError,
    },
    /// The parts of a torch checkpoint do not fit together.
    #[error("{}: {reason}", file.display())]
    Torch {
        /// The file.
        file: PathBuf,
        /// The fault.
        reason: TorchFault,
    },
    /// One tensor of a checkpoint contradicts the file's content.
    #[error("{}: tensor `{tensor}` {reason}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The fault.
        reason: Box<TensorFault>,
    },
    /// The index of a sharded checkpoint is damaged or does not fit its shards.
    #[error("{}: {reason}", file.display())]
    Index {
        /// The index file.
        file: PathBuf,
        /// The fault.
        reason: IndexFault,
    },
    /// An element type that Calotype does not read.
    #[error(
        "{}: tensor `{tensor}` has element type {dtype}, which is not supported; convert it to F32, F16, BF16 or F8",
        file.display()
    )]
    UnsupportedDtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's name in the header.
        dtype: String,
    },
    /// No tensor of that name.
    #[error("{}: there is no tensor `{tensor}` among its {count}{}", file.display(), did_you_mean(nearest.as_deref()))]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// The name asked for.
        tensor: String,
        /// Number of tensors in the file.
        count: usize,
        /// The name in the file that is most like it.
        nearest: Option<String>,
    },
    /// A tensor's shape is not the one needed.
    #[error(
        "{}: tensor `{tensor}` has shape {got:?}, expected {expected:?}; the file belongs to another model \
         configuration",
        file.display()
    )]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape needed.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A number of the scales of weights in 8 bits that cannot be one.
    #[error(
        "{}: tensor `{tensor}` holds {value} at element {index}: what weights in 8 bits are multiplied by, and inputs divided by, is finite and \
         above zero (a scale may be zero); quantize the checkpoint again",
        file.display()
    )]
    Scale {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A tensor's element type is not the one needed.
    #[error("{}: tensor `{tensor}` has element type {got}, expected {expected}; convert the file", file.display())]
    WrongDtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The types that would do.
        expected: &'static str,
        /// The type in the file.
        got: Dtype,
    },
    /// A tensor holds NaN or infinity where finite values are required.
    #[error(
        "{}: tensor `{tensor}` holds {count} non-finite values, the first ({value}) at element {index}; \
         the run that wrote it had diverged: use an earlier checkpoint",
        file.display()
    )]
    NonFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Number of NaN and infinite elements.
        count: usize,
        /// Row-major index of the first.
        index: usize,
        /// That element.
        value: f32,
    },
    /// The caller's tensors cannot be put into one file.
    #[error("{}: cannot write tensor `{tensor}`: {reason}", file.display())]
    Unwritable {
        /// The file to be written.
        file: PathBuf,
        /// The tensor at fault.
        tensor: String,
        /// The fault, in words.
        reason: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; the file belongs to another model or layout".to_owned(),
    }
}

impl TensorFileError {
    /// The variant for a name that is not among `names`.
    pub(crate) fn missing<'a>(file: &Path, tensor: &str, names: impl ExactSizeIterator<Item = &'a str>) -> Self {
        const ALIKE: f64 = 0.75;
        let count = names.len();
        let scored = names.map(|known| (strsim::normalized_damerau_levenshtein(tensor, known), known));
        let nearest = scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
        let nearest = nearest.map(|(_, known)| known.to_owned());
        Self::MissingTensor { file: file.to_owned(), tensor: tensor.to_owned(), count, nearest }
    }

    /// True if the request is at fault, not the file: what it names is not there.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The variant for a system error met while reading (`NotFound`, `Io`) `file`.
    pub(crate) fn reading(file: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { file: file.to_owned() },
            _ => Self::Io { file: file.to_owned(), action: "read it", source },
        }
    }

    /// The variant for a system error met while writing (`DiskFull`, `Io`) `file`.
    pub(crate) fn writing(file: &Path, source: io::Error) -> Self {
        if durable::is_disk_full(&source) {
            return Self::DiskFull { file: file.to_owned(), source };
        }
        Self::Io { file: file.to_owned(), action: "write it", source }
    }
}

impl HeaderFault {
    /// What to do: a header that reads well and contradicts itself came so from its writer, and a new copy is the same.
    fn remedy(&self) -> &'static str {
        match self {
            Self::TooLong { .. } | Self::Json(_) => "if it should be one, copy or download it again",
            Self::Trailing { .. } => "cut it there if these bytes are no part of it, or copy or download it again",
            Self::Entry { .. }
            | Self::Duplicate(_)
            | Self::Overflow { .. }
            | Self::Size { .. }
            | Self::Overlap { .. }
            | Self::Hole { .. } => "the program that wrote it is at fault: save the tensors again with another one",
        }
    }
}

/// A fault of the header of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The first eight bytes announce more than any header may take.
    #[error("its first 8 bytes announce a header of {announced} bytes; the limit is {limit}")]
    TooLong {
        /// Bytes announced.
        announced: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The header is not JSON of the right form.
    #[error("its header is not a JSON object of tensors: {0}")]
    Json(String),
    /// The entry of one tensor is not what the format asks for.
    #[error("the entry of tensor `{tensor}` is malformed: {reason}")]
    Entry {
        /// The tensor.
        tensor: String,
        /// The JSON reader's words.
        reason: String,
    },
    /// A name occurs twice.
    #[error("tensor `{0}` is there twice")]
    Duplicate(String),
    /// A shape whose number of bytes no machine can count.
    #[error("the shape {shape:?} of tensor `{tensor}` overflows")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The byte range is not as long as the shape and the type ask for.
    #[error("tensor `{tensor}` needs {needed} bytes by shape and type, and its range {start}..{end} is another length")]
    Size {
        /// The tensor.
        tensor: String,
        /// Bytes by shape and type.
        needed: usize,
        /// First byte.
        start: usize,
        /// Byte after the last.
        end: usize,
    },
    /// Two tensors share bytes.
    #[error("the bytes of tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
    },
    /// Bytes that belong to no tensor.
    #[error("bytes {start}..{end} of the data, before tensor `{tensor}`, belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// First byte of the hole.
        start: usize,
        /// Byte after the hole.
        end: usize,
    },
    /// Bytes after the last tensor.
    #[error("its tensors end at byte {needed} and the file goes on to {actual}")]
    Trailing {
        /// End of the tensors, in bytes from the first one.
        needed: u64,
        /// Length of the file.
        actual: u64,
    },
}
