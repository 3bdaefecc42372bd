//! Encoders and Inception against transformers, open_clip and pytorch-fid: tiny models with weights by formula.
//!
//! `tests/golden/make_encoders.py` made the outputs, and the norm and three projections of every gradient.

use crate::common;
use crate::formula::{formula, parameter};
use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_models::state::{self, values_of};
use calotype_models::vit::Dropout;
use calotype_models::{
    ClipConfig, ImageEncoderConfig, InceptionConfig, Init, InputError, TextEncoderConfig, TextStates, VitConfig,
};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::LazyLock;

static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/encoders.json")).expect("JSON"));

fn case(name: &str) -> &'static Value {
    &GOLDEN[name]
}

fn device() -> Device {
    Device::flex().autodiff()
}

pub(super) fn filled<M: Module>(model: M, gain: f64) -> M {
    let loaded = state::load(model, |name, shape| {
        // The only scalar, which the references leave at its initial value.
        let temperature = || vec![2.6592];
        Ok::<_, std::convert::Infallible>(if name == "logit_scale" {
            temperature()
        } else {
            parameter(name, shape, gain)
        })
    });
    loaded.unwrap_or_else(|never| match never {})
}

fn ids(case: &Value) -> Tensor<2, Int> {
    let rows: Vec<Vec<i32>> = serde_json::from_value(case["ids"].clone()).expect("rows of ids");
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), &device().inner())
}

/// The references' pictures, whose channels come first there.
pub(super) fn pictures(batch: usize, height: usize, width: usize) -> Tensor<4> {
    let data = TensorData::new(formula("pixel_values", batch * 3 * height * width), [batch, 3, height, width]);
    Tensor::from_data(data, &device()).permute([0, 2, 3, 1])
}

/// Outputs by name.
#[derive(Default)]
pub(super) struct Outputs(Vec<(String, Vec<usize>, Tensor<1>)>);

impl Outputs {
    pub(super) fn with<const D: usize>(mut self, name: &str, x: Tensor<D>) -> Self {
        let shape = x.dims().to_vec();
        let flat = x.cast(DType::F32).reshape([shape.iter().product::<usize>()]);
        self.0.push((name.to_owned(), shape, flat));
        self
    }

    /// Compares with a case's outputs: `f32` by the largest error, relative to the largest value; others by direction.
    pub(super) fn check(&self, name: &str, case: &Value, exact: bool) {
        for (output, shape, values) in &self.0 {
            let golden = &case["outputs"][output];
            assert_eq!(serde_json::json!(shape), golden["shape"], "{name}: shape of {output}");
            let theirs: Vec<f32> = serde_json::from_value(golden["values"].clone()).expect("numbers");
            let ours = values_of(values.clone().inner());
            let error = largest(ours.iter().zip(&theirs).map(|(a, b)| a - b)) / largest(theirs.iter().copied());
            let cosine = cosine(&ours, &theirs);
            println!("{name}: {output} differs by {error:.1e}, cosine 1 - {:.1e}", 1.0 - cosine);
            assert!(if exact { error <= 1e-4 } else { cosine >= 0.999 }, "{name}: {output}: {error:e}, {cosine}");
        }
    }

    /// The sum of products with numbers by formula, whose gradients the golden file holds.
    fn loss(&self) -> Tensor<1> {
        let term = |(name, _, x): &(String, Vec<usize>, Tensor<1>)| {
            let numbers = formula(name, x.dims()[0]);
            (x.clone() * Tensor::from_data(numbers.as_slice(), &x.device())).sum()
        };
        self.0.iter().map(term).reduce(|a, b| a + b).expect("outputs")
    }
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |a, b| a.max(b.abs()))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Compares the norm and three projections of every gradient that the case has.
fn check_gradients<M: Module>(name: &str, model: &M, loss: Tensor<1>, case: &Value) {
    let golden: HashMap<String, [f64; 4]> = serde_json::from_value(case["gradients"].clone()).expect("gradients");
    let gradients: HashMap<_, _> = common::gradients(model, &loss.backward()).into_iter().collect();
    let layout: HashMap<String, Vec<usize>> = state::layout(model).into_iter().collect();
    // Keys' biases have no gradient but rounding, as softmax does not see a constant.
    let floor = 1e-4 * golden.values().fold(0f64, |a, g| a.max(g[0]));
    let mut worst = 0f64;
    for (key, theirs) in &golden {
        let gradient =
            gradients.get(key).and_then(Option::as_ref).unwrap_or_else(|| panic!("{name}: no gradient {key}"));
        let memory = match *layout[key].as_slice() {
            [o, i, h, w] => vec![o, h, w, i],
            ref shape => shape.to_vec(),
        };
        let gradient = state::to_checkpoint(gradient, &memory);
        let dot = |i: usize| {
            let numbers = formula(&format!("{i}.{key}"), gradient.len());
            gradient.iter().zip(numbers).map(|(&g, n)| f64::from(g) * f64::from(n)).sum::<f64>()
        };
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let ours = [norm, dot(0), dot(1), dot(2)];
        let error = ours.iter().zip(theirs).fold(0f64, |a, (x, y)| a.max((x - y).abs())) / theirs[0].max(floor);
        worst = worst.max(error);
        assert!(error <= 1e-3, "{name}: gradient of {key} differs by {error:e}: {ours:?} and {theirs:?}");
    }
    println!("{name}: {} gradients differ by at most {worst:.1e}", golden.len());
}

