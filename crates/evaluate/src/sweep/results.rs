//! The sub-stage that writes: tables, plots and reports of the points that have figures.

use super::judging::Scores;
use super::layout::{Layout, Point, make_folder};
use super::recipe::{Judged, SweepRecipe, setting};
use super::{Captions, Sweep, SweepEnd, SweepError};
use crate::report::{self, Baseline, Evaluation, ReferenceCurve, ReportOptions, Setting};
use crate::{EvaluateError, Figure, Pictures};
use calotype_core::durable;
use calotype_data::image::{DecodeOptions, RgbImage};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The figures of a run's checkpoints, a line for each, as `calotype mlperf finish` reads them.
const MLPERF: &str = "mlperf_scores.jsonl";

/// The points that have figures, in the order of the sweep.
#[derive(Default)]
pub(super) struct Results {
    scored: Vec<(Point, Scores)>,
    written: Vec<PathBuf>,
    mlperf: Option<PathBuf>,
}

/// What the report is compared with.
pub(super) struct Compared {
    baseline: Option<Baseline>,
    reference: Option<ReferenceCurve>,
}

impl Compared {
    /// Reads what the recipe names.
    ///
    /// # Errors
    /// [`SweepError::Setting`] naming the key of a baseline or a reference curve that cannot be read.
    pub fn read(recipe: &SweepRecipe) -> Result<Self, SweepError> {
        let wrong = |key: &'static str| move |error: EvaluateError| setting(key, error.to_string());
        let path = |path: &Option<String>| path.as_ref().map(PathBuf::from);
        let baseline = path(&recipe.report.baseline).map(|path| Baseline::read(&path)).transpose();
        let reference = path(&recipe.report.reference_curve).map(|path| ReferenceCurve::read(&path)).transpose();
        Ok(Self {
            baseline: baseline.map_err(wrong("report.baseline"))?,
            reference: reference.map_err(wrong("report.reference_curve"))?,
        })
    }
}

/// Where the pictures of points are.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub layout: &'a Layout,
    pub foreign: Option<&'a Pictures>,
}

/// The pictures of some points, as the report asks for them.
struct OfPoints<'a> {
    shown: Shown<'a>,
    points: Vec<Point>,
}

