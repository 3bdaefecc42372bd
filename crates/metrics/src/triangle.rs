//! The lower triangle of a symmetric matrix, and the products that are added to it, on all threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use calotype_kernels::parallel_for;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};

/// Rows and columns of a tile, the piece of work of one thread. A constant, so that sums are cut by shape alone.
const TILE: usize = 256;

/// Runs `run` on each item, on all threads. Which thread takes which must not matter to the result.
pub(crate) fn for_each<T: Send>(items: Vec<T>, run: impl Fn(T) + Sync) {
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    parallel_for(items.len(), |index| {
        let item = items[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(item) = item {
            run(item);
        }
    });
}

/// A symmetric matrix of `width` rows. Kept are strips of [`TILE`] rows, from the first column to the diagonal's tile,
/// one after the other, each column by column: a tile is then one slice. What lies above the diagonal in the tiles
/// there is not used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LowerTriangle {
    width: usize,
    values: Vec<f64>,
}

impl LowerTriangle {
    /// All zeros.
    pub fn zeros(width: usize) -> Self {
        Self { width, values: vec![0.0; Self::stored(width).unwrap_or(usize::MAX)] }
    }

    /// Makes all values zero.
    pub fn clear(&mut self) {
        self.values.fill(0.0);
    }

    /// The number of values that are kept of a matrix; nothing where it would not fit a `usize`.
    pub fn stored(width: usize) -> Option<usize> {
        let (whole, rest) = (width / TILE, width % TILE);
        let tiles = (whole.checked_mul(whole.checked_add(1)?)? / 2).checked_mul(TILE * TILE)?;
        tiles.checked_add(rest.checked_mul(width)?)
    }

    /// From what [`values`](Self::values) returned, if it is as many.
    pub fn from_values(width: usize, values: Vec<f64>) -> Option<Self> {
        (Self::stored(width) == Some(values.len())).then_some(Self { width, values })
    }

    /// What is kept.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The value at a row and a column that is not behind it.
    pub fn at(&self, row: usize, column: usize) -> f64 {
        let strip = row / TILE;
        let start = strip * (strip + 1) / 2 * TILE * TILE;
        let rows = TILE.min(self.width - strip * TILE);
        self.values[start + column * rows + row % TILE]
    }

    /// The tiles with their rows and columns.
    fn tiles(&mut self) -> Vec<(Range<usize>, Range<usize>, &mut [f64])> {
        let width = self.width;
        let mut rest = self.values.as_mut_slice();
        let mut tiles = Vec::new();
        for row in (0..width).step_by(TILE) {
            let rows = row..width.min(row + TILE);
            for column in (0..=row).step_by(TILE) {
                let columns = column..rows.end.min(column + TILE);
                let (tile, later) = rest.split_at_mut(rows.len() * columns.len());
                tiles.push((rows.clone(), columns, tile));
                rest = later;
            }
        }
        tiles
    }

    /// Adds `a · aᵀ`, `a` of shape `[width, n]`.
    pub fn add_self_product(&mut self, a: MatRef<'_, f64>) {
        for_each(self.tiles(), |(rows, columns, tile)| {
            let on_diagonal = rows == columns;
            let left = a.subrows(rows.start, rows.len());
            let right = a.subrows(columns.start, columns.len()).transpose();
            let tile = MatMut::from_column_major_slice_mut(tile, rows.len(), columns.len());
            if on_diagonal {
                let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
                triangular::matmul(tile, lower, Accum::Add, left, whole, right, whole, 1.0, Par::Seq);
            } else {
                matmul(tile, Accum::Add, left, right, 1.0, Par::Seq);
            }
        });
    }

    /// Adds `other + scale · vector · vectorᵀ`.
    pub fn add_with_outer(&mut self, other: &Self, vector: &[f64], scale: f64) {
        let mut from = other.values.as_slice();
        let mut tiles = Vec::new();
        for (rows, columns, tile) in self.tiles() {
            let (added, later) = from.split_at(tile.len());
            tiles.push((rows, columns, tile, added));
            from = later;
        }
        for_each(tiles, |(rows, columns, tile, added)| {
            let height = rows.len();
            let down = &vector[rows];
            for ((target, added), column) in tile.chunks_mut(height).zip(added.chunks(height)).zip(columns) {
                let across = scale * vector[column];
                for ((target, added), value) in target.iter_mut().zip(added).zip(down) {
                    *target += added + across * value;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    #[test]
    fn products_stand_where_they_are_looked_up() {
        for width in [1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE + 44] {
            let a = Mat::from_fn(width, 3, |row, column| ((row * 7 + column * 5) % 11) as f64 - 4.0);
            let mut triangle = LowerTriangle::zeros(width);
            assert_eq!(triangle.values().len(), LowerTriangle::stored(width).unwrap());
            triangle.add_self_product(a.as_ref());
            let other = triangle.clone();
            let vector: Vec<f64> = (0..width).map(|row| (row % 5) as f64).collect();
            triangle.add_with_outer(&other, &vector, 0.5);
            for row in 0..width {
                for column in 0..=row {
                    let product: f64 = (0..3).map(|k| a[(row, k)] * a[(column, k)]).sum();
                    let expected = 2.0 * product + 0.5 * vector[row] * vector[column];
                    assert_eq!(triangle.at(row, column), expected, "{width}: {row}, {column}");
                }
            }
        }
    }
}
