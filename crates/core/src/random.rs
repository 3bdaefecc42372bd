//! Counter-based random numbers: every number is a function of (seed, purpose, index, position), so a run can be
//! resumed at any step and cut over any number of workers without a generator state to carry along.

use std::f64::consts::TAU;

/// Philox4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#[derive(Clone, Copy, Debug)]
pub struct Philox4x32 {
    /// The key.
    pub key: [u32; 2],
}

impl Philox4x32 {
    /// The four words that belong to `counter`.
    #[inline]
    pub fn block(self, counter: [u32; 4]) -> [u32; 4] {
        philox4x32_10(counter, self.key)
    }
}

/// Philox4x32-10: encrypts `counter` with `key`.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..10 {
        let (p0, p1) = (0xD251_1F53u64 * c[0] as u64, 0xCD9E_8D57u64 * c[2] as u64);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// What random numbers are for. Streams of different purposes are independent. The numbers are part of the format of
/// checkpoints: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Order of a data set in an epoch.
    DatasetOrder = 0,
    /// Noise added to training examples.
    Noise = 1,
    /// Diffusion times of training examples.
    Timestep = 2,
    /// Which captions are dropped for classifier-free guidance.
    CaptionDropout = 3,
    /// Sampling from the posterior of an autoencoder.
    LatentPosterior = 4,
    /// Initial weights.
    WeightInit = 5,
    /// The noise that sampling starts from.
    InitialLatent = 6,
    /// Random crops, flips and the like.
    Augmentation = 7,
    /// Choices made in evaluation.
    Evaluation = 8,
    /// Which states training drops.
    Dropout = 9,
    /// Which of several captions a sample gets.
    CaptionChoice = 10,
    /// Order of a caption's tags, and which are left out.
    CaptionTags = 11,
    /// The part of a training example's noise that is the same at all its pixels.
    NoiseOffset = 12,
    /// The content of samples that are made up.
    Synthetic = 13,
    /// What AutoAugment or RandAugment does.
    RandAugment = 15,
    /// How samples of a batch are mixed with each other.
    Mixing = 16,
    /// Which branches of a network training leaves out.
    StochasticDepth = 17,
    /// By how much colours are jittered.
    ColourJitter = 18,
}

/// An endless sequence of random numbers: Philox with the key `seed` and the counter (block, index low, index high,
/// purpose).
#[derive(Clone, Debug)]
pub struct Stream {
    generator: Philox4x32,
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
    spare: Option<f32>,
}

impl Stream {
    /// The stream number `index` of a purpose; the index is what the numbers belong to: a step, an example, a weight.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        Self {
            generator: Philox4x32 { key: [seed as u32, (seed >> 32) as u32] },
            counter: [0, index as u32, (index >> 32) as u32, purpose as u32],
            block: [0; 4],
            used: 4,
            spare: None,
        }
    }

    /// The same stream behind its first `words` words of 32 bits.
    ///
    /// # Panics
    ///
    /// Beyond 2^34 words.
    #[must_use]
    pub fn skipping(mut self, words: u64) -> Self {
        self.counter[0] = u32::try_from(words / 4).expect("a random stream has at most 2^34 words");
        (self.used, self.spare) = (4, None);
        for _ in 0..words % 4 {
            self.next_u32();
        }
        self
    }

    /// 32 random bits.
    ///
    /// # Panics
    ///
    /// After 2^34 words: a stream is not meant to be that long.
    #[inline]
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = self.generator.block(self.counter);
            self.counter[0] = self.counter[0].checked_add(1).expect("a random stream has at most 2^34 words");
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// 64 random bits, the low word first.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let low = self.next_u32() as u64;
        low | (self.next_u32() as u64) << 32
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    #[inline]
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    #[inline]
    pub fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Uniform in `0..n`, without bias (Lemire, "Fast random integer generation in an interval", 2019).
    ///
    /// # Panics
    ///
    /// If `n` is zero.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below: the range is empty");
        let mut product = self.next_u64() as u128 * n as u128;
        if (product as u64) < n {
            let reject = n.wrapping_neg() % n;
            while (product as u64) < reject {
                product = self.next_u64() as u128 * n as u128;
            }
        }
        (product >> 64) as u64
    }

    /// Standard normal: Box-Muller in f64. Numbers come in pairs, the second is kept for the next call.
    #[inline]
    pub fn normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // (0, 1], so that the logarithm is finite.
        let u = (self.next_u32() as f64 + 1.0) * (1.0 / 4_294_967_296.0);
        let v = self.next_u32() as f64 * (TAU / 4_294_967_296.0);
        let radius = (-2.0 * u.ln()).sqrt();
        let (sin, cos) = v.sin_cos();
        self.spare = Some((radius * sin) as f32);
        (radius * cos) as f32
    }

    /// Fills a slice with what repeated calls of [`Stream::normal`] return.
    pub fn fill_normal(&mut self, values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = self.normal());
    }

    /// Fills a slice with what repeated calls of [`Stream::uniform`] return.
    pub fn fill_uniform(&mut self, values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = self.uniform());
    }
}

