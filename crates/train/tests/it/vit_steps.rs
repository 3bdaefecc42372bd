//! Whole training steps of small ViTs against PyTorch, timm and transformers: every loss of 20 steps, and final weights; also behind
//! weights of another grid and other classes. The golden values are those of `golden/make_vit_steps.py`, which computes weights and
//! images from the same names.

use crate::steps::{LOSS_BOUND, WEIGHT_BOUND, inputs, weights};
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_checkpoints::{Component, Export, Part, Placement};
use calotype_models::state::{self, StateError, StoredTensor, WeightPrecision};
use calotype_models::vit::Dropout;
use calotype_models::{Init, Vit, VitConfig};
use calotype_train::config::{InitFrom, OptimizerSettings, RunSettings, TrainConfig};
use calotype_train::optim::Optimizer;
use calotype_train::start::{self, Refit};
use calotype_train::tasks::vit::{cross_entropy, targets};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

const BATCH: usize = 4;

#[derive(Deserialize)]
struct Case {
    recipe: String,
    /// Of each step.
    classes: Vec<[usize; BATCH]>,
    losses: Vec<f64>,
    /// The first elements of some tensors, by checkpoint key.
    weights: BTreeMap<String, Vec<f64>>,
}

/// The tables of a case.
#[derive(Deserialize)]
struct Tables {
    model: VitConfig,
    objective: Objective,
    optimizer: OptimizerSettings,
    /// The model that a case begins with, as far as it is another one.
    before: Option<Before>,
}

#[derive(Deserialize)]
struct Objective {
    #[serde(default)]
    label_smoothing: f64,
    /// How much of each image is left, of which the rest is that of the batch's reverse.
    share: Option<f64>,
}

#[derive(Deserialize)]
struct Before {
    image_size: usize,
    labels: usize,
    #[serde(default)]
    pooling: bool,
}

fn sized(config: VitConfig) -> VitConfig {
    VitConfig { patch_size: 4, channels: 32, mlp_channels: 64, layers: 2, heads: 2, ..config }
}

fn filled(config: &VitConfig, device: &Device) -> Vit {
    let lookup = |name: &str, shape: &[usize]| {
        let bytes: Vec<u8> = weights(name, shape).into_iter().flat_map(f32::to_le_bytes).collect();
        let (shape, bytes) = (shape.to_vec(), Cow::Owned(bytes));
        Ok::<_, StateError>(StoredTensor { source_name: "formula", dtype: DType::F32, shape, bytes })
    };
    let empty = config.init(&mut Init::placeholders(device)).unwrap();
    state::load_with(empty, WeightPrecision::F32, lookup).unwrap()
}

/// The network that a case begins with.
fn begun(tables: &Tables, device: &Device) -> Vit {
    let config = sized(tables.model.clone());
    let Some(before) = &tables.before else { return filled(&config, device) };
    let Before { image_size, labels, pooling } = *before;
    let earlier = VitConfig { image_size, labels, pooling, ..config.clone() };
    let folder = tempfile::tempdir().unwrap();
    let (path, model) = (folder.path().join("model"), filled(&earlier, &Device::flex()));
    let export = Export::model(Part::module(Component::Classifier, earlier.to_calotype().unwrap(), &model));
    export.write(&path, Placement::New).unwrap();
    let fresh = config.init(&mut Init::new(5, device)).unwrap();
    start::fill(fresh, &InitFrom::path(&path), Component::Classifier, Refit::Vit).unwrap()
}

/// Images of a step, mixed as the case says, `[batch, side, side, 3]`; named values are channels-first.
fn images(step: usize, side: usize, share: Option<f64>, device: &Device) -> Tensor<4> {
    let size = 3 * side * side;
    let named = inputs(&format!("images {step}"), BATCH * size);
    let value = |row: usize, i: usize| named[row * size + (i % 3) * side * side + i / 3];
    let mixed = |row: usize, i: usize| match share {
        None => value(row, i),
        Some(share) => value(row, i) * share as f32 + value(BATCH - 1 - row, i) * (1.0 - share) as f32,
    };
    let values: Vec<f32> =
        (0..BATCH).flat_map(|row| (0..size).map(move |i| (row, i))).map(|(r, i)| mixed(r, i)).collect();
    Tensor::from_data(TensorData::new(values, [BATCH, side, side, 3]), device)
}

