//! Tensors by which single files of SDXL say how they were trained. No key of the networks shows it.

use crate::error::LayoutError;
use crate::families::schedulers;
use crate::files::Weights;
use crate::kinds::Prediction;
use calotype_weights::Dtype;
use calotype_weights::tensor_file::NamedTensor;
use serde_json::{Value, json};

/// Predicts the velocity.
pub(crate) const VELOCITY: &str = "v_pred";
/// With [`VELOCITY`]: no signal is left at the last timestep.
pub(crate) const ZERO_SNR: &str = "ztsnr";
/// Largest and smallest noise level of CosXL.
pub(crate) const EDM_VELOCITY: [&str; 2] = ["edm_vpred.sigma_max", "edm_vpred.sigma_min"];
/// Mean and deviation of the latents' channels of Playground 2.5.
pub(crate) const EDM_LATENTS: [&str; 2] = ["edm_mean", "edm_std"];

/// CosXL's smallest noise level, where the file does not say it.
const SIGMA_MIN: f64 = 0.002;
/// Scale of Playground 2.5's normalised latents: the deviation that EDM takes for clean ones (diffusers 0.42,
/// `PLAYGROUND_VAE_SCALING_FACTOR`).
const SCALE: f64 = 0.5;

/// What the marks of a file say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Marks {
    /// Predicts the velocity.
    pub(crate) velocity: bool,
    /// The betas end without signal.
    pub(crate) zero_snr: bool,
    /// Was trained on EDM's noise levels.
    pub(crate) edm: Option<Edm>,
}

/// How a network was trained on EDM's noise levels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Edm {
    /// CosXL: predicts EDM's velocity on latents of unit deviation.
    Velocity {
        /// The smallest level.
        sigma_min: f64,
        /// The largest level.
        sigma_max: f64,
    },
    /// Playground 2.5: latents are normalised by channel.
    Latents {
        /// Mean of each channel.
        mean: Vec<f32>,
        /// Standard deviation of each channel.
        deviation: Vec<f32>,
    },
}

impl Marks {
    /// The marks among a file's tensors.
    ///
    /// # Errors
    /// [`LayoutError::Unrecognised`] naming a mark without its fellow, or with impossible values; [`LayoutError::Tensors`].
    pub(crate) fn of(weights: &Weights) -> Result<Self, LayoutError> {
        let has = |name: &str| weights.shapes.contains_key(name);
        let edm = if has(EDM_VELOCITY[0]) {
            let one = |name: &str, bound: f64| -> Result<f64, LayoutError> {
                let value = values(weights, name, 1)?.map_or(bound, |values| f64::from(values[0]));
                if value > 0.0 { Ok(value) } else { Err(wrong(weights, name, "is no noise level above 0")) }
            };
            Some(Edm::Velocity { sigma_max: one(EDM_VELOCITY[0], 0.0)?, sigma_min: one(EDM_VELOCITY[1], SIGMA_MIN)? })
        } else if EDM_LATENTS.iter().any(|name| has(name)) {
            let [mean, deviation] = EDM_LATENTS.map(|name| {
                values(weights, name, LATENT_CHANNELS)?.ok_or_else(|| wrong(weights, name, "is not there"))
            });
            let (mean, deviation) = (mean?, deviation?);
            if deviation.iter().any(|&value| value <= 0.0) {
                return Err(wrong(weights, EDM_LATENTS[1], "holds a deviation that is not above 0"));
            }
            Some(Edm::Latents { mean, deviation })
        } else {
            None
        };
        Ok(Self { velocity: has(VELOCITY), zero_snr: has(ZERO_SNR), edm })
    }

    /// What the UNet predicts, and the mark that says so.
    pub(crate) fn prediction(&self) -> Option<(Prediction, &'static str)> {
        match &self.edm {
            Some(Edm::Velocity { .. }) => Some((Prediction::V, EDM_VELOCITY[0])),
            Some(Edm::Latents { .. }) => Some((Prediction::Epsilon, EDM_LATENTS[0])),
            None => self.velocity.then_some((Prediction::V, VELOCITY)),
        }
    }

    /// The scheduler that the marks stand for, where it is not the family's.
    pub(crate) fn scheduler(&self) -> Option<Value> {
        match self.edm {
            Some(Edm::Velocity { sigma_min, sigma_max }) => Some(schedulers::cosxl(sigma_min, sigma_max)),
            Some(Edm::Latents { .. }) => Some(schedulers::playground()),
            None => None,
        }
    }

    /// Puts what the marks say of latents into an autoencoder's configuration.
    pub(crate) fn complete_autoencoder(&self, config: &mut Value) {
        if let Some(Edm::Latents { mean, deviation }) = &self.edm {
            config["latents_mean"] = shortest(mean);
            config["latents_std"] = shortest(deviation);
            config["scaling_factor"] = SCALE.into();
        }
    }

    /// The marks of a single file of SDXL with this scheduler and autoencoder.
    pub(crate) fn to_write(scheduler: &Value, autoencoder: Option<&Value>) -> Vec<NamedTensor<'static>> {
        let floats = |name: &str, values: Vec<f32>| {
            let shape = vec![values.len()];
            NamedTensor::from_f32(name, shape, &values).into_owned()
        };
        let empty = |name: &str| NamedTensor::new(name, Dtype::F32, vec![0], Vec::<u8>::new());
        let is = |field: &str, value: &Value| scheduler[field] == *value;
        let velocity = is("prediction_type", &json!(Prediction::V.name()));
        let latents = || {
            let list = |field: &str| serde_json::from_value::<Vec<f32>>(autoencoder?.get(field)?.clone()).ok();
            Some([list("latents_mean")?, list("latents_std")?])
        };
        let mut marks = Vec::new();
        match scheduler["_class_name"].as_str() {
            Some(class) if class.starts_with("EDM") => {
                if let Some(pair) = latents().filter(|_| !velocity) {
                    marks.extend(EDM_LATENTS.into_iter().zip(pair).map(|(name, values)| floats(name, values)));
                }
                if velocity {
                    let ends = ["sigma_max", "sigma_min"].map(|field| scheduler[field].as_f64());
                    let pairs = EDM_VELOCITY.into_iter().zip(ends);
                    marks.extend(pairs.filter_map(|(name, end)| Some(floats(name, vec![end? as f32]))));
                }
            }
            _ if velocity => {
                marks.push(empty(VELOCITY));
                marks.extend(is("rescale_betas_zero_snr", &json!(true)).then(|| empty(ZERO_SNR)));
            }
            _ => {}
        }
        marks
    }
}

/// Channels of the latents of all Stable Diffusions.
const LATENT_CHANNELS: usize = 4;

/// The finite values of a mark; none if it is not there.
fn values(weights: &Weights, name: &str, count: usize) -> Result<Option<Vec<f32>>, LayoutError> {
    if !weights.shapes.contains_key(name) {
        return Ok(None);
    }
    let values = weights.source.tensor(name)?.to_f32_vec();
    let values = values.filter(|values| values.len() == count && values.iter().all(|value| value.is_finite()));
    values.map(Some).ok_or_else(|| wrong(weights, name, &format!("should hold {count} finite numbers")))
}

fn wrong(weights: &Weights, name: &str, problem: &str) -> LayoutError {
    LayoutError::Unrecognised {
        path: weights.path.clone(),
        reason: format!("it is marked as trained on EDM's noise levels, but the tensor `{name}` {problem}"),
    }
}

/// Numbers with the decimals that an `f32` has.
fn shortest(values: &[f32]) -> Value {
    values.iter().map(|value| value.to_string().parse::<f64>().unwrap_or(f64::from(*value))).collect()
}
