//! [`calotype_core::durable`] with this crate's errors, and the names of files that are still being written.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use calotype_core::durable;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Name of `path` while it is written: `.NAME.partial` in the same folder. It is hidden, so that a scan for `*.tar`
/// passes it by, and always the same, so that the next start finds and replaces what a killed one left.
pub fn partial_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Synchronises `file`, which was written as [`partial_name`]`(path)`, and gives it its name ([`durable::publish`]).
///
/// # Errors
/// [`Error::Io`] if the file cannot be synchronised or renamed.
pub fn publish(file: File, path: &Path) -> Result<()> {
    durable::publish(&file, &partial_name(path), path).map_err(Error::io("write", path))
}

/// Writes `value` as indented JSON, atomically ([`durable::write_json`]).
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; [`Error::BadIndex`] if `value` has no JSON form.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    durable::write_json(path, value).map_err(json_error("write", path))
}

/// Writes `bytes`, atomically ([`durable::write_bytes`]).
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::write_bytes(path, bytes).map_err(Error::io("write", path))
}

/// Reads JSON; `None` if there is no such file ([`durable::read_json`]).
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::BadIndex`] if it is not JSON or not a `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    durable::read_json(path).map_err(json_error("read", path))
}

/// True for the text that Git LFS leaves in place of a file that was not fetched.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

fn json_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        ErrorKind::InvalidData => Error::BadIndex { path, detail: source.to_string() },
        _ => Error::Io { action, path, source },
    }
}
