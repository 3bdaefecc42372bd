//! Filters, transformed.

use half::bf16;

use super::{PLACES, TAPS, Vector, both_axes, suits};
use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::product16::PackedRight;
use crate::scratch::{Line, with_scratch};
use crate::simd::{Avx512Bf16, Simd};
use crate::threads::{SharedMut, for_chunks};
use crate::tile16::{Kernel16, WIDTH, interleave_rounded, split_pairs, transpose_rounded};
use std::ops::Range;

/// Transformed filters: `[panel, place, channels / 2, WIDTH, 2]`, a panel being [`WIDTH`] outputs.
pub struct Filters {
    pub(super) token: Avx512Bf16,
    data: Vec<Line>,
    outputs: usize,
    channels: usize,
}

impl Filters {
    /// Transforms `[outputs, 3, 3, channels]` filters.
    pub fn new<W: Element>(token: Avx512Bf16, w: &[W], outputs: usize, channels: usize) -> Self {
        let mut data = bytemuck::zeroed_vec::<Line>(PLACES * outputs * channels / 32);
        transform_filters(token, w, channels, bytemuck::cast_slice_mut(&mut data));
        Self { token, data, outputs, channels }
    }

    /// Transforms the filters of a convolution from weights that are packed for products, `[outputs, 3, 3, channels]`.
    pub fn of_packed(shape: &Conv2dShape, w: &PackedRight) -> Self {
        let Some(token) = suits(shape) else { unreachable!("the shape was said to suit") };
        let (channels, outputs) = (shape.in_channels, shape.out_channels);
        let mut data = bytemuck::zeroed_vec::<Line>(PLACES * outputs * channels / 32);
        transform_packed(token, w, channels, 0..outputs / WIDTH, bytemuck::cast_slice_mut(&mut data));
        Self { token, data, outputs, channels }
    }

    /// Outputs, and elements of a filter.
    pub fn size(&self) -> (usize, usize) {
        (self.outputs, TAPS * self.channels)
    }

    /// Memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<Line>()
    }

    pub(super) fn halves(&self) -> &[bf16] {
        bytemuck::cast_slice(&self.data)
    }

    /// For transforming new filters, from several threads.
    pub fn renew(&mut self) -> FilterRenewal<'_> {
        FilterRenewal {
            token: self.token,
            data: SharedMut::new(bytemuck::cast_slice_mut(&mut self.data)),
            channels: self.channels,
        }
    }
}

/// Transformed filters that get new values.
pub struct FilterRenewal<'a> {
    token: Avx512Bf16,
    data: SharedMut<'a, bf16>,
    channels: usize,
}

impl FilterRenewal<'_> {
    /// Elements of a filter.
    pub fn columns(&self) -> usize {
        TAPS * self.channels
    }

    /// Transforms the filters of the outputs from `row` on, a multiple of [`WIDTH`]; `w` holds [`WIDTH`] of them.
    ///
    /// # Safety
    ///
    /// No other thread may transform the same outputs' meanwhile, and none may read what this one has written before it has called
    /// [`past_caches_done`](crate::stream::past_caches_done).
    pub unsafe fn transform(&self, row: usize, w: &[f32]) {
        let len = PLACES * WIDTH * self.channels;
        // SAFETY: panels do not overlap; the rest is the contract of this function.
        let to = unsafe { self.data.range(row / WIDTH * len..(row / WIDTH + 1) * len) };
        self.token.run(
            #[inline(always)]
            || transform_panel::<true, f32>(self.token, w, self.channels, to),
        );
    }
}

/// Transforms all filters, `[outputs, 3, 3, channels]`, to panels.
pub(super) fn transform_filters<W: Element>(token: Avx512Bf16, w: &[W], channels: usize, to: &mut [bf16]) {
    for_chunks(to, PLACES * WIDTH * channels, |panel, to| {
        let w = &w[panel * WIDTH * TAPS * channels..][..WIDTH * TAPS * channels];
        token.run(
            #[inline(always)]
            || transform_panel::<false, W>(token, w, channels, to),
        );
    });
}

