//! LoadGen's `mlperf_log_accuracy.json`: what a system answered, response by response.
//!
//! LoadGen 6.0.17 writes a JSON list with an object on each line, in the order in which samples were completed:
//! `{ "seq_id" : 5, "qsl_idx" : 4, "data" : "ABCD04" }`, the bytes in upper-case hexadecimal. A log of 5,000 pictures of 1024x1024
//! has 31 GB, so it is read and written response by response.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;
/// Bytes of a response that are taken: a picture of 9,000 x 9,000 pixels.
const LARGEST: usize = 256 << 20;
/// Bytes of a key.
const LONGEST_KEY: usize = 64;
/// What helps where a log breaks off, or holds what LoadGen does not write.
const WHOLE: &str = "judge the whole log as LoadGen wrote it, from before it was truncated for a submission";

/// A log that cannot be read, or is none of LoadGen's.
#[derive(Debug, thiserror::Error)]
pub enum AccuracyLogError {
    /// The file system's error.
    #[error("{}: cannot be read: {source}; check the path and the permissions", path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What stands in the log.
    #[error("{}: line {line}, byte {byte} of the file: {problem}", path.display())]
    Content {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The byte, from 0.
        byte: u64,
        /// What is wrong, and what to do.
        problem: String,
    },
}

type Result<T> = std::result::Result<T, AccuracyLogError>;

/// What a system answered for one sample of one query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Number of the sample among all that were issued.
    pub seq_id: u64,
    /// Number of the sample in the library (LoadGen's `QuerySampleIndex`).
    pub qsl_idx: u64,
    /// The bytes of the answer.
    pub data: Vec<u8>,
}

/// A log that is read response by response, in the order of completion. After an error there is nothing more.
#[derive(Debug)]
pub struct AccuracyLog<R> {
    path: PathBuf,
    reader: R,
    byte: u64,
    line: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Within,
    Ended,
}

