//! Sums, copies, conversions and losses.

use half::bf16;

use crate::element::Element;
use crate::math::{load_up_to, map1, map2, store_up_to};
use crate::product::add_to;
use crate::scratch::with_scratch;
use crate::simd::{Simd, dispatch};
use crate::threads::{SharedMut, for_chunks, parallel_for};

/// Elements of a task.
const CHUNK: usize = 32 * 1024;

/// See [`crate::add`].
pub(crate) fn add<T: Element>(a: &[T], b: &[T], y: &mut [T]) {
    let lens = (a.len(), b.len(), y.len());
    assert!(lens.0 == lens.1 && lens.0 == lens.2, "add: a, b, y have {lens:?} elements");
    for_chunks(y, CHUNK, |i, y| {
        let (a, b) = (&a[i * CHUNK..][..y.len()], &b[i * CHUNK..][..y.len()]);
        dispatch!(|s| map2(
            s,
            a,
            b,
            y,
            #[inline(always)]
            |a, b| s.add(a, b)
        ));
    });
}

/// See [`crate::add_assign`].
pub(crate) fn add_assign<T: Element>(y: &mut [T], x: &[T]) {
    assert!(y.len() == x.len(), "add_assign: y has {} elements, x {}", y.len(), x.len());
    for_chunks(y, CHUNK, |i, y| {
        let x = &x[i * CHUNK..][..y.len()];
        dispatch!(|s| for i in (0..y.len()).step_by(lanes(s)) {
            let j = (i + lanes(s)).min(y.len());
            let v = s.add(load_up_to(s, &y[i..j]), load_up_to(s, &x[i..j]));
            store_up_to(s, v, &mut y[i..j]);
        });
    });
}

/// See [`crate::scale`].
pub(crate) fn scale<T: Element>(x: &[T], factor: f32, y: &mut [T]) {
    assert!(x.len() == y.len(), "scale: x has {} elements, y {}", x.len(), y.len());
    for_chunks(y, CHUNK, |i, y| {
        let x = &x[i * CHUNK..][..y.len()];
        dispatch!(|s| {
            let factor = s.splat(factor);
            map1(
                s,
                x,
                y,
                #[inline(always)]
                |v| s.mul(v, factor),
            );
        });
    });
}

#[inline(always)]
fn lanes<S: Simd>(_: S) -> usize {
    S::LANES
}

fn convert<X: Element, Y: Element>(op: &str, x: &[X], y: &mut [Y]) {
    assert!(x.len() == y.len(), "{op}: the slices have {} and {} elements", x.len(), y.len());
    for_chunks(y, CHUNK, |i, y| {
        let x = &x[i * CHUNK..][..y.len()];
        dispatch!(|s| map1(
            s,
            x,
            y,
            #[inline(always)]
            |v| v
        ));
    });
}

/// Converts to bf16, rounding to nearest even.
///
/// # Panics
///
/// If the slices differ in length.
pub fn f32_to_bf16(x: &[f32], y: &mut [bf16]) {
    convert("f32_to_bf16", x, y);
}

/// Converts to f32, exactly.
///
/// # Panics
///
/// If the slices differ in length.
pub fn bf16_to_f32(x: &[bf16], y: &mut [f32]) {
    convert("bf16_to_f32", x, y);
}

/// See [`crate::concat_channels`].
pub(crate) fn concat_channels<T: Element>(a: &[T], b: &[T], y: &mut [T], rows: usize, ca: usize, cb: usize) {
    assert!(a.len() == rows * ca, "concat_channels: a has {} elements, not {rows} x {ca}", a.len());
    assert!(b.len() == rows * cb, "concat_channels: b has {} elements, not {rows} x {cb}", b.len());
    let c = ca + cb;
    assert!(y.len() == rows * c, "concat_channels: y has {} elements, not {rows} x {c}", y.len());
    if c == 0 {
        return;
    }
    let step = (CHUNK / c).max(1);
    for_chunks(y, step * c, |task, y| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            let row = task * step + i;
            y[..ca].copy_from_slice(&a[row * ca..][..ca]);
            y[ca..].copy_from_slice(&b[row * cb..][..cb]);
        }
    });
}

/// See [`crate::split_channels`].
pub(crate) fn split_channels<T: Element>(y: &[T], a: &mut [T], b: &mut [T], rows: usize, ca: usize, cb: usize) {
    assert!(a.len() == rows * ca, "split_channels: a has {} elements, not {rows} x {ca}", a.len());
    assert!(b.len() == rows * cb, "split_channels: b has {} elements, not {rows} x {cb}", b.len());
    let c = ca + cb;
    assert!(y.len() == rows * c, "split_channels: y has {} elements, not {rows} x {c}", y.len());
    if c == 0 {
        return;
    }
    let step = (CHUNK / c).max(1);
    let take = |part: &mut [T], width: usize, offset: usize| {
        if width > 0 {
            for_chunks(part, step * width, |task, part| {
                for (i, part) in part.chunks_exact_mut(width).enumerate() {
                    part.copy_from_slice(&y[(task * step + i) * c + offset..][..width]);
                }
            });
        }
    };
    take(a, ca, 0);
    take(b, cb, ca);
}

/// See [`crate::sum_rows`].
pub(crate) fn sum_rows<T: Element>(x: &[T], sum: &mut [f32], rows: usize, c: usize) {
    assert!(x.len() == rows * c, "sum_rows: x has {} elements, not {rows} x {c}", x.len());
    assert!(sum.len() == c, "sum_rows: sum has {} elements, not {c}", sum.len());
    sum_row_groups(x, sum, 1, rows, c);
}

