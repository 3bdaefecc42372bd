//! AdamW and the moving average over all parameters of a module.

use crate::settings::{Course, OptimizerSettings};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use calotype_models::state::{Path, from_checkpoint, to_checkpoint, values_of};
use calotype_ops::in_backward::{AfterBackward, Leaf, StepParameter, Uses, backward_stepping};
use calotype_ops::{AdamW, Pace, Trained, optimizer_step, optimizer_steps, sum_of_squares, sums_of_squares};

/// What training keeps for each parameter beside its value; all flat, in the parameter's memory order.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    shape: Vec<usize>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    average: Option<Tensor<1>>,
}

impl Slot {
    /// What a step needs beside the gradient. The slot's own tensors go with it, so that nothing else owns them.
    fn lend(&mut self, parameter: Tensor<1>) -> Trained<1> {
        let take = |t: &mut Tensor<1>| std::mem::replace(t, Tensor::empty([0], &t.device()));
        Trained {
            parameter,
            first_moment: take(&mut self.first_moment),
            second_moment: take(&mut self.second_moment),
            average: self.average.take(),
        }
    }

    /// Keeps what a step made of what was lent; gives the parameter's new value.
    fn keep(&mut self, new: Trained<1>) -> Tensor<1> {
        (self.first_moment, self.second_moment, self.average) = (new.first_moment, new.second_moment, new.average);
        new.parameter
    }
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
            fn enter_module(&mut self, name: &str, container: &str) {
                self.path.push(name, container);
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
        struct Collect<'a> {
            gradients: &'a Gradients,
            slots: std::slice::Iter<'a, Slot>,
            found: Vec<(&'a str, Tensor<1>)>,
        }
        impl ModuleVisitor for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some(slot) = self.slots.next() else { return };
                self.found.extend(param.val().grad(self.gradients).map(|g| (slot.name.as_str(), flattened(g))));
            }
        }
        let mut collect = Collect { gradients, slots: self.slots.iter(), found: Vec::with_capacity(self.slots.len()) };
        module.visit(&mut collect);
        let (names, found): (Vec<_>, Vec<_>) = collect.found.into_iter().unzip();
        let squares = sums_of_squares(&found);
        match names.iter().zip(&squares).find(|(_, square)| !square.is_finite()) {
            Some((name, _)) => Err(NotFinite { what: format!("gradient of `{name}`") }),
            None => Ok(squares.iter().sum::<f64>().sqrt()),
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
        let OptimizerSettings { gradient_clip, .. } = *course.optimizer;
        let clip = gradient_clip > 0.0 && gradient_norm > gradient_clip;
        let scale = if clip { (gradient_clip / gradient_norm) as f32 } else { 1.0 };
        let pace = self.next_pace(course, samples, scale);
        let count = self.slots.len();
        let mut lend =
            Lend { gradients, slots: self.slots.iter_mut(), steps: Vec::with_capacity(count), stepped: Vec::new() };
        let module = module.map(&mut lend);
        let Lend { steps, stepped, .. } = lend;
        let mut new = optimizer_steps(steps, &pace).into_iter();
        let keep = |(slot, stepped): (&mut Slot, bool)| stepped.then(|| Some((slot.keep(new.next()?), true))).flatten();
        let values: Vec<_> = self.slots.iter_mut().zip(stepped).map(keep).collect();
        module.map(&mut PutBack { slots: self.slots.iter(), values: values.into_iter() })
    }

    /// The same step without clipping, taken during the backward pass of `loss`: each gradient is used as soon as it is
    /// complete, and its memory is free for the next. `uses` are those of the loss's forward pass.
    ///
    /// With `measure`, gives the norm of the whole gradient, too.
    ///
    /// # Errors
    /// [`NotFinite`] naming the first gradient, in traversal order, that is not finite; only with `measure`.
    pub fn step_in_backward<M: Module>(
        &mut self,
        module: M,
        (loss, uses): (Tensor<1>, Uses),
        course: &Course<'_>,
        samples: u64,
        measure: bool,
    ) -> (M, Result<Option<f64>, NotFinite>) {
        let pace = self.next_pace(course, samples, 1.0);
        let mut take = Take::default();
        let module = module.map(&mut take);
        let squares = measure.then(|| vec![0.0; self.slots.len()]);
        let stepper = Stepper { slots: std::mem::take(&mut self.slots), pace, squares };
        let (parameters, mut stepper) = backward_stepping(loss, take.leaves, uses, stepper);
        let step = |(index, (after, trainable)): (usize, (AfterBackward, bool))| {
            let parameter = match after.gradient {
                Some(gradient) => stepper.step(index, after.parameter, gradient),
                None => after.parameter,
            };
            Some((parameter, trainable))
        };
        let values: Vec<_> = parameters.into_iter().zip(take.trainable).enumerate().map(step).collect();
        self.slots = stepper.slots;
        let module = module.map(&mut PutBack { slots: self.slots.iter(), values: values.into_iter() });
        let norm = match stepper.squares {
            None => Ok(None),
            Some(squares) => match squares.iter().position(|square| !square.is_finite()) {
                Some(bad) => Err(NotFinite { what: format!("gradient of `{}`", self.slots[bad].name) }),
                None => Ok(Some(squares.iter().sum::<f64>().sqrt())),
            },
        };
        (module, norm)
    }

    /// Counts a step, and tells what it is taken with.
    fn next_pace(&mut self, course: &Course<'_>, samples: u64, gradient_scale: f32) -> Pace {
        self.steps += 1;
        let OptimizerSettings { beta1, beta2, eps, weight_decay, .. } = *course.optimizer;
        let lr = course.optimizer.learning_rate_at(samples, course.run.samples) as f32;
        Pace {
            hyper: AdamW { lr, beta1, beta2, eps, weight_decay },
            step: self.steps,
            gradient_scale,
            ema_decay: course.ema.map_or(1.0, |ema| ema.decay(samples, course.run.batch_size)),
        }
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

fn flattened<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let size = tensor.shape().num_elements();
    tensor.reshape([size])
}

