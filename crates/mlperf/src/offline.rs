//! The end of a run whose checkpoints were evaluated after training.
//!
//! The rules allow checkpoints to be kept and evaluated in any order and time. The run then ended when it reached the first
//! checkpoint that meets the targets, and `run_stop` bears that time. It still stands behind all evaluations, for the official
//! checker of reference points looks no further than to it.

use crate::keys;
use crate::lines::{Event, log_line, now_ms, result_lines, samples_count};
use crate::log::Log;
use crate::ruleset::{Benchmark, Division, Metric, RunStatus};
use crate::value::Value;
use crate::writer::{LogError, io_error};
use calotype_core::{durable, read_input};
use std::panic::Location;
use std::path::Path;

/// Results of a kept checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Samples that it has seen.
    pub samples: u64,
    /// All that the benchmark measures.
    pub results: Vec<(Metric, f64)>,
}

/// How an evaluation after training ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// A success if a checkpoint meets the targets.
    pub status: RunStatus,
    /// Samples of the first one that does, or else of the last one.
    pub samples: u64,
    /// When training reached them, in milliseconds since 1970: the time of `run_stop`.
    pub time_ms: i64,
}

/// Adds the evaluations of kept checkpoints to a run's log, in the order of their samples, and ends the run at the first one that
/// has `reached` the targets ([`Benchmark::reached`] for the benchmark's own). The log is replaced whole or not at all.
///
/// The rules want all checkpoints up to that one evaluated for one run of ten, and for the others at least it and the one before.
///
/// # Errors
/// [`LogError::TwoRuns`] if the log is of two; [`LogError::Order`] if the run has ended already, has not begun, or did not end a block at a checkpoint's samples; if there
/// are no scores, or a checkpoint is there twice or lacks a result. [`LogError::Io`].
#[track_caller]
pub fn finish_offline(
    path: &Path,
    scores: &[Scores],
    reached: impl Fn(&[(Metric, f64)]) -> bool,
) -> Result<Finished, LogError> {
    let (now, place) = (now_ms(), Location::caller());
    let mut content = read_input(path).map_err(|source| io_error(path, "read it", source))?;
    if !content.ends_with(b"\n") {
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        content.truncate(whole);
    }
    let log = Log::parse(path, &content);
    let mut scores: Vec<_> = scores.iter().collect();
    scores.sort_by_key(|scores| scores.samples);
    let finished = outcome(&log, &scores, reached)?;
    let division = log.said(keys::SUBMISSION_DIVISION).and_then(|name| name.parse().ok()).unwrap_or(Division::Closed);
    for scores in scores {
        content.extend(evaluation(scores, division, now, place).into_bytes());
    }
    let metadata = [(keys::STATUS, Value::from(finished.status.name())), samples_count(finished.samples)];
    content.extend(log_line(finished.time_ms, Event::End, keys::RUN_STOP, &Value::Null, &metadata, place).into_bytes());
    durable::write_bytes(path, &content).map_err(|source| io_error(path, "write it", source))?;
    Ok(finished)
}

/// What the scores, by ascending samples, make of the run.
fn outcome(log: &Log, scores: &[&Scores], reached: impl Fn(&[(Metric, f64)]) -> bool) -> Result<Finished, LogError> {
    let benchmark = open_run(log)?;
    check_scores(log, benchmark, scores)?;
    let Some(last) = scores.last() else {
        return Err(order(log, keys::RUN_STOP, "without scores: evaluate the kept checkpoints first"));
    };
    let first = scores.iter().find(|scores| reached(&scores.results));
    let (status, samples) = match first {
        Some(first) => (RunStatus::Success, first.samples),
        None => (RunStatus::Aborted, last.samples),
    };
    let time_ms = log.reached(samples).ok_or_else(|| {
        let why = format!("at {samples} samples: training logged no `block_stop` there, so that its time is not known");
        order(log, keys::RUN_STOP, why + &ends_of(log))
    })?;
    Ok(Finished { status, samples, time_ms })
}

/// Sample counts that scores can be of, in words; of many, the first and last ones.
fn ends_of(log: &Log) -> String {
    const SHOWN: usize = 6;
    let ends: Vec<String> = log.ends().map(|samples| samples.to_string()).collect();
    match ends.len() {
        0 => String::new(),
        1..=SHOWN => format!("; it did at {}", ends.join(", ")),
        many => format!("; it did at {} … {}", ends[..SHOWN - 1].join(", "), ends[many - 1]),
    }
}

/// The benchmark of a run that has begun and not ended.
fn open_run(log: &Log) -> Result<Benchmark, LogError> {
    let has = |key: &str| log.lines().any(|(_, line)| line.key == key);
    if let Some((line, _)) = log.lines().filter(|(_, line)| line.key == keys::RUN_START).nth(1) {
        return Err(LogError::TwoRuns { file: log.path.clone(), line });
    }
    if has(keys::RUN_STOP) {
        return Err(order(log, keys::EVAL_START, "after `run_stop`: the run has ended already"));
    }
    let why = "before `submission_benchmark` and `run_start`: no run has begun";
    log.benchmark().filter(|_| has(keys::RUN_START)).ok_or_else(|| order(log, keys::EVAL_START, why))
}

fn check_scores(log: &Log, benchmark: Benchmark, scores: &[&Scores]) -> Result<(), LogError> {
    let there = |scores: &Scores, metric: &Metric| scores.results.iter().any(|(found, _)| found == metric);
    let lacks = |scores: &&&Scores| benchmark.metrics().iter().any(|metric| !there(scores, metric));
    if let Some(scores) = scores.iter().find(lacks) {
        let metrics: Vec<_> = benchmark.metrics().iter().map(|metric| metric.name()).collect();
        let why = format!("at {} samples: {} are needed for each checkpoint", scores.samples, metrics.join(" and "));
        return Err(order(log, keys::EVAL_ACCURACY, why));
    }
    if let Some(pair) = scores.windows(2).find(|pair| pair[0].samples == pair[1].samples) {
        let why = format!("twice at {} samples: give each checkpoint once", pair[0].samples);
        return Err(order(log, keys::EVAL_START, why));
    }
    Ok(())
}

fn order(log: &Log, key: &'static str, why: impl Into<String>) -> LogError {
    LogError::Order { file: log.path.clone(), key, why: why.into() }
}

fn evaluation(scores: &Scores, division: Division, now: i64, place: &Location<'_>) -> String {
    let at = [samples_count(scores.samples)];
    let value = Value::from(scores.samples);
    let mut lines = log_line(now, Event::Start, keys::EVAL_START, &value, &at, place);
    for (metric, result) in &scores.results {
        for (key, metadata) in result_lines(*metric, scores.samples, division) {
            lines.push_str(&log_line(now, Event::Point, key, &Value::from(*result), &metadata, place));
        }
    }
    lines + &log_line(now, Event::End, keys::EVAL_STOP, &value, &at, place)
}
