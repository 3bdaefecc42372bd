//! Optimizer steps on f32 master weights.

use crate::math::{load_up_to, store_up_to};
use crate::simd::{Simd, dispatch};
use crate::threads::{SharedMut, for_chunks, for_chunks3};

/// Elements of a task.
const CHUNK: usize = 16 * 1024;

/// Settings of AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the denominator, after the bias correction.
    pub eps: f32,
    /// Decoupled weight decay, times the learning rate per step.
    pub weight_decay: f32,
}

impl Default for AdamW {
    /// PyTorch's defaults: 1e-3, 0.9, 0.999, 1e-8, 0.01.
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// One step, PyTorch's semantics, with `g' = grad_scale g`:
///
/// `p *= 1 - lr weight_decay; m = beta1 m + (1 - beta1) g'; v = beta2 v + (1 - beta2) g'^2;`
/// `p -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)`.
///
/// `step` counts from 1; `grad_scale` is where clipping and averaging over accumulated batches go.
///
/// # Panics
///
/// If the slices differ in length or `step` is zero.
pub fn adamw_step(params: &AdamW, step: u64, grad_scale: f32, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let factors = Factors::new(params, step, grad_scale);
    check_lengths("adamw_step", p.len(), [g.len(), m.len(), v.len(), p.len()]);
    for_chunks3((p, CHUNK), (m, CHUNK), (v, CHUNK), |i, p, m, v| {
        let g = &g[i * CHUNK..][..p.len()];
        dispatch!(|s| adamw_chunk(s, &factors, p, g, (m, v), None));
    });
}

/// [`adamw_step`], then [`ema_step`] with the new parameter, in one pass over memory.
///
/// # Panics
///
/// If the slices differ in length or `step` is zero.
pub fn adamw_ema_step(
    params: &AdamW,
    step: u64,
    grad_scale: f32,
    p: &mut [f32],
    g: &[f32],
    (m, v): (&mut [f32], &mut [f32]),
    (ema, decay): (&mut [f32], f32),
) {
    let factors = Factors::new(params, step, grad_scale);
    check_lengths("adamw_ema_step", p.len(), [g.len(), m.len(), v.len(), ema.len()]);
    let rest = (1.0 - decay as f64) as f32;
    let ema = SharedMut::new(ema);
    for_chunks3((p, CHUNK), (m, CHUNK), (v, CHUNK), |i, p, m, v| {
        let range = i * CHUNK..i * CHUNK + p.len();
        // SAFETY: chunks with different numbers do not overlap.
        let ema = unsafe { ema.range(range.clone()) };
        dispatch!(|s| adamw_chunk(s, &factors, p, &g[range], (m, v), Some((ema, rest))));
    });
}

fn check_lengths(op: &str, p: usize, others: [usize; 4]) {
    assert!(others.iter().all(|&len| len == p), "{op}: p has {p} elements, the others {others:?}");
}

/// The constants of a step.
struct Factors {
    params: AdamW,
    grad_scale: f32,
    /// Learning rate with the first moment's bias correction.
    rate: f32,
    /// The second moment's bias correction, for its root.
    root: f32,
    /// What weight decay leaves.
    keep: f32,
}

impl Factors {
    fn new(params: &AdamW, step: u64, grad_scale: f32) -> Self {
        assert!(step > 0, "optimizer steps count from 1");
        let correction = |beta: f32| 1.0 - (step as f64 * (beta as f64).ln()).exp();
        Self {
            params: *params,
            grad_scale,
            rate: (params.lr as f64 / correction(params.beta1)) as f32,
            root: (1.0 / correction(params.beta2).sqrt()) as f32,
            keep: (1.0 - params.lr as f64 * params.weight_decay as f64) as f32,
        }
    }
}

#[inline(always)]
fn adamw_chunk<S: Simd>(
    s: S,
    factors: &Factors,
    p: &mut [f32],
    g: &[f32],
    (m, v): (&mut [f32], &mut [f32]),
    mut ema: Option<(&mut [f32], f32)>,
) {
    let params = &factors.params;
    let (beta1, beta2) = (s.splat(params.beta1), s.splat(params.beta2));
    let rest1 = s.splat((1.0 - params.beta1 as f64) as f32);
    let rest2 = s.splat((1.0 - params.beta2 as f64) as f32);
    let (grad_scale, rate) = (s.splat(factors.grad_scale), s.splat(factors.rate));
    let (root, keep) = (s.splat(factors.root), s.splat(factors.keep));
    let eps = s.splat(params.eps);
    for i in (0..p.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(p.len());
        let g = s.mul(load_up_to(s, &g[i..j]), grad_scale);
        let mean = s.fma(beta1, load_up_to(s, &m[i..j]), s.mul(rest1, g));
        let square = s.fma(beta2, load_up_to(s, &v[i..j]), s.mul(rest2, s.mul(g, g)));
        let step = s.div(s.mul(rate, mean), s.fma(s.sqrt(square), root, eps));
        let weight = s.sub(s.mul(load_up_to(s, &p[i..j]), keep), step);
        store_up_to(s, mean, &mut m[i..j]);
        store_up_to(s, square, &mut v[i..j]);
        store_up_to(s, weight, &mut p[i..j]);
        if let Some((ema, rest)) = &mut ema {
            let average = moved(s, load_up_to(s, &ema[i..j]), weight, s.splat(*rest));
            store_up_to(s, average, &mut ema[i..j]);
        }
    }
}

/// `ema = decay ema + (1 - decay) p`.
///
/// # Panics
///
/// If the slices differ in length.
pub fn ema_step(ema: &mut [f32], p: &[f32], decay: f32) {
    assert!(ema.len() == p.len(), "ema_step: ema has {} elements, p {}", ema.len(), p.len());
    let rest = (1.0 - decay as f64) as f32;
    for_chunks(ema, CHUNK, |i, ema| {
        let p = &p[i * CHUNK..][..ema.len()];
        dispatch!(|s| ema_chunk(s, ema, p, rest));
    });
}

#[inline(always)]
fn ema_chunk<S: Simd>(s: S, ema: &mut [f32], p: &[f32], rest: f32) {
    let rest = s.splat(rest);
    for i in (0..ema.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(ema.len());
        let new = moved(s, load_up_to(s, &ema[i..j]), load_up_to(s, &p[i..j]), rest);
        store_up_to(s, new, &mut ema[i..j]);
    }
}

/// In the form `ema + rest (p - ema)`, which leaves an average that equals its weight alone.
#[inline(always)]
fn moved<S: Simd>(s: S, ema: S::V, p: S::V, rest: S::V) -> S::V {
    s.fma(rest, s.sub(p, ema), ema)
}

/// Sum of the squares of a gradient, for clipping by the norm: f32 over runs of 1,024, f64 above that, in a fixed
/// order.
pub fn sum_of_squares(g: &[f32]) -> f64 {
    const RUN: usize = 1024;
    let mut sums = vec![0.0f64; g.len().div_ceil(RUN)];
    let shared = SharedMut::new(&mut sums);
    let tasks = g.len().div_ceil(32 * RUN);
    crate::threads::parallel_for(tasks, |task| {
        let g = &g[task * 32 * RUN..((task + 1) * 32 * RUN).min(g.len())];
        let begin = task * 32;
        // SAFETY: tasks have different runs.
        let sums = unsafe { shared.range(begin..begin + g.len().div_ceil(RUN)) };
        for (run, sum) in g.chunks(RUN).zip(sums) {
            *sum = dispatch!(|s| squares(s, run)) as f64;
        }
    });
    sums.iter().sum()
}

#[inline(always)]
fn squares<S: Simd>(s: S, run: &[f32]) -> f32 {
    let mut total = s.splat(0.0);
    for i in (0..run.len()).step_by(S::LANES) {
        let v = load_up_to(s, &run[i..(i + S::LANES).min(run.len())]);
        total = s.fma(v, v, total);
    }
    s.sum(total)
}
