//! Some of a run's processes, which make up a group of their own.

use std::sync::Arc;

use crate::failure::{Failure, Health};
use crate::transport::{Channel, Transport};

/// The messages of a whole run, as far as they go between some of its processes. When one of these fails, the whole run ends.
#[derive(Debug)]
pub(crate) struct Members {
    whole: Arc<dyn Transport>,
    /// The number of each in the whole.
    members: Vec<usize>,
    hosts: Vec<String>,
    rank: usize,
}

impl Members {
    /// Of these processes, this one among them, in the order of their numbers in the group.
    ///
    /// # Errors
    /// What is wrong with the list.
    pub(crate) fn of(whole: &Arc<dyn Transport>, members: &[usize]) -> Result<Self, String> {
        let (own, world) = (whole.rank(), whole.world());
        if let Some(absent) = members.iter().find(|member| **member >= world) {
            return Err(format!("there is no rank {absent}; these are {world} processes"));
        }
        if (1..members.len()).any(|place| members[..place].contains(&members[place])) {
            return Err(format!("a rank is named twice among {members:?}"));
        }
        let Some(rank) = members.iter().position(|member| *member == own) else {
            return Err(format!("rank {own} is not among {members:?}"));
        };
        let hosts = members.iter().map(|member| whole.hosts()[*member].clone()).collect();
        Ok(Self { whole: Arc::clone(whole), members: members.to_vec(), hosts, rank })
    }
}

impl Transport for Members {
    fn rank(&self) -> usize {
        self.rank
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn send(&self, to: usize, channel: Channel, message: Vec<u8>) -> Result<(), Failure> {
        self.whole.send(self.members[to], channel, message)
    }

    fn receive(&self, from: usize, channel: Channel) -> Result<Vec<u8>, Failure> {
        self.whole.receive(self.members[from], channel)
    }

    fn health(&self) -> &Health {
        self.whole.health()
    }

    fn raise(&self, failure: Failure) -> Failure {
        self.whole.raise(failure)
    }

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        self.whole.buffer(bytes)
    }

    fn recycle(&self, message: Vec<u8>) {
        self.whole.recycle(message);
    }

    fn in_run(&self, rank: usize) -> usize {
        self.members.get(rank).map_or(rank, |member| self.whole.in_run(*member))
    }

    fn hosts_of_run(&self) -> &[String] {
        self.whole.hosts_of_run()
    }
}
