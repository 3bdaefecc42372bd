//! Errors of recognising, reading, converting and writing checkpoints.

use crate::kinds::Component;
use calotype_weights::EmbeddingError;
use calotype_weights::tensor_file::TensorFileError;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// A checkpoint that cannot be recognised, read, converted or written. Messages name the file, key or field, and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A weights file cannot be read or written.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    /// A file other than weights cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A JSON file does not parse.
    #[error("{}: not valid JSON: {source}; correct it there, or download it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: serde_json::Error,
    },
    /// What Git LFS leaves in place of a file that it did not fetch.
    #[error("{}: this is a pointer of Git LFS, not the file; fetch the file itself with `git lfs pull`", path.display())]
    Pointer {
        /// The file.
        path: PathBuf,
    },
    /// Learned words cannot be used with the checkpoint.
    #[error(transparent)]
    Embedding(Box<EmbeddingError>),
    /// The keys or files are those of no layout that Calotype knows.
    #[error("{}: not a checkpoint that Calotype knows: {reason}", path.display())]
    Unrecognised {
        /// The file or folder.
        path: PathBuf,
        /// The things looked for and found.
        reason: String,
    },
    /// A folder of training's that holds no finished model.
    #[error("{}: {what}", path.display())]
    Training {
        /// The folder.
        path: PathBuf,
        /// What it is, and the way to a model.
        what: String,
    },
    /// A field of a configuration is malformed, out of bounds or asks for what is not supported.
    #[error("{component} configuration: {reason}")]
    Config {
        /// The network.
        component: Component,
        /// The fields at fault, and what is wrong with them.
        reason: String,
    },
    /// The checkpoint has no such component.
    #[error(
        "{}: the checkpoint holds no {component}; it holds: {held}; name a checkpoint that holds it, or put it beside the others \
         in a diffusers folder{}",
        path.display(), as_folder(path, *component)
    )]
    NoComponent {
        /// The checkpoint.
        path: PathBuf,
        /// The component asked for.
        component: Component,
        /// The components that there are.
        held: String,
    },
    /// Averaged weights were asked for and there are none.
    #[error("{}: the checkpoint holds no averaged (EMA) weights; leave the choice of EMA out", path.display())]
    NoEma {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Keys that the model needs are not in the checkpoint.
    #[error(
        "{}: {component} lacks {} tensors: {}; another file holds them, or allow missing keys",
        path.display(), keys.len(), first_of(keys)
    )]
    Missing {
        /// The checkpoint.
        path: PathBuf,
        /// The component.
        component: Component,
        /// The missing keys, canonical.
        keys: Vec<String>,
    },
    /// The checkpoint holds keys that nothing takes.
    #[error(
        "{}: {} tensors belong to no component that Calotype knows: {}; allow unused keys to leave them out",
        path.display(), keys.len(), first_of(keys)
    )]
    Unused {
        /// The checkpoint.
        path: PathBuf,
        /// The keys, as stored.
        keys: Vec<String>,
    },
    /// Tensors have other shapes than the configuration asks for.
    #[error("{}: {component}: {}; the configuration is not this checkpoint's", path.display(), first_of(problems))]
    Shapes {
        /// The checkpoint.
        path: PathBuf,
        /// The component.
        component: Component,
        /// One sentence for each tensor.
        problems: Vec<String>,
    },
    /// A configuration within a checkpoint cannot be read, or asks for what is not built.
    #[error("{}: {problem}; correct it there, or bring the checkpoint into another layout with the library that wrote it", path.display())]
    Setting {
        /// The configuration.
        path: PathBuf,
        /// The line or the setting at fault, and what is wrong with it.
        problem: String,
    },
    /// The prediction type decides what the images are and cannot be known from the checkpoint.
    #[error(
        "{}: whether the UNet predicts noise or velocity is not said by the checkpoint; \
         give the prediction type (epsilon or v_prediction)",
        path.display()
    )]
    PredictionUnknown {
        /// The checkpoint.
        path: PathBuf,
    },
    /// What was asked for does not fit the checkpoint.
    #[error("{}: {problem}", path.display())]
    Wish {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// The checkpoint cannot be written in the layout asked for.
    #[error("{}: cannot be written as {target}: {reason}", path.display())]
    Target {
        /// The checkpoint.
        path: PathBuf,
        /// The layout.
        target: &'static str,
        /// The reason.
        reason: String,
    },
    /// The output is there already.
    #[error("{}: exists already; choose another path or remove it", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A file is not what its folder's manifest says.
    #[error("{}: {reason}; the checkpoint is damaged: copy it or convert it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The difference.
        reason: String,
    },
}

impl LayoutError {
    /// True if the request is at fault (an answer is missing, the output exists, the input does not), not the checkpoint.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::NoEma { .. }
            | Self::PredictionUnknown { .. }
            | Self::Wish { .. }
            | Self::Target { .. }
            | Self::Exists { .. }
            | Self::NoComponent { .. } => true,
            Self::Tensors(error) => error.is_usage(),
            Self::Embedding(error) => matches!(&**error, EmbeddingError::File(error) if error.is_usage()),
            _ => false,
        }
    }
}

/// The first few of a list, and how many more there are.
/// Where a component would stand beside the others of a folder.
fn as_folder(path: &Path, component: Component) -> String {
    if path.is_dir() { format!(", as {}", path.join(component.to_string()).display()) } else { String::new() }
}

fn first_of(items: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = items.iter().take(SHOWN).map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        let _ = write!(text, " and {} more", items.len() - SHOWN);
    }
    text
}

impl From<EmbeddingError> for LayoutError {
    fn from(error: EmbeddingError) -> Self {
        Self::Embedding(Box::new(error))
    }
}
