//! The random choices of `numpy.random.RandomState`, for figures that are taken on the same subsets as a NumPy program's.
//!
//! Like [`TorchCpuGenerator`](crate::TorchCpuGenerator) it has a state. Use it only where the peer's numbers are wanted.

use crate::mersenne::MersenneTwister;

/// `numpy.random.RandomState(seed)`, NumPy's legacy generator, whose stream NumPy keeps fixed (NEP 19).
#[derive(Clone, Debug)]
pub struct NumpyRandomState {
    words: MersenneTwister,
}

impl NumpyRandomState {
    /// `numpy.random.RandomState(seed)`.
    pub fn new(seed: u32) -> Self {
        Self { words: MersenneTwister::new(seed) }
    }

    /// `state.permutation(n)`: a random order of `0..n`.
    ///
    /// # Panics
    ///
    /// If `n` is 2^32 or more.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let n = u32::try_from(n).expect("permutation: at most 2^32 - 1 things");
        let mut order: Vec<u32> = (0..n).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.up_to(i as u32) as usize);
        }
        order
    }

    /// `state.choice(n, size, replace=False)`: the first `size` of a permutation. A `size` above `n`, which NumPy
    /// refuses, gives `n`.
    ///
    /// # Panics
    ///
    /// If `n` is 2^32 or more.
    pub fn choice(&mut self, n: usize, size: usize) -> Vec<u32> {
        let mut order = self.permutation(n);
        order.truncate(size);
        order
    }

    /// `state.choice(n, size)`: numbers below `n`, each drawn from all; none if `n` is 0, which NumPy refuses.
    ///
    /// # Panics
    ///
    /// If `n` is 2^32 or more.
    pub fn choice_with_replacement(&mut self, n: usize, size: usize) -> Vec<u32> {
        let n = u32::try_from(n).expect("choice: of at most 2^32 - 1 things");
        let most = n.checked_sub(1);
        most.map_or(Vec::new(), |most| (0..size).map(|_| self.up_to(most)).collect())
    }

    /// Uniform in `0..=most`: words below the next power of two, drawn until one fits (NumPy's `legacy_interval`).
    fn up_to(&mut self, most: u32) -> u32 {
        if most == 0 {
            return 0;
        }
        let mask = u32::MAX >> most.leading_zeros();
        loop {
            let value = self.words.next_u32() & mask;
            if value <= most {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numpys() {
        // NumPy 2.4.6: r = numpy.random.RandomState(2020); r.permutation(12), r.choice(20, 7, replace=False),
        // r.permutation(1), r.permutation(5).
        let mut state = NumpyRandomState::new(2020);
        assert_eq!(state.permutation(12), [2, 1, 11, 4, 10, 5, 7, 9, 6, 3, 8, 0]);
        assert_eq!(state.choice(20, 7), [19, 12, 14, 1, 17, 8, 13]);
        assert_eq!(state.permutation(1), [0]);
        assert_eq!(state.permutation(5), [0, 3, 4, 1, 2]);
        assert!(state.permutation(0).is_empty());
        // NumPy 2.4.6: r = numpy.random.RandomState(7); r.choice(64, 5); the same of 65, which goes on.
        let mut state = NumpyRandomState::new(7);
        assert_eq!(state.choice_with_replacement(64, 5), [47, 4, 25, 54, 3]);
        assert_eq!(state.choice_with_replacement(65, 5), [23, 57, 14, 23, 42]);
        assert_eq!(state.choice_with_replacement(1, 3), [0, 0, 0]);
        assert!(state.choice_with_replacement(0, 3).is_empty());
    }
}
