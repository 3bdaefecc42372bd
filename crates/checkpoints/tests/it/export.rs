//! Folders that [`Export`] writes open again as the same networks; nothing is written that its library would not load.

use burn::module::Module;
use burn::tensor::Device;
use calotype_checkpoints::loading::Loader;
use calotype_checkpoints::{
    Checkpoint, Component, ConvertOptions, Export, Facts, Family, Filter, ImageProcessor, Layout, LayoutError, Part,
    Placement, Prediction, Report, Target, component_keys, convert,
};
use calotype_models::state::{self, WeightPrecision};
use calotype_models::tokenizer::TokenizerOptions;
use calotype_models::{
    Autoencoder, AutoencoderConfig, Clip, ClipConfig, ClipTextEncoder, Init, TextConfig, TextEncoderConfig, UNet,
    UNetConfig, VisionConfig, Vit, VitConfig,
};
use calotype_weights::{Dtype, TensorSource};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn device() -> Device {
    Device::flex()
}

fn unet() -> (UNetConfig, UNet) {
    let config = UNetConfig {
        block_out_channels: vec![16, 32],
        layers_per_block: 1,
        attention_levels: vec![false, true],
        head_channels: vec![8, 8],
        context_channels: 8,
        norm_groups: 8,
        transformer_norm_groups: 8,
        sample_size: Some(4),
        ..UNetConfig::default()
    };
    let model = config.init(&mut Init::new(1, &device())).unwrap();
    (config, model)
}

fn vae() -> (AutoencoderConfig, Autoencoder) {
    let config = AutoencoderConfig {
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        norm_groups: 4,
        sample_size: 32,
        ..AutoencoderConfig::stable_diffusion()
    };
    let model = config.init(&mut Init::new(2, &device())).unwrap();
    (config, model)
}

fn text_config() -> TextConfig {
    TextConfig { context_length: 12, channels: 8, layers: 1, heads: 2, mlp_channels: Some(16), ..TextConfig::default() }
}

fn text() -> (TextEncoderConfig, ClipTextEncoder) {
    let config = TextEncoderConfig { text: text_config(), projection: None };
    let model = config.init(&mut Init::new(3, &device())).unwrap();
    (config, model)
}

fn clip() -> (ClipConfig, Clip) {
    let vision = VisionConfig {
        image_size: 16,
        patch_size: 8,
        channels: 8,
        layers: 1,
        heads: 2,
        mlp_channels: Some(16),
        ..VisionConfig::default()
    };
    let config = ClipConfig { projection: 6, text: text_config(), vision, ..ClipConfig::default() };
    let model = config.init(&mut Init::new(4, &device())).unwrap();
    (config, model)
}

fn vit(change: impl FnOnce(&mut VitConfig)) -> (VitConfig, Vit) {
    let mut config = VitConfig {
        image_size: 16,
        patch_size: 8,
        channels: 8,
        mlp_channels: 16,
        layers: 1,
        heads: 2,
        labels: 3,
        norm_eps: 1e-6,
        ..VitConfig::default()
    };
    change(&mut config);
    let model = config.init(&mut Init::new(5, &device())).unwrap();
    (config, model)
}

fn scheduler() -> Value {
    let mut scheduler = (Facts::of(None).scheduler)();
    scheduler["prediction_type"] = "v_prediction".into();
    scheduler
}

/// Checks that a component has the very parameters of a module.
fn assert_same<M: Module>(checkpoint: &Checkpoint, component: Component, module: &M) {
    let source = checkpoint.component(component).unwrap();
    assert!(source.missing.is_empty() && source.unused.is_empty(), "{component}");
    let parameters = state::collect(module);
    assert_eq!(source.entries().len(), parameters.len(), "{component}");
    for parameter in parameters {
        let tensor = source.tensor(&parameter.name).unwrap();
        assert!(tensor.to_f32_vec().unwrap() == parameter.values, "{component} {}", parameter.name);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut list: Vec<_> = list.collect();
    list.sort();
    list
}

fn whole(options: TokenizerOptions) -> Export<'static> {
    let ((unet_config, unet), (vae_config, vae), (text_config, text)) = (unet(), vae(), text());
    Export::pipeline(None)
        .part(Part::module(Component::Unet, unet_config.to_diffusers().unwrap(), &unet))
        .part(Part::module(Component::Vae, vae_config.to_diffusers(), &vae))
        .part(Part::module(Component::TextEncoder, text_config.to_transformers().unwrap(), &text))
        .tokenizer(Component::TextEncoder, options, 12)
        .unwrap()
        .scheduler(&scheduler())
}

