//! Affine transforms of 8-bit images, as Pillow computes them.
//!
//! Source: Pillow 13.0.0, `src/libImaging/Geometry.c` (`ImagingTransformAffine` with its three ways to the nearest pixel,
//! `ImagingGenericTransform`, the bilinear and the bicubic filter) and `src/PIL/Image.py` (`transform`, `rotate`).

use super::RgbImage;
use std::ops::AddAssign;

calotype_core::names! {
    /// How a transformed image is read between its pixels.
    Sampling, "sampling of a transform" {
        /// The nearest pixel.
        Nearest = "nearest",
        /// Between four pixels.
        Bilinear = "bilinear",
        /// Between sixteen pixels, by cubic convolution with a = -1.
        Bicubic = "bicubic",
    }
}

/// Where each pixel of the result is taken from: column `a x + b y + c` and row `d x + e y + f` of the pixel's centre.
pub type Matrix = [f64; 6];

/// One in numbers of 16 bits behind the point.
const ONE: f64 = 65_536.0;
/// Where numbers of 16 bits before and behind the point end.
const FIXED_END: f64 = 32_768.0;

impl RgbImage {
    /// Pillow's `Image.transform(size, AFFINE, matrix, sampling, fillcolor=fill)` to an image of the same size: pixels from
    /// outside are `fill`.
    pub fn affine(&self, matrix: &Matrix, sampling: Sampling, fill: [u8; 3]) -> Self {
        let mut out = Self { data: fill.repeat(self.width * self.height), ..*self };
        match sampling {
            Sampling::Nearest => self.copy_nearest(matrix, &mut out),
            Sampling::Bilinear => self.sample_between(matrix, &mut out, Self::bilinear),
            Sampling::Bicubic => self.sample_between(matrix, &mut out, Self::bicubic),
        }
        out
    }

    /// Pillow's `Image.rotate(degrees, sampling, fillcolor=fill)`: counter-clockwise around the middle, of the same size.
    pub fn rotate(&self, degrees: f64, sampling: Sampling, fill: [u8; 3]) -> Self {
        let turned = degrees.rem_euclid(360.0);
        let (width, height) = (self.width as f64, self.height as f64);
        if turned == 0.0 {
            return self.clone();
        }
        // Quarters of a turn copy pixels there; of images that are no squares, only halves fit.
        if turned == 180.0 {
            let pixels = self.data.as_chunks::<3>().0.iter().rev().copied();
            return Self { data: pixels.flatten().collect(), ..*self };
        }
        if self.width == self.height && (turned == 90.0 || turned == 270.0) {
            return self.quarter_turned(turned == 90.0);
        }
        let angle = -turned.to_radians();
        let [a, b, d, e] = [angle.cos(), angle.sin(), -angle.sin(), angle.cos()].map(fifteen_digits);
        let [x, y] = [width / 2.0, height / 2.0];
        let matrix = [a, b, (a * -x + b * -y + 0.0) + x, d, e, (d * -x + e * -y + 0.0) + y];
        self.affine(&matrix, sampling, fill)
    }

    /// A square turned by a quarter.
    fn quarter_turned(&self, counter_clockwise: bool) -> Self {
        let last = self.width - 1;
        let from = |x: usize, y: usize| if counter_clockwise { (last - y, x) } else { (y, last - x) };
        let places = (0..self.height).flat_map(|y| (0..self.width).map(move |x| from(x, y)));
        Self { data: places.flat_map(|(x, y)| self.pixel(x, y)).collect(), ..*self }
    }

