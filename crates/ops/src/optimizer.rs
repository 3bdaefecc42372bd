//! Optimizer steps on parameter tensors, in place where the storage is not shared.

use crate::element::{Dense, tensor};
use crate::flex::{Form, PACKED};
use crate::profile::{Pass, Work, span};
use crate::uses_kernels;
use burn::backend::flex::{Flex, FlexTensor};
use burn::tensor::{DType, Tensor};
use calotype_kernels::{self as kernels, AdamW, PackedWeights, Stepped};
use std::sync::Arc;

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

/// A [`Trained`] of the CPU backend and its gradient.
struct Step {
    gradient: Dense,
    parameter: FlexTensor,
    first_moment: FlexTensor,
    second_moment: FlexTensor,
    average: Option<FlexTensor>,
    /// The parameter's packed form, which gets the new values, too.
    packed: Option<(Form, Arc<Option<PackedWeights>>)>,
}

impl Step {
    fn new<const D: usize>(state: Trained<D>, gradient: Tensor<D>) -> Self {
        let own = |t| whole(primitive(t));
        let parameter = own(state.parameter);
        // Values and gates are only packed side by side outside of training.
        let mut forms = PACKED.take(&parameter).into_iter();
        let packed = forms.find_map(|(form, mut packed)| {
            (form.0[1] > 0 && Arc::get_mut(&mut packed).is_some()).then_some((form, packed))
        });
        Self {
            gradient: Dense::new(primitive(gradient)),
            parameter,
            packed,
            first_moment: own(state.first_moment),
            second_moment: own(state.second_moment),
            average: state.average.map(own),
        }
    }

    fn elements(&mut self) -> Stepped<'_> {
        Stepped {
            parameter: self.parameter.storage_mut(),
            gradient: self.gradient.slice(),
            first_moment: self.first_moment.storage_mut(),
            second_moment: self.second_moment.storage_mut(),
            average: self.average.as_mut().map(FlexTensor::storage_mut),
            packed: self.packed.as_mut().and_then(|(_, packed)| Arc::get_mut(packed)?.as_mut()),
        }
    }

    /// Elements that a step reads and writes, as `f32`.
    fn touched(&self) -> usize {
        let times = if self.average.is_some() { 9 } else { 7 };
        let packed = self.packed.as_ref().and_then(|(_, packed)| packed.as_ref().as_ref());
        times * self.gradient.slice::<f32>().len() + packed.map_or(0, |packed| packed.bytes() / size_of::<f32>())
    }

    fn finish<const D: usize>(self) -> Trained<D> {
        PACKED.put(&self.parameter, self.packed);
        Trained {
            parameter: wrap(self.parameter),
            first_moment: wrap(self.first_moment),
            second_moment: wrap(self.second_moment),
            average: self.average.map(wrap),
        }
    }
}

/// The kernel on all of `steps`.
fn run(steps: &mut [Step], pace: &Pace) {
    let touched = steps.iter().map(Step::touched).sum();
    let _span = span(Pass::Optimizer, || Work::stream("adamw", &[], touched, DType::F32));
    let Pace { hyper, step, gradient_scale, ema_decay } = pace;
    kernels::adamw_step(hyper, *step, *gradient_scale, *ema_decay, steps.iter_mut().map(Step::elements));
    // Those of the weights that have just changed, and of averages that an evaluation used.
    PACKED.sweep();
}

/// One step of a parameter: AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2, in torch's order of
/// operations), then `average = decay · average + (1 - decay) · parameter`.
///
/// On the CPU everything is updated in place where its storage has no other owner, and so are the parameter's packed weights, if it
/// was multiplied in that form.
///
/// # Shapes
/// All tensors have the same shape.
///
/// # Panics
/// If a tensor carries autodiff.
pub fn optimizer_step<const D: usize>(state: Trained<D>, gradient: Tensor<D>, pace: &Pace) -> Trained<D> {
    if !uses_kernels(&state.parameter.device()) {
        return crate::portable::optimizer_step(state, gradient, pace);
    }
    let mut step = Step::new(state, gradient);
    run(std::slice::from_mut(&mut step), pace);
    step.finish()
}

/// [`optimizer_step`] of many parameters, each with its gradient, in their order; on the CPU in one pass over memory, with the
/// same bits.
///
/// # Panics
/// If a tensor carries autodiff, or they are on different devices.
pub fn optimizer_steps(states: Vec<(Trained<1>, Tensor<1>)>, pace: &Pace) -> Vec<Trained<1>> {
    let Some((first, _)) = states.first() else { return Vec::new() };
    if !uses_kernels(&first.parameter.device()) {
        return states.into_iter().map(|(state, g)| crate::portable::optimizer_step(state, g, pace)).collect();
    }
    let mut steps: Vec<_> = states.into_iter().map(|(state, gradient)| Step::new(state, gradient)).collect();
    run(&mut steps, pace);
    steps.into_iter().map(Step::finish).collect()
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
    let size = tensor.shape().num_elements();
    sums_of_squares(&[tensor.clone().without_autodiff().reshape([size])])[0]
}

/// [`sum_of_squares`] of each tensor; on the CPU in one pass over all of them.
pub fn sums_of_squares(tensors: &[Tensor<1>]) -> Vec<f64> {
    let values = |t: &Tensor<1>| {
        let kernels = uses_kernels(&t.device());
        kernels.then(|| t.clone().without_autodiff().try_into_primitive::<Flex>().ok().map(Dense::new)).flatten()
    };
    let Some(values) = tensors.iter().map(values).collect::<Option<Vec<_>>>() else {
        return tensors.iter().map(|t| f64::from(t.clone().powi_scalar(2).sum().into_scalar::<f32>())).collect();
    };
    let slices: Vec<&[f32]> = values.iter().map(Dense::slice).collect();
    let size = slices.iter().map(|values| values.len()).sum();
    let _span = span(Pass::Optimizer, || Work::stream("sum of squares", &[], size, DType::F32));
    kernels::sums_of_squares(&slices)
}
