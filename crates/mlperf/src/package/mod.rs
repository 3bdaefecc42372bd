//! Submissions: trees of `systems/SYSTEM.json`, `results/SYSTEM/BENCHMARK/result_0.txt` … `result_9.txt` and `benchmarks/`.

mod alike;
mod check;
mod power;
mod repository;
mod system;
mod write;

pub use check::{Bypass, PackageReport, ResultReport, check_package};
pub use repository::check_repository;
pub use system::{SystemDescription, check_system};
pub(crate) use system::{operating_system, processors, text_as_it_is};
pub use write::{NewPackage, PackageError, write_package};

/// Where the system descriptions are.
pub(crate) const SYSTEMS: &str = "systems";
/// Where the logs are.
pub(crate) const RESULTS: &str = "results";
/// Where the sources are.
pub(crate) const BENCHMARKS: &str = "benchmarks";
