//! Memory that two processes of one host share, through which long messages go without the system copying them.
//!
//! A sender makes the memory, with a name that ends with it (`memfd_create`), and offers it on its connection. The receiver maps it
//! by the sender's table of open files, which only the same user may read, and compares a token, for in another namespace the
//! name may be that of something else. Where any of this fails, messages go through the connection as before.
//!
//! Layout: how many bytes have been taken out (`u64`), a token (16 bytes), and from [`START`] on the messages, which go round.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::frame::{FieldReader, Fields};

/// Where messages begin: a page on.
const START: usize = 4096;
const TOKEN: std::ops::Range<usize> = 8..24;
/// What is shorter goes through the connection, together with its head.
pub(crate) const SHORT: usize = 64 << 10;
/// Memory of all rings that end at one process.
const OF_ALL: usize = 16 << 20;

/// The memory, and how much has been put in or taken out by its holder.
#[derive(Debug)]
struct Ring {
    memory: MmapRaw,
    moved: u64,
}

impl Ring {
    fn map(file: &File, capacity: usize) -> io::Result<Self> {
        let memory = MmapOptions::new().len(START + capacity).map_raw(file)?;
        Ok(Self { memory, moved: 0 })
    }

    fn capacity(&self) -> usize {
        self.memory.len() - START
    }

    /// Bytes that the receiver has taken out.
    fn taken(&self) -> &AtomicU64 {
        // SAFETY: a mapping begins at a page and is longer than 8 bytes; both processes use these as an atomic number alone.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().cast()) }
    }

    fn token(&self) -> [u8; TOKEN.end - TOKEN.start] {
        let mut token = [0; TOKEN.end - TOKEN.start];
        // SAFETY: these bytes are inside the mapping, and are written before it is offered.
        unsafe {
            std::ptr::copy_nonoverlapping(self.memory.as_ptr().add(TOKEN.start), token.as_mut_ptr(), token.len())
        };
        token
    }

    /// The next `length` bytes of the ring: one place, and a second one at its begin where the end is met.
    fn places(&self, length: usize) -> [(usize, usize); 2] {
        let at = (self.moved % self.capacity() as u64) as usize;
        let first = length.min(self.capacity() - at);
        [(START + at, first), (START, length - first)]
    }
}

/// The end that puts messages in.
#[derive(Debug)]
pub(crate) struct Sender {
    ring: Ring,
    /// Keeps the name of the memory alive until the receiver has opened it.
    file: File,
}

impl Sender {
    /// Memory for messages to one of `processes` on this host.
    #[cfg(target_os = "linux")]
    pub(crate) fn create(processes: usize) -> io::Result<Self> {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let capacity = (OF_ALL / processes.max(1)).max(4 * SHORT) / START * START;
        let file = File::from(memfd_create(c"calotype-messages", MFdFlags::MFD_CLOEXEC)?);
        file.set_len((START + capacity) as u64)?;
        let ring = Ring::map(&file, capacity)?;
        let mut token = [0; TOKEN.end - TOKEN.start];
        io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut token)?;
        // SAFETY: these bytes are inside the mapping, which nobody else knows yet.
        unsafe {
            std::ptr::copy_nonoverlapping(token.as_ptr(), ring.memory.as_mut_ptr().add(TOKEN.start), token.len());
        }
        Ok(Self { ring, file })
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn create(_: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What the receiver has to know.
    pub(crate) fn offer(&self) -> Vec<u8> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        let token = self.ring.token();
        let (high, low) = token.split_at(8);
        let number = |half: &[u8]| half.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)) as usize;
        Fields::default().text(&path).number(self.ring.capacity()).number(number(high)).number(number(low)).0
    }

    /// Puts a message in, if there is room.
    pub(crate) fn put(&mut self, message: &[u8]) -> bool {
        let waiting = self.ring.moved - self.ring.taken().load(Ordering::Acquire);
        if message.len() as u64 + waiting > self.ring.capacity() as u64 {
            return false;
        }
        let mut rest = message;
        for (at, length) in self.ring.places(message.len()) {
            let (part, behind) = rest.split_at(length);
            // SAFETY: `places` are inside the mapping; the receiver reads them only after it is told, and has taken out what was there.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), self.ring.memory.as_mut_ptr().add(at), length) };
            rest = behind;
        }
        self.ring.moved += message.len() as u64;
        true
    }
}

