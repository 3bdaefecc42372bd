//! Group and layer normalization, forward and backward. Statistics are f32 over short runs of rows and f64 above that.

use crate::element::Element;
use crate::math::{load_up_to, silu, silu_slope, store_up_to};
use crate::product::add_to;
use crate::scratch::with_scratch;
use crate::simd::{Simd, dispatch};
use crate::threads::{SharedMut, for_chunks, for_chunks2, for_chunks3, parallel_for};

/// Elements of a task.
const CHUNK: usize = 16 * 1024;

/// Most rows that are summed in f32.
const RUN: usize = 256;

/// Rows of `c` channels of a task.
fn rows_of_task(c: usize) -> usize {
    (CHUNK / c.max(1)).clamp(1, RUN)
}

fn group_sizes(op: &str, len: usize, stats: usize, c: usize, groups: usize) -> (usize, usize) {
    assert!(groups > 0 && c.is_multiple_of(groups), "{op}: {c} channels do not divide into {groups} groups");
    assert!(stats.is_multiple_of(groups), "{op}: mean has {stats} elements, not a multiple of {groups} groups");
    let batch = stats / groups;
    let pixels = len.checked_div(batch * c).unwrap_or(0);
    assert!(len == batch * pixels * c, "{op}: x has {len} elements, not {batch} x pixels x {c}");
    (batch, pixels)
}

/// `y = f((x - mean) rstd gamma + beta)`, f being the identity or SiLU, with the statistics of each picture and group
/// of channels: `rstd = 1 / sqrt(variance + eps)`, the variance without Bessel's correction.
///
/// x and y are `[batch, pixels, c]`, gamma and beta `[c]`, mean and rstd `[batch, groups]` (they tell the batch). c is
/// the length of gamma.
///
/// # Panics
///
/// If lengths do not fit together, or the channels do not divide into the groups.
pub fn group_norm_forward<T: Element>(
    x: &[T],
    gamma: &[f32],
    beta: &[f32],
    groups: usize,
    eps: f32,
    silu: bool,
    y: &mut [T],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    const OP: &str = "group_norm_forward";
    let c = gamma.len();
    assert!(beta.len() == c, "{OP}: gamma has {c} elements, beta {}", beta.len());
    assert!(mean.len() == rstd.len(), "{OP}: mean has {} elements, rstd {}", mean.len(), rstd.len());
    assert!(x.len() == y.len(), "{OP}: x has {} elements, y {}", x.len(), y.len());
    let (batch, pixels) = group_sizes(OP, x.len(), mean.len(), c, groups);
    if x.is_empty() {
        mean.fill(0.0);
        rstd.fill(0.0);
        return;
    }
    let step = rows_of_task(c);
    let tasks = pixels.div_ceil(step);
    let width = c / groups;
    with_scratch(batch * tasks * 2 * c, |partial| {
        // Sums of x - shift and of its square, per channel; the shift is the channel's first pixel, so that a mean far
        // from zero costs no precision.
        for_chunks(partial, 2 * c, |task, partial| {
            let (b, t) = (task / tasks, task % tasks);
            let picture = &x[b * pixels * c..][..pixels * c];
            let rows = &picture[t * step * c..((t + 1) * step * c).min(pixels * c)];
            let (sum, square) = partial.split_at_mut(c);
            dispatch!(|s| {
                for i in (0..c).step_by(S_STEP) {
                    let j = (i + S_STEP).min(c);
                    channel_sums(s, &picture[i..j], rows, (i, c), &mut sum[i..j], &mut square[i..j]);
                }
            });
        });
        let partial = &*partial;
        for_chunks2((mean, groups), (rstd, groups), |b, mean, rstd| {
            let picture = &x[b * pixels * c..][..c];
            let partial = &partial[b * tasks * 2 * c..][..tasks * 2 * c];
            for g in 0..groups {
                // Mean and squared deviations of each channel, then of the group (Chan, Golub, LeVeque 1979).
                let (mut count, mut average, mut deviations) = (0.0f64, 0.0f64, 0.0f64);
                for i in g * width..(g + 1) * width {
                    let (mut sum, mut square) = (0.0f64, 0.0f64);
                    for part in partial.chunks_exact(2 * c) {
                        sum += part[i] as f64;
                        square += part[c + i] as f64;
                    }
                    let n = pixels as f64;
                    let delta = picture[i].to_f32() as f64 + sum / n - average;
                    average += delta * n / (count + n);
                    deviations += (square - sum * sum / n).max(0.0) + delta * delta * count * n / (count + n);
                    count += n;
                }
                mean[g] = average as f32;
                rstd[g] = (1.0 / (deviations / count + eps as f64).sqrt()) as f32;
            }
        });
    });
    let (mean, rstd) = (&*mean, &*rstd);
    let out = SharedMut::new(y);
    parallel_for(batch * tasks, |task| {
        let (b, t) = (task / tasks, task % tasks);
        let begin = (b * pixels + t * step) * c;
        let len = step.min(pixels - t * step) * c;
        // SAFETY: tasks have different rows.
        let (x, y) = (&x[begin..begin + len], unsafe { out.range(begin..begin + len) });
        with_scratch(2 * c, |memory| {
            let (center, factor) = memory.split_at_mut(c);
            for i in 0..c {
                center[i] = mean[b * groups + i / width];
                factor[i] = rstd[b * groups + i / width] * gamma[i];
            }
            dispatch!(|s| if silu {
                normalize::<_, T, true>(s, x, (center, factor, beta), y);
            } else {
                normalize::<_, T, false>(s, x, (center, factor, beta), y);
            });
        });
    });
}

