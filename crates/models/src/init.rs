//! Random initial weights, as a pure function of a seed and the order of construction.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_kernels::threads;

/// Hands out initial parameters; parameter `n` of a model draws from its own random stream.
#[derive(Debug)]
pub struct Init<'a> {
    source: Source,
    device: &'a Device,
}

/// The origin of the elements of parameters.
#[derive(Debug)]
enum Source {
    /// Parameter number `next` draws what it asks for, from its own stream.
    Streams { seed: u64, next: u64 },
    /// All parameters are filled with these values, over and over.
    Repeated(Vec<f32>),
    /// One zero stands for all elements of a parameter.
    Placeholders,
}

impl<'a> Init<'a> {
    /// Starts a model whose parameters will live on `device`.
    pub fn new(seed: u64, device: &'a Device) -> Self {
        Self { source: Source::Streams { seed, next: 0 }, device }
    }

    /// For benchmarks: every parameter becomes normal noise of the given deviation, whatever initial values it has
    /// otherwise. The noise repeats after 65,537 elements, so that models of any size are made at the speed of memory.
    pub fn repeated_noise(deviation: f32, device: &'a Device) -> Self {
        let mut noise = vec![0f32; 65_537];
        Stream::new(0, Purpose::WeightInit, 0).fill_normal(&mut noise);
        noise.iter_mut().for_each(|x| *x *= deviation);
        Self { source: Source::Repeated(noise), device }
    }

    /// For models whose weights are read next ([`crate::state::load_with`]): every parameter is a single zero, seen as a
    /// tensor of its shape, which takes no memory on devices that broadcast by strides.
    pub fn placeholders(device: &'a Device) -> Self {
        Self { source: Source::Placeholders, device }
    }

    /// Uniform in `±1/sqrt(fan_in)`: the default of torch's linear and convolution layers
    /// (Kaiming uniform with `a = sqrt(5)`).
    pub fn fan_in_uniform<const D: usize>(&mut self, shape: [usize; D], fan_in: usize) -> Param<Tensor<D>> {
        let bound = 1.0 / (fan_in as f32).sqrt();
        self.draw(shape, |stream, out| {
            stream.fill_uniform(out);
            out.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * bound);
        })
    }

    /// Normal with mean 0 and the given standard deviation.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], deviation: f32) -> Param<Tensor<D>> {
        self.draw(shape, |stream, out| {
            stream.fill_normal(out);
            out.iter_mut().for_each(|x| *x *= deviation);
        })
    }

    /// Every element equal to `value`.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        self.draw(shape, |_, out| out.fill(value))
    }

    /// The given elements.
    pub fn values(&mut self, values: &[f32]) -> Param<Tensor<1>> {
        self.draw([values.len()], |_, out| out.copy_from_slice(values))
    }

    fn draw<const D: usize>(
        &mut self,
        shape: [usize; D],
        fill: impl FnOnce(&mut Stream, &mut [f32]),
    ) -> Param<Tensor<D>> {
        if matches!(self.source, Source::Placeholders) {
            return Param::from_tensor(Tensor::<D>::zeros([1; D], self.device).expand(shape));
        }
        let mut data = vec![0f32; shape.iter().product()];
        match &mut self.source {
            Source::Streams { seed, next } => {
                fill(&mut Stream::new(*seed, Purpose::WeightInit, *next), &mut data);
                *next += 1;
            }
            Source::Repeated(noise) => fill_repeated(noise, &mut data),
            Source::Placeholders => {}
        }
        Param::from_tensor(Tensor::from_data(TensorData::new(data, shape), self.device))
    }
}

/// Fills `data` with `noise` over and over. On all threads: most of the time goes to the first touch of fresh memory.
fn fill_repeated(noise: &[f32], data: &mut [f32]) {
    let piece = data.len().div_ceil(threads()).max(1 << 20).next_multiple_of(noise.len());
    std::thread::scope(|scope| {
        for piece in data.chunks_mut(piece) {
            scope.spawn(move || {
                piece.chunks_mut(noise.len()).for_each(|part| part.copy_from_slice(&noise[..part.len()]));
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_noise_repeats_over_pieces() {
        let noise = [1.0, 2.0, 3.0];
        let mut data = vec![0f32; 5_000_000];
        fill_repeated(&noise, &mut data);
        assert!(data.iter().enumerate().all(|(i, &x)| x == noise[i % 3]));
    }
}
