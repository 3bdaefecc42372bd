//! The sub-stage that draws: one picture for each caption.

use super::layout::{Blocks, Layout, Point, make_folder};
use super::recipe::{NoiseSettings, PictureNoise, SamplerSettings, SweepRecipe, setting};
use super::{Captions, SweepError};
use burn::tensor::{Device, Tensor, TensorData};
use calotype_checkpoints::{Checkpoint, OpenOptions};
use calotype_core::system::{Memory, format_bytes, memory};
use calotype_core::{StopFlag, TorchCpuGenerator, durable};
use calotype_data::image::PngEffort;
use calotype_diffusion::Caching;
use calotype_diffusion::samplers::SamplerConfig;
use calotype_ops::{Precision, uses_kernels};
use calotype_pipeline::belonging::{self, Hashes};
use calotype_pipeline::{
    CutPrompt, DrawnImage, LoadOptions, Observer, Pipeline, PipelineError, Request, SamplerChoice, Settings,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Everything that a point's pictures depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Drawn {
    /// Hash of the list of captions.
    captions: String,
    images: usize,
    seed: u64,
    noise: NoiseSettings,
    sampler: SamplerConfig,
    steps: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    caching: Option<Caching>,
    negative: Option<String>,
    guidance: f32,
    /// Height and width in pixels.
    size: [usize; 2],
    /// Type of the activations.
    precision: Precision,
    /// Hashes of the networks' tensors.
    networks: Hashes,
}

/// A checkpoint that draws.
pub(super) struct Artist<'a> {
    recipe: &'a SweepRecipe,
    captions: &'a Captions,
    pipeline: Pipeline,
    settings: Settings,
    networks: Hashes,
    precision: Precision,
    tasks: TaskNoise,
    /// Prompts that were longer than a text encoder's context.
    cut: BTreeSet<String>,
}

impl<'a> Artist<'a> {
    /// Loads a checkpoint, whose networks may be [known](hashes).
    ///
    /// # Errors
    /// [`SweepError::Pipeline`] for what is no checkpoint, cannot draw, or lacks the sampler that the recipe asks for.
    pub fn load(
        path: &Path,
        recipe: &'a SweepRecipe,
        captions: &'a Captions,
        device: &Device,
        known: Option<&Hashes>,
    ) -> Result<Self, SweepError> {
        let (checkpoint, networks) = open(path, &recipe.open, known)?;
        let options = load_options(recipe, device);
        let (sampler, notes) = sampler(&checkpoint, &recipe.sampler)?;
        let pipeline = Pipeline::load(&checkpoint, &options)?;
        let notes = notes.iter().chain(&pipeline.defaults().notes);
        notes.for_each(|note| tracing::info!("{}: {note}", path.display()));
        let settings = settings(recipe, sampler);
        check_memory(&pipeline, recipe, &settings)?;
        let (tasks, cut) = (TaskNoise::default(), BTreeSet::new());
        Ok(Self { recipe, captions, pipeline, settings, networks, precision: options.precision, tasks, cut })
    }

    /// Finds out, without reading weights, whether a checkpoint can draw as the recipe has it.
    ///
    /// # Errors
    /// As of [`Artist::load`] but for what stands in the weights; [`SweepError::Setting`] for pictures that the memory does not hold.
    pub fn check(path: &Path, recipe: &SweepRecipe, device: &Device) -> Result<(), SweepError> {
        let checkpoint = Checkpoint::open_with(path, &recipe.open).map_err(PipelineError::from)?;
        let options = LoadOptions { low_memory: true, ..load_options(recipe, device) };
        let (sampler, _) = sampler(&checkpoint, &recipe.sampler)?;
        let pipeline = Pipeline::load(&checkpoint, &options)?;
        let settings = settings(recipe, sampler);
        pipeline.sampler(&settings)?;
        check_memory(&pipeline, recipe, &settings)
    }

