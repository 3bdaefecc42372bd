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
        let peft = name.starts_with("peft");
        let path = if peft { golden(name) } else { golden(&format!("{name}.safetensors")) };
        let options = LoraOptions { component: peft.then_some(Component::Unet), ..LoraOptions::default() };
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

/// The values of a parameter, as `base` of `make_adapter_golden.py` has them.
fn base(count: usize) -> Vec<f32> {
    (0..count).map(|at| (at * 37 % 101) as f32 / 64.0 - 50.0 / 64.0).collect()
}

fn check(names: &[(&str, f32)]) {
    let (set, mut expected) = (load(names), expected(names));
    for (component, infos) in model() {
        for info in infos {
            let Some(expected) = expected.remove(&format!("{component}.{}", info.name)) else {
                assert!(!set.changes(component, &info.name), "{}", info.name);
                continue;
            };
            assert!(set.changes(component, &info.name), "{}", info.name);
            let before = base(info.elements());
            let mut values = before.clone();
            set.apply(component, &info.name, &mut values);
            let delta: Vec<f32> = values.iter().zip(&before).map(|(after, before)| after - before).collect();
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

/// What LyCORIS' and PEFT's own code makes of a file (`make_adapter_golden.py`).
#[test]
fn other_kinds_make_the_difference_that_their_trainers_make() {
    for name in ["lycoris_loha", "lycoris_lokr", "lycoris_dora", "lycoris_full", "peft_dora", "peft_loha", "peft_lokr"]
    {
        check(&[(name, 1.0)]);
    }
    check(&[("lycoris_loha", 0.5), ("lycoris_lokr", -2.0), ("lycoris_full", 0.25)]);
}

/// Lengths are given at any weight, and after what other files added.
#[test]
fn a_dora_gives_lengths_to_what_is_there() {
    let (mut alone, mut both) = (vec![0.0; 24], vec![0.0; 24]);
    let key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let module = format!("lora_unet_{}", key.trim_end_matches(".weight").replace('.', "_"));
    let outputs = model()[0].1.iter().find(|info| info.name == key).unwrap().shape.clone();
    alone.resize(outputs.iter().product(), 0.0);
    both.resize(alone.len(), 0.0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dora.safetensors");
    let (down, up) = (vec![1.0f32; outputs[1]], vec![1.0f32; outputs[0]]);
    let lengths = vec![2.0f32; outputs[0]];
    let tensors = [
        NamedTensor::from_f32(format!("{module}.lora_down.weight"), [1, outputs[1]], &down),
        NamedTensor::from_f32(format!("{module}.lora_up.weight"), [outputs[0], 1], &up),
        NamedTensor::from_f32(format!("{module}.dora_scale"), [outputs[0], 1], &lengths),
    ];
    write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
    for (values, weights) in [(&mut alone, &[0.5][..]), (&mut both, &[0.25, 0.75])] {
        let mut set = LoraSet::new(&model());
        for weight in weights {
            set.add_path(&path, *weight, &LoraOptions::default()).unwrap();
        }
        set.apply(Component::Unet, key, values);
        for row in values.chunks(outputs[1]) {
            let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            assert!((length - 2.0).abs() < 1e-5, "{weights:?}: {length}");
        }
    }
}

/// Files told apart by content, folders as people have them, and what is no adapter.
#[test]
fn files_are_found_and_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let add = |path: &Path| LoraSet::new(&model()).add_path(path, 1.0, &LoraOptions::default());
    let changed = |path: &Path| add(path).unwrap().changed.len();
    let error = |path: &Path| add(path).unwrap_err().to_string();
    let put = |path: &Path, keys: &[(&str, &[usize])]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let zeros = [0.0f32; 1024];
        let tensor = |(name, shape): &(&str, &[usize])| {
            NamedTensor::from_f32(*name, *shape, &zeros[..shape.iter().product()]).into_owned()
        };
        write_safetensors(path, &keys.iter().map(tensor).collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
    };
    // By content, whatever the name; PEFT's tree, the component said by the folder; the only file of a folder.
    put(&at("renamed.ckpt"), &[DOWN, UP]);
    assert_eq!(changed(&at("renamed.ckpt")), 1);
    let key = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj";
    let (a, b) = (format!("{key}.lora_A.weight"), format!("{key}.lora_B.weight"));
    let both: [(&str, &[usize]); 2] = [(&a, &[1, 8]), (&b, &[8, 1])];
    put(&at("tree/unet/adapter_model.safetensors"), &[DOWN, UP]);
    put(&at("tree/text_encoder_2/adapter_model.safetensors"), &both);
    assert_eq!(changed(&at("tree")), 2);
    put(&at("single/style.safetensors"), &[DOWN, UP]);
    assert_eq!(changed(&at("single")), 1);
    put(&at("single/other.safetensors"), &[DOWN, UP]);
    assert!(error(&at("single")).contains("several files of weights"));
    std::fs::create_dir(at("empty")).unwrap();
    assert!(error(&at("empty")).contains("holds no adapter"));
    // Embeddings beside an adapter are told, not lost.
    put(&at("bundle.safetensors"), &[DOWN, UP, ("bundle_emb.token.string_to_param.*", &[2, 8])]);
    assert_eq!(add(&at("bundle.safetensors")).unwrap().embeddings, ["token"]);
    // ComfyUI's prefix.
    let (a, b) = ("diffusion_model.input_blocks.0.0.lora_A.weight", "diffusion_model.input_blocks.0.0.lora_B.weight");
    put(&at("comfy.safetensors"), &[(a, DOWN.1), (b, UP.1)]);
    assert_eq!(changed(&at("comfy.safetensors")), 1);
    // What it is instead.
    for (key, part) in [
        ("model.diffusion_model.out.2.weight", "a checkpoint, not an adapter"),
        ("first_stage_model.quant_conv.weight", "an autoencoder"),
        ("down_blocks.0.resnets.0.conv1.weight", "the weights of a UNet"),
        ("emb_params", "a textual-inversion embedding"),
        ("<cat-toy>", "a textual-inversion embedding"),
        ("fc.weight", "`fc.weight`"),
    ] {
        put(&at("other.safetensors"), &[(key, &[2, 2])]);
        let error = error(&at("other.safetensors"));
        assert!(error.contains(part) && error.contains("other.safetensors"), "{error}");
    }
    // Values that would make every image black.
    let (down, up) = ([f32::NAN; 72], [1.0f32; 8]);
    let tensors = [NamedTensor::from_f32(DOWN.0, DOWN.1, &down), NamedTensor::from_f32(UP.0, UP.1, &up)];
    write_safetensors(&at("nan.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    assert!(error(&at("nan.safetensors")).contains("finite numbers"));
    std::fs::write(at("lfs.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        .unwrap();
    assert!(error(&at("lfs.safetensors")).contains("pointer of Git LFS"));
}

#[test]
fn malformed_factors_of_other_kinds() {
    type Factors = &'static [(&'static str, &'static [usize])];
    let cases: [(Factors, &str); 9] = [
        (&[("hada_w1_a", &[4, 2])], "hada_w1_b factor is missing"),
        (
            &[("hada_w1_a", &[4, 2]), ("hada_w1_b", &[3, 36]), ("hada_w2_a", &[4, 2]), ("hada_w2_b", &[2, 36])],
            "[[4, 2], [3, 36]]",
        ),
        (
            &[("hada_w1_a", &[4, 2]), ("hada_w1_b", &[2, 36]), ("hada_w2_a", &[4, 2]), ("hada_w2_b", &[2, 35])],
            "[4, 35]",
        ),
        (
            &[("hada_w1_a", &[4, 0]), ("hada_w1_b", &[0, 36]), ("hada_w2_a", &[4, 2]), ("hada_w2_b", &[2, 36])],
            "[[4, 0], [0, 36]]",
        ),
        (&[("hada_w1_a", &[2, 4]), ("hada_w1_b", &[2, 4]), ("hada_t1", &[2, 3, 3, 3])], "[2, 3, 3, 3]"),
        (&[("lokr_w1", &[2, 2])], "lokr_w2_a factor is missing"),
        (&[("lokr_w1", &[4]), ("lokr_w2", &[2, 2, 3, 3])], "[[4]]"),
        (&[("lokr_w1", &[2, 2]), ("lokr_w2", &[2, 3, 3, 3])], "[4, 54]"),
        (&[("diff", &[4, 4, 3])], "[4, 4, 3]"),
    ];
    for (parts, told) in cases {
        let keys: Vec<String> = parts.iter().map(|(part, _)| format!("lora_unet_conv_in.{part}")).collect();
        let tensors: Vec<(&str, &[usize])> = keys.iter().zip(parts).map(|(key, (_, shape))| (&**key, *shape)).collect();
        let error = add(&tensors, &LoraOptions::default()).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("conv_in"), "{error}");
    }
    for lengths in [&[3, 1, 1, 1][..], &[], &[1, 5, 1, 1]] {
        let error = add(&[DOWN, UP, ("lora_unet_conv_in.dora_scale", lengths)], &LoraOptions::default()).unwrap_err();
        assert!(matches!(error, LoraError::WrongShape { .. }), "{lengths:?}: {error}");
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
        ("lora_unet_conv_in.oft_blocks", "OFT"),
        ("lora_unet_conv_in.on_input", "IA3"),
        ("lora_unet_conv_in.b1.weight", "GLoRA"),
        ("lora_unet_conv_in.diff_b", "differences of biases"),
        ("lora_unet_conv_in.w_norm", "differences of norms"),
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
        (r#"{"peft_type": "OFT"}"#, "OFT"),
        (r#"{"lora_bias": true}"#, "biases"),
        (r#"{"lora_alpha": "8"}"#, "lora_alpha"),
        (r#"{"alpha_pattern": {".*to_q": 4}}"#, ".*to_q"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("adapter_config.json") && error.contains(told), "{error}");
    }
}
