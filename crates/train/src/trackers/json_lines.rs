//! `metrics.jsonl`: one JSON object a line with `samples`, `seconds` (wall time of the run, summed over restarts) and the
//! named numbers. NaN and infinity, which JSON lacks, are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`.

use super::{Event, Tracker, TrackerError, check_names, io_error, named_results};
use calotype_core::durable;
use calotype_core::system::counted;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Name of the file.
pub const METRICS: &str = "metrics.jsonl";

/// Writes numbers to `metrics.jsonl`.
#[derive(Debug)]
pub struct JsonLines {
    file: File,
    path: PathBuf,
    started: Instant,
    /// Seconds that the run took before this process.
    seconds_before: f64,
}

impl JsonLines {
    /// Opens the lines of a run in `folder`. Those of more than `samples` samples are dropped.
    ///
    /// # Errors
    /// [`TrackerError::Io`], [`TrackerError::DamagedLine`].
    pub fn open(folder: &Path, samples: u64) -> Result<Self, TrackerError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, "create this folder", source))?;
        let path = folder.join(METRICS);
        let seconds_before = rewind(&path, samples)?;
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        let file = opened.map_err(|source| io_error(&path, "open it", source))?;
        Ok(Self { file, path, started: Instant::now(), seconds_before })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn line(&mut self, samples: u64, values: &[(&str, f64)]) -> Result<(), TrackerError> {
        let seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        let line = metrics_line(samples, seconds, values)?;
        // One write call for the whole line: a kill leaves it complete or recognisably cut.
        self.file.write_all(line.as_bytes()).map_err(|source| io_error(&self.path, "write it", source))
    }
}

impl Tracker for JsonLines {
    fn event(&mut self, event: &Event<'_>) -> Result<(), TrackerError> {
        match *event {
            Event::Scalars { samples, values } => self.line(samples, values),
            Event::Evaluation { samples, name, values } => {
                let values = named_results(name, values);
                let values: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                self.line(samples, &values)
            }
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), TrackerError> {
        self.file.sync_data().map_err(|source| io_error(&self.path, "synchronise it", source))
    }
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
    let (mut dropped, mut cut) = (0, false);
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let damaged = |reason: String| TrackerError::DamagedLine { file: path.to_owned(), line: index + 1, reason };
        if !line.ends_with(b"\n") {
            cut = true;
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
        tracing::info!(
            "{}: dropped {} of later than {samples} samples",
            path.display(),
            counted(dropped as u64, "line")
        );
    }
    if cut {
        tracing::info!("{}: dropped the last line, which was cut when the process ended", path.display());
    }
    if dropped > 0 || cut {
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
    check_names(values, &["samples", "seconds"])?;
    let mut line = format!("{{\"samples\":{samples},\"seconds\":{seconds:.3}");
    for (name, value) in values {
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

#[cfg(test)]
mod tests {
    use super::*;

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

    fn scalars(tracker: &mut JsonLines, samples: u64, values: &[(&str, f64)]) -> Result<(), TrackerError> {
        tracker.event(&Event::Scalars { samples, values })
    }

    #[test]
    fn an_interrupted_run_leaves_the_same_lines_as_an_uninterrupted_one() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = |folder: &Path, from: u64, to: u64| {
            let mut tracker = JsonLines::open(folder, from).unwrap();
            for samples in (from + 1..=to).map(|step| step * 10) {
                scalars(&mut tracker, samples, &[("loss", 1.0 / samples as f64), ("x", f64::NAN)]).unwrap();
            }
        };
        run(whole.path(), 0, 9);
        run(broken.path(), 0, 7);
        // The checkpoint was at 50 samples, and the kill cut the last line.
        let path = broken.path().join(METRICS);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"samples\":80,\"sec");
        fs::write(&path, bytes).unwrap();
        let mut tracker = JsonLines::open(broken.path(), 50).unwrap();
        assert_eq!(lines(broken.path()).len(), 5);
        for samples in [60, 70, 80, 90] {
            scalars(&mut tracker, samples, &[("loss", 1.0 / samples as f64), ("x", f64::NAN)]).unwrap();
        }
        assert_eq!(lines(whole.path()), lines(broken.path()));
        assert_eq!(lines(whole.path())[0]["x"], "NaN");
        JsonLines::open(broken.path(), 0).unwrap();
        assert!(lines(broken.path()).is_empty());
    }

    #[test]
    fn seconds_go_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(METRICS), "{\"samples\":5,\"seconds\":100.5}\n").unwrap();
        let mut tracker = JsonLines::open(folder.path(), 5).unwrap();
        scalars(&mut tracker, 6, &[]).unwrap();
        let text = fs::read_to_string(tracker.path()).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(last["seconds"].as_f64().unwrap() >= 100.5);
    }

    #[test]
    fn bad_input_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = JsonLines::open(folder.path(), 0).unwrap();
        assert!(matches!(scalars(&mut tracker, 1, &[("seconds", 1.0)]), Err(TrackerError::BadName { .. })));
        assert!(matches!(scalars(&mut tracker, 1, &[("a", 1.0), ("a", 1.0)]), Err(TrackerError::BadName { .. })));
        assert!(lines(folder.path()).is_empty());
        fs::write(folder.path().join(METRICS), "{\"samples\":1,\"seconds\":0}\nhello\n").unwrap();
        let error = JsonLines::open(folder.path(), 5).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl line 2: not JSON"), "{error}");
    }
}
