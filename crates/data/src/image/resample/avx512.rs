//! The passes with AVX-512 and its dot products of bytes (VNNI).
//!
//! `vpdpbusd` adds four products of an unsigned and a signed byte to a 32-bit sum. A coefficient is split into three
//! signed digits of 8 bits, and their sums are joined at the end. All arithmetic is modulo 2³², as that of the plain
//! loops, whose sums stay within.

use std::arch::x86_64::*;

use super::{HALF, PRECISION_BITS, Windows};

/// Weights that the horizontal pass takes together.
const TAPS: usize = 8;
/// Rows that the horizontal pass takes together, which read each weight once.
const ROWS: usize = 4;

/// True if the processor has the instructions.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
}

/// The three signed digits of each of four weights, as the four bytes of a number; `None` for a weight of about 2 or
/// more, which no filter has for the sizes that images have.
fn digits(weights: [i32; 4]) -> Option<[i32; 3]> {
    let mut digits = [[0i8; 4]; 3];
    for (k, weight) in weights.into_iter().enumerate() {
        digits[0][k] = weight as i8;
        let rest = (weight - i32::from(digits[0][k])) >> 8;
        digits[1][k] = rest as i8;
        digits[2][k] = i8::try_from((rest - i32::from(digits[1][k])) >> 8).ok()?;
    }
    Some(digits.map(|four| i32::from_le_bytes(four.map(|digit| digit as u8))))
}

/// The sums of the three digits joined.
#[target_feature(enable = "avx512f")]
fn joined(sums: [__m512i; 3]) -> __m512i {
    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[1]), _mm512_slli_epi32::<16>(sums[2]));
    _mm512_add_epi32(sums[0], upper)
}

/// Resizes the leading rows of `data`, `[height, from, C]`, into `out`, `[height, windows, C]`, and returns how many
/// it has done: all but those last ones at whose end 32 bytes could not be read, or none.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub(super) unsafe fn horizontal<const C: usize>(data: &[u8], from: usize, windows: &Windows, out: &mut [u8]) -> usize {
    let row = from * C;
    // The last group of pixels may begin at the row's last pixel.
    let safe = (data.len() + C).saturating_sub(32) / row / ROWS * ROWS;
    let Some(groups) = expand(windows) else { return 0 };
    let spread = spread::<C>();
    let half = _mm512_set1_epi32(HALF);
    let out_row = windows.len() * C;
    assert_eq!(out.len() / out_row, data.len() / row);
    for first in (0..safe).step_by(ROWS) {
        let mut at = 0;
        for i in 0..windows.len() {
            let count = windows.lens[i].div_ceil(TAPS);
            // Rows 0 and 1 of the block in the halves of one register, 2 and 3 in those of another.
            let mut sums = [[_mm512_setzero_si512(); 3]; 2];
            for (g, group) in groups[at..at + count].iter().enumerate() {
                let weights = group.map(|weights| _mm512_broadcast_i64x4(weights));
                for (pair, sums) in sums.iter_mut().enumerate() {
                    let offset = (first + 2 * pair) * row + (windows.starts[i] + TAPS * g) * C;
                    debug_assert!(offset + row + 32 <= data.len());
                    // SAFETY: both offsets are at most that of their row's last pixel, behind which 32 bytes are in
                    // `data` for all rows below `safe`.
                    let (a, b) = unsafe {
                        let start = data.as_ptr().add(offset);
                        (_mm256_loadu_si256(start.cast()), _mm256_loadu_si256(start.add(row).cast()))
                    };
                    let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
                    let pixels = _mm512_permutexvar_epi8(spread, both);
                    for digit in 0..3 {
                        sums[digit] = _mm512_dpbusd_epi32(sums[digit], pixels, weights[digit]);
                    }
                }
            }
            at += count;
            let levels = sums.map(|sums| {
                let sum = joined(sums);
                // The quarters of a half belong to weights 0 to 3 and 4 to 7.
                let sum = _mm512_add_epi32(sum, _mm512_shuffle_i64x2::<0b10_11_00_01>(sum, sum));
                _mm512_srai_epi32::<{ PRECISION_BITS }>(_mm512_add_epi32(sum, half))
            });
            let levels = _mm512_packs_epi32(levels[0], levels[1]);
            let levels = _mm512_packus_epi16(levels, levels);
            let even = _mm_cvtsi128_si64(_mm512_castsi512_si128(levels)) as u64;
            let odd = _mm_cvtsi128_si64(_mm512_extracti32x4_epi32::<2>(levels)) as u64;
            for (r, pixel) in [even, odd, even >> 32, odd >> 32].into_iter().enumerate() {
                let at = (first + r) * out_row + i * C;
                out[at..at + C].copy_from_slice(&pixel.to_le_bytes()[..C]);
            }
        }
    }
    safe
}

