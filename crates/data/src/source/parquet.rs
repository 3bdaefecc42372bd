//! Parquet files with embedded images, as Hugging Face's datasets have them.
//!
//! The image column is a struct of `bytes` and `path`, or binary. The caption column becomes part `txt`, `label` part
//! `cls`. Other columns of images or bytes, and of lists of them, become parts of their own, `COLUMN.png` and
//! `COLUMN.0.png`; all others part `json` ([`super::cells`] says how). The image's part is named by its content (`png`,
//! `jpg`, ...). The key is the file's path below the folder, without extension, and the row's number:
//! `train-00000-of-00002-00000017`; or the value of a column of unique keys. Names of classes, where the files give them,
//! are in `meta`, as `classes`.
//!
//! Rows are decoded in pieces of at most [`PIECE_BYTES`] (by the file's own account), of which the latest few are kept.
//! An order that visits a piece's rows one soon after the other therefore decodes each piece once, and a full shuffle of
//! a dataset that is larger than the kept pieces decodes a piece for nearly every sample: shuffle blocks then.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Fields};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::PageIndexPolicy;
use serde_json::{Map, Value};

use super::captions::Columns;
use super::cells::{bytes_at, has_json, in_words, json_value, not_finite, text_at};
use super::folder::META_CLASSES;
use super::{CAPTION_COLUMNS, LABEL_COLUMNS, Removed, Source, SourceOptions, extension_of, files_below, quarantined};
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
    captions: Columns,
    kept: Mutex<Vec<(usize, Arc<Slot>)>>,
    /// Numbers of values without a form in JSON, by piece and column, as far as pieces were decoded.
    not_finite: Mutex<BTreeMap<(usize, String), usize>>,
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
    /// Columns that are parts of their own, with the beginnings of their parts' names.
    parts: BTreeMap<String, String>,
    /// Columns that no sample holds, with their types.
    dropped: Vec<(String, String)>,
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

/// The files of a folder and those below it; a table that is linked and not there would be missed.
fn all_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let below = files_below(dir)?;
    match below.dangling.into_iter().find(|link| extension_of(link).as_deref() == Some("parquet")) {
        None => Ok(below.files),
        Some(link) => Err(Error::io("open", &link)(std::io::ErrorKind::NotFound.into())),
    }
}

