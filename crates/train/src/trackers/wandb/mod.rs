//! Weights & Biases without its network: an offline run that the official client reads and `wandb sync` uploads.
//!
//! A process writes `wandb/offline-run-<time>-<id>/` in the run's folder: `run-<id>.wandb`, the transaction log (`log.rs`,
//! `records.rs`), and `files/` with images and the recipe. A process that takes a run up again writes another folder of the
//! same id, as the client does offline with `resume="allow"`; `wandb sync` uploads folders of one id in the order of their
//! times. Unlike the client, it first takes back what earlier folders say of samples behind the checkpoint.
//!
//! A row has `_step`, the samples seen. All that is logged at one number of samples makes one row.

mod log;
mod records;

use super::tensorboard::{host_name, png, unix_seconds};
use super::{Event, RunOutcome, Tracker, TrackerError, check_names, io_error, named_results};
use crate::config::{SettingError, check};
use calotype_core::durable;
use calotype_core::system::counted;
use prost::Message;
use records::{
    Config, ConfigItem, Exit, Files, FilesItem, Header, History, Item, Kind, Record, Run, Step, Summary, Timestamp,
    VersionInfo,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Folder of offline runs inside a run's own.
const FOLDER: &str = "wandb";
const OFFLINE: &str = "offline-run-";
/// What `wandb sync` leaves beside a log that it has uploaded.
const SYNCED: &str = "synced";
/// The oldest reader of such logs, as wandb 0.31.0 writes it.
const MIN_CONSUMER: &str = "0.70.0";
/// Names of a row that are not the run's to give.
const RESERVED: [&str; 4] = ["_step", "_timestamp", "_runtime", "_wandb"];
/// Characters that neither projects nor ids may have.
const NOT_IN_NAMES: &str = "/\\#?%:";

/// `[trackers.wandb]`: what the client's `wandb.init` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WandbSettings {
    /// The project.
    pub project: String,
    /// User or team; by default the one that is logged in where the run is uploaded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub entity: String,
    /// The run's name; by default its id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The group that the run belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// What the run does in its group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_type: String,
    /// A description.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The run's id, which no other run of the project may have; by default one is drawn when the run begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl WandbSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        let usable = |text: &str| {
            !text.trim().is_empty() && text.len() <= 128 && !text.contains(|letter| NOT_IN_NAMES.contains(letter))
        };
        let rule = || format!("must have 1 to 128 characters, and none of {NOT_IN_NAMES}");
        check(usable(&self.project), "trackers.wandb.project", rule)?;
        check(self.id.as_deref().is_none_or(usable), "trackers.wandb.id", rule)
    }
}

/// Writes an offline run.
#[derive(Debug)]
pub struct Wandb {
    settings: WandbSettings,
    id: String,
    /// Whether earlier folders hold the run's beginning.
    resumes: bool,
    file: File,
    path: PathBuf,
    /// The file's length.
    length: usize,
    /// Records written.
    records: i64,
    /// The row that is being gathered.
    row: Option<Row>,
    started: Instant,
    /// Seconds that the run took before this process.
    seconds_before: f64,
}

/// What is logged at one number of samples.
#[derive(Debug)]
struct Row {
    samples: u64,
    items: Vec<Item>,
    /// Paths below `files` of its images.
    images: Vec<String>,
}

