//! The framing of a transaction log (`run-ID.wandb`): that of LevelDB's logs behind a header of 7 bytes.
//!
//! The file is cut into blocks of 32 KiB, of which the header is a part. A record stands in one fragment or in several; each
//! has the CRC-32 (IEEE, of type and data), the length (16 bits) and the type in front of it, and none crosses the end of a
//! block; what is left of a block that has no room for another fragment's header is zeros. Read and written as wandb 0.31.0
//! does: its checksum is neither LevelDB's CRC-32C nor masked.

use std::ops::Range;

/// `:W&B`, the number 0xBEE1 and the version 0.
pub(super) const HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";
const BLOCK: usize = 32 << 10;
/// Checksum, length, type.
const FRAGMENT: usize = 7;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// A record's bytes and where they stand, with everything around them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Framed {
    pub(super) range: Range<usize>,
    pub(super) data: Vec<u8>,
}

/// Frames a record that is to be written at a place in the file.
pub(super) fn frame(at: usize, mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 2 * FRAGMENT);
    let mut first = true;
    loop {
        let left = BLOCK - (at + out.len()) % BLOCK;
        if left < FRAGMENT {
            out.resize(out.len() + left, 0);
            continue;
        }
        let (now, later) = data.split_at(data.len().min(left - FRAGMENT));
        let kind = match (first, later.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        out.extend_from_slice(&checksum(kind, now).to_le_bytes());
        out.extend_from_slice(&(now.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend_from_slice(now);
        (data, first) = (later, false);
        if data.is_empty() {
            return out;
        }
    }
}

/// The records of a log, in order. A record that ends with the file before it is complete, which a kill leaves, is left out.
///
/// # Errors
/// What is wrong, and at which byte.
pub(super) fn records(file: &[u8]) -> Result<Vec<Framed>, String> {
    if file.len() < HEADER.len() && HEADER.starts_with(file) {
        return Ok(Vec::new());
    }
    if !file.starts_with(&HEADER) {
        return Err("does not begin as a log of Weights & Biases".to_owned());
    }
    let (mut all, mut open): (Vec<Framed>, Option<Framed>) = (Vec::new(), None);
    let mut at = HEADER.len();
    while let Some(Fragment { kind, data, next }) = fragment(file, at)? {
        let begun = open.take();
        let mut record = match (kind, begun) {
            (FULL | FIRST, None) => Framed { range: at..next, data: Vec::new() },
            (MIDDLE | LAST, Some(begun)) => begun,
            _ => return Err(format!("the fragment at byte {at} (of type {kind}) does not follow the one before it")),
        };
        record.data.extend_from_slice(data);
        record.range.end = next;
        match kind {
            FULL | LAST => all.push(record),
            _ => open = Some(record),
        }
        at = next;
    }
    Ok(all)
}

/// A part of a record, and where the next one stands.
struct Fragment<'f> {
    kind: u8,
    data: &'f [u8],
    next: usize,
}

/// The fragment at a place or behind the rest of its block. None at the end of the file, and for one that is not all there.
fn fragment(file: &[u8], mut at: usize) -> Result<Option<Fragment<'_>>, String> {
    let left = BLOCK - at % BLOCK;
    if left < FRAGMENT {
        at += left;
    }
    let Some(head) = file.get(at..at + FRAGMENT) else { return Ok(None) };
    let stored = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let (length, kind) = (usize::from(u16::from_le_bytes([head[4], head[5]])), head[6]);
    let begin = at + FRAGMENT;
    if length > BLOCK - at % BLOCK - FRAGMENT {
        return Err(format!("the fragment at byte {at} of {length} bytes is longer than its block"));
    }
    let Some(data) = file.get(begin..begin + length) else { return Ok(None) };
    if stored != checksum(kind, data) {
        return Err(format!("the checksum of the fragment at byte {at} is wrong"));
    }
    Ok(Some(Fragment { kind, data, next: begin + length }))
}

fn checksum(kind: u8, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(data);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(records: &[Vec<u8>]) -> Vec<u8> {
        let mut file = HEADER.to_vec();
        records.iter().for_each(|record| file.extend(frame(file.len(), record)));
        file
    }

    /// Lengths around the ends of blocks, and a record of several blocks.
    fn samples() -> Vec<Vec<u8>> {
        let first = BLOCK - HEADER.len() - FRAGMENT;
        let lengths = [3, 0, first - 3 - 2 * FRAGMENT - 5, 1, 100_000, BLOCK, 7];
        lengths.iter().enumerate().map(|(i, &length)| (0..length).map(|j| (i * 31 + j) as u8).collect()).collect()
    }

    #[test]
    fn records_come_back_over_blocks_and_however_the_file_is_cut() {
        let samples = samples();
        let file = written(&samples);
        let found = records(&file).unwrap();
        assert_eq!(found.iter().map(|record| record.data.clone()).collect::<Vec<_>>(), samples);
        assert_eq!(found.last().unwrap().range.end, file.len());
        let ends: Vec<usize> = found.iter().map(|record| record.range.end).collect();
        for cut in (0..file.len()).step_by(997).chain(ends.iter().copied()).chain([1, 6, 7, 8]) {
            let complete = ends.iter().filter(|&&end| end <= cut).count();
            assert_eq!(records(&file[..cut]).unwrap().len(), complete, "cut at {cut}");
        }
        // A log that was cut behind a record goes on as if nothing had been there.
        let mut shortened = file[..ends[4]].to_vec();
        samples[5..].iter().for_each(|record| shortened.extend(frame(shortened.len(), record)));
        assert_eq!(shortened, file);
    }

    #[test]
    fn the_frame_is_that_of_the_client() {
        // The header's record of wandb 0.31.0, as its client wrote it, without its text.
        let framed = frame(HEADER.len(), b"\x08\x01");
        assert_eq!(framed[4..], [2, 0, 1, 8, 1]);
        // The CRC-32 of the check string of its definition, which is not CRC-32C's 0xE3069283.
        assert_eq!(checksum(b'1', b"23456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_is_damaged_is_named_with_its_place() {
        let good = written(&[b"abc".to_vec(), b"defg".to_vec()]);
        let with = |at: usize, value: u8| {
            let mut file = good.clone();
            file[at] = value;
            file
        };
        let second = HEADER.len() + FRAGMENT + 3;
        for (file, wanted) in [
            (b"PK\x03\x04".to_vec(), "does not begin"),
            (with(0, b';'), "does not begin"),
            (with(6, 1), "does not begin"),
            (with(7, good[7] ^ 1), "checksum of the fragment at byte 7"),
            (with(HEADER.len() + FRAGMENT, b'x'), "checksum of the fragment at byte 7"),
            (with(second + 6, LAST), "checksum of the fragment at byte 17"),
            (with(second + 5, 0xff), "longer than its block"),
            ([written(&[]), single(LAST)].concat(), "does not follow"),
            ([written(&[]), single(FIRST), single(FULL)].concat(), "does not follow"),
            ([written(&[]), single(9)].concat(), "does not follow"),
        ] {
            let error = records(&file).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(records(b"").unwrap().is_empty() && records(b":W&").unwrap().is_empty());
    }

    fn single(kind: u8) -> Vec<u8> {
        let mut out = checksum(kind, b"z").to_le_bytes().to_vec();
        out.extend([1, 0, kind, b'z']);
        out
    }
}
