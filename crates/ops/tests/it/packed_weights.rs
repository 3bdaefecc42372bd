//! Weights that exist in packed form alone give the bits of the tensors that they stand for: forward, backward, in front of a
//! GEGLU, with f32 activations, and in the portable body.

use crate::common::{Body, dtypes, from_vec, not_run, subject, to_vec};
use burn::tensor::{DType, Device, Tensor};
use calotype_core::{Purpose, Stream};
use calotype_kernels::{multiplies_bf16, set_threads};
use calotype_ops::{
    Conv2dGeometry, PackedWeight, StoredType, Weight, WeightUse, conv2d, force_portable, linear, linear_geglu,
};

fn values(shape: &[usize], index: u64) -> Vec<f32> {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(5, Purpose::Evaluation, index).fill_normal(&mut values);
    values
}

fn noise<const D: usize>(shape: [usize; D], index: u64, dtype: DType, device: &Device) -> Tensor<D> {
    from_vec(&values(&shape, index), dtype, device).reshape(shape)
}

/// The weight of `shape` as a `bf16` tensor and packed from the `f32` numbers of a checkpoint.
fn both<const D: usize>(shape: [usize; D], index: u64, usage: WeightUse, device: &Device) -> [Weight<D>; 2] {
    let stored = values(&shape, index);
    let plain = match shape[..] {
        [o, h, w, i] => {
            from_vec(&stored, DType::F32, device).reshape([o, i, h, w]).permute([0, 2, 3, 1]).reshape(shape)
        }
        _ => from_vec(&stored, DType::F32, device).reshape(shape),
    };
    let bytes: Vec<u8> = stored.iter().flat_map(|value| value.to_le_bytes()).collect();
    let packed = PackedWeight::from_stored(&bytes, StoredType::F32, &shape, usage).expect("bf16 is multiplied");
    assert_eq!(packed.shape(), shape);
    let plain: Tensor<D> = plain.cast(DType::BF16);
    assert_eq!(to_vec(packed.tensor::<D>(device)), to_vec(plain.clone()));
    [plain.into(), packed.into()]
}

/// Outputs, and gradients of inputs and biases where the device has them.
fn results<const D: usize>(inputs: Vec<Tensor<D>>, bias: Option<Tensor<1>>, output: Tensor<D>) -> Vec<Vec<f32>> {
    let mut all = vec![to_vec(output.clone())];
    if inputs.iter().any(Tensor::is_require_grad) {
        let gradients = (output.clone() * output).cast(DType::F32).sum().backward();
        let of = inputs.iter().map(|input| input.grad(&gradients).expect("reaches the input"));
        all.extend(of.map(to_vec));
        all.extend(bias.map(|bias| to_vec(bias.grad(&gradients).expect("reaches the bias"))));
    }
    all
}

fn tracked<const D: usize>(tensor: Tensor<D>, device: &Device) -> Tensor<D> {
    if device.is_autodiff() { tensor.require_grad() } else { tensor }
}

fn outputs(dtype: DType, packed: usize, device: &Device) -> Vec<Vec<f32>> {
    let plain_device = Device::flex();
    let mut all = Vec::new();
    let x = |shape: [usize; 3]| tracked(noise(shape, 1, dtype, device), device);
    let b = |n| tracked(noise([n], 2, DType::F32, device), device);
    for (i, [rows, inputs, outs]) in [[5, 7, 6], [33, 64, 96], [1, 320, 64]].into_iter().enumerate() {
        let weights = both([outs, inputs], i as u64, WeightUse::Linear, &plain_device);
        let weight = at(weights, packed, device);
        let (x, bias, residual) = (x([2, rows, inputs]), b(outs), x([2, rows, outs]));
        let y = linear(x.clone(), weight, Some(bias.clone()), Some(residual.clone()));
        all.extend(results(vec![x, residual], Some(bias), y));
        let weights = both([outs, inputs], 10 + i as u64, WeightUse::LinearGeglu, &plain_device);
        let weight = at(weights, packed, device);
        let (x, bias) = (self::noise([2, rows, inputs], 3, dtype, device), b(outs));
        let x = tracked(x, device);
        let y = linear_geglu(x.clone(), weight, Some(bias.clone()));
        all.extend(results(vec![x], Some(bias), y));
    }
    for (i, (size, channels, outs, kernel)) in
        [(6, 5, 24, 3), (17, 32, 64, 3), (5, 64, 32, 3), (6, 64, 24, 1)].into_iter().enumerate()
    {
        let shape = [outs, kernel, kernel, channels];
        let weight = at(both(shape, 20 + i as u64, WeightUse::Conv2d, &plain_device), packed, device);
        let x = tracked(noise([2, size, size, channels], 4, dtype, device), device);
        let (bias, added) = (b(outs), tracked(noise([2, outs], 5, dtype, device), device));
        let y = conv2d(x.clone(), weight, Some(bias.clone()), Some(added), None, Conv2dGeometry::same(kernel));
        all.extend(results(vec![x], Some(bias), y));
    }
    all
}

/// One of the two, on `device`.
fn at<const D: usize>(weights: [Weight<D>; 2], packed: usize, device: &Device) -> Weight<D> {
    let [plain, alone] = weights;
    match packed {
        0 => plain.into_tensor(device).to_device(device).into(),
        _ => alone,
    }
}

#[test]
fn bits_of_the_tensors_they_stand_for() {
    if subject() != Body::Kernels || !multiplies_bf16() {
        return not_run("packed weights");
    }
    for device in [Device::flex(), Device::flex().autodiff()] {
        for dtype in dtypes() {
            let plain = outputs(dtype, 0, &device);
            for threads in [1, 3] {
                set_threads(threads);
                assert!(outputs(dtype, 1, &device) == plain, "{dtype:?} on {device:?}, {threads} threads");
            }
        }
    }
    let device = Device::flex();
    force_portable(|| assert!(outputs(DType::BF16, 1, &device) == outputs(DType::BF16, 0, &device)));
}

#[test]
fn weights_that_cannot_be_packed() {
    let pack = |bytes: usize, shape: &[usize], usage| {
        PackedWeight::from_stored(&vec![0; bytes], StoredType::F16, shape, usage).is_some()
    };
    assert!(!pack(11, &[3, 2], WeightUse::Linear), "a byte is missing");
    assert!(!pack(12, &[3, 2], WeightUse::Conv2d), "not of a convolution's rank");
    assert!(!pack(12, &[3, 1, 1, 2], WeightUse::LinearGeglu), "not of a linear layer's rank");
    assert!(!pack(0, &[usize::MAX, 2], WeightUse::Linear), "too many elements");
    assert_eq!(pack(12, &[3, 2], WeightUse::Linear), multiplies_bf16());
    // Not as many values as gates: packed as any linear layer.
    assert_eq!(pack(12, &[3, 2], WeightUse::LinearGeglu), multiplies_bf16());
}
