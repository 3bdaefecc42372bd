//! Optimizer steps against the portable ones and against f64, and what they may do to storage.

use crate::common::{Body, Report, excess, from_vec, oracle, subject, to_vec};
use burn::tensor::{DType, Device, Tensor};
use calotype_core::{Purpose, Stream};
use calotype_ops::{
    AdamW, ParameterState, Sgd, StepParams, Update, adamw_step, ema_step, optimizer_step, optimizer_steps,
    sum_of_squares,
};

const STEPS: u64 = 10;

fn normals(n: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Stream::new(17, Purpose::Evaluation, index).fill_normal(&mut values);
    values
}

/// Fractions of the largest magnitude. A step multiplies and adds some ten times in f32, and errors of ten steps add up.
fn tolerance() -> (f32, f32) {
    if subject() == Body::Wgpu { (0.0, 1e-3) } else { (0.0, 1e-6) }
}

fn compare(got: &[Vec<f32>], want: &[Vec<f32>]) -> Result<f32, String> {
    let mut worst = 0.0f32;
    for ((got, want), name) in got.iter().zip(want).zip(["parameter", "first moment", "second moment"]) {
        worst = worst.max(excess(got, want, tolerance(), 0.0).map_err(|e| format!("{name}: {e}"))?);
    }
    Ok(worst)
}

fn adamw_hypers() -> [AdamW; 4] {
    let usual = AdamW { lr: 1e-2, ..AdamW::default() };
    [
        usual,
        AdamW { weight_decay: 0.0, ..usual },
        AdamW { weight_decay: 0.3, beta1: 0.5, beta2: 0.95, ..usual },
        AdamW { beta1: 0.0, eps: 1e-3, ..usual },
    ]
}

/// Parameter and moments after ten steps, as a body computes them.
fn adamw_by(body: Body, shape: [usize; 3], hyper: &AdamW, gradient_scale: f32) -> Vec<Vec<f32>> {
    let (n, device) = (shape.iter().product(), body.device());
    let tensor = |index| from_vec(&normals(n, index), DType::F32, &device).reshape(shape);
    let zeros = || Tensor::<3>::zeros(shape, (&device, DType::F32));
    let (mut p, mut m, mut v) = (tensor(0), zeros(), zeros());
    for step in 1..=STEPS {
        (p, m, v) = body.run(|| adamw_step(p, tensor(step), (m, v), hyper, step, gradient_scale));
    }
    vec![to_vec(p), to_vec(m), to_vec(v)]
}

/// The same from the algorithm in PyTorch's documentation, in f64.
fn adamw_in_f64(shape: [usize; 3], hyper: &AdamW, gradient_scale: f32) -> Vec<Vec<f32>> {
    let n = shape.iter().product();
    let [lr, beta1, beta2, eps, decay] =
        [hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay].map(f64::from);
    let mut p: Vec<f64> = normals(n, 0).into_iter().map(f64::from).collect();
    let (mut m, mut v) = (vec![0.0f64; n], vec![0.0f64; n]);
    for step in 1..=STEPS {
        let t = i32::try_from(step).expect("few steps");
        for (i, g) in normals(n, step).into_iter().enumerate() {
            let g = f64::from(g) * f64::from(gradient_scale);
            p[i] -= lr * decay * p[i];
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            let (mean, square) = (m[i] / (1.0 - beta1.powi(t)), v[i] / (1.0 - beta2.powi(t)));
            p[i] -= lr * mean / (square.sqrt() + eps);
        }
    }
    [p, m, v].map(|values| values.into_iter().map(|value| value as f32).collect()).into()
}

const SHAPES: [[usize; 3]; 5] = [[1, 1, 1], [3, 5, 7], [1, 17, 3], [0, 3, 5], [7, 17, 331]];

#[test]
fn adamw_over_ten_steps() {
    let mut report = Report::default();
    for (shape, hyper, scale) in SHAPES
        .into_iter()
        .filter(|shape| subject() == Body::Kernels || shape.iter().product::<usize>() > 0)
        .flat_map(|shape| adamw_hypers().into_iter().flat_map(move |h| [1.0, 0.37].map(|scale| (shape, h, scale))))
    {
        let got = adamw_by(subject(), shape, &hyper, scale);
        let name = format!("{shape:?} {hyper:?}, gradients times {scale}");
        report.check(&format!("{name} against {:?}", oracle()), || {
            compare(&got, &adamw_by(oracle(), shape, &hyper, scale))
        });
        report.check(&format!("{name} against f64"), || compare(&got, &adamw_in_f64(shape, &hyper, scale)));
    }
    report.finish();
}

