//! Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
//! arXiv:2002.09797): how far the pictures lie among the reference, and the reference among the pictures.

use super::inception_rows::InceptionRows;
use super::{Metric, MetricEntry, MetricSettings, Metrics, Needs, Variant, chosen};
use crate::figure::Figure;
use crate::state::{Reference, State};
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
    settings: &["neighbours"],
    open: |settings| Ok(open(settings)),
};

fn open(settings: &MetricSettings) -> Metrics {
    let neighbours = settings.neighbours;
    let metric = |variant: &Variant| -> Box<dyn Metric> {
        Box::new(Neighbours { rows: InceptionRows::of(variant), neighbours })
    };
    chosen(&ENTRY, settings).map(metric).collect()
}

/// Names of its figures.
const NAMES: [&str; 4] = ["precision", "recall", "density", "coverage"];

struct Neighbours {
    rows: InceptionRows,
    neighbours: usize,
}

impl Metric for Neighbours {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.rows.variant
    }

    fn needs(&self) -> Needs {
        self.rows.needs()
    }

    fn fewest(&self) -> usize {
        self.neighbours.saturating_add(1)
    }

    fn figure_names(&self) -> Vec<&'static str> {
        NAMES.to_vec()
    }

    fn figures(&self, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>> {
        let (ours, theirs, reference) = self.rows.pair(self, judged, reference)?;
        let wrong = EvaluateError::metric(self.rows.title(self));
        let (width, count) = (ours.width(), self.neighbours);
        let found = neighbourhoods(ours.values()?, theirs.values()?, width, count, BallRule::Closed).map_err(wrong)?;
        let named = NAMES.into_iter().zip([found.precision, found.recall, found.density, found.coverage]);
        let figure = |(name, value): (&str, f64)| {
            let mut figure = Figure { metric: name.to_owned(), ..judged.figure(self, value, Some(reference)) };
            figure.set("neighbours", json!(self.neighbours));
            figure
        };
        Ok(named.map(figure).collect())
    }
}
