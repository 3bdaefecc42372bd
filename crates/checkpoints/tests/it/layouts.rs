//! Key maps, detection, inspection and conversion against what the originals' libraries say.
//!
//! `golden/layouts.json` is made by `golden/make_layouts.py`: key lists of real sizes as hashes, the same tiny models in two
//! libraries whose outputs were found equal, and the files of tiny diffusers pipelines. Tensors are made by a formula on
//! both sides.

use calotype_checkpoints::map::KeyMap;
use calotype_checkpoints::{
    Checkpoint, Component, ComponentSource, ConvertOptions, Family, Layout, LayoutError, OpenOptions, Prediction,
    Report, Target, TensorSpec, component_keys, convert, inspect, loading, tables,
};
use calotype_weights::{Dtype, NamedTensor, TensorFile, TensorSource, write_safetensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static GOLDEN: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layouts.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
});

// The formula and the hashes of the golden file ------------------------------------------------------------------

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

fn formula(key: &str, shape: &[usize]) -> Vec<f32> {
    let start = fnv(key.as_bytes());
    let value = |index: u64| {
        let mixed = start.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (mixed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..shape.iter().product::<usize>() as u64).map(value).collect()
}

pub(super) fn formula_tensor(key: &str, shape: &[usize]) -> NamedTensor<'static> {
    NamedTensor::from_f32(key, shape, &formula(key, shape)).into_owned()
}

fn hash_of(mut lines: Vec<String>) -> (usize, String) {
    lines.sort_unstable();
    (lines.len(), format!("{:016x}", fnv(lines.join("\n").as_bytes())))
}

fn keys_hash<'t>(tensors: impl Iterator<Item = (&'t str, &'t [usize])>) -> (usize, String) {
    hash_of(tensors.map(|(key, shape)| format!("{key} {shape:?}")).collect())
}

fn content_hash(source: &dyn TensorSource) -> (usize, String) {
    let line = |name: &str| {
        let tensor = source.tensor(name).unwrap();
        format!("{name} {:?} {:016x}", tensor.shape, fnv(&tensor.data))
    };
    hash_of(source.entries().iter().map(|tensor| line(&tensor.name)).collect())
}

fn golden_hash(value: &Value) -> (usize, String) {
    (value["count"].as_u64().unwrap() as usize, value["hash"].as_str().unwrap().to_owned())
}

