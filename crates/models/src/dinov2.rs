//! DINOv2 (Oquab et al. 2024): a vision transformer that was trained without labels, whose features the Fréchet distance
//! of Stein et al. 2023 compares. With and without registers (Darcet et al. 2024).

use crate::init::Init;
use crate::layers::{LayerNorm, Linear};
use crate::positions::{PositionInterpolation, shares};
use crate::transformer::HiddenActivation;
use crate::transformers::{activation, without};
use crate::vision::{check_patches, with_class_token};
use crate::vit::{DEVIATION, PatchEmbeddings, SelfAttention};
use crate::{ConfigError, InputError};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use calotype_core::fields::{Fields, FieldsError, MOST};
use calotype_ops::{Activation, attention};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The network; defaults are those of DINOv2 ViT-B/14 in transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dinov2Config {
    /// Side in pixels of the square image that the position embeddings are for; published ones are for 518.
    pub image_size: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Width of the states.
    pub channels: usize,
    /// Width between the linear layers of a block.
    pub mlp_channels: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Activation of feed-forward layers that are not gated.
    pub activation: HiddenActivation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// True if queries, keys and values have biases.
    pub qkv_bias: bool,
    /// True for feed-forward layers with SwiGLU (Shazeer 2020), as in the giant network.
    pub swiglu: bool,
    /// Tokens between the class token and the patches, without positions.
    pub registers: usize,
    /// True if the token that stood for hidden patches in training is among the weights; nothing else reads it.
    pub mask_token: bool,
    /// How position embeddings are brought to other grids.
    pub interpolation: PositionInterpolation,
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 14,
            channels: 768,
            mlp_channels: 3072,
            layers: 12,
            heads: 12,
            activation: HiddenActivation::Gelu,
            norm_eps: 1e-6,
            qkv_bias: true,
            swiglu: false,
            registers: 0,
            mask_token: true,
            interpolation: PositionInterpolation::Grid,
        }
    }
}

impl Dinov2Config {
    /// From the `config.json` of a `Dinov2Model` or a `Dinov2WithRegistersModel`, as transformers writes it. One more field,
    /// `position_interpolation`, says what other libraries' models do (`grid`, `offset`, `smooth`).
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        const REGISTERS: &str = "dinov2_with_registers";
        let mut fields = Fields::new("Dinov2Model", config);
        fields.kind("model_type", &["dinov2", REGISTERS]);
        let has_registers = fields.raw("model_type").is_some_and(|kind| kind == REGISTERS);
        fields.fixed("num_channels", &[json!(3)]);
        without(&mut fields, &["attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate"]);
        let (patch_size, usual) =
            if has_registers { (16, PositionInterpolation::Smooth) } else { (14, PositionInterpolation::Grid) };
        let channels = fields.size("hidden_size", 768);
        let heads = fields.size("num_attention_heads", 12);
        fields.fixed("head_dim", &[json!(channels / heads)]);
        let swiglu = fields.get("use_swiglu_ffn", false);
        let ratio = fields.number("mlp_ratio", 4.0);
        let hidden = channels as f64 * ratio;
        fields.check((1.0..=MOST as f64).contains(&hidden), "mlp_ratio", || {
            format!("times hidden_size must give a width from 1 to {MOST}")
        });
        let dinov2 = Self {
            image_size: fields.square("image_size", 224),
            patch_size: fields.square("patch_size", patch_size),
            channels,
            mlp_channels: if swiglu { gated_width(hidden as usize) } else { hidden as usize },
            layers: fields.count("num_hidden_layers", 12),
            heads,
            activation: activation(&mut fields, HiddenActivation::Gelu),
            norm_eps: fields.number("layer_norm_eps", 1e-6) as f32,
            qkv_bias: fields.get("qkv_bias", true),
            swiglu,
            registers: if has_registers { fields.whole("num_register_tokens", 4, 0..=MOST) } else { 0 },
            mask_token: fields.get("use_mask_token", true),
            interpolation: fields.get("position_interpolation", usual),
        };
        fields.finish_checked(dinov2, Self::validate)
    }

    /// Checks that heads divide channels and patches the image.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check(self.heads > 0 && self.channels.is_multiple_of(self.heads), "heads", || {
            format!("{} heads do not divide {} channels", self.heads, self.channels)
        })?;
        check_patches("patch_size", self.image_size, self.patch_size)
    }

    /// The network with random weights, initialised as transformers does: normal of deviation 0.02, biases zero, layer
    /// scales one.
    ///
    /// # Errors
    /// As [`Dinov2Config::validate`].
    pub fn init(&self, init: &mut Init) -> Result<Dinov2, ConfigError> {
        self.validate()?;
        let patches = (self.image_size / self.patch_size).pow(2);
        let channels = self.channels;
        Ok(Dinov2 {
            embeddings: Embeddings {
                cls_token: init.normal([1, 1, channels], DEVIATION),
                mask_token: self.mask_token.then(|| init.constant([1, channels], 0.0)),
                register_tokens: (self.registers > 0).then(|| init.normal([1, self.registers, channels], DEVIATION)),
                position_embeddings: init.normal([1, 1 + patches, channels], DEVIATION),
                patch_embeddings: PatchEmbeddings::new(init, channels, self.patch_size),
            },
            encoder: Layers { layer: (0..self.layers).map(|_| Layer::new(init, self)).collect() },
            layernorm: LayerNorm::with_eps(init, channels, self.norm_eps),
            patch_size: self.patch_size,
            interpolation: self.interpolation,
        })
    }
}

