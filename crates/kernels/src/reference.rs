//! Slow references, in plain loops and f64: what the kernels are compared with. Inputs are f32; storage in bf16 is the
//! test's business.

use crate::{Activation, AttentionShape, Conv2dShape};

/// `C[m, n] = A[m, k] B[k, n]`, the operands given as functions.
pub fn matmul(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                c[i * n + j] += a(i, p) as f64 * b(p, j) as f64;
            }
        }
    }
    c
}

/// Calls `f(y index, x index, w index)` for every product of a convolution.
fn each_tap(shape: &Conv2dShape, mut f: impl FnMut(usize, usize, usize)) {
    let s = shape;
    for b in 0..s.batch {
        for oy in 0..s.out_height() {
            for ox in 0..s.out_width() {
                for ky in 0..s.kernel[0] {
                    for kx in 0..s.kernel[1] {
                        let iy = (oy * s.stride + ky).wrapping_sub(s.padding[0]);
                        let ix = (ox * s.stride + kx).wrapping_sub(s.padding[2]);
                        if iy >= s.height || ix >= s.width {
                            continue;
                        }
                        for o in 0..s.out_channels {
                            let y = ((b * s.out_height() + oy) * s.out_width() + ox) * s.out_channels + o;
                            for i in 0..s.in_channels {
                                let x = ((b * s.height + iy) * s.width + ix) * s.in_channels + i;
                                let w = ((o * s.kernel[0] + ky) * s.kernel[1] + kx) * s.in_channels + i;
                                f(y, x, w);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Convolution alone.
pub fn conv2d(shape: &Conv2dShape, x: &[f32], w: &[f32]) -> Vec<f64> {
    let mut y = vec![0.0; shape.output_len()];
    each_tap(shape, |yi, xi, wi| y[yi] += x[xi] as f64 * w[wi] as f64);
    y
}

/// Gradients of the input and the weights.
pub fn conv2d_backward(shape: &Conv2dShape, x: &[f32], w: &[f32], dy: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    each_tap(shape, |yi, xi, wi| {
        dx[xi] += dy[yi] as f64 * w[wi] as f64;
        dw[wi] += dy[yi] as f64 * x[xi] as f64;
    });
    (dx, dw)
}

/// Probabilities `[batch, heads, query, key]` and lse of an attention.
fn probabilities(shape: &AttentionShape, q: &[f32], k: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (tq, tk, c, d) = (shape.query_tokens, shape.key_tokens, shape.heads * shape.head_dim, shape.head_dim);
    let mut p = vec![0.0; shape.batch * shape.heads * tq * tk];
    let mut lse = vec![f64::NEG_INFINITY; shape.batch * shape.heads * tq];
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            for i in 0..tq {
                let row = (b * shape.heads + h) * tq + i;
                let seen = if shape.causal { tk.min(i + 1) } else { tk };
                let mut total = 0.0;
                for j in 0..seen {
                    let score: f64 = (0..d)
                        .map(|e| q[(b * tq + i) * c + h * d + e] as f64 * k[(b * tk + j) * c + h * d + e] as f64)
                        .sum();
                    p[row * tk + j] = (score * shape.scale as f64).exp();
                    total += p[row * tk + j];
                }
                (0..seen).for_each(|j| p[row * tk + j] /= total);
                lse[row] = total.ln();
            }
        }
    }
    (p, lse)
}

/// Calls `f(row of p, query offset, key offset)` for every pair of tokens; the offsets are those of channel 0 of the
/// head.
fn each_pair(shape: &AttentionShape, mut f: impl FnMut(usize, usize, usize)) {
    let (tq, tk, c, d) = (shape.query_tokens, shape.key_tokens, shape.heads * shape.head_dim, shape.head_dim);
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            for i in 0..tq {
                for j in 0..tk {
                    let p = ((b * shape.heads + h) * tq + i) * tk + j;
                    f(p, (b * tq + i) * c + h * d, (b * tk + j) * c + h * d);
                }
            }
        }
    }
}

/// Output and lse.
pub fn attention(shape: &AttentionShape, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (p, lse) = probabilities(shape, q, k);
    let mut out = vec![0.0; q.len()];
    each_pair(shape, |pi, qi, ki| {
        for e in 0..shape.head_dim {
            out[qi + e] += p[pi] * v[ki + e] as f64;
        }
    });
    (out, lse)
}

/// dq, dk, dv.
pub fn attention_backward(shape: &AttentionShape, q: &[f32], k: &[f32], v: &[f32], dout: &[f32]) -> [Vec<f64>; 3] {
    let (p, _) = probabilities(shape, q, k);
    let (tk, d, scale) = (shape.key_tokens, shape.head_dim, shape.scale as f64);
    let mut dp = vec![0.0; p.len()];
    let [mut dq, mut dk, mut dv] = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
    each_pair(shape, |pi, qi, ki| {
        for e in 0..d {
            dp[pi] += dout[qi + e] as f64 * v[ki + e] as f64;
            dv[ki + e] += p[pi] * dout[qi + e] as f64;
        }
    });
    let mut ds = vec![0.0; p.len()];
    for row in 0..p.len().checked_div(tk).unwrap_or(0) {
        let range = row * tk..(row + 1) * tk;
        let average: f64 = range.clone().map(|i| p[i] * dp[i]).sum();
        range.for_each(|i| ds[i] = p[i] * (dp[i] - average));
    }
    each_pair(shape, |pi, qi, ki| {
        for e in 0..d {
            dq[qi + e] += scale * ds[pi] * k[ki + e] as f64;
            dk[ki + e] += scale * ds[pi] * q[qi + e] as f64;
        }
    });
    [dq, dk, dv]
}

/// The most that errors of rounding may change out, dq, dk and dv of an attention, in units of the relative error of one
/// rounding: every probability and every slope of a score is rounded before it is multiplied, and the backward pass
/// starts from an output with the errors of the forward pass and its own rounding.
pub fn attention_rounding(shape: &AttentionShape, q: &[f32], k: &[f32], v: &[f32], dout: &[f32]) -> [Vec<f64>; 4] {
    let (p, _) = probabilities(shape, q, k);
    let (tk, d, scale) = (shape.key_tokens, shape.head_dim, shape.scale.abs() as f64);
    let [mut out, mut change_out, mut dq] = [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; q.len()]];
    let [mut dk, mut dv] = [vec![0.0; k.len()], vec![0.0; k.len()]];
    let mut dp = vec![0.0; p.len()];
    each_pair(shape, |pi, qi, ki| {
        for e in 0..d {
            out[qi + e] += p[pi] * v[ki + e] as f64;
            change_out[qi + e] += p[pi] * v[ki + e].abs() as f64;
            dp[pi] += dout[qi + e] as f64 * v[ki + e] as f64;
            dv[ki + e] += p[pi] * dout[qi + e].abs() as f64;
        }
    });
    let mut average = vec![0.0; p.len().checked_div(tk).unwrap_or(0)];
    for (pi, (p, dp)) in p.iter().zip(&dp).enumerate() {
        average[pi / tk] += p * dp;
    }
    each_pair(shape, |pi, qi, ki| {
        let shift: f64 = (0..d).map(|e| dout[qi + e].abs() as f64 * (change_out[qi + e] + out[qi + e].abs())).sum();
        let slope = scale * p[pi] * ((dp[pi] - average[pi / tk]).abs() + shift);
        for e in 0..d {
            dq[qi + e] += slope * k[ki + e].abs() as f64;
            dk[ki + e] += slope * q[qi + e].abs() as f64;
        }
    });
    [change_out, dq, dk, dv]
}

/// erfc for x >= 0: the series of erf below 3, the continued fraction (Lentz) above.
fn erfc(x: f64) -> f64 {
    let front = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 3.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term > 1e-18 * sum {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        1.0 - 2.0 * front * sum
    } else {
        let mut fraction = x;
        for n in (1..200).rev() {
            fraction = x + n as f64 / 2.0 / fraction;
        }
        front / fraction
    }
}

/// Distribution function of the normal distribution.
pub fn normal_distribution(x: f64) -> f64 {
    let half = 0.5 * erfc(x.abs() * std::f64::consts::FRAC_1_SQRT_2);
    if x < 0.0 { half } else { 1.0 - half }
}

/// An activation function.
pub fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
    }
}

/// Derivative of a function by central differences.
pub fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
    const H: f64 = 1e-5;
    (f(x + H) - f(x - H)) / (2.0 * H)
}

