//! Change of resolution.

use crate::element::Element;
use crate::math::load_up_to;
use crate::math::store_up_to;
use crate::simd::{Simd, dispatch};
use crate::threads::for_chunks;

/// See [`crate::upsample_nearest2x_forward`].
pub(crate) fn upsample_nearest2x_forward<T: Element>(
    x: &[T],
    y: &mut [T],
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
) {
    let line = width * channels;
    check("upsample_nearest2x_forward", x.len(), y.len(), batch * height * line);
    if line == 0 {
        return;
    }
    // One task makes two lines of y from one of x.
    for_chunks(y, 4 * line, |i, y| {
        let x = &x[i * line..][..line];
        let (upper, lower) = y.split_at_mut(2 * line);
        for (x, y) in x.chunks_exact(channels).zip(upper.chunks_exact_mut(2 * channels)) {
            y[..channels].copy_from_slice(x);
            y[channels..].copy_from_slice(x);
        }
        lower.copy_from_slice(upper);
    });
}

/// See [`crate::upsample_nearest2x_backward`].
pub(crate) fn upsample_nearest2x_backward<T: Element>(
    dy: &[T],
    dx: &mut [T],
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
) {
    let line = width * channels;
    check("upsample_nearest2x_backward", dx.len(), dy.len(), batch * height * line);
    if line == 0 {
        return;
    }
    for_chunks(dx, line, |i, dx| {
        let (upper, lower) = dy[i * 4 * line..][..4 * line].split_at(2 * line);
        dispatch!(|s| {
            let pairs = upper.chunks_exact(2 * channels).zip(lower.chunks_exact(2 * channels));
            for ((upper, lower), dx) in pairs.zip(dx.chunks_exact_mut(channels)) {
                sum_of_four(s, upper, lower, dx);
            }
        });
    });
}

#[inline(always)]
fn sum_of_four<S: Simd, T: Element>(s: S, upper: &[T], lower: &[T], sum: &mut [T]) {
    let c = sum.len();
    for i in (0..c).step_by(S::LANES) {
        let j = (i + S::LANES).min(c);
        let first = s.add(load_up_to(s, &upper[i..j]), load_up_to(s, &upper[c + i..c + j]));
        let second = s.add(load_up_to(s, &lower[i..j]), load_up_to(s, &lower[c + i..c + j]));
        store_up_to(s, s.add(first, second), &mut sum[i..j]);
    }
}

fn check(op: &str, small: usize, large: usize, expected: usize) {
    assert!(small == expected, "{op}: the smaller slice has {small} elements, the shape {expected}");
    assert!(large == 4 * expected, "{op}: the larger slice has {large} elements, the shape {}", 4 * expected);
}
