//! Adapters in each dialect against PyTorch (`make_lora_golden.py`), and files that are refused.

use calotype_weights::lora::{Component, LoraConfig, LoraError, LoraOptions, LoraSet};
use calotype_weights::{Dtype, NamedTensor, TensorFile, TensorInfo, write_safetensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora").join(name)
}

fn model() -> Vec<(Component, Vec<TensorInfo>)> {
    let text = std::fs::read_to_string(golden("model.json")).unwrap();
    let mut shapes: BTreeMap<String, BTreeMap<String, Vec<usize>>> = serde_json::from_str(&text).unwrap();
    let infos = |shapes: BTreeMap<String, Vec<usize>>| {
        shapes.into_iter().map(|(name, shape)| TensorInfo { name, dtype: Dtype::F32, shape }).collect()
    };
    Component::ALL.map(|component| (component, infos(shapes.remove(component.name()).unwrap()))).into()
}

fn load(names: &[(&str, f32)]) -> LoraSet {
    let mut set = LoraSet::new(&model());
    for (name, weight) in names {
        let path = if *name == "peft" { golden("peft") } else { golden(&format!("{name}.safetensors")) };
        let options = LoraOptions { component: (*name == "peft").then_some(Component::Unet), ..LoraOptions::default() };
        let report = set.add_path(&path, *weight, &options).unwrap();
        let expected = TensorFile::open(golden(&format!("{name}.expected.safetensors"))).unwrap();
        let changed = report.changed.iter().map(|(component, key)| format!("{component}.{key}"));
        assert_eq!(changed.collect::<Vec<_>>(), sorted_by_component(&expected), "{name}");
        assert!(report.unused.is_empty());
    }
    set
}

/// The order of a report: UNet first, keys in order of their modules.
fn sorted_by_component(expected: &TensorFile) -> Vec<String> {
    let mut names: Vec<(usize, String)> = Vec::new();
    for name in expected.names() {
        let (owner, module) = name.trim_end_matches(".weight").split_once('.').unwrap();
        let place = Component::ALL.iter().position(|component| component.name() == owner).unwrap();
        names.push((place, module.to_owned()));
    }
    names.sort();
    names.into_iter().map(|(place, module)| format!("{}.{module}.weight", Component::ALL[place])).collect()
}

