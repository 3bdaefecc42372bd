//! Precaching against direct calls of the models, and training from what it and others write.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_checkpoints::{Checkpoint, Component, Export, ImageProcessor, Part, Placement, SCALE_UNKNOWN};
use calotype_data::image::{Filter, PngEffort, RgbImage};
use calotype_data::npy::{NpyArray, NpyData};
use calotype_data::pickled::{read_arrays, write_arrays};
use calotype_data::precache::META_ENCODERS;
use calotype_data::{Dataset, Sample, ShardLimits, ShardWriter, Slice};
use calotype_models::state::values_of;
use calotype_models::tokenizer::TokenizerOptions;
use calotype_models::{
    Autoencoder, AutoencoderConfig, Clip, ClipConfig, ClipTokenizer, Init, TextConfig, VisionConfig, Vit, VitConfig,
};
use calotype_train::StopFlag;
use calotype_train::precache::PrecacheRecipe;
use calotype_train::stages::{
    self, CONDITIONING, PrecacheSummary, Recipe, StageContext, StageEnd, StageError, precache,
};
use calotype_train::tasks::diffusion::{DiffusionRecipe, DiffusionTask};
use calotype_train::trainer::{TrainError, TrainingSummary};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SAMPLES: usize = 10;
const TOKENS: usize = 12;

/// Small models with random weights, and captioned images of several sizes.
pub(crate) struct World {
    dir: tempfile::TempDir,
    autoencoder: Autoencoder,
    clip: Clip,
}

fn device() -> Device {
    Device::flex()
}

fn autoencoder_config() -> AutoencoderConfig {
    AutoencoderConfig {
        block_out_channels: vec![8, 8, 16, 16],
        norm_groups: 4,
        latent_channels: 4,
        sample_size: 64,
        ..AutoencoderConfig::default()
    }
}

fn clip_config() -> ClipConfig {
    let text = TextConfig { context_length: TOKENS, channels: 32, layers: 2, heads: 2, ..TextConfig::default() };
    let vision =
        VisionConfig { image_size: 16, patch_size: 8, channels: 32, layers: 1, heads: 2, ..VisionConfig::default() };
    ClipConfig { projection: 16, text, vision, ..ClipConfig::default() }
}

/// A CLIP model that was trained on -1 to 1.
fn save_clip(folder: &Path, clip: &Clip, config: &ClipConfig, placement: Placement) {
    let part = Part::module(Component::Clip, config.to_transformers().expect("sayable"), clip);
    let images = ImageProcessor { mean: [0.5; 3], std: [0.5; 3], ..ImageProcessor::clip(config.vision.image_size) };
    let export = Export::model(part).image_processor(&images);
    let export =
        export.tokenizer(Component::Clip, TokenizerOptions::TRANSFORMERS_EXCLAMATION, TOKENS).expect("sayable");
    export.write(folder, placement).expect("saved");
}

fn captions(number: usize) -> String {
    [
        "a cat",
        "two large dogs on a red background",
        "",
        "  a tree ",
        "ten words are more than fit into twelve tokens of text",
    ][number % 5]
        .to_owned()
}

fn image(number: usize) -> RgbImage {
    let (width, height) = [(32, 32), (50, 40), (33, 47)][number % 3];
    let level = |i: usize| ((i * 37 + number * 11 + i / 91) % 256) as u8;
    RgbImage::new(width, height, (0..3 * width * height).map(level).collect()).expect("sizes agree")
}

