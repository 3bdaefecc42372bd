//! Text that people and other programs wrote: UTF-8 with or without a byte-order mark, and UTF-16 with one.
//!
//! Spreadsheets and editors put a byte-order mark (U+FEFF) in front of a file, which is no part of its text: left in
//! place, it becomes a token of a caption, a letter of a column's name, or an error of the JSON reader. Every text file
//! that is read goes through here.

use crate::input::read_input;
use std::borrow::Cow;
use std::io::{self, Read};
use std::path::Path;

/// Bytes that are no text of a known encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextFault {
    /// Every other byte is zero, and no mark says which comes first.
    #[error("is UTF-16 text without a byte-order mark: save it as UTF-8")]
    UnmarkedUtf16,
    /// UTF-16, where only UTF-8 is read.
    #[error("is UTF-16 text, as its byte-order mark says: save it as UTF-8")]
    Utf16,
    /// A mark of UTF-32.
    #[error("is UTF-32 text: save it as UTF-8")]
    Utf32,
    /// UTF-16 that ends in the middle of a character, or holds half of a pair.
    #[error("is UTF-16 text, as its byte-order mark says, but broken at byte {at}: save it as UTF-8")]
    BrokenUtf16 {
        /// Number of the byte, from 0.
        at: usize,
    },
    /// A byte that UTF-8 does not have there.
    #[error("is not UTF-8 text: byte {at} is 0x{byte:02x}; save it as UTF-8")]
    NotUtf8 {
        /// Number of the byte, from 0.
        at: usize,
        /// The byte.
        byte: u8,
    },
}

impl TextFault {
    /// Number of the byte that is at fault, from 0.
    pub fn at(&self) -> usize {
        match self {
            Self::UnmarkedUtf16 | Self::Utf16 | Self::Utf32 => 0,
            Self::BrokenUtf16 { at } | Self::NotUtf8 { at, .. } => *at,
        }
    }
}

impl From<TextFault> for io::Error {
    fn from(fault: TextFault) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, format!("it {fault}"))
    }
}

/// Encodings that a file's first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// UTF-8, with or without a mark of so many bytes.
    Utf8(usize),
    /// UTF-16 behind its mark; true: the low byte comes first.
    Utf16(bool),
}

/// Bytes that are looked at for UTF-16 without a mark.
const LOOKED_AT: usize = 64;

fn encoding(start: &[u8]) -> Result<Encoding, TextFault> {
    match start {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Err(TextFault::Utf32),
        [0xef, 0xbb, 0xbf, ..] => Ok(Encoding::Utf8(3)),
        [0xff, 0xfe, ..] => Ok(Encoding::Utf16(true)),
        [0xfe, 0xff, ..] => Ok(Encoding::Utf16(false)),
        _ if is_unmarked_utf16(start) => Err(TextFault::UnmarkedUtf16),
        _ => Ok(Encoding::Utf8(0)),
    }
}

/// True if all bytes at even places or all at odd places are zero, and none of the others: Latin letters in UTF-16.
fn is_unmarked_utf16(start: &[u8]) -> bool {
    let (pairs, _) = start[..start.len().min(LOOKED_AT)].as_chunks::<2>();
    let all = |zero: usize| pairs.iter().all(|pair| pair[zero] == 0 && pair[1 - zero] != 0);
    !pairs.is_empty() && (all(0) || all(1))
}

/// The text of a file's bytes, without a byte-order mark; nothing is copied if it is UTF-8.
///
/// # Errors
/// [`TextFault`], which says what the bytes are instead.
pub fn decode_text(bytes: &[u8]) -> Result<Cow<'_, str>, TextFault> {
    match encoding(bytes)? {
        Encoding::Utf8(mark) => utf8(bytes, mark).map(Cow::Borrowed),
        Encoding::Utf16(little) => utf16(&bytes[2..], little).map(Cow::Owned),
    }
}

fn utf8(bytes: &[u8], mark: usize) -> Result<&str, TextFault> {
    std::str::from_utf8(&bytes[mark..]).map_err(|error| {
        let at = mark + error.valid_up_to();
        TextFault::NotUtf8 { at, byte: bytes[at] }
    })
}

fn utf16(bytes: &[u8], little: bool) -> Result<String, TextFault> {
    let mut text = String::with_capacity(bytes.len());
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut at = 2;
    for character in char::decode_utf16(pairs.iter().map(|pair| unit(*pair, little))) {
        let character = character.map_err(|_| TextFault::BrokenUtf16 { at })?;
        at += 2 * character.len_utf16();
        text.push(character);
    }
    if rest.is_empty() { Ok(text) } else { Err(TextFault::BrokenUtf16 { at }) }
}

fn unit(pair: [u8; 2], little: bool) -> u16 {
    if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }
}

/// The text of a file, as of [`decode_text`].
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] with the [`TextFault`] in words; others as of [`read_input`].
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_input(path)?;
    match decode_text(&bytes)? {
        Cow::Owned(text) => Ok(text),
        Cow::Borrowed(text) if text.len() == bytes.len() => Ok(String::from_utf8(bytes).unwrap_or_default()),
        Cow::Borrowed(text) => Ok(text.to_owned()),
    }
}

