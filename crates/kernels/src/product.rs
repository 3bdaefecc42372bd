//! The driver of all matrix products: cuts C into tasks, packs operands, runs tiles, finishes the output.
//!
//! An operand is anything that can write a piece of one of its rows as f32 ([`Source`]): a dense matrix in memory or
//! the patches of an image, which therefore never exist as a whole. Everything about the order of additions is fixed
//! by the shape: see [`Plan`].

use half::bf16;

use crate::element::Element;
use crate::math::{gelu, load_up_to, store_up_to};
#[cfg(target_arch = "x86_64")]
use crate::product16::Panels;
use crate::scratch::with_scratch;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512Bf16;
use crate::simd::{Simd, dispatch, prefetch_all};
use crate::threads::{SharedMut, for_chunks, parallel_for};
use crate::tile::{Ahead, KC, MicroKernel, ROW_STRIDE};

/// A matrix that can be read by pieces of rows.
pub trait Source: Sync {
    /// True if short pieces are as cheap as long ones.
    const DIRECT: bool;
    /// True if the elements are bf16.
    const HALF: bool;

    /// Writes the elements `column..column + out.len()` of `row`, converted.
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]);

    /// The elements `column..column + len` of `row`, if they are bf16 and lie like that in memory.
    #[inline(always)]
    fn half_row(&self, _row: usize, _column: usize, _len: usize) -> Option<&[bf16]> {
        None
    }

    /// The elements `column..column + len` of `row`, if they are f32 and lie like that in memory.
    #[inline(always)]
    fn wide_row(&self, _row: usize, _column: usize, _len: usize) -> Option<&[f32]> {
        None
    }

    /// Brings the elements `column..column + len` of `row` nearer, if they lie like that in memory: a hint that they are read soon.
    #[inline(always)]
    fn fetch(&self, row: usize, column: usize, len: usize) {
        if let Some(row) = self.wide_row(row, column, len) {
            prefetch_all(row);
        } else if let Some(row) = self.half_row(row, column, len) {
            prefetch_all(row);
        }
    }

    /// For how many rows from `row` on [`Source::half_rows`] gives bf16, if at all.
    #[inline(always)]
    fn even_rows(&self, _row: usize) -> usize {
        0
    }

    /// The elements `column..column + k` of `rows` rows from `row` on, and the distance between these rows, if they are bf16
    /// and lie evenly apart.
    #[inline(always)]
    fn half_rows(&self, _row: usize, _rows: usize, _column: usize, _k: usize) -> Option<(&[bf16], usize)> {
        None
    }

    /// The elements `column..column + k` of `rows` rows from `row` on, and the distance between these rows, if they are f32 and lie
    /// evenly apart.
    #[inline(always)]
    fn wide_rows(&self, _row: usize, _rows: usize, _column: usize, _k: usize) -> Option<(&[f32], usize)> {
        None
    }

    /// Writes elements in panels of pairs of rows, if that is faster than to have them row by row; `false`, with `to` in any state, if not.
    /// A range is its beginning and its length.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn pack_pairs(&self, _: Avx512Bf16, _rows: (usize, usize), _columns: (usize, usize), _to: &mut Panels) -> bool {
        false
    }

    /// Lengths of the parts of a row that lie contiguous in memory, or the whole length.
    fn segment(&self, k: usize) -> usize {
        k
    }
}

/// A dense matrix: rows of contiguous elements, `stride` apart.
pub struct Dense<'a, T> {
    pub data: &'a [T],
    pub stride: usize,
}

impl<X: Source> Source for &X {
    const DIRECT: bool = X::DIRECT;
    const HALF: bool = X::HALF;

    #[inline(always)]
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]) {
        (**self).fill(s, row, column, out);
    }
    #[inline(always)]
    fn half_row(&self, row: usize, column: usize, len: usize) -> Option<&[bf16]> {
        (**self).half_row(row, column, len)
    }
    #[inline(always)]
    fn wide_row(&self, row: usize, column: usize, len: usize) -> Option<&[f32]> {
        (**self).wide_row(row, column, len)
    }
    #[inline(always)]
    fn even_rows(&self, row: usize) -> usize {
        (**self).even_rows(row)
    }
    #[inline(always)]
    fn half_rows(&self, row: usize, rows: usize, column: usize, k: usize) -> Option<(&[bf16], usize)> {
        (**self).half_rows(row, rows, column, k)
    }
    #[inline(always)]
    fn wide_rows(&self, row: usize, rows: usize, column: usize, k: usize) -> Option<(&[f32], usize)> {
        (**self).wide_rows(row, rows, column, k)
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn pack_pairs(&self, s: Avx512Bf16, rows: (usize, usize), columns: (usize, usize), to: &mut Panels) -> bool {
        (**self).pack_pairs(s, rows, columns, to)
    }
    fn segment(&self, k: usize) -> usize {
        (**self).segment(k)
    }
}

