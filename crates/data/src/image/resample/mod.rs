//! Pillow's resampling in 8-bit fixed point.
//!
//! Source: Pillow 13.0.0, `src/libImaging/Resample.c` (filters, `precompute_coeffs`, `normalize_coeffs_8bpc`, the
//! two passes), `src/libImaging/Geometry.c` (`ImagingScaleAffine`, for nearest) and `src/PIL/Image.py` (`resize`).
//!
//! The passes exist as plain loops, which are the definition, and with vector instructions ([`avx2`], [`avx512`]),
//! which split the coefficients into digits that the integer multipliers take. Sums are of integers, so all give the
//! same bytes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::cell::RefCell;
use std::f64::consts::PI;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bits after the binary point of a coefficient: 32, less 8 for the level, less 2 for overshoot and sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Longest side: Pillow hands the source box over in `f32`, which holds integers up to this.
const LONGEST: usize = 1 << 24;

/// A resampling filter. When shrinking, all but [`Filter::Nearest`] widen with the factor (antialiasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    #[serde(rename = "lanczos")]
    Lanczos3,
}

impl Filter {
    pub(super) fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos3 => 3.0,
        }
    }

    pub(super) fn value(self, x: f64) -> f64 {
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

/// For each pixel of a stretch of the output, which source pixels it is made of, and their weights,
/// [`PRECISION_BITS`] after the point.
struct Windows {
    /// First source pixel of each output pixel.
    starts: Vec<usize>,
    /// Number of source pixels of each.
    lens: Vec<usize>,
    /// Weights, `stride` for each output pixel, of which the first `lens[i]` are used and the rest is 0.
    weights: Vec<i32>,
    stride: usize,
}

impl Windows {
    /// Those of the output pixels `outputs`: Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, operation for
    /// operation. The stride is a multiple of 8, so that weights can be read in groups.
    fn new(from: usize, to: usize, filter: Filter, outputs: Range<usize>) -> Self {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let stride = ((support.ceil() as usize * 2 + 1).min(from)).next_multiple_of(8);
        let mut windows = Windows {
            starts: Vec::with_capacity(outputs.len()),
            lens: Vec::with_capacity(outputs.len()),
            weights: vec![0; outputs.len() * stride],
            stride,
        };
        let mut values = Vec::with_capacity(stride);
        for (out, weights) in outputs.zip(windows.weights.chunks_exact_mut(stride)) {
            let center = (out as f64 + 0.5) * scale;
            // `as` rounds towards zero, as C's conversion does, and takes what is negative to 0.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            values.clear();
            values.extend((start..end).map(|i| filter.value((i as f64 - center + 0.5) * inverse)));
            let sum: f64 = values.iter().sum();
            for (weight, value) in weights.iter_mut().zip(&values) {
                *weight = fixed_point(if sum == 0.0 { *value } else { value / sum });
            }
            windows.starts.push(start);
            windows.lens.push(end - start);
        }
        windows
    }

    fn len(&self) -> usize {
        self.starts.len()
    }

    /// First source pixel and weights of output pixel `i` of the stretch.
    fn get(&self, i: usize) -> (usize, &[i32]) {
        (self.starts[i], &self.weights[i * self.stride..][..self.lens[i]])
    }

    /// The source pixels that the stretch needs.
    fn sources(&self) -> Range<usize> {
        let ends = self.starts.iter().zip(&self.lens).map(|(start, len)| start + len);
        self.starts.first().copied().unwrap_or(0)..ends.max().unwrap_or(0)
    }
}

fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Instructions that the passes use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best that this processor has.
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::available() {
                return Isa::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Isa::Avx2;
            }
        }
        Isa::Plain
    }
}

/// Resizes rows: `[height, from, C]` to `[height, windows, C]`.
fn horizontal<const C: usize>(isa: Isa, data: &[u8], from: usize, windows: &Windows, out: &mut Vec<u8>) {
    let height = data.len() / (from * C);
    out.clear();
    out.resize(height * windows.len() * C, 0);
    let done = match isa {
        Isa::Plain => 0,
        // SAFETY: `Isa::detect` has found the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::horizontal::<C>(data, from, windows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::horizontal::<C>(data, from, windows, out) },
    };
    let rows = data.chunks_exact(from * C).zip(out.chunks_exact_mut(windows.len() * C));
    for (row, out) in rows.skip(done) {
        let pixels = row.as_chunks::<C>().0;
        for (i, out) in out.as_chunks_mut::<C>().0.iter_mut().enumerate() {
            let (start, weights) = windows.get(i);
            let mut sums = [HALF; C];
            for (pixel, weight) in pixels[start..].iter().zip(weights) {
                for channel in 0..C {
                    sums[channel] += i32::from(pixel[channel]) * weight;
                }
            }
            *out = sums.map(level);
        }
    }
}

