//! The command line of Calotype: parse, call, print.

mod checkpoint;
mod commands;
mod data;
mod fid_stats;
mod generate;
mod probe;

use calotype_bench::{Family, Mode, Precision};
use calotype_prepare::bench::LoaderBench;
use clap::{Args, Parser, Subcommand};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

// Training allocates and frees the same large buffers at every step; mimalloc hands them back without asking the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train, judge and run latent-diffusion text-to-image models.
#[derive(Debug, Parser)]
#[command(name = "calotype", version, arg_required_else_help = true)]
struct Cli {
    /// Threads of the CPU kernels; results do not depend on it [default: all cores].
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything, small, on embedded real pictures: train CLIP, autoencoder and UNet, draw, judge, report.
    Quickstart(QuickstartArgs),
    /// Train one model by a recipe; goes on where an earlier run in the same folder stopped.
    Train(TrainArgs),
    /// Draw pictures with a checkpoint of Stable Diffusion, or with the models of a quickstart run.
    Generate(Box<GenerateArgs>),
    /// Run one network of a checkpoint on given tensors, with gradients if wanted.
    Probe(probe::ProbeArgs),
    /// Fetch, make, encode and check datasets.
    Data(data::DataArgs),
    /// Tell what a checkpoint holds (layout, family, components, prediction type, problems), or a dataset.
    Inspect(checkpoint::InspectArgs),
    /// Write a checkpoint in another layout: a diffusers folder, a single file, or a folder of Calotype's.
    Convert(checkpoint::ConvertArgs),
    /// Measure speed against the processor's peak, measured in the same process.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// List the built-in recipes, or show one with everything it inherits.
    Recipes(RecipesArgs),
    /// Show what this machine and this build offer.
    Doctor,
}

#[derive(Debug, Args)]
struct QuickstartArgs {
    /// Folder of everything that is made; a second start continues in it.
    #[arg(long, default_value = "runs/quickstart", value_name = "DIR")]
    out: PathBuf,
    /// Seed of all stages.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long to train: smoke (a minute, to see that it works), default, or long.
    #[arg(long, default_value = "default", value_parser = ["smoke", "default", "long"])]
    preset: String,
    /// cpu, or a device that this build was made with.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: String,
    /// Overrides of the stages' recipes, e.g. diffusion.run.samples=10000.
    #[arg(value_name = "STAGE.KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// A recipe file, or the name of a built-in recipe.
    recipe: String,
    /// Overrides, e.g. run.samples=10000.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder of logs, checkpoints and the trained model [default: runs/ and the recipe's name].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// cpu, or a device that this build was made with.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: String,
    /// Print the resolved recipe and stop.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// What to draw.
    #[arg(value_name = "PROMPT")]
    prompts: Vec<String>,
    /// Folder of a finished quickstart run, whose models draw if there is no --model.
    #[arg(long, default_value = "runs/quickstart", value_name = "DIR", conflicts_with_all = ["model", "from"])]
    run: PathBuf,
    /// Folder to write the pictures to.
    #[arg(long, default_value = "runs/pictures", value_name = "DIR")]
    out: PathBuf,
    /// Seed of the initial noise [default: 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Sampling steps [default: 50, or the run's].
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Guidance scale [default: 7.5, for SDXL 5, or the run's].
    #[arg(long, value_name = "X")]
    guidance: Option<f32>,
    /// cpu, or a device that this build was made with.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: String,
    #[command(flatten)]
    model: generate::ModelArgs,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Every CPU kernel in the shapes of the published networks: time, GFLOP/s or GB/s, share of the peak.
    Kernels(BenchKernelsArgs),
    /// A UNet with random weights: its forward pass, or a training step with AdamW.
    Unet(BenchUnetArgs),
    /// The loader: JPEG shards to batches of resized, cropped and mirrored pictures.
    Data(LoaderBench),
    /// The download stage against a server in the same process.
    Download(BenchDownloadArgs),
}

#[derive(Debug, Args)]
struct BenchKernelsArgs {
    /// Only operations whose line (operation, pass, shape, precision) contains this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// f32 or bf16 [default: both].
    #[arg(long, value_name = "NAME")]
    precision: Option<Precision>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BenchDownloadArgs {
    /// Pictures to download.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    images: usize,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = 256, value_name = "PIXELS")]
    pixels: usize,
    /// Folder of the pictures, which must not exist yet.
    #[arg(long, default_value = "runs/bench-download", value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Settings of the stage, as `calotype data download --help` lists them, after `--` [default: --resize-mode=no].
    #[arg(last = true, value_name = "SETTING")]
    settings: Vec<String>,
}

#[derive(Debug, Args)]
struct BenchUnetArgs {
    /// sd1, sd2 or tiny.
    #[arg(long, default_value = "sd2", value_name = "NAME")]
    family: Family,
    /// Side of the pictures in pixels; latents have an eighth of it.
    #[arg(long, default_value_t = 512, value_name = "PIXELS")]
    resolution: usize,
    /// Pictures at once.
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// forward (no gradients), or train (forward, mean squared error, backward, AdamW).
    #[arg(long, default_value = "forward", value_name = "NAME")]
    mode: Mode,
    /// Precision of activations, f32 or bf16; weights and their optimizer are f32.
    #[arg(long, default_value = "bf16", value_name = "NAME")]
    precision: Precision,
    /// How often; the median of the last half is told.
    #[arg(long, default_value_t = 8, value_name = "N")]
    iterations: usize,
    /// Train with less memory: keep the inputs of the blocks only and compute them a second time.
    #[arg(long, visible_alias = "checkpoint-blocks")]
    recompute_blocks: bool,
    /// Train with less memory: step each parameter as soon as its gradient is complete.
    #[arg(long)]
    optimizer_in_backward: bool,
    /// Tell where the time of these went: by pass, operation and shape.
    #[arg(long)]
    profile: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RecipesArgs {
    /// A recipe to show; all names if absent.
    name: Option<String>,
}

/// Keeps freed memory for the next step: giving it back after 10 ms, mimalloc's default, costs training a tenth of its
/// time in page faults. The variable `MIMALLOC_PURGE_DELAY` (milliseconds) still decides where it is set.
fn keep_freed_memory() {
    /// `mi_option_purge_delay` of mimalloc.h, which the bindings leave out.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const NEVER: std::ffi::c_long = -1;
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number in the allocator's option table; 15 is a valid index of it in mimalloc 2 and 3.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER) };
    }
}

fn main() -> ExitCode {
    keep_freed_memory();
    let filter = tracing_subscriber::EnvFilter::try_from_env("CALOTYPE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,calotype=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
    let cli = Cli::parse();
    if let Some(threads) = cli.threads {
        calotype_kernels::set_threads(threads.max(1));
    }
    let result = match cli.command {
        Command::Quickstart(args) => commands::quickstart(&args),
        Command::Train(args) => commands::train(&args),
        Command::Generate(args) => commands::generate(&args),
        Command::Data(args) => data::data(&args),
        Command::Probe(args) => probe::probe_command(&args),
        Command::Inspect(args) => checkpoint::inspect_command(&args),
        Command::Convert(args) => checkpoint::convert_command(&args),
        Command::Bench(command) => commands::bench(&command),
        Command::Recipes(args) => commands::recipes(&args),
        Command::Doctor => commands::doctor(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", commands::message(&error));
            ExitCode::from(commands::exit_code(&error))
        }
    }
}
