//! The comparison of scores: that of a compliance run with that of the run that is submitted.

use super::{PASS, Test};
use crate::accuracy::{AccuracyError, Result};
use crate::python;
use calotype_core::read_text;
use calotype_mlperf::{Log, Value};
use std::path::{Path, PathBuf};

/// Share by which scores may differ.
const TOLERANCE: f64 = 0.1;
/// The same for runs of streams with latencies so small that the system's disturbances show.
const TOLERANCE_OF_SMALL: f64 = 0.2;

calotype_core::names! {
    /// How LoadGen asks.
    Scenario, "scenario of LoadGen" {
        /// All at once.
        Offline = "Offline",
        /// At random times.
        Server = "Server",
        /// One after the other.
        SingleStream = "SingleStream",
        /// Some at a time.
        MultiStream = "MultiStream",
    }
}

/// What a log says of a run.
#[derive(Clone, Debug)]
struct Score {
    path: PathBuf,
    scenario: Scenario,
    /// The score as the scripts print it.
    shown: String,
    value: f64,
    is_valid: bool,
    errors: u64,
    /// The latency that Server asks for, in nanoseconds.
    target: Option<u64>,
}

/// The scores of the submitted run and of the compliance run.
pub(super) struct Scores {
    test: Test,
    submitted: Score,
    compliance: Score,
}

/// `verify_performance.txt`, and whether it passes.
pub(super) struct Performance {
    pub(super) passes: bool,
    pub(super) text: String,
}

impl Scores {
    /// Those of two detail logs, as TEST01's script reads them: samples a second, or latencies of streams in nanoseconds.
    ///
    /// # Errors
    /// [`AccuracyError`], with the file and what is missing in it.
    pub(super) fn of_details(submitted: &Path, compliance: &Path) -> Result<Self> {
        Ok(Self { test: Test::Test01, submitted: of_detail(submitted)?, compliance: of_detail(compliance)? })
    }

    /// Those of two summaries, as TEST04's script reads them: samples a second, or queries a second of streams.
    ///
    /// # Errors
    /// As [`Scores::of_details`].
    pub(super) fn of_summaries(submitted: &Path, compliance: &Path) -> Result<Self> {
        Ok(Self { test: Test::Test04, submitted: of_summary(submitted)?, compliance: of_summary(compliance)? })
    }

    /// The verdict in the script's words, and faults that it does not see or breaks off at.
    pub(super) fn verdict(&self) -> (Performance, Vec<String>) {
        let Self { test, submitted, compliance } = self;
        let mut lines = vec!["Verifying performance.".to_owned()];
        let (mut warnings, mut faults) = (Vec::new(), Vec::new());
        for (score, whose) in [(submitted, "reference"), (compliance, "test")] {
            if score.errors > 0 {
                let errors = score.errors;
                warnings.push(match test {
                    Test::Test01 => format!("WARNING: {errors} ERROR reported in {}", score.path.display()),
                    Test::Test04 => format!("WARNING: {errors} ERROR reported in {whose} results"),
                });
                let path = score.path.display();
                faults.push(format!(
                    "{path}: LoadGen met {errors} errors, with which no submission passes; run it again"
                ));
            }
        }
        if let (Some(submitted), Some(compliance)) = (submitted.target, compliance.target)
            && submitted != compliance
        {
            faults.push(format!(
                "target latencies differ: {submitted} ns in the submitted run, {compliance} ns in the test's"
            ));
        }
        if submitted.is_valid && compliance.is_valid {
            lines.append(&mut warnings);
        }
        let failure = self.failure();
        if self.stops().is_none() {
            let [reference, tested] = match test {
                Test::Test01 => ["Reference score", "Test score"],
                Test::Test04 => ["reference score", "test score"],
            };
            lines.push(format!("{reference} = {}", submitted.shown));
            lines.push(format!("{tested} = {}", compliance.shown));
        }
        let passes = failure.is_none();
        lines.push(failure.unwrap_or_else(|| PASS.to_owned()));
        (Performance { passes, text: lines.join("\n") + "\n" }, faults)
    }

    /// The last line of the script if the test fails. At errors, TEST01's breaks off with one of its own.
    fn failure(&self) -> Option<String> {
        let has_errors = self.submitted.errors + self.compliance.errors > 0;
        let breaks_off = || (self.test == Test::Test01 && has_errors).then(|| "TEST FAIL: runs with errors".to_owned());
        let is_near = {
            let (reference, tested) = (self.submitted.value, self.compliance.value);
            let limit = self.tolerance();
            match self.test {
                Test::Test01 => (reference * (1.0 - limit)..=reference * (1.0 + limit)).contains(&tested),
                Test::Test04 => tested < reference * (1.0 + limit),
            }
        };
        self.stops().or_else(breaks_off).or_else(|| (!is_near).then(|| "TEST FAIL: Test score invalid".to_owned()))
    }

    /// Why the script stops before it compares scores.
    fn stops(&self) -> Option<String> {
        let Self { test, submitted, compliance } = self;
        let of_run = |score: &Score, whose: &str| match test {
            Test::Test01 => format!("TEST FAIL: Invalid results in {}", score.path.display()),
            Test::Test04 => format!("TEST FAIL: {whose} results are invalid"),
        };
        match () {
            () if !submitted.is_valid => Some(of_run(submitted, "Reference")),
            () if !compliance.is_valid => Some(of_run(compliance, "Test")),
            () if submitted.scenario != compliance.scenario => Some(match test {
                Test::Test01 => "TEST FAIL: Test and reference scenarios do not match!".to_owned(),
                Test::Test04 => "Test and reference scenarios do not match!".to_owned(),
            }),
            () if *test == Test::Test01 && submitted.target != compliance.target => {
                Some("TEST FAIL: Server target latency mismatch".to_owned())
            }
            () => None,
        }
    }

