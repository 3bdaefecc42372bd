//! One shard, written whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::header::{BLOCK, header, header_len};
use super::index::ShardRecord;
use crate::files::{partial_name, publish};
use crate::{Error, Result, Sample};

/// Bytes at the end of every shard.
pub const END_BYTES: u64 = 2 * BLOCK as u64;

/// A shard in the making, under a temporary name until [`ShardFile::finish`]; one that is dropped before leaves nothing.
///
/// The bytes are a function of the samples alone: headers carry no time, user or machine. Whether keys repeat is the
/// caller's to check.
pub struct ShardFile {
    path: PathBuf,
    /// None once finished.
    out: Option<BufWriter<HashingFile>>,
    samples: usize,
    bytes: u64,
}

/// A file that knows the checksum of what was written to it.
struct HashingFile {
    file: File,
    hasher: blake3::Hasher,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl ShardFile {
    /// Begins the shard that will be `path`, in a folder that is there.
    ///
    /// # Errors
    /// [`Error::Io`] if the temporary file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let partial = partial_name(path);
        let file = File::create(&partial).map_err(Error::io("create", &partial))?;
        let file = HashingFile { file, hasher: blake3::Hasher::new() };
        let out = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(ShardFile { path: path.to_path_buf(), out, samples: 0, bytes: 0 })
    }

    /// Samples so far.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Length so far, in bytes, without the two blocks that end a tar.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a key or extension that would not be read back as it is, [`Error::MissingPart`] for
    /// a sample without parts (the shard is unchanged by both), [`Error::Io`].
    pub fn write(&mut self, sample: &Sample) -> Result<()> {
        let headers = headers(sample)?;
        if let Some(out) = &mut self.out {
            append(out, sample, &headers).map_err(Error::io("write", &self.path))?;
        }
        self.samples += 1;
        self.bytes += tar_size(sample);
        Ok(())
    }

    /// Flushes the shard and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written or renamed.
    pub fn finish(mut self) -> Result<ShardRecord> {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = self.bytes + END_BYTES;
        let mut record = ShardRecord { file, samples: self.samples, bytes, blake3: None };
        if let Some(mut out) = self.out.take() {
            // Two zero blocks end a tar (POSIX.1-1988).
            out.write_all(&[0; 2 * BLOCK]).map_err(Error::io("write", &self.path))?;
            let HashingFile { file, hasher } =
                out.into_inner().map_err(|e| Error::io("write", &self.path)(e.into_error()))?;
            publish(file, &self.path)?;
            record.blake3 = Some(hasher.finalize().to_hex().to_string());
        }
        Ok(record)
    }
}

impl Drop for ShardFile {
    fn drop(&mut self) {
        // A shard that was not finished is of no use to anyone; failing to remove it harms nobody.
        if self.out.take().is_some() {
            let _ = fs::remove_file(partial_name(&self.path));
        }
    }
}

/// Writes the shard `path` from `samples`, atomically; the caller writes the index and sees to it that keys are unique.
/// Without samples there is no file.
///
/// # Errors
/// Those of `samples` and of [`ShardFile`].
pub fn write_shard(path: &Path, samples: impl IntoIterator<Item = Result<Sample>>) -> Result<Option<ShardRecord>> {
    let mut open: Option<ShardFile> = None;
    for sample in samples {
        let sample = sample?;
        match &mut open {
            Some(shard) => shard.write(&sample)?,
            None => open.insert(ShardFile::create(path)?).write(&sample)?,
        }
    }
    open.map(ShardFile::finish).transpose()
}

/// Bytes that a sample takes in a shard; [`END_BYTES`] come once per shard.
///
/// # Errors
/// Those of [`ShardFile::write`] for a sample that cannot be written.
pub fn size_in_shard(sample: &Sample) -> Result<u64> {
    headers(sample)?;
    Ok(tar_size(sample))
}

/// Bytes that a sample takes in a tar.
pub(super) fn tar_size(sample: &Sample) -> u64 {
    let member = |(part, bytes): (&String, &Vec<u8>)| {
        (header_len(&sample.key, part) + bytes.len().next_multiple_of(BLOCK)) as u64
    };
    sample.parts.iter().map(member).sum()
}

fn append(out: &mut impl Write, sample: &Sample, headers: &[Vec<u8>]) -> io::Result<()> {
    for (header, bytes) in headers.iter().zip(sample.parts.values()) {
        out.write_all(header)?;
        out.write_all(bytes)?;
        out.write_all(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])?;
    }
    Ok(())
}

/// The headers of a sample's members, all checked before anything is written.
pub(super) fn headers(sample: &Sample) -> Result<Vec<Vec<u8>>> {
    if sample.parts.is_empty() {
        let key = sample.key.clone();
        return Err(Error::MissingPart { key, part: "(any)".to_owned(), present: "no parts".to_owned() });
    }
    sample.parts.iter().map(|(extension, bytes)| header(&sample.key, extension, bytes.len() as u64)).collect()
}
