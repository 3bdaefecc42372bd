//! Datasets for Calotype: where samples come from, in which order they are seen, and how they reach the trainer.
//!
//! ```text
//! emoji / precache ─> webdataset shards ─> order ─> loader ─> batches
//! ```
//!
//! - [`sample`]: one sample: a key and named parts (bytes).
//! - [`webdataset`]: tar shards with an index and checksums, written atomically and read through memory maps.
//! - [`order`]: the endless stream of sample positions as a pure function of (seed, position).
//! - [`loader`]: background threads that deliver batches strictly in that order.
//! - [`image`]: decoding, encoding and Pillow-exact resizing of 8-bit pictures.
//! - [`transform`]: from a picture file to a model's input: resize, crop, flip, scale, by (seed, position).
//! - [`buckets`]: picture sizes of many shapes and about the same area.
//! - [`emoji`]: the embedded captioned pictures (Twemoji), a real dataset that needs no download.
//! - [`precache`]: running an encoder over a dataset once, restartably.
//! - [`npy`]: NumPy arrays as sample parts; [`npz`]: archives of them, and FID statistics.
//! - [`pickled`]: NeMo's pickled dictionaries of NumPy arrays as sample parts.
//! - [`wdinfo`]: NeMo's list of shards.
//! - [`quarantine`]: samples that a check found unfit, left out by every source.
//! - [`control`]: progress reports and clean stopping of long stages.
//!
//! The crate knows no models: encoders reach it through the trait [`precache::SampleEncoder`].

pub mod buckets;
pub mod control;
pub mod emoji;
mod error;
pub mod files;
pub mod image;
pub mod loader;
pub mod npy;
pub mod npz;
pub mod order;
pub mod pickled;
pub mod precache;
pub mod quarantine;
pub mod sample;
pub mod transform;
pub mod wdinfo;
pub mod webdataset;

pub use control::Control;
pub use error::{BoxError, Error, Result};
pub use loader::{Batch, Loader, LoaderConfig, OnError};
pub use order::GlobalOrder;
pub use quarantine::Quarantine;
pub use sample::{Sample, SampleRef};
pub use wdinfo::WdInfo;
pub use webdataset::{Dataset, DatasetIndex, ShardLimits, ShardWriter};
