//! The operations as compositions of Burn tensor operations, differentiated by Burn.
//!
//! These are the readable definition of each operation and the oracle of its kernels. Everything is
//! computed in `f32` and returned in the dtype of the first activation. Shapes and meaning stand at
//! the functions of the same names in the crate root.

use crate::{Activation, AdamW, Conv2dGeometry, ParameterState, PoolGeometry, Pooling, Sgd, StepParams, Update};
use burn::tensor::activation as act;
use burn::tensor::module as nn;
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions, PadMode};
use burn::tensor::{DType, Tensor};

fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

fn narrow<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if dtype == DType::F32 { x } else { x.cast(dtype) }
}

/// See [`crate::conv2d`].
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    channel_add: Option<Tensor<2>>,
    residual: Option<Tensor<4>>,
    geometry: Conv2dGeometry,
) -> Tensor<4> {
    let dtype = x.dtype();
    let [top, bottom, left, right] = geometry.padding;
    let mut x = widen(x).permute([0, 3, 1, 2]);
    if geometry.padding != [0; 4] {
        x = x.pad((left, right, top, bottom), PadMode::Constant(0.0));
    }
    let stride = [geometry.stride; 2];
    let options = ConvOptions::new(stride, [0, 0], [1, 1], 1);
    let y = nn::conv2d(x, widen(weight).permute([0, 3, 1, 2]), bias, options);
    let mut y = y.permute([0, 2, 3, 1]);
    if let Some(c) = channel_add {
        y = y + widen(c).unsqueeze_dims(&[1, 2]);
    }
    if let Some(r) = residual {
        y = y + widen(r);
    }
    narrow(y, dtype)
}

/// See [`crate::linear`].
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    let dtype = x.dtype();
    let mut shape = x.dims();
    let features = shape[D - 1];
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = weight.dims()[0];
    let mut y = widen(x).reshape([rows, features]).matmul(widen(weight).transpose());
    if let Some(b) = bias {
        y = y + b.unsqueeze();
    }
    let mut y = y.reshape(shape);
    if let Some(r) = residual {
        y = y + widen(r);
    }
    narrow(y, dtype)
}

/// See [`crate::attention`].
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, causal: bool, scale: f32) -> Tensor<3> {
    let dtype = q.dtype();
    let [batch, queries, channels] = q.dims();
    let keys = k.dims()[1];
    let split =
        |t: Tensor<3>, tokens: usize| widen(t).reshape([batch, tokens, heads, channels / heads]).permute([0, 2, 1, 3]);
    let (q, k, v) = (split(q, queries), split(k, keys), split(v, keys));
    let mut scores = q.matmul(k.transpose()).mul_scalar(scale);
    if causal {
        let mask = causal_mask(queries, keys, &scores.device());
        scores = scores + mask.unsqueeze();
    }
    let y = act::softmax(scores, 3).matmul(v);
    narrow(y.permute([0, 2, 1, 3]).reshape([batch, queries, channels]), dtype)
}

/// `[queries, keys]`: 0 where the key is at or before the query, a large negative number elsewhere.
fn causal_mask(queries: usize, keys: usize, device: &burn::tensor::Device) -> Tensor<2> {
    let hidden = |i: usize| if i % keys > i / keys { -1e30f32 } else { 0.0 };
    let data: Vec<f32> = (0..queries * keys).map(hidden).collect();
    Tensor::<1>::from_data(data.as_slice(), device).reshape([queries, keys])
}

/// See [`crate::group_norm`].
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Tensor<D> {
    let (dtype, shape) = (x.dtype(), x.dims());
    let (batch, channels) = (shape[0], shape[D - 1]);
    let pixels = shape[1..D - 1].iter().product::<usize>();
    let x = widen(x).reshape([batch, pixels, groups, channels / groups]);
    let mean = x.clone().mean_dim(3).mean_dim(1);
    let centred = x - mean;
    let variance = centred.clone().powi_scalar(2).mean_dim(3).mean_dim(1);
    let y = (centred / variance.add_scalar(eps).sqrt()).reshape([batch, pixels, channels]);
    let y = y * gamma.unsqueeze() + beta.unsqueeze();
    let y = if silu { act::silu(y) } else { y };
    narrow(y.reshape(shape), dtype)
}

/// See [`crate::layer_norm`].
pub fn layer_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, beta: Tensor<1>, eps: f32) -> Tensor<D> {
    let dtype = x.dtype();
    let x = widen(x);
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = centred.clone().powi_scalar(2).mean_dim(D - 1);
    let y = centred / variance.add_scalar(eps).sqrt() * gamma.unsqueeze() + beta.unsqueeze();
    narrow(y, dtype)
}

/// See [`crate::activation`].
pub fn activation<const D: usize>(x: Tensor<D>, kind: Activation) -> Tensor<D> {
    let dtype = x.dtype();
    let x = widen(x);
    let y = match kind {
        Activation::Silu => act::silu(x),
        Activation::Gelu => act::gelu(x),
        Activation::GeluTanh => act::gelu_approximate(x),
        Activation::QuickGelu => x.clone() * act::sigmoid(x.mul_scalar(1.702)),
        Activation::Relu => act::relu(x),
    };
    narrow(y, dtype)
}

