//! The full list of tensors that a model of a given configuration has: canonical keys and shapes.
//!
//! Canonical keys and configurations are diffusers' for UNet and autoencoder, transformers' published ones for CLIP and
//! ViT, pytorch-fid's for Inception.

use super::error::LayoutError;
use super::inception;
use super::kinds::Component;
use serde_json::Value;

/// Key and shape of one tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorSpec {
    /// The canonical key.
    pub name: String,
    /// Size of each axis, in the canonical order.
    pub shape: Vec<usize>,
}

/// All tensors of a component of the given configuration.
///
/// # Errors
/// [`LayoutError::Config`] for a field that is missing or changes the keys in a way that is not supported.
pub fn component_keys(component: Component, config: &Value) -> Result<Vec<TensorSpec>, LayoutError> {
    match component {
        Component::Unet => unet_keys(config),
        Component::Vae => vae_keys(config),
        Component::TextEncoder | Component::TextEncoder2 => clip_text_keys(config, has_projection(config)),
        Component::ImageEncoder => clip_vision_keys(config),
        Component::Clip => clip_keys(config),
        Component::Classifier => vit_keys(config),
        Component::Inception => Ok(inception::keys()),
    }
}

/// Whether a text configuration is of the model with projection.
pub(super) fn has_projection(config: &Value) -> bool {
    let class = |name: &Value| name.as_str() == Some("CLIPTextModelWithProjection");
    config["architectures"].as_array().is_some_and(|names| names.iter().any(class))
}

/// Reads the fields of one configuration and names them in errors.
struct Fields<'a> {
    model: &'static str,
    config: &'a Value,
}

impl Fields<'_> {
    fn error(&self, field: &str, reason: impl Into<String>) -> LayoutError {
        LayoutError::Config { model: self.model, field: field.to_owned(), reason: reason.into() }
    }

    fn or(&self, field: &str, default: usize) -> Result<usize, LayoutError> {
        if self.config[field].is_null() { Ok(default) } else { self.size(field) }
    }

    fn size(&self, field: &str) -> Result<usize, LayoutError> {
        self.sized(field, &self.config[field])
    }

    /// A count or an extent. The bound keeps sums and products of a few of them far from overflow.
    fn sized(&self, field: &str, value: &Value) -> Result<usize, LayoutError> {
        const MOST: u64 = 1 << 20;
        match value.as_u64() {
            Some(number) if (1..=MOST).contains(&number) => Ok(number as usize),
            _ => Err(self.error(field, format!("must be a whole number from 1 to {MOST}, it is {value}"))),
        }
    }

    /// A number of layers. The bound keeps the list of tensors of a hostile configuration small.
    fn count(&self, field: &str, default: usize, most: usize) -> Result<usize, LayoutError> {
        let number = self.or(field, default)?;
        if number <= most { Ok(number) } else { Err(self.error(field, format!("is {number}, more than {most}"))) }
    }

    /// A list with an entry for each level of a network.
    fn list(&self, field: &str) -> Result<Vec<usize>, LayoutError> {
        let items = self.config[field].as_array().filter(|items| (1..=8).contains(&items.len()));
        let items = items.ok_or_else(|| self.error(field, "must be a list of 1 to 8 whole numbers"))?;
        items.iter().map(|item| self.sized(field, item)).collect()
    }

    /// A number for all levels, or a list with one for each.
    fn per_level(&self, field: &str, default: usize, levels: usize) -> Result<Vec<usize>, LayoutError> {
        if !self.config[field].is_array() {
            return Ok(vec![self.or(field, default)?; levels]);
        }
        let list = self.list(field)?;
        if list.len() == levels { Ok(list) } else { Err(self.error(field, format!("must have {levels} entries"))) }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool, LayoutError> {
        match &self.config[field] {
            Value::Null => Ok(default),
            Value::Bool(flag) => Ok(*flag),
            other => Err(self.error(field, format!("must be true or false, it is {other}"))),
        }
    }

    /// Refuses every field that has another value than the one under which the keys are known.
    fn fixed(&self, fields: &[(&str, &[Value])]) -> Result<(), LayoutError> {
        for (field, allowed) in fields {
            let value = &self.config[*field];
            if !value.is_null() && !allowed.contains(value) {
                return Err(self.error(field, format!("is {value}, which is not supported")));
            }
        }
        Ok(())
    }

    /// A list of block types, each with or without attention.
    fn blocks(&self, field: &str, with: &str, without: &str, levels: usize) -> Result<Vec<bool>, LayoutError> {
        let names = self.config[field].as_array().map(Vec::as_slice).unwrap_or_default();
        if names.len() != levels {
            return Err(self.error(field, format!("must name {levels} blocks, one for each level")));
        }
        let attention = |name: &Value| match name.as_str() {
            Some(name) if name == with => Ok(true),
            Some(name) if name == without => Ok(false),
            _ => Err(self.error(field, format!("names {name}, which is not supported ({with} and {without} are)"))),
        };
        names.iter().map(attention).collect()
    }
}