    fn copy_nearest(&self, m: &Matrix, out: &mut Self) {
        let [a, b, c, d, e, f] = *m;
        if b == 0.0 && d == 0.0 {
            return self.copy_scaled(m, out);
        }
        let corners = [0.0, self.width as f64].into_iter().flat_map(|x| [(x, 0.0), (x, self.height as f64)]);
        let in_range =
            |(x, y): (f64, f64)| (a * x + b * y + c).abs() < FIXED_END && (d * x + e * y + f).abs() < FIXED_END;
        if corners.clone().all(in_range) {
            let fixed = |value: f64| (value * ONE + 0.5).floor() as i64;
            let begin = [fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5)];
            self.walk(out, begin, [a, d].map(fixed), [b, e].map(fixed), |at| at >> 16);
        } else {
            let begin = [c + b * 0.5 + a * 0.5, f + e * 0.5 + d * 0.5];
            self.walk(out, begin, [a, d], [b, e], truncated);
        }
    }

    /// Where columns do not depend on rows, nor rows on columns.
    fn copy_scaled(&self, [a, _, c, _, e, f]: &Matrix, out: &mut Self) {
        let along = |begin: f64, step: f64, count: usize, end: usize| {
            let places = (0..count).scan(begin, move |at, _| {
                let place = truncated(*at);
                *at += step;
                Some((0..end as i64).contains(&place).then_some(place as usize))
            });
            places.collect::<Vec<_>>()
        };
        let columns = along(c + a * 0.5, *a, self.width, self.width);
        let rows = along(f + e * 0.5, *e, self.height, self.height);
        for (y, row) in rows.iter().enumerate() {
            for (x, column) in columns.iter().enumerate() {
                if let (Some(row), Some(column)) = (row, column) {
                    out.set(x, y, self.pixel(*column, *row));
                }
            }
        }
    }

    /// Goes through the pixels of the result by steps in the source, `[column, row]`, for each column and each row.
    fn walk<T: Copy + AddAssign>(
        &self,
        out: &mut Self,
        begin: [T; 2],
        by_column: [T; 2],
        by_row: [T; 2],
        whole: impl Fn(T) -> i64,
    ) {
        let mut row = begin;
        for y in 0..self.height {
            let mut at = row;
            for x in 0..self.width {
                let [column, line] = at.map(&whole);
                if (0..self.width as i64).contains(&column) && (0..self.height as i64).contains(&line) {
                    out.set(x, y, self.pixel(column as usize, line as usize));
                }
                (0..2).for_each(|axis| at[axis] += by_column[axis]);
            }
            (0..2).for_each(|axis| row[axis] += by_row[axis]);
        }
    }

    fn sample_between(&self, [a, b, c, d, e, f]: &Matrix, out: &mut Self, read: fn(&Self, f64, f64) -> [u8; 3]) {
        for y in 0..self.height {
            for x in 0..self.width {
                let (column, row) = (x as f64 + 0.5, y as f64 + 0.5);
                let (column, row) = (a * column + b * row + c, d * column + e * row + f);
                if (0.0..self.width as f64).contains(&column) && (0.0..self.height as f64).contains(&row) {
                    out.set(x, y, read(self, column - 0.5, row - 0.5));
                }
            }
        }
    }

    /// A level of a channel; places outside are moved to the border.
    fn level(&self, column: i64, row: i64, channel: usize) -> f64 {
        let clipped = |at: i64, count: usize| at.clamp(0, count as i64 - 1) as usize;
        let at = clipped(row, self.height) * self.width + clipped(column, self.width);
        f64::from(self.data[3 * at + channel])
    }

    fn bilinear(&self, column: f64, row: f64) -> [u8; 3] {
        let (x, y) = (column.floor(), row.floor());
        let (dx, dy) = (column - x, row - y);
        let between = |a: f64, b: f64, share: f64| a + (b - a) * share;
        let (x, y) = (x as i64, y as i64);
        std::array::from_fn(|channel| {
            let line = |y: i64| between(self.level(x, y, channel), self.level(x + 1, y, channel), dx);
            between(line(y), line(y + 1), dy) as u8
        })
    }

    fn bicubic(&self, column: f64, row: f64) -> [u8; 3] {
        let (x, y) = (column.floor(), row.floor());
        let (dx, dy) = (column - x, row - y);
        let (x, y) = (x as i64 - 1, y as i64 - 1);
        std::array::from_fn(|channel| {
            let lines = [0, 1, 2, 3].map(|line| {
                // Above the image Pillow repeats the border, below it the last line that it has computed: the same.
                cubic([0, 1, 2, 3].map(|step| self.level(x + step, y + line, channel)), dx)
            });
            cubic(lines, dy).clamp(0.0, 255.0) as u8
        })
    }

    fn set(&mut self, x: usize, y: usize, pixel: [u8; 3]) {
        let at = 3 * (y * self.width + x);
        self.data[at..at + 3].copy_from_slice(&pixel);
    }
}

/// The curve through the second and third of four values, at a share of the way between them.
fn cubic([a, b, c, d]: [f64; 4], share: f64) -> f64 {
    let (first, second, third) = (c - a, 2.0 * (a - b) + c - d, b - a - c + d);
    b + share * (first + share * (second + share * third))
}

/// Towards zero; what is negative is outside.
fn truncated(at: f64) -> i64 {
    if at < 0.0 { -1 } else { at as i64 }
}

/// Rounded to 15 decimals, as Python's `round` does: correctly from the decimal expansion.
fn fifteen_digits(value: f64) -> f64 {
    format!("{value:.15}").parse().unwrap_or(value)
}
