//! The processes of a run over any transport.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::algorithms::{Call, Operation, Payload, Wire};
use crate::buckets::{BucketPlan, Order, Reduction};
use crate::counters::Counters;
use crate::failure::{Failure, Hook};
use crate::transport::{Channel, Transport};
use crate::tree::{Part, SlotTree};
use crate::{Collective, CollectiveError};

/// A process among others.
///
/// A group that is dropped says goodbye to the others. If its thread panics, or a reduction was given up, it ends the run.
#[derive(Debug)]
pub struct Group {
    wire: Arc<Wire>,
}

impl Group {
    /// Operations over a transport. All processes use the same payload.
    pub fn new(transport: impl Transport + 'static, payload: Payload) -> Self {
        Self { wire: Arc::new(Wire::new(Box::new(transport), payload)) }
    }

    fn error(&self, operation: Operation, problem: String) -> CollectiveError {
        CollectiveError { rank: self.rank(), world: self.world(), operation: operation.name(), problem }
    }

    fn call<T>(
        &self,
        operation: Operation,
        length: usize,
        body: impl FnOnce(&Call<'_>) -> Result<T, Failure>,
    ) -> Result<T, CollectiveError> {
        let result = self.wire.call(Channel::Calls, operation, length, body);
        result.map_err(|failure| self.error(operation, failure.to_string()))
    }

    fn check_root(&self, operation: Operation, root: usize) -> Result<(), CollectiveError> {
        match root < self.world() {
            true => Ok(()),
            false => {
                let world = self.world();
                Err(self.error(operation, format!("there is no rank {root}; the run has {world} processes")))
            }
        }
    }
}

impl Collective for Group {
    fn rank(&self) -> usize {
        self.wire.transport.rank()
    }

    fn world(&self) -> usize {
        self.wire.transport.world()
    }

    fn all_gather(&self, values: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.call(Operation::AllGather, 0, |call| call.all_gather(values))
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CollectiveError> {
        let (rank, length) = (self.rank(), values.len());
        let Some(tree) = SlotTree::new(self.world(), self.world()) else { return Ok(()) };
        let parts = vec![Part { slots: rank..rank + 1, values: values.to_vec() }];
        let sum = self.call(Operation::AllReduceSum, length, |call| call.all_reduce(parts, &tree))?;
        values.copy_from_slice(&sum);
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.check_root(Operation::Broadcast, root)?;
        self.call(Operation::Broadcast, root, |call| call.broadcast(root, bytes))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.call(Operation::Barrier, 0, |call| call.barrier())
    }

    fn gather_bytes(&self, root: usize, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.check_root(Operation::GatherBytes, root)?;
        self.call(Operation::GatherBytes, root, |call| call.gather_bytes(root, bytes))
    }

    fn start_reduction(&self, plan: &Arc<BucketPlan>, order: Order) -> Result<Reduction, CollectiveError> {
        match self.world() {
            1 => Reduction::alone(self, plan, order),
            _ => Reduction::in_background(self, &self.wire, plan, order),
        }
    }

    fn counters(&self) -> Counters {
        self.wire.counting.now()
    }

    fn failure(&self) -> Option<Failure> {
        self.wire.transport.health().failure().cloned()
    }

    fn on_failure(&self, hook: Hook) {
        let transport = &self.wire.transport;
        let (rank, hosts) = (transport.rank(), transport.hosts().to_vec());
        transport.health().on_failure(Box::new(move |failure| hook(failure, failure.reporter(rank, &hosts))));
    }

    fn abort(&self, message: &str) {
        self.wire.give_up(message);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.wire.give_up("it panicked");
        } else if self.wire.dropped.load(Ordering::SeqCst) {
            self.wire.give_up("a reduction was dropped before its end");
        }
    }
}
