//! The input's tables, and the parts into which their rows go.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use calotype_data::Slice;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use walkdir::WalkDir;

use super::check::Condition;
use super::{COLUMNS, Clause, Expression, FilterArgs, FilterError};
use crate::names::{Star, is_pattern, pattern};
use crate::{Error, Result};

/// A table of the input.
pub(super) struct Table {
    pub path: PathBuf,
    /// Path of the output, without the split into parts.
    pub out: PathBuf,
    /// BLAKE3 of its length and footer, which holds the places and statistics of all of its data.
    pub identity: String,
    pub rows: u64,
    schema: arrow_schema::SchemaRef,
}

/// A range of rows of a table, and the file that holds what is left of them.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    pub identity: String,
    pub rows: Range<u64>,
    pub out: PathBuf,
}

impl Table {
    fn open(path: PathBuf, out: PathBuf) -> Result<Self> {
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let metadata = metadata(&path, &file)?;
        let identity = identity(&mut file).map_err(Error::io("read", &path))?;
        let rows = metadata.metadata().file_metadata().num_rows();
        let rows = u64::try_from(rows).map_err(|_| {
            let source = ParquetError::General(format!("the footer tells of {rows} rows"));
            FilterError::Unreadable { path: path.clone(), source }
        })?;
        Ok(Table { path, out, identity, rows, schema: metadata.schema().clone() })
    }

    /// The conditions bound to this table's columns.
    ///
    /// # Errors
    /// [`FilterError`] with the table's name.
    pub fn conditions(&self, clauses: &[Clause]) -> std::result::Result<Vec<Condition>, FilterError> {
        conditions(&self.path, &self.schema, clauses)
    }
}

/// Binds `clauses` to the columns of the table at `path`.
///
/// # Errors
/// [`FilterError::Expression`] for an expression that does not fit the types of its columns,
/// [`FilterError::MissingColumn`].
pub(super) fn conditions(
    path: &Path,
    schema: &arrow_schema::Schema,
    clauses: &[Clause],
) -> std::result::Result<Vec<Condition>, FilterError> {
    let bind = |clause: &Clause| {
        let text = filled(path, schema, clause)?;
        let condition = Expression::parse(&text).and_then(|expression| Condition::new(&expression, schema));
        condition.map_err(|source| FilterError::Expression { path: Some(path.to_path_buf()), source })
    };
    clauses.iter().map(bind).collect()
}

/// The expression of a clause with the names that its columns have in this table.
fn filled(path: &Path, schema: &arrow_schema::Schema, clause: &Clause) -> std::result::Result<String, FilterError> {
    let mut text = clause.template.clone();
    if !clause.reason.starts_with("--") {
        return Ok(text);
    }
    for (placeholder, names) in COLUMNS {
        if !text.contains(placeholder) {
            continue;
        }
        let Some(name) = names.iter().find(|name| schema.column_with_name(name).is_some()) else {
            let found: Vec<&str> = schema.fields().iter().take(30).map(|field| field.name().as_str()).collect();
            return Err(FilterError::MissingColumn {
                path: path.to_path_buf(),
                flag: clause.reason.clone(),
                wanted: names.join(" or "),
                found: found.join(", "),
            });
        };
        text = text.replace(placeholder, name);
    }
    Ok(text)
}

/// Content of the footer of a table.
///
/// # Errors
/// [`FilterError::Unreadable`] if there is none that can be read.
pub(super) fn metadata(path: &Path, file: &File) -> std::result::Result<ArrowReaderMetadata, FilterError> {
    ArrowReaderMetadata::load(file, ArrowReaderOptions::new()).map_err(FilterError::unreadable(path))
}

/// BLAKE3 of the length and the footer of an open table.
fn identity(file: &mut File) -> std::io::Result<String> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut tail = [0; 8];
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut tail)?;
    let footer = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])).min(length - 8);
    file.seek(SeekFrom::Start(length - 8 - footer))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update_reader(file.take(footer))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// True if the output is a file, and not a folder of them.
