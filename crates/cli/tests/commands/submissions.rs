//! Trees of MLPerf inference made of LoadGen's own logs, and judged.

use crate::common::{calotype, fail, succeed, text};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of an Offline run in both modes, of LoadGen's logs of 50 samples.
fn runs(folder: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mlperf/tests/golden/loadgen/Offline");
    for (mode, place) in [("performance", "offline/performance/run_1"), ("accuracy", "offline/accuracy")] {
        let place = folder.join(place);
        fs::create_dir_all(&place).unwrap();
        for entry in fs::read_dir(golden.join(mode)).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, place.join(file.file_name().unwrap())).unwrap();
        }
    }
    let figures = "Accuracy Results: {'FID_SCORE': '23.5', 'CLIP_SCORE': '31.75'}\n";
    fs::write(folder.join("offline/accuracy/accuracy.txt"), figures).unwrap();
    let facts = r#"{"commands": ["calotype mlperf inference sdxl --variant scc24-base"], "model": "sdxl",
        "runs": {"offline/performance": {"weights": "int8", "precision": "bf16"}}}"#;
    fs::write(folder.join("run.json"), facts).unwrap();
}

/// A file of this name below a folder.
fn found(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| match path.is_dir() {
        true => found(&path, name),
        false => path.ends_with(name).then_some(path),
    })
}

/// A description without gaps, from this machine's.
fn described(path: &Path) {
    let told = succeed(&mut calotype(&["doctor", "--system-json"]));
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&told.stdout).unwrap();
    assert!(told.stderr.contains("this machine does not tell") && told.stderr.contains("cooling"), "{told}");
    assert!(!fields["host_processor_model_name"].as_str().unwrap().is_empty(), "{told}");
    for value in fields.values_mut().filter(|value| value.as_str() == Some("")) {
        *value = "N/A".into();
    }
    fs::write(path, serde_json::to_string(&fields).unwrap()).unwrap();
}

#[test]
fn runs_become_a_tree_with_archive_commands_and_highlights() {
    let folder = tempfile::tempdir().unwrap();
    let (runs_folder, out, system) =
        (folder.path().join("runs"), folder.path().join("out"), folder.path().join("system.json"));
    runs(&runs_folder);
    described(&system);
    let submission = |out: &Path, more: &[&str]| {
        let mut command = calotype(&["mlperf", "inference", "submission"]);
        command
            .arg(&runs_folder)
            .arg("--out")
            .arg(out)
            .args(["--submitter", "Team", "--system"])
            .arg(&system)
            .args(more);
        command
    };
    let told = succeed(&mut submission(&out, &["--round", "v6.1", "--short-run"])).stdout;
    assert!(told.contains("Samples/s") && told.contains("passes by the rules of v6.1"), "{told}");
    for file in ["mlperf_submission.tar.gz", "mlperf_submission.run", "mlperf_submission.md"] {
        assert!(out.join(file).metadata().unwrap().len() > 100, "{file}");
    }
    let commands = fs::read_to_string(out.join("mlperf_submission.run")).unwrap();
    assert!(
        commands.contains("--variant scc24-base") && commands.contains("mlperf inference submission"),
        "{commands}"
    );

    let tree = out.join("submission");
    let measured = fs::read_to_string(found(&tree, "measurements.json").expect("measurements")).unwrap();
    assert!(measured.contains(r#""weight_data_types": "int8""#) && measured.contains(r#""input_data_types": "bf16""#));
    let check = |more: &[&str]| {
        let mut command = calotype(&["mlperf", "check-submission"]);
        command.arg(&tree).args(more);
        command
    };
    let csv = folder.path().join("summary.csv");
    succeed(&mut check(&["--round", "v6.1", "--short-run", "--csv", text(&csv)]));
    let table = fs::read_to_string(&csv).unwrap();
    assert_eq!((table.lines().count(), table.lines().next().unwrap().split(',').count()), (2, 31), "{table}");
    // The table is replaced, also by that of another round, and nothing else is, whatever the check finds.
    let letter = folder.path().join("letter.txt");
    fs::write(&letter, "Dear all").unwrap();
    for round in ["v6.1", "v5.1"] {
        let told = ["--csv", "letter.txt: something is there already that is not a table of results"];
        fail(&mut check(&["--round", round, "--short-run", "--csv", text(&letter)]), 2, &told);
        let mut before = submission(&folder.path().join("none"), &["--round", round, "--csv", text(&letter)]);
        fail(&mut before, 2, &told);
        fail(&mut check(&["--round", round, "--csv", text(&csv)]), 1, &[round]);
    }
    assert!(fs::read_to_string(&letter).unwrap() == "Dear all" && !folder.path().join("none").exists());
    assert_ne!(fs::read_to_string(&csv).unwrap(), table);
    fail(&mut check(&["--round", "v6.1"]), 1, &["breaks the rules of v6.1"]);
    // The layout of another round.
    fail(&mut check(&["--round", "v5.1", "--short-run"]), 1, &["v5.1"]);

    fail(&mut submission(&out, &["--round", "v6.1"]), 1, &["submission: is there already"]);
    let other = folder.path().join("other");
    fail(&mut submission(&other, &["--round", "v6.1", "--field", "cooling"]), 2, &["NAME=VALUE"]);
    fail(&mut submission(&other, &["--round", "v6.2"]), 2, &["v6.1"]);
    succeed(&mut submission(&other, &["--round", "v5.1", "--short-run", "--division", "open"]));
}

#[test]
fn what_is_no_submission_or_has_no_result_does_not_pass() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let check = |path: &Path| {
        let mut command = calotype(&["mlperf", "check-submission", "--round", "v5.1"]);
        command.arg(path);
        command
    };
    fs::create_dir(at("pictures")).unwrap();
    fs::write(at("pictures/a.png"), "").unwrap();
    fail(&mut check(&at("pictures")), 2, &["pictures: is no submission", "closed/, open/ and network/"]);
    fail(&mut check(&at("pictures/a.png")), 2, &["a.png: is a file, and a submission is a folder"]);
    fail(&mut check(&at("picture")), 2, &["picture: there is no such folder (did you mean", "pictures?)"]);
    fs::create_dir_all(at("tree/closed")).unwrap();
    // The official checker passes it.
    let message = fail(&mut check(&at("tree")), 1, &["tree: there is no result to judge"]);
    assert!(!message.contains("passes"), "{message}");
}
