//! Zip archives whose stored entries are used in place.
//!
//! The format is PKWARE's APPNOTE 6.3, of which this reads what `torch.save` and common packers write: entries stored or
//! deflated, sizes of 32 or 64 bits, one volume. The central directory decides; every local header must agree with it, no two
//! entries may share bytes, and the sizes of what is compressed are bounded before anything is unpacked.

use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use crate::error::TensorFileError;
use crate::map::MappedFile;

/// A fault of a zip or tar archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveFault {
    /// A zip archive without its end record.
    #[error("the zip archive has no directory at its end: it is truncated; copy or download it again")]
    NoDirectory,
    /// A directory that contradicts the file's length or itself.
    #[error("the directory of the zip archive is damaged: {0}; copy or download it again")]
    Directory(&'static str),
    /// An archive in several files.
    #[error("the zip archive is one of several volumes; join them first")]
    Volumes,
    /// An encrypted entry.
    #[error("entry `{0}` of the zip archive is encrypted; decrypt it first")]
    Encrypted(String),
    /// A compression that is not read.
    #[error("entry `{entry}` of the zip archive is compressed by method {method}; store or deflate it instead")]
    Method {
        /// The entry.
        entry: String,
        /// The method's number.
        method: u16,
    },
    /// Two entries of the same name.
    #[error("entry `{0}` is in the archive twice")]
    Duplicate(String),
    /// An entry that lies, at least in part, outside the file.
    #[error("entry `{0}` of the archive lies outside the file; copy or download it again")]
    OutOfRange(String),
    /// Two entries that share bytes.
    #[error("the bytes of entries `{first}` and `{second}` of the zip archive overlap; refused")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
    },
    /// A local header that says something else than the directory.
    #[error("the local header of entry `{entry}` contradicts the zip archive's directory: {reason}; refused")]
    LocalHeader {
        /// The entry.
        entry: String,
        /// The difference, in words.
        reason: &'static str,
    },
    /// Compressed content that would take far more memory than the file.
    #[error("its content unpacks to {unpacked} bytes, and a file of this length may hold {limit}; refused as a bomb")]
    Bomb {
        /// Bytes announced or met.
        unpacked: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Compressed data that are damaged or of another length than announced.
    #[error("entry `{0}` of the zip archive does not unpack to its announced length; copy or download it again")]
    Unpacking(String),
    /// Content whose checksum is another.
    #[error("the checksum of entry `{0}` is wrong: the file is damaged; copy or download it again")]
    Checksum(String),
    /// A part that such an archive has to have is not there.
    #[error("the archive has no `{part}`: {remedy}")]
    MissingPart {
        /// The part.
        part: &'static str,
        /// Meaning of the method, and the remedy.
        remedy: &'static str,
    },
    /// A kind of archive or part that is not read.
    #[error("{found}; {remedy}")]
    Unsupported {
        /// Kind of member that was found.
        found: &'static str,
        /// The remedy.
        remedy: &'static str,
    },
    /// A tar archive that is damaged.
    #[error("the tar archive is damaged: {0}; copy or download it again")]
    Tar(String),
    /// A text part that is not UTF-8.
    #[error("part `{0}` of the archive is not UTF-8 text")]
    Text(String),
    /// A part that should hold texts by name.
    #[error("part `{0}` of the archive is no JSON object of texts; convert the checkpoint again, or take the part out")]
    Texts(&'static str),
}

/// Bytes that the compressed content of a file of `file_bytes` may unpack to. Weights hardly compress; a ratio above this is
/// a bomb, or zeros that need not be packed.
pub(crate) fn unpacking_limit(file_bytes: u64) -> u64 {
    const RATIO: u64 = 20;
    const SMALL_FILES: u64 = 512 << 10;
    file_bytes.saturating_mul(RATIO).saturating_add(SMALL_FILES)
}

/// A zip archive on disk, mapped into memory, for readers of other things than weights.
pub struct ZipFile {
    map: MappedFile,
    archive: ZipArchive,
}

impl std::fmt::Debug for ZipFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZipFile").field("path", &self.map.path()).finish_non_exhaustive()
    }
}

