//! The Fréchet inception distance (Heusel et al. 2017, arXiv:1706.08500, equation 6), in each of its published preparations.

use super::{Metric, MetricEntry, MetricSettings, Metrics, Needs, Variant, chosen, frechet};
use crate::Result;
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Reference, State};

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "fid",
    otherwise: "fd",
    about: "Fréchet inception distance to the reference",
    variants: &[
        Variant { name: "pytorch-fid", features: "pytorch-fid" },
        Variant { name: "clean-fid", features: "clean-fid" },
        Variant { name: "torch-fidelity", features: "torch-fidelity" },
        Variant { name: "torchmetrics", features: "torchmetrics" },
        Variant { name: "mlperf-training", features: "pytorch-fid" },
        Variant { name: "mlperf-inference", features: "pytorch-fid" },
        Variant { name: "tf", features: "tf" },
        Variant { name: "nemo", features: "tf" },
        Variant { name: "nvidia", features: "tf" },
    ],
    settings: &[],
    open: |settings| Ok(open(settings)),
};

fn open(settings: &MetricSettings) -> Metrics {
    let fid = |variant: &Variant| -> Box<dyn Metric> {
        Box::new(Fid { variant: variant.name, features: FeatureKey::new("inception", variant.features) })
    };
    chosen(&ENTRY, settings).map(fid).collect()
}

/// The distance in one definition.
struct Fid {
    variant: &'static str,
    features: FeatureKey,
}

impl Metric for Fid {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.variant
    }

    fn needs(&self) -> Needs {
        frechet::needs(self.features.clone())
    }

    fn fewest(&self) -> usize {
        frechet::FEWEST
    }

    fn figures(&self, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>> {
        frechet::figures(self, judged, reference)
    }
}
