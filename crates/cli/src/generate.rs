//! `generate --model`: pictures from a checkpoint of Stable Diffusion, each with its settings inside.

use crate::checkpoint::{OpenArgs, open};
use crate::commands::{Usage, print};
use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_data::image::text::{
    PARAMETERS_KEYWORD, Parameters, PngText, SETTINGS_KEYWORD, add_png_text, read_png_text,
};
use calotype_data::image::{Filter, PngEffort, RgbImage};
use calotype_diffusion::noise::NoiseKind;
use calotype_diffusion::samplers::{Curve, SamplerConfig, SamplerKind};
use calotype_diffusion::stable_diffusion::{Event, Painter, Request, Settings, Start, generate, preview, sampler_of};
use calotype_train::StopFlag;
use calotype_weights::TensorFile;
use calotype_weights::TensorSource;
use calotype_weights::durable::replace_file;
use calotype_weights::layout::{Checkpoint, Component, OpenOptions};
use calotype_weights::lora::{self, LoraOptions, LoraSet};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// A checkpoint of Stable Diffusion 1, 2 or XL, in any layout.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// More prompts, one a line.
    #[arg(long = "prompts", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Draw a picture of this command again, or with what is said otherwise.
    #[arg(long, value_name = "PNG")]
    pub(crate) from: Option<PathBuf>,
    /// What the pictures should not show.
    #[arg(long, value_name = "PROMPT")]
    negative: Option<String>,
    /// Pictures of each prompt; picture i of a command has the seed's stream number i.
    #[arg(long, default_value_t = 1, value_name = "N")]
    count: usize,
    /// Pictures that are drawn at once; they do not depend on it [default: 1].
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Width in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS")]
    width: Option<usize>,
    /// Height in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS")]
    height: Option<usize>,
    /// Sampler, by our name or diffusers' (ddim, ddpm, pndm, dpm_multistep, dpm_singlestep, euler, euler_ancestral, heun,
    /// unipc, lcm) [default: the checkpoint's].
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Spacing of the noise levels after Karras et al. 2022, where the sampler has one.
    #[arg(long)]
    karras: bool,
    /// Share of fresh noise of DDIM, 0 to 1.
    #[arg(long, value_name = "X")]
    eta: Option<f64>,
    /// Share of the guidance rescale (Lin et al. 2024), 0 to 1.
    #[arg(long, value_name = "X")]
    guidance_rescale: Option<f64>,
    /// Begin with this picture (PNG or JPEG).
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// How much of the picture to begin with is drawn anew, 0 to 1 [default: 0.8; with a mask 1].
    #[arg(long, value_name = "X")]
    strength: Option<f64>,
    /// Draw anew only where this picture is white.
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Standard normal noise to begin with: tensor `latents`, [pictures, channels, height, width], of a safetensors file.
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// philox, or torch-cpu: the numbers of diffusers with one generator a picture, seeded with the seed plus the picture's
    /// number.
    #[arg(long, value_name = "NAME", value_parser = noise_kind)]
    noise: Option<NoiseKind>,
    /// f32 or bf16 [default: bf16 where the processor multiplies it].
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16"])]
    precision: Option<String>,
    /// A LoRA (kohya, PEFT, diffusers), with its weight if that is not 1; may be given several times.
    #[arg(long, value_name = "FILE[=WEIGHT]")]
    lora: Vec<String>,
    /// Go on with keys of a LoRA that fit no parameter.
    #[arg(long)]
    lora_allow_unused: bool,
    /// Layers of the text encoder to leave out.
    #[arg(long, value_name = "N")]
    clip_skip: Option<usize>,
    /// Encode prompts over 75 tokens in several rows instead of cutting them.
    #[arg(long)]
    long_prompts: bool,
    /// Decode in tiles: less memory for large pictures.
    #[arg(long)]
    tiled: bool,
    /// SDXL: size that the picture is to look as if it had had [default: its own].
    #[arg(long, value_name = "HEIGHTxWIDTH", value_parser = pair)]
    original_size: Option<[usize; 2]>,
    /// SDXL: upper left corner of the crop that it is to look like.
    #[arg(long, value_name = "TOPxLEFT", value_parser = pair)]
    crop: Option<[usize; 2]>,
    /// After every step write what the picture looks like so far, roughly and small.
    #[arg(long, value_name = "PNG")]
    preview: Option<PathBuf>,
    /// Print the times of the stages as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// What the old and the new way to draw share.
