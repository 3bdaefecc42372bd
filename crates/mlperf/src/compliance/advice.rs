//! What costs a submission later, or is most likely a mistake, and passes the official checker of logs.

use super::Checker;
use crate::finding::Severity;
use crate::keys;
use crate::ruleset::{Benchmark, RunStatus};

impl Checker<'_> {
    pub(super) fn advice(&mut self, benchmark: Option<Benchmark>) {
        if self.lines(keys::SEED).next().is_none() {
            self.advise(None, "no `seed` is logged", "log each run's own seed: a result of ten runs needs ten of them");
        }
        self.several_runs();
        self.distances(benchmark);
        self.end();
    }

    fn advise(&mut self, line: Option<usize>, problem: &str, remedy: &str) {
        let mut finding = self.finding(Severity::Advice, problem, remedy);
        finding.line = line;
        self.report.add(finding);
    }

    /// Two logs in one file break the rules line by line, and none of these says why.
    fn several_runs(&mut self) {
        let second = |key| self.lines(key).nth(1);
        if let (Some(_), Some((number, _))) = (second(keys::INIT_START), second(keys::RUN_START)) {
            let runs = self.lines(keys::RUN_START).count();
            let problem = format!("the lines of {runs} runs are in this log: another one begins here");
            self.advise(Some(number), &problem, "give each run a log of its own");
        }
    }

    /// Evaluations lie at multiples of the benchmark's interval.
    fn distances(&mut self, benchmark: Option<Benchmark>) {
        let batch = self.state.batch.filter(|batch| *batch >= 1.0 && batch.fract() == 0.0);
        let (Some(benchmark), Some(batch)) = (benchmark, batch) else { return };
        let interval = benchmark.evaluation_interval(batch as u64);
        let mut samples = self.lines(keys::EVAL_ACCURACY).filter_map(|(number, line)| Some((number, line.samples()?)));
        if let Some((number, samples)) = samples.find(|(_, samples)| samples % interval != 0) {
            let problem = format!("an evaluation is at {samples} samples, which is no multiple of {interval}");
            let remedy = "the rules want them at whole intervals: sample counts are compared with the reference's";
            self.advise(Some(number), &problem, remedy);
        }
    }

    /// How the run ended.
    fn end(&mut self) {
        let Some((stop, run_stop)) = self.lines(keys::RUN_STOP).last() else { return };
        let status = run_stop.metadata.get(keys::STATUS);
        if status.is_some_and(|status| status.text() != Some(RunStatus::Success.name())) {
            let problem = "the run did not end as a success, and counts as not converged";
            self.advise(Some(stop), problem, "only one run of ten may end so");
        }
        if let Some((number, _)) = self.lines(keys::EVAL_ACCURACY).find(|(number, _)| *number > stop) {
            let problem = "an evaluation stands behind run_stop, where the checker of reference points does not look";
            self.advise(Some(number), problem, "write all evaluations in front of run_stop, and date run_stop back");
        }
        let start = self.lines(keys::RUN_START).next();
        if start.is_some_and(|(_, start)| start.time_ms > run_stop.time_ms) {
            let remedy = "correct the times: the score is their difference";
            self.advise(Some(stop), "`run_stop` is earlier than `run_start`", remedy);
        }
    }
}
