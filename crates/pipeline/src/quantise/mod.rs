//! A checkpoint whose UNet's layers are in 8 bits: weights with a scale for each output, and activations that are quantised while a
//! picture is drawn.
//!
//! What activations are like is found out by drawing captions ([`Calibration`]). By it, input channels are divided by factors that
//! their weights are multiplied by, so that both are even (SmoothQuant, Xiao et al. 2022, equation 4); the norm in front of a layer
//! takes the factors where there is one, and they stand beside the weights elsewhere.

mod layers;
mod tensors;

use crate::error::PipelineError;
use crate::observer::Observer;
use crate::pipeline::Pipeline;
use crate::request::{Request, Settings};
use calotype_checkpoints::loading::whole;
use calotype_checkpoints::{
    Checkpoint, Component, ComponentSource, Conversion, ConvertOptions, Replacement, convert_replaced,
};
use calotype_models::QUANTIZATION;
use calotype_models::observe::{Observed, observed};
use layers::Plan;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use tensors::Int8Tensors;

/// How weights are quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantisation {
    /// The share of the unevenness of activations that moves to the weights, 0 to 1: the alpha of SmoothQuant. Zero: nothing is
    /// divided, and nothing calibrated.
    pub smoothing: f64,
    /// Layers that stay as they are, besides those that always do: names of modules, or of what they are in; `*` stands for any text.
    pub keep: Vec<String>,
}

/// The largest magnitudes of the inputs of the UNet's layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// By the key of the layer's weight, for each input channel.
    pub(crate) maxima: BTreeMap<String, Vec<f32>>,
    captions: usize,
    steps: usize,
}

impl Calibration {
    /// Draws latents for captions, [`Settings::batch`] at a time, and watches the UNet. Image `i` has the noise of stream `i` of the
    /// seed; no guidance is the checkpoint's usual one. The observer hears of steps and may end the work.
    ///
    /// # Errors
    /// As of [`Pipeline::sample`]; [`PipelineError::Setting`] without captions, and if an activation is not finite.
    pub fn draw(
        pipeline: &Pipeline,
        captions: &[String],
        (seed, guidance): (u64, Option<f32>),
        settings: &Settings,
        observer: &mut dyn Observer,
    ) -> Result<Self, PipelineError> {
        if captions.is_empty() {
            return Err(PipelineError::setting("there are no captions to calibrate with"));
        }
        let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
        let prompts = pipeline.encode_prompts(&texts, &settings.prompts())?;
        prompts.cut.iter().for_each(|cut| observer.prompt_cut(cut));
        let request =
            |(number, caption): (u64, &String)| Request { seed, number, guidance, ..Request::new(caption.as_str()) };
        let requests: Vec<Request> = (0..).zip(captions).map(request).collect();
        if pipeline.low_memory {
            pipeline.text_encoders().iter().for_each(crate::encoders::TextEncoder::release);
        }
        let mut seen = Observed::default();
        for range in pipeline.batches(&requests, &prompts, settings)? {
            let done = range.start;
            if !observer.go_on() {
                return Err(PipelineError::Stopped { done, all: requests.len() });
            }
            let (latents, now) = observed(|| pipeline.sample(&requests[range], &prompts, settings, &mut *observer));
            latents.map_err(|error| match error {
                PipelineError::Stopped { .. } => PipelineError::Stopped { done, all: requests.len() },
                error => error,
            })?;
            seen.merge(now);
        }
        let maxima = seen.by_key(&*pipeline.unet().get()?);
        let finite = |maxima: &Vec<f32>| maxima.iter().all(|value| value.is_finite());
        if let Some((key, _)) = maxima.iter().find(|(_, maxima)| !finite(maxima)) {
            return Err(PipelineError::setting(format!(
                "{}: what goes into `{key}` is not finite: the UNet is damaged, or --precision f32 is needed",
                pipeline.name().display()
            )));
        }
        Ok(Self { maxima, captions: captions.len(), steps: settings.steps })
    }
}

/// The result of [`quantise`]; it displays as lines for people.
#[derive(Clone, Debug, Serialize)]
pub struct Quantised {
    /// Layers of the UNet in 8 bits.
    pub layers: usize,
    /// Their weights.
    pub weights: usize,
    /// Layers whose factors the norm in front of them took.
    pub folded: usize,
    /// Modules that stay as they are.
    pub kept: Vec<String>,
    /// What was written.
    #[serde(flatten)]
    pub conversion: Conversion,
}

impl fmt::Display for Quantised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, weights, folded, kept, conversion } = self;
        writeln!(
            formatter,
            "{layers} layers of the UNet in 8 bits, with {weights} weights; norms took the factors of {folded}; {} stay as they are",
            kept.len()
        )?;
        write!(formatter, "{conversion}")
    }
}

impl Quantisation {
    /// Refuses what [`quantise`] would, before anything is drawn.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] if the UNet is in 8 bits already, or a layer that is to be kept is not there; [`PipelineError::Load`] if
    /// there is no whole UNet.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), PipelineError> {
        Plan::new(&unet_of(checkpoint)?, self).map(drop)
    }
}

/// The UNet of a checkpoint, which must not be in 8 bits.
fn unet_of(checkpoint: &Checkpoint) -> Result<ComponentSource, PipelineError> {
    let source = whole(checkpoint, Component::Unet)?;
    match source.int8_tensors() {
        0 => Ok(source),
        _ => Err(PipelineError::setting(format!(
            "{}: the UNet is in 8 bits already: quantize the checkpoint that it was made of",
            checkpoint.path().display()
        ))),
    }
}

/// Writes a checkpoint as a diffusers folder whose UNet's layers are in 8 bits; everything else is as it is. Tensors are read, quantised
/// and written one at a time; the folder appears completely or not at all.
///
/// # Errors
/// [`PipelineError::Setting`] if the UNet is in 8 bits already, or a layer that is to be kept is not there; as of
/// [`calotype_checkpoints::convert`] otherwise.
pub fn quantise(
    checkpoint: &Checkpoint,
    calibration: Option<&Calibration>,
    quantisation: &Quantisation,
    out: &Path,
) -> Result<Quantised, PipelineError> {
    let source = unet_of(checkpoint)?;
    let mut plan = Plan::new(&source, quantisation)?;
    if let Some(calibration) = calibration.filter(|_| quantisation.smoothing > 0.0) {
        plan.smooth(&source, calibration, quantisation.smoothing)?;
    }
    let mut config = source.config.clone();
    config["quantization_config"] = json!({
        "quant_method": QUANTIZATION,
        "smoothing": quantisation.smoothing,
        "captions": calibration.map_or(0, |calibration| calibration.captions),
        "steps": calibration.map_or(0, |calibration| calibration.steps),
        "modules_to_not_convert": plan.kept,
    });
    let tensors = Int8Tensors { source: &source, plan: &plan };
    let replacement = Replacement { component: Component::Unet, config, tensors: &tensors };
    let options = ConvertOptions { allow_unused: true, ..ConvertOptions::default() };
    let conversion = convert_replaced(checkpoint, out, &replacement, &options)?;
    Ok(Quantised {
        layers: plan.layers.len(),
        weights: plan.weights,
        folded: plan.layers.values().filter(|layer| layer.folded).count(),
        kept: plan.kept,
        conversion,
    })
}
