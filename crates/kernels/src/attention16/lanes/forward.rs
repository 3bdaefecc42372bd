//! The forward pass: each key meets 32 or 16 queries.
//!
//! As in [`crate::attention16::fused`], nothing is subtracted from the exponents, and heads for which that may go wrong are left to
//! [`crate::attention16::forward`].

use super::*;
use crate::attention16::forward::{Cut, Finish, bounded_by, longest_row, within_totals};

/// Keys that are packed at once.
const KEYS: usize = 64;

/// Does what can be done, and returns the other heads.
pub fn forward(s: Avx512Bf16, shape: &AttentionShape, [q, k, v]: [&[bf16]; 3], finish: &Finish) -> Vec<usize> {
    let lanes = Lanes { s, shape, q, k, v, finish };
    let (heads, blocks) = (shape.batch * shape.heads, shape.key_tokens.div_ceil(KEYS));
    let packed = shape.key_tokens * 3 * lanes.pairs() + blocks;
    Cut { shape, heads, packed, blocks, unit: 2 * LANES }.run(
        |head, block, to, begin| {
            s.run(
                #[inline(always)]
                || lanes.pack(head, block, to, begin),
            );
        },
        |head, queries, packed| {
            s.run(
                #[inline(always)]
                || lanes.task(head, queries, packed),
            )
        },
    )
}

struct Lanes<'a> {
    s: Avx512Bf16,
    shape: &'a AttentionShape,
    q: &'a [bf16],
    k: &'a [bf16],
    v: &'a [bf16],
    finish: &'a Finish<'a>,
}

/// Queries in lanes, by pairs of channels.
type Queries<const PAIRS: usize> = [[bf16; 2 * LANES]; PAIRS];

