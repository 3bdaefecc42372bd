//! What goes into the layers of a network: the largest magnitude of each input channel, by which weights are quantised.

use crate::state::Path;
use crate::weight::LayerWeight;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Tensor};
use calotype_kernels::column_maxima;
use half::bf16;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// Largest magnitudes of the input channels of layers, by their weights.
#[derive(Clone, Debug, Default)]
pub struct Observed(HashMap<ParamId, Vec<f32>>);

thread_local! {
    static OBSERVED: RefCell<Option<Observed>> = const { RefCell::new(None) };
}

/// Runs `body` and tells what went into the layers meanwhile, on this thread. Not to be nested: the inner call takes what it sees.
pub fn observed<R>(body: impl FnOnce() -> R) -> (R, Observed) {
    /// Puts what was there before back even when the body panics.
    struct Restore(Option<Observed>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OBSERVED.set(self.0.take());
        }
    }
    let _restore = Restore(OBSERVED.replace(Some(Observed::default())));
    let result = body();
    (result, OBSERVED.take().unwrap_or_default())
}

/// Takes note of a layer's input, `[.., in]`, if somebody wants to know.
pub(crate) fn input<const W: usize, const D: usize>(weight: &LayerWeight<W>, x: &Tensor<D>) {
    let wanted = OBSERVED.with_borrow(Option::is_some);
    let channels = x.dims()[D - 1];
    if !wanted || x.dims().contains(&0) {
        return;
    }
    let data = if x.device().is_autodiff() { x.clone().inner() } else { x.clone() }.into_data();
    OBSERVED.with_borrow_mut(|observed| {
        let Some(Observed(layers)) = observed else { return };
        let maxima = layers.entry(weight.id()).or_insert_with(|| vec![0.0; channels]);
        match (data.dtype(), data.as_slice::<bf16>(), data.as_slice::<f32>()) {
            (DType::BF16, Ok(x), _) => column_maxima(x, maxima),
            (_, _, Ok(x)) => column_maxima(x, maxima),
            _ => column_maxima(&data.iter::<f32>().collect::<Vec<_>>(), maxima),
        }
    });
}

impl Observed {
    /// Adds what was seen at another time: the greater of both.
    pub fn merge(&mut self, other: Self) {
        for (id, maxima) in other.0 {
            match self.0.get_mut(&id) {
                Some(known) => column_maxima(&maxima, known),
                None => drop(self.0.insert(id, maxima)),
            }
        }
    }

    /// By the keys that the weights have in checkpoints.
    pub fn by_key<M: Module>(&self, module: &M) -> BTreeMap<String, Vec<f32>> {
        struct Names<'a> {
            path: Path,
            observed: &'a Observed,
            found: BTreeMap<String, Vec<f32>>,
        }
        impl ModuleVisitor for Names<'_> {
            fn enter_module(&mut self, name: &str, container: &str) {
                self.path.push(name, container);
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(maxima) = self.observed.0.get(&param.id) {
                    self.found.insert(self.path.name(), maxima.clone());
                }
            }
        }
        let mut names = Names { path: Path::default(), observed: self, found: BTreeMap::new() };
        module.visit(&mut names);
        names.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Conv2d, Linear};
    use crate::{Init, state};
    use burn::tensor::{Device, TensorData};

    #[derive(Module, Debug)]
    struct Two {
        first: Linear,
        second: Conv2d,
    }

    #[test]
    fn the_largest_inputs_of_layers_are_told_by_key() {
        let device = Device::flex();
        let mut init = Init::new(0, &device);
        let two = Two { first: Linear::new(&mut init, 2, 3), second: Conv2d::same(&mut init, 2, 2, 3) };
        let x = |values: [f32; 4]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [2, 2]), &device);
        let ((), mut seen) = observed(|| {
            two.first.forward(x([1.0, -2.0, 0.5, 1.0]));
            two.second.forward(x([0.0, 7.0, -8.0, 1.0]).reshape([1, 2, 1, 2]).cast(DType::BF16));
        });
        two.first.forward(x([100.0; 4]));
        let packed = state::packed(two.clone());
        let ((), more) = observed(|| drop(packed.first.forward(x([-3.0, 0.0, 0.0, 0.0]))));
        seen.merge(more);
        let expected = [("first.weight", vec![3.0, 2.0]), ("second.weight", vec![8.0, 7.0])];
        let expected = expected.map(|(key, maxima)| (key.to_owned(), maxima));
        assert_eq!(seen.by_key(&two), BTreeMap::from(expected));
    }
}
