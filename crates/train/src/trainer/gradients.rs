//! Gradients of several processes.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use calotype_collective::{Collective, CollectiveError};
use calotype_models::state::values_of;

/// Replaces numbers by their means over all processes; all have as many.
///
/// # Errors
/// [`CollectiveError`] if a process is gone.
pub(super) fn average_numbers<'a>(
    numbers: impl Iterator<Item = &'a mut f64>,
    collective: &dyn Collective,
) -> Result<(), CollectiveError> {
    let numbers: Vec<&mut f64> = numbers.collect();
    let mut sums: Vec<f32> = numbers.iter().map(|number| **number as f32).collect();
    collective.all_reduce_sum(&mut sums)?;
    let world = collective.world() as f64;
    numbers.into_iter().zip(sums).for_each(|(number, sum)| *number = f64::from(sum) / world);
    Ok(())
}

/// Replaces the gradients by their means over all processes.
///
/// # Errors
/// [`CollectiveError`] if a process is gone.
pub(super) fn average<M: Module>(
    parameters: &M,
    gradients: &mut Gradients,
    collective: &dyn Collective,
) -> Result<(), CollectiveError> {
    struct Average<'a> {
        gradients: &'a mut Gradients,
        collective: &'a dyn Collective,
        error: Option<CollectiveError>,
    }
    impl ModuleVisitor for Average<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            if self.error.is_some() || !tensor.is_require_grad() {
                return;
            }
            let gradient = tensor.grad_remove(self.gradients);
            let (shape, device) = (tensor.dims(), tensor.device().inner());
            // Every process sums every parameter, also one that its own part did not touch.
            let mut values = gradient.map_or_else(|| vec![0.0; shape.iter().product()], values_of);
            self.error = self.collective.all_reduce_sum(&mut values).err();
            let share = 1.0 / self.collective.world() as f32;
            values.iter_mut().for_each(|value| *value *= share);
            tensor.grad_replace(self.gradients, Tensor::from_data(TensorData::new(values, shape), &device));
        }
    }
    if collective.world() == 1 {
        return Ok(());
    }
    let mut average = Average { gradients, collective, error: None };
    parameters.visit(&mut average);
    average.error.map_or(Ok(()), Err)
}
