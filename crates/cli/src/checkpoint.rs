//! `inspect` and `convert`: what a checkpoint holds, and the same in another layout.

use crate::args::{JsonArgs, dtype, named};
use crate::commands::{Usage, print};
use crate::reports::{Image, Runs, has_settings};
use anyhow::Result;
use calotype_checkpoints::{
    Checkpoint, ConvertOptions, Family, LayoutError, OpenOptions, Prediction, Report, Target, convert,
};
use calotype_core::folders::{Content, content};
use calotype_data::source::{self, SourceOptions, Summary};
use calotype_pipeline::belonging::{self, Checked, Hashes};
use calotype_train::checkpoint::refuse_damaged_run;
use calotype_train::runs::{Held, RunReport, held};
use calotype_weights::Dtype;
use clap::Args;
use serde::Serialize;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A diffusers folder, a model's folder, a folder of Calotype's, or a file of weights; a folder of a training run, a
    /// training checkpoint, or a quickstart, or a folder of such; a dataset; or a PNG that was drawn.
    path: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
    /// List every tensor by its canonical key.
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    open: OpenArgs,
}

impl InspectArgs {
    /// The report on a checkpoint, with the networks that do not belong together among its problems.
    fn report(&self) -> Result<Report, LayoutError> {
        let checkpoint = Checkpoint::open_with(&self.path, &self.open.options())?;
        let mut report = Report::of(&checkpoint, self.tensors);
        // What keeps networks from being compared is a problem of the checkpoint, and no failure of the report.
        let problems = belonging::problems(&checkpoint).unwrap_or_else(|error| vec![error.to_string()]);
        report.problems.extend(problems);
        Ok(report)
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The checkpoint to read.
    input: PathBuf,
    /// The file or folder to write; it must not exist.
    output: PathBuf,
    /// Layout to write: a folder of diffusers', one file of LDM's keys, a folder with checksums of Calotype's, or NeMo's archive of a ViT
    /// or CLIP.
    #[arg(long, value_name = "LAYOUT", value_parser = named::<Target>())]
    to: Target,
    /// Type to write weights in [default: as they are].
    #[arg(long, value_name = "TYPE", value_parser = dtype())]
    dtype: Option<Dtype>,
    /// Go on without tensors that the checkpoint lacks.
    #[arg(long)]
    allow_missing: bool,
    /// Leave out tensors that belong to no known component.
    #[arg(long)]
    allow_unused: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Knowledge and wishes of the user, beyond what the checkpoint says.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Take the averaged weights of a single file.
    #[arg(long)]
    ema: bool,
    /// The UNet's prediction type, where the checkpoint does not say it or says it wrongly.
    #[arg(long, value_name = "TYPE", value_parser = named::<Prediction>())]
    prediction: Option<Prediction>,
    /// The family, where the weights do not show it (mlperf-sd2).
    #[arg(long, value_name = "NAME", value_parser = named::<Family>())]
    family: Option<Family>,
    /// The variant of a diffusers folder's weights, such as fp16; parts without it are taken plain.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Take the autoencoder of this file or folder, in place of the checkpoint's own if it has one.
    #[arg(long, value_name = "PATH")]
    vae: Option<PathBuf>,
    /// The network was trained on betas that end without signal (zero terminal SNR), whatever the checkpoint says.
    #[arg(long, conflicts_with = "no_zero_snr")]
    zero_snr: bool,
    /// The network was not trained so, whatever the checkpoint says (`ztsnr`, `rescale_betas_zero_snr`).
    #[arg(long)]
    no_zero_snr: bool,
    /// Pass over fields of configurations that are not known. They may mean a model that is not built here.
    #[arg(long)]
    pass_over_fields: bool,
    /// Go past objects of unknown classes in pickles (Lightning's callbacks and the like), which are never made.
    #[arg(long)]
    skip_objects: bool,
}

impl OpenArgs {
    /// Refuses flags that say nothing about a path.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        match &self.variant {
            Some(variant) if path.is_file() => {
                let file = path.display();
                Err(Usage(format!(
                    "--variant {variant} has no effect on a single file, {file}; it is of diffusers folders"
                ))
                .into())
            }
            _ => Ok(()),
        }
    }

    /// Whether any of the flags is given.
    fn are_given(&self) -> bool {
        self.options() != OpenOptions::default()
    }

    /// The flags as options.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            ema: self.ema,
            family: self.family,
            prediction: self.prediction,
            variant: self.variant.clone(),
            zero_snr: (self.zero_snr || self.no_zero_snr).then_some(self.zero_snr),
            pass_over_fields: self.pass_over_fields,
            skip_unknown_objects: self.skip_objects,
            vae: self.vae.clone(),
            embeddings: Vec::new(),
        }
    }

    /// Sets what is given in options that were recorded.
    pub(crate) fn change(&self, options: &mut OpenOptions) {
        let given = self.options();
        options.ema |= given.ema;
        options.family = given.family.or(options.family);
        options.prediction = given.prediction.or(options.prediction);
        options.variant = given.variant.or(options.variant.take());
        options.zero_snr = given.zero_snr.or(options.zero_snr);
        options.pass_over_fields |= given.pass_over_fields;
        options.skip_unknown_objects |= given.skip_unknown_objects;
        options.vae = given.vae.or(options.vae.take());
    }
}

