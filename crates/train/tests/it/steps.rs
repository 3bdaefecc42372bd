//! Whole training steps against PyTorch and diffusers: every loss of 20 steps, final weights and averages. The golden values are
//! those of `golden/make_steps.py`, which computes weights and inputs from the same names.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_collective::Local;
use calotype_diffusion::{NoiseSchedule, ScheduleConfig};
use calotype_models::state::{self, StateError, StoredTensor, WeightPrecision};
use calotype_models::unet::Keep;
use calotype_models::{Init, UNet, UNetConfig};
use calotype_train::config::{EmaSettings, OptimizerSettings, RunSettings, TrainConfig};
use calotype_train::optim::{Optimizer, StepGradients};
use calotype_train::task::{Loss, StepContext};
use calotype_train::tasks::denoise::{DenoiseObjective, NoisyBatch, NoisyLatent};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

const BATCH: usize = 4;
/// Side and channels of a latent.
const SIDE: usize = 8;
const CHANNELS: usize = 4;
/// Tokens and channels of a caption's states.
const STATES: [usize; 2] = [5, 24];
/// How far losses may be apart, relatively, and weights; a step moves those by up to 1e-3.
pub(crate) const LOSS_BOUND: f64 = 1e-4;
pub(crate) const WEIGHT_BOUND: f64 = 5e-5;

#[derive(Deserialize)]
struct Golden {
    /// Of each step.
    timesteps: Vec<[usize; BATCH]>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    network: String,
    recipe: String,
    losses: Vec<f64>,
    /// The first elements of some tensors, by checkpoint key.
    weights: BTreeMap<String, Vec<f64>>,
    averages: BTreeMap<String, Vec<f64>>,
}

/// The tables of a case.
#[derive(Deserialize)]
struct Tables {
    objective: DenoiseObjective,
    schedule: ScheduleConfig,
    optimizer: OptimizerSettings,
    ema: EmaSettings,
}

/// Numbers in -1..1 that belong to a name: splitmix64 from the name's FNV-1a hash, upper 24 bits.
fn uniform(name: &str) -> impl Iterator<Item = f64> {
    let hash = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f64 / f64::from(1 << 23) - 1.0
    })
}

/// Numbers of deviation one.
pub(crate) fn inputs(name: &str, count: usize) -> Vec<f32> {
    uniform(name).take(count).map(|u| (u * 3f64.sqrt()) as f32).collect()
}

/// A parameter: deviation of one over the root of the inputs, scales around one, small shifts.
pub(crate) fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let (by, shift) = match shape {
        [_, rest @ ..] if !rest.is_empty() => ((3.0 / rest.iter().product::<usize>() as f64).sqrt(), 0.0),
        _ if name.ends_with("weight") => (0.25, 1.0),
        _ => (0.125, 0.0),
    };
    uniform(name).take(shape.iter().product()).map(|u| (shift + by * u) as f32).collect()
}

fn network(name: &str) -> UNetConfig {
    let sd1 = UNetConfig {
        block_out_channels: vec![16, 32, 32, 32],
        head_channels: vec![8, 16, 16, 16],
        context_channels: STATES[1],
        norm_groups: 8,
        transformer_norm_groups: 8,
        linear_projection: false,
        ..UNetConfig::default()
    };
    let sd2 = UNetConfig { linear_projection: true, head_channels: vec![8; 4], ..sd1.clone() };
    match name {
        "sd1" => sd1,
        "sd2" => sd2,
        "mlperf" => UNetConfig { norm_groups: 4, ..sd2 },
        "tiny" => UNetConfig {
            block_out_channels: vec![8, 16],
            layers_per_block: 1,
            attention_levels: vec![true; 2],
            head_channels: vec![8; 2],
            norm_groups: 4,
            transformer_norm_groups: 4,
            ..sd2
        },
        other => panic!("no network {other}"),
    }
}

fn unet(name: &str, device: &Device) -> UNet {
    let lookup = |name: &str, shape: &[usize]| {
        let bytes: Vec<u8> = weights(name, shape).into_iter().flat_map(f32::to_le_bytes).collect();
        let (shape, bytes) = (shape.to_vec(), Cow::Owned(bytes));
        Ok::<_, StateError>(StoredTensor { source_name: "formula", dtype: DType::F32, shape, bytes })
    };
    let empty = network(name).init(&mut Init::placeholders(device)).unwrap();
    state::load_with(empty, WeightPrecision::F32, lookup).unwrap()
}

