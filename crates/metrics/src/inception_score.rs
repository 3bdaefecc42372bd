//! Inception Score (Salimans et al. 2016, arXiv:1606.03498): how sure a classifier is of each picture, and how unlike
//! its verdicts are. It needs no reference.

use calotype_core::{NumpyRandomState, TorchCpuGenerator};

use crate::error::{MetricsError, Result};
use crate::pairs::Rows;
use crate::spread::Spread;

/// In which order pictures are cut into splits, and how, which changes the score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreOrder {
    /// As they come; splits as torch-fidelity's with `samples_shuffle=False`.
    AsGiven,
    /// torch-fidelity 0.4.0: `numpy.random.RandomState(seed).permutation`; its own seed is 2020. Split i of s begins with
    /// row i · n / s, rounded down.
    TorchFidelity {
        /// The seed.
        seed: u32,
    },
    /// torchmetrics 1.9.0 after `torch.manual_seed(seed)`: `torch.randperm` and `Tensor.chunk`, whose pieces have n / s
    /// rows, rounded up, and may be fewer than s; the deviation is that of a sample.
    Torchmetrics {
        /// The seed.
        seed: u64,
    },
}

/// `exp(mean KL(p(y|x) ‖ p(y)))`, mean and deviation over the splits.
///
/// `logits` has the shape `[n, classes]`. Probabilities are their softmax, in `f64`; a class whose probability is zero
/// adds nothing, where the programs' `0 · log 0` would be NaN.
///
/// # Errors
/// If `classes` or `splits` is zero, there are fewer rows than splits, the slice is not whole rows, or a value is not
/// finite.
pub fn inception_score(logits: &[f32], classes: usize, splits: usize, order: ScoreOrder) -> Result<Spread> {
    let rows = Rows::new("logits", logits, classes)?;
    let count = rows.count();
    if splits == 0 {
        return Err(MetricsError::Zero("splits"));
    }
    if count < splits {
        let why = "at least one for each split of the Inception Score";
        return Err(MetricsError::FewRows { what: "logits", found: count, needed: splits, why });
    }
    let order_of_rows = match order {
        ScoreOrder::AsGiven => (0..count as u32).collect(),
        ScoreOrder::TorchFidelity { seed } => NumpyRandomState::new(seed).permutation(count),
        ScoreOrder::Torchmetrics { seed } => TorchCpuGenerator::new(seed).permutation(count),
    };
    let pieces: Vec<&[u32]> = match order {
        ScoreOrder::Torchmetrics { .. } => order_of_rows.chunks(count.div_ceil(splits)).collect(),
        _ => (0..splits).map(|i| &order_of_rows[i * count / splits..(i + 1) * count / splits]).collect(),
    };
    let scores: Vec<f64> = pieces.into_iter().map(|piece| score(rows, piece)).collect();
    Ok(match order {
        ScoreOrder::Torchmetrics { .. } => Spread::of_sample(&scores),
        _ => Spread::of_population(&scores),
    })
}

/// The score of some rows. `mean Σ p (log p - log q)` with q = mean p is `mean Σ p log p - Σ q log q`.
fn score(rows: Rows<'_>, chosen: &[u32]) -> f64 {
    let mut mean = vec![0.0; rows.row(0).len()];
    let mut sureness = 0.0;
    for &row in chosen {
        let logits = rows.row(row as usize);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = || logits.iter().map(|logit| f64::from(*logit) - f64::from(largest));
        let total: f64 = shifted().map(f64::exp).sum();
        for (sum, shifted) in mean.iter_mut().zip(shifted()) {
            let probability = shifted.exp() / total;
            *sum += probability;
            sureness += probability * (shifted - total.ln());
        }
    }
    let count = chosen.len() as f64;
    let entropy = |sum: &f64| if *sum > 0.0 { sum / count * (sum / count).ln() } else { 0.0 };
    (sureness / count - mean.iter().map(entropy).sum::<f64>()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sure_and_different_scores_the_classes_and_alike_scores_one() {
        let sure: Vec<f32> =
            (0..40).flat_map(|row| (0..4).map(move |class| if row % 4 == class { 900.0 } else { 0.0 })).collect();
        for order in
            [ScoreOrder::AsGiven, ScoreOrder::TorchFidelity { seed: 2020 }, ScoreOrder::Torchmetrics { seed: 0 }]
        {
            let one = inception_score(&sure, 4, 1, order).unwrap();
            assert!((one.mean - 4.0).abs() < 1e-12 && one.deviation == 0.0, "{one:?}");
            let alike = inception_score(&[0.5; 40], 4, 5, order).unwrap();
            assert!((alike.mean - 1.0).abs() < 1e-12, "{alike:?}");
        }
    }

    #[test]
    fn chunks_may_be_fewer_than_asked_for() {
        // 9 rows in 6 pieces: of 2 rows, so 5 of them.
        let logits: Vec<f32> = (0..27).map(|index| (index % 5) as f32).collect();
        assert!(inception_score(&logits, 3, 6, ScoreOrder::Torchmetrics { seed: 1 }).is_ok());
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = |result: Result<Spread>| result.unwrap_err().to_string();
        assert!(text(inception_score(&[1.0; 12], 4, 10, ScoreOrder::AsGiven)).contains("logits: 3 rows, but 10"));
        assert!(text(inception_score(&[1.0; 12], 4, 0, ScoreOrder::AsGiven)).contains("splits must be"));
        assert!(text(inception_score(&[1.0; 13], 4, 1, ScoreOrder::AsGiven)).contains("13 values"));
        assert!(text(inception_score(&[1.0, f32::NAN], 1, 1, ScoreOrder::AsGiven)).contains("row 1, column 0 is NaN"));
    }
}
