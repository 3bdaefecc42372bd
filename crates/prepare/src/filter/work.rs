//! Reading, judging and writing the rows of parts, several parts at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_select::filter::filter_record_batch;
use calotype_core::output::check_file;
use calotype_data::Control;
use calotype_data::files::{partial_name, publish};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use super::check::Condition;
use super::tables::{self, Part};
use super::{Clause, FilterArgs, FilterError};
use crate::{Account, Error, Result};

/// Rows that are judged at once.
const BATCH_ROWS: usize = 8192;
/// Key of [`PartRecord`] in the metadata of a written table.
const RECORD_KEY: &str = "calotype.filter";

/// A written table's record of how it was made.
#[derive(Default, Serialize, Deserialize)]
struct PartRecord {
    /// BLAKE3 of the settings and of the input's identity.
    made_of: String,
    taken: u64,
    written: u64,
    left_out: BTreeMap<String, u64>,
}

/// State that the workers share.
struct Shared<'a> {
    args: &'a FilterArgs,
    clauses: &'a [Clause],
    parts: &'a [&'a Part],
    next: AtomicUsize,
    rows: AtomicU64,
    stop: AtomicBool,
}

/// Writes `parts` with several threads.
///
/// # Errors
/// The first error of any part; the others stop at their next batch.
pub(super) fn run(
    args: &FilterArgs,
    clauses: &[Clause],
    parts: &[&Part],
    control: &mut Control<'_>,
) -> Result<Account> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(processors).min(parts.len());
    let shared = Shared {
        args,
        clauses,
        parts,
        next: AtomicUsize::new(0),
        rows: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let total = parts.iter().map(|part| part.rows.end - part.rows.start).sum::<u64>() as usize;
    let mut account = Account::new("filter");
    let mut failure = None;
    std::thread::scope(|scope| {
        let (done, results) = mpsc::channel();
        for _ in 0..threads {
            let (shared, done) = (&shared, done.clone());
            scope.spawn(move || {
                while let Some(part) = shared.parts.get(shared.next.fetch_add(1, Ordering::Relaxed)) {
                    let result = shared.part(part);
                    let failed = result.is_err();
                    if done.send(result).is_err() || failed {
                        return;
                    }
                }
            });
        }
        drop(done);
        loop {
            let mut fail = |error: Error| {
                shared.stop.store(true, Ordering::Relaxed);
                failure.get_or_insert(error);
            };
            match results.recv_timeout(Duration::from_millis(200)) {
                Ok(Ok(one)) => account.add(&one),
                Ok(Err(error)) => fail(error),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let rows = shared.rows.load(Ordering::Relaxed) as usize;
            if let Err(stopped) = control.checkpoint("filter", rows, total) {
                fail(stopped.into());
            }
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(account),
    }
}

impl Shared<'_> {
    /// Writes one part, unless it is there already.
    fn part(&self, part: &Part) -> Result<Account> {
        let made_of = self.made_of(part);
        if let Some(record) = finished(&part.out, &made_of) {
            self.rows.fetch_add(record.taken, Ordering::Relaxed);
            return Ok(record.account(&part.out));
        }
        // The parquet crate is not proven to be free of panics on damaged files.
        let written = catch_unwind(AssertUnwindSafe(|| self.write(part, made_of))).unwrap_or_else(|_| {
            let source = ParquetError::General("the reader gave up on a damaged page".to_owned());
            Err(FilterError::Unreadable { path: part.path.clone(), source }.into())
        });
        if written.is_err() {
            // It is only in the way: a part is begun anew.
            let _ = fs::remove_file(partial_name(&part.out));
        }
        Ok(written?.account(&part.out))
    }

    /// Checksum of all that the rows of the part depend on.
    fn made_of(&self, part: &Part) -> String {
        let mut hasher = blake3::Hasher::new();
        let fixed = format!("{} {:?} {}", part.identity, part.rows, self.args.row_group_rows);
        for text in [fixed.as_str()].into_iter().chain(self.clauses.iter().map(|clause| clause.template.as_str())) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn write(&self, part: &Part, made_of: String) -> Result<PartRecord> {
        let input = File::open(&part.path).map_err(Error::io("open", &part.path))?;
        let metadata = tables::metadata(&part.path, &input)?;
        let conditions = tables::conditions(&part.path, metadata.schema(), self.clauses)?;
        let mut writer = self.writer(part, &metadata)?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(input, metadata)
            .with_batch_size(BATCH_ROWS)
            .with_offset(part.rows.start as usize)
            .with_limit((part.rows.end - part.rows.start) as usize)
            .build()
            .map_err(FilterError::unreadable(&part.path))?;
        let mut record = PartRecord { made_of, ..PartRecord::default() };
        for batch in reader {
            let unreadable = FilterError::unreadable(&part.path);
            let batch = batch.map_err(|error| unreadable(error.into()))?;
            let kept = self.judge(&batch, &conditions, &mut record);
            let kept = filter_record_batch(&batch, &kept).map_err(|e| FilterError::unwritable(&part.out)(e.into()))?;
            writer.write(&kept).map_err(FilterError::unwritable(&part.out))?;
            self.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            if self.stop.load(Ordering::Relaxed) {
                let (done, total) = (record.taken as usize, (part.rows.end - part.rows.start) as usize);
                return Err(calotype_data::Error::Interrupted { stage: "filter", done, total }.into());
            }
        }
        let expected = part.rows.end - part.rows.start;
        if record.taken != expected {
            let message = format!("{} rows where the footer promises {expected}", record.taken);
            return Err(FilterError::unreadable(&part.path)(ParquetError::General(message)).into());
        }
        let text = serde_json::to_string(&record).map_err(|e| Error::Usage(e.to_string()))?;
        writer.append_key_value_metadata(KeyValue::new(RECORD_KEY.to_owned(), text));
        let file = writer.into_inner().map_err(FilterError::unwritable(&part.out))?;
        let partial = partial_name(&part.out);
        let file = file.into_inner().map_err(|error| Error::io("write", &partial)(error.into_error()))?;
        publish(file, &part.out)?;
        Ok(record)
    }

    /// Picks the rows that stay. The others are counted for the first condition that they fail.
    fn judge(&self, batch: &RecordBatch, conditions: &[Condition], record: &mut PartRecord) -> BooleanArray {
        let mut kept = vec![true; batch.num_rows()];
        for (condition, clause) in conditions.iter().zip(self.clauses) {
            let (mut failed, mut null) = (0, 0);
            for (kept, verdict) in kept.iter_mut().zip(condition.judge(batch)) {
                if *kept && verdict != Some(true) {
                    *kept = false;
                    *(if verdict.is_none() { &mut null } else { &mut failed }) += 1;
                }
            }
            for (count, reason) in [(failed, clause.reason.clone()), (null, format!("{}: null", clause.reason))] {
                if count > 0 {
                    *record.left_out.entry(reason).or_default() += count;
                }
            }
        }
        record.taken += batch.num_rows() as u64;
        record.written += kept.iter().filter(|kept| **kept).count() as u64;
        BooleanArray::from(kept)
    }

    fn writer(&self, part: &Part, metadata: &ArrowReaderMetadata) -> Result<ArrowWriter<BufWriter<File>>> {
        if let Some(folder) = part.out.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create folder", folder))?;
        }
        let partial = partial_name(&part.out);
        let file = File::create(&partial).map_err(Error::io("create", &partial))?;
        let options = ArrowWriterOptions::new()
            .with_schema_root(metadata.metadata().file_metadata().schema_descr().name().to_owned())
            .with_properties(properties(metadata.metadata(), self.args.row_group_rows));
        let writer = ArrowWriter::try_new_with_options(BufWriter::new(file), metadata.schema().clone(), options);
        Ok(writer.map_err(FilterError::unwritable(&part.out))?)
    }
}

/// Compression and metadata as in the input.
fn properties(input: &ParquetMetaData, row_group_rows: usize) -> WriterProperties {
    let mut properties = WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows));
    if let Some(group) = input.row_groups().first() {
        for column in group.columns() {
            properties = properties.set_column_compression(column.column_path().clone(), column.compression());
        }
    }
    // The writer describes the schema itself; a record of an earlier filter does not hold any more.
    let kept = |pair: &&KeyValue| pair.key != "ARROW:schema" && pair.key != RECORD_KEY;
    let pairs = input.file_metadata().key_value_metadata().map(|pairs| pairs.iter().filter(kept).cloned().collect());
    properties.set_key_value_metadata(pairs).build()
}

