//! Logs as they are written, and as interrupted runs leave them.

use crate::cases::{Run, fid_and_clip, flux, log_of, settings, stable_diffusion, submission, write_run};
use calotype_mlperf::*;
use std::fs;
use std::path::Path;

/// Keys, values and metadata without what differs from run to run: times and places of the source.
fn timeless(log: &str) -> Vec<String> {
    let log = Log::parse(Path::new("log"), log.as_bytes());
    let line = |(_, line): (usize, &Line)| {
        let Value::Object(metadata) = &line.metadata else { panic!("no metadata") };
        let mut metadata: Vec<_> =
            metadata.iter().filter(|(name, _)| name != "file" && name != "lineno").cloned().collect();
        metadata.sort_by(|(a, _), (b, _)| a.cmp(b));
        format!("{} {} {}", line.key, line.value, Value::Object(metadata))
    };
    log.lines().map(line).collect()
}

#[test]
fn lines_stand_in_the_references_order() {
    let run = Run { evaluations: vec![fid_and_clip(512_000, 240.31, 0.0704)], ..stable_diffusion(1_024_000) };
    let log = log_of(&Run { status: RunStatus::Aborted, ..run });
    assert_eq!(
        timeless(&log),
        [
            "cache_clear true {}",
            "submission_benchmark \"stable_diffusion\" {}",
            "submission_division \"closed\" {}",
            "submission_org \"Calotype\" {}",
            "submission_platform \"box\" {}",
            "submission_status \"onprem\" {}",
            "init_start null {}",
            "seed 7 {}",
            "train_samples 6513144 {}",
            "eval_samples 30000 {}",
            "gradient_accumulation_steps 1 {}",
            "global_batch_size 512 {}",
            "init_stop null {}",
            "opt_name \"adamw\" {}",
            "opt_adamw_beta_1 0.9 {}",
            "opt_adamw_beta_2 0.999 {}",
            "opt_adamw_epsilon 1e-8 {}",
            "opt_adamw_weight_decay 0.01 {}",
            "opt_base_learning_rate 0.00011776 {}",
            "opt_learning_rate_warmup_steps 1000 {}",
            "run_start null {}",
            "block_start \"training_step\" {\"samples_count\": 0}",
            "loss 0.25 {\"samples_count\": 512000}",
            "lr_abs 0.0001 {\"samples_count\": 512000}",
            "block_stop \"training_step\" {\"samples_count\": 512000}",
            "eval_start 512000 {\"samples_count\": 512000}",
            "eval_accuracy 240.31 {\"metric\": \"FID\", \"samples_count\": 512000}",
            "eval_accuracy 0.0704 {\"metric\": \"CLIP\", \"samples_count\": 512000}",
            "eval_stop 512000 {\"samples_count\": 512000}",
            "run_stop null {\"samples_count\": 512000, \"status\": \"aborted\"}",
        ]
    );
    let first = log.lines().nth(6).unwrap();
    let expected = ":::MLLOG {\"namespace\": \"\", \"time_ms\": 1700000010500, \"event_type\": \"INTERVAL_START\", \
                    \"key\": \"init_start\", \"value\": null, \"metadata\": {\"file\": \"crates/mlperf/tests/it/cases/mod.rs\", \"lineno\": ";
    assert!(first.starts_with(expected), "{first}");
    let event = |key: &str| {
        let line = log.lines().find(|line| line.contains(&format!("\"key\": \"{key}\""))).unwrap();
        ["POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"].into_iter().find(|event| line.contains(event)).unwrap()
    };
    for key in ["init", "run", "block", "eval"] {
        assert_eq!((event(&format!("{key}_start")), event(&format!("{key}_stop"))), ("INTERVAL_START", "INTERVAL_END"));
    }
    assert_eq!(
        (event("seed"), event("eval_accuracy"), event("loss")),
        ("POINT_IN_TIME", "POINT_IN_TIME", "POINT_IN_TIME")
    );
}

