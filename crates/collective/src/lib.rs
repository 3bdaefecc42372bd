//! Communication between the processes of one training run.
//!
//! A run of `world` processes splits every batch into equal parts ([`Collective::rank`] says which part is ours). All
//! processes call the same methods in the same order; a call returns when all have made it. Results do not depend on
//! timing: sums are made in an order that the number of processes and the sizes fix.
//!
//! ```
//! use calotype_collective::{Collective, Local};
//!
//! let mut gradient = [1.0, 2.0];
//! Local.all_reduce_sum(&mut gradient)?;
//! assert_eq!(gradient, [1.0, 2.0], "alone, the sum is one's own");
//! # Ok::<(), calotype_collective::CollectiveError>(())
//! ```
//!
//! [`Launch`] reads what the launcher says, [`open`] connects the processes, over TCP or MPI; [`Group`] has the operations
//! over any [`Transport`]. [`Reduction`] sums gradients during the backward pass. [`Collective::split`] makes groups of some processes.
//!
//! When a process dies, falls silent or calls [`Collective::abort`], every call of every other fails within ten seconds,
//! with one [`Failure`] that names it. A process that computes meanwhile hears of it by [`Collective::on_failure`].

mod algorithms;
mod buckets;
mod consistency;
mod counters;
mod failure;
mod group;
mod launch;
mod members;
mod memory;
#[cfg(feature = "mpi")]
mod mpi;
mod net;
mod open;
mod partition;
mod transport;
mod tree;

use std::fmt::Debug;
use std::sync::Arc;

pub use algorithms::Payload;
pub use buckets::{BUCKET_BYTES, BucketPlan, Order, Reduced, Reduction};
pub use consistency::{ConsistencyError, Fingerprint};
pub use counters::Counters;
pub use failure::{Cause, Failure, Health, Hook, Reporter};
pub use group::Group;
pub use launch::{Launch, LaunchError, Rendezvous, Starter};
pub use memory::Memory;
#[cfg(feature = "mpi")]
pub use mpi::{Mpi, MpiError, MpiFault};
pub use net::meeting::MeetingError;
pub use net::tcp::Tcp;
pub use open::{OpenError, Options, TransportKind, open};
pub use partition::Partition;
pub use transport::{Channel, Patience, Transport};
pub use tree::SlotTree;

use half::bf16;

/// A process that does not answer, or answers something else.
#[derive(Clone, Debug, thiserror::Error)]
#[error("rank {rank} of {world}: {operation} failed: {problem}")]
pub struct CollectiveError {
    /// Our number among the processes.
    pub rank: usize,
    /// The number of processes.
    pub world: usize,
    /// The operation, such as `all_gather`.
    pub operation: &'static str,
    /// What went wrong.
    pub problem: String,
}

/// Operations that all processes of a run take part in.
pub trait Collective: Debug + Send + Sync {
    /// Our number among the processes, from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn world(&self) -> usize;

    /// Everybody's values, in the order of the ranks. Their lengths may differ.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    fn all_gather(&self, values: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError>;

    /// Replaces the values by the sums over all processes, added up in a binary tree over the ranks ([`SlotTree`]).
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone or its values are of another number.
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// [`Collective::all_reduce_sum`] of numbers that travel and come as `bf16`; they are added up in `f32`.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`].
    fn all_reduce_sum_bf16(&self, values: &mut [bf16]) -> Result<(), CollectiveError> {
        let mut wide: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
        self.all_reduce_sum(&mut wide)?;
        values.iter_mut().zip(wide).for_each(|(value, wide)| *value = bf16::from_f32(wide));
        Ok(())
    }

    /// Some of the processes as a group of their own, in which they are numbered as in `members`. Every process of the run
    /// splits off as many groups, one after the other, each time a group that it is in; nothing is sent for that. Of all
    /// groups of a process, one at a time sums gradients in the background. What ends the run of one group ends the whole.
    ///
    /// # Errors
    /// [`CollectiveError`] if this process is not among the members, one is named twice or is not there, or these processes
    /// have no groups.
    fn split(&self, members: &[usize]) -> Result<Box<dyn Collective>, CollectiveError> {
        let problem = format!("these processes have no groups such as {members:?}");
        Err(CollectiveError { rank: self.rank(), world: self.world(), operation: "split", problem })
    }

