//! The scheduler of a checkpoint: one answer for drawing and for converting.

use crate::checkpoint::Checkpoint;
use crate::error::LayoutError;
use crate::families::Facts;
use crate::files::TextFiles;
use crate::kinds::{Component, Prediction};
use crate::marks::Marks;
use crate::write::SCHEDULER;
use calotype_diffusion::SamplerConfig;
use calotype_diffusion::samplers::SamplerError;
use serde_json::Value;
use std::path::Path;

/// What is known of a checkpoint's scheduler.
#[derive(Clone, Debug, Default)]
pub(crate) struct SchedulerFacts {
    /// The configuration that the checkpoint carries.
    pub(crate) stored: Option<Value>,
    /// The marks of its files.
    pub(crate) marks: Marks,
    /// Whether the betas end without signal, where the caller says it.
    pub(crate) zero_snr: Option<bool>,
}

impl SchedulerFacts {
    /// The configuration among a checkpoint's files; with `pass_over`, without fields that no reader knows, of which
    /// `notes` tells.
    ///
    /// # Errors
    /// [`LayoutError::Damaged`] for a file that holds no JSON object.
    pub(crate) fn stored(
        path: &Path,
        files: &TextFiles,
        pass_over: bool,
        notes: &mut Vec<String>,
    ) -> Result<Option<Value>, LayoutError> {
        let Some(text) = files.get(SCHEDULER) else { return Ok(None) };
        let wrong = |reason: String| LayoutError::Damaged { path: path.join(SCHEDULER), reason };
        let mut config = SamplerConfig::parse_diffusers(text).map_err(|error| wrong(error.to_string()))?;
        let Some(fields) = config.as_object_mut() else {
            return Err(wrong("it should hold a JSON object".to_owned()));
        };
        if !pass_over {
            return Ok(Some(config));
        }
        loop {
            let unknown: Vec<String> = match SamplerConfig::from_diffusers(&Value::Object(fields.clone())) {
                Err(SamplerError::Fields(error)) => error.unknown().into_iter().map(str::to_owned).collect(),
                _ => Vec::new(),
            };
            let passed: Vec<String> = unknown.into_iter().filter(|name| fields.remove(name).is_some()).collect();
            if passed.is_empty() {
                break;
            }
            notes.extend(passed.iter().map(|name| format!("{SCHEDULER}: the unknown field `{name}` is passed over")));
        }
        Ok(Some(config))
    }

    /// What the stored configuration says that the UNet predicts, and where; the name that stands there, if it is none that
    /// is known.
    pub(crate) fn prediction(&self) -> Option<Result<(Prediction, String), String>> {
        let field = &self.stored.as_ref()?["prediction_type"];
        let default = || (Prediction::Epsilon, format!("{SCHEDULER} leaves it out, which means epsilon to diffusers"));
        if field.is_null() {
            return Some(Ok(default()));
        }
        let known = field.as_str().and_then(|name| name.parse().ok());
        Some(known.map(|prediction| (prediction, SCHEDULER.to_owned())).ok_or_else(|| field.to_string()))
    }
}

impl Checkpoint {
    /// The scheduler's configuration as diffusers has it, with which the checkpoint is drawn and which a conversion writes: the
    /// one that it carries, or else that of its marks or of its family; with the prediction type, and with the end of the betas
    /// where a mark or the caller says it.
    ///
    /// # Errors
    /// [`LayoutError::PredictionUnknown`]; [`LayoutError::Wish`] for an end of the betas where there are none.
    pub fn scheduler(&self) -> Result<Value, LayoutError> {
        let unknown = || LayoutError::PredictionUnknown { path: self.path().to_owned() };
        let prediction = self.prediction().ok_or_else(unknown)?;
        let SchedulerFacts { stored, marks, zero_snr } = self.scheduler_facts();
        let usual = || marks.scheduler().unwrap_or_else(|| (Facts::of(self.family()).scheduler)());
        let mut config = stored.clone().unwrap_or_else(usual);
        if config["prediction_type"].as_str().unwrap_or(Prediction::Epsilon.name()) != prediction.name() {
            config["prediction_type"] = prediction.name().into();
        }
        let edm = config["_class_name"].as_str().is_some_and(|class| class.starts_with("EDM"));
        // Without the velocity, the mark says nothing: noise alone does not show an image.
        let marked = (stored.is_none() && marks.zero_snr && prediction == Prediction::V).then_some(true);
        match zero_snr.or(marked.filter(|_| !edm)) {
            Some(zero) if edm && zero => Err(LayoutError::Wish {
                path: self.path().to_owned(),
                problem: "zero terminal SNR is of betas, and the network was trained on EDM's noise levels".to_owned(),
            }),
            Some(zero) => {
                config["rescale_betas_zero_snr"] = zero.into();
                Ok(config)
            }
            None => Ok(config),
        }
    }

    /// The marks that a single file needs besides networks, for programs that read no metadata.
    pub(crate) fn marks_to_write(
        &self,
    ) -> Result<Vec<calotype_weights::tensor_file::NamedTensor<'static>>, LayoutError> {
        let sizes = |unet: Value| unet["addition_embed_type"] == "text_time";
        let config = |component| self.component(component).ok().map(|part| part.config);
        if !config(Component::Unet).is_some_and(sizes) {
            return Ok(Vec::new());
        }
        Ok(Marks::to_write(&self.scheduler()?, config(Component::Vae).as_ref()))
    }
}
