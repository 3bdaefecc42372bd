//! The driver of products with bf16 operands: like [`crate::product`], on tiles of [`crate::tile16`].
//!
//! f32 operands, the weights, are rounded to bf16 while they are packed; sums are f32. B is always packed. A is read where
//! it lies if the instructions can and its rows are evenly apart, and packed otherwise. How a product is cut depends on
//! shapes and the instruction set alone.

use half::bf16;

use crate::element::Element;
use crate::product::{Dense, FETCH, Operand, Output, Partial, RowCount, Source, add_share, copy};
use crate::scratch::{Line, with_scratch};
use crate::simd::{Avx512Bf16, Bf16Isa, Simd, bf16_isa, prefetch};
use crate::stored::StoredWeight;
use crate::threads::{SharedMut, parallel_for};
use crate::tile16::{
    A_STRIDE, KC, Kernel16, Tile, WIDTH, interleave, interleave_all, swap_pairs, transpose_pairs, transpose_rounded,
};
use std::ops::Range;

/// Enough tasks for many cores to be busy most of the time.
pub(crate) const TASKS: usize = 32;

/// Most bytes of A that are packed as a whole, before the tasks begin, where that saves packing them several times.
const WHOLE_A: usize = 4 << 20;
/// The same for an A that must be transposed.
const WHOLE_TRANSPOSED_A: usize = 64 << 20;
/// The same for B.
const WHOLE_B: usize = 64 << 20;

/// Products for which waiting for an operand that is packed once takes longer than packing it in a few tasks.
const SMALL: usize = 3 << 20;

/// The right operand of a product.
pub enum Right<'a, B> {
    /// Packed by the product.
    Source(&'a Operand<B>),
    /// Packed before.
    Packed(&'a PackedRight),
}

/// Calls `$body` with `$k` the token of the instructions for bf16 products, or evaluates `$none`.
macro_rules! dispatch16 {
    (|$k:ident| $body:expr, $none:expr) => {
        match bf16_isa() {
            Bf16Isa::Amx($k) => $body,
            Bf16Isa::Avx512($k) => $body,
            Bf16Isa::None => $none,
        }
    };
}
pub(crate) use dispatch16;

/// `C = A B` through the epilogue of `out`; `false`, with nothing done, if the processor cannot multiply bf16.
pub fn product<A: Source, B: Source, T: Element>(
    size: (RowCount, usize, usize),
    a: &Operand<A>,
    b: &Operand<B>,
    b_reusable: bool,
    out: &Output<T>,
) -> bool {
    dispatch16!(
        |k| {
            run(k, size, a, Right::Source(b), b_reusable, out);
            true
        },
        false
    )
}

/// `C = A B` with weights packed before.
pub fn product_packed<A: Source, T: Element>(m: RowCount, a: &Operand<A>, b: &PackedRight, out: &Output<T>) {
    dispatch16!(
        |k| run(k, (m, b.n, b.k), a, Right::<A>::Packed(b), true, out),
        unreachable!("weights are only packed where bf16 products are")
    )
}

/// The inner dimension in pieces: equal parts of equal segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pieces {
    k: usize,
    segment: usize,
    piece: usize,
    per_segment: usize,
    count: usize,
    step: usize,
}

impl Pieces {
    fn new(k: usize, segment: usize, most: usize, step: usize) -> Self {
        let segment = segment.clamp(1, k.max(1));
        let parts = segment.div_ceil(most.clamp(32, KC));
        let piece = segment.div_ceil(parts).next_multiple_of(32);
        let per_segment = segment.div_ceil(piece);
        Pieces { k, segment, piece, per_segment, count: k.div_ceil(segment).max(1) * per_segment, step }
    }

    /// Beginning and length of a piece.
    fn range(&self, i: usize) -> (usize, usize) {
        let (segment, part) = (i / self.per_segment, i % self.per_segment);
        let begin = part * self.piece;
        (segment * self.segment + begin, self.piece.min(self.segment - begin).min(self.k))
    }

    /// The piece that has an element, and its place there.
    fn find(&self, at: usize) -> (usize, usize) {
        let (segment, at) = (at / self.segment, at % self.segment);
        (segment * self.per_segment + at / self.piece, at % self.piece)
    }

    /// Length of a piece, padded.
    fn padded(&self, i: usize) -> usize {
        self.range(i).1.next_multiple_of(self.step)
    }

    /// The beginning of a piece if all pieces are padded.
    fn packed_begin(&self, i: usize) -> usize {
        let segment = (self.segment - (self.per_segment - 1) * self.piece).next_multiple_of(self.step)
            + (self.per_segment - 1) * self.piece;
        i / self.per_segment * segment + i % self.per_segment * self.piece
    }
}

/// Columns of all panels, with padding.
pub(crate) fn line(n: usize) -> usize {
    n.next_multiple_of(16)
}

/// Columns of panel `j` of `n` columns.
pub(crate) fn panel_width(n: usize, j: usize) -> usize {
    if n - j * WIDTH <= 16 { 16 } else { WIDTH }
}

