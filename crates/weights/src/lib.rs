//! Reading and writing model weights.
//!
//! [`tensor_file`] holds named tensors in safetensors files; [`source`] is the interface that all formats share; [`lora`] reads low-rank adapters; [`durable`] is the one way files are replaced on disk:
//! completely or not at all.

pub mod durable;
pub mod lora;
pub mod source;
pub mod tensor_file;

pub use lora::{LoraError, LoraSet};
pub use source::{TensorInfo, TensorSource};
pub use tensor_file::{Dtype, NamedTensor, TensorFile, TensorFileError, TensorView, write_safetensors};
