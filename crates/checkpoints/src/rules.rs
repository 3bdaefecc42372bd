//! The tables of the layouts: how each names what the canonical layout names otherwise.
//!
//! Sources: the LDM code's modules (`openaimodel.py`, `attention.py`, `autoencoder.py`, `ema.py`) and diffusers' loader of
//! single files; open_clip's `model.py` and `transformer.py`; timm's and facebookresearch/dinov2's `vision_transformer.py`;
//! Keras applications' `inception_v3.py`; NeMo's
//! `convert_external_clip_to_nemo.py`, `convert_hf_ckpt_to_nemo.py`, `openaimodel.py`,
//! `vit_backbone.py` and `megatron_vit_classification_models.py`.

use crate::map::{Form, KeyMap, Name};
use crate::marks;
use Form::{Convolution, Leading, OutputsLast, Pixels, Same, Third, Transposed, WithoutLeading};

/// Prefix of the UNet in LDM files.
pub(crate) const LDM_UNET: &str = "model.diffusion_model.";
/// Prefix of the autoencoder in LDM files.
pub(crate) const LDM_VAE: &str = "first_stage_model.";

/// The structure that decides the numbering of a UNet's or an autoencoder's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Residual blocks in each level on the way down.
    pub layers: usize,
    /// For each level, whether it has attention; from the finest.
    pub attention: Vec<bool>,
}

const LDM_RESNET: &[Name] = &[
    ("norm1", "in_layers.0", Same),
    ("conv1", "in_layers.2", Same),
    ("time_emb_proj", "emb_layers.1", Same),
    ("norm2", "out_layers.0", Same),
    ("conv2", "out_layers.3", Same),
    ("conv_shortcut", "skip_connection", Same),
];

/// NeMo's norm and activation are one module, so that what follows them has an index less.
const NEMO_RESNET: &[Name] = &[
    ("norm1", "in_layers.0", Same),
    ("conv1", "in_layers.1", Same),
    ("time_emb_proj", "emb_layers.1", Same),
    ("norm2", "out_layers.0", Same),
    ("conv2", "out_layers.2", Same),
    ("conv_shortcut", "skip_connection", Same),
];

const LDM_UNET_ENDS: &[Name] = &[
    ("conv_in", "input_blocks.0.0", Same),
    ("time_embedding.linear_1", "time_embed.0", Same),
    ("time_embedding.linear_2", "time_embed.2", Same),
    ("add_embedding.linear_1", "label_emb.0.0", Same),
    ("add_embedding.linear_2", "label_emb.0.2", Same),
    ("conv_norm_out", "out.0", Same),
    ("conv_out", "out.2", Same),
];

const NEMO_UNET_ENDS: &[Name] = &[
    ("conv_in", "input_blocks.0.0", Same),
    ("time_embedding.linear_1", "time_embed.0", Same),
    ("time_embedding.linear_2", "time_embed.2", Same),
    ("add_embedding.linear_1", "label_emb.0.0", Same),
    ("add_embedding.linear_2", "label_emb.0.2", Same),
    ("conv_norm_out", "out.0", Same),
    ("conv_out", "out.1", Same),
];

/// NeMo's transformer blocks have each norm inside of the module that it stands in front of.
const NEMO_TRANSFORMER: &[Name] = &[
    ("norm1", "attn1.norm", Same),
    ("attn1", "attn1", Same),
    ("norm2", "attn2.norm", Same),
    ("attn2", "attn2", Same),
    ("norm3", "ff.net.0", Same),
    ("ff.net.0.proj", "ff.net.1.proj", Same),
    ("ff.net.2", "ff.net.3", Same),
];

/// Departures of an implementation of LDM's UNet from the original; all `false` for the original. NeMo's versions do so
/// in one, two or all three of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Departures {
    /// Norm and activation of the residual blocks are one module.
    pub(crate) fused_resnets: bool,
    /// Norm and activation of the output are one module.
    pub(crate) fused_out: bool,
    /// The transformer blocks' norms are inside of what they stand in front of.
    pub(crate) inner_norms: bool,
}

