//! Attention of bf16 on the tiles of [`crate::tile16`].
//!
//! Scores, their exponentials and all sums are f32; probabilities and the gradients of scores are rounded to bf16 where
//! they become operands of the next product. What is summed for lse is not rounded.
//!
//! The forward pass goes over blocks of queries, and for each over blocks of keys, with an online softmax. The backward
//! pass goes over blocks of keys and works with the transposed scores: rows are keys, so that P^T and dS^T are at once
//! left operands of dV = P^T dO and dK = dS^T Q, and lse and rowsum(dO * O) are vectors along a row. The gradient of
//! the queries is summed transposed, dQ^T = K^T dS^T, for which pairs of rows of dS^T are interleaved in registers.

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

/// How far the exponents (to base 2) of probabilities may grow before the sums are scaled down. bf16 and f32 have the same
/// range, so nothing is lost.
const SLACK: f32 = 16.0;

/// Largest magnitude of exponents (to base 2) for which a softmax may do without its maximum.
const BOUND: f32 = 110.0;

/// Fewest keys for which it is worth to find out.
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
    if K::ANY_STRIDE { 128 } else { 112 }
}

/// Rows of scores that are turned into probabilities at once, an even number.
const fn score_rows<K: Kernel16>() -> usize {
    if K::ANY_STRIDE { 32 } else { 28 }
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

/// Whether the kernels here can do it.
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

/// [`crate::attention_forward`] for bf16; `false`, with nothing done, if there are no instructions for it or the shape is
/// out of the ordinary.
pub fn forward(shape: &AttentionShape, q: &[bf16], k: &[bf16], v: &[bf16], out: &mut [bf16], lse: &mut [f32]) -> bool {
    if !suits(shape) {
        return false;
    }
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    dispatch16!(
        |kernel| {
            Forward { kernel, shape, q, k, v, out: &out, lse: &lse }.run();
            true
        },
        false
    )
}

struct Forward<'a, K> {
    kernel: K,
    shape: &'a AttentionShape,
    q: &'a [bf16],
    k: &'a [bf16],
    v: &'a [bf16],
    out: &'a SharedMut<'a, bf16>,
    lse: &'a SharedMut<'a, f32>,
}

