//! How a run ended, in words.

use crate::error::InferenceError;
use calotype_core::read_text;
use calotype_loadgen::{LOG_FILES, Mode, Scenario};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A run that LoadGen ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// How queries came.
    pub scenario: &'static str,
    /// What was found out.
    pub mode: &'static str,
    /// LoadGen's release.
    pub loadgen: String,
    /// `VALID` or `INVALID`; accuracy runs have no such result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The figure that counts, under LoadGen's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Why a result is invalid, and what LoadGen says of warnings and errors.
    pub remarks: Vec<String>,
    /// Samples that were answered.
    pub samples: u64,
    /// Second answers that were refused before LoadGen saw them.
    pub refused_answers: u64,
    /// Samples that were drawn by others because a process was gone.
    pub resent_samples: u64,
    /// Seconds from the first query to the end.
    pub seconds: f64,
    /// Processes that drew at the beginning.
    pub processes: usize,
    /// Type of the activations.
    pub precision: String,
    /// Type of the UNet's weights.
    pub weights: String,
    /// The command line that made it.
    pub command: String,
    /// Largest resident memory of this process, in GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_gib: Option<f64>,
    /// Where LoadGen's files are.
    pub logs: PathBuf,
    /// What is not as the benchmark asks.
    pub unofficial: Vec<String>,
}

/// A figure of LoadGen's summary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// LoadGen's name for it.
    pub name: String,
    /// The value.
    pub value: f64,
}

/// What LoadGen's summary says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Said {
    pub result: Option<String>,
    pub metric: Option<Metric>,
    pub remarks: Vec<String>,
}

impl Said {
    /// Reads `mlperf_log_summary.txt` of a folder.
    ///
    /// # Errors
    /// [`InferenceError::File`].
    pub fn read(folder: &Path, scenario: Scenario) -> Result<Self, InferenceError> {
        let path = folder.join(LOG_FILES[0]);
        match read_text(&path) {
            Ok(text) => Ok(Self::parse(&text, scenario)),
            Err(error) => Err(InferenceError::File { path, problem: format!("cannot be read: {error}") }),
        }
    }

    pub fn parse(text: &str, scenario: Scenario) -> Self {
        let wanted = match scenario {
            Scenario::Offline => "Samples per second",
            Scenario::Server => "Completed samples per second",
            Scenario::SingleStream | Scenario::MultiStream => "th percentile latency (ns)",
        };
        let mut said = Self::default();
        for line in text.lines() {
            let (name, value) =
                line.split_once(':').map_or((line.trim(), ""), |(name, value)| (name.trim(), value.trim()));
            if name == "Result is" {
                said.result = Some(value.to_owned());
            }
            let is_it = if wanted.starts_with("th") { name.ends_with(wanted) } else { name == wanted };
            if is_it && said.metric.is_none() {
                said.metric = value.parse().ok().map(|value| Metric { name: name.to_owned(), value });
            }
            let remark = line.trim();
            if remark.starts_with("* ") || remark.contains("encountered") {
                said.remarks.push(remark.trim_start_matches("* ").to_owned());
            }
        }
        said
    }
}

impl Outcome {
    /// What people read.
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!("scenario     {}, {} mode, LoadGen {}", self.scenario, self.mode, self.loadgen)];
        if let Some(result) = &self.result {
            lines.push(format!("result       {result}"));
        }
        if let Some(Metric { name, value }) = &self.metric {
            lines.push(format!("figure       {name}: {value}"));
        }
        lines.push(format!("samples      {} in {:.1} s", self.samples, self.seconds));
        lines.push(format!(
            "drawn        by {} process{}, {}{}",
            self.processes,
            if self.processes == 1 { "" } else { "es" },
            self.precision,
            if self.weights == self.precision { String::new() } else { format!(", weights {}", self.weights) }
        ));
        if self.resent_samples > 0 {
            lines.push(format!("resent       {} samples of processes that were lost", self.resent_samples));
        }
        if self.refused_answers > 0 {
            lines.push(format!("refused      {} second answers, which LoadGen did not see", self.refused_answers));
        }
        if let Some(peak) = self.peak_rss_gib {
            lines.push(format!("memory       {peak:.2} GiB"));
        }
        lines.extend(self.remarks.iter().map(|remark| format!("loadgen      {remark}")));
        lines.push(format!("logs         {}", self.logs.display()));
        match self.unofficial.is_empty() {
            true => lines
                .push("official     by its settings; `calotype mlperf check-submission` judges the rest".to_owned()),
            false => lines.extend(self.unofficial.iter().map(|text| format!("unofficial   {text}"))),
        }
        if self.mode == Mode::Accuracy.name() {
            lines.push("note         the pictures are judged by `calotype mlperf inference accuracy`".to_owned());
        }
        lines.join("\n") + "\n"
    }
}
