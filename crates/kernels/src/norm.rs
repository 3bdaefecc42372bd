//! Group and layer normalization, forward and backward. Statistics are f32 over short runs of rows and f64 above that.

use std::ops::Range;

use crate::element::Element;
use crate::math::{for_vectors, load_up_to, store_up_to, swish, swish_slope};
use crate::product::add_to;
use crate::scratch::with_scratch;
use crate::simd::{Simd, dispatch};
use crate::stream::{past_caches, past_caches_done, read_ahead, read_next, write_up_to};
use crate::threads::{SharedMut, for_chunks, for_chunks2, for_chunks3, parallel_for, threads};

/// Elements of a task.
const CHUNK: usize = 32 * 1024;

/// Most rows that are summed in f32.
const RUN: usize = 256;

/// Rows that are read side by side, so that what belongs to a channel is read once for all of them.
const ROWS: usize = 8;

/// Pixels that the first guess of a mean is taken from.
const SAMPLES: usize = 8;

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

/// See [`crate::group_norm_forward`].
pub(crate) fn group_norm_forward<T: Element>(
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
    let norm = GroupNorm { pixels, c, groups, gamma, past: past_caches(y) };
    let (per, size) = (norm.images_of_task(batch), pixels * c);
    for_chunks3((y, per * size), (mean, per * groups), (rstd, per * groups), |i, y, mean, rstd| {
        norm.forward(&x[i * per * size..][..y.len()], (beta, eps, silu), y, mean, rstd);
    });
}

/// Sizes and parameters of a group normalization.
#[derive(Clone, Copy)]
struct GroupNorm<'a> {
    pixels: usize,
    c: usize,
    groups: usize,
    gamma: &'a [f32],
    /// True if the whole output is too large for the caches.
    past: bool,
}

