//! Weights in bf16 give the bits of the same numbers in f32: packed, not packed, in front of a GEGLU, with autodiff, and in
//! the portable body.

use crate::common::{Body, dtypes, from_vec, not_run, subject, to_vec};
use burn::tensor::{DType, Device, Tensor};
use calotype_core::{Purpose, Stream};
use calotype_ops::packed::bypassed;
use calotype_ops::{Conv2dGeometry, conv2d, force_portable, linear, linear_geglu};

fn noise<const D: usize>(shape: [usize; D], index: u64, dtype: DType, device: &Device) -> Tensor<D> {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(5, Purpose::Evaluation, index).fill_normal(&mut values);
    from_vec(&values, dtype, device).reshape(shape)
}

/// The outputs of linear layers, GEGLU and convolutions with the given type of weights, whose numbers are bf16's.
fn outputs(activations: DType, weights: DType, device: &Device) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    let rounded = |index, shape| noise::<2>(shape, index, DType::BF16, device).cast(weights);
    for (i, [rows, inputs, outs]) in [[5, 7, 6], [33, 64, 96], [1, 320, 64]].into_iter().enumerate() {
        let (i, x) = (10 * i as u64, noise([2, rows, inputs], 1, activations, device));
        let bias = Some(noise([outs], 2, DType::F32, device));
        all.push(to_vec(linear(x.clone(), rounded(i, [outs, inputs]), bias.clone(), None)));
        all.push(to_vec(linear_geglu(x, rounded(i + 1, [outs, inputs]), bias)));
    }
    for (i, (channels, kernel)) in [(5, 3), (32, 3), (64, 1)].into_iter().enumerate() {
        let x = noise([2, 6, 5, channels], 3, activations, device);
        let shape = [24, kernel, kernel, channels];
        let weight = noise(shape, 100 + i as u64, DType::BF16, device).cast(weights);
        all.push(to_vec(conv2d(x, weight, None, None, None, Conv2dGeometry::same(kernel))));
    }
    all
}

#[test]
fn bits_of_the_same_numbers_in_f32() {
    if subject() != Body::Kernels {
        return not_run("bf16 weights");
    }
    let device = subject().device();
    for activations in dtypes() {
        let both = |device: &Device| {
            let [half, wide] = [DType::BF16, DType::F32].map(|weights| outputs(activations, weights, device));
            assert!(half == wide, "{activations:?}: bf16 weights give other results");
            half
        };
        let packed = both(&device);
        assert!(bypassed(|| both(&device)) == packed, "{activations:?}: packed weights give other results");
        assert!(both(&device.clone().autodiff()) == packed, "{activations:?}: autodiff gives other results");
        force_portable(|| both(&device));
    }
}