/// The cut of a product. `pieces` and `share`, which say in which order is added, depend on the deciding rows alone.
struct Plan {
    rows: usize,
    columns: usize,
    pieces: Pieces,
    /// Pieces that are summed up before they are added to the sum of the shares before.
    share: usize,
    /// Shares are summed up by tasks of their own, and added at the end.
    apart: bool,
    whole_a: bool,
    whole_b: bool,
}

impl Plan {
    fn new<K: Kernel16, A: Source, B: Source>(
        (m, n, k): (RowCount, usize, usize),
        a: &Operand<A>,
        b: &Right<B>,
        b_reusable: bool,
    ) -> Plan {
        let even = |total: usize, most: usize, unit: usize| {
            let parts = total.div_ceil(most).max(1);
            total.div_ceil(parts).next_multiple_of(unit).max(unit)
        };
        let mut columns = even(n, 384, WIDTH);
        let rows_of = |m: usize| even(m, K::TASK_ROWS, K::ROWS);
        // A small C and long sums: cut the sums.
        let parts = |m: usize| {
            let tiles = m.div_ceil(rows_of(m)) * n.div_ceil(columns);
            let cut = tiles < TASKS && k >= 1024 && (k >= 4 * m.max(n) || !b_reusable);
            if cut { TASKS.div_ceil(tiles.max(1)).min(k / 512).max(1) } else { 1 }
        };
        let segment = if a.k_rows { k } else { a.source.segment(k) };
        let mut pieces = Pieces::new(k, segment, K::PIECE, K::K_STEP);
        let mut share = pieces.count;
        let (few, many) = (parts(m.deciding), parts(m.all));
        if few > 1 {
            // Weights are cut as they are when they are packed before, so that both ways add in the same order.
            if !b_reusable {
                pieces = Pieces::new(k, segment, K::PIECE.min(k.div_ceil(few)), K::K_STEP);
            }
            share = pieces.count.div_ceil(few);
        }
        let apart = share < pieces.count && many > 1;
        let (m, mut rows) = (m.all, rows_of(m.all));
        let tiles = |rows: usize, columns: usize| m.div_ceil(rows) * n.div_ceil(columns);
        if let Right::Packed(packed) = b {
            assert!(packed.pieces == pieces, "the weights were packed for another use");
        }
        if !apart {
            // Where tiles of a group may be of any height, so may tasks.
            let (unit, few) = if K::GROUP == K::ROWS { (2, 3 * K::ROWS) } else { (K::ROWS, 2 * K::ROWS) };
            while tiles(rows, columns) < TASKS && (rows > few || columns > 2 * WIDTH) {
                // What is larger should be read by one task only.
                if rows > few && (m > n && rows >= columns || columns <= 2 * WIDTH) {
                    rows = (rows / 2).next_multiple_of(unit);
                } else {
                    columns = (columns / 2).next_multiple_of(WIDTH);
                }
            }
        }
        let direct =
            K::ANY_STRIDE && !a.k_rows && m >= K::GROUP && k > 0 && a.source.half_rows(0, K::GROUP, 0, 1).is_some();
        let most = if a.k_rows { WHOLE_TRANSPOSED_A } else { WHOLE_A };
        let shared = |blocks: usize| blocks > if m * n * k > SMALL { 1 } else { 4 };
        let whole_a = shared(n.div_ceil(columns)) && !direct && 2 * m * k <= most;
        let whole_b = shared(m.div_ceil(rows)) && b_reusable && 2 * n * k <= WHOLE_B;
        Plan { rows, columns, pieces, share, apart, whole_a, whole_b }
    }
}

fn run<K: Kernel16, A: Source, B: Source, T: Element>(
    kernel: K,
    (row_count, n, k): (RowCount, usize, usize),
    a: &Operand<A>,
    b: Right<B>,
    b_reusable: bool,
    out: &Output<T>,
) {
    let (m, plan) = (row_count.all, Plan::new::<K, A, B>((row_count, n, k), a, &b, b_reusable));
    let (pieces, rows_room) = (plan.pieces, m.next_multiple_of(16) + 32);
    let (a_len, b_len) = (
        if plan.whole_a { pieces.count * rows_room * A_STRIDE } else { 0 },
        match &b {
            Right::Source(_) if plan.whole_b => line(n) * pieces.packed_begin(pieces.count),
            _ => 0,
        },
    );
    with_half_scratch(a_len, |whole_a| {
        with_half_scratch(b_len, |whole_b| {
            if plan.whole_a {
                pack_whole_a(kernel, a, m, pieces, rows_room, whole_a);
            }
            let packed_b: Option<&[bf16]> = match b {
                Right::Packed(packed) => Some(packed.halves()),
                Right::Source(b) if plan.whole_b => {
                    pack_whole_b(kernel, b, n, pieces, whole_b);
                    Some(whole_b)
                }
                Right::Source(_) => None,
            };
            let whole_a = plan.whole_a.then_some((&*whole_a, rows_room));
            let source = match &b {
                Right::Source(b) => Some(*b),
                Right::Packed(_) => None,
            };
            Run { kernel, m, n, plan: &plan, a, b: source, whole_a, packed_b, out }.all();
        });
    });
}

