//! Datasets for Calotype: sources of samples, the order in which they are seen, and the loader that feeds the trainer.
//!
//! ```text
//! emoji / precache ─> webdataset shards ─> order ─> loader ─> batches
//! ```
//!
//! - [`sample`]: a sample, which is a key and named parts (bytes).
//! - [`source`]: sources of samples: shards here and elsewhere, folders of images, parquet files, mixtures.
//! - [`webdataset`]: tar shards with an index and checksums, written atomically and read through memory maps.
//! - [`mds`]: MosaicML Streaming's shards, read and written.
//! - [`order`]: the endless stream of sample positions as a pure function of (seed, position).
//! - [`loader`]: background threads that deliver batches strictly in that order.
//! - [`image`]: decoding, encoding and Pillow-exact resizing of 8-bit images.
//! - [`transform`]: from an image file to a model's input: resize, crop, flip, scale, by (seed, position).
//! - [`augment`]: random resized crop, colour jitter, AutoAugment and RandAugment, on given choices as torchvision's and timm's.
//! - [`buckets`]: image sizes of many shapes and about the same area.
//! - `emoji`: the embedded captioned images (Twemoji), a real dataset that needs no download.
//! - [`precache`]: running an encoder over a dataset once, restartably.
//! - [`npy`]: NumPy arrays as sample parts; [`npz`]: archives of them, and FID statistics.
//! - [`pickled`]: NeMo's pickled dictionaries of NumPy arrays as sample parts.
//! - [`wdinfo`]: NeMo's list of shards.
//! - [`quarantine`]: samples that a check found unfit, left out by every source.
//! - [`json`]: JSON as Python writes it.
//! - [`control`]: progress reports and clean stopping of long stages.
//!
//! The crate knows no models: encoders reach it through the trait [`precache::SampleEncoder`].
//!
//! The cargo features `emoji`, `parquet` and `remote`, all on by default, are for the sources that need many other crates.
//! A build without `parquet` or `remote` recognises such sources and refuses them with an error that names the feature.

pub mod augment;
pub mod buckets;
pub mod control;
mod difference;
#[cfg(feature = "emoji")]
pub mod emoji;
mod error;
pub mod files;
pub mod image;
pub mod json;
pub mod loader;
pub mod mds;
pub mod npy;
pub mod npz;
pub mod order;
pub mod pickled;
pub mod precache;
pub mod quarantine;
pub mod sample;
mod slice;
pub mod source;
mod told;
pub mod transform;
pub mod wdinfo;
pub mod webdataset;

pub use control::Control;
pub use error::{BoxError, Error, Result};
pub use loader::{Batch, Loader, LoaderConfig, OnError};
pub use order::{GlobalOrder, OrderConfig, Shuffle};
pub use quarantine::Quarantine;
pub use sample::{HeldSample, Sample, SampleRef};
pub use slice::Slice;
pub use source::{Mixture, Source, SourceOptions};
pub use wdinfo::WdInfo;
pub use webdataset::{Dataset, DatasetIndex, ShardLimits, ShardWriter};
