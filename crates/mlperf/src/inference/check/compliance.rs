//! The audit tests, which the closed and network divisions need: TEST01 (accuracy in performance mode) and TEST04 (caching).

use super::accuracy::figure;
use super::{Judge, Listing, Subject, read_detail};
use crate::finding::Severity;
use crate::inference::layout::TESTS;
use crate::inference::rounds::ACCURACY_WINDOW;
use crate::inference::{ACCURACY, ACCURACY_LOG, DETAIL, SUMMARY};
use crate::log::ReadError;
use std::fs;
use std::path::Path;

/// What the official scripts write where a test passes.
const PASSES: &str = "TEST PASS";
/// Verdict on the figures of a test.
const VERIFIED_ACCURACY: &str = "verify_accuracy.txt";
/// Verdict on its speed.
const VERIFIED_PERFORMANCE: &str = "verify_performance.txt";
/// Accuracy of the whole run on TEST01's samples, and of TEST01.
const COMPARED: [&str; 2] = ["baseline_accuracy.txt", "compliance_accuracy.txt"];

impl Judge<'_> {
    /// Judges the audit tests of a result.
    pub(super) fn compliance(&mut self, subject: &Subject<'_>) -> Result<(), ReadError> {
        for name in TESTS {
            let folder = subject.place.test(name);
            if !folder.exists() {
                self.error(
                    &folder,
                    format!("the audit test {name} is missing"),
                    "run it: calotype mlperf inference verify",
                );
                continue;
            }
            self.speed(subject, name, &folder)?;
            if name == TESTS[0] {
                self.figures_of_test(&folder)?;
            }
        }
        Ok(())
    }

    fn speed(&mut self, subject: &Subject<'_>, name: &str, folder: &Path) -> Result<(), ReadError> {
        let before = self.refusals();
        let run = folder.join("performance").join("run_1");
        self.passes(&folder.join(VERIFIED_PERFORMANCE), "the speed");
        if run.is_dir() {
            let difference = Listing::of(&run)?.difference(&[SUMMARY, DETAIL], &[ACCURACY_LOG]);
            if !difference.is_empty() {
                self.error(
                    &run,
                    format!("its files are not those of a performance run: {difference}"),
                    "let only those two be there",
                );
            }
        } else {
            self.error(&run, "the run of the test is missing", "put LoadGen's logs there");
        }
        let log = run.join(DETAIL);
        match read_detail(&log, self.round) {
            // The single file's checker can be told to spare performance, the package's cannot where it judges a test.
            Ok(detail) => drop(self.performance(subject, &detail, self.short && !self.round.by_package())),
            Err(_) if !log.exists() => self.error(&log, "it is missing", "put LoadGen's logs there"),
            Err((_, problem)) => {
                // The package reads these logs before it judges. The single file holds on to its verdict on the test before, and
                // breaks off where there is none.
                let severity = match (self.round.by_package(), name == TESTS[0], self.refusals() == before) {
                    (true, ..) | (false, true, true) => Severity::Fatal,
                    (false, true, false) => Severity::Error,
                    (false, false, _) => Severity::Advice,
                };
                self.add(severity, &log, problem, "take LoadGen's own file, unchanged");
            }
        }
        Ok(())
    }

    /// Whether a verdict's file says that a test passes; tells if it does.
    fn passes(&mut self, file: &Path, what: &str) -> bool {
        let Ok(text) = fs::read_to_string(file) else {
            self.error(
                file,
                "the verdict is missing",
                "write it with the official script, or calotype mlperf inference verify",
            );
            return false;
        };
        let passes = text.contains(PASSES);
        if !passes {
            self.error(
                file,
                format!("by its verdict, {what} of the test does not pass"),
                "find out why, and run the test again",
            );
        }
        passes
    }

    /// TEST01's answers: the same as in the accuracy run, or figures that differ little.
    fn figures_of_test(&mut self, folder: &Path) -> Result<(), ReadError> {
        let file = folder.join(VERIFIED_ACCURACY);
        let Ok(text) = fs::read_to_string(&file) else {
            self.error(
                &file,
                "the verdict is missing",
                "write it with the official script, or calotype mlperf inference verify",
            );
            return Ok(());
        };
        let passes = match self.round.by_package() {
            true => text.lines().any(|line| line.trim() == PASSES),
            false => text.contains(PASSES),
        };
        if passes && self.round.by_package() {
            return Ok(());
        }
        let figures = folder.join("accuracy");
        if !figures.is_dir() {
            self.error(&figures, "it is missing", "put the accuracy of the test there");
            return Ok(());
        }
        let needed: &[&str] =
            if passes { &[ACCURACY_LOG, ACCURACY] } else { &[ACCURACY_LOG, ACCURACY, COMPARED[0], COMPARED[1]] };
        let difference = Listing::of(&figures)?.difference(needed, &[]);
        if !difference.is_empty() {
            self.error(
                &figures,
                format!("its files are not those of the test: {difference}"),
                "let only those be there",
            );
        } else if !passes {
            self.compared(&figures);
        }
        Ok(())
    }

    fn compared(&mut self, folder: &Path) {
        let round = self.round;
        let texts = COMPARED.map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default());
        for (name, _, _, percent) in ACCURACY_WINDOW {
            let value =
                |text: &str| text.lines().filter_map(|line| figure(line, name, round)?.parse::<f64>().ok()).next_back();
            match (value(&texts[0]).filter(|found| *found != 0.0), value(&texts[1]).filter(|found| *found != 0.0)) {
                (Some(whole), Some(test)) if (1.0 - whole / test).abs() * 100.0 <= percent => {}
                (Some(whole), Some(test)) => {
                    let problem = format!(
                        "{name} is {test} in the test and {whole} in the accuracy run, where {percent} % may lie between"
                    );
                    self.error(folder, problem, "let both runs draw the same images");
                }
                _ => self.error(
                    folder,
                    format!("there is no {name} to compare"),
                    "judge both logs with the accuracy script",
                ),
            }
        }
    }
}
