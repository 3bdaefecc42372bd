//! CLIP: a text tower and a picture tower in one space.

use crate::ConfigError;
use crate::init::Init;
use crate::layers::{Conv2d, Embedding, LayerNorm, Linear};
use burn::module::{Module, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};
use calotype_ops::{Activation, activation, attention};
use serde::{Deserialize, Serialize};

/// The activation between a transformer's two linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenActivation {
    /// `x · sigmoid(1.702 x)` (OpenAI's CLIP).
    QuickGelu,
    /// Exact GELU (OpenCLIP).
    Gelu,
}

/// The text tower; defaults are OpenCLIP ViT-H/14's, as Stable Diffusion 2 uses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// Entries of the token table.
    pub vocab_size: usize,
    /// Tokens of a prompt, start and end included.
    pub context_length: usize,
    /// Width of the states.
    pub channels: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Activation of the feed-forward layers.
    pub activation: HiddenActivation,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            context_length: 77,
            channels: 1024,
            layers: 24,
            heads: 16,
            activation: HiddenActivation::Gelu,
        }
    }
}

/// The picture tower; defaults are OpenCLIP ViT-H/14's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VisionConfig {
    /// Side of the square picture in pixels.
    pub image_size: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Width of the states.
    pub channels: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Activation of the feed-forward layers.
    pub activation: HiddenActivation,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 14,
            channels: 1280,
            layers: 32,
            heads: 16,
            activation: HiddenActivation::Gelu,
        }
    }
}

/// Both towers and their common space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipConfig {
    /// Dimension of the common space.
    pub projection: usize,
    /// The text tower.
    pub text: TextConfig,
    /// The picture tower.
    pub vision: VisionConfig,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self { projection: 1024, text: TextConfig::default(), vision: VisionConfig::default() }
    }
}

impl ClipConfig {
    /// Checks that heads divide channels and patches divide the picture.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (t, v) = (&self.text, &self.vision);
        ConfigError::check(t.heads > 0 && t.channels % t.heads == 0, "text.heads", || {
            format!("{} heads do not divide {} channels", t.heads, t.channels)
        })?;
        ConfigError::check(v.heads > 0 && v.channels % v.heads == 0, "vision.heads", || {
            format!("{} heads do not divide {} channels", v.heads, v.channels)
        })?;
        let divides = v.patch_size > 0 && v.image_size % v.patch_size == 0;
        ConfigError::check(divides, "vision.patch_size", || {
            format!("{} does not divide the picture's {} pixels", v.patch_size, v.image_size)
        })?;
        ConfigError::check(t.context_length >= 3, "text.context_length", || {
            "needs room for start, one token and end".into()
        })
    }

    /// Both towers with random weights, initialised as the CLIP reference does.
    ///
    /// # Errors
    /// As [`ClipConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<Clip, ConfigError> {
        self.validate()?;
        let (t, v) = (&self.text, &self.vision);
        Ok(Clip {
            text_model: TextModel {
                embeddings: TextEmbeddings {
                    token_embedding: Embedding::new(init, t.vocab_size, t.channels, 0.02),
                    position_embedding: Embedding::new(init, t.context_length, t.channels, 0.01),
                },
                encoder: Encoder::new(init, t.channels, t.layers, t.heads, t.activation),
                final_layer_norm: LayerNorm::new(init, t.channels),
            },
            vision_model: VisionModel::new(init, v),
            visual_projection: projection(init, v.channels, self.projection),
            text_projection: projection(init, t.channels, self.projection),
            // ln(1 / 0.07), the reference's initial temperature.
            logit_scale: init.constant([1], (1.0f32 / 0.07).ln()),
        })
    }
}

