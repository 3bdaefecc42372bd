//! The summary of results that count, `summary.csv`, as the round's checker writes it.

use super::accuracy::Accuracy;
use super::performance::Figure;
use super::{InferenceReport, InferenceResult, Judge, Subject};
use crate::inference::BENCHMARK;
use crate::inference::rounds::{Round, Scenario};
use crate::value::Value;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The columns, in their order; those of v5.1 are 28.
const COLUMNS: [&str; 31] = [
    "Organization",
    "Availability",
    "Division",
    "SystemType",
    "SystemName",
    "Platform",
    "Model",
    "MlperfModel",
    "Scenario",
    "Result",
    "Accuracy",
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "accelerator_model_name",
    "accelerators_per_node",
    TOTAL,
    "Location",
    "framework",
    "operating_system",
    "notes",
    "compliance",
    "errors",
    "version",
    "inferred",
    "has_power",
    "Units",
    TYPES,
    POWER,
    "PrivateID",
];
/// Bytes of a file in which its first line is looked for; the columns take fewer.
const LONGEST: u64 = 4096;
const TOTAL: &str = "total_accelerators";
const TYPES: &str = "weight_data_types";
const POWER: &str = "design_power_watts";

/// Columns that the single file puts into quotes.
const QUOTED: [&str; 9] = [
    "SystemType",
    "SystemName",
    "host_processor_model_name",
    "accelerator_model_name",
    "accelerators_per_node",
    "framework",
    "operating_system",
    "notes",
    TYPES,
];

/// Fields that the single file joins as texts.
const TEXTS: [&str; 6] = [
    "system_type",
    "system_name",
    "host_processor_model_name",
    "accelerator_model_name",
    "framework",
    "operating_system",
];

fn columns(round: Round) -> impl Iterator<Item = &'static str> {
    let absent: &'static [&'static str] = match round {
        Round::V4_0 | Round::V4_1 => &[TOTAL, TYPES, POWER, "PrivateID"],
        Round::V5_0 | Round::V5_1 => &[TOTAL, POWER, "PrivateID"],
        Round::V6_0 | Round::V6_1 => &[],
    };
    COLUMNS.into_iter().filter(move |column| !absent.contains(column))
}

/// The summary, as text.
pub struct SummaryTable<'a> {
    /// The round whose columns it has.
    pub round: Round,
    /// What was found.
    pub report: &'a InferenceReport,
}

impl SummaryTable<'_> {
    /// Whether a file is such a table, of any round: it begins with the same columns.
    pub fn is_at(path: &Path) -> bool {
        let mut first = String::new();
        let read = File::open(path).and_then(|file| BufReader::new(file).take(LONGEST).read_line(&mut first));
        read.is_ok() && Round::CHECKED.into_iter().any(|round| first.trim_end().split(',').eq(columns(round)))
    }
}

impl fmt::Display for SummaryTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = columns(self.round).collect();
        writeln!(f, "{}", names.join(","))?;
        for result in &self.report.results {
            let cell = |column: &str| {
                let value = result.row.iter().find(|(name, _)| *name == column).map_or("", |(_, value)| value.as_str());
                let quoted = self.round.by_package() || QUOTED.contains(&column);
                if quoted { format!("\"{value}\"") } else { value.to_owned() }
            };
            writeln!(f, "{}", names.iter().map(|column| cell(column)).collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }
}

/// Python's `str` of a field.
fn text(system: &Value, name: &str) -> String {
    match system.get(name) {
        None | Some(Value::Null) => "None".to_owned(),
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Bool(true)) => "True".to_owned(),
        Some(Value::Bool(false)) => "False".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// Remarks on hardware and software, or the field that is no text.
fn notes(system: &Value) -> Result<String, &'static str> {
    let one = |name: &'static str| match system.get(name) {
        None => Ok(""),
        Some(Value::Text(text)) => Ok(text.as_str()),
        Some(other) if !other.is_true() => Ok(""),
        Some(_) => Err(name),
    };
    let (hardware, software) = (one("hw_notes")?, one("sw_notes")?);
    let between = if hardware.is_empty() || software.is_empty() { "" } else { ". " };
    Ok(format!("{hardware}{between}{software}"))
}

fn accuracy_text(accuracy: &Accuracy) -> String {
    accuracy.figures.iter().map(|(name, figure)| format!("{name}: {figure}")).collect::<Vec<_>>().join("  ")
}

