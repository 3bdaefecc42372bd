//! Configurations out of the tensors' shapes, for layouts that carry none; and what such a guess rests on.

use crate::map::KeyMap;
use crate::rules::Structure;
use calotype_models::EfficientNetLiteConfig;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Names and shapes of everything in a file.
pub(crate) type Shapes = HashMap<String, Vec<usize>>;

/// The canonical tensors of one component as far as a file and a map show them.
pub(crate) struct Seen<'a> {
    pub(crate) shapes: &'a Shapes,
    pub(crate) map: &'a KeyMap,
}

impl Seen<'_> {
    fn shape(&self, canonical: &str) -> Option<Vec<usize>> {
        let place = self.map.place(canonical)?;
        place.form.canonical_shape(self.shapes.get(&place.key)?)
    }

    fn axis(&self, canonical: &str, axis: usize) -> Option<usize> {
        self.shape(canonical)?.get(axis).copied()
    }

    fn has(&self, canonical: &str) -> bool {
        self.shape(canonical).is_some()
    }

    /// The number of modules `name(0)`, `name(1)`, …: one more than the last of which any of the tensors is there. What is
    /// missing of them, or between them, is then a fault and no smaller model.
    fn count(&self, name: impl Fn(usize) -> String, tensors: &[&str]) -> usize {
        let there = |&index: &usize| {
            let module = name(index);
            tensors.iter().any(|tensor| self.has(&format!("{module}.{tensor}")))
        };
        (0..MOST_MODULES).rev().find(there).map_or(0, |last| last + 1)
    }

    /// An axis of the first of some tensors that is there.
    fn first_axis(&self, mut names: impl Iterator<Item = String>, axis: usize) -> Option<usize> {
        names.find_map(|name| self.axis(&name, axis))
    }
}

/// What the latents of Stable Diffusion 1 and 2 are multiplied by.
pub(crate) const SD_SCALE: f64 = 0.18215;
/// The same of Stable Diffusion XL.
pub(crate) const SDXL_SCALE: f64 = 0.13025;

/// More modules in a row than any network has.
const MOST_MODULES: usize = 128;

/// True if there is a key that begins so.
fn any_below(shapes: &Shapes, start: &str) -> bool {
    shapes.keys().any(|key| key.starts_with(start))
}

/// Tensors by which a layer of a text or image tower is seen.
const TOWER_LAYER: &[&str] = &["layer_norm1.weight", "layer_norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight"];

/// Levels and blocks of a UNet by LDM's numbering.
pub(crate) fn ldm_unet_structure(shapes: &Shapes, prefix: &str) -> Option<Structure> {
    let has = |rest: String| any_below(shapes, &format!("{prefix}{rest}"));
    let mut levels: Vec<Vec<bool>> = vec![Vec::new()];
    for index in (1..MOST_MODULES).take_while(|index| has(format!("input_blocks.{index}."))) {
        match has(format!("input_blocks.{index}.0.op.")) {
            true => levels.push(Vec::new()),
            false => levels.last_mut()?.push(has(format!("input_blocks.{index}.1."))),
        }
    }
    // Behind a block without attention, the second place is that of the upsampler.
    let upwards = |index: usize| {
        ["norm.", "proj_in.", "proj_out.", "transformer_blocks."]
            .iter()
            .any(|module| has(format!("output_blocks.{index}.1.{module}")))
    };
    let (last, layers) = (levels.len() - 1, levels.first()?.len() + 1);
    structure_of(&levels, |level| (0..layers).any(|block| upwards((last - level) * layers + block)))
}

/// Levels and blocks of a UNet by diffusers' names.
pub(crate) fn unet_structure(shapes: &Shapes) -> Option<Structure> {
    let has = |start: String| any_below(shapes, &start);
    let mut levels: Vec<Vec<bool>> = Vec::new();
    while levels.len() < MOST_MODULES && has(format!("down_blocks.{}.resnets.", levels.len())) {
        let level = format!("down_blocks.{}", levels.len());
        let blocks = (0..MOST_MODULES).take_while(|block| has(format!("{level}.resnets.{block}.")));
        levels.push(blocks.map(|block| has(format!("{level}.attentions.{block}."))).collect());
    }
    let last = levels.len().checked_sub(1)?;
    structure_of(&levels, |level| has(format!("up_blocks.{}.attentions.", last - level)))
}

/// One structure, if all levels have as many blocks: with attention where any block of a level has it, on the way down or
/// `upwards`. What others lack of it is then a fault and no other model.
fn structure_of(levels: &[Vec<bool>], upwards: impl Fn(usize) -> bool) -> Option<Structure> {
    let layers = levels.first()?.len();
    let even = levels.iter().all(|level| level.len() == layers);
    let attention = |(number, level): (usize, &Vec<bool>)| level.contains(&true) || upwards(number);
    (layers > 0 && even).then(|| Structure { layers, attention: levels.iter().enumerate().map(attention).collect() })
}