impl<K: Kernel16> Forward<'_, K> {
    /// Length of the packed keys, and of the packed values, of a head, in pairs; and of the greatest squared length of a key
    /// of each block.
    fn packed(&self) -> [usize; 3] {
        let (keys, d) = (self.shape.key_tokens.next_multiple_of(32), self.shape.head_dim);
        [keys * d.next_multiple_of(K::K_STEP) / 2, keys * line(d) / 2, self.shape.key_tokens.div_ceil(key_columns(d))]
    }

    fn run(&self) {
        let shape = self.shape;
        let (heads, queries) = (shape.batch * shape.heads, shape.query_tokens);
        let unit = query_rows::<K>(shape.head_dim);
        let parts = tasks_of_head(shape, queries.div_ceil(unit), 2 * TASKS);
        let rows = queries.div_ceil(parts).next_multiple_of(unit);
        let len: usize = self.packed().iter().sum();
        let blocks = shape.key_tokens.div_ceil(key_columns(shape.head_dim));
        if rows >= queries {
            return parallel_for(heads, |head| {
                self.kernel.run(
                    #[inline(always)]
                    || {
                        with_scratch(
                            len,
                            #[inline(always)]
                            |packed| {
                                let shared = SharedMut::new(packed);
                                for block in 0..blocks {
                                    self.pack(head, block, &shared, 0);
                                }
                                self.task(head, (0, queries), packed);
                            },
                        );
                    },
                );
            });
        }
        let parts = queries.div_ceil(rows);
        with_scratch(heads * len, |packed| {
            let shared = SharedMut::new(packed);
            parallel_for(heads * blocks, |task| {
                self.kernel.run(
                    #[inline(always)]
                    || self.pack(task / blocks, task % blocks, &shared, task / blocks * len),
                );
            });
            parallel_for(heads * parts, |i| {
                let (head, first) = (i / parts, i % parts * rows);
                self.kernel.run(
                    #[inline(always)]
                    || self.task(head, (first, rows.min(queries - first)), &packed[head * len..][..len]),
                );
            });
        });
    }

    /// Packs one block of keys and values of a head.
    #[inline(always)]
    fn pack(&self, head: usize, block: usize, to: &SharedMut<f32>, begin: usize) {
        let (shape, d) = (self.shape, self.shape.head_dim);
        let j = block * key_columns(d);
        let n = key_columns(d).min(shape.key_tokens - j);
        let (depth, wide, padded) = (d.next_multiple_of(K::K_STEP), line(d), n.next_multiple_of(32));
        // SAFETY: blocks do not overlap.
        let (keys, values, longest) = unsafe {
            let values = begin + self.packed()[0];
            let longest = values + self.packed()[1] + block;
            (
                halves(to, begin + j * depth / 2, padded * depth / 2),
                halves(to, values + j * wide / 2, padded * wide / 2),
                to.range(longest..longest + 1),
            )
        };
        let k = Operand { source: shape.head(self.k, shape.key_tokens, head), k_rows: false };
        if shape.key_tokens >= BOUNDED_KEYS {
            longest[0] = longest_row(self.kernel.vectors(), &k.source, (j, n), d);
        }
        let v = Operand { source: shape.head(self.v, shape.key_tokens, head), k_rows: true };
        pack_b(self.kernel, &k, (0, d), (j, n), keys);
        pack_b(self.kernel, &v, (j, n), (0, d), values);
    }

    /// Queries `first..first + count` of a head, with its packed keys and values.
    #[inline(always)]
    fn task(&self, head: usize, (first, count): (usize, usize), packed: &[f32]) {
        let (keys, rest) = packed.split_at(self.packed()[0]);
        let (values, longest_keys) = rest.split_at(self.packed()[1]);
        let (keys, values): (&[bf16], &[bf16]) = (bytemuck::cast_slice(keys), bytemuck::cast_slice(values));
        let (kernel, shape, d) = (self.kernel, self.shape, self.shape.head_dim);
        let depth = d.next_multiple_of(K::K_STEP);
        let rows = query_rows::<K>(d).min(count);
        let longest = key_columns(d).min(shape.key_tokens.next_multiple_of(32));
        let strides = Strides {
            queries: stride::<K>(depth),
            scores: sum_stride(longest),
            p: stride::<K>(longest),
            sums: sum_stride(d),
        };
        let sizes = [
            room(rows) * strides.queries / 2,
            room(rows) * strides.scores,
            room(rows) * strides.p / 2,
            room(rows) * strides.sums,
            rows * 16,
            rows.next_multiple_of(16),
        ];
        let q = shape.head(self.q, shape.query_tokens, head);
        // By Cauchy and Schwarz, no score is beyond the product of the lengths.
        let limit = BOUND / exponent_factor(shape);
        let longest_key = longest_keys.iter().fold(0.0f32, |a, &b| if b <= a { a } else { b });
        with_scratch(
            sizes.iter().sum(),
            #[inline(always)]
            |memory| {
                let [queries, scores, p, sums, totals, most] = carve(memory, sizes);
                let [queries, p] = [queries, p].map(bytemuck::cast_slice_mut::<f32, bf16>);
                let mut walk = Walk { forward: self, keys, values, strides, queries, scores, p, sums, totals, most };
                for i0 in (first..first + count).step_by(rows) {
                    let block = (i0, rows.min(first + count - i0));
                    pack_rows(kernel, &q, block, d, walk.queries, walk.strides.queries);
                    // False for what is not a number.
                    let bounded = shape.key_tokens >= BOUNDED_KEYS
                        && longest_row(kernel.vectors(), &q, block, d) * longest_key <= limit * limit;
                    if !(bounded && walk.run::<true>(block)) {
                        walk.run::<false>(block);
                    }
                    self.finish(head, block, (walk.sums, walk.strides.sums), walk.totals, walk.most);
                }
            },
        );
    }

    /// Divides the sums of a block by the totals and stores them, and lse.
    #[inline(always)]
    fn finish(
        &self,
        head: usize,
        (i0, m): (usize, usize),
        (sums, stride): (&[f32], usize),
        totals: &[f32],
        most: &[f32],
    ) {
        let (s, shape) = (self.kernel.vectors(), self.shape);
        let (b, h) = (head / shape.heads, head % shape.heads);
        for i in 0..m {
            let token = ((b * shape.query_tokens + i0 + i) * shape.heads + h) * shape.head_dim;
            let at = head * shape.query_tokens + i0 + i;
            // SAFETY: every (batch, head, query) belongs to one task, and is written once.
            let (out, lse) = unsafe { (self.out.range(token..token + shape.head_dim), self.lse.range(at..at + 1)) };
            let total = s.sum(s.load(&totals[i * 16..]));
            let factor = s.splat(1.0 / total);
            map1(
                s,
                &sums[i * stride..][..shape.head_dim],
                out,
                #[inline(always)]
                |v| s.mul(v, factor),
            );
            lse[0] = most[i] * std::f32::consts::LN_2 + total.ln();
        }
    }
}

/// Distances between the rows of what a [`Walk`] works with.
struct Strides {
    queries: usize,
    scores: usize,
    p: usize,
    sums: usize,
}

/// A block of queries on its way through the keys of its head.
struct Walk<'a, K> {
    forward: &'a Forward<'a, K>,
    keys: &'a [bf16],
    values: &'a [bf16],
    strides: Strides,
    queries: &'a mut [bf16],
    scores: &'a mut [f32],
    p: &'a mut [bf16],
    /// Of probabilities times values.
    sums: &'a mut [f32],
    /// Of probabilities: 16 parts for each query.
    totals: &'a mut [f32],
    /// What is subtracted from each query's exponents.
    most: &'a mut [f32],
}

