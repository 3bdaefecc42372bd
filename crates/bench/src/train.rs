//! Whole training steps as MosaicML's diffusion-benchmark times them: images and captions through their frozen encoders, the
//! UNet forward and backward, AdamW, and the moving average.

use crate::microbatch::{MicrobatchProbe, largest};
use crate::mosaic::{EMA_DECAY, ScheduleCost, SpeedMonitor, Table};
use crate::setting::Family;
use crate::{BenchError, json_line};
use burn::module::Module;
use burn::tensor::Device;
use calotype_collective::Local;
use calotype_core::Progress;
use calotype_core::system::{memory, peak_rss_gib};
use calotype_data::{Batch, Loader, LoaderConfig, Source};
use calotype_kernels::{isa_name, threads};
use calotype_models::{Init, UNet, UNetConfig};
use calotype_ops::Precision;
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_train::StopFlag;
use calotype_train::config::{LARGEST_BATCH, TrainingRecipe};
use calotype_train::optim::{Optimizer, StepGradients};
use calotype_train::recipe::RecipeLoader;
use calotype_train::sources::open_source;
use calotype_train::stages::{self, StageContext};
use calotype_train::task::{Loss, StepContext, Task};
use calotype_train::tasks::diffusion::{DiffusionRecipe, DiffusionTask, NoisySample};
use calotype_train::tasks::{TypedRun, load_as};
use calotype_weights::Dtype;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Name of the recipe; no file is called so.
const RECIPE: &str = "calotype-bench/mosaic-step";
/// The step, as a recipe.
const RECIPES: &[(&str, &str)] = &[(RECIPE, include_str!("mosaic.toml"))];
/// Samples of the synthetic data.
const SYNTHETIC_SAMPLES: usize = 100_000;
/// Words of a synthetic caption.
const SYNTHETIC_WORDS: usize = 12;
/// Standard deviation of all of the UNet's parameters.
const DEVIATION: f32 = 0.02;
/// Batches that nobody waits for.
const MOST_BATCHES: usize = 1 << 24;
/// Networks and size of the images that the published figures are of.
const PUBLISHED_OF: (Family, usize) = (Family::Sd2, 512);
/// Share of the memory that is free which `auto` takes.
const BUDGET: f64 = 0.9;
const GIB: f64 = (1u64 << 30) as f64;

/// Images that go through the networks at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Microbatch {
    /// As many as the budget of memory allows.
    Auto,
    /// This many.
    Size(usize),
}

impl std::str::FromStr for Microbatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(size)) if size > 0 => Ok(Self::Size(size)),
            _ => Err("use a number of images of at least 1, or auto".to_owned()),
        }
    }
}

/// The settings of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainBench {
    /// Shape of UNet, autoencoder and text encoder.
    pub family: Family,
    /// Side of the square images in pixels.
    pub image_size: usize,
    /// Images of a step.
    pub batch_size: usize,
    /// Images that go through the networks at once.
    pub microbatch: Microbatch,
    /// Memory that [`Microbatch::Auto`] may take, in GiB; none: nine tenths of what is free.
    pub memory_budget: Option<f64>,
    /// Whether a moving average of the weights is kept.
    pub use_ema: bool,
    /// Source of images (part `jpg` or the like) and captions (part `caption` or `txt`); none: synthetic ones.
    pub remote: Option<String>,
    /// Precision of activations.
    pub precision: Precision,
    /// Batches in all.
    pub batches: usize,
    /// Batches at the end that count.
    pub window: usize,
    /// Price of a device-hour in dollars.
    pub price: Option<f64>,
}

