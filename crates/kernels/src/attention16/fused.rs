//! The forward pass on AMX for heads of few channels: products and exponentials at the same time.
//!
//! A processor that multiplies tiles has one port left for most vector arithmetic, but that one is free; so the scores of the
//! next tile and the sums of the last one are multiplied while the exponentials of a tile are computed. Scores are stored as
//! late as can be, because stores that wait keep other instructions from starting. All sums of 16 queries stay in tiles,
//! which bounds the channels. Nothing is subtracted from the exponents: heads for which that may go wrong are left to
//! [`super::forward`].
//!
//! Of 32 keys, the even ones are multiplied with one tile and the odd ones with another: so the rounded probabilities of two
//! keys that stand beside each other come from the same lane, and need not be shuffled to become a left operand.

use std::arch::asm;

use super::forward::{Cut, Finish, Longest, add_squares, add_totals, bounded_by, load_half, longest_row};
use super::*;
use crate::scratch::Line;
use crate::simd::{Amx, prefetch_all, with_avx512_bf16};
use crate::tile16::interleave;

/// Keys that are multiplied at once.
const KEYS: usize = 32;

/// Queries whose sums are in tiles.
const GROUP: usize = 16;

/// Elements of bf16 of a tile, which has 16 lines of 64 bytes.
const TILE: usize = 512;

/// Squares that stay in the second cache while all queries of a block meet them: they come fast enough from there.
const BLOCK: usize = 32;

/// Squares that are packed at once.
const PACKED: usize = 4;

/// Queries of a block.
const QUERIES: usize = 128;

/// Channels for whose sums there are tiles: 4 of 8.
const MOST_CHANNELS: usize = 64;

/// True if this can do it.
pub fn suits(shape: &AttentionShape) -> bool {
    !shape.causal && shape.head_dim <= MOST_CHANNELS
}

/// Does what can be done, and returns the other heads.
pub fn forward(amx: Amx, shape: &AttentionShape, [q, k, v]: [&[bf16]; 3], finish: &Finish) -> Vec<usize> {
    let squares = shape.key_tokens.div_ceil(KEYS);
    let fused = Fused { s: amx.vectors(), shape, q, k, v, finish, squares };
    let (heads, blocks) = (shape.batch * shape.heads, squares.div_ceil(PACKED));
    Cut { shape, heads, packed: fused.packed(), blocks, unit: QUERIES }.run(
        |head, block, to, begin| {
            with_avx512_bf16(
                fused.s,
                #[inline(always)]
                || fused.pack(head, block * PACKED, to, begin),
            );
        },
        |head, queries, packed| {
            amx.configure_thread();
            with_avx512_bf16(
                fused.s,
                #[inline(always)]
                || fused.task(head, queries, packed),
            )
        },
    )
}

struct Fused<'a> {
    s: Avx512Bf16,
    shape: &'a AttentionShape,
    q: &'a [bf16],
    k: &'a [bf16],
    v: &'a [bf16],
    finish: &'a Finish<'a>,
    /// Groups of [`KEYS`] keys.
    squares: usize,
}

