//! Images from images: the forward pass, and the gradient of the input.

use half::bf16;
use std::ops::Range;

use super::filters::{transform_filters, transform_packed};
use super::{
    Cut, Filters, GROUPS, MOST_FILTERS, MOST_PIXELS, PLACES, Products, Right, Tiles, Vector, both_axes, suits,
    transform_pixels,
};
use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::product::Output;
use crate::product16::{PackedRight, with_half_scratch};
use crate::scratch::Line;
use crate::simd::{Avx512Bf16, Simd};
use crate::threads::for_chunks;
use crate::tile16::{Kernel16, SHORT_STRIDE, WIDTH};

/// Tiles whose outputs are stored together.
const RUN: usize = 8;

/// The direction of a convolution.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Outputs from inputs.
    Forward,
    /// Gradients of the inputs from those of the outputs.
    BackwardInput,
}

/// A pass on transformed filters.
pub fn convolve<T: Element>(pass: Pass, shape: &Conv2dShape, x: &[bf16], w: &Filters, out: &Output<T>) {
    Convolution::new(w.token, pass, shape, x, w.halves(), out).all();
}

/// A pass on weights that are packed for products, with the same bits. Filters are transformed a few at a time: they take 16/9 of the memory,
/// and are read again from the caches.
pub fn convolve_packed<T: Element>(pass: Pass, shape: &Conv2dShape, x: &[bf16], w: &PackedRight, out: &Output<T>) {
    let Some(token) = suits(shape) else { unreachable!("the shape was said to suit") };
    let (channels, outputs) = (shape.in_channels, shape.out_channels);
    let few = PLACES * channels * outputs <= MOST_FILTERS;
    if let (Pass::Forward, false) = (pass, few) {
        return Convolution::of(token, shape, x, Filtering::Packed(w), out).all();
    }
    with_half_scratch(PLACES * channels * outputs, |filters| {
        transform_packed(token, w, channels, 0..outputs / WIDTH, filters);
        Convolution::new(token, pass, shape, x, filters, out).all();
    });
}

/// A pass on filters as they are, with the same bits.
pub fn convolve_plain<T: Element, W: Element>(
    token: Avx512Bf16,
    pass: Pass,
    shape: &Conv2dShape,
    x: &[bf16],
    w: &[W],
    out: &Output<T>,
) {
    with_half_scratch(PLACES * shape.in_channels * shape.out_channels, |filters| {
        transform_filters(token, w, shape.in_channels, filters);
        Convolution::new(token, pass, shape, x, filters, out).all();
    });
}

/// The filters of a convolution.
enum Filtering<'a> {
    /// Transformed.
    Ready(Right<'a>),
    /// Packed for products, for a forward pass.
    Packed(&'a PackedRight),
}

/// One convolution.
struct Convolution<'a, T> {
    token: Avx512Bf16,
    x: &'a [bf16],
    filters: Filtering<'a>,
    out: &'a Output<'a, T>,
    tiles: Tiles,
    channels: usize,
    outputs: usize,
}

impl<'a, T: Element> Convolution<'a, T> {
    fn new(
        token: Avx512Bf16,
        pass: Pass,
        shape: &Conv2dShape,
        x: &'a [bf16],
        filters: &'a [bf16],
        out: &'a Output<'a, T>,
    ) -> Self {
        let forward = Self::of(token, shape, x, Filtering::Ready(Right::Panels(filters)), out);
        match pass {
            Pass::Forward => forward,
            Pass::BackwardInput => Self {
                filters: Filtering::Ready(Right::Turned(filters, shape.in_channels)),
                channels: shape.out_channels,
                outputs: shape.in_channels,
                ..forward
            },
        }
    }

    /// A forward pass.
    fn of(
        token: Avx512Bf16,
        shape: &Conv2dShape,
        x: &'a [bf16],
        filters: Filtering<'a>,
        out: &'a Output<'a, T>,
    ) -> Self {
        let (channels, outputs) = (shape.in_channels, shape.out_channels);
        Self { token, x, filters, out, tiles: Tiles::new(shape), channels, outputs }
    }

    fn all(&self) {
        let whole = Cut::new(self.tiles.count, self.channels);
        let groups = (MOST_PIXELS / whole.group_len() / GROUPS * GROUPS).max(GROUPS);
        let chunk = (groups * Avx512Bf16::ROWS).min(self.tiles.count);
        let room = Cut::new(chunk, self.channels);
        let outside = vec![bf16::ZERO; self.channels];
        with_half_scratch(room.groups() * room.group_len(), |pixels| {
            for first in (0..self.tiles.count).step_by(chunk) {
                let cut = Cut::new(chunk.min(self.tiles.count - first), self.channels);
                let pixels = &mut pixels[..cut.groups() * cut.group_len()];
                for_chunks(pixels, cut.group_len(), |i, to| {
                    self.token.run(
                        #[inline(always)]
                        || self.transform_group(&cut, first + i * cut.rows, &outside, to),
                    );
                });
                self.multiply(cut, first, pixels);
            }
        });
    }

