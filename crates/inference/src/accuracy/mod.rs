//! The accuracy of a run, as the reference's `text_to_image/tools/accuracy_coco.py` computes it: FID to COCO's statistics and CLIP
//! score of the captions, over the pictures of LoadGen's accuracy log.
//!
//! Pictures are read from the log some at a time, so that memory does not grow with it. Figures are those of the script: features
//! of pytorch-fid's Inception and open_clip's ViT-B/32, each sample once (its first response in the log), 100 times the cosine.

pub mod captions;
mod error;
pub mod ids;

pub use error::{AccuracyError, Result};

use crate::python;
use calotype_core::durable::{write_bytes, write_json};
use calotype_data::Control;
use calotype_data::image::{PngEffort, RgbImage};
use calotype_evaluate::{
    EvaluateError, Features, Figure, MetricSettings, Metrics, Networks, Pass, PassOptions, Picture, Reference, figures,
    metrics,
};
use calotype_mlperf::inference::accuracy_log::{AccuracyLog, Response};
use std::collections::HashSet;
use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// LoadGen's log of responses.
pub const LOG: &str = "mlperf_log_accuracy.json";
/// The figures in the script's words, which submission checkers read.
pub const ACCURACY: &str = "accuracy.txt";
/// The figures as the script's `--output-file` has them.
pub const RESULTS: &str = "coco-results.json";
/// The figures with everything that they depend on.
pub const FIGURES: &str = "figures.json";
/// Folder of the pictures for reviewers.
pub const IMAGES: &str = "images";

/// Sides of the benchmark's pictures.
const SIDE: usize = 1024;
/// Samples of the benchmark.
const SAMPLES: usize = 5000;
/// Limits of the closed division, both included (`MODEL_CONFIG` of the submission checker, v4.0 to v6.1).
const FID: [f64; 2] = [23.01085758, 23.95007626];
/// As [`FID`].
const CLIP: [f64; 2] = [31.68631873, 31.81331801];

/// Whose definitions the figures have, in the tables of the metrics.
const VARIANT: &str = "mlperf-inference";
/// Pictures that are read before they go through the networks. Figures do not depend on it, memory does.
const BATCH: usize = 8;
/// Name of the work in reports of progress.
const STAGE: &str = "accuracy";

/// What is judged, and where the result goes.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The accuracy log.
    pub log: &'a Path,
    /// Width and height of its pictures; if absent 1024 x 1024, or squares of the size that a response has.
    pub size: Option<(usize, usize)>,
    /// The captions of the samples, as [`captions::read`] reads them.
    pub captions: &'a [String],
    /// Mean and covariance of COCO's pictures: an `.npz` of `mu` and `sigma`, such as the reference's `tools/val2014.npz`.
    pub statistics: &'a Path,
    /// Samples whose pictures are kept for reviewers.
    pub kept: &'a [usize],
    /// Folder of the result.
    pub out: &'a Path,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Accuracy {
    /// The Fréchet distance.
    pub fid: Figure,
    /// The CLIP score.
    pub clip: Figure,
    /// Width and height of the pictures.
    pub size: (usize, usize),
    /// Responses that were passed over, for their samples have one already.
    pub repeated: usize,
    /// Number of captions.
    pub captions: usize,
    /// Samples whose pictures were to be kept, and are not in the log.
    pub missing: Vec<usize>,
}

impl Accuracy {
    /// The line that the script prints, and submission checkers look for.
    pub fn line(&self) -> String {
        let (fid, clip) = (python::float(self.fid.value), python::float(self.clip.value));
        format!("Accuracy Results: {{'FID_SCORE': '{fid}', 'CLIP_SCORE': '{clip}'}}")
    }

    /// True if both figures are within the limits of the closed division.
    pub fn is_within_limits(&self) -> bool {
        let within = |figure: &Figure, [low, high]: [f64; 2]| (low..=high).contains(&figure.value);
        within(&self.fid, FID) && within(&self.clip, CLIP)
    }

