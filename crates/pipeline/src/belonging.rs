//! Which networks belong together: a UNet draws with the encoders that it was trained with, and with others of the same shapes
//! it draws nonsense without a word.
//!
//! A folder that training wrote holds the hashes of its networks. Whoever puts another network in its place is told so.

use crate::error::PipelineError;
use crate::network::hash_tensors;
use calotype_checkpoints::{Checkpoint, Component, LayoutError};
use calotype_core::durable;
use calotype_weights::TensorSource;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file with the hashes.
pub const TRAINED_TOGETHER: &str = "trained_together.json";

/// Networks of a pipeline that depend on each other.
const TOGETHER: [Component; 4] = [Component::Unet, Component::Vae, Component::TextEncoder, Component::TextEncoder2];

/// Writes into the folder of a pipeline which networks it holds, by the hashes of their tensors under canonical keys. A folder
/// with one network alone gets no such file.
///
/// # Errors
/// [`PipelineError`]: the folder is no checkpoint, or the file cannot be written.
pub fn record(folder: &Path) -> Result<(), PipelineError> {
    let hashes = hashes(&Checkpoint::open(folder)?)?;
    if hashes.len() < 2 {
        return Ok(());
    }
    let path = folder.join(TRAINED_TOGETHER);
    durable::write_json(&path, &hashes).map_err(PipelineError::io("write", path))
}

/// Refuses a folder in which a network is not the one that training put there. Checkpoints without the file are not looked at.
/// A network that the caller takes from elsewhere is his choice, which the sentence that is returned tells.
///
/// # Errors
/// [`PipelineError::Setting`] naming the network; others if a file cannot be read.
pub fn check(checkpoint: &Checkpoint) -> Result<Option<String>, PipelineError> {
    let Some(recorded) = recorded(checkpoint)? else { return Ok(None) };
    let path = checkpoint.path().join(TRAINED_TOGETHER);
    let found = hashes(checkpoint)?;
    let strange = found.iter().filter(|(name, hash)| recorded.get(*name).is_some_and(|recorded| recorded != *hash));
    let chosen = |name: &str| name.parse().is_ok_and(|component| checkpoint.is_taken_elsewhere(component));
    let (chosen, strange): (Vec<&String>, Vec<&String>) = strange.map(|(name, _)| name).partition(|name| chosen(name));
    match strange.first() {
        None => Ok(chosen.first().map(|name| {
            format!("{}: the other networks were not trained with this {name}", checkpoint.path().display())
        })),
        Some(name) => Err(PipelineError::setting(format!(
            "{}: its {name} is not the one that the other networks were trained with ({TRAINED_TOGETHER} there has another hash \
             of its weights); put the former one back, or remove {} to use them together all the same",
            checkpoint.path().display(),
            path.display()
        ))),
    }
}

/// The hashes that training recorded of a checkpoint's networks, by component; none for other checkpoints.
///
/// # Errors
/// [`PipelineError::Io`] if the file cannot be read.
pub fn recorded(checkpoint: &Checkpoint) -> Result<Option<BTreeMap<String, String>>, PipelineError> {
    let path = checkpoint.path().join(TRAINED_TOGETHER);
    durable::read_json(&path).map_err(PipelineError::io("read", path.clone()))
}

/// The hashes of the tensors of a checkpoint's networks under canonical keys, by component.
///
/// # Errors
/// [`PipelineError`] if a tensor cannot be read.
pub fn hashes(checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>, PipelineError> {
    let held = checkpoint.components();
    let held = TOGETHER.into_iter().filter(|component| held.contains(component));
    held.map(|component| {
        let source = checkpoint.component(component)?;
        let names = source.entries().into_iter().map(|entry| entry.name).collect();
        let hash = hash_tensors(&source, names).map_err(|error| PipelineError::from(LayoutError::from(error)))?;
        Ok((component.name().to_owned(), hash))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random_checkpoint::{RandomCheckpoint, RandomFamily};
    use calotype_checkpoints::OpenOptions;

    #[test]
    fn a_network_of_another_training_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [own, other] = ["own", "other"].map(|name| folder.path().join(name));
        RandomCheckpoint::new(RandomFamily::Tiny).write(&own).unwrap();
        RandomCheckpoint { seed: 7, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(&other).unwrap();
        let open = || Checkpoint::open(&own).unwrap();
        check(&open()).unwrap();
        record(&own).unwrap();
        check(&open()).unwrap();
        let file = "vae/diffusion_pytorch_model.safetensors";
        std::fs::copy(other.join(file), own.join(file)).unwrap();
        let error = check(&open()).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("its vae is not the one"), "{error}");
        // One that is named is chosen, and told if it is another.
        let with = |vae: &Path| {
            let options = OpenOptions { vae: Some(vae.to_owned()), ..OpenOptions::default() };
            check(&Checkpoint::open_with(&own, &options).unwrap())
        };
        assert!(with(&other).unwrap().unwrap().contains("not trained with this vae"));
        RandomCheckpoint::new(RandomFamily::Tiny).write(&folder.path().join("same")).unwrap();
        assert_eq!(with(&folder.path().join("same")).unwrap(), None);
        let unet = "unet/diffusion_pytorch_model.safetensors";
        std::fs::copy(other.join(unet), own.join(unet)).unwrap();
        assert!(with(&other).unwrap_err().to_string().contains("its unet is not the one"));
        std::fs::remove_file(own.join(TRAINED_TOGETHER)).unwrap();
        check(&open()).unwrap();
    }
}
