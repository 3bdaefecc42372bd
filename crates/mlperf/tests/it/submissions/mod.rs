//! Submissions of MLPerf Inference, good ones and ones that break a rule each. The tests hold our verdicts against those of the official
//! checkers (golden file), and the example `submissions` writes all of them down for those checkers.

mod broken;
mod tree;

pub use broken::cases;
pub use tree::{Tree, captured, runs_at, set, system};

use calotype_mlperf::inference::{Round, SummaryTable, check_submission};
use serde_json::json;
use std::path::Path;

/// A tree to be judged.
pub struct Case {
    pub name: String,
    pub round: Round,
    pub short: bool,
    pub tree: Tree,
    /// What the findings have to say where the verdict is not a pass; one of several, divided by `|`.
    pub says: &'static str,
}

impl Case {
    /// Our verdict, as the golden file has it, and the findings as text.
    pub fn judge(&self, folder: &Path) -> (serde_json::Value, String) {
        let found = check_submission(folder, self.round, self.short).unwrap();
        let table = SummaryTable { round: self.round, report: &found }.to_string();
        let mut lines: Vec<_> = table.lines().map(|line| line.replace(&folder.display().to_string(), "ROOT")).collect();
        // The single file goes through folders in the order of the file system.
        lines[1..].sort();
        (json!({ "verdict": found.verdict(), "summary": lines }), found.report.to_string())
    }
}
