//! Which networks belong together: a UNet draws with the encoders that it was trained with, and with others of the same shapes
//! it draws nonsense without a word.
//!
//! A folder that training wrote holds the hashes of its networks. Whoever puts another network in its place is told so.

use crate::error::PipelineError;
use crate::network::hash_tensors;
use calotype_checkpoints::{Checkpoint, Component, ComponentSource, LayoutError};
use calotype_core::durable;
use calotype_weights::TensorSource;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file with the hashes.
pub const TRAINED_TOGETHER: &str = "trained_together.json";

/// Hashes of the tensors of networks under canonical keys, by component.
pub type Hashes = BTreeMap<String, String>;

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

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// A sentence about networks that the caller takes from elsewhere.
    pub note: Option<String>,
    /// [`own_hashes`], if they were computed or known.
    pub hashes: Option<Hashes>,
}

/// Refuses a folder in which a network is not the one that training put there. Checkpoints without the file are not looked at.
/// A network that the caller takes from elsewhere is his choice, of which there is a note. `known` are [`own_hashes`] that were
/// computed before: reading all weights takes time.
///
/// # Errors
/// [`PipelineError::Setting`] naming the network; others if a file cannot be read.
pub fn check(checkpoint: &Checkpoint, known: Option<Hashes>) -> Result<Checked, PipelineError> {
    let shown = checkpoint.path().display();
    let Strangers { chosen, strange, hashes } = strangers(checkpoint, known)?;
    if let Some(name) = strange.first() {
        return Err(PipelineError::setting(format!("{shown}: {}", problem(checkpoint, name))));
    }
    let note = chosen.first().map(|name| format!("{shown}: the other networks were not trained with this {name}"));
    Ok(Checked { note, hashes })
}

/// Sentences about the networks of a folder that are not those that training put there, for people who look at it.
///
/// # Errors
/// [`PipelineError`] if a file cannot be read.
pub fn problems(checkpoint: &Checkpoint) -> Result<Vec<String>, PipelineError> {
    let Strangers { strange, .. } = strangers(checkpoint, None)?;
    Ok(strange.iter().map(|name| problem(checkpoint, name)).collect())
}

fn problem(checkpoint: &Checkpoint, name: &str) -> String {
    format!(
        "its {name} is not the one that the other networks were trained with ({TRAINED_TOGETHER} there has another hash of its \
         weights); put the former one back, or remove {} to use them together all the same",
        checkpoint.path().join(TRAINED_TOGETHER).display()
    )
}

/// Networks that are not those that training recorded.
struct Strangers {
    /// Those that the caller takes from elsewhere.
    chosen: Vec<String>,
    /// The others.
    strange: Vec<String>,
    hashes: Option<Hashes>,
}

fn strangers(checkpoint: &Checkpoint, known: Option<Hashes>) -> Result<Strangers, PipelineError> {
    let Some(recorded) = recorded(checkpoint)? else {
        return Ok(Strangers { chosen: Vec::new(), strange: Vec::new(), hashes: known });
    };
    let found = known.map_or_else(|| own_hashes(checkpoint), Ok)?;
    let is_strange = |(name, hash): &(&String, &String)| recorded.get(*name).is_some_and(|recorded| recorded != *hash);
    let is_chosen = |name: &String| name.parse().is_ok_and(|component| checkpoint.is_taken_elsewhere(component));
    let (chosen, strange) =
        found.iter().filter(is_strange).map(|(name, _)| name.clone()).partition::<Vec<String>, _>(is_chosen);
    Ok(Strangers { chosen, strange, hashes: Some(found) })
}

/// The hashes that training recorded of a checkpoint's networks, by component; none for other checkpoints.
///
/// # Errors
/// [`PipelineError::Io`] if the file cannot be read.
pub fn recorded(checkpoint: &Checkpoint) -> Result<Option<Hashes>, PipelineError> {
    let path = checkpoint.path().join(TRAINED_TOGETHER);
    durable::read_json(&path).map_err(PipelineError::io("read", path.clone()))
}

/// The hashes of the tensors of a checkpoint's networks under canonical keys, by component; those of text encoders with the
/// learned words that they were given.
///
/// # Errors
/// [`PipelineError`] if a tensor cannot be read.
pub fn hashes(checkpoint: &Checkpoint) -> Result<Hashes, PipelineError> {
    hashes_of(checkpoint, |component| checkpoint.component(component))
}

