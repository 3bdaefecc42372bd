//! The innermost loops of products of 8-bit matrices: a tile of C, sums in `i32`, which are exact.
//!
//! A is unsigned and row-major: a row's elements along the inner dimension are contiguous. B is signed and in panels of [`WIDTH`]
//! columns, each `[k / 4, columns, 4]`: the instructions multiply groups of four along the inner dimension. As all sums are exact, every
//! body gives the same bits.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Amx, Avx2Fma, Avx512, allowed};
#[cfg(target_arch = "x86_64")]
use std::arch::asm;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Columns of a panel of B.
pub const WIDTH: usize = 32;

/// Elements of a row of A that are multiplied together with as many of each column, at least: bodies read whole steps, so that B has zeros
/// after the last element of a row, and A anything.
pub const STEP: usize = 64;

/// Most rows of a tile of any body.
pub const MOST_ROWS: usize = 32;

/// A tile: where its operands lie, and how large it is.
#[derive(Clone, Copy)]
pub struct Tile8 {
    /// Rows of C, at most [`Isa8::rows`].
    pub rows: usize,
    /// Length of the sums.
    pub k: usize,
    /// The first row of A.
    pub a: *const u8,
    /// Distance between rows of A.
    pub a_stride: usize,
    /// The panel.
    pub b: *const i8,
    /// The sums, `[MOST_ROWS, WIDTH]`.
    pub c: *mut i32,
    /// Add to what C holds.
    pub accumulate: bool,
}

/// The instructions that multiply 8-bit matrices.
#[derive(Clone, Copy)]
pub enum Isa8 {
    /// Tiles of 16 by 16.
    #[cfg(target_arch = "x86_64")]
    Amx(AmxInt8),
    /// Dot products of four in vectors.
    #[cfg(target_arch = "x86_64")]
    Vnni(Vnni),
    /// Products of 16-bit pairs.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2Fma),
    /// Plain Rust.
    Scalar,
}

/// Proof that the processor has AMX tiles with 8-bit products beside what [`Amx`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct AmxInt8(Amx);

#[cfg(target_arch = "x86_64")]
impl AmxInt8 {
    fn new() -> Option<Self> {
        const AMX_INT8: u32 = 1 << 25;
        // CPUID leaf 7 exists where `Amx` was found, whose constructor looked there.
        Amx::new().filter(|_| __cpuid_count(7, 0).edx & AMX_INT8 != 0).map(Self)
    }
}

/// Proof that the processor has AVX-512 VNNI beside what [`Avx512`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Vnni(());

#[cfg(target_arch = "x86_64")]
impl Vnni {
    fn new() -> Option<Self> {
        Avx512::new().filter(|_| is_x86_feature_detected!("avx512vnni")).map(|_| Self(()))
    }
}

/// The instructions for 8-bit products in use; limited as [`crate::simd::isa`].
#[inline]
pub fn isa8() -> Isa8 {
    static ISA: OnceLock<Isa8> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(token) = AmxInt8::new().filter(|_| allowed() >= 4) {
                return Isa8::Amx(token);
            }
            if let Some(token) = Vnni::new().filter(|_| allowed() >= 2) {
                return Isa8::Vnni(token);
            }
            if let Some(token) = Avx2Fma::new().filter(|_| allowed() >= 1) {
                return Isa8::Avx2(token);
            }
        }
        Isa8::Scalar
    })
}