pub(super) fn is_one_file(args: &FilterArgs) -> bool {
    let is_file = args.out.extension().is_some_and(|extension| extension == "parquet") && !args.out.is_dir();
    is_file && args.parts == 1 && Path::new(&args.input).is_file()
}

/// The tables that `args` names, in order of their paths.
///
/// # Errors
/// [`FilterError::NoTables`], [`FilterError::OntoItself`], [`FilterError::Unreadable`], [`Error::Io`].
pub(super) fn find_tables(args: &FilterArgs) -> Result<Vec<Table>> {
    let input = Path::new(&args.input);
    if input.is_file() {
        let name = input.file_name().unwrap_or_default();
        let out = if is_one_file(args) { args.out.clone() } else { args.out.join(name) };
        return Ok(vec![table(input.to_path_buf(), out)?]);
    }
    let (folder, wanted) = if input.is_dir() {
        (input.to_path_buf(), pattern("**/*.parquet", Star::InName)?)
    } else if is_pattern(&args.input) {
        let (folder, rest) = fixed_folder(&args.input);
        (folder, pattern(&rest, Star::InName)?)
    } else {
        return Err(Error::io("find", input)(ErrorKind::NotFound.into()));
    };
    // A folder to write may be inside of the one to read.
    let own = fs::canonicalize(&args.out).ok();
    let mut tables = Vec::new();
    let walk = WalkDir::new(&folder).follow_links(true).sort_by_file_name().into_iter();
    let visible = |entry: &walkdir::DirEntry| {
        let is_own = || own.is_some() && fs::canonicalize(entry.path()).ok() == own;
        entry.depth() == 0 || !(entry.file_name().to_string_lossy().starts_with('.') || is_own())
    };
    for entry in walk.filter_entry(visible) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(&folder).to_path_buf();
            Error::Io { action: "read", path, source: error.into() }
        })?;
        let relative = entry.path().strip_prefix(&folder).unwrap_or(entry.path());
        let slashed = relative.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
        if entry.file_type().is_file() && wanted.is_match(&slashed) {
            tables.push(table(entry.path().to_path_buf(), args.out.join(relative))?);
        }
    }
    match tables.is_empty() {
        true => Err(FilterError::NoTables { input: args.input.clone() }.into()),
        false => Ok(tables),
    }
}

fn table(path: PathBuf, out: PathBuf) -> Result<Table> {
    if fs::canonicalize(&out).is_ok_and(|out| fs::canonicalize(&path).is_ok_and(|path| path == out)) {
        return Err(FilterError::OntoItself { path }.into());
    }
    Table::open(path, out)
}

/// A pattern as the folder before its first special character, and the rest.
fn fixed_folder(text: &str) -> (PathBuf, String) {
    let special = text.find(['*', '?', '[']).unwrap_or(text.len());
    match text[..special].rfind('/') {
        Some(0) => (PathBuf::from("/"), text[1..].to_owned()),
        Some(slash) => (PathBuf::from(&text[..slash]), text[slash + 1..].to_owned()),
        None => (PathBuf::from("."), text.to_owned()),
    }
}

/// The parts that tables are written as.
pub(super) fn parts(tables: &[Table], args: &FilterArgs) -> Vec<Part> {
    let count = args.parts as usize;
    let digits = (count - 1).to_string().len();
    let mut parts = Vec::new();
    for table in tables {
        for id in 0..count {
            let range = Slice { id, count }.range(table.rows as usize);
            let out = if count == 1 {
                table.out.clone()
            } else {
                // As dask names the parts, but such that their names sort as their rows do.
                let mut folder = table.out.clone().into_os_string();
                folder.push("_parts");
                PathBuf::from(folder).join(format!("part.{id:0digits$}.parquet"))
            };
            let rows = range.start as u64..range.end as u64;
            parts.push(Part { path: table.path.clone(), identity: table.identity.clone(), rows, out });
        }
    }
    parts
}