/// A group norm over `[batch, pixels, c]`; a layer norm is the case of one group and one pixel.
pub struct GroupNorm<'a> {
    /// Shape.
    pub batch: usize,
    pub pixels: usize,
    pub groups: usize,
    pub silu: bool,
    pub eps: f64,
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
}

impl GroupNorm<'_> {
    /// The elements of one group of one image.
    fn members(&self, b: usize, g: usize) -> Vec<usize> {
        let c = self.gamma.len();
        let width = c / self.groups;
        let channels = g * width..(g + 1) * width;
        (0..self.pixels).flat_map(|p| channels.clone().map(move |i| (b * self.pixels + p) * c + i)).collect()
    }

    /// y, mean, rstd.
    pub fn forward(&self, x: &[f32]) -> [Vec<f64>; 3] {
        let c = self.gamma.len();
        let (mut y, mut means, mut rstds) = (vec![0.0; x.len()], vec![], vec![]);
        for b in 0..self.batch {
            for g in 0..self.groups {
                let members = self.members(b, g);
                let n = members.len() as f64;
                let mean = members.iter().map(|&i| x[i] as f64).sum::<f64>() / n;
                let variance = members.iter().map(|&i| (x[i] as f64 - mean).powi(2)).sum::<f64>() / n;
                let rstd = 1.0 / (variance + self.eps).sqrt();
                for i in members {
                    let z = (x[i] as f64 - mean) * rstd * self.gamma[i % c] as f64 + self.beta[i % c] as f64;
                    y[i] = if self.silu { activation(Activation::Silu, z) } else { z };
                }
                means.push(mean);
                rstds.push(rstd);
            }
        }
        [y, means, rstds]
    }

    /// dx, dgamma, dbeta.
    pub fn backward(&self, x: &[f32], dy: &[f32]) -> [Vec<f64>; 3] {
        let c = self.gamma.len();
        let [_, mean, rstd] = self.forward(x);
        let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; x.len()], vec![0.0; c], vec![0.0; c]);
        for b in 0..self.batch {
            for g in 0..self.groups {
                let members = self.members(b, g);
                let (mean, rstd) = (mean[b * self.groups + g], rstd[b * self.groups + g]);
                let (mut first, mut second) = (0.0, 0.0);
                let mut both = vec![];
                for &i in &members {
                    let (gamma, beta) = (self.gamma[i % c] as f64, self.beta[i % c] as f64);
                    let h = (x[i] as f64 - mean) * rstd;
                    let z = h * gamma + beta;
                    let steep = if self.silu { slope(|z| activation(Activation::Silu, z), z) } else { 1.0 };
                    let dz = dy[i] as f64 * steep;
                    dbeta[i % c] += dz;
                    dgamma[i % c] += dz * h;
                    first += gamma * dz;
                    second += gamma * dz * h;
                    both.push((h, gamma * dz));
                }
                let n = members.len() as f64;
                for (&i, (h, dh)) in members.iter().zip(both) {
                    dx[i] = rstd * (dh - first / n - h * second / n);
                }
            }
        }
        [dx, dgamma, dbeta]
    }
}

