//! A submission's tree from the folders of runs.

use super::layout::{Place, SYSTEMS, TESTS, sources};
use super::rounds::{InferenceDivision, Round, Scenario};
use super::truncate::{TruncateError, truncate};
use super::{ACCURACY, ACCURACY_LOG, BENCHMARK, DETAIL, Detail, InferenceSystem, SUMMARY, USER_CONF};
use crate::log::ReadError;
use calotype_core::durable;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What the implementation made of the benchmark's model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// Types of what goes into the network, such as `bf16`.
    pub input_data_types: String,
    /// Whether weights were trained further: `yes` or `no`.
    pub retraining: String,
    /// Name of the file or folder that the weights are from.
    pub starting_weights_filename: String,
    /// Types of the weights, such as `bf16` or `int8`.
    pub weight_data_types: String,
    /// What was done to the weights, such as `rounded to bf16`.
    pub weight_transformations: String,
}

/// What goes into a tree.
#[derive(Clone, Copy, Debug)]
pub struct NewSubmission<'a> {
    /// The round, which decides about the layout.
    pub round: Round,
    /// The division.
    pub division: InferenceDivision,
    /// The submitter's name, which is also that of the folder.
    pub submitter: &'a str,
    /// The system; its division and submitter are replaced by these.
    pub system: &'a InferenceSystem,
    /// The name of the system's folder and file.
    pub folder: &'a str,
    /// The implementation's name.
    pub implementation: &'a str,
    /// The folder of the runs: `SCENARIO/performance/run_1`, `SCENARIO/accuracy`, `SCENARIO/TEST01`, `SCENARIO/TEST04`.
    pub runs: &'a Path,
    /// What the implementation made of the model.
    pub measurements: &'a Measurements,
    /// Files that show the implementation, such as the recipe.
    pub sources: &'a [PathBuf],
    /// LoadGen's mlperf.conf, which round v4.1 wants in the tree.
    pub mlperf_conf: Option<&'a Path>,
    /// A text for the README of each scenario.
    pub readme: &'a str,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The submitter's folder.
    pub folder: PathBuf,
    /// The scenarios that runs were found of.
    pub scenarios: Vec<Scenario>,
}

/// Why no tree is written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmissionError {
    /// No run of any scenario.
    #[error(
        "{}: holds no run, for there is no SCENARIO/performance/run_1/{DETAIL}; give the folder that `calotype mlperf inference sdxl \
         --out` wrote, after both modes", folder.display()
    )]
    NoRuns {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of a run that is not there.
    #[error("{}: is missing; {remedy}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The description of the system says too little.
    #[error("the description of the system does not say {}; add --field NAME=VALUE for each, or give a whole description with --system", fields.join(", "))]
    Description {
        /// The fields.
        fields: Vec<&'static str>,
    },
    /// A name that makes no folder of a repository.
    #[error("`{name}` cannot be the name of {of}: it may be no path, be empty, begin with a point or hold a blank")]
    Name {
        /// Of what.
        of: &'static str,
        /// The name.
        name: String,
    },
    /// Something is there already.
    #[error("{}: is there already; choose another folder or remove it", file.display())]
    Exists {
        /// The file or folder.
        file: PathBuf,
    },
    /// A log that cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A log of answers that cannot be shortened.
    #[error(transparent)]
    Truncate(#[from] TruncateError),
    /// The file system refuses.
    #[error("{}: cannot {action}: {source}; check the path, the permissions and the free space", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

fn io_error<'a>(file: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> SubmissionError + 'a {
    move |source| SubmissionError::Io { file: file.to_owned(), action, source }
}

/// The runs of a folder: scenarios in the order of [`Scenario::ALL`], and their folders, which may be named in any case.
///
/// # Errors
/// [`SubmissionError::Read`] and [`SubmissionError::NoRuns`].
pub(super) fn runs_in(folder: &Path) -> Result<Vec<(Scenario, PathBuf)>, SubmissionError> {
    let entries = fs::read_dir(folder).map_err(|source| ReadError { file: folder.to_owned(), source })?;
    let mut runs: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((Scenario::of_folder(&entry.file_name().to_string_lossy())?, entry.path())))
        .filter(|(_, path)| performance_of(path).join(DETAIL).is_file())
        .collect();
    runs.sort();
    match runs.is_empty() {
        true => Err(SubmissionError::NoRuns { folder: folder.to_owned() }),
        false => Ok(runs),
    }
}

/// Where a scenario's performance run is.
pub(super) fn performance_of(scenario: &Path) -> PathBuf {
    scenario.join("performance").join("run_1")
}

/// Writes a tree, which must not be there yet: aside, and renamed when it is whole. What it is worth,
/// [`check_submission`](super::check_submission) tells.
///
/// # Errors
/// [`SubmissionError`]; nothing is ever replaced.
pub fn write_submission(root: &Path, new: &NewSubmission<'_>) -> Result<Written, SubmissionError> {
    for (of, name) in
        [("the submitter", new.submitter), ("the system", new.folder), ("the implementation", new.implementation)]
    {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ' ', '\0']) {
            return Err(SubmissionError::Name { of, name: name.to_owned() });
        }
    }
    if root.exists() {
        return Err(SubmissionError::Exists { file: root.to_owned() });
    }
    let runs = runs_in(new.runs)?;
    let system = InferenceSystem {
        division: new.division.name().to_owned(),
        submitter: new.submitter.to_owned(),
        ..new.system.clone()
    };
    let fields = system.lacks();
    if !fields.is_empty() {
        return Err(SubmissionError::Description { fields });
    }
    let aside = aside_of(root);
    let outcome = Tree { submitter: aside.join(new.division.name()).join(new.submitter), new, system: &system }
        .write(&runs)
        .and_then(|()| fs::rename(&aside, root).map_err(io_error(root, "write it")));
    if outcome.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&aside);
    }
    outcome.map(|()| Written {
        folder: root.join(new.division.name()).join(new.submitter),
        scenarios: runs.into_iter().map(|(scenario, _)| scenario).collect(),
    })
}

