//! Rows of parquet lists.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema};
use arrow_select::concat::concat_batches;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use calotype_data::source::cells::{has_json, in_words, is_text};

use super::text::find_column;
use super::{Holds, ListError, Result, Wanted};

/// The number of rows by the footer; the wanted columns are there and have types that can serve.
pub(super) fn count_rows(path: &Path, wanted: &[Wanted]) -> Result<usize> {
    let builder = open(path)?;
    columns(path, builder.schema(), wanted)?;
    let bad = |_| ListError::Parquet { path: path.to_path_buf(), detail: "a negative number of rows".to_owned() };
    usize::try_from(builder.metadata().file_metadata().num_rows()).map_err(bad)
}

/// Rows `first .. first + count`, fewer at the end.
pub(super) fn rows(path: &Path, wanted: &[Wanted], first: usize, count: usize) -> Result<RecordBatch> {
    let bad = |detail: String| ListError::Parquet { path: path.to_path_buf(), detail };
    let builder = open(path)?;
    let columns = columns(path, builder.schema(), wanted)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
    let reader = builder.with_projection(mask).with_offset(first).with_limit(count).with_batch_size(count.min(8192));
    let batches = reader.build().map_err(|e| bad(e.to_string()))?.collect::<std::result::Result<Vec<_>, _>>();
    let batches = batches.map_err(|e| bad(e.to_string()))?;
    let Some(batch) = batches.first() else { return Err(ListError::Changed { path: path.to_path_buf() }) };
    let all = concat_batches(&batch.schema(), &batches).map_err(|e| bad(e.to_string()))?;
    renamed(&all, wanted).map_err(|e| bad(e.to_string()))
}

/// The wanted columns in their order, by their names in samples.
fn renamed(all: &RecordBatch, wanted: &[Wanted]) -> std::result::Result<RecordBatch, arrow_schema::ArrowError> {
    let picked = wanted.iter().map(|wanted| {
        let at = all.schema().index_of(&wanted.column)?;
        let array = Arc::clone(all.column(at));
        Ok((Field::new(wanted.name.as_str(), array.data_type().clone(), true), array))
    });
    let (fields, arrays): (Vec<_>, Vec<_>) =
        picked.collect::<std::result::Result<Vec<_>, arrow_schema::ArrowError>>()?.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = calotype_core::open_input(path).map_err(|source| ListError::Io { path: path.to_path_buf(), source })?;
    // Plain types suffice, whatever the writer had in memory: dictionaries of texts are texts.
    let reading = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(file, reading)
        .map_err(|e| ListError::Parquet { path: path.to_path_buf(), detail: e.to_string() })
}

/// Numbers of the wanted columns; their types are checked.
fn columns(path: &Path, schema: &Schema, wanted: &[Wanted]) -> Result<Vec<usize>> {
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let find = |wanted: &Wanted| {
        let at = find_column(path, names.clone(), &wanted.column)?;
        check_type(path, schema.field(at).data_type(), wanted)?;
        Ok(at)
    };
    wanted.iter().map(find).collect()
}

/// True if it is one value, and no list or object.
fn is_single(kind: &DataType) -> bool {
    has_json(kind) && !kind.is_nested()
}

/// True for what captions may be: single values, or lists of them.
fn holds_captions(kind: &DataType) -> bool {
    use DataType::{FixedSizeList, LargeList, LargeListView, List, ListView};
    match kind {
        List(item) | LargeList(item) | FixedSizeList(item, _) | ListView(item) | LargeListView(item) => {
            is_single(item.data_type())
        }
        kind => is_single(kind),
    }
}

fn check_type(path: &Path, kind: &DataType, wanted: &Wanted) -> Result<()> {
    let (serves, needed) = match wanted.holds {
        Holds::Text => (is_text(kind), "text"),
        Holds::Caption => (holds_captions(kind), "text, numbers or lists of such"),
        Holds::Anything => (has_json(kind), "what JSON can carry"),
    };
    match serves {
        true => Ok(()),
        false => Err(ListError::WrongType {
            path: path.to_path_buf(),
            column: wanted.column.clone(),
            found: in_words(kind),
            needed,
        }),
    }
}
