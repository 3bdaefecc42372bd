//! A ViT's run with all that is random in it, by one process and by several, and its model in use.

use crate::common::{calotype, checkpoints, succeed};
use crate::ranks::{Pair, metrics};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A mini run of 100 steps; any number of processes that divides 4 gives the same bits.
fn train(out: &Path, more: &[&str]) -> Command {
    let mut command = calotype(&["train", "training/vit/b_16_mini", "run.samples=1600", "run.log_every=16"]);
    command.args(["run.checkpoint_every=32", "run.keep_checkpoints=2", "hooks.evaluate.every=800", "data.threads=1"]);
    command.args(["distributed.reproducible=\"ranks\"", "optimizer.accumulate=4", "model.drop_path=0.2"]);
    command.args(["objective.mix={ mixup = 0.8, cutmix = 1.0 }", "ema={ name = \"constant\", decay = 0.9 }"]);
    command.args(["run.seed=4", "--threads", "1"]).args(more).arg("--out").arg(out);
    command
}

fn assert_same_run(run: &Path, alone: &Path) {
    let model = "model/model.safetensors";
    assert!(fs::read(run.join(model)).unwrap() == fs::read(alone.join(model)).unwrap(), "{model} differs");
    let tensors = |run: &Path| {
        let newest = checkpoints(run).last_key_value().map(|(_, folder)| folder.join("tensors.safetensors"));
        fs::read(newest.unwrap()).unwrap()
    };
    assert!(tensors(run) == tensors(alone), "the last checkpoints differ");
    assert_eq!(metrics(run), metrics(alone));
}

/// Augmentations, mixing, dropout and stochastic depth are functions of positions: neither the number of processes nor a kill leaves
/// a trace.
#[test]
fn two_processes_that_were_killed_end_with_the_bits_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let [alone, killed] = ["alone", "killed"].map(|name| folder.path().join(name));
    succeed(&mut train(&alone, &[]));
    let mut pair = Pair::of(|| train(&killed, &[]));
    pair.reach(&killed, 64);
    // On Unix this is SIGKILL.
    pair.0[1].kill().unwrap();
    let (ends, _) = pair.end();
    assert_eq!(ends[0].0, Some(1), "{ends:?}");
    let (ends, _) = Pair::of(|| train(&killed, &[])).end();
    assert!(ends.iter().all(|(code, _)| *code == Some(0)), "{ends:?}");
    assert!(ends[0].1.contains("vit: resumed at "), "{ends:?}");
    assert_same_run(&killed, &alone);

    // What it ends with classifies pictures.
    let picture = folder.path().join("picture.png");
    let png = calotype_data::emoji::render(&calotype_data::emoji::pairs()[0], [215, 25, 30], 128).unwrap();
    fs::write(&picture, png.encode_png(calotype_data::image::PngEffort::Fast).unwrap()).unwrap();
    let found = succeed(calotype(&["classify"]).arg(alone.join("model")).arg(&picture).args(["--top", "8"]));
    for class in ["red", "orange", "yellow", "green", "blue", "purple", "white", "black"] {
        assert!(found.stdout.contains(class), "{found}");
    }
}
