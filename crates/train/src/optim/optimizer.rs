//! An update rule and a moving average over all parameters of a module.

use super::gradients::StepGradients;
use super::groups::{Group, GroupError, GroupRule};
use super::rule::UpdateRule;
use super::settings::TrainConfig;
use super::state::{CODES, MAXIMA, StateForm};
use crate::checkpoint::{LazyTensor, module_tensors};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use calotype_models::state::{Path, checkpoint_shape, from_checkpoint, values_of};
use calotype_ops::in_backward::{AfterBackward, Leaf, StepParameter, Uses, backward_stepping};
use calotype_ops::{
    EightBitMoment, EightBitState, ParameterState, StepParams, adamw_steps_in_eight_bits, ema_step, optimizer_step,
    optimizer_steps, sum_of_squares, sums_of_squares,
};
use calotype_weights::Dtype;

/// Names of averages in a checkpoint, in front of the parameter's name. Those of the moments are the rule's.
pub const AVERAGE: &str = "ema.";

/// Name of an average beside the first one, by its place among them.
fn beside_name(index: usize, parameter: &str) -> String {
    format!("ema{}.{parameter}", index + 2)
}

/// In front of the names of parameters without an average, in snapshots of averages.
pub(crate) const WITHOUT_AVERAGE: &str = "model.";

/// The name in a snapshot of the average at a place among all that are kept.
pub(crate) fn snapshot_name(index: usize, parameter: &str) -> String {
    format!("average{index}.{parameter}")
}

/// A parameter's place in the module, and what training keeps for it beside its value; all flat, in its memory order.
#[derive(Clone, Debug)]
struct Kept {
    name: String,
    /// In memory.
    shape: Vec<usize>,
    /// Its place among the optimizer's groups.
    group: usize,
    /// Whether it is frozen.
    frozen: bool,
    /// Whether another process of the run keeps the rest of this, and steps it.
    elsewhere: bool,
    /// The least and the largest value.
    clamp: Option<[f32; 2]>,
    /// In `f32`; none where they are in 8 bits.
    moments: Vec<Tensor<1>>,
    eight_bit: Option<[EightBitMoment; 2]>,
    average: Option<Tensor<1>>,
    /// Further averages.
    beside: Vec<Tensor<1>>,
}

impl Kept {
    /// What a step needs beside the gradient. The tensors go with it, so that nothing else owns them.
    fn lend(&mut self, parameter: Tensor<1>) -> ParameterState<1> {
        ParameterState { parameter, moments: std::mem::take(&mut self.moments), average: self.lend_average() }
    }

    /// The average, which a step takes the new value up into; not of one that is still to be clamped.
    fn lend_average(&mut self) -> Option<Tensor<1>> {
        if self.clamp.is_none() { self.average.take() } else { None }
    }

    /// Keeps what a step made of what was lent; gives the parameter's new value.
    fn keep(&mut self, new: ParameterState<1>) -> Tensor<1> {
        self.moments = new.moments;
        self.average = new.average.or(self.average.take());
        new.parameter
    }

    /// [`Kept::lend`] of moments in 8 bits.
    fn lend_eight_bit(&mut self, parameter: Tensor<1>) -> Option<EightBitState> {
        let moments = self.eight_bit.take()?;
        Some(EightBitState { parameter, moments, average: self.lend_average() })
    }

    /// [`Kept::keep`] of moments in 8 bits.
    fn keep_eight_bit(&mut self, new: EightBitState) -> Tensor<1> {
        self.eight_bit = Some(new.moments);
        self.average = new.average.or(self.average.take());
        new.parameter
    }

    /// The new value of a parameter within its bounds; the average of such a one has waited for it.
    fn clamped(&mut self, value: Tensor<1>, decay: f32) -> Tensor<1> {
        let Some([least, most]) = self.clamp else { return value };
        let value = value.clamp(least, most);
        self.average = self.average.take().map(|average| ema_step(average, value.clone(), decay));
        value
    }

    /// Takes a new value up into the averages beside the first one.
    fn follow(&mut self, parameter: &Tensor<1>, decays: &[f32]) {
        for (average, &decay) in self.beside.iter_mut().zip(decays) {
            let old = std::mem::replace(average, Tensor::empty([0], &parameter.device()));
            *average = ema_step(old, parameter.clone(), decay);
        }
    }

    /// All averages, the first one first.
    fn averages(&self) -> impl Iterator<Item = &Tensor<1>> {
        self.average.iter().chain(&self.beside)
    }
}

/// Optimizer state of a module, in the module's traversal order.
///
/// A frozen parameter has no moments and no average.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: UpdateRule,
    groups: Vec<Group>,
    kept: Vec<Kept>,
    /// Whether there are averages.
    averages: bool,
    steps: u64,
}

/// A value that is not finite, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFinite {
    /// `gradient of <parameter>` or the like.
    pub what: String,
}

impl NotFinite {
    fn gradient_of(name: &str) -> Self {
        Self { what: format!("gradient of `{name}`") }
    }
}

impl Optimizer {
    /// Zero moments; the average, if the configuration has one, starts at the weights.
    ///
    /// # Errors
    /// [`GroupError`] for a group's rule that matches no parameter.
    pub fn new<M: Module>(module: &M, config: &TrainConfig<'_>) -> Result<Self, GroupError> {
        let rules: Vec<GroupRule> = config.groups.iter().chain(&config.optimizer.groups).cloned().collect();
        let rule = config.optimizer.rule.clone();
        let moments = rule.get().moments().len();
        let mut start = Start {
            path: Path::default(),
            rules: &rules,
            moments,
            state: config.optimizer.state,
            average: config.ema.is_some(),
            beside: config.ema.map_or(0, |ema| ema.form.get().beside().len()),
            groups: vec![Group::default()],
            matched: vec![false; rules.len()],
            kept: Vec::new(),
        };
        module.visit(&mut start);
        let Start { groups, matched, kept, .. } = start;
        if let Some(unmatched) = matched.iter().position(|matched| !matched) {
            let names: Vec<&str> = kept.iter().map(|kept| kept.name.as_str()).collect();
            return Err(GroupError::new(&rules[unmatched], &names));
        }
        Ok(Self { rule, groups, kept, averages: config.ema.is_some(), steps: 0 })
    }

