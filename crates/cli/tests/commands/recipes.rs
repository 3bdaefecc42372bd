//! The recipes that are built in: all can be loaded, the published ones say what was published, and a mini recipe runs from
//! nothing.

use crate::common::{calotype, fail, succeed, text, with_more};
use calotype_evaluate::sweep::{SeedRule, SweepRecipe};
use calotype_train::RecipeLoader;
use calotype_train::optim::{AdamW, Group, LrSchedule, Position, UpdateRule};
use calotype_train::precache::PrecacheRecipe;
use calotype_train::prepare::{EmojiRecipe, Preparation};
use calotype_train::tasks;
use calotype_train::tasks::clip::{Clamp, ClipLoss, ClipRecipe, ClipTask};
use calotype_train::tasks::diffusion::{DiffusionRecipe, DiffusionTask};
use calotype_train::tasks::vit::{VitRecipe, VitTask};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use toml::{Table, Value};

const SD: &str = "training/stable_diffusion/";

fn loader() -> RecipeLoader {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    RecipeLoader::new().folder(folder).out(Path::new("runs/x"))
}

fn diffusion(name: &str) -> DiffusionRecipe {
    let loaded = tasks::load_as::<DiffusionTask>(&loader(), &format!("{SD}{name}"), &[]);
    loaded.unwrap_or_else(|error| panic!("{name}: {error}")).value
}

#[test]
fn every_recipe_can_be_loaded_and_says_nothing_impossible() {
    let loader = loader();
    let names = loader.names();
    assert!(names.len() > 70, "{names:?}");
    for name in &names {
        let loaded = match name.split('/').collect::<Vec<_>>()[..] {
            ["training", ..] => tasks::load(&loader, name, &[]).map_err(|error| error.to_string()).and_then(|run| {
                run.check_recipe().map_err(|error| error.to_string())?;
                Preparation::of(&loader, &run, Path::new("runs/x")).map(drop).map_err(|error| error.to_string())
            }),
            ["data", "precache", ..] => {
                let loaded = loader.load::<PrecacheRecipe>(name, &[]).map_err(|error| error.to_string());
                loaded.and_then(|recipe| recipe.value.validate().map_err(|error| error.to_string()))
            }
            ["evaluation", "vit" | "clip", ..] => {
                let loaded =
                    loader.load::<calotype_evaluate::vision::Recipe>(name, &[]).map_err(|error| error.to_string());
                loaded.and_then(|recipe| recipe.value.validate().map_err(|error| error.to_string()))
            }
            ["evaluation", _, sweep] if !sweep.starts_with("quickstart") => {
                let loaded =
                    loader.load::<SweepRecipe>(name, &["model=\"m\"".to_owned()]).map_err(|error| error.to_string());
                loaded.and_then(|recipe| {
                    let recipe = recipe.value.with_paths().map_err(|error| error.to_string())?;
                    recipe.validate().map_err(|error| error.to_string())
                })
            }
            ["inference", ..] => {
                let loaded = loader.load::<calotype_inference::Recipe>(name, &[]).map_err(|error| error.to_string());
                loaded.and_then(|recipe| recipe.value.validate().map_err(|error| error.to_string()))
            }
            ["data", "emoji", ..] => loader.load::<EmojiRecipe>(name, &[]).map(drop).map_err(|error| error.to_string()),
            _ => loader.load::<Table>(name, &[]).map(drop).map_err(|error| error.to_string()),
        };
        assert_eq!(loaded, Ok(()), "{name}");
    }
}

