use crate::claim::{check_free, claim, short_name};
use crate::draw;
use crate::judge::{Combination, Judge, Judgement, choose, held_out, open_clip, read_images};
use crate::recipe::{EvaluationRecipe, QuickstartRecipe};
use crate::{QuickstartError, report};
use burn::module::Module;
use burn::tensor::Device;
use calotype_checkpoints::{Checkpoint, Export, Part, Placement};
use calotype_core::durable::{self, read_json, write_json};
use calotype_core::system::peak_rss_gib;
use calotype_data::emoji::{self, Split};
use calotype_data::image::{Filter, RgbImage};
use calotype_data::{Dataset, Slice};
use calotype_metrics::{GridOptions, image_grid};
use calotype_models::Init;
use calotype_pipeline::Pipeline;
use calotype_train::checkpoint::prepare_folder;
use calotype_train::config::TrainingRecipe;
use calotype_train::precache::PrecacheRecipe;
use calotype_train::prepare::EmojiRecipe;
use calotype_train::stages::{self, MODEL, RESULT, StageContext, StageEnd, StageError};
use calotype_train::task::Task;
use calotype_train::tasks::autoencoder::{AutoencoderRecipe, AutoencoderTask};
use calotype_train::tasks::clip::{ClipRecipe, ClipTask};
use calotype_train::tasks::diffusion::{DiffusionRecipe, DiffusionTask};
use calotype_train::tasks::{self, TrainingRun, TypedRun};
use calotype_train::trainer::{CHECKPOINTS, TrainingSummary, checkpoint_bytes};
use calotype_train::{RecipeLoader, Resolved, StopFlag};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to run and where.
#[derive(Debug)]
pub struct Options<'a> {
    /// Folder of everything the quickstart makes.
    pub out: &'a Path,
    /// Name of the recipe that names the stages' recipes.
    pub preset: &'a str,
    /// Seed of all stages, in place of the recipes' own.
    pub seed: Option<u64>,
    /// Device by name.
    pub device: &'a str,
    /// Overrides `stage.key=value`.
    pub overrides: &'a [String],
}

/// The resolved recipes of all stages.
#[derive(Debug)]
pub struct Stages {
    /// The images.
    pub dataset: Resolved<EmojiRecipe>,
    /// CLIP training.
    pub clip: TypedRun<ClipRecipe>,
    /// Autoencoder training.
    pub autoencoder: TypedRun<AutoencoderRecipe>,
    /// Encoding once.
    pub precache: Resolved<PrecacheRecipe>,
    /// Diffusion training.
    pub diffusion: TypedRun<DiffusionRecipe>,
    /// Drawing and judging.
    pub evaluation: Resolved<EvaluationRecipe>,
}