impl Isa8 {
    /// Name of the instruction set: `"amx-int8"`, `"avx512-vnni"`, `"avx2"` or `"scalar"`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => "amx-int8",
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Scalar => "scalar",
        }
    }

    /// Rows of a whole tile.
    pub fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => 32,
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(_) => 14,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 4,
            Self::Scalar => 4,
        }
    }

    /// Computes `C (+)= A B` for one tile.
    ///
    /// # Safety
    ///
    /// Readable: `k` elements, rounded up to [`STEP`], of each of [`MOST_ROWS`] rows of A, and as many of each column of the panel, which
    /// are zero from `k` on. Writable: [`MOST_ROWS`] rows of C.
    #[inline]
    pub unsafe fn tile(self, t: &Tile8) {
        debug_assert!((1..=self.rows()).contains(&t.rows));
        // SAFETY: the contract of this function; the tokens prove the instructions.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Amx(AmxInt8(amx)) => {
                    amx.configure_thread();
                    if t.rows > 16 { amx_2x2(t) } else { amx_1x2(t) }
                }
                #[cfg(target_arch = "x86_64")]
                Self::Vnni(_) => VNNI_TILES[t.rows - 1](t),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2(_) => AVX2_TILES[t.rows - 1](t),
                Self::Scalar => scalar_tile(t),
            }
        }
    }
}

/// # Safety
///
/// As for [`Isa8::tile`].
unsafe fn scalar_tile(t: &Tile8) {
    // SAFETY: the contract of this function: all of these are readable or writable.
    unsafe {
        let c = std::slice::from_raw_parts_mut(t.c, t.rows * WIDTH);
        if !t.accumulate {
            c.fill(0);
        }
        let panel = std::slice::from_raw_parts(t.b, t.k.next_multiple_of(4) * WIDTH);
        for (i, c) in c.chunks_exact_mut(WIDTH).enumerate() {
            let row = std::slice::from_raw_parts(t.a.add(i * t.a_stride), t.k.next_multiple_of(4));
            for (four, columns) in row.chunks_exact(4).zip(panel.chunks_exact(4 * WIDTH)) {
                for (c, column) in c.iter_mut().zip(columns.chunks_exact(4)) {
                    *c += four.iter().zip(column).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum::<i32>();
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
type TileFn = unsafe fn(&Tile8);

/// By rows less one.
#[cfg(target_arch = "x86_64")]
static AVX2_TILES: [TileFn; 4] = [avx2_tile::<1>, avx2_tile::<2>, avx2_tile::<3>, avx2_tile::<4>];

/// A tile by products of 16-bit numbers, which the instruction adds in pairs; 8-bit ones would saturate.
///
/// # Safety
///
/// As for [`Isa8::tile`]; needs AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2_tile<const ROWS: usize>(t: &Tile8) {
    // SAFETY: the contract of this function.
    unsafe {
        for columns in (0..WIDTH).step_by(8) {
            // Two sums for each of four columns in a vector.
            let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
            for step in 0..t.k.div_ceil(4) {
                let b = t.b.add(step * 4 * WIDTH + 4 * columns);
                let b = [0, 16].map(|at| _mm256_cvtepi8_epi16(_mm_loadu_si128(b.add(at).cast())));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let four = t.a.add(i * t.a_stride + 4 * step).cast::<i32>().read_unaligned();
                    let four = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(four, b));
                    }
                }
            }
            for (i, [low, high]) in sums.into_iter().enumerate() {
                let c = t.c.add(i * WIDTH + columns).cast::<__m256i>();
                let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high));
                let sum = if t.accumulate { _mm256_add_epi32(sum, _mm256_loadu_si256(c)) } else { sum };
                _mm256_storeu_si256(c, sum);
            }
        }
    }
}

/// One of four steps of [`vnni_tile`]: the place of the columns, and that of the rows' elements.
#[cfg(target_arch = "x86_64")]
macro_rules! vnni_step {
    ($b0:literal, $b1:literal, $a:literal, $([$low:literal, $high:literal, $row:literal]),*) => {
        concat!(
            "vmovdqu64 zmm30, [{b} + ", $b0, "]\n",
            "vmovdqu64 zmm31, [{b} + ", $b1, "]\n",
            $(
                "vpbroadcastd zmm28, [", $row, " + ", $a, "]\n",
                "vpdpbusd ", $low, ", zmm28, zmm30\n",
                "vpdpbusd ", $high, ", zmm28, zmm31\n",
            )*
        )
    };
}

