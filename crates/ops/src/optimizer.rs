//! Optimizer steps on parameter tensors, in place where the storage is not shared.

use crate::element::{Dense, tensor};
use crate::profile::{Pass, Work, span};
use crate::uses_kernels;
use burn::backend::flex::{Flex, FlexTensor};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
use calotype_kernels::{self as kernels, AdamW};

/// Extension point that carries the optimizer steps across Burn's runtime dispatch.
#[allow(missing_docs, reason = "documented on the public functions of the same names")]
#[backend_extension(Flex)]
pub trait OptimizerOps: Backend {
    fn adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        hyper: AdamW,
        step: u64,
        gradient_scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    fn exponential_moving_average(
        average: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        decay: f32,
    ) -> FloatTensor<Self>;
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

impl OptimizerOps for Flex {
    fn adamw(
        parameter: FlexTensor,
        gradient: FlexTensor,
        first_moment: FlexTensor,
        second_moment: FlexTensor,
        hyper: AdamW,
        step: u64,
        gradient_scale: f32,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [mut p, mut m, mut v] = [parameter, first_moment, second_moment].map(whole);
        let g = Dense::new(gradient);
        let size = g.slice::<f32>().len();
        let _span = span(Pass::Optimizer, || Work::stream("adamw", &[], 7 * size, g.dtype()));
        kernels::adamw_step(
            &hyper,
            step,
            gradient_scale,
            p.storage_mut::<f32>(),
            g.slice::<f32>(),
            m.storage_mut::<f32>(),
            v.storage_mut::<f32>(),
        );
        (p, m, v)
    }

    fn exponential_moving_average(average: FlexTensor, parameter: FlexTensor, decay: f32) -> FlexTensor {
        let (mut average, parameter) = (whole(average), Dense::new(parameter));
        let size = parameter.slice::<f32>().len();
        let _span = span(Pass::Optimizer, || Work::stream("ema", &[], 3 * size, parameter.dtype()));
        kernels::ema_step(average.storage_mut::<f32>(), parameter.slice::<f32>(), decay);
        average
    }
}

/// One AdamW step with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2, in torch's
/// order of operations); returns the new parameter and both moments, all `f32`.
///
/// `step` counts from 1; the gradient is multiplied by `gradient_scale` first (clipping).
/// None of the tensors may carry autodiff.
///
/// # Shapes
/// All four tensors have the same shape.
pub fn adamw_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: (Tensor<D>, Tensor<D>),
    hyper: &AdamW,
    step: u64,
    gradient_scale: f32,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let (m, v) = moments;
    if uses_kernels(&parameter.device()) {
        let (p, m, v) = Dispatch::adamw(
            parameter.into_dispatch(),
            gradient.into_dispatch(),
            m.into_dispatch(),
            v.into_dispatch(),
            *hyper,
            step,
            gradient_scale,
        );
        return (Tensor::from_dispatch(p), Tensor::from_dispatch(m), Tensor::from_dispatch(v));
    }
    crate::portable::adamw_step(parameter, gradient, (m, v), hyper, step, gradient_scale)
}

/// `decay * average + (1 - decay) * parameter`, both `f32` and of the same shape, without autodiff.
pub fn ema_step<const D: usize>(average: Tensor<D>, parameter: Tensor<D>, decay: f32) -> Tensor<D> {
    if uses_kernels(&average.device()) {
        return Tensor::from_dispatch(Dispatch::exponential_moving_average(
            average.into_dispatch(),
            parameter.into_dispatch(),
            decay,
        ));
    }
    average.mul_scalar(decay).add(parameter.mul_scalar(1.0 - decay))
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
