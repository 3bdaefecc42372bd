//! Networks that give features of pictures: told apart by what a file holds, and read under canonical keys.

use crate::layouts::{formula_tensor, write};
use calotype_checkpoints::{Checkpoint, Component, Family, Layout, component_keys, tables};
use calotype_weights::{NamedTensor, TensorSource};
use serde_json::{Value, json};
use std::fs;

/// The configurations that are found, by component and name of the map; the first is one without a configuration's file.
fn config(component: Component, name: &str) -> Value {
    match component {
        Component::Dinov2 => {
            let mut config = json!({
                "architectures": ["Dinov2Model"], "hidden_act": "gelu", "hidden_size": 64, "image_size": 20,
                "layer_norm_eps": 1e-6, "mlp_ratio": 1.5, "model_type": "dinov2", "num_attention_heads": 1,
                "num_channels": 3, "num_hidden_layers": 2, "patch_size": 4, "qkv_bias": true, "use_mask_token": true,
                "use_swiglu_ffn": false,
            });
            if name.starts_with("facebook") {
                config["position_interpolation"] = "offset".into();
            }
            config
        }
        Component::EfficientNetLite => json!({ "model_type": "efficientnet_lite", "num_labels": 10, "variant": 1 }),
        _ => json!({ "model_type": "keras_inception_v3", "outputs": 7 }),
    }
}

fn tensors(component: Component, config: &Value) -> Vec<NamedTensor<'static>> {
    let specs = component_keys(component, config).unwrap();
    specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect()
}

#[test]
fn networks_are_told_apart_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    for (name, map, component) in tables::feature_networks() {
        let config = config(component, name);
        let canonical = tensors(component, &config);
        write(&path, &map.store(&canonical).unwrap(), &[]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.components(), [component], "{name}");
        assert!(checkpoint.unused().is_empty(), "{name}: {:?}", checkpoint.unused());
        let source = checkpoint.component(component).unwrap();
        assert_eq!(source.config, config, "{name}");
        assert!(source.missing.is_empty(), "{name}: {:?}", source.missing);
        for tensor in &canonical {
            assert_eq!(source.tensor(&tensor.name).unwrap().into_owned(), *tensor, "{name}");
        }
        let (family, layout) = match component {
            Component::Dinov2 => (Family::Dinov2, None),
            Component::EfficientNetLite => (Family::EfficientNetLite, Some(Layout::EfficientNetLite)),
            _ => (Family::KerasInception, Some(Layout::Keras)),
        };
        assert_eq!(checkpoint.family(), Some(family), "{name}");
        assert!(layout.is_none_or(|layout| layout == checkpoint.layout()), "{name}");
    }
}

/// The variables of Keras that nobody needs here are known.
#[test]
fn dense_layers_behind_the_first_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keras.safetensors");
    let config = config(Component::KerasInception, "");
    let (_, map, _) = tables::feature_networks().remove(3);
    let mut stored = map.store(&tensors(Component::KerasInception, &config)).unwrap();
    stored.push(formula_tensor("dense_2/kernel", &[7, 3]));
    stored.push(formula_tensor("dense_2/bias", &[3]));
    write(&path, &stored, &[]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.unused().is_empty(), "{:?}", checkpoint.unused());
}

/// DINOv2 of transformers: gated layers, registers, and a folder with its configuration.
#[test]
fn dinov2_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(Component::Dinov2, "");
    config["use_swiglu_ffn"] = true.into();
    config["mlp_ratio"] = 4.0.into();
    config["architectures"] = json!(["Dinov2WithRegistersModel"]);
    config["model_type"] = "dinov2_with_registers".into();
    config["num_register_tokens"] = 3.into();
    let canonical = tensors(Component::Dinov2, &config);
    assert!(canonical.iter().any(|tensor| tensor.name == "encoder.layer.1.mlp.weights_in.weight"));
    let path = folder.path().join("model.safetensors");
    write(&path, &canonical, &[]);
    let alone = Checkpoint::open(&path).unwrap();
    assert_eq!((alone.layout(), alone.components()), (Layout::ModelFile, vec![Component::Dinov2]));
    assert_eq!(alone.component(Component::Dinov2).unwrap().config, config);
    config["layer_norm_eps"] = 1e-5.into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let whole = Checkpoint::open(folder.path()).unwrap();
    assert_eq!((whole.layout(), whole.components()), (Layout::ModelFolder, vec![Component::Dinov2]));
    assert_eq!(whole.component(Component::Dinov2).unwrap().config, config);
    fs::write(folder.path().join("config.json"), r#"{"model_type": "dinov2", "num_channels": 4}"#).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("num_channels"), "{error}");
}

/// What looks like one of them and is none is refused, and told.
#[test]
fn what_is_cut_off_is_no_other_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.safetensors");
    let config = config(Component::EfficientNetLite, "");
    let mut stored = tensors(Component::EfficientNetLite, &config);
    stored.retain(|tensor| !tensor.name.starts_with("_blocks.20."));
    write(&path, &stored, &[]);
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("of no known layout"), "{error}");
    stored.retain(|tensor| tensor.name != "_fc.weight");
    write(&path, &stored, &[]);
    assert!(Checkpoint::open(&path).is_err());
}