/// The end that takes messages out.
#[derive(Debug)]
pub(crate) struct Receiver(Ring);

impl Receiver {
    /// The memory that was offered.
    ///
    /// # Errors
    /// If it cannot be opened, or is something else.
    pub(crate) fn open(offer: &[u8]) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut fields = FieldReader(offer);
        let path = fields.text().ok_or_else(invalid)?;
        let [capacity, high, low] = [fields.number(), fields.number(), fields.number()].map(Option::unwrap_or_default);
        if !path.starts_with("/proc/") || !(1..=OF_ALL).contains(&capacity) {
            return Err(invalid());
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != (START + capacity) as u64 {
            return Err(invalid());
        }
        let ring = Ring::map(&file, capacity)?;
        let token = [(high as u64).to_be_bytes(), (low as u64).to_be_bytes()].concat();
        if ring.token()[..] == token[..] { Ok(Self(ring)) } else { Err(invalid()) }
    }

    /// Takes the next message out, which was announced with this length.
    ///
    /// # Errors
    /// `InvalidData` if it is longer than the ring.
    pub(crate) fn take(&mut self, length: usize, message: &mut Vec<u8>) -> io::Result<()> {
        let ring = &mut self.0;
        if length > ring.capacity() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        message.clear();
        message.reserve(length);
        for (at, length) in ring.places(length) {
            // SAFETY: `places` are inside the mapping; the sender has written them before it announced them, and writes them
            // again only after `taken` says so. `message` has room for both.
            unsafe {
                let end = message.as_mut_ptr().add(message.len());
                std::ptr::copy_nonoverlapping(ring.memory.as_ptr().add(at), end, length);
                message.set_len(message.len() + length);
            }
        }
        ring.moved += length as u64;
        ring.taken().store(ring.moved, Ordering::Release);
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn messages_go_round_and_room_is_given_back() {
        let mut sender = Sender::create(16).unwrap();
        let mut receiver = Receiver::open(&sender.offer()).unwrap();
        let capacity = sender.ring.capacity();
        let message = |length: usize, seed: usize| -> Vec<u8> { (0..length).map(|i| (i * 31 + seed) as u8).collect() };
        assert!(!sender.put(&message(capacity + 1, 0)));
        let mut read = Vec::new();
        for (round, share) in [3, 2, 3, 5, 7, 2, 1].into_iter().enumerate() {
            let sent = message(capacity / share - round, round);
            assert!(sender.put(&sent), "round {round}");
            assert!(!sender.put(&message(capacity - sent.len() + 1, 0)), "round {round}");
            receiver.take(sent.len(), &mut read).unwrap();
            assert_eq!(read, sent, "round {round}");
        }
        assert!(receiver.take(capacity + 1, &mut read).is_err());
    }

    #[test]
    fn only_the_memory_that_was_offered_is_taken() {
        let sender = Sender::create(16).unwrap();
        let offer = sender.offer();
        assert!(Receiver::open(&offer).is_ok());
        for length in 0..offer.len() {
            assert!(Receiver::open(&offer[..length]).is_err(), "{length} bytes");
        }
        let mut other = offer.clone();
        *other.last_mut().unwrap() ^= 1;
        assert!(Receiver::open(&other).is_err());
        let elsewhere = Fields::default().text("/dev/zero").number(4096).number(0).number(0).0;
        assert!(Receiver::open(&elsewhere).is_err());
    }
}
