use calotype_data::BoxError;
use calotype_evaluate::EvaluateError;
use calotype_metrics::MetricsError;
use calotype_pipeline::PipelineError;
use calotype_train::device::DeviceError;
use calotype_train::stages::StageError;
use calotype_train::tasks::TaskError;
use calotype_train::trainer::TrainError;
use calotype_train::{CheckpointError, RecipeError};
use std::path::{Path, PathBuf};

/// Why the quickstart ended early.
#[derive(Debug, thiserror::Error)]
pub enum QuickstartError {
    /// The preset cannot be used, or a resolved recipe cannot be saved.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A stage's recipe or an override of it is wrong.
    #[error("{stage}: {source}")]
    StageRecipe {
        /// The stage.
        stage: &'static str,
        /// What is wrong.
        source: Box<TaskError>,
    },
    /// An override that belongs to no stage.
    #[error("override `{text}` must begin with a stage ({stages}) and a dot")]
    OverrideStage {
        /// The override.
        text: String,
        /// Names of the stages.
        stages: String,
    },
    /// The folder holds another quickstart.
    #[error("{} holds a quickstart {what}; or choose another folder with --out", folder.display())]
    Other {
        /// The folder.
        folder: PathBuf,
        /// Which one, and what to do.
        what: String,
    },
    /// The folder holds something that is no quickstart.
    #[error("{} holds {what}, no quickstart: choose an empty or new folder with --out", folder.display())]
    Taken {
        /// The folder.
        folder: PathBuf,
        /// What it holds.
        what: String,
    },
    /// A file is where the folder is to be.
    #[error("{0} with --out")]
    File(String),
    /// The device is not to be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A stage failed.
    #[error(transparent)]
    Stage(Box<StageError>),
    /// Reading or writing a dataset failed.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// The pipeline could not be loaded, or could not draw.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The judging model cannot be used.
    #[error("judging: {0}")]
    Judge(#[from] EvaluateError),
    /// A figure could not be computed.
    #[error("judging: {0}")]
    Metrics(#[from] MetricsError),
    /// The folder cannot be written to, or its disk is too small.
    #[error(transparent)]
    Folder(#[from] CheckpointError),
    /// A setting of the evaluation is impossible.
    #[error("recipe key `{key}`: {problem}")]
    Setting {
        /// Dotted key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: BoxError,
    },
    /// Stopped on request; everything done so far is kept.
    #[error("{stage}: stopped after {samples} samples, which are saved; run the same command again to go on")]
    Interrupted {
        /// The stage.
        stage: &'static str,
        /// Samples done in it.
        samples: u64,
    },
}

impl QuickstartError {
    /// Whether the command or a recipe, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Recipe(error) => error.is_usage(),
            Self::StageRecipe { source, .. } => source.is_usage(),
            Self::Stage(error) => error.is_usage(),
            Self::Device(_)
            | Self::Other { .. }
            | Self::Taken { .. }
            | Self::File(_)
            | Self::OverrideStage { .. }
            | Self::Setting { .. } => true,
            Self::Pipeline(error) => error.is_usage(),
            _ => false,
        }
    }

    pub(crate) fn io<E: Into<BoxError>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source: source.into() }
    }
}

impl From<StageError> for QuickstartError {
    fn from(error: StageError) -> Self {
        Self::Stage(Box::new(error))
    }
}

impl From<TrainError> for QuickstartError {
    fn from(error: TrainError) -> Self {
        StageError::from(error).into()
    }
}
