//! Figures against the field's packages; `golden/make_peers.py` made `golden/peers.json`.

use calotype_metrics::{
    BallRule, CmmdSettings, GaussianAccumulator, GaussianStatistics, KidSettings, ScoreOrder, Spread, SubsetChoice,
    argsort_descending, clip_mmd, frechet_distance, inception_score, kernel_distance, neighbourhoods, normalize_rows,
    top_k,
};
use serde_json::Value;

use crate::support::{self, assert_close, next, size};

fn peers(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../golden/peers.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn features(rows: usize, width: usize, seed: u64, shift: u64) -> Vec<f32> {
    support::features(rows, width, seed, shift).into_iter().map(|value| value - 4.0).collect()
}

/// Both sets of a case, by the seeds of the script.
fn sets(case: &Value, seeds: [u64; 2], shift: u64) -> (usize, Vec<f32>, Vec<f32>) {
    let width = size(&case["width"]);
    let first = features(size(&case["rows"][0]), width, seeds[0], 0);
    (width, first, features(size(&case["rows"][1]), width, seeds[1], shift))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn assert_spread(what: &str, found: Spread, expected: &Value) {
    assert_close(what, found.mean, number(&expected[0]), 1e-9);
    if let Some(deviation) = expected[1].as_f64() {
        assert_close(what, found.deviation, deviation, 1e-9);
    }
}

#[test]
fn frechet_distances() {
    for case in peers("frechet") {
        let (width, a, b) = sets(&case, [1, 2], case["shift"].as_u64().unwrap());
        let full_rank = a.len().min(b.len()) > width * width;
        let a = GaussianStatistics::from_features(&a, width).unwrap();
        let b = GaussianStatistics::from_features(&b, width).unwrap();
        let found = frechet_distance(&a, &b).unwrap();
        for program in ["pytorch-fid", "clean-fid", "torch-fidelity", "torchmetrics"] {
            // Of singular products the programs keep half the digits, each in its own way.
            let relative = if full_rank { 1e-8 } else { 1e-7 };
            assert_close(program, found, number(&case[program]), relative);
        }
    }
}

#[test]
fn slices_have_the_distance_of_the_whole() {
    // 500 rows of 512 features, as 500 pictures have fewer rows than features, cut at any row.
    let (width, rows) = (512, 500);
    let (all, other) = (features(rows, width, 21, 0), features(450, width, 22, 1));
    let other = GaussianStatistics::from_features(&other, width).unwrap();
    let whole = frechet_distance(&GaussianStatistics::from_features(&all, width).unwrap(), &other).unwrap();
    for slices in [1, 2, 3, 7] {
        let mut merged = GaussianAccumulator::new(width).unwrap();
        for slice in (0..slices).rev() {
            let (first, end) = (slice * rows / slices, (slice + 1) * rows / slices);
            let mut part = GaussianAccumulator::starting_at(width, first as u64).unwrap();
            part.push(&all[first * width..end * width]).unwrap();
            merged.merge(part).unwrap();
        }
        let found = frechet_distance(&merged.finish().unwrap(), &other).unwrap();
        assert_eq!(found, whole, "{slices} slices");
    }
}

#[test]
fn kernel_distances() {
    for case in peers("kid") {
        let (width, x, y) = sets(&case, [5, 6], 2);
        for choice in SubsetChoice::ALL {
            let Some(expected) = case.get(choice.name()) else { continue };
            let settings = KidSettings {
                degree: size(&case["degree"]) as u32,
                gamma: case["gamma"].as_f64(),
                coefficient: number(&case["coefficient"]),
                subsets: size(&case["subsets"]),
                subset_size: size(&case["size"]),
                seed: case["seed"].as_u64().unwrap(),
                choice: *choice,
            };
            assert_spread(choice.name(), kernel_distance(&x, &y, width, &settings).unwrap(), expected);
        }
    }
}

#[test]
fn inception_scores() {
    for case in peers("inception score") {
        let (classes, splits, seed) = (size(&case["classes"]), size(&case["splits"]), size(&case["seed"]));
        let logits = features(size(&case["rows"]), classes, 7, 0);
        for (name, order) in [
            ("as given", ScoreOrder::AsGiven),
            ("torch-fidelity", ScoreOrder::TorchFidelity { seed: seed as u32 }),
            ("torchmetrics", ScoreOrder::Torchmetrics { seed: seed as u64 }),
        ] {
            assert_spread(name, inception_score(&logits, classes, splits, order).unwrap(), &case[name]);
        }
    }
}

#[test]
fn neighbourhoods_of_both_rules() {
    for case in peers("neighbourhoods") {
        let (width, x, y) = sets(&case, [8, 9], 3);
        let k = size(&case["neighbours"]);
        let closed = neighbourhoods(&x, &y, width, k, BallRule::Closed).unwrap();
        for (index, found) in [closed.precision, closed.recall, closed.f_score()].into_iter().enumerate() {
            // torch-fidelity takes means of f32.
            assert_close("torch-fidelity", found, number(&case["torch-fidelity"][index]), 1e-6);
        }
        let open = neighbourhoods(&x, &y, width, k, BallRule::Open).unwrap();
        for (index, found) in [open.precision, open.recall, open.density, open.coverage].into_iter().enumerate() {
            assert_close("prdc", found, number(&case["prdc"][index]), 1e-12);
        }
    }
}

#[test]
fn clip_discrepancies() {
    for case in peers("cmmd") {
        let (width, mut x, mut y) = sets(&case, [10, 11], 2);
        normalize_rows("x", &mut x, width).unwrap();
        normalize_rows("y", &mut y, width).unwrap();
        let found = clip_mmd(&x, &y, width, &CmmdSettings::default()).unwrap();
        // Rows of length 1 are rounded to f32 here.
        assert_close("cmmd", found, number(&case["formula"]), 1e-6);
    }
}

#[test]
fn ties_are_where_pytorch_leaves_them() {
    for case in peers("ties") {
        let (rows, values) = (size(&case["rows"]), case["values"].as_u64().unwrap());
        let mut state = case["seed"].as_u64().unwrap();
        let mut score = || {
            state = next(state);
            ((state >> 40) % values) as f32
        };
        let scores: Vec<f32> = (0..rows).map(|_| score()).collect();
        let listed = |value: &Value| value.as_array().unwrap().iter().map(|i| size(i) as u32).collect::<Vec<_>>();
        for (k, expected) in case["topk"].as_object().unwrap() {
            assert_eq!(
                top_k(&scores, k.parse().unwrap()),
                listed(expected),
                "{rows} scores of {values} values, k = {k}"
            );
        }
        let order = argsort_descending(&scores);
        let first = listed(&case["argsort"]);
        assert_eq!(order[..first.len()], first, "{rows} scores of {values} values");
        let sum: u64 = order.iter().zip(1u64..).map(|(index, place)| place * u64::from(*index)).sum();
        assert_eq!(sum, case["argsort sum"].as_u64().unwrap(), "{rows} scores of {values} values");
    }
}
