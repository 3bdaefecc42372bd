//! Logs of benchmark runs: written by `train`, ended by `mlperf finish`, judged by `mlperf check`, packed by `mlperf package`.

use crate::common::{calotype, fail, finished, run, succeed, text, train_unet};
use calotype_mlperf::{
    AdamW, Benchmark, Division, LogWriter, Metric, RunStatus, Settings, Submission, SubmissionStatus,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MLPERF: &str = "mlperf={ benchmark = \"stable_diffusion\", division = \"closed\", org = \"org\", platform = \"box\", \
                      status = \"onprem\", cache_cleared = true }";
/// The first run of the reference at batch 512 (its README), two batches of 8 for each 512,000 samples.
const FIGURES: &str = "hooks.benchmark={ every = 16, figures = [{ samples = 16, fid = 240.31, clip = 0.0704 }, \
                       { samples = 32, fid = 160.47, clip = 0.0955 }, { samples = 48, fid = 116.10, clip = 0.1298 }, \
                       { samples = 64, fid = 98.62, clip = 0.1490 }, { samples = 80, fid = 77.91, clip = 0.1700 }] }";

fn train(out: &Path, more: &[&str]) -> Command {
    let settings = [&["run.samples=96", "optimizer.beta2=0.999"], more].concat();
    train_unet(&finished().precached(), out, &settings)
}

fn check(path: &Path, ruleset: &str) -> Command {
    let mut command = calotype(&["mlperf", "check", "--ruleset", ruleset]);
    command.arg(path);
    command
}

#[test]
fn a_run_with_the_published_figures_passes_and_one_that_misses_them_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let told = succeed(&mut train(&out, &[MLPERF, FIGURES]));
    assert!(told.stderr.contains("FID = 77.91 and CLIP = 0.17 reached the targets"), "{told}");
    for ruleset in ["4.0.0", "4.1", "5.0.0"] {
        let told = succeed(&mut check(&out, ruleset)).stdout;
        assert!(told.contains("passes by the rules of") && !told.contains("error: "), "{told}");
    }
    succeed(check(&out.join("mlperf_compliance.log"), "5.0.0").arg("--strict"));
    fail(&mut check(&out, "6.0.0"), 1, &["official checkers of 6.0.0 break off"]);
    fail(
        check(&out, "5.0.0").arg("--bypass-rcp"),
        2,
        &["--bypass-rcp has no effect on a log", "a folder of logs and on a tree"],
    );
    fail(check(&out, "5.0.0").arg("--full-rcps"), 2, &["--full-rcps"]);
    fail(&mut check(&out.join("recipe.toml"), "5.0.0"), 2, &["recipe.toml: no log of MLPerf", "mlperf_compliance.log"]);

    let poor = "hooks.benchmark={ every = 32, figures = [{ samples = 0, fid = 391.40, clip = 0.0484 }] }";
    let out = folder.path().join("poor");
    succeed(&mut train(&out, &[MLPERF, poor]));
    let ended = run(&mut check(&out, "5.0.0"));
    let errors: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("no evaluation reaches FID of at most 90"), "{ended}");
    assert!(ended.code == Some(1) && ended.stderr.contains("breaks the rules of 5.0.0"), "{ended}");
}

#[test]
fn kept_checkpoints_end_a_log_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let told = succeed(&mut train(&out, &[MLPERF, "run.keep_checkpoints=10"]));
    assert!(told.stderr.contains(&format!("calotype mlperf finish {} --scores", out.display())), "{told}");
    let (log, scores) = (out.join("mlperf_compliance.log"), folder.path().join("scores.jsonl"));
    let finish = || {
        let mut command = calotype(&["mlperf", "finish"]);
        command.arg(&out).arg("--scores").arg(&scores);
        command
    };
    fail(&mut finish(), 2, &["scores.jsonl", "cannot be read"]);
    let without = folder.path().join("without");
    fs::create_dir(&without).unwrap();
    fs::write(without.join("recipe.toml"), "").unwrap();
    let mut unlogged = calotype(&["mlperf", "finish"]);
    fail(unlogged.arg(&without).arg("--scores").arg(&scores), 2, &["wrote no MLPerf log", "[mlperf]"]);
    fs::write(&scores, "{\"samples\": 48, \"fid\": 95, \"clip\": 0.14}\n{\"samples\": 64, \"fid\": 85}\n").unwrap();
    fail(&mut finish(), 2, &["scores.jsonl", "at 64 samples has no `clip`"]);
    fs::write(
        &scores,
        "{\"samples\": 48, \"fid\": 95, \"clip\": 0.14}\n{\"samples\": 64, \"fid\": 85, \"clip\": 0.16}\n",
    )
    .unwrap();
    let told = succeed(&mut finish()).stdout;
    assert!(told.contains("success at 64 samples"), "{told}");
    succeed(&mut check(&out, "5.0.0"));
    let written = fs::read_to_string(&log).unwrap();
    assert!(written.lines().last().unwrap().contains("\"run_stop\""));
    fail(&mut finish(), 1, &["mlperf_compliance.log", "has ended already"]);
    assert_eq!(fs::read_to_string(&log).unwrap(), written);
}

