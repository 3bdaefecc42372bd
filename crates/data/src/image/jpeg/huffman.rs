//! Huffman tables, made for quick reading.

use super::bits::extend;
use super::read::Result;

/// Codes up to this length are looked up.
pub(super) const LOOK: u32 = 9;

pub(super) struct Huffman {
    /// By the next [`LOOK`] bits, where code and number fit in: number, the symbol's upper four bits, bits of both. Else 0.
    pub(super) entries: [u32; 1 << LOOK],
    /// By the next [`LOOK`] bits: length of the code and symbol; 0 if the code is longer.
    pub(super) codes: [u16; 1 << LOOK],
    /// The largest code of each length, -1 if there is none.
    pub(super) largest: [i32; 17],
    /// What is added to a code of each length for the place of its symbol.
    pub(super) offsets: [i32; 17],
    pub(super) symbols: [u8; 256],
}

impl Huffman {
    /// The table of `lengths`, the number of codes of each length from 1 to 16, and the symbols in the order of their
    /// codes (ITU-T T.81, annex C).
    ///
    /// # Errors
    /// If codes of a length are too many, or, in a table of first coefficients (`first`), a symbol is not a size.
    pub(super) fn new(lengths: &[u8; 16], symbols: &[u8], first: bool) -> Result<Box<Self>> {
        if first && symbols.iter().any(|symbol| *symbol > 15) {
            return Err("a Huffman table of the JPEG has sizes above 15".to_owned());
        }
        let mut table = Box::new(Huffman {
            entries: [0; 1 << LOOK],
            codes: [0; 1 << LOOK],
            largest: [-1; 17],
            offsets: [0; 17],
            symbols: [0; 256],
        });
        table.symbols[..symbols.len()].copy_from_slice(symbols);
        let (mut code, mut place) = (0i32, 0usize);
        for length in 1..=16 {
            table.offsets[length] = place as i32 - code;
            for _ in 0..lengths[length - 1] {
                if length as u32 <= LOOK {
                    let shift = LOOK - length as u32;
                    let range = ((code as usize) << shift)..((code as usize + 1) << shift);
                    // Of codes that are too many none is entered; what follows names the fault.
                    if let Some(codes) = table.codes.get_mut(range) {
                        codes.fill((length as u16) << 8 | u16::from(symbols[place]));
                    }
                }
                table.largest[length] = code;
                code += 1;
                place += 1;
            }
            // No code may be of ones alone.
            if lengths[length - 1] > 0 && code >= 1 << length {
                return Err(format!("a Huffman table of the JPEG has too many codes of {length} bits"));
            }
            code <<= 1;
        }
        table.enter_numbers();
        Ok(table)
    }

    fn enter_numbers(&mut self) {
        for (bits, (entry, code)) in self.entries.iter_mut().zip(&self.codes).enumerate() {
            let (length, run, size) = (u32::from(code >> 8), u32::from(code >> 4 & 15), u32::from(code & 15));
            if length == 0 || length + size > LOOK {
                continue;
            }
            let number = match size {
                0 => 0,
                _ => extend((bits >> (LOOK - length - size) & ((1 << size) - 1)) as i32, size),
            };
            *entry = (number as u32) << 16 | run << 8 | (length + size);
        }
    }
}
