//! The log of an MLPerf benchmark as runs write it: whole ones, stopped, failed and killed ones, with and without results.

use super::*;
use crate::mlperf::LOG;
use calotype_mlperf::{Line as LogLine, Log, Metric, Ruleset, RunStatus, Scores, Severity, Value, Verdict};
use calotype_mlperf::{check_log, finish_offline};

const MLPERF: &str = "mlperf={ benchmark = \"stable_diffusion\", division = \"closed\", org = \"org\", platform = \"box\", \
                      status = \"onprem\", cache_cleared = true }";
/// The first runs of the reference at batch 512 (its README), a batch of 8 for each 512,000 samples.
const FIGURES: &str = "hooks.benchmark={ every = 8, figures = [{ samples = 8, fid = 240.31, clip = 0.0704 }, \
                       { samples = 16, fid = 160.47, clip = 0.0955 }, { samples = 24, fid = 116.10, clip = 0.1298 }, \
                       { samples = 32, fid = 98.62, clip = 0.1490 }, { samples = 40, fid = 77.91, clip = 0.1700 }] }";
const POOR: &str = "hooks.benchmark={ every = 8, figures = [{ samples = 8, fid = 240.31, clip = 0.0704 }] }";

fn log(world: &World, run: &str) -> Log {
    Log::read(&world.path(run).join(LOG)).unwrap()
}

/// Keys, values and metadata, but for times and places of the source.
fn timeless(world: &World, run: &str) -> Vec<String> {
    let line = |(_, line): (usize, &LogLine)| {
        let Value::Object(metadata) = &line.metadata else { panic!("no metadata") };
        let own = metadata.iter().filter(|(name, _)| name != "file" && name != "lineno");
        let mut own: Vec<String> = own.map(|(name, value)| format!(" {name}={value}")).collect();
        own.sort_unstable();
        format!("{} {}{}", line.key, line.value, own.concat())
    };
    log(world, run).lines().map(line).collect()
}

fn without_numbers(lines: &[String]) -> Vec<String> {
    let short = |line: &String| match line.split(' ').next() {
        Some(key @ ("loss" | "lr_abs")) => format!("{key} {}", line.rsplit(' ').next().unwrap_or_default()),
        _ => line.clone(),
    };
    lines.iter().map(short).collect()
}

fn errors(world: &World, run: &str, ruleset: Ruleset) -> Vec<String> {
    let report = check_log(&world.path(run).join(LOG), ruleset).unwrap();
    let errors = report.findings.into_iter().filter(|finding| finding.severity >= Severity::Warning);
    errors.map(|finding| finding.to_string()).collect()
}

#[test]
fn a_run_that_reaches_the_targets_writes_a_log_that_passes() {
    let world = World::new();
    let summary = world.train("run", &LineTask::default(), &[MLPERF, FIGURES]).summary();
    assert_eq!(summary.samples_seen, 40);
    let target = summary.target.unwrap();
    assert!(target.contains("FID = 77.91 and CLIP = 0.17 reached the targets of stable_diffusion"), "{target}");
    assert!(target.contains("handed in by hooks.benchmark.figures"), "{target}");
    let lines = without_numbers(&timeless(&world, "run"));
    assert_eq!(
        lines[..25],
        [
            "cache_clear true",
            "submission_benchmark \"stable_diffusion\"",
            "submission_division \"closed\"",
            "submission_org \"org\"",
            "submission_platform \"box\"",
            "submission_status \"onprem\"",
            "init_start null",
            "seed 5",
            "train_samples 12",
            "eval_samples 30000",
            "gradient_accumulation_steps 1",
            "global_batch_size 4",
            "init_stop null",
            "opt_name \"adamw\"",
            "opt_adamw_beta_1 0.9",
            "opt_adamw_beta_2 0.999",
            "opt_adamw_epsilon 1e-8",
            "opt_adamw_weight_decay 0.01",
            "opt_base_learning_rate 0.05",
            "opt_learning_rate_warmup_steps 0",
            "run_start null",
            "block_start \"training_step\" samples_count=0",
            "loss samples_count=8",
            "lr_abs samples_count=8",
            "block_stop \"training_step\" samples_count=8",
        ]
    );
    assert_eq!(
        lines[25..31],
        [
            "eval_start 8 samples_count=8",
            "figures \"handed in by hooks.benchmark.figures\" samples_count=8",
            "eval_accuracy 240.31 metric=\"FID\" samples_count=8",
            "eval_accuracy 0.0704 metric=\"CLIP\" samples_count=8",
            "eval_stop 8 samples_count=8",
            "block_start \"training_step\" samples_count=8",
        ]
    );
    assert_eq!(
        lines[lines.len() - 2..],
        ["eval_stop 40 samples_count=40", "run_stop null samples_count=40 status=\"success\""]
    );
    for ruleset in [Ruleset::V4_0, Ruleset::V4_1, Ruleset::V5_0] {
        assert_eq!(errors(&world, "run", ruleset), Vec::<String>::new());
    }
    assert_eq!(world.metrics("run").iter().filter(|line| line.contains_key("benchmark/fid")).count(), 5);
}

