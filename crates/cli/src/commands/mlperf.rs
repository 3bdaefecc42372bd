//! `mlperf`: logs of benchmark runs ended, judged, and made a submission of.

use super::mlperf_inference::{InferenceCommand, inference};
use super::mlperf_plot::{PlotArgs, plot};
use super::mlperf_submission::{CheckSubmissionArgs, check_tree};
use super::{Usage, harmless, print};
use crate::args::{heading, named};
use anyhow::{Context, Result, anyhow, bail};
use calotype_core::words::plain;
use calotype_mlperf::{
    Benchmark, Bypass, Division, Figures, Log, Metric, NewPackage, PackageReport, PerMetric, RcpSet, Report, Ruleset,
    RunStatus, Severity, SubmissionStatus, SystemDescription, Verdict, check_log, check_package, check_rcp,
    check_repository, finish_offline, write_package,
};
use calotype_train::checkpoint::saved_in;
use calotype_train::mlperf::LOG;
use calotype_train::stages;
use calotype_train::trainer::{CHECKPOINTS, RECIPE};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum MlperfCommand {
    /// Judge a log, a folder of logs or a submission's tree by the rules of a round, and say what is wrong and where.
    Check(CheckArgs),
    /// End the log of a run whose kept checkpoints were evaluated after training.
    Finish(FinishArgs),
    /// Make a submission's tree of ten runs, and judge it.
    Package(Box<PackageArgs>),
    /// Draw the evaluations of logs over the samples seen, over the published reference runs.
    Plot(PlotArgs),
    /// MLPerf Inference's text-to-image benchmark, Stable Diffusion XL: runs through LoadGen, their accuracy, and submissions.
    #[command(subcommand)]
    Inference(InferenceCommand),
    /// Judge a tree of MLPerf inference by the rules of a round, as MLCommons' submission checkers do.
    CheckSubmission(CheckSubmissionArgs),
}

/// Which rules hold.
#[derive(Clone, Copy, Debug, Args)]
struct RulesArgs {
    /// The round's rules.
    #[arg(long, value_name = "ROUND", value_parser = named::<Ruleset>(), help_heading = heading::RULES)]
    ruleset: Ruleset,
    /// Take warnings about logs for errors.
    #[arg(long, help_heading = heading::RULES)]
    strict: bool,
    /// Hold no missed reference points against the runs, as the committee may.
    #[arg(long, help_heading = heading::RULES)]
    bypass_rcp: bool,
    /// Hold no missing or repeated seeds against the runs.
    #[arg(long, help_heading = heading::RULES)]
    bypass_seeds: bool,
}

