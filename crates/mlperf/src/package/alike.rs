//! Whether the runs of a result say the same of who submits what.

use crate::keys;
use crate::log::{Line, Log};
use crate::value::Value;
use std::path::Path;

/// What the runs of a result have in common.
const COMMON: [&str; 5] = [
    keys::SUBMISSION_BENCHMARK,
    keys::SUBMISSION_DIVISION,
    keys::SUBMISSION_ORG,
    keys::SUBMISSION_PLATFORM,
    keys::SUBMISSION_STATUS,
];

/// A line of a run that says something else than the first run of the result.
#[derive(Debug, PartialEq)]
pub(super) struct Difference<'a> {
    pub file: &'a Path,
    pub line: usize,
    pub key: &'static str,
    pub value: &'a Value,
    /// The first run, and what it says.
    pub first: (&'a Path, &'a Value),
}

/// The first difference; what a log does not say, the checkers of logs tell.
pub(super) fn difference(logs: &[Log]) -> Option<Difference<'_>> {
    let (first, others) = logs.split_first()?;
    others.iter().find_map(|log| {
        COMMON.into_iter().find_map(|key| {
            let ((_, wanted), (line, found)) = said(first, key).zip(said(log, key))?;
            let differs = !wanted.value.same(&found.value);
            let first = (first.path.as_path(), &wanted.value);
            differs.then_some(Difference { file: &log.path, line, key, value: &found.value, first })
        })
    })
}

fn said<'a>(log: &'a Log, key: &str) -> Option<(usize, &'a Line)> {
    log.lines().find(|(_, line)| line.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str, division: &str, org: &str) -> Log {
        let line = |key: &str, value: &str| {
            format!(":::MLLOG {{\"time_ms\": 1, \"key\": \"{key}\", \"value\": \"{value}\", \"metadata\": {{}}}}\n")
        };
        let text = line("submission_division", division) + &line("submission_org", org);
        Log::parse(Path::new(name), text.as_bytes())
    }

    #[test]
    fn the_first_line_that_differs_is_named() {
        let logs = [log("a", "closed", "x"), log("b", "closed", "x"), log("c", "closed", "y"), log("d", "open", "x")];
        assert_eq!(difference(&logs[..2]), None);
        assert_eq!(difference(&[]), None);
        let found = difference(&logs).unwrap();
        assert_eq!((found.file, found.line, found.key), (Path::new("c"), 2, "submission_org"));
        assert_eq!((found.value.text(), found.first.0, found.first.1.text()), (Some("y"), Path::new("a"), Some("x")));
        assert_eq!(difference(&[&logs[..1], &logs[3..]].concat()).unwrap().key, "submission_division");
    }
}