impl<K: Kernel16> Walk<'_, K> {
    /// Fills `sums`, `totals` and `most` for queries `i0..i0 + m`. If `BOUNDED`, exponents are known to be within [`BOUND`], and
    /// nothing is subtracted.
    ///
    /// `false` if a total came near the ends of the range of f32, which happens only if `BOUNDED`.
    #[inline(always)]
    fn run<const BOUNDED: bool>(&mut self, (i0, m): (usize, usize)) -> bool {
        let (kernel, shape, d) = (self.forward.kernel, self.forward.shape, self.forward.shape.head_dim);
        let (depth, wide, tokens) = (d.next_multiple_of(K::K_STEP), line(d), shape.key_tokens);
        self.most.fill(if BOUNDED { 0.0 } else { f32::NEG_INFINITY });
        self.totals.fill(0.0);
        for j in (0..tokens).step_by(key_columns(d)) {
            let n = key_columns(d).min(tokens - j);
            if shape.visible(i0 + m - 1, j, n) == 0 {
                break;
            }
            let (left, scores) = ((&*self.queries, self.strides.queries), (&mut *self.scores, self.strides.scores));
            multiply(kernel, (m, n, depth), left, &self.keys[j * depth..], scores, false);
            for i in 0..m {
                self.softmax_row::<BOUNDED>(i, shape.visible(i0 + i, j, n), (j, n));
            }
            let (left, sums) = ((&*self.p, self.strides.p), (&mut *self.sums, self.strides.sums));
            multiply(kernel, (m, d, n.next_multiple_of(K::K_STEP)), left, &self.values[j * wide..], sums, j > 0);
        }
        let s = kernel.vectors();
        let mut good = true;
        for totals in self.totals.chunks_exact(16).take(m) {
            good &= !BOUNDED || TOTALS.contains(&s.sum(s.load(totals)));
        }
        good
    }

    /// Row `i` of the probabilities of a block of keys, of which `seen` are seen.
    #[inline(always)]
    fn softmax_row<const BOUNDED: bool>(&mut self, i: usize, seen: usize, (j, n): (usize, usize)) {
        let s = self.forward.kernel.vectors();
        let padded = n.next_multiple_of(32);
        let scores = &self.scores[i * self.strides.scores..][..padded];
        let row = SoftmaxRow { scores, seen, factor: exponent_factor(self.forward.shape) };
        let (totals, p) = (&mut self.totals[i * 16..][..16], &mut self.p[i * self.strides.p..][..padded]);
        if BOUNDED {
            return row.run_bounded(s, totals, p);
        }
        if let Some(shrink) = row.run(s, &mut self.most[i], totals, p)
            && j > 0
        {
            let wide = line(self.forward.shape.head_dim);
            for sums in self.sums[i * self.strides.sums..][..wide].chunks_exact_mut(16) {
                s.store(s.mul(s.load(sums), s.splat(shrink)), sums);
            }
        }
    }
}

/// The greatest squared length of some rows; not finite if one is not.
#[inline(always)]
fn longest_row(s: Avx512Bf16, from: &Dense<bf16>, (first, count): (usize, usize), width: usize) -> f32 {
    let mut longest = 0.0f32;
    for i in first..first + count {
        let row = &from.data[i * from.stride..][..width];
        let length = dot(s, row, row);
        if length > longest || length.is_nan() {
            longest = length;
        }
    }
    longest
}

/// One query's scores with a block of keys.
struct SoftmaxRow<'a> {
    /// Padded to a multiple of 32.
    scores: &'a [f32],
    /// How many count.
    seen: usize,
    /// Makes scores exponents to base 2.
    factor: f32,
}

