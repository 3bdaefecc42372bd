//! The log of answers shortened to what a tree may hold, with the hash of the whole.

use super::rounds::LARGEST_ACCURACY_LOG;
use super::{ACCURACY, ACCURACY_LOG};
use calotype_core::durable;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes that are kept of the beginning, and of the end.
const KEPT: u64 = 4096;
/// What a line with a hash begins with.
pub(crate) const HASH: &str = "hash=";

/// Why a log is not shortened.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}: {source}; check the path, the permissions and the free space", file.display())]
pub struct TruncateError {
    /// The file.
    pub file: PathBuf,
    /// What was being done.
    pub action: &'static str,
    /// The system's reason.
    pub source: io::Error,
}

/// Appends the SHA-256 of a log of answers to accuracy.txt and copies the log, shortened to its first and last 4096 bytes, as
/// `truncate_accuracy_log.py` of mlcommons/inference does; a log of fewer bytes stays whole. `from` holds the log and accuracy.txt
/// (which an audit test may lack), `to` gets both. An accuracy.txt that has a hash of a log that is short already stays as it is.
///
/// # Errors
/// [`TruncateError`], which names the file.
pub fn truncate(from: &Path, to: &Path) -> Result<(), TruncateError> {
    let failed = |file: &Path, action: &'static str| {
        let file = file.to_owned();
        move |source| TruncateError { file, action, source }
    };
    let (log, figures) = (from.join(ACCURACY_LOG), from.join(ACCURACY));
    let figures_text = match fs::read_to_string(&figures) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(failed(&figures, "read it"))?,
    };
    let (hash, size, short) = shortened(&log).map_err(failed(&log, "read it"))?;
    let is_done = size < LARGEST_ACCURACY_LOG && figures_text.lines().any(|line| line.starts_with(HASH));
    let figures_text = if is_done { figures_text } else { format!("{figures_text}\n{HASH}{hash}\n") };
    for (name, bytes) in [(ACCURACY_LOG, short.as_slice()), (ACCURACY, figures_text.as_bytes())] {
        let path = to.join(name);
        durable::write_bytes(&path, bytes).map_err(failed(&path, "write it"))?;
    }
    Ok(())
}

/// The hash and the size of a file, and what is kept of it; never more than a block of it is in memory.
fn shortened(path: &Path) -> io::Result<(String, u64, Vec<u8>)> {
    let mut file = File::open(path)?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut block = [0; 1 << 16];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            break;
        }
        hash.update(&block[..read]);
        size += read as u64;
    }
    let mut part = |start: u64, length: u64| {
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        (&mut file).take(length).read_to_end(&mut bytes).map(|_| bytes)
    };
    let kept = match size < KEPT {
        true => part(0, size)?,
        false => [part(0, KEPT)?, b"\n\n...\n\n".to_vec(), part(size - KEPT, KEPT)?].concat(),
    };
    let digits = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((digits, size, kept))
}