    /// The module with its frozen parameters as new leaves that require no gradient, so that no operation computes one.
    /// To be called once, before training.
    pub fn freeze<M: Module>(&self, module: M) -> M {
        struct Freeze<'a>(std::slice::Iter<'a, Kept>);
        impl ModuleMapper for Freeze<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                if !self.0.next().is_some_and(|kept| kept.frozen) {
                    return param;
                }
                let (id, tensor, mapper) = param.consume();
                // A new leaf: one that once wanted a gradient keeps wanting it.
                let tensor = if tensor.is_autodiff() { tensor.inner().autodiff() } else { tensor };
                Param::from_mapped_value(id, tensor.set_require_grad(false), mapper)
            }
        }
        if self.kept.iter().all(|kept| !kept.frozen) {
            return module;
        }
        module.map(&mut Freeze(self.kept.iter()))
    }

    /// Takes the module's gradients out of `gradients`, those of a mean over `weight` samples. Those of other parts of
    /// the same step are added by [`StepGradients::add`].
    pub fn gradients<M: Module>(&self, module: &M, gradients: &mut Gradients, weight: f64) -> StepGradients {
        struct Collect<'a> {
            gradients: &'a mut Gradients,
            found: Vec<Option<Tensor<1>>>,
        }
        impl ModuleVisitor for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.found.push(param.val().grad_remove(self.gradients).map(flattened));
            }
        }
        let mut collect = Collect { gradients, found: Vec::with_capacity(self.kept.len()) };
        module.visit(&mut collect);
        StepGradients::new(collect.found, weight)
    }

    /// The norm of the whole gradient.
    ///
    /// # Errors
    /// [`NotFinite`] naming the first gradient, in traversal order, that is not finite.
    pub fn gradient_norm(&self, gradients: &StepGradients) -> Result<f64, NotFinite> {
        self.norm_of(&self.squares(gradients), gradients)
    }

    /// The sum of the squares of each gradient that is there, by the places of the parameters in traversal order.
    pub fn squares(&self, gradients: &StepGradients) -> Vec<Option<f64>> {
        let found: Vec<_> = gradients.values.iter().flatten().cloned().collect();
        let mut squares = sums_of_squares(&found).into_iter();
        gradients.values.iter().map(|gradient| gradient.as_ref().and_then(|_| squares.next())).collect()
    }

    /// The norm of the whole gradient, of the [`squares`](Self::squares) of all of it.
    ///
    /// # Errors
    /// As [`Optimizer::gradient_norm`].
    pub fn norm_of(&self, squares: &[Option<f64>], gradients: &StepGradients) -> Result<f64, NotFinite> {
        let bad = self.kept.iter().zip(squares).find(|(_, square)| square.is_some_and(|square| !square.is_finite()));
        match bad {
            Some((kept, _)) => Err(NotFinite::gradient_of(&kept.name)),
            None => Ok(squares.iter().flatten().sum::<f64>().sqrt() * gradients.scale()),
        }
    }

    /// One step that takes a module and its gradients after `samples` seen (this step's included). `gradient_norm` is
    /// what gradients are clipped by, where the configuration clips.
    pub fn step<M: Module>(
        &mut self,
        module: M,
        gradients: StepGradients,
        config: &TrainConfig<'_>,
        samples: u64,
        gradient_norm: f64,
    ) -> M {
        let limit = config.optimizer.gradient_clip;
        let clip = if limit > 0.0 && gradient_norm > limit { limit / gradient_norm } else { 1.0 };
        let Rates { params, beside } = self.next_rates(config, samples, (clip * gradients.scale()) as f32);
        let count = self.kept.len();
        let mut lend = Lend {
            gradients: gradients.values.into_iter(),
            kept: self.kept.iter_mut(),
            steps: self.groups.iter().map(|_| GroupSteps::default()).collect(),
            stepped: Vec::with_capacity(count),
        };
        let module = module.map(&mut lend);
        let Lend { steps, stepped, .. } = lend;
        let mut new: Vec<_> = steps.into_iter().zip(&params).map(|(steps, params)| steps.run(params)).collect();
        let mut keep = |(kept, stepped): (&mut Kept, Option<Form>)| {
            let (full, eight_bit) = &mut new[kept.group];
            let value = match stepped? {
                Form::F32 => kept.keep(full.next()?),
                Form::EightBit => kept.keep_eight_bit(eight_bit.next()?),
            };
            let value = kept.clamped(value, params[kept.group].ema_decay);
            kept.follow(&value, &beside);
            Some((value, true))
        };
        let values: Vec<_> = self.kept.iter_mut().zip(stepped).map(&mut keep).collect();
        module.map(&mut PutBack { kept: self.kept.iter(), values: values.into_iter() })
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
        config: &TrainConfig<'_>,
        samples: u64,
        measure: bool,
    ) -> (M, Result<Option<f64>, NotFinite>) {
        let Rates { params, beside } = self.next_rates(config, samples, 1.0);
        let mut take = Take::default();
        let module = module.map(&mut take);
        let squares = measure.then(|| vec![0.0; self.kept.len()]);
        let stepper = Stepper { kept: std::mem::take(&mut self.kept), params, beside, squares };
        let (parameters, mut stepper) = backward_stepping(loss, take.leaves, uses, stepper);
        let step = |(index, (after, trainable)): (usize, (AfterBackward, bool))| {
            let parameter = match after.gradient {
                Some(gradient) => stepper.step(index, after.parameter, gradient),
                None => after.parameter,
            };
            Some((parameter, trainable))
        };
        let values: Vec<_> = parameters.into_iter().zip(take.trainable).enumerate().map(step).collect();
        self.kept = stepper.kept;
        let module = module.map(&mut PutBack { kept: self.kept.iter(), values: values.into_iter() });
        let norm = match stepper.squares {
            None => Ok(None),
            Some(squares) => match squares.iter().position(|square| !square.is_finite()) {
                Some(bad) => Err(NotFinite::gradient_of(&self.kept[bad].name)),
                None => Ok(Some(squares.iter().sum::<f64>().sqrt())),
            },
        };
        (module, norm)
    }

    /// The backward pass alone: `handler` gets each gradient as soon as it is complete, by the place of its parameter in
    /// traversal order, and gives the parameter back as it is. On the CPU only; `uses` are those of
    /// [`count_uses`](calotype_ops::in_backward::count_uses) around the loss.
    pub fn hand_in_backward<M: Module, S: StepParameter>(
        &self,
        module: M,
        (loss, uses): (Tensor<1>, Uses),
        handler: S,
    ) -> (M, S) {
        let mut take = Take::default();
        let module = module.map(&mut take);
        let (parameters, mut handler) = backward_stepping(loss, take.leaves, uses, handler);
        let hand = |(index, (after, trainable)): (usize, (AfterBackward, bool))| {
            let parameter = match after.gradient {
                Some(gradient) => handler.step(index, after.parameter, gradient),
                None => after.parameter,
            };
            Some((parameter, trainable))
        };
        let values: Vec<_> = parameters.into_iter().zip(take.trainable).enumerate().map(hand).collect();
        (module.map(&mut PutBack { kept: self.kept.iter(), values: values.into_iter() }), handler)
    }

    /// The number of values of each parameter in traversal order; none of a frozen one.
    pub fn trained_sizes(&self) -> Vec<Option<usize>> {
        self.kept.iter().map(|kept| (!kept.frozen).then(|| kept.shape.iter().product())).collect()
    }

    /// Leaves moments, average and steps of all parameters but `own` ones (places in traversal order) to other processes.
    pub fn leave_to_others(&mut self, own: impl Fn(usize) -> bool) {
        for (_, kept) in self.kept.iter_mut().enumerate().filter(|(place, _)| !own(*place)) {
            (kept.elsewhere, kept.moments, kept.eight_bit) = (true, Vec::new(), None);
            (kept.average, kept.beside) = (None, Vec::new());
        }
    }

    /// The average of each parameter in traversal order, where this process keeps one; flat.
    pub fn averages(&self) -> Vec<Option<Tensor<1>>> {
        self.kept.iter().map(|kept| kept.average.clone()).collect()
    }

    /// Whether there are averages of what is trained, here or in other processes.
    pub fn has_averages(&self) -> bool {
        self.averages
    }

    /// Counts a step and gives the update of each group and the decays of the averages.
    fn next_rates(&mut self, config: &TrainConfig<'_>, samples: u64, gradient_scale: f32) -> Rates {
        self.steps += 1;
        let at = config.position(samples);
        let rate = config.optimizer.learning_rate_at(&at);
        let ema_decay = config.ema.map_or(1.0, |ema| ema.decay(&at));
        let rule = self.rule.get();
        let of = |group: &Group| {
            let weight_decay = group.weight_decay.unwrap_or(rule.weight_decay());
            let update = rule.update((rate * group.learning_rate_scale) as f32, weight_decay);
            StepParams { update, step: self.steps, gradient_scale, ema_decay }
        };
        let beside = config.ema.map_or_else(Vec::new, |ema| ema.beside(&at));
        Rates { params: self.groups.iter().map(of).collect(), beside }
    }

    /// Optimizer steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state as tensors of a checkpoint, whose values are made one by one when they are written; without what is left to
    /// other processes.
    pub fn state(&self) -> impl Iterator<Item = LazyTensor<'_>> {
        self.kept.iter().flat_map(|kept| {
            let moments = self.rule.get().moments().iter().copied().zip(&kept.moments);
            let average = kept.average.iter().map(|average| (AVERAGE, average));
            let lazy = |(prefix, tensor): (&str, &Tensor<1>)| {
                LazyTensor::parameter(format!("{prefix}{}", kept.name), &kept.shape, tensor.clone())
            };
            let beside = kept.beside.iter().enumerate().map(|(index, average)| {
                LazyTensor::parameter(beside_name(index, &kept.name), &kept.shape, average.clone())
            });
            let eight_bit = self.rule.get().moments().iter().zip(kept.eight_bit.iter().flatten());
            let eight_bit = eight_bit.flat_map(|(prefix, moment)| in_file(&format!("{prefix}{}", kept.name), moment));
            moments.chain(average).map(lazy).chain(beside).chain(eight_bit)
        })
    }

    /// All averages as tensors of a snapshot, and the parameters of `module` that have none.
    pub fn snapshot<M: Module>(&self, module: &M) -> Vec<LazyTensor<'_>> {
        let without: std::collections::HashSet<&str> =
            self.kept.iter().filter(|kept| kept.average.is_none()).map(|kept| kept.name.as_str()).collect();
        let is_without = |tensor: &LazyTensor<'_>| {
            tensor.name().strip_prefix(WITHOUT_AVERAGE).is_some_and(|name| without.contains(name))
        };
        let averages = self.kept.iter().flat_map(|kept| {
            kept.averages().enumerate().map(|(index, average)| {
                LazyTensor::parameter(snapshot_name(index, &kept.name), &kept.shape, average.clone())
            })
        });
        averages.chain(module_tensors(WITHOUT_AVERAGE, module).into_iter().filter(is_without)).collect()
    }

    /// Restores what [`Optimizer::state`] gave, tensor by tensor.
    ///
    /// # Errors
    /// Those of `lookup`, which gets name and checkpoint shape.
    pub fn restore<E>(
        &mut self,
        steps: u64,
        mut lookup: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        let names = self.rule.get().moments();
        for kept in &mut self.kept {
            let shape = checkpoint_shape(&kept.shape);
            let mut restore = |prefix: &str, tensor: &mut Tensor<1>| -> Result<(), E> {
                let values = lookup(&format!("{prefix}{}", kept.name), &shape)?;
                *tensor = flat(from_checkpoint(&values, &kept.shape), &tensor.device());
                Ok(())
            };
            for (prefix, moment) in names.iter().zip(&mut kept.moments) {
                restore(prefix, moment)?;
            }
            if let Some(average) = &mut kept.average {
                restore(AVERAGE, average)?;
            }
            for (index, average) in kept.beside.iter_mut().enumerate() {
                let values = lookup(&beside_name(index, &kept.name), &shape)?;
                *average = flat(from_checkpoint(&values, &kept.shape), &average.device());
            }
            for (prefix, moment) in names.iter().zip(kept.eight_bit.iter_mut().flatten()) {
                let name = format!("{prefix}{}", kept.name);
                let codes = lookup(&format!("{name}{CODES}"), &[moment.codes.len()])?;
                moment.codes = codes.into_iter().map(|code| code as u8).collect();
                moment.maxima = lookup(&format!("{name}{MAXIMA}"), &[moment.maxima.len()])?;
            }
        }
        self.steps = steps;
        Ok(())
    }

    /// The module with the averaged weights in place of its own, where there is an average.
    pub fn averaged<M: Module>(&self, module: &M) -> M {
        Self::with_values(module.clone(), self.averages())
    }

    /// The module with other values of its parameters, in traversal order, where there are some; flat and without autodiff.
    pub fn with_values<M: Module>(module: M, values: Vec<Option<Tensor<1>>>) -> M {
        struct Replace(std::vec::IntoIter<Option<Tensor<1>>>);
        impl ModuleMapper for Replace {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let average = self.0.next().flatten();
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
        module.map(&mut Replace(values.into_iter()))
    }
}

