//! Several processes of one run, over TCP.

use crate::common::{calotype, checkpoints, fail, finished, start, succeed, train_unet};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Any number of processes that divides 4 gives the same bits; one thread each, so that two do not wait for each other.
const SAME: [&str; 6] =
    ["distributed.reproducible=\"ranks\"", "optimizer.accumulate=4", "run.seed=4", "data.threads=1", "--threads", "1"];

/// Lets a command be one of a run's processes.
pub fn as_rank(command: &mut Command, rank: usize, world: usize, port: u16) {
    for (name, _) in std::env::vars() {
        let launchers = ["SLURM", "OMPI_", "PMI", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC"];
        if launchers.iter().any(|start| name.starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
        .env("CALOTYPE_RANK", rank.to_string())
        .env("CALOTYPE_WORLD_SIZE", world.to_string())
        .env("CALOTYPE_LOCAL_RANK", rank.to_string())
        .env("CALOTYPE_LOCAL_SIZE", world.to_string())
        .env("CALOTYPE_RENDEZVOUS", format!("127.0.0.1:{port}"))
        .env("CALOTYPE_HOST", "here");
}

/// Two processes of one run, ended with the test.
pub struct Pair(pub [Child; 2]);

impl Pair {
    fn train(out: &Path, overrides: &[&str]) -> Self {
        Self::of(|| train_unet(&finished().precached(), out, overrides))
    }

    /// Two processes of the same command.
    pub fn of(command: impl Fn() -> Command) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self([0, 1].map(|rank| {
            let mut command = command();
            as_rank(&mut command, rank, 2, port);
            start(&mut command)
        }))
    }

    /// Waits until both have ended: exit code and messages of each, and the time that it took.
    pub fn end(&mut self) -> ([(Option<i32>, String); 2], Duration) {
        let started = Instant::now();
        while self.0.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
            assert!(started.elapsed() < Duration::from_secs(300), "a process hangs");
            std::thread::sleep(Duration::from_millis(10));
        }
        let time = started.elapsed();
        let ends = self.0.each_mut().map(|child| {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            (child.wait().unwrap().code(), text)
        });
        (ends, time)
    }

    /// Waits until a checkpoint of at least `samples` is there.
    pub fn reach(&mut self, run: &Path, samples: u64) {
        let started = Instant::now();
        while checkpoints(run).last_key_value().is_none_or(|(newest, _)| *newest < samples) {
            let ended = self.0.iter_mut().any(|child| child.try_wait().unwrap().is_some());
            assert!(!ended, "a process ended before it had seen {samples} samples: {:?}", self.end());
            assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint of {samples} samples");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The lines of `metrics.jsonl` without what depends on the clock.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let of_clock = |name: &str| name.contains("second") || ["data_wait", "tflops"].contains(&name);
        value.as_object_mut().unwrap().retain(|name, _| !of_clock(name));
        value
    };
    text.lines().map(line).collect()
}

fn assert_same_run(run: &Path, alone: &Path) {
    let model = "model/unet/diffusion_pytorch_model.safetensors";
    assert!(fs::read(run.join(model)).unwrap() == fs::read(alone.join(model)).unwrap(), "{model} differs");
    let (ours, theirs) = (checkpoints(run), checkpoints(alone));
    assert!(ours.keys().eq(theirs.keys()));
    for (ours, theirs) in ours.values().zip(theirs.values()) {
        let tensors = |folder: &Path| fs::read(folder.join("tensors.safetensors")).unwrap();
        assert!(tensors(ours) == tensors(theirs), "the tensors of {} differ", ours.display());
    }
    assert_eq!(metrics(run), metrics(alone));
}

#[test]
fn two_processes_train_to_the_bits_of_one_and_one_of_them_speaks() {
    let folder = tempfile::tempdir().unwrap();
    let [alone, plain, sharded] = ["alone", "plain", "sharded"].map(|name| folder.path().join(name));
    let same = [&SAME[..], &["run.samples=64"]].concat();
    succeed(&mut train_unet(&finished().precached(), &alone, &same));
    for (run, more) in [(&plain, "distributed.shard_optimizer=false"), (&sharded, "distributed.shard_optimizer=true")] {
        let ([first, second], _) = Pair::train(run, &[&same[..], &[more]].concat()).end();
        assert_eq!((first.0, second.0), (Some(0), Some(0)), "{first:?} {second:?}");
        assert!(first.1.contains("64/64 samples") && first.1.contains("communication took"), "{}", first.1);
        assert_eq!(second.1, "", "one process speaks");
        assert_same_run(run, &alone);
        // A finished run is only read.
        let ([first, second], _) = Pair::train(run, &[&same[..], &[more]].concat()).end();
        assert_eq!((first.0, second.0), (Some(0), Some(0)), "{first:?} {second:?}");
    }
}

#[test]
fn a_killed_process_ends_the_other_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let [alone, killed] = ["alone", "killed"].map(|name| folder.path().join(name));
    let same = [&SAME[..], &["run.samples=400"]].concat();
    succeed(&mut train_unet(&finished().precached(), &alone, &same));
    for (victim, samples) in [(1, 64), (0, 176)] {
        let mut pair = Pair::train(&killed, &same);
        pair.reach(&killed, samples);
        // On Unix this is SIGKILL.
        pair.0[victim].kill().unwrap();
        let (ends, time) = pair.end();
        let (code, text) = &ends[1 - victim];
        assert!(time < Duration::from_secs(10), "{time:?}");
        assert_eq!((*code, ends[victim].0), (Some(1), None), "{ends:?}");
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        assert!(text.contains(&format!("error: rank {victim} on here died")), "{text}");
        assert!(text.contains("it goes on from its last checkpoint"), "{text}");
    }
    let mut pair = Pair::train(&killed, &same);
    let (ends, _) = pair.end();
    assert!(ends.iter().all(|(code, _)| *code == Some(0)), "{ends:?}");
    assert!(ends[0].1.contains("diffusion: resumed at "), "{ends:?}");
    assert_same_run(&killed, &alone);
}

#[test]
fn a_signal_to_one_process_stops_both_and_one_goes_on_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [alone, stopped] = ["alone", "stopped"].map(|name| folder.path().join(name));
    let same = [&SAME[..], &["run.samples=400"]].concat();
    succeed(&mut train_unet(&finished().precached(), &alone, &same));
    let mut pair = Pair::train(&stopped, &same);
    pair.reach(&stopped, 64);
    assert!(Command::new("kill").args(["-TERM", &pair.0[1].id().to_string()]).status().unwrap().success());
    let ([first, second], _) = pair.end();
    assert_eq!((first.0, second.0), (Some(130), Some(130)), "{first:?} {second:?}");
    assert!(first.1.contains("everything is saved; run the same command again to go on"), "{}", first.1);
    assert_eq!(second.1, "");
    succeed(&mut train_unet(&finished().precached(), &stopped, &same));
    assert_same_run(&stopped, &alone);
}

