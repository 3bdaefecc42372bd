//! The command line of Calotype: parse, call, print.

mod args;
mod checkpoint;
mod commands;
mod data;
mod environment;
mod help;
mod mistakes;
mod ranks;
mod reports;

use args::{DeviceArgs, heading};
use calotype_core::numbers::count;
use clap::{Args, FromArgMatches, Parser, Subcommand};
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
    #[arg(long, global = true, value_name = "N", value_parser = count::<usize>, help_heading = heading::MACHINE)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a small CLIP, autoencoder and UNet on embedded real images, draw with them, judge the results, write a report.
    Quickstart(QuickstartArgs),
    /// Train one model by a recipe; an earlier run in the same folder is continued.
    #[command(after_help = train_help())]
    Train(TrainArgs),
    /// Write the model of a training run with an average of its weights that is made afterwards, of any width.
    Ema(commands::ema::EmaArgs),
    /// Write the model of a checkpoint that a training run has kept, with the average of its weights or these themselves.
    Export(commands::export::ExportArgs),
    /// Draw images with a checkpoint of Stable Diffusion, or with what a quickstart or a training run made.
    Generate(Box<commands::generate::GenerateArgs>),
    /// Draw and judge by a recipe: FID, CLIP score and more of a checkpoint, of a training run's checkpoints, or of pictures; accuracy
    /// of classifiers, CLIP and frozen features.
    Evaluate(Box<commands::evaluate::EvaluateArgs>),
    /// Tell what is on pictures: the most probable classes, by a classifier (ViT), or by CLIP and a list of names.
    Classify(commands::classify::ClassifyArgs),
    /// Tell how well pictures and texts go together: cosines and probabilities, by CLIP.
    Similarity(commands::similarity::SimilarityArgs),
    /// Run one network of a checkpoint on given tensors, with gradients if wanted.
    Probe(commands::probe::ProbeArgs),
    /// Fetch, make, encode and check datasets.
    Data(Box<data::DataArgs>),
    /// Print the contents of a checkpoint (layout, family, components, prediction type, problems), of a training run, of a dataset,
    /// or of a drawn image (its settings).
    Inspect(checkpoint::InspectArgs),
    /// Write a checkpoint in another layout: a diffusers folder, a single file, a Calotype folder, or a NeMo archive.
    Convert(checkpoint::ConvertArgs),
    /// Write a checkpoint whose UNet is in 8 bits, for faster drawing: weights with scales, calibrated by drawing captions.
    Quantize(Box<commands::quantize::QuantizeArgs>),
    /// Measure speed and memory, as shares of the processor's peak in the same process.
    #[command(subcommand)]
    Bench(commands::bench::BenchCommand),
    /// End, judge and package the logs of MLPerf training runs; run, judge and hand in MLPerf Inference's Stable Diffusion XL.
    #[command(subcommand)]
    Mlperf(commands::mlperf::MlperfCommand),
    /// List the built-in recipes with purpose, size, memory and time, or show one with everything it inherits.
    Recipes(commands::recipes::RecipesArgs),
    /// Show what this machine and this build offer, with advice.
    Doctor(commands::doctor::DoctorArgs),
    /// Print a shell's completions of commands, flags and their values.
    Completions(commands::shell::CompletionsArgs),
    /// Write a man page for each command.
    Man(commands::shell::ManArgs),
}

