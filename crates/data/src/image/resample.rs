//! Pillow's resampling in 8-bit fixed point.
//!
//! Source: Pillow 13.0.0, `src/libImaging/Resample.c` (filters, `precompute_coeffs`, `normalize_coeffs_8bpc`, the
//! two passes), `src/libImaging/Geometry.c` (`ImagingScaleAffine`, for nearest) and `src/PIL/Image.py` (`resize`).

use std::f64::consts::PI;

use crate::{Error, Result};

/// Bits after the binary point of a coefficient: 32, less 8 for the level, less 2 for overshoot and sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Longest side: Pillow hands the source box over in `f32`, which holds integers up to this.
const LONGEST: usize = 1 << 24;

/// A resampling filter. When shrinking, all but [`Filter::Nearest`] widen with the factor (antialiasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The pixel under the centre.
    Nearest,
    /// Mean of the pixels covered.
    Box,
    /// Triangle of radius 1.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5, radius 2.
    Bicubic,
    /// Sinc windowed by sinc, radius 3.
    Lanczos3,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos3 => 3.0,
        }
    }

    fn value(self, x: f64) -> f64 {
        match self {
            Filter::Nearest => f64::from(x == 0.0),
            Filter::Box => f64::from(x > -0.5 && x <= 0.5),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Bicubic => bicubic(x.abs()),
            Filter::Lanczos3 if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos3 => 0.0,
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

/// Weights of the source pixels `start..` for one output pixel, [`PRECISION_BITS`] after the point.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, operation for operation.
fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    (0..to)
        .map(|out| {
            let center = (out as f64 + 0.5) * scale;
            // `as` rounds towards zero, as C's conversion does, and takes what is negative to 0.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let values: Vec<f64> = (start..end).map(|i| filter.value((i as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = values.iter().sum();
            let weights = values.iter().map(|v| fixed_point(if sum == 0.0 { *v } else { v / sum })).collect();
            Window { start, weights }
        })
        .collect()
}

fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Resizes rows: `[height, from, C]` to `[height, to, C]`.
fn horizontal<const C: usize>(data: &[u8], from: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / from * windows.len());
    for row in data.chunks_exact(from * C) {
        let pixels = row.as_chunks::<C>().0;
        for window in windows {
            let mut sums = [HALF; C];
            for (pixel, weight) in pixels[window.start..].iter().zip(&window.weights) {
                for channel in 0..C {
                    sums[channel] += i32::from(pixel[channel]) * weight;
                }
            }
            out.extend_from_slice(&sums.map(level));
        }
    }
    out
}

/// Resizes columns: rows of `row` bytes.
fn vertical(data: &[u8], row: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row * windows.len());
    let mut sums = vec![HALF; row];
    for window in windows {
        sums.fill(HALF);
        let rows = data.chunks_exact(row).skip(window.start);
        for (source, weight) in rows.zip(&window.weights) {
            for (sum, value) in sums.iter_mut().zip(source) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| level(*sum)));
    }
    out
}

/// Source coordinate of each output pixel; the sum is accumulated as `ImagingScaleAffine` does, rounding included.
fn nearest_sources(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut at = step * 0.5;
    (0..to)
        .map(|_| {
            let source = (at as usize).min(from - 1);
            at += step;
            source
        })
        .collect()
}

fn nearest<const C: usize>(data: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let columns = nearest_sources(from.0, to.0);
    let mut out = Vec::with_capacity(to.0 * to.1 * C);
    for y in nearest_sources(from.1, to.1) {
        let row = &data[y * from.0 * C..][..from.0 * C];
        columns.iter().for_each(|x| out.extend_from_slice(&row[x * C..][..C]));
    }
    out
}

/// Resizes `[height, width, C]` bytes; sizes are (width, height).
pub(super) fn resize<const C: usize>(
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>> {
    if to.0 == 0 || to.1 == 0 || to.0.max(to.1).max(from.0).max(from.1) > LONGEST {
        let detail = format!("from {}x{} to {}x{}; sides are 1 to {LONGEST}", from.0, from.1, to.0, to.1);
        return Err(Error::InvalidArgument { what: "resize", detail });
    }
    if from == to {
        return Ok(data.to_vec());
    }
    if filter == Filter::Nearest {
        return Ok(nearest::<C>(data, from, to));
    }
    let rows = |data: &[u8]| match from.0 == to.0 {
        true => data.to_vec(),
        false => horizontal::<C>(data, from.0, &windows(from.0, to.0, filter)),
    };
    let columns = |data: &[u8], width: usize| match from.1 == to.1 {
        true => data.to_vec(),
        false => vertical(data, width * C, &windows(from.1, to.1, filter)),
    };
    // Pillow turns the passes around for strips more than 100 times as tall as wide that shrink in height.
    if from.1 > 100 * from.0 && to.1 < from.1 {
        return Ok(rows(&columns(data, from.0)));
    }
    Ok(columns(&rows(data), to.0))
}
