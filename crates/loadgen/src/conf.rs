//! LoadGen's configuration: read strictly, and looked up as LoadGen 6.0.17 does (`TestSettings::FromConfig`).

use crate::settings::{MODEL, Scenario};
use calotype_core::names::nearest;
use calotype_core::read_text;
use std::path::{Path, PathBuf};

/// A line that LoadGen would pass over without a word, or take for something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {problem}", path.display(), line_of(*line))]
pub struct ConfError {
    /// The file.
    pub path: PathBuf,
    /// Its line, from 1; 0 for the whole file.
    pub line: usize,
    /// What is wrong, and what to write.
    pub problem: String,
}

fn line_of(line: usize) -> String {
    if line == 0 { String::new() } else { format!(" line {line}") }
}

/// What the value of a key is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A whole number.
    Whole,
    /// Any number of at least 0.
    Number,
}

/// Keys that LoadGen takes from user.conf.
const KEYS: [(&str, Kind); 17] = [
    ("min_duration", Kind::Whole),
    ("max_duration", Kind::Whole),
    ("min_query_count", Kind::Whole),
    ("max_query_count", Kind::Whole),
    ("performance_sample_count_override", Kind::Whole),
    ("accuracy_sample_count_override", Kind::Whole),
    ("target_qps", Kind::Number),
    ("target_latency", Kind::Number),
    ("target_latency_percentile", Kind::Number),
    ("samples_per_query", Kind::Whole),
    ("coalesce_queries", Kind::Whole),
    ("max_async_queries", Kind::Whole),
    ("sample_concatenate_permutation", Kind::Whole),
    ("performance_issue_unique", Kind::Whole),
    ("performance_issue_same", Kind::Whole),
    ("performance_issue_same_index", Kind::Whole),
    ("print_timestamps", Kind::Whole),
];

/// Keys that LoadGen takes from its own mlperf.conf alone: seeds and what belongs to them.
const OWN: [&str; 4] = ["qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed", "accuracy_log_probability"];

/// Keys of audits.
const AUDIT: [&str; 2] = ["accuracy_log_rng_seed", "accuracy_log_sampling_target"];

/// What mlperf.conf of LoadGen 6.0.17 says of this model and of all models.
const BUILT_IN: [(&str, &str, &str, &str); 18] = [
    (MODEL, "*", "performance_sample_count_override", "5000"),
    ("*", "SingleStream", "target_latency", "10"),
    ("*", "SingleStream", "target_latency_percentile", "90"),
    ("*", "SingleStream", "min_duration", "600000"),
    ("*", "MultiStream", "target_latency", "80"),
    ("*", "MultiStream", "target_latency_percentile", "99"),
    ("*", "MultiStream", "samples_per_query", "8"),
    ("*", "MultiStream", "min_duration", "600000"),
    ("*", "MultiStream", "min_query_count", "662"),
    ("*", "Server", "target_qps", "1.0"),
    ("*", "Server", "target_latency", "10"),
    ("*", "Server", "target_latency_percentile", "99"),
    ("*", "Server", "min_duration", "600000"),
    (MODEL, "Server", "target_latency", "20000"),
    ("*", "Offline", "target_qps", "1.0"),
    ("*", "Offline", "target_latency_percentile", "90"),
    ("*", "Offline", "min_duration", "600000"),
    (MODEL, "Offline", "min_query_count", "5000"),
];

/// A line of a configuration.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    model: String,
    scenario: String,
    key: String,
    value: f64,
    text: String,
}

/// A user's configuration, `user.conf`. Later lines win over earlier ones of the same key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserConf {
    entries: Vec<Entry>,
}

