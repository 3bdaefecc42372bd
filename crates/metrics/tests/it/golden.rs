//! Figures against numpy, scipy and mpmath; `make_golden.py` made `golden.json`.

use calotype_metrics::{
    GaussianStatistics, candidate_cosines, clip_score, frechet_distance, retrieval_top1, top_k_accuracy,
};
use serde_json::Value;

use crate::support::{assert_close, features, size};

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden.json")).unwrap()
}

fn assert_all_close(what: &str, found: &[f64], expected: &Value) {
    let expected = match expected {
        Value::Array(values) => values.iter().map(|value| value.as_f64().unwrap()).collect(),
        one => vec![one.as_f64().unwrap()],
    };
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_close(what, *found, expected, 1e-12);
    }
}

#[test]
fn frechet_distance_agrees_with_scipy_and_with_sixty_digits() {
    for case in golden()["frechet"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let width = size(&case["width"]);
        let a = features(size(&case["rows"][0]), width, 1, 0);
        let b = features(size(&case["rows"][1]), width, 2, case["shift"].as_u64().unwrap());
        let a = GaussianStatistics::from_features(&a, width).unwrap();
        let b = GaussianStatistics::from_features(&b, width).unwrap();
        if case.get("mean").is_some() {
            assert_all_close(name, &a.mean, &case["mean"]);
            assert_all_close(name, &a.covariance, &case["covariance"]);
        }
        let distance = frechet_distance(&a, &b).unwrap();
        let reverse = frechet_distance(&b, &a).unwrap();
        assert_close(name, distance, case["mpmath"].as_f64().unwrap(), 1e-11);
        assert_close(name, reverse, distance, 1e-11);
        // A general matrix square root keeps about half the digits of an ill-conditioned product; that is scipy's error.
        if let Some(scipy) = case.get("scipy").and_then(Value::as_f64) {
            assert_close(name, distance, scipy, 1e-7);
        }
    }
}

#[test]
fn retrieval_figures_agree_with_numpy() {
    let case = &golden()["retrieval"];
    let (n, k, d) = (size(&case["rows"]), size(&case["candidates"]), size(&case["width"]));
    let centred = |rows, seed| -> Vec<f32> { features(rows, d, seed, 0).iter().map(|value| value - 1.0).collect() };
    let (images, candidates) = (centred(n, 3), centred(n * k, 4));
    let first: Vec<f32> = candidates.chunks(k * d).flat_map(|row| row[..d].to_vec()).collect();
    let correct: Vec<usize> = (0..n).map(|row| row % k).collect();

    let expected = |key: &str| case[key].as_f64().unwrap();
    let score = clip_score(&images, &first, d).unwrap();
    assert_close("clip_score", score, expected("clip_score"), 1e-12);
    let top1 = retrieval_top1(&images, &candidates, &correct, d, k).unwrap();
    assert_eq!(top1, expected("top1"));
    let cosines = candidate_cosines(&images, &candidates, d, k).unwrap();
    let cosines: Vec<f32> = cosines.iter().map(|cosine| *cosine as f32).collect();
    assert_eq!(top_k_accuracy(&cosines, &correct, k, 5).unwrap(), expected("top5"));
}
