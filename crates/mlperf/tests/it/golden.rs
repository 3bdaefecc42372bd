//! Every case of the table has the official checkers' verdict (`scripts/mlperf-golden.py`).

use crate::cases::{Case, What, cases};
use calotype_mlperf::Verdict;
use serde_json::Value;
use std::collections::BTreeMap;

fn golden() -> BTreeMap<String, Value> {
    serde_json::from_str(include_str!("../golden/verdicts.json")).unwrap()
}

/// Where ours differs from the official one: nothing is compared that the latter does not tell.
fn differences(ours: &Value, official: &Value) -> Vec<String> {
    let fields = official.as_object().unwrap().iter();
    let differs = |name: &str, official: &Value| match (ours[name].as_f64(), official.as_f64()) {
        (Some(ours), Some(official)) => (ours - official).abs() > 1e-6 * official.abs(),
        _ => &ours[name] != official,
    };
    fields
        .filter(|(name, value)| differs(name, value))
        .map(|(name, value)| format!("{name}: {} for {value}", ours[name]))
        .collect()
}

fn check(case: &Case, official: &Value) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("case");
    case.write(&place);
    let (ours, text) = case.judge(&place);
    let mut wrong = differences(&ours, official);
    wrong
        .extend(case.says.iter().filter(|part| !text.contains(**part)).map(|part| format!("it does not say `{part}`")));
    let passes = official["verdict"] == Verdict::Pass.name();
    if !passes && case.says.is_empty() {
        wrong.push("the table does not say what the findings have to say".to_owned());
    }
    if !wrong.is_empty() {
        wrong.push(format!("findings:\n{text}"));
    }
    wrong
}

#[test]
fn all_verdicts_are_those_of_the_official_checkers() {
    let (cases, golden) = (cases(), golden());
    let names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(golden.len(), cases.len(), "run scripts/mlperf-checkers.sh --write");
    let mut failures = Vec::new();
    for case in &cases {
        let Some(official) = golden.get(&case.name) else {
            failures.push(format!("{}: no golden verdict", case.name));
            continue;
        };
        failures.extend(check(case, official).into_iter().map(|wrong| format!("{}: {wrong}", case.name)));
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), names.len(), failures.join("\n"));
    let broken = cases.iter().filter(|case| golden[&case.name]["verdict"] != "pass").count();
    assert!(broken >= 40 && cases.len() - broken >= 40, "{broken} of {}", cases.len());
}

#[test]
fn findings_name_file_line_and_what_to_do() {
    for case in cases().iter().filter(|case| matches!(case.what, What::Log(_))) {
        let folder = tempfile::tempdir().unwrap();
        case.write(folder.path());
        let (_, text) = case.judge(folder.path());
        for line in text.lines() {
            assert!(line.contains("log.txt") && line.contains("; "), "{}: {line}", case.name);
            let (_, remedy) = line.rsplit_once("; ").unwrap();
            assert!(remedy.len() > 10, "{}: {line}", case.name);
        }
    }
}
