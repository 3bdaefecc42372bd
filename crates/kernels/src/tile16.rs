//! The innermost loops of products of bf16 matrices: a tile of C in registers, sums in f32.
//!
//! A is row-major: a row's elements along the inner dimension are contiguous. B is in panels of [`WIDTH`] columns (the last
//! one may have 16), each `[k / 2, columns, 2]`: the instructions multiply pairs along the inner dimension. Both are
//! padded with zeros to a multiple of [`Kernel16::K_STEP`].

use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

use crate::element::Element;
use crate::scratch::Line;
use crate::simd::{Amx, Avx512Bf16, Simd, prefetch, with_avx512_bf16};

/// Longest piece of the inner dimension that is packed at once.
pub const KC: usize = 1024;

/// Distance between the rows of a packed piece of A, in elements: an odd number of cache lines, so that rows fall on
/// different sets of the cache.
pub const A_STRIDE: usize = KC + 32;

/// [`KC`] and [`A_STRIDE`] of products with shorter pieces.
pub const SHORT_KC: usize = 320;
/// See [`SHORT_KC`].
pub const SHORT_STRIDE: usize = SHORT_KC + 32;

/// Columns of a whole panel of B.
pub const WIDTH: usize = 32;

/// A tile: where its operands lie, and how large it is.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Rows of C, at most [`Kernel16::ROWS`].
    pub rows: usize,
    /// Columns of the panel: 16 or 32.
    pub columns: usize,
    /// Length of the sums, a multiple of [`Kernel16::K_STEP`].
    pub k: usize,
    /// The first row of each group of [`Kernel16::GROUP`] rows of A.
    pub a: [*const bf16; 2],
    /// Distance between the rows of a group.
    pub a_stride: usize,
    /// The panel.
    pub b: *const bf16,
    /// The sums, row-major.
    pub c: *mut f32,
    /// Distance between rows of C.
    pub c_stride: usize,
    /// Add to what C holds.
    pub accumulate: bool,
    /// The memory to bring nearer while multiplying, and the number of cache lines in each step of 32 elements of the sums, up to 16.
    /// A hint only.
    pub next: Option<(*const bf16, usize)>,
}

/// Instructions that multiply bf16 matrices.
pub trait Kernel16: Copy + Send + Sync + 'static {
    /// Rows of a whole tile.
    const ROWS: usize;
    /// Rows of A that lie evenly apart: a tile has one or two such groups.
    const GROUP: usize;
    /// The length of sums must be a multiple of it.
    const K_STEP: usize;
    /// True if A can lie anywhere; otherwise `a_stride` must be [`A_STRIDE`] or [`SHORT_STRIDE`].
    const ANY_STRIDE: bool;
    /// Good number of rows of a task.
    const TASK_ROWS: usize;
    /// Longest piece of the sums that is worth its place in the cache.
    const PIECE: usize;

    /// The vectors that go with it.
    fn vectors(self) -> Avx512Bf16;

    /// Runs `f` compiled for the instructions.
    fn run<R>(self, f: impl FnOnce() -> R) -> R;

    /// Computes `C (+)= A B` for one tile.
    ///
    /// # Safety
    ///
    /// Readable: in each group `k` elements of each of [`Kernel16::GROUP`] rows (of the first `rows` rows only, for kernels
    /// whose group is the tile), and `k * columns` elements of the panel. Writable: `columns` elements of all rows of C,
    /// rounded up to whole groups. `a[1]` is not used if one group holds all rows.
    unsafe fn tile(self, tile: &Tile);
}

impl Kernel16 for Amx {
    const ROWS: usize = 32;
    const GROUP: usize = 16;
    const K_STEP: usize = 32;
    const ANY_STRIDE: bool = true;
    const TASK_ROWS: usize = 256;
    const PIECE: usize = 320;

    #[inline(always)]
    fn vectors(self) -> Avx512Bf16 {
        Amx::vectors(self)
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        self.configure_thread();
        with_avx512_bf16(Amx::vectors(self), f)
    }

    #[inline(always)]
    unsafe fn tile(self, t: &Tile) {
        // SAFETY: the contract of this function; the token proves the instructions, and `run` configured the thread.
        unsafe {
            match (t.rows > 16, t.columns > 16) {
                (true, true) => match t.next {
                    Some((_, 0..=4)) => amx_2x2_ahead4(t),
                    Some((_, 5..=8)) => amx_2x2_ahead8(t),
                    Some(_) => amx_2x2_ahead16(t),
                    None => amx_2x2(t),
                },
                (true, false) => amx_2x1(t),
                (false, true) => amx_1x2(t),
                (false, false) => amx_1x1(t),
            }
        }
    }
}