fn aside_of(root: &Path) -> PathBuf {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    root.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

struct Tree<'a> {
    submitter: PathBuf,
    new: &'a NewSubmission<'a>,
    system: &'a InferenceSystem,
}

impl Tree<'_> {
    fn write(&self, runs: &[(Scenario, PathBuf)]) -> Result<(), SubmissionError> {
        let systems = self.submitter.join(SYSTEMS);
        make(&systems)?;
        let described = systems.join(format!("{}.json", self.new.folder));
        durable::write_json(&described, self.system).map_err(io_error(&described, "write it"))?;
        self.sources()?;
        for (scenario, run) in runs {
            let place = Place {
                round: self.new.round,
                submitter: &self.submitter,
                system: self.new.folder,
                model: BENCHMARK,
                scenario: scenario.name(),
            };
            self.performance(&place, run)?;
            self.accuracy(&place, run)?;
            self.measurements(&place, *scenario, run)?;
            for test in TESTS {
                audit(&place, run, test)?;
            }
        }
        Ok(())
    }

    fn sources(&self) -> Result<(), SubmissionError> {
        let folder = self.submitter.join(sources(self.new.round)).join(BENCHMARK).join(self.new.implementation);
        make(&folder)?;
        let readme = folder.join("README.md");
        let text = format!(
            "# {}\n\n{}. How it was run stands in the README.md of each result.\n",
            self.new.implementation, self.system.framework
        );
        durable::write_bytes(&readme, text.as_bytes()).map_err(io_error(&readme, "write it"))?;
        self.new
            .sources
            .iter()
            .try_for_each(|source| copy(source, &folder.join(source.file_name().unwrap_or_default())))
    }

    fn performance(&self, place: &Place<'_>, run: &Path) -> Result<(), SubmissionError> {
        let (from, to) = (performance_of(run), place.performance());
        make(&to)?;
        [DETAIL, SUMMARY].into_iter().try_for_each(|name| copy(&from.join(name), &to.join(name)))
    }

    fn accuracy(&self, place: &Place<'_>, run: &Path) -> Result<(), SubmissionError> {
        let (from, to) = (run.join("accuracy"), place.accuracy());
        need(&from.join(ACCURACY_LOG), "run the accuracy mode, too")?;
        need(&from.join(ACCURACY), "judge the accuracy run first: calotype mlperf inference accuracy")?;
        make(&to)?;
        [DETAIL, SUMMARY].into_iter().try_for_each(|name| copy(&from.join(name), &to.join(name)))?;
        truncate(&from, &to)?;
        let images = from.join("images");
        if images.is_dir() { copy_files(&images, &to.join("images")) } else { Ok(()) }
    }

    fn measurements(&self, place: &Place<'_>, scenario: Scenario, run: &Path) -> Result<(), SubmissionError> {
        let folder = place.measurements();
        make(&folder)?;
        let described = place.implementation(self.new.implementation);
        durable::write_json(&described, self.new.measurements).map_err(io_error(&described, "write it"))?;
        self.user_conf(&folder.join(USER_CONF), scenario, run)?;
        if self.new.round == Round::V4_1 {
            let missing = SubmissionError::Missing {
                file: folder.join("mlperf.conf"),
                remedy: "give the round's mlperf.conf with --mlperf-conf, for round v4.1 wants it in the tree",
            };
            copy(self.new.mlperf_conf.ok_or(missing)?, &folder.join("mlperf.conf"))?;
        }
        let readme = folder.join("README.md");
        let text =
            format!("# {BENCHMARK}, {scenario}, on {}\n\n{}\n", self.system.system_name, self.new.readme.trim_end());
        durable::write_bytes(&readme, text.as_bytes()).map_err(io_error(&readme, "write it"))
    }

    /// The settings that were given to LoadGen, or those that its log says were in force.
    fn user_conf(&self, to: &Path, scenario: Scenario, run: &Path) -> Result<(), SubmissionError> {
        let given = [run.join(USER_CONF), performance_of(run).join(USER_CONF), self.new.runs.join(USER_CONF)];
        if let Some(given) = given.iter().find(|path| fs::metadata(path).is_ok_and(|found| found.len() > 0)) {
            return copy(given, to);
        }
        let detail = Detail::read(&performance_of(run).join(DETAIL))?;
        durable::write_bytes(to, settings_of(&detail, scenario).as_bytes()).map_err(io_error(to, "write it"))
    }
}

