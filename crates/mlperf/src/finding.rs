//! What a check found.

use std::fmt;
use std::path::{Path, PathBuf};

calotype_core::names! {
    /// How much a finding weighs.
    Severity, "severity" {
        /// The official checkers do not see it; it may cost a submission later.
        Advice = "advice",
        /// The official checkers warn, too; it is an error only where warnings are asked to be.
        Warning = "warning",
        /// The official checkers refuse.
        Error = "error",
        /// The official checkers break off without a verdict, which refuses everything around it, too.
        Fatal = "fatal",
    }
}

calotype_core::names! {
    /// What a check comes to.
    Verdict, "verdict" {
        /// The official checkers accept it.
        Pass = "pass",
        /// They refuse it.
        Fail = "fail",
        /// They break off while they read it.
        Stop = "stop",
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// The file or folder that it is in.
    pub file: PathBuf,
    /// The file's line, from 1; none where no single line is at fault.
    pub line: Option<usize>,
    /// The log key that a rule is about.
    pub key: Option<&'static str>,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn new(severity: Severity, file: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (problem, remedy) = (problem.into(), remedy.into());
        Self { severity, file: file.to_owned(), line: None, key: None, problem, remedy }
    }

    pub(crate) fn at(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    pub(crate) fn of(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.file.display())?;
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
        }
        write!(f, ": {}; {}", self.problem, self.remedy)
    }
}

/// Everything that a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of the files and lines as far as possible.
    pub findings: Vec<Finding>,
}

impl Report {
    /// What it comes to. `strict` makes errors of warnings, as `--werror` does.
    pub fn verdict(&self, strict: bool) -> Verdict {
        match self.findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Fatal) => Verdict::Stop,
            Some(Severity::Error) => Verdict::Fail,
            Some(Severity::Warning) if strict => Verdict::Fail,
            _ => Verdict::Pass,
        }
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

impl fmt::Display for Report {
    /// A line for each finding.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}
