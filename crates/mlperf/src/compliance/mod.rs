//! Whether a log follows the rules.

mod advice;
mod lines;
mod results;

use crate::finding::{Finding, Report, Severity};
use crate::keys;
use crate::log::{Line, Log, ReadError};
use crate::rules::{Count, KeyRule, LogRules, Target};
use crate::ruleset::{Benchmark, Division, Ruleset};
use lines::{State, broken};
use std::path::Path;

/// Judges a log file by the rules of a round; all of its findings, those included that the official checkers do not have.
///
/// # Errors
/// [`ReadError`]. A log that breaks rules is no error.
pub fn check_log(path: &Path, ruleset: Ruleset) -> Result<Report, ReadError> {
    Log::read(path).map(|log| check(&log, ruleset))
}

/// Judges a log that was read.
pub fn check(log: &Log, ruleset: Ruleset) -> Report {
    let mut checker = Checker { log, ruleset, report: Report::default(), state: State::default() };
    checker.faults();
    let division = checker.division();
    let benchmark = checker.benchmark(division);
    let rules = LogRules::of(ruleset, division, benchmark);
    checker.each_line(&rules);
    let points = match rules.target {
        Some(Target::FidAndClip | Target::AnyFidAndClip) => checker.points(),
        _ => Vec::new(),
    };
    rules.keys.iter().for_each(|rule| checker.count(rule, points.len()));
    if let Some(target) = rules.target {
        checker.target(target, &points);
    }
    checker.advice(benchmark);
    checker.report
}

struct Checker<'a> {
    log: &'a Log,
    ruleset: Ruleset,
    report: Report,
    state: State,
}

impl<'a> Checker<'a> {
    fn finding(&self, severity: Severity, problem: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::new(severity, &self.log.path, problem, remedy)
    }

    fn lines<'b>(&self, key: &'b str) -> impl Iterator<Item = (usize, &'a Line)> + use<'a, 'b> {
        self.log.lines().filter(move |(_, line)| line.key == key)
    }

    fn faults(&mut self) {
        for entry in &self.log.entries {
            let Err(fault) = &entry.line else { continue };
            let severity = if fault.stops { Severity::Fatal } else { Severity::Error };
            let remedy = "write each log line in one piece, as an object with time_ms, key, value and metadata";
            self.report.add(self.finding(severity, fault.problem.clone(), remedy).at(entry.number));
        }
        if self.log.lines().next().is_none() {
            let remedy = "give the file that the run wrote its `:::MLLOG ` lines to";
            self.report.add(self.finding(Severity::Error, "there are no log lines in it", remedy));
        }
    }

    /// The division that the first line names. A name that is none has no rules to go on with.
    fn division(&mut self) -> Option<Division> {
        let (number, line) = self.lines(keys::SUBMISSION_DIVISION).next()?;
        let division = line.value.text().and_then(|name| name.parse().ok());
        if division.is_none() {
            let problem =
                format!("`{}` is {}, which is neither closed nor open", keys::SUBMISSION_DIVISION, line.value);
            let finding = self.finding(Severity::Fatal, problem, "log closed or open");
            self.report.add(finding.at(number).of(keys::SUBMISSION_DIVISION));
        }
        division
    }

    /// The benchmark that the first line names, if its rules are known.
    fn benchmark(&mut self, division: Option<Division>) -> Option<Benchmark> {
        division?;
        let (number, line) = self.lines(keys::SUBMISSION_BENCHMARK).next()?;
        let name = line.value.text();
        let benchmark: Option<Benchmark> = name.and_then(|name| name.parse().ok());
        let in_round = name.is_some_and(|name| self.ruleset.benchmarks().contains(&name));
        let unknown = format!("round {} has no benchmark {}", self.ruleset, line.value);
        let (severity, problem, remedy) = match (in_round, benchmark) {
            (true, Some(_)) => return benchmark,
            (true, None) => (
                Severity::Error,
                format!("{} is not a benchmark whose rules are known here", line.value),
                format!("take MLCommons' checker, or log one of: {}", joined(Benchmark::ALL, ", ")),
            ),
            (false, Some(benchmark)) => {
                (Severity::Fatal, unknown, format!("check it by the rules of {}", joined(benchmark.rulesets(), " or ")))
            }
            (false, None) => {
                (Severity::Fatal, unknown, format!("log one of: {}", self.ruleset.benchmarks().join(", ")))
            }
        };
        self.report.add(self.finding(severity, problem, remedy).at(number).of(keys::SUBMISSION_BENCHMARK));
        None
    }

    fn each_line(&mut self, rules: &LogRules) {
        let mut submission_keys: Vec<&str> = Vec::new();
        for (number, line) in self.log.lines() {
            let repeated = submission_keys.contains(&line.key.as_str());
            if line.key.contains(keys::SUBMISSION) {
                submission_keys.push(&line.key);
            }
            if let Some(rule) = rules.keys.iter().find(|rule| rule.key == line.key).filter(|_| !repeated) {
                self.one_line(rule, number, line);
            }
            self.state.note(line);
        }
    }

    fn one_line(&mut self, rule: &KeyRule, number: usize, line: &Line) {
        for check in rule.checks {
            if let Some(problem) = broken(check, line, &self.state) {
                self.report.add(self.finding(Severity::Error, problem, rule.remedy).at(number).of(rule.key));
            }
        }
    }

    /// How often the rule's key is there. `points` are the evaluations of Stable Diffusion, which are no lines of their own.
    fn count(&mut self, rule: &KeyRule, points: usize) {
        let lines: Vec<_> = self.lines(rule.key).collect();
        let found = if rule.key == keys::AGGREGATED_EVAL_ACCURACY { points } else { lines.len() };
        let missing = match rule.count {
            Count::Once if found > 1 => return self.repeated(rule, &lines),
            Count::Once | Count::AtLeast(1) if found == 0 => format!("`{}` is missing", rule.key),
            Count::AtLeast(wanted) if found < wanted => {
                format!("there are {found} evaluations, where at least {wanted} are needed")
            }
            Count::OrElse(other) if found == 0 && self.lines(other).next().is_none() => {
                // Where either of two keys would do, it is the rule of none.
                let problem = format!("neither `{}` nor `{other}` is there", rule.key);
                return self.report.add(self.finding(Severity::Error, problem, rule.remedy));
            }
            _ => return,
        };
        self.report.add(self.finding(Severity::Error, missing, rule.remedy).of(rule.key));
    }

    /// A key that has to be there once, and is there more often.
    fn repeated(&mut self, rule: &KeyRule, lines: &[(usize, &Line)]) {
        let [(first, kept), (second, _), ..] = lines else { return };
        let times = format!("`{}` is there {} times", rule.key, lines.len());
        let finding = match lines.iter().find(|(_, line)| !line.value.same(&kept.value)) {
            None => self.finding(Severity::Warning, format!("{times}, always the same"), rule.remedy).at(*second),
            Some((number, line)) => {
                let values = format!("{} in line {first}, {} in line {number}", kept.value, line.value);
                self.finding(Severity::Error, format!("{times} with different values: {values}"), rule.remedy)
                    .at(*number)
            }
        };
        self.report.add(finding.of(rule.key));
    }
}

fn joined<T: ToString>(names: &[T], between: &str) -> String {
    names.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}
