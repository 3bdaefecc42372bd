//! Short messages on a connection: a kind, a length, and content.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Who calls, for the meeting.
    Hello = 1,
    /// Who calls, for messages.
    Data = 2,
    /// It is the right place.
    Here = 3,
    /// Who calls may not take part, and why.
    Refused = 4,
    /// All are here: hosts and addresses.
    Welcome = 5,
    /// A sign of life.
    Beat = 6,
    /// A process has ended in good order.
    Goodbye = 7,
    /// A process has failed.
    Failed = 8,
}

impl Kind {
    const ALL: [Self; 8] =
        [Self::Hello, Self::Data, Self::Here, Self::Refused, Self::Welcome, Self::Beat, Self::Goodbye, Self::Failed];
}

/// The longest content: addresses of some hundred thousand processes. Who announces more is no process of ours.
pub(crate) const LONGEST: usize = 16 << 20;
/// Kind and length.
const HEAD: usize = 5;

/// A message as bytes.
pub(crate) fn frame(kind: Kind, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + content.len());
    bytes.push(kind as u8);
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes.extend(content);
    bytes
}

/// Writes one message.
pub(crate) fn write(stream: &mut TcpStream, kind: Kind, content: &[u8]) -> io::Result<()> {
    stream.write_all(&frame(kind, content))
}

/// Reads one message and nothing behind it.
///
/// # Errors
/// The connection's, or `InvalidData` if no process of ours writes such bytes.
pub(crate) fn read(stream: &mut TcpStream) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head)?;
    let (kind, length) = opened(&head)?;
    let mut content = Vec::new();
    stream.take(length as u64).read_to_end(&mut content)?;
    match content.len() == length {
        true => Ok((kind, content)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Kind and length out of a message's head.
fn opened(head: &[u8; HEAD]) -> io::Result<(Kind, usize)> {
    let [kind, length @ ..] = *head;
    let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind);
    match (kind, u32::from_le_bytes(length) as usize) {
        (Some(kind), length) if length <= LONGEST => Ok((kind, length)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak as a process of Calotype")),
    }
}

/// Messages out of bytes that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Whether nothing has come since the last message.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message that is complete.
    ///
    /// # Errors
    /// `InvalidData` if no process of ours writes such bytes.
    pub(crate) fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let Some((head, rest)) = self.bytes.split_first_chunk() else { return Ok(None) };
        let (kind, length) = opened(head)?;
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let content = content.to_vec();
        self.bytes.drain(..HEAD + length);
        Ok(Some((kind, content)))
    }

    /// Waits for the next message until the deadline.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `UnexpectedEof` if the connection ends, `InvalidData` as [`Frames::next`], or the
    /// connection's error.
    pub(crate) fn read_until(&mut self, stream: &mut TcpStream, deadline: Instant) -> io::Result<(Kind, Vec<u8>)> {
        loop {
            if let Some(message) = self.next()? {
                return Ok(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
            }
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            self.read_some(stream)?;
        }
    }

    /// Reads what there is; nothing if the time is over.
    ///
    /// # Errors
    /// `UnexpectedEof` if the connection ends, or its error.
    pub(crate) fn read_some(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its connection was closed")),
            Ok(length) => {
                self.push(&piece[..length]);
                Ok(())
            }
            Err(error) if passes(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether an operation may be tried again.
pub(crate) fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// Fields of a message's content, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Fields(pub(crate) Vec<u8>);

impl Fields {
    pub(crate) fn number(mut self, number: usize) -> Self {
        self.0.extend((number as u64).to_le_bytes());
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        let mut fields = self.number(text.len());
        fields.0.extend(text.as_bytes());
        fields
    }
}

/// The reverse. `None` where the content ends early.
#[derive(Debug)]
pub(crate) struct FieldReader<'a>(pub(crate) &'a [u8]);

impl FieldReader<'_> {
    pub(crate) fn number(&mut self) -> Option<usize> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u64::from_le_bytes(*number)).ok()
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        let length = self.number()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_pieces() {
        let bytes = [frame(Kind::Beat, &[]), frame(Kind::Failed, b"why"), frame(Kind::Goodbye, &[1])].concat();
        for piece in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut read = Vec::new();
            for part in bytes.chunks(piece) {
                frames.push(part);
                while let Some(message) = frames.next().unwrap() {
                    read.push(message);
                }
            }
            let expected = [(Kind::Beat, vec![]), (Kind::Failed, b"why".to_vec()), (Kind::Goodbye, vec![1])];
            assert_eq!(read, expected, "pieces of {piece}");
        }
    }

    #[test]
    fn strangers_are_known_by_their_first_bytes() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0; 5], &[9; 5], &[1, 255, 255, 255, 255]] {
            let mut frames = Frames::default();
            frames.push(bytes);
            assert_eq!(frames.next().unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }

    #[test]
    fn cut_fields_are_none() {
        let whole = Fields::default().number(7).text("host").0;
        let mut reader = FieldReader(&whole);
        assert_eq!((reader.number(), reader.text().as_deref(), reader.number()), (Some(7), Some("host"), None));
        for length in 0..whole.len() {
            let mut reader = FieldReader(&whole[..length]);
            assert!(reader.number().is_none() || reader.text().is_none(), "{length} bytes");
        }
        let huge = Fields::default().number(usize::MAX).0;
        assert_eq!(FieldReader(&huge).text(), None);
    }
}
