//! In which order samples are seen: a pure function of the seed and the position in the stream.
//!
//! The stream is endless: position `p` belongs to epoch `p / len`, and each epoch visits every sample once. Nothing is
//! kept between positions, so a run resumes from a number, and any number of ranks can share the stream by taking
//! different positions of it.
//!
//! # Buckets
//!
//! Where pictures belong to buckets of different sizes ([`crate::buckets`]), every batch has to be of one bucket.
//! Epoch `e` is then made so: the samples are permuted as without buckets; each bucket takes its own in that order, is
//! filled up to whole batches by repeating its first ones, and is cut into batches; and the batches of all buckets are
//! permuted in turn. Every sample is seen in every epoch, those that fill up twice or more, and all epochs
//! have the same length.

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
    buckets: Option<BucketedSamples>,
    cache: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

/// Which samples make batches with each other.
#[derive(Debug)]
struct BucketedSamples {
    /// Bucket of each sample.
    bucket: Vec<u16>,
    /// Samples in a batch over all ranks.
    batch: usize,
}

/// Sets the order of batches apart from the order of samples of the same seed.
const BATCH_ORDER: u64 = 0x6275_636b_6574_7321;

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

    /// Shuffled, in batches of `global_batch` samples of one bucket each; `bucket[i]` is that of sample `i`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the filled-up epoch is empty or longer than 2³² - 1, or `global_batch` is 0.
    pub fn bucketed(seed: u64, bucket: Vec<u16>, global_batch: usize) -> Result<Self> {
        if global_batch == 0 {
            return Err(Error::InvalidArgument { what: "global batch", detail: "must be at least 1".to_owned() });
        }
        let mut counts = vec![0usize; usize::from(bucket.iter().max().copied().unwrap_or(0)) + 1];
        bucket.iter().for_each(|b| counts[usize::from(*b)] += 1);
        let len = counts.iter().map(|count| count.next_multiple_of(global_batch)).sum();
        let mut order = GlobalOrder::build(Some(seed), len)?;
        order.buckets = Some(BucketedSamples { bucket, batch: global_batch });
        Ok(order)
    }

    /// Samples that an epoch repeats to fill up the batches of buckets.
    pub fn repeats(&self) -> usize {
        self.buckets.as_ref().map_or(0, |buckets| self.len - buckets.bucket.len())
    }

    /// Sample number of the `step`-th replacement for a corrupt sample at `position`: the next positions' samples, but
    /// within the batch where batches have buckets.
    pub fn replacement(&self, position: u64, step: u64) -> usize {
        let at = match &self.buckets {
            None => position.wrapping_add(step),
            Some(buckets) => {
                let batch = buckets.batch as u64;
                position - position % batch + (position % batch + step % batch) % batch
            }
        };
        self.index(at).1
    }

    fn build(seed: Option<u64>, len: usize) -> Result<Self> {
        if len == 0 || u32::try_from(len).is_err() {
            let detail = format!("{len} samples; an order needs 1 to {} of them", u32::MAX);
            return Err(Error::InvalidArgument { what: "dataset length", detail });
        }
        Ok(GlobalOrder { seed, len, buckets: None, cache: Mutex::new(Vec::new()) })
    }

    /// Samples in an epoch, repeated ones included.
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
        let order = Arc::new(match &self.buckets {
            None => permutation(seed, epoch, self.len),
            Some(buckets) => buckets.epoch(seed, epoch),
        });
        if cache.len() == KEPT_EPOCHS {
            cache.remove(0);
        }
        cache.push((epoch, Arc::clone(&order)));
        order
    }
}

impl BucketedSamples {
    /// An epoch by the rule at the top of this file.
    fn epoch(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let mut queues: Vec<Vec<u32>> = Vec::new();
        for sample in permutation(seed, epoch, self.bucket.len()) {
            let bucket = usize::from(self.bucket[sample as usize]);
            if queues.len() <= bucket {
                queues.resize_with(bucket + 1, Vec::new);
            }
            queues[bucket].push(sample);
        }
        for queue in &mut queues {
            let count = queue.len();
            (count..count.next_multiple_of(self.batch)).for_each(|i| queue.push(queue[i % count]));
        }
        let batches: Vec<&[u32]> = queues.iter().flat_map(|queue| queue.chunks_exact(self.batch)).collect();
        let order = permutation(seed ^ BATCH_ORDER, epoch, batches.len());
        order.iter().flat_map(|batch| batches[*batch as usize]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_of_one_bucket_and_nothing_is_left_out() {
        let bucket: Vec<u16> = (0..101).map(|i| [0, 0, 0, 2, 2, 7][i % 6]).collect();
        let order = GlobalOrder::bucketed(9, bucket.clone(), 8).unwrap();
        assert_eq!((order.len(), order.repeats()), (56 + 40 + 16, 11));
        let mut epochs = Vec::new();
        for epoch in [0, 1, 5] {
            let first = epoch * order.len() as u64;
            let samples: Vec<usize> = (first..first + order.len() as u64).map(|p| order.index(p).1).collect();
            for batch in samples.chunks(8) {
                assert!(batch.iter().all(|sample| bucket[*sample] == bucket[batch[0]]), "{batch:?}");
            }
            let seen: std::collections::BTreeSet<_> = samples.iter().collect();
            assert_eq!(seen.len(), 101);
            epochs.push(samples);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        for position in 0..order.len() as u64 {
            let own = order.index(position).1;
            assert_eq!(order.replacement(position, 0), own);
            assert!((1..8).all(|step| bucket[order.replacement(position, step)] == bucket[own]));
        }
        assert!(matches!(GlobalOrder::bucketed(0, vec![], 4), Err(Error::InvalidArgument { .. })));
        assert!(matches!(GlobalOrder::bucketed(0, vec![0], 0), Err(Error::InvalidArgument { .. })));
    }

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
