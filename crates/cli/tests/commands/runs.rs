//! Runs: one process at a time, longer than planned, begun with checkpoints, checked before they start, told by `inspect`.

use crate::common::{
    CLIP, DIFFUSION, UNET, calotype, change_last_byte, checkpoints, copy_tree, data_path, fail, finished, quickstart,
    run, start, succeed, text, train_unet, wait_until, with_more,
};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A constant rate does not depend on a run's length.
const CONSTANT: &str = "optimizer.schedule.name=constant";

fn unet_of(run: &Path) -> Vec<u8> {
    fs::read(run.join("model/unet/diffusion_pytorch_model.safetensors")).unwrap()
}

/// Losses of the logs by samples.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let entry = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        Some((value["samples"].as_u64()?, value["loss"].as_f64()?))
    };
    text.lines().filter_map(entry).collect()
}

fn holder(run: &Path) -> Option<u64> {
    let text = fs::read_to_string(run.join(".lock")).ok()?;
    serde_json::from_str::<Value>(&text).ok()?["pid"].as_u64()
}

#[test]
fn a_second_process_is_told_the_first_and_takes_over_from_a_dead_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let train = || train_unet(&finished().precached(), &out, &["run.samples=800000"]);
    let mut first = start(&mut train());
    let pid = u64::from(first.id());
    wait_until("the first checkpoint", || !checkpoints(&out).is_empty());
    assert_eq!(holder(&out), Some(pid));
    let process = format!("in use by process {pid} on ");
    fail(&mut train(), 1, &[text(&out), &process, "use another folder"]);
    fail(&mut quickstart(&out, &[]), 1, &[&process]);
    let told = succeed(calotype(&["inspect"]).arg(&out)).stdout;
    assert!(told.contains(&format!("in use by process {pid}")), "{told}");
    first.kill().unwrap();
    first.wait().unwrap();
    let told = succeed(calotype(&["inspect"]).arg(&out)).stdout;
    assert!(told.contains(&format!("process {pid} on ")) && told.contains("ended without giving it back"), "{told}");
    assert!(!told.contains("in use by"), "{told}");
    let mut second = start(&mut train());
    wait_until("the second process's turn", || holder(&out) == Some(second.id().into()));
    let before = checkpoints(&out).len();
    wait_until("a step", || checkpoints(&out).len() != before || checkpoints(&out).len() >= 2);
    assert!(Command::new("kill").args(["-TERM", &second.id().to_string()]).status().unwrap().success());
    let mut stderr = String::new();
    second.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(130), "{stderr}");
    assert!(stderr.contains(&format!("taken over from process {pid} on ")), "{stderr}");
    // A stop that was asked for is no error, and gives the folder back.
    assert!(stderr.contains("stopped after ") && !stderr.contains("error:"), "{stderr}");
    assert_eq!(holder(&out), None);
}

