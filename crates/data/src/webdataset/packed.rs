//! Shards that are compressed as a whole.
//!
//! Samples of a shard are read in any order, which a gzip stream does not allow. So a shard that is compressed by gzip,
//! whatever its name says (SA-1B's `sa_000000.tar` are), is unpacked when it is opened, as a stream, into a file without a
//! name in the system's folder for such files (`TMPDIR`); the room is free again when the shard is closed.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;
use memmap2::Mmap;

use super::mapped::map_open;
use crate::{Error, Result};

/// Bytes that are unpacked at a time.
const PIECE: usize = 1 << 20;

/// First bytes of a gzip stream (RFC 1952).
const GZIP: &[u8] = b"\x1f\x8b";

/// First bytes of other compressed files, with what they are and how they are unpacked.
const OTHERS: [(&[u8], &str, &str); 5] = [
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
    (b"\xfd7zXZ\0", "xz", "xz -d"),
    (b"BZh", "bzip2", "bzip2 -d"),
    (b"PK\x03\x04", "zip", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x"),
];

/// Endings of the names of tars in such compressions, with their names and commands.
const OTHER_ENDINGS: [(&str, &str, &str); 7] = [
    (".tar.zst", "zstd", "zstd -d"),
    (".tzst", "zstd", "zstd -d"),
    (".tar.xz", "xz", "xz -d"),
    (".txz", "xz", "xz -d"),
    (".tar.bz2", "bzip2", "bzip2 -d"),
    (".tbz2", "bzip2", "bzip2 -d"),
    (".tar.lz4", "lz4", "lz4 -d"),
];

/// Refuses a folder with a tar whose name says that it is compressed in a way that is not read: for a folder that holds
/// nothing else.
///
/// # Errors
/// [`Error::Compressed`]; [`Error::Io`] if the folder cannot be read.
pub fn refuse_packed(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if let Some((_, kind, command)) = OTHER_ENDINGS.iter().find(|(ending, ..)| name.ends_with(ending)) {
            return Err(unread(&path, kind, command));
        }
    }
    Ok(())
}

fn unread(path: &Path, kind: &str, command: &str) -> Error {
    let detail = format!("is compressed by {kind}, which is not read in place (gzip is); unpack it: {command}");
    Error::Compressed { path: path.to_path_buf(), detail }
}

/// True for names of tar shards: `*.tar`, and `*.tar.gz` and `*.tgz`, which are unpacked when they are read.
pub fn is_shard_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.starts_with('.') && [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending))
}

/// True if a file begins as a gzip stream does.
pub(crate) fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(GZIP)
}

/// [`is_gzip`] of a file; false if it cannot be read, which whoever opens it will say.
pub(crate) fn is_gzip_file(path: &Path) -> bool {
    let mut head = [0; GZIP.len()];
    calotype_core::open_input(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok()) && is_gzip(&head)
}

/// The first `bytes` bytes inside of a gzip stream, as far as there are any.
pub(crate) fn peek(head: impl Read, bytes: u64) -> Vec<u8> {
    let mut inside = Vec::new();
    // What could be unpacked in front of damage is enough for a look.
    let _ = GzDecoder::new(BufReader::new(head)).take(bytes).read_to_end(&mut inside);
    inside
}

/// The content of a shard's file; `path` is for messages.
#[derive(Debug)]
pub(crate) struct Content {
    file: Mmap,
    unpacked: Option<Mmap>,
    /// The fault that ended the unpacking, if any: what came before it is there.
    pub damage: Option<Error>,
}

impl Content {
    /// Unpacks a mapped file if it is compressed.
    ///
    /// # Errors
    /// [`Error::Compressed`] for a compression that is not read; [`Error::Io`] if there is no room.
    pub fn new(path: &Path, file: Mmap) -> Result<Self> {
        if !is_gzip(&file) {
            refuse_others(path, &file)?;
            return Ok(Content { file, unpacked: None, damage: None });
        }
        tracing::info!(shard = %path.display(), "compressed by gzip: unpacking");
        let (place, mut out) = unnamed_file()?;
        let damage = unpack(&file, &mut |bytes| out.write_all(bytes)).map_err(|e| unwritable(path, &place, &e))?;
        let damage = damage.map(|detail| Error::Compressed { path: path.to_path_buf(), detail });
        let unpacked = map_open(path, &out)?;
        refuse_doubly_packed(path, &unpacked)?;
        Ok(Content { file, unpacked: Some(unpacked), damage })
    }

