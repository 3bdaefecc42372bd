//! The largest micro-batch that a budget of memory allows, by measuring.

use crate::BenchError;
use serde::Serialize;

/// The memory of one size that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MicrobatchProbe {
    /// Images that went through the networks at once.
    pub microbatch: usize,
    /// Largest resident memory of the process by then, in GiB.
    pub peak_rss_gib: f64,
}

/// Tries the divisors of `batch` in rising order, and gives the largest whose measured memory is within `budget`, with all
/// that were tried. One whose memory would be over the budget in a straight line through the measurements before it is not
/// tried. `fixed` is what the process holds whatever the size. All in GiB.
///
/// # Errors
/// [`BenchError::Setting`] if not even one image at a time is within the budget; those of `measure`.
pub(crate) fn largest(
    batch: usize,
    budget: f64,
    fixed: f64,
    mut measure: impl FnMut(usize) -> Result<f64, BenchError>,
) -> Result<(usize, Vec<MicrobatchProbe>), BenchError> {
    let mut probes: Vec<MicrobatchProbe> = Vec::new();
    for microbatch in (1..=batch).filter(|size| batch.is_multiple_of(*size)) {
        if expected(&probes, fixed, microbatch).is_some_and(|peak| peak > budget) {
            break;
        }
        let peak_rss_gib = measure(microbatch)?;
        probes.push(MicrobatchProbe { microbatch, peak_rss_gib });
        if peak_rss_gib > budget {
            break;
        }
    }
    match probes.iter().rfind(|probe| probe.peak_rss_gib <= budget) {
        Some(best) => Ok((best.microbatch, probes)),
        None => {
            let needed = probes.first().map_or(fixed, |probe| probe.peak_rss_gib);
            let budget = if budget < 0.01 { format!("{budget:e}") } else { format!("{budget:.2}") };
            let problem = format!(
                "{budget} GiB are not enough: one image at a time takes {needed:.2} GiB; allow more, or take a smaller \
                 --family or --image-size"
            );
            Err(BenchError::Setting { flag: "--memory-budget", problem })
        }
    }
}

/// The memory of a size in a straight line through the last two measurements, or through one and what is fixed.
fn expected(probes: &[MicrobatchProbe], fixed: f64, microbatch: usize) -> Option<f64> {
    let last = probes.last()?;
    let (size, peak) = match probes.len() {
        1 => (0, fixed.min(last.peak_rss_gib)),
        count => (probes[count - 2].microbatch, probes[count - 2].peak_rss_gib),
    };
    let slope = (last.peak_rss_gib - peak) / (last.microbatch - size) as f64;
    Some(last.peak_rss_gib + slope * (microbatch - last.microbatch) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The choice where a process holds 2 GiB and half a GiB for each image, and the sizes that were tried.
    fn choose(batch: usize, budget: f64) -> (usize, Vec<usize>) {
        let (best, probes) = largest(batch, budget, 2.0, |size| Ok(2.0 + 0.5 * size as f64)).unwrap();
        (best, probes.iter().map(|probe| probe.microbatch).collect())
    }

    #[test]
    fn the_largest_within_the_budget_is_found_without_going_over_it() {
        assert_eq!(choose(16, 6.0), (8, vec![1, 2, 4, 8]));
        assert_eq!(choose(16, 5.9), (4, vec![1, 2, 4]));
        assert_eq!(choose(12, 8.0), (12, vec![1, 2, 3, 4, 6, 12]));
        assert_eq!(choose(1, 2.5), (1, vec![1]));
        assert_eq!(choose(7, 3.0), (1, vec![1]));
    }

    #[test]
    fn a_budget_that_is_too_small_is_told_what_is_needed() {
        let error = largest(8, 2.0, 2.0, |_| Ok(2.5)).unwrap_err();
        assert!(error.is_usage());
        assert!(error.to_string().starts_with("--memory-budget: 2.00 GiB are not enough"), "{error}");
        assert!(error.to_string().contains("takes 2.50 GiB"), "{error}");
        let error = largest(8, 0.0001, 2.0, |_| Ok(2.5)).unwrap_err().to_string();
        assert!(error.starts_with("--memory-budget: 1e-4 GiB are not enough"), "{error}");
    }

    /// More than a straight line says: the measurement decides.
    #[test]
    fn what_was_measured_above_the_budget_is_not_taken() {
        let (best, probes) = largest(8, 4.0, 1.0, |size| Ok([0.0, 1.2, 1.4, 0.0, 9.0][size])).unwrap();
        assert_eq!((best, probes.len()), (2, 3));
    }
}
