//! Fréchet distance between two sets of features, each described by its Gaussian.
//!
//! The distance of Dowson and Landau (1982), used on Inception features as the FID by Heusel et al. (2017,
//! arXiv:1706.08500, equation 6). On features of any other model it is a Fréchet distance, but not *the* FID.
//!
//! # Singular products
//!
//! Fewer pictures than features make singular covariances, which is where programs differ:
//!
//! | program | `Tr (Σ₁Σ₂)^½` | what it does where the product is singular |
//! |---|---|---|
//! | pytorch-fid 0.3.0, clean-fid 0.1.35, MLPerf training | `scipy.linalg.sqrtm` of the product | if the root is not finite, adds 1e-6 to both diagonals and takes it again; refuses imaginary parts above 1e-3 on the diagonal and drops smaller ones |
//! | torch-fidelity 0.4.0, torchmetrics 1.9.0 | sum of the real parts of the roots of the product's eigenvalues | nothing: negative eigenvalues, which are rounding noise, have imaginary roots and count as zero; positive ones count |
//! | here | sum of the singular values of `L₁ᵀ L₂` | rounding noise is left out of the factors; nothing is added |
//!
//! None of them but this one keeps the result from being negative: identical sets of 24 pictures have -1.76e-6 in pytorch-fid,
//! -1.78e-6 in torch-fidelity, and 0 to 1e-12 of the traces here. One picture is refused by all of them in some way: pytorch-fid
//! with an error of linear algebra, torchmetrics and this crate by saying that two are needed.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{PivLltParams, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par, Spec};

use crate::error::{MetricsError, Result};
use crate::gaussian::GaussianStatistics;
use crate::singular::singular_values;
use crate::triangle::for_each;

/// Columns of the product of the two factors that one thread computes.
const COLUMNS: usize = 128;

/// The squared Fréchet (2-Wasserstein) distance between two Gaussians, in squared feature units:
/// `|μ₁ - μ₂|² + Tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½)` (Heusel et al. 2017, equation 6).
///
/// The trace of the square root is computed without a general matrix square root, which may fail or turn complex on the
/// singular covariances of few samples. With `Σ = L Lᵀ` by Cholesky's factorisation with pivots,
/// `Tr (Σ₁Σ₂)^½ = Tr (L₁ᵀ Σ₂ L₁)^½` is the sum of the singular values of `L₁ᵀ L₂`. Taking them directly, rather than as
/// roots of eigenvalues, keeps twice the digits of the small ones. The factorisation ends where the largest variance that is
/// left is below d · ε times the largest of all, which is rounding noise.
///
/// The same input gives the same bits on the same processor model, whatever the number of threads. The result is never
/// negative.
///
/// # Errors
/// If the widths differ, a covariance has not d² values, a value is not finite, a variance is negative beyond rounding, or
/// the decomposition does not converge.
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
    let mut factors = [Ok(Mat::new()), Ok(Mat::new())];
    for_each(factors.iter_mut().zip([a, b]).collect(), |(factor, statistics)| *factor = square_root_factor(statistics));
    let [left, right] = factors;
    let cross: f64 = singular_values(product(&left?, &right?))?.iter().sum();
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
    let variances = || statistics.covariance.iter().step_by(width + 1);
    let noise = noise(variances().copied().fold(0.0, f64::max), width);
    match variances().position(|variance| *variance < -noise) {
        None => Ok(()),
        Some(row) => {
            let variance = statistics.covariance[row * (width + 1)];
            Err(MetricsError::NegativeVariance { row, variance })
        }
    }
}

/// Refuses a mean and a covariance that are of no features, such as a damaged file's.
///
/// Covariances that other programs summed up or stored in `f32` are somewhat off: unsymmetric by 1e-5 of the largest variance, and
/// with eigenvalues down to -1e-6 of the sum of variances, they pass.
///
/// # Errors
/// As of [`frechet_distance`]; [`MetricsError::NoCovariance`] if the numbers' squares are beyond an `f64`, the matrix is not symmetric,
/// or not positive semidefinite.
pub fn check_gaussian(statistics: &GaussianStatistics) -> Result<()> {
    const UNSYMMETRIC: f64 = 1e-5;
    const INDEFINITE: f64 = 1e-6;
    check_statistics(statistics)?;
    let width = statistics.width();
    let squares: f64 = statistics.mean.iter().map(|value| value * value).sum();
    let variances = trace(statistics);
    if !squares.is_finite() || !(variances * variances).is_finite() {
        return Err(MetricsError::NoCovariance("mean and covariance are too large to be of features".to_owned()));
    }
    let at = |row: usize, column: usize| statistics.covariance[row * width + column];
    let largest = (0..width).map(|row| at(row, row)).fold(0.0, f64::max);
    let mut pairs = (0..width).flat_map(|row| (0..row).map(move |column| (row, column)));
    let unlike = |(row, column): &(usize, usize)| (at(*row, *column) - at(*column, *row)).abs() > UNSYMMETRIC * largest;
    if let Some((row, column)) = pairs.find(unlike) {
        let (below, above) = (at(row, column), at(column, row));
        let detail =
            format!("it is not symmetric: {below} in row {row}, column {column}, and {above} in its mirror image");
        return Err(MetricsError::NoCovariance(detail));
    }
    // The factorisation goes through to the end exactly if no eigenvalue is below what is added.
    let shift = INDEFINITE * variances;
    let mut shifted =
        Mat::from_fn(width, width, |row, column| at(row, column) + if row == column { shift } else { 0.0 });
    let is_zero = statistics.covariance.iter().all(|value| *value == 0.0);
    match is_zero || factor_in_place(&mut shifted).is_some_and(|(rank, _)| rank == width) {
        true => Ok(()),
        false => Err(MetricsError::NoCovariance(
            "it is not positive semidefinite: some combination of features has a negative variance".to_owned(),
        )),
    }
}

