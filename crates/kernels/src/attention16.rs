//! Attention of bf16 on the tiles of [`crate::tile16`].
//!
//! Scores, their exponentials and all sums are f32; probabilities and the gradients of scores are rounded to bf16 where
//! they become operands of the next product. What is summed for lse is not rounded.
//!
//! The forward pass goes over blocks of queries, and for each over blocks of keys, with an online softmax; for heads of few
//! channels, see `fused` (on AMX) and `lanes`. The backward pass goes over blocks of keys and works with the transposed scores: rows are
//! keys, so that P^T and dS^T are at once left operands of dV = P^T dO and dK = dS^T Q, and lse and rowsum(dO * O) are
//! vectors along a row. The gradient of the queries is summed transposed, dQ^T = K^T dS^T, for which pairs of rows of dS^T
//! are interleaved in registers.

mod backward;
mod forward;
mod fused;
mod lanes;

pub use backward::{Saved, backward};
pub use forward::forward;

use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

use crate::attention::{AttentionShape, carve, dot};
use crate::math::{exp2_near, map1};
use crate::product::{Dense, Operand, Source};
use crate::product16::{dispatch16, line, pack_b, pack_transposed, panel_width};
use crate::scratch::with_scratch;
use crate::simd::{Avx512Bf16, Bf16Isa, Simd, bf16_isa};
use crate::threads::{SharedMut, parallel_for};
use crate::tile16::{A_STRIDE, KC, Kernel16, Tile, WIDTH};

/// Number of tasks that keeps many cores busy; with as many heads, a task is a head.
const TASKS: usize = 64;

/// Products of a task for which it is worth to be one.
const TASK_WORK: usize = 1 << 19;

/// Most memory for partial sums of dQ, in floats.
const PARTIAL: usize = 16 << 20;

/// Keys of a block of the forward pass: with few channels, exponentials are most of the work, and the scores should stay in
/// the nearest cache.
const fn key_columns(head_dim: usize) -> usize {
    if head_dim <= 32 { 128 } else { 256 }
}

/// Queries of a block of the backward pass.
const QUERIES: usize = 128;

/// The most that exponents (to base 2) of probabilities may grow before the sums are scaled down. bf16 and f32 have the same
/// range, so nothing is lost.
const SLACK: f32 = 16.0;

/// Largest magnitude of exponents (to base 2) for which a softmax may do without its maximum.
const BOUND: f32 = 110.0;

/// Fewest keys for which it is worth to find out. With few, a probability of 1 should also be exactly 1 after rounding.
const BOUNDED_KEYS: usize = 192;

/// Sums of such a softmax between 2^-60 and 2^60 have lost nothing to the ends of the range of f32.
const TOTALS: Range<f32> = 8.673_617e-19..1.152_921_5e18;

/// Queries of a block of the forward pass.
const fn query_rows<K: Kernel16>(head_dim: usize) -> usize {
    match (K::ANY_STRIDE, head_dim <= 32) {
        (true, true) => 32,
        (true, false) => 128,
        (false, _) => 56,
    }
}

/// Keys of a block of the backward pass.
const fn key_rows<K: Kernel16>() -> usize {
    if K::ANY_STRIDE { 256 } else { 112 }
}

/// Rows of scores that are turned into probabilities at once, an even number: few, so that they stay in the nearest cache.
const fn score_rows<K: Kernel16>() -> usize {
    if K::ANY_STRIDE { 16 } else { 28 }
}

/// Distance between rows of a left operand with `k` columns.
const fn stride<K: Kernel16>(k: usize) -> usize {
    if K::ANY_STRIDE { k.next_multiple_of(64) + 32 } else { A_STRIDE }
}

/// Room for `rows` rows: tiles write whole groups of 16.
const fn room(rows: usize) -> usize {
    rows.next_multiple_of(16) + 16
}

/// Distance between rows of sums.
const fn sum_stride(columns: usize) -> usize {
    columns.next_multiple_of(32) + 16
}

/// Makes scores exponents to base 2.
fn exponent_factor(shape: &AttentionShape) -> f32 {
    shape.scale * std::f32::consts::LOG2_E
}

/// True if the kernels here can do it.
fn suits(shape: &AttentionShape) -> bool {
    let tokens = shape.query_tokens.min(shape.key_tokens);
    tokens > 0 && (1..=KC).contains(&shape.head_dim) && shape.scale >= 0.0
}

