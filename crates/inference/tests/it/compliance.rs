//! Verdicts on logs of LoadGen against those of MLCommons' scripts (golden/make_compliance.py).

use calotype_inference::compliance::{BASELINE, Runs, Test, Verdict, verify};
use calotype_mlperf::inference::accuracy_log::AccuracyLog;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/compliance")
}

/// The logs of a scenario in a folder of their own, edited.
fn logs(scenario: &str, edits: &[(&str, &str, &str)], folder: &Path) -> PathBuf {
    let logs = folder.join("logs");
    copy(&golden().join(scenario), &logs);
    for (name, old, new) in edits {
        let path = logs.join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{name} lacks {old}");
        fs::write(&path, if old.is_empty() { (*new).to_owned() } else { text.replacen(old, new, 1) }).unwrap();
    }
    logs
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copied = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &copied);
        } else {
            fs::copy(&path, &copied).unwrap();
        }
    }
}

fn verdict(test: Test, logs: &Path, out: &Path) -> Result<Verdict, String> {
    let runs = Runs { submitted: logs, compliance: &logs.join(test.name()), out };
    verify(test, &runs).map_err(|error| error.to_string())
}

#[test]
fn verdicts_are_those_of_the_scripts() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(golden().join("verdicts.json")).unwrap()).unwrap();
    assert!(cases.len() > 60);
    for case in &cases {
        let text = |name: &str| case[name].as_str();
        let edit = |edit: &'_ Value| [0, 1, 2].map(|at| edit[at].as_str().unwrap().to_owned());
        let edits: Vec<[String; 3]> = case["edits"].as_array().unwrap().iter().map(edit).collect();
        let edits: Vec<(&str, &str, &str)> =
            edits.iter().map(|[name, old, new]| (name.as_str(), old.as_str(), new.as_str())).collect();
        let (scenario, test) = (text("scenario").unwrap(), text("test").unwrap().parse::<Test>().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let (logs, out) = (logs(scenario, &edits, folder.path()), folder.path().join("out"));
        let verdict = verdict(test, &logs, &out).unwrap();
        let named = format!("{scenario} {test} {edits:?}");
        let written = |name: &str| fs::read_to_string(verdict.folder.join(name)).ok();
        assert_eq!(written("verify_accuracy.txt").as_deref(), text("accuracy"), "{named}");
        let passes = |words: &str| words.lines().any(|line| line == "TEST PASS");
        let (ours, theirs) = (written("verify_performance.txt").unwrap(), text("performance").unwrap());
        assert_eq!((verdict.accuracy, verdict.performance), (text("accuracy").map(passes), passes(theirs)), "{named}");
        if theirs.contains("NameError") {
            // TEST01's script breaks off where a log has errors.
            assert!(ours.contains("WARNING: 2 ERROR reported in") && !verdict.faults.is_empty(), "{named}");
        } else {
            assert_eq!(ours.replace(logs.to_str().unwrap(), "FOLDER"), theirs, "{named}");
        }
        let has_errors = edits.iter().any(|(_, _, new)| new.contains("ERRORS"));
        assert_eq!(verdict.faults.is_empty(), !has_errors, "{named}: {:?}", verdict.faults);
        let copied = verdict.folder.join("performance/run_1/mlperf_log_detail.txt");
        assert_eq!(fs::read(copied).unwrap(), fs::read(logs.join(test.name()).join("mlperf_log_detail.txt")).unwrap());
    }
}

#[test]
fn responses_that_differ_leave_a_baseline() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs("Offline", &[], folder.path());
    let tested = logs.join("TEST01/mlperf_log_accuracy.json");
    let all: Vec<_> = AccuracyLog::open(&tested).unwrap().map(Result::unwrap).collect();
    let mut half = all[..all.len() / 2].to_vec();
    half.iter_mut().for_each(|response| response.data[0] ^= 1);
    half[0].data[3] ^= 1;
    let mut bytes = Vec::new();
    let write = calotype_mlperf::inference::accuracy_log::write::<std::io::Error>;
    write(&mut bytes, &mut half.iter().cloned().map(Ok)).unwrap();
    fs::write(&tested, bytes).unwrap();
    let verdict = verdict(Test::Test01, &logs, &folder.path().join("out")).unwrap();
    assert!(!verdict.passes() && verdict.faults.is_empty());
    assert!(
        verdict.notes.iter().any(|note| note.contains("calotype mlperf inference accuracy")),
        "{:?}",
        verdict.notes
    );
    let baseline = AccuracyLog::open(&verdict.folder.join("accuracy").join(BASELINE)).unwrap();
    let baseline: Vec<_> = baseline.map(Result::unwrap).collect();
    let accuracy = AccuracyLog::open(&logs.join("accuracy/mlperf_log_accuracy.json")).unwrap().map(Result::unwrap);
    let wanted: Vec<_> =
        accuracy.filter(|response| half.iter().any(|tested| tested.qsl_idx == response.qsl_idx)).collect();
    assert_eq!(baseline, wanted);
}

