//! `.nemo` files of ViT and CLIP: written, read again, and as NeMo's own code orders their rows.

use super::layouts::{formula_tensor, write};
use calotype_checkpoints::map::KeyMap;
use calotype_checkpoints::{
    Checkpoint, Component, ConvertOptions, ImageProcessor, Layout, LayoutError, OpenOptions, Report, Target,
    component_keys, convert, tables,
};
use calotype_weights::{
    Dtype, NamedTensor, NemoFile, ReadOptions, TensorFileError, TensorInfo, TensorSource, write_nemo,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn vit() -> Value {
    json!({
        "model_type": "vit", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 11, "num_attention_heads": 3,
        "image_size": 16, "patch_size": 4, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "qkv_bias": true,
        "id2label": { "0": "a toucan", "1": "an eagle: owl", "2": "Ü" },
    })
}

fn clip() -> Value {
    let tower = |act: &str, heads: usize| {
        json!({
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": heads, "vocab_size": 49408,
            "max_position_embeddings": 7, "image_size": 16, "patch_size": 4, "hidden_act": act, "eos_token_id": 49407,
        })
    };
    json!({
        "model_type": "clip", "projection_dim": 8, "text_config": tower("quick_gelu", 4), "vision_config": tower("gelu", 3),
    })
}

/// A model's folder with the formula's weights.
fn folder(root: &Path, component: Component, config: &Value) -> PathBuf {
    let specs = component_keys(component, config).unwrap();
    let tensors: Vec<_> = specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect();
    write(&root.join("model.safetensors"), &tensors, &[("format", "pt")]);
    fs::write(root.join("config.json"), config.to_string()).unwrap();
    fs::write(root.join(ImageProcessor::FILE), ImageProcessor::vit(16).to_transformers().to_string()).unwrap();
    root.to_owned()
}

fn tensors(source: &dyn TensorSource) -> BTreeMap<String, NamedTensor<'static>> {
    source.entries().iter().map(|info| (info.name.clone(), source.tensor(&info.name).unwrap().into_owned())).collect()
}

fn content(checkpoint: &Checkpoint, component: Component) -> (Value, BTreeMap<String, NamedTensor<'static>>) {
    let source = checkpoint.component(component).unwrap();
    assert!(
        source.missing.is_empty() && checkpoint.unused().is_empty(),
        "{:?} {:?}",
        source.missing,
        checkpoint.unused()
    );
    (source.config.clone(), tensors(&source))
}

#[test]
fn archives_come_back_bit_for_bit() {
    let pooled = |mut config: Value| {
        config["add_pooling_layer"] = true.into();
        config["class_tokens"] = 3.into();
        config
    };
    for (component, layout, config) in [
        (Component::Classifier, Layout::NemoVit, vit()),
        (Component::Classifier, Layout::NemoVit, pooled(vit())),
        (Component::Clip, Layout::NemoClip, clip()),
    ] {
        let root = tempfile::tempdir().unwrap();
        let start = Checkpoint::open(folder(&root.path().join("model"), component, &config)).unwrap();
        let out = root.path().join("model.nemo");
        let done = convert(&start, &out, Target::Nemo, &ConvertOptions::default()).unwrap();
        assert!(done.notes.is_empty(), "{:?}", done.notes);
        let now = Checkpoint::open(&out).unwrap();
        assert_eq!(now.layout(), layout);
        assert_eq!(content(&now, component), content(&start, component));
        assert_eq!(now.files(), start.files());
        assert_eq!(Report::of(&now, false).problems, Vec::<String>::new());
        assert!(now.notes().is_empty(), "{:?}", now.notes());
        let again = root.path().join("again.nemo");
        convert(&now, &again, Target::Nemo, &ConvertOptions::default()).unwrap();
        assert_eq!(fs::read(&again).unwrap(), fs::read(&out).unwrap());
        NemoFile::open(&out, ReadOptions::default()).unwrap().weights().verify_checksums().unwrap();

        let half = root.path().join("half.nemo");
        let options = ConvertOptions { dtype: Some(Dtype::BF16), ..ConvertOptions::default() };
        let done = convert(&start, &half, Target::Nemo, &options).unwrap();
        let source = Checkpoint::open(&half).unwrap();
        let source = source.component(component).unwrap();
        assert!(source.entries().iter().all(|tensor| tensor.dtype == Dtype::BF16));
        assert_eq!(done.bytes, 2 * source.parameters() as u64);
    }
}

