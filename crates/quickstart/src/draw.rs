//! Drawing prompts into a folder, and reading the images again.

use crate::{EvaluationRecipe, QuickstartError};
use burn::tensor::Device;
use calotype_checkpoints::Checkpoint;
use calotype_core::{Progress, StopFlag, durable};
use calotype_data::image::{PngEffort, RgbImage};
use calotype_diffusion::SamplerKind;
use calotype_diffusion::samplers::Ddim;
use calotype_pipeline::{CutPrompt, DrawnImage, LoadOptions, Observer, Pipeline, PipelineError, Request, Settings};
use std::path::{Path, PathBuf};

/// Loads the pipeline that the quickstart wrote.
///
/// # Errors
/// [`QuickstartError::Pipeline`] naming the file.
pub(crate) fn load(folder: &Path, recipe: &EvaluationRecipe, device: &Device) -> Result<Pipeline, QuickstartError> {
    let checkpoint = Checkpoint::open(folder).map_err(PipelineError::from)?;
    let (device, precision) = (device.clone(), recipe.precision);
    let options = LoadOptions { device, precision, start_images: false, ..LoadOptions::default() };
    Ok(Pipeline::load(&checkpoint, &options)?)
}

/// A recipe's sampling on the schedule of a pipeline.
fn settings(pipeline: &Pipeline, recipe: &EvaluationRecipe) -> Result<Settings, QuickstartError> {
    let mut sampler = pipeline.defaults().sampler.clone().map_err(PipelineError::Setting)?;
    let sampling = &recipe.sampler;
    sampler.kind = SamplerKind::Ddim(Ddim { eta: sampling.eta, ..Ddim::default() });
    sampler.spacing = sampling.spacing;
    sampler.steps_offset = sampling.steps_offset;
    Ok(Settings { steps: sampling.steps, sampler: Some(sampler), batch: recipe.batch_size, ..Settings::default() })
}

/// Draws prompts into `folder` as `00000.png` onwards; images that are there stay.
///
/// # Errors
/// [`QuickstartError`]; [`QuickstartError::Interrupted`] on request, with all finished images written.
pub(crate) fn draw_all(
    pipeline: &Pipeline,
    prompts: &[String],
    recipe: &EvaluationRecipe,
    folder: &Path,
    (stage, stop): (&str, &StopFlag),
) -> Result<(), QuickstartError> {
    std::fs::create_dir_all(folder).map_err(QuickstartError::io(folder))?;
    let absent = |(number, prompt): (usize, &String)| {
        let request = || Request {
            seed: recipe.seed,
            number: number as u64,
            guidance: Some(recipe.sampler.guidance),
            ..Request::new(prompt)
        };
        (!image_path(folder, number).is_file()).then(request)
    };
    let requests: Vec<Request> = prompts.iter().enumerate().filter_map(absent).collect();
    let there = prompts.len() - requests.len();
    let mut progress = Progress::new(stage, prompts.len() as u64).starting_at(there as u64);
    let mut writer = Writer { folder, stop, progress: &mut progress, done: there, failure: None };
    let outcome = pipeline.generate(&requests, &settings(pipeline, recipe)?, &mut writer);
    let (done, failure) = (writer.done, writer.failure);
    match (failure, outcome) {
        (Some(error), _) => Err(error),
        (None, Err(error)) if error.is_stopped() => {
            Err(QuickstartError::Interrupted { stage: "generate", samples: done as u64 })
        }
        (None, outcome) => {
            outcome?;
            progress.finish();
            Ok(())
        }
    }
}

/// Writes each image when it is drawn.
struct Writer<'a> {
    folder: &'a Path,
    stop: &'a StopFlag,
    progress: &'a mut Progress,
    done: usize,
    failure: Option<QuickstartError>,
}

impl Observer for Writer<'_> {
    fn prompt_cut(&mut self, cut: &CutPrompt) {
        tracing::warn!("prompt `{}` is longer than the text encoder's context; its end is not drawn", cut.prompt);
    }

    fn image(&mut self, image: &DrawnImage<'_>) {
        let path = image_path(self.folder, image.request.number as usize);
        let written = image.to_rgb().map_err(QuickstartError::from).and_then(|rgb| save_png(&rgb, &path));
        if let Err(error) = written {
            self.failure.get_or_insert(error);
            return;
        }
        self.done += 1;
        self.progress.set(self.done as u64, &[]);
    }

    fn go_on(&mut self) -> bool {
        self.failure.is_none() && !self.stop.is_set()
    }
}

/// Path of image `number` of a folder.
pub(crate) fn image_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number:05}.png"))
}

/// Writes an image atomically.
pub(crate) fn save_png(image: &RgbImage, path: &Path) -> Result<(), QuickstartError> {
    let png = image.encode_png(PngEffort::Default)?;
    durable::write_bytes(path, &png).map_err(QuickstartError::io(path))
}

/// Reads an image that [`draw_all`] wrote.
pub(crate) fn read_png(path: &Path) -> Result<RgbImage, QuickstartError> {
    let bytes = std::fs::read(path).map_err(QuickstartError::io(path))?;
    Ok(RgbImage::decode(&path.display().to_string(), &bytes).map_err(|error| error.of_file(path))?)
}
