//! The two files that a student competition wants beside the archive: the commands, and the platform with highlights.

use super::tree::{SubmissionError, performance_of, runs_in};
use super::{ACCURACY, BENCHMARK, DETAIL, Detail, InferenceSystem, Scenario, Summary};
use crate::log::ReadError;
use calotype_core::durable;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What a folder of runs says of itself, in `run.json`: whatever is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RunFacts {
    /// The command lines that made it, in their order.
    pub commands: Vec<String>,
    /// The model's file or folder.
    pub model: Option<String>,
    /// The benchmark's variant, such as `scc24-base`.
    pub variant: Option<String>,
    /// The runs, by scenario and mode.
    pub runs: BTreeMap<String, RunSaid>,
}

/// What `run.json` says of one run: whatever is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RunSaid {
    /// Type of the activations.
    pub precision: Option<String>,
    /// Type of the weights.
    pub weights: Option<String>,
    /// Why the run is none of the benchmark's, in words.
    pub unofficial: Vec<String>,
}

impl RunFacts {
    /// Reads the `run.json` of a folder; nothing is known without one.
    ///
    /// # Errors
    /// [`ReadError`], with what is wrong in words.
    pub fn of(folder: &Path) -> Result<Self, ReadError> {
        let file = folder.join("run.json");
        let read = durable::read_json(&file);
        Ok(read.map_err(|source| ReadError { file, source })?.unwrap_or_default())
    }

    /// Type of the activations, if all runs say the same.
    pub fn precision(&self) -> Option<String> {
        self.agreed(|run| run.precision.as_ref())
    }

    /// Type of the weights, if all runs say the same.
    pub fn weights(&self) -> Option<String> {
        self.agreed(|run| run.weights.as_ref())
    }

    /// Why runs are none of the benchmark's, each reason once.
    pub fn unofficial(&self) -> Vec<&str> {
        let mut reasons = Vec::new();
        for reason in self.runs.values().flat_map(|run| &run.unofficial) {
            if !reasons.contains(&reason.as_str()) {
                reasons.push(reason);
            }
        }
        reasons
    }

    fn agreed(&self, of: impl Fn(&RunSaid) -> Option<&String>) -> Option<String> {
        let mut said = self.runs.values().map(of);
        let first = said.next()??;
        said.all(|other| other == Some(first)).then(|| first.clone())
    }
}

/// A script of the commands that made runs and tree, line by line.
pub fn run_document(facts: &RunFacts, packing: &[String]) -> String {
    let mut text = format!("#!/usr/bin/env bash\n# {BENCHMARK}: what was run, in this order.\nset -euo pipefail\n\n");
    if facts.commands.is_empty() {
        text += "# The folder of the runs does not say how they were started (run.json, `commands`): put it here.\n";
    }
    for command in facts.commands.iter().chain(packing) {
        text += command;
        text.push('\n');
    }
    text
}

/// Platform and highlights, filled from the description and LoadGen's reports.
///
/// # Errors
/// [`SubmissionError`] where a run's report cannot be read.
pub fn highlights(system: &InferenceSystem, runs: &Path, facts: &RunFacts) -> Result<String, SubmissionError> {
    let mut text = format!("# MLPerf Inference, {BENCHMARK}\n\n## Platform\n\n| | |\n|---|---|\n");
    for (name, value) in [
        ("System", &system.system_name),
        ("Nodes", &system.number_of_nodes),
        (
            "Processors of a node",
            &format!("{} x {}", system.host_processors_per_node, system.host_processor_model_name),
        ),
        ("Cores of a processor", &system.host_processor_core_count),
        ("Caches", &system.host_processor_caches),
        ("Memory", &system.host_memory_capacity),
        ("Storage", &format!("{} {}", system.host_storage_capacity, system.host_storage_type)),
        ("Accelerators of a node", &system.accelerators_per_node),
        ("Cooling", &system.cooling),
        ("Operating system", &system.operating_system),
        ("Program", &system.framework),
    ] {
        if !value.trim().is_empty() {
            let _ = writeln!(text, "| {name} | {} |", value.trim());
        }
    }
    text += "\n## Results\n\n";
    let (model, variant) = (facts.model.clone(), facts.variant.clone());
    for (name, value) in
        [("Model", model), ("Variant", variant), ("Weights", facts.weights()), ("Activations", facts.precision())]
    {
        if let Some(value) = value {
            let _ = writeln!(text, "{name}: {value}  ");
        }
    }
    text += "\n| scenario | figure | LoadGen's verdict | samples of a query | queries | mean latency | accuracy |\n|---|---|---|---|---|---|---|\n";
    for (scenario, run) in runs_in(runs)? {
        text += &row(scenario, &run)?;
    }
    let unofficial = facts.unofficial();
    if !unofficial.is_empty() {
        text += "\nNot as the benchmark has it:\n\n";
        unofficial.iter().for_each(|reason| text += &format!("- {reason}\n"));
    }
    Ok(text)
}

fn row(scenario: Scenario, run: &Path) -> Result<String, SubmissionError> {
    let folder = performance_of(run);
    let file = folder.join(DETAIL);
    let detail = Detail::read(&file)?;
    let summary = Summary::read(&folder.join(super::SUMMARY)).map_err(|error| SubmissionError::Io {
        file: folder.join(super::SUMMARY),
        action: "use it",
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()),
    })?;
    let number = |key: &str| detail.number(key);
    let (key, unit) = scenario.result();
    let value = number(key).map(|value| if scenario.is_latency() { value / 1e6 } else { value });
    let figure = value.map_or("none".to_owned(), |value| format!("{value:.4} {unit}"));
    let latency = number("result_mean_latency_ns").map_or(String::new(), |latency| format!("{:.3} s", latency / 1e9));
    let count = |key: &str| number(key).map_or(String::new(), |count| count.to_string());
    let accuracy = fs::read_to_string(run.join("accuracy").join(ACCURACY)).unwrap_or_default();
    let accuracy = accuracy
        .lines()
        .find_map(|line| line.split_once("Accuracy Results:"))
        .map_or("not judged", |(_, found)| found.trim());
    let (queries, samples) = (count("result_query_count"), count("effective_samples_per_query"));
    Ok(format!("| {scenario} | {figure} | {} | {samples} | {queries} | {latency} | {accuracy} |\n", summary.result))
}
