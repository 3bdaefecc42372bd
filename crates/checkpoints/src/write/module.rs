//! The parameters of a live module as a source of tensors.

use crate::networks::canonical_shape;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use calotype_models::state::{self, checkpoint_shape, to_checkpoint, values_of};
use calotype_weights::{Dtype, NamedTensor, TensorFileError, TensorInfo, TensorSource};
use std::collections::BTreeMap;
use std::path::Path;

/// The parameters of a module under their checkpoint keys, in `f32`. It shares the module's tensors; a parameter's
/// elements are copied when it is asked for, and only its own.
pub struct ModuleSource {
    parameters: BTreeMap<String, Parameter>,
}

struct Parameter {
    shape: Vec<usize>,
    values: Box<dyn Fn() -> Vec<f32> + Send + Sync>,
}

impl std::fmt::Debug for ModuleSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ModuleSource").field("tensors", &self.parameters.len()).finish()
    }
}

impl ModuleSource {
    /// The parameters of `module`.
    pub fn new<M: Module>(module: &M) -> Self {
        let mut visitor = Visitor { path: state::Path::default(), parameters: BTreeMap::new() };
        module.visit(&mut visitor);
        Self { parameters: visitor.parameters }
    }
}

struct Visitor {
    path: state::Path,
    parameters: BTreeMap<String, Parameter>,
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (name, tensor) = (self.path.name(), param.val().inner());
        let in_memory = tensor.dims();
        let mut shape = checkpoint_shape(&in_memory);
        canonical_shape(&name, &mut shape);
        let values = Box::new(move || to_checkpoint(&values_of(tensor.clone()), &in_memory));
        self.parameters.insert(name, Parameter { shape, values });
    }
}

impl TensorSource for ModuleSource {
    fn origin(&self) -> &Path {
        Path::new("the model in memory")
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let info = |(name, parameter): (&String, &Parameter)| TensorInfo {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: parameter.shape.clone(),
        };
        self.parameters.iter().map(info).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        let Some(parameter) = self.parameters.get(name) else {
            return Err(TensorFileError::MissingTensor {
                file: self.origin().to_owned(),
                tensor: name.to_owned(),
                count: self.parameters.len(),
                nearest: None,
            });
        };
        let values = (parameter.values)();
        Ok(NamedTensor::from_f32(name, parameter.shape.clone(), &values).into_owned())
    }
}
