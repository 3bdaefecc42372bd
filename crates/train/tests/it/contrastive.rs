//! CLIP's training by several processes and in parts: against open_clip's own training loop, whose golden values
//! `golden/make_contrastive.py` makes, and against itself.

use crate::steps::weights;
use crate::tasks::World;
use burn::tensor::Device;
use calotype_collective::{Collective, Group, Local, Memory, Payload};
use calotype_data::Sample;
use calotype_data::image::{PngEffort, RgbImage};
use calotype_models::{Clip, Init, state};
use calotype_train::config::TrainingRecipe;
use calotype_train::stages::{Recipe, StageContext, StageEnd};
use calotype_train::task::Task;
use calotype_train::tasks::clip::{ClipRecipe, ClipTask};
use calotype_train::trainer::{Outcome, train};
use calotype_train::{RecipeLoader, StopFlag};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Of golden runs: steps, and samples of each.
const STEPS: usize = 20;
const BATCH: usize = 16;
/// How far losses and logit scales may be from open_clip's, relatively.
const BOUND: f64 = 1e-4;
/// How far losses of other parts of a batch may be, relatively, in `f32`: rounding alone.
const ROUNDING: f64 = 1e-5;

const COLOURS: [&str; 8] = ["red", "blue", "green", "black", "white", "pink", "brown", "grey"];
const THINGS: [&str; 8] = ["cat", "dog", "boat", "house", "tree", "car", "cup", "hat"];
const NUMBERS: [&str; 5] = ["one", "two", "three", "four", "five"];

/// Number `number` of the samples of the golden runs: a picture and its caption, and its colour as class.
fn sample(number: usize) -> Sample {
    let (a, b, c) = (number % 8, number / 8 % 8, number / 64);
    let level = |i: usize| {
        let (y, x, channel) = (i / 48, i / 3 % 16, i % 3);
        ((37 * a * (channel + 1) + 11 * b * (x / 4) + 29 * c * (y / 4) + 7 * x + 5 * y + number % 13) % 256) as u8
    };
    let image = RgbImage::new(16, 16, (0..3 * 256).map(level).collect()).unwrap();
    Sample::new(format!("{number:03}"))
        .with("png", image.encode_png(PngEffort::Fast).unwrap())
        .with("txt", format!("{} {} {}", NUMBERS[c], COLOURS[a], THINGS[b]))
        .with("cls", a.to_string())
}

/// A world with the samples of the golden runs.
fn world() -> World {
    let world = World::new();
    world.write_many("pairs", STEPS * BATCH, sample);
    world
}

/// The recipe of a run: the tables of a case between those that all have.
fn recipe(world: &World, tables: &str, samples: usize) -> String {
    let bias = tables.contains("loss = \"siglip\"");
    let data = world.path("pairs");
    format!(
        "kind = \"clip\"\n[data]\npath = {data:?}\nshuffle = \"sequential\"\n[model]\nprojection = 16\nlogit_bias = {bias}\n\
         [model.text]\ncontext_length = 8\nchannels = 32\nlayers = 2\nheads = 2\nactivation = \"quick_gelu\"\n\
         [model.vision]\nimage_size = 16\npatch_size = 4\nchannels = 32\nlayers = 2\nheads = 2\nactivation = \"quick_gelu\"\n\
         {tables}[run]\nseed = 7\nsamples = {samples}\nbatch_size = {BATCH}\nprecision = \"f32\"\nlog_every = {BATCH}\n\
         checkpoint_every = {samples}\n"
    )
}

/// What a run came to.
struct Trained {
    /// Of each step.
    losses: Vec<f64>,
    /// Of the last weights, by name.
    weights: BTreeMap<String, Vec<f32>>,
}

/// Calls `body` in as many threads as there are to be processes, with what connects them; gives what it gives the first.
fn in_ranks<R: Send>(ranks: usize, body: impl Fn(&dyn Collective) -> R + Sync) -> R {
    if ranks == 1 {
        return body(&Local);
    }
    let members = Memory::members(ranks, Duration::from_secs(120));
    std::thread::scope(|scope| {
        let start = |member: Memory| {
            let body = &body;
            scope.spawn(move || body(&Group::new(member, Payload::F32)))
        };
        let threads: Vec<_> = members.into_iter().map(start).collect();
        let mut found: Vec<R> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        found.swap_remove(0)
    })
}

