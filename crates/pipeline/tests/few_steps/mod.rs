//! Few-step students and cached blocks against diffusers' pipelines; `golden/make_few_steps.py` made the latents.

use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_diffusion::{CachedRun, Caching, Conditions, GuidedUNet, Run, Sampler, SamplerConfig, SamplerStep};
use calotype_models::state::{self, StateError, StoredTensor, WeightPrecision};
use calotype_models::{Init, UNet, UNetConfig};
use calotype_pipeline::Preset;
use calotype_weights::TensorFile;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;

/// Numbers in -1..1 that belong to a name, as in `crates/models/tests/golden/make_models.py`: splitmix64 from the name's
/// FNV-1a hash.
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

fn tensor<const D: usize>(shape: [usize; D], values: impl Iterator<Item = f64>) -> Tensor<D> {
    let values: Vec<f32> = values.take(shape.iter().product()).map(|value| value as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// A parameter, by the formula of the script.
fn parameter(name: &str, shape: &[usize]) -> Vec<u8> {
    let inputs: usize = shape.iter().skip(1).product();
    let scaled = |u: f64| match shape.len() {
        0 | 1 if name.ends_with("weight") => 1.0 + 0.25 * u,
        0 | 1 => 0.125 * u,
        _ => u * (3.0 / inputs as f64).sqrt(),
    };
    let count = shape.iter().product();
    uniform(name).take(count).flat_map(|u| (scaled(u) as f32).to_le_bytes()).collect()
}

fn unet(guidance_features: Option<usize>) -> UNet {
    let config = UNetConfig {
        block_out_channels: vec![16, 32, 32, 32],
        head_channels: vec![8, 16, 16, 16],
        context_channels: 24,
        norm_groups: 8,
        transformer_norm_groups: 8,
        linear_projection: false,
        guidance_features,
        ..UNetConfig::default()
    };
    let empty = config.init(&mut Init::placeholders(&Device::flex())).unwrap();
    let lookup = |name: &str, shape: &[usize]| {
        let (shape, bytes) = (shape.to_vec(), Cow::Owned(parameter(name, shape)));
        Ok::<_, StateError>(StoredTensor { source_name: "formula", dtype: DType::F32, shape, bytes })
    };
    state::load_with(empty, WeightPrecision::F32, lookup).unwrap()
}

/// The scheduler configuration of Stable Diffusion XL.
fn sdxl() -> Value {
    json!({
        "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "clip_sample": false, "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
        "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false,
    })
}

fn named(sampler: &str) -> SamplerConfig {
    SamplerConfig::from_diffusers_as(&sdxl(), sampler).unwrap()
}

/// Latents of the script's prompt and noise.
fn draw(unet: &UNet, config: &SamplerConfig, steps: usize, guidance: f32, caching: Option<Caching>) -> Vec<f32> {
    let states = |name: &str| Conditions { context: tensor([1, 5, 24], uniform(name)), added: None };
    let sampler = Sampler::new(config, steps).unwrap();
    let mut denoiser = GuidedUNet::new(unet, states("encoder_hidden_states"), &states("negative"), &[guidance]);
    denoiser.cached = caching.map(|caching| CachedRun::new(caching, unet, sampler.timesteps()).unwrap());
    let last = |x: Tensor<4>| x.permute([0, 2, 3, 1]);
    let fresh = |call: usize| {
        let element = |i: usize| 1.4 * (12.9898 * (call as f64 + 2.0) + 78.233 * i as f64).sin();
        last(tensor([1, 4, 8, 8], (0..).map(element)))
    };
    let x = last(tensor([1, 4, 8, 8], uniform("latents"))).mul_scalar(sampler.init_noise_sigma());
    let mut go_on = |_: SamplerStep<'_>| ControlFlow::Continue(());
    let run = Run { noise: Some(&fresh), ..Run::new(&mut go_on) };
    let latents = sampler.sample(&denoiser, x, run).unwrap();
    latents.permute([0, 3, 1, 2]).into_data().iter::<f32>().collect()
}

fn assert_golden(key: &str, found: &[f32]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/few_steps.safetensors");
    let expected = TensorFile::open(&path).unwrap().get(key).unwrap().to_f32_vec_finite().unwrap();
    let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let off = found.iter().zip(&expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(found.len() == expected.len() && off / largest < TOLERANCE, "{key}: relative error {}", off / largest);
}

/// Largest difference over largest value: diffusers' own `f32` differs from its `f64` by up to 3e-6.
const TOLERANCE: f32 = 1e-4;

#[test]
fn a_network_that_is_told_its_guidance_draws_in_one_pass() {
    let unet = unet(Some(256));
    for guidance in [8.5_f32, 1.0] {
        assert_golden(&format!("told/{guidance:.1}"), &draw(&unet, &named("lcm"), 4, guidance, None));
    }
}

#[test]
fn presets_draw_what_their_model_cards_draw() {
    let unet = unet(None);
    // `lcm` is for networks that are told their guidance scale.
    for preset in Preset::all().iter().filter(|preset| preset.name != "lcm") {
        let mut config = named(preset.sampler);
        preset.apply(&mut config);
        let found = draw(&unet, &config, preset.steps, preset.guidance, None);
        assert_golden(&format!("preset/{}", preset.name), &found);
    }
}

#[test]
fn cached_blocks_draw_what_deepcache_draws() {
    let unet = unet(None);
    for (name, sampler, steps, guidance, interval, branch) in [
        ("ddim", "ddim", 7, 7.5, 3, 0),
        ("ddim deep", "ddim", 7, 7.5, 2, 4),
        ("ddim unguided", "ddim", 6, 1.0, 2, 1),
        ("pndm", "pndm", 6, 5.0, 3, 0),
        ("euler", "euler", 8, 7.5, 5, 2),
        ("heun", "heun", 4, 7.5, 2, 0),
    ] {
        let found = draw(&unet, &named(sampler), steps, guidance, Some(Caching { interval, branch }));
        assert_golden(&format!("cached/{name}"), &found);
    }
    let config = named("ddim");
    let whole = draw(&unet, &config, 4, 7.5, Some(Caching { interval: 1, branch: 0 }));
    assert_eq!(whole, draw(&unet, &config, 4, 7.5, None));
}