impl GroupNorm<'_> {
    /// Images that are worked on together: with many in a batch each belongs to one thread, whose cache then still has much of it when
    /// it is read a second time; few are cut into tasks. Results are the same.
    fn images_of_task(&self, batch: usize) -> usize {
        if self.tasks() == 1 || batch >= 2 * threads() { 1 } else { batch }
    }

    /// [`group_norm_forward`] of some images.
    fn forward<T: Element>(
        &self,
        x: &[T],
        (beta, eps, silu): (&[f32], f32, bool),
        y: &mut [T],
        mean: &mut [f32],
        rstd: &mut [f32],
    ) {
        let (c, groups, tasks, stats) = (self.c, self.groups, self.tasks(), 2 * self.groups);
        let batch = mean.len() / groups;
        let image = |b: usize| &x[b * self.pixels * c..][..self.pixels * c];
        with_scratch(batch * (2 * c + tasks * stats), |memory| {
            let (factors, sums) = memory.split_at_mut(batch * 2 * c);
            for_chunks(factors, 2 * c, |b, factors| self.guess(image(b), &mut factors[..c]));
            for_chunks(sums, stats, |i, sums| {
                let (b, task) = (i / tasks, i % tasks);
                self.sums(&x[self.rows(b, task)], &factors[b * 2 * c..][..c], sums);
            });
            for_chunks3((factors, 2 * c), (mean, groups), (rstd, groups), |b, factors, mean, rstd| {
                self.statistics(&factors[..c], &sums[b * tasks * stats..][..tasks * stats], eps, mean, rstd);
                self.factors(mean, rstd, factors);
            });
            let out = SharedMut::new(y);
            // Backwards: what was read last is still in the cache.
            parallel_for(batch * tasks, |i| {
                let i = batch * tasks - 1 - i;
                let rows = self.rows(i / tasks, i % tasks);
                let (center, factor) = factors[i / tasks * 2 * c..][..2 * c].split_at(c);
                // SAFETY: tasks have different rows.
                let (x, y) = (&x[rows.clone()], unsafe { out.range(rows) });
                dispatch!(|s| if silu {
                    normalize::<_, T, true>(s, x, (center, factor, beta), y, self.past);
                } else {
                    normalize::<_, T, false>(s, x, (center, factor, beta), y, self.past);
                });
                past_caches_done(self.past);
            });
        });
    }

    /// Number of tasks that an image is cut into.
    fn tasks(&self) -> usize {
        self.pixels.div_ceil(rows_of_task(self.c))
    }

    /// The range of a task's rows.
    fn rows(&self, b: usize, task: usize) -> Range<usize> {
        let step = rows_of_task(self.c);
        let begin = b * self.pixels + task * step;
        begin * self.c..(begin + step.min(self.pixels - task * step)) * self.c
    }

    /// For each channel an estimate of its group's mean, from some pixels of the image: what is summed are differences
    /// from it, so that a mean far from zero costs no precision.
    fn guess<T: Element>(&self, image: &[T], guess: &mut [f32]) {
        let (c, width) = (self.c, self.c / self.groups);
        let samples = SAMPLES.min(self.pixels);
        guess.fill(0.0);
        for i in 0..samples {
            let row = &image[i * self.pixels / samples * c..][..c];
            dispatch!(|s| for_vectors(
                s,
                c,
                #[inline(always)]
                |i, j| store_up_to(s, s.add(load_up_to(s, &guess[i..j]), load_up_to(s, &row[i..j])), &mut guess[i..j])
            ));
        }
        for group in guess.chunks_exact_mut(width) {
            let mean = group.iter().sum::<f32>() / (samples * width) as f32;
            group.fill(mean);
        }
    }

    /// Sums over rows of the differences from the guess, per group, then of their squares.
    fn sums<T: Element>(&self, rows: &[T], guess: &[f32], sums: &mut [f32]) {
        let (c, width) = (self.c, self.c / self.groups);
        with_scratch(2 * c, |channels| {
            channels.fill(0.0);
            dispatch!(|s| {
                let blocks = rows.chunks_exact(ROWS * c);
                for row in blocks.remainder().chunks_exact(c) {
                    channel_sums::<_, T, 1>(s, row, guess, channels);
                }
                for rows in blocks {
                    channel_sums::<_, T, ROWS>(s, rows, guess, channels);
                }
            });
            for (sum, group) in sums.iter_mut().zip(channels.chunks_exact(width)) {
                *sum = group.iter().sum();
            }
        });
    }

    /// Mean and `1 / sqrt(variance + eps)` of each group of an image, from the sums of its tasks.
    fn statistics(&self, guess: &[f32], sums: &[f32], eps: f32, mean: &mut [f32], rstd: &mut [f32]) {
        let width = self.c / self.groups;
        let count = (self.pixels * width) as f64;
        for g in 0..self.groups {
            let (mut sum, mut square) = (0.0f64, 0.0f64);
            for part in sums.chunks_exact(2 * self.groups) {
                sum += part[g] as f64;
                square += part[self.groups + g] as f64;
            }
            let difference = sum / count;
            mean[g] = (guess[g * width] as f64 + difference) as f32;
            let variance = (square / count - difference * difference).max(0.0);
            rstd[g] = (1.0 / (variance + eps as f64).sqrt()) as f32;
        }
    }

    /// `center` and `factor` of each channel, for which the normalized value is `factor (x - center) + beta`.
    fn factors(&self, mean: &[f32], rstd: &[f32], factors: &mut [f32]) {
        let (center, factor) = factors.split_at_mut(self.c);
        let width = self.c / self.groups;
        for g in 0..self.groups {
            for i in g * width..(g + 1) * width {
                center[i] = mean[g];
                factor[i] = rstd[g] * self.gamma[i];
            }
        }
    }
}

