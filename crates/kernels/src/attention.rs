//! Scaled dot-product attention, tiled, with an online softmax: the scores never exist as a whole.
//!
//! Forward: Dao et al., "FlashAttention" (2022), with the later simplification that only the logarithm of the sum of
//! exponentials (lse) is kept for the backward pass.

#[cfg(target_arch = "x86_64")]
use crate::attention16::Saved;
use crate::element::Element;
use crate::math::{exp, load_up_to, map1, store_up_to};
use crate::product::{Dense, Operand, pack_b};
use crate::scratch::with_scratch;
use crate::simd::{Simd, dispatch};
use crate::threads::{SharedMut, parallel_for};
use crate::tile::{Ahead, KC, MicroKernel, ROW_STRIDE};

/// Shape of an attention. Queries and outputs are `[batch, query_tokens, heads * head_dim]`, keys and values
/// `[batch, key_tokens, heads * head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens that ask.
    pub query_tokens: usize,
    /// Tokens that are asked.
    pub key_tokens: usize,
    /// Independent heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Query i sees only keys j <= i.
    pub causal: bool,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

impl AttentionShape {
    /// Elements of q, out and their gradients.
    pub fn query_len(&self) -> usize {
        self.batch * self.query_tokens * self.channels()
    }

    /// Elements of k, v and their gradients.
    pub fn key_len(&self) -> usize {
        self.batch * self.key_tokens * self.channels()
    }

    /// Elements of lse.
    pub fn lse_len(&self) -> usize {
        self.batch * self.heads * self.query_tokens
    }

    pub(crate) fn channels(&self) -> usize {
        self.heads * self.head_dim
    }

    fn check(&self, op: &str, queries: &[usize], keys: &[usize], lse: usize) {
        let (q, k) = (self.query_len(), self.key_len());
        assert!(queries.iter().all(|&n| n == q), "{op}: query-like slices have {queries:?} elements, the shape {q}");
        assert!(keys.iter().all(|&n| n == k), "{op}: key-like slices have {keys:?} elements, the shape {k}");
        assert!(lse == self.lse_len(), "{op}: lse has {lse} elements, the shape {}", self.lse_len());
    }

    /// The matrix of one head: begins at the slice's beginning, rows `channels` apart.
    pub(crate) fn head<'a, T>(&self, all: &'a [T], tokens: usize, task: usize) -> Dense<'a, T> {
        let (b, h) = (task / self.heads, task % self.heads);
        let sequence = &all[b * tokens * self.channels()..][..tokens * self.channels()];
        let data = if tokens == 0 { sequence } else { &sequence[h * self.head_dim..] };
        Dense { data, stride: self.channels() }
    }

    /// Keys among `first..first + count` that query `i` sees.
    #[inline(always)]
    pub(crate) fn visible(&self, i: usize, first: usize, count: usize) -> usize {
        if self.causal { (i + 1).saturating_sub(first).min(count) } else { count }
    }
}

/// Splits memory into parts of the given sizes.
#[inline(always)]
pub(crate) fn carve<const N: usize>(mut memory: &mut [f32], sizes: [usize; N]) -> [&mut [f32]; N] {
    sizes.map(
        #[inline(always)]
        |size| {
            let (now, later) = std::mem::take(&mut memory).split_at_mut(size);
            memory = later;
            now
        },
    )
}

/// Keys of a block, a packed piece of the inner dimension of the second product.
const KEYS: usize = KC;

/// Queries of a block of one task: the packed keys are used by that many.
const TASK_QUERIES: usize = 1024;

/// Writes rows `first..first + count` of `from`, times `factor`, as a packed left operand: pieces of [`KC`] columns,
/// each row-major with [`ROW_STRIDE`].
#[inline(always)]
fn pack_rows<S: Simd, T: Element>(
    s: S,
    from: &Dense<T>,
    (first, count): (usize, usize),
    width: usize,
    factor: f32,
    to: &mut [f32],
) {
    let factor = s.splat(factor);
    for (piece, c) in (0..width).step_by(KC).enumerate() {
        let len = KC.min(width - c);
        for i in 0..count {
            let begin = (first + i) * from.stride + c;
            let to = &mut to[(piece * count + i) * ROW_STRIDE..][..len];
            map1(
                s,
                &from.data[begin..begin + len],
                to,
                #[inline(always)]
                |v| s.mul(v, factor),
            );
        }
    }
}

