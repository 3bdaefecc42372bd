//! Losses that tell which image and which text belong together, with their gradients with respect to features.
//!
//! Gradients stand in closed form, block of rows by block of rows: of the logits of a batch, which grow with its square, never more
//! than [`BLOCK`] rows are in memory, and features may come from other processes or from passes that are done again later.

use crate::state::values_of;
use burn::tensor::{Tensor, TensorData};
use std::ops::Range;

/// Rows of logits that are in memory at once. Sums are cut by it alone.
pub const BLOCK: usize = 256;

/// How logits become a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contrast {
    /// Cross-entropy of each image over all texts and of each text over all images, half of each: the mean of both over the rows
    /// (Radford et al. 2021, figure 3).
    Softmax,
    /// A decision for each image with each text, and no competition between them: the sum over all texts of
    /// `-log sigmoid(±logit)`, as a mean over images (Zhai et al. 2023, algorithm 1).
    Sigmoid,
}

/// What cosines are made logits by: `scale · cosine + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// Inverse temperature.
    pub scale: f32,
    /// Added to each logit; of no effect on [`Contrast::Softmax`].
    pub bias: f32,
}

/// A loss over a batch, or over some of its rows, with its gradients.
#[derive(Debug)]
pub struct Contrasted {
    /// The loss.
    pub loss: f64,
    /// Its gradient with respect to the features of all images, `[batch, width]`.
    pub images: Tensor<2>,
    /// Its gradient with respect to the features of all texts, `[batch, width]`.
    pub texts: Tensor<2>,
    /// Its derivative with respect to [`Logits::scale`].
    pub scale: f64,
    /// Its derivative with respect to [`Logits::bias`].
    pub bias: f64,
}

impl Contrast {
    /// The mean loss of the rows `own` of a batch, against all of it. The mean over parts of equal size that make up the batch is the
    /// loss of the batch.
    ///
    /// # Shapes
    /// `images`, `texts`: `[batch, width]`, unit vectors in `f32`, without autodiff; row `i` of both belongs together
    ///
    /// # Panics
    /// If `own` is not within the batch.
    pub fn of(self, [images, texts]: [&Tensor<2>; 2], own: Range<usize>, logits: Logits) -> Contrasted {
        let count = own.len().max(1) as f64;
        match self {
            Self::Sigmoid => {
                let found = self.rows(images, texts, own, logits, 1.0 / count);
                let [images, texts] = [found.near, found.far];
                Contrasted { loss: found.loss, images, texts, scale: found.scale, bias: found.bias }
            }
            Self::Softmax => {
                let share = 0.5 / count;
                let of_images = self.rows(images, texts, own.clone(), logits, share);
                let of_texts = self.rows(texts, images, own, logits, share);
                Contrasted {
                    loss: of_images.loss + of_texts.loss,
                    images: of_images.near + of_texts.far,
                    texts: of_images.far + of_texts.near,
                    scale: of_images.scale + of_texts.scale,
                    bias: 0.0,
                }
            }
        }
    }

    /// The rows `own` of `near` against all of `far`; the sum of their losses times `share`.
    fn rows(self, near: &Tensor<2>, far: &Tensor<2>, own: Range<usize>, logits: Logits, share: f64) -> Rows {
        let ([all, width], device) = (far.dims(), far.device());
        let mut found = Rows { loss: 0.0, near: near.zeros_like(), far: far.zeros_like(), scale: 0.0, bias: 0.0 };
        let none = |rows: usize| (rows > 0).then(|| Tensor::zeros([rows, width], &device));
        let mut near_parts: Vec<Tensor<2>> = none(own.start).into_iter().collect();
        for start in own.clone().step_by(BLOCK) {
            let count = BLOCK.min(own.end - start);
            let block = near.clone().narrow(0, start, count);
            let mut slopes = values_of(block.clone().matmul(far.clone().transpose()));
            for (row, cosines) in slopes.chunks_exact_mut(all).enumerate() {
                found.add(self, start + row, cosines, logits, share);
            }
            // With respect to cosines.
            let slopes =
                Tensor::<2>::from_data(TensorData::new(slopes, [count, all]), &device).mul_scalar(logits.scale);
            near_parts.push(slopes.clone().matmul(far.clone()));
            found.far = found.far + slopes.transpose().matmul(block);
        }
        near_parts.extend(none(all - own.end));
        found.near = Tensor::cat(near_parts, 0);
        found
    }