pub(crate) struct Common<'a> {
    pub(crate) prompts: &'a [String],
    pub(crate) out: &'a Path,
    pub(crate) seed: Option<u64>,
    pub(crate) steps: Option<usize>,
    pub(crate) guidance: Option<f32>,
    pub(crate) device: &'a str,
}

/// Stopped on request; the pictures that were done are there.
#[derive(Debug, thiserror::Error)]
#[error("stopped after {done} of {all} pictures")]
pub(crate) struct Halted {
    done: usize,
    all: usize,
}

/// Ends a command whose flags do not fit together.
fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(Usage(message.into()).into())
}

fn noise_kind(name: &str) -> Result<NoiseKind> {
    match name {
        "philox" => Ok(NoiseKind::Philox),
        "torch-cpu" => Ok(NoiseKind::TorchCpu),
        _ => Err(anyhow!("`{name}` is no generator; known: philox, torch-cpu")),
    }
}

fn pair(text: &str) -> Result<[usize; 2]> {
    let parts = text.split_once('x').and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
    parts.ok_or_else(|| anyhow!("`{text}` is not like 1024x768"))
}

/// Everything that makes one picture what it is; stands in the picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Order {
    /// The program's version.
    version: String,
    model: PathBuf,
    /// What was said about the checkpoint.
    #[serde(default)]
    opened: OpenOptions,
    request: Request,
    settings: Settings,
    /// `f32` or `bf16`.
    precision: String,
    #[serde(default)]
    loras: Vec<Adapter>,
    #[serde(default)]
    lora_allow_unused: bool,
    #[serde(default)]
    image: Option<PathBuf>,
    #[serde(default)]
    mask: Option<PathBuf>,
    #[serde(default)]
    latents: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Adapter {
    path: PathBuf,
    weight: f32,
}

impl Order {
    /// The order of a picture that this command made.
    fn of_picture(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        let texts = read_png_text(&name, &bytes)?;
        let text = texts.iter().find(|text| text.keyword == SETTINGS_KEYWORD);
        let text = text.ok_or_else(|| anyhow!("{name} holds no settings of this command"))?;
        serde_json::from_str(&text.text).with_context(|| format!("{name}: its settings are damaged"))
    }

    /// From the command line alone.
    fn fresh(args: &ModelArgs) -> Result<Self> {
        let Some(model) = args.model.clone() else { return usage("--model or --from is needed") };
        Ok(Self {
            version: String::new(),
            model,
            opened: OpenOptions::default(),
            request: Request { number: 0, prompt: String::new(), negative: None },
            settings: Settings::default(),
            precision: if calotype_kernels::multiplies_bf16() { "bf16" } else { "f32" }.into(),
            loras: Vec::new(),
            lora_allow_unused: false,
            image: None,
            mask: None,
            latents: None,
        })
    }

