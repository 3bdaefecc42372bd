//! `mlperf plot`: evaluations of logs over the samples seen.

use super::mlperf::{benchmark_of, log_of};
use super::{Usage, print};
use crate::args::{heading, named};
use anyhow::{Context, Result};
use calotype_evaluate::report::convergence::{Behind, TrainingRun, charts};
use calotype_evaluate::report::write_drawing;
use calotype_mlperf::{Benchmark, Log, RcpSet, Rcps, Ruleset};
use clap::Args;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// Logs, of any program, or folders of runs.
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    /// Folder for the plots, an SVG and a PNG for each metric.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
    /// The round whose reference point is drawn; the benchmark's last one if absent.
    #[arg(long, value_name = "ROUND", value_parser = named::<Ruleset>(), help_heading = heading::RULES)]
    ruleset: Option<Ruleset>,
    /// Batch of the reference runs and of the reference point, or none. If absent, what is near to the first log's batch.
    #[arg(long, value_name = "BATCH", help_heading = heading::RULES)]
    reference_batch: Option<ReferenceBatch>,
}

/// What of the reference is drawn.
#[derive(Clone, Copy, Debug)]
enum ReferenceBatch {
    Nothing,
    Of(u64),
}

impl FromStr for ReferenceBatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("none", _) => Ok(Self::Nothing),
            (_, Ok(batch)) if batch > 0 => Ok(Self::Of(batch)),
            _ => Err("write a batch such as 512, or none".to_owned()),
        }
    }
}

pub(super) fn plot(args: &PlotArgs) -> Result<()> {
    let logs = args.logs.iter().map(|path| Ok(Log::read(&log_of(path))?)).collect::<Result<Vec<Log>>>()?;
    let benchmark = benchmark_of(&logs[0])?;
    let runs = args.logs.iter().zip(&logs).map(|(path, log)| run(path, log, benchmark)).collect::<Result<Vec<_>>>()?;
    let behind = behind(args, benchmark, &logs[0])?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("{}: cannot be made", args.out.display()))?;
    for (metric, chart) in charts(&runs, &behind) {
        let path = args.out.join(format!("convergence_{}", metric.key()));
        for path in write_drawing(&chart.drawing(), &path)? {
            print(&format!("written {}", path.display()))?;
        }
    }
    let caption = behind.caption();
    if caption.is_empty() { Ok(()) } else { print(&caption) }
}

/// The evaluations of a log, under the path that was given.
fn run(path: &Path, log: &Log, benchmark: Benchmark) -> Result<TrainingRun> {
    let own = benchmark_of(log)?;
    if own != benchmark {
        let problem =
            format!("{}: is of {own}, not of {benchmark} as the first log; plot each benchmark alone", path.display());
        return Err(Usage(problem).into());
    }
    let found = log.finite_scores(benchmark);
    let mut evaluations = found.map_err(|problem| Usage(format!("{}: {problem}", log.path.display())))?;
    evaluations.sort_by_key(|scores| scores.samples);
    Ok(TrainingRun { name: path.display().to_string(), evaluations })
}

fn behind(args: &PlotArgs, benchmark: Benchmark, log: &Log) -> Result<Behind> {
    if let Some(round) = args.ruleset.filter(|round| !benchmark.rulesets().contains(round)) {
        let rounds: Vec<_> = benchmark.rulesets().iter().map(|round| round.name()).collect();
        let problem = format!("--ruleset {round}: that round does not have {benchmark}, only {} do", rounds.join(", "));
        return Err(Usage(problem).into());
    }
    let behind = match (args.reference_batch, log.global_batch()) {
        (Some(ReferenceBatch::Nothing), _) | (None, None) => return Ok(Behind::nothing(benchmark)),
        (Some(ReferenceBatch::Of(batch)), _) | (None, Some(batch)) => Behind::of(benchmark, args.ruleset, batch),
    };
    if behind.is_nothing() {
        let round = args.ruleset.or_else(|| benchmark.rulesets().last().copied());
        let points = round.and_then(|round| Rcps::published(round, benchmark));
        let points = points.map_or_else(Vec::new, |points| points.points(RcpSet::Full));
        let batches = points.iter().map(|point| point.batch.to_string()).collect::<Vec<_>>().join(", ");
        let given = args.reference_batch.map_or("the log's batch", |_| "--reference-batch");
        eprintln!(
            "warning: {given} is far from those of the reference, which is not drawn; --reference-batch takes {batches}"
        );
    }
    Ok(behind)
}