/// A measurement, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Always `calotype`: tells its lines from those of peers.
    pub engine: &'static str,
    /// Shape of the networks.
    pub family: Family,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Images of a step.
    pub batch_size: usize,
    /// Images that went through the networks at once.
    pub device_train_microbatch_size: usize,
    /// What was tried to find that; empty if it was given.
    pub probes: Vec<MicrobatchProbe>,
    /// The budget of that search, in GiB; none if it was given.
    pub memory_budget_gib: Option<f64>,
    /// Whether a moving average was kept.
    pub use_ema: bool,
    /// The source of the samples.
    pub data: String,
    /// Precision of activations.
    pub precision: Precision,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Batches in all.
    pub batches: usize,
    /// Batches that count: the last ones.
    pub window: usize,
    /// Their seconds in all.
    pub seconds: f64,
    /// Images over seconds of these batches (`throughput/samples_per_sec`).
    pub images_per_second: f64,
    /// Share of all batches' time that went to waiting for data.
    pub data_wait: f64,
    /// Loss of the last batch; of made-up images it means nothing.
    pub loss: f64,
    /// Largest resident memory of the process, in GiB; none where the system does not tell.
    pub peak_rss_gib: Option<f64>,
    /// What Stable Diffusion 2's schedule would take at this throughput.
    pub schedule: ScheduleCost,
}

impl TrainReport {
    /// One JSON object in one line.
    pub fn json(&self) -> String {
        json_line(self)
    }
}

impl fmt::Display for TrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, image_size, batch_size, precision, threads, isa, data, .. } = self;
        let ema = if self.use_ema { ", moving average" } else { "" };
        let micro = self.device_train_microbatch_size;
        writeln!(f, "{family} {image_size}x{image_size}, batch {batch_size} in micro-batches of {micro}{ema}")?;
        writeln!(f, "{data}, {precision}, {threads} threads, {isa}")?;
        if let Some(budget) = self.memory_budget_gib {
            let tried = self.probes.iter().map(|p| format!("{}: {:.2}", p.microbatch, p.peak_rss_gib));
            writeln!(f, "memory of micro-batches in GiB, of {budget:.2}: {}", tried.collect::<Vec<_>>().join(", "))?;
        }
        let (rate, window, batches, seconds) = (self.images_per_second, self.window, self.batches, self.seconds);
        writeln!(f, "{rate:.4} images/s over the last {window} of {batches} batches ({seconds:.2} s)")?;
        let memory = self.peak_rss_gib.map_or("unknown memory".to_owned(), |gib| format!("{gib:.2} GiB"));
        writeln!(f, "{:.1} % of the time waiting for data, {memory} at most", 100.0 * self.data_wait)?;
        writeln!(f, "\nStable Diffusion 2's 1,400,000 batches of 2,048 images, and as published for A100:")?;
        if (*family, *image_size) != PUBLISHED_OF {
            let (of, side) = PUBLISHED_OF;
            writeln!(
                f,
                "(those are of {of} at {side}x{side}; this is {family} at {image_size}x{image_size}, and the days and the cost of its \
                 row are not those of that training)"
            )?;
        }
        write!(f, "{}", Table(self.schedule))
    }
}

impl Family {
    /// The checkpoint of random weights whose autoencoder and text encoder go with this UNet.
    fn encoders(self) -> RandomFamily {
        match self {
            Family::Sd1 => RandomFamily::Sd1,
            Family::Sd2 => RandomFamily::Sd2,
            Family::Sdxl => RandomFamily::Sdxl,
            Family::Tiny => RandomFamily::Tiny,
        }
    }

    /// The UNet, for the states of that text encoder.
    fn conditioned(self) -> UNetConfig {
        match self {
            Family::Tiny => UNetConfig { context_channels: 32, ..self.config() },
            _ => self.config(),
        }
    }
}

