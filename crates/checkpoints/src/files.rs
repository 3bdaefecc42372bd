//! The files of a checkpoint: weights by their usual names, JSON, and small texts that are carried along.

use crate::error::LayoutError;
use crate::infer::Shapes;
use calotype_weights::open::open_tensors_with;
use calotype_weights::pickle::ReadOptions;
use calotype_weights::source::{TensorInfo, TensorSource};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Small text files, by their path relative to the checkpoint with `/` between folders.
pub type TextFiles = BTreeMap<String, String>;

/// The longest text file that is carried along, in bytes; CLIP's vocabulary has 1.1 million, and a `tokenizer.json` with it and
/// its merges 3.6.
const LONGEST_TEXT: u64 = 32 << 20;

/// Names of weights in a model's folder, without extension.
const WEIGHT_STEMS: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];
/// Extensions of weights, the preferred first.
const WEIGHT_EXTENSIONS: [&str; 2] = ["safetensors", "bin"];

/// An open weights file (or sharded set).
pub(crate) struct Weights {
    pub(crate) path: PathBuf,
    pub(crate) source: Arc<dyn TensorSource>,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) shapes: Shapes,
    /// The string map of a safetensors file; empty for other formats.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Weights {
    pub(crate) fn open(path: &Path, options: ReadOptions) -> Result<Self, LayoutError> {
        let source = open_tensors_with(path, options)?;
        let metadata = source.metadata();
        Ok(Self::new(path, Arc::from(source), metadata))
    }

    pub(crate) fn new(path: &Path, source: Arc<dyn TensorSource>, metadata: BTreeMap<String, String>) -> Self {
        let tensors = source.entries();
        let shapes = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
        Self { path: path.to_owned(), source, tensors, shapes, metadata }
    }
}

/// The weights in a model's folder without a variant's name.
pub(crate) fn find_plain_weights(folder: &Path) -> Result<Option<PathBuf>, LayoutError> {
    find_weights(folder, Some(""))
}

/// The weights in a model's folder: of the variant (`fp16`) if one is asked for, else the plain ones, else those of the
/// only variant that there is. A sharded set is named by its index.
pub(crate) fn find_weights(folder: &Path, variant: Option<&str>) -> Result<Option<PathBuf>, LayoutError> {
    let names = file_names(folder)?;
    let wanted = |variant: &str| {
        let infix = if variant.is_empty() { String::new() } else { format!(".{variant}") };
        let candidates = WEIGHT_EXTENSIONS.iter().flat_map(|extension| {
            WEIGHT_STEMS.iter().flat_map({
                let infix = infix.clone();
                move |stem| {
                    [
                        format!("{stem}{infix}.{extension}"),
                        format!("{stem}.{extension}.index{infix}.json"),
                        format!("{stem}{infix}.{extension}.index.json"),
                    ]
                }
            })
        });
        candidates.into_iter().find(|name| names.contains(name))
    };
    if let Some(variant) = variant {
        return Ok(wanted(variant).map(|name| folder.join(name)));
    }
    if let Some(name) = wanted("") {
        return Ok(Some(folder.join(name)));
    }
    let mut variants: Vec<&str> = names.iter().filter_map(|name| variant_of(name)).collect();
    variants.sort_unstable();
    variants.dedup();
    match variants[..] {
        [] => Ok(None),
        [only] => Ok(wanted(only).map(|name| folder.join(name))),
        _ => Err(LayoutError::Unrecognised {
            path: folder.to_owned(),
            reason: format!("it holds weights in several variants ({}); name one", variants.join(", ")),
        }),
    }
}

/// `fp16` of `model.fp16.safetensors` and `model.fp16-00001-of-00002.safetensors`.
fn variant_of(name: &str) -> Option<&str> {
    let rest = WEIGHT_STEMS.iter().find_map(|stem| name.strip_prefix(stem)?.strip_prefix('.'))?;
    let variant = WEIGHT_EXTENSIONS.iter().find_map(|extension| rest.strip_suffix(extension)?.strip_suffix('.'))?;
    let variant = variant.split_once('-').map_or(variant, |(variant, _)| variant);
    (!variant.is_empty() && variant.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(variant)
}

/// Names of the plain files in a folder, sorted.
pub(crate) fn file_names(folder: &Path) -> Result<Vec<String>, LayoutError> {
    names(folder, |kind| kind.is_file())
}

/// Names of the folders in a folder, sorted.
pub(crate) fn folder_names(folder: &Path) -> Result<Vec<String>, LayoutError> {
    names(folder, |kind| kind.is_dir())
}

fn names(folder: &Path, wanted: impl Fn(&std::fs::Metadata) -> bool) -> Result<Vec<String>, LayoutError> {
    let io = |source| LayoutError::Io { path: folder.to_owned(), action: "list it", source };
    let mut list = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        // Follows links: caches of downloads are folders of links.
        let status = std::fs::metadata(entry.path());
        if let (Ok(name), true) = (entry.file_name().into_string(), status.is_ok_and(|status| wanted(&status))) {
            list.push(name);
        }
    }
    list.sort_unstable();
    Ok(list)
}

pub(crate) fn read_text(path: &Path) -> Result<String, LayoutError> {
    let text = calotype_core::read_text(path);
    not_pointer(path, text.map_err(|source| LayoutError::Io { path: path.to_owned(), action: "read it", source })?)
}

/// A text that is the file itself, and no pointer that Git LFS left in its place.
fn not_pointer(path: &Path, text: String) -> Result<String, LayoutError> {
    match text.starts_with("version https://git-lfs") {
        true => Err(LayoutError::Pointer { path: path.to_owned() }),
        false => Ok(text),
    }
}

/// The JSON object in a file; anything else than an object is an error.
pub(crate) fn read_object(path: &Path) -> Result<Value, LayoutError> {
    parse_object(path, &read_text(path)?)
}

/// The JSON object in the text of a file; anything else than an object is an error.
pub(crate) fn parse_object(path: &Path, text: &str) -> Result<Value, LayoutError> {
    let value: Value =
        serde_json::from_str(text).map_err(|source| LayoutError::Json { path: path.to_owned(), source })?;
    if value.is_object() {
        return Ok(value);
    }
    Err(LayoutError::Unrecognised { path: path.to_owned(), reason: "it should hold a JSON object".into() })
}

/// The text in a file; none if it is no text or too long.
pub(crate) fn carry_file(path: &Path) -> Result<Option<String>, LayoutError> {
    if std::fs::metadata(path).is_ok_and(|status| status.len() > LONGEST_TEXT) {
        return Ok(None);
    }
    match calotype_core::read_text(path) {
        Ok(text) => not_pointer(path, text).map(Some),
        Err(source) if source.kind() == std::io::ErrorKind::InvalidData => Ok(None),
        Err(source) => Err(LayoutError::Io { path: path.to_owned(), action: "read it", source }),
    }
}

/// Puts the text files of `folder` into `files`, under `name/`; and the names of those that are no text or too long into
/// `left_out`.
pub(crate) fn carry_folder(
    folder: &Path,
    name: &str,
    files: &mut TextFiles,
    left_out: &mut Vec<String>,
) -> Result<(), LayoutError> {
    for file in file_names(folder)? {
        let relative = format!("{name}/{file}");
        match carry_file(&folder.join(&file))? {
            Some(text) => drop(files.insert(relative, text)),
            None => left_out.push(relative),
        }
    }
    Ok(())
}

/// True if a path from a file stays below its folder: relative, plain names only.
pub(crate) fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(':'))
}