/// A random order of `0..n`: Fisher-Yates with the stream (`seed`, [`Purpose::DatasetOrder`], `epoch`).
pub fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    let n = u32::try_from(n).expect("permutation: at most 2^32 - 1 things");
    let mut stream = Stream::new(seed, Purpose::DatasetOrder, epoch);
    let mut order: Vec<u32> = (0..n).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, stream.below(i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // Random123 1.14, tests/kat_vectors.
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        let answer = [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1];
        assert_eq!(philox4x32_10(pi, [0xa4093822, 0x299f31d0]), answer);
    }

    #[test]
    fn normal_moments() {
        let mut values = vec![0.0; 400_000];
        Stream::new(7, Purpose::Noise, 3).fill_normal(&mut values);
        let n = values.len() as f64;
        let moment = |p: i32| values.iter().map(|&x| (x as f64).powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.006 && (moment(2) - 1.0).abs() < 0.01);
        assert!(moment(3).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.06);
    }

    #[test]
    fn uniform_stays_below_one_and_is_level() {
        let mut stream = Stream::new(1, Purpose::Evaluation, 0);
        let mut bins = [0u32; 16];
        for _ in 0..160_000 {
            let x = stream.uniform();
            assert!((0.0..1.0).contains(&x));
            bins[(x * 16.0) as usize] += 1;
            assert!((0.0..1.0).contains(&stream.uniform_f64()));
        }
        assert!(bins.iter().all(|&n| (9_500..10_500).contains(&n)), "{bins:?}");
    }

    #[test]
    fn below_reaches_everything_and_nothing_else() {
        let mut stream = Stream::new(1, Purpose::Timestep, 5);
        let mut hits = [0u32; 7];
        for _ in 0..70_000 {
            hits[stream.below(7) as usize] += 1;
        }
        assert!(hits.iter().all(|&n| (9_500..10_500).contains(&n)), "{hits:?}");
        assert_eq!(stream.below(1), 0);
        assert!(stream.below(u64::MAX) < u64::MAX);
    }

    #[test]
    fn streams_differ_by_each_part_of_their_name() {
        let first = |seed, purpose, index| Stream::new(seed, purpose, index).next_u64();
        let base = first(1, Purpose::Noise, 1);
        assert_eq!(base, first(1, Purpose::Noise, 1));
        for other in [first(2, Purpose::Noise, 1), first(1 << 40, Purpose::Noise, 1), first(1, Purpose::Timestep, 1)] {
            assert_ne!(base, other);
        }
        assert_ne!(base, first(1, Purpose::Noise, 1 << 32));
    }

    #[test]
    fn a_stream_goes_on_behind_what_is_skipped() {
        for words in [0u64, 1, 3, 4, 5, 17, 400] {
            let mut whole = Stream::new(1, Purpose::Dropout, 2);
            for _ in 0..words {
                whole.next_u32();
            }
            let mut skipped = Stream::new(1, Purpose::Dropout, 2).skipping(words);
            assert!((0..9).all(|_| whole.next_u32() == skipped.next_u32()), "{words}");
        }
    }

    #[test]
    fn permutations() {
        for n in [0, 1, 2, 1000] {
            let order = permutation(3, 1, n);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n as u32));
            assert_eq!(order, permutation(3, 1, n));
        }
        assert_ne!(permutation(3, 1, 100), permutation(3, 2, 100));
    }
}
