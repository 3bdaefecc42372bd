//! Finding the samples of one tar shard.

use std::collections::HashMap;
use std::io::{Cursor, ErrorKind};
use std::ops::Range;
use std::path::Path;

use tar::{Archive, Entry, EntryType};

use crate::error::printable;
use crate::files::is_lfs_pointer;
use crate::{Error, Result};

const BLOCK: u64 = 512;

/// A sample's key, and its parts' extensions and byte ranges.
#[derive(Debug)]
pub(super) struct ScannedSample {
    pub key: String,
    pub parts: Vec<(String, Range<usize>)>,
}

/// The samples of a shard, in order.
#[derive(Debug)]
pub(super) struct ScannedShard {
    pub samples: Vec<ScannedSample>,
    /// Members that are no part of a sample.
    pub passed_by: usize,
}

/// Reads the headers of the shard `bytes`; `path` is for messages.
pub(super) fn scan_shard(path: &Path, bytes: &[u8]) -> Result<ScannedShard> {
    let mut shard = ScannedShard { samples: Vec::new(), passed_by: 0 };
    let mut seen: HashMap<String, usize> = HashMap::new();
    walk(path, bytes, |name, range| match name {
        Some((key, extension)) => add_part(path, &mut shard.samples, &mut seen, key, extension, range),
        None => {
            shard.passed_by += 1;
            Ok(())
        }
    })?;
    if shard.passed_by > 0 && crate::told::first_time(path, "passed by") {
        tracing::warn!(shard = %path.display(), members = shard.passed_by, "members that are no part of a sample passed by");
    }
    Ok(shard)
}

/// Goes through the members of the shard `bytes` up to its end or its first fault: for each, the key and extension, if
/// it is a part of a sample, and where its data lie. `path` is for messages.
pub(super) fn walk(
    path: &Path,
    bytes: &[u8],
    mut member: impl FnMut(Option<(String, String)>, Range<usize>) -> Result<()>,
) -> Result<()> {
    let mut end = 0u64;
    let mut archive = Archive::new(Cursor::new(bytes));
    let entries = archive.entries_with_seek().map_err(|e| header_error(path, bytes, 0, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| header_error(path, bytes, end, &e))?;
        let range = data_range(path, bytes, &entry)?;
        end = (range.end as u64).next_multiple_of(BLOCK);
        member(member_name(path, &entry)?, range)?;
    }
    check_end_marker(path, bytes, end)
}

/// Adds a part to the last sample if the key is the same, else begins a sample. A sample comes again in whole as a
/// duplicate; a part that an earlier sample of its key lacks was torn away from it.
fn add_part(
    path: &Path,
    samples: &mut Vec<ScannedSample>,
    seen: &mut HashMap<String, usize>,
    key: String,
    extension: String,
    range: Range<usize>,
) -> Result<()> {
    let duplicate = |key: String| Error::DuplicateKey { key, first: path.to_path_buf(), second: path.to_path_buf() };
    match samples.last_mut() {
        Some(last) if last.key == key => {
            if last.parts.iter().any(|(name, _)| *name == extension) {
                return Err(duplicate(format!("{key}.{extension}")));
            }
            last.parts.push((extension, range));
        }
        _ => {
            if let Some(earlier) = seen.insert(key.clone(), samples.len()) {
                let is_torn = samples[earlier].parts.iter().all(|(name, _)| *name != extension);
                let path = path.to_path_buf();
                return Err(match is_torn {
                    true => Error::Scattered { path, member: printable(&format!("{key}.{extension}")) },
                    false => duplicate(key),
                });
            }
            samples.push(ScannedSample { key, parts: vec![(extension, range)] });
        }
    }
    Ok(())
}

/// Range of the member's data in the file; an error if the file ends before.
fn data_range<R: std::io::Read>(path: &Path, bytes: &[u8], entry: &Entry<'_, R>) -> Result<Range<usize>> {
    let (header, start) = (entry.raw_header_position(), entry.raw_file_position());
    let bad = |detail: &str| Error::BadHeader { path: path.to_path_buf(), offset: header, detail: detail.to_owned() };
    if entry.header().entry_type() == EntryType::GNUSparse {
        return Err(bad("sparse members are not supported"));
    }
    let end = start.checked_add(entry.size()).ok_or_else(|| bad("member size overflows"))?;
    if end > bytes.len() as u64 {
        return Err(Error::TruncatedTar {
            path: path.to_path_buf(),
            offset: header,
            needed: end,
            size: bytes.len() as u64,
        });
    }
    Ok(start as usize..end as usize)
}

