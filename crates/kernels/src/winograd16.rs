//! 3x3 convolutions of bf16 images in steps of 1 by Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308,
//! section 4.1): 16 multiplications for four outputs of a channel instead of 36, and as many for the nine elements of a filter's gradient.
//!
//! Tiles of 4x4 pixels, two apart, are transformed to 16 places, the filters too; at each place, the sums over channels are a product of
//! matrices, `[tiles, channels]` by `[channels, outputs]`; the 16 sums of a tile are transformed to 2x2 outputs. Transforms are `f32`;
//! what is multiplied is rounded to bf16 after them, which makes the error of a convolution (rounded filters, rounded outputs) 1.5 to 1.8
//! times as large.
//!
//! It pays where multiplying takes longer than reading: with dot products of bf16 pairs, not on AMX.

mod filters;
mod gradient;
mod images;

pub use filters::{FilterRenewal, Filters};
pub use gradient::backward_weight;
pub use images::{Pass, convolve, convolve_packed, convolve_plain};

use half::bf16;
use std::ops::Range;
use std::sync::OnceLock;

use crate::conv::Conv2dShape;
use crate::product16::TASKS;
use crate::scratch::with_scratch;
use crate::simd::{Avx512Bf16, Bf16Isa, Simd, bf16_isa, prefetch};
use crate::threads::parallel_for;
use crate::tile16::{Kernel16, SHORT_KC, SHORT_STRIDE, Tile, WIDTH, swap_pairs};

/// Places of a transformed tile, by rows.
const PLACES: usize = 16;

/// Taps of a filter.
const TAPS: usize = 9;

/// Fewest channels and outputs for the gradient of the filters: below, the transforms cost as much as the products save.
const LEAST_CHANNELS: usize = 2 * WIDTH;

/// Fewest tiles: below, reading the larger filters takes as long as multiplying.
const LEAST_TILES: usize = 64;

/// Fewest tiles of an image, where one image decides: with guidance, images come in twos.
const LEAST_TILES_OF_IMAGE: usize = LEAST_TILES / 2;

/// Most tiles of a convolution that keeps its transformed filters: transforming as many in passing costs more than reading 16/9 of the
/// memory (1.3 of 4.4 ms for 64 tiles of 1280 channels on Zen 5).
const MOST_TILES_KEPT: usize = 128;

/// Groups of rows whose sums a task holds in the second-level cache.
const GROUPS: usize = 5;

/// Most elements of transformed pixels that exist at once: what stays in the third-level cache.
const MOST_PIXELS: usize = 12 << 20;

/// Most elements of transformed filters that exist at once where they are not kept: as [`MOST_PIXELS`].
const MOST_FILTERS: usize = 8 << 20;

type Vector = <Avx512Bf16 as Simd>::V;

/// The instructions, if a convolution, and the gradient of its input, are to be computed this way: a function of shape and instruction set.
///
/// The environment variable `CALOTYPE_CONV=direct` says never.
pub fn suits(shape: &Conv2dShape) -> Option<Avx512Bf16> {
    static DIRECT: OnceLock<bool> = OnceLock::new();
    let Bf16Isa::Avx512(token) = bf16_isa() else { return None };
    let channels = [shape.in_channels, shape.out_channels];
    let suits = shape.kernel == [3, 3]
        && shape.stride == 1
        && shape.padding == [1; 4]
        && channels.iter().all(|&n| n > 0 && n.is_multiple_of(WIDTH))
        && Tiles::new(shape).are_enough(shape.per_image);
    let direct = || *DIRECT.get_or_init(|| std::env::var("CALOTYPE_CONV").is_ok_and(|way| way == "direct"));
    (suits && !direct()).then_some(token)
}

/// True if a convolution of weights that are packed for products should keep its transformed filters.
pub fn keeps_filters(shape: &Conv2dShape) -> bool {
    Tiles::new(shape).count <= MOST_TILES_KEPT
}

/// [`suits`] for the gradient of the filters.
pub fn suits_filters(shape: &Conv2dShape) -> Option<Avx512Bf16> {
    suits(shape).filter(|_| shape.in_channels.min(shape.out_channels) >= LEAST_CHANNELS)
}

/// The places of the tiles of images.
struct Tiles {
    /// Height and width of the images.
    size: [usize; 2],
    /// Tiles down and across an image.
    tiles: [usize; 2],
    /// Tiles of all images.
    count: usize,
}

impl Tiles {
    fn new(shape: &Conv2dShape) -> Self {
        let size = [shape.height, shape.width];
        let tiles = size.map(|n| n.div_ceil(2));
        Self { size, tiles, count: shape.batch * tiles[0] * tiles[1] }
    }