/// The weighted sum of the golden differences, by `component.key`.
fn expected(names: &[(&str, f32)]) -> BTreeMap<String, Vec<f32>> {
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, weight) in names {
        for tensor in TensorFile::open(golden(&format!("{name}.expected.safetensors"))).unwrap().tensors() {
            let values = tensor.to_f32_vec().unwrap();
            let sum = sums.entry(tensor.name().into()).or_insert_with(|| vec![0.0; values.len()]);
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    sums
}

fn check(names: &[(&str, f32)]) {
    let (set, mut expected) = (load(names), expected(names));
    for (component, infos) in model() {
        for info in infos {
            let delta = set.delta(component, &info.name);
            let Some(expected) = expected.remove(&format!("{component}.{}", info.name)) else {
                assert!(delta.is_none(), "{}", info.name);
                continue;
            };
            let delta = delta.unwrap();
            assert_eq!(delta.len(), info.elements(), "{}", info.name);
            let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let apart = delta.iter().zip(&expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
            assert!(apart <= 1e-5 * largest, "{names:?}: {component}.{}: {apart} of {largest}", info.name);
        }
    }
    assert!(expected.is_empty(), "{:?}", expected.keys());
}

#[test]
fn every_dialect_makes_the_difference_that_torch_makes() {
    for name in ["kohya_xl", "kohya_sd", "peft", "diffusers", "diffusers_old"] {
        check(&[(name, 1.0)]);
    }
}

#[test]
fn several_add_up_with_their_weights() {
    check(&[("kohya_xl", 0.5), ("peft", -2.0), ("diffusers_old", 0.25), ("kohya_sd", 1.0), ("kohya_xl", 0.125)]);
    assert!(load(&[]).is_empty());
}

/// Adds an adapter of these keys and shapes, of zeros.
fn add(tensors: &[(&str, &[usize])], options: &LoraOptions) -> Result<Vec<String>, LoraError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let zeros = [0.0f32; 1024];
    let tensors: Vec<NamedTensor> = tensors
        .iter()
        .map(|(name, shape)| NamedTensor::from_f32(*name, *shape, &zeros[..shape.iter().product()]))
        .collect();
    write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
    let mut set = LoraSet::new(&model());
    let report = set.add_path(&path, 1.0, options);
    assert_eq!(set.is_empty(), report.as_ref().map_or(true, |report| report.changed.is_empty()));
    report.map(|report| report.unused)
}

const DOWN: (&str, &[usize]) = ("lora_unet_conv_in.lora_down.weight", &[2, 4, 3, 3]);
const UP: (&str, &[usize]) = ("lora_unet_conv_in.lora_up.weight", &[4, 2, 1, 1]);

#[test]
fn unused_keys_are_errors_unless_allowed() {
    let stray = ("lora_unet_conv_inn.alpha", &[][..]);
    let error = add(&[DOWN, UP, stray, ("x", &[1])], &LoraOptions::default()).unwrap_err();
    assert!(matches!(&error, LoraError::Unused { keys, .. } if *keys == [stray.0, "x"]), "{error}");
    let allowed = LoraOptions { allow_unused: true, ..LoraOptions::default() };
    assert_eq!(add(&[DOWN, UP, stray], &allowed).unwrap(), [stray.0]);
    assert_eq!(add(&[DOWN, UP], &LoraOptions::default()).unwrap(), [""; 0]);
}

#[test]
fn damaged_and_foreign_files_are_refused_by_name() {
    let refuse = |tensors: &[(&str, &[usize])]| add(tensors, &LoraOptions::default()).unwrap_err();
    assert!(matches!(refuse(&[DOWN]), LoraError::Factors { part: "up (B)", problem: "missing", .. }));
    let twice = ("unet.conv_in.lora_A.weight", &[2, 4, 3, 3][..]);
    assert!(matches!(refuse(&[DOWN, UP, twice]), LoraError::Factors { problem: "there twice", .. }));
    for shape in [&[4, 3, 1, 1][..], &[5, 2, 1, 1], &[4, 2, 3, 3], &[8], &[]] {
        let error = refuse(&[DOWN, (UP.0, shape)]);
        assert!(matches!(&error, LoraError::WrongShape { .. }), "{shape:?}: {error}");
    }
    assert!(matches!(refuse(&[(DOWN.0, &[0, 4, 3, 3]), (UP.0, &[4, 0, 1, 1])]), LoraError::WrongShape { .. }));
    let mid = ("lora_unet_conv_in.lora_mid.weight", &[2, 2, 3, 3][..]);
    assert!(matches!(refuse(&[DOWN, UP, mid]), LoraError::WrongShape { .. }));
    let alpha = ("lora_unet_conv_in.alpha", &[2][..]);
    assert!(matches!(refuse(&[DOWN, UP, alpha]), LoraError::NotNumbers { .. }));
    let kinds = [
        ("lora_unet_conv_in.dora_scale", "DoRA"),
        ("unet.conv_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_conv_in.hada_w1_a", "LoHa"),
        ("lora_unet_conv_in.lokr_w1", "LoKr"),
        ("lora_unet_conv_in.diff", "full differences"),
    ];
    for (key, name) in kinds {
        let error = refuse(&[DOWN, UP, (key, &[1])]);
        assert!(matches!(&error, LoraError::OtherKind { kind, .. } if *kind == name), "{error}");
    }
    let key = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj";
    let (a, b) = (format!("{key}.lora_A.weight"), format!("{key}.lora_B.weight"));
    let both: [(&str, &[usize]); 2] = [(&a, &[1, 8]), (&b, &[8, 1])];
    assert!(matches!(refuse(&both), LoraError::Ambiguous { candidates, .. } if candidates.len() == 2));
    let told = LoraOptions { component: Some(Component::TextEncoder2), ..LoraOptions::default() };
    assert!(add(&both, &told).unwrap().is_empty());
}

#[test]
fn configurations_that_ask_for_more_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        LoraConfig::from_adapter_config(&path)
    };
    assert!(read(r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 4}}"#).is_ok());
    for (text, told) in [
        ("[", "JSON"),
        (r#"{"peft_type": "LOHA"}"#, "LOHA"),
        (r#"{"use_dora": true}"#, "DoRA"),
        (r#"{"lora_alpha": "8"}"#, "lora_alpha"),
        (r#"{"alpha_pattern": {".*to_q": 4}}"#, ".*to_q"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("adapter_config.json") && error.contains(told), "{error}");
    }
}
