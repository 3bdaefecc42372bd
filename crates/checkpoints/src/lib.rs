//! Checkpoints: which layout a file or folder has, its components under canonical keys, conversion, and writing.
//!
//! Canonical are diffusers' keys and configurations for UNet and autoencoder, transformers' for CLIP and ViT, pytorch-fid's
//! for Inception; the models of Calotype load these and nothing else. [`component_keys`] lists the tensors that a
//! configuration asks for, as the model's own module lays them out; [`map`] says how another layout stores each of them (one
//! table a layout, `rules.rs`, read in both directions). [`Checkpoint`] opens whatever there is, [`inspect`] tells what it
//! is, [`convert()`] writes it in another layout, and [`Export`] writes live modules, and components of other checkpoints,
//! as diffusers and transformers save theirs. What is true of a published family stands in [`families`].

mod checkpoint;
mod convert;
mod error;
pub mod families;
mod files;
mod image_processor;
mod infer;
mod inspect;
mod kinds;
pub mod loading;
mod manifest;
pub mod map;
mod marks;
mod nemo;
mod networks;
mod recognise;
mod rules;
mod scheduler;
mod source;
pub mod tables;
mod timm;
mod write;

pub use calotype_core::UnknownName;
pub use checkpoint::{Checkpoint, EmbeddingFile, OpenOptions};
pub use convert::{Conversion, ConvertOptions, Replacement, Target, convert, convert_replaced};
pub use error::LayoutError;
pub use families::{AESTHETIC_SCORES, Corrections, Facts, Family, SizeNumbers, TextFacts};
pub use files::TextFiles;
pub use image_processor::{CLIP_MEAN, CLIP_STD, Filter, ImageProcessor, ImageProcessorError, Resize};
pub use inspect::{ComponentReport, Report, TensorReport, inspect};
pub use kinds::{Component, Layout, Prediction};
pub use networks::{Failure, NetworkConfig, PASS_OVER, TensorSpec, component_keys};
pub use source::ComponentSource;
pub use write::{Export, ModuleSource, Part, Placement, SCALE_UNKNOWN, Written};
