//! Agreement of images and captions: CLIP score, caption retrieval, top-k accuracy.
//!
//! All sums are in f64 and in index order, so that results have the same bits on every run.

use crate::error::{MetricsError, Result, check_features, check_finite};

/// Mean cosine between image i and caption i, in -1..1 (Hessel et al. 2021, arXiv:2104.08718, without its weight 2.5
/// and without its clamp at zero). 100 times this is the unit of MLPerf Inference's SDXL accuracy check.
///
/// `images` and `texts` both have the shape `[n, width]`; the vectors need not be normalised.
///
/// # Errors
/// If there are no rows, the lengths do not fit, a value is not finite, or a vector is all zeros; the error names the
/// row.
pub fn clip_score(images: &[f32], texts: &[f32], width: usize) -> Result<f64> {
    let rows = count_rows("image features", images, width)?;
    check_features("text features", texts, rows, width)?;
    let image_norms = norms("image features", images, width)?;
    let text_norms = norms("text features", texts, width)?;
    let total: f64 = (0..rows)
        .map(|row| {
            let span = row * width..(row + 1) * width;
            dot(&images[span.clone()], &texts[span]) / (image_norms[row] * text_norms[row])
        })
        .sum();
    Ok(total / rows as f64)
}

/// The fraction (0..1) of images whose right caption has a strictly higher cosine than each of its other candidates.
///
/// `images` has the shape `[n, width]`, `candidates` `[n, k, width]` with k = `candidates_per_image`, and `correct[i]` is
/// the index of image i's caption among its k. The vectors need not be normalised. A tie counts as wrong, so that
/// features that collapsed onto one vector score 0, not 1. Chance is 1/k.
///
/// # Errors
/// If there are no rows or candidates, the lengths do not fit, an index is out of range, a value is not finite, or a
/// vector is all zeros; the error names the row (candidate rows count `i * k + j`).
pub fn retrieval_top1(
    images: &[f32],
    candidates: &[f32],
    correct: &[usize],
    width: usize,
    candidates_per_image: usize,
) -> Result<f64> {
    let cosines = candidate_cosines(images, candidates, width, candidates_per_image)?;
    top_k_of_scores(&cosines, correct, candidates_per_image, 1)
}

/// The cosines that [`retrieval_top1`] compares, shape `[n, k]`.
///
/// # Errors
/// As [`retrieval_top1`].
pub fn candidate_cosines(
    images: &[f32],
    candidates: &[f32],
    width: usize,
    candidates_per_image: usize,
) -> Result<Vec<f64>> {
    if candidates_per_image == 0 {
        return Err(MetricsError::Zero("candidates per image"));
    }
    let rows = count_rows("image features", images, width)?;
    check_features("candidate features", candidates, rows * candidates_per_image, width)?;
    let image_norms = norms("image features", images, width)?;
    let candidate_norms = norms("candidate features", candidates, width)?;
    let cosines = candidates.chunks_exact(width).enumerate().map(|(index, candidate)| {
        let row = index / candidates_per_image;
        let image = &images[row * width..(row + 1) * width];
        dot(image, candidate) / (image_norms[row] * candidate_norms[index])
    });
    Ok(cosines.collect())
}

/// The fraction (0..1) of rows whose label is among the `k` highest scores.
///
/// `scores` has the shape `[n, classes]` (logits, probabilities or cosines alike), `labels` `[n]`. A class that ties with
/// the label counts as ranked before it, so constant scores earn nothing unless `k` is at least `classes`.
///
/// # Errors
/// If `classes`, `k` or the number of rows is zero, the lengths do not fit, a label is out of range, or a score is not
/// finite; the error names the row.
pub fn top_k_accuracy(scores: &[f32], labels: &[usize], classes: usize, k: usize) -> Result<f64> {
    let rows = count_rows("scores", scores, classes)?;
    check_features("scores", scores, rows, classes)?;
    let scores: Vec<f64> = scores.iter().copied().map(f64::from).collect();
    top_k_of_scores(&scores, labels, classes, k)
}

fn top_k_of_scores(scores: &[f64], labels: &[usize], classes: usize, k: usize) -> Result<f64> {
    if k == 0 {
        return Err(MetricsError::Zero("k"));
    }
    let rows = scores.len() / classes;
    if labels.len() != rows {
        let found = labels.len();
        return Err(MetricsError::Length { what: "labels", expected: rows, found });
    }
    let mut right = 0usize;
    for (row, (scores, &label)) in scores.chunks_exact(classes).zip(labels).enumerate() {
        let Some(own) = scores.get(label) else {
            let (what, index, candidates) = ("labels", label, classes);
            return Err(MetricsError::IndexOutOfRange { what, row, index, candidates });
        };
        // The label itself is one of those that are not below it.
        let not_below = scores.iter().filter(|score| *score >= own).count();
        right += usize::from(not_below <= k);
    }
    Ok(right as f64 / rows as f64)
}