/// Pictures, guidance scales, sampler and steps, and seed of published evaluations: mlcommons/training (aa344c7),
/// train_32x08x02.yaml and NVIDIA's seed; NeMo-Megatron-Launcher 24.05 (599ecfc), fid_clip.yaml; mosaicml/diffusion (49282fd),
/// eval-clean-fid.yaml; mlcommons/inference (b66003e), backend_pytorch.py.
#[test]
fn published_evaluations_say_what_was_published() {
    type Row = (&'static str, usize, &'static [f32], &'static str, usize, u64, SeedRule);
    let nemo: &[f32] = &[1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let mosaic: &[f32] = &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let rows: [Row; 4] = [
        ("mlperf_v2", 30_000, &[8.0], "ddim", 50, 123, SeedRule::Picture),
        ("fid_clip", 30_000, nemo, "pndm", 50, 123, SeedRule::Nemo),
        ("mosaic_clean_fid", 10_000, mosaic, "ddim", 50, 42, SeedRule::Picture),
        ("sdxl_coco", 5_000, &[8.0], "euler", 20, 0, SeedRule::Fixed),
    ];
    for (name, images, guidance, sampler, steps, seed, seeds) in rows {
        let load = |name: &str| {
            loader().load::<SweepRecipe>(&format!("evaluation/stable_diffusion/{name}"), &[]).unwrap().value
        };
        let recipe = load(name);
        assert_eq!((recipe.images, recipe.seed, recipe.noise.seeds), (images, seed, seeds), "{name}");
        assert_eq!(recipe.sampler.guidance, guidance, "{name}");
        assert_eq!((recipe.sampler.name.as_deref(), recipe.sampler.steps), (Some(sampler), steps), "{name}");
        let mini = load(&format!("{name}_mini"));
        assert!(mini.images <= 64 && mini.model.as_deref() == Some("runs/quickstart"), "{name}");
        assert_eq!(mini.noise, recipe.noise, "{name}");
    }
}

/// mlcommons/inference (b66003e): text_to_image/main.py and backend_pytorch.py; docs/…/scc24.md and mlperf-automations' meta.yaml.
#[test]
fn published_inference_says_what_was_published() {
    use calotype_inference::{Recipe, Round, Variant, benchmark};
    let rows = [
        ("mlperf", Round::V6_1, Variant::Full, None),
        ("scc24_base", Round::V4_1, Variant::Scc24Base, Some(50)),
        ("scc24_main", Round::V4_1, Variant::Scc24Main, Some(500)),
    ];
    for (name, round, variant, queries) in rows {
        let load = |name: &str| loader().load::<Recipe>(&format!("inference/sdxl/{name}"), &[]).unwrap().value;
        let recipe = load(name);
        assert_eq!((recipe.round, recipe.variant, recipe.load.min_query_count), (round, variant, queries), "{name}");
        assert_eq!((recipe.width, recipe.height, recipe.steps), (1024, 1024, 20), "{name}");
        assert_eq!((recipe.guidance, recipe.negative.as_str()), (8.0, benchmark::NEGATIVE), "{name}");
        assert_eq!((recipe.serve.warmup, recipe.latents.seed, recipe.model.as_deref()), (5, 0, None), "{name}");
        let mini = load(&format!("{name}_mini"));
        assert!(mini.width == 64 && mini.captions.made_up && mini.random.is_some(), "{name}");
        let same = (mini.round, &mini.sampler, mini.guidance, &mini.negative, &mini.serve, &mini.processes);
        let of = (recipe.round, &recipe.sampler, recipe.guidance, &recipe.negative, &recipe.serve, &recipe.processes);
        assert_eq!(same, of, "{name}");
    }
}

/// Published values of a recipe: samples of a step; learning rate as base and what it is multiplied by; steps of warm-up, of the
/// whole run and between two checkpoints, where there is such a number.
struct Published {
    name: &'static str,
    batch: u64,
    base_rate: f64,
    times: u64,
    warmup: u64,
    steps: Option<u64>,
    checkpoint: Option<u64>,
}

const fn row(
    name: &'static str,
    batch: u64,
    [base_rate, times]: [f64; 2],
    warmup: u64,
    steps: Option<u64>,
    checkpoint: Option<u64>,
) -> Published {
    Published { name, batch, base_rate, times: times as u64, warmup, steps, checkpoint }
}

/// mlcommons/training (aa344c7), stable_diffusion/configs; NVIDIA's config_*.sh of training_results_v4.1 (8821c70), v4.0
/// (6fe9543) and v3.1 (d06288b); mosaicml/diffusion-benchmark (c7f3cff) and
/// mosaicml/diffusion (49282fd); NeMo-Megatron-Launcher 24.05 (599ecfc), training/stable_diffusion.
const PUBLISHED: [Published; 24] = [
    row("mlperf_01x08x08", 64, [1.25e-7, 64.0], 1000, None, Some(1000)),
    row("mlperf_32x08x02", 512, [1.25e-7, 512.0], 1000, None, Some(1000)),
    row("mlperf_32x08x02_raw_images", 512, [1.25e-7, 512.0], 1000, None, Some(1000)),
    row("mlperf_32x08x04", 1024, [1.25e-7, 1024.0], 1000, None, Some(500)),
    row("mlperf_32x08x08", 2048, [1.25e-7, 2048.0], 1000, None, Some(250)),
    row("nvidia_01x08x64", 512, [1e-7, 512.0], 1000, Some(6000), Some(1000)),
    row("nvidia_08x08x16", 1024, [1.2e-7, 1024.0], 1000, Some(3500), Some(500)),
    row("nvidia_16x04x16", 1024, [1e-7, 1024.0], 1000, Some(3500), Some(500)),
    row("nvidia_64x08x04", 2048, [8e-8, 2048.0], 1000, Some(2250), Some(250)),
    row("nvidia_128x08x02", 2048, [8e-8, 2048.0], 1000, Some(2250), Some(250)),
    row("nvidia_v3_1_08x08x32", 2048, [1e-7, 2048.0], 1000, Some(2250), Some(250)),
    row("nvidia_v3_1_64x08x04", 2048, [1e-7, 2048.0], 1000, Some(2250), Some(250)),
    row("nvidia_v3_1_128x08x02", 2048, [1e-7, 2048.0], 1000, Some(2250), Some(250)),
    row("nvidia_v4_1_01x08x32", 256, [1.8e-7, 256.0], 1000, Some(10_000), Some(2000)),
    row("nvidia_v4_1_64x08x04", 2048, [1e-7, 2048.0], 750, Some(2250), Some(250)),
    row("mosaic_benchmark", 2048, [1e-4, 1.0], 0, None, None),
    row("mosaic_sd2_base_256", 2048, [1e-4, 1.0], 10_000, Some(550_000), Some(10_000)),
    row("mosaic_sd2_base_512", 2048, [1e-4, 1.0], 10_000, Some(850_000), Some(10_000)),
    row("nemo_860m_res_256_pretrain", 8192, [1e-8, 8192.0], 10_000, Some(82_500), Some(1000)),
    row("nemo_860m_res_256_v2_0_pretrain", 8192, [1e-8, 8192.0], 10_000, Some(140_000), Some(1000)),
    row("nemo_860m_res_512_v1_1", 8192, [1e-8, 8192.0], 10_000, Some(50_000), Some(1000)),
    row("nemo_860m_res_512_v1_2", 8192, [1e-8, 8192.0], 0, Some(150_000), Some(1000)),
    row("nemo_860m_res_512_v1_5", 8192, [1e-8, 8192.0], 0, Some(165_000), Some(1000)),
    row("nemo_860m_res_512_v2_0_base", 8192, [1e-8, 8192.0], 0, Some(220_000), Some(1000)),
];

/// Samples of a warm-up, whichever schedule it is of.
fn warmup(recipe: &DiffusionRecipe) -> u64 {
    let batch = recipe.run.batch_size as u64;
    match &recipe.optimizer.schedule {
        LrSchedule::Constant(schedule) => schedule.warmup.samples(batch),
        LrSchedule::LambdaLinear(schedule) => schedule.warmup.samples(batch),
        LrSchedule::WarmupHold(schedule) => schedule.warmup.samples(batch),
        other => panic!("no published recipe has {other:?}"),
    }
}

#[test]
fn published_recipes_say_what_was_published() {
    let names: BTreeSet<String> = PUBLISHED.iter().map(|published| format!("{SD}{}", published.name)).collect();
    assert_eq!(names.len(), PUBLISHED.len());
    for Published { name, batch, base_rate, times, warmup: steps_of_warmup, steps, checkpoint } in PUBLISHED {
        let recipe = diffusion(name);
        assert_eq!(recipe.run.batch_size as u64, batch, "{name}");
        let rate = base_rate * times as f64;
        assert!((recipe.optimizer.peak(batch) / rate - 1.0).abs() < 1e-12, "{name}: {rate}");
        assert_eq!(warmup(&recipe), steps_of_warmup * batch, "{name}");
        if let Some(steps) = steps {
            assert_eq!((recipe.run.samples, recipe.run.steps()), (steps * batch, steps), "{name}");
        }
        if let Some(checkpoint) = checkpoint {
            assert_eq!(recipe.run.checkpoint_every, checkpoint * batch, "{name}");
        }
        // Behind the warm-up the rate stays at its peak.
        let end = Position { samples: recipe.run.samples, batch_size: batch, total: recipe.run.samples };
        assert!((recipe.optimizer.learning_rate_at(&end) / rate - 1.0).abs() < 1e-12, "{name}");
    }
    let known = loader().names();
    let published = |name: &&String| {
        name.strip_prefix(SD).is_some_and(|name| !name.starts_with("quickstart") && !name.ends_with("_mini"))
    };
    let there: BTreeSet<String> = known.iter().filter(published).cloned().collect();
    assert_eq!(there, names, "every published recipe has a row, and every row a recipe");
}

#[test]
fn published_networks_are_those_of_their_families() {
    use calotype_models::UNetConfig;
    for Published { name, .. } in PUBLISHED {
        let wanted = match name {
            _ if name.starts_with("mlperf") || name.starts_with("nvidia") => UNetConfig::mlperf_stable_diffusion_2(),
            _ if name.starts_with("mosaic") || name.contains("v2_0") => UNetConfig::stable_diffusion_2(),
            _ => UNetConfig::stable_diffusion_1(),
        };
        assert_eq!(diffusion(name).model, wanted, "{name}");
    }
}

const VIT: &str = "training/vit/";

fn vit(name: &str) -> VitRecipe {
    let loaded = tasks::load_as::<VitTask>(&loader(), &format!("{VIT}{name}"), &[]);
    loaded.unwrap_or_else(|error| panic!("{name}: {error}")).value
}

/// NeMo-Megatron-Launcher 24.05 (599ecfc), training/vit: name of the size, and patch size, channels, channels between a block's
/// linear layers, layers, heads.
const VITS: [(&str, &str, [usize; 5]); 5] = [
    ("b_16", "B_16", [16, 768, 3072, 12, 12]),
    ("l_16", "L_16", [16, 1024, 4096, 24, 16]),
    ("h_14", "H_14", [14, 1280, 5120, 32, 16]),
    ("g_14", "g_14", [14, 1408, 6144, 40, 16]),
    ("bigg_14", "bigG_14", [14, 1664, 8192, 48, 16]),
];

/// The rate of a cosine schedule at some steps, as a share of the peak.
fn shares(recipe: &VitRecipe, steps: &[u64]) -> Vec<f64> {
    let batch_size = recipe.run.batch_size as u64;
    let at = |step: &u64| Position { samples: step * batch_size, batch_size, total: recipe.run.samples };
    let optimizer = &recipe.optimizer;
    steps.iter().map(|step| optimizer.learning_rate_at(&at(step)) / optimizer.peak(batch_size)).collect()
}

fn near(found: &[f64], expected: &[f64]) -> bool {
    found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
}

#[test]
fn published_vits_say_what_was_published() {
    use calotype_models::VitConfig;
    use calotype_train::optim::UpdateRule;
    for (name, size, sizes) in VITS {
        let VitRecipe { model, optimizer, run, .. } = vit(name);
        let found = [model.patch_size, model.channels, model.mlp_channels, model.layers, model.heads];
        assert_eq!((found, model.image_size, model.labels), (sizes, 224, 1000), "{name}");
        let named = VitConfig::named(size).unwrap();
        assert_eq!(found, [named.patch_size, named.channels, named.mlp_channels, named.layers, named.heads], "{name}");
        assert_eq!((model.class_tokens, model.pooling, model.dropout, model.drop_path), (8, true, 0.1, 0.0), "{name}");
        let UpdateRule::AdamW(rule) = &optimizer.rule else { panic!("{name}: {:?}", optimizer.rule) };
        assert_eq!((rule.weight_decay, rule.beta1, rule.beta2), (0.3, 0.9, 0.999), "{name}");
        assert_eq!((optimizer.learning_rate, optimizer.gradient_clip), (3e-3, 1.0), "{name}");
        assert_eq!((run.batch_size, run.steps(), run.seed), (4096, 95_000, 1234), "{name}");
        let found = shares(&vit(name), &[5_000, 10_000, 52_500, 95_000]);
        let least = 1e-5 / 3e-3;
        assert!(near(&found, &[0.5, 1.0, (1.0 + least) / 2.0, least]), "{name}: {found:?}");
    }
    let tuned = vit("imagenet1k");
    let UpdateRule::Sgd(rule) = &tuned.optimizer.rule else { panic!("{:?}", tuned.optimizer.rule) };
    assert_eq!((rule.momentum, rule.weight_decay, tuned.optimizer.learning_rate), (0.9, 0.0, 3e-3));
    assert_eq!((tuned.run.batch_size, tuned.run.steps(), tuned.run.seed), (512, 20_000, 1234));
    assert!(near(&shares(&tuned, &[0, 10_000, 20_000]), &[1.0, (1.0 + 1e-5 / 3e-3) / 2.0, 1e-5 / 3e-3]));
    let before = vit("b_16").model;
    assert_eq!(tuned.model, VitConfig { image_size: 384, pooling: false, ..before });
    assert_eq!(tuned.data.augment, vit("b_16").data.augment);
    let known: BTreeSet<String> =
        loader().names().iter().filter_map(|name| name.strip_prefix(VIT)).map(str::to_owned).collect();
    let published: BTreeSet<&str> = known.iter().map(String::as_str).filter(|name| !name.ends_with("_mini")).collect();
    let rows: BTreeSet<&str> = VITS.iter().map(|(name, ..)| *name).chain(["imagenet1k"]).collect();
    assert_eq!(published, rows, "every published recipe has a row, and every row a recipe");
    assert!(rows.iter().all(|name| known.contains(&format!("{name}_mini"))), "{known:?}");
}

#[test]
fn mini_vits_are_their_recipes_at_small_size() {
    for (name, ..) in VITS.iter().chain([&("imagenet1k", "", [0; 5])]) {
        let (of, mini) = (vit(name), vit(&format!("{name}_mini")));
        assert_eq!(mini.data.augment, of.data.augment, "{name}");
        assert_eq!((mini.model.class_tokens, mini.model.pooling), (of.model.class_tokens, of.model.pooling), "{name}");
        assert_eq!(
            (&mini.optimizer.rule, &mini.optimizer.groups),
            (&of.optimizer.rule, &of.optimizer.groups),
            "{name}"
        );
        assert_eq!((mini.run.seed, mini.run.precision), (of.run.seed, of.run.precision), "{name}");
        let (small, large) = (mini.run.steps() as f64, of.run.steps() as f64);
        for share in [0.05, 0.1, 0.5, 1.0] {
            let at = |recipe: &VitRecipe, steps: f64| shares(recipe, &[(share * steps).round() as u64])[0];
            let apart = at(&mini, small) - at(&of, large);
            assert!(apart.abs() < 0.06, "{name}: the rate at {share} of the run is {apart} apart");
        }
        assert!(mini.run.samples <= 4_000 && mini.run.batch_size <= 32, "{name}");
    }
}

/// The fine-tuning makes the pre-training first, and takes its weights: another grid, and a head of another kind.
#[test]
fn a_mini_vit_is_trained_and_fine_tuned() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut train = calotype(&["train", "training/vit/imagenet1k_mini", "run.samples=32", "run.log_every=16"]);
    train.args(["run.checkpoint_every=32", "hooks.evaluate.every=16", "hooks.evaluate.samples=16"]);
    let done = succeed(train.arg("--out").arg(&out));
    assert!(done.stdout.starts_with("32 samples in "), "{done}");
    assert!(done.stderr.contains("position embeddings of 4x4 patches are interpolated to 6x6"), "{done}");
    assert!(
        done.stderr.contains("the head `classifier.weight`") && done.stderr.contains("begins with zeros"),
        "{done}"
    );
    let config = |run: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(run.join("model/config.json")).unwrap()).unwrap()
    };
    let (before, tuned) = (config(&out.join("prepared/before")), config(&out));
    assert_eq!((&before["image_size"], &before["add_pooling_layer"]), (&32.into(), &true.into()));
    assert_eq!(
        (&tuned["image_size"], &tuned["class_tokens"], &tuned["model_type"]),
        (&48.into(), &8.into(), &"calotype_vit".into())
    );
    assert_eq!(tuned["id2label"]["7"], "black");
    let processor: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("model/preprocessor_config.json")).unwrap()).unwrap();
    assert_eq!(processor["image_mean"], serde_json::json!([0.485, 0.456, 0.406]));
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("validation/loss"), "{metrics}");
}

