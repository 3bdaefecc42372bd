//! Measurements of power beside a result's logs: `power/result_N/node_0` … and `sw_0` …, one file for each node and each switch.

use super::check::entries;
use crate::finding::{Finding, Severity};
use crate::log::ReadError;
use std::path::{Path, PathBuf};

const REMEDY: &str = "let there be one file for each node and switch, node_0, node_1, … and sw_0, sw_1, …";

/// What is wrong with the measurements of a result, with the number of the log that the official checker holds it against. A
/// folder that breaks it off has no number.
pub(super) fn check_power(folder: &Path, results: &[PathBuf]) -> Result<Vec<(Option<usize>, Finding)>, ReadError> {
    let mut found = Vec::new();
    let mut counts: [Vec<usize>; 2] = Default::default();
    for (index, result) in results.iter().enumerate() {
        let place = folder.join(result.file_stem().unwrap_or_default());
        if !place.exists() {
            let remedy = "add the measurements, or remove those of the other runs";
            found
                .push((Some(index), Finding::new(Severity::Error, &place, "the run's power was not measured", remedy)));
            continue;
        }
        let files = entries(&place)?;
        for (kind, counts) in ["node", "sw"].into_iter().zip(&mut counts) {
            let (count, problem) = numbered(kind, &files);
            counts.push(count);
            if let Some((severity, problem)) = problem {
                let run = (severity != Severity::Fatal).then_some(index);
                found.push((run, Finding::new(severity, &place, problem, REMEDY)));
            }
        }
    }
    for (kind, counts) in ["nodes", "switches"].into_iter().zip(&counts) {
        found.extend(uneven(kind, counts).into_iter().map(|(index, problem)| {
            let severity = if index.is_some() { Severity::Error } else { Severity::Fatal };
            (index, Finding::new(severity, folder, problem, "measure the same nodes and switches in all runs"))
        }));
    }
    Ok(found)
}

/// How many files of a kind there are, and what is wrong with their numbers. The official checker does not see repeated ones.
fn numbered(kind: &str, files: &[PathBuf]) -> (usize, Option<(Severity, String)>) {
    let names = files.iter().filter_map(|file| file.file_name()?.to_str()).filter(|name| name.starts_with(kind));
    let names: Vec<&str> = names.collect();
    let count = names.len();
    let numbers: Vec<_> = names.iter().map(|name| (name, number(name))).collect();
    let find = |wrong: &dyn Fn(&Option<i64>) -> bool| numbers.iter().find(|(_, number)| wrong(number));
    let outside = |number: &i64| usize::try_from(*number).map_or(true, |number| number >= count);
    let repeated = |number: &Option<i64>| numbers.iter().filter(|(_, other)| other == number).count() > 1;
    let problem = if let Some((name, _)) = find(&|number| number.is_none()) {
        (Severity::Fatal, format!("`{name}` ends with no number"))
    } else if let Some((name, _)) = find(&|number| number.as_ref().is_some_and(outside)) {
        (Severity::Error, format!("the {count} files of {kind} are not numbered from 0 on: `{name}`"))
    } else if let Some((name, _)) = find(&repeated) {
        (Severity::Advice, format!("there are two files of the number of `{name}`"))
    } else {
        return (count, None);
    };
    (count, Some(problem))
}

/// The number that a file's name ends with, in front of its ending.
fn number(name: &str) -> Option<i64> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.rsplit('_').next()?.parse().ok()
}

/// Runs with another number of files than most. The official checker counts only runs that have measurements, and so takes one
/// run for another behind one that has none; that counts here, too.
fn uneven(kind: &str, counts: &[usize]) -> Vec<(Option<usize>, String)> {
    let often = |count: usize| counts.iter().filter(|other| **other == count).count();
    let Some(most) = counts.iter().rev().copied().max_by_key(|count| often(*count)) else {
        return vec![(None, format!("no run has measurements of {kind}"))];
    };
    let others = counts.iter().enumerate().filter(|(_, count)| **count != most);
    others.map(|(index, count)| (Some(index), format!("a run has {count} {kind}, where most have {most}"))).collect()
}