impl TrainBench {
    fn validate(&self) -> Result<(), BenchError> {
        let check = |ok: bool, flag: &'static str, problem: &dyn Fn() -> String| {
            if ok { Ok(()) } else { Err(BenchError::Setting { flag, problem: problem() }) }
        };
        check(self.family != Family::Sdxl, "--family", &|| {
            "sdxl takes two text encoders, and the published benchmark is of one; `bench unet` has it".to_owned()
        })?;
        let step = 8 * self.family.config().size_multiple();
        check(self.image_size > 0 && self.image_size.is_multiple_of(step), "--image-size", &|| {
            format!("{} is not a multiple of {step} pixels, as the network's levels need it", self.image_size)
        })?;
        let at_least_one = || "must be at least 1".to_owned();
        check(self.batch_size > 0, "--batch-size", &at_least_one)?;
        check(self.batch_size <= LARGEST_BATCH, "--batch-size", &|| {
            format!("{} images at once are more than any memory holds; use at most {LARGEST_BATCH}", self.batch_size)
        })?;
        for (flag, number) in [("--window", self.window), ("--batches", self.batches)] {
            check(number <= MOST_BATCHES, flag, &|| format!("{number} batches never end; use at most {MOST_BATCHES}"))?;
        }
        check(self.batches > 0, "--batches", &at_least_one)?;
        check(self.window > 0, "--window", &at_least_one)?;
        if let Microbatch::Size(size) = self.microbatch {
            check(size > 0 && self.batch_size.is_multiple_of(size), "--device-train-microbatch-size", &|| {
                format!("{size} does not divide the {} images of a batch", self.batch_size)
            })?;
        }
        let positive = |number: Option<f64>| number.is_none_or(|number| number > 0.0 && number.is_finite());
        check(positive(self.memory_budget), "--memory-budget", &|| "must be a positive number of GiB".to_owned())?;
        check(self.price.is_none_or(|price| price >= 0.0 && price.is_finite()), "--price", &|| {
            "must be a number of at least 0".to_owned()
        })
    }

    /// The address of the samples.
    fn source(&self) -> String {
        let side = self.image_size;
        let synthetic = || format!("synthetic://{SYNTHETIC_SAMPLES}/bmp=bmp:{side}x{side}/txt=words:{SYNTHETIC_WORDS}");
        self.remote.clone().unwrap_or_else(synthetic)
    }

    /// The recipe with the networks of a checkpoint.
    fn recipe(&self, checkpoint: &Path) -> Result<DiffusionRecipe, BenchError> {
        let (batch, precision) = (self.batch_size, self.precision.name());
        let mut overrides = vec![
            format!("data.path={:?}", self.source()),
            format!("inputs.resolution={}", self.image_size),
            format!("autoencoder={checkpoint:?}"),
            format!("text.model={checkpoint:?}"),
            format!("text.precision={precision:?}"),
            format!("run.precision={precision:?}"),
            format!("run.batch_size={batch}"),
            format!("run.samples={}", batch as u64 * self.batches as u64),
        ];
        if self.use_ema {
            overrides.push(format!("ema={{ name = \"constant\", decay = {EMA_DECAY} }}"));
        }
        let loader = RecipeLoader::new().embedded(RECIPES);
        let TypedRun { value: mut recipe, .. } = load_as::<DiffusionTask>(&loader, RECIPE, &overrides)?;
        recipe.model = self.family.conditioned();
        stages::check_recipe::<DiffusionTask>(&recipe)?;
        let source = open_source(&recipe.data, None)?;
        let first = source.get(0)?;
        if first.sample().parts().any(|(part, _)| part == "caption") {
            recipe.data.caption = "caption".to_owned();
        }
        Ok(recipe)
    }

    /// What the search for the micro-batch may take, in GiB.
    fn budget(&self) -> Result<f64, BenchError> {
        let unknown = || BenchError::Setting {
            flag: "--memory-budget",
            problem: "the system does not tell how much memory is free; say how many GiB may be taken".to_owned(),
        };
        match self.memory_budget {
            Some(budget) => Ok(budget),
            // What this process holds already is its own.
            None => memory().map(|memory| BUDGET * memory.available as f64 / GIB).ok_or_else(unknown),
        }
    }
}