impl SoftmaxRow<'_> {
    /// Writes `p = 2^(factor * score - most)`, zeros where nothing is seen, and adds to `totals`, lane by lane.
    ///
    /// `most` is first raised to the greatest exponent if that exceeds it by more than [`SLACK`]; then the totals are
    /// scaled down, and the factor for all earlier sums is returned.
    #[inline(always)]
    fn run(&self, s: Avx512Bf16, most: &mut f32, totals: &mut [f32], p: &mut [bf16]) -> Option<f32> {
        let (scores, seen) = (self.scores, self.seen);
        assert!(seen <= scores.len() && p.len() == scores.len() && p.len().is_multiple_of(32) && totals.len() == 16);
        if seen == 0 {
            p.fill(bf16::ZERO);
            return None;
        }
        let (scores, p, whole) = (scores.as_ptr(), p.as_mut_ptr(), seen / 32 * 32);
        // SAFETY: the token proves the instructions; the assertion bounds all addresses, masks those after `seen`.
        unsafe {
            let low = _mm512_set1_ps(f32::NEG_INFINITY);
            let (mut a, mut b) = (low, low);
            for c in (0..whole).step_by(32) {
                a = _mm512_max_ps(a, _mm512_loadu_ps(scores.add(c)));
                b = _mm512_max_ps(b, _mm512_loadu_ps(scores.add(c + 16)));
            }
            let masks = [lanes(seen - whole), lanes((seen - whole).saturating_sub(16))];
            if whole < seen {
                a = _mm512_max_ps(a, _mm512_mask_loadu_ps(low, masks[0], scores.add(whole)));
                b = _mm512_max_ps(b, _mm512_mask_loadu_ps(low, masks[1], scores.add(whole + 16)));
            }
            let greatest = _mm512_reduce_max_ps(_mm512_max_ps(a, b)) * self.factor;
            let mut total = _mm512_loadu_ps(totals.as_ptr());
            let mut shrink = None;
            if greatest > *most + SLACK {
                let factor = (*most - greatest).exp2();
                total = _mm512_mul_ps(total, _mm512_set1_ps(factor));
                *most = greatest;
                shrink = Some(factor);
            }
            let (factor, shift) = (_mm512_set1_ps(self.factor), _mm512_set1_ps(*most));
            let mut second = _mm512_setzero_ps();
            for c in (0..whole).step_by(32) {
                let a = exp2_near(s, _mm512_fmsub_ps(_mm512_loadu_ps(scores.add(c)), factor, shift));
                let b = exp2_near(s, _mm512_fmsub_ps(_mm512_loadu_ps(scores.add(c + 16)), factor, shift));
                total = _mm512_add_ps(total, a);
                second = _mm512_add_ps(second, b);
                _mm512_storeu_si512(p.add(c).cast(), round2(a, b));
            }
            if whole < seen {
                let a =
                    exp2_near(s, _mm512_fmsub_ps(_mm512_maskz_loadu_ps(masks[0], scores.add(whole)), factor, shift));
                let b = exp2_near(
                    s,
                    _mm512_fmsub_ps(_mm512_maskz_loadu_ps(masks[1], scores.add(whole + 16)), factor, shift),
                );
                let (a, b) = (_mm512_maskz_mov_ps(masks[0], a), _mm512_maskz_mov_ps(masks[1], b));
                total = _mm512_add_ps(total, a);
                second = _mm512_add_ps(second, b);
                _mm512_storeu_si512(p.add(whole).cast(), round2(a, b));
            }
            for c in (seen.next_multiple_of(32)..self.scores.len()).step_by(32) {
                _mm512_storeu_si512(p.add(c).cast(), _mm512_setzero_si512());
            }
            _mm512_storeu_ps(totals.as_mut_ptr(), _mm512_add_ps(total, second));
            shrink
        }
    }

    /// [`SoftmaxRow::run`] of exponents within [`BOUND`], with nothing subtracted.
    #[inline(always)]
    fn run_bounded(&self, s: Avx512Bf16, totals: &mut [f32], p: &mut [bf16]) {
        let (scores, seen) = (self.scores, self.seen);
        assert!(seen <= scores.len() && p.len() == scores.len() && p.len().is_multiple_of(32) && totals.len() == 16);
        let (scores, p, whole) = (scores.as_ptr(), p.as_mut_ptr(), seen / 32 * 32);
        // SAFETY: the token proves the instructions; the assertion bounds all addresses, masks those after `seen`.
        unsafe {
            let factor = _mm512_set1_ps(self.factor);
            let mut total = [_mm512_loadu_ps(totals.as_ptr()), _mm512_setzero_ps()];
            for c in (0..whole).step_by(32) {
                let a = exp2_near(s, _mm512_mul_ps(_mm512_loadu_ps(scores.add(c)), factor));
                let b = exp2_near(s, _mm512_mul_ps(_mm512_loadu_ps(scores.add(c + 16)), factor));
                total = [_mm512_add_ps(total[0], a), _mm512_add_ps(total[1], b)];
                _mm512_storeu_si512(p.add(c).cast(), round2(a, b));
            }
            if whole < seen {
                let masks = [lanes(seen - whole), lanes((seen - whole).saturating_sub(16))];
                let [a, b] = [0, 16].map(|half| _mm512_maskz_loadu_ps(masks[half / 16], scores.add(whole + half)));
                let a = _mm512_maskz_mov_ps(masks[0], exp2_near(s, _mm512_mul_ps(a, factor)));
                let b = _mm512_maskz_mov_ps(masks[1], exp2_near(s, _mm512_mul_ps(b, factor)));
                total = [_mm512_add_ps(total[0], a), _mm512_add_ps(total[1], b)];
                _mm512_storeu_si512(p.add(whole).cast(), round2(a, b));
            }
            for c in (seen.next_multiple_of(32)..self.scores.len()).step_by(32) {
                _mm512_storeu_si512(p.add(c).cast(), _mm512_setzero_si512());
            }
            _mm512_storeu_ps(totals.as_mut_ptr(), _mm512_add_ps(total[0], total[1]));
        }
    }
}

/// What the backward pass reads, besides the shape.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    pub q: &'a [bf16],
    pub k: &'a [bf16],
    pub v: &'a [bf16],
    pub out: &'a [bf16],
    pub lse: &'a [f32],
    pub dout: &'a [bf16],
}

