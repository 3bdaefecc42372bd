//! What a run leaves to look at: `metrics.jsonl` and TensorBoard event files.
//!
//! Both count progress in samples. `metrics.jsonl` has one JSON object a line: `samples`, `seconds` (wall time of the
//! run, summed over restarts) and the named numbers; NaN and infinity, which JSON lacks, are the strings `"NaN"`,
//! `"Infinity"` and `"-Infinity"`. Event files are TFRecords of `tensorflow.Event` messages, encoded here by hand:
//! the format is small and stable
//! (<https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto>).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use calotype_weights::durable;
use image::ImageEncoder;

const METRICS: &str = "metrics.jsonl";
const EVENTS: &str = "events.out.tfevents.";

/// Why something cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// The file system refuses.
    #[error("{}: cannot {action}: {source}; check the permissions and the free space", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of an earlier run's metrics that is not one of ours.
    #[error("{} line {line}: {reason}; move the file away or correct the line", file.display())]
    DamagedLine {
        /// The metrics file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A metric's name that stands for something else, or comes twice in a line.
    #[error("metric name `{name}` is reserved or repeated; give every metric of a line its own name")]
    BadName {
        /// The name.
        name: String,
    },
    /// Pixels that do not make a picture.
    #[error("image `{tag}`: {reason}")]
    BadImage {
        /// The image's tag.
        tag: String,
        /// What is wrong.
        reason: String,
    },
}

/// Records a run's numbers, pictures and texts. One process of a run holds it (rank 0).
#[derive(Debug)]
pub struct Tracker {
    metrics: File,
    metrics_path: PathBuf,
    events: EventFile,
    started: Instant,
    /// Seconds that the run took before this process.
    seconds_before: f64,
}

impl Tracker {
    /// Opens the records of a run in `folder` that has seen `samples` samples (0 for a new one). Lines and events of
    /// later samples, which a killed process may have left, are dropped from `metrics.jsonl` and hidden from
    /// TensorBoard: both then are as an uninterrupted run's but for the times.
    ///
    /// For that to hold exactly, record what belongs to a sample count before saving the checkpoint of that count.
    ///
    /// # Errors
    /// [`TrackerError::Io`], [`TrackerError::DamagedLine`].
    pub fn open(folder: impl AsRef<Path>, samples: u64) -> Result<Self, TrackerError> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(|source| io_error(folder, "create this folder", source))?;
        let metrics_path = folder.join(METRICS);
        let seconds_before = rewind(&metrics_path, samples)?;
        let opened = OpenOptions::new().append(true).create(true).open(&metrics_path);
        let metrics = opened.map_err(|source| io_error(&metrics_path, "open it", source))?;
        let resumes = has_events(folder);
        let mut events = EventFile::create(folder)?;
        if resumes {
            events.hide_earlier_from(samples.saturating_add(1))?;
        }
        Ok(Self { metrics, metrics_path, events, started: Instant::now(), seconds_before })
    }

    /// Records named numbers at a sample count: one line, and one TensorBoard scalar each.
    ///
    /// # Errors
    /// [`TrackerError::BadName`], [`TrackerError::Io`].
    pub fn scalars(&mut self, samples: u64, values: &[(&str, f64)]) -> Result<(), TrackerError> {
        let seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        let line = metrics_line(samples, seconds, values)?;
        // One write call for the whole line: a kill leaves it complete or recognisably cut.
        self.metrics.write_all(line.as_bytes()).map_err(|source| io_error(&self.metrics_path, "write it", source))?;
        let summary = values.iter().flat_map(|(name, value)| scalar_value(name, *value as f32)).collect::<Vec<_>>();
        self.events.summary(samples, &summary)
    }

    /// Records a picture for TensorBoard. `rgb` holds `height * width * 3` bytes, row by row.
    ///
    /// # Errors
    /// [`TrackerError::BadImage`], [`TrackerError::Io`].
    pub fn image(&mut self, samples: u64, tag: &str, width: u32, height: u32, rgb: &[u8]) -> Result<(), TrackerError> {
        let bad = |reason: String| TrackerError::BadImage { tag: tag.to_owned(), reason };
        let needed = u64::from(width) * u64::from(height) * 3;
        if needed != rgb.len() as u64 || needed == 0 {
            let length = rgb.len();
            return Err(bad(format!(
                "{width}x{height} RGB needs {needed} bytes (and at least one pixel), got {length}"
            )));
        }
        let mut png = Vec::new();
        image::codecs::png::PngEncoder::new(&mut png)
            .write_image(rgb, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|error| bad(format!("cannot encode as PNG: {error}")))?;
        self.events.summary(samples, &image_value(tag, width, height, &png))
    }

    /// Records a text (Markdown) for TensorBoard.
    ///
    /// # Errors
    /// [`TrackerError::Io`].
    pub fn text(&mut self, samples: u64, tag: &str, text: &str) -> Result<(), TrackerError> {
        self.events.summary(samples, &text_value(tag, text))
    }

    /// Forces everything recorded onto the disk, so that it survives a power cut too; call it before a checkpoint.
    ///
    /// # Errors
    /// [`TrackerError::Io`].
    pub fn sync(&mut self) -> Result<(), TrackerError> {
        self.metrics.sync_data().map_err(|source| io_error(&self.metrics_path, "synchronise it", source))?;
        let events = &self.events;
        events.file.sync_data().map_err(|source| io_error(&events.path, "synchronise it", source))
    }

    /// The path of `metrics.jsonl`.
    pub fn metrics_path(&self) -> &Path {
        &self.metrics_path
    }

    /// The path of this process's event file.
    pub fn events_path(&self) -> &Path {
        &self.events.path
    }
}