/// Resizes columns: rows of `row` bytes, of which the first is row `first` of the image that `windows` speaks of.
fn vertical(isa: Isa, data: &[u8], row: usize, first: usize, windows: &Windows, out: &mut Vec<u8>) {
    out.clear();
    out.resize(row * windows.len(), 0);
    let mut sums = vec![HALF; row];
    for (i, out) in out.chunks_exact_mut(row).enumerate() {
        let (start, weights) = windows.get(i);
        let rows = &data[(start - first) * row..][..weights.len() * row];
        let done = match isa {
            Isa::Plain => 0,
            // SAFETY: `Isa::detect` has found the instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::vertical(rows, weights, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::vertical(rows, weights, out) },
        };
        let sums = &mut sums[done..];
        sums.fill(HALF);
        for (source, weight) in rows.chunks_exact(row).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(&source[done..]) {
                *sum += i32::from(*value) * weight;
            }
        }
        out[done..].iter_mut().zip(sums).for_each(|(out, sum)| *out = level(*sum));
    }
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

fn nearest<const C: usize>(data: &[u8], from: (usize, usize), to: (usize, usize), crop: &Crop, out: &mut Vec<u8>) {
    let columns = nearest_sources(from.0, to.0);
    out.clear();
    for y in &nearest_sources(from.1, to.1)[crop.rows()] {
        let row = &data[y * from.0 * C..][..from.0 * C];
        columns[crop.columns()].iter().for_each(|x| out.extend_from_slice(&row[x * C..][..C]));
    }
}

/// A rectangle of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crop {
    /// Column of its left edge.
    pub x: usize,
    /// Row of its upper edge.
    pub y: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Crop {
    /// All of an image of `size` (width, height).
    pub fn all(size: (usize, usize)) -> Self {
        Crop { x: 0, y: 0, width: size.0, height: size.1 }
    }

    fn columns(&self) -> Range<usize> {
        self.x..self.x + self.width
    }

    fn rows(&self) -> Range<usize> {
        self.y..self.y + self.height
    }

    /// # Errors
    /// [`Error::InvalidArgument`] if the rectangle is empty or reaches outside of an image of `size`.
    pub fn check(&self, size: (usize, usize)) -> Result<()> {
        let fits = |at: usize, side: usize, all: usize| side > 0 && at.checked_add(side).is_some_and(|end| end <= all);
        if fits(self.x, self.width, size.0) && fits(self.y, self.height, size.1) {
            return Ok(());
        }
        let Crop { x, y, width, height } = self;
        let detail = format!("{width}x{height} at ({x}, {y}) of a {}x{} image", size.0, size.1);
        Err(Error::InvalidArgument { what: "crop", detail })
    }
}

/// Copies a rectangle of `[height, width, C]` bytes.
pub(crate) fn copy_crop<const C: usize>(data: &[u8], width: usize, crop: &Crop, out: &mut Vec<u8>) {
    out.clear();
    for row in data.chunks_exact(width * C).skip(crop.y).take(crop.height) {
        out.extend_from_slice(&row[crop.x * C..][..crop.width * C]);
    }
}

/// Resizes `[height, width, C]` bytes and puts `crop` of the result into `out`; sizes are (width, height). No other
/// pixels of the result are computed.
///
/// # Errors
/// [`Error::InvalidArgument`] if a side is 0 or beyond [`LONGEST`], or `crop` reaches outside of the result.
pub(crate) fn resize_crop<const C: usize>(
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    crop: &Crop,
    filter: Filter,
    out: &mut Vec<u8>,
) -> Result<()> {
    resize_with::<C>(Isa::detect(), data, from, to, crop, filter, out)
}

