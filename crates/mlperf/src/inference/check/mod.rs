//! Whether a submission's tree would be accepted: what MLCommons' checkers of the round look at, and in their order, for what they
//! pass over (or break off at) decides what they see. Where a checker does not see what the rules ask for, the finding is advice.

mod accuracy;
mod compliance;
mod measurements;
mod package;
mod performance;
mod single;
mod structure;
mod system;
mod table;

pub use table::SummaryTable;

use super::BENCHMARK;
use super::detail::Detail;
use super::layout::Place;
use super::rounds::{InferenceDivision, Round};
use crate::finding::{Finding, Report, Severity, Verdict};
use crate::log::ReadError;
use crate::package::text_as_it_is;
use crate::value::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// What a check of a tree found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferenceReport {
    /// All findings, of all results.
    pub report: Report,
    /// Results that count.
    pub results: Vec<InferenceResult>,
}

impl InferenceReport {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        self.report.verdict(false)
    }
}

/// A result that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceResult {
    /// Its folder, that of a scenario.
    pub folder: PathBuf,
    /// The figure: samples or queries a second, or milliseconds.
    pub value: f64,
    /// Its unit, as the summary has it.
    pub unit: &'static str,
    /// The values of the summary's columns, by their names.
    row: Vec<(&'static str, String)>,
}

/// Judges a tree by the rules of a round. `short` holds no sizes, durations and figures against it, as the runs of student competitions
/// are judged (`run-mlperf-inference-submission-checker,_short-run` of mlperf-automations, which rewrites the official checker so).
/// Results of other benchmarks are passed over with a warning.
///
/// # Errors
/// [`ReadError`] for a folder that cannot be listed.
pub fn check_submission(root: &Path, round: Round, short: bool) -> Result<InferenceReport, ReadError> {
    let mut judge = Judge { root, round, short, found: InferenceReport::default() };
    judge.divisions()?;
    Ok(judge.found)
}

/// A result's place, and what it is judged with.
struct Subject<'a> {
    place: Place<'a>,
    division: InferenceDivision,
    submitter: &'a str,
    system: &'a Value,
}

impl Subject<'_> {
    fn is_open(&self) -> bool {
        self.division == InferenceDivision::Open
    }
}

struct Judge<'a> {
    root: &'a Path,
    round: Round,
    short: bool,
    found: InferenceReport,
}

impl Judge<'_> {
    fn add(&mut self, severity: Severity, file: &Path, problem: impl Into<String>, remedy: impl Into<String>) {
        self.found.report.add(Finding::new(severity, file, problem, remedy));
    }

    fn error(&mut self, file: &Path, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, file, problem, remedy);
    }

    fn stop(&mut self, file: &Path, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Fatal, file, problem, remedy);
    }

    /// Whether a folder holds this benchmark's results; of others it is told, of unknown ones as severely as the round's checker does.
    fn is_ours(&mut self, folder: &Path, model: &str, names: &Value, unknown: Severity) -> bool {
        match model_of(model, names) {
            Model::Ours => return true,
            Model::Other => self.add(
                Severity::Warning,
                folder,
                "results of other benchmarks are not judged here",
                "take MLCommons' checker",
            ),
            Model::Unknown => self.add(
                unknown,
                folder,
                format!("`{model}` is no benchmark"),
                "name the folder stable-diffusion-xl, or map the name to it in model_mapping.json",
            ),
        }
        false
    }

    /// What a short run is not refused for.
    fn unless_short(&mut self, file: &Path, problem: impl Into<String>, remedy: impl Into<String>) {
        let severity = if self.short { Severity::Advice } else { Severity::Error };
        self.add(severity, file, problem, remedy);
    }

    /// How many findings refuse.
    fn refusals(&self) -> usize {
        self.found.report.findings.iter().filter(|finding| finding.severity >= Severity::Error).count()
    }

    fn divisions(&mut self) -> Result<(), ReadError> {
        for name in Listing::of(self.root)?.folders {
            let folder = self.root.join(&name);
            let Ok(division) = name.parse::<InferenceDivision>() else {
                if ![".git", ".github", "assets"].contains(&name.as_str()) {
                    let problem = "it is no division, and is passed over";
                    self.add(Severity::Warning, &folder, problem, "name it closed, open or network, or remove it");
                }
                continue;
            };
            if !self.round.by_package() && !self.only_folders(&folder)? {
                continue;
            }
            for submitter in Listing::of(&folder)?.folders {
                self.submitter(division, &submitter, &folder.join(&submitter))?;
            }
        }
        Ok(())
    }

    fn submitter(&mut self, division: InferenceDivision, name: &str, folder: &Path) -> Result<(), ReadError> {
        let results = folder.join(super::layout::RESULTS);
        if !results.exists() {
            let remedy = "put results into it, or remove the submitter's folder";
            match self.round.by_package() {
                true => self.stop(&results, "the submitter has none", remedy),
                false => self.add(Severity::Warning, &results, "the submitter has none, and is passed over", remedy),
            }
            return Ok(());
        }
        let found = self.structure(folder)?;
        if found && !self.round.by_package() {
            return Ok(());
        }
        let Some(names) = self.names_of_models(division, folder) else { return Ok(()) };
        match self.round.by_package() {
            true => self.systems_by_package(division, name, folder, &names),
            false => self.systems_by_file(division, name, folder, &names),
        }
    }

    /// Names that an open submission gives to models, from model_mapping.json; `None` where the checkers break off at it.
    fn names_of_models(&mut self, division: InferenceDivision, folder: &Path) -> Option<Value> {
        let path = folder.join("model_mapping.json");
        if division != InferenceDivision::Open || !path.exists() {
            return Some(Value::Object(Vec::new()));
        }
        self.json(&path)
    }

    /// A file's JSON; `None`, and a finding, where the checkers break off at it.
    fn json(&mut self, path: &Path) -> Option<Value> {
        let text = text_as_it_is(path).map_err(|error| error.to_string());
        match text.and_then(|text| Value::parse(&text)) {
            Ok(value @ Value::Object(_)) => Some(value),
            Ok(_) => {
                self.stop(path, "it is not a JSON object", "write the fields as one object");
                None
            }
            Err(reason) => {
                let remedy = "save it as JSON in UTF-8 without a byte-order mark";
                self.stop(path, format!("it is not JSON: {reason}"), remedy);
                None
            }
        }
    }

    /// A detail log; `None`, and a finding, where a checker that reads it breaks off.
    fn detail(&mut self, path: &Path) -> Option<Detail> {
        match read_detail(path, self.round) {
            Ok(detail) => Some(detail),
            Err((line, problem)) => {
                let finding = Finding::new(Severity::Fatal, path, problem, "take LoadGen's own file, unchanged");
                self.found.report.add(match line {
                    Some(line) => finding.at(line),
                    None => finding,
                });
                None
            }
        }
    }
}

