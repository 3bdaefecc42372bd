//! Networks that keep only their blocks' inputs have the outputs and the gradients of those that keep everything; what else
//! training leaves out of a ViT.

use crate::common;
use burn::module::Module;
use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_models::state::{self, values_of};
use calotype_models::unet::{Keep, UNet};
use calotype_models::vit::Dropout;
use calotype_models::{ClipConfig, Init, Reads, Recompute, TextConfig, UNetConfig, VisionConfig, Vit, VitConfig};

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
fn gradients<M: Module>(model: &M, gradients: &Gradients) -> Vec<(String, Vec<u32>)> {
    let bits = |(name, values): (String, Option<Vec<f32>>)| {
        let values = values.unwrap_or_else(|| panic!("{name} has none"));
        (name, values.into_iter().map(f32::to_bits).collect())
    };
    common::gradients(model, gradients).into_iter().map(bits).collect()
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

/// Values of an output, and bits of every gradient.
type Run = (Vec<f32>, Vec<(String, Vec<u32>)>);

fn vit(recompute: Option<Recompute>, device: &Device) -> Vit {
    let config = VitConfig {
        image_size: 8,
        patch_size: 4,
        channels: 16,
        mlp_channels: 32,
        layers: 5,
        heads: 2,
        labels: 3,
        dropout: 0.2,
        drop_path: 0.4,
        ..VitConfig::default()
    };
    config.init(&mut Init::new(3, device)).unwrap().recomputing(recompute)
}

/// Blocks that are computed again drop the same states and branches.
#[test]
fn blocks_of_transformers_are_computed_twice_to_the_same_bits() {
    let device = Device::flex().autodiff();
    let clip = ClipConfig {
        projection: 8,
        text: TextConfig { context_length: 6, channels: 16, layers: 3, heads: 2, ..TextConfig::default() },
        vision: VisionConfig {
            image_size: 8,
            patch_size: 4,
            channels: 16,
            layers: 3,
            heads: 2,
            ..VisionConfig::default()
        },
        ..ClipConfig::default()
    };
    for dtype in [DType::F32, DType::BF16] {
        let pictures = noise([3, 64, 3], 7, &device).cast(dtype).reshape([3, 8, 8, 3]);
        let run_vit = |recompute| -> Run {
            let model = vit(recompute, &device);
            let dropout = Dropout { seed: 1, positions: &[4, 5, 6] };
            let y = model.forward_training(pictures.clone(), dropout).unwrap();
            let found = y.clone().cast(DType::F32).powi_scalar(2).mean().backward();
            (values_of(y.inner()), gradients(&model, &found))
        };
        let run_clip = |recompute| -> Run {
            let model = clip.init(&mut Init::new(3, &device)).unwrap().recomputing(recompute);
            let ids = Tensor::<2, Int>::from_data([[1, 2, 3], [4, 5, 6], [7, 8, 9]], &Device::flex());
            let texts = model.text_features(ids, &[2, 2, 2], dtype);
            let loss = model.contrastive_loss(model.image_features(pictures.clone()), texts);
            let found = loss.clone().backward();
            (values_of(loss.inner()), gradients(&model, &found))
        };
        let kept = (run_vit(None), run_clip(None));
        for recompute in [Recompute::Uniform(1), Recompute::Uniform(2), Recompute::Block(2), Recompute::Block(9)] {
            let again = (run_vit(Some(recompute)), run_clip(Some(recompute)));
            assert!(kept.0.0 == again.0.0 && kept.1.0 == again.1.0, "{dtype:?}, {recompute:?}: outputs differ");
            let pairs = kept.0.1.iter().chain(&kept.1.1).zip(again.0.1.iter().chain(&again.1.1));
            for ((name, kept), (_, again)) in pairs {
                assert!(kept == again, "{dtype:?}, {recompute:?}: gradients of {name} differ");
            }
        }
    }
}

#[test]
fn stochastic_depth_is_a_function_of_positions_and_grows_with_the_blocks() {
    let device = Device::flex().autodiff();
    let logits = |drop_path: f32, layers: usize, positions: &[u64]| {
        let config = VitConfig {
            image_size: 8,
            patch_size: 4,
            channels: 16,
            mlp_channels: 32,
            layers,
            heads: 2,
            labels: 3,
            drop_path,
            ..VitConfig::default()
        };
        let model = config.init(&mut Init::new(3, &device)).unwrap();
        let pictures = noise([1, 64, 3], 7, &device).reshape([1, 8, 8, 3]).repeat(&[positions.len(), 1, 1, 1]);
        values_of(model.forward_training(pictures, Dropout { seed: 1, positions }).unwrap().inner())
    };
    let positions: Vec<u64> = (0..40).collect();
    let all = logits(0.5, 3, &positions);
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(same(&all[30..33], &logits(0.5, 3, &[10])));
    let different: std::collections::BTreeSet<Vec<i64>> =
        all.chunks(3).map(|row| row.iter().map(|x| (f64::from(*x) * 1e5).round() as i64).collect()).collect();
    // Blocks of rates 0, 1/4 and 1/2 with two branches each: sixteen combinations.
    assert!((6..=16).contains(&different.len()), "{}", different.len());
    // The first block's branches stay.
    assert!(same(&logits(0.5, 1, &positions), &logits(0.0, 1, &positions)));
}

#[test]
fn what_a_classifier_reads() {
    let device = Device::flex();
    let config = VitConfig {
        image_size: 8,
        patch_size: 4,
        channels: 16,
        mlp_channels: 32,
        layers: 1,
        heads: 2,
        labels: 3,
        class_tokens: 2,
        ..VitConfig::default()
    };
    let pictures = noise([2, 64, 3], 7, &device).reshape([2, 8, 8, 3]);
    for reads in [Reads::FirstToken, Reads::ClassTokens, Reads::Patches] {
        let model = VitConfig { reads, ..config.clone() }.init(&mut Init::new(3, &device)).unwrap();
        let states = model.last_hidden_state(pictures.clone()).unwrap();
        assert_eq!(states.dims(), [2, 6, 16]);
        let (values, read) = (values_of(states.clone()), values_of(model.read(states)));
        let mean = |image: usize, channel: usize, tokens: std::ops::Range<usize>| {
            let count = tokens.len() as f32;
            tokens.map(|token| values[(image * 6 + token) * 16 + channel]).sum::<f32>() / count
        };
        for (at, found) in read.iter().enumerate() {
            let (image, channel) = (at / 16, at % 16);
            let expected = match reads {
                Reads::FirstToken => mean(image, channel, 0..1),
                Reads::ClassTokens => mean(image, channel, 0..2),
                // Normalised behind the mean.
                Reads::Patches => {
                    let row: Vec<f32> = (0..16).map(|channel| mean(image, channel, 2..6)).collect();
                    let centre = row.iter().sum::<f32>() / 16.0;
                    let spread = row.iter().map(|value| (value - centre).powi(2)).sum::<f32>() / 16.0;
                    (row[channel] - centre) / (spread + 1e-12).sqrt()
                }
            };
            assert!((found - expected).abs() < 1e-4, "{reads}: {found} and {expected}");
        }
        assert_eq!(model.forward(pictures.clone()).unwrap().dims(), [2, 3]);
    }
    let none = VitConfig { class_tokens: 0, ..config };
    assert_eq!(none.validate().unwrap_err().field, "class_tokens");
    let without = VitConfig { reads: Reads::Patches, ..none }.init(&mut Init::new(3, &device)).unwrap();
    assert_eq!(without.last_hidden_state(pictures).unwrap().dims(), [2, 4, 16]);
}
