//! Vectors of f32 for three instruction sets, chosen at run time.
//!
//! A kernel is written once, generic over a token `S: Simd`. Holding a token proves that the processor has the
//! instructions. The [`dispatch!`] macro compiles the kernel once per instruction set, inside a function that has the
//! features enabled; everything below it is `#[inline(always)]`.

use half::bf16;
use std::sync::OnceLock;

/// Brings the cache line at an address into the second-level cache; a hint, for any address.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching is part of every x86-64 and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// [`prefetch`] of all lines of a slice.
#[inline(always)]
pub fn prefetch_all<T>(values: &[T]) {
    for i in (0..values.len()).step_by(64 / size_of::<T>()) {
        prefetch(&raw const values[i]);
    }
}

/// Rounds to nearest even; NaN stays NaN.
#[inline(always)]
pub fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// One instruction set: a vector type and what can be done with it.
///
/// `load` and `store` panic on slices shorter than [`Simd::LANES`]; the `_part` forms take shorter ones. As the length
/// of a slice of constant size is known where these are inlined, the checks cost nothing there.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Values in a vector.
    const LANES: usize;
    /// A vector of f32.
    type V: Copy;

    /// All lanes the same.
    fn splat(self, x: f32) -> Self::V;
    /// Reads a whole vector.
    fn load(self, from: &[f32]) -> Self::V;
    /// Reads less than a vector; the other lanes are zero.
    fn load_part(self, from: &[f32]) -> Self::V;
    /// Writes a whole vector.
    fn store(self, v: Self::V, to: &mut [f32]);
    /// Writes the first lanes.
    fn store_part(self, v: Self::V, to: &mut [f32]);
    /// Reads a whole vector.
    fn load_bf16(self, from: &[bf16]) -> Self::V;
    /// Reads less than a vector; the other lanes are zero.
    fn load_bf16_part(self, from: &[bf16]) -> Self::V;
    /// Writes a whole vector, rounding to nearest even.
    fn store_bf16(self, v: Self::V, to: &mut [bf16]);
    /// Writes the first lanes, rounding to nearest even.
    fn store_bf16_part(self, v: Self::V, to: &mut [bf16]);
    /// [`Simd::store`] past the caches, if the address is a multiple of the vector's size and the processor can. Then
    /// [`past_caches_done`](crate::stream::past_caches_done) must be called when all is written.
    #[inline(always)]
    fn stream(self, v: Self::V, to: &mut [f32]) {
        self.store(v, to);
    }
    /// [`Simd::store_bf16`] like [`Simd::stream`].
    #[inline(always)]
    fn stream_bf16(self, v: Self::V, to: &mut [bf16]) {
        self.store_bf16(v, to);
    }

    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the processor can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater; `b` if one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if one is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Nearest whole number, ties to even; for magnitudes below 2^22.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for whole `n` in -252..=252.
    fn scale(self, a: Self::V, n: Self::V) -> Self::V;
    /// `x - floor(x)`, for magnitudes below 2^22, and what [`Simd::scale`] takes for `floor(x)`.
    #[inline(always)]
    fn split(self, x: Self::V) -> (Self::V, Self::V) {
        // A whole x may count as 1 above the whole number before it.
        let floor = self.round(self.sub(x, self.splat(0.5)));
        (self.sub(x, floor), floor)
    }
    /// `1 / a` for normal numbers below 2^126, within 2 ULP.
    #[inline(always)]
    fn reciprocal(self, a: Self::V) -> Self::V {
        self.div(self.splat(1.0), a)
    }
    /// [`Simd::reciprocal`], within 2^-14 relative.
    #[inline(always)]
    fn reciprocal_near(self, a: Self::V) -> Self::V {
        self.reciprocal(a)
    }
    /// `a < b ? x : y`, lane by lane.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Sum of the lanes, by halves.
    fn sum(self, v: Self::V) -> f32;
    /// Greatest lane.
    fn max_lane(self, v: Self::V) -> f32;

    /// `table[codes[i]]`, lane by lane, for as many codes as there are lanes.
    #[inline(always)]
    fn look_up(self, codes: &[u8], table: &[f32; 256]) -> Self::V {
        let mut values = [0f32; MOST_LANES];
        for (value, &code) in values.iter_mut().zip(&codes[..Self::LANES]) {
            *value = table[usize::from(code)];
        }
        self.load(&values)
    }
    /// `table[index[i]]`, lane by lane, for whole numbers of 0 to 7.
    #[inline(always)]
    fn pick(self, index: Self::V, table: &[f32; 8]) -> Self::V {
        let mut values = [0f32; MOST_LANES];
        self.store(index, &mut values);
        for value in &mut values {
            *value = table[*value as usize & 7];
        }
        self.load(&values)
    }
    /// Writes whole numbers of 0 to 255 as bytes, as many as there are lanes.
    #[inline(always)]
    fn store_bytes(self, v: Self::V, to: &mut [u8]) {
        let mut values = [0f32; MOST_LANES];
        self.store(v, &mut values);
        for (byte, value) in to[..Self::LANES].iter_mut().zip(values) {
            *byte = value as u8;
        }
    }

    /// `to[i * to_stride + j] = from[j * from_stride + i]` for `i`, `j` below [`Simd::LANES`].
    #[inline(always)]
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                to[i * to_stride + j] = from[j * from_stride + i];
            }
        }
    }
    /// `-a`
    #[inline(always)]
    fn neg(self, a: Self::V) -> Self::V {
        self.sub(self.splat(0.0), a)
    }
    /// Absolute value.
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        self.max(a, self.neg(a))
    }
}

