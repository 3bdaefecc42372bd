//! What the tests of models share.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use calotype_models::state::{Path, values_of};

/// Every parameter's gradient by name; none for a parameter without one.
pub fn gradients<M: Module>(module: &M, gradients: &Gradients) -> Vec<(String, Option<Vec<f32>>)> {
    struct Collect<'a> {
        path: Path,
        gradients: &'a Gradients,
        out: Vec<(String, Option<Vec<f32>>)>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.push(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.out.push((self.path.name(), param.val().grad(self.gradients).map(values_of)));
        }
    }
    let mut collect = Collect { path: Path::default(), gradients, out: Vec::new() };
    module.visit(&mut collect);
    collect.out
}
