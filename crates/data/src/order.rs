//! The order in which samples are seen: a pure function of the seed and the position in the stream.
//!
//! The stream is endless. Nothing is kept between positions, so a run resumes from a number, and any number of ranks
//! can share the stream by taking different positions of it.
//!
//! # One source
//!
//! Position `p` belongs to epoch `p / len`. The content of an epoch depends on [`Shuffle`] and [`OrderConfig::resampled`]:
//!
//! | shuffle | exact | resampled |
//! |---|---|---|
//! | sequential | every sample once, as they lie | – |
//! | full | every sample once, permuted | every position draws a sample, with replacement |
//! | shards | every block once, blocks permuted, samples mixed over a few blocks | blocks are drawn with replacement |
//!
//! `shards` reads blocks (shards, row groups: [`crate::Source::blocks`]) one group after the other, as the shuffle buffer
//! of the `webdataset` library does: the permuted blocks of an epoch are cut into groups of at most `buffer` samples (one
//! block at least), and samples are permuted within their group. Only a group's blocks are needed at a time, which suits
//! sources on other machines. Resampled, an epoch draws blocks until there are `len` samples or more; the
//! last group gives only as many as are missing.
//!
//! # Mixtures
//!
//! Several sources, each with a weight and an order of its own. A fixed, repeated pattern tells the source of each
//! position; every stretch of it has the sources in proportion to their weights, to within one sample for two sources and
//! a few for many. A position takes the next sample of its source's own stream, whose epochs are independent.
//!
//! # Buckets
//!
//! If images belong to buckets of different sizes ([`crate::buckets`]), every batch has to be of one bucket.
//! Epoch `e` is then made so: the samples are permuted as without buckets; each bucket takes its own in that order, is
//! filled up to whole batches by repeating its first ones, and is cut into batches; and the batches of all buckets are
//! permuted in turn. Every sample is seen in every epoch, those that fill up twice or more, and all epochs
//! have the same length.

use std::sync::{Arc, Mutex, PoisonError};

use calotype_core::{Purpose, Stream, permutation};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Number of kept results of each pure function: prefetch reaches over one border, seldom more.
const KEPT: usize = 3;

/// Longest pattern of a mixture: weights are rounded to multiples of its inverse, unless a shorter one is exact.
const LONGEST_PATTERN: usize = 1 << 16;

/// Mixing of samples within an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Shuffle {
    /// No mixing: for evaluation.
    Sequential,
    /// Over the whole source.
    #[default]
    Full,
    /// Blocks, and samples over the blocks that `buffer` samples hold.
    Shards {
        /// Most samples that are mixed with each other; a block that is larger is mixed as a whole.
        buffer: usize,
    },
}

/// Settings of an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrderConfig {
    /// Seed of all random choices.
    pub seed: u64,
    /// Mixing of samples.
    pub shuffle: Shuffle,
    /// True if epochs draw with replacement, as `resampled=True` of the `webdataset` library, instead of visiting every
    /// sample once.
    pub resampled: bool,
}

/// The order of a source's samples, or of those of a mixture.
#[derive(Debug)]
pub struct GlobalOrder {
    parts: Vec<Part>,
    /// For each place of the repeated pattern: the part, and how many earlier places have the same one. Empty if there
    /// is one part.
    pattern: Vec<(u32, u32)>,
    /// Number of places of each part in the pattern.
    quotas: Vec<u64>,
    len: usize,
    samples: usize,
}

/// The order within one source.
#[derive(Debug)]
struct Part {
    kind: Kind,
    /// Number of its first sample among those of all parts.
    first: usize,
    len: usize,
}

#[derive(Debug)]
enum Kind {
    Sequential,
    Full { seed: u64, epochs: Cache<Vec<u32>> },
    Drawn { seed: u64 },
    Blocks(BlockOrder),
    Buckets { seed: u64, samples: BucketedSamples, epochs: Cache<Vec<u32>> },
}

/// The samples by the bucket that they make batches in.
#[derive(Debug)]
struct BucketedSamples {
    /// Bucket of each sample.
    bucket: Vec<u16>,
    /// Samples in a batch over all ranks.
    batch: usize,
}

