//! Writing a safetensors file tensor by tensor, with at most one of them in memory.

use crate::source::{TensorInfo, TensorSource};
use crate::tensor_file::{Dtype, NamedTensor, TensorFileError, file_order, header_bytes};
use calotype_core::durable;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

/// Writes all tensors of a source to a safetensors file, atomically; floating-point tensors as `dtype` if one is given
/// (rounded to nearest even), all others as they are. The bytes are those of
/// [`write_safetensors`](crate::write_safetensors) for the same tensors.
///
/// # Errors
/// Those of reading the source; [`TensorFileError::Unwritable`] for a repeated name; `DiskFull` and `Io` from the system.
/// An existing file is then untouched.
pub fn write_source(
    path: &Path,
    source: &dyn TensorSource,
    dtype: Option<Dtype>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), TensorFileError> {
    let mut tensors = source.entries();
    check_names(path, &tensors)?;
    tensors.iter_mut().for_each(|tensor| tensor.dtype = written_dtype(tensor.dtype, dtype));
    tensors.sort_by(|a, b| file_order((a.dtype, &a.name), (b.dtype, &b.name)));
    let bytes = |tensor: &TensorInfo| tensor.elements() * tensor.dtype.size();
    let header = header_bytes(
        tensors.iter().map(|tensor| (&*tensor.name, tensor.dtype, &*tensor.shape, bytes(tensor))),
        metadata,
    );
    replace_tensors(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        tensors.iter().try_for_each(|tensor| write_tensor(writer, path, source, tensor))
    })
}

/// [`durable::replace_file`] through what may also fail at a tensor.
pub(crate) fn replace_tensors(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), TensorFileError> {
    let mut cause = None;
    let outcome = durable::replace_file(path, |writer| {
        fill(writer).map_err(|failure| match failure {
            Failure::Io(error) => error,
            Failure::Tensor(error) => {
                cause = Some(error);
                io::Error::other("a tensor could not be read")
            }
        })
    });
    match (outcome, cause) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(TensorFileError::writing(path, error)),
        (Ok(()), None) => Ok(()),
    }
}

/// Writes the bytes of a safetensors file to `writer`, for callers that make them durable themselves; `path` only names the
/// file in errors. `data` gives the little-endian elements of one of `tensors` by its place when they are due, and they are
/// dropped before the next ones are asked for. The bytes are those of [`write_safetensors`](crate::write_safetensors) for
/// the same tensors.
///
/// # Errors
/// Those of `data`; [`TensorFileError::Unwritable`] for a repeated or reserved name and for data that do not fit the shape;
/// `DiskFull` and `Io` from the system.
pub fn write_streamed<B: AsRef<[u8]>, E: From<TensorFileError>>(
    writer: &mut dyn Write,
    path: &Path,
    tensors: &[TensorInfo],
    metadata: &BTreeMap<String, String>,
    mut data: impl FnMut(usize) -> Result<B, E>,
) -> Result<(), E> {
    check_names(path, tensors)?;
    let refuse = |tensor: &TensorInfo, reason: String| TensorFileError::Unwritable {
        file: path.to_owned(),
        tensor: tensor.name.clone(),
        reason,
    };
    if let Some(reserved) = tensors.iter().find(|tensor| tensor.name == "__metadata__") {
        return Err(refuse(reserved, "the format reserves this name; rename the tensor".to_owned()).into());
    }
    let mut order: Vec<(usize, &TensorInfo)> = tensors.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| file_order((a.dtype, &a.name), (b.dtype, &b.name)));
    let bytes = |tensor: &TensorInfo| tensor.elements() * tensor.dtype.size();
    let entries = order.iter().map(|(_, tensor)| (&*tensor.name, tensor.dtype, &*tensor.shape, bytes(tensor)));
    let header = header_bytes(entries, metadata);
    let failed = |source| TensorFileError::writing(path, source);
    writer.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    writer.write_all(&header).map_err(failed)?;
    for (index, tensor) in order {
        let data = data(index)?;
        let data = data.as_ref();
        if data.len() != bytes(tensor) {
            let (shape, dtype, bytes) = (&tensor.shape, tensor.dtype, data.len());
            let reason =
                format!("shape {shape:?} of {dtype} does not fit its {bytes} bytes; pass matching shape and data");
            return Err(refuse(tensor, reason).into());
        }
        writer.write_all(data).map_err(failed)?;
    }
    Ok(())
}

/// What keeps a file of tensors from being written.
pub(crate) enum Failure {
    Io(io::Error),
    Tensor(TensorFileError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    /// The failure as one of the file at `path`.
    pub(crate) fn named(self, path: &Path) -> TensorFileError {
        match self {
            Self::Io(error) => TensorFileError::writing(path, error),
            Self::Tensor(error) => error,
        }
    }
}

/// Writes the elements of the tensor that `info` names, in its type.
pub(crate) fn write_tensor(
    writer: &mut dyn Write,
    path: &Path,
    source: &dyn TensorSource,
    info: &TensorInfo,
) -> Result<(), Failure> {
    let tensor = source.tensor(&info.name).map_err(Failure::Tensor)?;
    let data = converted(&tensor, info.dtype)
        .map_err(|reason| TensorFileError::Unwritable { file: path.to_owned(), tensor: info.name.clone(), reason })
        .map_err(Failure::Tensor)?;
    // What a source announced is what the header promises.
    if tensor.shape != info.shape || data.len() != info.elements() * info.dtype.size() {
        return Err(Failure::Tensor(TensorFileError::WrongShape {
            file: path.to_owned(),
            tensor: info.name.clone(),
            expected: info.shape.clone(),
            got: tensor.shape.clone(),
        }));
    }
    writer.write_all(&data).map_err(Failure::Io)?;
    drop(data);
    drop(tensor);
    source.release(&info.name);
    Ok(())
}

pub(crate) fn check_names(path: &Path, tensors: &[TensorInfo]) -> Result<(), TensorFileError> {
    let mut names = BTreeSet::new();
    let repeated = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str()));
    repeated.map_or(Ok(()), |tensor| {
        let reason = "another tensor has the same name".to_owned();
        Err(TensorFileError::Unwritable { file: path.to_owned(), tensor: tensor.name.clone(), reason })
    })
}

