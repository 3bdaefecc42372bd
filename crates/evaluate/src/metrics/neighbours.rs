//! Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
//! arXiv:2002.09797): how far the pictures lie among the reference, and the reference among the pictures.

use super::{Metric, MetricEntry, MetricSettings, Metrics, Needs, Variant, chosen};
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Part, Reference, State, compared_with};
use crate::{EvaluateError, Result};
use calotype_metrics::neighbours::{BallRule, neighbourhoods};
use serde_json::json;

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "neighbours",
    otherwise: "neighbours",
    about: "precision, recall, density and coverage by nearest neighbours",
    variants: &[
        Variant { name: "torch-fidelity", features: "torch-fidelity" },
        Variant { name: "pytorch-fid", features: "pytorch-fid" },
    ],
    open: |settings| Ok(open(settings)),
};

fn open(settings: &MetricSettings) -> Metrics {
    let neighbours = settings.neighbours;
    let metric = |variant: &Variant| -> Box<dyn Metric> {
        let features = FeatureKey::new("inception", variant.features);
        Box::new(Neighbours { variant: variant.name, features, neighbours })
    };
    chosen(&ENTRY, settings).map(metric).collect()
}

struct Neighbours {
    variant: &'static str,
    features: FeatureKey,
    neighbours: usize,
}

impl Metric for Neighbours {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.variant
    }

    fn needs(&self) -> Needs {
        Needs { features: self.features.clone(), gaussian: false, rows: vec![Part::Features], reference: true }
    }

    fn figures(&self, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>> {
        let reference = compared_with(self, reference)?;
        let ours = judged.rows(Part::Features)?;
        let theirs = reference.state(&self.features)?.rows(Part::Features)?;
        let wrong = EvaluateError::metric(format!("neighbours ({})", self.variant));
        let (width, count) = (ours.width(), self.neighbours);
        let found = neighbourhoods(ours.values()?, theirs.values()?, width, count, BallRule::Closed).map_err(wrong)?;
        let named = [
            ("precision", found.precision),
            ("recall", found.recall),
            ("density", found.density),
            ("coverage", found.coverage),
        ];
        let figure = |(name, value): (&str, f64)| {
            let mut figure = Figure { metric: name.to_owned(), ..judged.figure(self, value, Some(reference)) };
            figure.set("neighbours", json!(self.neighbours));
            figure
        };
        Ok(named.into_iter().map(figure).collect())
    }
}
