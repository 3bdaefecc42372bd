//! Functions of all pairs of rows, tile by tile, on all threads.

use std::sync::Mutex;

use calotype_kernels::parallel_for;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::error::{MetricsError, Result, check_finite};

/// Rows of a tile. A constant, so that sums are cut by shape alone.
pub(crate) const TILE: usize = 256;

/// Feature vectors, shape `[rows, width]`, all finite.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    values: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    /// The rows of a slice.
    ///
    /// # Errors
    /// If `width` is zero, the slice is not whole rows, or a value is not finite.
    pub fn new(what: &'static str, values: &'a [f32], width: usize) -> Result<Self> {
        if width == 0 {
            return Err(MetricsError::Zero("feature width"));
        }
        if !values.len().is_multiple_of(width) {
            return Err(MetricsError::PartialRow { what, width, found: values.len() });
        }
        check_finite(what, values, width, 0)?;
        Ok(Self { values, width })
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.values.len() / self.width
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.count().div_ceil(TILE)
    }

    /// One row.
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// A tile's rows in `f64`, one column each.
    pub fn tile(&self, tile: usize) -> Tile {
        let first = tile * TILE;
        let count = TILE.min(self.count() - first);
        let values = self.values[first * self.width..][..count * self.width].iter().map(|value| f64::from(*value));
        Tile { values: values.collect(), width: self.width, first, count }
    }

    /// These rows in this order.
    pub fn chosen(&self, indices: &[u32]) -> Vec<f32> {
        indices.iter().flat_map(|&index| self.row(index as usize)).copied().collect()
    }
}

/// Some consecutive rows.
pub(crate) struct Tile {
    values: Vec<f64>,
    width: usize,
    /// Number of the first row.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl Tile {
    fn matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.values, self.width, self.count)
    }

    /// The inner products of these rows with those, shape `[self, other]`.
    pub fn products(&self, other: &Tile) -> Mat<f64> {
        let mut products = Mat::zeros(self.count, other.count);
        matmul(products.as_mut(), Accum::Replace, self.matrix().transpose(), other.matrix(), 1.0, Par::Seq);
        products
    }

    /// The squared length of each row.
    pub fn squares(&self) -> Vec<f64> {
        self.values.chunks_exact(self.width).map(|row| row.iter().map(|x| x * x).sum()).collect()
    }
}

/// The sum of `kernel(x·y, |x|², |y|²)` over all pairs of a row x of `left` and a row y of `right`.
pub(crate) fn sum_over_pairs(left: Rows<'_>, right: Rows<'_>, kernel: impl Fn(f64, f64, f64) -> f64 + Sync) -> f64 {
    let tasks = (0..left.tiles()).flat_map(|row| (0..right.tiles()).map(move |column| (row, column))).collect();
    sum_over_tiles(tasks, |(row, column)| {
        let (left, right) = (left.tile(row), right.tile(column));
        let products = left.products(&right);
        let (lengths, across) = (left.squares(), right.squares());
        let of = |column: usize| lengths.iter().enumerate().map(move |(row, length)| (row, column, *length));
        let pairs = (0..right.count).flat_map(of);
        pairs.map(|(row, column, length)| kernel(products[(row, column)], length, across[column])).sum()
    })
}

/// The sum of `kernel(x·y, |x|², |y|²)` over all ordered pairs of two different rows of a set; the kernel is symmetric.
pub(crate) fn sum_over_other_pairs(rows: Rows<'_>, kernel: impl Fn(f64, f64, f64) -> f64 + Sync) -> f64 {
    let tasks = (0..rows.tiles()).flat_map(|row| (0..=row).map(move |column| (row, column))).collect();
    let once = sum_over_tiles(tasks, |(row, column)| {
        let (left, right) = (rows.tile(row), rows.tile(column));
        let products = left.products(&right);
        let (lengths, across) = (left.squares(), right.squares());
        let mut sum = 0.0;
        for column in 0..right.count {
            for row in 0..left.count {
                if left.first + row > right.first + column {
                    sum += kernel(products[(row, column)], lengths[row], across[column]);
                }
            }
        }
        sum
    });
    2.0 * once
}

/// Adds up what each tile gives, in the order of the tiles.
fn sum_over_tiles(tasks: Vec<(usize, usize)>, of: impl Fn((usize, usize)) -> f64 + Sync) -> f64 {
    let sums: Vec<Mutex<f64>> = tasks.iter().map(|_| Mutex::new(0.0)).collect();
    parallel_for(tasks.len(), |task| {
        let sum = of(tasks[task]);
        *sums[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = sum;
    });
    sums.into_iter().map(|sum| sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)).sum()
}