/// Adds what [`ROWS`] or fewer rows have to the channels' sums of `x - guess` and of its square.
#[inline(always)]
fn channel_sums<S: Simd, T: Element, const R: usize>(s: S, rows: &[T], guess: &[f32], channels: &mut [f32]) {
    let c = guess.len();
    let (sum, square) = channels.split_at_mut(c);
    for_vectors(
        s,
        c,
        #[inline(always)]
        |i, j| {
            let base = load_up_to(s, &guess[i..j]);
            let (mut total, mut squares) = (load_up_to(s, &sum[i..j]), load_up_to(s, &square[i..j]));
            for r in 0..R {
                read_ahead(&rows[r * c + i..]);
                let d = s.sub(load_up_to(s, &rows[r * c + i..r * c + j]), base);
                total = s.add(total, d);
                squares = s.fma(d, d, squares);
            }
            store_up_to(s, total, &mut sum[i..j]);
            store_up_to(s, squares, &mut square[i..j]);
        },
    );
}

/// `y = f(factor (x - center) + beta)` for rows of as many channels as there are factors.
#[inline(always)]
fn normalize<S: Simd, T: Element, const SILU: bool>(
    s: S,
    x: &[T],
    (center, factor, beta): (&[f32], &[f32], &[f32]),
    y: &mut [T],
    past: bool,
) {
    let c = factor.len();
    for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
        for_vectors(
            s,
            c,
            #[inline(always)]
            |i, j| {
                read_ahead(&x[i..]);
                let d = s.sub(load_up_to(s, &x[i..j]), load_up_to(s, &center[i..j]));
                let z = s.fma(d, load_up_to(s, &factor[i..j]), load_up_to(s, &beta[i..j]));
                write_up_to(s, if SILU { swish::<S, T>(s, z, 1.0) } else { z }, &mut y[i..j], past);
            },
        );
    }
}

/// See [`crate::group_norm_backward`].
pub(crate) fn group_norm_backward<T: Element>(
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
    let norm = GroupNorm { pixels, c, groups, gamma, past: past_caches(dx) };
    let (per, size) = (norm.images_of_task(batch), pixels * c);
    with_scratch(batch * 2 * c, |totals| {
        for_chunks2((dx, per * size), (totals, per * 2 * c), |i, dx, totals| {
            let (images, stats) = (i * per * size, i * per * groups..(i * per + dx.len() / size) * groups);
            let from = (&x[images..][..dx.len()], &dy[images..][..dx.len()]);
            norm.backward(from, (&mean[stats.clone()], &rstd[stats]), (beta, silu), dx, totals);
        });
        for total in totals.chunks_exact(2 * c) {
            let (sum, product) = total.split_at(c);
            dispatch!(|s| {
                add_to(s, sum, dbeta);
                add_to(s, product, dgamma);
            });
        }
    });
}

/// Numbers of a channel that the backward pass needs, in this order, each `[c]`: with d = x - `0`, h = `1` d, and what f is
/// applied to is `2` d + beta; of the second pass, dx = `1` (gamma dz + `3` d + `4`).
const FACTORS: usize = 5;