/// Positions of the bytes of eight pixels of `C` channels, such that the same channel of pixels 0 to 3 makes a number
/// of 32 bits, and that of pixels 4 to 7 another; for two rows, in the halves.
#[target_feature(enable = "avx512f")]
fn spread<const C: usize>() -> __m512i {
    let mut positions = [0u8; 64];
    for half in 0..2 {
        for pixel in 0..TAPS {
            for channel in 0..C {
                let to = 32 * half + 16 * (pixel / 4) + 4 * channel + pixel % 4;
                positions[to] = (32 * half + pixel * C + channel) as u8;
            }
        }
    }
    // SAFETY: 64 bytes are read from an array of 64.
    unsafe { _mm512_loadu_si512(positions.as_ptr().cast()) }
}

/// The digits of all weights in groups of [`TAPS`], as [`spread`] lays out one row's pixels.
#[target_feature(enable = "avx2")]
fn expand(windows: &Windows) -> Option<Vec<[__m256i; 3]>> {
    let mut groups = Vec::with_capacity(windows.len() * windows.stride / TAPS);
    for i in 0..windows.len() {
        let weights = &windows.weights[i * windows.stride..][..windows.lens[i].next_multiple_of(TAPS)];
        for [a, b, c, d, e, f, g, h] in weights.as_chunks::<TAPS>().0 {
            let (front, back) = (digits([*a, *b, *c, *d])?, digits([*e, *f, *g, *h])?);
            groups.push(std::array::from_fn(|digit| {
                _mm256_set_m128i(_mm_set1_epi32(back[digit]), _mm_set1_epi32(front[digit]))
            }));
        }
    }
    Some(groups)
}

/// One row of output from `weights.len()` rows of as many bytes; returns how many leading bytes it has made: all or
/// none.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn vertical(rows: &[u8], weights: &[i32], out: &mut [u8]) -> usize {
    let row = out.len();
    let count = weights.len();
    assert!(count > 0 && rows.len() == row * count);
    let four = |k: usize| digits(std::array::from_fn(|i| weights.get(k + i).copied().unwrap_or(0)));
    let Some(groups) = (0..count).step_by(4).map(four).collect::<Option<Vec<_>>>() else { return 0 };
    for at in (0..row).step_by(64) {
        let mask = u64::MAX >> (64 - (row - at).min(64));
        let mut sums = [[_mm512_set1_epi32(HALF), _mm512_setzero_si512(), _mm512_setzero_si512()]; 4];
        for (g, group) in groups.iter().enumerate() {
            // Beyond the last row is the last row again, with weight 0.
            let source: [__m512i; 4] = std::array::from_fn(|i| {
                let k = (4 * g + i).min(count - 1);
                // SAFETY: the bytes of the mask are inside of row `k`, which is inside of `rows`.
                unsafe { _mm512_maskz_loadu_epi8(mask, rows.as_ptr().add(k * row + at).cast()) }
            });
            let front = [_mm512_unpacklo_epi8(source[0], source[1]), _mm512_unpackhi_epi8(source[0], source[1])];
            let back = [_mm512_unpacklo_epi8(source[2], source[3]), _mm512_unpackhi_epi8(source[2], source[3])];
            for i in 0..4 {
                let (a, b) = (front[i / 2], back[i / 2]);
                let pixels = if i % 2 == 0 { _mm512_unpacklo_epi16(a, b) } else { _mm512_unpackhi_epi16(a, b) };
                for digit in 0..3 {
                    sums[i][digit] = _mm512_dpbusd_epi32(sums[i][digit], pixels, _mm512_set1_epi32(group[digit]));
                }
            }
        }
        let levels = sums.map(|sums| _mm512_srai_epi32::<{ PRECISION_BITS }>(joined(sums)));
        // Packing undoes the order that unpacking made, quarter by quarter.
        let levels =
            _mm512_packus_epi16(_mm512_packs_epi32(levels[0], levels[1]), _mm512_packs_epi32(levels[2], levels[3]));
        // SAFETY: the bytes of the mask are inside of the output.
        unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().add(at).cast(), mask, levels) };
    }
    row
}