impl RulesArgs {
    fn bypass(self) -> Bypass {
        Bypass { rcp: self.bypass_rcp, seeds: self.bypass_seeds }
    }
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A log or a run's folder; a folder of logs (result_0.txt, …), which are compared with the reference points; or a submitter's tree
    /// with systems/ and results/.
    path: PathBuf,
    #[command(flatten)]
    rules: RulesArgs,
    /// Compare a folder of logs with all published reference points, also with those that others undercut.
    #[arg(long, help_heading = heading::RULES)]
    full_rcps: bool,
    /// Write each result's scaling.json into its folder in the tree, as the official checker does.
    #[arg(long, help_heading = heading::OUTPUT)]
    write_scaling: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FinishArgs {
    /// The run's folder, or its log.
    pub(crate) run: PathBuf,
    /// Results of the kept checkpoints: {"samples": 512000, "fid": 240.31, "clip": 0.0704} on each line; `fd` in place of `fid` for
    /// the distance on other features.
    #[arg(long, value_name = "FILE")]
    pub(crate) scores: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PackageArgs {
    /// Folders of the runs, or their logs; the first one's becomes result_0.txt.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The submitter's tree; results of other systems and benchmarks may be in it.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
    /// Name of the implementation's folder.
    #[arg(long, value_name = "NAME", default_value = "calotype", help_heading = heading::OUTPUT)]
    implementation: String,
    /// Files that show the implementation; the first run's recipe.toml if absent.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    source: Vec<PathBuf>,
    /// The system's description, a TOML or JSON file. If absent, this machine is described, under the names that the first log gives.
    #[arg(long, value_name = "FILE", help_heading = heading::SYSTEM)]
    system: Option<PathBuf>,
    /// A field of the description, such as cooling=air.
    #[arg(long, value_name = "NAME=VALUE", help_heading = heading::SYSTEM)]
    field: Vec<String>,
    #[command(flatten)]
    rules: RulesArgs,
}

pub(crate) fn mlperf(command: &MlperfCommand, threads: Option<usize>) -> Result<()> {
    match command {
        MlperfCommand::Check(args) => check(args),
        MlperfCommand::Finish(args) => finish(args),
        MlperfCommand::Package(args) => package(args),
        MlperfCommand::Plot(args) => plot(args),
        MlperfCommand::Inference(command) => inference(command, threads),
        MlperfCommand::CheckSubmission(args) => check_tree(args),
    }
}

fn check(args: &CheckArgs) -> Result<()> {
    let CheckArgs { path, rules, full_rcps, write_scaling } = args;
    let kind = Kind::of(path)?;
    kind.takes(rules.strict, "--strict", &["a log", "a tree"])?;
    kind.takes(rules.bypass_rcp, "--bypass-rcp", &["a folder of logs", "a tree"])?;
    kind.takes(rules.bypass_seeds, "--bypass-seeds", &["a tree"])?;
    kind.takes(*full_rcps, "--full-rcps", &["a folder of logs"])?;
    kind.takes(*write_scaling, "--write-scaling", &["a tree"])?;
    let (said, report) = match kind {
        Kind::Log(log) => {
            refuse_other_file(&log)?;
            (String::new(), check_log(&log, rules.ruleset)?)
        }
        Kind::Runs => runs(path, *rules, *full_rcps)?,
        Kind::Tree => {
            let (said, report, found) = tree(path, *rules)?;
            if *write_scaling {
                found.record_scaling().with_context(|| format!("{}: cannot write scaling.json", path.display()))?;
            }
            verdict(path, *rules, &said, &report)?;
            // The official checker accepts a tree without results.
            return if found.results.is_empty() { print("note: no result was judged") } else { Ok(()) };
        }
    };
    verdict(path, *rules, &said, &report)
}

/// Refuses a file that is no log of MLPerf at all, of which every rule would be broken.
fn refuse_other_file(path: &Path) -> Result<()> {
    match Log::read(path)?.entries.is_empty() {
        false => Ok(()),
        true => Err(Usage(format!(
            "{}: no log of MLPerf, for no line of it holds `:::MLLOG`; give a run's {LOG}, or the run's folder",
            path.display()
        ))
        .into()),
    }
}

/// What a path leads to.
enum Kind {
    Log(PathBuf),
    Runs,
    Tree,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self::Log(path.to_owned()));
        }
        if path.join(LOG).is_file() {
            return Ok(Self::Log(path.join(LOG)));
        }
        if path.join("results").is_dir() {
            return Ok(Self::Tree);
        }
        let entries = fs::read_dir(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        if names.into_iter().any(|name| name.starts_with("result_") && name.ends_with(".txt")) {
            return Ok(Self::Runs);
        }
        Err(Usage(format!(
            "{}: holds neither {LOG} nor result_0.txt nor results/; give a log, a run's folder, a folder of logs or a submitter's tree",
            path.display()
        ))
        .into())
    }

    /// Refuses a flag that is given and says nothing about what the path leads to.
    fn takes(&self, given: bool, flag: &str, kinds: &[&str]) -> Result<()> {
        let own = match self {
            Self::Log(_) => "a log",
            Self::Runs => "a folder of logs",
            Self::Tree => "a tree",
        };
        if given && !kinds.contains(&own) {
            let problem = format!("{flag} has no effect on {own}, only on {}; leave it out", kinds.join(" and on "));
            return Err(Usage(problem).into());
        }
        Ok(())
    }
}

fn runs(folder: &Path, rules: RulesArgs, full: bool) -> Result<(String, Report)> {
    let set = if full { RcpSet::Full } else { RcpSet::Pruned };
    let mut found = check_rcp(folder, rules.ruleset, set)?;
    let mut findings = std::mem::take(&mut found.report);
    if rules.bypass_rcp && found.can_be_bypassed {
        findings.findings.iter_mut().for_each(|finding| finding.severity = finding.severity.min(Severity::Warning));
    }
    Ok((found.to_string(), findings))
}