pub(super) fn write(path: &Path, tensors: &[NamedTensor<'_>], metadata: &[(&str, &str)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    write_safetensors(path, tensors, &metadata).unwrap();
}

// Real sizes -----------------------------------------------------------------------------------------------------

fn models() -> impl Iterator<Item = (&'static str, Component, Vec<TensorSpec>, &'static Value)> {
    GOLDEN["models"].as_array().unwrap().iter().map(|model| {
        let component: Component = model["component"].as_str().unwrap().parse().unwrap();
        (model["name"].as_str().unwrap(), component, component_keys(component, &model["config"]).unwrap(), model)
    })
}

#[test]
fn every_tensor_of_the_real_models_is_known_by_name_and_shape() {
    for (name, _, specs, model) in models() {
        let found = keys_hash(specs.iter().map(|spec| (&*spec.name, &*spec.shape)));
        assert_eq!(found, golden_hash(&model["keys"]), "{name}");
    }
}

#[test]
fn ldm_keys_of_the_real_models_are_those_of_diffusers_loader() {
    let mut seen = 0;
    for (name, component, specs, model) in models().filter(|(.., model)| model["ldm"].is_object()) {
        let map = tables::single_file(component, &model["config"]).unwrap().unwrap();
        let pair = |spec: &TensorSpec| format!("{} {}", spec.name, map.place(&spec.name).unwrap().key);
        assert_eq!(hash_of(specs.iter().map(pair).collect()), golden_hash(&model["ldm"]), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 7);
}

#[test]
fn open_clips_own_keys_and_shapes_come_out_of_the_real_models() {
    let mut seen = 0;
    for (name, _, specs, model) in models().filter(|(.., model)| model["open_clip"].is_object()) {
        let (stored, homeless) = tables::open_clip().stored(&specs);
        assert!(homeless.is_empty(), "{name}: {homeless:?}");
        let found = keys_hash(stored.iter().map(|tensor| (&*tensor.key, &*tensor.shape)));
        assert_eq!(found, golden_hash(&model["open_clip"]), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 6);
}

/// Every map with a model that it is for, small enough to have content.
fn maps() -> Vec<(&'static str, KeyMap, Vec<TensorSpec>)> {
    let unet = |linear: bool| {
        serde_json::json!({
            "block_out_channels": [4, 8], "layers_per_block": 1, "cross_attention_dim": 3, "norm_num_groups": 2,
            "attention_head_dim": 2, "addition_time_embed_dim": 4, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2], "use_linear_projection": linear,
            "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 5,
        })
    };
    let vae = serde_json::json!({
        "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    });
    let tower = serde_json::json!({
        "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 11, "vocab_size": 9, "max_position_embeddings": 7,
        "image_size": 8, "patch_size": 2, "num_attention_heads": 2,
    });
    let clip = serde_json::json!({ "projection_dim": 3, "text_config": tower, "vision_config": tower });
    let mut vit = tower.clone();
    vit["class_tokens"] = 2.into();
    let keys = |component, config: &Value| component_keys(component, config).unwrap();
    let mut list: Vec<_> = [false, true]
        .into_iter()
        .flat_map(|linear| {
            tables::unets(&unet(linear)).unwrap().into_iter().map(move |(name, map)| (name, map, linear))
        })
        .map(|(name, map, linear)| (name, map, keys(Component::Unet, &unet(linear))))
        .collect();
    list.extend(tables::vaes(&vae).unwrap().into_iter().map(|(name, map)| (name, map, keys(Component::Vae, &vae))));
    let mut text = tower.clone();
    text["architectures"] = serde_json::json!(["CLIPTextModelWithProjection"]);
    text["projection_dim"] = 3.into();
    list.extend(tables::texts().into_iter().map(|(name, map)| (name, map, keys(Component::TextEncoder, &text))));
    list.extend(tables::clips().into_iter().map(|(name, map)| (name, map, keys(Component::Clip, &clip))));
    list.extend(tables::vits().into_iter().map(|(name, map, pooler)| {
        let mut config = vit.clone();
        config["add_pooling_layer"] = pooler.into();
        (name, map, keys(Component::Classifier, &config))
    }));
    list
}

#[test]
fn every_map_comes_back_bit_for_bit() {
    let maps = maps();
    assert!(maps.len() > 20, "{}", maps.len());
    for (name, map, specs) in maps {
        let canonical: Vec<_> = specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect();
        let stored = map.store(&canonical).unwrap_or_else(|key| panic!("{name} has no place for {key}"));
        let keys: std::collections::BTreeSet<_> = stored.iter().map(|tensor| tensor.name.clone()).collect();
        assert_eq!(keys.len(), stored.len(), "{name} stores two tensors under one key");
        let elements = |tensors: &[NamedTensor<'_>]| tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>();
        assert_eq!(elements(&stored), elements(&canonical), "{name}");
        assert_eq!(map.load(&stored, &specs), canonical, "{name}");
    }
}

// Twins ----------------------------------------------------------------------------------------------------------

#[test]
fn tiny_models_become_their_twins_of_the_other_library() {
    let folder = tempfile::tempdir().unwrap();
    for twin in GOLDEN["twins"].as_array().unwrap() {
        let name = twin["name"].as_str().unwrap();
        let stored = twin["stored"].as_array().unwrap().iter().map(|entry| {
            let shape: Vec<usize> = serde_json::from_value(entry[1].clone()).unwrap();
            formula_tensor(entry[0].as_str().unwrap(), &shape)
        });
        let path = folder.path().join(format!("{name}.safetensors"));
        write(&path, &stored.collect::<Vec<_>>(), &[]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert!(checkpoint.unused().is_empty(), "{name}: {:?}", checkpoint.unused());
        let source = checkpoint.component(twin["component"].as_str().unwrap().parse().unwrap()).unwrap();
        assert!(source.missing.is_empty(), "{name}: {:?}", source.missing);
        assert_eq!(content_hash(&source), golden_hash(&twin["canonical"]), "{name}");
    }
}

// Pipelines ------------------------------------------------------------------------------------------------------

const PIPELINES: [(&str, Family, Prediction); 3] = [
    ("sd1", Family::Sd1, Prediction::Epsilon),
    ("sd2-v", Family::Sd2V, Prediction::V),
    ("sdxl-base", Family::SdxlBase, Prediction::Epsilon),
];

/// Lays a tiny pipeline out as diffusers saves it, with the formula's weights.
fn lay_out(name: &str, folder: &Path) -> PathBuf {
    lay_out_changed(name, folder, |_| {})
}

/// The same with another UNet.
fn lay_out_changed(name: &str, folder: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let root = folder.join(name);
    let texts = GOLDEN["pipelines"][name].as_object().unwrap();
    for (path, text) in texts {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.as_str().unwrap()).unwrap();
    }
    let unet = root.join("unet/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&unet).unwrap()).unwrap();
    change(&mut config);
    fs::write(unet, config.to_string()).unwrap();
    for component in [Component::Unet, Component::Vae, Component::TextEncoder, Component::TextEncoder2] {
        let config = root.join(component.name()).join("config.json");
        let Ok(config) = fs::read_to_string(config) else { continue };
        let specs = component_keys(component, &serde_json::from_str(&config).unwrap()).unwrap();
        let tensors: Vec<_> = specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect();
        let file =
            if matches!(component, Component::Unet | Component::Vae) { "diffusion_pytorch_model" } else { "model" };
        write(&root.join(component.name()).join(format!("{file}.safetensors")), &tensors, &[("format", "pt")]);
    }
    root
}

fn contents(checkpoint: &Checkpoint) -> BTreeMap<Component, (Value, (usize, String))> {
    let content = |component: Component| {
        let source: ComponentSource = checkpoint.component(component).unwrap();
        (component, (source.config.clone(), content_hash(&source)))
    };
    checkpoint.components().into_iter().map(content).collect()
}

#[test]
fn pipelines_go_round_through_all_layouts_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (name, family, prediction) in PIPELINES {
        let first = lay_out(name, folder.path());
        let start = Checkpoint::open(&first).unwrap();
        assert_eq!(
            (start.layout(), start.family(), start.prediction()),
            (Layout::DiffusersPipeline, Some(family), Some(prediction))
        );
        let mut path = first;
        for (step, target) in [Target::SingleFile, Target::Calotype, Target::Diffusers].into_iter().enumerate() {
            let out = folder.path().join(format!("{name}-{step}"));
            let checkpoint = Checkpoint::open(&path).unwrap();
            let done = convert(&checkpoint, &out, target, &ConvertOptions::default()).unwrap();
            assert_eq!(done.components.len(), start.components().len());
            assert!(done.notes.is_empty(), "{name} {target:?}: {:?}", done.notes);
            path = out;
            let now = Checkpoint::open(&path).unwrap();
            assert_eq!(contents(&now), contents(&start), "{name} {target:?}");
            assert_eq!(now.files(), start.files(), "{name} {target:?}");
            assert_eq!((now.family(), now.prediction()), (Some(family), Some(prediction)), "{name} {target:?}");
            assert!(now.unused().is_empty());
            assert_eq!(Report::of(&now, false).problems, Vec::<String>::new());
        }
    }
}

/// A tiny pipeline as an LDM single file of another program: without the metadata of Calotype's conversion.
fn foreign_single_file(name: &str, folder: &Path, change: impl FnOnce(&mut Vec<NamedTensor<'static>>)) -> PathBuf {
    let ours = folder.join(format!("{name}-ours.safetensors"));
    if !ours.exists() {
        let start = Checkpoint::open(lay_out(name, folder)).unwrap();
        convert(&start, &ours, Target::SingleFile, &ConvertOptions::default()).unwrap();
    }
    let file = TensorFile::open(&ours).unwrap();
    let mut tensors: Vec<_> = file.tensors().map(|tensor| tensor.to_named().into_owned()).collect();
    change(&mut tensors);
    let path = folder.join(format!("{name}-foreign.safetensors"));
    write(&path, &tensors, &[]);
    path
}

#[test]
fn single_files_without_metadata_are_recognised_by_their_shapes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, family, _) in PIPELINES {
        let path = foreign_single_file(name, folder.path(), |_| {});
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.layout(), Layout::SingleFile);
        let start = Checkpoint::open(folder.path().join(name)).unwrap();
        let hashes = |checkpoint: &Checkpoint| -> BTreeMap<_, _> {
            contents(checkpoint).into_iter().map(|(component, (_, hash))| (component, hash)).collect()
        };
        assert_eq!(hashes(&checkpoint), hashes(&start), "{name}");
        assert!(checkpoint.unused().is_empty(), "{name}: {:?}", checkpoint.unused());
        let seen = &checkpoint.component(Component::Unet).unwrap().config;
        let true_config = &start.component(Component::Unet).unwrap().config;
        for field in
            ["block_out_channels", "cross_attention_dim", "use_linear_projection", "down_block_types", "up_block_types"]
        {
            assert_eq!(seen[field], true_config[field], "{name} {field}");
        }
        if family == Family::Sd2V {
            assert_eq!((checkpoint.family(), checkpoint.prediction()), (Some(Family::Sd2), None));
            let error = convert(&checkpoint, &folder.path().join("x"), Target::Diffusers, &ConvertOptions::default());
            assert!(matches!(error, Err(LayoutError::PredictionUnknown { .. })));
            let options = OpenOptions { prediction: Some(Prediction::V), ..OpenOptions::default() };
            let given = Checkpoint::open_with(&path, &options).unwrap();
            assert_eq!((given.family(), given.prediction_source()), (Some(Family::Sd2V), "given"));
            let out = folder.path().join("given");
            convert(&given, &out, Target::Diffusers, &ConvertOptions::default()).unwrap();
            let scheduler = fs::read_to_string(out.join("scheduler/scheduler_config.json")).unwrap();
            assert!(scheduler.contains("v_prediction"), "{scheduler}");
            assert_eq!(Checkpoint::open(&out).unwrap().prediction(), Some(Prediction::V));
        } else {
            assert_eq!(checkpoint.family(), Some(family));
            assert!(checkpoint.prediction_source().contains("does not say"), "{}", checkpoint.prediction_source());
        }
    }
}

#[test]
fn mlperfs_variant_must_be_named_and_gets_its_norm_groups() {
    let folder = tempfile::tempdir().unwrap();
    let wide = lay_out_changed("sd2-v", folder.path(), |unet| unet["block_out_channels"] = serde_json::json!([32, 64]));
    let ours = folder.path().join("sd2-v-ours.safetensors");
    convert(&Checkpoint::open(wide).unwrap(), &ours, Target::SingleFile, &ConvertOptions::default()).unwrap();
    let path = foreign_single_file("sd2-v", folder.path(), |_| {});
    let notes = Checkpoint::open(&path).unwrap().notes().join("\n");
    assert!(notes.contains("mlperf-sd2"), "{notes}");
    let options = OpenOptions { family: Some(Family::MlperfSd2), ..OpenOptions::default() };
    let checkpoint = Checkpoint::open_with(&path, &options).unwrap();
    assert_eq!(checkpoint.prediction(), Some(Prediction::V));
    let out = folder.path().join("mlperf");
    let error = convert(&checkpoint, &out, Target::Diffusers, &ConvertOptions::default()).unwrap_err().to_string();
    assert!(error.contains("`transformer_norm_groups` = 32 beside norm_groups = 16"), "{error}");
    convert(&checkpoint, &out, Target::Calotype, &ConvertOptions::default()).unwrap();
    let again = Checkpoint::open(&out).unwrap();
    assert_eq!(again.family(), Some(Family::MlperfSd2));
    assert_eq!(again.component(Component::Unet).unwrap().config["norm_num_groups"], 16);
}

#[test]
fn buffers_and_training_state_are_set_aside_and_what_is_unknown_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = foreign_single_file("sd1", folder.path(), |tensors| {
        let buffers = ["betas", "alphas_cumprod", "logvar", "model_ema.decay", "first_stage_model.loss.logvar"];
        tensors.extend(buffers.iter().map(|name| formula_tensor(name, &[3])));
        let positions = "cond_stage_model.transformer.text_model.embeddings.position_ids";
        tensors.push(NamedTensor::from_i64(positions, [1, 2], &[0, 1]).into_owned());
        tensors.push(formula_tensor("control_model.input_blocks.0.0.weight", &[1]));
    });
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.set_aside().values().map(Vec::len).sum::<usize>(), 6);
    assert_eq!(checkpoint.unused(), ["control_model.input_blocks.0.0.weight"]);
    let out = folder.path().join("out");
    let error = convert(&checkpoint, &out, Target::Calotype, &ConvertOptions::default()).unwrap_err();
    assert!(error.to_string().contains("control_model.input_blocks.0.0.weight"), "{error}");
    let options = ConvertOptions { allow_unused: true, ..ConvertOptions::default() };
    assert_eq!(convert(&checkpoint, &out, Target::Calotype, &options).unwrap().unused.len(), 1);
    let error = convert(&checkpoint, &out, Target::Calotype, &options).unwrap_err();
    assert!(matches!(error, LayoutError::Exists { .. }), "{error}");
}

#[test]
fn missing_tensors_are_named_and_an_error_unless_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = foreign_single_file("sd1", folder.path(), |tensors| {
        tensors.retain(|tensor| tensor.name != "first_stage_model.decoder.conv_out.bias");
    });
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.component(Component::Vae).unwrap().missing, ["decoder.conv_out.bias"]);
    let report = inspect(&path, &OpenOptions::default(), false).unwrap();
    assert!(report.problems[0].contains("decoder.conv_out.bias"), "{:?}", report.problems);
    let out = folder.path().join("out");
    let error = convert(&checkpoint, &out, Target::Diffusers, &ConvertOptions::default()).unwrap_err();
    assert!(error.to_string().contains("decoder.conv_out.bias"), "{error}");
    let options = ConvertOptions { allow_missing: true, ..ConvertOptions::default() };
    assert_eq!(convert(&checkpoint, &out, Target::Diffusers, &options).unwrap().missing.len(), 1);
}