/// Keys of a recipe's tables, dotted.
fn keys(prefix: &str, table: &Table, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) => keys(&path, table, found),
            _ => drop(found.insert(path)),
        }
    }
}

fn at<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    let (last, tables) = path.split('.').collect::<Vec<_>>().split_last().map(|(l, t)| (l.to_string(), t.to_vec()))?;
    tables.into_iter().try_fold(table, |table, key| table.get(key)?.as_table())?.get(&last)
}

/// What a mini recipe has in common with the recipe that it is of.
const KEPT: [&str; 20] = [
    "kind",
    "data.resampled",
    "model.layers_per_block",
    "model.attention_levels",
    "model.linear_projection",
    "model.norm_groups",
    "model.transformer_norm_groups",
    "schedule.kind",
    "schedule.timesteps",
    "objective.prediction",
    "objective.caption_dropout",
    "optimizer.name",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.weight_decay",
    "optimizer.gradient_clip",
    "optimizer.schedule.name",
    "ema.name",
    "run.seed",
    "run.precision",
];

#[test]
fn minis_are_their_recipes_at_small_size() {
    // What minis say besides, and what only some of them leave at its default.
    const OWN: [&str; 3] = ["data.verify", "data.caption", "data.threads"];
    let loader = loader();
    for Published { name, .. } in PUBLISHED {
        let load = |name: &str| tasks::load(&loader, &format!("{SD}{name}"), &[]).unwrap();
        let table = |run: &tasks::TrainingRun| toml::from_str::<Table>(run.text()).unwrap();
        let mini = load(&format!("{name}_mini"));
        let (of, small) = (table(&load(name)), table(&mini));
        let [mut of_keys, mut small_keys] = [BTreeSet::new(), BTreeSet::new()];
        keys("", &of, &mut of_keys);
        keys("", &small, &mut small_keys);
        for found in [&mut of_keys, &mut small_keys] {
            found.retain(|key| {
                !key.starts_with("prepare.") && !key.starts_with("hooks.") && !OWN.contains(&key.as_str())
            });
        }
        assert_eq!(small_keys, of_keys, "{name}");
        for key in KEPT {
            assert_eq!(at(&small, key), at(&of, key), "{name}: {key}");
        }
        assert!(mini.prepare().is_some(), "{name}");

        // Schedules take the same share of the run.
        let [of, small] = [diffusion(name), diffusion(&format!("{name}_mini"))];
        let share = |recipe: &DiffusionRecipe| warmup(recipe) as f64 / recipe.run.samples as f64;
        assert!((share(&small) - share(&of)).abs() < 1e-3, "{name}: {} and {}", share(&small), share(&of));
        let start = |recipe: &DiffusionRecipe| {
            let start = recipe.ema.as_ref().map_or(0, |ema| ema.start.samples(recipe.run.batch_size as u64));
            start as f64 / recipe.run.samples as f64
        };
        assert!((start(&small) - start(&of)).abs() < 1e-3, "{name}");
        assert!(small.run.samples <= 14_000 && small.run.batch_size <= 32, "{name}");
    }
}