#[test]
fn tables_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |more: &[&str], parts: &[&str]| {
        fail(&mut train(&folder.path().join("run"), more), 2, parts);
    };
    refused(&["mlperf.enabled=true"], &["the recipe has no `mlperf`", "`mlperf.benchmark`"]);
    refused(&[MLPERF, "mlperf.orgg=x"], &["unknown key `mlperf.orgg`", "did you mean `mlperf.org`?"]);
    let with = |before: &str, after: &str| MLPERF.replace(before, after);
    let parts = ["`mlperf.benchmark`", "`sd`", "stable_diffusion"];
    refused(&[&with("\"stable_diffusion\"", "\"sd\"")], &parts);
    refused(&[&with("\"org\"", "\"\"")], &["`mlperf.org`", "is empty"]);
    refused(&[MLPERF, "mlperf.org=other"], &["and `mlperf.org=other` contradict each other"]);
    let sgd = [MLPERF, "optimizer.name=sgd"];
    let mut without_adamw = train_unet(&finished().precached(), &folder.path().join("run"), &sgd);
    fail(&mut without_adamw, 2, &["`mlperf.enabled`", "AdamW"]);
    refused(&[FIGURES], &["`hooks.benchmark`", "[mlperf]"]);
    refused(&[MLPERF, "hooks.benchmark={}"], &["`hooks.benchmark`", "`figures`", "calotype mlperf finish"]);
    refused(&[MLPERF, &FIGURES.replace("every = 16", "every = 0")], &["`hooks.benchmark.every`"]);
    refused(
        &[MLPERF, "hooks.benchmark={ figures = [{ samples = 8, fid = 3 }] }"],
        &["`hooks.benchmark.figures`", "has no `clip`"],
    );
    refused(&[MLPERF, "hooks.benchmark={ metrics = { fid = \"loss\" } }"], &["hooks.benchmark.metrics", "`clip`"]);
    assert!(!folder.path().join("run").exists(), "a refused run leaves nothing");
}

/// A run at batch 512 that converges after some samples, as the reference's at this batch.
fn write_log(path: &Path, seed: u64, converged: u64) {
    let submission = Submission {
        benchmark: Benchmark::StableDiffusion,
        division: Division::Closed,
        org: "org".to_owned(),
        platform: "box".to_owned(),
        status: SubmissionStatus::OnPremises,
        poc_name: None,
        poc_email: None,
    };
    let optimizer = AdamW {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        base_learning_rate: 1.1776e-4,
        warmup_steps: 1000,
        gradient_clip_norm: None,
    };
    let settings = Settings {
        seed,
        train_samples: 6_513_144,
        eval_samples: 30_000,
        gradient_accumulation_steps: 1,
        global_batch_size: 512,
        optimizer,
        disclosure: None,
    };
    let mut log = LogWriter::open(path, &submission, 0).unwrap();
    log.init_start(true).unwrap();
    log.init_stop(&settings).unwrap();
    log.run_start().unwrap();
    for (samples, fid, clip) in [(converged - 512_000, 98.62, 0.149), (converged, 77.91, 0.17)] {
        log.block_start(samples - 512_000).unwrap();
        log.block_stop(samples).unwrap();
        log.eval_start(samples).unwrap();
        log.eval_accuracy(Metric::Fid, fid).unwrap();
        log.eval_accuracy(Metric::Clip, clip).unwrap();
        log.eval_stop().unwrap();
    }
    log.run_stop(RunStatus::Success, converged).unwrap();
}