    /// What keeps these figures from being the benchmark's, and what was passed over, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (count, (width, height)) = (self.fid.count, self.size);
        if self.size != (SIDE, SIDE) {
            notes.push(format!("the pictures have {width}x{height} pixels, those of the benchmark {SIDE}x{SIDE}"));
        }
        if count != SAMPLES {
            notes.push(format!(
                "{count} samples were judged (of {} captions), the benchmark has {SAMPLES}",
                self.captions
            ));
        }
        if !self.fid.fingerprint.network.official {
            notes.push(
                "the Inception weights are not known to be the published ones: FID_SCORE compares among figures of the same \
                 weights alone"
                    .to_owned(),
            );
        }
        if !self.is_within_limits() {
            let [[fid_low, fid_high], [clip_low, clip_high]] = [FID, CLIP];
            notes.push(format!(
                "the closed division asks for FID_SCORE from {fid_low} to {fid_high} and CLIP_SCORE from {clip_low} to {clip_high}"
            ));
        }
        if self.repeated > 0 {
            notes.push(format!("{} responses were passed over, for their samples have an earlier one", self.repeated));
        }
        if !self.missing.is_empty() {
            let missing = self.missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            notes.push(format!("no pictures for reviewers of samples {missing}: the log has no responses of theirs"));
        }
        notes
    }

    fn write(&self, out: &Path) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = out.join(name);
            write_bytes(&path, text.as_bytes()).map_err(AccuracyError::io("write", &path))
        };
        let (fid, clip) = (python::float(self.fid.value), python::float(self.clip.value));
        write(RESULTS, format!("{{\n    \"CLIP_SCORE\": \"{clip}\",\n    \"FID_SCORE\": \"{fid}\"\n}}"))?;
        let path = out.join(FIGURES);
        write_json(&path, &[&self.fid, &self.clip]).map_err(AccuracyError::io("write", &path))?;
        write(ACCURACY, self.line() + "\n")
    }
}

/// Judges a log, and writes [`ACCURACY`], [`RESULTS`], [`FIGURES`] and, if pictures are kept, [`IMAGES`].
///
/// # Errors
/// [`AccuracyError::Log`] for a log that is damaged; [`AccuracyError::Evaluate`] for responses that are no pictures of one size or
/// have no caption, networks or statistics that cannot be used, fewer than two pictures, and if `control` stops the work.
pub fn judge(job: &Job<'_>, networks: &Networks, control: &mut Control<'_>) -> Result<Accuracy> {
    let metrics = metrics()?;
    let pass = Pass::open(&metrics, networks, &PassOptions::default())?;
    judge_in(job, &metrics, pass, control)
}

/// Judges a log with networks of one's own, which give the features `inception/pytorch-fid` and `clip/open_clip`.
///
/// # Errors
/// As [`judge`].
pub fn judge_with(job: &Job<'_>, features: Vec<Box<dyn Features>>, control: &mut Control<'_>) -> Result<Accuracy> {
    let metrics = metrics()?;
    let pass = Pass::of(features, &metrics, &PassOptions::default())?;
    judge_in(job, &metrics, pass, control)
}

