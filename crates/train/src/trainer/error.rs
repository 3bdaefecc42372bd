use crate::checkpoint::CheckpointError;
use crate::config::SettingError;
use crate::optim::GroupError;
use crate::task::BoxError;
use crate::trackers::TrackerError;
use calotype_collective::{CollectiveError, ConsistencyError};
use calotype_core::LockError;
use calotype_core::durable::advice;
use calotype_mlperf::FiguresError;
use calotype_weights::TensorFileError;
use std::path::PathBuf;

/// Why a training ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Reading samples.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// Saving or restoring.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A group of parameters that the model does not have.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Writing logs.
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    /// A checkpoint's tensors do not fit the model.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
    /// A checkpoint's state is not this program's.
    #[error("checkpoint {}: {problem}; start again in another folder, or restore the checkpoint", checkpoint.display())]
    State {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The folder belongs to a run of another recipe.
    #[error(
        "{folder} holds a run of another recipe ({difference}); \
         use another folder, or the recipe it was started with, {folder}/recipe.toml",
        folder = folder.display()
    )]
    OtherRecipe {
        /// The run's folder.
        folder: PathBuf,
        /// The first key that differs, with both values.
        difference: String,
    },
    /// The folder belongs to a run of another recipe, of which nothing is saved that a run could go on from.
    #[error(
        "{folder} holds a run of another recipe ({difference}), which has no checkpoint, but {left}; use another folder, or \
         remove {folder} if nothing in it is wanted",
        folder = folder.display()
    )]
    OtherBegun {
        /// The run's folder.
        folder: PathBuf,
        /// The first key that differs, with both values.
        difference: String,
        /// What would be lost.
        left: String,
    },
    /// The recipe in a run's folder is damaged.
    #[error(
        "{}: the recipe of the folder's run cannot be read: {problem}; copy it back, or use another folder", path.display()
    )]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// The folder's run is to be extended, but nobody said so on purpose.
    #[error(
        "{} holds a run of {samples} samples, and now there are to be {wanted}; to extend it, say so on the command line, \
         run.samples={wanted}, or use another folder", folder.display()
    )]
    Extend {
        /// The run's folder.
        folder: PathBuf,
        /// Samples of its recipe.
        samples: u64,
        /// Samples that are asked for.
        wanted: u64,
    },
    /// A checkpoint that the run was to begin with cannot be used.
    #[error("--from {}: {problem}", checkpoint.display())]
    From {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Another process has the run's folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file of the run could not be read or written.
    #[error("{}: {source}{}", path.display(), advice(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The run was begun with other encoders.
    #[error(
        "{} was begun with {what} {expected}, and now it is {found}; \
         take the former again, or start in another folder", folder.display()
    )]
    OtherEncoder {
        /// The run's folder, or what it begins with.
        folder: PathBuf,
        /// Which encoders.
        what: &'static str,
        /// Their identity when the run was begun, quoted; `none` without any.
        expected: String,
        /// Their identity now.
        found: String,
    },
    /// The samples are not those that the run was begun with.
    #[error(
        "{run} was begun with other samples: {difference}; put the former ones back, or train on these in another folder, with \
         --from {run} (if the samples are the same after all, and only files were renamed or indexed, remove {run}/data.json)",
        run = folder.display()
    )]
    OtherData {
        /// The run's folder.
        folder: PathBuf,
        /// The first source that differs, and how.
        difference: String,
    },
    /// A batch's loss could not be computed.
    #[error("after {samples} samples: {source}")]
    Loss {
        /// Samples seen before the step.
        samples: u64,
        /// The cause.
        source: BoxError,
    },
    /// The loss or a gradient is not a number any more.
    #[error("{stage}: {what} is not finite after {samples} samples; {advice}")]
    NotFinite {
        /// The stage.
        stage: String,
        /// The tensor.
        what: String,
        /// Samples seen before the step.
        samples: u64,
        /// Where the last good state is, and what to change.
        advice: String,
    },
    /// A hook failed.
    #[error("hook `{hook}` after {samples} samples: {source}")]
    Hook {
        /// Key of the hook's settings in `[hooks]`.
        hook: &'static str,
        /// Samples seen.
        samples: u64,
        /// The cause.
        source: BoxError,
    },
    /// The processes of the run have different weights.
    #[error(transparent)]
    Consistency(#[from] ConsistencyError),
    /// This process was started with something else than the first.
    #[error("rank {rank} does not begin as rank 0: {difference}")]
    OtherRank {
        /// Our rank.
        rank: usize,
        /// What differs.
        difference: String,
    },
    /// The recipe does not suit the number of processes.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A file of results that cannot be used.
    #[error(transparent)]
    Figures(#[from] FiguresError),
    /// Another process of the run is gone.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A recording cannot be written where it was asked for.
    #[error("--record {}: {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A recording was asked for, but the run has begun already.
    #[error(
        "{} holds a run of {samples} samples already, and a recording begins with the first step; \
         record in another folder, with --out", folder.display()
    )]
    RecordBegun {
        /// The run's folder.
        folder: PathBuf,
        /// Samples seen.
        samples: u64,
    },
}

impl TrainError {
    /// Whether the command or the recipe, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::OtherRecipe { .. }
            | Self::OtherBegun { .. }
            | Self::Extend { .. }
            | Self::From { .. }
            | Self::OtherEncoder { .. }
            | Self::OtherData { .. }
            | Self::Record { .. }
            | Self::RecordBegun { .. }
            | Self::Group(_)
            | Self::Setting(_)
            | Self::OtherRank { .. }
            | Self::Figures(_) => true,
            Self::Data(error) => error.is_usage(),
            _ => false,
        }
    }
}