fn text(name: &str) {
    let case = case(name);
    let config = TextEncoderConfig::from_transformers(&case["config"]).expect("a configuration");
    let device = device();
    let model = filled(config.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
    for dtype in [DType::F32, DType::BF16] {
        let out = model.forward(ids(case), dtype).expect("an output");
        let mut outputs = Outputs::default();
        for (i, states) in out.hidden_states.into_iter().enumerate() {
            outputs = outputs.with(&format!("hidden_states.{i}"), states);
        }
        outputs = outputs.with("last_hidden_state", out.last_hidden_state);
        outputs = match out.text_embeds {
            Some(embeds) => outputs.with("text_embeds", embeds),
            None => outputs.with("pooler_output", out.pooler_output),
        };
        outputs.check(name, case, dtype == DType::F32);
        if dtype == DType::F32 {
            check_gradients(name, &model, outputs.loss(), case);
        }
    }
    let selected = |which, output: &str| {
        let states = model.text_model.conditioning(ids(case), DType::F32, which).expect("states");
        Outputs::default().with(output, states).check(name, case, true);
    };
    selected(TextStates::LAST, "last_hidden_state");
    let penultimate = format!("hidden_states.{}", config.text.layers - 1);
    selected(TextStates::PENULTIMATE, &penultimate);
}

#[test]
fn text_towers() {
    ["text", "text_projection", "text_tanh"].into_iter().for_each(text);
}

#[test]
fn picture_tower() {
    let case = case("vision");
    let config = ImageEncoderConfig::from_transformers(&case["config"]).expect("a configuration");
    let device = device();
    let model = filled(config.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
    for dtype in [DType::F32, DType::BF16] {
        let out = model.forward(pictures(2, 12, 12).cast(dtype)).expect("an output");
        let outputs = Outputs::default()
            .with("last_hidden_state", out.last_hidden_state)
            .with("image_embeds", out.image_embeds.expect("a projection"));
        outputs.check("vision", case, dtype == DType::F32);
        if dtype == DType::F32 {
            check_gradients("vision", &model, outputs.loss(), case);
        }
    }
}

#[test]
fn both_towers_and_their_loss() {
    let case = case("clip");
    let config = ClipConfig::from_transformers(&case["config"]).expect("a configuration");
    let device = device();
    let model = filled(config.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
    let texts = model.text_features(ids(case), &[5, 2, 3], DType::F32);
    let features = model.image_features(pictures(3, 12, 12));
    let loss = model.contrastive_loss(features.clone(), texts.clone());
    let outputs = Outputs::default().with("text_embeds", texts).with("image_embeds", features).with("loss", loss);
    outputs.check("clip", case, true);
    check_gradients("clip", &model, outputs.loss(), case);
}

#[test]
fn classifiers() {
    for (name, size) in [("vit", 12), ("vit_without_bias", 8)] {
        let case = case(name);
        let config = VitConfig::from_transformers(&case["config"]).expect("a configuration");
        let device = device();
        let model = filled(config.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
        for dtype in [DType::F32, DType::BF16] {
            let pictures = pictures(2, size, size).cast(dtype);
            let outputs = Outputs::default()
                .with("last_hidden_state", model.last_hidden_state(pictures.clone()).expect("states"))
                .with("logits", model.forward(pictures).expect("logits"));
            outputs.check(name, case, dtype == DType::F32);
            if dtype == DType::F32 {
                check_gradients(name, &model, outputs.loss(), case);
            }
        }
    }
}

#[test]
fn open_clip_model() {
    let case = case("open_clip");
    let mut config = ClipConfig { projection: 10, ..ClipConfig::open_clip("ViT-H-14").expect("a known name") };
    let t = &mut config.text;
    (t.vocab_size, t.context_length, t.channels, t.heads, t.layers, t.end_token) = (20, 7, 24, 3, 3, 19);
    let v = &mut config.vision;
    // open_clip rounds 32 · 1.7 down.
    (v.image_size, v.patch_size, v.channels, v.mlp_channels, v.heads, v.layers) = (12, 4, 32, Some(54), 2, 2);
    let device = device();
    let text = TextEncoderConfig { text: config.text, projection: Some(config.projection) };
    let text = filled(text.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
    let vision = ImageEncoderConfig { vision: config.vision, projection: Some(config.projection) };
    let vision = filled(vision.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
    let states = text.text_model.conditioning(ids(case), DType::F32, TextStates::PENULTIMATE_NORMED);
    Outputs::default()
        .with("text_embeds", text.forward(ids(case), DType::F32).expect("texts").text_embeds.expect("a projection"))
        .with(
            "image_embeds",
            vision.forward(pictures(3, 12, 12)).expect("pictures").image_embeds.expect("a projection"),
        )
        .with("penultimate_normed", states.expect("states"))
        .check("open_clip", case, true);
}

/// Every eighth column.
pub(super) fn sparse(x: Tensor<2>) -> Tensor<2> {
    let [_, columns] = x.dims();
    let index: Vec<i32> = (0..columns as i32).step_by(8).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &x.device());
    x.select(1, index)
}

#[test]
fn inception_at_full_size() {
    let case = case("inception");
    let device = device();
    let model = filled(InceptionConfig::default().init(&mut Init::new(0, &device)), 2f64.sqrt());
    let folded = model.folded().valid();
    for dtype in [DType::F32, DType::BF16] {
        for (name, [height, width]) in [("exact", [299, 299]), ("resized", [160, 400])] {
            let pictures = pictures(1, height, width).inner().mul_scalar(0.5).add_scalar(0.5);
            let out = folded.forward(pictures.cast(dtype)).expect("features");
            Outputs::default()
                .with(&format!("{name}.features"), sparse(out.features))
                .with(&format!("{name}.logits"), sparse(out.logits))
                .check("inception", case, dtype == DType::F32);
        }
    }
    let out = model.forward_resized(pictures(1, 80, 75)).expect("features");
    let outputs = Outputs::default().with("small.logits", out.logits);
    outputs.check("inception", case, true);
    check_gradients("inception", &model, outputs.loss(), case);
}

#[test]
fn dropout_is_a_function_of_positions() {
    let sizes = VitConfig {
        image_size: 8,
        patch_size: 4,
        channels: 16,
        mlp_channels: 32,
        layers: 2,
        heads: 2,
        labels: 7,
        dropout: 0.25,
        ..VitConfig::default()
    };
    let device = device();
    let model = filled(sizes.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
    let pictures = pictures(3, 8, 8);
    let logits = |rows: std::ops::Range<usize>, positions: &[u64]| {
        let pictures = pictures.clone().narrow(0, rows.start, rows.len());
        values_of(model.forward_training(pictures, Dropout { seed: 5, positions }).expect("logits"))
    };
    let all = logits(0..3, &[10, 11, 12]);
    assert_eq!(all[7..], logits(1..3, &[11, 12])[..], "the cut into batches does not matter");
    assert_ne!(all[..7], logits(0..1, &[13])[..], "other positions drop other states");
    let plain = values_of(model.forward(pictures.clone()).expect("logits"));
    assert_ne!(all, plain);
    let without = VitConfig { dropout: 0.0, ..sizes };
    let model = filled(without.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
    let same = model.forward_training(pictures, Dropout { seed: 5, positions: &[0, 1, 2] }).expect("logits");
    let same = values_of(same);
    assert!(same.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5), "{same:?} {plain:?}");
}

#[test]
fn inputs_that_do_not_fit() {
    let device = device();
    let text = TextEncoderConfig::from_transformers(&case("text")["config"]).expect("a configuration");
    let text = text.init(&mut Init::new(0, &device)).expect("a model");
    let ids = |rows: Vec<i32>| {
        let n = rows.len();
        Tensor::<2, Int>::from_data(TensorData::new(rows, [1, n]), &Device::flex())
    };
    let fail = |rows: Vec<i32>| text.forward(ids(rows), DType::F32).expect_err("an error");
    assert_eq!(fail(vec![1; 8]), InputError::Tokens { tokens: 8, context: 7 });
    assert_eq!(fail(vec![1, 20]), InputError::TokenId { row: 0, token: 1, id: 20, vocabulary: 20 });
    assert_eq!(fail(vec![-1]), InputError::TokenId { row: 0, token: 0, id: -1, vocabulary: 20 });
    let which = TextStates { skip: 3, final_norm: true };
    let skip = text.text_model.conditioning(ids(vec![1]), DType::F32, which).expect_err("an error");
    assert_eq!(skip, InputError::Skip { skip: 3, layers: 2 });

    let vision = ImageEncoderConfig::from_transformers(&case("vision")["config"]).expect("a configuration");
    let vision = vision.init(&mut Init::new(0, &device)).expect("a model");
    let error = vision.forward(pictures(1, 12, 16)).expect_err("an error");
    assert_eq!(error, InputError::Image { found: [12, 16, 3], side: 12 });

    let inception = InceptionConfig::default().init(&mut Init::repeated_noise(0.1, &device));
    let error = inception.forward_resized(pictures(1, 74, 80)).expect_err("an error");
    assert_eq!(error, InputError::Small { found: [74, 80, 3], least: 75 });
}

/// The fields whose values would change results and are not supported are refused by name.
#[test]
fn configurations_that_are_not_supported() {
    let with = |name: &str, field: &str, value: Value| {
        let mut config = case(name)["config"].clone();
        config[field] = value;
        config
    };
    let text = |field: &str, value| TextEncoderConfig::from_transformers(&with("text", field, value)).map(drop);
    let vision = |field: &str, value| ImageEncoderConfig::from_transformers(&with("vision", field, value)).map(drop);
    let clip = |field: &str, value| ClipConfig::from_transformers(&with("clip", field, value)).map(drop);
    let vit = |field: &str, value| VitConfig::from_transformers(&with("vit", field, value)).map(drop);
    for (result, field) in [
        (text("hidden_act", "swish".into()), "hidden_act"),
        (text("hidden_act", 3.into()), "hidden_act"),
        (text("attention_dropout", 0.1.into()), "attention_dropout"),
        (text("eos_token_id", serde_json::json!([1, 2])), "eos_token_id"),
        (text("hidden_size", (-3).into()), "hidden_size"),
        (text("hidden_size", 1e20.into()), "hidden_size"),
        (text("model_type", "t5".into()), "model_type"),
        (vision("num_channels", 4.into()), "num_channels"),
        (vision("image_size", serde_json::json!([12, 16])), "image_size"),
        (vision("layer_norm_eps", "small".into()), "layer_norm_eps"),
        (clip("text_config", 1.into()), "text_config"),
        (clip("vision_config", serde_json::json!({"num_channels": 1})), "vision_config.num_channels"),
        (vit("num_hidden_layers", 257.into()), "num_hidden_layers"),
        (vit("image_size", (1u64 << 40).into()), "image_size"),
        (clip("text_config", serde_json::json!({"vocab_size": 1u64 << 40})), "text_config.vocab_size"),
        (vit("attention_probs_dropout_prob", 0.1.into()), "attention_probs_dropout_prob"),
        (vit("head_dim", 5.into()), "head_dim"),
        (vit("qkv_bias", "yes".into()), "qkv_bias"),
    ] {
        let error = result.expect_err(field);
        assert!(error.names(field), "{field}: {error}");
    }
    assert!(vision("image_size", serde_json::json!([12, 12])).is_ok());
    assert!(TextEncoderConfig::from_transformers(&Value::Null).is_err());
}

#[test]
fn defaults_are_the_librarys() {
    let empty = serde_json::json!({"model_type": "clip", "text_config": {}});
    let config = ClipConfig::from_transformers(&empty).expect("a configuration");
    assert_eq!(config, ClipConfig::open_clip("ViT-B-32-quickgelu").map(explicit).expect("a known name"));
    let vit = VitConfig::from_transformers(&serde_json::json!({"num_labels": 1000})).expect("a configuration");
    assert_eq!(vit, VitConfig::named("B_16").expect("a known size"));
}

/// The configuration with the widths of the linear layers spelled out.
fn explicit(mut config: ClipConfig) -> ClipConfig {
    config.text.mlp_channels.get_or_insert(4 * config.text.channels);
    config
}

#[test]
fn named_models_are_whole() {
    for name in ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"] {
        ClipConfig::open_clip(name).and_then(|config| config.validate()).expect(name);
    }
    for name in ["B_16", "L_16", "H_14", "g_14", "bigG_14"] {
        VitConfig::named(name).and_then(|config| config.validate()).expect(name);
    }
    let error = ClipConfig::open_clip("ViT-X-14").expect_err("an unknown name").to_string();
    assert!(error.contains("ViT-X-14") && error.contains("ViT-bigG-14"), "{error}");
    assert!(VitConfig::named("G_14").is_err());
}
