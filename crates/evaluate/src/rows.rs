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
    is_temporary: bool,
    map: OnceLock<Mmap>,
}

impl Rows {
    /// No rows, in a file without a name that goes when the rows do.
    ///
    /// # Errors
    /// [`EvaluateError::Io`].
    pub fn temporary(width: usize) -> Result<Self> {
        let path = std::env::temp_dir();
        let file = tempfile::tempfile().map_err(EvaluateError::io("make a temporary file in", &path))?;
        Ok(Self { file, path, width, count: 0, is_temporary: true, map: OnceLock::new() })
    }

    /// The first `count` rows of the file at `path`, to go on with: it is made if it is not there, and rows behind them are
    /// cut off.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::File`] if the file has fewer rows.
    pub fn open(path: &Path, width: usize, count: usize) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let rows = Self::first_of(path, file.map_err(EvaluateError::io("open", path))?, width, count)?;
        rows.file.set_len((count * width * 4) as u64).map_err(EvaluateError::io("write", path))?;
        Ok(rows)
    }

    /// The first `count` rows of the file at `path`, to be read.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::File`] if the file has fewer rows.
    pub fn read(path: &Path, width: usize, count: usize) -> Result<Self> {
        let file = File::open(path).map_err(EvaluateError::io("open", path))?;
        Self::first_of(path, file, width, count)
    }

    fn first_of(path: &Path, file: File, width: usize, count: usize) -> Result<Self> {
        let found = file.metadata().map_err(EvaluateError::io("read", path))?.len();
        let needed = count.checked_mul(width).and_then(|values| values.checked_mul(4));
        if needed.is_none_or(|needed| found < needed as u64) {
            let detail = format!(
                "{found} bytes are too few for {count} rows of {width} values; remove the folder to begin anew"
            );
            return Err(EvaluateError::File { path: path.to_owned(), detail });
        }
        Ok(Self { file, path: path.to_owned(), width, count, is_temporary: false, map: OnceLock::new() })
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
        if self.is_temporary {
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
