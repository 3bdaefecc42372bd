//! `scheduler_config.json` of diffusers: the fields that schedulers share, in both directions.
//!
//! The fields of one scheduler alone stand in the file of its sampler.

use super::settings::{Row, SchedulerDefaults};
use super::{Curve, FinalSigma, ROWS, SamplerConfig, SamplerError, SigmaRange};
use crate::objective::Prediction;
use crate::schedule::{ScheduleConfig, ScheduleKind};
use calotype_core::fields::{FieldProblem, Fields, FieldsError, MOST};
use calotype_core::names::nearest;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Fields that change nothing without another one that is refused, or that say nothing about sampling.
const IDLE: [&str; 4] = ["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"];

/// Fields without an effect on these samplers, with the only value for which that is so (none: any): of earlier versions of
/// diffusers (0.2 to 0.5), and of its schedulers that are not built here, all of which it leaves out itself when a
/// scheduler is made of another one's configuration (diffusers 0.42, `ConfigMixin.extract_init_dict`).
fn harmless() -> [(&'static str, Option<Value>); 6] {
    [
        ("tensor_format", None),
        ("predict_epsilon", Some(json!(true))),
        ("noise_sampler_seed", None),
        ("corrector_order", None),
        ("predictor_order", None),
        ("tau_func", None),
    ]
}

/// Schedulers of diffusers that are not built here, and of whose configurations those here can be made: all have the
/// noise levels of discrete timesteps.
const RELATED: [&str; 9] = [
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSDEScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
];

/// A configuration, and what its reader should know.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadScheduler {
    /// The configuration.
    pub config: SamplerConfig,
    /// What was passed over, in full sentences.
    pub notes: Vec<String>,
}

/// Fields of all schedulers.
fn common(fields: &mut Fields<'_>, row: &Row) -> SamplerConfig {
    let SchedulerDefaults { betas, shape, spacing, rescales, edm } = row.defaults;
    if edm {
        let schedule = ScheduleConfig { timesteps: fields.size("num_train_timesteps", 1000), ..Default::default() };
        let (kind, prediction) = ((row.read)(fields), fields.get("prediction_type", Prediction::Epsilon));
        return SamplerConfig { kind, schedule, prediction, ..Default::default() };
    }
    SamplerConfig {
        kind: (row.read)(fields),
        schedule: ScheduleConfig {
            kind: fields.get("beta_schedule", shape),
            timesteps: fields.size("num_train_timesteps", 1000),
            beta_start: fields.number("beta_start", betas.0),
            beta_end: fields.number("beta_end", betas.1),
            zero_terminal_snr: rescales && fields.flag("rescale_betas_zero_snr", false),
            trained_betas: fields.get("trained_betas", None),
        },
        prediction: fields.get("prediction_type", Prediction::Epsilon),
        spacing: fields.get("timestep_spacing", spacing),
        steps_offset: fields.whole("steps_offset", 0, 0..=MOST),
        ..SamplerConfig::default()
    }
}

/// The fields that one scheduler or another reads. A file that was written for another one may hold them.
fn known_to_any() -> BTreeSet<&'static str> {
    let nothing = json!({});
    let mut known = BTreeSet::from(IDLE);
    for row in ROWS {
        let mut fields = Fields::new(row.class, &nothing);
        common(&mut fields, row);
        known.extend(fields.known());
    }
    known
}

/// Reads a configuration, as that of another scheduler if one is named.
///
/// # Errors
/// As of [`SamplerConfig::from_diffusers`].
pub(super) fn read(config: &Value, name: Option<&str>) -> Result<ReadScheduler, SamplerError> {
    let Value::Object(object) = config else {
        return Err(SamplerError::Json { problem: format!("expected an object, found {config}") });
    };
    let class = object.get("_class_name").and_then(Value::as_str);
    let row = find(name.or(class))?;
    if let (Some(name), Some(class)) = (name, class) {
        check_related(name, row, class)?;
    }
    let config = without_defaults(object);
    let mut fields = Fields::new(row.class, &config);
    fields.harmless(harmless());
    let sampler = common(&mut fields, row);
    let mut notes = Vec::new();
    if object.get("rescale_betas_zero_snr") == Some(&json!(true)) && !row.defaults.rescales {
        notes.push(format!(
            "{} has no zero terminal SNR: it takes the noise levels without, as diffusers does",
            row.name
        ));
    }
    known_to_any().iter().for_each(|name| fields.ignore(&[name]));
    let passed = fields.passed().into_iter().map(|name| format!("the scheduler's field `{name}` has no effect"));
    notes.extend(passed);
    fields.refuse_unknown();
    let config = fields.finish(sampler)?;
    config.check()?;
    Ok(ReadScheduler { config, notes })
}