const CLIP: &str = "training/clip/";

/// Name; samples of a step, peak rate, samples of the run, open_clip's name of the towers' sizes, and the heads of
/// the image tower where they are others.
type PublishedClip = (&'static str, u64, f64, u64, &'static str, Option<usize>);

const PUBLISHED_CLIP: [PublishedClip; 9] = [
    ("nemo_vit_B_32", 32_000, 1e-3, 375_000 * 32_000, "ViT-B-32", None),
    ("nemo_vit_L_14", 32_256, 1e-3, 375_000 * 32_256, "ViT-L-14-quickgelu", None),
    ("nemo_vit_H_14", 32_768, 5e-4, 375_000 * 32_768, "ViT-H-14", Some(20)),
    ("nemo_vit_g_14", 32_384, 5e-4, 375_000 * 32_384, "ViT-g-14", Some(22)),
    ("open_clip_vit_B_32", 32_768, 5e-4, 390_625 * 32_768, "ViT-B-32", None),
    ("open_clip_vit_B_32_siglip", 32_768, 5e-4, 390_625 * 32_768, "ViT-B-32", None),
    ("open_clip_vit_L_14", 38_400, 5e-4, 333_334 * 38_400, "ViT-L-14", None),
    ("open_clip_vit_H_14", 79_104, 5e-4, 32_000_000_000, "ViT-H-14", None),
    ("open_clip_vit_g_14", 42_400, 5e-4, 12_800_000_000, "ViT-g-14", None),
];