/// Values in the widest vector.
const MOST_LANES: usize = 16;

/// The portable instruction set: plain Rust on arrays.
#[derive(Clone, Copy)]
pub struct Scalar;

const N: usize = 4;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; N] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Scalar {
    const LANES: usize = N;
    type V = [f32; N];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; N] {
        let from = &from[..N];
        each(|i| from[i])
    }
    #[inline(always)]
    fn load_part(self, from: &[f32]) -> [f32; N] {
        each(|i| from.get(i).copied().unwrap_or(0.0))
    }
    #[inline(always)]
    fn store(self, v: [f32; N], to: &mut [f32]) {
        to[..N].copy_from_slice(&v);
    }
    #[inline(always)]
    fn store_part(self, v: [f32; N], to: &mut [f32]) {
        to.iter_mut().zip(v).for_each(|(to, v)| *to = v);
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> [f32; N] {
        let from = &from[..N];
        each(|i| f32::from_bits((from[i].to_bits() as u32) << 16))
    }
    #[inline(always)]
    fn load_bf16_part(self, from: &[bf16]) -> [f32; N] {
        each(|i| from.get(i).map_or(0.0, |x| f32::from_bits((x.to_bits() as u32) << 16)))
    }
    #[inline(always)]
    fn store_bf16(self, v: [f32; N], to: &mut [bf16]) {
        self.store_bf16_part(v, &mut to[..N]);
    }
    #[inline(always)]
    fn store_bf16_part(self, v: [f32; N], to: &mut [bf16]) {
        to.iter_mut().zip(v).for_each(|(to, v)| *to = bf16::from_bits(round_to_bf16(v)));
    }
    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; N]) -> [f32; N] {
        each(|i| a[i].sqrt())
    }
    #[inline(always)]
    fn round(self, a: [f32; N]) -> [f32; N] {
        // 1.5 * 2^23: adding it pushes the fraction out.
        const SHIFT: f32 = 12_582_912.0;
        each(|i| (a[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale(self, a: [f32; N], n: [f32; N]) -> [f32; N] {
        each(|i| {
            let half = (n[i] as i32) >> 1;
            let rest = (n[i] as i32) - half;
            let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
            a[i] * power(half) * power(rest)
        })
    }
    #[inline(always)]
    fn select_lt(self, a: [f32; N], b: [f32; N], x: [f32; N], y: [f32; N]) -> [f32; N] {
        each(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn sum(self, v: [f32; N]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    fn max_lane(self, v: [f32; N]) -> f32 {
        v[0].max(v[1]).max(v[2].max(v[3]))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Amx, Avx2Fma, Avx512, Avx512Bf16, with_avx2, with_avx512, with_avx512_bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use half::bf16;
    use std::arch::x86_64::*;

    /// Proof that the processor has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx512(());

    impl Avx512 {
        /// The token, if this processor has the instructions.
        pub fn new() -> Option<Self> {
            let found = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma");
            found.then_some(Self(()))
        }
    }

    impl Avx512 {
        /// 16 little-endian values of IEEE half precision.
        #[inline(always)]
        pub fn load_f16(self, from: &[u8; 32]) -> __m512 {
            // SAFETY: the token proves AVX-512; 32 bytes are read.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
        }
    }

    /// Proof that the processor has AVX-512 BF16 beside what [`Avx512`] proves.
    #[derive(Clone, Copy)]
    pub struct Avx512Bf16(Avx512);

    impl Avx512Bf16 {
        /// The token, if this processor has the instructions.
        pub fn new() -> Option<Self> {
            Avx512::new().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
        }

        /// The token without BF16.
        #[inline(always)]
        pub fn without_bf16(self) -> Avx512 {
            self.0
        }
    }

    /// Proof that the processor has AMX tiles with bf16 products beside what [`Avx512Bf16`] proves, and that the system
    /// lets this process use them.
    #[derive(Clone, Copy)]
    pub struct Amx(Avx512Bf16);

    impl Amx {
        /// The token, if this processor has the instructions and the system allows them.
        pub fn new() -> Option<Self> {
            Avx512Bf16::new().filter(|_| amx_in_processor() && amx_permitted()).map(Self)
        }

        /// The vectors that come with it.
        #[inline(always)]
        pub fn vectors(self) -> Avx512Bf16 {
            self.0
        }

        /// Gives all eight tiles of this thread their full size, 16 rows of 64 bytes, unless that is done already.
        ///
        /// Nothing else in this process changes the configuration, so it is loaded once in a thread's life.
        #[inline]
        pub fn configure_thread(self) {
            thread_local! {
                static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
            }
            #[repr(C, align(64))]
            struct TileConfig {
                palette: u8,
                start_row: u8,
                reserved: [u8; 14],
                row_bytes: [u16; 16],
                rows: [u8; 16],
            }
            if DONE.replace(true) {
                return;
            }
            let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
            row_bytes[..8].fill(64);
            rows[..8].fill(16);
            let config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
            // SAFETY: the token proves the instruction; it reads the 64 bytes of `config`.
            unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        }
    }

    /// True if the processor has AMX-TILE and AMX-BF16 and the system saves the tiles (CPUID leaf 7, XCR0).
    fn amx_in_processor() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        const TILE_STATE: u64 = 0b11 << 17;
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        #[target_feature(enable = "xsave")]
        fn saved_state() -> u64 {
            // SAFETY: the bit OSXSAVE tells that the instruction exists.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: as above.
        features & AMX_BF16 != 0 && features & AMX_TILE != 0 && unsafe { saved_state() } & TILE_STATE == TILE_STATE
    }

    /// Asks the system for the use of tiles, which Linux grants to a process on request only.
    #[cfg(target_os = "linux")]
    fn amx_permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const REQUEST_PERMISSION: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let result: i64;
        // SAFETY: a system call without memory operands; the kernel changes rax, rcx and r11 only.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") REQUEST_PERMISSION,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn amx_permitted() -> bool {
        false
    }

    /// Proof that the processor has AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2Fma(());

    impl Avx2Fma {
        /// The token, if this processor has the instructions.
        pub fn new() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
        }
    }

    /// Runs `f`, compiled with the AVX-512 features.
    #[inline(always)]
    pub fn with_avx512<R>(_: Avx512, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: the token proves that the processor has the features.
        unsafe { inner(f) }
    }

    /// Runs `f`, compiled with the AVX-512 features and BF16.
    #[inline(always)]
    pub fn with_avx512_bf16<R>(_: Avx512Bf16, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: the token proves that the processor has the features.
        unsafe { inner(f) }
    }

    /// Runs `f`, compiled with AVX2 and FMA.
    #[inline(always)]
    pub fn with_avx2<R>(_: Avx2Fma, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: the token proves that the processor has the features.
        unsafe { inner(f) }
    }

    /// Lanes below `n`.
    #[inline(always)]
    fn mask(n: usize) -> __mmask16 {
        debug_assert!(n < 16);
        (1u16 << n) - 1
    }

    /// Rounds to nearest even in the low halves; NaN stays NaN.
    ///
    /// # Safety
    ///
    /// Needs AVX-512 F.
    #[inline(always)]
    unsafe fn round16(v: __m512) -> __m256i {
        // SAFETY: the caller promises the features; no memory is touched.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
        }
    }

    // SAFETY, for every block below: the token `self` proves that the processor has the instructions, and each memory
    // access is inside the slice by the assertion above it or by the mask made from its length.
    impl Simd for Avx512 {
        const LANES: usize = 16;
        type V = __m512;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, from: &[f32]) -> __m512 {
            assert!(from.len() >= 16);
            // SAFETY: see above the impl.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn load_part(self, from: &[f32]) -> __m512 {
            assert!(from.len() < 16);
            // SAFETY: see above the impl.
            unsafe { _mm512_maskz_loadu_ps(mask(from.len()), from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m512, to: &mut [f32]) {
            assert!(to.len() >= 16);
            // SAFETY: see above the impl.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn store_part(self, v: __m512, to: &mut [f32]) {
            assert!(to.len() < 16);
            // SAFETY: see above the impl.
            unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask(to.len()), v) }
        }
        #[inline(always)]
        fn stream(self, v: __m512, to: &mut [f32]) {
            if !to.as_ptr().cast::<__m512>().is_aligned() {
                return self.store(v, to);
            }
            assert!(to.len() >= 16);
            // SAFETY: see above the impl; aligned as this instruction wants it.
            unsafe { _mm512_stream_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn stream_bf16(self, v: __m512, to: &mut [bf16]) {
            // SAFETY: see above the impl.
            stream16(unsafe { round16(v) }, to);
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16]) -> __m512 {
            assert!(from.len() >= 16);
            // SAFETY: see above the impl.
            unsafe {
                let half = _mm256_loadu_si256(from.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        fn load_bf16_part(self, from: &[bf16]) -> __m512 {
            assert!(from.len() < 16);
            // SAFETY: see above the impl.
            unsafe {
                let half = _mm256_maskz_loadu_epi16(mask(from.len()), from.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        fn store_bf16(self, v: __m512, to: &mut [bf16]) {
            assert!(to.len() >= 16);
            // SAFETY: see above the impl.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), round16(v)) }
        }
        #[inline(always)]
        fn store_bf16_part(self, v: __m512, to: &mut [bf16]) {
            assert!(to.len() < 16);
            // SAFETY: see above the impl.
            unsafe { _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask(to.len()), round16(v)) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        fn sqrt(self, a: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_sqrt_ps(a) }
        }
        #[inline(always)]
        fn round(self, a: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        fn scale(self, a: __m512, n: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_scalef_ps(a, n) }
        }
        #[inline(always)]
        fn split(self, x: __m512) -> (__m512, __m512) {
            // The scaling rounds its exponent down by itself.
            // SAFETY: see above the impl.
            unsafe { (_mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x), x) }
        }
        #[inline(always)]
        fn reciprocal(self, a: __m512) -> __m512 {
            // Newton's step doubles the digits.
            let y = self.reciprocal_near(a);
            // SAFETY: see above the impl.
            let rest = unsafe { _mm512_fnmadd_ps(a, y, self.splat(1.0)) };
            self.fma(y, rest, y)
        }
        #[inline(always)]
        fn reciprocal_near(self, a: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_rcp14_ps(a) }
        }
        #[inline(always)]
        fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
        }
        #[inline(always)]
        fn sum(self, v: __m512) -> f32 {
            // SAFETY: see above the impl.
            unsafe {
                let high = _mm512_extractf32x8_ps::<1>(v);
                sum8(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            }
        }
        #[inline(always)]
        fn max_lane(self, v: __m512) -> f32 {
            // SAFETY: see above the impl.
            unsafe {
                let high = _mm512_extractf32x8_ps::<1>(v);
                max8(_mm256_max_ps(_mm512_castps512_ps256(v), high))
            }
        }
        #[inline(always)]
        fn look_up(self, codes: &[u8], table: &[f32; 256]) -> __m512 {
            assert!(codes.len() >= 16);
            // SAFETY: see above the impl; the table is 16 vectors long.
            unsafe {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                // Each permutation looks at the five lowest bits; the others choose between permutations.
                let mut parts = [_mm512_setzero_ps(); 8];
                for (i, part) in parts.iter_mut().enumerate() {
                    let at = table.as_ptr().add(32 * i);
                    *part = _mm512_permutex2var_ps(_mm512_loadu_ps(at), codes, _mm512_loadu_ps(at.add(16)));
                }
                for (bit, left) in [(1 << 5, 4), (1 << 6, 2), (1 << 7, 1)] {
                    let upper = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(bit));
                    for i in 0..left {
                        parts[i] = _mm512_mask_blend_ps(upper, parts[2 * i], parts[2 * i + 1]);
                    }
                }
                parts[0]
            }
        }
        #[inline(always)]
        fn pick(self, index: __m512, table: &[f32; 8]) -> __m512 {
            // SAFETY: see above the impl; the load is as long as the table, and twice beside itself it is a vector.
            unsafe {
                let table = _mm512_broadcast_f32x8(_mm256_loadu_ps(table.as_ptr()));
                _mm512_permutexvar_ps(_mm512_cvttps_epi32(index), table)
            }
        }
        #[inline(always)]
        fn store_bytes(self, v: __m512, to: &mut [u8]) {
            assert!(to.len() >= 16);
            // SAFETY: see above the impl.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v))) }
        }
        #[inline(always)]
        fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
            assert!(from.len() >= 15 * from_stride + 16 && to.len() >= 15 * to_stride + 16);
            // SAFETY: see above the impl; rows 0..16 of both are inside by the assertion.
            unsafe {
                let mut r = [_mm512_setzero_ps(); 16];
                for (j, r) in r.iter_mut().enumerate() {
                    *r = _mm512_loadu_ps(from.as_ptr().add(j * from_stride));
                }
                // Pairs of rows, then pairs of pairs, inside the four 128-bit quarters …
                let mut t = r;
                for i in 0..8 {
                    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
                }
                for i in 0..4 {
                    let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
                    r[4 * i] = _mm512_shuffle_ps::<0x44>(a, c);
                    r[4 * i + 1] = _mm512_shuffle_ps::<0xee>(a, c);
                    r[4 * i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                    r[4 * i + 3] = _mm512_shuffle_ps::<0xee>(b, d);
                }
                // … then the quarters themselves: r[4 i + c] holds column c of each quarter for rows 4 i .. 4 i + 4.
                for c in 0..4 {
                    let [a, b, e, f] = [r[c], r[4 + c], r[8 + c], r[12 + c]];
                    let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                    let ab_odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                    let ef_even = _mm512_shuffle_f32x4::<0x88>(e, f);
                    let ef_odd = _mm512_shuffle_f32x4::<0xdd>(e, f);
                    t[c] = _mm512_shuffle_f32x4::<0x88>(ab_even, ef_even);
                    t[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab_odd, ef_odd);
                    t[8 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_even, ef_even);
                    t[12 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, ef_odd);
                }
                for (i, t) in t.iter().enumerate() {
                    _mm512_storeu_ps(to.as_mut_ptr().add(i * to_stride), *t);
                }
            }
        }
    }

    /// Writes the methods that are those of [`Avx512`].
    macro_rules! as_avx512 {
        ($($name:ident($($arg:ident: $ty:ty),*) -> $result:ty;)*) => {
            $(
                #[inline(always)]
                fn $name(self, $($arg: $ty),*) -> $result {
                    self.0.$name($($arg),*)
                }
            )*
        };
    }

    /// [`Avx512`], but for the rounding to bf16, which one instruction does here. It takes subnormal numbers for zero.
    impl Simd for Avx512Bf16 {
        const LANES: usize = 16;
        type V = __m512;

        as_avx512! {
            splat(x: f32) -> __m512;
            load(from: &[f32]) -> __m512;
            load_part(from: &[f32]) -> __m512;
            store(v: __m512, to: &mut [f32]) -> ();
            store_part(v: __m512, to: &mut [f32]) -> ();
            stream(v: __m512, to: &mut [f32]) -> ();
            load_bf16(from: &[bf16]) -> __m512;
            load_bf16_part(from: &[bf16]) -> __m512;
            add(a: __m512, b: __m512) -> __m512;
            sub(a: __m512, b: __m512) -> __m512;
            mul(a: __m512, b: __m512) -> __m512;
            div(a: __m512, b: __m512) -> __m512;
            fma(a: __m512, b: __m512, c: __m512) -> __m512;
            max(a: __m512, b: __m512) -> __m512;
            min(a: __m512, b: __m512) -> __m512;
            sqrt(a: __m512) -> __m512;
            round(a: __m512) -> __m512;
            scale(a: __m512, n: __m512) -> __m512;
            split(x: __m512) -> (__m512, __m512);
            reciprocal(a: __m512) -> __m512;
            reciprocal_near(a: __m512) -> __m512;
            select_lt(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512;
            sum(v: __m512) -> f32;
            max_lane(v: __m512) -> f32;
            look_up(codes: &[u8], table: &[f32; 256]) -> __m512;
            pick(index: __m512, table: &[f32; 8]) -> __m512;
            store_bytes(v: __m512, to: &mut [u8]) -> ();
            transpose(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) -> ();
        }

        #[inline(always)]
        fn store_bf16(self, v: __m512, to: &mut [bf16]) {
            assert!(to.len() >= 16);
            // SAFETY: see above the impl of `Avx512`.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), round_bf16(v)) }
        }
        #[inline(always)]
        fn store_bf16_part(self, v: __m512, to: &mut [bf16]) {
            assert!(to.len() < 16);
            // SAFETY: see above the impl of `Avx512`.
            unsafe { _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask(to.len()), round_bf16(v)) }
        }
        #[inline(always)]
        fn stream_bf16(self, v: __m512, to: &mut [bf16]) {
            // SAFETY: see above the impl of `Avx512`.
            stream16(unsafe { round_bf16(v) }, to);
        }
    }

    /// Writes 16 values past the caches, or through them where the address is not aligned.
    #[inline(always)]
    fn stream16(values: __m256i, to: &mut [bf16]) {
        assert!(to.len() >= 16);
        let to: *mut __m256i = to.as_mut_ptr().cast();
        // SAFETY: room for 16 values by the assertion; AVX is part of every instruction set of this module.
        unsafe { if to.is_aligned() { _mm256_stream_si256(to, values) } else { _mm256_storeu_si256(to, values) } }
    }

    /// Rounds to nearest even; subnormal numbers count as zero.
    ///
    /// # Safety
    ///
    /// Needs AVX-512 BF16.
    #[inline(always)]
    unsafe fn round_bf16(v: __m512) -> __m256i {
        // SAFETY: the caller promises the feature; both types are 32 bytes of integers.
        unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) }
    }

    /// Sum of eight lanes.
    ///
    /// # Safety
    ///
    /// Needs AVX2.
    #[inline(always)]
    unsafe fn sum8(v: __m256) -> f32 {
        // SAFETY: the caller promises AVX2; no memory is touched.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    /// Greatest of eight lanes.
    ///
    /// # Safety
    ///
    /// Needs AVX2.
    #[inline(always)]
    unsafe fn max8(v: __m256) -> f32 {
        // SAFETY: the caller promises AVX2; no memory is touched.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    // SAFETY, for every block below: the token `self` proves that the processor has the instructions, and each memory
    // access is inside the slice by the assertion above it.
    impl Simd for Avx2Fma {
        const LANES: usize = 8;
        type V = __m256;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, from: &[f32]) -> __m256 {
            assert!(from.len() >= 8);
            // SAFETY: see above the impl.
            unsafe { _mm256_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn load_part(self, from: &[f32]) -> __m256 {
            let mut whole = [0.0; 8];
            whole.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            self.load(&whole)
        }
        #[inline(always)]
        fn store(self, v: __m256, to: &mut [f32]) {
            assert!(to.len() >= 8);
            // SAFETY: see above the impl.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn store_part(self, v: __m256, to: &mut [f32]) {
            let mut whole = [0.0; 8];
            self.store(v, &mut whole);
            to.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16]) -> __m256 {
            assert!(from.len() >= 8);
            // SAFETY: see above the impl.
            unsafe {
                let half = _mm_loadu_si128(from.as_ptr().cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        fn load_bf16_part(self, from: &[bf16]) -> __m256 {
            let mut whole = [bf16::ZERO; 8];
            whole.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            self.load_bf16(&whole)
        }
        #[inline(always)]
        fn store_bf16(self, v: __m256, to: &mut [bf16]) {
            assert!(to.len() >= 8);
            // SAFETY: see above the impl.
            unsafe {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let words = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
                let packed = _mm256_packus_epi32(words, words);
                let low = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed));
                _mm_storeu_si128(to.as_mut_ptr().cast(), low);
            }
        }
        #[inline(always)]
        fn store_bf16_part(self, v: __m256, to: &mut [bf16]) {
            let mut whole = [bf16::ZERO; 8];
            self.store_bf16(v, &mut whole);
            to.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        fn sqrt(self, a: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_sqrt_ps(a) }
        }
        #[inline(always)]
        fn round(self, a: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        fn scale(self, a: __m256, n: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe {
                let n = _mm256_cvtps_epi32(n);
                let half = _mm256_srai_epi32::<1>(n);
                let rest = _mm256_sub_epi32(n, half);
                let bias = _mm256_set1_epi32(127);
                let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
                let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias));
                _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high))
            }
        }
        #[inline(always)]
        fn select_lt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
        }
        #[inline(always)]
        fn sum(self, v: __m256) -> f32 {
            // SAFETY: see above the impl.
            unsafe { sum8(v) }
        }
        #[inline(always)]
        fn max_lane(self, v: __m256) -> f32 {
            // SAFETY: see above the impl.
            unsafe { max8(v) }
        }
        #[inline(always)]
        fn pick(self, index: __m256, table: &[f32; 8]) -> __m256 {
            // SAFETY: see above the impl; the load is as long as the table.
            unsafe { _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), _mm256_cvttps_epi32(index)) }
        }
    }
}

/// The instruction set in use, with its token.
#[derive(Clone, Copy)]
pub enum Isa {
    /// AVX-512 with BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2Fma),
    /// Plain Rust.
    Scalar(Scalar),
}

/// The greatest instruction set that the environment variable `CALOTYPE_ISA` allows, in the order of [`ISA_LEVELS`].
pub(crate) fn allowed() -> usize {
    let name = std::env::var("CALOTYPE_ISA").unwrap_or_default();
    ISA_LEVELS.iter().position(|level| *level == name).unwrap_or(ISA_LEVELS.len() - 1)
}

/// Values of `CALOTYPE_ISA`; each includes those before it. Another value limits nothing: programs should refuse it.
pub const ISA_LEVELS: [&str; 5] = ["scalar", "avx2", "avx512", "avx512bf16", "amx"];

/// The instruction set in use: the best one this processor has, or a lesser one named by the environment variable
/// `CALOTYPE_ISA`. Decided once per process.
#[inline]
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(token) = Avx512Bf16::new().filter(|_| allowed() >= 3) {
                return Isa::Avx512Bf16(token);
            }
            if let Some(token) = Avx512::new().filter(|_| allowed() >= 2) {
                return Isa::Avx512(token);
            }
            if let Some(token) = Avx2Fma::new().filter(|_| allowed() >= 1) {
                return Isa::Avx2(token);
            }
        }
        Isa::Scalar(Scalar)
    })
}

