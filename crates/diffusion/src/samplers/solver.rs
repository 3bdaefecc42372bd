//! The steps of the samplers: one call of the denoiser after another, each from a latent to the next.

use crate::objective::Prediction;
use burn::tensor::Tensor;

/// One call of the denoiser, and what it said.
pub(super) struct StepInput<'a> {
    /// Number of the call.
    pub call: usize,
    /// The network's output.
    pub output: Tensor<4>,
    /// The latent before it.
    pub x: Tensor<4>,
    /// Adds this call's fresh noise, scaled.
    pub fresh: &'a dyn Fn(Tensor<4>, f64) -> Tensor<4>,
}

/// The running state of a sampler.
pub(super) trait Solver {
    /// The next latent and the estimate of the clean one.
    fn step(&mut self, input: StepInput<'_>) -> (Tensor<4>, Tensor<4>);
}

/// `a · x + b · y`.
pub(super) fn combine(a: f64, x: Tensor<4>, b: f64, y: Tensor<4>) -> Tensor<4> {
    x.mul_scalar(a) + y.mul_scalar(b)
}

/// Clamps a clean estimate's absolute value.
pub(super) fn clip(clean: Tensor<4>, limit: Option<f64>) -> Tensor<4> {
    match limit {
        Some(limit) => clean.clamp(-limit, limit),
        None => clean,
    }
}

/// The clean latent in `x = clean + sigma · noise`.
pub(super) fn clean_estimate(prediction: Prediction, x: &Tensor<4>, output: Tensor<4>, sigma: f64) -> Tensor<4> {
    let variance = sigma * sigma + 1.0;
    match prediction {
        Prediction::Epsilon => x.clone() - output.mul_scalar(sigma),
        Prediction::V => output.mul_scalar(-sigma / variance.sqrt()) + x.clone().div_scalar(variance),
        Prediction::Sample => output,
    }
}

/// `dx / dsigma` (Karras et al. 2022, eq. 4).
pub(super) fn slope(x: Tensor<4>, clean: Tensor<4>, sigma: f64) -> Tensor<4> {
    (x - clean).div_scalar(sigma)
}

/// The last outputs of a multistep method, newest last.
pub(super) struct History {
    outputs: Vec<Tensor<4>>,
    length: usize,
}

impl History {
    /// Keeps the last `length` outputs.
    pub fn new(length: usize) -> Self {
        Self { outputs: Vec::with_capacity(length + 1), length }
    }

    /// Takes a new output in, and the oldest out.
    pub fn push(&mut self, output: Tensor<4>) {
        self.outputs.push(output);
        if self.outputs.len() > self.length {
            self.outputs.remove(0);
        }
    }

    /// Number of outputs.
    pub fn len(&self) -> usize {
        self.outputs.len()
    }

    /// The output `age` calls ago; 0 is the newest.
    pub fn get(&self, age: usize) -> Tensor<4> {
        self.outputs[self.outputs.len() - 1 - age].clone()
    }

    /// `(output(a) - output(b)) / by`: a difference quotient of outputs by their ages.
    pub fn slope(&self, a: usize, b: usize, by: f64) -> Tensor<4> {
        (self.get(a) - self.get(b)).mul_scalar(1.0 / by)
    }
}

/// A noise level in the variables of the exponential integrators (Lu et al. 2022, eq. 3.4).
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// Weight of the image.
    pub alpha: f64,
    /// Weight of the noise.
    pub sigma: f64,
    /// `log(alpha / sigma)`, half the logarithm of the signal-to-noise ratio.
    pub lambda: f64,
}

impl Level {
    /// From `[alpha, sigma]`.
    pub fn new([alpha, sigma]: [f64; 2]) -> Self {
        Self { alpha, sigma, lambda: alpha.ln() - sigma.ln() }
    }
}
