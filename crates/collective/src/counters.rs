//! What communication costs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sums since the start of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Bytes that this process sent, without those of the transport below.
    pub sent_bytes: u64,
    /// Bytes that it received.
    pub received_bytes: u64,
    /// Calls, and buckets of reductions.
    pub calls: u64,
    /// Time in which something was communicated, in calls or in the background, waiting for others included.
    pub communicating: Duration,
    /// The part of it in which the caller waited.
    pub waiting: Duration,
}

impl Counters {
    /// What was added since an earlier look.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
            calls: self.calls.saturating_sub(earlier.calls),
            communicating: self.communicating.saturating_sub(earlier.communicating),
            waiting: self.waiting.saturating_sub(earlier.waiting),
        }
    }

    /// The share of communication behind which the caller did something else, from 0 to 1. `None` if there was none.
    pub fn overlap(&self) -> Option<f64> {
        let whole = self.communicating.as_secs_f64();
        (whole > 0.0).then(|| (1.0 - self.waiting.as_secs_f64() / whole).clamp(0.0, 1.0))
    }
}

/// Counters that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    sent: AtomicU64,
    received: AtomicU64,
    calls: AtomicU64,
    communicating: AtomicU64,
    waiting: AtomicU64,
}

impl Counting {
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A call has ended, for which the caller waited or not.
    pub(crate) fn called(&self, since: Instant, caller_waited: bool) {
        let nanoseconds = since.elapsed().as_nanos() as u64;
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.communicating.fetch_add(nanoseconds, Ordering::Relaxed);
        if caller_waited {
            self.waiting.fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }

    /// The caller waited for the background.
    pub(crate) fn waited(&self, since: Instant) {
        self.waiting.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Counters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            sent_bytes: load(&self.sent),
            received_bytes: load(&self.received),
            calls: load(&self.calls),
            communicating: Duration::from_nanos(load(&self.communicating)),
            waiting: Duration::from_nanos(load(&self.waiting)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_what_nobody_waited_for() {
        let counters = |communicating, waiting| Counters {
            communicating: Duration::from_millis(communicating),
            waiting: Duration::from_millis(waiting),
            ..Counters::default()
        };
        assert_eq!(counters(0, 0).overlap(), None);
        assert_eq!(counters(100, 25).overlap(), Some(0.75));
        assert_eq!(counters(100, 120).overlap(), Some(0.0));
        assert_eq!(counters(100, 70).since(&counters(40, 50)), counters(60, 20));
    }
}