/// A packed left operand.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// From [`pack_rows`] or with at most [`KC`] columns, row-major with [`ROW_STRIDE`].
    Rows(&'a [f32]),
    /// Element (i, p) at `p * ROW_STRIDE + i`.
    Columns(&'a [f32]),
}

/// `c[m, n] (+)= a[m, k] b[k, n]`, b packed by [`pack_b`] as one piece, rows of c `stride` apart and padded to whole
/// vectors.
#[inline(always)]
fn multiply<S: MicroKernel>(
    s: S,
    (m, n, k): (usize, usize, usize),
    a: Left,
    b: &[f32],
    (c, stride): (&mut [f32], usize),
    accumulate: bool,
) {
    for (piece, p) in (0..k).step_by(KC).enumerate() {
        let depth = KC.min(k - p);
        for j in (0..n).step_by(S::WIDTH) {
            let vectors = (n - j).min(S::WIDTH).div_ceil(S::LANES);
            let width = vectors * S::LANES;
            let b = &b[j * k + p * width..][..depth * width];
            for i in (0..m).step_by(S::ROWS) {
                let rows = S::ROWS.min(m - i);
                let c = &mut c[i * stride + j..][..(rows - 1) * stride + width];
                let (a, columns) = match a {
                    Left::Rows(a) => {
                        let a = &a[(piece * m + i) * ROW_STRIDE..][..(rows - 1) * ROW_STRIDE + depth];
                        (a, false)
                    }
                    Left::Columns(a) => (&a[p * ROW_STRIDE + i..][..(depth - 1) * ROW_STRIDE + rows], true),
                };
                let run = s.tile(rows, vectors, columns);
                // SAFETY: `s` proves the instruction set; the slices are as long as the tile reads and writes.
                unsafe {
                    run(
                        depth,
                        a.as_ptr(),
                        ROW_STRIDE,
                        b.as_ptr(),
                        c.as_mut_ptr(),
                        stride,
                        accumulate || piece > 0,
                        &Ahead::nothing(b.as_ptr()),
                    )
                };
            }
        }
    }
}

/// See [`crate::attention_forward`].
pub(crate) fn attention_forward<T: Element>(
    shape: &AttentionShape,
    q: &[T],
    k: &[T],
    v: &[T],
    out: &mut [T],
    lse: &mut [f32],
) {
    shape.check("attention_forward", &[q.len(), out.len()], &[k.len(), v.len()], lse.len());
    #[cfg(target_arch = "x86_64")]
    if let (Some(q), Some(k), Some(v)) = (T::as_half(q), T::as_half(k), T::as_half(v))
        && let Some(out) = T::as_half_mut(out)
        && crate::attention16::forward(shape, q, k, v, out, lse)
    {
        return;
    }
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    let blocks = shape.query_tokens.div_ceil(TASK_QUERIES);
    parallel_for(shape.batch * shape.heads * blocks, |task| {
        let (head, block) = (task / blocks, task % blocks);
        let first = block * TASK_QUERIES;
        let count = TASK_QUERIES.min(shape.query_tokens - first);
        dispatch!(|s| forward_task(s, shape, head, (first, count), (q, k, v), &out, &lse));
    });
}

#[inline(always)]
fn forward_task<S: MicroKernel, T: Element>(
    s: S,
    shape: &AttentionShape,
    head: usize,
    (first, count): (usize, usize),
    (q, k, v): (&[T], &[T], &[T]),
    out: &SharedMut<T>,
    lse: &SharedMut<f32>,
) {
    let (d, keys) = (shape.head_dim, shape.key_tokens);
    let q = shape.head(q, shape.query_tokens, head);
    let k = Operand { source: shape.head(k, keys, head), k_rows: false };
    let v = Operand { source: shape.head(v, keys, head), k_rows: true };
    let block = 4 * S::ROWS;
    let wide = d.next_multiple_of(S::LANES);
    let padded = keys.next_multiple_of(S::LANES);
    let sizes =
        [padded * d, keys * wide, block * ROW_STRIDE * d.div_ceil(KC), block * ROW_STRIDE, block * wide, block, block];
    let sizes = sizes.map(|size| size.next_multiple_of(16));
    with_scratch(
        sizes.iter().sum(),
        #[inline(always)]
        |memory| {
            let [kt, vp, qp, scores, sums, greatest, total] = carve(memory, sizes);
            for j in (0..keys).step_by(KEYS) {
                let n = KEYS.min(keys - j);
                pack_b(s, &k, (0, d), (j, n), &mut kt[j * d..][..n.next_multiple_of(S::LANES) * d]);
                pack_b(s, &v, (j, n), (0, d), &mut vp[j * wide..][..n * wide]);
            }
            for i0 in (first..first + count).step_by(block) {
                let m = block.min(first + count - i0);
                pack_rows(s, &q, (i0, m), d, shape.scale, qp);
                greatest.fill(f32::NEG_INFINITY);
                total.fill(0.0);
                sums.fill(0.0);
                for j in (0..keys).step_by(KEYS) {
                    let n = KEYS.min(keys - j);
                    if shape.visible(i0 + m - 1, j, n) == 0 {
                        break;
                    }
                    multiply(s, (m, n, d), Left::Rows(qp), &kt[j * d..], (scores, ROW_STRIDE), false);
                    for i in 0..m {
                        let seen = shape.visible(i0 + i, j, n);
                        let row = &mut scores[i * ROW_STRIDE..][..n];
                        let (row, hidden) = row.split_at_mut(seen);
                        hidden.fill(0.0);
                        if seen == 0 {
                            continue;
                        }
                        let before = greatest[i];
                        let most = row_max(s, row).max(before);
                        let sum = exp_row(s, row, most);
                        if j == 0 {
                            total[i] = sum;
                        } else {
                            let shrink = exp_one(s, before - most);
                            total[i] = total[i] * shrink + sum;
                            let factor = s.splat(shrink);
                            for sums in sums[i * wide..][..wide].chunks_exact_mut(S::LANES) {
                                s.store(s.mul(s.load(sums), factor), sums);
                            }
                        }
                        greatest[i] = most;
                    }
                    multiply(s, (m, d, n), Left::Rows(scores), &vp[j * wide..], (sums, wide), j > 0);
                }
                let (b, h) = (head / shape.heads, head % shape.heads);
                for i in 0..m {
                    let token = (b * shape.query_tokens + i0 + i) * shape.channels() + h * d;
                    // SAFETY: every (batch, head, query) belongs to one task, and is written once.
                    let (out, lse) = unsafe {
                        let at = head * shape.query_tokens + i0 + i;
                        (out.range(token..token + d), lse.range(at..at + 1))
                    };
                    let empty = total[i] == 0.0;
                    let factor = s.splat(if empty { 0.0 } else { 1.0 / total[i] });
                    map1(
                        s,
                        &sums[i * wide..][..d],
                        out,
                        #[inline(always)]
                        |v| s.mul(v, factor),
                    );
                    lse[0] = if empty { f32::NEG_INFINITY } else { greatest[i] + total[i].ln() };
                }
            }
        },
    );
}

/// Greatest element of a row that is not empty.
#[inline(always)]
fn row_max<S: Simd>(s: S, row: &[f32]) -> f32 {
    let mut best = s.splat(f32::NEG_INFINITY);
    let whole = row.len() / S::LANES * S::LANES;
    for part in row[..whole].chunks_exact(S::LANES) {
        best = s.max(best, s.load(part));
    }
    row[whole..].iter().fold(s.max_lane(best), |a, &b| a.max(b))
}

/// `e^x` of one number, by the same function as for vectors.
#[inline(always)]
fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(exp(s, s.splat(x)))
}

