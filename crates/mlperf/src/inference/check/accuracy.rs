//! The files of an accuracy run.

use super::{Judge, Listing, Subject};
use crate::finding::{Finding, Severity};
use crate::inference::detail::Detail;
use crate::inference::rounds::{ACCURACY_WINDOW, LARGEST_ACCURACY_LOG, Round, SAMPLES};
use crate::inference::truncate::HASH;
use crate::inference::{ACCURACY, ACCURACY_LOG, DETAIL, SUMMARY};
use crate::log::ReadError;
use crate::value::Value;
use std::fs;
use std::path::Path;

/// What accuracy.txt says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Accuracy {
    /// Names and figures as they are written, in their order.
    pub(super) figures: Vec<(&'static str, String)>,
    /// What is missing or outside of its window, in words.
    flaws: Vec<String>,
}

impl Accuracy {
    /// Reads accuracy.txt as a round's checker does.
    ///
    /// # Errors
    /// A figure that is none.
    fn parse(text: &str, round: Round) -> Result<Self, String> {
        let mut found = Self::default();
        let (mut seen, mut hash) = ([false; 2], false);
        for line in text.lines() {
            hash |= line.strip_prefix(HASH).is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_word));
            for (index, (name, least, most, _)) in ACCURACY_WINDOW.into_iter().enumerate() {
                let Some(written) = figure(line, name, round) else { continue };
                let value: f64 = written.parse().map_err(|_| format!("`{written}` of {name} is no number"))?;
                seen[index] |= value >= least;
                if !(least..=most).contains(&value) {
                    found.flaws.push(format!("{name} is {written}, where {least} to {most} is needed"));
                }
                match found.figures.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, earlier)) => written.clone_into(earlier),
                    None => found.figures.push((name, written.to_owned())),
                }
            }
            // Nothing more is read then.
            if seen == [true; 2] && hash {
                break;
            }
        }
        for (name, ..) in ACCURACY_WINDOW {
            if found.figures.iter().any(|(other, _)| *other == name) {
                continue;
            }
            let is_quoted = text.lines().any(|line| figure(line, name, Round::V6_1).is_some());
            found.flaws.push(match is_quoted {
                true => format!("{name} is in quotes, which the checker of {round} does not read"),
                false => format!("there is no {name}"),
            });
        }
        if !hash {
            found.flaws.push(format!("there is no line {HASH}… of {ACCURACY_LOG}"));
        }
        Ok(found)
    }
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The last `'NAME': '1.5` of a line, or without the second quote. The checker of v4.1 takes only that, behind one blank.
pub(super) fn figure<'a>(line: &'a str, name: &str, round: Round) -> Option<&'a str> {
    line.rmatch_indices(&format!("'{name}':")).find_map(|(start, mark)| {
        let rest = &line[start + mark.len()..];
        let number = match round {
            Round::V4_1 => rest.strip_prefix(char::is_whitespace)?,
            _ => rest.trim_start(),
        };
        if number.len() == rest.len() {
            return None;
        }
        let number = number.strip_prefix('\'').filter(|_| round != Round::V4_1).unwrap_or(number);
        let end = number.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(number.len());
        (end > 0).then(|| &number[..end])
    })
}

