//! Blocks of progressive files (ITU-T T.81, annex G).

use super::bits::Bits;
use super::frame::{ORDER, Scan, Segments};
use super::huffman::Huffman;
use super::read::Result;

/// Reads the blocks of a scan.
pub(super) struct Reader<'t> {
    band: (usize, usize),
    low: u32,
    refines: bool,
    /// Of each part of a scan: the table and the first coefficient of the block before.
    first: Vec<(Option<&'t Huffman>, i32)>,
    others: Option<&'t Huffman>,
    /// Blocks without further coefficients that follow.
    empty: u32,
}

impl<'t> Reader<'t> {
    /// # Errors
    /// If a table is missing.
    pub(super) fn new(segments: &'t Segments<'_>, scan: &Scan) -> Result<Self> {
        let (is_first, refines) = (scan.band.0 == 0, scan.bits.0 != 0);
        let table = |number: usize| match is_first && !refines {
            true => segments.table(true, number).map(Some),
            false => Ok(None),
        };
        let first = scan.parts.iter().map(|part| Ok((table(part.1)?, 0))).collect::<Result<_>>()?;
        let others = if is_first { None } else { Some(segments.table(false, scan.parts[0].2)?) };
        Ok(Reader { band: scan.band, low: scan.bits.1, refines, first, others, empty: 0 })
    }

    /// Starts an interval.
    pub(super) fn start(&mut self) {
        self.first.iter_mut().for_each(|(_, before)| *before = 0);
        self.empty = 0;
    }

    /// Reads what the scan holds of a block of its part `part`.
    #[inline(always)]
    pub(super) fn read(&mut self, bits: &mut Bits<'_>, part: usize, block: &mut [i16; 64]) {
        match (self.others, self.refines) {
            (None, true) => block[0] |= (bits.take(1) << self.low) as i16,
            (None, false) => self.first(bits, part, block),
            (Some(table), false) => self.others(bits, table, block),
            (Some(table), true) => self.refine(bits, table, block),
        }
    }

    fn first(&mut self, bits: &mut Bits<'_>, part: usize, block: &mut [i16; 64]) {
        let (Some(table), before) = &mut self.first[part] else { return };
        let (_, difference) = bits.run_and_number(table);
        *before = before.wrapping_add(difference);
        block[0] = (*before << self.low) as i16;
    }

    fn others(&mut self, bits: &mut Bits<'_>, table: &Huffman, block: &mut [i16; 64]) {
        if self.empty > 0 {
            self.empty -= 1;
            return;
        }
        let mut at = self.band.0;
        while at <= self.band.1 {
            let (run, number) = bits.run_and_number(table);
            if number != 0 {
                at += run as usize;
                block[usize::from(ORDER[at] % 64)] = (number << self.low) as i16;
                at += 1;
            } else if run == 15 {
                at += 16;
            } else {
                self.empty = blocks(bits, run) - 1;
                break;
            }
        }
    }

    fn refine(&mut self, bits: &mut Bits<'_>, table: &Huffman, block: &mut [i16; 64]) {
        let (mut at, end) = self.band;
        let one = 1i16 << self.low;
        while self.empty == 0 && at <= end {
            let symbol = bits.symbol(table);
            let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
            let mut new = 0;
            if size != 0 {
                bits.bad_code |= size != 1;
                new = if bits.take(1) == 1 { one } else { -one };
            } else if run != 15 {
                self.empty = blocks(bits, run);
                break;
            }
            // Passes `run` coefficients that are 0, and gives those between a further bit.
            while at <= end {
                let coefficient = &mut block[usize::from(ORDER[at] % 64)];
                if *coefficient != 0 {
                    add_bit(bits, coefficient, one);
                } else if run == 0 {
                    break;
                } else {
                    run -= 1;
                }
                at += 1;
            }
            if new != 0 {
                block[usize::from(ORDER[at] % 64)] = new;
            }
            at += 1;
        }
        if self.empty > 0 {
            for place in &ORDER[at.min(end + 1)..=end] {
                let coefficient = &mut block[usize::from(*place % 64)];
                if *coefficient != 0 {
                    add_bit(bits, coefficient, one);
                }
            }
            self.empty -= 1;
        }
    }
}

/// How many blocks have no further coefficients, this one included.
fn blocks(bits: &mut Bits<'_>, run: u32) -> u32 {
    if run == 0 { 1 } else { (1 << run) + bits.take(run) }
}

/// The next bit of a coefficient whose magnitude is known down to the bit above `one`.
#[inline(always)]
fn add_bit(bits: &mut Bits<'_>, coefficient: &mut i16, one: i16) {
    if bits.take(1) == 1 && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { one } else { -one });
    }
}
