//! Top-k accuracy of a classifier on pictures of known classes.

use super::batches::in_batches;
use super::classifier::Classifier;
use super::figures::Judged;
use super::labelled::{Labelled, LabelledPicture};
use crate::figure::Figure;
use crate::{EvaluateError, Result};
use calotype_data::Control;
use calotype_metrics::{MetricsError, Ties, top_k};
use serde_json::json;

/// The best classes of one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The picture's name.
    pub name: String,
    /// Number of its class.
    pub class: usize,
    /// Numbers of the classes with the highest logits, best first.
    pub best: Vec<usize>,
    /// True if another class has exactly the logit of the right one.
    pub tied: bool,
}

impl Ranked {
    /// A picture of the number of its class, by the logits of all classes and the numbers of the best ones.
    pub(super) fn new(name: String, class: usize, logits: &[f32], best: &[u32]) -> Self {
        let tied = logits.iter().filter(|logit| **logit == logits[class]).count() > 1;
        Self { name, class, best: best.iter().map(|class| *class as usize).collect(), tied }
    }

    /// What identifies pictures in fingerprints.
    pub(super) fn identities(pictures: &[Self]) -> impl Iterator<Item = String> {
        pictures.iter().map(|picture| format!("{}\t{}", picture.name, picture.class))
    }

    /// The figures `top_k` of pictures.
    pub(super) fn shares(pictures: &[Self], ks: &[usize], variant: &str, judged: &Judged<'_>) -> Result<Vec<Figure>> {
        let share = |k: &usize| {
            let is_hit = |picture: &Self| picture.best.iter().take(*k).any(|class| *class == picture.class);
            let hits: Vec<f64> = pictures.iter().map(|picture| f64::from(u8::from(is_hit(picture)))).collect();
            judged.share(&format!("top_{k}"), variant, &hits)
        };
        ks.iter().map(share).collect()
    }
}

/// What a classifier makes of pictures.
pub struct Accuracy {
    /// `top_1`, `top_5`, …, with intervals of confidence.
    pub figures: Vec<Figure>,
    /// Each picture, in the order of the source.
    pub pictures: Vec<Ranked>,
    /// What is worth knowing besides, in sentences.
    pub notices: Vec<String>,
}

/// The share of pictures whose class is among the `ks` best by the classifier's logits, looking at `batch` of them at once.
///
/// Ties stand in the order of `torch.topk` on CPU, as in the evaluations of CLIP, open_clip and NeMo, whose `accuracy` takes
/// the first k of the best `max(ks)`; ImageNet's list has two names that stand twice, so that they do happen. `ks` beyond
/// the number of classes are left out.
///
/// # Errors
/// A picture cannot be read or has no known class; its logits are not finite; `control` stops the work.
pub fn accuracy(
    classifier: &dyn Classifier,
    variant: &str,
    pictures: &Labelled,
    (ks, batch): (&[usize], usize),
    control: &mut Control<'_>,
) -> Result<Accuracy> {
    let classes = classifier.names().len();
    let (ks, beyond): (Vec<usize>, Vec<usize>) = ks.iter().partition(|k| (1..=classes).contains(*k));
    let Some(most) = ks.iter().copied().max() else {
        return Err(EvaluateError::Usage(format!("ks names no rank from 1 to the number of classes, {classes}")));
    };
    let mut ranked = Vec::with_capacity(pictures.len());
    let take = |batch: Vec<LabelledPicture>| {
        ranked.extend(rank(classifier, batch, most)?);
        Ok(())
    };
    in_batches(("pictures", pictures.len(), batch), |numbers| pictures.pictures(numbers), take, control)?;

    let mut judged = Judged::of(classifier.network(), Ranked::identities(&ranked));
    judged.settings.extend(classifier.settings());
    judged.settings.insert("classes".to_owned(), json!(Judged::hash(classifier.names().iter().cloned())));
    judged.settings.insert("ties".to_owned(), json!(Ties::TopK.name()));
    let figures = Ranked::shares(&ranked, &ks, variant, &judged)?;
    let mut notices = pictures.notices();
    let beyond = beyond.iter().map(|k| format!("top-{k} is left out: {classes} classes are told apart"));
    notices.extend(beyond);
    match ranked.iter().filter(|found| found.tied).count() {
        0 => {}
        tied => notices.push(format!(
            "{tied} pictures have another class with exactly the logit of their own; the order is that of torch.topk"
        )),
    }
    Ok(Accuracy { figures, pictures: ranked, notices })
}

fn rank(classifier: &dyn Classifier, batch: Vec<LabelledPicture>, most: usize) -> Result<Vec<Ranked>> {
    let classes = classifier.names().len();
    let images: Vec<_> = batch.iter().map(|picture| &picture.image).collect();
    let logits = classifier.logits(&images)?;
    let best = best_of(&logits, classes, most, classifier.network().key().to_string())?;
    let rows = logits.chunks_exact(classes).zip(best);
    let ranked = batch.into_iter().zip(rows);
    Ok(ranked.map(|(picture, (logits, best))| Ranked::new(picture.name, picture.class, logits, &best)).collect())
}

/// The numbers of the `most` classes with the highest logits, best first, for each row of logits, `[rows, classes]`.
///
/// # Errors
/// [`EvaluateError::Metric`] for `what`, if a logit is not finite.
pub(super) fn best_of(logits: &[f32], classes: usize, most: usize, what: String) -> Result<Vec<Vec<u32>>> {
    if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
        let (row, column, value) = (at / classes, at % classes, f64::from(logits[at]));
        return Err(EvaluateError::metric(what)(MetricsError::NotFinite { what: "logits", row, column, value }));
    }
    Ok(logits.chunks_exact(classes).map(|row| top_k(row, most)).collect())
}