impl Judge<'_> {
    /// Judges the files of an accuracy run by the single file's rules; `None` where it reads no further.
    pub(super) fn accuracy_by_file(&mut self, subject: &Subject<'_>) -> Result<Option<Accuracy>, ReadError> {
        let folder = subject.place.accuracy();
        let figures = folder.join(ACCURACY);
        if !figures.exists() {
            self.error(&figures, "it is missing", "judge the accuracy run: calotype mlperf inference accuracy");
            return Ok(None);
        }
        let listing = Listing::of(&folder)?;
        let difference = listing.difference(&[SUMMARY, DETAIL, ACCURACY, ACCURACY_LOG], &[]);
        if !difference.is_empty() {
            self.error(
                &folder,
                format!("its files are not those of an accuracy run: {difference}"),
                "let only those four be there",
            );
            return Ok(None);
        }
        let Some(mut found) = self.figures(&figures, Severity::Fatal) else { return Ok(None) };
        let Some(detail) = self.detail(&folder.join(DETAIL)) else { return Ok(None) };
        self.size(&folder.join(ACCURACY_LOG), &mut found);
        // The checker of v5.1 names a variable here before it has a value.
        let (met, breaks) = (detail.counted_errors() != 0.0, self.round != Round::V4_1);
        self.loadgen_errors(&detail, if met && breaks { Severity::Fatal } else { Severity::Advice });
        if met {
            found.flaws.push("LoadGen met errors in the accuracy run".to_owned());
        }
        self.samples(&detail, Severity::Advice);
        if let Some(missing) = self.missing_images(&folder) {
            found.flaws.push(missing);
        }
        self.accepted(subject, &figures, found)
    }

    fn accepted(&mut self, subject: &Subject<'_>, file: &Path, found: Accuracy) -> Result<Option<Accuracy>, ReadError> {
        // The open division takes any figures; up to v4.1 also none.
        let taken = subject.is_open() && (!found.figures.is_empty() || self.round == Round::V4_1);
        let severity = if taken { Severity::Advice } else { Severity::Error };
        for flaw in &found.flaws {
            self.add(severity, file, flaw.clone(), "correct it, or run the accuracy mode again");
        }
        Ok(Some(found))
    }

    /// Judges the files of an accuracy run by the package's rules. The log is what the package has read already.
    pub(super) fn accuracy_by_package(&mut self, subject: &Subject<'_>, detail: &Detail) -> Accuracy {
        let folder = subject.place.accuracy();
        let (figures, log) = (folder.join(ACCURACY), folder.join(ACCURACY_LOG));
        let mut found = Accuracy::default();
        if !figures.exists() {
            self.error(&figures, "it is missing", "judge the accuracy run: calotype mlperf inference accuracy");
        } else if let Some(read) = self.figures(&figures, Severity::Error) {
            let severity = if subject.is_open() || self.short { Severity::Advice } else { Severity::Error };
            for flaw in &read.flaws {
                self.add(severity, &figures, flaw.clone(), "correct it, or run the accuracy mode again");
            }
            found = read;
        }
        match fs::metadata(&log) {
            Err(_) => self.error(&log, "it is missing", "put the log of the accuracy run there, shortened"),
            Ok(size) if size.len() > LARGEST_ACCURACY_LOG => {
                self.unless_short(&log, too_long(size.len()), "shorten it, and add its hash to accuracy.txt");
            }
            Ok(_) => {}
        }
        let severity = if self.short { Severity::Advice } else { Severity::Error };
        self.loadgen_errors(detail, severity);
        self.samples(detail, severity);
        if let Some(missing) = self.missing_images(&folder) {
            self.unless_short(&folder, missing, "put the images of these samples there");
        }
        found
    }

    /// What accuracy.txt says; `None`, and a finding, where a checker breaks off at it, which weighs as is said.
    fn figures(&mut self, path: &Path, severity: Severity) -> Option<Accuracy> {
        let text = match crate::package::text_as_it_is(path) {
            Ok(text) => text,
            Err(error) => {
                self.stop(path, format!("it cannot be read: {error}"), "save it as UTF-8");
                return None;
            }
        };
        match Accuracy::parse(&text, self.round) {
            Ok(found) => Some(found),
            Err(problem) => {
                self.add(severity, path, problem, "write figures as the accuracy script prints them");
                None
            }
        }
    }

    fn size(&mut self, log: &Path, found: &mut Accuracy) {
        let size = fs::metadata(log).map_or(0, |found| found.len());
        if size > LARGEST_ACCURACY_LOG {
            found.flaws.push(format!("{ACCURACY_LOG}: {}", too_long(size)));
        }
    }

    fn loadgen_errors(&mut self, detail: &Detail, severity: Severity) {
        if let Some(lacking) = detail.messages.iter().find(|message| message.is_error.is_none()) {
            let severity = if self.round.by_package() { Severity::Error } else { Severity::Fatal };
            let problem = format!("line of `{}` has no `is_error`", lacking.key);
            let finding = Finding::new(severity, &detail.path, problem, "take LoadGen's own file, unchanged");
            self.found.report.add(finding.at(lacking.line));
        }
        for error in detail.errors() {
            let problem = format!("LoadGen met an error: {}", error.value);
            let finding = Finding::new(severity, &detail.path, problem, "remove its cause and run it again");
            self.found.report.add(finding.at(error.line));
        }
    }

    /// Whether the run covers the data set, which checkers before v6.0 only remark on.
    fn samples(&mut self, detail: &Detail, severity: Severity) {
        let key = match detail.first("effective_accuracy_sample_count") {
            Some(_) if self.round.by_package() => "effective_accuracy_sample_count",
            _ => "qsl_reported_total_count",
        };
        if !detail.first(key).is_some_and(|found| found.same(&Value::from(SAMPLES))) {
            let found = detail.first(key).map_or("missing".to_owned(), ToString::to_string);
            let problem = format!("`{key}` is {found}, where the data set has {SAMPLES} samples");
            let finding = Finding::new(severity, &detail.path, problem, "run the accuracy mode on all samples").of(key);
            self.found.report.add(match detail.line(key) {
                Some(line) => finding.at(line),
                None => finding,
            });
        }
    }

    /// Images that the round asks for and that are not there.
    fn missing_images(&mut self, folder: &Path) -> Option<String> {
        let wanted = self.round.images()?;
        let images = folder.join("images");
        let Ok(listing) = Listing::of(&images) else { return Some("there is no folder images".to_owned()) };
        let stems: Vec<&str> = listing.files.iter().map(|name| name.split('.').next().unwrap_or_default()).collect();
        if !stems.contains(&"captions") {
            self.add(Severity::Advice, &images, "captions.txt is missing", "write the captions of the images");
        }
        let missing: Vec<_> =
            wanted.iter().map(ToString::to_string).filter(|id| !stems.contains(&id.as_str())).collect();
        (!missing.is_empty()).then(|| format!("images of samples {} are missing", missing.join(", ")))
    }
}

