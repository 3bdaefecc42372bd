//! The Inception score (Salimans et al. 2016, arXiv:1606.03498), with the order and parts of each library.

use super::{Metric, MetricEntry, MetricSettings, Metrics, Needs, Variant, chosen};
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Part, Reference, State};
use crate::{EvaluateError, Result};
use calotype_metrics::inception_score::{ScoreOrder, inception_score};
use serde_json::json;

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "inception_score",
    otherwise: "classifier_score",
    about: "Inception score, the mean over parts of the pictures; no reference",
    variants: &[
        Variant { name: "torch-fidelity", features: "torch-fidelity" },
        Variant { name: "torchmetrics", features: "torchmetrics" },
    ],
    settings: &["splits", "seed"],
    open: |settings| Ok(open(settings)),
};

fn open(settings: &MetricSettings) -> Metrics {
    let (seed, splits) = (settings.seed, settings.splits);
    let score = |variant: &Variant| -> Box<dyn Metric> {
        let order = match variant.name {
            "torchmetrics" => ScoreOrder::Torchmetrics { seed },
            // NumPy takes 32 bits.
            _ => ScoreOrder::TorchFidelity { seed: seed as u32 },
        };
        let features = FeatureKey::new("inception", variant.features);
        Box::new(InceptionScore { variant: variant.name, features, order, splits, seed })
    };
    chosen(&ENTRY, settings).map(score).collect()
}

struct InceptionScore {
    variant: &'static str,
    features: FeatureKey,
    order: ScoreOrder,
    splits: usize,
    seed: u64,
}

impl Metric for InceptionScore {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.variant
    }

    fn needs(&self) -> Needs {
        Needs { features: self.features.clone(), gaussian: false, rows: vec![Part::Logits], reference: false }
    }

    fn fewest(&self) -> usize {
        self.splits
    }

    fn figures(&self, judged: &State, _: Option<&Reference>) -> Result<Vec<Figure>> {
        let logits = judged.rows(Part::Logits)?;
        let wrong = EvaluateError::metric(format!("inception_score ({})", self.variant));
        let found = inception_score(logits.values()?, logits.width(), self.splits, self.order).map_err(wrong)?;
        let mut figure = judged.figure(self, found.mean, None);
        figure.deviation = Some(found.deviation);
        figure.set("splits", json!(self.splits));
        figure.set("seed", json!(self.seed));
        Ok(vec![figure])
    }
}
