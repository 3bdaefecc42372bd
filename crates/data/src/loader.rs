//! Background threads that decode samples and deliver batches strictly in order.
//!
//! # Order
//!
//! With a global batch of `G` and `W` ranks, batch `k` is the positions `start + kG .. start + (k+1)G` of the stream
//! (see [`crate::order`]), and rank `r` gets the `r`-th of `W` equal, contiguous parts of it. Laying the ranks' parts
//! one after the other gives the same stream for every `W`, and starting at any position gives its rest.
//!
//! # Corrupt samples
//!
//! Under [`OnError::Skip`], if the sample at position `p` cannot be decoded, the sample at position `p + 1` is decoded
//! in its place, then `p + 2`, and so on; the decoder is still told `p`. The item of position `p` therefore remains a
//! pure function of dataset, order and `p`: nothing shifts, and no rank has to know what another one skipped. (Position
//! `p + 1` delivers its own sample too, so that one is seen twice in this epoch.) If batches have buckets, the next
//! position is sought within the batch, so that its images are of one size. Each skip is logged and counted.
//! Errors of whole shards (truncated, unreadable) are never skipped.
//!
//! # Sources on other machines
//!
//! If samples are fetched ([`Source::read_ahead`]), one more thread walks along the stream in front of the others and
//! has the shards fetched that come next.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::{BoxError, Error, GlobalOrder, Result, SampleRef, Source};

/// Samples tried in the place of a corrupt one before the loader gives up.
const MOST_TRIES: u64 = 64;

/// Samples by which the fetching thread may be ahead.
const MOST_AHEAD: u64 = 1 << 16;

/// Skips of which the details are kept; all are counted and logged.
const KEPT_SKIPS: usize = 1000;

/// Treatment of a sample that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Deliver the error.
    #[default]
    Fail,
    /// Take the next position's sample in its place, and count.
    Skip,
}

/// Settings of a [`Loader`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Samples in a batch over all ranks; a multiple of `world`.
    pub global_batch: usize,
    /// Number of this process among `world`.
    pub rank: usize,
    /// Number of processes that share the stream.
    pub world: usize,
    /// First position of the stream (samples seen before).
    pub start: u64,
    /// Position at which the stream ends, or `None` for an endless one. The last batch may be short; ranks whose part
    /// of it is empty get an empty batch, so that all ranks see the same number of batches.
    pub end: Option<u64>,
    /// Decoding threads, at least 1.
    pub threads: usize,
    /// Batches that may wait finished or be in work, at least 1.
    pub prefetch: usize,
    /// Treatment of corrupt samples.
    pub on_error: OnError,
}

impl LoaderConfig {
    /// One process, one thread, two batches ahead, endless from position 0, failing on corrupt samples.
    pub fn new(global_batch: usize) -> Self {
        LoaderConfig {
            global_batch,
            rank: 0,
            world: 1,
            start: 0,
            end: None,
            threads: 1,
            prefetch: 2,
            on_error: OnError::Fail,
        }
    }

    fn check(&self) -> Result<()> {
        let bad = |what: &'static str, detail: String| Err(Error::InvalidArgument { what, detail });
        if self.world == 0 || self.rank >= self.world {
            return bad("rank", format!("rank {} of {}", self.rank, self.world));
        }
        if self.global_batch == 0 || !self.global_batch.is_multiple_of(self.world) {
            return bad(
                "global batch",
                format!("{} samples on {} ranks; use a multiple", self.global_batch, self.world),
            );
        }
        if self.threads == 0 || self.prefetch == 0 {
            return bad("loader threads or prefetch", "must be at least 1".to_owned());
        }
        Ok(())
    }

