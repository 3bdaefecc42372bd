//! Parquet files with embedded images, as Hugging Face's datasets have them.
//!
//! The image column is a struct of `bytes` and `path`, or binary. The caption column becomes part `txt`, `label` part
//! `cls`, other columns of texts, numbers, lists and structs of them part `json`. The image's part is named by its
//! content (`png`, `jpg`, ...). The key is the file's path below the folder, without extension, and the row's number:
//! `train-00000-of-00002-00000017`; or the value of a column of unique keys. Names of classes, where the files give them,
//! are in `meta`, as `classes`.
//!
//! Rows are decoded in pieces of at most [`PIECE_BYTES`] (by the file's own account), of which the latest few are kept.
//! An order that visits a piece's rows one soon after the other therefore decodes each piece once, and a full shuffle of
//! a dataset that is larger than the kept pieces decodes a piece for nearly every sample: shuffle blocks then.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Fields};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::PageIndexPolicy;
use serde_json::{Map, Value};

use super::folder::{META_CLASSES, add_fields};
use super::{LABEL_COLUMNS, Removed, Source, SourceOptions, extension_of, files_below, quarantined};
use crate::quarantine::{QUARANTINE_FILE, Quarantine};
use crate::sample::HeldSample;
use crate::webdataset::starts;
use crate::{Error, Result, Sample};

/// Most bytes of rows that are decoded at once, by the file's account of its row groups; one row at least.
pub const PIECE_BYTES: u64 = 64 << 20;

/// Decoded pieces that are kept: those that a few threads read from, and those of the block after.
const KEPT_PIECES: usize = 8;

/// Names of image columns that come before others of a fitting type.
const IMAGE_COLUMNS: [&str; 6] = ["image", "img", "picture", "jpg", "png", "image_bytes"];

/// Parquet files with embedded images. Their footers are read when the source is opened, rows when they are asked for.
pub struct ParquetSource {
    name: String,
    dir: PathBuf,
    files: Vec<Table>,
    pieces: Vec<Piece>,
    /// Number of the first row of each piece.
    starts: Vec<usize>,
    removed: Removed,
    len: usize,
    caption_column: Option<String>,
    kept: Mutex<Vec<(usize, Arc<Slot>)>>,
    meta: Map<String, Value>,
}

/// A file and what of it is read.
struct Table {
    path: PathBuf,
    /// Path below the source's folder.
    file: String,
    metadata: ArrowReaderMetadata,
    /// Numbers of the root columns that are read.
    columns: Vec<usize>,
    image: String,
    key: Option<String>,
    bytes: u64,
    rows: usize,
}

/// Rows that are decoded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    file: usize,
    group: usize,
    /// First row in the group.
    offset: usize,
    rows: usize,
    /// First row in the file.
    first: usize,
}

/// A piece, decoded by the first thread that asks for it while the others wait. A failure is kept as its message.
type Slot = OnceLock<std::result::Result<RecordBatch, String>>;

impl ParquetSource {
    /// Opens a file, or all `*.parquet` files of a folder and those below it, in the order of their names.
    ///
    /// # Errors
    /// [`Error::BadSource`] if there are none, or no rows; [`Error::BadTable`] for a file that cannot be read or has no
    /// image column; [`Error::BadIndex`] for a bad `quarantine.json`; [`Error::MissingFolder`], [`Error::Io`].
    pub fn open(path: &Path, options: &SourceOptions) -> Result<Self> {
        let (dir, paths) = match path.is_file() {
            true => (path.parent().unwrap_or(Path::new("")).to_path_buf(), vec![path.to_path_buf()]),
            false if path.is_dir() => (path.to_path_buf(), files_below(path)?),
            false => return Err(Error::MissingFolder { path: path.to_path_buf() }),
        };
        let is_table = |file: &PathBuf| extension_of(file).as_deref() == Some("parquet") || file == path;
        let paths = paths.into_iter().filter(is_table).collect();
        ParquetSource::open_files(&path.display().to_string(), dir, paths, options)
    }

