//! Learned embeddings of tokens (textual inversion: Gal et al., arXiv 2208.01618), in the forms that people have.
//!
//! | form | keys | word |
//! |---|---|---|
//! | web interfaces, `.pt` | `string_to_param` with `*`, and `name` | `name`, else the file's |
//! | web interfaces, `.safetensors` | `emb_params` | the file's |
//! | of Stable Diffusion XL | `clip_l`, `clip_g` (or `text_encoders_0`, `text_encoders_1`) | the file's |
//! | diffusers (`learned_embeds`) | each key is a word | the key |
//! | OneTrainer, inside of adapters | `bundle_emb.WORD.` before the keys of the others | `WORD` |
//!
//! A tensor is `[vectors, width]`, or `[width]` for one vector.

use crate::map::MappedFile;
use crate::open::{Content, open_content, recognise};
use crate::pickle::ReadOptions;
use crate::pickle::Value;
use crate::source::TensorSource;
use crate::tensor_file::NamedTensor;
use crate::torch_file::TorchFile;
use crate::{TensorFileError, lora};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most vectors that one word may have: more leave no room in a prompt of 77 tokens.
const MOST_VECTORS: usize = 75;

/// A file of embeddings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddingError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// The file holds no embedding, or none that means anything.
    #[error("{}: {problem}", file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// What it is or lacks, and the remedy.
        problem: String,
    },
}

/// Which text encoder vectors are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EmbeddingSlot {
    /// The only one: that whose width the vectors have.
    Any,
    /// The first of Stable Diffusion XL.
    First,
    /// The second of Stable Diffusion XL.
    Second,
}

/// The vectors of a word for one text encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingVectors {
    /// Width of each vector.
    pub width: usize,
    /// The vectors, one after the other.
    pub values: Vec<f32>,
}

impl EmbeddingVectors {
    /// How many vectors there are, at least 1.
    pub fn count(&self) -> usize {
        self.values.len() / self.width
    }
}

/// One learned word.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The word that stands for it in prompts.
    pub word: String,
    /// Its vectors, of one encoder or two.
    pub vectors: BTreeMap<EmbeddingSlot, EmbeddingVectors>,
}

/// Reads the embeddings of a file, told apart by content, or of a folder with diffusers' `learned_embeds`. `word` takes the
/// place of the file's own, if it holds one.
///
/// # Errors
/// [`EmbeddingError`], naming the tensor at fault; for adapters and checkpoints, what they are.
pub fn read_embeddings(path: &Path, word: Option<&str>) -> Result<Vec<Embedding>, EmbeddingError> {
    let inside;
    let path = match path.is_dir() {
        true => {
            let names = ["learned_embeds.safetensors", "learned_embeds.bin"].map(|name| path.join(name));
            inside = names.into_iter().find(|file| file.is_file()).ok_or_else(|| EmbeddingError::Unusable {
                file: path.to_owned(),
                problem: "the folder holds no learned_embeds.safetensors or .bin; name the file".into(),
            })?;
            inside.as_path()
        }
        false => path,
    };
    let map = MappedFile::open(path)?;
    let content = recognise(path, map.bytes())?;
    let (source, own): (Box<dyn TensorSource>, Option<String>) = if content == Content::Torch {
        let whole = 0..map.bytes().len();
        let file = TorchFile::from_map(Arc::new(map), whole, ReadOptions::default())?;
        let name = file.value().get("name").and_then(Value::as_str).map(str::to_owned);
        (Box::new(file), name.filter(|name| !name.is_empty()))
    } else {
        (open_content(content, map, ReadOptions::default())?, None)
    };
    let file = File { source: &*source, path };
    let mut found = file.embeddings(own.as_deref())?;
    match (word, &mut found[..]) {
        (None, _) => {}
        (Some(word), [only]) => word.clone_into(&mut only.word),
        (Some(_), several) => {
            let words: Vec<String> = several.iter().map(|each| format!("`{}`", each.word)).collect();
            let problem = format!("it holds several words ({}): leave out the one that you gave", words.join(", "));
            return Err(file.unusable(problem));
        }
    }
    if let Some(empty) = found.iter().find(|each| each.word.trim().is_empty()) {
        return Err(file.unusable(format!("`{}` is no word: give one (FILE=WORD)", empty.word)));
    }
    Ok(found)
}

struct File<'a> {
    source: &'a dyn TensorSource,
    path: &'a Path,
}

