//! A figure that was taken several times.

/// The mean of a figure over subsets or splits, and how far these lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub deviation: f64,
}

impl Spread {
    /// Of some values, with the deviation of the values themselves (`numpy.std`).
    pub(crate) fn of_population(values: &[f64]) -> Self {
        Self::of(values, values.len() as f64)
    }

    /// Of some values, with the deviation estimated for what they were drawn from (`torch.std`); 0 for one value, for
    /// which PyTorch says NaN.
    pub(crate) fn of_sample(values: &[f64]) -> Self {
        Self::of(values, (values.len().max(2) - 1) as f64)
    }

    fn of(values: &[f64], divisor: f64) -> Self {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        Self { mean, deviation: (squares / divisor).sqrt() }
    }
}
