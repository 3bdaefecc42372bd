//! `generate`: images from a checkpoint of Stable Diffusion, each with its settings inside.

use crate::args::{DeviceArgs, JsonArgs, PrecisionArgs, heading, named};
use crate::checkpoint::{OpenArgs, open};
use crate::commands::{Usage, print};
use anyhow::{Context, Result, anyhow};
use burn::tensor::Device;
use calotype_checkpoints::{Checkpoint, EmbeddingFile, Family, OpenOptions};
use calotype_core::numbers::{count, finite, share};
use calotype_core::{Progress, StopFlag};
use calotype_diffusion::{SamplerConfig, SamplerKind};
use calotype_ops::Precision;
use calotype_pipeline::images::{write_next_png, write_png};
use calotype_pipeline::{
    AdapterFile, CutPrompt, DrawnImage, GenerationRecord, LoadOptions, NoiseKind, Observer, Pipeline, PromptSyntax,
    Recorded, RecordedRefiner, RecordedRequest, Refiner, SamplerChoice, Step, load_adapters,
};
use calotype_prepare::pixels::PixelArgs;
use clap::Args;
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
    /// Draw an image that this command made once more, with its own settings where no option gives another; images of
    /// AUTOMATIC1111's web interface and of ComfyUI too, as far as their settings map (with --model).
    #[arg(long, value_name = "PNG", help_heading = heading::MODEL)]
    pub(crate) from: Option<PathBuf>,
    /// A LoRA, LoHa, LoKr or DoRA (kohya, LyCORIS, PEFT, diffusers, ComfyUI), with its weight if that is not 1; may be given
    /// several times.
    #[arg(long, value_name = "FILE[=WEIGHT]", help_heading = heading::MODEL)]
    lora: Vec<String>,
    /// Leave out keys of a LoRA that fit no parameter, instead of refusing the file.
    #[arg(long, help_heading = heading::MODEL)]
    lora_allow_unused: bool,
    /// Learned words (textual inversion), with the word that stands for them in prompts if that is not the file's own or its
    /// name; may be given several times.
    #[arg(long, value_name = "FILE[=WORD]", help_heading = heading::MODEL)]
    embedding: Vec<EmbeddingFile>,
    #[command(flatten, next_help_heading = heading::MODEL)]
    open: OpenArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
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
    /// What brackets and signs in prompts mean: plain (nothing), a1111 ("a (red:1.2) [fox]"), or compel ("a red++ (big fox)0.8")
    /// [default: plain].
    #[arg(long, value_name = "NAME")]
    prompt_syntax: Option<PromptSyntax>,
}