impl AccuracyLog<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`AccuracyLogError::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| AccuracyLogError::Io { path: path.to_owned(), source };
        if calotype_core::is_special(path) {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
        }
        Ok(Self::new(path, BufReader::with_capacity(BUFFER, File::open(path).map_err(io)?)))
    }
}

impl<R: BufRead> AccuracyLog<R> {
    /// Reads from `reader`; `path` is what errors call it.
    pub fn new(path: &Path, reader: R) -> Self {
        Self { path: path.to_owned(), reader, byte: 0, line: 1, state: State::Start }
    }

    /// Bytes of the file that are read.
    pub fn position(&self) -> u64 {
        self.byte
    }

    fn wrong<T>(&self, problem: impl Into<String>) -> Result<T> {
        let (path, line, byte) = (self.path.clone(), self.line, self.byte);
        Err(AccuracyLogError::Content { path, line, byte, problem: problem.into() })
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        match self.reader.fill_buf() {
            Ok(bytes) => Ok(bytes.first().copied()),
            Err(source) => Err(AccuracyLogError::Io { path: self.path.clone(), source }),
        }
    }

    fn consume(&mut self, byte: u8) {
        self.reader.consume(1);
        self.byte += 1;
        self.line += u64::from(byte == b'\n');
    }

    /// The next byte that is no blank, which is not consumed; the end of the file is an error.
    fn next_token(&mut self) -> Result<u8> {
        loop {
            match self.peek()? {
                Some(byte @ (b' ' | b'\t' | b'\n' | b'\r')) => self.consume(byte),
                Some(byte) => return Ok(byte),
                None => return self.wrong(format!("the log ends before its list does, as of a killed run; {WHOLE}")),
            }
        }
    }

    fn expect(&mut self, wanted: u8) -> Result<()> {
        let found = self.next_token()?;
        if found == wanted {
            self.consume(found);
            return Ok(());
        }
        self.wrong(format!("`{}` where LoadGen writes `{}`; {WHOLE}", shown(found), wanted as char))
    }

    /// The next response; `None` behind the last.
    fn read(&mut self) -> Result<Option<Response>> {
        match self.state {
            State::Ended => return Ok(None),
            State::Start => {
                if self.peek()?.is_none() {
                    return self.wrong("the log is empty: LoadGen fills it at the end of a run; has the run ended?");
                }
                self.expect(b'[')?;
                self.state = State::Within;
                if self.next_token()? == b']' {
                    return self.end();
                }
            }
            State::Within => match self.next_token()? {
                b']' => return self.end(),
                _ => self.expect(b',')?,
            },
        }
        self.response().map(Some)
    }

    /// Consumes the end of the list, behind which nothing may stand.
    fn end(&mut self) -> Result<Option<Response>> {
        self.consume(b']');
        self.state = State::Ended;
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return self.wrong(format!("`{}` behind the end of the list; remove it", shown(byte)));
            }
            self.consume(byte);
        }
        Ok(None)
    }

    fn response(&mut self) -> Result<Response> {
        let (mut seq_id, mut qsl_idx, mut data) = (None, None, None);
        self.expect(b'{')?;
        loop {
            let key = self.key()?;
            self.expect(b':')?;
            let is_new = match key.as_str() {
                "seq_id" => seq_id.replace(self.number(&key)?).is_none(),
                "qsl_idx" => qsl_idx.replace(self.number(&key)?).is_none(),
                "data" => data.replace(self.bytes()?).is_none(),
                // LoadGen adds counts of tokens where a benchmark has them.
                _ => self.number(&key).map(|_| true)?,
            };
            if !is_new {
                return self.wrong(format!("`{key}` stands twice in a response; {WHOLE}"));
            }
            if self.next_token()? == b'}' {
                self.consume(b'}');
                break;
            }
            self.expect(b',')?;
        }
        let (Some(seq_id), Some(qsl_idx), Some(data)) = (seq_id, qsl_idx, data) else {
            return self.wrong(format!("a response needs `seq_id`, `qsl_idx` and `data`; {WHOLE}"));
        };
        Ok(Response { seq_id, qsl_idx, data })
    }

    fn key(&mut self) -> Result<String> {
        self.expect(b'"')?;
        let mut key = Vec::new();
        loop {
            match self.peek()? {
                Some(b'"') => break,
                Some(byte) if byte.is_ascii_graphic() && byte != b'\\' && key.len() < LONGEST_KEY => {
                    self.consume(byte);
                    key.push(byte);
                }
                _ => return self.wrong(format!("no name of a field of LoadGen's; {WHOLE}")),
            }
        }
        self.consume(b'"');
        Ok(String::from_utf8_lossy(&key).into_owned())
    }

    /// A whole number from 0.
    fn number(&mut self, key: &str) -> Result<u64> {
        let mut value = None;
        self.next_token()?;
        while let Some(byte @ b'0'..=b'9') = self.peek()? {
            let digit = u64::from(byte - b'0');
            value = value.unwrap_or(0u64).checked_mul(10).and_then(|value| value.checked_add(digit));
            if value.is_none() {
                return self.wrong(format!("`{key}` is larger than any number of LoadGen's; {WHOLE}"));
            }
            self.consume(byte);
        }
        match (value, self.peek()?) {
            (Some(value), Some(b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r')) => Ok(value),
            (Some(value), None) => Ok(value),
            _ => self.wrong(format!("`{key}` is no whole number from 0; {WHOLE}")),
        }
    }

    /// Bytes in hexadecimal between quotation marks.
    fn bytes(&mut self) -> Result<Vec<u8>> {
        self.expect(b'"')?;
        let mut data = Vec::new();
        let mut high = None;
        loop {
            let path = &self.path;
            let available =
                self.reader.fill_buf().map_err(|source| AccuracyLogError::Io { path: path.clone(), source })?;
            let (used, stopped) = decode(available, &mut data, &mut high);
            self.reader.consume(used);
            self.byte += used as u64;
            if data.len() > LARGEST {
                return self.wrong(format!("a response of more than {LARGEST} bytes, which is no picture"));
            }
            match stopped {
                Some(b'"') if high.is_none() => break,
                Some(b'"') => return self.wrong(format!("an odd number of hexadecimal digits; {WHOLE}")),
                Some(byte) => {
                    return self.wrong(format!("`{}` among hexadecimal digits; {WHOLE}", shown(byte)));
                }
                None if used == 0 => return self.wrong(format!("the log ends inside a response; {WHOLE}")),
                None => {}
            }
        }
        self.consume(b'"');
        Ok(data)
    }
}

/// Decodes hexadecimal digits up to the first other byte, which is returned with the number of digits; `high` is the half of a byte
/// whose other half follows.
fn decode(text: &[u8], data: &mut Vec<u8>, high: &mut Option<u8>) -> (usize, Option<u8>) {
    data.reserve(text.len() / 2);
    for (at, byte) in text.iter().enumerate() {
        let digit = DIGITS[*byte as usize];
        if digit > 15 {
            return (at, Some(*byte));
        }
        match high.take() {
            None => *high = Some(digit),
            Some(high) => data.push(high << 4 | digit),
        }
    }
    (text.len(), None)
}

/// A byte as messages show it.
fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { char::from(byte).to_string() } else { byte.escape_ascii().to_string() }
}

/// The value of each hexadecimal digit by its character; above 15 for other characters.
const DIGITS: [u8; 256] = {
    let mut digits = [u8::MAX; 256];
    let mut digit = 0;
    while digit < 16 {
        digits[b"0123456789ABCDEF"[digit as usize] as usize] = digit;
        digits[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digit += 1;
    }
    digits
};

impl<R: BufRead> Iterator for AccuracyLog<R> {
    type Item = Result<Response>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().transpose();
        if !matches!(read, Some(Ok(_))) {
            self.state = State::Ended;
        }
        read
    }
}

/// Writes a log as LoadGen does.
///
/// # Errors
/// Those of the writer, and of `responses`.
pub fn write<E: From<io::Error>>(
    writer: &mut dyn Write,
    responses: impl Iterator<Item = std::result::Result<Response, E>>,
) -> std::result::Result<(), E> {
    writer.write_all(b"[")?;
    for (number, response) in responses.enumerate() {
        let Response { seq_id, qsl_idx, data } = response?;
        let comma = if number == 0 { "" } else { "," };
        write!(writer, "{comma}\n{{ \"seq_id\" : {seq_id}, \"qsl_idx\" : {qsl_idx}, \"data\" : \"")?;
        for chunk in data.chunks(1 << 12) {
            let digits = chunk.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            writer.write_all(&digits.map(|digit| b"0123456789ABCDEF"[digit as usize]).collect::<Vec<u8>>())?;
        }
        writer.write_all(b"\" }")?;
    }
    Ok(writer.write_all(b"\n]\n")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8], at_once: usize) -> Result<Vec<Response>> {
        AccuracyLog::new(Path::new("a.json"), BufReader::with_capacity(at_once, content)).collect()
    }

    fn response(seq_id: u64, qsl_idx: u64, data: &[u8]) -> Response {
        Response { seq_id, qsl_idx, data: data.to_owned() }
    }

    #[test]
    fn what_loadgen_writes_is_read_and_written_alike() {
        // LoadGen 6.0.17, six samples completed backwards, one of them with no bytes.
        let log = "[\n{ \"seq_id\" : 5, \"qsl_idx\" : 4, \"data\" : \"ABCD04\" },\n{ \"seq_id\" : 4, \"qsl_idx\" : 0, \"data\" : \"\" }\n]\n";
        let responses = [response(5, 4, &[0xab, 0xcd, 4]), response(4, 0, &[])];
        for at_once in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(read(log.as_bytes(), at_once).unwrap(), responses);
            assert!(read(b"[\n]\n", at_once).unwrap().is_empty());
        }
        let mut written = Vec::new();
        write(&mut written, responses.into_iter().map(Ok::<_, io::Error>)).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), log);
        let mut empty = Vec::new();
        write(&mut empty, std::iter::empty::<io::Result<Response>>()).unwrap();
        assert_eq!(empty, b"[\n]\n");
    }

    #[test]
    fn other_json_of_the_same_list_is_read() {
        let log = br#" [{"data":"0a0B","token_count" : 3 ,"qsl_idx":18446744073709551615,"seq_id":0}
            ,
            {"qsl_idx":1,"seq_id":2,"data":"ff"}]"#;
        assert_eq!(read(log, 5).unwrap(), [response(0, u64::MAX, &[0x0a, 0x0b]), response(2, 1, &[0xff])]);
    }

    #[test]
    fn what_is_no_log_is_named() {
        let entry = r#"{ "seq_id" : 5, "qsl_idx" : 4, "data" : "ABCD04" }"#;
        let whole = format!("[\n{entry}\n]\n");
        let changed = |from: &str, to: &str| whole.replacen(from, to, 1);
        for (content, problem) in [
            (String::new(), "line 1, byte 0 of the file: the log is empty"),
            ("\n".to_owned(), "line 2, byte 1 of the file: the log ends before its list does"),
            ("{}".to_owned(), "`{` where LoadGen writes `[`"),
            ("[".to_owned(), "the log ends before its list does"),
            (whole[..40].to_owned(), "byte 40 of the file: the log ends"),
            (whole[..48].to_owned(), "the log ends inside a response"),
            (whole[..whole.len() - 2].to_owned(), "line 3, byte 53 of the file: the log ends before its list does"),
            (format!("{whole}[]"), "`[` behind the end of the list"),
            (changed("}\n", "},\n"), "`]` where LoadGen writes `{`"),
            (changed("}\n", "}\n{"), "`{` where LoadGen writes `,`"),
            (changed("D04", "D4"), "an odd number of hexadecimal digits"),
            (changed("D04", "D0\n\n...\n\n4"), "`\\n` among hexadecimal digits; judge the whole log"),
            (changed("D04", "D0G"), "`G` among hexadecimal digits"),
            (changed("\"ABCD04\"", "4"), "`4` where LoadGen writes `\"`"),
            (changed("\"ABCD04\"", "null"), "`n` where LoadGen writes `\"`"),
            (changed("5", "-5"), "`seq_id` is no whole number"),
            (changed(": 4", ": 4.0"), "`qsl_idx` is no whole number"),
            (changed(": 4", ": 4e0"), "`qsl_idx` is no whole number"),
            (changed(": 4", ": \"4\""), "`qsl_idx` is no whole number"),
            (changed(": 4", ": 18446744073709551616"), "`qsl_idx` is larger"),
            (changed("\"qsl_idx\"", "\"seq_id\""), "`seq_id` stands twice"),
            (changed("\"qsl_idx\"", "\"other\""), "needs `seq_id`, `qsl_idx` and `data`"),
            (changed(": 4,", ": 4, \"other\" : [],"), "`other` is no whole number"),
            (changed("qsl_idx", "qsl\\u005fidx"), "no name of a field"),
            (changed("qsl_idx", &"q".repeat(65)), "no name of a field"),
            (changed(", ", " "), "`\"` where LoadGen writes `,`"),
            (changed("{ ", "[ "), "`[` where LoadGen writes `{`"),
            (changed("{ \"seq_id\" : 5, ", "{ , "), "`,` where LoadGen writes `\"`"),
            ("\u{feff}[]".to_owned(), "`\\xef` where LoadGen writes `[`"),
        ] {
            for at_once in [1, 4096] {
                let error = read(content.as_bytes(), at_once).unwrap_err().to_string();
                assert!(error.contains(problem) && error.starts_with("a.json: line "), "{content:?}: {error}");
            }
        }
    }

    #[test]
    fn nothing_follows_an_error() {
        let mut log = AccuracyLog::new(Path::new("a.json"), &b"[x"[..]);
        assert!(log.next().unwrap().is_err());
        assert!(log.next().is_none());
        let error = AccuracyLog::open(Path::new("/nowhere/a.json")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/a.json: cannot be read"), "{error}");
    }
}
