//! Where a run's files lie below its output folder.

use crate::error::InferenceError;
use calotype_core::durable;
use calotype_loadgen::{LOG_FILES, Mode, Scenario};
use std::fs;
use std::path::{Path, PathBuf};

/// The output folder of a benchmark: a folder for each scenario, and `run.json`, which says what all were drawn with.
#[derive(Clone, Debug)]
pub struct Layout {
    out: PathBuf,
    scenario: Scenario,
    mode: Mode,
}

impl Layout {
    /// The layout below `out`.
    pub fn new(out: &Path, scenario: Scenario, mode: Mode) -> Self {
        Self { out: out.to_owned(), scenario, mode }
    }

    /// `OUT/run.json`.
    pub fn run_json(&self) -> PathBuf {
        self.out.join("run.json")
    }

    /// `OUT/model`, where a checkpoint of random weights is made.
    pub fn model(&self) -> PathBuf {
        self.out.join("model")
    }

    /// `OUT/<scenario>`.
    pub fn scenario(&self) -> PathBuf {
        self.out.join(self.scenario.name())
    }

    /// The folder of LoadGen's files: `performance/run_1`, `accuracy` or `find_peak`.
    pub fn logs(&self) -> PathBuf {
        self.scenario().join(match self.mode {
            Mode::Performance => "performance/run_1",
            Mode::Accuracy => "accuracy",
            Mode::FindPeak => "find_peak",
        })
    }

    /// Where LoadGen writes as long as the run has not ended well.
    pub fn unfinished(&self) -> PathBuf {
        self.scenario().join(format!("unfinished_{}", self.mode.name().replace('-', "_")))
    }

    /// What the run was told, as LoadGen read it: `user.conf` of a performance run, which submissions show.
    pub fn user_conf(&self) -> PathBuf {
        self.scenario().join(match self.mode {
            Mode::Performance => "user.conf",
            Mode::Accuracy => "user_accuracy.conf",
            Mode::FindPeak => "user_find_peak.conf",
        })
    }

    /// `summary.txt` and `summary.json` in words.
    pub fn summaries(&self) -> [PathBuf; 2] {
        let name = match self.mode {
            Mode::Performance => "summary",
            Mode::Accuracy => "summary_accuracy",
            Mode::FindPeak => "summary_find_peak",
        };
        ["txt", "json"].map(|ending| self.scenario().join(format!("{name}.{ending}")))
    }

    /// Whether a run of this scenario and mode is there.
    pub fn is_done(&self) -> bool {
        self.logs().join(LOG_FILES[0]).is_file()
    }

    /// Makes an empty folder for LoadGen's files. What a run that did not end left there is removed.
    ///
    /// # Errors
    /// [`InferenceError::Io`].
    pub fn begin(&self) -> Result<PathBuf, InferenceError> {
        let path = self.unfinished();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(InferenceError::io("remove", &path)(error));
            }
            _ => {}
        }
        fs::create_dir_all(&path).map_err(InferenceError::io("create", &path))?;
        Ok(path)
    }

    /// Puts LoadGen's files where they belong. An earlier run is replaced.
    ///
    /// # Errors
    /// [`InferenceError::Io`].
    pub fn finish(&self) -> Result<(), InferenceError> {
        let (from, to) = (self.unfinished(), self.logs());
        if to.exists() {
            fs::remove_dir_all(&to).map_err(InferenceError::io("remove", &to))?;
        }
        let parent = durable::parent_folder(&to);
        fs::create_dir_all(parent).map_err(InferenceError::io("create", parent))?;
        fs::rename(&from, &to).map_err(InferenceError::io("rename", &from))?;
        durable::sync_folder(parent).map_err(InferenceError::io("write", parent))
    }
}
