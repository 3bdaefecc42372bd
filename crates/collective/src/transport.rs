//! Messages from one process to another, on which everything else is built.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::failure::{Cause, Failure, Health, locked};

/// Messages of one channel come in the order in which they were sent; channels do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Calls of [`crate::Collective`].
    Calls = 0,
    /// Reductions in the background.
    Reductions = 1,
}

impl Channel {
    pub(crate) const ALL: [Self; 2] = [Self::Calls, Self::Reductions];

    pub(crate) fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// How long is waited for what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// For all processes to come together at the start.
    pub meeting: Duration,
    /// Between two signs of life of a process.
    pub heartbeat: Duration,
    /// For a sign of life. The run ends if a process is silent for longer.
    pub silence: Duration,
    /// For a process that lives, but does not make the call that the others make.
    pub call: Duration,
}

impl Default for Patience {
    /// Five minutes to come together, six seconds without a sign of life, half an hour for a call.
    fn default() -> Self {
        Self {
            meeting: Duration::from_secs(300),
            heartbeat: Duration::from_secs(1),
            silence: Duration::from_secs(6),
            call: Duration::from_secs(1800),
        }
    }
}

/// Time for the word of rank 0, which watches everybody, after a connection broke: who breaks off because another
/// died must not be taken for the cause.
pub(crate) const VERDICT: Duration = Duration::from_secs(1);

/// Sends and receives between the processes of a run.
///
/// A message that is sent is on its way: sending may wait for the receiver's machine, but never for its program to ask
/// for the message. So a process may first send and then receive, whatever the others do.
pub trait Transport: Debug + Send + Sync {
    /// Our number among the processes, from 0.
    fn rank(&self) -> usize;

    /// The names of the hosts of all processes.
    fn hosts(&self) -> &[String];

    /// Sends a message.
    ///
    /// # Errors
    /// The [`Failure`] that ended the run.
    fn send(&self, to: usize, channel: Channel, message: Vec<u8>) -> Result<(), Failure>;

    /// Waits for the next message of a process.
    ///
    /// # Errors
    /// The [`Failure`] that ended the run.
    fn receive(&self, from: usize, channel: Channel) -> Result<Vec<u8>, Failure>;

    /// Whether the run still works.
    fn health(&self) -> &Health;

    /// Ends the run of all processes, unless it has ended before. Returns what ended it.
    fn raise(&self, failure: Failure) -> Failure;

    /// The number of processes.
    fn world(&self) -> usize {
        self.hosts().len()
    }

    /// Empty memory for a message of this length.
    fn buffer(&self, bytes: usize) -> Vec<u8> {
        Vec::with_capacity(bytes)
    }

    /// Takes the memory of a message back that was read.
    fn recycle(&self, message: Vec<u8>) {
        drop(message);
    }

    /// The number that a process has in the whole run, if these are some of its processes; for messages.
    fn in_run(&self, rank: usize) -> usize {
        rank
    }

    /// The names of the hosts of all processes of the run.
    fn hosts_of_run(&self) -> &[String] {
        self.hosts()
    }

    /// A failure of a process.
    fn failure_of(&self, rank: usize, cause: Cause, detail: String) -> Failure {
        let rank = self.in_run(rank);
        let host = self.hosts_of_run().get(rank).cloned().unwrap_or_default();
        Failure { rank, host, cause, detail }
    }
}

/// Messages that have come and are not yet asked for.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    content: Mutex<Content>,
    arrived: Condvar,
    pub(crate) pool: Pool,
}

/// Memory of messages that is used again: new memory costs more than filling it, where the system clears it page by page.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// Messages that are kept.
    const KEPT: usize = 16;
    /// What is shorter is not worth it.
    const SHORT: usize = 64 << 10;

    /// Memory for at least so many bytes, with whatever is in it.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut kept = locked(&self.0);
        let fitting = (0..kept.len()).filter(|i| kept[*i].capacity() >= bytes && bytes >= Self::SHORT);
        match fitting.min_by_key(|i| kept[*i].capacity()) {
            Some(i) => kept.swap_remove(i),
            None => Vec::with_capacity(bytes),
        }
    }

    pub(crate) fn give(&self, message: Vec<u8>) {
        let mut kept = locked(&self.0);
        if message.capacity() >= Self::SHORT && kept.len() < Self::KEPT {
            kept.push(message);
        }
    }
}

#[derive(Debug, Default)]
struct Content {
    messages: HashMap<(usize, Channel), VecDeque<Vec<u8>>>,
    /// Who sends no more, since when and why.
    gone: HashMap<usize, (Instant, Cause, String)>,
}

/// Why there is no message.
pub(crate) enum Missing {
    /// The run has failed.
    Failed(Failure),
    /// The sender has failed.
    Sender(Cause, String),
}

impl Inbox {
    /// Puts a message in.
    pub(crate) fn put(&self, from: usize, channel: Channel, message: Vec<u8>) {
        locked(&self.content).messages.entry((from, channel)).or_default().push_back(message);
        self.arrived.notify_all();
    }

    /// Notes that nothing more will come from a process. Its good end counts more than a broken connection.
    pub(crate) fn gone(&self, from: usize, cause: Cause, detail: String) {
        let mut content = locked(&self.content);
        let known = content.gone.get(&from).is_some_and(|(_, known, _)| *known == cause || cause == Cause::Died);
        if !known {
            content.gone.insert(from, (Instant::now(), cause, detail));
        }
        drop(content);
        self.arrived.notify_all();
    }

    /// Wakes everybody who waits, to look at the health.
    pub(crate) fn wake(&self) {
        self.arrived.notify_all();
    }

    /// The next message, if it has come.
    pub(crate) fn try_take(&self, from: usize, channel: Channel) -> Option<Vec<u8>> {
        locked(&self.content).messages.get_mut(&(from, channel))?.pop_front()
    }

    /// Why no message will come, if that is so.
    pub(crate) fn missing(&self, from: usize, health: &Health) -> Option<Missing> {
        if let Some(failure) = health.failure() {
            return Some(Missing::Failed(failure.clone()));
        }
        let content = locked(&self.content);
        let (since, cause, detail) = content.gone.get(&from)?;
        (since.elapsed() >= VERDICT).then(|| Missing::Sender(*cause, detail.clone()))
    }

    /// Waits for the next message, for as long as the sender is there, at most for the time given.
    pub(crate) fn take(
        &self,
        from: usize,
        channel: Channel,
        health: &Health,
        patience: Duration,
    ) -> Result<Vec<u8>, Missing> {
        let started = Instant::now();
        loop {
            if let Some(message) = self.try_take(from, channel) {
                return Ok(message);
            }
            if let Some(missing) = self.missing(from, health) {
                return Err(missing);
            }
            if started.elapsed() > patience {
                return Err(Missing::Sender(Cause::Stuck, waited(patience)));
            }
            self.nap(from, channel);
        }
    }

    /// Waits a moment for news.
    fn nap(&self, from: usize, channel: Channel) {
        let content = locked(&self.content);
        if content.messages.get(&(from, channel)).is_none_or(VecDeque::is_empty) {
            let moment = Duration::from_millis(50);
            drop(self.arrived.wait_timeout(content, moment).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// What is said of a process that does not make its call.
pub(crate) fn waited(patience: Duration) -> String {
    format!("it lives, but its message did not come within {} s", patience.as_secs_f32())
}
