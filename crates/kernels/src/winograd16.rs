//! 3x3 convolutions of bf16 pictures in steps of 1 by minimal filtering, F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308,
//! section 4.1): 16 multiplications for four outputs of a channel instead of 36.
//!
//! Tiles of 4x4 pixels, two apart, are transformed to 16 places, the filters too; at each place, the sums over channels are a product of
//! matrices, `[tiles, channels]` by `[channels, outputs]`; the 16 sums of a tile are transformed to 2x2 outputs. Transforms are `f32`;
//! pixels and filters are rounded to bf16 after theirs, which makes the error of a convolution (rounded filters, rounded outputs) 1.5 to 1.8
//! times as large.
//!
//! It pays where multiplying takes longer than reading: with dot products of bf16 pairs, not on AMX.

use half::bf16;
use std::ops::Range;
use std::sync::OnceLock;

use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::product::Output;
use crate::product16::with_half_scratch;
use crate::scratch::{Line, with_scratch};
use crate::simd::{Avx512Bf16, Bf16Isa, Simd, bf16_isa, prefetch};
use crate::threads::{SharedMut, for_chunks, parallel_for};
use crate::tile16::{Kernel16, SHORT_KC, SHORT_STRIDE, Tile, WIDTH, swap_pairs, transpose_rounded};

/// Places of a transformed tile, by rows.
const PLACES: usize = 16;

/// Taps of a filter.
const TAPS: usize = 9;

/// Fewest channels and outputs: below, the transforms cost as much as the products save.
const LEAST_CHANNELS: usize = 128;

/// Fewest tiles: below, reading the larger filters takes as long as multiplying.
const LEAST_TILES: usize = 64;

/// Groups of tiles whose sums a task holds in the second-level cache.
const GROUPS: usize = 5;

/// Most elements of transformed pixels that exist at once: what stays in the third-level cache.
const MOST_PIXELS: usize = 12 << 20;

/// Enough tasks for many cores to be busy most of the time.
const TASKS: usize = 32;

/// Tiles whose outputs are stored together.
const RUN: usize = 8;

type Vector = <Avx512Bf16 as Simd>::V;

/// The instructions, if a convolution is to be computed this way: a function of shape and instruction set.
///
/// The environment variable `CALOTYPE_CONV=direct` says never.
pub fn suits(shape: &Conv2dShape) -> Option<Avx512Bf16> {
    static DIRECT: OnceLock<bool> = OnceLock::new();
    let Bf16Isa::Avx512(token) = bf16_isa() else { return None };
    let channels = [shape.in_channels, shape.out_channels];
    let suits = shape.kernel == [3, 3]
        && shape.stride == 1
        && shape.padding == [1; 4]
        && channels.iter().all(|&n| n >= LEAST_CHANNELS && n.is_multiple_of(WIDTH))
        && shape.batch * shape.height.div_ceil(2) * shape.width.div_ceil(2) >= LEAST_TILES;
    let direct = || *DIRECT.get_or_init(|| std::env::var("CALOTYPE_CONV").is_ok_and(|way| way == "direct"));
    (suits && !direct()).then_some(token)
}

/// Transformed filters: `[panel, place, channels / 2, WIDTH, 2]`, a panel being [`WIDTH`] outputs.
pub struct Filters {
    token: Avx512Bf16,
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

    /// Outputs, and elements of a filter.
    pub fn size(&self) -> (usize, usize) {
        (self.outputs, TAPS * self.channels)
    }