/// [`with_scratch`] for bf16.
#[inline(always)]
pub(crate) fn with_half_scratch<R>(len: usize, f: impl FnOnce(&mut [bf16]) -> R) -> R {
    with_scratch(
        len.div_ceil(2),
        #[inline(always)]
        |memory| f(&mut bytemuck::cast_slice_mut(memory)[..len]),
    )
}

/// Packs all of A: `[piece, row, A_STRIDE]`.
fn pack_whole_a<K: Kernel16, A: Source>(
    kernel: K,
    a: &Operand<A>,
    m: usize,
    pieces: Pieces,
    rows_room: usize,
    to: &mut [bf16],
) {
    const BLOCK: usize = 64;
    let blocks = m.div_ceil(BLOCK);
    let shared = SharedMut::new(to);
    parallel_for(pieces.count * blocks, |task| {
        let (piece, block) = (task / blocks, task % blocks);
        let (first, count) = (block * BLOCK, BLOCK.min(m - block * BLOCK));
        let begin = (piece * rows_room + first) * A_STRIDE;
        let end = begin + count.next_multiple_of(16) * A_STRIDE;
        kernel.run(
            #[inline(always)]
            || {
                // SAFETY: blocks of different tasks do not overlap; only the last one is not a multiple of 16 rows, and
                // the room goes on after it.
                let to = unsafe { shared.range(begin..end) };
                pack_a(kernel, a, pieces.range(piece), (first, count), to);
            },
        );
    });
}

/// Packs all of B: `[piece, panel, k / 2, columns, 2]`.
fn pack_whole_b<K: Kernel16, B: Source>(kernel: K, b: &Operand<B>, n: usize, pieces: Pieces, to: &mut [bf16]) {
    // Long runs of a row where there is enough to share.
    let group = if n * pieces.k > 1 << 20 { 4 * WIDTH } else { WIDTH };
    let groups = n.div_ceil(group);
    let shared = SharedMut::new(to);
    parallel_for(pieces.count * groups, |task| {
        let (piece, at) = (task / groups, task % groups);
        let (first, count) = (at * group, group.min(n - at * group));
        let padded = pieces.padded(piece);
        let begin = line(n) * pieces.packed_begin(piece) + first * padded;
        kernel.run(
            #[inline(always)]
            || {
                // SAFETY: groups of panels of different tasks do not overlap.
                let to = unsafe { shared.range(begin..begin + line(count) * padded) };
                pack_b(kernel, b, pieces.range(piece), (first, count), to);
            },
        );
    });
}

/// Packs rows `m0..m0 + m` of A, inner `k0..k0 + k`: row-major, [`A_STRIDE`] apart, with zeros after the last element up
/// to a multiple of the step. `to` has room for a multiple of 16 rows.
#[inline(always)]
fn pack_a<K: Kernel16, X: Source>(
    kernel: K,
    a: &Operand<X>,
    (k0, k): (usize, usize),
    (m0, m): (usize, usize),
    to: &mut [bf16],
) {
    let s = kernel.vectors();
    if a.k_rows {
        return pack_transposed(s, a, (k0, k), (m0, m), to, A_STRIDE);
    }
    let padded = k.next_multiple_of(K::K_STEP);
    for i in 0..m {
        if i + FETCH < m {
            a.source.fetch(m0 + i + FETCH, k0, k);
        }
        let row = &mut to[i * A_STRIDE..][..padded];
        a.source.fill(s, m0 + i, k0, &mut row[..k]);
        row[k..].fill(bf16::ZERO);
    }
}

/// [`pack_a`] for a source whose rows run along the inner dimension, with rows `to_stride` apart: pairs of rows are
/// interleaved, then blocks of 16 by 16 pairs transposed.
#[inline(always)]
pub(crate) fn pack_transposed<X: Source>(
    s: Avx512Bf16,
    a: &Operand<X>,
    (k0, k): (usize, usize),
    (m0, m): (usize, usize),
    to: &mut [bf16],
    to_stride: usize,
) {
    let wide = m.next_multiple_of(16);
    let stride = 2 * wide + 32;
    with_half_scratch(
        16 * stride + 2 * wide,
        #[inline(always)]
        |memory| {
            let (pairs, rows) = memory.split_at_mut(16 * stride);
            for p in (0..k).step_by(32) {
                for (pair, line) in pairs.chunks_exact_mut(stride).enumerate() {
                    interleave_rows(s, &a.source, (k0 + p + 2 * pair, k0 + k), (m0, m), rows, &mut line[..2 * wide]);
                }
                for i in (0..m).step_by(16) {
                    transpose_pairs(s, &pairs[2 * i..], stride, &mut to[i * to_stride + p..], to_stride);
                }
            }
        },
    );
}

