//! The forward pass: 4 or 2 queries meet all keys.
//!
//! As in [`crate::attention16::fused`], nothing is subtracted from the exponents, and heads for which that may go wrong are left to
//! [`crate::attention16::forward`]. Sums of rounded probabilities are divided by sums of rounded probabilities.

use super::*;
use crate::attention16::forward::{Cut, Finish, bounded_by, longest_row, within_totals};

/// Keys that are packed at once.
const KEYS: usize = 64;

/// Does what can be done, and returns the other heads.
pub fn forward(s: Avx512Bf16, shape: &AttentionShape, inputs: [&[bf16]; 3], finish: &Finish) -> Vec<usize> {
    if shape.head_dim <= 4 {
        Lanes::<2, 4, 2> { s, shape, inputs, finish }.run()
    } else {
        Lanes::<4, 8, 1> { s, shape, inputs, finish }.run()
    }
}

/// `TWOS` are the pairs of queries whose outputs have place in registers.
struct Lanes<'a, const PAIRS: usize, const CHANNELS: usize, const TWOS: usize> {
    s: Avx512Bf16,
    shape: &'a AttentionShape,
    /// q, k and v.
    inputs: [&'a [bf16]; 3],
    finish: &'a Finish<'a>,
}

/// Results of some queries: outputs, by query and channel; by query, sums of probabilities, and of rounded ones.
struct Sums {
    outputs: Line,
    totals: [f32; 4],
    weights: [f32; 4],
}