/// Channels that [`channel_sums`] takes at once.
const S_STEP: usize = 64;

/// Sums of `x - shift` and of its square over rows of `c` channels, for at most [`S_STEP`] channels from `first`.
#[inline(always)]
fn channel_sums<S: Simd, T: Element>(
    s: S,
    shift: &[T],
    rows: &[T],
    (first, c): (usize, usize),
    sum: &mut [f32],
    square: &mut [f32],
) {
    for i in (0..shift.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(shift.len());
        let base = load_up_to(s, &shift[i..j]);
        let (mut total, mut squares) = (s.splat(0.0), s.splat(0.0));
        for row in rows.chunks_exact(c) {
            let d = s.sub(load_up_to(s, &row[first + i..first + j]), base);
            total = s.add(total, d);
            squares = s.fma(d, d, squares);
        }
        store_up_to(s, total, &mut sum[i..j]);
        store_up_to(s, squares, &mut square[i..j]);
    }
}

/// `y = f((x - center) factor + beta)` for rows of as many channels as `beta` has.
#[inline(always)]
fn normalize<S: Simd, T: Element, const SILU: bool>(
    s: S,
    x: &[T],
    (center, factor, beta): (&[f32], &[f32], &[f32]),
    y: &mut [T],
) {
    let c = beta.len();
    for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
        for i in (0..c).step_by(S::LANES) {
            let j = (i + S::LANES).min(c);
            let d = s.sub(load_up_to(s, &x[i..j]), load_up_to(s, &center[i..j]));
            let z = s.fma(d, load_up_to(s, &factor[i..j]), load_up_to(s, &beta[i..j]));
            store_up_to(s, if SILU { silu(s, z) } else { z }, &mut y[i..j]);
        }
    }
}