    /// What the command line says takes the place of what was there.
    fn change(&mut self, args: &ModelArgs, common: &Common) -> Result<()> {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(from) = from {
                *to = from.clone();
            }
        }
        fn set_some<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
            if from.is_some() {
                to.clone_from(from);
            }
        }
        self.version = env!("CARGO_PKG_VERSION").into();
        set(&mut self.model, &args.model);
        let open = args.open.options();
        let said = open.ema || open.skip_unknown_objects;
        if said || open.family.is_some() || open.prediction.is_some() || open.variant.is_some() {
            self.opened = open;
        }
        set(&mut self.precision, &args.precision);
        if !args.lora.is_empty() {
            self.loras = args.lora.iter().map(|text| adapter(text)).collect::<Result<_>>()?;
        }
        self.lora_allow_unused |= args.lora_allow_unused;
        set_some(&mut self.image, &args.image);
        set_some(&mut self.mask, &args.mask);
        set_some(&mut self.latents, &args.latents);
        set_some(&mut self.request.negative, &args.negative);
        let s = &mut self.settings;
        set_some(&mut s.width, &args.width);
        set_some(&mut s.height, &args.height);
        set(&mut s.steps, &common.steps);
        set_some(&mut s.guidance, &common.guidance);
        set(&mut s.guidance_rescale, &args.guidance_rescale);
        set(&mut s.seed, &common.seed);
        set(&mut s.noise, &args.noise);
        set(&mut s.clip_skip, &args.clip_skip);
        s.long_prompts |= args.long_prompts;
        set(&mut s.batch, &args.batch);
        s.tiled |= args.tiled;
        set_some(&mut s.original_size, &args.original_size);
        set(&mut s.crop, &args.crop);
        let usual = if args.mask.is_some() { Some(1.0) } else { None };
        set(&mut s.strength, &args.strength.or(usual));
        if self.mask.is_some() && self.image.is_none() {
            return usage("--mask says where a picture is drawn anew: give the picture with --image");
        }
        Ok(())
    }

    /// The texts that go into a picture.
    fn texts(&self, pixels: (usize, usize)) -> Result<Vec<PngText>> {
        let (s, negative) = (&self.settings, self.request.negative.as_deref().unwrap_or_default());
        let sampler = s.sampler.as_ref().map_or("", |sampler| sampler.kind.name());
        let guidance = f64::from(s.guidance.unwrap_or_default());
        let seed = s.seed.wrapping_add(self.request.number);
        let parameters = Parameters::new((&self.request.prompt, negative), s.steps, sampler, guidance, seed, pixels);
        let text = |keyword: &str, text| PngText { keyword: keyword.into(), text };
        Ok(vec![text(SETTINGS_KEYWORD, serde_json::to_string(self)?), text(PARAMETERS_KEYWORD, parameters.to_string())])
    }
}

/// `FILE` or `FILE=WEIGHT`.
fn adapter(text: &str) -> Result<Adapter> {
    let Some((path, weight)) = text.rsplit_once('=') else {
        return Ok(Adapter { path: text.into(), weight: 1.0 });
    };
    match weight.parse() {
        Ok(weight) => Ok(Adapter { path: path.into(), weight }),
        Err(_) => usage(format!("--lora {text}: `{weight}` is no number")),
    }
}

/// Draws pictures from a checkpoint.
pub(crate) fn generate_command(args: &ModelArgs, common: &Common) -> Result<()> {
    let mut order = match &args.from {
        Some(path) => Order::of_picture(path)?,
        None => Order::fresh(args)?,
    };
    order.change(args, common)?;
    let requests = requests(args, common, &order)?;
    let device = calotype_train::device::device(common.device)?;
    let checkpoint = open(&order.model, &order.opened)?;
    if order.settings.sampler.is_none() || args.sampler.is_some() || args.karras || args.eta.is_some() {
        order.settings.sampler = Some(chosen_sampler(&checkpoint, args)?);
    }
    let adapters = adapters(&checkpoint, &order)?;
    let start = start(&order, &device)?;
    let painter = Painter {
        checkpoint: &checkpoint,
        device: &device,
        dtype: if order.precision == "f32" { DType::F32 } else { DType::BF16 },
        adapters: adapters.as_ref(),
        latents: order.latents.as_deref().map(|path| latents(path, &device)).transpose()?,
    };
    std::fs::create_dir_all(common.out).with_context(|| format!("cannot create {}", common.out.display()))?;
    draw(&painter, &order, &requests, start.as_ref(), args, common)
}