impl Stages {
    /// Names of the stages, as overrides begin with them.
    pub const NAMES: [&'static str; 6] = ["dataset", "clip", "autoencoder", "precache", "diffusion", "evaluation"];

    fn load(recipes: &RecipeLoader, options: &Options<'_>) -> Result<Self, QuickstartError> {
        let preset = recipes.load::<QuickstartRecipe>(options.preset, &[])?.value;
        let path = |parts: &[&str]| -> String {
            let mut path = options.out.to_owned();
            path.extend(parts);
            path.display().to_string()
        };
        let train = path(&["dataset", "train"]);
        let (clip, autoencoder) = (path(&["clip", MODEL]), path(&["autoencoder", MODEL]));
        for text in options.overrides {
            if !Self::NAMES.iter().any(|stage| text.starts_with(&format!("{stage}."))) {
                return Err(QuickstartError::OverrideStage { text: text.clone(), stages: Self::NAMES.join(", ") });
            }
        }
        let seed = |key: &str| options.seed.map(|seed| format!("{key}={seed}")).into_iter().collect::<Vec<_>>();
        Ok(Self {
            dataset: load(recipes, &preset.dataset, "dataset", Vec::new(), options)?,
            clip: load_task::<ClipTask>(
                recipes,
                &preset.clip,
                "clip",
                [seed("run.seed"), vec![set("data.path", &train)]].concat(),
                options,
            )?,
            autoencoder: load_task::<AutoencoderTask>(
                recipes,
                &preset.autoencoder,
                "autoencoder",
                [seed("run.seed"), vec![set("data.path", &train)]].concat(),
                options,
            )?,
            precache: load(
                recipes,
                &preset.precache,
                "precache",
                vec![
                    set("source", &train),
                    set("out", &path(&["precache"])),
                    set("encoders.moments.model", &autoencoder),
                    set("encoders.states.model", &clip),
                ],
                options,
            )?,
            diffusion: load_task::<DiffusionTask>(
                recipes,
                &preset.diffusion,
                "diffusion",
                [seed("run.seed"), vec![set("data.path", &path(&["precache"]))]].concat(),
                options,
            )?,
            evaluation: load(recipes, &preset.evaluation, "evaluation", seed("seed"), options)?,
        })
    }

    /// Each stage's resolved recipe as text.
    pub fn texts(&self) -> [(&'static str, &str); 6] {
        [
            ("dataset", &self.dataset.text),
            ("clip", self.clip.run.text()),
            ("autoencoder", self.autoencoder.run.text()),
            ("precache", &self.precache.text),
            ("diffusion", self.diffusion.run.text()),
            ("evaluation", &self.evaluation.text),
        ]
    }
}

impl Stages {
    /// Checks all recipes: what the last stage would refuse must not be found out behind the first ones.
    fn check(&self) -> Result<(), QuickstartError> {
        self.clip.run.check_recipe()?;
        self.autoencoder.run.check_recipe()?;
        self.diffusion.run.check_recipe()?;
        self.precache.value.validate().map_err(StageError::from)?;
        self.evaluated().map(drop)
    }

    /// The held-out combinations that are drawn.
    fn evaluated(&self) -> Result<Vec<Combination>, QuickstartError> {
        let drawings = self.dataset.value.drawings;
        let all = held_out(drawings)?;
        let recipe = &self.evaluation.value;
        recipe.validate(all.len(), drawings.unwrap_or(emoji::pairs().len()))?;
        Ok(choose(&all, recipe.images))
    }

    /// What the stages that have not begun will write, roughly: a disk that is too small should be found out now and
    /// not after an hour.
    fn bytes_to_come(&self, out: &Path) -> Result<u64, QuickstartError> {
        let (dataset, clip, autoencoder) = (&self.dataset.value, &self.clip.value, &self.autoencoder.value);
        let diffusion = &self.diffusion.value;
        let samples =
            |split| -> Result<u64, QuickstartError> { Ok(emoji::combinations(split, dataset.drawings)?.len() as u64) };
        let absent = |parts: [&str; 2]| !out.join(parts[0]).join(parts[1]).exists();
        let (train, held_out) = (samples(Split::Train)?, samples(Split::HeldOut)?);
        let mut bytes = 0;
        if absent(["dataset", "held_out"]) {
            // Headers and padding of three members, and a drawing of half its uncompressed size.
            bytes += (train + held_out) * (4096 + (dataset.resolution * dataset.resolution * 3 / 2) as u64);
        }
        if absent(["precache", stages::CONDITIONING]) {
            let side = self.precache.value.resolution / autoencoder.model.downscale().max(1);
            let moments = 4 * 2 * autoencoder.model.latent_channels * side * side;
            let states = 2 * clip.model.text.context_length * clip.model.text.channels;
            bytes += train * (4096 + moments + states) as u64;
        }
        let cpu = Device::flex();
        let init = &mut Init::new(0, &cpu);
        let config = StageError::from;
        if absent(["clip", CHECKPOINTS]) {
            bytes += checkpoint_bytes(clip.model.init(init).map_err(config)?.num_params(), &clip.config());
        }
        if absent(["autoencoder", CHECKPOINTS]) {
            let model = autoencoder.model.init(init).map_err(config)?;
            bytes += checkpoint_bytes(model.num_params(), &autoencoder.config());
        }
        if absent(["diffusion", CHECKPOINTS]) {
            let model = diffusion.model.init(init).map_err(config)?;
            bytes += checkpoint_bytes(model.num_params(), &diffusion.config());
        }
        Ok(bytes)
    }
}

/// `key="value"` as TOML, whatever the value holds.
fn set(key: &str, value: &str) -> String {
    format!("{key}={}", serde_json::Value::from(value))
}

fn load<T: DeserializeOwned + Serialize>(
    recipes: &RecipeLoader,
    name: &str,
    stage: &'static str,
    overrides: Vec<String>,
    options: &Options<'_>,
) -> Result<Resolved<T>, QuickstartError> {
    let checked = recipes.check_overrides(name, &with_own(Vec::new(), stage, options));
    let loaded = checked.and_then(|()| recipes.load(name, &with_own(overrides, stage, options)));
    loaded.map_err(|source| QuickstartError::StageRecipe { stage, source: Box::new(source.into()) })
}

fn load_task<T: Task>(
    recipes: &RecipeLoader,
    name: &str,
    stage: &'static str,
    overrides: Vec<String>,
    options: &Options<'_>,
) -> Result<TypedRun<T::Recipe>, QuickstartError> {
    let checked = recipes.check_overrides(name, &with_own(Vec::new(), stage, options)).map_err(Into::into);
    let loaded = checked.and_then(|()| tasks::load_as::<T>(recipes, name, &with_own(overrides, stage, options)));
    loaded.map_err(|source| QuickstartError::StageRecipe { stage, source: Box::new(source) })
}

/// A stage's overrides, with those of the command line that are for it.
fn with_own(mut overrides: Vec<String>, stage: &str, options: &Options<'_>) -> Vec<String> {
    let prefix = format!("{stage}.");
    overrides.extend(options.overrides.iter().filter_map(|text| text.strip_prefix(&prefix)).map(str::to_owned));
    overrides
}

/// Two figures side by side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeforeAndAfter {
    /// Of the UNet with its initial weights.
    pub untrained: f64,
    /// Of the trained UNet.
    pub trained: f64,
}

/// Contents of `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the preset.
    #[serde(default)]
    pub preset: String,
    /// Seed of the diffusion stage.
    pub seed: u64,
    /// Device by name.
    pub device: String,
    /// Samples that the UNet was trained on.
    pub samples_seen: u64,
    /// Mean diffusion loss of the first entry in the logs.
    pub loss_first: f64,
    /// Mean diffusion loss of the last entry in the logs.
    pub loss_last: f64,
    /// Fréchet distance of drawn and real held-out images on the project's own CLIP image features; not a FID.
    pub frechet_distance: BeforeAndAfter,
    /// Mean cosine of image and caption in the project's own CLIP space, -1 to 1.
    pub clip_score: BeforeAndAfter,
    /// Caption retrieval of the trained model, 0 to 1.
    pub retrieval_top1_of_16: f64,
    /// Background colour of the trained model, 0 to 1.
    pub background_accuracy: f64,
    /// All figures, with those of real images.
    pub judgement: Judgement,
    /// Seconds of each stage over all restarts.
    pub seconds: BTreeMap<String, f64>,
    /// Largest resident memory of the process that finished, in GiB.
    pub peak_rss_gib: f64,
    /// Paths of the image grids and folders.
    pub pictures: Vec<String>,
}