/// See [`crate::geglu`].
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    let channels = x.dims()[D - 1] / 2;
    let x = widen(x);
    let value = x.clone().narrow(D - 1, 0, channels);
    let gate = x.narrow(D - 1, channels, channels);
    narrow(value * act::gelu(gate), dtype)
}

/// See [`crate::upsample_nearest2x`].
pub fn upsample_nearest2x(x: Tensor<4>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let x = x.reshape([b, h, 1, w, 1, c]);
    let x = Tensor::cat(vec![x.clone(), x], 2);
    let x = Tensor::cat(vec![x.clone(), x], 4);
    x.reshape([b, 2 * h, 2 * w, c])
}

/// See [`crate::pool2d`].
pub fn pool2d(x: Tensor<4>, kind: Pooling, geometry: PoolGeometry) -> Tensor<4> {
    let dtype = x.dtype();
    let x = widen(x).permute([0, 3, 1, 2]);
    let PoolGeometry { size, stride, padding } = geometry;
    let [size, stride, padding] = [size, stride, padding].map(|n| [n; 2]);
    let y = match kind {
        Pooling::Max => {
            let options = MaxPoolOptions::new(size).with_stride(stride).with_padding(padding);
            nn::max_pool2d(x, options)
        }
        Pooling::Average => {
            let options = AvgPoolOptions::new(size).with_stride(stride).with_padding(padding);
            nn::avg_pool2d(x, options.with_count_include_pad(false))
        }
    };
    narrow(y.permute([0, 2, 3, 1]), dtype)
}

/// See [`crate::concat_channels`].
pub fn concat_channels<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    Tensor::cat(vec![a, b], D - 1)
}

/// See [`crate::mean_squared_error`].
pub fn mean_squared_error<const D: usize>(prediction: Tensor<D>, target: Tensor<D>) -> Tensor<1> {
    (widen(prediction) - widen(target)).powi_scalar(2).mean()
}

/// See [`crate::optimizer_step`].
///
/// # Panics
/// If there are not as many moments as the rule keeps.
pub fn optimizer_step<const D: usize>(
    state: ParameterState<D>,
    gradient: Tensor<D>,
    params: &StepParams,
) -> ParameterState<D> {
    let ParameterState { parameter, moments, average } = state;
    let gradient = gradient.mul_scalar(params.gradient_scale);
    let (parameter, moments) = match params.update {
        Update::AdamW(adamw) => adamw_update(&adamw, params.step, parameter, moments, gradient),
        Update::Sgd(sgd) => sgd_update(&sgd, params.step, parameter, moments, gradient),
    };
    let average = average.map(|average| ema_step(average, parameter.clone(), params.ema_decay));
    ParameterState { parameter, moments, average }
}

fn adamw_update<const D: usize>(
    hyper: &AdamW,
    step: u64,
    parameter: Tensor<D>,
    moments: Vec<Tensor<D>>,
    g: Tensor<D>,
) -> (Tensor<D>, Vec<Tensor<D>>) {
    let [m, v]: [Tensor<D>; 2] = moments.try_into().expect("AdamW keeps two moments");
    let m = m.mul_scalar(hyper.beta1) + g.clone().mul_scalar(1.0 - hyper.beta1);
    let v = v.mul_scalar(hyper.beta2) + g.powi_scalar(2).mul_scalar(1.0 - hyper.beta2);
    let t = i32::try_from(step).unwrap_or(i32::MAX);
    let correction1 = 1.0 - f64::from(hyper.beta1).powi(t);
    let correction2 = 1.0 - f64::from(hyper.beta2).powi(t);
    let denominator = v.clone().sqrt().div_scalar(correction2.sqrt()).add_scalar(hyper.eps);
    let update = m.clone().div(denominator).mul_scalar(f64::from(hyper.lr) / correction1);
    (parameter.mul_scalar(1.0 - hyper.lr * hyper.weight_decay) - update, vec![m, v])
}

fn sgd_update<const D: usize>(
    hyper: &Sgd,
    step: u64,
    parameter: Tensor<D>,
    mut moments: Vec<Tensor<D>>,
    g: Tensor<D>,
) -> (Tensor<D>, Vec<Tensor<D>>) {
    let mut g = if hyper.weight_decay == 0.0 { g } else { g + parameter.clone().mul_scalar(hyper.weight_decay) };
    if hyper.momentum != 0.0 {
        let old = moments.pop().expect("SGD with momentum keeps one moment");
        let share = if step == 1 { 1.0 } else { 1.0 - hyper.dampening };
        let momentum = old.mul_scalar(hyper.momentum) + g.clone().mul_scalar(share);
        g = if hyper.nesterov { g + momentum.clone().mul_scalar(hyper.momentum) } else { momentum.clone() };
        moments.push(momentum);
    }
    (parameter - g.mul_scalar(hyper.lr), moments)
}

/// See [`crate::ema_step`].
pub fn ema_step<const D: usize>(average: Tensor<D>, parameter: Tensor<D>, decay: f32) -> Tensor<D> {
    average.mul_scalar(decay).add(parameter.mul_scalar(1.0 - decay))
}
