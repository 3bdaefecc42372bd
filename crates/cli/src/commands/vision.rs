//! `evaluate RECIPE` of vision models: classifiers, CLIP without training on the classes and in retrieval, linear probes.

use super::{Usage, check_out, harmless, print, tell_quickstart};
use crate::args::DeviceArgs;
use crate::data::with_progress;
use anyhow::{Context, Result};
use calotype_core::folders::{Content, NewFolder};
use calotype_core::{StopFlag, absence};
use calotype_evaluate::vision::{KINDS, Outcome, Recipe};
use calotype_train::RecipeLoader;
use calotype_train::recipe::Resolved;
use std::path::Path;

/// Name of the resolved recipe in the folder of an evaluation.
const RECIPE: &str = calotype_core::folders::RECIPE;

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
    tell_quickstart(name, &recipe.text, overrides);
    if dry_run {
        return print(recipe.text.trim_end());
    }
    let model = Path::new(recipe.value.model()?);
    // What the recipe has made first is not there yet.
    if !model.exists() && !model.starts_with(out) {
        let (model, near) = (model.display(), absence(model));
        return Err(Usage(format!(
            "recipe key `model`: there is nothing at {model}{near}; name a checkpoint in any layout"
        ))
        .into());
    }
    check_out("--out", out, &[Content::VisionEvaluation])?;
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let device = device.open()?;
    let is_free = !out.join(RECIPE).exists();
    let folder = NewFolder::make(out).with_context(|| format!("cannot make {}", out.display()))?;
    recipe.save(&out.join(RECIPE))?;
    let outcome = with_progress(&stop, |control| recipe.value.run(out, &device, control));
    if outcome.is_err() && is_free {
        // A folder is not taken by what cannot be.
        folder.take_back([RECIPE]);
    }
    let outcome = outcome?;
    outcome.write(out)?;
    outcome.write_page(out, Path::new(recipe.value.model()?))?;
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