fn too_long(size: u64) -> String {
    format!("it has {size} bytes, where {LARGEST_ACCURACY_LOG} are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_as_the_checkers_find_them() {
        for (line, found) in [
            ("Accuracy Results: {'FID_SCORE': '23.5', 'CLIP_SCORE': '31.7'}", Some("31.7")),
            ("{'CLIP_SCORE': 31.7}", Some("31.7")),
            ("'CLIP_SCORE': '1' 'CLIP_SCORE': '2.5'", Some("2.5")),
            ("'CLIP_SCORE': '1' 'CLIP_SCORE': x", Some("1")),
            ("'CLIP_SCORE':31.7", None),
            ("'CLIP_SCORE': -31.7", None),
            ("'CLIP_SCORE': nan", None),
            ("CLIP_SCORE: 31.7", None),
            ("", None),
        ] {
            assert_eq!(figure(line, "CLIP_SCORE", Round::V5_1), found, "{line}");
        }
        assert!(Accuracy::parse("'CLIP_SCORE': 1.2.3", Round::V6_1).unwrap_err().contains("is no number"));
        for (line, found) in
            [("'CLIP_SCORE': 31.7", Some("31.7")), ("'CLIP_SCORE': '31.7'", None), ("'CLIP_SCORE':  31.7", None)]
        {
            assert_eq!(figure(line, "CLIP_SCORE", Round::V4_1), found, "{line}");
        }
        let good = "{'FID_SCORE': '23.5', 'CLIP_SCORE': '31.7'}\n\nhash=0a\n'CLIP_SCORE': 1\n";
        assert!(Accuracy::parse(good, Round::V6_1).unwrap().flaws.is_empty());
        for text in [
            "",
            "hash=",
            "hash=a b\n",
            "'CLIP_SCORE': '31.7'\nhash=1\n",
            "{'FID_SCORE': '24', 'CLIP_SCORE': '31.7'}\nhash=1",
        ] {
            assert!(!Accuracy::parse(text, Round::V6_1).unwrap().flaws.is_empty(), "{text}");
        }
    }
}
