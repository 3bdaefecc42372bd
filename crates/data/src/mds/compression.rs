//! The compressions of shards, under Streaming's names: `zstd`, `zstd:7`, `gz`, `br`, `snappy`.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use super::MdsFault;

/// Names that [`Compression::from_str`] takes, for messages and help.
pub const COMPRESSIONS: &str = "zstd and zstd:1 to zstd:22, gz and gz:0 to gz:9, br and br:0 to br:11, snappy (bz2 is not \
                                read: pack the dataset anew with zstd)";

/// Compression of a shard file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    method: Method,
    level: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Zstd,
    Gzip,
    Brotli,
    Snappy,
}

/// Name, method, lowest, default and highest level.
const METHODS: [(&str, Method, u8, u8, u8); 4] = [
    ("zstd", Method::Zstd, 1, 3, 22),
    ("gz", Method::Gzip, 0, 9, 9),
    ("br", Method::Brotli, 0, 11, 11),
    ("snappy", Method::Snappy, 1, 0, 0),
];

impl FromStr for Compression {
    type Err = MdsFault;

    fn from_str(text: &str) -> Result<Self, MdsFault> {
        let unknown = || MdsFault::Compression { found: text.to_owned(), known: COMPRESSIONS };
        let (name, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let (_, method, lowest, _, highest) = *METHODS.iter().find(|row| row.0 == name).ok_or_else(unknown)?;
        let level = level.map(|level| level.parse::<u8>().map_err(|_| unknown())).transpose()?;
        match level {
            Some(level) if !(lowest..=highest).contains(&level) => Err(unknown()),
            _ => Ok(Compression { method, level }),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())?;
        self.level.map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

impl Compression {
    fn row(self) -> &'static (&'static str, Method, u8, u8, u8) {
        METHODS.iter().find(|row| row.1 == self.method).unwrap_or(&METHODS[0])
    }

    /// End of a compressed shard's file name.
    pub fn extension(self) -> &'static str {
        self.row().0
    }

    /// Compresses a shard.
    pub(super) fn compress(self, data: &[u8]) -> io::Result<Vec<u8>> {
        let level = self.level.unwrap_or(self.row().3);
        match self.method {
            Method::Zstd => zstd::bulk::compress(data, i32::from(level)),
            Method::Gzip => {
                let level = flate2::Compression::new(u32::from(level));
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(data)?;
                encoder.finish()
            }
            Method::Brotli => {
                // 22 is the window of Python's brotli by default.
                let mut encoder = brotli::CompressorReader::new(data, 1 << 16, u32::from(level), 22);
                let mut out = Vec::new();
                encoder.read_to_end(&mut out)?;
                Ok(out)
            }
            Method::Snappy => snap::raw::Encoder::new().compress_vec(data).map_err(io::Error::other),
        }
    }

    /// Decompresses a shard of `expected` bytes, and stops as soon as there are more of them.
    ///
    /// # Errors
    /// [`MdsFault::Decompress`] if the data are damaged, [`MdsFault::RawLength`] if they do not give `expected` bytes.
    pub(super) fn decompress(self, data: &[u8], expected: u64) -> Result<Vec<u8>, MdsFault> {
        let failed = |e: io::Error| MdsFault::Decompress { compression: self.to_string(), detail: e.to_string() };
        let out = match self.method {
            Method::Zstd => read_at_most(zstd::stream::read::Decoder::new(data).map_err(failed)?, expected),
            Method::Gzip => read_at_most(flate2::read::MultiGzDecoder::new(data), expected),
            Method::Brotli => read_at_most(brotli::Decompressor::new(data, 1 << 16), expected),
            Method::Snappy => match snappy_length(data).map_err(failed)? {
                length if length > expected => {
                    return Err(MdsFault::RawLength { expected, found: expected, more: true });
                }
                _short => snap::raw::Decoder::new().decompress_vec(data).map_err(io::Error::other),
            },
        };
        let out = out.map_err(failed)?;
        if out.len() as u64 != expected {
            let more = out.len() as u64 > expected;
            return Err(MdsFault::RawLength { expected, found: expected.min(out.len() as u64), more });
        }
        Ok(out)
    }
}

/// Grows with what comes out, not with what the index promises.
fn read_at_most(reader: impl Read, expected: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(expected.saturating_add(1)).read_to_end(&mut out)?;
    Ok(out)
}

/// Raw snappy tells its length in front; where it lies about it, that is an error before memory is taken.
fn snappy_length(data: &[u8]) -> io::Result<u64> {
    let length = snap::raw::decompress_len(data).map_err(io::Error::other)?;
    // A copy of at most 64 bytes takes at least 2: more than 32 times its length is impossible.
    if length / 32 > data.len() {
        return Err(io::Error::other(format!("{length} bytes are announced, {} are there", data.len())));
    }
    Ok(length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_and_level_comes_back_and_stops_at_the_promised_length() {
        let data: Vec<u8> = (0..20_000u32).map(|i| (i / 7 % 251) as u8).collect();
        for text in ["zstd", "zstd:1", "zstd:22", "gz", "gz:0", "gz:9", "br:0", "br:5", "snappy"] {
            let method: Compression = text.parse().unwrap();
            assert_eq!(method.to_string(), text);
            let packed = method.compress(&data).unwrap();
            assert_eq!(method.decompress(&packed, data.len() as u64).unwrap(), data, "{text}");
            let bomb = method.decompress(&packed, 100).unwrap_err();
            assert_eq!(bomb, MdsFault::RawLength { expected: 100, found: 100, more: true }, "{text}");
            let short = method.decompress(&packed, 20_001).unwrap_err();
            assert_eq!(short, MdsFault::RawLength { expected: 20_001, found: 20_000, more: false }, "{text}");
            let cut = method.decompress(&packed[..packed.len() / 2], data.len() as u64).unwrap_err();
            assert!(matches!(&cut, MdsFault::Decompress { .. }), "{text}: {cut}");
        }
        for text in ["zstd:0", "zstd:23", "gz:10", "snappy:1", "snappy:0", "bz2", "lzma", "zstd:", ""] {
            assert!(matches!(text.parse::<Compression>(), Err(MdsFault::Compression { .. })), "{text}");
        }
    }
}
