//! The innermost loop of every matrix product: a tile of C held in registers.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2Fma, Avx512, Avx512Bf16, with_avx2, with_avx512};
use crate::simd::{Scalar, Simd, prefetch};

/// Longest piece of the inner dimension that is packed at once.
pub const KC: usize = 256;

/// Distance between rows of a packed row-major panel of A; not a power of two, so that rows fall on different sets of
/// the cache.
pub const ROW_STRIDE: usize = KC + 16;

/// Computes one tile: `C[i, j] (+)= sum over p < k of A[i, p] B[p, j]`.
///
/// Arguments: `k`, `a`, `a_stride`, `b`, `c`, `c_stride`, `accumulate`.
///
/// * A is row-major `a[i * ROW_STRIDE + p]` (`a_stride` is not used) or k-major `a[p * a_stride + i]`;
/// * B is `b[p * width + j]`, width = vectors * lanes, aligned to the vector;
/// * C is `c[i * c_stride + j]`.
///
/// # Safety
///
/// The processor must have the instruction set the function was asked from (a token proves it), and all elements named
/// above must be readable, those of C writable, for i < rows, p < k, j < width.
pub type TileFn = unsafe fn(usize, *const f32, usize, *const f32, *mut f32, usize, bool, &Ahead);

/// The memory that a tile brings nearer while it multiplies; hints only, so any address will do.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// The next panel of B, and the number of its cache lines to fetch in each [`Ahead::STEPS`] steps of the sums.
    pub b: (*const f32, usize),
    /// Rows of the next piece of A, one line of each in as many steps.
    pub a: [*const f32; 2],
}

impl Ahead {
    /// Steps of the sums between fetches: as many as a line has elements.
    const STEPS: usize = 16;

    /// Fetches what is near already.
    pub fn nothing(b: *const f32) -> Self {
        Ahead { b: (b, 0), a: [b; 2] }
    }

    #[inline(always)]
    fn fetch(&self, at: usize) {
        for a in self.a {
            prefetch(a.wrapping_add(at));
        }
        let (b, lines) = self.b;
        for line in at / Self::STEPS * lines..(at / Self::STEPS + 1) * lines {
            prefetch(b.wrapping_add(line * 16));
        }
    }
}

/// The micro-kernel of an instruction set. A product needs nothing else from it, so a kernel for another number format
/// (bf16 pairs, for example) is one more implementation with its own packing.
pub trait MicroKernel: Simd {
    /// Rows of a full tile.
    const ROWS: usize;
    /// Columns of a full tile: two vectors.
    const WIDTH: usize = 2 * Self::LANES;

    /// The function for tiles of `rows` (1 to [`MicroKernel::ROWS`]) by `vectors` (1 or 2), A row-major or k-major.
    fn tile(self, rows: usize, vectors: usize, k_major: bool) -> TileFn;
}

/// The tile itself.
///
/// # Safety
///
/// As for [`TileFn`], with A at `a[i * row + p * step]`.
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    k: usize,
    (a, row, step): (*const f32, usize, usize),
    b: *const f32,
    (c, c_stride): (*mut f32, usize),
    accumulate: bool,
    ahead: &Ahead,
) {
    let width = VECTORS * S::LANES;
    let mut sum = [[s.splat(0.0); VECTORS]; ROWS];
    // SAFETY: the contract of this function.
    unsafe {
        for begin in (0..k).step_by(Ahead::STEPS) {
            ahead.fetch(begin);
            for p in begin..(begin + Ahead::STEPS).min(k) {
                let b = std::slice::from_raw_parts(b.add(p * width), width);
                let mut columns = [s.splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    columns[v] = s.load(&b[v * S::LANES..]);
                }
                for i in 0..ROWS {
                    let x = s.splat(*a.add(i * row + p * step));
                    for v in 0..VECTORS {
                        sum[i][v] = s.fma(x, columns[v], sum[i][v]);
                    }
                }
            }
        }
        for i in 0..ROWS {
            let c = std::slice::from_raw_parts_mut(c.add(i * c_stride), width);
            for v in 0..VECTORS {
                let c = &mut c[v * S::LANES..];
                let total = if accumulate { s.add(s.load(c), sum[i][v]) } else { sum[i][v] };
                s.store(total, c);
            }
        }
    }
}

macro_rules! micro_kernel {
    ($token:ty, $rows:literal, $name:ident, $with:path, [$($n:literal)*]) => {
        mod $name {
            use super::*;

            /// One function of the table below, with the features of the instruction set.
            ///
            /// # Safety
            ///
            /// As for [`TileFn`].
            pub unsafe fn run<const ROWS: usize, const VECTORS: usize, const K_MAJOR: bool>(
                k: usize,
                a: *const f32,
                a_stride: usize,
                b: *const f32,
                c: *mut f32,
                c_stride: usize,
                accumulate: bool,
                ahead: &Ahead,
            ) {
                // SAFETY: the contract of this function; it also promises the instruction set, so that the token and
                // the call of the function with its features are sound.
                unsafe {
                    let s: $token = std::mem::transmute(());
                    $with(
                        s,
                        #[inline(always)]
                        || {
                            // In here, so that the compiler knows the constant distances.
                            let a = if K_MAJOR { (a, 1, a_stride) } else { (a, ROW_STRIDE, 1) };
                            tile::<$token, ROWS, VECTORS>(s, k, a, b, (c, c_stride), accumulate, ahead);
                        },
                    );
                }
            }
        }

        impl MicroKernel for $token {
            const ROWS: usize = $rows;

            fn tile(self, rows: usize, vectors: usize, k_major: bool) -> TileFn {
                match (rows, vectors, k_major) {
                    $(
                        ($n, 1, false) => $name::run::<$n, 1, false>,
                        ($n, 1, true) => $name::run::<$n, 1, true>,
                        ($n, 2, false) => $name::run::<$n, 2, false>,
                        ($n, 2, true) => $name::run::<$n, 2, true>,
                    )*
                    _ => unreachable!("no tile of {rows} rows and {vectors} vectors"),
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
micro_kernel!(Avx512, 14, avx512, with_avx512, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
#[cfg(target_arch = "x86_64")]
micro_kernel!(Avx2Fma, 6, avx2, with_avx2, [1 2 3 4 5 6]);

#[cfg(target_arch = "x86_64")]
impl MicroKernel for Avx512Bf16 {
    const ROWS: usize = <Avx512 as MicroKernel>::ROWS;

    fn tile(self, rows: usize, vectors: usize, k_major: bool) -> TileFn {
        self.without_bf16().tile(rows, vectors, k_major)
    }
}

/// Stands where the other instruction sets enable their features.
#[inline(always)]
fn with_nothing<R>(_: Scalar, f: impl FnOnce() -> R) -> R {
    f()
}
micro_kernel!(Scalar, 4, scalar, with_nothing, [1 2 3 4]);