    /// Opens files; `name` is for messages, `dir` the folder that keys and `quarantine.json` refer to. Errors as
    /// [`ParquetSource::open`].
    pub(super) fn open_files(name: &str, dir: PathBuf, paths: Vec<PathBuf>, options: &SourceOptions) -> Result<Self> {
        let open = |file: PathBuf| Table::open(&dir, file, options);
        let files = paths.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let pieces: Vec<Piece> = files.iter().enumerate().flat_map(|(number, file)| file.pieces(number)).collect();
        let rows = pieces.iter().map(|piece| piece.rows).sum();
        let mut source = ParquetSource {
            name: name.to_owned(),
            dir,
            starts: starts(pieces.iter().map(|piece| piece.rows)),
            files,
            pieces,
            removed: Removed::default(),
            len: rows,
            caption_column: options.caption_column.clone(),
            kept: Mutex::new(Vec::new()),
            meta: Map::new(),
        };
        if let Some(names) = source.files.first().and_then(Table::classes) {
            source.meta.insert(META_CLASSES.to_owned(), names);
        }
        if options.quarantine {
            source.leave_out_quarantined()?;
        }
        if source.len == 0 {
            return Err(Error::BadSource { spec: source.name, detail: "no rows in its parquet files".to_owned() });
        }
        Ok(source)
    }

    fn leave_out_quarantined(&mut self) -> Result<()> {
        let list = Quarantine::read(&self.dir)?;
        let mut numbers = Vec::new();
        for piece in 0..self.pieces.len() {
            // Without a column of keys, a listed file's keys are known without reading it.
            let Piece { file, rows, first, .. } = self.pieces[piece];
            let table = &self.files[file];
            if list.len_of(&table.file) == 0 {
                continue;
            }
            let batch = if table.key.is_some() { Some(self.piece(piece)?) } else { None };
            for row in 0..rows {
                let key = table.key(batch.as_ref(), row, first + row)?;
                if list.contains(&table.file, &key) {
                    numbers.push(self.starts[piece] + row);
                }
            }
        }
        if numbers.len() != list.len() {
            let detail = format!("names {} rows, the files have only {} of them", list.len(), numbers.len());
            return Err(Error::BadIndex { path: self.dir.join(QUARANTINE_FILE), detail });
        }
        self.len -= numbers.len();
        self.removed = Removed::new(numbers);
        Ok(())
    }

    /// The rows of a piece, decoded now unless they are kept.
    fn piece(&self, number: usize) -> Result<RecordBatch> {
        let slot = self.slot(number);
        let piece = self.pieces[number];
        let file = &self.files[piece.file];
        match slot.get_or_init(|| file.decode(piece)) {
            Ok(batch) => Ok(batch.clone()),
            Err(detail) => Err(file.bad(format!("row group {}: {detail}", piece.group))),
        }
    }

    fn slot(&self, number: usize) -> Arc<Slot> {
        // Nothing that can panic happens under the lock.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match kept.iter().position(|(piece, _)| *piece == number) {
            Some(place) => kept.remove(place).1,
            None => Arc::default(),
        };
        if kept.len() == KEPT_PIECES {
            kept.remove(0);
        }
        kept.push((number, Arc::clone(&slot)));
        slot
    }
}