    /// Positions of this rank's part of batch `number`; `None` past the end of the stream.
    fn positions(&self, number: u64) -> Option<std::ops::Range<u64>> {
        let local = (self.global_batch / self.world) as u64;
        let global = self.start.checked_add(number.checked_mul(self.global_batch as u64)?)?;
        let end = self.end.unwrap_or(u64::MAX);
        if global >= end {
            return None;
        }
        let first = global.checked_add(local * self.rank as u64)?.min(end);
        Some(first..first.checked_add(local)?.min(end))
    }
}

/// A batch: the decoded items of this rank's positions, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// Stream position of `items[0]`; item `i` belongs to position `first_position + i`.
    pub first_position: u64,
    /// The decoded samples.
    pub items: Vec<T>,
}

impl<T> Batch<T> {
    /// Its items in batches of `size`, in order; the last one may be short.
    pub fn split(self, size: usize) -> Vec<Self> {
        let (mut first_position, mut items) = (self.first_position, self.items.into_iter());
        let mut parts = Vec::new();
        while items.len() > 0 {
            let part: Vec<T> = items.by_ref().take(size.max(1)).collect();
            let behind = first_position + part.len() as u64;
            parts.push(Self { first_position, items: part });
            first_position = behind;
        }
        parts
    }
}

/// A sample that was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Position whose sample it was, or was to replace.
    pub position: u64,
    /// Key of the sample, or its number if it could not be read.
    pub key: String,
    /// The error for which it was skipped.
    pub error: String,
}

/// An iterator over batches, filled by background threads.
///
/// An error is delivered in its batch's place and ends the stream. Dropping the loader stops the threads after the
/// sample that each has in work.
///
/// ```
/// use std::sync::Arc;
///
/// use calotype_data::{
///     Dataset, GlobalOrder, Loader, LoaderConfig, OrderConfig, Sample, SampleRef, ShardLimits, ShardWriter, Source,
/// };
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let mut writer = ShardWriter::create(folder.path(), "words", ShardLimits::default())?;
/// for key in ["a", "b", "c", "d"] {
///     writer.write(&Sample::new(key).with("txt", format!("word {key}")))?;
/// }
/// writer.finish()?;
///
/// let dataset = Arc::new(Dataset::open(folder.path())?);
/// let order = dataset.order(&OrderConfig::default())?;
/// let config = LoaderConfig { end: Some(4), threads: 2, ..LoaderConfig::new(2) };
/// // The position stands for the randomness that decoding may need.
/// let decode = |_position: u64, sample: &SampleRef<'_>| sample.text("txt").map(str::len);
/// for batch in Loader::new(dataset, Arc::new(order), config, decode)? {
///     assert_eq!(batch?.items, [6, 6]);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Loader<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Signalled when a batch is finished.
    finished: Condvar,
    /// Signalled when a batch was taken, or the loader stops.
    room: Condvar,
}

struct State<T> {
    /// Batch that the next free thread takes up.
    next_started: u64,
    /// Batch that the consumer gets next.
    next_delivered: u64,
    ready: BTreeMap<u64, Made<T>>,
    stop: bool,
    skipped: u64,
    skips: Vec<Skipped>,
}