/// The instructions that multiply bf16 matrices.
#[derive(Clone, Copy)]
pub enum Bf16Isa {
    /// Tiles of 16 by 16.
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    /// Dot products of pairs in vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Bf16),
    /// Nothing: bf16 is converted to f32 and multiplied by the kernels of [`isa`].
    None,
}

/// The instructions for bf16 products in use; limited like [`isa`].
#[inline]
pub fn bf16_isa() -> Bf16Isa {
    static ISA: OnceLock<Bf16Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(token) = Amx::new().filter(|_| allowed() >= 4) {
                return Bf16Isa::Amx(token);
            }
            if let Some(token) = Avx512Bf16::new().filter(|_| allowed() >= 3) {
                return Bf16Isa::Avx512(token);
            }
        }
        Bf16Isa::None
    })
}

/// True if this process multiplies bf16 matrices as such, by instructions of the processor for it, instead of converting them
/// to f32.
pub fn multiplies_bf16() -> bool {
    !matches!(bf16_isa(), Bf16Isa::None)
}

/// Name of the instruction sets in use: `"avx512+amx"`, `"avx512+bf16"`, `"avx512"`, `"avx2+fma"` or `"scalar"`.
///
/// The environment variable `CALOTYPE_ISA` (`avx512bf16`, `avx512`, `avx2`, `scalar`) asks for less than the processor
/// has.
pub fn isa_name() -> &'static str {
    match (isa(), bf16_isa()) {
        #[cfg(target_arch = "x86_64")]
        (_, Bf16Isa::Amx(_)) => "avx512+amx",
        #[cfg(target_arch = "x86_64")]
        (_, Bf16Isa::Avx512(_)) => "avx512+bf16",
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(_) | Isa::Avx512Bf16(_), _) => "avx512",
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2(_), _) => "avx2+fma",
        (Isa::Scalar(_), _) => "scalar",
    }
}

/// `dispatch!(|s| body)`: evaluates `body` with `s` the token of the instruction set in use, compiled for it.
macro_rules! dispatch {
    (|$s:ident| $body:expr) => {
        match $crate::simd::isa() {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx512Bf16($s) => $crate::simd::with_avx512_bf16(
                $s,
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx512($s) => $crate::simd::with_avx512(
                $s,
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx2($s) => $crate::simd::with_avx2(
                $s,
                #[inline(always)]
                || $body,
            ),
            $crate::simd::Isa::Scalar($s) => $body,
        }
    };
}
pub(crate) use dispatch;