#[derive(Debug, Args)]
struct QuickstartArgs {
    /// Output folder; a second start continues in it.
    #[arg(long, default_value = "runs/quickstart", value_name = "DIR")]
    out: PathBuf,
    /// Seed of all stages.
    #[arg(long, value_name = "N", value_parser = args::seed, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Length of training: smoke (a minute, to see that it works), default, or long.
    #[arg(long, default_value = "default", value_parser = ["smoke", "default", "long"])]
    preset: String,
    #[command(flatten)]
    device: DeviceArgs,
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
    /// Output folder for logs, checkpoints and the trained model [default: runs/ and the recipe's name].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print the resolved recipe, find out everything that a start would (paths, counts, sizes, space), and stop.
    #[arg(long)]
    dry_run: bool,
    /// Begin with the whole state of a training checkpoint, or of a run's newest one: weights, moments, average, samples
    /// seen. Only in a new folder.
    #[arg(long, value_name = "CHECKPOINT")]
    from: Option<PathBuf>,
    /// Record the first steps of a new run in a safetensors file, for replays in PyTorch: inputs and value of the loss,
    /// learning rate, norm of the gradient, all weights before and after.
    #[arg(long, value_name = "FILE", help_heading = heading::RECORD)]
    record: Option<PathBuf>,
    /// Steps to record.
    #[arg(long, value_name = "N", default_value_t = 20, requires = "record", help_heading = heading::RECORD,
          value_parser = count::<u64>)]
    record_steps: u64,
}

/// The tasks, as `train --help` lists them.
fn train_help() -> String {
    let line = |task: &calotype_train::tasks::TaskEntry| format!("  {:12} {}", task.kind, task.about);
    let lines: Vec<String> = calotype_train::tasks::TASKS.iter().map(line).collect();
    format!("Tasks, by the key `kind` of a recipe:\n{}", lines.join("\n"))
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

/// Parses the command line; what cannot be parsed ends the process, with what was probably meant.
fn parse() -> Cli {
    let arguments: Vec<String> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let mut command = help::command();
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    parsed.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| {
        command.build();
        mistakes::explained(error, command, &arguments).exit()
    })
}

fn log() {
    let filter = std::env::var("CALOTYPE_LOG").ok().filter(|filter| !filter.trim().is_empty());
    let filter = filter.and_then(|filter| tracing_subscriber::EnvFilter::try_new(filter).ok());
    // Whoever waits for the others says so, also where another process speaks for all once they have met.
    let usual = if ranks::is_mute() { "error,calotype_collective=info" } else { "warn,calotype=info" };
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| tracing_subscriber::EnvFilter::new(usual)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
}

fn run(cli: Cli) -> anyhow::Result<()> {
    environment::check()?;
    if let Some(threads) = cli.threads {
        calotype_kernels::set_threads(threads);
    }
    match cli.command {
        Command::Quickstart(args) => commands::quickstart(&args),
        Command::Train(args) => commands::train(&args, cli.threads),
        Command::Ema(args) => commands::ema::ema_command(&args),
        Command::Export(args) => commands::export::export_command(&args),
        Command::Generate(args) => commands::generate::generate_command(&args),
        Command::Evaluate(args) => commands::evaluate::evaluate(&args, cli.threads),
        Command::Classify(args) => commands::classify::classify_command(&args),
        Command::Similarity(args) => commands::similarity::similarity_command(&args),
        Command::Data(args) => data::data(&args),
        Command::Probe(args) => commands::probe::probe_command(&args),
        Command::Inspect(args) => checkpoint::inspect_command(&args),
        Command::Convert(args) => checkpoint::convert_command(&args),
        Command::Quantize(args) => commands::quantize::quantize_command(&args),
        Command::Bench(command) => commands::bench::bench(&command),
        Command::Mlperf(command) => commands::mlperf::mlperf(&command, cli.threads),
        Command::Recipes(args) => commands::recipes::recipes(&args),
        Command::Doctor(args) => commands::doctor::doctor(&args),
        Command::Completions(args) => commands::shell::completions(&args),
        Command::Man(args) => commands::shell::man(&args),
    }
}

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = parse();
    log();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = commands::exit_code(&error);
            if error.is::<commands::Told>() {
                return ExitCode::from(code);
            }
            // What was asked for is no error.
            let beginning = if code == commands::STOPPED { "" } else { "error: " };
            eprintln!("{beginning}{}", commands::message(&error));
            ExitCode::from(code)
        }
    }
}