/// A tile by dot products of four. A row is named by its two accumulators and its address: every third one has a pointer of its own, the
/// others are one or two distances further, which addresses of the instructions can say.
#[cfg(target_arch = "x86_64")]
macro_rules! vnni_tile {
    ($name:ident, $([$low:literal, $high:literal, $row:literal, $c0:literal, $c1:literal]),*) => {
        /// # Safety
        ///
        /// As for [`Isa8::tile`]; needs AVX-512 with VNNI.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn $name(t: &Tile8) {
            // SAFETY: the contract of this function.
            unsafe {
                asm!(
                    "test {accumulate}, {accumulate}",
                    "jz 3f",
                    $(concat!("vmovdqu64 ", $low, ", [{c} + ", $c0, "]\nvmovdqu64 ", $high, ", [{c} + ", $c1, "]"),)*
                    "jmp 4f",
                    "3:",
                    $(concat!("vpxord ", $low, ", ", $low, ", ", $low, "\nvpxord ", $high, ", ", $high, ", ", $high),)*
                    "4:",
                    "test {k}, {k}",
                    "jz 5f",
                    "2:",
                    vnni_step!("0", "64", "0", $([$low, $high, $row]),*),
                    vnni_step!("128", "192", "4", $([$low, $high, $row]),*),
                    vnni_step!("256", "320", "8", $([$low, $high, $row]),*),
                    vnni_step!("384", "448", "12", $([$low, $high, $row]),*),
                    "add {b}, 512",
                    "add {p0}, 16",
                    "add {p3}, 16",
                    "add {p6}, 16",
                    "add {p9}, 16",
                    "add {p12}, 16",
                    "dec {k}",
                    "jnz 2b",
                    "5:",
                    $(concat!("vmovdqu64 [{c} + ", $c0, "], ", $low, "\nvmovdqu64 [{c} + ", $c1, "], ", $high),)*
                    "/* {s} */",
                    accumulate = in(reg) u64::from(t.accumulate),
                    c = in(reg) t.c,
                    s = in(reg) t.a_stride,
                    b = inout(reg) t.b => _,
                    p0 = inout(reg) t.a => _,
                    p3 = inout(reg) t.a.wrapping_add(3 * t.a_stride) => _,
                    p6 = inout(reg) t.a.wrapping_add(6 * t.a_stride) => _,
                    p9 = inout(reg) t.a.wrapping_add(9 * t.a_stride) => _,
                    p12 = inout(reg) t.a.wrapping_add(12 * t.a_stride) => _,
                    k = inout(reg) t.k.div_ceil(16) => _,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm30") _,
                    out("zmm31") _,
                    options(nostack),
                );
            }
        }
    };
}

/// [`vnni_tile`] for every number of rows from the last one down: the rows in front, and those that are still to be named.
#[cfg(target_arch = "x86_64")]
macro_rules! vnni_tiles {
    ([$($before:tt),*]) => {};
    ([$($before:tt),*] $name:ident $row:tt $($rest:tt)*) => {
        vnni_tile!($name, $($before,)* $row);
        vnni_tiles!([$($before,)* $row] $($rest)*);
    };
}

#[cfg(target_arch = "x86_64")]
vnni_tiles!([]
    vnni_1 ["zmm0", "zmm1", "{p0}", "0", "64"]
    vnni_2 ["zmm2", "zmm3", "{p0} + {s}", "128", "192"]
    vnni_3 ["zmm4", "zmm5", "{p0} + 2 * {s}", "256", "320"]
    vnni_4 ["zmm6", "zmm7", "{p3}", "384", "448"]
    vnni_5 ["zmm8", "zmm9", "{p3} + {s}", "512", "576"]
    vnni_6 ["zmm10", "zmm11", "{p3} + 2 * {s}", "640", "704"]
    vnni_7 ["zmm12", "zmm13", "{p6}", "768", "832"]
    vnni_8 ["zmm14", "zmm15", "{p6} + {s}", "896", "960"]
    vnni_9 ["zmm16", "zmm17", "{p6} + 2 * {s}", "1024", "1088"]
    vnni_10 ["zmm18", "zmm19", "{p9}", "1152", "1216"]
    vnni_11 ["zmm20", "zmm21", "{p9} + {s}", "1280", "1344"]
    vnni_12 ["zmm22", "zmm23", "{p9} + 2 * {s}", "1408", "1472"]
    vnni_13 ["zmm24", "zmm25", "{p12}", "1536", "1600"]
    vnni_14 ["zmm26", "zmm27", "{p12} + {s}", "1664", "1728"]
);

