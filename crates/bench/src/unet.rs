//! A whole UNet: its forward pass, or a training step.

use crate::profile::Profile;
use crate::setting::{Family, Mode};
use crate::{BenchError, Peaks, json_line, median};
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::system::peak_rss_gib;
use calotype_core::{Purpose, Stream};
use calotype_kernels::{isa_name, threads};
use calotype_models::unet::Keep;
use calotype_models::{Init, UNet, state};
use calotype_ops::in_backward::count_uses;
use calotype_ops::profile::{self, Pass};
use calotype_ops::{Precision, mean_squared_error};
use calotype_train::config::RunSettings;
use calotype_train::optim::{Optimizer, OptimizerSettings, Stepping, TrainConfig};
use serde::Serialize;
use std::fmt;
use std::time::Instant;

/// Text states of a caption.
const TOKENS: usize = 77;
/// Pixels of an image for one of its latent, in both directions.
const LATENT_SCALE: usize = 8;
/// Standard deviation of all parameters.
const DEVIATION: f32 = 0.02;

/// The settings of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetBench {
    /// The network.
    pub family: Family,
    /// Side of the square images in pixels; latents have an eighth of it.
    pub resolution: usize,
    /// Images at once.
    pub batch: usize,
    /// Forward pass or training step.
    pub mode: Mode,
    /// Precision of activations.
    pub precision: Precision,
    /// Number of iterations; the last half counts.
    pub iterations: usize,
    /// Training keeps the inputs of the blocks only and computes them a second time.
    pub recompute_blocks: bool,
    /// Training steps each parameter as soon as its gradient is complete, and packs no weights.
    pub optimizer_in_backward: bool,
    /// True to time every operation of the iterations that count.
    pub profile: bool,
}

/// A measurement, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UNetReport {
    /// Always `calotype`: tells its lines from those of peers.
    pub engine: &'static str,
    /// The network.
    pub family: Family,
    /// Side of the images in pixels.
    pub resolution: usize,
    /// Images at once.
    pub batch: usize,
    /// Forward pass or training step.
    pub mode: Mode,
    /// Precision of activations.
    pub precision: Precision,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Iterations, of which the last half counts.
    pub iterations: usize,
    /// As in [`UNetBench`].
    pub recompute_blocks: bool,
    /// As in [`UNetBench`].
    pub optimizer_in_backward: bool,
    /// Median seconds of the iterations that count.
    pub seconds: f64,
    /// Seconds of the fastest of them.
    pub best: f64,
    /// `batch / seconds`
    pub images_per_second: f64,
    /// 10^12 floating-point operations a second: those of [`calotype_models::UNetConfig::forward_flops`], three times as
    /// many in a training step.
    pub tflops: f64,
    /// Of the processor's peak as measured in the same process.
    pub peak_fraction: f64,
    /// That peak, in GFLOP/s.
    pub peak_gflops: f64,
    /// The instruction whose peak it is.
    pub peak_instruction: &'static str,
    /// Largest resident memory of the process, in GiB; none where the system does not tell.
    pub peak_rss_gib: Option<f64>,
    /// Page faults in an iteration, on average of those that count.
    pub page_faults: f64,
}

impl UNetReport {
    /// One JSON object in one line.
    pub fn json(&self) -> String {
        json_line(self)
    }
}

impl fmt::Display for UNetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, resolution, batch, mode, precision, threads, isa, .. } = self;
        writeln!(
            f,
            "{family} {resolution}x{resolution}, batch {batch}, {mode}, {precision}, {threads} threads, {isa}"
        )?;
        writeln!(f, "{:.4} images/s, {:.4} s (best {:.4})", self.images_per_second, self.seconds, self.best)?;
        writeln!(
            f,
            "{:.3} TFLOP/s, {:.1} % of the measured peak ({}, {:.0} GFLOP/s)",
            self.tflops,
            100.0 * self.peak_fraction,
            self.peak_instruction,
            self.peak_gflops
        )?;
        let memory = self.peak_rss_gib.map_or("unknown".to_owned(), |gib| format!("{gib:.2} GiB"));
        write!(f, "{memory} at most, {:.0} page faults an iteration", self.page_faults)
    }
}

