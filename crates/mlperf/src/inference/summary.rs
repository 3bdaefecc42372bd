//! LoadGen's report: blocks of `name : value`.

use crate::log::ReadError;
use calotype_core::read_text;
use std::path::{Path, PathBuf};

/// Why a report cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// The file system refuses, or it is no text.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is none.
    #[error("{}: no report of LoadGen, for it has no `{missing}`; give the mlperf_log_summary.txt of a performance run", file.display())]
    Other {
        /// The file.
        file: PathBuf,
        /// What every report has.
        missing: &'static str,
    },
}

/// The report of a performance run. That of an accuracy run has only the last two lines, and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Everything of the form `name : value`, in the order of the lines.
    pub entries: Vec<(String, String)>,
    /// `VALID` or `INVALID`.
    pub result: String,
    /// Lines below `Recommendations`, without their marks.
    pub recommendations: Vec<String>,
}

impl Summary {
    /// Reads a file.
    ///
    /// # Errors
    /// [`SummaryError`].
    pub fn read(path: &Path) -> Result<Self, SummaryError> {
        let text = read_text(path).map_err(|source| ReadError { file: path.to_owned(), source })?;
        Self::parse(&text).map_err(|missing| SummaryError::Other { file: path.to_owned(), missing })
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// What every report has and this has not.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut recommendations = Vec::new();
        let mut recommends = false;
        let mut entries = Vec::new();
        for line in text.lines() {
            recommends = line.starts_with("Recommendations") || (recommends && line.starts_with(" *"));
            if recommends && line.starts_with(" *") {
                recommendations.push(line.trim_start_matches([' ', '*']).to_owned());
            } else if let Some((name, value)) = line.split_once(':') {
                entries.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
        let mut found = Self { entries, result: String::new(), recommendations };
        for missing in ["SUT name", "Scenario", "Mode", "Result is"] {
            found.get(missing).ok_or(missing)?;
        }
        found.result = found.get("Result is").unwrap_or_default().to_owned();
        Ok(found)
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_texts_are_no_reports() {
        for (text, missing) in [
            ("", "SUT name"),
            ("\nNo warnings encountered during test.\n", "SUT name"),
            ("SUT name : x\nMode: y\n", "Scenario"),
            ("SUT name : x\nScenario: y\n", "Mode"),
            ("SUT name : x\nScenario : Offline\nMode : y\n", "Result is"),
        ] {
            assert_eq!(Summary::parse(text).unwrap_err(), missing, "{text:?}");
        }
    }
}