/// The UNet in LDM's numbering, under `prefix`.
pub(crate) fn ldm_unet(structure: &Structure, prefix: &str, departures: Departures) -> KeyMap {
    let ends = if departures.fused_out { NEMO_UNET_ENDS } else { LDM_UNET_ENDS };
    let resnet = if departures.fused_resnets { NEMO_RESNET } else { LDM_RESNET };
    let transformer = if departures.inner_norms { NEMO_TRANSFORMER } else { &[] };
    let attention = |map: KeyMap, canonical: String, stored: String| {
        let blocks = (format!("{canonical}.transformer_blocks.#."), format!("{stored}.transformer_blocks.#."));
        map.section(blocks.0, blocks.1, transformer).section(format!("{canonical}."), format!("{stored}."), &[])
    };
    let levels = structure.attention.len();
    let mut map = KeyMap::new(prefix).section("", "", ends);
    let mut input = 1;
    for level in 0..levels {
        for block in 0..structure.layers {
            let (canonical, stored) = (format!("down_blocks.{level}"), format!("input_blocks.{input}"));
            map = map.section(format!("{canonical}.resnets.{block}."), format!("{stored}.0."), resnet);
            map = attention(map, format!("{canonical}.attentions.{block}"), format!("{stored}.1"));
            input += 1;
        }
        let down = format!("down_blocks.{level}.downsamplers.0.conv.");
        map = map.section(down, format!("input_blocks.{input}.0.op."), &[]);
        input += 1;
    }
    map = map.section("mid_block.resnets.0.", "middle_block.0.", resnet).section(
        "mid_block.resnets.1.",
        "middle_block.2.",
        resnet,
    );
    map = attention(map, "mid_block.attentions.0".into(), "middle_block.1".into());
    for step in 0..levels {
        let up = format!("up_blocks.{step}");
        for block in 0..=structure.layers {
            let stored = format!("output_blocks.{}", step * (structure.layers + 1) + block);
            map = map.section(format!("{up}.resnets.{block}."), format!("{stored}.0."), resnet);
            map = attention(map, format!("{up}.attentions.{block}"), format!("{stored}.1"));
        }
        // The upsampler follows the level's last block, behind its attention where there is one.
        let last = step * (structure.layers + 1) + structure.layers;
        let slot = if structure.attention[levels - 1 - step] { 2 } else { 1 };
        map = map.section(format!("{up}.upsamplers.0.conv."), format!("output_blocks.{last}.{slot}.conv."), &[]);
    }
    map
}

const LDM_VAE_RESNET: &[Name] = &[
    ("norm1", "norm1", Same),
    ("conv1", "conv1", Same),
    ("norm2", "norm2", Same),
    ("conv2", "conv2", Same),
    ("conv_shortcut", "nin_shortcut", Same),
];

const LDM_VAE_ATTENTION: &[Name] = &[
    ("group_norm", "norm", Same),
    ("to_q.weight", "q.weight", Convolution),
    ("to_q.bias", "q.bias", Same),
    ("to_k.weight", "k.weight", Convolution),
    ("to_k.bias", "k.bias", Same),
    ("to_v.weight", "v.weight", Convolution),
    ("to_v.bias", "v.bias", Same),
    ("to_out.0.weight", "proj_out.weight", Convolution),
    ("to_out.0.bias", "proj_out.bias", Same),
];

/// The same with the names of diffusers' linear layers, as converters leave them.
const NEW_NAMES_VAE_ATTENTION: &[Name] = &[("group_norm", "norm", Same)];

/// Ways of naming the autoencoder's attention in LDM's numbering, LDM's own first.
const VAE_ATTENTIONS: [&[Name]; 4] = [LDM_VAE_ATTENTION, NEW_NAMES_VAE_ATTENTION, &[], OLD_VAE_ATTENTION];

/// The names of an attention below `stored`: those by which most of its tensors are there; LDM's own if none is.
fn vae_attention(stored: &str, has: &dyn Fn(&str) -> bool) -> &'static [Name] {
    const TENSORS: [&str; 10] = [
        "group_norm.weight",
        "group_norm.bias",
        "to_q.weight",
        "to_q.bias",
        "to_k.weight",
        "to_k.bias",
        "to_v.weight",
        "to_v.bias",
        "to_out.0.weight",
        "to_out.0.bias",
    ];
    let found = |names: &'static [Name]| {
        let map = KeyMap::new("").section("", "", names).section("", "", &[]);
        TENSORS
            .iter()
            .filter(|name| map.place(name).is_some_and(|place| has(&format!("{stored}{}", place.key))))
            .count()
    };
    // The first of the best.
    VAE_ATTENTIONS.into_iter().rev().max_by_key(|names| found(names)).unwrap_or(LDM_VAE_ATTENTION)
}

