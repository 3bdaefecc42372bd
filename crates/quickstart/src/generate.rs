use crate::{EvaluationRecipe, QuickstartError};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use calotype_data::image::{PngEffort, RgbImage};
use calotype_diffusion::{NoiseSchedule, TextToImage};
use calotype_models::state::values_of;
use calotype_models::{Autoencoder, AutoencoderConfig, Init, UNet};
use calotype_train::artifacts::{load_model, read_config};
use calotype_train::clip::TextEncoder;
use calotype_train::diffusion::DiffusionConfig;
use calotype_train::{Progress, StopFlag};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Folders of the three trained models.
#[derive(Clone, Debug)]
pub struct GeneratorFolders {
    /// The UNet with its schedule.
    pub diffusion: PathBuf,
    /// The autoencoder.
    pub autoencoder: PathBuf,
    /// The CLIP model.
    pub clip: PathBuf,
}

/// Trained models, ready to draw.
#[derive(Debug)]
pub struct Generator {
    unet: UNet,
    config: DiffusionConfig,
    autoencoder: Autoencoder,
    text: TextEncoder,
    schedule: NoiseSchedule,
}

impl Generator {
    /// Loads the models of a run.
    ///
    /// # Errors
    /// [`QuickstartError::Artifact`] naming the file.
    pub fn load(folders: &GeneratorFolders, device: &Device) -> Result<Self, QuickstartError> {
        let (unet, config) =
            load_model(&folders.diffusion, device, |config: &DiffusionConfig, init| config.model.init(init))?;
        Self::with_unet(unet, config, folders, device)
    }

    /// The same models with a UNet as it was before training, from the training's seed.
    ///
    /// # Errors
    /// [`QuickstartError::Artifact`] naming the file.
    pub fn untrained(folders: &GeneratorFolders, seed: u64, device: &Device) -> Result<Self, QuickstartError> {
        let config: DiffusionConfig = read_config(&folders.diffusion)?;
        let unet = config.model.init(&mut Init::new(seed, device)).map_err(calotype_train::stages::StageError::from)?;
        Self::with_unet(unet, config, folders, device)
    }

    fn with_unet(
        unet: UNet,
        config: DiffusionConfig,
        folders: &GeneratorFolders,
        device: &Device,
    ) -> Result<Self, QuickstartError> {
        let (autoencoder, _) = load_model(&folders.autoencoder, device, AutoencoderConfig::init)?;
        Ok(Self {
            unet: unet.valid(),
            schedule: NoiseSchedule::new(&config.schedule)?,
            config,
            autoencoder: autoencoder.valid(),
            text: TextEncoder::load(&folders.clip, device)?,
        })
    }

    /// The text tower and the rest of CLIP.
    pub fn text(&self) -> &TextEncoder {
        &self.text
    }

    /// Draws prompts as pictures number `first` onwards of a seed.
    ///
    /// # Errors
    /// [`QuickstartError::Sampler`] for an impossible number of steps.
    pub fn draw(
        &self,
        prompts: &[&str],
        recipe: &EvaluationRecipe,
        first: u64,
    ) -> Result<Vec<RgbImage>, QuickstartError> {
        let context = self.text.states(prompts);
        let pipeline = TextToImage {
            unet: &self.unet,
            autoencoder: &self.autoencoder,
            schedule: &self.schedule,
            prediction: self.config.prediction,
            scale_factor: self.config.scale_factor as f32,
            latent_size: self.config.latent_size,
            dtype: recipe.precision.dtype(&context.device()),
        };
        let uncond = self.text.states(&[""]).repeat_dim(0, prompts.len());
        let pictures = pipeline
            .generate(context, uncond, &recipe.sampler, recipe.seed, first, &mut |_| ControlFlow::Continue(()))?;
        to_images(pictures)
    }

    /// Draws all prompts into `folder` as `00000.png` onwards; pictures that are there already stay.
    ///
    /// # Errors
    /// [`QuickstartError`]; [`QuickstartError::Interrupted`] between two batches.
    pub fn draw_all(
        &self,
        prompts: &[String],
        recipe: &EvaluationRecipe,
        folder: &Path,
        stage: &str,
        stop: &StopFlag,
    ) -> Result<(), QuickstartError> {
        std::fs::create_dir_all(folder).map_err(QuickstartError::io(folder))?;
        let mut progress = Progress::new(stage, prompts.len() as u64);
        for (number, batch) in prompts.chunks(recipe.batch_size).enumerate() {
            let first = number * recipe.batch_size;
            if stop.is_set() {
                return Err(QuickstartError::Interrupted { stage: "generate", samples: first as u64 });
            }
            let paths: Vec<PathBuf> = (first..first + batch.len()).map(|i| picture_path(folder, i)).collect();
            if !paths.iter().all(|path| path.is_file()) {
                let prompts: Vec<&str> = batch.iter().map(String::as_str).collect();
                for (image, path) in self.draw(&prompts, recipe, first as u64)?.iter().zip(&paths) {
                    save_png(image, path)?;
                }
            }
            progress.set((first + batch.len()) as u64, &[]);
        }
        progress.finish();
        Ok(())
    }
}

/// Where picture `number` of a folder is.
pub(crate) fn picture_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number:05}.png"))
}

/// Writes a picture atomically.
pub(crate) fn save_png(image: &RgbImage, path: &Path) -> Result<(), QuickstartError> {
    let png = image.encode_png(PngEffort::Default)?;
    calotype_metrics::report::write_atomic(path, &png).map_err(QuickstartError::io(path))
}

/// Reads a picture that [`Generator::draw_all`] wrote.
pub(crate) fn read_png(path: &Path) -> Result<RgbImage, QuickstartError> {
    let bytes = std::fs::read(path).map_err(QuickstartError::io(path))?;
    Ok(RgbImage::decode(&path.display().to_string(), &bytes)?)
}

/// `[batch, height, width, 3]` in `-1..1` as 8-bit pictures.
fn to_images(pictures: Tensor<4>) -> Result<Vec<RgbImage>, QuickstartError> {
    let [_, height, width, channels] = pictures.dims();
    values_of(pictures)
        .chunks_exact(height * width * channels)
        .map(|pixels| Ok(RgbImage::from_f32_hwc(width, height, pixels, -1.0, 1.0)?))
        .collect()
}
