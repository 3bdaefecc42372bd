//! Recognition of the layout that a file's keys are of, and of its components.

use crate::infer::{self, Seen, Shapes};
use crate::kinds::{Component, Layout};
use crate::map::KeyMap;
use crate::rules::{self, Departures, NemoClip, Structure};
use serde_json::Value;

/// A component found in a file.
pub(crate) struct Found {
    pub(crate) component: Component,
    /// Given by the folder or the file's metadata, or else inferred from shapes.
    pub(crate) config: Value,
    /// True if the configuration is inferred.
    pub(crate) inferred: bool,
    pub(crate) map: KeyMap,
}

/// A file's layout and components.
pub(crate) struct Recognised {
    pub(crate) layout: Layout,
    pub(crate) found: Vec<Found>,
    /// Assumptions that the contents do not confirm, in full sentences.
    pub(crate) notes: Vec<String>,
}

/// Configurations that are known beforehand, by component; they go before what shapes say.
pub(crate) type Known<'a> = &'a dyn Fn(Component) -> Option<Value>;

/// Recognises the keys of one file; `None` if they are of no known layout.
pub(crate) fn file(shapes: &Shapes, known: Known<'_>, averaged: bool) -> Option<Recognised> {
    let steps: [&dyn Fn() -> Option<Recognised>; 10] = [
        &|| ldm(shapes, known, averaged),
        &|| open_clip(shapes, known),
        &|| nemo_clip(shapes, known),
        &|| nemo_vit(shapes, known),
        &|| facebook_dinov2(shapes, known),
        &|| timm(shapes, known),
        &|| inception(shapes),
        &|| keras_inception(shapes, known),
        &|| efficientnet_lite(shapes, known),
        &|| canonical(shapes, known),
    ];
    steps.iter().find_map(|step| step())
}

/// The text before `end` in the shortest key that ends so.
fn prefix_of<'s>(shapes: &'s Shapes, end: &str) -> Option<&'s str> {
    shapes.keys().filter_map(|key| key.strip_suffix(end)).min_by_key(|prefix| (prefix.len(), *prefix))
}

fn recognised(layout: Layout, component: Component, config: Configured, map: KeyMap) -> Option<Recognised> {
    let (config, inferred) = config?;
    Some(Recognised { layout, found: vec![Found { component, config, inferred, map }], notes: Vec::new() })
}

/// A configuration, and whether it is inferred.
type Configured = Option<(Value, bool)>;

/// The configuration that is known, or else what shapes say.
fn configured(known: Option<Value>, inferred: impl FnOnce() -> Option<Value>) -> Configured {
    known.map(|config| (config, false)).or_else(|| Some((inferred()?, true)))
}

// The LDM code's files ---------------------------------------------------------------------------------------------

fn ldm(shapes: &Shapes, known: Known<'_>, averaged: bool) -> Option<Recognised> {
    let unet_prefix = ldm_unet_prefix(shapes);
    let vae_end = "encoder.down.0.block.0.norm1.weight";
    let vae_prefix = match unet_prefix {
        Some(_) => {
            prefix_of(shapes, &format!("{}{vae_end}", rules::LDM_VAE)).map(|root| format!("{root}{}", rules::LDM_VAE))
        }
        None => prefix_of(shapes, vae_end).map(str::to_owned),
    };
    if unet_prefix.is_none() && vae_prefix.is_none() {
        return None;
    }
    let mut found = Vec::new();
    let mut notes = Vec::new();
    let mut layout = Layout::SingleFile;
    if let Some(prefix) = unet_prefix {
        let (mut unet, departures) = ldm_unet(shapes, known, prefix, averaged)?;
        if unet.inferred {
            require_sizes(shapes, &mut unet.config);
        }
        if departures != Departures::default() || prefix.contains("model.model.") || prefix.contains("_orig_mod.") {
            layout = Layout::NemoSingleFile;
        }
        if known(Component::Unet).is_none() {
            notes.push(heads_note(&unet.config));
        }
        found.push(unet);
    }
    // NeMo wraps the whole of LDM's model once more.
    let root = if unet_prefix.is_some_and(|prefix| prefix.starts_with("model.model.")) { "model." } else { "" };
    let encoders = text_encoders(shapes, known, root, &mut notes);
    let sdxl = found.iter().any(|part| part.config["addition_embed_type"] == "text_time");
    if let Some(prefix) = vae_prefix {
        found.extend(ldm_vae(shapes, known, &prefix, sdxl));
    }
    found.extend(encoders);
    Some(Recognised { layout, found, notes })
}

