//! Numbers that close up over samples that are left out.

/// The samples of a list that are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// For each one that is left out, in order: its number less the number of those before it.
    shifted: Vec<usize>,
}

impl Removed {
    /// From the numbers of those that are left out, in rising order.
    pub fn new(numbers: impl IntoIterator<Item = usize>) -> Self {
        Removed { shifted: numbers.into_iter().enumerate().map(|(before, number)| number - before).collect() }
    }

    /// Number of samples that are left out.
    pub fn len(&self) -> usize {
        self.shifted.len()
    }

    /// Number in the whole list of the `i`-th one that is left out.
    ///
    /// # Panics
    /// If there are fewer.
    #[cfg(feature = "parquet")]
    pub fn number(&self, i: usize) -> usize {
        self.shifted[i] + i
    }

    /// Number in the whole list of the `kept`-th one that stays.
    pub fn whole(&self, kept: usize) -> usize {
        kept + self.shifted.partition_point(|shifted| *shifted <= kept)
    }

    /// Number of samples that are left out of the whole list's first `numbers`.
    pub fn before(&self, numbers: usize) -> usize {
        // Element k is out if its own number, shifted + k, is below.
        let (mut low, mut high) = (0, self.shifted.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.shifted[middle] + middle < numbers {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_close_up() {
        for out in [vec![], vec![0], vec![9], vec![0, 1, 2], vec![2, 3, 7], (0..10).collect()] {
            let removed = Removed::new(out.iter().copied());
            let kept: Vec<usize> = (0..10).filter(|number| !out.contains(number)).collect();
            let found: Vec<usize> = (0..kept.len()).map(|i| removed.whole(i)).collect();
            assert_eq!(found, kept);
            for numbers in 0..=10 {
                assert_eq!(removed.before(numbers), out.iter().filter(|number| **number < numbers).count());
            }
        }
    }
}