/// The weights of the golden runs; the logits' parameters begin as the recipe says.
fn network(task: &ClipTask) -> Clip {
    let device = Device::flex().autodiff();
    let model = task.model(&mut Init::new(7, &device)).unwrap();
    let lookup = |name: &str, shape: &[usize]| -> Result<Option<Vec<f32>>, Infallible> {
        Ok((!name.starts_with("logit_")).then(|| weights(name, shape)))
    };
    state::load_some(model, lookup).unwrap()
}

/// Trains from the weights of the golden runs.
fn trained(world: &World, run: &str, text: &str, ranks: usize) -> Trained {
    let value: ClipRecipe = toml::from_str(text).unwrap_or_else(|error| panic!("{run}: {error}"));
    value.check_shared().unwrap_or_else(|error| panic!("{run}: {error}"));
    ClipTask::check(&value).unwrap_or_else(|error| panic!("{run}: {error}"));
    let folder = world.path(run);
    let weights = in_ranks(ranks, |collective| {
        let (device, stop) = (Device::flex(), StopFlag::new_unhooked());
        let context = StageContext { collective, ..StageContext::new(&folder, &device, &stop) };
        let task = ClipTask::open(&value, &context).unwrap();
        match train(&task, network(&task), Recipe { value: &value, text }, &context) {
            Ok(Outcome::Finished(model, _)) => {
                let named = state::collect(&model).into_iter().map(|tensor| (tensor.name, tensor.values));
                named.collect::<BTreeMap<_, _>>()
            }
            other => panic!("{run}: {other:?}"),
        }
    });
    Trained { losses: numbers(&folder, "loss"), weights }
}

/// The values of a name in a run's logs.
fn numbers(folder: &Path, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line.get(name)?.as_f64()).collect()
}

#[derive(Deserialize)]
struct Golden {
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    ranks: usize,
    recipe: String,
    losses: Vec<f64>,
    /// The logarithm of the logit scale behind each step.
    scales: Vec<f64>,
}

/// Every loss of 20 steps by 1, 2 and 4 processes, in 1, 2 and 4 parts, with all losses, patch dropout, clamps and weight decay.
#[test]
fn twenty_steps_are_those_of_open_clip() {
    let world = world();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden/contrastive.json");
    let golden: Golden = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(golden.cases.len() >= 30);
    for (name, case) in &golden.cases {
        let found = trained(&world, name, &recipe(&world, &case.recipe, STEPS * BATCH), case.ranks);
        assert_eq!((found.losses.len(), case.losses.len()), (STEPS, STEPS), "{name}");
        for (step, (loss, expected)) in found.losses.iter().zip(&case.losses).enumerate() {
            let apart = (loss / expected - 1.0).abs();
            assert!(apart <= BOUND, "{name}, step {step}: loss {loss}, of open_clip {expected}");
        }
        let (scale, expected) = (f64::from(found.weights["logit_scale"][0]), case.scales[STEPS - 1]);
        assert!((scale / expected - 1.0).abs() <= BOUND, "{name}: logit scale {scale}, of open_clip {expected}");
        fs::remove_dir_all(world.path(name)).unwrap();
    }
}

/// The tables of a run without golden values.
fn tables(loss: &str, more: &str) -> String {
    format!(
        "[objective]\nloss = \"{loss}\"\nclamp = \"step\"\npatch_dropout = 0.25\n[optimizer]\nlearning_rate = 1e-3\nbeta2 = 0.98\n\
         eps = 1e-6\ngradient_clip = 1.0\n{more}"
    )
}

