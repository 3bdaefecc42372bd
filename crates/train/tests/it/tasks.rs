//! Every task of the table, by its recipe in `recipes/`: killed and resumed, exported and opened again, and compared with
//! PyTorch over 20 steps.
//!
//! A new task needs `recipes/KIND.toml` here, whose `data.path` is one of the datasets of [`World`], and
//! `golden/KIND.json`, which `scripts/replay.py` makes: see `golden/README.md`.

use burn::tensor::Device;
use calotype_checkpoints::{Checkpoint, Component};
use calotype_data::image::{Filter, PngEffort, RgbImage};
use calotype_data::npy::NpyArray;
use calotype_data::{Dataset, Sample, ShardLimits, ShardWriter};
use calotype_pipeline::encoders::image::ImageInput;
use calotype_pipeline::encoders::{ImageEncoder, ImageEncoderKind, ImageOutput};
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_train::record::RecordOptions;
use calotype_train::stages::{MODEL, StageContext, StageEnd, StageError};
use calotype_train::tasks::{self, TASKS};
use calotype_train::trainer::{CHECKPOINTS, TrainingSummary};
use calotype_train::{RecipeLoader, StopFlag};
use calotype_weights::TensorFile;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Steps of the recipes.
const STEPS: usize = 20;

/// Figures of the logs that depend on the clock.
const TIMED: [&str; 5] = ["seconds", "images_per_second", "images_per_second_per_device", "data_wait", "tflops"];

/// Datasets made of formulas: `images` (with captions and classes) and `precached` (moments and hidden states).
pub(crate) struct World(tempfile::TempDir);

impl World {
    pub(crate) fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        world.write("images", |number| {
            let level = |i: usize| ((i * (3 + number % 7) + number * 29) % 251) as u8;
            let image = RgbImage::new(16, 16, (0..3 * 256).map(level).collect()).unwrap();
            let caption = ["a cat", "two dogs", "one red house", "a blue boat"][number % 4];
            Sample::new(format!("{number:03}"))
                .with("png", image.encode_png(PngEffort::Fast).unwrap())
                .with("txt", caption)
                .with("cls", (number % 3).to_string())
        });
        world.write("precached", |number| {
            let wave = |count: usize, pace: f32| -> Vec<f32> {
                (0..count).map(|i| ((i + 3 * number) as f32 * pace).sin()).collect()
            };
            let moments = NpyArray::from_f32(&[1, 8, 4, 4], wave(128, 0.37)).unwrap();
            let states = NpyArray::from_f32(&[6, 32], wave(192, 0.11)).unwrap();
            Sample::new(format!("{number:03}")).with("npy", moments.to_bytes()).with("states.npy", states.to_bytes())
        });
        world
    }

    fn write(&self, name: &str, sample: impl Fn(usize) -> Sample) {
        self.write_many(name, 24, sample);
    }

    pub(crate) fn write_many(&self, name: &str, count: usize, sample: impl Fn(usize) -> Sample) {
        let mut writer = ShardWriter::create(self.path(name), "x", ShardLimits::default()).unwrap();
        (0..count).for_each(|number| writer.write(&sample(number)).unwrap());
        writer.finish().unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Trains a task's recipe into a folder.
    fn train(
        &self,
        kind: &str,
        out: &str,
        more: &[&str],
        record: Option<&Path>,
    ) -> Result<TrainingSummary, StageError> {
        let loader = RecipeLoader::new().folder(here().join("recipes"));
        let table = loader.load::<toml::Table>(kind, &[]).unwrap_or_else(|error| panic!("{error}"));
        let data = self.path(table.value["data"]["path"].as_str().unwrap());
        let mut overrides = vec![format!("data.path={data:?}")];
        overrides.extend(more.iter().map(|text| text.to_string()));
        let run = tasks::load(&loader, kind, &overrides).unwrap_or_else(|error| panic!("{error}"));
        let (folder, device, stop) = (self.path(out), Device::flex(), StopFlag::new_unhooked());
        let record = record.map(|path| RecordOptions { path: path.to_owned(), steps: STEPS as u64 });
        let context = StageContext { record: record.as_ref(), ..StageContext::new(&folder, &device, &stop) };
        match run.train(&context)? {
            StageEnd::Done(summary) => Ok(summary),
            StageEnd::Interrupted { .. } => panic!("nobody asked to stop"),
        }
    }

    /// A run as it was when its process was killed behind its first checkpoint.
    pub(crate) fn killed(&self, run: &str, copy: &str) {
        let (from, to) = (self.path(run), self.path(copy));
        fs::create_dir_all(to.join(CHECKPOINTS)).unwrap();
        for file in ["recipe.toml", "encoders.json", "metrics.jsonl"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
        let mut checkpoints: Vec<PathBuf> =
            fs::read_dir(from.join(CHECKPOINTS)).unwrap().map(|entry| entry.unwrap().path()).collect();
        checkpoints.sort();
        assert_eq!(checkpoints.len(), 2, "{checkpoints:?}");
        let first = &checkpoints[0];
        let place = to.join(CHECKPOINTS).join(first.file_name().unwrap());
        fs::create_dir(&place).unwrap();
        for entry in fs::read_dir(first).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, place.join(path.file_name().unwrap())).unwrap();
        }
    }

    /// All files of a run's model, and its logs without times.
    pub(crate) fn left_by(&self, run: &str) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        collect(&self.path(run).join(MODEL), "", &mut files);
        let metrics = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            TIMED.iter().for_each(|key| drop(line.as_object_mut().unwrap().remove(*key)));
            line.to_string()
        });
        files.push(("metrics".to_owned(), lines.collect::<Vec<_>>().join("\n").into_bytes()));
        files.sort();
        files
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => collect(&path, &format!("{name}/"), files),
            false => files.push((name, fs::read(&path).unwrap())),
        }
    }
}