/// Collects tensors.
#[derive(Default)]
struct List(Vec<TensorSpec>);

impl List {
    fn tensor(&mut self, name: String, shape: &[usize]) {
        self.0.push(TensorSpec { name, shape: shape.to_vec() });
    }

    /// A weight of the shape, and a bias of its first axis.
    fn layer(&mut self, name: &str, shape: &[usize]) {
        self.tensor(format!("{name}.weight"), shape);
        self.tensor(format!("{name}.bias"), &shape[..1]);
    }

    fn weight(&mut self, name: &str, shape: &[usize]) {
        self.tensor(format!("{name}.weight"), shape);
    }

    /// A residual block; `time` is the width of the time embedding, where it takes one.
    fn resnet(&mut self, name: &str, input: usize, output: usize, time: Option<usize>) {
        self.layer(&format!("{name}.norm1"), &[input]);
        self.layer(&format!("{name}.conv1"), &[output, input, 3, 3]);
        if let Some(time) = time {
            self.layer(&format!("{name}.time_emb_proj"), &[output, time]);
        }
        self.layer(&format!("{name}.norm2"), &[output]);
        self.layer(&format!("{name}.conv2"), &[output, output, 3, 3]);
        if input != output {
            self.layer(&format!("{name}.conv_shortcut"), &[output, input, 1, 1]);
        }
    }

    fn spatial_transformer(&mut self, name: &str, channels: usize, depth: usize, context: usize, linear: bool) {
        let projection: &[usize] = if linear { &[channels, channels] } else { &[channels, channels, 1, 1] };
        self.layer(&format!("{name}.norm"), &[channels]);
        self.layer(&format!("{name}.proj_in"), projection);
        self.layer(&format!("{name}.proj_out"), projection);
        for block in (0..depth).map(|block| format!("{name}.transformer_blocks.{block}")) {
            for (attention, source) in [("attn1", channels), ("attn2", context)] {
                self.weight(&format!("{block}.{attention}.to_q"), &[channels, channels]);
                self.weight(&format!("{block}.{attention}.to_k"), &[channels, source]);
                self.weight(&format!("{block}.{attention}.to_v"), &[channels, source]);
                self.layer(&format!("{block}.{attention}.to_out.0"), &[channels, channels]);
            }
            for norm in ["norm1", "norm2", "norm3"] {
                self.layer(&format!("{block}.{norm}"), &[channels]);
            }
            self.layer(&format!("{block}.ff.net.0.proj"), &[8 * channels, channels]);
            self.layer(&format!("{block}.ff.net.2"), &[channels, 4 * channels]);
        }
    }

    /// The middle of an autoencoder's half.
    fn vae_middle(&mut self, half: &str, channels: usize, attention: bool) {
        for block in 0..2 {
            self.resnet(&format!("{half}.mid_block.resnets.{block}"), channels, channels, None);
        }
        if attention {
            let name = format!("{half}.mid_block.attentions.0");
            self.layer(&format!("{name}.group_norm"), &[channels]);
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                self.layer(&format!("{name}.{projection}"), &[channels, channels]);
            }
        }
    }

    /// The layers of a CLIP tower.
    fn clip_layers(&mut self, tower: &str, layers: usize, width: usize, hidden: usize) {
        for layer in (0..layers).map(|layer| format!("{tower}.encoder.layers.{layer}")) {
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.layer(&format!("{layer}.self_attn.{projection}"), &[width, width]);
            }
            self.layer(&format!("{layer}.layer_norm1"), &[width]);
            self.layer(&format!("{layer}.layer_norm2"), &[width]);
            self.layer(&format!("{layer}.mlp.fc1"), &[hidden, width]);
            self.layer(&format!("{layer}.mlp.fc2"), &[width, hidden]);
        }
    }
}