    /// Puts beside a point's pictures what they are drawn with, or finds that those that are there were drawn alike.
    ///
    /// # Errors
    /// [`SweepError::Other`] naming what is different; [`SweepError::Pipeline`] for settings that cannot be drawn with.
    pub fn claim(&self, layout: &Layout, point: &Point, guidance: f32) -> Result<(), SweepError> {
        let SweepRecipe { images, seed, noise, sampler, .. } = self.recipe;
        let sampler_of = self.pipeline.sampler(&self.settings)?;
        let drawn = Drawn {
            captions: self.captions.sha256.clone(),
            images: *images,
            seed: *seed,
            noise: noise.clone(),
            sampler: sampler_of.config().clone(),
            steps: sampler.steps,
            caching: self.settings.caching,
            negative: sampler.negative.clone(),
            guidance,
            size: self.pipeline.image_size(&Request::new(""), &self.settings)?,
            precision: self.precision,
            networks: self.networks.clone(),
        };
        let folder = layout.pictures(point);
        make_folder(&folder)?;
        // Whoever draws first writes the file before the first picture, so that it is looked for after the pictures.
        let holds_pictures = fs::read_dir(&folder).map_err(SweepError::io("list", &folder))?.next().is_some();
        let path = layout.drawn(point);
        let found: Option<Value> = durable::read_json(&path).map_err(SweepError::io("read", &path))?;
        if found.is_none() && holds_pictures {
            let folder = folder.display();
            let problem = format!(
                "this file is gone, and nothing else says what the pictures in {folder} were drawn with; copy it back, or remove them"
            );
            return Err(SweepError::Other { path, problem });
        }
        let ours = serde_json::to_value(&drawn).map_err(|error| SweepError::io("write", &path)(error.into()))?;
        match found {
            None => durable::write_json(&path, &ours).map_err(SweepError::io("write", &path)),
            Some(found) => match difference(&found, &ours) {
                None => Ok(()),
                Some(difference) => {
                    let problem = format!(
                        "the pictures in the folder of this name were drawn otherwise: {difference}; choose another folder with --out, or remove \
                         the pictures"
                    );
                    Err(SweepError::Other { path, problem })
                }
            },
        }
    }

    /// Draws the pictures of a block that are not there yet. `done` is told of each.
    ///
    /// # Errors
    /// [`SweepError::Interrupted`] when `stop` asks for it: whole pictures are on disk then; others as of drawing and writing.
    pub fn draw(
        &mut self,
        layout: &Layout,
        (point, guidance): (&Point, f32),
        (blocks, block): (Blocks, usize),
        stop: &StopFlag,
        done: &mut dyn FnMut(),
    ) -> Result<(), SweepError> {
        let missing: Vec<usize> =
            blocks.range(block).filter(|index| !layout.picture(point, *index).is_file()).collect();
        let requests: Vec<Request> =
            missing.iter().map(|index| self.request(*index, guidance)).collect::<Result<_, _>>()?;
        let mut writer = Writer { layout, point, missing: &missing, stop, done, cut: &mut self.cut, failure: None };
        let outcome = self.pipeline.generate(&requests, &self.settings, &mut writer);
        match (writer.failure, outcome) {
            (Some(error), _) => Err(error),
            (None, Err(error)) if error.is_stopped() => Err(SweepError::Interrupted { pictures: 0 }),
            (None, outcome) => Ok(outcome.map(drop)?),
        }
    }

    fn request(&mut self, index: usize, guidance: f32) -> Result<Request, SweepError> {
        let SweepRecipe { seed, noise, sampler, .. } = self.recipe;
        let request = Request {
            negative: sampler.negative.clone(),
            guidance: Some(guidance),
            ..Request::new(&self.captions.list[index].text)
        };
        Ok(match noise.of(*seed, index, self.captions.list.len()) {
            PictureNoise::Own { seed, number } => Request { seed, number, ..request },
            PictureNoise::OfTask { seed, before } => {
                let size = self.pipeline.image_size(&request, &self.settings)?;
                let config = self.pipeline.autoencoder().config();
                let shape = [config.latent_channels, size[0] / config.downscale(), size[1] / config.downscale()];
                let noise = self.tasks.noise(seed, before, shape, self.pipeline.device());
                Request { seed, noise: Some(noise), ..request }
            }
        })
    }
}

/// The generator of a task, where it stands: pictures of a task are mostly asked for one after another.
#[derive(Default)]
struct TaskNoise {
    open: Option<(u64, u64, TorchCpuGenerator)>,
}

impl TaskNoise {
    /// The noise of the picture with `before` others before it in the generator of `seed`: `[1, height, width, channels]`, for a
    /// `shape` of `[channels, height, width]`, in which PyTorch draws it.
    fn noise(&mut self, seed: u64, before: u64, shape: [usize; 3], device: &Device) -> Tensor<4> {
        let [channels, height, width] = shape;
        let mut values = vec![0f32; channels * height * width];
        let (_, mut next, mut generator) = self
            .open
            .take()
            .filter(|(open, next, _)| *open == seed && *next <= before)
            .unwrap_or_else(|| (seed, 0, TorchCpuGenerator::new(seed)));
        // A latent takes a word for each of its numbers, whose count is a multiple of 16 for every published size.
        while next < before {
            values.iter().for_each(|_| _ = generator.next_u32());
            next += 1;
        }
        generator.fill_normal(&mut values);
        self.open = Some((seed, next + 1, generator));
        Tensor::<4>::from_data(TensorData::new(values, [1, channels, height, width]), device).permute([0, 2, 3, 1])
    }
}