/// Trains for some batches as the benchmark does, and tells how fast that was.
///
/// The networks have random weights, which are written to the folder for temporary files first.
///
/// # Errors
/// [`BenchError::Setting`] for settings that cannot be; [`BenchError::Folder`] and [`BenchError::Pipeline`] if the checkpoint cannot be
/// written; [`BenchError::Stage`], [`BenchError::Data`] and [`BenchError::Step`] if the data or a step cannot be;
/// [`BenchError::NotFinite`] if the last loss is no number.
pub fn run_train(bench: &TrainBench) -> Result<TrainReport, BenchError> {
    bench.validate()?;
    let search = match bench.microbatch {
        Microbatch::Auto => Search::Within(bench.budget()?),
        Microbatch::Size(size) => Search::Given(size),
    };
    let failed = |source| BenchError::Folder { path: std::env::temp_dir(), source };
    let folder = tempfile::tempdir().map_err(failed)?;
    // Samples that cannot be read are found out before gigabytes of weights are written.
    let recipe = bench.recipe(folder.path())?;
    RandomCheckpoint { dtype: Dtype::F16, ..RandomCheckpoint::new(bench.family.encoders()) }.write(folder.path())?;
    let mut work = Work::new(recipe, folder.path())?;
    let (microbatch, probes) = match search {
        Search::Given(size) => (size, Vec::new()),
        Search::Within(budget) => {
            let fixed = work.fixed_gib();
            largest(bench.batch_size, budget, fixed, |size| work.probe(size))?
        }
    };
    let times = work.measure(bench, microbatch)?;
    let (window, seconds) = times.monitor.seen();
    let images_per_second = times.monitor.samples_per_second();
    if !times.loss.is_finite() {
        return Err(BenchError::NotFinite { family: bench.family.to_string(), value: times.loss.to_string() });
    }
    Ok(TrainReport {
        engine: "calotype",
        family: bench.family,
        image_size: bench.image_size,
        batch_size: bench.batch_size,
        device_train_microbatch_size: microbatch,
        memory_budget_gib: search.budget(),
        probes,
        use_ema: bench.use_ema,
        data: bench.source(),
        precision: bench.precision.resolve(&Device::flex()),
        threads: threads(),
        isa: isa_name(),
        batches: bench.batches,
        window,
        seconds,
        images_per_second,
        data_wait: times.waited / times.whole,
        loss: times.loss,
        peak_rss_gib: peak_rss_gib(),
        schedule: ScheduleCost::of(1, images_per_second, bench.price),
    })
}

/// How the micro-batch is found.
#[derive(Clone, Copy)]
enum Search {
    Given(usize),
    /// A budget of memory in GiB.
    Within(f64),
}

impl Search {
    fn budget(self) -> Option<f64> {
        match self {
            Self::Given(_) => None,
            Self::Within(budget) => Some(budget),
        }
    }
}

/// What is trained, and by what.
struct Work {
    task: DiffusionTask,
    recipe: DiffusionRecipe,
    dataset: Arc<dyn Source>,
    /// Taken out while a step makes the next one of it.
    unet: Option<UNet>,
    optimizer: Optimizer,
    samples: u64,
}

/// What was measured.
struct Times {
    monitor: SpeedMonitor,
    /// Seconds of all batches, and those of them that went to waiting for data.
    whole: f64,
    waited: f64,
    loss: f64,
}

impl Work {
    fn new(recipe: DiffusionRecipe, folder: &Path) -> Result<Self, BenchError> {
        let (device, stop) = (Device::flex(), StopFlag::new_unhooked());
        let task = DiffusionTask::open(&recipe, &StageContext::new(folder, &device, &stop))?;
        let dataset = open_source(&recipe.data, None)?;
        let unet = task.model(&mut Init::repeated_noise(DEVIATION, &device.autodiff()))?;
        let optimizer = Optimizer::new(&unet, &recipe.config())?;
        Ok(Self { task, recipe, dataset, unet: Some(unet), optimizer, samples: 0 })
    }

    /// What the process holds whatever the micro-batch: what it has by now, gradients, and the optimizer's state; in GiB.
    fn fixed_gib(&self) -> f64 {
        let parameters = self.unet.as_ref().map_or(0, Module::num_params);
        let copies = if self.recipe.ema.is_some() { 4.0 } else { 3.0 };
        peak_rss_gib().unwrap_or(0.0) + copies * 4.0 * parameters as f64 / GIB
    }

