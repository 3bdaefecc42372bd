//! Training: tasks and their recipes, the loop that all tasks share, checkpoints, logs.
//!
//! [`task::Task`] is what one kind of training is; [`tasks`] holds them, one a file. [`stages::train`] runs one from its
//! recipe to the exported model.

pub mod averages;
mod beginning;
pub mod captions;
pub mod checkpoint;
mod classes;
pub mod config;
pub mod device;
pub mod encoders;
pub mod export;
pub mod frozen;
pub mod hooks;
pub mod images;
pub mod inputs;
pub mod mixing;
pub mod mlperf;
pub mod optim;
pub mod precache;
pub mod prepare;
mod preview;
pub mod recipe;
pub mod record;
pub mod runs;
pub mod saved;
pub mod sources;
pub mod stages;
pub mod start;
pub mod task;
pub mod tasks;
pub mod trackers;
pub mod trainable;
pub mod trainer;

pub use calotype_core::{Progress, StopFlag};
pub use checkpoint::{Checkpoint, CheckpointError, CheckpointStore};
pub use recipe::{RecipeError, RecipeLoader, Resolved};
pub use trackers::{Tracker, TrackerError, Trackers};
