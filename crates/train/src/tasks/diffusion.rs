//! Training of the UNet on precached latents, with precached hidden states of captions or a frozen text encoder.

use super::denoise::{DenoiseObjective, LatentDrawer, NoisyBatch, NoisyLatent, fixed_timestep};
use crate::captions::cut_captions;
use crate::config::{MemorySettings, SettingError, check, training_recipe};
use crate::export::{DiffusionExport, DiffusionParts};
use crate::hooks::PreviewSettings;
use crate::inputs::{Condition, DiffusionInputs, InputSettings, SampleReader};
use crate::preview;
use crate::sources::open_source;
use crate::stages::{StageContext, StageError};
use crate::task::{BoxError, Decoder, Loss, StepContext, Task};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::{Component, Export};
use calotype_core::{Purpose, Stream};
use calotype_data::image::RgbImage;
use calotype_data::{Batch, SampleRef};
use calotype_diffusion::{NoiseSchedule, ScheduleConfig};
use calotype_models::unet::Keep;
use calotype_models::{ConfigError, Init, UNet, UNetConfig};
use calotype_pipeline::batches::stack;
use calotype_pipeline::encoders::{TextEncoder, TextSettings};
use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

training_recipe! {
    /// Training of the UNet on precached latents and hidden states of captions.
    DiffusionRecipe {
        /// Where the arrays are in a sample.
        #[serde(default, skip_serializing_if = "crate::config::is_usual")]
        inputs: InputSettings,
        /// The text encoder, where captions are encoded during training.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<TextSettings>,
        /// Checkpoint whose autoencoder made the latents, for the pipeline that the run ends with; by default the one that
        /// the dataset's `encoders.json` names.
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
    latent: NoisyLatent,
    condition: Condition,
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
    truncated: Arc<AtomicU64>,
    device: Device,
}

impl DiffusionTask {
    /// Hidden states of a batch's captions, `[batch, tokens, channels]`.
    fn states(&self, items: &[NoisySample]) -> Result<Tensor<3>, BoxError> {
        let (mut states, mut tokens) = (Vec::new(), Vec::new());
        for item in items {
            match &item.condition {
                Condition::States(values) => states.push(values.as_slice()),
                Condition::Tokens(row) => tokens.push(row.clone()),
            }
        }
        match &self.text {
            Some(text) => Ok(text.borrow_mut().encode(&tokens, false)?.states),
            None => Ok(stack(states.into_iter(), &self.reader.shape().states, DType::F32, &self.device)),
        }
    }
}

impl DiffusionTask {
    fn export_of<'a>(&'a self, model: &'a UNet) -> DiffusionExport<'a> {
        DiffusionExport {
            model,
            config: &self.recipe.model,
            schedule: &self.recipe.schedule,
            prediction: self.recipe.objective.prediction,
            latent: self.reader.shape().latent,
            scale_factor: self.scale_factor,
            parts: &self.parts,
        }
    }
}

impl Task for DiffusionTask {
    const KIND: &'static str = "diffusion";
    const ABOUT: &'static str = "a UNet on precached latents and captions";

    type Recipe = DiffusionRecipe;
    type Model = UNet;
    type Item = NoisySample;

    fn check(recipe: &DiffusionRecipe) -> Result<(), SettingError> {
        check(recipe.model.added.is_none(), "model.added", || {
            "asks for pooled texts and sizes (Stable Diffusion XL), which training does not give: leave this table out"
                .to_owned()
        })?;
        recipe.hooks.preview.as_ref().map_or(Ok(()), preview::check_settings)?;
        recipe.objective.validate()
    }

    fn open(recipe: &DiffusionRecipe, context: &StageContext<'_>) -> Result<Self, StageError> {
        let schedule = NoiseSchedule::new(&recipe.schedule)?;
        let dataset = open_source(&recipe.data, None)?;
        let inputs = DiffusionInputs::open(recipe, dataset.as_ref(), context.device)?;
        check_fit(&recipe.model, &inputs)?;
        let parts = DiffusionParts::of(recipe)?;
        parts.check_init(recipe.init_from.as_ref())?;
        let side = inputs.reader.shape().latent[0] * 8;
        parts.check(context.device, side)?;
        if recipe.hooks.preview.is_some() {
            preview::check_parts(&parts, context.device, side)?;
        }
        Ok(Self {
            parts,
            recipe: recipe.clone(),
            schedule,
            reader: inputs.reader,
            scale_factor: inputs.scale_factor,
            text: inputs.text.map(RefCell::new),
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
        let drawer = LatentDrawer {
            seed,
            shape: reader.shape().latent,
            scale: self.scale_factor as f32,
            timesteps: self.schedule.timesteps(),
            draw: self.recipe.objective.timesteps,
        };
        Box::new(move |position, sample: &SampleRef<'_>| -> Result<NoisySample, BoxError> {
            let drop = Stream::new(seed, Purpose::CaptionDropout, position).uniform_f64() < dropout;
            let (moments, condition) = reader.read(position, sample, drop)?;
            if let Condition::Tokens(tokens) = &condition
                && counted.contains(&position)
            {
                truncated.fetch_add(u64::from(tokens.truncated > 0), Ordering::Relaxed);
            }
            Ok(NoisySample { latent: drawer.draw(position, &moments), condition })
        })
    }

    fn loss(&self, model: &UNet, batch: Batch<NoisySample>, step: &StepContext<'_>) -> Result<Loss, BoxError> {
        let latents = batch.items.iter().map(|sample| &sample.latent);
        let (shape, objective) = (self.reader.shape().latent, &self.recipe.objective);
        let noisy = NoisyBatch::of(latents, shape, &self.schedule, objective, &self.device, step);
        let states = self.states(&batch.items)?;
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
        let (settings, tower) = (self.recipe.text.as_ref()?, self.text.as_ref()?);
        Some(format!("{} {}", settings.component, tower.borrow().weights()))
    }

    const PREVIEWS: bool = true;

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
        cut_captions(self.truncated.load(Ordering::Relaxed), self.reader.shape().states[0]).into_iter().collect()
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
