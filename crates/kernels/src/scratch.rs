//! Working memory that a thread keeps between calls.

use std::cell::RefCell;

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats, aligned to a cache line, of unspecified (but initialized) content.
///
/// The memory returns to the thread afterwards; calls may be nested.
#[inline(always)]
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = take(len.div_ceil(16));
    if cfg!(test) {
        // What a kernel reads before it writes shows in its result.
        lines.fill(Line([f32::NAN; 16]));
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut lines)[..len]);
    FREE.with_borrow_mut(|free| free.push(lines));
    result
}

#[inline(never)]
fn take(lines: usize) -> Vec<Line> {
    let mut buffer = FREE.with_borrow_mut(|free| {
        // The smallest that is large enough, or else the largest.
        let best = free.iter().enumerate().min_by_key(|(_, b)| (b.len() < lines, b.len().abs_diff(lines)));
        let best = best.map(|(i, _)| i);
        best.map(|i| free.swap_remove(i)).unwrap_or_default()
    });
    if buffer.len() < lines {
        // Not `resize`: what is there need not be copied.
        drop(std::mem::take(&mut buffer));
        buffer = bytemuck::zeroed_vec(lines);
    }
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_buffers_are_distinct_and_aligned() {
        for len in [0, 1, 100, 17] {
            with_scratch(len, |a| {
                a.fill(1.0);
                with_scratch(len + 3, |b| {
                    b.fill(2.0);
                    assert!(a.is_empty() || (a.as_ptr() as usize).is_multiple_of(64));
                });
                assert!(a.len() == len && a.iter().all(|&x| x == 1.0));
            });
        }
    }
}
