//! Reading and writing model weights.
//!
//! [`tensor_file`] holds named tensors in safetensors files; [`source`] is the interface that all formats share; [`layout`]
//! tells checkpoints apart, maps their keys and converts them, [`stream`] writes large files; [`durable`] is the one way files are replaced on disk:
//! completely or not at all.

pub mod durable;
pub mod layout;
pub mod source;
pub mod stream;
pub mod tensor_file;

pub use source::{TensorInfo, TensorSource};
pub use tensor_file::{Dtype, NamedTensor, TensorFile, TensorFileError, TensorView, write_safetensors};