impl<T> Clone for Dense<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Dense<'_, T> {}

impl<T: Element> Source for Dense<'_, T> {
    const DIRECT: bool = true;
    const HALF: bool = T::IS_HALF;

    #[inline(always)]
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]) {
        let begin = row * self.stride + column;
        copy(s, &self.data[begin..begin + out.len()], out);
    }

    #[inline(always)]
    fn half_row(&self, row: usize, column: usize, len: usize) -> Option<&[bf16]> {
        let begin = row * self.stride + column;
        T::as_half(self.data).map(|data| &data[begin..begin + len])
    }

    #[inline(always)]
    fn wide_row(&self, row: usize, column: usize, len: usize) -> Option<&[f32]> {
        let begin = row * self.stride + column;
        T::as_wide(self.data).map(|data| &data[begin..begin + len])
    }

    #[inline(always)]
    fn even_rows(&self, _: usize) -> usize {
        if T::IS_HALF { usize::MAX } else { 0 }
    }

    #[inline(always)]
    fn half_rows(&self, row: usize, rows: usize, column: usize, k: usize) -> Option<(&[bf16], usize)> {
        let begin = row * self.stride + column;
        T::as_half(self.data).map(|data| (&data[begin..begin + (rows - 1) * self.stride + k], self.stride))
    }

    #[inline(always)]
    fn wide_rows(&self, row: usize, rows: usize, column: usize, k: usize) -> Option<(&[f32], usize)> {
        let begin = row * self.stride + column;
        T::as_wide(self.data).map(|data| (&data[begin..begin + (rows - 1) * self.stride + k], self.stride))
    }
}

/// Converts a slice.
#[inline(always)]
pub fn copy<S: Simd, T: Element, E: Element>(s: S, from: &[T], to: &mut [E]) {
    if let (Some(from), Some(to)) = (T::as_half(from), E::as_half_mut(to)) {
        to.copy_from_slice(from);
        return;
    }
    crate::math::map1(
        s,
        from,
        to,
        #[inline(always)]
        |v| v,
    );
}

/// An operand of a product. `k_rows` tells that the rows of the source run along the inner dimension (the source is
/// `[k, m]` or `[k, n]`); otherwise it is `[m, k]` or `[n, k]`.
pub struct Operand<X> {
    pub source: X,
    pub k_rows: bool,
}

/// The places of the rows of C.
#[derive(Clone, Copy)]
pub enum Rows {
    /// Row i begins at i * stride.
    Linear { stride: usize },
    /// Row (b, y, x) of `[.., height, width]` begins at b * batch + y * row + x * column + start.
    Grid { height: usize, width: usize, batch: usize, row: usize, column: usize, start: usize },
}

impl Rows {
    #[inline(always)]
    pub fn begin(self, i: usize) -> usize {
        match self {
            Rows::Linear { stride } => i * stride,
            Rows::Grid { height, width, batch, row, column, start } => {
                let (i, x) = (i / width, i % width);
                let (b, y) = (i / height, i % height);
                b * batch + y * row + x * column + start
            }
        }
    }
}

/// The work on a finished element of C before it is stored.
#[derive(Clone, Copy)]
pub struct Epilogue<'a, T> {
    /// Added to every row: `[n]`.
    pub bias: Option<&'a [f32]>,
    /// `[groups, n]`, each row of it added to as many consecutive rows of C as the number says.
    pub group: Option<(&'a [T], usize)>,
    /// Added element by element; lies like C.
    pub residual: Option<&'a [T]>,
    /// Add to what C holds.
    pub accumulate: bool,
    /// Store `max(c, 0)`; not with `gated`.
    pub relu: bool,
    /// Columns of sums come in panels of [`GATED`] values and as many gates; C, of half as many columns, gets
    /// `value gelu(gate)`. The bias has all values before all gates. Goes with nothing else but a bias.
    pub gated: bool,
}

/// Columns of C from one panel of values and gates.
pub const GATED: usize = 16;

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Self { bias: None, group: None, residual: None, accumulate: false, relu: false, gated: false }
    }
}

/// Sums of a share of the inner dimension: where the partial sums, a dense `[m, n]`, begin.
pub type Partial<'a> = Option<(&'a SharedMut<'a, f32>, usize)>;