/// Ten logs in run folders.
fn ten(folder: &Path, converged: u64) -> Vec<PathBuf> {
    let one = |seed: u64| {
        let run = folder.join(format!("run-{seed}"));
        write_log(&run.join("mlperf_compliance.log"), seed, converged);
        fs::write(run.join("recipe.toml"), format!("[run]\nseed = {seed}\n")).unwrap();
        run
    };
    (0..10).map(one).collect()
}

#[test]
fn ten_runs_make_a_tree_that_passes() {
    let folder = tempfile::tempdir().unwrap();
    let runs = ten(folder.path(), 2_560_000);
    let package = |out: &Path, runs: &[PathBuf], more: &[&str]| {
        let mut command = calotype(&["mlperf", "package", "--ruleset", "5.0.0", "--out"]);
        command.arg(out).args(runs).args(more);
        command
    };
    let out = folder.path().join("submission");
    fail(&mut package(&out, &runs[1..], &[]), 1, &["needs the logs of 10 runs, and 9 are given"]);
    fail(&mut package(&out, &runs, &["--field", "colour=red"]), 2, &["--field colour", "cooling"]);
    fail(&mut package(&out, &runs, &["--field", "cooling"]), 2, &["write it as NAME=VALUE"]);
    let described = folder.path().join("system.toml");
    fs::write(&described, "system_name = 3\n").unwrap();
    fail(&mut package(&out, &runs, &["--system", text(&described)]), 2, &["system.toml", "text in quotes"]);
    assert!(!out.exists());
    let told = succeed(&mut package(&out, &runs, &["--field", "cooling=air"])).stdout;
    assert!(told.contains("stable_diffusion on box: ") && told.contains("reference point interpolated"), "{told}");
    let results = out.join("results/box/stable_diffusion");
    for file in ["systems/box.json", "benchmarks/stable_diffusion/implementations/calotype/recipe.toml"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert!(fs::read_to_string(out.join("systems/box.json")).unwrap().contains("\"cooling\": \"air\""));
    assert_eq!(fs::read_dir(&results).unwrap().count(), 10);
    succeed(&mut check(&out, "5.0.0"));
    succeed(&mut check(&results, "5.0.0"));
    let told = succeed(check(&results, "5.0.0").arg("--full-rcps")).stdout;
    assert!(told.contains("reference point found"), "{told}");
    fail(&mut package(&out, &runs, &["--field", "cooling=air"]), 1, &["is there already"]);
    fail(check(&results, "5.0.0").arg("--strict"), 2, &["--strict has no effect on a folder of logs"]);
    fail(&mut check(folder.path(), "5.0.0"), 2, &["neither mlperf_compliance.log nor result_0.txt nor results/"]);
    fail(&mut check(&out, "7.0.0"), 2, &["7.0.0", "5.0.0"]);

    let empty = folder.path().join("empty");
    ["systems", "results"].iter().for_each(|name| fs::create_dir_all(empty.join(name)).unwrap());
    let told = succeed(&mut check(&empty, "5.0.0")).stdout;
    assert!(told.contains("there are no results in it") && told.contains("note: no result was judged"), "{told}");

    // Runs of another division do not belong among them.
    let mut mixed = runs.clone();
    mixed[4] = folder.path().join("open");
    let log = fs::read_to_string(runs[4].join("mlperf_compliance.log")).unwrap().replace("\"closed\"", "\"open\"");
    fs::create_dir(&mixed[4]).unwrap();
    fs::write(mixed[4].join("mlperf_compliance.log"), log).unwrap();
    fail(&mut package(&folder.path().join("mixed"), &mixed, &[]), 1, &["`submission_division` is \"open\""]);

    // A seed twice, a name with a blank, and runs that converge too early.
    fs::copy(results.join("result_0.txt"), results.join("result_1.txt")).unwrap();
    fs::write(out.join("benchmarks/a note.txt"), "words").unwrap();
    let ended = run(&mut check(&out, "5.0.0"));
    assert!(ended.stdout.contains("the seed 0") && ended.stdout.contains("holds a blank"), "{ended}");
    assert_eq!(ended.code, Some(1));
    fs::remove_file(out.join("benchmarks/a note.txt")).unwrap();
    succeed(check(&out, "5.0.0").arg("--bypass-seeds"));
    let early = ten(&folder.path().join("early"), 1_024_000);
    let out = folder.path().join("early/submission");
    fail(&mut package(&out, &early, &[]), 1, &["breaks the rules"]);
    succeed(check(&out, "5.0.0").arg("--bypass-rcp"));
    succeed(check(&out.join("results/box/stable_diffusion"), "5.0.0").arg("--bypass-rcp"));
}

#[test]
fn logs_are_drawn_over_the_reference_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (log, out) = (folder.path().join("result_0.txt"), folder.path().join("plots"));
    let line = |key: &str, value: &str, metadata: &str| {
        format!(":::MLLOG {{\"time_ms\": 1, \"key\": \"{key}\", \"value\": {value}, \"metadata\": {{{metadata}}}}}\n")
    };
    let result = |samples: u32, fid: &str, clip: &str| {
        let of = |metric: &str| format!("\"samples_count\": {samples}, \"metric\": \"{metric}\"");
        line("eval_accuracy", fid, &of("FID")) + &line("eval_accuracy", clip, &of("CLIP"))
    };
    let head = line("submission_benchmark", "\"stable_diffusion\"", "") + &line("global_batch_size", "512", "");
    let text = head.clone() + &result(512_000, "240.31", "0.0704") + &result(1_024_000, "160.47", "0.0955");
    fs::write(&log, &text).unwrap();
    let plot = |more: &[&str]| {
        let mut command = calotype(&["mlperf", "plot"]);
        command.arg(&log).arg("--out").arg(&out).args(more);
        command
    };
    let told = succeed(&mut plot(&[])).stdout;
    assert!(told.contains("14 published reference runs of batch 512"), "{told}");
    for name in ["convergence_fid", "convergence_clip"] {
        let svg = fs::read_to_string(out.join(name).with_extension("svg")).unwrap();
        assert!(svg.contains("reference runs, batch 512") && svg.contains("result_0.txt"), "{name}");
        assert!(fs::read(out.join(name).with_extension("png")).unwrap().starts_with(b"\x89PNG"));
    }
    succeed(&mut plot(&["--reference-batch", "none"]));
    assert!(!fs::read_to_string(out.join("convergence_fid.svg")).unwrap().contains("reference"));
    let told = succeed(&mut plot(&["--reference-batch", "4"]));
    assert!(told.stderr.contains("--reference-batch takes 256, 384, 512, 1024, 2048"), "{told}");
    fail(&mut plot(&["--reference-batch", "0"]), 2, &["write a batch such as 512, or none"]);
    fail(&mut plot(&["--ruleset", "6.0.0"]), 2, &["that round does not have stable_diffusion"]);
    fs::write(&log, &head).unwrap();
    fail(&mut plot(&[]), 2, &["result_0.txt: has no evaluations"]);
    let broken = |value: &str| head.clone() + &result(512_000, "240.31", "0.0704") + &result(1_024_000, value, "0.1");
    for value in ["NaN", "null", "\"abc\"", "1e999"] {
        fs::write(&log, broken(value)).unwrap();
        fail(&mut plot(&[]), 2, &["result_0.txt: line 5: "]);
    }
    fs::write(&log, text.replace("stable_diffusion", "flux1")).unwrap();
    fail(&mut plot(&[]), 2, &["result_0.txt: has no evaluations of what flux1 measures"]);
    fs::write(&log, text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    fail(&mut plot(&[]), 1, &["result_0.txt: cannot be read: it is UTF-16 text"]);
    #[cfg(unix)]
    {
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut command = calotype(&["mlperf", "plot"]);
        fail(command.arg(&pipe).arg("--out").arg(&out), 1, &["pipe: cannot be read: it is a named pipe"]);
    }
    fs::write(&log, "nothing").unwrap();
    fail(&mut plot(&[]), 1, &["result_0.txt: has no line `submission_benchmark`"]);
}