impl File<'_> {
    fn unusable(&self, problem: impl Into<String>) -> EmbeddingError {
        EmbeddingError::Unusable { file: self.path.to_owned(), problem: problem.into() }
    }

    /// All words of the file; `own` is the name that it gives itself.
    fn embeddings(&self, own: Option<&str>) -> Result<Vec<Embedding>, EmbeddingError> {
        let keys: Vec<String> = self.source.entries().into_iter().map(|tensor| tensor.name).collect();
        let bundled = keys.iter().any(|key| key.starts_with(BUNDLE));
        // A factor of a small rank has the shape of vectors.
        if let Some(key) = keys.iter().find(|key| !bundled && lora::is_adapter_key(key)) {
            return Err(self.no_embedding(key, "is an adapter's"));
        }
        let mut words: BTreeMap<String, Embedding> = BTreeMap::new();
        // Beside bundled embeddings lies an adapter.
        for key in keys.iter().filter(|key| !bundled || key.starts_with(BUNDLE)) {
            let (word, slot) = self.meaning(key, own);
            let vectors = self.vectors(key)?;
            let embedding = words.entry(word.clone()).or_insert_with(|| Embedding { word, vectors: BTreeMap::new() });
            if embedding.vectors.insert(slot, vectors).is_some() {
                return Err(self.unusable(format!("`{key}` gives the vectors of `{}` twice", embedding.word)));
            }
        }
        if words.is_empty() {
            return Err(self.unusable("it holds no tensors, and so no embedding"));
        }
        Ok(words.into_values().collect())
    }

    /// The word that a key belongs to, and the encoder.
    fn meaning(&self, key: &str, own: Option<&str>) -> (String, EmbeddingSlot) {
        let stem = self.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let of_file = || own.map(str::to_owned).or_else(|| stem.clone()).unwrap_or_else(|| key.to_owned());
        let bundled = key.strip_prefix(BUNDLE).and_then(|rest| rest.split_once('.'));
        let (word, bare) = bundled.map_or((None, key), |(word, rest)| (Some(word.to_owned()), rest));
        let slot = SLOTS.iter().find(|(name, _)| *name == bare).map(|&(_, slot)| slot);
        match (word, slot) {
            (Some(word), slot) => (word, slot.unwrap_or(EmbeddingSlot::Any)),
            (None, Some(slot)) => (of_file(), slot),
            (None, None) => (bare.to_owned(), EmbeddingSlot::Any),
        }
    }

    fn vectors(&self, key: &str) -> Result<EmbeddingVectors, EmbeddingError> {
        let NamedTensor { shape, dtype, .. } = self.source.tensor(key)?;
        let (count, width) = match shape[..] {
            [width] => (1, width),
            [count, width] => (count, width),
            _ => return Err(self.no_embedding(key, &format!("has shape {shape:?}"))),
        };
        if width == 0 || !(1..=MOST_VECTORS).contains(&count) {
            return Err(self.no_embedding(key, &format!("has shape {shape:?}, of 1 to {MOST_VECTORS} vectors")));
        }
        let values = self.source.tensor(key)?.to_f32_vec();
        let values = values.ok_or_else(|| self.no_embedding(key, &format!("has elements of type {dtype}")))?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(self.unusable(format!("`{key}` holds values that are not finite: its training diverged")));
        }
        Ok(EmbeddingVectors { width, values })
    }

    /// For a tensor that cannot be one: says what else the file is.
    fn no_embedding(&self, key: &str, fault: &str) -> EmbeddingError {
        let keys: Vec<String> = self.source.entries().into_iter().map(|tensor| tensor.name).collect();
        let names = || keys.iter().map(String::as_str);
        if names().any(lora::is_adapter_key) {
            return self.unusable("this is an adapter, not an embedding: give it as that (--lora)");
        }
        match lora::other_file(names()).filter(|(what, _)| !what.contains("embedding")) {
            Some((what, remedy)) => self.unusable(format!("this is {what}, not an embedding: {remedy}")),
            None => self.unusable(format!("`{key}` {fault}, and an embedding is [vectors, width] of numbers")),
        }
    }
}

/// Beginning of the keys of embeddings that lie in an adapter.
const BUNDLE: &str = "bundle_emb.";

