//! Whether a tree can be sent to the repository of results: names, sizes and links.

use crate::finding::{Finding, Report, Severity};
use crate::log::ReadError;
use calotype_core::system::format_bytes;
use std::path::Path;
use walkdir::WalkDir;

/// Largest file: 50 MiB.
const LARGEST: u64 = 50 << 20;

/// Judges names (no blanks, no point in front), sizes (up to 50 MiB) and links (none that lead nowhere) of everything in a tree.
/// The tree's own name does not count.
///
/// # Errors
/// [`ReadError`] for what cannot be read.
pub fn check_repository(root: &Path) -> Result<Report, ReadError> {
    let mut report = Report::default();
    for entry in WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let file = error.path().unwrap_or(root).to_owned();
            ReadError { file, source: error.into() }
        })?;
        let path = entry.path();
        let mut error = |problem: &str, remedy: &str| report.add(Finding::new(Severity::Error, path, problem, remedy));
        let name = entry.file_name().to_string_lossy();
        if name.starts_with('.') || name.contains(' ') {
            error("its name begins with a point or holds a blank", "rename or remove it");
        }
        if entry.path_is_symlink() {
            if !path.exists() {
                error("the link leads nowhere", "put the file in its place");
            }
            continue;
        }
        let size = entry.metadata().map_or(0, |metadata| metadata.len());
        if entry.file_type().is_file() && size > LARGEST {
            let problem = format!("it has {}, where 50 MiB are allowed", format_bytes(size));
            error(&problem, "shorten or remove it");
        }
    }
    Ok(report)
}
