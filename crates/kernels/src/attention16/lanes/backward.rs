//! The backward pass: a vector holds 16 keys.
//!
//! Blocks of [`QUERIES`] meet [`KEYS`] in three steps. Probabilities and gradients of scores are computed and rounded ([`Lanes::scores`]),
//! and stand as pairs of queries, for the gradients of keys ([`Lanes::add_to_keys`]), the latter also as pairs of keys, for those of
//! queries ([`Lanes::sum_queries`]), whose lanes are summed up at the end.

use super::*;
use crate::math::store_up_to;
use crate::product::add_to;
use crate::tile16::alternate;

/// Keys that meet queries at once. The gradient of a query is the sum of those from so many keys, in their order.
const KEYS: usize = 256;

/// Queries that meet keys at once, so that all these probabilities stay in the nearest cache.
const QUERIES: usize = 16;

/// Queries, or keys, that are prepared at once, and queries whose gradients are written at once.
const BLOCK: usize = 128;

/// [`super::super::backward()`] for heads that [`suits`] accepts.
pub fn backward(s: Avx512Bf16, shape: &AttentionShape, saved: Saved, gradients: [&SharedMut<bf16>; 3]) {
    if shape.head_dim <= 4 {
        Lanes::<2, 4, 2> { s, shape, saved, gradients }.run();
    } else {
        Lanes::<4, 8, 1> { s, shape, saved, gradients }.run();
    }
}

/// `AT_ONCE` are the vectors of keys, and the pairs of queries, whose gradients have place in registers.
struct Lanes<'a, const PAIRS: usize, const CHANNELS: usize, const AT_ONCE: usize> {
    s: Avx512Bf16,
    shape: &'a AttentionShape,
    saved: Saved<'a>,
    gradients: [&'a SharedMut<'a, bf16>; 3],
}