/// One request for each picture, in the order of the prompts.
fn requests(args: &ModelArgs, common: &Common, order: &Order) -> Result<Vec<Request>> {
    let mut prompts: Vec<String> = common.prompts.to_vec();
    if let Some(path) = &args.prompt_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        prompts.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    if prompts.is_empty() {
        match args.from {
            Some(_) => return Ok(vec![order.request.clone()]),
            None => {
                return usage(
                    "there is no prompt: give one, or a file of them with --prompts (\"\" is an empty prompt)",
                );
            }
        }
    }
    let all = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, args.count));
    let request = |(number, prompt): (usize, &String)| Request {
        number: number as u64,
        prompt: prompt.clone(),
        negative: order.request.negative.clone(),
    };
    Ok(all.enumerate().map(request).collect())
}

/// The checkpoint's sampler with what the command line says.
fn chosen_sampler(checkpoint: &Checkpoint, args: &ModelArgs) -> Result<SamplerConfig> {
    let mut sampler = sampler_of(checkpoint, args.sampler.as_deref())?;
    let name = sampler.kind.name();
    if args.karras {
        let curve = match &mut sampler.kind {
            SamplerKind::DpmMultistep(s) => Some(&mut s.sigmas.curve),
            SamplerKind::DpmSinglestep(s) => Some(&mut s.sigmas.curve),
            SamplerKind::Euler(s) => Some(&mut s.sigmas.curve),
            SamplerKind::Heun(s) => Some(&mut s.sigmas.curve),
            SamplerKind::UniPc(s) => Some(&mut s.sigmas.curve),
            _ => None,
        };
        match curve {
            Some(curve) => *curve = Curve::Karras,
            None => return usage(format!("--karras: the sampler {name} has no such spacing")),
        }
    }
    if let Some(eta) = args.eta {
        match &mut sampler.kind {
            SamplerKind::Ddim(ddim) => ddim.eta = eta,
            _ => return usage(format!("--eta belongs to the sampler ddim; this is {name}")),
        }
    }
    Ok(sampler)
}

fn adapters(checkpoint: &Checkpoint, order: &Order) -> Result<Option<LoraSet>> {
    if order.loras.is_empty() {
        return Ok(None);
    }
    let parts = [
        (Component::Unet, lora::Component::Unet),
        (Component::TextEncoder, lora::Component::TextEncoder),
        (Component::TextEncoder2, lora::Component::TextEncoder2),
    ];
    let held = checkpoint.components();
    let mut model = Vec::new();
    for (component, name) in parts.into_iter().filter(|(component, _)| held.contains(component)) {
        model.push((name, checkpoint.component(component)?.entries()));
    }
    let mut set = LoraSet::new(&model);
    let options = LoraOptions { allow_unused: order.lora_allow_unused, ..LoraOptions::default() };
    for Adapter { path, weight } in &order.loras {
        let report = set.add_path(path, *weight, &options)?;
        let changed = report.changed.len();
        eprintln!("{}: changes {changed} parameters, times {weight}", path.display());
        for key in &report.unused {
            eprintln!("warning: {}: `{key}` fits no parameter and is left out", path.display());
        }
    }
    Ok(Some(set))
}

fn read_picture(path: &Path) -> Result<RgbImage> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
    Ok(RgbImage::decode(&name, &bytes)?)
}

/// The picture to begin with and its mask, in the size to draw.
fn start(order: &Order, device: &Device) -> Result<Option<Start>> {
    const MULTIPLE: usize = 8;
    let Some(path) = &order.image else { return Ok(None) };
    let picture = read_picture(path)?;
    let side = |given: Option<usize>, own: usize| given.unwrap_or(own / MULTIPLE * MULTIPLE);
    let width = side(order.settings.width, picture.width());
    let height = side(order.settings.height, picture.height());
    if width == 0 || height == 0 {
        bail!("{}: a picture of {}x{} pixels is too small", path.display(), picture.width(), picture.height());
    }
    let fitted = |picture: RgbImage, filter| -> Result<RgbImage> {
        let fits = (picture.width(), picture.height()) == (width, height);
        if fits { Ok(picture) } else { Ok(picture.resize(width, height, filter)?) }
    };
    let pixels = fitted(picture, Filter::Lanczos3)?.to_f32_hwc(-1.0, 1.0);
    let picture = Tensor::from_data(TensorData::new(pixels, [1, height, width, 3]), device);
    let mask = order.mask.as_deref().map(|path| -> Result<Tensor<4>> {
        let mask = fitted(read_picture(path)?, Filter::Lanczos3)?;
        let white = mask.data().chunks_exact(3).map(|p| f32::from(luma(p) >= 128));
        Ok(Tensor::from_data(TensorData::new(white.collect::<Vec<_>>(), [1, height, width, 1]), device))
    });
    Ok(Some(Start { picture, mask: mask.transpose()? }))
}

