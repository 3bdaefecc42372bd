//! Numbers in 8 bits: symmetric, a scale for each row (of activations: tokens, pixels or whole images; of weights: outputs).
//!
//! `scale = largest magnitude / 127`, `q = round(x / scale)`, half to even, where the division is a product with `1 / scale`, as torchao's
//! `quantize_affine` has it. All of it is the same bits on every instruction set: nothing is added up but whole numbers.

use crate::element::Element;
use crate::math::load_up_to;
use crate::simd::{Simd, dispatch};
use crate::threads::{SharedMut, parallel_for};

/// The greatest quantised magnitude.
pub const MOST: f32 = 127.0;

/// What is added to activations, which the products take unsigned.
pub const OFFSET: i32 = 128;

/// The scale of a row and its reciprocal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// A whole step; NaN if something is not finite, which then shows in all that is computed of the row.
    pub step: f32,
    /// `1 / step`, or zero where all is zero.
    pub inverse: f32,
}

impl Scale {
    /// Of the largest magnitude, which is NaN if something is not finite. Magnitudes without normal steps count as zero.
    #[inline(always)]
    pub fn of(largest: f32) -> Self {
        let step = largest / MOST;
        if !step.is_finite() {
            Self { step: f32::NAN, inverse: 0.0 }
        } else if step < f32::MIN_POSITIVE {
            Self { step: 0.0, inverse: 0.0 }
        } else {
            Self { step, inverse: 1.0 / step }
        }
    }
}

/// What of a slice is in a vector, times the factors of its columns.
#[inline(always)]
fn scaled<S: Simd, T: Element>(s: S, x: &[T], factors: Option<&[f32]>, at: usize) -> S::V {
    let end = (at + S::LANES).min(x.len());
    let v = load_up_to(s, &x[at..end]);
    match factors {
        Some(factors) => s.mul(v, load_up_to(s, &factors[at..end])),
        None => v,
    }
}

/// The largest magnitude of `x` times the factors of its columns; NaN if something is not finite.
#[inline(never)]
pub fn largest<T: Element>(x: &[T], factors: Option<&[f32]>) -> f32 {
    dispatch!(|s| largest_by(s, x, factors))
}

#[inline(always)]
fn largest_by<S: Simd, T: Element>(s: S, x: &[T], factors: Option<&[f32]>) -> f32 {
    let zero = s.splat(0.0);
    let (mut most, mut odd) = ([zero; 2], [zero; 2]);
    for (i, at) in (0..x.len()).step_by(S::LANES).enumerate() {
        let v = scaled(s, x, factors, at);
        most[i % 2] = s.max(s.abs(v), most[i % 2]);
        // Zero times what is not finite is NaN, which sums keep and maxima do not.
        odd[i % 2] = s.fma(v, zero, odd[i % 2]);
    }
    let odd = s.sum(s.add(odd[0], odd[1]));
    if odd.is_nan() { f32::NAN } else { s.max_lane(s.max(most[0], most[1])) }
}

/// The greater; NaN if one is.
#[inline(always)]
pub fn greater(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// Writes `round(x factor inverse) + `[`OFFSET`].
#[inline(never)]
pub fn quantise<T: Element>(x: &[T], factors: Option<&[f32]>, inverse: f32, to: &mut [u8]) {
    dispatch!(|s| quantise_by(s, x, factors, inverse, to));
}

#[inline(always)]
fn quantise_by<S: Simd, T: Element>(s: S, x: &[T], factors: Option<&[f32]>, inverse: f32, to: &mut [u8]) {
    let (inverse, offset) = (s.splat(inverse), s.splat(OFFSET as f32));
    let mut part = [0; 16];
    for at in (0..x.len()).step_by(S::LANES) {
        let v = s.add(s.round(s.mul(scaled(s, x, factors, at), inverse)), offset);
        match to.get_mut(at..at + S::LANES) {
            Some(to) => s.store_bytes(v, to),
            None => {
                s.store_bytes(v, &mut part);
                let to = &mut to[at..];
                to.copy_from_slice(&part[..to.len()]);
            }
        }
    }
}

/// Quantises rows of weights, `[rows, columns]`: the numbers and the scale of each row, as weights of layers are stored in 8 bits.
/// Rows in which something is not finite get a scale that is NaN.
///
/// # Panics
///
/// If there are not whole rows of `columns` elements.
pub fn quantise_rows(x: &[f32], columns: usize) -> (Vec<i8>, Vec<f32>) {
    assert!(columns > 0 && x.len().is_multiple_of(columns), "quantise_rows: {} elements, {columns} a row", x.len());
    let rows = x.len() / columns;
    let (mut numbers, mut scales) = (vec![0i8; x.len()], vec![0f32; rows]);
    let (shared_numbers, shared_scales) = (SharedMut::new(&mut numbers), SharedMut::new(&mut scales));
    parallel_for(rows, |row| {
        // SAFETY: rows do not overlap.
        let (numbers, scale) =
            unsafe { (shared_numbers.range(row * columns..(row + 1) * columns), shared_scales.range(row..row + 1)) };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(numbers);
        let x = &x[row * columns..][..columns];
        let of = Scale::of(largest(x, None));
        quantise(x, None, of.inverse, bytes);
        scale[0] = of.step;
        // Weights are signed.
        bytes.iter_mut().for_each(|byte| *byte ^= 0x80);
    });
    (numbers, scales)
}

/// See [`crate::column_maxima`].
pub(crate) fn column_maxima<T: Element>(x: &[T], maxima: &mut [f32]) {
    /// Rows of a task.
    const ROWS: usize = 64;
    let columns = maxima.len();
    assert!(columns > 0 && x.len().is_multiple_of(columns), "column_maxima: {} elements, {columns} a row", x.len());
    let tasks = (x.len() / columns).div_ceil(ROWS);
    let mut each = vec![0f32; tasks * columns];
    let shared = SharedMut::new(&mut each);
    parallel_for(tasks, |task| {
        // SAFETY: tasks have rows of their own.
        let most = unsafe { shared.range(task * columns..(task + 1) * columns) };
        let rows = &x[task * ROWS * columns..((task + 1) * ROWS * columns).min(x.len())];
        for row in rows.chunks_exact(columns) {
            most.iter_mut().zip(row).for_each(|(most, x)| *most = greater(x.to_f32().abs(), *most));
        }
    });
    for most in each.chunks_exact(columns) {
        maxima.iter_mut().zip(most).for_each(|(maximum, &most)| *maximum = greater(most, *maximum));
    }
}
