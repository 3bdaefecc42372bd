//! Whether a submission's tree would be accepted.

use super::alike::difference;
use super::power::check_power;
use super::system::text_as_it_is;
use super::{RESULTS, SYSTEMS, check_system};
use crate::compliance;
use crate::finding::{Finding, Report, Severity, Verdict};
use crate::keys;
use crate::log::{Log, ReadError};
use crate::rcp::{Basis, RcpSet, compare, record_scaling, result_files};
use crate::ruleset::{Benchmark, Division, Ruleset, RunStatus};
use crate::seeds::check_seeds;
use crate::value::Value;
use calotype_core::is_special;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file of options that a result's folder, or its system's, may hold.
const PARAMETERS: &str = "package_checker_params";

/// Measurements of power, if there are any.
const POWER: &str = "power";

/// What is not held against a submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bypass {
    /// Reference points that are missing or missed; the committee decides.
    pub rcp: bool,
    /// Seeds that are missing or repeated.
    pub seeds: bool,
}

/// What a check of a tree found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackageReport {
    /// All findings, of all results.
    pub report: Report,
    /// The results that were looked at.
    pub results: Vec<ResultReport>,
}

/// Figures of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultReport {
    /// Its folder.
    pub folder: PathBuf,
    /// The system's name.
    pub system: String,
    /// The benchmark.
    pub benchmark: Benchmark,
    /// What its runs were compared with; none in the open division.
    pub basis: Option<Basis>,
    /// What the time is multiplied by.
    pub scaling: f64,
    /// Minutes from `run_start` to `run_stop`, without the fastest and the slowest run, times the scaling: the score. A run that did
    /// not end as a success counts as the slowest; none if more did not.
    pub minutes: Option<f64>,
}

impl PackageReport {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        self.report.verdict(false)
    }

    /// Writes each result's scaling into its folder, as the official checker of packages does.
    ///
    /// # Errors
    /// The file system's.
    pub fn record_scaling(&self) -> io::Result<()> {
        self.results.iter().try_for_each(|result| record_scaling(&result.folder, result.scaling))
    }
}

/// Judges a submitter's tree by the rules of a round; `strict` makes errors of warnings about logs. Benchmarks that are not
/// [`Benchmark`]s are passed over with a warning.
///
/// # Errors
/// [`ReadError`] for a folder or log that cannot be read.
pub fn check_package(root: &Path, ruleset: Ruleset, bypass: Bypass, strict: bool) -> Result<PackageReport, ReadError> {
    let mut check = PackageCheck { root, ruleset, bypass, strict, found: PackageReport::default() };
    check.systems()?;
    let results = root.join(RESULTS);
    let systems = folders(&results)?;
    if systems.is_empty() {
        check.add(Severity::Warning, &results, "there are no results in it", "put them into results/SYSTEM/BENCHMARK/");
    }
    for system in systems {
        let shared = check.bypasses(&system);
        for folder in folders(&system)? {
            check.result(&system, &folder, shared)?;
        }
    }
    Ok(check.found)
}

struct PackageCheck<'a> {
    root: &'a Path,
    ruleset: Ruleset,
    bypass: Bypass,
    strict: bool,
    found: PackageReport,
}