impl ParquetSource {
    /// Opens a file, or all `*.parquet` files of a folder and those below it, in the order of their names.
    ///
    /// # Errors
    /// [`Error::BadSource`] if there are none, or no rows; [`Error::BadTable`] for a file that cannot be read or has no
    /// image column; [`Error::BadColumn`] for a column that was asked for and is not there, or cannot be what it is asked for;
    /// [`Error::BadIndex`] for a bad `quarantine.json`; [`Error::MissingFolder`], [`Error::Io`].
    pub fn open(path: &Path, options: &SourceOptions) -> Result<Self> {
        let (dir, paths) = match path.is_file() {
            true => (path.parent().unwrap_or(Path::new("")).to_path_buf(), vec![path.to_path_buf()]),
            false if path.is_dir() => (path.to_path_buf(), all_below(path)?),
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
            captions: Columns::new(options),
            kept: Mutex::new(Vec::new()),
            not_finite: Mutex::default(),
            meta: Map::new(),
        };
        let classes: Vec<Option<Value>> = source.files.iter().map(Table::classes).collect();
        match classes.first() {
            Some(Some(names)) if classes.iter().all(|other| other.as_ref() == Some(names)) => {
                source.meta.insert(META_CLASSES.to_owned(), names.clone());
            }
            _ if classes.iter().any(Option::is_some) && crate::told::first_time(Path::new(name), "classes differ") => {
                tracing::warn!(source = source.name, "the files' names of classes differ, and are left out");
            }
            _ => {}
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
        let decoded = || file.decode(piece).inspect(|batch| self.count_not_finite(number, batch));
        match slot.get_or_init(decoded) {
            Ok(batch) => Ok(batch.clone()),
            Err(detail) => Err(file.bad(format!("row group {}: {detail}", piece.group))),
        }
    }

    /// Counts once for each piece, however often it is decoded.
    fn count_not_finite(&self, piece: usize, batch: &RecordBatch) {
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let count = not_finite(column);
            if count > 0 {
                let mut all = self.not_finite.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert((piece, field.name().clone()), count);
            }
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
        Ok(self.files[piece.file].sample(&batch, row, piece.first + row, &self.captions)?.into())
    }

    fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    /// Of the files' names, lengths and rows.
    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            // Files of a pattern are named with all folders around them, which may move.
            let name = match self.dir.as_os_str().is_empty() {
                true => file.file.rsplit('/').next().unwrap_or(&file.file),
                false => &file.file,
            };
            hasher.update(format!("{name}\t{}\t{}\n", file.rows, file.bytes).as_bytes());
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

    fn notes(&self) -> Vec<String> {
        let mut rows: BTreeMap<&(String, String), usize> = BTreeMap::new();
        for file in &self.files {
            file.dropped.iter().for_each(|column| *rows.entry(column).or_default() += file.rows);
        }
        let note = |((name, kind), rows): (&(String, String), usize)| {
            format!("column `{name}` of {rows} rows is left out: {kind} has no form in JSON")
        };
        let mut notes: Vec<String> = rows.into_iter().map(note).collect();
        let mut nulls: BTreeMap<&String, usize> = BTreeMap::new();
        let counts = self.not_finite.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().for_each(|((_, column), count)| *nulls.entry(column).or_default() += count);
        let note = |(column, count)| {
            format!(
                "column `{column}`: null for values that are infinite or not a number, which JSON does not have: {count}"
            )
        };
        notes.extend(nulls.into_iter().map(note));
        notes
    }
}

impl Table {
    fn open(dir: &Path, path: PathBuf, options: &SourceOptions) -> Result<Self> {
        let file = calotype_core::open_input(&path).map_err(Error::io("open", &path))?;
        let bytes = file.metadata().map_err(Error::io("read", &path))?.len();
        // Plain types suffice, and an embedded schema is one thing less that may be wrong.
        let reading =
            ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(PageIndexPolicy::Optional);
        let bad = |detail: String| Error::BadTable { path: path.clone(), detail };
        let metadata = contained(|| ArrowReaderMetadata::load(&file, reading).map_err(|e| e.to_string()))
            .map_err(|e| bad(format!("is no readable parquet file: {e}")))?;
        let fields = metadata.schema().fields().clone();
        let unfit = |detail: String| Error::BadColumn { path: path.clone(), detail };
        let image = match options.image_column.as_deref() {
            Some(asked) => image_column(&fields, Some(asked)).map_err(unfit)?,
            None => image_column(&fields, None).map_err(bad)?,
        };
        type IsNever = fn(&DataType) -> bool;
        let caption = (&options.caption_column, is_never_caption as IsNever, "a caption");
        let key = (&options.key_column, is_never_key as IsNever, "a key");
        for (column, is_never, what) in [caption, key] {
            let Some(column) = column else { continue };
            let Some((_, field)) = fields.find(column) else {
                return Err(unfit(format!("has no column `{column}`; it has: {}", names(&fields))));
            };
            if is_never(field.data_type()) {
                let kind = in_words(field.data_type());
                return Err(unfit(format!("column `{column}` holds {kind}, none of which is {what}; name another")));
            }
        }
        let wanted = |field: &Field| *field.name() == image || has_json(field.data_type());
        let columns = fields.iter().enumerate().filter(|(_, field)| wanted(field)).map(|(number, _)| number).collect();
        let dropped = fields.iter().filter(|field| !wanted(field));
        let dropped = dropped.map(|field| (field.name().clone(), field.data_type().to_string())).collect();
        let is_part = |field: &&Arc<Field>| {
            let is_text = is_text_column(field.name(), options.caption_column.as_deref());
            makes_parts(field.data_type()) && !is_text && *field.name() != image && wanted(field)
        };
        let parts = part_names(fields.iter().filter(is_part).map(|field| field.name().as_str()));
        let mut groups = metadata.metadata().row_groups().iter();
        let rows = groups.try_fold(0u64, |sum, group| sum.checked_add(u64::try_from(group.num_rows()).ok()?));
        let rows = rows.filter(|rows| *rows <= u64::from(u32::MAX)).map(|rows| rows as usize);
        let rows = rows.ok_or_else(|| bad("its footer gives senseless numbers of rows".to_owned()))?;
        let file = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        let key = options.key_column.clone();
        Ok(Table { path, file, metadata, columns, image, key, parts, dropped, bytes, rows })
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
        let file = calotype_core::open_input(&self.path).map_err(|e| e.to_string())?;
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
        match text_of_bytes(column, row).unwrap_or_else(|| json_value(column, row)) {
            Value::String(key) if !key.is_empty() => Ok(without_dots(&key)),
            Value::Number(key) => Ok(without_dots(&key.to_string())),
            other => Err(self.bad_row(number, format!("{other} cannot be a key"))),
        }
    }