/// A task's recipe, with its dataset.
pub(crate) fn recipe_text(world: &World, kind: &str) -> String {
    let loader = RecipeLoader::new().folder(here().join("recipes"));
    let data = world.path(loader.load::<toml::Table>(kind, &[]).unwrap().value["data"]["path"].as_str().unwrap());
    tasks::load(&loader, kind, &[format!("data.path={data:?}")]).unwrap().text().to_owned()
}

pub(crate) fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it")
}

#[test]
fn every_task_resumes_exports_and_learns_as_in_pytorch() {
    let world = World::new();
    for kind in TASKS.iter().map(|task| task.kind) {
        let record = world.path(&format!("{kind}.safetensors"));
        let whole = format!("{kind}-whole");
        let summary = world.train(kind, &whole, &[], Some(&record)).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(summary.steps, STEPS as u64, "{kind}");

        let resumed = format!("{kind}-resumed");
        world.killed(&whole, &resumed);
        world.train(kind, &resumed, &[], None).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let (expected, found) = (world.left_by(&whole), world.left_by(&resumed));
        assert!(expected == found, "{kind}: a run that was killed and resumed ends otherwise");

        let model = Checkpoint::open(world.path(&whole).join(MODEL)).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!(!model.components().is_empty() && model.unused().is_empty(), "{kind}: {:?}", model.unused());
        for component in model.components() {
            assert_eq!(model.component(component).unwrap().missing, Vec::<String>::new(), "{kind}");
        }
        compare_with_pytorch(kind, &record, &world.path(&whole).join(MODEL));
        world.init_from_own_model(kind, &whole);
    }
}

