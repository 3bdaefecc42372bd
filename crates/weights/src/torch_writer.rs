//! Checkpoints as `torch.save` writes them: a zip archive of a pickle and the storages that it names. The pickle is a dictionary of
//! tensors, and names nothing beyond what `torch.load(weights_only=True)` makes tensors with.

use std::io::{self, Write};
use std::path::Path;

use crate::error::TensorFileError;
use crate::pickle::storage_class;
use crate::source::{TensorInfo, TensorSource};
use crate::stream::{Failure, check_names, write_tensor, written_dtype};
use crate::tensor_file::Dtype;
use crate::zip_writer::{Planned, ZipPlan};

/// The folder within the archive, which `torch.save` calls after the file.
const FOLDER: &str = "model_weights";

/// A checkpoint whose every byte is known but for the tensors', which are read once more when they are written.
pub(crate) struct TorchArchive<'a> {
    source: &'a dyn TensorSource,
    /// In the order of the source, with the types that they are written in.
    tensors: Vec<TensorInfo>,
    pickle: Vec<u8>,
    plan: ZipPlan,
}

/// Texts that torch wants in the archive: its byte order, and the version of its format.
const BYTE_ORDER: (&str, &[u8]) = ("byteorder", b"little");
const FORMAT: (&str, &[u8]) = ("version", b"3\n");

impl<'a> TorchArchive<'a> {
    /// Reads all tensors for their checksums; floating-point ones are written as `dtype` if one is given. `path` only names the file in
    /// errors.
    ///
    /// # Errors
    /// Those of reading the source; [`TensorFileError::Unwritable`] for a repeated name and for a type that torch has no storage of.
    pub(crate) fn plan(
        path: &Path,
        source: &'a dyn TensorSource,
        dtype: Option<Dtype>,
    ) -> Result<Self, TensorFileError> {
        let mut tensors = source.entries();
        check_names(path, &tensors)?;
        tensors.iter_mut().for_each(|tensor| tensor.dtype = written_dtype(tensor.dtype, dtype));
        let pickle = pickle_of(path, &tensors)?;
        let text = |(name, content): (&str, &[u8])| planned(name, content.len() as u64, crc32fast::hash(content));
        let mut entries = vec![text(("data.pkl", &pickle)), text(BYTE_ORDER)];
        for (number, tensor) in tensors.iter().enumerate() {
            let mut sum = Checksum::default();
            write_tensor(&mut sum, path, source, tensor).map_err(|failure| failure.named(path))?;
            entries.push(planned(&format!("data/{number}"), sum.length, sum.hasher.finalize()));
        }
        entries.push(text(FORMAT));
        Ok(Self { source, tensors, pickle, plan: ZipPlan::new(&entries) })
    }

    /// Bytes of the whole archive.
    pub(crate) fn length(&self) -> u64 {
        self.plan.length()
    }

    /// Writes the archive.
    pub(crate) fn write(&self, writer: &mut dyn Write, path: &Path) -> Result<(), Failure> {
        let mut entry = 0;
        let mut next = |writer: &mut dyn Write, content: &[u8]| {
            writer.write_all(self.plan.header(entry))?;
            entry += 1;
            writer.write_all(content)
        };
        next(writer, &self.pickle)?;
        next(writer, BYTE_ORDER.1)?;
        for tensor in &self.tensors {
            next(writer, &[])?;
            write_tensor(writer, path, self.source, tensor)?;
        }
        next(writer, FORMAT.1)?;
        Ok(writer.write_all(self.plan.end())?)
    }
}

fn planned(name: &str, length: u64, checksum: u32) -> Planned {
    Planned { name: format!("{FOLDER}/{name}"), length, checksum }
}

/// Counts and sums up what is written.
#[derive(Default)]
struct Checksum {
    hasher: crc32fast::Hasher,
    length: u64,
}

impl Write for Checksum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The dictionary of tensors, in protocol 2, as `torch.save` writes it: each tensor is a call of `_rebuild_tensor_v2` with its storage (a
/// class, its number in the archive, its elements), where it begins there, its sizes and strides.
fn pickle_of(path: &Path, tensors: &[TensorInfo]) -> Result<Vec<u8>, TensorFileError> {
    let mut out = Opcodes(b"\x80\x02}(".to_vec());
    for (number, tensor) in tensors.iter().enumerate() {
        let Some(class) = storage_class(tensor.dtype) else {
            return Err(TensorFileError::Unwritable {
                file: path.to_owned(),
                tensor: tensor.name.clone(),
                reason: format!("torch has no storage of type {}; give another type to write in", tensor.dtype),
            });
        };
        out.text(&tensor.name);
        out.global("torch._utils", "_rebuild_tensor_v2");
        out.0.extend_from_slice(b"((");
        out.text("storage");
        out.global("torch", class);
        out.text(&number.to_string());
        out.text("cpu");
        out.number(tensor.elements());
        out.0.extend_from_slice(b"tQ");
        out.number(0);
        out.tuple(&tensor.shape);
        out.tuple(&strides(&tensor.shape));
        // Without gradients; an ordered dictionary of hooks.
        out.0.push(b'\x89');
        out.global("collections", "OrderedDict");
        out.0.extend_from_slice(b")RtR");
    }
    out.0.extend_from_slice(b"u.");
    Ok(out.0)
}

/// Elements from one to the next along each axis, row-major.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

/// A pickle being written.
struct Opcodes(Vec<u8>);

impl Opcodes {
    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0.extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
    }

    fn number(&mut self, number: usize) {
        match (u8::try_from(number), u16::try_from(number), i32::try_from(number)) {
            (Ok(number), ..) => self.0.extend_from_slice(&[b'K', number]),
            (_, Ok(number), _) => {
                self.0.push(b'M');
                self.0.extend_from_slice(&number.to_le_bytes());
            }
            (.., Ok(number)) => {
                self.0.push(b'J');
                self.0.extend_from_slice(&number.to_le_bytes());
            }
            _ => {
                self.0.extend_from_slice(b"\x8a\x08");
                self.0.extend_from_slice(&(number as u64).to_le_bytes());
            }
        }
    }

    fn tuple(&mut self, numbers: &[usize]) {
        self.0.push(b'(');
        numbers.iter().for_each(|number| self.number(*number));
        self.0.push(b't');
    }
}
