//! The forward pass.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::math::store_up_to;
use crate::scratch::Line;

/// [`crate::attention_forward`] for bf16; `false`, with nothing done, if there are no instructions for it or the shape is
/// out of the ordinary.
pub fn forward(shape: &AttentionShape, q: &[bf16], k: &[bf16], v: &[bf16], out: &mut [bf16], lse: &mut [f32]) -> bool {
    if !suits(shape) {
        return false;
    }
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    let finish = Finish { shape, out: &out, lse: &lse };
    let heads = match bf16_isa() {
        Bf16Isa::Amx(amx) if fused::suits(shape) => fused::forward(amx, shape, [q, k, v], &finish),
        Bf16Isa::Avx512(s) if lanes::suits(shape) => lanes::forward(s, shape, [q, k, v], &finish),
        _ => (0..shape.batch * shape.heads).collect(),
    };
    dispatch16!(
        |kernel| {
            Forward { kernel, shape, q, k, v, finish: &finish }.run(&heads);
            true
        },
        false
    )
}

/// True if exponents are within [`BOUND`], by the greatest squared length of a query, and those of keys: by Cauchy and Schwarz, no
/// score is beyond the product of the lengths. False for what is not a number.
pub(super) fn bounded_by(shape: &AttentionShape, longest_keys: &[f32]) -> impl Fn(f32) -> bool + use<> {
    let limit = BOUND / exponent_factor(shape);
    let longest_key = longest_keys.iter().fold(0.0f32, |a, &b| if a.is_nan() || b <= a { a } else { b });
    move |longest_query| longest_query * longest_key <= limit * limit
}

/// The cut of the work: keys of each head are packed in blocks, then parts of its queries are done.
pub(super) struct Cut<'a> {
    pub shape: &'a AttentionShape,
    /// Number of heads that are done.
    pub heads: usize,
    /// Length of the packed keys of a head.
    pub packed: usize,
    pub blocks: usize,
    /// Queries that are not divided.
    pub unit: usize,
}

impl Cut<'_> {
    /// Calls `pack` with a head, a block, the memory and where the head's begins, and `task` with a head, some of its queries, and its
    /// memory; returns the heads one of whose tasks returned `false`. If a head is not divided, its thread also packs it.
    pub fn run(
        &self,
        pack: impl Fn(usize, usize, &SharedMut<f32>, usize) + Sync,
        task: impl Fn(usize, Range<usize>, &[f32]) -> bool + Sync,
    ) -> Vec<usize> {
        let failed: Vec<AtomicBool> = (0..self.heads).map(|_| AtomicBool::new(false)).collect();
        self.run_all(pack, |head, queries, packed| {
            failed[head].fetch_or(!task(head, queries, packed), Ordering::Relaxed);
        });
        (0..self.heads).filter(|&head| failed[head].load(Ordering::Relaxed)).collect()
    }

    fn run_all(
        &self,
        pack: impl Fn(usize, usize, &SharedMut<f32>, usize) + Sync,
        task: impl Fn(usize, Range<usize>, &[f32]) + Sync,
    ) {
        let (queries, blocks, len) = (self.shape.query_tokens, self.blocks, self.packed);
        let parts = tasks_of_head(self.shape, queries.div_ceil(self.unit), 2 * TASKS);
        let rows = queries.div_ceil(parts).next_multiple_of(self.unit);
        if rows >= queries {
            return parallel_for(self.heads, |head| {
                with_scratch(len, |packed| {
                    let shared = SharedMut::new(packed);
                    (0..blocks).for_each(|block| pack(head, block, &shared, 0));
                    task(head, 0..queries, packed);
                });
            });
        }
        let parts = queries.div_ceil(rows);
        with_scratch(self.heads * len, |packed| {
            let shared = SharedMut::new(packed);
            parallel_for(self.heads * blocks, |i| pack(i / blocks, i % blocks, &shared, i / blocks * len));
            parallel_for(self.heads * parts, |i| {
                let (head, first) = (i / parts, i % parts * rows);
                task(head, first..queries.min(first + rows), &packed[head * len..][..len]);
            });
        });
    }
}

struct Forward<'a, K> {
    kernel: K,
    shape: &'a AttentionShape,
    q: &'a [bf16],
    k: &'a [bf16],
    v: &'a [bf16],
    finish: &'a Finish<'a>,
}

