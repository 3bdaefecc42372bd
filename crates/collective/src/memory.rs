//! Processes that are threads: messages in memory, for tests of what is built on a [`Transport`].

use std::sync::Arc;
use std::time::Duration;

use crate::failure::{Cause, Failure, Health};
use crate::transport::{Channel, Inbox, Missing, Transport};

#[derive(Debug)]
struct Shared {
    hosts: Vec<String>,
    inboxes: Vec<Inbox>,
    health: Health,
    patience: Duration,
}

/// One of several threads that play the processes of a run.
#[derive(Debug)]
pub struct Memory {
    rank: usize,
    shared: Arc<Shared>,
}

impl Memory {
    /// All members of a run, in the order of their ranks. A call waits for a member at most for the time given.
    pub fn members(world: usize, patience: Duration) -> Vec<Self> {
        let shared = Arc::new(Shared {
            hosts: (0..world).map(|rank| format!("thread {rank}")).collect(),
            inboxes: (0..world).map(|_| Inbox::default()).collect(),
            health: Health::default(),
            patience,
        });
        (0..world).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }
}

impl Transport for Memory {
    fn rank(&self) -> usize {
        self.rank
    }

    fn hosts(&self) -> &[String] {
        &self.shared.hosts
    }

    fn send(&self, to: usize, channel: Channel, message: Vec<u8>) -> Result<(), Failure> {
        if let Some(failure) = self.shared.health.failure() {
            return Err(failure.clone());
        }
        self.shared.inboxes[to].put(self.rank, channel, message);
        Ok(())
    }

    fn receive(&self, from: usize, channel: Channel) -> Result<Vec<u8>, Failure> {
        let Shared { inboxes, health, patience, .. } = &*self.shared;
        inboxes[self.rank].take(from, channel, health, *patience).map_err(|missing| match missing {
            Missing::Failed(failure) => failure,
            Missing::Sender(cause, detail) => self.raise(self.failure_of(from, cause, detail)),
        })
    }

    fn health(&self) -> &Health {
        &self.shared.health
    }

    fn raise(&self, failure: Failure) -> Failure {
        let first = self.shared.health.fail(failure, |_| {}).clone();
        self.shared.inboxes.iter().for_each(Inbox::wake);
        first
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for inbox in &self.shared.inboxes {
            inbox.gone(self.rank, Cause::Left, "its thread has ended".to_owned());
        }
    }
}