#[test]
fn ema_over_ten_steps() {
    let mut report = Report::default();
    for (n, decay) in [1usize, 3, 17, 39_389].into_iter().flat_map(|n| [0.0f32, 0.5, 0.999, 1.0].map(|d| (n, d))) {
        let by = |body: Body| {
            let device = body.device();
            let mut average = from_vec(&normals(n, 0), DType::F32, &device);
            for step in 1..=STEPS {
                let parameter = from_vec(&normals(n, step), DType::F32, &device);
                average = body.run(|| ema_step(average, parameter, decay));
            }
            to_vec(average)
        };
        let mut exact: Vec<f64> = normals(n, 0).into_iter().map(f64::from).collect();
        for step in 1..=STEPS {
            for (e, p) in exact.iter_mut().zip(normals(n, step)) {
                *e = f64::from(decay) * *e + (1.0 - f64::from(decay)) * f64::from(p);
            }
        }
        let exact: Vec<f32> = exact.into_iter().map(|value| value as f32).collect();
        report.check(&format!("{n} elements, decay {decay}"), || {
            let got = by(subject());
            Ok(excess(&got, &by(oracle()), tolerance(), 0.0)?.max(excess(&got, &exact, tolerance(), 0.0)?))
        });
    }
    report.finish();
}

#[test]
fn sums_of_squares() {
    let mut report = Report::default();
    let mut close = |name: String, body: Body, got: f64, want: f64| {
        // Burn's sum on Flex carries the rounding of long runs in f32; the kernels add runs of 1,024 in f64.
        let tolerance = if body == Body::Kernels { 1e-6 } else { 1e-4 };
        let used = (got - want).abs() / (tolerance * want).max(f64::MIN_POSITIVE);
        report.check(&name, || if used <= 1.0 { Ok(used as f32) } else { Err(format!("{got} instead of {want}")) });
    };
    for n in [1usize, 3, 17, 1024, 1025, 100_003] {
        let values = normals(n, 5);
        let exact = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        for body in [subject(), oracle()] {
            let tensor = |device: &Device| from_vec(&values, DType::F32, device);
            let (plain, tracked) = (tensor(&body.device()), tensor(&body.device().autodiff()).require_grad());
            close(format!("{n} elements, {body:?}"), body, body.run(|| sum_of_squares(&plain)), exact);
            close(format!("{n} elements, {body:?}, autodiff"), body, body.run(|| sum_of_squares(&tracked)), exact);
        }
    }
    // A view sees its own elements and no others.
    let t = from_vec(&normals(35, 6), DType::F32, &subject().device()).reshape([5, 7]);
    let views = [t.clone().narrow(0, 1, 2), t.clone().narrow(0, 0, 2), t.clone().narrow(1, 2, 3), t.transpose()];
    for (i, view) in views.into_iter().enumerate() {
        let exact = to_vec(view.clone()).into_iter().map(|value| f64::from(value).powi(2)).sum();
        close(format!("view {i}"), subject(), sum_of_squares(&view), exact);
    }
    report.finish();
}

fn sgd_hypers() -> [Sgd; 4] {
    let plain = Sgd { lr: 1e-2, ..Sgd::default() };
    let heavy = Sgd { momentum: 0.9, weight_decay: 0.1, ..plain };
    [plain, heavy, Sgd { dampening: 0.3, ..heavy }, Sgd { nesterov: true, ..heavy }]
}

/// Parameter and momentum after ten steps, as a body computes them.
fn sgd_by(body: Body, n: usize, hyper: Sgd, gradient_scale: f32) -> Vec<Vec<f32>> {
    let device = body.device();
    let tensor = |index| from_vec(&normals(n, index), DType::F32, &device);
    let update = Update::Sgd(hyper);
    let moments = vec![Tensor::zeros([n], &device); update.moments()];
    let mut state = ParameterState { parameter: tensor(0), moments, average: None };
    for step in 1..=STEPS {
        let params = StepParams { update, step, gradient_scale, ema_decay: 1.0 };
        state = body.run(|| optimizer_step(state, tensor(step), &params));
    }
    std::iter::once(state.parameter).chain(state.moments).map(to_vec).collect()
}