/// Width of SwiGLU's layers in place of a feed-forward layer of `hidden`: two thirds, up to a multiple of 8.
fn gated_width(hidden: usize) -> usize {
    (hidden * 2 / 3).next_multiple_of(8)
}

#[derive(Module, Debug)]
struct Embeddings {
    cls_token: Param<Tensor<3>>,
    mask_token: Option<Param<Tensor<2>>>,
    register_tokens: Option<Param<Tensor<3>>>,
    position_embeddings: Param<Tensor<3>>,
    patch_embeddings: PatchEmbeddings,
}

/// A learned factor for each channel (Touvron et al. 2021, "Going deeper with image transformers").
#[derive(Module, Debug)]
struct LayerScale {
    lambda1: Param<Tensor<1>>,
}

impl LayerScale {
    /// `x + scale · h`
    fn add_onto(&self, h: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        let scale: Tensor<3> = self.lambda1.val().cast(h.dtype()).unsqueeze();
        x + h * scale
    }
}

#[derive(Module, Debug)]
struct PlainMlp {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    activation: HiddenActivation,
}

/// The gates come first among the outputs of `weights_in`.
#[derive(Module, Debug)]
struct GatedMlp {
    weights_in: Linear,
    weights_out: Linear,
}

#[derive(Module, Debug)]
enum Mlp {
    Plain(PlainMlp),
    Gated(GatedMlp),
}

impl Mlp {
    fn forward(&self, h: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Plain(mlp) => mlp.fc2.forward(calotype_ops::activation(mlp.fc1.forward(h), mlp.activation.kind())),
            Self::Gated(mlp) => {
                let h = mlp.weights_in.forward(h);
                let hidden = h.dims()[2] / 2;
                let gates = calotype_ops::activation(h.clone().narrow(2, 0, hidden), Activation::Silu);
                mlp.weights_out.forward(gates * h.narrow(2, hidden, hidden))
            }
        }
    }
}

#[derive(Module, Debug)]
struct Layer {
    norm1: LayerNorm,
    attention: SelfAttention,
    layer_scale1: LayerScale,
    norm2: LayerNorm,
    mlp: Mlp,
    layer_scale2: LayerScale,
    #[module(skip)]
    heads: usize,
}