fn resize_with<const C: usize>(
    isa: Isa,
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    crop: &Crop,
    filter: Filter,
    out: &mut Vec<u8>,
) -> Result<()> {
    if to.0 == 0 || to.1 == 0 || to.0.max(to.1).max(from.0).max(from.1) > LONGEST {
        let detail = format!("from {}x{} to {}x{}; sides are 1 to {LONGEST}", from.0, from.1, to.0, to.1);
        return Err(Error::InvalidArgument { what: "resize", detail });
    }
    crop.check(to)?;
    if from == to {
        copy_crop::<C>(data, from.0, crop, out);
    } else if filter == Filter::Nearest {
        nearest::<C>(data, from, to, crop, out);
    } else if filter == Filter::Box && from == (2 * to.0, 2 * to.1) && !columns_first(from, to) {
        halve::<C>(data, from.0, crop, out);
    } else {
        BETWEEN.with_borrow_mut(|between| {
            both_passes::<C>(isa, data, from, to, crop, filter, between, out);
            super::release_if_large(between);
        });
    }
    Ok(())
}

/// Half the size by means of four, which is what the two passes come to: both weights are 1/2, and each pass rounds up.
/// `width` is the source's. Means of neighbours are made of all pixels, for bytes in a row are quick, and every second one
/// is taken.
fn halve<const C: usize>(data: &[u8], width: usize, crop: &Crop, out: &mut Vec<u8>) {
    fn mean(a: u8, b: u8) -> u8 {
        ((u16::from(a) + u16::from(b) + 1) >> 1) as u8
    }
    let row = width * C;
    let mut means = vec![0; row];
    out.clear();
    out.resize(crop.width * crop.height * C, 0);
    for (y, out) in crop.rows().zip(out.chunks_exact_mut(crop.width * C)) {
        let (upper, lower) = data[2 * y * row..][..2 * row].split_at(row);
        let pairs = upper.iter().zip(&upper[C..]).zip(lower.iter().zip(&lower[C..]));
        for (out, ((a, b), (c, d))) in means.iter_mut().zip(pairs) {
            *out = mean(mean(*a, *b), mean(*c, *d));
        }
        let pairs = means[2 * crop.x * C..].as_chunks::<C>().0.iter().step_by(2);
        for (out, pixel) in out.as_chunks_mut::<C>().0.iter_mut().zip(pairs) {
            *out = *pixel;
        }
    }
}

