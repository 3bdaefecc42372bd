//! AdamW and the moving average over all parameters of a module.

use crate::settings::{Course, OptimizerSettings};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use calotype_models::state::{Path, from_checkpoint, to_checkpoint, values_of};
use calotype_ops::{AdamW, adamw_step, ema_step, sum_of_squares};

/// What training keeps for each parameter beside its value; all flat, in the parameter's memory order.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    shape: Vec<usize>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    average: Option<Tensor<1>>,
}

/// Optimizer state of a module, in the module's traversal order.
#[derive(Clone, Debug)]
pub struct Optimizer {
    slots: Vec<Slot>,
    steps: u64,
}

/// A value that is not finite, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFinite {
    /// `gradient of <parameter>` or the like.
    pub what: String,
}

/// Names of the state's parts in a checkpoint, in front of the parameter's name.
pub const FIRST_MOMENT: &str = "adamw.first_moment.";
/// See [`FIRST_MOMENT`].
pub const SECOND_MOMENT: &str = "adamw.second_moment.";
/// See [`FIRST_MOMENT`].
pub const AVERAGE: &str = "ema.";

impl Optimizer {
    /// Zero moments; the average, if wanted, starts at the weights.
    pub fn new<M: Module>(module: &M, average: bool) -> Self {
        struct Start {
            path: Path,
            average: bool,
            slots: Vec<Slot>,
        }
        impl ModuleVisitor for Start {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name);
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let tensor = param.val().inner();
                let (shape, device) = (tensor.dims().to_vec(), tensor.device());
                let size = shape.iter().product::<usize>();
                let zeros = || Tensor::<1>::zeros([size], &device);
                self.slots.push(Slot {
                    name: self.path.name(),
                    shape,
                    first_moment: zeros(),
                    second_moment: zeros(),
                    average: self.average.then(|| owned_copy(tensor)),
                });
            }
        }
        let mut start = Start { path: Path::default(), average, slots: Vec::new() };
        module.visit(&mut start);
        Self { slots: start.slots, steps: 0 }
    }

    /// The norm of the whole gradient.
    ///
    /// # Errors
    /// [`NotFinite`] naming the first gradient, in traversal order, that is not finite.
    pub fn gradient_norm<M: Module>(&self, module: &M, gradients: &Gradients) -> Result<f64, NotFinite> {
        struct Norm<'a> {
            gradients: &'a Gradients,
            slots: std::slice::Iter<'a, Slot>,
            sum: f64,
            bad: Option<NotFinite>,
        }
        impl ModuleVisitor for Norm<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let name = self.slots.next().map_or("", |slot| slot.name.as_str());
                let Some(gradient) = param.val().grad(self.gradients) else { return };
                let square = sum_of_squares(&gradient);
                if !square.is_finite() && self.bad.is_none() {
                    self.bad = Some(NotFinite { what: format!("gradient of `{name}`") });
                }
                self.sum += square;
            }
        }
        let mut norm = Norm { gradients, slots: self.slots.iter(), sum: 0.0, bad: None };
        module.visit(&mut norm);
        match norm.bad {
            Some(bad) => Err(bad),
            None => Ok(norm.sum.sqrt()),
        }
    }

    /// One step that takes a module and its gradients after `samples` seen (this step's included).
    pub fn step<M: Module>(
        &mut self,
        module: M,
        gradients: &mut Gradients,
        course: &Course<'_>,
        samples: u64,
        gradient_norm: f64,
    ) -> M {
        self.steps += 1;
        let OptimizerSettings { beta1, beta2, eps, weight_decay, gradient_clip, .. } = *course.optimizer;
        let lr = course.optimizer.learning_rate_at(samples, course.run.samples) as f32;
        let clip = gradient_clip > 0.0 && gradient_norm > gradient_clip;
        let mut step = Step {
            gradients,
            slots: self.slots.iter_mut(),
            hyper: AdamW { lr, beta1, beta2, eps, weight_decay },
            step: self.steps,
            gradient_scale: if clip { (gradient_clip / gradient_norm) as f32 } else { 1.0 },
            ema_decay: course.ema.map(|ema| ema.decay(samples, course.run.batch_size)),
        };
        module.map(&mut step)
    }

    /// Optimizer steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state by checkpoint name: `(name, shape, values)` in checkpoint layout.
    pub fn state(&self) -> impl Iterator<Item = (String, Vec<usize>, Vec<f32>)> + '_ {
        self.slots.iter().flat_map(|slot| {
            let parts = [
                (FIRST_MOMENT, Some(&slot.first_moment)),
                (SECOND_MOMENT, Some(&slot.second_moment)),
                (AVERAGE, slot.average.as_ref()),
            ];
            parts.into_iter().filter_map(move |(prefix, tensor)| {
                let values = to_checkpoint(&values_of(tensor?.clone()), &slot.shape);
                let shape = calotype_models::state::checkpoint_shape(&slot.shape);
                Some((format!("{prefix}{}", slot.name), shape, values))
            })
        })
    }

    /// Restores what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// Those of `lookup`, which gets name and checkpoint shape.
    pub fn restore<E>(
        &mut self,
        steps: u64,
        mut lookup: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        for slot in &mut self.slots {
            let shape = calotype_models::state::checkpoint_shape(&slot.shape);
            let device = slot.first_moment.device();
            let mut get = |prefix: &str| -> Result<Tensor<1>, E> {
                let values = lookup(&format!("{prefix}{}", slot.name), &shape)?;
                Ok(flat(from_checkpoint(&values, &slot.shape), &device))
            };
            slot.first_moment = get(FIRST_MOMENT)?;
            slot.second_moment = get(SECOND_MOMENT)?;
            if slot.average.is_some() {
                slot.average = Some(get(AVERAGE)?);
            }
        }
        self.steps = steps;
        Ok(())
    }

    /// The module with the averaged weights in place of its own, where there is an average.
    pub fn averaged<M: Module>(&self, module: &M) -> M {
        struct Replace<'a>(std::slice::Iter<'a, Slot>);
        impl ModuleMapper for Replace<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let average = self.0.next().and_then(|slot| slot.average.clone());
                let (id, tensor, mapper) = param.consume();
                let tensor = match average {
                    Some(average) => {
                        let shape = tensor.dims();
                        let grad = tensor.is_require_grad();
                        let average = average.reshape(shape);
                        let average = if tensor.is_autodiff() { average.autodiff() } else { average };
                        average.set_require_grad(grad)
                    }
                    None => tensor,
                };
                Param::from_mapped_value(id, tensor, mapper)
            }
        }
        module.clone().map(&mut Replace(self.slots.iter()))
    }
}

