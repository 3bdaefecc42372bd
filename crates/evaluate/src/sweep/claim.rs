//! Whose a sweep's folder is: of one choice of what is drawn, and of one process for each slice.

use super::draw::difference;
use super::layout::{Layout, make_folder};
use super::recipe::{Judged, NoiseSettings, SamplerSettings};
use super::{Captions, Sweep, SweepError};
use calotype_checkpoints::OpenOptions;
use calotype_core::{FolderLock, durable};
use calotype_ops::Precision;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// What of a recipe decides over the pictures, but for the guidance scales, to which others may be added.
#[derive(Serialize)]
struct Drawing<'a> {
    judged: Judged<'a>,
    averaged: bool,
    open: &'a OpenOptions,
    /// Hash of the list of captions.
    captions: &'a str,
    images: usize,
    seed: u64,
    size: Option<usize>,
    precision: Precision,
    sampler: SamplerSettings,
    noise: &'a NoiseSettings,
}

/// File name of what a sweep draws.
const DRAWING: &str = "drawing.json";

/// Refuses the folder of a training run, a quickstart or a model, whose recipe would be overwritten, and leaves nothing there.
fn check_free(out: &Path) -> Result<(), SweepError> {
    const OTHERS: [&str; 3] = ["quickstart.json", "model_index.json", "recipe.toml"];
    // `recipe.toml` is ours where it came behind this.
    let found = OTHERS.into_iter().map(|name| out.join(name)).find(|path| path.is_file());
    match found.filter(|_| !out.join(DRAWING).is_file()) {
        None => Ok(()),
        Some(path) => {
            let problem =
                "this folder holds something else than an evaluation; choose another folder with --out".to_owned();
            Err(SweepError::Other { path, problem })
        }
    }
}

impl Sweep<'_> {
    /// Takes the folder for this recipe, and its slices for these processes. The first process does it for all.
    ///
    /// # Errors
    /// [`SweepError::Other`] for a folder with pictures of another recipe; [`SweepError::Busy`] if another process does a slice.
    pub(super) fn claim(&self, layout: &Layout, captions: &Captions) -> Result<Vec<FolderLock>, SweepError> {
        if !self.collective.is_first() {
            return Ok(Vec::new());
        }
        check_free(&layout.out)?;
        make_folder(&layout.out)?;
        let lock = |slice: &calotype_data::Slice| -> Result<FolderLock, SweepError> {
            let folder = layout.slice(*slice);
            make_folder(&folder)?;
            Ok(FolderLock::take(&folder)?)
        };
        let locks = self.slices.iter().map(lock).collect::<Result<_, _>>()?;
        let recipe = self.recipe;
        let drawing = Drawing {
            judged: recipe.judged()?,
            averaged: recipe.averaged,
            open: &recipe.open,
            captions: &captions.sha256,
            images: recipe.images,
            seed: recipe.seed,
            size: recipe.size,
            precision: recipe.precision.resolve(self.device),
            sampler: SamplerSettings { guidance: Vec::new(), ..recipe.sampler.clone() },
            noise: &recipe.noise,
        };
        let path = layout.out.join(DRAWING);
        let ours = serde_json::to_value(&drawing).map_err(|error| SweepError::io("write", &path)(error.into()))?;
        let found: Option<Value> = durable::read_json(&path).map_err(SweepError::io("read", &path))?;
        match found.and_then(|found| difference(&found, &ours)) {
            Some(difference) => {
                let problem = format!(
                    "this folder holds a sweep of other pictures: {difference}; choose another folder with --out, or remove this one"
                );
                Err(SweepError::Other { path, problem })
            }
            None => {
                durable::write_json(&path, &ours).map_err(SweepError::io("write", &path))?;
                let path = layout.out.join("recipe.toml");
                durable::write_bytes(&path, self.text.as_bytes()).map_err(SweepError::io("write", &path))?;
                Ok(locks)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_something_else_takes_no_sweep() {
        let folder = tempfile::tempdir().unwrap();
        let free = || check_free(folder.path()).map_err(|error| error.to_string());
        assert_eq!(free(), Ok(()));
        for name in ["recipe.toml", "model_index.json", "quickstart.json"] {
            std::fs::write(folder.path().join(name), "").unwrap();
            let error = free().unwrap_err();
            assert!(error.contains(name) && error.contains("choose another folder with --out"), "{error}");
        }
        std::fs::write(folder.path().join(DRAWING), "{}").unwrap();
        assert_eq!(free(), Ok(()), "a sweep's own");
        assert_eq!(check_free(&folder.path().join("none")).map_err(|error| error.to_string()), Ok(()));
    }
}
