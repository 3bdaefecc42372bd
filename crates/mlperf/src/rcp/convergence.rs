//! After how many samples a run converged, as its log says.

use crate::finding::{Finding, Severity};
use crate::keys;
use crate::log::{Entry, Log, shortened};
use crate::ruleset::{Benchmark, CLIP, FID, Metric, RunStatus};
use crate::value::Value;

/// What a run says of its convergence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convergence {
    /// Samples of an optimizer step.
    pub batch: Option<u64>,
    /// The benchmark's name.
    pub benchmark: Option<String>,
    /// Samples at the first evaluation that met the targets; `None` if the run did not end as a success.
    pub samples: Option<u64>,
}

/// Reads a run's convergence, where the official checker looks for it: only up to `run_stop`, and for Flux.1 at the last evaluation
/// there, whatever its loss. Lines are told by their text, also where it only mentions a key; of those, only value and metadata count.
///
/// # Errors
/// What keeps it from being read, which breaks off the official checker.
pub(super) fn convergence(log: &Log) -> Result<Convergence, Finding> {
    let mut run = Run::default();
    for entry in &log.entries {
        run.read(entry).map_err(|Unusable { problem, remedy }| {
            Finding::new(Severity::Fatal, &log.path, problem, remedy).at(entry.number)
        })?;
    }
    Ok(Convergence { batch: run.batch, benchmark: run.benchmark, samples: run.samples })
}

/// Why a line breaks off the official checker.
struct Unusable {
    problem: String,
    remedy: &'static str,
}

fn unusable<T>(problem: impl Into<String>, remedy: &'static str) -> Result<T, Unusable> {
    Err(Unusable { problem: problem.into(), remedy })
}

#[derive(Default)]
struct Run {
    batch: Option<u64>,
    benchmark: Option<String>,
    samples: Option<u64>,
    /// Stable Diffusion's evaluations so far.
    results: Vec<Measured>,
    /// The sample count of the last evaluation.
    last: Option<Value>,
}

/// A line of an evaluation.
struct Measured {
    samples: Value,
    metric: Value,
    result: Value,
}

impl Run {
    fn read(&mut self, entry: &Entry) -> Result<(), Unusable> {
        let mentions = |key: &str| entry.text.contains(key);
        if mentions(keys::GLOBAL_BATCH_SIZE) {
            self.batch = field(&said(entry)?, "value")?.count();
            if self.batch.is_none() {
                return unusable("the global batch size is no whole number", "log it as a whole number");
            }
        }
        if mentions(keys::SUBMISSION_BENCHMARK) {
            self.benchmark = Some(field(&said(entry)?, "value")?.text().unwrap_or_default().to_owned());
        }
        if mentions(keys::EVAL_ACCURACY) || mentions(keys::EVAL_ERROR) {
            self.evaluation(&said(entry)?)?;
        }
        if mentions(keys::RUN_STOP) {
            let line = said(entry)?;
            if field(&line, "key")?.text() == Some(keys::RUN_STOP) {
                self.run_stop(&line)?;
            }
        }
        Ok(())
    }

    fn is_stable_diffusion(&self) -> bool {
        self.benchmark.as_deref() == Some(Benchmark::StableDiffusion.name())
    }

    fn evaluation(&mut self, line: &Value) -> Result<(), Unusable> {
        if self.benchmark.is_none() {
            return unusable("an evaluation comes before `submission_benchmark`", "log the benchmark's name first");
        }
        let metadata = field(line, "metadata")?;
        let Some(samples) = metadata.get(keys::SAMPLES_COUNT) else {
            return unusable("an evaluation has no `samples_count`", "log it in the metadata");
        };
        self.last = Some(samples.clone());
        if self.is_stable_diffusion() {
            let Some(metric) = metadata.get(keys::METRIC) else {
                return unusable("an evaluation has no `metric`", "log FID and CLIP by these names");
            };
            let result = field(line, "value")?.clone();
            self.results.push(Measured { samples: samples.clone(), metric: metric.clone(), result });
        }
        Ok(())
    }

    fn run_stop(&mut self, line: &Value) -> Result<(), Unusable> {
        self.samples = None;
        let Some(status) = field(line, "metadata")?.get(keys::STATUS) else {
            return unusable("`run_stop` has no `status`", "log success or aborted in its metadata");
        };
        if status.text() != Some(RunStatus::Success.name()) {
            return Ok(());
        }
        let samples = if self.is_stable_diffusion() { self.first_reached()? } else { self.last.clone() };
        let Some(samples) = samples else {
            return unusable(
                "the run is logged as a success, but no evaluation before `run_stop` meets the targets",
                "log all evaluations before run_stop, and runs that missed the targets as aborted",
            );
        };
        self.samples = samples.count();
        if self.samples.is_none() {
            return unusable(
                format!("the run converged after {samples} samples"),
                "log whole numbers as `samples_count`",
            );
        }
        Ok(())
    }

    /// The smallest sample count whose evaluation meets Stable Diffusion's targets.
    fn first_reached(&self) -> Result<Option<Value>, Unusable> {
        let mut reached: Option<&Value> = None;
        for Measured { samples, .. } in &self.results {
            // The CLIP score is asked for only where the FID is good enough; one that is no number is not.
            if self.result(samples, Metric::Fid)? <= FID && self.result(samples, Metric::Clip)? >= CLIP {
                let earlier = reached.is_none_or(|earlier| samples.number() < earlier.number());
                reached = if earlier { Some(samples) } else { reached };
            }
        }
        Ok(reached.cloned())
    }

    fn result(&self, samples: &Value, metric: Metric) -> Result<f64, Unusable> {
        let of = |line: &&Measured| line.samples.same(samples) && line.metric.text() == Some(metric.name());
        let result = self.results.iter().rev().find(of).and_then(|line| line.result.number());
        result.ok_or_else(|| Unusable {
            problem: format!("the evaluation at {samples} samples has no {metric} as a number"),
            remedy: "log FID and CLIP of each evaluation with the same `samples_count`",
        })
    }
}

fn said(entry: &Entry) -> Result<Value, Unusable> {
    let remedy = "write each log line in one piece, as an object with time_ms, key, value and metadata";
    Value::parse(&entry.text)
        .or_else(|reason| unusable(format!("`{}` is not JSON: {reason}", shortened(&entry.text)), remedy))
}

fn field<'a>(line: &'a Value, name: &'static str) -> Result<&'a Value, Unusable> {
    line.get(name).ok_or_else(|| Unusable { problem: format!("the line has no `{name}`"), remedy: "log it" })
}
