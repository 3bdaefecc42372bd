//! Position embeddings on a grid of patches, brought to another grid.

use serde::{Deserialize, Serialize};

/// The way in which position embeddings are brought to another grid of patches. All are bicubic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionInterpolation {
    /// From grid to grid, without smoothing: transformers' `Dinov2Model`.
    #[default]
    Grid,
    /// The new grid counts a tenth of a patch more when places are computed, without smoothing: facebookresearch/dinov2's
    /// models without registers, which keep this (`interpolate_offset`) because they were trained with it.
    Offset,
    /// From grid to grid, with smoothing where it shrinks: models with registers, in both libraries.
    Smooth,
}

/// What [`PositionInterpolation::Offset`] adds to the sides of the new grid.
const OFFSET: f64 = 0.1;

/// Position embeddings `[prefix + from², channels]` brought to a square grid of `to` patches a side by timm's rule: those of
/// the first `prefix` tokens stay, the others are interpolated bicubically with a = -0.5, smoothed where the grid shrinks, in
/// `f32` (timm 1.0, `resample_abs_pos_embed`; open_clip has the same). None if the values are not as many.
///
/// # Shapes
/// to `[prefix + to², channels]`
pub fn resample(values: &[f32], prefix: usize, from: usize, to: usize) -> Option<Vec<f32>> {
    let channels = values.len().checked_div(prefix + from * from)?;
    if from == 0 || channels == 0 || values.len() != channels * (prefix + from * from) {
        return None;
    }
    let (first, grid) = values.split_at(prefix * channels);
    let map = shares(from, to, PositionInterpolation::Smooth);
    // Columns first, as torch does.
    let rows: Vec<f32> = grid.chunks_exact(from * channels).flat_map(|row| mixed(row, &map, from, channels)).collect();
    Some([first, &mixed(&rows, &map, from, to * channels)].concat())
}

/// Pieces of `size` numbers, mixed by rows of `from` shares.
fn mixed(pieces: &[f32], map: &[f32], from: usize, size: usize) -> Vec<f32> {
    let mut out = vec![0f32; map.len() / from * size];
    for (sum, shares) in out.chunks_exact_mut(size).zip(map.chunks_exact(from)) {
        for (piece, share) in pieces.chunks_exact(size).zip(shares) {
            sum.iter_mut().zip(piece).for_each(|(sum, value)| *sum += value * share);
        }
    }
    out
}

/// Shares of `from` places in each of `to` places along an axis, `[to, from]`: torch's `interpolate` with `mode = "bicubic"`
/// and `align_corners = False`.
pub(crate) fn shares(from: usize, to: usize, kind: PositionInterpolation) -> Vec<f32> {
    let mut shares = vec![0f32; to * from];
    for (at, row) in shares.chunks_exact_mut(from.max(1)).enumerate() {
        match kind {
            PositionInterpolation::Smooth => smooth_shares(from, to, at, row),
            // torch computes with `f32` here, and takes the inverse of the factor that it is given.
            PositionInterpolation::Offset => {
                let factor = (to as f64 + OFFSET) / from as f64;
                nearest_shares((1.0 / factor) as f32, at, row);
            }
            PositionInterpolation::Grid => nearest_shares(from as f32 / to as f32, at, row),
        }
    }
    shares
}

/// Keys' cubic convolution with parameter `a`, at distance `x`.
fn cubic(x: f64, a: f64) -> f64 {
    match x.abs() {
        x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        _ => 0.0,
    }
}

/// The four nearest places with `a = -0.75`; those beyond an edge are the outermost ones.
fn nearest_shares(scale: f32, at: usize, row: &mut [f32]) {
    let place = scale * (at as f32 + 0.5) - 0.5;
    let first = place.floor();
    let share = f64::from(place - first);
    for tap in -1..=2i32 {
        let index = (first as i32 + tap).clamp(0, row.len() as i32 - 1) as usize;
        row[index] += cubic(f64::from(tap) - share, -0.75) as f32;
    }
}

/// All places under a cubic with `a = -0.5` that is as wide as an output's share of the axis; sums are one.
fn smooth_shares(from: usize, to: usize, at: usize, row: &mut [f32]) {
    let scale = from as f64 / to as f64;
    let wider = scale.max(1.0);
    let (center, support) = (scale * (at as f64 + 0.5), 2.0 * wider);
    let start = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(from);
    let weights: Vec<f64> = (start..end).map(|x| cubic((x as f64 - center + 0.5) / wider, -0.5)).collect();
    let sum: f64 = weights.iter().sum();
    row[start..end].iter_mut().zip(weights).for_each(|(share, weight)| *share = (weight / sum) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROWN: [f32; 20] = [
        0.0, 0.6442177, 1.154271, 1.0740815, 0.7530898, 0.3048336, 0.3519084, -0.4644148, 0.0704288, -0.0525582,
        -0.0456011, -0.1133032, -0.1616311, -0.1740482, -1.0134138, -1.1791984, -0.8442924, -0.5314401, -0.6751709,
        0.1163185,
    ];
    const SHRUNK: [f32; 11] = [
        0.0, 0.6442177, 0.4194912, 0.1578192, -0.222149, -0.109896, 0.0753362, 0.204099, -0.0873466, -0.385512,
        -0.3947103,
    ];

    /// `timm.layers.resample_abs_pos_embed` (timm 1.0.31, torch 2.15) of `sin(0.7 i)`, shape `[1, 5, 2]`, from 2x2 to 3x3.
    #[test]
    fn grids_grow_as_in_timm() {
        let values: Vec<f32> = (0..10).map(|i| (0.7 * i as f32).sin()).collect();
        let found = resample(&values, 1, 2, 3).unwrap();
        let expected = GROWN;
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{found:?}");
        assert_eq!(found.len(), 20);
    }

    /// The same, shape `[1, 18, 1]` with two tokens in front, from 4x4 to 3x3.
    #[test]
    fn grids_shrink_as_in_timm() {
        let values: Vec<f32> = (0..18).map(|i| (0.7 * i as f32).sin()).collect();
        let found = resample(&values, 2, 4, 3).unwrap();
        assert!(found.iter().zip(SHRUNK).all(|(a, b)| (a - b).abs() < 2e-6), "{found:?}");
        assert_eq!(found.len(), 11);
    }

    #[test]
    fn the_same_grid_stays_and_other_counts_are_none() {
        let values: Vec<f32> = (0..10).map(|i| i as f32).collect();
        assert_eq!(resample(&values, 1, 2, 2).unwrap(), values);
        assert_eq!(resample(&values, 1, 4, 2), None);
        assert_eq!(resample(&values, 0, 0, 2), None);
    }
}
