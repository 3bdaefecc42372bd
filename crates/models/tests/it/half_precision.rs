//! UNets whose convolutions are wide enough for every way of computing them are in `bf16` as near to `f32` as rounding allows.

use crate::common;
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_models::state::values_of;
use calotype_models::unet::UNet;
use calotype_models::{Init, UNetConfig};

fn noise<const D: usize>(shape: [usize; D], index: u64, device: &Device) -> Tensor<D> {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(11, Purpose::Noise, index).fill_normal(&mut values);
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The difference's length in that of the second.
fn error(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| (a - b) as f64));
    (difference / square(&mut b.iter().map(|&b| b as f64)).max(f64::MIN_POSITIVE)).sqrt()
}

#[test]
fn a_wide_unet() {
    outputs_and_gradients(vec![128, 256]);
}

#[test]
fn a_narrow_unet() {
    outputs_and_gradients(vec![32, 96]);
}

#[track_caller]
fn outputs_and_gradients(block_out_channels: Vec<usize>) {
    let device = Device::flex().autodiff();
    let head_channels = vec![block_out_channels[0].min(64); 2];
    let config = UNetConfig {
        block_out_channels,
        layers_per_block: 1,
        attention_levels: vec![true, false],
        head_channels,
        context_channels: 64,
        ..UNetConfig::default()
    };
    let unet: UNet = config.init(&mut Init::repeated_noise(0.05, &device)).unwrap();
    let (latent, context) = (noise([1, 32, 32, 4], 1, &device), noise([1, 9, 64], 2, &device));
    let target = noise::<4>([1, 32, 32, 4], 3, &device);
    let run = |dtype: DType| {
        let output = unet.forward(latent.clone().cast(dtype), &[500.0], context.clone().cast(dtype), None);
        let output = output.cast(DType::F32);
        let loss = (output.clone() - target.clone()).powi_scalar(2).mean();
        (values_of(output), common::gradients(&unet, &loss.backward()))
    };
    let ((exact, exact_gradients), (output, gradients)) = (run(DType::F32), run(DType::BF16));
    let found = error(&output, &exact);
    println!("output: {found:.5}");
    assert!(found < 0.02, "outputs differ by {found}");
    let mut squares = (0.0, 0.0);
    for ((name, exact), (_, gradient)) in exact_gradients.iter().zip(&gradients) {
        let [exact, gradient] =
            [exact, gradient].map(|g| g.as_ref().unwrap_or_else(|| panic!("{name} has no gradient")));
        let size: f64 = exact.iter().map(|&v| (v as f64).powi(2)).sum();
        squares.0 += error(gradient, exact).powi(2) * size;
        squares.1 += size;
    }
    let found = (squares.0 / squares.1).sqrt();
    println!("gradients: {found:.5}");
    assert!(found < 0.04, "gradients differ by {found}");
}