/// Gradients of [`group_norm_forward`]: dx lies like x, dgamma and dbeta are `[c]`; all are overwritten. mean and rstd
/// are what the forward pass returned.
///
/// With h = (x - mean) rstd and dz = dy f'(h gamma + beta): dbeta = sum dz, dgamma = sum dz h,
/// dx = rstd (gamma dz - average(gamma dz) - h average(gamma dz h)), the averages over a group.
///
/// # Panics
///
/// If lengths do not fit together, or the channels do not divide into the groups.
pub fn group_norm_backward<T: Element>(
    x: &[T],
    dy: &[T],
    gamma: &[f32],
    beta: &[f32],
    mean: &[f32],
    rstd: &[f32],
    groups: usize,
    silu: bool,
    dx: &mut [T],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    const OP: &str = "group_norm_backward";
    let c = gamma.len();
    assert!(beta.len() == c && dgamma.len() == c && dbeta.len() == c, "{OP}: parameters differ in length");
    assert!(mean.len() == rstd.len(), "{OP}: mean has {} elements, rstd {}", mean.len(), rstd.len());
    assert!(x.len() == dy.len() && x.len() == dx.len(), "{OP}: x, dy and dx differ in length");
    let (batch, pixels) = group_sizes(OP, x.len(), mean.len(), c, groups);
    dgamma.fill(0.0);
    dbeta.fill(0.0);
    if x.is_empty() {
        return;
    }
    let step = rows_of_task(c);
    let tasks = pixels.div_ceil(step);
    let width = c / groups;
    with_scratch(batch * tasks * 2 * c + batch * 2 * c, |memory| {
        let (partial, totals) = memory.split_at_mut(batch * tasks * 2 * c);
        let channels = |b: usize, center: &mut [f32], scale: &mut [f32]| {
            for i in 0..c {
                center[i] = mean[b * groups + i / width];
                scale[i] = rstd[b * groups + i / width];
            }
        };
        for_chunks(partial, 2 * c, |task, partial| {
            let (b, t) = (task / tasks, task % tasks);
            let begin = (b * pixels + t * step) * c;
            let len = step.min(pixels - t * step) * c;
            let (x, dy) = (&x[begin..begin + len], &dy[begin..begin + len]);
            let (sum, product) = partial.split_at_mut(c);
            with_scratch(2 * c, |memory| {
                let (center, scale) = memory.split_at_mut(c);
                channels(b, center, scale);
                let stats = (&*center, &*scale, gamma, beta);
                dispatch!(|s| if silu {
                    gradient_sums::<_, T, true>(s, (x, dy), stats, sum, product);
                } else {
                    gradient_sums::<_, T, false>(s, (x, dy), stats, sum, product);
                });
            });
        });
        let partial = &*partial;
        for_chunks(totals, 2 * c, |b, total| {
            total.fill(0.0);
            for part in partial[b * tasks * 2 * c..][..tasks * 2 * c].chunks_exact(2 * c) {
                dispatch!(|s| add_to(s, part, total));
            }
        });
        let totals = &*totals;
        for total in totals.chunks_exact(2 * c) {
            let (sum, product) = total.split_at(c);
            dispatch!(|s| {
                add_to(s, sum, dbeta);
                add_to(s, product, dgamma);
            });
        }
        let out = SharedMut::new(dx);
        parallel_for(batch * tasks, |task| {
            let (b, t) = (task / tasks, task % tasks);
            let begin = (b * pixels + t * step) * c;
            let len = step.min(pixels - t * step) * c;
            // SAFETY: tasks have different rows.
            let dx = unsafe { out.range(begin..begin + len) };
            let (x, dy) = (&x[begin..begin + len], &dy[begin..begin + len]);
            let (sum, product) = totals[b * 2 * c..][..2 * c].split_at(c);
            with_scratch(4 * c, |memory| {
                let (center, memory) = memory.split_at_mut(c);
                let (scale, memory) = memory.split_at_mut(c);
                let (first, second) = memory.split_at_mut(c);
                channels(b, center, scale);
                let count = (width * pixels) as f64;
                for g in 0..groups {
                    let members = g * width..(g + 1) * width;
                    let average =
                        |of: &[f32]| members.clone().map(|i| gamma[i] as f64 * of[i] as f64).sum::<f64>() / count;
                    first[members.clone()].fill(average(sum) as f32);
                    second[members.clone()].fill(average(product) as f32);
                }
                let stats = (&*center, &*scale, gamma, beta);
                dispatch!(|s| if silu {
                    input_gradient::<_, T, true>(s, (x, dy), stats, (first, second), dx);
                } else {
                    input_gradient::<_, T, false>(s, (x, dy), stats, (first, second), dx);
                });
            });
        });
    });
}

/// Center, scale, gamma, beta per channel.
type Stats<'a> = (&'a [f32], &'a [f32], &'a [f32], &'a [f32]);

/// h and dz of some channels of a row.
#[inline(always)]
fn normalized<S: Simd, T: Element, const SILU: bool>(
    s: S,
    (x, dy): (&[T], &[T]),
    (center, scale, gamma, beta): (S::V, S::V, S::V, S::V),
) -> (S::V, S::V) {
    let h = s.mul(s.sub(load_up_to(s, x), center), scale);
    let dy = load_up_to(s, dy);
    let dz = if SILU { s.mul(dy, silu_slope(s, s.fma(h, gamma, beta))) } else { dy };
    (h, dz)
}

