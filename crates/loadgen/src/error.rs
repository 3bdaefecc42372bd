use crate::conf::ConfError;
use std::path::PathBuf;

/// Why LoadGen did not run, or not to a good end.
#[derive(Debug, thiserror::Error)]
pub enum LoadgenError {
    /// This build has no LoadGen.
    #[error(
        "this build has no LoadGen: run `eval \"$(scripts/loadgen.sh)\"`, which fetches its sources, and build with `--features loadgen`"
    )]
    NotBuilt,
    /// A line of a configuration that LoadGen would pass over, or take for something else.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// LoadGen reads its configuration otherwise than it is read here: a fault of this program.
    #[error("LoadGen reads {key} as {theirs} and Calotype as {ours}; report this with {}", path.display())]
    Differs {
        /// The configuration.
        path: PathBuf,
        /// The value's name.
        key: &'static str,
        /// What LoadGen makes of it.
        theirs: String,
        /// What we make of it.
        ours: String,
    },
    /// LoadGen cannot read its configuration.
    #[error("{}: LoadGen cannot read it; is it there, and of lines `model.scenario.key = value`?", path.display())]
    Unread {
        /// The configuration.
        path: PathBuf,
    },
    /// Peaks are looked for in the server scenario alone.
    #[error("LoadGen finds peaks in the server scenario alone, not in {0}; choose --scenario server")]
    NoPeak(&'static str),
    /// The folder for LoadGen's files cannot be used.
    #[error("{}: LoadGen cannot write it: {source}", path.display())]
    Folder {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A second run in this process.
    #[error(
        "LoadGen has run in this process; it reads one configuration in a process, so that another run needs another process"
    )]
    Again,
    /// A thread could not be started.
    #[error("cannot start LoadGen's thread: {0}")]
    Thread(std::io::Error),
    /// The system under test gave up; its samples were answered with nothing.
    #[error("{0}")]
    Failed(String),
    /// The same, and LoadGen did not return in time.
    #[error("{failure}; LoadGen, which cannot be stopped, still waited after {seconds:.0} s and was left behind")]
    Abandoned {
        /// What failed.
        failure: String,
        /// For how long it was waited for.
        seconds: f64,
    },
    /// LoadGen threw something.
    #[error("LoadGen failed: {0}")]
    Thrown(String),
    /// LoadGen returned, but left no logs.
    #[error("{}: LoadGen ended without writing it; is the disk full?", path.display())]
    NoLog {
        /// The file.
        path: PathBuf,
    },
}

impl LoadgenError {
    /// True if the command line or a configuration is at fault, not the work.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NotBuilt | Self::Conf(_) | Self::NoPeak(_) | Self::Unread { .. })
    }

    /// True if LoadGen still runs on a thread of its own, so that the process must end by [`leave`](crate::leave).
    pub fn must_leave(&self) -> bool {
        matches!(self, Self::Abandoned { .. })
    }
}
