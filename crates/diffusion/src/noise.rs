//! Where the random numbers of pictures come from.

use burn::tensor::{Device, Tensor, TensorData};
use calotype_kernels::{Purpose, Stream, TorchCpuGenerator};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// A generator of random numbers by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseKind {
    /// Philox, by seed and number of the picture: each draw stands on its own.
    #[default]
    Philox,
    /// PyTorch's generator for CPU tensors, one for each picture, seeded with the sum of seed and number of the picture:
    /// the pictures of diffusers' pipelines with such a list of generators.
    TorchCpu,
}

/// The standard normal numbers of some pictures, drawn one latent after another; what a picture draws does not depend on the
/// others.
pub struct PictureNoise {
    generators: Generators,
    device: Device,
}

enum Generators {
    Philox { seed: u64, pictures: Vec<u64>, drawn: RefCell<u64> },
    TorchCpu(RefCell<Vec<TorchCpuGenerator>>),
}

/// Draws of one picture have numbers this far apart, in which pictures are counted.
const DRAW: u32 = 40;

impl PictureNoise {
    /// For pictures with these numbers.
    pub fn new(kind: NoiseKind, seed: u64, pictures: &[u64], device: &Device) -> Self {
        let generators = match kind {
            NoiseKind::Philox => Generators::Philox { seed, pictures: pictures.to_vec(), drawn: RefCell::new(0) },
            NoiseKind::TorchCpu => {
                let of = |number: &u64| TorchCpuGenerator::new(seed.wrapping_add(*number));
                Generators::TorchCpu(RefCell::new(pictures.iter().map(of).collect()))
            }
        };
        Self { generators, device: device.clone() }
    }

    /// The next latent of each picture.
    ///
    /// # Shapes
    /// `[pictures, height, width, channels]`
    pub fn draw(&self, [height, width, channels]: [usize; 3]) -> Tensor<4> {
        let size = height * width * channels;
        match &self.generators {
            Generators::Philox { seed, pictures, drawn } => {
                let mut data = vec![0f32; pictures.len() * size];
                let (purpose, offset) = match drawn.replace_with(|n| *n + 1) {
                    0 => (Purpose::InitialLatent, 0),
                    n => (Purpose::Noise, n << DRAW),
                };
                for (row, picture) in data.chunks_exact_mut(size.max(1)).zip(pictures) {
                    Stream::new(*seed, purpose, picture + offset).fill_normal(row);
                }
                Tensor::from_data(TensorData::new(data, [pictures.len(), height, width, channels]), &self.device)
            }
            Generators::TorchCpu(generators) => {
                let mut generators = generators.borrow_mut();
                let mut data = vec![0f32; generators.len() * size];
                for (row, generator) in data.chunks_exact_mut(size.max(1)).zip(generators.iter_mut()) {
                    generator.fill_normal(row);
                }
                let shape = [generators.len(), channels, height, width];
                Tensor::<4>::from_data(TensorData::new(data, shape), &self.device).permute([0, 2, 3, 1])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(noise: &PictureNoise) -> Vec<f32> {
        noise.draw([3, 5, 4]).into_data().iter::<f32>().collect()
    }

    #[test]
    fn a_picture_does_not_depend_on_its_company() {
        let device = Device::default();
        for kind in [NoiseKind::Philox, NoiseKind::TorchCpu] {
            let together = PictureNoise::new(kind, 7, &[3, 4, 5], &device);
            let alone = PictureNoise::new(kind, 7, &[4], &device);
            for draw in 0..3 {
                let (all, one) = (values(&together), values(&alone));
                assert_eq!(all[60..120], one, "{kind:?}, draw {draw}");
                assert_ne!(all[..60], one);
            }
        }
    }
}