/// Interleaves the columns `n0..n0 + n` of the source's rows `row` and `row + 1`, with zeros for rows from `end` on and
/// after the last column. `rows` is room for two rows.
#[inline(always)]
fn interleave_rows<X: Source>(
    s: Avx512Bf16,
    x: &X,
    (row, end): (usize, usize),
    (n0, n): (usize, usize),
    rows: &mut [bf16],
    to: &mut [bf16],
) {
    let (used, rest) = to.split_at_mut(2 * n);
    rest.fill(bf16::ZERO);
    if row + 1 + FETCH < end {
        x.fetch(row + FETCH, n0, n);
        x.fetch(row + FETCH + 1, n0, n);
    }
    if row + 1 < end {
        if let (Some(a), Some(b)) = (x.half_row(row, n0, n), x.half_row(row + 1, n0, n)) {
            return interleave(s, a, b, used);
        }
        if let (Some(a), Some(b)) = (x.wide_row(row, n0, n), x.wide_row(row + 1, n0, n)) {
            return interleave(s, a, b, used);
        }
    }
    let (a, b) = rows.split_at_mut(n);
    for (line, row) in [(&mut *a, row), (&mut b[..n], row + 1)] {
        if row < end {
            x.fill(s, row, n0, line);
        } else {
            line.fill(bf16::ZERO);
        }
    }
    interleave(s, a, &b[..n], used);
}

/// Packs rows `k0..k0 + k`, columns `n0..n0 + n` of B in panels.
#[inline(always)]
pub(crate) fn pack_b<K: Kernel16, X: Source>(
    kernel: K,
    b: &Operand<X>,
    (k0, k): (usize, usize),
    (n0, n): (usize, usize),
    to: &mut [bf16],
) {
    let s = kernel.vectors();
    let padded = k.next_multiple_of(K::K_STEP);
    if !b.k_rows {
        return pack_b_transposed(s, b, (k0, k, padded), (n0, n), to);
    }
    if padded == k && b.source.pack_pairs(s, (k0, k), (n0, n), &mut Panels { data: to, padded, first: 0 }) {
        return;
    }
    /// Rows of all panels that are packed before the next ones: what they have of a cache line should stay in the nearest cache.
    const BLOCK: usize = 64;
    with_half_scratch(
        2 * WIDTH,
        #[inline(always)]
        |memory| {
            for p in (0..padded).step_by(BLOCK) {
                let rows = (k0 + p, BLOCK.min(padded - p), k0 + k);
                for j in 0..n.div_ceil(WIDTH) {
                    let columns = (n0 + j * WIDTH, WIDTH.min(n - j * WIDTH));
                    let w = panel_width(n, j);
                    let to = &mut to[j * WIDTH * padded + p * w..][..rows.1 * w];
                    pack_block(s, &b.source, rows, columns, memory, to);
                }
            }
        },
    );
}

/// Packs `count` rows, an even number, from `row` on, of a panel, with zeros for rows from `end` on; `memory` is room for two.
#[inline(always)]
fn pack_block<X: Source>(
    s: Avx512Bf16,
    x: &X,
    (row, count, end): (usize, usize, usize),
    (column, columns): (usize, usize),
    memory: &mut [bf16],
    to: &mut [bf16],
) {
    let w = to.len() / count;
    let mut i = 0;
    while i < count {
        let even = x.even_rows(row + i).min(count - i).min(end.saturating_sub(row + i)) / 2 * 2;
        let to = &mut to[i * w..];
        if even > 0
            && columns == w
            && let Some((rows, stride)) = x.half_rows(row + i, even, column, w)
        {
            interleave_all(s, rows, stride, w, &mut to[..even * w]);
            i += even;
        } else {
            interleave_rows(s, x, (row + i, end), (column, columns), memory, &mut to[..2 * w]);
            i += 2;
        }
    }
}

/// [`pack_b`] for a source that is `[n, k]`.
#[inline(always)]
fn pack_b_transposed<X: Source>(
    s: Avx512Bf16,
    b: &Operand<X>,
    (k0, k, padded): (usize, usize, usize),
    (n0, n): (usize, usize),
    to: &mut [bf16],
) {
    let stride = k.next_multiple_of(32) + 32;
    with_half_scratch(
        16 * stride + 512,
        #[inline(always)]
        |memory| {
            let (lines, block) = memory.split_at_mut(16 * stride);
            for j in (0..n).step_by(16) {
                let panel = j / WIDTH;
                let w = 2 * panel_width(n, panel);
                let to = &mut to[panel * WIDTH * padded..][..w / 2 * padded];
                let offset = 2 * (j - panel * WIDTH);
                if k.is_multiple_of(32)
                    && k > 0
                    && j + 16 <= n
                    && let Some((rows, stride)) = b.source.wide_rows(n0 + j, 16, k0, k)
                {
                    round_rows::<false>(s, rows, stride, k, &mut to[offset..], w);
                    continue;
                }
                for (i, line) in lines.chunks_exact_mut(stride).enumerate() {
                    if j + i < n {
                        if j + i + FETCH < n {
                            b.source.fetch(n0 + j + i + FETCH, k0, k);
                        }
                        b.source.fill(s, n0 + j + i, k0, &mut line[..k]);
                        line[k..].fill(bf16::ZERO);
                    } else {
                        line.fill(bf16::ZERO);
                    }
                }
                for p in (0..padded).step_by(32) {
                    if p + 32 <= padded {
                        transpose_pairs(s, &lines[p..], stride, &mut to[p / 2 * w + offset..], w);
                        continue;
                    }
                    transpose_pairs(s, &lines[p..], stride, block, 32);
                    for q in 0..(padded - p) / 2 {
                        to[(p / 2 + q) * w + offset..][..32].copy_from_slice(&block[q * 32..][..32]);
                    }
                }
            }
        },
    );
}