/// A row of activations in 8 bits, after its factors, and its scale.
pub fn quantised(x: &[f32], factors: Option<&[f32]>) -> (Vec<i64>, f32) {
    let scaled: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factors.map_or(1.0, |f| f[i % f.len()])).collect();
    let scale = scaled.iter().fold(0.0f32, |a, b| a.max(b.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    (scaled.iter().map(|x| (x * inverse).round_ties_even() as i64).collect(), scale)
}

/// A convolution in 8 bits, without what is added: `w` is `[out, in, rows, columns]`.
pub fn conv2d_8(shape: &Conv2dShape, x: &[f32], w: &[i8], scales: &[f32], factors: Option<&[f32]>) -> Vec<f32> {
    let Conv2dShape { height, width, in_channels, out_channels, kernel, stride, padding, .. } = *shape;
    let image = height * width * in_channels;
    let mut y = Vec::new();
    for x in x.chunks_exact(image) {
        let whole = quantised(x, factors);
        // Pixels by themselves, where windows are pixels.
        let pixels: Vec<_> = x.chunks_exact(in_channels).map(|pixel| quantised(pixel, factors)).collect();
        let pointwise = kernel == [1, 1] && stride == 1 && padding == [0; 4];
        for (oy, ox) in (0..shape.out_height()).flat_map(|oy| (0..shape.out_width()).map(move |ox| (oy, ox))) {
            for o in 0..out_channels {
                let (mut sum, mut scale) = (0, whole.1);
                for (ky, kx) in (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| (ky, kx))) {
                    let (Some(iy), Some(ix)) =
                        ((oy * stride + ky).checked_sub(padding[0]), (ox * stride + kx).checked_sub(padding[2]))
                    else {
                        continue;
                    };
                    if iy >= height || ix >= width {
                        continue;
                    }
                    let pixel = iy * width + ix;
                    let numbers = if pointwise { &pixels[pixel].0 } else { &whole.0[pixel * in_channels..] };
                    scale = if pointwise { pixels[pixel].1 } else { scale };
                    let weight = |i: usize| i64::from(w[((o * in_channels + i) * kernel[0] + ky) * kernel[1] + kx]);
                    sum += (0..in_channels).map(|i| numbers[i] * weight(i)).sum::<i64>();
                }
                y.push(sum as f32 * scale * scales[o]);
            }
        }
    }
    y
}
