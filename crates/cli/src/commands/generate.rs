//! `generate`: images from a checkpoint of Stable Diffusion, each with its settings inside.

use crate::args::{DeviceArgs, JsonArgs, PrecisionArgs, heading, named, seed};
use crate::checkpoint::{OpenArgs, open_hashed};
use crate::commands::drawing::{DrawnFrom, Writer};
use crate::commands::{Usage, check_out, check_output, message, print};
use anyhow::{Context, Result, anyhow};
use burn::tensor::Device;
use calotype_checkpoints::{Checkpoint, Component, EmbeddingFile, Family, OpenOptions};
use calotype_core::StopFlag;
use calotype_core::folders::{Content, Found, NewFolder, content};
use calotype_core::numbers::{count, finite, share};
use calotype_core::system::{format_bytes, memory};
use calotype_diffusion::{Caching, SamplerConfig, SamplerError, SamplerKind, ScheduleError};
use calotype_models::InputError;
use calotype_ops::Precision;
use calotype_pipeline::belonging::Hashes;
use calotype_pipeline::contents::{Contents, changed, contents};
use calotype_pipeline::encoders::EncoderError;
use calotype_pipeline::images::is_preview;
use calotype_pipeline::prompt_syntax::unread::unread;
use calotype_pipeline::{
    AdapterFile, GenerationRecord, LoadOptions, NoiseKind, Pipeline, PipelineError, Preset, PromptSyntax, Recorded,
    RecordedInputs, RecordedRefiner, RecordedRequest, RecordedSettings, Refiner, Request, SamplerChoice, Settings,
    Timings, load_adapters,
};
use calotype_prepare::pixels::PixelArgs;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Prompts; each is drawn --count times.
    #[arg(value_name = "PROMPT", value_parser = prompt)]
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
    #[arg(long, value_name = "PROMPT", value_parser = prompt)]
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
    /// Go on even if an estimate says that there is too little memory.
    #[arg(long)]
    ignore_memory: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Seed of the initial noise [default: 0].
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true)]
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
    /// Share of fresh noise of DDIM and TCD, 0 to 1.
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    eta: Option<f64>,
    #[arg(long, value_name = "NAME", value_parser = Preset::by_name, conflicts_with_all = ["sampler", "karras"], help = preset_help())]
    preset: Option<&'static Preset>,
    /// Timesteps to visit, from noise to image, with commas between them; there are as many steps.
    #[arg(long, value_name = "T,T,…", value_parser = Visits::from_str, conflicts_with = "sigmas")]
    timesteps: Option<Visits>,
    /// Noise levels to visit, and the one after the last step, with commas between them.
    #[arg(long, value_name = "S,S,…", value_parser = Visits::from_str)]
    sigmas: Option<Visits>,
    /// Compute the whole UNet in every Nth step only, and keep what its deep blocks gave in between (DeepCache; Ma et al. 2023):
    /// faster, and another image.
    #[arg(long, value_name = "N", value_parser = count::<usize>)]
    cache_interval: Option<usize>,
    /// Skip connection below which --cache-interval keeps features: 0, the shallowest, leaves out most [default: 0].
    #[arg(long, value_name = "B")]
    cache_branch: Option<usize>,
    /// philox, or torch-cpu: the numbers of diffusers with one generator an image, seeded with the seed plus the image's
    /// number.
    #[arg(long, value_name = "NAME", value_parser = named::<NoiseKind>())]
    noise: Option<NoiseKind>,
    /// Standard normal noise to begin with: tensor `latents`, [images, channels, height, width], of a safetensors file.
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
}

/// Timesteps or noise levels of a command line.
#[derive(Clone, Debug)]
struct Visits(Vec<f64>);

impl FromStr for Visits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split(',').map(|number| finite::<f64>(number).map_err(|_| number));
        let list = numbers.collect::<Result<Vec<f64>, &str>>();
        list.map(Self)
            .map_err(|part| format!("`{part}`: it takes numbers with commas between them, such as 999,749,499,249"))
    }
}