/// The same from the algorithm in PyTorch's documentation, in f64.
fn sgd_in_f64(n: usize, hyper: Sgd, gradient_scale: f32) -> Vec<Vec<f32>> {
    let [lr, momentum, dampening, decay] =
        [hyper.lr, hyper.momentum, hyper.dampening, hyper.weight_decay].map(f64::from);
    let mut p: Vec<f64> = normals(n, 0).into_iter().map(f64::from).collect();
    let mut b = vec![0.0f64; n];
    for step in 1..=STEPS {
        for (i, g) in normals(n, step).into_iter().enumerate() {
            let g = f64::from(g) * f64::from(gradient_scale) + decay * p[i];
            b[i] = if step == 1 { g } else { momentum * b[i] + (1.0 - dampening) * g };
            let along = if hyper.nesterov { g + momentum * b[i] } else { b[i] };
            p[i] -= lr * if momentum == 0.0 { g } else { along };
        }
    }
    let kept = if momentum == 0.0 { vec![p] } else { vec![p, b] };
    kept.into_iter().map(|values| values.into_iter().map(|value| value as f32).collect()).collect()
}

#[test]
fn sgd_over_ten_steps() {
    let mut report = Report::default();
    for (n, hyper) in [1usize, 17, 39_389].into_iter().flat_map(|n| sgd_hypers().map(|hyper| (n, hyper))) {
        for scale in [1.0, 0.37] {
            let got = sgd_by(subject(), n, hyper, scale);
            let name = format!("{n} elements, {hyper:?}, gradients times {scale}");
            report
                .check(&format!("{name} against {:?}", oracle()), || compare(&got, &sgd_by(oracle(), n, hyper, scale)));
            report.check(&format!("{name} against f64"), || compare(&got, &sgd_in_f64(n, hyper, scale)));
        }
    }
    report.finish();
}

/// Many parameters in one pass get the bits that each gets alone; with and without an average.
#[test]
fn many_parameters_step_as_each_alone() {
    let updates = [Update::AdamW(adamw_hypers()[1]), Update::Sgd(sgd_hypers()[0]), Update::Sgd(sgd_hypers()[3])];
    for update in updates {
        let device = subject().device();
        let params = StepParams { update, step: 3, gradient_scale: 0.37, ema_decay: 0.9 };
        let state = |(i, n): (usize, usize)| {
            let at = |index| from_vec(&normals(n, 10 * i as u64 + index), DType::F32, &device);
            let average = (i % 2 == 0).then(|| at(3));
            let moments = (1..).take(update.moments()).map(|index| at(index).abs()).collect();
            (ParameterState { parameter: at(0), moments, average }, at(4))
        };
        let bits = |new: ParameterState<1>| {
            let all = std::iter::once(new.parameter).chain(new.moments).chain(new.average);
            all.flat_map(to_vec).map(f32::to_bits).collect::<Vec<_>>()
        };
        let states = || [1, 3, 7, 16_385, 17, 40_000, 5_000].into_iter().enumerate().map(state);
        let together: Vec<_> = optimizer_steps(states().collect(), &params).into_iter().map(bits).collect();
        let alone: Vec<_> = states().map(|(state, gradient)| bits(optimizer_step(state, gradient, &params))).collect();
        assert!(together == alone, "{update:?}");
        assert!(optimizer_steps(Vec::new(), &params).is_empty());
        let gradients: Vec<_> = states().map(|(_, gradient)| gradient).collect();
        let each: Vec<_> = gradients.iter().map(sum_of_squares).collect();
        assert_eq!(calotype_ops::sums_of_squares(&gradients), each);
    }
}

/// Whether a handle held elsewhere still has its numbers after `step`, which gets clones of all four tensors.
#[test]
fn steps_leave_other_handles_alone() {
    let device = subject().device();
    let tensors: Vec<Tensor<1>> = (0..4).map(|i| from_vec(&normals(77, i), DType::F32, &device).abs()).collect();
    let before: Vec<Vec<f32>> = tensors.iter().cloned().map(to_vec).collect();
    let [p, g, m, v] = [0, 1, 2, 3].map(|i| tensors[i].clone());
    let (p, m, v) = adamw_step(p, g, (m, v), &AdamW::default(), 1, 0.5);
    let average = ema_step(tensors[2].clone(), tensors[3].clone(), 0.5);
    for (i, changed) in [(0, p), (2, m), (3, v), (2, average)] {
        assert_ne!(to_vec(changed), before[i], "the step changed nothing, so this test shows nothing");
    }
    let after: Vec<Vec<f32>> = tensors.into_iter().map(to_vec).collect();
    assert_eq!(after, before);
}

