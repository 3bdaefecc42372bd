//! A network's forward pass or training step, over and over, with random weights.

use crate::BenchError;
use crate::profile::Profile;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_kernels::quantise_rows;
use calotype_models::state::{self, QuantisedTensor, StateError, Stored, StoredTensor, WeightPrecision};
use calotype_ops::in_backward::count_uses;
use calotype_ops::profile::{self, Pass};
use calotype_train::config::RunSettings;
use calotype_train::optim::{Optimizer, OptimizerSettings, Stepping, TrainConfig};
use std::borrow::Cow;
use std::time::Instant;

/// Standard deviation of all parameters.
pub(crate) const DEVIATION: f32 = 0.02;

/// How often something is done, and what is told of it.
pub(crate) struct Plan {
    /// The network, for errors.
    pub(crate) network: String,
    /// Number of iterations; the last half counts.
    pub(crate) iterations: usize,
    /// True to time every operation of the iterations that count.
    pub(crate) profile: bool,
}

/// Something that is done over and over.
pub(crate) trait Iteration {
    /// Once; the seconds of its passes in their order.
    fn run(&mut self) -> Result<Vec<(Pass, f64)>, BenchError>;

    /// A number that is not finite if anything was not.
    fn witness(&self) -> f32;
}

impl Plan {
    /// Seconds of each iteration that counts, their profile if asked for, and page faults of one.
    pub(crate) fn run(&self, mut iteration: impl Iteration) -> Result<(Vec<f64>, Option<Profile>, f64), BenchError> {
        let warm_up = self.iterations / 2;
        for _ in 0..warm_up {
            iteration.run()?;
        }
        if self.profile {
            profile::start();
        }
        let steady = self.iterations - warm_up;
        let faults = page_faults();
        let mut seconds = Vec::with_capacity(steady);
        let mut passes: Vec<(Pass, f64)> = Vec::new();
        for _ in 0..steady {
            let start = Instant::now();
            let laps = iteration.run()?;
            seconds.push(start.elapsed().as_secs_f64());
            for (pass, lap) in laps {
                match passes.iter_mut().find(|(known, _)| *known == pass) {
                    Some((_, sum)) => *sum += lap,
                    None => passes.push((pass, lap)),
                }
            }
        }
        let faults = (page_faults() - faults) / steady as f64;
        let profile = self.profile.then(|| Profile::new(&profile::stop(), &passes, steady));
        let witness = iteration.witness();
        if !witness.is_finite() {
            return Err(BenchError::NotFinite { family: self.network.clone(), value: witness.to_string() });
        }
        Ok((seconds, profile, faults))
    }
}

/// Page faults of this process so far; 0 where the system does not tell.
fn page_faults() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(0.0, |usage| (usage.minor_page_faults() + usage.major_page_faults()) as f64)
}

