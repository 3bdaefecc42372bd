//! Communication between the processes of one training run.
//!
//! A run of `world` processes splits every batch into equal parts ([`Collective::rank`] says which part is ours). All
//! processes call the same methods in the same order; a call returns when all have made it. Results do not depend on
//! timing: sums are made in the order of the ranks.
//!
//! ```
//! use calotype_collective::{Collective, Local};
//!
//! let mut gradient = [1.0, 2.0];
//! Local.all_reduce_sum(&mut gradient)?;
//! assert_eq!(gradient, [1.0, 2.0], "alone, the sum is one's own");
//! # Ok::<(), calotype_collective::CollectiveError>(())
//! ```

use std::fmt::Debug;

/// A process that does not answer, or answers something else.
#[derive(Debug, thiserror::Error)]
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

    /// Replaces the values by the sums over all processes, added up in the order of the ranks.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone or its values are of another number.
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CollectiveError>;

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

    /// Whether this process writes what a run writes once: logs, checkpoints, models.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }
}

/// The only process of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local;

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

    fn broadcast(&self, root: usize, _: &mut Vec<u8>) -> Result<(), CollectiveError> {
        if root == 0 {
            return Ok(());
        }
        let problem = format!("there is no rank {root}; the run has one process");
        Err(CollectiveError { rank: 0, world: 1, operation: "broadcast", problem })
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        Ok(())
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
    }
}