/// Transforms the filters of some panels from weights that are packed for products, `[outputs, 3, 3, channels]`; all sizes are multiples of
/// [`WIDTH`].
pub(super) fn transform_packed(
    token: Avx512Bf16,
    w: &PackedRight,
    channels: usize,
    panels: Range<usize>,
    to: &mut [bf16],
) {
    let len = PLACES * WIDTH * channels;
    for_chunks(&mut to[..panels.len() * len], len, |i, to| {
        token.run(
            #[inline(always)]
            || transform_packed_panel(token, w, channels, panels.start + i, to),
        );
    });
}

/// [`transform_panel`] of weights that are packed for products, in which pairs of channels of 16 outputs lie side by side already.
#[inline(always)]
fn transform_packed_panel(s: Avx512Bf16, w: &PackedRight, channels: usize, panel: usize, to: &mut [bf16]) {
    let mut even = [Line([0.0; 16]); PLACES];
    for c in (0..channels).step_by(32) {
        let mut taps = [w.block(panel, c); TAPS];
        for (tap, block) in taps.iter_mut().enumerate().skip(1) {
            *block = w.block(panel, tap * channels + c);
        }
        // 16 pairs of channels, the first and the other outputs of each.
        for part in 0..2 * WIDTH / 2 {
            let places = both_axes(
                s,
                #[inline(always)]
                |y, x| split_pairs(s, &taps[3 * y + x][32 * part..])[0],
                #[inline(always)]
                |g| filter_axis(s, g),
            );
            for (even, &value) in even.iter_mut().zip(places.as_flattened()) {
                s.store(value, &mut even.0);
            }
            let places = both_axes(
                s,
                #[inline(always)]
                |y, x| split_pairs(s, &taps[3 * y + x][32 * part..])[1],
                #[inline(always)]
                |g| filter_axis(s, g),
            );
            for (place, (even, &odd)) in even.iter().zip(places.as_flattened()).enumerate() {
                let to = &mut to[(place * channels + c) * WIDTH + 32 * part..][..32];
                interleave_rounded(s, s.load(&even.0), odd, to);
            }
        }
    }
}

/// Transforms the filters of [`WIDTH`] outputs. For `PAST_CACHE` see [`transpose_rounded`].
#[inline(always)]
fn transform_panel<const PAST_CACHE: bool, W: Element>(s: Avx512Bf16, w: &[W], channels: usize, to: &mut [bf16]) {
    /// Filters, and channels of them, that are transformed together.
    const BLOCK: [usize; 2] = [16, 32];
    const LEN: usize = BLOCK[0] * BLOCK[1];
    with_scratch(
        PLACES * LEN,
        #[inline(always)]
        |memory| {
            for (half, w) in w.chunks_exact(BLOCK[0] * TAPS * channels).enumerate() {
                for c in (0..channels).step_by(BLOCK[1]) {
                    for (i, w) in w.chunks_exact(TAPS * channels).enumerate() {
                        for v in 0..2 {
                            transform_filter(s, w, channels, c + 16 * v, &mut memory[i * BLOCK[1] + 16 * v..], LEN);
                        }
                    }
                    for (place, block) in memory.chunks_exact(LEN).enumerate() {
                        let to = &mut to[(place * channels + c) * WIDTH + half * WIDTH..];
                        transpose_rounded::<PAST_CACHE>(s, block, BLOCK[1], to, 2 * WIDTH);
                    }
                }
            }
        },
    );
}

/// `G g G^T` for the channels `c..c + 16` of one filter, `[3, 3, channels]`; the places are `distance` apart.
#[inline(always)]
fn transform_filter<W: Element>(s: Avx512Bf16, w: &[W], channels: usize, c: usize, to: &mut [f32], distance: usize) {
    let places = both_axes(
        s,
        #[inline(always)]
        |y, x| W::load(s, &w[(3 * y + x) * channels + c..]),
        #[inline(always)]
        |g| filter_axis(s, g),
    );
    for (place, &value) in places.as_flattened().iter().enumerate() {
        s.store(value, &mut to[place * distance..]);
    }
}

/// `G g`.
#[inline(always)]
fn filter_axis(s: Avx512Bf16, g: [Vector; 3]) -> [Vector; 4] {
    let half = s.splat(0.5);
    let (ends, middle) = (s.mul(s.add(g[0], g[2]), half), s.mul(g[1], half));
    [g[0], s.add(ends, middle), s.sub(ends, middle), g[2]]
}
