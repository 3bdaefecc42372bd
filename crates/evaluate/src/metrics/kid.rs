//! The kernel inception distance (Bińkowski et al. 2018, arXiv:1801.01401), with the subsets of each library.

use super::inception_rows::InceptionRows;
use super::{Metric, MetricEntry, MetricSettings, Metrics, Needs, Variant, chosen};
use crate::figure::Figure;
use crate::state::{Reference, State};
use crate::{EvaluateError, Result};
use calotype_metrics::kid::{KidSettings, SubsetChoice, kernel_distance};
use serde_json::json;

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "kid",
    otherwise: "kd",
    about: "kernel inception distance to the reference, the mean over subsets",
    variants: &[
        Variant { name: "torch-fidelity", features: "torch-fidelity" },
        Variant { name: "torchmetrics", features: "torchmetrics" },
        Variant { name: "clean-fid", features: "clean-fid" },
    ],
    settings: &["subsets", "subset_size", "seed"],
    open: |settings| Ok(open(settings)),
};

fn open(settings: &MetricSettings) -> Metrics {
    let kid = |variant: &Variant| -> Box<dyn Metric> {
        let choice = match variant.name {
            "torchmetrics" => SubsetChoice::Torchmetrics,
            "clean-fid" => SubsetChoice::CleanFid,
            _ => SubsetChoice::TorchFidelity,
        };
        let (subsets, subset_size, seed) = (settings.subsets, settings.subset_size, settings.seed);
        let settings = KidSettings { subsets, subset_size, seed, choice, ..KidSettings::default() };
        Box::new(Kid { rows: InceptionRows::of(variant), settings })
    };
    chosen(&ENTRY, settings).map(kid).collect()
}

struct Kid {
    rows: InceptionRows,
    settings: KidSettings,
}

impl Metric for Kid {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.rows.variant
    }

    fn needs(&self) -> Needs {
        self.rows.needs()
    }

    /// Subsets of clean-fid have no more pictures than there are.
    fn fewest(&self) -> usize {
        let is_clean_fid = self.settings.choice == SubsetChoice::CleanFid;
        if is_clean_fid { 2 } else { self.settings.subset_size.max(2) }
    }

    fn figures(&self, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>> {
        let (ours, theirs, reference) = self.rows.pair(self, judged, reference)?;
        let wrong = EvaluateError::metric(self.rows.title(self));
        let found = kernel_distance(ours.values()?, theirs.values()?, ours.width(), &self.settings).map_err(wrong)?;
        let mut figure = judged.figure(self, found.mean, Some(reference));
        figure.deviation = Some(found.deviation);
        let KidSettings { subsets, subset_size, seed, .. } = self.settings;
        figure.set("subsets", json!(subsets));
        figure.set("subset_size", json!(subset_size));
        figure.set("seed", json!(seed));
        Ok(vec![figure])
    }
}