    /// Memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<Line>()
    }

    fn halves(&self) -> &[bf16] {
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
fn transform_filters<W: Element>(token: Avx512Bf16, w: &[W], channels: usize, to: &mut [bf16]) {
    for_chunks(to, PLACES * WIDTH * channels, |panel, to| {
        let w = &w[panel * WIDTH * TAPS * channels..][..WIDTH * TAPS * channels];
        token.run(
            #[inline(always)]
            || transform_panel::<false, W>(token, w, channels, to),
        );
    });
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
    let mut columns = [[s.splat(0.0); 4]; 3];
    for x in 0..3 {
        let mut g = [s.splat(0.0); 3];
        for y in 0..3 {
            g[y] = W::load(s, &w[(3 * y + x) * channels + c..]);
        }
        columns[x] = filter_axis(s, g);
    }
    for y in 0..4 {
        let row = filter_axis(s, [columns[0][y], columns[1][y], columns[2][y]]);
        for x in 0..4 {
            s.store(row[x], &mut to[(4 * y + x) * distance..]);
        }
    }
}

/// `G g`.
#[inline(always)]
fn filter_axis(s: Avx512Bf16, g: [Vector; 3]) -> [Vector; 4] {
    let half = s.splat(0.5);
    let (ends, middle) = (s.mul(s.add(g[0], g[2]), half), s.mul(g[1], half));
    [g[0], s.add(ends, middle), s.sub(ends, middle), g[2]]
}

/// Filters of the gradient of the input from transformed filters: inputs and outputs change places, and the taps are in reverse, which
/// exchanges the first and the last row and column of the places.
const TURNED: [usize; PLACES] = [15, 13, 14, 12, 7, 5, 6, 4, 11, 9, 10, 8, 3, 1, 2, 0];

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

/// One convolution, cut by its shape alone.
struct Convolution<'a, T> {
    token: Avx512Bf16,
    x: &'a [bf16],
    filters: &'a [bf16],
    /// Whether inputs and outputs of the filters change places: see [`TURNED`].
    turned: bool,
    out: &'a Output<'a, T>,
    /// Height and width of the pictures.
    size: [usize; 2],
    /// Tiles down and across a picture, and of all pictures.
    tiles: [usize; 2],
    count: usize,
    channels: usize,
    outputs: usize,
    /// Tiles of a group: the rows of one product in registers.
    rows: usize,
    /// Channels that are multiplied at once.
    piece: usize,
    pieces: usize,
}

impl<'a, T: Element> Convolution<'a, T> {
    fn new(
        token: Avx512Bf16,
        shape: &Conv2dShape,
        x: &'a [bf16],
        filters: &'a [bf16],
        turned: bool,
        out: &'a Output<'a, T>,
    ) -> Self {
        let size = [shape.height, shape.width];
        let [mut channels, mut outputs] = [shape.in_channels, shape.out_channels];
        if turned {
            (channels, outputs) = (outputs, channels);
        }
        let tiles = size.map(|n| n.div_ceil(2));
        let count = shape.batch * tiles[0] * tiles[1];
        let groups = count.div_ceil(Avx512Bf16::ROWS);
        let piece = channels.div_ceil(channels.div_ceil(SHORT_KC)).next_multiple_of(32);
        let pieces = channels.div_ceil(piece);
        Self {
            token,
            x,
            filters,
            turned,
            out,
            size,
            tiles,
            count,
            channels,
            outputs,
            rows: count.div_ceil(groups),
            piece,
            pieces,
        }
    }

    /// Elements of the transformed pixels of a group: `[piece, place, rows, SHORT_STRIDE]`.
    fn group_len(&self) -> usize {
        self.pieces * PLACES * self.rows * SHORT_STRIDE
    }

    /// The channels of a piece.
    fn piece(&self, q: usize) -> Range<usize> {
        q * self.piece..((q + 1) * self.piece).min(self.channels)
    }

    fn all(&self) {
        let groups = self.count.div_ceil(self.rows);
        let chunk = (MOST_PIXELS / self.group_len() / GROUPS * GROUPS).max(GROUPS).min(groups);
        with_half_scratch(chunk * self.group_len(), |pixels| {
            for first in (0..groups).step_by(chunk) {
                let count = chunk.min(groups - first);
                let pixels = &mut pixels[..count * self.group_len()];
                for_chunks(pixels, self.group_len(), |i, to| {
                    self.token.run(
                        #[inline(always)]
                        || self.transform_group(first + i, to),
                    );
                });
                self.multiply(first, pixels);
            }
        });
    }

    /// Transforms the pixels of a group of tiles.
    #[inline(always)]
    fn transform_group(&self, group: usize, to: &mut [bf16]) {
        let outside = vec![bf16::ZERO; self.channels];
        for (row, tile) in (group * self.rows..((group + 1) * self.rows).min(self.count)).enumerate() {
            let [b, i, j] = self.place(tile);
            let mut pixels = [[&outside[..]; 4]; 4];
            for (y, line) in pixels.iter_mut().enumerate() {
                for (x, pixel) in line.iter_mut().enumerate() {
                    // One pixel of padding comes first.
                    let (y, x) = (2 * i + y, 2 * j + x);
                    if (1..=self.size[0]).contains(&y) && (1..=self.size[1]).contains(&x) {
                        let at = (b * self.size[0] + y - 1) * self.size[1] + x - 1;
                        *pixel = &self.x[at * self.channels..][..self.channels];
                    }
                }
            }
            for q in 0..self.pieces {
                let range = self.piece(q);
                let to = &mut to[(q * PLACES * self.rows + row) * SHORT_STRIDE..];
                for c in range.clone().step_by(16) {
                    transform_pixels(self.token, &pixels, c, &mut to[c - range.start..], self.rows * SHORT_STRIDE);
                }
            }
        }
    }