impl GlobalOrder {
    /// Shuffled: position `p` is place `p % len` of `permutation(seed, p / len, len)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `len` is 0 or more than 2³² - 1 (permutations are kept as `u32`).
    pub fn new(seed: u64, len: usize) -> Result<Self> {
        GlobalOrder::of(&OrderConfig { seed, ..OrderConfig::default() }, &[len])
    }

    /// As the samples lie, epoch after epoch: for evaluation. Errors as [`GlobalOrder::new`].
    pub fn sequential(len: usize) -> Result<Self> {
        GlobalOrder::of(&OrderConfig { shuffle: Shuffle::Sequential, ..OrderConfig::default() }, &[len])
    }

    /// The order of a source whose blocks have these numbers of samples ([`crate::Source::blocks`]).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no samples or more than 2³² - 1, for a buffer of no samples, and for
    /// drawing in sequence.
    pub fn of(config: &OrderConfig, blocks: &[usize]) -> Result<Self> {
        let part = Part::new(config, config.seed, blocks, 0)?;
        let len = part.len;
        Ok(GlobalOrder { parts: vec![part], pattern: Vec::new(), quotas: vec![1], len, samples: len })
    }

    /// The order of a mixture: sources' blocks, and weights that need not add up to one. Samples are numbered through,
    /// as [`crate::source::Mixture`] does.
    ///
    /// # Errors
    /// As [`GlobalOrder::of`]; [`Error::InvalidArgument`] for no source, a weight that is not a positive number, or
    /// less than the 65,536th part of all.
    pub fn mixture(config: &OrderConfig, sources: &[(Vec<usize>, f64)]) -> Result<Self> {
        let mut parts = Vec::with_capacity(sources.len());
        let mut len = 0;
        for (number, (blocks, _)) in sources.iter().enumerate() {
            let part = Part::new(config, sub_seed(config.seed, number as u64), blocks, len)?;
            len += part.len;
            parts.push(part);
        }
        let quotas = quotas(&sources.iter().map(|(_, weight)| *weight).collect::<Vec<_>>())?;
        Ok(GlobalOrder { parts, pattern: pattern(&quotas), quotas, len, samples: len })
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
        let len = checked_len(counts.iter().map(|count| count.div_ceil(global_batch).saturating_mul(global_batch)))?;
        let samples = bucket.len();
        let buckets = BucketedSamples { bucket, batch: global_batch };
        let part = Part { kind: Kind::Buckets { seed, samples: buckets, epochs: Cache::default() }, first: 0, len };
        Ok(GlobalOrder { parts: vec![part], pattern: Vec::new(), quotas: vec![1], len, samples })
    }

    /// Number of different samples.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Samples that an epoch repeats to fill up the batches of buckets.
    pub fn repeats(&self) -> usize {
        self.len - self.samples
    }

    /// Sample number of the `step`-th replacement for a corrupt sample at `position`: the next positions' samples, but
    /// within the batch where batches have buckets.
    pub fn replacement(&self, position: u64, step: u64) -> usize {
        let at = match &self.parts[0].kind {
            Kind::Buckets { samples, .. } => {
                let batch = samples.batch as u64;
                position - position % batch + (position % batch + step % batch) % batch
            }
            _ => position.wrapping_add(step),
        };
        self.index(at).1
    }

    /// Samples of all sources; the length of an epoch if there is one, repeated samples included.
    #[expect(clippy::len_without_is_empty, reason = "an order is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Epoch and sample number of stream position `position`; the epoch is that of the sample's source.
    pub fn index(&self, position: u64) -> (u64, usize) {
        if self.pattern.is_empty() {
            return self.parts[0].index(position);
        }
        let (round, place) = (position / self.pattern.len() as u64, (position % self.pattern.len() as u64) as usize);
        let (part, before) = self.pattern[place];
        let part = part as usize;
        self.parts[part].index(round.wrapping_mul(self.quotas[part]).wrapping_add(u64::from(before)))
    }
}