/// Tasks that a head of `units` indivisible parts is cut into.
fn tasks_of_head(shape: &AttentionShape, units: usize, most: usize) -> usize {
    let heads = shape.batch * shape.heads;
    if heads >= TASKS {
        return 1;
    }
    let work = shape.query_tokens * shape.key_tokens * shape.head_dim;
    most.div_ceil(heads.max(1)).min(units).min(work / TASK_WORK).max(1)
}

/// `c[m, n] (+)= a[m, k] b[k, n]`: a with rows `a_stride` apart, b in panels, k a multiple of the kernel's step. a and c
/// have [`room`] for their rows.
#[inline(always)]
fn multiply<K: Kernel16>(
    kernel: K,
    (m, n, k): (usize, usize, usize),
    (a, a_stride): (&[bf16], usize),
    b: &[bf16],
    (c, c_stride): (&mut [f32], usize),
    accumulate: bool,
) {
    // Tiles of one group may be of any height, so they share the rows evenly.
    let tile_rows = if K::GROUP == K::ROWS { m.div_ceil(m.div_ceil(K::ROWS).max(1)) } else { K::ROWS };
    for panel in 0..n.div_ceil(WIDTH) {
        let columns = panel_width(n, panel);
        let b = &b[panel * WIDTH * k..][..columns * k];
        for i in (0..m).step_by(tile_rows) {
            let rows = tile_rows.min(m - i);
            let last = rows.next_multiple_of(16) - 1;
            let a = &a[i * a_stride..][..last * a_stride + k];
            let c = &mut c[i * c_stride + panel * WIDTH..][..last * c_stride + columns];
            let second = if rows > K::GROUP { &a[K::GROUP * a_stride..] } else { a };
            let tile = Tile {
                rows,
                columns,
                k,
                a: [a.as_ptr(), second.as_ptr()],
                a_stride,
                b: b.as_ptr(),
                c: c.as_mut_ptr(),
                c_stride,
                accumulate,
                next: None,
            };
            // SAFETY: the slices are as long as the tile reads and writes; `a_stride` is from `stride`.
            unsafe { kernel.tile(&tile) };
        }
    }
}

/// Writes rows `first..first + count` as a left operand of `width` columns and zeros up to the kernel's step.
#[inline(always)]
fn pack_rows<K: Kernel16>(
    kernel: K,
    from: &Dense<bf16>,
    (first, count): (usize, usize),
    width: usize,
    to: &mut [bf16],
    to_stride: usize,
) {
    for i in 0..count {
        let row = &mut to[i * to_stride..][..width.next_multiple_of(K::K_STEP)];
        let (used, rest) = row.split_at_mut(width);
        from.fill(kernel.vectors(), first + i, 0, used);
        rest.fill(bf16::ZERO);
    }
}

/// The place of the gradients of a head's tokens.
struct Rows<'a> {
    to: &'a SharedMut<'a, bf16>,
    begin: usize,
    stride: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    fn new(shape: &AttentionShape, to: &'a SharedMut<'a, bf16>, head: usize, tokens: usize) -> Self {
        let (b, h, stride) = (head / shape.heads, head % shape.heads, shape.channels());
        Self { to, begin: b * tokens * stride + h * shape.head_dim, stride, width: shape.head_dim }
    }

    /// Stores a token's gradient, times `factor`.
    #[inline(always)]
    fn write(&self, s: Avx512Bf16, token: usize, from: &[f32], factor: f32) {
        let at = self.begin + token * self.stride;
        // SAFETY: every token of a head belongs to one task, and is written once.
        let to = unsafe { self.to.range(at..at + self.width) };
        let factor = s.splat(factor);
        map1(
            s,
            &from[..self.width],
            to,
            #[inline(always)]
            |v| s.mul(v, factor),
        );
    }
}

/// A part of shared memory as bf16.
///
/// # Safety
///
/// As for [`SharedMut::range`]; `begin` and `len` count pairs.
#[inline(always)]
#[allow(clippy::mut_from_ref)]
unsafe fn halves<'a>(memory: &'a SharedMut<f32>, begin: usize, len: usize) -> &'a mut [bf16] {
    // SAFETY: the contract of this function.
    bytemuck::cast_slice_mut(unsafe { memory.range(begin..begin + len) })
}

/// Rounds two vectors to bf16: `a`, then `b`.
///
/// # Safety
///
/// Needs AVX-512 with BF16.
#[inline(always)]
unsafe fn round2(a: __m512, b: __m512) -> __m512i {
    // SAFETY: the contract of this function; both types are 64 bytes of integers.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)) }
}

/// Lanes below `n`.
#[inline(always)]
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}
