//! Reports of `inspect` on what is no checkpoint: folders of runs, and drawn images.

use anyhow::Result;
use calotype_pipeline::{ForeignRecord, GenerationRecord, Recorded, RecordedRequest, RecordedSettings};
use calotype_train::runs::{Held, held};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt::{self, Display};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Runs, quickstarts, evaluations and training checkpoints of a folder, by name.
#[derive(Serialize)]
pub(crate) struct Runs {
    path: PathBuf,
    runs: Vec<Held>,
}

impl Runs {
    /// Those that lie directly in a folder; none if there are none.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(crate) fn below(path: &Path) -> Result<Option<Self>> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort_unstable();
        let runs = folders.iter().filter_map(|folder| held(folder).transpose()).collect::<Result<Vec<_>, _>>()?;
        Ok(if runs.is_empty() { None } else { Some(Self { path: path.to_owned(), runs }) })
    }

    /// Their folders, as far as they are whole runs.
    pub(crate) fn names(&self) -> Vec<String> {
        let folder = |held: &Held| match held {
            Held::Run(run) => Some(run.path.display().to_string()),
            Held::Quickstart { runs, .. } => Some(runs.first()?.path.parent()?.display().to_string()),
            Held::Preparation { .. } | Held::Evaluation { .. } | Held::TrainingCheckpoint(_) | Held::Snapshot(_) => {
                None
            }
        };
        self.runs.iter().filter_map(folder).collect()
    }

    /// What the folder is, in words.
    pub(crate) fn what(&self) -> &'static str {
        let all = |is: fn(&Held) -> bool| self.runs.iter().all(is);
        match () {
            () if all(|held| matches!(held, Held::TrainingCheckpoint(_) | Held::Snapshot(_))) => {
                "a folder of training checkpoints"
            }
            () if all(|held| matches!(held, Held::Evaluation { .. })) => "a folder of evaluations",
            () => "a folder of runs",
        }
    }

    /// What to do instead of taking the folder for a checkpoint.
    pub(crate) fn advice(&self) -> String {
        match self.names() {
            names if !names.is_empty() => format!("name one of them: {}", names.join(", ")),
            _ if self.what() == "a folder of training checkpoints" => {
                "`calotype export RUN --at SAMPLES --out FOLDER` writes the model of one, and a run that is finished has its own in \
                 the folder model"
                    .to_owned()
            }
            _ => "none of them holds a model".to_owned(),
        }
    }
}

impl Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}, each of which `inspect` tells more of", self.path.display(), self.what())?;
        self.runs.iter().try_for_each(|run| write!(f, "{run}"))
    }
}

/// Fields on a line each, those of an object below its name; empty ones are left out.
fn write_fields(f: &mut fmt::Formatter<'_>, fields: &Map<String, Value>, depth: usize) -> fmt::Result {
    for (name, value) in fields {
        let indent = "  ".repeat(depth);
        match value {
            Value::Null => {}
            Value::Object(below) => {
                write!(f, "\n{indent}{name}")?;
                write_fields(f, below, depth + 1)?;
            }
            Value::String(text) => write!(f, "\n{indent}{name:<10} {text}")?,
            other => write!(f, "\n{indent}{name:<10} {other}")?,
        }
    }
    Ok(())
}

/// Whether a path is a PNG, whose settings are wanted.
pub(crate) fn has_settings(path: &Path) -> bool {
    const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
    let mut beginning = [0; 8];
    let read = calotype_core::open_input(path).and_then(|mut file| file.read_exact(&mut beginning));
    read.is_ok() && beginning == SIGNATURE
}

/// The settings inside a drawn image.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Image {
    /// Of ours.
    Own { path: PathBuf, record: Box<GenerationRecord> },
    /// Of another program's, as far as they map.
    Foreign {
        path: PathBuf,
        program: &'static str,
        model: Option<String>,
        request: RecordedRequest,
        sampler: Option<String>,
        settings: Box<RecordedSettings>,
        rest: Vec<String>,
    },
}

impl Image {
    /// Reads them.
    ///
    /// # Errors
    /// The file holds none that are known.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        Ok(match Recorded::read(&path)? {
            Recorded::Own(record) => Self::Own { path, record },
            Recorded::Foreign(foreign) => {
                let ForeignRecord { program, model, request, settings, sampler, rest } = *foreign;
                Self::Foreign { path, program, model, request, sampler, settings: Box::new(settings), rest }
            }
        })
    }
}

impl Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { path, record } => {
                write!(f, "{}: drawn by calotype {}", path.display(), record.version)?;
                write!(f, "; again with: calotype generate --from {}", path.display())?;
            }
            Self::Foreign { path, program, .. } => write!(f, "{}: drawn by {program}", path.display())?,
        }
        // A record has text keys and finite numbers only, which JSON can hold.
        let Ok(Value::Object(mut fields)) = serde_json::to_value(self) else { return Ok(()) };
        fields.remove("path");
        fields.remove("program");
        write_fields(f, &fields, 1)
    }
}