impl Wandb {
    /// Begins an offline run in the folder of a run that has seen `samples` samples, and takes back what earlier ones say of more.
    ///
    /// # Errors
    /// [`TrackerError::Io`]; [`TrackerError::Damaged`] if the log of an earlier one is not as it was written.
    pub fn open(settings: &WandbSettings, folder: &Path, samples: u64) -> Result<Self, TrackerError> {
        let folder = folder.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|source| io_error(&folder, "create this folder", source))?;
        let earlier = offline_runs(&folder)?;
        let mut seconds_before = 0.0;
        for run in &earlier {
            seconds_before = rewind(run, samples)?.unwrap_or(seconds_before);
        }
        let known = earlier.last().map(|run| run.id.clone());
        let id = settings.id.clone().or(known).unwrap_or_else(|| new_id(&folder));
        let own = new_folder(&folder, &id)?;
        let path = own.join(log_name(&id));
        let opened = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = opened.map_err(|source| io_error(&path, "create it", source))?;
        let resumes = !earlier.is_empty();
        let (settings, started) = (settings.clone(), Instant::now());
        let mut wandb =
            Self { settings, id, resumes, file, path, length: 0, records: 0, row: None, started, seconds_before };
        wandb.append(&log::HEADER)?;
        let producer = format!("calotype {}", env!("CARGO_PKG_VERSION"));
        let version_info = Some(VersionInfo { producer, min_consumer: MIN_CONSUMER.to_owned() });
        wandb.record(Kind::Header(Header { version_info }))?;
        Ok(wandb)
    }

    /// The transaction log of this process.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TrackerError> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.length += bytes.len();
                Ok(())
            }
            Err(source) => {
                // Half a record would spoil those behind it. If this fails as well, the file ends with it.
                let _ = self.file.set_len(self.length as u64);
                Err(io_error(&self.path, "write it", source))
            }
        }
    }

    fn record(&mut self, kind: Kind) -> Result<(), TrackerError> {
        self.records += 1;
        let record = Record { num: self.records, kind: Some(kind) };
        let framed = log::frame(self.length, &record.encode_to_vec());
        self.append(&framed)
    }

    fn begin(&mut self, recipe: &str) -> Result<(), TrackerError> {
        let now = unix_seconds();
        let settings = self.settings.clone();
        self.record(Kind::Run(Run {
            run_id: self.id.clone(),
            entity: settings.entity,
            project: settings.project,
            config: Some(config_of(recipe)),
            run_group: settings.group,
            job_type: settings.job_type,
            display_name: settings.name,
            notes: settings.notes,
            tags: settings.tags,
            host: host_name(),
            start_time: Some(Timestamp { seconds: now as i64, nanos: (now.fract() * 1e9) as i32 }),
            resume: self.resumes,
        }))?;
        self.write_file("recipe.toml", recipe.as_bytes())?;
        self.list_files(vec!["recipe.toml".to_owned()])
    }

    /// Writes a file below `files`.
    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), TrackerError> {
        let path = durable::parent_folder(&self.path).join("files").join(name);
        let folder = durable::parent_folder(&path);
        fs::create_dir_all(folder).map_err(|source| io_error(folder, "create this folder", source))?;
        durable::write_bytes(&path, bytes).map_err(|source| io_error(&path, "write it", source))
    }

    fn list_files(&mut self, paths: Vec<String>) -> Result<(), TrackerError> {
        let files = paths.into_iter().map(|path| FilesItem { path }).collect();
        self.record(Kind::Files(Files { files }))
    }

    /// The row of a number of samples; one of another number is written first.
    fn row(&mut self, samples: u64) -> Result<&mut Row, TrackerError> {
        if self.row.as_ref().is_some_and(|row| row.samples != samples) {
            self.write_row()?;
        }
        Ok(self.row.get_or_insert_with(|| Row { samples, items: Vec::new(), images: Vec::new() }))
    }

    fn numbers<'v>(&mut self, samples: u64, values: impl Iterator<Item = (&'v str, f64)>) -> Result<(), TrackerError> {
        let row = self.row(samples)?;
        values.for_each(|(name, value)| row.put(name, vec![Item::new(&[name], json_number(value))]));
        Ok(())
    }

    fn image(&mut self, samples: u64, tag: &str, [width, height]: [u32; 2], rgb: &[u8]) -> Result<(), TrackerError> {
        let png = png(tag, width, height, rgb)?;
        let hash: String = Sha256::digest(&png).iter().map(|byte| format!("{byte:02x}")).collect();
        let path = format!("media/images/{}_{samples}_{}.png", path_of(tag), &hash[..20]);
        self.write_file(&path, &png)?;
        let fields = [
            ("_type", json_text("image-file")),
            ("format", json_text("png")),
            ("path", json_text(&path)),
            ("sha256", json_text(&hash)),
            ("size", png.len().to_string()),
            ("width", width.to_string()),
            ("height", height.to_string()),
        ];
        let row = self.row(samples)?;
        row.put(tag, fields.into_iter().map(|(field, value)| Item::new(&[tag, field], value)).collect());
        row.images.push(path);
        Ok(())
    }

    /// Writes the row that was gathered, if there is one. A row is dropped together with all that comes behind it, so that it
    /// goes in front of what it brings along.
    fn write_row(&mut self) -> Result<(), TrackerError> {
        let Some(Row { samples, mut items, images }) = self.row.take() else { return Ok(()) };
        items.push(Item::new(&["_timestamp"], json_number(unix_seconds())));
        items.push(Item::new(&["_runtime"], json_number(self.seconds())));
        items.push(Item::new(&["_step"], samples.to_string()));
        let step = Some(Step { num: i64::try_from(samples).unwrap_or(i64::MAX) });
        self.record(Kind::History(History { item: items.clone(), step }))?;
        self.record(Kind::Summary(Summary { update: items }))?;
        if images.is_empty() { Ok(()) } else { self.list_files(images) }
    }

    fn end(&mut self, outcome: RunOutcome) -> Result<(), TrackerError> {
        self.write_row()?;
        let exit_code = match outcome {
            RunOutcome::Finished => 0,
            // The client's code of a run that was stopped by a signal.
            RunOutcome::Interrupted => 255,
            RunOutcome::Failed => 1,
        };
        self.record(Kind::Exit(Exit { exit_code, runtime: self.seconds() as i32 }))
    }
}

