//! Optimizer state that is shared out to the processes (`distributed.shard_optimizer`).

use crate::checkpoint::LazyTensor;
use crate::optim::Optimizer;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use calotype_collective::{Collective, CollectiveError, Partition};
use calotype_weights::Dtype;
use std::cell::RefCell;

/// Who keeps and steps what.
pub(super) struct Shards<'a> {
    collective: &'a dyn Collective,
    partition: Partition,
    /// Parameters that are trained, by their place in the partition; in traversal order.
    parameters: Vec<usize>,
    device: &'a Device,
    /// Why a tensor of another process did not come while a checkpoint was written.
    failed: RefCell<Option<CollectiveError>>,
}

/// A tensor of a process's optimizer state: name, type and shape.
type Entry = (String, String, Vec<usize>);

impl<'a> Shards<'a> {
    /// Shares out parameters of these sizes, in traversal order, but frozen ones, and leaves to other processes what is theirs.
    pub(super) fn of(collective: &'a dyn Collective, device: &'a Device, optimizer: &mut Optimizer) -> Self {
        let sizes = optimizer.trained_sizes();
        let parameters: Vec<usize> = (0..sizes.len()).filter(|parameter| sizes[*parameter].is_some()).collect();
        let lengths: Vec<usize> = sizes.into_iter().flatten().collect();
        let partition = Partition::by_size(&lengths, collective.world());
        let own: Vec<usize> = partition.of(collective.rank()).map(|place| parameters[place]).collect();
        optimizer.leave_to_others(|parameter| own.contains(&parameter));
        Self { collective, partition, parameters, device, failed: RefCell::new(None) }
    }

    /// After a step: the module with what other processes have changed.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    pub(super) fn shared<M: Module>(&self, module: M) -> Result<M, CollectiveError> {
        struct Collect(Vec<Option<Tensor<1>>>);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let tensor = param.val().inner();
                let size = tensor.shape().num_elements();
                self.0.push(Some(tensor.reshape([size])));
            }
        }
        let mut own = Collect(Vec::new());
        module.visit(&mut own);
        Ok(Optimizer::with_values(module, self.of_others(own.0)?))
    }

    /// The module with the averages of all processes.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    pub(super) fn averaged<M: Module>(&self, module: &M, optimizer: &Optimizer) -> Result<M, CollectiveError> {
        if !optimizer.has_averages() {
            return Ok(module.clone());
        }
        let own = optimizer.averages();
        let others = self.of_others(own.clone())?;
        let all = own.into_iter().zip(others).map(|(own, other)| own.or(other)).collect();
        Ok(Optimizer::with_values(module.clone(), all))
    }

    /// The values that other processes have, by parameter in traversal order, for those of this one.
    fn of_others(&self, own: Vec<Option<Tensor<1>>>) -> Result<Vec<Option<Tensor<1>>>, CollectiveError> {
        let mut others = vec![None; own.len()];
        let read = |place: usize| {
            let tensor = own[self.parameters[place]].clone();
            tensor.map_or_else(Vec::new, |tensor| tensor.into_data().iter::<f32>().collect())
        };
        let write = |place: usize, values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            others[self.parameters[place]] = Some(Tensor::from_data(data, self.device));
        };
        self.partition.share(self.collective, read, write)?;
        Ok(others)
    }

    /// At the first process, the state of all, which others send tensor by tensor when it is written, until
    /// [`Shards::end_sending`]. The others send until then, and have nothing.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    pub(super) fn whole_state<'s>(&'s self, optimizer: &'s Optimizer) -> Result<Vec<LazyTensor<'s>>, CollectiveError> {
        let mut own: Vec<_> = optimizer.state().map(Some).collect();
        let entries: Vec<Entry> = own
            .iter()
            .flatten()
            .map(|tensor| tensor.info())
            .map(|info| (info.name.clone(), info.dtype.name().to_owned(), info.shape.clone()))
            .collect();
        let listed = serde_json::to_vec(&entries).map_err(|problem| self.error(problem.to_string()))?;
        let lists = self.collective.gather_bytes(0, &listed)?;
        if !self.collective.is_first() {
            self.send(&mut own)?;
            return Ok(Vec::new());
        }
        let mut all: Vec<LazyTensor<'s>> = own.into_iter().flatten().map(LazyTensor::within).collect();
        for (rank, list) in lists.iter().enumerate().skip(1) {
            let entries: Vec<Entry> =
                serde_json::from_slice(list).map_err(|problem| self.error(problem.to_string()))?;
            for (number, (name, dtype, shape)) in entries.into_iter().enumerate() {
                let dtype = Dtype::from_name(&dtype).ok_or_else(|| self.error(format!("no type is {dtype}")))?;
                all.push(LazyTensor::new(name, dtype, shape, move || self.fetched(rank, number)));
            }
        }
        Ok(all)
    }

    /// Sends the tensors that the first process asks for, each once.
    fn send(&self, own: &mut [Option<LazyTensor<'_>>]) -> Result<(), CollectiveError> {
        loop {
            let mut request = Vec::new();
            self.collective.broadcast(0, &mut request)?;
            let Some((rank, number)) = request_of(&request) else { return Ok(()) };
            let asked = own.get_mut(number).filter(|_| rank == self.collective.rank()).and_then(Option::take);
            self.collective.gather_bytes(0, &asked.map_or_else(Vec::new, LazyTensor::into_bytes))?;
        }
    }

    /// The data of a tensor of another process. Without them, the tensor cannot be written.
    fn fetched(&self, rank: usize, number: usize) -> Vec<u8> {
        let fetch = || {
            let mut request = [rank as u64, number as u64].map(u64::to_le_bytes).concat();
            self.collective.broadcast(0, &mut request)?;
            Ok(self.collective.gather_bytes(0, &[])?.into_iter().nth(rank).unwrap_or_default())
        };
        fetch().unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            Vec::new()
        })
    }

    /// At the first process: no more tensors are asked for.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone, now or when a tensor was asked for.
    pub(super) fn end_sending(&self) -> Result<(), CollectiveError> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.collective.broadcast(0, &mut Vec::new()),
        }
    }

    fn error(&self, problem: String) -> CollectiveError {
        let (rank, world) = (self.collective.rank(), self.collective.world());
        CollectiveError { rank, world, operation: "gathering the optimizer's state", problem }
    }
}

/// Which process is asked for which of its tensors.
fn request_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let (rank, rest) = bytes.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*rank) as usize, u64::from_le_bytes(*number) as usize))
}
