//! Kernel Inception Distance (Binkowski, Sutherland, Arbel, Gretton 2018, arXiv:1801.01401): the unbiased estimate of a
//! squared maximum mean discrepancy with a polynomial kernel, over subsets.
//!
//! On features of another network than Inception it is a kernel distance, but not *the* KID. It is an unbiased estimate:
//! values slightly below zero are right where the sets are alike, and no program clamps them.

use calotype_core::{NumpyRandomState, TorchCpuGenerator, names};

use crate::error::{MetricsError, Result};
use crate::pairs::{Rows, sum_over_other_pairs, sum_over_pairs};
use crate::spread::Spread;

names! {
    /// Whose random choice of subsets is taken, so that the figure is that program's.
    SubsetChoice, "choice of subsets" {
        /// torch-fidelity 0.4.0: `numpy.random.RandomState(seed)`, the generated pictures' subset drawn first.
        TorchFidelity = "torch-fidelity",
        /// torchmetrics 1.9.0 after `torch.manual_seed(seed)`: `torch.randperm`, the reference's subset drawn first.
        Torchmetrics = "torchmetrics",
        /// clean-fid 0.1.35 after `numpy.random.seed(seed)`, generated pictures as its first set: the reference's subset
        /// drawn first, and subsets no larger than the smaller set.
        CleanFid = "clean-fid",
    }
}

/// How a kernel distance is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KidSettings {
    /// Degree of the polynomial.
    pub degree: u32,
    /// What inner products are multiplied by; 1/d if nothing.
    pub gamma: Option<f64>,
    /// What is added to them.
    pub coefficient: f64,
    /// Number of subsets.
    pub subsets: usize,
    /// Rows of each set in a subset.
    pub subset_size: usize,
    /// Seed of the choice; its low 32 bits count.
    pub seed: u64,
    /// Whose choice.
    pub choice: SubsetChoice,
}

impl Default for KidSettings {
    /// torch-fidelity's: `(x·y/d + 1)³`, 100 subsets of 1,000, seed 2020.
    fn default() -> Self {
        Self {
            degree: 3,
            gamma: None,
            coefficient: 1.0,
            subsets: 100,
            subset_size: 1000,
            seed: 2020,
            choice: SubsetChoice::TorchFidelity,
        }
    }
}

/// The kernel distance between two sets, mean and population deviation over the subsets.
///
/// `generated` and `reference` have the shapes `[n, width]` and `[m, width]`. Each subset's value is
/// `(Σ k(x, x') + Σ k(y, y')) / (s (s - 1)) - 2 Σ k(x, y) / s²` over pairs of different rows, in `f64`; torch-fidelity,
/// torchmetrics and clean-fid compute the kernels in `f32`, so they agree to some 1e-6 of the kernel's values.
///
/// # Errors
/// If a slice is not whole rows, a value is not finite, subsets, their size or the degree are zero, gamma is not above
/// zero, a subset has fewer than two rows, or a set has fewer rows than a subset (but see [`SubsetChoice::CleanFid`]).
pub fn kernel_distance(generated: &[f32], reference: &[f32], width: usize, settings: &KidSettings) -> Result<Spread> {
    let generated = Rows::new("generated features", generated, width)?;
    let reference = Rows::new("reference features", reference, width)?;
    let size = check(generated, reference, settings)?;
    let gamma = settings.gamma.unwrap_or(1.0 / width as f64);
    let kernel = |product: f64, _, _| power(product * gamma + settings.coefficient, settings.degree);
    let mut chooser = Chooser::new(settings.choice, settings.seed);
    let mut values = Vec::with_capacity(settings.subsets);
    for _ in 0..settings.subsets {
        let (generated_rows, reference_rows) = chooser.next(generated.count(), reference.count(), size);
        let (x, y) = (generated.chosen(&generated_rows), reference.chosen(&reference_rows));
        let x = Rows::new("generated features", &x, width)?;
        let y = Rows::new("reference features", &y, width)?;
        let own = sum_over_other_pairs(x, kernel) + sum_over_other_pairs(y, kernel);
        let size = size as f64;
        values.push(own / (size * (size - 1.0)) - 2.0 * sum_over_pairs(x, y, kernel) / (size * size));
    }
    Ok(Spread::of_population(&values))
}

/// The number of rows of a subset.
fn check(generated: Rows<'_>, reference: Rows<'_>, settings: &KidSettings) -> Result<usize> {
    for (what, value) in [("subsets", settings.subsets), ("degree of the kernel", settings.degree as usize)] {
        if value == 0 {
            return Err(MetricsError::Zero(what));
        }
    }
    for (what, value) in [("gamma", settings.gamma.unwrap_or(1.0)), ("coefficient", settings.coefficient)] {
        if !(value.is_finite() && value > 0.0) {
            return Err(MetricsError::NotPositive { what, value });
        }
    }
    let mut size = settings.subset_size;
    if settings.choice == SubsetChoice::CleanFid {
        size = size.min(generated.count()).min(reference.count());
    }
    let needed = size.max(2);
    for (what, found) in [("generated features", generated.count()), ("reference features", reference.count())] {
        if found < needed {
            let why = "as many as a subset of the kernel distance has, and at least 2";
            return Err(MetricsError::FewRows { what, found, needed, why });
        }
    }
    if size < 2 {
        return Err(MetricsError::FewRows { what: "subset", found: size, needed: 2, why: "pairs of different rows" });
    }
    Ok(size)
}

