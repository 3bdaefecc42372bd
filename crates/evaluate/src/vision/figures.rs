//! Figures of vision models, with all that they depend on.

use crate::features::Features;
use crate::figure::{Figure, Fingerprint};
use crate::state::SampleList;
use crate::{EvaluateError, Result};
use calotype_metrics::{Bootstrap, mean_interval};
use serde_json::Value;
use std::collections::BTreeMap;

/// A network and the samples that it was judged by.
pub(super) struct Judged<'a> {
    network: &'a dyn Features,
    samples: SampleList,
    /// Hash of what the samples are compared with; empty if with nothing.
    pub reference: String,
    /// What else the figures depend on.
    pub settings: BTreeMap<String, Value>,
}

impl<'a> Judged<'a> {
    /// Samples by what identifies them: name and class, name and captions.
    pub fn of(network: &'a dyn Features, samples: impl Iterator<Item = String>) -> Self {
        let mut list = SampleList::starting_at(0);
        samples.for_each(|sample| list.push(&sample));
        Self { network, samples: list, reference: String::new(), settings: BTreeMap::new() }
    }

    /// The hash of a list of texts.
    pub fn hash(texts: impl Iterator<Item = String>) -> String {
        let mut list = SampleList::starting_at(0);
        texts.for_each(|text| list.push(&text));
        list.hash()
    }

    /// The figure of a share of samples: the mean of `hits`, 1 or 0 for each, with its interval by bootstrap.
    ///
    /// # Errors
    /// [`EvaluateError::Metric`] if there are none.
    pub fn share(&self, metric: &str, variant: &str, hits: &[f64]) -> Result<Figure> {
        let interval = mean_interval(hits, &Bootstrap::default()).map_err(EvaluateError::metric(metric))?;
        let share = hits.iter().sum::<f64>() / hits.len() as f64;
        Ok(Figure { interval: Some([interval.low, interval.high]), ..self.figure(metric, variant, share, hits.len()) })
    }

    /// A figure of `count` samples.
    pub fn figure(&self, metric: &str, variant: &str, value: f64, count: usize) -> Figure {
        Figure {
            metric: metric.to_owned(),
            variant: variant.to_owned(),
            value,
            deviation: None,
            interval: None,
            count,
            fingerprint: Fingerprint {
                features: self.network.key().clone(),
                network: self.network.fingerprint().clone(),
                sums: "f64".to_owned(),
                samples: self.samples.hash(),
                reference: self.reference.clone(),
                settings: self.settings.clone(),
            },
        }
    }
}