/// Keys that are no words.
const SLOTS: [(&str, EmbeddingSlot); 7] = [
    ("emb_params", EmbeddingSlot::Any),
    // What the dictionary `string_to_param` holds, and the same as one key.
    ("*", EmbeddingSlot::Any),
    ("string_to_param.*", EmbeddingSlot::Any),
    ("clip_l", EmbeddingSlot::First),
    ("clip_g", EmbeddingSlot::Second),
    ("text_encoders_0", EmbeddingSlot::First),
    ("text_encoders_1", EmbeddingSlot::Second),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_safetensors;

    fn file(tensors: &[(&str, &[usize])], word: Option<&str>) -> Result<Vec<Embedding>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my-style.safetensors");
        let numbers: Vec<f32> = (0..4096).map(|number| number as f32).collect();
        let tensors: Vec<NamedTensor<'_>> = tensors
            .iter()
            .map(|(name, shape)| NamedTensor::from_f32(*name, *shape, &numbers[..shape.iter().product()]))
            .collect();
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        read_embeddings(&path, word).map_err(|error| error.to_string())
    }

    /// Word, and for each slot the number of vectors and their width.
    fn seen(embedding: &Embedding) -> (&str, Vec<(EmbeddingSlot, usize, usize)>) {
        let slots = embedding.vectors.iter().map(|(slot, vectors)| (*slot, vectors.count(), vectors.width));
        (&embedding.word, slots.collect())
    }

    #[test]
    fn every_form_is_read() {
        use EmbeddingSlot::{Any, First, Second};
        type Case<'a> =
            (&'a [(&'a str, &'a [usize])], Option<&'a str>, &'a [(&'a str, &'a [(EmbeddingSlot, usize, usize)])]);
        let cases: [Case<'_>; 7] = [
            (&[("emb_params", &[3, 8])], None, &[("my-style", &[(Any, 3, 8)])]),
            (&[("emb_params", &[8])], Some("<x>"), &[("<x>", &[(Any, 1, 8)])]),
            (&[("<cat>", &[8])], None, &[("<cat>", &[(Any, 1, 8)])]),
            (&[("<a>", &[2, 8]), ("<b>", &[8])], None, &[("<a>", &[(Any, 2, 8)]), ("<b>", &[(Any, 1, 8)])]),
            (&[("clip_g", &[2, 8]), ("clip_l", &[2, 4])], None, &[("my-style", &[(First, 2, 4), (Second, 2, 8)])]),
            (
                &[("text_encoders_0", &[8]), ("text_encoders_1", &[8])],
                Some("s"),
                &[("s", &[(First, 1, 8), (Second, 1, 8)])],
            ),
            (
                &[("bundle_emb.tok.string_to_param.*", &[2, 8]), ("lora_unet_conv_in.lora_up.weight", &[2, 2, 1, 1])],
                None,
                &[("tok", &[(Any, 2, 8)])],
            ),
        ];
        for (tensors, word, expected) in cases {
            let found = file(tensors, word).unwrap();
            let expected: Vec<_> = expected.iter().map(|(word, slots)| (*word, slots.to_vec())).collect();
            assert_eq!(found.iter().map(seen).collect::<Vec<_>>(), expected, "{tensors:?}");
        }
    }

    #[test]
    fn malformed_and_foreign_files_are_named() {
        let many = [("a", &[1, 2][..]), ("b", &[1, 2])];
        type Tensors<'a> = &'a [(&'a str, &'a [usize])];
        let cases: [(Tensors<'_>, Option<&str>, &str); 9] = [
            (&[], None, "no tensors"),
            (&[("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", &[4, 8])], None, "this is an adapter"),
            (&[("x", &[])], None, "`x` has shape []"),
            (&[("x", &[2, 3, 4])], None, "`x` has shape [2, 3, 4]"),
            (&[("x", &[0, 4])], None, "1 to 75 vectors"),
            (&[("x", &[76, 4])], None, "1 to 75 vectors"),
            (&many, Some("w"), "several words (`a`, `b`)"),
            (&[("lora_unet_conv_in.lora_up.weight", &[2, 2, 1, 1])], None, "--lora"),
            (&[("model.diffusion_model.out.2.weight", &[2, 2, 1, 1])], None, "--model"),
        ];
        for (tensors, word, part) in cases {
            let error = file(tensors, word).unwrap_err();
            assert!(error.contains(part) && error.contains("my-style"), "{tensors:?}: {error}");
        }
    }
}
