//! Components of lower resolution at full resolution: libjpeg's "fancy upsampling", a triangle filter, where a side is
//! halved, and repeated samples elsewhere.

use super::frame::{Component, Frame};
use super::planes::Plane;
use super::read::Result;

/// How often a component's samples are repeated.
pub(super) type Ratio = [usize; 2];

/// Columns and rows of the image for each of a component's.
///
/// # Errors
/// If they are no whole numbers.
pub(super) fn ratios(frame: &Frame) -> Result<Vec<Ratio>> {
    let ratio = |component: &Component| {
        let [h, v] = component.factors;
        let [most_h, most_v] = frame.largest;
        match most_h % h == 0 && most_v % v == 0 {
            true => Ok([most_h / h, most_v / v]),
            false => Err(format!("the JPEG has sampling factors {h}x{v} beside {most_h}x{most_v}, which is not read")),
        }
    };
    frame.components.iter().map(ratio).collect()
}

/// Row `y` of the image of a component of `size` samples, into `out`, which may be a little longer than the row. Some
/// rows are returned as they lie in `plane`.
#[inline(always)]
pub(super) fn row<'a>(
    plane: &'a Plane,
    size: [usize; 2],
    ratio: Ratio,
    y: usize,
    sums: &mut [u16],
    out: &'a mut [u8],
) -> &'a [u8] {
    let [width, height] = size;
    let this = plane.row(y / ratio[1]);
    // The row that is nearer to this one's half than all others; at the borders the row itself.
    let near = match y % 2 {
        0 => (y / 2).saturating_sub(1),
        _ => (y / 2 + 1).min(height - 1),
    };
    match ratio {
        [1, 1] => return this,
        [2, 1] if width > 2 => double(&this[..width], out),
        [1, 2] => between(&this[..width], &plane.row(near)[..width], y % 2 == 1, out),
        [2, 2] if width > 2 => double_both(&this[..width], &plane.row(near)[..width], &mut sums[..width], out),
        [columns, _] => repeat(&this[..width], columns, out),
    }
    out
}

#[inline(always)]
fn repeat(row: &[u8], columns: usize, out: &mut [u8]) {
    for (out, sample) in out.chunks_exact_mut(columns).zip(row) {
        out.fill(*sample);
    }
}

/// Twice the columns: three parts of a sample and one of the next, rounded up and down in turn.
#[inline(always)]
fn double(row: &[u8], out: &mut [u8]) {
    let wide = |sample: u8| u16::from(sample);
    let last = row.len() - 1;
    let pairs = out.as_chunks_mut::<2>().0;
    pairs[0] = [row[0], ((3 * wide(row[0]) + wide(row[1]) + 2) >> 2) as u8];
    let inner = pairs[1..last].iter_mut().zip(&row[..last - 1]).zip(&row[1..last]).zip(&row[2..]);
    for (((pair, before), this), next) in inner {
        let this = 3 * wide(*this);
        *pair = [((this + wide(*before) + 1) >> 2) as u8, ((this + wide(*next) + 2) >> 2) as u8];
    }
    pairs[last] = [((3 * wide(row[last]) + wide(row[last - 1]) + 1) >> 2) as u8, row[last]];
}

/// A row between two: three parts of this one and one of the near one.
#[inline(always)]
fn between(row: &[u8], near: &[u8], lower: bool, out: &mut [u8]) {
    let half = if lower { 2 } else { 1 };
    for ((out, this), near) in out.iter_mut().zip(row).zip(near) {
        *out = ((3 * u16::from(*this) + u16::from(*near) + half) >> 2) as u8;
    }
}

/// Both: sums of rows first, then of columns.
#[inline(always)]
fn double_both(row: &[u8], near: &[u8], sums: &mut [u16], out: &mut [u8]) {
    for ((sum, this), near) in sums.iter_mut().zip(row).zip(near) {
        *sum = 3 * u16::from(*this) + u16::from(*near);
    }
    let last = sums.len() - 1;
    let pairs = out.as_chunks_mut::<2>().0;
    pairs[0] = [((4 * sums[0] + 8) >> 4) as u8, ((3 * sums[0] + sums[1] + 7) >> 4) as u8];
    let inner = pairs[1..last].iter_mut().zip(&sums[..last - 1]).zip(&sums[1..last]).zip(&sums[2..]);
    for (((pair, before), this), next) in inner {
        *pair = [((3 * this + before + 8) >> 4) as u8, ((3 * this + next + 7) >> 4) as u8];
    }
    pairs[last] = [((3 * sums[last] + sums[last - 1] + 8) >> 4) as u8, ((4 * sums[last] + 7) >> 4) as u8];
}
