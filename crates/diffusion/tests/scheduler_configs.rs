//! `scheduler_config.json` of published checkpoints, and what is refused in them.

use calotype_diffusion::samplers::{Curve, Ddim, DpmMultistep, Euler, FinalSigma, Lcm, Pndm, SigmaRange};
use calotype_diffusion::{Prediction, SamplerConfig, SamplerError, SamplerKind, ScheduleConfig, ScheduleKind, Spacing};
use serde_json::{Value, json};

/// What the configurations of Stable Diffusion have in common.
fn stable_diffusion(class: &str, more: Value) -> Value {
    let mut config = json!({
        "_class_name": class, "_diffusers_version": "0.8.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": false, "num_train_timesteps": 1000, "set_alpha_to_one": false,
        "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: &Value) -> SamplerConfig {
    SamplerConfig::from_diffusers(config).unwrap()
}

#[test]
fn stable_diffusion_1_5() {
    let config = read(&stable_diffusion("PNDMScheduler", json!({})));
    assert_eq!(
        config,
        SamplerConfig {
            kind: SamplerKind::Pndm(Pndm { skip_prk: true, alpha_to_one: false }),
            schedule: ScheduleConfig::default(),
            prediction: Prediction::Epsilon,
            spacing: Spacing::Leading,
            steps_offset: 1,
        }
    );
}

#[test]
fn stable_diffusion_2_1() {
    let v = json!({ "prediction_type": "v_prediction" });
    let config = read(&stable_diffusion("DDIMScheduler", v.clone()));
    assert_eq!(config.kind, SamplerKind::Ddim(Ddim::default()));
    assert_eq!((config.prediction, config.spacing), (Prediction::V, Spacing::Leading));
    let config = read(&stable_diffusion("PNDMScheduler", v));
    assert_eq!(config.kind, SamplerKind::Pndm(Pndm::default()));
    assert_eq!(config.prediction, Prediction::V);
}

fn sdxl() -> Value {
    stable_diffusion(
        "EulerDiscreteScheduler",
        json!({
            "_diffusers_version": "0.19.0.dev0", "interpolation_type": "linear", "prediction_type": "epsilon",
            "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": false,
        }),
    )
}

#[test]
fn stable_diffusion_xl() {
    let config = read(&sdxl());
    assert_eq!(config.kind, SamplerKind::Euler(Euler::default()));
    assert_eq!((config.prediction, config.spacing, config.steps_offset), (Prediction::Epsilon, Spacing::Leading, 1));
}

#[test]
fn latent_consistency() {
    let more = json!({
        "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "original_inference_steps": 50,
        "prediction_type": "epsilon", "rescale_betas_zero_snr": false, "sample_max_value": 1.0,
        "set_alpha_to_one": true, "thresholding": false, "timestep_scaling": 10.0, "timestep_spacing": "leading",
    });
    let config = read(&stable_diffusion("LCMScheduler", more));
    assert_eq!(config.kind, SamplerKind::Lcm(Lcm { original_steps: 50, timestep_scaling: 10.0, clip: None }));
    assert_eq!(config.schedule, ScheduleConfig::default());
}

/// What the file says holds for another sampler too; what it does not say is that sampler's own default.
#[test]
fn another_sampler_on_the_same_checkpoint() {
    let file = stable_diffusion("PNDMScheduler", json!({ "prediction_type": "v_prediction" }));
    for name in ["euler", "EulerDiscreteScheduler"] {
        let config = SamplerConfig::from_diffusers_as(&file, name).unwrap();
        assert_eq!(config.kind, SamplerKind::Euler(Euler::default()));
        assert_eq!((config.prediction, config.spacing, config.steps_offset), (Prediction::V, Spacing::Linspace, 1));
    }
}

#[test]
fn defaults_are_those_of_each_scheduler() {
    let config = read(&json!({ "_class_name": "DDIMScheduler" }));
    assert_eq!(config.kind, SamplerKind::Ddim(Ddim { eta: 0.0, alpha_to_one: true, clip: Some(1.0) }));
    assert_eq!((config.schedule.beta_start, config.schedule.beta_end), (0.0001, 0.02));
    assert_eq!((config.schedule.kind, config.steps_offset), (ScheduleKind::Linear, 0));
    let config = read(&json!({ "_class_name": "LCMScheduler" }));
    assert_eq!(config.schedule, ScheduleConfig::default());
}

#[test]
fn python_infinities_are_read() {
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
        "use_karras_sigmas": true, "final_sigmas_type": "sigma_min", "_note": "\"NaN\" stays"}"#;
    let value = SamplerConfig::parse_diffusers(text).unwrap();
    assert_eq!(value["_note"], "\"NaN\" stays");
    let sigmas = SigmaRange { curve: Curve::Karras, last: FinalSigma::SigmaMin, ..Default::default() };
    assert_eq!(read(&value).kind, SamplerKind::DpmMultistep(DpmMultistep { sigmas, ..Default::default() }));
    assert!(matches!(SamplerConfig::parse_diffusers("{"), Err(SamplerError::Json { .. })));
}

#[test]
fn recipes_round_trip() {
    for kind in SamplerKind::all() {
        let config = SamplerConfig { kind, ..Default::default() };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<SamplerConfig>(&text).unwrap(), config);
    }
    let unknown = json!({ "kind": { "name": "euler", "order": 2 } });
    let error = serde_json::from_value::<SamplerConfig>(unknown).unwrap_err().to_string();
    assert!(error.contains("order"), "{error}");
}

#[test]
fn what_would_change_results_is_refused_by_name() {
    let cases = [
        (json!([]), "object"),
        (json!({}), "`_class_name` is missing"),
        (json!({ "_class_name": "DEISScheduler" }), "EulerDiscreteScheduler"),
        (json!({ "_class_name": "DDIMScheduler", "thresholding": true }), "DDIMScheduler.thresholding = true"),
        (json!({ "_class_name": "DDIMScheduler", "surprise": 1 }), "surprise"),
        (json!({ "_class_name": "DDIMScheduler", "beta_start": "x" }), "beta_start"),
        (json!({ "_class_name": "DDIMScheduler", "beta_schedule": "sigmoid" }), "sigmoid"),
        (json!({ "_class_name": "DDIMScheduler", "prediction_type": "flow_prediction" }), "flow_prediction"),
        (json!({ "_class_name": "PNDMScheduler", "prediction_type": "sample" }), "pndm"),
        (json!({ "_class_name": "DDPMScheduler", "variance_type": "learned_range" }), "variance_type"),
        (json!({ "_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear" }), "interpolation_type"),
        (json!({ "_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous" }), "timestep_type"),
        (
            json!({ "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true, "use_beta_sigmas": true }),
            "only one",
        ),
        (json!({ "_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true }), "use_flow_sigmas"),
        (json!({ "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver" }), "sigma_min"),
        (json!({ "_class_name": "DPMSolverMultistepScheduler", "solver_order": 4 }), "order"),
        (json!({ "_class_name": "UniPCMultistepScheduler", "solver_p": {} }), "solver_p"),
    ];
    for (config, part) in cases {
        let error = SamplerConfig::from_diffusers(&config).unwrap_err().to_string();
        assert!(error.contains(part), "{config}: {error}");
    }
}