/// A user.conf with the settings that a log says were in force.
fn settings_of(detail: &Detail, scenario: Scenario) -> String {
    let mut text = format!("# The settings in force, as {DETAIL} has them; no user.conf was given.\n");
    for (key, setting) in [
        ("effective_target_qps", "target_qps"),
        ("effective_min_duration_ms", "min_duration"),
        ("effective_min_sample_count", "min_query_count"),
        ("effective_performance_sample_count", "performance_sample_count_override"),
    ] {
        // Only an Offline query has as many samples as queries were asked for.
        let key = if key == "effective_min_sample_count" && scenario != Scenario::Offline {
            "effective_min_query_count"
        } else {
            key
        };
        if let Some(value) = detail.first(key) {
            text += &format!("*.{scenario}.{setting} = {value}\n");
        }
    }
    text
}

/// Copies an audit test, where there is one.
fn audit(place: &Place<'_>, run: &Path, test: &str) -> Result<(), SubmissionError> {
    let Some(from) = [run.join(test), run.join("compliance").join(test)].into_iter().find(|path| path.is_dir()) else {
        return Ok(());
    };
    let to = place.test(test);
    copy_files(&from, &to)?;
    let logs = performance_of(&to);
    make(&logs)?;
    [DETAIL, SUMMARY].into_iter().try_for_each(|name| copy(&performance_of(&from).join(name), &logs.join(name)))?;
    let figures = from.join("accuracy");
    if !figures.join(ACCURACY_LOG).is_file() {
        return Ok(());
    }
    make(&to.join("accuracy"))?;
    for name in ["baseline_accuracy.txt", "compliance_accuracy.txt"] {
        if figures.join(name).is_file() {
            copy(&figures.join(name), &to.join("accuracy").join(name))?;
        }
    }
    Ok(truncate(&figures, &to.join("accuracy"))?)
}

fn make(folder: &Path) -> Result<(), SubmissionError> {
    fs::create_dir_all(folder).map_err(io_error(folder, "create this folder"))
}

fn need(file: &Path, remedy: &'static str) -> Result<(), SubmissionError> {
    if file.is_file() { Ok(()) } else { Err(SubmissionError::Missing { file: file.to_owned(), remedy }) }
}

fn copy(from: &Path, to: &Path) -> Result<(), SubmissionError> {
    need(from, "run it again, or give another folder")?;
    let bytes = fs::read(from).map_err(io_error(from, "read it"))?;
    durable::write_bytes(to, &bytes).map_err(io_error(to, "write it"))
}

/// Copies the files of a folder, without folders in it and without hidden ones.
fn copy_files(from: &Path, to: &Path) -> Result<(), SubmissionError> {
    make(to)?;
    for entry in fs::read_dir(from).map_err(io_error(from, "list it"))? {
        let path = entry.map_err(io_error(from, "list it"))?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        if path.is_file() && !name.to_string_lossy().starts_with('.') {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}
