//! Agreement of images and captions: CLIP score, caption retrieval, top-k accuracy.
//!
//! All sums are in f64 and in index order, so that results have the same bits on every run.

use calotype_core::names;
use calotype_kernels::parallel_for;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{MetricsError, Result, check_features, check_finite};
use crate::pairs::Rows;
use crate::ranking::{argsort_descending, top_k};

names! {
    /// Who is first among equal scores.
    Ties, "rule of ties" {
        /// All others: constant scores earn nothing.
        Against = "against",
        /// Whom `torch.topk` puts first (PyTorch 2.15 on the CPU; top-1 and top-5 of open_clip, timm and CLIP_benchmark).
        TopK = "topk",
        /// Whom `torch.argsort(descending=True)` puts first (retrieval of open_clip's training).
        ArgSort = "argsort",
    }
}

/// Mean cosine between image i and caption i, in -1..1 (Hessel et al. 2021, arXiv:2104.08718, without its weight 2.5
/// and without its clamp at zero). 100 times this is the unit of MLPerf Inference's SDXL accuracy check.
///
/// `images` and `texts` both have the shape `[n, width]`; the vectors need not be normalised.
///
/// # Errors
/// If there are no rows, the lengths do not fit, a value is not finite, or a vector is all zeros; the error names the
/// row.
pub fn clip_score(images: &[f32], texts: &[f32], width: usize) -> Result<f64> {
    let cosines = pair_cosines(images, texts, width)?;
    Ok(cosines.iter().sum::<f64>() / cosines.len() as f64)
}

/// The cosine of image i and caption i, in -1..1, one for each pair. [`clip_score`] is their mean.
///
/// # Errors
/// As [`clip_score`].
pub fn pair_cosines(images: &[f32], texts: &[f32], width: usize) -> Result<Vec<f64>> {
    let rows = count_rows("image features", images, width)?;
    check_features("text features", texts, rows, width)?;
    let image_norms = norms("image features", images, width)?;
    let text_norms = norms("text features", texts, width)?;
    let cosine = |row: usize| {
        let span = row * width..(row + 1) * width;
        dot(&images[span.clone()], &texts[span]) / (image_norms[row] * text_norms[row])
    };
    Ok((0..rows).map(cosine).collect())
}

/// The CLIP score of torchmetrics 1.9.0, in 0..100: the mean of 100 cosines, not below zero. Single pairs may be below
/// zero. Nothing without cosines.
pub fn torchmetrics_clip_score(cosines: &[f64]) -> Option<f64> {
    let mean = cosines.iter().map(|cosine| 100.0 * cosine).sum::<f64>() / cosines.len() as f64;
    (!cosines.is_empty()).then_some(mean.max(0.0))
}

