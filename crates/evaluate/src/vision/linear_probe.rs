//! Linear probes: how well a linear classifier on frozen features tells classes apart (Radford et al. 2021, appendix A.3).

use super::accuracy::{Ranked, best_of};
use super::batches::in_batches;
use super::figures::Judged;
use super::labelled::{Labelled, LabelledPicture};
use crate::features::Features;
use crate::figure::Figure;
use crate::{EvaluateError, Result};
use calotype_data::Control;
use calotype_metrics::{LogisticOptions, LogisticRegression, MetricsError};
use serde_json::json;

/// What a probe found.
pub struct LinearProbe {
    /// `top_1`, …, on the test pictures, in the variant `linear_probe`.
    pub figures: Vec<Figure>,
    /// Each test picture, in the order of its source.
    pub pictures: Vec<Ranked>,
    /// The fitted classifier.
    pub classifier: LogisticRegression,
    /// What is worth knowing besides, in sentences.
    pub notices: Vec<String>,
}

/// Fits a logistic regression to the features of `train` and judges it by `test`, both of the classes `names`. Features are
/// taken as the network gives them, not normalised, as in the example of CLIP's code. `ks` beyond the number of classes are
/// left out.
///
/// # Errors
/// A picture cannot be read or has no known class; there are fewer than two classes or one has no picture to learn from;
/// features are not finite; `control` stops the work.
pub fn linear_probe(
    features: &dyn Features,
    names: &[String],
    [train, test]: [&Labelled; 2],
    options: &LogisticOptions,
    (ks, batch): (&[usize], usize),
    control: &mut Control<'_>,
) -> Result<LinearProbe> {
    let classes = names.len();
    let ks: Vec<usize> = ks.iter().copied().filter(|k| (1..=classes).contains(k)).collect();
    let Some(most) = ks.iter().copied().max() else {
        return Err(EvaluateError::Usage(format!("ks names no rank from 1 to the number of classes, {classes}")));
    };
    let learnt = rows_of(features, ("training pictures", train), batch, control)?;
    let fitted = LogisticRegression::fit(&learnt.features, features.width(), &learnt.labels, classes, options);
    let classifier = fitted.map_err(|error| explained(error, names))?;
    let judged = rows_of(features, ("test pictures", test), batch, control)?;
    let logits = classifier.logits(&judged.features).map_err(EvaluateError::metric("linear_probe"))?;
    let logits: Vec<f32> = logits.into_iter().map(|logit| logit as f32).collect();
    let best = best_of(&logits, classes, most, "linear_probe".to_owned())?;
    let rows = logits.chunks_exact(classes).zip(best);
    let pictures: Vec<Ranked> = (judged.names.iter().zip(&judged.labels).zip(rows))
        .map(|((name, class), (logits, best))| Ranked::new(name.clone(), *class, logits, &best))
        .collect();

    let mut about = Judged::of(features, Ranked::identities(&pictures));
    about.reference =
        Judged::hash(learnt.names.iter().zip(&learnt.labels).map(|(name, class)| format!("{name}\t{class}")));
    about.settings.insert("classes".to_owned(), json!(Judged::hash(names.iter().cloned())));
    about.settings.insert("c".to_owned(), json!(options.c));
    let figures = Ranked::shares(&pictures, &ks, "linear_probe", &about)?;
    let mut notices: Vec<String> =
        train.notices().into_iter().map(|note| format!("training pictures: {note}")).collect();
    notices.extend(test.notices().into_iter().map(|note| format!("test pictures: {note}")));
    if !classifier.converged {
        let steps = classifier.iterations;
        notices.push(format!("the fit ended after {steps} steps before its gradient was {}", options.tolerance));
    }
    Ok(LinearProbe { figures, pictures, classifier, notices })
}

/// Features of pictures with their names and classes.
#[derive(Default)]
struct Rows {
    features: Vec<f32>,
    names: Vec<String>,
    labels: Vec<usize>,
}

fn rows_of(
    features: &dyn Features,
    (stage, pictures): (&'static str, &Labelled),
    batch: usize,
    control: &mut Control<'_>,
) -> Result<Rows> {
    let mut rows = Rows::default();
    let take = |batch: Vec<LabelledPicture>| {
        let images: Vec<_> = batch.iter().map(|picture| &picture.image).collect();
        rows.features.extend(features.images(&images)?.features);
        rows.labels.extend(batch.iter().map(|picture| picture.class));
        rows.names.extend(batch.into_iter().map(|picture| picture.name));
        Ok(())
    };
    in_batches((stage, pictures.len(), batch), |numbers| pictures.pictures(numbers), take, control)?;
    Ok(rows)
}

/// A fault of the fit, with the name of the class that it is about.
fn explained(error: MetricsError, names: &[String]) -> EvaluateError {
    match error {
        MetricsError::EmptyClass(class) => EvaluateError::Usage(format!(
            "no training picture is of class {class}, `{}`: give it some, or leave it out of the classes",
            names.get(class).map_or("", String::as_str)
        )),
        error => EvaluateError::metric("linear_probe")(error),
    }
}
