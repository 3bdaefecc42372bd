//! The networks that images are judged by: features of images a second.

use crate::{BenchError, json_line, median};
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::names;
use calotype_core::{Purpose, Stream};
use calotype_kernels::{isa_name, threads};
use calotype_models::clip::{Clip, ClipConfig};
use calotype_models::inception::InceptionConfig;
use calotype_models::{Inception, Init, InputError, state};
use calotype_ops::Precision;
use serde::Serialize;
use std::fmt;
use std::time::Instant;

/// Standard deviation of all parameters of CLIP's towers.
const DEVIATION: f32 = 0.02;

names! {
    /// A network of image features.
    FeatureShape, "network" {
        /// The FID's Inception v3, on images of 299 pixels.
        Inception = "inception",
        /// CLIP's image tower ViT-B/32, on images of 224 pixels.
        VitB32 = "vit-b-32",
        /// CLIP's image tower ViT-L/14, on images of 224 pixels.
        VitL14 = "vit-l-14",
        /// CLIP's image tower ViT-H/14, on images of 224 pixels.
        VitH14 = "vit-h-14",
    }
}

impl FeatureShape {
    /// Side of its images in pixels.
    fn side(self) -> usize {
        if self == Self::Inception { 299 } else { 224 }
    }
}

/// The settings of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct FeaturesBench {
    /// The network.
    pub network: FeatureShape,
    /// Images at once.
    pub batch: usize,
    /// Precision of activations.
    pub precision: Precision,
    /// Number of iterations; the last half counts.
    pub iterations: usize,
}

/// A measurement, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeaturesReport {
    /// Always `calotype`: tells its lines from those of peers.
    pub engine: &'static str,
    /// The network.
    pub network: FeatureShape,
    /// Images at once.
    pub batch: usize,
    /// Precision of activations.
    pub precision: Precision,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Median seconds of the iterations that count.
    pub seconds: f64,
    /// Seconds of the fastest of them.
    pub best: f64,
    /// `batch / seconds`
    pub images_per_second: f64,
}

impl FeaturesReport {
    /// One JSON object in one line.
    pub fn json(&self) -> String {
        json_line(self)
    }
}

impl fmt::Display for FeaturesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, batch, precision, threads, isa, images_per_second, seconds, best, .. } = self;
        writeln!(f, "{network}, batch {batch}, {precision}, {threads} threads, {isa}")?;
        write!(f, "{images_per_second:.3} images/s, {seconds:.4} s (best {best:.4})")
    }
}

/// A network as it is loaded to judge.
enum Network {
    Inception(Box<Inception>),
    Clip(Box<Clip>),
}

impl Network {
    fn new(bench: &FeaturesBench, device: &Device) -> Result<Self, BenchError> {
        let name = match bench.network {
            FeatureShape::Inception => {
                let network = InceptionConfig::default().init(&mut Init::new(0, device)).folded();
                return Ok(Self::Inception(Box::new(network)));
            }
            FeatureShape::VitB32 => "ViT-B-32",
            FeatureShape::VitL14 => "ViT-L-14",
            FeatureShape::VitH14 => "ViT-H-14",
        };
        let clip = ClipConfig::open_clip(name)?.init(&mut Init::repeated_noise(DEVIATION, device))?;
        let packs = bench.precision.dtype(device) == DType::BF16;
        Ok(Self::Clip(Box::new(if packs { state::packed(clip) } else { clip })))
    }

    fn features(&self, images: Tensor<4>) -> Result<Tensor<2>, InputError> {
        match self {
            Self::Inception(network) => Ok(network.forward_resized(images)?.features),
            Self::Clip(network) => Ok(network.image_features(images)),
        }
    }
}

/// Builds the network with random weights and runs it over and over on one batch.
///
/// # Errors
/// [`BenchError`]
pub fn run_features(bench: &FeaturesBench) -> Result<FeaturesReport, BenchError> {
    let device = Device::flex();
    let FeaturesBench { network: shape, batch, precision, iterations } = *bench;
    let network = Network::new(bench, &device)?;
    let size = [batch, shape.side(), shape.side(), 3];
    let mut values = vec![0f32; size.iter().product()];
    Stream::new(0, Purpose::Evaluation, 0).fill_normal(&mut values);
    let images = Tensor::<4>::from_data(TensorData::new(values, size), &device).cast(precision.dtype(&device));
    let mut seconds = Vec::with_capacity(iterations);
    for _ in 0..iterations {
        let start = Instant::now();
        let features = network.features(images.clone())?;
        seconds.push(start.elapsed().as_secs_f64());
        let witness = features.cast(DType::F32).abs().sum().into_scalar::<f32>();
        if !witness.is_finite() {
            return Err(BenchError::NotFinite { family: shape.to_string(), value: witness.to_string() });
        }
    }
    let counted = seconds.split_off(iterations / 2);
    let best = counted.iter().copied().fold(f64::INFINITY, f64::min);
    let seconds = median(counted);
    let precision = precision.resolve(&device);
    Ok(FeaturesReport {
        engine: "calotype",
        network: shape,
        batch,
        precision,
        threads: threads(),
        isa: isa_name(),
        seconds,
        best,
        images_per_second: batch as f64 / seconds,
    })
}
