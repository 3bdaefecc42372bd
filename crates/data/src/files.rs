//! Small files written whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Temporary name in the same folder: hidden, so that a scan for `*.tar` passes it by.
pub fn partial_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Makes a rename durable: without it the new name may be lost with the power.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_folder(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(dir).and_then(|f| f.sync_all()).map_err(Error::io("sync folder", dir))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// Flushes `file`, which was written as [`partial_name`]`(path)`, and gives it its name.
///
/// # Errors
/// [`Error::Io`].
pub fn publish(file: File, path: &Path) -> Result<()> {
    let partial = partial_name(path);
    file.sync_all().map_err(Error::io("sync", &partial))?;
    drop(file);
    fs::rename(&partial, path).map_err(Error::io("rename to", path))?;
    match path.parent() {
        Some(dir) => sync_folder(dir),
        None => Ok(()),
    }
}

/// Writes `value` as indented JSON, atomically.
///
/// # Errors
/// [`Error::Io`], [`Error::BadIndex`] if it has no JSON form.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::BadIndex { path: path.to_path_buf(), detail: format!("cannot be written as JSON: {e}") })?;
    text.push(b'\n');
    write_bytes(path, &text)
}

/// Writes a file, atomically.
///
/// # Errors
/// [`Error::Io`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial_name(path);
    let mut file = File::create(&partial).map_err(Error::io("create", &partial))?;
    file.write_all(bytes).map_err(Error::io("write", &partial))?;
    publish(file, path)
}

/// Reads JSON; `None` if there is no such file.
///
/// # Errors
/// [`Error::Io`], [`Error::BadIndex`] if it does not parse.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::BadIndex { path: path.to_path_buf(), detail: e.to_string() })
}