/// Takes the parameters that have a gradient out of a module, which gets empty ones instead, and what their slots keep.
struct Lend<'a> {
    gradients: &'a mut Gradients,
    slots: std::slice::IterMut<'a, Slot>,
    /// Those parameters, with their gradients.
    steps: Vec<(Trained<1>, Tensor<1>)>,
    /// Which parameters they are.
    stepped: Vec<bool>,
}

impl ModuleMapper for Lend<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(slot) = self.slots.next() else { return param };
        let (id, tensor, mapper) = param.consume();
        let gradient = tensor.grad_remove(self.gradients);
        self.stepped.push(gradient.is_some());
        let Some(gradient) = gradient else { return Param::from_mapped_value(id, tensor, mapper) };
        let empty = Tensor::empty([0; D], &tensor.device());
        self.steps.push((slot.lend(flattened(tensor.inner())), flattened(gradient)));
        Param::from_mapped_value(id, empty, mapper)
    }
}

/// Takes the parameters out of a module, which gets empty ones instead.
#[derive(Default)]
struct Take {
    leaves: Vec<Leaf>,
    /// Which of them want a gradient.
    trainable: Vec<bool>,
}

impl ModuleMapper for Take {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let empty = Tensor::empty([0; D], &tensor.device());
        self.trainable.push(tensor.is_require_grad());
        self.leaves
            .push(Leaf::new(tensor).expect("the loss is on the CPU's autodiff device, and so are the parameters"));
        Param::from_mapped_value(id, empty, mapper)
    }
}

/// Steps parameters as their gradients come.
struct Stepper {
    slots: Vec<Slot>,
    pace: Pace,
    /// Each gradient's sum of squares, where wanted.
    squares: Option<Vec<f64>>,
}

impl StepParameter for Stepper {
    fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        if let Some(squares) = &mut self.squares {
            squares[index] = sum_of_squares(&gradient);
        }
        let slot = &mut self.slots[index];
        let new = optimizer_step(slot.lend(parameter), gradient, &self.pace);
        slot.keep(new)
    }
}

/// Puts the new values into the module that [`Take`] or [`Lend`] emptied.
struct PutBack<'a> {
    slots: std::slice::Iter<'a, Slot>,
    /// With each, whether it wants a gradient; none where the parameter is still in its place.
    values: std::vec::IntoIter<Option<(Tensor<1>, bool)>>,
}