#[test]
fn a_finished_run_is_extended_when_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let recipe = at("mine.toml");
    let write =
        |samples: u32| fs::write(&recipe, format!("base = \"{DIFFUSION}\"\n[run]\nsamples = {samples}\n")).unwrap();
    let train = |out: &str, more: &[&str]| {
        let mut command = calotype(&["train", text(&recipe), CONSTANT]);
        command.args(UNET).arg(data_path(&finished().precached())).args(more).arg("--out").arg(at(out));
        command
    };
    // The logs' last entry comes early: 56 is no multiple of run.log_every.
    write(56);
    succeed(&mut train("short", &[]));
    assert_eq!(losses(&at("short")).last().unwrap().0, 56);
    write(128);
    fail(&mut train("short", &[]), 2, &["holds a run of 56 samples", "there are to be 128", "run.samples=128"]);
    fail(&mut train("short", &["run.samples=128", "run.seed=3"]), 2, &["another recipe", "`run.s"]);
    fail(&mut train("short", &["run.samples=24"]), 2, &["another recipe", "`run.samples` is 56 there and 24 now"]);
    let told = succeed(&mut train("short", &["run.samples=128"]));
    assert!(
        told.stderr.contains("extended from 56 to 128 samples; the result is that of a run that was started with 128"),
        "{told}"
    );
    succeed(&mut train("long", &[]));
    assert!(unet_of(&at("short")) == unet_of(&at("long")), "an extended run is not the long one");
    assert_eq!(losses(&at("short")), losses(&at("long")));

    // A new run begins with the whole state of a checkpoint, or with its weights.
    let saved = checkpoints(&at("long")).remove(&112).unwrap();
    let from = ["--from", text(&saved)];
    fail(&mut train("begun", &["--from", "/nowhere"]), 2, &["--from /nowhere", "neither a training checkpoint"]);
    fail(&mut train("begun", &["run.samples=64", from[0], from[1]]), 2, &["it has seen 112 samples", "run.samples"]);
    let clip = finished().out().join("clip");
    let other = ["clip is a run of kind `clip`, and this recipe trains `diffusion`"];
    fail(&mut train("begun", &["--from", text(&clip)]), 2, &other);
    succeed(&mut train("begun2", &from));
    assert!(unet_of(&at("begun2")) == unet_of(&at("long")), "a run from a checkpoint is not the run that it is from");
    fail(&mut train("long", &["run.samples=200", from[0], from[1]]), 2, &["holds a run already"]);
    let init = format!("init_from={:?}", text(&saved));
    succeed(&mut train("weights", &["run.samples=8", &init, "optimizer.learning_rate=0"]));
    let init = format!("init_from={{ path = {:?}, ema = true }}", text(&saved));
    succeed(&mut train("average", &["run.samples=8", &init]));

    let cosine = |samples: &str| {
        let settings = [samples, "optimizer.warmup_samples=8"];
        let mut command = train_unet(&finished().precached(), &at("cosine"), &settings);
        succeed(&mut command)
    };
    cosine("run.samples=64");
    let told = cosine("run.samples=96");
    assert!(
        told.stderr.contains("extended from 64 to 96") && told.stderr.contains("followed a schedule for 64"),
        "{told}"
    );

    // Without a checkpoint to go on from, the model stays, and so does all that tells of it.
    let result = at("cosine/result.json");
    let before = [&result, &at("cosine/recipe.toml")].map(|file| fs::read(file).unwrap());
    fs::remove_dir_all(at("cosine/checkpoints")).unwrap();
    let again = |samples: &str, more: &[&str]| {
        let mut command = train_unet(&finished().precached(), &at("cosine"), &[samples, "optimizer.warmup_samples=8"]);
        command.args(more);
        command
    };
    let lost = ["holds the model/ of a run, but no checkpoint in checkpoints/", "replace that model", "--out"];
    for more in [&[][..], &["--dry-run"]] {
        fail(&mut again("run.samples=160", more), 2, &lost);
    }
    assert!(before == [&result, &at("cosine/recipe.toml")].map(|file| fs::read(file).unwrap()));
    succeed(&mut again("run.samples=96", &[]));
    fs::remove_file(&result).unwrap();
    fail(&mut again("run.samples=96", &[]), 2, &lost);

    // A run that goes on behind its former end has not got its own model yet.
    fs::remove_file(at("long/result.json")).unwrap();
    let drawn = run(calotype(&["generate", "x", "--model"]).arg(at("long")).arg("--out").arg(at("drawn")));
    assert!(drawn.code != Some(0) && drawn.stderr.contains("its model is that of an earlier end"), "{drawn}");
    assert!(drawn.stderr.contains("calotype export ") && drawn.stderr.contains("long/model"), "{drawn}");
    let told = succeed(calotype(&["inspect"]).arg(at("long"))).stdout;
    assert!(told.contains("not finished") && told.contains("long/model, of an earlier end"), "{told}");
}