impl UserConf {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfError`] naming the line; line 0 for a file that cannot be read.
    pub fn read(path: &Path) -> Result<Self, ConfError> {
        let fault = |line, problem| ConfError { path: path.to_owned(), line, problem };
        let text = read_text(path).map_err(|error| fault(0, format!("cannot be read: {error}")))?;
        Self::parse(&text).map_err(|(line, problem)| fault(line, problem))
    }

    /// Reads lines `model.scenario.key = value` and comments that begin with `#`.
    ///
    /// # Errors
    /// The number of the line, from 1, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut entries = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let entry = entry(line).map_err(|problem| (number + 1, problem))?;
            entries.extend(entry);
        }
        Ok(Self { entries })
    }

    /// The same with a value of this model, behind all others.
    #[must_use]
    pub fn with(mut self, scenario: Scenario, key: &str, value: f64) -> Self {
        // A float without a fraction is written as a whole number, as LoadGen needs it.
        self.entries.push(Entry {
            model: MODEL.to_owned(),
            scenario: scenario.official().to_owned(),
            key: key.to_owned(),
            value,
            text: value.to_string(),
        });
        self
    }

    /// The lines as LoadGen reads them.
    pub fn to_text(&self) -> String {
        let line = |entry: &Entry| format!("{}.{}.{} = {}\n", entry.model, entry.scenario, entry.key, entry.text);
        self.entries.iter().map(line).collect()
    }

    /// The value of a key for this model and a scenario: the model's own, then every model's in the scenario, then the model's in
    /// every scenario, then that of all.
    pub fn value(&self, scenario: Scenario, key: &str) -> Option<f64> {
        let ways = [(MODEL, scenario.official()), ("*", scenario.official()), (MODEL, "*"), ("*", "*")];
        let of = |(model, scenario): (&str, &str)| {
            let is = |entry: &&Entry| entry.model == model && entry.scenario == scenario && entry.key == key;
            self.entries.iter().rev().find(is).map(|entry| entry.value)
        };
        ways.into_iter().find_map(of)
    }
}

/// A line's entry; none for an empty line and a comment.
fn entry(line: &str) -> Result<Option<Entry>, String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (name, text) = match words[..] {
        [] => return Ok(None),
        [first, ..] if first.starts_with('#') => return Ok(None),
        [name, "=", text] => (name, text),
        [name, "=", text, ..] => {
            return Err(format!(
                "stands behind the value: LoadGen takes `{name} = {text}` and nothing else; put comments on lines of their own"
            ));
        }
        ref words if words.iter().any(|word| word.len() > 1 && word.contains('=')) => {
            return Err("LoadGen passes over `=` without spaces around it; write `key = value`".to_owned());
        }
        _ => return Err("is no `model.scenario.key = value`".to_owned()),
    };
    let mut parts = name.split('.').collect::<Vec<_>>();
    let last = parts.pop().unwrap_or_default();
    let scenario = parts.pop().unwrap_or_default();
    // Names of models may hold points.
    let model = parts.join(".");
    if model.is_empty() || scenario.is_empty() {
        return Err(format!("`{name}` is no key: write model.scenario.key, such as {MODEL}.Offline.target_qps"));
    }
    if scenario != "*" && Scenario::ALL.iter().all(|known| known.official() != scenario) {
        return Err(format!(
            "there is no scenario `{scenario}`: SingleStream, MultiStream, Server, Offline, or * for all"
        ));
    }
    let Some((key, kind)) = KEYS.into_iter().find(|(key, _)| *key == last) else {
        return Err(unknown(last));
    };
    let value = number(text, kind)?;
    let entry = Entry { model, scenario: scenario.to_owned(), key: key.to_owned(), value, text: text.to_owned() };
    Ok(Some(entry))
}

fn unknown(key: &str) -> String {
    if OWN.contains(&key) {
        return format!(
            "LoadGen takes `{key}` from its own mlperf.conf alone, and passes over it here; remove the line"
        );
    }
    if AUDIT.contains(&key) {
        return format!("`{key}` belongs into an audit's configuration, which --audit-conf names");
    }
    if key == "mode" {
        return "the mode is chosen on the command line; remove the line".to_owned();
    }
    let close = nearest(key, KEYS.iter().map(|(key, _)| *key));
    let close = close.map(|close| format!("; did you mean `{close}`?")).unwrap_or_default();
    format!("LoadGen knows no key `{key}`, and passes over it{close}")
}

