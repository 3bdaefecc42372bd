//! What the Fréchet distances on all features share.

use super::{Metric, Needs};
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Reference, State, compared_with};
use crate::{EvaluateError, Result};
use calotype_metrics::frechet_distance;

/// A covariance is of two pictures at least.
pub(super) const FEWEST: usize = 2;

/// Mean and covariance of both sides.
pub(super) fn needs(features: FeatureKey) -> Needs {
    Needs { features, gaussian: true, rows: Vec::new(), reference: true }
}

/// The distance of the pictures' Gaussian to that of the reference.
pub(super) fn figures(metric: &dyn Metric, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>> {
    let reference = compared_with(metric, reference)?;
    let ours = judged.gaussian()?;
    reference.check(judged.key(), judged.network(), ours.width())?;
    let theirs = reference.gaussian(judged.key())?;
    let named = format!("{} ({})", metric.name(), metric.variant());
    let value = frechet_distance(&ours, &theirs).map_err(EvaluateError::metric(named))?;
    Ok(vec![judged.figure(metric, value, Some(reference))])
}
