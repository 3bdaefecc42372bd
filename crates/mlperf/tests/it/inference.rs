//! MLPerf Inference: LoadGen's logs read, trees written and judged.

use crate::cases::trees::files_of;
use crate::submissions::{Case, Tree, captured, cases, runs_at, set, system};
use calotype_mlperf::inference::*;
use calotype_mlperf::{Severity, Verdict};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Verdicts of the official checkers (`scripts/inference-checkers.sh --write`).
fn golden() -> BTreeMap<String, Value> {
    serde_json::from_str(include_str!("../golden/submission_verdicts.json")).unwrap()
}

fn check(case: &Case, official: &Value) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tree");
    case.tree.write(&place);
    let (ours, text) = case.judge(&place);
    let mut wrong = Vec::new();
    for (name, official) in official.as_object().unwrap() {
        if ours[name] != *official {
            wrong.push(format!("{name}: {} for {official}", ours[name]));
        }
    }
    let is_told = !case.says.is_empty() && case.says.split('|').any(|part| text.contains(part));
    if official["verdict"] != Verdict::Pass.name() && !is_told {
        wrong.push(format!("it does not say `{}`", case.says));
    }
    if !wrong.is_empty() {
        wrong.push(format!("findings:\n{text}"));
    }
    wrong
}

#[test]
fn all_verdicts_are_those_of_the_official_checkers() {
    let (cases, golden) = (cases(), golden());
    assert_eq!(golden.len(), cases.len(), "run scripts/inference-checkers.sh --write");
    let mut failures = Vec::new();
    for case in &cases {
        match golden.get(&case.name) {
            None => failures.push(format!("{}: no golden verdict", case.name)),
            Some(official) => {
                failures.extend(check(case, official).into_iter().map(|wrong| format!("{}: {wrong}", case.name)))
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let broken = cases.iter().filter(|case| golden[&case.name]["verdict"] != "pass").count();
    assert!(broken >= 60 && cases.len() - broken >= 30, "{broken} of {}", cases.len());
}

#[test]
fn findings_name_file_and_what_to_do() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        case.tree.write(folder.path());
        let found = check_submission(folder.path(), case.round, case.short).unwrap();
        for finding in &found.report.findings {
            assert!(finding.file.starts_with(folder.path()), "{}: {finding}", case.name);
            assert!(!finding.problem.is_empty() && finding.remedy.len() >= 9, "{}: {finding}", case.name);
        }
    }
}

/// What an official checker passes over is told as advice.
#[test]
fn what_a_checker_does_not_see_is_told() {
    let tell = |round: Round, short: bool, change: &dyn Fn(&mut Tree)| {
        let mut tree = Tree::written(round, InferenceDivision::Open, "edge", &["Offline"], !short);
        change(&mut tree);
        let folder = tempfile::tempdir().unwrap();
        tree.write(folder.path());
        let found = check_submission(folder.path(), round, short).unwrap();
        assert_eq!(found.verdict(), Verdict::Pass, "{}", found.report);
        assert!(found.report.findings.iter().all(|finding| finding.severity == Severity::Advice), "{}", found.report);
        found.report.to_string()
    };
    let invalid = |tree: &mut Tree| {
        let name = tree.performance("Offline");
        tree.edit(&name, |log| set(log, "result_validity", "\"INVALID\""));
    };
    assert!(tell(Round::V6_1, false, &invalid).contains("LoadGen's verdict is \"INVALID\""));
    let told = tell(Round::V5_1, true, &|_| {});
    for part in [
        "`effective_min_duration_ms` is 0, where 600000",
        "`effective_performance_sample_count` is 50",
        "`qsl_reported_total_count` is 50",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let hidden = |tree: &mut Tree| tree.put("open/Team/.hidden", "x");
    assert!(tell(Round::V6_0, true, &hidden).contains("its name begins with a point"));
}

#[test]
fn loadgens_logs_are_read() {
    for (scenario, key, name) in [
        ("Offline", "result_samples_per_second", "Samples per second"),
        ("Server", "result_completed_samples_per_sec", "Completed samples per second"),
        ("SingleStream", "result_90.00_percentile_latency_ns", "90.0th percentile latency (ns)"),
        ("MultiStream", "result_99.00_percentile_per_query_latency_ns", "99.0th percentile latency (ns)"),
    ] {
        let detail = Detail::parse(Path::new(DETAIL), &captured(scenario, "performance", DETAIL));
        assert_eq!((detail.text("effective_scenario"), &detail.fault), (Some(scenario), &None));
        assert!(detail.begins_marked && detail.messages.len() > 80 && detail.errors().next().is_none());
        // Above 2^53, where a number of 64 bits with a point would be another one.
        assert_eq!(detail.first("effective_schedule_rng_seed"), Some(&16_159_082_839_903_944_936_u64.into()));
        let summary = Summary::parse(&captured(scenario, "performance", SUMMARY)).unwrap();
        assert_eq!((summary.get("Scenario"), summary.result.as_str()), (Some(scenario), "VALID"));
        let (told, logged): (f64, f64) = (summary.get(name).unwrap().parse().unwrap(), detail.number(key).unwrap());
        assert!((told - logged).abs() <= 1e-3 * logged, "{scenario}: {told} and {logged}");
        assert!(Summary::parse(&captured(scenario, "accuracy", SUMMARY)).is_err());
    }
}

#[test]
fn logs_of_answers_are_shortened_as_the_official_script_does() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&to).unwrap();
    let whole = captured("Offline", "accuracy", ACCURACY_LOG);
    fs::write(from.join(ACCURACY_LOG), &whole).unwrap();
    fs::write(from.join(ACCURACY), "figures\n").unwrap();
    truncate(&from, &to).unwrap();
    let short = fs::read_to_string(to.join(ACCURACY_LOG)).unwrap();
    assert_eq!(short, format!("{}\n\n...\n\n{}", &whole[..4096], &whole[whole.len() - 4096..]));
    let figures = fs::read_to_string(to.join(ACCURACY)).unwrap();
    let hash = figures.strip_prefix("figures\n\nhash=").and_then(|rest| rest.strip_suffix('\n')).unwrap();
    assert_eq!((hash.len(), hash.chars().all(|digit| digit.is_ascii_hexdigit())), (64, true), "{figures}");
    // What is done stays.
    truncate(&to, &from).unwrap();
    assert_eq!(fs::read_to_string(from.join(ACCURACY)).unwrap(), figures);
    // A short log stays whole, and a test may have no figures: sha256sum of `[\n]\n`.
    fs::write(from.join(ACCURACY_LOG), "[\n]\n").unwrap();
    fs::remove_file(from.join(ACCURACY)).unwrap();
    truncate(&from, &to).unwrap();
    assert_eq!(fs::read_to_string(to.join(ACCURACY_LOG)).unwrap(), "[\n]\n");
    let hash = "3fbbd4c6d76130399b0c79cdf41758669224a91e05b7b216953f0c9728750865";
    let figures = fs::read_to_string(to.join(ACCURACY)).unwrap();
    assert_eq!(figures, format!("\nhash={hash}\n"));
    let error = truncate(&folder.path().join("none"), &to).unwrap_err().to_string();
    assert!(error.contains("none/mlperf_log_accuracy.json: cannot read it"), "{error}");
}