fn key(number: usize) -> String {
    format!("{number:04}")
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let device = device();
        let (autoencoder_config, clip_config) = (autoencoder_config(), clip_config());
        // Random, where training begins with zeros, so that every layer matters.
        let noise = &mut Init::repeated_noise(0.08, &device);
        let autoencoder = autoencoder_config.init(noise).expect("valid").valid();
        let clip = clip_config.init(noise).expect("valid").valid();
        let mut published = autoencoder_config.to_diffusers();
        published[SCALE_UNKNOWN] = true.into();
        let part = Part::module(Component::Vae, published, &autoencoder);
        Export::model(part).write(&dir.path().join("autoencoder"), Placement::New).expect("saved");
        save_clip(&dir.path().join("clip"), &clip, &clip_config, Placement::New);
        let limits = ShardLimits { samples: 4, ..ShardLimits::default() };
        let mut writer = ShardWriter::create(dir.path().join("images"), "x", limits).expect("created");
        for number in 0..SAMPLES {
            let png = image(number).encode_png(PngEffort::Fast).expect("encoded");
            let part = if number % 2 == 0 { "png" } else { "webp" };
            // The decoder goes by content: what matters is which part is looked for.
            let sample = Sample::new(key(number)).with(part, png).with("txt", captions(number)).with("json", "{}");
            writer.write(&sample).expect("written");
        }
        writer.finish().expect("finished");
        Self { dir, autoencoder, clip }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A precache recipe with the moments as MLPerf has them, and `more`.
    fn recipe(&self, out: &str, more: &str) -> PrecacheRecipe {
        let text = format!(
            "source = {:?}\nout = {:?}\nresolution = 32\nbatch_size = 4\nshard_samples = 3\n{more}",
            self.path("images"),
            self.path(out)
        );
        let text = text.replace("AUTOENCODER", &format!("{:?}", self.path("autoencoder")));
        let text = text.replace("CLIP", &format!("{:?}", self.path("clip")));
        toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    pub(crate) fn run(&self, out: &str, more: &str) -> Dataset {
        let summary = run_recipe(&self.recipe(out, more), Slice::ALL).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((summary.samples, summary.finished), (SAMPLES, Some(SAMPLES)));
        Dataset::open(self.path(out)).expect("a dataset")
    }

    /// Moments of sample `number`, channels first, of an image in `low..1`.
    fn moments(&self, number: usize, low: f32) -> Vec<f32> {
        let image = image(number);
        let image = match (image.width(), image.height()) {
            (32, 32) => image,
            _ => image.resize_shorter(32, Filter::Bicubic).unwrap().center_crop(32, 32).unwrap(),
        };
        let data = TensorData::new(image.to_f32_hwc(low, 1.0), [1, 32, 32, 3]);
        let image = Tensor::<4>::from_data(data, &device());
        values_of(self.autoencoder.encode(image).moments.permute([0, 3, 1, 2]))
    }

    /// Tokens of sample `number`'s caption: ids, and the position of the end.
    fn tokens(&self, number: usize) -> (Tensor<2, Int>, usize) {
        let tokens = ClipTokenizer::with_options(TOKENS, TokenizerOptions::TRANSFORMERS_EXCLAMATION)
            .encode(captions(number).trim());
        (Tensor::from_data(TensorData::new(tokens.ids, [1, TOKENS]), &device()), tokens.end)
    }

    fn states(&self, number: usize) -> Vec<f32> {
        values_of(self.clip.text_model.states(self.tokens(number).0, DType::F32))
    }
}

fn run_recipe(recipe: &PrecacheRecipe, slice: Slice) -> Result<PrecacheSummary, StageError> {
    match precache(recipe, slice, &device(), &StopFlag::new_unhooked())? {
        StageEnd::Done(summary) => Ok(summary),
        StageEnd::Interrupted { .. } => panic!("nobody asked to stop"),
    }
}

pub(crate) const MOMENTS: &str =
    "[encoders.moments]\nkind = \"autoencoder\"\nmodel = AUTOENCODER\npart = \"npy\"\nbatch_axis = true\n";
pub(crate) const STATES: &str = "[encoders.text]\nkind = \"text\"\nmodel = CLIP\npart = \"states.npy\"\n";

fn array(dataset: &Dataset, number: usize, part: &str) -> NpyArray {
    let sample = dataset.get(number).expect("in range");
    assert_eq!(sample.key(), key(number));
    sample.array(part).expect("an array")
}

/// Equal but for the rounding that may depend on what shares a batch.
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-3f32, |most, value| most.max(value.abs()));
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(apart <= 1e-5 * scale, "{what}: {apart} apart on a scale of {scale}");
}