fn clip(name: &str) -> ClipRecipe {
    let loaded = tasks::load_as::<ClipTask>(&loader(), &format!("{CLIP}{name}"), &[]);
    loaded.unwrap_or_else(|error| panic!("{name}: {error}")).value
}

/// NeMo-Megatron-Launcher 24.05 (599ecfc), training/clip, and its user guide; NeMo (1c0350e), megatron_clip_VIT-L-14.yaml; open_clip
/// 3.3.0, open_clip_train/{params,main,train,scheduler}.py and docs/PRETRAINED.md.
#[test]
fn published_clips_say_what_was_published() {
    use calotype_models::ClipConfig;
    for (name, batch, rate, samples, sizes, heads) in PUBLISHED_CLIP {
        let recipe = clip(name);
        assert_eq!((recipe.run.batch_size as u64, recipe.run.samples), (batch, samples), "{name}");
        let mut model = ClipConfig::open_clip(sizes).unwrap();
        model.vision.heads = heads.unwrap_or(model.vision.heads);
        model.vision.mlp_channels = recipe.model.vision.mlp_channels.and(model.vision.mlp_channels);
        model.text.context_length = if heads.is_some() || name == "nemo_vit_B_32" { 80 } else { 77 };
        model.logit_bias = name.ends_with("siglip");
        assert_eq!(recipe.model, model, "{name}");
        let siglip = name.ends_with("siglip");
        let loss = match name {
            "nemo_vit_L_14" => ClipLoss::Full,
            _ if siglip => ClipLoss::Siglip,
            _ => ClipLoss::Local,
        };
        let (nemo, objective) = (name.starts_with("nemo"), &recipe.objective);
        assert_eq!((objective.loss, objective.clamp), (loss, if nemo { Clamp::None } else { Clamp::Step }), "{name}");
        let UpdateRule::AdamW(AdamW { beta1, beta2, eps, weight_decay }) = &recipe.optimizer.rule else {
            panic!("{name}: {:?}", recipe.optimizer.rule);
        };
        let eps_there = if nemo { 1e-8 } else { 1e-6 };
        assert_eq!((*beta1, *beta2, *eps, *weight_decay), (0.9, 0.98, eps_there, 0.2), "{name}");
        assert_eq!(recipe.optimizer.gradient_clip, if nemo { 1.0 } else { 0.0 }, "{name}");
        let decays = |parameter: &str, shape: &[usize]| {
            Group::of(parameter, shape, &recipe.optimizer.groups).weight_decay.unwrap_or(*weight_decay) > 0.0
        };
        for (parameter, shape, there) in [
            ("text_model.encoder.layers.0.mlp.fc1.bias", &[8][..], [false, false]),
            ("text_model.encoder.layers.0.layer_norm1.weight", &[8], [false, false]),
            ("text_model.embeddings.token_embedding.weight", &[9, 8], [true, true]),
            ("vision_model.embeddings.class_embedding", &[8], [true, false]),
            ("vision_model.embeddings.position_embedding.weight", &[9, 8], [true, true]),
            ("logit_scale", &[1], [true, false]),
        ] {
            assert_eq!(decays(parameter, shape), there[usize::from(!nemo)], "{name}: {parameter}");
        }
        // The first step, the last one of the warm-up, one behind it, and the last one.
        let of = |step: u64| Position { samples: step * batch, batch_size: batch, total: samples };
        let rate_of = |step: u64| recipe.optimizer.learning_rate_at(&of(step)) / rate;
        let first = if nemo { 1.0 / 2001.0 } else { 1.0 / 2000.0 };
        let steps = samples.div_ceil(batch);
        let end = if nemo { 1e-5 / rate } else { 0.0 };
        for (step, share) in [(1, first), (2001, 1.0), (2002, 1.0), (steps, end)] {
            assert!((rate_of(step) - share).abs() < 1e-6, "{name}, step {step}: {}", rate_of(step));
        }
    }
    let published = |name: &&String| {
        name.strip_prefix(CLIP).is_some_and(|name| !name.starts_with("quickstart") && !name.ends_with("_mini"))
    };
    let there: BTreeSet<String> = loader().names().iter().filter(published).cloned().collect();
    let rows: BTreeSet<String> = PUBLISHED_CLIP.iter().map(|row| format!("{CLIP}{}", row.0)).collect();
    assert_eq!(there, rows, "every published recipe has a row, and every row a recipe");
}

