//! Log files, of any program.
//!
//! A line counts if it holds `:::MLLOG ` anywhere; what stands in front is dropped, and so are all other lines, for launchers
//! write around the log. The rest of the line is an object with `time_ms`, `key`, `value` and `metadata`.

use crate::keys;
use crate::offline::Scores;
use crate::ruleset::{Benchmark, Metric};
use crate::value::Value;
use calotype_core::{TextFault, decode_text, read_input};
use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

/// What a line of a log begins with.
pub(crate) const TOKEN: &str = ":::MLLOG ";

/// Characters of a line that a message shows.
const SHOWN: usize = 80;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be read: {source}{}", file.display(), advice(source))]
pub struct ReadError {
    /// The file or folder.
    pub file: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// What to do about a file that cannot be read; what it is instead says that itself.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => "",
        _ => "; check the path and the permissions",
    }
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

    /// What it is a result of, if the line is an evaluation's; one that names nothing is of the validation loss.
    fn metric(&self) -> Option<Metric> {
        match self.metadata.get(keys::METRIC) {
            None => Some(Metric::ValidationLoss),
            Some(name) => name.text()?.parse().ok(),
        }
    }

    /// The result of an evaluation at some samples; none if it is of nothing that a benchmark measures.
    fn result(&self, benchmark: Benchmark) -> Result<Option<(u64, Metric, f64)>, String> {
        let Some(metric) = self.metric().filter(|metric| benchmark.metrics().contains(metric)) else { return Ok(None) };
        let value = match &self.value {
            Value::Whole(_) | Value::Float(_) => self.value.number().filter(|value| value.is_finite()),
            _ => None,
        };
        match (value, self.metadata.get(keys::SAMPLES_COUNT), self.samples()) {
            (None, ..) => Err(format!("the result of {} is {}, and no finite number", metric.name(), self.value)),
            (_, None, _) => Err(format!("`{}` is missing in the metadata", keys::SAMPLES_COUNT)),
            (_, Some(found), None) => Err(format!("`{}` is {found}, and no count", keys::SAMPLES_COUNT)),
            (Some(value), _, Some(samples)) => Ok(Some((samples, metric, value))),
        }
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
    /// [`ReadError`], also for UTF-16 and UTF-32, which no checker reads. Lines that are not as they should be are no error;
    /// [`crate::check`] tells them.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError { file: path.to_owned(), source };
        let bytes = read_input(path).map_err(failed)?;
        match decode_text(&bytes) {
            Ok(Cow::Owned(_)) => Err(failed(TextFault::Utf16.into())),
            // Single bytes that are no letters are passed over.
            Err(fault) if !matches!(fault, TextFault::NotUtf8 { .. }) => Err(failed(fault.into())),
            _ => Ok(Self::parse(path, &bytes)),
        }
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
        let lines = self.lines().filter(|(_, line)| line.key == keys::EVAL_ACCURACY);
        by_samples(lines.filter_map(|(_, line)| Some((line.samples()?, line.metric()?, line.value.number()?))))
    }

    /// Results of the evaluations of a benchmark's metrics, in the order of their first lines.
    ///
    /// # Errors
    /// The number of the first such line that cannot be read, or whose result is no finite number or of no sample count, and what
    /// is wrong with it; without a number, that there is none.
    pub fn finite_scores(&self, benchmark: Benchmark) -> Result<Vec<Scores>, String> {
        let mut results = Vec::new();
        for Entry { number, text, line } in &self.entries {
            let found = match line {
                Ok(line) if line.key != keys::EVAL_ACCURACY => continue,
                Ok(line) => line.result(benchmark),
                // Lines that say something else are nobody's concern here.
                Err(_) if !text.contains(keys::EVAL_ACCURACY) => continue,
                Err(fault) => Err(fault.problem.clone()),
            };
            results.extend(found.map_err(|problem| format!("line {number}: {problem}"))?);
        }
        let measured = || benchmark.metrics().iter().map(|metric| metric.name()).collect::<Vec<_>>().join(" and ");
        match results.is_empty() {
            false => Ok(by_samples(results.into_iter())),
            true => Err(format!(
                "has no evaluations of what {benchmark} measures, {}; they are lines `eval_accuracy` with `samples_count` and \
                 `metric` in their metadata",
                measured()
            )),
        }
    }
}

/// Results together with the others of their sample count.
fn by_samples(results: impl Iterator<Item = (u64, Metric, f64)>) -> Vec<Scores> {
    let mut all: Vec<Scores> = Vec::new();
    for (samples, metric, value) in results {
        match all.iter_mut().find(|scores| scores.samples == samples) {
            Some(scores) => scores.results.push((metric, value)),
            None => all.push(Scores { samples, results: vec![(metric, value)] }),
        }
    }
    all
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

    #[test]
    fn results_that_cannot_be_drawn_are_named_by_their_line() {
        let line = |value: &str, metadata: &str| {
            format!(
                ":::MLLOG {{\"time_ms\": 1, \"key\": \"eval_accuracy\", \"value\": {value}, \"metadata\": {{{metadata}}}}}\n"
            )
        };
        let of = |metric: &str| format!("\"samples_count\": 512, \"metric\": \"{metric}\"");
        let scores = |benchmark: Benchmark, text: &str| {
            Log::parse(Path::new("a.txt"), format!("first\n{text}").as_bytes()).finite_scores(benchmark)
        };
        let sd = |text: &str| scores(Benchmark::StableDiffusion, text);
        for (value, part) in [
            ("NaN", "line 2: the result of FID is NaN, and no finite number"),
            ("-Infinity", "line 2: the result of FID is -Infinity"),
            ("null", "line 2: the result of FID is null"),
            ("\"abc\"", "line 2: the result of FID is \"abc\""),
            ("true", "line 2: the result of FID is true"),
            ("[90]", "line 2: the result of FID is [90]"),
            ("1e999", "line 2: `{"),
            ("", "line 2: `{"),
        ] {
            let error = sd(&line(value, &of("FID"))).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
        let error = sd(&line("90", "\"metric\": \"FID\"")).unwrap_err();
        assert!(error.contains("line 2: `samples_count` is missing"), "{error}");
        let error = sd(&line("90", "\"metric\": \"FID\", \"samples_count\": -8")).unwrap_err();
        assert!(error.contains("line 2: `samples_count` is -8, and no count"), "{error}");
        // What the benchmark does not measure is passed over, and is not enough.
        let both = line("90", &of("FID")) + &line("NaN", &of("PSNR")) + ":::MLLOG {\n";
        assert_eq!(sd(&both).unwrap(), [Scores { samples: 512, results: vec![(Metric::Fid, 90.0)] }]);
        let error = scores(Benchmark::Flux1, &both).unwrap_err();
        assert!(error.starts_with("has no evaluations of what flux1 measures, "), "{error}");
    }

    #[test]
    fn logs_of_other_encodings_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let units = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        for bytes in [units("\u{feff}:::MLLOG {}"), units(":::MLLOG {}")] {
            std::fs::write(&path, bytes).unwrap();
            let error = Log::read(&path).unwrap_err().to_string();
            assert!(
                error.contains("a.log") && error.contains("UTF-16") && error.contains("save it as UTF-8"),
                "{error}"
            );
        }
        std::fs::write(&path, b"caf\xe9\n").unwrap();
        assert!(Log::read(&path).unwrap().entries.is_empty());
    }
}
