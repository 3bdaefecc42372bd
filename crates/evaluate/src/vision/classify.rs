//! What is on a picture: the most probable classes.

use super::accuracy::best_of;
use super::classifier::Classifier;
use crate::Result;
use calotype_data::image::RgbImage;
use serde::Serialize;

/// A class that a picture may be of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guess {
    /// Number of the class.
    pub class: usize,
    /// Its name.
    pub name: String,
    /// Its probability, 0 to 1: the softmax of the logits of all classes.
    pub probability: f64,
}

/// The `top` most probable classes of each picture, best first; all of them if there are fewer.
///
/// # Errors
/// A picture cannot be prepared, or its logits are not finite.
pub fn classify(classifier: &dyn Classifier, images: &[&RgbImage], top: usize) -> Result<Vec<Vec<Guess>>> {
    let names = classifier.names();
    let (classes, top) = (names.len(), top.clamp(1, names.len()));
    let logits = classifier.logits(images)?;
    let best = best_of(&logits, classes, top, classifier.network().key().to_string())?;
    let guesses = logits.chunks_exact(classes).zip(best).map(|(logits, best)| {
        let probabilities = softmax(logits.iter().map(|logit| f64::from(*logit)));
        let guess = |class: &u32| {
            let class = *class as usize;
            Guess { class, name: names[class].clone(), probability: probabilities[class] }
        };
        best.iter().map(guess).collect()
    });
    Ok(guesses.collect())
}

/// Probabilities of finite logits.
pub(super) fn softmax(logits: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let most = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.clone().map(|logit| (logit - most).exp()).sum();
    logits.map(|logit| (logit - most).exp() / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_however_large_the_logits_are() {
        let found = softmax([1000.0, 1001.0, 999.0].into_iter());
        let total: f64 = found.iter().sum();
        assert!((total - 1.0).abs() < 1e-12 && (found[1] / found[0] - 1f64.exp()).abs() < 1e-12, "{found:?}");
        assert_eq!(softmax([3.0].into_iter()), [1.0]);
    }
}
