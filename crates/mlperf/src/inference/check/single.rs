//! The way of the single file `submission_checker.py` through a submitter's folder, rounds up to v5.1.

use super::system::{system_type, told};
use super::table::row_of_file;
use super::{Judge, Listing, Subject};
use crate::finding::Severity;
use crate::inference::layout::{MEASUREMENTS, Place, RESULTS, SYSTEMS};
use crate::inference::rounds::{InferenceDivision, Round, Scenario};
use crate::inference::{ACCURACY_LOG, DETAIL, SUMMARY};
use crate::log::ReadError;
use crate::value::Value;
use std::path::Path;

impl Judge<'_> {
    pub(super) fn systems_by_file(
        &mut self,
        division: InferenceDivision,
        submitter: &str,
        folder: &Path,
        names: &Value,
    ) -> Result<(), ReadError> {
        let results = Listing::of(&folder.join(RESULTS))?.folders;
        if self.round != Round::V4_1 {
            self.all_have_results(folder, &results)?;
            self.calibration(division, folder);
        }
        for system in &results {
            let path = folder.join(SYSTEMS).join(format!("{system}.json"));
            if !path.exists() {
                self.error(
                    &path,
                    "the description of the system is missing",
                    "write it: calotype doctor --system-json",
                );
                continue;
            }
            let Some(described) = self.json(&path) else { return Ok(()) };
            if !self.system(&path, &described, division, submitter) {
                continue;
            }
            let place = Place { round: self.round, submitter: folder, system, model: "", scenario: "" };
            let subject = Subject { place, division, submitter, system: &described };
            self.models_by_file(&subject, names)?;
        }
        Ok(())
    }

    /// Whether everything that is described and measured has results.
    fn all_have_results(&mut self, folder: &Path, results: &[String]) -> Result<(), ReadError> {
        for name in [MEASUREMENTS, SYSTEMS] {
            let place = folder.join(name);
            if !place.is_dir() {
                self.stop(&place, "there is no such folder", "write it, with what belongs to the results");
                continue;
            }
            let listing = Listing::of(&place)?;
            let systems =
                listing.files.iter().filter_map(|file| file.strip_suffix(".json")).map(str::to_owned).collect();
            let described: Vec<String> = if name == SYSTEMS { systems } else { listing.folders };
            for system in described.iter().filter(|system| !results.contains(system)) {
                self.error(&place.join(system), "there are no results of this system", "add results, or remove it");
            }
        }
        Ok(())
    }

    fn calibration(&mut self, division: InferenceDivision, folder: &Path) {
        let file = "calibration.md";
        let documented = [folder.join(file), folder.join("documentation").join(file)];
        if division != InferenceDivision::Open && !documented.iter().any(|path| path.exists()) {
            self.error(&documented[1], "it is missing", "say there how weights were calibrated, or that they were not");
        }
    }

    fn models_by_file(&mut self, system: &Subject<'_>, names: &Value) -> Result<(), ReadError> {
        let folder = system.place.submitter.join(RESULTS).join(system.place.system);
        for model in Listing::of(&folder)?.folders {
            let place = folder.join(&model);
            if !self.is_ours(&place, &model, names, Severity::Error) {
                continue;
            }
            let subject = Subject { place: Place { model: &model, ..system.place }, ..*system };
            self.scenarios_by_file(&subject, &place)?;
        }
        Ok(())
    }

    fn scenarios_by_file(&mut self, model: &Subject<'_>, folder: &Path) -> Result<(), ReadError> {
        let required = system_type(model.system).and_then(|system| self.round.required(system)).unwrap_or_default();
        let mut missing = required.to_vec();
        let mut failed = 0;
        for name in Listing::of(folder)?.folders {
            let before = self.refusals();
            let scenario: Option<Scenario> = name.parse().ok();
            if !model.is_open() && !scenario.is_some_and(|scenario| required.contains(&scenario)) {
                self.error(&folder.join(&name), "it is neither needed nor allowed in this division", "remove it");
                continue;
            }
            let subject = Subject { place: Place { scenario: &name, ..model.place }, ..*model };
            self.result_by_file(&subject, failed)?;
            if self.refusals() > before {
                failed += 1;
            } else {
                missing.retain(|needed| Some(*needed) != scenario);
            }
        }
        if !missing.is_empty() {
            let missing = missing.iter().map(|scenario| scenario.name()).collect::<Vec<_>>().join(" and ");
            let severity = if model.is_open() { Severity::Advice } else { Severity::Error };
            self.add(severity, folder, format!("there is no good result of {missing}"), "run these scenarios, too");
        }
        Ok(())
    }

    fn result_by_file(&mut self, subject: &Subject<'_>, failed: usize) -> Result<(), ReadError> {
        let before = self.refusals();
        self.power(subject);
        let types = self.measurements(subject)?;
        if self.refusals() > before {
            return Ok(());
        }
        let Some(accuracy) = self.accuracy_by_file(subject)? else { return Ok(()) };
        let figure = self.performance_by_file(subject)?;
        if !subject.is_open() {
            self.compliance(subject)?;
        }
        let folder = subject.place.results();
        match figure {
            Some(figure) if figure.value == 0.0 => {
                self.error(&folder, "a result of 0 counts as none", "run it again, longer")
            }
            Some(figure) if self.refusals() == before => {
                match row_of_file(self, subject, figure, &accuracy, failed, types) {
                    Ok(result) => self.found.results.push(result),
                    Err(field) => {
                        let file = subject.place.submitter.join(SYSTEMS).join(format!("{}.json", subject.place.system));
                        let problem = format!(
                            "`{field}` is {}, where the checker's summary needs a text",
                            told(subject.system.get(field))
                        );
                        self.stop(&file, problem, "put it into quotes");
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn performance_by_file(&mut self, subject: &Subject<'_>) -> Result<Option<super::performance::Figure>, ReadError> {
        let folder = subject.place.performance();
        if !folder.is_dir() {
            self.error(&folder, "it is missing", "put LoadGen's logs of the performance run there");
            return Ok(None);
        }
        let difference = Listing::of(&folder)?.difference(&[SUMMARY, DETAIL], &[ACCURACY_LOG]);
        if !difference.is_empty() {
            self.error(
                &folder,
                format!("its files are not those of a performance run: {difference}"),
                "let only those two be there",
            );
            return Ok(None);
        }
        match super::read_detail(&folder.join(DETAIL), self.round) {
            Ok(detail) => Ok(self.performance(subject, &detail, self.short)),
            Err((line, problem)) => {
                let line = line.map_or(String::new(), |line| format!("line {line}: "));
                self.error(&folder.join(DETAIL), format!("{line}{problem}"), "take LoadGen's own file, unchanged");
                Ok(None)
            }
        }
    }

    /// Measurements of power have rules of their own.
    pub(super) fn power(&mut self, subject: &Subject<'_>) {
        let folder = subject.place.results().join("performance").join("power");
        if folder.exists() {
            self.add(
                Severity::Warning,
                &folder,
                "measurements of power are not judged here",
                "take MLCommons' checker",
            );
        }
    }
}