fn judge_in(job: &Job<'_>, metrics: &Metrics, mut pass: Pass, control: &mut Control<'_>) -> Result<Accuracy> {
    let log = AccuracyLog::open(job.log)?;
    let bytes = fs::metadata(job.log).map_err(AccuracyError::io("read", job.log))?.len();
    let statistics = Reference::read_statistics(job.statistics)?;
    let keeper = Keeper::new(job)?;
    let mut pictures = Pictures::new(job, log);
    let mut missing: HashSet<usize> = job.kept.iter().copied().collect();
    loop {
        // Responses are alike in size, so that the share of the file that is read says how many there are.
        let (done, position) = (pass.done(), pictures.log.position());
        let total = (done as u64 * bytes).checked_div(position).unwrap_or(0);
        control.checkpoint(STAGE, done, total as usize).map_err(EvaluateError::from)?;
        let batch = pictures.batch()?;
        if batch.is_empty() {
            break;
        }
        for (sample, picture) in &batch {
            if missing.remove(sample) {
                keeper.keep(*sample, &picture.image)?;
            }
        }
        pass.push(&batch.into_iter().map(|(_, picture)| picture).collect::<Vec<_>>())?;
    }
    control.report(STAGE, pass.done(), pass.done());
    let Some(size) = pictures.size else {
        return Err(AccuracyError::file(
            job.log,
            "no responses in it, as of a performance run; give the log of an accuracy run",
        ));
    };
    let (repeated, captions) = (pictures.repeated, job.captions.len());
    let (fid, clip) = both(figures(metrics, &pass.finish()?, Some(&statistics))?)?;
    let mut missing: Vec<usize> = missing.into_iter().collect();
    missing.sort_unstable();
    let accuracy = Accuracy { fid, clip, size, repeated, captions, missing };
    accuracy.write(job.out)?;
    Ok(accuracy)
}

/// The benchmark's two, in its definitions.
fn metrics() -> Result<Metrics> {
    let settings = MetricSettings { variants: vec![VARIANT.to_owned()], ..MetricSettings::default() };
    Ok(metrics::open(&["fid".to_owned(), "clip_score".to_owned()], &settings)?)
}

/// The figures of [`metrics`].
fn both(figures: Vec<Figure>) -> Result<(Figure, Figure)> {
    match <[Figure; 2]>::try_from(figures) {
        Ok([fid, clip]) => Ok((fid, clip)),
        Err(other) => {
            let problem = format!("{} figures, where FID and CLIP score are two", other.len());
            Err(EvaluateError::Usage(problem).into())
        }
    }
}

/// The pictures of a log, each sample's first response.
struct Pictures<'a, R> {
    job: &'a Job<'a>,
    log: AccuracyLog<R>,
    seen: HashSet<usize>,
    size: Option<(usize, usize)>,
    repeated: usize,
}

impl<'a, R: BufRead> Pictures<'a, R> {
    fn new(job: &'a Job<'a>, log: AccuracyLog<R>) -> Self {
        Self { job, log, seen: HashSet::new(), size: None, repeated: 0 }
    }

    /// The next pictures with the numbers of their samples; none at the end of the log.
    fn batch(&mut self) -> Result<Vec<(usize, Picture)>> {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH
            && let Some(response) = self.log.next()
        {
            let response = response?;
            let sample = usize::try_from(response.qsl_idx).unwrap_or(usize::MAX);
            if !self.seen.insert(sample) {
                self.repeated += 1;
                continue;
            }
            batch.push((sample, self.picture(sample, response)?));
        }
        Ok(batch)
    }

    fn picture(&mut self, sample: usize, response: Response) -> Result<Picture> {
        let wrong = |problem: String| AccuracyError::file(self.job.log, format!("sample {sample}: {problem}"));
        let count = self.job.captions.len();
        let caption = self.job.captions.get(sample);
        let caption = caption
            .ok_or_else(|| wrong(format!("there are {count} captions; give those of the samples that the run drew")))?;
        let size = match self.size.or(self.job.size) {
            Some(size) => size,
            None => size_of(response.data.len()).map_err(&wrong)?,
        };
        let (width, height) = size;
        let bytes = response.data.len();
        let image = RgbImage::new(width, height, response.data).map_err(|_| {
            wrong(format!(
                "{bytes} bytes are no picture of {width}x{height} pixels, 3 bytes each; say --width and --height"
            ))
        })?;
        self.size = Some(size);
        Ok(Picture { name: sample.to_string(), image, caption: Some(caption.clone()) })
    }
}

/// Width and height of pictures of which nothing is said: squares.
fn size_of(bytes: usize) -> std::result::Result<(usize, usize), String> {
    let side = (bytes / 3).isqrt();
    match side > 0 && 3 * side * side == bytes {
        true => Ok((side, side)),
        false => Err(format!("{bytes} bytes are no square picture of 3 bytes a pixel; say --width and --height")),
    }
}

