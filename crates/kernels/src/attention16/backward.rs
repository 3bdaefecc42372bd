//! The backward pass.

use super::*;

/// The inputs of the backward pass, besides the shape.
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
    let gradients = [&dq, &dk, &dv];
    if let (Bf16Isa::Avx512(s), true) = (bf16_isa(), lanes::suits(shape)) {
        lanes::backward(s, shape, saved, gradients);
        return true;
    }
    dispatch16!(
        |kernel| {
            Backward::new(kernel, shape, saved, gradients).run();
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

    /// The part of block `i` of the queries that a head's keys need, as ranges of the head's prepared memory: Q^T, dO^T, Q and dO,
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
        let [to_k, to_v] = [1, 2].map(|i| Rows::new(shape, self.gradients[i], head, shape.key_tokens));
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
                    for (to, sums, factor) in [(&to_k, &*dk, shape.scale), (&to_v, &*dv, 1.0)] {
                        for i in 0..n {
                            to.write(kernel.vectors(), j + i, &sums[i * sums_stride..], factor);
                        }
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
        let to = Rows::new(self.shape, self.gradients[0], head, tokens);
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
                            to.write(s, first + query, row, self.shape.scale);
                        }
                    }
                }
            },
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
    /// Number of queries, from the first on, that do not see the key.
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
