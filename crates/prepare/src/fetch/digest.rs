//! Checksums of files, and the lists that publish them.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use calotype_core::decode_text;
use sha2::digest::DynDigest;

/// Method of computing a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// 128 bits; good against accidents only.
    Md5,
    /// 160 bits; good against accidents only.
    Sha1,
    /// 256 bits.
    Sha256,
    /// 512 bits.
    Sha512,
    /// SHA-1 of a file as git stores it, after a header with its length: the name of small files in repositories.
    GitBlob,
}

/// Names, and lengths in hexadecimal digits.
const ALGORITHMS: [(Algorithm, &str, usize); 4] = [
    (Algorithm::Md5, "md5", 32),
    (Algorithm::Sha1, "sha1", 40),
    (Algorithm::Sha256, "sha256", 64),
    (Algorithm::Sha512, "sha512", 128),
];

/// The checksum that a file should have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest {
    /// Method of computing it.
    pub algorithm: Algorithm,
    /// Its value in lower-case hexadecimal digits.
    pub hex: String,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = ALGORITHMS.iter().find(|(algorithm, ..)| algorithm == self);
        f.write_str(known.map_or("git-blob", |(_, name, _)| name))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

impl Digest {
    /// A checksum as `sha256:HEX`, or as plain hexadecimal digits whose number tells the algorithm.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some((name, hex)) => Digest::named(name, hex),
            None => Digest::of_length(text),
        }
    }

    /// A checksum of the algorithm called `name`, with or without dashes and in any case.
    fn named(name: &str, hex: &str) -> Option<Self> {
        let plain = name.replace('-', "").to_ascii_lowercase();
        let (algorithm, _, digits) = ALGORITHMS.iter().find(|(_, known, _)| *known == plain)?;
        Self::checked(*algorithm, hex, *digits)
    }

    fn of_length(hex: &str) -> Option<Self> {
        let (algorithm, _, digits) = ALGORITHMS.iter().find(|(.., digits)| *digits == hex.len())?;
        Self::checked(*algorithm, hex, *digits)
    }

    fn checked(algorithm: Algorithm, hex: &str, digits: usize) -> Option<Self> {
        let is_hex = hex.len() == digits && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| Digest { algorithm, hex: hex.to_ascii_lowercase() })
    }

    /// The name that git gives to a file, from its 40 digits.
    pub fn git_blob(hex: &str) -> Option<Self> {
        Self::checked(Algorithm::GitBlob, hex, 40)
    }
}

/// Computes checksums of one file, several at once.
pub struct Hashers {
    hashers: Vec<(Digest, Box<dyn DynDigest + Send>)>,
}

impl Hashers {
    /// For a file of `size` bytes, which only [`Algorithm::GitBlob`] asks for, that should have `digests`.
    pub fn new(digests: &[Digest], size: Option<u64>) -> Self {
        let hasher = |algorithm| -> Box<dyn DynDigest + Send> {
            match algorithm {
                Algorithm::Md5 => Box::new(md5::Md5::default()),
                Algorithm::Sha1 => Box::new(sha1::Sha1::default()),
                Algorithm::Sha256 => Box::new(sha2::Sha256::default()),
                Algorithm::Sha512 => Box::new(sha2::Sha512::default()),
                Algorithm::GitBlob => {
                    let mut hasher = sha1::Sha1::default();
                    DynDigest::update(&mut hasher, format!("blob {}\0", size.unwrap_or(0)).as_bytes());
                    Box::new(hasher)
                }
            }
        };
        Hashers { hashers: digests.iter().map(|digest| (digest.clone(), hasher(digest.algorithm))).collect() }
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        for (_, hasher) in &mut self.hashers {
            hasher.update(bytes);
        }
    }

    /// The first checksum that differs from what it should be, with what it is.
    pub fn mismatch(self) -> Option<(Digest, String)> {
        self.hashers.into_iter().find_map(|(wanted, hasher)| {
            let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            (found != wanted.hex).then_some((wanted, found))
        })
    }
}

