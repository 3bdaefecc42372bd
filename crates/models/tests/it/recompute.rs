//! A UNet that keeps only its blocks' inputs has the output and the gradients of one that keeps everything.

use crate::common;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_models::state::{self, values_of};
use calotype_models::unet::{Keep, UNet};
use calotype_models::{Init, UNetConfig};

fn normal(n: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0f32; n];
    Stream::new(11, Purpose::Noise, index).fill_normal(&mut values);
    values
}

fn noise<const D: usize>(shape: [usize; D], index: u64, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(normal(shape.iter().product(), index), shape), device)
}

/// A small UNet without the zeros behind which no gradient would flow.
fn network(device: &Device) -> UNet {
    let config = UNetConfig {
        block_out_channels: vec![16, 32],
        layers_per_block: 2,
        attention_levels: vec![true, false],
        head_channels: vec![8, 16],
        context_channels: 12,
        norm_groups: 4,
        transformer_norm_groups: 4,
        ..UNetConfig::default()
    };
    let unet = config.init(&mut Init::new(2, device)).unwrap();
    let mut number = 100;
    state::load(unet, |_, shape| {
        number += 1;
        let values = normal(shape.iter().product(), number).into_iter().map(|v| 0.2 * v);
        Ok::<Vec<f32>, std::convert::Infallible>(values.collect())
    })
    .unwrap_or_else(|never| match never {})
}

/// Bits of every parameter's gradient by name.
fn gradients(unet: &UNet, gradients: &Gradients) -> Vec<(String, Vec<u32>)> {
    let bits = |(name, values): (String, Option<Vec<f32>>)| {
        let values = values.unwrap_or_else(|| panic!("{name} has none"));
        (name, values.into_iter().map(f32::to_bits).collect())
    };
    common::gradients(unet, gradients).into_iter().map(bits).collect()
}

fn bits<const D: usize>(t: Tensor<D>) -> Vec<u32> {
    values_of(t.cast(DType::F32)).into_iter().map(f32::to_bits).collect()
}

#[test]
fn same_bits_as_with_all_activations() {
    let device = Device::flex().autodiff();
    let unet = network(&device);
    for dtype in [DType::F32, DType::BF16] {
        for track_inputs in [false, true] {
            let run = |keep| {
                let leaf = |t: Tensor<3>| if track_inputs { t.cast(dtype).detach().require_grad() } else { t };
                let x = leaf(noise([2, 64, 4], 0, &device));
                let context = leaf(noise([2, 5, 12], 1, &device));
                let latent = x.clone().cast(dtype).reshape([2, 8, 8, 4]);
                let y = unet.forward_keeping(keep, latent, &[3.0, 700.0], context.clone(), None);
                let output = bits(y.clone().inner());
                let found = y.cast(DType::F32).powi_scalar(2).mean().backward();
                let of_inputs = [x, context].map(|t| t.grad(&found).map(bits));
                (output, of_inputs, gradients(&unet, &found))
            };
            let (kept, recomputed) = (run(Keep::Activations), run(Keep::Inputs));
            assert_eq!(kept.1[0].is_some(), track_inputs);
            assert!(kept.0 == recomputed.0, "{dtype:?}: outputs differ");
            assert!(kept.1 == recomputed.1, "{dtype:?}: gradients of the inputs differ");
            for ((name, kept), (_, recomputed)) in kept.2.iter().zip(&recomputed.2) {
                assert!(kept == recomputed, "{dtype:?}: gradients of {name} differ");
            }
        }
    }
}
