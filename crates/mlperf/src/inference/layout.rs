//! Where a tree has what: rounds up to v5.1 keep measurements and compliance beside the results, rounds since v6.0 among them.

use super::rounds::Round;
use std::path::{Path, PathBuf};

/// Where the results are.
pub(crate) const RESULTS: &str = "results";
/// Where the systems are described.
pub(crate) const SYSTEMS: &str = "systems";
/// Where measurements are, up to v5.1.
pub(crate) const MEASUREMENTS: &str = "measurements";
/// The audit tests of the benchmark.
pub(crate) const TESTS: [&str; 2] = ["TEST01", "TEST04"];

/// A result's place in a tree.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) round: Round,
    /// The submitter's folder: `ROOT/DIVISION/SUBMITTER`.
    pub(crate) submitter: &'a Path,
    pub(crate) system: &'a str,
    /// The benchmark's folder, which the open division may name otherwise than the benchmark.
    pub(crate) model: &'a str,
    pub(crate) scenario: &'a str,
}

impl Place<'_> {
    fn within(&self, folder: &str) -> PathBuf {
        self.submitter.join(folder).join(self.system).join(self.model).join(self.scenario)
    }

    /// The scenario's folder.
    pub(crate) fn results(&self) -> PathBuf {
        self.within(RESULTS)
    }

    pub(crate) fn performance(&self) -> PathBuf {
        self.results().join("performance").join("run_1")
    }

    pub(crate) fn accuracy(&self) -> PathBuf {
        self.results().join("accuracy")
    }

    /// The folder of user.conf, README.md and the description of the implementation.
    pub(crate) fn measurements(&self) -> PathBuf {
        if self.round.by_package() { self.results() } else { self.within(MEASUREMENTS) }
    }

    /// The description of the implementation, as it is written.
    pub(crate) fn implementation(&self, name: &str) -> PathBuf {
        let file = match self.round.by_package() {
            true => "measurements.json".to_owned(),
            false => format!("{}_{name}_{}.json", self.system, self.scenario),
        };
        self.measurements().join(file)
    }

    /// The folder of an audit test.
    pub(crate) fn test(&self, name: &str) -> PathBuf {
        if self.round.by_package() { self.results().join(name) } else { self.within("compliance").join(name) }
    }
}

/// Where a submitter's sources are.
pub(crate) fn sources(round: Round) -> &'static str {
    if round.by_package() { "src" } else { "code" }
}
