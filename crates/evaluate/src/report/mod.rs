//! What an evaluation leaves to be read: tables, plots, a page. Plain values go in, files come out; nothing here knows a model.
//!
//! ```text
//! Evaluation, Pictures ─> fid_scores.csv, clip_scores.csv, picture_scores.csv, figures.json       (tables.rs)
//!                         fid_clip_plot.{svg,png}, training_{fid,clip_score}.{svg,png}            (plots.rs, convergence.rs)
//!                         report.html: is it better (compare.rs), and where is it bad (words.rs)  (page.rs)
//! ```
//!
//! The same input gives the same bytes.

mod compare;
pub mod convergence;
mod page;
mod pictures;
mod plots;
mod tables;
mod words;

pub use pictures::{PictureFolder, Pictures};
pub use plots::fid_clip_plot;

use crate::{EvaluateError, Figure, Result};
use calotype_core::durable;
use calotype_metrics::{Bootstrap, Drawing, Interval, MetricsError, mean_interval};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Pixels of a plot's PNG to a unit of the drawing.
const PNG_SCALE: usize = 2;

/// What was evaluated, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model, as its user calls it; the heading of the report.
    pub title: String,
    /// How the pictures were made, in order: ("sampler", "PLMS, 50 steps").
    pub facts: Vec<(String, String)>,
    /// The resolved recipe as TOML.
    pub recipe: String,
    /// What differs between the settings, with its unit, such as `guidance scale` or `samples seen`; empty if there is one.
    pub varied: String,
    /// One for each guidance scale, or each checkpoint, or one alone, in the order of the sweep.
    pub settings: Vec<Setting>,
    /// Captions by sample, the same for all settings; empty if there are none. Not part of `figures.json`.
    #[serde(skip)]
    pub captions: Vec<String>,
}

/// Pictures that were made in one way, and their figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The value of what is varied, as the tables and plots show it.
    pub label: String,
    /// Samples that the checkpoint has seen, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_seen: Option<u64>,
    /// All figures, those of the recipe first.
    pub figures: Vec<Figure>,
    /// CLIP scores (cosines) by sample, in the order of the captions; empty if they were not measured, NaN where a picture is
    /// missing. Not part of `figures.json`.
    #[serde(skip)]
    pub clip_scores: Vec<f32>,
}

impl Setting {
    /// The Fréchet distance that stands for the setting: its first FID, or the first on features that are not the published ones.
    pub fn distance(&self) -> Option<&Figure> {
        self.first("fid").or_else(|| self.first("fd"))
    }

    /// The CLIP score that stands for the setting.
    pub fn clip_score(&self) -> Option<&Figure> {
        self.first("clip_score")
    }

    fn first(&self, metric: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.metric == metric)
    }
}

impl Evaluation {
    /// Number of the setting with the smallest Fréchet distance; without distances, that with the largest CLIP score, or the first.
    pub fn best(&self) -> usize {
        let value = |setting: &Setting| match (setting.distance(), setting.clip_score()) {
            (Some(distance), _) => distance.value,
            (None, Some(score)) => -score.value,
            (None, None) => f64::INFINITY,
        };
        let values: Vec<f64> = self.settings.iter().map(value).collect();
        (0..values.len()).min_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap_or(0)
    }

    /// The same with intervals of the CLIP scores that have none, by bootstrap of the pictures' scores.
    fn with_intervals(&self, seed: u64) -> Result<Self> {
        let mut all = self.clone();
        for setting in &mut all.settings {
            let scores: Vec<f64> = measured(&setting.clip_scores).collect();
            let wanting = setting.figures.iter().any(|figure| figure.is_clip_score() && figure.interval.is_none());
            if scores.is_empty() || !wanting {
                continue;
            }
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            let interval = interval_of_mean(&scores, seed).map_err(EvaluateError::metric("clip_score"))?;
            for figure in
                setting.figures.iter_mut().filter(|figure| figure.is_clip_score() && figure.interval.is_none())
            {
                // Some definitions count in hundredths; others are no mean of these scores, and get no interval of them.
                let scale = [1.0, 100.0]
                    .into_iter()
                    .find(|scale| (figure.value - scale * mean).abs() <= 1e-3 * scale * mean.abs());
                figure.interval = scale.map(|scale| [scale * interval.low, scale * interval.high]);
            }
        }
        Ok(all)
    }
}

impl Figure {
    fn is_clip_score(&self) -> bool {
        self.metric == "clip_score"
    }

    /// Whether lower is better; `None` if it is neither, or not known here.
    fn lower_is_better(&self) -> Option<bool> {
        Some(match self.metric.as_str() {
            "fid" | "fd" | "kid" | "kd" | "cmmd" | "clip_mmd" | "clip_fid" | "clip_fd" => true,
            "clip_score" | "inception_score" | "classifier_score" | "precision" | "recall" | "density" | "coverage" => {
                false
            }
            _ => return None,
        })
    }

    /// Its name for readers.
    fn title(&self) -> String {
        match self.metric.as_str() {
            "fid" => "FID".into(),
            "fd" => "Fréchet distance".into(),
            "kid" => "KID".into(),
            "kd" => "Kernel distance".into(),
            "cmmd" => "CMMD".into(),
            "clip_score" => "CLIP score".into(),
            "clip_fid" => "CLIP-FID".into(),
            "clip_fd" => "Fréchet distance on CLIP".into(),
            "clip_mmd" => "MMD on CLIP".into(),
            "inception_score" => "Inception score".into(),
            other => other.replace('_', " "),
        }
    }