impl Fused<'_> {
    /// Tiles along the channels of queries and keys.
    #[inline(always)]
    fn steps(&self) -> usize {
        self.shape.head_dim.div_ceil(32)
    }

    /// Tiles along the channels of values and sums.
    #[inline(always)]
    fn tiles(&self) -> usize {
        self.shape.head_dim.div_ceil(16)
    }

    /// True if outputs are divided by sums of rounded probabilities: with few keys, one often has nearly all the weight, and its
    /// rounding would show.
    #[inline(always)]
    fn weighted(&self) -> bool {
        self.shape.key_tokens < BOUNDED_KEYS
    }

    /// Length of a head's packed keys, values, and greatest squared lengths of keys.
    fn packed(&self) -> usize {
        self.squares * (TILE / 2 * (2 * self.steps() + self.tiles()) + 1)
    }

    /// Packs some keys and values of a head.
    #[inline(always)]
    fn pack(&self, head: usize, first: usize, to: &SharedMut<f32>, begin: usize) {
        let (s, shape, d) = (self.s, self.shape, self.shape.head_dim);
        let (steps, tiles) = (self.steps(), self.tiles());
        let (k, v) = (shape.head(self.k, shape.key_tokens, head), shape.head(self.v, shape.key_tokens, head));
        for square in first..self.squares.min(first + PACKED) {
            let values = begin + self.squares * steps * TILE;
            let longest = values + self.squares * tiles * TILE / 2;
            // SAFETY: squares do not overlap.
            let (keys, values, longest) = unsafe {
                (
                    halves(to, begin + square * steps * TILE, steps * TILE),
                    halves(to, values + square * tiles * TILE / 2, tiles * TILE / 2),
                    to.range(longest + square..longest + square + 1),
                )
            };
            let count = KEYS.min(shape.key_tokens - square * KEYS);
            longest[0] = longest_row(s, &k, (square * KEYS, count), d);
            for (i, to) in keys.chunks_exact_mut(TILE).enumerate() {
                let rows = rows(s, &k, (square * KEYS + i % 2, 2, shape.key_tokens), (i / 2 * 32, d));
                s.transpose(bytemuck::cast_slice(&rows), 16, bytemuck::cast_slice_mut(to), 16);
            }
            for (i, to) in values.chunks_mut(2 * TILE).enumerate() {
                let even = rows(s, &v, (square * KEYS, 2, shape.key_tokens), (i * 32, d));
                let odd = rows(s, &v, (square * KEYS + 1, 2, shape.key_tokens), (i * 32, d));
                let (even, odd): (&[bf16], &[bf16]) = (bytemuck::cast_slice(&even), bytemuck::cast_slice(&odd));
                for (half, to) in to.chunks_exact_mut(TILE).enumerate() {
                    for (line, to) in to.chunks_exact_mut(32).enumerate() {
                        let at = line * 32 + half * 16;
                        interleave(s, &even[at..at + 16], &odd[at..at + 16], to);
                    }
                }
            }
        }
    }

    /// Brings the queries that come next nearer.
    #[inline(always)]
    fn fetch_ahead(&self, head: usize, queries: Range<usize>) {
        let q = self.shape.head(self.q, self.shape.query_tokens, head);
        for i in queries {
            prefetch_all(&q.data[i * q.stride..][..self.shape.head_dim]);
        }
    }

    /// Writes the tiles of a block of queries, and returns the greatest squared length.
    #[inline(always)]
    fn pack_queries(&self, head: usize, first: usize, count: usize, to: &mut [f32]) -> f32 {
        let (s, d, steps) = (self.s, self.shape.head_dim, self.steps());
        let q = self.shape.head(self.q, self.shape.query_tokens, head);
        let mut longest = Longest::new(s);
        for (to, first) in to.chunks_exact_mut(steps * TILE / 2).zip((first..first + count).step_by(GROUP)) {
            let mut squares = [Line([0.0; 16]); 16];
            let lines: &mut [Line] = bytemuck::cast_slice_mut(to);
            let asked = GROUP.min(self.shape.query_tokens - first);
            if asked < GROUP {
                lines.fill(Line([0.0; 16]));
            }
            for (i, square) in squares.iter_mut().take(asked).enumerate() {
                let row = &q.data[(first + i) * q.stride..][..d];
                let mut sum = s.splat(0.0);
                for (step, row) in row.chunks(32).enumerate() {
                    let v = load_half(s, row);
                    sum = add_squares(s, v, sum);
                    store_line(s, v, &mut lines[step * GROUP + i]);
                }
                s.store(sum, &mut square.0);
            }
            longest.update(s, &squares);
        }
        longest.get()
    }

    /// Some queries of a head, with its packed keys and values; `false` if exponents may be too large for it.
    #[inline(always)]
    fn task(&self, head: usize, range: Range<usize>, packed: &[f32]) -> bool {
        let (shape, wide) = (self.shape, self.tiles() * 16);
        let (keys, rest) = packed.split_at(self.squares * self.steps() * TILE);
        let (values, longest_keys) = rest.split_at(self.squares * self.tiles() * TILE / 2);
        let room = QUERIES.min(range.len()).next_multiple_of(GROUP);
        // Queries; scores; twice probabilities; sums; totals; totals of what is rounded; zeros.
        let sizes = [room * self.steps() * 16, TILE, TILE, room * wide, room * 16, room * 16, room];
        let (bounded, weighted) = (bounded_by(shape, longest_keys), self.weighted());
        with_scratch(
            sizes.iter().sum(),
            #[inline(always)]
            |memory| {
                let [queries, scores, p, sums, totals, weights, zeros] = carve(memory, sizes);
                zeros.fill(0.0);
                for i0 in range.clone().step_by(QUERIES) {
                    let m = QUERIES.min(range.end - i0);
                    if !bounded(self.pack_queries(head, i0, m, queries)) {
                        return false;
                    }
                    self.fetch_ahead(head, i0 + QUERIES..range.end.min(i0 + 2 * QUERIES));
                    totals.fill(0.0);
                    weights.fill(0.0);
                    let memory = Memory { keys, values, queries, scores, p, sums, totals, weights };
                    match (self.steps(), self.tiles()) {
                        (1, 1) => Walk::<1, 1>::new(self, memory).run(m.div_ceil(GROUP)),
                        (1, _) => Walk::<1, 2>::new(self, memory).run(m.div_ceil(GROUP)),
                        (_, 3) => Walk::<2, 3>::new(self, memory).run(m.div_ceil(GROUP)),
                        (..) => Walk::<2, 4>::new(self, memory).run(m.div_ceil(GROUP)),
                    }
                    if !add_totals(self.s, totals, m) || weighted && !add_totals(self.s, weights, m) {
                        return false;
                    }
                    let weights = weighted.then_some(&*weights);
                    self.finish.block(self.s, (head, i0, m), (sums, wide), (totals, zeros, weights));
                }
                true
            },
        )
    }
}

