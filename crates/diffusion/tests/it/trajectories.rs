//! Every sampler's trajectory on a denoiser of closed form, against diffusers' schedulers.
//!
//! The golden values are those of `../golden/make_samplers.py`, which says how they are laid out.

use burn::tensor::{Device, Tensor, TensorData};
use calotype_diffusion::samplers::{Inpainting, SamplerKind};
use calotype_diffusion::{Denoiser, Run, Sampler, SamplerConfig, SamplerError};
use serde::Deserialize;
use serde_json::{Value, json};
use std::ops::ControlFlow;

#[derive(Deserialize)]
struct Golden {
    betas: Value,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    config: Value,
    predictions: Vec<String>,
    spacings: Vec<Option<String>>,
    steps: Vec<usize>,
    #[serde(default)]
    eta: f64,
    strength: Option<f64>,
    /// Lists in place of a spacing.
    #[serde(default)]
    timesteps: Vec<f64>,
    #[serde(default)]
    sigmas: Vec<f64>,
    /// Largest difference over largest value.
    #[serde(default = "tolerance")]
    tolerance: f32,
}

fn tolerance() -> f32 {
    1e-5
}

fn tensor(f: impl Fn(f64) -> f64) -> Tensor<4> {
    let data: Vec<f32> = (0..8).map(|i| f(f64::from(i)) as f32).collect();
    Tensor::from_data(TensorData::new(data, [1, 2, 2, 2]), &Device::default())
}

fn values(x: &Tensor<4>) -> Vec<f32> {
    x.to_data().try_to_vec().unwrap()
}

/// Stands for the standard normal numbers of a call; -1 is the initial latent.
fn noise(call: f64) -> Tensor<4> {
    tensor(|i| 1.4 * (12.9898 * (call + 2.0) + 78.233 * i).sin())
}

fn clean() -> Tensor<4> {
    tensor(|i| (1.7 * i).cos())
}

/// The denoiser of the golden script.
struct Formula;

impl Denoiser for Formula {
    fn predict(&self, input: Tensor<4>, t: f64) -> Tensor<4> {
        let wave = input.clone().sin().mul_scalar(0.3);
        wave + input.mul_scalar(0.1 * t / 1000.0) + tensor(|i| 0.2 * (t / 40.0 + i).cos())
    }
}

/// The latents after each call.
fn trajectory(sampler: &Sampler, strength: Option<f64>) -> Result<Vec<Vec<f32>>, SamplerError> {
    let (first, x) = match strength {
        None => (0, noise(-1.0).mul_scalar(sampler.init_noise_sigma())),
        Some(strength) => {
            let first = sampler.first_call(strength)?;
            (first, sampler.add_noise(clean(), noise(-1.0), first)?)
        }
    };
    let mut latents = Vec::new();
    let fresh = |call: usize| noise(call as f64);
    let mut progress = |p: calotype_diffusion::SamplerStep<'_>| {
        latents.push(values(p.latent));
        ControlFlow::Continue(())
    };
    let run = Run { first, noise: Some(&fresh), ..Run::new(&mut progress) };
    let last = sampler.sample(&Formula, x, run)?;
    assert_eq!(Some(&values(&last)), latents.last());
    Ok(latents)
}

/// The largest difference from the golden values of a run, which are taken from their front.
fn difference(golden: &mut &[f32], latents: &[Vec<f32>], steps: usize) -> f32 {
    let mut worst: f32 = 0.0;
    let mut compare = |latent: &[f32], i: usize| {
        let (expected, rest) = golden.split_first().expect("samplers.bin is too short");
        *golden = rest;
        let scale = latent.iter().fold(f32::MIN_POSITIVE, |max, x| max.max(x.abs()));
        // Where diffusers divides by a step between equal levels, only a number is asked for.
        let error = if expected.is_finite() { (latent[i] - expected).abs() / scale } else { 0.0 };
        worst = if error.is_finite() && latent[i].is_finite() { worst.max(error) } else { f32::INFINITY };
    };
    let every = if steps > 20 { 2 } else { 1 };
    for (i, latent) in latents.iter().enumerate() {
        if i % every == 0 || i + 1 == latents.len() {
            compare(latent, i % 8);
        }
    }
    (0..8).for_each(|i| compare(&latents[latents.len() - 1], i));
    worst
}

#[test]
fn trajectories_equal_those_of_diffusers() {
    let Golden { betas, groups } = serde_json::from_str(include_str!("../golden/samplers.json")).unwrap();
    let bytes = include_bytes!("../golden/samplers.bin");
    let golden: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut golden = golden.as_slice();
    let mut failures = Vec::new();
    for group in &groups {
        for (prediction, spacing, steps) in combinations(group) {
            let mut file = betas.clone();
            file.as_object_mut().unwrap().extend(group.config.as_object().unwrap().clone());
            file["prediction_type"] = prediction.into();
            file["timestep_spacing"] = spacing.map_or(Value::Null, Value::from);
            let mut config = SamplerConfig::from_diffusers(&file).unwrap();
            if let Some(eta) = config.kind.eta_mut() {
                *eta = group.eta;
            }
            (config.timesteps, config.sigmas) = (group.timesteps.clone(), group.sigmas.clone());
            let sampler = Sampler::new(&config, steps).unwrap();
            let latents = trajectory(&sampler, group.strength).unwrap();
            let error = difference(&mut golden, &latents, steps);
            if error > group.tolerance {
                failures.push(format!("{error:.1e} at {steps} steps, strength {:?}: {file}", group.strength));
            }
        }
    }
    assert!(golden.is_empty(), "{} values are left over", golden.len());
    assert!(failures.is_empty(), "{} runs differ:\n{}", failures.len(), failures.join("\n"));
}