/// What counts as zero beside a largest variance.
fn noise(largest: f64, width: usize) -> f64 {
    largest * f64::EPSILON * width as f64
}

/// L of shape `[d, rank]` with `covariance = L · Lᵀ`.
fn square_root_factor(statistics: &GaussianStatistics) -> Result<Mat<f64>> {
    let width = statistics.width();
    // A copy into faer's own aligned storage: vector loops over it start the same way whatever the caller's alignment.
    let mut matrix = Mat::from_fn(width, width, |r, c| {
        let value = statistics.covariance[r * width + c];
        if r == c { value.max(0.0) } else { value }
    });
    // What rounding leaves of equal features has no positive pivot.
    let Some((rank, places)) = factor_in_place(&mut matrix) else { return factor_by_eigenvalues(statistics) };
    let lower = |row: usize, column: usize| if column <= row { matrix[(row, column)] } else { 0.0 };
    Ok(Mat::from_fn(width, rank, |row, column| lower(places[row], column)))
}

/// Cholesky's factorisation with pivots in place of a matrix: its rank, and the row of the factor that each row has; none if there is
/// no positive pivot.
fn factor_in_place(matrix: &mut Mat<f64>) -> Option<(usize, Vec<usize>)> {
    let width = matrix.nrows();
    let (mut order, mut places) = (vec![0usize; width], vec![0usize; width]);
    let params: Spec<PivLltParams, f64> = Default::default();
    let scratch = cholesky_in_place_scratch::<usize, f64>(width, Par::Seq, params);
    let factored = cholesky_in_place(
        matrix.as_mut(),
        &mut order,
        &mut places,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        params,
    );
    let rank = factored.ok()?.0.rank;
    Some((rank, places))
}

/// The same by `Σ = U Λ Uᵀ`, of any symmetric matrix: eigenvalues that are noise, of either sign, count as zero.
fn factor_by_eigenvalues(statistics: &GaussianStatistics) -> Result<Mat<f64>> {
    let width = statistics.width();
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
    let least = noise(values.iter().copied().fold(0.0, f64::max), width);
    let kept: Vec<usize> = (0..width).filter(|&index| values[index] > least).collect();
    Ok(Mat::from_fn(width, kept.len(), |row, column| vectors[(row, kept[column])] * values[kept[column]].sqrt()))
}