/// Sums over rows of dz and dz h, per channel.
#[inline(always)]
fn gradient_sums<S: Simd, T: Element, const SILU: bool>(
    s: S,
    (x, dy): (&[T], &[T]),
    stats: Stats,
    sum: &mut [f32],
    product: &mut [f32],
) {
    let c = sum.len();
    for i in (0..c).step_by(S::LANES) {
        let j = (i + S::LANES).min(c);
        let of = (
            load_up_to(s, &stats.0[i..j]),
            load_up_to(s, &stats.1[i..j]),
            load_up_to(s, &stats.2[i..j]),
            load_up_to(s, &stats.3[i..j]),
        );
        let (mut sums, mut products) = (s.splat(0.0), s.splat(0.0));
        for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
            let (h, dz) = normalized::<S, T, SILU>(s, (&x[i..j], &dy[i..j]), of);
            sums = s.add(sums, dz);
            products = s.fma(dz, h, products);
        }
        store_up_to(s, sums, &mut sum[i..j]);
        store_up_to(s, products, &mut product[i..j]);
    }
}

/// `dx = scale (gamma dz - first - h second)`.
#[inline(always)]
fn input_gradient<S: Simd, T: Element, const SILU: bool>(
    s: S,
    (x, dy): (&[T], &[T]),
    stats: Stats,
    (first, second): (&[f32], &[f32]),
    dx: &mut [T],
) {
    let c = first.len();
    for i in (0..c).step_by(S::LANES) {
        let j = (i + S::LANES).min(c);
        let of = (
            load_up_to(s, &stats.0[i..j]),
            load_up_to(s, &stats.1[i..j]),
            load_up_to(s, &stats.2[i..j]),
            load_up_to(s, &stats.3[i..j]),
        );
        let (first, second) = (load_up_to(s, &first[i..j]), load_up_to(s, &second[i..j]));
        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
            let (h, dz) = normalized::<S, T, SILU>(s, (&x[i..j], &dy[i..j]), of);
            let inner = s.sub(s.sub(s.mul(of.2, dz), first), s.mul(h, second));
            store_up_to(s, s.mul(of.1, inner), &mut dx[i..j]);
        }
    }
}

fn layer_sizes(op: &str, len: usize, rows: usize, c: usize) {
    assert!(len == rows * c, "{op}: x has {len} elements, not {rows} x {c}");
}

/// `y = (x - mean) rstd gamma + beta` with the statistics of each row. x and y are `[rows, c]`, gamma and beta `[c]`,
/// mean and rstd `[rows]`.
///
/// # Panics
///
/// If lengths do not fit together.
pub fn layer_norm_forward<T: Element>(
    x: &[T],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [T],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    const OP: &str = "layer_norm_forward";
    let c = gamma.len();
    assert!(beta.len() == c, "{OP}: gamma has {c} elements, beta {}", beta.len());
    assert!(mean.len() == rstd.len(), "{OP}: mean has {} elements, rstd {}", mean.len(), rstd.len());
    assert!(x.len() == y.len(), "{OP}: x has {} elements, y {}", x.len(), y.len());
    layer_sizes(OP, x.len(), mean.len(), c);
    if c == 0 {
        mean.fill(0.0);
        rstd.fill(0.0);
        return;
    }
    let step = rows_of_task(c);
    for_chunks3((y, step * c), (mean, step), (rstd, step), |task, y, mean, rstd| {
        let x = &x[task * step * c..][..y.len()];
        dispatch!(|s| {
            for (r, (x, y)) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).enumerate() {
                let mut sum = s.splat(0.0);
                for i in (0..c).step_by(Lanes::of(s)) {
                    sum = s.add(sum, load_up_to(s, &x[i..(i + Lanes::of(s)).min(c)]));
                }
                mean[r] = s.sum(sum) / c as f32;
                let center = s.splat(mean[r]);
                let mut square = s.splat(0.0);
                let whole = c / Lanes::of(s) * Lanes::of(s);
                for i in (0..whole).step_by(Lanes::of(s)) {
                    let d = s.sub(T::load(s, &x[i..]), center);
                    square = s.fma(d, d, square);
                }
                let mut square = s.sum(square);
                for x in &x[whole..] {
                    square += (x.to_f32() - mean[r]) * (x.to_f32() - mean[r]);
                }
                rstd[r] = 1.0 / (square / c as f32 + eps).sqrt();
                let scale = s.splat(rstd[r]);
                for i in (0..c).step_by(Lanes::of(s)) {
                    let j = (i + Lanes::of(s)).min(c);
                    let h = s.mul(s.sub(load_up_to(s, &x[i..j]), center), scale);
                    let z = s.fma(h, load_up_to(s, &gamma[i..j]), load_up_to(s, &beta[i..j]));
                    store_up_to(s, z, &mut y[i..j]);
                }
            }
        });
    });
}

