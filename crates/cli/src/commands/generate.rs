//! `generate`: images from a checkpoint of Stable Diffusion, each with its settings inside.

use crate::args::{DeviceArgs, PrecisionArgs, heading};
use crate::checkpoint::{OpenArgs, open};
use crate::commands::{Usage, print};
use anyhow::{Context, Result, anyhow};
use burn::tensor::Device;
use calotype_checkpoints::Checkpoint;
use calotype_core::StopFlag;
use calotype_diffusion::SamplerKind;
use calotype_ops::Precision;
use calotype_pipeline::images::write_png;
use calotype_pipeline::{
    AdapterFile, CutPrompt, DrawnImage, GenerationRecord, LoadOptions, NoiseKind, Observer, Pipeline, RecordedRequest,
    SamplerChoice, Step, load_adapters,
};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Prompts; each is drawn --count times.
    #[arg(value_name = "PROMPT")]
    pub(crate) prompts: Vec<String>,
    /// A checkpoint of Stable Diffusion 1, 2 or XL, in any layout, or the folder of a quickstart or a training run.
    #[arg(long, value_name = "PATH", help_heading = heading::MODEL)]
    pub(crate) model: Option<PathBuf>,
    /// Draw an image that this command made once more, with its own settings where no option gives another.
    #[arg(long, value_name = "PNG", help_heading = heading::MODEL)]
    pub(crate) from: Option<PathBuf>,
    /// A LoRA (kohya, PEFT, diffusers), with its weight if that is not 1; may be given several times.
    #[arg(long, value_name = "FILE[=WEIGHT]", help_heading = heading::MODEL)]
    lora: Vec<String>,
    /// Leave out keys of a LoRA that fit no parameter, instead of refusing the file.
    #[arg(long, help_heading = heading::MODEL)]
    lora_allow_unused: bool,
    #[command(flatten, next_help_heading = heading::MODEL)]
    open: OpenArgs,
    #[command(flatten, next_help_heading = heading::MODEL)]
    precision: PrecisionArgs,
    #[command(flatten, next_help_heading = heading::MODEL)]
    pub(crate) device: DeviceArgs,
    #[command(flatten, next_help_heading = heading::PROMPTS)]
    texts: PromptArgs,
    #[command(flatten, next_help_heading = heading::IMAGE)]
    images: ImageArgs,
    #[command(flatten, next_help_heading = heading::SAMPLING)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten, next_help_heading = heading::START)]
    start: StartArgs,
    #[command(flatten, next_help_heading = heading::SDXL)]
    sdxl: SdxlArgs,
    #[command(flatten, next_help_heading = heading::OUTPUT)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
struct PromptArgs {
    /// More prompts, one a line.
    #[arg(long = "prompts", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Negative prompt: what the images should not show.
    #[arg(long, value_name = "PROMPT")]
    negative: Option<String>,
    /// Layers at the end of the text encoder to leave out.
    #[arg(long, value_name = "N")]
    clip_skip: Option<usize>,
    /// Encode prompts over 75 tokens in several rows instead of cutting them.
    #[arg(long)]
    long_prompts: bool,
}

#[derive(Debug, Args)]
struct ImageArgs {
    /// Images of each prompt. Image i of a command draws its noise from stream i of the seed.
    #[arg(long, default_value_t = 1, value_name = "N")]
    count: usize,
    /// Images drawn in one batch: more take more memory and less time [default: 1].
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Width in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS")]
    width: Option<usize>,
    /// Height in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS")]
    height: Option<usize>,
    /// Decode in tiles: less memory for large images.
    #[arg(long)]
    tiled: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Seed of the initial noise [default: 0].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Sampling steps [default: 50].
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,
    /// Guidance scale [default: 7.5, for SDXL 5].
    #[arg(long, value_name = "X")]
    pub(crate) guidance: Option<f32>,
    /// Share of the guidance rescale (Lin et al. 2024), 0 to 1.
    #[arg(long, value_name = "X")]
    guidance_rescale: Option<f64>,
    #[arg(long, value_name = "NAME", help = sampler_help())]
    sampler: Option<String>,
    /// Spacing of the noise levels after Karras et al. 2022, where the sampler has one.
    #[arg(long)]
    karras: bool,
    /// Share of fresh noise of DDIM, 0 to 1.
    #[arg(long, value_name = "X")]
    eta: Option<f64>,
    /// philox, or torch-cpu: the numbers of diffusers with one generator an image, seeded with the seed plus the image's
    /// number.
    #[arg(long, value_name = "NAME")]
    noise: Option<NoiseKind>,
    /// Standard normal noise to begin with: tensor `latents`, [images, channels, height, width], of a safetensors file.
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
}

