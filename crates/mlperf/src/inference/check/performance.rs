//! The log of a performance run.

use super::system::{is_network, system_type};
use super::{Judge, Subject};
use crate::finding::{Finding, Severity};
use crate::inference::detail::{COUNTED, Detail};
use crate::inference::rounds::{MIN_DURATION_MS, NETWORK_NAME, SAMPLES, Scenario, SystemType, TARGET_LATENCY_NS};
use crate::value::Value;
use std::path::Path;

/// A figure that a run comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) value: f64,
    /// The run's scenario.
    pub(super) scenario: Scenario,
    /// Whether it was inferred from that for another one.
    pub(super) inferred: bool,
}

/// A log that is judged.
struct Run<'a, 'j, 'r> {
    judge: &'a mut Judge<'j>,
    subject: &'a Subject<'r>,
    log: &'a Detail,
    file: &'a Path,
    /// Whether nothing but what a checker breaks off at counts, as in short runs.
    spared: bool,
}

impl Judge<'_> {
    /// Judges the log of a performance run, and tells its figure, if there is one. `spared` holds nothing against it but what a
    /// checker cannot read.
    pub(super) fn performance(&mut self, subject: &Subject<'_>, log: &Detail, spared: bool) -> Option<Figure> {
        Run { judge: self, subject, log, file: &log.path, spared }.judged()
    }
}

