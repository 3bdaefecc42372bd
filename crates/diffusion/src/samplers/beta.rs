//! The beta distribution whose quantiles give the `beta` noise levels.

/// Both parameters.
const SHAPE: f64 = 0.6;
/// The logarithm of `B(0.6, 0.6) = gamma(0.6)² / gamma(1.2)`.
const LOG_BETA: f64 = 0.881_841_806_141_785_9;

/// The quantile of `p`: where the distribution function is `p`.
pub(super) fn inverse_beta(p: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    // The upper half mirrors the lower one, in which floating point is dense.
    if p > 0.5 {
        return 1.0 - inverse_beta(1.0 - p);
    }
    let (mut low, mut high) = (0.0, 0.5);
    loop {
        let middle = 0.5 * (low + high);
        if middle == low || middle == high {
            return middle;
        }
        if distribution(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The regularised incomplete beta function for `x` in the lower half, by its continued fraction
/// (DLMF 8.17.22, evaluated by Lentz's method).
fn distribution(x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let front = (SHAPE * (x.ln() + (1.0 - x).ln()) - LOG_BETA).exp() / SHAPE;
    let (mut fraction, mut c, mut d) = (1.0, 1.0, 0.0);
    for n in 0..200 {
        let m = f64::from(n / 2);
        let term = match n {
            0 => 1.0,
            n if n % 2 == 0 => m * (SHAPE - m) * x / ((SHAPE + 2.0 * m - 1.0) * (SHAPE + 2.0 * m)),
            _ => -(SHAPE + m) * (2.0 * SHAPE + m) * x / ((SHAPE + 2.0 * m) * (SHAPE + 2.0 * m + 1.0)),
        };
        d = 1.0 / (1.0 + term * d);
        c = 1.0 + term / c;
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-16 {
            break;
        }
    }
    front * (fraction - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Golden values: scipy 1.17.1, `scipy.stats.beta.ppf(p, 0.6, 0.6)`.
    #[test]
    fn quantiles() {
        let cases = [
            (0.001, 1.855873851745199e-05),
            (0.1, 0.03958440558878085),
            (0.25, 0.17568037865269498),
            (0.5, 0.5),
            (0.7, 0.7659829961247643),
            (0.99, 0.9991387611784571),
            (1.0, 1.0),
        ];
        for (p, expected) in cases {
            let got = inverse_beta(p);
            assert!((got - expected).abs() < 1e-12, "at {p}: {got}, expected {expected}");
        }
    }
}