fn io_error(file: &Path, action: &'static str, source: io::Error) -> TrackerError {
    TrackerError::Io { file: file.to_owned(), action, source }
}

/// Drops the lines of later samples and a last line that was cut; returns the seconds of the last line kept.
fn rewind(path: &Path, samples: u64) -> Result<f64, TrackerError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0.0),
        Err(source) => return Err(io_error(path, "read it", source)),
    };
    let mut kept = Vec::with_capacity(text.len());
    let mut seconds = 0.0;
    let mut dropped = 0;
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let damaged = |reason: String| TrackerError::DamagedLine { file: path.to_owned(), line: index + 1, reason };
        if !line.ends_with(b"\n") {
            dropped += 1;
            continue;
        }
        let (at, line_seconds) = samples_and_seconds(line).map_err(damaged)?;
        if at > samples {
            dropped += 1;
            continue;
        }
        seconds = line_seconds;
        kept.extend_from_slice(line);
    }
    if dropped > 0 {
        tracing::info!("{}: dropped {dropped} lines of later than {samples} samples", path.display());
        durable::replace_file(path, |writer| writer.write_all(&kept))
            .map_err(|source| io_error(path, "shorten it", source))?;
    }
    Ok(seconds)
}

fn samples_and_seconds(line: &[u8]) -> Result<(u64, f64), String> {
    let object: serde_json::Value = serde_json::from_slice(line).map_err(|error| format!("not JSON ({error})"))?;
    let samples = object.get("samples").and_then(serde_json::Value::as_u64);
    let seconds = object.get("seconds").and_then(serde_json::Value::as_f64);
    samples.zip(seconds).ok_or_else(|| "`samples` or `seconds` is missing".to_owned())
}

fn metrics_line(samples: u64, seconds: f64, values: &[(&str, f64)]) -> Result<String, TrackerError> {
    let mut line = format!("{{\"samples\":{samples},\"seconds\":{seconds:.3}");
    for (index, (name, value)) in values.iter().enumerate() {
        let repeated = values[..index].iter().any(|(earlier, _)| earlier == name);
        if repeated || matches!(*name, "samples" | "seconds") {
            return Err(TrackerError::BadName { name: (*name).to_owned() });
        }
        line.push_str(&format!(",{}:{}", serde_json::Value::from(*name), json_number(*value)));
    }
    line.push_str("}\n");
    Ok(line)
}

fn json_number(value: f64) -> String {
    if value.is_nan() {
        return "\"NaN\"".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }.to_owned();
    }
    serde_json::Value::from(value).to_string()
}

fn has_events(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(EVENTS))
}

/// An append-only file of TFRecords, each one `tensorflow.Event`.
#[derive(Debug)]
struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Creates `events.out.tfevents.<seconds>.<host>.<n>` with the first free n, and writes the version event.
    fn create(folder: &Path) -> Result<Self, TrackerError> {
        let stem = format!("{EVENTS}{:010}.{}", unix_seconds() as u64, host_name());
        let mut n = 0;
        let (file, path) = loop {
            let path = folder.join(format!("{stem}.{n}"));
            match File::create_new(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => n += 1,
                Err(source) => return Err(io_error(&path, "create it", source)),
            }
        };
        let mut events = Self { file, path };
        let mut event = event(0);
        put_bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Tells TensorBoard to forget what earlier files say of `step` and later (a session log with status START).
    fn hide_earlier_from(&mut self, step: u64) -> Result<(), TrackerError> {
        let mut session_log = Vec::new();
        put_varint(&mut session_log, 1, 1);
        let mut event = event(step);
        put_bytes(&mut event, 7, &session_log);
        self.record(&event)
    }

    fn summary(&mut self, samples: u64, values: &[u8]) -> Result<(), TrackerError> {
        let mut event = event(samples);
        put_bytes(&mut event, 5, values);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<(), TrackerError> {
        self.file.write_all(&tf_record(data)).map_err(|source| io_error(&self.path, "write it", source))
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64()).unwrap_or_default()
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let name: String =
        name.chars().filter(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(*letter)).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// TFRecord framing: length, masked CRC of the length, data, masked CRC of the data; all little-endian.
fn tf_record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted: checksums of data that hold checksums are weak otherwise.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The start of an `Event`: wall time (field 1) and step (field 2).
fn event(step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    put_key(&mut event, 1, 1);
    event.extend_from_slice(&unix_seconds().to_le_bytes());
    put_varint(&mut event, 2, step);
    event
}

/// A `Summary.Value` with tag and simple_value, framed as the field of a `Summary`.
fn scalar_value(tag: &str, value: f32) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, 1, tag.as_bytes());
    put_key(&mut body, 2, 5);
    body.extend_from_slice(&value.to_le_bytes());
    framed(&body)
}