    /// The loss of a row of cosines, of which the one at `right` belongs together. The cosines become the derivatives with respect to
    /// their logits.
    fn row(self, cosines: &mut [f32], right: usize, Logits { scale, bias }: Logits) -> f64 {
        let logit = |cosine: f32| f64::from(scale) * f64::from(cosine) + f64::from(bias);
        let right_logit = logit(cosines[right]);
        match self {
            Self::Softmax => {
                let most = cosines.iter().map(|cosine| logit(*cosine)).fold(f64::NEG_INFINITY, f64::max);
                let mut sum = 0.0;
                for cosine in cosines.iter_mut() {
                    let power = (logit(*cosine) - most).exp();
                    sum += power;
                    *cosine = power as f32;
                }
                cosines.iter_mut().for_each(|power| *power = (f64::from(*power) / sum) as f32);
                cosines[right] -= 1.0;
                most + sum.ln() - right_logit
            }
            Self::Sigmoid => {
                let mut sum = 0.0;
                for cosine in cosines.iter_mut() {
                    let (softplus, sigmoid) = softplus_and_slope(logit(*cosine));
                    sum += softplus;
                    *cosine = sigmoid as f32;
                }
                // As the difference from 1, nothing would be left of a small one.
                cosines[right] = -softplus_and_slope(-right_logit).1 as f32;
                sum - right_logit
            }
        }
    }
}

/// `ln(1 + exp(x))`, and its derivative, the sigmoid.
fn softplus_and_slope(x: f64) -> (f64, f64) {
    let power = (-x.abs()).exp();
    let above = if x < 0.0 { power } else { 1.0 };
    (x.max(0.0) + power.ln_1p(), above / (1.0 + power))
}

/// Sums over rows, with gradients of all features.
struct Rows {
    loss: f64,
    near: Tensor<2>,
    far: Tensor<2>,
    scale: f64,
    bias: f64,
}

