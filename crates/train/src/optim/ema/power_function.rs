//! Averages whose weights are a power of time (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion
//! models", section 3.1 and appendix C), and sums of them that are others (section 3.2).

/// The average of the weights of a run, each with the weight `t^gamma` of its time in samples seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerFunction {
    gamma: f64,
}

/// The width of a flat average, `gamma = 0`: the largest that rises towards the end.
const FLAT: f64 = 0.288_675_134_594_812_9;
/// The least width: the average of a million samples is then the last of them.
const NARROWEST: f64 = 1e-6;

impl PowerFunction {
    /// The profile of a relative width: its standard deviation as a share of the time (equation 3 there). `None` unless it is at
    /// least 0.000001 and below that of a flat average, 0.2887.
    pub fn of_width(sigma_rel: f64) -> Option<Self> {
        if !(NARROWEST..FLAT).contains(&sigma_rel) {
            return None;
        }
        // The width falls as gamma grows, about as 1 / gamma.
        let (mut low, mut high) = (0.0, 2.0 / sigma_rel);
        loop {
            let gamma = 0.5 * (low + high);
            if gamma <= low || gamma >= high {
                return Some(Self { gamma });
            }
            if (Self { gamma }).width() > sigma_rel {
                low = gamma;
            } else {
                high = gamma;
            }
        }
    }

    /// Its standard deviation as a share of the time.
    pub fn width(&self) -> f64 {
        let gamma = self.gamma;
        ((gamma + 1.0) / ((gamma + 2.0) * (gamma + 2.0) * (gamma + 3.0))).sqrt()
    }

    /// The exponent.
    pub fn gamma(&self) -> f64 {
        self.gamma
    }

    /// The old average's share of the new one in an update that comes after `interval` more samples, at `samples` seen (equation 2
    /// there): 0 in the first.
    pub fn decay(&self, samples: u64, interval: u64) -> f64 {
        let left = 1.0 - interval as f64 / samples.max(1) as f64;
        left.max(0.0).powf(self.gamma + 1.0)
    }
}

/// A profile that ends at a time, in samples or any other unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    /// When it was taken.
    pub samples: u64,
    /// What it averages.
    pub profile: PowerFunction,
}

impl Snapshot {
    /// The inner product of two profiles as functions of time (algorithm 3 there); `unit` is the unit of time.
    fn product(&self, other: &Self, unit: f64) -> f64 {
        let (earlier, later) = if self.samples <= other.samples { (self, other) } else { (other, self) };
        let (a, b) = (earlier.profile.gamma, later.profile.gamma);
        let ratio = earlier.samples as f64 / later.samples as f64;
        (a + 1.0) * (b + 1.0) / (a + b + 1.0) * ratio.powf(b) * unit / later.samples as f64
    }
}

/// A sum of snapshots that stands for another average.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// What each snapshot is multiplied by; together one.
    pub coefficients: Vec<f64>,
    /// The distance of the sum's profile from the one that is wanted, as a share of its norm.
    pub error: f64,
}

/// The sum of snapshots that is nearest, in the least squares of profiles, to `wanted`. `None` if no sum is, as of snapshots that are
/// there twice.
pub fn fit(snapshots: &[Snapshot], wanted: &Snapshot) -> Option<Fit> {
    let unit = wanted.samples as f64;
    let products = |a: &Snapshot| snapshots.iter().map(|b| a.product(b, unit)).collect::<Vec<f64>>();
    let rows: Vec<Vec<f64>> = snapshots.iter().map(products).collect();
    let right: Vec<f64> = snapshots.iter().map(|a| a.product(wanted, unit)).collect();
    let mut coefficients = solve(rows.clone(), right.clone())?;
    let sum: f64 = coefficients.iter().sum();
    coefficients.iter_mut().for_each(|coefficient| *coefficient /= sum);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let squared: f64 = rows.iter().zip(&coefficients).map(|(row, own)| own * dot(row, &coefficients)).sum();
    let norm = wanted.product(wanted, unit);
    let error = ((squared - 2.0 * dot(&right, &coefficients) + norm).max(0.0) / norm).sqrt();
    (sum.is_normal() && error.is_finite()).then_some(Fit { coefficients, error })
}

