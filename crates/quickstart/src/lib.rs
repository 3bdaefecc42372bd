//! Everything at small size: dataset, CLIP, autoencoder, precached encodings, diffusion, images, judgement, report.
//!
//! Every step is the stage that a full-size run uses, with recipes of the same types; this crate only strings them
//! together, on the embedded captioned images. A second start in the same folder goes on where the first ended.

mod claim;
mod draw;
mod error;
mod judge;
mod recipe;
mod report;
mod runner;

pub use error::QuickstartError;
pub use judge::{Figures, Judgement};
pub use recipe::{EvaluationRecipe, QuickstartRecipe, SamplingSettings};
pub use runner::{Options, Stages, Summary, run};