/// Lanes of the instruction set a token stands for.
struct Lanes;

impl Lanes {
    #[inline(always)]
    fn of<S: Simd>(_: S) -> usize {
        S::LANES
    }
}

/// Gradients of [`layer_norm_forward`]: dx lies like x, dgamma and dbeta are `[c]`; all are overwritten.
///
/// With h = (x - mean) rstd: dbeta = sum dy, dgamma = sum dy h,
/// dx = rstd (gamma dy - average(gamma dy) - h average(gamma dy h)), the averages over a row.
///
/// # Panics
///
/// If lengths do not fit together.
pub fn layer_norm_backward<T: Element>(
    x: &[T],
    dy: &[T],
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dx: &mut [T],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    const OP: &str = "layer_norm_backward";
    let c = gamma.len();
    assert!(dgamma.len() == c && dbeta.len() == c, "{OP}: parameters differ in length");
    assert!(mean.len() == rstd.len(), "{OP}: mean has {} elements, rstd {}", mean.len(), rstd.len());
    assert!(x.len() == dy.len() && x.len() == dx.len(), "{OP}: x, dy and dx differ in length");
    layer_sizes(OP, x.len(), mean.len(), c);
    dgamma.fill(0.0);
    dbeta.fill(0.0);
    if x.is_empty() {
        return;
    }
    let step = rows_of_task(c);
    let tasks = mean.len().div_ceil(step);
    with_scratch(tasks * 2 * c, |partial| {
        for_chunks2((dx, step * c), (partial, 2 * c), |task, dx, partial| {
            let begin = task * step * c;
            let (x, dy) = (&x[begin..][..dx.len()], &dy[begin..][..dx.len()]);
            let (sum, product) = partial.split_at_mut(c);
            sum.fill(0.0);
            product.fill(0.0);
            dispatch!(|s| {
                let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c));
                for (r, ((x, dy), dx)) in rows.enumerate() {
                    let stats = (mean[task * step + r], rstd[task * step + r]);
                    layer_row(s, (x, dy), gamma, stats, dx, sum, product);
                }
            });
        });
        for part in partial.chunks_exact(2 * c) {
            let (sum, product) = part.split_at(c);
            dispatch!(|s| {
                add_to(s, sum, dbeta);
                add_to(s, product, dgamma);
            });
        }
    });
}

/// One row of [`layer_norm_backward`].
#[inline(always)]
fn layer_row<S: Simd, T: Element>(
    s: S,
    (x, dy): (&[T], &[T]),
    gamma: &[f32],
    (mean, rstd): (f32, f32),
    dx: &mut [T],
    sum: &mut [f32],
    product: &mut [f32],
) {
    let c = gamma.len();
    let (center, scale) = (s.splat(mean), s.splat(rstd));
    let (mut first, mut second) = (s.splat(0.0), s.splat(0.0));
    for i in (0..c).step_by(S::LANES) {
        let j = (i + S::LANES).min(c);
        let h = s.mul(s.sub(load_up_to(s, &x[i..j]), center), scale);
        let dy = load_up_to(s, &dy[i..j]);
        let weighted = s.mul(dy, load_up_to(s, &gamma[i..j]));
        first = s.add(first, weighted);
        second = s.fma(weighted, h, second);
        store_up_to(s, s.add(load_up_to(s, &sum[i..j]), dy), &mut sum[i..j]);
        store_up_to(s, s.fma(dy, h, load_up_to(s, &product[i..j])), &mut product[i..j]);
    }
    let (first, second) = (s.splat(s.sum(first) / c as f32), s.splat(s.sum(second) / c as f32));
    for i in (0..c).step_by(S::LANES) {
        let j = (i + S::LANES).min(c);
        let h = s.mul(s.sub(load_up_to(s, &x[i..j]), center), scale);
        let weighted = s.mul(load_up_to(s, &dy[i..j]), load_up_to(s, &gamma[i..j]));
        let inner = s.sub(s.sub(weighted, first), s.mul(h, second));
        store_up_to(s, s.mul(scale, inner), &mut dx[i..j]);
    }
}
