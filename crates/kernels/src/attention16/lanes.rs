//! Heads of very few channels where products are dot products: vectors hold the scores of 16 keys.
//!
//! Products of matrices would pad such heads' channels to 16 columns, and scores would go through memory. Here a query is broadcast, and
//! the rounded probabilities of two queries are at once pairs of keys for the next product, whose lanes are summed up at the end.

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

/// Scores of [`f32::MIN`], from which those of keys that do not exist begin, should be exponents of zero.
const LEAST_SCALE: f32 = 1e-30;

/// True if this can do it.
pub fn suits(shape: &AttentionShape) -> bool {
    !shape.causal && shape.head_dim <= MOST_CHANNELS && shape.scale > LEAST_SCALE
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

/// The channels, up to 8, of a token, and zeros.
#[inline(always)]
fn channels_of(_: Avx512Bf16, from: &Dense<bf16>, token: usize, width: usize) -> __m128i {
    let row = &from.data[token * from.stride..][..width];
    assert!((1..=MOST_CHANNELS).contains(&width));
    // SAFETY: the token proves the instruction; the mask bounds what is read.
    unsafe { _mm_maskz_loadu_epi16(!0u8 >> (8 - width), row.as_ptr().cast()) }
}

/// Stores pairs of channels, 2 or 4.
#[inline(always)]
fn store_channels(_: Avx512Bf16, channels: __m128i, to: &mut [f32]) {
    assert!(to.len() == 2 || to.len() == 4);
    // SAFETY: the token proves the instructions; they write 8 and 16 bytes.
    unsafe {
        if to.len() == 2 {
            _mm_storel_epi64(to.as_mut_ptr().cast(), channels);
        } else {
            _mm_storeu_si128(to.as_mut_ptr().cast(), channels);
        }
    }
}

/// Pairs of channels of up to 16 tokens from `first` on, token by token, and zeros.
#[inline(always)]
fn store_columns<const PAIRS: usize>(
    s: Avx512Bf16,
    from: &Dense<bf16>,
    (first, count): (usize, usize),
    width: usize,
    to: &mut [f32],
) {
    let (mut rows, mut columns) = ([Line([0.0; LANES]); LANES], [Line([0.0; LANES]); LANES]);
    for (i, row) in rows[..count].iter_mut().enumerate() {
        store_channels(s, channels_of(s, from, first + i, width), &mut row.0[..PAIRS]);
    }
    s.transpose(bytemuck::cast_slice(&rows), LANES, bytemuck::cast_slice_mut(&mut columns), LANES);
    to.copy_from_slice(&bytemuck::cast_slice(&columns)[..PAIRS * LANES]);
}

/// The beginnings of the scores of up to 16 keys: those of keys that do not exist end as nothing.
#[inline(always)]
fn store_begins(count: usize, to: &mut [f32]) {
    to.fill(f32::MIN);
    to[..count].fill(0.0);
}

/// Stores the first halves of pairs twice, then the second.
#[inline(always)]
fn store_halves_twice(_: Avx512Bf16, pairs: __m512, to: &mut [f32]) {
    assert!(to.len() == 2 * LANES);
    // SAFETY: the token proves the instructions; both writes are of 64 bytes.
    unsafe {
        let pairs = _mm512_castps_si512(pairs);
        let first = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(pairs));
        let second = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs)));
        _mm512_storeu_si512(to.as_mut_ptr().cast(), first);
        _mm512_storeu_si512(to.as_mut_ptr().add(LANES).cast(), second);
    }
}

/// Sums of the lower and of the upper lanes of vectors: of the lower lanes of four vectors, of their upper lanes, then of the others.
#[inline(always)]
fn half_sums(s: Avx512Bf16, v: [__m512; 8]) -> __m512 {
    // SAFETY: the token proves the instructions.
    unsafe {
        let mut fours = [s.splat(0.0); 2];
        for i in 0..2 {
            let [a, b, c, d] = [v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]];
            // Sums of two, and then of all lanes of a quarter.
            let ab = _mm512_castps_pd(s.add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
            let cd = _mm512_castps_pd(s.add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
            fours[i] =
                s.add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
        }
        let [first, second] = fours;
        s.add(_mm512_shuffle_f32x4::<0x88>(first, second), _mm512_shuffle_f32x4::<0xdd>(first, second))
    }
}

/// Sums of lanes of channels of pairs of queries, by query and channel.
#[inline(always)]
fn by_query<const CHANNELS: usize>(s: Avx512Bf16, v: [__m512; 8]) -> __m512 {
    let sums = half_sums(s, v);
    // SAFETY: the token proves the instruction.
    if CHANNELS == 8 { unsafe { _mm512_shuffle_f32x4::<0xd8>(sums, sums) } } else { sums }
}