fn number(text: &str, kind: Kind) -> Result<f64, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits && text.len() > 1 && text.starts_with('0') {
        return Err(format!("LoadGen reads `{text}` as an octal number; write it without the 0 before it"));
    }
    if text.starts_with("0x") || text.starts_with("0X") {
        return Err(format!("LoadGen reads `{text}` as a hexadecimal number; write it as a decimal one"));
    }
    let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0).ok_or_else(|| {
        format!("`{text}` is no number of at least 0, and with one such line LoadGen takes nothing of the whole file")
    })?;
    // Beyond 2^53, whole numbers are not exact here.
    match kind {
        Kind::Whole if !digits || value > 9e15 => Err(format!("`{text}` is no whole number, which this key takes")),
        _ => Ok(value),
    }
}

/// What holds for a scenario: LoadGen's defaults, its mlperf.conf, and a user's configuration, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// Least duration in milliseconds.
    pub min_duration_ms: u64,
    /// Longest duration in milliseconds; 0 is none.
    pub max_duration_ms: u64,
    /// Least number of queries; in the offline scenario, of samples.
    pub min_query_count: u64,
    /// Largest number of queries; 0 is none.
    pub max_query_count: u64,
    /// Samples that performance runs take.
    pub performance_sample_count: u64,
    /// Samples of a query.
    pub samples_per_query: u64,
    /// Server: the latency that may not be missed, in nanoseconds; streams: the one that is expected.
    pub target_latency_ns: u64,
    /// Server and offline: samples per second, as load or as what is expected; 0 elsewhere.
    pub target_qps: f64,
    /// The percentile of the latency that counts, as a share; 0 in the offline scenario.
    pub target_latency_percentile: f64,
}

impl Effective {
    /// What LoadGen makes of a user's configuration.
    pub fn of(scenario: Scenario, conf: &UserConf) -> Self {
        let own = UserConf {
            entries: BUILT_IN
                .into_iter()
                .filter_map(|(model, scenario, key, text)| {
                    let value = text.parse().ok()?;
                    let [model, scenario, key, text] = [model, scenario, key, text].map(str::to_owned);
                    Some(Entry { model, scenario, key, value, text })
                })
                .collect(),
        };
        let value = |key: &str| conf.value(scenario, key).or_else(|| own.value(scenario, key));
        let whole = |key: &str, usual: u64| value(key).map_or(usual, |value| value as u64);
        let is = |other: Scenario| scenario == other;
        let rated = is(Scenario::Server) || is(Scenario::Offline);
        // Milliseconds in the configuration; the server's are cut to whole ones before they become nanoseconds.
        let latency = value("target_latency").map(|ms| if is(Scenario::Server) { ms.trunc() } else { ms });
        let usual_latency: u64 = match scenario {
            Scenario::SingleStream => 1_000_000,
            Scenario::MultiStream => 8_000_000,
            Scenario::Server => 100_000_000,
            Scenario::Offline => 0,
        };
        let target_latency_ns = match (scenario, latency) {
            (Scenario::Offline, _) => 0,
            (_, Some(ms)) => (ms * 1e6) as u64,
            (_, None) => usual_latency,
        };
        Self {
            min_duration_ms: whole("min_duration", 10_000),
            max_duration_ms: whole("max_duration", 0),
            min_query_count: whole("min_query_count", 100),
            max_query_count: whole("max_query_count", 0),
            performance_sample_count: whole("performance_sample_count_override", 0),
            samples_per_query: if is(Scenario::MultiStream) { whole("samples_per_query", 8) } else { 1 },
            target_latency_ns,
            target_qps: if rated { value("target_qps").unwrap_or(1.0) } else { 0.0 },
            target_latency_percentile: match scenario {
                Scenario::Offline => 0.0,
                _ => value("target_latency_percentile").unwrap_or(99.0) * 0.01,
            },
        }
    }

    /// Samples that a performance run issues at least: in the offline scenario exactly, as 1.1 times what the least duration takes at
    /// the expected rate, or the least number.
    pub fn samples(&self, scenario: Scenario) -> u64 {
        match scenario {
            // A float as an integer is cut, as LoadGen does.
            Scenario::Offline => {
                self.min_query_count.max((1.1 * (self.min_duration_ms as f64 / 1000.0) * self.target_qps) as u64)
            }
            _ => self.min_query_count.saturating_mul(self.samples_per_query),
        }
    }
}