/// The prefix of a UNet, and of none of the copies that ControlNets keep of its encoder.
fn ldm_unet_prefix(shapes: &Shapes) -> Option<&str> {
    let prefixes = shapes.keys().filter_map(|key| key.strip_suffix("input_blocks.0.0.weight"));
    prefixes.filter(|prefix| !prefix.ends_with("control_model.")).min_by_key(|prefix| (prefix.len(), *prefix))
}

/// The tensor without which a component of a file in the LDM code's layout is not recognised, where others of it are there.
pub(crate) fn lacking(shapes: &Shapes, component: Component) -> Option<String> {
    const MOST_BLOCKS: usize = 64;
    let (root, told_by): (_, &[&str]) = match component {
        Component::Unet => (
            "model.diffusion_model.",
            &[
                "input_blocks.0.0.weight",
                "time_embed.0.weight",
                "middle_block.1.proj_in.weight",
                "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
                "out.2.weight",
            ],
        ),
        Component::Vae => (rules::LDM_VAE, &["encoder.down.0.block.0.norm1.weight"]),
        _ => return None,
    };
    let begins = |part: &str| {
        let part = format!("{root}{part}");
        shapes.keys().any(|key| key.starts_with(&part))
    };
    // Without the norm, the layer behind it has the number before its own: NeMo fuses both.
    let is_there = |key: &str| {
        let fused = key.strip_suffix("2.weight").map(|layers| format!("{root}{layers}1.weight"));
        shapes.contains_key(&format!("{root}{key}")) || fused.is_some_and(|key| shapes.contains_key(&key))
    };
    let blocks = (1..MOST_BLOCKS).map(|block| format!("input_blocks.{block}."));
    let resnets = blocks
        .take_while(|block| begins(block))
        .filter(|block| !begins(&format!("{block}0.op.")))
        .map(|block| format!("{block}0.in_layers.2.weight"));
    let mut asked = told_by.iter().map(|key| (*key).to_owned()).chain(resnets);
    asked.find(|key| begins("") && !is_there(key)).map(|key| format!("{root}{key}"))
}

fn ldm_unet(shapes: &Shapes, known: Known<'_>, prefix: &str, averaged: bool) -> Option<(Found, Departures)> {
    let has = |rest: &str| shapes.contains_key(&format!("{prefix}{rest}"));
    let structure = infer::ldm_unet_structure(shapes, prefix)?;
    let departures = Departures {
        fused_resnets: has("input_blocks.1.0.in_layers.1.weight"),
        fused_out: has("out.1.weight"),
        inner_norms: has("middle_block.1.transformer_blocks.0.attn1.norm.weight"),
    };
    let map = rules::ldm_unet(&structure, prefix, departures);
    let (config, inferred) =
        configured(known(Component::Unet), || infer::unet(&Seen { shapes, map: &map }, &structure))?;
    let map = if averaged { map.averaged() } else { map };
    Some((Found { component: Component::Unet, config, inferred, map }, departures))
}

/// A UNet beside SDXL's text encoders takes sizes: that the tensors for them are absent is a fault, not another model.
fn require_sizes(shapes: &Shapes, unet: &mut Value) {
    let xl = shapes.keys().any(|key| key.contains("conditioner.embedders."));
    if xl && unet["addition_embed_type"].is_null() {
        unet["addition_embed_type"] = "text_time".into();
        unet["addition_time_embed_dim"] = 256.into();
        unet["projection_class_embeddings_input_dim"] = (1280 + 6 * 256).into();
    }
}