    /// True if it is worth to transform filters for them.
    fn are_enough(&self, per_image: bool) -> bool {
        match per_image {
            true => self.count > 0 && self.tiles[0] * self.tiles[1] >= LEAST_TILES_OF_IMAGE,
            false => self.count >= LEAST_TILES,
        }
    }

    /// Image, row and column of a tile.
    #[inline(always)]
    fn place(&self, tile: usize) -> [usize; 3] {
        let (line, j) = (tile / self.tiles[1], tile % self.tiles[1]);
        [line / self.tiles[0], line % self.tiles[0], j]
    }

    /// `N` by `N` pixels of a tile, whose first outputs come `before` pixels after the first of them; those that are in no image, and
    /// those of tiles that there are not, are `outside`, one pixel.
    #[inline(always)]
    fn pixels<'p, const N: usize>(
        &self,
        tile: usize,
        before: usize,
        x: &'p [bf16],
        outside: &'p [bf16],
    ) -> [[&'p [bf16]; N]; N] {
        let mut pixels = [[outside; N]; N];
        if tile >= self.count {
            return pixels;
        }
        let channels = outside.len();
        let [b, i, j] = self.place(tile);
        let inside = |axis: usize, at: usize| (before..self.size[axis] + before).contains(&at);
        for (y, line) in pixels.iter_mut().enumerate() {
            for (x_, pixel) in line.iter_mut().enumerate() {
                let (y, x_) = (2 * i + y, 2 * j + x_);
                if inside(0, y) && inside(1, x_) {
                    let at = (b * self.size[0] + y - before) * self.size[1] + x_ - before;
                    *pixel = &x[at * channels..][..channels];
                }
            }
        }
        pixels
    }
}

/// The cut of products of `[count, k]` by `[k, columns]`: by their size alone.
#[derive(Clone, Copy)]
struct Cut {
    count: usize,
    /// Rows of a group: of one product in registers.
    rows: usize,
    k: usize,
    /// Length of what is multiplied at once.
    piece: usize,
    pieces: usize,
}

impl Cut {
    fn new(count: usize, k: usize) -> Self {
        let groups = count.div_ceil(Avx512Bf16::ROWS);
        let piece = k.div_ceil(k.div_ceil(SHORT_KC)).next_multiple_of(32);
        Self { count, rows: count.div_ceil(groups), k, piece, pieces: k.div_ceil(piece) }
    }

    fn groups(&self) -> usize {
        self.count.div_ceil(self.rows)
    }

    /// The part of the inner dimension in a piece.
    fn piece(&self, q: usize) -> Range<usize> {
        q * self.piece..((q + 1) * self.piece).min(self.k)
    }

    /// Elements of a group of the left operand: `[piece, place, rows, SHORT_STRIDE]`.
    fn group_len(&self) -> usize {
        self.pieces * PLACES * self.place_len()
    }

    /// Elements of a group of the left operand in one piece at one place.
    fn place_len(&self) -> usize {
        self.rows * SHORT_STRIDE
    }
}

/// The right operands of products at all places.
#[derive(Clone, Copy)]
enum Right<'a> {
    /// In panels of [`WIDTH`] columns: `[panel, place, k / 2, WIDTH, 2]`.
    Panels(&'a [bf16]),
    /// The same with rows and columns exchanged, for so many columns, and the places by [`TURNED`].
    Turned(&'a [bf16], usize),
}

/// Filters of the gradient of the input from transformed filters: inputs and outputs change places, and the taps are in reverse, which
/// exchanges the first and the last row and column of the places.
const TURNED: [usize; PLACES] = [15, 13, 14, 12, 7, 5, 6, 4, 11, 9, 10, 8, 3, 1, 2, 0];

/// Products at all places: `[count, k]` by `[k, columns]`.
struct Products<'a> {
    token: Avx512Bf16,
    cut: Cut,
    /// `[group, piece, place, rows, SHORT_STRIDE]`.
    left: &'a [bf16],
    right: Right<'a>,
    /// Panels of columns.
    panels: usize,
}

