//! Training: recipes, checkpoints, run tracking, progress and orderly stops.

pub mod artifacts;
pub mod autoencoder;
pub mod batches;
pub mod checkpoint;
pub mod clip;
pub mod device;
pub mod diffusion;
pub mod encoders;
pub mod fid;
pub mod inputs;
pub mod optimizer;
pub mod precache;
pub mod progress;
pub mod recipe;
pub mod settings;
pub mod sources;
pub mod stages;
pub mod stop;
pub mod system;
pub mod tracker;
pub mod trainer;

pub use checkpoint::{Checkpoint, CheckpointError, CheckpointStore};
pub use progress::Progress;
pub use recipe::{RecipeError, RecipeLoader, Resolved};
pub use stop::StopFlag;
pub use tracker::{Tracker, TrackerError};