#[test]
fn moments_and_states_are_the_models() {
    let world = World::new();
    let zero_one = "input_range = \"mlperf_zero_one\"\nkeep = [\"txt\", \"json\"]\n";
    for (out, more, low) in [("usual", "", -1.0), ("mlperf", zero_one, 0.0)] {
        let data = world.run(out, &format!("{more}{MOMENTS}{STATES}pooled_part = \"pooled.npy\"\n"));
        for number in 0..SAMPLES {
            let moments = array(&data, number, "npy");
            assert_eq!(moments.shape(), [1, 8, 4, 4]);
            assert_close(&moments.to_f32().unwrap(), &world.moments(number, low), "moments");
            let states = array(&data, number, "states.npy");
            assert_eq!(states.shape(), [TOKENS, 32]);
            assert_close(&states.to_f32().unwrap(), &world.states(number), "states");
            let (ids, end) = world.tokens(number);
            let unit = values_of(world.clip.text_features(ids, &[end], DType::F32));
            let pooled = array(&data, number, "pooled.npy").to_f32().unwrap();
            let length = pooled.iter().map(|v| v * v).sum::<f32>().sqrt();
            assert_close(&pooled.iter().map(|v| v / length).collect::<Vec<_>>(), &unit, "pooled states");
            let sample = data.get(number).unwrap();
            assert_eq!(sample.text("txt").unwrap(), captions(number), "captions are kept as they are");
            assert_eq!(sample.part("json").is_ok(), out == "mlperf");
        }
    }
}

#[test]
fn features_of_image_towers() {
    let world = World::new();
    let config = VitConfig {
        image_size: 16,
        patch_size: 8,
        channels: 32,
        mlp_channels: 64,
        layers: 1,
        heads: 2,
        labels: 3,
        ..VitConfig::default()
    };
    let vit: Vit = config.init(&mut Init::repeated_noise(0.08, &device())).expect("valid").valid();
    let part = Part::module(Component::Classifier, config.to_transformers().expect("sayable"), &vit);
    Export::model(part).write(&world.path("vit"), Placement::New).expect("saved");
    let more = format!(
        "[encoders.image]\nkind = \"clip_image\"\nmodel = CLIP\n\
         [encoders.classes]\nkind = \"vit\"\nmodel = {:?}\noutput = \"states\"\n",
        world.path("vit")
    );
    let data = world.run("features", &more);
    for number in 0..SAMPLES {
        let image = image(number).resize_shorter(16, Filter::Bicubic).unwrap().center_crop(16, 16).unwrap();
        let pixels = TensorData::new(image.to_f32_hwc(-1.0, 1.0), [1, 16, 16, 3]);
        let pixels = Tensor::<4>::from_data(pixels, &device());
        let found = array(&data, number, "image.npy").to_f32().unwrap();
        let length = found.iter().map(|v| v * v).sum::<f32>().sqrt();
        let unit: Vec<f32> = found.iter().map(|v| v / length).collect();
        assert_close(&unit, &values_of(world.clip.image_features(pixels.clone())), "CLIP");
        let states = array(&data, number, "classes.npy");
        assert_eq!(states.shape(), [5, 32]);
        assert_close(&states.to_f32().unwrap(), &values_of(vit.last_hidden_state(pixels).unwrap()), "ViT");
    }
}

#[test]
fn numbers_are_rounded_and_packed_as_asked() {
    let world = World::new();
    let whole = world.run("whole", &format!("{MOMENTS}{STATES}"));
    let half = world.run("half", &format!("{MOMENTS}dtype = \"f16\"\n{STATES}dtype = \"bf16\"\n"));
    let nemo = "layout = \"nemo\"\n[encoders.autoencoderkl_image]\nkind = \"autoencoder\"\nmodel = AUTOENCODER\ndtype = \"f16\"\n\
                [encoders.clip-vit-large-patch14_text]\nkind = \"text\"\nmodel = CLIP\n";
    let nemo = world.run("nemo", nemo);
    for number in 0..SAMPLES {
        let (moments, states) = (array(&whole, number, "npy"), array(&whole, number, "states.npy"));
        let (moments, states) = (moments.to_f32().unwrap(), states.to_f32().unwrap());
        let rounded = NpyArray::f16_from_f32(&[1, 8, 4, 4], &moments).unwrap();
        assert_eq!(array(&half, number, "npy"), rounded);
        assert_eq!(array(&half, number, "states.npy"), NpyArray::bf16_from_f32(&[TOKENS, 32], &states).unwrap());
        let sample = nemo.get(number).unwrap();
        let names: Vec<&str> = sample.parts().map(|(part, _)| part).collect();
        assert_eq!(names, ["pickle", "txt"]);
        let arrays = read_arrays(sample.key(), sample.part("pickle").unwrap()).unwrap();
        let expected = BTreeMap::from([
            ("autoencoderkl_image".to_owned(), NpyArray::f16_from_f32(&[8, 4, 4], &moments).unwrap()),
            ("clip-vit-large-patch14_text".to_owned(), NpyArray::from_f32(&[TOKENS, 32], states).unwrap()),
        ]);
        assert_eq!(arrays, expected);
    }
}