    /// The scripts compare the scores themselves with these limits, whatever their units: TEST04's are queries a second.
    fn tolerance(&self) -> f64 {
        let small = match self.submitted.scenario {
            Scenario::SingleStream => 200_000.0,
            Scenario::MultiStream => 1_600_000.0,
            Scenario::Offline | Scenario::Server => return TOLERANCE,
        };
        if self.submitted.value <= small { TOLERANCE_OF_SMALL } else { TOLERANCE }
    }
}

/// The first value of a key in a detail log.
fn value_of<'a>(log: &'a Log, key: &str) -> Option<&'a Value> {
    log.lines().find(|(_, line)| line.key == key).map(|(_, line)| &line.value)
}

fn lacks(path: &Path, what: &str) -> AccuracyError {
    AccuracyError::file(path, format!("lacks {what}; give the logs of a performance run that came to its end"))
}

fn of_detail(path: &Path) -> Result<Score> {
    let log = Log::read(path)?;
    let value = |key: &str| value_of(&log, key);
    let scenario = value("effective_scenario").and_then(Value::text).and_then(|name| name.parse().ok());
    let scenario: Scenario = scenario.ok_or_else(|| lacks(path, "`effective_scenario` with a scenario of LoadGen"))?;
    let key = match scenario {
        Scenario::Offline => "result_samples_per_second",
        Scenario::Server => "result_completed_samples_per_sec",
        Scenario::SingleStream => "early_stopping_latency_ss",
        Scenario::MultiStream => "early_stopping_latency_ms",
    };
    let score = value(key).and_then(Value::number).ok_or_else(|| lacks(path, &format!("the number `{key}`")))?;
    let is_server = scenario == Scenario::Server;
    Ok(Score {
        path: path.to_owned(),
        scenario,
        shown: python::float(score),
        value: score,
        is_valid: value("result_validity").and_then(Value::text) == Some("VALID"),
        errors: value("num_errors").and_then(Value::count).unwrap_or(0),
        target: value("effective_target_latency_ns").and_then(Value::count).filter(|_| is_server),
    })
}

fn of_summary(path: &Path) -> Result<Score> {
    let text = read_text(path).map_err(AccuracyError::io("read", path))?;
    // The scripts split a line at its first colon with a blank behind it.
    let value = |begins: &str| {
        let found = text.lines().filter(|line| line.starts_with(begins));
        found.filter_map(|line| line.split_once(": ")).map(|(_, value)| value.trim()).next_back()
    };
    let scenario = value("Scenario").and_then(|name| name.parse().ok());
    let scenario: Scenario = scenario.ok_or_else(|| lacks(path, "a line `Scenario : …` with one of LoadGen's"))?;
    let estimate = |percentile: &str| {
        let wanted = format!("Early stopping {percentile} percentile estimate: ");
        text.lines().filter_map(|line| line.split_once(&wanted)).map(|(_, value)| value.trim()).next_back()
    };
    let (line, found) = match scenario {
        Scenario::Offline => ("`Samples per second: …`", value("Samples per second")),
        Scenario::Server => ("`Completed samples per second : …`", value("Completed samples per second")),
        Scenario::SingleStream => {
            ("an estimate of the 90.0th percentile", ["90.0th", "90th", "99.9th"].into_iter().find_map(estimate))
        }
        Scenario::MultiStream => {
            ("an estimate of the 99.0th percentile", ["99.0th", "99th"].into_iter().find_map(estimate))
        }
    };
    let shown = found.ok_or_else(|| lacks(path, line))?;
    let number: f64 = shown.parse().map_err(|_| lacks(path, line))?;
    let is_stream = matches!(scenario, Scenario::SingleStream | Scenario::MultiStream);
    let score = if is_stream { 1e9 / number } else { number };
    let errors = text.lines().filter_map(|line| line.split_once(" ERROR")).find_map(|(count, _)| count.parse().ok());
    let target = value("target_latency (ns)").and_then(|value| value.parse().ok());
    Ok(Score {
        path: path.to_owned(),
        scenario,
        shown: if is_stream { python::float(score) } else { shown.to_owned() },
        value: score,
        is_valid: value("Result is") != Some("INVALID"),
        errors: errors.unwrap_or(0),
        target: target.filter(|_| scenario == Scenario::Server),
    })
}

/// What of a test's audit configuration a run did not have.
///
/// # Errors
/// [`AccuracyError::Read`].
pub(super) fn unset(detail: &Path, test: Test) -> Result<Vec<String>> {
    let log = Log::read(detail)?;
    let differs = |(key, wanted): (&str, u64)| {
        let found = value_of(&log, key);
        // LoadGen writes performance_issue_same as true.
        let number = match found {
            Some(Value::Bool(value)) => Some(u64::from(*value)),
            other => other.and_then(Value::count),
        };
        if number == Some(wanted) {
            return None;
        }
        let found = found.map_or("missing".to_owned(), Value::to_string);
        let path = detail.display();
        Some(format!(
            "{path}: `{key}` is {found}, with {test}'s audit configuration it is {wanted}; start the run in a folder with the file \
             that `calotype mlperf inference audit --test {test}` writes"
        ))
    };
    Ok(test.settings().into_iter().filter_map(differs).collect())
}
