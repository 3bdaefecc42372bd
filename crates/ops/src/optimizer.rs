//! Optimizer steps on parameter tensors, in place where the storage is not shared.

use crate::element::{Dense, tensor};
use crate::profile::{Pass, Work, span};
use crate::uses_kernels;
use burn::backend::flex::{Flex, FlexTensor};
use burn::tensor::Tensor;
use calotype_kernels::{self as kernels, AdamW};

/// A parameter and what the optimizer keeps for it; all `f32`, of the same shape and without autodiff.
#[derive(Clone, Debug)]
pub struct Trained<const D: usize> {
    /// The parameter's value.
    pub parameter: Tensor<D>,
    /// Decaying mean of its gradients.
    pub first_moment: Tensor<D>,
    /// Decaying mean of their squares.
    pub second_moment: Tensor<D>,
    /// Decaying mean of the parameter, if one is kept.
    pub average: Option<Tensor<D>>,
}

/// What is the same for all parameters of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// AdamW's settings, with the learning rate of this step.
    pub hyper: AdamW,
    /// Number of this step, counted from 1.
    pub step: u64,
    /// Gradients are multiplied by this first (clipping).
    pub gradient_scale: f32,
    /// The old average's share of the new one.
    pub ema_decay: f32,
}

/// The tensor with its elements as the whole of its storage, as in-place steps need: a copy where it is a view of more.
fn whole(t: FlexTensor) -> FlexTensor {
    match t.layout().contiguous_offsets() {
        Some((0, end)) if t.storage::<f32>().len() == end => t,
        _ => {
            let t = Dense::new(t);
            tensor(t.slice::<f32>().to_vec(), t.shape())
        }
    }
}

/// The tensor of the CPU backend.
///
/// # Panics
/// If the tensor carries autodiff, or another device has it.
fn primitive<const D: usize>(t: Tensor<D>) -> FlexTensor {
    t.try_into_primitive::<Flex>().unwrap_or_else(|e| panic!("optimizer steps take tensors of one device: {e:?}"))
}

fn wrap<const D: usize>(t: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(t)
}

/// One step of a parameter: AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2, in torch's order of
/// operations), then `average = decay · average + (1 - decay) · parameter`.
///
/// On the CPU everything is updated in place where its storage has no other owner.
///
/// # Shapes
/// All tensors have the same shape.
///
/// # Panics
/// If a tensor carries autodiff.
pub fn optimizer_step<const D: usize>(state: Trained<D>, gradient: Tensor<D>, pace: &Pace) -> Trained<D> {
    let Trained { parameter, first_moment, second_moment, average } = state;
    if !uses_kernels(&parameter.device()) {
        return crate::portable::optimizer_step(
            Trained { parameter, first_moment, second_moment, average },
            gradient,
            pace,
        );
    }
    let [mut p, mut m, mut v] = [parameter, first_moment, second_moment].map(|t| whole(primitive(t)));
    let g = Dense::new(primitive(gradient));
    let mut average = average.map(|average| whole(primitive(average)));
    let touched = if average.is_some() { 9 } else { 7 } * g.slice::<f32>().len();
    let _span = span(Pass::Optimizer, || Work::stream("adamw", &[], touched, g.dtype()));
    let (hyper, step, scale, g) = (&pace.hyper, pace.step, pace.gradient_scale, g.slice::<f32>());
    let (parameter, first, second) = (p.storage_mut::<f32>(), m.storage_mut::<f32>(), v.storage_mut::<f32>());
    match &mut average {
        Some(average) => {
            let average = (average.storage_mut::<f32>(), pace.ema_decay);
            kernels::adamw_ema_step(hyper, step, scale, parameter, g, (first, second), average);
        }
        None => kernels::adamw_step(hyper, step, scale, parameter, g, first, second),
    }
    let average = average.map(wrap);
    Trained { parameter: wrap(p), first_moment: wrap(m), second_moment: wrap(v), average }
}

/// [`optimizer_step`] without an average; returns the new parameter and both moments.
pub fn adamw_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: (Tensor<D>, Tensor<D>),
    hyper: &AdamW,
    step: u64,
    gradient_scale: f32,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let (first_moment, second_moment) = moments;
    let state = Trained { parameter, first_moment, second_moment, average: None };
    let pace = Pace { hyper: *hyper, step, gradient_scale, ema_decay: 1.0 };
    let new = optimizer_step(state, gradient, &pace);
    (new.parameter, new.first_moment, new.second_moment)
}

/// `decay * average + (1 - decay) * parameter`, both `f32` and of the same shape, without autodiff.
pub fn ema_step<const D: usize>(average: Tensor<D>, parameter: Tensor<D>, decay: f32) -> Tensor<D> {
    if !uses_kernels(&average.device()) {
        return crate::portable::ema_step(average, parameter, decay);
    }
    let mut average = whole(primitive(average));
    kernels::ema_step(average.storage_mut::<f32>(), Dense::new(primitive(parameter)).slice::<f32>(), decay);
    wrap(average)
}

/// The sum of the squares of all elements, in `f64` and in a fixed order on the CPU.
pub fn sum_of_squares<const D: usize>(tensor: &Tensor<D>) -> f64 {
    if uses_kernels(&tensor.device())
        && let Ok(primitive) = tensor.clone().without_autodiff().try_into_primitive::<Flex>()
    {
        let values = Dense::new(primitive);
        let size = values.slice::<f32>().len();
        let _span = span(Pass::Optimizer, || Work::stream("sum of squares", &[], size, values.dtype()));
        return kernels::sum_of_squares(values.slice::<f32>());
    }
    f64::from(tensor.clone().powi_scalar(2).sum().into_scalar::<f32>())
}