/// The figures of a tree's results in words, and all findings, those of the repository's rules included.
fn tree(root: &Path, rules: RulesArgs) -> Result<(String, Report, PackageReport)> {
    let mut found = check_package(root, rules.ruleset, rules.bypass(), rules.strict)?;
    let mut report = std::mem::take(&mut found.report);
    report.findings.extend(check_repository(root)?.findings);
    let mut said = String::new();
    for result in &found.results {
        let minutes = result.minutes.map_or("no score".to_owned(), |minutes| format!("{minutes:.3} minutes"));
        let basis = result.basis.as_ref().map_or(String::new(), |basis| format!(", reference point {}", basis.name()));
        let scaling = result.scaling;
        said += &format!("{} on {}: {minutes}, scaling {scaling:.4}{basis}\n", result.benchmark, result.system);
    }
    Ok((said, report, found))
}

/// Prints what was found; what does not pass is an error.
fn verdict(path: &Path, rules: RulesArgs, said: &str, report: &Report) -> Result<()> {
    let told = format!("{said}{report}");
    if !told.is_empty() {
        print(harmless(&told).trim_end())?;
    }
    let (path, round) = (path.display(), rules.ruleset);
    match report.verdict(rules.strict) {
        Verdict::Pass => print(&format!("{path}: passes by the rules of {round}")),
        Verdict::Fail => bail!("{path}: breaks the rules of {round}, as said above"),
        Verdict::Stop => bail!("{path}: the official checkers of {round} break off while they read it, as said above"),
    }
}

/// The log that a path means.
pub(super) fn log_of(run: &Path) -> PathBuf {
    if run.is_dir() { run.join(LOG) } else { run.to_owned() }
}

pub(super) fn benchmark_of(log: &Log) -> Result<Benchmark> {
    log.benchmark().with_context(|| {
        let known: Vec<_> = Benchmark::ALL.iter().map(|benchmark| benchmark.name()).collect();
        format!("{}: has no line `submission_benchmark` with {}", log.path.display(), known.join(" or "))
    })
}

pub(crate) fn finish(args: &FinishArgs) -> Result<()> {
    let path = log_of(&args.run);
    if args.run.join(RECIPE).is_file() && !path.exists() {
        return Err(Usage(format!(
            "{}: the run wrote no MLPerf log, which recipes with a table [mlperf] ask for; there is nothing to end",
            args.run.display()
        ))
        .into());
    }
    // A run that still trains would write on into the former log.
    let _lock = path.parent().filter(|folder| folder.join(RECIPE).is_file()).map(stages::lock).transpose()?;
    let benchmark = benchmark_of(&Log::read(&path)?)?;
    let figures = Figures::read_for(&args.scores, benchmark)?;
    if figures.are_unofficial() {
        eprintln!(
            "note: {}: the distances are `fd`, of other features or weights than the FID's; they stand in its place in the log, and \
             are no results of the benchmark",
            args.scores.display()
        );
    }
    let scores = figures.scores(benchmark);
    for samples in unkept(&path.with_file_name(CHECKPOINTS), scores.iter().map(|scores| scores.samples))? {
        eprintln!(
            "note: the run keeps no checkpoint of {samples} samples, which {} has results of",
            args.scores.display()
        );
    }
    let targets = targets_of(&path.with_file_name(RECIPE))?;
    let reached = |results: &[(Metric, f64)]| targets.reached(benchmark, results);
    let finished = finish_offline(&path, &scores, reached)?;
    let missed = if finished.status == RunStatus::Aborted { "; no scores reach the targets" } else { "" };
    print(&format!("{}: {} at {} samples{missed}", path.display(), finished.status, finished.samples))
}

