//! Files mapped into memory, and giving their pages back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::TensorFileError;

/// A file mapped read-only. Nobody may shorten it in place while it is open (the system then kills readers with
/// SIGBUS); Calotype replaces files by renaming.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, TensorFileError> {
        let file = calotype_core::open_input(path).map_err(|source| TensorFileError::reading(path, source))?;
        Self::map(path, &file)
    }

    /// Maps an open file that messages call `path`.
    pub(crate) fn map(path: &Path, file: &File) -> Result<Self, TensorFileError> {
        let status = file.metadata().map_err(|source| TensorFileError::reading(path, source))?;
        if status.is_dir() {
            return Err(TensorFileError::reading(path, io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if !status.is_file() {
            let problem = "it is no regular file, and only such can be mapped into memory";
            return Err(TensorFileError::reading(path, io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        // SAFETY: the map is read-only and private to this process; the bytes are only ever read as plain numbers. That
        // nobody shortens the file in place is the documented condition of this type and of those that hold it.
        let map = unsafe { Mmap::map(file) }.map_err(|source| TensorFileError::reading(path, source))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The path that messages name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the system take back the memory of a range's pages. They are read from the file again when next touched.
    pub(crate) fn release(&self, range: Range<usize>) {
        if range.is_empty() || range.end > self.map.len() {
            return;
        }
        // A refusal by the system only means that the pages stay.
        #[cfg(unix)]
        // SAFETY: the map is read-only and backed by a file, so that dropped pages come back with the same content;
        // the range was just checked to lie within the map.
        let _ =
            unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
}