/// As every task, with all that is random in a ViT's training, in parts of a batch, and with an average; and the same bits
/// whatever is kept for the backward pass.
#[test]
fn a_vit_resumes_with_augmentations_mixing_and_stochastic_depth() {
    let world = World::new();
    let augment = "data.augment={ flip = 0.5, normalise = \"imagenet\", resized_crop = { scale = [0.3, 1.0] }, \
                   rand_augment = { timm = { deviation = 0.5, increasing = true } } }";
    let random = [
        augment,
        "objective.mix={ mixup = 0.8, cutmix = 1.0 }",
        "model.dropout=0.1",
        "model.drop_path=0.3",
        "optimizer.accumulate=2",
        "ema={ half_life = 16 }",
    ];
    let train = |out: &str, more: &[&str]| {
        world.train("vit", out, &[&random[..], more].concat(), None).unwrap_or_else(|error| panic!("{out}: {error}"));
    };
    train("whole", &[]);
    world.killed("whole", "resumed");
    train("resumed", &[]);
    let expected = world.left_by("whole");
    assert!(expected == world.left_by("resumed"), "a run that was killed and resumed ends otherwise");
    for memory in ["memory.recompute={ uniform = 2 }", "memory.recompute={ block = 1 }"] {
        let out = memory.replace([' ', '{', '}', '='], "");
        train(&out, &[memory]);
        assert!(expected == world.left_by(&out), "{memory}: other bits");
    }
    // Pairs of neighbours are the same ones in parts of any size.
    let pairs = |out: &str, parts: &str| {
        let more = ["objective.mix={ mixup = 0.8, cutmix = 1.0, mode = \"pair\" }", parts];
        train(out, &more);
        let file = TensorFile::open(world.path(out).join(MODEL).join("model.safetensors")).unwrap();
        file.get("classifier.weight").unwrap().to_f32_vec().unwrap()
    };
    let (one, two) = (pairs("one", "optimizer.accumulate=1"), pairs("two", "optimizer.accumulate=2"));
    assert!(one.iter().zip(&two).all(|(a, b)| (a - b).abs() < 1e-4), "pairs were divided otherwise");
    let error = world.train("vit", "odd", &["objective.mix={ mixup = 0.8 }", "run.batch_size=3"], None).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("run.batch_size"), "{error}");
}