/// Parameters, gradients and moments may be any view: a beginning, a middle or a permutation of a larger storage.
#[test]
fn steps_of_views() {
    let device = subject().device();
    let whole = |index| from_vec(&normals(35, index), DType::F32, &device).abs().reshape([5, 7]);
    type View = fn(Tensor<2>) -> Tensor<2>;
    let views: [(&str, View); 5] = [
        ("beginning", |t| t.narrow(0, 0, 3)),
        ("middle", |t| t.narrow(0, 1, 3)),
        ("columns", |t| t.narrow(1, 2, 3)),
        ("transpose", |t| t.transpose()),
        ("one row repeated", |t| t.narrow(0, 1, 1).expand([4, 7])),
    ];
    let mut report = Report::default();
    for (name, view) in views {
        let copied = |index| {
            let t = view(whole(index));
            let shape = t.dims();
            from_vec(&to_vec(t), DType::F32, &device).reshape(shape)
        };
        report.check(&format!("adamw, {name}"), || {
            let step = |[p, g, m, v]: [Tensor<2>; 4]| {
                let (p, m, v) = adamw_step(p, g, (m, v), &AdamW::default(), 2, 0.5);
                [p, m, v].map(to_vec)
            };
            let held = [0, 1, 2, 3].map(whole);
            let got = step(held.clone().map(view));
            let used = compare(&got, &step([0, 1, 2, 3].map(copied)))?;
            // The larger storage stays as it was.
            let kept = held.into_iter().map(to_vec).eq([0, 1, 2, 3].map(whole).into_iter().map(to_vec));
            if kept { Ok(used) } else { Err("the storage behind the views changed".into()) }
        });
        report.check(&format!("ema, {name}"), || {
            let got = to_vec(ema_step(view(whole(0)), view(whole(1)), 0.9));
            excess(&got, &to_vec(ema_step(copied(0), copied(1), 0.9)), tolerance(), 0.0)
        });
    }
    report.finish();
}

/// Parameters after 20 steps of `torch.optim`, made by `tests/golden/make_optimizers.py`.
#[test]
fn twenty_steps_of_torch() {
    const GOLDEN: &str = include_str!("../golden/optimizers.txt");
    let adamw = AdamW { lr: 1e-2, ..AdamW::default() };
    let sgd = Sgd { lr: 1e-2, ..Sgd::default() };
    let cases = [
        ("adamw", Update::AdamW(adamw)),
        ("adamw_other", Update::AdamW(AdamW { beta1: 0.5, beta2: 0.95, eps: 1e-6, weight_decay: 0.3, ..adamw })),
        ("sgd", Update::Sgd(sgd)),
        ("sgd_decay", Update::Sgd(Sgd { weight_decay: 0.1, ..sgd })),
        ("sgd_momentum", Update::Sgd(Sgd { momentum: 0.9, weight_decay: 0.1, ..sgd })),
        ("sgd_dampening", Update::Sgd(Sgd { momentum: 0.9, dampening: 0.3, ..sgd })),
        ("sgd_nesterov", Update::Sgd(Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: true, ..sgd })),
    ];
    let golden: Vec<(&str, Vec<f32>)> = GOLDEN
        .lines()
        .map(|line| {
            let (name, bits) = line.split_once(' ').expect("a name and numbers");
            let value = |bits| f32::from_bits(u32::from_str_radix(bits, 16).expect("eight hexadecimal digits"));
            (name, bits.split(' ').map(value).collect())
        })
        .collect();
    assert_eq!(golden.len(), cases.len());
    let mut report = Report::default();
    for body in [subject(), oracle()] {
        for ((name, update), (golden_name, want)) in cases.iter().zip(&golden) {
            assert_eq!(name, golden_name);
            let (n, device) = (want.len(), body.device());
            let fractions = |step: usize| {
                let values: Vec<f32> = (0..n).map(|i| ((i * 37 + step * 101) % 257) as f32 / 128.0 - 1.0).collect();
                from_vec(&values, DType::F32, &device)
            };
            let moments = vec![Tensor::zeros([n], &device); update.moments()];
            let mut state = ParameterState { parameter: fractions(0), moments, average: None };
            for step in 1..=20 {
                let params = StepParams { update: *update, step: step as u64, gradient_scale: 1.0, ema_decay: 1.0 };
                state = body.run(|| optimizer_step(state, fractions(step), &params));
            }
            let got = to_vec(state.parameter);
            report.check(&format!("{name}, {body:?}"), || excess(&got, want, tolerance(), 0.0));
        }
    }
    report.finish();
}