/// The place of finished elements of C.
pub struct Output<'a, T> {
    pub data: &'a SharedMut<'a, T>,
    pub rows: Rows,
    /// Columns of C.
    pub n: usize,
    pub epilogue: Epilogue<'a, T>,
}

impl<T: Element> Output<'_, T> {
    /// Calls `f` with an output to contiguous rows of `n` columns.
    #[cfg(target_arch = "x86_64")]
    pub fn to_rows(c: &mut [T], n: usize, epilogue: Epilogue<T>, f: impl FnOnce(&Output<T>)) {
        let data = SharedMut::new(c);
        f(&Output { data: &data, rows: Rows::Linear { stride: n }, n, epilogue });
    }

    /// Stores a piece of a row of C through the epilogue. Each element is passed to this function once.
    #[inline(always)]
    pub fn store<S: Simd>(&self, s: S, row: usize, column: usize, sum: &[f32]) {
        if self.epilogue.gated {
            return self.store_gated(s, row, column, sum);
        }
        let begin = self.rows.begin(row) + column;
        let e = &self.epilogue;
        // SAFETY: tasks own different elements of C, and rows do not overlap.
        let out = unsafe { self.data.range(begin..begin + sum.len()) };
        let bias = e.bias.map(|bias| &bias[column..][..sum.len()]);
        let group = e.group.map(|(group, rows)| &group[row / rows * self.n + column..][..sum.len()]);
        let residual = e.residual.map(|residual| &residual[begin..][..sum.len()]);
        for i in (0..sum.len()).step_by(S::LANES) {
            let j = (i + S::LANES).min(sum.len());
            // In the order of `store_block`, which gives the same bits.
            let mut added = s.splat(0.0);
            if let Some(bias) = bias {
                added = load_up_to(s, &bias[i..j]);
            }
            if let Some(group) = group {
                added = s.add(added, load_up_to(s, &group[i..j]));
            }
            let mut v = s.add(load_up_to(s, &sum[i..j]), added);
            if let Some(residual) = residual {
                v = s.add(v, load_up_to(s, &residual[i..j]));
            }
            if e.accumulate {
                v = s.add(v, load_up_to(s, &out[i..j]));
            }
            if e.relu {
                // The operand that is returned for NaN stands second.
                v = s.max(s.splat(0.0), v);
            }
            store_up_to(s, v, &mut out[i..j]);
        }
    }

    /// [`Output::store`] for whole panels of values and gates.
    #[inline(always)]
    fn store_gated<S: Simd>(&self, s: S, row: usize, column: usize, sum: &[f32]) {
        let begin = self.rows.begin(row) + column / 2;
        // SAFETY: tasks own different elements of C, and rows do not overlap.
        let out = unsafe { self.data.range(begin..begin + sum.len() / 2) };
        for (p, (sum, out)) in sum.chunks_exact(2 * GATED).zip(out.chunks_exact_mut(GATED)).enumerate() {
            let first = column / 2 + p * GATED;
            for i in (0..GATED).step_by(S::LANES) {
                let value = self.gated_input(s, &sum[i..], first + i);
                let gate = self.gated_input(s, &sum[GATED + i..], self.n / 2 + first + i);
                T::store(s, s.mul(value, gelu::<S, T>(s, gate).0), &mut out[i..]);
            }
        }
    }

    /// Sums with their bias, rounded as they would be if they were stored in between.
    #[inline(always)]
    fn gated_input<S: Simd>(&self, s: S, sum: &[f32], at: usize) -> S::V {
        let mut v = s.load(sum);
        if let Some(bias) = self.epilogue.bias {
            v = s.add(v, s.load(&bias[at..]));
        }
        let mut stored = [T::ZERO; GATED];
        T::store(s, v, &mut stored);
        T::load(s, &stored)
    }

    /// [`Output::store`] for a block of sums: `rows` rows from `row` on, `stride` apart in `sums`, of `columns` columns.
    #[inline(always)]
    pub fn store_block<S: Simd>(
        &self,
        s: S,
        (row, rows): (usize, usize),
        (column, columns): (usize, usize),
        (sums, stride): (&[f32], usize),
    ) {
        const MOST: usize = 4;
        let vectors = columns / S::LANES;
        let group = self.epilogue.group.map(|(_, size)| (row / size, (row + rows - 1) / size));
        if self.epilogue.gated
            || vectors > MOST
            || vectors * S::LANES != columns
            || group.is_some_and(|(first, last)| first != last)
        {
            for r in 0..rows {
                self.store(s, row + r, column, &sums[r * stride..][..columns]);
            }
            return;
        }
        // What is added to every row of the block.
        let mut added = [s.splat(0.0); MOST];
        for v in 0..vectors {
            let at = column + v * S::LANES;
            if let Some(bias) = self.epilogue.bias {
                added[v] = s.load(&bias[at..]);
            }
            if let (Some((values, _)), Some((group, _))) = (self.epilogue.group, group) {
                added[v] = s.add(added[v], T::load(s, &values[group * self.n + at..]));
            }
        }
        for r in 0..rows {
            let begin = self.rows.begin(row + r) + column;
            // SAFETY: tasks own different elements of C, and rows do not overlap.
            let out = unsafe { self.data.range(begin..begin + columns) };
            let sum = &sums[r * stride..][..columns];
            let residual = self.epilogue.residual.map(|residual| &residual[begin..begin + columns]);
            for v in 0..vectors {
                let lanes = v * S::LANES..(v + 1) * S::LANES;
                let mut total = s.add(s.load(&sum[lanes.clone()]), added[v]);
                if let Some(residual) = residual {
                    total = s.add(total, T::load(s, &residual[lanes.clone()]));
                }
                if self.epilogue.accumulate {
                    total = s.add(total, T::load(s, &out[lanes.clone()]));
                }
                if self.epilogue.relu {
                    total = s.max(s.splat(0.0), total);
                }
                T::store(s, total, &mut out[lanes]);
            }
        }
    }

    /// Passes a block of finished sums on, to the partial sums or, as [`Output::store_block`] does, to C.
    #[inline(always)]
    pub fn finish<S: Simd>(
        &self,
        s: S,
        (row, rows): (usize, usize),
        (column, columns): (usize, usize),
        (sums, stride): (&[f32], usize),
        partial: Partial,
    ) {
        let Some((partial, start)) = partial else {
            return self.store_block(s, (row, rows), (column, columns), (sums, stride));
        };
        for r in 0..rows {
            let begin = start + (row + r) * self.n + column;
            // SAFETY: tasks write different blocks of C or different partial sums.
            copy(s, &sums[r * stride..][..columns], unsafe { partial.range(begin..begin + columns) });
        }
    }

    /// Adds partial sums, `[shares, m, n]`, in order, and stores the whole.
    pub fn store_shares(&self, partial: &mut [f32], m: usize) {
        let size = m * self.n;
        let (first, others) = partial.split_at_mut(size);
        let others = &*others;
        const CHUNK: usize = 4096;
        for_chunks(first, CHUNK, |i, sum| {
            dispatch!(|s| {
                for other in others.chunks_exact(size) {
                    let other = &other[i * CHUNK..][..sum.len()];
                    add_to(s, other, sum);
                }
            });
        });
        let first = &*first;
        parallel_for(m.div_ceil(64), |task| {
            dispatch!(|s| for i in task * 64..(task * 64 + 64).min(m) {
                self.store(s, i, 0, &first[i * self.n..][..self.n]);
            });
        });
    }
}

