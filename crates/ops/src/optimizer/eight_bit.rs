//! Steps of AdamW whose moments are kept in 8 bits.

use super::{ParameterState, Step, StepParams, Update};
use crate::flex::PACKED;
use crate::profile::{Pass, Work, span};
use crate::uses_kernels;
use burn::tensor::{DType, Tensor, TensorData};
use calotype_kernels::{self as kernels, AdamW, MOMENT_BLOCK, MomentKind, QuantisedMoment, SteppedInEightBits};

/// A moment in 8 bits, in the memory of the processor: block-wise dynamic tree quantisation (Dettmers et al. 2022, "8-bit optimizers
/// via block-wise quantization").
#[derive(Clone, Debug, PartialEq)]
pub struct EightBitMoment {
    /// A code for each element, in the parameter's memory order; [`MomentKind::codes`] has their numbers.
    pub codes: Vec<u8>,
    /// The largest magnitude of each block of [`MOMENT_BLOCK`] elements, which the codes' numbers are multiplied by.
    pub maxima: Vec<f32>,
}

impl EightBitMoment {
    /// Zeros.
    pub fn zeros(kind: MomentKind, len: usize) -> Self {
        Self { codes: vec![kind.zero(); len], maxima: vec![0.0; len.div_ceil(MOMENT_BLOCK)] }
    }

    fn quantised(&mut self) -> QuantisedMoment<'_> {
        QuantisedMoment { codes: &mut self.codes, maxima: &mut self.maxima }
    }

    fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.maxima.as_slice())
    }
}

/// A parameter and what AdamW keeps for it in 8 bits; tensors are `f32`, flat, of the same length and without autodiff.
#[derive(Clone, Debug)]
pub struct EightBitState {
    /// The parameter's value.
    pub parameter: Tensor<1>,
    /// The decaying means of its gradients ([`MomentKind::Signed`]) and of their squares ([`MomentKind::Unsigned`]).
    pub moments: [EightBitMoment; 2],
    /// Decaying mean of the parameter, if one is kept.
    pub average: Option<Tensor<1>>,
}

/// [`optimizer_steps`](super::optimizer_steps) of AdamW with moments in 8 bits. On the CPU in one pass over memory, in place; on other
/// devices the moments go there and back.
///
/// # Panics
/// If the rule is not AdamW, a tensor carries autodiff, they are on different devices, or lengths differ.
pub fn adamw_steps_in_eight_bits(states: Vec<(EightBitState, Tensor<1>)>, params: &StepParams) -> Vec<EightBitState> {
    let Update::AdamW(adamw) = params.update else { panic!("moments in 8 bits are those of AdamW") };
    let Some((first, _)) = states.first() else { return Vec::new() };
    if !uses_kernels(&first.parameter.device()) {
        return states.into_iter().map(|(state, gradient)| portable(state, gradient, params)).collect();
    }
    let step = |(state, gradient): (EightBitState, Tensor<1>)| {
        let EightBitState { parameter, moments, average } = state;
        let mut step = Step::new(ParameterState { parameter, moments: Vec::new(), average }, gradient);
        // Others are packed again where they are next used.
        let renewed = |packed: &Option<kernels::PackedWeights>| {
            packed.as_ref().is_some_and(kernels::PackedWeights::renews_in_blocks)
        };
        step.packed = step.packed.filter(|(_, packed)| renewed(packed.as_ref()));
        (step, moments)
    };
    let mut steps: Vec<_> = states.into_iter().map(step).collect();
    run(&mut steps, &adamw, params);
    let finish = |(step, moments): (Step, _)| {
        let ParameterState { parameter, average, .. } = step.finish();
        EightBitState { parameter, moments, average }
    };
    steps.into_iter().map(finish).collect()
}

/// The kernel on all of `steps`.
fn run(steps: &mut [(Step, [EightBitMoment; 2])], adamw: &AdamW, params: &StepParams) {
    let moments = |moments: &[EightBitMoment; 2]| 2 * moments.iter().map(EightBitMoment::bytes).sum::<usize>();
    let touched = steps.iter().map(|(step, kept)| step.touched() + moments(kept) / size_of::<f32>()).sum();
    let _span = span(Pass::Optimizer, || Work::stream("adamw 8bit", &[], touched, DType::F32));
    let elements = steps.iter_mut().map(|(step, [first, second])| {
        let kernels::Stepped { parameter, gradient, average, packed, .. } = step.elements();
        let (first_moment, second_moment) = (first.quantised(), second.quantised());
        SteppedInEightBits { parameter, gradient, first_moment, second_moment, average, packed }
    });
    let StepParams { step, gradient_scale, ema_decay, .. } = *params;
    kernels::adamw_step_in_eight_bits(adamw, step, gradient_scale, ema_decay, elements.collect());
    PACKED.sweep();
}

/// The step on any device, by the one in `f32`.
fn portable(state: EightBitState, gradient: Tensor<1>, params: &StepParams) -> EightBitState {
    const KINDS: [MomentKind; 2] = [MomentKind::Signed, MomentKind::Unsigned];
    let EightBitState { parameter, moments, average } = state;
    let device = parameter.device();
    let widen = |(kind, moment): (MomentKind, EightBitMoment)| {
        let values = kernels::widen_moment(kind, &moment.codes, &moment.maxima);
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), &device)
    };
    let moments = KINDS.into_iter().zip(moments).map(widen).collect();
    let new = crate::portable::optimizer_step(ParameterState { parameter, moments, average }, gradient, params);
    let mut moments = new.moments.into_iter().zip(KINDS).map(|(moment, kind)| {
        let values = moment.into_data().try_into_vec_as::<f32>().expect("a float tensor's data, read here");
        let (codes, maxima) = kernels::quantise_moment(kind, &values);
        EightBitMoment { codes, maxima }
    });
    let moments = std::array::from_fn(|_| moments.next().expect("AdamW keeps two moments"));
    EightBitState { parameter: new.parameter, moments, average: new.average }
}
