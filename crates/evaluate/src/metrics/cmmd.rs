//! CMMD: the maximum mean discrepancy on CLIP's embeddings of pictures (Jayasumana et al. 2024, arXiv:2401.09603), with the
//! Gaussian kernel, sigma and scale of its reference code.

use super::{Metric, MetricEntry, Needs};
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::rows::Rows;
use crate::state::{Part, Reference, State, compared_with};
use crate::{EvaluateError, Result};
use calotype_metrics::MetricsError;
use calotype_metrics::cmmd::{CmmdSettings, clip_mmd};
use calotype_metrics::retrieval::normalize_rows;
use serde_json::json;

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "cmmd",
    otherwise: "clip_mmd",
    about: "maximum mean discrepancy to the reference, on CLIP's embeddings of pictures",
    variants: &[],
    settings: &[],
    open: |_| Ok(vec![Box::new(Cmmd { features: FeatureKey::new("clip", "cmmd") })]),
};

struct Cmmd {
    features: FeatureKey,
}

impl Metric for Cmmd {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.features.preparation()
    }

    fn needs(&self) -> Needs {
        Needs { features: self.features.clone(), gaussian: false, rows: vec![Part::Features], reference: true }
    }

    fn figures(&self, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>> {
        let reference = compared_with(self, reference)?;
        let ours = judged.rows(Part::Features)?;
        let theirs = reference.state(&self.features)?.rows(Part::Features)?;
        let settings = CmmdSettings::default();
        let wrong = |fault: MetricsError| EvaluateError::metric("cmmd")(fault);
        let (ours, theirs) = (unit_rows(ours, "pictures")?, unit_rows(theirs, "reference")?);
        let value = clip_mmd(ours.values()?, theirs.values()?, ours.width(), &settings).map_err(wrong)?;
        let mut figure = judged.figure(self, value, Some(reference));
        figure.set("sigma", json!(settings.sigma));
        figure.set("scale", json!(settings.scale));
        Ok(vec![figure])
    }
}

/// Rows scaled to unit length, in a temporary file.
fn unit_rows(rows: &Rows, what: &'static str) -> Result<Rows> {
    const BLOCK: usize = 1024;
    let width = rows.width();
    let mut unit = Rows::temporary(width)?;
    for block in rows.values()?.chunks(BLOCK * width.max(1)) {
        let mut block = block.to_vec();
        normalize_rows(what, &mut block, width).map_err(EvaluateError::metric("cmmd"))?;
        unit.push(&block)?;
    }
    Ok(unit)
}