/// 16 rows of up to 32 elements from `column` on, of rows of `width`: the first, their distance, and of how many; zeros beyond.
#[inline(always)]
fn rows(
    s: Avx512Bf16,
    from: &Dense<bf16>,
    (first, step, count): (usize, usize, usize),
    (column, width): (usize, usize),
) -> [Line; 16] {
    let mut lines = [Line([0.0; 16]); 16];
    for (line, row) in lines.iter_mut().zip((first..count).step_by(step)) {
        let begin = row * from.stride + column;
        store_line(s, load_half(s, &from.data[begin..begin + 32.min(width - column)]), line);
    }
    lines
}

#[inline(always)]
fn store_line(_: Avx512Bf16, v: __m512i, to: &mut Line) {
    // SAFETY: a line is 64 bytes; the token proves the instruction.
    unsafe { _mm512_storeu_si512(to.0.as_mut_ptr().cast(), v) };
}

/// `$make!(tile, i)` for the first tiles of sums.
macro_rules! for_sums {
    ($make:ident) => {{
        $make!("tmm2", 0);
        if TILES > 1 {
            $make!("tmm3", 1);
        }
        if TILES > 2 {
            $make!("tmm4", 2);
        }
        if TILES > 3 {
            $make!("tmm5", 3);
        }
    }};
}

/// A place on the way of [`Walk`]: 16 queries and 32 keys.
#[derive(Clone, Copy)]
struct Square {
    group: usize,
    /// Of keys.
    square: usize,
}

/// The memory that a [`Walk`] works with.
struct Memory<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    queries: &'a [f32],
    /// Of the even keys of a square, then of the odd ones.
    scores: &'a mut [f32],
    /// Those of a square and of the one before.
    p: &'a mut [f32],
    sums: &'a mut [f32],
    totals: &'a mut [f32],
    weights: &'a mut [f32],
}

/// A block of queries on its way through the keys of its head. Tiles 0 and 1 are scores, 2 to 5 sums, 6 and 7 operands.
///
/// `STEPS` tiles lie along the channels of queries and keys, `TILES` along those of values and sums. All is in plain pointers,
/// which the compiler keeps in registers.
#[derive(Clone, Copy)]
struct Walk<const STEPS: usize, const TILES: usize> {
    s: Avx512Bf16,
    /// Makes scores exponents to base 2.
    factor: f32,
    tokens: usize,
    squares: usize,
    weighted: bool,
    keys: *const f32,
    values: *const f32,
    queries: *const f32,
    scores: *mut f32,
    p: *mut f32,
    sums: *mut f32,
    totals: *mut f32,
    weights: *mut f32,
}

impl<const STEPS: usize, const TILES: usize> Walk<STEPS, TILES> {
    #[inline(always)]
    fn new(fused: &Fused, memory: Memory) -> Self {
        let (squares, groups) = (fused.squares, memory.totals.len() / (GROUP * 16));
        assert!(STEPS == fused.steps() && TILES == fused.tiles() && squares > 0);
        assert!(memory.keys.len() >= squares * STEPS * TILE && memory.values.len() >= squares * TILES * TILE / 2);
        assert!(memory.queries.len() >= groups * STEPS * TILE / 2 && memory.sums.len() >= groups * TILES * TILE / 2);
        assert!(memory.scores.len() == TILE && memory.p.len() == TILE && memory.weights.len() == memory.totals.len());
        Self {
            s: fused.s,
            factor: exponent_factor(fused.shape),
            tokens: fused.shape.key_tokens,
            squares,
            weighted: fused.weighted(),
            keys: memory.keys.as_ptr(),
            values: memory.values.as_ptr(),
            queries: memory.queries.as_ptr(),
            scores: memory.scores.as_mut_ptr(),
            p: memory.p.as_mut_ptr(),
            sums: memory.sums.as_mut_ptr(),
            totals: memory.totals.as_mut_ptr(),
            weights: memory.weights.as_mut_ptr(),
        }
    }

