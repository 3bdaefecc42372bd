//! Confidence intervals by resampling (Efron 1979; the percentile interval of Efron 1981).

use calotype_core::{Purpose, Stream};

use crate::error::{MetricsError, Result};

/// How resamples are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// Number of resamples.
    pub resamples: usize,
    /// Share of the resamples' figures that lies in the interval.
    pub confidence: f64,
    /// Seed.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 1,000 resamples and 95 %.
    fn default() -> Self {
        Self { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

/// Where a figure lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The interval of the mean of `values`, one for each sample.
///
/// # Errors
/// If there are no values or resamples, a value is not finite, or the confidence does not lie between 0 and 1.
pub fn mean_interval(values: &[f64], bootstrap: &Bootstrap) -> Result<Interval> {
    if let Some(row) = values.iter().position(|value| !value.is_finite()) {
        return Err(MetricsError::NotFinite { what: "values", row, column: 0, value: values[row] });
    }
    interval(values.len(), bootstrap, |rows| {
        rows.iter().map(|&row| values[row as usize]).sum::<f64>() / rows.len() as f64
    })
}

/// The interval of a figure of `count` samples. `figure` is given the numbers of the samples of a resample, as many as
/// there are, with repetitions.
///
/// Resample r is drawn by the stream (seed, evaluation, r), so that it is the same on any machine. Ends are interpolated
/// linearly between the sorted figures, as `numpy.percentile` does.
///
/// # Errors
/// If there are no samples or resamples, there are 2^32 samples or more, or the confidence does not lie between 0 and 1.
pub fn interval(count: usize, bootstrap: &Bootstrap, mut figure: impl FnMut(&[u32]) -> f64) -> Result<Interval> {
    let confidence = bootstrap.confidence;
    if !(confidence > 0.0 && confidence < 1.0) {
        return Err(MetricsError::Confidence(confidence));
    }
    if bootstrap.resamples == 0 {
        return Err(MetricsError::Zero("resamples"));
    }
    let Some(last) = u32::try_from(count).ok().and_then(|count| count.checked_sub(1)) else {
        return Err(MetricsError::Zero("number of samples"));
    };
    let mut rows = vec![0; count];
    let mut figures: Vec<f64> = (0..bootstrap.resamples as u64)
        .map(|resample| {
            let mut stream = Stream::new(bootstrap.seed, Purpose::Evaluation, resample);
            rows.iter_mut().for_each(|row| *row = stream.below(u64::from(last) + 1) as u32);
            figure(&rows)
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    let outside = (1.0 - confidence) / 2.0;
    Ok(Interval { low: quantile(&figures, outside), high: quantile(&figures, 1.0 - outside) })
}

/// The value below which a share of sorted values lies.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_as_numpy_percentile() {
        // numpy.percentile([1, 2, 4, 8], [0, 2.5, 50, 97.5, 100]) = 1, 1.075, 3, 7.7, 8.
        let values = [1.0, 2.0, 4.0, 8.0];
        for (share, expected) in [(0.0, 1.0), (0.025, 1.075), (0.5, 3.0), (0.975, 7.7), (1.0, 8.0)] {
            assert!((quantile(&values, share) - expected).abs() < 1e-12, "{share}");
        }
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_theory() {
        // Uniform values: the mean of n lies within 1.96 · sqrt(1/12 / n) in 95 % of the cases.
        let mut stream = Stream::new(3, Purpose::Synthetic, 0);
        let values: Vec<f64> = (0..2000).map(|_| stream.uniform_f64()).collect();
        let found = mean_interval(&values, &Bootstrap { resamples: 4000, ..Default::default() }).unwrap();
        let expected = 2.0 * 1.96 * (1.0f64 / 12.0 / 2000.0).sqrt();
        let width = found.high - found.low;
        assert!((width / expected - 1.0).abs() < 0.08, "{width} {expected}");
        let mean = values.iter().sum::<f64>() / 2000.0;
        assert!(found.low < mean && mean < found.high);
        let other = Bootstrap { resamples: 4000, seed: 1, ..Default::default() };
        assert_ne!(mean_interval(&values, &other).unwrap(), found);
    }

    #[test]
    fn one_sample_has_no_width() {
        let found = mean_interval(&[0.25], &Bootstrap::default()).unwrap();
        assert_eq!(found, Interval { low: 0.25, high: 0.25 });
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = |values: &[f64], bootstrap| mean_interval(values, &bootstrap).unwrap_err().to_string();
        let base = Bootstrap::default();
        assert!(text(&[], base).contains("number of samples"));
        assert!(text(&[1.0, f64::NAN], base).contains("row 1"));
        assert!(text(&[1.0], Bootstrap { resamples: 0, ..base }).contains("resamples"));
        for confidence in [0.0, 1.0, f64::NAN, 95.0] {
            assert!(text(&[1.0], Bootstrap { confidence, ..base }).contains("confidence"));
        }
    }
}
