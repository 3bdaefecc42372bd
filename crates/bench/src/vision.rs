//! ViT and CLIP: the forward pass, or a training step.

use crate::iterations::{DEVIATION, Forward, Plan, Training, load_noise, noise};
use crate::profile::Profile;
use crate::setting::Mode;
use crate::{BenchError, Peaks, json_line, median};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_core::names;
use calotype_core::system::peak_rss_gib;
use calotype_kernels::{isa_name, threads};
use calotype_models::{Clip, ClipConfig, ConfigError, Init, Vit, VitConfig};
use calotype_ops::Precision;
use serde::Serialize;
use std::fmt;

names! {
    /// A published size of a vision transformer: its letter, and the pixels of a patch's side.
    VitShape, "ViT size" {
        /// 86 million parameters.
        B16 = "b16",
        /// 304 million parameters.
        L16 = "l16",
        /// 632 million parameters.
        H14 = "h14",
        /// 1.0 billion parameters.
        G14 = "g14",
        /// 1.8 billion parameters.
        BigG14 = "bigg14",
        /// Two layers of 32 channels, where the overhead of calls decides.
        Tiny = "tiny",
    }
}

names! {
    /// A published size of CLIP: that of its image tower.
    ClipShape, "CLIP size" {
        /// 151 million parameters.
        B32 = "b32",
        /// 150 million parameters, on patches of 16 pixels.
        B16 = "b16",
        /// 428 million parameters.
        L14 = "l14",
        /// 986 million parameters.
        H14 = "h14",
        /// 1.4 billion parameters.
        G14 = "g14",
        /// 2.5 billion parameters.
        BigG14 = "bigg14",
        /// Two layers of 32 channels in each tower.
        Tiny = "tiny",
    }
}

impl VitShape {
    fn config(self) -> Result<VitConfig, ConfigError> {
        let name = match self {
            Self::B16 => "B_16",
            Self::L16 => "L_16",
            Self::H14 => "H_14",
            Self::G14 => "g_14",
            Self::BigG14 => "bigG_14",
            Self::Tiny => {
                let (channels, mlp_channels, layers, heads) = (32, 64, 2, 2);
                let tiny = VitConfig { channels, mlp_channels, layers, heads, ..VitConfig::default() };
                return Ok(VitConfig { image_size: 32, patch_size: 8, labels: 10, ..tiny });
            }
        };
        VitConfig::named(name)
    }
}

impl ClipShape {
    fn config(self) -> Result<ClipConfig, ConfigError> {
        let name = match self {
            Self::B32 => "ViT-B-32",
            Self::B16 => "ViT-B-16",
            Self::L14 => "ViT-L-14",
            Self::H14 => "ViT-H-14",
            Self::G14 => "ViT-g-14",
            Self::BigG14 => "ViT-bigG-14",
            Self::Tiny => {
                let mut tiny = ClipConfig::open_clip("ViT-B-32")?;
                (tiny.vision.channels, tiny.vision.mlp_channels, tiny.vision.layers, tiny.vision.heads) =
                    (32, Some(64), 2, 2);
                (tiny.vision.image_size, tiny.vision.patch_size) = (32, 8);
                (tiny.text.channels, tiny.text.mlp_channels, tiny.text.layers, tiny.text.heads) = (32, Some(64), 2, 2);
                (tiny.text.vocab_size, tiny.text.context_length, tiny.projection) = (512, 8, 16);
                tiny.text.end_token = 511;
                return Ok(tiny);
            }
        };
        ClipConfig::open_clip(name)
    }
}

/// The network of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum VisionNetwork {
    /// A classifier of 1,000 classes (10 for the tiny one): forward gives the logits, a training step has the cross-entropy.
    Vit(VitShape),
    /// CLIP: forward is the image tower's, a training step that of both towers with the contrastive loss.
    Clip(ClipShape),
}