impl Layer {
    fn new(init: &mut Init, config: &Dinov2Config) -> Self {
        let (channels, hidden) = (config.channels, config.mlp_channels);
        let scale = |init: &mut Init| LayerScale { lambda1: init.constant([channels], 1.0) };
        Self {
            norm1: LayerNorm::with_eps(init, channels, config.norm_eps),
            attention: SelfAttention::new(init, channels, config.qkv_bias),
            layer_scale1: scale(init),
            norm2: LayerNorm::with_eps(init, channels, config.norm_eps),
            mlp: match config.swiglu {
                true => Mlp::Gated(GatedMlp {
                    weights_in: Linear::normal(init, channels, 2 * hidden, DEVIATION),
                    weights_out: Linear::normal(init, hidden, channels, DEVIATION),
                }),
                false => Mlp::Plain(PlainMlp {
                    fc1: Linear::normal(init, channels, hidden, DEVIATION),
                    fc2: Linear::normal(init, hidden, channels, DEVIATION),
                    activation: config.activation,
                }),
            },
            layer_scale2: scale(init),
            heads: config.heads,
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let h = self.norm1.forward(x.clone());
        let [q, k, v] = self.attention.project(h);
        let scale = 1.0 / ((q.dims()[2] / self.heads) as f32).sqrt();
        let y = attention(q, k, v, self.heads, false, scale);
        let x = self.layer_scale1.add_onto(self.attention.output.dense.forward(y), x);
        let h = self.mlp.forward(self.norm2.forward(x.clone()));
        self.layer_scale2.add_onto(h, x)
    }
}

#[derive(Module, Debug)]
struct Layers {
    layer: Vec<Layer>,
}

/// The network (`Dinov2Model`, `Dinov2WithRegistersModel` of transformers).
#[derive(Module, Debug)]
pub struct Dinov2 {
    embeddings: Embeddings,
    encoder: Layers,
    layernorm: LayerNorm,
    #[module(skip)]
    patch_size: usize,
    #[module(skip)]
    interpolation: PositionInterpolation,
}

impl Dinov2 {
    /// The normalised states behind the last layer: class token, registers, patches by rows. The images' dtype is the
    /// precision of the pass. Position embeddings are brought to the images' grid of patches; what is left of a side beyond
    /// whole patches is not looked at.
    ///
    /// # Shapes
    /// `[batch, height, width, 3]`, normalised as in training, to `[batch, 1 + registers + patches, channels]`
    ///
    /// # Errors
    /// [`InputError`] if the images do not have three channels, or are smaller than a patch.
    pub fn last_hidden_state(&self, images: Tensor<4>) -> Result<Tensor<3>, InputError> {
        let [_, height, width, channels] = images.dims();
        let least = self.patch_size;
        if channels != 3 || height < least || width < least {
            return Err(InputError::Small { found: [height, width, channels], least });
        }
        let x = self.embed(images);
        Ok(self.layernorm.forward(self.encoder.layer.iter().fold(x, |x, layer| layer.forward(x))))
    }

    /// The normalised state of the class token (`pooler_output`), which distances are computed of.
    ///
    /// # Shapes
    /// `[batch, height, width, 3]` to `[batch, channels]`
    ///
    /// # Errors
    /// As [`Dinov2::last_hidden_state`].
    pub fn pooled(&self, images: Tensor<4>) -> Result<Tensor<2>, InputError> {
        let states = self.last_hidden_state(images)?;
        let [batch, _, channels] = states.dims();
        Ok(states.narrow(1, 0, 1).reshape([batch, channels]))
    }

    fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let e = &self.embeddings;
        let patches = e.patch_embeddings.projection.forward(images);
        let [batch, rows, columns, channels] = patches.dims();
        let positions = self.positions([rows, columns]);
        let x = with_class_token(patches, e.cls_token.val(), positions);
        let Some(registers) = &e.register_tokens else { return x };
        let registers = registers.val().cast(x.dtype());
        let [_, count, _] = registers.dims();
        let class = x.clone().narrow(1, 0, 1);
        let patches = x.narrow(1, 1, rows * columns);
        Tensor::cat(vec![class, registers.expand([batch, count, channels]), patches], 1)
    }

    /// Embeddings of the class token's position and those of a grid, `[1, 1 + rows · columns, channels]`.
    fn positions(&self, [rows, columns]: [usize; 2]) -> Tensor<3> {
        let own = self.embeddings.position_embeddings.val();
        let [_, tokens, channels] = own.dims();
        let side = (tokens - 1).isqrt();
        if [rows, columns] == [side, side] {
            return own;
        }
        let device = own.device();
        let map = |to: usize| -> Tensor<2> {
            Tensor::from_data(TensorData::new(shares(side, to, self.interpolation), [to, side]), &device)
        };
        let grid = own.clone().narrow(1, 1, tokens - 1).cast(DType::F32).reshape([side, side * channels]);
        let turned = |x: Tensor<2>, [a, b]: [usize; 2]| x.reshape([a, b, channels]).swap_dims(0, 1);
        let by_rows = turned(map(rows).matmul(grid), [rows, side]).reshape([side, rows * channels]);
        let grid = turned(map(columns).matmul(by_rows), [columns, rows]).reshape([1, rows * columns, channels]);
        Tensor::cat(vec![own.narrow(1, 0, 1).cast(DType::F32), grid], 1)
    }
}