/// What both checkers write alike.
fn shared(judge: &Judge<'_>, subject: &Subject<'_>, figure: Figure) -> Vec<(&'static str, String)> {
    let (place, system) = (&subject.place, subject.system);
    let value = |name: &str| text(system, name);
    vec![
        ("Organization", subject.submitter.to_owned()),
        ("Division", subject.division.to_string()),
        ("SystemType", value("system_type")),
        ("SystemName", value("system_name")),
        ("Platform", place.system.to_owned()),
        ("Model", place.model.to_owned()),
        ("MlperfModel", BENCHMARK.to_owned()),
        ("Result", format!("{:?}", figure.value)),
        ("number_of_nodes", value("number_of_nodes")),
        ("host_processor_model_name", value("host_processor_model_name")),
        ("host_processors_per_node", value("host_processors_per_node")),
        ("host_processor_core_count", value("host_processor_core_count")),
        ("accelerator_model_name", value("accelerator_model_name")),
        ("accelerators_per_node", value("accelerators_per_node")),
        ("framework", value("framework")),
        ("operating_system", value("operating_system")),
        ("version", judge.round.to_string()),
        ("has_power", "False".to_owned()),
    ]
}

/// A row of the single file's summary, or the field of the description that it breaks off at.
pub(super) fn row_of_file(
    judge: &Judge<'_>,
    subject: &Subject<'_>,
    figure: Figure,
    accuracy: &Accuracy,
    failed: usize,
    types: Option<String>,
) -> Result<InferenceResult, &'static str> {
    if let Some(name) = TEXTS.into_iter().find(|name| subject.system.get(name).and_then(Value::text).is_none()) {
        return Err(name);
    }
    let scenario: Option<Scenario> = subject.place.scenario.parse().ok();
    let scenario = scenario.ok_or("the scenario")?;
    let folder = subject.place.results();
    let location = folder.strip_prefix(judge.root).unwrap_or(&folder).display().to_string();
    let accuracy = match judge.round {
        Round::V4_1 => accuracy
            .figures
            .iter()
            .find(|(name, _)| *name == "CLIP_SCORE")
            .map_or("None".to_owned(), |(_, figure)| figure.clone()),
        _ => accuracy_text(accuracy),
    };
    let mut row = shared(judge, subject, figure);
    row.extend([
        ("Availability", text(subject.system, "status").to_lowercase()),
        ("Scenario", scenario.to_string()),
        ("Accuracy", accuracy),
        ("Location", location),
        ("notes", notes(subject.system)?),
        ("compliance", "1".to_owned()),
        ("errors", failed.to_string()),
        ("inferred", u8::from(figure.inferred).to_string()),
        ("Units", scenario.result().1.to_owned()),
        (TYPES, types.unwrap_or_else(|| "None".to_owned()).replace('"', "'")),
    ]);
    Ok(InferenceResult { folder, value: figure.value, unit: scenario.result().1, row })
}

/// Python's `int` of a field, where it has one.
fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Text(text) => text.trim().replace('_', "").parse().ok(),
        other => other.number().filter(|number| number.is_finite()).map(|number| number as i64),
    }
}

/// The field of a description that the package's summary cannot count.
pub(super) fn cannot_count(system: &Value) -> Option<&'static str> {
    ["number_of_nodes", "accelerators_per_node"].into_iter().find(|name| system.get(name).and_then(whole).is_none())
}

/// A row of the package's summary; `None` for a scenario that it breaks off at.
pub(super) fn row_of_package(
    judge: &Judge<'_>,
    subject: &Subject<'_>,
    figure: Figure,
    accuracy: &Accuracy,
    types: Option<String>,
) -> Option<InferenceResult> {
    let named = subject.place.scenario;
    let scenario =
        Scenario::of_folder(named).filter(|scenario| named == scenario.name() || named == named.to_lowercase())?;
    let count = |name: &str| subject.system.get(name).and_then(whole).unwrap_or_default();
    let location = subject.place.performance();
    let mut row = shared(judge, subject, figure);
    row.extend([
        ("Availability", text(subject.system, "status")),
        ("Scenario", named.to_owned()),
        ("Accuracy", accuracy_text(accuracy)),
        (TOTAL, count("number_of_nodes").saturating_mul(count("accelerators_per_node")).to_string()),
        ("Location", location.display().to_string()),
        ("notes", notes(subject.system).ok()?),
        ("compliance", subject.division.to_string()),
        ("errors", "0".to_owned()),
        ("inferred", u8::from(named != figure.scenario.name()).to_string()),
        ("Units", scenario.result().1.to_owned()),
        (TYPES, types.unwrap_or_default()),
        (POWER, if judge.round == Round::V6_1 { "None" } else { "" }.to_owned()),
    ]);
    Some(InferenceResult { folder: subject.place.results(), value: figure.value, unit: scenario.result().1, row })
}
