//! What metrics share that compare the rows of Inception features of pictures with those of a reference.

use super::{Metric, Needs, Variant};
use crate::Result;
use crate::features::FeatureKey;
use crate::rows::Rows;
use crate::state::{Part, Reference, State, compared_with};

/// One of their definitions.
pub(super) struct InceptionRows {
    pub(super) variant: &'static str,
    features: FeatureKey,
}

/// The rows of the pictures, those of the reference, and the reference.
pub(super) type Pair<'a> = (&'a Rows, &'a Rows, &'a Reference);

impl InceptionRows {
    pub(super) fn of(variant: &Variant) -> Self {
        Self { variant: variant.name, features: FeatureKey::new("inception", variant.features) }
    }

    pub(super) fn needs(&self) -> Needs {
        Needs { features: self.features.clone(), gaussian: false, rows: vec![Part::Features], reference: true }
    }

    /// What `metric` compares.
    pub(super) fn pair<'a>(
        &self,
        metric: &dyn Metric,
        judged: &'a State,
        reference: Option<&'a Reference>,
    ) -> Result<Pair<'a>> {
        let reference = compared_with(metric, reference)?;
        let theirs = reference.state(&self.features)?.rows(Part::Features)?;
        Ok((judged.rows(Part::Features)?, theirs, reference))
    }

    /// Name and variant, for errors.
    pub(super) fn title(&self, metric: &dyn Metric) -> String {
        format!("{} ({})", metric.name(), self.variant)
    }
}
