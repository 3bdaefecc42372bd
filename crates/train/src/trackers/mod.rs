//! What a run tells of itself while it goes: trackers, one file each.
//!
//! All count progress in samples. [`Trackers`] hands every [`Event`] to each of them. A new tracker is a file and a row of
//! the table of [`TrackerSettings`]; the log of an MLPerf benchmark ([`Mllog`]), which only some recipes ask for, is added to them.

mod csv;
mod json_lines;
mod mllog;
mod tensorboard;
pub mod wandb;

pub use self::csv::{Csv, METRICS as CSV_LINES};
pub use json_lines::{JsonLines, METRICS as JSON_LINES};
pub use mllog::{Mllog, MllogPlan};
pub use tensorboard::TensorBoard;
pub use wandb::{Wandb, WandbSettings};

use crate::config::SettingError;
use calotype_mlperf::LogError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why something cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// The file system refuses.
    #[error("{}: cannot {action}: {source}; check the permissions and the free space", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of an earlier run's metrics that is not one of ours.
    #[error("{} line {line}: {reason}; move the file away or correct the line", file.display())]
    DamagedLine {
        /// The metrics file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file of an earlier process that is not as it was written.
    #[error("{}: {reason}; move it away", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The log of an MLPerf benchmark.
    #[error(transparent)]
    Mlperf(#[from] LogError),
    /// A metric's name that stands for something else, or comes twice in a line.
    #[error("metric name `{name}` is reserved or repeated; give every metric of a line its own name")]
    BadName {
        /// The name.
        name: String,
    },
    /// Pixels that do not make an image.
    #[error("image `{tag}`: {reason}")]
    BadImage {
        /// The image's tag.
        tag: String,
        /// What is wrong.
        reason: String,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// All samples were seen, or a target was reached.
    Finished,
    /// Stopped on request; it can go on.
    Interrupted,
    /// By an error.
    Failed,
}

/// Something that happens in a run. `samples` are those seen by then.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A process takes up the run: a new one, or one that earlier processes brought this far.
    RunStart {
        /// 0 for a new run.
        samples: u64,
        /// The resolved recipe, as TOML.
        config: &'a str,
    },
    /// Named numbers of training.
    Scalars {
        /// Samples seen.
        samples: u64,
        /// Names are unique, and none is `samples` or `seconds`.
        values: &'a [(&'a str, f64)],
    },
    /// An image.
    Image {
        /// Samples seen.
        samples: u64,
        /// Its name, the same at every sample count.
        tag: &'a str,
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// `height * width * 3` bytes, row by row.
        rgb: &'a [u8],
    },
    /// A text (Markdown).
    Text {
        /// Samples seen.
        samples: u64,
        /// Its name.
        tag: &'a str,
        /// The text.
        text: &'a str,
    },
    /// Results of an evaluation.
    Evaluation {
        /// Samples seen.
        samples: u64,
        /// What was evaluated, as `validation`.
        name: &'a str,
        /// Named results; trackers of plain numbers call them `name/result`.
        values: &'a [(&'a str, f64)],
    },
    /// A checkpoint is on disk, complete.
    CheckpointSaved {
        /// Samples seen.
        samples: u64,
        /// Its folder.
        path: &'a Path,
    },
    /// The process leaves the run.
    RunEnd {
        /// Samples seen.
        samples: u64,
        /// How.
        outcome: RunOutcome,
    },
}

/// Records what happens in a run. One process of a run holds it (rank 0).
pub trait Tracker: fmt::Debug {
    /// Takes up an event; those that a tracker has no place for are ignored.
    ///
    /// # Errors
    /// [`TrackerError`] where it cannot be recorded.
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError>;

    /// Forces everything recorded onto the disk, so that it survives a power cut too; called before a checkpoint.
    ///
    /// # Errors
    /// [`TrackerError::Io`].
    fn sync(&mut self) -> Result<(), TrackerError> {
        Ok(())
    }
}