#[test]
fn the_same_weights_in_another_layout_are_the_same_encoder() {
    let world = World::new();
    let diffusers = world.path("diffusers");
    fs::create_dir(&diffusers).unwrap();
    let own = world.path("autoencoder");
    let weights = "diffusion_pytorch_model.safetensors";
    fs::copy(own.join(weights), diffusers.join(weights)).unwrap();
    fs::write(diffusers.join("config.json"), autoencoder_config().to_diffusers().to_string()).unwrap();
    let moments = |out: &str, model: &Path| {
        let data = world.run(out, &MOMENTS.replace("AUTOENCODER", &format!("{model:?}")));
        let weights = data.meta()[META_ENCODERS]["moments"]["weights"].clone();
        (weights, (0..SAMPLES).map(|number| array(&data, number, "npy")).collect::<Vec<_>>())
    };
    let (own, published) = (moments("own", &own), moments("published", &diffusers));
    assert_eq!(own.0, published.0);
    assert!(own.1 == published.1, "the moments differ");
}

#[test]
fn slices_end_in_the_same_dataset() {
    let world = World::new();
    let more = format!("{MOMENTS}{STATES}without_padding = true\n");
    world.run("whole", &more);
    let recipe = world.recipe("slices", &more);
    let finished: Vec<bool> = [2, 0, 1]
        .into_iter()
        .map(|number| run_recipe(&recipe, Slice { id: number, count: 3 }).expect("encoded").finished.is_some())
        .collect();
    assert_eq!(finished, [false, false, true]);
    let files = |name: &str| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(world.path(name)).unwrap().map(|entry| entry.unwrap());
        entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
    };
    let (whole, slices) = (files("whole"), files("slices"));
    assert!(whole == slices, "{:?} and {:?}", whole.keys(), slices.keys());
    assert_eq!(whole.len(), 4 + 3, "shards, index, conditioning, encoders");
}

/// A diffusion recipe for a tiny UNet, with `more` in front of its tables.
pub(crate) fn diffusion(data: &Path, more: &str, tables: &str) -> (DiffusionRecipe, String) {
    let text = format!(
        "kind = \"diffusion\"\n[data]\npath = {data:?}\n{more}\n\
         [model]\nblock_out_channels = [8, 16]\nlayers_per_block = 1\nattention_levels = [true, true]\n\
         head_channels = [8, 8]\ncontext_channels = 32\nnorm_groups = 4\ntransformer_norm_groups = 4\n\
         [schedule]\nkind = \"cosine\"\ntimesteps = 1000\n\
         [objective]\nprediction = \"v\"\ncaption_dropout = 0.3\nscale_factor = 0.5\n\
         [optimizer]\nlearning_rate = 1e-3\n\
         [run]\nseed = 3\nsamples = 16\nbatch_size = 4\nlog_every = 4\ncheckpoint_every = 8\n{tables}"
    );
    (toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}")), text)
}

pub(crate) fn train(folder: &Path, (recipe, text): &(DiffusionRecipe, String)) -> Result<TrainingSummary, StageError> {
    let (device, stop) = (device(), StopFlag::new_unhooked());
    match stages::train::<DiffusionTask>(Recipe { value: recipe, text }, &StageContext::new(folder, &device, &stop))? {
        StageEnd::Done(summary) => Ok(summary),
        StageEnd::Interrupted { .. } => panic!("nobody asked to stop"),
    }
}

/// Rewrites a dataset, and nothing beside it.
fn rewrite(from: &Dataset, to: &Path, change: impl Fn(Sample) -> Sample) {
    let mut writer = ShardWriter::create(to, "y", ShardLimits::default()).unwrap();
    from.iter().for_each(|sample| writer.write(&change(sample.unwrap().to_sample())).unwrap());
    writer.finish().unwrap();
}

