//! Training on packed weights gives the bits of training on plain ones, over steps that pack the new weights.

use crate::common::{Body, from_vec, not_run, subject, to_vec};
use burn::tensor::{DType, Device, Tensor};
use calotype_core::{Purpose, Stream};
use calotype_kernels::AdamW;
use calotype_ops::packed::lean;
use calotype_ops::{
    Conv2dGeometry, ParameterState, StepParams, Update, conv2d, linear, mean_squared_error, optimizer_steps,
};

fn noise(len: usize, index: u64, dtype: DType, device: &Device) -> Tensor<1> {
    let mut values = vec![0f32; len];
    Stream::new(6, Purpose::Evaluation, index).fill_normal(&mut values);
    from_vec(&values, dtype, device)
}

const CONV: [usize; 4] = [64, 3, 3, 32];
const LINEAR: [usize; 2] = [96, 64];

/// Three steps; the loss, the gradient of the input and the weights after each of them.
fn train(device: &Device) -> Vec<Vec<f32>> {
    let plain = subject().device();
    let state = |len: usize, index| ParameterState {
        parameter: noise(len, index, DType::F32, &plain),
        moments: vec![Tensor::zeros([len], &plain); 2],
        average: Some(noise(len, index, DType::F32, &plain)),
    };
    let mut states = vec![state(CONV.iter().product(), 0), state(LINEAR.iter().product(), 1)];
    let mut all = Vec::new();
    for step in 1..=3 {
        let tracked = |t: Tensor<1>| t.autodiff().require_grad();
        let [conv, projection] = [0, 1].map(|i| tracked(states[i].parameter.clone()));
        let x = tracked(noise(2 * 6 * 5 * 32, 10 + step, DType::F32, &plain));
        let y = conv2d(
            x.clone().reshape([2, 6, 5, 32]).cast(DType::BF16),
            conv.clone().reshape(CONV),
            None,
            None,
            None,
            Conv2dGeometry::same(3),
        );
        let y = linear(y.reshape([2, 30, 64]), projection.clone().reshape(LINEAR), None, None);
        let target = noise(2 * 30 * 96, 20 + step, DType::F32, device).reshape([2, 30, 96]);
        let loss = mean_squared_error(y.cast(DType::F32), target);
        let mut gradients = loss.backward();
        all.push(to_vec(loss.inner()));
        all.push(to_vec(x.grad_remove(&mut gradients).expect("the input's gradient")));
        let [g0, g1] = [&conv, &projection].map(|w| w.grad_remove(&mut gradients).expect("a weight's gradient"));
        drop((conv, projection));
        let update = Update::AdamW(AdamW::default());
        let params = StepParams { update, step, gradient_scale: 1.0, ema_decay: 0.9 };
        states = optimizer_steps(states.into_iter().zip([g0, g1]).collect(), &params);
        all.extend(states.iter().flat_map(|s| [s.parameter.clone(), s.average.clone().expect("kept")]).map(to_vec));
    }
    all
}

#[test]
fn bits_of_plain_weights() {
    if subject() != Body::Kernels {
        return not_run("packed weights");
    }
    let device = subject().device().autodiff();
    assert!(train(&device) == lean(|| train(&device)));
}