    /// Fills sums and totals of `groups` groups of queries.
    #[inline(always)]
    fn run(self, groups: usize) {
        let mut now = Square { group: 0, square: 0 };
        let mut before = None;
        let mut place = 0;
        // SAFETY: squares are of those groups and keys that `new` found room for; the thread is configured.
        unsafe {
            self.multiply_scores(now);
            self.store_scores();
            self.begin_sums(now);
            loop {
                let next = self.next(now, groups);
                if let Some(next) = next {
                    self.multiply_scores(next);
                }
                self.weigh(now, 0, place);
                if let Some(before) = before {
                    self.add_values(before, 1 - place);
                }
                self.weigh(now, GROUP / 2, place);
                if let Some(before) = before.filter(|before: &Square| before.group != now.group) {
                    self.store_sums(before);
                    self.begin_sums(now);
                }
                before = Some(now);
                place = 1 - place;
                match next {
                    Some(next) => now = next,
                    None => break,
                }
                self.store_scores();
            }
            self.add_values(now, 1 - place);
            self.store_sums(now);
        }
    }

    /// All keys of a block for a group of queries, then the next group, then the next block.
    #[inline(always)]
    fn next(self, Square { group, square }: Square, groups: usize) -> Option<Square> {
        let first = square / BLOCK * BLOCK;
        if square + 1 < self.squares.min(first + BLOCK) {
            Some(Square { group, square: square + 1 })
        } else if group + 1 < groups {
            Some(Square { group: group + 1, square: first })
        } else if first + BLOCK < self.squares {
            Some(Square { group: 0, square: first + BLOCK })
        } else {
            None
        }
    }

    /// Begins the scores of a square.
    #[inline(always)]
    unsafe fn multiply_scores(self, at: Square) {
        // SAFETY: the contract of `run`.
        unsafe {
            let queries = self.queries.add(at.group * STEPS * TILE / 2);
            let keys = self.keys.add(at.square * STEPS * TILE);
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, preserves_flags, nomem));
            for step in 0..STEPS {
                asm!(
                    "tileloadd tmm6, [{q} + {line}]",
                    "tileloadd tmm7, [{k} + {line}]",
                    "tdpbf16ps tmm0, tmm6, tmm7",
                    "tileloadd tmm7, [{k} + {line} + 1024]",
                    "tdpbf16ps tmm1, tmm6, tmm7",
                    q = in(reg) queries.add(step * TILE / 2),
                    k = in(reg) keys.add(step * TILE),
                    line = in(reg) 64usize,
                    options(nostack, preserves_flags, readonly),
                );
            }
        }
    }

    /// Stores the scores.
    #[inline(always)]
    unsafe fn store_scores(self) {
        // SAFETY: the contract of `run`.
        unsafe {
            asm!(
                "tilestored [{to} + {line}], tmm0",
                "tilestored [{to} + {line} + 1024], tmm1",
                to = in(reg) self.scores,
                line = in(reg) 64usize,
                options(nostack, preserves_flags),
            );
        }
    }

    /// The probabilities of a square for half of its queries, beginning at `row`.
    #[inline(always)]
    unsafe fn weigh(self, at: Square, row: usize, place: usize) {
        let count = self.tokens - at.square * KEYS;
        // SAFETY: the contract of `run`.
        unsafe {
            let scores = [self.scores.add(row * 16).cast_const(), self.scores.add(TILE / 2 + row * 16).cast_const()];
            let p = self.p.add(place * TILE / 2 + row * 16);
            let begin = (at.group * GROUP + row) * 16;
            let totals = [self.totals.add(begin), self.weights.add(begin)];
            match (count >= KEYS, self.weighted) {
                (true, false) => exponentials::<false, false>(self.s, scores, self.factor, KEYS, totals, p),
                (true, true) => exponentials::<false, true>(self.s, scores, self.factor, KEYS, totals, p),
                (false, false) => exponentials::<true, false>(self.s, scores, self.factor, count, totals, p),
                (false, true) => exponentials::<true, true>(self.s, scores, self.factor, count, totals, p),
            }
        }
    }

    /// Adds the products of a square's probabilities and values.
    #[inline(always)]
    unsafe fn add_values(self, at: Square, place: usize) {
        macro_rules! add {
            ($tile:literal, $i:literal) => {
                asm!(
                    "tileloadd tmm7, [{v} + {line}]",
                    concat!("tdpbf16ps ", $tile, ", tmm6, tmm7"),
                    v = in(reg) self.values.add((at.square * TILES + $i) * TILE / 2),
                    line = in(reg) 64usize,
                    options(nostack, preserves_flags, readonly),
                )
            };
        }
        // SAFETY: the contract of `run`.
        unsafe {
            asm!(
                "tileloadd tmm6, [{p} + {line}]",
                p = in(reg) self.p.add(place * TILE / 2),
                line = in(reg) 64usize,
                options(nostack, preserves_flags, readonly),
            );
            for_sums!(add);
        }
    }

    /// Takes up the sums of a group; before the first keys, they are zero.
    #[inline(always)]
    unsafe fn begin_sums(self, at: Square) {
        macro_rules! zero {
            ($tile:literal, $i:literal) => {
                asm!(concat!("tilezero ", $tile), options(nostack, preserves_flags, nomem))
            };
        }
        macro_rules! load {
            ($tile:literal, $i:literal) => {
                asm!(
                    concat!("tileloadd ", $tile, ", [{from} + {stride}]"),
                    from = in(reg) self.sums.add(at.group * TILES * TILE / 2 + $i * 16),
                    stride = in(reg) TILES * 64,
                    options(nostack, preserves_flags, readonly),
                )
            };
        }
        // SAFETY: the contract of `run`.
        unsafe {
            if at.square < BLOCK {
                for_sums!(zero);
            } else {
                for_sums!(load);
            }
        }
    }

    /// Puts down the sums of a group, in rows.
    #[inline(always)]
    unsafe fn store_sums(self, at: Square) {
        macro_rules! store {
            ($tile:literal, $i:literal) => {
                asm!(
                    concat!("tilestored [{to} + {stride}], ", $tile),
                    to = in(reg) self.sums.add(at.group * TILES * TILE / 2 + $i * 16),
                    stride = in(reg) TILES * 64,
                    options(nostack, preserves_flags),
                )
            };
        }
        // SAFETY: the contract of `run`.
        unsafe { for_sums!(store) };
    }
}

