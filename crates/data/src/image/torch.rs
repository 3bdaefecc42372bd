//! Resizing of 8-bit images as torch does it, whose rounding is not Pillow's.
//!
//! Source: torch 2.15, `aten/src/ATen/native/cpu/UpSampleKernel.cpp` (`interpolate` of `uint8` with `antialias = True`, which
//! torchvision's `resize` of tensors calls): weights of 16 bits with as many behind the point as the greatest of them leaves
//! room for, columns first, rounded to levels between the passes. About one value in two hundred differs from Pillow's,
//! by one level.

use super::{Filter, RgbImage};
use crate::{Error, Result};

/// The source pixels of one output pixel, and their weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// The windows of an axis.
struct Windows {
    all: Vec<Window>,
    /// Bits behind the point of a weight.
    bits: u32,
}

impl Windows {
    fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let wider = scale.max(1.0);
        let (support, inverse) = (filter.support() * wider, 1.0 / wider);
        let window = |at: usize| {
            let center = scale * (at as f64 + 0.5);
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (start..end).map(|x| filter.value((x as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            (start, weights.into_iter().map(|weight| weight / sum).collect::<Vec<f64>>())
        };
        let exact: Vec<(usize, Vec<f64>)> = (0..to).map(window).collect();
        let greatest = exact.iter().flat_map(|(_, weights)| weights).fold(0f64, |a, &b| a.max(b));
        // The most bits, up to 22, for which the greatest weight stays below 2^15.
        let fits = |bits: &u32| ((0.5 + greatest * f64::from(1u32 << (bits + 1))) as i64) < 1 << 15;
        let bits = (0..22).take_while(fits).count() as u32;
        let fixed = |weight: f64| (weight * f64::from(1u32 << bits) + 0.5f64.copysign(weight)) as i32;
        let all = exact
            .into_iter()
            .map(|(start, weights)| Window { start, weights: weights.into_iter().map(fixed).collect() })
            .collect();
        Self { all, bits }
    }

    /// The level that a sum of weighted levels rounds to.
    fn level(&self, sum: i32) -> u8 {
        ((sum + ((1 << self.bits) >> 1)) >> self.bits).clamp(0, 255) as u8
    }
}

/// Rows of `width` pixels as rows of as many as there are windows.
fn columns(data: &[u8], width: usize, windows: &Windows) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / width * windows.all.len());
    for line in data.chunks_exact(3 * width) {
        for Window { start, weights } in &windows.all {
            let mut sums = [0i32; 3];
            for (pixel, weight) in line[3 * start..].as_chunks::<3>().0.iter().zip(weights) {
                (0..3).for_each(|c| sums[c] += i32::from(pixel[c]) * weight);
            }
            out.extend(sums.map(|sum| windows.level(sum)));
        }
    }
    out
}

/// Rows of `3 · width` levels as as many rows as there are windows.
fn rows(data: &[u8], width: usize, windows: &Windows) -> Vec<u8> {
    let stride = 3 * width;
    let mut out = Vec::with_capacity(stride * windows.all.len());
    let mut sums = vec![0i32; stride];
    for Window { start, weights } in &windows.all {
        sums.fill(0);
        for (line, weight) in data[start * stride..].chunks_exact(stride).zip(weights) {
            sums.iter_mut().zip(line).for_each(|(sum, &level)| *sum += i32::from(level) * weight);
        }
        out.extend(sums.iter().map(|&sum| windows.level(sum)));
    }
    out
}

impl RgbImage {
    /// Resizes as torchvision's `resize` of an 8-bit tensor with `antialias = True`, byte for byte.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is 0, or the filter is none that torch has ([`Filter::Bilinear`],
    /// [`Filter::Bicubic`]).
    pub fn resize_as_torch(&self, width: usize, height: usize, filter: Filter) -> Result<Self> {
        let wrong = |detail: String| Err(Error::InvalidArgument { what: "resize", detail });
        if width == 0 || height == 0 {
            return wrong(format!("to {width}x{height} pixels"));
        }
        if !matches!(filter, Filter::Bilinear | Filter::Bicubic) {
            return wrong(format!("torch does not resize 8-bit images by {filter:?}; it has bilinear and bicubic"));
        }
        let mut data = self.data.clone();
        if width != self.width {
            data = columns(&data, self.width, &Windows::new(self.width, width, filter));
        }
        if height != self.height {
            data = rows(&data, width, &Windows::new(self.height, height, filter));
        }
        Self::new(width, height, data)
    }
}
