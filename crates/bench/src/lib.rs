//! Benchmarks: every kernel by itself ([`run_kernels`]) and a UNet's forward pass or training step ([`run_unet`]), or a
//! ViT's or CLIP's ([`run_vision`]), all against what the processor is measured to do at most in the same process; and the stages of drawing images from a
//! checkpoint ([`run_generate`]); the networks that judge images ([`run_features`]); and whole training steps as MosaicML's diffusion-benchmark times them ([`run_train`]).
//!
//! Nothing here prints: rows and reports write themselves as lines for people (`Display`) or as JSON objects of one
//! line (`json`). All rates count nominal work: the multiply-adds of the definition, and each byte of the operands once.

mod cases;
mod features;
mod generate;
mod iterations;
mod kernels;
mod microbatch;
mod mosaic;
mod profile;
mod setting;
mod train;
mod unet;
mod vision;

pub use calotype_ops::Peaks;
pub use features::{FeatureShape, FeaturesBench, FeaturesReport, run_features};
pub use generate::{GenerateBench, GenerateReport, StageReport, run_generate};
pub use kernels::{KernelRow, run_kernels};
pub use microbatch::MicrobatchProbe;
pub use mosaic::{PUBLISHED, SCHEDULE_IMAGES, ScheduleCost, WINDOW};
pub use profile::{Profile, ProfileRow};
pub use setting::{Family, Mode, NetworkPrecision};
pub use train::{Microbatch, TrainBench, TrainReport, run_train};
pub use unet::{UNetBench, UNetReport, run_unet};
pub use vision::{ClipShape, VisionBench, VisionNetwork, VisionReport, VitShape, run_vision};

use calotype_checkpoints::LayoutError;
use calotype_models::ConfigError;
use calotype_pipeline::PipelineError;
use calotype_train::stages::StageError;
use calotype_train::task::BoxError;
use calotype_train::tasks::TaskError;
use std::path::PathBuf;

/// Why a benchmark could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A setting that cannot be.
    #[error("{flag}: {problem}")]
    Setting {
        /// The flag of the command line.
        flag: &'static str,
        /// The fault, and what would be right.
        problem: String,
    },
    /// A filter that leaves nothing.
    #[error("no operation's line contains `{filter}`; run without --filter to see all lines")]
    NoMatch {
        /// The text that was looked for.
        filter: String,
    },
    /// The network cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network does not take the images.
    #[error(transparent)]
    Input(#[from] calotype_models::InputError),
    /// The optimizer cannot be set up.
    #[error(transparent)]
    Group(#[from] calotype_train::optim::GroupError),
    /// The pipeline cannot be loaded or cannot draw.
    #[error(transparent)]
    Pipeline(Box<PipelineError>),
    /// The checkpoint of random weights cannot be written.
    #[error("cannot write a checkpoint to {}: {source}; set TMPDIR to a folder with more room", path.display())]
    Folder {
        /// The folder for temporary files.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The training task cannot be set up.
    #[error(transparent)]
    Stage(Box<StageError>),
    /// Its recipe cannot be read.
    #[error(transparent)]
    Task(Box<TaskError>),
    /// The samples cannot be read.
    #[error(transparent)]
    Data(#[from] calotype_data::Error),
    /// A training step failed.
    #[error("a training step failed: {0}")]
    Step(BoxError),
    /// The network's output is not a number, so its speed means nothing.
    #[error("{family} gave {value} instead of a finite number; its timing is void")]
    NotFinite {
        /// The network.
        family: String,
        /// The mean of its output, or its loss.
        value: String,
    },
}

impl BenchError {
    /// True if the command line is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            BenchError::Setting { .. } | BenchError::NoMatch { .. } => true,
            BenchError::Data(error) => error.is_usage(),
            BenchError::Pipeline(error) => error.is_usage(),
            BenchError::Stage(error) => error.is_usage(),
            BenchError::Task(error) => error.is_usage(),
            _ => false,
        }
    }
}

impl From<PipelineError> for BenchError {
    fn from(error: PipelineError) -> Self {
        Self::Pipeline(Box::new(error))
    }
}

impl From<StageError> for BenchError {
    fn from(error: StageError) -> Self {
        Self::Stage(Box::new(error))
    }
}

impl From<TaskError> for BenchError {
    fn from(error: TaskError) -> Self {
        Self::Task(Box::new(error))
    }
}

impl From<LayoutError> for BenchError {
    fn from(error: LayoutError) -> Self {
        PipelineError::from(error).into()
    }
}

/// One line of JSON.
fn json_line(value: &impl serde::Serialize) -> String {
    // Only maps with keys that are no strings and failing `Serialize` implementations are errors; these have neither.
    serde_json::to_string(value).unwrap_or_default()
}

/// The middle of some durations, in seconds; of an even number the mean of both in the middle, 0 of none.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let n = seconds.len();
    match n {
        0 => 0.0,
        _ => 0.5 * (seconds[(n - 1) / 2] + seconds[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![5.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![5.0, 1.0, 2.0, 4.0]), 3.0);
    }
}