impl Summary {
    /// What a reader has to know before looking at the images; none for presets that train.
    pub fn warning(&self) -> Option<&'static str> {
        (self.preset == "smoke").then_some(
            "The preset smoke runs every stage for a moment: its images are noise, as they have to be, and its figures mean \
             nothing. calotype quickstart without --preset trains.",
        )
    }
}

/// Seconds of the stages that have no result file of their own.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Clock(BTreeMap<String, f64>);

struct Runner<'a> {
    options: &'a Options<'a>,
    stages: &'a Stages,
    device: Device,
    stop: &'a StopFlag,
    clock: Clock,
}

/// Runs all stages that are not done yet and gives the summary, also written to `summary.json`.
///
/// # Errors
/// [`QuickstartError`]; what was done stays and is used by the next start.
pub fn run(recipes: &RecipeLoader, options: &Options<'_>, stop: &StopFlag) -> Result<Summary, QuickstartError> {
    let stages = Stages::load(recipes, options)?;
    let device = calotype_train::device::device(options.device)?;
    stages.check()?;
    check_free(options.out)?;
    prepare_folder(options.out, stages.bytes_to_come(options.out)?)?;
    let _lock = stages::lock(options.out)?;
    claim(options.out, options.preset, &stages)?;
    let path = options.out.join(CLOCK);
    let clock = read_json(&path).map_err(QuickstartError::io(&path))?.unwrap_or_default();
    let mut runner = Runner { options, stages: &stages, device, stop, clock };
    runner.timed("dataset", Runner::dataset)?;
    let clip = runner.train(&stages.clip.run)?;
    let autoencoder = runner.train(&stages.autoencoder.run)?;
    runner.timed("precache", Runner::precache)?;
    let diffusion = runner.train(&stages.diffusion.run)?;
    runner.publish()?;
    let chosen = stages.evaluated()?;
    runner.timed("generate", |runner| runner.generate(&chosen))?;
    let judgement = runner.timed("judge", |runner| runner.judge(&chosen))?;
    runner.finish(&chosen, judgement, [&clip, &autoencoder, &diffusion])
}

