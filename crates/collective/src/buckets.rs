//! Gradients that are summed over all processes in buckets, while the backward pass still computes others.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, atomic::Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::algorithms::{Operation, Payload, Wire};
use crate::failure::{Cause, Failure};
use crate::transport::Channel;
use crate::tree::{Part, SlotSum, SlotTree};
use crate::{Collective, CollectiveError};

/// Bytes of a bucket that are many enough to be sent at full speed, and few enough that the first is soon full and that
/// what is summed stays in a cache.
pub const BUCKET_BYTES: usize = 4 << 20;

/// How gradients of several micro-batches are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each process adds up its own micro-batches one after the other; the sums of the processes are added in a tree.
    /// Bits depend on the number of processes.
    Ranks {
        /// Micro-batches of each process.
        micro_batches: usize,
    },
    /// All micro-batches are added in one tree ([`SlotTree`]), whoever has them: 1, 2 and 4 processes get the same bits.
    MicroBatches {
        /// Micro-batches of all processes together.
        all: usize,
    },
}

/// Which parameter is where: parameters in the order in which their gradients become ready, in buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketPlan {
    /// Bucket and place in it of every parameter.
    places: Vec<(usize, Range<usize>)>,
    /// Parameters of every bucket.
    buckets: Vec<Range<usize>>,
}

impl BucketPlan {
    /// Puts parameters of these numbers of values into buckets of about `bytes`, in order. A larger parameter has a bucket
    /// of its own.
    pub fn new(lengths: &[usize], bytes: usize) -> Self {
        let (mut places, mut buckets): (Vec<_>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
        let mut filled = usize::MAX;
        for (parameter, &length) in lengths.iter().enumerate() {
            let fits =
                filled.checked_add(length).is_some_and(|filled| filled.saturating_mul(size_of::<f32>()) <= bytes);
            if !fits {
                buckets.push(parameter..parameter);
                filled = 0;
            }
            places.push((buckets.len() - 1, filled..filled + length));
            filled += length;
            if let Some(bucket) = buckets.last_mut() {
                bucket.end = parameter + 1;
            }
        }
        Self { places, buckets }
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        self.places.len()
    }

    /// The number of buckets.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// The parameters of each bucket.
    pub fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        self.buckets.iter().cloned()
    }

    /// The number of values in a bucket.
    fn length(&self, bucket: usize) -> usize {
        self.buckets[bucket].clone().last().map_or(0, |parameter| self.places[parameter].1.end)
    }
}

/// The sums of all gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduced {
    plan: Arc<BucketPlan>,
    buckets: Vec<Vec<f32>>,
}

impl Reduced {
    /// The sum of one parameter's gradients. `None` if there is no such parameter.
    pub fn values(&self, parameter: usize) -> Option<&[f32]> {
        let (bucket, place) = self.plan.places.get(parameter)?;
        self.buckets.get(*bucket)?.get(place.clone())
    }

    /// All sums in one row, in the order of the plan.
    pub fn flat(&self) -> impl Iterator<Item = f32> {
        self.buckets.iter().flatten().copied()
    }
}

/// What a bucket has got.
#[derive(Debug)]
struct Fill {
    /// Sums of this process so far, or the micro-batch that is being filled.
    values: Vec<f32>,
    /// The sums over micro-batches, where these are summed in a tree.
    slots: Option<SlotSum>,
    /// Parameters that are not yet ready in this micro-batch.
    missing: usize,
}

/// A sum over all processes that is being made: one optimizer step's gradients.
///
/// For each of its micro-batches a process hands in the gradients with [`Reduction::ready`], as soon as it has them,
/// and calls [`Reduction::end_micro_batch`]. During the last one, full buckets are summed by a thread. [`Reduction::finish`]
/// waits for them. Gradients that were not handed in are zeros. Buckets are summed in the order of the plan at all processes, so
/// a plan should follow the backward pass.
#[derive(Debug)]
pub struct Reduction {
    plan: Arc<BucketPlan>,
    fills: Vec<Fill>,
    ready: Vec<bool>,
    /// Micro-batches of this process that are over, and all of them.
    over: usize,
    micro_batches: usize,
    engine: Engine,
    rank: usize,
    world: usize,
}

#[derive(Debug)]
enum Engine {
    /// One process: nothing to send.
    Alone {
        sums: Vec<Vec<f32>>,
    },
    Background(Background),
    /// Taken out by [`Reduction::finish`].
    Finished,
}

#[derive(Debug)]
struct Background {
    wire: Arc<Wire>,
    jobs: Sender<Job>,
    worker: JoinHandle<Result<Vec<Vec<f32>>, Failure>>,
}

struct Job {
    bucket: usize,
    parts: Vec<Part>,
}

/// What a reduction is called in errors.
const NAME: &str = Operation::Reduction.name();

fn error(collective: &dyn Collective, problem: &str) -> CollectiveError {
    CollectiveError { rank: collective.rank(), world: collective.world(), operation: NAME, problem: problem.to_owned() }
}

