//! Pre-norm transformer blocks, which all encoders of text and images are made of.

use crate::init::Init;
use crate::layers::{LayerNorm, Linear};
use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor};
use calotype_ops::{Activation, activation, attention};
use serde::{Deserialize, Serialize};

/// The activation between a transformer's two linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenActivation {
    /// `x · sigmoid(1.702 x)` (OpenAI's CLIP).
    QuickGelu,
    /// Exact GELU, with erf (OpenCLIP, ViT).
    Gelu,
    /// GELU by its approximation with tanh.
    GeluTanh,
}

impl HiddenActivation {
    /// By the name that transformers' `hidden_act` has.
    pub(crate) fn from_transformers(name: &str) -> Option<Self> {
        match name {
            "quick_gelu" => Some(Self::QuickGelu),
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Some(Self::GeluTanh)
            }
            _ => None,
        }
    }

    pub(crate) fn kind(self) -> Activation {
        match self {
            Self::QuickGelu => Activation::QuickGelu,
            Self::Gelu => Activation::Gelu,
            Self::GeluTanh => Activation::GeluTanh,
        }
    }
}

/// Sizes of a stack of blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) channels: usize,
    /// Channels between the two linear layers.
    pub(crate) mlp_channels: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) activation: HiddenActivation,
    pub(crate) norm_eps: f32,
}

/// A block's layers, whatever names its checkpoint gives them.
pub(crate) struct Block<'a> {
    pub(crate) norms: [&'a LayerNorm; 2],
    pub(crate) query: &'a Linear,
    pub(crate) key: &'a Linear,
    pub(crate) value: &'a Linear,
    pub(crate) out: &'a Linear,
    pub(crate) mlp: [&'a Linear; 2],
    pub(crate) heads: usize,
    pub(crate) activation: HiddenActivation,
    /// Added to the scores, `[batch, 1, tokens, tokens]`; none: nothing, or what `causal` says.
    pub(crate) mask: Option<&'a Tensor<4>>,
}

/// Attention with a mask that is added to the scores, in `f32`: for the few prompts in which words are hidden.
///
/// # Shapes
/// `q`, `k`, `v`: `[batch, tokens, channels]`; `mask`: `[batch, 1, tokens, tokens]`
fn masked_attention([q, k, v]: [Tensor<3>; 3], heads: usize, scale: f32, mask: &Tensor<4>) -> Tensor<3> {
    let (dtype, [batch, tokens, channels]) = (q.dtype(), q.dims());
    let split =
        |x: Tensor<3>| x.cast(DType::F32).reshape([batch, tokens, heads, channels / heads]).permute([0, 2, 1, 3]);
    let scores = split(q).matmul(split(k).transpose()).mul_scalar(scale) + mask.clone();
    let y = softmax(scores, 3).matmul(split(v));
    y.permute([0, 2, 1, 3]).reshape([batch, tokens, channels]).cast(dtype)
}

impl Block<'_> {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`; where `drop` is given, it falls on what is added.
    ///
    /// # Shapes
    /// `[batch, tokens, channels]` to the same
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        causal: bool,
        mut drop: Option<&mut dyn FnMut(Tensor<3>) -> Tensor<3>>,
    ) -> Tensor<3> {
        let mut onto = |layer: &Linear, h: Tensor<3>, x: Tensor<3>| match &mut drop {
            Some(drop) => x + drop(layer.forward(h)),
            None => layer.forward_onto(h, x),
        };
        let h = self.norms[0].forward(x.clone());
        let scale = 1.0 / ((self.query.weight.dims()[0] / self.heads) as f32).sqrt();
        let (q, k, v) = (self.query.forward(h.clone()), self.key.forward(h.clone()), self.value.forward(h));
        let y = match self.mask {
            Some(mask) => masked_attention([q, k, v], self.heads, scale, mask),
            None => attention(q, k, v, self.heads, causal, scale),
        };
        let x = onto(self.out, y, x);
        let h = self.mlp[0].forward(self.norms[1].forward(x.clone()));
        onto(self.mlp[1], activation(h, self.activation.kind()), x)
    }
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

/// A block under the names of CLIP's checkpoints.
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
    fn new(init: &mut Init, sizes: Sizes) -> Self {
        let Sizes { channels, mlp_channels, layers, heads, activation, norm_eps } = sizes;
        // Deviations of the CLIP reference: narrower for layers that feed the residual stream.
        let attention = (channels as f32).powf(-0.5);
        let residual = attention * (2.0 * layers as f32).powf(-0.5);
        let hidden = (2.0 * channels as f32).powf(-0.5);
        Self {
            self_attn: SelfAttention {
                q_proj: Linear::normal(init, channels, channels, attention),
                k_proj: Linear::normal(init, channels, channels, attention),
                v_proj: Linear::normal(init, channels, channels, attention),
                out_proj: Linear::normal(init, channels, channels, residual),
                heads,
            },
            layer_norm1: LayerNorm::with_eps(init, channels, norm_eps),
            mlp: Mlp {
                fc1: Linear::normal(init, channels, mlp_channels, hidden),
                fc2: Linear::normal(init, mlp_channels, channels, residual),
            },
            layer_norm2: LayerNorm::with_eps(init, channels, norm_eps),
            activation,
        }
    }

    fn forward(&self, x: Tensor<3>, causal: bool, mask: Option<&Tensor<4>>) -> Tensor<3> {
        let a = &self.self_attn;
        let block = Block {
            norms: [&self.layer_norm1, &self.layer_norm2],
            query: &a.q_proj,
            key: &a.k_proj,
            value: &a.v_proj,
            out: &a.out_proj,
            mlp: [&self.mlp.fc1, &self.mlp.fc2],
            heads: a.heads,
            activation: self.activation,
            mask,
        };
        block.forward(x, causal, None)
    }
}

/// The blocks of one of CLIP's towers.
#[derive(Module, Debug)]
pub(crate) struct Encoder {
    layers: Vec<EncoderLayer>,
}

impl Encoder {
    pub(crate) fn new(init: &mut Init, sizes: Sizes) -> Self {
        Self { layers: (0..sizes.layers).map(|_| EncoderLayer::new(init, sizes)).collect() }
    }

    /// Number of blocks.
    pub(crate) fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The states behind the first `depth` blocks.
    pub(crate) fn forward(&self, x: Tensor<3>, causal: bool, depth: usize) -> Tensor<3> {
        self.layers.iter().take(depth).fold(x, |x, layer| layer.forward(x, causal, None))
    }

    /// The states behind the first `depth` blocks, with a mask `[batch, 1, tokens, tokens]` that is added to the scores.
    pub(crate) fn forward_masked(&self, x: Tensor<3>, mask: &Tensor<4>, depth: usize) -> Tensor<3> {
        self.layers.iter().take(depth).fold(x, |x, layer| layer.forward(x, false, Some(mask)))
    }

    /// The states in front of the first block and behind every block.
    pub(crate) fn all_states(&self, x: Tensor<3>, causal: bool) -> Vec<Tensor<3>> {
        let mut states = vec![x];
        for layer in &self.layers {
            let x = states[states.len() - 1].clone();
            states.push(layer.forward(x, causal, None));
        }
        states
    }
}