impl<K: Kernel16> Forward<'_, K> {
    /// Length of the packed keys, and of the packed values, of a head, in pairs; and of the greatest squared length of a key
    /// of each block.
    fn packed(&self) -> [usize; 3] {
        let (keys, d) = (self.shape.key_tokens.next_multiple_of(32), self.shape.head_dim);
        [keys * d.next_multiple_of(K::K_STEP) / 2, keys * line(d) / 2, self.shape.key_tokens.div_ceil(key_columns(d))]
    }

    /// Does some of the heads.
    fn run(&self, heads: &[usize]) {
        let (shape, d) = (self.shape, self.shape.head_dim);
        Cut {
            shape,
            heads: heads.len(),
            packed: self.packed().iter().sum(),
            blocks: shape.key_tokens.div_ceil(key_columns(d)),
            unit: query_rows::<K>(d),
        }
        .run_all(
            |head, block, to, begin| {
                self.kernel.run(
                    #[inline(always)]
                    || self.pack(heads[head], block, to, begin),
                );
            },
            |head, queries, packed| {
                self.kernel.run(
                    #[inline(always)]
                    || self.task(heads[head], queries, packed),
                );
            },
        );
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

    /// Some queries of a head, with its packed keys and values.
    #[inline(always)]
    fn task(&self, head: usize, range: Range<usize>, packed: &[f32]) {
        let (keys, rest) = packed.split_at(self.packed()[0]);
        let (values, longest_keys) = rest.split_at(self.packed()[1]);
        let (keys, values): (&[bf16], &[bf16]) = (bytemuck::cast_slice(keys), bytemuck::cast_slice(values));
        let (kernel, shape, d) = (self.kernel, self.shape, self.shape.head_dim);
        let depth = d.next_multiple_of(K::K_STEP);
        let rows = query_rows::<K>(d).min(range.len());
        let longest = key_columns(d).min(shape.key_tokens.next_multiple_of(WIDTH));
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
            rows.next_multiple_of(16) * 16,
            rows.next_multiple_of(16),
        ];
        let q = shape.head(self.q, shape.query_tokens, head);
        let bounded = bounded_by(shape, longest_keys);
        with_scratch(
            sizes.iter().sum(),
            #[inline(always)]
            |memory| {
                let [queries, scores, p, sums, totals, most] = carve(memory, sizes);
                let [queries, p] = [queries, p].map(bytemuck::cast_slice_mut::<f32, bf16>);
                let mut walk = Walk { forward: self, keys, values, strides, queries, scores, p, sums, totals, most };
                for i0 in range.clone().step_by(rows) {
                    let block = (i0, rows.min(range.end - i0));
                    pack_rows(kernel, &q, block, d, walk.queries, walk.strides.queries);
                    let bounded =
                        shape.key_tokens >= BOUNDED_KEYS && bounded(longest_row(kernel.vectors(), &q, block, d));
                    if !(bounded && walk.run::<true>(block)) {
                        walk.run::<false>(block);
                    }
                    let sums = (&*walk.sums, walk.strides.sums);
                    self.finish.block(kernel.vectors(), (head, block.0, block.1), sums, (walk.totals, walk.most, None));
                }
            },
        );
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
    /// Of probabilities: 16 parts for each query; in the end one.
    totals: &'a mut [f32],
    /// The number that is subtracted from each query's exponents.
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
        add_totals(kernel.vectors(), self.totals, m) || !BOUNDED
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

/// Adds the 16 parts of each of `m` totals, which then stand one behind the other; `false` if one is not in [`TOTALS`].
#[inline(always)]
pub(super) fn add_totals(s: Avx512Bf16, totals: &mut [f32], m: usize) -> bool {
    let mut good = true;
    for i in (0..m).step_by(16) {
        let total = row_sums(s, &totals[i * 16..][..256]);
        s.store(total, &mut totals[i..i + 16]);
        good &= within_totals(s, total, m - i);
    }
    good
}

/// True if the first `count` of 16 totals, or all, are in [`TOTALS`].
#[inline(always)]
pub(super) fn within_totals(s: Avx512Bf16, total: __m512, count: usize) -> bool {
    let asked = lanes(count);
    // SAFETY: the token proves the instructions.
    asked
        == unsafe {
            let small = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(asked, total, s.splat(TOTALS.end));
            _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(small, total, s.splat(TOTALS.start))
        }
}

/// The place of a block of queries.
pub(super) struct Finish<'a> {
    pub shape: &'a AttentionShape,
    pub out: &'a SharedMut<'a, bf16>,
    pub lse: &'a SharedMut<'a, f32>,
}