#[test]
fn what_the_scripts_do_not_see_is_told() {
    let folder = |edits: &[(&str, &str, &str)], scenario: &str| {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs(scenario, edits, folder.path());
        (logs, folder)
    };
    // A run without the test's configuration.
    let detail = "TEST04/mlperf_log_detail.txt";
    let (logs, place) =
        folder(&[(detail, "issue_same\", \"value\": true", "issue_same\", \"value\": false")], "Offline");
    let found = verdict(Test::Test04, &logs, place.path()).unwrap();
    assert!(found.performance && !found.passes());
    assert!(found.faults[0].contains("`effective_performance_issue_same` is false"), "{:?}", found.faults);
    // Other target latencies.
    let target = "target_latency (ns): 500000000";
    let edit = ("TEST04/mlperf_log_summary.txt", target, "target_latency (ns): 900000000");
    let (logs, place) = folder(&[edit], "Server");
    let found = verdict(Test::Test04, &logs, place.path()).unwrap();
    assert!(
        found.performance && found.faults[0].contains("target latencies differ: 500000000 ns"),
        "{:?}",
        found.faults
    );
    // Bytes behind the first.
    let (logs, place) = folder(&[], "Offline");
    let tested = logs.join("TEST01/mlperf_log_accuracy.json");
    let text = fs::read_to_string(&tested).unwrap();
    fs::write(&tested, text.replacen("\" }", "00\" }", 1)).unwrap();
    let found = verdict(Test::Test01, &logs, place.path()).unwrap();
    assert!(found.passes() && found.notes[0].starts_with("1 of "), "{:?}", found.notes);
}

#[test]
fn logs_that_are_none_are_named() {
    let (score, scenario) = ("result_samples_per_second", "\"effective_scenario\", \"value\": \"Offline\"");
    for (test, name, old, new, problem) in [
        (Test::Test01, "TEST01/mlperf_log_detail.txt", score, "x", "lacks the number `result_samples_per_second`"),
        (
            Test::Test01,
            "performance/run_1/mlperf_log_detail.txt",
            scenario,
            "\"x\", \"value\": 1",
            "lacks `effective_scenario`",
        ),
        (Test::Test01, "TEST01/mlperf_log_detail.txt", "", "nothing", "lacks `effective_scenario`"),
        (Test::Test01, "TEST01/mlperf_log_accuracy.json", "", "", "the log is empty"),
        (Test::Test01, "accuracy/mlperf_log_accuracy.json", "\" }", "\"", "mlperf_log_accuracy.json: line"),
        (
            Test::Test04,
            "TEST04/mlperf_log_summary.txt",
            "Samples per second: ",
            "Samples: ",
            "lacks `Samples per second: …`",
        ),
        (
            Test::Test04,
            "TEST04/mlperf_log_summary.txt",
            "Samples per second: ",
            "Samples per second: x",
            "lacks `Samples",
        ),
        (Test::Test04, "performance/run_1/mlperf_log_summary.txt", "Offline", "Burst", "lacks a line `Scenario : …`"),
        (Test::Test04, "performance/run_1/mlperf_log_summary.txt", "", "", "lacks a line `Scenario : …`"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs("Offline", &[(name, old, new)], folder.path());
        let error = verdict(test, &logs, &folder.path().join("out")).unwrap_err();
        assert!(error.contains(problem) && error.contains(name), "{name}: {error}");
    }
    for (test, missing) in [
        (Test::Test01, "TEST01/mlperf_log_detail.txt"),
        (Test::Test01, "accuracy/mlperf_log_accuracy.json"),
        (Test::Test01, "TEST01/mlperf_log_summary.txt"),
        (Test::Test04, "performance/run_1/mlperf_log_summary.txt"),
        (Test::Test04, "TEST04/mlperf_log_detail.txt"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let logs = logs("Offline", &[], folder.path());
        fs::remove_file(logs.join(missing)).unwrap();
        let error = verdict(test, &logs, &folder.path().join("out")).unwrap_err();
        assert!(error.contains(missing), "{missing}: {error}");
    }
}

#[test]
fn configurations_are_the_published_ones() {
    // Keys and values of compliance/TEST01/stable-diffusion-xl/audit.config and compliance/TEST04/audit.config, for our model.
    let values = |test: Test| {
        let text = test.audit_config();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.split_once(" = ").unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect::<Vec<_>>()
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        values(Test::Test01),
        [
            pair("*.*.mode", "2"),
            pair("*.*.accuracy_log_rng_seed", "720381539243781796"),
            pair("*.*.accuracy_log_sampling_target", "128"),
        ]
    );
    let found = values(Test::Test04);
    assert_eq!(found.len(), 17);
    for scenario in ["Offline", "Server", "SingleStream", "MultiStream"] {
        for (key, value) in [
            ("mode", "2"),
            ("performance_issue_unique", "0"),
            ("performance_issue_same", "1"),
            ("performance_issue_same_index", "3"),
        ] {
            assert!(found.contains(&pair(&format!("*.{scenario}.{key}"), value)), "{scenario} {key}");
        }
    }
    assert!(found.contains(&pair("stable-diffusion-xl.Offline.min_query_count", "500")));
}
