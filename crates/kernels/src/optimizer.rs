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
    let lens = [p.len(), g.len(), m.len(), v.len()];
    assert!(lens.iter().all(|&len| len == lens[0]), "adamw_step: p, g, m, v have {lens:?} elements");
    assert!(step > 0, "adamw_step: steps count from 1");
    let correction = |beta: f32| 1.0 - (step as f64 * (beta as f64).ln()).exp();
    let (first, second) = (correction(params.beta1), correction(params.beta2));
    let rate = (params.lr as f64 / first) as f32;
    let root = (1.0 / second.sqrt()) as f32;
    let keep = (1.0 - params.lr as f64 * params.weight_decay as f64) as f32;
    for_chunks3((p, CHUNK), (m, CHUNK), (v, CHUNK), |i, p, m, v| {
        let g = &g[i * CHUNK..][..p.len()];
        dispatch!(|s| adamw_chunk(s, params, [grad_scale, rate, root, keep], p, g, m, v));
    });
}

#[inline(always)]
fn adamw_chunk<S: Simd>(
    s: S,
    params: &AdamW,
    [grad_scale, rate, root, keep]: [f32; 4],
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    let (beta1, beta2) = (s.splat(params.beta1), s.splat(params.beta2));
    let rest1 = s.splat((1.0 - params.beta1 as f64) as f32);
    let rest2 = s.splat((1.0 - params.beta2 as f64) as f32);
    let (grad_scale, rate) = (s.splat(grad_scale), s.splat(rate));
    let (root, keep) = (s.splat(root), s.splat(keep));
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

/// In the form `ema + rest (p - ema)`, which leaves an average that equals its weight alone.
#[inline(always)]
fn ema_chunk<S: Simd>(s: S, ema: &mut [f32], p: &[f32], rest: f32) {
    let rest = s.splat(rest);
    for i in (0..ema.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(ema.len());
        let old = load_up_to(s, &ema[i..j]);
        let new = s.fma(rest, s.sub(load_up_to(s, &p[i..j]), old), old);
        store_up_to(s, new, &mut ema[i..j]);
    }
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
