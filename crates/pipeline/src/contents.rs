//! What an image was drawn from, by hashes: the files at a path can be exchanged, and networks trained on.

use crate::belonging::{self, Hashes};
use crate::error::PipelineError;
use crate::settings_text::GenerationRecord;
use calotype_checkpoints::{Checkpoint, Component};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// BLAKE3, in hexadecimal, of what an image is drawn from, by what people call it: `unet of PATH` and the other networks of model
/// and refiner, of their tensors under canonical keys; `start image PATH`, `mask PATH`, `latents PATH`, `adapter PATH` and
/// `embedding PATH`, of the files.
pub type Contents = BTreeMap<String, String>;

/// A checkpoint with its [`belonging::own_hashes`], where they are known.
pub type Hashed<'a> = (&'a Checkpoint, Option<&'a Hashes>);

/// What an image of this record is drawn from. All weights whose hashes are not known are read once for it.
///
/// # Errors
/// [`PipelineError::Io`] naming a file that cannot be read; others as of [`belonging::own_hashes`].
pub fn contents(
    record: &GenerationRecord,
    model: Hashed<'_>,
    refiner: Option<Hashed<'_>>,
) -> Result<Contents, PipelineError> {
    let mut contents = Contents::new();
    let vae = record.opened.vae.as_deref().unwrap_or(&record.model);
    add_networks(&mut contents, model, &record.model, vae)?;
    if let (Some(checkpoint), Some(refiner)) = (refiner, &record.refiner) {
        add_networks(&mut contents, checkpoint, &refiner.model, &refiner.model)?;
    }
    for (what, path) in files(record) {
        let hash = hash_path(path).map_err(PipelineError::io("read", path))?;
        contents.insert(format!("{what} {}", path.display()), hash);
    }
    Ok(contents)
}

/// What of an image's contents is there, too, and is not the same any more. Nothing of an image that holds no hashes.
pub fn changed<'a>(before: &'a Contents, now: &Contents) -> Vec<&'a str> {
    let differs = |(what, hash): &(&String, &String)| now.get(*what).is_some_and(|now| now != *hash);
    before.iter().filter(differs).map(|(what, _)| what.as_str()).collect()
}

fn add_networks(
    contents: &mut Contents,
    (checkpoint, known): Hashed<'_>,
    path: &Path,
    vae: &Path,
) -> Result<(), PipelineError> {
    for (name, hash) in known.cloned().map_or_else(|| belonging::own_hashes(checkpoint), Ok)? {
        let path = if name == Component::Vae.name() { vae } else { path };
        contents.insert(format!("{name} of {}", path.display()), hash);
    }
    Ok(())
}

/// The files that a record names besides its checkpoints.
fn files(record: &GenerationRecord) -> Vec<(&'static str, &PathBuf)> {
    let single = [("start image", &record.image), ("mask", &record.mask), ("latents", &record.latents)];
    let single = single.into_iter().filter_map(|(what, path)| Some((what, path.as_ref()?)));
    let adapters = record.loras.iter().map(|adapter| ("adapter", &adapter.path));
    let embeddings = record.opened.embeddings.iter().map(|embedding| ("embedding", &embedding.path));
    single.chain(adapters).chain(embeddings).collect()
}

/// Hash of a file, or of the names and files of a folder, as adapters may be.
fn hash_path(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    add_path(&mut hasher, path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn add_path(hasher: &mut blake3::Hasher, path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        hasher.update_reader(std::fs::File::open(path)?)?;
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    entries.sort_unstable();
    for entry in entries {
        hasher.update(entry.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(b"\n");
        add_path(hasher, &entry)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::AdapterFile;
    use crate::random_checkpoint::{RandomCheckpoint, RandomFamily};
    use calotype_ops::Precision;

    #[test]
    fn what_changed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        RandomCheckpoint::new(RandomFamily::Tiny).write(&at("model")).unwrap();
        RandomCheckpoint { seed: 7, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(&at("other")).unwrap();
        std::fs::write(at("start.png"), "a").unwrap();
        std::fs::create_dir(at("adapter")).unwrap();
        std::fs::write(at("adapter/a.safetensors"), "a").unwrap();
        let mut record = GenerationRecord::new(at("model"), Precision::F32);
        record.image = Some(at("start.png"));
        record.loras = vec![AdapterFile { path: at("adapter"), weight: 1.0 }];
        let now = || contents(&record, (&Checkpoint::open(at("model")).unwrap(), None), None).unwrap();
        let before = now();
        let model = Checkpoint::open(at("model")).unwrap();
        let known = belonging::own_hashes(&model).unwrap();
        assert_eq!(contents(&record, (&model, Some(&known)), None).unwrap(), before);
        drop(model);
        assert_eq!(before.keys().filter(|what| what.contains(" of ")).count(), 3, "{before:?}");
        assert!(changed(&before, &now()).is_empty() && changed(&Contents::new(), &now()).is_empty());
        std::fs::write(at("start.png"), "b").unwrap();
        std::fs::rename(at("adapter/a.safetensors"), at("adapter/b.safetensors")).unwrap();
        let unet = "unet/diffusion_pytorch_model.safetensors";
        std::fs::copy(at("other").join(unet), at("model").join(unet)).unwrap();
        let expected = [("adapter", "adapter"), ("start image", "start.png"), ("unet of", "model")];
        let expected = expected.map(|(what, name)| format!("{what} {}", at(name).display()));
        assert_eq!(changed(&before, &now()), expected);
        std::fs::remove_file(at("start.png")).unwrap();
        let error = contents(&record, (&Checkpoint::open(at("model")).unwrap(), None), None).unwrap_err();
        assert!(error.to_string().contains("start.png"), "{error}");
    }

    #[test]
    fn a_record_without_hashes_is_read_and_one_with_them_keeps_them() {
        let mut record = GenerationRecord::new("model", Precision::F32);
        let text = serde_json::to_string(&record).unwrap();
        assert!(!text.contains("contents"), "{text}");
        let read: GenerationRecord = serde_json::from_str(&text).unwrap();
        assert!(read.contents.is_empty());
        record.contents.insert("unet of model".to_owned(), "00".to_owned());
        let read: GenerationRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(read.contents, record.contents);
    }
}
