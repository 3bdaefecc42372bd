//! Whether the runs of a result converge believably.

use super::convergence::convergence;
use super::{Basis, Convergence, RcpSet, Rcps, olympic_mean};
use crate::finding::{Finding, Report, Severity};
use crate::log::{Log, ReadError};
use crate::ruleset::{Benchmark, Ruleset};
use calotype_core::{durable, is_special};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a check against the reference points found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RcpReport {
    /// What stands in the way.
    pub report: Report,
    /// Convergence of each run, in the order of the files; empty if one could not be read.
    pub runs: Vec<Convergence>,
    /// What the runs are compared with.
    pub basis: Option<Basis>,
    /// Mean samples to convergence, without the fastest and the slowest run.
    pub mean: Option<f64>,
    /// What the score is multiplied by: 1, or more where the runs converge faster than the reference.
    pub scaling: f64,
    /// True if the rules let the failure pass by the committee's leave.
    pub can_be_bypassed: bool,
}

/// Compares the runs of a folder (`result_*.txt`) with the reference points of a round.
///
/// # Errors
/// [`ReadError`] for a folder or file that cannot be read.
pub fn check_rcp(folder: &Path, ruleset: Ruleset, set: RcpSet) -> Result<RcpReport, ReadError> {
    let logs: Vec<Log> = result_files(folder)?.iter().map(|path| Log::read(path)).collect::<Result<_, _>>()?;
    Ok(compare(folder, &logs, ruleset, set))
}

/// The result files of a folder, by name.
pub(crate) fn result_files(folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let failed = |source: io::Error| ReadError { file: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("result_") && name.ends_with(".txt") && !is_special(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn compare(folder: &Path, logs: &[Log], ruleset: Ruleset, set: RcpSet) -> RcpReport {
    let mut found = RcpReport { scaling: 1.0, ..RcpReport::default() };
    match logs.iter().map(convergence).collect::<Result<Vec<_>, _>>() {
        Ok(runs) => found.runs = runs,
        Err(finding) => found.report.add(finding),
    }
    if found.report.findings.is_empty() {
        found.judge(folder, logs, ruleset, set);
    }
    found
}

impl RcpReport {
    fn add(&mut self, severity: Severity, file: &Path, problem: impl Into<String>, remedy: impl Into<String>) {
        self.report.add(Finding::new(severity, file, problem, remedy));
    }

    fn judge(&mut self, folder: &Path, logs: &[Log], ruleset: Ruleset, set: RcpSet) {
        let Some((benchmark, batch)) = self.common_setting(folder, logs) else { return };
        let Some(rcps) = Rcps::published(ruleset, benchmark) else {
            let remedy = "check it by the rules of a round that has it";
            self.add(
                Severity::Fatal,
                folder,
                format!("round {ruleset} has no reference points of {benchmark}"),
                remedy,
            );
            return;
        };
        let samples: Vec<_> = self.runs.iter().map(|run| run.samples).collect();
        let failed = samples.iter().filter(|samples| samples.is_none()).count();
        if failed > 1 {
            let remedy = "only one run of a result may miss the targets: run again";
            self.add(Severity::Error, folder, format!("{failed} runs did not converge"), remedy);
            return;
        }
        // The run that did not converge is the slowest, which is left out.
        let samples: Vec<_> =
            samples.into_iter().map(|samples| samples.map_or(f64::INFINITY, |samples| samples as f64)).collect();
        self.mean = olympic_mean(&samples);
        let basis = rcps.basis(batch, set);
        self.against(folder, batch, &basis);
        self.basis = Some(basis);
    }

    /// Benchmark and batch of all runs, if they have the same ones. (Where a log lacks them, the official checker's verdict depends on
    /// the order in which the system lists the files.)
    fn common_setting(&mut self, folder: &Path, logs: &[Log]) -> Option<(Benchmark, u64)> {
        let Some(first) = self.runs.first().cloned() else {
            self.add(
                Severity::Fatal,
                folder,
                "there are no result files",
                "name the logs result_0.txt, result_1.txt, …",
            );
            return None;
        };
        for (run, log) in self.runs.clone().iter().zip(logs) {
            if (&run.batch, &run.benchmark) != (&first.batch, &first.benchmark) {
                let words = |run: &Convergence| {
                    let batch = run.batch.map_or("no batch size".to_owned(), |batch| format!("batch size {batch}"));
                    format!("{} with {batch}", run.benchmark.as_deref().unwrap_or("no benchmark"))
                };
                let problem = format!("it is a run of {}, and the first one of {}", words(run), words(&first));
                let remedy = "put runs of one benchmark and batch size into one result";
                self.add(Severity::Fatal, &log.path, problem, remedy);
                return None;
            }
        }
        let benchmark = first.benchmark.as_deref().and_then(|name| name.parse().ok());
        match (benchmark, first.batch) {
            (Some(benchmark), Some(batch)) => Some((benchmark, batch)),
            (None, _) => {
                let problem = "the logs name no benchmark whose reference points are known here";
                self.add(Severity::Fatal, folder, problem, "log `submission_benchmark`");
                None
            }
            (_, None) => {
                self.add(Severity::Error, folder, "the logs have no global batch size", "log `global_batch_size`");
                None
            }
        }
    }

    fn against(&mut self, folder: &Path, batch: u64, basis: &Basis) {
        let Some(point) = basis.point() else {
            self.can_be_bypassed = true;
            let problem = format!("there are no reference points up to batch size {batch}");
            let remedy = "submit reference runs of this batch size, or take a smaller batch";
            self.add(Severity::Error, folder, problem, remedy);
            return;
        };
        let Some(mean) = self.mean else {
            self.can_be_bypassed = true;
            let problem = format!("{} runs leave none when the fastest and the slowest are left out", self.runs.len());
            self.add(Severity::Error, folder, problem, "ten runs make a result");
            return;
        };
        if mean < point.fastest {
            self.can_be_bypassed = true;
            let problem = format!(
                "the runs converge after {mean:.0} samples on average, where the reference needs {:.0} at batch size {} and \
                 fewer than {:.0} are not believed",
                point.mean, point.batch, point.fastest
            );
            let remedy = "compare hyperparameters and data with the reference's; slower learning passes";
            self.add(Severity::Error, folder, problem, remedy);
            return;
        }
        self.scaling = (point.mean / mean).max(1.0);
    }
}

impl fmt::Display for RcpReport {
    /// The comparison in a sentence, then the findings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(mean), Some(basis)) = (self.mean, &self.basis) {
            write!(
                f,
                "{} runs, {mean:.0} samples to convergence on average; reference point {}",
                self.runs.len(),
                basis.name()
            )?;
            if let Some(point) = basis.point() {
                write!(f, ": batch {}, mean {:.0}, accepted from {:.0} on", point.batch, point.mean, point.fastest)?;
            }
            writeln!(f, "; the score is multiplied by {:.4}", self.scaling)?;
        }
        self.report.fmt(f)
    }
}

/// Records in a result's folder what its score is multiplied by (`scaling.json`), as the official checker of packages
/// does; removes the record where that is 1.
///
/// # Errors
/// The file system's.
pub(crate) fn record_scaling(folder: &Path, scaling: f64) -> io::Result<()> {
    let path = folder.join("scaling.json");
    if scaling > 1.0 {
        return durable::write_json(&path, &serde_json::json!({ "scaling_factor": scaling }));
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
