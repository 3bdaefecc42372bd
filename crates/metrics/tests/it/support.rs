//! What the comparisons with other programs share.

use serde_json::Value;

/// The features of the function of the same name in `make_golden.py`, bit for bit; those of `golden/make_peers.py` are 4
/// less.
pub fn features(rows: usize, width: usize, seed: u64, shift: u64) -> Vec<f32> {
    let mut state = seed;
    let mut features = Vec::new();
    for _ in 0..rows {
        let mut before = 0;
        for column in 0..width as u64 {
            state = next(state);
            let value = state >> 54;
            let sum = (value + 2 * before) * (column % 7 + 1) + shift * column;
            features.push(sum as f32 / 1024.0);
            before = value;
        }
    }
    features
}

/// The step of both scripts' generator.
pub fn next(state: u64) -> u64 {
    state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)
}

pub fn size(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

pub fn assert_close(what: &str, found: f64, expected: f64, relative: f64) {
    let allowed = relative * expected.abs().max(1.0);
    assert!((found - expected).abs() <= allowed, "{what}: found {found}, expected {expected}");
}
