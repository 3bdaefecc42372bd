//! The bits of a scan.

use super::huffman::{Huffman, LOOK};

/// Reads bits, the highest of a byte first, up to the next marker, behind which all bits are 0.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// The next byte; behind the marker once there is one.
    pub(super) at: usize,
    /// The next bits, from the highest on.
    next: u64,
    /// How many of them are from the file; below 0 once bits behind the marker have been read.
    left: i32,
    /// The marker that ended the bits.
    pub(super) marker: Option<u8>,
    /// True if the file ended without one.
    pub(super) ended: bool,
    /// True if a code was read that no symbol has.
    pub(super) bad_code: bool,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], at: usize) -> Self {
        Bits { data, at, next: 0, left: 0, marker: None, ended: false, bad_code: false }
    }

    /// True if bits were read that are not there.
    pub(super) fn is_short(&self) -> bool {
        self.left < 0
    }

    /// Forgets the bits that wait, as at the start of an interval.
    pub(super) fn align(&mut self) {
        (self.next, self.left) = (0, 0);
    }

    /// Makes 32 bits and more wait.
    #[inline(always)]
    pub(super) fn fill(&mut self) {
        if self.left < 32 {
            self.fill_up();
        }
    }

    #[inline(always)]
    fn fill_up(&mut self) {
        if self.left >= 0
            && let Some(bytes) = self.data.get(self.at..).and_then(|rest| rest.first_chunk::<8>())
        {
            let word = u64::from_be_bytes(*bytes);
            // True if no byte is 0xff.
            if word & 0x8080_8080_8080_8080 & !word.wrapping_add(0x0101_0101_0101_0101) == 0 && self.marker.is_none() {
                self.next |= word >> self.left;
                self.at += ((63 - self.left) >> 3) as usize;
                self.left |= 56;
                return;
            }
        }
        self.fill_bytes();
    }

    #[cold]
    #[inline(never)]
    fn fill_bytes(&mut self) {
        while self.marker.is_none() && self.left <= 56 {
            let Some(byte) = self.data.get(self.at) else {
                self.end();
                return;
            };
            self.at += 1;
            if *byte == 0xff {
                let Some(step) = self.data[self.at..].iter().position(|byte| *byte != 0xff) else {
                    self.end();
                    return;
                };
                let code = self.data[self.at + step];
                self.at += step + 1;
                if code != 0 {
                    self.marker = Some(code);
                    return;
                }
            }
            self.next |= u64::from(*byte) << (56 - self.left);
            self.left += 8;
        }
    }

    fn end(&mut self) {
        (self.at, self.marker, self.ended) = (self.data.len(), Some(0xd9), true);
    }

    /// The next `count` bits, 1 to 32, which [`Bits::fill`] made wait.
    #[inline(always)]
    fn peek(&self, count: u32) -> u32 {
        (self.next >> (64 - count)) as u32
    }

    #[inline(always)]
    fn skip(&mut self, count: u32) {
        self.next <<= count;
        self.left -= count as i32;
    }

    /// Reads `count` bits, 1 to 16.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        self.fill();
        let bits = self.peek(count);
        self.skip(count);
        bits
    }

    /// Reads a symbol.
    #[inline(always)]
    pub(super) fn symbol(&mut self, table: &Huffman) -> u8 {
        self.fill();
        let code = table.codes[self.peek(LOOK) as usize];
        if code != 0 {
            self.skip(u32::from(code >> 8));
            return code as u8;
        }
        self.long_symbol(table)
    }

    /// A symbol whose code is longer than [`LOOK`], or 0 for a code that none has, which takes 17 bits as in libjpeg.
    #[cold]
    #[inline(never)]
    fn long_symbol(&mut self, table: &Huffman) -> u8 {
        let bits = self.peek(16) as i32;
        for length in LOOK + 1..=16 {
            let code = bits >> (16 - length);
            if code <= table.largest[length as usize] {
                self.skip(length);
                return table.symbols[(code + table.offsets[length as usize]) as u8 as usize];
            }
        }
        self.skip(17);
        self.bad_code = true;
        0
    }

    /// Reads a symbol and the number behind it: the symbol's upper four bits, and the number, 0 if it has no bits.
    #[inline(always)]
    pub(super) fn run_and_number(&mut self, table: &Huffman) -> (u32, i32) {
        self.fill();
        let entry = table.entries[self.peek(LOOK) as usize];
        if entry != 0 {
            self.skip(entry & 0xff);
            return (entry >> 8 & 0xff, entry as i32 >> 16);
        }
        let symbol = self.symbol(table);
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        // Codes and numbers have 31 bits at most.
        (run, if size == 0 { 0 } else { self.waiting_number(size) })
    }

    /// A number of `size` bits that wait, 1 to 15.
    #[inline(always)]
    fn waiting_number(&mut self, size: u32) -> i32 {
        let bits = self.peek(size) as i32;
        self.skip(size);
        extend(bits, size)
    }
}

/// The number that `size` bits stand for: with the highest bit 0 it is negative (ITU-T T.81, F.2.2.1).
#[inline(always)]
pub(super) fn extend(bits: i32, size: u32) -> i32 {
    let negative = (bits >> (size - 1)) - 1;
    bits + (negative & (1 - (1 << size)))
}
