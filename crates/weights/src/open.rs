//! Opening a file of tensors by its content. Extensions are not looked at: checkpoints are renamed often.

use std::path::Path;
use std::sync::Arc;

use crate::error::TensorFileError;
use crate::map::MappedFile;
use crate::nemo_file::{NemoFile, is_gzip, is_tar};
use crate::pickle::ReadOptions;
use crate::sharded::ShardedTensors;
use crate::source::TensorSource;
use crate::tensor_file::TensorFile;
use crate::torch_file::TorchFile;

/// Opens a safetensors file, a torch checkpoint (any of its layouts), a `.nemo` archive or the index of a sharded
/// checkpoint, whichever the content shows. Pickles may hold nothing but data.
///
/// ```
/// use calotype_weights::{Dtype, NamedTensor, open_tensors, write_safetensors};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.bin");
/// let bias = NamedTensor::from_f32("bias", [2], &[0.5, -0.5]);
/// write_safetensors(&path, &[bias], &Default::default())?;
///
/// let source = open_tensors(&path)?;
/// let entries = source.entries();
/// assert_eq!((entries[0].name.as_str(), entries[0].dtype, entries[0].elements()), ("bias", Dtype::F32, 2));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`TensorFileError::NotTensors`], which says what the file is instead, or what the format's reader reports.
pub fn open_tensors(path: impl AsRef<Path>) -> Result<Box<dyn TensorSource>, TensorFileError> {
    open_tensors_with(path, ReadOptions::default())
}

/// As [`open_tensors`], with a choice of how pickles are read.
///
/// # Errors
/// As [`open_tensors`].
pub fn open_tensors_with(
    path: impl AsRef<Path>,
    options: ReadOptions,
) -> Result<Box<dyn TensorSource>, TensorFileError> {
    let map = MappedFile::open(path.as_ref())?;
    let content = recognise(path.as_ref(), map.bytes())?;
    open_content(content, map, options)
}

/// Kind of a file, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Safetensors,
    /// A zip archive or a pickle.
    Torch,
    /// A tar archive, perhaps compressed.
    Nemo,
    /// A JSON object.
    Index,
}

pub(crate) fn open_content(
    content: Content,
    map: MappedFile,
    options: ReadOptions,
) -> Result<Box<dyn TensorSource>, TensorFileError> {
    Ok(match content {
        Content::Safetensors => Box::new(TensorFile::from_map(map)?),
        Content::Torch => {
            let whole = 0..map.bytes().len();
            Box::new(TorchFile::from_map(Arc::new(map), whole, options)?)
        }
        Content::Nemo => Box::new(NemoFile::from_map(map, options)?),
        Content::Index => Box::new(ShardedTensors::from_map(&map, options)?),
    })
}

const CONVERT: &str = "convert it to safetensors first";
const AGAIN: &str = "download it again, and look at what the server sent";

/// First bytes of other kinds of files, what they are, and what to do.
const OTHERS: [(&[u8], &str, &str); 18] = [
    (b"GGUF", "a GGUF file", CONVERT),
    (b"ggml", "a GGML file", CONVERT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (b"\x93NUMPY", "a numpy array", CONVERT),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
    (b"<", "an HTML or XML page", AGAIN),
    (b"TFL3", "a TensorFlow Lite file", CONVERT),
    (b"PAR1", "a Parquet file", "name the checkpoint instead"),
    (b"\x28\xb5\x2f\xfd", "a zstd-compressed file", "unpack it first"),
    (b"\xfd7zXZ", "an xz-compressed file", "unpack it first"),
    (b"BZh", "a bzip2-compressed file", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x89PNG", "an image", "name the checkpoint instead"),
    (b"\xff\xd8\xff", "an image", "name the checkpoint instead"),
    (b"\x7fELF", "a program", "name the checkpoint instead"),
    (b"%PDF", "a PDF document", "name the checkpoint instead"),
    (b"#!", "a script", "name the checkpoint instead"),
];

/// Recognises the bytes of a file.
pub(crate) fn recognise(path: &Path, bytes: &[u8]) -> Result<Content, TensorFileError> {
    let not_tensors = |found, remedy| Err(TensorFileError::NotTensors { file: path.to_owned(), found, remedy });
    if bytes.is_empty() {
        return Err(TensorFileError::Empty { file: path.to_owned() });
    }
    if bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 0..=5, ..]) && !has_header(bytes) {
        return Ok(Content::Torch);
    }
    if is_gzip(bytes) || is_tar(bytes) {
        return Ok(Content::Nemo);
    }
    if has_header(bytes) {
        return Ok(Content::Safetensors);
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    if text.starts_with(b"{") {
        return Ok(Content::Index);
    }
    if let Some(&(_, found, remedy)) = OTHERS.iter().find(|row| text.starts_with(row.0)) {
        return not_tensors(found, remedy);
    }
    if looks_like_onnx(bytes) {
        return not_tensors("an ONNX file", CONVERT);
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return not_tensors("a file of zeros alone", "copy or download it again");
    }
    not_tensors("of a kind that is not known", "name a safetensors file, a torch checkpoint or a .nemo archive")
}

/// True if the bytes start as a safetensors file does: a length, then a brace.
fn has_header(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') && bytes[..8].last() == Some(&0)
}

/// An ONNX model is a protocol buffer whose first field is the version of its format, and whose second the producer.
fn looks_like_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=20, 0x12, ..] | [0x08, 1..=20, 0x3a, ..])
}
