//! A run that was killed or stopped and started again ends in the same bits as one that was left alone.

use crate::common::{checkpoints, finished, start, succeed, train_unet};
use calotype_core::{Purpose, Stream};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const SAMPLES: u64 = 800;
const RUN: [&str; 2] = ["run.samples=800", "run.seed=3"];
/// Seed of the moments at which runs are killed. Any other will do: the results must not depend on them.
const KILL_SEED: u64 = 20_260;

fn train(out: &Path) -> Command {
    train_unet(&finished().precached(), out, &RUN)
}

/// Waits until a checkpoint of at least `samples` is there; false if the process ends before.
fn reached(child: &mut Child, run: &Path, samples: u64) -> bool {
    let started = Instant::now();
    while samples > 0 && checkpoints(run).last_key_value().is_none_or(|(newest, _)| *newest < samples) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint of {samples} samples");
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The lines of `metrics.jsonl` without what depends on the clock.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        for field in ["seconds", "images_per_second", "images_per_second_per_device", "data_wait", "tflops"] {
            assert!(value.as_object_mut().unwrap().remove(field).is_some(), "{line}");
        }
        value
    };
    text.lines().map(line).collect()
}

fn json_without_seconds(path: &Path) -> Value {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("seconds");
    value
}

/// Everything that a finished run leaves, but for times.
fn assert_same_run(run: &Path, undisturbed: &Path) {
    for file in ["model/unet/diffusion_pytorch_model.safetensors", "model/model_index.json", "recipe.toml"] {
        assert!(fs::read(run.join(file)).unwrap() == fs::read(undisturbed.join(file)).unwrap(), "{file} differs");
    }
    let (ours, theirs) = (checkpoints(run), checkpoints(undisturbed));
    assert_eq!(ours.last_key_value().unwrap().0, &SAMPLES);
    assert!(ours.keys().eq(theirs.keys()));
    for (ours, theirs) in ours.values().zip(theirs.values()) {
        let tensors = |folder: &Path| fs::read(folder.join("tensors.safetensors")).unwrap();
        assert!(tensors(ours) == tensors(theirs), "the tensors of {} differ", ours.display());
        let state = |folder: &Path| json_without_seconds(&folder.join("state.json"));
        assert_eq!(state(ours), state(theirs));
    }
    assert_eq!(metrics(run), metrics(undisturbed));
    assert_eq!(json_without_seconds(&run.join("result.json")), json_without_seconds(&undisturbed.join("result.json")));
}

/// Moments of the five kills: a fifth of the run each, anywhere in it, and up to 40 ms after the checkpoint there. Saves
/// are so frequent here that some kills hit one.
fn kills() -> Vec<(u64, Duration)> {
    let mut random = Stream::new(KILL_SEED, Purpose::Noise, 0);
    let part = SAMPLES / 5;
    let mut moment = |kill: u64| {
        let samples = kill * part + random.below(part * 3 / 4);
        (samples, Duration::from_millis(random.below(40)))
    };
    (0..5).map(&mut moment).collect()
}

#[test]
fn killed_at_random_moments_and_stopped_by_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    succeed(&mut train(&at("undisturbed")));

    let killed = at("killed");
    for (number, (samples, delay)) in kills().into_iter().enumerate() {
        println!("kill {}: {delay:?} after the checkpoint of {samples} samples, seed {KILL_SEED}", number + 1);
        let mut child = start(&mut train(&killed));
        assert!(reached(&mut child, &killed, samples), "the run ended before it could be killed");
        std::thread::sleep(delay);
        // On Unix this is SIGKILL.
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "the run ended before it could be killed");
    }
    succeed(&mut train(&killed));
    assert_same_run(&killed, &at("undisturbed"));

    let stopped = at("stopped");
    for (signal, samples) in [("-TERM", SAMPLES / 4), ("-INT", SAMPLES / 2)] {
        let mut child = start(&mut train(&stopped));
        assert!(reached(&mut child, &stopped, samples));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
        assert!(stderr.contains("everything is saved; run the same command again to go on"), "{stderr}");
        let at = checkpoints(&stopped).last_key_value().map(|(samples, _)| *samples).unwrap();
        assert!(stderr.contains(&format!("stopped after {at} samples")), "{stderr}");
        assert!(!stopped.join("model").exists());
    }
    let resumed = succeed(&mut train(&stopped));
    assert!(resumed.stderr.contains("diffusion: resumed at "), "{resumed}");
    assert_same_run(&stopped, &at("undisturbed"));
}

#[test]
fn saving_memory_changes_no_bit_killed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let [plain, saving] = ["plain", "saving"].map(|name| folder.path().join(name));
    let unclipped = [RUN[0], RUN[1], "optimizer.gradient_clip=0"];
    succeed(&mut train_unet(&finished().precached(), &plain, &unclipped));
    let memory = ["optimizer.in_backward=true", "memory.recompute_blocks=true"];
    let train = || train_unet(&finished().precached(), &saving, &[&unclipped[..], &memory[..]].concat());
    let mut child = start(&mut train());
    assert!(reached(&mut child, &saving, SAMPLES / 3), "the run ended before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(&mut train());
    let bytes = |run: &Path| fs::read(run.join("model/unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(bytes(&plain) == bytes(&saving), "the models differ");
    assert_eq!(metrics(&plain), metrics(&saving));
    let tensors = |run: &Path| {
        let newest = checkpoints(run).pop_last().unwrap().1;
        fs::read(newest.join("tensors.safetensors")).unwrap()
    };
    assert!(tensors(&plain) == tensors(&saving), "the optimizers' states differ");
}
