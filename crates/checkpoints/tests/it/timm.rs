//! Folders as timm saves them.

use super::layouts::{formula_tensor, write};
use calotype_checkpoints::{
    Checkpoint, Component, ConvertOptions, Filter, ImageProcessor, Layout, Resize, Target, component_keys, convert,
    tables,
};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn vit() -> Value {
    json!({
        "model_type": "vit", "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 1,
        "image_size": 16, "patch_size": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": true, "num_labels": 3,
    })
}

fn lay_out(folder: &Path, config: &Value) {
    let specs = component_keys(Component::Classifier, &vit()).unwrap();
    let canonical: Vec<_> = specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect();
    let map = tables::vits().into_iter().find(|row| row.0 == "timm").unwrap().1;
    write(&folder.join("model.safetensors"), &map.store(&canonical).unwrap(), &[]);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn configurations_say_how_pictures_are_prepared_and_what_classes_are_called() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("vit");
    let published = json!({
        "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5],
        "input_size": [3, 16, 16], "num_classes": 3,
    });
    let config = json!({
        "architecture": "vit_tiny_patch4_16", "num_classes": 3, "pretrained_cfg": published, "label_names": ["a", "b", "c"],
    });
    lay_out(&folder, &config);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.layout(), Layout::Timm);
    assert!(checkpoint.unused().is_empty() && checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
    let processor = ImageProcessor {
        resize: Resize::ShortestEdge(17),
        filter: Filter::Bicubic,
        crop: Some([16; 2]),
        mean: [0.5; 3],
        std: [0.5, 0.25, 0.5],
    };
    assert_eq!(checkpoint.image_processor().unwrap(), Some(processor));
    let labels = json!({ "0": "a", "1": "b", "2": "c" });
    assert_eq!(checkpoint.component(Component::Classifier).unwrap().config["id2label"], labels);

    // Both go along into other layouts.
    let out = root.path().join("out");
    convert(&checkpoint, &out, Target::Diffusers, &ConvertOptions::default()).unwrap();
    let other = Checkpoint::open(&out).unwrap();
    assert_eq!(other.image_processor().unwrap(), Some(processor));
    assert_eq!(other.component(Component::Classifier).unwrap().config["id2label"], labels);
}

#[test]
fn preparations_that_are_not_followed_are_told() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("vit");
    lay_out(&folder, &json!({ "architecture": "vit_tiny_patch4_16", "pretrained_cfg": { "crop_mode": "border" } }));
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.image_processor().unwrap(), None);
    assert!(checkpoint.notes().iter().any(|note| note.contains("pretrained_cfg")), "{:?}", checkpoint.notes());
}