/// The tensors of diffusers' `UNet2DConditionModel`.
///
/// # Errors
/// As [`component_keys`].
pub fn unet_keys(config: &Value) -> Result<Vec<TensorSpec>, LayoutError> {
    let fields = Fields { model: "UNet", config };
    fields.fixed(&[
        ("mid_block_type", &["UNetMidBlock2DCrossAttn".into()]),
        ("only_cross_attention", &[false.into()]),
        ("dual_cross_attention", &[false.into()]),
        ("class_embed_type", &[]),
        ("num_class_embeds", &[]),
        ("encoder_hid_dim", &[]),
        ("encoder_hid_dim_type", &[]),
        ("addition_embed_type", &["text_time".into()]),
        ("resnet_time_scale_shift", &["default".into()]),
        ("time_embedding_type", &["positional".into()]),
        ("time_embedding_dim", &[]),
        ("time_cond_proj_dim", &[]),
        ("conv_in_kernel", &[3.into()]),
        ("conv_out_kernel", &[3.into()]),
        ("attention_type", &["default".into()]),
        ("class_embeddings_concat", &[false.into()]),
        ("mid_block_only_cross_attention", &[false.into()]),
        ("cross_attention_norm", &[]),
        ("reverse_transformer_layers_per_block", &[]),
    ])?;
    let channels = fields.list("block_out_channels")?;
    let levels = channels.len();
    let layers = fields.count("layers_per_block", 2, 16)?;
    let down = fields.blocks("down_block_types", "CrossAttnDownBlock2D", "DownBlock2D", levels)?;
    let up = fields.blocks("up_block_types", "CrossAttnUpBlock2D", "UpBlock2D", levels)?;
    let depth = fields.per_level("transformer_layers_per_block", 1, levels)?;
    if let Some(most) = depth.iter().find(|&&depth| depth > 64) {
        return Err(fields.error("transformer_layers_per_block", format!("is {most}, more than 64")));
    }
    let context = fields.or("cross_attention_dim", 1280)?;
    let linear = fields.flag("use_linear_projection", false)?;
    let (first, last) = (channels[0], channels[levels - 1]);
    let time = 4 * first;

    let mut list = List::default();
    list.layer("conv_in", &[first, fields.or("in_channels", 4)?, 3, 3]);
    list.layer("time_embedding.linear_1", &[time, first]);
    list.layer("time_embedding.linear_2", &[time, time]);
    if config["addition_embed_type"] == "text_time" {
        list.layer("add_embedding.linear_1", &[time, fields.size("projection_class_embeddings_input_dim")?]);
        list.layer("add_embedding.linear_2", &[time, time]);
    }
    for level in 0..levels {
        let width = channels[level];
        for block in 0..layers {
            let input = if block > 0 { width } else { channels[level.saturating_sub(1)] };
            list.resnet(&format!("down_blocks.{level}.resnets.{block}"), input, width, Some(time));
            if down[level] {
                let name = format!("down_blocks.{level}.attentions.{block}");
                list.spatial_transformer(&name, width, depth[level], context, linear);
            }
        }
        if level + 1 < levels {
            list.layer(&format!("down_blocks.{level}.downsamplers.0.conv"), &[width, width, 3, 3]);
        }
    }
    list.resnet("mid_block.resnets.0", last, last, Some(time));
    list.spatial_transformer("mid_block.attentions.0", last, depth[levels - 1], context, linear);
    list.resnet("mid_block.resnets.1", last, last, Some(time));
    for step in 0..levels {
        let level = levels - 1 - step;
        let width = channels[level];
        let below = channels[(level + 1).min(levels - 1)];
        for block in 0..=layers {
            let input = if block == 0 { below } else { width };
            let skip = if block == layers { channels[level.saturating_sub(1)] } else { width };
            list.resnet(&format!("up_blocks.{step}.resnets.{block}"), input + skip, width, Some(time));
            if up[step] {
                let name = format!("up_blocks.{step}.attentions.{block}");
                list.spatial_transformer(&name, width, depth[level], context, linear);
            }
        }
        if level > 0 {
            list.layer(&format!("up_blocks.{step}.upsamplers.0.conv"), &[width, width, 3, 3]);
        }
    }
    list.layer("conv_norm_out", &[first]);
    list.layer("conv_out", &[fields.or("out_channels", 4)?, first, 3, 3]);
    Ok(list.0)
}