fn sampler_help() -> String {
    format!("Sampler, by our name or diffusers' ({}) [default: the checkpoint's]", SamplerKind::NAMES.join(", "))
}

#[derive(Debug, Args)]
struct StartArgs {
    /// Start image (PNG or JPEG).
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Share of the start image that is drawn anew, 0 to 1 [default: 0.8; with a mask 1].
    #[arg(long, value_name = "X")]
    strength: Option<f64>,
    /// Draw anew only where this image is white.
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SdxlArgs {
    /// Size of the original that SDXL is told the image was scaled from [default: its own].
    #[arg(long, value_name = "HEIGHTxWIDTH", value_parser = pair)]
    original_size: Option<[usize; 2]>,
    /// Upper left corner that SDXL is told the image was cropped at.
    #[arg(long, value_name = "TOPxLEFT", value_parser = pair)]
    crop: Option<[usize; 2]>,
}

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Folder to write the images to.
    #[arg(long, default_value = "runs/images", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write a small preview of the first image of the batch after every step.
    #[arg(long, value_name = "PNG")]
    preview: Option<PathBuf>,
    /// Print the times of the stages as JSON.
    #[arg(long)]
    json: bool,
}

/// Ends a command whose flags do not fit together.
fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(Usage(message.into()).into())
}

fn pair(text: &str) -> Result<[usize; 2]> {
    let parts = text.split_once('x').and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
    parts.ok_or_else(|| anyhow!("`{text}` is not like 1024x768"))
}

impl GenerateArgs {
    /// Another image's settings, or the usual ones, with what the command line says in their place.
    fn record(&self, device: &Device) -> Result<GenerationRecord> {
        let mut record = match (&self.from, &self.model) {
            (Some(path), _) => GenerationRecord::read(path)?,
            (None, Some(model)) => GenerationRecord::new(model, Precision::Auto.resolve(device)),
            (None, None) => return usage("--model or --from is needed"),
        };
        record.version = env!("CARGO_PKG_VERSION").into();
        set(&mut record.model, self.model.as_ref());
        let open = self.open.options();
        let said = open.ema || open.skip_unknown_objects;
        if said || open.family.is_some() || open.prediction.is_some() || open.variant.is_some() {
            record.opened = open;
        }
        set(&mut record.precision, self.precision.precision.map(|precision| precision.resolve(device)).as_ref());
        if !self.lora.is_empty() {
            record.loras = self.lora.iter().map(|text| text.parse::<AdapterFile>()).collect::<Result<_, _>>()?;
        }
        record.lora_allow_unused |= self.lora_allow_unused;
        set_some(&mut record.image, &self.start.image);
        set_some(&mut record.mask, &self.start.mask);
        set_some(&mut record.latents, &self.sampling.latents);
        set_some(&mut record.request.negative, &self.texts.negative);
        self.change_settings(&mut record);
        Ok(record)
    }

    fn change_settings(&self, record: &mut GenerationRecord) {
        let Self { texts, images, sampling, start, sdxl, .. } = self;
        let s = &mut record.settings;
        set_some(&mut s.width, &images.width);
        set_some(&mut s.height, &images.height);
        set(&mut s.batch, images.batch.as_ref());
        s.tiled |= images.tiled;
        set(&mut s.steps, sampling.steps.as_ref());
        set_some(&mut s.guidance, &sampling.guidance);
        set(&mut s.guidance_rescale, sampling.guidance_rescale.as_ref());
        set(&mut s.seed, sampling.seed.as_ref());
        set(&mut s.noise, sampling.noise.as_ref());
        set(&mut s.clip_skip, texts.clip_skip.as_ref());
        s.long_prompts |= texts.long_prompts;
        set_some(&mut s.original_size, &sdxl.original_size);
        set(&mut s.crop, sdxl.crop.as_ref());
        let usual = start.mask.is_some().then_some(1.0);
        set(&mut s.strength, start.strength.or(usual).as_ref());
    }

    /// One record for each image, in the order of the prompts.
    fn records(&self, record: &GenerationRecord) -> Result<Vec<GenerationRecord>> {
        let mut prompts: Vec<String> = self.prompts.clone();
        if let Some(path) = &self.texts.prompt_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            prompts.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        if prompts.is_empty() && self.from.is_some() {
            return Ok(vec![record.clone()]);
        }
        if prompts.is_empty() {
            return usage("there is no prompt: give one, or a file of them with --prompts (\"\" is an empty prompt)");
        }
        let all = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, self.images.count));
        let one = |(number, prompt): (usize, &String)| {
            let negative = record.request.negative.clone();
            let request = RecordedRequest { number: number as u64, prompt: prompt.clone(), negative };
            GenerationRecord { request, ..record.clone() }
        };
        Ok(all.enumerate().map(one).collect())
    }

    fn sampler(&self) -> SamplerChoice {
        let SamplingArgs { sampler, karras, eta, .. } = &self.sampling;
        SamplerChoice { name: sampler.clone(), karras: *karras, eta: *eta }
    }
}

