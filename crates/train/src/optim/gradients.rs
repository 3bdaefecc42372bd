//! The gradient of a step.

use burn::tensor::Tensor;

/// The gradient of a step's loss, parameter by parameter: of one batch, or the mean over several parts of it.
///
/// The mean of a loss over a batch has as its gradient the mean of its parts' gradients, each with its samples as weight.
/// Sums are kept as they come; [`StepGradients::scale`] makes the mean of them.
#[derive(Debug)]
pub struct StepGradients {
    /// In the optimizer's order; flat and without autodiff. None where a parameter had no part in the loss.
    pub(super) values: Vec<Option<Tensor<1>>>,
    /// Weight of the first part, by which the sums are to be multiplied.
    unit: f64,
    /// Weight of all parts.
    total: f64,
}

impl StepGradients {
    pub(super) fn new(values: Vec<Option<Tensor<1>>>, weight: f64) -> Self {
        Self { values, unit: weight, total: weight }
    }

    /// Sums over `parts` parts of equal weight, in the optimizer's order.
    pub fn of_sums(values: Vec<Option<Tensor<1>>>, parts: usize) -> Self {
        Self { values, unit: 1.0, total: parts as f64 }
    }

    /// The sums, taken apart.
    pub fn into_values(self) -> Vec<Option<Tensor<1>>> {
        self.values
    }

    /// Adds the gradient of another part of the batch.
    pub fn add(&mut self, part: Self) {
        // Parts of equal weight, the usual case, are added as they are.
        let share = part.unit / self.unit;
        for (sum, value) in self.values.iter_mut().zip(part.values) {
            let value = value.map(|value| if share == 1.0 { value } else { value.mul_scalar(share) });
            *sum = match (sum.take(), value) {
                (Some(sum), Some(value)) => Some(sum + value),
                (sum, value) => sum.or(value),
            };
        }
        self.total += part.total;
    }

    /// What the sums are to be multiplied by.
    pub(super) fn scale(&self) -> f64 {
        self.unit / self.total
    }
}