/// `row = exp(row - most)`; returns the sum.
#[inline(always)]
fn exp_row<S: Simd>(s: S, row: &mut [f32], most: f32) -> f32 {
    let most = s.splat(most);
    let mut sum = s.splat(0.0);
    let whole = row.len() / S::LANES * S::LANES;
    let (head, tail) = row.split_at_mut(whole);
    for part in head.chunks_exact_mut(S::LANES) {
        let e = exp(s, s.sub(s.load(part), most));
        sum = s.add(sum, e);
        s.store(e, part);
    }
    let mut sum = s.sum(sum);
    if !tail.is_empty() {
        s.store_part(exp(s, s.sub(s.load_part(tail), most)), tail);
        for e in tail.iter() {
            sum += e;
        }
    }
    sum
}

/// See [`crate::attention_backward`].
pub(crate) fn attention_backward<T: Element>(
    shape: &AttentionShape,
    q: &[T],
    k: &[T],
    v: &[T],
    out: &[T],
    lse: &[f32],
    dout: &[T],
    dq: &mut [T],
    dk: &mut [T],
    dv: &mut [T],
) {
    let queries = [q.len(), out.len(), dout.len(), dq.len()];
    let keys = [k.len(), v.len(), dk.len(), dv.len()];
    shape.check("attention_backward", &queries, &keys, lse.len());
    #[cfg(target_arch = "x86_64")]
    if let (Some(q), Some(k), Some(v)) = (T::as_half(q), T::as_half(k), T::as_half(v))
        && let (Some(out), Some(dout)) = (T::as_half(out), T::as_half(dout))
        && let (Some(dq), Some(dk), Some(dv)) = (T::as_half_mut(dq), T::as_half_mut(dk), T::as_half_mut(dv))
        && crate::attention16::backward(shape, Saved { q, k, v, out, lse, dout }, [dq, dk, dv])
    {
        return;
    }
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    parallel_for(shape.batch * shape.heads, |head| {
        dispatch!(|s| backward_task(s, shape, head, (q, k, v), (out, lse, dout), [&dq, &dk, &dv]));
    });
}

