//! Every gradient against central differences of the forward, which no autodiff had a hand in.

use crate::common::{Body, Case, Report, Setting, Tracking, cases, dtypes, evaluate, subject};
use burn::tensor::DType;

/// Directions tried for every input.
const DIRECTIONS: u64 = 3;

/// Step, in units of an input's standard deviation or of 1, whichever is less. Near the cube root of f32's precision, where what rounding adds to
/// the quotient (precision / step) and what the third derivative adds (step squared) balance.
const STEP: f32 = 4e-3;

/// The forward in f32: the kernels', which sum more accurately than Burn does; it is compared with the definition in
/// another test.
fn forward(case: &Case, data: &[Vec<f32>]) -> Vec<f32> {
    let setting = Setting { tracking: Tracking::None, ..Setting::new(case, Body::Kernels, DType::F32) };
    evaluate(case, data, &setting).output
}

/// Root of the sum of squares of products.
fn norm(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) * f64::from(b)).powi(2)).sum::<f64>().sqrt()
}

/// One directional derivative; returns how much of the tolerance it used.
fn check(
    case: &Case,
    dtype: DType,
    data: &[Vec<f32>],
    gradient: &[f32],
    i: usize,
    direction: u64,
) -> Result<f32, String> {
    let input = &case.inputs[i];
    let mut random = case.stream(2000 + 100 * direction + i as u64);
    let moves: Vec<f32> = data[i].iter().map(|_| STEP * input.spread.min(1.0) * random.normal()).collect();
    let moved = |sign: f32| {
        let mut data = data.to_vec();
        data[i].iter_mut().zip(&moves).for_each(|(value, step)| *value += sign * step);
        let y = forward(case, &data);
        (data.swap_remove(i), y)
    };
    let ((right, y_right), (left, y_left)) = (moved(1.0), moved(-1.0));
    let weights = case.projection(y_right.len(), dtype);
    // The step that was made, after rounding of the moved inputs.
    let steps: Vec<f32> = right.iter().zip(&left).map(|(r, l)| r - l).collect();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let changes: Vec<f32> = y_right.iter().zip(&y_left).map(|(r, l)| r - l).collect();
    let (want, got) = (dot(&changes, &weights), dot(gradient, &steps));
    // The derivative is a random sum whose standard deviation is `expected`; errors are judged by that. A gradient
    // stored in bf16 has errors of up to 2^-8 in every element, which the direction adds up with random signs, so that
    // 2^-7 is more than three of their standard deviations; attention has twice that from its rounded output.
    let expected = norm(gradient, &steps);
    let rounded = if dtype == DType::BF16 { 1.0 / 64.0 } else { 0.0 };
    // f32 outputs are known to 2^-24, and a few operations stand before them.
    let noise = 16.0 * f64::from(f32::EPSILON) * norm(&y_right, &weights);
    let allowed = (2e-3 + rounded) * expected + noise;
    let used = (want - got).abs() / allowed.max(f64::MIN_POSITIVE);
    if used <= 1.0 {
        return Ok(used as f32);
    }
    Err(format!("gradient of {} makes {got:e}, the difference is {want:e}, allowed is {allowed:e}", input.name))
}

#[test]
fn directional_derivatives() {
    let mut report = Report::default();
    for dtype in dtypes() {
        for case in cases().into_iter().filter(|case| case.smooth) {
            let data = case.data(dtype);
            report.check(&format!("{} {dtype:?}", case.name), || {
                let outcome = evaluate(&case, &data, &Setting::new(&case, subject(), dtype));
                let mut worst = 0.0f32;
                for (i, gradient) in outcome.gradients.iter().enumerate() {
                    let gradient = gradient.as_ref().ok_or("a gradient is missing")?;
                    for direction in 0..DIRECTIONS {
                        worst = worst.max(check(&case, dtype, &data, gradient, i, direction)?);
                    }
                }
                Ok(worst)
            });
        }
    }
    report.finish();
}