fn measurements() -> Measurements {
    Measurements {
        input_data_types: "bf16".to_owned(),
        retraining: "no".to_owned(),
        starting_weights_filename: "weights".to_owned(),
        weight_data_types: "bf16".to_owned(),
        weight_transformations: "none".to_owned(),
    }
}

fn new<'a>(runs: &'a Path, system: &'a InferenceSystem, measurements: &'a Measurements) -> NewSubmission<'a> {
    NewSubmission {
        round: Round::V6_1,
        division: InferenceDivision::Open,
        submitter: "Team",
        system,
        folder: "box",
        implementation: "calotype",
        runs,
        measurements,
        sources: &[],
        mlperf_conf: None,
        readme: "text",
    }
}

#[test]
fn trees_have_the_layout_of_their_round() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    runs_at(&runs, Round::V5_1, &["Offline"], true);
    let (system, measurements) = (system("edge"), measurements());
    let source = folder.path().join("recipe.toml");
    fs::write(&source, "x = 1\n").unwrap();
    let sources = [source];
    let layout = |round: Round| -> Vec<String> {
        let root = folder.path().join(round.name());
        let new = NewSubmission { round, sources: &sources, ..new(&runs, &system, &measurements) };
        write_submission(&root, &new).unwrap();
        files_of(&root).into_iter().filter(|name| !name.contains("/images/")).collect()
    };
    let result = |file: &str| format!("open/Team/results/box/stable-diffusion-xl/Offline/{file}");
    let old = layout(Round::V5_1);
    for name in [
        "open/Team/code/stable-diffusion-xl/calotype/recipe.toml",
        "open/Team/measurements/box/stable-diffusion-xl/Offline/box_calotype_Offline.json",
        "open/Team/measurements/box/stable-diffusion-xl/Offline/user.conf",
        "open/Team/compliance/box/stable-diffusion-xl/Offline/TEST01/verify_accuracy.txt",
        "open/Team/systems/box.json",
        &result("performance/run_1/mlperf_log_detail.txt"),
        &result("accuracy/accuracy.txt"),
    ] {
        assert!(old.iter().any(|found| found == name), "{name}: {old:#?}");
    }
    let later = layout(Round::V6_1);
    for name in
        ["measurements.json", "user.conf", "README.md", "TEST01/accuracy/accuracy.txt", "TEST04/verify_performance.txt"]
    {
        assert!(later.contains(&result(name)), "{name}: {later:#?}");
    }
    assert!(later.contains(&"open/Team/src/stable-diffusion-xl/calotype/README.md".to_owned()));
    assert_eq!(later.len(), old.len());
    let text = |name: &str| fs::read_to_string(folder.path().join("v6.1").join(name)).unwrap();
    let conf = text(&result("user.conf"));
    for line in [
        "*.Offline.min_duration = 600000",
        "*.Offline.performance_sample_count_override = 5000",
        "*.Offline.target_qps = 20",
    ] {
        assert!(conf.contains(line), "{conf}");
    }
    // What was given to LoadGen goes before what its log says.
    fs::write(runs.join("user.conf"), "*.Offline.target_qps = 3\n").unwrap();
    layout(Round::V6_0);
    let conf = fs::read_to_string(folder.path().join("v6.0").join(result("user.conf"))).unwrap();
    assert_eq!(conf, "*.Offline.target_qps = 3\n");
}

