//! `mlperf inference accuracy`, `verify` and `audit`: the figures and compliance tests of runs that LoadGen made.

use super::{Usage, harmless, print};
use crate::args::{DeviceArgs, heading, named};
use crate::data::with_progress;
use anyhow::{Context, Error, Result, bail};
use calotype_core::StopFlag;
use calotype_core::durable::{parent_folder, write_bytes};
use calotype_core::numbers::count;
use calotype_evaluate::Networks;
use calotype_inference::accuracy::{AccuracyError, Job, captions, ids, judge, log_of};
use calotype_inference::compliance::{AUDIT_CONFIG, Runs, Test, verify};
use calotype_mlperf::inference::Round;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct AccuracyArgs {
    /// LoadGen's mlperf_log_accuracy.json.
    #[arg(long, value_name = "FILE", required_unless_present = "run", conflicts_with = "run")]
    log: Option<PathBuf>,
    /// A run's folder, or that of one of its scenarios, in which accuracy/ has the log.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Captions of the samples, row by row: a table with tabs between its columns and a column caption (.tsv), or a line for each
    /// (.txt).
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// Statistics of COCO's pictures: an .npz of mu and sigma, such as the reference's val2014.npz.
    #[arg(long, value_name = "FILE")]
    statistics: PathBuf,
    /// CLIP's ViT-B/32, with both towers.
    #[arg(long, value_name = "PATH", help_heading = heading::MODEL)]
    clip: PathBuf,
    /// The Inception network: pytorch-fid's pt_inception-2015-12-05-6726825d.pth.
    #[arg(long, value_name = "PATH", help_heading = heading::MODEL)]
    inception: PathBuf,
    /// Keep pictures for reviewers in images/, as a submission does: those of a round, such as v6.1, or of a file with numbers of
    /// samples.
    #[arg(long, value_name = "ROUND|FILE", help_heading = heading::OUTPUT)]
    compliance_ids: Option<String>,
    /// Width of pictures that are not square.
    #[arg(long, value_name = "N", value_parser = count::<usize>, requires = "height", help_heading = heading::IMAGE)]
    width: Option<usize>,
    /// Height of pictures that are not square.
    #[arg(long, value_name = "N", value_parser = count::<usize>, requires = "width", help_heading = heading::IMAGE)]
    height: Option<usize>,
    /// Folder for accuracy.txt, coco-results.json, figures.json and images/ [default: the log's].
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The test.
    #[arg(long, value_parser = named::<Test>())]
    test: Test,
    /// Folder of the scenario that is submitted: performance/run_1/ and, for TEST01, accuracy/, with LoadGen's logs.
    #[arg(long, value_name = "DIR")]
    performance: PathBuf,
    /// Folder of the compliance run: LoadGen's logs, or performance/run_1/ with them.
    #[arg(long, value_name = "DIR")]
    compliance: PathBuf,
    /// Folder below which the test's is made, with verdicts and logs as a submission has them.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// The test.
    #[arg(long, value_parser = named::<Test>())]
    test: Test,
    /// Write audit.config into this folder, from which LoadGen reads it if a run is started there; without it, the text is printed.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
}

/// Judges an accuracy log.
pub(crate) fn accuracy(args: &AccuracyArgs) -> Result<()> {
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let log = match (&args.log, &args.run) {
        (Some(log), _) => log.clone(),
        (None, Some(run)) => log_of(run).map_err(told)?,
        (None, None) => return Err(Usage("--log or --run says what is judged".to_owned()).into()),
    };
    let captions = captions::read(&args.captions).map_err(told)?;
    let kept = match &args.compliance_ids {
        None => Vec::new(),
        Some(of) => kept(of, captions.len())?,
    };
    let mut networks = Networks::new(args.device.open()?);
    networks.inception = Some(args.inception.clone());
    networks.clip = Some(args.clip.clone());
    let out = args.out.clone().unwrap_or_else(|| parent_folder(&log).to_owned());
    let size = args.width.zip(args.height);
    let job = Job { log: &log, size, captions: &captions, statistics: &args.statistics, kept: &kept, out: &out };
    let found = with_progress(&stop, |control| judge(&job, &networks, control)).map_err(told)?;
    found.notes().iter().for_each(|note| eprintln!("note: {}", harmless(note)));
    print(&found.line())
}

/// The samples whose pictures are kept: a round's, or those of a file.
fn kept(of: &str, captions: usize) -> Result<Vec<usize>> {
    match of.parse::<Round>() {
        Ok(round) => Ok(ids::of_round(round, captions)),
        Err(_) if Path::new(of).is_file() => ids::read(Path::new(of)).map_err(told),
        Err(unknown) => Err(Usage(format!("--compliance-ids {of}: there is no such file, and {unknown}")).into()),
    }
}

/// Judges a compliance run; one that does not pass is an error.
pub(crate) fn verify_test(args: &VerifyArgs) -> Result<()> {
    let VerifyArgs { test, performance, compliance, out } = args;
    let verdict = verify(*test, &Runs { submitted: performance, compliance, out }).map_err(told)?;
    verdict.notes.iter().for_each(|note| eprintln!("note: {}", harmless(note)));
    let passes = |pass: bool| if pass { "passes" } else { "fails" };
    if let Some(accuracy) = verdict.accuracy {
        print(&format!("accuracy     {}", passes(accuracy)))?;
    }
    print(&format!("performance  {}", passes(verdict.performance)))?;
    verdict.faults.iter().try_for_each(|fault| print(&harmless(&format!("fault        {fault}"))))?;
    let folder = verdict.folder.display();
    match verdict.passes() {
        true => print(&format!("{test} passes, {folder}")),
        false => bail!("{test} fails, as said above and in {folder}"),
    }
}

/// Writes a test's audit configuration.
pub(crate) fn audit(args: &AuditArgs) -> Result<()> {
    let text = args.test.audit_config();
    let Some(out) = &args.out else { return print(text.trim_end()) };
    let path = out.join(AUDIT_CONFIG);
    std::fs::create_dir_all(out).with_context(|| format!("{}: cannot be made", out.display()))?;
    write_bytes(&path, text.as_bytes()).with_context(|| format!("{}: cannot be written", path.display()))?;
    print(&format!("written {}; remove it before other runs, for LoadGen takes it up wherever it is", path.display()))
}

/// The error as the command line knows it: what is of the evaluation says itself whether the request is at fault.
fn told(error: AccuracyError) -> Error {
    match error {
        AccuracyError::Evaluate(error) => error.into(),
        other => other.into(),
    }
}
