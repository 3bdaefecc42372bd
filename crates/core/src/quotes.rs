//! Quotes in tables of text (CSV, TSV) that nothing closes.
//!
//! A reader of such tables takes an open quote for a field that goes on to the next quote, or to the end of the file: the rows between
//! become a part of one field, and nobody is told. [`Quotes`] finds it while the table is read.

use std::io::{self, Read};

/// A quote that takes in lines behind its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a quote that opens in line {line} is left open, and takes in the lines behind it: close it in its line, or double each quote \
     that is a part of a text and put the whole text into quotes"
)]
pub struct OpenQuote {
    /// The line, from 1.
    pub line: u64,
}

/// A table on its way to a reader; an error of kind [`io::ErrorKind::InvalidData`], which holds an [`OpenQuote`], where a quote is left
/// open.
///
/// A quote opens at the beginning of a field and closes in front of a delimiter, the end of a line or of the table; doubled, it is a
/// letter (RFC 4180). A field of several lines is taken as it is if its quote closes so. What closes at the end of the table is an error
/// only if it has taken in another line.
#[derive(Debug)]
pub struct Quotes<R> {
    input: R,
    scan: Option<Scan>,
}

impl<R> Quotes<R> {
    /// Reads a table with `delimiter` between its fields; none where quotes are letters like others.
    pub fn new(input: R, delimiter: Option<u8>) -> Self {
        Self { input, scan: delimiter.map(Scan::new) }
    }
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let Some(scan) = &mut self.scan else { return Ok(count) };
        let is_end = count == 0 && !buffer.is_empty();
        let looked = if is_end { scan.end() } else { scan.take(&buffer[..count]) };
        looked.map(|()| count).map_err(|open| io::Error::new(io::ErrorKind::InvalidData, open))
    }
}

/// Where in a field the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Beginning,
    Plain,
    Quoted,
    /// Behind a quote in a quoted field: its end, or the first half of a doubled one.
    BehindQuote,
}

#[derive(Debug)]
struct Scan {
    delimiter: u8,
    place: Place,
    line: u64,
    /// Line of the last quote that opened.
    opened: u64,
    /// Whether it has met the end of its line, and something behind it.
    broken: bool,
    swallowed: bool,
}

impl Scan {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, place: Place::Beginning, line: 1, opened: 1, broken: false, swallowed: false }
    }

    fn open_quote(&self) -> OpenQuote {
        OpenQuote { line: self.opened }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), OpenQuote> {
        bytes.iter().try_for_each(|byte| self.step(*byte))
    }

    fn step(&mut self, byte: u8) -> Result<(), OpenQuote> {
        let is_break = matches!(byte, b'\n' | b'\r');
        self.place = match (self.place, byte) {
            (Place::Quoted, b'"') => Place::BehindQuote,
            (Place::Quoted, _) | (Place::BehindQuote, b'"') => {
                self.swallowed |= self.broken && !is_break;
                self.broken |= is_break;
                Place::Quoted
            }
            _ if is_break || byte == self.delimiter => Place::Beginning,
            (Place::Beginning, b'"') => {
                (self.opened, self.broken, self.swallowed) = (self.line, false, false);
                Place::Quoted
            }
            // The quote that closed it was meant to open another field.
            (Place::BehindQuote, _) if self.broken => return Err(self.open_quote()),
            _ => Place::Plain,
        };
        self.line += u64::from(byte == b'\n');
        Ok(())
    }

    fn end(&self) -> Result<(), OpenQuote> {
        match self.place == Place::Quoted && self.swallowed {
            true => Err(self.open_quote()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads in pieces of a few bytes.
    fn read(text: &str, delimiter: u8, piece: usize) -> Result<String, OpenQuote> {
        let mut quotes = Quotes::new(text.as_bytes(), Some(delimiter));
        let (mut read, mut buffer) = (Vec::new(), vec![0; piece]);
        loop {
            match quotes.read(&mut buffer) {
                Ok(0) => return Ok(String::from_utf8(read).unwrap()),
                Ok(count) => read.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(*error.get_ref().unwrap().downcast_ref::<OpenQuote>().unwrap()),
            }
        }
    }

    #[test]
    fn a_quote_that_takes_in_other_lines_is_found() {
        for (text, line) in [
            ("f,t\na,\"one\nb,two\nc,three\n", 2),
            ("f,t\na,one\nb,\"two\nc,three", 3),
            // The next row's quotes close it and leave a rest.
            ("f,t\na,\"one\nb,\"two\"\n", 2),
            ("f,t\na,\"one\nb,two\nc,\"three\nd,four\n", 2),
            ("f,t\na,\"one\n\"b\",two\n", 2),
            ("f,t\r\n\"a,one\r\nb,two\r\n", 2),
            ("f,t\na,\"x \"\"y\"\"\nb,two\n", 2),
            ("\"f,t\na,one\n", 1),
        ] {
            for piece in [1, 3, 64] {
                assert_eq!(read(text, b',', piece), Err(OpenQuote { line }), "{text:?}");
            }
        }
        assert_eq!(read("f\tt\na\t\"one, two\nb\tthree\n", b'\t', 8), Err(OpenQuote { line: 2 }));
    }

    #[test]
    fn other_quotes_pass() {
        for text in [
            "",
            "f,t\na,one\n",
            "f,t\na,\"one, \"\"two\"\"\nthree\"\nb,four\n",
            "f,t\na,\"one\n\n\ntwo\"",
            "f,t\na,\"one\r\ntwo\"\r\nb,three\r\n",
            // A quote inside of a field is a letter, and so is one behind a blank.
            "f,t\na,5\" wide\nb, \"two\nc,three\n",
            // What a reader takes as it is, and loses nothing of.
            "f,t\na,\"one\" and \"two\"\nb,three\n",
            "f,t\na,one\nb,\"two\n",
            "f,t\na,one\nb,\"",
            "f,t\na,\"\"\nb,\"\"\"\"\n",
        ] {
            for piece in [1, 3, 64] {
                assert_eq!(read(text, b',', piece).as_deref(), Ok(text), "{text:?}");
            }
        }
        let mut plain = String::new();
        Quotes::new(&b"a,\"one\nb,two\n"[..], None).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, "a,\"one\nb,two\n");
    }
}
