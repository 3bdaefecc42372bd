//! Random numbers of images.

use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream, TorchCpuGenerator, TorchFloat, names};
use half::{bf16, f16};
use std::cell::RefCell;

names! {
    /// A generator of random numbers by name.
    #[derive(Default)]
    NoiseKind, "generator" {
        /// Philox, by seed and number of the image: each draw stands on its own.
        #[default]
        Philox = "philox",
        /// PyTorch's generator for CPU tensors, one for each image, seeded with the sum of seed and number of the image: the
        /// images of diffusers' pipelines with such a list of generators, in the pipeline's type.
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
    TorchCpu { images: RefCell<Vec<TorchCpuGenerator>>, dtype: DType },
}

/// Draws of one image have numbers this far apart, in which images are counted.
const DRAW: u32 = 40;

impl ImageNoise {
    /// For images of these seeds in a pipeline whose activations have type `dtype`: PyTorch draws half precisions
    /// otherwise than it rounds single ones, where the last of their blocks of sixteen is not full.
    pub fn new(kind: NoiseKind, images: &[ImageSeed], dtype: DType, device: &Device) -> Self {
        let generators = match kind {
            NoiseKind::Philox => Generators::Philox { images: images.to_vec(), drawn: RefCell::new(0) },
            NoiseKind::TorchCpu => {
                let of = |image: &ImageSeed| TorchCpuGenerator::new(image.seed.wrapping_add(image.number));
                Generators::TorchCpu { images: RefCell::new(images.iter().map(of).collect()), dtype }
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
            Generators::TorchCpu { images, dtype } => {
                let mut generators = images.borrow_mut();
                let mut data = vec![0f32; generators.len() * size];
                for (row, generator) in data.chunks_exact_mut(size.max(1)).zip(generators.iter_mut()) {
                    match dtype {
                        DType::BF16 => fill_rounded::<bf16>(generator, row),
                        DType::F16 => fill_rounded::<f16>(generator, row),
                        _ => generator.fill_normal(row),
                    }
                }
                let shape = [generators.len(), channels, height, width];
                Tensor::<4>::from_data(TensorData::new(data, shape), &self.device).permute([0, 2, 3, 1])
            }
        }
    }
}

/// Normal numbers of a half precision.
fn fill_rounded<T: TorchFloat + Into<f32> + Default>(generator: &mut TorchCpuGenerator, row: &mut [f32]) {
    let mut values = vec![T::default(); row.len()];
    generator.fill_normal(&mut values);
    row.iter_mut().zip(values).for_each(|(number, value)| *number = value.into());
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
            let together = ImageNoise::new(kind, &[of(7, 3), of(7, 4), of(8, 5)], DType::F32, &device);
            let alone = ImageNoise::new(kind, &[of(7, 4)], DType::F32, &device);
            for draw in 0..3 {
                let (all, one) = (values(&together), values(&alone));
                assert_eq!(all[60..120], one, "{kind:?}, draw {draw}");
                assert_ne!(all[..60], one);
            }
        }
    }

    /// `torch.randn(1, 4, 13, 11, generator=torch.Generator("cpu").manual_seed(7), dtype=...)` of PyTorch 2.15, a latent of
    /// 104x88 pixels: 572 numbers, the last 16 of which differ in half precision.
    #[test]
    fn half_precisions_are_drawn_as_by_torch() {
        let device = Device::default();
        let last = |dtype| {
            let noise = ImageNoise::new(NoiseKind::TorchCpu, &[ImageSeed { seed: 7, number: 0 }], dtype, &device);
            let drawn = noise.draw([13, 11, 4]).permute([0, 3, 1, 2]);
            let all: Vec<f32> = drawn.into_data().iter::<f32>().collect();
            (all[0], all[555], [all[556], all[570], all[571]])
        };
        let single = (-0.820_134_5, -1.722_523_2, [0.223_947_17, 0.126_187_68, 1.049_064_2]);
        assert_eq!(last(DType::F32), single);
        assert_eq!(last(DType::BF16), (-0.820_312_5, -1.718_75, [-0.550_781_25, 0.136_718_75, -1.164_062_5]));
        assert_eq!(last(DType::F16), (-0.820_312_5, -1.722_656_3, [-0.550_292_97, 0.137_084_96, -1.166_992_2]));
    }
}
