//! Named tensors, wherever they lie: the one interface between file formats on one side and key maps and models on the
//! other.

use crate::tensor_file::{Dtype, NamedTensor, TensorFile, TensorFileError};
use std::collections::BTreeMap;
use std::path::Path;

/// Name, element type and shape of a tensor whose elements were not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The key, as the checkpoint spells it.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Size of each axis, in the checkpoint's order.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The weight of a layer in 8 bits: `number * scale[output]`, for inputs that were divided by `smooth[input]` (the factors of SmoothQuant,
/// Xiao et al. 2022).
#[derive(Clone, Debug)]
pub struct Int8Tensor<'a> {
    /// The numbers, of type `I8`: `[out, in]` or `[out, in, rows, columns]`.
    pub numbers: NamedTensor<'a>,
    /// `[out]`
    pub scales: Vec<f32>,
    /// `[in]`; none: inputs are not divided.
    pub smooth: Option<Vec<f32>>,
}

/// A set of named tensors that are read one at a time.
///
/// Elements come row-major and little-endian, borrowed from the file's memory map where the file stores them so.
pub trait TensorSource: Send + Sync {
    /// The file or folder that messages name.
    fn origin(&self) -> &Path;

    /// All tensors, in the order of the file.
    fn entries(&self) -> Vec<TensorInfo>;

    /// One tensor with its elements.
    ///
    /// # Errors
    /// There is no tensor of that name, or its bytes cannot be read.
    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError>;

    /// The numbers of a tensor that is stored in 8 bits with scales; none for others. [`TensorSource::tensor`] gives what they stand for.
    ///
    /// # Errors
    /// As of [`TensorSource::tensor`], and if scales are not as many as the numbers ask for.
    fn int8(&self, _name: &str) -> Result<Option<Int8Tensor<'_>>, TensorFileError> {
        Ok(None)
    }

    /// Texts that the file carries besides its tensors, by name; safetensors files and `.nemo` archives have such.
    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Says that a tensor was read and is not needed soon: the system may take back the memory of its pages. It can be
    /// read again; its bytes then come from the file once more. Sources that map no file do nothing.
    fn release(&self, _name: &str) {}
}

impl TensorSource for TensorFile {
    fn origin(&self) -> &Path {
        self.path()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        self.tensors()
            .map(|t| TensorInfo { name: t.name().into(), dtype: t.dtype(), shape: t.shape().to_vec() })
            .collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        Ok(self.get(name)?.to_named())
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        TensorFile::metadata(self).clone()
    }

    fn release(&self, name: &str) {
        TensorFile::release(self, name);
    }
}
