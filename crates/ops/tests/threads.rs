//! The number of threads changes no bit. A program of its own with one test: concurrent callers would take the pool from
//! each other, and then run on one thread whatever is set.

mod common;

use burn::tensor::DType;
use calotype_kernels::{AdamW, set_threads};
use calotype_ops::{adamw_step, ema_step, sum_of_squares};
use common::{
    Body, Report, Setting, cases, dtypes, equal_bits, evaluate, from_vec, not_run, same_bits, subject, to_vec,
};

/// Evaluates with 1, 2 and 3 threads and compares with the first.
fn for_every_number<R>(run: impl Fn() -> R, same: impl Fn(&R, &R) -> Result<(), String>) -> Result<f32, String> {
    let with = |n: usize| {
        set_threads(n);
        run()
    };
    let one = with(1);
    for n in [2, 3] {
        same(&with(n), &one).map_err(|e| format!("{n} threads: {e}"))?;
    }
    Ok(0.0)
}

#[test]
fn same_bits_for_every_number_of_threads() {
    if subject() != Body::Kernels {
        return not_run("bits for 1, 2 and 3 threads: the CPU kernels alone have them");
    }
    let mut report = Report::default();
    for dtype in dtypes() {
        for case in cases() {
            let data = case.data(dtype);
            let setting = Setting::new(&case, subject(), dtype);
            report.check(&format!("{} {dtype:?}", case.name), || {
                for_every_number(|| evaluate(&case, &data, &setting), same_bits)
            });
        }
    }
    let device = subject().device();
    let numbers: Vec<f32> = (0..100_003u32).map(|i| (i as f32 * 0.37).sin()).collect();
    let tensor = || from_vec(&numbers, DType::F32, &device);
    report.check("adamw_step", || {
        let hyper = AdamW::default();
        let step = || {
            let moments = (tensor(), tensor().abs());
            let (p, m, v) = adamw_step(tensor(), tensor().mul_scalar(2.0), moments, &hyper, 3, 0.7);
            [p, m, v].map(to_vec).concat()
        };
        for_every_number(step, |a, b| equal_bits(a, b))
    });
    report.check("ema_step", || {
        let step = || to_vec(ema_step(tensor(), tensor().mul_scalar(2.0), 0.99));
        for_every_number(step, |a, b| equal_bits(a, b))
    });
    report.check("sum_of_squares", || {
        let same = |a: &f64, b: &f64| (a.to_bits() == b.to_bits()).then_some(()).ok_or(format!("{a} and {b}"));
        for_every_number(|| sum_of_squares(&tensor()), same)
    });
    report.finish();
}