fn projection(init: &mut Init, inputs: usize, outputs: usize) -> Linear {
    Linear { weight: init.normal([outputs, inputs], (inputs as f32).powf(-0.5)), bias: None }
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    #[module(skip)]
    heads: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

#[derive(Module, Debug)]
struct EncoderLayer {
    self_attn: SelfAttention,
    layer_norm1: LayerNorm,
    mlp: Mlp,
    layer_norm2: LayerNorm,
    #[module(skip)]
    activation: HiddenActivation,
}

impl EncoderLayer {
    fn new(init: &mut Init, channels: usize, heads: usize, depth: usize, a: HiddenActivation) -> Self {
        // Deviations of the CLIP reference: narrower for layers that feed the residual stream.
        let attention = (channels as f32).powf(-0.5);
        let residual = attention * (2.0 * depth as f32).powf(-0.5);
        let hidden = (2.0 * channels as f32).powf(-0.5);
        Self {
            self_attn: SelfAttention {
                q_proj: Linear::normal(init, channels, channels, attention),
                k_proj: Linear::normal(init, channels, channels, attention),
                v_proj: Linear::normal(init, channels, channels, attention),
                out_proj: Linear::normal(init, channels, channels, residual),
                heads,
            },
            layer_norm1: LayerNorm::new(init, channels),
            mlp: Mlp {
                fc1: Linear::normal(init, channels, 4 * channels, hidden),
                fc2: Linear::normal(init, 4 * channels, channels, residual),
            },
            layer_norm2: LayerNorm::new(init, channels),
            activation: a,
        }
    }

    fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        let a = &self.self_attn;
        let h = self.layer_norm1.forward(x.clone());
        let scale = 1.0 / ((h.dims()[2] / a.heads) as f32).sqrt();
        let (q, k, v) = (a.q_proj.forward(h.clone()), a.k_proj.forward(h.clone()), a.v_proj.forward(h));
        let x = a.out_proj.forward_onto(attention(q, k, v, a.heads, causal, scale), x);
        let h = self.mlp.fc1.forward(self.layer_norm2.forward(x.clone()));
        let h = match self.activation {
            HiddenActivation::QuickGelu => activation(h, Activation::QuickGelu),
            HiddenActivation::Gelu => activation(h, Activation::Gelu),
        };
        self.mlp.fc2.forward_onto(h, x)
    }
}

#[derive(Module, Debug)]
struct Encoder {
    layers: Vec<EncoderLayer>,
}

impl Encoder {
    fn new(init: &mut Init, channels: usize, depth: usize, heads: usize, a: HiddenActivation) -> Self {
        Self { layers: (0..depth).map(|_| EncoderLayer::new(init, channels, heads, depth, a)).collect() }
    }

    fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        self.layers.iter().fold(x, |x, layer| layer.forward(x, causal))
    }
}

#[derive(Module, Debug)]
struct TextEmbeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

/// The text tower (`CLIPTextModel` of transformers).
#[derive(Module, Debug)]
pub struct TextModel {
    embeddings: TextEmbeddings,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
}

impl TextModel {
    /// The normalised last hidden states, which condition the UNet, computed with activations of type `dtype`.
    ///
    /// # Shapes
    /// `[batch, tokens]` to `[batch, tokens, channels]`
    pub fn states(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        let [_, tokens] = ids.dims();
        let positions = self.embeddings.position_embedding.weight.val().narrow(0, 0, tokens);
        let x = self.embeddings.token_embedding.forward(ids) + positions.unsqueeze();
        self.final_layer_norm.forward(self.encoder.forward(x.cast(dtype), true))
    }
}

#[derive(Module, Debug)]
struct VisionEmbeddings {
    class_embedding: Param<Tensor<1>>,
    patch_embedding: Conv2d,
    position_embedding: Embedding,
}

/// The picture tower (`CLIPVisionModel` of transformers).
#[derive(Module, Debug)]
pub struct VisionModel {
    embeddings: VisionEmbeddings,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
}

impl VisionModel {
    fn new(init: &mut Init, config: &VisionConfig) -> Self {
        let patches = (config.image_size / config.patch_size).pow(2);
        let (channels, deviation) = (config.channels, (config.channels as f32).powf(-0.5));
        Self {
            embeddings: VisionEmbeddings {
                class_embedding: init.normal([channels], deviation),
                patch_embedding: Conv2d::patches(init, 3, channels, config.patch_size),
                position_embedding: Embedding::new(init, patches + 1, channels, deviation),
            },
            pre_layrnorm: LayerNorm::new(init, channels),
            encoder: Encoder::new(init, channels, config.layers, config.heads, config.activation),
            post_layernorm: LayerNorm::new(init, channels),
        }
    }