/// The type that a tensor of type `from` is written in.
pub fn written_dtype(from: Dtype, wanted: Option<Dtype>) -> Dtype {
    if from.is_float() { wanted.unwrap_or(from) } else { from }
}

/// The elements as `dtype`, without a copy if they are of it already; refused if one would become infinite.
fn converted<'t>(tensor: &'t NamedTensor<'_>, dtype: Dtype) -> Result<Cow<'t, [u8]>, String> {
    if tensor.dtype == dtype {
        return Ok(Cow::Borrowed(&tensor.data));
    }
    let Some(values) = tensor.to_f32_vec() else { return Ok(Cow::Borrowed(&tensor.data)) };
    let (largest, becomes_infinite): (f32, fn(f32) -> bool) = match dtype {
        Dtype::F16 => (half::f16::MAX.to_f32(), |value| half::f16::from_f32(value).is_infinite()),
        Dtype::BF16 => (half::bf16::MAX.to_f32(), |value| half::bf16::from_f32(value).is_infinite()),
        _ => (f32::MAX, |_| false),
    };
    let overflows = |value: &&f32| value.is_finite() && value.abs() > largest && becomes_infinite(**value);
    if let Some(value) = values.iter().find(overflows) {
        return Err(format!(
            "it holds {value}, and {dtype} goes to {largest}; write it in another type (--dtype bf16, f32)"
        ));
    }
    Ok(Cow::Owned(match dtype {
        Dtype::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&value| value.to_le_bytes()).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_file::{TensorFile, write_safetensors};

    #[test]
    fn the_bytes_are_those_of_the_writer_that_holds_everything() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let halves = [half::f16::from_f32(1.5)];
        let values = [1.0f32, -2.0];
        let tensors = [
            NamedTensor::from_f16("h", [1], &halves),
            NamedTensor::from_f32("x", [2], &values),
            NamedTensor::from_i64("i", [1], &[7]),
        ];
        let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        write_safetensors(&a, &tensors, &metadata).unwrap();
        write_source(&b, &TensorFile::open(&a).unwrap(), None, &metadata).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    }

    #[test]
    fn streamed_tensors_give_the_same_bytes_and_must_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let halves = [half::f16::from_f32(1.5)];
        let values = [1.0f32, -2.0];
        let tensors = [
            NamedTensor::from_f16("h", [1], &halves),
            NamedTensor::from_f32("x", [2], &values),
            NamedTensor::from_i64("i", [1], &[7]),
        ];
        let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        write_safetensors(&path, &tensors, &metadata).unwrap();
        let mut infos = tensors.clone().map(|NamedTensor { name, dtype, shape, .. }| TensorInfo { name, dtype, shape });
        let write = |infos: &[TensorInfo]| {
            let mut bytes = Vec::new();
            let data = |index: usize| Ok::<_, TensorFileError>(&tensors[index].data);
            write_streamed(&mut bytes, &path, infos, &metadata, data).map(|()| bytes)
        };
        assert_eq!(write(&infos).unwrap(), std::fs::read(&path).unwrap());
        infos[1].shape = vec![3];
        assert!(write(&infos).unwrap_err().to_string().contains("tensor `x`"));
        infos[1].name = "__metadata__".to_owned();
        assert!(write(&infos).unwrap_err().to_string().contains("reserves"));
        infos[1].name = "i".to_owned();
        assert!(write(&infos).unwrap_err().to_string().contains("same name"));
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let tensors = [NamedTensor::from_f32("x", [3], &[65510.0, f32::NAN, f32::INFINITY])];
        write_safetensors(&a, &tensors, &BTreeMap::new()).unwrap();
        write_source(&b, &TensorFile::open(&a).unwrap(), Some(Dtype::F16), &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&b).unwrap();
        assert_eq!(file.get("x").unwrap().to_named().not_finite(), 2, "those that were there");
        write_safetensors(&a, &[NamedTensor::from_f32("x", [2], &[1.0, -1e20])], &BTreeMap::new()).unwrap();
        let write = |dtype| write_source(&b, &TensorFile::open(&a).unwrap(), Some(dtype), &BTreeMap::new());
        let told = write(Dtype::F16).unwrap_err().to_string();
        assert!(told.contains("tensor `x`") && told.contains("65504") && told.contains("--dtype bf16"), "{told}");
        write(Dtype::BF16).unwrap();
    }

    #[test]
    fn only_floating_point_tensors_change_their_type() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let tensors = [NamedTensor::from_f32("x", [2], &[1.0, 1.0 + 1e-3]), NamedTensor::from_i64("i", [1], &[7])];
        write_safetensors(&a, &tensors, &BTreeMap::new()).unwrap();
        write_source(&b, &TensorFile::open(&a).unwrap(), Some(Dtype::BF16), &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&b).unwrap();
        assert_eq!(file.get("x").unwrap().dtype(), Dtype::BF16);
        assert_eq!(file.get("x").unwrap().to_f32_vec().unwrap(), [1.0, 1.0]);
        assert_eq!(file.get("i").unwrap().to_i64_vec().unwrap(), [7]);
    }
}
