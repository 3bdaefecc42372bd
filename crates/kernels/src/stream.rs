//! Writing to memory past the caches: a store through them reads the line first, and pushes out what is wanted again.

use crate::element::Element;
use crate::math::store_up_to;
use crate::simd::{Simd, prefetch};

/// Size in bytes from which on an output is not expected to stay in the caches: the last level of a desktop or of a server's cores that
/// share one.
const LARGE: usize = 32 << 20;

/// Bytes ahead of those that are read, which are asked for.
const AHEAD: usize = 4096;

/// True if an output is so large that it should be written past the caches.
pub fn past_caches<T>(to: &[T]) -> bool {
    size_of_val(to) >= LARGE
}

/// Writes up to a vector to `to`, past the caches or not.
#[inline(always)]
pub fn write_up_to<S: Simd, T: Element>(s: S, v: S::V, to: &mut [T], past: bool) {
    if past && to.len() >= S::LANES { T::stream(s, v, to) } else { store_up_to(s, v, to) }
}

/// Asks for what is read soon after `from`.
#[inline(always)]
pub fn read_ahead<T>(from: &[T]) {
    prefetch(from.as_ptr().wrapping_byte_add(AHEAD));
}

/// [`read_ahead`] while rows are written, between what is written: asks for the place that is `from` in the next `len` elements, or in later
/// ones.
#[inline(always)]
pub fn read_next<T>(from: &[T], len: usize) {
    let bytes = len * size_of::<T>();
    prefetch(from.as_ptr().wrapping_byte_add(bytes * AHEAD.div_ceil(bytes)));
}

/// Fills, whole 16 bytes past the caches; [`past_caches_done`] must be called when all are written.
#[cfg(target_arch = "x86_64")]
pub fn fill_past_caches(values: &mut [f32], value: f32) {
    use std::arch::x86_64::*;
    let (head, quads, tail) = bytemuck::pod_align_to_mut::<f32, Quad>(values);
    head.fill(value);
    tail.fill(value);
    for quad in quads {
        // SAFETY: SSE is part of x86-64, and each store goes to one aligned element of the slice.
        unsafe { _mm_stream_ps(quad.0.as_mut_ptr(), _mm_set1_ps(value)) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn fill_past_caches(values: &mut [f32], value: f32) {
    values.fill(value);
}

/// Orders what this thread has written past the caches, if it has, before all that it writes later.
pub fn past_caches_done(past: bool) {
    #[cfg(target_arch = "x86_64")]
    if past {
        // SAFETY: part of every x86-64.
        unsafe { std::arch::x86_64::_mm_sfence() };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = past;
}

/// The unit that a streaming store writes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(16))]
struct Quad([f32; 4]);

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::math::{for_vectors, load_up_to};
    use crate::simd::dispatch;

    const CASES: [(usize, usize); 7] = [(0, 0), (0, 1), (1, 3), (0, 64), (1, 64), (3, 70), (1, 9000)];

    #[test]
    fn every_element_is_filled() {
        for (skip, len) in CASES {
            let mut values = vec![1f32; skip + len];
            fill_past_caches(&mut values[skip..], 3.0);
            past_caches_done(true);
            assert!(values[..skip].iter().all(|&x| x == 1.0) && values[skip..].iter().all(|&x| x == 3.0));
        }
    }

    fn write<T: Element>(from: &[f32], to: &mut [T]) {
        dispatch!(|s| for_vectors(
            s,
            from.len(),
            #[inline(always)]
            |i, j| write_up_to(s, load_up_to(s, &from[i..j]), &mut to[i..j], true)
        ));
        past_caches_done(true);
    }

    #[test]
    fn vectors_are_written_at_any_address() {
        for (skip, len) in CASES {
            let from: Vec<f32> = (0..len).map(|i| i as f32 * 0.5).collect();
            let (mut wide, mut half) = (vec![7.0f32; skip + len], vec![bf16::ONE; skip + len]);
            write(&from, &mut wide[skip..]);
            write(&from, &mut half[skip..]);
            assert!(wide[..skip].iter().all(|&x| x == 7.0) && wide[skip..] == from);
            let rounded: Vec<bf16> = from.iter().map(|&x| bf16::from_f32(x)).collect();
            assert!(half[..skip].iter().all(|&x| x == bf16::ONE) && half[skip..] == rounded);
        }
    }
}
