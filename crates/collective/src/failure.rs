//! How a run of several processes ends when one of them fails.

use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// How a process failed the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its connections broke.
    Died,
    /// Nothing was heard of it for too long.
    Silent,
    /// It lives, but does not take part in a call.
    Stuck,
    /// It ended in good order while others still needed it.
    Left,
    /// It asked to end the run.
    Aborted,
    /// It makes another call than the others, or one with other sizes.
    Disagrees,
}

impl Cause {
    const ALL: [Self; 6] = [Self::Died, Self::Silent, Self::Stuck, Self::Left, Self::Aborted, Self::Disagrees];

    fn words(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Silent => "is silent",
            Self::Stuck => "does not take part",
            Self::Left => "ended too early",
            Self::Aborted => "gave up",
            Self::Disagrees => "makes another call",
        }
    }
}

/// The process that failed first. All others end because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its number among the processes.
    pub rank: usize,
    /// The name of its host.
    pub host: String,
    /// How it failed.
    pub cause: Cause,
    /// What was seen, or what it said.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, host, cause, detail } = self;
        write!(formatter, "rank {rank} on {host} {}: {detail}", cause.words())
    }
}

impl Failure {
    /// The process that tells the user: rank 0, or if that is gone, the first of each host.
    pub(crate) fn reporter(&self, rank: usize, hosts: &[String]) -> Reporter {
        let first = match self.rank == 0 && matches!(self.cause, Cause::Died | Cause::Silent) {
            true => (1..hosts.len()).find(|other| hosts.get(*other) == hosts.get(rank)),
            false => Some(0),
        };
        if first == Some(rank) { Reporter::Here } else { Reporter::Elsewhere }
    }

    /// The bytes of a message about it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let cause = Cause::ALL.iter().position(|cause| *cause == self.cause).unwrap_or(0) as u8;
        let mut bytes = vec![cause];
        bytes.extend((self.rank as u32).to_le_bytes());
        bytes.extend(self.detail.as_bytes());
        bytes
    }

    /// The reverse, with names of hosts by rank.
    pub(crate) fn from_bytes(bytes: &[u8], hosts: &[String]) -> Option<Self> {
        let (cause, rest) = bytes.split_first()?;
        let (rank, detail) = rest.split_first_chunk()?;
        let rank = u32::from_le_bytes(*rank) as usize;
        Some(Self {
            rank,
            host: hosts.get(rank)?.clone(),
            cause: *Cause::ALL.get(usize::from(*cause))?,
            detail: String::from_utf8_lossy(detail).into_owned(),
        })
    }
}

/// Who tells the user of a failure: one process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    /// This process.
    Here,
    /// Another one.
    Elsewhere,
}

/// What is to be done when the run fails, with who reports it. It must not call the collective.
pub type Hook = Box<dyn FnOnce(&Failure, Reporter) + Send>;

type Listener = Box<dyn FnOnce(&Failure) + Send>;

/// Whether the run still works: the first failure, and who wants to know.
#[derive(Default)]
pub struct Health {
    failure: OnceLock<Failure>,
    listeners: Mutex<Vec<Listener>>,
}

impl fmt::Debug for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Health").field("failure", &self.failure.get()).finish_non_exhaustive()
    }
}

/// A lock that nobody can leave broken: no code under it can stop half-way.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Records a failure, unless there was one before, and returns the first. Calls fail only when all listeners have heard of
    /// it and `announce` has told the others, so that a process that ends on an error has said why.
    pub(crate) fn fail(&self, failure: Failure, announce: impl FnOnce(&Failure)) -> &Failure {
        let first = self.failure.get_or_init(|| {
            self.tell(&failure);
            announce(&failure);
            failure
        });
        self.tell(first);
        first
    }

    /// Calls the listener at the first failure, on the thread that notices it; at once if that is past.
    pub(crate) fn on_failure(&self, listener: Listener) {
        locked(&self.listeners).push(listener);
        if let Some(failure) = self.failure() {
            self.tell(failure);
        }
    }

    fn tell(&self, failure: &Failure) {
        let listeners = std::mem::take(&mut *locked(&self.listeners));
        listeners.into_iter().for_each(|listener| listener(failure));
    }
}
