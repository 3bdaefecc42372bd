//! Networks that give features of pictures, against their reference libraries: tiny models, or whole ones, with weights by
//! formula.
//!
//! `tests/golden/make_features.py` and `make_keras_inception.cjs` made the outputs.

use crate::encoders::{Outputs, filled, pictures, sparse};
use burn::tensor::activation::relu;
use burn::tensor::{DType, Device};
use calotype_models::{
    Dinov2Config, EfficientNetLiteConfig, Init, InputError, KerasInceptionConfig, PositionInterpolation,
};
use serde_json::{Value, json};
use std::sync::LazyLock;

static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/features.json")).expect("JSON"));
static KERAS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/keras_inception.json")).expect("JSON"));

#[test]
fn dinov2_on_grids_of_several_sizes() {
    let device = Device::flex();
    for name in ["dinov2", "dinov2_swiglu", "dinov2_registers", "dinov2_facebook"] {
        let case = &GOLDEN[name];
        let config = Dinov2Config::from_transformers(&case["config"]).expect("a configuration");
        let model = filled(config.init(&mut Init::new(0, &device)).expect("a model"), 1.0);
        for size in case["outputs"].as_object().expect("outputs").keys() {
            let (height, width) = size.split_once('x').expect("a size");
            let [height, width] = [height, width].map(|side| side.parse().expect("a side"));
            for dtype in [DType::F32, DType::BF16] {
                let pictures = pictures(2, height, width).inner().cast(dtype);
                let states = model.last_hidden_state(pictures.clone()).expect("states");
                Outputs::default().with(size, states.clone()).check(name, case, dtype == DType::F32);
                let [batch, _, channels] = states.dims();
                let class = states.narrow(1, 0, 1).reshape([batch, channels]).into_data();
                assert_eq!(model.pooled(pictures).expect("features").into_data(), class, "{name} {size}");
            }
        }
    }
}

#[test]
fn efficientnet_lite() {
    let device = Device::flex();
    for name in ["efficientnet_lite0", "efficientnet_lite2"] {
        let case = &GOLDEN[name];
        let config = EfficientNetLiteConfig::from_fields(&case["config"]).expect("a configuration");
        let model = filled(config.init(&mut Init::new(0, &device)).expect("a model"), 2f64.sqrt());
        let side = case["side"].as_u64().expect("a side") as usize;
        let out = model.forward(pictures(2, side, side).inner()).expect("features");
        Outputs::default()
            .with("features", sparse(out.features))
            .with("logits", sparse(out.logits))
            .check(name, case, true);
    }
}

#[test]
fn keras_inception() {
    let device = Device::flex();
    let config = KerasInceptionConfig { outputs: 256 };
    let model = filled(config.init(&mut Init::new(0, &device)).expect("a model"), 2f64.sqrt());
    let side = KERAS["side"].as_u64().expect("a side") as usize;
    for model in [model.folded(), model] {
        let out = model.forward_resized(pictures(1, side, side).inner()).expect("features");
        Outputs::default().with("features", sparse(out.features)).with("relu", sparse(relu(out.logits))).check(
            "keras_inception",
            &KERAS,
            true,
        );
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let with = |field: &str, value: Value| {
        let mut config = GOLDEN["dinov2"]["config"].clone();
        config[field] = value;
        Dinov2Config::from_transformers(&config).expect_err(field)
    };
    for (field, value) in [
        ("model_type", json!("dinov3")),
        ("num_channels", json!(4)),
        ("mlp_ratio", json!(-1)),
        ("mlp_ratio", json!(1e9)),
        ("hidden_size", json!(1u64 << 40)),
        ("num_hidden_layers", json!(1000)),
        ("hidden_act", json!("swish")),
        ("drop_path_rate", json!(0.1)),
        ("attention_probs_dropout_prob", json!(0.1)),
        ("position_interpolation", json!("nearest")),
        ("image_size", json!([20, 24])),
    ] {
        let error = with(field, value);
        assert!(error.names(field), "{field}: {error}");
    }
    assert!(Dinov2Config::from_transformers(&json!([])).is_err());
    let heads = Dinov2Config { heads: 5, ..Dinov2Config::default() };
    assert_eq!(heads.validate().expect_err("five heads").field, "heads");
    for (config, field) in [(json!({ "variant": 5 }), "variant"), (json!({ "num_labels": 0 }), "num_labels")] {
        assert!(EfficientNetLiteConfig::from_fields(&config).expect_err(field).names(field), "{config}");
    }
    assert_eq!(EfficientNetLiteConfig::with_blocks(16, 320), Some(0));
    assert_eq!(EfficientNetLiteConfig::with_blocks(21, 352), Some(2));
    assert_eq!(EfficientNetLiteConfig::with_blocks(17, 320), None);

    let device = Device::flex();
    let small = Dinov2Config {
        image_size: 8,
        patch_size: 4,
        channels: 8,
        mlp_channels: 8,
        layers: 1,
        heads: 2,
        ..Dinov2Config::default()
    };
    let model = small.init(&mut Init::new(0, &device)).expect("a model");
    let error = model.pooled(pictures(1, 3, 8).inner()).expect_err("an error");
    assert_eq!(error, InputError::Small { found: [3, 8, 3], least: 4 });
}

/// transformers' defaults, and what is ours beside them.
#[test]
fn defaults_are_the_librarys() {
    let plain = Dinov2Config::from_transformers(&json!({ "model_type": "dinov2" })).expect("a configuration");
    assert_eq!(plain, Dinov2Config::default());
    let registers = Dinov2Config::from_transformers(&json!({ "model_type": "dinov2_with_registers" }));
    let registers = registers.expect("a configuration");
    assert_eq!((registers.registers, registers.patch_size), (4, 16));
    assert_eq!(registers.interpolation, PositionInterpolation::Smooth);
    // ViT-g/14's width between its gated layers, as facebookresearch/dinov2 has it.
    let giant =
        json!({ "hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 40, "use_swiglu_ffn": true });
    let giant = Dinov2Config::from_transformers(&giant).expect("a configuration");
    assert_eq!((giant.mlp_channels, giant.swiglu), (4096, true));
}
