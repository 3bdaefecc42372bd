//! Optimizer state that is shared out to the processes (`distributed.shard_optimizer`).

use crate::optim::Optimizer;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use calotype_collective::{Collective, CollectiveError, Partition};

/// Who keeps and steps what.
pub(super) struct Shards<'a> {
    collective: &'a dyn Collective,
    partition: Partition,
    /// Parameters that are trained, by their place in the partition; in traversal order.
    parameters: Vec<usize>,
    device: &'a Device,
}

impl<'a> Shards<'a> {
    /// Shares out parameters of these sizes, in traversal order, but frozen ones, and leaves to other processes what is theirs.
    pub(super) fn of(collective: &'a dyn Collective, device: &'a Device, optimizer: &mut Optimizer) -> Self {
        let sizes = optimizer.trained_sizes();
        let parameters: Vec<usize> = (0..sizes.len()).filter(|parameter| sizes[*parameter].is_some()).collect();
        let lengths: Vec<usize> = sizes.into_iter().flatten().collect();
        let partition = Partition::by_size(&lengths, collective.world());
        let own: Vec<usize> = partition.of(collective.rank()).map(|place| parameters[place]).collect();
        optimizer.leave_to_others(|parameter| own.contains(&parameter));
        Self { collective, partition, parameters, device }
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
}