impl Run<'_, '_, '_> {
    fn judged(mut self) -> Option<Figure> {
        let Some(scenario) = self.log.text("effective_scenario").and_then(|name| name.parse().ok()) else {
            self.breaks("effective_scenario");
            return None;
        };
        self.validity();
        self.errors();
        self.at_least(
            "effective_performance_sample_count",
            SAMPLES as f64,
            "set performance_sample_count_override in user.conf",
        );
        self.seeds();
        self.latency(scenario);
        self.queries(scenario);
        self.at_least("effective_min_duration_ms", MIN_DURATION_MS, "leave min_duration out of user.conf");
        self.network();
        self.figure(scenario)
    }

    fn package(&self) -> bool {
        self.judge.round.by_package()
    }

    fn say(&mut self, severity: Severity, key: &'static str, problem: String, remedy: &str) {
        let finding = Finding::new(severity, self.file, problem, remedy).of(key);
        self.judge.found.report.add(match self.log.line(key) {
            Some(line) => finding.at(line),
            None => finding,
        });
    }

    fn refuse(&mut self, key: &'static str, problem: String, remedy: &str) {
        let severity = if self.spared { Severity::Advice } else { Severity::Error };
        self.say(severity, key, problem, remedy);
    }

    /// A value that a checker needs and cannot use, also where it spares everything else.
    fn breaks(&mut self, key: &'static str) {
        let problem = match self.log.first(key) {
            None | Some(Value::Null) => format!("`{key}` is missing"),
            Some(value) => format!("`{key}` is {value}, which is not one of its values"),
        };
        self.say(Severity::Error, key, problem, "take LoadGen's own file, unchanged");
    }

    fn number(&mut self, key: &'static str) -> Option<f64> {
        let found = self.log.number(key);
        if found.is_none() {
            self.breaks(key);
        }
        found
    }

    fn at_least(&mut self, key: &'static str, least: f64, remedy: &str) {
        if let Some(found) = self.number(key).filter(|found| *found < least) {
            self.refuse(key, format!("`{key}` is {found}, where {least} and more is needed"), remedy);
        }
    }

    fn at_most(&mut self, key: &'static str, most: f64, remedy: &str) {
        if let Some(found) = self.number(key).filter(|found| *found > most) {
            self.refuse(key, format!("`{key}` is {found}, where {most} and less is needed"), remedy);
        }
    }

    /// LoadGen's own verdict, which checkers since v6.0 do not look at.
    fn validity(&mut self) {
        let key = "result_validity";
        if self.log.text(key) == Some("VALID") {
            return;
        }
        let found = self.log.first(key).map_or("missing".to_owned(), ToString::to_string);
        let severity = if self.package() || self.spared { Severity::Advice } else { Severity::Error };
        self.say(
            severity,
            key,
            format!("LoadGen's verdict is {found}"),
            "read its reasons in mlperf_log_summary.txt and run it again",
        );
    }

    /// Errors that LoadGen met, which checkers since v6.0 count only in accuracy runs, and those before by LoadGen's own number.
    fn errors(&mut self) {
        let own = !self.package();
        let unmarked = self.log.messages.iter().find(|message| message.is_error.is_none());
        if let Some(lacking) = unmarked.filter(|_| !own || self.log.first(COUNTED).is_none()) {
            let problem = format!("line of `{}` has no `is_error`", lacking.key);
            let finding = Finding::new(Severity::Error, self.file, problem, "take LoadGen's own file, unchanged");
            self.judge.found.report.add(finding.at(lacking.line));
        }
        let counted = self.log.counted_errors();
        let severity = if own && counted != 0.0 && !self.spared { Severity::Error } else { Severity::Advice };
        if counted != 0.0 && self.log.errors().next().is_none() {
            self.say(severity, COUNTED, format!("LoadGen met {counted} errors"), "remove their cause and run it again");
        }
        for error in self.log.errors() {
            let problem = format!("LoadGen met an error: {}", error.value);
            let finding = Finding::new(severity, self.file, problem, "remove its cause and run it again");
            self.judge.found.report.add(finding.at(error.line));
        }
    }

    fn seeds(&mut self) {
        for (key, seed) in self.judge.round.seeds().named() {
            if !self.log.first(key).is_some_and(|found| found.same(&Value::from(seed))) {
                let found = self.log.first(key).map_or("missing".to_owned(), ToString::to_string);
                let round = self.judge.round;
                let problem = format!("`{key}` is {found}, where round {round} has {seed}");
                self.refuse(key, problem, "run with that round's mlperf.conf and leave seeds out of user.conf");
            }
        }
    }

    fn latency(&mut self, scenario: Scenario) {
        if scenario.stops_early() && !self.log.first("early_stopping_met").is_some_and(Value::is_true) {
            let reason = self.log.text("early_stopping_result").unwrap_or_default().trim().replace('\n', " ");
            let problem = format!("early stopping does not hold: {reason}");
            let remedy = "run more queries";
            match self.package() {
                true => self.refuse("early_stopping_met", problem, remedy),
                false => self.say(Severity::Advice, "early_stopping_met", problem, remedy),
            }
            if self.package() {
                return;
            }
        }
        if scenario == Scenario::Server {
            self.at_most("effective_target_latency_ns", TARGET_LATENCY_NS, "leave target_latency out of user.conf");
        } else if !scenario.stops_early() && self.package() && self.folder() == Some(Scenario::Server) {
            self.at_most("result_99.00_percentile_latency_ns", TARGET_LATENCY_NS, "run the Server scenario");
        }
    }

    fn queries(&mut self, scenario: Scenario) {
        if scenario != Scenario::Offline {
            return;
        }
        self.at_least("effective_min_query_count", 1.0, "leave min_query_count out of user.conf");
        // Since v6.0, the open division may ask less.
        let least = if self.package() && self.subject.division != crate::inference::InferenceDivision::Closed {
            0
        } else {
            SAMPLES
        };
        self.at_least("effective_samples_per_query", least as f64, "leave min_query_count out of user.conf");
    }

    /// A system that is reached over a network has to say so in its name. Where a description does not tell, is said where that is judged.
    fn network(&mut self) {
        if is_network(self.subject.system) != Some(true) {
            return;
        }
        match self.log.text("sut_name") {
            Some(name) if name.contains(NETWORK_NAME) => {}
            Some(name) => {
                let problem =
                    format!("the system is reached over a network, and its name `{name}` has no `{NETWORK_NAME}`");
                self.refuse("sut_name", problem, "name the system so in the program that runs LoadGen");
            }
            None => self.breaks("sut_name"),
        }
    }

    /// The scenario that the folder stands for.
    fn folder(&self) -> Option<Scenario> {
        let name = self.subject.place.scenario;
        if self.package() { Scenario::of_folder(name) } else { name.parse().ok() }
    }

    fn figure(&mut self, scenario: Scenario) -> Option<Figure> {
        let value = self.number(scenario.result().0)?;
        let value = if scenario.is_latency() { value / 1e6 } else { value };
        let folder = self.folder();
        if folder == Some(scenario) {
            return Some(Figure { value, scenario, inferred: false });
        }
        self.may_be_inferred(scenario, folder);
        self.inferred(scenario, folder, value)
    }

    fn may_be_inferred(&mut self, from: Scenario, to: Option<Scenario>) {
        let key = "effective_scenario";
        let named = self.subject.place.scenario;
        let problem = format!("the run is {from}, and its folder is named {named}");
        let remedy = "put each run into the folder of its scenario";
        let suits = is_inferable(from, to)
            && matches!(system_type(self.subject.system), Some(SystemType::Edge | SystemType::Both));
        match (self.package(), suits) {
            (true, false) => self.refuse(key, problem, remedy),
            (false, _) if !is_inferable(from, to) => self.say(Severity::Advice, key, problem, remedy),
            _ => {}
        }
    }

    /// The figure of one scenario from a run of another, as `get_inferred_result` has it.
    fn inferred(&mut self, from: Scenario, to: Option<Scenario>, value: f64) -> Option<Figure> {
        use Scenario::{MultiStream, Offline, SingleStream};
        let figure = |value| Some(Figure { value, scenario: from, inferred: true });
        match (from, to) {
            (SingleStream, Some(Offline)) => figure(self.number("result_qps_without_loadgen_overhead")?),
            (MultiStream, Some(Offline)) => {
                let (samples, latency) =
                    (self.number("effective_samples_per_query")?, self.number("result_mean_query_latency_ns")?);
                figure(samples * 1000.0 / (latency / 1e6))
            }
            (SingleStream, Some(MultiStream)) => {
                let key = "early_stopping_latency_ms";
                let latency = self.number(key)?;
                if latency == 0.0 {
                    self.refuse(
                        key,
                        "there are too few queries to infer MultiStream from".to_owned(),
                        "run 662 queries or more",
                    );
                }
                figure(latency * 8.0 / 1e6)
            }
            _ => Some(Figure { value, scenario: from, inferred: false }),
        }
    }
}

fn is_inferable(from: Scenario, to: Option<Scenario>) -> bool {
    use Scenario::{MultiStream, Offline, SingleStream};
    matches!((from, to), (SingleStream, Some(MultiStream | Offline)) | (MultiStream, Some(Offline)))
}
