//! Pooling of images, channels last.

use crate::element::Element;
use crate::math::{load_up_to, store_up_to};
use crate::simd::{Simd, dispatch};
use crate::threads::for_chunks;
use std::ops::Range;

/// The value of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The greatest of its pixels.
    Max,
    /// The mean of those of its pixels that lie in the image (TensorFlow's average, torch's with
    /// `count_include_pad = False`).
    Average,
}

/// Shape of a pooling with square windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool2dShape {
    /// Images.
    pub batch: usize,
    /// Height of the input.
    pub height: usize,
    /// Width of the input.
    pub width: usize,
    /// Channels of input and output.
    pub channels: usize,
    /// Side of a window.
    pub size: usize,
    /// Step between windows, in both directions.
    pub stride: usize,
    /// Pixels that windows reach over every edge; less than `size`.
    pub padding: usize,
}

impl Pool2dShape {
    /// Height of the output; zero if the window does not fit.
    pub fn out_height(&self) -> usize {
        self.out_size(self.height)
    }

    /// Width of the output; zero if the window does not fit.
    pub fn out_width(&self) -> usize {
        self.out_size(self.width)
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_height() * self.out_width() * self.channels
    }

    fn out_size(&self, n: usize) -> usize {
        let padded = n + 2 * self.padding;
        if padded < self.size { 0 } else { (padded - self.size) / self.stride + 1 }
    }

    /// The pixels along an axis of `n` that window number `i` covers.
    #[inline(always)]
    fn covered(&self, i: usize, n: usize) -> Range<usize> {
        let begin = i * self.stride;
        begin.saturating_sub(self.padding)..(begin + self.size).saturating_sub(self.padding).min(n)
    }

    fn check(&self, op: &str, x: usize, y: usize) {
        assert!(self.stride > 0, "{op}: the stride is zero");
        assert!(self.padding < self.size, "{op}: windows of {} with a padding of {}", self.size, self.padding);
        assert!(x == self.input_len(), "{op}: the input has {x} elements, the shape {}", self.input_len());
        assert!(y == self.output_len(), "{op}: the output has {y} elements, the shape {}", self.output_len());
    }
}

/// See [`crate::pool2d_forward`].
pub(crate) fn pool2d_forward<T: Element>(kind: Pooling, shape: &Pool2dShape, x: &[T], y: &mut [T]) {
    shape.check("pool2d_forward", x.len(), y.len());
    let (out_height, line) = (shape.out_height(), shape.out_width() * shape.channels);
    if line == 0 {
        return;
    }
    for_chunks(y, line, |i, y| {
        let rows = shape.covered(i % out_height, shape.height);
        let image = i / out_height * shape.height;
        let rows = image + rows.start..image + rows.end;
        dispatch!(|s| for (j, y) in y.chunks_exact_mut(shape.channels).enumerate() {
            match kind {
                Pooling::Max => pixel(s, shape, x, (rows.clone(), j), y, f32::NEG_INFINITY, true),
                Pooling::Average => pixel(s, shape, x, (rows.clone(), j), y, 0.0, false),
            }
        });
    });
}

/// One pixel of the output, from lines `rows` of all images' lines and column `j` of the output's.
#[inline(always)]
fn pixel<S: Simd, T: Element>(
    s: S,
    shape: &Pool2dShape,
    x: &[T],
    (rows, j): (Range<usize>, usize),
    y: &mut [T],
    start: f32,
    max: bool,
) {
    let columns = shape.covered(j, shape.width);
    let share = if max { 1.0 } else { 1.0 / (rows.len() * columns.len()) as f32 };
    for from in (0..y.len()).step_by(S::LANES) {
        let to = (from + S::LANES).min(y.len());
        let mut sum = s.splat(start);
        for row in rows.clone() {
            for column in columns.clone() {
                let at = (row * shape.width + column) * shape.channels;
                let v = load_up_to(s, &x[at + from..at + to]);
                sum = if max { s.max(sum, v) } else { s.add(sum, v) };
            }
        }
        store_up_to(s, s.mul(sum, s.splat(share)), &mut y[from..to]);
    }
}

/// See [`crate::pool2d_backward`].
pub(crate) fn pool2d_backward<T: Element>(kind: Pooling, shape: &Pool2dShape, x: &[T], dy: &[T], dx: &mut [T]) {
    shape.check("pool2d_backward", x.len(), dy.len());
    assert!(dx.len() == x.len(), "pool2d_backward: dx has {} elements, x {}", dx.len(), x.len());
    let (size, out_size) = (x.len() / shape.batch.max(1), dy.len() / shape.batch.max(1));
    if size == 0 {
        return;
    }
    for_chunks(dx, size, |b, dx| {
        let (x, dy) = (&x[b * size..][..size], &dy[b * out_size..][..out_size]);
        let mut sum = vec![0f32; size];
        for (i, dy) in dy.chunks_exact(shape.channels).enumerate() {
            let rows = shape.covered(i / shape.out_width(), shape.height);
            let columns = shape.covered(i % shape.out_width(), shape.width);
            let taps = || {
                let columns = &columns;
                let at = move |row| columns.clone().map(move |column| (row * shape.width + column) * shape.channels);
                rows.clone().flat_map(at)
            };
            let share = 1.0 / (rows.len() * columns.len()) as f32;
            for (c, dy) in dy.iter().enumerate() {
                let dy = dy.to_f32();
                match kind {
                    Pooling::Average => taps().for_each(|tap| sum[tap + c] += dy * share),
                    Pooling::Max => {
                        let first = |a: usize, b: usize| if x[b + c].to_f32() > x[a + c].to_f32() { b } else { a };
                        if let Some(tap) = taps().reduce(first) {
                            sum[tap + c] += dy;
                        }
                    }
                }
            }
        }
        dx.iter_mut().zip(sum).for_each(|(dx, sum)| *dx = T::from_f32(sum));
    });
}