/// What a mini CLIP has in common with the recipe that it is of.
const KEPT_CLIP: [&str; 18] = [
    "kind",
    "data.resampled",
    "data.augment.crop",
    "model.logit_bias",
    "model.text.activation",
    "model.vision.activation",
    "objective.loss",
    "objective.clamp",
    "optimizer.learning_rate",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.gradient_clip",
    "optimizer.groups",
    "optimizer.schedule.name",
    "optimizer.schedule.variant",
    "optimizer.schedule.final",
    "run.seed",
    "run.precision",
];

#[test]
fn mini_clips_are_their_recipes_at_small_size() {
    for (name, ..) in PUBLISHED_CLIP {
        let load = |name: &str| tasks::load(&loader(), &format!("{CLIP}{name}"), &[]).unwrap();
        let table = |run: &tasks::TrainingRun| toml::from_str::<Table>(run.text()).unwrap();
        let mini = load(&format!("{name}_mini"));
        let (of, small) = (table(&load(name)), table(&mini));
        let [mut of_keys, mut small_keys] = [BTreeSet::new(), BTreeSet::new()];
        keys("", &of, &mut of_keys);
        keys("", &small, &mut small_keys);
        for found in [&mut of_keys, &mut small_keys] {
            found.retain(|key| !["prepare.", "hooks.", "data."].iter().any(|table| key.starts_with(table)));
        }
        assert_eq!(small_keys, of_keys, "{name}");
        for key in KEPT_CLIP {
            assert_eq!(at(&small, key), at(&of, key), "{name}: {key}");
        }
        let [of, small] = [clip(name), clip(&format!("{name}_mini"))];
        let warmup = |recipe: &ClipRecipe| match &recipe.optimizer.schedule {
            LrSchedule::Cosine(cosine) => cosine.warmup.samples(recipe.run.batch_size as u64),
            other => panic!("{name}: {other:?}"),
        };
        let share = |recipe: &ClipRecipe| warmup(recipe) as f64 / recipe.run.samples as f64;
        assert!((share(&small) - share(&of)).abs() < 1e-3, "{name}: {} and {}", share(&small), share(&of));
        assert!(small.run.samples <= 14_000 && small.hooks.vision.is_some() && mini.prepare().is_some(), "{name}");
    }
}