thread_local! {
    /// The image between the passes, kept for the thread's next one.
    static BETWEEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[expect(clippy::too_many_arguments, reason = "the scratch image is one more than resizing has")]
fn both_passes<const C: usize>(
    isa: Isa,
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    crop: &Crop,
    filter: Filter,
    between: &mut Vec<u8>,
    out: &mut Vec<u8>,
) {
    let columns = (from.0 != to.0).then(|| Windows::new(from.0, to.0, filter, crop.columns()));
    let rows = (from.1 != to.1).then(|| Windows::new(from.1, to.1, filter, crop.rows()));
    // The columns of the source that one vertical pass alone needs are those of the crop.
    let plain_columns = Crop { y: 0, height: from.1, ..*crop };
    match (columns, rows) {
        (Some(columns), None) => {
            let rows = &data[crop.y * from.0 * C..][..crop.height * from.0 * C];
            horizontal::<C>(isa, rows, from.0, &columns, out);
        }
        (None, Some(rows)) => {
            copy_crop::<C>(data, from.0, &plain_columns, between);
            vertical(isa, between, crop.width * C, 0, &rows, out);
        }
        (Some(columns), Some(rows)) if columns_first(from, to) => {
            vertical(isa, data, from.0 * C, 0, &rows, between);
            horizontal::<C>(isa, between, from.0, &columns, out);
        }
        (Some(columns), Some(rows)) => {
            let needed = rows.sources();
            let source = &data[needed.start * from.0 * C..needed.end * from.0 * C];
            horizontal::<C>(isa, source, from.0, &columns, between);
            vertical(isa, between, crop.width * C, needed.start, &rows, out);
        }
        // Equal sizes are copied, not resized.
        (None, None) => copy_crop::<C>(data, from.0, crop, out),
    }
}

/// True if Pillow 13 resizes columns before rows, which rounds differently: where the height loses more than twice the
/// pixels that the width loses (a width that grows loses less than none). Found by comparison with the two orders, 5,400
/// sizes of all filters, those at the border included; former versions did it for strips alone.
fn columns_first(from: (usize, usize), to: (usize, usize)) -> bool {
    // Sides are at most 2^24.
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    lost(from.1, to.1) > 0 && lost(from.1, to.1) > 2 * lost(from.0, to.0)
}

/// Resizes `[height, width, C]` bytes; sizes are (width, height).
pub(super) fn resize<const C: usize>(
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    resize_crop::<C>(data, from, to, &Crop::all(to), filter, &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_the_size_is_what_the_passes_make() {
        for (width, height) in [(1, 1), (2, 5), (7, 3), (33, 20), (64, 64)] {
            let from = (2 * width, 2 * height);
            let data: Vec<u8> = (0..from.0 * from.1 * 3).map(|i| (i * i * 31 % 257) as u8).collect();
            let inner = Crop { x: width / 3, y: height / 4, width: width - width / 3, height: height - height / 4 };
            for crop in [Crop::all((width, height)), inner] {
                let (mut found, mut expected, mut between) = (Vec::new(), Vec::new(), Vec::new());
                resize_with::<3>(Isa::detect(), &data, from, (width, height), &crop, Filter::Box, &mut found).unwrap();
                both_passes::<3>(
                    Isa::Plain,
                    &data,
                    from,
                    (width, height),
                    &crop,
                    Filter::Box,
                    &mut between,
                    &mut expected,
                );
                assert_eq!(found, expected, "{width}x{height}");
            }
        }
    }

    const FILTERS: [Filter; 5] = [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos3];

    fn noise(bytes: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Many extremes, so that overshoot is clamped.
            match state >> 30 {
                0 => 0,
                1 => 255,
                _ => (state >> 16) as u8,
            }
        };
        (0..bytes).map(|_| next()).collect()
    }

    fn instructions() -> Vec<Isa> {
        #[allow(unused_mut, reason = "other processors have the plain loops alone")]
        let mut all = vec![Isa::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                all.push(Isa::Avx2);
            }
            if avx512::available() {
                all.push(Isa::Avx512);
            }
        }
        all
    }

    fn resized<const C: usize>(
        isa: Isa,
        from: (usize, usize),
        to: (usize, usize),
        crop: Crop,
        filter: Filter,
    ) -> Vec<u8> {
        let data = noise(from.0 * from.1 * C, 7);
        let mut out = vec![1; 3];
        resize_with::<C>(isa, &data, from, to, &crop, filter, &mut out).unwrap();
        out
    }

    #[test]
    fn all_instructions_and_all_crops_give_the_same_bytes() {
        let sizes = [(1, 1), (2, 3), (5, 4), (17, 33), (64, 48), (131, 97), (3, 400), (400, 3), (257, 1)];
        for from in sizes {
            for to in sizes {
                for filter in FILTERS {
                    let whole = resized::<3>(Isa::Plain, from, to, Crop::all(to), filter);
                    let whole4 = resized::<4>(Isa::Plain, from, to, Crop::all(to), filter);
                    let crop = Crop { x: to.0 / 3, y: to.1 / 4, width: to.0.div_ceil(2), height: to.1.div_ceil(2) };
                    let mut cut = Vec::new();
                    copy_crop::<3>(&whole, to.0, &crop, &mut cut);
                    for isa in instructions() {
                        let case = format!("{isa:?} {from:?} to {to:?} {filter:?}");
                        assert!(resized::<3>(isa, from, to, Crop::all(to), filter) == whole, "{case}");
                        assert!(resized::<4>(isa, from, to, Crop::all(to), filter) == whole4, "{case}, 4 channels");
                        assert!(resized::<3>(isa, from, to, crop, filter) == cut, "{case}, cropped");
                    }
                }
            }
        }
    }

    #[test]
    fn bad_sizes_are_refused() {
        let mut out = Vec::new();
        let cases =
            [((0, 1), (0, 0, 1, 1)), ((4, 4), (2, 0, 3, 1)), ((4, 4), (0, 0, 0, 1)), ((1 << 25, 1), (0, 0, 1, 1))];
        for (to, (x, y, width, height)) in cases {
            let crop = Crop { x, y, width, height };
            let found = resize_crop::<3>(&[0; 12], (2, 2), to, &crop, Filter::Box, &mut out);
            assert!(matches!(found, Err(Error::InvalidArgument { .. })), "{to:?}");
        }
    }
}
