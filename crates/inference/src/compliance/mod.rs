//! The compliance tests that Stable Diffusion XL has: TEST01 (responses of a performance run are those of the accuracy run) and
//! TEST04 (nothing is remembered between equal samples).
//!
//! A test is a performance run with an audit configuration, and a verdict on its logs beside those of the run that is submitted.
//! Verdict files have the form of MLCommons' `compliance/TEST01` and `compliance/TEST04` (commit b66003e1 of August 2026; the
//! folder was `compliance/nvidia` until v5.1).

mod responses;
mod scores;

use crate::accuracy::{AccuracyError, LOG, Result};
use calotype_core::durable::{replace_file, write_bytes};
use responses::Responses;
use scores::Scores;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// LoadGen's summary.
pub const SUMMARY: &str = "mlperf_log_summary.txt";
/// LoadGen's detail log.
pub const DETAIL: &str = "mlperf_log_detail.txt";
/// The accuracy run's responses that a compliance run's are compared with, if those are unlike.
pub const BASELINE: &str = "mlperf_log_accuracy_baseline.json";
/// What LoadGen reads in the folder in which a run is started.
pub const AUDIT_CONFIG: &str = "audit.config";

/// The line that passes a test.
const PASS: &str = "TEST PASS";
/// Where the logs of a performance run are, below its scenario.
const RUN: &str = "performance/run_1";
/// Seed of the choice of responses that TEST01 logs, and their number.
const LOGGED_SEED: u64 = 720_381_539_243_781_796;
const LOGGED: u64 = 128;
/// The sample that TEST04 repeats, and how often a query of Offline has it.
const REPEATED: u64 = 3;
const REPETITIONS: u64 = 500;
/// LoadGen's code of a performance run.
const PERFORMANCE: u64 = 2;

calotype_core::names! {
    /// A compliance test.
    Test, "compliance test of Stable Diffusion XL" {
        /// Responses of a performance run are those of the accuracy run.
        Test01 = "TEST01",
        /// The same sample again and again is not faster.
        Test04 = "TEST04",
    }
}

impl Test {
    /// Its audit configuration, in LoadGen's `model.scenario.key = value`. LoadGen reads [`AUDIT_CONFIG`] in the folder in which a
    /// run starts, behind `mlperf.conf` and `user.conf`; it knows no model then, so that the key of TEST04 with a model's name is
    /// for programs that read the file themselves.
    pub fn audit_config(self) -> String {
        let mut text = format!("# {self} of MLPerf inference for Stable Diffusion XL: model.scenario.key = value\n");
        let mut set = |key: &str, value: u64| text += &format!("{key} = {value}\n");
        match self {
            Self::Test01 => {
                set("*.*.mode", PERFORMANCE);
                set("*.*.accuracy_log_rng_seed", LOGGED_SEED);
                set("*.*.accuracy_log_sampling_target", LOGGED);
            }
            Self::Test04 => {
                for scenario in ["MultiStream", "Offline", "SingleStream", "Server"] {
                    set(&format!("*.{scenario}.mode"), PERFORMANCE);
                    set(&format!("*.{scenario}.performance_issue_unique"), 0);
                    set(&format!("*.{scenario}.performance_issue_same"), 1);
                    set(&format!("*.{scenario}.performance_issue_same_index"), REPEATED);
                }
                set("stable-diffusion-xl.Offline.min_query_count", REPETITIONS);
            }
        }
        text
    }

    /// What LoadGen's detail log says of a run with this configuration.
    fn settings(self) -> [(&'static str, u64); 2] {
        match self {
            Self::Test01 => {
                [("effective_accuracy_log_rng_seed", LOGGED_SEED), ("effective_accuracy_log_sampling_target", LOGGED)]
            }
            Self::Test04 => {
                [("effective_performance_issue_same", 1), ("effective_performance_issue_same_index", REPEATED)]
            }
        }
    }
}

/// What is compared, and where the verdict goes.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    /// Folder of the scenario that is submitted: `performance/run_1/` and, for TEST01, `accuracy/`, with LoadGen's logs.
    pub submitted: &'a Path,
    /// Folder of the compliance run: LoadGen's logs, or `performance/run_1/` with them.
    pub compliance: &'a Path,
    /// Folder below which that of the test is made, as a submission has it.
    pub out: &'a Path,
}