/// `leftᵀ · right`.
fn product(left: &Mat<f64>, right: &Mat<f64>) -> Mat<f64> {
    let mut product = Mat::<f64>::zeros(left.ncols(), right.ncols());
    let (mut tasks, mut rest) = (Vec::new(), product.as_mut());
    for first in (0..right.ncols()).step_by(COLUMNS) {
        let columns = COLUMNS.min(right.ncols() - first);
        let (now, later) = rest.split_at_col_mut(columns);
        tasks.push((now, right.subcols(first, columns)));
        rest = later;
    }
    for_each(tasks, |(product, right)| matmul(product, Accum::Replace, left.transpose(), right, 1.0, Par::Seq));
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::features;

    #[test]
    fn equal_sets_are_at_distance_zero_even_when_singular() {
        for rows in [2, 20, 500] {
            let set = GaussianStatistics::from_features(&features(rows, 64, 1.0, 3), 64).unwrap();
            let distance = frechet_distance(&set, &set).unwrap();
            assert!((0.0..1e-12).contains(&distance), "{rows} rows: {distance}");
        }
    }

    #[test]
    fn equal_rows_are_a_point() {
        let row: Vec<f32> = (0..64).map(|i| 0.1 + (i as f32 * 0.37).sin()).collect();
        let copies = |count: usize| GaussianStatistics::from_features(&row.repeat(count), 64).unwrap();
        let spread = GaussianStatistics::from_features(&features(100, 64, 1.0, 8), 64).unwrap();
        for count in [2, 3, 5, 130] {
            let distance = frechet_distance(&copies(count), &copies(2)).unwrap();
            assert!((0.0..1e-12).contains(&distance), "{count} copies: {distance}");
            let far = frechet_distance(&copies(count), &spread).unwrap();
            let means: f64 = copies(count).mean.iter().zip(&spread.mean).map(|(a, b)| (a - b).powi(2)).sum();
            assert!((far - means - trace(&spread)).abs() < 1e-6 * far, "{count} copies: {far}");
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
    fn threads_do_not_change_a_bit() {
        let a = GaussianStatistics::from_features(&features(700, 300, 0.0, 5), 300).unwrap();
        let b = GaussianStatistics::from_features(&features(100, 300, 0.1, 6), 300).unwrap();
        let before = calotype_kernels::threads();
        let distances = [1, 2, 3, 8].map(|threads| {
            calotype_kernels::set_threads(threads);
            let again = GaussianStatistics::from_features(&features(700, 300, 0.0, 5), 300).unwrap();
            assert_eq!(again, a, "{threads} threads");
            frechet_distance(&a, &b).unwrap().to_bits()
        });
        calotype_kernels::set_threads(before);
        assert!(distances.iter().all(|bits| *bits == distances[0]), "{distances:?}");
    }

    #[test]
    fn what_is_no_covariance_is_told() {
        let gaussian = |mean: &[f64], covariance: &[f64]| GaussianStatistics {
            mean: mean.to_vec(),
            covariance: covariance.to_vec(),
            count: 0,
        };
        for rows in [2, 20, 500] {
            let set = GaussianStatistics::from_features(&features(rows, 64, 1.0, 3), 64).unwrap();
            check_gaussian(&set).unwrap();
            // As somebody stores it in f32.
            let rounded = |values: &[f64]| values.iter().map(|value| f64::from(*value as f32)).collect::<Vec<_>>();
            check_gaussian(&gaussian(&rounded(&set.mean), &rounded(&set.covariance))).unwrap();
        }
        for good in [&[0.0; 4], &[1.0, 1.0, 1.0, 1.0], &[4.0, 0.0, 0.0, 0.0]] {
            check_gaussian(&gaussian(&[1.0, 2.0], good)).unwrap();
        }
        check_gaussian(&gaussian(&[], &[])).unwrap();
        for (mean, covariance, expected) in [
            (&[1.0, 2.0], &[1.0, 0.5, 0.25, 1.0][..], "not symmetric: 0.25 in row 1, column 0, and 0.5"),
            (&[1.0, 2.0], &[1.0, 2.0, 2.0, 1.0], "not positive semidefinite"),
            (&[1.0, 2.0], &[1.0, -1.1, -1.1, 1.0], "not positive semidefinite"),
            (&[1e300, 2.0], &[1.0, 0.0, 0.0, 1.0], "too large"),
            (&[1.0, 2.0], &[1e300, 0.0, 0.0, 1.0], "too large"),
            (&[1.0, f64::NAN], &[1.0, 0.0, 0.0, 1.0], "mean: row 0, column 1 is NaN"),
            (&[1.0, 2.0], &[1.0, 0.0, 0.0, -1.0], "row 1 has the variance -1"),
            (&[1.0, 2.0], &[1.0, 0.0, 0.0], "covariance"),
        ] {
            let error = check_gaussian(&gaussian(mean, covariance)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let a = GaussianStatistics::from_features(&features(10, 3, 0.0, 7), 3).unwrap();
        let b = GaussianStatistics::from_features(&features(6, 5, 0.0, 7), 5).unwrap();
        let mismatch = frechet_distance(&a, &b);
        assert!(matches!(mismatch, Err(MetricsError::WidthMismatch { left: 3, right: 5 })));

        let mut bad = a.clone();
        bad.covariance[4] = -0.25;
        let error = frechet_distance(&a, &bad).unwrap_err().to_string();
        assert!(error.contains("row 1") && error.contains("-0.25"), "{error}");
        bad.covariance[4] = f64::NAN;
        let error = frechet_distance(&bad, &a).unwrap_err().to_string();
        assert!(error.contains("covariance: row 1, column 1 is NaN"), "{error}");
        bad.covariance.pop();
        assert!(matches!(frechet_distance(&bad, &a), Err(MetricsError::Length { expected: 9, found: 8, .. })));
        // Rounding may leave a variance below zero in sums that others made.
        let mut rounded = a.clone();
        for index in [1, 3, 4, 5, 7] {
            rounded.covariance[index] = 0.0;
        }
        let exact = frechet_distance(&a, &rounded).unwrap();
        rounded.covariance[4] = -1e-20;
        assert!((frechet_distance(&a, &rounded).unwrap() - exact).abs() < 1e-12);
    }
}
