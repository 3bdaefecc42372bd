//! The errors of this crate, each with the row, image or path that it concerns.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, MetricsError>;

/// An error of this crate. Indices count from zero.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A slice does not hold the number of values that its shape asks for.
    #[error("{what}: expected {expected} values, found {found}")]
    Length {
        /// Name of the slice.
        what: &'static str,
        /// The number of values that the shape asks for.
        expected: usize,
        /// The number of values in the slice.
        found: usize,
    },
    /// A slice does not divide into whole rows.
    #[error("{what}: {found} values do not divide into rows of {width}")]
    PartialRow {
        /// Name of the slice.
        what: &'static str,
        /// The width of a row.
        width: usize,
        /// The number of values in the slice.
        found: usize,
    },
    /// A size that must be at least one is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Too few classes to tell apart.
    #[error("a classifier needs at least 2 classes, found {0}")]
    TooFewClasses(usize),
    /// A class without examples.
    #[error("no row is of class {0}; leave it out, or give it rows")]
    EmptyClass(usize),
    /// A value is infinite or not a number.
    #[error("{what}: row {row}, column {column} is {value}, not a finite number")]
    NotFinite {
        /// Name of the slice.
        what: &'static str,
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// The offending value.
        value: f64,
    },
    /// A feature vector is all zeros, so that its direction, and with it its cosine, is undefined.
    #[error("{what}: row {row} is all zeros and has no direction")]
    ZeroVector {
        /// Name of the slice.
        what: &'static str,
        /// The row.
        row: usize,
    },
    /// Too few rows for an unbiased covariance.
    #[error("a covariance needs at least 2 rows of features, found {0}")]
    TooFewRows(usize),
    /// Two sets of statistics of features of different widths.
    #[error("cannot compare features of width {left} with features of width {right}")]
    WidthMismatch {
        /// Feature width of the first statistics.
        left: usize,
        /// Feature width of the second statistics.
        right: usize,
    },
    /// Rows that two accumulators have both seen.
    #[error("rows {first} to {last} were added before; give each slice its own rows, and merge it once")]
    RowsTwice {
        /// Number of the first such row.
        first: u64,
        /// Number of the last one.
        last: u64,
    },
    /// Bytes that are no saved state of an accumulator.
    #[error("byte {at}: {detail}")]
    State {
        /// Where they are wrong.
        at: usize,
        /// What is wrong.
        detail: String,
    },
    /// A negative number on the diagonal of a covariance.
    #[error("covariance: row {row} has the variance {variance}, which cannot be negative")]
    NegativeVariance {
        /// The row.
        row: usize,
        /// The number.
        variance: f64,
    },
    /// A matrix that is no covariance.
    #[error("covariance: {0}")]
    NoCovariance(String),
    /// Fewer rows than a figure needs.
    #[error("{what}: {found} rows, but {needed} are needed: {why}")]
    FewRows {
        /// Name of the slice.
        what: &'static str,
        /// How many rows there are.
        found: usize,
        /// How many are needed at least.
        needed: usize,
        /// For what.
        why: &'static str,
    },
    /// A setting that is no positive finite number.
    #[error("{what} is {value}; it must be a finite number above 0")]
    NotPositive {
        /// Name of the setting.
        what: &'static str,
        /// The value found.
        value: f64,
    },
    /// A picture that no caption belongs to.
    #[error("{what}: no text belongs to row {row}")]
    NoText {
        /// Name of the slice.
        what: &'static str,
        /// The row.
        row: usize,
    },
    /// A level of confidence that is none.
    #[error("the confidence is {0}; it must lie between 0 and 1")]
    Confidence(f64),
    /// An eigenvalue or singular value iteration did not converge.
    #[error("{0} did not converge on a {1} x {1} matrix")]
    NoConvergence(&'static str, usize),
    /// A label or index points outside the candidates.
    #[error("{what}: row {row} names candidate {index}, but there are {candidates}")]
    IndexOutOfRange {
        /// Name of the slice.
        what: &'static str,
        /// The row.
        row: usize,
        /// The index found.
        index: usize,
        /// The number of candidates.
        candidates: usize,
    },
    /// An image does not have side × side × 3 bytes.
    #[error("image {index}: expected {expected} bytes, found {found}")]
    ImageSize {
        /// Number of the image.
        index: usize,
        /// side × side × 3.
        expected: usize,
        /// The bytes found.
        found: usize,
    },
    /// A contact sheet would be larger than a PNG viewer can be expected to open.
    #[error("a contact sheet of {width} x {height} pixels is too large (at most {limit} a side)")]
    SheetTooLarge {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// The largest side, in pixels.
        limit: usize,
    },
    /// The PNG encoder failed.
    #[error("cannot encode the PNG: {0}")]
    Png(#[from] image::ImageError),
    /// A file could not be written; an older file at the path is unharmed.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Refuses a slice that does not hold `rows` × `width` finite values.
pub(crate) fn check_features(what: &'static str, features: &[f32], rows: usize, width: usize) -> Result<()> {
    let expected = rows * width;
    if features.len() != expected {
        return Err(MetricsError::Length { what, expected, found: features.len() });
    }
    check_finite(what, features, width, 0)
}

/// Refuses infinities and NaN; `first_row` is the row number of the slice's first row.
pub(crate) fn check_finite(what: &'static str, features: &[f32], width: usize, first_row: usize) -> Result<()> {
    match features.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(MetricsError::NotFinite {
            what,
            row: first_row + at / width,
            column: at % width,
            value: f64::from(features[at]),
        }),
    }
}
