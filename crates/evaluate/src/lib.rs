//! Judges pictures as the field does.
//!
//! Pictures go once through the networks that the chosen metrics need ([`Pass`]), whatever the number of metrics; what is
//! kept of them is a [`State`] for each kind of features, which can be saved, continued and merged; a [`Metric`] makes
//! [`Figure`]s of it, each with the [`Fingerprint`] of everything that it depends on.
//!
//! ```text
//! Pictures ─> Features (a network with its published preparation: FEATURES) ─> State ─> Metric (METRICS) ─> Figure
//! ```
//!
//! Figures do not depend on batches, threads, slices or restarts: a picture's features are the same bits in any batch, and
//! states keep rows in the order of the pictures.

mod error;
pub mod features;
pub mod figure;
pub mod metrics;
pub mod pass;
pub mod pictures;
pub mod report;
pub mod rows;
pub mod state;
pub mod statistics;
pub mod sweep;
pub mod vision;

pub use error::{EvaluateError, Result};
pub use features::{FEATURES, FeatureKey, Features, ImageRows, NetworkFingerprint, Networks};
pub use figure::{Figure, Fingerprint, differences};
pub use metrics::{METRICS, Metric, MetricSettings, Metrics, Needs};
pub use pass::{Pass, PassOptions, figures, judge, states_of};
pub use pictures::{Picture, Pictures};
pub use rows::Rows;
pub use state::{Part, Reference, State, States, compared_with};