/// Losses of the recorded steps against those that PyTorch computed in a replay of such a record.
fn compare_with_pytorch(kind: &str, record: &Path, model: &Path) {
    let path = here().join("golden").join(format!("{kind}.json"));
    if let Some(keep) = std::env::var_os("CALOTYPE_KEEP_RECORDS") {
        fs::create_dir_all(&keep).unwrap();
        fs::copy(record, Path::new(&keep).join(format!("{kind}.safetensors"))).unwrap();
        let mut files = Vec::new();
        collect(model, "", &mut files);
        for (name, bytes) in files {
            let path = Path::new(&keep).join(format!("{kind}-model")).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        return;
    }
    let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; see README.md there", path.display()));
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let losses: Vec<f64> = golden["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), STEPS, "{kind}");
    let file = TensorFile::open(record).unwrap();
    for (step, expected) in losses.iter().enumerate() {
        let tensor = file.get(&format!("step{step}.loss")).unwrap();
        let found = f64::from(tensor.to_f32_vec().unwrap()[0]);
        assert!((found - expected).abs() <= 1e-4, "{kind}, step {step}: loss {found}, in PyTorch {expected}");
    }
}

impl World {
    /// A run can begin with what an earlier run has written: its first loss is near the earlier one's last.
    fn init_from_own_model(&self, kind: &str, run: &str) {
        let model = format!("init_from={:?}", self.path(run).join(MODEL));
        let again = format!("{kind}-again");
        let begun = self.train(kind, &again, &[&model], None).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let fresh: Value = serde_json::from_slice(&fs::read(self.path(run).join("result.json")).unwrap()).unwrap();
        assert!(begun.loss_first != fresh["loss_first"].as_f64().unwrap(), "{kind}: the weights were not taken");
    }
}

#[test]
fn initial_weights_that_do_not_fit() {
    let world = World::new();
    world.train("vit", "first", &[], None).unwrap();
    let model = world.path("first").join(MODEL);
    let error = |more: &[&str]| world.train("vit", "second", more, None).unwrap_err();
    let from = format!("init_from={model:?}");
    let shape = error(&[&from, "model.mlp_channels=48"]);
    assert!(shape.is_usage() && shape.to_string().contains("the network of the recipe has"), "{shape}");
    let unused = error(&[&from, "model.layers=1"]);
    assert!(unused.is_usage() && unused.to_string().contains("init_from.allow_unused = true"), "{unused}");
    let missing = error(&[&from, "model.layers=3"]).to_string();
    assert!(missing.contains("vit.encoder.layer.2.") && missing.contains("allow_missing = true"), "{missing}");
    let part = error(&[&format!("init_from={{ parts = {{ vision = {model:?} }} }}")]).to_string();
    assert!(part.contains("begins with `vision`") && part.contains("classifier, vit"), "{part}");
    let absent = error(&["init_from=\"/nowhere\""]).to_string();
    assert!(absent.contains("init_from: ") && absent.contains("/nowhere"), "{absent}");
    let allowed = format!("init_from={{ path = {model:?}, allow_missing = true }}");
    world.train("vit", "third", &[&allowed, "model.layers=3"], None).unwrap();
    let encoder = format!("init_from={{ parts = {{ \"vit.encoder\" = {model:?} }} }}");
    world.train("vit", "fourth", &[&encoder], None).unwrap();
}

#[test]
fn parts_of_a_batch_add_up_to_the_batch() {
    let world = World::new();
    let record = |name: &str| world.path(&format!("{name}.safetensors"));
    world.train("diffusion", "one", &[], Some(&record("one"))).unwrap();
    world.train("diffusion", "two", &["optimizer.accumulate=2"], Some(&record("two"))).unwrap();
    let [one, two] = ["one", "two"].map(|name| TensorFile::open(record(name)).unwrap());
    for step in 0..STEPS {
        let figure = |file: &TensorFile, name: &str| {
            f64::from(file.get(&format!("step{step}.{name}")).unwrap().to_f32_vec().unwrap()[0])
        };
        for name in ["loss", "gradient_norm"] {
            let (one, two) = (figure(&one, name), figure(&two, name));
            assert!((one - two).abs() <= 1e-4 * one.abs().max(1.0), "step {step}: {name} {one} and {two}");
        }
    }
    assert!(two.get("step0.part1.sample").is_ok() && one.get("step0.sample").is_ok());
    // Neither another run's recording nor another file is written over, and a run that is done cannot be recorded any more.
    for (run, more, place, part) in [
        ("one", &["run.samples=400"][..], "one", "a recording of another run"),
        ("three", &["run.seed=99"], "one", "a recording of another run"),
        ("three", &[], "one/recipe.toml", "something is there already"),
        ("three", &[], "nowhere/three", "there is no folder"),
        ("one", &[], "new", "a recording begins with the first step"),
    ] {
        let path = if place.contains(".toml") { world.path(place) } else { record(place) };
        let error = world.train("diffusion", run, more, Some(&path)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(part), "{run} {place}: {error}");
    }
    let before = fs::read(record("one")).unwrap();
    world.train("diffusion", "one", &[], Some(&record("one"))).unwrap();
    assert!(fs::read(record("one")).unwrap() == before, "a run that is done is left alone, with its recording");
}

#[test]
fn hooks_measure_show_and_end_a_run() {
    let world = World::new();
    let held_out = format!("hooks.evaluate={{ path = {:?}, every = 8, samples = 8 }}", world.path("images"));
    let preview = "hooks.preview={ every = 16 }";
    let summary = world.train("autoencoder", "measured", &[&held_out, preview], None).unwrap();
    assert_eq!(summary.target, None);
    let losses = |run: &str| -> Vec<f64> {
        let text = fs::read_to_string(world.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| line.get("validation/loss")?.as_f64()).collect()
    };
    let measured = losses("measured");
    assert_eq!(measured.len(), 10, "every second step of 4 samples");
    assert!(measured[9] < measured[0]);
    let target = format!("hooks.target={{ metric = \"validation/loss\", at_most = {} }}", measured[4]);
    let summary = world.train("autoencoder", "ended", &[&held_out, &target], None).unwrap();
    let first_reached = measured.iter().position(|loss| *loss <= measured[4]).unwrap();
    assert_eq!(summary.samples_seen, 8 * (first_reached as u64 + 1));
    assert!(summary.target.unwrap().contains("validation/loss"));
    assert!(world.path("ended").join(MODEL).is_dir());
    let error = world.train("autoencoder", "bad", &["hooks.target={ metric = \"loss\" }"], None).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("`hooks.target`"), "{error}");
}

#[test]
fn what_could_not_be_written_is_refused_before_training() {
    let world = World::new();
    let cases: [(&str, &[&str], &[&str]); 4] = [
        ("vit", &["model.class_tokens=0"], &["`model.class_tokens`", "reads a class token"]),
        ("vit", &["model.drop_path=1"], &["`model.drop_path`"]),
        ("clip", &["objective.loss=siglip"], &["`model.logit_bias`", "model.logit_bias = true"]),
        ("clip", &["model.logit_bias=true"], &["`model.logit_bias`", "objective.loss = \"siglip\""]),
    ];
    for (kind, settings, words) in cases {
        let error = world.train(kind, "refused", settings, None).unwrap_err();
        let text = error.to_string();
        assert!(error.is_usage() && words.iter().all(|word| text.contains(word)), "{kind} {settings:?}: {text}");
        assert!(!world.path("refused").join("recipe.toml").exists(), "{kind}: a run was begun");
    }
}

/// What transformers' ViT has not is written as a model of Calotype's own, opened again, and fine-tuned.
#[test]
fn a_vit_that_transformers_cannot_describe_is_written_and_fine_tuned() {
    let world = World::new();
    let own = ["model.class_tokens=2", "model.pooling=true"];
    world.train("vit", "own", &own, None).unwrap();
    let model = world.path("own").join(MODEL);
    let checkpoint = Checkpoint::open(&model).unwrap();
    let classifier = checkpoint.component(Component::Classifier).unwrap();
    assert_eq!(classifier.config["model_type"], "calotype_vit");
    assert!(classifier.missing.is_empty() && checkpoint.unused().is_empty());
    let from = format!("init_from={model:?}");
    // Another grid of patches, and a head of its own: the one before stood behind a layer.
    let tuned = ["model.class_tokens=2", "model.image_size=24", "optimizer={ name = \"sgd\", learning_rate = 1e-6 }"];
    let summary = world.train("vit", "tuned", &[&tuned[..], &[&from]].concat(), None).unwrap();
    // A head of zeros gives all classes the same probability.
    assert!((summary.loss_first - 3f64.ln()).abs() < 1e-3, "{}", summary.loss_first);
    let error = world.train("vit", "wider", &[&tuned[..], &[&from, "model.channels=16"]].concat(), None).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("has shape"), "{error}");
}