fn set<T: Clone>(to: &mut T, from: Option<&T>) {
    if let Some(from) = from {
        to.clone_from(from);
    }
}

fn set_some<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
    if from.is_some() {
        to.clone_from(from);
    }
}

/// Draws images from a checkpoint.
pub(crate) fn generate_command(args: &GenerateArgs) -> Result<()> {
    let device = args.device.open()?;
    let mut record = args.record(&device)?;
    args.records(&record)?;
    let checkpoint = open(&record.model, &record.opened)?;
    let choice = args.sampler();
    if record.settings.sampler.is_none() || choice != SamplerChoice::default() {
        record.settings.sampler = Some(choice.config(&checkpoint)?);
    }
    let records = args.records(&record)?;
    let inputs = record.read_inputs(&device)?;
    let requests = records.iter().map(|record| record.request(&inputs)).collect::<Result<Vec<_>, _>>()?;
    let pipeline = load(&checkpoint, &record, device)?;
    let out = &args.output.out;
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut observer = Writer {
        records: &records,
        out,
        preview: args.output.preview.as_deref(),
        stop: StopFlag::install().context("cannot listen for signals")?,
        bar: ProgressBar::new(0)
            .with_style(ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed} (left: {eta})")?),
        failure: None,
    };
    let outcome = pipeline.generate(&requests, &record.settings(), &mut observer);
    observer.bar.finish_and_clear();
    if let Some(error) = observer.failure {
        return Err(error);
    }
    let timings = outcome?;
    if args.output.json { print(&serde_json::to_string(&timings)?) } else { Ok(()) }
}

fn load(checkpoint: &Checkpoint, record: &GenerationRecord, device: Device) -> Result<Pipeline> {
    let mut adapters = None;
    if !record.loras.is_empty() {
        let (set, reports) = load_adapters(checkpoint, &record.loras, record.lora_allow_unused)?;
        for (AdapterFile { path, weight }, report) in record.loras.iter().zip(reports) {
            eprintln!("{}: changes {} parameters, times {weight}", path.display(), report.changed.len());
            for key in &report.unused {
                eprintln!("warning: {}: `{key}` fits no parameter and is left out", path.display());
            }
        }
        adapters = Some(Arc::new(set));
    }
    let (precision, tiled) = (record.precision, record.settings.tiled);
    let start_images = record.image.is_some();
    // The process ends after one call, so that nothing is read twice.
    let options = LoadOptions { device, precision, adapters, start_images, low_memory: true, tiled };
    Ok(Pipeline::load(checkpoint, &options)?)
}

/// Shows how far it is, and writes the images.
struct Writer<'a> {
    records: &'a [GenerationRecord],
    out: &'a Path,
    preview: Option<&'a Path>,
    stop: StopFlag,
    bar: ProgressBar,
    failure: Option<anyhow::Error>,
}

impl Writer<'_> {
    fn write(&self, image: &DrawnImage<'_>) -> Result<()> {
        let record = &self.records[image.index];
        let path = self.out.join(format!("{:05}.png", record.request.number));
        write_png(&path, image.pixels, &record.texts(image.pixels))?;
        print(&path.display().to_string())
    }
}

impl Observer for Writer<'_> {
    fn prompt_cut(&mut self, cut: &CutPrompt) {
        eprintln!(
            "warning: prompt `{}`: its last {} tokens are not drawn (`{}`); --long-prompts keeps them",
            cut.prompt, cut.tokens, cut.lost
        );
    }

    fn step(&mut self, step: &Step<'_>) {
        self.bar.set_length(step.progress.steps as u64);
        self.bar.set_position(step.progress.step as u64);
        self.bar.set_message(format!("image {} of {}", step.first + 1, self.records.len()));
        if let Some(path) = self.preview {
            self.failure = write_png(path, &step.preview(0), &[]).err().map(anyhow::Error::from);
        }
    }

    fn image(&mut self, image: &DrawnImage<'_>) {
        self.failure = self.write(image).err();
    }

    fn go_on(&mut self) -> bool {
        self.failure.is_none() && !self.stop.is_set()
    }
}
