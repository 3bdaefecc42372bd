//! What autodiff may and may not change: outputs never, gradients only of inputs that ask for one.

use crate::common::{
    Body, Case, Outcome, Report, Setting, Tracking, cases, dtypes, evaluate, excess, same_bits, subject,
};
use burn::tensor::DType;

/// The same numbers: to the last bit, but on wgpu, where a matrix product may be tuned differently from call to call.
fn same(got: &Outcome, want: &Outcome) -> Result<f32, String> {
    if subject() == Body::Kernels {
        return same_bits(got, want).map(|()| 0.0);
    }
    let mut worst = excess(&got.output, &want.output, (0.0, 1e-3), 0.0)?;
    for (got, want) in got.gradients.iter().zip(&want.gradients) {
        match (got, want) {
            (Some(got), Some(want)) => worst = worst.max(excess(got, want, (0.0, 1e-3), 1.0)?),
            (None, None) => {}
            _ => return Err("a gradient is there in one of two".into()),
        }
    }
    Ok(worst)
}

fn with(case: &Case, data: &[Vec<f32>], dtype: DType, tracking: Tracking) -> Outcome {
    evaluate(case, data, &Setting { tracking, ..Setting::new(case, subject(), dtype) })
}

#[test]
fn outputs_do_not_depend_on_autodiff() {
    let mut report = Report::default();
    for dtype in dtypes() {
        for case in cases() {
            report.check(&format!("{} {dtype:?}", case.name), || {
                let data = case.data(dtype);
                let n = data.len();
                let plain = with(&case, &data, dtype, Tracking::None);
                let frozen = with(&case, &data, dtype, Tracking::Marked(vec![false; n]));
                let mut tracked = with(&case, &data, dtype, Tracking::Marked(vec![true; n]));
                tracked.gradients = vec![None; n];
                Ok(same(&frozen, &plain)?.max(same(&tracked, &plain)?))
            });
        }
    }
    report.finish();
}

#[test]
fn frozen_inputs_get_no_gradient_and_change_no_other() {
    let mut report = Report::default();
    for dtype in dtypes() {
        for case in cases() {
            let data = case.data(dtype);
            let n = data.len();
            let full = with(&case, &data, dtype, Tracking::Marked(vec![true; n]));
            // Each input frozen alone, and each tracked alone; with one input, the latter is the full outcome again.
            for (i, alone) in (0..n).flat_map(|i| [(i, false), (i, true)]).filter(|&(_, alone)| alone || n > 1) {
                let marks: Vec<bool> = (0..n).map(|j| (j == i) == alone).collect();
                let name = case.inputs[i].name;
                report.check(&format!("{} {dtype:?}, {name} tracked: {alone}", case.name), || {
                    let mut want = full.clone();
                    want.gradients.iter_mut().zip(&marks).filter(|(_, mark)| !**mark).for_each(|(g, _)| *g = None);
                    same(&with(&case, &data, dtype, Tracking::Marked(marks)), &want)
                });
            }
        }
    }
    report.finish();
}
