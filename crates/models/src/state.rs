//! Parameters of a module by name, in the layout of published checkpoints.
//!
//! Convolution weights are kept as `[out, rows, columns, in]` in memory and are `[out, in, rows,
//! columns]` here, so that what is written loads into the reference implementations as it is.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

/// A parameter or a value that belongs to it (gradient, moment, average), in checkpoint layout.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedValues {
    /// Dotted module path, equal to the checkpoint key.
    pub name: String,
    /// Shape in checkpoint layout.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<f32>,
}

/// Why a value could not become a parameter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The source has no such key.
    #[error("{source_name} has no tensor `{name}`")]
    Missing {
        /// Where the values were looked up.
        source_name: String,
        /// The key.
        name: String,
    },
    /// The source's tensor has another shape.
    #[error("{source_name}: tensor `{name}` has shape {found:?}, the model needs {needed:?}")]
    Shape {
        /// Where the values were looked up.
        source_name: String,
        /// The key.
        name: String,
        /// Shape in the source.
        found: Vec<usize>,
        /// Shape of the model's parameter, in checkpoint layout.
        needed: Vec<usize>,
    },
}

/// Follows a traversal and knows the dotted path.
#[derive(Default)]
pub struct Path(Vec<String>);

impl Path {
    /// Enters a field.
    pub fn push(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    /// Leaves the innermost field.
    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// The dotted path.
    pub fn name(&self) -> String {
        self.0.join(".")
    }
}

/// The shape that a parameter of `shape` has in a checkpoint.
pub fn checkpoint_shape(shape: &[usize]) -> Vec<usize> {
    match *shape {
        [o, h, w, i] => vec![o, i, h, w],
        _ => shape.to_vec(),
    }
}

/// Reorders values of a parameter of `shape` (in memory) into checkpoint layout.
pub fn to_checkpoint(values: &[f32], shape: &[usize]) -> Vec<f32> {
    match *shape {
        [o, h, w, i] => permute(values, [o, h, w, i], [0, 3, 1, 2]),
        _ => values.to_vec(),
    }
}

/// Reorders checkpoint values into the memory layout of a parameter of `shape` (in memory).
pub fn from_checkpoint(values: &[f32], shape: &[usize]) -> Vec<f32> {
    match *shape {
        [o, h, w, i] => permute(values, [o, i, h, w], [0, 2, 3, 1]),
        _ => values.to_vec(),
    }
}

/// Row-major values of `dims` with the axes in the order `axes`.
fn permute(values: &[f32], dims: [usize; 4], axes: [usize; 4]) -> Vec<f32> {
    let mut strides = [1usize; 4];
    for d in (0..3).rev() {
        strides[d] = strides[d + 1] * dims[d + 1];
    }
    let (size, stride) = (axes.map(|a| dims[a]), axes.map(|a| strides[a]));
    let mut out = Vec::with_capacity(values.len());
    for a in 0..size[0] {
        for b in 0..size[1] {
            for c in 0..size[2] {
                let start = a * stride[0] + b * stride[1] + c * stride[2];
                out.extend((0..size[3]).map(|d| values[start + d * stride[3]]));
            }
        }
    }
    out
}

/// The elements of a float tensor as `f32`, in row-major order.
pub fn values_of<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// All parameters of a module in traversal order, in checkpoint layout.
pub fn collect<M: Module>(module: &M) -> Vec<NamedValues> {
    struct Collect {
        path: Path,
        out: Vec<NamedValues>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            let shape = tensor.dims();
            self.out.push(NamedValues {
                name: self.path.name(),
                shape: checkpoint_shape(&shape),
                values: to_checkpoint(&values_of(tensor.inner()), &shape),
            });
        }
    }
    let mut visitor = Collect { path: Path::default(), out: Vec::new() };
    module.visit(&mut visitor);
    visitor.out
}

/// Names and checkpoint shapes of all parameters, in traversal order.
pub fn layout<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Layout {
        path: Path,
        out: Vec<(String, Vec<usize>)>,
    }
    impl ModuleVisitor for Layout {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.out.push((self.path.name(), checkpoint_shape(&param.val().dims())));
        }
    }
    let mut visitor = Layout { path: Path::default(), out: Vec::new() };
    module.visit(&mut visitor);
    visitor.out
}

/// Replaces every parameter of a module by what `lookup` gives for its key, in checkpoint layout.
///
/// # Errors
/// The first error of `lookup` ends the loading.
pub fn load<M: Module, E>(module: M, lookup: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>) -> Result<M, E> {
    struct Load<F, E> {
        path: Path,
        lookup: F,
        error: Option<E>,
    }
    impl<F: FnMut(&str, &[usize]) -> Result<Vec<f32>, E>, E> ModuleMapper for Load<F, E> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.error.is_some() {
                return param;
            }
            let (id, tensor, mapper) = param.consume();
            let (shape, device) = (tensor.dims(), tensor.device());
            let tensor = match (self.lookup)(&self.path.name(), &checkpoint_shape(&shape)) {
                Ok(values) => {
                    let data = TensorData::new(from_checkpoint(&values, &shape), shape);
                    let grad = tensor.is_require_grad();
                    Tensor::from_data(data, &device).set_require_grad(grad)
                }
                Err(error) => {
                    self.error = Some(error);
                    tensor
                }
            };
            Param::from_mapped_value(id, tensor, mapper)
        }
    }
    let mut mapper = Load { path: Path::default(), lookup, error: None };
    let module = module.map(&mut mapper);
    match mapper.error {
        Some(error) => Err(error),
        None => Ok(module),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoint_layout_round_trip() {
        let shape = [2, 3, 4, 5];
        let values: Vec<f32> = (0..120).map(|i| i as f32).collect();
        let out = to_checkpoint(&values, &shape);
        assert_eq!(checkpoint_shape(&shape), [2, 5, 3, 4]);
        // Element (o, i, h, w) = (1, 2, 0, 3) came from (1, 0, 3, 2).
        assert_eq!(out[((5 + 2) * 3) * 4 + 3], values[(3 * 4 + 3) * 5 + 2]);
        assert_eq!(from_checkpoint(&out, &shape), values);
    }
}