#[test]
fn training_reads_every_form() {
    let world = World::new();
    let own = world.run("own", &format!("{MOMENTS}{STATES}"));
    let text_encoder = format!("[text]\nmodel = {:?}\n", world.path("clip"));
    // As MLPerf's shards: moments and captions.
    rewrite(&own, &world.path("mlperf"), |mut sample| {
        sample.parts.remove("states.npy");
        sample
    });
    // As NeMo's shards, written by other hands.
    rewrite(&own, &world.path("nemo"), |sample| {
        let moments = sample.array("npy").unwrap();
        let moments = NpyArray::new(vec![8, 4, 4], moments.data().clone()).unwrap();
        let arrays = [("autoencoderkl_image", moments), ("clip_text", sample.array("states.npy").unwrap())];
        let arrays = arrays.into_iter().map(|(name, array)| (name.to_owned(), array)).collect();
        Sample::new(sample.key).with("pickle", write_arrays(&arrays))
    });
    let pickled = "[inputs]\nmoments = \"pickle:autoencoderkl_image\"\nstates = [\"pickle:clip_text\"]\n";
    let of = |name: &str, tables: &str| {
        let recipe = diffusion(&world.path(name), "", tables);
        train(&world.path(&format!("run-{name}")), &recipe).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let expected = of("own", "");
    assert_eq!(expected.samples_seen, 16);
    for (name, tables) in [("mlperf", text_encoder.clone()), ("nemo", format!("{pickled}{text_encoder}"))] {
        let found = of(name, &tables);
        for (found, expected) in [(found.loss_first, expected.loss_first), (found.loss_last, expected.loss_last)] {
            assert!((found - expected).abs() < 1e-4 * expected, "{name}: {found} instead of {expected}");
        }
    }
    // With both encoders known, each run ends with a whole pipeline.
    let model = |run: &str| Checkpoint::open(world.path(run)).unwrap();
    for run in ["run-own", "run-nemo"] {
        let held = model(run).components();
        assert!(held.contains(&Component::Unet), "{run}: {held:?}");
    }
    let whole = model("run-own");
    assert_eq!(whole.components().len(), 3, "{:?}", whole.notes());
    assert_eq!(whole.component(Component::Vae).unwrap().config["scaling_factor"], 0.5);
    assert_eq!(whole.prediction().unwrap().name(), "v_prediction");
    assert_eq!(whole.tokenizer(Component::TextEncoder).unwrap().context_length(), TOKENS);
    let unknown = train(&world.path("run-unknown"), &diffusion(&world.path("nemo"), "", pickled)).unwrap_err();
    assert!(unknown.is_usage() && unknown.to_string().contains("objective.caption_dropout"), "{unknown}");
}

#[test]
fn tokens_that_were_left_out_are_those_of_the_empty_caption() {
    let world = World::new();
    let short = world.run("short", &format!("{MOMENTS}{STATES}without_padding = true\n"));
    let lengths: Vec<usize> = (0..5).map(|number| array(&short, number, "states.npy").shape()[0]).collect();
    assert_eq!(lengths, [4, 9, 2, 4, 12]);
    let empty = values_of({
        let tokens = ClipTokenizer::with_options(TOKENS, TokenizerOptions::TRANSFORMERS_EXCLAMATION).encode("");
        let ids = Tensor::<2, Int>::from_data(TensorData::new(tokens.ids, [1, TOKENS]), &device());
        world.clip.text_model.states(ids, DType::F32)
    });
    // The same, filled in by hand.
    rewrite(&short, &world.path("filled"), |sample| {
        let mut states = sample.array("states.npy").unwrap().to_f32().unwrap();
        states.extend_from_slice(&empty[states.len()..]);
        let states = NpyArray::new(vec![TOKENS, 32], NpyData::F32(states)).unwrap();
        sample.with("states.npy", states.to_bytes())
    });
    fs::copy(world.path("short").join(CONDITIONING), world.path("filled").join(CONDITIONING)).unwrap();
    let loss = |name: &str| {
        let summary = train(&world.path(&format!("run-{name}")), &diffusion(&world.path(name), "", "")).unwrap();
        (summary.loss_first, summary.loss_last)
    };
    assert_eq!(loss("short"), loss("filled"));
    fs::remove_file(world.path("short").join(CONDITIONING)).unwrap();
    let recipe = diffusion(&world.path("short"), "on_error = \"fail\"", "");
    let error = train(&world.path("run-bare"), &recipe).unwrap_err().to_string();
    assert!(error.contains("caption_dropout") && error.contains(CONDITIONING), "{error}");
}

#[test]
fn states_of_two_encoders_are_joined() {
    let world = World::new();
    world.run(
        "two",
        &format!("{MOMENTS}{STATES}[encoders.second]\nkind = \"text\"\nmodel = CLIP\nstates = \"penultimate\"\n"),
    );
    let (recipe, text) = diffusion(&world.path("two"), "", "[inputs]\nstates = [\"states.npy\", \"second.npy\"]\n");
    let error = train(&world.path("run-narrow"), &(recipe.clone(), text.clone())).unwrap_err().to_string();
    assert!(error.contains("64 channels"), "{error}");
    let wide = text.replace("context_channels = 32", "context_channels = 64");
    train(&world.path("run"), &(toml::from_str(&wide).unwrap(), wide)).unwrap();
}

#[test]
fn other_encoders_are_noticed() {
    let world = World::new();
    let data = world.run("data", &format!("{MOMENTS}{STATES}"));
    let identity = data.encoder().unwrap().to_owned();
    let weights = data.meta()[META_ENCODERS]["text"]["weights"].as_str().unwrap()[..10].to_owned();
    drop(data);
    let recipe = |more: &str| diffusion(&world.path("data"), more, "");
    for (name, wanted) in [("identity", &identity[..16]), ("weights", &weights)] {
        train(&world.path(name), &recipe(&format!("require_encoder = {wanted:?}"))).unwrap();
    }
    let error = train(&world.path("other"), &recipe("require_encoder = \"0123\"")).unwrap_err().to_string();
    assert!(error.contains(&identity) && error.contains("0123"), "{error}");

    // A run that was begun, and a dataset that another model has encoded meanwhile.
    let run = world.path("run");
    train(&run, &recipe("")).unwrap();
    fs::remove_file(run.join("result.json")).unwrap();
    fs::remove_dir_all(world.path("data")).unwrap();
    let device = device();
    let noise = &mut Init::repeated_noise(0.05, &device);
    let other = clip_config().init(noise).unwrap().valid();
    save_clip(&world.path("clip"), &other, &clip_config(), Placement::Replace);
    let changed = world.run("data", &format!("{MOMENTS}{STATES}"));
    let error = train(&run, &recipe("")).unwrap_err();
    let other = matches!(&error, StageError::Train(error) if matches!(**error, TrainError::OtherEncoder { .. }));
    assert!(other, "{error}");
    let text = error.to_string();
    assert!(text.contains(&identity) && text.contains(changed.encoder().unwrap()), "{text}");
}

#[test]
fn recipes_that_cannot_be() {
    let world = World::new();
    for (more, parts) in [
        ("encoders = {}\n".to_owned(), &["names no encoder"][..]),
        (format!("{MOMENTS}without_padding = true\n"), &["`moments`", "`without_padding`", "remove it"]),
        (format!("{STATES}batch_axis = true\n"), &["`text`", "`batch_axis`"]),
        (format!("layout = \"nemo\"\n{STATES}"), &["`text`", "have no parts"]),
        (format!("{MOMENTS}[encoders.b]\nkind = \"autoencoder\"\nmodel = AUTOENCODER\npart = \"npy\"\n"), &["`npy`"]),
        (format!("keep = [\"npy\"]\n{MOMENTS}"), &["`npy`", "`keep`"]),
        (format!("layout = \"nemo\"\n{}dtype = \"bf16\"\n", STATES.replace("part = \"states.npy\"\n", "")), &["bf16"]),
        (MOMENTS.replace("AUTOENCODER", "\"/nowhere/vae\""), &["/nowhere/vae"]),
        (MOMENTS.replace("AUTOENCODER", "CLIP"), &["clip", "vae"]),
        (format!("{MOMENTS}output = \"pooled\"\n"), &["no output pooled", "moments"]),
        (format!("images = [\"jpg\", \"tif\"]\n{MOMENTS}"), &["0000", "jpg or tif", "png"]),
    ] {
        let error = run_recipe(&world.recipe("bad", &more), Slice::ALL).expect_err(&more).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{more}\n{error}");
    }
    // A try that fails at once is not in the way of a better one.
    let named = |caption: &str| world.recipe("named", &format!("caption = \"{caption}\"\n{STATES}"));
    let error = run_recipe(&named("{fil}"), Slice::ALL).unwrap_err().to_string();
    for part in ["no part `fil`", "the key `caption` asks for it by {fil}", "did you mean {file}?", "no sample of this"]
    {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    let error = run_recipe(&named("a photo"), Slice::ALL).unwrap_err().to_string();
    assert!(error.contains("`caption`") && !error.contains("data.caption"), "{error}");
    run_recipe(&named("{file}"), Slice::ALL).unwrap();
    let error = run_recipe(&named("{json}"), Slice::ALL).unwrap_err().to_string();
    assert!(error.contains("with `caption` = \"{file}\"") && error.contains("with `caption` = \"{json}\""), "{error}");
    // Nor is what encoders have made a source of images.
    let mut again = world.recipe("again", MOMENTS);
    again.source = world.path("named").display().to_string();
    let error = run_recipe(&again, Slice::ALL).unwrap_err().to_string();
    assert!(error.contains("what encoders made of images") && !error.contains("mend a sample"), "{error}");
    let mut recipe = world.recipe("bad", MOMENTS);
    recipe.resolution = 30;
    let error = run_recipe(&recipe, Slice::ALL).unwrap_err().to_string();
    assert!(error.contains("30 pixels is no multiple of 8"), "{error}");
}

#[test]
fn any_source_will_do() {
    let world = World::new();
    // A plain folder of images with captions beside them.
    let folder = world.path("folder");
    fs::create_dir(&folder).unwrap();
    for number in 0..SAMPLES {
        let png = image(number).encode_png(PngEffort::Fast).unwrap();
        fs::write(folder.join(format!("{}.png", key(number))), png).unwrap();
        fs::write(folder.join(format!("{}.txt", key(number))), captions(number)).unwrap();
    }
    let from_shards = world.run("from-shards", &format!("{MOMENTS}{STATES}"));
    let mut recipe = world.recipe("from-folder", &format!("{MOMENTS}{STATES}"));
    recipe.source = folder.to_str().unwrap().to_owned();
    run_recipe(&recipe, Slice::ALL).unwrap();
    let from_folder = Dataset::open(world.path("from-folder")).unwrap();
    for number in 0..SAMPLES {
        for part in ["npy", "states.npy"] {
            assert_eq!(array(&from_folder, number, part), array(&from_shards, number, part));
        }
    }
    // Two sources with weights, shards one after the other.
    let sources = |second: &Path| {
        let first = world.path("from-shards");
        let sources = format!("sources = [{{ path = {first:?}, weight = 3 }}, {{ path = {second:?} }}]");
        let (_, text) = diffusion(&first, &format!("shuffle = {{ shards = {{ buffer = 6 }} }}\n{sources}"), "");
        let text = text.replace(&format!("path = {first:?}\n"), "");
        (toml::from_str(&text).unwrap(), text)
    };
    train(&world.path("mixture"), &sources(&world.path("from-folder"))).unwrap();
    world.run("otherwise", &format!("{MOMENTS}{STATES}dtype = \"f16\"\n"));
    let error = train(&world.path("mismatch"), &sources(&world.path("otherwise"))).unwrap_err().to_string();
    assert!(error.contains("was encoded by") && error.contains("to f16"), "{error}");
    // Samples in quarantine are left out, and both sources and none are refused.
    let mut list = calotype_data::Quarantine::new();
    list.insert("encoded-000000.tar", key(1), "a test");
    list.write(&world.path("from-shards")).unwrap();
    let short = format!("{MOMENTS}{STATES}");
    let mut again = world.recipe("again", &short);
    again.source = world.path("from-shards").to_str().unwrap().to_owned();
    again.encoders.remove("moments");
    assert_eq!(run_recipe(&again, Slice::ALL).unwrap().left_out.values().sum::<usize>(), 1);
    for more in ["sources = [{ path = \"x\" }]", "path = \"\""] {
        let (recipe, text) = diffusion(&world.path("from-shards"), "", "");
        let text = match more {
            "path = \"\"" => text.replace(&format!("path = {:?}\n", world.path("from-shards")), ""),
            more => text.replace("[data]\n", &format!("[data]\n{more}\n")),
        };
        let recipe = toml::from_str(&text).unwrap_or(recipe);
        let error = train(&world.path("none"), &(recipe, text)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("data.path"), "{error}");
    }
}
