//! The gradient of the filters: `G^T [(A dy A^T) (B^T x B)] G`, summed over tiles, each step the adjoint of one of the forward pass.

use half::bf16;

use super::{Cut, MOST_PIXELS, PLACES, Products, Right, TAPS, Tiles, Vector, both_axes, transform_pixels};
use crate::conv::Conv2dShape;
use crate::product16::with_half_scratch;
use crate::scratch::Line;
use crate::simd::{Avx512Bf16, Simd};
use crate::stream::{past_caches, past_caches_done, write_up_to};
use crate::threads::{SharedMut, parallel_for};
use crate::tile16::{Kernel16, SHORT_STRIDE, WIDTH, interleave_rounded, transpose_pairs};
use std::ops::Range;

/// Tiles that are transformed together, in pairs: the inner dimension of the products.
const BLOCK: usize = 32;

/// Channels whose pixels a task transforms.
const CHANNELS: usize = 4 * WIDTH;

/// The gradient of the filters, `[outputs, 3, 3, channels]`, which is overwritten.
pub fn backward_weight(token: Avx512Bf16, shape: &Conv2dShape, dy: &[bf16], x: &[bf16], dw: &mut [f32]) {
    let tiles = Tiles::new(shape);
    let (channels, outputs) = (shape.in_channels, shape.out_channels);
    let parts = (PLACES * tiles.count * (channels + outputs)).div_ceil(2 * MOST_PIXELS);
    let chunk = tiles.count.div_ceil(parts).next_multiple_of(BLOCK);
    let past_caches = past_caches(dw);
    let dw = SharedMut::new(dw);
    let gradient = Gradient { token, tiles, dy, x, channels, outputs, dw: &dw, past_caches };
    for first in (0..gradient.tiles.count).step_by(chunk) {
        gradient.chunk(first, chunk.min((gradient.tiles.count - first).next_multiple_of(BLOCK)));
    }
}

struct Gradient<'a> {
    token: Avx512Bf16,
    tiles: Tiles,
    dy: &'a [bf16],
    x: &'a [bf16],
    channels: usize,
    outputs: usize,
    dw: &'a SharedMut<'a, f32>,
    /// True if they are written past the caches.
    past_caches: bool,
}