#[test]
fn with_whole_samples_any_parts_and_processes_give_the_same_bits() {
    let world = world();
    for loss in ["full", "local", "siglip"] {
        let run = |parts: usize, ranks: usize| {
            let more = format!("accumulate = {parts}\n[distributed]\nreproducible = \"samples\"\n");
            let name = format!("{loss} {parts} {ranks}");
            trained(&world, &name, &recipe(&world, &tables(loss, &more), 4 * BATCH), ranks)
        };
        let first = run(1, 1);
        for (parts, ranks) in [(8, 1), (4, 2), (2, 4)] {
            let found = run(parts, ranks);
            assert!(found.losses == first.losses, "{loss}: {parts} parts, {ranks} processes");
            assert!(found.weights == first.weights, "{loss}: {parts} parts, {ranks} processes");
        }
    }
}

#[test]
fn parts_and_processes_agree_to_rounding() {
    let world = world();
    let both: &[(usize, usize)] = &[(2, 1), (16, 1), (1, 2), (2, 4)];
    for (loss, others) in [("full", both), ("siglip", both), ("local", &[(8, 2)])] {
        let run = |parts: usize, ranks: usize| {
            let name = format!("{loss} {parts} {ranks}");
            let more = format!("accumulate = {parts}\n");
            trained(&world, &name, &recipe(&world, &tables(loss, &more), STEPS * BATCH), ranks).losses
        };
        let first = run(1, 1);
        for &(parts, ranks) in others {
            for (step, (found, expected)) in run(parts, ranks).iter().zip(&first).enumerate() {
                let apart = (found / expected - 1.0).abs();
                assert!(apart <= ROUNDING, "{loss}, {parts} parts, {ranks} processes, step {step}: {apart:.1e}");
            }
        }
    }
}

/// The task table's recipe with more settings, by several processes.
fn train_table(world: &World, out: &str, more: &[&str], ranks: usize) {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/recipes");
    let mut overrides = vec![format!("data.path={:?}", world.path("images"))];
    overrides.extend(more.iter().map(|text| (*text).to_owned()));
    let folder = world.path(out);
    in_ranks(ranks, |collective| {
        let loader = RecipeLoader::new().folder(recipes.clone());
        let run = calotype_train::tasks::load(&loader, "clip", &overrides).unwrap_or_else(|error| panic!("{error}"));
        let (device, stop) = (Device::flex(), StopFlag::new_unhooked());
        let context = StageContext { collective, ..StageContext::new(&folder, &device, &stop) };
        match run.train(&context).unwrap_or_else(|error| panic!("{out}: {error}")) {
            StageEnd::Done(_) => {}
            StageEnd::Interrupted { .. } => panic!("nobody asked to stop"),
        }
    });
}

#[test]
fn two_processes_with_parts_and_an_average_resume_bit_for_bit() {
    let world = World::new();
    for (number, more) in [
        &["objective.loss=local", "run.precision=f32"][..],
        &["objective.loss=local", "run.precision=bf16"],
        &["objective.loss=siglip", "model.logit_bias=true", "objective.clamp=step", "objective.patch_dropout=0.5"],
        &["objective.loss=full", "objective.clamp=step", "distributed.reproducible=samples"],
    ]
    .into_iter()
    .enumerate()
    {
        let shared = ["optimizer.accumulate=2", "ema={ name = \"constant\", decay = 0.9, interval = 4 }"];
        let more: Vec<&str> = shared.into_iter().chain(more.iter().copied()).collect();
        let (whole, resumed) = (format!("whole-{number}"), format!("resumed-{number}"));
        train_table(&world, &whole, &more, 2);
        world.killed(&whole, &resumed);
        train_table(&world, &resumed, &more, 2);
        let without_clock = |run: &str| -> Vec<(String, Vec<u8>)> {
            let clock = |line: &str| {
                let mut line: Value = serde_json::from_str(line).unwrap();
                line.as_object_mut().unwrap().retain(|key, _| !key.starts_with("communication_"));
                line.to_string()
            };
            let mut files = world.left_by(run);
            let metrics = files.iter_mut().find(|(name, _)| name == "metrics").unwrap();
            let lines = std::str::from_utf8(&metrics.1).unwrap().lines().map(clock).collect::<Vec<_>>();
            metrics.1 = lines.join("\n").into_bytes();
            files
        };
        assert!(
            without_clock(&whole) == without_clock(&resumed),
            "{more:?}: a run that was killed and resumed ends otherwise"
        );
    }
}