/// A `Summary.Value` with a `Summary.Image`: height, width, colour space (3 = RGB), encoded bytes.
fn image_value(tag: &str, width: u32, height: u32, png: &[u8]) -> Vec<u8> {
    let mut picture = Vec::new();
    put_varint(&mut picture, 1, u64::from(height));
    put_varint(&mut picture, 2, u64::from(width));
    put_varint(&mut picture, 3, 3);
    put_bytes(&mut picture, 4, png);
    let mut body = Vec::new();
    put_bytes(&mut body, 1, tag.as_bytes());
    put_bytes(&mut body, 4, &picture);
    framed(&body)
}

/// A `Summary.Value` for the text plugin: a string tensor (dtype 7) of shape [1] and the plugin's name as metadata.
fn text_value(tag: &str, text: &str) -> Vec<u8> {
    let (mut dimension, mut shape, mut tensor) = (Vec::new(), Vec::new(), Vec::new());
    put_varint(&mut dimension, 1, 1);
    put_bytes(&mut shape, 2, &dimension);
    put_varint(&mut tensor, 1, 7);
    put_bytes(&mut tensor, 2, &shape);
    put_bytes(&mut tensor, 8, text.as_bytes());
    let (mut plugin, mut metadata, mut body) = (Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut plugin, 1, b"text");
    put_bytes(&mut metadata, 1, &plugin);
    put_bytes(&mut body, 1, tag.as_bytes());
    put_bytes(&mut body, 8, &tensor);
    put_bytes(&mut body, 9, &metadata);
    framed(&body)
}

fn framed(value: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    put_bytes(&mut field, 1, value);
    field
}

/// A protobuf field's key: its number and wire type (0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes).
fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_raw_varint(out, field << 3 | wire_type);
}