#[derive(Debug, Args)]
struct ImageArgs {
    /// Images of each prompt. Image i of a command draws its noise from stream i of the seed.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count::<usize>)]
    count: usize,
    /// Images drawn in one batch: more take more memory and less time [default: 1].
    #[arg(long, value_name = "N", value_parser = count::<usize>)]
    batch: Option<usize>,
    /// Width in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS", value_parser = count::<usize>)]
    width: Option<usize>,
    /// Height in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS", value_parser = count::<usize>)]
    height: Option<usize>,
    /// Decode in tiles: less memory for large images.
    #[arg(long)]
    tiled: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Seed of the initial noise [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// Sampling steps [default: 50].
    #[arg(long, value_name = "N", value_parser = count::<usize>, allow_negative_numbers = true)]
    pub(crate) steps: Option<usize>,
    /// Guidance scale [default: 7.5, for SDXL 5].
    #[arg(long, value_name = "X", value_parser = finite::<f32>, allow_negative_numbers = true)]
    pub(crate) guidance: Option<f32>,
    /// Share of the guidance rescale (Lin et al. 2024), 0 to 1.
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    guidance_rescale: Option<f64>,
    #[arg(long, value_name = "NAME", help = sampler_help())]
    sampler: Option<String>,
    /// Spacing of the noise levels after Karras et al. 2022, where the sampler has one.
    #[arg(long)]
    karras: bool,
    /// Share of fresh noise of DDIM, 0 to 1.
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    eta: Option<f64>,
    /// philox, or torch-cpu: the numbers of diffusers with one generator an image, seeded with the seed plus the image's
    /// number.
    #[arg(long, value_name = "NAME", value_parser = named::<NoiseKind>())]
    noise: Option<NoiseKind>,
    /// Standard normal noise to begin with: tensor `latents`, [images, channels, height, width], of a safetensors file.
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
}

fn sampler_help() -> String {
    format!(
        "Sampler, by our name or diffusers' ({}), or as AUTOMATIC1111, kohya and ComfyUI call it (\"DPM++ 2M Karras\", euler_a) \
         [default: the checkpoint's]",
        SamplerKind::NAMES.join(", ")
    )
}

#[derive(Debug, Args)]
struct StartArgs {
    /// Start image.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelArgs,
    /// Share of the start image that is drawn anew, 0 to 1 [default: 0.8; with a mask 1; with SDXL's refiner alone 0.3].
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    strength: Option<f64>,
    /// Draw anew only where this image is white; where it is transparent it counts as black.
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
    /// A second checkpoint, SDXL's refiner, which takes over where little noise is left. (As --model, it draws an image to begin
    /// with anew.)
    #[arg(long, value_name = "PATH")]
    refiner: Option<PathBuf>,
    /// Share of the noise's way after which the refiner takes over, as diffusers' denoising_end and denoising_start
    /// [default: 0.8].
    #[arg(long, value_name = "X")]
    refiner_start: Option<f64>,
    /// Score of beauty that the refiner is told with the prompt [default: 6].
    #[arg(long, value_name = "X")]
    aesthetic_score: Option<f32>,
    /// Score of beauty that the refiner is told with the negative prompt [default: 2.5].
    #[arg(long, value_name = "X")]
    negative_aesthetic_score: Option<f32>,
}

/// Share of the noise's way after which a refiner takes over: the last 200 of 1,000 timesteps are what SDXL's was trained on
/// (Podell et al. 2023, section 2.5).
const REFINER_START: f64 = 0.8;

/// How much of an image SDXL's refiner draws anew: as much as diffusers' `StableDiffusionXLImg2ImgPipeline`.
const REFINER_STRENGTH: f64 = 0.3;

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Folder to write the images to, as 00000.png or the next numbers behind those that are there.
    #[arg(long, default_value = "runs/images", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write a small preview of the first image of the batch after every step.
    #[arg(long, value_name = "PNG")]
    preview: Option<PathBuf>,
    /// Prints the times of the stages.
    #[command(flatten)]
    json: JsonArgs,
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
    fn record(&self, device: &Device) -> Result<(GenerationRecord, SamplerChoice)> {
        let (mut record, mut choice) = self.base(device)?;
        choice.karras |= self.sampling.karras;
        set_some(&mut choice.name, &self.sampling.sampler);
        set_some(&mut choice.eta, &self.sampling.eta);
        record.version = env!("CARGO_PKG_VERSION").into();
        set(&mut record.model, self.model.as_ref());
        self.open.check(&record.model)?;
        self.open.change(&mut record.opened);
        if !self.embedding.is_empty() {
            record.opened.embeddings.clone_from(&self.embedding);
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
        record.decode.orient &= !self.start.pixels.as_stored;
        set(&mut record.decode.background, self.start.pixels.background.as_ref());
        self.change_settings(&mut record);
        if record.image.is_none() && (self.start.pixels != PixelArgs::default()) {
            return usage("--as-stored and --background say how a start image is read: give one with --image");
        }
        self.refuse_without_effect(&record)?;
        Ok((record, choice))
    }

    /// What the command line changes: the settings of an image, or the usual ones of a checkpoint.
    fn base(&self, device: &Device) -> Result<(GenerationRecord, SamplerChoice)> {
        let precision = Precision::Auto.resolve(device);
        let path = match (&self.from, &self.model) {
            (Some(path), _) => path,
            (None, Some(model)) => return Ok((GenerationRecord::new(model, precision), SamplerChoice::default())),
            (None, None) => return usage("--model or --from is needed"),
        };
        let foreign = match Recorded::read(path)? {
            Recorded::Own(record) => return Ok((*record, SamplerChoice::default())),
            Recorded::Foreign(foreign) => foreign,
        };
        let file = path.display();
        let Some(model) = &self.model else {
            let named = foreign.model.as_ref().map_or(String::new(), |model| format!(" It was drawn with `{model}`."));
            return usage(format!(
                "{file}: an image of {} does not hold the path of its model: give it with --model.{named}",
                foreign.program
            ));
        };
        for sentence in &foreign.rest {
            eprintln!("warning: {file}: {sentence}");
        }
        let choice = SamplerChoice { name: foreign.sampler.clone(), ..SamplerChoice::default() };
        Ok((foreign.record(model, precision), choice))
    }

    /// Whether the command line says which checkpoint, or how it is to be understood.
    fn names_checkpoint(&self) -> bool {
        self.model.is_some() || self.open.options() != OpenOptions::default()
    }

    /// Refuses flags that would change nothing.
    fn refuse_without_effect(&self, record: &GenerationRecord) -> Result<()> {
        let Self { start, lora_allow_unused, .. } = self;
        let needs = [
            (
                start.strength.is_some(),
                record.image.is_some(),
                "--strength",
                "an image to begin with: add --image FILE",
            ),
            (start.mask.is_some(), record.image.is_some(), "--mask", "an image to begin with: add --image FILE"),
            (*lora_allow_unused, !record.loras.is_empty(), "--lora-allow-unused", "an adapter: add --lora FILE"),
        ];
        match needs.into_iter().find(|(given, met, ..)| *given && !*met) {
            Some((_, _, flag, needed)) => usage(format!("{flag} has no effect without {needed}")),
            None => Ok(()),
        }
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
        set(&mut s.syntax, texts.prompt_syntax.as_ref());
        set_some(&mut s.original_size, &sdxl.original_size);
        set(&mut s.crop, sdxl.crop.as_ref());
        let scores = [sdxl.aesthetic_score, sdxl.negative_aesthetic_score];
        s.aesthetic_scores.iter_mut().zip(&scores).for_each(|(score, said)| set(score, said.as_ref()));
        let usual = start.mask.is_some().then_some(1.0);
        set(&mut s.strength, start.strength.or(usual).as_ref());
    }

    /// One record for each image, in the order of the prompts.
    fn records(&self, record: &GenerationRecord) -> Result<Vec<GenerationRecord>> {
        let mut prompts: Vec<String> = self.prompts.clone();
        if let Some(path) = &self.texts.prompt_file {
            let text = calotype_core::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
            prompts.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        if prompts.is_empty() && self.from.is_some() {
            let one = |number: usize| {
                let number = record.request.number.wrapping_add(number as u64);
                GenerationRecord { request: RecordedRequest { number, ..record.request.clone() }, ..record.clone() }
            };
            return Ok((0..self.images.count).map(one).collect());
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

    /// The refiner, with its checkpoint and the sampler that it draws with; none if there is none.
    fn refiner(&self, record: &mut GenerationRecord, choice: &SamplerChoice) -> Result<Option<Checkpoint>> {
        if let Some(model) = &self.sdxl.refiner {
            record.refiner = Some(RecordedRefiner { model: model.clone(), start: REFINER_START, sampler: None });
        }
        let Some(refiner) = &mut record.refiner else {
            return match self.sdxl.refiner_start {
                Some(_) => usage("--refiner-start says when a refiner takes over: name it with --refiner"),
                None => Ok(None),
            };
        };
        set(&mut refiner.start, self.sdxl.refiner_start.as_ref());
        let checkpoint = open(&refiner.model, &OpenOptions::default())?;
        if refiner.sampler.is_none() || *choice != SamplerChoice::default() {
            refiner.sampler = Some(resolve(choice, &checkpoint)?);
        }
        Ok(Some(checkpoint))
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
    let (mut record, choice) = args.record(&device)?;
    args.records(&record)?;
    let checkpoint = open(&record.model, &record.opened)?;
    record.settings.sampler = Some(match (&choice.name, record.settings.sampler.take()) {
        (None, Some(own)) => choice.changed(own, args.names_checkpoint().then_some(&checkpoint))?,
        _ => resolve(&choice, &checkpoint)?,
    });
    warn_of_unused_words(&checkpoint, &args.records(&record)?);
    let alone = checkpoint.family() == Some(Family::SdxlRefiner) && args.start.strength.is_none();
    if alone && args.from.is_none() {
        record.settings.strength = REFINER_STRENGTH;
    }
    let refiner = args.refiner(&mut record, &choice)?;
    let inputs = record.read_inputs(&device)?;
    inputs.notes.iter().for_each(|note| eprintln!("{note}"));
    let mut pipeline = load(&checkpoint, &record, device.clone())?;
    let is_told_sizes = pipeline.unet().config().added.is_some();
    if !is_told_sizes && (args.sdxl.original_size.is_some() || args.sdxl.crop.is_some()) {
        return usage("--original-size and --crop are for Stable Diffusion XL: this checkpoint is told no sizes");
    }
    if let (Some(checkpoint), Some(RecordedRefiner { start, sampler, .. })) = (refiner, record.refiner.clone()) {
        let second = Pipeline::load(&checkpoint, &load_options(&record, device))?;
        pipeline = pipeline.with_refiner(Refiner { pipeline: second, start, sampler });
    }
    pipeline.defaults().notes.iter().for_each(|note| eprintln!("note: {}: {note}", record.model.display()));
    // What is used is what the image says of itself.
    record.settings.guidance.get_or_insert(pipeline.defaults().guidance);
    let records = args.records(&record)?;
    let requests = records.iter().map(|record| record.request(&inputs)).collect::<Result<Vec<_>, _>>()?;
    let out = &args.output.out;
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut observer = Writer {
        records: &records,
        out,
        preview: args.output.preview.as_deref(),
        stop: StopFlag::install().context("cannot listen for signals")?,
        progress: Progress::new("generate", 0).counting(["steps", "steps/s"]),
        failure: None,
    };
    let outcome = pipeline.generate(&requests, &record.settings(), &mut observer);
    observer.progress.clear();
    if let Some(error) = observer.failure {
        return Err(error);
    }
    let timings = outcome?;
    if args.output.json.json { print(&serde_json::to_string(&timings)?) } else { Ok(()) }
}

/// Says which learned words no prompt holds.
fn warn_of_unused_words(checkpoint: &Checkpoint, records: &[GenerationRecord]) {
    let texts = records.iter().flat_map(|record| [Some(&record.request.prompt), record.request.negative.as_ref()]);
    let texts: Vec<String> = texts.flatten().map(|text| text.to_lowercase()).collect();
    for (word, _) in checkpoint.learned_words() {
        if !texts.iter().any(|text| text.contains(&word.to_lowercase())) {
            eprintln!("warning: no prompt holds `{word}`, the word of an embedding");
        }
    }
}

fn load(checkpoint: &Checkpoint, record: &GenerationRecord, device: Device) -> Result<Pipeline> {
    let mut adapters = None;
    if !record.loras.is_empty() {
        let (set, reports) = load_adapters(checkpoint, &record.loras, record.lora_allow_unused)?;
        for (AdapterFile { path, weight }, report) in record.loras.iter().zip(reports) {
            eprintln!("{}: changes {} parameters, times {weight}", path.display(), report.changed.len());
            for word in &report.embeddings {
                let path = path.display();
                eprintln!("note: {path} holds the embedding `{word}` too; --embedding {path} takes it");
            }
            for key in &report.unused {
                eprintln!("warning: {}: `{key}` fits no parameter and is left out", path.display());
            }
        }
        adapters = Some(Arc::new(set));
    }
    Ok(Pipeline::load(checkpoint, &LoadOptions { adapters, ..load_options(record, device) })?)
}

fn load_options(record: &GenerationRecord, device: Device) -> LoadOptions {
    let (precision, tiled) = (record.precision, record.settings.tiled);
    let start_images = record.image.is_some();
    // The process ends after one call, so that nothing is read twice.
    LoadOptions { device, precision, adapters: None, start_images, low_memory: true, tiled }
}

/// The sampler that is asked for; what was passed over or corrected is told.
fn resolve(choice: &SamplerChoice, checkpoint: &Checkpoint) -> Result<SamplerConfig> {
    let found = choice.resolve(checkpoint)?;
    found.notes.iter().for_each(|note| eprintln!("note: {}: {note}", checkpoint.path().display()));
    Ok(found.config)
}

/// Shows how far it is, and writes the images.
struct Writer<'a> {
    records: &'a [GenerationRecord],
    out: &'a Path,
    preview: Option<&'a Path>,
    stop: StopFlag,
    progress: Progress,
    failure: Option<anyhow::Error>,
}

impl Writer<'_> {
    fn write(&self, image: &DrawnImage<'_>) -> Result<()> {
        let record = &self.records[image.index];
        let path = write_next_png(self.out, image.pixels, &record.texts(image.pixels))?;
        print(&path.display().to_string())
    }
}

impl Writer<'_> {
    /// Keeps the first failure, which ends the work: what is written later does not undo it.
    fn note(&mut self, written: Result<()>) {
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
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
        // Of all images; those of a batch that is drawn at once count when they are done.
        let steps = step.progress.steps as u64;
        self.progress.set_total(steps * self.records.len() as u64);
        self.progress.set(steps * step.first as u64 + step.progress.step as u64, &[]);
        if let Some(path) = self.preview {
            let written = write_png(path, &step.preview(0), &[]).map_err(anyhow::Error::from);
            self.note(written);
        }
    }

    fn image(&mut self, image: &DrawnImage<'_>) {
        let written = self.write(image);
        self.note(written);
    }

    fn go_on(&mut self) -> bool {
        self.failure.is_none() && !self.stop.is_set()
    }
}