/// [`crate::attention_backward`] for bf16, to dq, dk and dv; `false` like [`forward`].
pub fn backward(shape: &AttentionShape, saved: Saved, [dq, dk, dv]: [&mut [bf16]; 3]) -> bool {
    if !suits(shape) {
        return false;
    }
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    dispatch16!(
        |kernel| {
            Backward::new(kernel, shape, saved, [&dq, &dk, &dv]).run();
            true
        },
        false
    )
}

struct Backward<'a, K> {
    kernel: K,
    shape: &'a AttentionShape,
    saved: Saved<'a>,
    gradients: [&'a SharedMut<'a, bf16>; 3],
    /// Queries of a block.
    block: usize,
    /// Inner dimension of products over channels.
    depth: usize,
    /// Columns of panels of channels.
    wide: usize,
    /// Distance of the rows of dQ^T, of one block of queries.
    dq_stride: usize,
}

impl<'a, K: Kernel16> Backward<'a, K> {
    fn new(kernel: K, shape: &'a AttentionShape, saved: Saved<'a>, gradients: [&'a SharedMut<'a, bf16>; 3]) -> Self {
        let block = QUERIES.min(shape.query_tokens.next_multiple_of(32)).max(32);
        let (depth, wide) = (shape.head_dim.next_multiple_of(K::K_STEP), line(shape.head_dim));
        Self { kernel, shape, saved, gradients, block, depth, wide, dq_stride: block + 16 }
    }

    fn blocks(&self) -> usize {
        self.shape.query_tokens.div_ceil(self.block)
    }

    /// What a head's keys need of block `i` of the queries, as ranges of the head's prepared memory: Q^T, dO^T, Q and dO,
    /// packed as right operands; lse to base 2; rowsum(dO * O).
    #[inline(always)]
    fn prepared(&self, i: usize) -> [Range<usize>; 6] {
        let total = self.shape.query_tokens.next_multiple_of(32);
        let mut begin = 0;
        [self.depth, self.depth, self.wide, self.wide, 2, 2].map(|width| {
            let first = i * self.block * width / 2;
            let len = self.block.min(total - i * self.block) * width / 2;
            let range = begin + first..begin + first + len;
            begin += total * width / 2;
            range
        })
    }

    /// Length of the prepared memory of a head.
    fn prepared_len(&self) -> usize {
        let total = self.shape.query_tokens.next_multiple_of(32);
        (total * (self.depth + self.wide + 2)).next_multiple_of(16)
    }

    /// Length of a block of dQ^T.
    fn dq_len(&self) -> usize {
        room(self.shape.head_dim) * self.dq_stride
    }

    fn run(&self) {
        let (heads, blocks) = (self.shape.batch * self.shape.heads, self.blocks());
        let (len, dq_len) = (self.prepared_len(), blocks * self.dq_len());
        let units = self.shape.key_tokens.div_ceil(key_rows::<K>());
        let affordable = PARTIAL / (heads * dq_len).max(1);
        let groups = tasks_of_head(self.shape, units, TASKS / 2).min(affordable).max(1);
        let keys = units.div_ceil(groups) * key_rows::<K>();
        let groups = self.shape.key_tokens.div_ceil(keys);
        if groups == 1 {
            return parallel_for(heads, |head| {
                self.kernel.run(
                    #[inline(always)]
                    || {
                        with_scratch(
                            len + dq_len,
                            #[inline(always)]
                            |memory| {
                                let (prepared, dq) = memory.split_at_mut(len);
                                let shared = SharedMut::new(prepared);
                                for block in 0..blocks {
                                    self.prepare(head, block, (&shared, 0));
                                }
                                self.task(head, 0..self.shape.key_tokens, prepared, dq);
                                for (block, dq) in dq.chunks_exact_mut(self.dq_len()).enumerate() {
                                    self.write_queries(head, block, dq);
                                }
                            },
                        );
                    },
                );
            });
        }
        with_scratch(heads * len, |prepared| {
            let shared = SharedMut::new(prepared);
            parallel_for(heads * blocks, |task| {
                let head = task / blocks;
                self.kernel.run(
                    #[inline(always)]
                    || self.prepare(head, task % blocks, (&shared, head * len)),
                );
            });
            with_scratch(heads * groups * dq_len, |sums| {
                let sums = SharedMut::new(sums);
                parallel_for(heads * groups, |task| {
                    let (head, first) = (task / groups, task % groups * keys);
                    let range = first..(first + keys).min(self.shape.key_tokens);
                    // SAFETY: tasks have different parts.
                    let dq = unsafe { sums.range(task * dq_len..(task + 1) * dq_len) };
                    self.kernel.run(
                        #[inline(always)]
                        || self.task(head, range, &prepared[head * len..][..len], dq),
                    );
                });
                parallel_for(heads * blocks, |task| {
                    let (head, block) = (task / blocks, task % blocks);
                    self.kernel.run(
                        #[inline(always)]
                        || self.add_and_write_queries(head, block, groups, &sums),
                    );
                });
            });
        });
    }

