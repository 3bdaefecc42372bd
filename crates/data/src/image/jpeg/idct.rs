//! The inverse transform in whole numbers: libjpeg's `JDCT_ISLOW` (Loeffler, Ligtenberg and Moschytz, 1989), with 13
//! bits behind the point and two more between both passes.
//!
//! Products of coefficients and steps and three kinds of sums have 16 bits, and what goes from pass to pass is clamped
//! to 16 bits, as in libjpeg-turbo's vector code for x86; of a block without coefficients below its first row, what goes
//! on is cut to 16 bits. Coefficients of real pictures stay far below.

use super::frame::Steps;

const BITS: i32 = 13;

const fn fix(value: f64) -> i16 {
    (value * (1 << BITS) as f64 + if value < 0.0 { -0.5 } else { 0.5 }) as i16
}

/// The transform's factors, each rounded.
const A: i16 = fix(0.298_631_336);
const B: i16 = fix(0.390_180_644);
const C: i16 = fix(0.541_196_100);
const D: i16 = fix(0.765_366_865);
const E: i16 = fix(0.899_976_223);
const F: i16 = fix(1.175_875_602);
const G: i16 = fix(1.501_321_110);
const H: i16 = fix(1.847_759_065);
const I: i16 = fix(1.961_570_560);
const J: i16 = fix(2.053_119_869);
const K: i16 = fix(2.562_915_447);
const L: i16 = fix(3.072_711_026);

/// Factors of two numbers whose products are added.
type Pair = (i16, i16);
const EVEN: [Pair; 2] = [(C, C - H), (C + D, C)];
const SUMS: [Pair; 2] = [(F - I, F), (F, F - B)];
const OUTER: [Pair; 2] = [(A - E, -E), (-E, G - E)];
const INNER: [Pair; 2] = [(J - K, -K), (-K, L - K)];

/// The samples of a block whose coefficients are `block`, into `out`, whose rows are `stride` apart.
#[inline(always)]
pub(super) fn inverse(block: &[i16; 64], steps: &Steps, out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86 processor of 64 bits has SSE2.
    let samples = unsafe { vector::inverse(block, steps) };
    #[cfg(not(target_arch = "x86_64"))]
    let samples = plain::inverse(block, steps);
    for (y, row) in samples.iter().enumerate() {
        out[y * stride..][..8].copy_from_slice(row);
    }
}

/// The same of a block whose only coefficient is the first.
#[inline(always)]
pub(super) fn inverse_first(first: i16, step: u16, out: &mut [u8], stride: usize) {
    let level = i32::from(first.wrapping_mul(step as i16).wrapping_shl(2));
    let level = ((level + 16) >> 5).clamp(-128, 127) + 128;
    for y in 0..8 {
        out[y * stride..][..8].fill(level as u8);
    }
}

/// The bodies for all processors.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(super) mod plain {
    use super::*;

    pub(in super::super) fn inverse(block: &[i16; 64], steps: &Steps) -> [[u8; 8]; 8] {
        let mut rows = [[0i16; 8]; 8];
        for ((row, coefficients), steps) in rows.iter_mut().zip(block.as_chunks::<8>().0).zip(steps.as_chunks::<8>().0)
        {
            for ((out, coefficient), step) in row.iter_mut().zip(coefficients).zip(steps) {
                *out = coefficient.wrapping_mul(*step as i16);
            }
        }
        let columns = match block[8..].iter().all(|coefficient| *coefficient == 0) {
            true => [rows[0].map(|value| value.wrapping_shl(2)); 8],
            false => pass(&rows, BITS - 2),
        };
        let rows = swap(&pass(&swap(&columns), BITS + 2 + 3));
        rows.map(|row| row.map(|level| (level.clamp(-128, 127) + 128) as u8))
    }

    fn swap(rows: &[[i16; 8]; 8]) -> [[i16; 8]; 8] {
        std::array::from_fn(|x| std::array::from_fn(|y| rows[y][x]))
    }

    /// Transforms each column, in which numbers of `shift` bits too many are rounded.
    fn pass(rows: &[[i16; 8]; 8], shift: i32) -> [[i16; 8]; 8] {
        let mut out = [[0; 8]; 8];
        for x in 0..8 {
            let column = transform(&std::array::from_fn(|y| rows[y][x]));
            for (row, value) in out.iter_mut().zip(column) {
                let rounded = value.wrapping_add(1 << (shift - 1)) >> shift;
                row[x] = rounded.clamp(i16::MIN.into(), i16::MAX.into()) as i16;
            }
        }
        out
    }

    fn transform(x: &[i16; 8]) -> [i32; 8] {
        let sum =
            |a: i16, b: i16, (p, q): Pair| (i32::from(a) * i32::from(p)).wrapping_add(i32::from(b) * i32::from(q));
        let both = |a: i16, b: i16, pairs: [Pair; 2]| pairs.map(|pair| sum(a, b, pair));
        let [low, high] = both(x[2], x[6], EVEN);
        let plus = i32::from(x[0].wrapping_add(x[4])) << BITS;
        let minus = i32::from(x[0].wrapping_sub(x[4])) << BITS;
        let even = [plus.wrapping_add(high), minus.wrapping_add(low), minus.wrapping_sub(low), plus.wrapping_sub(high)];
        let [third, fourth] = both(x[7].wrapping_add(x[3]), x[5].wrapping_add(x[1]), SUMS);
        let [a, d] = both(x[7], x[1], OUTER);
        let [b, c] = both(x[5], x[3], INNER);
        let odd = [d.wrapping_add(fourth), c.wrapping_add(third), b.wrapping_add(fourth), a.wrapping_add(third)];
        std::array::from_fn(|y| match y {
            0..4 => even[y].wrapping_add(odd[y]),
            _ => even[7 - y].wrapping_sub(odd[7 - y]),
        })
    }
}

