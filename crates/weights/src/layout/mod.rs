//! Checkpoint layouts: which one a file or folder has, its components under canonical keys, and conversion.
//!
//! Canonical are diffusers' keys and configurations for UNet and autoencoder, transformers' for CLIP and ViT, pytorch-fid's
//! for Inception; the models of Calotype load these and nothing else. [`specs`] lists the tensors that a configuration
//! asks for, [`map`] says how another layout stores each of them (one table a layout, `rules.rs`, read in both
//! directions), [`Checkpoint`] opens whatever there is, [`convert()`] writes it in another layout, [`inspect`] tells what it
//! is.

mod checkpoint;
mod convert;
mod error;
mod files;
mod inception;
mod infer;
mod inspect;
mod kinds;
mod manifest;
pub mod map;
mod recognise;
mod rules;
mod source;
pub mod specs;
pub mod tables;

pub use checkpoint::{Checkpoint, OpenOptions};
pub use convert::{Conversion, ConvertOptions, Target, convert};
pub use error::LayoutError;
pub use files::TextFiles;
pub use inspect::{ComponentReport, Report, TensorReport, inspect};
pub use kinds::{Component, Family, Layout, Prediction, UnknownName};
pub use source::ComponentSource;