#[test]
fn twenty_steps_of_vits_are_those_of_timm_and_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden/vit_steps.json");
    let golden: BTreeMap<String, Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(golden.len(), 8);
    let plain = Device::flex();
    for (name, case) in &golden {
        let tables: Tables = toml::from_str(&case.recipe).unwrap_or_else(|error| panic!("{name}: {error}"));
        let run = format!(
            "seed = 0\nsamples = {}\nbatch_size = {BATCH}\nlog_every = 1\ncheckpoint_every = 1",
            BATCH * case.losses.len()
        );
        let run: RunSettings = toml::from_str(&run).unwrap();
        let config = TrainConfig::new(&run, &tables.optimizer, None);
        let mut vit = begun(&tables, &plain.clone().autodiff());
        let mut optimizer = Optimizer::new(&vit, &config).unwrap();
        let (side, labels, Objective { label_smoothing, share }) =
            (tables.model.image_size, tables.model.labels, &tables.objective);
        let shares = share.map(|share| [(3, share), (2, share), (1, share), (0, share)]);
        assert_eq!(case.losses.len(), 20, "{name}");
        for (step, (classes, expected)) in (1..).zip(case.classes.iter().zip(&case.losses)) {
            let target = targets(classes, shares.as_ref().map(|s| &s[..]), labels, *label_smoothing, &plain);
            let dropout = Dropout { seed: 0, positions: &[0, 1, 2, 3] };
            let logits = vit.forward_training(images(step, side, *share, &plain), dropout).unwrap();
            let loss = cross_entropy(logits, target);
            let found = f64::from(loss.clone().inner().into_scalar::<f32>());
            let apart = (found / expected - 1.0).abs();
            assert!(apart <= LOSS_BOUND, "{name}, step {step}: loss {found}, in PyTorch {expected}");
            let mut gradients = loss.backward();
            let gradients = optimizer.gradients(&vit, &mut gradients, BATCH as f64);
            let norm = optimizer.gradient_norm(&gradients).unwrap();
            vit = optimizer.step(vit, gradients, &config, (step * BATCH) as u64, norm);
        }
        let found: BTreeMap<_, _> =
            state::collect(&vit.valid()).into_iter().map(|tensor| (tensor.name, tensor.values)).collect();
        assert_eq!(case.weights.len(), 7, "{name}");
        for (key, expected) in &case.weights {
            for (index, (found, expected)) in found[key].iter().zip(expected).enumerate() {
                let apart = (f64::from(*found) - expected).abs();
                assert!(apart <= WEIGHT_BOUND, "{name}: {key}[{index}] is {found}, in PyTorch {expected}");
            }
        }
    }
}

/// What cannot be brought together is still refused by name.
#[test]
fn weights_of_other_networks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let device = Device::flex();
    let config = sized(VitConfig { image_size: 12, labels: 5, ..VitConfig::default() });
    let export = Part::module(Component::Classifier, config.to_calotype().unwrap(), &filled(&config, &device));
    Export::model(export).write(&path, Placement::New).unwrap();
    let fill = |config: VitConfig, refit: Refit| {
        let fresh = config.init(&mut Init::new(5, &device)).unwrap();
        start::fill(fresh, &InitFrom::path(&path), Component::Classifier, refit)
    };
    let larger = VitConfig { image_size: 16, labels: 3, ..config.clone() };
    fill(larger.clone(), Refit::Vit).unwrap();
    let error = fill(larger.clone(), Refit::Nothing).unwrap_err().to_string();
    assert!(error.contains("position_embeddings"), "{error}");
    for (other, part) in [
        (VitConfig { channels: 16, ..larger.clone() }, "has shape"),
        (VitConfig { class_tokens: 2, ..larger.clone() }, "has shape"),
        (VitConfig { pooling: true, ..larger }, "vit.pooler.dense"),
    ] {
        let error = fill(other, Refit::Vit).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(part), "{error}");
    }
    // The same network begins as it is.
    let same = fill(config.clone(), Refit::Vit).unwrap();
    let values = |model: &Vit| state::collect(model).into_iter().map(|t| (t.name, t.values)).collect::<Vec<_>>();
    assert!(values(&same) == values(&filled(&config, &device)));
}