/// Loads the sums before and stores them after `body`, which multiplies; all in one block of assembly, because the
/// compiler knows nothing of tiles. `$c` names a tile and its place in C as a displacement from one of two row pointers.
macro_rules! amx_tile {
    (
        $name:ident, [$($tile:literal @ $row:literal + $byte:literal),*], [$($body:literal),*], $b_row:literal,
        [$($ahead:literal),*]
    ) => {
        /// # Safety
        ///
        /// As for [`Kernel16::tile`], on a thread whose tiles are configured.
        #[inline(always)]
        unsafe fn $name(t: &Tile) {
            // SAFETY: the contract of this function.
            unsafe {
                let c1 = t.c.wrapping_add(16 * t.c_stride);
                if t.accumulate {
                    asm!(
                        $(concat!("tileloadd ", $tile, ", [{", $row, "} + {sc} + ", $byte, "]"),)*
                        "/* {c1} */",
                        c0 = in(reg) t.c, c1 = in(reg) c1, sc = in(reg) t.c_stride * 4,
                        options(nostack, preserves_flags),
                    );
                } else {
                    asm!($(concat!("tilezero ", $tile),)* options(nostack, preserves_flags, nomem));
                }
                let steps = t.k / 32;
                if steps > 0 {
                    asm!(
                        "2:",
                        $($body,)*
                        "add {a0}, 64",
                        "add {a1}, 64",
                        concat!("add {b}, 16 * ", $b_row),
                        $(concat!("prefetcht1 [{next} + ", $ahead, "]"),)*
                        concat!("add {next}, 0" $(, " * 0 + 64 + ", $ahead)*),
                        "dec {k}",
                        "jnz 2b",
                        a0 = inout(reg) t.a[0] => _,
                        a1 = inout(reg) t.a[1] => _,
                        sa = in(reg) t.a_stride * 2,
                        b = inout(reg) t.b => _,
                        sb = in(reg) $b_row as usize,
                        next = inout(reg) t.next.map_or(t.b, |next| next.0) => _,
                        k = inout(reg) steps => _,
                        options(nostack),
                    );
                }
                asm!(
                    $(concat!("tilestored [{", $row, "} + {sc} + ", $byte, "], ", $tile),)*
                    "/* {c1} */",
                    c0 = in(reg) t.c, c1 = in(reg) c1, sc = in(reg) t.c_stride * 4,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

/// [`amx_tile`] with 32 rows and columns, bringing some lines nearer in each step.
macro_rules! amx_2x2 {
    ($name:ident, $ahead:tt) => {
        amx_tile!(
            $name,
            ["tmm0" @ "c0" + "0", "tmm1" @ "c0" + "64", "tmm2" @ "c1" + "0", "tmm3" @ "c1" + "64"],
            [
                "tileloadd tmm4, [{a0} + {sa}]",
                "tileloadd tmm6, [{b} + {sb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {sb} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {sa}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7"
            ],
            128,
            $ahead
        );
    };
}

amx_2x2!(amx_2x2, []);
amx_2x2!(amx_2x2_ahead4, [0, 64, 128, 192]);
amx_2x2!(amx_2x2_ahead8, [0, 64, 128, 192, 256, 320, 384, 448]);
amx_2x2!(amx_2x2_ahead16, [0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960]);
amx_tile!(
    amx_2x1,
    ["tmm0" @ "c0" + "0", "tmm2" @ "c1" + "0"],
    [
        "tileloadd tmm4, [{a0} + {sa}]",
        "tileloadd tmm6, [{b} + {sb}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{a1} + {sa}]",
        "tdpbf16ps tmm2, tmm5, tmm6"
    ],
    64,
    []
);
amx_tile!(
    amx_1x2,
    ["tmm0" @ "c0" + "0", "tmm1" @ "c0" + "64"],
    [
        "tileloadd tmm4, [{a0} + {sa}]",
        "tileloadd tmm6, [{b} + {sb}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {sb} + 64]",
        "tdpbf16ps tmm1, tmm4, tmm7"
    ],
    128,
    []
);
amx_tile!(
    amx_1x1,
    ["tmm0" @ "c0" + "0"],
    ["tileloadd tmm4, [{a0} + {sa}]", "tileloadd tmm6, [{b} + {sb}]", "tdpbf16ps tmm0, tmm4, tmm6"],
    64,
    []
);

impl Kernel16 for Avx512Bf16 {
    const ROWS: usize = 14;
    const GROUP: usize = 14;
    const K_STEP: usize = 2;
    const ANY_STRIDE: bool = false;
    const TASK_ROWS: usize = 112;
    // A panel of B and the rows of a tile together are as large as the nearest cache.
    const PIECE: usize = 512;

    #[inline(always)]
    fn vectors(self) -> Avx512Bf16 {
        self
    }

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        with_avx512_bf16(self, f)
    }

    #[inline(always)]
    unsafe fn tile(self, t: &Tile) {
        debug_assert!([A_STRIDE, SHORT_STRIDE].contains(&t.a_stride));
        let tiles = if t.a_stride == A_STRIDE { &DOT_TILES } else { &SHORT_DOT_TILES };
        let vectors = t.columns / 16;
        // SAFETY: the contract of this function; the token proves the instructions.
        unsafe { tiles[t.rows - 1][vectors - 1](t) }
    }
}

type TileFn = unsafe fn(&Tile);

macro_rules! dot_tiles {
    ($stride:ident: $($rows:literal)*) => {
        [$([dot_tile::<$rows, 1, $stride> as TileFn, dot_tile::<$rows, 2, $stride> as TileFn]),*]
    };
}

/// By rows less one, and vectors less one.
static DOT_TILES: [[TileFn; 2]; 14] = dot_tiles!(A_STRIDE: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
/// For rows of A that are [`SHORT_STRIDE`] apart.
static SHORT_DOT_TILES: [[TileFn; 2]; 14] = dot_tiles!(SHORT_STRIDE: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);

/// The same bits as a vector of bf16.
#[inline(always)]
fn halves(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(v) }
}

/// A tile by dot products of pairs; the rows of A are `STRIDE` apart, so that their addresses are constants.
///
/// # Safety
///
/// As for [`Kernel16::tile`]; needs AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn dot_tile<const ROWS: usize, const VECTORS: usize, const STRIDE: usize>(t: &Tile) {
    // SAFETY: the contract of this function.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let (mut a, mut b) = (t.a[0], t.b);
        let (mut next, lines) = t.next.unwrap_or((t.b, 0));
        for pair in 0..t.k / 2 {
            if pair % 16 == 0 {
                for line in 0..lines {
                    prefetch(next.wrapping_add(line * 32));
                }
                next = next.wrapping_add(lines * 32);
            }
            let mut columns = [_mm512_setzero_si512(); VECTORS];
            for v in 0..VECTORS {
                columns[v] = _mm512_loadu_si512(b.add(v * 32).cast());
            }
            for i in 0..ROWS {
                let pair = halves(_mm512_set1_epi32(a.add(i * STRIDE).cast::<i32>().read_unaligned()));
                for v in 0..VECTORS {
                    sum[i][v] = _mm512_dpbf16_ps(sum[i][v], pair, halves(columns[v]));
                }
            }
            a = a.add(2);
            b = b.add(VECTORS * 32);
        }
        for i in 0..ROWS {
            for v in 0..VECTORS {
                let c = t.c.add(i * t.c_stride + v * 16);
                let total = if t.accumulate { _mm512_add_ps(_mm512_loadu_ps(c), sum[i][v]) } else { sum[i][v] };
                _mm512_storeu_ps(c, total);
            }
        }
    }
}

/// Interleaves two rows of `n` elements, rounded to bf16: `to[2 j] = a[j]`, `to[2 j + 1] = b[j]`.
#[inline(always)]
pub fn interleave<T: Element>(s: Avx512Bf16, a: &[T], b: &[T], to: &mut [bf16]) {
    assert!(a.len() == b.len() && to.len() == 2 * a.len());
    let whole = a.len() / 16 * 16;
    for i in (0..whole).step_by(16) {
        interleave_16(s, &a[i..i + 16], &b[i..i + 16], &mut to[2 * i..2 * i + 32]);
    }
    if whole < a.len() {
        let mut both = [bf16::ZERO; 32];
        let (a, b, to) = (&a[whole..], &b[whole..], &mut to[2 * whole..]);
        interleave_rounded(s, T::load_part(s, a), T::load_part(s, b), &mut both);
        to.copy_from_slice(&both[..to.len()]);
    }
}

/// [`interleave`] for pairs of rows of `w` elements, 16 or 32, `stride` apart.
#[inline(always)]
pub fn interleave_all(s: Avx512Bf16, rows: &[bf16], stride: usize, w: usize, to: &mut [bf16]) {
    /// Rows that are fetched ahead, if so far apart that the processor would not do it.
    const AHEAD: usize = 16;
    const FAR: usize = 512;
    for (i, to) in to.chunks_exact_mut(2 * w).enumerate() {
        let (a, b) = (&rows[2 * i * stride..][..w], &rows[(2 * i + 1) * stride..][..w]);
        if stride >= FAR {
            prefetch(a.as_ptr().wrapping_add(AHEAD * stride));
            prefetch(b.as_ptr().wrapping_add(AHEAD * stride));
        }
        if w == 32 { interleave_32(s, a, b, to) } else { interleave_16(s, a, b, to) }
    }
}

/// [`interleave`] for 32 elements.
#[inline(always)]
fn interleave_32(_: Avx512Bf16, a: &[bf16], b: &[bf16], to: &mut [bf16]) {
    /// 0, 32, 1, 33, … and the same 16 later.
    const ORDER: [[u16; 32]; 2] = {
        let mut order = [[0; 32]; 2];
        let mut i = 0;
        while i < 64 {
            order[i / 32][i % 32] = (i / 2 + i % 2 * 32) as u16;
            i += 1;
        }
        order
    };
    assert!(a.len() == 32 && b.len() == 32 && to.len() == 64);
    // SAFETY: the token proves AVX-512 with BW; the slices are as long as what is read and written.
    unsafe {
        let (a, b) = (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast()));
        for (half, order) in ORDER.iter().enumerate() {
            let pairs = _mm512_permutex2var_epi16(a, _mm512_loadu_si512(order.as_ptr().cast()), b);
            _mm512_storeu_si512(to.as_mut_ptr().add(32 * half).cast(), pairs);
        }
    }
}

/// [`interleave`] for 16 elements.
#[inline(always)]
fn interleave_16<T: Element>(s: Avx512Bf16, a: &[T], b: &[T], to: &mut [bf16]) {
    assert!(a.len() == 16 && b.len() == 16 && to.len() == 32);
    // SAFETY: the token proves AVX-512 with BW and BF16; the slices are as long as what is read and written; both types
    // that are transmuted are 64 bytes of integers.
    unsafe {
        let both = match (T::as_half(a), T::as_half(b)) {
            (Some(a), Some(b)) => {
                let low = _mm512_castsi256_si512(_mm256_loadu_si256(a.as_ptr().cast()));
                _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(b.as_ptr().cast()))
            }
            _ => std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(T::load(s, b), T::load(s, a))),
        };
        _mm512_storeu_si512(to.as_mut_ptr().cast(), alternate(both));
    }
}

