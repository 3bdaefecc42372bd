//! The layers with parameters that all models are built of.

use crate::init::Init;
use crate::observe;
use crate::weight::LayerWeight;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use calotype_ops::{self as ops, Conv2dGeometry, WeightUse};

/// Affine map of the last dimension.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: LayerWeight<2>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Random weights as torch initialises them, with a bias.
    pub fn new(init: &mut Init, inputs: usize, outputs: usize) -> Self {
        let weight = init.fan_in_uniform([outputs, inputs], inputs);
        let bias = Some(init.fan_in_uniform([outputs], inputs));
        Self::from_parameters(weight, bias)
    }

    /// From given parameters.
    pub fn from_parameters(weight: Param<Tensor<2>>, bias: Option<Param<Tensor<1>>>) -> Self {
        Self { weight: LayerWeight::new(weight, WeightUse::Linear), bias }
    }

    /// The same layer, for [`Linear::forward_geglu`].
    pub fn gated(self) -> Self {
        Self { weight: self.weight.used_in(WeightUse::LinearGeglu), ..self }
    }

    /// Random weights as torch initialises them, without a bias.
    pub fn without_bias(init: &mut Init, inputs: usize, outputs: usize) -> Self {
        Self::from_parameters(init.fan_in_uniform([outputs, inputs], inputs), None)
    }

    /// Normal weights of the given deviation and a zero bias.
    pub fn normal(init: &mut Init, inputs: usize, outputs: usize, deviation: f32) -> Self {
        let weight = init.normal([outputs, inputs], deviation);
        Self::from_parameters(weight, Some(init.constant([outputs], 0.0)))
    }

    /// All zeros: the layer starts as if it were absent.
    pub fn zero(init: &mut Init, inputs: usize, outputs: usize) -> Self {
        let weight = init.constant([outputs, inputs], 0.0);
        Self::from_parameters(weight, Some(init.constant([outputs], 0.0)))
    }

    /// # Shapes
    /// `[.., in]` to `[.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        observe::input(&self.weight, &x);
        ops::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val), None)
    }

    /// The map, whose outputs are values and as many gates, then GEGLU; for layers that are [`Linear::gated`].
    ///
    /// # Shapes
    /// `[.., in]` to `[.., out / 2]`
    pub fn forward_geglu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        observe::input(&self.weight, &x);
        ops::linear_geglu(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }

    /// The map plus a residual of the output's shape.
    pub fn forward_onto<const D: usize>(&self, x: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        observe::input(&self.weight, &x);
        ops::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val), Some(residual))
    }
}