/// Packs 16 f32 rows of `k` elements, a multiple of 32, as 16 columns of a panel; `w` is the distance between pairs. For `PAST_CACHE`
/// see [`transpose_rounded`]; other rows are fetched ahead.
#[inline(always)]
fn round_rows<const PAST_CACHE: bool>(s: Avx512Bf16, rows: &[f32], stride: usize, k: usize, to: &mut [bf16], w: usize) {
    /// Distance ahead: these are more rows than the processor follows by itself.
    const AHEAD: usize = 96;
    for p in (0..k).step_by(32) {
        if !PAST_CACHE {
            for i in 0..16 {
                let at = rows.as_ptr().wrapping_add(i * stride + p + AHEAD);
                prefetch(at);
                prefetch(at.wrapping_add(16));
            }
        }
        transpose_rounded::<PAST_CACHE>(s, &rows[p..], stride, &mut to[p / 2 * w..], w);
    }
}

struct Run<'a, K, A, B, T> {
    kernel: K,
    m: usize,
    n: usize,
    plan: &'a Plan,
    a: &'a Operand<A>,
    b: Option<&'a Operand<B>>,
    whole_a: Option<(&'a [bf16], usize)>,
    packed_b: Option<&'a [bf16]>,
    out: &'a Output<'a, T>,
}

/// Most tiles below each other in a task.
const MOST_TILES: usize = 16;

