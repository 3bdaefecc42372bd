//! Log files, of any program.
//!
//! A line counts if it holds `:::MLLOG ` anywhere; what stands in front is dropped, and so are all other lines, for launchers
//! write around the log. The rest of the line is an object with `time_ms`, `key`, `value` and `metadata`.

use crate::keys;
use crate::offline::Scores;
use crate::ruleset::{Benchmark, Metric};
use crate::value::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a line of a log begins with.
pub(crate) const TOKEN: &str = ":::MLLOG ";

/// Characters of a line that a message shows.
const SHOWN: usize = 80;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be read: {source}; check the path and the permissions", file.display())]
pub struct ReadError {
    /// The file or folder.
    pub file: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// Whether there is something else than a file or folder at a path: a named pipe would be waited for without end.
pub(crate) fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// When, in milliseconds since 1970.
    pub time_ms: f64,
    /// What it is about.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Further values: the source file and line that logged it, sample counts, the metric's name.
    pub metadata: Value,
}

impl Line {
    /// The sample count in the metadata, if it is a whole number.
    pub fn samples(&self) -> Option<u64> {
        self.metadata.get(keys::SAMPLES_COUNT)?.count()
    }

    /// Whether it ends a block of training steps or an epoch.
    fn ends_block(&self) -> bool {
        [keys::BLOCK_STOP, keys::EPOCH_STOP].contains(&self.key.as_str())
    }
}

/// A log line that says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub problem: String,
    /// True if the official checkers break off here instead of noting it.
    pub stops: bool,
}

/// A line of a file that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The file's line, from 1.
    pub number: usize,
    /// What stands behind the mark.
    pub text: String,
    /// What it says.
    pub line: Result<Line, Fault>,
}

