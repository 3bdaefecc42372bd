//! What this machine can do at most, measured: the yardstick of the benchmarks.
//!
//! Every figure is that of the best of several short runs on all threads that [`threads`] gives, because a disturbance
//! only ever makes a run slower. The instruction sets are those the kernels may use: `CALOTYPE_ISA` limits both.

use std::hint::black_box;
use std::time::Instant;

use crate::simd::{Isa, Simd, dispatch, isa};
use crate::threads::{for_chunks, for_chunks2, parallel_for, threads};

/// Independent sums in the loops: more than the latency of an addition times the additions begun in a cycle.
const CHAINS: usize = 12;

/// Runs that the best is taken of.
const RUNS: usize = 12;

/// Bytes that the memory loops read or write in one run; far more than caches hold that a core can call its own.
const MEMORY: usize = 512 << 20;

/// The rate of an instruction in a loop that touches no memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArithmeticPeak {
    /// Name of the instruction, or `mul + add` where there is no fused one.
    pub instruction: &'static str,
    /// Floating-point operations a second on all threads together.
    pub flops: f64,
}

/// Rates of memory beyond the caches, in bytes a second on all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryBandwidth {
    /// Bytes read.
    pub read: f64,
    /// Bytes written.
    pub write: f64,
    /// Bytes read plus bytes written.
    pub copy: f64,
}

/// The best rate of `work` units in each of [`RUNS`] calls of `run` after a first one that does not count.
fn best_rate(work: f64, mut run: impl FnMut()) -> f64 {
    run();
    let mut seconds = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        run();
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    work / seconds
}

/// The peak of `f32` multiply-adds with the vectors that the kernels use.
pub fn f32_peak() -> ArithmeticPeak {
    const ROUNDS: usize = 400_000;
    let instruction = match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Avx2(_) => "vfmadd",
        Isa::Scalar(_) => "mul + add",
    };
    let lanes = dispatch!(|s| lanes(s));
    let work = (threads() * ROUNDS * CHAINS * lanes * 2) as f64;
    let flops = best_rate(work, || {
        parallel_for(threads(), |_| {
            black_box(dispatch!(|s| multiply_add(s, ROUNDS)));
        });
    });
    ArithmeticPeak { instruction, flops }
}

#[inline(always)]
fn lanes<S: Simd>(_: S) -> usize {
    S::LANES
}

#[inline(always)]
fn multiply_add<S: Simd>(s: S, rounds: usize) -> f32 {
    // Every sum tends to one: no denormal numbers, no infinities.
    let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
    let mut sums = [x; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = s.fma(*sum, x, y);
        }
    }
    s.sum(sums.into_iter().fold(s.splat(0.0), |a, b| s.add(a, b)))
}