    /// Outputs of the tiles from `first` on from their transformed pixels.
    fn multiply(&self, cut: Cut, first: usize, pixels: &[bf16]) {
        let products = |right: Right, panels: Range<usize>| {
            let products = Products { token: self.token, cut, left: pixels, right, panels: panels.len() };
            products.all(
                #[inline(always)]
                |rows, panel, sums, size| {
                    self.store(first + rows.start..first + rows.end, panels.start + panel, sums, size)
                },
            );
        };
        let panels = self.outputs / WIDTH;
        let w = match self.filters {
            Filtering::Ready(right) => return products(right, 0..panels),
            Filtering::Packed(w) => w,
        };
        let len = PLACES * WIDTH * self.channels;
        let most = (MOST_FILTERS / len).max(1);
        with_half_scratch(most.min(panels) * len, |filters| {
            for begin in (0..panels).step_by(most) {
                let some = begin..(begin + most).min(panels);
                transform_packed(self.token, w, self.channels, some.clone(), filters);
                products(Right::Panels(filters), some);
            }
        });
    }

    /// Transforms the pixels of a group of tiles; `outside` is a pixel of zeros.
    #[inline(always)]
    fn transform_group(&self, cut: &Cut, first: usize, outside: &[bf16], to: &mut [bf16]) {
        for row in 0..cut.rows.min(self.tiles.count - first) {
            let pixels = self.tiles.pixels(first + row, 1, self.x, outside);
            for q in 0..cut.pieces {
                let range = cut.piece(q);
                let to = &mut to[(q * PLACES * cut.rows + row) * SHORT_STRIDE..];
                for c in range.clone().step_by(16) {
                    let places = transform_pixels(self.token, &pixels, c);
                    for (place, &value) in places.as_flattened().iter().enumerate() {
                        self.token.store_bf16(value, &mut to[place * cut.place_len() + c - range.start..]);
                    }
                }
            }
        }
    }

    /// Transforms the sums of tiles to outputs and stores them; `distance` is that of the places.
    #[inline(always)]
    fn store(&self, tiles: Range<usize>, panel: usize, sums: &[f32], distance: usize) {
        let mut lines = [[Line([0.0; 16]); 2 * RUN * WIDTH / 16]; 2];
        let size = self.tiles.size;
        let mut t = 0;
        while t < tiles.len() {
            let [b, i, j] = self.tiles.place(tiles.start + t);
            let run = RUN.min(self.tiles.tiles[1] - j).min(tiles.len() - t);
            for r in 0..run {
                transform_sums(self.token, &sums[(t + r) * WIDTH..], distance, &mut lines, r);
            }
            for (p, line) in lines.iter().enumerate() {
                let y = 2 * i + p;
                if y < size[0] {
                    let row = (b * size[0] + y) * size[1] + 2 * j;
                    let pixels = (2 * run).min(size[1] - 2 * j);
                    let values: &[f32] = bytemuck::cast_slice(line);
                    self.out.finish(self.token, (row, pixels), (panel * WIDTH, WIDTH), (values, WIDTH), None);
                }
            }
            t += run;
        }
    }
}

/// `A^T m A` for one tile of a panel: number `r` of the tiles whose pixels stand in two `lines`.
#[inline(always)]
fn transform_sums(
    s: Avx512Bf16,
    sums: &[f32],
    distance: usize,
    lines: &mut [[Line; 2 * RUN * WIDTH / 16]; 2],
    r: usize,
) {
    for v in 0..WIDTH / 16 {
        let pixels = both_axes(
            s,
            #[inline(always)]
            |y, x| s.load(&sums[(4 * y + x) * distance + 16 * v..]),
            #[inline(always)]
            |m| sum_axis(s, m),
        );
        for (p, line) in pixels.iter().enumerate() {
            for (q, &pixel) in line.iter().enumerate() {
                s.store(pixel, &mut lines[p][(2 * r + q) * (WIDTH / 16) + v].0);
            }
        }
    }
}

/// `A^T m`.
#[inline(always)]
fn sum_axis(s: Avx512Bf16, m: [Vector; 4]) -> [Vector; 2] {
    [s.add(m[0], s.add(m[1], m[2])), s.sub(s.sub(m[1], m[2]), m[3])]
}
