//! Random initial weights, as a pure function of a seed and the order of construction.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_kernels::{Purpose, Stream};

/// Hands out initial parameters; parameter `n` of a model draws from its own random stream.
#[derive(Debug)]
pub struct Init<'a> {
    seed: u64,
    next: u64,
    device: &'a Device,
}

impl<'a> Init<'a> {
    /// Starts a model whose parameters will live on `device`.
    pub fn new(seed: u64, device: &'a Device) -> Self {
        Self { seed, next: 0, device }
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
        let mut stream = Stream::new(self.seed, Purpose::WeightInit, self.next);
        self.next += 1;
        let mut data = vec![0f32; shape.iter().product()];
        fill(&mut stream, &mut data);
        Param::from_tensor(Tensor::from_data(TensorData::new(data, shape), self.device))
    }
}
