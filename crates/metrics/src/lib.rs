//! Figures, images and reports about what a model has learned.
//!
//! Plain slices go in; numbers, PNG bytes, SVG and HTML text come out. Nothing here knows about tensors, models or the
//! stages of a particular run, so that every command of Calotype reports in the same way.
//!
//! - [`frechet`]: Fréchet distance between two sets of features (the FID, when they are Inception features).
//! - [`retrieval`]: CLIP score, caption retrieval, top-k accuracy.
//! - [`plot`]: line plots as self-contained SVG.
//! - [`grid`]: contact sheets of images with captions as PNG.
//! - [`report`]: a self-contained `report.html`.

mod error;
mod font;
pub mod frechet;
pub mod grid;
pub mod plot;
pub mod report;
pub mod retrieval;

pub use error::{MetricsError, Result};
pub use frechet::{GaussianAccumulator, GaussianStatistics, frechet_distance};
pub use grid::{GridOptions, encode_png, image_grid};
pub use plot::{LinePlot, Series};
pub use report::{Report, Section, Table};
pub use retrieval::{candidate_cosines, clip_score, retrieval_top1, top_k_accuracy};
