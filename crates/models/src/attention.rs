//! Attention layers and the spatial transformer of the UNet.

use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, NoParameters};
use crate::resnet::NormOptions;
use burn::module::Module;
use burn::tensor::Tensor;
use calotype_ops::attention;

/// Multi-head attention as diffusers names it: `to_q`, `to_k`, `to_v` without bias, `to_out.0`
/// with.
#[derive(Module, Debug)]
pub struct CrossAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    #[module(skip)]
    heads: usize,
}

impl CrossAttention {
    /// Queries from `channels`, keys and values from `context` channels.
    pub fn new(init: &mut Init, channels: usize, context: usize, heads: usize) -> Self {
        Self {
            to_q: Linear::without_bias(init, channels, channels),
            to_k: Linear::without_bias(init, context, channels),
            to_v: Linear::without_bias(init, context, channels),
            to_out: vec![Linear::new(init, channels, channels)],
            heads,
        }
    }

    /// # Shapes
    /// `x` and `residual`: `[batch, tokens, channels]`, `context`: `[batch, keys, context]`
    pub fn forward_onto(&self, x: Tensor<3>, context: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let channels = x.dims()[2];
        let q = self.to_q.forward(x);
        let (k, v) = (self.to_k.forward(context.clone()), self.to_v.forward(context));
        let scale = 1.0 / ((channels / self.heads) as f32).sqrt();
        let y = attention(q, k, v, self.heads, false, scale);
        self.to_out[0].forward_onto(y, residual)
    }
}

/// The doubled projection in front of GEGLU.
#[derive(Module, Debug)]
struct GegluProjection {
    proj: Linear,
}

/// GEGLU feed-forward of four times the width.
#[derive(Module, Debug)]
pub struct FeedForward {
    net: (GegluProjection, NoParameters, Linear),
}

impl FeedForward {
    /// Inner width `4 * channels`.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        let inner = 4 * channels;
        Self {
            net: (
                GegluProjection { proj: Linear::new(init, channels, 2 * inner).gated() },
                NoParameters::new("dropout"),
                Linear::new(init, inner, channels),
            ),
        }
    }

    /// # Shapes
    /// `x` and `residual`: `[batch, tokens, channels]`
    pub fn forward_onto(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.net.2.forward_onto(self.net.0.proj.forward_geglu(x), residual)
    }
}

/// `BasicTransformerBlock`: self-attention, cross-attention to the text, feed-forward; each after a
/// layer norm and added to its input.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    norm1: LayerNorm,
    attn1: CrossAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    /// `context` is the width of the text encoder's states.
    pub fn new(init: &mut Init, channels: usize, context: usize, heads: usize) -> Self {
        Self {
            norm1: LayerNorm::new(init, channels),
            attn1: CrossAttention::new(init, channels, channels, heads),
            norm2: LayerNorm::new(init, channels),
            attn2: CrossAttention::new(init, channels, context, heads),
            norm3: LayerNorm::new(init, channels),
            ff: FeedForward::new(init, channels),
        }
    }

    /// # Shapes
    /// `x`: `[batch, tokens, channels]`, `context`: `[batch, keys, context]`
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let h = self.norm1.forward(x.clone());
        let x = self.attn1.forward_onto(h.clone(), h, x);
        let x = self.attn2.forward_onto(self.norm2.forward(x.clone()), context, x);
        self.ff.forward_onto(self.norm3.forward(x.clone()), x)
    }
}

/// A map of every pixel's channels. Stable Diffusion 1 stores it as a 1x1 convolution, later models as a linear layer:
/// the same arithmetic, another shape in the checkpoint.
#[derive(Module, Debug)]
pub enum PixelProjection {
    /// Weights `[out, in]`.
    Linear(Linear),
    /// Weights `[out, in, 1, 1]` in the checkpoint.
    Convolution(Conv2d),
}

