//! The hash algorithms by which shards are checked, under Streaming's names of them.

use blake2::{Blake2b512, Blake2s256};
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use sha3::{Sha3_224, Sha3_256, Sha3_384, Sha3_512};
use xxhash_rust::{xxh3, xxh32, xxh64};

use super::MdsFault;

/// A function from bytes to their hash in hexadecimal.
type Hasher = fn(&[u8]) -> String;

/// All of `streaming.base.hashing`: those of Python's hashlib and of xxhash.
const TABLE: [(&str, Hasher); 17] = [
    ("blake2b", digest::<Blake2b512>),
    ("blake2s", digest::<Blake2s256>),
    ("md5", digest::<Md5>),
    ("sha1", digest::<Sha1>),
    ("sha224", digest::<Sha224>),
    ("sha256", digest::<Sha256>),
    ("sha384", digest::<Sha384>),
    ("sha3_224", digest::<Sha3_224>),
    ("sha3_256", digest::<Sha3_256>),
    ("sha3_384", digest::<Sha3_384>),
    ("sha3_512", digest::<Sha3_512>),
    ("sha512", digest::<Sha512>),
    ("xxh128", |data| format!("{:032x}", xxh3::xxh3_128(data))),
    ("xxh32", |data| format!("{:08x}", xxh32::xxh32(data, 0))),
    ("xxh3_128", |data| format!("{:032x}", xxh3::xxh3_128(data))),
    ("xxh3_64", |data| format!("{:016x}", xxh3::xxh3_64(data))),
    ("xxh64", |data| format!("{:016x}", xxh64::xxh64(data, 0))),
];

/// The names, for messages and help.
pub const HASHES: &str = "blake2b, blake2s, md5, sha1, sha224, sha256, sha384, sha512, sha3_224, sha3_256, sha3_384, \
                          sha3_512, xxh32, xxh64, xxh128, xxh3_64, xxh3_128";

fn digest<D: sha2::Digest>(data: &[u8]) -> String {
    D::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of `data` in hexadecimal.
///
/// # Errors
/// [`MdsFault::Algorithm`] for a name that is not known.
pub(super) fn hash(algorithm: &str, data: &[u8]) -> Result<String, MdsFault> {
    match TABLE.iter().find(|(name, _)| *name == algorithm) {
        Some((_, hasher)) => Ok(hasher(data)),
        None => Err(MdsFault::Algorithm { found: algorithm.to_owned(), known: HASHES }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By Python's hashlib and the package xxhash.
    #[test]
    fn hashes_are_those_of_python() {
        let expected = [
            ("md5", "900150983cd24fb0d6963f7d28e17f72"),
            ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("sha224", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
            ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("xxh32", "32d153ff"),
            ("xxh64", "44bc2cf5ad770999"),
            ("xxh3_64", "78af5f94892f3950"),
            ("xxh128", "06b05ab6733a618578af5f94892f3950"),
        ];
        for (name, sum) in expected {
            assert_eq!(hash(name, b"abc").unwrap(), sum, "{name}");
        }
        let names: Vec<&str> = HASHES.split(", ").collect();
        assert_eq!(names.len(), TABLE.len());
        assert!(names.iter().all(|name| hash(name, b"").is_ok()));
        assert!(hash("crc32", b"").unwrap_err().to_string().contains("`crc32` is not known"));
    }
}
