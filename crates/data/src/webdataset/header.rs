//! Tar headers of members, for names of any length.
//!
//! A name of up to 100 bytes, or one that a slash divides into up to 155 and 100, stands in a USTAR header (POSIX.1-1988).
//! A longer one stands in an extended header in front of it (pax, POSIX.1-2001: a member of type `x` with the record
//! `LENGTH path=NAME`), as Python's `tarfile` writes by default; GNU tar, `tarfile`, libarchive and the webdataset library
//! read both.

use tar::{EntryType, Header};

use super::scan::split_name;
use crate::{Error, Result};

/// Length of tar blocks, in bytes.
pub(super) const BLOCK: usize = 512;

/// Most bytes of a name, and of the folders in front of it, in a USTAR header.
const NAME: usize = 100;
const PREFIX: usize = 155;

/// Name of extended headers, which nobody reads; `tarfile`'s.
const PAX_NAME: &[u8] = b"././@PaxHeader";

/// True if a member of a shard can be named `key.part` and is read back as that key and part, also by programs that unpack it into a
/// folder: the name does not lead out of it.
pub fn is_storable(key: &str, part: &str) -> bool {
    let name = format!("{key}.{part}");
    let stays = !name.starts_with('/') && name.split('/').all(|folder| folder != "..");
    stays && !name.contains('\0') && split_name(&name).is_some_and(|(k, e)| k == key && e == part)
}

/// The blocks in front of the data of the member `key.extension`.
pub(super) fn header(key: &str, extension: &str, size: u64) -> Result<Vec<u8>> {
    let name = format!("{key}.{extension}");
    let invalid = |detail: String| Error::InvalidName { name: name.clone(), detail };
    if !is_storable(key, extension) {
        let detail = "a key is not empty, has no dot in its file name and does not lead out of a folder, an extension is lower case";
        return Err(invalid(detail.to_owned()));
    }
    if size >= 1 << 33 {
        return Err(invalid(format!("{size} bytes; a member has less than 8 GiB")));
    }
    let name = name.as_bytes();
    if let Some((prefix, rest)) = divided(name) {
        return Ok(block(prefix, rest, EntryType::Regular, size).to_vec());
    }
    let record = pax_record("path", name);
    let mut blocks = block(b"", PAX_NAME, EntryType::XHeader, record.len() as u64).to_vec();
    blocks.extend(&record);
    blocks.resize(BLOCK + record.len().next_multiple_of(BLOCK), 0);
    // Readers that know no extended headers find as much of the name as there is room for.
    let short = (0..=NAME).rev().find(|end| name.get(*end).is_none_or(|byte| byte & 0xc0 != 0x80)).unwrap_or(NAME);
    blocks.extend(block(b"", &name[..short], EntryType::Regular, size));
    Ok(blocks)
}

/// Bytes of [`header`] for a member of this name.
pub(super) fn header_len(key: &str, extension: &str) -> usize {
    let name = format!("{key}.{extension}");
    match divided(name.as_bytes()) {
        Some(_) => BLOCK,
        None => 2 * BLOCK + pax_record("path", name.as_bytes()).len().next_multiple_of(BLOCK),
    }
}

/// A name as prefix and rest of a USTAR header, without the slash between them; `None` if it does not fit.
fn divided(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= NAME {
        return Some((b"", name));
    }
    // The last slash that leaves a prefix which fits; an empty prefix would take the slash away.
    let slash = name.iter().take(PREFIX + 1).rposition(|byte| *byte == b'/').filter(|slash| *slash > 0)?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    // Readers join both by one slash.
    (!rest.is_empty() && rest.len() <= NAME).then_some((prefix, rest))
}

/// A record of an extended header: its own length in decimal digits, those included, a name and a value.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + " =\n".len();
    let mut digits = 1;
    while (rest + digits).to_string().len() != digits {
        digits += 1;
    }
    let mut record = format!("{} {key}=", rest + digits).into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// A USTAR header that says nothing of when, where and by whom it was written.
fn block(prefix: &[u8], name: &[u8], kind: EntryType, size: u64) -> [u8; BLOCK] {
    let mut header = Header::new_ustar();
    // Not `set_path`, which tidies names up: a sample keeps the key that it has.
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.name[..name.len()].copy_from_slice(name);
        ustar.prefix[..prefix.len()].copy_from_slice(prefix);
    }
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    *header.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_digits() {
        // Python: tarfile.TarInfo.create_pax_header({"path": ...}) writes these lengths.
        for (length, expected) in
            [(1, "9 path="), (2, "11 path="), (89, "98 path="), (90, "99 path="), (91, "101 path=")]
        {
            let record = pax_record("path", &vec![b'x'; length]);
            assert!(record.starts_with(expected.as_bytes()), "{length}: {}", String::from_utf8_lossy(&record));
            assert_eq!(record.len().to_string(), expected.split(' ').next().unwrap());
        }
    }

    #[test]
    fn names_are_divided_where_ustar_can_hold_them() {
        let long = "a".repeat(100);
        let divided = |name: &str| divided(name.as_bytes()).map(|(a, b)| (a.len(), b.len()));
        assert_eq!(divided(&long), Some((0, 100)));
        assert_eq!(divided(&format!("b/{long}")), Some((1, 100)));
        assert_eq!(divided(&format!("{}/{long}", "b".repeat(155))), Some((155, 100)));
        for name in [format!("{long}a"), format!("{}/{long}", "b".repeat(156)), format!("/{long}"), format!("{long}a/")]
        {
            assert_eq!(divided(&name), None, "{name}");
            assert_eq!(header_len(&name, "txt") % BLOCK, 0);
        }
    }
}
