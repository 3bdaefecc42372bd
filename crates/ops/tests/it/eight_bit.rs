//! AdamW with moments in 8 bits: against bitsandbytes, against moments in `f32`, and the portable body.

use crate::common::{Body, from_vec, oracle, subject, to_vec};
use burn::tensor::{DType, Tensor};
use calotype_kernels::{MOMENT_BLOCK, quantise_moment};
use calotype_ops::{
    AdamW, EightBitMoment, EightBitState, MomentKind, ParameterState, StepParams, Update, adamw_steps_in_eight_bits,
    optimizer_step,
};

/// Made by `tests/golden/make_eight_bit.py`.
const GOLDEN: &str = include_str!("../golden/eight_bit.txt");
const KINDS: [(MomentKind, &str); 2] = [(MomentKind::Signed, "signed"), (MomentKind::Unsigned, "unsigned")];
const ELEMENTS: usize = 5000;

/// The hexadecimal numbers of a line.
fn golden(what: &str, kind: &str) -> Vec<u32> {
    let line = GOLDEN.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' ')?.strip_prefix(kind));
    let numbers = line.expect("a line of the file").split_whitespace();
    numbers.map(|number| u32::from_str_radix(number, 16).expect("a hexadecimal number")).collect()
}

fn golden_floats(what: &str, kind: &str) -> Vec<f32> {
    golden(what, kind).into_iter().map(f32::from_bits).collect()
}

/// The script's fractions.
fn fractions(step: usize, octaves: usize) -> Vec<f32> {
    let fraction = |i: usize| ((i * 37 + step * 101) % 257) as f32 / 128.0 - 1.0;
    (0..ELEMENTS).map(|i| fraction(i) * 0.5f32.powi(((i * 7) % octaves) as i32)).collect()
}

#[test]
fn code_books_are_those_of_bitsandbytes() {
    for (kind, name) in KINDS {
        let want = golden_floats("codes", name);
        assert_eq!(want.len(), 256);
        for (got, want) in kind.codes().iter().zip(&want) {
            assert!((got - want).abs() <= 2e-7 * want.abs(), "{name}: {got} instead of {want}");
        }
    }
}

#[test]
fn rounding_takes_the_nearest_codes() {
    for (kind, name) in KINDS {
        let mut values = fractions(0, 13);
        values.truncate(1000);
        if kind == MomentKind::Unsigned {
            values.iter_mut().for_each(|value| *value *= *value);
        }
        let want = golden("rounded", name);
        let (codes, maxima) = quantise_moment(kind, &values);
        assert_eq!((codes.len(), maxima.len(), want.len()), (1000, 4, 1000));
        let mut ties = 0;
        for (i, (&got, &want)) in codes.iter().zip(&want).enumerate() {
            let value = values[i] / maxima[i / MOMENT_BLOCK];
            let off = |code: u8| (kind.codes()[usize::from(code)] - value).abs();
            let want = u8::try_from(want).expect("a code");
            // A square above zero does not become zero.
            let above_zero = kind == MomentKind::Unsigned && value > 0.0 && want == 0;
            let tie = (off(got) - off(want)).abs() <= 1e-4 * off(want);
            ties += usize::from(got != want && !above_zero);
            assert!(got == want || tie || (above_zero && got == 1), "{name}, {value}: code {got} instead of {want}");
        }
        assert!(ties < 20, "{name}: {ties} codes are others");
    }
}

/// Parameters after 20 steps in 8 bits.
fn trained(body: Body) -> Vec<f32> {
    let device = body.device();
    let tensor = |step| from_vec(&fractions(step, 5), DType::F32, &device);
    let moments = KINDS.map(|(kind, _)| EightBitMoment::zeros(kind, ELEMENTS));
    let mut state = EightBitState { parameter: tensor(0), moments, average: Some(tensor(0)) };
    for step in 1..=20 {
        let adamw = AdamW { lr: 1e-2, weight_decay: 0.1, ..AdamW::default() };
        let params =
            StepParams { update: Update::AdamW(adamw), step: step as u64, gradient_scale: 1.0, ema_decay: 0.9 };
        let steps = vec![(state, tensor(step))];
        state = body.run(|| adamw_steps_in_eight_bits(steps, &params)).remove(0);
    }
    to_vec(state.parameter)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

/// Twenty steps move a parameter by up to 0.2. Differences to bitsandbytes come from its CPU table, which rounds some numbers to the
/// second nearest code.
#[test]
fn twenty_steps_of_bitsandbytes() {
    for body in [subject(), oracle()] {
        let got: Vec<f32> = trained(body).into_iter().step_by(50).collect();
        let to_eight = largest_difference(&got, &golden_floats("adamw8", "-"));
        let to_f32 = largest_difference(&got, &golden_floats("adamw", "-"));
        println!("{body:?}: {to_eight} from bitsandbytes, {to_f32} from f32");
        assert!(to_eight <= 1.5e-3 && to_f32 <= 2.5e-3, "{body:?}: {to_eight} from bitsandbytes, {to_f32} from f32");
    }
}

/// A noisy quadratic goes down to a two-hundredth of its beginning, as it does with moments in `f32`.
#[test]
fn converges_as_in_f32() {
    let device = subject().device();
    let target = fractions(0, 5);
    let gradient = |parameter: &[f32], step: usize| {
        let noise = fractions(step, 1);
        let of = |i: usize| parameter[i] - target[i] + 0.1 * noise[(i * 13 + step) % ELEMENTS];
        from_vec(&(0..ELEMENTS).map(of).collect::<Vec<_>>(), DType::F32, &device)
    };
    let params = |step: usize| {
        let adamw = AdamW { lr: 2e-2, weight_decay: 0.0, ..AdamW::default() };
        StepParams { update: Update::AdamW(adamw), step: step as u64, gradient_scale: 1.0, ema_decay: 1.0 }
    };
    let start = || Tensor::<1>::zeros([ELEMENTS], &device);
    let moments = KINDS.map(|(kind, _)| EightBitMoment::zeros(kind, ELEMENTS));
    let mut small = EightBitState { parameter: start(), moments, average: None };
    let mut full = ParameterState { parameter: start(), moments: vec![start(), start()], average: None };
    for step in 1..=200 {
        let [in_eight, in_full] = [&small.parameter, &full.parameter].map(|p| gradient(&to_vec(p.clone()), step));
        small = adamw_steps_in_eight_bits(vec![(small, in_eight)], &params(step)).remove(0);
        full = optimizer_step(full, in_full, &params(step));
    }
    let loss = |parameter: Tensor<1>| {
        let values = to_vec(parameter);
        values.iter().zip(&target).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / ELEMENTS as f64
    };
    let begin = loss(start());
    let [small, full] = [small.parameter, full.parameter].map(loss);
    println!("{begin} at first, {small} in 8 bits, {full} in f32");
    assert!(full < 5e-3 * begin && small < 5e-3 * begin, "{begin} at first, {small} in 8 bits, {full} in f32");
}

#[test]
fn no_parameters_make_no_step() {
    let params = StepParams { update: Update::AdamW(AdamW::default()), step: 1, gradient_scale: 1.0, ema_decay: 1.0 };
    assert!(adamw_steps_in_eight_bits(Vec::new(), &params).is_empty());
}
