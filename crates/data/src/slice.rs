//! Dividing work among processes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Slice `id` of `count` equal, contiguous parts of some work: the part of one process of an array of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Number of the slice, from 0.
    pub id: usize,
    /// Number of slices, at least 1.
    pub count: usize,
}

impl Slice {
    /// All of the work.
    pub const ALL: Self = Self { id: 0, count: 1 };

    /// This slice's part of `0..total`, divided as NeMo divides its arrays of jobs:
    /// `total * id / count .. total * (id + 1) / count`. The parts of all slices cover everything once.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn range(self, total: usize) -> Range<usize> {
        // In 128 bits: the product of two sizes fits.
        let at = |id: usize| (total as u128 * id as u128 / self.count as u128) as usize;
        at(self.id)..at(self.id + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_everything_once() {
        for (total, count) in [(0, 3), (1, 3), (10, 3), (7, 7), (1000, 13)] {
            let all: Vec<usize> = (0..count).flat_map(|id| Slice { id, count }.range(total)).collect();
            assert_eq!(all, (0..total).collect::<Vec<_>>());
        }
        assert_eq!(Slice::ALL.range(7), 0..7);
    }
}
