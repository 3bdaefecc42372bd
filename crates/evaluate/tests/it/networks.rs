//! Features behind each published preparation, against the libraries that published them: pictures of mixed sizes and modes,
//! captions short, long and odd.
//!
//! `tests/golden/make_networks.py` made the values; the networks are tiny and have weights by formula.

use crate::formula;
use burn::tensor::Device;
use calotype_checkpoints::{Component, TensorSpec, component_keys, tables};
use calotype_data::image::{DecodeOptions, RgbImage};
use calotype_evaluate::{EvaluateError, FeatureKey, Features, Networks};
use calotype_weights::{NamedTensor, write_safetensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/networks.json")).expect("JSON"));

/// A parameter with these weights, but for the scale of logits.
fn parameter(spec: &TensorSpec, gain: f64) -> NamedTensor<'static> {
    let TensorSpec { name, shape } = spec;
    let values = if name == "logit_scale" { vec![2.6592] } else { formula::parameter(name, shape, gain) };
    NamedTensor::from_f32(name.clone(), shape.clone(), &values).into_owned()
}

fn parameters(component: Component, config: &Value, gain: f64) -> Vec<NamedTensor<'static>> {
    let specs = component_keys(component, config).expect("a configuration");
    specs.iter().map(|spec| parameter(spec, gain)).collect()
}

fn write(path: &Path, tensors: &[NamedTensor<'_>]) {
    write_safetensors(path, tensors, &BTreeMap::new()).expect("written");
}

fn save(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).expect("written");
}

/// The picture of `picture` of `make_networks.py`.
fn picture(n: usize) -> RgbImage {
    let (width, height) = (9 + n * 37 % 131, 8 + n * 53 % 117);
    let level = |i: usize| {
        let (c, x, y) = (i % 3, i / 3 % width, i / 3 / width);
        (((x * 7 + y * 13 + c * 50 + n * 29) ^ (x * y / 5)) & 255) as u8
    };
    RgbImage::new(width, height, (0..width * height * 3).map(level).collect()).expect("a picture")
}

/// The files of all modes, then the pictures by formula: a hundred.
fn pictures() -> Vec<RgbImage> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/images");
    let files = GOLDEN["files"].as_array().expect("files");
    let file = |name: &Value| {
        let name = name.as_str().expect("a name");
        let bytes = std::fs::read(folder.join(name)).expect(name);
        RgbImage::decode_with(name, &bytes, &DecodeOptions::as_stored()).expect(name)
    };
    files.iter().map(file).chain((0..100 - files.len()).map(picture)).collect()
}

fn captions() -> Vec<&'static str> {
    GOLDEN["captions"].as_array().expect("captions").iter().map(|text| text.as_str().expect("a text")).collect()
}

fn networks() -> Networks {
    Networks::new(Device::flex())
}

fn with_clip(path: &Path) -> Networks {
    let mut networks = networks();
    networks.clip = Some(path.to_owned());
    networks
}

fn with_features(path: &Path) -> Networks {
    let mut networks = networks();
    networks.features = Some(path.to_owned());
    networks
}

/// Compares rows with golden ones, each relative to its largest value.
fn check(name: &str, found: &[f32], golden: &Value) {
    let rows: Vec<Vec<f32>> = serde_json::from_value(golden.clone()).expect("rows");
    let width = rows[0].len();
    assert_eq!(found.len(), rows.len() * width, "{name}");
    let mut worst = 0f32;
    for (number, (ours, theirs)) in found.chunks_exact(width).zip(&rows).enumerate() {
        let largest = theirs.iter().fold(0f32, |a, b| a.max(b.abs()));
        let far = ours.iter().zip(theirs).fold(0f32, |a, (x, y)| a.max((x - y).abs())) / largest;
        assert!(far <= 1e-4, "{name}, row {number}: {far:e}: {ours:?} and {theirs:?}");
        worst = worst.max(far);
    }
    println!("{name}: {} rows differ by at most {worst:.1e}", rows.len());
}

fn rows(features: &dyn Features, images: &[RgbImage]) -> Vec<f32> {
    features.images(&images.iter().collect::<Vec<_>>()).expect("features").features
}

fn clip_config() -> Value {
    let tower = |channels: usize| {
        json!({
            "hidden_size": channels, "intermediate_size": 2 * channels, "num_hidden_layers": 2, "num_attention_heads": 2,
            "hidden_act": "quick_gelu",
        })
    };
    let (mut text, mut vision) = (tower(16), tower(32));
    text["eos_token_id"] = 49_407.into();
    vision["image_size"] = 32.into();
    vision["patch_size"] = 8.into();
    json!({ "model_type": "clip", "projection_dim": 8, "text_config": text, "vision_config": vision })
}