    /// Fills block `i` of a head's prepared memory, which begins at `begin`.
    #[inline(always)]
    fn prepare(&self, head: usize, i: usize, (memory, begin): (&SharedMut<f32>, usize)) {
        let (kernel, shape, d) = (self.kernel, self.shape, self.shape.head_dim);
        let tokens = shape.query_tokens;
        let at = (i * self.block, self.block.min(tokens - i * self.block));
        let parts = self.prepared(i).map(
            #[inline(always)]
            // SAFETY: parts and blocks do not overlap.
            |range| unsafe { memory.range(begin + range.start..begin + range.end) },
        );
        let [q_columns, dout_columns, q_rows, dout_rows, lse, delta] = parts;
        let head_of = |all| shape.head(all, tokens, head);
        let (q, dout, out) = (head_of(self.saved.q), head_of(self.saved.dout), head_of(self.saved.out));
        for (source, columns, rows) in [(q, q_columns, q_rows), (dout, dout_columns, dout_rows)] {
            pack_b(kernel, &Operand { source, k_rows: false }, (0, d), at, bytemuck::cast_slice_mut(columns));
            pack_b(kernel, &Operand { source, k_rows: true }, at, (0, d), bytemuck::cast_slice_mut(rows));
        }
        // Queries that do not exist get probabilities of 2^-infinity.
        lse.fill(f32::INFINITY);
        delta.fill(0.0);
        for c in 0..at.1 {
            let row = (at.0 + c) * q.stride..(at.0 + c) * q.stride + d;
            lse[c] = self.saved.lse[head * tokens + at.0 + c] * std::f32::consts::LOG2_E;
            delta[c] = dot(kernel.vectors(), &out.data[row.clone()], &dout.data[row]);
        }
    }

    /// Gradients of a range of keys, and their part of dQ^T.
    #[inline(always)]
    fn task(&self, head: usize, range: Range<usize>, prepared: &[f32], dq: &mut [f32]) {
        let (kernel, shape, d) = (self.kernel, self.shape, self.shape.head_dim);
        let (depth, queries, keys) = (self.depth, shape.query_tokens, key_rows::<K>().min(range.len()));
        let (rows_stride, columns_stride, p_stride) = (stride::<K>(depth), stride::<K>(keys), stride::<K>(self.block));
        let (score_stride, sums_stride) = (sum_stride(self.block), sum_stride(d));
        let sub = score_rows::<K>();
        let sizes = [
            room(keys) * rows_stride / 2,               // K
            room(keys) * rows_stride / 2,               // V
            room(d) * columns_stride / 2,               // K^T
            room(sub) * score_stride,                   // S^T
            room(sub) * score_stride,                   // dP^T
            room(keys) * p_stride / 2,                  // P^T
            room(keys) * p_stride / 2,                  // dS^T
            keys.next_multiple_of(32) * self.block / 2, // dS^T, pairs of rows interleaved, in panels
            room(keys) * sums_stride,                   // dK
            room(keys) * sums_stride,                   // dV
        ];
        let k = shape.head(self.saved.k, shape.key_tokens, head);
        let v = shape.head(self.saved.v, shape.key_tokens, head);
        let k_columns = Operand { source: k, k_rows: true };
        // Queries before all of these keys get nothing from them.
        dq[..self.first_block(range.start) * self.dq_len()].fill(0.0);
        with_scratch(
            sizes.iter().sum(),
            #[inline(always)]
            |memory| {
                let [k_rows, v_rows, kt, scores, slopes, p, ds, pairs, dk, dv] = carve(memory, sizes);
                if line(queries) < queries.next_multiple_of(32) {
                    // Not every column is written, but all must be finite: they meet probabilities of zero.
                    scores.fill(0.0);
                    slopes.fill(0.0);
                }
                let [k_rows, v_rows, kt, p, ds, pairs] =
                    [k_rows, v_rows, kt, p, ds, pairs].map(bytemuck::cast_slice_mut::<f32, bf16>);
                for j in range.clone().step_by(keys) {
                    let n = keys.min(range.end - j);
                    let padded = n.next_multiple_of(K::K_STEP);
                    pack_rows(kernel, &k, (j, n), d, k_rows, rows_stride);
                    pack_rows(kernel, &v, (j, n), d, v_rows, rows_stride);
                    for rows in [&mut *k_rows, v_rows] {
                        // What fills the last tile makes scores, too.
                        rows[n * rows_stride..n.next_multiple_of(16) * rows_stride].fill(bf16::ZERO);
                    }
                    pack_transposed(kernel.vectors(), &k_columns, (j, n), (0, d), kt, columns_stride);
                    let first = self.first_block(j);
                    if first == self.blocks() {
                        dk.fill(0.0);
                        dv.fill(0.0);
                    }
                    for i in first..self.blocks() {
                        let i0 = i * self.block;
                        let m = self.block.min(queries - i0);
                        let (m_step, m_even) = (m.next_multiple_of(K::K_STEP), m.next_multiple_of(32));
                        let parts = self.prepared(i);
                        let [q_columns, dout_columns, q_rows, dout_rows, lse, delta] = parts.map(
                            #[inline(always)]
                            |range| &prepared[range],
                        );
                        for r in (0..n).step_by(sub) {
                            let rows = sub.min(n - r);
                            let right = bytemuck::cast_slice(q_columns);
                            let left = (&k_rows[r * rows_stride..], rows_stride);
                            multiply(kernel, (rows, m, depth), left, right, (scores, score_stride), false);
                            let right = bytemuck::cast_slice(dout_columns);
                            let left = (&v_rows[r * rows_stride..], rows_stride);
                            multiply(kernel, (rows, m, depth), left, right, (slopes, score_stride), false);
                            for c in (0..rows).step_by(2) {
                                let hidden = |row: usize| match (row < n, shape.causal) {
                                    (true, true) => (j + row).saturating_sub(i0).min(m_even),
                                    (true, false) => 0,
                                    (false, _) => m_even,
                                };
                                SlopeRows {
                                    scores: [c, c + 1].map(|c| &scores[c * score_stride..][..m_even]),
                                    slopes: [c, c + 1].map(|c| &slopes[c * score_stride..][..m_even]),
                                    lse: &lse[..m_even],
                                    delta: &delta[..m_even],
                                    hidden: [hidden(r + c), hidden(r + c + 1)],
                                    factor: exponent_factor(shape),
                                }
                                .run(
                                    kernel.vectors(),
                                    (&mut p[(r + c) * p_stride..], p_stride),
                                    (&mut ds[(r + c) * p_stride..], p_stride),
                                    (&mut pairs[(r + c) * 32..], padded * 32),
                                );
                            }
                        }
                        for panel in pairs.chunks_exact_mut(padded * 32).take(m_even / 32) {
                            panel[n.next_multiple_of(2) * 32..].fill(bf16::ZERO);
                        }
                        let right = bytemuck::cast_slice(dout_rows);
                        multiply(kernel, (n, d, m_step), (p, p_stride), right, (dv, sums_stride), i > first);
                        let right = bytemuck::cast_slice(q_rows);
                        multiply(kernel, (n, d, m_step), (ds, p_stride), right, (dk, sums_stride), i > first);
                        let sums = (&mut dq[i * self.dq_len()..][..self.dq_len()], self.dq_stride);
                        multiply(kernel, (d, m_even, padded), (kt, columns_stride), pairs, sums, j > range.start);
                    }
                    for i in 0..n {
                        let [_, to_k, to_v] = self.gradients;
                        self.write(to_k, (head, j + i, shape.key_tokens), &dk[i * sums_stride..], shape.scale);
                        self.write(to_v, (head, j + i, shape.key_tokens), &dv[i * sums_stride..], 1.0);
                    }
                }
            },
        );
    }