/// See [`crate::sum_row_groups`].
pub(crate) fn sum_row_groups<T: Element>(x: &[T], sum: &mut [f32], groups: usize, rows: usize, c: usize) {
    assert!(x.len() == groups * rows * c, "sum_row_groups: x has {} elements, not {groups} x {rows} x {c}", x.len());
    assert!(sum.len() == groups * c, "sum_row_groups: sum has {} elements, not {groups} x {c}", sum.len());
    sum.fill(0.0);
    if x.is_empty() {
        return;
    }
    let step = (CHUNK / c).clamp(1, 256);
    let tasks = rows.div_ceil(step);
    with_scratch(groups * tasks * c, |partial| {
        for_chunks(partial, c, |task, partial| {
            let (g, t) = (task / tasks, task % tasks);
            let begin = (g * rows + t * step) * c;
            let x = &x[begin..][..step.min(rows - t * step) * c];
            dispatch!(|s| for i in (0..c).step_by(lanes(s)) {
                let j = (i + lanes(s)).min(c);
                let mut total = s.splat(0.0);
                for row in x.chunks_exact(c) {
                    total = s.add(total, load_up_to(s, &row[i..j]));
                }
                store_up_to(s, total, &mut partial[i..j]);
            });
        });
        for (sum, partial) in sum.chunks_exact_mut(c).zip(partial.chunks_exact(tasks * c)) {
            for part in partial.chunks_exact(c) {
                dispatch!(|s| add_to(s, part, sum));
            }
        }
    });
}

fn loss_sizes(op: &str, a: usize, b: usize, weights: Option<&[f32]>, rows: usize) -> usize {
    assert!(a == b, "{op}: the prediction has {a} elements, the target {b}");
    assert!(weights.is_none_or(|w| w.len() == rows), "{op}: there are not {rows} weights");
    let c = a.checked_div(rows).unwrap_or(0);
    assert!(a == rows * c, "{op}: {a} elements do not divide into {rows} rows");
    c
}

/// See [`crate::mse_loss`].
pub(crate) fn mse_loss<T: Element>(prediction: &[T], target: &[T], weight_per_row: Option<&[f32]>, rows: usize) -> f32 {
    let c = loss_sizes("mse_loss", prediction.len(), target.len(), weight_per_row, rows);
    if rows * c == 0 {
        return 0.0;
    }
    const RUN: usize = 4096;
    let runs = c.div_ceil(RUN);
    let mut sums = vec![0.0f64; rows * runs];
    for_chunks(&mut sums, 1, |task, sum| {
        let (row, run) = (task / runs, task % runs);
        let range = row * c + run * RUN..row * c + ((run + 1) * RUN).min(c);
        let (a, b) = (&prediction[range.clone()], &target[range]);
        let weight = weight_per_row.map_or(1.0, |w| w[row]);
        let total: f32 = dispatch!(|s| {
            let mut total = s.splat(0.0);
            for i in (0..a.len()).step_by(lanes(s)) {
                let j = (i + lanes(s)).min(a.len());
                let d = s.sub(load_up_to(s, &a[i..j]), load_up_to(s, &b[i..j]));
                total = s.fma(d, d, total);
            }
            s.sum(total)
        });
        sum[0] = weight as f64 * total as f64;
    });
    (sums.iter().sum::<f64>() / (rows * c) as f64) as f32
}

/// See [`crate::mse_loss_backward`].
pub(crate) fn mse_loss_backward<T: Element>(
    prediction: &[T],
    target: &[T],
    weight_per_row: Option<&[f32]>,
    rows: usize,
    dloss: f32,
    dprediction: &mut [T],
) {
    let c = loss_sizes("mse_loss_backward", prediction.len(), target.len(), weight_per_row, rows);
    let len = dprediction.len();
    assert!(len == rows * c, "mse_loss_backward: the gradient has {len} elements, not {rows} x {c}");
    if len == 0 {
        return;
    }
    let factor = 2.0 * dloss as f64 / len as f64;
    let out = SharedMut::new(dprediction);
    let runs = c.div_ceil(CHUNK);
    parallel_for(rows * runs, |task| {
        let (row, run) = (task / runs, task % runs);
        let range = row * c + run * CHUNK..row * c + ((run + 1) * CHUNK).min(c);
        let (a, b) = (&prediction[range.clone()], &target[range.clone()]);
        // SAFETY: tasks have different ranges.
        let d = unsafe { out.range(range) };
        let factor = (factor * weight_per_row.map_or(1.0, |w| w[row] as f64)) as f32;
        dispatch!(|s| {
            let factor = s.splat(factor);
            map2(
                s,
                a,
                b,
                d,
                #[inline(always)]
                |a, b| s.mul(s.sub(a, b), factor),
            );
        });
    });
}

/// See [`crate::mix_rows`].
pub(crate) fn mix_rows<T: Element>(x: &[T], noise: &[T], signal: &[f32], noise_scale: &[f32], y: &mut [T]) {
    let rows = signal.len();
    assert!(noise_scale.len() == rows, "mix_rows: {rows} factors and {} factors", noise_scale.len());
    assert!(x.len() == y.len() && noise.len() == y.len(), "mix_rows: x, noise and y differ in length");
    let c = y.len().checked_div(rows).unwrap_or(0);
    assert!(y.len() == rows * c, "mix_rows: {} elements do not divide into {rows} rows", y.len());
    if c == 0 {
        return;
    }
    for_chunks(y, c, |row, y| {
        let (x, noise) = (&x[row * c..][..c], &noise[row * c..][..c]);
        dispatch!(|s| {
            let (a, b) = (s.splat(signal[row]), s.splat(noise_scale[row]));
            map2(
                s,
                x,
                noise,
                y,
                #[inline(always)]
                |x, n| s.fma(a, x, s.mul(b, n)),
            );
        });
    });
}