const LDM_VAE_HALF: &[Name] =
    &[("conv_in", "conv_in", Same), ("conv_norm_out", "norm_out", Same), ("conv_out", "conv_out", Same)];

const QUANT: &[Name] = &[("quant_conv", "quant_conv", Same), ("post_quant_conv", "post_quant_conv", Same)];

/// The autoencoder in LDM's numbering, under `prefix`: its up levels count from the finest. `has` says which stored keys
/// there are, for the names of its attention differ.
pub(crate) fn ldm_vae(levels: usize, prefix: &str, has: &dyn Fn(&str) -> bool) -> KeyMap {
    let mut map = KeyMap::new(prefix).section("", "", QUANT);
    for half in ["encoder", "decoder"] {
        let attention = vae_attention(&format!("{prefix}{half}.mid.attn_1."), has);
        let stored = format!("{half}.mid.attn_1.");
        map = map
            .section(format!("{half}.mid_block.resnets.0."), format!("{half}.mid.block_1."), LDM_VAE_RESNET)
            .section(format!("{half}.mid_block.attentions.0."), stored.clone(), attention)
            .section(format!("{half}.mid_block.attentions.0."), stored, &[])
            .section(format!("{half}.mid_block.resnets.1."), format!("{half}.mid.block_2."), LDM_VAE_RESNET)
            .section(format!("{half}."), format!("{half}."), LDM_VAE_HALF);
    }
    for level in 0..levels {
        let (down, up) = (format!("encoder.down_blocks.{level}"), format!("decoder.up_blocks.{level}"));
        let stored_up = format!("decoder.up.{}", levels - 1 - level);
        map = map
            .section(format!("{down}.resnets.#."), format!("encoder.down.{level}.block.#."), LDM_VAE_RESNET)
            .section(format!("{down}.downsamplers.0."), format!("encoder.down.{level}.downsample."), &[])
            .section(format!("{up}.resnets.#."), format!("{stored_up}.block.#."), LDM_VAE_RESNET)
            .section(format!("{up}.upsamplers.0."), format!("{stored_up}.upsample."), &[]);
    }
    map
}

const OLD_VAE_ATTENTION: &[Name] = &[
    ("group_norm", "group_norm", Same),
    ("to_q", "query", Same),
    ("to_k", "key", Same),
    ("to_v", "value", Same),
    ("to_out.0", "proj_attn", Same),
];

/// The autoencoder of diffusers before 0.12, whose attention had other names.
pub(crate) fn old_diffusers_vae() -> KeyMap {
    KeyMap::new("")
        .section("encoder.mid_block.attentions.0.", "encoder.mid_block.attentions.0.", OLD_VAE_ATTENTION)
        .section("decoder.mid_block.attentions.0.", "decoder.mid_block.attentions.0.", OLD_VAE_ATTENTION)
        .section("", "", &[])
}

/// A transformers text model under a prefix (`cond_stage_model.transformer.` in LDM files), its projection beside it.
pub(crate) fn prefixed(prefix: &str) -> KeyMap {
    KeyMap::new(prefix).section("", "", &[])
}

/// transformers' text model without `text_model.`, under a prefix: as versions from 5.6 on save it, and as the many merges
/// of NovelAI's leaked model have it.
pub(crate) fn flat_text(prefix: &str) -> KeyMap {
    KeyMap::new(prefix).section("text_model.", "", &[]).section("text_projection.", "text_projection.", &[])
}

const OPEN_CLIP_LAYER: &[Name] = &[
    ("layer_norm1", "ln_1", Same),
    ("self_attn.q_proj.weight", "attn.in_proj_weight", Third(0)),
    ("self_attn.k_proj.weight", "attn.in_proj_weight", Third(1)),
    ("self_attn.v_proj.weight", "attn.in_proj_weight", Third(2)),
    ("self_attn.q_proj.bias", "attn.in_proj_bias", Third(0)),
    ("self_attn.k_proj.bias", "attn.in_proj_bias", Third(1)),
    ("self_attn.v_proj.bias", "attn.in_proj_bias", Third(2)),
    ("self_attn.out_proj", "attn.out_proj", Same),
    ("layer_norm2", "ln_2", Same),
    ("mlp.fc1", "mlp.c_fc", Same),
    ("mlp.fc2", "mlp.c_proj", Same),
];

const OPEN_CLIP_TEXT: &[Name] = &[
    ("text_model.embeddings.token_embedding", "token_embedding", Same),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding", Same),
    ("text_model.final_layer_norm", "ln_final", Same),
    ("text_projection.weight", "text_projection", Transposed),
];