    /// The first block of queries of which one sees key `j`; the number of blocks if there is none.
    #[inline(always)]
    fn first_block(&self, j: usize) -> usize {
        if !self.shape.causal {
            0
        } else if j < self.shape.query_tokens {
            j / self.block
        } else {
            self.blocks()
        }
    }

    /// Adds the parts of dQ^T of all groups of keys, in their order, for one block of queries.
    #[inline(always)]
    fn add_and_write_queries(&self, head: usize, block: usize, groups: usize, sums: &SharedMut<f32>) {
        let (s, len) = (self.kernel.vectors(), self.dq_len());
        let part = |group: usize| {
            let begin = ((head * groups + group) * self.blocks() + block) * len;
            // SAFETY: each block of queries of a head belongs to one task.
            unsafe { sums.range(begin..begin + len) }
        };
        let total = part(0);
        for group in 1..groups {
            for (to, from) in total.chunks_exact_mut(16).zip(part(group).chunks_exact(16)) {
                s.store(s.add(s.load(to), s.load(from)), to);
            }
        }
        self.write_queries(head, block, total);
    }

    /// Transposes and stores the gradients of a block of queries.
    #[inline(always)]
    fn write_queries(&self, head: usize, block: usize, sums: &[f32]) {
        let s = self.kernel.vectors();
        let (first, tokens) = (block * self.block, self.shape.query_tokens);
        let m = self.block.min(tokens - first);
        with_scratch(
            32 * self.wide,
            #[inline(always)]
            |rows| {
                for c in (0..m).step_by(32) {
                    for e in (0..self.shape.head_dim).step_by(16) {
                        for half in [0, 16] {
                            let from = &sums[e * self.dq_stride + c + half..];
                            s.transpose(from, self.dq_stride, &mut rows[half * self.wide + e..], self.wide);
                        }
                    }
                    for (place, row) in rows.chunks_exact(self.wide).enumerate() {
                        let query = c + interleaved(place);
                        if query < m {
                            self.write(self.gradients[0], (head, first + query, tokens), row, self.shape.scale);
                        }
                    }
                }
            },
        );
    }