impl GroupNorm<'_> {
    /// [`group_norm_backward`] of some images; `totals` get the channels' sums of dz and dz h of each of them.
    fn backward<T: Element>(
        &self,
        (x, dy): (&[T], &[T]),
        (mean, rstd): (&[f32], &[f32]),
        (beta, silu): (&[f32], bool),
        dx: &mut [T],
        totals: &mut [f32],
    ) {
        let (c, groups, tasks) = (self.c, self.groups, self.tasks());
        let batch = mean.len() / groups;
        with_scratch(batch * (FACTORS + 2 * tasks) * c, |memory| {
            let (factors, partial) = memory.split_at_mut(batch * FACTORS * c);
            for_chunks(factors, FACTORS * c, |b, factors| {
                let stats = b * groups..(b + 1) * groups;
                self.first_factors((&mean[stats.clone()], &rstd[stats]), factors);
            });
            for_chunks(partial, 2 * c, |i, sums| {
                let (rows, factors) =
                    (self.rows(i / tasks, i % tasks), &factors[i / tasks * FACTORS * c..][..FACTORS * c]);
                let from = (&x[rows.clone()], &dy[rows]);
                dispatch!(|s| if silu {
                    gradient_sums::<_, T, true>(s, from, (factors, beta), sums);
                } else {
                    gradient_sums::<_, T, false>(s, from, (factors, beta), sums);
                });
            });
            for_chunks2((totals, 2 * c), (factors, FACTORS * c), |b, total, factors| {
                total.fill(0.0);
                for part in partial[b * tasks * 2 * c..][..tasks * 2 * c].chunks_exact(2 * c) {
                    dispatch!(|s| add_to(s, part, total));
                }
                self.second_factors(&rstd[b * groups..][..groups], total, factors);
            });
            let out = SharedMut::new(dx);
            // Backwards: what was read last is still in the cache.
            parallel_for(batch * tasks, |i| {
                let i = batch * tasks - 1 - i;
                let (rows, factors) =
                    (self.rows(i / tasks, i % tasks), &factors[i / tasks * FACTORS * c..][..FACTORS * c]);
                let from = (&x[rows.clone()], &dy[rows.clone()]);
                // SAFETY: tasks have different rows.
                let dx = unsafe { out.range(rows) };
                dispatch!(|s| if silu {
                    input_gradient::<_, T, true>(s, from, (factors, self.gamma, beta), dx, self.past);
                } else {
                    input_gradient::<_, T, false>(s, from, (factors, self.gamma, beta), dx, self.past);
                });
                past_caches_done(self.past);
            });
        });
    }

    /// The first three of the [`FACTORS`] of an image.
    fn first_factors(&self, (mean, rstd): (&[f32], &[f32]), factors: &mut [f32]) {
        let (c, width) = (self.c, self.c / self.groups);
        for g in 0..self.groups {
            for i in g * width..(g + 1) * width {
                factors[i] = mean[g];
                factors[c + i] = rstd[g];
                factors[2 * c + i] = rstd[g] * self.gamma[i];
            }
        }
    }

    /// The other ones, from the channels' sums of dz and dz h.
    fn second_factors(&self, rstd: &[f32], sums: &[f32], factors: &mut [f32]) {
        let (c, width) = (self.c, self.c / self.groups);
        let (sum, product) = sums.split_at(c);
        let count = (width * self.pixels) as f64;
        for g in 0..self.groups {
            let members = g * width..(g + 1) * width;
            let average = |of: &[f32]| {
                let weighted = members.clone().map(|i| self.gamma[i] as f64 * of[i] as f64);
                weighted.sum::<f64>() / count
            };
            let (slope, offset) = (-rstd[g] as f64 * average(product), -average(sum));
            factors[3 * c..][members.clone()].fill(slope as f32);
            factors[4 * c..][members].fill(offset as f32);
        }
    }
}

/// Sums over rows of dz, per channel, then of dz h.
#[inline(always)]
fn gradient_sums<S: Simd, T: Element, const SILU: bool>(
    s: S,
    (x, dy): (&[T], &[T]),
    (factors, beta): (&[f32], &[f32]),
    sums: &mut [f32],
) {
    let c = sums.len() / 2;
    sums.fill(0.0);
    let (x_blocks, dy_blocks) = (x.chunks_exact(ROWS * c), dy.chunks_exact(ROWS * c));
    for row in x_blocks.remainder().chunks_exact(c).zip(dy_blocks.remainder().chunks_exact(c)) {
        gradient_rows::<S, T, SILU, 1>(s, row, (factors, beta), sums);
    }
    for rows in x_blocks.zip(dy_blocks) {
        gradient_rows::<S, T, SILU, ROWS>(s, rows, (factors, beta), sums);
    }
}