impl<const PAIRS: usize, const CHANNELS: usize, const AT_ONCE: usize> Lanes<'_, PAIRS, CHANNELS, AT_ONCE> {
    /// The part of a query that scores need: pairs of channels of q and of dO, -lse to base 2 and -rowsum(dO * O).
    const SCORE_QUERY: usize = 2 * PAIRS + 2;

    /// Two queries: both [`Lanes::SCORE_QUERY`], then q and dO by channel, as pairs of queries.
    const QUERY: usize = 2 * Self::SCORE_QUERY + 2 * CHANNELS;

    /// The part of 16 keys that scores need, in vectors: pairs of channels of k and of v, and where scores begin: lanes without a key are never
    /// seen.
    const SCORE_KEY: usize = 2 * PAIRS + 1;

    /// A vector of keys: [`Lanes::SCORE_KEY`], then k by channel, as pairs of keys, twice.
    const KEY: usize = Self::SCORE_KEY + CHANNELS;

    /// Vectors of dK and dV of a vector of keys.
    const SUMS: usize = 2 * CHANNELS;

    fn run(&self) {
        let (heads, groups) = (self.shape.batch * self.shape.heads, self.shape.key_tokens.div_ceil(KEYS));
        if heads >= TASKS || groups == 1 || heads * groups * self.shape.query_tokens * CHANNELS > PARTIAL {
            return parallel_for(heads, |head| self.heads(head..head + 1));
        }
        self.heads(0..heads);
    }

    /// Does some heads. All sums are the same however heads are shared out.
    fn heads(&self, heads: Range<usize>) {
        let (s, queries, keys) = (self.s, self.shape.query_tokens, self.shape.key_tokens);
        let (blocks, groups) = (queries.max(keys).div_ceil(BLOCK), keys.div_ceil(KEYS));
        let keys_len = keys.div_ceil(LANES) * Self::KEY * LANES;
        let (len, part_len) = (keys_len + queries.div_ceil(2) * Self::QUERY, queries * CHANNELS);
        let len = len.next_multiple_of(LANES);
        with_scratch(heads.len() * len, |prepared| {
            let shared = SharedMut::new(prepared);
            parallel_for(heads.len() * blocks, |task| {
                let (i, block) = (task / blocks, task % blocks);
                s.run(
                    #[inline(always)]
                    || self.prepare(heads.start + i, block, &shared, [i * len, i * len + keys_len]),
                );
            });
            with_scratch(heads.len() * groups * part_len, |parts| {
                let shared = SharedMut::new(parts);
                parallel_for(heads.len() * groups, |task| {
                    let (i, group) = (task / groups, task % groups);
                    let (keys, queries) = prepared[i * len..][..len].split_at(keys_len);
                    let queries = &queries[..self.shape.query_tokens.div_ceil(2) * Self::QUERY];
                    // SAFETY: tasks have different parts.
                    let part = unsafe { shared.range(task * part_len..(task + 1) * part_len) };
                    s.run(
                        #[inline(always)]
                        || self.task(heads.start + i, group, bytemuck::cast_slice(keys), queries, part),
                    );
                });
                let blocks = queries.div_ceil(BLOCK);
                parallel_for(heads.len() * blocks, |task| {
                    let (i, block) = (task / blocks, task % blocks);
                    let parts = &parts[i * groups * part_len..][..groups * part_len];
                    s.run(
                        #[inline(always)]
                        || self.write_queries(heads.start + i, block, parts),
                    );
                });
            });
        });
    }

    /// Prepares a block of the keys, and of the queries, of a head, which begin at `begin`.
    #[inline(always)]
    fn prepare(&self, head: usize, block: usize, to: &SharedMut<f32>, begin: [usize; 2]) {
        let of = |tokens: usize| (block * BLOCK).min(tokens)..((block + 1) * BLOCK).min(tokens);
        let (keys, queries) = (of(self.shape.key_tokens), of(self.shape.query_tokens));
        let place = |begin: usize, range: &Range<usize>, tokens: usize, len: usize| {
            begin + range.start.div_ceil(tokens) * len..begin + range.end.div_ceil(tokens) * len
        };
        // SAFETY: blocks do not overlap: one ends where a vector of keys, or two queries, do, or is the last.
        let (key, query) = unsafe {
            (
                to.range(place(begin[0], &keys, LANES, Self::KEY * LANES)),
                to.range(place(begin[1], &queries, 2, Self::QUERY)),
            )
        };
        self.prepare_keys(head, keys, key);
        self.prepare_queries(head, queries, query);
    }

    #[inline(always)]
    fn prepare_queries(&self, head: usize, range: Range<usize>, to: &mut [f32]) {
        let (s, shape) = (self.s, self.shape);
        let of = |all| shape.head(all, shape.query_tokens, head);
        let (q, dout, out) = (of(self.saved.q), of(self.saved.dout), of(self.saved.out));
        let lse = &self.saved.lse[head * shape.query_tokens..][..shape.query_tokens];
        for (first, to) in range.clone().step_by(2).zip(to.chunks_exact_mut(Self::QUERY)) {
            let (scores, channels) = to.split_at_mut(2 * Self::SCORE_QUERY);
            let mut rows = [[no_channels(s); 2]; 2];
            for (which, to) in scores.chunks_exact_mut(Self::SCORE_QUERY).enumerate() {
                let i = first + which;
                let (pairs, rest) = to.split_at_mut(2 * PAIRS);
                (rest[0], rest[1]) = (f32::MIN, 0.0);
                if i < range.end {
                    rows[0][which] = channels_of(s, &q, i, shape.head_dim);
                    rows[1][which] = channels_of(s, &dout, i, shape.head_dim);
                    rest[0] = -lse[i] * std::f32::consts::LOG2_E;
                    rest[1] = -dot_channels(s, rows[1][which], channels_of(s, &out, i, shape.head_dim));
                }
                store_channels(s, rows[0][which], &mut pairs[..PAIRS]);
                store_channels(s, rows[1][which], &mut pairs[PAIRS..]);
            }
            for (rows, to) in rows.iter().zip(channels.chunks_exact_mut(CHANNELS)) {
                store_interleaved(s, *rows, to);
            }
        }
    }

    #[inline(always)]
    fn prepare_keys(&self, head: usize, range: Range<usize>, to: &mut [f32]) {
        let (s, shape) = (self.s, self.shape);
        let of = |all| shape.head(all, shape.key_tokens, head);
        let sources = [of(self.saved.k), of(self.saved.v)];
        for (first, to) in range.clone().step_by(LANES).zip(to.chunks_exact_mut(Self::KEY * LANES)) {
            let count = LANES.min(range.end - first);
            let (pairs, rest) = to.split_at_mut(2 * PAIRS * LANES);
            let (begins, channels) = rest.split_at_mut(LANES);
            store_begins(count, begins);
            for (from, pairs) in sources.iter().zip(pairs.chunks_exact_mut(PAIRS * LANES)) {
                store_columns::<PAIRS>(s, from, (first, count), shape.head_dim, pairs);
            }
            for (pairs, to) in pairs.chunks_exact(LANES).zip(channels.chunks_exact_mut(2 * LANES)) {
                store_halves_twice(s, s.load(pairs), to);
            }
        }
    }

    /// Gradients of a group of keys, and its part of the gradients of queries, by query and channel.
    #[inline(always)]
    fn task(&self, head: usize, group: usize, keys: &[Line], queries: &[f32], part: &mut [f32]) {
        let range = group * KEYS..((group + 1) * KEYS).min(self.shape.key_tokens);
        let vectors = range.len().div_ceil(LANES);
        let rows = vectors.next_multiple_of(AT_ONCE);
        let keys = &keys[range.start / LANES * Self::KEY..][..vectors * Self::KEY];
        let sizes = [Self::SUMS, QUERIES / 2, QUERIES / 2, QUERIES / 2].map(|lines| rows * lines * LANES);
        with_scratch(
            sizes.iter().sum(),
            #[inline(always)]
            |memory| {
                let [sums, p, ds, key_ds] = carve(memory, sizes).map(bytemuck::cast_slice_mut::<f32, Line>);
                for lines in [&mut *sums, p, ds] {
                    lines.fill(Line([0.0; LANES]));
                }
                let blocks = queries.chunks(QUERIES / 2 * Self::QUERY).zip(part.chunks_mut(QUERIES * CHANNELS));
                for (queries, part) in blocks {
                    for (v, keys) in keys.chunks_exact(Self::KEY).enumerate() {
                        let first = v * QUERIES / 2;
                        self.scores(queries, keys, (&mut p[first..], &mut ds[first..]), (&mut key_ds[v..], vectors));
                    }
                    self.add_to_keys(queries, p, ds, sums);
                    self.sum_queries(keys, key_ds, part);
                }
                let to = [1, 2].map(|i| Rows::new(self.shape, self.gradients[i], head, self.shape.key_tokens));
                for (j, sums) in range.clone().step_by(LANES).zip(sums.chunks_exact(Self::SUMS)) {
                    let (dk, dv) = sums.split_at(CHANNELS);
                    self.write_keys(&to[0], j..range.end, dk, self.shape.scale);
                    self.write_keys(&to[1], j..range.end, dv, 1.0);
                }
            },
        );
    }

    /// Probabilities, and gradients of scores, of a vector of keys, as pairs of queries; the latter also as pairs of keys, first of
    /// one, then of the other query, `stride` lines from the next two queries.
    #[inline(always)]
    fn scores(
        &self,
        queries: &[f32],
        keys: &[Line],
        (p, ds): (&mut [Line], &mut [Line]),
        (key_ds, stride): (&mut [Line], usize),
    ) {
        let s = self.s;
        let factor = s.splat(exponent_factor(self.shape));
        let (mut k, mut v) = ([s.splat(0.0); PAIRS], [s.splat(0.0); PAIRS]);
        for c in 0..PAIRS {
            k[c] = s.load(&keys[c].0);
            v[c] = s.load(&keys[PAIRS + c].0);
        }
        let begins = s.load(&keys[2 * PAIRS].0);
        let to = p.iter_mut().zip(ds).zip(key_ds.iter_mut().step_by(stride));
        for (query, ((p, ds), key_ds)) in queries.chunks_exact(Self::QUERY).zip(to) {
            let (mut probabilities, mut slopes) = ([s.splat(0.0); 2], [s.splat(0.0); 2]);
            for i in 0..2 {
                let query = &query[i * Self::SCORE_QUERY..][..Self::SCORE_QUERY];
                let (mut score, mut slope) = (begins, s.splat(query[2 * PAIRS + 1]));
                for c in 0..PAIRS {
                    score = dot_pairs(s, score, k[c], s.splat(query[c]));
                    slope = dot_pairs(s, slope, v[c], s.splat(query[PAIRS + c]));
                }
                probabilities[i] = exp2_near(s, s.fma(score, factor, s.splat(query[2 * PAIRS])));
                slopes[i] = s.mul(probabilities[i], slope);
            }
            // SAFETY: the token proves the instructions; lines are 64 bytes.
            unsafe {
                let slopes = round2(slopes[0], slopes[1]);
                _mm512_store_si512(p.0.as_mut_ptr().cast(), alternate(round2(probabilities[0], probabilities[1])));
                _mm512_store_si512(ds.0.as_mut_ptr().cast(), alternate(slopes));
                _mm512_store_si512(key_ds.0.as_mut_ptr().cast(), slopes);
            }
        }
    }

    /// Adds to the gradients of keys.
    #[inline(always)]
    fn add_to_keys(&self, queries: &[f32], p: &[Line], ds: &[Line], sums: &mut [Line]) {
        let rows = QUERIES / 2 * AT_ONCE;
        let all = sums.chunks_exact_mut(AT_ONCE * Self::SUMS).zip(p.chunks_exact(rows).zip(ds.chunks_exact(rows)));
        for (sums, (p, ds)) in all {
            self.add_to_some_keys(queries, p, ds, sums);
        }
    }

    /// [`Lanes::add_to_keys`] for as many vectors of keys as have place in registers.
    #[inline(always)]
    fn add_to_some_keys(&self, queries: &[f32], p: &[Line], ds: &[Line], sums: &mut [Line]) {
        let s = self.s;
        assert!(p.len() == AT_ONCE * QUERIES / 2 && ds.len() == p.len() && queries.len() <= QUERIES / 2 * Self::QUERY);
        let (mut dk, mut dv) = ([[s.splat(0.0); CHANNELS]; AT_ONCE], [[s.splat(0.0); CHANNELS]; AT_ONCE]);
        for v in 0..AT_ONCE {
            for c in 0..CHANNELS {
                dk[v][c] = s.load(&sums[v * Self::SUMS + c].0);
                dv[v][c] = s.load(&sums[v * Self::SUMS + CHANNELS + c].0);
            }
        }
        for (i, query) in queries.chunks_exact(Self::QUERY).enumerate() {
            let (q, dout) = query[2 * Self::SCORE_QUERY..].split_at(CHANNELS);
            for c in 0..CHANNELS {
                let (q, dout) = (s.splat(q[c]), s.splat(dout[c]));
                for v in 0..AT_ONCE {
                    let row = v * (QUERIES / 2) + i;
                    dk[v][c] = dot_pairs(s, dk[v][c], s.load(&ds[row].0), q);
                    dv[v][c] = dot_pairs(s, dv[v][c], s.load(&p[row].0), dout);
                }
            }
        }
        for v in 0..AT_ONCE {
            for c in 0..CHANNELS {
                s.store(dk[v][c], &mut sums[v * Self::SUMS + c].0);
                s.store(dv[v][c], &mut sums[v * Self::SUMS + CHANNELS + c].0);
            }
        }
    }

    /// Gradients of queries, by query and channel, from some keys.
    #[inline(always)]
    fn sum_queries(&self, keys: &[Line], ds: &[Line], to: &mut [f32]) {
        let (s, vectors) = (self.s, keys.len() / Self::KEY);
        for (ds, to) in ds.chunks(AT_ONCE * vectors).zip(to.chunks_mut(LANES)) {
            let mut totals = [s.splat(0.0); 8];
            for (v, keys) in keys.chunks_exact(Self::KEY).enumerate() {
                for i in 0..AT_ONCE {
                    let ds = s.load(&ds[i * vectors + v].0);
                    for c in 0..CHANNELS {
                        let total = &mut totals[i * CHANNELS + c];
                        *total = dot_pairs(s, *total, ds, s.load(&keys[Self::SCORE_KEY + c].0));
                    }
                }
            }
            store_up_to(s, by_query::<CHANNELS>(s, totals), to);
        }
    }

    /// Stores the gradients of up to 16 keys, which stand in lanes.
    #[inline(always)]
    fn write_keys(&self, to: &Rows, keys: Range<usize>, sums: &[Line], factor: f32) {
        let s = self.s;
        let (mut columns, mut rows) = ([Line([0.0; LANES]); LANES], [Line([0.0; LANES]); LANES]);
        columns[..CHANNELS].copy_from_slice(sums);
        s.transpose(bytemuck::cast_slice(&columns), LANES, bytemuck::cast_slice_mut(&mut rows), LANES);
        for (j, row) in keys.zip(&rows) {
            to.write(s, j, &row.0, factor);
        }
    }

    /// Adds the parts of the gradients of a block of queries, in the order of keys, and stores them.
    #[inline(always)]
    fn write_queries(&self, head: usize, block: usize, parts: &[f32]) {
        let (s, shape, tokens) = (self.s, self.shape, self.shape.query_tokens);
        let range = block * BLOCK..((block + 1) * BLOCK).min(tokens);
        let mut sums = [Line([0.0; LANES]); BLOCK * MOST_CHANNELS / LANES];
        let sums = &mut bytemuck::cast_slice_mut::<_, f32>(&mut sums)[..range.len() * CHANNELS];
        for part in parts.chunks_exact(tokens * CHANNELS) {
            add_to(s, &part[range.start * CHANNELS..range.end * CHANNELS], sums);
        }
        let to = Rows::new(shape, self.gradients[0], head, tokens);
        for (i, sum) in range.zip(sums.chunks_exact(CHANNELS)) {
            to.write(s, i, sum, shape.scale);
        }
    }
}

