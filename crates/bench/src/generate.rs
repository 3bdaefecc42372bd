//! Drawing images from a checkpoint, stage by stage.

use crate::{BenchError, median};
use burn::tensor::{DType, Device};
use calotype_checkpoints::Checkpoint;
use calotype_kernels::{isa_name, threads};
use calotype_ops::Precision;
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_pipeline::{LoadOptions, Observer, Pipeline, Request, Settings, Step};
use calotype_weights::Dtype;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The settings of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateBench {
    /// The shape of a checkpoint of random weights, which is written to the folder for temporary files.
    pub family: RandomFamily,
    /// A checkpoint instead.
    pub model: Option<PathBuf>,
    /// Side of the square images in pixels; none: what the checkpoint was trained for.
    pub resolution: Option<usize>,
    /// Sampling steps, at least 2: the first one is told apart.
    pub steps: usize,
    /// Images at once.
    pub batch: usize,
    /// Precision of activations and weights.
    pub precision: Precision,
    /// Type of the stored random weights: `F32`, `F16` or `BF16`.
    pub stored: Dtype,
    /// Keep all networks in memory, as a server does, instead of reading each when it is needed.
    pub keep: bool,
}

/// A measurement, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerateReport {
    /// Always `calotype`: tells its lines from those of peers.
    pub engine: &'static str,
    /// The checkpoint, or the family of the random one.
    pub model: String,
    /// Height and width of the images.
    pub size: [usize; 2],
    /// Sampling steps.
    pub steps: usize,
    /// Images at once.
    pub batch: usize,
    /// Precision of activations and weights.
    pub precision: Precision,
    /// True if all networks stay in memory.
    pub keep: bool,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Seconds to read all networks.
    pub load_seconds: f64,
    /// Seconds of the first step, which packs what is not packed yet.
    pub first_step_seconds: f64,
    /// Median seconds of the other steps.
    pub step_seconds: f64,
    /// Seconds from prompts to images without loading, for each image.
    pub seconds_per_image: f64,
    /// Largest memory of all stages, in GiB; none where the system does not tell.
    pub peak_rss_gib: Option<f64>,
    /// The stages in their order.
    pub stages: Vec<StageReport>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageReport {
    /// `load text`, `text`, `load unet`, `load autoencoder`, `sample`, `decode`.
    pub stage: &'static str,
    /// Its duration.
    pub seconds: f64,
    /// Largest resident memory of the process during the stage, in GiB; none where the system does not tell.
    pub peak_rss_gib: Option<f64>,
}

/// Memory in GiB, or that it is not known.
fn gib(memory: Option<f64>) -> String {
    memory.map_or("unknown".to_owned(), |gib| format!("{gib:.2} GiB"))
}

impl fmt::Display for GenerateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, size: [height, width], steps, batch, precision, threads, isa, .. } = self;
        writeln!(f, "{model} {width}x{height}, {steps} steps, batch {batch}, {precision}, {threads} threads, {isa}")?;
        writeln!(f, "{:<17} {:>9} {:>12}", "stage", "seconds", "most memory")?;
        for StageReport { stage, seconds, peak_rss_gib } in &self.stages {
            writeln!(f, "{stage:<17} {seconds:>9.3} {:>12}", gib(*peak_rss_gib))?;
        }
        writeln!(f, "{:.4} s a step, {:.4} s the first", self.step_seconds, self.first_step_seconds)?;
        writeln!(f, "{:.3} s to load, {:.3} s an image", self.load_seconds, self.seconds_per_image)?;
        write!(f, "{} at most", gib(self.peak_rss_gib))
    }
}

/// Draws one batch from a checkpoint, and tells for each stage how long it took and how much memory it needed.
///
/// A checkpoint of random weights was just written and is in the page cache; so is a given one after its first run.
///
/// # Errors
/// [`BenchError::Setting`] for settings that cannot be; [`BenchError::Folder`] and [`BenchError::Pipeline`] if the checkpoint
/// cannot be written, loaded or drawn with.
pub fn run_generate(bench: &GenerateBench) -> Result<GenerateReport, BenchError> {
    bench.validate()?;
    if let Some(path) = &bench.model {
        return bench.measure(path);
    }
    let failed = |source| BenchError::Folder { path: std::env::temp_dir(), source };
    let folder = tempfile::tempdir().map_err(failed)?;
    RandomCheckpoint { dtype: bench.stored, ..RandomCheckpoint::new(bench.family) }.write(folder.path())?;
    bench.measure(folder.path())
}