#[test]
fn a_dry_run_finds_what_a_start_would_find_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let train = |more: &[&str]| train_unet(&finished().precached(), &out, more);
    let dry = |more: &[&str]| {
        let mut command = train(more);
        command.arg("--dry-run");
        command
    };
    let told = succeed(&mut dry(&["run.samples=64"]));
    assert!(toml::from_str::<toml::Table>(&told.stdout).is_ok(), "{told}");
    let units = "units        run of 8 steps × 8 = 64 samples";
    for part in [units, "samples, seen ", " parameters, 8 steps", "on disk at most", "would begin a new run"] {
        assert!(told.stderr.contains(part), "`{part}` is not in {told}");
    }
    let seldom_meant = ["run.samples=100000", "run.batch_size=30000", "optimizer.learning_rate=0"];
    let told = succeed(&mut dry(&seldom_meant));
    for part in ["every batch repeats samples", "learning_rate is 0", "run.samples = 100,000 becomes 120,000"] {
        assert!(told.stderr.contains(part), "`{part}` is not in {told}");
    }
    let nowhere = format!("hooks.evaluate={{ path = {:?}, every = 16, samples = 8 }}", "/nowhere/shards");
    for (setting, code, parts) in [
        ("data.path=/nowhere/shards", 2, &["/nowhere/shards"][..]),
        ("run.batch_size=0", 2, &["`run.batch_size`"]),
        ("model.context_channels=48", 2, &["context_channels"]),
        ("init_from=/nowhere/weights", 2, &["/nowhere/weights"]),
        (&nowhere, 2, &["/nowhere/shards"]),
        ("hooks.target={ metric = 'validation/loss', at_most = 0.1 }", 2, &["hooks.target.metric", "[hooks.evaluate]"]),
    ] {
        fail(&mut dry(&[setting]), code, parts);
        fail(&mut train(&[setting]), code, parts);
    }
    assert!(!out.exists(), "neither leaves anything");
    succeed(&mut train(&["run.samples=16"]));
    let told = succeed(&mut dry(&["run.samples=16"]));
    assert!(told.stderr.contains("finished: a start would do nothing"), "{told}");
    fail(&mut dry(&["run.samples=16", "run.seed=9"]), 2, &["another recipe", "`run.seed`"]);
    let zero = ["run.samples=24", "optimizer.learning_rate=0"];
    let told = succeed(&mut train_unet(&finished().precached(), &folder.path().join("zero"), &zero));
    assert!(told.stderr.contains("learning_rate is 0: the weights stay as they are"), "{told}");
}

#[test]
fn a_mixture_takes_the_place_of_a_built_in_recipes_path() {
    let folder = tempfile::tempdir().unwrap();
    let precached = finished().precached();
    let sources = format!("data.sources=[{{ path = {:?} }}, {{ path = {0:?}, weight = 2 }}]", text(&precached));
    let train = |more: &[&str]| {
        let mut command = calotype(&["train", DIFFUSION, "run.samples=16"]);
        command.args(UNET).args(more).arg("--out").arg(folder.path().join("run"));
        command
    };
    let both = folder.path().join("both.toml");
    fs::write(&both, format!("base = \"{DIFFUSION}\"\n[data]\npath = \"a\"\nsources = [{{ path = \"b\" }}]\n"))
        .unwrap();
    fail(&mut calotype(&["train", text(&both)]), 2, &["`data.path`: is `a`, and `data.sources` names 1", "remove one"]);
    fail(&mut train(&["data.sources=[]"]), 2, &["`data.path`: is not set, and neither is `data.sources`"]);
    fail(&mut train(&["data.sources=[{ path = 'a', weight = -1 }]"]), 2, &["`data.sources`", "above 0"]);
    succeed(&mut train(&[&sources]));
}

/// A folder of images without captions, and its shards.
fn captionless(folder: &Path) -> (PathBuf, String) {
    let (images, shards) = (folder.join("images"), folder.join("shards"));
    fs::create_dir(&images).unwrap();
    for number in 0..20u8 {
        let pixels: Vec<u8> = (0..32 * 32 * 3).map(|i| (i as u8).wrapping_mul(number)).collect();
        let image = calotype_data::image::RgbImage::new(32, 32, pixels).unwrap();
        let png = image.encode_png(calotype_data::image::PngEffort::Fast).unwrap();
        fs::write(images.join(format!("red_cat-{number:02}.png")), png).unwrap();
    }
    let told = succeed(calotype(&["data", "convert"]).arg(&images).arg(&shards)).stdout;
    (shards, told)
}

#[test]
fn folders_of_images_and_unfinished_datasets_are_called_that() {
    let folder = tempfile::tempdir().unwrap();
    captionless(folder.path());
    let images = folder.path().join("images");
    let refused = fail(calotype(&["data", "check"]).arg(&images), 2, &["holds images", "calotype data convert"]);
    let ended = crate::common::run(calotype(&["data", "check"]).arg(&images));
    assert!(!ended.stderr.contains("are not read") && ended.stderr.contains(&refused), "{ended}");
    let unfinished = folder.path().join("unfinished");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("progress.json"), "{}").unwrap();
    let parts = [text(&unfinished), "is not finished", "run the command that writes it again"];
    fail(calotype(&["inspect"]).arg(&unfinished), 1, &parts);
    fail(&mut train_unet(&unfinished, &folder.path().join("run"), &[]), 1, &parts);
}

