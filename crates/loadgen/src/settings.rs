//! What a run is told.

use calotype_core::names;
use std::path::PathBuf;
use std::time::Duration;

/// The model's name in LoadGen's configuration.
pub const MODEL: &str = "stable-diffusion-xl";

names! {
    /// How queries come.
    Scenario, "scenario" {
        /// A sample at a time, the next when it is answered.
        SingleStream = "singlestream" | "single-stream" | "SingleStream",
        /// Eight samples at a time, the next when they are answered.
        MultiStream = "multistream" | "multi-stream" | "MultiStream",
        /// Samples at random times (Poisson), at a chosen rate.
        Server = "server" | "Server",
        /// All samples at once.
        Offline = "offline" | "Offline",
    }
}

impl Scenario {
    /// LoadGen's name.
    pub fn official(self) -> &'static str {
        match self {
            Self::SingleStream => "SingleStream",
            Self::MultiStream => "MultiStream",
            Self::Server => "Server",
            Self::Offline => "Offline",
        }
    }
}

names! {
    /// What is found out.
    #[derive(Default)]
    Mode, "mode" {
        /// How fast it is.
        #[default]
        Performance = "performance",
        /// How good it is: every sample once, with all answers in the log.
        Accuracy = "accuracy",
        /// The highest rate at which the server scenario is valid.
        FindPeak = "find-peak",
    }
}

impl Mode {
    /// LoadGen's name.
    pub fn official(self) -> &'static str {
        match self {
            Self::Performance => "PerformanceOnly",
            Self::Accuracy => "AccuracyOnly",
            Self::FindPeak => "FindPeakPerformance",
        }
    }
}

/// Seeds of a round (`mlperf.conf`): of the order of the samples, of the choice of samples, of the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// `qsl_rng_seed`.
    pub library: u64,
    /// `sample_index_rng_seed`.
    pub sample: u64,
    /// `schedule_rng_seed`.
    pub schedule: u64,
}

/// A run of LoadGen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How queries come.
    pub scenario: Scenario,
    /// What is found out.
    pub mode: Mode,
    /// The configuration, `user.conf`; see [`UserConf`](crate::UserConf).
    pub user_conf: PathBuf,
    /// An audit's configuration, which overrides it.
    pub audit_conf: Option<PathBuf>,
    /// Seeds of another round than LoadGen's own.
    pub seeds: Option<Seeds>,
    /// The folder for LoadGen's files; it must be there.
    pub out: PathBuf,
    /// Whether LoadGen writes a trace, which grows with every query.
    pub trace: bool,
    /// How long LoadGen is waited for once the run has failed.
    pub grace: Duration,
}
