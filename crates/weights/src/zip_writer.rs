//! Zip archives of stored entries, as `torch.save` writes them: the places of all entries follow from their lengths and checksums,
//! so that the archive can be written in one go, also into another file.
//!
//! The format is PKWARE's APPNOTE 6.3; data begin at multiples of 64 bytes, as in `caffe2/serialize/inline_container.cc`, by a field of
//! padding in the local headers.

/// Where data begin: multiples of this.
const ALIGNMENT: u64 = 64;
/// The largest number of a field of 32 bits; it says that the number stands in a field of 64.
const WIDE: u64 = u32::MAX as u64;
/// 1980-01-01, the first day that the format knows: contents alone decide the bytes.
const DATE: u16 = 0x21;
/// The version of the format that knows fields of 64 bits.
const VERSION: u16 = 45;

/// An entry that is going to be written.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) length: u64,
    /// CRC-32 of the content.
    pub(crate) checksum: u32,
}

/// The bytes around the contents of entries.
pub(crate) struct ZipPlan {
    /// In front of each entry's content.
    headers: Vec<Vec<u8>>,
    /// Behind the last one's.
    end: Vec<u8>,
    /// Bytes of the whole archive.
    length: u64,
}

impl ZipPlan {
    pub(crate) fn new(entries: &[Planned]) -> Self {
        let (mut headers, mut directory, mut at) = (Vec::with_capacity(entries.len()), Vec::new(), 0);
        for entry in entries {
            let header = entry.local_header(at);
            entry.list(at, &mut directory);
            at += header.len() as u64 + entry.length;
            headers.push(header);
        }
        let mut end = directory;
        end_records(entries.len() as u64, at, &mut end);
        let length = at + end.len() as u64;
        Self { headers, end, length }
    }

    /// What stands in front of an entry's content.
    pub(crate) fn header(&self, entry: usize) -> &[u8] {
        &self.headers[entry]
    }

    /// What stands behind the last entry's content.
    pub(crate) fn end(&self) -> &[u8] {
        &self.end
    }

    /// Bytes of the whole archive.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }
}

impl Planned {
    /// The fields that a local header and the directory share: from the version to the length of the name.
    fn fields(&self, out: &mut Vec<u8>) {
        let length = narrow(self.length);
        put16(out, VERSION);
        // No flags, stored, no time.
        [0, 0, 0, DATE].into_iter().for_each(|field| put16(out, field));
        put32(out, self.checksum);
        put32(out, length);
        put32(out, length);
        put16(out, self.name.len() as u16);
    }

    fn local_header(&self, at: u64) -> Vec<u8> {
        let mut out = b"PK\x03\x04".to_vec();
        self.fields(&mut out);
        let mut extra = Vec::new();
        if self.length >= WIDE {
            put16(&mut extra, 1);
            put16(&mut extra, 16);
            put64(&mut extra, self.length);
            put64(&mut extra, self.length);
        }
        // The field of padding has its name and its length in front.
        let start = at + (out.len() + 2 + self.name.len() + extra.len() + 4) as u64;
        let padding = start.next_multiple_of(ALIGNMENT) - start;
        extra.extend_from_slice(b"FB");
        put16(&mut extra, padding as u16);
        extra.extend(std::iter::repeat_n(b'Z', padding as usize));
        put16(&mut out, extra.len() as u16);
        out.extend_from_slice(self.name.as_bytes());
        out.extend(extra);
        out
    }

    /// Adds the entry, whose header stands at `at`, to a directory.
    fn list(&self, at: u64, out: &mut Vec<u8>) {
        let offset = narrow(at);
        let mut wide = Vec::new();
        if self.length >= WIDE {
            put64(&mut wide, self.length);
            put64(&mut wide, self.length);
        }
        if at >= WIDE {
            put64(&mut wide, at);
        }
        out.extend_from_slice(b"PK\x01\x02");
        put16(out, VERSION);
        self.fields(out);
        put16(out, if wide.is_empty() { 0 } else { wide.len() as u16 + 4 });
        // No comment, the first disk, no attributes.
        [0, 0, 0, 0, 0].into_iter().for_each(|field| put16(out, field));
        put32(out, offset);
        out.extend_from_slice(self.name.as_bytes());
        if !wide.is_empty() {
            put16(out, 1);
            put16(out, wide.len() as u16);
            out.extend(wide);
        }
    }
}

/// The end of an archive whose directory of `entries` is in `out` and begins at `start`.
fn end_records(entries: u64, start: u64, out: &mut Vec<u8>) {
    let size = out.len() as u64;
    if entries >= u64::from(u16::MAX) || start >= WIDE || size >= WIDE {
        out.extend_from_slice(b"PK\x06\x06");
        put64(out, 44);
        put16(out, VERSION);
        put16(out, VERSION);
        put32(out, 0);
        put32(out, 0);
        [entries, entries, size, start].into_iter().for_each(|field| put64(out, field));
        out.extend_from_slice(b"PK\x06\x07");
        put32(out, 0);
        put64(out, start + size);
        put32(out, 1);
    }
    let count = u16::try_from(entries).unwrap_or(u16::MAX);
    out.extend_from_slice(b"PK\x05\x06");
    [0, 0, count, count].into_iter().for_each(|field| put16(out, field));
    put32(out, narrow(size));
    put32(out, narrow(start));
    put16(out, 0);
}

/// A number in a field of 32 bits: all ones where it stands in one of 64.
fn narrow(number: u64) -> u32 {
    number.min(WIDE) as u32
}

fn put16(out: &mut Vec<u8>, number: u16) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with contents of zeros that are not there: its bytes without them, and where they would begin.
    fn places(entries: &[Planned]) -> Vec<u64> {
        let plan = ZipPlan::new(entries);
        let mut at = 0;
        let starts = entries.iter().enumerate().map(|(number, entry)| {
            let start = at + plan.header(number).len() as u64;
            at = start + entry.length;
            start
        });
        starts.collect()
    }

    #[test]
    fn contents_begin_at_multiples_of_64_bytes_and_large_ones_have_wide_fields() {
        let entry = |name: &str, length: u64| Planned { name: name.to_owned(), length, checksum: 7 };
        let small = [entry("a/data.pkl", 3), entry("a/data/0", 64), entry("a/version", 2)];
        let large = [entry("a/data/0", WIDE), entry("a/data/1", 5), entry("a/data/2", 1)];
        for entries in [&small[..], &large] {
            assert!(places(entries).iter().all(|start| start.is_multiple_of(ALIGNMENT)), "{:?}", places(entries));
        }
        let has = |entries: &[Planned], mark: &[u8]| ZipPlan::new(entries).end().windows(4).any(|four| four == mark);
        assert!(!has(&small, b"PK\x06\x06") && has(&large, b"PK\x06\x06") && has(&large, b"PK\x06\x07"));
        let many: Vec<Planned> = (0..70_000).map(|number| entry(&number.to_string(), 0)).collect();
        assert!(has(&many, b"PK\x06\x06"));
    }
}
