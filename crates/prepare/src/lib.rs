//! Stages that prepare data, from lists of addresses and folders of pictures to shards that a cluster trains from.
//!
//! Each stage is a settings type (which is its command line, too), and a `run` that does the work, can be killed at any
//! instant and started again, reports progress, and ends with a [`Report`]: what went in, what came out, and what
//! was left out, by kind. Stages that split over an array of jobs take [`slices::SliceArgs`].
//!
//! The crate knows no models, so that machines that only prepare data need none: the stages that run encoders are in
//! `calotype-train`.

pub mod bench;
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
mod plan;
pub mod reorganize;
pub mod report;
pub mod slices;
pub mod synth;
mod tars;

pub use command::DataStage;
pub use error::{Error, Result};
pub use report::Report;
