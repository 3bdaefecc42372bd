//! Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
//! arXiv:2002.09797): whether pictures of one set lie in balls around those of the other.

use std::sync::atomic::{AtomicU32, Ordering};

use calotype_core::names;
use calotype_kernels::parallel_for;

use crate::error::{MetricsError, Result};
use crate::pairs::{Rows, Tile};
use crate::triangle::for_each;

names! {
    /// Whether what lies on a ball's surface is in it.
    BallRule, "rule of balls" {
        /// Yes: Kynkäänniemi et al., torch-fidelity.
        Closed = "closed",
        /// No: Naeem et al.'s package `prdc`.
        Open = "open",
    }
}

impl BallRule {
    /// Whether a point at a squared distance lies in a ball of a squared radius.
    fn holds(self, distance: f64, radius: f64) -> bool {
        match self {
            Self::Closed => distance <= radius,
            Self::Open => distance < radius,
        }
    }
}

/// How two sets lie in each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbourhoods {
    /// Share of generated rows that lie in a ball around a reference row.
    pub precision: f64,
    /// Share of reference rows that lie in a ball around a generated row.
    pub recall: f64,
    /// Mean number of reference balls that a generated row lies in, divided by the number of neighbours; may exceed 1.
    pub density: f64,
    /// Share of reference rows whose ball holds a generated row.
    pub coverage: f64,
}

impl Neighbourhoods {
    /// The harmonic mean of precision and recall, as torch-fidelity takes it.
    pub fn f_score(&self) -> f64 {
        2.0 * self.precision * self.recall / (self.precision + self.recall).max(1e-5)
    }
}

/// Squared distances below this share of the squared lengths are taken again from the differences: the difference of
/// inner products has no digits left there, and copies of a picture must be at no distance.
const NEAR: f64 = 1e-9;

/// Precision, recall, density and coverage, with balls that reach to the `neighbours`-th nearest other row of their set.
///
/// `generated` and `reference` have the shapes `[n, width]` and `[m, width]`. torch-fidelity takes 3 neighbours and the
/// closed rule, prdc's paper 5 and the open one. Memory is that of some tiles of 256 rows per thread, not n · m. Distances
/// are `f64`; torch-fidelity's are `f32`, so that single pictures may fall on the other side of a ball.
///
/// # Errors
/// If a slice is not whole rows, a value is not finite, `neighbours` is zero, or a set has no more rows than
/// `neighbours`.
pub fn neighbourhoods(
    generated: &[f32],
    reference: &[f32],
    width: usize,
    neighbours: usize,
    rule: BallRule,
) -> Result<Neighbourhoods> {
    let generated = Rows::new("generated features", generated, width)?;
    let reference = Rows::new("reference features", reference, width)?;
    if neighbours == 0 {
        return Err(MetricsError::Zero("neighbours"));
    }
    for (what, found) in [("generated features", generated.count()), ("reference features", reference.count())] {
        if found <= neighbours {
            let why = "one more than the neighbours that a ball reaches to";
            return Err(MetricsError::FewRows { what, found, needed: neighbours + 1, why });
        }
    }
    let generated_radii = squared_radii(generated, neighbours);
    let reference_radii = squared_radii(reference, neighbours);
    let balls: Vec<AtomicU32> = generated_radii.iter().map(|_| AtomicU32::new(0)).collect();
    let (recalled, covered) = (AtomicU32::new(0), AtomicU32::new(0));
    parallel_for(reference.tiles(), |tile| {
        let own = reference.tile(tile);
        let mut found = vec![(false, false); own.count];
        for tile in 0..generated.tiles() {
            let other = generated.tile(tile);
            distances(&own, &other, reference, generated, |row, column, distance| {
                let (number, ball) = (own.first + row, other.first + column);
                let inside = rule.holds(distance, reference_radii[number]);
                if inside {
                    balls[ball].fetch_add(1, Ordering::Relaxed);
                }
                found[row].0 |= rule.holds(distance, generated_radii[ball]);
                found[row].1 |= inside;
            });
        }
        recalled.fetch_add(found.iter().filter(|found| found.0).count() as u32, Ordering::Relaxed);
        covered.fetch_add(found.iter().filter(|found| found.1).count() as u32, Ordering::Relaxed);
    });
    let balls: Vec<u32> = balls.into_iter().map(AtomicU32::into_inner).collect();
    let (n, m) = (generated.count() as f64, reference.count() as f64);
    Ok(Neighbourhoods {
        precision: balls.iter().filter(|balls| **balls > 0).count() as f64 / n,
        recall: f64::from(recalled.into_inner()) / m,
        density: balls.iter().map(|balls| f64::from(*balls)).sum::<f64>() / (n * neighbours as f64),
        coverage: f64::from(covered.into_inner()) / m,
    })
}