impl Part {
    fn new(config: &OrderConfig, seed: u64, blocks: &[usize], first: usize) -> Result<Self> {
        let len = checked_len(blocks.iter().copied())?;
        let kind = match (config.shuffle, config.resampled) {
            (Shuffle::Sequential, false) => Kind::Sequential,
            (Shuffle::Sequential, true) => {
                let detail = "samples are drawn at random or seen in sequence, not both".to_owned();
                return Err(Error::InvalidArgument { what: "order", detail });
            }
            (Shuffle::Full, false) => Kind::Full { seed, epochs: Cache::default() },
            (Shuffle::Full, true) => Kind::Drawn { seed: sub_seed(seed, DRAWS) },
            (Shuffle::Shards { buffer: 0 }, _) => {
                let detail = "a shuffle buffer holds at least 1 sample".to_owned();
                return Err(Error::InvalidArgument { what: "order", detail });
            }
            (Shuffle::Shards { buffer }, resampled) => {
                Kind::Blocks(BlockOrder::new(seed, blocks, len, buffer, resampled))
            }
        };
        Ok(Part { kind, first, len })
    }

    fn index(&self, position: u64) -> (u64, usize) {
        let (epoch, place) = (position / self.len as u64, (position % self.len as u64) as usize);
        let sample = match &self.kind {
            Kind::Sequential => place,
            Kind::Full { seed, epochs } => {
                epochs.get((epoch, 0), || permutation(*seed, epoch, self.len))[place] as usize
            }
            Kind::Drawn { seed } => Stream::new(*seed, Purpose::DatasetOrder, position).below(self.len as u64) as usize,
            Kind::Blocks(order) => order.sample(epoch, place),
            Kind::Buckets { seed, samples, epochs } => {
                epochs.get((epoch, 0), || samples.epoch(*seed, epoch))[place] as usize
            }
        };
        (epoch, self.first + sample)
    }
}

/// The sum of the parts, if an order can have as many samples.
fn checked_len(mut parts: impl Iterator<Item = usize>) -> Result<usize> {
    let len = parts.try_fold(0usize, |sum, part| sum.checked_add(part)).unwrap_or(usize::MAX);
    if len == 0 || u32::try_from(len).is_err() {
        let detail = format!("{len} samples; an order needs 1 to {} of them", u32::MAX);
        return Err(Error::InvalidArgument { what: "dataset length", detail });
    }
    Ok(len)
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
        let order = permutation(sub_seed(seed, BATCHES), epoch, batches.len());
        order.iter().flat_map(|batch| batches[*batch as usize]).copied().collect()
    }
}

/// Blocks permuted or drawn, samples permuted within groups of them.
#[derive(Debug)]
struct BlockOrder {
    seed: u64,
    /// First sample of each block that has any, and the end of the last.
    starts: Vec<u32>,
    lengths: Vec<u32>,
    len: usize,
    buffer: usize,
    resampled: bool,
    epochs: Cache<Epoch>,
    groups: Cache<Vec<u32>>,
}

/// The blocks of an epoch, and how they are grouped.
#[derive(Debug)]
struct Epoch {
    blocks: Vec<u32>,
    /// For each group: its first block's place in `blocks`, and its first sample's place in the epoch. The end is the
    /// last element.
    groups: Vec<(usize, usize)>,
}

impl BlockOrder {
    fn new(seed: u64, blocks: &[usize], len: usize, buffer: usize, resampled: bool) -> Self {
        let starts = crate::webdataset::starts(blocks.iter().copied());
        let filled = starts.iter().zip(blocks).filter(|(_, length)| **length > 0);
        // All fit, for their sum does.
        let (starts, lengths) = filled.map(|(start, length)| (*start as u32, *length as u32)).unzip();
        let (epochs, groups) = (Cache::default(), Cache::default());
        BlockOrder { seed, starts, lengths, len, buffer, resampled, epochs, groups }
    }

    fn sample(&self, number: u64, place: usize) -> usize {
        let epoch = self.epochs.get((number, 0), || self.epoch(number));
        let group = epoch.groups.partition_point(|(_, first)| *first <= place) - 1;
        let ((block, first), (end, _)) = (epoch.groups[group], epoch.groups[group + 1]);
        let samples = self.groups.get((number, group as u64), || self.group(number, group, &epoch.blocks[block..end]));
        samples[place - first] as usize
    }

