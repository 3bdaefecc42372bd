//! Features and figures of pytorch-fid 0.3.0, clean-fid 0.1.35, torch-fidelity 0.4.0, torchmetrics 1.9.0 and of NeMo's steps, on
//! the same weights and pictures: golden/make_inception.py.

use crate::support::{networks, picture, rare_modes, write_pictures};
use burn::tensor::{Device, Tensor, TensorData};
use calotype_checkpoints::Checkpoint;
use calotype_checkpoints::loading::Loader;
use calotype_data::Control;
use calotype_evaluate::metrics::{self, MetricSettings};
use calotype_evaluate::{FeatureKey, Figure, Pictures, Reference, figures, states_of};
use calotype_models::state::{WeightPrecision, values_of};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[derive(Deserialize)]
struct Golden {
    step: usize,
    set: usize,
    sizes: Vec<(usize, usize)>,
    kid: Subsets,
    splits: usize,
    figures: BTreeMap<String, BTreeMap<String, f64>>,
    features: BTreeMap<String, BTreeMap<String, Vec<f32>>>,
}

#[derive(Deserialize)]
struct Subsets {
    subsets: usize,
    subset_size: usize,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/inception.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Both sets of pictures.
fn write_sets(root: &Path, golden: &Golden) {
    for (name, shift) in [("first", 0), ("second", 1)] {
        let folder = root.join(name);
        for number in 0..golden.set {
            let size = golden.sizes[(number + shift) % golden.sizes.len()];
            write_pictures(&folder, [(&*format!("picture-{number:02}"), format!("{name}.{number}"), size)]);
        }
    }
    for entry in fs::read_dir(rare_modes()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, root.join("first").join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn features_are_those_of_the_packages() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    write_sets(folder.path(), &golden);
    let pictures = Pictures::open(folder.path().join("first").to_str().unwrap()).unwrap();
    let all: BTreeMap<_, _> = (0..pictures.len())
        .map(|number| pictures.get(number).unwrap())
        .map(|picture| (picture.name, picture.image))
        .collect();
    let networks = networks();
    assert_eq!(golden.features.len(), 5);
    for (variant, rows) in &golden.features {
        let network = networks.open(&FeatureKey::new("inception", variant)).unwrap();
        assert!(rows.len() >= 14, "{variant}");
        for (name, expected) in rows {
            let found = network.images(&[&all[name]]).unwrap().features;
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (found, expected) in found.iter().step_by(golden.step).zip(expected) {
                assert!((found - expected).abs() <= 1e-4 * largest, "{variant}, {name}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn figures_are_those_of_the_packages() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    write_sets(folder.path(), &golden);
    let settings = MetricSettings {
        variants: golden.figures.keys().cloned().collect(),
        subsets: golden.kid.subsets,
        subset_size: golden.kid.subset_size,
        splits: golden.splits,
        ..MetricSettings::default()
    };
    let names = ["fid", "kid", "inception-score"].map(str::to_owned);
    let all = metrics::open(&names, &settings).unwrap();
    let networks = networks();
    let states = |name: &str| {
        let pictures = Pictures::open(folder.path().join(name).to_str().unwrap()).unwrap();
        states_of(&pictures, &all, &networks, None, &mut Control::default()).unwrap()
    };
    let reference = Reference::Pictures(states("second"));
    let found = figures(&all, &states("first"), Some(&reference)).unwrap();
    // The weights are made up, so nothing is called by a published name.
    let names = [("fd", "fid"), ("kd", "kid"), ("classifier_score", "inception_score")];
    for (variant, expected) in &golden.figures {
        for (metric, published) in names {
            let Some(expected_value) = expected.get(published) else { continue };
            let figure = found.iter().find(|figure| (&*figure.metric, &figure.variant) == (metric, variant)).unwrap();
            let close = |found: f64, expected: f64, what: &str| {
                let allowed = 1e-3 * expected.abs() + 1e-9;
                assert!((found - expected).abs() <= allowed, "{what} of {variant}: {found} instead of {expected}");
            };
            close(figure.value, *expected_value, published);
            assert_eq!(figure.count, golden.set + 10);
            if let Some(deviation) = expected.get(&format!("{published}_deviation")) {
                close(figure.deviation.unwrap(), *deviation, "deviation");
            }
        }
    }
    let aliases = ["mlperf-training", "nemo", "nvidia"].map(str::to_owned).to_vec();
    let all = metrics::open(&["fid".to_owned()], &MetricSettings { variants: aliases, ..settings }).unwrap();
    let pictures = Pictures::open(folder.path().join("first").to_str().unwrap()).unwrap();
    let states = states_of(&pictures, &all, &networks, None, &mut Control::default()).unwrap();
    let named = figures(&all, &states, Some(&reference)).unwrap();
    let value = |figures: &[Figure], variant: &str| figures.iter().find(|f| f.variant == variant).unwrap().value;
    assert_eq!(value(&named, "mlperf-training").to_bits(), value(&found, "pytorch-fid").to_bits());
    assert_eq!(value(&named, "nemo").to_bits(), value(&named, "nvidia").to_bits());
}

/// What pytorch-fid does inside the network is done before it here; the bits of `data fid-stats` do not change by it.
#[test]
fn preparation_outside_of_the_network_gives_the_same_bits() {
    let (networks, device) = (networks(), Device::flex());
    let path = networks.inception.clone().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let loader = Loader { checkpoint: &checkpoint, device: &device, precision: WeightPrecision::F32, adapters: None };
    let network = loader.inception().unwrap();
    let prepared = networks.open(&FeatureKey::new("inception", "pytorch-fid")).unwrap();
    let sizes = [(40, 32), (33, 350), (299, 299), (512, 300)];
    let images: Vec<_> = sizes.iter().map(|(width, height)| picture("bits", *width, *height)).collect();
    let found = prepared.images(&images.iter().collect::<Vec<_>>()).unwrap().features;
    for (image, found) in images.iter().zip(found.chunks_exact(prepared.width())) {
        let pixels = TensorData::new(image.to_f32_hwc(0.0, 1.0), [1, image.height(), image.width(), 3]);
        let expected = values_of(network.forward(Tensor::<4>::from_data(pixels, &device)).unwrap().features);
        assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", image.width());
    }
}