impl Row {
    /// Takes up what a name stands for; the newest counts.
    fn put(&mut self, name: &str, items: Vec<Item>) {
        self.items.retain(|item| item.nested_key.first().is_none_or(|first| first != name));
        self.items.extend(items);
    }
}

impl Tracker for Wandb {
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
        match *event {
            Event::RunStart { config, .. } => self.begin(config),
            Event::Scalars { samples, values } => {
                check_names(values, &RESERVED)?;
                self.numbers(samples, values.iter().copied())
            }
            Event::Evaluation { samples, name, values } => {
                check_names(values, &[])?;
                let values = named_results(name, values);
                self.numbers(samples, values.iter().map(|(name, value)| (name.as_str(), *value)))
            }
            Event::Image { samples, tag, width, height, rgb } => self.image(samples, tag, [width, height], rgb),
            Event::Text { samples, tag, text } => {
                let item = Item::new(&[tag], json_text(text));
                self.row(samples)?.put(tag, vec![item]);
                Ok(())
            }
            Event::RunEnd { outcome, .. } => self.end(outcome),
            Event::CheckpointSaved { .. } => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), TrackerError> {
        self.write_row()?;
        self.file.sync_data().map_err(|source| io_error(&self.path, "synchronise it", source))
    }
}

/// The folder of an earlier process.
struct OfflineRun {
    path: PathBuf,
    id: String,
}

fn log_name(id: &str) -> String {
    format!("run-{id}.wandb")
}

