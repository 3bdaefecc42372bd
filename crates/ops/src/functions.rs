//! The operations as functions of Burn tensors: kernels where the device has them, else portable.

use crate::flex::{DiffusionOps, OptionalTensor};
use crate::{Activation, Conv2dGeometry, PoolGeometry, Pooling, Weight, portable, uses_kernels};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

fn optional<const D: usize>(tensor: Option<Tensor<D>>) -> OptionalTensor<Dispatch> {
    match tensor {
        Some(tensor) => OptionalTensor::Some(tensor.into_dispatch()),
        None => OptionalTensor::None,
    }
}

/// Two-dimensional convolution with its usual companions added in the same pass.
///
/// `y = conv(x, weight) + bias + channel_add + residual`
///
/// # Shapes
/// - `x`: `[batch, height, width, in]`
/// - `weight`: `[out, rows, columns, in]`, `f32`, or for inference `bf16` or packed
/// - `bias`: `[out]`, `f32`
/// - `channel_add`: `[batch, out]`, added to every pixel (the time embedding of a ResBlock)
/// - `residual` and the result: `[batch, out height, out width, out]`
pub fn conv2d(
    x: Tensor<4>,
    weight: impl Into<Weight<4>>,
    bias: Option<Tensor<1>>,
    channel_add: Option<Tensor<2>>,
    residual: Option<Tensor<4>>,
    geometry: Conv2dGeometry,
) -> Tensor<4> {
    let (weight, device) = (weight.into(), x.device());
    if !uses_kernels(&device) {
        return portable::conv2d(x, weight.into_tensor(&device), bias, channel_add, residual, geometry);
    }
    let (x, bias) = (x.into_dispatch(), optional(bias));
    let (channel_add, residual) = (optional(channel_add), optional(residual));
    Tensor::from_dispatch(match weight {
        Weight::Plain(weight) => {
            Dispatch::nhwc_conv2d(x, weight.into_dispatch(), bias, channel_add, residual, geometry)
        }
        Weight::Packed(weight) => Dispatch::nhwc_conv2d_packed(x, bias, channel_add, residual, weight, geometry),
    })
}

/// Two-dimensional convolution, then a ReLU, in the same pass: `y = max(conv(x, weight) + bias, 0)`. In `bf16` never by Winograd, which
/// loses on layers of few channels; but with gradients it is a [`conv2d`] and a ReLU, whose values differ by rounding.
///
/// # Shapes
/// As of [`conv2d`].
pub fn conv2d_relu(
    x: Tensor<4>,
    weight: impl Into<Weight<4>>,
    bias: Option<Tensor<1>>,
    geometry: Conv2dGeometry,
) -> Tensor<4> {
    let weight = weight.into();
    match weight {
        Weight::Plain(weight) if uses_kernels(&x.device()) => {
            let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
            Tensor::from_dispatch(Dispatch::nhwc_conv2d_relu(x, weight, optional(bias), geometry))
        }
        weight => activation(conv2d(x, weight, bias, None, None, geometry), Activation::Relu),
    }
}

/// Affine map of the last dimension: `y = x · weightᵀ + bias + residual`.
///
/// # Shapes
/// - `x`: `[.., in]`, `weight`: `[out, in]` (`f32`, or for inference `bf16` or packed), `bias`: `[out]` (`f32`)
/// - `residual` and the result: `[.., out]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: impl Into<Weight<2>>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    let (weight, device) = (weight.into(), x.device());
    if !uses_kernels(&device) {
        return portable::linear(x, weight.into_tensor(&device), bias, residual);
    }
    let (x, bias, residual) = (x.into_dispatch(), optional(bias), optional(residual));
    Tensor::from_dispatch(match weight {
        Weight::Plain(weight) => Dispatch::rows_linear(x, weight.into_dispatch(), bias, residual),
        Weight::Packed(weight) => Dispatch::rows_linear_packed(x, bias, residual, weight),
    })
}

/// Scaled dot-product attention of `heads` heads: `softmax(scale · q kᵀ) v` in each head.
///
/// With `causal`, a query sees only keys up to its own position.
///
/// # Shapes
/// - `q` and the result: `[batch, queries, heads * head size]`
/// - `k`, `v`: `[batch, keys, heads * head size]`
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, causal: bool, scale: f32) -> Tensor<3> {
    if !uses_kernels(&q.device()) {
        return portable::attention(q, k, v, heads, causal, scale);
    }
    Tensor::from_dispatch(Dispatch::token_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        heads,
        causal,
        scale,
    ))
}

