//! Figures, and what they depend on.

use crate::features::{FeatureKey, NetworkFingerprint};
use crate::{EvaluateError, Result};
use calotype_core::{durable, read_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Name of the file of figures that evaluations leave.
pub const FIGURES: &str = "figures.json";

/// Writes what holds figures as [`FIGURES`] into a folder, which is made if absent; returns the file.
///
/// # Errors
/// [`EvaluateError::Io`].
pub fn write(folder: &Path, figures: &(impl Serialize + ?Sized)) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(EvaluateError::io("make", folder))?;
    let file = folder.join(FIGURES);
    durable::write_json(&file, figures).map_err(EvaluateError::io("write", &file))?;
    Ok(file)
}

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
    /// What they are compared with: the hash of its list and of the pixels of its pictures, or of its file of statistics; empty if with
    /// nothing.
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
        add("metric", &figure.metric);
        add("variant", &figure.variant);
        add("count", &figure.count.to_string());
        add("features", &fingerprint.features.to_string());
        fingerprint.network.fields().into_iter().for_each(|(name, value)| _ = add(name, value));
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

/// A figure of a file of figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placed {
    /// Of which setting of a sweep it is (a guidance scale, samples seen), as the report calls it; empty if of none.
    pub place: String,
    /// The figure.
    pub figure: Figure,
}

/// Two figures that compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Of which setting of a sweep they are; of two, if each is of another. Empty if they are of none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub place: String,
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
    /// As of [`Comparison::place`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// The metric.
    pub metric: String,
    /// Whose definition.
    pub variant: String,
    /// In what they differ.
    pub differences: Vec<Difference>,
}

/// The figures of two files, side by side: those of one metric and variant, of the same setting of a sweep where both have it, else in
/// their order. Figures that only one of them has are left out.
pub fn compare(left: &[Placed], right: &[Placed]) -> (Vec<Comparison>, Vec<Unlike>) {
    let (mut alike, mut unlike) = (Vec::new(), Vec::new());
    let mut taken = vec![false; right.len()];
    for ours in left {
        let Some(at) = partner(ours, left, right, &taken) else { continue };
        taken[at] = true;
        let theirs = &right[at];
        let (metric, variant) = (ours.figure.metric.clone(), ours.figure.variant.clone());
        let place = match ours.place == theirs.place {
            true => ours.place.clone(),
            false => format!("{} and {}", named(&ours.place), named(&theirs.place)),
        };
        let differences = differences(&ours.figure, &theirs.figure);
        if differences.is_empty() {
            let (left, right) = (ours.figure.value, theirs.figure.value);
            alike.push(Comparison { place, metric, variant, left, right, difference: right - left });
        } else {
            unlike.push(Unlike { place, metric, variant, differences });
        }
    }
    (alike, unlike)
}

/// Which figure on the right is set beside one on the left: that of its setting, or else the first of a setting that the left does not
/// have.
fn partner(ours: &Placed, left: &[Placed], right: &[Placed], taken: &[bool]) -> Option<usize> {
    let is_same = |one: &Figure, other: &Figure| (&one.metric, &one.variant) == (&other.metric, &other.variant);
    let fits = |at: &usize| !taken[*at] && is_same(&right[*at].figure, &ours.figure);
    let is_of_other =
        |theirs: &Placed| left.iter().any(|one| one.place == theirs.place && is_same(&one.figure, &theirs.figure));
    let own = (0..right.len()).filter(fits).find(|at| right[*at].place == ours.place);
    own.or_else(|| (0..right.len()).filter(fits).find(|at| !is_of_other(&right[*at])))
}

/// A setting in words.
fn named(place: &str) -> &str {
    if place.is_empty() { "no setting" } else { place }
}

/// The figures of a file: JSON, or a JSON object a line, that holds figures at any depth. Of a folder, those of its [`FIGURES`].
///
/// # Errors
/// [`EvaluateError::Io`]; [`EvaluateError::File`] if it is no JSON, or has no figures; [`EvaluateError::Usage`] for a folder without such
/// a file.
pub fn read(path: &Path) -> Result<Vec<Placed>> {
    let file = if path.is_dir() { path.join(FIGURES) } else { path.to_owned() };
    if path.is_dir() && !file.is_file() {
        let path = path.display();
        return Err(EvaluateError::Usage(format!("{path}: a folder without {FIGURES}; name a file of figures")));
    }
    let text = read_text(&file).map_err(EvaluateError::io("read", &file))?;
    parse(&text).map_err(|detail| EvaluateError::File { path: file, detail })
}

