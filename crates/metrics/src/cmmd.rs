//! CMMD (Jayasumana, Ramalingam, Veit, Glasner, Chakrabarti, Kumar 2024, arXiv:2401.09603): the squared maximum mean
//! discrepancy of CLIP's image features with a Gaussian kernel.

use crate::error::{MetricsError, Result};
use crate::pairs::{Rows, sum_over_other_pairs, sum_over_pairs};

/// How the discrepancy is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CmmdSettings {
    /// Width of the Gaussian.
    pub sigma: f64,
    /// What the result is multiplied by, for numbers that are easy to read.
    pub scale: f64,
}

impl Default for CmmdSettings {
    /// The paper's and its program's: 10 and 1,000.
    fn default() -> Self {
        Self { sigma: 10.0, scale: 1000.0 }
    }
}

/// `scale · (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))` with `k = exp(-|x - y|² / 2σ²)`.
///
/// The means are over all pairs, those of a row with itself included, as the authors' program takes them (`distance.py`
/// of google-research/cmmd): a biased estimate that is never below zero, and zero for equal sets. `generated` and
/// `reference` have the shapes `[n, width]` and `[m, width]`. Rows are taken as they are; the program normalises CLIP's
/// features to length 1 before, see [`normalize_rows`](crate::normalize_rows). Sums are `f64`; the program's are `f32`,
/// whose rounding is some 1e-4 of the result's unit.
///
/// # Errors
/// If a set has no rows, a slice is not whole rows, a value is not finite, or sigma or scale is not above zero.
pub fn clip_mmd(generated: &[f32], reference: &[f32], width: usize, settings: &CmmdSettings) -> Result<f64> {
    let x = Rows::new("generated features", generated, width)?;
    let y = Rows::new("reference features", reference, width)?;
    for (what, value) in [("sigma", settings.sigma), ("scale", settings.scale)] {
        if !(value.is_finite() && value > 0.0) {
            return Err(MetricsError::NotPositive { what, value });
        }
    }
    for (what, found) in [("generated features", x.count()), ("reference features", y.count())] {
        if found == 0 {
            return Err(MetricsError::FewRows { what, found, needed: 1, why: "a mean over pairs" });
        }
    }
    let gamma = 1.0 / (2.0 * settings.sigma * settings.sigma);
    let kernel = |product: f64, left: f64, right: f64| (-gamma * (left + right - 2.0 * product).max(0.0)).exp();
    let (n, m) = (x.count() as f64, y.count() as f64);
    // A row is at no distance from itself.
    let own = (sum_over_other_pairs(x, kernel) + n) / (n * n) + (sum_over_other_pairs(y, kernel) + m) / (m * m);
    let cross = sum_over_pairs(x, y, kernel) / (n * m);
    Ok((settings.scale * (own - 2.0 * cross)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::features;

    #[test]
    fn equal_sets_are_at_zero_and_far_ones_at_twice_the_mean() {
        let x = features(300, 8, 0.0, 1);
        let settings = CmmdSettings::default();
        assert!(clip_mmd(&x, &x, 8, &settings).unwrap() < 1e-9);
        // One row each, so far apart that the kernel vanishes: 1 + 1 - 0.
        let far = clip_mmd(&[0.0, 0.0], &[1000.0, 0.0], 2, &settings).unwrap();
        assert!((far - 2000.0).abs() < 1e-9, "{far}");
        // |x - y|² = 200 = 2σ².
        let near = clip_mmd(&[10.0, 0.0], &[0.0, 10.0], 2, &settings).unwrap();
        assert!((near - 2000.0 * (1.0 - (-1f64).exp())).abs() < 1e-9, "{near}");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let settings = CmmdSettings::default();
        let text = |result: Result<f64>| result.unwrap_err().to_string();
        assert!(text(clip_mmd(&[], &[1.0; 2], 2, &settings)).contains("generated features: 0 rows"));
        assert!(text(clip_mmd(&[1.0; 3], &[1.0; 2], 2, &settings)).contains("3 values do not divide"));
        assert!(text(clip_mmd(&[1.0; 2], &[1.0; 2], 0, &settings)).contains("feature width"));
        let none = CmmdSettings { sigma: 0.0, ..settings };
        assert!(text(clip_mmd(&[1.0; 2], &[1.0; 2], 2, &none)).contains("sigma is 0"));
        assert!(
            text(clip_mmd(&[1.0; 2], &[1.0, f32::NAN], 2, &settings)).contains("reference features: row 0, column 1")
        );
    }
}