/// Key and extension of a member; `None` if it belongs to no sample.
fn member_name<R: std::io::Read>(path: &Path, entry: &Entry<'_, R>) -> Result<Option<(String, String)>> {
    if !matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous) {
        return Ok(None);
    }
    let name = entry.path_bytes();
    let Ok(name) = std::str::from_utf8(&name) else {
        let detail = format!("member name `{}` is not UTF-8", printable(&String::from_utf8_lossy(&name)));
        return Err(Error::BadHeader { path: path.to_path_buf(), offset: entry.raw_header_position(), detail });
    };
    Ok(split_name(name))
}

/// Splits a member's path into key and extension, as `webdataset.tariterators.base_plus_ext` does.
pub(super) fn split_name(name: &str) -> Option<(String, String)> {
    if !name.contains('/') && name.starts_with("__") && name.ends_with("__") {
        return None;
    }
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.')?;
    if dot == file {
        return None;
    }
    Some((name[..dot].to_owned(), name[dot + 1..].to_lowercase()))
}

/// A tar ends with zero blocks; one that ends without them was cut exactly between two members.
fn check_end_marker(path: &Path, bytes: &[u8], end: u64) -> Result<()> {
    let needed = end + BLOCK;
    if (bytes.len() as u64) < needed {
        return Err(Error::TruncatedTar { path: path.to_path_buf(), offset: end, needed, size: bytes.len() as u64 });
    }
    Ok(())
}

/// Tells a header cut by the file's end from one that is damaged. `offset` is the end of the member before.
fn header_error(path: &Path, bytes: &[u8], offset: u64, error: &std::io::Error) -> Error {
    let path = path.to_path_buf();
    let size = bytes.len() as u64;
    if offset == 0 && is_other(bytes) {
        return Error::NotTar { path, detail: other_content(bytes) };
    }
    if error.kind() == ErrorKind::UnexpectedEof || size < offset + BLOCK {
        return Error::TruncatedTar { path, offset, needed: offset + BLOCK, size };
    }
    let error = error.to_string();
    // Such errors quote whatever lies there.
    let detail = if error.starts_with("numeric field") { "no header lies there".to_owned() } else { printable(&error) };
    Error::BadHeader { path, offset, detail }
}

/// True for a file that does not begin as tars do, be it cut: all writers in use put a mark at this place.
fn is_other(bytes: &[u8]) -> bool {
    match bytes.get(257..262) {
        Some(mark) => mark != b"ustar",
        // The name of the first member has no second line.
        None => bytes.contains(&b'\n'),
    }
}

/// What a file is that is no tar.
fn other_content(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    if is_lfs_pointer(bytes) {
        return "is a pointer of Git LFS, not the shard: fetch the file itself with `git lfs pull`".to_owned();
    }
    let head: String = bytes.iter().take(SHOWN).map(|byte| char::from(*byte)).collect();
    let is_text = head.chars().all(|c| matches!(c, ' '..='~' | '\r' | '\n' | '\t'));
    let begins = if is_text { format!(" (it begins with `{}`)", printable(head.trim())) } else { String::new() };
    format!("is no tar{begins}; copy it again from its source, or take it away")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_first_dot_of_the_file_name() {
        let split = |name| split_name(name).map(|(key, extension)| format!("{key}|{extension}"));
        assert_eq!(split("a.png").as_deref(), Some("a|png"));
        assert_eq!(split("a.seg.PNG").as_deref(), Some("a|seg.png"));
        assert_eq!(split("v1.0/dir/a.b.c").as_deref(), Some("v1.0/dir/a|b.c"));
        assert_eq!(split("./a.txt").as_deref(), Some("./a|txt"));
        assert_eq!(split("README"), None);
        assert_eq!(split(".hidden"), None);
        assert_eq!(split("__meta__"), None);
    }
}
