//! The Fréchet distance on the features of any network.

use super::{Metric, MetricEntry, Needs, Variant, chosen, frechet};
use crate::Result;
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Reference, State};

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "fd",
    otherwise: "fd",
    about: "Fréchet distance to the reference, on the network of --features",
    variants: &[Variant { name: "auto", features: "auto" }, Variant { name: "processor", features: "processor" }],
    settings: &[],
    open: |settings| Ok(chosen(&ENTRY, settings).map(open).collect()),
};

/// The variants are the preparations of the network.
fn open(variant: &Variant) -> Box<dyn Metric> {
    Box::new(Fd { features: FeatureKey::new("custom", variant.features) })
}

struct Fd {
    features: FeatureKey,
}

impl Metric for Fd {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.features.network()
    }

    fn needs(&self) -> Needs {
        frechet::needs(self.features.clone())
    }

    fn fewest(&self) -> usize {
        frechet::FEWEST
    }

    /// The variant of the figure is the network by name.
    fn figures(&self, judged: &State, reference: Option<&Reference>) -> Result<Vec<Figure>> {
        let figures = frechet::figures(self, judged, reference)?;
        let variant = &judged.network().network;
        Ok(figures.into_iter().map(|figure| Figure { variant: variant.clone(), ..figure }).collect())
    }
}