/// Gaussian elimination with the largest pivot of each column; `None` for a matrix without an inverse.
fn solve(mut rows: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let n = right.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        right.swap(column, pivot);
        let (done, rest) = rows.split_at_mut(column + 1);
        let row = &done[column];
        if row[column] == 0.0 {
            return None;
        }
        for (other, i) in rest.iter_mut().zip(column + 1..) {
            let factor = other[column] / row[column];
            for (value, above) in other[column..].iter_mut().zip(&row[column..]) {
                *value -= factor * above;
            }
            right[i] -= factor * right[column];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = rows[i][i + 1..].iter().zip(&right[i + 1..]).map(|(a, b)| a * b).sum();
        right[i] = (right[i] - known) / rows[i][i];
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/golden/make_power_functions.py`.
    const GOLDEN: &str = include_str!("../../../tests/golden/power_functions.txt");

    fn lines(what: &str) -> Vec<Vec<f64>> {
        let of = GOLDEN.lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        let numbers = |line: &str| line.split(' ').map(|number| number.parse().expect("a number")).collect();
        let found: Vec<Vec<f64>> = of.map(numbers).collect();
        assert!(!found.is_empty(), "{what}");
        found
    }

    fn profile(sigma_rel: f64) -> PowerFunction {
        PowerFunction::of_width(sigma_rel).expect("a width")
    }

    #[test]
    fn exponents_are_those_of_the_cubic_equation() {
        for line in lines("gamma") {
            let [sigma_rel, gamma] = line[..] else { panic!("two numbers") };
            let found = profile(sigma_rel);
            assert!((found.gamma() / gamma - 1.0).abs() < 1e-9, "{sigma_rel}: {} instead of {gamma}", found.gamma());
            assert!((found.width() / sigma_rel - 1.0).abs() < 1e-12);
        }
        assert!((profile(0.05).gamma() - 16.97).abs() < 0.005 && (profile(0.1).gamma() - 6.94).abs() < 0.005);
        for wrong in [0.0, 1e-300, -0.1, 0.2887, 1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(PowerFunction::of_width(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn decays_are_those_of_the_paper() {
        for line in lines("decay") {
            let [sigma_rel, samples, interval, decay] = line[..] else { panic!("four numbers") };
            let got = profile(sigma_rel).decay(samples as u64, interval as u64);
            assert!((got - decay).abs() < 1e-12, "{line:?}: {got}");
        }
    }

    /// `fit SIGMA SAMPLES`, then snapshots with their coefficients.
    #[test]
    fn coefficients_are_those_of_least_squares() {
        for line in lines("fit") {
            let (wanted, inputs) = line.split_at(2);
            let inputs: Vec<&[f64]> = inputs.chunks(3).collect();
            let at = |sigma_rel: f64, samples: f64| Snapshot { samples: samples as u64, profile: profile(sigma_rel) };
            let snapshots: Vec<Snapshot> = inputs.iter().map(|input| at(input[0], input[1])).collect();
            let found = fit(&snapshots, &at(wanted[0], wanted[1])).expect("a sum");
            for (got, input) in found.coefficients.iter().zip(&inputs) {
                assert!((got - input[2]).abs() < 1e-6, "{wanted:?}: {got} instead of {}", input[2]);
            }
            assert!((found.coefficients.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    /// Averages of a known path of weights, tracked step by step, add up to the average that was never tracked.
    #[test]
    fn a_rebuilt_average_is_the_one_that_was_not_tracked() {
        let (interval, total) = (10, 20_000);
        let weight = |samples: u64| (samples as f64 / 3000.0).sin() + samples as f64 / 20_000.0;
        let kept = [0.05, 0.1].map(profile);
        let wanted = [0.03, 0.07, 0.12, 0.2].map(profile);
        let (mut averages, mut untracked) = ([0.0; 2], [0.0; 4]);
        let (mut snapshots, mut values) = (Vec::new(), Vec::new());
        for samples in (interval..=total).step_by(interval as usize) {
            let moved = |average: &mut f64, profile: &PowerFunction| {
                let decay = profile.decay(samples, interval);
                *average = decay * *average + (1.0 - decay) * weight(samples);
            };
            averages.iter_mut().zip(&kept).for_each(|(average, profile)| moved(average, profile));
            untracked.iter_mut().zip(&wanted).for_each(|(average, profile)| moved(average, profile));
            if samples % 1000 == 0 {
                snapshots.extend(kept.map(|profile| Snapshot { samples, profile }));
                values.extend(averages);
            }
        }
        for (profile, want) in wanted.into_iter().zip(untracked) {
            let found = fit(&snapshots, &Snapshot { samples: total, profile }).expect("a sum");
            let got: f64 = found.coefficients.iter().zip(&values).map(|(a, b)| a * b).sum();
            assert!((got - want).abs() < 5e-3, "{profile:?}: {got} instead of {want}, {}", found.error);
            assert!(found.error < 0.2, "{profile:?}: {}", found.error);
        }
        let tracked = Snapshot { samples: total, profile: kept[1] };
        let found = fit(&snapshots, &tracked).expect("a sum");
        assert!(found.error < 1e-5, "{}", found.error);
    }

    #[test]
    fn what_has_no_sum_is_none() {
        let twice = Snapshot { samples: 100, profile: profile(0.1) };
        assert_eq!(fit(&[twice, twice], &twice), None);
        assert_eq!(fit(&[], &twice), None);
    }
}
