//! One shard: its rows of the list, their outcomes, and its files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arrow_array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use calotype_data::Sample;
use calotype_data::files::{partial_name, publish, read_json, write_json};
use calotype_data::source::CaptionChoice;
use calotype_data::webdataset::ShardFile;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::ser::PrettyFormatter;

use super::failure::Failure;
use super::image::Sizes;
use super::list::json_value;
use crate::{Account, Error, Result};

/// Names and content of shards.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub folder: PathBuf,
    /// Folder of the files that are no part of the dataset.
    pub aside: PathBuf,
    /// Rows of a full shard.
    pub samples: usize,
    pub shard_digits: usize,
    /// Extension of images.
    pub extension: &'static str,
    /// Column of the checksum.
    pub hash: Option<&'static str>,
    /// True if the list has that column, too.
    pub verifies: bool,
    pub exif: bool,
    /// The caption among several, if there are captions.
    pub captions: Option<CaptionChoice>,
}

impl Layout {
    fn name(&self, id: usize) -> String {
        format!("{id:0digits$}", digits = self.shard_digits)
    }

    fn file(&self, id: usize, ending: &str) -> PathBuf {
        self.folder.join(self.name(id) + ending)
    }

    /// Key of row `row`: the shard's number, then the row's in as many digits as full shards need.
    fn key(&self, id: usize, row: usize) -> String {
        let digits = match self.samples {
            0 | 1 => 0,
            samples => (samples - 1).ilog10() as usize + 1,
        };
        let number = id as u128 * 10u128.pow(digits as u32) + row as u128;
        format!("{number:0digits$}", digits = self.shard_digits + digits)
    }

    /// The statistics of a finished shard, and the length of its tar.
    pub fn finished(&self, id: usize) -> Result<Option<(Stats, u64)>> {
        let Some(stats) = read_json::<Stats>(&self.file(id, "_stats.json"))? else { return Ok(None) };
        let tar = fs::metadata(self.file(id, ".tar")).map(|tar| tar.len());
        Ok(tar.ok().filter(|_| self.file(id, ".parquet").exists()).map(|bytes| (stats, bytes)))
    }
}

/// img2dataset's statistics of a shard, without times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Stats {
    pub count: u64,
    pub successes: u64,
    pub failed_to_download: u64,
    pub failed_to_resize: u64,
    pub status_dict: BTreeMap<String, u64>,
}

/// Times of a shard.
#[derive(Serialize)]
struct Timings {
    start_time: f64,
    end_time: f64,
    duration: f64,
    bytes_stored: u64,
}

/// Key of successes in [`Stats::status_dict`], and the samples' `status`.
const SUCCESS: &str = "success";

impl Stats {
    /// Adds the shard to an account.
    pub fn add_to(&self, bytes: u64, account: &mut Account) {
        account.taken += self.count;
        account.written += self.successes;
        account.bytes += bytes;
        for (reason, count) in self.status_dict.iter().filter(|(reason, _)| *reason != SUCCESS) {
            *account.left_out.entry(reason.clone()).or_default() += count;
        }
    }
}

/// Outcome of a row.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Stored(Box<Stored>),
    Failed(Failure),
}

/// An image that waits for its shard to be complete.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Place in the file aside.
    at: u64,
    length: usize,
    pub facts: Facts,
}

/// Facts about an image beyond its list.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub sizes: Option<Sizes>,
    pub hash: Option<String>,
    pub exif: Option<String>,
}

/// A shard that is being worked on.
pub(super) struct OpenShard {
    layout: Arc<Layout>,
    id: usize,
    rows: RecordBatch,
    outcomes: Mutex<Vec<Option<Outcome>>>,
    left: AtomicUsize,
    /// The images in the order of their arrival, and how far the file is filled.
    aside: Mutex<(File, u64)>,
    aside_path: PathBuf,
    started: (Instant, SystemTime),
}

