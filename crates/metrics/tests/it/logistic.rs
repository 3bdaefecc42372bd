//! Logistic regression against scikit-learn; `make_logistic.py` made `logistic.json`.

use calotype_metrics::{LogisticOptions, LogisticRegression};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    rows: usize,
    width: usize,
    classes: usize,
    c: f64,
    weights: Vec<Vec<f64>>,
    bias: Vec<f64>,
    probabilities: Vec<Vec<f64>>,
    right: f64,
}

/// The data of the function of the same name in `make_logistic.py`.
fn data(rows: usize, width: usize, classes: usize, seed: u64) -> (Vec<f32>, Vec<usize>) {
    let mut state = seed;
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..rows {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 55) as i64 - 256
        };
        let row: Vec<i64> = (0..=width).map(|_| next()).collect();
        features.extend(row[..width].iter().map(|value| *value as f32 / 256.0));
        labels.push(((2 * row[0] + row[1] + row[width] + 1024) as usize) * classes / 2048);
    }
    (features, labels)
}

fn probabilities(logits: &[f64]) -> Vec<f64> {
    let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / total).collect()
}

#[test]
fn logistic_regression_agrees_with_scikit_learn() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../logistic.json")).unwrap();
    for Case { rows, width, classes, c, weights, bias, probabilities: expected, right } in cases {
        let case = format!("{rows} rows, {width} columns, {classes} classes, c = {c}");
        let (features, labels) = data(rows, width, classes, (rows + classes) as u64);
        let options = LogisticOptions { c, tolerance: 1e-11, max_iterations: 10_000 };
        let fitted = LogisticRegression::fit(&features, width, &labels, classes, &options).unwrap();
        let row = |class: usize| &fitted.coefficients[class * (width + 1)..(class + 1) * (width + 1)];
        for (class, (weights, bias)) in weights.iter().zip(&bias).enumerate() {
            for (column, expected) in weights.iter().chain([bias]).enumerate() {
                // Of two classes, scikit-learn fits the second less the first.
                let found = if classes == 2 { row(1)[column] - row(0)[column] } else { row(class)[column] };
                assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{case}: {found} and {expected}");
            }
        }
        let logits = fitted.logits(&features).unwrap();
        for (logits, expected) in logits.chunks_exact(classes).zip(&expected) {
            for (found, expected) in probabilities(logits).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{case}: {found} and {expected}");
            }
        }
        let best = |row: &[f64]| (0..classes).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        let hits = logits.chunks_exact(classes).zip(&labels).filter(|(row, label)| best(row) == **label).count();
        assert_eq!(hits as f64 / rows as f64, right, "{case}");
    }
}
