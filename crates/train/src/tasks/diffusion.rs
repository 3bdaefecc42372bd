//! Training of the UNet on precached latents or on images with a frozen autoencoder, and on precached hidden states of
//! captions or with a frozen text encoder.

use super::denoise::{DenoiseObjective, LatentDrawer, NoisyBatch, NoisyLatent, fixed_timestep};
use crate::captions::cut_captions;
use crate::config::sizes::{MOST_RESNETS, MOST_SIDE, MOST_TRANSFORMERS, check_blocks, check_extents, check_levels};
use crate::config::{MemorySettings, SettingError, check, training_recipe};
use crate::export::{DiffusionExport, DiffusionParts};
use crate::frozen::FrozenAutoencoder;
use crate::hooks::PreviewSettings;
use crate::inputs::{Condition, DiffusionInputs, InputSettings, LatentInput, Reading, SampleReader};
use crate::preview;
use crate::sources::open_source;
use crate::stages::{StageContext, StageError};
use crate::task::{BoxError, Decoder, Loss, StepContext, Task};
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_checkpoints::{Component, Export};
use calotype_core::{Purpose, Stream};
use calotype_data::image::RgbImage;
use calotype_data::{Batch, SampleRef};
use calotype_diffusion::{NoiseSchedule, ScheduleConfig};
use calotype_models::unet::Keep;
use calotype_models::{ConfigError, Init, PerLevel, UNet, UNetConfig};
use calotype_pipeline::batches::stack;
use calotype_pipeline::encoders::{TextEncoder, TextSettings};
use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

training_recipe! {
    /// Training of the UNet.
    DiffusionRecipe {
        /// Where the arrays are in a sample.
        #[serde(default, skip_serializing_if = "crate::config::is_usual")]
        inputs: InputSettings,
        /// The text encoder, where captions are encoded during training.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<TextSettings>,
        /// Checkpoint whose autoencoder made the latents, for the pipeline that the run ends with; by default the one that
        /// the dataset's `encoders.json` names. With `inputs.resolution`, it encodes the images during training.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        autoencoder: Option<String>,
        /// The UNet.
        model: UNetConfig,
        /// The noise schedule.
        schedule: ScheduleConfig,
        /// The loss.
        objective: DenoiseObjective,
        /// Time for memory.
        #[serde(default, skip_serializing_if = "crate::config::is_usual")]
        memory: MemorySettings,
    }
}

/// One sample with all the randomness of its training step.
#[derive(Clone, Debug)]
pub struct NoisySample {
    latent: SampleLatent,
    condition: Condition,
}

#[derive(Clone, Debug)]
enum SampleLatent {
    /// Noised already.
    Noisy(NoisyLatent),
    /// An image that is to be encoded first.
    Pixels {
        /// Its position in the run.
        position: u64,
        pixels: Vec<f32>,
        /// In place of the timestep that is drawn for the position.
        timestep: Option<usize>,
    },
}

impl SampleLatent {
    /// The same latent with the same noise at another timestep.
    fn at(&self, timestep: usize) -> Self {
        match self {
            Self::Noisy(latent) => Self::Noisy(latent.at(timestep)),
            Self::Pixels { position, pixels, .. } => {
                Self::Pixels { position: *position, pixels: pixels.clone(), timestep: Some(timestep) }
            }
        }
    }
}

/// Mean squared error of the prediction at uniformly drawn timesteps (Ho et al. 2020, eq. 14).
#[derive(Debug)]
pub struct DiffusionTask {
    recipe: DiffusionRecipe,
    schedule: NoiseSchedule,
    reader: SampleReader,
    scale_factor: f64,
    parts: DiffusionParts,
    /// Encodes captions, where they are not precached; in a cell, as its weights are read at the first use.
    text: Option<RefCell<TextEncoder>>,
    /// Encodes images, where their moments are not precached.
    autoencoder: Option<FrozenAutoencoder>,
    truncated: Arc<AtomicU64>,
    device: Device,
}

