//! Reading `scheduler_config.json` of diffusers.

use super::{
    Curve, Ddim, Ddpm, DpmMultistep, DpmSinglestep, Euler, EulerAncestral, Heun, Lcm, Pndm, SamplerConfig,
    SamplerError, SamplerKind, SigmaRange, UniPc,
};
use crate::schedule::{ScheduleConfig, ScheduleKind, Spacing};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What diffusers' scheduler of a sampler reads, and its defaults where the samplers' differ.
struct Class {
    class: &'static str,
    /// The sampler, as of [`SamplerKind::name`].
    name: &'static str,
    /// Fields besides [`COMMON`].
    fields: &'static [&'static [&'static str]],
    /// Default ends and shape of `beta`.
    betas: (f64, f64, ScheduleKind),
    /// Default spacing.
    spacing: Spacing,
}

const COMMON: &[&str] = &[
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
];
const RESCALE: &[&str] = &["rescale_betas_zero_snr"];
const CLIP: &[&str] = &["clip_sample", "clip_sample_range"];
const ALPHA: &[&str] = &["set_alpha_to_one"];
const THRESHOLD: &[&str] = &["thresholding"];
const CURVES: &[&str] = &["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "sigma_min", "sigma_max"];
const FINAL: &[&str] = &["final_sigmas_type"];
const SOLVER: &[&str] =
    &["solver_order", "solver_type", "lower_order_final", "use_flow_sigmas", "use_dynamic_shifting"];
const DPM: &[&str] = &["algorithm_type", "lambda_min_clipped", "variance_type"];

/// DDPM's ends of `beta`, and Stable Diffusion's.
const DDPM_BETAS: (f64, f64, ScheduleKind) = (0.0001, 0.02, ScheduleKind::Linear);
const LATENT_BETAS: (f64, f64, ScheduleKind) = (0.00085, 0.012, ScheduleKind::ScaledLinear);

/// The schedulers of diffusers that there are samplers for.
const CLASSES: &[Class] = &[
    Class {
        class: "DDIMScheduler",
        name: "ddim",
        fields: &[RESCALE, CLIP, ALPHA, THRESHOLD],
        betas: DDPM_BETAS,
        spacing: Spacing::Leading,
    },
    Class {
        class: "DDPMScheduler",
        name: "ddpm",
        fields: &[RESCALE, CLIP, THRESHOLD, &["variance_type"]],
        betas: DDPM_BETAS,
        spacing: Spacing::Leading,
    },
    Class {
        class: "PNDMScheduler",
        name: "pndm",
        fields: &[ALPHA, &["skip_prk_steps"]],
        betas: DDPM_BETAS,
        spacing: Spacing::Leading,
    },
    Class {
        class: "DPMSolverMultistepScheduler",
        name: "dpm_multistep",
        fields: &[RESCALE, THRESHOLD, CURVES, FINAL, SOLVER, DPM, &["euler_at_final", "use_lu_lambdas"]],
        betas: DDPM_BETAS,
        spacing: Spacing::Linspace,
    },
    Class {
        class: "DPMSolverSinglestepScheduler",
        name: "dpm_singlestep",
        fields: &[THRESHOLD, CURVES, FINAL, SOLVER, DPM],
        betas: DDPM_BETAS,
        spacing: Spacing::Linspace,
    },
    Class {
        class: "EulerDiscreteScheduler",
        name: "euler",
        fields: &[RESCALE, CURVES, FINAL, &["interpolation_type", "timestep_type"]],
        betas: DDPM_BETAS,
        spacing: Spacing::Linspace,
    },
    Class {
        class: "EulerAncestralDiscreteScheduler",
        name: "euler_ancestral",
        fields: &[RESCALE],
        betas: DDPM_BETAS,
        spacing: Spacing::Linspace,
    },
    Class {
        class: "HeunDiscreteScheduler",
        name: "heun",
        fields: &[CLIP, CURVES],
        betas: (LATENT_BETAS.0, LATENT_BETAS.1, ScheduleKind::Linear),
        spacing: Spacing::Linspace,
    },
    Class {
        class: "UniPCMultistepScheduler",
        name: "unipc",
        fields: &[
            RESCALE,
            THRESHOLD,
            CURVES,
            FINAL,
            SOLVER,
            &["predict_x0", "disable_corrector", "solver_p", "shift_terminal"],
        ],
        betas: DDPM_BETAS,
        spacing: Spacing::Linspace,
    },
    Class {
        class: "LCMScheduler",
        name: "lcm",
        fields: &[RESCALE, CLIP, THRESHOLD, &["original_inference_steps", "timestep_scaling"]],
        betas: LATENT_BETAS,
        spacing: Spacing::Leading,
    },
];

/// Fields that change nothing without another one that is refused, or that say nothing about sampling.
const IDLE: &[&str] = &["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"];

/// Fields that would change the results, and their only supported value besides null.
const REFUSED: &[(&str, Value)] = &[
    ("thresholding", Value::Bool(false)),
    ("use_flow_sigmas", Value::Bool(false)),
    ("use_dynamic_shifting", Value::Bool(false)),
    ("solver_p", Value::Null),
    ("shift_terminal", Value::Null),
];

/// The same for fields with a text.
const REFUSED_TEXTS: &[(&str, &str)] = &[("interpolation_type", "linear"), ("timestep_type", "discrete")];

impl Class {
    fn has(&self, key: &str) -> bool {
        COMMON.contains(&key) || self.fields.iter().any(|fields| fields.contains(&key))
    }
}

/// The fields of a scheduler.
struct Fields<'a> {
    class: &'static Class,
    object: &'a serde_json::Map<String, Value>,
}

impl Fields<'_> {
    /// The value of a field that this scheduler reads.
    fn value(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| self.class.has(key) && !value.is_null())
    }

    /// A field, or its default.
    fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T, SamplerError> {
        match self.value(key) {
            Some(value) => T::deserialize(value).map_err(|error| self.error(key, value, error.to_string())),
            None => Ok(default),
        }
    }

    fn error(&self, key: &str, value: &Value, problem: String) -> SamplerError {
        SamplerError::Field { class: self.class.class, key: key.to_owned(), value: value.to_string(), problem }
    }

    /// Refuses what is not known, and what is not supported.
    fn check(&self) -> Result<(), SamplerError> {
        for (key, value) in self.object {
            let known = key.starts_with('_') || IDLE.contains(&key.as_str()) || CLASSES.iter().any(|c| c.has(key));
            if !known {
                let problem = "no scheduler known here has this field, and what it would change is not known".into();
                return Err(self.error(key, value, problem));
            }
        }
        let texts = REFUSED_TEXTS.iter().map(|&(key, text)| (key, Value::from(text)));
        for (key, only) in REFUSED.iter().cloned().chain(texts) {
            if let Some(value) = self.value(key).filter(|value| **value != only) {
                return Err(self.error(key, value, format!("not supported; only {only} is")));
            }
        }
        Ok(())
    }

    fn clip(&self, default: bool) -> Result<Option<f64>, SamplerError> {
        let range = self.get("clip_sample_range", 1.0)?;
        Ok(self.get("clip_sample", default)?.then_some(range))
    }

    fn sigmas(&self) -> Result<SigmaRange, SamplerError> {
        let curves = [
            ("use_karras_sigmas", Curve::Karras),
            ("use_exponential_sigmas", Curve::Exponential),
            ("use_beta_sigmas", Curve::Beta),
            ("use_lu_lambdas", Curve::LogSnr),
        ];
        let mut curve = Curve::Timesteps;
        for (key, course) in curves {
            // Lu's levels come second to Karras'.
            if self.get(key, false)? && !(course == Curve::LogSnr && curve == Curve::Karras) {
                if curve != Curve::Timesteps && course != Curve::LogSnr {
                    let problem = "only one kind of noise levels can be used".to_owned();
                    return Err(self.error(key, &Value::Bool(true), problem));
                }
                curve = course;
            }
        }
        Ok(SigmaRange {
            curve,
            sigma_min: self.get("sigma_min", None)?,
            sigma_max: self.get("sigma_max", None)?,
            last: self.get("final_sigmas_type", Default::default())?,
        })
    }

    /// `lambda_min_clipped`, which Python writes as `-Infinity`.
    fn lambda_min(&self) -> Result<Option<f64>, SamplerError> {
        match self.value("lambda_min_clipped") {
            Some(Value::String(text)) if matches!(text.as_str(), "-Infinity" | "-inf") => Ok(None),
            _ => self.get("lambda_min_clipped", None),
        }
    }

    /// Learned variances, which are a second output of the network.
    fn no_learned_variance(&self) -> Result<(), SamplerError> {
        match self.value("variance_type") {
            Some(value) => Err(self.error("variance_type", value, "not supported; only null is".into())),
            None => Ok(()),
        }
    }

    fn schedule(&self) -> Result<ScheduleConfig, SamplerError> {
        let (beta_start, beta_end, kind) = self.class.betas;
        Ok(ScheduleConfig {
            kind: self.get("beta_schedule", kind)?,
            timesteps: self.get("num_train_timesteps", 1000)?,
            beta_start: self.get("beta_start", beta_start)?,
            beta_end: self.get("beta_end", beta_end)?,
            zero_terminal_snr: self.get("rescale_betas_zero_snr", false)?,
            trained_betas: self.get("trained_betas", None)?,
        })
    }

    fn kind(&self) -> Result<SamplerKind, SamplerError> {
        Ok(match self.class.name {
            "ddim" => SamplerKind::Ddim(Ddim {
                eta: 0.0,
                alpha_to_one: self.get("set_alpha_to_one", true)?,
                clip: self.clip(true)?,
            }),
            "ddpm" => SamplerKind::Ddpm(Ddpm {
                variance: self.get("variance_type", Default::default())?,
                clip: self.clip(true)?,
            }),
            "pndm" => SamplerKind::Pndm(Pndm {
                skip_prk: self.get("skip_prk_steps", false)?,
                alpha_to_one: self.get("set_alpha_to_one", false)?,
            }),
            "dpm_multistep" => {
                self.no_learned_variance()?;
                SamplerKind::DpmMultistep(DpmMultistep {
                    order: self.get("solver_order", 2)?,
                    algorithm: self.get("algorithm_type", Default::default())?,
                    rule: self.get("solver_type", Default::default())?,
                    lower_order_final: self.get("lower_order_final", true)?,
                    euler_at_final: self.get("euler_at_final", false)?,
                    sigmas: self.sigmas()?,
                    lambda_min: self.lambda_min()?,
                })
            }
            "dpm_singlestep" => {
                self.no_learned_variance()?;
                SamplerKind::DpmSinglestep(DpmSinglestep {
                    order: self.get("solver_order", 2)?,
                    algorithm: self.get("algorithm_type", Default::default())?,
                    rule: self.get("solver_type", Default::default())?,
                    lower_order_final: self.get("lower_order_final", false)?,
                    sigmas: self.sigmas()?,
                    lambda_min: self.lambda_min()?,
                })
            }
            "euler" => SamplerKind::Euler(Euler { sigmas: self.sigmas()? }),
            "euler_ancestral" => SamplerKind::EulerAncestral(EulerAncestral {}),
            "heun" => SamplerKind::Heun(Heun { sigmas: self.sigmas()?, clip: self.clip(false)? }),
            "unipc" => SamplerKind::UniPc(UniPc {
                order: self.get("solver_order", 2)?,
                step: self.get("solver_type", Default::default())?,
                predict_clean: self.get("predict_x0", true)?,
                lower_order_final: self.get("lower_order_final", true)?,
                uncorrected: self.get("disable_corrector", Vec::new())?,
                sigmas: self.sigmas()?,
            }),
            _ => SamplerKind::Lcm(Lcm {
                original_steps: self.get("original_inference_steps", 50)?,
                timestep_scaling: self.get("timestep_scaling", 10.0)?,
                clip: self.clip(false)?,
            }),
        })
    }
}

