//! `mlperf inference accuracy`, `verify` and `audit`.

use crate::common::{calotype, fail, finished, succeed, text, write_inception};
use calotype_data::image::{PngEffort, RgbImage};
use calotype_mlperf::inference::accuracy_log::{Response, write};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const SIDE: usize = 16;
const SAMPLES: u64 = 4;

fn picture(sample: u64) -> Vec<u8> {
    (0..3 * SIDE * SIDE).map(|i| (40 * sample as usize + i * (37 + sample as usize) % 90) as u8).collect()
}

/// An accuracy run below a folder, captions and statistics of pictures that are others.
fn write_run(folder: &Path, inception: &Path) {
    let log = folder.join("run/offline/accuracy/mlperf_log_accuracy.json");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    let responses = (0..SAMPLES).map(|sample| Response { seq_id: sample, qsl_idx: sample, data: picture(sample) });
    let mut bytes = Vec::new();
    write::<io::Error>(&mut bytes, &mut responses.map(Ok)).unwrap();
    fs::write(log, bytes).unwrap();
    let captions: String = (0..SAMPLES + 1).map(|sample| format!("{sample}\ta {sample} on grey\n")).collect();
    fs::write(folder.join("captions.tsv"), format!("id\tcaption\n{captions}")).unwrap();
    let (real, statistics) = (folder.join("real"), folder.join("real.npz"));
    fs::create_dir(&real).unwrap();
    for sample in 5..8 {
        let png = RgbImage::new(SIDE, SIDE, picture(sample)).unwrap().encode_png(PngEffort::Fast).unwrap();
        fs::write(real.join(format!("{sample}.png")), png).unwrap();
    }
    let mut command = calotype(&["evaluate", "pictures", text(&real), "--reference", text(&real), "--inception"]);
    succeed(command.arg(inception).arg("--save-statistics").arg(statistics));
}

#[test]
fn accuracy_runs_are_judged() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (inception, clip) = (at("inception.safetensors"), finished().out().join("clip/model"));
    write_inception(&inception);
    write_run(folder.path(), &inception);
    let judge = |more: &[&str]| {
        let mut command = calotype(&["mlperf", "inference", "accuracy", "--clip", text(&clip)]);
        command.arg("--captions").arg(at("captions.tsv")).arg("--statistics").arg(at("real.npz"));
        command.arg("--inception").arg(&inception).args(more);
        command
    };
    let run = at("run");
    let told = succeed(&mut judge(&["--run", text(&run), "--compliance-ids", "v6.1"]));
    let accuracy = at("run/offline/accuracy");
    let written = fs::read_to_string(accuracy.join("accuracy.txt")).unwrap();
    assert_eq!(told.stdout, written);
    assert!(
        written.starts_with("Accuracy Results: {'FID_SCORE': '") && written.contains("', 'CLIP_SCORE': '"),
        "{written}"
    );
    for part in ["16x16 pixels", "4 samples were judged (of 5 captions)", "not known to be the published"] {
        assert!(told.stderr.contains(part), "{part}: {told}");
    }
    assert!(accuracy.join("images/captions.txt").is_file());
    // The same figures elsewhere, by one thread.
    let (log, out) = (accuracy.join("mlperf_log_accuracy.json"), at("judged"));
    fs::write(at("ids.txt"), "2\n0\n").unwrap();
    let ids = at("ids.txt");
    let more = ["--log", text(&log), "--out", text(&out), "--compliance-ids", text(&ids), "--threads", "1"];
    assert_eq!(succeed(&mut judge(&more)).stdout, written);
    assert_eq!(fs::read_to_string(out.join("images/captions.txt")).unwrap(), "2  a 2 on grey\n0  a 0 on grey\n");
    let kept = fs::read(out.join("images/2.png")).unwrap();
    assert_eq!(RgbImage::decode("2", &kept).unwrap().into_data(), picture(2));
    // What cannot be followed.
    let log = text(&log);
    fail(&mut judge(&["--log", log, "--compliance-ids", "v9"]), 2, &["--compliance-ids v9", "no such file", "v6.1"]);
    fs::write(at("ids.txt"), "7\n").unwrap();
    fail(&mut judge(&["--log", log, "--compliance-ids", text(&ids)]), 2, &["sample 7", "5 captions"]);
    fail(&mut judge(&[]), 2, &["--log"]);
    fail(&mut judge(&["--log", log, "--run", log]), 2, &["--run"]);
    fail(&mut judge(&["--log", log, "--width", "32"]), 2, &["--height"]);
    fail(&mut judge(&["--log", log, "--width", "32", "--height", "9"]), 1, &["sample 0", "32x9 pixels"]);
    let (real, nowhere) = (at("real"), at("nowhere"));
    fail(&mut judge(&["--run", text(&real)]), 1, &["make an accuracy run"]);
    fail(&mut judge(&["--run", text(&nowhere)]), 2, &["nowhere"]);
    fs::write(at("cut.json"), &fs::read(log).unwrap()[..100]).unwrap();
    let cut = at("cut.json");
    fail(&mut judge(&["--log", text(&cut)]), 1, &["cut.json: line 2, byte 100", "ends inside a response"]);
}

#[test]
fn compliance_runs_are_judged() {
    let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../inference/tests/golden/compliance/Offline"].iter().collect();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("compliance");
    let verify = |test: &str, compliance: &Path| -> Command {
        let mut command = calotype(&["mlperf", "inference", "verify", "--test", test, "--performance"]);
        command.arg(&golden).arg("--compliance").arg(compliance).arg("--out").arg(&out);
        command
    };
    for (test, files) in
        [("TEST01", &["verify_accuracy.txt", "verify_performance.txt"][..]), ("TEST04", &["verify_performance.txt"])]
    {
        let told = succeed(&mut verify(test, &golden.join(test)));
        assert!(told.stdout.contains(&format!("{test} passes")), "{told}");
        for file in files {
            let verdict = fs::read_to_string(out.join(test).join(file)).unwrap();
            assert!(verdict.lines().any(|line| line == "TEST PASS"), "{verdict}");
        }
    }
    // The submitted run itself is no compliance run, though its score is its own.
    let told = fail(&mut verify("TEST04", &golden), 1, &["TEST04 fails"]);
    assert!(told.contains("TEST04"), "{told}");
    fail(&mut verify("TEST04", folder.path()), 1, &["mlperf_log_summary.txt"]);
    fail(&mut verify("TEST05", &golden), 2, &["TEST05", "TEST01"]);
}

#[test]
fn audit_configurations_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let told = succeed(&mut calotype(&["mlperf", "inference", "audit", "--test", "TEST01"])).stdout;
    assert!(told.contains("*.*.accuracy_log_sampling_target = 128\n"), "{told}");
    let out = folder.path().join("run");
    let written =
        succeed(&mut calotype(&["mlperf", "inference", "audit", "--test", "TEST04", "--out", text(&out)])).stdout;
    assert!(written.contains("audit.config") && written.contains("remove it"), "{written}");
    let config = fs::read_to_string(out.join("audit.config")).unwrap();
    assert!(config.contains("*.Offline.performance_issue_same_index = 3\n"), "{config}");
}
