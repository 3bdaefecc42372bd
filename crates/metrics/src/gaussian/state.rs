//! A [`GaussianAccumulator`] as bytes.
//!
//! All numbers are little-endian: the line `calotype gaussian 1`; as `u64` the width, the rows of a leaf, the next row and
//! the number of parts; then each part, by its first row: that row, and 0 and the number of rows with their `f32` values, or
//! the level plus 1 with the `f64` values of mean and lower triangle, as [`LowerTriangle`] keeps them.

use std::collections::BTreeMap;

use super::{Buffers, GaussianAccumulator, LEAF_ROWS, Moments, Part};
use crate::error::{MetricsError, Result};
use crate::triangle::LowerTriangle;

const MAGIC: &[u8] = b"calotype gaussian 1\n";

/// Levels above this one would count more rows than there can be.
const MOST_LEVELS: u64 = 48;

/// No more rows than this are numbered, far below what a `u64` holds, so that sums of numbers fit.
const MOST_ROWS: u64 = 1 << 60;

impl GaussianAccumulator {
    /// All that was seen, for a file or another process: [`from_bytes`](Self::from_bytes) reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let number = |bytes: &mut Vec<u8>, value: u64| bytes.extend_from_slice(&value.to_le_bytes());
        for value in [self.width as u64, LEAF_ROWS, self.next, self.parts.len() as u64] {
            number(&mut bytes, value);
        }
        for (&first, part) in &self.parts {
            number(&mut bytes, first);
            match part {
                Part::Rows(rows) => {
                    number(&mut bytes, 0);
                    number(&mut bytes, (rows.len() / self.width) as u64);
                    bytes.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
                }
                Part::Sums { level, moments } => {
                    number(&mut bytes, u64::from(*level) + 1);
                    let values = moments.mean.iter().chain(moments.scatter.values());
                    bytes.extend(values.flat_map(|value| value.to_le_bytes()));
                }
            }
        }
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// If the bytes are not whole, or hold what no accumulator does: other leaves, rows twice, values that are not finite.
    /// The error names the byte.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take(MAGIC.len() as u64).ok() != Some(MAGIC) {
            return Err(fault(0, "these are no saved sums of features: they do not begin with `calotype gaussian 1`"));
        }
        let at = reader.at;
        let [width, leaf_rows, next, count] = reader.numbers()?;
        let Some(width) =
            usize::try_from(width).ok().filter(|&width| width > 0 && LowerTriangle::stored(width).is_some())
        else {
            return Err(fault(at, format!("a width of {width} values")));
        };
        if leaf_rows != LEAF_ROWS {
            return Err(fault(at + 8, format!("leaves of {leaf_rows} rows, where this version has {LEAF_ROWS}")));
        }
        if next > MOST_ROWS {
            return Err(fault(at + 16, format!("row {next} as the next one")));
        }
        let mut parts = BTreeMap::new();
        let mut free = 0;
        for _ in 0..count {
            let at = reader.at;
            let (first, part) = reader.part(width)?;
            let end = first.checked_add(part.rows(width));
            match end {
                Some(end) if first >= free && end <= MOST_ROWS => free = end,
                _ => {
                    return Err(fault(at, format!("a part that begins with row {first}, where row {free} may follow")));
                }
            }
            parts.insert(first, part);
        }
        if reader.at != bytes.len() {
            return Err(fault(reader.at, format!("{} bytes too many", bytes.len() - reader.at)));
        }
        Ok(Self { width, next, parts, buffers: Buffers::default() })
    }
}

fn fault(at: usize, detail: impl Into<String>) -> MetricsError {
    MetricsError::State { at, detail: detail.into() }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(count).ok().and_then(|count| rest.get(..count)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(fault(self.at, format!("{count} bytes should follow, and {} do: it was cut off", rest.len()))),
        }
    }

    fn numbers<const N: usize>(&mut self) -> Result<[u64; N]> {
        let (numbers, _) = self.take(8 * N as u64)?.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
        Ok(std::array::from_fn(|_| numbers.next().unwrap_or_default()))
    }

    fn part(&mut self, width: usize) -> Result<(u64, Part)> {
        let at = self.at;
        let [first, kind] = self.numbers()?;
        if kind == 0 {
            let [rows] = self.numbers()?;
            let inside = rows > 0 && rows < LEAF_ROWS && first % LEAF_ROWS + rows <= LEAF_ROWS;
            if !inside {
                return Err(fault(at, format!("{rows} rows from row {first} on, which is no part of a leaf")));
            }
            return Ok((first, Part::Rows(self.rows(rows * width as u64)?)));
        }
        let level = kind - 1;
        if level > MOST_LEVELS || !first.is_multiple_of(LEAF_ROWS << level) {
            return Err(fault(at, format!("sums of level {level} that begin with row {first}")));
        }
        let mean = self.values(width)?;
        let scatter = self.values(LowerTriangle::stored(width).unwrap_or(usize::MAX))?;
        let Some(scatter) = LowerTriangle::from_values(width, scatter) else {
            return Err(fault(at, "a triangle of another size"));
        };
        let moments = Moments { count: LEAF_ROWS << level, mean, scatter };
        Ok((first, Part::Sums { level: level as u32, moments }))
    }

    fn rows(&mut self, count: u64) -> Result<Vec<f32>> {
        let at = self.at;
        let (values, _) = self.take(count.saturating_mul(4))?.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(fault(at + 4 * index, format!("{} is not a finite number", values[index]))),
        }
    }

    fn values(&mut self, count: usize) -> Result<Vec<f64>> {
        let at = self.at;
        let (values, _) = self.take((count as u64).saturating_mul(8))?.as_chunks::<8>();
        let values: Vec<f64> = values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(fault(at + 8 * index, format!("{} is not a finite number", values[index]))),
        }
    }
}