/// What a test came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The test.
    pub test: Test,
    /// Whether the responses are those of the accuracy run; TEST04 does not ask.
    pub accuracy: Option<bool>,
    /// Whether the performance is near enough.
    pub performance: bool,
    /// Why it does not pass though the scores may: runs with errors, or without the test's configuration.
    pub faults: Vec<String>,
    /// What else there is to know, a sentence each.
    pub notes: Vec<String>,
    /// The folder with the verdict files and the logs.
    pub folder: PathBuf,
}

impl Verdict {
    /// True if the test passes.
    pub fn passes(&self) -> bool {
        self.accuracy != Some(false) && self.performance && self.faults.is_empty()
    }
}

/// Judges a compliance run as MLCommons' `run_verification.py` does: writes `verify_performance.txt` and, for TEST01,
/// `verify_accuracy.txt` into the test's folder below `out`, with copies of the logs in the places that a submission has them.
///
/// # Errors
/// [`AccuracyError`] for logs that are missing, or are none of LoadGen's, with the file.
pub fn verify(test: Test, runs: &Runs<'_>) -> Result<Verdict> {
    let folder = runs.out.join(test.name());
    let (submitted, compliance) = (runs.submitted.join(RUN), logs_of(runs.compliance));
    let scores = match test {
        Test::Test01 => Scores::of_details(&submitted.join(DETAIL), &compliance.join(DETAIL))?,
        Test::Test04 => Scores::of_summaries(&submitted.join(SUMMARY), &compliance.join(SUMMARY))?,
    };
    let (performance, mut faults) = scores.verdict();
    faults.extend(scores::unset(&compliance.join(DETAIL), test)?);
    let (run, accuracy_folder) = (folder.join(RUN), folder.join("accuracy"));
    make(&run)?;
    let mut notes = Vec::new();
    let accuracy = match test {
        Test::Test04 => None,
        Test::Test01 => {
            make(&accuracy_folder)?;
            let logs = [runs.submitted.join("accuracy").join(LOG), compliance.join(LOG)];
            let responses = Responses::compare(&logs[0], &logs[1])?;
            write(&folder.join("verify_accuracy.txt"), &responses.text())?;
            copy(&logs[1], &accuracy_folder.join(LOG))?;
            notes.extend(responses.note());
            if !responses.passes() {
                let baseline = accuracy_folder.join(BASELINE);
                responses.write_baseline(&logs[0], &baseline)?;
                notes.push(format!(
                    "where responses may differ from run to run, judge {} and {} by `calotype mlperf inference accuracy`, and hand in \
                     their accuracy.txt as baseline_accuracy.txt and compliance_accuracy.txt in {}",
                    baseline.display(),
                    accuracy_folder.join(LOG).display(),
                    accuracy_folder.display()
                ));
            }
            Some(responses.passes())
        }
    };
    write(&folder.join("verify_performance.txt"), &performance.text)?;
    for name in [SUMMARY, DETAIL] {
        copy(&compliance.join(name), &run.join(name))?;
    }
    Ok(Verdict { test, accuracy, performance: performance.passes, faults, notes, folder })
}

/// The folder with LoadGen's logs of a run.
fn logs_of(run: &Path) -> PathBuf {
    let below = run.join(RUN);
    if below.is_dir() { below } else { run.to_owned() }
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(AccuracyError::io("make", folder))
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes()).map_err(AccuracyError::io("write", path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(AccuracyError::io("read", from))?;
    replace_file(to, |writer| io::copy(&mut source, writer).map(|_| ())).map_err(AccuracyError::io("write", to))
}
