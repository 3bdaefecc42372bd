//! `metrics.csv`: the lines of `metrics.jsonl` as a table, for pandas and spreadsheets.
//!
//! The first row names the columns: `samples`, `seconds`, then every name in the order in which it first came. A row has an
//! empty cell under a name that it does not have. When a row brings a new name, the file is written anew with one more
//! column, under which earlier rows are empty. Numbers are the shortest decimals that give the same double, NaN is `NaN`,
//! infinity `inf` and `-inf`, as pandas writes and reads them.

use super::{Event, Tracker, TrackerError, check_names, io_error, named_results};
use calotype_core::durable;
use calotype_core::system::counted;
use csv::{ByteRecord, ReaderBuilder, StringRecord, WriterBuilder};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Name of the file.
pub const METRICS: &str = "metrics.csv";
/// The columns that every row has.
const ALWAYS: [&str; 2] = ["samples", "seconds"];

/// Writes numbers to `metrics.csv`.
#[derive(Debug)]
pub struct Csv {
    file: File,
    path: PathBuf,
    columns: Vec<String>,
    started: Instant,
    /// Seconds that the run took before this process.
    seconds_before: f64,
}

impl Csv {
    /// Opens the table of a run in `folder`. Rows of more than `samples` samples are dropped, and columns that only they had.
    ///
    /// # Errors
    /// [`TrackerError::Io`], [`TrackerError::DamagedLine`].
    pub fn open(folder: &Path, samples: u64) -> Result<Self, TrackerError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, "create this folder", source))?;
        let path = folder.join(METRICS);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(io_error(&path, "read it", source)),
        };
        let table = Table::read(&content).map_err(|(line, reason)| TrackerError::DamagedLine {
            file: path.clone(),
            line,
            reason,
        })?;
        let table = table.up_to(samples);
        let written = table.write().map_err(|source| io_error(&path, "write it", source))?;
        if written != content {
            replace(&path, &written, if content.is_empty() { "create it" } else { "shorten it" })?;
        }
        let file = append_to(&path)?;
        let seconds_before = table.rows.last().map_or(0.0, |row| row.seconds);
        Ok(Self { file, path, columns: table.columns, started: Instant::now(), seconds_before })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn row(&mut self, samples: u64, values: &[(&str, f64)]) -> Result<(), TrackerError> {
        check_names(values, &ALWAYS)?;
        let new: Vec<String> = values.iter().map(|(name, _)| (*name).to_owned()).collect();
        let new: Vec<String> = new.into_iter().filter(|name| !self.columns.contains(name)).collect();
        if !new.is_empty() {
            self.widen(new)?;
        }
        let seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        let cell = |name: &String| values.iter().find(|(other, _)| other == name).map(|(_, value)| number(*value));
        let cells = self.columns.iter().skip(ALWAYS.len()).map(|name| cell(name).unwrap_or_default());
        let cells: Vec<String> = [samples.to_string(), format!("{seconds:.3}")].into_iter().chain(cells).collect();
        let line = lines([cells.as_slice()]).map_err(|source| io_error(&self.path, "write it", source))?;
        // One write call for the whole line: a kill leaves it complete or recognisably cut.
        self.file.write_all(&line).map_err(|source| io_error(&self.path, "write it", source))
    }

    /// Writes the file anew with more columns.
    fn widen(&mut self, new: Vec<String>) -> Result<(), TrackerError> {
        let content = fs::read(&self.path).map_err(|source| io_error(&self.path, "read it", source))?;
        let damaged = |(line, reason)| TrackerError::DamagedLine { file: self.path.clone(), line, reason };
        let mut table = Table::read(&content).map_err(damaged)?;
        table.columns.extend(new);
        let wide = table.columns.len();
        table.rows.iter_mut().for_each(|row| row.cells.resize(wide, String::new()));
        let written = table.write().map_err(|source| io_error(&self.path, "write it", source))?;
        replace(&self.path, &written, "add a column to it")?;
        self.file = append_to(&self.path)?;
        self.columns = table.columns;
        Ok(())
    }
}

impl Tracker for Csv {
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
        match *event {
            Event::Scalars { samples, values } => self.row(samples, values),
            Event::Evaluation { samples, name, values } => {
                let values = named_results(name, values);
                let values: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                self.row(samples, &values)
            }
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), TrackerError> {
        self.file.sync_data().map_err(|source| io_error(&self.path, "synchronise it", source))
    }
}