/// Divides each row by its length. `what` names the rows in errors.
///
/// # Errors
/// If there are no rows, the slice is not whole rows, a value is not finite, or a row is all zeros.
pub fn normalize_rows(what: &'static str, rows: &mut [f32], width: usize) -> Result<()> {
    count_rows(what, rows, width)?;
    let norms = norms(what, rows, width)?;
    for (row, norm) in rows.chunks_exact_mut(width).zip(norms) {
        row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
    Ok(())
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
    top_k_accuracy_with_ties(scores, labels, classes, k, Ties::Against)
}

/// [`top_k_accuracy`] by another rule of ties.
///
/// # Errors
/// As [`top_k_accuracy`].
pub fn top_k_accuracy_with_ties(scores: &[f32], labels: &[usize], classes: usize, k: usize, ties: Ties) -> Result<f64> {
    let rows = count_rows("scores", scores, classes)?;
    check_features("scores", scores, rows, classes)?;
    if ties == Ties::Against {
        let scores: Vec<f64> = scores.iter().copied().map(f64::from).collect();
        return top_k_of_scores(&scores, labels, classes, k);
    }
    check_labels(labels, rows, classes)?;
    if k == 0 {
        return Err(MetricsError::Zero("k"));
    }
    let rows_and_labels = scores.chunks_exact(classes).zip(labels);
    let right = rows_and_labels.filter(|(scores, label)| first_place(scores, |index| index == **label, ties, k) < k);
    Ok(right.count() as f64 / rows as f64)
}

/// The first place, counted from 0, that one of the wanted indices takes among the `k` first by a rule of ties; `k` if none
/// does. Scores must be finite.
fn first_place(scores: &[f32], wanted: impl Fn(usize) -> bool, ties: Ties, k: usize) -> usize {
    let order = match ties {
        Ties::TopK => top_k(scores, k),
        Ties::ArgSort => argsort_descending(scores),
        Ties::Against => {
            let own = |index: &usize| wanted(*index);
            let best = (0..scores.len()).filter(own).map(|index| scores[index]).fold(f32::NEG_INFINITY, f32::max);
            return (0..scores.len()).filter(|index| !wanted(*index) && scores[*index] >= best).count().min(k);
        }
    };
    order.iter().position(|index| wanted(*index as usize)).unwrap_or(k).min(k)
}

/// How often the right partner is among the first, both ways.
#[derive(Debug, Clone, PartialEq)]
pub struct Recalls {
    /// For each k, the fraction (0..1) of images of which one of their texts is among the k nearest texts.
    pub image_to_text: Vec<f64>,
    /// For each k, the fraction of texts whose image is among the k nearest images.
    pub text_to_image: Vec<f64>,
}

/// Retrieval R@k by cosine, both ways.
///
/// `images` has the shape `[n, width]`, `texts` `[m, width]`, and `image_of_text[j]` is the index of text j's image; an
/// image may have several texts. The vectors need not be normalised. Cosines are rounded to `f32` before they are ranked,
/// which is what the programs rank; copies of a text tie. A k above the number of candidates counts all of them.
///
/// # Errors
/// If there are no rows or `ks`, a k is zero, the lengths do not fit, an index is out of range, an image has no text, a value
/// is not finite, or a vector is all zeros; the error names the row.
pub fn retrieval_recalls(
    images: &[f32],
    texts: &[f32],
    width: usize,
    image_of_text: &[usize],
    ks: &[usize],
    ties: Ties,
) -> Result<Recalls> {
    let image_count = count_rows("image features", images, width)?;
    let text_count = count_rows("text features", texts, width)?;
    if image_of_text.len() != text_count {
        let found = image_of_text.len();
        return Err(MetricsError::Length { what: "images of texts", expected: text_count, found });
    }
    check_labels(image_of_text, text_count, image_count)?;
    if ks.is_empty() || ks.contains(&0) {
        return Err(MetricsError::Zero("k"));
    }
    let mut has_text = vec![false; image_count];
    image_of_text.iter().for_each(|image| has_text[*image] = true);
    if let Some(row) = has_text.iter().position(|has| !has) {
        return Err(MetricsError::NoText { what: "image features", row });
    }
    let (mut images, mut texts) = (images.to_vec(), texts.to_vec());
    normalize_rows("image features", &mut images, width)?;
    normalize_rows("text features", &mut texts, width)?;
    let images = Rows::new("image features", &images, width)?;
    let texts = Rows::new("text features", &texts, width)?;
    let to_text = hits(images, texts, |image, text| image_of_text[text] == image, ks, ties);
    let to_image = hits(texts, images, |text, image| image_of_text[text] == image, ks, ties);
    Ok(Recalls { image_to_text: to_text, text_to_image: to_image })
}

/// For each k, the fraction of `queries` with a wanted one among the k nearest candidates.
fn hits(
    queries: Rows<'_>,
    candidates: Rows<'_>,
    wanted: impl Fn(usize, usize) -> bool + Sync,
    ks: &[usize],
    ties: Ties,
) -> Vec<f64> {
    let counts: Vec<AtomicU32> = ks.iter().map(|_| AtomicU32::new(0)).collect();
    parallel_for(queries.tiles(), |tile| {
        let own = queries.tile(tile);
        let mut cosines = vec![0.0f32; own.count * candidates.count()];
        for tile in 0..candidates.tiles() {
            let other = candidates.tile(tile);
            let products = own.products(&other);
            for row in 0..own.count {
                for column in 0..other.count {
                    cosines[row * candidates.count() + other.first + column] = products[(row, column)] as f32;
                }
            }
        }
        for (row, cosines) in cosines.chunks_exact(candidates.count()).enumerate() {
            for (k, count) in ks.iter().zip(&counts) {
                let place = first_place(cosines, |candidate| wanted(own.first + row, candidate), ties, *k);
                count.fetch_add(u32::from(place < *k), Ordering::Relaxed);
            }
        }
    });
    counts.into_iter().map(|count| f64::from(count.into_inner()) / queries.count() as f64).collect()
}

/// Refuses labels that are not as many as rows, or are none of the candidates.
fn check_labels(labels: &[usize], rows: usize, candidates: usize) -> Result<()> {
    if labels.len() != rows {
        let found = labels.len();
        return Err(MetricsError::Length { what: "labels", expected: rows, found });
    }
    match labels.iter().position(|label| *label >= candidates) {
        None => Ok(()),
        Some(row) => Err(MetricsError::IndexOutOfRange { what: "labels", row, index: labels[row], candidates }),
    }
}

fn top_k_of_scores(scores: &[f64], labels: &[usize], classes: usize, k: usize) -> Result<f64> {
    if k == 0 {
        return Err(MetricsError::Zero("k"));
    }
    let rows = scores.len() / classes;
    check_labels(labels, rows, classes)?;
    // The label itself is one of those that are not below it.
    let not_below =
        |(scores, label): &(&[f64], &usize)| scores.iter().filter(|score| **score >= scores[**label]).count();
    let right = scores.chunks_exact(classes).zip(labels).filter(|row| not_below(row) <= k).count();
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
    fn forms_of_the_clip_score() {
        let cosines = pair_cosines(&[1.0, 0.0, 0.0, 2.0], &[1.0, 1.0, 0.0, -1.0], 2).unwrap();
        assert!((cosines[0] - 0.5f64.sqrt()).abs() < 1e-7 && cosines[1] == -1.0, "{cosines:?}");
        // torchmetrics 1.9.0: pairs at +1, +1, -1 score 33.33, at -1 alone 0.
        assert!((torchmetrics_clip_score(&[1.0, 1.0, -1.0]).unwrap() - 100.0 / 3.0).abs() < 1e-12);
        assert_eq!(torchmetrics_clip_score(&[-1.0, -1.0]), Some(0.0));
        assert_eq!(torchmetrics_clip_score(&[]), None);
        let mut rows = [3.0, 4.0, 0.0, -2.0];
        normalize_rows("rows", &mut rows, 2).unwrap();
        assert_eq!(rows, [0.6, 0.8, 0.0, -1.0]);
        assert!(normalize_rows("rows", &mut [1.0, 0.0, 0.0, 0.0], 2).unwrap_err().to_string().contains("rows: row 1"));
    }

    #[test]
    fn recalls_both_ways() {
        // Two images with two texts each, one of which lies at the other image.
        let images = [1.0, 0.0, 0.0, 1.0];
        let texts = [1.0, 0.1, 0.0, 1.0, 0.1, 1.0, 0.2, 1.0];
        let owners = [0, 0, 1, 1];
        for ties in Ties::ALL {
            let found = retrieval_recalls(&images, &texts, 2, &owners, &[1, 2, 9], *ties).unwrap();
            assert_eq!(found.image_to_text, [0.5, 1.0, 1.0], "{ties}");
            assert_eq!(found.text_to_image, [0.75, 1.0, 1.0], "{ties}");
        }
    }

    #[test]
    fn ties_are_for_the_rule_to_decide() {
        // torch.topk(torch.ones(5), 1) is 2, torch.argsort(torch.ones(5), descending=True) begins with 0.
        let scores = [1.0f32; 5];
        let right = |label: usize, ties| top_k_accuracy_with_ties(&scores, &[label], 5, 1, ties).unwrap();
        assert_eq!([0, 1, 2, 3, 4].map(|label| right(label, Ties::TopK)), [0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!([0, 1, 2, 3, 4].map(|label| right(label, Ties::ArgSort)), [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!([0, 1, 2, 3, 4].map(|label| right(label, Ties::Against)), [0.0; 5]);
        // Copies of one text tie, whatever tile they are in.
        let texts: Vec<f32> = [0.3, 0.4, 0.9].repeat(300);
        let owners: Vec<usize> = (0..300).map(|text| text % 2).collect();
        let found =
            retrieval_recalls(&[1.0, 0.2, 0.3, 0.5, 0.1, 0.9], &texts, 3, &owners, &[1], Ties::Against).unwrap();
        assert_eq!(found.image_to_text, [0.0]);
    }

    #[test]
    fn errors_of_recalls() {
        let of = |owners: &[usize], ks: &[usize]| {
            retrieval_recalls(&[1.0; 4], &[1.0; 6], 2, owners, ks, Ties::TopK).unwrap_err().to_string()
        };
        assert!(of(&[0, 0, 0], &[1]).contains("image features: no text belongs to row 1"));
        assert!(of(&[0, 1, 2], &[1]).contains("row 2 names candidate 2, but there are 2"));
        assert!(of(&[0, 1], &[1]).contains("expected 3 values, found 2"));
        assert!(of(&[0, 1, 1], &[]).contains("k must be at least 1"));
        assert!(of(&[0, 1, 1], &[5, 0]).contains("k must be at least 1"));
        let zero = retrieval_recalls(&[0.0; 2], &[1.0; 2], 2, &[0], &[1], Ties::TopK).unwrap_err().to_string();
        assert!(zero.contains("image features: row 0 is all zeros"), "{zero}");
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