/// Brightness as Pillow's `convert("L")` computes it (ITU-R 601-2).
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}

fn latents(path: &Path, device: &Device) -> Result<Tensor<4>> {
    let file = TensorFile::open(path)?;
    let view = file.get("latents")?;
    let shape: [usize; 4] = view.shape().try_into().map_err(|_| {
        anyhow!(
            "{}: `latents` has shape {:?}; [pictures, channels, height, width] is needed",
            path.display(),
            view.shape()
        )
    })?;
    Ok(Tensor::<4>::from_data(TensorData::new(view.to_f32_vec_finite()?, shape), device).permute([0, 2, 3, 1]))
}

fn draw(
    painter: &Painter,
    order: &Order,
    requests: &[Request],
    start: Option<&Start>,
    args: &ModelArgs,
    common: &Common,
) -> Result<()> {
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed} (left: {eta})")?;
    let bar = ProgressBar::new(0).with_style(style);
    let (mut failure, mut done) = (None, 0);
    let mut hear = |event: Event<'_>| {
        let outcome = match event {
            Event::Overlong(cut) => {
                eprintln!(
                    "warning: prompt `{}`: its last {} tokens are not drawn (`{}`); --long-prompts keeps them",
                    cut.prompt, cut.tokens, cut.lost
                );
                Ok(())
            }
            Event::Step { requests: batch, progress } => {
                bar.set_length(progress.steps as u64);
                bar.set_position(progress.step as u64);
                bar.set_message(format!("picture {} of {}", batch[0].number + 1, requests.len()));
                args.preview.as_deref().map_or(Ok(()), |path| {
                    let latent = progress.clean.clone().narrow(0, 0, 1);
                    write_picture(path, preview(latent, painter.checkpoint.family()), None)
                })
            }
            Event::Picture { request, pixels } => {
                done += 1;
                let path = common.out.join(format!("{:05}.png", request.number));
                let order = Order { request: request.clone(), ..order.clone() };
                write_picture(&path, pixels.clone(), Some(&order)).and_then(|()| print(&path.display().to_string()))
            }
        };
        if let Err(error) = outcome {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let outcome = generate(painter, requests, &order.settings, start, &mut hear);
    bar.finish_and_clear();
    if let Some(error) = failure {
        return Err(error);
    }
    if stop.is_set() && done < requests.len() {
        return Err(Halted { done, all: requests.len() }.into());
    }
    let timings = outcome?;
    if args.json { print(&serde_json::to_string(&timings)?) } else { Ok(()) }
}

/// Writes a picture, `[height, width, 3]` in `0..1`, with its settings inside.
fn write_picture(path: &Path, pixels: Tensor<3>, order: Option<&Order>) -> Result<()> {
    let [height, width, _] = pixels.dims();
    let values: Vec<f32> = pixels.into_data().iter::<f32>().collect();
    let mut png = RgbImage::from_f32_hwc(width, height, &values, 0.0, 1.0)?.encode_png(PngEffort::Default)?;
    if let Some(order) = order {
        png = add_png_text(&png, &order.texts((width, height))?)?;
    }
    replace_file(path, |file| file.write_all(&png)).with_context(|| format!("cannot write {}", path.display()))
}
