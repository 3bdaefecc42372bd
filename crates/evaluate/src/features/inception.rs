//! The Inception network of the Fréchet distance, behind the preparations of those who published figures with it.
//!
//! All take 8-bit RGB as Pillow's `convert("RGB")` gives it, and end at 299x299 in about -1..1; on the way they differ.
//! Sources: pytorch-fid 0.3.0, `inception.py`; clean-fid 0.1.35, `resize.py` and `inception_torchscript.py`; torch-fidelity
//! 0.4.0, `feature_extractor_inceptionv3.py`; torchmetrics 1.9.0, `image/fid.py`; NVIDIA's NeMo-Framework-Launcher,
//! `eval_diffusion_fid_clip` (`fid_dataset.py`, `compute_fid.py`, `TFinception_V3.py`).

use super::{FeatureEntry, FeatureKey, Features, ImageRows, NetworkFingerprint, Preparation, hex};
use crate::error::misfit;
use crate::{EvaluateError, Result};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::loading::Loader;
use calotype_checkpoints::{Checkpoint, Component};
use calotype_data::image::{Filter, FloatImage, Interpolation, RgbImage};
use calotype_models::inception::FEATURES as WIDTH;
use calotype_models::state::{WeightPrecision, values_of};
use calotype_models::{Inception, InceptionConfig};
use calotype_pipeline::batches::stack;
use calotype_pipeline::network::{Network, Placement};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Side of the network's input.
const SIDE: usize = 299;
/// Side that NVIDIA's evaluations shrink pictures to first.
const NVIDIA_SIDE: usize = 256;
/// The file's published name ends in the first digits of its SHA-256, by which torch.hub checks it.
const OFFICIAL_HASH: &str = "6726825d";

/// Its row of the table.
pub const ENTRY: FeatureEntry = FeatureEntry {
    network: "inception",
    about: "Inception v3 of the Fréchet inception distance; always in f32",
    preparations: &[
        Preparation {
            name: "pytorch-fid",
            about: "bilinear without smoothing, in floats (also MLPerf training's reference)",
        },
        Preparation { name: "clean-fid", about: "bicubic with smoothing, in floats" },
        Preparation { name: "torch-fidelity", about: "bilinear as TensorFlow 1 computes it" },
        Preparation { name: "torchmetrics", about: "bilinear with smoothing, in floats" },
        Preparation {
            name: "tf",
            about: "bicubic to 256x256 in 8 bits, then bicubic without smoothing (NeMo, NVIDIA)",
        },
    ],
    open: |networks, preparation| {
        let Some(path) = &networks.inception else {
            let file = "pt_inception-2015-12-05-6726825d.pth";
            return Err(EvaluateError::Usage(format!(
                "the metrics need the Inception network: give its file ({file}, or the same weights in another layout) by --inception"
            )));
        };
        let network = networks.shared(path, || InceptionNetwork::load(path, &networks.device))?;
        Ok(Box::new(InceptionFeatures::new(network, preparation)))
    },
};

/// What a preparation does to pictures.
struct Steps {
    /// In words, for fingerprints.
    resize: &'static str,
    /// Where it rounds.
    rounding: &'static str,
    /// To the network's input, `[299, 299, 3]`.
    prepare: fn(&RgbImage) -> calotype_data::Result<Vec<f32>>,
}

impl Steps {
    /// Those of a preparation of [`ENTRY`]; the first one's are those of pytorch-fid.
    fn of(preparation: &str) -> Self {
        match preparation {
            "clean-fid" => Self {
                resize: "Pillow bicubic, antialiased, each channel in floats, to 299x299; (x - 128) / 128",
                rounding: "none; clipped to 0..255",
                prepare: |image| {
                    let image = FloatImage::of(image, f32::from).resize(SIDE, SIDE, Interpolation::PillowBicubic)?;
                    Ok(around_zero(image.map(|level| level.clamp(0.0, 255.0))))
                },
            },
            "torch-fidelity" => Self {
                resize: "TensorFlow 1 bilinear, corners not aligned, to 299x299; (x - 128) / 128",
                rounding: "none",
                prepare: |image| {
                    let image = FloatImage::of(image, f32::from);
                    Ok(around_zero(image.resize(SIDE, SIDE, Interpolation::TensorflowBilinear)?))
                },
            },
            "torchmetrics" => Self {
                resize: "torch bilinear, antialiased, to 299x299; (x - 128) / 128",
                rounding: "none",
                prepare: |image| {
                    let image = FloatImage::of(image, f32::from);
                    Ok(around_zero(image.resize(SIDE, SIDE, Interpolation::TorchBilinearSmooth)?))
                },
            },
            "tf" => Self {
                resize: "Pillow bicubic, antialiased, to 256x256; 2 x / 255 - 1; torch bicubic, corners aligned, not antialiased, to 299x299",
                rounding: "to 8 bits at 256x256",
                prepare: |image| {
                    let small = image.resize(NVIDIA_SIDE, NVIDIA_SIDE, Filter::Bicubic)?;
                    let image = FloatImage::of(&small, |level| 2.0 * (f32::from(level) / 255.0) - 1.0);
                    Ok(image.resize(SIDE, SIDE, Interpolation::TorchBicubicCorners)?.into_data())
                },
            },
            _ => Self {
                resize: "torch bilinear, corners not aligned, not antialiased, to 299x299; 2 x / 255 - 1",
                rounding: "none",
                prepare: |image| {
                    let image = FloatImage::of(image, |level| f32::from(level) * (1.0 / 255.0));
                    let image = image.resize(SIDE, SIDE, Interpolation::TorchBilinear)?;
                    Ok(image.map(|value| value * 2.0 - 1.0).into_data())
                },
            },
        }
    }
}