impl GenerateBench {
    fn validate(&self) -> Result<(), BenchError> {
        let least = |value: usize, least: usize, flag: &'static str| {
            let problem = || format!("must be at least {least}");
            if value < least { Err(BenchError::Setting { flag, problem: problem() }) } else { Ok(()) }
        };
        least(self.steps, 2, "--steps")?;
        least(self.batch, 1, "--batch")?;
        least(self.resolution.unwrap_or(1), 1, "--resolution")
    }

    fn measure(&self, path: &Path) -> Result<GenerateReport, BenchError> {
        // Networks are read one by one here, each as a stage.
        let options =
            LoadOptions { precision: self.precision, start_images: false, low_memory: true, ..LoadOptions::default() };
        let pipeline = Pipeline::load(&Checkpoint::open(path)?, &options)?;
        let settings = Settings {
            width: self.resolution,
            height: self.resolution,
            steps: self.steps,
            batch: self.batch,
            ..Settings::default()
        };
        let of = |number: usize| Request { number: number as u64, ..Request::new(format!("a photo of {number} cats")) };
        let requests: Vec<Request> = (0..self.batch).map(of).collect();
        let texts: Vec<&str> = requests.iter().map(|request| request.prompt.as_str()).collect();
        let mut stages = Stages::default();
        stages.run("load text", || pipeline.text_encoders().iter().try_for_each(|e| e.read().map_err(failed)))?;
        let prompts = stages.run("text", || Ok(pipeline.encode_prompts(&texts, &settings.prompts())?))?;
        if !self.keep {
            pipeline.text_encoders().iter().for_each(calotype_pipeline::encoders::TextEncoder::release);
        }
        stages.run("load unet", || pipeline.unet().get().map(drop).map_err(loading))?;
        stages.run("load autoencoder", || pipeline.autoencoder().get().map(drop).map_err(loading))?;
        let mut laps = Laps::default();
        let latents = stages.run("sample", || {
            laps.last = Some(Instant::now());
            Ok(pipeline.sample(&requests, &prompts, &settings, &mut laps)?)
        })?;
        if !self.keep {
            pipeline.unet().release();
        }
        let images = stages.run("decode", || Ok(pipeline.decode(latents)?))?;
        let [_, height, width, _] = images.dims();
        let witness = images.cast(DType::F32).sum().into_scalar::<f32>();
        if !witness.is_finite() {
            return Err(BenchError::NotFinite { family: self.name(), value: witness.to_string() });
        }
        Ok(self.report(stages.0, laps.seconds, [height, width]))
    }

    fn name(&self) -> String {
        self.model.as_ref().map_or(self.family.to_string(), |path| path.display().to_string())
    }

    fn report(&self, stages: Vec<StageReport>, steps: Vec<f64>, size: [usize; 2]) -> GenerateReport {
        let of = |loads: bool| {
            stages
                .iter()
                .filter(|stage| stage.stage.starts_with("load") == loads)
                .map(|stage| stage.seconds)
                .sum::<f64>()
        };
        let (load_seconds, work) = (of(true), of(false));
        GenerateReport {
            engine: "calotype",
            model: self.name(),
            size,
            steps: self.steps,
            batch: self.batch,
            precision: self.precision.resolve(&Device::flex()),
            keep: self.keep,
            threads: threads(),
            isa: isa_name(),
            load_seconds,
            first_step_seconds: steps.first().copied().unwrap_or_default(),
            step_seconds: median(steps.get(1..).unwrap_or_default().to_vec()),
            seconds_per_image: work / self.batch as f64,
            peak_rss_gib: stages.iter().filter_map(|stage| stage.peak_rss_gib).reduce(f64::max),
            stages,
        }
    }
}

fn failed(error: calotype_pipeline::encoders::EncoderError) -> BenchError {
    calotype_pipeline::PipelineError::from(error).into()
}

fn loading(error: calotype_checkpoints::loading::LoadError) -> BenchError {
    calotype_pipeline::PipelineError::from(error).into()
}

/// Stages that were measured.
#[derive(Default)]
struct Stages(Vec<StageReport>);

impl Stages {
    fn run<T>(&mut self, stage: &'static str, work: impl FnOnce() -> Result<T, BenchError>) -> Result<T, BenchError> {
        let known = reset_peak();
        let start = Instant::now();
        let result = work()?;
        let seconds = start.elapsed().as_secs_f64();
        let peak_rss_gib = known.then(calotype_core::system::peak_rss_gib).flatten();
        self.0.push(StageReport { stage, seconds, peak_rss_gib });
        Ok(result)
    }
}

/// Makes the largest resident memory of this process the current one (proc(5), `clear_refs`); whether that could be done.
fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Seconds of each step of the sampler.
#[derive(Default)]
struct Laps {
    last: Option<Instant>,
    seconds: Vec<f64>,
}

impl Observer for Laps {
    fn step(&mut self, _: &Step<'_>) {
        let now = Instant::now();
        self.seconds.extend(self.last.replace(now).map(|last| (now - last).as_secs_f64()));
    }
}