const OPEN_CLIP_VISION: &[Name] = &[
    ("vision_model.embeddings.class_embedding", "class_embedding", Same),
    ("vision_model.embeddings.patch_embedding", "conv1", Same),
    ("vision_model.embeddings.position_embedding.weight", "positional_embedding", Same),
    ("vision_model.pre_layrnorm", "ln_pre", Same),
    ("vision_model.post_layernorm", "ln_post", Same),
    ("visual_projection.weight", "proj", Transposed),
];

const LOGITS: &[Name] = &[("logit_scale", "logit_scale", Same), ("logit_bias", "logit_bias", Same)];

/// open_clip's text tower under a prefix (`cond_stage_model.model.` in LDM files).
pub(crate) fn open_clip_text(prefix: &str) -> KeyMap {
    KeyMap::new(prefix).section("text_model.encoder.layers.#.", "transformer.resblocks.#.", OPEN_CLIP_LAYER).section(
        "",
        "",
        OPEN_CLIP_TEXT,
    )
}

/// A whole open_clip (or OpenAI CLIP) model; `text` is the prefix of the text tower, `text.` in newer models.
pub(crate) fn open_clip(text: &str, prefix: &str) -> KeyMap {
    KeyMap::new(prefix)
        .section("vision_model.encoder.layers.#.", "visual.transformer.resblocks.#.", OPEN_CLIP_LAYER)
        .section("", "visual.", OPEN_CLIP_VISION)
        .section("text_model.encoder.layers.#.", format!("{text}transformer.resblocks.#."), OPEN_CLIP_LAYER)
        .section("", text, OPEN_CLIP_TEXT)
        .section("", "", LOGITS)
}

/// Megatron's transformer layer. Query, key and value are stacked as `megatron_legacy: True` has it, which NeMo's
/// published CLIP configurations set; where a model's own says otherwise, they stand by heads ([`KeyMap::by_heads`]).
const NEMO_CLIP_LAYER: &[Name] = &[
    ("layer_norm1", "input_layernorm", Same),
    ("self_attn.q_proj.weight", "self_attention.query_key_value.weight", Third(0)),
    ("self_attn.k_proj.weight", "self_attention.query_key_value.weight", Third(1)),
    ("self_attn.v_proj.weight", "self_attention.query_key_value.weight", Third(2)),
    ("self_attn.q_proj.bias", "self_attention.query_key_value.bias", Third(0)),
    ("self_attn.k_proj.bias", "self_attention.query_key_value.bias", Third(1)),
    ("self_attn.v_proj.bias", "self_attention.query_key_value.bias", Third(2)),
    ("self_attn.out_proj", "self_attention.dense", Same),
    ("layer_norm2", "post_attention_layernorm", Same),
    ("mlp.fc1", "mlp.dense_h_to_4h", Same),
    ("mlp.fc2", "mlp.dense_4h_to_h", Same),
];

const NEMO_CLIP_TEXT: &[Name] = &[
    ("text_model.embeddings.token_embedding", "language_model.embedding.word_embeddings", Same),
    ("text_model.final_layer_norm", "language_model.encoder.final_layernorm", Same),
    ("text_projection", "head", Same),
];

const NEMO_CLIP_VISION: &[Name] = &[
    ("vision_model.embeddings.class_embedding", "backbone.cls_token", Leading(2)),
    ("vision_model.pre_layrnorm", "backbone.preprocess_layernorm", Same),
    ("vision_model.post_layernorm", "backbone.transformer.final_layernorm", Same),
    ("visual_projection", "head", Same),
];

const NEMO_LINEAR_PATCHES: &[Name] =
    &[("vision_model.embeddings.patch_embedding.weight", "backbone.linear_encoder.weight", Pixels)];
const NEMO_CONV_PATCHES: &[Name] = &[("vision_model.embeddings.patch_embedding", "backbone.conv1", Same)];
/// Positions as a parameter, and as a module of its own.
const NEMO_VISION_POSITIONS: [&[Name]; 2] = [
    &[("vision_model.embeddings.position_embedding.weight", "backbone.position_embeddings", Same)],
    &[("vision_model.embeddings.position_embedding", "backbone.position_embeddings", Same)],
];
const NEMO_TEXT_POSITIONS: [&[Name]; 2] = [
    &[("text_model.embeddings.position_embedding.weight", "language_model.embedding.position_embeddings", Same)],
    &[("text_model.embeddings.position_embedding", "language_model.embedding.position_embeddings", Same)],
];