const CLOCK: &str = "seconds.json";
/// Figures of the finished quickstart. They stay for as long as the images do that they are about.
const SUMMARY: &str = "summary.json";

impl Runner<'_> {
    fn out(&self, name: &str) -> PathBuf {
        self.options.out.join(name)
    }

    /// Runs a stage that is quick to repeat, and adds up its seconds.
    fn timed<T>(
        &mut self,
        stage: &'static str,
        body: impl FnOnce(&mut Self) -> Result<T, QuickstartError>,
    ) -> Result<T, QuickstartError> {
        let started = Instant::now();
        let result = body(self);
        // A repeated start that finds the stage done adds its few milliseconds too.
        *self.clock.0.entry(stage.to_owned()).or_default() += started.elapsed().as_secs_f64();
        let path = self.out(CLOCK);
        write_json(&path, &self.clock).map_err(QuickstartError::io(&path))?;
        result
    }

    fn train(&self, run: &TrainingRun) -> Result<TrainingSummary, QuickstartError> {
        let folder = self.out(run.kind());
        std::fs::create_dir_all(&folder).map_err(QuickstartError::io(&folder))?;
        match run.train(&StageContext::new(&folder, &self.device, self.stop))? {
            StageEnd::Done(summary) => Ok(summary),
            StageEnd::Interrupted { samples } => Err(QuickstartError::Interrupted { stage: run.kind(), samples }),
        }
    }

    fn dataset(&mut self) -> Result<(), QuickstartError> {
        let recipe = &self.stages.dataset.value;
        for (split, name) in [(Split::Train, "train"), (Split::HeldOut, "held_out")] {
            let folder = self.out("dataset").join(name);
            let end = recipe.write(&folder, split, &format!("dataset {name}"), self.stop)?;
            if let StageEnd::Interrupted { samples } = end {
                return Err(QuickstartError::Interrupted { stage: "dataset", samples });
            }
        }
        Ok(())
    }

    fn precache(&mut self) -> Result<(), QuickstartError> {
        match stages::precache(&self.stages.precache.value, Slice::ALL, &self.device, self.stop)? {
            StageEnd::Done(_) => Ok(()),
            StageEnd::Interrupted { samples } => Err(QuickstartError::Interrupted { stage: "precache", samples }),
        }
    }

    /// Puts the trained pipeline where diffusers and `generate --model` look for it: at the root of the folder.
    fn publish(&self) -> Result<(), QuickstartError> {
        let checkpoint = Checkpoint::open(self.out("diffusion").join(MODEL)).map_err(StageError::from)?;
        let sources = checkpoint.components().into_iter().map(|component| checkpoint.component(component));
        let sources = sources.collect::<Result<Vec<_>, _>>().map_err(StageError::from)?;
        let parts = sources
            .iter()
            .fold(Export::pipeline(checkpoint.family()), |export, source| export.part(Part::source(source)));
        let export = match checkpoint.scheduler_config() {
            Some(scheduler) => parts.scheduler(&scheduler),
            None => parts,
        };
        export.files(checkpoint.files()).write(self.options.out, Placement::Into).map_err(StageError::from)?;
        Ok(calotype_pipeline::belonging::record(self.options.out)?)
    }

    /// The same pipeline with the UNet as it was before training.
    fn untrained(&self, pipeline: &Pipeline) -> Result<Pipeline, QuickstartError> {
        let recipe = &self.stages.diffusion.value;
        let unet = recipe.model.init(&mut Init::new(recipe.run.seed, &self.device)).map_err(StageError::from)?;
        Ok(pipeline.with_unet(pipeline.unet().config().clone(), unet))
    }

    /// Empties the folder of images if they were drawn by another recipe or another model.
    fn claim_images(&self) -> Result<PathBuf, QuickstartError> {
        let folder = self.out("pictures");
        let marks = [folder.join("recipe.toml"), folder.join("model.json")];
        let result = self.out("diffusion").join(RESULT);
        let model = std::fs::read_to_string(&result).map_err(QuickstartError::io(&result))?;
        let now = [&self.stages.evaluation.text, &model];
        // A summary is of these images, or of none that are there.
        let summary = self.out(SUMMARY);
        let is_same = |(mark, now): (&PathBuf, &&String)| std::fs::read_to_string(mark).is_ok_and(|old| old == **now);
        if summary.exists() && !marks.iter().zip(&now).all(is_same) {
            std::fs::remove_file(&summary).map_err(QuickstartError::io(&summary))?;
        }
        let differs = |(mark, now): (&PathBuf, &&String)| std::fs::read_to_string(mark).is_ok_and(|old| old != **now);
        if marks.iter().zip(&now).any(differs) {
            tracing::info!("the evaluation's recipe or the model has changed: drawing all images anew");
            std::fs::remove_dir_all(&folder).map_err(QuickstartError::io(&folder))?;
        }
        std::fs::create_dir_all(&folder).map_err(QuickstartError::io(&folder))?;
        self.stages.evaluation.save(&marks[0])?;
        durable::write_bytes(&marks[1], model.as_bytes()).map_err(QuickstartError::io(&marks[1]))?;
        Ok(folder)
    }

    fn generate(&mut self, chosen: &[Combination]) -> Result<(), QuickstartError> {
        let recipe = &self.stages.evaluation.value;
        let captions: Vec<String> = chosen.iter().map(|c| c.caption()).collect();
        let folder = self.claim_images()?;
        let trained = draw::load(self.options.out, recipe, &self.device)?;
        let untrained = self.untrained(&trained)?;
        let draw = |pipeline: &Pipeline, prompts: &[String], name: &str, stage: &str| {
            draw::draw_all(pipeline, prompts, recipe, &folder.join(name), (stage, self.stop))
        };
        draw(&untrained, &captions, "untrained", "generate untrained")?;
        draw(&trained, &captions, "trained", "generate")?;
        draw(&trained, &recipe.prompts, "prompts", "generate prompts")?;
        self.grids(&folder, &captions)
    }

    fn grids(&self, folder: &Path, captions: &[String]) -> Result<(), QuickstartError> {
        let recipe = &self.stages.evaluation.value;
        let shown = choose_numbers(recipe.images, recipe.grid);
        for (set, file) in [("trained", "held_out.png"), ("untrained", "untrained.png")] {
            let all = read_images(&folder.join(set), recipe.images)?;
            let images: Vec<RgbImage> = shown.iter().map(|&i| all[i].clone()).collect();
            let captions: Vec<&str> = shown.iter().map(|&i| captions[i].as_str()).collect();
            write_grid(&images, &captions, &folder.join(file))?;
        }
        let real = self.real_images(&shown)?;
        let shown_captions: Vec<&str> = shown.iter().map(|&i| captions[i].as_str()).collect();
        write_grid(&real, &shown_captions, &folder.join("real.png"))?;
        let prompts: Vec<&str> = recipe.prompts.iter().map(String::as_str).collect();
        write_grid(&read_images(&folder.join("prompts"), prompts.len())?, &prompts, &folder.join("prompts.png"))
    }

    /// The real images of some of the chosen combinations.
    fn real_images(&self, numbers: &[usize]) -> Result<Vec<RgbImage>, QuickstartError> {
        let (chosen, resolution) = (self.stages.evaluated()?, self.stages.dataset.value.resolution);
        numbers
            .iter()
            .map(|&i| {
                let Combination { drawing, colour } = chosen[i];
                Ok(emoji::render(&emoji::pairs()[drawing], emoji::BACKGROUNDS[colour].1, resolution)?)
            })
            .collect()
    }

    fn judge(&mut self, chosen: &[Combination]) -> Result<Judgement, QuickstartError> {
        let recipe = &self.stages.evaluation.value;
        let clip = open_clip(&self.out("clip").join(MODEL), &self.device)?;
        let drawings = self.stages.dataset.value.drawings;
        let mut in_use: Vec<usize> = held_out(drawings)?.iter().map(|c| c.drawing).collect();
        in_use.extend(emoji::combinations(Split::Train, drawings)?.iter().map(|&(drawing, _)| drawing));
        in_use.sort_unstable();
        in_use.dedup();
        let judge = Judge { clip: &clip, recipe, chosen, drawings: &in_use };
        let held_out_set = Dataset::open(self.out("dataset").join("held_out"))?;
        let real_all = held_out_set
            .iter()
            .map(|sample| {
                let sample = sample?;
                Ok(RgbImage::decode(sample.key(), sample.part("png")?)?)
            })
            .collect::<Result<Vec<_>, QuickstartError>>()?;
        let yardstick = judge.yardstick(&real_all)?;
        let folder = self.out("pictures");
        let numbers: Vec<usize> = (0..chosen.len()).collect();
        Ok(Judgement {
            untrained: judge.figures(&read_images(&folder.join("untrained"), chosen.len())?, &yardstick)?,
            trained: judge.figures(&read_images(&folder.join("trained"), chosen.len())?, &yardstick)?,
            real: judge.figures(&self.real_images(&numbers)?, &yardstick)?,
        })
    }

    fn finish(
        &self,
        chosen: &[Combination],
        judgement: Judgement,
        [clip, autoencoder, diffusion]: [&TrainingSummary; 3],
    ) -> Result<Summary, QuickstartError> {
        let mut seconds = self.clock.0.clone();
        for (stage, summary) in [("clip", clip), ("autoencoder", autoencoder), ("diffusion", diffusion)] {
            seconds.insert(stage.to_owned(), summary.seconds);
        }
        let written = ["held_out.png", "prompts.png", "real.png", "untrained.png", "trained", "prompts", "untrained"]
            .map(|name| self.out("pictures").join(name).display().to_string());
        let Judgement { untrained, trained, .. } = judgement;
        let summary = Summary {
            preset: short_name(self.options.preset).to_owned(),
            seed: self.stages.diffusion.value.run.seed,
            device: self.options.device.to_owned(),
            samples_seen: diffusion.samples_seen,
            loss_first: diffusion.loss_first,
            loss_last: diffusion.loss_last,
            frechet_distance: BeforeAndAfter {
                untrained: untrained.frechet_distance,
                trained: trained.frechet_distance,
            },
            clip_score: BeforeAndAfter { untrained: untrained.clip_score, trained: trained.clip_score },
            retrieval_top1_of_16: trained.retrieval_top1,
            background_accuracy: trained.background_accuracy,
            judgement,
            seconds,
            peak_rss_gib: peak_rss_gib().unwrap_or(f64::NAN),
            pictures: written.to_vec(),
        };
        let path = self.out(SUMMARY);
        // One that is damaged is written again.
        let before: Option<Summary> = read_json(&path).ok().flatten();
        let summary = match &before {
            // A start that finds all done has measured only itself.
            Some(before) => Summary { pictures: summary.pictures, ..before.clone() },
            None => summary,
        };
        if before.as_ref() != Some(&summary) {
            write_json(&path, &summary).map_err(QuickstartError::io(&path))?;
        }
        report::write(self.options.out, &summary, self.stages, chosen)?;
        Ok(summary)
    }
}

/// `count` of `0..all`, evenly chosen.
fn choose_numbers(all: usize, count: usize) -> Vec<usize> {
    (0..count).map(|i| i * all / count).collect()
}

/// Grid columns; eight images of [`GRID_SIDE`] pixels just fit a page.
const COLUMNS: usize = 8;
/// Side of an image in a grid, in pixels.
const GRID_SIDE: usize = 128;

/// A sheet of images, enlarged smoothly: square pixels of this size would hide what small images show.
fn write_grid(images: &[RgbImage], captions: &[&str], path: &Path) -> Result<(), QuickstartError> {
    let enlarged = images
        .iter()
        .map(|image| image.resize(GRID_SIDE, GRID_SIDE, Filter::Bicubic))
        .collect::<Result<Vec<_>, _>>()?;
    let pixels: Vec<&[u8]> = enlarged.iter().map(RgbImage::data).collect();
    let options = GridOptions { columns: COLUMNS, ..GridOptions::default() };
    let png = image_grid(&pixels, GRID_SIDE, captions, &options)?;
    durable::write_bytes(path, &png).map_err(QuickstartError::io(path))
}