/// Adds what some rows have to the sums.
#[inline(always)]
fn gradient_rows<S: Simd, T: Element, const SILU: bool, const R: usize>(
    s: S,
    (x, dy): (&[T], &[T]),
    (factors, beta): (&[f32], &[f32]),
    sums: &mut [f32],
) {
    let c = sums.len() / 2;
    let (sum, product) = sums.split_at_mut(c);
    for_vectors(
        s,
        c,
        #[inline(always)]
        |i, j| {
            let (of, beta) = (load_factors::<S, 3>(s, factors, c, (i, j)), load_up_to(s, &beta[i..j]));
            let (mut total, mut products) = (load_up_to(s, &sum[i..j]), load_up_to(s, &product[i..j]));
            for r in 0..R {
                let at = r * c + i..r * c + j;
                read_ahead(&x[at.start..]);
                read_ahead(&dy[at.start..]);
                let (d, dy) = (s.sub(load_up_to(s, &x[at.clone()]), of[0]), load_up_to(s, &dy[at]));
                let dz = before_activation::<S, T, SILU>(s, d, dy, (of[2], beta));
                total = s.add(total, dz);
                products = s.fma(dz, s.mul(d, of[1]), products);
            }
            store_up_to(s, total, &mut sum[i..j]);
            store_up_to(s, products, &mut product[i..j]);
        },
    );
}

/// The first `N` factors of the channels `i..j`.
#[inline(always)]
fn load_factors<S: Simd, const N: usize>(s: S, factors: &[f32], c: usize, (i, j): (usize, usize)) -> [S::V; N] {
    let mut of = [s.splat(0.0); N];
    for (k, of) in of.iter_mut().enumerate() {
        *of = load_up_to(s, &factors[k * c + i..k * c + j]);
    }
    of
}

/// dz: dy through the slope of the activation.
#[inline(always)]
fn before_activation<S: Simd, T: Element, const SILU: bool>(s: S, d: S::V, dy: S::V, of: (S::V, S::V)) -> S::V {
    if SILU { s.mul(dy, swish_slope::<S, T>(s, s.fma(d, of.0, of.1), 1.0)) } else { dy }
}

/// dx of rows, see [`FACTORS`].
#[inline(always)]
fn input_gradient<S: Simd, T: Element, const SILU: bool>(
    s: S,
    (x, dy): (&[T], &[T]),
    (factors, gamma, beta): (&[f32], &[f32], &[f32]),
    dx: &mut [T],
    past: bool,
) {
    let c = gamma.len();
    let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c));
    for ((x, dy), dx) in rows {
        for_vectors(
            s,
            c,
            #[inline(always)]
            |i, j| {
                read_ahead(&x[i..]);
                read_ahead(&dy[i..]);
                let of = load_factors::<S, FACTORS>(s, factors, c, (i, j));
                let (gamma, beta) = (load_up_to(s, &gamma[i..j]), load_up_to(s, &beta[i..j]));
                let (d, dy) = (s.sub(load_up_to(s, &x[i..j]), of[0]), load_up_to(s, &dy[i..j]));
                let dz = before_activation::<S, T, SILU>(s, d, dy, (of[2], beta));
                // Not fused: a group of one element has a gradient of exactly zero.
                let inner = s.add(s.mul(dz, gamma), s.fma(d, of[3], of[4]));
                write_up_to(s, s.mul(inner, of[1]), &mut dx[i..j], past);
            },
        );
    }
}

fn layer_sizes(op: &str, len: usize, rows: usize, c: usize) {
    assert!(len == rows * c, "{op}: x has {len} elements, not {rows} x {c}");
}

