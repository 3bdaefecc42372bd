//! `mlperf inference submission` and `mlperf check-submission`: trees of MLPerf Inference, written and judged.

use super::{Usage, check_output, harmless, print};
use crate::args::{heading, named};
use anyhow::{Context, Result, anyhow, bail};
use calotype_core::words::plain;
use calotype_core::{absence, durable};
use calotype_mlperf::Verdict;
use calotype_mlperf::inference::{
    Availability, BENCHMARK, InferenceDivision, InferenceReport, InferenceSystem, Measurements, NewSubmission, Round,
    RunFacts, SummaryTable, SystemType, check_submission, highlights, pack, run_document, write_submission,
};
use clap::Args;
use std::path::{Path, PathBuf};

/// Name of the archive, and of the files beside it without their endings.
const NAME: &str = "mlperf_submission";

/// By which rules a tree is judged.
#[derive(Clone, Debug, Args)]
struct RoundArgs {
    /// The round, which decides about rules and layout.
    #[arg(long, value_name = "ROUND", value_parser = checked_round, help_heading = heading::RULES)]
    round: Round,
    /// Hold no sizes, durations and figures against it, as short runs are judged (the student competition's).
    #[arg(long, help_heading = heading::RULES)]
    short_run: bool,
    /// Write the checker's table of results that count there.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    csv: Option<PathBuf>,
}