#[test]
fn averaged_weights_are_taken_when_they_are_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let path = foreign_single_file("sd1", folder.path(), |tensors| {
        let unet = tensors.iter().filter(|tensor| tensor.name.starts_with("model.diffusion_model."));
        let averaged: Vec<_> = unet
            .map(|tensor| {
                let name = format!("model_ema.{}", tensor.name["model.".len()..].replace('.', ""));
                formula_tensor(&name, &tensor.shape)
            })
            .collect();
        tensors.extend(averaged);
        tensors.push(NamedTensor::from_i64("model_ema.num_updates", [], &[5]).into_owned());
    });
    let plain = Checkpoint::open(&path).unwrap();
    let options = OpenOptions { ema: true, ..OpenOptions::default() };
    let averaged = Checkpoint::open_with(&path, &options).unwrap();
    for checkpoint in [&plain, &averaged] {
        assert!(checkpoint.unused().is_empty(), "{:?}", checkpoint.unused());
    }
    let tensor = |checkpoint: &Checkpoint| {
        checkpoint.component(Component::Unet).unwrap().tensor("conv_in.bias").unwrap().to_f32_vec().unwrap()
    };
    assert_eq!(tensor(&averaged), formula("model_ema.diffusion_modelinput_blocks00bias", &[8]));
    assert_eq!(tensor(&plain), formula("conv_in.bias", &[8]));
    let error = Checkpoint::open_with(folder.path().join("sd1"), &options).unwrap_err();
    assert!(matches!(error, LayoutError::NoEma { .. }), "{error}");
}

#[test]
fn a_velocity_mark_and_modelspec_metadata_say_what_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let path = foreign_single_file("sdxl-base", folder.path(), |tensors| tensors.push(formula_tensor("v_pred", &[])));
    assert_eq!(Checkpoint::open(&path).unwrap().prediction(), Some(Prediction::V));
    let path = foreign_single_file("sd2-v", folder.path(), |_| {});
    let file = TensorFile::open(&path).unwrap();
    let tensors: Vec<_> = file.tensors().map(|tensor| tensor.to_named()).collect();
    let said = folder.path().join("said.safetensors");
    write(&said, &tensors, &[("modelspec.prediction_type", "v")]);
    let checkpoint = Checkpoint::open(&said).unwrap();
    assert_eq!((checkpoint.prediction(), checkpoint.family()), (Some(Prediction::V), Some(Family::Sd2V)));
    assert!(checkpoint.prediction_source().contains("modelspec"));
}

/// A mark and its values.
fn mark(name: &str, values: &[f32]) -> NamedTensor<'static> {
    NamedTensor::from_f32(name, vec![values.len()], values).into_owned()
}

fn scheduler_of_folder(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("scheduler/scheduler_config.json")).unwrap()).unwrap()
}