/// What a step is taken with.
struct Rates {
    /// The update of each group.
    params: Vec<StepParams>,
    /// The decays of the averages beside the first one.
    beside: Vec<f32>,
}

/// A moment in 8 bits as tensors of a checkpoint.
fn in_file<'a>(name: &str, moment: &'a EightBitMoment) -> [LazyTensor<'a>; 2] {
    let EightBitMoment { codes, maxima } = moment;
    let codes = LazyTensor::new(format!("{name}{CODES}"), Dtype::U8, [codes.len()], move || codes.as_slice());
    let maxima = LazyTensor::f32(format!("{name}{MAXIMA}"), [maxima.len()], move || maxima.clone());
    [codes, maxima]
}

/// Goes through a module for [`Optimizer::new`].
struct Start<'a> {
    path: Path,
    rules: &'a [GroupRule],
    moments: usize,
    state: StateForm,
    average: bool,
    /// Averages beside the first one.
    beside: usize,
    groups: Vec<Group>,
    /// For each rule, whether it applies to a parameter that was visited.
    matched: Vec<bool>,
    kept: Vec<Kept>,
}

impl Start<'_> {
    /// The place of the group of a parameter, which is added if it is new.
    fn group(&mut self, name: &str, shape: &[usize]) -> usize {
        for (matched, rule) in self.matched.iter_mut().zip(self.rules) {
            *matched |= rule.matches(name, shape);
        }
        let group = Group::of(name, shape, self.rules);
        self.groups.iter().position(|known| *known == group).unwrap_or_else(|| {
            self.groups.push(group);
            self.groups.len() - 1
        })
    }
}