/// What versions and configurations of NeMo's CLIP do otherwise; all `false` for its published models in NeMo 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NemoClip {
    /// Patches go through a convolution without a bias, as in NeMo 2, instead of a linear layer.
    pub(crate) conv_patches: bool,
    /// Positions of the image tower are an embedding (`learned_absolute`).
    pub(crate) vision_table: bool,
    /// The same of the text tower.
    pub(crate) text_table: bool,
}

/// NeMo's CLIP under a prefix (`model.` in its checkpoints).
pub(crate) fn nemo_clip(prefix: &str, variant: NemoClip) -> KeyMap {
    let (text, vision) = ("text_encoder.", "vision_encoder.");
    KeyMap::new(prefix)
        .section("", vision, if variant.conv_patches { NEMO_CONV_PATCHES } else { NEMO_LINEAR_PATCHES })
        .section("", vision, NEMO_VISION_POSITIONS[usize::from(variant.vision_table)])
        .section("", text, NEMO_TEXT_POSITIONS[usize::from(variant.text_table)])
        .section("vision_model.encoder.layers.#.", format!("{vision}backbone.transformer.layers.#."), NEMO_CLIP_LAYER)
        .section("", vision, NEMO_CLIP_VISION)
        .section("text_model.encoder.layers.#.", format!("{text}language_model.encoder.layers.#."), NEMO_CLIP_LAYER)
        .section("", text, NEMO_CLIP_TEXT)
        .section("", "", LOGITS)
}

/// NeMo's CLIP text tower alone, as its Stable Diffusion holds it.
pub(crate) fn nemo_clip_text(prefix: &str) -> KeyMap {
    KeyMap::new(prefix)
        .section("text_model.encoder.layers.#.", "language_model.encoder.layers.#.", NEMO_CLIP_LAYER)
        .section("", "", NEMO_TEXT_POSITIONS[0])
        .section("", "", NEMO_CLIP_TEXT)
}

const TIMM_LAYER: &[Name] = &[
    ("layernorm_before", "norm1", Same),
    ("attention.attention.query.weight", "attn.qkv.weight", Third(0)),
    ("attention.attention.key.weight", "attn.qkv.weight", Third(1)),
    ("attention.attention.value.weight", "attn.qkv.weight", Third(2)),
    ("attention.attention.query.bias", "attn.qkv.bias", Third(0)),
    ("attention.attention.key.bias", "attn.qkv.bias", Third(1)),
    ("attention.attention.value.bias", "attn.qkv.bias", Third(2)),
    ("attention.output.dense", "attn.proj", Same),
    ("layernorm_after", "norm2", Same),
    ("intermediate.dense", "mlp.fc1", Same),
    ("output.dense", "mlp.fc2", Same),
];

const TIMM_ENDS: &[Name] = &[
    ("vit.embeddings.cls_token", "cls_token", Same),
    ("vit.embeddings.position_embeddings", "pos_embed", Same),
    ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj", Same),
    ("classifier", "head", Same),
];

const TIMM_NORM: &[Name] = &[("vit.layernorm", "norm", Same)];
const TIMM_POOLED_NORM: &[Name] = &[("vit.layernorm", "fc_norm", Same)];

/// timm's vision transformer. `pooled_norm`: the norm stands behind the mean of the patches.
pub(crate) fn timm(pooled_norm: bool) -> KeyMap {
    KeyMap::new("").section("vit.encoder.layer.#.", "blocks.#.", TIMM_LAYER).section("", "", TIMM_ENDS).section(
        "",
        "",
        if pooled_norm { TIMM_POOLED_NORM } else { TIMM_NORM },
    )
}

const FACEBOOK_DINOV2_LAYER: &[Name] = &[
    ("norm1", "norm1", Same),
    ("attention.attention.query.weight", "attn.qkv.weight", Third(0)),
    ("attention.attention.key.weight", "attn.qkv.weight", Third(1)),
    ("attention.attention.value.weight", "attn.qkv.weight", Third(2)),
    ("attention.attention.query.bias", "attn.qkv.bias", Third(0)),
    ("attention.attention.key.bias", "attn.qkv.bias", Third(1)),
    ("attention.attention.value.bias", "attn.qkv.bias", Third(2)),
    ("attention.output.dense", "attn.proj", Same),
    ("layer_scale1.lambda1", "ls1.gamma", Same),
    ("norm2", "norm2", Same),
    ("mlp.fc1", "mlp.fc1", Same),
    ("mlp.fc2", "mlp.fc2", Same),
    ("mlp.weights_in", "mlp.w12", Same),
    ("mlp.weights_out", "mlp.w3", Same),
    ("layer_scale2.lambda1", "ls2.gamma", Same),
];