/// The record of a table at `out` that was made of the same rows with the same settings.
fn finished(out: &Path, made_of: &str) -> Option<PartRecord> {
    record_in(out).filter(|record| record.made_of == made_of)
}

/// What a table says of itself that this stage wrote.
fn record_in(path: &Path) -> Option<PartRecord> {
    let file = File::open(path).ok()?;
    let metadata = tables::metadata(path, &file).ok()?;
    let pairs = metadata.metadata().file_metadata().key_value_metadata()?;
    let text = pairs.iter().find(|pair| pair.key == RECORD_KEY)?.value.as_ref()?;
    serde_json::from_str(text).ok()
}

/// Refuses the place of a table where something is that this stage has not written.
///
/// # Errors
/// [`Error::Usage`].
pub(super) fn check_place(out: &Path) -> Result<()> {
    // Its folder is made later.
    match out.symlink_metadata() {
        Ok(_) => check_file(out, "a filtered table", |path| record_in(path).is_some()).map_err(Error::Usage),
        Err(_) => Ok(()),
    }
}

impl PartRecord {
    fn account(self, out: &Path) -> Account {
        Account {
            taken: self.taken,
            written: self.written,
            bytes: fs::metadata(out).map_or(0, |file| file.len()),
            left_out: self.left_out,
            ..Account::new("filter")
        }
    }
}