/// A UNet's configuration. Heads cannot be seen in the weights: where the transformers' projections are convolutions
/// there are 8 (Stable Diffusion 1), else they have 64 channels (all later ones).
pub(crate) fn unet(seen: &Seen<'_>, structure: &Structure) -> Option<Value> {
    let levels = structure.attention.len();
    let channels: Option<Vec<usize>> =
        (0..levels).map(|level| seen.axis(&format!("down_blocks.{level}.resnets.0.conv1.weight"), 0)).collect();
    let channels = channels?;
    let tensors = ["attn1.to_q.weight", "attn2.to_q.weight", "ff.net.2.weight", "norm1.weight"];
    let depth = |place: &str| seen.count(|block| format!("{place}.transformer_blocks.{block}"), &tensors);
    let middle = depth("mid_block.attentions.0");
    let deepest = |level: usize| {
        let down = (0..structure.layers).map(|block| format!("down_blocks.{level}.attentions.{block}"));
        let up = (0..=structure.layers).map(|block| format!("up_blocks.{}.attentions.{block}", levels - 1 - level));
        down.chain(up).map(|place| depth(&place)).max().unwrap_or(1)
    };
    let mut depths: Vec<usize> =
        (0..levels).map(|level| if structure.attention[level] { deepest(level) } else { 1 }).collect();
    *depths.last_mut()? = middle;
    let used = (0..levels).filter(|&level| structure.attention[level]).map(|level| depths[level]);
    let depths = if used.into_iter().all(|depth| depth == middle) { json!(middle) } else { json!(depths) };
    let linear = seen.shape("mid_block.attentions.0.proj_in.weight")?.len() == 2;
    let heads = if linear { json!(channels.iter().map(|&c| heads(c)).collect::<Vec<_>>()) } else { json!(8) };
    let down = |&attention: &bool| if attention { "CrossAttnDownBlock2D" } else { "DownBlock2D" };
    let up = |&attention: &bool| if attention { "CrossAttnUpBlock2D" } else { "UpBlock2D" };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": seen.axis("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1)?,
        "down_block_types": structure.attention.iter().map(down).collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": seen.axis("conv_in.weight", 1)?,
        "layers_per_block": structure.layers,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": norm_groups(&channels),
        "out_channels": seen.axis("conv_out.weight", 0)?,
        "transformer_layers_per_block": depths,
        "up_block_types": structure.attention.iter().rev().map(up).collect::<Vec<_>>(),
        "use_linear_projection": linear,
    });
    if let Some(added) = seen.axis("add_embedding.linear_1.weight", 1) {
        config["addition_embed_type"] = "text_time".into();
        config["addition_time_embed_dim"] = size_features(added).into();
        config["projection_class_embeddings_input_dim"] = added.into();
    }
    if let Some(told) = seen.axis("time_embedding.cond_proj.weight", 1) {
        config["time_cond_proj_dim"] = told.into();
    }
    Some(config)
}

/// Features of each of the numbers beside the text: 256 in every published model; fewer where a small model's width, which
/// the pooled text is a part of, has no room for five of them, the refiner's.
fn size_features(added: usize) -> usize {
    if added > 5 * 256 { 256 } else { (added.saturating_sub(1) / 6 / 2 * 2).max(2) }
}

/// Heads of 64 channels, where they divide a level's.
fn heads(channels: usize) -> usize {
    if channels.is_multiple_of(64) { (channels / 64).max(1) } else { 1 }
}

/// 32 groups, as every published model has; fewer where a small model's channels ask for it.
fn norm_groups(channels: &[usize]) -> usize {
    let divides = |groups: &usize| channels.iter().all(|channels| channels.is_multiple_of(*groups));
    [32, 16, 8, 4, 2].into_iter().find(divides).unwrap_or(1)
}

/// Levels of an autoencoder, by the keys of its residual blocks below `sides` (`encoder.down.` and `decoder.up.`, or
/// `encoder.down_blocks.` and `decoder.up_blocks.`): what one side lacks, or what is missing between, is a fault.
pub(crate) fn vae_levels(shapes: &Shapes, sides: [String; 2], block: &str) -> usize {
    let there = |level: &usize| sides.iter().any(|side| any_below(shapes, &format!("{side}{level}.{block}.")));
    (0..MOST_MODULES).rev().find(there).map_or(0, |last| last + 1)
}