/// The peaks of the instructions for `bf16` products with `f32` sums that this processor has; none without AVX-512 or
/// where `CALOTYPE_ISA` forbids it. The best of them, or else [`f32_peak`], bounds the `bf16` kernels.
pub fn bf16_peaks() -> Vec<ArithmeticPeak> {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(_) = isa() {
        return x86::bf16_peaks();
    }
    Vec::new()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::asm;
    use std::arch::x86_64::*;

    pub(super) fn bf16_peaks() -> Vec<ArithmeticPeak> {
        let mut peaks = Vec::new();
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
            const ROUNDS: usize = 400_000;
            let work = (threads() * ROUNDS * CHAINS * 16 * 4) as f64;
            let flops = best_rate(work, || {
                parallel_for(threads(), |_| {
                    // SAFETY: the features were detected above.
                    black_box(unsafe { dot_products(ROUNDS) });
                });
            });
            peaks.push(ArithmeticPeak { instruction: "vdpbf16ps", flops });
        }
        if amx_bf16() {
            const ROUNDS: u64 = 200_000;
            let work = threads() as f64 * ROUNDS as f64 * 4.0 * (16 * 16 * 32 * 2) as f64;
            let flops = best_rate(work, || {
                // SAFETY: AMX with bf16 was detected above, and the system lets this process use it.
                parallel_for(threads(), |_| unsafe { tile_products(ROUNDS) });
            });
            peaks.push(ArithmeticPeak { instruction: "tdpbf16ps", flops });
        }
        peaks
    }

    /// # Safety
    ///
    /// Needs AVX-512 F and BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn dot_products(rounds: usize) -> f32 {
        // Pairs of 1/256 and 1/256: the sums grow, slowly.
        let pairs = _mm512_set1_epi32(black_box(0x3b80_3b80));
        // SAFETY: both types are 512 bits of anything.
        let pairs = unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) };
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    /// Whether the processor has AMX with bf16 and the system grants this process its registers.
    fn amx_bf16() -> bool {
        /// `ARCH_REQ_XCOMP_PERM` of the kernel's asm/prctl.h and the number of the tile data's state.
        const REQUEST: (usize, usize) = (0x1023, 18);
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        if !cfg!(target_os = "linux") || __cpuid(0).eax < 7 {
            return false;
        }
        if __cpuid_count(7, 0).edx & (BF16 | TILE) != BF16 | TILE {
            return false;
        }
        let mut status: isize = 158; // SYS_arch_prctl
        // SAFETY: this system call reads and writes no memory of this process.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") status,
                in("rdi") REQUEST.0,
                in("rsi") REQUEST.1,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        status == 0
    }

    /// `ldtilecfg`'s operand for eight whole tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    #[repr(C, align(64))]
    struct Tile([u16; 512]);

    /// `4 * rounds` products of tiles. The thread's tile configuration is as before afterwards; what its tiles held is
    /// lost.
    ///
    /// # Safety
    ///
    /// Needs AMX with bf16, and the system's permission to use it.
    unsafe fn tile_products(rounds: u64) {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        let mut before = TileConfig { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let values = Tile([0x3b80; 512]);
        // SAFETY: the caller promises the instructions; the memory operands are the three locals above, which are as
        // large as the instructions say: 64 bytes of configuration, 1024 of a tile.
        unsafe {
            asm!(
                "sttilecfg [{before}]",
                "ldtilecfg [{config}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm4, [{values} + {stride}]",
                "tileloadd tmm5, [{values} + {stride}]",
                "tileloadd tmm6, [{values} + {stride}]",
                "tileloadd tmm7, [{values} + {stride}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "ldtilecfg [{before}]",
                before = in(reg) &mut before,
                config = in(reg) &config,
                values = in(reg) &values,
                stride = in(reg) 64usize,
                rounds = inout(reg) rounds.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// The bandwidth of memory, with half a gigabyte read, written, and copied to another half.
pub fn memory_bandwidth() -> MemoryBandwidth {
    let mut from = vec![1f32; MEMORY / 4];
    let mut to = vec![2f32; MEMORY / 4];
    let piece = from.len().div_ceil(threads());
    let bytes = MEMORY as f64;
    let read = best_rate(bytes, || {
        for_chunks(&mut from, piece, |_, part| {
            black_box(dispatch!(|s| total(s, part)));
        });
    });
    // Filling and copying bytes are calls of the system's library, which knows the machine's best way to do them.
    let write = best_rate(bytes, || {
        for_chunks(&mut to, piece, |_, part| bytemuck::cast_slice_mut::<f32, u8>(part).fill(black_box(3)));
    });
    let copy = best_rate(2.0 * bytes, || {
        for_chunks2((&mut from, piece), (&mut to, piece), |_, from, to| to.copy_from_slice(from));
    });
    MemoryBandwidth { read, write, copy }
}

/// Reads a slice in whole vectors.
#[inline(always)]
fn total<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 8];
    for block in values.chunks_exact(8 * S::LANES) {
        for (sum, values) in sums.iter_mut().zip(block.chunks_exact(S::LANES)) {
            *sum = s.add(*sum, s.load(values));
        }
    }
    s.sum(sums.into_iter().fold(s.splat(0.0), |a, b| s.add(a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_rates() {
        for peak in bf16_peaks().into_iter().chain([f32_peak()]) {
            assert!(peak.flops.is_finite() && peak.flops > 1e6, "{peak:?}");
        }
    }
}