impl ModuleVisitor for Start<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val().inner();
        let (shape, device) = (tensor.dims().to_vec(), tensor.device());
        let name = self.path.name();
        let group = self.group(&name, &shape);
        let size = shape.iter().product::<usize>();
        let frozen = self.groups[group].frozen;
        let trained = !frozen;
        let eight_bit = self.state.eight_bit(size).filter(|_| trained);
        let moments = if trained && eight_bit.is_none() { self.moments } else { 0 };
        let beside = if trained { self.beside } else { 0 };
        self.kept.push(Kept {
            name,
            shape,
            group,
            frozen,
            elsewhere: false,
            clamp: self.groups[group].clamp,
            moments: (0..moments).map(|_| Tensor::zeros([size], &device)).collect(),
            eight_bit,
            beside: (0..beside).map(|_| owned_copy(tensor.clone())).collect(),
            average: (trained && self.average).then(|| owned_copy(tensor)),
        });
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

/// Takes the parameters that have a gradient out of a module, which gets empty ones instead, and what is kept for them.
struct Lend<'a> {
    gradients: std::vec::IntoIter<Option<Tensor<1>>>,
    kept: std::slice::IterMut<'a, Kept>,
    /// Those parameters, by group.
    steps: Vec<GroupSteps>,
    /// Of each parameter, as which it is one of them.
    stepped: Vec<Option<Form>>,
}

/// In what form the moments of a parameter are.
#[derive(Clone, Copy)]
enum Form {
    F32,
    EightBit,
}

/// Parameters of a group with their gradients, in traversal order, by the form of their moments.
#[derive(Default)]
struct GroupSteps {
    full: Vec<(ParameterState<1>, Tensor<1>)>,
    eight_bit: Vec<(EightBitState, Tensor<1>)>,
}

/// What the steps of a group made.
type Stepped = (std::vec::IntoIter<ParameterState<1>>, std::vec::IntoIter<EightBitState>);

impl GroupSteps {
    fn run(self, params: &StepParams) -> Stepped {
        let eight_bit = match self.eight_bit.is_empty() {
            true => Vec::new(),
            false => adamw_steps_in_eight_bits(self.eight_bit, params),
        };
        (optimizer_steps(self.full, params).into_iter(), eight_bit.into_iter())
    }

    fn push(&mut self, kept: &mut Kept, parameter: Tensor<1>, gradient: Tensor<1>) -> Form {
        if let Some(state) = kept.lend_eight_bit(parameter.clone()) {
            self.eight_bit.push((state, gradient));
            return Form::EightBit;
        }
        self.full.push((kept.lend(parameter), gradient));
        Form::F32
    }
}

impl ModuleMapper for Lend<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (Some(kept), Some(gradient)) = (self.kept.next(), self.gradients.next()) else { return param };
        let Some(gradient) = gradient.filter(|_| !kept.frozen && !kept.elsewhere) else {
            self.stepped.push(None);
            return param;
        };
        let (id, tensor, mapper) = param.consume();
        let empty = Tensor::empty([0; D], &tensor.device());
        let form = self.steps[kept.group].push(kept, flattened(tensor.inner()), gradient);
        self.stepped.push(Some(form));
        Param::from_mapped_value(id, empty, mapper)
    }
}

/// Takes the parameters out of a module, which gets empty ones instead.
#[derive(Default)]
struct Take {
    leaves: Vec<Leaf>,
    /// Of each, whether it wants a gradient.
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
    kept: Vec<Kept>,
    /// By group.
    params: Vec<StepParams>,
    /// Decays of the averages beside the first one.
    beside: Vec<f32>,
    /// Each gradient's sum of squares, where wanted.
    squares: Option<Vec<f64>>,
}

