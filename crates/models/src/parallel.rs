//! Parts of models whose layers several processes compute together: tensor parallelism (Shoeybi et al. 2019, "Megatron-LM",
//! section 3).
//!
//! Attention heads and the channels between a block's two linear layers are shared out; everything else every process has and
//! computes as a whole. A part has the parameters of the whole model under the same keys; of those that are shared out it has
//! the rows or columns of its place, in the order of the processes.

use crate::ConfigError;
use crate::layers::Linear;
use burn::module::Param;
use burn::tensor::Tensor;
use calotype_ops::parallel::{self, Peers};
use std::sync::Arc;

/// This process's place among those that compute a model's layers together.
#[derive(Clone, Debug)]
pub struct TensorParallel(Arc<dyn Peers>);

impl TensorParallel {
    /// Among these processes.
    pub fn new(peers: Arc<dyn Peers>) -> Self {
        Self(peers)
    }

    /// How many share a layer.
    pub fn world(&self) -> usize {
        self.0.world()
    }

    /// The input of layers whose outputs are shared out.
    pub(crate) fn enter<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        parallel::enter(x, &self.0)
    }

    /// The rows (axis 0) or columns (axis 1) of this process.
    fn part_of<const D: usize>(&self, param: Param<Tensor<D>>, axis: usize) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let (device, grad) = (tensor.device(), tensor.is_require_grad());
        let length = tensor.dims()[axis] / self.world();
        // Storage of its own, so that the whole is given back.
        let data = tensor.inner().narrow(axis, self.0.rank() * length, length).into_data();
        let tensor = Tensor::from_data(data, &device).set_require_grad(grad);
        Param::from_mapped_value(id, tensor, mapper)
    }
}

impl Linear {
    /// The layer with this process's outputs.
    pub(crate) fn with_outputs_of(self, parallel: &TensorParallel) -> Self {
        Self {
            weight: self.weight.changed(|weight| parallel.part_of(weight, 0)),
            bias: self.bias.map(|bias| parallel.part_of(bias, 0)),
        }
    }

    /// The layer with this process's inputs, for [`Linear::forward_summed`]; the bias stays whole.
    pub(crate) fn with_inputs_of(self, parallel: &TensorParallel) -> Self {
        Self { weight: self.weight.changed(|weight| parallel.part_of(weight, 1)), bias: self.bias }
    }

    /// The products of all processes added up, plus bias and residual, of a layer [`Linear::with_inputs_of`] a process.
    ///
    /// # Shapes
    /// `[.., in of this process]` and `[.., out]` to `[.., out]`
    pub(crate) fn forward_summed<const D: usize>(
        &self,
        x: Tensor<D>,
        residual: Option<Tensor<D>>,
        parallel: &TensorParallel,
    ) -> Tensor<D> {
        parallel::linear_summed(x, self.weight.tensor(), self.bias.as_ref().map(Param::val), residual, &parallel.0)
    }
}

/// Checks that processes can share out the heads and the channels between the two linear layers of a block.
///
/// # Errors
/// [`ConfigError`] naming the first of both fields that they do not divide.
pub(crate) fn check_divides(fields: [(&'static str, usize); 2], processes: usize) -> Result<(), ConfigError> {
    fields.into_iter().try_for_each(|(field, size)| {
        ConfigError::check(processes > 0 && size.is_multiple_of(processes), field, || {
            format!("{size} cannot be shared out to {processes} processes (distributed.tensor_parallel); use a number that divides it")
        })
    })
}