/// Those of some numbers of samples that a run has no checkpoint of; none where it has no checkpoints at all.
fn unkept(checkpoints: &Path, samples: impl Iterator<Item = u64>) -> Result<Vec<u64>> {
    let kept = if checkpoints.is_dir() { saved_in(checkpoints)? } else { Vec::new() };
    let is_kept = |samples: &u64| kept.iter().any(|(saved, _)| saved == samples);
    Ok(samples.filter(|samples| !kept.is_empty() && !is_kept(samples)).collect())
}

/// The targets that a run's recipe has in place of the rules'.
fn targets_of(recipe: &Path) -> Result<PerMetric<f64>> {
    let content = match fs::read_to_string(recipe) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(PerMetric::default()),
        read => read.with_context(|| format!("{}: cannot be read", recipe.display()))?,
    };
    let table: toml::Table = toml::from_str(&content).with_context(|| format!("{}: is no recipe", recipe.display()))?;
    let targets = table.get("mlperf").and_then(|mlperf| mlperf.get("targets")).cloned();
    let targets = targets.map_or(Ok(PerMetric::default()), toml::Value::try_into);
    targets.with_context(|| format!("{}: key `mlperf.targets`", recipe.display()))
}

fn package(args: &PackageArgs) -> Result<()> {
    let logs: Vec<PathBuf> = args.runs.iter().map(|run| log_of(run)).collect();
    let first = Log::read(&logs[0])?;
    let benchmark = benchmark_of(&first)?;
    let system = with_fields(described(args, &first)?, &args.field)?;
    let sources = match args.source.is_empty() {
        false => args.source.clone(),
        true => vec![logs[0].with_file_name(RECIPE)].into_iter().filter(|path| path.is_file()).collect(),
    };
    let implementation = (args.implementation.as_str(), sources.as_slice());
    let folder = write_package(&args.out, &NewPackage { benchmark, system: &system, logs: &logs, implementation })?;
    print(&format!("written {}", folder.display()))?;
    let (said, report, _) = tree(&args.out, args.rules)?;
    verdict(&args.out, args.rules, &said, &report)
        .map_err(|error| anyhow!("{error}; the tree is kept: remove {} before the next try", folder.display()))
}

/// The system as a file describes it, or as this machine and the first log do.
fn described(args: &PackageArgs, log: &Log) -> Result<SystemDescription> {
    if let Some(file) = &args.system {
        if file.extension().is_some_and(|extension| extension == "json") {
            let read = SystemDescription::read(file);
            return read.map_err(|error| Usage(format!("{}: {error}", file.display())).into());
        }
        let content = calotype_core::read_text(file).with_context(|| format!("{}: cannot be read", file.display()))?;
        let read = toml::from_str(&content);
        return read.map_err(|error| Usage(format!("{}: {}", file.display(), plain(&error.to_string()))).into());
    }
    let said = |key: &str| {
        let lacks = || Usage(format!("{}: has no `{key}`; describe the system with --system", log.path.display()));
        log.said(key).ok_or_else(lacks)
    };
    let (division, status) = (said("submission_division")?, said("submission_status")?);
    let (division, status): (Division, SubmissionStatus) = (division.parse()?, status.parse()?);
    Ok(SystemDescription::of_this_machine(said("submission_org")?, said("submission_platform")?, division, status))
}

/// A description with some fields set.
fn with_fields(system: SystemDescription, fields: &[String]) -> Result<SystemDescription> {
    let mut values: Map<String, Value> = match serde_json::to_value(&system)? {
        Value::Object(values) => values,
        _ => Map::new(),
    };
    for field in fields {
        let (name, value) = field
            .split_once('=')
            .ok_or_else(|| Usage(format!("--field {field}: write it as NAME=VALUE, such as cooling=air")))?;
        if fields.iter().any(|other| other != field && other.split('=').next() == Some(name)) {
            return Err(Usage(format!("--field {name}: is given twice with different values; leave one out")).into());
        }
        match values.get(name) {
            Some(Value::String(_)) => values.insert(name.to_owned(), value.into()),
            _ => {
                let known = values.iter().filter(|(_, value)| value.is_string()).map(|(name, _)| name.as_str());
                let known = known.collect::<Vec<_>>().join(", ");
                return Err(Usage(format!("--field {name}: descriptions have no such text; they have {known}")).into());
            }
        };
    }
    Ok(serde_json::from_value(Value::Object(values))?)
}