impl StepParameter for Stepper {
    fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        if let Some(squares) = &mut self.squares {
            squares[index] = sum_of_squares(&gradient);
        }
        let kept = &mut self.kept[index];
        // A module that was not given to `freeze` has gradients of frozen parameters, too.
        if kept.frozen {
            return parameter;
        }
        let params = &self.params[kept.group];
        let value = if kept.eight_bit.is_some() {
            let lent = kept.lend_eight_bit(parameter).map(|state| (state, gradient));
            let new = adamw_steps_in_eight_bits(lent.into_iter().collect(), params).pop();
            kept.keep_eight_bit(new.expect("a step for the parameter that was lent"))
        } else {
            let new = optimizer_step(kept.lend(parameter), gradient, params);
            kept.keep(new)
        };
        let value = kept.clamped(value, params.ema_decay);
        kept.follow(&value, &self.beside);
        value
    }
}

/// Puts the new values into the module that [`Take`] or [`Lend`] emptied.
struct PutBack<'a> {
    kept: std::slice::Iter<'a, Kept>,
    /// With each, whether it wants a gradient; none where the parameter is still in its place.
    values: std::vec::IntoIter<Option<(Tensor<1>, bool)>>,
}

impl ModuleMapper for PutBack<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (Some(kept), Some((value, trainable))) = (self.kept.next(), self.values.next().flatten()) else {
            return param;
        };
        let (id, _, mapper) = param.consume();
        let shape: [usize; D] = std::array::from_fn(|i| kept.shape[i]);
        Param::from_mapped_value(id, value.reshape(shape).autodiff().set_require_grad(trainable), mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunSettings;
    use crate::optim::ema::{EmaForm, EmaSettings, HalfLife, PostHoc};
    use crate::optim::{OptimizerSettings, ParameterKind, Sgd, Stepping};
    use burn::backend::flex::Flex;
    use burn::tensor::DType;
    use calotype_core::{Purpose, Stream};
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

    fn run() -> RunSettings {
        RunSettings {
            seed: 0,
            samples: 100,
            batch_size: 2,
            precision: Default::default(),
            log_every: 1,
            checkpoint_every: 1,
            keep_checkpoints: 1,
            keep_every: None,
        }
    }

    /// Bits of all weights, moments and averages.
    fn all_bits(unet: &UNet, optimizer: &Optimizer) -> Vec<Vec<u32>> {
        let kept = optimizer.kept.iter().flat_map(|kept| kept.moments.iter().chain(kept.averages()).cloned());
        let eight_bit = optimizer.kept.iter().flat_map(|kept| kept.eight_bit.iter().flatten());
        let codes = |moment: &EightBitMoment| moment.codes.iter().map(|&code| f32::from(code)).collect();
        let eight_bit = eight_bit.flat_map(|moment| [codes(moment), moment.maxima.clone()]);
        let values = state::collect(unet).into_iter().map(|t| t.values).chain(kept.map(values_of)).chain(eight_bit);
        values.map(|values| values.into_iter().map(f32::to_bits).collect()).collect()
    }

    /// The averages of a run whose others are rebuilt, and moments in 8 bits.
    fn post_hoc() -> (OptimizerSettings, EmaSettings) {
        let settings =
            OptimizerSettings { learning_rate: 1e-2, state: StateForm::EightBit, ..OptimizerSettings::default() };
        (settings, EmaSettings::new(EmaForm::PostHoc(PostHoc::default())))
    }

    /// Moments in 8 bits and several averages are the same in every mode, come back from a checkpoint, and train on from there.
    #[test]
    fn eight_bits_and_many_averages_are_the_same_in_every_mode_and_come_back() {
        let (run, (settings, ema)) = (run(), post_hoc());
        let config = TrainConfig::new(&run, &settings, Some(&ema));
        let folder = tempfile::tempdir().unwrap();
        let store = crate::checkpoint::CheckpointStore::open(folder.path(), "c").unwrap();
        let results = [When::After, When::InBackward].map(|when| {
            let mut unet = network(&Device::flex().autodiff());
            let mut optimizer = Optimizer::new(&unet, &config).expect("no groups");
            let in_eight_bits = optimizer.kept.iter().filter(|kept| kept.eight_bit.is_some()).count();
            let large = optimizer.kept.iter().filter(|kept| kept.shape.iter().product::<usize>() >= 4096).count();
            assert!(in_eight_bits == large && large > 3 && large < optimizer.kept.len());
            assert!(optimizer.kept.iter().all(|kept| kept.beside.len() == 1));
            for index in 0..3 {
                unet = step(unet, &mut optimizer, &config, when, index);
            }
            store.save(6, optimizer.state(), &serde_json::json!({})).unwrap();
            let checkpoint = store.newest().unwrap().unwrap();
            let mut again = Optimizer::new(&unet, &config).expect("no groups");
            again.restore(3, |name, shape| checkpoint.values(name, shape)).unwrap();
            assert!(all_bits(&unet, &again) == all_bits(&unet, &optimizer));
            assert!(checkpoint.tensors.names().any(|name| name.ends_with(CODES)));
            assert!(checkpoint.tensors.contains("ema2.conv_in.bias"));
            unet = step(unet, &mut again, &config, when, 3);
            all_bits(&unet, &again)
        });
        assert!(results[0] == results[1]);
    }

    #[test]
    fn a_snapshot_has_all_averages_and_what_has_none() {
        let (run, (mut settings, ema)) = (run(), post_hoc());
        settings.groups = vec![GroupRule::frozen(["conv_in.weight"])];
        let config = TrainConfig::new(&run, &settings, Some(&ema));
        let unet = network(&Device::flex().autodiff());
        let optimizer = Optimizer::new(&unet, &config).expect("the group is there");
        let names: Vec<String> = optimizer.snapshot(&unet).iter().map(|tensor| tensor.name().to_owned()).collect();
        assert_eq!(names.len(), 2 * (optimizer.kept.len() - 1) + 1);
        for name in ["model.conv_in.weight", "average0.conv_in.bias", "average1.conv_in.bias"] {
            assert!(names.iter().any(|found| found == name), "{name}");
        }
    }

    /// How a run steps.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum When {
        After,
        InBackward,
        /// In the backward pass, without packed weights.
        Lean,
    }

    /// Bits of weights and optimizer state after some steps, and the norms on the way. Checks that after the first step,
    /// which may find shared storage, all are changed in place.
    fn train(when: When, keep: Keep) -> (Vec<Vec<u32>>, Vec<f64>) {
        let settings = OptimizerSettings { learning_rate: 1e-2, ..OptimizerSettings::default() };
        let run = run();
        let ema = EmaSettings::new(EmaForm::HalfLife(HalfLife { half_life: 10, rampup: 0.5 }));
        let config = TrainConfig::new(&run, &settings, Some(&ema));
        let mut unet = network(&Device::flex().autodiff());
        let mut optimizer = Optimizer::new(&unet, &config).expect("no groups");
        let mut norms = Vec::new();
        let mut places = Vec::new();
        for step in 0..4 {
            let samples = 2 * (step + 1);
            if when == When::After {
                let mut gradients = loss(&unet, keep, step).backward();
                let gradients = optimizer.gradients(&unet, &mut gradients, 2.0);
                let norm = optimizer.gradient_norm(&gradients).expect("finite");
                unet = optimizer.step(unet, gradients, &config, samples, norm);
                norms.push(norm);
            } else {
                let stepping = Stepping::InBackward { lean: when == When::Lean };
                let counted = stepping.pass(|| count_uses(|| loss(&unet, keep, step)));
                let norm;
                (unet, norm) = stepping.pass(|| optimizer.step_in_backward(unet, counted, &config, samples, true));
                norms.push(norm.expect("finite").expect("measured"));
            }
            places.push(addresses(&unet, &optimizer));
        }
        assert!(places[1..].iter().all(|later| *later == places[1]), "a step copied what it should change in place");
        (all_bits(&unet, &optimizer), norms)
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
        for kept in &optimizer.kept {
            kept.moments.iter().chain(&kept.average).for_each(|tensor| addresses.push(tensor.clone()));
        }
        addresses.0
    }

    #[test]
    fn steps_are_in_place_and_the_same_in_every_mode() {
        let (want, norms) = train(When::After, Keep::Activations);
        for (when, keep) in [
            (When::After, Keep::Inputs),
            (When::InBackward, Keep::Activations),
            (When::InBackward, Keep::Inputs),
            (When::Lean, Keep::Activations),
            (When::Lean, Keep::Inputs),
        ] {
            let (got, got_norms) = train(when, keep);
            assert!(got == want && got_norms == norms, "{when:?}, {keep:?}");
        }
    }

    /// Notes the gradients, in the order in which they come.
    #[derive(Default)]
    struct Note(Vec<(usize, Vec<u32>)>);

    impl StepParameter for Note {
        fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
            self.0.push((index, values_of(gradient).into_iter().map(f32::to_bits).collect()));
            parameter
        }
    }

    #[test]
    fn gradients_are_handed_out_while_the_backward_pass_goes_on() {
        let (run, settings) = (run(), OptimizerSettings::default());
        let config = TrainConfig::new(&run, &settings, None);
        let unet = network(&Device::flex().autodiff());
        let optimizer = Optimizer::new(&unet, &config).expect("no groups");
        let weights = all_bits(&unet, &optimizer);
        let mut gradients = loss(&unet, Keep::Activations, 0).backward();
        let want = optimizer.gradients(&unet, &mut gradients, 2.0).into_values();
        let want: Vec<Option<Vec<u32>>> = want
            .into_iter()
            .map(|gradient| gradient.map(|g| values_of(g).into_iter().map(f32::to_bits).collect()))
            .collect();
        drop(gradients);
        for keep in [Keep::Activations, Keep::Inputs] {
            // Nothing else may own the parameters, or their gradients come after the pass.
            let unet = network(&Device::flex().autodiff());
            let counted = count_uses(|| loss(&unet, keep, 0));
            let (unet, Note(found)) = optimizer.hand_in_backward(unet, counted, Note::default());
            let mut got = vec![None; want.len()];
            found.iter().for_each(|(index, bits)| {
                assert!(got[*index].replace(bits.clone()).is_none(), "{index} came twice");
            });
            assert!(got == want && all_bits(&unet, &optimizer) == weights);
            let place = |name: &str| {
                let parameter = optimizer.kept.iter().position(|kept| kept.name == name).expect("a parameter");
                found.iter().position(|(index, _)| *index == parameter).expect("it came")
            };
            assert!(place("conv_out.weight") < place("mid_block.resnets.0.conv1.weight"));
            assert!(place("mid_block.resnets.0.conv1.weight") < place("conv_in.weight"));
        }
    }

    #[test]
    fn parameters_without_gradient_stay_as_they_are() {
        let device = Device::flex().autodiff();
        let mut unet = network(&device).no_grad();
        let before: Vec<_> = state::collect(&unet).into_iter().map(|t| t.values).collect();
        let (run, settings) = (run(), OptimizerSettings::default());
        let config = TrainConfig::new(&run, &settings, None);
        let mut optimizer = Optimizer::new(&unet, &config).expect("no groups");
        let weight = noise([3], 0, &device).require_grad();
        let counted = count_uses(|| loss(&unet, Keep::Inputs, 0) + weight.sum());
        (unet, _) = optimizer.step_in_backward(unet, counted, &config, 2, false);
        let after: Vec<_> = state::collect(&unet).into_iter().map(|t| t.values).collect();
        assert!(before == after);
    }

    /// A step of a network with its optimizer.
    fn step(unet: UNet, optimizer: &mut Optimizer, config: &TrainConfig<'_>, when: When, index: u64) -> UNet {
        let samples = 2 * (index + 1);
        if when == When::InBackward {
            let counted = count_uses(|| loss(&unet, Keep::Inputs, index));
            return optimizer.step_in_backward(unet, counted, config, samples, false).0;
        }
        let mut gradients = loss(&unet, Keep::Inputs, index).backward();
        let gradients = optimizer.gradients(&unet, &mut gradients, 2.0);
        let norm = optimizer.gradient_norm(&gradients).expect("finite");
        optimizer.step(unet, gradients, config, samples, norm)
    }

    #[test]
    fn groups_differ_in_rate_and_decay_and_frozen_ones_keep_nothing() {
        let (run, mut settings) = (run(), OptimizerSettings { learning_rate: 1e-2, ..OptimizerSettings::default() });
        settings.groups = vec![
            GroupRule::no_decay([ParameterKind::Biases, ParameterKind::Norms]),
            GroupRule {
                learning_rate_scale: Some(0.0),
                names: vec!["conv_norm_out.*".to_owned()],
                ..GroupRule::default()
            },
        ];
        let ema = EmaSettings::new(EmaForm::HalfLife(HalfLife { half_life: 10, rampup: 0.5 }));
        let mut config = TrainConfig::new(&run, &settings, Some(&ema));
        config.groups = vec![GroupRule::frozen(["down_blocks.*", "conv_in.weight"])];
        let frozen = |name: &str| name.starts_with("down_blocks.") || name == "conv_in.weight";
        let results = [When::After, When::InBackward].map(|when| {
            let unet = network(&Device::flex().autodiff());
            let before = state::collect(&unet);
            let mut optimizer = Optimizer::new(&unet, &config).expect("all groups are there");
            let mut unet = optimizer.freeze(unet);
            for index in 0..4 {
                unet = step(unet, &mut optimizer, &config, when, index);
            }
            let mut moved = 0;
            for ((before, after), kept) in before.iter().zip(state::collect(&unet)).zip(&optimizer.kept) {
                let still = frozen(&after.name) || after.name.starts_with("conv_norm_out.");
                assert_eq!(before.values == after.values, still, "{}", after.name);
                let tensors = if frozen(&after.name) { 0 } else { 3 };
                assert_eq!(kept.moments.len() + usize::from(kept.average.is_some()), tensors, "{}", after.name);
                moved += usize::from(!still);
            }
            assert!(moved > 20);
            let names: Vec<_> = optimizer.state().map(|tensor| tensor.name().to_owned()).collect();
            assert!(names.iter().all(|name| !name.contains("down_blocks.")));
            assert!(state::collect(&optimizer.averaged(&unet)).len() == before.len());
            all_bits(&unet, &optimizer)
        });
        assert!(results[0] == results[1]);
        // Without weight decay, biases of zero gradient stay; a norm's weight decays only without its group.
        settings.groups.clear();
        let config = TrainConfig::new(&run, &settings, None);
        let unet = network(&Device::flex().autodiff());
        let mut optimizer = Optimizer::new(&unet, &config).expect("no groups");
        let unet = step(unet, &mut optimizer, &config, When::After, 0);
        assert!(all_bits(&unet, &optimizer) != results[0]);
    }

    #[test]
    fn clamped_parameters_and_what_averages_see_of_them_stay_within_their_bounds() {
        let run = run();
        let clamp =
            GroupRule { names: vec!["conv_in.*".to_owned()], clamp: Some([-0.01, 0.02]), ..GroupRule::default() };
        let settings = OptimizerSettings { groups: vec![clamp], ..OptimizerSettings::default() };
        let ema = EmaSettings::new(EmaForm::HalfLife(HalfLife { half_life: 10, rampup: 10.0 }));
        let config = TrainConfig::new(&run, &settings, Some(&ema));
        let decay = ema.decay(&config.position(2));
        assert!(decay > 0.0 && decay < 1.0);
        let results = [When::After, When::InBackward].map(|when| {
            let unet = network(&Device::flex().autodiff());
            let before = state::collect(&unet);
            let mut optimizer = Optimizer::new(&unet, &config).expect("the group is there");
            let unet = step(unet, &mut optimizer, &config, when, 0);
            let (after, averages) = (state::collect(&unet), state::collect(&optimizer.averaged(&unet)));
            let mut met = 0;
            for ((before, after), average) in before.iter().zip(&after).zip(&averages) {
                let within = |value: f32| (-0.01..=0.02).contains(&value);
                let clamped = after.name.starts_with("conv_in.");
                assert!(!clamped || after.values.iter().copied().all(within), "{}", after.name);
                met += usize::from(!clamped && !after.values.iter().copied().all(within));
                for ((before, after), average) in before.values.iter().zip(&after.values).zip(&average.values) {
                    let wanted = decay * before + (1.0 - decay) * after;
                    assert!((average - wanted).abs() <= 1e-6, "{average} {wanted}");
                }
            }
            assert!(met > 5, "others are not clamped");
            all_bits(&unet, &optimizer)
        });
        assert!(results[0] == results[1]);
    }

    #[test]
    fn a_frozen_module_has_no_gradients() {
        let (run, settings) = (run(), OptimizerSettings::default());
        let mut config = TrainConfig::new(&run, &settings, None);
        config.groups =
            vec![GroupRule::frozen(["*"]), GroupRule { frozen: Some(false), ..GroupRule::frozen(["conv_out.*"]) }];
        let unet = network(&Device::flex().autodiff());
        let optimizer = Optimizer::new(&unet, &config).expect("all groups are there");
        let unet = optimizer.freeze(unet);
        let mut gradients = loss(&unet, Keep::Activations, 0).backward();
        let gradients = optimizer.gradients(&unet, &mut gradients, 2.0);
        let with: Vec<_> = optimizer.kept.iter().zip(&gradients.values).filter(|(_, g)| g.is_some()).collect();
        assert_eq!(
            with.iter().map(|(kept, _)| kept.name.as_str()).collect::<Vec<_>>(),
            ["conv_out.weight", "conv_out.bias"]
        );
    }

    #[test]
    fn a_group_of_nothing_is_an_error() {
        let (run, mut settings) = (run(), OptimizerSettings::default());
        settings.groups = vec![GroupRule::frozen(["text_encoder.*"])];
        let error = Optimizer::new(&network(&Device::flex().autodiff()), &TrainConfig::new(&run, &settings, None));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`text_encoder.*`") && error.contains("`conv_in.weight`"), "{error}");
    }

    /// The loss of some of the samples of a batch of four.
    fn part_loss(unet: &UNet, first: usize, count: usize) -> Tensor<1> {
        let device = Device::flex();
        let part = |t: Tensor<4>| t.narrow(0, first, count);
        let x = part(noise([4, 8, 8, 4], 0, &device));
        let context = noise([4, 5, 12], 1, &device).narrow(0, first, count);
        let times: Vec<f32> = [3.0, 700.0, 50.0, 200.0][first..first + count].to_vec();
        let output = unet.forward_keeping(Keep::Activations, x, &times, context, None);
        mean_squared_error(output, part(noise([4, 8, 8, 4], 2, &device)))
    }

    #[test]
    fn parts_of_a_batch_give_the_step_of_the_whole() {
        let settings = OptimizerSettings {
            rule: UpdateRule::Sgd(Sgd { momentum: 0.9, ..Sgd::default() }),
            learning_rate: 0.1,
            gradient_clip: 0.2,
            ..OptimizerSettings::default()
        };
        let run = run();
        let config = TrainConfig::new(&run, &settings, None);
        let train = |parts: &[(usize, usize)]| {
            let unet = network(&Device::flex().autodiff());
            let mut optimizer = Optimizer::new(&unet, &config).expect("no groups");
            let part = |&(first, count): &(usize, usize)| {
                let mut gradients = part_loss(&unet, first, count).backward();
                optimizer.gradients(&unet, &mut gradients, count as f64)
            };
            let mut sum = part(&parts[0]);
            parts[1..].iter().for_each(|others| sum.add(part(others)));
            let norm = optimizer.gradient_norm(&sum).expect("finite");
            assert!(norm > settings.gradient_clip, "{norm} is not clipped");
            let unet = optimizer.step(unet, sum, &config, 4, norm);
            (state::collect(&unet), norm)
        };
        let (whole, norm) = train(&[(0, 4)]);
        for parts in [&[(0, 2), (2, 2)][..], &[(0, 1), (1, 1), (2, 1), (3, 1)], &[(0, 1), (1, 3)], &[(0, 3), (3, 1)]] {
            let (summed, summed_norm) = train(parts);
            assert!((summed_norm / norm - 1.0).abs() < 1e-5, "{parts:?}: norm {summed_norm} instead of {norm}");
            for (a, b) in summed.iter().zip(&whole) {
                let largest = b.values.iter().fold(1e-3f32, |most, value| most.max(value.abs()));
                let worst = a.values.iter().zip(&b.values).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(worst <= 1e-5 * largest, "{parts:?}, {}: {worst} of {largest}", a.name);
            }
        }
    }

    #[test]
    fn state_comes_back_bit_for_bit() {
        let (run, settings) = (run(), OptimizerSettings { learning_rate: 1e-2, ..OptimizerSettings::default() });
        let ema = EmaSettings::new(EmaForm::HalfLife(HalfLife { half_life: 10, rampup: 0.5 }));
        let config = TrainConfig::new(&run, &settings, Some(&ema));
        let unet = network(&Device::flex().autodiff());
        let mut optimizer = Optimizer::new(&unet, &config).expect("no groups");
        let unet = step(unet, &mut optimizer, &config, When::After, 0);
        let folder = tempfile::tempdir().unwrap();
        let store = crate::checkpoint::CheckpointStore::open(folder.path(), "c").unwrap();
        store.save(2, optimizer.state(), &serde_json::json!({})).unwrap();
        let checkpoint = store.newest().unwrap().unwrap();
        let mut again = Optimizer::new(&unet, &config).expect("no groups");
        again.restore(1, |name, shape| checkpoint.values(name, shape)).unwrap();
        assert!(all_bits(&unet, &again) == all_bits(&unet, &optimizer) && again.steps() == 1);
        assert!(checkpoint.tensors.contains("adamw.first_moment.conv_in.weight"));
        assert!(checkpoint.tensors.contains("ema.conv_in.bias"));
    }

    /// The largest resident memory of this process since it was last asked for, in MiB; none where the system does not say.
    fn peak_mib() -> Option<f64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
        std::fs::write("/proc/self/clear_refs", "5").ok()?;
        Some(peak.parse::<f64>().ok()? / 1024.0)
    }

    const CHILD: &str = "CALOTYPE_SAVING_TEST_CHILD";

    /// The body of the child process of the next test.
    #[test]
    fn child_that_measures_saving() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let device = Device::flex().autodiff();
        let config = UNetConfig {
            block_out_channels: vec![96, 192, 384],
            layers_per_block: 2,
            attention_levels: vec![false, true, true],
            head_channels: vec![32; 3],
            context_channels: 12,
            norm_groups: 32,
            transformer_norm_groups: 32,
            ..UNetConfig::default()
        };
        let mut unet = config.init(&mut Init::new(2, &device)).expect("a sound configuration");
        let (run, settings) = (run(), OptimizerSettings::default());
        let ema = EmaSettings::new(EmaForm::HalfLife(HalfLife { half_life: 10, rampup: 0.5 }));
        let config = TrainConfig::new(&run, &settings, Some(&ema));
        let mut optimizer = Optimizer::new(&unet, &config).expect("no groups");
        let folder = tempfile::tempdir().unwrap();
        let store = crate::checkpoint::CheckpointStore::open(folder.path(), "c").unwrap();
        for index in 0..2 {
            unet = step(unet, &mut optimizer, &config, When::After, index);
        }
        let Some(_) = peak_mib() else { return };
        unet = step(unet, &mut optimizer, &config, When::After, 2);
        let steady = peak_mib().unwrap();
        let tensors = crate::checkpoint::module_tensors("model.", &unet).into_iter().chain(optimizer.state());
        store.save(6, tensors, &serde_json::json!({})).unwrap();
        let saving = peak_mib().unwrap();
        let checkpoint = store.newest().unwrap().unwrap();
        unet = state::load(unet, |name, shape| checkpoint.values(&format!("model.{name}"), shape)).unwrap();
        optimizer.restore(3, |name, shape| checkpoint.values(name, shape)).unwrap();
        let restoring = peak_mib().unwrap();
        let millions = unet.num_params() as f64 / 1e6;
        println!("{millions:.0} M parameters: MiB in a step {steady:.0}, saving {saving:.0}, restoring {restoring:.0}");
        assert!(saving <= 1.05 * steady && restoring <= 1.05 * steady);
    }

    /// In a process of its own, for peaks are those of a whole process.
    #[test]
    fn saving_takes_no_more_memory_than_a_step() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "optim::optimizer::tests::child_that_measures_saving", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let [out, error] = [&child.stdout, &child.stderr].map(|text| String::from_utf8_lossy(text));
        println!("{out}{error}");
        assert!(child.status.success() && out.contains("1 passed"));
    }
}