#[inline(always)]
fn backward_task<S: MicroKernel, T: Element>(
    s: S,
    shape: &AttentionShape,
    head: usize,
    (q, k, v): (&[T], &[T], &[T]),
    (out, lse, dout): (&[T], &[f32], &[T]),
    [dq, dk, dv]: [&SharedMut<T>; 3],
) {
    let (d, queries, keys) = (shape.head_dim, shape.query_tokens, shape.key_tokens);
    let q = shape.head(q, queries, head);
    let out = shape.head(out, queries, head);
    let dout = shape.head(dout, queries, head);
    let k_columns = Operand { source: shape.head(k, keys, head), k_rows: false };
    let k_rows = Operand { source: shape.head(k, keys, head), k_rows: true };
    let v_columns = Operand { source: shape.head(v, keys, head), k_rows: false };
    let lse = &lse[head * queries..][..queries];
    let block = 8 * S::ROWS;
    let wide = d.next_multiple_of(S::LANES);
    let padded = keys.next_multiple_of(S::LANES);
    let pieces = d.div_ceil(KC);
    let sizes = [
        padded * d,                  // K^T, packed
        padded * d,                  // V^T, packed
        keys * wide,                 // K, packed
        keys * wide,                 // dK
        keys * wide,                 // dV
        block * ROW_STRIDE * pieces, // Q, rows
        block * ROW_STRIDE * pieces, // dO, rows
        block * wide,                // Q, packed
        block * wide,                // dO, packed
        block * ROW_STRIDE,          // P
        block * ROW_STRIDE,          // dP, dS
        block * wide,                // dQ
        block,                       // rowsum(dO * O)
    ];
    let sizes = sizes.map(|size| size.next_multiple_of(16));
    with_scratch(
        sizes.iter().sum(),
        #[inline(always)]
        |memory| {
            let [kt, vt, kp, dks, dvs, qr, dor, qp, dop, p, ds, dqs, delta] = carve(memory, sizes);
            dks.fill(0.0);
            dvs.fill(0.0);
            for j in (0..keys).step_by(KEYS) {
                let n = KEYS.min(keys - j);
                let columns = n.next_multiple_of(S::LANES) * d;
                pack_b(s, &k_columns, (0, d), (j, n), &mut kt[j * d..][..columns]);
                pack_b(s, &v_columns, (0, d), (j, n), &mut vt[j * d..][..columns]);
                pack_b(s, &k_rows, (j, n), (0, d), &mut kp[j * wide..][..n * wide]);
            }
            for i0 in (0..queries).step_by(block) {
                let m = block.min(queries - i0);
                pack_rows(s, &q, (i0, m), d, shape.scale, qr);
                pack_rows(s, &dout, (i0, m), d, 1.0, dor);
                pack_b(s, &Operand { source: q, k_rows: true }, (i0, m), (0, d), &mut qp[..m * wide]);
                pack_b(s, &Operand { source: dout, k_rows: true }, (i0, m), (0, d), &mut dop[..m * wide]);
                for i in 0..m {
                    let row = |x: &Dense<'_, T>| (i0 + i) * x.stride..(i0 + i) * x.stride + d;
                    delta[i] = dot(s, &out.data[row(&out)], &dout.data[row(&dout)]);
                }
                dqs.fill(0.0);
                for j in (0..keys).step_by(KEYS) {
                    let n = KEYS.min(keys - j);
                    if shape.visible(i0 + m - 1, j, n) == 0 {
                        break;
                    }
                    multiply(s, (m, n, d), Left::Rows(qr), &kt[j * d..], (p, ROW_STRIDE), false);
                    multiply(s, (m, n, d), Left::Rows(dor), &vt[j * d..], (ds, ROW_STRIDE), false);
                    for i in 0..m {
                        let seen = shape.visible(i0 + i, j, n);
                        let (p, ds) = (&mut p[i * ROW_STRIDE..][..n], &mut ds[i * ROW_STRIDE..][..n]);
                        p[seen..].fill(0.0);
                        ds[seen..].fill(0.0);
                        let (lse, delta) = (s.splat(lse[i0 + i]), s.splat(delta[i]));
                        for c in (0..seen).step_by(S::LANES) {
                            let e = (c + S::LANES).min(seen);
                            let probability = exp(s, s.sub(load_up_to(s, &p[c..e]), lse));
                            let slope = s.mul(probability, s.sub(load_up_to(s, &ds[c..e]), delta));
                            store_up_to(s, probability, &mut p[c..e]);
                            store_up_to(s, slope, &mut ds[c..e]);
                        }
                    }
                    multiply(s, (n, d, m), Left::Columns(p), dop, (&mut dvs[j * wide..], wide), true);
                    multiply(s, (n, d, m), Left::Columns(ds), qp, (&mut dks[j * wide..], wide), true);
                    multiply(s, (m, d, n), Left::Rows(ds), &kp[j * wide..], (dqs, wide), true);
                }
                write_rows(s, shape, head, (i0, m, queries), (dqs, wide), dq, shape.scale);
            }
            write_rows(s, shape, head, (0, keys, keys), (dks, wide), dk, shape.scale);
            write_rows(s, shape, head, (0, keys, keys), (dvs, wide), dv, 1.0);
        },
    );
}

