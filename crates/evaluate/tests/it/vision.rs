//! Vision models judged as transformers, torch and scikit-learn judge them, ties included; `make_vision.py` made
//! `vision.json`.

use crate::formula::{self, formula};
use burn::tensor::{DType, Device};
use calotype_checkpoints::{Checkpoint, Component, Export, ImageProcessor, Part, Placement};
use calotype_data::Control;
use calotype_data::image::{PngEffort, RgbImage};
use calotype_evaluate::Figure;
use calotype_evaluate::vision::{
    Captioned, Classifier, ClassifierInput, Clip, Comparison, Labelled, LabelledSettings, Placing, ZERO_SHOT_SCALE,
    ZeroShot, accuracy, classify, linear_probe, open_clip, open_head, retrieval,
};
use calotype_metrics::LogisticOptions;
use calotype_models::tokenizer::TokenizerOptions;
use calotype_models::{ClipConfig, Init, VitConfig, state};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const CLASSES: usize = 10;
const OF_CLASS: usize = 4;

#[derive(Deserialize)]
struct Golden {
    names: Vec<String>,
    templates: Vec<String>,
    vit: Judged,
    zero_shot: Judged,
    retrieval: BTreeMap<String, BTreeMap<String, f64>>,
    similarity: Pairs,
    linear_probe: Judged,
}

#[derive(Deserialize)]
struct Judged {
    logits: Vec<Vec<f64>>,
    accuracy: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Pairs {
    texts: Vec<String>,
    cosines: Vec<Vec<f64>>,
    probabilities: Vec<Vec<f64>>,
}

static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/vision.json")).expect("JSON"));

/// A parameter, as of the function of the same name in `make_vision.py`.
fn parameter(key: &str, shape: &[usize]) -> Vec<f32> {
    if key == "logit_scale" { vec![2.0] } else { formula::parameter(key, shape, 1.0) }
}

/// Rows of a head of classes in which two classes are the same.
fn head(key: &str, shape: &[usize]) -> Vec<f32> {
    let mut values = parameter(key, shape);
    if key.starts_with("classifier.") {
        let row = values.len() / CLASSES;
        values.copy_within(3 * row..4 * row, 7 * row);
    }
    values
}

fn filled<M: burn::module::Module>(model: M, values: fn(&str, &[usize]) -> Vec<f32>) -> M {
    let loaded = state::load(model, |name, shape| Ok::<_, std::convert::Infallible>(values(name, shape)));
    loaded.unwrap_or_else(|never| match never {})
}

fn picture(number: usize) -> RgbImage {
    let levels: Vec<u8> = formula(&format!("picture.{number}"), 48).iter().map(|v| ((v + 1.0) * 128.0) as u8).collect();
    let at = |x: usize, y: usize, channel: usize| levels[(y / 8 * 4 + x / 8) * 3 + channel];
    let pixels = (0..32 * 32 * 3).map(|i| at(i / 3 % 32, i / 96, i % 3)).collect();
    RgbImage::new(32, 32, pixels).unwrap()
}

/// Pictures and models of all tests.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn labelled(&self, name: &str, names: &[String]) -> Labelled {
        Labelled::open(&LabelledSettings::new(self.at(name).to_str().unwrap()), names).unwrap()
    }

    fn clip(&self) -> Clip {
        open_clip(&Checkpoint::open(self.at("clip")).unwrap(), &placing()).unwrap()
    }
}

fn placing() -> Placing {
    Placing { device: Device::flex(), dtype: DType::F32 }
}