/// The average holds what the clamp leaves, and a model with a bias is written, read and begun with again.
#[test]
fn a_model_with_a_bias_is_taken_up_again() {
    let world = World::new();
    let more = ["objective.loss=siglip", "model.logit_bias=true"];
    train_table(&world, "first", &more, 1);
    let model = world.path("first").join("model");
    let checkpoint = calotype_checkpoints::Checkpoint::open(&model).unwrap();
    assert!(checkpoint.unused().is_empty(), "{:?}", checkpoint.unused());
    let source = checkpoint.component(calotype_checkpoints::Component::Clip).unwrap();
    assert!(source.missing.is_empty() && source.config["logit_bias"] == true);
    let from = format!("init_from={model:?}");
    train_table(&world, "second", &[&more[..], &[&from]].concat(), 1);
    let [first, second] = ["first", "second"].map(|run| numbers(&world.path(run), "loss"));
    assert!(second[0] < first[0], "{first:?} {second:?}");
}

#[test]
fn zero_shot_and_retrieval_rise_along_training() {
    let world = world();
    let data = world.path("pairs");
    let text = |more: &str| {
        recipe(&world, "[objective]\nclamp = \"step\"\n[optimizer]\nlearning_rate = 2e-3\nbeta2 = 0.98\neps = 1e-6\ngradient_clip = 1.0\nweight_decay = 0.1\n\
             schedule = { name = \"constant\", warmup = { steps = 10 } }\n", 2880)
        .replace("shuffle = \"sequential\"\n", "")
        .replace("batch_size = 16", "batch_size = 32")
        .replace("log_every = 16", "log_every = 320")
            + &format!(
                "[hooks.vision]\nevery = 320\n[hooks.vision.recipes.zero_shot]\nkind = \"zero_shot\"\nclasses = {COLOURS:?}\n\
                 templates = [\"two {{}} dog\", \"one {{}} boat\"]\nbatch_size = 64\nks = [1, 5]\ndata = {{ path = {data:?} }}\n\
                 [hooks.vision.recipes.retrieval]\nkind = \"retrieval\"\nbatch_size = 64\nks = [1, 10]\ndata = {{ path = {data:?} }}\n{more}"
            )
    };
    trained(&world, "rising", &text(""), 1);
    let folder = world.path("rising");
    for (name, chance, reached) in [
        ("vision/zero_shot_top_1", 0.125, 0.5),
        ("vision/retrieval_image_to_text_recall_at_10", 0.03125, 0.15),
        ("vision/retrieval_text_to_image_recall_at_10", 0.03125, 0.15),
    ] {
        let found = numbers(&folder, name);
        assert_eq!(found.len(), 9, "{name}");
        let (first, last) = (found[0], found[8]);
        assert!(last > first && last >= reached && last > 2.0 * chance, "{name}: {found:?}");
    }
    assert!(!folder.join(".vision").exists(), "the model that was judged is gone");
    // Of several processes, one judges, and the others wait.
    trained(&world, "two", &text("").replace("samples = 2880", "samples = 320"), 2);
    assert_eq!(numbers(&world.path("two"), "vision/zero_shot_top_1").len(), 1);
    // A target may be one of its figures.
    let target = "[hooks.target]\nmetric = \"vision/zero_shot_top_1\"\nat_least = 0.0\n";
    let ended = trained(&world, "ended", &text(target), 1);
    assert_eq!(ended.losses.len(), 1);
    assert_eq!(numbers(&world.path("ended"), "vision/zero_shot_top_1").len(), 1);
    let wrong = text("[hooks.target]\nmetric = \"vision/zero_shot_top_2\"\nat_least = 0.0\n");
    let problem = toml::from_str::<ClipRecipe>(&wrong).unwrap().check_shared().unwrap_err();
    assert!(problem.key == "hooks.target.metric" && problem.problem.contains("vision/zero_shot_top_1"), "{problem}");
}