impl DiffusionTask {
    fn drawer(&self) -> LatentDrawer {
        let objective = &self.recipe.objective;
        LatentDrawer {
            seed: self.recipe.run.seed,
            shape: self.reader.shape().latent,
            scale: self.scale_factor as f32,
            timesteps: self.schedule.timesteps(),
            draw: objective.timesteps,
            first: objective.first_timestep,
            offset: objective.offset_noise as f32,
        }
    }

    /// The batch's latents, those of images encoded now.
    fn latents(&self, samples: Vec<SampleLatent>) -> Result<Vec<NoisyLatent>, BoxError> {
        let (mut places, mut images, mut latents) = (Vec::new(), Vec::new(), Vec::new());
        for sample in samples {
            match sample {
                SampleLatent::Noisy(latent) => latents.push(latent),
                SampleLatent::Pixels { position, pixels, timestep } => {
                    places.push((position, timestep));
                    images.push(pixels);
                }
            }
        }
        if let Some(autoencoder) = &self.autoencoder {
            let (drawer, moments) = (self.drawer(), autoencoder.moments(&images)?);
            latents.extend(places.into_iter().zip(&moments).map(|((position, timestep), moments)| {
                let latent = drawer.draw(position, moments);
                match timestep {
                    Some(timestep) => latent.at(timestep),
                    None => latent,
                }
            }));
        }
        Ok(latents)
    }

    /// Hidden states of a batch's captions, `[batch, tokens, channels]`.
    fn states(&self, conditions: &[Condition]) -> Result<Tensor<3>, BoxError> {
        let (mut states, mut tokens) = (Vec::new(), Vec::new());
        for condition in conditions {
            match condition {
                Condition::States(values) => states.push(values.as_slice()),
                Condition::Tokens(row) | Condition::Zeros(row) => tokens.push(row.clone()),
            }
        }
        match &self.text {
            Some(text) => Ok(without_dropped(text.borrow_mut().encode(&tokens, false)?.states, conditions)),
            None => Ok(stack(states.into_iter(), &self.reader.shape().states, DType::F32, &self.device)),
        }
    }
}

/// Zeros in the place of the states of dropped captions.
fn without_dropped(states: Tensor<3>, conditions: &[Condition]) -> Tensor<3> {
    let dropped = |condition: &Condition| matches!(condition, Condition::Zeros(_));
    if !conditions.iter().any(dropped) {
        return states;
    }
    let kept: Vec<f32> = conditions.iter().map(|condition| if dropped(condition) { 0.0 } else { 1.0 }).collect();
    let kept = Tensor::<3>::from_data(TensorData::new(kept, [conditions.len(), 1, 1]), &states.device());
    let kept = kept.cast(states.dtype());
    states * kept
}

impl DiffusionTask {
    fn export_of<'a>(&'a self, model: &'a UNet) -> DiffusionExport<'a> {
        let objective = &self.recipe.objective;
        DiffusionExport {
            model,
            config: &self.recipe.model,
            schedule: &self.recipe.schedule,
            prediction: objective.prediction,
            latent: self.reader.shape().latent,
            scale_factor: self.scale_factor,
            dropped: (objective.caption_dropout > 0.0).then_some(objective.dropped_caption),
            parts: &self.parts,
        }
    }
}

impl Task for DiffusionTask {
    const KIND: &'static str = "diffusion";
    const ABOUT: &'static str = "a UNet on latents or images, and captions";

    type Recipe = DiffusionRecipe;
    type Model = UNet;
    type Item = NoisySample;

    fn check(recipe: &DiffusionRecipe) -> Result<(), SettingError> {
        recipe.data.augment.check_range()?;
        check(recipe.model.added.is_none(), "model.added", || {
            "asks for pooled texts and sizes (Stable Diffusion XL), which training does not give: leave this table out"
                .to_owned()
        })?;
        check(recipe.inputs.resolution.is_none_or(|side| side <= MOST_SIDE), "inputs.resolution", || {
            format!("is {}; it takes at most {MOST_SIDE} pixels", recipe.inputs.resolution.unwrap_or_default())
        })?;
        recipe.hooks.preview.as_ref().map_or(Ok(()), preview::check_settings)?;
        let (first, timesteps) = (recipe.objective.first_timestep, recipe.schedule.timesteps);
        check(first < timesteps, "objective.first_timestep", || {
            format!("{first} leaves none of the schedule's {timesteps} timesteps")
        })?;
        recipe.objective.validate()
    }