impl Gradient<'_> {
    /// Adds the gradients of `count` tiles from `first` on; those of the first tiles overwrite what was there.
    fn chunk(&self, first: usize, count: usize) {
        let cut = Cut::new(self.outputs, count);
        with_half_scratch(cut.groups() * cut.group_len() + PLACES * count * self.channels, |memory| {
            let (left, right) = memory.split_at_mut(cut.groups() * cut.group_len());
            self.transform_gradients(&cut, first, left);
            self.transform_pixels(&cut, first, right);
            let (right, panels) = (Right::Panels(right), self.channels / WIDTH);
            Products { token: self.token, cut, left, right, panels }.all(
                #[inline(always)]
                |rows, panel, sums, size| self.store(rows, panel, sums, size, first > 0),
            );
        });
    }

    /// Runs `f` for blocks of tiles and ranges of channels: the block's number in the chunk, its first tile, the channels, and a pixel of zeros.
    fn blocks(
        &self,
        channels: usize,
        first: usize,
        count: usize,
        f: impl Fn(usize, usize, Range<usize>, &[bf16]) + Sync,
    ) {
        let (blocks, outside) = (count / BLOCK, vec![bf16::ZERO; channels]);
        parallel_for(blocks * channels.div_ceil(CHANNELS), |task| {
            let (block, part) = (task % blocks, task / blocks);
            let channels = part * CHANNELS..((part + 1) * CHANNELS).min(channels);
            self.token.run(
                #[inline(always)]
                || f(block, first + block * BLOCK, channels, &outside),
            );
        });
    }

    /// The left operands: transformed gradients of the outputs, whose rows are outputs.
    fn transform_gradients(&self, cut: &Cut, first: usize, to: &mut [bf16]) {
        let to = SharedMut::new(to);
        let s = self.token;
        self.blocks(
            self.outputs,
            first,
            cut.k,
            #[inline(always)]
            |block, tile, outputs, outside| {
                let (q, at) = (block * BLOCK / cut.piece, block * BLOCK % cut.piece);
                let pixels = self.block::<2>(tile, 0, self.dy, outside);
                // Pairs of tiles for 16 outputs at each place, and one place the other way round.
                let mut pairs = [[Line([0.0; 16]); BLOCK / 2]; PLACES];
                let mut rows = [Line([0.0; 16]); 16];
                for o in outputs.step_by(16) {
                    for pair in 0..BLOCK / 2 {
                        let even = transform_gradient(s, &pixels[2 * pair], o);
                        let odd = transform_gradient(s, &pixels[2 * pair + 1], o);
                        for (place, pairs) in pairs.iter_mut().enumerate() {
                            let line: &mut [bf16] = bytemuck::cast_slice_mut(&mut pairs[pair].0);
                            interleave_rounded(s, even[place / 4][place % 4], odd[place / 4][place % 4], line);
                        }
                    }
                    for (place, pairs) in pairs.iter().enumerate() {
                        transpose_pairs(s, bytemuck::cast_slice(pairs), 32, bytemuck::cast_slice_mut(&mut rows), 32);
                        for (row, values) in (o..).zip(&rows) {
                            let begin = row / cut.rows * cut.group_len()
                                + (q * PLACES + place) * cut.place_len()
                                + row % cut.rows * SHORT_STRIDE
                                + at;
                            // SAFETY: tasks differ in tiles or outputs, and each writes only those of its own.
                            unsafe { to.range(begin..begin + BLOCK) }.copy_from_slice(bytemuck::cast_slice(&values.0));
                        }
                    }
                }
            },
        );
    }

    /// The right operands: transformed pixels, whose columns are channels.
    fn transform_pixels(&self, cut: &Cut, first: usize, to: &mut [bf16]) {
        let to = SharedMut::new(to);
        let s = self.token;
        self.blocks(
            self.channels,
            first,
            cut.k,
            #[inline(always)]
            |block, tile, channels, outside| {
                let pixels = self.block::<4>(tile, 1, self.x, outside);
                for c in channels.step_by(16) {
                    for pair in 0..BLOCK / 2 {
                        let even = transform_pixels(s, &pixels[2 * pair], c);
                        let odd = transform_pixels(s, &pixels[2 * pair + 1], c);
                        for place in 0..PLACES {
                            let row = (c / WIDTH * PLACES + place) * cut.k + block * BLOCK + 2 * pair;
                            let begin = row * WIDTH + c % WIDTH * 2;
                            // SAFETY: tasks differ in tiles or channels, and each writes only those of its own.
                            let to = unsafe { to.range(begin..begin + 32) };
                            interleave_rounded(s, even[place / 4][place % 4], odd[place / 4][place % 4], to);
                        }
                    }
                }
            },
        );
    }

    /// The pixels of a block of tiles.
    #[inline(always)]
    fn block<'p, const N: usize>(
        &self,
        tile: usize,
        before: usize,
        images: &'p [bf16],
        outside: &'p [bf16],
    ) -> [[[&'p [bf16]; N]; N]; BLOCK] {
        let mut pixels = [[[outside; N]; N]; BLOCK];
        for (i, pixels) in pixels.iter_mut().enumerate() {
            *pixels = self.tiles.pixels(tile + i, before, images, outside);
        }
        pixels
    }

    /// Transforms sums over tiles to gradients of filters; `distance` is that of the places.
    #[inline(always)]
    fn store(&self, outputs: Range<usize>, panel: usize, sums: &[f32], distance: usize, add: bool) {
        let s = self.token;
        for (i, output) in outputs.enumerate() {
            for v in 0..WIDTH / 16 {
                let taps = transform_sums(s, &sums[i * WIDTH + 16 * v..], distance);
                for (tap, &sum) in taps.as_flattened().iter().enumerate() {
                    let begin = (output * TAPS + tap) * self.channels + panel * WIDTH + 16 * v;
                    // SAFETY: tasks differ in outputs or panels, and each writes only those of its own.
                    let to = unsafe { self.dw.range(begin..begin + 16) };
                    let sum = if add { s.add(s.load(to), sum) } else { sum };
                    write_up_to(s, sum, to, self.past_caches && !add);
                }
            }
        }
        past_caches_done(self.past_caches);
    }
}

/// `A dy A^T` for 16 outputs from `o` on of 2x2 pixels.
#[inline(always)]
fn transform_gradient(s: Avx512Bf16, pixels: &[[&[bf16]; 2]; 2], o: usize) -> [[Vector; 4]; 4] {
    both_axes(
        s,
        #[inline(always)]
        |y, x| s.load_bf16(&pixels[y][x][o..]),
        #[inline(always)]
        |g| gradient_axis(s, g),
    )
}

/// `A g`.
#[inline(always)]
fn gradient_axis(s: Avx512Bf16, [a, b]: [Vector; 2]) -> [Vector; 4] {
    [a, s.add(a, b), s.sub(a, b), s.neg(b)]
}

/// `G^T m G` for 16 channels; the places are `distance` apart.
#[inline(always)]
fn transform_sums(s: Avx512Bf16, sums: &[f32], distance: usize) -> [[Vector; 3]; 3] {
    both_axes(
        s,
        #[inline(always)]
        |y, x| s.load(&sums[(4 * y + x) * distance..]),
        #[inline(always)]
        |m| tap_axis(s, m),
    )
}

/// `G^T m`.
#[inline(always)]
fn tap_axis(s: Avx512Bf16, m: [Vector; 4]) -> [Vector; 3] {
    let half = s.splat(0.5);
    let (sum, difference) = (s.mul(s.add(m[1], m[2]), half), s.mul(s.sub(m[1], m[2]), half));
    [s.add(m[0], sum), difference, s.add(sum, m[3])]
}
