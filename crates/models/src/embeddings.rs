//! Sinusoidal timestep features and the small network on them.

use crate::init::Init;
use crate::layers::Linear;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_ops::{Activation, activation};

/// Sinusoidal features of diffusion timesteps, `[cos ‖ sin]`, longest period 10,000
/// (Ho et al. 2020, as in the Stable Diffusion UNet: `freq_shift` 0, cosine first).
///
/// # Shapes
/// `timesteps` of length `batch` to `[batch, channels]`; `channels` must be even.
pub fn timestep_features(timesteps: &[f32], channels: usize, device: &Device) -> Tensor<2> {
    let half = channels / 2;
    let mut data = vec![0f32; timesteps.len() * channels];
    for (row, &t) in data.chunks_exact_mut(channels.max(1)).zip(timesteps) {
        for i in 0..half {
            let frequency = (-(10_000f64.ln()) * i as f64 / half as f64).exp();
            let angle = f64::from(t) * frequency;
            row[i] = angle.cos() as f32;
            row[half + i] = angle.sin() as f32;
        }
    }
    Tensor::from_data(TensorData::new(data, [timesteps.len(), channels]), device)
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
