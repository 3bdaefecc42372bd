//! Optimizer steps on parameter tensors, in place where the storage is not shared.

mod eight_bit;

pub use eight_bit::{EightBitMoment, EightBitState, adamw_steps_in_eight_bits};

use crate::element::{Dense, whole};
use crate::flex::{Form, PACKED};
use crate::profile::{Pass, Work, span};
use crate::uses_kernels;
use burn::backend::flex::{Flex, FlexTensor};
use burn::tensor::{DType, Tensor};
use calotype_kernels::{self as kernels, AdamW, PackedWeights, Sgd, Stepped};
use std::sync::Arc;

/// A parameter and what the optimizer keeps for it; all `f32`, of the same shape and without autodiff.
#[derive(Clone, Debug)]
pub struct ParameterState<const D: usize> {
    /// The parameter's value.
    pub parameter: Tensor<D>,
    /// The state that the update rule keeps, [`Update::moments`] tensors: of AdamW the decaying means of the gradients and of their
    /// squares; of SGD the momentum.
    pub moments: Vec<Tensor<D>>,
    /// Decaying mean of the parameter, if one is kept.
    pub average: Option<Tensor<D>>,
}

/// The rule by which gradients change parameters, with the learning rate of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2, in torch's order of operations).
    AdamW(AdamW),
    /// Stochastic gradient descent with momentum, as torch's.
    Sgd(Sgd),
}

impl Update {
    /// Number of tensors that it keeps beside each parameter.
    pub fn moments(&self) -> usize {
        match self {
            Self::AdamW(_) => 2,
            Self::Sgd(sgd) => usize::from(sgd.momentum != 0.0),
        }
    }
}

/// The numbers that are the same for all parameters of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepParams {
    /// The rule, with the learning rate of this step.
    pub update: Update,
    /// Number of this step, counted from 1.
    pub step: u64,
    /// Gradients are multiplied by this first (clipping, means over accumulated batches).
    pub gradient_scale: f32,
    /// The old average's share of the new one.
    pub ema_decay: f32,
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

/// A [`ParameterState`] of the CPU backend and its gradient.
struct Step {
    gradient: Dense,
    parameter: FlexTensor,
    moments: Vec<FlexTensor>,
    average: Option<FlexTensor>,
    /// The parameter's packed form, which gets the new values, too.
    packed: Option<(Form, Arc<Option<PackedWeights>>)>,
}

impl Step {
    fn new<const D: usize>(state: ParameterState<D>, gradient: Tensor<D>) -> Self {
        let own = |t| whole::<f32>(primitive(t));
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
            moments: state.moments.into_iter().map(own).collect(),
            average: state.average.map(own),
        }
    }

    fn elements(&mut self) -> Stepped<'_> {
        let mut moments = self.moments.iter_mut().map(FlexTensor::storage_mut);
        Stepped {
            parameter: self.parameter.storage_mut(),
            gradient: self.gradient.slice(),
            first_moment: moments.next().unwrap_or_default(),
            second_moment: moments.next().unwrap_or_default(),
            average: self.average.as_mut().map(FlexTensor::storage_mut),
            packed: self.packed.as_mut().and_then(|(_, packed)| Arc::get_mut(packed)?.as_mut()),
        }
    }

    /// Elements that a step reads and writes, as `f32`.
    fn touched(&self) -> usize {
        let times = 3 + 2 * (self.moments.len() + usize::from(self.average.is_some()));
        let packed = self.packed.as_ref().and_then(|(_, packed)| packed.as_ref().as_ref());
        times * self.gradient.slice::<f32>().len() + packed.map_or(0, |packed| packed.bytes() / size_of::<f32>())
    }

    fn finish<const D: usize>(self) -> ParameterState<D> {
        PACKED.put(&self.parameter, self.packed);
        ParameterState {
            parameter: wrap(self.parameter),
            moments: self.moments.into_iter().map(wrap).collect(),
            average: self.average.map(wrap),
        }
    }
}

/// The kernel on all of `steps`.
fn run(steps: &mut [Step], params: &StepParams) {
    let touched = steps.iter().map(Step::touched).sum();
    let StepParams { update, step, gradient_scale, ema_decay } = *params;
    let name = match update {
        Update::AdamW(_) => "adamw",
        Update::Sgd(_) => "sgd",
    };
    let _span = span(Pass::Optimizer, || Work::stream(name, &[], touched, DType::F32));
    let elements = steps.iter_mut().map(Step::elements);
    match update {
        Update::AdamW(adamw) => kernels::adamw_step(&adamw, step, gradient_scale, ema_decay, elements),
        Update::Sgd(sgd) => kernels::sgd_step(&sgd, step, gradient_scale, ema_decay, elements),
    }
    // Those of the weights that have just changed, and of averages that an evaluation used.
    PACKED.sweep();
}

/// One step of a parameter by its [`Update`], then `average = decay · average + (1 - decay) · parameter`.
///
/// On the CPU everything is updated in place where its storage has no other owner, and so are the parameter's packed weights, if it
/// was multiplied in that form.
///
/// # Shapes
/// All tensors have the same shape.
///
/// # Panics
/// If a tensor carries autodiff, or there are not as many moments as the rule keeps.
pub fn optimizer_step<const D: usize>(
    state: ParameterState<D>,
    gradient: Tensor<D>,
    params: &StepParams,
) -> ParameterState<D> {
    if !uses_kernels(&state.parameter.device()) {
        return crate::portable::optimizer_step(state, gradient, params);
    }
    let mut step = Step::new(state, gradient);
    run(std::slice::from_mut(&mut step), params);
    step.finish()
}

/// [`optimizer_step`] of many parameters, each with its gradient, in their order; on the CPU in one pass over memory, with the
/// same bits.
///
/// # Panics
/// If a tensor carries autodiff, they are on different devices, or a parameter has not as many moments as the rule keeps.
pub fn optimizer_steps(states: Vec<(ParameterState<1>, Tensor<1>)>, params: &StepParams) -> Vec<ParameterState<1>> {
    let Some((first, _)) = states.first() else { return Vec::new() };
    if !uses_kernels(&first.parameter.device()) {
        return states.into_iter().map(|(state, g)| crate::portable::optimizer_step(state, g, params)).collect();
    }
    let mut steps: Vec<_> = states.into_iter().map(|(state, gradient)| Step::new(state, gradient)).collect();
    run(&mut steps, params);
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
    let state = ParameterState { parameter, moments: vec![moments.0, moments.1], average: None };
    let params = StepParams { update: Update::AdamW(*hyper), step, gradient_scale, ema_decay: 1.0 };
    let mut new = optimizer_step(state, gradient, &params);
    let second = new.moments.swap_remove(1);
    (new.parameter, new.moments.swap_remove(0), second)
}

/// `decay * average + (1 - decay) * parameter`, both `f32` and of the same shape, without autodiff.
pub fn ema_step<const D: usize>(average: Tensor<D>, parameter: Tensor<D>, decay: f32) -> Tensor<D> {
    if !uses_kernels(&average.device()) {
        return crate::portable::ema_step(average, parameter, decay);
    }
    let mut average = whole::<f32>(primitive(average));
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
