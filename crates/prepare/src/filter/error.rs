//! The errors of a filter and its tables.

use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;

use super::expression::ExpressionError;

/// The reason for which tables could not be filtered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A condition that cannot be read, or does not fit the table.
    #[error("{}{source}", path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default())]
    Expression {
        /// The table, if the condition itself can be read.
        path: Option<PathBuf>,
        /// The fault and its place.
        source: ExpressionError,
    },

    /// A short-hand for a column that the table does not have.
    #[error(
        "{}: {flag} needs a column named {wanted}; the table has {found}. Use --where with the column's name",
        path.display()
    )]
    MissingColumn {
        /// The table.
        path: PathBuf,
        /// The short-hand.
        flag: String,
        /// Names that would do.
        wanted: String,
        /// Names that are there.
        found: String,
    },

    /// A table that is damaged or none at all.
    #[error("{} cannot be read as parquet: {source}; fetch it again, or leave it out of the input", path.display())]
    Unreadable {
        /// The table.
        path: PathBuf,
        /// The reader's error.
        source: ParquetError,
    },

    /// A table that could not be written.
    #[error("{} cannot be written: {source}", path.display())]
    Unwritable {
        /// The table.
        path: PathBuf,
        /// The writer's error.
        source: ParquetError,
    },

    /// Nothing to filter.
    #[error("{input} holds no parquet file; give a file, a folder or a pattern of files named *.parquet")]
    NoTables {
        /// The input as given.
        input: String,
    },

    /// The output would replace the input.
    #[error("{} is input and output at once; choose another folder to write", path.display())]
    OntoItself {
        /// The table.
        path: PathBuf,
    },
}

impl FilterError {
    /// True if the command line is to blame.
    pub fn is_usage(&self) -> bool {
        !matches!(self, FilterError::Unreadable { .. } | FilterError::Unwritable { .. })
    }

    pub(super) fn unreadable(path: &Path) -> impl FnOnce(ParquetError) -> FilterError {
        let path = path.to_path_buf();
        move |source| FilterError::Unreadable { path, source }
    }

    pub(super) fn unwritable(path: &Path) -> impl FnOnce(ParquetError) -> FilterError {
        let path = path.to_path_buf();
        move |source| FilterError::Unwritable { path, source }
    }
}