/// Zeros for channels.
#[inline(always)]
fn no_channels(_: Avx512Bf16) -> __m128i {
    // SAFETY: the token proves the instruction.
    unsafe { _mm_setzero_si128() }
}

/// Stores pairs of the same channel, 4 or 8, of two tokens.
#[inline(always)]
fn store_interleaved(_: Avx512Bf16, [first, second]: [__m128i; 2], to: &mut [f32]) {
    assert!(to.len() == 4 || to.len() == 8);
    // SAFETY: the token proves the instructions; each write is of 16 bytes.
    unsafe {
        _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_unpacklo_epi16(first, second));
        if to.len() == 8 {
            _mm_storeu_si128(to.as_mut_ptr().add(4).cast(), _mm_unpackhi_epi16(first, second));
        }
    }
}

/// The sum of products of the channels of two tokens.
#[inline(always)]
fn dot_channels(_: Avx512Bf16, a: __m128i, b: __m128i) -> f32 {
    // SAFETY: the token proves the instructions; all types are 16 bytes without invalid values.
    unsafe {
        let a = std::mem::transmute::<__m128i, __m128bh>(a);
        let b = std::mem::transmute::<__m128i, __m128bh>(b);
        let fours = _mm_dpbf16_ps(_mm_setzero_ps(), a, b);
        let twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
        _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)))
    }
}
