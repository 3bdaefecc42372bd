//! The whole road at small size: dataset, CLIP, autoencoder, precached encodings, diffusion, pictures, judgement, report.
//!
//! Every step is the stage that a full-size run uses, with recipes of the same types; this crate only strings them
//! together, on the embedded captioned pictures. A second start in the same folder goes on where the first ended.

mod error;
mod generate;
mod judge;
mod recipe;
mod report;
mod tour;

pub use error::QuickstartError;
pub use generate::{Generator, GeneratorFolders};
pub use judge::{Figures, Judgement};
pub use recipe::{EmojiRecipe, EvaluationRecipe, QuickstartRecipe};
pub use tour::{Options, Stages, Summary, run};
