//! Replacing a file completely or not at all, whatever the moment the process or the machine stops.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `path` through `fill`: into a sibling temporary file, which is synchronised to disk and renamed over `path`;
/// then the folder entry is synchronised too. A reader sees the old content or the new one, never a mixture.
///
/// # Errors
/// Any error of `fill` or of the file system; `path` is then as it was and the temporary file is gone.
pub fn replace_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary_sibling(path)?;
    let outcome = write_and_rename(&temporary, path, fill);
    if outcome.is_err() {
        // The first error is the one to report; a left-over temporary file is only a nuisance.
        let _ = fs::remove_file(&temporary);
    }
    outcome
}

/// Synchronises a folder's entries (names of files created, renamed or removed in it) to disk.
///
/// # Errors
/// The folder cannot be opened or synchronised.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Windows cannot open folders as files and makes renames durable by itself.
    if cfg!(windows) { Ok(()) } else { File::open(folder)?.sync_all() }
}

/// The folder that holds `path`; `.` for a bare file name.
pub fn parent_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether an error says that the disk, or the user's share of it, is full.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn write_and_rename(
    temporary: &Path,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create_new(temporary)?);
    fill(&mut writer)?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(temporary, path)?;
    sync_folder(parent_folder(path))
}

/// A hidden name next to `path`, unique over processes (by id) and within this one (by counter).
fn temporary_sibling(path: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name to write to"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        replace_file(&path, |w| w.write_all(b"old")).unwrap();
        let error = replace_file(&path, |w| {
            w.write_all(b"ne")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(is_disk_full(&error));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        replace_file(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        assert!(replace_file(Path::new("/"), |_| Ok(())).is_err());
    }
}