impl Rows {
    /// Adds a row, whose cosines become derivatives with respect to logits.
    fn add(&mut self, contrast: Contrast, right: usize, row: &mut [f32], logits: Logits, share: f64) {
        let cosines = row.to_vec();
        self.loss += share * contrast.row(row, right, logits);
        row.iter_mut().for_each(|slope| *slope = (f64::from(*slope) * share) as f32);
        for (slope, cosine) in row.iter().zip(cosines) {
            self.scale += f64::from(*slope) * f64::from(cosine);
            self.bias += f64::from(*slope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use burn::tensor::activation::{log_sigmoid, log_softmax};
    use calotype_core::{Purpose, Stream};

    const LOGITS: Logits = Logits { scale: 9.0, bias: -3.0 };

    fn features(rows: usize, index: u64, device: &Device) -> Tensor<2> {
        let mut values = vec![0f32; rows * 5];
        Stream::new(3, Purpose::Noise, index).fill_normal(&mut values);
        let x = Tensor::<2>::from_data(TensorData::new(values, [rows, 5]), device);
        x.clone() / x.powi_scalar(2).sum_dim(1).sqrt()
    }

    /// The definitions, which Burn differentiates.
    fn by_autodiff(contrast: Contrast, rows: usize, own: Range<usize>) -> (f32, [Vec<f32>; 4]) {
        let device = Device::flex().autodiff();
        let leaf = |tensor: Tensor<2>| tensor.require_grad();
        let [images, texts] = [0, 1].map(|index| leaf(features(rows, index, &device)));
        let one = |value: f32| Tensor::<1>::from_data([value], &device).require_grad();
        let (scale, bias) = (one(LOGITS.scale), one(LOGITS.bias));
        let eye = Tensor::<2>::eye(rows, &device).narrow(0, own.start, own.len());
        let logits = |near: &Tensor<2>, far: &Tensor<2>| {
            let near = near.clone().narrow(0, own.start, own.len());
            near.matmul(far.clone().transpose()) * scale.clone().unsqueeze() + bias.clone().unsqueeze()
        };
        let sum = match contrast {
            Contrast::Softmax => {
                let of = |near, far| (log_softmax(logits(near, far), 1) * eye.clone()).sum().mul_scalar(-0.5);
                of(&images, &texts) + of(&texts, &images)
            }
            Contrast::Sigmoid => {
                let signs = eye.clone().mul_scalar(2.0).sub_scalar(1.0);
                // Row by row: one sum of so many numbers rounds too much.
                log_sigmoid(logits(&images, &texts) * signs).sum_dim(1).sum().neg()
            }
        };
        let loss = sum.div_scalar(own.len() as f32);
        let gradients = loss.backward();
        let of = |leaf: &Tensor<2>| values_of(leaf.grad(&gradients).unwrap());
        let of_one = |leaf: &Tensor<1>| values_of(leaf.grad(&gradients).unwrap());
        (loss.inner().into_scalar(), [of(&images), of(&texts), of_one(&scale), of_one(&bias)])
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_definitions() {
        let device = Device::flex();
        for contrast in [Contrast::Softmax, Contrast::Sigmoid] {
            for (rows, own) in [(1, 0..1), (6, 0..6), (6, 2..4), (BLOCK + 7, 0..BLOCK + 7), (BLOCK + 7, 3..BLOCK + 5)] {
                let [images, texts] = [0, 1].map(|index| features(rows, index, &device));
                let found = contrast.of([&images, &texts], own.clone(), LOGITS);
                let (loss, [of_images, of_texts, scale, bias]) = by_autodiff(contrast, rows, own.clone());
                let near = |what: &str, found: &[f32], wanted: &[f32]| {
                    let most = wanted.iter().fold(0.05f32, |most, value| most.max(value.abs()));
                    let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                    let same = found.len() == wanted.len() && worst <= 2e-5 * most;
                    assert!(same, "{contrast:?} {rows} {own:?} {what}: {worst}");
                };
                near("loss", &[found.loss as f32], &[loss]);
                near("images", &values_of(found.images), &of_images);
                near("texts", &values_of(found.texts), &of_texts);
                near("scale", &[found.scale as f32], &scale);
                match contrast {
                    // What is added to all logits changes nothing; Burn's sum is what rounding leaves.
                    Contrast::Softmax => assert!(found.bias == 0.0 && bias[0].abs() < 1e-4),
                    Contrast::Sigmoid => near("bias", &[found.bias as f32], &bias),
                }
            }
        }
    }

    #[test]
    fn parts_make_up_the_batch() {
        let device = Device::flex();
        let [images, texts] = [0, 1].map(|index| features(8, index, &device));
        for contrast in [Contrast::Softmax, Contrast::Sigmoid] {
            let whole = contrast.of([&images, &texts], 0..8, LOGITS);
            let parts = [0..4, 4..8].map(|own| contrast.of([&images, &texts], own, LOGITS));
            assert!((whole.loss - parts.iter().map(|part| part.loss / 2.0).sum::<f64>()).abs() < 1e-6);
            let [first, second] = parts;
            let mean = values_of((first.images + second.images).mul_scalar(0.5));
            assert!(values_of(whole.images).iter().zip(mean).all(|(a, b)| (a - b).abs() < 1e-6), "{contrast:?}");
        }
    }
}