/// A classifier on made-up images. A key's bias has a gradient of rounding alone, which a larger epsilon keeps from being a step.
const CLASSIFIER: &str = "kind = \"vit\"\n[data]\npath = \"synthetic://24/bmp=bmp:16x16/cls=class:3\"\nthreads = 1\n\
    [model]\nimage_size = 16\npatch_size = 8\nchannels = 32\nmlp_channels = 64\nlayers = 2\nheads = 2\nlabels = 3\n\
    [optimizer]\nlearning_rate = 1e-3\neps = 1e-5\ngradient_clip = 1.0\n[ema]\nhalf_life = 8\n\
    [run]\nseed = 7\nsamples = 80\nbatch_size = 4\nprecision = \"f32\"\nlog_every = 4\ncheckpoint_every = 40\n";

#[test]
fn two_processes_compute_the_layers_of_one_network_and_one_goes_on_alone() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("classifier.toml");
    fs::write(&recipe, CLASSIFIER).unwrap();
    let [alone, both, parts] = ["alone", "both", "parts"].map(|name| folder.path().join(name));
    let train = |out: &Path, more: &[&str]| {
        let mut command =
            calotype(&["train", recipe.to_str().unwrap(), "--threads", "1", "--out", out.to_str().unwrap()]);
        command.args(more);
        command
    };
    let together = "distributed.tensor_parallel=2";
    succeed(&mut train(&alone, &[]));
    let ([first, second], _) = Pair::of(|| train(&both, &[together])).end();
    assert_eq!((first.0, second.0), (Some(0), Some(0)), "{first:?} {second:?}");
    assert!(first.1.contains("80/80 samples") && first.1.contains("communication took"), "{}", first.1);
    assert_eq!(second.1, "", "one process speaks");
    let losses = |run: &Path| -> Vec<f64> { metrics(run).iter().filter_map(|line| line["loss"].as_f64()).collect() };
    let near = |found: &[f64]| found.iter().zip(losses(&alone)).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(losses(&both).len() == 20 && near(&losses(&both)), "{:?} {:?}", losses(&both), losses(&alone));
    let files = |run: &Path| -> Vec<String> {
        let entries = fs::read_dir(run.join("model")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(files(&both), files(&alone));
    // The same run goes on with as many processes as there are.
    let ([first, _], _) = Pair::of(|| train(&parts, &[together, "run.samples=40"])).end();
    assert_eq!(first.0, Some(0), "{first:?}");
    succeed(&mut train(&parts, &["run.samples=80"]));
    assert!(losses(&parts).len() == 20 && near(&losses(&parts)), "{:?} {:?}", losses(&parts), losses(&alone));
}

#[test]
fn networks_that_cannot_be_shared_out_are_refused_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let ([first, second], _) = Pair::train(&run, &["distributed.tensor_parallel=2"]).end();
    assert_eq!((first.0, second.0), (Some(2), Some(2)), "{first:?} {second:?}");
    let expected =
        "recipe key `distributed.tensor_parallel`: is 2, and the network of a run of kind `diffusion` cannot";
    assert!(first.1.contains(expected) && first.1.matches("error: ").count() == 1, "{}", first.1);
    assert_eq!(second.1, "");
}

