//! The CLIP score: how well pictures show their captions (Hessel et al. 2021, arXiv:2104.08718), in the units of those who
//! publish it.

use super::{Metric, MetricEntry, MetricSettings, Metrics, Needs, Variant, chosen};
use crate::features::FeatureKey;
use crate::figure::Figure;
use crate::state::{Part, Reference, State};
use crate::{EvaluateError, Result};
use calotype_metrics::MetricsError;
use calotype_metrics::bootstrap::{Bootstrap, mean_interval};
use calotype_metrics::retrieval::{pair_cosines, torchmetrics_clip_score};
use serde_json::json;

/// Its row of the table.
pub const ENTRY: MetricEntry = MetricEntry {
    name: "clip_score",
    otherwise: "clip_score",
    about: "agreement of pictures and captions by CLIP: the mean cosine, no reference",
    // The model is the one that --clip gives, so the variants differ in their unit and in how they prepare pictures and texts;
    // the first takes the preparation of the settings.
    variants: &[
        Variant { name: "cosine", features: "" },
        Variant { name: "mlperf-training", features: "open_clip" },
        Variant { name: "nemo", features: "open_clip" },
        Variant { name: "mlperf-inference", features: "open_clip" },
        Variant { name: "torchmetrics", features: "torchmetrics" },
    ],
    settings: &["clip", "seed", "resamples"],
    open: |settings| Ok(open(settings)),
};

fn open(settings: &MetricSettings) -> Metrics {
    let score = |variant: &Variant| -> Box<dyn Metric> {
        let preparation = if variant.features.is_empty() { settings.clip.as_str() } else { variant.features };
        let features = FeatureKey::new("clip", preparation);
        Box::new(ClipScore { variant: variant.name, features, resamples: settings.resamples, seed: settings.seed })
    };
    chosen(&ENTRY, settings).map(score).collect()
}

struct ClipScore {
    variant: &'static str,
    features: FeatureKey,
    resamples: usize,
    seed: u64,
}

impl ClipScore {
    /// What a cosine is multiplied by.
    fn unit(&self) -> f64 {
        if matches!(self.variant, "mlperf-inference" | "torchmetrics") { 100.0 } else { 1.0 }
    }
}

impl Metric for ClipScore {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn variant(&self) -> &str {
        self.variant
    }

    fn needs(&self) -> Needs {
        let rows = vec![Part::Features, Part::Captions];
        Needs { features: self.features.clone(), gaussian: false, rows, reference: false }
    }

    fn figures(&self, judged: &State, _: Option<&Reference>) -> Result<Vec<Figure>> {
        let wrong = |fault: MetricsError| EvaluateError::metric("clip_score")(fault);
        let (images, captions) = (judged.rows(Part::Features)?, judged.rows(Part::Captions)?);
        let cosines = pair_cosines(images.values()?, captions.values()?, images.width()).map_err(wrong)?;
        let scores: Vec<f64> = cosines.iter().map(|cosine| cosine * self.unit()).collect();
        let value = match self.variant {
            "torchmetrics" => torchmetrics_clip_score(&cosines),
            _ if scores.is_empty() => None,
            _ => Some(scores.iter().sum::<f64>() / scores.len() as f64),
        };
        let value = value.ok_or_else(|| EvaluateError::Usage("clip_score: there are no pictures".to_owned()))?;
        let mut figure = judged.figure(self, value, None);
        if self.resamples > 0 {
            let bootstrap = Bootstrap { resamples: self.resamples, confidence: 0.95, seed: self.seed };
            let interval = mean_interval(&scores, &bootstrap).map_err(wrong)?;
            figure.interval = Some([interval.low, interval.high]);
        }
        figure.set("unit", json!(self.unit()));
        Ok(vec![figure])
    }
}