impl Drop for Artist<'_> {
    fn drop(&mut self) {
        if let Some(prompt) = self.cut.first() {
            tracing::warn!(
                "{} captions are longer than the text encoder's context, and their ends are not drawn, such as `{prompt}`",
                self.cut.len()
            );
        }
    }
}

/// Hashes of the networks that a checkpoint draws with, learned words included.
pub(super) fn hashes(path: &Path, options: &OpenOptions) -> Result<Hashes, SweepError> {
    Ok(belonging::hashes(&Checkpoint::open_with(path, options).map_err(PipelineError::from)?)?)
}

/// Opens a checkpoint whose networks belong together, with their [`hashes`], which may be known.
fn open(path: &Path, options: &OpenOptions, known: Option<&Hashes>) -> Result<(Checkpoint, Hashes), SweepError> {
    let checkpoint = Checkpoint::open_with(path, options).map_err(PipelineError::from)?;
    // Learned words change the text encoders' hashes, by which networks that belong together are not compared.
    let are_own = options.embeddings.is_empty();
    let checked = belonging::check(&checkpoint, known.filter(|_| are_own).cloned())?;
    if let Some(note) = &checked.note {
        tracing::warn!("{note}");
    }
    let known = known.cloned().or(checked.hashes.filter(|_| are_own));
    let hashes = known.map_or_else(|| belonging::hashes(&checkpoint), Ok)?;
    if let Some(note) = checkpoint.overruled_prediction() {
        tracing::warn!("{}: {note}", path.display());
    }
    if let Some(warning) = checkpoint.unused_warning() {
        tracing::warn!("{warning}");
    }
    Ok((checkpoint, hashes))
}

fn load_options(recipe: &SweepRecipe, device: &Device) -> LoadOptions {
    let precision = recipe.precision.resolve(device);
    LoadOptions { device: device.clone(), precision, start_images: false, ..LoadOptions::default() }
}

fn settings(recipe: &SweepRecipe, sampler: SamplerConfig) -> Settings {
    Settings {
        width: recipe.size,
        height: recipe.size,
        steps: recipe.sampler.steps,
        sampler: Some(sampler),
        caching: recipe.sampler.caching,
        noise: recipe.noise.generator,
        batch: recipe.batch_size,
        ..Settings::default()
    }
}

/// The recipe's sampler on the schedule of a checkpoint, with notes on what was passed over.
fn sampler(checkpoint: &Checkpoint, settings: &SamplerSettings) -> Result<(SamplerConfig, Vec<String>), SweepError> {
    let (name, timesteps) = (settings.name.clone(), settings.timesteps.clone());
    let choice = SamplerChoice { name, timesteps, eta: settings.eta, ..SamplerChoice::default() };
    let found = choice.resolve(checkpoint)?;
    let mut config = found.config;
    config.spacing = settings.spacing.unwrap_or(config.spacing);
    config.steps_offset = settings.steps_offset.unwrap_or(config.steps_offset);
    config.check().map_err(PipelineError::from)?;
    Ok((config, found.notes))
}

/// Refuses pictures that the memory cannot hold as a batch is drawn, and warns of those that it may not.
fn check_memory(pipeline: &Pipeline, recipe: &SweepRecipe, settings: &Settings) -> Result<(), SweepError> {
    let together = recipe.batch_size.min(recipe.block_size).min(recipe.images);
    let largest = recipe.sampler.guidance.iter().copied().fold(1.0, f32::max);
    let request = Request { guidance: Some(largest), ..Request::new("") };
    let size = pipeline.image_size(&request, settings).map_err(|error| match settings.width.or(settings.height) {
        Some(_) => setting("size", error.to_string()),
        None => error.into(),
    })?;
    // One picture more: the networks stay while a batch is decoded.
    let settings = Settings { batch: together, ..settings.clone() };
    let needed = pipeline.memory(&vec![request; together.saturating_add(1)], &settings)?;
    check_needed(needed, size, together, pipeline.device())
}

/// Refuses pictures whose pixels alone are more than the memory holds, whatever draws them.
///
/// # Errors
/// [`SweepError::Setting`].
pub(super) fn check_size(recipe: &SweepRecipe, device: &Device) -> Result<(), SweepError> {
    let Some(side) = recipe.size else { return Ok(()) };
    let bytes = [side, side, 3, size_of::<f32>()].iter().fold(1u64, |all, count| all.saturating_mul(*count as u64));
    check_needed(bytes, [side, side], 1, device)
}

