//! Singular values of a matrix, on all threads.
//!
//! A dense matrix is made bidiagonal by reflections from both sides (Golub and Kahan 1965), in panels whose reflections are
//! applied to the rest at once (Dongarra, Sorensen, Hammarling 1989), and the bidiagonal one diagonal by implicit QR steps,
//! without a shift where that keeps small values exact (Demmel and Kahan 1990). Half of the work reads the whole rest of
//! the matrix for each reflection, twice, and is bound by memory: that is what the threads share out.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::{MetricsError, Result};
use crate::triangle::for_each;

/// Reflections of each side in a panel.
const PANEL: usize = 32;

/// Rows or columns that one thread works on. A constant, so that sums are cut by shape alone.
const CHUNK: usize = 128;

/// Steps per value after which the iteration counts as failed; some two are usual.
const MOST_STEPS: usize = 60;

/// The singular values of a matrix, in no order.
///
/// # Errors
/// If the iteration does not converge.
pub(crate) fn singular_values(matrix: Mat<f64>) -> Result<Vec<f64>> {
    let matrix = if matrix.nrows() < matrix.ncols() { matrix.transpose().to_owned() } else { matrix };
    let (diagonal, above) = bidiagonal(matrix);
    diagonal_values(diagonal, above)
}

/// The diagonal and what stands above it of a bidiagonal matrix with the singular values of `a`, which has no fewer rows
/// than columns.
fn bidiagonal(mut a: Mat<f64>) -> (Vec<f64>, Vec<f64>) {
    let (rows, columns) = (a.nrows(), a.ncols());
    let (mut diagonal, mut above) = (Vec::with_capacity(columns), Vec::with_capacity(columns));
    for first in (0..columns).step_by(PANEL) {
        let rest = a.as_mut().submatrix_mut(first, first, rows - first, columns - first);
        let width = PANEL.min(rest.ncols());
        let mut panel = Panel::new(rest.nrows(), rest.ncols(), width);
        for step in 0..width {
            panel.reflect(rest.as_ref(), step, &mut diagonal, &mut above);
        }
        panel.apply(rest);
    }
    (diagonal, above)
}

/// Reflections that wait to be applied. As they leave it, the matrix is `A - left · yᵀ - x · rightᵀ`.
struct Panel {
    /// Vectors of the reflections from the left, a column each.
    left: Mat<f64>,
    /// Vectors of those from the right.
    right: Mat<f64>,
    x: Mat<f64>,
    y: Mat<f64>,
}

impl Panel {
    fn new(rows: usize, columns: usize, width: usize) -> Self {
        let zeros = |length| Mat::zeros(length, width);
        Self { left: zeros(rows), right: zeros(columns), x: zeros(rows), y: zeros(columns) }
    }

