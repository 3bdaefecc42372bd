//! `mlperf inference`: MLPerf Inference's benchmark of Stable Diffusion XL.

use super::mlperf_accuracy::{AccuracyArgs, AuditArgs, VerifyArgs, accuracy, audit, verify_test};
use super::mlperf_submission::{SubmissionArgs, command_line, submission};
use super::{STOPPED, Told, Usage, exit_code, message, print, recipe_loader};
use crate::args::{DeviceArgs, PrecisionArgs, heading, named};
use anyhow::{Context, Result};
use calotype_collective::Launch;
use calotype_core::StopFlag;
use calotype_core::numbers::{count, finite, not_negative};
use calotype_inference::{
    InferenceError, KIND, Layout, LoadSettings, Plan, Processes, Recipe, Round, Variant, Wishes, Work, listen, rank,
    run,
};
use calotype_loadgen::{Mode, Scenario};
use calotype_train::recipe::Resolved;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// Heading of LoadGen's flags.
const LOAD: &str = "Load";

#[derive(Debug, Subcommand)]
pub(crate) enum InferenceCommand {
    /// Run one scenario in one mode, with LoadGen, and write its logs and a summary.
    Sdxl(Box<SdxlArgs>),
    /// Draw for runs whose LoadGen is on another machine (their --workers).
    Worker(Box<WorkerArgs>),
    /// Judge the pictures of an accuracy run as the reference does: FID and CLIP score, and the pictures for reviewers.
    Accuracy(Box<AccuracyArgs>),
    /// Judge a compliance run by TEST01 or TEST04, and write the verdict files of a submission.
    Verify(VerifyArgs),
    /// Write the audit configuration of a compliance test.
    Audit(AuditArgs),
    /// Make a submission's tree and archive of a folder of runs, with the commands and the highlights beside it, and judge it.
    Submission(Box<SubmissionArgs>),
}

