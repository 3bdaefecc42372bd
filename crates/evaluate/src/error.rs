//! The errors of this crate.

use calotype_checkpoints::LayoutError;
use calotype_checkpoints::loading::LoadError;
use calotype_core::UnknownName;
use calotype_metrics::MetricsError;
use calotype_models::InputError;
use calotype_pipeline::encoders::EncoderError;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, EvaluateError>;

/// Why pictures cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A picture or a list of pictures cannot be read, or the work was stopped.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// A picture whose error does not say where it is.
    #[error("{place}: {source}{}", advice(source))]
    Picture {
        /// The folder, or what else the pictures are read from.
        place: String,
        /// The fault.
        source: Box<calotype_data::Error>,
    },
    /// A picture without the caption that a metric compares it with.
    #[error(
        "{}picture `{picture}` has no caption, which a metric compares it with; give captions by --captions, or a file {picture}.txt \
         beside it",
        in_front(place)
    )]
    NoCaption {
        /// The folder, or what else the pictures are read from; empty where that is not known.
        place: String,
        /// The picture's name.
        picture: String,
    },
    /// A network cannot be used.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A formula cannot take the numbers.
    #[error("{metric}: {source}")]
    Metric {
        /// Name and variant of the metric.
        metric: String,
        /// The reason.
        source: MetricsError,
    },
    /// A name that is none of a table's.
    #[error(transparent)]
    Unknown(#[from] UnknownName),
    /// A request that cannot be followed, and what would help.
    #[error("{0}")]
    Usage(String),
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file whose content cannot be used, and what would help.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The fault and the remedy.
        detail: String,
    },
    /// Partial states that do not belong together.
    #[error("{key}: {detail}")]
    State {
        /// Their features.
        key: String,
        /// In what they differ.
        detail: String,
    },
}

impl EvaluateError {
    /// An error of the file system at `path`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// An error of a formula, with the metric that it belongs to.
    pub fn metric(metric: impl Into<String>) -> impl FnOnce(MetricsError) -> Self {
        move |source| Self::Metric { metric: metric.into(), source }
    }

    /// The same of pictures that are read from `place`, where it says nothing of that.
    pub(crate) fn of_place(self, name: &str) -> Self {
        match self {
            Self::NoCaption { place, picture } if place.is_empty() => {
                Self::NoCaption { place: name.to_owned(), picture }
            }
            other => other,
        }
    }

    /// True if the request is at fault, not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Unknown(_) | Self::Usage(_) | Self::NoCaption { .. } => true,
            Self::Encoder(error) => error.is_usage(),
            Self::Data(error) => error.is_usage(),
            Self::Picture { source, .. } => source.is_usage(),
            _ => false,
        }
    }

    /// True if the work was stopped on request.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Data(calotype_data::Error::Interrupted { .. }))
    }
}

/// A place in front of what is said of something there.
fn in_front(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("{place}: ") }
}

/// What to give in the place of samples that are no pictures.
fn advice(error: &calotype_data::Error) -> &'static str {
    match error {
        calotype_data::Error::MissingPart { .. } => {
            "; these samples are no pictures: give what was prepared from, a folder of images or shards with them"
        }
        _ => "",
    }
}

impl From<LayoutError> for EvaluateError {
    fn from(error: LayoutError) -> Self {
        Self::Encoder(error.into())
    }
}

impl From<LoadError> for EvaluateError {
    fn from(error: LoadError) -> Self {
        Self::Encoder(error.into())
    }
}

/// An input that a network does not take, with the file of the network.
pub(crate) fn misfit(
    path: &Path,
    component: calotype_checkpoints::Component,
) -> impl FnOnce(InputError) -> EvaluateError {
    move |source| EncoderError::Input { path: path.to_owned(), component, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_without_a_caption_is_told_with_its_folder_once() {
        let error = || EvaluateError::NoCaption { place: String::new(), picture: "00000".to_owned() };
        assert!(error().is_usage() && error().to_string().starts_with("picture `00000` has no caption"));
        let placed = error().of_place("drawn").of_place("other").to_string();
        assert!(
            placed.starts_with("drawn: picture `00000` has no caption") && placed.contains("00000.txt"),
            "{placed}"
        );
    }
}
