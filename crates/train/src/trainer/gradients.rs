//! Gradients of several processes, summed while the backward pass goes on. A single process sums its parts of a batch here,
//! too, where any number of processes is to give the same bits.

use super::MeanLoss;
use crate::config::DistributedSettings;
use crate::optim::StepGradients;
use crate::task::BoxError;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_collective::{BUCKET_BYTES, BucketPlan, Collective, CollectiveError, Order, Reduction};
use calotype_ops::in_backward::StepParameter;
use std::sync::Arc;

/// How gradients are summed, from one step to the next.
pub(super) struct Exchange<'a> {
    collective: &'a dyn Collective,
    order: Order,
    /// Parts of a batch whose gradients are summed, those of all processes together.
    parts: usize,
    /// Values of each parameter in traversal order; none of those that are frozen.
    sizes: Vec<Option<usize>>,
    plan: Arc<BucketPlan>,
    /// The place of each parameter in the plan.
    places: Arc<[Option<usize>]>,
    /// Whether the plan follows a backward pass that was seen.
    follows: bool,
}

impl<'a> Exchange<'a> {
    /// For a run whose batches have so many parts. Nothing for a process that trains by itself and need not care for others.
    pub(super) fn new(
        collective: &'a dyn Collective,
        settings: &DistributedSettings,
        accumulate: usize,
        sizes: Vec<Option<usize>>,
    ) -> Option<Self> {
        let (order, parts) = match (settings.same_for_all_worlds(), collective.world()) {
            (true, _) => (Order::MicroBatches { all: accumulate }, accumulate),
            (false, 1) => return None,
            (false, world) => (Order::Ranks { micro_batches: accumulate }, accumulate * world),
        };
        // Gradients come about in the order against that of the forward pass, which modules are declared in.
        let guess: Vec<usize> = (0..sizes.len()).rev().filter(|parameter| sizes[*parameter].is_some()).collect();
        let (plan, places) = planned(&guess, &sizes);
        Some(Self { collective, order, parts, sizes, plan, places, follows: collective.world() == 1 })
    }

    /// Begins a step.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    pub(super) fn start(&self) -> Result<Handing, CollectiveError> {
        Ok(Handing {
            reduction: self.collective.start_reduction(&self.plan, self.order)?,
            places: Arc::clone(&self.places),
            came: Vec::new(),
            has_come: vec![false; self.sizes.len()],
            error: None,
        })
    }

    /// Ends a step: the mean gradient and the mean loss of all processes. `samples` are those of each part that is summed.
    ///
    /// # Errors
    /// A process is gone, or has losses with other parts.
    pub(super) fn finish(
        &mut self,
        handing: Handing,
        losses: &Losses,
        samples: f64,
        device: &Device,
    ) -> Result<(StepGradients, MeanLoss), BoxError> {
        let Handing { reduction, came, has_come, .. } = handing;
        let reduced = reduction.finish()?;
        let (mean, has_come) = self.everywhere(losses, &has_come, samples)?;
        let gradient = |(parameter, has_come): (usize, bool)| {
            // A parameter that has no part in the loss is not stepped, as without processes.
            let values = reduced.values(self.places[parameter].filter(|_| has_come)?)?;
            Some(Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device))
        };
        let gradients = has_come.into_iter().enumerate().map(gradient).collect();
        if !std::mem::replace(&mut self.follows, true) {
            self.follow(came)?;
        }
        Ok((StepGradients::of_sums(gradients, self.parts), mean))
    }

    /// The losses of all processes, part by part in the order of the batch, and which parameters have had a gradient anywhere.
    fn everywhere(&self, losses: &Losses, has_come: &[bool], samples: f64) -> Result<(MeanLoss, Vec<bool>), BoxError> {
        let names = losses.names()?;
        let rows = losses.0.len() * (names.len() + 1);
        let mut own: Vec<f32> = losses.numbers().collect();
        own.extend(has_come.iter().map(|has_come| f32::from(u8::from(*has_come))));
        let (mut mean, mut anywhere) = (MeanLoss::default(), vec![false; has_come.len()]);
        for (rank, values) in self.collective.all_gather(&own)?.iter().enumerate() {
            if values.len() != own.len() {
                return Err(format!("the loss of rank {rank} has other named parts than that of this process").into());
            }
            let (rows, has_come) = values.split_at(rows);
            for row in rows.chunks(names.len() + 1) {
                let named = names.iter().copied().zip(row[1..].iter().map(|value| f64::from(*value)));
                mean.add(f64::from(row[0]), named.collect(), samples);
            }
            anywhere.iter_mut().zip(has_come).for_each(|(anywhere, has_come)| *anywhere |= *has_come > 0.0);
        }
        Ok((mean, anywhere))
    }

    /// Makes the plan follow the order in which gradients have come in the first process. Bits do not depend on it.
    fn follow(&mut self, came: Vec<usize>) -> Result<(), CollectiveError> {
        let mut bytes: Vec<u8> = came.into_iter().flat_map(|parameter| (parameter as u32).to_le_bytes()).collect();
        self.collective.broadcast(0, &mut bytes)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        let mut order: Vec<usize> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize).collect();
        let late = (0..self.sizes.len()).rev().filter(|parameter| self.sizes[*parameter].is_some());
        let late: Vec<usize> = late.filter(|parameter| !order.contains(parameter)).collect();
        order.extend(late);
        (self.plan, self.places) = planned(&order, &self.sizes);
        Ok(())
    }
}