impl Finish<'_> {
    /// Divides the sums of queries `i0..i0 + m` of a head, rows `stride` apart, by `weights`, or else the totals, and stores them, and
    /// lse, which also has what was subtracted from the exponents, `most`. All are padded to whole vectors.
    #[inline(always)]
    pub fn block(
        &self,
        s: Avx512Bf16,
        (head, i0, m): (usize, usize, usize),
        (sums, stride): (&[f32], usize),
        (totals, most, weights): (&mut [f32], &[f32], Option<&[f32]>),
    ) {
        let shape = self.shape;
        let (b, h) = (head / shape.heads, head % shape.heads);
        let at = head * shape.query_tokens + i0;
        // SAFETY: every (batch, head, query) belongs to one task.
        let lse = unsafe { self.lse.range(at..at + m) };
        for (i, lse) in lse.chunks_mut(16).enumerate() {
            let totals = &mut totals[i * 16..][..16];
            let (total, most) = (s.load(totals), s.load(&most[i * 16..]));
            store_up_to(s, s.fma(most, s.splat(std::f32::consts::LN_2), ln(s, total)), lse);
            let weight = weights.map_or(total, |weights| s.load(&weights[i * 16..]));
            s.store(s.div(s.splat(1.0), weight), totals);
        }
        for i in 0..m {
            let token = ((b * shape.query_tokens + i0 + i) * shape.heads + h) * shape.head_dim;
            // SAFETY: as above.
            let out = unsafe { self.out.range(token..token + shape.head_dim) };
            store_scaled(s, &sums[i * stride..][..shape.head_dim.next_multiple_of(16)], totals[i], out);
        }
    }
}

/// The sum of each of 16 rows of 16 values.
#[inline(always)]
fn row_sums(s: Avx512Bf16, rows: &[f32]) -> __m512 {
    let mut columns = [Line([0.0; 16]); 16];
    s.transpose(rows, 16, bytemuck::cast_slice_mut(&mut columns), 16);
    let mut sums = [s.splat(0.0); 4];
    for (i, column) in columns.iter().enumerate() {
        sums[i % 4] = s.add(sums[i % 4], s.load(&column.0));
    }
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}

/// Rounds `factor * from`, without what follows the end of `to`.
///
/// Rounding is by integers, because next to products of tiles the processor's own is slow; halves are rounded away from zero. What is
/// not a number stays so, because the lower half of products of bf16 that are none is zero.
#[inline(always)]
fn store_scaled(s: Avx512Bf16, from: &[f32], factor: f32, to: &mut [bf16]) {
    assert!(from.len() == to.len().next_multiple_of(16));
    // SAFETY: the token proves the instructions; the assertion and masks bound what is read and written.
    unsafe {
        let (factor, half) = (_mm512_set1_ps(factor), _mm512_set1_epi32(0x8000));
        // The upper halves of the words of two vectors.
        let upper = _mm512_add_epi16(
            _mm512_set1_epi16(1),
            _mm512_slli_epi16::<1>(_mm512_set_epi16(
                31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5,
                4, 3, 2, 1, 0,
            )),
        );
        for i in (0..to.len()).step_by(32) {
            let n = to.len() - i;
            let mut rounded = [_mm512_setzero_si512(); 2];
            for (j, rounded) in rounded.iter_mut().enumerate().take(n.div_ceil(16)) {
                let scaled = _mm512_mul_ps(s.load(&from[i + 16 * j..]), factor);
                *rounded = _mm512_add_epi32(_mm512_castps_si512(scaled), half);
            }
            let both = _mm512_permutex2var_epi16(rounded[0], upper, rounded[1]);
            // No wider than needed: the elements beside those of this head may be another thread's.
            let (to, mask) = (to.as_mut_ptr().add(i).cast(), !0u32 >> (32 - n.min(32)));
            match n {
                0..=8 => _mm_mask_storeu_epi16(to, mask as u8, _mm512_castsi512_si128(both)),
                9..=16 => _mm256_mask_storeu_epi16(to, mask as u16, _mm512_castsi512_si256(both)),
                _ => _mm512_mask_storeu_epi16(to, mask, both),
            }
        }
    }
}

