//! Random numbers of images.

use burn::tensor::{Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream, TorchCpuGenerator, names};
use std::cell::RefCell;

names! {
    /// A generator of random numbers by name.
    #[derive(Default)]
    NoiseKind, "generator" {
        /// Philox, by seed and number of the image: each draw stands on its own.
        #[default]
        Philox = "philox",
        /// PyTorch's generator for CPU tensors, one for each image, seeded with the sum of seed and number of the image: the
        /// images of diffusers' pipelines with such a list of generators.
        TorchCpu = "torch-cpu",
    }
}

/// Seed of an image's random numbers, and the image's number among all of the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSeed {
    /// The seed.
    pub seed: u64,
    /// The number.
    pub number: u64,
}

/// The standard normal numbers of some images, drawn one latent after another; what an image draws does not depend on the
/// others.
pub struct ImageNoise {
    generators: Generators,
    device: Device,
}

enum Generators {
    Philox { images: Vec<ImageSeed>, drawn: RefCell<u64> },
    TorchCpu(RefCell<Vec<TorchCpuGenerator>>),
}

/// Draws of one image have numbers this far apart, in which images are counted.
const DRAW: u32 = 40;

impl ImageNoise {
    /// For images of these seeds.
    pub fn new(kind: NoiseKind, images: &[ImageSeed], device: &Device) -> Self {
        let generators = match kind {
            NoiseKind::Philox => Generators::Philox { images: images.to_vec(), drawn: RefCell::new(0) },
            NoiseKind::TorchCpu => {
                let of = |image: &ImageSeed| TorchCpuGenerator::new(image.seed.wrapping_add(image.number));
                Generators::TorchCpu(RefCell::new(images.iter().map(of).collect()))
            }
        };
        Self { generators, device: device.clone() }
    }

    /// The next latent of each image.
    ///
    /// # Shapes
    /// `[images, height, width, channels]`
    pub fn draw(&self, [height, width, channels]: [usize; 3]) -> Tensor<4> {
        let size = height * width * channels;
        match &self.generators {
            Generators::Philox { images, drawn } => {
                let mut data = vec![0f32; images.len() * size];
                let (purpose, offset) = match drawn.replace_with(|n| *n + 1) {
                    0 => (Purpose::InitialLatent, 0),
                    n => (Purpose::Noise, n << DRAW),
                };
                for (row, image) in data.chunks_exact_mut(size.max(1)).zip(images) {
                    Stream::new(image.seed, purpose, image.number + offset).fill_normal(row);
                }
                Tensor::from_data(TensorData::new(data, [images.len(), height, width, channels]), &self.device)
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

    fn values(noise: &ImageNoise) -> Vec<f32> {
        noise.draw([3, 5, 4]).into_data().iter::<f32>().collect()
    }

    #[test]
    fn an_image_does_not_depend_on_its_company() {
        let device = Device::default();
        for kind in [NoiseKind::Philox, NoiseKind::TorchCpu] {
            let of = |seed, number| ImageSeed { seed, number };
            let together = ImageNoise::new(kind, &[of(7, 3), of(7, 4), of(8, 5)], &device);
            let alone = ImageNoise::new(kind, &[of(7, 4)], &device);
            for draw in 0..3 {
                let (all, one) = (values(&together), values(&alone));
                assert_eq!(all[60..120], one, "{kind:?}, draw {draw}");
                assert_ne!(all[..60], one);
            }
        }
    }
}
