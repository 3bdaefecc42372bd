//! The most that this machine can do, measured: the yardstick of the benchmarks.
//!
//! Every figure is that of the best of several short runs on all threads that [`threads`] gives, because a disturbance
//! only ever makes a run slower. The instruction sets are those the kernels may use: `CALOTYPE_ISA` limits both.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::simd::{Isa, Simd, dispatch, isa};
use crate::stream::{fill_past_caches, past_caches_done};
use crate::threads::{for_chunks, for_chunks2, parallel_for, threads};

/// Independent sums in the loops: more than the latency of an addition times the additions begun in a cycle.
const CHAINS: usize = 12;

/// Runs that the best is taken of, at least.
const RUNS: usize = 12;

/// Time that the runs take, at least: a system may need a while to give new threads a core each.
const TIME: Duration = Duration::from_millis(250);

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
    let (begin, mut runs, mut seconds) = (Instant::now(), 0, f64::INFINITY);
    while runs < RUNS || begin.elapsed() < TIME {
        let start = Instant::now();
        run();
        seconds = seconds.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    work / seconds
}

/// The peak of `f32` multiply-adds with the vectors that the kernels use.
pub fn f32_peak() -> ArithmeticPeak {
    const ROUNDS: usize = 400_000;
    let instruction = match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16(_) | Isa::Avx512(_) | Isa::Avx2(_) => "vfmadd",
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

/// The peaks of the instructions for `bf16` products with `f32` sums that this processor has; none where it has none or
/// `CALOTYPE_ISA` forbids them. The best of them, or else [`f32_peak`], bounds the `bf16` kernels.
pub fn bf16_peaks() -> Vec<ArithmeticPeak> {
    #[cfg(target_arch = "x86_64")]
    return x86::bf16_peaks();
    #[cfg(not(target_arch = "x86_64"))]
    return Vec::new();
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::simd::{Amx, Avx512Bf16, Bf16Isa, bf16_isa, with_avx512_bf16};
    use std::arch::asm;
    use std::arch::x86_64::*;

    pub(super) fn bf16_peaks() -> Vec<ArithmeticPeak> {
        let (vectors, tiles) = match bf16_isa() {
            Bf16Isa::Amx(token) => (Avx512Bf16::new(), Some(token)),
            Bf16Isa::Avx512(token) => (Some(token), None),
            Bf16Isa::None => (None, None),
        };
        vectors.map(dot_peak).into_iter().chain(tiles.map(tile_peak)).collect()
    }

    fn dot_peak(token: Avx512Bf16) -> ArithmeticPeak {
        const ROUNDS: usize = 400_000;
        let work = (threads() * ROUNDS * CHAINS * 16 * 4) as f64;
        let flops = best_rate(work, || {
            parallel_for(threads(), |_| {
                black_box(with_avx512_bf16(
                    token,
                    #[inline(always)]
                    || dot_products(token, ROUNDS),
                ));
            });
        });
        ArithmeticPeak { instruction: "vdpbf16ps", flops }
    }

    #[inline(always)]
    fn dot_products(_: Avx512Bf16, rounds: usize) -> f32 {
        // SAFETY: the token proves that the processor has the instructions; both types of the conversion are 512 bits
        // of anything.
        unsafe {
            // Pairs of 1/256 and 1/256: the sums grow, slowly.
            let pairs = _mm512_set1_epi32(black_box(0x3b80_3b80));
            let pairs = std::mem::transmute::<__m512i, __m512bh>(pairs);
            let mut sums = [_mm512_set1_ps(1.0); CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
                }
            }
            sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
        }
    }

    fn tile_peak(token: Amx) -> ArithmeticPeak {
        const ROUNDS: u64 = 200_000;
        let work = threads() as f64 * ROUNDS as f64 * 4.0 * (16 * 16 * 32 * 2) as f64;
        let flops = best_rate(work, || parallel_for(threads(), |_| tile_products(token, ROUNDS)));
        ArithmeticPeak { instruction: "tdpbf16ps", flops }
    }

    #[repr(C, align(64))]
    struct Tile([u16; 512]);

    /// `4 * rounds` products of tiles.
    fn tile_products(token: Amx, rounds: u64) {
        token.configure_thread();
        let values = Tile([0x3b80; 512]);
        // SAFETY: the token proves the instructions, and the tiles have their full size, so that each load reads the
        // 1024 bytes of `values`.
        unsafe {
            asm!(
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
                values = in(reg) &values,
                stride = in(reg) 64usize,
                rounds = inout(reg) rounds.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }
}

/// The bandwidth of memory, with half a gigabyte read, written, and copied to another half.
///
/// Writing goes past the caches where the processor can do that: a store through them reads memory first. Copying is
/// that of the system's library, which does the same.
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
    let write = best_rate(bytes, || {
        for_chunks(&mut to, piece, |_, part| {
            fill_past_caches(part, black_box(3.0));
            past_caches_done(true);
        });
    });
    let copy = best_rate(2.0 * bytes, || {
        for_chunks2((&mut from, piece), (&mut to, piece), |_, from, to| to.copy_from_slice(from));
    });
    MemoryBandwidth { read, write, copy }
}

/// Reads a slice in whole vectors, in four places at once, so that more of memory is asked for ahead of time.
#[inline(always)]
fn total<S: Simd>(s: S, values: &[f32]) -> f32 {
    let quarter = values.len() / 4 / S::LANES * S::LANES;
    let parts: [&[f32]; 4] = std::array::from_fn(|i| &values[i * quarter..(i + 1) * quarter]);
    let mut sums = [s.splat(0.0); 4];
    for at in (0..quarter).step_by(S::LANES) {
        for (sum, part) in sums.iter_mut().zip(parts) {
            *sum = s.add(*sum, s.load(&part[at..]));
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
