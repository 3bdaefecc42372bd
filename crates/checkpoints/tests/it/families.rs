//! The families' schedulers against diffusers: every family with every sampler.
//!
//! `golden/families.json` is made by `golden/make_families.py`, which says what is in it.

use burn::tensor::{Device, Tensor, TensorData};
use calotype_checkpoints::{Component, Family};
use calotype_diffusion::samplers::SamplerKind;
use calotype_diffusion::{Denoiser, Run, Sampler, SamplerConfig};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

#[derive(Deserialize)]
struct Golden {
    configs: BTreeMap<Family, Value>,
    runs: Vec<GoldenRun>,
}

#[derive(Deserialize)]
struct GoldenRun {
    family: Family,
    scheduler: String,
    steps: usize,
    latent: Vec<f32>,
    /// The calls where the first of two networks ends and where the second begins, at 0.8.
    handover: (usize, Option<usize>),
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/families.json")).unwrap()
}

/// Families whose networks draw, but for those whose prediction type is not known.
fn drawing() -> impl Iterator<Item = Family> {
    let alone = [
        Family::Vit,
        Family::Inception,
        Family::KerasInception,
        Family::Dinov2,
        Family::EfficientNetLite,
        Family::Vae,
        Family::Clip,
        Family::Sd2,
    ];
    Family::ALL.iter().copied().filter(move |family| !alone.contains(family))
}

#[test]
fn schedulers_are_those_of_the_original_repositories() {
    let Golden { configs, .. } = golden();
    assert_eq!(configs.keys().copied().collect::<BTreeSet<_>>(), drawing().collect());
    for (family, config) in configs {
        assert_eq!((family.facts().scheduler)(), config, "{family}");
    }
    assert!(Family::Sd2.facts().text_encoders.iter().any(|text| text.component == Component::TextEncoder));
}

fn tensor(f: impl Fn(f64) -> f64) -> Tensor<4> {
    let data: Vec<f32> = (0..8).map(|i| f(f64::from(i)) as f32).collect();
    Tensor::from_data(TensorData::new(data, [1, 2, 2, 2]), &Device::default())
}

/// Stands for the standard normal numbers of a call; -1 is the initial latent.
fn noise(call: f64) -> Tensor<4> {
    tensor(|i| 1.4 * (12.9898 * (call + 2.0) + 78.233 * i).sin())
}

/// The denoiser of the golden script.
struct Formula;

impl Denoiser for Formula {
    fn predict(&self, input: Tensor<4>, t: f64) -> Tensor<4> {
        let wave = input.clone().sin().mul_scalar(0.3);
        wave + input.mul_scalar(0.1 * t / 1000.0) + tensor(|i| 0.2 * (t / 40.0 + i).cos())
    }
}

fn last_latent(sampler: &Sampler) -> Vec<f32> {
    let fresh = |call: usize| noise(call as f64);
    let mut go = |_: calotype_diffusion::SamplerStep<'_>| ControlFlow::Continue(());
    let run = Run { noise: Some(&fresh), ..Run::new(&mut go) };
    let latent = sampler.sample(&Formula, noise(-1.0).mul_scalar(sampler.init_noise_sigma()), run).unwrap();
    latent.to_data().try_to_vec().unwrap()
}

#[test]
fn every_family_draws_with_every_sampler_as_diffusers_does() {
    let mut seen = BTreeSet::new();
    let mut failures = Vec::new();
    for GoldenRun { family, scheduler, steps, latent, handover: (end, start) } in golden().runs {
        let config = SamplerConfig::from_diffusers_as(&(family.facts().scheduler)(), &scheduler).unwrap();
        let sampler = Sampler::new(&config, steps).unwrap();
        let ours = last_latent(&sampler);
        let scale = latent.iter().fold(f32::MIN_POSITIVE, |max, x| max.max(x.abs()));
        let error = ours.iter().zip(&latent).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max);
        if error.is_nan() || error > 1e-5 {
            failures.push(format!("{family}, {scheduler}, {steps} steps: {error:.1e}"));
        }
        let handed = (sampler.handed_over_at(0.8, 0).unwrap(), sampler.taken_over_at(0.8).ok());
        assert_eq!(handed, (end, start), "{family}, {scheduler}, {steps} steps");
        seen.insert((family, config.kind.name()));
    }
    assert!(failures.is_empty(), "{} runs differ:\n{}", failures.len(), failures.join("\n"));
    let discrete = SamplerKind::all().into_iter().filter(|kind| !kind.is_edm());
    let names: Vec<&str> = discrete.map(|kind| kind.name()).collect();
    assert_eq!(seen, drawing().flat_map(|family| names.iter().map(move |name| (family, *name))).collect());
}

#[test]
fn impossible_handovers_are_named() {
    let sampler = Sampler::new(&SamplerConfig::default(), 10).unwrap();
    for share in [0.0, 1.0, -1.0, f64::NAN] {
        let error = sampler.handed_over_at(share, 0).unwrap_err().to_string();
        assert!(error.contains("handover") && error.contains("first network"), "{error}");
        assert!(sampler.taken_over_at(share).unwrap_err().to_string().contains("second network"));
    }
    assert!(sampler.handed_over_at(0.01, 0).unwrap_err().to_string().contains("first network"));
    assert!(sampler.taken_over_at(0.9999).unwrap_err().to_string().contains("second network"));
    let kind = SamplerKind::by_name("edm_euler").unwrap();
    let edm = Sampler::new(&SamplerConfig { kind, ..SamplerConfig::default() }, 10).unwrap();
    assert!(edm.taken_over_at(0.8).unwrap_err().to_string().contains("EDM"));
}