fn flat(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let size = values.len();
    Tensor::from_data(TensorData::new(values, [size]), device)
}

/// A flat copy with storage of its own, so that later steps can change it in place.
fn owned_copy<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let device = tensor.device();
    flat(values_of(tensor), &device)
}

struct Step<'a> {
    gradients: &'a mut Gradients,
    slots: std::slice::IterMut<'a, Slot>,
    hyper: AdamW,
    step: u64,
    gradient_scale: f32,
    ema_decay: Option<f32>,
}

impl ModuleMapper for Step<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(slot) = self.slots.next() else { return param };
        let (id, tensor, mapper) = param.consume();
        let Some(gradient) = tensor.grad_remove(self.gradients) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let shape = tensor.dims();
        let size = shape.iter().product::<usize>();
        let take = |t: &mut Tensor<1>| std::mem::replace(t, Tensor::zeros([0], &t.device()));
        let moments = (take(&mut slot.first_moment), take(&mut slot.second_moment));
        let parameter = tensor.inner().reshape([size]);
        let gradient = gradient.reshape([size]);
        let (parameter, m, v) = adamw_step(parameter, gradient, moments, &self.hyper, self.step, self.gradient_scale);
        (slot.first_moment, slot.second_moment) = (m, v);
        if let (Some(average), Some(decay)) = (&mut slot.average, self.ema_decay) {
            let old = take(average);
            *average = ema_step(old, parameter.clone(), decay);
        }
        let tensor = parameter.reshape(shape).autodiff().require_grad();
        Param::from_mapped_value(id, tensor, mapper)
    }
}