/// Rows of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCount {
    /// All of them.
    pub all: usize,
    /// Those by whose number sums are cut: of one image, so that its bits are the same in any batch, or all.
    pub deciding: usize,
}

impl From<usize> for RowCount {
    /// Decides by all rows.
    fn from(all: usize) -> Self {
        Self { all, deciding: all }
    }
}

/// The cut of a product. A function of shapes and the instruction set only, never of the number of threads; `share` and `piece`, which say
/// in which order is added, depend on the deciding rows alone.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows and columns of C of a task.
    rows: usize,
    columns: usize,
    /// Inner dimension: packed piece, and what is summed up before it is added to the sum of the shares before.
    piece: usize,
    share: usize,
    /// Shares are summed up by tasks of their own, and added at the end.
    apart: bool,
    /// B is packed as a whole before the tasks begin.
    shared: bool,
}

impl Plan {
    fn new<S: MicroKernel>(m: RowCount, n: usize, k: usize, b_reusable: bool) -> Plan {
        // Enough tasks for many cores to be busy most of the time.
        const TASKS: usize = 16;
        let (tile_rows, width) = (S::ROWS, S::WIDTH);
        let even = |total: usize, most: usize, unit: usize| {
            let parts = total.div_ceil(most).max(1);
            total.div_ceil(parts).next_multiple_of(unit).max(unit)
        };
        let mut columns = even(n, 384, width);
        // One block where it is only a little higher, so that B is read once.
        let rows_of = |m: usize| even(m, if m <= 20 * tile_rows { 20 } else { 16 } * tile_rows, tile_rows);
        // A small C and long sums: cut the sums. A piece costs as much again as 32 to 64 steps of the sum.
        let parts = |m: usize| {
            let tiles = m.div_ceil(rows_of(m)) * n.div_ceil(columns);
            let cut = tiles < TASKS && k >= 1024 && (k >= 4 * m.max(n) || !b_reusable);
            if cut { TASKS.div_ceil(tiles.max(1)).min(k / 512).max(1) } else { 1 }
        };
        let share = match parts(m.deciding) {
            1 => k.max(1),
            parts => k.div_ceil(parts).next_multiple_of(8),
        };
        let apart = share < k && parts(m.all) > 1;
        let (m, mut rows) = (m.all, rows_of(m.all));
        let tiles = |rows: usize, columns: usize| m.div_ceil(rows) * n.div_ceil(columns);
        if !apart {
            while tiles(rows, columns) < TASKS && (rows > 2 * tile_rows || columns > 2 * width) {
                if rows > 2 * tile_rows && (rows >= columns || columns <= 2 * width) {
                    rows = (rows / 2).next_multiple_of(tile_rows);
                } else {
                    columns = (columns / 2).next_multiple_of(width);
                }
            }
        }
        let piece = even(share, KC, 8).min(KC);
        let shared = b_reusable && !apart && m > rows && k * n <= 32 << 20;
        Plan { rows, columns, piece, share, apart, shared }
    }