/// See [`crate::layer_norm_forward`].
pub(crate) fn layer_norm_forward<T: Element>(
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
    let (step, past) = (rows_of_task(c), past_caches(y));
    for_chunks3((y, step * c), (mean, step), (rstd, step), |task, y, mean, rstd| {
        let x = &x[task * step * c..][..y.len()];
        dispatch!(|s| for_lines(
            mean.len(),
            #[inline(always)]
            |rows, several| {
                let at = rows.start * c..rows.end * c;
                let (x, y) = (&x[at.clone()], &mut y[at]);
                let stats = (&mut mean[rows.clone()], &mut rstd[rows]);
                if several {
                    layer_rows::<_, T, LINES>(s, x, (gamma, beta), eps, (y, past), stats);
                } else {
                    layer_rows::<_, T, 1>(s, x, (gamma, beta), eps, (y, past), stats);
                }
            }
        ));
        past_caches_done(past);
    });
}

/// Calls `f` for groups of [`LINES`] of `rows` rows, and for each row that is left.
#[inline(always)]
fn for_lines(rows: usize, mut f: impl FnMut(Range<usize>, bool)) {
    let whole = rows / LINES * LINES;
    for r in (0..whole).step_by(LINES) {
        f(r..r + LINES, true);
    }
    for r in whole..rows {
        f(r..r + 1, false);
    }
}

/// Rows of a layer normalization that are worked on side by side. The next ones are asked for while these are read if they are bf16, and
/// while they are written if they are f32, which are twice as many lines: both ways were measured.
const LINES: usize = 4;

/// `R` rows of [`layer_norm_forward`].
#[inline(always)]
fn layer_rows<S: Simd, T: Element, const R: usize>(
    s: S,
    x: &[T],
    (gamma, beta): (&[f32], &[f32]),
    eps: f32,
    (y, past): (&mut [T], bool),
    (mean, rstd): (&mut [f32], &mut [f32]),
) {
    let c = gamma.len();
    // Differences from the average of a few elements are summed, so that a mean far from zero costs no precision.
    let few = S::LANES.min(c);
    let mut guess = [0.0; R];
    for r in 0..R {
        guess[r] = s.sum(load_up_to(s, &x[r * c..r * c + few])) / few as f32;
    }
    let (mut sums, mut squares) = ([s.splat(0.0); R], [s.splat(0.0); R]);
    let whole = c / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        for r in 0..R {
            if T::IS_HALF {
                read_ahead(&x[r * c + i..]);
            }
            let d = s.sub(T::load(s, &x[r * c + i..][..S::LANES]), s.splat(guess[r]));
            sums[r] = s.add(sums[r], d);
            squares[r] = s.fma(d, d, squares[r]);
        }
    }
    let (mut scales, mut centers) = ([s.splat(0.0); R], [s.splat(0.0); R]);
    for r in 0..R {
        let (mut sum, mut square) = (s.sum(sums[r]), s.sum(squares[r]));
        for x in &x[r * c + whole..(r + 1) * c] {
            let d = x.to_f32() - guess[r];
            sum += d;
            square += d * d;
        }
        let difference = sum / c as f32;
        mean[r] = guess[r] + difference;
        rstd[r] = 1.0 / ((square / c as f32 - difference * difference).max(0.0) + eps).sqrt();
        (scales[r], centers[r]) = (s.splat(rstd[r]), s.splat(mean[r]));
    }
    for_vectors(
        s,
        c,
        #[inline(always)]
        |i, j| {
            let (gamma, beta) = (load_up_to(s, &gamma[i..j]), load_up_to(s, &beta[i..j]));
            for r in 0..R {
                let at = r * c + i..r * c + j;
                if !T::IS_HALF {
                    read_next(&x[at.start..], R * c);
                }
                let h = s.mul(s.sub(load_up_to(s, &x[at.clone()]), centers[r]), scales[r]);
                write_up_to(s, s.fma(h, gamma, beta), &mut y[at], past);
            }
        },
    );
}

