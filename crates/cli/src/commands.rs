use crate::generate::{Common, Halted, generate_command};
use crate::{BenchCommand, GenerateArgs, QuickstartArgs, RecipesArgs, TrainArgs};
use anyhow::{Context, Result};
use calotype_bench::{BenchError, KernelRow, UNetBench, run_kernels, run_unet};
use calotype_data::Control;
use calotype_diffusion::stable_diffusion::GenerateError;
use calotype_prepare::bench::bench_loader;
use calotype_prepare::download::bench::bench_download;
use calotype_quickstart::{EvaluationRecipe, Generator, GeneratorFolders, Options, QuickstartError, run};
use calotype_train::device::{DeviceError, available, device};
use calotype_train::settings::{AutoencoderRecipe, ClipRecipe, DiffusionRecipe, Kind};
use calotype_train::stages::{self, MODEL, Recipe, Site, StageEnd, StageError};
use calotype_train::trainer::TrainingSummary;
use calotype_train::{RecipeError, RecipeLoader, Resolved, StopFlag};
use calotype_weights::layout::LayoutError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// Stopped on request with everything saved.
#[derive(Debug, thiserror::Error)]
#[error("stopped after {samples} samples, everything is saved; run the same command again to go on")]
pub(crate) struct Stopped {
    pub(crate) samples: u64,
}

/// A recipe of another kind than was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{name} is not a training recipe: it has no key `kind` (clip, autoencoder or diffusion)")]
struct NotTraining {
    name: String,
}

/// A command line that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// An error and its causes in one line, without those that a message before them has told already.
pub(crate) fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

/// 2 for bad usage or configuration, 130 for a stop on request, 1 for failed work.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let interrupted = error.is::<Stopped>()
        || error.is::<Halted>()
        || matches!(error.downcast_ref(), Some(QuickstartError::Interrupted { .. }))
        || matches!(error.downcast_ref(), Some(calotype_data::Error::Interrupted { .. }))
        || error.downcast_ref::<calotype_prepare::Error>().is_some_and(calotype_prepare::Error::is_interrupted);
    let usage = error.downcast_ref::<RecipeError>().is_some_and(RecipeError::is_usage)
        || error.downcast_ref::<QuickstartError>().is_some_and(QuickstartError::is_usage)
        || error.downcast_ref::<StageError>().is_some_and(StageError::is_usage)
        || error.downcast_ref::<BenchError>().is_some_and(BenchError::is_usage)
        || error.downcast_ref::<calotype_prepare::Error>().is_some_and(calotype_prepare::Error::is_usage)
        || error.is::<DeviceError>()
        || error.is::<Usage>()
        || error.downcast_ref::<GenerateError>().is_some_and(GenerateError::is_usage)
        || error.is::<NotTraining>()
        || error.downcast_ref::<LayoutError>().is_some_and(LayoutError::is_usage);
    match (interrupted, usage) {
        (true, _) => 130,
        (_, true) => 2,
        _ => 1,
    }
}

/// Built-in recipes, and those of a `recipes` folder in the current directory.
pub(crate) fn recipe_loader() -> RecipeLoader {
    RecipeLoader::new().embedded(RECIPES).folder("recipes")
}

/// Prints to standard output; a closed pipe (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

pub(crate) fn quickstart(args: &QuickstartArgs) -> Result<()> {
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let options = Options {
        out: &args.out,
        preset: &format!("quickstart/{}", args.preset),
        seed: args.seed,
        device: &args.device,
        overrides: &args.overrides,
    };
    let summary = run(&recipe_loader(), &options, &stop)?;
    let j = &summary.judgement;
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let out = args.out.display();
    print(&format!(
        "background right  {} (untrained {}, real {})\n\
         caption retrieval {} (untrained {}, real {})\n\
         Fréchet distance  {:.4} (untrained {:.4}, real {:.4}; own CLIP features, not FID)\n\
         CLIP score        {:.4} (untrained {:.4}, real {:.4})\n\
         took              {:.0} s, {:.2} GiB\n\
         report            {out}/report.html\n\
         pictures          {out}/pictures/held_out.png, {out}/pictures/prompts.png",
        percent(j.trained.background_accuracy),
        percent(j.untrained.background_accuracy),
        percent(j.real.background_accuracy),
        percent(j.trained.retrieval_top1),
        percent(j.untrained.retrieval_top1),
        percent(j.real.retrieval_top1),
        j.trained.frechet_distance,
        j.untrained.frechet_distance,
        j.real.frechet_distance,
        j.trained.clip_score,
        j.untrained.clip_score,
        j.real.clip_score,
        summary.seconds.values().sum::<f64>(),
        summary.peak_rss_gib,
    ))
}