#[test]
fn a_run_that_misses_the_targets_fails_by_them_alone() {
    let world = World::new();
    assert_eq!(world.train("run", &LineTask::default(), &[MLPERF, POOR]).summary().target, None);
    let lines = timeless(&world, "run");
    assert_eq!(lines.last().unwrap(), "run_stop null samples_count=48 status=\"aborted\"");
    for ruleset in [Ruleset::V4_0, Ruleset::V4_1, Ruleset::V5_0] {
        let errors = errors(&world, "run", ruleset);
        assert!(errors.len() == 1 && errors[0].contains("no evaluation reaches FID of at most 90"), "{errors:?}");
    }
    // Its own targets end it, and the rules' are missed all the same.
    let own = MLPERF.replace("cache_cleared", "targets = { fid = 250, clip = 0.01 }, cache_cleared");
    let summary = world.train("own", &LineTask::default(), &[own.as_str(), POOR]).summary();
    assert_eq!((summary.samples_seen, summary.target.is_some()), (8, true));
    assert_eq!(timeless(&world, "own").last().unwrap(), "run_stop null samples_count=8 status=\"success\"");
}

#[test]
fn an_interrupted_run_leaves_the_log_of_an_uninterrupted_one() {
    let world = World::new();
    let settings = [MLPERF, FIGURES, "run.checkpoint_every=12"];
    world.train("whole", &LineTask::default(), &settings).summary();
    let whole = timeless(&world, "whole");
    for (at, name) in (1..36).step_by(4).map(|at| (at, format!("at-{at}"))) {
        let stop = StopFlag::new_unhooked();
        let task = LineTask::with(Incident::Stop(at, stop.clone()));
        world.train_as(&name, &task, &settings, &Local, &stop).interrupted_at();
        world.train(&name, &LineTask::default(), &settings).summary();
        assert_eq!(timeless(&world, &name), whole, "stopped at {at}");

        let name = format!("failed-{at}");
        assert!(world.train(&name, &LineTask::with(Incident::Error(at)), &settings).outcome.is_err());
        let last = timeless(&world, &name).pop().unwrap();
        assert!(last.starts_with("run_stop") && last.ends_with("status=\"aborted\""), "{name}: {last}");
        world.train(&name, &LineTask::default(), &settings).summary();
        assert_eq!(timeless(&world, &name), whole, "failed at {at}");
    }
}

/// A kill leaves a log that goes on behind its newest checkpoint, or was cut anywhere behind the checkpoint's lines.
#[test]
fn a_killed_run_leaves_the_log_of_an_uninterrupted_one() {
    let world = World::new();
    let settings = [MLPERF, FIGURES];
    world.train("whole", &LineTask::default(), &settings).summary();
    let whole = timeless(&world, "whole");
    let path = world.path("whole").join(LOG);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let last = |line: &&str| line.contains("\"eval_stop\"") && line.contains("\"samples_count\": 40");
    let synced = lines.iter().position(last).unwrap() + 1;
    for kept in synced..=lines.len() {
        // The newest checkpoint has seen 40 samples and the target's end.
        let cut = lines.get(kept).map_or("", |line| &line[..line.len() / 2]);
        std::fs::write(&path, format!("{}{cut}", lines[..kept].concat())).unwrap();
        world.train("whole", &LineTask::default(), &settings).summary();
        assert_eq!(timeless(&world, "whole"), whole, "killed behind line {kept}");
    }
    // From an earlier checkpoint, whatever the log said of later samples.
    std::fs::write(&path, &text).unwrap();
    let store = world.path("whole").join(CHECKPOINTS);
    let newest = CheckpointStore::open(store, CHECKPOINT_PREFIX).unwrap().list().unwrap().pop().unwrap();
    assert_eq!(newest.0, 40);
    std::fs::remove_dir_all(newest.1).unwrap();
    world.train("whole", &LineTask::default(), &settings).summary();
    assert_eq!(timeless(&world, "whole"), whole);
    // A log that is gone is not begun anew in the middle of a run.
    std::fs::remove_file(&path).unwrap();
    let error = world.train("whole", &LineTask::default(), &settings).outcome.unwrap_err().to_string();
    assert!(error.contains("mlperf_compliance.log") && error.contains("no `run_start`"), "{error}");
}

