//! Bounds on what is in memory and under way at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Unit of the budget, in bytes.
const UNIT: u64 = 1024;

/// Bodies that may outgrow their reservation at the same time.
const LONG_BODIES: usize = 2;

/// The bytes that bodies may take, from the first byte off the network until the image is in its shard.
///
/// Each body reserves once, before it is read, so that nobody who holds a part waits for more of the same: that could
/// wait forever. A body of unknown length that outgrows its reservation takes one of a few places, each of which
/// stands for the longest body allowed.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    units: u64,
    long: Arc<Semaphore>,
    held: Arc<Gauge>,
}

/// Bytes in use now, and at most so far.
#[derive(Debug, Default)]
struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Gauge {
    fn add(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }
}

/// A reservation, given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    _bytes: OwnedSemaphorePermit,
    long: Option<OwnedSemaphorePermit>,
    gauge: Arc<Gauge>,
    counted: u64,
}

impl Budget {
    pub fn new(bytes: u64) -> Self {
        let units = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u64);
        Budget {
            bytes: Arc::new(Semaphore::new(units as usize)),
            units,
            long: Arc::new(Semaphore::new(LONG_BODIES)),
            held: Arc::default(),
        }
    }

    /// Waits until `bytes` are free (or everything, if that is less) and reserves them.
    pub async fn take(&self, bytes: u64) -> Result<Held, AcquireError> {
        let units = bytes.div_ceil(UNIT).clamp(1, self.units) as u32;
        let permit = Arc::clone(&self.bytes).acquire_many_owned(units).await?;
        self.held.add(bytes);
        Ok(Held { _bytes: permit, long: None, gauge: Arc::clone(&self.held), counted: bytes })
    }

    /// Waits for a place among the bodies that may grow up to `longest` bytes.
    pub async fn let_grow(&self, held: &mut Held, longest: u64) -> Result<(), AcquireError> {
        if held.long.is_none() {
            held.long = Some(Arc::clone(&self.long).acquire_owned().await?);
            held.gauge.add(longest);
            held.counted += longest;
        }
        Ok(())
    }

    /// The most bytes that were reserved at once.
    pub fn peak(&self) -> u64 {
        self.held.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.now.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// Limits of requests under way per host.
#[derive(Debug)]
pub(super) struct Hosts {
    limit: usize,
    known: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Hosts {
    pub fn new(limit: usize) -> Self {
        Hosts { limit, known: Mutex::default() }
    }

    /// Waits for a place at `host`.
    pub async fn enter(&self, host: String) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.of(host).acquire_owned().await
    }

    fn of(&self, host: String) -> Arc<Semaphore> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= 4096 {
            // Hosts that nobody is at or waits for are forgotten: a list may name millions.
            known.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        Arc::clone(known.entry(host).or_insert_with(|| Arc::new(Semaphore::new(self.limit))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_bounded_and_given_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let budget = Budget::new(10 * UNIT);
            let first = budget.take(6 * UNIT).await.unwrap();
            let mut second = std::pin::pin!(budget.take(6 * UNIT));
            let waits =
                std::future::poll_fn(|context| std::task::Poll::Ready(second.as_mut().poll(context).is_pending()));
            assert!(waits.await);
            drop(first);
            let mut second = second.await.unwrap();
            budget.let_grow(&mut second, 100 * UNIT).await.unwrap();
            assert_eq!(budget.peak(), 106 * UNIT);
            drop(second);
            // More than there is takes everything.
            budget.take(1000 * UNIT).await.unwrap();
            assert_eq!(budget.held.now.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn hosts_without_guests_are_forgotten() {
        let hosts = Hosts::new(1);
        let kept = hosts.of("kept".to_owned());
        for index in 0..10_000 {
            hosts.of(index.to_string());
        }
        assert!(hosts.known.lock().unwrap().len() <= 4096);
        assert!(Arc::ptr_eq(&kept, &hosts.of("kept".to_owned())));
    }
}