impl ZipFile {
    /// Opens the archive and checks its directory.
    ///
    /// # Errors
    /// `Archive` of [`TensorFileError`] if it is damaged, and those of reading a file.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let map = MappedFile::open(path)?;
        let fault = |reason| TensorFileError::Archive { file: path.to_owned(), reason };
        let archive = ZipArchive::read(map.bytes()).map_err(fault)?;
        Ok(ZipFile { map, archive })
    }

    /// The entries' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.archive.entries().iter().map(|entry| entry.name(self.map.bytes()))
    }

    /// Content of the entry of that name, with its checksum compared; `None` if there is none.
    ///
    /// # Errors
    /// [`ArchiveFault::Unpacking`] if the data are damaged, [`ArchiveFault::Checksum`] if they are not what was
    /// packed.
    pub fn content(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ArchiveFault> {
        let bytes = self.map.bytes();
        let Some(entry) = self.archive.entry(bytes, name) else { return Ok(None) };
        entry.verified(bytes).map(Some)
    }
}

/// Names and contents.
pub type Contents<'a> = Vec<(String, Cow<'a, [u8]>)>;

/// Names and contents of a zip archive in memory, by name, with all checksums compared.
///
/// # Errors
/// Whatever is wrong with it.
pub fn unzip(bytes: &[u8]) -> Result<Contents<'_>, ArchiveFault> {
    let archive = ZipArchive::read(bytes)?;
    archive.entries().iter().map(|entry| Ok((entry.name(bytes), entry.verified(bytes)?))).collect()
}

/// The directory of a zip archive. All ranges count from the start of the archive's bytes, which methods ask for again.
#[derive(Debug)]
pub(crate) struct ZipArchive {
    /// Sorted by name.
    entries: Vec<ZipEntry>,
}

/// One entry of a zip archive.
#[derive(Clone, Debug)]
pub(crate) struct ZipEntry {
    name: Range<usize>,
    /// The bytes as they lie in the file, packed or not.
    pub(crate) data: Range<usize>,
    /// Length of the content.
    pub(crate) length: usize,
    /// True if the content lies in the file as it is.
    pub(crate) stored: bool,
    checksum: u32,
}

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;

/// A little-endian number of `length` bytes at `at`.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let piece = bytes.get(at..at.checked_add(length)?)?;
    let mut padded = [0; 8];
    padded[..length].copy_from_slice(piece);
    Some(u64::from_le_bytes(padded))
}

fn has_signature(bytes: &[u8], at: usize, signature: u32) -> bool {
    number(bytes, at, 4) == Some(u64::from(signature))
}

/// Place of the directory in the file, and the number of its entries.
struct Directory {
    start: usize,
    end: usize,
    entries: u64,
}

impl ZipArchive {
    /// Reads and checks the directory.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, ArchiveFault> {
        let directory = find_directory(bytes)?;
        let shortest_entry = 46;
        let room = (directory.end - directory.start) / shortest_entry;
        if directory.entries > room as u64 {
            return Err(ArchiveFault::Directory("it announces more entries than fit into it"));
        }
        let mut entries = Vec::with_capacity(directory.entries as usize);
        let mut at = directory.start;
        for _ in 0..directory.entries {
            let (entry, next) = read_entry(&bytes[..directory.end], at, directory.start)?;
            entries.push(entry);
            at = next;
        }
        check_overlaps(bytes, &mut entries)?;
        check_unpacked_size(bytes, &entries)?;
        let name = |entry: &ZipEntry| &bytes[entry.name.clone()];
        entries.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        if let Some(pair) = entries.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            return Err(ArchiveFault::Duplicate(pair[0].name(bytes)));
        }
        Ok(Self { entries })
    }

    /// The entry of that name.
    pub(crate) fn entry(&self, bytes: &[u8], name: &str) -> Option<&ZipEntry> {
        let order = |entry: &ZipEntry| bytes[entry.name.clone()].cmp(name.as_bytes());
        self.entries.binary_search_by(order).ok().map(|index| &self.entries[index])
    }

    /// All entries, by name.
    pub(crate) fn entries(&self) -> &[ZipEntry] {
        &self.entries
    }
}

impl ZipEntry {
    /// The name, for messages and look-ups.
    pub(crate) fn name(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(&bytes[self.name.clone()]).into_owned()
    }

