//! Sinusoidal timestep features and the small network on them.

use crate::init::Init;
use crate::layers::Linear;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_ops::{Activation, activation};

/// Sinusoidal features of diffusion timesteps, longest period 10,000 (Ho et al. 2020; `Timesteps` of diffusers).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepFeatures {
    /// Number of features; even.
    pub channels: usize,
    /// `[cos ‖ sin]`, as in the Stable Diffusion UNet, instead of `[sin ‖ cos]`.
    pub cosine_first: bool,
    /// Subtracted from the number of frequencies where it divides the exponent.
    pub frequency_shift: f32,
}

impl TimestepFeatures {
    /// Rounds to `f32` where the reference does: at a timestep of 1000, a frequency's last bit moves the features by 6e-5.
    ///
    /// # Shapes
    /// `timesteps` of length `batch`, fractions allowed, to `[batch, channels]`
    pub fn of(&self, timesteps: &[f32], device: &Device) -> Tensor<2> {
        let half = self.channels / 2;
        let divisor = half as f32 - self.frequency_shift;
        let frequency = |i: usize| {
            let exponent = -(10_000f64.ln()) as f32 * i as f32 / divisor;
            f64::from(exponent).exp() as f32
        };
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let mut data = Vec::with_capacity(timesteps.len() * 2 * half);
        for &t in timesteps {
            let angles = || frequencies.iter().map(|&frequency| f64::from(t * frequency));
            let (sines, cosines) = (angles().map(|a| a.sin() as f32), angles().map(|a| a.cos() as f32));
            if self.cosine_first {
                data.extend(cosines.chain(sines));
            } else {
                data.extend(sines.chain(cosines));
            }
        }
        Tensor::from_data(TensorData::new(data, [timesteps.len(), 2 * half]), device)
    }
}

/// Two linear layers with SiLU between them: `TimestepEmbedding` of the reference.
#[derive(Module, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// From `inputs` features to `outputs` channels.
    pub fn new(init: &mut Init, inputs: usize, outputs: usize) -> Self {
        Self { linear_1: Linear::new(init, inputs, outputs), linear_2: Linear::new(init, outputs, outputs) }
    }

    /// # Shapes
    /// `[batch, inputs]` to `[batch, outputs]`
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(activation(self.linear_1.forward(features), Activation::Silu))
    }
}