/// An autoencoder's configuration; the scale of its latents is the family's.
pub(crate) fn vae(seen: &Seen<'_>, levels: usize, sdxl: bool) -> Option<Value> {
    let width = |level| {
        let up = levels - 1 - level;
        let blocks = [format!("encoder.down_blocks.{level}"), format!("decoder.up_blocks.{up}")];
        seen.first_axis(blocks.into_iter().map(|block| format!("{block}.resnets.0.conv1.weight")), 0)
    };
    let channels: Option<Vec<usize>> = (0..levels).map(width).collect();
    let channels = channels?;
    let groups = norm_groups(&channels);
    let latent = seen.axis("decoder.conv_in.weight", 1)?;
    // Every autoencoder of 4 channels has them; those of 16, of Stable Diffusion 3 and Flux, have none.
    let quant = |name: &str| latent == 4 || seen.has(name);
    let resnet = ["norm1.weight", "norm2.weight", "conv1.weight", "conv2.weight"];
    let layers =
        (0..levels).map(|level| seen.count(|block| format!("encoder.down_blocks.{level}.resnets.{block}"), &resnet));
    Some(json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "in_channels": seen.axis("encoder.conv_in.weight", 1)?,
        "latent_channels": latent,
        "layers_per_block": layers.max()?,
        // All published ones that go without are folders with a configuration.
        "mid_block_add_attention": true,
        "norm_num_groups": groups,
        "out_channels": seen.axis("decoder.conv_out.weight", 0)?,
        "sample_size": if sdxl { 1024 } else { 512 },
        "scaling_factor": if sdxl { SDXL_SCALE } else { SD_SCALE },
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "use_post_quant_conv": quant("post_quant_conv.weight"),
        "use_quant_conv": quant("quant_conv.weight"),
    }))
}

/// Channels of one attention head of a CLIP or ViT tower, which the weights do not show: of the published widths.
fn head_width(width: usize, vision: bool) -> usize {
    match width {
        1280 if vision => 80,
        1408 => 88,
        1664 => 104,
        _ => 64.min(width),
    }
}