/// A line of a list of checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The file, relative to the list; empty if the line is a checksum alone.
    pub path: String,
    /// Checksum that it should have.
    pub digest: Digest,
}

/// A line that is no checksum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct SumsError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The fault, in words.
    pub message: String,
}

/// Reads a list of checksums as `sha256sum` and its like write them (`HEX  NAME`, `HEX *NAME`), or as BSD's tools do
/// (`SHA256 (NAME) = HEX`). The algorithm is told by name or by length.
///
/// # Errors
/// [`SumsError`] for the first line that is neither, or that names a file outside of the list's folder.
pub fn parse_sums(content: &[u8]) -> Result<Vec<Sum>, SumsError> {
    let mut sums: Vec<Sum> = Vec::new();
    let text = decode_text(content).map_err(|fault| {
        let before = content.iter().take(fault.at()).filter(|byte| **byte == b'\n').count();
        SumsError { line: before + 1, message: format!("it {fault}") }
    })?;
    for (number, line) in text.split('\n').enumerate() {
        let error = |message: &str| SumsError { line: number + 1, message: message.to_owned() };
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, digest) = bsd_line(line)
            .or_else(|| coreutils_line(line))
            .ok_or_else(|| error("it is no checksum; expected `HEX  NAME` or `SHA256 (NAME) = HEX`"))?;
        let path = name.trim_start_matches("./").to_owned();
        if !path.is_empty() && safe_path(&path).is_none() {
            return Err(error(&format!("`{path}` is no path within the folder")));
        }
        sums.push(Sum { path, digest });
    }
    Ok(sums)
}

/// `SHA256 (NAME) = HEX`. Names may hold parentheses.
fn bsd_line(line: &str) -> Option<(String, Digest)> {
    let (algorithm, rest) = line.split_once(" (")?;
    let (name, hex) = rest.rsplit_once(") = ")?;
    Some((name.to_owned(), Digest::named(algorithm, hex.trim())?))
}

/// `HEX  NAME`; a leading backslash says that the name has escapes.
fn coreutils_line(line: &str) -> Option<(String, Digest)> {
    let (escaped, line) = match line.strip_prefix('\\') {
        Some(line) => (true, line),
        None => (false, line),
    };
    let end = line.find([' ', '\t']).unwrap_or(line.len());
    let digest = Digest::of_length(&line[..end])?;
    let name = line[end..].trim_start_matches(['\t', ' ']);
    let name = name.strip_prefix('*').unwrap_or(name);
    let name = if escaped { unescape(name)? } else { name.to_owned() };
    Some((name, digest))
}

fn unescape(name: &str) -> Option<String> {
    let mut plain = String::new();
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}