/// The bodies for SSE2, which every x86 processor of 64 bits has.
#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::*;

    use super::*;

    type Rows = [__m128i; 8];

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn inverse(block: &[i16; 64], steps: &Steps) -> [[u8; 8]; 8] {
        let (block, steps) = (block.as_chunks::<8>().0, steps.as_chunks::<8>().0);
        let mut rows: Rows = [_mm_setzero_si128(); 8];
        for ((row, coefficients), steps) in rows.iter_mut().zip(block).zip(steps) {
            // SAFETY: both have 16 bytes, which may have any bits.
            let (coefficients, steps) =
                unsafe { (_mm_loadu_si128(coefficients.as_ptr().cast()), _mm_loadu_si128(steps.as_ptr().cast())) };
            *row = _mm_mullo_epi16(coefficients, steps);
        }
        let mut columns = pass::<{ BITS - 2 }>(&rows);
        if is_large(rows[0]) && block[1..].iter().all(|row| *row == [0; 8]) {
            columns = [_mm_slli_epi16::<2>(rows[0]); 8];
        }
        let rows = swap(&pass::<{ BITS + 5 }>(&swap(&columns)));
        let mut out = [[0u8; 8]; 8];
        for (pair, two) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let levels = _mm_packs_epi16(rows[2 * pair], rows[2 * pair + 1]);
            let levels = _mm_add_epi8(levels, _mm_set1_epi8(-128));
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(two.as_mut_ptr().cast(), levels) };
        }
        out
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn swap(r: &Rows) -> Rows {
        let (a0, a1) = (_mm_unpacklo_epi16(r[0], r[1]), _mm_unpackhi_epi16(r[0], r[1]));
        let (a2, a3) = (_mm_unpacklo_epi16(r[2], r[3]), _mm_unpackhi_epi16(r[2], r[3]));
        let (a4, a5) = (_mm_unpacklo_epi16(r[4], r[5]), _mm_unpackhi_epi16(r[4], r[5]));
        let (a6, a7) = (_mm_unpacklo_epi16(r[6], r[7]), _mm_unpackhi_epi16(r[6], r[7]));
        let (b0, b1) = (_mm_unpacklo_epi32(a0, a2), _mm_unpackhi_epi32(a0, a2));
        let (b2, b3) = (_mm_unpacklo_epi32(a1, a3), _mm_unpackhi_epi32(a1, a3));
        let (b4, b5) = (_mm_unpacklo_epi32(a4, a6), _mm_unpackhi_epi32(a4, a6));
        let (b6, b7) = (_mm_unpacklo_epi32(a5, a7), _mm_unpackhi_epi32(a5, a7));
        [
            _mm_unpacklo_epi64(b0, b4),
            _mm_unpackhi_epi64(b0, b4),
            _mm_unpacklo_epi64(b1, b5),
            _mm_unpackhi_epi64(b1, b5),
            _mm_unpacklo_epi64(b2, b6),
            _mm_unpackhi_epi64(b2, b6),
            _mm_unpacklo_epi64(b3, b7),
            _mm_unpackhi_epi64(b3, b7),
        ]
    }

    /// True if a number times 4 does not fit into 16 bits.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn is_large(row: __m128i) -> bool {
        let back = _mm_srai_epi16::<2>(_mm_slli_epi16::<2>(row));
        _mm_movemask_epi8(_mm_cmpeq_epi16(back, row)) != 0xffff
    }

    /// Numbers of 32 bits: the lower four lanes, the upper four.
    type Wide = (__m128i, __m128i);

    #[inline]
    #[target_feature(enable = "sse2")]
    fn sums(a: __m128i, b: __m128i, pairs: [Pair; 2]) -> [Wide; 2] {
        let (low, high) = (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b));
        let [(p, q), (r, s)] = pairs;
        let first = _mm_set1_epi32(i32::from(q) << 16 | i32::from(p as u16));
        let second = _mm_set1_epi32(i32::from(s) << 16 | i32::from(r as u16));
        [
            (_mm_madd_epi16(low, first), _mm_madd_epi16(high, first)),
            (_mm_madd_epi16(low, second), _mm_madd_epi16(high, second)),
        ]
    }

    /// Numbers of 16 bits, with [`BITS`] behind the point.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn widened(a: __m128i) -> Wide {
        let zero = _mm_setzero_si128();
        let (low, high) = (_mm_unpacklo_epi16(zero, a), _mm_unpackhi_epi16(zero, a));
        (_mm_srai_epi32::<{ 16 - BITS }>(low), _mm_srai_epi32::<{ 16 - BITS }>(high))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn add(a: Wide, b: Wide) -> Wide {
        (_mm_add_epi32(a.0, b.0), _mm_add_epi32(a.1, b.1))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn sub(a: Wide, b: Wide) -> Wide {
        (_mm_sub_epi32(a.0, b.0), _mm_sub_epi32(a.1, b.1))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn narrowed<const SHIFT: i32>(a: Wide) -> __m128i {
        _mm_packs_epi32(_mm_srai_epi32::<SHIFT>(a.0), _mm_srai_epi32::<SHIFT>(a.1))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn pass<const SHIFT: i32>(x: &Rows) -> Rows {
        let half = _mm_set1_epi32(1 << (SHIFT - 1));
        let half = (half, half);
        let [low, high] = sums(x[2], x[6], EVEN);
        let plus = add(widened(_mm_add_epi16(x[0], x[4])), half);
        let minus = add(widened(_mm_sub_epi16(x[0], x[4])), half);
        let even = [add(plus, high), add(minus, low), sub(minus, low), sub(plus, high)];
        let [third, fourth] = sums(_mm_add_epi16(x[7], x[3]), _mm_add_epi16(x[5], x[1]), SUMS);
        let [a, d] = sums(x[7], x[1], OUTER);
        let [b, c] = sums(x[5], x[3], INNER);
        let odd = [add(d, fourth), add(c, third), add(b, fourth), add(a, third)];
        [
            narrowed::<SHIFT>(add(even[0], odd[0])),
            narrowed::<SHIFT>(add(even[1], odd[1])),
            narrowed::<SHIFT>(add(even[2], odd[2])),
            narrowed::<SHIFT>(add(even[3], odd[3])),
            narrowed::<SHIFT>(sub(even[3], odd[3])),
            narrowed::<SHIFT>(sub(even[2], odd[2])),
            narrowed::<SHIFT>(sub(even[1], odd[1])),
            narrowed::<SHIFT>(sub(even[0], odd[0])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bodies_give_the_same_samples() {
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as i16
        };
        for round in 0..4000 {
            let width = 1 + round % 16;
            let mut block: [i16; 64] = std::array::from_fn(|_| random() >> (16 - width));
            let last = random() as usize % 64;
            block[last + 1..].fill(0);
            let steps: Steps = std::array::from_fn(|_| 1 + (random() as u16 & 0xff) % (1 + (round as u16 / 16) % 255));
            let mut samples = [0; 64];
            inverse(&block, &steps, &mut samples, 8);
            assert_eq!(samples, *plain::inverse(&block, &steps).as_flattened(), "round {round}");
        }
    }
}
