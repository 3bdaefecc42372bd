//! `scheduler_config.json` of published checkpoints, and what is refused in them.

use calotype_diffusion::samplers::{
    Curve, Ddim, Ddpm, DpmAlgorithm, DpmMultistep, DpmRule, DpmSinglestep, EdmCurve, EdmDpmMultistep, EdmLevels, Euler,
    FinalSigma, Heun, Lcm, Pndm, SigmaRange, Tcd, UniPc, UniPcStep, Variance,
};
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
            ..SamplerConfig::default()
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

/// diffusers keeps `None` where a file says null, and `None` is false where it is asked for.
#[test]
fn a_switch_that_is_null_is_off() {
    let null = |class: &str, field: &str| read(&json!({ "_class_name": class, field: null })).kind;
    let ddim = Ddim { eta: 0.0, alpha_to_one: true, clip: Some(1.0) };
    assert_eq!(null("DDIMScheduler", "clip_sample"), SamplerKind::Ddim(Ddim { clip: None, ..ddim.clone() }));
    assert_eq!(
        null("DDIMScheduler", "set_alpha_to_one"),
        SamplerKind::Ddim(Ddim { alpha_to_one: false, ..ddim.clone() })
    );
    assert_eq!(null("DDIMScheduler", "thresholding"), SamplerKind::Ddim(ddim));
    assert_eq!(null("DDPMScheduler", "clip_sample"), SamplerKind::Ddpm(Ddpm { clip: None, ..Default::default() }));
    let multistep = DpmMultistep { lower_order_final: false, ..Default::default() };
    assert_eq!(null("DPMSolverMultistepScheduler", "lower_order_final"), SamplerKind::DpmMultistep(multistep));
    let unipc =
        json!({ "_class_name": "UniPCMultistepScheduler", "predict_x0": null, "final_sigmas_type": "sigma_min" });
    let sigmas = SigmaRange { last: FinalSigma::SigmaMin, ..Default::default() };
    assert_eq!(read(&unipc).kind, SamplerKind::UniPc(UniPc { predict_clean: false, sigmas, ..Default::default() }));
}