impl PixelProjection {
    /// # Shapes
    /// `x` and `residual`: `[batch, height, width, channels]`
    fn forward(&self, x: Tensor<4>, residual: Option<Tensor<4>>) -> Tensor<4> {
        match (self, residual) {
            (Self::Linear(map), None) => map.forward(x),
            (Self::Linear(map), Some(residual)) => map.forward_onto(x, residual),
            (Self::Convolution(map), residual) => map.forward_with(x, None, residual),
        }
    }
}

/// The shape of a spatial transformer.
#[derive(Clone, Copy, Debug)]
pub struct TransformerShape {
    /// Channels of the pixels.
    pub channels: usize,
    /// Channels of the text states.
    pub context: usize,
    /// Attention heads.
    pub heads: usize,
    /// Transformer blocks.
    pub depth: usize,
    /// True if the projections are stored as linear layers.
    pub linear_projection: bool,
    /// The norm in front.
    pub norm: NormOptions,
}

/// `Transformer2DModel`: norm, projection, transformer blocks over the pixels, projection, plus the
/// input.
#[derive(Module, Debug)]
pub struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: PixelProjection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: PixelProjection,
}

impl SpatialTransformer {
    /// Random weights; the last projection starts at zero, as in the LDM reference.
    pub fn new(init: &mut Init, shape: TransformerShape) -> Self {
        let TransformerShape { channels, context, heads, depth, linear_projection, norm } = shape;
        let projection = |init: &mut Init, zero: bool| match (linear_projection, zero) {
            (true, false) => PixelProjection::Linear(Linear::new(init, channels, channels)),
            (true, true) => PixelProjection::Linear(Linear::zero(init, channels, channels)),
            (false, false) => PixelProjection::Convolution(Conv2d::same(init, channels, channels, 1)),
            (false, true) => PixelProjection::Convolution(Conv2d::zero(init, channels, channels, 1)),
        };
        Self {
            norm: GroupNorm::new(init, channels, norm.groups, norm.eps),
            proj_in: projection(init, false),
            transformer_blocks: (0..depth).map(|_| TransformerBlock::new(init, channels, context, heads)).collect(),
            proj_out: projection(init, true),
        }
    }

    /// Channels of the text states; none without transformer blocks.
    pub fn context_channels(&self) -> Option<usize> {
        self.transformer_blocks.first().map(|block| block.attn2.to_k.weight.dims()[1])
    }

    /// # Shapes
    /// `x`: `[batch, height, width, channels]`, `context`: `[batch, keys, context]`
    pub fn forward(&self, x: Tensor<4>, context: Tensor<3>) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let h = self.proj_in.forward(self.norm.forward(x.clone()), None);
        let mut h = h.reshape([batch, height * width, channels]);
        for block in &self.transformer_blocks {
            h = block.forward(h, context.clone());
        }
        self.proj_out.forward(h.reshape([batch, height, width, channels]), Some(x))
    }
}

/// The single-head attention over pixels in the middle of the autoencoder: all projections biased,
/// group norm in front, the input added.
#[derive(Module, Debug)]
pub struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
}

impl PixelAttention {
    /// One head of all channels.
    pub fn new(init: &mut Init, channels: usize, norm: NormOptions) -> Self {
        Self {
            group_norm: GroupNorm::new(init, channels, norm.groups, norm.eps),
            to_q: Linear::new(init, channels, channels),
            to_k: Linear::new(init, channels, channels),
            to_v: Linear::new(init, channels, channels),
            to_out: vec![Linear::new(init, channels, channels)],
        }
    }

    /// # Shapes
    /// `[batch, height, width, channels]` to the same
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let tokens = [batch, height * width, channels];
        let h = self.group_norm.forward(x.clone()).reshape(tokens);
        let q = self.to_q.forward(h.clone());
        let k = self.to_k.forward(h.clone());
        let v = self.to_v.forward(h);
        let y = attention(q, k, v, 1, false, 1.0 / (channels as f32).sqrt());
        let y = self.to_out[0].forward_onto(y, x.reshape(tokens));
        y.reshape([batch, height, width, channels])
    }
}
