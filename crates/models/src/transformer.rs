//! Pre-norm transformer blocks, which all encoders of text and images are made of.

use crate::init::Init;
use crate::layers::{LayerNorm, Linear};
use crate::parallel::TensorParallel;
use crate::recompute::{Recompute, Stacked, through};
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
    /// Who computes the block together, where it is a part.
    pub(crate) parallel: Option<&'a TensorParallel>,
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
            Some(drop) => x + drop(self.leave(layer, h, None)),
            None => self.leave(layer, h, Some(x)),
        };
        let h = self.enter(self.norms[0].forward(x.clone()));
        let scale = 1.0 / ((self.query.weight.dims()[0] / self.heads) as f32).sqrt();
        let (q, k, v) = (self.query.forward(h.clone()), self.key.forward(h.clone()), self.value.forward(h));
        let y = match self.mask {
            Some(mask) => masked_attention([q, k, v], self.heads, scale, mask),
            None => attention(q, k, v, self.heads, causal, scale),
        };
        let x = onto(self.out, y, x);
        let h = self.mlp[0].forward(self.enter(self.norms[1].forward(x.clone())));
        onto(self.mlp[1], activation(h, self.activation.kind()), x)
    }

    /// The input of layers that are shared out, where they are.
    fn enter(&self, h: Tensor<3>) -> Tensor<3> {
        match self.parallel {
            Some(parallel) => parallel.enter(h),
            None => h,
        }
    }

    /// The layer behind what is shared out, where it is, plus a residual.
    fn leave(&self, layer: &Linear, h: Tensor<3>, residual: Option<Tensor<3>>) -> Tensor<3> {
        match (self.parallel, residual) {
            (Some(parallel), residual) => layer.forward_summed(h, residual, parallel),
            (None, Some(residual)) => layer.forward_onto(h, residual),
            (None, None) => layer.forward(h),
        }
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
    #[module(skip)]
    parallel: Option<TensorParallel>,
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
            parallel: None,
        }
    }

    /// This process's part of the block, whose heads and channels the processes divide.
    fn part_of(self, parallel: &TensorParallel) -> Self {
        let SelfAttention { q_proj, k_proj, v_proj, out_proj, heads } = self.self_attn;
        Self {
            self_attn: SelfAttention {
                q_proj: q_proj.with_outputs_of(parallel),
                k_proj: k_proj.with_outputs_of(parallel),
                v_proj: v_proj.with_outputs_of(parallel),
                out_proj: out_proj.with_inputs_of(parallel),
                heads: heads / parallel.world(),
            },
            mlp: Mlp { fc1: self.mlp.fc1.with_outputs_of(parallel), fc2: self.mlp.fc2.with_inputs_of(parallel) },
            parallel: Some(parallel.clone()),
            ..self
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
            parallel: self.parallel.as_ref(),
        };
        block.forward(x, causal, None)
    }
}

/// A block with what says which tokens it sees.
#[derive(Module, Debug)]
struct StackedLayer {
    layer: EncoderLayer,
    #[module(skip)]
    causal: bool,
}

impl Stacked for StackedLayer {
    fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        self.layer.forward(x, self.causal, None)
    }
}

/// The blocks of one of CLIP's towers.
#[derive(Module, Debug)]
pub(crate) struct Encoder {
    layers: Vec<EncoderLayer>,
    /// The blocks that training computes twice.
    #[module(skip)]
    recompute: Option<Recompute>,
}

impl Encoder {
    pub(crate) fn new(init: &mut Init, sizes: Sizes) -> Self {
        Self { layers: (0..sizes.layers).map(|_| EncoderLayer::new(init, sizes)).collect(), recompute: None }
    }

    /// The same blocks, of which training computes some twice.
    pub(crate) fn recomputing(self, recompute: Option<Recompute>) -> Self {
        Self { recompute, ..self }
    }

    /// This process's part of every block.
    pub(crate) fn part_of(mut self, parallel: &TensorParallel) -> Self {
        self.layers = self.layers.into_iter().map(|layer| layer.part_of(parallel)).collect();
        self
    }

    /// Number of blocks.
    pub(crate) fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The states behind the first `depth` blocks.
    pub(crate) fn forward(&self, x: Tensor<3>, causal: bool, depth: usize) -> Tensor<3> {
        let keeping = |at: usize, x| self.layers[at].forward(x, causal, None);
        let block = |at: usize| StackedLayer { layer: self.layers[at].clone(), causal };
        through(self.recompute, depth.min(self.depth()), x, keeping, block)
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