    /// The name as it lies in the file.
    pub(crate) fn raw_name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.name.clone()]
    }

    /// The content: in place if it is stored, unpacked (and its checksum compared) if it is not.
    pub(crate) fn content<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, ArchiveFault> {
        let packed = &bytes[self.data.clone()];
        if self.stored {
            return Ok(Cow::Borrowed(packed));
        }
        let fault = || ArchiveFault::Unpacking(self.name(bytes));
        let mut content = Vec::new();
        content.try_reserve_exact(self.length).map_err(|_| fault())?;
        content.resize(self.length, 0);
        let mut decoder = flate2::read::DeflateDecoder::new(packed);
        decoder.read_exact(&mut content).map_err(|_| fault())?;
        // More content than announced, or data after it, is a lie about the size as well.
        if !matches!(decoder.read(&mut [0]), Ok(0)) || decoder.total_in() != packed.len() as u64 {
            return Err(fault());
        }
        self.compare_checksum(&content, bytes)?;
        Ok(Cow::Owned(content))
    }

    /// Compares the content with the directory's checksum.
    pub(crate) fn verify(&self, bytes: &[u8]) -> Result<(), ArchiveFault> {
        self.verified(bytes).map(|_| ())
    }

    /// The content, with its checksum compared.
    fn verified<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, ArchiveFault> {
        let content = self.content(bytes)?;
        if self.stored {
            self.compare_checksum(&content, bytes)?;
        }
        Ok(content)
    }

    fn compare_checksum(&self, content: &[u8], bytes: &[u8]) -> Result<(), ArchiveFault> {
        if crc32fast::hash(content) == self.checksum { Ok(()) } else { Err(ArchiveFault::Checksum(self.name(bytes))) }
    }
}

/// Finds the end record: the last one whose comment reaches exactly to the end of the file.
fn find_directory(bytes: &[u8]) -> Result<Directory, ArchiveFault> {
    const RECORD: usize = 22;
    const LONGEST_COMMENT: usize = u16::MAX as usize;
    let last = bytes.len().checked_sub(RECORD).ok_or(ArchiveFault::NoDirectory)?;
    let first = last.saturating_sub(LONGEST_COMMENT);
    let is_end = |at: usize| {
        has_signature(bytes, at, END) && number(bytes, at + 20, 2) == Some((bytes.len() - at - RECORD) as u64)
    };
    let end = (first..=last).rev().find(|&at| is_end(at)).ok_or(ArchiveFault::NoDirectory)?;
    let field = |at, length| number(bytes, end + at, length).ok_or(ArchiveFault::NoDirectory);
    let (mut disk, mut entries, mut size, mut start) = (field(4, 2)?, field(10, 2)?, field(12, 4)?, field(16, 4)?);
    let mut directory_limit = end;
    if let Some(locator) = end.checked_sub(20).filter(|&at| has_signature(bytes, at, LOCATOR64)) {
        let damaged = ArchiveFault::Directory("its 64-bit end record is not where it should be");
        let record = number(bytes, locator + 8, 8).and_then(|at| usize::try_from(at).ok());
        let record = record.filter(|&at| at < locator && has_signature(bytes, at, END64)).ok_or(damaged.clone())?;
        let wide = |at, length| number(&bytes[..locator], record + at, length).ok_or(damaged.clone());
        (disk, entries, size, start) = (wide(16, 4)?, wide(32, 8)?, wide(40, 8)?, wide(48, 8)?);
        directory_limit = record;
    }
    if disk != 0 {
        return Err(ArchiveFault::Volumes);
    }
    let range = usize::try_from(start).ok().zip(start.checked_add(size).and_then(|end| usize::try_from(end).ok()));
    match range {
        Some((start, end)) if end <= directory_limit => Ok(Directory { start, end, entries }),
        _ => Err(ArchiveFault::Directory("it does not end before the end record")),
    }
}

/// One entry of the directory at `at`, and where the next one starts. Data must end before the directory.
fn read_entry(bytes: &[u8], at: usize, directory_start: usize) -> Result<(ZipEntry, usize), ArchiveFault> {
    let damaged = || ArchiveFault::Directory("an entry is cut off or has no signature");
    let field = |offset, length| number(bytes, at + offset, length).ok_or_else(damaged);
    if !has_signature(bytes, at, CENTRAL) {
        return Err(damaged());
    }
    let (flags, method) = (field(8, 2)? as u16, field(10, 2)? as u16);
    let name_length = field(28, 2)? as usize;
    let extra_length = field(30, 2)? as usize;
    let next = at + 46 + name_length + extra_length + field(32, 2)? as usize;
    if next > bytes.len() {
        return Err(damaged());
    }
    let name = at + 46..at + 46 + name_length;
    let shown = || String::from_utf8_lossy(&bytes[name.clone()]).into_owned();
    if flags & 1 != 0 {
        return Err(ArchiveFault::Encrypted(shown()));
    }
    if method != 0 && method != 8 {
        return Err(ArchiveFault::Method { entry: shown(), method });
    }
    let extra = &bytes[name.end..name.end + extra_length];
    let sizes = [field(24, 4)?, field(20, 4)?, field(42, 4)?];
    let [length, packed, local] =
        wide_fields(extra, sizes).ok_or(ArchiveFault::Directory("the 64-bit sizes of an entry are missing"))?;
    let header = LocalHeader { name: &bytes[name.clone()], flags, method, length, packed };
    let data = usize::try_from(local).ok().filter(|&local| local < directory_start);
    let data = data.ok_or_else(|| ArchiveFault::OutOfRange(shown()))?;
    let data = header.check(&bytes[..directory_start], data)?;
    let length = usize::try_from(length).map_err(|_| ArchiveFault::OutOfRange(shown()))?;
    if method == 0 && length != data.len() {
        return Err(ArchiveFault::LocalHeader { entry: shown(), reason: "a stored entry has two sizes" });
    }
    let checksum = field(16, 4)? as u32;
    Ok((ZipEntry { name, data, length, stored: method == 0, checksum }, next))
}