/// Marks, flags, what the scheduler says then, and what a conversion writes: to a folder, and to a single file, whose marks
/// say the same to programs that read no metadata.
#[test]
fn marks_of_single_files_choose_the_scheduler() {
    let [zero, none] = [Some(true), None];
    let edm = [mark("edm_vpred.sigma_max", &[100.0]), mark("edm_vpred.sigma_min", &[0.01])];
    let latents = [mark("edm_mean", &[1.0, -2.0, 3.0, -4.0]), mark("edm_std", &[5.0, 6.0, 7.0, 8.5])];
    type Case<'a> = (&'a [NamedTensor<'static>], Option<bool>, &'a [(&'a str, Value)], Prediction);
    let (v, rescaled) = ("v_prediction", "rescale_betas_zero_snr");
    let class = |name: &str| ("_class_name", Value::from(name.to_owned()));
    let cases: [Case<'_>; 8] = [
        (&[mark("v_pred", &[])], none, &[("prediction_type", v.into()), (rescaled, Value::Null)], Prediction::V),
        (&[mark("v_pred", &[]), mark("ztsnr", &[])], none, &[(rescaled, true.into())], Prediction::V),
        (&[mark("v_pred", &[]), mark("ztsnr", &[])], Some(false), &[(rescaled, false.into())], Prediction::V),
        (&[mark("v_pred", &[])], zero, &[(rescaled, true.into())], Prediction::V),
        (&[mark("ztsnr", &[])], none, &[(rescaled, Value::Null)], Prediction::Epsilon),
        (
            &edm,
            none,
            &[class("EDMEulerScheduler"), ("sigma_max", 100.0.into()), ("sigma_data", 1.0.into())],
            Prediction::V,
        ),
        (&edm[..1], none, &[("sigma_min", 0.002.into()), ("sigma_schedule", "exponential".into())], Prediction::V),
        (&latents, none, &[class("EDMDPMSolverMultistepScheduler"), ("sigma_max", 80.0.into())], Prediction::Epsilon),
    ];
    for (number, (marks, zero_snr, fields, prediction)) in cases.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let path = foreign_single_file("sdxl-base", folder.path(), |tensors| tensors.extend(marks.iter().cloned()));
        let options = OpenOptions { zero_snr, ..OpenOptions::default() };
        let checkpoint = Checkpoint::open_with(&path, &options).unwrap();
        assert_eq!(checkpoint.prediction(), Some(prediction), "case {number}");
        assert!(checkpoint.unused().is_empty(), "case {number}: {:?}", checkpoint.unused());
        let scheduler = checkpoint.scheduler().unwrap();
        for (field, value) in fields {
            // The rounding of an f32.
            let close = scheduler[*field].as_f64().zip(value.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-6);
            assert!(close || scheduler[*field] == *value, "case {number}, {field}: {scheduler}");
        }
        let sampler = calotype_diffusion::SamplerConfig::from_diffusers(&scheduler).unwrap();
        assert_eq!(sampler.schedule.zero_terminal_snr, scheduler["rescale_betas_zero_snr"] == true);
        let out = folder.path().join("folder");
        convert(&checkpoint, &out, Target::Diffusers, &ConvertOptions::default()).unwrap();
        assert_eq!(scheduler_of_folder(&out), scheduler, "case {number}");
        assert_eq!(Checkpoint::open(&out).unwrap().scheduler().unwrap(), scheduler, "case {number}");
        let vae = checkpoint.component(Component::Vae).unwrap().config;
        if marks[0].name == "edm_mean" {
            let expected = serde_json::json!([[1.0, -2.0, 3.0, -4.0], [5.0, 6.0, 7.0, 8.5], 0.5]);
            assert_eq!(serde_json::json!([vae["latents_mean"], vae["latents_std"], vae["scaling_factor"]]), expected);
        }
        // The folder as a single file again, without the metadata.
        let single = folder.path().join("single.safetensors");
        convert(&Checkpoint::open(&out).unwrap(), &single, Target::SingleFile, &ConvertOptions::default()).unwrap();
        let tensors: Vec<_> =
            TensorFile::open(&single).unwrap().tensors().map(|tensor| tensor.to_named().into_owned()).collect();
        let bare = folder.path().join("bare.safetensors");
        write(&bare, &tensors, &[]);
        let again = Checkpoint::open(&bare).unwrap();
        let same = |field: &str| match (&again.scheduler().unwrap()[field], &scheduler[field]) {
            (Value::Null, Value::Bool(false)) => true,
            (a, b) => a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-6),
        };
        for field in ["_class_name", "prediction_type", "rescale_betas_zero_snr", "sigma_max", "sigma_min"] {
            assert!(same(field), "case {number}: {field} is lost: {}", again.scheduler().unwrap());
        }
        assert_eq!(again.component(Component::Vae).unwrap().config["latents_std"], vae["latents_std"]);
    }
}

#[test]
fn marks_that_say_nothing_sound_are_refused() {
    let latents = |name: &str, values: &[f32]| vec![mark("edm_mean", &[0.0; 4]), mark(name, values)];
    for (marks, part) in [
        (vec![mark("edm_mean", &[0.0; 4])], "`edm_std` is not there"),
        (latents("edm_std", &[1.0; 3]), "`edm_std` should hold 4 finite numbers"),
        (latents("edm_std", &[1.0, 1.0, 0.0, 1.0]), "`edm_std` holds a deviation"),
        (latents("edm_std", &[1.0, 1.0, f32::NAN, 1.0]), "4 finite numbers"),
        (vec![mark("edm_vpred.sigma_max", &[])], "`edm_vpred.sigma_max` should hold 1 finite"),
        (vec![mark("edm_vpred.sigma_max", &[-1.0])], "no noise level above 0"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = foreign_single_file("sdxl-base", folder.path(), |tensors| tensors.extend(marks));
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("foreign.safetensors"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = foreign_single_file("sdxl-base", folder.path(), |tensors| {
        tensors.push(mark("edm_vpred.sigma_max", &[120.0]));
    });
    let options = OpenOptions { zero_snr: Some(true), ..OpenOptions::default() };
    let error = Checkpoint::open_with(&path, &options).unwrap().scheduler().unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("EDM"), "{error}");
}

/// What a folder's scheduler says is used, or told: never passed in silence.
#[test]
fn schedulers_of_folders_are_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let model = lay_out("sd1", folder.path());
    let file = model.join("scheduler/scheduler_config.json");
    let put = |text: &str| fs::write(&file, text).unwrap();
    // Python's infinity, which JSON does not know, hides no prediction type, and stays in what is written.
    put(
        r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "prediction_type": "v_prediction"}"#,
    );
    let checkpoint = Checkpoint::open(&model).unwrap();
    assert_eq!(checkpoint.prediction(), Some(Prediction::V));
    let options = OpenOptions { zero_snr: Some(true), ..OpenOptions::default() };
    let out = folder.path().join("out");
    let wished = Checkpoint::open_with(&model, &options).unwrap();
    convert(&wished, &out, Target::Diffusers, &ConvertOptions::default()).unwrap();
    let written = fs::read_to_string(out.join("scheduler/scheduler_config.json")).unwrap();
    assert!(written.contains(": -Infinity") && written.contains(r#""rescale_betas_zero_snr": true"#), "{written}");
    // A prediction type that is not known is not the family's.
    put(r#"{"_class_name": "EulerDiscreteScheduler", "prediction_type": "flow_prediction"}"#);
    let checkpoint = Checkpoint::open(&model).unwrap();
    assert_eq!(checkpoint.prediction(), None);
    assert!(checkpoint.prediction_source().contains("flow_prediction"), "{}", checkpoint.prediction_source());
    for text in ["{", "[]"] {
        put(text);
        let error = Checkpoint::open(&model).unwrap_err().to_string();
        assert!(error.contains("scheduler_config.json"), "{error}");
    }
}

#[test]
fn unknown_fields_pass_only_where_they_are_harmless_or_somebody_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let model = lay_out("sd1", folder.path());
    let edit = |file: &str, fields: Value| {
        let path = model.join(file);
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        fs::write(path, config.to_string()).unwrap();
    };
    // What diffusers' `EMAModel.save_pretrained` adds, and a field of nothing.
    let average = serde_json::json!({
        "decay": 0.9999, "min_decay": 0.0, "optimization_step": 7, "update_after_step": 0, "use_ema_warmup": false,
        "inv_gamma": 1.0, "power": 0.6667, "newer": null,
    });
    edit("unet/config.json", average);
    let checkpoint = Checkpoint::open(&model).unwrap();
    for name in ["decay", "power", "newer"] {
        let told = checkpoint.notes().iter().any(|note| note.contains(&format!("`{name}` has no effect")));
        assert!(told, "{name}: {:?}", checkpoint.notes());
    }
    edit("unet/config.json", serde_json::json!({ "made_up": 7 }));
    let error = Checkpoint::open(&model).unwrap_err().to_string();
    assert!(error.contains("made_up") && error.contains("--pass-over-fields"), "{error}");
    edit("scheduler/scheduler_config.json", serde_json::json!({ "my_note": "tuned" }));
    edit("vae/config.json", serde_json::json!({ "made_up_too": true }));
    let options = OpenOptions { pass_over_fields: true, ..OpenOptions::default() };
    let checkpoint = Checkpoint::open_with(&model, &options).unwrap();
    let notes = checkpoint.notes().join("\n");
    for name in ["made_up", "made_up_too", "my_note"] {
        assert!(notes.contains(&format!("`{name}`")) && notes.contains("passed over"), "{notes}");
    }
    calotype_diffusion::SamplerConfig::from_diffusers(&checkpoint.scheduler().unwrap()).unwrap();
}

#[test]
fn the_vit_h_text_tower_loses_its_last_block_and_a_projection() {
    let folder = tempfile::tempdir().unwrap();
    let path = foreign_single_file("sd2-v", folder.path(), |tensors| {
        let block = "cond_stage_model.model.transformer.resblocks.22.";
        let last: Vec<_> = tensors.iter().filter(|tensor| tensor.name.starts_with(block)).cloned().collect();
        assert_eq!(last.len(), 12);
        tensors
            .extend(last.into_iter().map(|tensor| formula_tensor(&tensor.name.replace(".22.", ".23."), &tensor.shape)));
        tensors.push(formula_tensor("cond_stage_model.model.text_projection", &[8, 8]));
        tensors.push(formula_tensor("cond_stage_model.model.logit_scale", &[]));
    });
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.unused().is_empty(), "{:?}", checkpoint.unused());
    let source = checkpoint.component(Component::TextEncoder).unwrap();
    assert_eq!(source.config["num_hidden_layers"], 23);
    let start = Checkpoint::open(folder.path().join("sd2-v")).unwrap();
    assert_eq!(content_hash(&source), content_hash(&start.component(Component::TextEncoder).unwrap()));
}

#[test]
fn types_change_on_the_way_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let start = Checkpoint::open(lay_out("sd1", folder.path())).unwrap();
    let out = folder.path().join("half");
    let broken = foreign_single_file("sd1", folder.path(), |tensors| {
        let data =
            tensors.iter_mut().find(|tensor| tensor.name.ends_with("input_blocks.0.0.bias")).unwrap().data.to_mut();
        data[..8].copy_from_slice(&[f32::NAN, f32::INFINITY].map(f32::to_le_bytes).concat());
    });
    let told = convert(
        &Checkpoint::open(&broken).unwrap(),
        &folder.path().join("nan"),
        Target::Diffusers,
        &ConvertOptions::default(),
    );
    let told = told.unwrap().to_string();
    assert!(told.contains("note: unet `conv_in.bias`: values that are NaN or infinite: 2 of "), "{told}");
    let options = ConvertOptions { dtype: Some(Dtype::F16), ..ConvertOptions::default() };
    convert(&start, &out, Target::Calotype, &options).unwrap();
    let report = inspect(&out, &OpenOptions::default(), true).unwrap();
    for component in &report.components {
        assert_eq!(component.dtypes.keys().collect::<Vec<_>>(), ["F16"], "{}", component.component);
        assert_eq!(component.details.len(), component.tensors);
    }
    let text = report.to_string();
    assert!(text.contains("sd1") && text.contains("epsilon (recorded in calotype.json)"), "{text}");
    serde_json::to_string(&report).unwrap();
}

#[test]
fn a_changed_file_in_our_folder_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let start = Checkpoint::open(lay_out("sd1", folder.path())).unwrap();
    let out = folder.path().join("ours");
    convert(&start, &out, Target::Calotype, &ConvertOptions::default()).unwrap();
    Checkpoint::open(&out).unwrap();
    let weights = out.join("vae/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let error = Checkpoint::open(&out).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayoutError::Damaged { .. }), "{error}");
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(Checkpoint::open(&out), Err(LayoutError::Damaged { .. })));
}

