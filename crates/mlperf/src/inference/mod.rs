//! MLPerf Inference, Stable Diffusion XL: LoadGen's logs, the rounds' rules, and what a submission looks like.
//!
//! - [`Detail`] and [`Summary`] read the logs of a run.
//! - [`Round`] says what a round asks for.
//! - [`InferenceSystem`] describes the machine, [`write_submission`] makes the tree of run folders, [`pack`] the archive, and
//!   [`run_document`] and [`highlights`] the two files that a student competition wants beside it.
//! - [`check_submission`] judges a tree as MLCommons' checkers do (`tools/submission` of mlcommons/inference: the single file of
//!   rounds up to v5.1, the package since v6.0), and says in words what is wrong, where, and what to do.

pub mod accuracy_log;
mod check;
mod detail;
mod documents;
mod layout;
mod pack;
mod rounds;
mod summary;
mod system;
mod tree;
mod truncate;

pub use check::{InferenceReport, InferenceResult, SummaryTable, check_submission};
pub use detail::{Detail, Message};
pub use documents::{RunFacts, RunSaid, highlights, run_document};
pub use pack::pack;
pub use rounds::{InferenceDivision, Round, Scenario, Seeds, SystemType};
pub use summary::{Summary, SummaryError};
pub use system::{Availability, InferenceSystem};
pub use tree::{Measurements, NewSubmission, SubmissionError, Written, write_submission};
pub use truncate::{TruncateError, truncate};

/// The benchmark's name, which is also that of its folders.
pub const BENCHMARK: &str = "stable-diffusion-xl";
/// LoadGen's log of everything that a run did.
pub const DETAIL: &str = "mlperf_log_detail.txt";
/// LoadGen's report.
pub const SUMMARY: &str = "mlperf_log_summary.txt";
/// LoadGen's log of all answers of an accuracy run.
pub const ACCURACY_LOG: &str = "mlperf_log_accuracy.json";
/// What the accuracy script prints, with the hash of the log of answers.
pub const ACCURACY: &str = "accuracy.txt";
/// Settings that a submitter may change.
pub const USER_CONF: &str = "user.conf";
