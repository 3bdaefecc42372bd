//! TensorBoard event files: TFRecords of `tensorflow.Event` messages, encoded here by hand: the format is small and stable
//! (<https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto>).

use super::{Event, Tracker, TrackerError, check_names, io_error, named_results};
use image::ImageEncoder;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const EVENTS: &str = "events.out.tfevents.";

/// Writes numbers, images and texts for TensorBoard.
#[derive(Debug)]
pub struct TensorBoard {
    events: EventFile,
}

impl TensorBoard {
    /// Begins an event file in the folder of a run. What earlier files say of more than `samples` samples is hidden, at the beginning of
    /// a run all that they say: they are of one that has saved nothing, maybe of another recipe.
    ///
    /// # Errors
    /// [`TrackerError::Io`].
    pub fn open(folder: &Path, samples: u64) -> Result<Self, TrackerError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, "create this folder", source))?;
        let resumes = has_events(folder);
        let mut events = EventFile::create(folder)?;
        if resumes {
            events.hide_earlier_from(if samples == 0 { 0 } else { samples.saturating_add(1) })?;
        }
        Ok(Self { events })
    }

    /// The path of this process's event file.
    pub fn path(&self) -> &Path {
        &self.events.path
    }

    fn scalars<'v>(&mut self, samples: u64, values: impl Iterator<Item = (&'v str, f64)>) -> Result<(), TrackerError> {
        let summary: Vec<u8> = values.flat_map(|(name, value)| scalar_value(name, value as f32)).collect();
        self.events.summary(samples, &summary)
    }
}

impl Tracker for TensorBoard {
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
        match *event {
            Event::Scalars { samples, values } => {
                check_names(values, &[])?;
                self.scalars(samples, values.iter().copied())
            }
            Event::Evaluation { samples, name, values } => {
                check_names(values, &[])?;
                let values = named_results(name, values);
                self.scalars(samples, values.iter().map(|(name, value)| (name.as_str(), *value)))
            }
            Event::Image { samples, tag, width, height, rgb } => {
                let png = png(tag, width, height, rgb)?;
                self.events.summary(samples, &image_value(tag, width, height, &png))
            }
            Event::Text { samples, tag, text } => self.events.summary(samples, &text_value(tag, text)),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), TrackerError> {
        let events = &self.events;
        events.file.sync_data().map_err(|source| io_error(&events.path, "synchronise it", source))
    }
}

/// Pixels as a PNG file.
pub(super) fn png(tag: &str, width: u32, height: u32, rgb: &[u8]) -> Result<Vec<u8>, TrackerError> {
    let bad = |reason: String| TrackerError::BadImage { tag: tag.to_owned(), reason };
    let needed = u64::from(width) * u64::from(height) * 3;
    if needed != rgb.len() as u64 || needed == 0 {
        let length = rgb.len();
        return Err(bad(format!("{width}x{height} RGB needs {needed} bytes (and at least one pixel), got {length}")));
    }
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(rgb, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|error| bad(format!("cannot encode as PNG: {error}")))?;
    Ok(png)
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

pub(super) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64()).unwrap_or_default()
}

pub(super) fn host_name() -> String {
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
    let mut message = Vec::new();
    put_varint(&mut message, 1, u64::from(height));
    put_varint(&mut message, 2, u64::from(width));
    put_varint(&mut message, 3, 3);
    put_bytes(&mut message, 4, png);
    let mut body = Vec::new();
    put_bytes(&mut body, 1, tag.as_bytes());
    put_bytes(&mut body, 4, &message);
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

    #[test]
    fn events_parse_back_with_right_checksums() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = TensorBoard::open(folder.path(), 0).unwrap();
        let rgb = &[255, 0, 0, 0, 0, 255];
        for event in [
            Event::Scalars { samples: 256, values: &[("train/loss", 0.25), ("lr", 1e-4)] },
            Event::Image { samples: 300, tag: "image", width: 2, height: 1, rgb },
            Event::Text { samples: 301, tag: "recipe", text: "seed = 1" },
        ] {
            tracker.event(&event).unwrap();
        }
        tracker.sync().unwrap();
        let events = read_events(tracker.path());
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
        let message = decode(&inner(&decode(&inner(&decode(&inner(&events[2], 5)), 1)), 4));
        assert_eq!(message[..3], [(1, Field::Varint(1)), (2, Field::Varint(2)), (3, Field::Varint(3))]);
        let decoded = image::load_from_memory(&inner(&message, 4)).unwrap().to_rgb8();
        assert_eq!(decoded.into_raw(), [255, 0, 0, 0, 0, 255]);
        let text = decode(&inner(&decode(&inner(&events[3], 5)), 1));
        assert_eq!(inner(&decode(&inner(&text, 8)), 8), b"seed = 1");
    }

    #[test]
    fn later_events_of_an_interrupted_run_are_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let fresh = TensorBoard::open(folder.path(), 0).unwrap();
        assert_eq!(read_events(fresh.path()).len(), 1);
        let resumed = TensorBoard::open(folder.path(), 50).unwrap();
        let events = read_events(resumed.path());
        assert_eq!(events[1][1], (2, Field::Varint(51)));
        assert_eq!(inner(&events[1], 7), [8, 1]);
        // A run that begins where another one has saved nothing keeps nothing of it, of its first event either.
        let begun = TensorBoard::open(folder.path(), 0).unwrap();
        let events = read_events(begun.path());
        assert_eq!(events[1][1], (2, Field::Varint(0)));
        assert_eq!(inner(&events[1], 7), [8, 1]);
    }

    #[test]
    fn evaluations_are_scalars_under_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = TensorBoard::open(folder.path(), 0).unwrap();
        tracker.event(&Event::Evaluation { samples: 8, name: "validation", values: &[("loss", 0.5)] }).unwrap();
        let events = read_events(tracker.path());
        assert_eq!(inner(&decode(&inner(&decode(&inner(&events[1], 5)), 1)), 1), b"validation/loss");
    }

    #[test]
    fn pixels_that_make_no_image_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = TensorBoard::open(folder.path(), 0).unwrap();
        let event = Event::Image { samples: 1, tag: "t", width: 2, height: 2, rgb: &[0; 3] };
        let error = tracker.event(&event).unwrap_err().to_string();
        assert!(error.contains("image `t`: 2x2 RGB needs 12 bytes"), "{error}");
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(b"brain.Event:2"), slow_masked_crc(b"brain.Event:2"));
    }
}