#[test]
fn variants_are_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = lay_out("sd1", folder.path());
    for (component, stem) in
        [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")]
    {
        let place = root.join(component);
        fs::rename(place.join(format!("{stem}.safetensors")), place.join(format!("{stem}.fp16.safetensors"))).unwrap();
    }
    Checkpoint::open(&root).unwrap();
    let options = |variant: &str| OpenOptions { variant: Some(variant.into()), ..OpenOptions::default() };
    Checkpoint::open_with(&root, &options("fp16")).unwrap();
    let error = Checkpoint::open_with(&root, &options("bf16")).unwrap_err().to_string();
    assert!(error.contains("no weights of the variant bf16"), "{error}");
}

#[test]
fn model_folders_and_files_alone_are_opened_too() {
    let folder = tempfile::tempdir().unwrap();
    let root = lay_out("sdxl-base", folder.path());
    for (component, family) in
        [(Component::Unet, Family::SdxlBase), (Component::Vae, Family::Vae), (Component::TextEncoder2, Family::Clip)]
    {
        let checkpoint = Checkpoint::open(root.join(component.name())).unwrap();
        assert_eq!((checkpoint.layout(), checkpoint.family()), (Layout::ModelFolder, Some(family)));
        assert!(checkpoint.unused().is_empty(), "{component}: {:?}", checkpoint.unused());
        assert!(checkpoint.component(checkpoint.components()[0]).unwrap().missing.is_empty());
    }
    let bare = folder.path().join("bare.safetensors");
    fs::copy(root.join("vae/diffusion_pytorch_model.safetensors"), &bare).unwrap();
    let checkpoint = Checkpoint::open(&bare).unwrap();
    assert_eq!((checkpoint.layout(), checkpoint.components()), (Layout::ModelFile, vec![Component::Vae]));
    assert!(checkpoint.notes()[0].contains("scale of the latents"), "{:?}", checkpoint.notes());
    let out = folder.path().join("vae");
    convert(&checkpoint, &out, Target::Diffusers, &ConvertOptions::default()).unwrap();
    assert!(out.join("config.json").is_file());
    let single = folder.path().join("vae.safetensors");
    convert(&checkpoint, &single, Target::SingleFile, &ConvertOptions::default()).unwrap();
    let again = Checkpoint::open(&single).unwrap();
    assert_eq!((again.layout(), contents(&again)), (Layout::SingleFile, contents(&checkpoint)));
}

#[test]
fn a_tower_of_a_whole_clip_model_can_be_had_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map, specs) = maps().into_iter().find(|(name, ..)| *name == "open_clip").unwrap();
    let canonical: Vec<_> = specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect();
    let path = folder.path().join("clip.safetensors");
    write(&path, &map.store(&canonical).unwrap(), &[]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (component, prefix, projection) in [
        (Component::TextEncoder, "text_model.", "text_projection.weight"),
        (Component::ImageEncoder, "vision_model.", "visual_projection.weight"),
    ] {
        let source = checkpoint.component(component).unwrap();
        assert!(source.missing.is_empty());
        let own = |name: &str| name.starts_with(prefix) || name == projection;
        assert_eq!(source.entries().len(), specs.iter().filter(|spec| own(&spec.name)).count());
        assert_eq!(source.tensor(projection).unwrap().to_f32_vec().unwrap(), formula(projection, &[3, 4]));
    }
    let error =
        convert(&checkpoint, &folder.path().join("x"), Target::SingleFile, &ConvertOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no place for clip"), "{error}");
}

#[test]
fn nemos_stable_diffusion_is_recognised_in_each_of_its_spellings() {
    let folder = tempfile::tempdir().unwrap();
    let start = Checkpoint::open(lay_out("sd1", folder.path())).unwrap();
    let canonical = |component: Component| -> Vec<NamedTensor<'static>> {
        let source = start.component(component).unwrap();
        source.entries().iter().map(|tensor| source.tensor(&tensor.name).unwrap().into_owned()).collect()
    };
    let named = |maps: Vec<(&'static str, KeyMap)>, name: &str| {
        maps.into_iter().find(|(known, _)| *known == name).map(|(_, map)| map).unwrap()
    };
    let config = |component| start.component(component).unwrap().config.clone();
    for spelling in ["NeMo, fused residual blocks", "NeMo, fused output", "NeMo, inner norms"] {
        let unet = named(tables::unets(&config(Component::Unet)).unwrap(), spelling);
        let vae = named(tables::vaes(&config(Component::Vae)).unwrap(), "NeMo");
        let text = named(tables::texts(), "NeMo");
        let parts = [(unet, Component::Unet), (vae, Component::Vae), (text, Component::TextEncoder)];
        let stored: Vec<_> =
            parts.iter().flat_map(|(map, component)| map.store(&canonical(*component)).unwrap()).collect();
        let path = folder.path().join("nemo.safetensors");
        write(&path, &stored, &[]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(
            (checkpoint.layout(), checkpoint.family()),
            (Layout::NemoSingleFile, Some(Family::Sd1)),
            "{spelling}"
        );
        assert!(checkpoint.unused().is_empty(), "{spelling}: {:?}", checkpoint.unused());
        for (component, (_, hash)) in contents(&start) {
            assert_eq!(content_hash(&checkpoint.component(component).unwrap()), hash, "{spelling} {component}");
        }
    }
}

#[test]
fn every_spelling_of_clip_and_vit_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.st");
    let names: Vec<_> = tables::clips().into_iter().map(|(name, _)| name).collect();
    let vits: Vec<_> = tables::vits().into_iter().map(|(name, ..)| name).collect();
    let mut seen = BTreeMap::new();
    for (name, map, specs) in maps() {
        let has = |key: &str| specs.iter().any(|spec| spec.name == key);
        let component = match () {
            () if has("logit_scale") && names.contains(&name) => Component::Clip,
            () if has("vit.embeddings.cls_token") && vits.contains(&name) => Component::Classifier,
            () => continue,
        };
        let canonical: Vec<_> = specs.iter().map(|spec| formula_tensor(&spec.name, &spec.shape)).collect();
        write(&path, &map.store(&canonical).unwrap(), &[]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let source = checkpoint.component(component).unwrap();
        assert!(source.missing.is_empty() && checkpoint.unused().is_empty(), "{name}");
        let found: Vec<_> = specs.iter().map(|spec| source.tensor(&spec.name).unwrap().into_owned()).collect();
        assert_eq!(found, canonical, "{name}");
        *seen.entry(checkpoint.layout().name()).or_insert(0) += 1;
    }
    let expected = [("NeMo CLIP", 2), ("NeMo ViT", 2), ("model file", 3), ("open_clip", 3), ("timm", 2)];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let unknown = folder.path().join("lora.safetensors");
    write(&unknown, &[formula_tensor("lora_unet_down.alpha", &[])], &[]);
    let error = Checkpoint::open(&unknown).unwrap_err().to_string();
    assert!(error.contains("lora_unet_down.alpha"), "{error}");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(Checkpoint::open(&empty), Err(LayoutError::Unrecognised { .. })));
    assert!(Checkpoint::open(folder.path().join("none")).is_err());
    let odd = folder.path().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("config.json"), r#"{"model_type": "t5"}"#).unwrap();
    fs::copy(&unknown, odd.join("model.safetensors")).unwrap();
    let error = Checkpoint::open(&odd).unwrap_err().to_string();
    assert!(error.contains("its model is t5"), "{error}");
    fs::write(odd.join("config.json"), "[").unwrap();
    assert!(matches!(Checkpoint::open(&odd), Err(LayoutError::Json { .. })));
}