/// Levels as the network's weights were trained on them.
fn around_zero(image: FloatImage) -> Vec<f32> {
    image.map(|level| (level - 128.0) / 128.0).into_data()
}

/// The network, loaded.
pub struct InceptionNetwork {
    network: Inception,
    path: PathBuf,
    device: Device,
    weights: String,
    official: bool,
}

impl InceptionNetwork {
    /// Loads it, in `f32`: distances in less do not compare with published ones.
    ///
    /// # Errors
    /// [`EvaluateError::Encoder`] if it is no such network; [`EvaluateError::Io`].
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let placement = Placement { device: device.clone(), dtype: DType::F32, adapters: None };
        let weights = Network::<InceptionConfig>::open(&checkpoint, Component::Inception, &placement)?.hash()?;
        let loader = Loader { checkpoint: &checkpoint, device, precision: WeightPrecision::F32, adapters: None };
        let network = loader.inception()?;
        Ok(Self { network, path: path.to_owned(), device: device.clone(), weights, official: is_official(path)? })
    }
}

/// True if a file is the published one.
///
/// # Errors
/// [`EvaluateError::Io`].
pub(crate) fn is_official(path: &Path) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let mut file = File::open(path).map_err(EvaluateError::io("read", path))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(EvaluateError::io("read", path))? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hex(&hasher.finalize()).starts_with(OFFICIAL_HASH))
}

/// The network behind one preparation.
pub struct InceptionFeatures {
    network: Arc<InceptionNetwork>,
    key: FeatureKey,
    steps: Steps,
    fingerprint: NetworkFingerprint,
}

impl InceptionFeatures {
    /// The network behind a preparation of [`ENTRY`].
    pub fn new(network: Arc<InceptionNetwork>, preparation: &Preparation) -> Self {
        let steps = Steps::of(preparation.name);
        let fingerprint = NetworkFingerprint {
            network: "Inception v3 (FID)".to_owned(),
            weights: network.weights.clone(),
            official: network.official,
            resize: steps.resize.to_owned(),
            rounding: steps.rounding.to_owned(),
            precision: "f32".to_owned(),
        };
        Self { network, key: FeatureKey::new(ENTRY.network, preparation.name), steps, fingerprint }
    }
}

impl Features for InceptionFeatures {
    fn key(&self) -> &FeatureKey {
        &self.key
    }

    fn fingerprint(&self) -> &NetworkFingerprint {
        &self.fingerprint
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn classes(&self) -> usize {
        self.network.network.labels()
    }

    /// The logits are those without the bias, of which torch-fidelity and torchmetrics compute the Inception score.
    fn images(&self, images: &[&RgbImage]) -> Result<ImageRows> {
        let prepared: Vec<_> = images.par_iter().map(|image| (self.steps.prepare)(image)).collect();
        let prepared = prepared.into_iter().collect::<calotype_data::Result<Vec<_>>>()?;
        let lines = prepared.iter().map(Vec::as_slice);
        let batch: Tensor<4> = stack(lines, &[SIDE, SIDE, 3], DType::F32, &self.network.device);
        let misfit = misfit(&self.network.path, Component::Inception);
        let features = self.network.network.forward_resized(batch).map_err(misfit)?.features;
        let logits = self.network.network.unbiased_logits(features.clone());
        Ok(ImageRows { features: values_of(features), logits: values_of(logits) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preparation_has_steps_of_its_own() {
        let image = RgbImage::new(31, 17, (0..31 * 17 * 3).map(|i| (i * 73 % 256) as u8).collect()).unwrap();
        let prepared: Vec<Vec<f32>> = (ENTRY.preparations.iter())
            .map(|preparation| (Steps::of(preparation.name).prepare)(&image).unwrap())
            .collect();
        for (number, values) in prepared.iter().enumerate() {
            assert_eq!(values.len(), SIDE * SIDE * 3);
            assert!(values.iter().all(|value| value.abs() < 1.3));
            assert!(prepared[..number].iter().all(|other| other != values));
        }
    }
}