fn append_to(path: &Path) -> Result<File, TrackerError> {
    OpenOptions::new().append(true).open(path).map_err(|source| io_error(path, "open it", source))
}

fn replace(path: &Path, content: &[u8], action: &'static str) -> Result<(), TrackerError> {
    durable::replace_file(path, |writer| writer.write_all(content)).map_err(|source| io_error(path, action, source))
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        // Exponents where digits would be many, as `1e-7`.
        value => format!("{value:?}"),
    }
}

fn lines<'r>(rows: impl IntoIterator<Item = &'r [String]>) -> io::Result<Vec<u8>> {
    let mut writer = WriterBuilder::new().from_writer(Vec::new());
    for row in rows {
        writer.write_record(row)?;
    }
    writer.into_inner().map_err(csv::IntoInnerError::into_error)
}

/// What a file holds.
#[derive(Debug, PartialEq)]
struct Table {
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, PartialEq)]
struct Row {
    samples: u64,
    seconds: f64,
    /// As they stand in the file.
    cells: Vec<String>,
}

impl Table {
    /// Reads a file, but for a last row that was cut by a kill.
    ///
    /// # Errors
    /// A line, counted from 1, and what is wrong with it.
    fn read(content: &[u8]) -> Result<Self, (usize, String)> {
        let whole = content.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&content[..whole]);
        let mut columns: Option<Vec<String>> = None;
        let mut rows = Vec::new();
        for record in reader.byte_records() {
            let record: ByteRecord = record.map_err(|error| (1, error.to_string()))?;
            let line = record.position().map_or(1, |position| position.line() as usize);
            let record = StringRecord::from_byte_record(record).map_err(|error| (line, error.to_string()))?;
            let cells: Vec<String> = record.iter().map(str::to_owned).collect();
            match &columns {
                None => columns = Some(header(cells).map_err(|reason| (line, reason))?),
                Some(columns) => rows.push(Row::of(cells, columns.len()).map_err(|reason| (line, reason))?),
            }
        }
        let always = || ALWAYS.iter().map(|name| (*name).to_owned()).collect();
        Ok(Self { columns: columns.unwrap_or_else(always), rows })
    }

    /// The table without rows of more samples, and without columns that are empty then.
    fn up_to(mut self, samples: u64) -> Self {
        let all = self.rows.len();
        self.rows.retain(|row| row.samples <= samples);
        if self.rows.len() == all {
            return self;
        }
        tracing::info!(
            "{METRICS}: dropped {} of later than {samples} samples",
            counted((all - self.rows.len()) as u64, "row")
        );
        let used = |at: usize| at < ALWAYS.len() || self.rows.iter().any(|row| !row.cells[at].is_empty());
        let used: Vec<bool> = (0..self.columns.len()).map(used).collect();
        let keep = |cells: &mut Vec<String>| {
            let mut used = used.iter();
            cells.retain(|_| used.next().is_some_and(|used| *used));
        };
        keep(&mut self.columns);
        self.rows.iter_mut().for_each(|row| keep(&mut row.cells));
        self
    }

    fn write(&self) -> io::Result<Vec<u8>> {
        let rows = self.rows.iter().map(|row| row.cells.as_slice());
        lines(std::iter::once(self.columns.as_slice()).chain(rows))
    }
}

fn header(cells: Vec<String>) -> Result<Vec<String>, String> {
    if !cells.iter().zip(ALWAYS).all(|(cell, name)| cell == name) || cells.len() < ALWAYS.len() {
        return Err(format!("the columns do not begin with {}", ALWAYS.join(", ")));
    }
    match cells.iter().enumerate().find(|(at, name)| cells[..*at].contains(*name)) {
        Some((_, twice)) => Err(format!("the column `{twice}` comes twice")),
        None => Ok(cells),
    }
}

impl Row {
    fn of(cells: Vec<String>, columns: usize) -> Result<Self, String> {
        if cells.len() != columns {
            return Err(format!("{} cells under {columns} columns", cells.len()));
        }
        let samples = cells[0].parse().map_err(|_| format!("`samples` is `{}`", cells[0]))?;
        let seconds = cells[1].parse().map_err(|_| format!("`seconds` is `{}`", cells[1]))?;
        Ok(Self { samples, seconds, cells })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever stands in a file, reading it ends with a table or with a line that is wrong, and a table comes back.
        #[test]
        fn no_file_is_too_much(text in "(samples,seconds(,[ab\"]{1,3}){0,2}\n)?([-0-9a,.\"\r\n]{0,12}\n){0,6}[0-9,]{0,4}") {
            if let Ok(table) = Table::read(text.as_bytes()) {
                let written = table.write().unwrap();
                let again = Table::read(&written).map_err(|(line, reason)| format!("{line}: {reason}"));
                prop_assert_eq!(again, Ok(table));
            }
        }
    }

