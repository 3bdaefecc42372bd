//! Pictures from pictures: the forward pass, and the gradient of the input.

use half::bf16;
use std::ops::Range;

use super::filters::transform_filters;
use super::{Cut, Filters, GROUPS, MOST_PIXELS, PLACES, Products, Right, Tiles, pixel_axis, sum_axis};
use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::product::Output;
use crate::product16::with_half_scratch;
use crate::scratch::Line;
use crate::simd::{Avx512Bf16, Simd};
use crate::threads::for_chunks;
use crate::tile16::{Kernel16, SHORT_STRIDE, WIDTH};

/// Tiles whose outputs are stored together.
const RUN: usize = 8;

/// The forward pass on transformed filters.
pub fn forward<T: Element>(shape: &Conv2dShape, x: &[bf16], w: &Filters, out: &Output<T>) {
    Convolution::new(w.token, shape, x, w.halves(), false, out).all();
}

/// The forward pass on filters as they are, with the same bits.
pub fn forward_plain<T: Element, W: Element>(
    token: Avx512Bf16,
    shape: &Conv2dShape,
    x: &[bf16],
    w: &[W],
    out: &Output<T>,
) {
    with_half_scratch(PLACES * shape.in_channels * shape.out_channels, |filters| {
        transform_filters(token, w, shape.in_channels, filters);
        Convolution::new(token, shape, x, filters, false, out).all();
    });
}

/// The gradient of the input from transformed filters; `out` is for the gradient.
pub fn backward_input<T: Element>(shape: &Conv2dShape, dy: &[bf16], w: &Filters, out: &Output<T>) {
    Convolution::new(w.token, shape, dy, w.halves(), true, out).all();
}

/// The gradient of the input from filters as they are, with the same bits.
pub fn backward_input_plain<T: Element, W: Element>(
    token: Avx512Bf16,
    shape: &Conv2dShape,
    dy: &[bf16],
    w: &[W],
    out: &Output<T>,
) {
    with_half_scratch(PLACES * shape.in_channels * shape.out_channels, |filters| {
        transform_filters(token, w, shape.in_channels, filters);
        Convolution::new(token, shape, dy, filters, true, out).all();
    });
}

/// One convolution.
struct Convolution<'a, T> {
    token: Avx512Bf16,
    x: &'a [bf16],
    right: Right<'a>,
    out: &'a Output<'a, T>,
    tiles: Tiles,
    channels: usize,
    outputs: usize,
}

impl<'a, T: Element> Convolution<'a, T> {
    /// With filters of the shape, or `turned` for the gradient of the input.
    fn new(
        token: Avx512Bf16,
        shape: &Conv2dShape,
        x: &'a [bf16],
        filters: &'a [bf16],
        turned: bool,
        out: &'a Output<'a, T>,
    ) -> Self {
        let (channels, outputs, right) = if turned {
            (shape.out_channels, shape.in_channels, Right::Turned(filters, shape.in_channels))
        } else {
            (shape.in_channels, shape.out_channels, Right::Panels(filters))
        };
        Self { token, x, right, out, tiles: Tiles::new(shape), channels, outputs }
    }

    fn all(&self) {
        let whole = Cut::new(self.tiles.count, self.channels);
        let groups = (MOST_PIXELS / whole.group_len() / GROUPS * GROUPS).max(GROUPS);
        let chunk = (groups * Avx512Bf16::ROWS).min(self.tiles.count);
        let room = Cut::new(chunk, self.channels);
        with_half_scratch(room.groups() * room.group_len(), |pixels| {
            for first in (0..self.tiles.count).step_by(chunk) {
                let cut = Cut::new(chunk.min(self.tiles.count - first), self.channels);
                let pixels = &mut pixels[..cut.groups() * cut.group_len()];
                for_chunks(pixels, cut.group_len(), |i, to| {
                    self.token.run(
                        #[inline(always)]
                        || self.transform_group(&cut, first + i * cut.rows, to),
                    );
                });
                let panels = self.outputs / WIDTH;
                let products = Products { token: self.token, cut, left: pixels, right: self.right, panels };
                products.all(
                    #[inline(always)]
                    |rows, panel, sums, size| self.store(first + rows.start..first + rows.end, panel, sums, size),
                );
            }
        });
    }

    /// Transforms the pixels of a group of tiles.
    #[inline(always)]
    fn transform_group(&self, cut: &Cut, first: usize, to: &mut [bf16]) {
        let outside = vec![bf16::ZERO; self.channels];
        for row in 0..cut.rows.min(self.tiles.count - first) {
            let pixels = self.tiles.pixels(first + row, 1, self.x, &outside);
            for q in 0..cut.pieces {
                let range = cut.piece(q);
                let to = &mut to[(q * PLACES * cut.rows + row) * SHORT_STRIDE..];
                for c in range.clone().step_by(16) {
                    transform_pixels(self.token, &pixels, c, &mut to[c - range.start..], cut.place_len());
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

/// `B^T d B` for 16 channels from `c` on of 4x4 pixels; the places are `distance` apart.
#[inline(always)]
fn transform_pixels(s: Avx512Bf16, pixels: &[[&[bf16]; 4]; 4], c: usize, to: &mut [bf16], distance: usize) {
    let mut columns = [[s.splat(0.0); 4]; 4];
    for x in 0..4 {
        let mut d = [s.splat(0.0); 4];
        for y in 0..4 {
            d[y] = s.load_bf16(&pixels[y][x][c..]);
        }
        columns[x] = pixel_axis(s, d);
    }
    for y in 0..4 {
        let row = pixel_axis(s, [columns[0][y], columns[1][y], columns[2][y], columns[3][y]]);
        for x in 0..4 {
            s.store_bf16(row[x], &mut to[(4 * y + x) * distance..]);
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
        let mut columns = [[s.splat(0.0); 2]; 4];
        for x in 0..4 {
            let mut m = [s.splat(0.0); 4];
            for y in 0..4 {
                m[y] = s.load(&sums[(4 * y + x) * distance + 16 * v..]);
            }
            columns[x] = sum_axis(s, m);
        }
        for p in 0..2 {
            let pixels = sum_axis(s, [columns[0][p], columns[1][p], columns[2][p], columns[3][p]]);
            for (q, &pixel) in pixels.iter().enumerate() {
                s.store(pixel, &mut lines[p][(2 * r + q) * (WIDTH / 16) + v].0);
            }
        }
    }
}