    fn epoch(&self, number: u64) -> Epoch {
        let blocks = match self.resampled {
            true => self.drawn(number),
            false => permutation(sub_seed(self.seed, BLOCKS), number, self.starts.len()),
        };
        let mut groups = vec![(0, 0)];
        let (mut samples, mut in_group) = (0, 0);
        for (place, block) in blocks.iter().enumerate() {
            let length = self.lengths[*block as usize] as usize;
            if in_group > 0 && in_group + length > self.buffer {
                groups.push((place, samples));
                in_group = 0;
            }
            in_group += length;
            samples += length;
        }
        groups.push((blocks.len(), samples));
        Epoch { blocks, groups }
    }

    /// Draws blocks until they have enough samples for an epoch.
    fn drawn(&self, epoch: u64) -> Vec<u32> {
        let mut stream = Stream::new(sub_seed(self.seed, DRAWS), Purpose::DatasetOrder, epoch);
        let (mut blocks, mut samples) = (Vec::new(), 0);
        while samples < self.len {
            let block = stream.below(self.starts.len() as u64) as u32;
            samples += self.lengths[block as usize] as usize;
            blocks.push(block);
        }
        blocks
    }

    /// The samples of a group, permuted.
    fn group(&self, epoch: u64, group: usize, blocks: &[u32]) -> Vec<u32> {
        let samples: Vec<u32> = blocks
            .iter()
            .flat_map(|block| {
                let start = self.starts[*block as usize];
                start..start + self.lengths[*block as usize]
            })
            .collect();
        let order = permutation(sub_seed(sub_seed(self.seed, GROUPS), epoch), group as u64, samples.len());
        order.iter().map(|place| samples[*place as usize]).collect()
    }
}

/// Numbers of derived seeds, far from those of a mixture's sources.
const BLOCKS: u64 = 1 << 40;
const GROUPS: u64 = (1 << 40) + 1;
const DRAWS: u64 = (1 << 40) + 2;
const BATCHES: u64 = (1 << 40) + 3;

/// A seed of its own for each use. Epochs of the seed's own permutations count from 0, these from the other end.
fn sub_seed(seed: u64, number: u64) -> u64 {
    Stream::new(seed, Purpose::DatasetOrder, !number).next_u64()
}

/// Number of places of each source in a pattern: the shortest one that is exact, else the longest, rounded so that the
/// largest remainders are rounded up.
fn quotas(weights: &[f64]) -> Result<Vec<u64>> {
    let bad = |detail: String| Err(Error::InvalidArgument { what: "mixture weights", detail });
    let sum: f64 = weights.iter().sum();
    if let Some(weight) = weights.iter().find(|weight| !weight.is_finite() || **weight <= 0.0) {
        return bad(format!("{weight} is not a positive number; remove the source instead"));
    }
    if weights.is_empty() || !sum.is_finite() {
        return bad(format!("{} sources with weights that add up to {sum}", weights.len()));
    }
    let places = |length: usize| weights.iter().map(move |weight| weight / sum * length as f64);
    let exact = |length: &usize| places(*length).all(|share| (share - share.round()).abs() < 1e-9 && share > 0.5);
    let length = (weights.len()..=LONGEST_PATTERN).find(exact).unwrap_or(LONGEST_PATTERN);
    let shares: Vec<f64> = places(length).map(|share| if exact(&length) { share.round() } else { share }).collect();
    let mut quotas: Vec<u64> = shares.iter().map(|share| share.floor() as u64).collect();
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by(|a, b| shares[*b].fract().total_cmp(&shares[*a].fract()).then(a.cmp(b)));
    let missing = (length as u64).saturating_sub(quotas.iter().sum()) as usize;
    by_remainder.iter().take(missing).for_each(|source| quotas[*source] += 1);
    match quotas.iter().position(|quota| *quota == 0) {
        Some(source) => bad(format!("{} of {sum} is less than one sample in {LONGEST_PATTERN}", weights[source])),
        None => Ok(quotas),
    }
}