impl<K: Kernel16, A: Source, B: Source, T: Element> Run<'_, K, A, B, T> {
    fn all(&self) {
        let Plan { rows, columns, share, apart, pieces, .. } = *self.plan;
        let (down, across) = (self.m.div_ceil(rows), self.n.div_ceil(columns));
        let shares = if apart { pieces.count.div_ceil(share) } else { 1 };
        let task = |task: usize, share_at: (usize, usize), partial: Partial| {
            let (i, j) = (task % down, task / down);
            let (m, n) = (rows.min(self.m - i * rows), columns.min(self.n - j * columns));
            self.kernel.run(
                #[inline(always)]
                || self.task((i * rows, m), (j * columns, n), share_at, partial),
            );
        };
        if shares == 1 {
            return parallel_for(down * across, |i| task(i, (0, pieces.count), None));
        }
        // Sums of the shares side by side, then added in order.
        let size = self.m * self.n;
        with_scratch(shares * size, |sums| {
            let shared = SharedMut::new(sums);
            parallel_for(down * across * shares, |i| {
                let at = i % shares;
                let last = ((at + 1) * share).min(pieces.count);
                task(i / shares, (at * share, last), Some((&shared, at * size)));
            });
            self.out.store_shares(sums, self.m);
        });
    }

    /// One block of C over the pieces `q0..q1`.
    #[inline(always)]
    fn task(&self, (m0, m): (usize, usize), (n0, n): (usize, usize), (q0, q1): (usize, usize), partial: Partial) {
        let kernel = self.kernel;
        let pieces = self.plan.pieces;
        let tiles = m.div_ceil(K::ROWS);
        // Tiles of one group may be of any height, so they share the rows evenly.
        let tile_rows = if K::GROUP == K::ROWS { m.div_ceil(tiles) } else { K::ROWS };
        let panels = n.div_ceil(WIDTH);
        let tile_size = K::ROWS * WIDTH;
        let several = q1 > q0 + 1;
        let sums_len = if several { tiles * panels * tile_size } else { tile_size };
        let share = self.plan.share;
        let totals_len = if q1 - q0 > share { sums_len } else { 0 };
        let a_len = if self.whole_a.is_some() { 0 } else { (m.next_multiple_of(16) + 16) * A_STRIDE / 2 };
        let b_len = if self.packed_b.is_some() { 0 } else { (line(n) * pieces.piece.next_multiple_of(32)) / 2 };
        with_scratch(
            sums_len + totals_len + a_len + b_len,
            #[inline(always)]
            |memory| {
                let (sums, memory) = memory.split_at_mut(sums_len);
                let (totals, memory) = memory.split_at_mut(totals_len);
                let (local_a, local_b) = memory.split_at_mut(a_len);
                let local_a: &mut [bf16] = bytemuck::cast_slice_mut(local_a);
                let local_b: &mut [bf16] = bytemuck::cast_slice_mut(local_b);
                for q in q0..q1 {
                    let padded = pieces.padded(q);
                    if self.whole_a.is_none() && self.a.k_rows {
                        pack_a(kernel, self.a, pieces.range(q), (m0, m), local_a);
                    }
                    let mut left = [([std::ptr::null(); 2], 0); MOST_TILES];
                    for (i, left) in left[..tiles].iter_mut().enumerate() {
                        let first = i * tile_rows;
                        *left = self.left(q, (m0, first, tile_rows.min(m - first)), local_a);
                    }
                    let b: &[bf16] = match self.packed_b {
                        Some(all) => &all[self.packed_begin(q, n0)..][..line(n) * padded],
                        None => {
                            if let Some(b) = self.b {
                                pack_b(kernel, b, pieces.range(q), (n0, n), local_b);
                            }
                            local_b
                        }
                    };
                    // The weights of the next piece come from memory while this one is multiplied. With very few rows, reads
                    // ahead would be more than the instructions between them.
                    let lines = (32 * WIDTH).div_ceil(m);
                    let coming = self.packed_b.filter(|_| q + 1 < q1 && lines <= 16);
                    let mut next = coming.map(|all| (all[self.packed_begin(q + 1, n0)..].as_ptr(), lines));
                    // The operand of the outer loop stays in the nearest cache, that of the inner one passes through it.
                    let (outer, inner) = if K::ANY_STRIDE { (tiles, panels) } else { (panels, tiles) };
                    for x in 0..outer {
                        for y in 0..inner {
                            let (i, j) = if K::ANY_STRIDE { (x, y) } else { (y, x) };
                            let columns = panel_width(n, j);
                            let b = &b[j * WIDTH * padded..][..columns * padded];
                            let first = i * tile_rows;
                            let rows = tile_rows.min(m - first);
                            let at = if several { (j * tiles + i) * tile_size } else { 0 };
                            let sum = &mut sums[at..at + tile_size];
                            let (a, a_stride) = left[i];
                            let c = sum.as_mut_ptr();
                            let tile = Tile {
                                rows,
                                columns,
                                k: padded,
                                a,
                                a_stride,
                                b: b.as_ptr(),
                                c,
                                c_stride: WIDTH,
                                accumulate: (q - q0) % share > 0,
                                next,
                            };
                            next = next.map(|(at, lines)| (at.wrapping_add(padded / 32 * lines * 32), lines));
                            // SAFETY: A is as `left` promises, B and C are as long as the slices above.
                            unsafe { kernel.tile(&tile) };
                            if totals_len > 0 && ((q + 1 - q0) % share == 0 || q + 1 == q1) {
                                let (before, totals) = ((q - q0) / share, &mut totals[at..at + tile_size]);
                                add_share(kernel.vectors(), before, q + 1 == q1, sum, totals);
                            }
                            if q + 1 == q1 {
                                let used = WIDTH.min(n - j * WIDTH);
                                let (rows, columns) = ((m0 + first, rows), (n0 + j * WIDTH, used));
                                self.out.finish(kernel.vectors(), rows, columns, (sum, WIDTH), partial);
                            }
                        }
                    }
                }
            },
        );
    }

    /// The beginning of piece `q` of the columns from `n0` in the packed B.
    #[inline(always)]
    fn packed_begin(&self, q: usize, n0: usize) -> usize {
        let pieces = self.plan.pieces;
        line(self.n) * pieces.packed_begin(q) + n0 * pieces.padded(q)
    }

    /// The rows `first..first + rows` of a task, for piece `q`: pointers to the groups and the distance of rows, readable as
    /// [`Kernel16::tile`] wants. Packs them into `local` if they cannot be read where they are; those that run along the inner dimension
    /// are already there.
    #[inline(always)]
    fn left(
        &self,
        q: usize,
        (m0, first, rows): (usize, usize, usize),
        local: &mut [bf16],
    ) -> ([*const bf16; 2], usize) {
        let (k0, k) = self.plan.pieces.range(q);
        let groups = |a: &[bf16]| [a.as_ptr(), a[if rows > K::GROUP { K::GROUP * A_STRIDE } else { 0 }..].as_ptr()];
        if let Some((whole, rows_room)) = self.whole_a {
            return (groups(&whole[(q * rows_room + m0 + first) * A_STRIDE..]), A_STRIDE);
        }
        if K::ANY_STRIDE && !self.a.k_rows && k.is_multiple_of(K::K_STEP) && rows.is_multiple_of(K::GROUP) {
            let group = |i: usize| self.a.source.half_rows(m0 + first + i * K::GROUP, K::GROUP, k0, k);
            match (group(0), rows > K::GROUP) {
                (Some((a, stride)), false) => return ([a.as_ptr(); 2], stride),
                (Some((a, stride)), true) => {
                    if let Some((b, other)) = group(1)
                        && other == stride
                    {
                        return ([a.as_ptr(), b.as_ptr()], stride);
                    }
                }
                (None, _) => {}
            }
        }
        if !self.a.k_rows {
            // Room for whole groups, whose last rows may be without meaning: they only reach rows of C that nobody reads.
            let end = (first + rows.next_multiple_of(16)) * A_STRIDE;
            pack_a(self.kernel, self.a, (k0, k), (m0 + first, rows), &mut local[first * A_STRIDE..end]);
        }
        (groups(&local[first * A_STRIDE..]), A_STRIDE)
    }
}

/// Room for pairs of rows in panels of [`WIDTH`] columns: `[panel, padded / 2, columns, 2]`.
pub struct Panels<'a> {
    data: &'a mut [bf16],
    /// Rows of a panel.
    padded: usize,
    /// The row that is written first.
    first: usize,
}

