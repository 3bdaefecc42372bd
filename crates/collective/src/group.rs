//! The processes of a run over any transport.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::bf16;

use crate::algorithms::{Call, Number, Operation, Payload, SMALL, Wire};
use crate::buckets::{BUCKET_BYTES, BucketPlan, Order, Reduction};
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
        self.error_of(operation.name(), problem)
    }

    /// Processes are named by their numbers in the run.
    fn error_of(&self, operation: &'static str, problem: String) -> CollectiveError {
        let transport = &self.wire.transport;
        let (rank, world) = (transport.in_run(transport.rank()), transport.hosts_of_run().len());
        CollectiveError { rank, world, operation, problem }
    }

    /// Sums in the memory that the values have, as many at a time as stay in a cache.
    fn sum_in_place<E: Number>(&self, values: &mut [E]) -> Result<(), CollectiveError> {
        let Some(tree) = SlotTree::new(self.world(), self.world()) else { return Ok(()) };
        let sum = |values: &mut [E]| {
            self.call(Operation::AllReduceSum, values.len(), |call| call.sum_in_place(values, &tree))
        };
        values.chunks_mut(BUCKET_BYTES / size_of::<E>()).try_for_each(sum)
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
        if self.wire.payload == Payload::F32 && length * self.world() > SMALL {
            return if self.world() == 1 { Ok(()) } else { self.sum_in_place(values) };
        }
        let Some(tree) = SlotTree::new(self.world(), self.world()) else { return Ok(()) };
        let parts = vec![Part { slots: rank..rank + 1, values: values.to_vec() }];
        let sum = self.call(Operation::AllReduceSum, length, |call| call.all_reduce(parts, &tree))?;
        values.copy_from_slice(&sum);
        Ok(())
    }

    fn all_reduce_sum_bf16(&self, values: &mut [bf16]) -> Result<(), CollectiveError> {
        if self.world() == 1 { Ok(()) } else { self.sum_in_place(values) }
    }

    fn split(&self, members: &[usize]) -> Result<Box<dyn Collective>, CollectiveError> {
        let wire = self.wire.split(members).map_err(|problem| self.error_of("split", problem))?;
        Ok(Box::new(Self { wire: Arc::new(wire) }))
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

    fn in_run(&self, rank: usize) -> usize {
        self.wire.transport.in_run(rank)
    }

    fn counters(&self) -> Counters {
        self.wire.counting.now()
    }

    fn failure(&self) -> Option<Failure> {
        self.wire.transport.health().failure().cloned()
    }

    fn on_failure(&self, hook: Hook) {
        let transport = &self.wire.transport;
        let (rank, hosts) = (transport.in_run(transport.rank()), transport.hosts_of_run().to_vec());
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