impl UNetBench {
    fn validate(&self) -> Result<(), BenchError> {
        let step = LATENT_SCALE * self.family.config().size_multiple();
        let check = |ok: bool, flag: &'static str, problem: &dyn Fn() -> String| {
            if ok { Ok(()) } else { Err(BenchError::Setting { flag, problem: problem() }) }
        };
        check(self.resolution > 0 && self.resolution.is_multiple_of(step), "--resolution", &|| {
            format!("{} is not a multiple of {step} pixels, as the network's levels need it", self.resolution)
        })?;
        check(self.batch > 0, "--batch", &|| "must be at least 1".to_owned())?;
        check(self.iterations > 0, "--iterations", &|| "must be at least 1".to_owned())?;
        for (set, flag) in
            [(self.recompute_blocks, "--recompute-blocks"), (self.optimizer_in_backward, "--optimizer-in-backward")]
        {
            check(!set || self.mode == Mode::Train, flag, &|| "is for training; add --mode train".to_owned())?;
        }
        Ok(())
    }

    fn dtype(&self) -> DType {
        self.precision.dtype(&Device::flex())
    }

    /// Side of a latent.
    fn side(&self) -> usize {
        self.resolution / LATENT_SCALE
    }

    fn flops(&self) -> f64 {
        let side = self.side();
        let forward = self.family.config().forward_flops(self.batch, [side, side], TOKENS) as f64;
        match self.mode {
            Mode::Forward => forward,
            Mode::Train => 3.0 * forward,
        }
    }
}

/// Builds the network with random weights, runs it, and tells how fast that was; and where the time went, if asked for.
///
/// The iterations are timed one by one. The first half does not count: it pays for memory that the allocator then keeps.
///
/// # Errors
/// [`BenchError`]
pub fn run_unet(bench: &UNetBench) -> Result<(UNetReport, Option<Profile>), BenchError> {
    bench.validate()?;
    let (laps, profile, page_faults) = match bench.mode {
        Mode::Forward => iterate(bench, Forward::new(bench)?)?,
        Mode::Train => iterate(bench, Training::new(bench)?)?,
    };
    // Before the peaks, which need memory of their own. The network is gone by now.
    let peak_rss_gib = peak_rss_gib();
    let seconds = median(laps.clone());
    let precision = bench.precision.resolve(&Device::flex());
    let peak = Peaks::measure().of(precision);
    let flops = bench.flops() / seconds;
    let report = UNetReport {
        engine: "calotype",
        family: bench.family,
        resolution: bench.resolution,
        batch: bench.batch,
        mode: bench.mode,
        precision,
        threads: threads(),
        isa: isa_name(),
        iterations: bench.iterations,
        recompute_blocks: bench.recompute_blocks,
        optimizer_in_backward: bench.optimizer_in_backward,
        seconds,
        best: laps.into_iter().fold(f64::INFINITY, f64::min),
        images_per_second: bench.batch as f64 / seconds,
        tflops: 1e-12 * flops,
        peak_fraction: flops / peak.flops,
        peak_gflops: 1e-9 * peak.flops,
        peak_instruction: peak.instruction,
        peak_rss_gib,
        page_faults,
    };
    Ok((report, profile))
}

/// Something that is done over and over.
trait Iteration {
    /// Once; the seconds of its passes in their order.
    fn run(&mut self) -> Vec<(Pass, f64)>;

    /// A number that is not finite if anything was not.
    fn witness(&self) -> f32;
}

/// Seconds of each iteration that counts, their profile if asked for, and page faults of one.
fn iterate(bench: &UNetBench, mut iteration: impl Iteration) -> Result<(Vec<f64>, Option<Profile>, f64), BenchError> {
    let warm_up = bench.iterations / 2;
    for _ in 0..warm_up {
        iteration.run();
    }
    if bench.profile {
        profile::start();
    }
    let steady = bench.iterations - warm_up;
    let faults = page_faults();
    let mut seconds = Vec::with_capacity(steady);
    let mut passes: Vec<(Pass, f64)> = Vec::new();
    for _ in 0..steady {
        let start = Instant::now();
        let laps = iteration.run();
        seconds.push(start.elapsed().as_secs_f64());
        for (pass, lap) in laps {
            match passes.iter_mut().find(|(known, _)| *known == pass) {
                Some((_, sum)) => *sum += lap,
                None => passes.push((pass, lap)),
            }
        }
    }
    let faults = (page_faults() - faults) / steady as f64;
    let profile = bench.profile.then(|| Profile::new(&profile::stop(), &passes, steady));
    let witness = iteration.witness();
    if !witness.is_finite() {
        return Err(BenchError::NotFinite { family: bench.family.to_string(), value: witness.to_string() });
    }
    Ok((seconds, profile, faults))
}

/// Page faults of this process so far; 0 where the system does not tell.
fn page_faults() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(0.0, |usage| (usage.minor_page_faults() + usage.major_page_faults()) as f64)
}

/// The network's inputs.
struct Inputs {
    latent: Tensor<4>,
    timesteps: Vec<f32>,
    context: Tensor<3>,
}

impl Inputs {
    fn new(bench: &UNetBench, device: &Device) -> Self {
        let config = bench.family.config();
        let side = bench.side();
        Self {
            latent: noise([bench.batch, side, side, config.in_channels], 0, device).cast(bench.dtype()),
            timesteps: vec![500.0; bench.batch],
            context: noise([bench.batch, TOKENS, config.context_channels], 1, device).cast(bench.dtype()),
        }
    }