fn preset_help() -> String {
    format!(
        "How a few-step student is sampled (sampler, steps, guidance), as its authors published it: {}; what other options say          holds in their place",
        Preset::names().join(", ")
    )
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
    /// Start image; one whose sides are not those of the images that are drawn is stretched to them.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelArgs,
    /// Share of the start image that is drawn anew, above 0 and at most 1: at least one of the steps [default: 0.8; with a mask 1;
    /// with SDXL's refiner alone 0.3].
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    strength: Option<f64>,
    /// Draw anew only where this image is white; where it is transparent it counts as black. It is stretched to the size of the
    /// images. What is kept is kept as latents, which the autoencoder decodes: its pixels are near the start image's, not the same.
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
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    refiner_start: Option<f64>,
    /// Score of beauty that the refiner is told with the prompt [default: 6].
    #[arg(long, value_name = "X", value_parser = finite::<f32>, allow_negative_numbers = true)]
    aesthetic_score: Option<f32>,
    /// Score of beauty that the refiner is told with the negative prompt [default: 2.5].
    #[arg(long, value_name = "X", value_parser = finite::<f32>, allow_negative_numbers = true)]
    negative_aesthetic_score: Option<f32>,
}

/// Share of the noise's way after which a refiner takes over: the last 200 of 1,000 timesteps are what SDXL's was trained on
/// (Podell et al. 2023, section 2.5).
const REFINER_START: f64 = 0.8;

/// Pixels, as a multiple of those of the usual image, from which a model is likely to draw things several times.
const FAR_LARGER: f64 = 4.0;

/// Images of one command: each is kept as a record from the start.
const MOST_IMAGES: usize = 1_000_000;

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
    /// Say what would be drawn, with what, and end.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// Ends a command whose flags do not fit together.
fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(Usage(message.into()).into())
}