    /// Replaces the bytes by those of the process `root`.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone or there is no such rank.
    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), CollectiveError>;

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    fn barrier(&self) -> Result<(), CollectiveError>;

    /// Everybody's bytes, in the order of the ranks, at the process `root`; nothing at the others.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone or there is no such rank.
    fn gather_bytes(&self, root: usize, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let mut all = Vec::new();
        for rank in 0..self.world() {
            let mut one = bytes.to_vec();
            self.broadcast(rank, &mut one)?;
            all.push(one);
        }
        let mine = self.rank() == root;
        Ok(if mine { all } else { Vec::new() })
    }

    /// Starts to sum gradients in the background. There is one such sum at a time; other calls may be made meanwhile.
    ///
    /// # Errors
    /// [`CollectiveError`] if there is one already, the order asks for what cannot be, or these processes cannot do it.
    fn start_reduction(&self, _: &Arc<BucketPlan>, _: Order) -> Result<Reduction, CollectiveError> {
        let problem = "these processes sum nothing in the background".to_owned();
        Err(CollectiveError { rank: self.rank(), world: self.world(), operation: "reduction", problem })
    }

    /// What communication has cost this process since its start.
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// The number that a process has in the whole run, if these are some of its processes; for messages.
    fn in_run(&self, rank: usize) -> usize {
        rank
    }

    /// What ended the run, if something did.
    fn failure(&self) -> Option<Failure> {
        None
    }

    /// Calls the hook when any process ends the run, and says whether this process tells the user why. One does: rank 0,
    /// or if that is gone the first of each host. The hook is called within ten seconds, on a thread of the collective, while
    /// the caller may be computing, and before any call fails; at once if the run has ended already.
    fn on_failure(&self, _: Hook) {}

    /// Ends the run of all processes: their calls fail with this message and our rank and host.
    fn abort(&self, _message: &str) {}

    /// Whether this process writes what a run writes once: logs, checkpoints, models.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }
}

/// The only process of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local;

impl Local {
    fn check_root(operation: &'static str, root: usize) -> Result<(), CollectiveError> {
        if root == 0 {
            return Ok(());
        }
        let problem = format!("there is no rank {root}; the run has one process");
        Err(CollectiveError { rank: 0, world: 1, operation, problem })
    }
}

impl Collective for Local {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_gather(&self, values: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        Ok(vec![values.to_vec()])
    }

    fn all_reduce_sum(&self, _: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_reduce_sum_bf16(&self, _: &mut [bf16]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn split(&self, members: &[usize]) -> Result<Box<dyn Collective>, CollectiveError> {
        if members == [0] {
            return Ok(Box::new(Self));
        }
        let problem = format!("{members:?} is no group of a run of one process");
        Err(CollectiveError { rank: 0, world: 1, operation: "split", problem })
    }

    fn broadcast(&self, root: usize, _: &mut Vec<u8>) -> Result<(), CollectiveError> {
        Self::check_root("broadcast", root)
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn gather_bytes(&self, root: usize, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Self::check_root("gather_bytes", root)?;
        Ok(vec![bytes.to_vec()])
    }

    fn start_reduction(&self, plan: &Arc<BucketPlan>, order: Order) -> Result<Reduction, CollectiveError> {
        Reduction::alone(self, plan, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_nothing_changes() {
        assert_eq!(Local.all_gather(&[1.0, 2.0]).unwrap(), [[1.0, 2.0]]);
        let mut bytes = vec![7];
        Local.broadcast(0, &mut bytes).unwrap();
        assert_eq!(bytes, [7]);
        let error = Local.broadcast(3, &mut bytes).unwrap_err().to_string();
        assert_eq!(error, "rank 0 of 1: broadcast failed: there is no rank 3; the run has one process");
        assert!(Local.is_first() && Local.barrier().is_ok());
        assert_eq!(Local.gather_bytes(0, &bytes).unwrap(), [[7]]);
        assert!(Local.failure().is_none());
        assert_eq!(Local.split(&[0]).unwrap().world(), 1);
        assert!(Local.split(&[0, 1]).unwrap_err().to_string().contains("[0, 1] is no group"));
        let mut halves = [bf16::ONE];
        Local.all_reduce_sum_bf16(&mut halves).unwrap();
        assert_eq!(halves, [bf16::ONE]);
    }
}
