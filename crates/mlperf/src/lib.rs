//! MLPerf training: what its logs hold, what its rules ask, and what a submission looks like; the same of MLPerf Inference in
//! [`inference`].
//!
//! - [`LogWriter`] writes the log of a run, [`finish_offline`] ends one whose checkpoints were evaluated after training.
//! - [`Log`] reads logs of any program; [`check_log`], [`check_rcp`] and [`check_package`] judge them as MLCommons' checkers do
//!   (`mlperf-logging` 4.1.68), and say in words what is wrong, where, and what to do.
//! - [`Figures`] are results of evaluations by samples seen, of a file or of a program's settings.
//! - [`write_package`] makes the tree that is submitted.
//!
//! Covered are the benchmarks that train text-to-image models ([`Benchmark`]) in the rounds that have them ([`Ruleset`]). The crate
//! knows no trainer.

mod compliance;
mod figures;
mod finding;
pub mod inference;
mod keys;
mod lines;
mod log;
mod offline;
mod package;
mod rcp;
mod rewind;
mod rules;
mod ruleset;
mod seeds;
mod settings;
mod value;
mod writer;

pub use compliance::{check, check_log};
pub use figures::{Figure, Figures, FiguresError, PerMetric};
pub use finding::{Finding, Report, Severity, Verdict};
pub use log::{Entry, Fault, Line, Log, ReadError};
pub use offline::{Finished, Scores, finish_offline};
pub use package::{
    Bypass, NewPackage, PackageError, PackageReport, ResultReport, SystemDescription, check_package, check_repository,
    check_system, write_package,
};
pub use rcp::{Basis, Convergence, Rcp, RcpReport, RcpSet, Rcps, ReferenceRun, check_rcp};
pub use ruleset::{Benchmark, Division, Metric, Ruleset, RunStatus, SubmissionStatus};
pub use settings::{AdamW, Disclosure, Settings, Submission};
pub use value::Value;
pub use writer::{LogError, LogWriter};
