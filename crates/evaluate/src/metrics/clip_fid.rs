//! CLIP-FID: the Fréchet distance on a CLIP tower's embeddings of pictures (Kynkäänniemi et al. 2022, arXiv:2203.06026;
//! clean-fid's `model_name="clip_vit_b_32"`).

use super::{Metric, MetricEntry, Needs, frechet};
use crate::Result;
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Reference, State};

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "clip_fid",
    otherwise: "clip_fd",
    about: "Fréchet distance to the reference, on CLIP's embeddings of pictures",
    variants: &[],
    settings: &["clip"],
    open: |settings| Ok(vec![Box::new(ClipFid { features: FeatureKey::new("clip", &settings.clip) })]),
};

struct ClipFid {
    features: FeatureKey,
}

impl Metric for ClipFid {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.features.preparation()
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
