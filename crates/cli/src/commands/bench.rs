//! `bench`: speed of kernels, networks, training, loader, download, and of drawing images.

use crate::args::{JsonArgs, dtype, heading, named};
use crate::commands::{Usage, print};
use anyhow::Result;
use calotype_bench::{
    ClipShape, Family, FeatureShape, FeaturesBench, GenerateBench, KernelRow, Microbatch, Mode, NetworkPrecision,
    Profile, TrainBench, UNetBench, VisionBench, VisionNetwork, VitShape, WINDOW, run_features, run_generate,
    run_kernels, run_train, run_unet, run_vision,
};
use calotype_core::numbers::count;
use calotype_data::Control;
use calotype_ops::Precision;
use calotype_pipeline::random_checkpoint::RandomFamily;
use calotype_prepare::bench::{LoaderBench, bench_loader};
use calotype_prepare::download::bench::bench_download;
use calotype_weights::Dtype;
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use std::fmt::Display;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Every CPU kernel in the shapes of the published networks: time, GFLOP/s or GB/s, share of the peak.
    Kernels(BenchKernelsArgs),
    /// A UNet with random weights: its forward pass, or a training step with AdamW.
    Unet(BenchUnetArgs),
    /// A vision transformer with random weights: its forward pass, or a training step with AdamW.
    Vit(BenchVitArgs),
    /// CLIP with random weights: its image tower's forward pass, or a training step of both towers with AdamW.
    Clip(BenchClipArgs),
    /// A network with random weights that images are judged by: features of images a second.
    Features(BenchFeaturesArgs),
    /// Whole training steps as MosaicML's diffusion-benchmark times them, and what Stable Diffusion 2's schedule would cost.
    Train(BenchTrainArgs),
    /// Drawing a batch of images, stage by stage: loading, prompts, steps, decoding, with the memory of each.
    Generate(BenchGenerateArgs),
    /// The loader: JPEG shards to batches of resized, cropped and mirrored images.
    Data(LoaderBench),
    /// The download stage against a server in the same process.
    Download(BenchDownloadArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchKernelsArgs {
    /// Only operations whose line (operation, pass, shape, precision) contains this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only this precision [default: f32 and bf16].
    #[arg(long, value_name = "TYPE", value_parser = named::<Precision>())]
    precision: Option<Precision>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchDownloadArgs {
    /// Number of images to download.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = count::<usize>)]
    images: usize,
    /// Side of the images in pixels.
    #[arg(long, default_value_t = 256, value_name = "PIXELS", value_parser = count::<usize>)]
    pixels: usize,
    /// Folder for the downloaded images, which must not exist yet.
    #[arg(long, default_value = "runs/bench-download", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
    /// Settings of the stage, as `calotype data download --help` lists them, after `--` [default: --resize-mode=no].
    #[arg(last = true, value_name = "SETTING")]
    settings: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchUnetArgs {
    /// Shape of the UNet.
    #[arg(long, default_value = "sd2", value_name = "NAME", value_parser = named::<Family>())]
    family: Family,
    /// Side of the images in pixels; latents have an eighth of it.
    #[arg(long, default_value_t = 512, value_name = "PIXELS", value_parser = count::<usize>)]
    resolution: usize,
    /// Images in a batch.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count::<usize>)]
    batch: usize,
    /// forward (no gradients), or train (forward, mean squared error, backward, AdamW).
    #[arg(long, default_value = "forward", value_name = "NAME", value_parser = named::<Mode>())]
    mode: Mode,
    /// Precision of activations; weights that are trained and their optimizer are f32. int8: layers in 8 bits, for forward.
    #[arg(long, default_value = "bf16", value_name = "TYPE", value_parser = named::<NetworkPrecision>(), help_heading = heading::MACHINE)]
    precision: NetworkPrecision,
    /// Number of repetitions; the median of the last half is printed.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = count::<usize>)]
    iterations: usize,
    /// Train with less memory: keep the inputs of the blocks only and compute them a second time.
    #[arg(long, visible_alias = "checkpoint-blocks")]
    recompute_blocks: bool,
    /// Train with the least memory: step each parameter as soon as its gradient is complete, and pack no weights.
    #[arg(long)]
    optimizer_in_backward: bool,
    /// Print how much of the time each operation took, by pass and shape.
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchVitArgs {
    /// Size of the network.
    #[arg(long, default_value = "b16", value_name = "NAME", value_parser = named::<VitShape>())]
    model: VitShape,
    #[command(flatten)]
    common: BenchVisionArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchClipArgs {
    /// Size of the network, by that of its image tower.
    #[arg(long, default_value = "b32", value_name = "NAME", value_parser = named::<ClipShape>())]
    model: ClipShape,
    #[command(flatten)]
    common: BenchVisionArgs,
}

#[derive(Clone, Copy, Debug, Args)]
struct BenchVisionArgs {
    /// Images in a batch; CLIP is trained on as many captions.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count::<usize>)]
    batch: usize,
    /// forward (no gradients), or train (forward, loss, backward, AdamW).
    #[arg(long, default_value = "forward", value_name = "NAME", value_parser = named::<Mode>())]
    mode: Mode,
    /// Precision of activations, and without gradients of weights; weights that are trained and their optimizer are f32.
    #[arg(long, default_value = "bf16", value_name = "TYPE", value_parser = named::<Precision>(), help_heading = heading::MACHINE)]
    precision: Precision,
    /// Number of repetitions; the median of the last half is printed.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = count::<usize>)]
    iterations: usize,
    /// Print how much of the time each operation took, by pass and shape.
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchFeaturesArgs {
    /// The network.
    #[arg(long, default_value = "inception", value_name = "NAME", value_parser = named::<FeatureShape>())]
    network: FeatureShape,
    /// Images in a batch.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = count::<usize>)]
    batch: usize,
    /// Precision of activations; figures that are compared with published ones have Inception's in f32.
    #[arg(long, default_value = "bf16", value_name = "TYPE", value_parser = named::<Precision>(), help_heading = heading::MACHINE)]
    precision: Precision,
    /// Number of repetitions; the median of the last half is printed.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = count::<usize>)]
    iterations: usize,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("data").required(true).args(["remote", "use_synth_data"]))]
pub(crate) struct BenchTrainArgs {
    /// Shape of UNet, autoencoder and text encoder, whose weights are random.
    #[arg(long, default_value = "sd2", value_name = "NAME", value_parser = named::<Family>())]
    family: Family,
    /// Images of a step.
    #[arg(long, alias = "batch_size", default_value_t = 2048, value_name = "N", value_parser = count::<usize>)]
    batch_size: usize,
    /// Side of the images in pixels.
    #[arg(long, alias = "image_size", default_value_t = 512, value_name = "PIXELS", value_parser = count::<usize>)]
    image_size: usize,
    /// Samples with an image and a caption (part caption or txt): a folder of MDS shards, or any other source of training data.
    #[arg(long, value_name = "SOURCE")]
    remote: Option<String>,
    /// Made-up images and captions instead.
    #[arg(long, alias = "use_synth_data")]
    use_synth_data: bool,
    /// Keep a moving average of the weights, with a half-life of 1000 batches.
    #[arg(long, alias = "use_ema")]
    use_ema: bool,
    /// Images that go through the networks at once, or auto: as many as the memory budget allows, by measuring.
    #[arg(
        long,
        visible_alias = "microbatch",
        alias = "device_train_microbatch_size",
        default_value = "auto",
        value_name = "N"
    )]
    device_train_microbatch_size: Microbatch,
    /// Memory that auto may take [default: 90 % of what is free].
    #[arg(long, value_name = "GIB")]
    memory_budget: Option<f64>,
    /// Batches in all [default: one more than --window].
    #[arg(long, value_name = "N", value_parser = count::<usize>)]
    batches: Option<usize>,
    /// Batches at the end that the throughput is taken over.
    #[arg(long, default_value_t = WINDOW, value_name = "N", value_parser = count::<usize>)]
    window: usize,
    /// Price of a device-hour, for the cost of the schedule (the published table's is about 2 dollars).
    #[arg(long, value_name = "DOLLARS")]
    price: Option<f64>,
    /// Precision of activations; auto is bf16 where the processor multiplies it.
    #[arg(long, default_value = "auto", value_name = "TYPE", value_parser = named::<Precision>(), help_heading = heading::MACHINE)]
    precision: Precision,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchGenerateArgs {
    /// Shape of a checkpoint of random weights, written to the folder for temporary files.
    #[arg(long, default_value = "sd2", value_name = "NAME", value_parser = named::<RandomFamily>())]
    family: RandomFamily,
    /// A checkpoint of Stable Diffusion instead, in any layout.
    #[arg(long, value_name = "PATH", conflicts_with = "family")]
    model: Option<PathBuf>,
    /// Side of the images in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS", value_parser = count::<usize>)]
    resolution: Option<usize>,
    /// Sampling steps; the first is reported on its own.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = count::<usize>)]
    steps: usize,
    /// Images in a batch.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count::<usize>)]
    batch: usize,
    /// Precision of activations and weights; auto is bf16 where the processor multiplies it.
    #[arg(long, default_value = "auto", value_name = "TYPE", value_parser = named::<Precision>(), help_heading = heading::MACHINE)]
    precision: Precision,
    /// Type of the stored random weights.
    #[arg(long, default_value = "f16", value_name = "TYPE", value_parser = dtype(), conflicts_with = "model")]
    stored: Dtype,
    /// Keep all networks in memory, as a server does, instead of dropping each after its stage, as `generate` does.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    json: JsonArgs,
}

pub(crate) fn bench(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Kernels(args) => kernels(args),
        BenchCommand::Data(args) => tell(&bench_loader(args, &mut Control::default())?, args.json),
        BenchCommand::Download(args) => {
            tell(&bench_download(&args.out, args.images, args.pixels, &args.settings)?, args.json.json)
        }
        BenchCommand::Unet(args) => unet(args),
        BenchCommand::Vit(args) => vision(VisionNetwork::Vit(args.model), args.common),
        BenchCommand::Clip(args) => vision(VisionNetwork::Clip(args.model), args.common),
        BenchCommand::Features(args) => features(args),
        BenchCommand::Train(args) => {
            if let Some(batches) = args.batches.filter(|&batches| batches < args.window) {
                eprintln!("note: --window is {}, and --batches {batches}: all batches count", args.window);
            }
            let report = run_train(&TrainBench {
                family: args.family,
                image_size: args.image_size,
                batch_size: args.batch_size,
                microbatch: args.device_train_microbatch_size,
                memory_budget: args.memory_budget,
                use_ema: args.use_ema,
                remote: args.remote.clone(),
                precision: args.precision,
                batches: args.batches.unwrap_or(args.window.saturating_add(1)),
                window: args.window,
                price: args.price,
            })?;
            tell(&report, args.json.json)
        }
        BenchCommand::Generate(args) => {
            let report = run_generate(&GenerateBench {
                family: args.family,
                model: args.model.clone(),
                resolution: args.resolution,
                steps: args.steps,
                batch: args.batch,
                precision: args.precision,
                stored: args.stored,
                keep: args.keep,
            })?;
            tell(&report, args.json.json)
        }
    }
}

fn tell<T: Serialize + Display>(report: &T, json: bool) -> Result<()> {
    print(&if json { serde_json::to_string(report)? } else { report.to_string() })
}

fn kernels(args: &BenchKernelsArgs) -> Result<()> {
    let mut begun = false;
    run_kernels(args.filter.as_deref(), args.precision, |row| {
        if args.json.json {
            return print(&row.json());
        }
        if !std::mem::replace(&mut begun, true) {
            print(&KernelRow::header())?;
        }
        print(&row.to_string())
    })
}

fn features(args: &BenchFeaturesArgs) -> Result<()> {
    let BenchFeaturesArgs { network, batch, precision, iterations, json } = *args;
    let report = run_features(&FeaturesBench { network, batch, precision, iterations })?;
    print(&if json.json { report.json() } else { report.to_string() })
}

fn unet(args: &BenchUnetArgs) -> Result<()> {
    if args.mode == Mode::Forward && (args.recompute_blocks || args.optimizer_in_backward) {
        let flags = "--recompute-blocks and --optimizer-in-backward are of training: add --mode train";
        return Err(Usage(flags.to_owned()).into());
    }
    let (report, profile) = run_unet(&UNetBench {
        family: args.family,
        resolution: args.resolution,
        batch: args.batch,
        mode: args.mode,
        precision: args.precision,
        iterations: args.iterations,
        recompute_blocks: args.recompute_blocks,
        optimizer_in_backward: args.optimizer_in_backward,
        profile: args.profile,
    })?;
    tell_profiled(if args.json.json { report.json() } else { report.to_string() }, profile, args.json)
}

fn vision(network: VisionNetwork, args: BenchVisionArgs) -> Result<()> {
    let BenchVisionArgs { batch, mode, precision, iterations, profile, json } = args;
    let (report, profile) = run_vision(&VisionBench { network, batch, mode, precision, iterations, profile })?;
    tell_profiled(if json.json { report.json() } else { report.to_string() }, profile, json)
}

/// Prints a report, and the profile behind it if there is one.
fn tell_profiled(report: String, profile: Option<Profile>, json: JsonArgs) -> Result<()> {
    print(&report)?;
    let Some(profile) = profile else { return Ok(()) };
    match json.json {
        true => profile.rows().iter().try_for_each(|row| print(&row.json())),
        false => print(&format!("\n{}", profile.to_string().trim_end())),
    }
}