/// Group normalisation (Wu & He 2018) over `[height, width, channels / groups]`, with learned
/// scale and shift per channel, optionally followed by SiLU.
///
/// # Shapes
/// - `x` and the result: `[batch, .., channels]`; `gamma`, `beta`: `[channels]`, `f32`
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Tensor<D> {
    if !uses_kernels(&x.device()) {
        return portable::group_norm(x, gamma, beta, groups, eps, silu);
    }
    Tensor::from_dispatch(Dispatch::nhwc_group_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        groups,
        eps,
        silu,
    ))
}

/// Layer normalisation (Ba et al. 2016) of the last dimension, with learned scale and shift.
///
/// # Shapes
/// - `x` and the result: `[.., channels]`; `gamma`, `beta`: `[channels]`, `f32`
pub fn layer_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, beta: Tensor<1>, eps: f32) -> Tensor<D> {
    if !uses_kernels(&x.device()) {
        return portable::layer_norm(x, gamma, beta, eps);
    }
    Tensor::from_dispatch(Dispatch::rows_layer_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        eps,
    ))
}

/// An activation function of every element; any shape.
pub fn activation<const D: usize>(x: Tensor<D>, kind: Activation) -> Tensor<D> {
    if !uses_kernels(&x.device()) {
        return portable::activation(x, kind);
    }
    Tensor::from_dispatch(Dispatch::pointwise_activation(x.into_dispatch(), kind))
}

/// Gated GELU (Shazeer 2020): the first half of the channels times GELU of the second half.
///
/// # Shapes
/// `[.., 2 * channels]` to `[.., channels]`
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !uses_kernels(&x.device()) {
        return portable::geglu(x);
    }
    Tensor::from_dispatch(Dispatch::rows_geglu(x.into_dispatch()))
}

/// [`linear`] of `2 * channels` outputs, then [`geglu`]. Without gradients and with `bf16` activations the CPU does both in one
/// pass; the bits are the same.
///
/// # Shapes
/// - `x`: `[.., in]`, `weight`: `[2 * channels, in]` (`f32`, or for inference `bf16` or packed), `bias`: `[2 * channels]` (`f32`)
/// - the result: `[.., channels]`
pub fn linear_geglu<const D: usize>(x: Tensor<D>, weight: impl Into<Weight<2>>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let (weight, device) = (weight.into(), x.device());
    if !uses_kernels(&device) {
        return portable::geglu(portable::linear(x, weight.into_tensor(&device), bias, None));
    }
    let (x, bias) = (x.into_dispatch(), optional(bias));
    Tensor::from_dispatch(match weight {
        Weight::Plain(weight) => Dispatch::rows_linear_geglu(x, weight.into_dispatch(), bias),
        Weight::Packed(weight) => Dispatch::rows_linear_geglu_packed(x, bias, weight),
    })
}

/// Every pixel becomes a square of two by two equal pixels.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, 2 * height, 2 * width, channels]`
pub fn upsample_nearest2x(x: Tensor<4>) -> Tensor<4> {
    if !uses_kernels(&x.device()) {
        return portable::upsample_nearest2x(x);
    }
    Tensor::from_dispatch(Dispatch::nhwc_upsample_nearest2x(x.into_dispatch()))
}

/// Every window of pixels becomes its maximum, or the mean of those of its pixels that lie in the image.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, out height, out width, channels]`, with
/// `out = (in + 2 padding - size) / stride + 1`, rounded down
pub fn pool2d(x: Tensor<4>, kind: Pooling, geometry: PoolGeometry) -> Tensor<4> {
    if !uses_kernels(&x.device()) {
        return portable::pool2d(x, kind, geometry);
    }
    Tensor::from_dispatch(Dispatch::nhwc_pool2d(x.into_dispatch(), kind, geometry))
}

/// Joins the channels of two tensors that agree in every other dimension.
///
/// # Shapes
/// `[.., a]` and `[.., b]` to `[.., a + b]`
pub fn concat_channels<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if !uses_kernels(&a.device()) {
        return portable::concat_channels(a, b);
    }
    Tensor::from_dispatch(Dispatch::rows_concat(a.into_dispatch(), b.into_dispatch()))
}

/// The sum of two tensors of the same shape and dtype.
pub fn add<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if !uses_kernels(&a.device()) {
        return a.add(b);
    }
    Tensor::from_dispatch(Dispatch::pointwise_add(a.into_dispatch(), b.into_dispatch()))
}

/// The mean over all elements of the squared difference, as one `f32`.
///
/// # Shapes
/// `prediction` and `target` agree; the result is `[1]`
pub fn mean_squared_error<const D: usize>(prediction: Tensor<D>, target: Tensor<D>) -> Tensor<1> {
    if !uses_kernels(&prediction.device()) {
        return portable::mean_squared_error(prediction, target);
    }
    Tensor::from_dispatch(Dispatch::mean_squared_error(prediction.into_dispatch(), target.into_dispatch()))
}
