//! Resizing to one size in floats, as the libraries do it that published figures were computed with.
//!
//! Each resizes line by line, first along one axis, then along the other; they differ in the pixels that they look at, in
//! the weights, in the order of the axes and in where they round.
//!
//! | | what it repeats |
//! |---|---|
//! | [`Interpolation::TorchBilinear`] | torch 2: `interpolate(mode="bilinear", align_corners=False)`: two pixels a line, without smoothing |
//! | [`Interpolation::TorchBilinearSmooth`] | the same with `antialias=True` |
//! | [`Interpolation::TorchBicubicCorners`] | torch 2: `interpolate(mode="bicubic", align_corners=True)`, whose cubic has a = -0.75 |
//! | [`Interpolation::TensorflowBilinear`] | TensorFlow 1: `tf.image.resize_bilinear(align_corners=False)`, whose pixels' centres are their corners |
//! | [`Interpolation::PillowBicubic`] | Pillow: `Image.resize(BICUBIC)` of one channel in mode `F`, as clean-fid calls it, but for its clipping |
//!
//! Sources: torch 2.15, `aten/src/ATen/native/cpu/UpSampleKernel.cpp`; TensorFlow 1.15, `core/kernels/resize_bilinear_op.cc`,
//! as torch-fidelity 0.4.0 repeats it; Pillow 13, `src/libImaging/Resample.c`.

use super::RgbImage;
use crate::{Error, Result};

/// A way to resize; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// torch's bilinear, without smoothing.
    TorchBilinear,
    /// torch's bilinear with `antialias=True`.
    TorchBilinearSmooth,
    /// torch's bicubic with `align_corners=True`, without smoothing.
    TorchBicubicCorners,
    /// TensorFlow 1's bilinear.
    TensorflowBilinear,
    /// Pillow's bicubic in floats.
    PillowBicubic,
}

/// An image of floats, rows from the top, `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatImage {
    width: usize,
    height: usize,
    data: Vec<f32>,
}

impl FloatImage {
    /// The levels of an image, each through `value`.
    pub fn of(image: &RgbImage, value: impl Fn(u8) -> f32) -> Self {
        // 256 values are computed instead of one for each pixel.
        let table: [f32; 256] = std::array::from_fn(|level| value(level as u8));
        let data = image.data().iter().map(|level| table[usize::from(*level)]).collect();
        Self { width: image.width(), height: image.height(), data }
    }

    /// Its values, `[height, width, 3]`.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Its values, each through `change`.
    pub fn map(mut self, change: impl Fn(f32) -> f32) -> Self {
        self.data.iter_mut().for_each(|value| *value = change(*value));
        self
    }

    /// Its values.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// Resized to `width` x `height` pixels.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is 0 or exceeds 2²⁴, from where on `f32` does not tell pixels apart.
    pub fn resize(&self, width: usize, height: usize, how: Interpolation) -> Result<Self> {
        const LIMIT: usize = 1 << 24;
        if width == 0 || height == 0 || [width, height, self.width, self.height].iter().any(|side| *side > LIMIT) {
            let detail = format!("{}x{} to {width}x{height} pixels", self.width, self.height);
            return Err(Error::InvalidArgument { what: "resize", detail });
        }
        let rows_first = how == Interpolation::TorchBilinear;
        let across = |image: &Self| image.along(Axis::Columns, width, how);
        let down = |image: &Self| image.along(Axis::Rows, height, how);
        Ok(if rows_first { across(&down(self)) } else { down(&across(self)) })
    }

    /// Resized along one axis.
    fn along(&self, axis: Axis, to: usize, how: Interpolation) -> Self {
        let from = if axis == Axis::Columns { self.width } else { self.height };
        if from == to {
            return self.clone();
        }
        match how {
            Interpolation::TorchBilinear => self.blend(axis, &torch_pairs(from, to), |a, b, s| a * (1.0 - s) + b * s),
            Interpolation::TensorflowBilinear => {
                self.blend(axis, &tensorflow_pairs(from, to), |a, b, s| a + (b - a) * s)
            }
            Interpolation::TorchBilinearSmooth => self.weigh(axis, &torch_smooth(from, to)),
            Interpolation::TorchBicubicCorners => self.weigh(axis, &torch_cubic(from, to)),
            Interpolation::PillowBicubic => self.weigh(axis, &pillow_cubic(from, to)),
        }
    }