/// The same model in transformers' layout.
fn transformers_clip(folder: &Path) {
    clip_of_gain(folder, 1.0);
}

/// A tiny CLIP with weights of this gain in transformers' layout.
pub fn clip_of_gain(folder: &Path, gain: f64) {
    let config = clip_config();
    save(&folder.join("config.json"), &config);
    write(&folder.join("model.safetensors"), &parameters(Component::Clip, &config, gain));
}

/// The same weights in open_clip's layout, with exact GELU.
fn open_clip(folder: &Path) {
    let canonical = parameters(Component::Clip, &clip_config(), 1.0);
    write(&folder.join("open_clip_model.safetensors"), &tables::open_clip().store(&canonical).expect("places for all"));
    let model = json!({
        "embed_dim": 8,
        "vision_cfg": { "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8 },
        "text_cfg": { "context_length": 77, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 2 },
    });
    save(&folder.join("open_clip_config.json"), &json!({ "model_cfg": model, "preprocess_cfg": {} }));
}

#[test]
fn clip_behind_every_preparation() {
    let (images, captions) = (pictures(), captions());
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [theirs, open_clips] = folders.each_ref().map(tempfile::TempDir::path);
    transformers_clip(theirs);
    open_clip(open_clips);
    for (folder, preparations) in [
        (theirs, ["transformers", "transformers-pillow", "torchmetrics", "cmmd"].as_slice()),
        (open_clips, ["open_clip"].as_slice()),
    ] {
        let networks = with_clip(folder);
        for name in preparations {
            let case = &GOLDEN["clip"][name];
            let features = networks.open(&FeatureKey::new("clip", name)).expect("features");
            assert_eq!((features.width(), features.key().to_string()), (8, format!("clip/{name}")));
            check(&format!("{name}: pictures"), &rows(&*features, &images), &case["images"]);
            if case["captions"].is_array() {
                check(
                    &format!("{name}: captions"),
                    &features.captions(&captions).expect("features"),
                    &case["captions"],
                );
            }
        }
    }
}

#[test]
fn a_picture_and_a_caption_are_the_same_in_any_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    transformers_clip(folder.path());
    let networks = with_clip(folder.path());
    let features = networks.open(&FeatureKey::new("clip", "open_clip")).expect("features");
    let images: Vec<RgbImage> = (0..5).map(picture).collect();
    let one_by_one: Vec<f32> = images.iter().flat_map(|image| rows(&*features, std::slice::from_ref(image))).collect();
    assert_eq!(rows(&*features, &images), one_by_one);
    let captions = ["a cat", "", "a dog on a table"];
    let one_by_one: Vec<f32> = captions.iter().flat_map(|text| features.captions(&[text]).expect("features")).collect();
    assert_eq!(features.captions(&captions).expect("features"), one_by_one);
    assert!(rows(&*features, &[]).is_empty());
}

#[test]
fn dinov2_as_published_and_as_its_file_says() {
    let case = &GOLDEN["dinov2"];
    let folder = tempfile::tempdir().expect("a folder");
    save(&folder.path().join("config.json"), &case["config"]);
    save(&folder.path().join("preprocessor_config.json"), &case["processor"]);
    write(&folder.path().join("model.safetensors"), &parameters(Component::Dinov2, &case["config"], 1.0));
    let networks = with_features(folder.path());
    let images: Vec<RgbImage> = pictures().into_iter().step_by(5).collect();
    let auto = networks.open(&FeatureKey::new("custom", "auto")).expect("features");
    check("dinov2", &rows(&*auto, &images), &case["auto"]);
    assert_eq!(auto.fingerprint().network, "dinov2-vitw828");
    let processor = networks.open(&FeatureKey::new("custom", "processor")).expect("features");
    check("dinov2 by its file", &rows(&*processor, &images), &case["by_processor"]);
    assert_ne!(auto.fingerprint().resize, processor.fingerprint().resize);
    assert_eq!(auto.fingerprint().weights, processor.fingerprint().weights);
    let error = auto.captions(&["a cat"]).expect_err("no text");
    assert!(error.is_usage(), "{error}");
}

