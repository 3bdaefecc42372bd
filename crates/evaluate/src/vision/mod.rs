//! Vision models judged: top-k accuracy of classifiers, CLIP without training on the classes and in retrieval, linear probes
//! of frozen features; and what they make of pictures of one's own.
//!
//! ```text
//! model ─> Head (ViT, …) or ZeroShot (CLIP, class names, templates) ─> Classifier ─┬─> accuracy (Labelled) ─> Figure, tables
//!                                                                                └─> classify ─> probabilities
//! model ─> Clip ─┬─> retrieval (Captioned) ─> Figure
//!                └─> similarity ─> cosines, probabilities
//! model ─> Features ─> linear_probe (two of Labelled) ─> Figure, tables
//! ```
//!
//! [`Recipe`] is what the recipes of these evaluations are read into.

pub mod accuracy;
mod batches;
pub mod captioned;
pub mod classifier;
pub mod classify;
pub mod clip;
mod figures;
pub mod files;
pub mod head;
pub mod labelled;
pub mod linear_probe;
pub mod lists;
pub mod model;
pub mod page;
pub mod preparation;
pub mod prepared;
pub mod recipe;
pub mod report;
pub mod retrieval;
pub mod similarity;

pub use accuracy::{Accuracy, Ranked, accuracy};
pub use captioned::Captioned;
pub use classifier::{Classifier, Head, ZERO_SHOT_SCALE, ZeroShot};
pub use classify::{Guess, classify};
pub use clip::Clip;
pub use files::{picture_files, read_pictures};
pub use labelled::{Labelled, LabelledSettings};
pub use linear_probe::{LinearProbe, linear_probe};
pub use lists::{class_names, templates};
pub use model::{Placing, check_classifies, has_head, open_clip, open_features, open_head};
pub use preparation::ClassifierInput;
pub use recipe::{KINDS, Outcome, Recipe};
pub use retrieval::{Retrieval, retrieval};
pub use similarity::{Comparison, Similarity};