const FACEBOOK_DINOV2_ENDS: &[Name] = &[
    ("embeddings.cls_token", "cls_token", Same),
    ("embeddings.mask_token", "mask_token", Same),
    ("embeddings.register_tokens", "register_tokens", Same),
    ("embeddings.position_embeddings", "pos_embed", Same),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj", Same),
    ("layernorm", "norm", Same),
];

/// DINOv2 as its authors publish it.
pub(crate) fn facebook_dinov2() -> KeyMap {
    KeyMap::new("").section("encoder.layer.#.", "blocks.#.", FACEBOOK_DINOV2_LAYER).section(
        "",
        "",
        FACEBOOK_DINOV2_ENDS,
    )
}

const KERAS_CONVOLUTION: &[Name] = &[("conv.weight", "kernel", OutputsLast)];
const KERAS_NORM: &[Name] =
    &[("bn.bias", "beta", Same), ("bn.running_mean", "moving_mean", Same), ("bn.running_var", "moving_variance", Same)];
const KERAS_DENSE: &[Name] = &[("weight", "kernel", Transposed), ("bias", "bias", Same)];

/// The convolutions of Inception v3 before its blocks, and those of its kinds of blocks, in the order in which Keras' code
/// makes them.
const KERAS_STEM: &[&str] = &["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"];
const KERAS_A: &[&str] =
    &["branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool"];
const KERAS_B: &[&str] = &["branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"];
const KERAS_C: &[&str] = &[
    "branch1x1",
    "branch7x7_1",
    "branch7x7_2",
    "branch7x7_3",
    "branch7x7dbl_1",
    "branch7x7dbl_2",
    "branch7x7dbl_3",
    "branch7x7dbl_4",
    "branch7x7dbl_5",
    "branch_pool",
];
const KERAS_D: &[&str] =
    &["branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"];
const KERAS_E: &[&str] = &[
    "branch1x1",
    "branch3x3_1",
    "branch3x3_2a",
    "branch3x3_2b",
    "branch3x3dbl_1",
    "branch3x3dbl_2",
    "branch3x3dbl_3a",
    "branch3x3dbl_3b",
    "branch_pool",
];

/// The blocks in their order; the stem has no name of its own.
const KERAS_BLOCKS: [(&str, &[&str]); 12] = [
    ("", KERAS_STEM),
    ("Mixed_5b.", KERAS_A),
    ("Mixed_5c.", KERAS_A),
    ("Mixed_5d.", KERAS_A),
    ("Mixed_6a.", KERAS_B),
    ("Mixed_6b.", KERAS_C),
    ("Mixed_6c.", KERAS_C),
    ("Mixed_6d.", KERAS_C),
    ("Mixed_6e.", KERAS_C),
    ("Mixed_7a.", KERAS_D),
    ("Mixed_7b.", KERAS_E),
    ("Mixed_7c.", KERAS_E),
];

/// The names that the first dense layer behind the features has: as it is numbered, and as Keras names its own classifier.
pub(crate) const KERAS_HEADS: [&str; 2] = ["dense_1", "predictions"];

/// Keras' Inception v3, whose convolutions are numbered from 1; `head` is its first dense layer.
pub(crate) fn keras_inception(head: &str) -> KeyMap {
    let places =
        KERAS_BLOCKS.iter().flat_map(|(block, places)| places.iter().map(move |place| format!("{block}{place}.")));
    let map = (1..).zip(places).fold(KeyMap::new(""), |map, (number, place)| {
        map.section(place.clone(), format!("conv2d_{number}/"), KERAS_CONVOLUTION).section(
            place,
            format!("batch_normalization_{number}/"),
            KERAS_NORM,
        )
    });
    map.section("fc.", format!("{head}/"), KERAS_DENSE)
}