#[test]
fn images_without_moments_or_captions_are_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let parts = ["the samples are images (`png`)", "calotype data precache RECIPE source=", "data.path=encoded"];
    fail(&mut train_unet(&finished().pictures(), &out, &[]), 1, &parts);
    let (shards, told) = captionless(folder.path());
    assert!(told.contains("none of the 20 images has a caption"), "{told}");
    let told = succeed(calotype(&["data", "check"]).arg(&shards)).stdout;
    assert!(
        told.starts_with("check: 20 read, 20 good") && told.contains("none of the 20 images has a caption"),
        "{told}"
    );
    let train = |more: &[&str]| {
        let mut command = calotype(&["train", "training/clip/quickstart_smoke"]);
        command.args(with_more(&CLIP.map(str::to_owned), more)).arg(data_path(&shards)).arg("--out").arg(&out);
        command
    };
    fail(&mut train(&[]), 1, &["has no part `txt`", "a.png and a.txt", "data"]);
    fail(&mut train(&["data.caption=\"a photo of {\""]), 2, &["`data.caption`", "a photo of {class}"]);
    assert!(!out.exists(), "refused before the run's folder is made");
    succeed(&mut train(&["data.caption=\"a photo of {file}\"", "run.samples=32"]));
}

#[test]
fn empty_captions_and_images_beside_shards_are_told() {
    let folder = tempfile::tempdir().unwrap();
    captionless(folder.path());
    let (images, shards) = (folder.path().join("images"), folder.path().join("captioned"));
    for number in 0..20 {
        let caption = if number == 7 { " \n".to_owned() } else { format!("red cat {number}") };
        fs::write(images.join(format!("red_cat-{number:02}.txt")), caption).unwrap();
    }
    let told = succeed(calotype(&["data", "convert"]).arg(&images).arg(&shards)).stdout;
    assert!(told.contains("1 caption is empty"), "{told}");
    fs::copy(images.join("red_cat-00.png"), shards.join("left.png")).unwrap();
    let mut command = calotype(&["train", "training/clip/quickstart_smoke"]);
    command.args(with_more(&CLIP.map(str::to_owned), &["run.samples=64"])).arg(data_path(&shards));
    let told = succeed(command.arg("--out").arg(folder.path().join("run"))).stderr;
    assert!(told.contains("an empty caption") && told.contains("red_cat-07"), "{told}");
    assert!(told.contains("1 image is not read") && told.contains("left.png"), "{told}");
}

#[test]
fn inspect_tells_runs_checkpoints_and_quickstarts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    succeed(&mut train_unet(&finished().precached(), &out, &["run.samples=32"]));
    let told = |path: &Path| succeed(calotype(&["inspect"]).arg(path)).stdout;
    let run = told(&out);
    for part in [
        "a training run (diffusion)",
        "finished: 32 samples",
        "checkpoint-",
        "model  ",
        "unet",
        text(&finished().precached()),
    ] {
        assert!(run.contains(part), "`{part}` is not in {run}");
    }
    let checkpoint = checkpoints(&out).pop_last().unwrap().1;
    let saved = told(&checkpoint);
    for part in ["a training checkpoint", "32 samples seen, 4 steps", "their average", "adamw.first_moment", "--from "]
    {
        assert!(saved.contains(part), "`{part}` is not in {saved}");
    }
    let whole = told(&finished().out());
    for part in ["a quickstart, finished", "(clip)", "(autoencoder)", "(diffusion)", "background right", "text_encoder"]
    {
        assert!(whole.contains(part), "`{part}` is not in {whole}");
    }
    let json = succeed(calotype(&["inspect", "--json"]).arg(&out)).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["training"]["what"], &json["training"]["samples"]), (&"run".into(), &32.into()));
    assert!(json["components"].is_array());
    // A folder of runs is no model, and says which there are.
    let below = ["a folder of runs; name one of them: ", text(&out)];
    fail(calotype(&["generate", "x", "--model"]).arg(folder.path()), 2, &below);
    let saved = out.join("checkpoints");
    let parts = ["a folder of training checkpoints", "calotype export RUN --at SAMPLES"];
    fail(calotype(&["generate", "x", "--model"]).arg(&saved), 2, &parts);
    assert!(told(&saved).contains("a folder of training checkpoints, each of which"));
    let whole = fs::read(out.join("result.json")).unwrap();
    fs::write(out.join("result.json"), "{").unwrap();
    let damaged = ["result.json: the text ends inside an object", "copy it back, or remove it"];
    fail(calotype(&["inspect"]).arg(&out), 1, &damaged);
    fail(&mut train_unet(&finished().precached(), &out, &["run.samples=32"]), 1, &damaged);
    fs::write(out.join("result.json"), whole).unwrap();
    // One that was not finished has no model yet.
    fs::remove_dir_all(out.join("model")).unwrap();
    let gone = told(&out);
    assert!(gone.contains("model       gone; the same command writes it again"), "{gone}");
    let mut draw = calotype(&["generate", "x", "--model"]);
    fail(draw.arg(&out), 1, &["a finished training run whose folder model is gone"]);
    fs::remove_file(out.join("result.json")).unwrap();
    let open = told(&out);
    assert!(open.contains("not finished: 32 of 32 samples saved") && !open.contains("model  "), "{open}");
    // One that was stopped while something was made for it has not begun.
    let prepared = folder.path().join("begun/prepared");
    fs::create_dir_all(&prepared).unwrap();
    let made = "{\"dataset\": {\"recipe\": \"\", \"done\": true}, \"precache\": {\"recipe\": \"\", \"done\": false}}";
    fs::write(prepared.join("prepared.json"), made).unwrap();
    let begun = told(&folder.path().join("begun"));
    for part in ["a training run that has not begun", "dataset     made", "precache    begun"] {
        assert!(begun.contains(part), "`{part}` is not in {begun}");
    }
    let mut draw = calotype(&["generate", "x", "--model"]);
    fail(draw.arg(folder.path().join("begun")), 2, &["a training run that has not begun"]);
}