/// The words of the lower and the upper half by turns: 0, 16, 1, 17, …
///
/// # Safety
///
/// The processor must have AVX-512 with BW.
#[inline(always)]
pub unsafe fn alternate(both: __m512i) -> __m512i {
    // SAFETY: the contract of this function.
    unsafe {
        let order = _mm512_add_epi32(
            _mm512_set1_epi32(0x0010_0000),
            _mm512_mullo_epi32(
                _mm512_set1_epi32(0x0001_0001),
                _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            ),
        );
        _mm512_permutexvar_epi16(order, both)
    }
}

/// Interleaves two vectors, rounded to bf16: `to[2 j] = a[j]`, `to[2 j + 1] = b[j]`.
#[inline(always)]
pub fn interleave_rounded(_: Avx512Bf16, a: __m512, b: __m512, to: &mut [bf16]) {
    assert!(to.len() >= 32);
    // SAFETY: the token proves AVX-512 with BW and BF16; `to` is as long as what is written; both types that are transmuted are 64 bytes of
    // integers.
    unsafe {
        let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
        _mm512_storeu_si512(to.as_mut_ptr().cast(), alternate(both));
    }
}

/// The first elements of 16 pairs, and the second ones.
#[inline(always)]
pub fn split_pairs(_: Avx512Bf16, pairs: &[bf16]) -> [__m512; 2] {
    assert!(pairs.len() >= 32);
    // SAFETY: the token proves AVX-512; the slice is as long as what is read; all types are 64 bytes without invalid values.
    unsafe {
        let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
        let (first, second) = (_mm512_slli_epi32::<16>(pairs), _mm512_and_si512(pairs, _mm512_set1_epi32(!0xffff)));
        [_mm512_castsi512_ps(first), _mm512_castsi512_ps(second)]
    }
}