    /// Clears column `step` below the diagonal and row `step` behind what stands above it.
    fn reflect(&mut self, a: MatRef<'_, f64>, step: usize, diagonal: &mut Vec<f64>, above: &mut Vec<f64>) {
        let (rows, columns) = (a.nrows(), a.ncols());
        // The column as the reflections so far leave it.
        let mut column = a.subcols(step, 1).subrows(step, rows - step).to_owned();
        subtract(&mut column, self.left.get(step.., ..step), self.y.get(step..step + 1, ..step).transpose());
        subtract(&mut column, self.x.get(step.., ..step), self.right.get(step..step + 1, ..step).transpose());
        let (value, scale) = reflector(&mut column);
        diagonal.push(value);
        self.left.get_mut(step.., step..step + 1).copy_from(&column);

        let behind = step + 1;
        if behind == columns {
            return;
        }
        let u = column.as_ref();
        let rest = a.submatrix(step, behind, rows - step, columns - behind);
        let mut y = Mat::zeros(columns - behind, 1);
        in_chunks(y.as_mut(), |first, chunk| {
            let columns = rest.subcols(first, chunk.nrows()).transpose();
            matmul(chunk, Accum::Replace, columns, u, 1.0, Par::Seq);
        });
        let across = inner(self.left.get(step.., ..step), u);
        subtract(&mut y, self.y.get(behind.., ..step), across.as_ref());
        let across = inner(self.x.get(step.., ..step), u);
        subtract(&mut y, self.right.get(behind.., ..step), across.as_ref());
        scale_by(&mut y, scale);
        self.y.get_mut(behind.., step..behind).copy_from(&y);

        let mut row = a.subrows(step, 1).subcols(behind, columns - behind).transpose().to_owned();
        subtract(&mut row, self.y.get(behind.., ..behind), self.left.get(step..behind, ..behind).transpose());
        subtract(&mut row, self.right.get(behind.., ..step), self.x.get(step..behind, ..step).transpose());
        let (value, scale) = reflector(&mut row);
        above.push(value);
        self.right.get_mut(behind.., step..behind).copy_from(&row);

        if behind == rows {
            return;
        }
        let v = row.as_ref();
        let rest = a.submatrix(behind, behind, rows - behind, columns - behind);
        let mut x = Mat::zeros(rows - behind, 1);
        in_chunks(x.as_mut(), |first, chunk| {
            let rows = rest.subrows(first, chunk.nrows());
            matmul(chunk, Accum::Replace, rows, v, 1.0, Par::Seq);
        });
        let across = inner(self.y.get(behind.., ..behind), v);
        subtract(&mut x, self.left.get(behind.., ..behind), across.as_ref());
        let across = inner(self.right.get(behind.., ..step), v);
        subtract(&mut x, self.x.get(behind.., ..step), across.as_ref());
        scale_by(&mut x, scale);
        self.x.get_mut(behind.., step..behind).copy_from(&x);
    }

    /// Applies all reflections to what is behind the panel's rows and columns.
    fn apply(&self, a: MatMut<'_, f64>) {
        let width = self.left.ncols();
        let (rows, columns) = (a.nrows() - width, a.ncols() - width);
        if columns == 0 {
            return;
        }
        let (mut tasks, mut rest) = (Vec::new(), a.submatrix_mut(width, width, rows, columns));
        for first in (0..columns).step_by(CHUNK) {
            let (now, later) = rest.split_at_col_mut(CHUNK.min(columns - first));
            tasks.push((first + width, now));
            rest = later;
        }
        for_each(tasks, |(first, mut chunk)| {
            let columns = first..first + chunk.ncols();
            let y = self.y.get(columns.clone(), ..).transpose();
            matmul(chunk.rb_mut(), Accum::Add, self.left.get(width.., ..), y, -1.0, Par::Seq);
            let v = self.right.get(columns, ..).transpose();
            matmul(chunk, Accum::Add, self.x.get(width.., ..), v, -1.0, Par::Seq);
        });
    }
}

/// Runs `run` on pieces of a column, each with its first row, on all threads.
fn in_chunks(column: MatMut<'_, f64>, run: impl Fn(usize, MatMut<'_, f64>) + Sync) {
    let rows = column.nrows();
    let (mut tasks, mut rest) = (Vec::new(), column);
    for first in (0..rows).step_by(CHUNK) {
        let (now, later) = rest.split_at_row_mut(CHUNK.min(rows - first));
        tasks.push((first, now));
        rest = later;
    }
    for_each(tasks, |(first, chunk)| run(first, chunk));
}

/// `column -= matrix · vector`.
fn subtract(column: &mut Mat<f64>, matrix: MatRef<'_, f64>, vector: MatRef<'_, f64>) {
    if matrix.ncols() > 0 {
        matmul(column.as_mut(), Accum::Add, matrix, vector, -1.0, Par::Seq);
    }
}

/// `matrixᵀ · vector`.
fn inner(matrix: MatRef<'_, f64>, vector: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(matrix.ncols(), 1);
    if matrix.ncols() > 0 {
        matmul(product.as_mut(), Accum::Replace, matrix.transpose(), vector, 1.0, Par::Seq);
    }
    product
}

fn scale_by(column: &mut Mat<f64>, scale: f64) {
    column.col_as_slice_mut(0).iter_mut().for_each(|value| *value *= scale);
}