    fn through(&self, unet: &UNet, keep: Keep) -> Tensor<4> {
        unet.forward_keeping(keep, self.latent.clone(), &self.timesteps, self.context.clone(), None)
    }
}

/// Standard normal numbers; `index` tells apart tensors.
fn noise<const D: usize>(shape: [usize; D], index: u64, device: &Device) -> Tensor<D> {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(0, Purpose::Evaluation, index).fill_normal(&mut values);
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn build(bench: &UNetBench, device: &Device) -> Result<UNet, BenchError> {
    Ok(bench.family.config().init(&mut Init::repeated_noise(DEVIATION, device))?)
}

/// Time since the last lap.
struct Laps(Instant);

impl Laps {
    fn lap(&mut self, pass: Pass) -> (Pass, f64) {
        let before = std::mem::replace(&mut self.0, Instant::now());
        (pass, (self.0 - before).as_secs_f64())
    }
}

struct Forward {
    unet: UNet,
    inputs: Inputs,
    output: Option<Tensor<4>>,
}

impl Forward {
    fn new(bench: &UNetBench) -> Result<Self, BenchError> {
        let device = Device::flex();
        let unet = build(bench, &device)?;
        // As a network is that was loaded for inference.
        let unet = if bench.dtype() == DType::BF16 { state::packed(unet) } else { unet };
        Ok(Self { unet, inputs: Inputs::new(bench, &device), output: None })
    }
}

impl Iteration for Forward {
    fn run(&mut self) -> Vec<(Pass, f64)> {
        let mut laps = Laps(Instant::now());
        self.output = Some(self.inputs.through(&self.unet, Keep::Activations));
        vec![laps.lap(Pass::Forward)]
    }

    fn witness(&self) -> f32 {
        let output = self.output.clone();
        output.map_or(f32::NAN, |output| output.cast(DType::F32).abs().sum().into_scalar::<f32>())
    }
}

struct Training {
    /// Taken out while a step makes the next one of it.
    unet: Option<UNet>,
    inputs: Inputs,
    target: Tensor<4>,
    keep: Keep,
    optimizer: Optimizer,
    stepping: Stepping,
    run: RunSettings,
    settings: OptimizerSettings,
    samples: u64,
    loss: f32,
}

impl Training {
    fn new(bench: &UNetBench) -> Result<Self, BenchError> {
        let device = Device::flex().autodiff();
        let unet = build(bench, &device)?;
        let inputs = Inputs::new(bench, &device);
        let samples = (bench.iterations * bench.batch) as u64;
        let run = RunSettings {
            seed: 0,
            samples,
            batch_size: bench.batch,
            precision: Default::default(),
            log_every: samples,
            checkpoint_every: samples,
            keep_checkpoints: 1,
            keep_every: None,
        };
        let settings = OptimizerSettings {
            learning_rate: 1e-6,
            in_backward: bench.optimizer_in_backward.then_some(true),
            ..OptimizerSettings::default()
        };
        let optimizer = Optimizer::new(&unet, &TrainConfig::new(&run, &settings, None))?;
        Ok(Self {
            target: noise(inputs.latent.dims(), 2, &device),
            stepping: settings.stepping(unet.num_params()),
            unet: Some(unet),
            inputs,
            keep: if bench.recompute_blocks { Keep::Inputs } else { Keep::Activations },
            optimizer,
            run,
            settings,
            samples: 0,
            loss: f32::NAN,
        })
    }
}

impl Iteration for Training {
    fn run(&mut self) -> Vec<(Pass, f64)> {
        let Some(unet) = self.unet.take() else { return Vec::new() };
        let mut laps = Laps(Instant::now());
        let pass = || {
            let output = self.inputs.through(&unet, self.keep);
            mean_squared_error(output.cast(DType::F32), self.target.clone())
        };
        let stepping = self.stepping;
        let (loss, uses) = stepping.pass(|| count_uses(pass));
        self.loss = loss.clone().inner().into_scalar::<f32>();
        let forward = laps.lap(Pass::Forward);
        self.samples += self.run.batch_size as u64;
        // Peers do not clip, so the norm of the gradient is not computed here either.
        let config = TrainConfig::new(&self.run, &self.settings, None);
        if stepping != Stepping::AfterBackward {
            let step = || self.optimizer.step_in_backward(unet, (loss, uses), &config, self.samples, false);
            let (unet, _) = stepping.pass(step);
            self.unet = Some(unet);
            return vec![forward, laps.lap(Pass::Backward)];
        }
        let mut gradients = loss.backward();
        drop(loss);
        let backward = laps.lap(Pass::Backward);
        let gradients = self.optimizer.gradients(&unet, &mut gradients, self.run.batch_size as f64);
        self.unet = Some(self.optimizer.step(unet, gradients, &config, self.samples, 0.0));
        vec![forward, backward, laps.lap(Pass::Optimizer)]
    }

    fn witness(&self) -> f32 {
        self.loss
    }
}
