//! The bytes of one shard.
//!
//! Number of samples (`u32`), where each begins and where the last ends (`u32` each), the columns as JSON, the samples
//! (`streaming/base/format/mds/writer.py`, `encode_joint_shard`). A sample is the lengths of its values of variable
//! length (`u32` each), then all values, in the order of the columns' names.

use std::ops::Range;

use super::index::MdsColumn;
use super::{Encoding, KEY_COLUMN, MdsFault};
use crate::Sample;

/// Reads the table of samples of the shard `bytes`.
///
/// # Errors
/// [`MdsFault::SampleCount`] if there are not `expected` samples, [`MdsFault::Offsets`] if the table leads out of the
/// shard.
pub(super) fn check(bytes: &[u8], expected: usize) -> Result<(), MdsFault> {
    let damaged = |detail: String| MdsFault::Offsets { detail };
    let found = read_u32(bytes, 0).ok_or_else(|| damaged(format!("the shard has only {} bytes", bytes.len())))?;
    if found != expected {
        return Err(MdsFault::SampleCount { expected, found });
    }
    let table = 4 + 4 * (found as u64 + 1);
    if table > bytes.len() as u64 {
        return Err(damaged(format!("{found} samples take a table of {table} bytes, the shard has {}", bytes.len())));
    }
    let mut last = table as usize;
    for number in 0..=found {
        let offset = read_u32(bytes, number + 1).ok_or_else(|| damaged(format!("entry {number} is cut")))?;
        if offset < last || offset > bytes.len() {
            let range = format!("{last} to {}", bytes.len());
            return Err(damaged(format!("entry {number} points to byte {offset}, which is not in {range}")));
        }
        last = offset;
    }
    if last != bytes.len() {
        return Err(damaged(format!("the last sample ends at byte {last}, the shard at {}", bytes.len())));
    }
    Ok(())
}

/// Sample `number` of a shard that was [`check`]ed.
///
/// # Errors
/// [`MdsFault::Offsets`] if there is no such sample.
pub(super) fn sample_bytes(bytes: &[u8], number: usize) -> Result<&[u8], MdsFault> {
    let range = || Some(read_u32(bytes, number + 1)?..read_u32(bytes, number + 2)?);
    let found = range().and_then(|range| bytes.get(range));
    found.ok_or_else(|| MdsFault::Offsets { detail: format!("the shard has no sample {number}") })
}

/// The `u32` at `4 * place`.
fn read_u32(bytes: &[u8], place: usize) -> Option<usize> {
    let at = place.checked_mul(4)?;
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

/// Decodes the sample `bytes`; `number` names it in errors, and `key` is its key where no column holds one.
///
/// # Errors
/// [`MdsFault::Value`] if a value does not fit its column's encoding.
pub(super) fn decode(columns: &[MdsColumn], bytes: &[u8], number: usize, key: String) -> Result<Sample, MdsFault> {
    let mut sample = Sample::new(key);
    for (column, range) in columns.iter().zip(ranges(columns, bytes, number)?) {
        let value = &bytes[range];
        if column.name == KEY_COLUMN && matches!(column.encoding, Encoding::Raw(_)) {
            let key = std::str::from_utf8(value).map_err(|e| fault(number, column, format!("not UTF-8: {e}")))?;
            sample.key = key.to_owned();
            continue;
        }
        let decoded = column.encoding.decode(&column.name, value, &mut sample);
        decoded.map_err(|detail| fault(number, column, detail))?;
    }
    Ok(sample)
}

/// The key of a sample, if a column holds it; whatever else of the sample may be damaged.
pub(super) fn key(columns: &[MdsColumn], bytes: &[u8]) -> Option<String> {
    let place = columns.iter().position(|column| column.name == KEY_COLUMN)?;
    let range = ranges(columns, bytes, 0).ok()?.into_iter().nth(place)?;
    String::from_utf8(bytes[range].to_vec()).ok()
}

fn fault(number: usize, column: &MdsColumn, detail: String) -> MdsFault {
    MdsFault::Value { sample: number.to_string(), column: column.name.clone(), detail }
}

/// Ranges of a sample's values in its bytes.
fn ranges(columns: &[MdsColumn], bytes: &[u8], number: usize) -> Result<Vec<Range<usize>>, MdsFault> {
    let variable = columns.iter().filter(|column| column.encoding.fixed_size().is_none()).count();
    let (mut head, mut at) = (0, 4 * variable);
    let mut ranges = Vec::with_capacity(columns.len());
    for column in columns {
        let size = match column.encoding.fixed_size() {
            Some(size) => size,
            None => {
                head += 1;
                read_u32(bytes, head - 1).ok_or_else(|| fault(number, column, "cut inside the sizes".to_owned()))?
            }
        };
        let end = at.checked_add(size).filter(|end| *end <= bytes.len()).ok_or_else(|| {
            let detail = format!("{size} bytes from byte {at} of a sample of {} bytes", bytes.len());
            fault(number, column, detail)
        })?;
        ranges.push(at..end);
        at = end;
    }
    match columns.last() {
        Some(column) if at != bytes.len() => {
            Err(fault(number, column, format!("{} bytes after the last value", bytes.len() - at)))
        }
        _ => Ok(ranges),
    }
}

/// Encodes a sample.
///
/// # Errors
/// [`MdsFault::Value`] if a part is missing or does not fit its column's encoding, [`MdsFault::TooLarge`] beyond 4
/// GiB.
pub(super) fn encode(columns: &[MdsColumn], sample: &Sample) -> Result<Vec<u8>, MdsFault> {
    let mut sizes = Vec::new();
    let mut values = Vec::new();
    for column in columns {
        let value = column.encoding.encode(&column.name, sample).map_err(|detail| MdsFault::Value {
            sample: sample.key.clone(),
            column: column.name.clone(),
            detail,
        })?;
        if column.encoding.fixed_size().is_none() {
            sizes.extend_from_slice(&short(value.len(), || format!("column `{}`", column.name))?.to_le_bytes());
        }
        values.extend_from_slice(&value);
    }
    sizes.append(&mut values);
    short(sizes.len(), || format!("sample `{}`", sample.key))?;
    Ok(sizes)
}

/// A length in 32 bits.
pub(super) fn short(bytes: usize, what: impl Fn() -> String) -> Result<u32, MdsFault> {
    u32::try_from(bytes).map_err(|_| MdsFault::TooLarge { what: what(), bytes: bytes as u64 })
}