impl Lanes<'_> {
    /// Pairs of channels.
    #[inline(always)]
    fn pairs(&self) -> usize {
        self.shape.head_dim.div_ceil(2)
    }

    /// Packs some keys, as pairs of bf16, and values, as f32, of a head, and the greatest squared length of these keys.
    #[inline(always)]
    fn pack(&self, head: usize, block: usize, to: &SharedMut<f32>, begin: usize) {
        let (shape, pairs, tokens) = (self.shape, self.pairs(), self.shape.key_tokens);
        let range = block * KEYS..((block + 1) * KEYS).min(tokens);
        let (values, longest) = (begin + tokens * pairs, begin + tokens * 3 * pairs + block);
        // SAFETY: blocks do not overlap.
        let (keys, values, longest) = unsafe {
            (
                halves(to, begin + range.start * pairs, 2 * range.len() * pairs),
                to.range(values + range.start * 2 * pairs..values + range.end * 2 * pairs),
                to.range(longest..longest + 1),
            )
        };
        let (k, v) = (shape.head(self.k, tokens, head), shape.head(self.v, tokens, head));
        longest[0] = longest_row(self.s, &k, (range.start, range.len()), shape.head_dim);
        let rows = keys.chunks_exact_mut(2 * pairs).zip(values.chunks_exact_mut(2 * pairs));
        for (i, (key, value)) in range.zip(rows) {
            for c in 0..2 * pairs {
                let inside = c < shape.head_dim;
                key[c] = if inside { k.data[i * k.stride + c] } else { bf16::ZERO };
                value[c] = if inside { v.data[i * v.stride + c].to_f32() } else { 0.0 };
            }
        }
    }

    /// Some queries of a head, with its packed keys and values; `false`, with nothing of use done, if exponents may be too large.
    #[inline(always)]
    fn task(&self, head: usize, range: Range<usize>, packed: &[f32]) -> bool {
        let (keys, rest) = packed.split_at(self.shape.key_tokens * self.pairs());
        let (values, longest_keys) = rest.split_at(self.shape.key_tokens * 2 * self.pairs());
        let q = self.shape.head(self.q, self.shape.query_tokens, head);
        let longest = longest_row(self.s, &q, (range.start, range.len()), self.shape.head_dim);
        if !bounded_by(self.shape, longest_keys)(longest) {
            return false;
        }
        match self.pairs() {
            1 => self.walk::<1, 2, 2>(head, range, keys, values),
            2 => self.walk::<2, 4, 2>(head, range, keys, values),
            3 => self.walk::<3, 6, 1>(head, range, keys, values),
            _ => self.walk::<4, 8, 1>(head, range, keys, values),
        }
    }

    /// [`Lanes::task`] for `PAIRS` pairs of channels and `GROUPS` vectors of queries at once.
    #[inline(always)]
    fn walk<const PAIRS: usize, const CHANNELS: usize, const GROUPS: usize>(
        &self,
        head: usize,
        range: Range<usize>,
        keys: &[f32],
        values: &[f32],
    ) -> bool {
        let s = self.s;
        let (mut rows, most) = ([Line([0.0; 16]); LANES], [0.0; LANES]);
        for first in range.clone().step_by(GROUPS * LANES) {
            let (sums, totals) = self.sums::<PAIRS, CHANNELS, GROUPS>(head, first..range.end, keys, values);
            for g in 0..GROUPS {
                let first = first + g * LANES;
                if first >= range.end {
                    break;
                }
                let count = LANES.min(range.end - first);
                if !within_totals(s, totals[g], count) {
                    return false;
                }
                rows_of(s, &sums[g], &mut rows);
                let mut total = Line([0.0; 16]);
                s.store(totals[g], &mut total.0);
                let sums = (bytemuck::cast_slice(&rows), LANES);
                self.finish.block(s, (head, first, count), sums, (&mut total.0, &most, None));
            }
        }
        true
    }

    /// Sums of probabilities times values, by channel, and of probabilities, for some queries of a head.
    #[inline(always)]
    fn sums<const PAIRS: usize, const CHANNELS: usize, const GROUPS: usize>(
        &self,
        head: usize,
        range: Range<usize>,
        keys: &[f32],
        values: &[f32],
    ) -> ([[__m512; CHANNELS]; GROUPS], [__m512; GROUPS]) {
        let s = self.s;
        let factor = s.splat(exponent_factor(self.shape));
        // SAFETY: the token proves the instructions; all loads are of arrays of 64 bytes.
        unsafe {
            let mut queries = [[_mm512_setzero_ps(); PAIRS]; GROUPS];
            for g in 0..GROUPS {
                let lines: Queries<PAIRS> = self.queries(head, range.start + g * LANES..range.end);
                for p in 0..PAIRS {
                    queries[g][p] = _mm512_loadu_ps(lines[p].as_ptr().cast());
                }
            }
            let mut sums = [[_mm512_setzero_ps(); CHANNELS]; GROUPS];
            let mut totals = [_mm512_setzero_ps(); GROUPS];
            for (key, value) in keys.chunks_exact(PAIRS).zip(values.chunks_exact(CHANNELS)) {
                for g in 0..GROUPS {
                    let mut score = _mm512_setzero_ps();
                    for p in 0..PAIRS {
                        score = dot_pairs(s, score, queries[g][p], _mm512_set1_ps(key[p]));
                    }
                    let probability = exp2_near(s, _mm512_mul_ps(score, factor));
                    totals[g] = _mm512_add_ps(totals[g], probability);
                    for c in 0..CHANNELS {
                        sums[g][c] = _mm512_fmadd_ps(probability, _mm512_set1_ps(value[c]), sums[g][c]);
                    }
                }
            }
            (sums, totals)
        }
    }

    /// Up to [`LANES`] queries of a range of a head, and zeros.
    #[inline(always)]
    fn queries<const PAIRS: usize>(&self, head: usize, range: Range<usize>) -> Queries<PAIRS> {
        let q = self.shape.head(self.q, self.shape.query_tokens, head);
        let mut lines = [[bf16::ZERO; 2 * LANES]; PAIRS];
        for (lane, i) in range.take(LANES).enumerate() {
            for (c, &value) in q.data[i * q.stride..][..self.shape.head_dim].iter().enumerate() {
                lines[c / 2][2 * lane + c % 2] = value;
            }
        }
        lines
    }
}