fn power(base: f64, exponent: u32) -> f64 {
    (1..exponent).fold(base, |power, _| power * base)
}

/// Draws the rows of subsets, as the programs do.
enum Chooser {
    TorchFidelity(NumpyRandomState),
    Torchmetrics(TorchCpuGenerator),
    CleanFid(NumpyRandomState),
}

impl Chooser {
    fn new(choice: SubsetChoice, seed: u64) -> Self {
        match choice {
            SubsetChoice::TorchFidelity => Self::TorchFidelity(NumpyRandomState::new(seed as u32)),
            SubsetChoice::Torchmetrics => Self::Torchmetrics(TorchCpuGenerator::new(seed)),
            SubsetChoice::CleanFid => Self::CleanFid(NumpyRandomState::new(seed as u32)),
        }
    }

    /// Rows of the generated pictures and of the reference.
    fn next(&mut self, generated: usize, reference: usize, size: usize) -> (Vec<u32>, Vec<u32>) {
        match self {
            Self::TorchFidelity(state) => {
                let first = state.choice(generated, size);
                (first, state.choice(reference, size))
            }
            Self::CleanFid(state) => {
                let first = state.choice(reference, size);
                (state.choice(generated, size), first)
            }
            Self::Torchmetrics(generator) => {
                let mut draw = |count| {
                    let mut rows = generator.permutation(count);
                    rows.truncate(size);
                    rows
                };
                let first = draw(reference);
                (draw(generated), first)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::features;

    #[test]
    fn one_subset_of_all_rows_is_the_plain_formula() {
        let (x, y) = (features(5, 3, 0.0, 1), features(5, 3, 0.3, 2));
        let kernel = |a: &[f32], b: &[f32]| {
            let product: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (product / 3.0 + 1.0).powi(3)
        };
        let sum = |a: &[f32], b: &[f32], same: bool| -> f64 {
            let rows = |v: &[f32]| v.chunks(3).map(<[f32]>::to_vec).collect::<Vec<_>>();
            let (a, b) = (rows(a), rows(b));
            let pairs = (0..5).flat_map(|i| (0..5).map(move |j| (i, j))).filter(|(i, j)| !(same && i == j));
            pairs.map(|(i, j)| kernel(&a[i], &b[j])).sum()
        };
        let expected = (sum(&x, &x, true) + sum(&y, &y, true)) / 20.0 - 2.0 * sum(&x, &y, false) / 25.0;
        for choice in SubsetChoice::ALL {
            let settings = KidSettings { subsets: 3, subset_size: 5, choice: *choice, ..Default::default() };
            let found = kernel_distance(&x, &y, 3, &settings).unwrap();
            assert!((found.mean - expected).abs() < 1e-12, "{found:?} {expected}");
            assert!(found.deviation < 1e-12, "{found:?}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, y) = (features(600, 9, 0.0, 1), features(700, 9, 0.3, 2));
        let settings = KidSettings { subsets: 2, subset_size: 550, ..Default::default() };
        let before = calotype_kernels::threads();
        let found = [1, 2, 5].map(|threads| {
            calotype_kernels::set_threads(threads);
            kernel_distance(&x, &y, 9, &settings).unwrap()
        });
        calotype_kernels::set_threads(before);
        assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
    }

    #[test]
    fn errors_say_what_is_missing() {
        let (x, y) = (features(50, 3, 0.0, 1), features(20, 3, 0.3, 2));
        let text = |settings: KidSettings| kernel_distance(&x, &y, 3, &settings).unwrap_err().to_string();
        let base = KidSettings { subset_size: 30, subsets: 1, ..Default::default() };
        let few = text(base);
        assert!(few.contains("reference features: 20 rows, but 30 are needed"), "{few}");
        assert!(text(KidSettings { subsets: 0, ..base }).contains("subsets must be at least 1"));
        assert!(text(KidSettings { degree: 0, ..base }).contains("degree"));
        assert!(text(KidSettings { gamma: Some(0.0), ..base }).contains("gamma is 0"));
        assert!(text(KidSettings { coefficient: f64::NAN, ..base }).contains("coefficient is NaN"));
        assert!(text(KidSettings { subset_size: 1, ..base }).contains("2 are needed"));
        let clean = KidSettings { choice: SubsetChoice::CleanFid, ..base };
        assert!(kernel_distance(&x, &y, 3, &clean).is_ok());
        assert!(
            kernel_distance(&x, &y[..3], 3, &clean).unwrap_err().to_string().contains("reference features: 1 rows")
        );
        let mut bad = y.clone();
        bad[3 * 3 + 2] = f32::INFINITY;
        let error = kernel_distance(&x, &bad, 3, &clean).unwrap_err().to_string();
        assert!(error.contains("reference features: row 3, column 2 is inf"), "{error}");
    }
}