/// Predictions, spacings and steps, in the order of the golden values.
fn combinations(group: &Group) -> Vec<(&str, Option<&str>, usize)> {
    let mut out = Vec::new();
    for prediction in &group.predictions {
        for spacing in &group.spacings {
            out.extend(group.steps.iter().map(|&steps| (prediction.as_str(), spacing.as_deref(), steps)));
        }
    }
    out
}

fn sampler(name: &str, steps: usize) -> Sampler {
    let config = SamplerConfig { kind: SamplerKind::by_name(name).unwrap(), ..Default::default() };
    Sampler::new(&config, steps).unwrap()
}

#[test]
fn a_sampler_without_noise_or_with_a_stop_says_so() {
    let sampler = sampler("euler_ancestral", 5);
    let mut go = |_: calotype_diffusion::SamplerStep<'_>| ControlFlow::Continue(());
    let error = sampler.sample(&Formula, noise(-1.0), Run::new(&mut go)).unwrap_err();
    assert_eq!(error, SamplerError::NoNoise { kind: "euler_ancestral" });
    let mut stop = |p: calotype_diffusion::SamplerStep<'_>| match p.step {
        3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let fresh = |call: usize| noise(call as f64);
    let run = Run { noise: Some(&fresh), ..Run::new(&mut stop) };
    let error = sampler.sample(&Formula, noise(-1.0), run).unwrap_err();
    assert_eq!(error, SamplerError::Stopped { step: 3, steps: 5 });
}

#[test]
fn strengths_choose_the_first_call() {
    assert_eq!(sampler("ddim", 50).first_call(0.75), Ok(13));
    assert_eq!(sampler("ddim", 50).first_call(1.0), Ok(0));
    assert_eq!(sampler("heun", 10).first_call(0.5), Ok(10));
    for strength in [0.0, 0.01, -0.5, 1.5, f64::NAN] {
        let error = sampler("ddim", 50).first_call(strength).unwrap_err();
        assert!(matches!(error, SamplerError::Strength { steps: 50, .. }), "{strength}: {error}");
    }
}

/// What stays is the image itself at the end; what is drawn anew is not.
#[test]
fn inpainting_keeps_what_stays() {
    for name in ["ddim", "pndm", "euler", "heun", "dpm_multistep"] {
        let sampler = sampler(name, 6);
        let mask = Tensor::from_data(TensorData::new(vec![1f32, 0.0, 0.0, 0.0], [1, 2, 2, 1]), &Device::default());
        let inpainting = Inpainting { clean: clean(), noise: noise(-1.0), mask };
        let edit = |call: usize, x: Tensor<4>| inpainting.edit(&sampler, call, x).unwrap();
        let mut go = |_: calotype_diffusion::SamplerStep<'_>| ControlFlow::Continue(());
        let x = noise(-1.0).mul_scalar(sampler.init_noise_sigma());
        let out = values(&sampler.sample(&Formula, x, Run { edit: Some(&edit), ..Run::new(&mut go) }).unwrap());
        assert_eq!(out[2..], values(&clean())[2..], "{name}");
        assert!(out[0] != values(&clean())[0], "{name}");
    }
}

#[test]
fn a_prediction_without_signal_is_an_error() {
    let mut config = SamplerConfig { spacing: calotype_diffusion::Spacing::Trailing, ..Default::default() };
    config.schedule.zero_terminal_snr = true;
    let error = Sampler::new(&config, 10).unwrap_err();
    assert_eq!(error, SamplerError::NoSignal { timestep: 999.0 });
    config.prediction = calotype_diffusion::Prediction::V;
    assert!(Sampler::new(&config, 10).is_ok());
}

/// Any number of steps gives a plan or a named error, and every plan ends in numbers.
#[test]
fn all_step_counts_are_covered() {
    for kind in SamplerKind::all() {
        for spacing in ["leading", "trailing", "linspace"] {
            let spacing = serde_json::from_value(json!(spacing)).unwrap();
            let config = SamplerConfig { kind: kind.clone(), spacing, ..Default::default() };
            for steps in [0, 1, 2, 3, 4, 7, 61, 333, 1000, 1001] {
                let Ok(sampler) = Sampler::new(&config, steps) else { continue };
                assert!(!sampler.timesteps().is_empty());
                if steps <= 7 {
                    let latents = trajectory(&sampler, None).unwrap();
                    assert!(latents.iter().flatten().all(|x| x.is_finite()), "{} at {steps} steps", kind.name());
                }
            }
        }
    }
}