/// Opens a checkpoint for use, and tells which of its tensors are in no network.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    Ok(open_hashed(path, options)?.0)
}

/// [`open`], with the hashes of the networks where those had to be computed.
pub(crate) fn open_hashed(path: &Path, options: &OpenOptions) -> Result<(Checkpoint, Option<Hashes>)> {
    let (checkpoint, hashes) = opened(path, options)?;
    if let Some(warning) = checkpoint.unused_warning() {
        eprintln!("warning: {warning}");
    }
    if let Some(note) = checkpoint.overruled_prediction() {
        eprintln!("warning: {}: {note}", path.display());
    }
    for (word, vectors) in checkpoint.learned_words() {
        eprintln!("embedding: `{word}` stands for {vectors} learned vectors");
    }
    Ok((checkpoint, hashes))
}

/// Opens a checkpoint whose networks belong together; tells of a network that was chosen and was not trained with the others.
fn opened(path: &Path, options: &OpenOptions) -> Result<(Checkpoint, Option<Hashes>)> {
    refuse_repository(path)?;
    let checkpoint = Checkpoint::open_with(path, options).map_err(|error| match error {
        LayoutError::Unrecognised { .. } => runs_instead(path).unwrap_or_else(|| error.into()),
        // Of a run without a model, which its checkpoints would make.
        LayoutError::Training { .. } => match refuse_damaged_run(path) {
            Err(damaged) => anyhow::Error::new(damaged)
                .context(format!("{}: a training run that has no model of its end", path.display())),
            Ok(()) => error.into(),
        },
        error => error.into(),
    })?;
    let Checked { note, hashes } = belonging::check(&checkpoint, None)?;
    note.iter().for_each(|note| eprintln!("note: {note}"));
    Ok((checkpoint, hashes))
}

/// What to say of a folder that holds runs, or a run without a model, where a checkpoint is wanted.
fn runs_instead(path: &Path) -> Option<anyhow::Error> {
    if let Ok(Some(Held::Preparation { .. })) = held(path) {
        let problem = "a training run that has not begun; train it first (the same command goes on with it)";
        return Some(Usage(format!("{}: {problem}", path.display())).into());
    }
    let runs = Runs::below(path).ok().flatten()?;
    Some(Usage(format!("{}: {}; {}", path.display(), runs.what(), runs.advice())).into())
}

/// Refuses the name of a repository of models, which is no path.
fn refuse_repository(path: &Path) -> Result<()> {
    match repository(path) {
        Some(name) => Err(Usage(format!(
            "{name}: there is no such file or folder; if that is a repository of models, `calotype data fetch models/{name}` \
             fetches it"
        ))
        .into()),
        None => Ok(()),
    }
}

/// The name of a repository, ORG/NAME, if a path that is not there looks like one.
fn repository(path: &Path) -> Option<&str> {
    const ENDINGS: [&str; 7] = ["safetensors", "ckpt", "pt", "pth", "bin", "nemo", "png"];
    let text = path.to_str().filter(|_| !path.exists())?;
    let (organisation, name) = text.split_once('/')?;
    let is_name = |part: &str| {
        let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        plain && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let is_file = path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
    // Below a folder that is there, it is a path.
    (is_name(organisation) && is_name(name) && !is_file && !Path::new(organisation).exists()).then_some(text)
}

/// A folder of training's, and the model that it ends with.
#[derive(Serialize)]
struct Trained<'a> {
    training: &'a Held,
    #[serde(flatten)]
    model: Option<Report>,
}

