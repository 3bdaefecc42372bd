//! Sweeps from the outside: killed, sliced, of several processes, of a run while it trains, and with wrong input.

use crate::common::{calotype, checkpoints, fail, finished, start, succeed, text, train_unet, wait_until};
use crate::ranks::as_rank;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Twelve pictures in blocks of three, with two scales, judged by the quickstart's own CLIP.
const SMALL: [&str; 8] = [
    "images=12",
    "block_size=3",
    "batch_size=2",
    "sampler.steps=4",
    "sampler.guidance=[1.5, 4]",
    "judge.reference_images=16",
    "report.pictures=2",
    "precision=\"f32\"",
];

fn evaluate(recipe: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = calotype(&["evaluate", recipe, "--threads", "1"]);
    command.arg(format!("model={:?}", text(&finished().out()))).args(SMALL).args(more).arg("--out").arg(out);
    command
}

fn curve(out: &Path, more: &[&str]) -> Command {
    evaluate("stable_diffusion/fid_clip_mini", out, more)
}

/// All files below a folder but the locks of slices.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(inner) = open.pop() {
        for entry in fs::read_dir(&inner).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with(".slices") => {}
                true => open.push(path),
                false => drop(found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

fn assert_same(left: &BTreeMap<PathBuf, Vec<u8>>, right: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>(), "{what}");
    for (path, content) in left {
        assert!(content == &right[path], "{what}: {} differs", path.display());
    }
}

#[test]
fn a_sweep_ends_with_the_same_bytes_however_it_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let begun = Instant::now();
    let told = succeed(&mut curve(&at("one"), &[])).stdout;
    let took = begun.elapsed();
    let expected = files(&at("one"));
    for path in
        ["pictures/1.5/image000000.png", "pictures/4/image000011.png", "scores/1.5.json", "report.html", "figures.json"]
    {
        assert!(expected.contains_key(Path::new(path)), "{path} is not in {:?}", expected.keys());
    }
    assert!(told.contains("1.5: ") && told.contains("clip_score") && told.contains("report.html"), "{told}");
    let scores: Value = serde_json::from_slice(&expected[Path::new("scores/4.json")]).unwrap();
    assert_eq!(scores["clip_scores"].as_array().unwrap().len(), 12);
    // Nothing is left to do.
    succeed(&mut curve(&at("one"), &[]));
    assert_same(&expected, &files(&at("one")), "again");

    // Killed at ten moments, which a fixed sequence spreads over the time that a sweep takes.
    let mut moment = 0.37f64;
    for _ in 0..10 {
        moment = (moment + 0.618_034).fract();
        let mut child = start(&mut curve(&at("killed"), &[]));
        std::thread::sleep(took.mul_f64(moment));
        child.kill().ok();
        child.wait().unwrap();
    }
    succeed(&mut curve(&at("killed"), &[]));
    let killed = files(&at("killed"));
    // What a killed process was writing has a hidden name, and is no part of the result.
    let is_hidden = |path: &Path| path.components().any(|part| part.as_os_str().to_string_lossy().starts_with('.'));
    let visible = killed.into_iter().filter(|(path, _)| !is_hidden(path));
    assert_same(&expected, &visible.collect(), "killed");

    for count in [2, 3] {
        let out = at(&format!("slices-{count}"));
        for id in 0..count {
            let slice = ["--task-id", &id.to_string(), "--task-count", &count.to_string()].map(str::to_owned);
            let ended = succeed(curve(&out, &[]).args(slice));
            assert_eq!(ended.stdout.contains("report.html"), id + 1 == count, "slice {id} of {count}: {ended}");
            assert_eq!(ended.stderr.contains("other slices"), id + 1 < count, "slice {id} of {count}: {ended}");
        }
        assert_same(&expected, &files(&out), &format!("{count} slices"));
    }

    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let children = [0, 1].map(|rank| {
        let mut command = curve(&at("ranks"), &[]);
        as_rank(&mut command, rank, 2, port);
        start(&mut command)
    });
    for child in children {
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert_same(&expected, &files(&at("ranks")), "two processes");

    for stage in ["generate", "features", "score", "plot"] {
        succeed(&mut curve(&at("stages"), &["--stage", stage]));
    }
    assert_same(&expected, &files(&at("stages")), "one sub-stage after another");
}

