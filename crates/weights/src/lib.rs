//! Reading and writing model weights.
//!
//! [`tensor_file`] holds named tensors in safetensors files; [`durable`] is the one way files are replaced on disk:
//! completely or not at all.

pub mod durable;
pub mod tensor_file;

pub use tensor_file::{Dtype, NamedTensor, TensorFile, TensorFileError, TensorView, write_safetensors};