/// Replaces those of the fields that are all ones by the 64-bit ones of the extra field.
fn wide_fields<const N: usize>(extra: &[u8], mut fields: [u64; N]) -> Option<[u64; N]> {
    const WIDE: u64 = u32::MAX as u64;
    if !fields.contains(&WIDE) {
        return Some(fields);
    }
    let mut at = 0;
    while let (Some(tag), Some(length)) = (number(extra, at, 2), number(extra, at + 2, 2)) {
        let content = extra.get(at + 4..at + 4 + length as usize)?;
        if tag == 1 {
            let mut values = content.as_chunks::<8>().0.iter();
            for field in fields.iter_mut().filter(|field| **field == WIDE) {
                *field = u64::from_le_bytes(*values.next()?);
            }
            return Some(fields);
        }
        at += 4 + length as usize;
    }
    None
}

/// The directory's facts about an entry, to be compared with the header in front of the data.
struct LocalHeader<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    length: u64,
    packed: u64,
}

impl LocalHeader<'_> {
    /// Compares it with the header at `at` of `bytes`, which end where data must end; the range of the data.
    fn check(&self, bytes: &[u8], at: usize) -> Result<Range<usize>, ArchiveFault> {
        const SIZES_FOLLOW: u16 = 1 << 3;
        let entry = || String::from_utf8_lossy(self.name).into_owned();
        let differs = |reason| ArchiveFault::LocalHeader { entry: entry(), reason };
        let field = |offset, length| number(bytes, at + offset, length).ok_or(ArchiveFault::OutOfRange(entry()));
        if !has_signature(bytes, at, LOCAL) {
            return Err(differs("there is none"));
        }
        let name_end = at + 30 + field(26, 2)? as usize;
        let start = name_end + field(28, 2)? as usize;
        let extra = bytes.get(name_end..start).ok_or_else(|| ArchiveFault::OutOfRange(entry()))?;
        if bytes[at + 30..name_end] != *self.name {
            return Err(differs("another name"));
        }
        if field(8, 2)? as u16 != self.method {
            return Err(differs("another compression"));
        }
        if (field(6, 2)? as u16 ^ self.flags) & 1 != 0 {
            return Err(differs("another encryption"));
        }
        let sizes = wide_fields(extra, [field(22, 4)?, field(18, 4)?]).ok_or_else(|| differs("no 64-bit sizes"))?;
        // Writers of streams leave zeros there and put the sizes after the data.
        let follow = self.flags & SIZES_FOLLOW != 0 && sizes == [0, 0];
        if !follow && sizes != [self.length, self.packed] {
            return Err(differs("other sizes"));
        }
        let end = usize::try_from(self.packed).ok().and_then(|packed| start.checked_add(packed));
        match end.filter(|&end| end <= bytes.len()) {
            Some(end) => Ok(start..end),
            None => Err(ArchiveFault::OutOfRange(entry())),
        }
    }
}

fn check_overlaps(bytes: &[u8], entries: &mut [ZipEntry]) -> Result<(), ArchiveFault> {
    entries.sort_unstable_by_key(|entry| (entry.data.start, entry.data.end));
    for pair in entries.windows(2) {
        if pair[1].data.start < pair[0].data.end {
            return Err(ArchiveFault::Overlap { first: pair[0].name(bytes), second: pair[1].name(bytes) });
        }
    }
    Ok(())
}

fn check_unpacked_size(bytes: &[u8], entries: &[ZipEntry]) -> Result<(), ArchiveFault> {
    let lengths = entries.iter().filter(|entry| !entry.stored).map(|entry| entry.length as u64);
    let unpacked = lengths.fold(0, u64::saturating_add);
    let limit = unpacking_limit(bytes.len() as u64);
    if unpacked > limit { Err(ArchiveFault::Bomb { unpacked, limit }) } else { Ok(()) }
}