#[test]
fn pictures_that_are_not_kept_go_once_they_are_scored() {
    let folder = tempfile::tempdir().unwrap();
    let [kept, not_kept] = ["kept", "not_kept"].map(|name| folder.path().join(name));
    succeed(&mut curve(&kept, &["report.pictures=1"]));
    succeed(&mut curve(&not_kept, &["report.pictures=1", "keep_pictures=false"]));
    let (all, few) = (files(&kept), files(&not_kept));
    let images =
        |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().filter(|path| path.ends_with("image000000.png")).count();
    assert_eq!((images(&all), images(&few)), (2, 2), "the first is shown");
    assert!(few.keys().filter(|path| text(path.as_path()).ends_with(".png")).count() < all.len());
    for scores in ["scores/1.5.json", "scores/4.json"] {
        assert_eq!(all[Path::new(scores)], few[Path::new(scores)]);
    }
    // Nothing is drawn again for what has its figures.
    succeed(&mut curve(&not_kept, &["report.pictures=1", "keep_pictures=false"]));
    assert_same(&few, &files(&not_kept), "again");
}

#[test]
fn pictures_from_elsewhere_have_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let [own, elsewhere] = ["own", "elsewhere"].map(|name| folder.path().join(name));
    succeed(&mut curve(&own, &[]));
    let pictures = format!("pictures={:?}", text(&own.join("pictures/4")));
    succeed(&mut curve(&elsewhere, &[&pictures]));
    let values = |path: PathBuf| -> Vec<Value> {
        let scores: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        scores["figures"].as_array().unwrap().iter().map(|figure| figure[1]["value"].clone()).collect()
    };
    let figures = values(own.join("scores/4.json"));
    assert!(!figures.is_empty());
    assert_eq!(figures, values(elsewhere.join("scores/pictures.json")));
    let more = folder.path().join("more");
    fail(&mut curve(&more, &[&pictures, "images=13"]), 2, &["holds 12 pictures", "asks for 13"]);
    assert!(!more.exists(), "no folder is taken by what cannot be");
}

#[test]
fn sub_stages_that_lack_what_they_are_made_of_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let score = || curve(&out, &["--stage", "score"]);
    let parts = ["nothing was made of the pictures", "run --stage generate and --stage features first"];
    fail(&mut score(), 2, &parts);
    fail(&mut curve(&out, &["--stage", "features"]), 2, &["nothing was made", "run --stage generate first"]);
    let ended = succeed(score().args(["--task-id", "0", "--task-count", "2"]));
    assert!(ended.stderr.contains("other slices") && !ended.stderr.contains(" took "), "{ended}");
    succeed(&mut curve(&out, &["--stage", "generate"]));
    fail(&mut score(), 2, &parts);
    succeed(&mut curve(&out, &["--stage", "features"]));
    succeed(&mut score());
}

/// A run that keeps all of its checkpoints and writes MLPerf's log.
fn train(out: &Path, more: &[&str]) -> Command {
    let mlperf = "mlperf={ benchmark = \"stable_diffusion\", division = \"closed\", org = \"org\", platform = \"box\", status = \
                  \"onprem\", cache_cleared = true }";
    let settings = ["run.samples=48", "run.keep_checkpoints=10", "optimizer.beta2=0.999", mlperf];
    train_unet(&finished().precached(), out, &[&settings[..], more].concat())
}

