//! Fréchet distance between two sets of features, each described by its Gaussian.
//!
//! The distance of Dowson and Landau (1982), used on Inception features as the FID by Heusel et al. (2017,
//! arXiv:1706.08500, equation 6). On features of any other model it is a Fréchet distance, but not *the* FID.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Accum, Mat, MatRef, Par};

use crate::error::{MetricsError, Result, check_finite};

/// Rows that are centred and multiplied together. A constant, because the block borders decide the order of the sums:
/// with fixed borders the result does not depend on how the rows were split over calls of
/// [`GaussianAccumulator::push`].
const BLOCK_ROWS: usize = 256;

/// The mean and covariance of a set of feature vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct GaussianStatistics {
    /// Mean, shape `[d]`.
    pub mean: Vec<f64>,
    /// Unbiased covariance (divided by `count - 1`, like `numpy.cov(features, rowvar=False)`), shape `[d, d]`, row-major.
    pub covariance: Vec<f64>,
    /// Number of feature vectors.
    pub count: usize,
}

impl GaussianStatistics {
    /// The statistics of `features`, shape `[n, width]`, row-major.
    ///
    /// # Errors
    /// If `width` is zero, the slice is not whole rows, a value is not finite (the error names its row), or there are
    /// fewer than two rows.
    pub fn from_features(features: &[f32], width: usize) -> Result<Self> {
        let mut accumulator = GaussianAccumulator::new(width)?;
        accumulator.push(features)?;
        accumulator.finish()
    }

    /// Width d of the features.
    pub fn width(&self) -> usize {
        self.mean.len()
    }
}

/// Gathers [`GaussianStatistics`] from features that arrive in pieces, in memory for d × (d + 256) values.
///
/// The same rows in the same order give the same bits, however they were split into pieces.
///
/// ```
/// use calotype_metrics::GaussianAccumulator;
///
/// # fn main() -> calotype_metrics::Result<()> {
/// let mut features = GaussianAccumulator::new(2)?;
/// features.push(&[1.0, 0.0])?;
/// features.push(&[3.0, 0.0, 5.0, 3.0])?;
/// let statistics = features.finish()?;
/// assert_eq!((statistics.count, statistics.mean), (3, vec![3.0, 1.0]));
/// assert_eq!(statistics.covariance, [4.0, 3.0, 3.0, 3.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct GaussianAccumulator {
    /// Rows merged into `mean` and `scatter`.
    merged: usize,
    /// Mean of the merged rows, one column.
    mean: Mat<f64>,
    /// Sum of (x - mean)(x - mean)ᵀ over the merged rows; the lower triangle only.
    scatter: Mat<f64>,
    /// Rows that wait for a full block, one column each.
    block: Mat<f64>,
    /// Columns of `block` in use.
    waiting: usize,
}

impl GaussianAccumulator {
    /// An empty accumulator of features of `width` values.
    ///
    /// # Errors
    /// If `width` is zero.
    pub fn new(width: usize) -> Result<Self> {
        if width == 0 {
            return Err(MetricsError::Zero("feature width"));
        }
        Ok(Self {
            merged: 0,
            mean: Mat::zeros(width, 1),
            scatter: Mat::zeros(width, width),
            block: Mat::zeros(width, BLOCK_ROWS),
            waiting: 0,
        })
    }

    /// Number of rows seen.
    pub fn count(&self) -> usize {
        self.merged + self.waiting
    }

    /// Adds `features`, shape `[m, width]`, row-major, m of any size.
    ///
    /// # Errors
    /// If the slice is not whole rows or a value is not finite; the error counts rows from the accumulator's first one,
    /// and nothing is added.
    pub fn push(&mut self, features: &[f32]) -> Result<()> {
        let width = self.mean.nrows();
        if !features.len().is_multiple_of(width) {
            let found = features.len();
            return Err(MetricsError::PartialRow { what: "features", width, found });
        }
        check_finite("features", features, width, self.count())?;
        for row in features.chunks_exact(width) {
            for (index, value) in row.iter().enumerate() {
                self.block[(index, self.waiting)] = f64::from(*value);
            }
            self.waiting += 1;
            if self.waiting == BLOCK_ROWS {
                self.merge_block();
            }
        }
        Ok(())
    }