#[test]
fn what_makes_no_tree_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (runs, root) = (folder.path().join("runs"), folder.path().join("tree"));
    runs_at(&runs, Round::V6_1, &["Offline"], false);
    let (whole, measurements) = (system("edge"), measurements());
    let refused = |new: &NewSubmission<'_>, part: &str| {
        let error = write_submission(&root, new).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["runs"], "{left:?}");
    };
    let good = new(&runs, &whole, &measurements);
    for name in ["", "a b", ".a", "a/b"] {
        refused(&NewSubmission { submitter: name, ..good }, "cannot be the name of the submitter");
        refused(&NewSubmission { folder: name, ..good }, "cannot be the name of the system");
    }
    let lacking = InferenceSystem { cooling: String::new(), ..whole.clone() };
    refused(&NewSubmission { system: &lacking, ..good }, "does not say cooling; add --field");
    refused(&NewSubmission { round: Round::V4_1, ..good }, "mlperf.conf: is missing; give the round's mlperf.conf");
    refused(&NewSubmission { runs: &runs.join("offline"), ..good }, "holds no run");
    let figures = runs.join("offline/accuracy/accuracy.txt");
    fs::rename(&figures, runs.join("aside")).unwrap();
    refused(&good, "accuracy.txt: is missing; judge the accuracy run first");
    fs::rename(runs.join("aside"), &figures).unwrap();
    write_submission(&root, &good).unwrap();
    let error = write_submission(&root, &good).unwrap_err().to_string();
    assert!(error.contains("tree: is there already"), "{error}");
}

#[test]
fn archives_hold_the_tree_and_are_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tree");
    Tree::written(Round::V6_1, InferenceDivision::Open, "edge", &["Offline"], false).write(&root);
    let archives: Vec<PathBuf> = ["a.tar.gz", "b.tar.gz"].iter().map(|name| folder.path().join(name)).collect();
    archives.iter().for_each(|archive| pack(&root, archive).unwrap());
    assert_eq!(fs::read(&archives[0]).unwrap(), fs::read(&archives[1]).unwrap());
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&archives[0]).unwrap()));
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if root.join(&name).is_file() {
            assert_eq!(content, fs::read(root.join(&name)).unwrap(), "{name}");
            found.push(name);
        }
    }
    found.sort();
    assert_eq!(found, files_of(&root));
}

#[test]
fn highlights_and_commands_are_filled_from_the_runs() {
    let folder = tempfile::tempdir().unwrap();
    runs_at(folder.path(), Round::V6_1, &["Offline", "SingleStream"], false);
    assert_eq!(RunFacts::of(folder.path()).unwrap(), RunFacts::default());
    let facts = json!({
        "commands": ["calotype mlperf inference sdxl"], "variant": "scc24-base", "more": 1,
        "runs": {
            "offline/performance": {"weights": "int8", "precision": "bf16", "unofficial": ["50 samples", "2 steps"]},
            "singlestream/performance": {"weights": "int8", "precision": "f32", "unofficial": ["2 steps"]},
        },
    });
    fs::write(folder.path().join("run.json"), facts.to_string()).unwrap();
    let facts = RunFacts::of(folder.path()).unwrap();
    assert_eq!((facts.weights().as_deref(), facts.precision()), (Some("int8"), None));
    assert_eq!(facts.unofficial(), ["50 samples", "2 steps"]);
    let text = highlights(&system("edge"), folder.path(), &facts).unwrap();
    let detail = Detail::parse(Path::new(DETAIL), &captured("Offline", "performance", DETAIL));
    let figure =
        format!("| Offline | {:.4} Samples/s | VALID | 50 | 1 |", detail.number("result_samples_per_second").unwrap());
    for part in [
        figure.as_str(),
        "| SingleStream | ",
        "Latency (ms) | VALID | 1 | ",
        "'FID_SCORE': '23.5'",
        "scc24-base",
        "- 50 samples\n- 2 steps\n",
        "Weights: int8",
        "| System | a box |",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let commands = run_document(&facts, &["calotype mlperf inference submission".to_owned()]);
    let lines: Vec<_> = commands.lines().skip(4).collect();
    assert_eq!(lines, ["calotype mlperf inference sdxl", "calotype mlperf inference submission"]);
    assert!(run_document(&RunFacts::default(), &[]).contains("put it here"));
    fs::write(folder.path().join("run.json"), "{").unwrap();
    assert!(RunFacts::of(folder.path()).unwrap_err().to_string().contains("run.json"));
}