static FILES: LazyLock<Files> = LazyLock::new(|| {
    let files = Files { folder: tempfile::tempdir().unwrap() };
    let device = Device::flex();
    let vit = VitConfig {
        image_size: 32,
        patch_size: 8,
        channels: 32,
        mlp_channels: 64,
        layers: 2,
        heads: 4,
        labels: CLASSES,
        ..VitConfig::default()
    };
    let network = filled(vit.init(&mut Init::new(0, &device)).unwrap(), head);
    let mut config = vit.to_transformers().unwrap();
    config["id2label"] = (0..CLASSES).map(|class| (class.to_string(), json!(format!("class {class}")))).collect();
    let export = Export::model(Part::module(Component::Classifier, config, &network));
    export.image_processor(&ImageProcessor::vit(32)).write(&files.at("vit"), Placement::New).unwrap();

    let tower = json!({
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu",
    });
    let with = |fields: serde_json::Value| {
        let mut config = tower.clone();
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        config
    };
    let config = json!({
        "model_type": "clip",
        "projection_dim": 16,
        "text_config": with(json!({ "vocab_size": 49408, "max_position_embeddings": 77 })),
        "vision_config": with(json!({ "image_size": 32, "patch_size": 8 })),
    });
    let clip = ClipConfig::from_transformers(&config).unwrap();
    let network = filled(clip.init(&mut Init::new(0, &device)).unwrap(), parameter);
    Export::model(Part::module(Component::Clip, clip.to_transformers().unwrap(), &network))
        .image_processor(&ImageProcessor::clip(32))
        .tokenizer(Component::Clip, TokenizerOptions::TRANSFORMERS_EXCLAMATION, 77)
        .unwrap()
        .write(&files.at("clip"), Placement::New)
        .unwrap();

    let write = |path: PathBuf, number: usize| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, picture(number).encode_png(PngEffort::Fast).unwrap()).unwrap();
    };
    for number in 0..CLASSES * OF_CLASS {
        let file = format!("class {}/{number:02}.png", number / OF_CLASS);
        write(files.at("all").join(&file), number);
        write(files.at(if number.is_multiple_of(OF_CLASS) { "test" } else { "train" }).join(&file), number);
    }
    for number in 0..20 {
        write(files.at("captioned").join(format!("{number:02}.png")), number);
        fs::write(files.at("captioned").join(format!("{number:02}.txt")), captions(number).join("\n")).unwrap();
    }
    files
});

/// One to three captions of a picture; every fifth picture has one that others have too.
fn captions(number: usize) -> Vec<String> {
    let own = ["a red fox", "the old crane", "many kites"].map(|kind| format!("picture number {number} of {kind}"));
    let shared = number.is_multiple_of(5).then(|| "a thing".to_owned());
    own.into_iter().take(1 + number % 3).chain(shared).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[Vec<f64>], allowed: f64) {
    let expected: Vec<f64> = expected.concat();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = (f64::from(*found) - expected).abs();
        assert!(difference <= allowed * expected.abs().max(1.0), "{what}, value {at}: {found} and {expected}");
    }
}

fn assert_figures(what: &str, figures: &[Figure], variant: &str, metric: &str, expected: &BTreeMap<String, f64>) {
    for (k, expected) in expected {
        let name = format!("{metric}_{k}");
        let figure = figures.iter().find(|figure| figure.metric == name && figure.variant == variant);
        let figure = figure.unwrap_or_else(|| panic!("{what}: no {name} in {figures:?}"));
        assert!((figure.value - expected).abs() < 1e-6, "{what}, {name}: {} and {expected}", figure.value);
    }
}

/// Logits of all pictures at once, and in batches of other sizes: they must not differ.
fn logits(classifier: &dyn Classifier) -> Vec<f32> {
    let pictures: Vec<RgbImage> = (0..CLASSES * OF_CLASS).map(picture).collect();
    let images: Vec<&RgbImage> = pictures.iter().collect();
    let together = classifier.logits(&images).unwrap();
    let apart: Vec<f32> = images.chunks(7).flat_map(|some| classifier.logits(some).unwrap()).collect();
    assert_eq!(together, apart);
    together
}