/// What pictures are drawn with; the same for a run and its workers.
#[derive(Debug, Args)]
struct DrawingArgs {
    /// A recipe file, or the name of a built-in recipe [default: inference/sdxl/mlperf, or that of the variant].
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<String>,
    /// A checkpoint of Stable Diffusion XL in any layout.
    #[arg(long, alias = "model-path", value_name = "PATH", help_heading = heading::MODEL)]
    model: Option<PathBuf>,
    /// How much of the benchmark: full (5,000 captions), scc24-base (50), scc24-main (500), or custom (captions of your own).
    #[arg(long, value_name = "NAME", value_parser = named::<Variant>())]
    variant: Option<Variant>,
    /// The round whose seeds hold.
    #[arg(long, value_name = "ROUND", value_parser = named::<Round>())]
    round: Option<Round>,
    /// Width in pixels; another one than 1024 is for trials.
    #[arg(long, value_name = "N", value_parser = count::<usize>, help_heading = heading::IMAGE)]
    width: Option<usize>,
    /// Height in pixels; another one than 1024 is for trials.
    #[arg(long, value_name = "N", value_parser = count::<usize>, help_heading = heading::IMAGE)]
    height: Option<usize>,
    /// Steps; another number than 20 is for trials.
    #[arg(long, value_name = "N", value_parser = count::<usize>, help_heading = heading::SAMPLING)]
    steps: Option<usize>,
    /// Guidance; another one than 8 is for trials.
    #[arg(long, value_name = "SCALE", value_parser = finite::<f32>, help_heading = heading::SAMPLING)]
    guidance: Option<f32>,
    /// The latent that all pictures begin with, a file of NumPy; the published one is made if absent.
    #[arg(long, value_name = "FILE", help_heading = heading::SAMPLING)]
    latents: Option<PathBuf>,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Pictures that go through the UNet together (serve.batch_size).
    #[arg(long, alias = "max-batchsize", value_name = "N", value_parser = count::<usize>, help_heading = heading::MACHINE)]
    batch: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Overrides of the recipe, e.g. serve.decode_batch=4 or processes.lost_worker=fail.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SdxlArgs {
    #[command(flatten)]
    drawing: DrawingArgs,
    /// How queries come: offline, server, singlestream or multistream.
    #[arg(long, value_name = "NAME", value_parser = named::<Scenario>())]
    scenario: Scenario,
    /// Every sample once, with all answers in the log, instead of a measurement.
    #[arg(long)]
    accuracy: bool,
    /// Look for the highest rate at which the server scenario is valid, from --qps on.
    #[arg(long, alias = "find-peak-performance", conflicts_with = "accuracy")]
    find_peak: bool,
    /// The list of captions: a table of `calotype data coco --list sdxl`, or a text file with one on each line.
    #[arg(long, value_name = "PATH", help_heading = heading::PROMPTS)]
    captions: Option<PathBuf>,
    /// LoadGen's user.conf. The recipe's [load] gives way to it, and it to the flags below.
    #[arg(long, value_name = "FILE", help_heading = LOAD)]
    user_conf: Option<PathBuf>,
    /// The configuration of an audit (TEST01, TEST04).
    #[arg(long, value_name = "FILE", help_heading = LOAD)]
    audit_conf: Option<PathBuf>,
    /// Samples per second: the server's load, or what is expected offline.
    #[arg(long, value_name = "RATE", value_parser = not_negative, help_heading = LOAD)]
    qps: Option<f64>,
    /// Least duration in seconds; less than 600 is for trials.
    #[arg(long, value_name = "SECONDS", value_parser = not_negative, help_heading = LOAD)]
    time: Option<f64>,
    /// Least number of queries; offline, of samples.
    #[arg(long, value_name = "N", value_parser = count::<u64>, help_heading = LOAD)]
    queries: Option<u64>,
    /// Latency in seconds: the server's bound, or what a stream's query is expected to take.
    #[arg(long, value_name = "SECONDS", value_parser = not_negative, help_heading = LOAD)]
    max_latency: Option<f64>,
    /// Samples of a query in the multistream scenario.
    #[arg(long, value_name = "N", value_parser = count::<u64>, help_heading = LOAD)]
    samples_per_query: Option<u64>,
    /// Samples that performance runs take.
    #[arg(long, value_name = "N", value_parser = count::<u64>, help_heading = LOAD)]
    performance_sample_count: Option<u64>,
    /// Workers that listen elsewhere (`mlperf inference worker`), separated by commas. This process draws, too.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', help_heading = heading::MACHINE)]
    workers: Vec<String>,
    /// Folder of the logs, by scenario, and of run.json.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
    /// Replace a run of this scenario and mode that is there.
    #[arg(long, help_heading = heading::OUTPUT)]
    replace: bool,
    /// Say what would run, and what of it is unofficial, and stop.
    #[arg(long, help_heading = heading::OUTPUT)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    drawing: DrawingArgs,
    /// Where to listen, such as 0.0.0.0:4242. Whoever reaches the port can have pictures drawn: a network of your own.
    #[arg(long, value_name = "HOST:PORT", help_heading = heading::MACHINE)]
    listen: String,
    /// End with the first run instead of waiting for the next.
    #[arg(long)]
    once: bool,
    /// Folder for a checkpoint of random weights, where the recipe asks for one.
    #[arg(long, value_name = "DIR", default_value = "runs/worker", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

pub(crate) fn inference(command: &InferenceCommand, threads: Option<usize>) -> Result<()> {
    match command {
        InferenceCommand::Sdxl(args) => sdxl(args, threads),
        InferenceCommand::Worker(args) => worker(args),
        InferenceCommand::Accuracy(args) => accuracy(args),
        InferenceCommand::Verify(args) => verify_test(args),
        InferenceCommand::Audit(args) => audit(args),
        InferenceCommand::Submission(args) => submission(args),
    }
}

impl DrawingArgs {
    /// The recipe, with the flags as overrides.
    fn load(&self, captions: Option<&Path>, out: &Path) -> Result<Resolved<Recipe>> {
        let usual = match self.variant {
            Some(Variant::Scc24Base) => "inference/sdxl/scc24_base",
            Some(Variant::Scc24Main) => "inference/sdxl/scc24_main",
            _ => "inference/sdxl/mlperf",
        };
        let text = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
        let flags = [
            ("model", self.model.as_deref().map(text)),
            ("variant", self.variant.map(|variant| variant.name().to_owned())),
            ("round", self.round.map(|round| format!("\"{round}\""))),
            ("width", self.width.map(|n| n.to_string())),
            ("height", self.height.map(|n| n.to_string())),
            ("steps", self.steps.map(|n| n.to_string())),
            ("guidance", self.guidance.map(|scale| format!("{scale:?}"))),
            ("latents.path", self.latents.as_deref().map(text)),
            ("precision", self.precision.precision.map(|precision| precision.name().to_owned())),
            ("serve.batch_size", self.batch.map(|n| n.to_string())),
            ("captions.path", captions.map(text)),
            ("captions.made_up", captions.map(|_| "false".to_owned())),
        ];
        let mut overrides = self.overrides.clone();
        overrides.extend(flags.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))));
        let name = self.recipe.as_deref().unwrap_or(usual);
        let loader = recipe_loader().out(out);
        // Other recipes are told by their kind, before their keys are.
        let kind = loader.load::<toml::Table>(name, &[])?.value.get("kind").cloned();
        if kind.as_ref().and_then(toml::Value::as_str) != Some(KIND) {
            return Err(Usage(format!("{name} is no recipe of this command: its `kind` is not \"{KIND}\"")).into());
        }
        loader.check_overrides(name, &overrides)?;
        Ok(loader.load(name, &overrides)?)
    }
}