#[test]
fn what_flux_adds_stands_beside_it() {
    let lines = timeless(&log_of(&Run { disclosed: true, division: Division::Open, ..flux(8_388_608) }));
    for line in [
        "evaluation_frequency 262144 {}",
        "lowest_numerical_precision_in_comm \"fp32\" {}",
        "micro_batch_size 8 {}",
        "config_filename \"recipe.toml\" {}",
        "opt_gradient_clip_norm 1.0 {}",
        "eval_accuracy 0.5859 {\"samples_count\": 8388608}",
        "averaged_validation_loss 0.5859 {\"samples_count\": 8388608}",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}");
    }
}

/// A run of a few blocks that is killed behind any of its lines, with a checkpoint behind each block, and goes on.
#[test]
fn an_interrupted_run_leaves_the_lines_of_an_uninterrupted_one() {
    let run = stable_diffusion(1_024_000);
    let whole = log_of(&run);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mlperf_compliance.log");
    let go_on = |from: u64| {
        let mut log = LogWriter::open(&path, &submission(&run), from).unwrap();
        log.init_start(true).unwrap();
        log.init_stop(&settings(&run)).unwrap();
        log.run_start().unwrap();
        for scores in run.evaluations.iter().filter(|scores| scores.samples >= from) {
            if scores.samples > from {
                log.block_start(scores.samples - 512_000).unwrap();
                log.training(scores.samples, 0.25, 1e-4).unwrap();
                log.block_stop(scores.samples).unwrap();
            }
            if log.evaluated(scores.samples) {
                continue;
            }
            log.eval_start(scores.samples).unwrap();
            scores.results.iter().for_each(|(metric, value)| log.eval_accuracy(*metric, *value).unwrap());
            log.eval_stop().unwrap();
        }
        log.run_stop(RunStatus::Success, 1_024_000).unwrap();
    };
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    for killed in 0..=lines.len() {
        let kept = lines[..killed].concat();
        let cut = lines.get(killed).map_or("", |line| &line[..line.len() / 2]);
        let blocks: Vec<_> = timeless(&kept).into_iter().filter(|line| line.starts_with("block_stop")).collect();
        let ended = |samples: u64| blocks.iter().any(|line| line.ends_with(&format!(" {samples}}}")));
        let from = [1_024_000, 512_000].into_iter().find(|samples| ended(*samples)).unwrap_or(0);
        fs::write(&path, format!("{kept}{cut}")).unwrap();
        go_on(from);
        assert_eq!(timeless(&fs::read_to_string(&path).unwrap()), timeless(&whole), "killed behind line {killed}");
    }
}