#[test]
fn a_head_of_classes_is_judged_as_torch_judges_it() {
    let golden = &GOLDEN.vit;
    let head =
        open_head(&Checkpoint::open(FILES.at("vit")).unwrap(), &[], ClassifierInput::Checkpoint, &placing()).unwrap();
    assert_eq!(head.names()[3], "class 3");
    assert_close("logits", &logits(&head), &golden.logits, 1e-4);
    let pictures = FILES.labelled("all", head.names());
    let judged = accuracy(&head, "classification", &pictures, (&[1, 5, 50], 16), &mut Control::default()).unwrap();
    assert_figures("vit", &judged.figures, "classification", "top", &golden.accuracy);
    assert_eq!(judged.figures.len(), 2);
    let told = judged.notices.join("; ");
    assert!(
        told.contains("top-50 is left out: 10 classes") && told.contains("8 pictures have another class"),
        "{told}"
    );
    for figure in &judged.figures {
        let [low, high] = figure.interval.unwrap();
        assert!(low <= figure.value && figure.value <= high && figure.count == 40, "{figure:?}");
    }
    let guesses = classify(&head, &[&picture(0)], 5).unwrap();
    assert_eq!(guesses[0].iter().map(|guess| guess.class).collect::<Vec<_>>(), judged.pictures[0].best);
    assert_eq!(guesses[0][0].name, format!("class {}", guesses[0][0].class));
    assert!(guesses[0].windows(2).all(|pair| pair[0].probability >= pair[1].probability));
}

#[test]
fn a_list_that_does_not_fit_the_head_is_refused() {
    let open = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        open_head(&Checkpoint::open(FILES.at("vit")).unwrap(), &names, ClassifierInput::Checkpoint, &placing())
    };
    let error = open(&["cat", "dog"]).err().unwrap();
    assert!(error.is_usage() && error.to_string().contains("2 classes are named, and the head of"), "{error}");
    assert!(error.to_string().contains("tells 10 apart"), "{error}");
    let clip = Checkpoint::open(FILES.at("clip")).unwrap();
    let error = open_head(&clip, &[], ClassifierInput::Checkpoint, &placing()).err().unwrap().to_string();
    assert!(
        error.contains("is no classifier with a head of classes (ViT, EfficientNet-Lite); it holds clip"),
        "{error}"
    );
    let error = open_clip(&Checkpoint::open(FILES.at("vit")).unwrap(), &placing()).err().unwrap().to_string();
    assert!(error.contains("is no CLIP model with both towers; it holds classifier"), "{error}");
}

#[test]
fn zero_shot_classification_is_that_of_open_clip() {
    let Golden { names, templates, zero_shot: golden, .. } = &*GOLDEN;
    let classifier = ZeroShot::new(FILES.clip(), ZERO_SHOT_SCALE, names.clone(), templates.clone()).unwrap();
    assert_close("logits", &logits(&classifier), &golden.logits, 1e-4);
    let pictures = FILES.labelled("all", names);
    let judged = accuracy(&classifier, "zero_shot", &pictures, (&[1, 5], 16), &mut Control::default()).unwrap();
    assert_figures("zero-shot", &judged.figures, "zero_shot", "top", &golden.accuracy);
    assert_eq!(judged.pictures.iter().filter(|picture| picture.tied).count(), 2 * OF_CLASS);
    // Other templates, other figures.
    let other = ZeroShot::new(FILES.clip(), ZERO_SHOT_SCALE, names.clone(), vec!["{}".to_owned()]).unwrap();
    let other = accuracy(&other, "zero_shot", &pictures, (&[1], 16), &mut Control::default()).unwrap();
    assert_ne!(other.figures[0].fingerprint, judged.figures[0].fingerprint);
}

#[test]
fn texts_beyond_the_context_are_told() {
    let long = "very ".repeat(80) + "long";
    let names = vec!["cat".to_owned(), long.clone()];
    let error = ZeroShot::new(FILES.clip(), 100.0, names, vec!["a {}".to_owned()]).err().unwrap().to_string();
    assert!(error.contains("class `very very") && error.contains("7 tokens longer than the 77"), "{error}");
    let clip = FILES.clip();
    let compared = Comparison::new(&clip, vec!["cat", &long]).unwrap();
    assert_eq!(compared.cut().collect::<Vec<_>>(), [0, 6]);
}