/// A round whose checkers are known.
fn checked_round(text: &str) -> Result<Round, String> {
    let known = Round::CHECKED.map(|round| round.to_string()).join(", ");
    match text.parse::<Round>() {
        Ok(round) if Round::CHECKED.contains(&round) => Ok(round),
        _ => Err(format!("the rounds whose submission checkers are known are {known}")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct CheckSubmissionArgs {
    /// The tree: the folder that holds closed/, open/ or network/.
    tree: PathBuf,
    #[command(flatten)]
    rules: RoundArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SubmissionArgs {
    /// The folder of the runs: SCENARIO/performance/run_1 and SCENARIO/accuracy with LoadGen's logs and accuracy.txt, and
    /// SCENARIO/TEST01 and TEST04 where there are any.
    runs: PathBuf,
    /// A new folder for the tree (submission/), its archive, the commands and the highlights.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
    /// The submitter's name.
    #[arg(long, value_name = "NAME")]
    submitter: String,
    /// The division.
    #[arg(long, value_name = "NAME", value_parser = named::<InferenceDivision>(), default_value = "open")]
    division: InferenceDivision,
    /// The implementation's name.
    #[arg(long, value_name = "NAME", default_value = "calotype")]
    implementation: String,
    /// Files that show the implementation, such as a recipe.
    #[arg(long, value_name = "FILE")]
    source: Vec<PathBuf>,
    /// LoadGen's mlperf.conf, which trees of v4.1 hold.
    #[arg(long, value_name = "FILE")]
    mlperf_conf: Option<PathBuf>,
    /// Types of the weights, such as int8; what run.json says, or bf16, if absent.
    #[arg(long, value_name = "TYPE", help_heading = heading::MODEL)]
    weight_data_types: Option<String>,
    /// Types of what goes into the network; what run.json says, or those of the weights, if absent.
    #[arg(long, value_name = "TYPE", help_heading = heading::MODEL)]
    input_data_types: Option<String>,
    /// Name of the weights' file or folder; what run.json says if absent.
    #[arg(long, value_name = "NAME", help_heading = heading::MODEL)]
    starting_weights: Option<String>,
    /// What was done to the weights, such as "quantized to int8, per output channel".
    #[arg(long, value_name = "TEXT", default_value = "none", help_heading = heading::MODEL)]
    weight_transformations: String,
    /// Whether weights were trained further.
    #[arg(long, help_heading = heading::MODEL)]
    retrained: bool,
    /// The system's description (calotype doctor --system-json). If absent, this machine is described.
    #[arg(long, value_name = "FILE", help_heading = heading::SYSTEM)]
    system: Option<PathBuf>,
    /// Name of the system's folder and file; its name, without blanks, if absent.
    #[arg(long, value_name = "NAME", help_heading = heading::SYSTEM)]
    system_folder: Option<String>,
    /// A field of the description, such as cooling=air.
    #[arg(long, value_name = "NAME=VALUE", help_heading = heading::SYSTEM)]
    field: Vec<String>,
    #[command(flatten)]
    rules: RoundArgs,
}

impl RoundArgs {
    /// Refuses to write the table over something else.
    fn check_csv(&self) -> Result<()> {
        match &self.csv {
            Some(file) => check_output("--csv", file, "a table of results", SummaryTable::is_at),
            None => Ok(()),
        }
    }
}

/// Refuses what is no submission's tree: a checker passes over everything in it.
fn check_is_tree(tree: &Path) -> Result<()> {
    let shown = tree.display();
    let refuse = |problem: String| -> Result<()> { Err(Usage(format!("{shown}: {problem}")).into()) };
    if !tree.exists() {
        return refuse(format!("there is no such folder{}", absence(tree)));
    }
    if !tree.is_dir() {
        return refuse("is a file, and a submission is a folder that holds closed/, open/ or network/".to_owned());
    }
    if !InferenceDivision::ALL.iter().any(|division| tree.join(division.name()).is_dir()) {
        return refuse("is no submission: it holds none of the folders closed/, open/ and network/".to_owned());
    }
    Ok(())
}

pub(crate) fn check_tree(args: &CheckSubmissionArgs) -> Result<()> {
    args.rules.check_csv()?;
    check_is_tree(&args.tree)?;
    judge(&args.tree, &args.rules)
}

pub(crate) fn submission(args: &SubmissionArgs) -> Result<()> {
    args.rules.check_csv()?;
    let facts = RunFacts::of(&args.runs)?;
    let system = with_fields(described(args)?, &args.field)?;
    let folder = args.system_folder.clone().unwrap_or_else(|| system.system_name.replace([' ', '/'], "_"));
    let measurements = measurements(args, &facts)?;
    let tree = args.out.join("submission");
    std::fs::create_dir_all(&args.out).with_context(|| format!("{}: cannot create this folder", args.out.display()))?;
    let commands = run_document(&facts, &[command_line()]);
    let new = NewSubmission {
        round: args.rules.round,
        division: args.division,
        submitter: &args.submitter,
        system: &system,
        folder: &folder,
        implementation: &args.implementation,
        runs: &args.runs,
        measurements: &measurements,
        sources: &args.source,
        mlperf_conf: args.mlperf_conf.as_deref(),
        readme: &format!("How it was run:\n\n```\n{}```", commands),
    };
    let text = highlights(&system, &args.runs, &facts)?;
    let written = write_submission(&tree, &new)?;
    let beside = |ending: &str| args.out.join(format!("{NAME}.{ending}"));
    pack(&tree, &beside("tar.gz"))?;
    for (ending, text) in [("run", &commands), ("md", &text)] {
        let path = beside(ending);
        durable::write_bytes(&path, text.as_bytes())
            .with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    let scenarios: Vec<_> = written.scenarios.iter().map(|scenario| scenario.name()).collect();
    print(&format!("written {} ({}), {}", tree.display(), scenarios.join(", "), beside("tar.gz").display()))?;
    judge(&tree, &args.rules)
        .map_err(|error| anyhow!("{error}; the tree is kept: remove {} before the next try", args.out.display()))
}

/// Prints what was found; what does not pass is an error.
fn judge(tree: &Path, rules: &RoundArgs) -> Result<()> {
    let found = check_submission(tree, rules.round, rules.short_run)?;
    if let Some(csv) = &rules.csv {
        let table = SummaryTable { round: rules.round, report: &found }.to_string();
        durable::write_bytes(csv, table.as_bytes()).with_context(|| format!("{}: cannot be written", csv.display()))?;
    }
    let told = told(&found);
    if !told.is_empty() {
        print(harmless(&told).trim_end())?;
    }
    let (path, round) = (tree.display(), rules.round);
    match found.verdict() {
        // The official checkers accept a tree without results, which is no answer to who asks about some.
        Verdict::Pass if found.results.is_empty() => bail!(
            "{path}: there is no result to judge: it breaks no rule of {round}, and holds no result of {BENCHMARK} that counts"
        ),
        Verdict::Pass => print(&format!("{path}: passes by the rules of {round}")),
        Verdict::Fail => bail!("{path}: breaks the rules of {round}, as said above"),
        Verdict::Stop => bail!("{path}: the official checker of {round} breaks off while it reads it, as said above"),
    }
}

/// Results that count, and findings.
fn told(found: &InferenceReport) -> String {
    let result = |result: &calotype_mlperf::inference::InferenceResult| {
        format!("{}: {} {}\n", result.folder.display(), result.value, result.unit)
    };
    let results: String = found.results.iter().map(result).collect();
    format!("{results}{}", found.report)
}

fn described(args: &SubmissionArgs) -> Result<InferenceSystem> {
    let Some(file) = &args.system else {
        return Ok(of_this_machine(&args.submitter));
    };
    InferenceSystem::read(file)
        .map_err(|error| Usage(format!("{}: {}", file.display(), plain(&error.to_string()))).into())
}

/// This machine's description; who submits it is filled in later.
pub(super) fn of_this_machine(submitter: &str) -> InferenceSystem {
    let name = calotype_core::system::processor_name().unwrap_or_else(|| "system".to_owned());
    let name: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    let name = name.split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
    InferenceSystem::of_this_machine(submitter, &name, SystemType::Edge, Availability::Available)
}

/// A description with some fields set.
fn with_fields(mut system: InferenceSystem, fields: &[String]) -> Result<InferenceSystem> {
    for field in fields {
        let (name, value) = field
            .split_once('=')
            .ok_or_else(|| Usage(format!("--field {field}: write it as NAME=VALUE, such as cooling=air")))?;
        if fields.iter().any(|other| other != field && other.split('=').next() == Some(name)) {
            return Err(Usage(format!("--field {name}: is given twice with different values; leave one out")).into());
        }
        let known = || InferenceSystem::names().collect::<Vec<_>>().join(", ");
        let place = system
            .field(name)
            .ok_or_else(|| Usage(format!("--field {name}: descriptions have no such field; they have {}", known())))?;
        value.clone_into(place);
    }
    Ok(system)
}

fn measurements(args: &SubmissionArgs, facts: &RunFacts) -> Result<Measurements> {
    let types = args.weight_data_types.clone().or_else(|| facts.weights()).unwrap_or_else(|| "bf16".to_owned());
    let inputs = args.input_data_types.clone().or_else(|| facts.precision());
    let weights = args.starting_weights.clone().or(facts.model.clone()).ok_or_else(|| {
        Usage(format!(
            "{}: does not say which weights were run; give their name with --starting-weights",
            args.runs.display()
        ))
    })?;
    Ok(Measurements {
        input_data_types: inputs.unwrap_or_else(|| types.clone()),
        retraining: if args.retrained { "yes" } else { "no" }.to_owned(),
        starting_weights_filename: weights,
        weight_data_types: types,
        weight_transformations: args.weight_transformations.clone(),
    })
}

/// This process's command line, as a shell takes it.
pub(super) fn command_line() -> String {
    std::env::args().map(|argument| quoted(&argument)).collect::<Vec<_>>().join(" ")
}

fn quoted(argument: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,+@%".contains(letter);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_for_a_shell() {
        for (argument, found) in
            [("--out", "--out"), ("a b", "'a b'"), ("", "''"), ("it's", r"'it'\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(quoted(argument), found);
        }
    }

    #[test]
    fn fields_are_set_by_name() {
        let system = InferenceSystem::default();
        let set = |fields: &[&str]| {
            with_fields(system.clone(), &fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(set(&["cooling=air", "hw_notes=a=b"]).unwrap().hw_notes, "a=b");
        for (fields, part) in [
            (&["cooling"][..], "NAME=VALUE"),
            (&["cold=1"], "no such field"),
            (&["cooling=a", "cooling=b"], "given twice"),
        ] {
            assert!(set(fields).unwrap_err().to_string().contains(part), "{fields:?}");
        }
    }
}