#[test]
fn kept_checkpoints_of_a_run_are_judged_and_end_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let [run, out, followed] = ["run", "out", "followed"].map(|name| folder.path().join(name));
    let of = |run: &Path, out: &Path, more: &[&str]| {
        let run = format!("run={:?}", text(run));
        evaluate("stable_diffusion/mlperf_v2_mini", out, &[&[run.as_str(), "sampler.guidance=[4]"], more].concat())
    };
    succeed(&mut train(&run, &[]));
    assert_eq!(checkpoints(&run).into_keys().collect::<Vec<_>>(), [16, 32, 48]);
    let told = succeed(&mut of(&run, &out, &["--finish"]));
    assert!(told.stdout.contains("48/4: ") && told.stdout.contains("samples"), "{told}");
    let scores = fs::read_to_string(out.join("mlperf_scores.jsonl")).unwrap();
    let samples: Vec<u64> =
        scores.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["samples"].as_u64().unwrap()).collect();
    assert_eq!(samples, [16, 32, 48]);
    assert!(scores.contains("\"fd\":") && !scores.contains("\"fid\":"), "features of CLIP: {scores}");
    assert!(told.stderr.contains("`fd`, of other features or weights than the FID's"), "{told}");
    assert!(out.join("convergence_fd.svg").is_file() && !out.join("convergence_fid.svg").exists());
    let log = fs::read_to_string(run.join("mlperf_compliance.log")).unwrap();
    assert!(log.lines().last().unwrap().contains("\"run_stop\""), "{log}");
    assert_eq!(log.matches("\"key\": \"eval_accuracy\"").count(), 6, "{log}");
    // The last checkpoint draws as the run's own model.
    let model = format!("model={:?}", text(&run));
    let own = folder.path().join("own");
    let judged =
        ["judge.clip", "judge.features"].map(|key| format!("{key}={:?}", text(&finished().out().join("clip/model"))));
    let data = ["captions.path", "judge.reference"]
        .map(|key| format!("{key}={:?}", text(&finished().out().join("dataset/held_out"))));
    let more: Vec<&str> =
        judged.iter().chain(&data).map(String::as_str).chain(["sampler.guidance=[4]", &model]).collect();
    succeed(&mut evaluate("stable_diffusion/mlperf_v2_mini", &own, &more));
    let picture = |folder: PathBuf| fs::read(folder.join("image000005.png")).unwrap();
    assert!(picture(own.join("pictures/4")) == picture(out.join("pictures/48/4")));

    // While a run goes on, each checkpoint is judged once, until it ends.
    let late = folder.path().join("late");
    let mut child = start(&mut train(&late, &[]));
    wait_until("the run's beginning", || late.join("recipe.toml").is_file() || child.try_wait().unwrap().is_some());
    succeed(&mut of(&late, &followed, &["--follow"]));
    assert!(child.wait().unwrap().success());
    assert!(late.join("result.json").is_file());
    for samples in [16, 32, 48] {
        let scores = format!("scores/{samples}/4.json");
        assert!(fs::read(out.join(&scores)).unwrap() == fs::read(followed.join(&scores)).unwrap(), "{scores}");
    }

    let saved = checkpoints(&run).remove(&32).unwrap();
    let error =
        fail(&mut curve(&folder.path().join("x"), &[&format!("model={:?}", text(&saved))]), 2, &["at=[32]", "run="]);
    assert!(error.contains(text(&run)), "{error}");
    fail(&mut of(&run, &folder.path().join("x"), &["at=[16, 40]"]), 2, &["40 samples", "16, 32, 48"]);
    fail(&mut of(&folder.path().join("none"), &folder.path().join("x"), &[]), 2, &["no training run"]);
}