impl Display for Trained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.training)?;
        self.model.as_ref().map_or(Ok(()), |model| write!(f, "\n{model}"))
    }
}

/// Tells what a checkpoint, a run, a dataset or an image holds. Problems are told too and are no failure.
pub(crate) fn inspect_command(args: &InspectArgs) -> Result<()> {
    refuse_repository(&args.path)?;
    args.open.check(&args.path)?;
    if let Some(training) = held(&args.path)? {
        let model = match &training {
            // A run that is not finished may have the model of an earlier end, which is not its own.
            Held::Run(RunReport { model: None, .. } | RunReport { result: None, .. }) => None,
            Held::Preparation { .. } => None,
            Held::Evaluation { .. } | Held::TrainingCheckpoint(_) | Held::Snapshot(_) => None,
            Held::Quickstart { summary: None, .. } => None,
            _ => Some(args.report()?),
        };
        return tell(&Trained { training: &training, model }, args.json.json);
    }
    if has_settings(&args.path) {
        return tell(&Image::read(&args.path)?, args.json.json);
    }
    match args.report() {
        Ok(report) => tell(&report, args.json.json),
        Err(error) => inspect_other(args, error.into()),
    }
}

/// A folder of runs, or a dataset; `error` says why it is no checkpoint.
fn inspect_other(args: &InspectArgs, error: anyhow::Error) -> Result<()> {
    let runs = Runs::below(&args.path)?;
    // A damaged .nemo file is a tar archive, too, but nobody means it as a shard.
    let is_nemo = args.path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("nemo"));
    let spec = args.path.to_str().filter(|_| !is_nemo);
    let dataset = || spec.map(|spec| source::open(spec, &SourceOptions::default()));
    let (what, report): (&str, Box<dyn Told>) = match runs {
        Some(runs) => (runs.what(), Box::new(runs)),
        None => match dataset() {
            Some(Ok(dataset)) => ("a dataset", Box::new(Summary::of(&*dataset)?)),
            // It is one, and says itself what is wrong with it.
            Some(Err(fault)) if is_dataset(&args.path, &fault) => return Err(fault.into()),
            // Neither: the folder may still be meant as a checkpoint.
            _ => return Err(error),
        },
    };
    if args.tensors || args.open.are_given() {
        let flags = "--tensors, --ema, --prediction, --family, --variant and --skip-objects are of checkpoints";
        return Err(Usage(format!("{} is {what}: {flags}", args.path.display())).into());
    }
    print(report.told(args.json.json)?.trim_end())
}

/// Whether what cannot be opened as a dataset is one all the same.
fn is_dataset(path: &Path, fault: &calotype_data::Error) -> bool {
    let is_unfinished = matches!(fault, calotype_data::Error::Unfinished { .. });
    is_unfinished || content(path).is_some_and(|found| found.content == Content::Shards)
}

/// Prints a report as text, or as JSON.
fn tell(report: &(impl Serialize + Display), json: bool) -> Result<()> {
    print(report.told(json)?.trim_end())
}

/// A report that can be told both ways.
trait Told {
    fn told(&self, json: bool) -> Result<String>;
}

impl<T: Serialize + Display> Told for T {
    fn told(&self, json: bool) -> Result<String> {
        if json { Ok(serde_json::to_string_pretty(self)?) } else { Ok(self.to_string()) }
    }
}

/// Says that other programs know files of weights by their ending.
fn tell_ending(target: Target, output: &Path) {
    if target == Target::SingleFile && output.extension().is_none() {
        let output = output.display();
        eprintln!(
            "note: {output} has no ending, and other programs know files of weights by theirs: {output}.safetensors is usual"
        );
    }
}

/// Writes a checkpoint in another layout.
pub(crate) fn convert_command(args: &ConvertArgs) -> Result<()> {
    args.open.check(&args.input)?;
    tell_ending(args.to, &args.output);
    let (checkpoint, _) = opened(&args.input, &args.open.options())?;
    let options = ConvertOptions {
        dtype: args.dtype,
        allow_missing: args.allow_missing,
        allow_unused: args.allow_unused,
        ..ConvertOptions::default()
    };
    let done = convert(&checkpoint, &args.output, args.to, &options)?;
    print(&done.to_string())
}
