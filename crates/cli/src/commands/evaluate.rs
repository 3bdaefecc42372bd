//! `calotype evaluate`: judges by a recipe, judges pictures, and compares what was found.

use super::judging::{CompareArgs, PicturesArgs, compare, pictures};
use super::sweep::{SweepArgs, full_name, sweep};
use super::{Usage, default_folder, recipe_loader, vision};
use crate::ranks;
use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, arg_required_else_help = true)]
pub(crate) struct EvaluateArgs {
    #[command(subcommand)]
    command: Option<EvaluateCommand>,
    #[command(flatten)]
    sweep: SweepArgs,
}

#[derive(Debug, Subcommand)]
enum EvaluateCommand {
    /// Judge pictures made anywhere: FID and its relatives against other pictures, CLIP score against captions.
    Pictures(Box<PicturesArgs>),
    /// Compare the figures of two files; those that are not of the same networks, settings and samples are refused.
    Compare(CompareArgs),
}

pub(crate) fn evaluate(args: &EvaluateArgs, threads: Option<usize>) -> Result<()> {
    match &args.command {
        None => by_recipe(&args.sweep, threads),
        Some(EvaluateCommand::Pictures(args)) => pictures(args),
        Some(EvaluateCommand::Compare(args)) => compare(args),
    }
}

/// Judges by a recipe, as its `kind` says.
fn by_recipe(args: &SweepArgs, threads: Option<usize>) -> Result<()> {
    let loader = recipe_loader();
    let given = args.recipe.as_deref().unwrap_or_default();
    let name = full_name(&loader, given);
    let table = loader.load::<toml::Table>(&name, &args.overrides)?.value;
    let kind = table.get("kind").and_then(toml::Value::as_str);
    if !kind.is_some_and(vision::is_of_vision) {
        return sweep(args, threads);
    }
    if let Some(flag) = args.drawing_flag() {
        return Err(Usage(format!("{flag} is of recipes that draw pictures, and {given} judges a vision model")).into());
    }
    let place = ranks::connect(threads, None)?;
    let outcome = match place.collective.world() {
        1 => {
            let out = args.out.clone().unwrap_or_else(|| default_folder(given));
            vision::judge(&loader, (&name, &args.overrides), &out, &args.device, args.dry_run)
        }
        _ => Err(Usage("vision models are judged by one process; start without a launcher".to_owned()).into()),
    };
    ranks::end(&*place.collective, outcome)
}
