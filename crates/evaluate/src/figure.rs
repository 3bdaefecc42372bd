//! Figures, and what they depend on.

use crate::features::{FeatureKey, NetworkFingerprint};
use crate::{EvaluateError, Result};
use calotype_core::read_text;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A figure of merit of a set of pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is: `fid`, `kid`, `clip_score`, …; a name without the published one's claim where the weights are not
    /// known to be the published ones (`fd` for `fid`).
    pub metric: String,
    /// Whose definition: `pytorch-fid`, `clean-fid`, ….
    pub variant: String,
    /// The figure.
    pub value: f64,
    /// Its standard deviation, where the definition has one (over the subsets of a KID, the splits of an Inception score).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
    /// Interval of 95 % confidence, by bootstrap over the pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// Number of pictures.
    pub count: usize,
    /// Everything that it depends on.
    pub fingerprint: Fingerprint,
}

impl Figure {
    /// Adds a setting of the metric to the fingerprint.
    pub fn set(&mut self, name: &str, value: Value) {
        self.fingerprint.settings.insert(name.to_owned(), value);
    }
}

/// Everything that a figure depends on besides the pictures' pixels. Figures of unlike ones do not compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Kind of the features.
    pub features: FeatureKey,
    /// The network with its preparation.
    #[serde(flatten)]
    pub network: NetworkFingerprint,
    /// Number type of the metric's sums.
    pub sums: String,
    /// Hash of the list of pictures: their captions, or where they have none, their names.
    pub samples: String,
    /// What they are compared with: the hash of its list, or of its file of statistics; empty if with nothing.
    pub reference: String,
    /// The metric's settings, such as seeds and sizes of subsets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Value>,
}

/// One thing in which two figures are unlike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// Its value on the left.
    pub left: String,
    /// Its value on the right.
    pub right: String,
}

/// In what two figures are unlike; nothing if they compare.
pub fn differences(left: &Figure, right: &Figure) -> Vec<Difference> {
    let fields = |figure: &Figure| {
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        let mut add = |name: &str, value: &str| fields.insert(name.to_owned(), value.to_owned());
        let fingerprint = &figure.fingerprint;
        let network = &fingerprint.network;
        add("metric", &figure.metric);
        add("variant", &figure.variant);
        add("count", &figure.count.to_string());
        add("features", &fingerprint.features.to_string());
        add("network", &network.network);
        add("weights", &network.weights);
        add("resize", &network.resize);
        add("rounding", &network.rounding);
        add("precision", &network.precision);
        add("sums", &fingerprint.sums);
        add("samples", &fingerprint.samples);
        add("reference", &fingerprint.reference);
        for (name, value) in &fingerprint.settings {
            fields.insert(format!("settings.{name}"), value.to_string());
        }
        fields
    };
    let (left, right) = (fields(left), fields(right));
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let value = |fields: &BTreeMap<String, String>, name: &str| fields.get(name).cloned().unwrap_or_default();
    let unlike = names.into_iter().filter(|name| left.get(*name) != right.get(*name));
    unlike
        .map(|field| Difference { field: field.clone(), left: value(&left, field), right: value(&right, field) })
        .collect()
}

/// Two figures that compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The metric.
    pub metric: String,
    /// Whose definition.
    pub variant: String,
    /// The left figure.
    pub left: f64,
    /// The right figure.
    pub right: f64,
    /// Right less left.
    pub difference: f64,
}

/// Two figures that do not compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unlike {
    /// The metric.
    pub metric: String,
    /// Whose definition.
    pub variant: String,
    /// In what they differ.
    pub differences: Vec<Difference>,
}

