//! Whether every run of a result drew its own random numbers: each logs a seed, and no two the same one at the same place of
//! the source.

use crate::finding::{Finding, Report, Severity};
use crate::keys;
use crate::log::{Line, Log};
use crate::value::Value;
use std::path::PathBuf;

/// A seed and where it was logged.
struct Seed {
    value: i128,
    source: [Value; 2],
    file: PathBuf,
    line: usize,
}

/// The findings for the runs of a result.
pub(crate) fn check_seeds(logs: &[Log]) -> Report {
    let mut report = Report::default();
    let mut seeds: Vec<Seed> = Vec::new();
    for log in logs {
        match seeds_of(log) {
            Err(finding) => report.add(finding),
            Ok(found) => {
                count(log, &found, &mut report);
                for seed in found {
                    compare(seed, &mut seeds, &mut report);
                }
            }
        }
    }
    report
}

fn seeds_of(log: &Log) -> Result<Vec<Seed>, Finding> {
    let error = |line: usize, problem: String, remedy: &str| {
        Finding::new(Severity::Error, &log.path, problem, remedy).at(line).of(keys::SEED)
    };
    if let Some(entry) = log.entries.iter().find(|entry| entry.line.is_err()) {
        let remedy = "correct the line first";
        return Err(error(entry.number, "seeds are not looked for in a log with a damaged line".to_owned(), remedy));
    }
    let lines = log.lines().filter(|(_, line)| line.key == keys::SEED);
    let read = |(number, line): (usize, &Line)| {
        let remedy = "log the seed as a whole number, with `file` and `lineno` in its metadata";
        let value = whole(&line.value)
            .ok_or_else(|| error(number, format!("the seed {} is no whole number", line.value), remedy))?;
        let place = |name| line.metadata.get(name).cloned();
        let source = place(keys::FILE).zip(place(keys::LINENO));
        let source = source
            .ok_or_else(|| error(number, "the seed's metadata has no `file` or no `lineno`".to_owned(), remedy))?;
        Ok(Seed { value, source: [source.0, source.1], file: log.path.clone(), line: number })
    };
    lines.map(read).collect()
}

/// As Python's `int()` takes it: numbers without what is behind the point, and texts of whole numbers.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Bool(value) => Some(i128::from(*value)),
        Value::Whole(value) => Some(*value),
        Value::Float(value) if value.is_finite() => Some(value.trunc() as i128),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn count(log: &Log, seeds: &[Seed], report: &mut Report) {
    if seeds.is_empty() {
        let remedy = "log the run's seed";
        report.add(Finding::new(Severity::Error, &log.path, "no `seed` is logged", remedy).of(keys::SEED));
    }
    if let [_, second, ..] = seeds {
        let problem = format!("{} seeds are logged", seeds.len());
        let remedy = "log one, from which the others follow";
        report.add(Finding::new(Severity::Advice, &log.path, problem, remedy).at(second.line).of(keys::SEED));
    }
}

fn compare(seed: Seed, seeds: &mut Vec<Seed>, report: &mut Report) {
    let equal = |other: &&Seed| {
        other.value == seed.value && other.source.iter().zip(&seed.source).all(|(other, own)| other.same(own))
    };
    let Some(earlier) = seeds.iter().find(equal) else {
        seeds.push(seed);
        return;
    };
    let [file, line] = &seed.source;
    let problem = format!(
        "the seed {} of {} line {} is logged again, from the same place of the source ({} line {line})",
        seed.value,
        earlier.file.display(),
        earlier.line,
        file.text().unwrap_or("?")
    );
    let remedy = "train each run with a seed of its own";
    report.add(Finding::new(Severity::Error, &seed.file, problem, remedy).at(seed.line).of(keys::SEED));
}