/// A training recipe of any kind.
enum AnyRecipe {
    Clip(Resolved<ClipRecipe>),
    Autoencoder(Resolved<AutoencoderRecipe>),
    Diffusion(Resolved<DiffusionRecipe>),
}

impl AnyRecipe {
    fn load(name: &str, overrides: &[String]) -> Result<Self> {
        let loader = recipe_loader();
        let table: Resolved<toml::Table> = loader.load(name, &[])?;
        let kind = table.value.get("kind").cloned().map(toml::Value::try_into::<Kind>);
        match kind {
            Some(Ok(Kind::Clip)) => Ok(Self::Clip(loader.load(name, overrides)?)),
            Some(Ok(Kind::Autoencoder)) => Ok(Self::Autoencoder(loader.load(name, overrides)?)),
            Some(Ok(Kind::Diffusion)) => Ok(Self::Diffusion(loader.load(name, overrides)?)),
            // The typed loader explains what a wrong `kind` should be.
            Some(Err(_)) => Ok(Self::Clip(loader.load(name, overrides)?)),
            None => Err(NotTraining { name: name.to_owned() }.into()),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Clip(recipe) => &recipe.text,
            Self::Autoencoder(recipe) => &recipe.text,
            Self::Diffusion(recipe) => &recipe.text,
        }
    }

    fn train(&self, site: &Site<'_>) -> Result<StageEnd, StageError> {
        fn of<T>(resolved: &Resolved<T>) -> Recipe<'_, T> {
            Recipe { value: &resolved.value, text: &resolved.text }
        }
        match self {
            Self::Clip(recipe) => stages::train_clip(of(recipe), site),
            Self::Autoencoder(recipe) => stages::train_autoencoder(of(recipe), site),
            Self::Diffusion(recipe) => stages::train_diffusion(of(recipe), site),
        }
    }
}

pub(crate) fn train(args: &TrainArgs) -> Result<()> {
    let recipe = AnyRecipe::load(&args.recipe, &args.overrides)?;
    if args.dry_run {
        return print(recipe.text().trim_end());
    }
    let device = device(&args.device)?;
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let folder = args.out.clone().unwrap_or_else(|| default_folder(&args.recipe));
    match recipe.train(&Site { folder: &folder, device: &device, stop: &stop })? {
        StageEnd::Interrupted { samples } => Err(Stopped { samples }.into()),
        StageEnd::Done(TrainingSummary { samples_seen, loss_first, loss_last, seconds, .. }) => print(&format!(
            "{samples_seen} samples in {seconds:.0} s, loss {loss_first:.5} at first, {loss_last:.5} at last\nmodel {}",
            folder.join(MODEL).display()
        )),
    }
}

/// `runs/<recipe's name without folders and ending>`.
fn default_folder(recipe: &str) -> PathBuf {
    let stem = Path::new(recipe).file_stem().unwrap_or(recipe.as_ref());
    Path::new("runs").join(stem)
}