/// The latents of a step, and the states of its captions, `[batch, tokens, channels]`.
fn batch(step: usize, timesteps: &[usize; BATCH]) -> (Vec<NoisyLatent>, Vec<f32>) {
    let size = CHANNELS * SIDE * SIDE;
    let (clean, noise) =
        (inputs(&format!("clean {step}"), BATCH * size), inputs(&format!("noise {step}"), BATCH * size));
    // Named values are channels-first.
    let latent = |all: &[f32], row: usize| -> Vec<f32> {
        let planes = &all[row * size..(row + 1) * size];
        (0..size).map(|i| planes[(i % CHANNELS) * SIDE * SIDE + i / CHANNELS]).collect()
    };
    let latents = (0..BATCH).map(|row| NoisyLatent::new(latent(&clean, row), latent(&noise, row), timesteps[row]));
    (latents.collect(), inputs(&format!("states {step}"), BATCH * STATES[0] * STATES[1]))
}

/// What a case is trained by.
struct Trainer<'a> {
    tables: &'a Tables,
    schedule: NoiseSchedule,
    config: TrainConfig<'a>,
    optimizer: Optimizer,
    device: Device,
}

impl Trainer<'_> {
    /// A step of this number, counted from 1; gives the loss.
    fn step(&mut self, unet: UNet, step: usize, timesteps: &[usize; BATCH]) -> (UNet, f64) {
        let (latents, states) = batch(step, timesteps);
        let rows = BATCH / self.tables.optimizer.accumulate;
        let (mut sum, mut total): (Option<StepGradients>, f64) = (None, 0.0);
        for (latents, states) in latents.chunks(rows).zip(states.chunks(rows * STATES[0] * STATES[1])) {
            let loss = self.loss(&unet, latents, states);
            total += f64::from(loss.clone().inner().into_scalar::<f32>()) * rows as f64 / BATCH as f64;
            let mut gradients = loss.backward();
            let gradients = self.optimizer.gradients(&unet, &mut gradients, rows as f64);
            match &mut sum {
                None => sum = Some(gradients),
                Some(sum) => sum.add(gradients),
            }
        }
        let gradients = sum.unwrap();
        let norm = self.optimizer.gradient_norm(&gradients).unwrap();
        (self.optimizer.step(unet, gradients, &self.config, (step * BATCH) as u64, norm), total)
    }

    fn loss(&self, unet: &UNet, latents: &[NoisyLatent], states: &[f32]) -> Tensor<1> {
        let context = StepContext { collective: &Local, record: None };
        let shape = [SIDE, SIDE, CHANNELS];
        let noisy =
            NoisyBatch::of(latents.iter(), shape, &self.schedule, &self.tables.objective, &self.device, &context);
        let states = TensorData::new(states.to_vec(), [latents.len(), STATES[0], STATES[1]]);
        let Loss { value, .. } =
            noisy.loss(unet, Tensor::from_data(states, &self.device), DType::F32, Keep::Activations);
        value
    }
}

/// Compares the first elements of some tensors.
fn compare(case: &str, what: &str, found: &UNet, expected: &BTreeMap<String, Vec<f64>>) {
    let found: BTreeMap<_, _> = state::collect(found).into_iter().map(|tensor| (tensor.name, tensor.values)).collect();
    assert_eq!(expected.len(), 8, "{case}");
    for (name, expected) in expected {
        for (index, (found, expected)) in found[name].iter().zip(expected).enumerate() {
            let apart = (f64::from(*found) - expected).abs();
            assert!(apart <= WEIGHT_BOUND, "{case}: {what} {name}[{index}] is {found}, in PyTorch {expected}");
        }
    }
}

#[test]
fn twenty_steps_are_those_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden/steps.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let plain = Device::flex();
    let run: RunSettings = toml::from_str(&format!(
        "seed = 0\nsamples = {}\nbatch_size = {BATCH}\nlog_every = 1\ncheckpoint_every = 1",
        BATCH * golden.timesteps.len()
    ))
    .unwrap();
    for (name, case) in &golden.cases {
        let tables: Tables = toml::from_str(&case.recipe).unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = TrainConfig::new(&run, &tables.optimizer, Some(&tables.ema));
        let mut unet = unet(&case.network, &plain.clone().autodiff());
        let mut trainer = Trainer {
            tables: &tables,
            schedule: NoiseSchedule::new(&tables.schedule).unwrap(),
            optimizer: Optimizer::new(&unet, &config).unwrap(),
            config,
            device: plain.clone(),
        };
        for (step, (timesteps, expected)) in (1..).zip(golden.timesteps.iter().zip(&case.losses)) {
            let loss;
            (unet, loss) = trainer.step(unet, step, timesteps);
            let apart = (loss / expected - 1.0).abs();
            assert!(apart <= LOSS_BOUND, "{name}, step {step}: loss {loss}, in PyTorch {expected}");
        }
        compare(name, "weight", &unet, &case.weights);
        compare(name, "average of", &trainer.optimizer.averaged(&unet).valid(), &case.averages);
    }
}