#[test]
fn kept_checkpoints_end_a_run_afterwards() {
    let world = World::new();
    let settings = [MLPERF, "run.log_every=24", "run.keep_checkpoints=10"];
    world.train("run", &LineTask::default(), &settings).summary();
    let lines = timeless(&world, "run");
    let blocks: Vec<_> = lines.iter().filter(|line| line.starts_with("block_stop")).cloned().collect();
    assert_eq!(blocks, [16, 24, 32, 48].map(|at| format!("block_stop \"training_step\" samples_count={at}")));
    assert!(!lines.iter().any(|line| line.starts_with("run_stop") || line.starts_with("eval_start")));
    // Killed between a checkpoint and its line, then ended again.
    let path = world.path("run").join(LOG);
    let text = std::fs::read_to_string(&path).unwrap();
    let (start, _) = text.trim_end().rsplit_once('\n').unwrap();
    std::fs::write(&path, format!("{start}\n")).unwrap();
    world.train("run", &LineTask::default(), &settings).summary();
    assert_eq!(timeless(&world, "run"), lines);

    let scores = [(16, 95.0, 0.14), (32, 80.0, 0.16), (48, 70.0, 0.2)]
        .map(|(samples, fid, clip)| Scores { samples, results: vec![(Metric::Fid, fid), (Metric::Clip, clip)] });
    let reached = log(&world, "run").reached(32).unwrap();
    let sd = calotype_mlperf::Benchmark::StableDiffusion;
    let finished = finish_offline(&path, &scores, |results| sd.reached(results)).unwrap();
    assert_eq!((finished.status, finished.samples, finished.time_ms), (RunStatus::Success, 32, reached));
    let report = check_log(&path, Ruleset::V5_0).unwrap();
    assert_eq!(report.verdict(true), Verdict::Pass, "{report}");
}

#[test]
fn results_come_from_a_file_or_from_the_logs() {
    let world = World::new();
    let figures = world.path("figures.jsonl");
    std::fs::write(
        &figures,
        "{\"samples\": 8, \"fid\": 95, \"clip\": 0.1}\n{\"samples\": 20, \"fid\": 85, \"clip\": 0.2}\n",
    )
    .unwrap();
    let file = format!("hooks.benchmark={{ every = 12, path = {figures:?} }}");
    let summary = world.train("file", &LineTask::default(), &[MLPERF, &file]).summary();
    assert_eq!(summary.samples_seen, 24, "the last figure at or before counts");
    let names = "hooks.benchmark={ every = 16, metrics = { fid = \"loss\", clip = \"squares\" } }";
    let never = MLPERF.replace("cache_cleared", "targets = { fid = -1 }, cache_cleared");
    world.train("names", &LineTask::default(), &[never.as_str(), names]).summary();
    let scores = log(&world, "names").scores();
    assert_eq!(scores.iter().map(|scores| scores.samples).collect::<Vec<_>>(), [16, 32, 48]);
    let losses: Vec<f64> =
        world.metrics("names").iter().filter_map(|line| line.get("benchmark/fid").copied()).collect();
    assert_eq!(scores.iter().map(|scores| scores.results[0].1).collect::<Vec<_>>(), losses);

    let refused = |run: &str, hook: &str, part: &str| {
        let error = world.train(run, &LineTask::default(), &[MLPERF, hook]).outcome.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused("nothing", "hooks.benchmark={ path = \"/nowhere.jsonl\" }", "/nowhere.jsonl: cannot be read");
    let late = "hooks.benchmark={ every = 8, figures = [{ samples = 9, fid = 1, clip = 1 }] }";
    refused("late", late, "the first evaluation is at 8 samples");
    let unknown = "hooks.benchmark={ every = 8, metrics = { fid = \"loss\", clip = \"clip/score\" } }";
    refused("unknown", unknown, "no number `clip/score`");
    std::fs::write(&figures, "{\"samples\": 8, \"fid\": 95}\n").unwrap();
    refused("half", &file, "figures.jsonl: the figure at 8 samples has no `clip`");
}
