//! Writes all trees of the golden table of MLPerf Inference down, or judges a tree.
//!
//!     cargo run -p calotype-mlperf --example submissions -- write FOLDER         every case in a folder, and cases.json
//!     cargo run -p calotype-mlperf --example submissions -- tree FOLDER ROUND [--short-run]
//!
//! `scripts/inference-checkers.sh` runs it beside the official checkers.

// The trees' helpers use one function of the training side's.
#[path = "../tests/it/cases/mod.rs"]
#[allow(dead_code)]
mod cases;
#[path = "../tests/it/submissions/mod.rs"]
#[allow(dead_code, unused_imports)]
mod submissions;

use calotype_mlperf::inference::{Round, check_submission};
use serde_json::{Value, json};
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["write", folder] => write(Path::new(folder)),
        ["tree", folder, round] => judge(folder, round, false),
        ["tree", folder, round, "--short-run"] => judge(folder, round, true),
        _ => fail("say write FOLDER, or tree FOLDER ROUND [--short-run]"),
    }
}

fn fail(words: &str) -> ! {
    eprintln!("error: {words}");
    std::process::exit(2)
}

fn judge(folder: &str, round: &str, short: bool) {
    let round: Round = round.parse().unwrap_or_else(|error| fail(&format!("{error}")));
    let found = check_submission(Path::new(folder), round, short).unwrap_or_else(|error| fail(&error.to_string()));
    print!("{}", found.report);
    println!("{}", found.verdict());
}

fn write(folder: &Path) {
    let mut described = Vec::new();
    for (index, case) in submissions::cases().iter().enumerate() {
        let place = folder.join(format!("case-{index:03}"));
        case.tree.write(&place);
        described.push(json!({ "name": case.name, "path": place, "round": case.round, "short": case.short }));
    }
    std::fs::write(folder.join("cases.json"), Value::from(described).to_string()).expect("room for the list");
}