/// A prompt, without the byte-order mark that comes with what is copied out of a file.
fn prompt(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(text.trim_start_matches('\u{feff}').to_owned())
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
        if self.sampling.preset.is_some() {
            (choice.name, choice.preset) = (None, self.sampling.preset);
        }
        set(&mut choice.timesteps, self.sampling.timesteps.as_ref().map(|list| &list.0));
        set(&mut choice.sigmas, self.sampling.sigmas.as_ref().map(|list| &list.0));
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
        self.change_caching(&mut record.settings)?;
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
        if let Some(preset) = sampling.preset {
            (s.steps, s.guidance) = (preset.steps, Some(preset.guidance));
        }
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

    /// Which deep features are kept between steps.
    fn change_caching(&self, settings: &mut RecordedSettings) -> Result<()> {
        let SamplingArgs { cache_interval, cache_branch, .. } = self.sampling;
        if let Some(interval) = cache_interval {
            let branch = settings.caching.map_or(0, |own| own.branch);
            settings.caching = Some(Caching { interval, branch });
        }
        match (&mut settings.caching, cache_branch) {
            (Some(caching), Some(branch)) => caching.branch = branch,
            (None, Some(_)) => return usage("--cache-branch has no effect without --cache-interval N"),
            _ => {}
        }
        Ok(())
    }

    /// Takes the preset of a checkpoint whose own scheduler only few-step students have, where nothing else is asked for.
    fn take_own_preset(
        &self,
        checkpoint: &Checkpoint,
        record: &mut GenerationRecord,
        choice: &mut SamplerChoice,
    ) -> Result<()> {
        let SamplingArgs { steps, guidance, .. } = self.sampling;
        if self.from.is_some() || choice.sampler_name().is_some() {
            return Ok(());
        }
        // What lacks either cannot draw, which is told in better words later.
        let (Ok(unet), Ok(scheduler)) = (checkpoint.component(Component::Unet), checkpoint.scheduler()) else {
            return Ok(());
        };
        let told = unet.config["time_cond_proj_dim"].is_u64();
        let class = scheduler["_class_name"].as_str().unwrap_or_default();
        let Some(preset) = Preset::of_scheduler(class, told) else { return Ok(()) };
        choice.preset = Some(preset);
        let listed = [&choice.timesteps, &choice.sigmas].iter().all(|list| list.is_empty());
        if steps.is_none() && listed {
            record.settings.steps = preset.steps;
        }
        if guidance.is_none() {
            record.settings.guidance = Some(preset.guidance);
        }
        eprintln!("note: {}: its scheduler is {class}, which is that of the preset", record.model.display());
        Ok(())
    }

    /// As many steps as a list of timesteps or noise levels has, unless the command line says another number.
    fn take_listed_steps(&self, settings: &mut RecordedSettings) {
        let listed = settings.sampler.as_ref().and_then(SamplerConfig::listed_steps);
        if let (Some(listed), None) = (listed, self.sampling.steps) {
            settings.steps = listed;
        }
    }

    /// The prompts of the command line and of the file; none only if an image is drawn again.
    fn prompts(&self) -> Result<Vec<String>> {
        let mut prompts: Vec<String> = self.prompts.clone();
        if let Some(path) = &self.texts.prompt_file {
            let text = calotype_core::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            if lines.is_empty() {
                let path = path.display();
                return usage(format!("--prompts {path}: there is no prompt in the file, which has one on each line"));
            }
            let marked = lines.iter().filter(|line| line.trim_start().starts_with('#')).count();
            if marked > 0 {
                let path = path.display();
                eprintln!(
                    "note: {path}: every line is a prompt: those that begin with # are drawn too ({marked} of them)"
                );
            }
            prompts.extend(lines.into_iter().map(str::to_owned));
        }
        self.tell_words();
        if prompts.is_empty() && self.from.is_none() {
            return usage("there is no prompt: give one, or a file of them with --prompts (\"\" is an empty prompt)");
        }
        let images = prompts.len().max(1).checked_mul(self.images.count);
        if images.is_none_or(|images| images > MOST_IMAGES) {
            return usage(format!(
                "--count {}: one command draws at most {MOST_IMAGES} images; give several commands seeds of their own (--seed)",
                self.images.count
            ));
        }
        Ok(prompts)
    }

    /// Says of prompts of one word each that they may have been meant as one.
    fn tell_words(&self) {
        let is_word = |prompt: &String| !prompt.is_empty() && !prompt.contains(char::is_whitespace);
        if self.prompts.len() > 1 && self.prompts.iter().all(is_word) {
            let (count, joined) = (self.prompts.len(), self.prompts.join(" "));
            eprintln!(
                "note: these are {count} prompts of one word each; one prompt of several words is quoted: \"{joined}\""
            );
        }
    }

    /// Refuses an output that cannot become a folder or is that of something else, and a preview in the place of another file,
    /// before anything is read.
    fn check_out(&self) -> Result<()> {
        let out = &self.output.out;
        if let Some(preview) = &self.output.preview {
            check_output("--preview", preview, "a preview", is_preview)?;
        }
        // A preview may lie where the images are to be: a stop leaves it alone there.
        let is_own = |found: &Found| found.content == Content::Images && is_preview(&out.join(&found.name));
        if !content(out).is_some_and(|found| is_own(&found)) {
            check_out("--out", out, &[Content::Drawn])?;
        }
        Ok(())
    }

    /// Says what is about to be drawn, before the first step, which may take long; and refuses what the memory cannot hold.
    fn announce(&self, pipeline: &Pipeline, requests: &[Request], settings: &Settings) -> Result<()> {
        let Some(first) = requests.first() else { return Ok(()) };
        let [height, width] = pipeline.image_size(first, settings)?;
        let usual = pipeline.image_size(&Request::new(""), &Settings::default())?;
        let area = |[height, width]: [usize; 2]| height as f64 * width as f64;
        let times = area([height, width]) / area(usual);
        if times > FAR_LARGER {
            eprintln!(
                "note: {width}x{height} is {times:.0} times the {}x{} pixels that the model was made for: it is likely to repeat \
                 what it draws",
                usual[1], usual[0]
            );
        }
        let needed = self.checked_memory(pipeline, requests, settings)?;
        let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        if let Some(caching) = settings.caching {
            pipeline.check_caching(settings)?;
            let sampler = pipeline.sampler(settings)?;
            let begun = first.start.as_ref().map_or(Ok(0), |_| sampler.first_call(first.strength))?;
            let calls = caching.whole_calls(sampler.timesteps(), begun);
            let whole = calls.iter().filter(|&&whole| whole).count();
            let Caching { interval, branch } = caching;
            eprintln!(
                "cached    {whole} of {} calls compute the whole UNet, the others what is above skip connection {branch} (interval \
                 {interval}): another image than without",
                calls.len()
            );
        }
        eprintln!(
            "generate  {} of {width}x{height} pixels, {} each, about {} of memory",
            counted(requests.len(), "image"),
            counted(settings.steps, "step"),
            format_bytes(needed)
        );
        Ok(())
    }

    /// Bytes that drawing takes, roughly; refuses what needs more than there are.
    fn checked_memory(&self, pipeline: &Pipeline, requests: &[Request], settings: &Settings) -> Result<u64> {
        let needed = pipeline.memory(requests, settings)?;
        // Other devices have memory of their own, which nothing tells.
        let is_checked = self.device.name == "cpu" && !self.images.ignore_memory;
        let lacking = memory().filter(|memory| is_checked && memory.available < needed);
        let (Some(memory), Some(first)) = (lacking, requests.first()) else { return Ok(needed) };
        let [height, width] = pipeline.image_size(first, settings)?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let batches = if requests.len().min(settings.batch) > 1 { " or with a smaller --batch" } else { "" };
        let tiles = if self.images.tiled { "" } else { " or with --tiled, which takes less to decode" };
        usage(format!(
            "{width}x{height} pixels need about {:.1} GiB of memory, and {:.1} GiB of {:.1} GiB are to be had: draw smaller \
             images (--width, --height){batches}{tiles}, or go on all the same with --ignore-memory",
            gib(needed),
            gib(memory.available),
            gib(memory.total)
        ))
    }

    /// One record for each image, in the order of the prompts.
    fn records(&self, prompts: &[String], record: &GenerationRecord) -> Vec<GenerationRecord> {
        if prompts.is_empty() {
            let one = |number: usize| {
                let number = record.request.number.wrapping_add(number as u64);
                GenerationRecord { request: RecordedRequest { number, ..record.request.clone() }, ..record.clone() }
            };
            return (0..self.images.count).map(one).collect();
        }
        let all = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, self.images.count));
        let one = |(number, prompt): (usize, &String)| {
            let negative = record.request.negative.clone();
            let request = RecordedRequest { number: number as u64, prompt: prompt.clone(), negative };
            GenerationRecord { request, ..record.clone() }
        };
        all.enumerate().map(one).collect()
    }

    /// Says what has no effect because nothing is guided; `told`: the network is told its guidance scale instead.
    fn tell_unguided(&self, records: &[GenerationRecord], told: bool) {
        let Some(RecordedSettings { guidance: Some(guidance), guidance_rescale, .. }) =
            records.first().map(|record| &record.settings)
        else {
            return;
        };
        let has_negative =
            |record: &GenerationRecord| record.request.negative.as_ref().is_some_and(|text| !text.is_empty());
        let idle = [
            (records.iter().any(has_negative), "the negative prompt"),
            (*guidance_rescale > 0.0, "--guidance-rescale"),
            (self.sdxl.negative_aesthetic_score.is_some(), "--negative-aesthetic-score"),
        ];
        for (_, what) in idle.into_iter().filter(|(given, _)| *given && (told || *guidance <= 1.0)) {
            match told {
                true => eprintln!(
                    "note: {what} has no effect: this network is told its guidance scale, and draws in one pass"
                ),
                false => {
                    eprintln!("note: {what} has no effect: a guidance of {guidance} is none, which begins above 1")
                }
            }
        }
    }

    /// Refuses scores of beauty that no network is told.
    fn check_scores<'a>(&self, mut networks: impl Iterator<Item = &'a Checkpoint>) -> Result<()> {
        let given = self.sdxl.aesthetic_score.or(self.sdxl.negative_aesthetic_score).is_some();
        match given && !networks.any(|checkpoint| checkpoint.family() == Some(Family::SdxlRefiner)) {
            true => usage(
                "--aesthetic-score and --negative-aesthetic-score are told to Stable Diffusion XL's refiner alone: name one with \
                 --refiner, or leave them out",
            ),
            false => Ok(()),
        }
    }

    /// The refiner, with its checkpoint and the sampler that it draws with; none if there is none.
    fn refiner(
        &self,
        record: &mut GenerationRecord,
        choice: &SamplerChoice,
    ) -> Result<Option<(Checkpoint, Option<Hashes>)>> {
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
        let (checkpoint, hashes) = open_hashed(&refiner.model, &OpenOptions::default())?;
        let choice = choice.of_refiner();
        if refiner.sampler.is_none() || choice != SamplerChoice::default() {
            refiner.sampler = Some(resolve(&choice, &checkpoint)?);
        }
        Ok(Some((checkpoint, hashes)))
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

/// The checkpoints that a command draws with, and the hashes of their networks where they are known.
struct Opened {
    model: (Checkpoint, Option<Hashes>),
    refiner: Option<(Checkpoint, Option<Hashes>)>,
}

impl Opened {
    /// What images of this record are drawn from.
    fn contents(&self, record: &GenerationRecord) -> Result<Contents> {
        let (model, hashes) = &self.model;
        let refiner = self.refiner.as_ref().map(|(refiner, hashes)| (refiner, hashes.as_ref()));
        Ok(contents(record, (model, hashes.as_ref()), refiner)?)
    }
}

/// Draws images from a checkpoint.
pub(crate) fn generate_command(args: &GenerateArgs) -> Result<()> {
    generate(args).map_err(with_flag)
}

/// An error with the flag at fault in front, where the library knows it as a setting.
fn with_flag(error: anyhow::Error) -> anyhow::Error {
    let flag = match error.downcast_ref() {
        Some(PipelineError::Sampler(problem)) => match problem {
            SamplerError::Schedule(ScheduleError::Steps { .. })
            | SamplerError::FewSteps { .. }
            | SamplerError::ManySteps { .. } => "--steps",
            SamplerError::Strength { .. } => "--strength",
            SamplerError::Handover { .. } => "--refiner-start",
            _ => return error,
        },
        Some(PipelineError::Encoder(problem)) => match &**problem {
            EncoderError::Input { source: InputError::Skip { .. }, .. } => "--clip-skip",
            _ => return error,
        },
        _ => return error,
    };
    Usage(format!("{flag}: {}", message(&error))).into()
}

fn generate(args: &GenerateArgs) -> Result<()> {
    let device = args.device.open()?;
    let (mut record, mut choice) = args.record(&device)?;
    let prompts = args.prompts()?;
    args.check_out()?;
    let (checkpoint, hashes) = open_hashed(&record.model, &record.opened)?;
    args.take_own_preset(&checkpoint, &mut record, &mut choice)?;
    if let Some(preset) = choice.preset {
        eprintln!("preset    {preset}");
    }
    record.settings.sampler = Some(match (choice.sampler_name(), record.settings.sampler.take()) {
        (None, Some(own)) => choice.changed(own, args.names_checkpoint().then_some(&checkpoint))?,
        _ => resolve(&choice, &checkpoint)?,
    });
    args.take_listed_steps(&mut record.settings);
    warn_of_unused_words(&checkpoint, &args.records(&prompts, &record));
    let alone = checkpoint.family() == Some(Family::SdxlRefiner) && args.start.strength.is_none();
    if alone && args.from.is_none() {
        record.settings.strength = REFINER_STRENGTH;
    }
    let refiner = args.refiner(&mut record, &choice)?;
    let opened = Opened { model: (checkpoint, hashes), refiner };
    args.check_scores(std::iter::once(&opened.model).chain(&opened.refiner).map(|(checkpoint, _)| checkpoint))?;
    if args.output.dry_run {
        return draw(args, (record, &prompts), &opened, device, DrawnFrom::Known(Contents::default()));
    }
    if let (Some(image), false) = (&args.from, record.contents.is_empty()) {
        // What is told of before anything is drawn has to be known before.
        let now = opened.contents(&record)?;
        tell_changes(image, &changed(&record.contents, &now));
        return draw(args, (record, &prompts), &opened, device, DrawnFrom::Known(now));
    }
    let of = record.clone();
    // One thread reads the weights, for the others draw.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().context("cannot start a thread")?;
    std::thread::scope(|scope| {
        let found = DrawnFrom::Sought(scope.spawn(|| one.install(|| opened.contents(&of))));
        draw(args, (record, &prompts), &opened, device, found)
    })
}

/// Draws the images of a record.
fn draw(
    args: &GenerateArgs,
    (mut record, prompts): (GenerationRecord, &[String]),
    opened: &Opened,
    device: Device,
    drawn_from: DrawnFrom<'_>,
) -> Result<()> {
    let mut pipeline = load(&opened.model.0, &record, device.clone())?;
    if record.image.is_some() && record.settings.width.and(record.settings.height).is_some() {
        // An image to begin with would be brought to this size.
        args.checked_memory(&pipeline, &[record.request(&RecordedInputs::default())?], &record.settings())?;
    }
    let inputs = record.read_inputs(&device)?;
    inputs.notes.iter().for_each(|note| eprintln!("{note}"));
    let is_told_sizes = pipeline.unet().config().added.is_some();
    if !is_told_sizes && (args.sdxl.original_size.is_some() || args.sdxl.crop.is_some()) {
        return usage("--original-size and --crop are for Stable Diffusion XL: this checkpoint is told no sizes");
    }
    if let (Some((checkpoint, _)), Some(RecordedRefiner { start, sampler, .. })) =
        (&opened.refiner, record.refiner.clone())
    {
        let second = Pipeline::load(checkpoint, &load_options(&record, device))?;
        pipeline = pipeline.with_refiner(Refiner { pipeline: second, start, sampler });
    }
    pipeline.defaults().notes.iter().for_each(|note| eprintln!("note: {}: {note}", record.model.display()));
    // What is used is what the image says of itself.
    record.settings.guidance.get_or_insert(pipeline.defaults().guidance);
    let records = args.records(prompts, &record);
    warn_of_unread_signs(&records);
    args.tell_unguided(&records, pipeline.unet().config().guidance_features.is_some());
    let requests = records.iter().map(|record| record.request(&inputs)).collect::<Result<Vec<_>, _>>()?;
    let settings = record.settings();
    let stop = StopFlag::install_mute().context("cannot listen for signals")?;
    // Before there is a folder for what cannot be drawn.
    pipeline.sampler(&settings)?;
    pipeline.check_caching(&settings)?;
    args.announce(&pipeline, &requests, &settings)?;
    if args.output.dry_run {
        return tell_plan(&pipeline, &record, args.output.json.json);
    }
    let out = &args.output.out;
    let folder = NewFolder::make(out).with_context(|| format!("cannot create {}", out.display()))?;
    let json = args.output.json.json;
    let mut writer = Writer::new((&records, drawn_from), out, args.output.preview.as_deref(), !json, stop);
    let outcome = pipeline.generate(&requests, &settings, &mut writer);
    let images = writer.end();
    if outcome.is_err() || images.is_err() {
        // Nothing is in it if the first image could not be drawn.
        folder.take_back::<&str>([]);
    }
    let images = images?;
    let timings = outcome?;
    if json { print(&serde_json::to_string(&Drawn { images, timings })?) } else { Ok(()) }
}

/// What `--dry-run` prints: the settings that an image would have, and the timesteps that the sampler would visit.
#[derive(Serialize)]
struct Plan<'a> {
    model: &'a Path,
    settings: &'a RecordedSettings,
    precision: Precision,
    timesteps: Vec<f64>,
}