    /// Name and variant.
    fn full_title(&self) -> String {
        if self.variant.is_empty() { self.title() } else { format!("{} ({})", self.title(), self.variant) }
    }
}

/// The scores of the pictures that have one.
fn measured(scores: &[f32]) -> impl Iterator<Item = f64> {
    scores.iter().map(|score| f64::from(*score)).filter(|score| score.is_finite())
}

fn interval_of_mean(values: &[f64], seed: u64) -> std::result::Result<Interval, MetricsError> {
    mean_interval(values, &Bootstrap { seed, ..Bootstrap::default() })
}

/// What an evaluation is compared with: another one.
pub struct Baseline {
    /// The other evaluation.
    pub evaluation: Evaluation,
    /// Its pictures, as far as they are kept.
    pub pictures: PictureFolder,
}

impl Baseline {
    /// Reads the folder of another evaluation: `figures.json`, and `picture_scores.csv` and the pictures where there are some.
    ///
    /// # Errors
    /// [`EvaluateError::Io`] and [`EvaluateError::File`] for files that cannot be used.
    pub fn read(folder: &Path) -> Result<Self> {
        let evaluation = tables::read(folder)?;
        let labels = evaluation.settings.iter().map(|setting| setting.label.clone()).collect();
        let root = Some(folder.join("pictures")).filter(|root| root.is_dir()).unwrap_or_else(|| folder.to_owned());
        Ok(Self { evaluation, pictures: PictureFolder { root, labels } })
    }
}

/// FID and CLIP scores of somebody else.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceCurve {
    /// Its name in the legend.
    pub name: String,
    /// Label, FID, CLIP score (in the unit of ours).
    pub points: Vec<(String, f64, f64)>,
}

impl ReferenceCurve {
    /// Reads a table `cfg,fid,clip_score`, or a folder with `fid_scores.csv` and `clip_scores.csv`; named after the file or folder.
    ///
    /// # Errors
    /// [`EvaluateError::Io`] and [`EvaluateError::File`] for files that cannot be used.
    pub fn read(path: &Path) -> Result<Self> {
        tables::read_curve(path)
    }
}

/// What a report is made with.
#[derive(Clone, Copy)]
pub struct ReportOptions<'a> {
    /// What the evaluation is compared with.
    pub baseline: Option<&'a Baseline>,
    /// A curve that is drawn beside the evaluation's.
    pub reference: Option<&'a ReferenceCurve>,
    /// Of the bootstrap.
    pub seed: u64,
    /// Number of pictures in each gallery.
    pub pictures: usize,
}

/// Writes all files of an evaluation into the folder `out`, each all or nothing, and returns their paths.
///
/// # Errors
/// [`EvaluateError::Io`] if a file cannot be written; [`EvaluateError::Usage`] if a setting has scores of another number of pictures
/// than there are captions; errors of `pictures`.
pub fn write(
    evaluation: &Evaluation,
    pictures: &dyn Pictures,
    options: &ReportOptions<'_>,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    check(evaluation)?;
    let evaluation = evaluation.with_intervals(options.seed)?;
    let mut written = tables::write(&evaluation, out)?;
    let plots = plots::all(&evaluation, options)?;
    for plot in &plots {
        written.extend(write_drawing(&plot.drawing, &out.join(plot.name))?);
    }
    let path = out.join("report.html");
    let report = page::report(&evaluation, pictures, options, plots)?;
    report.write(&path).map_err(EvaluateError::metric("report"))?;
    written.push(path);
    Ok(written)
}

/// Writes `path.svg` and `path.png`, and returns their paths.
///
/// # Errors
/// [`EvaluateError::Io`]; [`EvaluateError::Metric`] if the PNG cannot be encoded.
pub fn write_drawing(drawing: &Drawing, path: &Path) -> Result<[PathBuf; 2]> {
    let png = drawing.to_png(PNG_SCALE).map_err(EvaluateError::metric(drawing.title()))?;
    let paths = ["svg", "png"].map(|extension| path.with_extension(extension));
    for (path, bytes) in paths.iter().zip([drawing.to_svg_file().into_bytes(), png]) {
        durable::write_bytes(path, &bytes).map_err(EvaluateError::io("write", path))?;
    }
    Ok(paths)
}

fn check(evaluation: &Evaluation) -> Result<()> {
    let captions = evaluation.captions.len();
    let unlike = |setting: &&Setting| !setting.clip_scores.is_empty() && setting.clip_scores.len() != captions;
    match evaluation.settings.iter().find(unlike) {
        None => Ok(()),
        Some(Setting { label, clip_scores, .. }) => Err(EvaluateError::Usage(format!(
            "setting {label} has CLIP scores of {} pictures, but there are {captions} captions; give one score for each",
            clip_scores.len()
        ))),
    }
}

/// A number with four significant digits, small ones with three.
fn digits(value: f64) -> String {
    let size = value.abs();
    if !(0.01..1e7).contains(&size) {
        return calotype_metrics::report::figure(value);
    }
    let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
    format!("{value:.decimals$}")
}

/// A difference with its sign.
fn signed(value: f64) -> String {
    // Three digits: a difference has fewer than what it is of.
    let text = calotype_metrics::report::figure(value.abs());
    if value < 0.0 { format!("\u{2212}{text}") } else { format!("+{text}") }
}

/// A label as readers want it: whole numbers with their thousands apart.
fn label(text: &str) -> String {
    match text.parse() {
        Ok(number) if number >= 10_000 => count(number),
        _ => text.to_owned(),
    }
}

/// A count with its thousands apart.
fn count(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