impl<const PAIRS: usize, const CHANNELS: usize, const TWOS: usize> Lanes<'_, PAIRS, CHANNELS, TWOS> {
    /// A vector of keys: pairs of channels of k, where scores begin, and v by channel, as pairs of keys, twice.
    const KEY: usize = PAIRS + 1 + CHANNELS;

    fn run(&self) -> Vec<usize> {
        let (s, shape, tokens) = (self.s, self.shape, self.shape.key_tokens);
        let (heads, blocks) = (shape.batch * shape.heads, tokens.div_ceil(KEYS));
        let packed = tokens.div_ceil(LANES) * Self::KEY * LANES + blocks.next_multiple_of(LANES);
        Cut { shape, heads, packed, blocks, unit: 2 * LANES }.run(
            |head, block, to, begin| {
                s.run(
                    #[inline(always)]
                    || self.pack(head, block, to, begin),
                );
            },
            |head, queries, packed| {
                s.run(
                    #[inline(always)]
                    || self.task(head, queries, packed),
                )
            },
        )
    }

    /// Packs some keys and values of a head, and the greatest squared length of these keys.
    #[inline(always)]
    fn pack(&self, head: usize, block: usize, to: &SharedMut<f32>, begin: usize) {
        let (s, shape, tokens) = (self.s, self.shape, self.shape.key_tokens);
        let range = block * KEYS..((block + 1) * KEYS).min(tokens);
        let [first, end, all] =
            [range.start, range.end, tokens].map(|tokens| begin + tokens.div_ceil(LANES) * Self::KEY * LANES);
        // SAFETY: blocks do not overlap.
        let (lines, longest) = unsafe { (to.range(first..end), to.range(all + block..all + block + 1)) };
        let [k, v] = [self.inputs[1], self.inputs[2]].map(|all| shape.head(all, tokens, head));
        longest[0] = longest_row(s, &k, (range.start, range.len()), shape.head_dim);
        for (first, to) in range.clone().step_by(LANES).zip(lines.chunks_exact_mut(Self::KEY * LANES)) {
            let at = (first, LANES.min(range.end - first));
            let (pairs, rest) = to.split_at_mut(PAIRS * LANES);
            let (begins, channels) = rest.split_at_mut(LANES);
            store_columns::<PAIRS>(s, &k, at, shape.head_dim, pairs);
            store_begins(at.1, begins);
            let mut values = [Line([0.0; LANES]); PAIRS];
            store_columns::<PAIRS>(s, &v, at, shape.head_dim, bytemuck::cast_slice_mut(&mut values));
            for (pairs, to) in values.iter().zip(channels.chunks_exact_mut(2 * LANES)) {
                store_halves_twice(s, s.load(&pairs.0), to);
            }
        }
    }

    /// Some queries of a head, with its packed keys and values; `false`, with nothing of use done, if exponents may be too large.
    #[inline(always)]
    fn task(&self, head: usize, range: Range<usize>, packed: &[f32]) -> bool {
        let (s, shape) = (self.s, self.shape);
        let (keys, longest_keys) = packed.split_at(shape.key_tokens.div_ceil(LANES) * Self::KEY * LANES);
        let longest_keys = &longest_keys[..shape.key_tokens.div_ceil(KEYS)];
        let q = shape.head(self.inputs[0], shape.query_tokens, head);
        let longest = longest_row(s, &q, (range.start, range.len()), shape.head_dim);
        if !bounded_by(shape, longest_keys)(longest) {
            return false;
        }
        let (mut rows, most) = ([Line([0.0; LANES]); LANES], [0.0; LANES]);
        for first in range.clone().step_by(LANES) {
            let count = LANES.min(range.end - first);
            let (mut totals, mut weights) = ([0.0; LANES], [0.0; LANES]);
            for i in (0..count).step_by(2 * TWOS) {
                let sums = self.sums(&q, first + i..range.end, bytemuck::cast_slice(keys));
                for (j, output) in sums.outputs.0.chunks_exact(CHANNELS).enumerate() {
                    rows[i + j].0[..CHANNELS].copy_from_slice(output);
                    (totals[i + j], weights[i + j]) = (sums.totals[j], sums.weights[j]);
                }
            }
            if !within_totals(s, s.load(&totals), count) {
                return false;
            }
            let sums = (bytemuck::cast_slice(&rows), LANES);
            self.finish.block(s, (head, first, count), sums, (&mut totals, &most, Some(&weights)));
        }
        true
    }

    /// Lets the first queries of a range meet all keys.
    #[inline(always)]
    fn sums(&self, q: &Dense<bf16>, range: Range<usize>, keys: &[Line]) -> Sums {
        let s = self.s;
        let factor = s.splat(exponent_factor(self.shape));
        let one = s.splat(f32::from_bits(0x3f80_3f80));
        let mut queries = [[[s.splat(0.0); PAIRS]; 2]; TWOS];
        for i in 0..(2 * TWOS).min(range.len()) {
            let mut pairs = [0.0; PAIRS];
            store_channels(s, channels_of(s, q, range.start + i, self.shape.head_dim), &mut pairs);
            for c in 0..PAIRS {
                queries[i / 2][i % 2][c] = s.splat(pairs[c]);
            }
        }
        let mut outputs = [s.splat(0.0); 8];
        // Of rounded probabilities of two queries, and of probabilities of each.
        let (mut weights, mut totals) = ([s.splat(0.0); TWOS], [[s.splat(0.0); 2]; TWOS]);
        for key in keys.chunks_exact(Self::KEY) {
            for t in 0..TWOS {
                let mut probabilities = [s.splat(0.0); 2];
                for i in 0..2 {
                    let mut score = s.load(&key[PAIRS].0);
                    for c in 0..PAIRS {
                        score = dot_pairs(s, score, s.load(&key[c].0), queries[t][i][c]);
                    }
                    probabilities[i] = exp2_near(s, s.mul(score, factor));
                    totals[t][i] = s.add(totals[t][i], probabilities[i]);
                }
                // SAFETY: the token proves the instruction.
                let pairs = unsafe { _mm512_castsi512_ps(round2(probabilities[0], probabilities[1])) };
                weights[t] = dot_pairs(s, weights[t], pairs, one);
                for c in 0..CHANNELS {
                    let output = &mut outputs[t * CHANNELS + c];
                    *output = dot_pairs(s, *output, pairs, s.load(&key[PAIRS + 1 + c].0));
                }
            }
        }
        let mut all = [s.splat(0.0); 8];
        for t in 0..TWOS {
            (all[t], all[4 + 2 * t], all[5 + 2 * t]) = (weights[t], totals[t][0], totals[t][1]);
        }
        let (mut sums, mut of) = (Line([0.0; LANES]), [0.0; LANES]);
        s.store(by_query::<CHANNELS>(s, outputs), &mut sums.0);
        s.store(half_sums(s, all), &mut of);
        Sums {
            outputs: sums,
            totals: std::array::from_fn(|i| of[8 + i] + of[12 + i]),
            weights: std::array::from_fn(|i| of[i / 2 + i % 2 * 4]),
        }
    }
}