/// Keeps pictures for reviewers.
struct Keeper {
    folder: PathBuf,
}

impl Keeper {
    /// Makes the folder, and the captions in it.
    fn new(job: &Job<'_>) -> Result<Self> {
        let folder = job.out.join(IMAGES);
        let made = if job.kept.is_empty() { job.out } else { &folder };
        fs::create_dir_all(made).map_err(AccuracyError::io("make", made))?;
        if job.kept.is_empty() {
            return Ok(Self { folder });
        }
        let mut text = String::new();
        for sample in job.kept {
            let Some(caption) = job.captions.get(*sample) else {
                let problem = format!(
                    "sample {sample} is to be kept for reviewers, and there are {} captions",
                    job.captions.len()
                );
                return Err(EvaluateError::Usage(problem + "; name samples of the run with --compliance-ids").into());
            };
            text += &format!("{sample}  {caption}\n");
        }
        let path = folder.join("captions.txt");
        write_bytes(&path, text.as_bytes()).map_err(AccuracyError::io("write", &path))?;
        Ok(Self { folder })
    }

    fn keep(&self, sample: usize, image: &RgbImage) -> Result<()> {
        let png = image.encode_png(PngEffort::Default).map_err(EvaluateError::from)?;
        let path = self.folder.join(format!("{sample}.png"));
        write_bytes(&path, &png).map_err(AccuracyError::io("write", &path))
    }
}

/// The accuracy log of a scenario's folder, of a run's folder with one scenario, or of a folder that holds the log itself.
///
/// # Errors
/// [`AccuracyError::Evaluate`] if there is none, or there are several.
pub fn log_of(run: &Path) -> Result<PathBuf> {
    let of =
        |folder: &Path| [folder.join(LOG), folder.join("accuracy").join(LOG)].into_iter().find(|log| log.is_file());
    if let Some(log) = of(run) {
        return Ok(log);
    }
    let entries = fs::read_dir(run).map_err(AccuracyError::io("list", run))?;
    let mut logs: Vec<PathBuf> = entries.flatten().filter_map(|entry| of(&entry.path())).collect();
    logs.sort();
    match logs.len() {
        1 => Ok(logs.swap_remove(0)),
        0 => {
            Err(AccuracyError::file(run, format!("no {LOG} in it, nor in accuracy/: make an accuracy run there first")))
        }
        _ => {
            let folders =
                logs.iter().filter_map(|log| log.parent()?.parent()).map(|folder| folder.display().to_string());
            let folders = folders.collect::<Vec<_>>().join(", ");
            Err(AccuracyError::file(run, format!("accuracy logs of several scenarios: name one of {folders}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_squares_unless_said() {
        assert_eq!(size_of(3 * SIDE * SIDE), Ok((SIDE, SIDE)));
        assert_eq!(size_of(3), Ok((1, 1)));
        for bytes in [0, 1, 2, 4, 6, 3 * SIDE * SIDE - 3] {
            assert!(size_of(bytes).unwrap_err().contains("--width"), "{bytes}");
        }
    }

    #[test]
    fn logs_are_found_below_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        assert!(log_of(run).unwrap_err().to_string().contains("make an accuracy run"));
        for scenario in ["offline", "server"] {
            fs::create_dir_all(run.join(scenario).join("accuracy")).unwrap();
        }
        let offline = run.join("offline/accuracy").join(LOG);
        fs::write(&offline, "[\n]\n").unwrap();
        for given in ["", "offline", "offline/accuracy"] {
            assert_eq!(log_of(&run.join(given)).unwrap(), offline, "{given}");
        }
        fs::write(run.join("server/accuracy").join(LOG), "[\n]\n").unwrap();
        let error = log_of(run).unwrap_err().to_string();
        assert!(error.contains("several scenarios") && error.contains("server"), "{error}");
        assert!(log_of(&run.join("nowhere")).is_err());
    }
}