    fn loader(&self, microbatch: usize) -> Result<Loader<NoisySample>, BenchError> {
        let data = &self.recipe.data;
        let order = Arc::new(self.dataset.order(&data.order(self.recipe.run.seed))?);
        let config = LoaderConfig { threads: data.threads, ..LoaderConfig::new(microbatch) };
        Ok(Loader::new(Arc::clone(&self.dataset), order, config, self.task.decoder(0..0))?)
    }

    /// The memory that the process has taken at most behind two steps of one micro-batch, in GiB.
    fn probe(&mut self, microbatch: usize) -> Result<f64, BenchError> {
        let mut loader = self.loader(microbatch)?;
        for _ in 0..2 {
            let parts = loader.by_ref().take(1).collect::<Result<Vec<_>, _>>()?;
            self.step(parts)?;
        }
        peak_rss_gib().ok_or_else(|| BenchError::Setting {
            flag: "--device-train-microbatch-size",
            problem: "the system does not tell what memory the process takes; give a number instead of auto".to_owned(),
        })
    }

    fn measure(&mut self, bench: &TrainBench, microbatch: usize) -> Result<Times, BenchError> {
        let parts = bench.batch_size / microbatch;
        let mut loader = self.loader(microbatch)?;
        let mut progress = Progress::new("bench train", bench.batches as u64).counting(["batches", "batches/s"]);
        let mut times = Times { monitor: SpeedMonitor::new(bench.window), whole: 0.0, waited: 0.0, loss: f64::NAN };
        let mut last = Instant::now();
        for batch in 1..=bench.batches as u64 {
            let mut loss = MeanLoss::default();
            for _ in 0..parts {
                let asked = Instant::now();
                let part = loader.by_ref().take(1).collect::<Result<Vec<_>, _>>()?;
                times.waited += asked.elapsed().as_secs_f64();
                loss.parts(self, part)?;
            }
            times.loss = loss.step(self)?;
            let seconds = last.elapsed().as_secs_f64();
            last = Instant::now();
            times.whole += seconds;
            times.monitor.add(bench.batch_size, seconds);
            progress.set(batch, &[("images/s", times.monitor.samples_per_second())]);
        }
        Ok(times)
    }

    /// A step on the parts of a batch.
    fn step(&mut self, parts: Vec<Batch<NoisySample>>) -> Result<f64, BenchError> {
        let mut loss = MeanLoss::default();
        loss.parts(self, parts)?;
        loss.step(self)
    }
}

/// Loss and gradients of the parts of a batch so far.
#[derive(Default)]
struct MeanLoss {
    sum: f64,
    weight: f64,
    gradients: Option<StepGradients>,
}

impl MeanLoss {
    /// Forward and backward passes of some parts.
    fn parts(&mut self, work: &Work, parts: Vec<Batch<NoisySample>>) -> Result<(), BenchError> {
        let Some(unet) = &work.unet else { return Ok(()) };
        for part in parts {
            let weight = part.items.len() as f64;
            let context = StepContext { collective: &Local, record: None };
            let Loss { value, .. } = work.task.loss(unet, part, &context).map_err(BenchError::Step)?;
            self.sum += weight * f64::from(value.clone().inner().into_scalar::<f32>());
            self.weight += weight;
            let mut gradients = value.backward();
            drop(value);
            let gradients = work.optimizer.gradients(unet, &mut gradients, weight);
            match &mut self.gradients {
                None => self.gradients = Some(gradients),
                Some(sum) => sum.add(gradients),
            }
        }
        Ok(())
    }

    /// The optimizer's step; gives the mean loss.
    fn step(self, work: &mut Work) -> Result<f64, BenchError> {
        let (Some(unet), Some(gradients)) = (work.unet.take(), self.gradients) else {
            return Err(BenchError::Step("the batch is empty".into()));
        };
        work.samples += work.recipe.run.batch_size as u64;
        // Nothing is clipped, so the norm of the gradient is not computed.
        let config = work.recipe.config();
        work.unet = Some(work.optimizer.step(unet, gradients, &config, work.samples, 0.0));
        Ok(self.sum / self.weight)
    }
}