    /// The piece of the inner dimension that begins at `begin`, of the sums up to `end`.
    fn piece(&self, begin: usize, end: usize) -> Piece {
        let length = |begin: usize| self.piece.min(self.share - begin % self.share).min(end - begin);
        let depth = length(begin);
        let (after, number) = (begin + depth, begin / self.share);
        Piece {
            begin,
            depth,
            next: length(after),
            first: begin.is_multiple_of(self.share),
            whole_share: after == end || after.is_multiple_of(self.share),
            shares_before: if self.apart { 0 } else { number },
        }
    }

    /// Beginnings and lengths of all pieces.
    fn pieces(&self, k: usize) -> Vec<(usize, usize)> {
        let shares = (0..k).step_by(self.share).map(|begin| (begin, k.min(begin + self.share)));
        let pieces = |(from, to)| (from..to).step_by(self.piece).map(move |begin| (begin, self.piece.min(to - begin)));
        shares.flat_map(pieces).collect()
    }
}

/// Rows ahead that packing fetches from memory, where rows are too short and too far apart for the processor to see them coming.
pub const FETCH: usize = 2;

/// Length of a packed piece of B: `k` rows, columns rounded up to whole vectors.
fn packed_columns<S: Simd>(n: usize) -> usize {
    n.next_multiple_of(S::LANES)
}

/// Packs rows `k0..k0 + k`, columns `n0..n0 + n` of B: panels of a tile's width, each `[k, width]`; the last panel is
/// one vector wide if that is enough. Columns after the last are zero.
#[inline(always)]
pub fn pack_b<S: MicroKernel, X: Source>(
    s: S,
    b: &Operand<X>,
    (k0, k): (usize, usize),
    (n0, n): (usize, usize),
    to: &mut [f32],
) {
    let panels = n.div_ceil(S::WIDTH);
    let width = |j: usize| if n - j * S::WIDTH <= S::LANES { S::LANES } else { S::WIDTH };
    if b.k_rows && X::DIRECT {
        // Line by line, because lines may be pages apart.
        for p in 0..k {
            if p + FETCH < k {
                b.source.fetch(k0 + p + FETCH, n0, n);
            }
            for j in 0..panels {
                let w = width(j);
                let used = w.min(n - j * S::WIDTH);
                let line = &mut to[j * S::WIDTH * k + p * w..][..w];
                b.source.fill(s, k0 + p, n0 + j * S::WIDTH, &mut line[..used]);
                line[used..].fill(0.0);
            }
        }
    } else if b.k_rows {
        with_scratch(
            packed_columns::<S>(n),
            #[inline(always)]
            |line| {
                line[n..].fill(0.0);
                for p in 0..k {
                    if p + FETCH < k {
                        b.source.fetch(k0 + p + FETCH, n0, n);
                    }
                    b.source.fill(s, k0 + p, n0, &mut line[..n]);
                    for j in 0..panels {
                        let w = width(j);
                        let from = &line[j * S::WIDTH..][..w];
                        copy(s, from, &mut to[j * S::WIDTH * k + p * w..][..w]);
                    }
                }
            },
        );
    } else {
        let stride = k.next_multiple_of(S::LANES) + S::LANES;
        with_scratch(
            S::LANES * stride + S::LANES * S::LANES,
            #[inline(always)]
            |memory| {
                let (lines, block) = memory.split_at_mut(S::LANES * stride);
                for j in (0..n).step_by(S::LANES) {
                    let used = S::LANES.min(n - j);
                    for i in 0..S::LANES {
                        let line = &mut lines[i * stride..][..stride];
                        if i < used {
                            if j + i + FETCH < n {
                                b.source.fetch(n0 + j + i + FETCH, k0, k);
                            }
                            b.source.fill(s, n0 + j + i, k0, &mut line[..k]);
                        } else {
                            line.fill(0.0);
                        }
                    }
                    let panel = j / S::WIDTH;
                    let w = width(panel);
                    let to = &mut to[panel * S::WIDTH * k..][..w * k];
                    let offset = j - panel * S::WIDTH;
                    for p in (0..k).step_by(S::LANES) {
                        if p + S::LANES <= k {
                            s.transpose(&lines[p..], stride, &mut to[p * w + offset..], w);
                        } else {
                            s.transpose(&lines[p..], stride, block, S::LANES);
                            for q in p..k {
                                copy(
                                    s,
                                    &block[(q - p) * S::LANES..][..S::LANES],
                                    &mut to[q * w + offset..][..S::LANES],
                                );
                            }
                        }
                    }
                }
            },
        );
    }
}