/// The configuration without the fields whose values are the defaults of the class that wrote it (`_use_default_values`): diffusers
/// takes those of the class that reads.
fn without_defaults(config: &Map<String, Value>) -> Value {
    let defaults = config.get("_use_default_values").and_then(Value::as_array);
    let is_default =
        |name: &String| defaults.is_some_and(|names| names.iter().any(|other| other.as_str() == Some(name)));
    config.iter().filter(|(name, _)| !is_default(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Refuses a sampler on a network that was trained on noise levels of another kind.
fn check_related(name: &str, row: &Row, class: &str) -> Result<(), SamplerError> {
    let of_file = ROWS.iter().find(|row| row.class == class).map(|row| row.defaults.edm);
    let of_file = of_file.or(RELATED.contains(&class).then_some(false));
    if of_file == Some(row.defaults.edm) {
        return Ok(());
    }
    let fitting = ROWS.iter().filter(|row| of_file == Some(row.defaults.edm)).map(|row| row.name);
    let fitting = fitting.collect::<Vec<_>>().join(", ");
    Err(SamplerError::Class {
        problem: format!("`{name}` cannot draw from a network that was trained for {class}"),
        known: if fitting.is_empty() { "none that can".to_owned() } else { fitting },
    })
}

fn find(name: Option<&str>) -> Result<&'static Row, SamplerError> {
    let problem = match name {
        None => "`_class_name` is missing".to_owned(),
        Some(name) => match ROWS.iter().find(|row| row.class == name || row.name == name) {
            Some(row) => return Ok(row),
            None => {
                let meant = nearest(name, ROWS.iter().flat_map(|row| [row.name, row.class]));
                let meant = meant.map_or_else(String::new, |meant| format!(" (did you mean `{meant}`?)"));
                format!("`{name}` is no sampler or scheduler that is known here{meant}")
            }
        },
    };
    let known = ROWS.iter().map(|row| format!("{} ({})", row.name, row.class)).collect::<Vec<_>>().join(", ");
    Err(SamplerError::Class { problem, known })
}

/// `clip_sample` and `clip_sample_range`: the clamp of the clean estimate.
pub(super) fn read_clip(fields: &mut Fields<'_>, default: bool) -> Option<f64> {
    let range = fields.number("clip_sample_range", 1.0);
    fields.flag("clip_sample", default).then_some(range)
}

/// Refuses thresholding of the clean estimate, which latents do not take.
pub(super) fn refuse_thresholding(fields: &mut Fields<'_>) {
    fields.fixed("thresholding", &[json!(false)]);
}

/// Refuses what belongs to flow matching.
pub(super) fn refuse_flow(fields: &mut Fields<'_>) {
    fields.fixed("use_flow_sigmas", &[json!(false)]);
    fields.fixed("use_dynamic_shifting", &[json!(false)]);
}

/// The curve of the noise levels and its ends; the last level stays at its default.
pub(super) fn read_curve(fields: &mut Fields<'_>) -> SigmaRange {
    let mut curve = Curve::Timesteps;
    for (name, other) in CURVES {
        if fields.flag(name, false) {
            let first = curve == Curve::Timesteps;
            fields.check(first, name, || "only one kind of noise levels can be used".to_owned());
            curve = other;
        }
    }
    let (sigma_min, sigma_max) = (fields.get("sigma_min", None), fields.get("sigma_max", None));
    SigmaRange { curve, sigma_min, sigma_max, ..SigmaRange::default() }
}

/// `final_sigmas_type`: the noise level after the last step.
pub(super) fn read_last(fields: &mut Fields<'_>) -> FinalSigma {
    fields.get("final_sigmas_type", FinalSigma::default())
}

const CURVES: [(&str, Curve); 3] = [
    ("use_karras_sigmas", Curve::Karras),
    ("use_exponential_sigmas", Curve::Exponential),
    ("use_beta_sigmas", Curve::Beta),
];

/// The fields of a scheduler that is written.
#[derive(Debug, Default)]
pub(super) struct SchedulerFields {
    map: Map<String, Value>,
    problems: Vec<FieldProblem>,
}

impl SchedulerFields {
    /// Sets a field.
    pub fn put(&mut self, name: &str, value: impl Serialize) {
        match serde_json::to_value(value) {
            Ok(value) => _ = self.map.insert(name.to_owned(), value),
            Err(error) => self.refuse(name, String::new(), &error.to_string()),
        }
    }

    /// Notes a setting that the scheduler has no field for.
    pub fn unsaid(&mut self, setting: &str, value: impl ToString) {
        self.refuse(setting, value.to_string(), "the scheduler has no field for it");
    }

    fn refuse(&mut self, field: &str, value: String, problem: &str) {
        let problem = problem.to_owned();
        self.problems.push(FieldProblem { field: field.to_owned(), value: Some(value), problem, unknown: false });
    }

    /// The clamp of the clean estimate.
    pub fn put_clip(&mut self, clip: Option<f64>) {
        self.put("clip_sample", clip.is_some());
        self.put("clip_sample_range", clip.unwrap_or(1.0));
    }

    /// The curve of the noise levels.
    pub fn put_curve(&mut self, curve: Curve) {
        for (name, other) in CURVES {
            self.put(name, curve == other);
        }
    }

    /// The ends of the noise levels, for schedulers with fields for them.
    pub fn put_ends(&mut self, range: &SigmaRange) {
        self.put("sigma_min", range.sigma_min);
        self.put("sigma_max", range.sigma_max);
    }

    /// The same for schedulers without.
    pub fn put_no_ends(&mut self, range: &SigmaRange) {
        for (name, end) in [("sigma_min", range.sigma_min), ("sigma_max", range.sigma_max)] {
            if let Some(end) = end {
                self.unsaid(name, end);
            }
        }
    }

    /// The noise level after the last step.
    pub fn put_last(&mut self, last: FinalSigma) {
        self.put("final_sigmas_type", last);
    }
}

/// Writes a configuration.
///
/// # Errors
/// As of [`SamplerConfig::to_diffusers`].
pub(super) fn write(config: &SamplerConfig) -> Result<Value, SamplerError> {
    config.check()?;
    let row = find(Some(config.kind.name()))?;
    let mut fields = SchedulerFields::default();
    fields.put("_class_name", row.class);
    fields.put("num_train_timesteps", config.schedule.timesteps);
    fields.put("prediction_type", config.prediction);
    config.kind.settings().write(&mut fields);
    for (name, list) in [("timesteps", &config.timesteps), ("sigmas", &config.sigmas)] {
        if !list.is_empty() {
            fields.unsaid(name, format!("{list:?}"));
        }
    }
    if !row.defaults.edm {
        write_discrete(config, row, &mut fields);
    }
    match fields.problems.is_empty() {
        true => Ok(Value::Object(fields.map)),
        false => Err(FieldsError { what: row.class.to_owned(), problems: fields.problems }.into()),
    }
}

/// The fields of all schedulers with the noise levels of discrete timesteps.
fn write_discrete(config: &SamplerConfig, row: &Row, fields: &mut SchedulerFields) {
    let schedule = &config.schedule;
    fields.put("beta_start", schedule.beta_start);
    fields.put("beta_end", schedule.beta_end);
    fields.put(
        "beta_schedule",
        match schedule.kind {
            ScheduleKind::Linear => "linear",
            ScheduleKind::ScaledLinear => "scaled_linear",
            ScheduleKind::Cosine => "squaredcos_cap_v2",
        },
    );
    fields.put("trained_betas", &schedule.trained_betas);
    fields.put("timestep_spacing", config.spacing);
    fields.put("steps_offset", config.steps_offset);
    match (row.defaults.rescales, schedule.zero_terminal_snr) {
        (true, zero) => fields.put("rescale_betas_zero_snr", zero),
        (false, true) => fields.unsaid("zero_terminal_snr", true),
        (false, false) => (),
    }
}

/// The text of a configuration, with the bare infinity that Python writes and reads.
pub(super) fn text(config: &Value) -> String {
    format!("{config:#}\n").replace(r#""lambda_min_clipped": "-Infinity""#, r#""lambda_min_clipped": -Infinity"#)
}

/// JSON in which Python's bare infinities and NaN stand as texts.
///
/// # Errors
/// [`SamplerError::Json`].
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