impl VisionNetwork {
    /// Whether it is a `vit` or a `clip`.
    fn kind(self) -> &'static str {
        match self {
            Self::Vit(_) => "vit",
            Self::Clip(_) => "clip",
        }
    }

    fn size(self) -> &'static str {
        match self {
            Self::Vit(shape) => shape.name(),
            Self::Clip(shape) => shape.name(),
        }
    }
}

/// The settings of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionBench {
    /// The network.
    pub network: VisionNetwork,
    /// Images at once, in CLIP's training with a caption each.
    pub batch: usize,
    /// Forward pass or training step.
    pub mode: Mode,
    /// Numbers of activations, and in inference of weights.
    pub precision: Precision,
    /// Number of iterations; the last half counts.
    pub iterations: usize,
    /// True to time every operation of the iterations that count.
    pub profile: bool,
}

/// A measurement, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VisionReport {
    /// Always `calotype`: tells its lines from those of peers.
    pub engine: &'static str,
    /// `vit` or `clip`.
    pub family: &'static str,
    /// Its size.
    pub model: &'static str,
    /// Side of the images in pixels.
    pub resolution: usize,
    /// Images at once.
    pub batch: usize,
    /// Forward pass or training step.
    pub mode: Mode,
    /// Numbers of activations.
    pub precision: Precision,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Iterations, of which the last half counts.
    pub iterations: usize,
    /// Median seconds of the iterations that count.
    pub seconds: f64,
    /// Seconds of the fastest of them.
    pub best: f64,
    /// `batch / seconds`
    pub images_per_second: f64,
    /// 10^12 floating-point operations a second: those of [`calotype_models::VitConfig::forward_flops`] or of
    /// [`calotype_models::ClipConfig::image_flops`] and `text_flops`, three times as many in a training step.
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

impl VisionReport {
    /// One JSON object in one line.
    pub fn json(&self) -> String {
        json_line(self)
    }
}