    /// Stores a token's gradient, times `factor`.
    #[inline(always)]
    fn write(&self, to: &SharedMut<bf16>, (head, token, tokens): (usize, usize, usize), from: &[f32], factor: f32) {
        let (s, shape, d) = (self.kernel.vectors(), self.shape, self.shape.head_dim);
        let (b, h) = (head / shape.heads, head % shape.heads);
        let at = ((b * tokens + token) * shape.heads + h) * d;
        // SAFETY: every (batch, head, token) belongs to one task, and is written once.
        let to = unsafe { to.range(at..at + d) };
        let factor = s.splat(factor);
        map1(
            s,
            &from[..d],
            to,
            #[inline(always)]
            |v| s.mul(v, factor),
        );
    }
}

/// The column, of 32, that stands at `place` of a panel that [`SlopeRows`] writes: the instruction interleaves inside
/// quarters of a vector, first their lower halves.
fn interleaved(place: usize) -> usize {
    place % 16 / 4 * 8 + place % 4 + place / 16 * 4
}

/// Two keys' scores with a block of queries, whose number is a multiple of 32.
struct SlopeRows<'a> {
    scores: [&'a [f32]; 2],
    /// Gradients of the probabilities.
    slopes: [&'a [f32]; 2],
    /// To base 2.
    lse: &'a [f32],
    delta: &'a [f32],
    /// How many queries, from the first on, do not see the key.
    hidden: [usize; 2],
    /// Makes scores exponents to base 2.
    factor: f32,
}

impl SlopeRows<'_> {
    /// Writes two rows of P^T and dS^T, and the latter once more with the two rows interleaved, to one line of each panel
    /// of 32 queries; panels lie `pairs.1` apart.
    #[inline(always)]
    fn run(&self, token: Avx512Bf16, p: (&mut [bf16], usize), ds: (&mut [bf16], usize), pairs: (&mut [bf16], usize)) {
        if self.hidden == [0; 2] {
            self.run_masked::<false>(token, p, ds, pairs);
        } else {
            self.run_masked::<true>(token, p, ds, pairs);
        }
    }

    #[inline(always)]
    fn run_masked<const MASKED: bool>(
        &self,
        s: Avx512Bf16,
        (p, p_stride): (&mut [bf16], usize),
        (ds, ds_stride): (&mut [bf16], usize),
        (pairs, panel): (&mut [bf16], usize),
    ) {
        let m = self.lse.len();
        assert!(m > 0 && m.is_multiple_of(32) && self.delta.len() == m);
        assert!(self.scores.iter().chain(&self.slopes).all(|row| row.len() == m));
        assert!(p.len() >= p_stride + m && ds.len() >= ds_stride + m && pairs.len() >= (m / 32 - 1) * panel + 64);
        // SAFETY: the token proves the instructions; the assertions bound all addresses.
        unsafe {
            let factor = _mm512_set1_ps(self.factor);
            for c in (0..m).step_by(32) {
                let lse = [0, 16].map(|half| _mm512_loadu_ps(self.lse.as_ptr().add(c + half)));
                let delta = [0, 16].map(|half| _mm512_loadu_ps(self.delta.as_ptr().add(c + half)));
                let mut both = [_mm512_setzero_si512(); 2];
                for row in 0..2 {
                    let mut values = [[_mm512_setzero_ps(); 2]; 2];
                    for half in 0..2 {
                        let at = c + 16 * half;
                        let score = _mm512_loadu_ps(self.scores[row].as_ptr().add(at));
                        let slope = _mm512_loadu_ps(self.slopes[row].as_ptr().add(at));
                        let mut p = exp2_near(s, _mm512_fmsub_ps(score, factor, lse[half]));
                        let mut ds = _mm512_mul_ps(p, _mm512_sub_ps(slope, delta[half]));
                        if MASKED {
                            let seen = !lanes(self.hidden[row].saturating_sub(at));
                            p = _mm512_maskz_mov_ps(seen, p);
                            ds = _mm512_maskz_mov_ps(seen, ds);
                        }
                        values[0][half] = p;
                        values[1][half] = ds;
                    }
                    both[row] = round2(values[1][0], values[1][1]);
                    let rounded = round2(values[0][0], values[0][1]);
                    _mm512_storeu_si512(p.as_mut_ptr().add(row * p_stride + c).cast(), rounded);
                    _mm512_storeu_si512(ds.as_mut_ptr().add(row * ds_stride + c).cast(), both[row]);
                }
                let to = pairs.as_mut_ptr().add(c / 32 * panel);
                _mm512_storeu_si512(to.cast(), _mm512_unpacklo_epi16(both[0], both[1]));
                _mm512_storeu_si512(to.add(32).cast(), _mm512_unpackhi_epi16(both[0], both[1]));
            }
        }
    }
}