/// See [`crate::layer_norm_backward`].
pub(crate) fn layer_norm_backward<T: Element>(
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
    let (step, past) = (rows_of_task(c), past_caches(dx));
    let tasks = mean.len().div_ceil(step);
    with_scratch(tasks * 2 * c, |partial| {
        for_chunks2((dx, step * c), (partial, 2 * c), |task, dx, partial| {
            let begin = task * step * c;
            let (x, dy) = (&x[begin..][..dx.len()], &dy[begin..][..dx.len()]);
            let (sum, product) = partial.split_at_mut(c);
            sum.fill(0.0);
            product.fill(0.0);
            let rows = dx.len() / c;
            let (mean, rstd) = (&mean[task * step..][..rows], &rstd[task * step..][..rows]);
            dispatch!(|s| for_lines(
                rows,
                #[inline(always)]
                |rows, several| {
                    let at = rows.start * c..rows.end * c;
                    let (from, dx) = ((&x[at.clone()], &dy[at.clone()]), &mut dx[at]);
                    let stats = (&mean[rows.clone()], &rstd[rows]);
                    if several {
                        layer_gradients::<_, T, LINES>(s, from, gamma, stats, (dx, past), (sum, product));
                    } else {
                        layer_gradients::<_, T, 1>(s, from, gamma, stats, (dx, past), (sum, product));
                    }
                }
            ));
            past_caches_done(past);
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

/// `R` rows of [`layer_norm_backward`].
#[inline(always)]
fn layer_gradients<S: Simd, T: Element, const R: usize>(
    s: S,
    (x, dy): (&[T], &[T]),
    gamma: &[f32],
    (mean, rstd): (&[f32], &[f32]),
    (dx, past): (&mut [T], bool),
    (sum, product): (&mut [f32], &mut [f32]),
) {
    let c = gamma.len();
    let zero = [s.splat(0.0); R];
    let (mut scales, mut centers, mut first, mut second) = (zero, zero, zero, zero);
    for r in 0..R {
        (scales[r], centers[r]) = (s.splat(rstd[r]), s.splat(mean[r]));
    }
    for_vectors(
        s,
        c,
        #[inline(always)]
        |i, j| {
            let gamma = load_up_to(s, &gamma[i..j]);
            let (mut sums, mut products) = (load_up_to(s, &sum[i..j]), load_up_to(s, &product[i..j]));
            for r in 0..R {
                let at = r * c + i..r * c + j;
                if T::IS_HALF {
                    read_ahead(&x[at.start..]);
                    read_ahead(&dy[at.start..]);
                }
                let dy = load_up_to(s, &dy[at.clone()]);
                let h = s.mul(s.sub(load_up_to(s, &x[at]), centers[r]), scales[r]);
                let weighted = s.mul(dy, gamma);
                first[r] = s.add(first[r], weighted);
                second[r] = s.fma(weighted, h, second[r]);
                sums = s.add(sums, dy);
                products = s.fma(dy, h, products);
            }
            store_up_to(s, sums, &mut sum[i..j]);
            store_up_to(s, products, &mut product[i..j]);
        },
    );
    // dx = rstd (gamma dy - first - second h) = rstd (gamma dy + slope (x - mean) + constant)
    let (mut slopes, mut constants) = (zero, zero);
    for r in 0..R {
        let slope = -rstd[r] * s.sum(second[r]) / c as f32;
        let constant = -s.sum(first[r]) / c as f32;
        (slopes[r], constants[r]) = (s.splat(slope), s.splat(constant));
    }
    for_vectors(
        s,
        c,
        #[inline(always)]
        |i, j| {
            let gamma = load_up_to(s, &gamma[i..j]);
            for r in 0..R {
                let at = r * c + i..r * c + j;
                if !T::IS_HALF {
                    read_next(&x[at.start..], R * c);
                    read_next(&dy[at.start..], R * c);
                }
                let weighted = s.mul(load_up_to(s, &dy[at.clone()]), gamma);
                let line = s.fma(s.sub(load_up_to(s, &x[at.clone()]), centers[r]), slopes[r], constants[r]);
                write_up_to(s, s.mul(s.add(weighted, line), scales[r]), &mut dx[at], past);
            }
        },
    );
}