/// Distance between lines of a packed k-major piece of A: an odd number of cache lines, so that the lines fall on
/// different sets of the cache.
fn line_stride(m: usize) -> usize {
    (m.div_ceil(16) | 1) * 16
}

/// Floats of a packed piece of A.
fn packed_rows(m: usize, k: usize, k_rows: bool) -> usize {
    if k_rows { line_stride(m) * k } else { m * ROW_STRIDE }
}

/// Packs rows `m0..m0 + m` of A, inner `k0..k0 + k`: row-major with [`ROW_STRIDE`], or k-major with
/// [`line_stride`], as the source is. What is between the rows or lines is left as it was; no tile reads it.
#[inline(always)]
fn pack_a<S: Simd, X: Source>(s: S, a: &Operand<X>, (k0, k): (usize, usize), (m0, m): (usize, usize), to: &mut [f32]) {
    if !a.k_rows {
        for i in 0..m {
            if i + FETCH < m {
                a.source.fetch(m0 + i + FETCH, k0, k);
            }
            a.source.fill(s, m0 + i, k0, &mut to[i * ROW_STRIDE..][..k]);
        }
        return;
    }
    for p in 0..k {
        if p + FETCH < k {
            a.source.fetch(k0 + p + FETCH, m0, m);
        }
        a.source.fill(s, k0 + p, m0, &mut to[p * line_stride(m)..][..m]);
    }
}

/// `C[m, n] = A B`, finished by the epilogue.
///
/// `b_reusable` tells that B is read in place at low cost, so that packing it once for all tasks is worth it.
pub fn product<A: Source, B: Source, T: Element>(
    (row_count, n, k): (RowCount, usize, usize),
    a: &Operand<A>,
    b: &Operand<B>,
    b_reusable: bool,
    (c, rows): (&mut [T], Rows),
    epilogue: Epilogue<T>,
) {
    let m = row_count.all;
    if m == 0 || n == 0 {
        return;
    }
    let out = SharedMut::new(c);
    let out = Output { data: &out, rows, n, epilogue };
    #[cfg(target_arch = "x86_64")]
    if (A::HALF || B::HALF) && crate::product16::product((row_count, n, k), a, b, b_reusable, &out) {
        return;
    }
    let plan = dispatch!(|s| plan_for(s, row_count, n, k, b_reusable));
    let run = Run { m, n, k, plan, a, b, packed: None, out };
    if plan.shared {
        // Panels do not straddle the columns of tasks, whose number is a multiple of the width.
        let line = dispatch!(|s| columns_for(s, n));
        with_scratch(line * k, |packed| {
            let group = plan.columns;
            let pieces = plan.pieces(k);
            let shared = SharedMut::new(packed);
            parallel_for(pieces.len() * n.div_ceil(group), |task| {
                let ((k0, kc), j) = (pieces[task % pieces.len()], task / pieces.len());
                let (n0, nc) = (j * group, group.min(n - j * group));
                let begin = line * k0 + kc * n0;
                dispatch!(|s| {
                    // SAFETY: pieces with different numbers do not overlap.
                    let to = unsafe { shared.range(begin..begin + kc * columns_for(s, nc)) };
                    pack_b(s, b, (k0, kc), (n0, nc), to);
                });
            });
            Run { packed: Some((packed, line)), ..run }.all();
        });
    } else {
        run.all();
    }
}