fn heads_note(unet: &Value) -> String {
    let heads = if unet["attention_head_dim"].is_array() { "heads of 64 channels" } else { "8 heads in every level" };
    let groups = &unet["norm_num_groups"];
    format!(
        "weights do not show attention heads and norm groups: {heads} and {groups} groups, as published, are assumed"
    )
}

fn ldm_vae(shapes: &Shapes, known: Known<'_>, prefix: &str, sdxl: bool) -> Option<Found> {
    let levels =
        infer::vae_levels(shapes, ["encoder.down.", "decoder.up."].map(|side| format!("{prefix}{side}")), "block");
    let map = rules::ldm_vae(levels, prefix, &|key| shapes.contains_key(key));
    let (config, inferred) =
        configured(known(Component::Vae), || infer::vae(&Seen { shapes, map: &map }, levels, sdxl))?;
    Some(Found { component: Component::Vae, config, inferred, map })
}

/// Text encoders in the places where LDM's (and its SDXL successor's) code keeps them.
fn text_encoders(shapes: &Shapes, known: Known<'_>, root: &str, notes: &mut Vec<String>) -> Vec<Found> {
    let conditioner = |slot: usize| format!("{root}conditioner.embedders.{slot}.");
    let slot = |prefix: &str| text_style(shapes, prefix).map(|(map, activation)| (prefix.to_owned(), map, activation));
    let mut list = Vec::new();
    if let Some((prefix, map, activation)) = slot(&format!("{root}cond_stage_model.")) {
        let config = || single_text_config(shapes, &map, &prefix, activation, notes);
        if let Some((config, inferred)) = configured(known(Component::TextEncoder), config) {
            list.push(Found { component: Component::TextEncoder, config, inferred, map });
        }
    }
    let (first, second) = (slot(&conditioner(0)), slot(&conditioner(1)));
    // The refiner has the second encoder only, in the first place.
    let pairs = match (first, second) {
        (Some(first), None) => vec![(Component::TextEncoder2, first)],
        (first, second) => [(Component::TextEncoder, first), (Component::TextEncoder2, second)]
            .into_iter()
            .filter_map(|(component, slot)| Some((component, slot?)))
            .collect(),
    };
    for (component, (_, map, activation)) in pairs {
        let inferred = || {
            let mut config = infer::clip_text(&Seen { shapes, map: &map }, activation)?;
            // The class says whether there is a projection, not its presence.
            config["architectures"] = serde_json::json!([component.class()]);
            Some(config)
        };
        if let Some((config, inferred)) = configured(known(component), inferred) {
            list.push(Found { component, config, inferred, map });
        }
    }
    list
}

/// The key map of a text encoder below a prefix, and its activation: OpenAI's model, which alone is kept under
/// transformers' names, was trained with the quick approximation of GELU.
fn text_style(shapes: &Shapes, prefix: &str) -> Option<(KeyMap, &'static str)> {
    let has = |rest: &str| shapes.contains_key(&format!("{prefix}{rest}"));
    if has("transformer.text_model.embeddings.token_embedding.weight") {
        return Some((rules::prefixed(&format!("{prefix}transformer.")), "quick_gelu"));
    }
    if has("transformer.embeddings.token_embedding.weight") {
        return Some((rules::flat_text(&format!("{prefix}transformer.")), "quick_gelu"));
    }
    if has("model.token_embedding.weight") {
        return Some((rules::open_clip_text(&format!("{prefix}model.")), "gelu"));
    }
    if has("model.language_model.embedding.word_embeddings.weight") {
        return Some((rules::nemo_clip_text(&format!("{prefix}model.")), "gelu"));
    }
    None
}

/// Blocks of OpenCLIP ViT-H/14's text tower. Stable Diffusion 2 takes the states before the last one.
const VIT_H_TEXT_BLOCKS: u64 = 24;