    /// The statistics of all rows.
    ///
    /// # Errors
    /// If fewer than two rows were added.
    pub fn finish(mut self) -> Result<GaussianStatistics> {
        let count = self.count();
        if count < 2 {
            return Err(MetricsError::TooFewRows(count));
        }
        self.merge_block();
        let width = self.mean.nrows();
        let divisor = (count - 1) as f64;
        let mut covariance = vec![0.0; width * width];
        for row in 0..width {
            for column in 0..=row {
                let value = self.scatter[(row, column)] / divisor;
                covariance[row * width + column] = value;
                covariance[column * width + row] = value;
            }
        }
        let mean = (0..width).map(|index| self.mean[(index, 0)]).collect();
        Ok(GaussianStatistics { mean, covariance, count })
    }

    /// Merges the waiting rows by the pairwise update of Chan, Golub and LeVeque (1979), which, unlike the sum of squares
    /// less the square of the sum, loses no digits when the mean is large beside the spread.
    fn merge_block(&mut self) {
        if self.waiting == 0 {
            return;
        }
        let width = self.mean.nrows();
        let (old, new) = (self.merged as f64, self.waiting as f64);
        let mut delta = Mat::<f64>::zeros(width, 1);
        for index in 0..width {
            let sum: f64 = (0..self.waiting).map(|column| self.block[(index, column)]).sum();
            let block_mean = sum / new;
            for column in 0..self.waiting {
                self.block[(index, column)] -= block_mean;
            }
            delta[(index, 0)] = block_mean - self.mean[(index, 0)];
        }
        let centred = self.block.subcols(0, self.waiting);
        add_self_product(&mut self.scatter, centred, 1.0);
        add_self_product(&mut self.scatter, delta.as_ref(), old * new / (old + new));
        for index in 0..width {
            self.mean[(index, 0)] += delta[(index, 0)] * (new / (old + new));
        }
        self.merged += self.waiting;
        self.waiting = 0;
    }
}

/// `lower(target) += scale · a · aᵀ`.
fn add_self_product(target: &mut Mat<f64>, a: MatRef<'_, f64>, scale: f64) {
    triangular::matmul(
        target.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        a,
        BlockStructure::Rectangular,
        a.transpose(),
        BlockStructure::Rectangular,
        scale,
        Par::Seq,
    );
}

/// The squared Fréchet (2-Wasserstein) distance between two Gaussians, in squared feature units:
/// `|μ₁ - μ₂|² + Tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½)` (Heusel et al. 2017, equation 6).
///
/// The trace of the square root is computed without a general matrix square root, which may fail or turn complex on the
/// singular covariances of few samples (the `eps` of the usual Python code). With `Σ = L Lᵀ`, `L = U Λ^½` from the
/// symmetric eigendecomposition, `Tr (Σ₁Σ₂)^½ = Tr (Σ₁^½ Σ₂ Σ₁^½)^½` is the sum of the singular values of `L₁ᵀ L₂`.
/// Taking them directly, rather than as roots of eigenvalues, keeps twice the digits of the small ones.
/// Eigenvalues below d · ε · λ_max, rounding noise of either sign, count as zero.
///
/// Runs in one thread; the same input gives the same bits on the same processor model, whatever the thread pool.
/// The result is never negative.
///
/// # Errors
/// If the widths differ, a covariance has not d² values, a value is not finite, or the decomposition does not converge.
pub fn frechet_distance(a: &GaussianStatistics, b: &GaussianStatistics) -> Result<f64> {
    if a.width() != b.width() {
        return Err(MetricsError::WidthMismatch { left: a.width(), right: b.width() });
    }
    check_statistics(a)?;
    check_statistics(b)?;
    if a.width() == 0 {
        return Ok(0.0);
    }
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(x, y)| (x - y) * (x - y)).sum();
    let traces: f64 = trace(a) + trace(b);
    let cross = sum_of_singular_values(&square_root_factor(a)?, &square_root_factor(b)?)?;
    // The traces and the cross term nearly cancel for equal Gaussians; rounding may then leave a tiny negative rest.
    Ok(means + (traces - 2.0 * cross).max(0.0))
}

