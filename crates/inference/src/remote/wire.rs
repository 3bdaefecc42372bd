//! What processes say to each other: a byte for the kind, four for the length (little-endian), then the content.

use std::io::{self, Read, Write};

/// Content of a message at most: pictures of 4,096 by 4,096 pixels, or a query's captions.
const MOST: usize = 64 << 20;
/// Samples of a message at most.
const MOST_JOBS: usize = 1 << 16;

/// A sample that is handed to another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// What it is answered by.
    pub id: u64,
    /// Its number.
    pub sample: u64,
    /// Its caption.
    pub caption: String,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Of a worker, first: who it is and what it draws with.
    Hello {
        /// The version of what is said.
        version: u32,
        /// What its pictures depend on, as a digest.
        digest: String,
        /// Its host and number, for messages.
        name: String,
        /// Samples that it takes at once.
        batch: u32,
        /// Samples that it has in work, at most.
        capacity: u32,
    },
    /// The answer: it is one of this run.
    Welcome,
    /// The answer: it is not, and why.
    Refused(String),
    /// Of a worker: its networks are loaded.
    Ready,
    /// Samples to draw, as one batch.
    Work(Vec<Work>),
    /// A picture.
    Done {
        /// The sample's id.
        id: u64,
        /// `[height, width, 3]` of 8 bits.
        pixels: Vec<u8>,
    },
    /// Of a worker: it cannot draw, and why.
    Failed(String),
    /// The sender lives.
    Alive,
    /// The run has ended; whether it failed.
    End {
        /// Whether it failed.
        failed: bool,
    },
}

/// A connection that broke, or on which something else is said.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Nothing was heard for too long.
    #[error("nothing was heard of it for too long")]
    Silent,
    /// The connection broke.
    #[error("its connection broke: {0}")]
    Broken(io::Error),
    /// Something else than these messages.
    #[error("it says something that is not understood: {0}")]
    Strange(&'static str),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Broken(error),
        }
    }
}

/// Writes a message.
///
/// # Errors
/// [`WireError`].
pub fn write_message(out: &mut impl Write, message: &Message) -> Result<(), WireError> {
    let (kind, content) = encoded(message);
    if content.len() > MOST {
        return Err(WireError::Strange("a message of ours is too long"));
    }
    let mut bytes = Vec::with_capacity(5 + content.len());
    bytes.push(kind);
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes.extend(content);
    out.write_all(&bytes)?;
    Ok(out.flush()?)
}

/// Reads a message.
///
/// # Errors
/// [`WireError`].
pub fn read_message(from: &mut impl Read) -> Result<Message, WireError> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST {
        return Err(WireError::Strange("a message is too long"));
    }
    // Read by pieces: a length is believed as far as bytes follow.
    let mut content = Vec::new();
    from.take(length as u64).read_to_end(&mut content)?;
    if content.len() < length {
        return Err(WireError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    let mut reader = Reader(&content);
    let message = decoded(kind, &mut reader).ok_or(WireError::Strange("a message is cut, or of no known kind"))?;
    match reader.0 {
        [] => Ok(message),
        _ => Err(WireError::Strange("a message is longer than its content")),
    }
}

fn encoded(message: &Message) -> (u8, Vec<u8>) {
    let mut content = Vec::new();
    let kind = match message {
        Message::Hello { version, digest, name, batch, capacity } => {
            content.extend(version.to_le_bytes());
            put_text(&mut content, digest);
            put_text(&mut content, name);
            content.extend(batch.to_le_bytes());
            content.extend(capacity.to_le_bytes());
            0
        }
        Message::Welcome => 1,
        Message::Refused(why) => {
            put_text(&mut content, why);
            2
        }
        Message::Ready => 3,
        Message::Work(all) => {
            content.extend((all.len() as u32).to_le_bytes());
            for Work { id, sample, caption } in all {
                content.extend(id.to_le_bytes());
                content.extend(sample.to_le_bytes());
                put_text(&mut content, caption);
            }
            4
        }
        Message::Done { id, pixels } => {
            content.extend(id.to_le_bytes());
            content.extend(pixels);
            5
        }
        Message::Failed(why) => {
            put_text(&mut content, why);
            6
        }
        Message::Alive => 7,
        Message::End { failed } => {
            content.push(u8::from(*failed));
            8
        }
    };
    (kind, content)
}

fn put_text(content: &mut Vec<u8>, text: &str) {
    content.extend((text.len() as u32).to_le_bytes());
    content.extend(text.as_bytes());
}

fn decoded(kind: u8, reader: &mut Reader<'_>) -> Option<Message> {
    Some(match kind {
        0 => Message::Hello {
            version: reader.u32()?,
            digest: reader.text()?,
            name: reader.text()?,
            batch: reader.u32()?,
            capacity: reader.u32()?,
        },
        1 => Message::Welcome,
        2 => Message::Refused(reader.text()?),
        3 => Message::Ready,
        4 => {
            let count = reader.u32()? as usize;
            let work = |_| Some(Work { id: reader.u64()?, sample: reader.u64()?, caption: reader.text()? });
            Message::Work((count <= MOST_JOBS).then(|| (0..count).map(work).collect::<Option<_>>())??)
        }
        5 => Message::Done { id: reader.u64()?, pixels: std::mem::take(&mut reader.0).to_vec() },
        6 => Message::Failed(reader.text()?),
        7 => Message::Alive,
        8 => match reader.array::<1>()? {
            [0] => Message::End { failed: false },
            [1] => Message::End { failed: true },
            _ => return None,
        },
        _ => return None,
    })
}

/// What is left of a message.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }
}