impl OpenShard {
    pub fn new(layout: &Arc<Layout>, id: usize, rows: RecordBatch) -> Result<Self> {
        let aside_path = partial_name(&layout.file(id, ".images"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&aside_path);
        let file = file.map_err(Error::io("create", &aside_path))?;
        // It has no name from now on, so that a process that is killed leaves nothing behind.
        fs::remove_file(&aside_path).map_err(Error::io("remove", &aside_path))?;
        Ok(OpenShard {
            layout: Arc::clone(layout),
            id,
            outcomes: Mutex::new(vec![None; rows.num_rows()]),
            left: AtomicUsize::new(rows.num_rows()),
            rows,
            aside: Mutex::new((file, 0)),
            aside_path,
            started: (Instant::now(), SystemTime::now()),
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.num_rows()
    }

    /// A row's text in column `name`, if there is any.
    pub fn text(&self, name: &str, row: usize) -> Option<String> {
        match json_value(self.rows.column_by_name(name)?, row) {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Keeps the bytes of an image.
    pub fn store(&self, bytes: &[u8], facts: Facts) -> Result<Outcome> {
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, end) = &mut *aside;
        file.write_all_at(bytes, *end).map_err(Error::io("write", &self.aside_path))?;
        let stored = Stored { at: *end, length: bytes.len(), facts };
        *end += bytes.len() as u64;
        Ok(Outcome::Stored(Box::new(stored)))
    }

    /// Notes the outcome of a row; true if it was the last one.
    pub fn settle(&self, row: usize, outcome: Outcome) -> bool {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes[row] = Some(outcome);
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Writes tar, table and, last, statistics.
    pub fn finish(&self) -> Result<(Stats, u64)> {
        let outcomes = std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        let outcomes: Vec<Outcome> = outcomes.into_iter().flatten().collect();
        let bytes = self.write_tar(&outcomes)?;
        self.write_table(&outcomes)?;
        let stats = statistics(&outcomes);
        self.write_timings(bytes)?;
        write_json(&self.layout.file(self.id, "_stats.json"), &stats)?;
        Ok((stats, bytes))
    }

    fn write_tar(&self, outcomes: &[Outcome]) -> Result<u64> {
        let mut tar = ShardFile::create(&self.layout.file(self.id, ".tar"))?;
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        for (row, outcome) in outcomes.iter().enumerate() {
            let Outcome::Stored(stored) = outcome else { continue };
            let mut image = vec![0; stored.length];
            aside.0.read_exact_at(&mut image, stored.at).map_err(Error::io("read", &self.aside_path))?;
            tar.write(&self.sample(row, outcome, image))?;
        }
        Ok(tar.finish()?.bytes)
    }

    /// A sample, whose parts have the order that the webdataset library writes them in.
    fn sample(&self, row: usize, outcome: &Outcome, image: Vec<u8>) -> Sample {
        let facts = json_part(&self.facts(row, outcome));
        let sample = Sample::new(self.layout.key(self.id, row)).with(self.layout.extension, image).with("json", facts);
        let Some(choice) = self.layout.captions else { return sample };
        let caption = self.rows.column_by_name("caption").map(|column| json_value(column, row));
        let caption = match caption.unwrap_or_default() {
            Value::Array(all) => {
                let all = all.into_iter().filter(|caption| !caption.is_null()).map(caption_text).collect();
                choice.of(all, (self.id * self.layout.samples + row) as u64)
            }
            single => caption_text(single),
        };
        sample.with("txt", caption)
    }

    /// A row's facts in img2dataset's order.
    fn facts(&self, row: usize, outcome: &Outcome) -> Vec<(String, Value)> {
        let schema = self.rows.schema();
        let columns = schema.fields().iter().zip(self.rows.columns());
        // The list's checksum was compared; the one that is kept is the image's.
        let columns =
            columns.filter(|(field, _)| !self.layout.verifies || Some(field.name().as_str()) != self.layout.hash);
        let mut facts: Vec<(String, Value)> =
            columns.map(|(field, column)| (field.name().clone(), json_value(column, row))).collect();
        let own = Own::new(outcome);
        let mut push = |name: &str, value: Value| facts.push((name.to_owned(), value));
        push("key", self.layout.key(self.id, row).into());
        push("status", own.status.into());
        push("error_message", own.message.into());
        for (name, side) in SIDES.iter().zip(own.sides) {
            push(name, side.into());
        }
        if self.layout.exif {
            push("exif", own.facts.exif.into());
        }
        if let Some(name) = self.layout.hash {
            push(name, own.facts.hash.into());
        }
        facts
    }

    /// The facts of all rows as parquet.
    fn write_table(&self, outcomes: &[Outcome]) -> Result<()> {
        let path = self.layout.file(self.id, ".parquet");
        let batch = self.table(outcomes);
        let partial = partial_name(&path);
        let failed = |detail: String| Error::io("write", &partial)(std::io::Error::other(detail));
        let batch = batch.map_err(|e| failed(e.to_string()))?;
        let file = File::create(&partial).map_err(Error::io("create", &partial))?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let write = |file| {
            let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))?;
            writer.write(&batch)?;
            writer.into_inner()
        };
        let file = write(file).map_err(|e: parquet::errors::ParquetError| failed(e.to_string()))?;
        Ok(publish(file, &path)?)
    }

    fn table(&self, outcomes: &[Outcome]) -> std::result::Result<RecordBatch, arrow_schema::ArrowError> {
        let own: Vec<Own> = outcomes.iter().map(Own::new).collect();
        let text = |column: &dyn Fn(&Own) -> Option<String>| -> ArrayRef {
            Arc::new(own.iter().map(column).collect::<StringArray>())
        };
        let keys = (0..outcomes.len()).map(|row| Some(self.layout.key(self.id, row)));
        let mut added: Vec<(&str, ArrayRef)> = vec![
            ("key", Arc::new(keys.collect::<StringArray>())),
            ("status", text(&|own| Some(own.status.to_owned()))),
            ("error_message", text(&|own| own.message.clone())),
        ];
        for (at, name) in SIDES.iter().enumerate() {
            let sides = own.iter().map(|own| own.sides[at].and_then(|side| i32::try_from(side).ok()));
            added.push((name, Arc::new(sides.collect::<Int32Array>())));
        }
        if self.layout.exif {
            added.push(("exif", text(&|own| own.facts.exif.clone())));
        }
        if let Some(name) = self.layout.hash {
            added.push((name, text(&|own| own.facts.hash.clone())));
        }
        let schema = self.rows.schema();
        let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
        let mut arrays = self.rows.columns().to_vec();
        for (name, array) in added {
            // The list's column of checksums becomes that of the images'.
            match fields.iter().position(|field| field.name() == name) {
                Some(at) => {
                    fields[at] = Arc::new(Field::new(name, DataType::Utf8, true));
                    arrays[at] = array;
                }
                None => {
                    fields.push(Arc::new(Field::new(name, array.data_type().clone(), true)));
                    arrays.push(array);
                }
            }
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
    }

    fn write_timings(&self, bytes_stored: u64) -> Result<()> {
        let folder = self.layout.aside.join("timings");
        fs::create_dir_all(&folder).map_err(Error::io("create folder", &folder))?;
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let duration = self.started.0.elapsed().as_secs_f64();
        let start_time = seconds(self.started.1);
        let timings = Timings { start_time, end_time: start_time + duration, duration, bytes_stored };
        Ok(write_json(&folder.join(self.layout.name(self.id) + ".json"), &timings)?)
    }
}

/// Names of the sides, in the order of [`Own::sides`].
const SIDES: [&str; 4] = ["width", "height", "original_width", "original_height"];

/// Values of a row beyond its list.
struct Own {
    status: &'static str,
    message: Option<String>,
    sides: [Option<u32>; 4],
    facts: Facts,
}

impl Own {
    fn new(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Stored(stored) => Own {
                status: SUCCESS,
                message: None,
                sides: stored
                    .facts
                    .sizes
                    .map_or([None; 4], |s| [s.width, s.height, s.original_width, s.original_height].map(Some)),
                facts: stored.facts.clone(),
            },
            Outcome::Failed(failure) => Own {
                status: failure.kind.status(),
                message: Some(failure.message()),
                sides: [None; 4],
                facts: Facts::default(),
            },
        }
    }
}

fn statistics(outcomes: &[Outcome]) -> Stats {
    let mut stats = Stats { count: outcomes.len() as u64, ..Stats::default() };
    for outcome in outcomes {
        let (status, label) = match outcome {
            Outcome::Stored(_) => (SUCCESS, SUCCESS.into()),
            Outcome::Failed(failure) => (failure.kind.status(), failure.kind.label()),
        };
        match status {
            SUCCESS => stats.successes += 1,
            "failed_to_download" => stats.failed_to_download += 1,
            _ => stats.failed_to_resize += 1,
        }
        *stats.status_dict.entry(label.into_owned()).or_default() += 1;
    }
    stats
}

/// Python's `str` of a caption; nothing is the empty text.
fn caption_text(caption: Value) -> String {
    match caption {
        Value::Null => String::new(),
        Value::String(text) => text,
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => other.to_string(),
    }
}

/// Facts as a JSON object in their order, indented by four.
fn json_part(facts: &[(String, Value)]) -> Vec<u8> {
    struct Ordered<'a>(&'a [(String, Value)]);
    impl Serialize for Ordered<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.0.len()))?;
            for (name, value) in self.0 {
                map.serialize_entry(name, value)?;
            }
            map.end()
        }
    }
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b"    "));
    match Ordered(facts).serialize(&mut serializer) {
        Ok(()) => out,
        // Text and JSON values into memory: there is nothing that could fail.
        Err(error) => unreachable!("JSON of JSON values: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_have_the_digits_of_img2dataset() {
        let layout = |samples, shard_digits| Layout {
            folder: PathBuf::from("out"),
            aside: PathBuf::from("out/.download"),
            samples,
            shard_digits,
            extension: "jpg",
            hash: None,
            verifies: false,
            exif: false,
            captions: None,
        };
        for (samples, digits, id, row, name, key) in [
            (10_000, 5, 0, 0, "00000", "000000000"),
            (10_000, 5, 12, 345, "00012", "000120345"),
            (1_000, 5, 1, 999, "00001", "00001999"),
            (1_001, 5, 1, 1_000, "00001", "000011000"),
            (1, 5, 7, 0, "00007", "00007"),
            (10, 3, 4_321, 9, "4321", "43219"),
        ] {
            let layout = layout(samples, digits);
            assert_eq!((layout.name(id).as_str(), layout.key(id, row).as_str()), (name, key));
        }
    }

    #[test]
    fn facts_keep_their_order_in_json() {
        let facts = [("url".to_owned(), "http://ä/".into()), ("caption".to_owned(), Value::Null)];
        let text = String::from_utf8(json_part(&facts)).unwrap();
        assert_eq!(text, "{\n    \"url\": \"http://ä/\",\n    \"caption\": null\n}");
    }
}