    fn check_model(recipe: &DiffusionRecipe) -> Result<(), ConfigError> {
        let model = &recipe.model;
        check_levels("block_out_channels", &model.block_out_channels)?;
        check_extents([
            ("in_channels", model.in_channels),
            ("out_channels", model.out_channels),
            ("context_channels", model.context_channels),
            ("norm_groups", model.norm_groups),
            ("transformer_norm_groups", model.transformer_norm_groups),
            ("guidance_features", model.guidance_features.unwrap_or(1)),
        ])?;
        check_blocks("layers_per_block", model.layers_per_block, MOST_RESNETS)?;
        for level in 0..model.block_out_channels.len() {
            // Validation says where there are too few of them.
            let depth = match &model.transformer_depth {
                PerLevel::Same(depth) => *depth,
                PerLevel::Each(depths) => depths.get(level).copied().unwrap_or(1),
            };
            check_blocks("transformer_depth", depth, MOST_TRANSFORMERS)?;
        }
        model.validate()
    }

    fn open(recipe: &DiffusionRecipe, context: &StageContext<'_>) -> Result<Self, StageError> {
        let schedule = NoiseSchedule::new(&recipe.schedule)?;
        let dataset = open_source(&recipe.data, None)?;
        let inputs = DiffusionInputs::open(recipe, dataset.as_ref(), context.device)?;
        check_fit(&recipe.model, &inputs)?;
        let parts = DiffusionParts::of(recipe)?;
        parts.check_init(recipe.init_from.as_ref())?;
        let side = inputs.reader.shape().latent[0] * 8;
        for note in parts.check(context.device, side)? {
            tracing::warn!("diffusion: as it is now, {note}");
        }
        if let Some(settings) = &recipe.hooks.preview {
            preview::check_steps(settings, &recipe.schedule, recipe.objective.prediction)?;
            preview::check_parts("hooks.preview", &parts, context.device, side)?;
        }
        if recipe.hooks.judge.is_some() {
            preview::check_parts("hooks.judge", &parts, context.device, side)?;
        }
        Ok(Self {
            parts,
            recipe: recipe.clone(),
            schedule,
            reader: inputs.reader,
            scale_factor: inputs.scale_factor,
            text: inputs.text.map(RefCell::new),
            autoencoder: inputs.autoencoder,
            truncated: Arc::default(),
            device: context.device.clone(),
        })
    }

    fn model(&self, init: &mut Init<'_>) -> Result<UNet, ConfigError> {
        self.recipe.model.init(init)
    }

    fn component(&self) -> Component {
        Component::Unet
    }

