//! Writes all cases of the golden table down, or judges a log or a tree.
//!
//!     cargo run -p calotype-mlperf --example cases -- write FOLDER      every case in a folder, and cases.json
//!     cargo run -p calotype-mlperf --example cases -- log FILE RULESET  the verdict on a log, with the findings
//!     cargo run -p calotype-mlperf --example cases -- tree FOLDER RULESET
//!
//! `scripts/mlperf-checkers.sh` runs it beside the official checkers.

#[path = "../tests/it/cases/mod.rs"]
#[allow(dead_code)]
mod cases;

use calotype_mlperf::{Bypass, RcpSet, Ruleset, check_log, check_package};
use cases::{Case, What};
use serde_json::{Value, json};
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["write", folder] => write(Path::new(folder)),
        ["log", file, ruleset] => {
            let report =
                check_log(Path::new(file), ruleset_of(ruleset)).unwrap_or_else(|error| fail(&error.to_string()));
            print!("{report}");
            println!("{}", report.verdict(false));
        }
        ["tree", folder, ruleset] => {
            let found = check_package(Path::new(folder), ruleset_of(ruleset), Bypass::default(), false);
            let found = found.unwrap_or_else(|error| fail(&error.to_string()));
            print!("{}", found.report);
            println!("{}", found.verdict());
        }
        _ => fail("say write FOLDER, log FILE RULESET, or tree FOLDER RULESET"),
    }
}

fn fail(words: &str) -> ! {
    eprintln!("error: {words}");
    std::process::exit(2)
}

fn ruleset_of(name: &str) -> Ruleset {
    name.parse().unwrap_or_else(|error| fail(&format!("{error}")))
}

fn write(folder: &Path) {
    let cases = cases::cases();
    let mut described = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let place = folder.join(format!("case-{index:03}"));
        case.write(&place);
        described.push(describe(case, &place));
    }
    std::fs::write(folder.join("cases.json"), Value::from(described).to_string()).expect("room for the list");
}

fn describe(case: &Case, place: &Path) -> Value {
    let (full, bypass) = match case.what {
        What::Runs(_, set) => (set == RcpSet::Full, Bypass::default()),
        What::Tree(_, bypass) => (false, bypass),
        _ => (false, Bypass::default()),
    };
    json!({
        "name": case.name, "kind": case.kind(), "ruleset": case.ruleset, "strict": case.strict, "path": place,
        "full": full, "rcp_bypass": bypass.rcp, "seed_bypass": bypass.seeds,
    })
}
