//! Rows of numbers in a file: what grows with the number of pictures does not stay in memory.

use crate::{EvaluateError, Result};
use memmap2::Mmap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A matrix of `f32`, row by row, little-endian, in a file; new rows are appended, and all are seen through a memory map.
pub struct Rows {
    file: File,
    path: PathBuf,
    width: usize,
    count: usize,
    map: OnceLock<Mmap>,
    /// Of all values, in files with a name: those outlive the process, and others may change them.
    hasher: Option<Box<blake3::Hasher>>,
}

impl Rows {
    /// No rows, in a file without a name that goes when the rows do.
    ///
    /// # Errors
    /// [`EvaluateError::Io`].
    pub fn temporary(width: usize) -> Result<Self> {
        let path = std::env::temp_dir();
        let file = tempfile::tempfile().map_err(EvaluateError::io("make a temporary file in", &path))?;
        Ok(Self { file, path, width, count: 0, map: OnceLock::new(), hasher: None })
    }

    /// The first `count` rows of the file at `path`, to go on with: it is made for no rows if it is not there, and rows behind them
    /// are cut off.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::File`] if the file has fewer rows.
    pub fn open(path: &Path, width: usize, count: usize) -> Result<Self> {
        let file = File::options().read(true).write(true).create(count == 0).truncate(false).open(path);
        let rows = Self::first_of(path, file.map_err(lost("open", path))?, width, count)?;
        rows.file.set_len((count * width * 4) as u64).map_err(EvaluateError::io("write", path))?;
        rows.hashed()
    }

    /// The first `count` rows of the file at `path`, to be read.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::File`] if the file has fewer rows.
    pub fn read(path: &Path, width: usize, count: usize) -> Result<Self> {
        let file = File::open(path).map_err(lost("open", path))?;
        Self::first_of(path, file, width, count)?.hashed()
    }

    fn first_of(path: &Path, file: File, width: usize, count: usize) -> Result<Self> {
        let found = file.metadata().map_err(EvaluateError::io("read", path))?.len();
        let needed = count.checked_mul(width).and_then(|values| values.checked_mul(4));
        if needed.is_none_or(|needed| found < needed as u64) {
            let detail = format!("{found} bytes are too few for {count} rows of {width} values; {}", anew(path));
            return Err(EvaluateError::File { path: path.to_owned(), detail });
        }
        Ok(Self { file, path: path.to_owned(), width, count, map: OnceLock::new(), hasher: None })
    }

    /// The same, with the checksum of the rows that there are.
    fn hashed(mut self) -> Result<Self> {
        let mut hasher = Box::new(blake3::Hasher::new());
        hasher.update(bytemuck::cast_slice(self.values()?));
        self.hasher = Some(hasher);
        Ok(self)
    }

    /// BLAKE3 of all values, in hexadecimal; empty for rows in a temporary file.
    pub fn checksum(&self) -> String {
        self.hasher.as_ref().map(|hasher| hasher.finalize().to_hex().to_string()).unwrap_or_default()
    }

    /// The same rows, if their checksum is this one.
    ///
    /// # Errors
    /// [`EvaluateError::File`] if it is another, because the file was damaged, changed or exchanged.
    pub fn verified(self, checksum: &str) -> Result<Self> {
        match self.checksum() {
            found if found == checksum => Ok(self),
            found => Err(damaged(&self.path, checksum, &found)),
        }
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends whole rows.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::State`] if `values` are not whole rows.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        if self.width == 0 || !values.len().is_multiple_of(self.width) {
            let detail = format!("{} values are no rows of {}", values.len(), self.width);
            return Err(EvaluateError::File { path: self.path.clone(), detail });
        }
        self.map = OnceLock::new();
        let at = (self.count * self.width * 4) as u64;
        let written =
            self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytemuck::cast_slice(values)));
        written.map_err(EvaluateError::io("write", &self.path))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytemuck::cast_slice(values));
        }
        self.count += values.len() / self.width;
        Ok(())
    }

    /// All rows, `[rows, width]`.
    ///
    /// # Errors
    /// [`EvaluateError::Io`] if the file cannot be mapped.
    pub fn values(&self) -> Result<&[f32]> {
        if self.count == 0 {
            return Ok(&[]);
        }
        if self.map.get().is_none() {
            // SAFETY: the file is this program's own, in a folder of its own; nothing else writes to it.
            let map = unsafe { Mmap::map(&self.file) }.map_err(EvaluateError::io("map", &self.path))?;
            let _ = self.map.set(map);
        }
        let bytes = self.map.get().map_or(&[][..], |map| &map[..self.count * self.width * 4]);
        Ok(bytemuck::cast_slice(bytes))
    }

    /// Lets go of a named file, which stays as it is, for a copy in a temporary one.
    ///
    /// # Errors
    /// [`EvaluateError::Io`].
    pub(crate) fn make_temporary(&mut self) -> Result<()> {
        if self.hasher.is_none() {
            return Ok(());
        }
        let mut copy = Self::temporary(self.width)?;
        copy.push(self.values()?)?;
        *self = copy;
        Ok(())
    }

    /// Makes sure that the rows are on disk.
    ///
    /// # Errors
    /// [`EvaluateError::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(EvaluateError::io("write", &self.path))
    }
}

/// What to do about the file of a saved state that cannot be used.
pub(crate) fn anew(path: &Path) -> String {
    let folder = calotype_core::durable::parent_folder(path);
    format!("remove {}, and the next start judges its pictures anew", folder.display())
}

/// A file of a saved state that is not what was saved.
pub(crate) fn damaged(path: &Path, saved: &str, found: &str) -> EvaluateError {
    let detail =
        format!("the file is damaged: its checksum is {found}, and was {saved} when it was saved; {}", anew(path));
    EvaluateError::File { path: path.to_owned(), detail }
}

/// An error of a file that a saved state names; what to do if it is gone.
pub(crate) fn lost(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EvaluateError {
    move |source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            let detail = format!("the file is gone; copy it back, or {}", anew(path));
            EvaluateError::File { path: path.to_owned(), detail }
        }
        _ => EvaluateError::io(action, path)(source),
    }
}