/// By rows less one.
#[cfg(target_arch = "x86_64")]
static VNNI_TILES: [TileFn; 14] = [
    vnni_1, vnni_2, vnni_3, vnni_4, vnni_5, vnni_6, vnni_7, vnni_8, vnni_9, vnni_10, vnni_11, vnni_12, vnni_13, vnni_14,
];

/// Tiles as in [`crate::tile16`]: loads the sums before and stores them after the products, all in one block of assembly.
#[cfg(target_arch = "x86_64")]
macro_rules! amx_tile {
    ($name:ident, [$($tile:literal @ $row:literal + $byte:literal),*], [$($body:literal),*]) => {
        /// # Safety
        ///
        /// As for [`Isa8::tile`], on a thread whose tiles are configured.
        #[inline(always)]
        unsafe fn $name(t: &Tile8) {
            // SAFETY: the contract of this function.
            unsafe {
                let c1 = t.c.wrapping_add(16 * WIDTH);
                if t.accumulate {
                    asm!(
                        $(concat!("tileloadd ", $tile, ", [{", $row, "} + {sc} + ", $byte, "]"),)*
                        "/* {c1} */",
                        c0 = in(reg) t.c, c1 = in(reg) c1, sc = in(reg) WIDTH * 4,
                        options(nostack, preserves_flags),
                    );
                } else {
                    asm!($(concat!("tilezero ", $tile),)* options(nostack, preserves_flags, nomem));
                }
                let steps = t.k.div_ceil(STEP);
                if steps > 0 {
                    asm!(
                        "2:",
                        $($body,)*
                        "add {a0}, 64",
                        "add {a1}, 64",
                        "add {b}, 2048",
                        "dec {k}",
                        "jnz 2b",
                        a0 = inout(reg) t.a => _,
                        a1 = inout(reg) t.a.wrapping_add(16 * t.a_stride) => _,
                        sa = in(reg) t.a_stride,
                        b = inout(reg) t.b => _,
                        sb = in(reg) 128usize,
                        k = inout(reg) steps => _,
                        options(nostack),
                    );
                }
                asm!(
                    $(concat!("tilestored [{", $row, "} + {sc} + ", $byte, "], ", $tile),)*
                    "/* {c1} */",
                    c0 = in(reg) t.c, c1 = in(reg) c1, sc = in(reg) WIDTH * 4,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
amx_tile!(
    amx_2x2,
    ["tmm0" @ "c0" + "0", "tmm1" @ "c0" + "64", "tmm2" @ "c1" + "0", "tmm3" @ "c1" + "64"],
    [
        "tileloadd tmm4, [{a0} + {sa}]",
        "tileloadd tmm6, [{b} + {sb}]",
        "tdpbusd tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {sb} + 64]",
        "tdpbusd tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{a1} + {sa}]",
        "tdpbusd tmm2, tmm5, tmm6",
        "tdpbusd tmm3, tmm5, tmm7"
    ]
);
#[cfg(target_arch = "x86_64")]
amx_tile!(
    amx_1x2,
    ["tmm0" @ "c0" + "0", "tmm1" @ "c0" + "64"],
    [
        "tileloadd tmm4, [{a0} + {sa}]",
        "tileloadd tmm6, [{b} + {sb}]",
        "tdpbusd tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {sb} + 64]",
        "tdpbusd tmm1, tmm4, tmm7"
    ]
);
