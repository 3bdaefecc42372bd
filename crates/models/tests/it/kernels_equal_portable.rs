//! Whole models: output and every parameter's gradient through the CPU kernels against the portable operations.

use crate::common;
use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_models::{AutoencoderConfig, ClipConfig, HiddenActivation, Init, TextConfig, UNetConfig, VisionConfig};
use calotype_ops::force_portable;

fn device() -> Device {
    Device::flex().autodiff()
}

fn noise<const D: usize>(shape: [usize; D], index: u64) -> Tensor<D> {
    let mut data = vec![0f32; shape.iter().product()];
    Stream::new(7, Purpose::Noise, index).fill_normal(&mut data);
    Tensor::from_data(TensorData::new(data, shape), &device())
}

/// Replaces the zero-initialised layers, behind which no gradient would flow.
fn without_zeros<M: Module>(module: M) -> M {
    let mut number = 0;
    calotype_models::state::load(module, |_, shape| {
        let mut values = vec![0f32; shape.iter().product()];
        number += 1;
        Stream::new(3, Purpose::WeightInit, number).fill_normal(&mut values);
        values.iter_mut().for_each(|v| *v *= 0.2);
        Ok::<_, std::convert::Infallible>(values)
    })
    .unwrap_or_else(|never| match never {})
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |m, v| m.max(v.abs()))
}

/// Largest difference, relative to the parameter's own scale. Keys' biases have no gradient but rounding (softmax does
/// not see a constant), hence a floor that comes from all gradients.
fn relative(a: &[f32], b: &[f32], floor: f32) -> f32 {
    let scale = largest(b).max(floor);
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / scale
}

/// Compares `loss` and its gradients on both bodies; reports every parameter that differs.
fn compare<M: Module>(name: &str, module: &M, loss: impl Fn(&M) -> Tensor<1>) {
    let run = || {
        let loss = loss(module);
        let value: f32 = loss.clone().inner().into_scalar();
        let gradients = common::gradients(module, &loss.backward());
        (value, gradients.into_iter().map(|(name, values)| (name, values.unwrap_or_default())).collect::<Vec<_>>())
    };
    let (fast, fast_gradients) = run();
    let (slow, slow_gradients) = force_portable(run);
    assert!((fast - slow).abs() <= 1e-4 * slow.abs().max(1e-3), "{name}: loss {fast}, portable {slow}");
    let floor = 1e-4 * slow_gradients.iter().fold(0f32, |m, (_, g)| m.max(largest(g)));
    let bad: Vec<String> = fast_gradients
        .iter()
        .zip(&slow_gradients)
        .filter(|((_, a), (_, b))| a.is_empty() != b.is_empty() || relative(a, b, floor) > 2e-3)
        .map(|((key, a), (_, b))| format!("{key}: {}", relative(a, b, floor)))
        .collect();
    assert!(bad.is_empty(), "{name}: {} of {} gradients differ: {bad:#?}", bad.len(), fast_gradients.len());
}

#[test]
fn autoencoder() {
    let config = AutoencoderConfig {
        latent_channels: 4,
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        norm_groups: 4,
        ..AutoencoderConfig::default()
    };
    let device = device();
    let model = without_zeros(config.init(&mut Init::new(1, &device)).unwrap());
    let (picture, z) = (noise([2, 8, 8, 3], 0), noise([2, 4, 4, 4], 1));
    compare("autoencoder", &model, |model| {
        let distribution = model.encode(picture.clone());
        let decoded = model.decode(distribution.sample(z.clone()));
        (decoded - picture.clone()).powi_scalar(2).mean() + distribution.kl().mul_scalar(0.1)
    });
}

#[test]
fn unet() {
    let config = UNetConfig {
        block_out_channels: vec![16, 32],
        layers_per_block: 1,
        attention_levels: vec![true, true],
        head_channels: vec![8, 16],
        context_channels: 12,
        norm_groups: 4,
        transformer_norm_groups: 4,
        ..UNetConfig::default()
    };
    let device = device();
    let model = without_zeros(config.init(&mut Init::new(2, &device)).unwrap());
    let (x, context) = (noise([2, 8, 8, 4], 2), noise([2, 5, 12], 3));
    compare("unet", &model, |model| {
        model.forward(x.clone(), &[3.0, 700.0], context.clone(), None).powi_scalar(2).mean()
    });
}

#[test]
fn clip() {
    let config = ClipConfig {
        projection: 12,
        text: TextConfig {
            vocab_size: 20,
            context_length: 6,
            channels: 16,
            layers: 2,
            heads: 2,
            activation: HiddenActivation::QuickGelu,
            ..TextConfig::default()
        },
        vision: VisionConfig {
            image_size: 8,
            patch_size: 4,
            channels: 16,
            layers: 2,
            heads: 2,
            activation: HiddenActivation::Gelu,
            ..VisionConfig::default()
        },
        ..ClipConfig::default()
    };
    let device = device();
    let model = config.init(&mut Init::new(3, &device)).unwrap();
    let pictures = noise([3, 8, 8, 3], 4);
    let ids: Vec<i32> = (0..18).map(|i| (i * 7) % 20).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [3, 6]), &device.inner());
    compare("clip", &model, |model| {
        let texts = model.text_features(ids.clone(), &[5, 2, 4], DType::F32);
        model.contrastive_loss(model.image_features(pictures.clone()), texts)
    });
    // The features are unit vectors of the same direction with bf16 activations.
    let same = |a: Tensor<2>, b: Tensor<2>| {
        let cosines = (a * b).sum_dim(1).inner().into_data().try_to_vec::<f32>().unwrap();
        assert!(cosines.iter().all(|cosine| (cosine - 1.0).abs() < 2e-3), "{cosines:?}");
    };
    let texts = |dtype| model.text_features(ids.clone(), &[5, 2, 4], dtype);
    same(texts(DType::F32), texts(DType::BF16));
    same(model.image_features(pictures.clone()), model.image_features(pictures.cast(DType::BF16)));
}