/// The configuration of the only text encoder of a file: without projection, and for Stable Diffusion 2 without the last
/// block.
fn single_text_config(
    shapes: &Shapes,
    map: &KeyMap,
    prefix: &str,
    activation: &str,
    notes: &mut Vec<String>,
) -> Option<Value> {
    let mut config = infer::clip_text(&Seen { shapes, map }, activation)?;
    config["architectures"] = serde_json::json!(["CLIPTextModel"]);
    if map.prefix() == format!("{prefix}model.") && config["num_hidden_layers"] == VIT_H_TEXT_BLOCKS {
        config["num_hidden_layers"] = (VIT_H_TEXT_BLOCKS - 1).into();
        notes.push("the text encoder's last block is left out: Stable Diffusion 2 takes the states before it".into());
    }
    Some(config)
}

// CLIP ---------------------------------------------------------------------------------------------------------------

fn open_clip(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    let prefix = prefix_of(shapes, "visual.conv1.weight")?;
    let text = if shapes.contains_key(&format!("{prefix}text.token_embedding.weight")) { "text." } else { "" };
    let map = rules::open_clip(text, prefix);
    // Only OpenAI's own archives store their sizes as tensors.
    let openai = shapes.contains_key("input_resolution");
    let activation = if openai { "quick_gelu" } else { "gelu" };
    let mut notes = Vec::new();
    let inferred = || {
        let source = if openai { "as OpenAI's archives have it" } else { "open_clip's default" };
        notes.push(format!("weights do not show the activation: {activation}, {source}, is assumed"));
        infer::clip(&Seen { shapes, map: &map }, activation)
    };
    let config = configured(known(Component::Clip), inferred);
    Some(Recognised { notes, ..recognised(Layout::OpenClip, Component::Clip, config, map)? })
}

fn nemo_clip(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    let conv = prefix_of(shapes, "vision_encoder.backbone.conv1.weight");
    let prefix = prefix_of(shapes, "vision_encoder.backbone.linear_encoder.weight").or(conv)?;
    let has = |rest: &str| shapes.contains_key(&format!("{prefix}{rest}"));
    let variant = NemoClip {
        conv_patches: !has("vision_encoder.backbone.linear_encoder.weight"),
        vision_table: has("vision_encoder.backbone.position_embeddings.weight"),
        text_table: has("text_encoder.language_model.embedding.position_embeddings.weight"),
    };
    let map = rules::nemo_clip(prefix, variant);
    let inferred = || infer::clip(&Seen { shapes, map: &map }, "gelu");
    let config = configured(known(Component::Clip), inferred);
    let notes =
        vec!["weights do not show the activation: gelu is assumed (NeMo's ViT-L/14 has approx-gelu)".to_owned()];
    Some(Recognised { notes, ..recognised(Layout::NemoClip, Component::Clip, config, map)? })
}

// Classifiers --------------------------------------------------------------------------------------------------------

fn nemo_vit(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    let prefix = prefix_of(shapes, "backbone.linear_encoder.weight")?;
    let has = |rest: &str| shapes.contains_key(&format!("{prefix}{rest}"));
    let map = rules::nemo_vit(prefix, has("head.dense_in.weight"), has("backbone.position_embeddings.weight"));
    let inferred = || infer::vit(&Seen { shapes, map: &map }, 1e-5);
    let config = configured(known(Component::Classifier), inferred);
    recognised(Layout::NemoVit, Component::Classifier, config, map)
}

fn timm(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    let has = |key: &str| shapes.contains_key(key);
    if !has("blocks.0.attn.qkv.weight") || !has("patch_embed.proj.weight") {
        return None;
    }
    let map = rules::timm(has("fc_norm.weight"));
    let inferred = || {
        let mut config = infer::vit(&Seen { shapes, map: &map }, 1e-6)?;
        if has("fc_norm.weight") {
            config["reads"] = "patches".into();
        }
        Some(config)
    };
    let config = configured(known(Component::Classifier), inferred);
    recognised(Layout::Timm, Component::Classifier, config, map)
}