impl PackageCheck<'_> {
    fn add(&mut self, severity: Severity, file: &Path, problem: impl Into<String>, remedy: impl Into<String>) {
        self.found.report.add(Finding::new(severity, file, problem, remedy));
    }

    fn systems(&mut self) -> Result<(), ReadError> {
        let folder = self.root.join(SYSTEMS);
        if !folder.is_dir() {
            return Ok(());
        }
        for path in entries(&folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".json") && !name.starts_with('.') && !is_special(&path) {
                self.found.report.findings.extend(check_system(&path)?.findings);
            }
        }
        Ok(())
    }

    /// The options that a folder's file gives, with those of the caller.
    fn bypasses(&mut self, folder: &Path) -> Bypass {
        let path = folder.join(PARAMETERS);
        let text = text_as_it_is(&path).unwrap_or_default();
        // The official checker compares lines with their ends, so that only a last line without one is an option.
        let counts = |option: &str| text.split_inclusive('\n').any(|line| line == option);
        let meant = |option: &str| text.lines().any(|line| line.trim() == option);
        for option in ["rcp-bypass", "seed-checker-bypass"] {
            if meant(option) && !counts(option) {
                let problem = format!("the official checker does not see the option {option}");
                self.add(Severity::Warning, &path, problem, "let it be the last line, without a line break behind it");
            }
        }
        Bypass {
            rcp: self.bypass.rcp || counts("rcp-bypass"),
            seeds: self.bypass.seeds || counts("seed-checker-bypass"),
        }
    }

    fn result(&mut self, system: &Path, folder: &Path, shared: Bypass) -> Result<(), ReadError> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (system, benchmark) = (name(system), name(folder));
        let Some(closed) = self.is_closed(&system) else { return Ok(()) };
        let known = benchmark.parse().ok().filter(|benchmark: &Benchmark| benchmark.rulesets().contains(&self.ruleset));
        let Some(benchmark) = known else {
            let problem = match self.ruleset.benchmarks().contains(&benchmark.as_str()) {
                true => format!("results of {benchmark} are not checked here"),
                false => format!("round {} has no benchmark {benchmark}; its results are passed over", self.ruleset),
            };
            self.add(Severity::Warning, folder, problem, "take MLCommons' checker, or correct the folder's name");
            return Ok(());
        };
        let own = self.bypasses(folder);
        let bypass = Bypass { rcp: shared.rcp || own.rcp, seeds: shared.seeds || own.seeds };
        let files = result_files(folder)?;
        self.count_files(folder, benchmark, &files)?;
        let logs = files.iter().map(|path| Log::read(path)).collect::<Result<Vec<_>, _>>()?;
        self.compliance(folder, &logs)?;
        self.alike(&logs);
        let mut result =
            ResultReport { folder: folder.to_owned(), system, benchmark, basis: None, scaling: 1.0, minutes: None };
        if closed {
            self.seeds(&logs, bypass.seeds);
            self.rcp(&mut result, &logs, bypass.rcp);
        }
        result.minutes = minutes(&logs).map(|minutes| minutes * result.scaling);
        self.found.results.push(result);
        Ok(())
    }

    /// Whether a system's description says that it is of the closed division; `None`, and a finding, without a usable one.
    fn is_closed(&mut self, system: &str) -> Option<bool> {
        let path = self.root.join(SYSTEMS).join(format!("{system}.json"));
        let description = text_as_it_is(&path).ok().and_then(|text| Value::parse(&text).ok());
        match description.as_ref().and_then(|description| description.get("division")) {
            Some(division) => Some(division.text() == Some(Division::Closed.name())),
            None => {
                let problem = "the system has results, but no usable description with its `division`";
                self.add(Severity::Fatal, &path, problem, "write the description under the system's name");
                None
            }
        }
    }

    fn count_files(&mut self, folder: &Path, benchmark: Benchmark, files: &[PathBuf]) -> Result<(), ReadError> {
        if files.len() != benchmark.runs() {
            let problem = format!("there are {} result files, where {} are needed", files.len(), benchmark.runs());
            self.add(Severity::Error, folder, problem, "name them result_0.txt to result_9.txt, one for each run");
        }
        let others = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            !name.starts_with('.') && name != PARAMETERS && name != POWER && !files.contains(path)
        };
        for path in entries(folder)?.into_iter().filter(others) {
            self.add(Severity::Warning, &path, "it is no result file", "let only result files be there");
        }
        Ok(())
    }

    /// Logs by their own rules, and measurements of power where there are any. One of a result may break them, for the slowest
    /// run is left out anyway.
    fn compliance(&mut self, folder: &Path, logs: &[Log]) -> Result<(), ReadError> {
        let mut reports: Vec<_> = logs.iter().map(|log| compliance::check(log, self.ruleset)).collect();
        let power = folder.join(POWER);
        if power.is_dir() {
            let paths: Vec<_> = logs.iter().map(|log| log.path.clone()).collect();
            for (run, finding) in check_power(&power, &paths)? {
                run.and_then(|run| reports.get_mut(run)).unwrap_or(&mut self.found.report).add(finding);
            }
        }
        let bad = reports.iter().filter(|report| report.verdict(self.strict) != Verdict::Pass).count();
        for mut report in reports {
            for finding in &mut report.findings {
                finding.severity = match finding.severity {
                    Severity::Error if bad == 1 => Severity::Warning,
                    Severity::Warning if self.strict && bad > 1 => Severity::Error,
                    same => same,
                };
            }
            self.found.report.findings.extend(report.findings);
        }
        match bad {
            0 => {}
            1 => self.add(
                Severity::Warning,
                folder,
                "one run breaks the rules, as one of ten may",
                "correct it if you can",
            ),
            _ => {
                let problem = format!("{bad} runs break the rules, where one may");
                self.add(Severity::Error, folder, problem, "correct them, or run again");
            }
        }
        Ok(())
    }

    /// The official checkers compare no run with another.
    fn alike(&mut self, logs: &[Log]) {
        let Some(found) = difference(logs) else { return };
        let (first, value) = found.first;
        let problem = format!("`{}` is {}, and in {} it is {value}", found.key, found.value, first.display());
        let remedy = "put only runs of one submission, system and division into a result";
        self.found.report.add(Finding::new(Severity::Advice, found.file, problem, remedy).at(found.line));
    }

    fn seeds(&mut self, logs: &[Log], bypass: bool) {
        let mut report = check_seeds(logs);
        if bypass {
            report.findings.iter_mut().for_each(|finding| finding.severity = finding.severity.min(Severity::Warning));
        }
        self.found.report.findings.extend(report.findings);
    }

    fn rcp(&mut self, result: &mut ResultReport, logs: &[Log], bypass: bool) {
        let found = compare(&result.folder, logs, self.ruleset, RcpSet::Pruned);
        let (scaling, basis) = (found.scaling, found.basis.clone());
        let lenient = bypass && found.can_be_bypassed;
        for mut finding in found.report.findings {
            if lenient {
                finding.severity = finding.severity.min(Severity::Warning);
            }
            self.found.report.add(finding);
        }
        (result.scaling, result.basis) = (scaling, basis);
    }
}

/// Mean minutes of the runs without the fastest and the slowest.
fn minutes(logs: &[Log]) -> Option<f64> {
    let mut times: Vec<f64> = logs.iter().map(|log| minutes_of(log).unwrap_or(f64::INFINITY)).collect();
    times.sort_by(f64::total_cmp);
    let kept = times.get(1..times.len().checked_sub(1)?)?;
    let mean = kept.iter().sum::<f64>() / kept.len() as f64;
    mean.is_finite().then_some(mean)
}

fn minutes_of(log: &Log) -> Option<f64> {
    let line = |key: &str| log.lines().map(|(_, line)| line).find(|line| line.key == key);
    let (start, stop) = (line(keys::RUN_START)?, line(keys::RUN_STOP)?);
    let success = stop.metadata.get(keys::STATUS).and_then(Value::text) == Some(RunStatus::Success.name());
    success.then_some((stop.time_ms - start.time_ms) / 60_000.0)
}

/// What a folder holds, by name.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let failed = |source: io::Error| ReadError { file: folder.to_owned(), source };
    let read = fs::read_dir(folder).map_err(failed)?;
    let mut paths = read.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}