    /// Picture, row and column of a tile.
    #[inline(always)]
    fn place(&self, tile: usize) -> [usize; 3] {
        let (line, j) = (tile / self.tiles[1], tile % self.tiles[1]);
        [line / self.tiles[0], line % self.tiles[0], j]
    }

    /// Multiplies the transformed pixels of the groups from `first` on, and stores the outputs.
    fn multiply(&self, first: usize, pixels: &[bf16]) {
        let groups = pixels.len() / self.group_len();
        let (blocks, panels) = (groups.div_ceil(GROUPS), self.outputs / WIDTH);
        let share = panels.div_ceil(TASKS.div_ceil(blocks).min(panels));
        // Tasks with the same filters come one after the other.
        parallel_for(blocks * panels.div_ceil(share), |task| {
            let (block, part) = (task % blocks, task / blocks);
            let panels = part * share..((part + 1) * share).min(panels);
            let groups = block * GROUPS..((block + 1) * GROUPS).min(groups);
            let pixels = &pixels[groups.start * self.group_len()..groups.end * self.group_len()];
            self.token.run(
                #[inline(always)]
                || self.task((first + groups.start) * self.rows, pixels, panels),
            );
        });
    }

    /// The outputs `panels` of the groups of tiles from tile `first` on.
    #[inline(always)]
    fn task(&self, first: usize, pixels: &[bf16], panels: Range<usize>) {
        let groups = pixels.len() / self.group_len();
        let tiles = (groups * self.rows).min(self.count - first);
        // Of a place.
        let size = GROUPS * self.rows * WIDTH;
        let room = if self.turned { self.piece * WIDTH / 2 } else { 0 };
        with_scratch(
            PLACES * size + room,
            #[inline(always)]
            |memory| {
                let (sums, room) = memory.split_at_mut(PLACES * size);
                let room: &mut [bf16] = bytemuck::cast_slice_mut(room);
                for panel in panels {
                    for (place, sums) in sums.chunks_exact_mut(size).enumerate() {
                        for q in 0..self.pieces {
                            self.add_piece((panel, place, q), tiles, pixels, sums, room);
                        }
                    }
                    self.store(first, tiles, panel, sums, size);
                }
            },
        );
    }

    /// Adds the products of a piece of the channels to the sums for one panel of outputs at one place, `[tiles, WIDTH]`; the first piece
    /// overwrites them.
    #[inline(always)]
    fn add_piece(
        &self,
        (panel, place, q): (usize, usize, usize),
        tiles: usize,
        pixels: &[bf16],
        sums: &mut [f32],
        room: &mut [bf16],
    ) {
        let groups = tiles.div_ceil(self.rows);
        let left = |group: usize, place: usize, q: usize| {
            &pixels[group * self.group_len() + (q * PLACES + place) * self.rows * SHORT_STRIDE..]
        };
        let range = self.piece(q);
        // Cache lines of a group's pixels, for each step of 32 channels.
        let lines = (self.rows * SHORT_STRIDE / self.piece).min(16);
        let b = self.filters(panel, place, q, room);
        for group in 0..groups {
            // What is multiplied next comes nearer meanwhile.
            self.fetch_filters(panel, place, range.clone(), (group, groups));
            let next = match () {
                () if group + 1 < groups => left(group + 1, place, q),
                () if q + 1 < self.pieces => left(0, place, q + 1),
                () => left(0, (place + 1) % PLACES, 0),
            };
            let first = group * self.rows;
            let rows = self.rows.min(tiles - first);
            let c = &mut sums[first * WIDTH..(first + rows) * WIDTH];
            let tile = Tile {
                rows,
                columns: WIDTH,
                k: range.len(),
                a: [left(group, place, q)[..rows * SHORT_STRIDE].as_ptr(); 2],
                a_stride: SHORT_STRIDE,
                b: b.as_ptr(),
                c: c.as_mut_ptr(),
                c_stride: WIDTH,
                accumulate: q > 0,
                next: Some((next.as_ptr(), lines)),
            };
            // SAFETY: A has `rows` rows of at least `k` elements, B is as long as its slice, C has whole rows.
            unsafe { self.token.tile(&tile) };
        }
    }