/// The tensors of diffusers' `AutoencoderKL`.
///
/// # Errors
/// As [`component_keys`].
pub fn vae_keys(config: &Value) -> Result<Vec<TensorSpec>, LayoutError> {
    let fields = Fields { model: "autoencoder", config };
    let channels = fields.list("block_out_channels")?;
    let levels = channels.len();
    fields.blocks("down_block_types", "", "DownEncoderBlock2D", levels)?;
    fields.blocks("up_block_types", "", "UpDecoderBlock2D", levels)?;
    let layers = fields.count("layers_per_block", 1, 16)?;
    let latent = fields.or("latent_channels", 4)?;
    let attention = fields.flag("mid_block_add_attention", true)?;
    let (first, last) = (channels[0], channels[levels - 1]);

    let mut list = List::default();
    list.layer("encoder.conv_in", &[first, fields.or("in_channels", 3)?, 3, 3]);
    for level in 0..levels {
        let width = channels[level];
        for block in 0..layers {
            let input = if block > 0 { width } else { channels[level.saturating_sub(1)] };
            list.resnet(&format!("encoder.down_blocks.{level}.resnets.{block}"), input, width, None);
        }
        if level + 1 < levels {
            list.layer(&format!("encoder.down_blocks.{level}.downsamplers.0.conv"), &[width, width, 3, 3]);
        }
    }
    list.vae_middle("encoder", last, attention);
    list.layer("encoder.conv_norm_out", &[last]);
    list.layer("encoder.conv_out", &[2 * latent, last, 3, 3]);
    list.layer("decoder.conv_in", &[last, latent, 3, 3]);
    list.vae_middle("decoder", last, attention);
    for step in 0..levels {
        let level = levels - 1 - step;
        let width = channels[level];
        for block in 0..=layers {
            let input = if block > 0 { width } else { channels[(level + 1).min(levels - 1)] };
            list.resnet(&format!("decoder.up_blocks.{step}.resnets.{block}"), input, width, None);
        }
        if level > 0 {
            list.layer(&format!("decoder.up_blocks.{step}.upsamplers.0.conv"), &[width, width, 3, 3]);
        }
    }
    list.layer("decoder.conv_norm_out", &[first]);
    list.layer("decoder.conv_out", &[fields.or("out_channels", 3)?, first, 3, 3]);
    if fields.flag("use_quant_conv", true)? {
        list.layer("quant_conv", &[2 * latent, 2 * latent, 1, 1]);
    }
    if fields.flag("use_post_quant_conv", true)? {
        list.layer("post_quant_conv", &[latent, latent, 1, 1]);
    }
    Ok(list.0)
}

/// The tensors of transformers' `CLIPTextModel`, or `CLIPTextModelWithProjection`, by a `CLIPTextConfig`.
///
/// # Errors
/// As [`component_keys`].
pub fn clip_text_keys(config: &Value, projection: bool) -> Result<Vec<TensorSpec>, LayoutError> {
    let fields = Fields { model: "CLIP text", config };
    let width = fields.or("hidden_size", 512)?;
    let mut list = List::default();
    list.weight("text_model.embeddings.token_embedding", &[fields.or("vocab_size", 49408)?, width]);
    list.weight("text_model.embeddings.position_embedding", &[fields.or("max_position_embeddings", 77)?, width]);
    let hidden = fields.or("intermediate_size", 2048)?;
    list.clip_layers("text_model", fields.count("num_hidden_layers", 12, 256)?, width, hidden);
    list.layer("text_model.final_layer_norm", &[width]);
    if projection {
        list.weight("text_projection", &[fields.or("projection_dim", 512)?, width]);
    }
    Ok(list.0)
}