/// Tensors in memory.
struct Stored(Vec<NamedTensor<'static>>);

impl TensorSource for Stored {
    fn origin(&self) -> &Path {
        Path::new("memory")
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let info = |tensor: &NamedTensor<'_>| TensorInfo {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        };
        self.0.iter().map(info).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        Ok(self.0.iter().find(|tensor| tensor.name == name).unwrap().clone())
    }
}

/// A file as NeMo writes it: nothing of ours beside its configuration.
fn foreign(path: &Path, map: &KeyMap, config: &Value, yaml: &str) {
    let specs = component_keys(Component::Classifier, config).unwrap();
    let canonical: Vec<_> = specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect();
    write_nemo(path, yaml, &Stored(map.store(&canonical).unwrap()), None, &BTreeMap::new()).unwrap();
}

#[test]
fn the_configuration_of_the_file_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let map = || tables::vits().into_iter().find(|row| row.0 == "NeMo, fine-tuned").unwrap().1;
    let expected: BTreeMap<_, _> = component_keys(Component::Classifier, &vit())
        .unwrap()
        .iter()
        .map(|spec| (spec.name.clone(), formula_tensor(&spec.name, &spec.shape)))
        .collect();
    let path = root.path().join("x.nemo");
    let settings = "num_attention_heads: 3\nlayernorm_epsilon: 1.0e-06\nopenai_gelu: true\nhidden_size: 24\n";
    for (map, legacy) in [(map(), "true"), (map().by_heads("vit.", 3), "false")] {
        foreign(&path, &map, &vit(), &format!("{settings}megatron_legacy: {legacy}\n"));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (config, found) = content(&checkpoint, Component::Classifier);
        assert_eq!(found, expected, "megatron_legacy: {legacy}");
        for field in ["num_attention_heads", "layer_norm_eps", "hidden_act"] {
            assert_eq!(config[field], vit()[field], "{field}");
        }
        assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
    }
    for (yaml, part) in [
        ("num_attention_heads: 7\n", "x.nemo/model_config.yaml: `num_attention_heads` is 7"),
        ("a: [1\n", "model_config.yaml: line 1: while parsing a flow sequence"),
        ("activation: swiglu\n", "`activation` is `swiglu`"),
    ] {
        foreign(&path, &map(), &vit(), yaml);
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(error.to_string().contains(part) && !error.is_usage(), "{error}");
    }
}

/// NeMo 1 has a bias at the patches that CLIP does not have.
#[test]
fn a_bias_of_patches_is_zero_or_told() {
    let root = tempfile::tempdir().unwrap();
    let start = Checkpoint::open(folder(&root.path().join("clip"), Component::Clip, &clip())).unwrap();
    let (out, changed) = (root.path().join("out.nemo"), root.path().join("changed.nemo"));
    convert(&start, &out, Target::Nemo, &ConvertOptions::default()).unwrap();
    let file = NemoFile::open(&out, ReadOptions::default()).unwrap();
    let bias = "model.vision_encoder.backbone.linear_encoder.bias";
    assert_eq!(file.tensor(bias).unwrap(), NamedTensor::from_f32(bias, [24], &[0.0; 24]));
    let mut tensors: Vec<_> = tensors(&file).into_values().collect();
    let of_bias = tensors.iter_mut().find(|tensor| tensor.name == bias).unwrap();
    *of_bias = NamedTensor::from_f32(bias, [24], &[0.5; 24]).into_owned();
    write_nemo(&changed, file.config(), &Stored(tensors), None, &BTreeMap::new()).unwrap();
    assert_eq!(Checkpoint::open(&changed).unwrap().unused(), [bias.to_owned()]);
}

#[test]
fn what_nemo_has_no_place_for_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut without = vit();
    without["qkv_bias"] = false.into();
    let vit = Checkpoint::open(folder(&root.path().join("vit"), Component::Classifier, &without)).unwrap();
    let out = root.path().join("out.nemo");
    let error = convert(&vit, &out, Target::Nemo, &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, LayoutError::Target { .. }) && error.to_string().contains("no biases"), "{error}");
    let error = convert(&vit, &root.path().join("out"), Target::Nemo, &ConvertOptions::default()).unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("call it") && error.to_string().contains("out.nemo"),
        "{error}"
    );

    let mut words = clip();
    words["text_config"]["vocab_size"] = 100.into();
    let small = Checkpoint::open(folder(&root.path().join("clip"), Component::Clip, &words)).unwrap();
    let done = convert(&small, &out, Target::Nemo, &ConvertOptions::default()).unwrap();
    assert!(done.notes.iter().any(|note| note.contains("has 100 tokens")), "{:?}", done.notes);
    let error =
        convert(&small, &root.path().join("x.nemo"), Target::Diffusers, &ConvertOptions::default()).unwrap_err();
    assert!(error.is_usage(), "{error}");
    let options = OpenOptions::default();
    assert_eq!(Checkpoint::open_with(&out, &options).unwrap().layout(), Layout::NemoClip);
}