#[test]
fn wrong_input_is_told_before_anything_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let begun = Instant::now();
    fail(&mut curve(&out, &["--follow"]), 2, &["--follow", "run=RUN"]);
    fail(&mut curve(&out, &["--finish"]), 2, &["--finish", "run=RUN"]);
    fail(&mut curve(&out, &["sampler.step=3"]), 2, &["unknown key `sampler.step`", "did you mean `sampler.steps`?"]);
    fail(&mut curve(&out, &["images=0"]), 2, &["`images`", "at least 1"]);
    fail(&mut curve(&out, &["judge.metrics=[\"fidd\"]"]), 2, &["fidd"]);
    fail(&mut curve(&out, &["judge.clip=\"/nowhere\""]), 2, &["`judge.clip`", "/nowhere"]);
    fail(&mut curve(&out, &["captions.path=\"/nowhere.tsv\""]), 2, &["`captions.path`", "/nowhere.tsv"]);
    let of_model = |model: &Path, parts: &[&str]| {
        let mut command = calotype(&["evaluate", "stable_diffusion/fid_clip_mini"]);
        fail(command.arg(format!("model={:?}", text(model))).arg("--out").arg(&out), 2, parts);
    };
    of_model(Path::new("/nowhere"), &["`model`", "there is nothing at /nowhere"]);
    of_model(&finished().out().join("diffusion"), &["`captions.path`", "model=QUICKSTART", "captions.path"]);
    fail(&mut curve(&out, &["report.baseline=\"/nowhere\""]), 2, &["`report.baseline`", "/nowhere/figures.json"]);
    fail(&mut curve(&out, &["images=1"]), 2, &["`images`", "is 1, and fd", "at least 2 pictures"]);
    fail(&mut curve(&out, &["sampler.name=\"dimd\""]), 2, &["dimd"]);
    fail(&mut curve(&out, &["size=1000000"]), 2, &["`size`", "1000000 pixels", "131072"]);
    assert!(!out.exists(), "found before the folder is anybody's");
    #[cfg(unix)]
    {
        let pipe = folder.path().join("pipe.tsv");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let captions = format!("captions.path={:?}", text(&pipe));
        fail(&mut curve(&out, &[&captions]), 2, &["pipe.tsv: cannot be read: it is a named pipe"]);
    }
    fail(&mut curve(&out, &["--task-id", "0", "--task-count", "0"]), 2, &["--task-count must be at least 1"]);
    fail(&mut curve(&out, &["--task-id", "3"]), 2, &["--task-count"]);
    fail(&mut calotype(&["evaluate", "quickstart/smoke"]), 2, &["no recipe that `evaluate` follows"]);
    let followed = ["the evaluation of `calotype quickstart`", "it follows clip/", "stable_diffusion/fid_clip_mini"];
    let told = fail(&mut calotype(&["evaluate", "stable_diffusion/quickstart", "model=qs"]), 2, &followed);
    assert!(!told.contains("stable_diffusion/quickstart,") && !told.contains("quickstart_smoke"), "{told}");
    fail(&mut calotype(&["evaluate", "stable_diffusion/mlperf"]), 2, &["did you mean"]);
    fail(&mut calotype(&["evaluate", "stable_diffusion/mlperf_v2"]), 2, &["`model`", "run=RUN", "pictures=FOLDER"]);
    // Of two that could be judged, none is taken silently.
    let mut both = calotype(&["evaluate", "stable_diffusion/mlperf_v2", "model=/nowhere", "captions.path=c.tsv"]);
    fail(
        both.args(["run=/nowhere", "--dry-run"]),
        2,
        &["model=/nowhere stands beside run", "only one of them is judged"],
    );
    let own = ["captions.path=c.tsv", "judge.reference=r", "judge.clip=c", "judge.features=f", "run=/nowhere"];
    let mut inherited = calotype(&["evaluate", "stable_diffusion/fid_clip_mini", "--dry-run"]);
    let told = succeed(inherited.args(own)).stderr;
    assert!(told.contains("note: the recipe's model = runs/quickstart is not judged"), "{told}");
    let images = folder.path().join("my-images");
    fs::create_dir(&images).unwrap();
    fs::write(images.join("cat.jpg"), "").unwrap();
    fail(&mut curve(&images, &[]), 2, &["my-images holds images (cat.jpg)", "choose another folder with --out"]);
    assert_eq!(fs::read_dir(&images).unwrap().count(), 1);
    let pictures = |out: &Path| out.join("pictures").exists();
    assert!(!pictures(&out));
    assert!(begun.elapsed() < Duration::from_secs(120));
    let dry = succeed(&mut curve(&out, &["--dry-run"])).stdout;
    let table: toml::Table = toml::from_str(&dry).unwrap();
    assert_eq!(table["images"].as_integer(), Some(12));
    assert!(table["judge"]["clip"].as_str().unwrap().ends_with("clip/model"), "{dry}");
    assert!(!table["judge"]["clip"].as_str().unwrap().contains("{model}"), "{dry}");
}
