//! A submission's tree from the logs of its runs.

use super::alike::difference;
use super::{BENCHMARKS, RESULTS, SYSTEMS, SystemDescription};
use crate::log::{Log, ReadError};
use crate::ruleset::Benchmark;
use calotype_core::{durable, read_input};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What goes into a tree.
#[derive(Clone, Debug)]
pub struct NewPackage<'a> {
    /// The benchmark.
    pub benchmark: Benchmark,
    /// The system that ran it.
    pub system: &'a SystemDescription,
    /// The runs' logs; the first becomes `result_0.txt`.
    pub logs: &'a [PathBuf],
    /// The implementation's name, and files that show it, such as the recipe.
    pub implementation: (&'a str, &'a [PathBuf]),
}

/// Why no tree is written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// Not as many logs as a result is made of.
    #[error("{benchmark} needs the logs of {wanted} runs, and {given} are given; add or leave out some")]
    Runs {
        /// The benchmark.
        benchmark: Benchmark,
        /// How many it needs.
        wanted: usize,
        /// How many there are.
        given: usize,
    },
    /// Runs that are not of one result.
    #[error(
        "{} line {line}: `{key}` is {value}, and in {} it is {first_value}: the runs of a result have it in common; give only those \
         that belong together", file.display(), first.display()
    )]
    Mixed {
        /// The log that differs.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What differs.
        key: &'static str,
        /// What it says.
        value: String,
        /// The first log.
        first: PathBuf,
        /// What that one says.
        first_value: String,
    },
    /// A name that makes no folder of a repository.
    #[error("`{name}` cannot be the name of {of}: it may be no path, be empty, begin with a point or hold a blank")]
    Name {
        /// Of what.
        of: &'static str,
        /// The name.
        name: String,
    },
    /// Something else is there already.
    #[error("{}: is there already; choose another folder or remove it", file.display())]
    Exists {
        /// The file or folder.
        file: PathBuf,
    },
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

fn io_error<'a>(file: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> PackageError + 'a {
    move |source| PackageError::Io { file: file.to_owned(), action, source }
}

/// Writes a result into a submitter's tree, which may hold others: the system's description, the implementation's files, and last
/// the logs, whose folder appears whole or not at all. Returns that folder. What the tree is worth,
/// [`check_package`](super::check_package) tells.
///
/// # Errors
/// [`PackageError`]; nothing is ever replaced by something else.
pub fn write_package(root: &Path, package: &NewPackage<'_>) -> Result<PathBuf, PackageError> {
    let NewPackage { benchmark, system, logs, implementation: (implementation, sources) } = *package;
    if logs.len() != benchmark.runs() {
        return Err(PackageError::Runs { benchmark, wanted: benchmark.runs(), given: logs.len() });
    }
    check_name("the system", &system.system_name)?;
    check_name("the implementation", implementation)?;
    check_alike(logs)?;
    let results = root.join(RESULTS).join(&system.system_name);
    let folder = results.join(benchmark.name());
    if folder.exists() {
        return Err(PackageError::Exists { file: folder });
    }
    describe(root, system)?;
    let implementations = root.join(BENCHMARKS).join(benchmark.name()).join("implementations").join(implementation);
    make_folder(&implementations)?;
    for source in sources {
        let name = source.file_name().ok_or_else(|| PackageError::Io {
            file: source.clone(),
            action: "copy it",
            source: io::Error::from(io::ErrorKind::InvalidInput),
        })?;
        copy_new(source, &implementations.join(name))?;
    }
    make_folder(&results)?;
    let aside = results.join(format!(".{benchmark}.{}.tmp", std::process::id()));
    let outcome = copy_logs(logs, &aside).and_then(|()| {
        fs::rename(&aside, &folder).and_then(|()| durable::sync_folder(&results)).map_err(io_error(&folder, "write it"))
    });
    if outcome.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&aside);
    }
    outcome.map(|()| folder)
}

fn check_name(of: &'static str, name: &str) -> Result<(), PackageError> {
    let bad = name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ' ', '\0']);
    if bad { Err(PackageError::Name { of, name: name.to_owned() }) } else { Ok(()) }
}

/// Refuses logs of runs that say different things of who submits what.
fn check_alike(logs: &[PathBuf]) -> Result<(), PackageError> {
    let read = |path: &PathBuf| {
        Log::read(path).map_err(|ReadError { file, source }| PackageError::Io { file, action: "read it", source })
    };
    let logs = logs.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let Some(found) = difference(&logs) else { return Ok(()) };
    Err(PackageError::Mixed {
        file: found.file.to_owned(),
        line: found.line,
        key: found.key,
        value: found.value.to_string(),
        first: found.first.0.to_owned(),
        first_value: found.first.1.to_string(),
    })
}

/// Writes the system's description; one that is there must be the same.
fn describe(root: &Path, system: &SystemDescription) -> Result<(), PackageError> {
    let folder = root.join(SYSTEMS);
    make_folder(&folder)?;
    let path = folder.join(format!("{}.json", system.system_name));
    let earlier: Option<SystemDescription> =
        durable::read_json(&path).map_err(io_error(&path, "read the description that is there"))?;
    match earlier {
        Some(earlier) if earlier == *system => Ok(()),
        Some(_) => Err(PackageError::Exists { file: path }),
        None => durable::write_json(&path, system).map_err(io_error(&path, "write it")),
    }
}

/// Copies a file where none is, or the same.
fn copy_new(from: &Path, to: &Path) -> Result<(), PackageError> {
    let bytes = read_input(from).map_err(io_error(from, "read it"))?;
    match durable::create_file(to, &bytes) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::read(to) {
            Ok(earlier) if earlier == bytes => Ok(()),
            _ => Err(PackageError::Exists { file: to.to_owned() }),
        },
        outcome => outcome.map_err(io_error(to, "write it")),
    }
}

fn copy_logs(logs: &[PathBuf], folder: &Path) -> Result<(), PackageError> {
    make_folder(folder)?;
    for (index, log) in logs.iter().enumerate() {
        let target = folder.join(format!("result_{index}.txt"));
        let bytes = read_input(log).map_err(io_error(log, "read it"))?;
        let written = fs::write(&target, bytes).and_then(|()| File::open(&target)?.sync_all());
        written.map_err(io_error(&target, "write it"))?;
    }
    durable::sync_folder(folder).map_err(io_error(folder, "write it"))
}

fn make_folder(folder: &Path) -> Result<(), PackageError> {
    fs::create_dir_all(folder).map_err(io_error(folder, "create this folder"))
}
