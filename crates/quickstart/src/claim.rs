//! A folder belongs to one quickstart: what it was begun with is found out before anything is overwritten.

use crate::{QuickstartError, Stages};
use calotype_core::durable::{read_json, write_json};
use calotype_core::folders::{check_folder, content, file_in_place};
use calotype_core::lock::LOCK_FILE;
use calotype_train::trainer::{RECIPE, first_difference};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file that says what a folder was begun with.
pub(crate) const BEGUN: &str = calotype_core::folders::QUICKSTART;

/// What a folder was begun with.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    /// The preset's name, without the folder of recipes.
    preset: String,
    /// The stages' resolved recipes, but for the evaluation's: images may be drawn and judged anew.
    recipes: BTreeMap<String, String>,
}

/// A preset's name without the folder of recipes.
pub(crate) fn short_name(preset: &str) -> &str {
    preset.rsplit('/').next().unwrap_or(preset)
}

/// Whether a stage has left anything that another recipe would overwrite.
fn has_begun(out: &Path, stage: &str) -> bool {
    let folder = out.join(stage);
    match stage {
        "dataset" | "precache" => folder.exists(),
        _ => folder.join(RECIPE).is_file(),
    }
}

/// Compares what a folder was begun with, stage by stage as far as they have begun, and writes what it goes on with.
///
/// # Errors
/// [`QuickstartError::Other`] naming the preset, or the first key that differs; [`QuickstartError::Taken`].
pub(crate) fn claim(out: &Path, preset: &str, stages: &Stages) -> Result<(), QuickstartError> {
    let path = out.join(BEGUN);
    let preset = short_name(preset).to_owned();
    let kept = stages.texts().into_iter().filter(|(stage, _)| *stage != "evaluation");
    let recipes = kept.map(|(stage, text)| (stage.to_owned(), text.to_owned())).collect();
    let now = Begun { preset, recipes };
    let write = || write_json(&path, &now).map_err(QuickstartError::io(&path));
    let Some(begun) = read_json::<Begun>(&path).map_err(QuickstartError::io(&path))? else {
        refuse_others(out)?;
        return write();
    };
    let other = |what: String| Err(QuickstartError::Other { folder: out.to_owned(), what });
    if begun.preset != now.preset && now.recipes.keys().any(|stage| has_begun(out, stage)) {
        return other(format!(
            "of the preset `{}`, not `{}`: use --preset {} to go on",
            begun.preset, now.preset, begun.preset
        ));
    }
    for (stage, text) in now.recipes.iter().filter(|(stage, _)| has_begun(out, stage)) {
        let difference = begun.recipes.get(stage).and_then(|begun| first_difference(begun, text, out));
        if let Some(difference) = difference {
            return other(format!("with other settings ({stage}: {difference}): give the former ones to go on"));
        }
    }
    write()
}

/// Refuses a folder of something else, and a file in its place, before a lock is left there. In one that has a lock, who holds it is
/// found out first.
///
/// # Errors
/// [`QuickstartError::Taken`], [`QuickstartError::File`].
pub(crate) fn check_free(out: &Path) -> Result<(), QuickstartError> {
    if file_in_place(out).is_some() {
        return check_folder(out, &[]).map_err(QuickstartError::File);
    }
    let known = [BEGUN, LOCK_FILE].iter().any(|name| out.join(name).exists());
    if known || !out.is_dir() { Ok(()) } else { refuse_others(out) }
}

/// Refuses a folder that no quickstart has begun and that holds something: a training run, images. Hidden files, such as the lock
/// and what file managers and file systems leave, are nothing.
///
/// # Errors
/// [`QuickstartError::Taken`] naming some of what is there.
fn refuse_others(out: &Path) -> Result<(), QuickstartError> {
    const SHOWN: usize = 3;
    let entries = std::fs::read_dir(out).map_err(QuickstartError::io(out))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<String>>>()
        .map_err(QuickstartError::io(out))?;
    names.retain(|name| !name.starts_with('.') && name != "lost+found");
    if names.is_empty() {
        return Ok(());
    }
    names.sort_unstable();
    if let Some(found) = content(out) {
        return Err(QuickstartError::Taken { folder: out.to_owned(), what: found.to_string() });
    }
    let more = if names.len() > SHOWN { ", …" } else { "" };
    names.truncate(SHOWN);
    Err(QuickstartError::Taken { folder: out.to_owned(), what: format!("something else ({}{more})", names.join(", ")) })
}
