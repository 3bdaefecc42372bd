//! Reading and writing model weights.
//!
//! [`source`] is the interface that all formats share and [`open_tensors`] opens whichever of them a file holds:
//! [`tensor_file`] is safetensors, [`torch_file`] what `torch.save` writes, [`nemo_file`] NeMo's archives, [`sharded`] an
//! index with the files beside it. Pickles are read by [`pickle`], which executes nothing. [`lora`] reads
//! adapters, [`embedding`] learned words, [`yaml`] configurations; [`stream`] and [`nemo_writer`] write large files. Files are replaced completely or not at all, by
//! [`calotype_core::durable`].

pub mod archive;
pub mod embedding;
pub mod error;
mod json;
pub mod lora;
mod map;
pub mod nemo_file;
pub mod nemo_writer;
pub mod open;
pub mod pickle;
pub mod sharded;
pub mod source;
pub mod stream;
pub mod tensor_file;
pub mod torch_file;
mod torch_writer;
pub mod yaml;
mod zip_writer;

pub use archive::ArchiveFault;
pub use embedding::{Embedding, EmbeddingError, EmbeddingSlot, read_embeddings};
pub use error::{HeaderFault, TensorFileError};
pub use lora::{LoraError, LoraSet};
pub use nemo_file::NemoFile;
pub use nemo_writer::write_nemo;
pub use open::{open_tensors, open_tensors_with};
pub use pickle::{PickleError, PickleFault, ReadOptions};
pub use sharded::{IndexFault, ShardedTensors};
pub use source::{Int8Tensor, TensorInfo, TensorSource};
pub use tensor_file::{Dtype, NamedTensor, TensorFile, TensorView, write_safetensors};
pub use torch_file::{TensorFault, TensorRoot, TorchFault, TorchFile, TorchFormat};
pub use yaml::{Yaml, YamlFault};