/// DINOv2 by its authors' keys. timm has the same but for the token of hidden patches, and brings positions to other grids in
/// another way.
fn facebook_dinov2(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    let has = |key: &str| shapes.contains_key(key);
    if !has("blocks.0.ls1.gamma") || !has("patch_embed.proj.weight") || !has("mask_token") {
        return None;
    }
    let map = rules::facebook_dinov2();
    let inferred = || {
        let mut config = infer::dinov2(&Seen { shapes, map: &map })?;
        // With registers, theirs is transformers' way, too.
        if config["num_register_tokens"].is_null() {
            config["position_interpolation"] = "offset".into();
        }
        Some(config)
    };
    let config = configured(known(Component::Dinov2), inferred);
    recognised(Layout::FacebookDinov2, Component::Dinov2, config, map)
}

fn keras_inception(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    // Only this network has so many convolutions, of which the last one is this.
    shapes.get("conv2d_94/kernel").filter(|shape| shape[..] == [1, 1, 2048, 192])?;
    let head = rules::KERAS_HEADS.into_iter().find(|head| shapes.contains_key(&format!("{head}/kernel")))?;
    let map = rules::keras_inception(head);
    let inferred = || infer::keras_inception(&Seen { shapes, map: &map });
    let config = configured(known(Component::KerasInception), inferred);
    recognised(Layout::Keras, Component::KerasInception, config, map)
}

fn efficientnet_lite(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    let has = |key: &str| shapes.contains_key(key);
    // EfficientNet itself has squeeze-and-excitation besides.
    if !has("_conv_stem.weight") || !has("_conv_head.weight") || has("_blocks.0._se_reduce.weight") {
        return None;
    }
    let map = KeyMap::identity();
    let inferred = || infer::efficientnet_lite(&Seen { shapes, map: &map });
    let config = configured(known(Component::EfficientNetLite), inferred);
    recognised(Layout::EfficientNetLite, Component::EfficientNetLite, config, KeyMap::identity())
}

fn inception(shapes: &Shapes) -> Option<Recognised> {
    shapes.contains_key("Mixed_7c.branch_pool.conv.weight").then_some(())?;
    let config = serde_json::json!({ "model_type": "inception", "num_classes": 1008 });
    recognised(Layout::PytorchFid, Component::Inception, Some((config, true)), KeyMap::identity())
}

// Canonical keys -----------------------------------------------------------------------------------------------------

/// The map of a file whose keys are diffusers' or transformers', in whichever of their spellings.
fn canonical_map(shapes: &Shapes, component: Component) -> KeyMap {
    let has = |key: &str| shapes.contains_key(key);
    match component {
        Component::Vae if has("encoder.mid_block.attentions.0.query.weight") => rules::old_diffusers_vae(),
        Component::TextEncoder | Component::TextEncoder2 if has("embeddings.token_embedding.weight") => {
            rules::flat_text("")
        }
        Component::Classifier if has("vit.layers.0.layernorm_before.weight") => rules::new_vit(),
        Component::Dinov2 if has("dinov2.embeddings.cls_token") => rules::prefixed("dinov2."),
        // The configuration's folder may hold its authors' weights.
        Component::Dinov2 if has("blocks.0.ls1.gamma") => rules::facebook_dinov2(),
        Component::KerasInception => {
            let head = rules::KERAS_HEADS.into_iter().find(|head| has(&format!("{head}/kernel")));
            head.map_or_else(KeyMap::identity, rules::keras_inception)
        }
        _ => KeyMap::identity(),
    }
}

