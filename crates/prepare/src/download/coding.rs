//! Content codings: bodies that a server has compressed, though nobody asked it to.

use std::io::{ErrorKind, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap};

use super::failure::{Failure, FailureKind};

/// Bytes that brotli's decoder reads at a time.
const PIECE: usize = 1 << 16;

/// The failure of a body that is too long.
pub(super) fn too_large(longest: u64) -> Failure {
    Failure::new(FailureKind::TooLarge, format!("more than {longest} bytes"))
}

/// Names of the codings that were applied to a body, in their order (RFC 9110, section 8.4), lower case.
pub(super) fn codings(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(|name| name.trim().to_lowercase());
    names.filter(|name| !matches!(name.as_str(), "" | "identity" | "none" | "binary")).collect()
}

/// The body without its codings.
///
/// # Errors
/// [`FailureKind::BadCoding`] for a coding that is not known, or a damaged body; [`FailureKind::TooLarge`] if it has more
/// than `longest` bytes at any stage.
pub fn decoded(mut body: Vec<u8>, codings: &[String], longest: u64) -> Result<Vec<u8>, Failure> {
    for coding in codings.iter().rev() {
        body = one(&body, coding, longest)?;
    }
    Ok(body)
}

fn one(body: &[u8], coding: &str, longest: u64) -> Result<Vec<u8>, Failure> {
    let read = |from: &mut dyn Read| -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        from.take(longest.saturating_add(1)).read_to_end(&mut out)?;
        Ok(out)
    };
    let out = match coding {
        "gzip" | "x-gzip" => read(&mut MultiGzDecoder::new(body)),
        // The name stands for zlib, but some servers send the bare stream.
        "deflate" => read(&mut ZlibDecoder::new(body)).or_else(|_| read(&mut DeflateDecoder::new(body))),
        "br" => read(&mut brotli::Decompressor::new(body, PIECE)),
        other => return Err(Failure::new(FailureKind::BadCoding, other)),
    };
    match out {
        Ok(out) if out.len() as u64 > longest => Err(too_large(longest)),
        Ok(out) => Ok(out),
        Err(error) if error.kind() == ErrorKind::OutOfMemory => Err(too_large(longest)),
        Err(_) => Err(Failure::new(FailureKind::BadCoding, format!("damaged {coding}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn names(value: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, value.parse().unwrap());
        codings(&headers)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn bodies_come_back_in_reverse_order() {
        let content = b"an image ".repeat(50);
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&content).unwrap();
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(&content).unwrap();
        let mut brotli = Vec::new();
        brotli::CompressorReader::new(&content[..], 4096, 5, 22).read_to_end(&mut brotli).unwrap();
        for (value, body) in [
            ("gzip", gzip(&content)),
            ("X-GZIP", gzip(&content)),
            ("deflate", zlib.finish().unwrap()),
            ("Deflate", bare.finish().unwrap()),
            ("br", brotli.clone()),
            ("br, gzip", gzip(&brotli)),
            ("identity", content.clone()),
        ] {
            assert_eq!(decoded(body, &names(value), 1 << 20).unwrap(), content, "{value}");
        }
    }

    #[test]
    fn what_is_damaged_unknown_or_too_long_is_named() {
        let good = gzip(&[7; 1000]);
        for (value, body, kind, detail) in [
            ("gzip", good[..good.len() - 9].to_vec(), FailureKind::BadCoding, "damaged gzip"),
            ("gzip", b"junk".to_vec(), FailureKind::BadCoding, "damaged gzip"),
            ("gzip", Vec::new(), FailureKind::BadCoding, "damaged gzip"),
            ("deflate", b"\xff\xff\xff".to_vec(), FailureKind::BadCoding, "damaged deflate"),
            ("br", b"\xff\xff\xff\xff".to_vec(), FailureKind::BadCoding, "damaged br"),
            ("exi", b"x".to_vec(), FailureKind::BadCoding, "exi"),
            ("gzip", good.clone(), FailureKind::TooLarge, "more than 999 bytes"),
            ("gzip", gzip(&[0; 1 << 22]), FailureKind::TooLarge, "more than 999 bytes"),
        ] {
            let failure = decoded(body, &names(value), 999).unwrap_err();
            assert_eq!((failure.kind, failure.detail.as_str()), (kind, detail), "{value}");
        }
    }
}