    fn scalars(tracker: &mut Csv, samples: u64, values: &[(&str, f64)]) {
        tracker.event(&Event::Scalars { samples, values }).unwrap();
    }

    /// The file without the column of the seconds.
    fn table(folder: &Path) -> Vec<String> {
        let text = fs::read_to_string(folder.join(METRICS)).unwrap();
        let without = |line: &str| {
            let (samples, rest) = line.split_once(',').unwrap();
            format!("{samples},{}", rest.split_once(',').map_or("", |(_, rest)| rest))
        };
        text.lines().map(without).collect()
    }

    fn log(tracker: &mut Csv, from: u64) {
        for samples in (from..=40).step_by(8) {
            scalars(tracker, samples, &[("loss", 1.0 / samples as f64), ("a,b", f64::INFINITY)]);
            if samples % 16 == 0 {
                let values = &[("loss", f64::NAN)];
                tracker.event(&Event::Evaluation { samples, name: "validation", values }).unwrap();
            }
            if samples == 32 {
                scalars(tracker, samples, &[("late", 1e-7)]);
            }
        }
    }

    #[test]
    fn columns_come_as_names_do() {
        let folder = tempfile::tempdir().unwrap();
        log(&mut Csv::open(folder.path(), 0).unwrap(), 8);
        let expected = [
            "samples,loss,\"a,b\",validation/loss,late",
            "8,0.125,inf,,",
            "16,0.0625,inf,,",
            "16,,,NaN,",
            "24,0.041666666666666664,inf,,",
            "32,0.03125,inf,,",
            "32,,,NaN,",
            "32,,,,1e-7",
            "40,0.025,inf,,",
        ];
        assert_eq!(table(folder.path()), expected);
    }

    #[test]
    fn an_interrupted_run_leaves_the_same_rows_as_an_uninterrupted_one() {
        let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        log(&mut Csv::open(whole.path(), 0).unwrap(), 8);
        log(&mut Csv::open(cut.path(), 0).unwrap(), 8);
        let path = cut.path().join(METRICS);
        let mut content = fs::read(&path).unwrap();
        content.extend_from_slice(b"48,1");
        fs::write(&path, content).unwrap();
        let mut resumed = Csv::open(cut.path(), 24).unwrap();
        assert_eq!(table(cut.path())[0], "samples,loss,\"a,b\",validation/loss", "no column is left of dropped rows");
        assert_eq!(table(cut.path()).len(), 5);
        log(&mut resumed, 32);
        assert_eq!(table(cut.path()), table(whole.path()));
        let all = fs::read(&path).unwrap();
        drop(Csv::open(cut.path(), 40).unwrap());
        assert_eq!(fs::read(&path).unwrap(), all, "nothing to drop");
        drop(Csv::open(cut.path(), 0).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"samples,seconds\n");
    }

    #[test]
    fn what_is_damaged_is_named_with_its_line() {
        for (content, line, reason) in [
            (&b"loss,samples\n"[..], 1, "do not begin with samples, seconds"),
            (b"samples\n", 1, "do not begin with samples, seconds"),
            (b"samples,seconds,a,a\n", 1, "`a` comes twice"),
            (b"samples,seconds,a\n1,2.0,3\n1,2\n", 3, "2 cells under 3 columns"),
            (b"samples,seconds\n-1,2.0\n", 2, "`samples` is `-1`"),
            (b"samples,seconds\n1,soon\n", 2, "`seconds` is `soon`"),
            (b"samples,seconds\n1,\xff\n", 2, "utf-8"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(METRICS), content).unwrap();
            let error = Csv::open(folder.path(), 9).unwrap_err().to_string();
            assert!(error.contains(&format!("{METRICS} line {line}: ")), "{error}");
            assert!(error.to_lowercase().contains(reason), "{error}");
        }
    }

    #[test]
    fn names_that_are_columns_already_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = Csv::open(folder.path(), 0).unwrap();
        let event = Event::Scalars { samples: 1, values: &[("seconds", 1.0)] };
        assert!(matches!(tracker.event(&event), Err(TrackerError::BadName { .. })));
    }
}