/// Spreads the sources over a pattern: each place goes to the source that is furthest behind its share.
fn pattern(quotas: &[u64]) -> Vec<(u32, u32)> {
    let length: u64 = quotas.iter().sum();
    let mut taken = vec![0u64; quotas.len()];
    let mut pattern = Vec::with_capacity(length as usize);
    for place in 1..=length {
        let behind = |source: usize| (quotas[source] * place) as i64 - (taken[source] * length) as i64;
        // The first of those that are equally far behind.
        let source = (0..quotas.len()).rev().max_by_key(|source| behind(*source)).unwrap_or(0);
        pattern.push((source as u32, taken[source] as u32));
        taken[source] += 1;
    }
    pattern
}

/// The last few values of a pure function.
#[derive(Debug)]
struct Cache<T>(Mutex<Vec<(CacheKey, Arc<T>)>>);

/// Epoch, and group within it.
type CacheKey = (u64, u64);

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Cache(Mutex::new(Vec::new()))
    }
}

impl<T> Cache<T> {
    fn get(&self, key: CacheKey, value: impl FnOnce() -> T) -> Arc<T> {
        // The cache holds only values of a pure function, so one left by a panicking thread is still right.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = kept.iter().find(|(other, _)| *other == key) {
            return Arc::clone(found);
        }
        let made = Arc::new(value());
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&made)));
        made
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

    fn config(shuffle: Shuffle, resampled: bool) -> OrderConfig {
        OrderConfig { seed: 5, shuffle, resampled }
    }

    fn stream(order: &GlobalOrder, positions: std::ops::Range<u64>) -> Vec<usize> {
        positions.map(|p| order.index(p).1).collect()
    }

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        // Runs resume by it: these numbers are part of the format of checkpoints.
        let full = GlobalOrder::new(7, 10).unwrap();
        assert_eq!(stream(&full, 0..10), permutation(7, 0, 10).iter().map(|i| *i as usize).collect::<Vec<_>>());
        let blocks = GlobalOrder::of(&config(Shuffle::Shards { buffer: 4 }, false), &[2, 2, 3]).unwrap();
        let first = stream(&blocks, 0..7);
        let again = GlobalOrder::of(&config(Shuffle::Shards { buffer: 4 }, false), &[2, 2, 3]).unwrap();
        assert_eq!(first, stream(&again, 0..7));
    }

    #[test]
    fn shuffled_blocks_stay_together_and_every_epoch_is_whole() {
        let blocks = [5, 0, 7, 3, 8, 1, 6, 10];
        let order = GlobalOrder::of(&config(Shuffle::Shards { buffer: 12 }, false), &blocks).unwrap();
        let block_of: Vec<usize> = blocks.iter().enumerate().flat_map(|(b, n)| vec![b; *n]).collect();
        let mut epochs = Vec::new();
        for epoch in 0..4 {
            let seen = stream(&order, epoch * 40..(epoch + 1) * 40);
            let mut sorted = seen.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..40).collect::<Vec<_>>());
            // A block's samples lie within one group: never further apart than the buffer.
            for block in 0..blocks.len() {
                let places: Vec<usize> = (0..40).filter(|p| block_of[seen[*p]] == block).collect();
                assert!(places.last().zip(places.first()).is_none_or(|(last, first)| last - first < 12), "{places:?}");
            }
            epochs.push(seen);
        }
        assert_ne!(epochs[0], epochs[1]);
        let backward = GlobalOrder::of(&config(Shuffle::Shards { buffer: 12 }, false), &blocks).unwrap();
        for p in (0..160u64).rev() {
            assert_eq!(backward.index(p), (p / 40, epochs[p as usize / 40][p as usize % 40]));
        }
    }

    #[test]
    fn resampled_epochs_repeat_some_samples_and_miss_others_but_favour_none() {
        for shuffle in [Shuffle::Full, Shuffle::Shards { buffer: 10 }] {
            let order = GlobalOrder::of(&config(shuffle, true), &[5, 4, 6, 5]).unwrap();
            let mut counts = [0usize; 20];
            for sample in stream(&order, 0..40_000) {
                counts[sample] += 1;
            }
            // 2000 expected of each; drawing whole blocks of 4 to 6 samples spreads them more than single draws.
            assert!(counts.iter().all(|count| (1500..2500).contains(count)), "{shuffle:?}: {counts:?}");
            let distinct = |epoch: u64| {
                stream(&order, 20 * epoch..20 * (epoch + 1))
                    .into_iter()
                    .collect::<std::collections::BTreeSet<_>>()
                    .len()
            };
            assert!((0..10).any(|epoch| distinct(epoch) < 20), "{shuffle:?}");
            let again = GlobalOrder::of(&config(shuffle, true), &[5, 4, 6, 5]).unwrap();
            assert_eq!(stream(&again, 777..800), stream(&order, 777..800));
        }
    }

    #[test]
    fn mixtures_keep_their_proportions_and_their_sources_epochs() {
        let sources = [(vec![30, 30], 0.7), (vec![7], 0.2), (vec![2, 2], 0.1)];
        let order = GlobalOrder::mixture(&config(Shuffle::Full, false), &sources).unwrap();
        assert_eq!(order.len(), 71);
        let part_of = |sample: usize| [60, 67, 71].iter().position(|end| sample < *end).unwrap();
        let seen = stream(&order, 0..1000);
        for window in 0..100 {
            let mut counts = [0; 3];
            seen[10 * window..10 * window + 10].iter().for_each(|sample| counts[part_of(*sample)] += 1);
            assert_eq!(counts, [7, 2, 1]);
        }
        // Each source's own stream visits all of its samples before any comes again.
        for (part, range) in [(0, 0..60), (1, 60..67), (2, 67..71)] {
            let own: Vec<usize> = seen.iter().copied().filter(|sample| part_of(*sample) == part).collect();
            for epoch in own.chunks_exact(range.len()) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                assert_eq!(sorted, range.clone().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn any_weights_make_a_pattern_that_is_never_far_off() {
        for weights in
            [vec![1.0, 1.0], vec![std::f64::consts::PI, 1.0, 0.01], vec![5.0, 3.0, 2.0, 2.0, 1.0, 0.5], vec![2.0]]
        {
            let quotas = quotas(&weights).unwrap();
            let length: u64 = quotas.iter().sum();
            let sum: f64 = weights.iter().sum();
            let pattern = pattern(&quotas);
            let mut counts = vec![0.0; weights.len()];
            for (place, (source, before)) in pattern.iter().enumerate() {
                assert_eq!(f64::from(*before), counts[*source as usize]);
                counts[*source as usize] += 1.0;
                for (count, quota) in counts.iter().zip(&quotas) {
                    let share = *quota as f64 * (place + 1) as f64 / length as f64;
                    assert!((count - share).abs() < weights.len() as f64, "{weights:?}");
                }
            }
            for (quota, weight) in quotas.iter().zip(&weights) {
                assert!((*quota as f64 / length as f64 - weight / sum).abs() <= 1.0 / LONGEST_PATTERN as f64);
            }
        }
    }

    #[test]
    fn senseless_orders_are_refused() {
        let bad = |result: Result<GlobalOrder>| matches!(result, Err(Error::InvalidArgument { .. }));
        assert!(bad(GlobalOrder::of(&config(Shuffle::Shards { buffer: 0 }, false), &[3])));
        assert!(bad(GlobalOrder::of(&config(Shuffle::Sequential, true), &[3])));
        assert!(bad(GlobalOrder::of(&config(Shuffle::Full, false), &[usize::MAX, 2])));
        assert!(bad(GlobalOrder::mixture(&config(Shuffle::Full, false), &[])));
        for weights in [[1.0, 0.0], [1.0, -1.0], [1.0, f64::NAN], [f64::MAX, f64::MAX], [1.0, 1e-9]] {
            let sources = weights.map(|weight| (vec![3], weight));
            assert!(bad(GlobalOrder::mixture(&config(Shuffle::Full, false), &sources)), "{weights:?}");
        }
    }
}
