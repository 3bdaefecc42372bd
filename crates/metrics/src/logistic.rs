//! Logistic regression: the linear probe of frozen features (Radford et al. 2021, arXiv:2103.00020, appendix A.3).

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use crate::error::{MetricsError, Result, check_features};
use crate::lbfgs::{Lbfgs, Minimum};

/// Rows whose logits are in memory at once. A constant, because it decides the order of the sums.
const BLOCK_ROWS: usize = 256;

/// How a logistic regression is fitted. Radford et al. take L-BFGS, at most 1,000 iterations and a `c` that does best on a
/// validation set; the example in their code has 0.316, which is the default here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogisticOptions {
    /// Inverse strength of the regularisation, above 0: scikit-learn's `C`.
    pub c: f64,
    /// Most steps of L-BFGS.
    pub max_iterations: usize,
    /// The largest component of the mean loss's gradient at which the fit ends.
    pub tolerance: f64,
}

impl Default for LogisticOptions {
    fn default() -> Self {
        Self { c: 0.316, max_iterations: 1000, tolerance: 1e-6 }
    }
}

/// A linear classifier that was fitted to features.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticRegression {
    /// Width d of the features.
    pub width: usize,
    /// Weights and bias of each class, `[classes, d + 1]`.
    pub coefficients: Vec<f64>,
    /// The regularised loss that the fit minimises.
    pub loss: f64,
    /// Steps of L-BFGS.
    pub iterations: usize,
    /// False if the steps were used up, or rounding ended them, before the gradient was small enough.
    pub converged: bool,
}

impl LogisticRegression {
    /// Fits a classifier to `features`, shape `[n, width]`, of the classes `labels`, `[n]`: the minimum of
    ///
    /// `Σᵢ -ln softmax(W xᵢ + b)[labelᵢ] / n + |W|² / (2 c n)`,
    ///
    /// which is scikit-learn's `LogisticRegression(C=c, solver="lbfgs")` (1.9). Of two classes it fits one row of weights
    /// there, and so with half the penalty; here both rows get twice the penalty, which gives the same classifier. Starts at
    /// zero, draws no random numbers and runs in one thread: the same input gives the same bits on the same processor model.
    ///
    /// # Errors
    /// If there are fewer than two classes, one has no row, a label is out of range, the lengths do not fit, a value is not
    /// finite (the error names the row), or an option is not positive.
    pub fn fit(
        features: &[f32],
        width: usize,
        labels: &[usize],
        classes: usize,
        options: &LogisticOptions,
    ) -> Result<Self> {
        check(features, width, labels, classes, options)?;
        let mut objective = Objective::new(features, width, labels, classes, options.c);
        let solver = Lbfgs { max_iterations: options.max_iterations, tolerance: options.tolerance };
        let start = vec![0.0; classes * (width + 1)];
        let Minimum { x, value, gradient, iterations } =
            solver.minimise(start, |x, gradient| objective.at(x, gradient));
        Ok(Self { width, coefficients: x, loss: value, iterations, converged: gradient <= options.tolerance })
    }

    /// Logits of `features`, `[n, width]`, as `[n, classes]`.
    ///
    /// # Errors
    /// If the slice is not whole rows of the width that was fitted, or a value is not finite.
    pub fn logits(&self, features: &[f32]) -> Result<Vec<f64>> {
        let width = self.width;
        if !features.len().is_multiple_of(width) {
            return Err(MetricsError::PartialRow { what: "features", width, found: features.len() });
        }
        check_features("features", features, features.len() / width, width)?;
        let weights = weights_of(&self.coefficients, width);
        let mut logits = Vec::with_capacity(features.len() / width * weights.ncols());
        for rows in features.chunks(BLOCK_ROWS * width) {
            let found = product(&block(rows, width), &weights);
            for row in 0..found.nrows() {
                logits.extend((0..found.ncols()).map(|class| found[(row, class)]));
            }
        }
        Ok(logits)
    }
}

