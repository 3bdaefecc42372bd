//! A whole UNet: its forward pass, or a training step.

use crate::iterations::{DEVIATION, Forward, Plan, Training, load_noise, noise};
use crate::profile::Profile;
use crate::setting::{Family, Mode, NetworkPrecision};
use crate::{BenchError, Peaks, json_line, median};
use burn::tensor::{DType, Device, Tensor};
use calotype_core::system::peak_rss_gib;
use calotype_kernels::{int8_isa_name, isa_name, threads};
use calotype_models::unet::{Keep, stays_wide};
use calotype_models::{AddedConditions, Init, UNet};
use calotype_ops::mean_squared_error;
use serde::Serialize;
use std::fmt;

/// Text states of a caption.
const TOKENS: usize = 77;
/// Numbers that Stable Diffusion XL takes beside them: heights, widths and corners.
const SIZES: usize = 6;
/// Pixels of an image for one of its latent, in both directions.
const LATENT_SCALE: usize = 8;
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
    /// Numbers of layers and activations.
    pub precision: NetworkPrecision,
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
    /// Numbers of layers and activations.
    pub precision: NetworkPrecision,
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
        check(self.precision != NetworkPrecision::Int8 || self.mode == Mode::Forward, "--precision", &|| {
            "int8 is for drawing; training has f32 and bf16".to_owned()
        })?;
        Ok(())
    }

    fn dtype(&self) -> DType {
        self.precision.activations().dtype(&Device::flex())
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
    let plan = Plan { network: bench.family.to_string(), iterations: bench.iterations, profile: bench.profile };
    let (laps, profile, page_faults) = match bench.mode {
        Mode::Forward => plan.run(forward(bench)?)?,
        Mode::Train => plan.run(training(bench)?)?,
    };
    // Before the peaks, which need memory of their own. The network is gone by now.
    let peak_rss_gib = peak_rss_gib();
    let seconds = median(laps.clone());
    // Of products in 8 bits there is no measured peak: their rate is a share of that of the activations' precision, and may be above it.
    let activations = bench.precision.activations().resolve(&Device::flex());
    let peak = Peaks::measure().of(activations);
    let int8 = bench.precision == NetworkPrecision::Int8;
    let flops = bench.flops() / seconds;
    let report = UNetReport {
        engine: "calotype",
        family: bench.family,
        resolution: bench.resolution,
        batch: bench.batch,
        mode: bench.mode,
        precision: if int8 { bench.precision } else { activations.into() },
        threads: threads(),
        isa: if int8 { int8_isa_name() } else { isa_name() },
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

/// The network's inputs.
struct Inputs {
    latent: Tensor<4>,
    timesteps: Vec<f32>,
    context: Tensor<3>,
    added: Option<AddedConditions>,
}

impl Inputs {
    fn new(bench: &UNetBench, device: &Device) -> Self {
        let config = bench.family.config();
        let side = bench.side();
        let added = config.added.as_ref().map(|added| {
            let pooled = added.input_channels - SIZES * added.time_features;
            AddedConditions {
                text_embeds: noise([bench.batch, pooled], 3, device).cast(bench.dtype()),
                time_ids: vec![bench.resolution as f32; SIZES * bench.batch],
            }
        });
        Self {
            added,
            latent: noise([bench.batch, side, side, config.in_channels], 0, device).cast(bench.dtype()),
            timesteps: vec![500.0; bench.batch],
            context: noise([bench.batch, TOKENS, config.context_channels], 1, device).cast(bench.dtype()),
        }
    }

    fn through(&self, unet: &UNet, keep: Keep) -> Tensor<4> {
        unet.forward_keeping(keep, self.latent.clone(), &self.timesteps, self.context.clone(), self.added.as_ref())
    }
}

fn build(bench: &UNetBench, device: &Device) -> Result<UNet, BenchError> {
    Ok(bench.family.config().init(&mut Init::repeated_noise(DEVIATION, device))?)
}

/// [`build`] as a network is loaded for inference.
fn load(bench: &UNetBench, device: &Device) -> Result<UNet, BenchError> {
    let empty = bench.family.config().init(&mut Init::placeholders(device))?;
    let int8 = bench.precision == NetworkPrecision::Int8;
    let narrow: &dyn Fn(&str) -> bool = &|key| int8 && !stays_wide(key);
    load_noise(empty, bench.dtype(), narrow).map_err(|error| error.of("--family"))
}

/// The forward pass, without gradients.
fn forward(bench: &UNetBench) -> Result<Forward<4>, BenchError> {
    let device = Device::flex();
    let (unet, inputs) = (load(bench, &device)?, Inputs::new(bench, &device));
    Ok(Forward::new(move || Ok(inputs.through(&unet, Keep::Activations))))
}

fn training(bench: &UNetBench) -> Result<Training<UNet>, BenchError> {
    let device = Device::flex().autodiff();
    let (unet, inputs) = (build(bench, &device)?, Inputs::new(bench, &device));
    let target = noise(inputs.latent.dims(), 2, &device);
    let keep = if bench.recompute_blocks { Keep::Inputs } else { Keep::Activations };
    let loss = move |unet: &UNet| Ok(mean_squared_error(inputs.through(unet, keep).cast(DType::F32), target.clone()));
    Training::new(unet, loss, bench.iterations, bench.batch, bench.optimizer_in_backward)
}