/// Transposes a block of 16 by 16 pairs: `to[j * to_stride + i] = from[i * stride + j]` for pairs `i`, `j`; strides in
/// elements, even.
#[inline(always)]
pub fn transpose_pairs(s: Avx512Bf16, from: &[bf16], stride: usize, to: &mut [bf16], to_stride: usize) {
    let (from, to) = (bytemuck::cast_slice::<bf16, f32>(from), bytemuck::cast_slice_mut::<bf16, f32>(to));
    s.transpose(from, stride / 2, to, to_stride / 2);
}

/// [`transpose_pairs`] of 16 rows of 32 values each, which are rounded on the way. With `PAST_CACHE`, where the lines of `to` are those of
/// the cache, they go to memory without being read before, and [`past_caches_done`](crate::stream::past_caches_done) must be called when
/// all are written.
#[inline(always)]
pub fn transpose_rounded<const PAST_CACHE: bool>(
    s: Avx512Bf16,
    from: &[f32],
    stride: usize,
    to: &mut [bf16],
    to_stride: usize,
) {
    assert!(from.len() >= 15 * stride + 32 && to.len() >= 15 * to_stride + 32);
    let mut pairs = [Line([0.0; 16]); 16];
    for (i, pairs) in pairs.iter_mut().enumerate() {
        let (low, high) = (s.load(&from[i * stride..]), s.load(&from[i * stride + 16..]));
        // SAFETY: the token proves AVX-512 with BF16; both types are 64 bytes without invalid values.
        pairs.0 = unsafe { std::mem::transmute::<__m512bh, [f32; 16]>(_mm512_cvtne2ps_pbh(high, low)) };
    }
    let pairs: &[f32] = bytemuck::cast_slice(&pairs);
    if !PAST_CACHE || !to.as_ptr().cast::<Line>().is_aligned() || !to_stride.is_multiple_of(32) {
        return s.transpose(pairs, 16, bytemuck::cast_slice_mut::<bf16, f32>(to), to_stride / 2);
    }
    let mut columns = [Line([0.0; 16]); 16];
    s.transpose(pairs, 16, bytemuck::cast_slice_mut(&mut columns), 16);
    for (j, column) in columns.iter().enumerate() {
        // SAFETY: inside of `to` by the assertion, and aligned as checked above; the token proves the instruction.
        unsafe { _mm512_stream_ps(to.as_mut_ptr().add(j * to_stride).cast(), _mm512_load_ps(column.0.as_ptr())) };
    }
}

