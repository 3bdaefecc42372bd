//! Stages that prepare data, from lists of addresses and folders of images to shards that a cluster trains from.
//!
//! Each stage is a settings type, which is its command line too, and a function `run`. A stage can be killed at any
//! instant and started again, reports progress, and ends with an [`Account`]: counts of what went in, came out and was
//! left out, by reason. Stages that split over an array of jobs take [`slices::SliceArgs`].
//!
//! The crate knows no models, so that machines that only prepare data need none: the stages that run encoders are in
//! `calotype-train`.

pub mod account;
pub mod bench;
mod captions;
pub mod check;
pub mod coco;
pub mod command;
pub mod convert;
pub mod download;
pub mod emoji;
mod error;
pub mod fetch;
pub mod filter;
pub mod index;
mod names;
pub mod output;
mod paths;
pub mod pixels;
mod plan;
pub mod reorganize;
pub mod slices;
pub mod synth;
mod tars;
mod words;

pub use account::Account;
pub use command::DataStage;
pub use error::{Error, Result};