#[test]
fn hooks_that_would_show_nothing_are_refused() {
    let world = World::new();
    let drawing = "hooks.preview={ every = 16, prompts = [\"a cat\"] }";
    for (kind, preview, words) in [
        ("clip", "hooks.preview={ every = 16 }", "`hooks.preview`: a run of kind `clip` has nothing to show"),
        ("vit", drawing, "`hooks.preview`: a run of kind `vit` has nothing to show"),
        ("autoencoder", drawing, "`hooks.preview`: takes prompts"),
        ("diffusion", "hooks.preview={ every = 16 }", "`hooks.preview.prompts`"),
        ("diffusion", drawing, "its text encoder is not at hand; name it by the recipe's text.model"),
    ] {
        let error = world.train(kind, "refused", &[preview], None).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(words), "{kind}: {error}");
    }
    let ranges = format!("hooks.evaluate={{ path = {:?}, every = 8, samples = 8, ranges = 4 }}", world.path("images"));
    let error = world.train("vit", "refused", &[&ranges], None).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("`hooks.evaluate.ranges`"), "{error}");
}

/// A diffusion run whose captions are encoded in training knows its text encoder, and draws.
#[test]
fn a_diffusion_run_draws_and_is_judged_by_ranges_of_timesteps() {
    let world = World::new();
    world.write("captioned", |number| {
        let wave = (0..128).map(|i| ((i + 3 * number) as f32 * 0.37).sin()).collect();
        let moments = NpyArray::from_f32(&[1, 8, 4, 4], wave).unwrap();
        Sample::new(format!("{number:03}")).with("npy", moments.to_bytes()).with("txt", "a cat")
    });
    let parts = world.path("parts");
    RandomCheckpoint::new(RandomFamily::Tiny).write(&parts).unwrap();
    let held_out = world.path("captioned");
    let settings = [
        format!("data.path={held_out:?}"),
        format!("text={{ model = {parts:?} }}"),
        format!("autoencoder={parts:?}"),
        format!("hooks.evaluate={{ path = {held_out:?}, every = 40, samples = 8, ranges = 4 }}"),
        "hooks.preview={ every = 40, prompts = [\"a cat\", \"a boat\"], steps = 2, seed = 3 }".to_owned(),
        "trackers.wandb={ project = \"p\", id = \"drawing1\" }".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    world.train("diffusion", "drawn", &settings, None).unwrap();
    world.train("diffusion", "again", &settings, None).unwrap();
    let evaluations = |run: &str| -> Vec<[f64; 5]> {
        let text = fs::read_to_string(world.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let names = ["loss", "loss_0_250", "loss_250_500", "loss_500_750", "loss_750_1000"];
        let of = |line: Value| {
            line.get("validation/loss")?;
            Some(names.map(|name| line[format!("validation/{name}")].as_f64().unwrap()))
        };
        lines.filter_map(of).collect()
    };
    let measured = evaluations("drawn");
    assert_eq!(measured.len(), 2);
    for [all, ranges @ ..] in &measured {
        assert!((all - ranges.iter().sum::<f64>() / 4.0).abs() < 1e-9 && ranges[0] != ranges[3], "{measured:?}");
    }
    assert_eq!(evaluations("again"), measured, "timesteps and noise are fixed");
    let images = |run: &str| -> Vec<(String, Vec<u8>)> {
        let wandb = fs::read_dir(world.path(run).join("wandb")).unwrap().next().unwrap().unwrap().path();
        let mut files = Vec::new();
        collect(&wandb.join("files/media/images/preview"), "", &mut files);
        files.sort();
        files
    };
    let drawn = images("drawn");
    assert_eq!(drawn.len(), 4);
    for ((name, content), begin) in drawn.iter().zip(["a boat_40_", "a boat_80_", "a cat_40_", "a cat_80_"]) {
        assert!(name.starts_with(begin), "{name}");
        assert!(RgbImage::decode(name, content).unwrap().width() > 0);
    }
    assert!(drawn == images("again"));
}

#[test]
fn a_fault_of_the_model_is_said_once() {
    let error = World::new().train("clip", "refused", &["model.vision.patch_size=5"], None).unwrap_err();
    assert_eq!(error.to_string().matches("does not divide").count(), 1, "{error}");
    assert!(std::error::Error::source(&error).is_none(), "the command line would say it once more");
}

/// Root may write to any folder, so that a file in its place has to do.
#[test]
fn a_folder_that_cannot_be_written_to_is_not_free() {
    let world = World::new();
    fs::write(world.path("file"), "").unwrap();
    let loader = RecipeLoader::new().folder(here().join("recipes"));
    let run = tasks::load(&loader, "vit", &[format!("data.path={:?}", world.path("images"))]).unwrap();
    let (device, stop) = (Device::flex(), StopFlag::new_unhooked());
    let check = |out: &str| run.check(&StageContext::new(&world.path(out), &device, &stop));
    assert!(check("free").unwrap().folder.contains("is free"));
    let error = check("file/run").unwrap_err().to_string();
    assert!(error.contains("file/run") && error.contains("is a file, and what is written needs a folder"), "{error}");
}

#[test]
fn a_model_that_is_gone_is_written_again() {
    let world = World::new();
    world.train("clip", "run", &[], None).unwrap();
    let model = world.path("run").join(MODEL);
    let files = || {
        let mut files = Vec::new();
        collect(&model, "", &mut files);
        files
    };
    let before = files();
    fs::remove_dir_all(&model).unwrap();
    world.train("clip", "run", &[], None).unwrap();
    assert!(files() == before, "another model than the run's");
    fs::remove_dir_all(&model).unwrap();
    fs::remove_dir_all(world.path("run").join(CHECKPOINTS)).unwrap();
    let error = world.train("clip", "run", &[], None).unwrap_err();
    let text = error.to_string();
    assert!(error.is_usage() && text.contains("neither its model/ nor a checkpoint in checkpoints/"), "{text}");
    assert!(!model.exists());
}

#[test]
fn a_folder_of_something_else_takes_no_run() {
    let world = World::new();
    let loader = RecipeLoader::new().folder(here().join("recipes"));
    let run = tasks::load(&loader, "vit", &[format!("data.path={:?}", world.path("images"))]).unwrap();
    let (device, stop) = (Device::flex(), StopFlag::new_unhooked());
    for (out, files, what) in [
        ("quickstart", &["quickstart.json"][..], "holds a quickstart (quickstart.json)"),
        ("pipeline", &["model_index.json"], "holds a model (model_index.json)"),
        ("clip", &["config.json", "model.safetensors"], "holds a model (config.json, model.safetensors)"),
        ("beside", &["model/paper.tex"], "holds a folder `model` that is no run's"),
        ("runs", &["one/recipe.toml", "one/result.json"], "holds a folder of runs (one, …)"),
        ("starts", &["smoke/quickstart.json"], "holds a folder of runs (smoke, …)"),
    ] {
        for file in files {
            let path = world.path(out).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let error = run.check(&StageContext::new(&world.path(out), &device, &stop)).unwrap_err();
        let text = error.to_string();
        assert!(error.is_usage() && text.contains(what) && text.contains("--out"), "{text}");
    }
    assert!(run.check(&StageContext::new(&world.path("runs/two"), &device, &stop)).is_ok());
}

/// MLPerf's variant has other groups in its transformers' norms, for which diffusers has no field.
#[test]
fn a_unet_that_diffusers_cannot_describe_is_written_in_our_own_layout() {
    let world = World::new();
    world.train("diffusion", "own", &["model.transformer_norm_groups=8"], None).unwrap();
    let checkpoint = Checkpoint::open(world.path("own")).unwrap();
    let unet = checkpoint.component(Component::Unet).unwrap();
    assert_eq!(unet.config["transformer_norm_num_groups"], 8);
    assert!(checkpoint.prediction().is_some(), "the prediction type is not in the folder");
}

#[test]
fn an_autoencoder_measures_its_scaling_factor() {
    let world = World::new();
    let config = |run: &str| -> Value {
        let path = world.path(run).join(MODEL).join("config.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    world.train("autoencoder", "measured", &["run.samples=40"], None).unwrap();
    let measured = config("measured");
    assert!(measured.get(calotype_checkpoints::SCALE_UNKNOWN).is_none());
    let scale = measured["scaling_factor"].as_f64().unwrap();
    // One over the deviation of the latents' means of all 24 images.
    let network = ImageEncoder::open(
        &world.path("measured").join(MODEL),
        ImageEncoderKind::Autoencoder,
        ImageOutput::Auto,
        ImageInput::in_range(16, -1.0, 1.0),
        burn::tensor::DType::F32,
        &Device::flex(),
    )
    .unwrap();
    let dataset = Dataset::open(world.path("images")).unwrap();
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
    for sample in dataset.iter() {
        let image = RgbImage::decode("x", sample.unwrap().part("png").unwrap()).unwrap();
        let prepared = network.input().prepare(&image, Some(Filter::Bicubic)).unwrap();
        let (_, moments) = network.encode(&[prepared]).unwrap();
        for &value in &moments[..moments.len() / 2] {
            (sum, squares, count) = (sum + f64::from(value), squares + f64::from(value).powi(2), count + 1.0);
        }
    }
    let mean: f64 = sum / count;
    let expected = 1.0 / (squares / count - mean * mean).sqrt();
    assert!((scale / expected - 1.0).abs() < 1e-3, "{scale} instead of {expected}");
    world.train("autoencoder", "given", &["run.samples=40", "model.scaling_factor=0.5"], None).unwrap();
    assert_eq!(config("given")["scaling_factor"], 0.5);
}
