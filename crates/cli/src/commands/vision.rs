//! `evaluate RECIPE` of vision models: classifiers, CLIP without training on the classes and in retrieval, linear probes.

use super::{harmless, print};
use crate::args::DeviceArgs;
use crate::data::with_progress;
use anyhow::{Context, Result};
use calotype_core::StopFlag;
use calotype_evaluate::vision::{KINDS, Outcome, Recipe};
use calotype_train::RecipeLoader;
use calotype_train::recipe::Resolved;
use std::path::Path;

/// Name of the resolved recipe in the folder of an evaluation.
const RECIPE: &str = "recipe.toml";

/// Whether the value of `kind` is one of vision models.
pub(crate) fn is_of_vision(kind: &str) -> bool {
    KINDS.iter().any(|known| known.name() == kind)
}

/// Judges a vision model by the recipe of a name, and writes what was found into a folder.
pub(crate) fn judge(
    loader: &RecipeLoader,
    (name, overrides): (&str, &[String]),
    out: &Path,
    device: &DeviceArgs,
    dry_run: bool,
) -> Result<()> {
    let recipe: Resolved<Recipe> = loader.out(out).load(name, overrides)?;
    recipe.value.validate()?;
    if dry_run {
        return print(recipe.text.trim_end());
    }
    recipe.value.model()?;
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let device = device.open()?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    recipe.save(&out.join(RECIPE))?;
    let outcome = with_progress(&stop, |control| recipe.value.run(out, &device, control))?;
    outcome.write(out)?;
    tell(&outcome, out)
}

fn tell(outcome: &Outcome, out: &Path) -> Result<()> {
    for sentence in &outcome.notices {
        eprintln!("note: {}", harmless(sentence));
    }
    for figure in &outcome.figures {
        let interval = figure.interval.map_or(String::new(), |[low, high]| format!(" [{low:.4}, {high:.4}]"));
        print(&format!(
            "{:16} {:16} {:.4}{interval}  of {}",
            figure.metric, figure.variant, figure.value, figure.count
        ))?;
    }
    if let Some(line) = &outcome.line {
        print(line)?;
    }
    print(&format!("written to {}", out.display()))
}