    fn bad_row(&self, number: usize, detail: String) -> Error {
        Error::BadRow { path: self.path.clone(), row: number as u64 + 1, detail }
    }

    fn sample(&self, batch: &RecordBatch, row: usize, number: usize, captions: &Columns) -> Result<Sample> {
        let mut sample = Sample::new(self.key(Some(batch), row, number)?);
        let mut fields = Map::new();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let name = field.name();
            if *name == self.image {
                let (bytes, path) = image_at(column, row).map_err(|e| self.bad_row(number, e))?;
                let part = image_part(bytes, path).map_err(|e| self.bad_row(number, e))?;
                sample = sample.with(part, bytes);
                fields.extend(facts_beside(column, row).map(|facts| (name.clone(), facts)));
            } else if let Some(part) = self.parts.get(name) {
                fields.extend(add_parts(&mut sample, part, column, row).map(|rest| (name.clone(), rest)));
            } else if self.key.as_ref() != Some(name) {
                fields.insert(name.clone(), text_of_bytes(column, row).unwrap_or_else(|| json_value(column, row)));
            }
        }
        captions.add(sample, fields, number as u64).map_err(|e| self.bad_row(number, e))
    }
}

/// True for types of which no value is a caption: neither a text or number nor a list of them.
fn is_never_caption(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            !is_single(item.data_type())
        }
        single => !is_single(single),
    }
}

/// True for types of which no value is a key: neither a text nor a number.
fn is_never_key(kind: &DataType) -> bool {
    !is_single(kind)
}

/// True for types whose values are one text or number each, as JSON has them.
fn is_single(kind: &DataType) -> bool {
    !matches!(kind, DataType::Boolean | DataType::Map(..)) && !kind.is_nested()
}

/// True for a column that is text whatever its type says: writers that do not mark text as such write bytes.
fn is_text_column(name: &str, caption: Option<&str>) -> bool {
    caption == Some(name) || CAPTION_COLUMNS.contains(&name) || LABEL_COLUMNS.contains(&name)
}

/// The text of a column of bytes, if it is UTF-8. (Bytes of one length are checksums and the like.)
fn text_of_bytes(column: &ArrayRef, row: usize) -> Option<Value> {
    if matches!(column.data_type(), DataType::FixedSizeBinary(_)) {
        return None;
    }
    Some(std::str::from_utf8(bytes_at(column, row)?).ok()?.into())
}

/// True for images, bytes, and lists of them.
fn makes_parts(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) => holds_images(item.data_type()),
        kind => holds_images(kind),
    }
}