impl report::Pictures for OfPoints<'_> {
    fn picture(&self, setting: usize, sample: usize) -> Result<Option<RgbImage>, EvaluateError> {
        if let Some(foreign) = self.shown.foreign {
            return Ok(Some(foreign.get(sample)?.image));
        }
        let Some(point) = self.points.get(setting) else { return Ok(None) };
        let path = self.shown.layout.picture(point, sample);
        match fs::read(&path) {
            Ok(bytes) => {
                let name = path.display().to_string();
                Ok(Some(RgbImage::decode_with(&name, &bytes, &DecodeOptions::as_stored())?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EvaluateError::io("read", &path)(error)),
        }
    }
}

impl Results {
    pub fn push(&mut self, point: Point, scores: Scores) {
        self.scored.push((point, scores));
    }

    /// Writes a report of all points, or one for each checkpoint where each has several scales.
    ///
    /// # Errors
    /// [`SweepError::Evaluate`] as of writing; others as of [`Compared::read`].
    pub fn write(&mut self, sweep: &Sweep<'_>, captions: &Captions, shown: Shown<'_>) -> Result<(), SweepError> {
        self.written.clear();
        self.mlperf = None;
        if self.scored.is_empty() {
            return Ok(());
        }
        let recipe = sweep.recipe;
        let compared = Compared::read(recipe)?;
        let options = ReportOptions {
            baseline: compared.baseline.as_ref(),
            reference: compared.reference.as_ref(),
            seed: recipe.seed,
            pictures: recipe.report.pictures,
        };
        let both = self.is_of_run() && recipe.sampler.guidance.len() > 1;
        for part in self.scored.chunk_by(|a, b| !both || a.0.samples == b.0.samples) {
            let samples = part.first().and_then(|(point, _)| point.samples).filter(|_| both);
            let folder =
                samples.map_or(sweep.out.to_owned(), |samples| sweep.out.join("reports").join(samples.to_string()));
            make_folder(&folder)?;
            let points = part.iter().map(|(point, _)| *point).collect();
            let evaluation = evaluation(sweep, captions, samples, part);
            self.written.extend(report::write(&evaluation, &OfPoints { shown, points }, &options, &folder)?);
        }
        if self.is_of_run() && !both {
            self.write_mlperf(sweep.out)?;
        }
        Ok(())
    }

    fn is_of_run(&self) -> bool {
        self.scored.iter().any(|(point, _)| point.samples.is_some())
    }

    /// The figures as MLPerf's log takes them. Where features or weights are not known to be the published ones, the distance is
    /// `fd` and not `fid`, which is told.
    fn write_mlperf(&mut self, out: &Path) -> Result<(), SweepError> {
        let line = |(point, scores): &(Point, Scores)| -> Option<Line> {
            let (distance, clip) = (scores.of("fid").or_else(|| scores.of("fd"))?, scores.of("clip_score")?);
            let (samples, clip, official) = (point.samples?, clip.value, distance.metric == "fid");
            let [fid, fd] = [official, !official].map(|is_it| is_it.then_some(distance.value));
            Some(Line { samples, fid, fd, clip })
        };
        let mut lines: Vec<Line> = match self.scored.iter().map(line).collect() {
            Some(lines) => lines,
            None => return Ok(()),
        };
        lines.sort_by_key(|line| line.samples);
        if lines.iter().any(|line| line.fd.is_some()) {
            tracing::warn!(
                "{MLPERF}: the distances are of other features or weights than the published Inception's: they are `fd`, no FID, and no \
                 result of the benchmark"
            );
        }
        let path = out.join(MLPERF);
        let mut text = String::new();
        for line in &lines {
            text += &serde_json::to_string(line).map_err(|error| SweepError::io("write", &path)(error.into()))?;
            text.push('\n');
        }
        durable::write_bytes(&path, text.as_bytes()).map_err(SweepError::io("write", &path))?;
        self.mlperf = Some(path);
        Ok(())
    }

    /// How the sweep ended, with `waiting` points that lack something, and so many pictures done.
    pub fn end(self, waiting: usize, pictures: u64) -> SweepEnd {
        let lines = self.scored.iter().map(|(point, scores)| format!("{point}: {}", in_words(scores))).collect();
        let scored = self.scored.len();
        let figures = |(point, scores): (Point, Scores)| {
            (point.samples, scores.figures.into_iter().map(|(_, figure)| figure).collect())
        };
        let figures = self.scored.into_iter().map(figures).collect();
        SweepEnd { scored, waiting, pictures, written: self.written, lines, figures, mlperf: self.mlperf }
    }
}

/// One line of [`MLPERF`]; the names are those of `calotype_mlperf::Figure`.
#[derive(Serialize)]
struct Line {
    samples: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    fid: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fd: Option<f64>,
    clip: f64,
}

/// The figures of a point in one line.
fn in_words(scores: &Scores) -> String {
    let word = |figure: &Figure| {
        let deviation = figure.deviation.map_or(String::new(), |deviation| format!(" ± {deviation:.2e}"));
        format!("{} ({}) {:.5}{deviation}", figure.metric, figure.variant, figure.value)
    };
    scores.figures.iter().map(|(_, figure)| word(figure)).collect::<Vec<_>>().join(", ")
}

/// What the report tells of some points.
fn evaluation(sweep: &Sweep<'_>, captions: &Captions, samples: Option<u64>, points: &[(Point, Scores)]) -> Evaluation {
    let recipe = sweep.recipe;
    let of_run = points.iter().any(|(point, _)| point.samples.is_some());
    let varied = match (of_run && samples.is_none(), recipe.sampler.guidance.len(), &recipe.pictures) {
        (true, ..) => "samples seen",
        (false, 2.., None) => "guidance scale",
        _ => "",
    };
    let setting = |(point, scores): &(Point, Scores)| Setting {
        label: match (point.samples.filter(|_| samples.is_none()), point.guidance) {
            (Some(samples), _) => samples.to_string(),
            (None, Some(guidance)) => guidance.to_string(),
            (None, None) => point.to_string(),
        },
        samples_seen: point.samples,
        figures: scores.figures.iter().map(|(_, figure)| figure.clone()).collect(),
        clip_scores: scores.clip_scores.clone(),
    };
    Evaluation {
        title: title(recipe, samples),
        facts: facts(recipe),
        recipe: sweep.text.to_owned(),
        varied: varied.to_owned(),
        settings: points.iter().map(setting).collect(),
        captions: captions.list.iter().map(|caption| caption.text.clone()).collect(),
    }
}

fn title(recipe: &SweepRecipe, samples: Option<u64>) -> String {
    let path = match recipe.judged() {
        Ok(Judged::Model(path) | Judged::Run(path) | Judged::Pictures(path)) => path,
        Err(_) => "",
    };
    let name = Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy());
    match samples {
        Some(samples) => format!("{name}, {samples} samples"),
        None => name.into_owned(),
    }
}

/// Facts about how the pictures were made, for the report's head.
fn facts(recipe: &SweepRecipe) -> Vec<(String, String)> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![match recipe.judged() {
        Ok(Judged::Run(path)) => fact("training run", path.to_owned()),
        Ok(Judged::Pictures(path)) => fact("pictures", path.to_owned()),
        Ok(Judged::Model(path)) => fact("checkpoint", path.to_owned()),
        Err(_) => fact("checkpoint", String::new()),
    }];
    facts.push(fact("captions", format!("{} of {}", recipe.images, recipe.captions.path)));
    if recipe.pictures.is_none() {
        let SweepRecipe { sampler, noise, .. } = recipe;
        let name = sampler.name.as_deref().unwrap_or("the checkpoint's own");
        facts.push(fact("sampler", format!("{name}, {} steps", sampler.steps)));
        let scales: Vec<String> = sampler.guidance.iter().map(f32::to_string).collect();
        facts.push(fact("guidance", scales.join(", ")));
        facts.push(fact("noise", format!("{}, seed {}, seeds by {}", noise.generator, recipe.seed, noise.seeds)));
        if let Some(size) = recipe.size {
            facts.push(fact("size", format!("{size} px")));
        }
    }
    facts.extend(recipe.judge.reference.as_ref().map(|path| fact("reference", path.clone())));
    facts
}
