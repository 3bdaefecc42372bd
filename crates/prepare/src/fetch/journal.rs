//! The known content of a folder of fetched files, so that a second run does not read it all again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::{Error, Result};

const NAME: &str = ".fetched.jsonl";

/// A file as it was when it was verified.
#[derive(Debug, Serialize, Deserialize)]
struct Fetched {
    name: String,
    origin: String,
    bytes: u64,
    /// Time of its last change, in nanoseconds since 1970.
    modified: u64,
    digests: Vec<String>,
}

/// The journal of a folder: one JSON object a line, appended as files become complete; the last one of a file counts.
pub(super) struct Journal {
    file: File,
    path: std::path::PathBuf,
    known: HashMap<String, Fetched>,
}

impl Journal {
    /// Reads the journal of `folder`. Lines that a kill cut short tell nothing, and are passed by.
    ///
    /// # Errors
    /// [`Error::Io`] if the journal cannot be read or opened for writing.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Fetched>(line).ok());
        let known = lines.map(|fetched| (fetched.name.clone(), fetched)).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(Error::io("write", &path))?;
        }
        Ok(Journal { file, path, known })
    }

    /// True if the file at `path` is unchanged since it was recorded with these checksums.
    pub fn holds(&self, name: &str, origin: &str, path: &Path, digests: &[Digest]) -> bool {
        let Some((fetched, (bytes, modified))) = self.known.get(name).zip(state(path)) else { return false };
        let proven = |digest: &Digest| fetched.digests.contains(&digest.to_string());
        let same = fetched.bytes == bytes && fetched.modified == modified;
        // Where checksums are known, it does not matter which server sent the file.
        same && digests.iter().all(proven) && (!digests.is_empty() || fetched.origin == origin)
    }

    /// Records that the file at `path` has these checksums.
    ///
    /// # Errors
    /// [`Error::Io`] if the journal cannot be written.
    pub fn add(&mut self, name: &str, origin: &str, path: &Path, digests: &[Digest]) -> Result<()> {
        let Some((bytes, modified)) = state(path) else { return Ok(()) };
        let digests = digests.iter().map(Digest::to_string).collect();
        let fetched = Fetched { name: name.to_owned(), origin: origin.to_owned(), bytes, modified, digests };
        let mut line = serde_json::to_vec(&fetched).map_err(|error| Error::Usage(error.to_string()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io("write", &self.path))?;
        self.known.insert(name.to_owned(), fetched);
        Ok(())
    }
}

fn state(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    let modified = file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((file.len(), u64::try_from(modified.as_nanos()).ok()?))
}