impl SdxlArgs {
    fn mode(&self) -> Mode {
        match (self.accuracy, self.find_peak) {
            (true, _) => Mode::Accuracy,
            (_, true) => Mode::FindPeak,
            _ => Mode::Performance,
        }
    }

    /// What LoadGen is asked for whatever files say.
    fn asked(&self) -> LoadSettings {
        LoadSettings {
            target_qps: self.qps,
            target_latency_ms: self.max_latency.map(|seconds| 1000.0 * seconds),
            min_duration_ms: self.time.map(|seconds| (1000.0 * seconds).round() as u64),
            min_query_count: self.queries,
            samples_per_query: self.samples_per_query,
            performance_sample_count: self.performance_sample_count,
            ..LoadSettings::default()
        }
    }
}

fn tell(text: &str) {
    eprintln!("{text}");
}

fn sdxl(args: &SdxlArgs, threads: Option<usize>) -> Result<()> {
    let launch = Launch::from_environment().map_err(|error| Usage(error.to_string()))?;
    if launch.world > 1 && threads.is_none() && std::env::var_os("CALOTYPE_THREADS").is_none() {
        // Launchers leave all processes of a host the same cores, or bind them: those that we may use are ours to share.
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        calotype_kernels::set_threads((cores / launch.local_size.max(1)).max(1));
    }
    let recipe = args.drawing.load(args.captions.as_deref(), &args.out)?;
    let device = args.drawing.device.numbered((launch.world > 1).then_some(launch.local_rank))?;
    let stop = if launch.rank == 0 { StopFlag::install() } else { StopFlag::install_mute() };
    let stop = stop.context("cannot listen for signals")?;
    if launch.rank > 0 && args.dry_run {
        return Ok(());
    }
    if launch.rank > 0 {
        let work = Work {
            device: &device,
            stop: &stop,
            processes: &Processes::Alone,
            replace: false,
            command: "",
            tell: &|_| {},
        };
        let layout = Layout::new(&args.out, args.scenario, args.mode());
        return ended(rank(&recipe.value, &layout, &launch, &work), true);
    }
    if args.samples_per_query.is_some() && args.scenario != Scenario::MultiStream {
        return Err(Usage(
            "--samples-per-query is of the multistream scenario alone; leave it out, or take --scenario multistream"
                .to_owned(),
        )
        .into());
    }
    let wishes =
        Wishes { user_conf: args.user_conf.as_deref(), load: args.asked(), audit_conf: args.audit_conf.as_deref() };
    let mode = (args.scenario, args.mode());
    let plan = Plan::new((&recipe.value, &recipe.text), mode, &wishes, &args.out)?;
    let processes = match (launch.world > 1, args.workers.is_empty()) {
        (true, false) => {
            return Err(Usage(
                "--workers names processes that listen, and a launcher started others: take one of both".to_owned(),
            )
            .into());
        }
        (true, true) => Processes::Ranks(Box::new(launch)),
        (false, true) => Processes::Alone,
        (false, false) => Processes::Workers(args.workers.clone()),
    };
    plan.check(&processes, &device)?;
    if args.dry_run {
        return print(&plan.describe());
    }
    if !matches!(processes, Processes::Alone) && args.scenario != Scenario::Offline {
        tell("note: several processes suit the offline scenario; the others measure what one sample takes");
    }
    let command = command_line();
    let work = Work {
        device: &device,
        stop: &stop,
        processes: &processes,
        replace: args.replace,
        command: &command,
        tell: &tell,
    };
    match run(&plan, &work) {
        Ok(outcome) => print(outcome.to_text().trim_end()),
        Err(error) => ended(Err(error), false),
    }
}

/// A run's end: LoadGen may still be at work, so that the process must not end in the usual way.
fn ended(outcome: Result<(), InferenceError>, is_mute: bool) -> Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    let must_leave = error.must_leave();
    if matches!(error, InferenceError::Told) {
        return Err(Told(1).into());
    }
    let error = anyhow::Error::from(error);
    let code = exit_code(&error);
    if is_mute && code == STOPPED {
        return Err(Told(code).into());
    }
    if must_leave {
        eprintln!("error: {}", message(&error));
        calotype_loadgen::leave(code);
    }
    Err(error)
}

fn worker(args: &WorkerArgs) -> Result<()> {
    let recipe = args.drawing.load(None, &args.out)?;
    let device = args.drawing.device.open()?;
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let work =
        Work { device: &device, stop: &stop, processes: &Processes::Alone, replace: false, command: "", tell: &tell };
    let layout = Layout::new(&args.out, Scenario::Offline, Mode::Performance);
    ended(listen(&recipe.value, &layout, &args.listen, args.once, &work), false)
}