impl ModuleMapper for PutBack<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (Some(slot), Some((value, trainable))) = (self.slots.next(), self.values.next().flatten()) else {
            return param;
        };
        let (id, _, mapper) = param.consume();
        let shape: [usize; D] = std::array::from_fn(|i| slot.shape[i]);
        Param::from_mapped_value(id, value.reshape(shape).autodiff().set_require_grad(trainable), mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{EmaSettings, RunSettings};
    use burn::backend::flex::Flex;
    use burn::tensor::DType;
    use calotype_kernels::{Purpose, Stream};
    use calotype_models::unet::Keep;
    use calotype_models::{Init, UNet, UNetConfig, state};
    use calotype_ops::in_backward::count_uses;
    use calotype_ops::mean_squared_error;

    fn noise<const D: usize>(shape: [usize; D], index: u64, device: &Device) -> Tensor<D> {
        let mut values = vec![0f32; shape.iter().product()];
        Stream::new(5, Purpose::Noise, index).fill_normal(&mut values);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn network(device: &Device) -> UNet {
        let config = UNetConfig {
            block_out_channels: vec![16, 32],
            layers_per_block: 1,
            attention_levels: vec![true, true],
            head_channels: vec![8, 16],
            context_channels: 12,
            norm_groups: 4,
            transformer_norm_groups: 4,
            ..UNetConfig::default()
        };
        config.init(&mut Init::new(2, device)).expect("a sound configuration")
    }

    fn loss(unet: &UNet, keep: Keep, step: u64) -> Tensor<1> {
        let device = Device::flex();
        let x = noise([2, 8, 8, 4], 3 * step, &device).cast(DType::BF16);
        let output = unet.forward_keeping(keep, x, &[3.0, 700.0], noise([2, 5, 12], 3 * step + 1, &device), None);
        mean_squared_error(output.cast(DType::F32), noise([2, 8, 8, 4], 3 * step + 2, &device))
    }

    /// How a run steps.
    #[derive(Clone, Copy, PartialEq)]
    enum When {
        After,
        InBackward,
    }

    /// Bits of weights and optimizer state after some steps, and the norms on the way. Checks that after the first step,
    /// which may find shared storage, all are changed in place.
    fn train(when: When, keep: Keep) -> (Vec<Vec<u32>>, Vec<f64>) {
        let settings = OptimizerSettings { learning_rate: 1e-2, ..OptimizerSettings::default() };
        let run = RunSettings {
            seed: 0,
            samples: 100,
            batch_size: 2,
            precision: Default::default(),
            log_every: 1,
            checkpoint_every: 1,
            keep_checkpoints: 1,
        };
        let ema = EmaSettings { half_life: 10, rampup: 0.5 };
        let course = Course { run: &run, optimizer: &settings, ema: Some(&ema) };
        let mut unet = network(&Device::flex().autodiff());
        let mut optimizer = Optimizer::new(&unet, true);
        let mut norms = Vec::new();
        let mut places = Vec::new();
        for step in 0..4 {
            let samples = 2 * (step + 1);
            if when == When::After {
                let mut gradients = loss(&unet, keep, step).backward();
                let norm = optimizer.gradient_norm(&unet, &gradients).expect("finite");
                unet = optimizer.step(unet, &mut gradients, &course, samples, norm);
                norms.push(norm);
            } else {
                let counted = count_uses(|| loss(&unet, keep, step));
                let norm;
                (unet, norm) = optimizer.step_in_backward(unet, counted, &course, samples, true);
                norms.push(norm.expect("finite").expect("measured"));
            }
            places.push(addresses(&unet, &optimizer));
        }
        assert!(places[1..].iter().all(|later| *later == places[1]), "a step copied what it should change in place");
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        let weights = state::collect(&unet).into_iter().map(|t| bits(t.values));
        let kept = optimizer.state().map(|(_, _, values)| bits(values));
        (weights.chain(kept).collect(), norms)
    }

    /// Where the numbers of weights, moments and averages are in memory.
    fn addresses(unet: &UNet, optimizer: &Optimizer) -> Vec<*const u8> {
        struct Addresses(Vec<*const u8>);
        impl Addresses {
            fn push<const D: usize>(&mut self, t: Tensor<D>) {
                self.0.push(t.inner().try_into_primitive::<Flex>().expect("a tensor of Flex").bytes().as_ptr());
            }
        }
        impl ModuleVisitor for Addresses {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.push(param.val());
            }
        }
        let mut addresses = Addresses(Vec::new());
        unet.visit(&mut addresses);
        for slot in &optimizer.slots {
            addresses.push(slot.first_moment.clone());
            addresses.push(slot.second_moment.clone());
            slot.average.iter().for_each(|average| addresses.push(average.clone()));
        }
        addresses.0
    }

    #[test]
    fn steps_are_in_place_and_the_same_in_every_mode() {
        let (want, norms) = train(When::After, Keep::Activations);
        for (when, keep) in
            [(When::After, Keep::Inputs), (When::InBackward, Keep::Activations), (When::InBackward, Keep::Inputs)]
        {
            let (got, got_norms) = train(when, keep);
            assert!(got == want && got_norms == norms, "in backward: {}, {keep:?}", when == When::InBackward);
        }
    }

    #[test]
    fn parameters_without_gradient_stay_as_they_are() {
        let device = Device::flex().autodiff();
        let mut unet = network(&device).no_grad();
        let before: Vec<_> = state::collect(&unet).into_iter().map(|t| t.values).collect();
        let run = RunSettings {
            seed: 0,
            samples: 2,
            batch_size: 2,
            precision: Default::default(),
            log_every: 1,
            checkpoint_every: 1,
            keep_checkpoints: 1,
        };
        let course = Course { run: &run, optimizer: &OptimizerSettings::default(), ema: None };
        let mut optimizer = Optimizer::new(&unet, false);
        let weight = noise([3], 0, &device).require_grad();
        let counted = count_uses(|| loss(&unet, Keep::Inputs, 0) + weight.sum());
        (unet, _) = optimizer.step_in_backward(unet, counted, &course, 2, false);
        let after: Vec<_> = state::collect(&unet).into_iter().map(|t| t.values).collect();
        assert!(before == after);
    }
}