    fn decoder(&self, counted: Range<u64>) -> Decoder<NoisySample> {
        let seed = self.recipe.run.seed;
        let dropout = self.recipe.objective.caption_dropout;
        let (reader, truncated) = (self.reader.clone(), Arc::clone(&self.truncated));
        let drawer = self.drawer();
        Box::new(move |position, sample: &SampleRef<'_>| -> Result<NoisySample, BoxError> {
            let drop = Stream::new(seed, Purpose::CaptionDropout, position).uniform_f64() < dropout;
            let counted = counted.contains(&position);
            let (latent, condition) = reader.read(Reading { position, drop, counted }, sample)?;
            if let (Condition::Tokens(tokens), true) = (&condition, counted) {
                truncated.fetch_add(u64::from(tokens.truncated > 0), Ordering::Relaxed);
            }
            let latent = match latent {
                LatentInput::Moments(moments) => SampleLatent::Noisy(drawer.draw(position, &moments)),
                LatentInput::Pixels(pixels) => SampleLatent::Pixels { position, pixels, timestep: None },
            };
            Ok(NoisySample { latent, condition })
        })
    }

    fn loss(&self, model: &UNet, batch: Batch<NoisySample>, step: &StepContext<'_>) -> Result<Loss, BoxError> {
        let parts = batch.items.into_iter().map(|sample| (sample.latent, sample.condition));
        let (latents, conditions): (Vec<_>, Vec<_>) = parts.unzip();
        let latents = self.latents(latents)?;
        let (shape, objective) = (self.reader.shape().latent, &self.recipe.objective);
        let noisy = NoisyBatch::of(latents.iter(), shape, &self.schedule, objective, &self.device, step);
        let states = self.states(&conditions)?;
        step.record("encoder_hidden_states", &states);
        let keep = if self.recipe.memory.recompute_blocks { Keep::Inputs } else { Keep::Activations };
        Ok(noisy.loss(model, states, self.recipe.run.precision.dtype(&self.device), keep))
    }

    fn published(&self, model: &UNet) -> Result<Export<'static>, StageError> {
        self.export_of(model).own()
    }

    fn export(&self, model: &UNet, folder: &Path) -> Result<Vec<String>, StageError> {
        self.export_of(model).write(&self.device, folder)
    }

    fn encoders(&self) -> Option<String> {
        let text = self.recipe.text.as_ref().zip(self.text.as_ref());
        let text = text.map(|(settings, tower)| format!("{} {}", settings.component, tower.borrow().weights()));
        let images = self.autoencoder.as_ref().map(|encoder| format!("{} {}", Component::Vae, encoder.weights()));
        let all: Vec<String> = text.into_iter().chain(images).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    const PREVIEWS: bool = true;
    const DRAWS: bool = true;

    fn preview(&self, model: &UNet, settings: &PreviewSettings) -> Result<Vec<(String, RgbImage)>, BoxError> {
        preview::draw(&self.export_of(model), settings, self.recipe.run.precision, &self.device)
    }

    /// The UNet's alone, three times its forward pass; not the text encoder's, where captions are encoded in training.
    fn training_flops(&self) -> Option<f64> {
        let shape = self.reader.shape();
        let ([height, width, _], tokens) = (shape.latent, shape.states[0]);
        Some(3.0 * self.recipe.model.forward_flops(1, [height, width], tokens) as f64)
    }

    fn timesteps(&self) -> Option<usize> {
        Some(self.schedule.timesteps())
    }

    fn at_timesteps(&self, batch: &Batch<NoisySample>, range: Range<usize>) -> Option<Batch<NoisySample>> {
        let positions = batch.first_position..;
        let at = |(position, sample): (u64, &NoisySample)| {
            let latent = sample.latent.at(fixed_timestep(position, range.clone()));
            NoisySample { latent, condition: sample.condition.clone() }
        };
        let items = positions.zip(&batch.items).map(at).collect();
        Some(Batch { first_position: batch.first_position, items })
    }

    fn notices(&self) -> Vec<String> {
        let cut = cut_captions(self.truncated.load(Ordering::Relaxed), self.reader.shape().states[0]);
        cut.into_iter().chain(self.reader.notices()).collect()
    }
}

/// Checks that a UNet takes what its dataset holds.
fn check_fit(model: &UNetConfig, inputs: &DiffusionInputs) -> Result<(), ConfigError> {
    let shape = inputs.reader.shape();
    let [height, width, channels] = shape.latent;
    let multiple = model.size_multiple();
    if (channels, channels) != (model.in_channels, model.out_channels) {
        let problem = format!("the dataset's latents have {channels} channels");
        return Err(ConfigError { field: "in_channels", problem });
    }
    if model.guidance_features.is_some() {
        let problem =
            "this network is told its guidance scale (LCM), which only distillation trains; leave it out".to_owned();
        return Err(ConfigError { field: "guidance_features", problem });
    }
    if shape.states[1] != model.context_channels {
        let problem = format!("the dataset's text states have {} channels", shape.states[1]);
        return Err(ConfigError { field: "context_channels", problem });
    }
    if height % multiple != 0 || width % multiple != 0 {
        let problem = format!("latents of {height}x{width} do not divide by {multiple}, as this many levels need");
        return Err(ConfigError { field: "block_out_channels", problem });
    }
    Ok(())
}
