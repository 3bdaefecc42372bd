//! Heads of very few channels where products are dot products: vectors hold 16 queries, or 16 keys.
//!
//! Products of matrices would pad such heads' channels to 16 columns, and scores and probabilities would go through memory. Here all that
//! becomes of a score happens in registers, and probabilities are not rounded.

mod backward;
mod forward;

pub use backward::backward;
pub use forward::forward;

use super::*;
use crate::scratch::Line;

/// Queries, or keys, of a vector.
const LANES: usize = 16;

/// Channels whose sums have place in registers.
const MOST_CHANNELS: usize = 8;

/// Whether this can do it.
pub fn suits(shape: &AttentionShape) -> bool {
    !shape.causal && shape.head_dim <= MOST_CHANNELS
}

/// `sum + a b` for pairs of bf16.
#[inline(always)]
fn dot_pairs(_: Avx512Bf16, sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: the token proves the instruction; both types are 64 bytes without invalid values.
    unsafe {
        let a = std::mem::transmute::<__m512, __m512bh>(a);
        let b = std::mem::transmute::<__m512, __m512bh>(b);
        _mm512_dpbf16_ps(sum, a, b)
    }
}

/// Transposes columns of up to [`LANES`] tokens to rows.
#[inline(always)]
fn rows_of<const CHANNELS: usize>(s: Avx512Bf16, columns: &[__m512; CHANNELS], rows: &mut [Line; LANES]) {
    let mut lines = [Line([0.0; LANES]); LANES];
    for (line, &column) in lines.iter_mut().zip(columns) {
        s.store(column, &mut line.0);
    }
    s.transpose(bytemuck::cast_slice(&lines), LANES, bytemuck::cast_slice_mut(rows), LANES);
}