    /// The tar.
    pub fn tar(&self) -> &[u8] {
        self.unpacked.as_deref().unwrap_or(&self.file)
    }

    /// The file as it is.
    pub fn file(&self) -> &[u8] {
        &self.file
    }

    /// True if the tar is a copy that takes room of its own.
    pub fn is_unpacked(&self) -> bool {
        self.unpacked.is_some()
    }
}

/// Refuses compressions that are not read.
pub(crate) fn refuse_others(path: &Path, head: &[u8]) -> Result<()> {
    match OTHERS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        Some((_, kind, command)) => Err(unread(path, kind, command)),
        None => Ok(()),
    }
}

/// Refuses what is compressed once more inside of gzip.
fn refuse_doubly_packed(path: &Path, inside: &[u8]) -> Result<()> {
    let kind = match OTHERS.iter().find(|(magic, ..)| inside.starts_with(magic)) {
        _ if is_gzip(inside) => "gzip once more",
        Some((_, kind, _)) => *kind,
        None => return Ok(()),
    };
    let detail =
        format!("holds, inside of gzip, a file that is compressed by {kind}; unpack it, and pack it once at most");
    Err(Error::Compressed { path: path.to_path_buf(), detail })
}

/// Hands the content of a gzip file, which may be of several streams, to `out` piece by piece. Returns its fault in words,
/// if it has one; zeros behind the last stream, which tapes leave, are none.
fn unpack(file: &[u8], out: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Option<String>> {
    let mut rest = file;
    let mut piece = vec![0; PIECE];
    while !rest.iter().all(|byte| *byte == 0) {
        if !is_gzip(rest) {
            let detail = format!("{} bytes behind its gzip stream are none", rest.len());
            return Ok(Some(format!("{detail}; the file is damaged: copy it again from its source")));
        }
        let mut decoder = GzDecoder::new(rest);
        loop {
            let count = match decoder.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    let detail = format!("its gzip stream is cut or damaged ({error})");
                    return Ok(Some(format!("{detail}; copy it again from its source")));
                }
            };
            out(&piece[..count])?;
        }
        rest = decoder.into_inner();
    }
    Ok(None)
}

/// A file that has no name any more, with the folder that it lies in.
fn unnamed_file() -> Result<(PathBuf, File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let folder = std::env::temp_dir();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("calotype-shard-{}-{number}", std::process::id()));
    // What another process of this number left is not touched: it may be a link to something.
    let file =
        File::options().read(true).write(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    Ok((folder, file))
}

fn unwritable(path: &Path, place: &Path, error: &io::Error) -> Error {
    let detail = format!(
        "cannot be unpacked into {}: {error}; name a folder with more room by TMPDIR, or unpack the shards: gunzip",
        place.display()
    );
    Error::Compressed { path: path.to_path_buf(), detail }
}

/// All that a gzip file of one or several streams holds, if it is not more than `most` bytes.
///
/// # Errors
/// The fault, in words.
pub fn unpack_all(file: &[u8], most: usize) -> std::result::Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let mut take = |bytes: &[u8]| match content.len() + bytes.len() > most {
        true => Err(io::Error::other(format!("more than {most} bytes"))),
        false => {
            content.extend_from_slice(bytes);
            Ok(())
        }
    };
    match unpack(file, &mut take) {
        Ok(None) => Ok(content),
        Ok(Some(fault)) => Err(fault),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn streams_are_joined_and_faults_named() {
        let all = |file: &[u8]| unpack_all(file, 1 << 20);
        let (one, two) = (gzip(b"one "), gzip(b"two"));
        assert_eq!(all(&[&one[..], &two[..]].concat()).unwrap(), b"one two");
        assert_eq!(all(&[&one[..], &[0; 9]].concat()).unwrap(), b"one ");
        let mut flipped = one.clone();
        flipped[12] ^= 1;
        let mut checksum = one.clone();
        let end = checksum.len() - 5;
        checksum[end] ^= 1;
        for (file, part) in [
            (&one[..one.len() - 1], "cut or damaged"),
            (&one[..11], "cut or damaged"),
            (&one[..4], "cut or damaged"),
            (&flipped[..], "cut or damaged"),
            (&checksum[..], "cut or damaged"),
            (&[&one[..], b"junk"].concat()[..], "4 bytes behind its gzip stream"),
        ] {
            let error = all(file).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