#[test]
fn an_error_of_all_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let ([first, second], _) = Pair::train(&run, &["run.batch_size=7"]).end();
    assert_eq!((first.0, second.0), (Some(2), Some(2)), "{first:?} {second:?}");
    let expected =
        "error: recipe key `run.batch_size`: 7 samples cannot be shared out to 2 processes; use a multiple of 2\n";
    assert!(first.1.ends_with(expected) && first.1.matches("error: ").count() == 1, "{}", first.1);
    assert_eq!(second.1, "");
}

#[test]
fn variables_that_do_not_fit_together_are_named() {
    let variables = |pairs: &[(&str, &str)]| {
        let mut command = calotype(&["train", crate::common::DIFFUSION, "--dry-run"]);
        command.envs(pairs.iter().copied());
        command
    };
    let rank = ("CALOTYPE_RANK", "1");
    fail(&mut variables(&[rank]), 2, &["CALOTYPE_RANK=1", "CALOTYPE_WORLD_SIZE"]);
    fail(&mut variables(&[("CALOTYPE_RANK", "one")]), 2, &["CALOTYPE_RANK is `one`", "a whole number"]);
    let mut all = vec![rank, ("CALOTYPE_WORLD_SIZE", "2"), ("CALOTYPE_LOCAL_RANK", "1"), ("CALOTYPE_LOCAL_SIZE", "2")];
    fail(&mut variables(&all), 2, &["nothing says where rank 0 is", "CALOTYPE_RENDEZVOUS=host:port"]);
    all.extend([("RANK", "0"), ("WORLD_SIZE", "2")]);
    fail(&mut variables(&all), 2, &["disagree", "RANK=0"]);
    all[4] = ("CALOTYPE_TRANSPORT", "udp");
    fail(&mut variables(&all), 2, &["CALOTYPE_TRANSPORT", "tcp, mpi"]);
}