/// The greatest squared length of some rows; not a number if one is none.
#[inline(always)]
pub(super) fn longest_row(s: Avx512Bf16, from: &Dense<bf16>, (first, count): (usize, usize), width: usize) -> f32 {
    let mut longest = Longest::new(s);
    for i in (first..first + count).step_by(16) {
        let mut squares = [Line([0.0; 16]); 16];
        for (square, i) in squares.iter_mut().zip(i..first + count) {
            let mut sum = s.splat(0.0);
            for row in from.data[i * from.stride..][..width].chunks(32) {
                sum = add_squares(s, load_half(s, row), sum);
            }
            s.store(sum, &mut square.0);
        }
        longest.update(s, &squares);
    }
    longest.get()
}

/// Up to 32 elements, and zeros.
#[inline(always)]
pub(super) fn load_half(_: Avx512Bf16, from: &[bf16]) -> __m512i {
    assert!(!from.is_empty() && from.len() <= 32);
    // SAFETY: the token proves the instruction; the mask bounds what is read.
    unsafe { _mm512_maskz_loadu_epi16(!0u32 >> (32 - from.len()), from.as_ptr().cast()) }
}

/// Adds the squares of 32 elements to 16 sums.
#[inline(always)]
pub(super) fn add_squares(_: Avx512Bf16, v: __m512i, sums: __m512) -> __m512 {
    // SAFETY: the token proves the instruction; both types are 64 bytes without invalid values.
    unsafe {
        let v = std::mem::transmute::<__m512i, __m512bh>(v);
        _mm512_dpbf16_ps(sums, v, v)
    }
}

/// The greatest squared length of rows.
#[derive(Clone, Copy)]
pub(super) struct Longest(__m512i);

impl Longest {
    #[inline(always)]
    pub fn new(_: Avx512Bf16) -> Self {
        // SAFETY: the token proves the instruction.
        Self(unsafe { _mm512_setzero_si512() })
    }

    /// Takes up 16 rows, of each 16 parts of its squared length.
    #[inline(always)]
    pub fn update(&mut self, s: Avx512Bf16, squares: &[Line; 16]) {
        let sums = row_sums(s, bytemuck::cast_slice(squares));
        // SAFETY: the token proves the instruction. As integers, numbers without sign are in the order of their size, and what is not
        // a number comes last.
        self.0 = unsafe { _mm512_max_epu32(self.0, _mm512_castps_si512(sums)) };
    }

    #[inline(always)]
    pub fn get(self) -> f32 {
        // SAFETY: only a token's owner can make this type.
        f32::from_bits(unsafe { _mm512_reduce_max_epu32(self.0) })
    }
}

/// One query's scores with a block of keys.
struct SoftmaxRow<'a> {
    /// Padded to a multiple of 32.
    scores: &'a [f32],
    /// Number of those that count.
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

/// Natural logarithm of positive normal numbers, within 2 ULP or, near 1, 1e-7; infinity for infinity, NaN for NaN.
///
/// The polynomial of Cephes `logf` for a mantissa from 0.75 to 1.5.
#[inline(always)]
fn ln(s: Avx512Bf16, x: __m512) -> __m512 {
    // SAFETY: the token proves the instructions.
    let (mantissa, exponent) = unsafe {
        let mantissa = _mm512_getmant_ps::<_MM_MANT_NORM_P75_1P5, _MM_MANT_SIGN_SRC>(x);
        (mantissa, _mm512_getexp_ps(_mm512_div_ps(x, mantissa)))
    };
    let z = s.sub(mantissa, s.splat(1.0));
    let mut p = s.splat(7.037_683_6e-2);
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = s.fma(p, z, s.splat(c));
    }
    let square = s.mul(z, z);
    let rest = s.fma(square, s.splat(-0.5), s.mul(s.mul(square, z), p));
    s.fma(exponent, s.splat(std::f32::consts::LN_2), s.add(z, rest))
}