#[test]
fn configurations_that_would_change_the_keys_are_refused_by_field() {
    let mut config = GOLDEN["models"][0]["config"].clone();
    for (field, value) in [
        ("class_embed_type", Value::from("timestep")),
        ("block_out_channels", Value::from("wide")),
        ("layers_per_block", Value::from(-1)),
        ("in_channels", Value::from(1u64 << 60)),
        ("down_block_types", serde_json::json!(["CrossAttnDownBlock2D"])),
        ("up_block_types", serde_json::json!(["AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"])),
        ("transformer_layers_per_block", serde_json::json!([1, 2])),
    ] {
        let old = config[field].take();
        config[field] = value;
        let error = component_keys(Component::Unet, &config).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
        config[field] = old;
    }
    component_keys(Component::Unet, &config).unwrap();
}

// Files as people have them ----------------------------------------------------------------------------------------

/// The hashes of the components' content.
fn hashes(checkpoint: &Checkpoint) -> BTreeMap<Component, (usize, String)> {
    contents(checkpoint).into_iter().map(|(component, (_, hash))| (component, hash)).collect()
}

fn rename(tensors: &mut [NamedTensor<'static>], change: impl Fn(&str) -> String) {
    tensors.iter_mut().for_each(|tensor| tensor.name = change(&tensor.name));
}

#[test]
fn other_names_in_single_files_are_the_same_tensors() {
    let vae = |key: &str, names: [(&str, &str); 5]| match key.contains(".attn_1.") {
        true => names.iter().fold(key.to_owned(), |key, (old, new)| key.replace(old, new)),
        false => key.to_owned(),
    };
    let novelai = |key: &str| key.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.");
    let linear = [(".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."), (".proj_out.", ".to_out.0."), ("", "")];
    let diffusers = [linear[0], linear[1], linear[2], linear[3], (".norm.", ".group_norm.")];
    let old = [
        (".q.", ".query."),
        (".k.", ".key."),
        (".v.", ".value."),
        (".proj_out.", ".proj_attn."),
        (".norm.", ".group_norm."),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, tables) in [("sd1", 4), ("sdxl-base", 3)] {
        let plain = hashes(&Checkpoint::open(foreign_single_file(name, folder.path(), |_| {})).unwrap());
        for case in 0..tables {
            let path = foreign_single_file(name, folder.path(), |tensors| {
                rename(tensors, |key| match case {
                    0 => vae(key, linear),
                    1 => vae(key, diffusers),
                    2 => vae(key, old),
                    _ => novelai(key),
                });
                // As linear layers, not as convolutions of one pixel.
                for tensor in tensors.iter_mut().filter(|tensor| tensor.name.contains(".attn_1.to_")) {
                    tensor.shape.truncate(2);
                }
            });
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(checkpoint.unused(), [""; 0], "{name} {case}");
            assert_eq!(hashes(&checkpoint), plain, "{name} {case}");
        }
    }
}

/// A tensor that is missing is said to be, whichever it is: no setting is inferred from its absence. Where the file is not opened, those of
/// the UNet are named.
#[test]
fn the_absence_of_any_tensor_is_noticed() {
    const NAMED_ALONE: &str = "model.diffusion_model.";
    let folder = tempfile::tempdir().unwrap();
    for name in ["sd1", "sdxl-base"] {
        let whole = Checkpoint::open(foreign_single_file(name, folder.path(), |_| {})).unwrap();
        let keys: Vec<String> = TensorFile::open(whole.path()).unwrap().names().map(str::to_owned).collect();
        let (mut unnoticed, mut unnamed) = (Vec::new(), Vec::new());
        for key in &keys {
            let path = foreign_single_file(name, folder.path(), |tensors| tensors.retain(|tensor| tensor.name != *key));
            let opened = Checkpoint::open(&path);
            let told = opened.as_ref().err().map(ToString::to_string);
            let is_named = told.is_none_or(|told| told.contains(key.as_str()) || !key.starts_with(NAMED_ALONE));
            unnamed.extend((!is_named).then_some(key));
            let sound = opened.is_ok_and(|checkpoint| {
                let components = checkpoint.components();
                components == whole.components()
                    && components
                        .iter()
                        .all(|&part| checkpoint.component(part).is_ok_and(|part| part.missing.is_empty()))
            });
            unnoticed.extend(sound.then_some(key));
        }
        assert!(unnoticed.is_empty() && unnamed.is_empty(), "{name}: {unnoticed:?} {unnamed:?}");
    }
}

/// The same of whole modules: a level without attention is another model only where both ways through it have none.
#[test]
fn the_absence_of_a_whole_module_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sd1", "sdxl-base"] {
        let whole = Checkpoint::open(foreign_single_file(name, folder.path(), |_| {})).unwrap();
        let file = TensorFile::open(whole.path()).unwrap();
        let sides = ["diffusion_model.input_blocks.", "diffusion_model.output_blocks.", "encoder.down.", "decoder.up."];
        let modules: BTreeSet<String> = file
            .names()
            .filter_map(|key| {
                let side = sides.into_iter().find(|side| key.contains(side))?;
                let (before, rest) = key.split_at(key.find(side)? + side.len());
                let (block, rest) = rest.split_once('.')?;
                Some([format!("{before}{block}."), format!("{before}{block}.{}.", rest.split('.').next()?)])
            })
            .flatten()
            .collect();
        assert!(modules.len() > 20, "{modules:?}");
        let mut unnoticed = Vec::new();
        for module in &modules {
            let cut =
                |tensors: &mut Vec<NamedTensor<'static>>| tensors.retain(|t| !t.name.starts_with(module.as_str()));
            let sound = Checkpoint::open(foreign_single_file(name, folder.path(), cut)).is_ok_and(|checkpoint| {
                whole.components().iter().all(|&part| loading::whole(&checkpoint, part).is_ok())
            });
            unnoticed.extend(sound.then_some(module));
        }
        assert!(unnoticed.is_empty(), "{name}: {unnoticed:?}");
    }
    // The tensors are named, by any spelling of their keys.
    let level = |tensor: &NamedTensor<'_>| tensor.name.starts_with("model.diffusion_model.input_blocks.1.1.");
    let path = foreign_single_file("sd1", folder.path(), |tensors| tensors.retain(|tensor| !level(tensor)));
    let checkpoint = Checkpoint::open(path).unwrap();
    let missing = checkpoint.component(Component::Unet).unwrap().missing;
    assert!(missing.iter().all(|key| key.starts_with("down_blocks.0.attentions.0.")), "{missing:?}");
    let unet = lay_out("sd1", folder.path()).join("unet/diffusion_pytorch_model.safetensors");
    let tensors: Vec<_> = TensorFile::open(&unet).unwrap().tensors().map(|t| t.to_named().into_owned()).collect();
    let kept: Vec<_> = tensors.into_iter().filter(|t| !t.name.starts_with("down_blocks.0.attentions.0.")).collect();
    let alone = folder.path().join("unet.safetensors");
    write(&alone, &kept, &[]);
    let checkpoint = Checkpoint::open(alone).unwrap();
    assert_eq!(checkpoint.component(Component::Unet).unwrap().missing, missing);
}