fn put_varint(out: &mut Vec<u8>, field: u64, value: u64) {
    put_key(out, field, 0);
    put_raw_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_raw_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One decoded protobuf field.
    #[derive(Clone, Debug, PartialEq)]
    enum Field {
        Varint(u64),
        Eight([u8; 8]),
        Bytes(Vec<u8>),
        Four([u8; 4]),
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        unreachable!()
    }

    fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(length);
        *bytes = tail;
        head
    }

    fn decode(mut bytes: &[u8]) -> Vec<(u64, Field)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Varint(take_varint(&mut bytes)),
                1 => Field::Eight(take(&mut bytes, 8).try_into().unwrap()),
                2 => {
                    let length = take_varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, length).to_vec())
                }
                5 => Field::Four(take(&mut bytes, 4).try_into().unwrap()),
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, field));
        }
        fields
    }

    fn inner(fields: &[(u64, Field)], number: u64) -> Vec<u8> {
        match fields.iter().find(|(field, _)| *field == number) {
            Some((_, Field::Bytes(bytes))) => bytes.clone(),
            other => panic!("field {number} is {other:?}"),
        }
    }

    /// Bitwise CRC-32C, independent of the crate, with the mask's formula as TensorFlow writes it.
    #[allow(clippy::manual_rotate)]
    fn slow_masked_crc(data: &[u8]) -> u32 {
        let crc = !data.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
        });
        ((crc >> 15) | (crc << 17)).wrapping_add(0xa282_ead8)
    }

    fn read_events(path: &Path) -> Vec<Vec<(u64, Field)>> {
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = take(&mut rest, 8);
            assert_eq!(take(&mut rest, 4), slow_masked_crc(length).to_le_bytes());
            let data = take(&mut rest, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(take(&mut rest, 4), slow_masked_crc(data).to_le_bytes());
            events.push(decode(data));
        }
        events
    }

    /// The lines without their times.
    fn lines(folder: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(folder.join(METRICS)).unwrap();
        let parse = |line: &str| {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(value.as_object_mut().unwrap().remove("seconds").is_some());
            value
        };
        text.lines().map(parse).collect()
    }

    #[test]
    fn events_parse_back_with_right_checksums() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = Tracker::open(folder.path(), 0).unwrap();
        tracker.scalars(256, &[("train/loss", 0.25), ("lr", 1e-4)]).unwrap();
        tracker.image(300, "picture", 2, 1, &[255, 0, 0, 0, 0, 255]).unwrap();
        tracker.text(301, "recipe", "seed = 1").unwrap();
        tracker.sync().unwrap();
        let events = read_events(tracker.events_path());
        assert_eq!(events.len(), 4);
        assert_eq!(inner(&events[0], 3), b"brain.Event:2");
        assert!(matches!(events[1][0], (1, Field::Eight(time)) if f64::from_le_bytes(time) > 1.7e9));
        assert_eq!(events[1][1], (2, Field::Varint(256)));
        let values = decode(&inner(&events[1], 5));
        assert_eq!(values.len(), 2);
        let Field::Bytes(first) = &values[0].1 else { panic!() };
        let first = decode(first);
        assert_eq!(inner(&first, 1), b"train/loss");
        assert_eq!(first[1], (2, Field::Four(0.25f32.to_le_bytes())));
        let picture = decode(&inner(&decode(&inner(&decode(&inner(&events[2], 5)), 1)), 4));
        assert_eq!(picture[..3], [(1, Field::Varint(1)), (2, Field::Varint(2)), (3, Field::Varint(3))]);
        let decoded = image::load_from_memory(&inner(&picture, 4)).unwrap().to_rgb8();
        assert_eq!(decoded.into_raw(), [255, 0, 0, 0, 0, 255]);
        let text = decode(&inner(&decode(&inner(&events[3], 5)), 1));
        assert_eq!(inner(&decode(&inner(&text, 8)), 8), b"seed = 1");
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(b"brain.Event:2"), slow_masked_crc(b"brain.Event:2"));
    }

    #[test]
    fn an_interrupted_run_leaves_the_same_lines_as_an_uninterrupted_one() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = |folder: &Path, from: u64, to: u64| {
            let mut tracker = Tracker::open(folder, from).unwrap();
            for samples in (from + 1..=to).map(|step| step * 10) {
                tracker.scalars(samples, &[("loss", 1.0 / samples as f64), ("x", f64::NAN)]).unwrap();
            }
        };
        run(whole.path(), 0, 9);
        run(broken.path(), 0, 7);
        // The checkpoint was at 50 samples, and the kill cut the last line.
        let path = broken.path().join(METRICS);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"samples\":80,\"sec");
        fs::write(&path, bytes).unwrap();
        let mut tracker = Tracker::open(broken.path(), 50).unwrap();
        assert_eq!(lines(broken.path()).len(), 5);
        for samples in [60, 70, 80, 90] {
            tracker.scalars(samples, &[("loss", 1.0 / samples as f64), ("x", f64::NAN)]).unwrap();
        }
        assert_eq!(lines(whole.path()), lines(broken.path()));
        assert_eq!(lines(whole.path())[0]["x"], "NaN");
        let events = read_events(tracker.events_path());
        assert_eq!(events[1][1], (2, Field::Varint(51)));
        assert_eq!(inner(&events[1], 7), [8, 1]);
        Tracker::open(broken.path(), 0).unwrap();
        assert!(lines(broken.path()).is_empty());
    }

    #[test]
    fn seconds_go_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(METRICS), "{\"samples\":5,\"seconds\":100.5}\n").unwrap();
        let mut tracker = Tracker::open(folder.path(), 5).unwrap();
        tracker.scalars(6, &[]).unwrap();
        let text = fs::read_to_string(tracker.metrics_path()).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(last["seconds"].as_f64().unwrap() >= 100.5);
    }

    #[test]
    fn bad_input_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = Tracker::open(folder.path(), 0).unwrap();
        assert!(matches!(tracker.scalars(1, &[("seconds", 1.0)]), Err(TrackerError::BadName { .. })));
        assert!(matches!(tracker.scalars(1, &[("a", 1.0), ("a", 1.0)]), Err(TrackerError::BadName { .. })));
        let error = tracker.image(1, "t", 2, 2, &[0; 3]).unwrap_err().to_string();
        assert!(error.contains("image `t`: 2x2 RGB needs 12 bytes"), "{error}");
        assert!(lines(folder.path()).is_empty());
        fs::write(folder.path().join(METRICS), "{\"samples\":1,\"seconds\":0}\nhello\n").unwrap();
        let error = Tracker::open(folder.path(), 5).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl line 2: not JSON"), "{error}");
    }
}