/// Buckets for parameters in an order, and the place of each parameter.
fn planned(order: &[usize], sizes: &[Option<usize>]) -> (Arc<BucketPlan>, Arc<[Option<usize>]>) {
    let lengths: Vec<usize> = order.iter().map(|parameter| sizes[*parameter].unwrap_or(0)).collect();
    let mut places = vec![None; sizes.len()];
    order.iter().enumerate().for_each(|(place, parameter)| places[*parameter] = Some(place));
    (Arc::new(BucketPlan::new(&lengths, BUCKET_BYTES)), places.into())
}

/// A step's sum in the making, which gets gradients as they come about.
pub(super) struct Handing {
    reduction: Reduction,
    places: Arc<[Option<usize>]>,
    /// Parameters in the order in which their gradients have come.
    came: Vec<usize>,
    has_come: Vec<bool>,
    /// What went wrong in a backward pass, which goes on without processes.
    error: Option<CollectiveError>,
}

impl Handing {
    /// Takes the gradient of a parameter, by its place in traversal order.
    pub(super) fn hand(&mut self, parameter: usize, gradient: Tensor<1>) {
        let Some(place) = self.places.get(parameter).copied().flatten() else { return };
        if self.error.is_some() {
            return;
        }
        if !std::mem::replace(&mut self.has_come[parameter], true) {
            self.came.push(parameter);
        }
        let data = gradient.into_data();
        self.error = match data.as_slice::<f32>() {
            Ok(values) => self.reduction.ready(place, values).err(),
            // Of a device that computes gradients in another type.
            Err(_) => self.reduction.ready(place, &data.iter::<f32>().collect::<Vec<_>>()).err(),
        };
    }

    /// Ends a part of the batch.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    pub(super) fn end_part(&mut self) -> Result<(), CollectiveError> {
        match self.error.take() {
            Some(error) => Err(error),
            None => self.reduction.end_micro_batch(),
        }
    }
}

impl StepParameter for Handing {
    fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        self.hand(index, gradient);
        parameter
    }
}

/// The losses of this process's parts of a batch, with named parts of each.
#[derive(Default)]
pub(super) struct Losses(Vec<(f64, Vec<(&'static str, f64)>)>);

impl Losses {
    pub(super) fn push(&mut self, value: f64, named: Vec<(&'static str, f64)>) {
        self.0.push((value, named));
    }

    fn names(&self) -> Result<Vec<&'static str>, BoxError> {
        let of = |named: &[(&'static str, f64)]| named.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        let names = self.0.first().map_or_else(Vec::new, |(_, named)| of(named));
        match self.0.iter().all(|(_, named)| of(named) == names) {
            true => Ok(names),
            false => Err("the losses of a batch's parts have different named parts".into()),
        }
    }

    /// Each loss, followed by its named parts.
    fn numbers(&self) -> impl Iterator<Item = f32> {
        self.0.iter().flat_map(|(value, named)| {
            std::iter::once(*value as f32).chain(named.iter().map(|(_, value)| *value as f32))
        })
    }
}
