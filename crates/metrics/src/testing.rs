//! What several tests need.

/// Pseudo-random features in -0.5..0.5 plus `offset`; a plain LCG, so that no dependency is needed.
pub(crate) fn features(rows: usize, width: usize, offset: f32, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..rows * width)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5 + offset
        })
        .collect()
}
