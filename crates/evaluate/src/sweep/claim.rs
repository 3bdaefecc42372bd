//! Whose a sweep's folder is: of one choice of what is drawn, and of one process for each slice.

use super::draw::{difference, hashes};
use super::layout::{Layout, Point, make_folder};
use super::recipe::{Judged, NoiseSettings, SamplerSettings, SweepRecipe};
use super::{Captions, Sweep, SweepError};
use calotype_checkpoints::OpenOptions;
use calotype_core::folders::{Content, DRAWING, NewFolder, RECIPE, check_folder};
use calotype_core::lock::LOCK_FILE;
use calotype_core::{FolderLock, durable};
use calotype_data::Slice;
use calotype_ops::Precision;
use calotype_pipeline::belonging::Hashes;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

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
    /// Hashes of the model's networks, whose files can be exchanged under their path; none where a run or pictures are judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    networks: Option<Hashes>,
}

/// A sweep's folder, taken.
pub(super) struct Claim {
    /// Of its slices; held until the claim is dropped.
    locks: Vec<FolderLock>,
    /// Hashes of the networks that draw, if this process had to find them.
    pub networks: Option<Hashes>,
    /// The folder, if this process has begun it.
    begun: Option<NewFolder>,
}

/// Refuses the folder of something else, among which pictures and features would lie, and leaves nothing there.
fn check_free(out: &Path) -> Result<(), SweepError> {
    let Err(problem) = check_folder(out, &[Content::Evaluation]) else { return Ok(()) };
    Err(SweepError::Taken(problem))
}

/// What a claim of slices writes into the folder.
fn written(layout: &Layout, slices: &[Slice]) -> Vec<PathBuf> {
    let of_slice = |slice: &Slice| {
        let folder = layout.slice(*slice);
        [folder.join(LOCK_FILE), folder]
    };
    let mut paths: Vec<PathBuf> = slices.iter().flat_map(of_slice).collect();
    paths.extend([layout.slices(), layout.out.join(DRAWING), layout.out.join(RECIPE)]);
    paths
}

impl Claim {
    /// Gives back a folder that this process has begun: it is not taken by what cannot be.
    pub fn release(self, layout: &Layout, slices: &[Slice]) {
        if let Some(folder) = self.begun {
            folder.take_back(written(layout, slices));
        }
    }
}

impl Sweep<'_> {
    /// Takes the folder for this recipe, and its slices for these processes. The first process does it for all. A failure leaves
    /// nothing in a folder that was free.
    ///
    /// # Errors
    /// [`SweepError::Taken`] for a folder of something else; [`SweepError::Other`] for one with pictures of another recipe or of other weights, or with pictures of which nothing says
    /// what they are; [`SweepError::Busy`] if another process does a slice.
    pub(super) fn claim(&self, layout: &Layout, captions: &Captions) -> Result<Claim, SweepError> {
        let mut claim = Claim { locks: Vec::new(), networks: None, begun: None };
        if !self.collective.is_first() {
            return Ok(claim);
        }
        check_free(&layout.out)?;
        let is_free = !layout.out.join(DRAWING).exists();
        let folder = NewFolder::make(&layout.out).map_err(SweepError::io("make the folder", &layout.out))?;
        claim.begun = is_free.then_some(folder);
        for slice in self.slices {
            let folder = layout.slice(*slice);
            make_folder(&folder)?;
            // What another process has taken is not given back by this one.
            claim.locks.push(FolderLock::take(&folder)?);
        }
        match self.take(layout, captions, &mut claim) {
            Ok(()) => Ok(claim),
            Err(problem) => {
                claim.release(layout, self.slices);
                Err(problem)
            }
        }
    }

    fn take(&self, layout: &Layout, captions: &Captions, claim: &mut Claim) -> Result<(), SweepError> {
        self.slices.iter().try_for_each(|slice| layout.remove_models(*slice))?;
        claim.networks = self.networks()?;
        let ours = self.agreed(layout, self.drawing(captions, claim.networks.clone())?)?;
        let path = layout.out.join(DRAWING);
        durable::write_json(&path, &ours).map_err(SweepError::io("write", &path))?;
        let path = layout.out.join(RECIPE);
        durable::write_bytes(&path, self.text.as_bytes()).map_err(SweepError::io("write", &path))
    }

    /// What this sweep draws.
    fn drawing(&self, captions: &Captions, networks: Option<Hashes>) -> Result<Value, SweepError> {
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
            networks,
        };
        serde_json::to_value(&drawing).map_err(|error| SweepError::io("write", Path::new(DRAWING))(error.into()))
    }

    /// The same, completed by what the folder says, and refused if that is something else.
    fn agreed(&self, layout: &Layout, ours: Value) -> Result<Value, SweepError> {
        let Some(found) = recorded(layout)? else { return Ok(ours) };
        let networks = match found.get(NETWORKS) {
            Some(networks) => Some(networks.clone()),
            None => drawn_by(layout, self.recipe)?,
        };
        let ours = with_networks(ours, networks.as_ref());
        // That of an earlier version has none: those that are there now are its own, if no picture says another.
        let found = with_networks(found, networks.as_ref().or(ours.get(NETWORKS)));
        match difference(&found, &ours) {
            None => Ok(ours),
            Some(difference) => {
                let problem = format!(
                    "this folder holds a sweep of other pictures: {difference}; choose another folder with --out, or remove this one"
                );
                Err(SweepError::Other { path: layout.out.join(DRAWING), problem })
            }
        }
    }

    /// Hashes of the model's networks. A sweep whose pictures are all drawn goes on without its model.
    fn networks(&self) -> Result<Option<Hashes>, SweepError> {
        match self.recipe.judged()? {
            Judged::Model(path) if Path::new(path).exists() => Ok(Some(hashes(Path::new(path), &self.recipe.open)?)),
            _ => Ok(None),
        }
    }
}