/// A log.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Its file.
    pub path: PathBuf,
    /// Its lines, in their order.
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ReadError`]. Lines that are not as they should be are no error; [`crate::check`] tells them.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let bytes = fs::read(path).map_err(|source| ReadError { file: path.to_owned(), source })?;
        Ok(Self::parse(path, &bytes))
    }

    /// Reads a file's content. Bytes that are not UTF-8 are no letters (U+FFFD).
    pub fn parse(path: &Path, content: &[u8]) -> Self {
        let text = String::from_utf8_lossy(content).replace("\r\n", "\n").replace('\r', "\n");
        let entries = text.split('\n').enumerate().filter_map(|(index, line)| Entry::parse(index + 1, line)).collect();
        Self { path: path.to_owned(), entries }
    }

    /// The lines that say something, with their numbers in the file.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &Line)> + Clone {
        self.entries.iter().filter_map(|entry| entry.line.as_ref().ok().map(|line| (entry.number, line)))
    }

    /// When training reached a sample count: the time of the `block_stop` or `epoch_stop` there, in milliseconds since 1970.
    pub fn reached(&self, samples: u64) -> Option<i64> {
        let found = self.lines().find(|(_, line)| line.ends_block() && line.samples() == Some(samples));
        found.map(|(_, line)| line.time_ms as i64)
    }

    /// Sample counts at which training ended a block or an epoch, in the order of the lines.
    pub(crate) fn ends(&self) -> impl Iterator<Item = u64> {
        self.lines().filter(|(_, line)| line.ends_block()).filter_map(|(_, line)| line.samples())
    }

    /// The benchmark that the log names, if it is one of ours.
    pub fn benchmark(&self) -> Option<Benchmark> {
        self.said(keys::SUBMISSION_BENCHMARK)?.parse().ok()
    }

    /// The text of the first line of a key, such as `submission_org`.
    pub fn said(&self, key: &str) -> Option<&str> {
        self.lines().find(|(_, line)| line.key == key).and_then(|(_, line)| line.value.text())
    }

    /// Samples of an optimizer step, if the log says so.
    pub fn global_batch(&self) -> Option<u64> {
        self.lines().find(|(_, line)| line.key == keys::GLOBAL_BATCH_SIZE).and_then(|(_, line)| line.value.count())
    }

    /// Results of the evaluations, in the order of their first lines; what is no number is left out.
    pub fn scores(&self) -> Vec<Scores> {
        let mut all: Vec<Scores> = Vec::new();
        for (_, line) in self.lines().filter(|(_, line)| line.key == keys::EVAL_ACCURACY) {
            let metric = match line.metadata.get(keys::METRIC) {
                None => Some(Metric::ValidationLoss),
                Some(name) => name.text().and_then(|name| name.parse().ok()),
            };
            let (Some(metric), Some(samples), Some(value)) = (metric, line.samples(), line.value.number()) else {
                continue;
            };
            match all.iter_mut().find(|scores| scores.samples == samples) {
                Some(scores) => scores.results.push((metric, value)),
                None => all.push(Scores { samples, results: vec![(metric, value)] }),
            }
        }
        all
    }
}

impl Entry {
    pub(crate) fn parse(number: usize, line: &str) -> Option<Self> {
        let start = line.rfind(TOKEN)?;
        let text = line[start + TOKEN.len()..].trim();
        Some(Self { number, text: text.to_owned(), line: parse_line(text) })
    }
}

fn parse_line(text: &str) -> Result<Line, Fault> {
    let fault = |stops: bool, problem: String| Fault { problem, stops };
    if text.is_empty() {
        return Err(fault(false, "nothing stands behind the mark of a log line".to_owned()));
    }
    let value =
        Value::parse(text).map_err(|reason| fault(false, format!("`{}` is not JSON: {reason}", shortened(text))))?;
    let Value::Object(_) = value else {
        return Err(fault(true, format!("`{}` is not a JSON object", shortened(text))));
    };
    let field = |name: &str| {
        value.get(name).cloned().ok_or_else(|| fault(true, format!("`{name}` is missing in {}", shortened(text))))
    };
    let time_ms = time(&field("time_ms")?)?;
    let key = match field("key")? {
        Value::Text(key) => key,
        // Never a key of a rule; such lines are passed over as other unknown keys are.
        other => other.to_string(),
    };
    Ok(Line { time_ms, key, value: field("value")?, metadata: field("metadata")? })
}

fn time(value: &Value) -> Result<f64, Fault> {
    let words = |takes: &str| format!("`time_ms` is {value}, where {takes}");
    match value {
        Value::Text(text) => {
            let number = text.trim().parse();
            number.map_err(|_| Fault { problem: words("a number of milliseconds is needed"), stops: false })
        }
        other => {
            other.number().ok_or_else(|| Fault { problem: words("a number of milliseconds is needed"), stops: true })
        }
    }
}

/// The beginning of a text, as messages show it.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content: &[u8]) -> Vec<Entry> {
        Log::parse(Path::new("a.txt"), content).entries
    }

    #[test]
    fn lines_are_found_among_others() {
        let line = r#":::MLLOG {"namespace": "", "time_ms": 5, "event_type": "POINT_IN_TIME", "key": "seed", "value": 7, "metadata": {"file": "a.rs", "lineno": 3}}"#;
        let other = line.replace("seed", "loss").replace('7', "NaN").replace('5', "\" 5.5 \"");
        let content = format!("STARTING\r\n0: x:::MLLOG no {line}\r\n\r{other}  \nthe end");
        let entries = parse(content.as_bytes());
        assert_eq!(entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [2, 4]);
        let first = entries[0].line.clone().unwrap();
        assert_eq!((first.time_ms, first.key.as_str(), first.value), (5.0, "seed", Value::Whole(7)));
        assert_eq!(first.metadata.get("lineno"), Some(&Value::Whole(3)));
        assert_eq!(entries[1].line.as_ref().unwrap().time_ms, 5.5);
        assert!(parse(b"\xef\xbb\xbfnothing").is_empty());
        assert_eq!(parse(format!("\u{feff}{line}").as_bytes()).len(), 1);
    }

    #[test]
    fn what_is_no_line_is_named() {
        for (line, part, stops) in [
            ("", "nothing stands behind", false),
            ("{", "is not JSON: the text ends inside an object", false),
            ("{'key': 1}", "is not JSON", false),
            ("[]", "is not a JSON object", true),
            ("3", "is not a JSON object", true),
            ("{}", "`time_ms` is missing", true),
            (r#"{"time_ms": 1}"#, "`key` is missing", true),
            (r#"{"time_ms": 1, "key": "a"}"#, "`value` is missing", true),
            (r#"{"time_ms": 1, "key": "a", "value": 1}"#, "`metadata` is missing", true),
            (r#"{"time_ms": null, "key": "a", "value": 1, "metadata": {}}"#, "`time_ms` is null", true),
            (r#"{"time_ms": "1.2.3", "key": "a", "value": 1, "metadata": {}}"#, "`time_ms` is \"1.2.3\"", false),
            (r#"{"time_ms": 1, "key": "a", "value": 1, "metadata": {}} x"#, "is not JSON", false),
            (r#"{"time_ms": 1, "key": "a", "value": 01, "metadata": {}}"#, "is not JSON", false),
            (r#"{"time_ms": 1e999, "key": "a", "value": 1, "metadata": {}}"#, "is not JSON", false),
        ] {
            let entries = parse(format!(":::MLLOG {line}").as_bytes());
            let fault = entries[0].line.clone().unwrap_err();
            assert!(fault.problem.contains(part) && fault.stops == stops, "{line}: {fault:?}");
        }
        let long = "x".repeat(500);
        assert!(parse(format!(":::MLLOG {long}").as_bytes())[0].line.clone().unwrap_err().problem.len() < 200);
    }
}