/// The figures of two files, side by side: those of one metric and variant, in their order. Figures that only one of them has
/// are left out.
pub fn compare(left: &[Figure], right: &[Figure]) -> (Vec<Comparison>, Vec<Unlike>) {
    let (mut alike, mut unlike) = (Vec::new(), Vec::new());
    let mut taken = vec![false; right.len()];
    for ours in left {
        let is_same = |figure: &Figure| (&figure.metric, &figure.variant) == (&ours.metric, &ours.variant);
        let Some(at) = (0..right.len()).find(|at| !taken[*at] && is_same(&right[*at])) else { continue };
        taken[at] = true;
        let (theirs, metric, variant) = (&right[at], ours.metric.clone(), ours.variant.clone());
        let differences = differences(ours, theirs);
        if differences.is_empty() {
            let (left, right) = (ours.value, theirs.value);
            alike.push(Comparison { metric, variant, left, right, difference: right - left });
        } else {
            unlike.push(Unlike { metric, variant, differences });
        }
    }
    (alike, unlike)
}

/// The figures of a file: JSON, or a JSON object a line, that holds figures at any depth.
///
/// # Errors
/// [`EvaluateError::Io`]; [`EvaluateError::File`] if it is no JSON, or has no figures.
pub fn read(path: &Path) -> Result<Vec<Figure>> {
    let text = read_text(path).map_err(EvaluateError::io("read", path))?;
    parse(&text).map_err(|detail| EvaluateError::File { path: path.to_owned(), detail })
}

/// The figures of a text, as of [`read`]; a fault is told in words.
///
/// # Errors
/// The text is no JSON, or has no figures.
pub fn parse(text: &str) -> std::result::Result<Vec<Figure>, String> {
    let mut figures = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        collect(&value.map_err(|fault| format!("no JSON: {fault}"))?, &mut figures);
    }
    match figures.is_empty() {
        true => Err("no figures in it; `calotype evaluate … --json` prints them, figures.json holds them".to_owned()),
        false => Ok(figures),
    }
}

/// Adds all figures that are in a value.
fn collect(value: &Value, figures: &mut Vec<Figure>) {
    if let Ok(figure) = Figure::deserialize(value) {
        return figures.push(figure);
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, figures)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, figures)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    fn figure(value: f64) -> Figure {
        let network = NetworkFingerprint {
            network: "Inception v3 (FID)".to_owned(),
            weights: "ab".to_owned(),
            official: true,
            resize: "bilinear".to_owned(),
            rounding: "none".to_owned(),
            precision: "f32".to_owned(),
        };
        let fingerprint = Fingerprint {
            features: FeatureKey::new("inception", "pytorch-fid"),
            network,
            sums: "f64".to_owned(),
            samples: "cd".to_owned(),
            reference: "ef".to_owned(),
            settings: BTreeMap::new(),
        };
        let (metric, variant) = ("fid".to_owned(), "pytorch-fid".to_owned());
        Figure { metric, variant, value, deviation: None, interval: None, count: 100, fingerprint }
    }

    #[test]
    fn like_figures_are_subtracted_and_unlike_ones_refused() {
        let (ours, mut theirs) = (figure(12.5), figure(11.0));
        let (alike, unlike) = compare(from_ref(&ours), from_ref(&theirs));
        assert_eq!((alike[0].difference, unlike.len()), (-1.5, 0));
        theirs.fingerprint.network.resize = "bicubic".to_owned();
        theirs.count = 99;
        theirs.set("seed", Value::from(3));
        let (alike, unlike) = compare(from_ref(&ours), from_ref(&theirs));
        assert!(alike.is_empty());
        let fields: Vec<&str> = unlike[0].differences.iter().map(|difference| difference.field.as_str()).collect();
        assert_eq!(fields, ["count", "resize", "settings.seed"]);
    }

    #[test]
    fn figures_are_found_in_any_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures.json");
        let one = serde_json::to_string(&figure(1.0 / 3.0)).unwrap();
        for text in [
            format!("{one}\n{one}"),
            format!("[{one}, {one}]"),
            format!("{{\"settings\": [{{\"figures\": [{one}, {one}]}}]}}"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap(), [figure(1.0 / 3.0), figure(1.0 / 3.0)]);
        }
        for (text, expected) in [("", "no figures"), ("{}", "no figures"), ("{", "no JSON"), ("[1, 2", "no JSON")] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("figures.json"), "{error}");
        }
    }
}