fn plan_for<S: MicroKernel>(_: S, m: RowCount, n: usize, k: usize, b_reusable: bool) -> Plan {
    Plan::new::<S>(m, n, k, b_reusable)
}

fn columns_for<S: Simd>(_: S, n: usize) -> usize {
    packed_columns::<S>(n)
}

/// A piece of the inner dimension.
struct Piece {
    begin: usize,
    depth: usize,
    /// Length of the piece after it, or 0.
    next: usize,
    /// The first and the last one of a share.
    first: bool,
    whole_share: bool,
    /// Shares that the task has summed up before.
    shares_before: usize,
}

struct Run<'a, A, B, T> {
    m: usize,
    n: usize,
    k: usize,
    plan: Plan,
    a: &'a Operand<A>,
    b: &'a Operand<B>,
    packed: Option<(&'a [f32], usize)>,
    out: Output<'a, T>,
}

impl<A: Source, B: Source, T: Element> Run<'_, A, B, T> {
    fn all(&self) {
        let Plan { rows, columns, share, apart, .. } = self.plan;
        let (down, across) = (self.m.div_ceil(rows), self.n.div_ceil(columns));
        let shares = if apart { self.k.div_ceil(share) } else { 1 };
        let part = |task: usize| {
            let (i, j) = (task % down, task / down);
            ((i * rows, rows.min(self.m - i * rows)), (j * columns, columns.min(self.n - j * columns)))
        };
        if shares == 1 {
            parallel_for(down * across, |task| {
                let (mr, nr) = part(task);
                dispatch!(|s| self.task(s, mr, nr, (0, self.k), None));
            });
            return;
        }
        // Sums of the shares side by side, then added in order.
        let size = self.m * self.n;
        with_scratch(shares * size, |partial| {
            let shared = SharedMut::new(partial);
            parallel_for(down * across * shares, |task| {
                let (mr, nr) = part(task / shares);
                let k0 = task % shares * share;
                let k1 = (k0 + share).min(self.k);
                dispatch!(|s| self.task(s, mr, nr, (k0, k1), Some((&shared, task % shares * size))));
            });
            self.out.store_shares(partial, self.m);
        });
    }

    /// One block of C over inner `k0..k1`: to the output, or to a dense `[m, n]` of partial sums.
    #[inline(always)]
    fn task<S: MicroKernel>(
        &self,
        s: S,
        (m0, m): (usize, usize),
        (n0, n): (usize, usize),
        (k0, k1): (usize, usize),
        partial: Partial,
    ) {
        let plan = &self.plan;
        let depth = plan.piece.min(k1 - k0);
        let panels = n.div_ceil(S::WIDTH);
        let tiles = m.div_ceil(S::ROWS);
        let tile_size = S::ROWS * S::WIDTH;
        let block = if depth == k1 - k0 { tile_size } else { tiles * panels * tile_size };
        let totals = if k1 - k0 > plan.share { block } else { 0 };
        let a_size = packed_rows(m, depth, self.a.k_rows).next_multiple_of(16);
        let b_size = if self.packed.is_some() { 0 } else { depth * packed_columns::<S>(n) };
        let b_size = b_size.next_multiple_of(16);
        with_scratch(
            a_size + b_size + block + totals,
            #[inline(always)]
            |memory| {
                let (packed_a, memory) = memory.split_at_mut(a_size);
                let (packed_b, sums) = memory.split_at_mut(b_size);
                let mut sums = sums.split_at_mut(block);
                let mut begin = k0;
                loop {
                    let piece = plan.piece(begin, k1);
                    let depth = piece.depth;
                    let b: &[f32] = match self.packed {
                        Some((all, line)) => &all[line * begin + n0 * depth..][..depth * packed_columns::<S>(n)],
                        None => {
                            pack_b(s, self.b, (begin, depth), (n0, n), packed_b);
                            packed_b
                        }
                    };
                    pack_a(s, self.a, (begin, depth), (m0, m), packed_a);
                    self.multiply(s, ((m0, m), (n0, n)), &piece, (packed_a, b), &mut sums, partial);
                    if piece.next == 0 {
                        break;
                    }
                    begin += depth;
                }
            },
        );
    }

    /// Adds the product of a piece to the sums of a block, which it passes on after the last piece. `sums` holds a tile, or
    /// all tiles where there are several pieces, and `totals` as many sums of the shares before, where there are several.
    #[inline(always)]
    fn multiply<S: MicroKernel>(
        &self,
        s: S,
        ((m0, m), (n0, n)): ((usize, usize), (usize, usize)),
        piece: &Piece,
        (packed_a, packed_b): (&[f32], &[f32]),
        (sums, totals): &mut (&mut [f32], &mut [f32]),
        partial: Partial,
    ) {
        let depth = piece.depth;
        let (tiles, panels, tile_size) = (m.div_ceil(S::ROWS), n.div_ceil(S::WIDTH), S::ROWS * S::WIDTH);
        let several = sums.len() > tile_size;
        for j in 0..panels {
            let used = S::WIDTH.min(n - j * S::WIDTH);
            let vectors = used.div_ceil(S::LANES);
            let (b, next_b) = packed_b[j * S::WIDTH * depth..].split_at(vectors * S::LANES * depth);
            for i in 0..tiles {
                let rows = S::ROWS.min(m - i * S::ROWS);
                let at = if several { (j * tiles + i) * tile_size } else { 0 };
                let sum = &mut sums[at..at + tile_size];
                let a = if self.a.k_rows {
                    let length = if depth == 0 { 0 } else { (depth - 1) * line_stride(m) + rows };
                    &packed_a[(i * S::ROWS).min(packed_a.len())..][..length]
                } else {
                    &packed_a[i * S::ROWS * ROW_STRIDE..][..rows * ROW_STRIDE]
                };
                let mut ahead = Ahead::nothing(b.as_ptr());
                self.next_rows(piece, (m0, m), j * tiles + i, &mut ahead.a);
                if self.packed.is_some() {
                    // The tiles below each other share the next panel out.
                    let lines = (vectors * S::LANES).div_ceil(tiles).min(8);
                    ahead.b = (next_b.as_ptr().wrapping_add(i * lines * depth), lines);
                }
                let run = s.tile(rows, vectors, self.a.k_rows);
                let (stride, c) = (line_stride(m), sum.as_mut_ptr());
                // SAFETY: `s` proves the instruction set. A: rows * ROW_STRIDE floats, or `depth` lines, B:
                // width * depth, C: rows of WIDTH, as sliced above.
                unsafe { run(depth, a.as_ptr(), stride, b.as_ptr(), c, S::WIDTH, !piece.first, &ahead) };
                if piece.whole_share && !totals.is_empty() {
                    add_share(s, piece.shares_before, piece.next == 0, sum, &mut totals[at..at + tile_size]);
                }
                if piece.next == 0 {
                    let (rows, columns) = ((m0 + i * S::ROWS, rows), (n0 + j * S::WIDTH, used));
                    self.out.finish(s, rows, columns, (sum, S::WIDTH), partial);
                }
            }
        }
    }

    /// The rows of A's next piece that are to come nearer during a call of the tile: as many for each call, as long as there are any.
    #[inline(always)]
    fn next_rows(&self, piece: &Piece, (m0, m): (usize, usize), call: usize, to: &mut [*const f32]) {
        let (begin, source) = (piece.begin + piece.depth, &self.a.source);
        let count = to.len();
        for (row, to) in (call * count..).zip(to) {
            let values = match self.a.k_rows {
                true if row < piece.next => source.wide_row(begin + row, m0, m),
                false if row < m && piece.next > 0 => source.wide_row(m0 + row, begin, piece.next),
                _ => None,
            };
            if let Some(values) = values {
                *to = values.as_ptr();
            }
        }
    }
}

/// Adds the sums of a share to those of the `before` shares before it, in the order of [`Output::store_shares`]: after the last share,
/// `sums` has the whole, and `totals` until then.
#[inline(always)]
pub fn add_share<S: Simd>(s: S, before: usize, last: bool, sums: &mut [f32], totals: &mut [f32]) {
    match (before, last) {
        (0, true) => {}
        (0, false) => totals.copy_from_slice(sums),
        (_, false) => add_to(s, sums, totals),
        (_, true) => add_to(s, totals, sums),
    }
}

/// `sum += other`.
#[inline(always)]
pub fn add_to<S: Simd>(s: S, other: &[f32], sum: &mut [f32]) {
    assert_eq!(other.len(), sum.len());
    for i in (0..sum.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(sum.len());
        let v = s.add(load_up_to(s, &sum[i..j]), load_up_to(s, &other[i..j]));
        store_up_to(s, v, &mut sum[i..j]);
    }
}