#[test]
fn damaged_checkpoints_are_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let out = at("run");
    succeed(&mut train_unet(&finished().precached(), &out, &["run.samples=32"]));
    let cut = |samples: u64| {
        let path = checkpoints(&out)[&samples].join("tensors.safetensors");
        fs::write(&path, &fs::read(&path).unwrap()[..100]).unwrap();
    };
    let export = |name: &str, more: &[&str]| {
        let mut command = calotype(&["export"]);
        command.arg(&out).args(more).arg("--out").arg(at(name));
        command
    };
    let from = |name: &str| {
        let mut command = train_unet(&finished().precached(), &at(name), &["run.samples=48"]);
        command.arg("--from").arg(&out);
        command
    };
    cut(32);
    let told = succeed(&mut export("older", &[]));
    assert!(told.stdout.contains("after 16 samples"), "{told}");
    assert!(told.stderr.contains("skipping a checkpoint: ") && told.stderr.contains("is damaged"), "{told}");
    fail(&mut export("at", &["--at", "32"]), 1, &["the checkpoint is damaged: ", "tensors.safetensors"]);
    let told = succeed(&mut from("begun"));
    assert!(told.stderr.contains("skipping a checkpoint: ") && told.stderr.contains("resumed at 16"), "{told}");
    let inspect = || succeed(calotype(&["inspect"]).arg(&out)).stdout;
    assert!(inspect().contains("  damaged     ") && inspect().contains("finished: 32 samples"), "{}", inspect());

    // All of them, of a run that is finished, and of one that is not.
    cut(16);
    let all = "all 2 checkpoints are damaged";
    let told = succeed(&mut train_unet(&finished().precached(), &out, &["run.samples=32"]));
    assert!(!told.stderr.contains(all), "its model is there: {told}");
    fs::remove_dir_all(out.join("model")).unwrap();
    assert!(inspect().contains(&format!("gone, and {all}")), "{}", inspect());
    fs::remove_file(out.join("result.json")).unwrap();
    let told = inspect();
    assert!(told.contains(&format!("not finished: {all}")) && !told.contains("goes on with it"), "{told}");
    for more in [&[][..], &["--at", "32"], &["--at", "7"]] {
        let part = if more == ["--at", "32"] { "the checkpoint is damaged" } else { all };
        fail(&mut export("none", more), 1, &[part]);
    }
    let message = fail(calotype(&["generate", "x", "--model"]).arg(&out), 1, &[text(&out), all]);
    assert!(!message.contains("calotype export"), "{message}");
    fail(&mut from("none"), 2, &["--from ", all]);
    let init = format!("init_from={:?}", text(&out));
    fail(&mut train_unet(&finished().precached(), &at("none"), &["run.samples=8", &init]), 2, &["init_from: ", all]);
    fail(&mut train_unet(&finished().precached(), &out, &["run.samples=32"]), 1, &[all]);
}

