//! Training from images and captions themselves, whose encoders run in it, and from made-up samples.

use crate::precache::{MOMENTS, STATES, World, diffusion, train};
use calotype_train::inputs::DroppedCaption;
use calotype_train::tasks::diffusion::DiffusionRecipe;
use calotype_train::trainer::CHECKPOINTS;
use std::fs;
use std::path::Path;

/// A diffusion recipe in `f32` on a dataset, with more tables.
fn recipe(data: &Path, tables: &str) -> DiffusionRecipe {
    diffusion(data, "", &format!("precision = \"f32\"\n{tables}")).0
}

/// The losses of a run.
fn losses(world: &World, run: &str, recipe: DiffusionRecipe) -> (f64, f64) {
    let text = toml::to_string(&recipe).unwrap();
    let summary = train(&world.path(run), &(recipe, text)).unwrap_or_else(|error| panic!("{run}: {error}"));
    (summary.loss_first, summary.loss_last)
}

/// What is wrong with a recipe.
fn error(world: &World, recipe: DiffusionRecipe) -> String {
    let text = toml::to_string(&recipe).unwrap();
    let error = train(&world.path("refused"), &(recipe, text)).unwrap_err();
    assert!(!world.path("refused").join("checkpoints").exists());
    error.to_string()
}

#[test]
fn images_encoded_in_training_give_the_bits_of_precached_moments() {
    let world = World::new();
    let text = format!("[text]\nmodel = {:?}\nprecision = \"f32\"\n", world.path("clip"));
    let mut seen = Vec::new();
    for (range, filter) in
        [("minus_one_one", "bicubic"), ("mlperf_zero_one", "bicubic"), ("mlperf_zero_one", "torch_bicubic")]
    {
        let name = format!("{range}-{filter}");
        let precached = format!("precision = \"f32\"\nfilter = \"{filter}\"\ninput_range = \"{range}\"\n{MOMENTS}");
        world.run(&name, &precached);
        let expected = losses(&world, &format!("{name}-precached"), recipe(&world.path(&name), &text));

        let inputs = format!("[inputs]\nresolution = 32\ninput_range = \"{range}\"\n{text}");
        let mut raw = recipe(&world.path("images"), &inputs);
        raw.autoencoder = Some(world.path("autoencoder").display().to_string());
        raw.data.augment = toml::from_str(&format!("filter = \"{filter}\"")).unwrap();
        assert_eq!(losses(&world, &format!("{name}-raw"), raw.clone()), expected, "{name}");
        // The micro-batches of an accumulating run are encoded by themselves.
        raw.optimizer.accumulate = 2;
        let (first, last) = losses(&world, &format!("{name}-parts"), raw);
        assert!((first - expected.0).abs() < 1e-5 && (last - expected.1).abs() < 1e-4, "{first} {last} {expected:?}");
        seen.push(expected);
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2], "range and filter matter: {seen:?}");
}

