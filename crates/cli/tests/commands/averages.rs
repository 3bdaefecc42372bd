//! Averages that are made after the run, and moments in 8 bits: from the outside, killed and resumed.

use crate::common::{calotype, checkpoints, fail, finished, start, succeed, text, train_unet, wait_until};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const POST_HOC: [&str; 5] = [
    "run.samples=384",
    "ema.name=post_hoc",
    "ema.snapshot_every=64",
    "optimizer.state=\"8bit\"",
    "optimizer.schedule.name=constant",
];

fn train(out: &Path) -> Command {
    train_unet(&finished().precached(), out, &POST_HOC)
}

fn ema(run: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = calotype(&["ema"]);
    command.arg(run).arg("--out").arg(out).args(more);
    command
}

fn unet_of(model: &Path) -> Vec<u8> {
    fs::read(model.join("unet/diffusion_pytorch_model.safetensors")).unwrap()
}

/// The tensors of all snapshots of a run, by folder.
fn snapshots(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(run.join("averages")).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let complete = named.filter(|(name, _)| name.starts_with("average-"));
    complete.map(|(name, path)| (name, fs::read(path.join("tensors.safetensors")).unwrap())).collect()
}

#[test]
fn averages_of_any_width_are_made_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let run = at("run");
    succeed(&mut train(&run));
    assert_eq!(snapshots(&run).len(), 6);
    let told = succeed(&mut ema(&run, &at("wide"), &["--sigma-rel", "0.12"])).stdout;
    assert!(told.contains("after 384 samples, a sum of 6 snapshots"), "{told}");
    let told = succeed(&mut ema(&run, &at("early"), &["--sigma-rel", "0.12", "--at", "192"])).stdout;
    assert!(told.contains("after 192 samples, a sum of 3 snapshots"), "{told}");
    // The snapshots know nothing of the 8 samples behind the third one.
    let far = ["--sigma-rel", "0.12", "--at", "200"];
    fail(&mut ema(&run, &at("far"), &far), 2, &["--sigma-rel 0.12 --at 200", "% off", "choose --at 192"]);
    assert!(!at("far").exists());
    let [own, wide, early] = [run.join("model"), at("wide"), at("early")].map(|model| unet_of(&model));
    assert!(own.len() == wide.len() && own != wide && wide != early);
    // The model is a pipeline as the run's own.
    assert!(at("wide").join("model_index.json").is_file() == run.join("model/model_index.json").is_file());

    fail(&mut ema(&run, &at("wide"), &["--sigma-rel", "0.12"]), 2, &["choose another folder"]);
    let file = run.join("recipe.toml/x");
    fail(&mut ema(&run, &file, &["--sigma-rel", "0.12"]), 2, &["recipe.toml is no folder"]);
    fail(&mut ema(&run, &at("new"), &["--sigma-rel", "0.5"]), 2, &["--sigma-rel 0.5", "below 0.2887"]);
    fail(&mut ema(&run, &at("new"), &["--sigma-rel", "0.1", "--at", "9"]), 2, &["--at 9", "64 to 384"]);
    fail(&mut ema(&at("wide"), &at("new"), &["--sigma-rel", "0.1"]), 2, &["is no training run"]);
    fail(&mut ema(&at("nowhere"), &at("new"), &["--sigma-rel", "0.1"]), 2, &["nowhere does not exist"]);
    let snapshot = run.join("averages").join(snapshots(&run).into_keys().next().unwrap());
    let told = succeed(calotype(&["inspect"]).arg(&snapshot)).stdout;
    assert!(told.contains("a snapshot of a run's averages") && told.contains("calotype ema "), "{told}");
    let init = format!("init_from={:?}", text(&snapshot));
    let parts = ["is a snapshot of averages and no checkpoint", "calotype ema "];
    fail(&mut train_unet(&finished().precached(), &at("from"), &[&init]), 2, &parts);
    let without = finished().out().join("diffusion");
    fail(&mut ema(&without, &at("new"), &["--sigma-rel", "0.1"]), 2, &[text(&without), "post_hoc"]);
    assert!(!at("new").exists());
}

#[test]
fn a_checkpoints_model_has_the_weights_that_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let run = at("run");
    succeed(&mut train(&run));
    let export = |out: &Path, more: &[&str]| {
        let mut command = calotype(&["export"]);
        command.arg(&run).arg("--out").arg(out).args(more);
        command
    };
    let told = succeed(&mut export(&at("usual"), &[])).stdout;
    assert!(told.contains("the average of the weights after 384 samples"), "{told}");
    let told = succeed(&mut export(&at("trained"), &["--weights", "trained", "--at", "384"])).stdout;
    assert!(told.contains("the trained weights after 384 samples"), "{told}");
    let [own, usual, trained] = [run.join("model"), at("usual"), at("trained")].map(|model| unet_of(&model));
    assert!(own == usual && own.len() == trained.len() && own != trained);
    fail(&mut export(&at("new"), &["--at", "9"]), 2, &["--at 9", "it has those of", "384"]);
    fail(&mut export(&at("usual"), &[]), 2, &["choose another folder"]);
    fail(&mut export(&at("new"), &["--weights", "ema"]), 2, &["average", "trained"]);
    assert!(!at("new").exists());
}

#[test]
fn eight_bits_and_snapshots_survive_kills() {
    let folder = tempfile::tempdir().unwrap();
    let [undisturbed, killed] = ["undisturbed", "killed"].map(|name| folder.path().join(name));
    succeed(&mut train(&undisturbed));
    for after in [64, 160] {
        let mut child = start(&mut train(&killed));
        wait_until("a checkpoint", || {
            let newest = checkpoints(&killed).last_key_value().map_or(0, |(samples, _)| *samples);
            newest >= after || child.try_wait().unwrap().is_some()
        });
        // A run that was faster than this test has ended by itself, and the comparison is the same.
        child.kill().ok();
        child.wait().unwrap();
    }
    succeed(&mut train(&killed));
    assert!(unet_of(&undisturbed.join("model")) == unet_of(&killed.join("model")), "the models differ");
    assert!(snapshots(&undisturbed) == snapshots(&killed), "the snapshots differ");
    let last = |run: &Path| fs::read(checkpoints(run).pop_last().unwrap().1.join("tensors.safetensors")).unwrap();
    assert!(last(&undisturbed) == last(&killed), "the optimizers' states differ");
    let told = succeed(calotype(&["inspect"]).arg(checkpoints(&killed).pop_last().unwrap().1)).stdout;
    assert!(told.contains("adamw.first_moment"), "{told}");
}