    /// The normalised state of the class token.
    ///
    /// # Shapes
    /// `[batch, size, size, 3]` in `-1..1` to `[batch, channels]`
    pub fn pooled(&self, pictures: Tensor<4>) -> Tensor<2> {
        let e = &self.embeddings;
        let patches = e.patch_embedding.forward(pictures);
        let [batch, rows, columns, channels] = patches.dims();
        let dtype = patches.dtype();
        let class = e.class_embedding.val().cast(dtype).reshape([1, 1, channels]).expand([batch, 1, channels]);
        let patches = patches.reshape([batch, rows * columns, channels]);
        let positions: Tensor<3> = e.position_embedding.weight.val().cast(dtype).unsqueeze();
        let x = Tensor::cat(vec![class, patches], 1) + positions;
        let x = self.encoder.forward(self.pre_layrnorm.forward(x), false);
        self.post_layernorm.forward(x.narrow(1, 0, 1).reshape([batch, channels]))
    }
}

/// Both towers with their projections (`CLIPModel` of transformers; Radford et al. 2021).
#[derive(Module, Debug)]
pub struct Clip {
    /// The text tower.
    pub text_model: TextModel,
    /// The picture tower.
    pub vision_model: VisionModel,
    visual_projection: Linear,
    text_projection: Linear,
    logit_scale: Param<Tensor<1>>,
}

/// Largest inverse temperature of the contrastive loss, as in the reference.
const MAX_LOGIT_SCALE: f32 = 100.0;

impl Clip {
    /// Unit vectors of pictures in the common space, as `f32`.
    ///
    /// # Shapes
    /// `[batch, size, size, 3]` in `-1..1` to `[batch, projection]`
    pub fn picture_features(&self, pictures: Tensor<4>) -> Tensor<2> {
        normalise(self.visual_projection.forward(self.vision_model.pooled(pictures)))
    }

    /// Unit vectors of prompts in the common space, read at the end-of-text token, as `f32`; computed with activations of
    /// type `dtype`.
    ///
    /// # Shapes
    /// `ids`: `[batch, tokens]`, `ends`: the position of each row's end token; to
    /// `[batch, projection]`
    pub fn text_features(&self, ids: Tensor<2, Int>, ends: &[usize], dtype: DType) -> Tensor<2> {
        let states = self.text_model.states(ids, dtype);
        let [batch, tokens, channels] = states.dims();
        let rows: Vec<i32> = (0..batch).map(|i| (i * tokens + ends[i]) as i32).collect();
        let index = Tensor::<1, Int>::from_data(rows.as_slice(), &states.device());
        let pooled = states.reshape([batch * tokens, channels]).select(0, index);
        normalise(self.text_projection.forward(pooled))
    }

    /// Symmetric InfoNCE with the learned temperature (Radford et al. 2021, figure 3), shape `[1]`.
    ///
    /// Row `i` of both belongs together; all other rows are negatives.
    pub fn contrastive_loss(&self, pictures: Tensor<2>, texts: Tensor<2>) -> Tensor<1> {
        let scale = self.logit_scale.val().exp().clamp_max(MAX_LOGIT_SCALE);
        let logits = pictures.matmul(texts.transpose()) * scale.unsqueeze();
        let rows = diagonal_mean(log_softmax(logits.clone(), 1));
        let columns = diagonal_mean(log_softmax(logits, 0));
        (rows + columns).mul_scalar(-0.5)
    }
}

fn normalise(x: Tensor<2>) -> Tensor<2> {
    let x = x.cast(DType::F32);
    let length = x.clone().powi_scalar(2).sum_dim(1).add_scalar(1e-12).sqrt();
    x / length
}

/// The mean of a square matrix's diagonal.
fn diagonal_mean(matrix: Tensor<2>) -> Tensor<1> {
    let [n, _] = matrix.dims();
    let eye = Tensor::<2>::eye(n, &matrix.device());
    (matrix * eye).sum().div_scalar(n as f32)
}