/// A run's folder as it was when its process was killed behind its first checkpoint.
fn killed(world: &World, run: &str, copy: &str) {
    let (from, to) = (world.path(run), world.path(copy));
    let mut checkpoints: Vec<_> =
        fs::read_dir(from.join(CHECKPOINTS)).unwrap().map(|entry| entry.unwrap().path()).collect();
    checkpoints.sort();
    let place = to.join(CHECKPOINTS).join(checkpoints[0].file_name().unwrap());
    fs::create_dir_all(&place).unwrap();
    for entry in fs::read_dir(&checkpoints[0]).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, place.join(path.file_name().unwrap())).unwrap();
    }
    for file in ["recipe.toml", "encoders.json", "metrics.jsonl"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn runs_on_images_resume_to_the_same_bits_and_know_their_encoders() {
    let world = World::new();
    let tables = format!("[inputs]\nresolution = 32\n[text]\nmodel = {:?}\nprecision = \"f32\"\n", world.path("clip"));
    let mut raw = recipe(&world.path("images"), &tables);
    raw.autoencoder = Some(world.path("autoencoder").display().to_string());
    let expected = losses(&world, "whole", raw.clone());
    killed(&world, "whole", "resumed");
    assert_eq!(losses(&world, "resumed", raw), expected);
    let unet = |run: &str| fs::read(world.path(run).join("model/unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(unet("whole") == unet("resumed"));
    let encoders = fs::read_to_string(world.path("whole").join("encoders.json")).unwrap();
    assert!(encoders.contains("text_encoder ") && encoders.contains(", vae "), "{encoders}");
}

#[test]
fn dropped_captions_may_be_zeros_wherever_captions_are_encoded() {
    let world = World::new();
    world.run("both", &format!("precision = \"f32\"\n{MOMENTS}{STATES}"));
    let text = format!("[text]\nmodel = {:?}\nprecision = \"f32\"\n", world.path("clip"));
    let of = |run: &str, tables: &str, dropped: DroppedCaption, share: f64| {
        let mut recipe = recipe(&world.path("both"), tables);
        (recipe.objective.dropped_caption, recipe.objective.caption_dropout) = (dropped, share);
        losses(&world, run, recipe)
    };
    let near = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0).abs() < 1e-5 && (a.1 - b.1).abs() < 1e-4;
    for (name, share) in [("some", 0.5), ("all", 1.0)] {
        let precached = of(&format!("{name}-precached"), "", DroppedCaption::Zeros, share);
        let encoded = of(&format!("{name}-encoded"), &text, DroppedCaption::Zeros, share);
        assert!(near(precached, encoded), "{name}: {precached:?} and {encoded:?}");
        assert!(precached != of(&format!("{name}-empty"), "", DroppedCaption::Empty, share), "{name}");
    }
    // Whoever draws is told.
    let index = |run: &str| fs::read_to_string(world.path(run).join("model/model_index.json")).unwrap();
    assert!(index("some-precached").contains("\"force_zeros_for_empty_prompt\": true"));
    assert!(!index("some-empty").contains("force_zeros_for_empty_prompt"));
    // Nothing has to be known of the empty caption.
    fs::remove_file(world.path("both").join("conditioning.safetensors")).unwrap();
    of("unknown", "", DroppedCaption::Zeros, 0.5);
}

#[test]
fn what_encoding_in_training_needs_is_said() {
    let world = World::new();
    world.run("encoded", &format!("precision = \"f32\"\n{MOMENTS}{STATES}"));
    let text = format!("[text]\nmodel = {:?}\n", world.path("clip"));
    let raw = |inputs: &str, autoencoder: Option<&str>| {
        let mut recipe = recipe(&world.path("images"), &format!("[inputs]\n{inputs}\n{text}"));
        recipe.autoencoder = autoencoder.map(|name| world.path(name).display().to_string());
        recipe
    };
    for (recipe, parts) in [
        (raw("resolution = 32", None), &["`autoencoder`", "inputs.resolution"][..]),
        (raw("resolution = 33", Some("autoencoder")), &["33 pixels is no multiple of 8"]),
        (raw("resolution = 0", Some("autoencoder")), &["0 pixels is no multiple of 8"]),
        (raw("resolution = 32", Some("nowhere")), &["nowhere"]),
        (raw("resolution = 32", Some("clip")), &["clip", "vae"]),
        (raw("resolution = 32\nmoments = \"npy\"", Some("autoencoder")), &[]),
        (raw("resolution = 32\nmoments = \"x.npy\"", Some("autoencoder")), &["`inputs.moments`", "remove one"]),
        (raw("input_range = \"mlperf_zero_one\"", None), &["`inputs.input_range`", "inputs.resolution"]),
        (raw("", None), &["inputs.resolution=", "data precache"]),
    ] {
        if parts.is_empty() {
            losses(&world, "usual", recipe);
            continue;
        }
        let error = error(&world, recipe);
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
    let mut unknown = raw("resolution = 32", Some("autoencoder"));
    unknown.objective.scale_factor = None;
    let error = error(&world, unknown);
    assert!(error.contains("objective.scale_factor") && error.contains("the autoencoder's configuration"), "{error}");
}

#[test]
fn made_up_samples_train_the_same_again() {
    let world = World::new();
    let spec = "synthetic://20/npy=array:float32:8,4,4/states.npy=array:float32:6,32";
    let of = |run: &str, spec: &str| {
        let mut recipe = recipe(Path::new(spec), "");
        recipe.objective.caption_dropout = 0.0;
        losses(&world, run, recipe)
    };
    let first = of("first", spec);
    assert!(first.0.is_finite() && first == of("second", spec));
    assert_ne!(first, of("third", &format!("{spec}/seed=1")));
    // Images and words go through the encoders.
    let text = format!("[inputs]\nresolution = 32\n[text]\nmodel = {:?}\n", world.path("clip"));
    let mut images = recipe(Path::new("synthetic://20/bmp=bmp:40x36/txt=words:3"), &text);
    images.autoencoder = Some(world.path("autoencoder").display().to_string());
    assert!(losses(&world, "from-images", images).1.is_finite());
    let missing = recipe(Path::new("synthetic://20/txt=words:3"), &text.replace("resolution = 32", ""));
    assert!(error(&world, missing).contains("synthetic://20/txt=words:3"));
}

#[test]
fn losses_of_every_form_are_finite_and_differ() {
    let world = World::new();
    world.run("data", &format!("precision = \"f32\"\n{MOMENTS}{STATES}"));
    let mut seen = Vec::new();
    for (number, objective) in [
        "",
        "loss = { huber = { c = 0.1 } }",
        "loss = { huber = { c = 0.1, schedule = 'exponential' } }",
        "loss = { smooth_l1 = { c = 0.1, schedule = 'constant' } }",
        "loss_weight = { min_snr = 5.0 }",
        "loss = { smooth_l1 = { c = 0.1 } }\nloss_weight = { min_snr = 5.0 }",
        "offset_noise = 0.1",
        "first_timestep = 500",
    ]
    .into_iter()
    .enumerate()
    {
        let mut recipe = recipe(&world.path("data"), "");
        let keys = format!("prediction = 'v'\ncaption_dropout = 0.3\nscale_factor = 0.5\n{objective}");
        recipe.objective = toml::from_str(&keys).unwrap();
        let found = losses(&world, &format!("run-{number}"), recipe);
        assert!(found.1.is_finite() && !seen.contains(&found), "{objective}: {found:?} among {seen:?}");
        seen.push(found);
    }
    let mut none = recipe(&world.path("data"), "");
    none.objective.first_timestep = 1000;
    assert!(error(&world, none).contains("objective.first_timestep"));
}