pub(crate) fn generate(args: &GenerateArgs) -> Result<()> {
    if args.model.model.is_some() || args.model.from.is_some() {
        let common = Common {
            prompts: &args.prompts,
            out: &args.out,
            seed: args.seed,
            steps: args.steps,
            guidance: args.guidance,
            device: &args.device,
        };
        return generate_command(&args.model, &common);
    }
    if args.prompts.is_empty() {
        return Err(Usage("there is no prompt: `calotype generate \"a cat\" --model PATH`".into()).into());
    }
    let device = device(&args.device)?;
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let folders = GeneratorFolders {
        diffusion: args.run.join("diffusion").join(MODEL),
        autoencoder: args.run.join("autoencoder").join(MODEL),
        clip: args.run.join("clip").join(MODEL),
    };
    let generator = Generator::load(&folders, &device)
        .with_context(|| format!("{} is not a finished quickstart run", args.run.display()))?;
    let saved = args.run.join("pictures").join("recipe.toml");
    let mut recipe = load_path::<EvaluationRecipe>(&saved)?;
    recipe.seed = args.seed.unwrap_or_default();
    recipe.sampler.steps = args.steps.unwrap_or(recipe.sampler.steps);
    recipe.sampler.guidance = args.guidance.unwrap_or(recipe.sampler.guidance);
    let prompts: Vec<&str> = args.prompts.iter().map(String::as_str).collect();
    for prompt in generator.text().truncated(&prompts) {
        eprintln!("warning: prompt `{prompt}` is longer than the text tower's context; its end is not drawn");
    }
    // A folder for each set of settings: pictures that are there already belong to the same settings.
    let settings = format!("seed{}-steps{}-guidance{}", recipe.seed, recipe.sampler.steps, recipe.sampler.guidance);
    for (number, prompt) in args.prompts.iter().enumerate() {
        let folder = args.out.join(slug(prompt)).join(&settings);
        generator.draw_all(std::slice::from_ref(prompt), &recipe, &folder, "generate", &stop)?;
        print(&format!("{}  {}/00000.png", number + 1, folder.display()))?;
    }
    Ok(())
}

fn slug(prompt: &str) -> String {
    let plain: String = prompt.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).take(80).collect();
    plain.trim_matches('-').to_lowercase()
}

fn load_path<T: DeserializeOwned + Serialize>(path: &Path) -> Result<T> {
    Ok(RecipeLoader::new().load(&path.display().to_string(), &[])?.value)
}

pub(crate) fn bench(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Kernels(args) => {
            let mut begun = false;
            run_kernels(args.filter.as_deref(), args.precision, |row| {
                if args.json {
                    return print(&row.json());
                }
                if !std::mem::replace(&mut begun, true) {
                    print(&KernelRow::header())?;
                }
                print(&row.to_string())
            })
        }
        BenchCommand::Data(args) => {
            let figures = bench_loader(args, &mut Control::default())?;
            print(&if args.json { serde_json::to_string(&figures)? } else { figures.to_string() })
        }
        BenchCommand::Download(args) => {
            let report = bench_download(&args.out, args.images, args.pixels, &args.settings)?;
            print(&if args.json { serde_json::to_string(&report)? } else { report.to_string() })
        }
        BenchCommand::Unet(args) => {
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
            if args.json {
                print(&report.json())?;
                let mut rows = profile.iter().flat_map(|profile| profile.rows());
                return rows.try_for_each(|row| print(&row.json()));
            }
            print(&report.to_string())?;
            profile.map_or(Ok(()), |profile| print(&format!("\n{}", profile.to_string().trim_end())))
        }
    }
}

pub(crate) fn recipes(args: &RecipesArgs) -> Result<()> {
    let loader = recipe_loader();
    match &args.name {
        None => print(&loader.names().join("\n")),
        Some(name) => print(loader.load::<toml::Table>(name, &[])?.text.trim_end()),
    }
}

pub(crate) fn doctor() -> Result<()> {
    print(&format!(
        "calotype {}\nkernels  {}\nthreads  {}\ndevices  {}\nrecipes  {}",
        env!("CARGO_PKG_VERSION"),
        calotype_kernels::isa_name(),
        calotype_kernels::threads(),
        available().join(", "),
        recipe_loader().names().len(),
    ))
}