/// A path with slashes that stays within the folder it is relative to, and can be a file's name anywhere.
pub fn safe_path(text: &str) -> Option<PathBuf> {
    let bad = text.is_empty() || text.len() > 4096 || text.contains(['\\', '\0', '\n']) || text.ends_with('/');
    let path = Path::new(text);
    let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
    // `components` passes over `a//b` and `a/./b`, which stand for the same file as `a/b`.
    (!bad && normal).then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";
    const SHA1: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
    const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn checksums_are_those_of_the_command_line_tools() {
        let sha512 = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                      2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        for (digest, content) in [
            (format!("md5:{MD5}"), &b""[..]),
            (SHA1.to_owned(), b""),
            (SHA256.to_uppercase(), b""),
            ("SHA-256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(), b"abc"),
            (sha512.to_owned(), b"abc"),
        ] {
            let digest = Digest::parse(&digest).unwrap();
            let mut hashers = Hashers::new(&[digest], None);
            hashers.update(content);
            assert_eq!(hashers.mismatch(), None);
        }
        // `printf 'hello\n' | git hash-object --stdin`
        let blob = Digest::git_blob("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        let mut hashers = Hashers::new(std::slice::from_ref(&blob), Some(6));
        hashers.update(b"hel");
        hashers.update(b"lo\n");
        assert_eq!(hashers.mismatch(), None);
        let (wanted, found) = Hashers::new(std::slice::from_ref(&blob), Some(0)).mismatch().unwrap();
        assert_eq!((wanted, found.as_str()), (blob, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"));
    }

    #[test]
    fn lists_of_both_kinds_are_read() {
        let text = format!(
            "# made by hand\r\n{MD5}  a.tar\r\n{SHA1} *data/b c.tar\n\n\\{SHA256}  new\\nline\\\\\n\
             SHA256 (d (1).tar) = {SHA256}\nMD5 (./e) = {MD5}\n{SHA256}\t./f\n{MD5}"
        );
        let sums = parse_sums(text.as_bytes());
        // The escaped name holds a line break, which no file of a dataset needs.
        assert_eq!(sums.unwrap_err().line, 5);
        let text = text.replace("new\\nline\\\\", "plain");
        let sums = parse_sums(text.as_bytes()).unwrap();
        let found: Vec<_> = sums.iter().map(|sum| (sum.path.as_str(), sum.digest.algorithm)).collect();
        assert_eq!(
            found,
            [
                ("a.tar", Algorithm::Md5),
                ("data/b c.tar", Algorithm::Sha1),
                ("plain", Algorithm::Sha256),
                ("d (1).tar", Algorithm::Sha256),
                ("e", Algorithm::Md5),
                ("f", Algorithm::Sha256),
                ("", Algorithm::Md5),
            ]
        );
    }

    #[test]
    fn malformed_lists_are_named_with_their_line() {
        for (text, line, message) in [
            ("hello world".to_owned(), 1, "it is no checksum"),
            (format!("{MD5}  a\n{}  b", &MD5[1..]), 2, "it is no checksum"),
            (format!("{}g  a", &MD5[1..]), 1, "it is no checksum"),
            (format!("SHA256 (a) = {MD5}"), 1, "it is no checksum"),
            (format!("SHA3 (a) = {SHA256}"), 1, "it is no checksum"),
            (format!("SHA256 (a = {SHA256}"), 1, "it is no checksum"),
            (format!("\\{MD5}  a\\tb"), 1, "it is no checksum"),
            (format!("\\{MD5}  a\\"), 1, "it is no checksum"),
            (format!("{MD5}  ../a"), 1, "`../a` is no path within the folder"),
            (format!("{MD5}  /etc/passwd"), 1, "no path within the folder"),
            (format!("{MD5}  a/../../b"), 1, "no path within the folder"),
            (format!("{MD5}  a\\b"), 1, "no path within the folder"),
            (format!("{MD5}  folder/"), 1, "no path within the folder"),
            (format!("{MD5}  a\0b"), 1, "no path within the folder"),
            (format!("MD5 (..) = {MD5}"), 1, "no path within the folder"),
            ("<html>".to_owned(), 1, "it is no checksum"),
        ] {
            let error = parse_sums(text.as_bytes()).expect_err(&text);
            assert_eq!(error.line, line, "{text}");
            assert!(error.message.contains(message), "{text}: {error}");
        }
        assert_eq!(
            parse_sums(b"\n\xff\xfe").unwrap_err().message,
            "it is not UTF-8 text: byte 1 is 0xff; save it as UTF-8"
        );
        assert_eq!(parse_sums(b"").unwrap(), []);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>, path in ".{0,20}") {
            let _ = parse_sums(&content);
            for line in [format!("{MD5}  {path}"), format!("\\{MD5} *{path}"), format!("MD5 ({path}) = {MD5}")] {
                for sum in parse_sums(line.as_bytes()).unwrap_or_default() {
                    assert!(sum.path.is_empty() || safe_path(&sum.path).is_some());
                }
            }
        }
    }
}