/// Tells what would be drawn.
fn tell_plan(pipeline: &Pipeline, record: &GenerationRecord, json: bool) -> Result<()> {
    let timesteps = pipeline.sampler(&record.settings())?.timesteps().to_vec();
    let plan = Plan { model: &record.model, settings: &record.settings, precision: record.precision, timesteps };
    let text = if json { serde_json::to_string(&plan)? } else { serde_json::to_string_pretty(&plan)? };
    print(&text)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Drawn {
    images: Vec<PathBuf>,
    #[serde(flatten)]
    timings: Timings,
}

/// Says what is not as it was when an image was drawn that is to be drawn again.
fn tell_changes(image: &Path, changed: &[&str]) {
    if !changed.is_empty() {
        let (image, changed) = (image.display(), changed.join(", "));
        eprintln!("note: {image}: not the same as when it was drawn: {changed}; what is drawn is another image");
    }
}

/// Says what of the prompts other programs would read as more than text.
fn warn_of_unread_signs(records: &[GenerationRecord]) {
    let mut told = BTreeSet::new();
    for record in records {
        let RecordedRequest { prompt, negative, .. } = &record.request;
        for text in std::iter::once(prompt).chain(negative) {
            for sentence in unread(text, record.settings.syntax) {
                if told.insert(sentence.clone()) {
                    eprintln!("note: prompt `{text}`: {sentence}");
                }
            }
        }
    }
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