impl Products<'_> {
    /// Gives the sums of all products to `store`: some rows, a panel, and its sums, `[place, rows, WIDTH]`, with the distance of the places.
    fn all(&self, store: impl Fn(Range<usize>, usize, &[f32], usize) + Sync) {
        let (groups, panels) = (self.cut.groups(), self.panels);
        let blocks = groups.div_ceil(GROUPS);
        let share = panels.div_ceil(TASKS.div_ceil(blocks).min(panels));
        // Tasks with the same panels come one after the other.
        parallel_for(blocks * panels.div_ceil(share), |task| {
            let (block, part) = (task % blocks, task / blocks);
            let panels = part * share..((part + 1) * share).min(panels);
            let groups = block * GROUPS..((block + 1) * GROUPS).min(groups);
            self.token.run(
                #[inline(always)]
                || self.task(groups, panels, &store),
            );
        });
    }

    #[inline(always)]
    fn task(&self, groups: Range<usize>, panels: Range<usize>, store: &impl Fn(Range<usize>, usize, &[f32], usize)) {
        let rows = groups.start * self.cut.rows..(groups.end * self.cut.rows).min(self.cut.count);
        // Of a place.
        let size = GROUPS * self.cut.rows * WIDTH;
        let room = if matches!(self.right, Right::Turned(..)) { self.cut.piece * WIDTH / 2 } else { 0 };
        with_scratch(
            PLACES * size + room,
            #[inline(always)]
            |memory| {
                let (sums, room) = memory.split_at_mut(PLACES * size);
                let room: &mut [bf16] = bytemuck::cast_slice_mut(room);
                for panel in panels {
                    for (place, sums) in sums.chunks_exact_mut(size).enumerate() {
                        for q in 0..self.cut.pieces {
                            self.add_piece((panel, place, q), groups.clone(), sums, room);
                        }
                    }
                    store(rows.clone(), panel, sums, size);
                }
            },
        );
    }

    /// Adds the products of a piece to the sums for one panel at one place, `[rows, WIDTH]`; the first piece overwrites them.
    #[inline(always)]
    fn add_piece(
        &self,
        (panel, place, q): (usize, usize, usize),
        groups: Range<usize>,
        sums: &mut [f32],
        room: &mut [bf16],
    ) {
        let cut = &self.cut;
        let range = cut.piece(q);
        // Cache lines of a group, for each step of 32 elements of the sums.
        let lines = (cut.place_len() / cut.piece).min(16);
        let b = self.panel(panel, place, q, room);
        for group in groups.clone() {
            // What is multiplied next comes nearer meanwhile.
            self.fetch(panel, place, range.clone(), (group - groups.start, groups.len()));
            let next = match () {
                () if group + 1 < groups.end => self.left(group + 1, place, q),
                () if q + 1 < cut.pieces => self.left(groups.start, place, q + 1),
                () => self.left(groups.start, (place + 1) % PLACES, 0),
            };
            let rows = cut.rows.min(cut.count - group * cut.rows);
            let c = &mut sums[(group - groups.start) * cut.rows * WIDTH..][..rows * WIDTH];
            let tile = Tile {
                rows,
                columns: WIDTH,
                k: range.len(),
                a: [self.left(group, place, q)[..rows * SHORT_STRIDE].as_ptr(); 2],
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

    /// The left operand from a group on, in a piece at a place.
    #[inline(always)]
    fn left(&self, group: usize, place: usize, q: usize) -> &[bf16] {
        &self.left[group * self.cut.group_len() + (q * PLACES + place) * self.cut.place_len()..]
    }

    /// A panel at a place, in a piece.
    #[inline(always)]
    fn panel<'r>(&'r self, panel: usize, place: usize, q: usize, room: &'r mut [bf16]) -> &'r [bf16] {
        const LINE: usize = 2 * WIDTH;
        let range = self.cut.piece(q);
        let (all, columns) = match self.right {
            Right::Panels(all) => {
                return &all[((panel * PLACES + place) * self.cut.k + range.start) * WIDTH..][..range.len() * WIDTH];
            }
            Right::Turned(all, columns) => (all, columns),
        };
        for (row, to) in (range.start / WIDTH..).zip(room[..range.len() * WIDTH].chunks_exact_mut(WIDTH * WIDTH)) {
            let from = turned_block(all, columns, panel, place, row);
            // Squares of 16 by 16 elements.
            for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                swap_pairs(self.token, &from[i * 8 * LINE + j * WIDTH..], &mut to[j * 8 * LINE + i * WIDTH..]);
            }
        }
        &room[..range.len() * WIDTH]
    }

    /// Brings one of `parts` parts of a panel at the next place nearer.
    #[inline(always)]
    fn fetch(&self, panel: usize, place: usize, range: Range<usize>, (part, parts): (usize, usize)) {
        const LINES: usize = WIDTH * WIDTH / 32;
        if place + 1 == PLACES {
            return;
        }
        let lines = range.len() / WIDTH * LINES;
        for line in part * lines / parts..(part + 1) * lines / parts {
            let at = match self.right {
                Right::Panels(all) => {
                    &all[((panel * PLACES + place + 1) * self.cut.k + range.start) * WIDTH + line * 32]
                }
                Right::Turned(all, columns) => {
                    let row = range.start / WIDTH + line / LINES;
                    &turned_block(all, columns, panel, place + 1, row)[line % LINES * 32]
                }
            };
            prefetch(&raw const *at);
        }
    }
}

/// The block of [`Right::Turned`] that becomes [`WIDTH`] rows, number `row`, of a panel at a place.
#[inline(always)]
fn turned_block(all: &[bf16], columns: usize, panel: usize, place: usize, row: usize) -> &[bf16] {
    &all[((row * PLACES + TURNED[place]) * columns + panel * WIDTH) * WIDTH..][..WIDTH * WIDTH]
}

/// A transform along both axes, by what it is along one: of `N` values to `M`. `value` gives those of row and column. Closures that are
/// passed must be `#[inline(always)]`.
#[inline(always)]
fn both_axes<const N: usize, const M: usize>(
    s: Avx512Bf16,
    value: impl Fn(usize, usize) -> Vector,
    axis: impl Fn([Vector; N]) -> [Vector; M],
) -> [[Vector; M]; M] {
    let mut columns = [[s.splat(0.0); M]; N];
    for x in 0..N {
        let mut column = [s.splat(0.0); N];
        for y in 0..N {
            column[y] = value(y, x);
        }
        columns[x] = axis(column);
    }
    let mut rows = [[s.splat(0.0); M]; M];
    for y in 0..M {
        let mut row = [s.splat(0.0); N];
        for x in 0..N {
            row[x] = columns[x][y];
        }
        rows[y] = axis(row);
    }
    rows
}

/// `B^T d B` for 16 channels from `c` on of 4x4 pixels.
#[inline(always)]
fn transform_pixels(s: Avx512Bf16, pixels: &[[&[bf16]; 4]; 4], c: usize) -> [[Vector; 4]; 4] {
    both_axes(
        s,
        #[inline(always)]
        |y, x| s.load_bf16(&pixels[y][x][c..]),
        #[inline(always)]
        |d| pixel_axis(s, d),
    )
}

/// `B^T d`.
#[inline(always)]
fn pixel_axis(s: Avx512Bf16, d: [Vector; 4]) -> [Vector; 4] {
    [s.sub(d[0], d[2]), s.add(d[1], d[2]), s.sub(d[2], d[1]), s.sub(d[1], d[3])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Element;
    use crate::product::{Epilogue, Output};
    use crate::reference;
    use calotype_core::{Purpose, Stream};

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
        Conv2dShape {
            batch,
            height,
            width,
            in_channels,
            out_channels,
            kernel,
            stride: 1,
            padding: [1; 4],
            per_image: false,
        }
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

    /// Errors are as large as rounding of transformed operands makes them, and the largest is not far out.
    #[track_caller]
    fn near<T: Element>(what: &str, ours: &[T], exact: &[f64]) {
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
            Output::to_rows(&mut y, cout, Epilogue::default(), |out| {
                convolve(Pass::Forward, &shape, &halves(&x), &filters, out)
            });
            near(&format!("{shape:?}"), &y, &reference::conv2d(&shape, &x, &w));
            Output::to_rows(&mut plain, cout, Epilogue::default(), |out| {
                convolve_plain(token, Pass::Forward, &shape, &halves(&x), &w, out);
            });
            assert!(y == plain, "{shape:?}");
            let (mut dx, mut plain) = (vec![bf16::NAN; x.len()], vec![bf16::NAN; x.len()]);
            Output::to_rows(&mut dx, cin, Epilogue::default(), |out| {
                convolve(Pass::BackwardInput, &shape, &halves(&dy), &filters, out);
            });
            near(&format!("dx {shape:?}"), &dx, &reference::conv2d_backward(&shape, &x, &w, &dy).0);
            Output::to_rows(&mut plain, cin, Epilogue::default(), |out| {
                convolve_plain(token, Pass::BackwardInput, &shape, &halves(&dy), &w, out);
            });
            assert!(dx == plain, "dx {shape:?}");
        }
    }

    #[test]
    fn gradients_of_filters() {
        let Some(token) = Avx512Bf16::new() else { return };
        for (size, cin, cout) in SHAPES.into_iter().chain([((1, 60, 61), 32, 64)]) {
            let shape = shape(size, cin, cout);
            let (x, w, dy) =
                (values(shape.input_len(), 1), values(shape.weight_len(), 2), values(shape.output_len(), 3));
            let mut dw = vec![f32::NAN; w.len()];
            backward_weight(token, &shape, &halves(&dy), &halves(&x), &mut dw);
            near(&format!("dw {shape:?}"), &dw, &reference::conv2d_backward(&shape, &x, &w, &dy).1);
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
        Output::to_rows(&mut y, 64, epilogue, |out| convolve_plain(token, Pass::Forward, &shape, &halves(&x), &w, out));
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