/// The beginnings of the names of columns' parts, which differ as file names do.
fn part_names<'a>(columns: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for column in columns {
        let plain = column.to_lowercase().replace(['/', '\0'], "_");
        let mut name = plain.clone();
        for again in 2.. {
            if names.values().all(|known| *known != name) {
                break;
            }
            name = format!("{plain}_{again}");
        }
        names.insert(column.to_owned(), name);
    }
    names
}

/// Adds the images or bytes of a column as parts whose names begin with `part`; returns what of the cell is not in them.
fn add_parts(sample: &mut Sample, part: &str, column: &ArrayRef, row: usize) -> Option<Value> {
    let items = match column.data_type() {
        DataType::List(_) if column.is_valid(row) => column.as_list::<i32>().value(row),
        DataType::LargeList(_) if column.is_valid(row) => column.as_list::<i64>().value(row),
        DataType::List(_) | DataType::LargeList(_) => return Some(Value::Null),
        _single => return add_part(sample, part, column, row),
    };
    let rests: Vec<Value> = (0..items.len())
        .map(|item| add_part(sample, &format!("{part}.{item}"), &items, item).unwrap_or_default())
        .collect();
    rests.iter().any(|rest| !rest.is_null()).then(|| Value::from(rests))
}

/// Adds one image or value of bytes; returns what of it is not in the part.
fn add_part(sample: &mut Sample, part: &str, column: &ArrayRef, row: usize) -> Option<Value> {
    match image_at(column, row) {
        Ok((bytes, path)) => {
            let name = format!("{part}.{}", image_extension(bytes, path).unwrap_or_else(|| "bin".to_owned()));
            sample.parts.insert(name, bytes.to_vec());
            facts_beside(column, row)
        }
        // Null, or only named.
        Err(_) => Some(json_value(column, row)),
    }
}

/// Fields of an image's struct beside its bytes and path.
fn facts_beside(column: &ArrayRef, row: usize) -> Option<Value> {
    let DataType::Struct(fields) = column.data_type() else { return None };
    let columns = fields.iter().zip(column.as_struct().columns());
    let others = columns.filter(|(field, _)| !matches!(field.name().as_str(), "bytes" | "path"));
    let facts: Map<String, Value> =
        others.map(|(field, cells)| (field.name().clone(), json_value(cells, row))).collect();
    (!facts.is_empty() && column.is_valid(row)).then_some(Value::Object(facts))
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

/// Name of the image's part.
fn image_part(bytes: &[u8], path: Option<&str>) -> std::result::Result<String, String> {
    if bytes.is_empty() {
        return Err("its image is empty".to_owned());
    }
    image_extension(bytes, path).ok_or_else(|| {
        let bytes = bytes.len();
        format!("its image is none of PNG, JPEG, WebP, GIF and BMP ({bytes} bytes), and no name tells what else it is")
    })
}

/// Extension of an image or of other content: by the first bytes, else by the path.
fn image_extension(bytes: &[u8], path: Option<&str>) -> Option<String> {
    let known: [(&[u8], &str); 8] = [
        (b"\x89PNG", "png"),
        (b"\xff\xd8\xff", "jpg"),
        (b"GIF8", "gif"),
        (b"BM", "bmp"),
        (b"RIFF", "webp"),
        (b"II*\0", "tif"),
        (b"MM\0*", "tif"),
        (b"\x93NUMPY", "npy"),
    ];
    let by_content = known.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, extension)| *extension);
    by_content.map(str::to_owned).or_else(|| extension_of(Path::new(path?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names_of_parts() {
        assert_eq!(without_dots("v1.0/a.b"), "v1.0/a_b");
        assert_eq!(image_part(b"\xff\xd8\xff\xe0", Some("x.png")).unwrap(), "jpg");
        assert_eq!(image_part(b"?", Some("x.TIF")).unwrap(), "tif");
        assert!(image_part(b"?", None).unwrap_err().contains("none of PNG"));
        assert!(image_part(b"", Some("x.png")).unwrap_err().contains("empty"));
    }
}