/// A UNet with tensors that its structure has no place for is another one than it seems.
#[test]
fn a_unet_with_strangers_is_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let strange = "model.diffusion_model.input_blocks.1.2.weight";
    let path = foreign_single_file("sd1", folder.path(), |tensors| {
        tensors.push(formula_tensor(strange, &[1]));
        tensors.push(formula_tensor("control_model.input_blocks.0.0.weight", &[1]));
    });
    let checkpoint = Checkpoint::open(path).unwrap();
    assert_eq!(checkpoint.unused().len(), 2);
    let Err(error) = loading::whole(&checkpoint, Component::Unet) else { panic!("it was loaded") };
    assert!(error.to_string().contains("1 of its tensors") && error.to_string().contains(strange), "{error}");
    loading::whole(&checkpoint, Component::Vae).unwrap();
}

/// The family is given where the weights do not show it; what they show is not to be had otherwise.
#[test]
fn a_family_that_the_weights_contradict_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = foreign_single_file("sd1", folder.path(), |_| {});
    let pipeline = lay_out("sd1", folder.path());
    let open = |path: &Path, family| {
        let options = OpenOptions { family: Some(family), ..OpenOptions::default() };
        Checkpoint::open_with(path, &options)
    };
    for path in [&file, &pipeline] {
        assert_eq!(open(path, Family::Sd1).unwrap().family(), Some(Family::Sd1));
        for (family, told) in [
            (Family::SdxlBase, "takes no sizes"),
            (Family::SdxlRefiner, "takes no sizes"),
            (Family::Sd2V, "project by"),
            (Family::Sd1Inpainting, "4 input channels, and that of sd1-inpainting has 9"),
            (Family::Vae, "there is a UNet"),
        ] {
            let error = open(path, family).unwrap_err();
            let text = error.to_string();
            assert!(error.is_usage() && text.contains(told) && text.contains("those of sd1"), "{text}");
        }
    }
    let xl = foreign_single_file("sdxl-base", folder.path(), |_| {});
    for family in [Family::Sd1, Family::SdxlRefiner, Family::SdxlInpainting] {
        assert!(open(&xl, family).unwrap_err().to_string().contains("those of sdxl-base"), "{family}");
    }
}

#[test]
fn eight_bit_weights_are_multiplied_by_their_scales() {
    let folder = tempfile::tempdir().unwrap();
    let [conv, query, key, value] = ["out.2", "middle_block.1.proj_in", "middle_block.1.proj_out", "time_embed.0"]
        .map(|module| format!("model.diffusion_model.{module}"));
    // 0x38 is 1 in E4M3, 0x3c is 1 in E5M2.
    let changed = |scales: &'static [f32]| {
        let (conv, query, key, value) = (conv.clone(), query.clone(), key.clone(), value.clone());
        foreign_single_file("sd1", folder.path(), move |tensors| {
            for tensor in tensors.iter_mut() {
                let Some(module) = tensor.name.strip_suffix(".weight") else { continue };
                let (dtype, one) = if module == query { (Dtype::F8E5M2, 0x3c) } else { (Dtype::F8E4M3, 0x38) };
                if [&conv, &query, &key, &value].iter().any(|quantised| **quantised == module) {
                    let count: usize = tensor.shape.iter().product();
                    *tensor = NamedTensor::new(tensor.name.clone(), dtype, tensor.shape.clone(), vec![one; count]);
                }
            }
            tensors.push(NamedTensor::from_f32(format!("{conv}.scale_weight"), [], &scales[..1]).into_owned());
            tensors.push(NamedTensor::from_f32(format!("{query}.weight_scale"), [1], &scales[..1]).into_owned());
            let rows = tensors.iter().find(|tensor| tensor.name == format!("{key}.weight")).unwrap().shape[0];
            let each: Vec<f32> = (0..rows).map(|row| row as f32).collect();
            tensors.push(NamedTensor::from_f32(format!("{key}.weight_scale"), [rows, 1], &each).into_owned());
            tensors.push(NamedTensor::from_f32(format!("{conv}.scale_input"), [], &[1.0]).into_owned());
            tensors.push(NamedTensor::new("model.diffusion_model.scaled_fp8", Dtype::F8E4M3, [0], Vec::new()));
        })
    };
    let checkpoint = Checkpoint::open(changed(&[0.25])).unwrap();
    assert_eq!(checkpoint.unused(), [""; 0]);
    assert_eq!(checkpoint.set_aside().values().map(Vec::len).sum::<usize>(), 5);
    let unet = checkpoint.component(Component::Unet).unwrap();
    let values = |name: &str| unet.tensor(name).unwrap().to_f32_vec().unwrap();
    assert!(values("conv_out.weight").iter().all(|value| *value == 0.25));
    assert!(values("mid_block.attentions.0.proj_in.weight").iter().all(|value| *value == 0.25));
    assert!(values("time_embedding.linear_1.weight").iter().all(|value| *value == 1.0));
    let rows = unet.tensor("mid_block.attentions.0.proj_out.weight").unwrap();
    let (columns, rows) = (rows.data.len() / 4 / rows.shape[0], rows.to_f32_vec().unwrap());
    assert!(rows.iter().enumerate().all(|(at, value)| *value == (at / columns) as f32));
    // Written as what they are worth; types may be changed as those of any weight.
    let out = folder.path().join("half.safetensors");
    let half = ConvertOptions { dtype: Some(Dtype::F16), ..ConvertOptions::default() };
    convert(&checkpoint, &out, Target::SingleFile, &half).unwrap();
    let written = TensorFile::open(&out).unwrap();
    assert_eq!(written.get(&format!("{conv}.weight")).unwrap().to_f32_vec().unwrap()[0], 0.25);
    assert!(written.tensors().all(|tensor| tensor.dtype() == Dtype::F16));
    // Scales that are none.
    let path = foreign_single_file("sd1", folder.path(), |tensors| {
        tensors.push(NamedTensor::from_f32(format!("{conv}.scale_weight"), [3], &[1.0; 3]).into_owned());
    });
    let source = Checkpoint::open(&path).unwrap().component(Component::Unet).unwrap();
    let error = source.tensor("conv_out.weight").unwrap_err().to_string();
    assert!(error.contains("scale_weight` has shape [3]"), "{error}");
    // Other ways of packing weights.
    for (end, told) in [
        ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("weight_scale_2", "NVFP4"),
        ("weight_scale_inv", "a scale for each block"),
        ("qweight", "integer weights"),
    ] {
        let path = foreign_single_file("sd1", folder.path(), |tensors| {
            tensors.push(NamedTensor::from_f32(format!("{conv}.{end}"), [1], &[1.0]).into_owned());
        });
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("foreign.safetensors"), "{error}");
    }
}