/// The folders of earlier processes, in the order of their times.
fn offline_runs(folder: &Path) -> Result<Vec<OfflineRun>, TrackerError> {
    let unreadable = |source| io_error(folder, "list it", source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Date, `_`, time, `-`, id.
        let id = name.strip_prefix(OFFLINE).and_then(|rest| rest.split_once('-')).map(|(_, id)| id.to_owned());
        if let Some(id) = id
            && path.join(log_name(&id)).is_file()
        {
            found.push(OfflineRun { path, id });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Cuts a log in front of the first row of more than `samples` samples, and behind its last complete record; gives the
/// run's seconds at the last row that is left.
fn rewind(run: &OfflineRun, samples: u64) -> Result<Option<f64>, TrackerError> {
    let path = run.path.join(log_name(&run.id));
    let content = fs::read(&path).map_err(|source| io_error(&path, "read it", source))?;
    let damaged = |reason: String| TrackerError::Damaged { file: path.clone(), reason };
    let (mut kept, mut seconds, mut rows) = (log::HEADER.len().min(content.len()), None, 0);
    for framed in log::records(&content).map_err(&damaged)? {
        let record = decoded(&framed).map_err(&damaged)?;
        if let Some(Kind::History(row)) = &record.kind {
            let step = row.step.as_ref().map_or(0, |step| step.num);
            if rows > 0 || u64::try_from(step).is_ok_and(|step| step > samples) {
                rows += 1;
                continue;
            }
            seconds = row.number("_runtime").or(seconds);
        }
        if rows == 0 {
            kept = framed.range.end;
        }
    }
    if kept < content.len() {
        shorten(&path, kept).map_err(|source| io_error(&path, "shorten it", source))?;
    }
    if rows > 0 {
        tracing::info!("{}: dropped {} of later than {samples} samples", path.display(), counted(rows as u64, "row"));
        let marker = run.path.join(format!("{}.{SYNCED}", log_name(&run.id)));
        if marker.exists() {
            tracing::warn!(
                "{}: {rows} rows of later than {samples} samples were uploaded already, and the server keeps them",
                path.display()
            );
        }
    }
    Ok(seconds)
}

fn shorten(path: &Path, length: usize) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(length as u64)?;
    file.sync_data()
}

/// Creates the folder of this process, named by the time and the id; by the next second that is free, for folders of one
/// run are uploaded in this order.
fn new_folder(folder: &Path, id: &str) -> Result<PathBuf, TrackerError> {
    let mut seconds = unix_seconds() as u64;
    loop {
        let path = folder.join(format!("{OFFLINE}{}-{id}", time_stamp(seconds)));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => seconds += 1,
            Err(source) => return Err(io_error(&path, "create this folder", source)),
        }
    }
}

/// An id of eight letters and digits that no other run has. It does not depend on the recipe's seed: two runs of one recipe
/// are two.
fn new_id(folder: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(folder.as_os_str().as_encoded_bytes());
    hasher.update(&unix_seconds().to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    hasher.update(host_name().as_bytes());
    let letter = |byte: &u8| char::from_digit(u32::from(*byte) % 36, 36).unwrap_or('0');
    hasher.finalize().as_bytes()[..8].iter().map(letter).collect()
}

/// `YYYYMMDD_HHMMSS` of a number of seconds since 1970, in UTC.
fn time_stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day last; 400 of them have 146,097 days. 1970 began 719,468 days after the
    // first of March of the year 0.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + month / 10, (month + 2) % 12 + 1);
    format!("{year:04}{month:02}{of_month:02}_{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The recipe's tables, each under its name.
fn config_of(recipe: &str) -> Config {
    let table: toml::Table = toml::from_str(recipe).unwrap_or_default();
    let item = |(key, value): (String, toml::Value)| {
        serde_json::to_string(&value).ok().map(|value_json| ConfigItem { key, value_json })
    };
    Config { update: table.into_iter().filter_map(item).collect() }
}

/// A name as the path of a file below a folder.
fn path_of(tag: &str) -> String {
    let plain = |part: &str| -> String {
        let letters = part.chars().map(|letter| match letter {
            letter if letter.is_alphanumeric() || " -_.".contains(letter) => letter,
            _ => '-',
        });
        let part: String = letters.take(60).collect();
        if part.trim_matches('.').is_empty() { "_".to_owned() } else { part }
    };
    tag.split('/').map(plain).collect::<Vec<_>>().join("/")
}

/// A number as the client writes it, NaN and infinity by the names that Python's `json` gives them.
fn json_number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        value => serde_json::Value::from(value).to_string(),
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The number of records of a transaction log; what is wrong with it, and at which byte.
#[cfg(test)]
pub(crate) fn check_log(content: &[u8]) -> Result<usize, String> {
    let records = log::records(content)?;
    records.iter().try_for_each(|framed| decoded(framed).map(drop))?;
    Ok(records.len())
}

fn decoded(framed: &log::Framed) -> Result<Record, String> {
    Record::decode(framed.data.as_slice())
        .map_err(|error| format!("the record at byte {} is none of wandb's ({error})", framed.range.start))
}

#[cfg(test)]
mod tests;
