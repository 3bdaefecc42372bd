//! `data precache`: killed, shared out, and refused.

use crate::common::{calotype, fail, finished, start, succeed, text};
use calotype_kernels::{Purpose, Stream};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Seed of the moments at which the stage is killed. Any other will do.
const KILL_SEED: u64 = 7_301;

fn precache(out: &Path, more: &[&str]) -> Command {
    let run = finished().out();
    let path = |key: &str, path: &Path| format!("{key}={:?}", text(path));
    let mut command = calotype(&["data", "precache", "data/precache/quickstart", "shard_samples=10", "batch_size=4"]);
    command
        .arg(path("source", &finished().pictures()))
        .arg(path("out", out))
        .arg(path("encoders.moments.model", &run.join("autoencoder/model")))
        .arg(path("encoders.states.model", &run.join("clip/model")))
        .args(["resolution=32"])
        .args(more);
    command
}

/// All files of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn shards(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "tar")).count()
}

#[test]
fn killed_at_random_moments_and_shared_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ended = succeed(&mut precache(&at("undisturbed"), &[]));
    assert!(ended.stdout.contains("the dataset is complete"), "{ended}");
    let expected = files(&at("undisturbed"));
    let count = shards(&at("undisturbed"));
    assert!(count >= 10, "{count} shards");

    let mut random = Stream::new(KILL_SEED, Purpose::Noise, 0);
    let killed = at("killed");
    for kill in 0..5 {
        let wanted = kill * count / 6;
        let mut child = start(&mut precache(&killed, &[]));
        let started = Instant::now();
        while shards(&killed) < wanted && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(120), "no {wanted} shards");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.below(30)));
        // On Unix this is SIGKILL. A run that has ended already is none of the five, and harms nothing.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeed(&mut precache(&killed, &[]));
    assert!(files(&killed) == expected, "{:?}", files(&killed).keys());

    let shared = at("shared");
    let mut children: Vec<_> = ["2", "0", "1"]
        .into_iter()
        .map(|id| start(&mut precache(&shared, &["--task-id", id, "--task-count", "3"])))
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert!(files(&shared) == expected, "{:?}", files(&shared).keys());
    let again = succeed(&mut precache(&shared, &["--task-count", "3", "--tasks", "0-1"]));
    assert!(again.stdout.contains("were there already"), "{again}");
}

#[test]
fn refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fail(&mut precache(&out, &["--task-id", "3", "--task-count", "3"]), 2, &["task 3 of 3"]);
    fail(&mut precache(&out, &["encoders.states.modle=1"]), 2, &["encoders.states.modle", "model"]);
    fail(&mut precache(&out, &["encoders.moments.without_padding=true"]), 2, &["`moments`", "without_padding"]);
    fail(&mut precache(&out, &["encoders.moments.model=/nowhere"]), 1, &["/nowhere"]);
    succeed(&mut precache(&out, &[]));
    fail(&mut precache(&out, &["encoders.states.dtype=f32"]), 1, &["was encoded by", "this run needs"]);
}