#[test]
fn retrieval_counts_as_torch_counts() {
    let pictures = Captioned::open(FILES.at("captioned").to_str().unwrap()).unwrap();
    for batch in [7, 32] {
        let found = retrieval(&FILES.clip(), &pictures, (&[1, 5, 10, 21], batch), &mut Control::default()).unwrap();
        for (variant, expected) in &GOLDEN.retrieval {
            assert_figures("retrieval", &found.figures, variant, "recall_at", expected);
        }
        let counts: Vec<usize> = found.figures.iter().map(|figure| figure.count).collect();
        let texts = (0..20).map(|number| captions(number).len()).sum();
        assert_eq!(counts, [20, 20, 20, texts, texts, texts]);
        assert!(found.notices.join("; ").contains("recall at 21 is left out: there are 20 pictures"));
    }
}

#[test]
fn similarity_is_that_of_transformers() {
    let Pairs { texts, cosines, probabilities } = &GOLDEN.similarity;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let clip = FILES.clip();
    let compared = Comparison::new(&clip, texts).unwrap();
    let found = compared.with(&[&picture(0), &picture(1)]).unwrap();
    assert_close("cosines", &found.cosines, cosines, 1e-5);
    // One picture at once.
    let alone: Vec<f32> = (0..2).flat_map(|number| compared.with(&[&picture(number)]).unwrap().cosines).collect();
    assert_eq!(alone, found.cosines);
    let found: Vec<f32> = found.probabilities.iter().map(|probability| *probability as f32).collect();
    assert_close("probabilities", &found, probabilities, 1e-4);
}

#[test]
fn a_linear_probe_is_that_of_scikit_learn() {
    let names: Vec<String> = (0..CLASSES).map(|class| format!("class {class}")).collect();
    let both = [&FILES.labelled("train", &names), &FILES.labelled("test", &names)];
    let clip = FILES.clip();
    let options = LogisticOptions { tolerance: 1e-10, ..LogisticOptions::default() };
    let mut control = Control::default();
    let probe = linear_probe(clip.features(), &names, both, &options, (&[1, 5], 8), &mut control).unwrap();
    assert!(probe.classifier.converged);
    let pictures: Vec<RgbImage> = (0..CLASSES).map(|class| picture(class * OF_CLASS)).collect();
    let features = clip.features().images(&pictures.iter().collect::<Vec<_>>()).unwrap().features;
    let logits: Vec<f32> = probe.classifier.logits(&features).unwrap().into_iter().map(|logit| logit as f32).collect();
    assert_close("logits", &logits, &GOLDEN.linear_probe.logits, 1e-3);
    assert_figures("probe", &probe.figures, "linear_probe", "top", &GOLDEN.linear_probe.accuracy);
    let more: Vec<String> = names.iter().cloned().chain(["class x".to_owned()]).collect();
    let both = [&FILES.labelled("train", &more), &FILES.labelled("test", &more)];
    let error =
        linear_probe(clip.features(), &more, both, &options, (&[1], 8), &mut control).err().unwrap().to_string();
    assert!(error.contains("no training picture is of class 10, `class x`"), "{error}");
}

#[test]
fn pictures_that_cannot_be_read_end_the_work_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for class in ["class 0", "class 1"] {
        fs::create_dir(folder.path().join(class)).unwrap();
        fs::write(folder.path().join(class).join("a.png"), picture(0).encode_png(PngEffort::Fast).unwrap()).unwrap();
    }
    fs::write(folder.path().join("class 1/broken.png"), "no picture").unwrap();
    let head =
        open_head(&Checkpoint::open(FILES.at("vit")).unwrap(), &[], ClassifierInput::Checkpoint, &placing()).unwrap();
    let pictures = Labelled::open(&LabelledSettings::new(text(folder.path())), head.names()).unwrap();
    let error =
        accuracy(&head, "classification", &pictures, (&[1], 16), &mut Control::default()).err().unwrap().to_string();
    assert!(error.contains("class 1/broken"), "{error}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