#[test]
fn live_modules_become_a_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let written = whole(TokenizerOptions::TRANSFORMERS_EXCLAMATION).write(&out, Placement::New).unwrap();
    assert!(written.whole_pipeline && written.notes.is_empty(), "{written:?}");
    assert_eq!(names(&out), ["model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]);
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.layout(), Layout::DiffusersPipeline);
    // Its transformers' projections are linear layers, and it predicts the velocity.
    assert_eq!((checkpoint.family(), checkpoint.prediction()), (Some(Family::Sd2V), Some(Prediction::V)));
    assert_eq!(Report::of(&checkpoint, false).problems, Vec::<String>::new());
    assert_eq!(checkpoint.notes(), Vec::<String>::new());
    assert_same(&checkpoint, Component::Unet, &unet().1);
    assert_same(&checkpoint, Component::Vae, &vae().1);
    assert_same(&checkpoint, Component::TextEncoder, &text().1);
    let tokenizer = checkpoint.tokenizer(Component::TextEncoder).unwrap();
    assert_eq!((tokenizer.context_length(), tokenizer.options()), (12, TokenizerOptions::TRANSFORMERS_EXCLAMATION));
    let text_config = &checkpoint.component(Component::TextEncoder).unwrap().config;
    let ids = ["bos_token_id", "eos_token_id", "pad_token_id"].map(|field| text_config[field].as_u64());
    assert_eq!(ids, [Some(49_406), Some(49_407), Some(0)]);
    let device = device();
    let loader = Loader { checkpoint: &checkpoint, device: &device, precision: WeightPrecision::F32, adapters: None };
    assert_eq!(loader.unet().unwrap().0, unet().0);
    assert_eq!(loader.autoencoder().unwrap().0, vae().0);
    // Conversion writes with the same writer.
    let copy = folder.path().join("copy");
    let done = convert(&checkpoint, &copy, Target::Diffusers, &ConvertOptions::default()).unwrap();
    assert_eq!((done.components.len(), done.notes.len(), done.bytes), (3, 0, written.bytes));
    for file in
        ["model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"]
    {
        assert!(fs::read(out.join(file)).unwrap() == fs::read(copy.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn modules_and_parts_of_other_checkpoints_are_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    whole(TokenizerOptions::TRANSFORMERS).write(&first, Placement::New).unwrap();
    let given = Checkpoint::open(&first).unwrap();
    let (vae, text) = (given.component(Component::Vae).unwrap(), given.component(Component::TextEncoder).unwrap());
    let tokenizer = given
        .files()
        .iter()
        .filter(|(name, _)| name.starts_with("tokenizer/"))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect();
    let (config, _) = unet();
    let trained = config.init(&mut Init::new(9, &device())).unwrap();
    let out = folder.path().join("out");
    let written = Export::pipeline(given.family())
        .part(Part::module(Component::Unet, config.to_diffusers().unwrap(), &trained))
        .part(Part::source(&vae))
        .part(Part::source(&text))
        .files(&tokenizer)
        .scheduler(&scheduler())
        .dtype(Some(Dtype::BF16))
        .write(&out, Placement::New)
        .unwrap();
    assert!(written.whole_pipeline);
    let checkpoint = Checkpoint::open(&out).unwrap();
    for component in checkpoint.components() {
        let source = checkpoint.component(component).unwrap();
        assert!(source.entries().iter().all(|tensor| tensor.dtype == Dtype::BF16), "{component}");
    }
    let tokenizer = checkpoint.tokenizer(Component::TextEncoder).unwrap();
    assert_eq!(tokenizer.options(), TokenizerOptions::TRANSFORMERS);
}

#[test]
fn a_unet_alone_is_a_component_folder_that_opens() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (config, model) = unet();
    let export = || {
        Export::pipeline(None)
            .part(Part::module(Component::Unet, config.to_diffusers().unwrap(), &model))
            .scheduler(&scheduler())
    };
    let written = export().write(&run.join("model"), Placement::New).unwrap();
    assert!(!written.whole_pipeline);
    assert!(written.notes[0].contains("no vae, text_encoder"), "{:?}", written.notes);
    assert_eq!(names(&run.join("model")), ["scheduler", "unet"]);
    // The run's folder opens as its model; one that has gone on behind the end that its model is of does not.
    fs::write(run.join("recipe.toml"), "").unwrap();
    fs::create_dir_all(run.join("checkpoints/checkpoint-000000000672")).unwrap();
    let refusal = Checkpoint::open(&run).unwrap_err().to_string();
    let (former, way) = (run.join("model"), format!("`calotype export {} --out FOLDER`", run.display()));
    for part in ["not finished, with 672 samples saved", "of an earlier end", former.to_str().unwrap(), &way] {
        assert!(refusal.contains(part), "`{part}` is not in {refusal}");
    }
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    fs::write(run.join("result.json"), "{}").unwrap();
    for path in [run.join("model"), run.clone()] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!((checkpoint.components(), checkpoint.prediction()), (vec![Component::Unet], Some(Prediction::V)));
        assert!(checkpoint.notes()[0].contains("no model_index.json"), "{:?}", checkpoint.notes());
        assert_same(&checkpoint, Component::Unet, &model);
    }
    // Into a folder with other things, as the root of several runs.
    fs::create_dir(run.join("unet")).unwrap();
    fs::write(run.join("unet/old"), "").unwrap();
    export().write(&run, Placement::Into).unwrap();
    assert_eq!(names(&run), ["model", "recipe.toml", "result.json", "scheduler", "unet"]);
    assert_eq!(names(&run.join("unet")), ["config.json", "diffusion_pytorch_model.safetensors"]);
}

#[test]
fn clip_and_vit_folders_say_what_their_inputs_are() {
    let folder = tempfile::tempdir().unwrap();
    let (config, model) = clip();
    let path = folder.path().join("clip");
    let processor =
        ImageProcessor { mean: [0.5; 3], std: [0.5; 3], filter: Filter::Lanczos, ..ImageProcessor::clip(16) };
    Export::model(Part::module(Component::Clip, config.to_transformers().unwrap(), &model))
        .tokenizer(Component::Clip, TokenizerOptions::TRANSFORMERS, 12)
        .unwrap()
        .image_processor(&processor)
        .write(&path, Placement::New)
        .unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_same(&checkpoint, Component::Clip, &model);
    assert_eq!(checkpoint.image_processor().unwrap(), Some(processor));
    for component in [Component::Clip, Component::TextEncoder] {
        assert!(checkpoint.tokenizer_files(component).is_some());
        assert_eq!(checkpoint.tokenizer(component).unwrap().context_length(), 12);
    }
    assert_eq!(checkpoint.component(Component::Clip).unwrap().tensor("logit_scale").unwrap().shape, [0usize; 0]);
    let device = device();
    let loader = Loader { checkpoint: &checkpoint, device: &device, precision: WeightPrecision::F32, adapters: None };
    let (read, loaded) = loader.clip().unwrap();
    assert_eq!((read.projection, read.text), (6, text_config()));
    assert!(state::collect(&loaded) == state::collect(&model));
    // Conversion carries the files of a model's own folder along.
    let copy = folder.path().join("copy");
    convert(&checkpoint, &copy, Target::Diffusers, &ConvertOptions::default()).unwrap();
    assert_eq!(names(&copy), names(&path));

    let (config, model) = vit(|_| {});
    let path = folder.path().join("vit");
    Export::model(Part::module(Component::Classifier, config.to_transformers().unwrap(), &model))
        .image_processor(&ImageProcessor::vit(16))
        .write(&path, Placement::New)
        .unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_same(&checkpoint, Component::Classifier, &model);
    assert_eq!(checkpoint.image_processor().unwrap(), Some(ImageProcessor::vit(16)));
    fs::write(path.join(ImageProcessor::FILE), r#"{"resample": 17}"#).unwrap();
    let error = Checkpoint::open(&path).unwrap().image_processor().unwrap_err().to_string();
    assert!(error.contains("preprocessor_config.json") && error.contains("`resample`"), "{error}");
}

#[test]
fn what_a_library_would_not_load_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = |component, config: Value, module: &UNet| {
        let error = Export::model(Part::module(component, config, module)).write(&out, Placement::New).unwrap_err();
        assert!(!out.exists() && names(folder.path()).is_empty());
        error
    };
    let (config, model) = unet();
    let wider = UNetConfig { context_channels: 16, ..config.clone() };
    let error = refused(Component::Unet, wider.to_diffusers().unwrap(), &model);
    assert!(matches!(error, LayoutError::Shapes { .. }) && error.to_string().contains("attn2.to_k"), "{error}");
    let deeper = UNetConfig { layers_per_block: 2, ..config.clone() };
    assert!(matches!(
        refused(Component::Unet, deeper.to_diffusers().unwrap(), &model),
        LayoutError::Missing { .. } | LayoutError::Shapes { .. }
    ));
    let mut groups = config.to_diffusers().unwrap();
    groups["transformer_norm_num_groups"] = 4.into();
    let error = refused(Component::Unet, groups, &model).to_string();
    assert!(error.contains("`transformer_norm_groups` = 4 beside norm_groups = 8"), "{error}");

    let (config, model) = vae();
    let unscaled = AutoencoderConfig { scaling_factor: None, ..config };
    let part = Part::module(Component::Vae, unscaled.to_diffusers(), &model);
    let error = Export::model(part).write(&out, Placement::New).unwrap_err().to_string();
    assert!(error.contains("scaling_factor"), "{error}");

    let (config, model) = vit(|config| (config.class_tokens, config.pooling) = (2, true));
    assert!(config.to_transformers().is_err());
    // Calotype's own layout can say it.
    let json = json!({
        "model_type": "vit", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8, "num_labels": 3, "class_tokens": 2, "add_pooling_layer": true,
    });
    let keys = component_keys(Component::Classifier, &json).unwrap();
    let found: Vec<_> = state::layout(&model).into_iter().collect();
    assert_eq!(keys.into_iter().map(|spec| (spec.name, spec.shape)).collect::<Vec<_>>(), found);
    let part = Part::module(Component::Classifier, json, &model);
    let error = Export::model(part).write(&out, Placement::New).unwrap_err().to_string();
    assert!(error.contains("class_tokens"), "{error}");
}

#[test]
fn a_text_encoder_can_end_before_its_last_layers() {
    let folder = tempfile::tempdir().unwrap();
    let config = TextEncoderConfig { text: TextConfig { layers: 3, ..text_config() }, projection: None };
    let model = config.init(&mut Init::new(6, &device())).unwrap();
    let part = || Part::module(Component::TextEncoder, config.to_transformers().unwrap(), &model);
    let out = folder.path().join("text");
    Export::model(part().without_last_layers(1).unwrap()).write(&out, Placement::New).unwrap();
    let source = Checkpoint::open(&out).unwrap().component(Component::TextEncoder).unwrap();
    assert_eq!(source.config["num_hidden_layers"], 2);
    assert_eq!(source.entries().len(), state::layout(&model).len() - 16);
    let error = part().without_last_layers(3).unwrap_err().to_string();
    assert!(error.contains("num_hidden_layers"), "{error}");
}

/// transformers 5 saves `tokenizer.json` alone.
#[test]
fn a_tokenizer_of_one_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    whole(TokenizerOptions::TRANSFORMERS).write(&out, Placement::New).unwrap();
    let old = Checkpoint::open(&out).unwrap().tokenizer(Component::TextEncoder).unwrap();
    let text = |name: &str| fs::read_to_string(out.join("tokenizer").join(name)).unwrap();
    let vocab: Value = serde_json::from_str(&text("vocab.json")).unwrap();
    let merges: Vec<Vec<String>> =
        text("merges.txt").lines().skip(1).map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    let file = json!({ "model": { "type": "BPE", "vocab": vocab, "merges": merges } });
    fs::write(out.join("tokenizer/tokenizer.json"), file.to_string()).unwrap();
    for name in ["vocab.json", "merges.txt", "special_tokens_map.json"] {
        fs::remove_file(out.join("tokenizer").join(name)).unwrap();
    }
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert!(checkpoint.tokenizer_files(Component::TextEncoder).unwrap().vocab.is_none());
    let new = checkpoint.tokenizer(Component::TextEncoder).unwrap();
    assert_eq!((new.context_length(), new.options()), (old.context_length(), old.options()));
    for prompt in ["", "a photo of a cat", "donaudampfschifffahrt 12!"] {
        assert_eq!(new.encode(prompt), old.encode(prompt));
    }
}