/// Which micro-batches a process has, and in which tree.
fn shares(order: Order, rank: usize, world: usize) -> Option<(SlotTree, usize)> {
    match order {
        Order::Ranks { micro_batches } => {
            Some((SlotTree::new(world, world)?, micro_batches)).filter(|(_, own)| *own > 0)
        }
        Order::MicroBatches { all } => SlotTree::new(all, world).map(|tree| (tree, tree.slots_of(rank).len())),
    }
}

impl Reduction {
    /// Of one process.
    pub(crate) fn alone(
        collective: &dyn Collective,
        plan: &Arc<BucketPlan>,
        order: Order,
    ) -> Result<Self, CollectiveError> {
        let sums = vec![Vec::new(); plan.buckets()];
        Self::new(collective, plan, order, |_| Ok(Engine::Alone { sums }))
    }

    /// Of several processes.
    pub(crate) fn in_background(
        collective: &dyn Collective,
        wire: &Arc<Wire>,
        plan: &Arc<BucketPlan>,
        order: Order,
    ) -> Result<Self, CollectiveError> {
        if wire.payload == Payload::Bf16 && matches!(order, Order::MicroBatches { .. }) {
            return Err(error(
                collective,
                "bf16 rounds where processes meet, so that bits depend on their number; send f32, or sum by ranks",
            ));
        }
        if wire.reducing.swap(true, Ordering::SeqCst) {
            return Err(error(collective, "the one before is not finished"));
        }
        let started = Self::new(collective, plan, order, |tree| {
            let (jobs, received) = channel();
            let (of_worker, plan) = (Arc::clone(wire), Arc::clone(plan));
            let work = move || sum_buckets(&of_worker, &plan, tree, &received);
            let worker = std::thread::Builder::new().name("collective reduction".to_owned()).spawn(work)?;
            Ok(Engine::Background(Background { wire: Arc::clone(wire), jobs, worker }))
        });
        started.inspect_err(|_| wire.reducing.store(false, Ordering::SeqCst))
    }

    fn new(
        collective: &dyn Collective,
        plan: &Arc<BucketPlan>,
        order: Order,
        start: impl FnOnce(SlotTree) -> std::io::Result<Engine>,
    ) -> Result<Self, CollectiveError> {
        let (rank, world) = (collective.rank(), collective.world());
        let (tree, micro_batches) = shares(order, rank, world)
            .ok_or_else(|| error(collective, "every process needs at least one micro-batch"))?;
        let slots = match order {
            Order::Ranks { .. } => None,
            Order::MicroBatches { .. } => Some(SlotSum::new(tree, rank)),
        };
        let fill = |bucket: &Range<usize>| Fill { values: Vec::new(), slots: slots.clone(), missing: bucket.len() };
        let fills = plan.buckets.iter().map(fill).collect();
        let ready = vec![false; plan.parameters()];
        let engine =
            start(tree).map_err(|problem| error(collective, &format!("there is no thread for it: {problem}")))?;
        Ok(Self { plan: Arc::clone(plan), fills, ready, over: 0, micro_batches, engine, rank, world })
    }

    fn error(&self, problem: String) -> CollectiveError {
        CollectiveError { rank: self.rank, world: self.world, operation: NAME, problem }
    }

    /// Hands in the gradient of one parameter for the present micro-batch.
    ///
    /// # Errors
    /// [`CollectiveError`] if there is no such parameter, it was handed in before or has another number of values, or all
    /// micro-batches are over.
    pub fn ready(&mut self, parameter: usize, values: &[f32]) -> Result<(), CollectiveError> {
        let Some((bucket, place)) = self.plan.places.get(parameter).cloned() else {
            return Err(self.error(format!("there is no parameter {parameter} of {}", self.plan.parameters())));
        };
        if values.len() != place.len() {
            let (found, expected) = (values.len(), place.len());
            return Err(self.error(format!("parameter {parameter} has {expected} values, not {found}")));
        }
        if self.over == self.micro_batches {
            return Err(self.error(format!("all {} micro-batches are over", self.micro_batches)));
        }
        if std::mem::replace(&mut self.ready[parameter], true) {
            return Err(self.error(format!("parameter {parameter} is ready twice in one micro-batch")));
        }
        let fill = &mut self.fills[bucket];
        if fill.values.is_empty() {
            fill.values = vec![0.0; self.plan.length(bucket)];
        }
        fill.values[place].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        fill.missing -= 1;
        match fill.missing {
            0 => self.close(bucket),
            _ => Ok(()),
        }
    }

    /// The present micro-batch is over: gradients that were not handed in are zeros.
    ///
    /// # Errors
    /// [`CollectiveError`] if all micro-batches were over before, or a process is gone.
    pub fn end_micro_batch(&mut self) -> Result<(), CollectiveError> {
        if self.over == self.micro_batches {
            return Err(self.error(format!("all {} micro-batches are over", self.micro_batches)));
        }
        for bucket in 0..self.fills.len() {
            if std::mem::take(&mut self.fills[bucket].missing) > 0 {
                self.close(bucket)?;
            }
        }
        for (fill, bucket) in self.fills.iter_mut().zip(&self.plan.buckets) {
            fill.missing = bucket.len();
        }
        self.ready.fill(false);
        self.over += 1;
        Ok(())
    }

