//! AdamW against trajectories of torch, and by how much another order of operations differs.

use crate::common::{Body, excess, from_vec, oracle, subject, to_vec};
use burn::tensor::{DType, Tensor};
use calotype_ops::{AdamW, adamw_step};

/// Made by `tests/golden/make_adamw.py`.
const GOLDEN: &str = include_str!("../golden/adamw.txt");
const ELEMENTS: usize = 37;
const STEPS: usize = 20;

/// Settings of a case, in `f64` as torch has them.
struct Case {
    name: &'static str,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

const CASES: [Case; 4] = [
    Case { name: "usual", lr: 1e-2, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 },
    Case { name: "other", lr: 1e-2, betas: [0.5, 0.95], eps: 1e-6, weight_decay: 0.3 },
    Case { name: "plain", lr: 3e-4, betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.0 },
    Case { name: "changing", lr: 1e-2, betas: [0.8, 0.99], eps: 1e-5, weight_decay: 0.1 },
];

impl Case {
    fn rate(&self, step: usize) -> f64 {
        if self.name == "changing" { self.lr * (1.0 + (step % 3) as f64 / 4.0) } else { self.lr }
    }

    /// Parameter, mean of gradients and mean of squares.
    fn golden(&self) -> [Vec<f32>; 3] {
        ["parameter", "mean", "square"].map(|what| {
            let beginning = format!("{} {what} ", self.name);
            let line = GOLDEN.lines().find_map(|line| line.strip_prefix(&beginning)).expect("a line of the file");
            let value = |bits| f32::from_bits(u32::from_str_radix(bits, 16).expect("eight hexadecimal digits"));
            line.split(' ').map(value).collect()
        })
    }
}

fn fractions(step: usize) -> Vec<f32> {
    (0..ELEMENTS).map(|i| ((i * 37 + step * 101) % 257) as f32 / 128.0 - 1.0).collect()
}

/// torch's order of operations, number by number.
fn by_torch(case: &Case) -> [Vec<f32>; 3] {
    let [beta1, beta2] = case.betas;
    let (rest1, rest2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
    let (mut p, mut m, mut v) = (fractions(0), vec![0f32; ELEMENTS], vec![0f32; ELEMENTS]);
    for step in 1..=STEPS {
        let (rate, t) = (case.rate(step), i32::try_from(step).expect("few steps"));
        let keep = (1.0 - rate * case.weight_decay) as f32;
        let back = -(rate / (1.0 - beta1.powi(t))) as f32;
        let root = (1.0 - beta2.powi(t)).sqrt() as f32;
        for (i, g) in fractions(step).into_iter().enumerate() {
            p[i] *= keep;
            // `lerp` begins at the nearer end.
            m[i] = match rest1 < 0.5 {
                true => rest1.mul_add(g - m[i], m[i]),
                false => (rest1 - 1.0).mul_add(g - m[i], g),
            };
            v[i] = (rest2 * g).mul_add(g, v[i] * beta2 as f32);
            p[i] += back * m[i] / (v[i].sqrt() / root + case.eps as f32);
        }
    }
    [p, m, v]
}

fn by_body(body: Body, case: &Case) -> [Vec<f32>; 3] {
    let device = body.device();
    let zeros = || Tensor::<1>::zeros([ELEMENTS], &device);
    let (mut p, mut m, mut v) = (from_vec(&fractions(0), DType::F32, &device), zeros(), zeros());
    for step in 1..=STEPS {
        let hyper = AdamW {
            lr: case.rate(step) as f32,
            beta1: case.betas[0] as f32,
            beta2: case.betas[1] as f32,
            eps: case.eps as f32,
            weight_decay: case.weight_decay as f32,
        };
        let gradient = from_vec(&fractions(step), DType::F32, &device);
        (p, m, v) = body.run(|| adamw_step(p, gradient, (m, v), &hyper, step as u64, 1.0));
    }
    [p, m, v].map(to_vec)
}

#[test]
fn the_order_of_torch_gives_its_bits() {
    for case in &CASES {
        let (got, want) = (by_torch(case), case.golden());
        let bits = |values: &[Vec<f32>; 3]| values.clone().map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        assert!(bits(&got) == bits(&want), "{}: {got:?} instead of {want:?}", case.name);
    }
}

/// The kernel multiplies by the inverse of the root's correction and fuses other products with sums, which saves a division; and `1 - beta`
/// is that of the `f32` beta, consistently with its correction of the bias, where torch rounds both apart. Parameters stay within
/// 1e-6 of the largest.
#[test]
fn bodies_stay_near_torch() {
    for body in [subject(), oracle()] {
        for case in &CASES {
            let limits = [("parameter", 1e-6), ("mean", 1e-6), ("square", 3e-5)];
            for ((got, want), (what, limit)) in by_body(body, case).iter().zip(case.golden()).zip(limits) {
                let limit = if body == Body::Wgpu { 1e-3 } else { limit };
                let used = excess(got, &want, (0.0, limit), 0.0);
                assert!(used.is_ok(), "{body:?}, {}, {what}: {used:?}", case.name);
            }
        }
    }
}