/// The squared distance of each row to its `neighbours`-th nearest other row.
fn squared_radii(rows: Rows<'_>, neighbours: usize) -> Vec<f64> {
    let mut radii = vec![0.0; rows.count()];
    for_each(radii.chunks_mut(crate::pairs::TILE).enumerate().collect(), |(tile, radii)| {
        let own = rows.tile(tile);
        let mut nearest = vec![vec![f64::INFINITY; neighbours]; own.count];
        for tile in 0..rows.tiles() {
            let other = rows.tile(tile);
            distances(&own, &other, rows, rows, |row, column, distance| {
                if own.first + row != other.first + column {
                    keep_smallest(&mut nearest[row], distance);
                }
            });
        }
        for (radius, nearest) in radii.iter_mut().zip(nearest) {
            *radius = nearest[neighbours - 1];
        }
    });
    radii
}

/// Puts a number in its place among the smallest so far, of which the largest falls out.
fn keep_smallest(smallest: &mut [f64], number: f64) {
    let last = smallest.len() - 1;
    if number < smallest[last] {
        let place = smallest.partition_point(|kept| *kept <= number);
        smallest.copy_within(place..last, place + 1);
        smallest[place] = number;
    }
}

/// Calls `each` with row, column and squared distance of all pairs of two tiles.
fn distances(
    left: &Tile,
    right: &Tile,
    left_rows: Rows<'_>,
    right_rows: Rows<'_>,
    mut each: impl FnMut(usize, usize, f64),
) {
    let products = left.products(right);
    let (lengths, across) = (left.squares(), right.squares());
    for column in 0..right.count {
        for row in 0..left.count {
            let sum = lengths[row] + across[column];
            let mut distance = sum - 2.0 * products[(row, column)];
            if distance <= NEAR * sum {
                distance = exact(left_rows.row(left.first + row), right_rows.row(right.first + column));
            }
            each(row, column, distance);
        }
    }
}

fn exact(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::features;

    #[test]
    fn a_line_of_points_by_hand() {
        // Balls of one neighbour: reference 0, 1, 3 have radii 1, 1, 2; generated 0.5, 2, 9 have 1.5, 1.5, 7.
        let (reference, generated) = ([0.0, 1.0, 3.0], [0.5, 2.0, 9.0]);
        let closed = neighbourhoods(&generated, &reference, 1, 1, BallRule::Closed).unwrap();
        // 0.5 lies in the balls of 0 and 1; 2 in those of 1 (on its surface) and 3; 9 in none.
        assert_eq!(closed.precision, 2.0 / 3.0);
        assert_eq!(closed.density, 4.0 / 3.0);
        assert_eq!(closed.coverage, 1.0);
        assert_eq!(closed.recall, 1.0);
        let open = neighbourhoods(&generated, &reference, 1, 1, BallRule::Open).unwrap();
        assert_eq!((open.precision, open.density, open.coverage, open.recall), (2.0 / 3.0, 1.0, 1.0, 1.0));
    }

    #[test]
    fn copies_are_at_no_distance() {
        let one = features(4, 33, 100.0, 1);
        let copies: Vec<f32> = (0..300).flat_map(|row| one[row % 4 * 33..][..33].to_vec()).collect();
        let closed = neighbourhoods(&copies, &copies, 33, 5, BallRule::Closed).unwrap();
        assert_eq!((closed.precision, closed.recall, closed.coverage), (1.0, 1.0, 1.0));
        let open = neighbourhoods(&copies, &copies, 33, 5, BallRule::Open).unwrap();
        assert_eq!((open.precision, open.recall, open.density, open.coverage), (0.0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, y) = (features(530, 5, 0.0, 1), features(600, 5, 0.2, 2));
        let before = calotype_kernels::threads();
        let found = [1, 2, 5].map(|threads| {
            calotype_kernels::set_threads(threads);
            neighbourhoods(&x, &y, 5, 3, BallRule::Closed).unwrap()
        });
        calotype_kernels::set_threads(before);
        assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = |result: Result<Neighbourhoods>| result.unwrap_err().to_string();
        let of = |generated: &[f32], k| neighbourhoods(generated, &[1.0; 8], 1, k, BallRule::Open);
        assert!(text(of(&[1.0; 3], 3)).contains("generated features: 3 rows, but 4 are needed"));
        assert!(text(of(&[1.0; 3], 0)).contains("neighbours must be at least 1"));
        assert!(text(of(&[1.0, f32::NAN], 1)).contains("generated features: row 1, column 0 is NaN"));
    }
}
