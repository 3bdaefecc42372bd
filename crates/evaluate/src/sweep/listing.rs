//! What is judged next: one checkpoint or folder, or those of a run that are not judged yet.

use super::recipe::{Judged, setting};
use super::{KeptCheckpoints, Sweep, SweepError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two looks for new checkpoints.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time between two looks at the stop flag meanwhile.
const LISTEN_EVERY: Duration = Duration::from_millis(100);

/// A checkpoint, or a folder of pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Subject {
    /// Samples that a run's checkpoint has seen.
    pub samples: Option<u64>,
    /// Where it is.
    pub path: PathBuf,
}

/// What all processes judge next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Listing {
    pub subjects: Vec<Subject>,
    /// Whether nothing comes behind them.
    pub last: bool,
    /// Whether the first process was asked to stop while it waited.
    pub stopped: bool,
}

impl Sweep<'_> {
    /// The subjects that are not among those `listed`, as the first process sees them: a run's folder changes while others look.
    ///
    /// # Errors
    /// [`SweepError::Run`] if the run's checkpoints cannot be listed or there are none; [`SweepError::Setting`] if there is none
    /// of so many samples as the recipe names.
    pub(super) fn next(&self, listed: &BTreeSet<Option<u64>>) -> Result<Listing, SweepError> {
        let wrong = |error: serde_json::Error| SweepError::io("tell the list of", self.out)(error.into());
        let mut bytes = Vec::new();
        if self.collective.is_first() {
            bytes = serde_json::to_vec(&self.list(listed)?).map_err(wrong)?;
        }
        self.collective.broadcast(0, &mut bytes)?;
        serde_json::from_slice(&bytes).map_err(wrong)
    }

    fn list(&self, listed: &BTreeSet<Option<u64>>) -> Result<Listing, SweepError> {
        let folder = match self.recipe.judged()? {
            Judged::Run(folder) => Path::new(folder),
            Judged::Model(path) | Judged::Pictures(path) => {
                let subjects = vec![Subject { samples: None, path: path.into() }];
                return Ok(Listing { subjects, last: true, stopped: false });
            }
        };
        let run = self.run.ok_or_else(|| setting("run", "cannot be judged here: nobody tells of its checkpoints"))?;
        loop {
            // Asked first: what is saved between both questions is listed.
            let finished = run.is_finished();
            let all = saved(run, folder)?;
            let chosen = |subject: &Subject| {
                let samples = subject.samples.unwrap_or_default();
                self.recipe.at.is_empty() || self.recipe.at.contains(&samples)
            };
            let new = |subject: &&Subject| chosen(subject) && !listed.contains(&subject.samples);
            let subjects: Vec<Subject> = all.iter().filter(new).cloned().collect();
            let last = finished || !self.follow;
            if last {
                self.check_listed(folder, &all, listed)?;
            }
            if last || !subjects.is_empty() {
                return Ok(Listing { subjects, last, stopped: false });
            }
            if self.wait() {
                return Ok(Listing { stopped: true, ..Listing::default() });
            }
        }
    }

    /// Refuses a run without checkpoints, or without those that the recipe names.
    fn check_listed(&self, folder: &Path, all: &[Subject], listed: &BTreeSet<Option<u64>>) -> Result<(), SweepError> {
        let there = |samples: u64| {
            listed.contains(&Some(samples)) || all.iter().any(|subject| subject.samples == Some(samples))
        };
        if let Some(samples) = self.recipe.at.iter().find(|samples| !there(**samples)) {
            let known: Vec<String> = all.iter().filter_map(|subject| Some(subject.samples?.to_string())).collect();
            let problem = format!(
                "names {samples} samples, and {} keeps no checkpoint of so many, only of {}",
                folder.display(),
                known.join(", ")
            );
            return Err(setting("at", problem));
        }
        match all.is_empty() && listed.is_empty() {
            true => Err(SweepError::Run {
                path: folder.to_owned(),
                source: "there is no checkpoint in it; a run keeps them with run.checkpoint_every and run.keep_checkpoints, and \
                         --follow waits for them"
                    .into(),
            }),
            false => Ok(()),
        }
    }

    /// Waits for a while; true if a stop was asked for.
    fn wait(&self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < LOOK_EVERY && !self.stop.is_set() {
            std::thread::sleep(LISTEN_EVERY);
        }
        self.stop.is_set()
    }
}

fn saved(run: &dyn KeptCheckpoints, folder: &Path) -> Result<Vec<Subject>, SweepError> {
    let fault = |source| SweepError::Run { path: folder.to_owned(), source };
    let all = run.saved().map_err(fault)?;
    Ok(all.into_iter().map(|(samples, path)| Subject { samples: Some(samples), path }).collect())
}