fn canonical(shapes: &Shapes, known: Known<'_>) -> Option<Recognised> {
    let has = |key: &str| shapes.contains_key(key);
    let text = has("text_model.embeddings.token_embedding.weight");
    let vision = has("vision_model.embeddings.patch_embedding.weight");
    let component = match () {
        () if has("down_blocks.0.resnets.0.norm1.weight") && has("time_embedding.linear_1.weight") => Component::Unet,
        () if has("encoder.down_blocks.0.resnets.0.norm1.weight") => Component::Vae,
        () if text && vision => Component::Clip,
        () if text || has("embeddings.token_embedding.weight") => Component::TextEncoder,
        () if vision => Component::ImageEncoder,
        () if has("vit.embeddings.position_embeddings") => Component::Classifier,
        () if ["", "dinov2."].iter().any(|prefix| has(&format!("{prefix}encoder.layer.0.layer_scale1.lambda1"))) => {
            Component::Dinov2
        }
        () => return None,
    };
    let map = canonical_map(shapes, component);
    let mut notes = Vec::new();
    let config = configured(known(component), || {
        let (config, note) = canonical_config(shapes, component, &map)?;
        notes.push(note);
        Some(config)
    });
    Some(Recognised { notes, ..recognised(Layout::ModelFile, component, config, map)? })
}

/// A configuration for canonical keys without one, and what had to be assumed.
fn canonical_config(shapes: &Shapes, component: Component, map: &KeyMap) -> Option<(Value, String)> {
    let seen = Seen { shapes, map };
    let activation = |config: Option<Value>| {
        Some((config?, "weights do not show the activation: quick_gelu, transformers' default, is assumed".to_owned()))
    };
    match component {
        Component::Unet => {
            let structure: Structure = infer::unet_structure(shapes)?;
            let config = infer::unet(&seen, &structure)?;
            let note = heads_note(&config);
            Some((config, note))
        }
        Component::Vae => {
            let levels = infer::vae_levels(
                shapes,
                ["encoder.down_blocks.".to_owned(), "decoder.up_blocks.".to_owned()],
                "resnets",
            );
            let config = infer::vae(&seen, levels, false)?;
            Some((
                config,
                "weights do not show the scale of the latents: 0.18215 is assumed (SDXL has 0.13025)".to_owned(),
            ))
        }
        Component::Clip => activation(infer::clip(&seen, "quick_gelu")),
        Component::ImageEncoder => activation(infer::clip_vision(&seen, "quick_gelu")),
        Component::Classifier => {
            let config = infer::vit(&seen, 1e-12)?;
            Some((
                config,
                "weights do not show the norms' epsilon: 1e-12, transformers' default, is assumed".to_owned(),
            ))
        }
        Component::TextEncoder | Component::TextEncoder2 => activation(infer::clip_text(&seen, "quick_gelu")),
        Component::Dinov2 => {
            let config = infer::dinov2(&seen)?;
            Some((
                config,
                "weights do not show attention heads: heads of 64 channels, as published, are assumed".to_owned(),
            ))
        }
        Component::Inception | Component::KerasInception | Component::EfficientNetLite => None,
    }
}

/// The component that a model folder's configuration is of.
pub(crate) fn component_of(config: &Value) -> Option<Component> {
    if let Some(class) = config["_class_name"].as_str() {
        return match class {
            "UNet2DConditionModel" => Some(Component::Unet),
            "AutoencoderKL" => Some(Component::Vae),
            _ => None,
        };
    }
    match config["model_type"].as_str()? {
        "clip_text_model" => Some(Component::TextEncoder),
        "clip_vision_model" => Some(Component::ImageEncoder),
        "clip" => Some(Component::Clip),
        "vit" | "calotype_vit" => Some(Component::Classifier),
        "inception" => Some(Component::Inception),
        "keras_inception_v3" => Some(Component::KerasInception),
        "dinov2" | "dinov2_with_registers" => Some(Component::Dinov2),
        "efficientnet_lite" => Some(Component::EfficientNetLite),
        _ => None,
    }
}

/// The one component of a model folder whose configuration is known: its map by the keys at hand.
pub(crate) fn model(shapes: &Shapes, component: Component, config: Value) -> Found {
    let map = canonical_map(shapes, component);
    Found { component, config, inferred: false, map }
}