#[test]
fn vit_behind_its_own_processor() {
    let case = &GOLDEN["vit"];
    let folder = tempfile::tempdir().expect("a folder");
    save(&folder.path().join("config.json"), &case["config"]);
    save(&folder.path().join("preprocessor_config.json"), &case["processor"]);
    write(&folder.path().join("model.safetensors"), &parameters(Component::Classifier, &case["config"], 1.0));
    let networks = with_features(folder.path());
    let images: Vec<RgbImage> = pictures().into_iter().step_by(5).collect();
    for preparation in ["auto", "processor"] {
        let features = networks.open(&FeatureKey::new("custom", preparation)).expect("features");
        check(&format!("vit, {preparation}"), &rows(&*features, &images), &case["auto"]);
        assert_eq!(features.fingerprint().network, "vit-w16-8");
    }
}

#[test]
fn efficientnet_lite0() {
    let case = &GOLDEN["efficientnet"];
    let config = json!({ "model_type": "efficientnet_lite", "variant": 0, "num_labels": 1000 });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("efficientnet-lite0.safetensors");
    write(&path, &parameters(Component::EfficientNetLite, &config, 2f64.sqrt()));
    let networks = with_features(&path);
    let features = networks.open(&FeatureKey::new("custom", "auto")).expect("features");
    assert_eq!(features.fingerprint().network, "efficientnet-lite0");
    let images: Vec<RgbImage> = pictures().into_iter().step_by(25).collect();
    let every = case["every"].as_u64().expect("a step") as usize;
    let found: Vec<f32> = rows(&*features, &images).into_iter().step_by(every).collect();
    check("efficientnet-lite0", &found, &case["auto"]);
}

#[test]
fn files_that_give_no_features_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = FeatureKey::new("custom", "auto");
    let missing = networks().open(&key).err().expect("no file");
    assert!(missing.is_usage() && missing.to_string().contains("--features"), "{missing}");
    let missing = networks().open(&FeatureKey::new("clip", "open_clip")).err().expect("no file");
    assert!(missing.is_usage() && missing.to_string().contains("--clip"), "{missing}");
    let vae = json!({ "_class_name": "AutoencoderKL", "block_out_channels": [32], "norm_num_groups": 8, "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"] });
    save(&folder.path().join("config.json"), &vae);
    write(&folder.path().join("model.safetensors"), &parameters(Component::Vae, &vae, 1.0));
    let error = with_features(folder.path()).open(&key).err().expect("an autoencoder");
    assert!(matches!(error, EvaluateError::Usage(_)) && error.to_string().contains("vae"), "{error}");
    let damaged = folder.path().join("damaged.safetensors");
    std::fs::write(&damaged, b"no weights").expect("written");
    let error = with_features(&damaged).open(&key).err().expect("a damaged file").to_string();
    assert!(error.contains("damaged.safetensors"), "{error}");
    let tower = folder.path().join("tower.safetensors");
    let config = json!({ "model_type": "efficientnet_lite", "variant": 0, "num_labels": 3 });
    write(&tower, &parameters(Component::EfficientNetLite, &config, 1.0));
    let error = with_features(&tower).open(&FeatureKey::new("custom", "processor")).err().expect("no file beside it");
    assert!(error.is_usage() && error.to_string().contains("preprocessor_config.json"), "{error}");
}

/// An image tower alone gives features, and says that it reads no captions.
#[test]
fn an_image_tower_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = clip_config()["vision_config"].clone();
    config["model_type"] = "clip_vision_model".into();
    config["projection_dim"] = 8.into();
    config["architectures"] = json!(["CLIPVisionModelWithProjection"]);
    save(&folder.path().join("config.json"), &config);
    write(&folder.path().join("model.safetensors"), &parameters(Component::ImageEncoder, &config, 1.0));
    let mut networks = with_clip(folder.path());
    networks.features = Some(folder.path().to_owned());
    let images = pictures();
    let features = networks.open(&FeatureKey::new("clip", "transformers-pillow")).expect("features");
    check("image tower", &rows(&*features, &images), &GOLDEN["clip"]["transformers-pillow"]["images"]);
    let error = features.captions(&["a cat"]).expect_err("no text");
    assert!(error.is_usage() && error.to_string().contains("whole CLIP model"), "{error}");
    let custom = networks.open(&FeatureKey::new("custom", "auto")).expect("features");
    assert_eq!(custom.fingerprint().network, "clip-vit-w32-8");
    assert_eq!(rows(&*custom, &images[..3]).len(), 3 * 8);
}
