//! What of a model is trained: all of it, or a small module that is put around it.
//!
//! The trainer never touches a task's model directly. It owns the parameters of a [`Trainable`], gives them gradients,
//! moments, an average and a place in checkpoints, and asks for the model only to compute a loss, to look at it in a
//! hook, or to export it. So an adapter such as LoRA fits around any task without the task knowing: its parameters are
//! the low-rank factors, [`Trainable::with_model`] hands out the frozen base with the factors' products added to its
//! weights (as tensors that the gradient flows through), and [`Trainable::model_of`] merges them for the export.
//!
//! ```
//! use burn::module::{Module, ModuleMapper, Param};
//! use burn::tensor::Tensor;
//! use calotype_train::trainable::Trainable;
//!
//! /// Trains one number that scales all weights of a frozen model.
//! #[derive(Debug)]
//! struct Scaled<M>(M);
//!
//! #[derive(Module, Debug)]
//! struct Factor {
//!     factor: Param<Tensor<1>>,
//! }
//!
//! struct Multiply(Tensor<1>);
//!
//! impl ModuleMapper for Multiply {
//!     fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
//!         let (id, weight, mapper) = param.consume();
//!         Param::from_mapped_value(id, weight * self.0.clone().reshape([1; D]), mapper)
//!     }
//! }
//!
//! impl<M: Module> Trainable<M> for Scaled<M> {
//!     type Parameters = Factor;
//!
//!     fn with_model<R>(&self, parameters: &Factor, body: impl FnOnce(&M) -> R) -> R {
//!         body(&self.0.clone().map(&mut Multiply(parameters.factor.val())))
//!     }
//!
//!     fn model_of(&self, parameters: Factor) -> M {
//!         self.0.clone().map(&mut Multiply(parameters.factor.val()))
//!     }
//! }
//! ```

use burn::module::Module;

/// A model with the part of it that a run changes.
pub trait Trainable<M: Module> {
    /// What has gradients, moments and an average, and is saved in checkpoints.
    type Parameters: Module;

    /// Calls `body` with the model that the parameters stand for; gradients of what it computes reach the parameters.
    fn with_model<R>(&self, parameters: &Self::Parameters, body: impl FnOnce(&M) -> R) -> R;

    /// The whole model, for looking at and for exports.
    fn model_of(&self, parameters: Self::Parameters) -> M;
}

/// The whole model is trained, but for parameters that its task freezes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WholeModel;

impl<M: Module> Trainable<M> for WholeModel {
    type Parameters = M;

    fn with_model<R>(&self, parameters: &M, body: impl FnOnce(&M) -> R) -> R {
        body(parameters)
    }

    fn model_of(&self, parameters: M) -> M {
        parameters
    }
}