#[test]
fn hostile_configurations_are_refused_before_anything_is_made() {
    for (component, config, field) in [
        (Component::Clip, json!({ "text_config": { "num_hidden_layers": 4_000_000_000u64 } }), "num_hidden_layers"),
        (Component::Clip, json!({ "vision_config": { "hidden_size": 1u64 << 40 } }), "hidden_size"),
        (Component::Classifier, json!({ "num_hidden_layers": 100_000 }), "num_hidden_layers"),
        (Component::Classifier, json!({ "image_size": [1u64 << 30, 1u64 << 30] }), "image_size"),
        (Component::TextEncoder, json!({ "vocab_size": 1u64 << 31 }), "vocab_size"),
        (Component::Unet, json!({ "layers_per_block": 1_000_000_000 }), "layers_per_block"),
        (
            Component::Unet,
            json!({ "transformer_layers_per_block": [1, 1, 1, 900_000_000] }),
            "transformer_layers_per_block",
        ),
        (Component::Unet, json!({ "block_out_channels": vec![32; 1000] }), "block_out_channels"),
        (Component::Vae, json!({ "latent_channels": 1u64 << 62 }), "latent_channels"),
        (Component::Vae, json!([]), "not a JSON object"),
    ] {
        let error = component_keys(component, &config).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}