/// `DDIMScheduler` and `EulerDiscreteScheduler` of diffusers 0.42.1, whose defaults are leading and linspace.
#[test]
fn defaults_of_the_class_that_wrote_are_not_those_of_the_one_that_reads() {
    let config = |defaults: Value| {
        let more = json!({ "timestep_spacing": "leading", "_use_default_values": defaults });
        read(&stable_diffusion("EulerDiscreteScheduler", more)).spacing
    };
    assert_eq!(config(json!(["timestep_spacing", "thresholding"])), Spacing::Linspace);
    assert_eq!(config(json!([])), Spacing::Leading);
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
fn every_problem_of_a_file_is_named() {
    let config = json!({ "_class_name": "DDIMScheduler", "beta_start": "x", "thresholding": true, "surprise": 1 });
    let error = SamplerConfig::from_diffusers(&config).unwrap_err();
    let SamplerError::Fields(fields) = &error else { panic!("{error}") };
    for field in ["beta_start", "thresholding", "surprise"] {
        assert!(fields.names(field), "{field}: {error}");
    }
}

/// The forms that images and recipes of earlier versions hold.
#[test]
fn older_forms_are_read() {
    let config = json!({
        "kind": { "name": "dpm_multistep", "order": 2, "algorithm": "dpmsolver++", "rule": "midpoint",
            "lower_order_final": true, "euler_at_final": false, "sigmas": { "curve": "karras", "last": "zero" } },
        "schedule": { "kind": "scaled_linear", "timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012 },
        "prediction": "v", "spacing": "leading", "steps_offset": 1,
    });
    let config: SamplerConfig = serde_json::from_value(config).unwrap();
    let sigmas = SigmaRange { curve: Curve::Karras, ..Default::default() };
    let kind = SamplerKind::DpmMultistep(DpmMultistep { sigmas, ..Default::default() });
    assert_eq!(config, SamplerConfig { kind, prediction: Prediction::V, ..Default::default() });
    let euler: SamplerConfig = serde_json::from_value(json!({ "kind": { "name": "euler_ancestral" } })).unwrap();
    assert_eq!(euler.kind.name(), "euler_ancestral");
}

/// Settings other than the defaults of either side.
fn unusual_settings() -> Vec<SamplerKind> {
    let sigmas = |curve, last| SigmaRange { curve, last, ..Default::default() };
    let ends = SigmaRange { sigma_min: Some(0.05), sigma_max: Some(10.0), ..sigmas(Curve::Karras, FinalSigma::Zero) };
    vec![
        SamplerKind::Ddim(Ddim { eta: 0.0, alpha_to_one: true, clip: Some(0.8) }),
        SamplerKind::Ddpm(Ddpm { variance: Variance::FixedLarge, clip: Some(1.5) }),
        SamplerKind::Pndm(Pndm { skip_prk: false, alpha_to_one: true }),
        SamplerKind::DpmMultistep(DpmMultistep {
            order: 3,
            algorithm: DpmAlgorithm::SdePlusPlus,
            rule: DpmRule::Heun,
            lower_order_final: false,
            euler_at_final: true,
            sigmas: sigmas(Curve::LogSnr, FinalSigma::SigmaMin),
            lambda_min: Some(-5.1),
        }),
        SamplerKind::DpmSinglestep(DpmSinglestep {
            order: 3,
            algorithm: DpmAlgorithm::Noise,
            rule: DpmRule::Heun,
            lower_order_final: true,
            sigmas: sigmas(Curve::Beta, FinalSigma::SigmaMin),
            lambda_min: Some(-5.1),
        }),
        SamplerKind::Euler(Euler { sigmas: ends.clone() }),
        SamplerKind::Heun(Heun { sigmas: sigmas(Curve::Exponential, FinalSigma::Zero), clip: Some(2.0) }),
        SamplerKind::UniPc(UniPc {
            order: 3,
            step: UniPcStep::Bh1,
            predict_clean: true,
            lower_order_final: false,
            uncorrected: vec![0, 2],
            sigmas: ends,
        }),
        SamplerKind::Lcm(Lcm { original_steps: 30, timestep_scaling: 8.0, clip: Some(1.0) }),
        SamplerKind::Tcd(Tcd { eta: 0.0, original_steps: 30 }),
        SamplerKind::EdmDpmMultistep(EdmDpmMultistep {
            order: 1,
            algorithm: DpmAlgorithm::SdePlusPlus,
            rule: DpmRule::Heun,
            lower_order_final: false,
            euler_at_final: true,
            levels: EdmLevels {
                sigma_min: 0.01,
                sigma_max: 120.0,
                sigma_data: 1.0,
                curve: EdmCurve::Exponential,
                rho: 5.0,
                last: FinalSigma::SigmaMin,
            },
        }),
    ]
}

#[test]
fn written_configurations_are_read_again() {
    let schedules = [
        ScheduleConfig::default(),
        ScheduleConfig { kind: ScheduleKind::Cosine, timesteps: 500, ..Default::default() },
        ScheduleConfig { timesteps: 2, trained_betas: Some(vec![0.1, 0.2]), ..Default::default() },
    ];
    for kind in SamplerKind::all().into_iter().chain(unusual_settings()) {
        for (schedule, prediction) in schedules.iter().zip([Prediction::Epsilon, Prediction::V, Prediction::Epsilon]) {
            let schedule = schedule.clone();
            // EDM has neither betas nor spacings.
            let mut config = SamplerConfig { kind: kind.clone(), prediction, ..Default::default() };
            if !kind.is_edm() {
                config = SamplerConfig { schedule, spacing: Spacing::Trailing, steps_offset: 3, ..config };
            }
            let written = config.to_diffusers().unwrap();
            assert_eq!(SamplerConfig::from_diffusers(&written).unwrap(), config, "{written}");
        }
    }
}

#[test]
fn settings_without_a_field_are_not_written() {
    let ends = SigmaRange { sigma_max: Some(10.0), ..Default::default() };
    let schedule = ScheduleConfig { zero_terminal_snr: true, ..Default::default() };
    let of = |kind| SamplerConfig { kind, ..Default::default() };
    for (config, setting) in [
        (of(SamplerKind::Ddim(Ddim { eta: 0.5, ..Default::default() })), "eta"),
        (of(SamplerKind::Tcd(Tcd { eta: 0.3, ..Default::default() })), "eta"),
        (SamplerConfig { timesteps: vec![999.0], ..of(SamplerKind::Lcm(Lcm::default())) }, "timesteps"),
        (SamplerConfig { sigmas: vec![9.0, 0.0], ..of(SamplerKind::Euler(Euler::default())) }, "sigmas"),
        (of(SamplerKind::Heun(Heun { sigmas: ends, clip: None })), "sigma_max"),
        (SamplerConfig { schedule, ..of(SamplerKind::Heun(Heun::default())) }, "zero_terminal_snr"),
    ] {
        let error = config.to_diffusers().unwrap_err();
        assert!(matches!(&error, SamplerError::Fields(fields) if fields.names(setting)), "{error}");
    }
    let sample = SamplerConfig { prediction: Prediction::Sample, ..of(SamplerKind::Pndm(Pndm::default())) };
    assert!(matches!(sample.to_diffusers(), Err(SamplerError::Setting { .. })));
}

/// What the command line may choose.
#[test]
fn curves_and_shares_of_noise() {
    let with = |choice: fn(&mut SamplerKind) -> bool| {
        let all = SamplerKind::all().into_iter();
        all.filter_map(|mut kind| choice(&mut kind).then_some(kind.name())).collect::<Vec<_>>()
    };
    assert_eq!(with(|kind| kind.curve_mut().is_some()), ["dpm_multistep", "dpm_singlestep", "euler", "heun", "unipc"]);
    assert_eq!(with(|kind| kind.eta_mut().is_some()), ["ddim", "tcd"]);
    assert_eq!(SamplerKind::all().iter().map(SamplerKind::name).collect::<Vec<_>>(), SamplerKind::NAMES);
}

/// Fields of other versions and of other schedulers, in files of hubs.
#[test]
fn harmless_fields_pass_with_a_note() {
    for (class, field, value) in [
        ("PNDMScheduler", "tensor_format", json!("pt")),
        ("DDIMScheduler", "predict_epsilon", json!(true)),
        ("EulerDiscreteScheduler", "noise_sampler_seed", json!(null)),
        ("EulerDiscreteScheduler", "noise_sampler_seed", json!(3)),
        ("UniPCMultistepScheduler", "corrector_order", json!(2)),
        ("DDIMScheduler", "newer_than_this", json!(null)),
    ] {
        let found = SamplerConfig::read_diffusers(&stable_diffusion(class, json!({ field: value })), None).unwrap();
        assert_eq!(found.config, read(&stable_diffusion(class, json!({}))), "{field}");
        assert!(found.notes.len() == 1 && found.notes[0].contains(field), "{field}: {:?}", found.notes);
    }
    // It means that the network predicts the clean latent.
    let error = SamplerConfig::from_diffusers(&stable_diffusion("DDPMScheduler", json!({ "predict_epsilon": false })));
    let Err(SamplerError::Fields(fields)) = error else { panic!("{error:?}") };
    assert_eq!(fields.unknown(), ["predict_epsilon"]);
    // DDPM's own variance has no effect on other samplers, as in diffusers.
    let ddpm = stable_diffusion("DDPMScheduler", json!({ "variance_type": "fixed_small" }));
    assert!(SamplerConfig::from_diffusers_as(&ddpm, "dpm_multistep").is_ok());
    // Of a scheduler that is not built here, whose noise levels are the same.
    let sde =
        stable_diffusion("DPMSolverSDEScheduler", json!({ "noise_sampler_seed": null, "use_karras_sigmas": true }));
    assert!(SamplerConfig::from_diffusers_as(&sde, "euler").is_ok());
}

/// A network of other noise levels is never drawn as if it had these.
#[test]
fn samplers_of_other_noise_levels_are_refused_by_name() {
    let edm = json!({ "_class_name": "EDMEulerScheduler", "sigma_max": 120.0 });
    assert!(SamplerConfig::from_diffusers_as(&edm, "edm_dpm_multistep").is_ok());
    let discrete = stable_diffusion("DDIMScheduler", json!({}));
    for (file, name, parts) in [
        (&edm, "euler", ["EDMEulerScheduler", "edm_dpm_multistep"]),
        (&discrete, "edm_euler", ["DDIMScheduler", "unipc"]),
        (&json!({ "_class_name": "FlowMatchEulerDiscreteScheduler" }), "euler", ["FlowMatch", "none that can"]),
    ] {
        let error = SamplerConfig::from_diffusers_as(file, name).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let rescaled = stable_diffusion("DDIMScheduler", json!({ "rescale_betas_zero_snr": true }));
    let found = SamplerConfig::read_diffusers(&rescaled, Some("heun")).unwrap();
    assert!(found.notes.iter().any(|note| note.contains("zero terminal SNR")), "{:?}", found.notes);
}

#[test]
fn what_would_change_results_is_refused_by_name() {
    let cases = [
        (json!([]), "object"),
        (json!({}), "`_class_name` is missing"),
        (json!({ "_class_name": "DEISScheduler" }), "EulerDiscreteScheduler"),
        (
            json!({ "_class_name": "DDIMScheduler", "thresholding": true }),
            "DDIMScheduler configuration: `thresholding` = true",
        ),
        (json!({ "_class_name": "DDIMScheduler", "surprise": 1 }), "surprise"),
        (json!({ "_class_name": "DDIMScheduler", "beta_starts": 1 }), "did you mean `beta_start`?"),
        (json!({ "_class_name": "DDIMScheduler", "num_train_timesteps": 1u64 << 40 }), "num_train_timesteps"),
        (json!({ "_class_name": "DDIMScheduler", "steps_offset": 1u64 << 40 }), "steps_offset"),
        (json!({ "_class_name": "LCMScheduler", "original_inference_steps": 1u64 << 40 }), "original_inference_steps"),
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
        (json!({ "_class_name": "EDMEulerScheduler", "sigma_min": -1.0 }), "sigma_min"),
        (json!({ "_class_name": "EDMEulerScheduler", "prediction_type": "sample" }), "edm_euler"),
        (json!({ "_class_name": "EDMEulerScheduler", "sigma_schedule": "linear" }), "sigma_schedule"),
        (json!({ "_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver" }), "dpmsolver++"),
    ];
    for (config, part) in cases {
        let error = SamplerConfig::from_diffusers(&config).unwrap_err().to_string();
        assert!(error.contains(part), "{config}: {error}");
    }
}