/// Two-dimensional convolution of channels-last images.
///
/// The weight is kept as `[out, rows, columns, in]`; checkpoints hold `[out, in, rows, columns]`
/// (see [`crate::state`]).
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, rows, columns, in]`
    pub weight: LayerWeight<4>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    geometry: Conv2dGeometry,
}

impl Conv2d {
    /// Random weights as torch initialises them, with a bias.
    pub fn new(init: &mut Init, inputs: usize, outputs: usize, kernel: usize, geometry: Conv2dGeometry) -> Self {
        let fan_in = inputs * kernel * kernel;
        let weight = init.fan_in_uniform([outputs, kernel, kernel, inputs], fan_in);
        Self::from_parameters(weight, Some(init.fan_in_uniform([outputs], fan_in)), geometry)
    }

    /// A square kernel of odd size whose output has the input's size.
    pub fn same(init: &mut Init, inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self::new(init, inputs, outputs, kernel, Conv2dGeometry::same(kernel))
    }

    /// Like [`Conv2d::same`] with all weights zero.
    pub fn zero(init: &mut Init, inputs: usize, outputs: usize, kernel: usize) -> Self {
        let weight = init.constant([outputs, kernel, kernel, inputs], 0.0);
        Self::from_parameters(weight, Some(init.constant([outputs], 0.0)), Conv2dGeometry::same(kernel))
    }

    /// The same convolution with another initial bias.
    pub fn with_bias(mut self, init: &mut Init, bias: &[f32]) -> Self {
        self.bias = Some(init.values(bias));
        self
    }

    /// Non-overlapping patches without a bias, as CLIP's vision tower embeds them.
    pub fn patches(init: &mut Init, inputs: usize, outputs: usize, size: usize) -> Self {
        let fan_in = inputs * size * size;
        let weight = init.fan_in_uniform([outputs, size, size, inputs], fan_in);
        Self::from_parameters(weight, None, Conv2dGeometry::patches(size))
    }

    /// From given parameters.
    pub fn from_parameters(weight: Param<Tensor<4>>, bias: Option<Param<Tensor<1>>>, geometry: Conv2dGeometry) -> Self {
        Self { weight: LayerWeight::new(weight, WeightUse::Conv2d), bias, geometry }
    }

    /// Stride and padding.
    pub fn geometry(&self) -> Conv2dGeometry {
        self.geometry
    }

    /// Channels of the input.
    pub fn inputs(&self) -> usize {
        self.weight.dims()[3]
    }

    /// # Shapes
    /// `[batch, height, width, in]` to `[batch, out height, out width, out]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.forward_with(x, None, None)
    }

    /// The convolution plus `[batch, out]` at every pixel plus a residual of the output's shape.
    pub fn forward_with(&self, x: Tensor<4>, channel_add: Option<Tensor<2>>, residual: Option<Tensor<4>>) -> Tensor<4> {
        observe::input(&self.weight, &x);
        let bias = self.bias.as_ref().map(Param::val);
        ops::conv2d(x, self.weight.val(), bias, channel_add, residual, self.geometry)
    }
}

/// Group normalisation with learned scale and shift.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`
    pub weight: Param<Tensor<1>>,
    /// `[channels]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    eps: f32,
}

impl GroupNorm {
    /// Scale one, shift zero.
    pub fn new(init: &mut Init, channels: usize, groups: usize, eps: f32) -> Self {
        let (weight, bias) = (init.constant([channels], 1.0), init.constant([channels], 0.0));
        Self { weight, bias, groups, eps }
    }

    /// # Shapes
    /// `[batch, .., channels]` to the same
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::group_norm(x, self.weight.val(), self.bias.val(), self.groups, self.eps, false)
    }

    /// The normalisation followed by SiLU.
    pub fn forward_silu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::group_norm(x, self.weight.val(), self.bias.val(), self.groups, self.eps, true)
    }
}

/// Layer normalisation with learned scale and shift.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[channels]`
    pub weight: Param<Tensor<1>>,
    /// `[channels]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f32,
}

impl LayerNorm {
    /// Scale one, shift zero, epsilon `1e-5`.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        Self::with_eps(init, channels, 1e-5)
    }

    /// Scale one, shift zero.
    pub fn with_eps(init: &mut Init, channels: usize, eps: f32) -> Self {
        let (weight, bias) = (init.constant([channels], 1.0), init.constant([channels], 0.0));
        Self { weight, bias, eps }
    }

    /// # Shapes
    /// `[.., channels]` to the same
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// A table of vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[entries, channels]`
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Normal entries of the given deviation.
    pub fn new(init: &mut Init, entries: usize, channels: usize, deviation: f32) -> Self {
        Self { weight: init.normal([entries, channels], deviation) }
    }

    /// # Shapes
    /// `[batch, tokens]` to `[batch, tokens, channels]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        burn::tensor::module::embedding(self.weight.val(), ids)
    }
}

/// A place in a checkpoint's numbering that holds no parameters (dropout, activation).
#[derive(Module, Debug)]
pub struct NoParameters {
    #[module(skip)]
    kind: &'static str,
}

impl NoParameters {
    /// Names what stands there in the reference.
    pub fn new(kind: &'static str) -> Self {
        Self { kind }
    }
}