/// Where a file of figures is to be had.
const WHERE_FIGURES_ARE: &str =
    "`calotype evaluate pictures … --json` prints them, figures.json in the folder of an evaluation holds them";

/// The figures of a text, as of [`read`]; a fault is told in words.
///
/// # Errors
/// The text is no JSON, or has no figures.
pub fn parse(text: &str) -> std::result::Result<Vec<Placed>, String> {
    let mut figures = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let fault = |fault: serde_json::Error| {
            format!("is no JSON (line {}, column {}); {WHERE_FIGURES_ARE}", fault.line(), fault.column())
        };
        collect(&value.map_err(fault)?, "", &mut figures);
    }
    match figures.is_empty() {
        true => Err(format!("no figures in it; {WHERE_FIGURES_ARE}")),
        false => Ok(figures),
    }
}

/// Adds all figures that are in a value; `place` is the label of the innermost setting around it.
fn collect(value: &Value, place: &str, figures: &mut Vec<Placed>) {
    if let Ok(figure) = Figure::deserialize(value) {
        return figures.push(Placed { place: place.to_owned(), figure });
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, place, figures)),
        Value::Object(fields) => {
            let place = fields.get("label").and_then(Value::as_str).unwrap_or(place);
            fields.values().for_each(|value| collect(value, place, figures));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn placed(place: &str, figure: &Figure) -> Placed {
        Placed { place: place.to_owned(), figure: figure.clone() }
    }

    #[test]
    fn figures_of_a_sweep_are_set_beside_those_of_the_same_setting() {
        let of = |places: &[(&str, f64)]| -> Vec<Placed> {
            places.iter().map(|(place, value)| placed(place, &figure(*value))).collect()
        };
        let pairs = |left: &[Placed], right: &[Placed]| -> Vec<(String, f64, f64)> {
            compare(left, right).0.into_iter().map(|pair| (pair.place, pair.left, pair.right)).collect()
        };
        let pair = |place: &str, left: f64, right: f64| (place.to_owned(), left, right);
        let (left, right) = (of(&[("1", 1.0), ("3", 2.0)]), of(&[("3", 3.0), ("7", 4.0)]));
        assert_eq!(pairs(&left, &right), [pair("1 and 7", 1.0, 4.0), pair("3", 2.0, 3.0)]);
        assert_eq!(pairs(&left, &left), [pair("1", 1.0, 1.0), pair("3", 2.0, 2.0)]);
        assert_eq!(pairs(&of(&[("", 1.0)]), &of(&[("2", 5.0)])), [pair("no setting and 2", 1.0, 5.0)]);
        assert_eq!(pairs(&of(&[("", 1.0), ("", 2.0)]), &of(&[("", 3.0)])), [pair("", 1.0, 3.0)]);
    }

    #[test]
    fn like_figures_are_subtracted_and_unlike_ones_refused() {
        let (ours, mut theirs) = (figure(12.5), figure(11.0));
        let (alike, unlike) = compare(&[placed("", &ours)], &[placed("", &theirs)]);
        assert_eq!((alike[0].difference, unlike.len()), (-1.5, 0));
        theirs.fingerprint.network.resize = "bicubic".to_owned();
        theirs.count = 99;
        theirs.set("seed", Value::from(3));
        let (alike, unlike) = compare(&[placed("", &ours)], &[placed("", &theirs)]);
        assert!(alike.is_empty());
        let fields: Vec<&str> = unlike[0].differences.iter().map(|difference| difference.field.as_str()).collect();
        assert_eq!(fields, ["count", "resize", "settings.seed"]);
    }

    #[test]
    fn figures_are_found_in_any_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures.json");
        let one = serde_json::to_string(&figure(1.0 / 3.0)).unwrap();
        let missing = read(folder.path()).unwrap_err();
        assert!(missing.is_usage() && missing.to_string().contains("a folder without figures.json"), "{missing}");
        for (text, place) in [
            (format!("{one}\n{one}"), ""),
            (format!("[{one}, {one}]"), ""),
            (format!("{{\"settings\": [{{\"label\": \"7.5\", \"figures\": [{one}, {one}]}}]}}"), "7.5"),
        ] {
            std::fs::write(&path, text).unwrap();
            let both = [placed(place, &figure(1.0 / 3.0)), placed(place, &figure(1.0 / 3.0))];
            assert_eq!(read(&path).unwrap(), both);
            assert_eq!(read(folder.path()).unwrap(), both);
        }
        for (text, expected) in
            [("", "no figures"), ("{}", "no figures"), ("{", "is no JSON (line 1, "), ("[1, 2", "is no JSON (")]
        {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("figures.json") && !error.contains("EOF"), "{error}");
        }
    }
}