/// A reader of the same text as UTF-8 without a byte-order mark, however long it is. What is UTF-8 passes as it is, and
/// is not checked.
///
/// # Errors
/// As of [`read_text`]; those of UTF-16 while it is read.
pub fn utf8_reader<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(LOOKED_AT);
    input.by_ref().take(LOOKED_AT as u64).read_to_end(&mut start)?;
    let encoding = encoding(&start)?;
    let mark = match encoding {
        Encoding::Utf8(mark) => mark,
        Encoding::Utf16(_) => 2,
    };
    let rest = io::Cursor::new(start.split_off(mark)).chain(input);
    Ok(match encoding {
        Encoding::Utf8(_) => Box::new(rest),
        Encoding::Utf16(little) => {
            Box::new(Utf16Reader { input: rest, little, at: mark, ready: io::Cursor::default() })
        }
    })
}

/// UTF-16 on its way to UTF-8.
struct Utf16Reader<R> {
    input: R,
    little: bool,
    /// Bytes read, the mark included.
    at: usize,
    ready: io::Cursor<Vec<u8>>,
}

impl<R: Read> Utf16Reader<R> {
    /// The next unit; none at the end.
    fn unit(&mut self) -> io::Result<Option<u16>> {
        let mut pair = Vec::with_capacity(2);
        self.input.by_ref().take(2).read_to_end(&mut pair)?;
        let found = match pair.as_slice() {
            [] => Ok(None),
            [a, b] => Ok(Some(unit([*a, *b], self.little))),
            _ => Err(TextFault::BrokenUtf16 { at: self.at }.into()),
        };
        self.at += pair.len();
        found
    }

    /// The next piece of text.
    fn refill(&mut self) -> io::Result<()> {
        const PIECE: usize = 4096;
        let mut text = String::new();
        while text.len() < PIECE {
            let at = self.at;
            let Some(first) = self.unit()? else { break };
            let second = if (0xd800..0xdc00).contains(&first) { self.unit()? } else { None };
            let mut characters = char::decode_utf16([first].into_iter().chain(second));
            let (Some(Ok(character)), None) = (characters.next(), characters.next()) else {
                return Err(TextFault::BrokenUtf16 { at }.into());
            };
            text.push(character);
        }
        self.ready = io::Cursor::new(text.into_bytes());
        Ok(())
    }
}

impl<R: Read> Read for Utf16Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.ready.read(out)?;
        if count > 0 || out.is_empty() {
            return Ok(count);
        }
        self.refill()?;
        self.ready.read(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16_bytes(text: &str, little: bool) -> Vec<u8> {
        let units = [0xfeffu16].into_iter().chain(text.encode_utf16());
        units.flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
    }

    fn streamed(bytes: &[u8]) -> io::Result<String> {
        let mut text = String::new();
        utf8_reader(bytes)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn marks_are_no_part_of_the_text() {
        let long = "a caf\u{e9} \u{1f431}, \u{732b}\n".repeat(999);
        for text in ["", "a", "a caf\u{e9} \u{1f431}\r\nb", &long] {
            let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
            for bytes in [text.as_bytes().to_vec(), marked, utf16_bytes(text, true), utf16_bytes(text, false)] {
                assert_eq!(decode_text(&bytes).unwrap(), text);
                assert_eq!(streamed(&bytes).unwrap(), text);
            }
        }
        // Only the first mark is one; zeros of other data are no UTF-16.
        assert_eq!(decode_text("\u{feff}\u{feff}a".as_bytes()).unwrap(), "\u{feff}a");
        assert_eq!(decode_text(b"a\0\0b").unwrap(), "a\0\0b");
    }

    #[test]
    fn other_bytes_are_refused_by_name() {
        let mut half = utf16_bytes("ab", true);
        half.pop();
        let lone = [&utf16_bytes("a", true)[..], &[0x3d, 0xd8, b'b', 0]].concat();
        for (bytes, fault) in [
            (&b"a\0b\0"[..], TextFault::UnmarkedUtf16),
            (b"\0a\0b", TextFault::UnmarkedUtf16),
            (b"\xff\xfe\0\0a\0\0\0", TextFault::Utf32),
            (b"\0\0\xfe\xff\0\0\0a", TextFault::Utf32),
            (&half, TextFault::BrokenUtf16 { at: 4 }),
            (&lone, TextFault::BrokenUtf16 { at: 4 }),
        ] {
            assert_eq!(decode_text(bytes), Err(fault), "{bytes:?}");
            assert!(streamed(bytes).unwrap_err().to_string().contains(&fault.to_string()), "{bytes:?}");
        }
        assert_eq!(decode_text(b"caf\xe9"), Err(TextFault::NotUtf8 { at: 3, byte: 0xe9 }));
        assert_eq!(decode_text(b"\xef\xbb\xbf\xff"), Err(TextFault::NotUtf8 { at: 3, byte: 0xff }));
    }

    #[test]
    fn files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "\u{feff}one\n").unwrap();
        assert_eq!(read_text(&path).unwrap(), "one\n");
        std::fs::write(&path, b"a\0b\0").unwrap();
        let error = read_text(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("UTF-16"), "{error}");
    }
}