impl Panels<'_> {
    /// The room after `rows` more rows.
    pub fn after(&mut self, rows: usize) -> Panels<'_> {
        Panels { data: self.data, padded: self.padded, first: self.first + rows }
    }
}

/// Packed weights as a source of their own rows, `[n, k]`.
#[derive(Clone, Copy)]
pub struct PackedRows<'a>(pub &'a PackedRight);

impl PackedRows<'_> {
    /// The pair of elements of `row` that begins at the even `column`, in its panel: those of other rows and columns follow.
    #[inline(always)]
    fn pair(&self, row: usize, column: usize) -> &[bf16] {
        let PackedRight { n, pieces, .. } = *self.0;
        let (q, at) = pieces.find(column);
        let (panel, place) = (row / WIDTH, row % WIDTH);
        let begin = line(n) * pieces.packed_begin(q) + panel * WIDTH * pieces.padded(q);
        &self.0.halves()[begin + at / 2 * 2 * panel_width(n, panel) + 2 * place..]
    }
}

impl Source for PackedRows<'_> {
    const DIRECT: bool = false;
    const HALF: bool = true;

    #[inline(always)]
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]) {
        for (i, out) in out.iter_mut().enumerate() {
            let at = column + i;
            copy(s, &self.pair(row, at)[at % 2..][..1], std::slice::from_mut(out));
        }
    }

    #[inline(always)]
    fn pack_pairs(
        &self,
        s: Avx512Bf16,
        (row, rows): (usize, usize),
        (column, columns): (usize, usize),
        to: &mut Panels,
    ) -> bool {
        if !self.0.gives_rows()
            || [row, rows, to.first].iter().any(|x| x % 16 > 0)
            || column % 32 > 0
            || columns % 32 > 0
        {
            return false;
        }
        // In the order in which the packed weights lie, as they come from memory.
        for r in (0..rows).step_by(16) {
            for j in 0..columns / WIDTH {
                let panel = &mut to.data[j * WIDTH * to.padded..][..WIDTH * to.padded];
                let to = &mut panel[(to.first + r) * WIDTH..][..16 * WIDTH];
                let from = self.pair(row + r, column + j * WIDTH);
                for half in 0..2 {
                    swap_pairs(s, &from[half * 8 * 2 * WIDTH..], &mut to[half * WIDTH..]);
                }
            }
        }
        true
    }
}

/// B rounded to bf16 and packed, for many products.
pub struct PackedRight {
    data: Vec<Line>,
    n: usize,
    k: usize,
    pieces: Pieces,
}

impl PackedRight {
    /// Packs `b` for inner segments of the given length; nothing, where the processor cannot multiply bf16.
    pub fn pack<B: Source>(b: &Operand<B>, n: usize, k: usize, segment: usize) -> Option<Self> {
        dispatch16!(|kernel| Some(Self::pack_for(kernel, b, n, k, segment)), None)
    }

    fn pack_for<K: Kernel16, B: Source>(kernel: K, b: &Operand<B>, n: usize, k: usize, segment: usize) -> Self {
        let mut packed = Self::zeros(n, k, Pieces::new(k, segment, K::PIECE, K::K_STEP));
        let pieces = packed.pieces;
        pack_whole_b(kernel, b, n, pieces, packed.halves_mut());
        packed
    }

    /// Packs a stored weight for inner segments of the given length; `row` gives the output that stands at each place. Nothing, where
    /// the processor cannot multiply bf16.
    pub fn pack_stored(w: &StoredWeight, segment: usize, row: impl Fn(usize) -> usize + Sync) -> Option<Self> {
        dispatch16!(|kernel| Some(Self::pack_stored_for(kernel, w, segment, row)), None)
    }

    fn pack_stored_for<K: Kernel16>(
        kernel: K,
        w: &StoredWeight,
        segment: usize,
        row: impl Fn(usize) -> usize + Sync,
    ) -> Self {
        let (n, k) = (w.outputs, w.row_len());
        let mut packed = Self::zeros(n, k, Pieces::new(k, segment, K::PIECE, K::K_STEP));
        let pieces = packed.pieces;
        let shared = SharedMut::new(packed.halves_mut());
        parallel_for(n.div_ceil(WIDTH), |panel| {
            let (first, rows) = (panel * WIDTH, WIDTH.min(n - panel * WIDTH));
            with_half_scratch((rows + 1) * k, |memory| {
                kernel.run(
                    #[inline(always)]
                    || {
                        let (lines, room) = memory.split_at_mut(rows * k);
                        for (i, line) in lines.chunks_exact_mut(k.max(1)).enumerate() {
                            w.read_row(kernel.vectors().without_bf16(), row(first + i), line, room);
                        }
                        let lines = Operand { source: Dense { data: &*lines, stride: k }, k_rows: false };
                        for q in 0..pieces.count {
                            let padded = pieces.padded(q);
                            let begin = line(n) * pieces.packed_begin(q) + first * padded;
                            // SAFETY: panels and pieces do not overlap.
                            let to = unsafe { shared.range(begin..begin + line(rows) * padded) };
                            pack_b(kernel, &lines, pieces.range(q), (0, rows), to);
                        }
                    },
                );
            });
        });
        packed
    }