/// Writes `p = 2^(factor * score)`, rounded, for 8 rows of 16 scores of even keys and as many of odd ones, and adds what is not
/// rounded to the first of `totals`, and what is to the second, if `WEIGHTED`. Only the first `count` keys are looked at if `MASKED`;
/// the others' p is zero.
///
/// Rounding is by integers, because the processor rounds to bf16 where it multiplies tiles; halves are rounded up.
///
/// # Safety
///
/// All pointers are to 128 floats.
#[inline(always)]
unsafe fn exponentials<const MASKED: bool, const WEIGHTED: bool>(
    s: Avx512Bf16,
    scores: [*const f32; 2],
    factor: f32,
    count: usize,
    totals: [*mut f32; 2],
    p: *mut f32,
) {
    let masks = [lanes(count.div_ceil(2)), lanes(count / 2)];
    // SAFETY: the contract of this function; the token proves the instructions.
    unsafe {
        let (factor, half) = (_mm512_set1_ps(factor), _mm512_set1_epi32(0x8000));
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        for i in (0..GROUP / 2 * 16).step_by(16) {
            let mut powers = [_mm512_setzero_ps(); 2];
            let mut rounded = [_mm512_setzero_si512(); 2];
            for odd in 0..2 {
                let power = exp2_near(s, _mm512_mul_ps(_mm512_loadu_ps(scores[odd].add(i)), factor));
                powers[odd] = if MASKED { _mm512_maskz_mov_ps(masks[odd], power) } else { power };
                rounded[odd] = _mm512_add_epi32(_mm512_castps_si512(powers[odd]), half);
            }
            let total = _mm512_loadu_ps(totals[0].add(i));
            _mm512_storeu_ps(totals[0].add(i), _mm512_add_ps(total, _mm512_add_ps(powers[0], powers[1])));
            if WEIGHTED {
                let even = _mm512_castsi512_ps(_mm512_and_si512(rounded[0], upper));
                let odd = _mm512_castsi512_ps(_mm512_and_si512(rounded[1], upper));
                let total = _mm512_loadu_ps(totals[1].add(i));
                _mm512_storeu_ps(totals[1].add(i), _mm512_add_ps(total, _mm512_add_ps(even, odd)));
            }
            let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(rounded[0]), rounded[1]);
            _mm512_storeu_si512(p.add(i).cast(), both);
        }
    }
}
