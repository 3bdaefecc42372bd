//! Key maps, detection, inspection and conversion against what the originals' libraries say.
//!
//! `golden/layouts.json` is made by `golden/make_layouts.py`: key lists of real sizes as hashes, the same tiny models in two
//! libraries whose outputs were found equal, and the files of tiny diffusers pipelines. Tensors are made by a formula on
//! both sides.

use calotype_checkpoints::map::KeyMap;
use calotype_checkpoints::{
    Checkpoint, Component, ComponentSource, ConvertOptions, Family, Layout, LayoutError, OpenOptions, Prediction,
    Report, Target, TensorSpec, component_keys, convert, inspect, tables,
};
use calotype_weights::{Dtype, NamedTensor, TensorFile, TensorSource, write_safetensors};
use serde_json::Value;
use std::collections::BTreeMap;
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

fn formula_tensor(key: &str, shape: &[usize]) -> NamedTensor<'static> {
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

fn write(path: &Path, tensors: &[NamedTensor<'_>], metadata: &[(&str, &str)]) {
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
        .flat_map(|linear| tables::unets(&unet(linear)).into_iter().map(move |(name, map)| (name, map, linear)))
        .map(|(name, map, linear)| (name, map, keys(Component::Unet, &unet(linear))))
        .collect();
    list.extend(tables::vaes(&vae).into_iter().map(|(name, map)| (name, map, keys(Component::Vae, &vae))));
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
    Checkpoint::open(&out).unwrap().verify().unwrap();
    let weights = out.join("vae/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let error = Checkpoint::open(&out).unwrap().verify().unwrap_err();
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
        let unet = named(tables::unets(&config(Component::Unet)), spelling);
        let vae = named(tables::vaes(&config(Component::Vae)), "NeMo");
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
    let expected = [("NeMo CLIP", 1), ("NeMo ViT", 2), ("model file", 3), ("open_clip", 3), ("timm", 1)];
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