/// Makes a column the vector v of the reflection `1 - scale · v · vᵀ`, with 1 in front, that turns it into its first
/// entry alone; returns that entry and the scale.
fn reflector(column: &mut Mat<f64>) -> (f64, f64) {
    let column = column.col_as_slice_mut(0);
    let Some((head, tail)) = column.split_first_mut() else {
        return (0.0, 0.0);
    };
    let largest = tail.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let first = std::mem::replace(head, 1.0);
    if largest == 0.0 {
        return (first, 0.0);
    }
    // Divided by the largest, squares neither vanish nor overflow.
    let largest = largest.max(first.abs());
    let squares: f64 = tail.iter().map(|value| (value / largest) * (value / largest)).sum();
    let length = largest * ((first / largest) * (first / largest) + squares).sqrt();
    let value = -length.copysign(first);
    tail.iter_mut().for_each(|entry| *entry /= first - value);
    (value, (value - first) / value)
}

/// The singular values of a bidiagonal matrix.
fn diagonal_values(mut d: Vec<f64>, mut e: Vec<f64>) -> Result<Vec<f64>> {
    let largest = d.iter().chain(&e).fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let mut last = d.len().saturating_sub(1);
    let mut steps = MOST_STEPS * d.len();
    while last > 0 {
        let first = start_of_block(&d, &mut e, last, largest);
        if first == last {
            last -= 1;
            continue;
        }
        if steps == 0 {
            return Err(MetricsError::NoConvergence("the singular value decomposition", d.len()));
        }
        steps -= 1;
        let shift = smaller_value(d[last - 1], e[last - 1], d[last]);
        let harmless = d[first] == 0.0 || (shift / d[first]).powi(2) < f64::EPSILON;
        if harmless {
            step_without_shift(&mut d, &mut e, first, last);
        } else {
            step_with_shift(&mut d, &mut e, first, last, shift);
        }
    }
    Ok(d.into_iter().map(f64::abs).collect())
}

/// The first row of the block that ends in row `last` and does not fall apart; clears what is rounding noise.
fn start_of_block(d: &[f64], e: &mut [f64], last: usize, largest: f64) -> usize {
    for row in (0..last).rev() {
        if e[row].abs() <= f64::EPSILON * (d[row].abs() + d[row + 1].abs())
            || e[row].abs() <= f64::MIN_POSITIVE * largest
        {
            e[row] = 0.0;
            return row + 1;
        }
    }
    0
}

/// The smaller singular value of `[[f, g], [0, h]]`.
fn smaller_value(f: f64, g: f64, h: f64) -> f64 {
    let (f, g, h) = (f.abs(), g.abs(), h.abs());
    let (least, most) = (f.min(h), f.max(h));
    if least == 0.0 {
        return 0.0;
    }
    let (ratio, next) = (1.0 + least / most, (most - least) / most);
    let square = (g / most) * (g / most);
    2.0 * least / ((ratio * ratio + square).sqrt() + (next * next + square).sqrt())
}

/// Cosine, sine and length of the rotation that takes `(f, g)` to `(length, 0)`.
fn rotation(f: f64, g: f64) -> (f64, f64, f64) {
    let length = f.hypot(g);
    if length == 0.0 { (1.0, 0.0, 0.0) } else { (f / length, g / length, length) }
}

/// A step of QR without a shift, which computes each value to its own precision.
fn step_without_shift(d: &mut [f64], e: &mut [f64], first: usize, last: usize) {
    let (mut cosine, mut old_cosine, mut old_sine) = (1.0, 1.0, 0.0);
    for row in first..last {
        let (c, sine, length) = rotation(d[row] * cosine, e[row]);
        if row > first {
            e[row - 1] = old_sine * length;
        }
        cosine = c;
        (old_cosine, old_sine, d[row]) = rotation(old_cosine * length, d[row + 1] * sine);
    }
    let value = d[last] * cosine;
    d[last] = value * old_cosine;
    e[last - 1] = value * old_sine;
}