/// [`hashes`] of what the checkpoint itself holds, without learned words.
///
/// # Errors
/// [`PipelineError`] if a tensor cannot be read.
pub fn own_hashes(checkpoint: &Checkpoint) -> Result<Hashes, PipelineError> {
    hashes_of(checkpoint, |component| checkpoint.component_without_words(component))
}

fn hashes_of(
    checkpoint: &Checkpoint,
    source_of: impl Fn(Component) -> Result<ComponentSource, LayoutError>,
) -> Result<Hashes, PipelineError> {
    let held = checkpoint.components();
    let held = TOGETHER.into_iter().filter(|component| held.contains(component));
    held.map(|component| {
        let source = source_of(component)?;
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
    use calotype_checkpoints::{EmbeddingFile, OpenOptions};
    use calotype_weights::{NamedTensor, write_safetensors};

    #[test]
    fn a_network_of_another_training_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [own, other] = ["own", "other"].map(|name| folder.path().join(name));
        RandomCheckpoint::new(RandomFamily::Tiny).write(&own).unwrap();
        RandomCheckpoint { seed: 7, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(&other).unwrap();
        let open = || Checkpoint::open(&own).unwrap();
        check(&open(), None).unwrap();
        record(&own).unwrap();
        check(&open(), None).unwrap();
        let file = "vae/diffusion_pytorch_model.safetensors";
        std::fs::copy(other.join(file), own.join(file)).unwrap();
        let error = check(&open(), None).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("its vae is not the one"), "{error}");
        let told = problems(&open()).unwrap();
        assert!(told.len() == 1 && told[0].starts_with("its vae is not the one"), "{told:?}");
        // One that is named is chosen, and told if it is another.
        let with = |vae: &Path| {
            let options = OpenOptions { vae: Some(vae.to_owned()), ..OpenOptions::default() };
            check(&Checkpoint::open_with(&own, &options).unwrap(), None).map(|checked| checked.note)
        };
        assert!(with(&other).unwrap().unwrap().contains("not trained with this vae"));
        RandomCheckpoint::new(RandomFamily::Tiny).write(&folder.path().join("same")).unwrap();
        assert_eq!(with(&folder.path().join("same")).unwrap(), None);
        let unet = "unet/diffusion_pytorch_model.safetensors";
        std::fs::copy(other.join(unet), own.join(unet)).unwrap();
        assert!(with(&other).unwrap_err().to_string().contains("its unet is not the one"));
        std::fs::remove_file(own.join(TRAINED_TOGETHER)).unwrap();
        check(&open(), None).unwrap();
        assert!(problems(&open()).unwrap().is_empty());
    }

    #[test]
    fn learned_words_leave_a_text_encoder_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        RandomCheckpoint::new(RandomFamily::Tiny).write(&model).unwrap();
        record(&model).unwrap();
        let plain = Checkpoint::open(&model).unwrap();
        let encoder = plain.component(Component::TextEncoder).unwrap();
        let width = encoder.config["hidden_size"].as_u64().unwrap() as usize;
        let path = folder.path().join("word.safetensors");
        let values = vec![0.5; 2 * width];
        let vectors = NamedTensor::from_f32("emb_params", vec![2, width], &values);
        write_safetensors(&path, &[vectors], &BTreeMap::new()).unwrap();
        let embeddings = vec![EmbeddingFile { path, word: None }];
        let with_word = Checkpoint::open_with(&model, &OpenOptions { embeddings, ..OpenOptions::default() }).unwrap();
        let table = "text_model.embeddings.token_embedding.weight";
        let rows = |source: ComponentSource| source.tensor(table).unwrap().shape[0];
        let own = rows(plain.component(Component::TextEncoder).unwrap());
        assert_eq!(rows(with_word.component(Component::TextEncoder).unwrap()), own + 2);
        assert_eq!(rows(with_word.component_without_words(Component::TextEncoder).unwrap()), own);
        assert_eq!(own_hashes(&with_word).unwrap(), hashes(&plain).unwrap());
        assert_ne!(hashes(&with_word).unwrap(), hashes(&plain).unwrap());
        let known = own_hashes(&plain).unwrap();
        for hashes in [None, Some(known.clone())] {
            assert_eq!(check(&with_word, hashes).unwrap(), Checked { note: None, hashes: Some(known.clone()) });
        }
        std::fs::remove_file(model.join(TRAINED_TOGETHER)).unwrap();
        assert_eq!(check(&plain, None).unwrap(), Checked::default());
    }
}