/// Transposes a block of 8 by 8 squares of 2 by 2 elements, and the squares themselves. Both blocks are 8 lines, [`WIDTH`] pairs apart,
/// of 8 squares: `from` has the two elements of a column next to each other and then the other column's, `to` those of a row.
#[inline(always)]
pub fn swap_pairs(_: Avx512Bf16, from: &[bf16], to: &mut [bf16]) {
    const LINE: usize = 2 * WIDTH;
    /// The middle words of each quadruple change places.
    const ORDER: [i16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 4 * 4 + [0, 2, 1, 3][i % 4]) as i16;
            i += 1;
        }
        order
    };
    assert!(from.len() >= 7 * LINE + 32 && to.len() >= 7 * LINE + 32);
    // SAFETY: the token proves AVX-512 with BW; all lines are inside by the assertion.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let mut lines = [_mm512_setzero_si512(); 8];
        for (i, line) in lines.iter_mut().enumerate() {
            *line = _mm512_permutexvar_epi16(order, _mm512_loadu_si512(from.as_ptr().add(i * LINE).cast()));
        }
        for odd in 0..2 {
            // Squares 2 q + odd of two lines in quarter q, then the quarters.
            let mut two = [_mm512_setzero_si512(); 4];
            for (i, two) in two.iter_mut().enumerate() {
                let (even, other) = (lines[2 * i], lines[2 * i + 1]);
                *two = if odd == 0 { _mm512_unpacklo_epi64(even, other) } else { _mm512_unpackhi_epi64(even, other) };
            }
            let [a, b, c, d] = two;
            let (first, second) = (_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0x88>(c, d));
            let (third, fourth) = (_mm512_shuffle_i64x2::<0xdd>(a, b), _mm512_shuffle_i64x2::<0xdd>(c, d));
            let columns = [
                _mm512_shuffle_i64x2::<0x88>(first, second),
                _mm512_shuffle_i64x2::<0x88>(third, fourth),
                _mm512_shuffle_i64x2::<0xdd>(first, second),
                _mm512_shuffle_i64x2::<0xdd>(third, fourth),
            ];
            for (q, column) in columns.into_iter().enumerate() {
                _mm512_storeu_si512(to.as_mut_ptr().add((2 * q + odd) * LINE).cast(), column);
            }
        }
    }
}
