//! The way of the package `submission_checker` through a submitter's folder, rounds since v6.0.

use super::performance::Figure;
use super::system::{system_type, told};
use super::table::{cannot_count, row_of_package};
use super::{Judge, Listing, Subject};
use crate::finding::Severity;
use crate::inference::DETAIL;
use crate::inference::detail::Detail;
use crate::inference::layout::{Place, RESULTS, SYSTEMS, TESTS};
use crate::inference::rounds::{InferenceDivision, Scenario};
use crate::log::ReadError;
use crate::value::Value;
use std::path::{Path, PathBuf};

impl Judge<'_> {
    pub(super) fn systems_by_package(
        &mut self,
        division: InferenceDivision,
        submitter: &str,
        folder: &Path,
        names: &Value,
    ) -> Result<(), ReadError> {
        for system in Listing::of(&folder.join(RESULTS))?.folders {
            let path = folder.join(SYSTEMS).join(format!("{system}.json"));
            if !path.exists() {
                self.stop(&path, "the description of the system is missing", "write it: calotype doctor --system-json");
                return Ok(());
            }
            let Some(described) = self.json(&path) else { return Ok(()) };
            let place = Place { round: self.round, submitter: folder, system: &system, model: "", scenario: "" };
            let subject = Subject { place, division, submitter, system: &described };
            self.models_by_package(&subject, &path, names)?;
        }
        Ok(())
    }

    fn models_by_package(&mut self, system: &Subject<'_>, path: &Path, names: &Value) -> Result<(), ReadError> {
        let folder = system.place.submitter.join(RESULTS).join(system.place.system);
        let mut described = false;
        for model in Listing::of(&folder)?.folders {
            let place = folder.join(&model);
            let unknown = if system.is_open() { Severity::Error } else { Severity::Fatal };
            if !self.is_ours(&place, &model, names, unknown) {
                continue;
            }
            let scenarios = Listing::of(&place)?.folders;
            let subject = Subject { place: Place { model: &model, ..system.place }, ..*system };
            if !system.is_open() && !self.scenarios_suit(&subject, path, &place, &scenarios) {
                return Ok(());
            }
            if !described && !scenarios.is_empty() {
                self.system(path, system.system, system.division, system.submitter);
                described = true;
            }
            for scenario in &scenarios {
                self.result_by_package(&Subject { place: Place { scenario, ..subject.place }, ..subject }, path);
            }
        }
        Ok(())
    }

    /// Whether the closed division's scenarios can be told apart at all; what is missing or unknown is told.
    fn scenarios_suit(&mut self, subject: &Subject<'_>, path: &Path, folder: &Path, found: &[String]) -> bool {
        let Some(required) = system_type(subject.system).map(|system| self.round.required(system)) else {
            let problem = format!("`system_type` is {}", told(subject.system.get("system_type")));
            self.stop(path, problem, "write datacenter, edge, or datacenter,edge");
            return false;
        };
        let Some(required) = required else {
            let problem = format!("round {} has this benchmark only for edge systems", self.round);
            self.stop(path, problem, "let `system_type` be edge or datacenter,edge, or hand it in as open");
            return false;
        };
        let has = |scenario: &Scenario| found.iter().any(|name| Scenario::of_folder(name) == Some(*scenario));
        let missing: Vec<_> =
            required.iter().filter(|scenario| !has(scenario)).map(|scenario| scenario.name()).collect();
        if !missing.is_empty() {
            self.unless_short(folder, format!("{} is missing", missing.join(" and ")), "run these scenarios, too");
        }
        for name in found {
            if !Scenario::of_folder(name).is_some_and(|scenario| required.contains(&scenario)) {
                self.unless_short(&folder.join(name), "it is neither needed nor allowed in this division", "remove it");
            }
        }
        true
    }

    fn result_by_package(&mut self, subject: &Subject<'_>, system: &Path) {
        let before = self.refusals();
        self.power(subject);
        let Some((performance, accuracy)) = self.logs(subject) else { return };
        let figure = self.performance(subject, &performance, self.short);
        let accuracy = self.accuracy_by_package(subject, &accuracy);
        let types = self.measurements(subject);
        let audited = if subject.is_open() { Ok(()) } else { self.compliance(subject) };
        for error in audited.as_ref().err().into_iter().chain(types.as_ref().err()) {
            self.error(&error.file, format!("it cannot be read: {}", error.source), "check the permissions");
        }
        let folder = subject.place.results();
        match figure {
            Some(Figure { value: 0.0, .. }) => {
                self.error(&folder, "a result of 0 counts as none", "run it again, longer")
            }
            Some(figure) if self.refusals() == before => {
                if let Some(field) = cannot_count(subject.system) {
                    let problem = format!(
                        "`{field}` is {}, where the checker's summary needs a whole number",
                        told(subject.system.get(field))
                    );
                    self.stop(system, problem, "write one, such as \"0\"");
                    return;
                }
                match row_of_package(self, subject, figure, &accuracy, types.ok().flatten()) {
                    Some(result) => self.found.results.push(result),
                    None => self.stop(
                        &folder,
                        "the checker's summary knows no such scenario",
                        "name it Offline, Server, SingleStream or MultiStream",
                    ),
                }
            }
            _ => {}
        }
    }

    /// The logs of both runs. All logs are read before anything is judged, those of the audit tests, too.
    fn logs(&mut self, subject: &Subject<'_>) -> Option<(Detail, Detail)> {
        let place = &subject.place;
        let paths = [place.performance().join(DETAIL), place.accuracy().join(DETAIL)];
        for test in TESTS {
            let log = place.test(test).join("performance").join("run_1").join(DETAIL);
            if log.exists() && self.detail(&log).is_none() {
                return None;
            }
        }
        if !self.are_there(place, &paths) {
            return None;
        }
        let performance = self.detail(&paths[0])?;
        Some((performance, self.detail(&paths[1])?))
    }

    fn are_there(&mut self, place: &Place<'_>, paths: &[PathBuf; 2]) -> bool {
        let missing: Vec<_> = paths.iter().filter(|path| !path.exists()).collect();
        // Without both, the checker takes the result for one of another harness, and breaks off unless it is SingleStream.
        let is_other = missing.len() == 2 && Scenario::of_folder(place.scenario) == Some(Scenario::SingleStream);
        let severity = if is_other { Severity::Error } else { Severity::Fatal };
        for path in &missing {
            self.add(severity, path, "it is missing", "put LoadGen's logs there");
        }
        missing.is_empty()
    }
}