fn trace(statistics: &GaussianStatistics) -> f64 {
    statistics.covariance.iter().step_by(statistics.width() + 1).sum()
}

/// The fields are public, so they may come from a file: refuse what the decompositions cannot digest.
fn check_statistics(statistics: &GaussianStatistics) -> Result<()> {
    let width = statistics.width();
    if statistics.covariance.len() != width * width {
        return Err(MetricsError::Length {
            what: "covariance",
            expected: width * width,
            found: statistics.covariance.len(),
        });
    }
    for (what, values) in [("mean", &statistics.mean), ("covariance", &statistics.covariance)] {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (row, column) = (at / width, at % width);
            return Err(MetricsError::NotFinite { what, row, column, value: values[at] });
        }
    }
    Ok(())
}

/// L of shape `[d, rank]` with `covariance = L · Lᵀ`.
fn square_root_factor(statistics: &GaussianStatistics) -> Result<Mat<f64>> {
    let width = statistics.width();
    // A copy into faer's own aligned storage: vector loops over it start the same way whatever the caller's alignment.
    let matrix = Mat::from_fn(width, width, |r, c| statistics.covariance[r * width + c]);
    let mut values = Diag::<f64>::zeros(width);
    let mut vectors = Mat::<f64>::zeros(width, width);
    let scratch = self_adjoint_evd_scratch::<f64>(width, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    self_adjoint_evd(
        matrix.as_ref(),
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| MetricsError::NoConvergence("the eigendecomposition", width))?;

    let values = values.column_vector();
    let largest = values.iter().copied().fold(0.0, f64::max);
    let noise = largest * f64::EPSILON * width as f64;
    let kept: Vec<usize> = (0..width).filter(|&index| values[index] > noise).collect();
    Ok(Mat::from_fn(width, kept.len(), |row, column| vectors[(row, kept[column])] * values[kept[column]].sqrt()))
}

/// The nuclear norm of `leftᵀ · right`.
fn sum_of_singular_values(left: &Mat<f64>, right: &Mat<f64>) -> Result<f64> {
    let (rows, columns) = (left.ncols(), right.ncols());
    if rows == 0 || columns == 0 {
        return Ok(0.0);
    }
    let mut product = Mat::<f64>::zeros(rows, columns);
    faer::linalg::matmul::matmul(product.as_mut(), Accum::Replace, left.transpose(), right.as_ref(), 1.0, Par::Seq);
    let mut values = Diag::<f64>::zeros(rows.min(columns));
    let scratch =
        svd_scratch::<f64>(rows, columns, ComputeSvdVectors::No, ComputeSvdVectors::No, Par::Seq, Default::default());
    svd(
        product.as_ref(),
        values.as_mut(),
        None,
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| MetricsError::NoConvergence("the singular value decomposition", rows))?;
    Ok(values.column_vector().iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random features in -0.5..0.5 plus `offset`; a plain LCG, so that no dependency is needed.
    fn features(rows: usize, width: usize, offset: f32, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..rows * width)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5 + offset
            })
            .collect()
    }

    #[test]
    fn statistics_do_not_depend_on_how_rows_were_split() {
        let width = 7;
        let all = features(1000, width, 3.0, 1);
        let whole = GaussianStatistics::from_features(&all, width).unwrap();
        for rows in [1, 3, 255, 256, 257, 999] {
            let mut accumulator = GaussianAccumulator::new(width).unwrap();
            for piece in all.chunks(rows * width) {
                accumulator.push(piece).unwrap();
            }
            assert_eq!(accumulator.finish().unwrap(), whole, "pieces of {rows} rows");
        }
    }

    #[test]
    fn a_large_mean_costs_no_digits() {
        // Multiples of 1/64 stay exact under the offset in f32, so both sets have the same covariance.
        let near: Vec<f32> = features(600, 4, 0.0, 2).iter().map(|x| (x * 64.0).round()).collect();
        let far: Vec<f32> = near.iter().map(|x| x + 1_000_000.0).collect();
        let near = GaussianStatistics::from_features(&near, 4).unwrap();
        let far = GaussianStatistics::from_features(&far, 4).unwrap();
        for (x, y) in near.covariance.iter().zip(&far.covariance) {
            assert!((x - y).abs() < 1e-7, "{x} {y}");
        }
    }

    #[test]
    fn equal_sets_are_at_distance_zero_even_when_singular() {
        for rows in [2, 20, 500] {
            let set = GaussianStatistics::from_features(&features(rows, 64, 1.0, 3), 64).unwrap();
            let distance = frechet_distance(&set, &set).unwrap();
            assert!((0.0..1e-12).contains(&distance), "{rows} rows: {distance}");
        }
    }

    #[test]
    fn a_shift_is_its_squared_length() {
        let a = GaussianStatistics::from_features(&features(50, 16, 0.0, 4), 16).unwrap();
        let mut b = a.clone();
        b.mean.iter_mut().for_each(|x| *x += 0.5);
        assert!((frechet_distance(&a, &b).unwrap() - 16.0 * 0.25).abs() < 1e-12);
    }

    #[test]
    fn one_dimension_has_a_closed_form() {
        let gaussian = |mean, variance| GaussianStatistics { mean: vec![mean], covariance: vec![variance], count: 9 };
        // (1 - 4)² + (3 - 2)²
        let distance = frechet_distance(&gaussian(1.0, 9.0), &gaussian(4.0, 4.0)).unwrap();
        assert!((distance - 10.0).abs() < 1e-12);
        // A point against a spread.
        let distance = frechet_distance(&gaussian(0.0, 0.0), &gaussian(0.0, 4.0)).unwrap();
        assert!((distance - 4.0).abs() < 1e-12);
    }

    #[test]
    fn the_distance_repeats_bit_for_bit_from_any_thread() {
        let a = GaussianStatistics::from_features(&features(300, 96, 0.0, 5), 96).unwrap();
        let b = GaussianStatistics::from_features(&features(80, 96, 0.1, 6), 96).unwrap();
        let first = frechet_distance(&a, &b).unwrap().to_bits();
        for _ in 0..4 {
            let (a, b) = (a.clone(), b.clone());
            let again = std::thread::spawn(move || frechet_distance(&a, &b).unwrap().to_bits());
            assert_eq!(again.join().unwrap(), first);
        }
    }

    #[test]
    fn errors_name_what_and_where() {
        let mut bad = features(300, 3, 0.0, 7);
        bad[299 * 3 + 1] = f32::NAN;
        let error = GaussianStatistics::from_features(&bad, 3).unwrap_err().to_string();
        assert!(error.contains("row 299, column 1"), "{error}");

        let mut accumulator = GaussianAccumulator::new(3).unwrap();
        accumulator.push(&bad[..270 * 3]).unwrap();
        let error = accumulator.push(&bad[270 * 3..]).unwrap_err().to_string();
        assert!(error.contains("row 299, column 1"), "{error}");
        assert_eq!(accumulator.count(), 270);

        let few = GaussianStatistics::from_features(&bad[..3], 3);
        assert!(matches!(few, Err(MetricsError::TooFewRows(1))));
        let ragged = GaussianStatistics::from_features(&bad[..4], 3);
        assert!(matches!(ragged, Err(MetricsError::PartialRow { .. })));
        assert!(matches!(GaussianAccumulator::new(0), Err(MetricsError::Zero(_))));

        let a = GaussianStatistics::from_features(&bad[..30], 3).unwrap();
        let b = GaussianStatistics::from_features(&bad[..30], 5).unwrap();
        let mismatch = frechet_distance(&a, &b);
        assert!(matches!(mismatch, Err(MetricsError::WidthMismatch { left: 3, right: 5 })));
    }
}