/// Refuses what takes far more memory than there is.
fn check_needed(needed: u64, [height, width]: [usize; 2], together: usize, device: &Device) -> Result<(), SweepError> {
    /// Estimates are within this of what was measured.
    const SURE: f64 = 1.5;
    // Other devices have memory of their own, which nothing tells.
    let Some(Memory { total, available }) = memory().filter(|_| uses_kernels(device)) else { return Ok(()) };
    if needed <= available {
        return Ok(());
    }
    let problem = format!(
        "pictures of {width}x{height} pixels, {together} at a time, take about {} of memory, and {} of {} are to be had: draw smaller ones \
         (size) or fewer at a time (batch_size)",
        format_bytes(needed),
        format_bytes(available),
        format_bytes(total)
    );
    if needed as f64 > SURE * total as f64 {
        return Err(setting("size", problem));
    }
    tracing::warn!("{problem}");
    Ok(())
}

/// The first field in which two objects differ, in words.
pub(super) fn difference(found: &Value, ours: &Value) -> Option<String> {
    let (Some(left), Some(right)) = (found.as_object(), ours.as_object()) else {
        return (found != ours).then(|| "the file says something else".to_owned());
    };
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    names.into_iter().find_map(|name| {
        let (there, here) = (left.get(name).unwrap_or(&Value::Null), right.get(name).unwrap_or(&Value::Null));
        match (there, here) {
            _ if there == here => None,
            (Value::Object(_), Value::Object(_)) => difference(there, here).map(|inner| format!("{name}.{inner}")),
            _ => Some(format!("{name} is {there} there, and {here} now")),
        }
    })
}

/// Writes each picture when it is drawn.
struct Writer<'a> {
    layout: &'a Layout,
    point: &'a Point,
    /// Numbers of the pictures that are drawn.
    missing: &'a [usize],
    stop: &'a StopFlag,
    done: &'a mut dyn FnMut(),
    cut: &'a mut BTreeSet<String>,
    failure: Option<SweepError>,
}

impl Observer for Writer<'_> {
    fn prompt_cut(&mut self, cut: &CutPrompt) {
        self.cut.insert(cut.prompt.clone());
    }

    fn image(&mut self, image: &DrawnImage<'_>) {
        let path = self.layout.picture(self.point, self.missing[image.index]);
        let png = image.to_rgb().and_then(|rgb| rgb.encode_png(PngEffort::Default)).map_err(SweepError::from);
        let written = png.and_then(|png| durable::write_bytes(&path, &png).map_err(SweepError::io("write", &path)));
        match written {
            Ok(()) => (self.done)(),
            Err(error) => drop(self.failure.get_or_insert(error)),
        }
    }

    fn go_on(&mut self) -> bool {
        self.failure.is_none() && !self.stop.is_set()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_noise_of_a_task_is_one_stream_wherever_it_is_entered() {
        let device = Device::default();
        let values = |noise: Tensor<4>| noise.permute([0, 3, 1, 2]).into_data().iter::<f32>().collect::<Vec<f32>>();
        let mut whole = vec![0f32; 4 * 64];
        TorchCpuGenerator::new(133).fill_normal(&mut whole);
        let mut tasks = TaskNoise::default();
        for before in [2u64, 3, 0, 1, 1] {
            let noise = values(tasks.noise(133, before, [4, 4, 4], &device));
            assert_eq!(noise, whole[before as usize * 64..][..64], "picture {before}");
        }
        assert_ne!(values(tasks.noise(143, 2, [4, 4, 4], &device)), whole[2 * 64..3 * 64]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pictures_that_no_memory_holds_are_refused() {
        let check =
            |needed, side| check_needed(needed, [side; 2], 2, &Device::flex()).map_err(|error| error.to_string());
        assert_eq!(check(1 << 20, 64), Ok(()));
        let error = check(u64::MAX, 1_000_000).unwrap_err();
        assert!(error.contains("`size`") && error.contains("1000000x1000000 pixels, 2 at a time"), "{error}");
        assert!(error.contains("16.0 EiB") && error.contains("batch_size"), "{error}");
    }

    #[test]
    fn differences_are_named_by_their_place() {
        let object = json!({ "seed": 1, "noise": { "seeds": "picture", "tasks": 8 } });
        assert_eq!(difference(&object, &object), None);
        for (other, part) in [
            (json!({ "seed": 2, "noise": { "seeds": "picture", "tasks": 8 } }), "seed is 1 there, and 2 now"),
            (json!({ "seed": 1, "noise": { "seeds": "nemo", "tasks": 8 } }), "noise.seeds is \"picture\" there"),
            (json!({ "seed": 1 }), "noise is {"),
            (
                json!({ "seed": 1, "noise": { "seeds": "picture", "tasks": 8 }, "new": 3 }),
                "new is null there, and 3 now",
            ),
            (json!([]), "something else"),
        ] {
            let found = difference(&object, &other).unwrap();
            assert!(found.contains(part), "{found}");
        }
    }
}