    /// The filters of a panel at a place, for the channels of a piece.
    #[inline(always)]
    fn filters<'r>(&'r self, panel: usize, place: usize, q: usize, room: &'r mut [bf16]) -> &'r [bf16] {
        let range = self.piece(q);
        if !self.turned {
            let panel = &self.filters[panel * PLACES * self.channels * WIDTH..][..PLACES * self.channels * WIDTH];
            return &panel[(place * self.channels + range.start) * WIDTH..][..range.len() * WIDTH];
        }
        const LINE: usize = 2 * WIDTH;
        for (o, to) in (range.start / WIDTH..).zip(room[..range.len() * WIDTH].chunks_exact_mut(WIDTH * WIDTH)) {
            let from = self.block(panel, place, o);
            // Squares of 16 by 16 elements.
            for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                swap_pairs(self.token, &from[i * 8 * LINE + j * WIDTH..], &mut to[j * 8 * LINE + i * WIDTH..]);
            }
        }
        &room[..range.len() * WIDTH]
    }

    /// The filters between [`WIDTH`] channels, number `o`, and a panel of outputs at a place, where they are to be turned.
    #[inline(always)]
    fn block(&self, panel: usize, place: usize, o: usize) -> &[bf16] {
        &self.filters[((o * PLACES + TURNED[place]) * self.outputs + panel * WIDTH) * WIDTH..][..WIDTH * WIDTH]
    }

    /// Brings one of `parts` parts of the filters of the next place nearer.
    #[inline(always)]
    fn fetch_filters(&self, panel: usize, place: usize, channels: Range<usize>, (part, parts): (usize, usize)) {
        const LINES: usize = WIDTH * WIDTH / 32;
        if place + 1 == PLACES {
            return;
        }
        let lines = channels.len() / WIDTH * LINES;
        for line in part * lines / parts..(part + 1) * lines / parts {
            let at = if self.turned {
                &self.block(panel, place + 1, channels.start / WIDTH + line / LINES)[line % LINES * 32]
            } else {
                let panel = &self.filters[panel * PLACES * self.channels * WIDTH..];
                &panel[((place + 1) * self.channels + channels.start) * WIDTH + line * 32]
            };
            prefetch(&raw const *at);
        }
    }

    /// Transforms the sums of tiles to outputs and stores them; `distance` is that of the places.
    #[inline(always)]
    fn store(&self, first: usize, tiles: usize, panel: usize, sums: &[f32], distance: usize) {
        let mut lines = [[Line([0.0; 16]); 2 * RUN * WIDTH / 16]; 2];
        let mut t = 0;
        while t < tiles {
            let [b, i, j] = self.place(first + t);
            let run = RUN.min(self.tiles[1] - j).min(tiles - t);
            for r in 0..run {
                transform_sums(self.token, &sums[(t + r) * WIDTH..], distance, &mut lines, r);
            }
            for (p, line) in lines.iter().enumerate() {
                let y = 2 * i + p;
                if y < self.size[0] {
                    let row = (b * self.size[0] + y) * self.size[1] + 2 * j;
                    let pixels = (2 * run).min(self.size[1] - 2 * j);
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

/// `B^T d`.
#[inline(always)]
fn pixel_axis(s: Avx512Bf16, d: [Vector; 4]) -> [Vector; 4] {
    [s.sub(d[0], d[2]), s.add(d[1], d[2]), s.sub(d[2], d[1]), s.sub(d[1], d[3])]
}

/// `A^T m`.
#[inline(always)]
fn sum_axis(s: Avx512Bf16, m: [Vector; 4]) -> [Vector; 2] {
    [s.add(m[0], s.add(m[1], m[2])), s.sub(s.sub(m[1], m[2]), m[3])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Epilogue;
    use crate::random::{Purpose, Stream};
    use crate::reference;

    fn values(len: usize, index: u64) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Stream::new(5, Purpose::Evaluation, index).fill_normal(&mut values);
        values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
    }

    fn halves(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|&x| bf16::from_f32(x)).collect()
    }

    fn shape((batch, height, width): (usize, usize, usize), in_channels: usize, out_channels: usize) -> Conv2dShape {
        let kernel = [3, 3];
        Conv2dShape { batch, height, width, in_channels, out_channels, kernel, stride: 1, padding: [1; 4] }
    }

    /// Odd sizes, one and several pieces, groups, blocks and panels; less than a group of tiles.
    const SHAPES: [((usize, usize, usize), usize, usize); 6] = [
        ((2, 9, 7), 32, 64),
        ((1, 1, 1), 64, 32),
        ((1, 16, 16), 352, 96),
        ((3, 12, 13), 96, 32),
        ((1, 31, 2), 672, 32),
        ((1, 2, 40), 32, 352),
    ];

    /// Errors are as large as rounding of transformed pixels and filters makes them, and the largest is not far out.
    #[track_caller]
    fn near(what: &str, ours: &[bf16], exact: &[f64]) {
        let square = |sum: f64, x: f64| sum + x * x;
        let size = (exact.iter().copied().fold(0.0, square) / exact.len() as f64).sqrt();
        let errors = ours.iter().zip(exact).map(|(a, b)| a.to_f32() as f64 - b);
        let rms = (errors.clone().fold(0.0, square) / exact.len() as f64).sqrt();
        let most = errors.fold(0.0, |most: f64, error| most.max(error.abs()));
        assert!(rms < 0.006 * size && most < 0.05 * size, "{what}: {rms:e} and {most:e} of {size}");
    }

    #[test]
    fn convolutions_and_their_input_gradients() {
        let Some(token) = Avx512Bf16::new() else { return };
        for (size, cin, cout) in SHAPES {
            let shape = shape(size, cin, cout);
            let (x, w, dy) =
                (values(shape.input_len(), 1), values(shape.weight_len(), 2), values(shape.output_len(), 3));
            let filters = Filters::new(token, &w, cout, cin);
            let (mut y, mut plain) = (vec![bf16::NAN; dy.len()], vec![bf16::NAN; dy.len()]);
            Output::to_rows(&mut y, cout, Epilogue::default(), |out| forward(&shape, &halves(&x), &filters, out));
            near(&format!("{shape:?}"), &y, &reference::conv2d(&shape, &x, &w));
            Output::to_rows(&mut plain, cout, Epilogue::default(), |out| {
                forward_plain(token, &shape, &halves(&x), &w, out);
            });
            assert!(y == plain, "{shape:?}");
            let (mut dx, mut plain) = (vec![bf16::NAN; x.len()], vec![bf16::NAN; x.len()]);
            Output::to_rows(&mut dx, cin, Epilogue::default(), |out| {
                backward_input(&shape, &halves(&dy), &filters, out);
            });
            near(&format!("dx {shape:?}"), &dx, &reference::conv2d_backward(&shape, &x, &w, &dy).0);
            Output::to_rows(&mut plain, cin, Epilogue::default(), |out| {
                backward_input_plain(token, &shape, &halves(&dy), &w, out);
            });
            assert!(dx == plain, "dx {shape:?}");
        }
    }

    #[test]
    fn what_is_added_to_the_outputs() {
        let Some(token) = Avx512Bf16::new() else { return };
        let shape = shape((2, 9, 7), 32, 64);
        let (x, w) = (values(shape.input_len(), 1), values(shape.weight_len(), 2));
        let (bias, added, residual) = (values(64, 3), values(2 * 64, 4), values(shape.output_len(), 5));
        let (added, residual) = (halves(&added), halves(&residual));
        let epilogue = shape.epilogue("test", Some(&bias), Some(&added), Some(&residual));
        let mut y = vec![bf16::NAN; shape.output_len()];
        Output::to_rows(&mut y, 64, epilogue, |out| forward_plain(token, &shape, &halves(&x), &w, out));
        let mut exact = reference::conv2d(&shape, &x, &w);
        for (i, exact) in exact.iter_mut().enumerate() {
            let added = added[i / (9 * 7 * 64) * 64 + i % 64];
            *exact += (bias[i % 64] + added.to_f32() + residual[i].to_f32()) as f64;
        }
        near("with all that is added", &y, &exact);
    }

    #[test]
    fn new_filters_take_the_place_of_old_ones() {
        let Some(token) = Avx512Bf16::new() else { return };
        let (old, new) = (values(64 * TAPS * 96, 1), values(64 * TAPS * 96, 2));
        let mut filters = Filters::new(token, &old, 64, 96);
        let renewal = filters.renew();
        for (row, w) in new.chunks_exact(WIDTH * TAPS * 96).enumerate() {
            // SAFETY: one thread, which says that it is done before anything is read.
            unsafe { renewal.transform(row * WIDTH, w) };
        }
        crate::stream::past_caches_done(true);
        assert!(filters.halves() == Filters::new(token, &new, 64, 96).halves());
    }
}