impl Source for ParquetSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        if i >= self.len {
            return Err(Error::OutOfRange { index: i, len: self.len });
        }
        let whole = self.removed.whole(i);
        let number = self.starts.partition_point(|start| *start <= whole) - 1;
        let piece = self.pieces[number];
        let batch = self.piece(number)?;
        let row = whole - self.starts[number];
        Ok(self.files[piece.file].sample(&batch, row, piece.first + row, self.caption_column.as_deref())?.into())
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    /// Of the files' names, lengths and rows.
    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            hasher.update(format!("{}\t{}\t{}\n", file.file, file.rows, file.bytes).as_bytes());
        }
        for i in 0..self.removed.len() {
            hasher.update(format!("without {}\n", self.removed.number(i)).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn blocks(&self) -> Vec<usize> {
        let kept = |(start, piece): (&usize, &Piece)| {
            piece.rows - (self.removed.before(start + piece.rows) - self.removed.before(*start))
        };
        self.starts.iter().zip(&self.pieces).map(kept).collect()
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        quarantined(self.removed.len())
    }
}

impl Table {
    fn open(dir: &Path, path: PathBuf, options: &SourceOptions) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let bytes = file.metadata().map_err(Error::io("read", &path))?.len();
        // Plain types suffice, and an embedded schema is one thing less that may be wrong.
        let reading =
            ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(PageIndexPolicy::Optional);
        let bad = |detail: String| Error::BadTable { path: path.clone(), detail };
        let metadata = contained(|| ArrowReaderMetadata::load(&file, reading).map_err(|e| e.to_string()))
            .map_err(|e| bad(format!("is no readable parquet file: {e}")))?;
        let fields = metadata.schema().fields().clone();
        let image = image_column(&fields, options.image_column.as_deref()).map_err(bad)?;
        for column in [&options.caption_column, &options.key_column].into_iter().flatten() {
            if fields.find(column).is_none() {
                return Err(bad(format!("has no column `{column}`; it has: {}", names(&fields))));
            }
        }
        let wanted = |field: &Field| *field.name() == image || is_describable(field.data_type());
        let columns = fields.iter().enumerate().filter(|(_, field)| wanted(field)).map(|(number, _)| number).collect();
        let mut groups = metadata.metadata().row_groups().iter();
        let rows = groups.try_fold(0u64, |sum, group| sum.checked_add(u64::try_from(group.num_rows()).ok()?));
        let rows = rows.filter(|rows| *rows <= u64::from(u32::MAX)).map(|rows| rows as usize);
        let rows = rows.ok_or_else(|| bad("its footer gives senseless numbers of rows".to_owned()))?;
        let file = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        Ok(Table { file, metadata, columns, image, key: options.key_column.clone(), bytes, rows, path })
    }

    fn bad(&self, detail: String) -> Error {
        Error::BadTable { path: self.path.clone(), detail }
    }

    /// The names of the label column's classes, from the features that Hugging Face's writer notes.
    fn classes(&self) -> Option<Value> {
        let notes = self.metadata.metadata().file_metadata().key_value_metadata()?;
        let features = notes.iter().find(|note| note.key == "huggingface")?.value.as_ref()?;
        let features: Value = serde_json::from_str(features).ok()?;
        let label = LABEL_COLUMNS.into_iter().find(|label| self.metadata.schema().fields().find(label).is_some())?;
        let names = features.get("info")?.get("features")?.get(label)?.get("names")?;
        names.as_array()?.iter().all(Value::is_string).then(|| names.clone())
    }

    /// The file's rows in pieces; `number` is the file's.
    fn pieces(&self, number: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut first = 0;
        // Whatever a footer claims, there are fewer pieces than the file has bytes.
        let fewest = self.rows.div_ceil((self.bytes / 64).max(1) as usize);
        for (group, facts) in self.metadata.metadata().row_groups().iter().enumerate() {
            let rows = facts.num_rows() as usize;
            let bytes = facts.total_byte_size().max(1) as u64;
            let step = (u128::from(PIECE_BYTES) * rows as u128 / u128::from(bytes)).clamp(1, 1 << 20) as usize;
            let step = step.max(fewest);
            for offset in (0..rows).step_by(step) {
                let piece_rows = step.min(rows - offset);
                pieces.push(Piece { file: number, group, offset, rows: piece_rows, first: first + offset });
            }
            first += rows;
        }
        pieces
    }

    fn decode(&self, piece: Piece) -> std::result::Result<RecordBatch, String> {
        let file = File::open(&self.path).map_err(|e| e.to_string())?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), self.columns.iter().copied());
        let batch = contained(|| {
            let mut reader = builder
                .with_projection(mask)
                .with_row_groups(vec![piece.group])
                .with_offset(piece.offset)
                .with_limit(piece.rows)
                .with_batch_size(piece.rows)
                .build()
                .map_err(|e| e.to_string())?;
            reader.next().ok_or_else(|| "ends before its rows do".to_owned())?.map_err(|e| e.to_string())
        })?;
        match batch.num_rows() == piece.rows {
            true => Ok(batch),
            false => Err(format!("holds {} rows where its footer says {}", batch.num_rows(), piece.rows)),
        }
    }

    /// The key of a row: `row` in the batch, `number` in the file.
    fn key(&self, batch: Option<&RecordBatch>, row: usize, number: usize) -> Result<String> {
        let column = self.key.as_ref().and_then(|key| batch?.column_by_name(key));
        let Some(column) = column else {
            let stem = self.file.rsplit_once('.').map_or(self.file.as_str(), |(stem, _)| stem);
            return Ok(format!("{}-{number:08}", without_dots(stem)));
        };
        match value_at(column, row) {
            Value::String(key) if !key.is_empty() => Ok(without_dots(&key)),
            Value::Number(key) => Ok(without_dots(&key.to_string())),
            other => Err(self.bad_row(number, format!("{other} cannot be a key"))),
        }
    }

    fn bad_row(&self, number: usize, detail: String) -> Error {
        Error::BadRow { path: self.path.clone(), row: number as u64 + 1, detail }
    }

    fn sample(&self, batch: &RecordBatch, row: usize, number: usize, caption: Option<&str>) -> Result<Sample> {
        let mut sample = Sample::new(self.key(Some(batch), row, number)?);
        let mut fields = Map::new();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            if *field.name() == self.image {
                let (bytes, path) = image_at(column, row).map_err(|e| self.bad_row(number, e))?;
                sample = sample.with(image_extension(bytes, path), bytes);
            } else if self.key.as_ref() != Some(field.name()) {
                fields.insert(field.name().clone(), value_at(column, row));
            }
        }
        add_fields(sample, fields, caption).map_err(|e| self.bad_row(number, e))
    }
}

