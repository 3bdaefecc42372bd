//! Sinusoidal features of timesteps and guidance scales, and the small network on them.

use crate::init::Init;
use crate::layers::Linear;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_ops::{Activation, activation, add};

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

/// Sinusoidal features of guidance scales, sines first, as networks take them that were distilled with guidance (Meng et al.
/// 2023, section 3.1; Luo et al. 2023; `get_guidance_scale_embedding` of diffusers). Rounded to `f32` where diffusers rounds.
///
/// # Shapes
/// `scales` of length `batch`, 1 for no guidance, to `[batch, channels]`; `channels` is even and more than 2
pub fn guidance_features(scales: &[f32], channels: usize, device: &Device) -> Tensor<2> {
    let half = channels / 2;
    let step = (10_000f64.ln() as f32) / (half as f32 - 1.0);
    let frequencies: Vec<f32> = (0..half).map(|i| f64::from(i as f32 * -step).exp() as f32).collect();
    let mut data = Vec::with_capacity(scales.len() * 2 * half);
    for &scale in scales {
        let weight = (f64::from(scale) - 1.0) as f32 * 1000.0;
        let angles = || frequencies.iter().map(|&frequency| f64::from(weight * frequency));
        data.extend(angles().map(|angle| angle.sin() as f32));
        data.extend(angles().map(|angle| angle.cos() as f32));
    }
    Tensor::from_data(TensorData::new(data, [scales.len(), 2 * half]), device)
}

/// Two linear layers with SiLU between them, and a projection of further features that are added in front of them:
/// `TimestepEmbedding` of the reference.
#[derive(Module, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    cond_proj: Option<Linear>,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// From `inputs` features to `outputs` channels.
    pub fn new(init: &mut Init, inputs: usize, outputs: usize) -> Self {
        let linear_1 = Linear::new(init, inputs, outputs);
        Self { linear_1, cond_proj: None, linear_2: Linear::new(init, outputs, outputs) }
    }

    /// The same with a projection of `condition` further features.
    pub fn conditioned(self, init: &mut Init, condition: usize, inputs: usize) -> Self {
        Self { cond_proj: Some(Linear::without_bias(init, condition, inputs)), ..self }
    }

    /// # Shapes
    /// `[batch, inputs]` to `[batch, outputs]`
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        self.forward_with(features, None)
    }

    /// The same with the further features, where the layer projects them.
    ///
    /// # Shapes
    /// `[batch, inputs]` and `[batch, condition]` to `[batch, outputs]`
    pub fn forward_with(&self, features: Tensor<2>, condition: Option<Tensor<2>>) -> Tensor<2> {
        let features = match self.cond_proj.as_ref().zip(condition) {
            Some((projection, condition)) => add(features, projection.forward(condition)),
            None => features,
        };
        self.linear_2.forward(activation(self.linear_1.forward(features), Activation::Silu))
    }
}