/// The number of rows, at least one, of a finite `[n, width]` slice.
fn count_rows(what: &'static str, values: &[f32], width: usize) -> Result<usize> {
    if width == 0 {
        return Err(MetricsError::Zero("row width"));
    }
    if !values.len().is_multiple_of(width) {
        return Err(MetricsError::PartialRow { what, width, found: values.len() });
    }
    if values.is_empty() {
        return Err(MetricsError::Zero("number of rows"));
    }
    check_finite(what, values, width, 0)?;
    Ok(values.len() / width)
}

fn norms(what: &'static str, values: &[f32], width: usize) -> Result<Vec<f64>> {
    let rows = values.chunks_exact(width).enumerate();
    rows.map(|(row, vector)| {
        let norm = dot(vector, vector).sqrt();
        if norm > 0.0 { Ok(norm) } else { Err(MetricsError::ZeroVector { what, row }) }
    })
    .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_score_is_the_mean_cosine_whatever_the_lengths() {
        // 45° and 180°.
        let images = [2.0, 0.0, 0.0, 3.0];
        let texts = [1.0, 1.0, 0.0, -0.1];
        let score = clip_score(&images, &texts, 2).unwrap();
        assert!((score - (0.5f64.sqrt() - 1.0) / 2.0).abs() < 1e-7, "{score}");
    }

    #[test]
    fn retrieval_takes_the_strictly_nearest() {
        let images = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let candidates = [
            0.9, 0.1, 0.0, 1.0, // right: 0
            5.0, 5.0, 0.1, 1.0, // right: 1, though 0 has the larger dot product
            1.0, 0.0, 0.0, 1.0, // a tie
        ];
        let top1 = |correct: [usize; 3]| retrieval_top1(&images, &candidates, &correct, 2, 2).unwrap();
        assert_eq!(top1([0, 1, 0]), 2.0 / 3.0);
        assert_eq!(top1([0, 1, 1]), 2.0 / 3.0);
        assert_eq!(top1([1, 0, 0]), 0.0);
    }

    #[test]
    fn collapsed_features_score_nothing() {
        let images = vec![0.3f32; 4 * 8];
        let candidates = vec![0.7f32; 4 * 16 * 8];
        assert_eq!(retrieval_top1(&images, &candidates, &[0, 1, 2, 3], 8, 16).unwrap(), 0.0);
    }

    #[test]
    fn top_k_counts_ties_against_the_label() {
        let scores = [3.0, 2.0, 1.0, 2.0, 2.0, 0.0];
        assert_eq!(top_k_accuracy(&scores, &[0, 1], 3, 1).unwrap(), 0.5);
        assert_eq!(top_k_accuracy(&scores, &[1, 1], 3, 2).unwrap(), 1.0);
        assert_eq!(top_k_accuracy(&scores, &[2, 2], 3, 2).unwrap(), 0.0);
        assert_eq!(top_k_accuracy(&scores, &[2, 2], 3, 5).unwrap(), 1.0);
    }

    #[test]
    fn errors_name_the_row() {
        let text = |result: Result<f64>| result.unwrap_err().to_string();
        let zero = text(clip_score(&[1.0, 0.0, 0.0, 0.0], &[1.0; 4], 2));
        assert!(zero.contains("image features: row 1 is all zeros"), "{zero}");
        let nan = text(clip_score(&[1.0; 4], &[1.0, 1.0, 1.0, f32::INFINITY], 2));
        assert!(nan.contains("text features: row 1, column 1 is inf"), "{nan}");
        let range = text(top_k_accuracy(&[1.0; 6], &[0, 3], 3, 1));
        assert!(range.contains("row 1 names candidate 3, but there are 3"), "{range}");
        assert!(text(clip_score(&[], &[], 2)).contains("at least 1"));
        assert!(text(clip_score(&[1.0; 4], &[1.0; 2], 2)).contains("expected 4 values, found 2"));
        assert!(text(retrieval_top1(&[1.0; 2], &[1.0; 4], &[0, 0], 2, 2)).contains("expected 1"));
    }
}