    /// Lines between two lines each.
    fn blend(&self, axis: Axis, pairs: &[Pair], between: impl Fn(f32, f32, f32) -> f32) -> Self {
        let (outer, inner) = self.strides(axis);
        let mut data = Vec::with_capacity(outer * pairs.len() * inner);
        for block in self.data.chunks_exact(self.data.len() / outer) {
            for pair in pairs {
                let line = |at: usize| &block[at * inner..(at + 1) * inner];
                let (first, second) = (line(pair.first), line(pair.second));
                data.extend(first.iter().zip(second).map(|(a, b)| between(*a, *b, pair.share)));
            }
        }
        self.with(axis, pairs.len(), data)
    }

    /// Lines that are weighted sums, in `f64`.
    fn weigh(&self, axis: Axis, windows: &[Window]) -> Self {
        let (outer, inner) = self.strides(axis);
        let mut data = Vec::with_capacity(outer * windows.len() * inner);
        let mut sums = vec![0f64; inner];
        for block in self.data.chunks_exact(self.data.len() / outer) {
            for window in windows {
                sums.fill(0.0);
                for (at, weight) in &window.taps {
                    let line = &block[at * inner..(at + 1) * inner];
                    sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += f64::from(*value) * weight);
                }
                data.extend(sums.iter().map(|sum| *sum as f32));
            }
        }
        self.with(axis, windows.len(), data)
    }

    /// Number of blocks whose lines lie along an axis, and length of a line.
    fn strides(&self, axis: Axis) -> (usize, usize) {
        match axis {
            Axis::Columns => (self.height, 3),
            Axis::Rows => (1, 3 * self.width),
        }
    }

    fn with(&self, axis: Axis, to: usize, data: Vec<f32>) -> Self {
        match axis {
            Axis::Columns => Self { width: to, height: self.height, data },
            Axis::Rows => Self { width: self.width, height: to, data },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Rows,
    Columns,
}

/// Two neighbours and the share of the second.
struct Pair {
    first: usize,
    second: usize,
    share: f32,
}

/// Source pixels of an output pixel with their weights.
struct Window {
    taps: Vec<(usize, f64)>,
}

fn torch_pairs(from: usize, to: usize) -> Vec<Pair> {
    let scale = from as f32 / to as f32;
    pairs(from, to, |at| ((at as f32 + 0.5) * scale - 0.5).max(0.0))
}

fn tensorflow_pairs(from: usize, to: usize) -> Vec<Pair> {
    let scale = (from as f64 / to as f64) as f32;
    pairs(from, to, |at| at as f32 * scale)
}

fn pairs(from: usize, to: usize, place: impl Fn(usize) -> f32) -> Vec<Pair> {
    let pair = |at: usize| {
        let place = place(at);
        // Rounding may lead one past the end.
        let first = (place as usize).min(from - 1);
        Pair { first, second: (first + 1).min(from - 1), share: place - first as f32 }
    };
    (0..to).map(pair).collect()
}

/// A triangle as wide as an output pixel, in `f32` throughout, as torch weighs for images of `f32`.
fn torch_smooth(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f32 / to as f32;
    let support = scale.max(1.0);
    let inverse = if scale >= 1.0 { 1.0 / scale } else { 1.0 };
    let window = |at: usize| {
        let centre = scale * (at as f32 + 0.5);
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weigh = |x: usize| (1.0 - ((x as f32 - centre + 0.5) * inverse).abs()).max(0.0);
        let weights: Vec<f32> = (start..end).map(weigh).collect();
        let sum: f32 = weights.iter().sum();
        Window { taps: (start..end).zip(weights.iter().map(|weight| f64::from(weight / sum))).collect() }
    };
    (0..to).map(window).collect()
}

/// Four pixels of Keys' cubic with a = -0.75; those beyond the edge are its last.
fn torch_cubic(from: usize, to: usize) -> Vec<Window> {
    const A: f32 = -0.75;
    let scale = if to > 1 { (from - 1) as f32 / (to - 1) as f32 } else { 0.0 };
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let window = |at: usize| {
        let place = scale * at as f32;
        let first = place.floor();
        let share = place - first;
        let weights = [far(share + 1.0), near(share), near(1.0 - share), far(2.0 - share)];
        let pixel = |offset: usize| (first as usize + offset).saturating_sub(1).min(from - 1);
        Window {
            taps: weights.iter().enumerate().map(|(offset, weight)| (pixel(offset), f64::from(*weight))).collect(),
        }
    };
    (0..to).map(window).collect()
}

/// Keys' cubic with a = -0.5, as wide as two output pixels to each side, in `f64`.
fn pillow_cubic(from: usize, to: usize) -> Vec<Window> {
    const A: f64 = -0.5;
    let cubic = |x: f64| match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    };
    let scale = from as f64 / to as f64;
    let support = 2.0 * scale.max(1.0);
    let inverse = 1.0 / scale.max(1.0);
    let window = |at: usize| {
        let centre = (at as f64 + 0.5) * scale;
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (start..end).map(|x| cubic((x as f64 - centre + 0.5) * inverse)).collect();
        let sum: f64 = weights.iter().sum();
        let inverse_sum = if sum == 0.0 { 1.0 } else { 1.0 / sum };
        Window { taps: (start..end).zip(weights.iter().map(|weight| weight * inverse_sum)).collect() }
    };
    (0..to).map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Interpolation; 5] = [
        Interpolation::TorchBilinear,
        Interpolation::TorchBilinearSmooth,
        Interpolation::TorchBicubicCorners,
        Interpolation::TensorflowBilinear,
        Interpolation::PillowBicubic,
    ];

    fn ramp(width: usize, height: usize) -> FloatImage {
        let image = RgbImage::new(width, height, (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect());
        FloatImage::of(&image.unwrap(), f32::from)
    }

    #[test]
    fn a_flat_image_stays_flat_and_the_same_size_stays_as_it_is() {
        let flat = FloatImage::of(&RgbImage::filled(7, 5, [9, 100, 255]).unwrap(), f32::from);
        for how in ALL {
            for (width, height) in [(1, 1), (3, 2), (7, 5), (20, 31)] {
                let found = flat.resize(width, height, how).unwrap();
                assert_eq!(found.data().len(), 3 * width * height);
                for pixel in found.data().chunks_exact(3) {
                    assert!((pixel[0] - 9.0).abs() < 1e-4 && (pixel[2] - 255.0).abs() < 1e-3, "{how:?} {pixel:?}");
                }
            }
            assert_eq!(ramp(7, 5).resize(7, 5, how).unwrap(), ramp(7, 5));
            assert!(matches!(ramp(2, 2).resize(0, 2, how), Err(Error::InvalidArgument { .. })));
        }
    }

    /// The levels 0, 10, 40, 90, 160 resized to 3 and to 8 pixels by torch 2.15.0, torch-fidelity 0.4.0 and Pillow 13.0.0.
    const LINES: [(Interpolation, [f64; 3], [f64; 8]); 5] = [
        (
            Interpolation::TorchBilinear,
            [3.333333, 40.0, 136.666656],
            [0.0, 4.375, 11.875, 30.625, 55.625, 86.875, 129.375, 160.0],
        ),
        (
            Interpolation::TorchBilinearSmooth,
            [4.285714, 44.444443, 129.999985],
            [0.0, 4.375, 11.875, 30.625, 55.625, 86.875, 129.375, 160.0],
        ),
        (
            Interpolation::TorchBicubicCorners,
            [0.0, 40.0, 160.0],
            [0.0, 2.653066, 13.760942, 27.055395, 53.411102, 78.833786, 124.63559, 160.0],
        ),
        (
            Interpolation::TensorflowBilinear,
            [0.0, 29.999998, 113.333328],
            [0.0, 6.25, 17.5, 36.25, 65.0, 98.75, 142.5, 160.0],
        ),
        (
            Interpolation::PillowBicubic,
            [1.692308, 41.953487, 133.384613],
            [-0.719557, 2.437493, 11.289062, 28.476562, 53.476562, 86.289062, 134.881836, 165.036896],
        ),
    ];

    #[test]
    fn lines_are_those_of_the_libraries() {
        let line = RgbImage::new(5, 1, [0, 10, 40, 90, 160].iter().flat_map(|level| [*level; 3]).collect()).unwrap();
        let line = FloatImage::of(&line, f32::from);
        for (how, three, eight) in LINES {
            for (width, expected) in [(3, &three[..]), (8, &eight[..])] {
                let found = line.resize(width, 1, how).unwrap();
                for (found, expected) in found.data().iter().step_by(3).zip(expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{how:?} to {width}: {found} {expected}");
                }
            }
        }
    }
}