/// Makes the table `[trackers]` of all recipes: trackers that are on or off, and trackers that have settings.
macro_rules! trackers {
    (
        switches { $($(#[$doc:meta])* $switch:ident = $on:literal, $open:path;)* }
        tables { $($(#[$table_doc:meta])* $table:ident: $settings:ty, $open_with:path;)* }
    ) => {
        /// The table `[trackers]`: where a run reports.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct TrackerSettings {
            $($(#[$doc])* pub $switch: bool,)*
            $($(#[$table_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $table: Option<$settings>,)*
        }

        impl Default for TrackerSettings {
            fn default() -> Self {
                Self { $($switch: $on,)* $($table: None,)* }
            }
        }

        impl TrackerSettings {
            pub(crate) fn validate(&self) -> Result<(), SettingError> {
                $(self.$table.as_ref().map_or(Ok(()), <$settings>::validate)?;)*
                Ok(())
            }

            /// Opens all that are on, in the folder of a run that has seen some samples.
            fn open(&self, folder: &Path, samples: u64) -> Result<Vec<Box<dyn Tracker>>, TrackerError> {
                let mut all: Vec<Box<dyn Tracker>> = Vec::new();
                $(if self.$switch {
                    all.push(Box::new($open(folder, samples)?));
                })*
                $(if let Some(settings) = &self.$table {
                    all.push(Box::new($open_with(settings, folder, samples)?));
                })*
                Ok(all)
            }
        }
    };
}

impl TrackerSettings {
    /// Whether one of them shows images.
    pub(crate) fn show_images(&self) -> bool {
        self.tensorboard || self.wandb.is_some()
    }
}

trackers! {
    switches {
        /// `metrics.jsonl`.
        json_lines = true, JsonLines::open;
        /// TensorBoard event files.
        tensorboard = true, TensorBoard::open;
        /// `metrics.csv`.
        csv = false, Csv::open;
    }
    tables {
        /// An offline run of Weights & Biases.
        wandb: WandbSettings, Wandb::open;
    }
}

/// The trackers of a run; each gets every event.
///
/// ```
/// use calotype_train::trackers::{Event, Tracker, TrackerSettings, Trackers};
/// let folder = tempfile::tempdir().unwrap();
/// let mut trackers = Trackers::open(folder.path(), 0, &TrackerSettings::default()).unwrap();
/// trackers.event(&Event::Scalars { samples: 64, values: &[("loss", 0.5)] }).unwrap();
/// let lines = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
/// assert!(lines.starts_with("{\"samples\":64,") && lines.ends_with("\"loss\":0.5}\n"));
/// ```
#[derive(Debug, Default)]
pub struct Trackers(Vec<Box<dyn Tracker>>);

impl Trackers {
    /// Opens trackers in the folder of a run that has seen `samples` samples (0 for a new one). What a killed process
    /// recorded of later samples is dropped or hidden: the records then are as an uninterrupted run's but for the times.
    ///
    /// For that to hold exactly, record what belongs to a sample count before saving the checkpoint of that count.
    ///
    /// # Errors
    /// [`TrackerError::Io`], [`TrackerError::DamagedLine`], [`TrackerError::Damaged`].
    pub fn open(folder: &Path, samples: u64, settings: &TrackerSettings) -> Result<Self, TrackerError> {
        settings.open(folder, samples).map(Self)
    }

    /// Adds another one.
    pub fn push(&mut self, tracker: Box<dyn Tracker>) {
        self.0.push(tracker);
    }

    /// Calls each tracker, also those behind one that fails; the first failure is the result.
    fn tell_each(
        &mut self,
        mut call: impl FnMut(&mut dyn Tracker) -> Result<(), TrackerError>,
    ) -> Result<(), TrackerError> {
        let mut result = Ok(());
        for tracker in &mut self.0 {
            result = result.and(call(tracker.as_mut()));
        }
        result
    }
}

impl Tracker for Trackers {
    /// Gives the event to each tracker, also to those behind one that fails.
    ///
    /// # Errors
    /// The first tracker's that fails.
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
        self.tell_each(|tracker| tracker.event(event))
    }

    fn sync(&mut self) -> Result<(), TrackerError> {
        self.tell_each(|tracker| tracker.sync())
    }
}

fn io_error(file: &Path, action: &'static str, source: io::Error) -> TrackerError {
    TrackerError::Io { file: file.to_owned(), action, source }
}

/// Checks that names of one record are different, and none of `reserved`.
fn check_names(values: &[(&str, f64)], reserved: &[&str]) -> Result<(), TrackerError> {
    let wrong = values.iter().enumerate().find(|(index, (name, _))| {
        reserved.contains(name) || values[..*index].iter().any(|(earlier, _)| earlier == name)
    });
    wrong.map_or(Ok(()), |(_, (name, _))| Err(TrackerError::BadName { name: (*name).to_owned() }))
}

/// The results of an evaluation as plain numbers.
fn named_results(name: &str, values: &[(&str, f64)]) -> Vec<(String, f64)> {
    values.iter().map(|(result, value)| (format!("{name}/{result}"), *value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Debug)]
    struct Recorded(Rc<RefCell<Vec<String>>>, bool);

    impl Tracker for Recorded {
        fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
            self.0.borrow_mut().push(format!("{event:?}"));
            match self.1 {
                true => Err(TrackerError::BadName { name: "refused".to_owned() }),
                false => Ok(()),
            }
        }

        fn sync(&mut self) -> Result<(), TrackerError> {
            self.0.borrow_mut().push("sync".to_owned());
            Ok(())
        }
    }

    #[test]
    fn every_tracker_gets_every_event() {
        let heard = Rc::<RefCell<Vec<String>>>::default();
        let mut trackers = Trackers::default();
        trackers.push(Box::new(Recorded(heard.clone(), false)));
        trackers.push(Box::new(Recorded(heard.clone(), false)));
        let path = Path::new("checkpoints/checkpoint-8");
        let events = [
            Event::RunStart { samples: 0, config: "seed = 1" },
            Event::CheckpointSaved { samples: 8, path },
            Event::RunEnd { samples: 8, outcome: RunOutcome::Finished },
        ];
        events.iter().for_each(|event| trackers.event(event).unwrap());
        trackers.sync().unwrap();
        let expected = events.iter().map(|event| format!("{event:?}")).chain(["sync".to_owned()]);
        assert_eq!(*heard.borrow(), expected.flat_map(|event| [event.clone(), event]).collect::<Vec<_>>());
        heard.borrow_mut().clear();
        trackers.push(Box::new(Recorded(heard.clone(), true)));
        trackers.push(Box::new(Recorded(heard.clone(), false)));
        assert!(trackers.event(&events[0]).is_err());
        assert_eq!(heard.borrow().len(), 4, "a tracker that fails keeps the event from no other");
    }

    #[test]
    fn all_of_the_table_open_and_take_every_event() {
        let folder = tempfile::tempdir().unwrap();
        let all: TrackerSettings = toml::from_str("csv = true\nwandb = { project = \"p\" }").unwrap();
        let mut trackers = Trackers::open(folder.path(), 0, &all).unwrap();
        for event in [
            Event::RunStart { samples: 0, config: "seed = 1" },
            Event::Scalars { samples: 8, values: &[("loss", 0.5)] },
            Event::Evaluation { samples: 8, name: "validation", values: &[("loss", 0.75)] },
            Event::Image { samples: 8, tag: "image", width: 1, height: 1, rgb: &[1, 2, 3] },
            Event::Text { samples: 8, tag: "text", text: "words" },
            Event::CheckpointSaved { samples: 8, path: folder.path() },
            Event::RunEnd { samples: 8, outcome: RunOutcome::Failed },
        ] {
            trackers.event(&event).unwrap();
        }
        trackers.sync().unwrap();
        let metrics = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count(), 2);
        assert!(metrics.contains("\"validation/loss\":0.75"), "{metrics}");
        assert!(std::fs::read_dir(folder.path()).unwrap().count() == 4);
    }
}
