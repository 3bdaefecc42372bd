//! Made-up weights and pictures, the same as in golden/make_inception.py.

use crate::formula::{self, hashes};
use burn::tensor::Device;
use calotype_data::image::{PngEffort, RgbImage};
use calotype_evaluate::pass::wanted;
use calotype_evaluate::{FeatureKey, Features, ImageRows, Metrics, NetworkFingerprint, Networks, Result};
use calotype_models::state::{self, NamedValues};
use calotype_models::{InceptionConfig, Init};
use calotype_weights::NamedTensor;
use calotype_weights::write_safetensors;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// Weights that keep the variance behind ReLUs.
fn parameter(key: &str, shape: &[usize]) -> Vec<f32> {
    formula::parameter(key, shape, 2f64.sqrt())
}

/// A ramp in each channel, and noise.
pub fn picture(key: &str, width: usize, height: usize) -> RgbImage {
    let numbers: Vec<usize> = hashes(key, 9).map(|hash| hash as usize).collect();
    let (base, across, down) = (&numbers[0..3], &numbers[3..6], &numbers[6..9]);
    let noise = hashes(&format!("{key}.noise"), width * height * 3);
    let level = |(index, noise): (usize, u32)| {
        let (c, x, y) = (index % 3, index / 3 % width, index / 3 / width);
        let ramp = base[c] % 160 + across[c] % 96 * x / width + down[c] % 96 * y / height;
        (ramp + noise as usize % 24).min(255) as u8
    };
    RgbImage::new(width, height, noise.enumerate().map(level).collect()).unwrap()
}

/// Writes pictures of these names and sizes as PNG files.
pub fn write_pictures<'a>(folder: &Path, pictures: impl IntoIterator<Item = (&'a str, String, (usize, usize))>) {
    fs::create_dir_all(folder).unwrap();
    for (name, key, (width, height)) in pictures {
        let png = picture(&key, width, height).encode_png(PngEffort::Fast).unwrap();
        fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }
}

static WEIGHTS: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let network = InceptionConfig::default().init(&mut Init::new(0, &Device::flex()));
    let named = |NamedValues { name, shape, .. }: &NamedValues| {
        NamedTensor::from_f32(name.clone(), shape.clone(), &parameter(name, shape)).into_owned()
    };
    let named: Vec<_> = state::collect(&network).iter().map(named).collect();
    write_safetensors(&folder.path().join("inception.safetensors"), &named, &BTreeMap::new()).unwrap();
    folder
});

/// The file of the made-up weights.
pub fn inception() -> PathBuf {
    WEIGHTS.path().join("inception.safetensors")
}

/// Networks with the made-up Inception.
pub fn networks() -> Networks {
    let mut networks = Networks::new(Device::flex());
    networks.inception = Some(inception());
    networks
}

/// Features that take no time: sums of the levels at some places.
pub struct Quick {
    key: FeatureKey,
    fingerprint: NetworkFingerprint,
}

impl Quick {
    /// Under the keys that metrics need.
    pub fn of(metrics: &Metrics) -> Vec<Box<dyn Features>> {
        let quick = |key: FeatureKey| -> Box<dyn Features> {
            let fingerprint = NetworkFingerprint {
                network: format!("quick {key}"),
                weights: "none".to_owned(),
                official: false,
                resize: "none".to_owned(),
                rounding: "none".to_owned(),
                precision: "f32".to_owned(),
            };
            Box::new(Self { key, fingerprint })
        };
        wanted(metrics).into_keys().map(quick).collect()
    }

    fn row(width: usize, image: &RgbImage) -> Vec<f32> {
        let mut row = vec![0f32; width];
        image.data().iter().enumerate().for_each(|(at, level)| row[at * at % width] += f32::from(*level) / 4096.0);
        row
    }
}

impl Features for Quick {
    fn key(&self) -> &FeatureKey {
        &self.key
    }

    fn fingerprint(&self) -> &NetworkFingerprint {
        &self.fingerprint
    }

    fn width(&self) -> usize {
        6
    }

    fn classes(&self) -> usize {
        4
    }

    fn images(&self, images: &[&RgbImage]) -> Result<ImageRows> {
        let rows = |width| images.iter().flat_map(|image| Self::row(width, image)).collect();
        Ok(ImageRows { features: rows(self.width()), logits: rows(self.classes()) })
    }

    fn captions(&self, captions: &[&str]) -> Result<Vec<f32>> {
        let row = |caption: &&str| hashes(caption, 6).map(|hash| (hash % 100) as f32 + 1.0).collect::<Vec<_>>();
        Ok(captions.iter().flat_map(row).collect())
    }
}

/// The pictures of rare modes.
pub fn rare_modes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures")
}