/// The tensors of transformers' `CLIPVisionModelWithProjection`, by a `CLIPVisionConfig`.
///
/// # Errors
/// As [`component_keys`].
pub fn clip_vision_keys(config: &Value) -> Result<Vec<TensorSpec>, LayoutError> {
    let fields = Fields { model: "CLIP vision", config };
    let width = fields.or("hidden_size", 768)?;
    let patch = fields.or("patch_size", 32)?;
    let tokens = (fields.or("image_size", 224)? / patch).pow(2) + 1;
    let mut list = List::default();
    list.tensor("vision_model.embeddings.class_embedding".into(), &[width]);
    let shape = [width, fields.or("num_channels", 3)?, patch, patch];
    list.weight("vision_model.embeddings.patch_embedding", &shape);
    list.weight("vision_model.embeddings.position_embedding", &[tokens, width]);
    list.layer("vision_model.pre_layrnorm", &[width]);
    let hidden = fields.or("intermediate_size", 3072)?;
    list.clip_layers("vision_model", fields.count("num_hidden_layers", 12, 256)?, width, hidden);
    list.layer("vision_model.post_layernorm", &[width]);
    list.weight("visual_projection", &[fields.or("projection_dim", 512)?, width]);
    Ok(list.0)
}

/// The tensors of transformers' `CLIPModel`, by a `CLIPConfig`: both towers, projections, `logit_scale`.
///
/// # Errors
/// As [`component_keys`].
pub fn clip_keys(config: &Value) -> Result<Vec<TensorSpec>, LayoutError> {
    let mut list = List::default();
    list.tensor("logit_scale".into(), &[]);
    list.0.extend(clip_text_keys(&tower(config, "text_config"), true)?);
    list.0.extend(clip_vision_keys(&tower(config, "vision_config"))?);
    Ok(list.0)
}

/// The configuration of one tower of a `CLIPConfig`, with the common projection width.
pub(super) fn tower(config: &Value, name: &str) -> Value {
    let mut tower = config[name].clone();
    if !tower.is_object() {
        tower = serde_json::json!({});
    }
    tower["projection_dim"] =
        if config["projection_dim"].is_null() { 512.into() } else { config["projection_dim"].clone() };
    tower
}

/// The tensors of transformers' `ViTForImageClassification`, under the keys of its published files.
///
/// Two fields are Calotype's: `class_tokens` (NeMo trains with several) and `add_pooling_layer` (a `tanh` layer in front
/// of the classifier, as NeMo's pre-training head and the original ViT have it).
///
/// # Errors
/// As [`component_keys`].
pub fn vit_keys(config: &Value) -> Result<Vec<TensorSpec>, LayoutError> {
    let fields = Fields { model: "ViT", config };
    let width = fields.or("hidden_size", 768)?;
    let patch = fields.or("patch_size", 16)?;
    let hidden = fields.or("intermediate_size", 3072)?;
    let class_tokens = fields.or("class_tokens", 1)?;
    let tokens = (fields.or("image_size", 224)? / patch).pow(2) + class_tokens;
    let mut list = List::default();
    list.tensor("vit.embeddings.cls_token".into(), &[1, class_tokens, width]);
    list.tensor("vit.embeddings.position_embeddings".into(), &[1, tokens, width]);
    let shape = [width, fields.or("num_channels", 3)?, patch, patch];
    list.layer("vit.embeddings.patch_embeddings.projection", &shape);
    let bias = fields.flag("qkv_bias", true)?;
    for layer in (0..fields.count("num_hidden_layers", 12, 256)?).map(|layer| format!("vit.encoder.layer.{layer}")) {
        for projection in ["query", "key", "value"] {
            let name = format!("{layer}.attention.attention.{projection}");
            if bias { list.layer(&name, &[width, width]) } else { list.weight(&name, &[width, width]) }
        }
        list.layer(&format!("{layer}.attention.output.dense"), &[width, width]);
        list.layer(&format!("{layer}.layernorm_before"), &[width]);
        list.layer(&format!("{layer}.layernorm_after"), &[width]);
        list.layer(&format!("{layer}.intermediate.dense"), &[hidden, width]);
        list.layer(&format!("{layer}.output.dense"), &[width, hidden]);
    }
    list.layer("vit.layernorm", &[width]);
    if fields.flag("add_pooling_layer", false)? {
        list.layer("vit.pooler.dense", &[width, width]);
    }
    list.layer("classifier", &[classes(&fields)?, width]);
    Ok(list.0)
}

/// The number of classes: the length of `id2label`, else `num_labels`, else the library's default of two.
fn classes(fields: &Fields<'_>) -> Result<usize, LayoutError> {
    match fields.config["id2label"].as_object() {
        Some(labels) if !labels.is_empty() => Ok(labels.len()),
        _ => fields.or("num_labels", 2),
    }
}