/// What a thread made of a batch's number.
struct Made<T> {
    batch: Option<Result<Batch<T>>>,
    skips: Vec<Skipped>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Decoders run outside of the lock, so a panic cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// State of one worker thread.
struct Worker<T, S: ?Sized, F> {
    shared: Arc<Shared<T>>,
    dataset: Arc<S>,
    order: Arc<GlobalOrder>,
    config: LoaderConfig,
    decode: Arc<F>,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts the threads. `decode(position, sample)` makes an item; it must be a pure function of its arguments for
    /// runs to be reproducible (seed random augmentation by the position).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if settings make no sense or the order is for another number of samples,
    /// [`Error::Io`] if a thread cannot be started.
    pub fn new<S, F, E>(dataset: Arc<S>, order: Arc<GlobalOrder>, config: LoaderConfig, decode: F) -> Result<Self>
    where
        S: Source + ?Sized + 'static,
        F: Fn(u64, &SampleRef<'_>) -> std::result::Result<T, E> + Send + Sync + 'static,
        E: Into<BoxError>,
    {
        config.check()?;
        if order.samples() != dataset.len() {
            let detail = format!("order of {} samples, dataset of {}", order.samples(), dataset.len());
            return Err(Error::InvalidArgument { what: "loader order", detail });
        }
        let state = State {
            next_started: 0,
            next_delivered: 0,
            ready: BTreeMap::new(),
            stop: false,
            skipped: 0,
            skips: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), finished: Condvar::new(), room: Condvar::new() });
        let decode = Arc::new(move |position: u64, sample: &SampleRef<'_>| decode(position, sample).map_err(E::into));
        let mut loader = Loader { shared: Arc::clone(&shared), threads: Vec::new() };
        for number in 0..config.threads {
            let worker = Worker {
                shared: Arc::clone(&shared),
                dataset: Arc::clone(&dataset),
                order: Arc::clone(&order),
                config: config.clone(),
                decode: Arc::clone(&decode),
            };
            let thread = std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || worker.run())
                .map_err(Error::io("start loader thread for", Path::new(&dataset.name())))?;
            loader.threads.push(thread);
        }
        if dataset.read_ahead() > 0 {
            let ahead = ReadAhead { shared, dataset: Arc::clone(&dataset), order, config };
            // Not waited for: a fetch may take long, and its result is kept in the cache whoever asks for it.
            std::thread::Builder::new()
                .name("loader-ahead".to_owned())
                .spawn(move || ahead.run())
                .map_err(Error::io("start read-ahead thread for", Path::new(&dataset.name())))?;
        }
        Ok(loader)
    }

    /// Number of samples skipped so far in delivered batches.
    pub fn skipped(&self) -> u64 {
        self.shared.lock().skipped
    }

    /// The first thousand skips of delivered batches.
    pub fn skips(&self) -> Vec<Skipped> {
        self.shared.lock().skips.clone()
    }
}

impl<T> Iterator for Loader<T> {
    type Item = Result<Batch<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.shared.lock();
        if state.stop {
            return None;
        }
        let number = state.next_delivered;
        let Made { batch, skips } = loop {
            match state.ready.remove(&number) {
                Some(made) => break made,
                None => state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.next_delivered += 1;
        state.skipped += skips.len() as u64;
        let room = KEPT_SKIPS - state.skips.len();
        state.skips.extend(skips.into_iter().take(room));
        if !matches!(batch, Some(Ok(_))) {
            state.stop = true;
        }
        drop(state);
        self.shared.room.notify_all();
        batch
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // A worker catches its decoder's panics and delivers them, so there is nothing left to learn here.
            let _ = thread.join();
        }
    }
}