fn check(features: &[f32], width: usize, labels: &[usize], classes: usize, options: &LogisticOptions) -> Result<()> {
    if width == 0 {
        return Err(MetricsError::Zero("feature width"));
    }
    if classes < 2 {
        return Err(MetricsError::TooFewClasses(classes));
    }
    for (what, value) in [("c", options.c), ("the tolerance", options.tolerance)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(MetricsError::NotPositive { what, value });
        }
    }
    check_features("features", features, labels.len(), width)?;
    let mut rows = vec![0usize; classes];
    for (row, &label) in labels.iter().enumerate() {
        let (what, index, candidates) = ("labels", label, classes);
        *rows.get_mut(label).ok_or(MetricsError::IndexOutOfRange { what, row, index, candidates })? += 1;
    }
    match rows.iter().position(|&rows| rows == 0) {
        Some(class) => Err(MetricsError::EmptyClass(class)),
        None => Ok(()),
    }
}

/// The regularised mean loss as a function of the coefficients.
struct Objective<'a> {
    features: &'a [f32],
    labels: &'a [usize],
    width: usize,
    classes: usize,
    penalty: f64,
}

impl<'a> Objective<'a> {
    fn new(features: &'a [f32], width: usize, labels: &'a [usize], classes: usize, c: f64) -> Self {
        let rows_of_weights = if classes == 2 { 2.0 } else { 1.0 };
        Self { features, labels, width, classes, penalty: rows_of_weights / (c * labels.len() as f64) }
    }

    /// Its value at `x`, `[classes, width + 1]`, and its gradient.
    fn at(&mut self, x: &[f64], gradient: &mut [f64]) -> f64 {
        let Self { features, labels, width, classes, penalty } = *self;
        let weights = weights_of(x, width);
        let mut slopes = Mat::<f64>::zeros(width + 1, classes);
        let mut loss = 0.0;
        for (rows, labels) in features.chunks(BLOCK_ROWS * width).zip(labels.chunks(BLOCK_ROWS)) {
            let block = block(rows, width);
            let mut logits = product(&block, &weights);
            loss += to_residuals(&mut logits, labels);
            matmul(slopes.as_mut(), Accum::Add, block.as_ref(), logits.as_ref(), 1.0, Par::Seq);
        }
        let n = labels.len() as f64;
        let mut squares = 0.0;
        for (class, (own, slope)) in x.chunks_exact(width + 1).zip(gradient.chunks_exact_mut(width + 1)).enumerate() {
            for (column, slope) in slope.iter_mut().enumerate() {
                // The bias is not regularised.
                let weight = if column < width { own[column] } else { 0.0 };
                squares += weight * weight;
                *slope = slopes[(column, class)] / n + penalty * weight;
            }
        }
        loss / n + 0.5 * penalty * squares
    }
}

