//! The passes with AVX2.
//!
//! `vpmaddwd` multiplies pairs of 16-bit numbers and adds the two products. A coefficient of 23 bits and a sign is
//! split into a low digit of [`DIGIT`] bits and the (signed) rest, and the two sums are joined at the end. All
//! arithmetic is modulo 2³², as that of the plain loops, whose sums stay within.

use std::arch::x86_64::*;

use super::{HALF, PRECISION_BITS, Windows};

/// Bits of the low digit.
const DIGIT: i32 = 12;
/// Rows that the horizontal pass takes together, which read each weight once.
const ROWS: usize = 4;

/// Low and high digits of a pair of weights, each as the two halves of 32 bits.
fn digits(first: i32, second: i32) -> (i32, i32) {
    let low = |w: i32| w & ((1 << DIGIT) - 1);
    let high = |w: i32| (w >> DIGIT) & 0xffff;
    (low(first) | low(second) << 16, high(first) | high(second) << 16)
}

/// Both digits' sums joined, and rounded to levels that are not yet clamped.
#[target_feature(enable = "avx2")]
fn joined(low: __m256i, high: __m256i) -> __m256i {
    _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(low, _mm256_slli_epi32::<DIGIT>(high)))
}

/// Resizes the leading rows of `data`, `[height, from, C]`, into `out`, `[height, windows, C]`, and returns how many
/// it has done: all but those last ones at whose end 16 bytes could not be read.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn horizontal<const C: usize>(data: &[u8], from: usize, windows: &Windows, out: &mut [u8]) -> usize {
    let row = from * C;
    // The last group of four pixels may begin at the row's last pixel.
    let safe = (data.len() + C).saturating_sub(16) / row / ROWS * ROWS;
    let groups = expand(windows);
    let spread = spread::<C>();
    let out_row = windows.len() * C;
    assert_eq!(out.len() / out_row, data.len() / row);
    for first in (0..safe).step_by(ROWS) {
        let mut at = 0;
        for i in 0..windows.len() {
            let count = windows.lens[i].div_ceil(4);
            let mut low = [_mm256_setzero_si256(); ROWS];
            let mut high = [_mm256_setzero_si256(); ROWS];
            for g in 0..count {
                let [low_weights, high_weights] = groups[at + g];
                for r in 0..ROWS {
                    let offset = (first + r) * row + (windows.starts[i] + 4 * g) * C;
                    debug_assert!(offset + 16 <= data.len());
                    // SAFETY: the offset is at most that of the row's last pixel, behind which 16 bytes are in
                    // `data` for all rows below `safe`.
                    let four = unsafe { _mm_loadu_si128(data.as_ptr().add(offset).cast()) };
                    let pairs = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four), spread);
                    low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(pairs, low_weights));
                    high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(pairs, high_weights));
                }
            }
            at += count;
            let half = _mm_set1_epi32(HALF);
            let sums: [__m128i; ROWS] = std::array::from_fn(|r| {
                let sum = _mm256_add_epi32(low[r], _mm256_slli_epi32::<DIGIT>(high[r]));
                let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
                _mm_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm_add_epi32(sum, half))
            });
            let levels = _mm_packus_epi16(_mm_packs_epi32(sums[0], sums[1]), _mm_packs_epi32(sums[2], sums[3]));
            let mut bytes = [0u8; 16];
            // SAFETY: 16 bytes are written to an array of 16.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), levels) };
            for r in 0..ROWS {
                out[(first + r) * out_row + i * C..][..C].copy_from_slice(&bytes[4 * r..][..C]);
            }
        }
    }
    safe
}

/// Positions of the bytes of four pixels of `C` channels, such that pairs of pixels lie beside each other as 16-bit
/// numbers, channel by channel: pixels 0 and 1 in the lower half, 2 and 3 in the upper.
#[target_feature(enable = "avx2")]
fn spread<const C: usize>() -> __m256i {
    let mut positions = [-1i8; 32];
    for half in 0..2 {
        for channel in 0..C {
            for pixel in 0..2 {
                positions[16 * half + 4 * channel + 2 * pixel] = ((2 * half + pixel) * C + channel) as i8;
            }
        }
    }
    // SAFETY: 32 bytes are read from an array of 32.
    unsafe { _mm256_loadu_si256(positions.as_ptr().cast()) }
}

/// The digits of all weights in groups of four: `[low, high]`, each as [`spread`] lays out the pixels.
#[target_feature(enable = "avx2")]
fn expand(windows: &Windows) -> Vec<[__m256i; 2]> {
    let mut groups = Vec::with_capacity(windows.len() * windows.stride / 4);
    for i in 0..windows.len() {
        let weights = &windows.weights[i * windows.stride..][..windows.lens[i].next_multiple_of(4)];
        for four in weights.as_chunks::<4>().0 {
            let (low, high) = digits(four[0], four[1]);
            let (upper_low, upper_high) = digits(four[2], four[3]);
            let halves = |a: i32, b: i32| _mm256_set_epi32(b, b, b, b, a, a, a, a);
            groups.push([halves(low, upper_low), halves(high, upper_high)]);
        }
    }
    groups
}

/// One row of output from `weights.len()` rows of as many bytes; returns how many leading bytes it has made: all
/// whole blocks of 32.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn vertical(rows: &[u8], weights: &[i32], out: &mut [u8]) -> usize {
    let row = out.len();
    assert_eq!(rows.len(), row * weights.len());
    let zero = _mm256_setzero_si256();
    let done = row / 32 * 32;
    for at in (0..done).step_by(32) {
        let mut low = [_mm256_set1_epi32(HALF); 4];
        let mut high = [zero; 4];
        for k in (0..weights.len()).step_by(2) {
            // Where the rows are odd in number the last one has a partner of weight 0: itself.
            let (next, second) = if k + 1 < weights.len() { (k + 1, weights[k + 1]) } else { (k, 0) };
            let (low_weights, high_weights) = digits(weights[k], second);
            let (low_weights, high_weights) = (_mm256_set1_epi32(low_weights), _mm256_set1_epi32(high_weights));
            // SAFETY: `at + 32` is at most the length of a row, and both rows are in `rows`.
            let (a, b) = unsafe {
                let start = rows.as_ptr().add(at);
                (_mm256_loadu_si256(start.add(k * row).cast()), _mm256_loadu_si256(start.add(next * row).cast()))
            };
            let (front, back) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let pairs = [
                _mm256_unpacklo_epi8(front, zero),
                _mm256_unpackhi_epi8(front, zero),
                _mm256_unpacklo_epi8(back, zero),
                _mm256_unpackhi_epi8(back, zero),
            ];
            for i in 0..4 {
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pairs[i], low_weights));
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pairs[i], high_weights));
            }
        }
        let levels: [__m256i; 4] = std::array::from_fn(|i| joined(low[i], high[i]));
        // Packing undoes the order that unpacking made, half by half.
        let levels =
            _mm256_packus_epi16(_mm256_packs_epi32(levels[0], levels[1]), _mm256_packs_epi32(levels[2], levels[3]));
        // SAFETY: `at + 32` is at most the length of the output.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), levels) };
    }
    done
}