    /// A bucket has all it gets in this micro-batch.
    fn close(&mut self, bucket: usize) -> Result<(), CollectiveError> {
        let last = self.over + 1 == self.micro_batches;
        let fill = &mut self.fills[bucket];
        if fill.values.is_empty() {
            fill.values = vec![0.0; self.plan.length(bucket)];
        }
        if let Some(slots) = &mut fill.slots {
            slots.push(std::mem::take(&mut fill.values));
        }
        if !last {
            return Ok(());
        }
        let parts = match fill.slots.take() {
            Some(slots) => slots.into_parts(),
            None => vec![Part { slots: self.rank..self.rank + 1, values: std::mem::take(&mut fill.values) }],
        };
        self.hand_over(Job { bucket, parts })
    }

    fn hand_over(&mut self, job: Job) -> Result<(), CollectiveError> {
        match &mut self.engine {
            Engine::Alone { sums } => {
                // Who has all micro-batches has summed them all.
                if let Some(part) = job.parts.into_iter().next() {
                    sums[job.bucket] = part.values;
                }
                Ok(())
            }
            Engine::Background(Background { wire, jobs, .. }) => {
                if jobs.send(job).is_ok() {
                    return Ok(());
                }
                // The thread ends early only when the run has failed.
                let problem = wire.transport.health().failure().map_or_else(String::new, ToString::to_string);
                Err(self.error(problem))
            }
            Engine::Finished => Ok(()),
        }
    }

    /// Waits until all is summed. A micro-batch that is not over ends.
    ///
    /// # Errors
    /// [`CollectiveError`] if micro-batches are missing, or a process is gone.
    pub fn finish(mut self) -> Result<Reduced, CollectiveError> {
        if self.over + 1 == self.micro_batches {
            self.end_micro_batch()?;
        }
        if self.over < self.micro_batches {
            return Err(self.error(format!("{} of {} micro-batches are over", self.over, self.micro_batches)));
        }
        let plan = Arc::clone(&self.plan);
        let buckets = match std::mem::replace(&mut self.engine, Engine::Finished) {
            Engine::Alone { sums } => sums,
            Engine::Background(Background { wire, jobs, worker }) => {
                let started = Instant::now();
                drop(jobs);
                let result = worker.join();
                wire.counting.waited(started);
                wire.reducing.store(false, Ordering::SeqCst);
                match result {
                    Ok(sums) => sums.map_err(|failure| self.error(failure.to_string()))?,
                    Err(_) => return Err(self.error("its thread panicked".to_owned())),
                }
            }
            Engine::Finished => Vec::new(),
        };
        Ok(Reduced { plan, buckets })
    }
}

impl Drop for Reduction {
    fn drop(&mut self) {
        if let Engine::Background(Background { wire, .. }) = &self.engine {
            // The others wait for the rest of it. They hear of that with the next call, or with our end.
            wire.dropped.store(true, Ordering::SeqCst);
        }
    }
}

/// Sums buckets in the order of the plan, in whichever order they come.
fn sum_buckets(wire: &Wire, plan: &BucketPlan, tree: SlotTree, jobs: &Receiver<Job>) -> Result<Vec<Vec<f32>>, Failure> {
    let mut waiting: Vec<Option<Vec<Part>>> = vec![None; plan.buckets()];
    let mut sums = Vec::with_capacity(plan.buckets());
    for bucket in 0..plan.buckets() {
        let parts = loop {
            if let Some(parts) = waiting[bucket].take() {
                break parts;
            }
            match jobs.recv() {
                Ok(job) => waiting[job.bucket] = Some(job.parts),
                Err(_) => {
                    let transport = &wire.transport;
                    let detail = "a reduction was not finished".to_owned();
                    return Err(transport.failure_of(transport.rank(), Cause::Aborted, detail));
                }
            }
        };
        let sum = wire.call(Channel::Reductions, Operation::Reduction, plan.length(bucket), |call| {
            call.all_reduce(parts, &tree)
        })?;
        sums.push(sum);
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_neighbours_up_to_their_size() {
        let plan = BucketPlan::new(&[2, 1, 9, 0, 1, 1, 1], 12);
        assert_eq!(plan.buckets, [0..2, 2..3, 3..7]);
        assert_eq!(plan.places[1], (0, 2..3));
        assert_eq!(plan.places[6], (2, 2..3));
        assert_eq!([0, 1, 2].map(|bucket| plan.length(bucket)), [3, 9, 3]);
        let empty = BucketPlan::new(&[], 12);
        assert_eq!((empty.buckets(), empty.parameters()), (0, 0));
    }
}