const NEW_VIT_LAYER: &[Name] = &[
    ("layernorm_before", "layernorm_before", Same),
    ("attention.attention.query", "attention.q_proj", Same),
    ("attention.attention.key", "attention.k_proj", Same),
    ("attention.attention.value", "attention.v_proj", Same),
    ("attention.output.dense", "attention.o_proj", Same),
    ("layernorm_after", "layernorm_after", Same),
    ("intermediate.dense", "mlp.fc1", Same),
    ("output.dense", "mlp.fc2", Same),
];

/// transformers' ViT by its modules' names since version 5, which its own files do not use.
pub(crate) fn new_vit() -> KeyMap {
    KeyMap::new("").section("vit.encoder.layer.#.", "vit.layers.#.", NEW_VIT_LAYER).section("", "", &[])
}

const NEMO_VIT_LAYER: &[Name] = &[
    ("layernorm_before", "input_layernorm", Same),
    ("attention.attention.query.weight", "self_attention.query_key_value.weight", Third(0)),
    ("attention.attention.key.weight", "self_attention.query_key_value.weight", Third(1)),
    ("attention.attention.value.weight", "self_attention.query_key_value.weight", Third(2)),
    ("attention.attention.query.bias", "self_attention.query_key_value.bias", Third(0)),
    ("attention.attention.key.bias", "self_attention.query_key_value.bias", Third(1)),
    ("attention.attention.value.bias", "self_attention.query_key_value.bias", Third(2)),
    ("attention.output.dense", "self_attention.dense", Same),
    ("layernorm_after", "post_attention_layernorm", Same),
    ("intermediate.dense", "mlp.dense_h_to_4h", Same),
    ("output.dense", "mlp.dense_4h_to_h", Same),
];

const NEMO_VIT_ENDS: &[Name] = &[
    ("vit.embeddings.cls_token", "backbone.cls_token", Same),
    ("vit.embeddings.patch_embeddings.projection.weight", "backbone.linear_encoder.weight", Pixels),
    ("vit.embeddings.patch_embeddings.projection.bias", "backbone.linear_encoder.bias", Same),
    ("vit.layernorm", "backbone.transformer.final_layernorm", Same),
    ("vit.pooler.dense", "head.dense_in", Same),
];

const NEMO_VIT_MLP_HEAD: &[Name] = &[("classifier", "head.dense_out", Same)];
const NEMO_VIT_LINEAR_HEAD: &[Name] = &[("classifier", "head", Same)];
const NEMO_VIT_TABLE: &[Name] =
    &[("vit.embeddings.position_embeddings", "backbone.position_embeddings.weight", WithoutLeading(1))];
const NEMO_VIT_PARAMETER: &[Name] =
    &[("vit.embeddings.position_embeddings", "backbone.position_embeddings", WithoutLeading(1))];

/// NeMo's ViT under a prefix (`model.` in its checkpoints). `mlp_head`: with the two-layer head of pre-training;
/// `table`: positions in an embedding module instead of a parameter.
pub(crate) fn nemo_vit(prefix: &str, mlp_head: bool, table: bool) -> KeyMap {
    KeyMap::new(prefix)
        .section("vit.encoder.layer.#.", "backbone.transformer.layers.#.", NEMO_VIT_LAYER)
        .section("", "", NEMO_VIT_ENDS)
        .section("", "", if table { NEMO_VIT_TABLE } else { NEMO_VIT_PARAMETER })
        .section("", "", if mlp_head { NEMO_VIT_MLP_HEAD } else { NEMO_VIT_LINEAR_HEAD })
}