/// Reads a configuration, as that of another scheduler if one is named.
pub(super) fn read(config: &Value, name: Option<&str>) -> Result<SamplerConfig, SamplerError> {
    let Value::Object(object) = config else {
        return Err(SamplerError::Json { problem: format!("expected an object, found {config}") });
    };
    let named = match (name, object.get("_class_name")) {
        (Some(name), _) => Some(name),
        (None, value) => value.and_then(Value::as_str),
    };
    let find = |name: &str| CLASSES.iter().find(|class| class.class == name || class.name == name);
    let Some(class) = named.and_then(find) else {
        let unknown = |name| format!("`{name}` is no sampler or scheduler that is known here");
        let problem = named.map_or("`_class_name` is missing".to_owned(), unknown);
        let known =
            CLASSES.iter().map(|class| format!("{} ({})", class.name, class.class)).collect::<Vec<_>>().join(", ");
        return Err(SamplerError::Class { problem, known });
    };
    let fields = Fields { class, object };
    fields.check()?;
    let config = SamplerConfig {
        kind: fields.kind()?,
        schedule: fields.schedule()?,
        prediction: fields.get("prediction_type", crate::Prediction::Epsilon)?,
        spacing: fields.get("timestep_spacing", class.spacing)?,
        steps_offset: fields.get("steps_offset", 0)?,
    };
    config.check()?;
    Ok(config)
}

/// JSON in which Python's bare infinities and NaN stand as texts.
pub(super) fn parse(text: &str) -> Result<Value, SamplerError> {
    let mut quoted = false;
    let mut escaped = false;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let bare = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !quoted && rest.starts_with(word));
        if let Some(word) = bare {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        quoted ^= next == '"' && !escaped;
        escaped = quoted && next == '\\' && !escaped;
        out.push(next);
        rest = &rest[next.len_utf8()..];
    }
    serde_json::from_str(&out).map_err(|error| SamplerError::Json { problem: error.to_string() })
}
