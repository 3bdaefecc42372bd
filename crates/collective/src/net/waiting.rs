//! What a process tells while it waits for others.

use std::time::{Duration, Instant};

/// Before the first word; then each time twice as long.
const FIRST: Duration = Duration::from_secs(5);

/// Says now and then what is waited for, so that nobody looks at a program that is silent for minutes.
#[derive(Debug)]
pub(crate) struct Waiting {
    started: Instant,
    next: Duration,
    /// Of many processes of a host, one speaks.
    speaks: bool,
}

impl Waiting {
    pub(crate) fn new(speaks: bool) -> Self {
        Self { started: Instant::now(), next: FIRST, speaks }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says what is waited for, if it is time to.
    pub(crate) fn say(&mut self, what: impl FnOnce() -> String) {
        if self.is_time(self.elapsed()) {
            tracing::info!("{}", what());
        }
    }

    fn is_time(&mut self, elapsed: Duration) -> bool {
        let due = self.speaks && elapsed >= self.next;
        if due {
            self.next *= 2;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_less_and_less_often() {
        let mut waiting = Waiting::new(true);
        let said: Vec<u64> = (0..300).filter(|second| waiting.is_time(Duration::from_secs(*second))).collect();
        assert_eq!(said, [5, 10, 20, 40, 80, 160]);
        let mut silent = Waiting::new(false);
        assert!(!silent.is_time(Duration::from_secs(300)));
    }
}
