//! Figures, images and reports about what a model has learned.
//!
//! Plain slices go in; numbers, PNG bytes, SVG and HTML text come out. Nothing here knows about tensors, models or the
//! stages of a particular run, so that every command of Calotype reports in the same way.
//!
//! - [`gaussian`]: mean and covariance of features, in slices that merge to the same bits.
//! - [`frechet`]: Fréchet distance between two sets of features (the FID, when they are Inception features).
//! - [`kid`], [`cmmd`]: maximum mean discrepancies, with the kernels of the Kernel Inception Distance and of CMMD.
//! - [`inception_score`]: Inception Score.
//! - [`neighbours`]: precision and recall, density and coverage.
//! - [`retrieval`]: CLIP scores, retrieval, top-k accuracy; [`ranking`]: the order of equal scores in PyTorch.
//! - [`logistic`]: linear probes of frozen features.
//! - [`bootstrap`]: confidence intervals.
//! - [`plot`]: line plots and charts as self-contained SVG and PNG.
//! - [`grid`]: contact sheets of images with captions as PNG.
//! - [`report`]: a self-contained `report.html`.
//!
//! Features are `f32`, row-major, and sums `f64`. What takes long runs on the threads of `calotype_kernels`, and their
//! number changes no bit of a result.

pub mod bootstrap;
pub mod cmmd;
mod error;
mod font;
pub mod frechet;
pub mod gaussian;
pub mod grid;
pub mod inception_score;
pub mod kid;
mod lbfgs;
pub mod logistic;
pub mod neighbours;
mod pairs;
pub mod plot;
pub mod ranking;
pub mod report;
pub mod retrieval;
mod singular;
mod spread;
#[cfg(test)]
mod testing;
mod triangle;

pub use bootstrap::{Bootstrap, Interval, interval, mean_interval};
pub use cmmd::{CmmdSettings, clip_mmd};
pub use error::{MetricsError, Result};
pub use frechet::{check_gaussian, frechet_distance};
pub use gaussian::{GaussianAccumulator, GaussianStatistics};
pub use grid::{GridOptions, encode_png, image_grid};
pub use inception_score::{ScoreOrder, inception_score};
pub use kid::{KidSettings, SubsetChoice, kernel_distance};
pub use logistic::{LogisticOptions, LogisticRegression};
pub use neighbours::{BallRule, Neighbourhoods, neighbourhoods};
pub use plot::{Chart, Drawing, LinePlot, Series};
pub use ranking::{argsort_descending, top_k};
pub use report::{Report, Section, Table};
pub use retrieval::{
    Recalls, Ties, candidate_cosines, clip_score, normalize_rows, pair_cosines, retrieval_recalls, retrieval_top1,
    top_k_accuracy, top_k_accuracy_with_ties, torchmetrics_clip_score,
};
pub use spread::Spread;