impl<T, S, F> Worker<T, S, F>
where
    S: Source + ?Sized,
    F: Fn(u64, &SampleRef<'_>) -> std::result::Result<T, BoxError>,
{
    fn run(&self) {
        while let Some(number) = self.take_number() {
            // The closure only reads shared data, or goes through the lock, so a panic leaves nothing broken behind.
            let mut skips = Vec::new();
            let made = catch_unwind(AssertUnwindSafe(|| self.batch(number, &mut skips)));
            let batch = made.unwrap_or_else(|panic| Some(Err(panicked(panic.as_ref()))));
            let last = !matches!(batch, Some(Ok(_)));
            self.shared.lock().ready.insert(number, Made { batch, skips });
            self.shared.finished.notify_all();
            if last {
                return;
            }
        }
    }

    /// Waits for room, and takes up the next batch; `None` when the loader stops.
    fn take_number(&self) -> Option<u64> {
        let mut state = self.shared.lock();
        while !state.stop && state.next_started >= state.next_delivered + self.config.prefetch as u64 {
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            return None;
        }
        state.next_started += 1;
        Some(state.next_started - 1)
    }

    /// Batch `number`; `None` past the end of the stream, or when the loader stops meanwhile.
    fn batch(&self, number: u64, skips: &mut Vec<Skipped>) -> Option<Result<Batch<T>>> {
        let positions = self.config.positions(number)?;
        let first_position = positions.start;
        let mut items = Vec::with_capacity((positions.end - positions.start) as usize);
        for position in positions {
            if self.shared.lock().stop {
                return None;
            }
            match self.item(position, skips) {
                Ok(item) => items.push(item),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(Batch { first_position, items }))
    }

    /// The item of position `position`, by the rule at the top of this file.
    fn item(&self, position: u64, skips: &mut Vec<Skipped>) -> Result<T> {
        let tries = match self.config.on_error {
            OnError::Fail => 1,
            OnError::Skip => MOST_TRIES.min(self.dataset.len() as u64),
        };
        let mut last = String::new();
        for step in 0..tries {
            let index = self.order.replacement(position, step);
            let (key, error) = match self.decoded(position, index)? {
                Ok(item) => return Ok(item),
                Err(failed) => failed,
            };
            if self.config.on_error == OnError::Fail {
                return Err(error);
            }
            last = match error {
                Error::Decode { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            tracing::warn!(position, %key, error = %last, "corrupt sample skipped");
            skips.push(Skipped { position, key, error: last.clone() });
        }
        Err(Error::TooManyBadSamples { position, tries, last })
    }

    /// Sample `index` as the item of `position`; the inner error, with the sample's key, is of that sample alone.
    fn decoded(&self, position: u64, index: usize) -> Result<std::result::Result<T, (String, Error)>> {
        let held = match self.dataset.get(index) {
            Ok(held) => held,
            Err(error) if error.concerns_one_sample() => return Ok(Err((format!("#{index}"), error))),
            Err(error) => return Err(error),
        };
        let sample = held.sample();
        Ok((self.decode)(position, &sample).map_err(|source| {
            let key = sample.key().to_owned();
            (key.clone(), Error::Decode { file: self.dataset.file_of(index), position, key, source })
        }))
    }
}

/// The thread that prepares the samples that come, for sources that fetch them.
struct ReadAhead<T, S: ?Sized> {
    shared: Arc<Shared<T>>,
    dataset: Arc<S>,
    order: Arc<GlobalOrder>,
    config: LoaderConfig,
}

impl<T, S: Source + ?Sized> ReadAhead<T, S> {
    fn run(&self) {
        // Batches for which something was fetched and that are not delivered yet.
        let mut fetched = VecDeque::new();
        for number in 0.. {
            let Some(positions) = self.config.positions(number) else { return };
            for position in positions {
                if !self.wait_for_room(number, &mut fetched) {
                    return;
                }
                let (_, index) = self.order.index(position);
                match self.dataset.prepare(index) {
                    Ok(true) => fetched.push_back(number),
                    Ok(false) => {}
                    Err(error) if error.concerns_one_sample() => {}
                    // Whoever needs the sample comes upon the error too, and delivers it.
                    Err(_) => return,
                }
            }
        }
    }

    /// Waits until batch `number` is near enough; false when the loader stops.
    fn wait_for_room(&self, number: u64, fetched: &mut VecDeque<u64>) -> bool {
        let local = (self.config.global_batch / self.config.world) as u64;
        let farthest = (MOST_AHEAD / local.max(1)).max(self.config.prefetch as u64);
        let mut state = self.shared.lock();
        loop {
            if state.stop {
                return false;
            }
            while fetched.front().is_some_and(|number| *number < state.next_delivered) {
                fetched.pop_front();
            }
            if fetched.len() < self.dataset.read_ahead() && number < state.next_delivered + farthest {
                return true;
            }
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let message = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Error::LoaderPanicked { message: message.unwrap_or_else(|| "(no message)".to_owned()) }
}