/// A way of recognising a stored key that is no weight.
enum Match {
    Exact(&'static str),
    Prefix(&'static str),
    Suffix(&'static str),
}

use Match::{Exact, Prefix, Suffix};

const SCHEDULE: &str = "buffer of the noise schedule";
const STATE: &str = "training state";
const POSITIONS: &str = "constant positions or mask";
const QUANTISED: &str = "mark of 8-bit weights, or a scale of their inputs";

/// Stored tensors that are no weights, and what they are.
const NOT_WEIGHTS: &[(Match, &str)] = &[
    (Exact("betas"), SCHEDULE),
    (Exact("alphas_cumprod"), SCHEDULE),
    (Exact("alphas_cumprod_prev"), SCHEDULE),
    (Exact("sqrt_alphas_cumprod"), SCHEDULE),
    (Exact("sqrt_one_minus_alphas_cumprod"), SCHEDULE),
    (Exact("log_one_minus_alphas_cumprod"), SCHEDULE),
    (Exact("sqrt_recip_alphas_cumprod"), SCHEDULE),
    (Exact("sqrt_recipm1_alphas_cumprod"), SCHEDULE),
    (Exact("posterior_variance"), SCHEDULE),
    (Exact("posterior_log_variance_clipped"), SCHEDULE),
    (Exact("posterior_mean_coef1"), SCHEDULE),
    (Exact("posterior_mean_coef2"), SCHEDULE),
    (Exact("lvlb_weights"), SCHEDULE),
    (Exact("logvar"), SCHEDULE),
    (Exact("scale_factor"), SCHEDULE),
    (Exact("denoiser.sigmas"), SCHEDULE),
    (Exact(marks::VELOCITY), "mark of velocity prediction"),
    (Exact(marks::ZERO_SNR), "mark of zero terminal SNR"),
    (Exact(marks::EDM_VELOCITY[0]), "mark of EDM's noise levels"),
    (Exact(marks::EDM_VELOCITY[1]), "mark of EDM's noise levels"),
    (Exact(marks::EDM_LATENTS[0]), "mark of EDM's noise levels"),
    (Exact(marks::EDM_LATENTS[1]), "mark of EDM's noise levels"),
    (Suffix("scaled_fp8"), QUANTISED),
    (Suffix(".scale_input"), QUANTISED),
    (Suffix(".input_scale"), QUANTISED),
    (Suffix(".comfy_quant"), QUANTISED),
    (Exact("model_ema.decay"), STATE),
    (Exact("model_ema.num_updates"), STATE),
    (Prefix("first_stage_model.loss."), "the autoencoder's loss (perceptual network, discriminator)"),
    (Prefix("loss."), "the autoencoder's loss (perceptual network, discriminator)"),
    (Suffix("embeddings.position_ids"), POSITIONS),
    (Suffix("attn_mask"), POSITIONS),
    (Suffix(".num_batches_tracked"), "counter of a batch norm"),
    (Exact("input_resolution"), "size of the model"),
    (Exact("context_length"), "size of the model"),
    (Exact("vocab_size"), "size of the model"),
    (Prefix("dense_2/"), "dense layer behind the first one"),
    (Prefix("dense_3/"), "dense layer behind the first one"),
];

/// The keys that may hold the scale of an 8-bit weight: ComfyUI's, the older one first.
pub(crate) fn scale_keys(weight: &str) -> Option<[String; 2]> {
    let module = weight.strip_suffix(".weight")?;
    Some([".scale_weight", ".weight_scale"].map(|end| format!("{module}{end}")))
}

/// The key of what a layer's inputs are divided by, before they are multiplied in 8 bits.
pub(crate) fn smooth_key(weight: &str) -> Option<String> {
    weight.strip_suffix(".weight").map(|module| format!("{module}.smooth"))
}

/// Pieces of keys of files whose weights are packed in a way that is not read, and what these are.
const PACKED: [(&str, &str); 5] = [
    (".bitsandbytes__", "4-bit weights of bitsandbytes"),
    (".quant_state.", "4-bit weights of bitsandbytes"),
    (".weight_scale_2", "4-bit weights (NVFP4)"),
    (".qweight", "integer weights (GPTQ, AWQ or SVDQuant)"),
    (".weight_scale_inv", "8-bit weights with a scale for each block"),
];

/// A description of the packed weights that a key belongs to, if they are not read.
pub(crate) fn packed_weights(key: &str) -> Option<&'static str> {
    PACKED.iter().find(|(piece, _)| key.contains(piece)).map(|(_, what)| *what)
}

/// Tensors that change what others mean, and are not read.
const UNREAD: [(&str, &str); 1] = [(
    "positional_embedding_res",
    "LongCLIP's original form, whose positions are the sum of two tensors: take one in transformers' form",
)];

/// The reason for which a file that holds such a key is not read.
pub(crate) fn unread(key: &str) -> Option<&'static str> {
    UNREAD.iter().find(|(end, _)| key.ends_with(end)).map(|(_, what)| *what)
}

/// A description of a stored tensor that is no weight; `None` for all others.
pub(crate) fn not_a_weight(key: &str) -> Option<&'static str> {
    let bare = key.strip_prefix("model.").unwrap_or(key);
    let fits = |rule: &Match| match rule {
        Exact(name) => key == *name || bare == *name,
        Prefix(start) => key.starts_with(start) || bare.starts_with(start),
        Suffix(end) => key.ends_with(end),
    };
    NOT_WEIGHTS.iter().find(|(rule, _)| fits(rule)).map(|(_, what)| *what)
}