/// Replaces the logits of rows by probabilities less the right ones, and returns the rows' losses, summed.
fn to_residuals(logits: &mut Mat<f64>, labels: &[usize]) -> f64 {
    let classes = logits.ncols();
    let mut sum = 0.0;
    for (row, &label) in labels.iter().enumerate() {
        let most = (0..classes).map(|class| logits[(row, class)]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = (0..classes).map(|class| (logits[(row, class)] - most).exp()).sum();
        sum += total.ln() + most - logits[(row, label)];
        for class in 0..classes {
            logits[(row, class)] = (logits[(row, class)] - most).exp() / total;
        }
        logits[(row, label)] -= 1.0;
    }
    sum
}

/// Rows of features as columns, each with a 1 for the bias behind it.
fn block(rows: &[f32], width: usize) -> Mat<f64> {
    Mat::from_fn(width + 1, rows.len() / width, |column, row| match column {
        _ if column == width => 1.0,
        _ => f64::from(rows[row * width + column]),
    })
}

/// Coefficients as columns.
fn weights_of(x: &[f64], width: usize) -> Mat<f64> {
    Mat::from_fn(width + 1, x.len() / (width + 1), |column, class| x[class * (width + 1) + column])
}

/// Logits, `[rows, classes]`.
fn product(block: &Mat<f64>, weights: &Mat<f64>) -> Mat<f64> {
    let mut logits = Mat::zeros(block.ncols(), weights.ncols());
    matmul(logits.as_mut(), Accum::Replace, block.transpose(), weights.as_ref(), 1.0, Par::Seq);
    logits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_apart_is_told_apart() {
        let features: Vec<f32> = (0..600).flat_map(|i| [(i % 3) as f32 * 4.0, (i * 7 % 5) as f32]).collect();
        let labels: Vec<usize> = (0..600).map(|i| i % 3).collect();
        let options = LogisticOptions { c: 10.0, tolerance: 1e-9, ..LogisticOptions::default() };
        let fitted = LogisticRegression::fit(&features, 2, &labels, 3, &options).unwrap();
        assert!(fitted.converged, "{fitted:?}");
        let logits = fitted.logits(&features).unwrap();
        for (row, label) in logits.chunks_exact(3).zip(&labels) {
            assert!((0..3).all(|class| class == *label || row[class] < row[*label]), "{row:?}");
        }
        // What says nothing gets no weight.
        assert!(fitted.coefficients.chunks_exact(3).all(|row| row[1].abs() < 1e-4), "{fitted:?}");
        assert_eq!(LogisticRegression::fit(&features, 2, &labels, 3, &options).unwrap(), fitted);
    }

    #[test]
    fn more_rows_than_a_block_are_one_fit() {
        let rows = 2 * BLOCK_ROWS + 3;
        let features: Vec<f32> = (0..rows).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let labels: Vec<usize> = (0..rows).map(|i| usize::from(i * 37 % 101 + i % 40 > 60)).collect();
        let fitted = LogisticRegression::fit(&features, 1, &labels, 2, &LogisticOptions::default()).unwrap();
        assert!(fitted.converged && fitted.loss < 2f64.ln(), "{fitted:?}");
        // At the minimum, the mean of the probabilities is the share of the class: the bias's part of the gradient is 0.
        let logits = fitted.logits(&features).unwrap();
        let mean = logits.chunks_exact(2).map(|l| 1.0 / (1.0 + (l[0] - l[1]).exp())).sum::<f64>() / rows as f64;
        let share = labels.iter().sum::<usize>() as f64 / rows as f64;
        assert!((mean - share).abs() < 1e-5, "{mean} and {share}");
    }

    #[test]
    fn what_cannot_be_fitted_is_named() {
        let fit = |labels: &[usize], classes: usize, options: LogisticOptions| {
            let features = vec![0.5; 2 * labels.len()];
            LogisticRegression::fit(&features, 2, labels, classes, &options).unwrap_err().to_string()
        };
        let usual = LogisticOptions::default();
        assert!(fit(&[0, 0], 1, usual).contains("at least 2 classes, found 1"));
        assert!(fit(&[0, 2, 0], 3, usual).contains("no row is of class 1"));
        assert!(fit(&[0, 3], 3, usual).contains("row 1 names candidate 3, but there are 3"));
        assert!(
            fit(&[0, 1], 2, LogisticOptions { c: 0.0, ..usual }).contains("c is 0; it must be a finite number above 0")
        );
        assert!(fit(&[0, 1], 2, LogisticOptions { tolerance: f64::NAN, ..usual }).contains("the tolerance is NaN"));
        let short = LogisticRegression::fit(&[0.5; 3], 2, &[0, 1], 2, &usual).unwrap_err().to_string();
        assert!(short.contains("expected 4 values, found 3"), "{short}");
        let nan = LogisticRegression::fit(&[0.5, f32::NAN], 1, &[0, 1], 2, &usual).unwrap_err().to_string();
        assert!(nan.contains("features: row 1, column 0 is NaN"), "{nan}");
    }
}