/// Standard normal numbers; `index` tells apart tensors.
pub(crate) fn noise<const D: usize>(shape: [usize; D], index: u64, device: &Device) -> Tensor<D> {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(0, Purpose::Evaluation, index).fill_normal(&mut values);
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Random weights that do not fit.
pub(crate) struct Unloaded(StateError);

impl From<StateError> for Unloaded {
    fn from(error: StateError) -> Self {
        Self(error)
    }
}

impl Unloaded {
    /// The error of the flag that names the network.
    pub(crate) fn of(self, flag: &'static str) -> BenchError {
        BenchError::Setting { flag, problem: self.0.to_string() }
    }
}

/// A network of placeholders, filled with noise as a checkpoint fills it for inference: every weight in one form, and none in another
/// before; those of whose keys `narrow` says so in 8 bits.
pub(crate) fn load_noise<M: Module>(empty: M, dtype: DType, narrow: &dyn Fn(&str) -> bool) -> Result<M, Unloaded> {
    const PERIOD: usize = 65_537;
    let mut noise = vec![0f32; PERIOD];
    Stream::new(0, Purpose::WeightInit, 0).fill_normal(&mut noise);
    noise.iter_mut().for_each(|x| *x *= DEVIATION);
    let precision = if dtype == DType::BF16 { WeightPrecision::Bf16 } else { WeightPrecision::F32 };
    let tensor = |dtype, shape: &[usize], bytes: Vec<u8>| {
        let (source_name, shape, bytes) = ("noise", shape.to_vec(), Cow::Owned(bytes));
        StoredTensor { source_name, dtype, shape, bytes }
    };
    state::load_stored(empty, precision, |key, shape| {
        let values: Vec<f32> = noise.iter().copied().cycle().take(shape.iter().product()).collect();
        if shape.len() > 1 && narrow(key) {
            let (numbers, scales) = quantise_rows(&values, shape[1..].iter().product());
            let numbers = tensor(DType::I8, shape, numbers.into_iter().map(|number| number as u8).collect());
            return Ok(Stored::Quantised(QuantisedTensor { numbers, scales, smooth: None }));
        }
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(Stored::Tensor(tensor(DType::F32, shape, bytes)))
    })
}

/// Time since the last lap.
struct Laps(Instant);

impl Laps {
    fn lap(&mut self, pass: Pass) -> (Pass, f64) {
        let before = std::mem::replace(&mut self.0, Instant::now());
        (pass, (self.0 - before).as_secs_f64())
    }
}

/// A forward pass.
pub(crate) struct Forward<const D: usize> {
    call: Box<dyn Fn() -> Result<Tensor<D>, BenchError>>,
    output: Option<Tensor<D>>,
}

impl<const D: usize> Forward<D> {
    pub(crate) fn new(call: impl Fn() -> Result<Tensor<D>, BenchError> + 'static) -> Self {
        Self { call: Box::new(call), output: None }
    }
}

impl<const D: usize> Iteration for Forward<D> {
    fn run(&mut self) -> Result<Vec<(Pass, f64)>, BenchError> {
        let mut laps = Laps(Instant::now());
        self.output = Some((self.call)()?);
        Ok(vec![laps.lap(Pass::Forward)])
    }

    fn witness(&self) -> f32 {
        let output = self.output.clone();
        output.map_or(f32::NAN, |output| output.cast(DType::F32).abs().sum().into_scalar::<f32>())
    }
}

/// A loss of a network on inputs that stay the same.
type LossOf<M> = Box<dyn Fn(&M) -> Result<Tensor<1>, BenchError>>;

/// A training step: a loss, all gradients, AdamW.
pub(crate) struct Training<M> {
    /// Taken out while a step makes the next one of it.
    model: Option<M>,
    loss_of: LossOf<M>,
    optimizer: Optimizer,
    stepping: Stepping,
    run: RunSettings,
    settings: OptimizerSettings,
    samples: u64,
    loss: f32,
}

impl<M: Module> Training<M> {
    pub(crate) fn new(
        model: M,
        loss_of: impl Fn(&M) -> Result<Tensor<1>, BenchError> + 'static,
        iterations: usize,
        batch: usize,
        in_backward: bool,
    ) -> Result<Self, BenchError> {
        let samples = (iterations * batch) as u64;
        let run = RunSettings {
            seed: 0,
            samples,
            batch_size: batch,
            precision: Default::default(),
            log_every: samples,
            checkpoint_every: samples,
            keep_checkpoints: 1,
            keep_every: None,
        };
        let settings = OptimizerSettings {
            learning_rate: 1e-6,
            in_backward: in_backward.then_some(true),
            ..OptimizerSettings::default()
        };
        let optimizer = Optimizer::new(&model, &TrainConfig::new(&run, &settings, None))?;
        Ok(Self {
            stepping: settings.stepping(model.num_params()),
            model: Some(model),
            loss_of: Box::new(loss_of),
            optimizer,
            run,
            settings,
            samples: 0,
            loss: f32::NAN,
        })
    }
}

impl<M: Module> Iteration for Training<M> {
    fn run(&mut self) -> Result<Vec<(Pass, f64)>, BenchError> {
        let Some(model) = self.model.take() else { return Ok(Vec::new()) };
        let mut laps = Laps(Instant::now());
        let stepping = self.stepping;
        let (loss, uses) = stepping.pass(|| count_uses(|| (self.loss_of)(&model)));
        let loss = loss?;
        self.loss = loss.clone().inner().into_scalar::<f32>();
        let forward = laps.lap(Pass::Forward);
        self.samples += self.run.batch_size as u64;
        // Peers do not clip, so the norm of the gradient is not computed here either.
        let config = TrainConfig::new(&self.run, &self.settings, None);
        if stepping != Stepping::AfterBackward {
            let step = || self.optimizer.step_in_backward(model, (loss, uses), &config, self.samples, false);
            let (model, _) = stepping.pass(step);
            self.model = Some(model);
            return Ok(vec![forward, laps.lap(Pass::Backward)]);
        }
        let mut gradients = loss.backward();
        drop(loss);
        let backward = laps.lap(Pass::Backward);
        let gradients = self.optimizer.gradients(&model, &mut gradients, self.run.batch_size as f64);
        self.model = Some(self.optimizer.step(model, gradients, &config, self.samples, 0.0));
        Ok(vec![forward, backward, laps.lap(Pass::Optimizer)])
    }

    fn witness(&self) -> f32 {
        self.loss
    }
}
