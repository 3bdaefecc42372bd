//! `mlperf inference` as far as it goes without LoadGen, which scripts/mlperf-inference.sh builds and runs.

use crate::common::{calotype, fail, finished, succeed, text};
use std::fs;
use std::path::Path;
use std::process::Command;

fn sdxl(arguments: &[&str]) -> Command {
    let mut command = calotype(&["mlperf", "inference", "sdxl"]);
    command.args(arguments);
    command
}

const MINI: [&str; 2] = ["--recipe", "inference/sdxl/mlperf_mini"];

#[test]
fn a_dry_run_says_what_would_run_and_what_is_unofficial() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let dry = |arguments: &[&str]| {
        let mut command = sdxl(arguments);
        command.arg("--out").arg(&out).arg("--dry-run");
        command
    };
    let told = succeed(&mut dry(&[&MINI[..], &["--scenario", "offline"]].concat())).stdout;
    for part in [
        "scenario     Offline, performance mode",
        "benchmark    round v6.1, variant custom, 50 captions",
        "pictures     64x64, 2 steps, guidance 8",
        "samples      50 are issued\n",
        "how long a picture takes is not known",
        "unofficial   the model has random weights (tiny-sdxl)",
        "unofficial   pictures have 64x64 pixels; the benchmark's 1024x1024",
        "unofficial   a least duration of 0 ms; the benchmark's is 600000 ms",
        "unofficial   a least number of 50 queries; the benchmark's is 5000",
        "unofficial   50 captions are made up; the benchmark's are those of COCO",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let captions = folder.path().join("captions.txt");
    fs::write(&captions, "A cat.\nA dog.\n").unwrap();
    let own = ["--captions", text(&captions), "--scenario", "offline", "--qps", "100", "--time", "60"];
    let told = succeed(&mut dry(&[&own[..], &["--variant", "custom"]].concat())).stdout;
    assert!(told.contains("samples      6600 are issued") && told.contains("variant custom, 2 captions"), "{told}");
    // The file wins over the recipe, and flags over the file.
    let conf = folder.path().join("user.conf");
    fs::write(&conf, "*.Offline.min_query_count = 70\n*.Offline.min_duration = 0\n").unwrap();
    let with = [&MINI[..], &["--scenario", "offline", "--user-conf", text(&conf)]].concat();
    assert!(succeed(&mut dry(&with)).stdout.contains("samples      70 are issued"));
    let more = [&with[..], &["--queries", "90"]].concat();
    assert!(succeed(&mut dry(&more)).stdout.contains("samples      90 are issued"));
    assert!(!out.exists(), "a dry run leaves nothing");
}

#[test]
fn what_cannot_be_is_told_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let conf = folder.path().join("user.conf");
    let few = folder.path().join("few.txt");
    fs::write(&few, "A cat.\n").unwrap();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let mut command = sdxl(&[arguments, &["--dry-run"]].concat());
        fail(command.arg("--out").arg(&out), 2, parts);
    };
    let mini = |more: &[&'static str]| [&MINI[..], &["--scenario", "offline"], more].concat();
    refused(&mini(&["stepps=3"]), &["unknown key `stepps`", "did you mean `steps`?"]);
    refused(&mini(&["serve.batch_size=0"]), &["`serve.batch_size` is 0"]);
    refused(&mini(&["processes.silence_seconds=0"]), &["`processes.silence_seconds` is 0"]);
    refused(&mini(&["load.target_qps=0.0"]), &["`load.target_qps` is 0"]);
    refused(&mini(&["--find-peak"]), &["in the server scenario alone, not in Offline"]);
    refused(&mini(&["--variant", "scc24-main"]), &["`captions.count` is 50", "500 samples"]);
    refused(&["--scenario", "offline", "--recipe", "stable_diffusion/mlperf_v2"], &["there is no recipe"]);
    refused(
        &["--scenario", "offline", "--recipe", "evaluation/stable_diffusion/mlperf_v2"],
        &["no recipe of this command"],
    );
    refused(&["--scenario", "server", "--recipe", MINI[1], "--find-peak"], &["give it with --qps"]);
    refused(&["--scenario", "offline", "--captions", text(&few)], &["few.txt", "holds 1 captions"]);
    refused(&["--scenario", "offline", "--captions", "/nowhere/captions.tsv"], &["/nowhere/captions.tsv"]);
    refused(&mini(&["--audit-conf", "/nowhere/audit.config"]), &["/nowhere/audit.config", "--audit-conf"]);
    // What only a run would find out, too.
    refused(&mini(&["--width", "33"]), &["a width of 33 pixels: sides must be multiples of 8"]);
    refused(&mini(&["--workers", "foo"]), &["--workers foo: write it as HOST:PORT"]);
    refused(&mini(&["--workers", "host:4242,host:0"]), &["--workers host:0: write it as HOST:PORT"]);
    refused(&mini(&["--samples-per-query", "3"]), &["--samples-per-query is of the multistream scenario"]);
    refused(&mini(&["--latents", "nowhere.npy"]), &["cannot read nowhere.npy"]);
    refused(&mini(&["--model", "nowhere"]), &["nowhere"]);
    refused(&mini(&["random=tiny"]), &["random=tiny is not of Stable Diffusion XL's form"]);
    let of = |flag: &'static str, path: &Path| {
        let arguments = [&MINI[..], &["--scenario", "offline", flag, text(path)]].concat();
        fail(sdxl(&arguments).arg("--out").arg(&out).arg("--dry-run"), 2, &[text(path), "is no "])
    };
    assert!(of("--model", &finished().out()).contains("is no checkpoint of Stable Diffusion XL"));
    let picture = folder.path().join("picture.png");
    fs::write(&picture, b"\x89PNG\r\n\x1a\n").unwrap();
    assert!(of("--latents", &picture).contains("is no array of NumPy"));
    for (line, part) in [
        ("*.Offline.min_query_count = 7 # seven", "put comments on lines of their own"),
        ("*.Offline.nonsense = 1", "knows no key `nonsense`"),
        ("*.*.qsl_rng_seed = 1", "its own mlperf.conf alone"),
    ] {
        fs::write(&conf, format!("{line}\n")).unwrap();
        let arguments = [&MINI[..], &["--scenario", "offline", "--user-conf", text(&conf)]].concat();
        refused(&arguments, &["user.conf line 1", part]);
    }
    fail(&mut sdxl(&["--scenario", "online", "--out", "x"]), 2, &["online", "multistream"]);
    assert!(!out.exists());
}

#[cfg(not(feature = "loadgen"))]
#[test]
fn without_loadgen_a_run_says_how_to_build_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut command = sdxl(&[&MINI[..], &["--scenario", "offline", "--out", text(&out)]].concat());
    fail(&mut command, 2, &["this build has no LoadGen", "scripts/loadgen.sh", "--features loadgen"]);
    assert!(!out.exists());
    let dry = succeed(command.arg("--dry-run")).stdout;
    assert!(dry.contains("loadgen      not in this build"), "{dry}");
}