/// A detail log as the round's checker reads it, or why it cannot, with the line.
fn read_detail(path: &Path, round: Round) -> Result<Detail, (Option<usize>, String)> {
    let detail = Detail::read(path).map_err(|error| (None, format!("it cannot be read: {}", error.source)))?;
    match detail.fault {
        _ if round.by_package() && !detail.begins_marked => {
            Err((Some(1), "its first line is not one of LoadGen's".to_owned()))
        }
        Some((line, problem)) => Err((Some(line), problem)),
        None => Ok(detail),
    }
}

/// What a model's folder is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    /// Stable Diffusion XL.
    Ours,
    /// Another benchmark of MLPerf.
    Other,
    /// Nothing that a checker knows.
    Unknown,
}

/// Beginnings of the names of all other benchmarks since v4.1.
const OTHERS: &[&str] = &[
    "resnet",
    "retinanet",
    "bert",
    "dlrm",
    "3d-unet",
    "rnnt",
    "gptj",
    "llama",
    "mixtral",
    "rgat",
    "pointpainting",
    "deepseek",
    "whisper",
    "gpt-oss",
    "wan-",
    "qwen",
    "yolo",
    "ssd-",
    "mobilenet",
    "efficientnet",
    "e2e-rag",
];

fn model_of(folder: &str, names: &Value) -> Model {
    let name = names.get(folder).and_then(Value::text).unwrap_or(folder);
    match (folder == BENCHMARK || name == BENCHMARK, OTHERS.iter().any(|other| name.starts_with(other))) {
        (true, _) => Model::Ours,
        (false, true) => Model::Other,
        (false, false) => Model::Unknown,
    }
}

/// Names in a folder, sorted; links count as what they lead to.
struct Listing {
    folders: Vec<String>,
    files: Vec<String>,
}

impl Listing {
    fn of(folder: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError { file: folder.to_owned(), source };
        let mut found = Self { folders: Vec::new(), files: Vec::new() };
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.path() {
                path if path.is_dir() => found.folders.push(name),
                path if path.is_file() => found.files.push(name),
                _ => {}
            }
        }
        found.folders.sort();
        found.files.sort();
        Ok(found)
    }

    /// What is missing or too much, in words; empty if nothing is. Traces and `results.json` may be there.
    fn difference(&self, needed: &[&str], allowed: &[&str]) -> String {
        let too_much = self.files.iter().map(String::as_str).filter(|name| {
            !needed.contains(name)
                && !allowed.contains(name)
                && !["mlperf_log_trace.json", "results.json", ".gitkeep"].contains(name)
        });
        let missing = needed.iter().filter(|name| !self.files.iter().any(|file| file == *name));
        let missing = missing.map(|name| format!("{name} is missing"));
        missing.chain(too_much.map(|name| format!("{name} is too much"))).collect::<Vec<_>>().join(", ")
    }
}