/// Stores the rows of one head, times `factor`, to tokens `first..first + count`.
#[inline(always)]
fn write_rows<S: Simd, T: Element>(
    s: S,
    shape: &AttentionShape,
    head: usize,
    (first, count, tokens): (usize, usize, usize),
    (from, stride): (&[f32], usize),
    to: &SharedMut<T>,
    factor: f32,
) {
    let (b, h) = (head / shape.heads, head % shape.heads);
    let factor = s.splat(factor);
    for i in 0..count {
        let at = (b * tokens + first + i) * shape.channels() + h * shape.head_dim;
        // SAFETY: every (batch, head, token) belongs to one task, and is written once.
        let to = unsafe { to.range(at..at + shape.head_dim) };
        map1(
            s,
            &from[i * stride..][..shape.head_dim],
            to,
            #[inline(always)]
            |v| s.mul(v, factor),
        );
    }
}

/// Dot product of two rows.
#[inline(always)]
pub(crate) fn dot<S: Simd, T: Element>(s: S, a: &[T], b: &[T]) -> f32 {
    let mut sum = s.splat(0.0);
    for i in (0..a.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(a.len());
        sum = s.fma(load_up_to(s, &a[i..j]), load_up_to(s, &b[i..j]), sum);
    }
    s.sum(sum)
}