#[test]
fn a_mini_clip_makes_what_it_needs_and_judges_itself() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut train = calotype(&["train", "training/clip/open_clip_vit_B_32_siglip_mini", "run.samples=64"]);
    train.args(["run.log_every=32", "hooks.vision.every=64", "optimizer.accumulate=4", "--out"]).arg(&out);
    let done = succeed(&mut train);
    assert!(done.stdout.starts_with("64 samples in "), "{done}");
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    for figure in ["vision/zero_shot_top_1", "vision/zero_shot_top_5", "vision/retrieval_text_to_image_recall_at_10"] {
        assert_eq!(metrics.matches(&format!("\"{figure}\"")).count(), 1, "{figure}: {metrics}");
    }
    // What was written is a CLIP that the program takes.
    let mut judge = calotype(&["evaluate", "clip/coco_retrieval", "batch_size=32"]);
    judge.arg(format!("model={}", text(&out))).arg(format!("data.path={}", text(&out.join("prepared/dataset"))));
    succeed(judge.arg("--out").arg(folder.path().join("judged")));
}

#[test]
fn a_mini_recipe_makes_what_it_needs_and_trains() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let train = |more: &[&str]| {
        let mut command = calotype(&["train", "training/stable_diffusion/mlperf_32x08x02_mini"]);
        command.args(with_more(&["run.samples=16".to_owned()], more)).args(["run.log_every=8", "--out"]).arg(&out);
        command
    };
    let prepared = out.join("prepared");
    let told = succeed(&mut train(&["--dry-run"]));
    for step in
        ["dataset: recipe data/emoji/mini", "checkpoint: random weights of tiny-sd2", "precache: recipe data/precache/"]
    {
        assert!(told.stderr.contains(&format!("prepare      {}/{step}", text(&prepared))), "{told}");
    }
    assert!(told.stderr.contains("units        run of 2 steps × 8 = 16 samples"), "{told}");
    assert!(told.stderr.contains("units        optimizer.base_learning_rate 3.125e-5 × 8 samples"), "{told}");
    // What needs nothing that is made first is found out before that is made.
    let log = ["mlperf.enabled=true", "mlperf.org=me", "mlperf.platform=box"];
    for (more, code, part) in [
        (&[&log[..], &["hooks.benchmark={ path = '/nowhere/scores.jsonl' }"]].concat()[..], 2, "/nowhere/scores.jsonl"),
        (&["hooks.evaluate={ path = '/nowhere/shards', every = 16, samples = 8 }"], 2, "/nowhere/shards"),
        (&["init_from=/nowhere/unet"], 2, "/nowhere/unet"),
        (&["--record", "/nowhere/record.safetensors"], 2, "/nowhere"),
    ] {
        fail(&mut train(more), code, &[part]);
        fail(&mut train(&[more, &["--dry-run"]].concat()), code, &[part]);
    }
    assert!(!out.exists(), "a dry run leaves nothing");

    let done = succeed(&mut train(&[]));
    assert!(done.stdout.starts_with("16 samples in "), "{done}");
    assert!(out.join("result.json").is_file() && out.join("model/unet/config.json").is_file(), "{done}");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(prepared.join("precache/index.json")).unwrap()).unwrap();
    assert_eq!(index["samples"].as_u64(), Some(348));

    // Training took what comes out of the last layer but one: the pipeline ends with that layer.
    let layers = |folder: &Path| -> u64 {
        let config = fs::read(folder.join("text_encoder/config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&config).unwrap()["num_hidden_layers"].as_u64().unwrap()
    };
    assert_eq!(layers(&out.join("model")) + 1, layers(&prepared.join("checkpoint")));
    let mut draw = calotype(&["generate", "a cat", "--steps", "1", "--width", "64", "--height", "64", "--model"]);
    succeed(draw.arg(&out).arg("--out").arg(folder.path().join("images")));

    // A second start makes nothing again, and a longer run is trained on what is there.
    let record = fs::read(prepared.join("prepared.json")).unwrap();
    fs::remove_dir_all(prepared.join("dataset")).unwrap();
    fs::create_dir(prepared.join("dataset")).unwrap();
    let longer = succeed(&mut train(&["run.samples=24"]));
    assert!(longer.stdout.starts_with("24 samples in ") && !longer.stderr.contains("prepare "), "{longer}");
    assert_eq!(fs::read(prepared.join("prepared.json")).unwrap(), record);
    assert!(fs::read_dir(prepared.join("dataset")).unwrap().next().is_none());
    let ready = succeed(&mut train(&["run.samples=24", "--dry-run"]));
    assert!(ready.stderr.contains("holds this run, finished"), "{ready}");

    fail(
        &mut train(&["run.samples=24", "prepare.checkpoint.seed=1"]),
        2,
        &["`prepare.checkpoint.seed` is 0 there and 1 now"],
    );
}

#[test]
fn a_mini_recipe_of_mlperf_judges_itself() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let train = |more: &[&str]| {
        let mut command = calotype(&["train", "training/stable_diffusion/mlperf_01x08x08_mini", "run.samples=16"]);
        command.args(["run.log_every=8", "hooks.judge.every=8", "hooks.benchmark.every=8", "mlperf.enabled=true"]);
        command.args(["mlperf.org=me", "mlperf.platform=box"]).args(more).arg("--out").arg(&out);
        command
    };
    for (more, part) in [
        (&["hooks.judge.recipe.sampler.guidance=[1, 2]"][..], "`hooks.judge.recipe`: names 2 guidance scales"),
        (&["hooks.judge.recipe.model=x"], "judges the run itself"),
        (&["hooks.judge.recipe.steps=1"], "unknown key `hooks.judge.recipe.steps`"),
        (&["hooks.judge.recipe.base=no/such"], "no/such"),
        (&["hooks.judge.recipe.images=1"], "`images` is 1, and fid (mlperf-training) takes at least 2 pictures"),
        (
            &["hooks.benchmark.metrics.fid=judged/nope"],
            "`judged/nope` is no number of [hooks.judge], which logs judged/clip_score",
        ),
    ] {
        fail(&mut train(more), 2, &[part]);
    }
    let done = succeed(&mut train(&["hooks.judge.recipe.images=4", "hooks.judge.recipe.judge.reference_images=8"]));
    assert!(done.stdout.starts_with("16 samples in "), "{done}");
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let judged = |line: &&str| line.contains("\"judged\"") || line.contains("judged/");
    assert_eq!(metrics.lines().filter(judged).count(), 2, "{metrics}");
    let log = fs::read_to_string(out.join("mlperf_compliance.log")).unwrap();
    assert_eq!(log.matches("\"eval_accuracy\"").count(), 4, "two figures of two evaluations: {log}");
    let scores = fs::read_to_string(out.join("judged/mlperf_scores.jsonl")).unwrap();
    assert_eq!(scores.lines().count(), 2, "{scores}");
    assert!(
        scores.lines().all(|line| line.contains("\"fd\":")) && !scores.contains("\"fid\":"),
        "random weights: {scores}"
    );
    assert!(out.join("judged/report.html").is_file() && !out.join("judged/fid_scores.csv").exists());
    // Models that were written to draw are gone; what a killed run has left goes when it goes on.
    let left = || fs::read_dir(out.join("judged/.models")).map_or(0, |entries| entries.count());
    assert_eq!(left(), 0);
    fs::create_dir_all(out.join("judged/.models/24-0-of-1/unet")).unwrap();
    let mut longer = calotype(&["train", "training/stable_diffusion/mlperf_01x08x08_mini", "run.samples=24"]);
    longer.args(["run.log_every=8", "hooks.judge.every=8", "hooks.benchmark.every=8", "mlperf.enabled=true"]);
    longer.args(["hooks.judge.recipe.images=4", "hooks.judge.recipe.judge.reference_images=8"]);
    succeed(longer.args(["mlperf.org=me", "mlperf.platform=box"]).arg("--out").arg(&out));
    assert_eq!(left(), 0);
}

#[test]
fn recipes_of_prepare_stand_in_a_runs_folder() {
    let precache = ["data", "precache", "data/precache/mlperf_sd_moments_mini"];
    fail(&mut calotype(&precache), 2, &["`source`", "{out}/prepared/dataset", "by itself it needs source=FOLDER"]);
    let told = succeed(&mut calotype(&[
        "train",
        "training/stable_diffusion/nemo_860m_res_512_v1_1_mini",
        "--dry-run",
        "--out",
        "x",
    ]));
    for step in
        ["x/prepared/before/prepared/precache: recipe ", "x/prepared/before: recipe ", "x/prepared/precache: recipe "]
    {
        assert!(told.stderr.contains(step), "{told}");
    }
    let given =
        ["train", "training/stable_diffusion/nemo_860m_res_512_v1_1_mini", "init_from=unet", "--dry-run", "--out", "x"];
    // With a checkpoint of one's own no earlier stage is made; one that is not there is found out first.
    let told = fail(&mut calotype(&given), 2, &["init_from: unet: there is no such file"]);
    assert!(!told.contains("x/prepared/before"), "{told}");
}