#[test]
fn a_quickstart_over_another_names_it_and_what_cannot_end_does_not_begin() {
    let out = finished().out();
    let before = fs::metadata(out.join("dataset/train/index.json")).unwrap().modified().unwrap();
    fail(calotype(&["quickstart", "--out"]).arg(&out), 2, &["of the preset `smoke`", "--preset smoke", "--out"]);
    fail(&mut quickstart(&out, &["--seed", "77"]), 2, &["with other settings (", "`run.seed`"]);
    let after = fs::metadata(out.join("dataset/train/index.json")).unwrap().modified().unwrap();
    assert_eq!(before, after, "nothing was overwritten");
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new");
    for (setting, key) in [
        ("evaluation.images=0", "`images`"),
        ("evaluation.sampler.steps=0", "`sampler.steps`"),
        ("evaluation.prompts=[]", "`prompts`"),
        ("diffusion.run.batch_size=0", "`run.batch_size`"),
        ("diffusion.objective.caption_dropout=2.0", "`objective.caption_dropout`"),
        ("precache.batch_size=0", "`batch_size`"),
    ] {
        fail(&mut quickstart(&new, &[setting]), 2, &[key]);
    }
    assert!(!new.exists());
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(
        report.contains("<h3>Loss of the UNet</h3>") && report.contains("its images are noise, as they have to be")
    );
    let told = succeed(&mut quickstart(&out, &["--seed", crate::common::SEED]));
    assert!(told.stdout.contains("its images are noise, as they have to be"), "{told}");
}

#[test]
fn progress_is_printed_where_no_terminal_is() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let told = succeed(&mut train_unet(&finished().precached(), &out, &["run.samples=32"]));
    assert!(told.stderr.contains("diffusion  8/32 samples"), "{told}");
    let mut command = calotype(&["generate", "a cat", "--steps", "2", "--model"]);
    let told = succeed(command.arg(finished().out()).arg("--out").arg(folder.path().join("images")));
    assert!(told.stderr.contains("generate  1/2 steps") && told.stderr.contains("generate  2/2 steps"), "{told}");
}

#[test]
fn networks_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    copy_tree(&finished().out(), &copy);
    let draw = || {
        let mut command = calotype(&["generate", "a cat", "--steps", "2", "--model"]);
        command.arg(&copy).arg("--out").arg(folder.path().join("images"));
        command
    };
    succeed(&mut draw());
    change_last_byte(&copy.join("vae/diffusion_pytorch_model.safetensors"));
    fail(&mut draw(), 2, &["its vae is not the one", "trained_together.json", "remove"]);
    let told = succeed(calotype(&["inspect"]).arg(&copy)).stdout;
    assert!(told.contains("problem     its vae is not the one"), "{told}");
    let told = succeed(calotype(&["inspect"]).arg(finished().out())).stdout;
    assert!(!told.contains("problem "), "{told}");
    let single = folder.path().join("single.safetensors");
    let convert = || {
        let mut command = calotype(&["convert", "--to", "single-file"]);
        command.arg(&copy).arg(&single);
        command
    };
    fail(&mut convert(), 2, &["its vae is not the one"]);
    assert!(!single.exists());
    // One that is named is chosen.
    let vae = finished().out().join("autoencoder/model");
    succeed(draw().arg("--vae").arg(&vae));
    let told = succeed(draw().arg("--vae").arg(&copy));
    assert!(told.stderr.contains("were not trained with this vae"), "{told}");
    fs::remove_file(copy.join("trained_together.json")).unwrap();
    succeed(&mut draw());

    // A UNet is not trained on what another autoencoder encoded.
    let model = folder.path().join("model");
    copy_tree(&finished().out().join("diffusion/model"), &model);
    let path = model.join("trained_together.json");
    let mut recorded: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let train = |init: &str| train_unet(&finished().precached(), &folder.path().join("init"), &["run.samples=8", init]);
    succeed(train(&format!("init_from={:?}", text(&model))).arg("--dry-run"));
    recorded["vae"] = "0123".into();
    fs::write(&path, recorded.to_string()).unwrap();
    let parts = ["was trained with another autoencoder", "init_from.other_encoders = true"];
    fail(&mut train(&format!("init_from={:?}", text(&model))), 2, &parts);
    succeed(&mut train(&format!("init_from={{ path = {:?}, other_encoders = true }}", text(&model))));

    // The precached dataset names its encoders beside it, which were trained anew meanwhile.
    change_last_byte(&copy.join("autoencoder/model/diffusion_pytorch_model.safetensors"));
    let out = folder.path().join("run");
    let parts = ["autoencoder", "holds other weights than those that made the dataset", "data precache"];
    let message = fail(&mut train_unet(&copy.join("precache"), &out, &[]), 2, &parts);
    assert!(!message.contains("is left out of the pipeline") && !message.contains("/../"), "{message}");
    assert!(!out.exists());
}