impl fmt::Display for VisionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, model, resolution, batch, mode, precision, threads, isa, .. } = self;
        writeln!(
            f,
            "{family} {model} {resolution}x{resolution}, batch {batch}, {mode}, {precision}, {threads} threads, {isa}"
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

/// Builds the network with random weights, runs it, and tells how fast that was; and where the time went, if asked for.
///
/// The iterations are timed one by one. The first half does not count: it pays for memory that the allocator then keeps.
///
/// # Errors
/// [`BenchError`]
pub fn run_vision(bench: &VisionBench) -> Result<(VisionReport, Option<Profile>), BenchError> {
    let (kind, size) = (bench.network.kind(), bench.network.size());
    if bench.mode == Mode::Train && bench.batch < 2 && kind == "clip" {
        let problem = "the contrastive loss tells at least 2 pairs apart".to_owned();
        return Err(BenchError::Setting { flag: "--batch", problem });
    }
    let plan = Plan { network: format!("{kind} {size}"), iterations: bench.iterations, profile: bench.profile };
    let (measured, side, flops) = match bench.network {
        VisionNetwork::Vit(shape) => {
            let config = shape.config()?;
            let measured = match bench.mode {
                Mode::Forward => plan.run(vit_forward(bench, &config)?)?,
                Mode::Train => plan.run(vit_training(bench, &config)?)?,
            };
            (measured, config.image_size, config.forward_flops(bench.batch))
        }
        VisionNetwork::Clip(shape) => {
            let config = shape.config()?;
            let (measured, texts) = match bench.mode {
                Mode::Forward => (plan.run(clip_forward(bench, &config)?)?, 0),
                Mode::Train => (plan.run(clip_training(bench, &config)?)?, config.text_flops(bench.batch)),
            };
            (measured, config.vision.image_size, config.image_flops(bench.batch) + texts)
        }
    };
    let (laps, profile, page_faults) = measured;
    // Before the peaks, which need memory of their own. The network is gone by now.
    let peak_rss_gib = peak_rss_gib();
    let seconds = median(laps.clone());
    let precision = bench.precision.resolve(&Device::flex());
    let peak = Peaks::measure().of(precision);
    let passes = if bench.mode == Mode::Train { 3.0 } else { 1.0 };
    let rate = passes * flops as f64 / seconds;
    let report = VisionReport {
        engine: "calotype",
        family: kind,
        model: size,
        resolution: side,
        batch: bench.batch,
        mode: bench.mode,
        precision,
        threads: threads(),
        isa: isa_name(),
        iterations: bench.iterations,
        seconds,
        best: laps.into_iter().fold(f64::INFINITY, f64::min),
        images_per_second: bench.batch as f64 / seconds,
        tflops: 1e-12 * rate,
        peak_fraction: rate / peak.flops,
        peak_gflops: 1e-9 * peak.flops,
        peak_instruction: peak.instruction,
        peak_rss_gib,
        page_faults,
    };
    Ok((report, profile))
}

fn images(bench: &VisionBench, side: usize, device: &Device) -> Tensor<4> {
    noise([bench.batch, side, side, 3], 0, device).cast(bench.precision.dtype(device))
}

/// All weights in the precision of the pass.
fn none_narrow(_key: &str) -> bool {
    false
}

fn vit_forward(bench: &VisionBench, config: &VitConfig) -> Result<Forward<2>, BenchError> {
    let device = Device::flex();
    let empty = config.init(&mut Init::placeholders(&device))?;
    let vit = load_noise(empty, bench.precision.dtype(&device), &none_narrow).map_err(|error| error.of("--model"))?;
    let images = images(bench, config.image_size, &device);
    Ok(Forward::new(move || Ok(vit.forward(images.clone())?)))
}

fn vit_training(bench: &VisionBench, config: &VitConfig) -> Result<Training<Vit>, BenchError> {
    let device = Device::flex().autodiff();
    let vit = config.init(&mut Init::repeated_noise(DEVIATION, &device))?;
    let images = images(bench, config.image_size, &device);
    // Each image is of the class of its number.
    let mut target = vec![0f32; bench.batch * config.labels];
    target.chunks_exact_mut(config.labels).enumerate().for_each(|(at, row)| row[at % config.labels] = 1.0);
    let target = Tensor::<2>::from_data(TensorData::new(target, [bench.batch, config.labels]), &device);
    let count = bench.batch as f64;
    let loss = move |vit: &Vit| {
        let logits = vit.forward(images.clone())?.cast(DType::F32);
        Ok((log_softmax(logits, 1) * target.clone()).sum().mul_scalar(-1.0 / count))
    };
    Training::new(vit, loss, bench.iterations, bench.batch, false)
}

fn clip_forward(bench: &VisionBench, config: &ClipConfig) -> Result<Forward<2>, BenchError> {
    let device = Device::flex();
    let empty = config.init(&mut Init::placeholders(&device))?;
    let clip = load_noise(empty, bench.precision.dtype(&device), &none_narrow).map_err(|error| error.of("--model"))?;
    let images = images(bench, config.vision.image_size, &device);
    Ok(Forward::new(move || Ok(clip.image_features(images.clone()))))
}

fn clip_training(bench: &VisionBench, config: &ClipConfig) -> Result<Training<Clip>, BenchError> {
    let device = Device::flex().autodiff();
    let clip = config.init(&mut Init::repeated_noise(DEVIATION, &device))?;
    let images = images(bench, config.vision.image_size, &device);
    let (tokens, words) = (config.text.context_length, config.text.vocab_size);
    // Words that differ from row to row; the end stands last, so that a whole row is read.
    let id = |row: usize, at: usize| if at + 1 == tokens { words - 1 } else { (7 * row + at) % (words - 1) };
    let ids: Vec<i32> = (0..bench.batch).flat_map(|row| (0..tokens).map(move |at| id(row, at) as i32)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [bench.batch, tokens]), &device);
    let ends = vec![tokens - 1; bench.batch];
    let dtype = bench.precision.dtype(&device);
    let loss = move |clip: &Clip| {
        let texts = clip.text_features(ids.clone(), &ends, dtype);
        Ok(clip.contrastive_loss(clip.image_features(images.clone()), texts))
    };
    Training::new(clip, loss, bench.iterations, bench.batch, false)
}
