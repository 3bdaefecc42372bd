//! In which order samples are seen: a pure function of the seed and the position in the stream.
//!
//! The stream is endless: position `p` belongs to epoch `p / len`, and each epoch visits every sample once. Nothing is
//! kept between positions, so a run resumes from a number, and any number of ranks can share the stream by taking
//! different positions of it.

use std::sync::{Arc, Mutex, PoisonError};

use calotype_kernels::permutation;

use crate::{Error, Result};

/// Epochs whose permutations are kept: prefetch reaches over one border, seldom more.
const KEPT_EPOCHS: usize = 3;

/// The order of a dataset's samples, shuffled anew each epoch, or as they lie.
#[derive(Debug)]
pub struct GlobalOrder {
    seed: Option<u64>,
    len: usize,
    cache: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl GlobalOrder {
    /// Shuffled: position `p` is place `p % len` of `permutation(seed, p / len, len)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `len` is 0 or more than 2³² - 1 (permutations are kept as `u32`).
    pub fn new(seed: u64, len: usize) -> Result<Self> {
        GlobalOrder::build(Some(seed), len)
    }

    /// As the samples lie, epoch after epoch: for evaluation. Errors as [`GlobalOrder::new`].
    pub fn sequential(len: usize) -> Result<Self> {
        GlobalOrder::build(None, len)
    }

    fn build(seed: Option<u64>, len: usize) -> Result<Self> {
        if len == 0 || u32::try_from(len).is_err() {
            let detail = format!("{len} samples; an order needs 1 to {} of them", u32::MAX);
            return Err(Error::InvalidArgument { what: "dataset length", detail });
        }
        Ok(GlobalOrder { seed, len, cache: Mutex::new(Vec::new()) })
    }

    /// Samples in an epoch.
    #[expect(clippy::len_without_is_empty, reason = "an order is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Epoch and sample number of stream position `position`.
    pub fn index(&self, position: u64) -> (u64, usize) {
        let (epoch, place) = (position / self.len as u64, (position % self.len as u64) as usize);
        match self.seed {
            Some(seed) => (epoch, self.permutation(seed, epoch)[place] as usize),
            None => (epoch, place),
        }
    }

    fn permutation(&self, seed: u64, epoch: u64) -> Arc<Vec<u32>> {
        // The cache holds only values of a pure function, so one left by a panicking thread is still right.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = cache.iter().find(|(kept, _)| *kept == epoch) {
            return Arc::clone(order);
        }
        let order = Arc::new(permutation(seed, epoch, self.len));
        if cache.len() == KEPT_EPOCHS {
            cache.remove(0);
        }
        cache.push((epoch, Arc::clone(&order)));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_sample_once_in_its_own_order() {
        let order = GlobalOrder::new(7, 101).unwrap();
        let epoch = |e: u64| -> Vec<usize> { (0..101).map(|p| order.index(e * 101 + p).1).collect() };
        for e in [0, 1, 2, 9] {
            let mut seen = epoch(e);
            seen.sort_unstable();
            assert_eq!(seen, (0..101).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0), epoch(1));
        assert_ne!(epoch(0), (0..101).collect::<Vec<_>>());
    }

    #[test]
    fn the_index_does_not_depend_on_what_was_asked_before() {
        let forward = GlobalOrder::new(3, 10).unwrap();
        let expected: Vec<_> = (0..200).map(|p| forward.index(p)).collect();
        let backward = GlobalOrder::new(3, 10).unwrap();
        for p in (0..200).rev() {
            assert_eq!(backward.index(p), expected[p as usize]);
        }
    }

    #[test]
    fn sequential_keeps_the_order_and_empty_is_refused() {
        let order = GlobalOrder::sequential(4).unwrap();
        assert_eq!(order.index(6), (1, 2));
        assert!(matches!(GlobalOrder::new(0, 0), Err(Error::InvalidArgument { .. })));
    }
}