#[test]
fn epochs_stand_in_for_blocks() {
    let run = stable_diffusion(1_024_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut log = LogWriter::open(&path, &submission(&run), 0).unwrap();
    log.init_start(true).unwrap();
    log.init_stop(&settings(&run)).unwrap();
    log.run_start().unwrap();
    for (epoch, scores) in (1..).zip(&run.evaluations) {
        log.epoch_start(epoch, scores.samples - 512_000).unwrap();
        log.epoch_start(epoch, scores.samples).unwrap();
        log.epoch_stop(epoch, scores.samples).unwrap();
        log.epoch_stop(epoch, scores.samples).unwrap();
        log.eval_start(scores.samples).unwrap();
        scores.results.iter().for_each(|(metric, value)| log.eval_accuracy(*metric, *value).unwrap());
        log.eval_stop().unwrap();
    }
    log.run_stop(RunStatus::Success, 1_024_000).unwrap();
    for ruleset in [Ruleset::V4_0, Ruleset::V4_1, Ruleset::V5_0] {
        assert_eq!(check_log(&path, ruleset).unwrap(), Report::default());
    }
    let lines = timeless(&fs::read_to_string(&path).unwrap());
    assert!(lines.contains(&"epoch_stop null {\"epoch_num\": 2, \"samples_count\": 1024000}".to_owned()));
    assert_eq!(lines.iter().filter(|line| line.starts_with("epoch_")).count(), 4);
}

#[test]
fn an_open_block_goes_on() {
    let run = stable_diffusion(1_024_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let open = |samples| LogWriter::open(&path, &submission(&run), samples).unwrap();
    let mut log = open(0);
    log.init_start(false).unwrap();
    log.init_stop(&settings(&run)).unwrap();
    log.run_start().unwrap();
    log.block_start(0).unwrap();
    log.block_start(10).unwrap();
    log.training(100, f64::NAN, 0.0).unwrap();
    log.training(200, 0.5, 0.0).unwrap();
    drop(log);
    let mut log = open(100);
    log.block_start(100).unwrap();
    log.block_stop(300).unwrap();
    log.block_stop(400).unwrap();
    log.other("tracked_stats", Value::Object(vec![("throughput".to_owned(), Value::from(2.5))]), 300).unwrap();
    let lines = timeless(&fs::read_to_string(&path).unwrap());
    assert_eq!(
        lines[lines.len() - 5..],
        [
            "block_start \"training_step\" {\"samples_count\": 0}",
            "loss NaN {\"samples_count\": 100}",
            "lr_abs 0.0 {\"samples_count\": 100}",
            "block_stop \"training_step\" {\"samples_count\": 300}",
            "tracked_stats {\"throughput\": 2.5} {\"samples_count\": 300}",
        ]
    );
}

#[test]
fn a_block_begins_only_if_training_goes_on() {
    let run = stable_diffusion(1_024_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut log = LogWriter::open(&path, &submission(&run), 0).unwrap();
    assert!(log.block_follows(0).unwrap_err().to_string().contains("before `run_start`"));
    log.init_start(false).unwrap();
    log.init_stop(&settings(&run)).unwrap();
    log.run_start().unwrap();
    log.block_follows(0).unwrap();
    log.training(512, 0.5, 0.0).unwrap();
    log.block_stop(512).unwrap();
    log.block_follows(512).unwrap();
    log.block_stop(512).unwrap();
    log.block_stop(1024).unwrap();
    log.eval_start(1024).unwrap();
    log.eval_accuracy(Metric::Fid, 80.0).unwrap();
    log.eval_accuracy(Metric::Clip, 0.2).unwrap();
    log.eval_stop().unwrap();
    log.block_follows(1024).unwrap();
    log.run_stop(RunStatus::Success, 1024).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let blocks: Vec<_> = timeless(&text).into_iter().filter(|line| line.starts_with("block")).collect();
    assert_eq!(
        blocks,
        [
            "block_start \"training_step\" {\"samples_count\": 0}",
            "block_stop \"training_step\" {\"samples_count\": 512}",
            "block_start \"training_step\" {\"samples_count\": 512}",
            "block_stop \"training_step\" {\"samples_count\": 1024}",
        ]
    );
    let log = Log::read(&path).unwrap();
    assert_eq!(log.scores(), [fid_and_clip(1024, 80.0, 0.2)]);
    assert_eq!((log.benchmark(), log.said("submission_org")), (Some(Benchmark::StableDiffusion), Some("Calotype")));
}

#[test]
fn lines_of_a_launcher_stay() {
    let run = stable_diffusion(1_024_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let launcher =
        "STARTING TIMING RUN\n:::MLLOG {\"time_ms\": 1, \"key\": \"cache_clear\", \"value\": true, \"metadata\": {}}\n";
    fs::write(&path, launcher).unwrap();
    for _ in 0..2 {
        write_run(&path, &run).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(launcher));
        assert_eq!((text.matches("cache_clear").count(), text.matches("\"run_stop\"").count()), (1, 1));
        assert_eq!(check_log(&path, Ruleset::V5_0).unwrap().verdict(true), Verdict::Pass);
    }
}

#[test]
fn what_cannot_be_continued_is_refused_and_stays_as_it_is() {
    let run = stable_diffusion(1_024_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    for (content, part) in [
        ("", "has no `run_start`, although the run has seen 512 samples"),
        ("words\n", "has no `run_start`"),
        (":::MLLOG {\"time\n", "line 1: `{\"time` is not JSON"),
        ("a\n:::MLLOG []\n", "line 2: `[]` is not a JSON object"),
    ] {
        fs::write(&path, content).unwrap();
        let error = LogWriter::open(&path, &submission(&run), 512).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("log"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    let nameless = Submission { org: String::new(), ..submission(&run) };
    let error = LogWriter::open(&path, &nameless, 0).unwrap_err().to_string();
    assert!(error.contains("`org` of the submission is empty"), "{error}");
    let error = LogWriter::open(folder.path(), &submission(&run), 0).unwrap_err().to_string();
    assert!(error.contains("cannot read it"), "{error}");
}

#[test]
fn a_log_that_is_not_the_runs_own_is_refused_and_stays_as_it_is() {
    let run = stable_diffusion(1_024_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let whole = log_of(&run);
    // As a run leaves it that is stopped behind its first evaluation.
    let stopped: Vec<&str> = whole.split_inclusive('\n').take_while(|line| !line.contains("1024000")).collect();
    let without = |numbers: std::ops::Range<usize>| {
        let kept = stopped.iter().enumerate().filter(|(number, _)| !numbers.contains(number));
        kept.map(|(_, line)| *line).collect::<String>()
    };
    let all = without(0..0);
    let go_on = |run: &Run| {
        let mut log = LogWriter::open(&path, &submission(run), 512_000)?;
        log.init_start(true)?;
        log.init_stop(&settings(run))
    };
    for (content, part) in [
        (all.repeat(2), "line 51: another run begins here".replace("51", &(stopped.len() + 21).to_string())),
        (without(2..8), "has no `init_start`".to_owned()),
        (without(12..13), "has no `init_stop`".to_owned()),
        (without(2..3), "`submission_division` is absent there, and \"closed\" now".to_owned()),
        (without(7..8), "`seed` is absent there, and 7 now".to_owned()),
        (without(14..15), "`opt_adamw_beta_1` is absent there, and logged by every run now".to_owned()),
        (
            all.replace("\"value\": \"Calotype\"", "\"value\": \"other\""),
            "`submission_org` is \"other\" there".to_owned(),
        ),
    ] {
        fs::write(&path, &content).unwrap();
        let error = go_on(&run).unwrap_err().to_string();
        assert!(error.contains(&part) && error.contains("bring back the log"), "{part}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    fs::write(&path, &all).unwrap();
    let error = go_on(&Run { seed: 8, ..run.clone() }).unwrap_err().to_string();
    assert!(error.contains("`seed` is 7 there, and 8 now"), "{error}");
    go_on(&run).unwrap();
    // Two whole ones are told, and not ended.
    fs::write(&path, whole.repeat(2)).unwrap();
    let report = check_log(&path, Ruleset::V5_0).unwrap().to_string();
    assert!(report.contains("the lines of 2 runs are in this log"), "{report}");
    let error = finish_offline(&path, &[fid_and_clip(512_000, 80.0, 0.2)], official).unwrap_err().to_string();
    assert!(error.contains("another run begins here"), "{error}");
}

#[test]
fn lines_out_of_order_are_refused() {
    let run = stable_diffusion(1_024_000);
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(&folder.path().join("a/log"), &submission(&run), 0).unwrap();
    let said = |outcome: Result<(), LogError>| outcome.unwrap_err().to_string();
    assert!(said(log.init_stop(&settings(&run))).contains("`init_stop` cannot be logged before `init_start`"));
    log.init_start(true).unwrap();
    assert!(said(log.run_start()).contains("before `init_stop`"));
    assert!(said(log.block_start(0)).contains("before `run_start`"));
    log.init_stop(&settings(&run)).unwrap();
    log.run_start().unwrap();
    assert!(said(log.eval_accuracy(Metric::Fid, 1.0)).contains("outside of an evaluation"));
    log.eval_start(5).unwrap();
    assert!(said(log.eval_start(6)).contains("within the evaluation at 5 samples"));
    assert!(said(log.run_stop(RunStatus::Success, 6)).contains("within the evaluation at 5 samples"));
    log.eval_stop().unwrap();
    assert!(log.evaluated(5) && !log.evaluated(6));
    log.run_stop(RunStatus::Aborted, 6).unwrap();
    assert!(said(log.training(7, 0.0, 0.0)).contains("after `run_stop`"));
    assert!(said(log.run_stop(RunStatus::Success, 7)).contains("after `run_stop`"));
}

/// A log of training alone, whose checkpoints are evaluated afterwards.
fn trained(path: &Path, run: &Run) {
    write_run(path, &Run { evaluations: Vec::new(), ..run.clone() }).unwrap();
    let mut log = LogWriter::open(path, &submission(run), 0).unwrap();
    log.init_start(true).unwrap();
    log.init_stop(&settings(run)).unwrap();
    log.run_start().unwrap();
    for samples in (1..=5).map(|block| 512_000 * block) {
        log.block_start(samples - 512_000).unwrap();
        log.block_stop(samples).unwrap();
    }
    log.sync().unwrap();
}

fn official(results: &[(Metric, f64)]) -> bool {
    Benchmark::StableDiffusion.reached(results)
}

#[test]
fn kept_checkpoints_end_a_run_when_it_reached_them() {
    let run = stable_diffusion(2_048_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    trained(&path, &run);
    let reached = Log::read(&path).unwrap().reached(2_048_000).unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap() + ":::MLLOG {\"cut").unwrap();
    let scores =
        [fid_and_clip(2_560_000, 70.0, 0.18), fid_and_clip(1_536_000, 95.0, 0.14), fid_and_clip(2_048_000, 85.0, 0.16)];
    let finished = finish_offline(&path, &scores, official).unwrap();
    assert_eq!(finished, Finished { status: RunStatus::Success, samples: 2_048_000, time_ms: reached });
    let report = check_log(&path, Ruleset::V5_0).unwrap();
    assert_eq!(report, Report::default(), "{report}");
    let lines = timeless(&fs::read_to_string(&path).unwrap());
    let evaluated: Vec<_> = lines.iter().filter(|line| line.starts_with("eval_start")).collect();
    assert_eq!(evaluated.len(), 3);
    assert!(evaluated[0].starts_with("eval_start 1536000"));
    assert_eq!(lines.last().unwrap(), "run_stop null {\"samples_count\": 2048000, \"status\": \"success\"}");
    let before = fs::read(&path).unwrap();
    let error = finish_offline(&path, &scores, official).unwrap_err().to_string();
    assert!(error.contains("the run has ended already") && fs::read(&path).unwrap() == before, "{error}");
}

#[test]
fn scores_that_end_no_run_are_refused() {
    let run = stable_diffusion(2_048_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let missed = [fid_and_clip(512_000, 300.0, 0.05), fid_and_clip(1_024_000, 160.0, 0.1)];
    trained(&path, &run);
    assert_eq!(finish_offline(&path, &missed, official).unwrap().status, RunStatus::Aborted);
    let half = Scores { samples: 512_000, results: vec![(Metric::Fid, 80.0)] };
    trained(&path, &run);
    let easier = finish_offline(&path, &missed, |results| results[0].1 <= 200.0).unwrap();
    assert_eq!((easier.status, easier.samples), (RunStatus::Success, 1_024_000));
    for (scores, part) in [
        (vec![], "without scores"),
        (vec![half], "FID and CLIP are needed for each checkpoint"),
        (vec![fid_and_clip(512_000, 80.0, 0.2), fid_and_clip(512_000, 80.0, 0.2)], "twice at 512000 samples"),
        (vec![fid_and_clip(500_000, 80.0, 0.2)], "training logged no `block_stop` there"),
        (vec![fid_and_clip(500_000, 80.0, 0.2)], "; it did at 512000, 1024000, 1536000, 2048000, 2560000"),
    ] {
        trained(&path, &run);
        let before = fs::read(&path).unwrap();
        let error = finish_offline(&path, &scores, official).unwrap_err().to_string();
        assert!(error.contains(part) && fs::read(&path).unwrap() == before, "{error}");
    }
    fs::write(&path, "nothing\n").unwrap();
    assert!(finish_offline(&path, &missed, official).unwrap_err().to_string().contains("no run has begun"));
    assert!(
        finish_offline(&folder.path().join("none"), &missed, official)
            .unwrap_err()
            .to_string()
            .contains("cannot read it")
    );
}