/// Dots of a key's last part separate it from extensions in shards.
fn without_dots(key: &str) -> String {
    let name = key.rfind('/').map_or(0, |slash| slash + 1);
    format!("{}{}", &key[..name], key[name..].replace('.', "_"))
}

/// Runs a reader of damaged files, whose panics are errors like others.
fn contained<T>(read: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("the reader gave up: {text}"))
    })
}

fn names(fields: &Fields) -> String {
    fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// Name of the column that holds the images.
fn image_column(fields: &Fields, asked: Option<&str>) -> std::result::Result<String, String> {
    let fitting: Vec<&str> =
        fields.iter().filter(|field| holds_images(field.data_type())).map(|field| field.name().as_str()).collect();
    if let Some(asked) = asked {
        return match fitting.contains(&asked) {
            true => Ok(asked.to_owned()),
            false => Err(format!("has no column `{asked}` of images; columns that may be: {}", fitting.join(", "))),
        };
    }
    let known = IMAGE_COLUMNS.into_iter().find(|name| fitting.contains(name));
    match (known, &fitting[..]) {
        (Some(name), _) | (None, &[name]) => Ok(name.to_owned()),
        (None, []) => Err(format!(
            "has no column of embedded images (binary, or a struct with binary `bytes`); it has: {}",
            names(fields)
        )),
        (None, _) => Err(format!("has several columns that may be images, name one: {}", fitting.join(", "))),
    }
}

fn holds_images(kind: &DataType) -> bool {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Struct(fields) => fields.find("bytes").is_some_and(|(_, field)| holds_images(field.data_type())),
        _ => false,
    }
}

/// True if values of this type have a JSON form here.
fn is_describable(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) => is_describable(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_describable(field.data_type())),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Null => true,
        other => other.is_integer() || matches!(other, DataType::Float32 | DataType::Float64),
    }
}

/// An image's bytes, and the path that it once had.
fn image_at(column: &ArrayRef, row: usize) -> std::result::Result<(&[u8], Option<&str>), String> {
    let DataType::Struct(_) = column.data_type() else {
        return bytes_at(column, row).map(|bytes| (bytes, None)).ok_or_else(|| "its image is null".to_owned());
    };
    let image = column.as_struct();
    let path = image.column_by_name("path").and_then(|paths| text_at(paths, row));
    match image.column_by_name("bytes").filter(|_| image.is_valid(row)).and_then(|bytes| bytes_at(bytes, row)) {
        Some(bytes) => Ok((bytes, path)),
        None => Err(match path {
            Some(path) => format!("its image is not embedded, only named: `{path}`"),
            None => "its image is null".to_owned(),
        }),
    }
}

fn bytes_at(column: &ArrayRef, row: usize) -> Option<&[u8]> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Binary => Some(column.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Some(column.as_binary::<i64>().value(row)),
        DataType::BinaryView => Some(column.as_binary_view().value(row)),
        _ => None,
    }
}

fn text_at(column: &ArrayRef, row: usize) -> Option<&str> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(column.as_string_view().value(row)),
        _ => None,
    }
}

/// A value as JSON; null for types that [`is_describable`] refuses.
fn value_at(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    macro_rules! number {
        ($kind:ty) => {
            Value::from(column.as_primitive::<$kind>().value(row))
        };
    }
    match column.data_type() {
        DataType::Boolean => Value::Bool(column.as_boolean().value(row)),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row);
            (0..items.len()).map(|item| value_at(&items, item)).collect()
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(column.as_struct().columns());
            Value::Object(columns.map(|(field, column)| (field.name().clone(), value_at(column, row))).collect())
        }
        _ => text_at(column, row).map_or(Value::Null, Value::from),
    }
}

/// Name of the image's part: by its first bytes, else by its path.
fn image_extension(bytes: &[u8], path: Option<&str>) -> String {
    let known: [(&[u8], &str); 5] =
        [(b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"RIFF", "webp")];
    if let Some((_, extension)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (*extension).to_owned();
    }
    let by_path = path.and_then(|path| extension_of(Path::new(path)));
    by_path.unwrap_or_else(|| "bin".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names_of_parts() {
        assert_eq!(without_dots("v1.0/a.b"), "v1.0/a_b");
        assert_eq!(image_extension(b"\xff\xd8\xff\xe0", Some("x.png")), "jpg");
        assert_eq!(image_extension(b"?", Some("x.TIF")), "tif");
        assert_eq!(image_extension(b"?", None), "bin");
    }
}