/// A step of QR with a shift.
fn step_with_shift(d: &mut [f64], e: &mut [f64], first: usize, last: usize, shift: f64) {
    let mut f = (d[first].abs() - shift) * (1f64.copysign(d[first]) + shift / d[first]);
    let mut g = e[first];
    for row in first..last {
        let (cosine, sine, length) = rotation(f, g);
        if row > first {
            e[row - 1] = length;
        }
        f = cosine * d[row] + sine * e[row];
        e[row] = cosine * e[row] - sine * d[row];
        g = sine * d[row + 1];
        d[row + 1] *= cosine;
        let (cosine, sine, length) = rotation(f, g);
        d[row] = length;
        f = cosine * e[row] + sine * d[row + 1];
        d[row + 1] = cosine * d[row + 1] - sine * e[row];
        if row + 1 < last {
            g = sine * e[row + 1];
            e[row + 1] *= cosine;
        }
    }
    e[last - 1] = f;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::features;

    fn sorted(mut values: Vec<f64>) -> Vec<f64> {
        values.sort_by(|a, b| b.total_cmp(a));
        values
    }

    #[test]
    fn values_are_faers_over_odd_shapes() {
        for (rows, columns) in
            [(1, 1), (1, 5), (5, 1), (2, 2), (7, 31), (33, 32), (64, 64), (200, 65), (130, 300), (260, 260)]
        {
            let values = features(rows * columns, 1, 0.1, (rows * 1000 + columns) as u64);
            let matrix = Mat::from_fn(rows, columns, |row, column| f64::from(values[row * columns + column]));
            let expected = sorted(matrix.singular_values().unwrap());
            let found = sorted(singular_values(matrix).unwrap());
            assert_eq!(found.len(), expected.len());
            for (found, value) in found.iter().zip(&expected) {
                assert!((found - value).abs() <= 1e-13 * expected[0], "{rows} x {columns}: {found} {value}");
            }
        }
    }

    #[test]
    fn zeros_copies_and_wide_ranges() {
        let zero = singular_values(Mat::zeros(40, 35)).unwrap();
        assert!(zero.iter().all(|value| *value == 0.0) && zero.len() == 35);
        let ones = sorted(singular_values(Mat::from_fn(50, 40, |_, _| 2.0)).unwrap());
        assert!((ones[0] - 2.0 * 2000f64.sqrt()).abs() < 1e-12 && ones[1] < 1e-12, "{ones:?}");
        let scale = |row: usize| 10f64.powi(3 * row as i32 - 60);
        let diagonal = Mat::from_fn(40, 40, |row, column| if row == column { scale(row) } else { 0.0 });
        let found = sorted(singular_values(diagonal).unwrap());
        for (row, found) in found.iter().rev().enumerate() {
            assert!((found / scale(row) - 1.0).abs() < 1e-12, "{row}: {found}");
        }
        // A graded bidiagonal matrix keeps the digits of its small values: their product is the determinant.
        let d: Vec<f64> = (0..12).map(|row| 10f64.powi(-row)).collect();
        let e: Vec<f64> = (0..11).map(|row| 10f64.powi(-row - 1)).collect();
        let product: f64 = diagonal_values(d, e).unwrap().into_iter().map(f64::ln).sum();
        assert!((product - -66.0 * 10f64.ln()).abs() < 1e-10, "{product}");
        // Large and small values lie the other way round.
        let d: Vec<f64> = (0..12).map(|row| 10f64.powi(row - 11)).collect();
        let found = sorted(diagonal_values(d, vec![0.1; 11]).unwrap());
        assert!(found.len() == 12 && found[0] < 1.2 && found[0] > 1.0, "{found:?}");
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let values = features(300 * 290, 1, 0.0, 4);
        let matrix = Mat::from_fn(300, 290, |row, column| f64::from(values[row * 290 + column]));
        let before = calotype_kernels::threads();
        let found = [1, 2, 3, 8].map(|threads| {
            calotype_kernels::set_threads(threads);
            singular_values(matrix.clone()).unwrap()
        });
        calotype_kernels::set_threads(before);
        assert!(found.iter().all(|one| *one == found[0]));
    }
}