/// Key of the networks' hashes.
const NETWORKS: &str = "networks";

/// What the folder says that it draws.
///
/// # Errors
/// [`SweepError::Other`] if it does not, and holds work: what that is would be guessed.
fn recorded(layout: &Layout) -> Result<Option<Value>, SweepError> {
    let path = layout.out.join(DRAWING);
    // Whoever works in the folder writes the file before anything else, so that it is looked for after that.
    let work =
        ["pictures", "features", "scores"].map(|name| layout.out.join(name)).into_iter().find(|path| path.exists());
    let wrong = |problem: String| SweepError::Other { path: path.clone(), problem };
    let found: Option<Value> = durable::read_json(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => {
            wrong(format!("the file is damaged: {error}; copy it back, or choose another folder with --out"))
        }
        _ => SweepError::io("read", &path)(error),
    })?;
    match (found, work) {
        (None, Some(work)) => Err(wrong(format!(
            "this file is gone, and nothing else says what {} is of; copy it back, choose another folder with --out, or remove this one",
            work.display()
        ))),
        (found, _) => Ok(found),
    }
}

/// The networks' hashes that stand beside pictures, for folders of earlier versions.
fn drawn_by(layout: &Layout, recipe: &SweepRecipe) -> Result<Option<Value>, SweepError> {
    for scale in &recipe.sampler.guidance {
        let path = layout.drawn(&Point { samples: None, guidance: Some(*scale) });
        let found: Option<Value> = durable::read_json(&path).map_err(SweepError::io("read", &path))?;
        if let Some(networks) = found.and_then(|found| found.get(NETWORKS).cloned()) {
            return Ok(Some(networks));
        }
    }
    Ok(None)
}

/// A drawing with these networks, if it has none of its own.
fn with_networks(mut drawing: Value, networks: Option<&Value>) -> Value {
    if let (Value::Object(fields), Some(networks)) = (&mut drawing, networks) {
        fields.entry(NETWORKS).or_insert_with(|| networks.clone());
    }
    drawing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_are_known_by_their_kinds() {
        use crate::sweep::KIND;
        use crate::vision::KINDS;
        use calotype_core::folders::EVALUATIONS;
        let known: Vec<&str> = std::iter::once(KIND).chain(KINDS.iter().map(|kind| kind.name())).collect();
        assert!(EVALUATIONS[0] == KIND && known.len() == EVALUATIONS.len(), "{known:?}");
        assert!(known.iter().all(|kind| EVALUATIONS.contains(kind)), "{known:?}");
    }

    #[test]
    fn a_folder_of_something_else_takes_no_sweep() {
        let folder = tempfile::tempdir().unwrap();
        let free = || check_free(folder.path()).map_err(|error| error.to_string());
        assert_eq!(free(), Ok(()));
        for name in ["cat.jpg", "recipe.toml", "model_index.json", "quickstart.json"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            let error = free().unwrap_err();
            assert!(error.contains(name) && error.contains("choose another folder with --out"), "{error}");
            std::fs::remove_file(path).unwrap();
        }
        std::fs::write(folder.path().join("recipe.toml"), "kind = \"zero_shot\"").unwrap();
        assert!(free().unwrap_err().contains("an evaluation"), "of another kind");
        std::fs::write(folder.path().join(DRAWING), "{}").unwrap();
        assert_eq!(free(), Ok(()), "a sweep's own");
        assert_eq!(check_free(&folder.path().join("none")).map_err(|error| error.to_string()), Ok(()));
    }
}