/// A text tower's `CLIPTextConfig`. Token ids are those of CLIP's vocabulary in the published configurations, with which
/// the end of text is found as the largest id.
pub(crate) fn clip_text(seen: &Seen<'_>, activation: &str) -> Option<Value> {
    let [vocabulary, width] = seen.shape("text_model.embeddings.token_embedding.weight")?[..] else { return None };
    let projection = seen.axis("text_projection.weight", 0);
    let layers = seen.count(|layer| format!("text_model.encoder.layers.{layer}"), TOWER_LAYER);
    Some(json!({
        "architectures": [if projection.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": seen.first_axis((0..layers).map(|layer| format!("text_model.encoder.layers.{layer}.mlp.fc1.weight")), 0)?,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": seen.axis("text_model.embeddings.position_embedding.weight", 0)?,
        "model_type": "clip_text_model",
        "num_attention_heads": (width / head_width(width, false)).max(1),
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection.unwrap_or(width),
        "vocab_size": vocabulary,
    }))
}

/// An image tower's `CLIPVisionConfig`.
pub(crate) fn clip_vision(seen: &Seen<'_>, activation: &str) -> Option<Value> {
    let patch = seen.shape("vision_model.embeddings.patch_embedding.weight")?;
    let [width, channels, side, _] = patch[..] else { return None };
    let tokens = seen.axis("vision_model.embeddings.position_embedding.weight", 0)?;
    let layers = seen.count(|layer| format!("vision_model.encoder.layers.{layer}"), TOWER_LAYER);
    Some(json!({
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_act": activation,
        "hidden_size": width,
        "image_size": tokens.checked_sub(1)?.isqrt().saturating_mul(side),
        "intermediate_size": seen.first_axis((0..layers).map(|layer| format!("vision_model.encoder.layers.{layer}.mlp.fc1.weight")), 0)?,
        "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
        "num_attention_heads": (width / head_width(width, true)).max(1),
        "num_channels": channels,
        "num_hidden_layers": layers,
        "patch_size": side,
        "projection_dim": seen.axis("visual_projection.weight", 0)?,
    }))
}

/// A whole model's `CLIPConfig`.
pub(crate) fn clip(seen: &Seen<'_>, activation: &str) -> Option<Value> {
    let (text, vision) = (clip_text(seen, activation)?, clip_vision(seen, activation)?);
    let mut config = json!({
        "architectures": ["CLIPModel"],
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": text["projection_dim"],
        "text_config": text,
        "vision_config": vision,
    });
    if seen.has("logit_bias") {
        config["logit_bias"] = true.into();
    }
    Some(config)
}

/// A `Dinov2Config`, or that of the network with registers.
pub(crate) fn dinov2(seen: &Seen<'_>) -> Option<Value> {
    let patch = seen.shape("embeddings.patch_embeddings.projection.weight")?;
    let [width, channels, side, _] = patch[..] else { return None };
    let tokens = seen.axis("embeddings.position_embeddings", 1)?;
    let layers = seen.count(|layer| format!("encoder.layer.{layer}"), &["norm1.weight", "norm2.weight"]);
    let each = |tensor: &'static str| (0..layers).map(move |layer| format!("encoder.layer.{layer}.{tensor}"));
    let hidden = seen.first_axis(each("mlp.fc1.weight"), 0);
    let swiglu = hidden.is_none() && seen.first_axis(each("mlp.weights_in.weight"), 0).is_some();
    let registers = seen.axis("embeddings.register_tokens", 1);
    let mut config = json!({
        "architectures": ["Dinov2Model"],
        "hidden_act": "gelu",
        "hidden_size": width,
        "image_size": tokens.checked_sub(1)?.isqrt().saturating_mul(side),
        "layer_norm_eps": 1e-6,
        // Gated layers do not show it; the only published network that has them has 4.
        "mlp_ratio": hidden.map_or(4.0, |hidden| hidden as f64 / width.max(1) as f64),
        "model_type": "dinov2",
        "num_attention_heads": (width / head_width(width, false)).max(1),
        "num_channels": channels,
        "num_hidden_layers": layers,
        "patch_size": side,
        "qkv_bias": seen.first_axis(each("attention.attention.query.bias"), 0).is_some(),
        "use_mask_token": seen.has("embeddings.mask_token"),
        "use_swiglu_ffn": swiglu,
    });
    if let Some(registers) = registers {
        config["architectures"] = json!(["Dinov2WithRegistersModel"]);
        config["model_type"] = "dinov2_with_registers".into();
        config["num_register_tokens"] = registers.into();
    }
    Some(config)
}

/// Which EfficientNet-Lite it is.
pub(crate) fn efficientnet_lite(seen: &Seen<'_>) -> Option<Value> {
    let blocks = seen.count(|block| format!("_blocks.{block}"), &["_project_conv.weight", "_depthwise_conv.weight"]);
    let channels = seen.axis(&format!("_blocks.{}._project_conv.weight", blocks.checked_sub(1)?), 0)?;
    Some(json!({
        "model_type": "efficientnet_lite",
        "num_labels": seen.axis("_fc.weight", 0)?,
        "variant": EfficientNetLiteConfig::with_blocks(blocks, channels)?,
    }))
}

/// The only number of Keras' Inception v3.
pub(crate) fn keras_inception(seen: &Seen<'_>) -> Option<Value> {
    Some(json!({ "model_type": "keras_inception_v3", "outputs": seen.axis("fc.weight", 0)? }))
}

/// A classifier's `ViTConfig`.
pub(crate) fn vit(seen: &Seen<'_>, layer_norm_eps: f64) -> Option<Value> {
    let patch = seen.shape("vit.embeddings.patch_embeddings.projection.weight")?;
    let [width, channels, side, _] = patch[..] else { return None };
    let class_tokens = seen.axis("vit.embeddings.cls_token", 1).unwrap_or(0);
    let tokens = seen.axis("vit.embeddings.position_embeddings", 1)?;
    let tensors = ["layernorm_before.weight", "layernorm_after.weight", "output.dense.weight"];
    let layers = seen.count(|layer| format!("vit.encoder.layer.{layer}"), &tensors);
    let each = |tensor: &'static str| (0..layers).map(move |layer| format!("vit.encoder.layer.{layer}.{tensor}"));
    let mut config = json!({
        "architectures": ["ViTForImageClassification"],
        "hidden_act": "gelu",
        "hidden_size": width,
        "image_size": tokens.checked_sub(class_tokens)?.isqrt().saturating_mul(side),
        "intermediate_size": seen.first_axis(each("intermediate.dense.weight"), 0)?,
        "layer_norm_eps": layer_norm_eps,
        "model_type": "vit",
        "num_attention_heads": (width / head_width(width, true)).max(1),
        "num_channels": channels,
        "num_hidden_layers": layers,
        "num_labels": seen.axis("classifier.weight", 0)?,
        "patch_size": side,
        "qkv_bias": seen.first_axis(each("attention.attention.query.bias"), 0).is_some(),
    });
    if class_tokens != 1 {
        config["class_tokens"] = class_tokens.into();
    }
    if seen.has("vit.pooler.dense.weight") {
        config["add_pooling_layer"] = true.into();
    }
    Some(config)
}