#[test]
fn an_autoencoder_is_taken_of_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Checkpoint::open(foreign_single_file("sdxl-base", folder.path(), |_| {})).unwrap();
    let own = hashes(&whole)[&Component::Vae].clone();
    let bare = folder.path().join("vae.safetensors");
    let vae = whole.component(Component::Vae).unwrap();
    let tensors: Vec<_> = vae.entries().iter().map(|info| vae.tensor(&info.name).unwrap().into_owned()).collect();
    write(&bare, &tensors, &[]);
    let folder_of_one = lay_out("sd1", folder.path()).join("vae");
    let without = foreign_single_file("sdxl-base", folder.path(), |tensors| {
        tensors.retain(|tensor| !tensor.name.starts_with("first_stage_model."));
    });
    let error = Checkpoint::open(&without).unwrap().component(Component::Vae).unwrap_err().to_string();
    assert!(error.contains("holds no vae"), "{error}");
    let with = |path: &Path, vae: &Path| {
        let options = OpenOptions { vae: Some(vae.into()), ..OpenOptions::default() };
        Checkpoint::open_with(path, &options)
    };
    let checkpoint = with(&without, &bare).unwrap();
    assert_eq!(hashes(&checkpoint)[&Component::Vae], own);
    assert_eq!(checkpoint.component(Component::Vae).unwrap().config["scaling_factor"], 0.13025);
    assert!(checkpoint.notes().iter().any(|note| note.contains("0.13025")), "{:?}", checkpoint.notes());
    // In place of its own, whose tensors are set aside; a folder says its own scale.
    let path = foreign_single_file("sdxl-base", folder.path(), |_| {});
    let checkpoint = with(&path, &folder_of_one).unwrap();
    let other = Checkpoint::open(&folder_of_one).unwrap();
    assert_eq!(contents(&checkpoint)[&Component::Vae], contents(&other)[&Component::Vae]);
    assert_eq!(checkpoint.unused(), [""; 0]);
    assert_eq!(checkpoint.set_aside().values().map(Vec::len).sum::<usize>(), vae.entries().len());
    // A whole checkpoint will do; one without an autoencoder, or no checkpoint, will not.
    assert_eq!(with(&path, &path).unwrap().unused(), [""; 0]);
    assert!(with(&path, &folder.path().join("sd1/unet")).unwrap_err().to_string().contains("holds no vae"));
    assert!(with(&path, &folder.path().join("none")).is_err());
}

#[test]
fn a_part_without_the_variant_is_taken_plain() {
    let folder = tempfile::tempdir().unwrap();
    let root = lay_out("sd1", folder.path());
    let unet = root.join("unet/diffusion_pytorch_model");
    fs::rename(unet.with_extension("safetensors"), unet.with_extension("fp16.safetensors")).unwrap();
    let options = OpenOptions { variant: Some("fp16".into()), ..OpenOptions::default() };
    let checkpoint = Checkpoint::open_with(&root, &options).unwrap();
    let notes = checkpoint.notes().join("\n");
    assert!(notes.contains("vae has no weights of the variant fp16: its plain ones are taken"), "{notes}");
    assert_eq!(hashes(&checkpoint), hashes(&Checkpoint::open(&root).unwrap()));
    fs::rename(unet.with_extension("fp16.safetensors"), unet.with_extension("safetensors")).unwrap();
    let error = Checkpoint::open_with(&root, &options).unwrap_err().to_string();
    assert!(error.contains("no part of it has weights of the variant fp16"), "{error}");
    let error = Checkpoint::open_with(root.join("unet"), &options).unwrap_err().to_string();
    assert!(error.contains("no weights of the variant fp16"), "{error}");
}

#[test]
fn learned_words_extend_table_and_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let root = lay_out("sdxl-base", folder.path());
    let plain = Checkpoint::open(&root).unwrap();
    let config = |component| plain.component(component).unwrap().config;
    let width = |component| config(component)["hidden_size"].as_u64().unwrap() as usize;
    let size = config(Component::TextEncoder)["vocab_size"].as_u64().unwrap() as usize;
    let (first, second) = (width(Component::TextEncoder), width(Component::TextEncoder2));
    let put = |name: &str, tensors: &[(&str, [usize; 2])]| {
        let tensors: Vec<_> = tensors.iter().map(|(key, shape)| formula_tensor(key, shape)).collect();
        let path = folder.path().join(name);
        write(&path, &tensors, &[]);
        path
    };
    let open = |files: &[String]| {
        let embeddings = files.iter().map(|file| file.parse().unwrap()).collect();
        Checkpoint::open_with(&root, &OpenOptions { embeddings, ..OpenOptions::default() })
    };
    let both = put("style.safetensors", &[("clip_l", [2, first]), ("clip_g", [2, second])]);
    let checkpoint = open(&[format!("{}=<w>", both.display())]).unwrap();
    assert_eq!(checkpoint.learned_words().collect::<Vec<_>>(), [("<w>", 2)]);
    for (component, key, width) in
        [(Component::TextEncoder, "clip_l", first), (Component::TextEncoder2, "clip_g", second)]
    {
        let source = checkpoint.component(component).unwrap();
        assert_eq!(source.config["vocab_size"], size + 2);
        let table = source.tensor("text_model.embeddings.token_embedding.weight").unwrap();
        assert_eq!(table.shape, [size + 2, width]);
        assert_eq!(table.to_f32_vec().unwrap()[size * width..], formula(key, &[2, width]));
    }
    let error = |files: &[String]| open(files).unwrap_err().to_string();
    let shown = both.display().to_string();
    assert!(error(&[shown.clone(), shown.clone()]).contains("stands for another file already"));
    let alone = put("alone.safetensors", &[("clip_l", [2, first])]);
    assert!(error(&[alone.display().to_string()]).contains("made for another family"));
    let uneven = put("uneven.safetensors", &[("clip_l", [2, first]), ("clip_g", [1, second])]);
    assert!(error(&[uneven.display().to_string()]).contains("not as many vectors"));
    let wide = put("wide.safetensors", &[("emb_params", [1, 999])]);
    assert!(error(&[wide.display().to_string()]).contains("width 999"));
    let other = OpenOptions { embeddings: vec![shown.parse().unwrap()], ..OpenOptions::default() };
    let refused = Checkpoint::open_with(lay_out("sd1", folder.path()), &other).unwrap_err().to_string();
    assert!(refused.contains("made for"), "{refused}");
    assert!(error(&[folder.path().join("none").display().to_string()]).contains("no such file"));
    // A name with an equals sign is a file where there is one.
    let odd = put("a=b.safetensors", &[("clip_l", [1, first]), ("clip_g", [1, second])]);
    assert_eq!(open(&[odd.display().to_string()]).unwrap().learned_words().next(), Some(("a=b", 1)));
}

#[test]
fn files_of_other_kinds_are_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let error = |key: &str| {
        write(&path, &[formula_tensor(key, &[2, 2])], &[]);
        Checkpoint::open(&path).unwrap_err().to_string()
    };
    assert!(error("lora_unet_conv_in.lora_up.weight").contains("give it with --lora"));
    assert!(error("transformer.positional_embedding_res").contains("LongCLIP"));
    // Pointers of Git LFS, in place of weights and of texts.
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let root = lay_out("sd1", folder.path());
    for file in ["vae/diffusion_pytorch_model.safetensors", "unet/config.json", "scheduler/scheduler_config.json"] {
        let whole = fs::read(root.join(file)).unwrap();
        fs::write(root.join(file), pointer).unwrap();
        let error = Checkpoint::open(&root).unwrap_err().to_string();
        assert!(error.contains("pointer of Git LFS") && error.contains(file), "{error}");
        fs::write(root.join(file), whole).unwrap();
    }
    // A prediction type that is not known is not taken for another one.
    let file = root.join("scheduler/scheduler_config.json");
    let mut scheduler: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    scheduler["prediction_type"] = "flow_prediction".into();
    fs::write(&file, scheduler.to_string()).unwrap();
    let checkpoint = Checkpoint::open(&root).unwrap();
    assert!(checkpoint.prediction().is_none() && checkpoint.prediction_source().contains("flow_prediction"));
    fs::write(&file, "{").unwrap();
    assert!(Checkpoint::open(&root).unwrap_err().to_string().contains("scheduler_config.json"));
}