    /// Writes row `row(i)` of the `[n, k]` weights, as they were packed, for each place `i`.
    pub fn unpack(&self, row: impl Fn(usize) -> usize + Sync) -> Vec<bf16> {
        let mut all = bytemuck::zeroed_vec::<bf16>(self.n * self.k);
        let (shared, halves) = (SharedMut::new(&mut all), self.halves());
        parallel_for(self.n, |at| {
            let (panel, place) = (at / WIDTH, at % WIDTH);
            let width = panel_width(self.n, panel);
            // SAFETY: rows do not overlap, and each comes from one place.
            let to = unsafe { shared.range(row(at) * self.k..(row(at) + 1) * self.k) };
            for q in 0..self.pieces.count {
                let (k0, k) = self.pieces.range(q);
                let begin = line(self.n) * self.pieces.packed_begin(q) + panel * WIDTH * self.pieces.padded(q);
                let pairs = halves[begin..].chunks_exact(2 * width);
                for (to, pairs) in to[k0..k0 + k].chunks_mut(2).zip(pairs) {
                    to.copy_from_slice(&pairs[2 * place..][..to.len()]);
                }
            }
        });
        all
    }

    /// Room for packed weights.
    fn zeros(n: usize, k: usize, pieces: Pieces) -> Self {
        let len = line(n) * pieces.packed_begin(pieces.count);
        Self { data: bytemuck::zeroed_vec::<Line>(len.div_ceil(32)), n, k, pieces }
    }

    pub(crate) fn halves(&self) -> &[bf16] {
        bytemuck::cast_slice(&self.data)
    }

    fn halves_mut(&mut self) -> &mut [bf16] {
        let len = line(self.n) * self.pieces.packed_begin(self.pieces.count);
        &mut bytemuck::cast_slice_mut(&mut self.data)[..len]
    }

    /// The pairs of rows `column..column + 32` in panel `panel`, from the first on, if whole panels have them without a gap:
    /// `[16, WIDTH, 2]`. `column` is a multiple of 32, and so are all sizes ([`PackedRight::gives_rows`]).
    #[inline(always)]
    pub fn block(&self, panel: usize, column: usize) -> &[bf16] {
        let (q, at) = self.pieces.find(column);
        let begin = self.n * self.pieces.packed_begin(q) + panel * WIDTH * self.pieces.padded(q);
        &self.halves()[begin + at * WIDTH..][..32 * WIDTH]
    }

    /// True if [`PackedRows`] are read fast: no panel or piece is padded.
    pub fn gives_rows(&self) -> bool {
        self.n.is_multiple_of(WIDTH) && self.pieces.segment.is_multiple_of(32) && self.k.is_multiple_of(32)
    }

    /// For packing new values of some rows, from several threads.
    pub fn renew(&mut self) -> Renewal<'_> {
        let (n, k, pieces) = (self.n, self.k, self.pieces);
        Renewal { data: SharedMut::new(self.halves_mut()), n, k, pieces }
    }

    /// Columns and inner dimension.
    pub fn size(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<Line>()
    }
}

/// Packed weights that get new values.
pub struct Renewal<'a> {
    data: SharedMut<'a, bf16>,
    n: usize,
    k: usize,
    pieces: Pieces,
}

impl Renewal<'_> {
    /// Columns of a row.
    pub fn columns(&self) -> usize {
        self.k
    }

    /// Ranges of columns that are packed together, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.pieces.count).map(|q| self.pieces.range(q)).map(|(begin, len)| begin..begin + len)
    }

    /// Packs piece `q` of the rows from `row` on, a multiple of [`WIDTH`]; `w` holds whole rows, at most as many.
    ///
    /// # Safety
    ///
    /// No other thread may pack the same piece of the same rows meanwhile, and none may read what this one has packed before it has
    /// called [`past_caches_done`](crate::stream::past_caches_done).
    pub unsafe fn pack(&self, q: usize, row: usize, w: &[f32]) {
        let rows = w.len() / self.k.max(1);
        debug_assert!(row.is_multiple_of(WIDTH) && rows <= WIDTH && row + rows <= self.n);
        let padded = self.pieces.padded(q);
        let begin = line(self.n) * self.pieces.packed_begin(q) + row * padded;
        // SAFETY: panels do not overlap, nor do pieces; the rest is the contract of this function.
        let to = unsafe { self.data.range(begin..begin + line(rows) * padded) };
        let (k0, k) = self.pieces.range(q);
        dispatch16!(
            |kernel| kernel.run(
                #[inline(always)]
                || {
                    if rows == WIDTH && k > 0 && k.is_multiple_of(32) {
                        for half in 0..2 {
                            let w = &w[half * 16 * self.k..][..16 * self.k];
                            let to = &mut to[half * WIDTH..];
                            round_rows::<true>(kernel.vectors(), &w[k0..], self.k, k, to, 2 * WIDTH);
                        }
                        return;
                    }
                    let w = Operand { source: Dense { data: w, stride: self.k }, k_rows: false };
                    pack_b(kernel, &w, (k0, k), (0, rows), to);
                }
            ),
            unreachable!("weights are only packed where bf16 products are")
        );
    }
}
